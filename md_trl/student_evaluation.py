"""Sample a student on the questions of a task and evaluate its answers (Sec. 4).

Samples are kept in a store, so an interrupted evaluation continues where it stopped, and several processes can share
the sampling. A sample is seeded by its question, path and index: which process draws it does not matter.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from .errors import InputError
from .evaluation import EvaluationResult, collect_answers
from .execution import Executor, default_cache
from .judging import read_answers
from .progress import progress_bar
from .prompts import FEW_SHOT_PROMPTS, STOP, Prompt, student_prompt
from .records import ALL_PATHS, LABEL, PATHS, PATHS_AND_LABEL, STUDENT_THOUGHTS, Question, SamplingParams, Thought
from .sampling import SampleSummary, sample
from .sampling.engines import Engine, check_params
from .sampling.rounds import group_by_size, next_sizes
from .stopping import Seen, StoppingRule, rule_named, take
from .store import Selection, Store
from .voting import VoteWeights


PROMPTS = ("student", *FEW_SHOT_PROMPTS)
"""How a model can be asked, see [`StudentEvaluation`]."""
POLL_SECONDS = 1.0
"""Pause between two checks for samples that another process is still drawing."""


def paths_to_sample(learned: Sequence[str] | None) -> list[str]:
    r"""
    Return what to sample of a student where nothing else is said.

    Args:
        learned (`Sequence[str]`, *optional*):
            Paths that it has learned, as in its `md_trl.json`. `None` if they are unknown.

    Returns:
        `list[str]`: Both paths, or what it has learned if it lacks one of them.
    """
    learned = learned or PATHS
    return [path for path in PATHS if path in learned] or list(learned)


@dataclass(frozen=True)
class StudentEvaluation:
    r"""
    What to ask a student, and how. Creating it checks the settings; nothing is sampled yet.

    Args:
        questions (`Sequence[Question]`):
            Questions of one task and split.
        params ([`~md_trl.records.SamplingParams`]):
            How to sample thoughts. Bare answers are greedy.
        paths (`Sequence[str]`, *optional*, defaults to `("cot", "pot")`):
            What to sample: `cot`, `pot`, `cot_pot`, and `label` for the bare answer.
        n (`int`, *optional*, defaults to `10`):
            Number of thoughts per path, or the maximum if a rule stops earlier. A question has one bare answer.
        prompt_format (`str`, *optional*, defaults to `"auto"`):
            Format of the prompts: `"plain"`, `"chat"`, or `"auto"` for the one in the student's `md_trl.json`, else
            chat if the tokenizer has a chat template. Another one than in `md_trl.json` is refused.
        strict (`bool`, *optional*, defaults to `True`):
            Whether a CoT must state its answer, see [`~md_trl.answers.extract`].
        rule (`str`, *optional*, defaults to `"fixed"`):
            When a question has enough thoughts, see [`~md_trl.stopping.rule_named`]. All but `fixed` need both paths,
            and no other.
        weights (`str` or [`~md_trl.voting.VoteWeights`], *optional*, defaults to `"none"`):
            Weight of a vote: `"none"` for Eq. 5, or `"likelihood"`.
        prompt (`str`, *optional*, defaults to `"student"`):
            `"student"` for the question and the trigger, as students are trained. `"few_shot"` asks as a teacher is
            asked, with worked examples as a chat, and `"few_shot_text"` with the same as text: for models that were
            not trained on thoughts.

    Raises:
        `ValueError`: A setting is invalid, or there are no questions.

    Examples:

    ```python
    >>> from md_trl.records import SamplingParams
    >>> from md_trl.sampling.engines.transformers import TransformersEngine
    >>> from md_trl.store import Store
    >>> from md_trl.student_evaluation import StudentEvaluation
    >>> from md_trl.tasks import load_questions

    >>> evaluation = StudentEvaluation(load_questions("svamp", "test"), SamplingParams())
    >>> with Store("student.db") as store:
    ...     result = evaluation.run("md", TransformersEngine("outputs/student"), store)
    >>> result.accuracy("joint", votes=10)
    ```
    """

    questions: Sequence[Question]
    params: SamplingParams
    paths: Sequence[str] = PATHS
    n: int = STUDENT_THOUGHTS
    prompt_format: str = "auto"
    strict: bool = True
    rule: str = "fixed"
    weights: str | VoteWeights = "none"
    prompt: str = "student"

    def __post_init__(self):
        if self.prompt not in PROMPTS:
            raise InputError(f"Unknown prompt {self.prompt!r}. Choose one of {', '.join(PROMPTS)}.")
        if self.prompt != "student" and LABEL in self.paths:
            raise InputError(f"There are no worked examples for the path {LABEL!r}. Leave it out of `--paths`.")
        if self.prompt == "few_shot_text":
            object.__setattr__(self, "params", replace(self.params, stop=(*self.params.stop, *STOP)))
        if unknown := sorted(set(self.paths) - set(PATHS_AND_LABEL)):
            raise InputError(f"Unknown path {unknown[0]!r} in `--paths`. Choose from {', '.join(PATHS_AND_LABEL)}.")
        if not self.questions or not self.paths:
            raise InputError("There is nothing to evaluate. Choose at least one question and one path.")
        check_params(self.params, self.n)
        if self._stopping_rule() and set(self.paths) - {LABEL} != set(PATHS):
            raise InputError(f"The rule {self.rule!r} compares both paths, not {self.paths}. Use {', '.join(PATHS)}.")
        VoteWeights.of(self.weights)

    def sample(self, engine: Engine, store: Store, progress: bool = True) -> SampleSummary:
        r"""
        Sample what the store lacks. Several processes may do so at the same time.

        Args:
            engine ([`~md_trl.sampling.engines.Engine`]):
                Engine of the student.
            store ([`~md_trl.store.Store`]):
                Store of the student's thoughts.
            progress (`bool`, *optional*, defaults to `True`):
                Whether to show a progress bar.

        Returns:
            [`~md_trl.sampling.SampleSummary`]: What this process sampled, and the settings of all samples.
        """
        prompt = self._prompt(engine)
        summary = SampleSummary()
        reasoning = [path for path in ALL_PATHS if path in self.paths]
        if self._stopping_rule():
            summary.add(self._sample_by_rule(engine, store, prompt, progress))
        elif reasoning:
            job = (self.questions, reasoning, self.n, engine, store, prompt)
            summary.add(sample(*job, params=self.params, progress=progress))
        if LABEL in self.paths:
            job = (self.questions, [LABEL], 1, engine, store, prompt)
            summary.add(sample(*job, params=self.params.greedy(), progress=progress))
        return summary

    def _prompt(self, engine: Engine) -> Callable[[Question, str], Prompt]:
        if self.prompt != "student":
            return FEW_SHOT_PROMPTS[self.prompt]
        prompt_format = engine.student_prompt_format(self.prompt_format)
        return lambda question, path: student_prompt(question.question, path, prompt_format)

    def _stopping_rule(self) -> StoppingRule | None:
        rule = rule_named(self.rule, len(PATHS) * self.n)
        return None if self.rule == "fixed" else rule

    def _sample_by_rule(
        self, engine: Engine, store: Store, prompt: Callable[[Question, str], Prompt], progress: bool
    ) -> SampleSummary:
        """Sample in rounds until the rule has enough of every question, or nothing more can be had."""
        rule, summary = self._stopping_rule(), SampleSummary()
        before: dict[str, dict[str, int]] = {}
        by_id = {question.id: question for question in self.questions}
        read: dict[tuple[str, str, int], Thought] = {}
        with (
            Executor(cache=default_cache(store.file)) as executor,
            progress_bar(show=progress, total=len(self.questions), unit="question", desc=engine.model) as bar,
        ):
            while True:
                stored = {(t.question_id, t.path, t.index): t for t in self._stored(store, summary.settings)}
                new = [thought for key, thought in stored.items() if key not in read]
                answered = read_answers(new, executor, strict=self.strict)
                read |= {(t.question_id, t.path, t.index): t for t in answered}
                seen = self._seen(read[key] for key in stored)
                sizes = {i: more for i, of_question in seen.items() if (more := next_sizes(rule, of_question))}
                bar.update(len(self.questions) - len(sizes) - bar.n)
                if not sizes:
                    return summary
                if sizes == before:
                    if not self._drawn_elsewhere(store, summary.settings):
                        return summary
                    time.sleep(POLL_SECONDS)
                before = sizes
                for (n, paths), group in group_by_size(sizes).items():
                    job = ([by_id[question_id] for question_id in group], paths, n, engine, store, prompt)
                    summary.add(sample(*job, params=self.params, progress=False))

    def _stored(self, store: Store, settings: Sequence[int]) -> list[Thought]:
        """The stored thoughts of the evaluation. An earlier run may have sampled more questions, or more of each."""
        first = self.questions[0]
        asked = {question.id for question in self.questions}
        thoughts = store.thoughts(Selection(first.task, [first.split], paths=self.paths, settings=settings))
        return [t for t in thoughts if t.question_id in asked and t.index < (1 if t.path == LABEL else self.n)]

    def _seen(self, answered: Iterable[Thought]) -> dict[str, Seen]:
        """What each question has so far, in sample order up to the first sample that is missing."""
        thoughts: dict[tuple[str, str], list[Thought]] = defaultdict(list)
        for thought in answered:
            of_path = thoughts[thought.question_id, thought.path]
            if thought.index == len(of_path):
                of_path.append(thought)
        return {q.id: Seen.from_thoughts(*(thoughts[q.id, p] for p in PATHS), self.weights) for q in self.questions}

    def run(self, name: str, engine: Engine, store: Store) -> EvaluationResult:
        """Sample and judge, see [`StudentEvaluation.sample`] and [`StudentEvaluation.judge`]."""
        self.sample(engine, store)
        return self.judge(name, engine, store)

    def wait(self, engine: Engine, store: Store) -> list[int]:
        r"""
        Wait until other processes have drawn their samples, and sample what they did not finish.

        Args:
            engine ([`~md_trl.sampling.engines.Engine`]):
                Engine of the student.
            store ([`~md_trl.store.Store`]):
                Store of the student's thoughts.

        Returns:
            `list[int]`: Numbers of the settings of all samples.
        """
        settings = self.sample(engine, store, progress=False).settings
        if self._drawn_elsewhere(store, settings):
            while self._drawn_elsewhere(store, settings):
                time.sleep(POLL_SECONDS)
            self.sample(engine, store, progress=False)
        return settings

    def judge(self, name: str, engine: Engine, store: Store) -> EvaluationResult:
        r"""
        Judge all answers, as soon as other processes that share the sampling are done.

        Args:
            name (`str`):
                Name of the student in tables.
            engine ([`~md_trl.sampling.engines.Engine`]):
                Engine of the student.
            store ([`~md_trl.store.Store`]):
                Store of the student's thoughts.

        Returns:
            [`~md_trl.evaluation.EvaluationResult`]: The result.

        Raises:
            `ValueError`: The student could not be sampled on a question.
        """
        settings = self.wait(engine, store)
        with Executor(cache=default_cache(store.file)) as executor:
            answered = read_answers(self._stored(store, settings), executor, strict=self.strict, progress=True)
        counts = self._counts(answered)
        tokens = {
            question.id: sum(
                store.usage(question.id, path, setting, counts[question.id, path]).completion_tokens
                for path in self.paths
                for setting in settings
            )
            for question in self.questions
        }
        first = self.questions[0]
        return EvaluationResult(
            name=name,
            model=engine.model,
            task=first.task,
            split=first.split,
            settings=self._settings(engine),
            questions=collect_answers(self.questions, answered, counts, self.paths, tokens),
        )

    def _counts(self, answered: Sequence[Thought]) -> dict[tuple[str, str], int]:
        """The number of thoughts of each question and path that the result takes. The store may hold more."""
        counts = {(q.id, path): 1 if path == LABEL else self.n for q in self.questions for path in self.paths}
        if (rule := self._stopping_rule()) is not None:
            for question_id, seen in self._seen(answered).items():
                taken = take(rule, seen)
                counts |= {(question_id, path): taken.count(path) for path in PATHS}
        return counts

    def _settings(self, engine: Engine) -> dict[str, Any]:
        return {
            "paths": [path for path in PATHS_AND_LABEL if path in self.paths],
            "n": self.n,
            **asdict(self.params),
            **self._prompt_settings(engine),
            "extract": "strict" if self.strict else "flexible",
            **({} if self.rule == "fixed" else {"rule": self.rule}),
            **VoteWeights.of(self.weights).to_settings(),
        }

    def _prompt_settings(self, engine: Engine) -> dict[str, str]:
        if self.prompt != "student":
            return {"prompt": self.prompt}
        return {"prompt_format": engine.student_prompt_format(self.prompt_format)}

    def _drawn_elsewhere(self, store: Store, settings: Sequence[int]) -> bool:
        """Return whether another running process is drawing some of the samples."""
        for question in self.questions:
            for path in self.paths:
                for setting in settings:
                    missing = store.claims.missing(question.id, path, setting, 1 if path == LABEL else self.n)
                    if missing and not store.claims.taken(question.id, path, setting).isdisjoint(missing):
                        return True
        return False
