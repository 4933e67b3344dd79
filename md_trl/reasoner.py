"""Answer questions with a student: sample both paths, stop once the vote is clear (Sec. 3.2, Eq. 5)."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, takewhile
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .errors import InputError
from .execution import Executor, default_cache
from .judging import read_answers
from .prompts import TRIGGERS, read_student_settings, resolve_prompt_format, student_prompt
from .records import PATHS, STUDENT_MAX_TOKENS, Question, SamplingParams, Thought
from .sampling.engines import Engine
from .sampling.run import SamplingRun
from .stopping import BUDGET, Seen, StoppingRule, rule_named
from .store import Selection, Store
from .voting import WEIGHTS, Tally, tally


logger = logging.getLogger(__name__)

_LOADED = (PreTrainedModel, PeftModel)

TASK = "questions"
"""Task under which a store keeps the questions that a reasoner is asked."""


@dataclass(frozen=True)
class Reasoned:
    r"""
    The answer of a student to one question.

    Args:
        answer (`str`, *optional*):
            Joint vote in canonical form; `None` if no thought reached an answer.
        confidence (`float`):
            Share of the votes that the answer received, between 0 and 1. A vote counts with its weight.
        votes (`dict[str, float]`):
            Share of the votes by answer in canonical form, in the order in which they were first seen.
        samples (`int`):
            Number of thoughts that were sampled for the question.
        cot (`list[Thought]`):
            CoT thoughts with their answers, in sample order.
        pot (`list[Thought]`):
            PoT thoughts with their answers, in sample order.
    """

    answer: str | None
    confidence: float
    votes: dict[str, float]
    samples: int
    cot: list[Thought]
    pot: list[Thought]


@dataclass
class _Asked:
    """A question with the thoughts that it has so far, by path and sample index, in order."""

    question: Question
    places: list[int]
    thoughts: dict[str, dict[int, Thought]] = field(default_factory=lambda: {path: {} for path in PATHS})

    def of(self, path: str) -> list[Thought]:
        """The thoughts of a path from the first up to the first one that is missing."""
        found = self.thoughts[path]
        return [found[index] for index in takewhile(found.__contains__, count())]


class MixedReasoner:
    r"""
    Lets a student reason in prose and in programs, and answers by a vote over both.

    All unfinished questions are sampled together in rounds, until the stopping rule has seen enough of each. Programs
    run in an [`~md_trl.execution.Executor`].

    Example:

    ```python
    >>> from md_trl import MixedReasoner

    >>> reasoner = MixedReasoner("outputs/smollm2-svamp/student")
    >>> [reasoned] = reasoner(["Dan had 4 dollars and spent 3 of them. How many are left?"])
    >>> reasoned.answer, reasoned.confidence, reasoned.samples
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~md_trl.sampling.engines.Engine`]):
            The student: a folder, a Hub id, an adapter, a loaded model, the URL of an OpenAI-compatible server such as
            `http://127.0.0.1:8000/v1`, or an engine.
        n (`int`, *optional*, defaults to `20`):
            Maximum number of thoughts per question, on both paths together.
        stop (`str` or [`~md_trl.stopping.StoppingRule`], *optional*, defaults to `"agreement"`):
            When a question has enough thoughts: `"fixed"` (n of them), `"pot_first"` (one PoT, else one CoT),
            `"agreement"`, `"esc"` or `"adaptive"`, see [`~md_trl.stopping`]; or a rule with parameters of its own,
            whose `n` then counts.
        weights (`str`, *optional*, defaults to `"likelihood"`):
            Weight of a vote: `"none"` for Eq. 5, or `"likelihood"` for exp(mean log-probability per token) of its
            thought. Where the engine reports no log-probabilities, all votes weigh the same, and a warning says so.
        temperature (`float`, *optional*, defaults to `0.7`):
            Sampling temperature; `0` is greedy and allows one thought per path (`n=2`).
        max_tokens (`int`, *optional*, defaults to `256`):
            Maximum length of a thought in tokens.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the samples. A sample depends on its question, path and index, not on what else is asked.
        prompt_format (`str`, *optional*, defaults to `"auto"`):
            Format of the prompts: `"plain"`, `"chat"`, or `"auto"` for the one in the student's `md_trl.json`, else
            chat if the tokenizer has a chat template. Another one than in `md_trl.json` is refused, unless the model
            is loaded already. A server does not tell it.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the student. Required for a loaded model.
        model_name (`str`, *optional*):
            Name of the student on the server. Required for a URL.
        store (`str` or `Path`, *optional*):
            Store in which all thoughts are kept. Questions that were asked before with the same settings go on from
            there. Without one, thoughts are kept only as long as it takes to answer.

    Raises:
        `ValueError`: The rule or the weights are unknown, the student cannot reason on one of the paths, or the prompt
            format does not fit the student or its tokenizer.
    """

    def __init__(
        self,
        model: str | PreTrainedModel | Engine,
        n: int = BUDGET,
        stop: str | StoppingRule = "agreement",
        weights: str = "likelihood",
        temperature: float = SamplingParams.temperature,
        max_tokens: int = STUDENT_MAX_TOKENS,
        seed: int = SamplingParams.seed,
        prompt_format: str = "auto",
        tokenizer: PreTrainedTokenizerBase | None = None,
        model_name: str | None = None,
        store: str | Path | None = None,
    ):
        self.rule = rule_named(stop, n) if isinstance(stop, str) else stop
        if weights not in WEIGHTS:
            raise InputError(f"`weights` is {weights!r}. Choose one of {', '.join(map(repr, WEIGHTS))}.")
        if temperature == 0 and self.rule.n > len(PATHS):
            raise InputError(
                f"`temperature=0` is greedy and gives one text per path, not `n={self.rule.n}` thoughts. Use `n=2` or "
                "another temperature."
            )
        self.weights = weights
        self.params = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed)
        self.engine = _engine(model, tokenizer, model_name)
        self.store = None if store is None else Path(store)
        self._warned = False
        if isinstance(model, _LOADED) and prompt_format != "auto":
            # A loaded model may have been trained further since `md_trl.json` was written.
            self.prompt_format = resolve_prompt_format(tokenizer, prompt_format)
        else:
            self.prompt_format = self.engine.student_prompt_format(prompt_format)
        if isinstance(model, str) and not _is_url(model):
            _check_paths(model)

    def __call__(self, questions: Sequence[str]) -> list[Reasoned]:
        r"""
        Answer questions.

        Args:
            questions (`Sequence[str]`):
                Texts of the questions, without a trigger.

        Returns:
            `list[Reasoned]`: One answer per question, in order.

        Raises:
            `TypeError`: `questions` is a single text.
            `ValueError`: A question is empty or cannot be asked, for example because it is too long.
            `ConnectionError`: The server does not answer any more. What it answered is in the store, if there is one.
        """
        reasoned = dict(self.stream(questions))
        return [reasoned[place] for place in range(len(questions))]

    def stream(self, questions: Sequence[str]) -> Iterator[tuple[int, Reasoned]]:
        r"""
        Answer questions, and yield each answer as soon as it is known.

        Args:
            questions (`Sequence[str]`):
                Texts of the questions, without a trigger.

        Yields:
            `tuple[int, Reasoned]`: Index of the question and its answer.

        Raises:
            As [`MixedReasoner.__call__`].
        """
        unfinished = _distinct(questions)
        samples, usable = dict.fromkeys(PATHS, 0), dict.fromkeys(PATHS, 0)
        cache = None if self.store is None else default_cache(self.store)
        with self._open_store() as store, Executor(cache=cache) as executor:
            self._load(store, unfinished, executor)
            while unfinished:
                for asked in self._round(store, unfinished, executor):
                    for place in asked.places:
                        yield place, self._answer(asked)
                    for path in PATHS:
                        samples[path] += len(asked.of(path))
                        usable[path] += sum(thought.usable for thought in asked.of(path))
                    del unfinished[asked.question.id]
        for path in PATHS:
            if samples[path] and not usable[path]:
                logger.warning(
                    "None of %d thoughts was usable that were asked for with %r. Was the student trained on the path "
                    "%r, with `prompt_format=%r`?",
                    samples[path],
                    TRIGGERS[path],
                    path,
                    self.prompt_format,
                )

    def _round(self, store: Store, unfinished: dict[str, _Asked], executor: Executor) -> Iterator[_Asked]:
        """Yield the questions that have enough, then ask for the next thoughts of the others."""
        wanted: dict[tuple[tuple[str, int], ...], list[_Asked]] = defaultdict(list)
        for asked in list(unfinished.values()):
            if sizes := self._next_sizes(asked):
                wanted[tuple(sizes.items())].append(asked)
            else:
                yield asked
        for sizes, group in wanted.items():
            by_number: dict[int, list[str]] = defaultdict(list)
            for path, number in sizes:
                by_number[number].append(path)
            for i, (number, paths) in enumerate(by_number.items()):
                for asked in self._sample(store, group, paths, number, executor):
                    # Where the paths differ in number, a question may be short of the other path still.
                    if i + 1 == len(by_number) and not self._next_sizes(asked):
                        yield asked

    def _next_sizes(self, asked: _Asked) -> dict[str, int]:
        """The number of thoughts that a question should have next, for each path that needs more."""
        seen = self._seen(asked)
        return {path: seen.count(path) + more for path, more in self.rule.next(seen).items()}

    def _sample(
        self, store: Store, group: list[_Asked], paths: list[str], n: int, executor: Executor
    ) -> Iterator[_Asked]:
        """Bring questions to n thoughts on some paths, and yield each one when it has them."""
        by_id = {asked.question.id: asked for asked in group}
        run = self._run([asked.question for asked in group], paths, n, store)
        errors: dict[str, str] = {}
        with run:
            while not run.should_stop and (missing := run.next_round()):
                requests = run.claim_each(missing)
                try:
                    for result in self.engine.generate(requests):
                        run.record(result)
                        request, asked = result.request, by_id[result.request.question_id]
                        if result.error is not None:
                            errors[request.question_id] = result.error
                            continue
                        sampled = [
                            Thought(
                                request.question_id,
                                request.path,
                                request.first_index + i,
                                choice.text.strip(),
                                self.engine.model,
                                finish_reason=choice.finish_reason,
                                logprob=choice.logprob,
                            )
                            for i, choice in enumerate(result.choices[: request.n])
                        ]
                        self._add(asked, sampled, executor)
                        if all(len(asked.of(path)) >= n for path in paths):
                            yield asked
                        if run.should_stop:
                            break
                finally:
                    requests.close()
        for asked in group:
            if any(len(asked.of(path)) < n for path in paths):
                self._refuse(asked, errors, store)

    def _refuse(self, asked: _Asked, errors: dict[str, str], store: Store) -> None:
        kept = f" What was sampled is kept in {store.file}." if self.store is not None else ""
        nothing = "no samples were returned, or another process asks for them"
        reason = errors.get(asked.question.id) or next(iter(errors.values()), nothing)
        raise InputError(
            f"Question {asked.places[0]} could not be answered: {reason} ({asked.question.question[:80]!r}).{kept}"
        )

    def _load(self, store: Store, unfinished: dict[str, _Asked], executor: Executor) -> None:
        """Take up what a store holds of the questions under the same settings."""
        if self.store is None or not unfinished:
            return
        questions = [asked.question for asked in unfinished.values()]
        run = self._run(questions, PATHS, 1, store)
        of_question: dict[str, list[Thought]] = defaultdict(list)
        for thought in store.thoughts(Selection(task=TASK, settings=run.summary.settings)):
            if thought.question_id in unfinished:
                of_question[thought.question_id].append(thought)
        for question_id, thoughts in of_question.items():
            self._add(unfinished[question_id], thoughts, executor)

    def _add(self, asked: _Asked, thoughts: list[Thought], executor: Executor) -> None:
        for thought in read_answers(thoughts, executor):
            asked.thoughts[thought.path][thought.index] = thought

    def _run(self, questions: list[Question], paths: Sequence[str], n: int, store: Store) -> SamplingRun:
        return SamplingRun(questions, paths, n, self.engine.model, store, self._prompt, self.params)

    def _prompt(self, question: Question, path: str):
        return student_prompt(question.question, path, self.prompt_format)

    def _seen(self, asked: _Asked) -> Seen:
        seen = Seen.from_thoughts(*(asked.of(path) for path in PATHS), self.weights)
        if self.weights != "none" and seen.cot_weights is None and not self._warned:
            logger.warning("%s reports no log-probabilities, so all votes weigh the same.", self.engine.model)
            self._warned = True
        return seen

    def _answer(self, asked: _Asked) -> Reasoned:
        seen = self._seen(asked)
        cot, pot = (asked.of(path) for path in PATHS)
        result: Tally = tally(seen.cot, seen.pot, seen.cot_weights, seen.pot_weights)
        return Reasoned(result.answer, result.confidence, result.shares, len(cot) + len(pot), cot, pot)

    @contextmanager
    def _open_store(self) -> Iterator[Store]:
        if self.store is not None:
            with Store(self.store) as store:
                yield store
            return
        with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "thoughts.db") as store:
            yield store


def _distinct(questions: Sequence[str]) -> dict[str, _Asked]:
    """The questions by id, each text once."""
    if isinstance(questions, str):
        raise TypeError(f"`questions` must be a list of texts, got the text {questions[:80]!r}. Write [question].")
    distinct: dict[str, _Asked] = {}
    for place, text in enumerate(questions):
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"Question {place} is {text!r}. It must be a text that is not empty.")
        question_id = f"{TASK}/asked/{hashlib.sha256(text.strip().encode()).hexdigest()[:16]}"
        question = Question(question_id, TASK, "asked", text.strip(), "")
        distinct.setdefault(question_id, _Asked(question, [])).places.append(place)
    return distinct


def _is_url(model: str) -> bool:
    return model.startswith(("http://", "https://"))


def _engine(
    model: str | PreTrainedModel | Engine, tokenizer: PreTrainedTokenizerBase | None, model_name: str | None
) -> Engine:
    if isinstance(model, str) and _is_url(model):
        if model_name is None:
            raise InputError(f"The student at {model} needs its name on the server: pass `model_name=`.")
        from .sampling.engines.openai import OpenAIEngine

        return OpenAIEngine(model_name, model)
    if isinstance(model, (str, *_LOADED)):
        from .sampling.engines.transformers import TransformersEngine

        return TransformersEngine(model, tokenizer)
    return model


def _check_paths(model: str) -> None:
    settings = read_student_settings(model) or {}
    for path in PATHS:
        if settings.get("paths") and path not in settings["paths"]:
            raise InputError(
                f"{model!r} was trained with `objective={settings.get('objective')!r}` and knows nothing of the path "
                f"{path!r}, which is asked for with {TRIGGERS[path]!r}. Use `md-trl eval --paths "
                f"{' '.join(settings['paths'])}`, or a student of both paths."
            )
