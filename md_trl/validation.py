"""Hold out training questions, and measure a student's greedy accuracy on them while it is trained.

Checkpoints and settings are then chosen without a look at the test split. The trainer itself never samples: the
accuracy is computed by a callback.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, gather_object
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled

from .errors import InputError
from .evaluation import EvaluationResult, collect_answers
from .execution import Executor
from .judging import read_answers
from .prompts import resolve_prompt_format, student_prompt
from .records import PATHS, VALIDATION_QUESTIONS, Question, SamplingParams, Thought
from .sampling.engines import SampleRequest, SampleResult
from .sampling.engines.transformers import TransformersEngine
from .trainer.arguments import as_tokenizer
from .trainer.evaluation_callback import EvaluationCallback
from .trainer.quantized import kept_trainable


VALIDATION_FILE = "validation.json"
"""File in the output folder of a training that lists the questions held out."""


def check_share(share: float, name: str = "validation") -> None:
    """Raise a `ValueError` unless `share` is between 0 and 1."""
    if not 0 < share < 1:
        raise InputError(f"`{name}` is a share of the questions between 0 and 1, got {share}. Use 0.1, for example.")


def split_validation(rows: Dataset, share: float, seed: int = 42) -> tuple[Dataset, Dataset]:
    r"""
    Hold out a share of the questions for validation.

    The split is drawn by question and stratified by `type`: each type keeps its share to within one question. Rows
    with the same question stay together. Which questions are held out depends on the seed and the questions, not on
    the order of the rows.

    Args:
        rows ([`~datasets.Dataset`]):
            Rows to train on. Without a column `type`, they are a single stratum.
        share (`float`):
            Share of the questions to hold out, between 0 and 1.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the draw.

    Returns:
        `tuple[Dataset, Dataset]`: The rows to train on and the rows held out, each in the order given.

    Raises:
        `ValueError`: The share is out of range, or it leaves one of the two parts empty.

    Examples:

    ```python
    >>> from datasets import load_dataset
    >>> from md_trl.validation import split_validation

    >>> rows = load_dataset("md/mixed-thoughts", "svamp", split="train")
    >>> train_dataset, eval_dataset = split_validation(rows, 0.1)
    ```
    """
    check_share(share)
    column = next((name for name in ("question", "id", "prompt") if name in rows.column_names), None)
    if column is None:
        raise InputError(
            f"The rows have no column `question`, `id` or `prompt` to split them by; they have "
            f"{', '.join(rows.column_names)}."
        )
    keys = [value if isinstance(value, str) else json.dumps(value) for value in rows[column]]
    types = rows["type"] if "type" in rows.column_names else [0] * len(rows)
    type_of: dict[str, int] = {}
    for key, type_ in zip(keys, types, strict=True):
        type_of.setdefault(key, type_)
    strata: dict[int, list[str]] = defaultdict(list)
    for key, type_ in type_of.items():
        strata[type_].append(key)
    questions = len(type_of)
    held_out: set[str] = set()
    for type_, count in _shares({type_: len(of_type) for type_, of_type in strata.items()}, share).items():
        drawn = sorted(strata[type_], key=lambda key: random.Random(f"{seed}/validation/{key}").random())
        held_out.update(drawn[:count])
    if not 0 < len(held_out) < questions:
        raise InputError(
            f"A share of {share} of {questions} questions leaves {len(held_out)} for validation and "
            f"{questions - len(held_out)} for training. Both need at least one: change `validation`."
        )
    parts: tuple[list[int], list[int]] = ([], [])
    for index, key in enumerate(keys):
        parts[key in held_out].append(index)
    return rows.select(parts[0]), rows.select(parts[1])


def _shares(sizes: Mapping[int, int], share: float) -> dict[int, int]:
    """Divide the rounded share of the total over strata by largest remainders: each is rounded up or down."""
    counts = {type_: int(size * share) for type_, size in sizes.items()}
    missing = int(sum(sizes.values()) * share + 0.5) - sum(counts.values())
    by_remainder = sorted(sizes, key=lambda type_: (counts[type_] - sizes[type_] * share, type_))
    return counts | {type_: counts[type_] + 1 for type_ in by_remainder[:missing]}


def validation_questions(rows: Dataset, max_questions: int = VALIDATION_QUESTIONS, seed: int = 42) -> list[Question]:
    r"""
    Return the questions of rows, to ask a student with [`GreedyAccuracy`].

    Args:
        rows ([`~datasets.Dataset`]):
            Rows with `question` and `answer`, and optionally `id`, `task` and `type`.
        max_questions (`int`, *optional*, defaults to `100`):
            Maximum number of questions. If there are more, they are drawn as in [`split_validation`].
        seed (`int`, *optional*, defaults to `42`):
            Seed of the draw.

    Returns:
        `list[Question]`: The questions, in the order of the rows.

    Raises:
        `ValueError`: A column is missing.
    """
    if missing := [column for column in ("question", "answer") if column not in rows.column_names]:
        raise InputError(
            f"The validation rows have no column {', '.join(missing)}, so greedy answers cannot be scored. Pass mixed "
            "rows, or set `validation_questions` to 0."
        )
    if len(rows) > max_questions:
        _, rows = split_validation(rows, max_questions / len(rows), seed)
    return [
        Question(
            row.get("id") or f"validation/{index}", row.get("task") or "", "train", row["question"], row["answer"]
        )
        for index, row in enumerate(rows.select(range(min(max_questions, len(rows)))))
    ]


def keep_split(output_dir: str | Path, split: Mapping[str, Any] | None, resumed_from: str | Path | None) -> None:
    r"""
    Write a split beside the student, or check that a resumed training has the same one.

    Args:
        output_dir (`str` or `Path`):
            Output folder of the training.
        split (`Mapping`, *optional*):
            Share, seed and ids of the questions held out; `None` if there are none.
        resumed_from (`str` or `Path`, *optional*):
            Output folder of the training that is resumed, if any.

    Raises:
        `ValueError`: The resumed training held out other questions, so it has trained on some of these.
    """
    file = Path(output_dir) / VALIDATION_FILE
    if resumed_from is not None:
        before = Path(resumed_from) / VALIDATION_FILE
        ids = json.loads(before.read_text(encoding="utf-8"))["ids"] if before.is_file() else None
        if ids != (None if split is None else split["ids"]):
            described = "held out no questions" if ids is None else f"held out the {len(ids)} questions in {before}"
            now = "none" if split is None else f"{len(split['ids'])} others"
            raise InputError(
                f"The training to resume {described}, and this one would hold out {now}. Resume with the same "
                "`validation`, `seed` and dataset, or start a new training."
            )
    if split is None:
        file.unlink(missing_ok=True)
        return
    text = json.dumps(split, indent=2) + "\n"
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def select_held_out(questions: Sequence[Question], file: str | Path) -> list[Question]:
    r"""
    Return the questions that a training held out.

    Args:
        questions (`Sequence[Question]`):
            Training questions of a task.
        file (`str` or `Path`):
            `validation.json` in the folder of the student.

    Returns:
        `list[Question]`: The questions whose ids the file lists, in their order.

    Raises:
        `InputError`: The file lists no ids, or some that are not among the questions.
    """
    try:
        ids = set(json.loads(Path(file).read_text(encoding="utf-8"))["ids"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is not a file of `md-trl train --validation` ({error!r}).") from None
    found = [question for question in questions if question.id in ids]
    if missing := sorted(ids - {question.id for question in found}):
        raise InputError(
            f"{len(missing)} of the {len(ids)} questions in {file} are not among those to evaluate on, such as "
            f"{missing[0]!r}. Use `--split train`, and the task, source and seed of the training."
        )
    return found


class GreedyAccuracy(EvaluationCallback):
    r"""
    Callback that asks the student questions in each evaluation and adds the accuracy of its greedy answers.

    The figures are `eval_cot_accuracy` and `eval_pot_accuracy` (and `eval_label_accuracy`) for the paths asked for,
    and for both paths `eval_joint_accuracy`: that of the N=2 rule (Sec. 4.4.2), which takes the answer of the PoT, and
    that of the CoT only if the program does not run to an answer. Training is the same with and without the callback:
    weights, training mode and random states are left as they were. Processes share the questions.

    Args:
        questions (`Sequence[Question]`):
            Questions with their gold answers.
        paths (`Sequence[str]`, *optional*, defaults to `("cot", "pot")`):
            What to ask for: `cot`, `pot`, `label`.
        params ([`~md_trl.records.SamplingParams`], *optional*):
            Maximum length and stop strings of an answer, which is greedy in any case.

    Raises:
        `ValueError`: There are no questions; or when training begins, if the model is sharded over processes (FSDP,
            ZeRO-3, tensor parallelism).

    Examples:

    ```python
    >>> from md_trl import MDConfig, MDTrainer
    >>> from md_trl.validation import GreedyAccuracy, split_validation, validation_questions

    >>> train_dataset, eval_dataset = split_validation(rows, 0.1)
    >>> trainer = MDTrainer(
    ...     model="HuggingFaceTB/SmolLM2-135M-Instruct",
    ...     args=MDConfig(
    ...         "student", eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
    ...         metric_for_best_model="eval_joint_accuracy",
    ...     ),
    ...     train_dataset=train_dataset,
    ...     eval_dataset=eval_dataset,
    ...     callbacks=[GreedyAccuracy(validation_questions(eval_dataset))],
    ... )
    ```
    """

    def __init__(
        self, questions: Sequence[Question], paths: Sequence[str] = PATHS, params: SamplingParams = SamplingParams()
    ):
        if not questions:
            raise InputError("`GreedyAccuracy` has no questions to ask. Leave it out, or hold out more questions.")
        self.questions = questions
        self.paths = paths
        self.params = params.greedy()

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        state = AcceleratorState()
        if state.distributed_type == DistributedType.FSDP or is_deepspeed_zero3_enabled() or (model.tp_size or 1) > 1:
            raise InputError(
                "`GreedyAccuracy` samples in each process by itself, and no process has the whole model. Leave it out "
                "(`validation_questions=0`), and choose the best model by `eval_loss`."
            )

    def evaluate(
        self,
        args: TrainingArguments,
        model: PreTrainedModel,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    ) -> dict[str, float]:
        """Return the accuracies, see [`EvaluationCallback.evaluate`]."""
        tokenizer = as_tokenizer(processing_class)
        prompt_format = resolve_prompt_format(tokenizer, args.prompt_format)
        requests = [
            SampleRequest(q.id, path, student_prompt(q.question, path, prompt_format), self.params)
            for q in self.questions[args.process_index :: args.world_size]
            for path in self.paths
        ]
        with _left_as_it_was(model), kept_trainable(model), Executor() as executor:
            model.eval()
            results = TransformersEngine(model, tokenizer).generate(requests)
            answered = read_answers([_thought(result) for result in results], executor)
        first = self.questions[0]
        result = EvaluationResult(
            name="student",
            model="",
            task=first.task,
            split=first.split,
            settings={},
            questions=collect_answers(self.questions, gather_object(answered), 1, self.paths),
        )
        figures = {f"{path}_accuracy": result.accuracy(path) for path in self.paths}
        return figures | ({"joint_accuracy": result.accuracy("n2")} if set(PATHS) <= set(self.paths) else {})


def _thought(result: SampleResult) -> Thought:
    """The greedy answer to a request. A prompt that was refused, because it is too long, gives an unusable one."""
    request = result.request
    text, reason = (result.choices[0].text, result.choices[0].finish_reason) if result.choices else ("", "length")
    return Thought(request.question_id, request.path, 0, text.strip(), finish_reason=reason)


@contextmanager
def _left_as_it_was(model: PreTrainedModel) -> Iterator[None]:
    """Restore the random states and the training mode of each module."""
    modes = [(module, module.training) for module in model.modules()]
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            for module, training in modes:
                module.training = training
