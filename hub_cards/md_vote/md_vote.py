# Copyright 2026 The md_trl authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Accuracy of the votes of two reasoning paths: chain of thought and program of thought."""

import datasets
import evaluate

from md_trl.metric import compute, texts_of_question, texts_of_questions


_DESCRIPTION = """
Accuracy of a model that answers by voting over two reasoning paths, chain of thought (CoT) and program of thought
(PoT), as in Mixed Distillation. The joint vote is the most frequent answer of both paths together (Eq. 5 of the
paper). Answers are compared in a canonical form of numbers, yes/no, times and words, so `$1,080`, `1080.0` and
`1080 dollars` are the same answer, and votes group answers exactly as scoring compares them.
"""

_KWARGS_DESCRIPTION = """
Args:
    cot (list of list of str or number): for each question, the answers of its CoT thoughts in sample order. The answer
        of an unusable thought is an empty string or None. A question without CoT thoughts has an empty list.
    pot (list of list of str or number): for each question, the answers of its PoT thoughts in sample order.
    references (list of str or number): for each question, the gold answer.
    predictions (list of str or number): for each question, one answer. Used by the configuration "flat" in place of
        cot and pot.
    cot_weights (list of list of float): for each question, one weight per CoT answer. Defaults to 1 for each answer.
    pot_weights (list of list of float): for each question, one weight per PoT answer. Defaults to 1 for each answer.
    tie_break (str): path whose answers win ties, "cot" or "pot". Defaults to "cot", as in Eq. 5.
    bootstrap (int): number of bootstrap resamples of the questions for intervals. Defaults to 0, no intervals.
    seed (int): seed of the resamples. Defaults to 0.
    confidence_level (float): share of the resamples that lie within an interval. Defaults to 0.95.
    extract (bool): whether cot, pot and predictions are raw generations whose answers must be read first. A chain of
        thought must state its answer, as in "The answer is 5." or "#### 5". Defaults to False.
    run_programs (bool): whether the programs in pot may run, in a sandbox, to read their answers. Requires
        extract=True. Defaults to False.
Returns:
    accuracy (float): share of questions whose joint vote is correct. No usable answer counts as wrong.
    cot_accuracy (float): share of questions whose CoT vote is correct.
    pot_accuracy (float): share of questions whose PoT vote is correct.
    both (float): share of questions whose CoT and PoT votes are both correct.
    cot_only (float): share of questions whose CoT vote alone is correct.
    pot_only (float): share of questions whose PoT vote alone is correct.
    neither (float): share of questions whose CoT and PoT votes are both wrong.
    abstained (float): share of questions without a usable answer.
    n_questions (int): number of questions.
    mean_votes (float): mean number of usable answers per question, both paths together.
    accuracy_low, accuracy_high (float): bootstrap interval of accuracy (Wilson's if all or no questions are correct),
        only with bootstrap. The same for cot_accuracy and pot_accuracy.
    The configuration "flat" returns accuracy, abstained, n_questions and, with bootstrap, the interval. It takes no
    weights and no tie_break.
Examples:

    Three questions. In the second, the votes tie and the CoT answer is seen first; in the third, CoT is wrong:

    >>> import evaluate
    >>> md_vote = evaluate.load("md/md_vote")
    >>> results = md_vote.compute(
    ...     cot=[["5", "6"], ["$1,080", "1080", ""], ["yes"]],
    ...     pot=[["5"], ["108", "108"], []],
    ...     references=["5", "1080", "no"],
    ... )
    >>> print(round(results["accuracy"], 3), round(results["pot_accuracy"], 3), round(results["cot_only"], 3))
    0.667 0.333 0.333
    >>> print(results["n_questions"], round(results["mean_votes"], 3))
    3 2.667

    Votes weighted by the likelihood of their thoughts, which decides a tie:

    >>> weights = {"cot_weights": [[0.4]], "pot_weights": [[0.9]]}
    >>> print(md_vote.compute(cot=[["5"]], pot=[["6"]], references=["6"], **weights)["accuracy"])
    1.0

    Raw generations, and an interval over the questions:

    >>> results = md_vote.compute(
    ...     cot=[["3 * 4 = 12. The answer is 12."], ["I do not know."]],
    ...     pot=[["return 3 * 4"], ["return 2 + 2"]],
    ...     references=["12", "5"],
    ...     extract=True,
    ...     run_programs=True,
    ...     bootstrap=1000,
    ... )
    >>> print(results["accuracy"], results["accuracy_low"], results["accuracy_high"], results["mean_votes"])
    0.5 0.0 1.0 1.5

    One answer per question:

    >>> flat = evaluate.load("md/md_vote", "flat")
    >>> print(flat.compute(predictions=["$5.00", "2/3", ""], references=["5", "0.6667", "7"]))
    {'accuracy': 0.6666666666666666, 'abstained': 0.3333333333333333, 'n_questions': 3}
"""

_CITATION = """
@inproceedings{chenglin-etal-2024-mixed,
  title     = {Mixed Distillation Helps Smaller Language Models Reason Better},
  author    = {Li, Chenglin and Chen, Qianglong and Li, Liangyue
               and Wang, Caiyu and Tao, Feng and Li, Yicheng and Chen, Zulong and Zhang, Yin},
  booktitle = {Findings of EMNLP},
  year      = {2024},
  url       = {https://huggingface.co/papers/2312.10730}
}
"""

_ANSWER = datasets.Value("string")
_FEATURES = {
    "default": {"cot": datasets.List(_ANSWER), "pot": datasets.List(_ANSWER), "references": _ANSWER},
    "flat": {"predictions": _ANSWER, "references": _ANSWER},
}


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class MDVote(evaluate.Metric):
    def _info(self):
        if self.config_name not in _FEATURES:
            raise ValueError(f"Unknown configuration {self.config_name!r}. Choose one of {', '.join(_FEATURES)}.")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(_FEATURES[self.config_name]),
            codebase_urls=["https://huggingface.co/spaces/md/md_vote"],
            reference_urls=["https://huggingface.co/papers/2312.10730"],
        )

    def add(self, **answers):
        """Add the answers of one question."""
        super().add(**texts_of_question(answers))

    def add_batch(self, **answers):
        """Add the answers of several questions."""
        super().add_batch(**texts_of_questions(answers))

    def _compute(self, extract=False, run_programs=False, **answers_and_options):
        answers = {name: answers_and_options.pop(name) for name in self.features}
        return compute(answers, extract, run_programs, **answers_and_options)
