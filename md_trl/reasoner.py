"""Answer questions with a student: sample both paths, stop once the vote is clear (Sec. 3.2, Eq. 5)."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import chain, count, takewhile
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .errors import InputError
from .execution import Executor, default_cache
from .judging import read_answers
from .prompts import TRIGGERS, read_student_settings, resolve_prompt_format, student_prompt
from .records import PATHS, STUDENT_MAX_TOKENS, Question, SamplingParams, Thought
from .sampling.engines import Engine, SampleResult
from .sampling.rounds import group_by_size, next_sizes
from .sampling.run import SamplingRun
from .stopping import BUDGET, Seen, StoppingRule, rule_named
from .store import Selection, Store
from .student_folder import check_student
from .vote_settings import VoteSettings
from .voting import has_likelihoods


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
            Share of the votes that the answer received, between 0 and 1. A vote counts with its weight. With settings
            of `md-trl calibrate`, the probability that the answer is correct.
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


class QuestionError(InputError):
    r"""
    One question could not be answered.

    Args:
        message (`str`):
            Which question, and why.
        reason (`str`):
            Why, without the question.
        refused (`bool`):
            Whether the engine refused this very question, for example because it is too long. Otherwise asking again
            may help.
    """

    def __init__(self, message: str, reason: str, refused: bool):
        super().__init__(message)
        self.reason, self.refused = reason, refused


class Listener:
    """
    What [`MixedReasoner.stream`] reports and asks while it works. Subclasses override what they need.

    Questions go by their index. Those that join count on from the last one.
    """

    def join(self) -> Sequence[str]:
        """Return further questions. Called after each round; they are sampled together with the unfinished ones."""
        return ()

    def is_wanted(self, index: int) -> bool:
        """Return whether the answer to a question is still wanted. Called before each round."""
        return True

    def sampled(self, index: int, thoughts: Sequence[Thought], usage: dict[str, Any]) -> None:
        """Take note of new thoughts of a question, with their answers, and of the tokens that the engine counted."""

    def failed(self, index: int, error: QuestionError) -> None:
        """Take note that a question cannot be answered. The others go on, unless this raises the error."""
        raise error


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
        weights (`str` or `Path` or [`~md_trl.vote_settings.VoteSettings`], *optional*, defaults to `"likelihood"`):
            Weight of a vote: `"none"` for Eq. 5, `"likelihood"` for exp(mean log-probability per token) of its
            thought, or a file of `md-trl calibrate` for weights of paths and a calibrated confidence. Where the engine
            reports no log-probabilities, likelihoods weigh the same, and a warning says so.
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
        weights: str | Path | VoteSettings = "likelihood",
        temperature: float = SamplingParams.temperature,
        max_tokens: int = STUDENT_MAX_TOKENS,
        seed: int = SamplingParams.seed,
        prompt_format: str = "auto",
        tokenizer: PreTrainedTokenizerBase | None = None,
        model_name: str | None = None,
        store: str | Path | None = None,
    ):
        self.rule = rule_named(stop, n) if isinstance(stop, str) else stop
        self.votes = VoteSettings.of(weights)
        self.params = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed)
        self._check_greedy()
        model = os.fspath(model) if isinstance(model, os.PathLike) else model
        self.engine = _engine(model, tokenizer, model_name)
        self.store = None if store is None else Path(store)
        self._warnings: set[str] = set()  # shared with `with_settings`
        if isinstance(model, _LOADED) and prompt_format != "auto":
            # A loaded model may have been trained further since `md_trl.json` was written.
            self.prompt_format = resolve_prompt_format(tokenizer, prompt_format)
        else:
            self.prompt_format = self.engine.student_prompt_format(prompt_format)
        if isinstance(model, str) and not is_url(model):
            check_paths(model)

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

    def with_settings(self, n: int | None = None, **params: Any) -> MixedReasoner:
        r"""
        Return a reasoner with the same student, rule, weights and store, and other settings.

        Args:
            n (`int`, *optional*):
                Maximum number of thoughts per question. By default it stays as it is.
            params:
                Fields of [`~md_trl.records.SamplingParams`] to change, for example `temperature`.

        Returns:
            [`MixedReasoner`]: The other reasoner. It uses the same engine, so only one of them can work at a time.

        Raises:
            `ValueError`: The rule cannot have this `n`, or the temperature is 0 and `n` above 2.
        """
        other = copy(self)
        other.rule = self.rule if n is None else replace(self.rule, n=n)
        other.params = replace(self.params, **params)
        other._check_greedy()
        return other

    def _check_greedy(self) -> None:
        if self.params.temperature == 0 and self.rule.n > len(PATHS):
            raise InputError(
                f"`temperature=0` is greedy and gives one text per path, not `n={self.rule.n}` thoughts. Use `n=2` or "
                "another temperature."
            )

    def stream(self, questions: Sequence[str], listener: Listener | None = None) -> Iterator[tuple[int, Reasoned]]:
        r"""
        Answer questions, and yield each answer as soon as it is known. Raises what [`MixedReasoner.__call__`] raises.

        Args:
            questions (`Sequence[str]`):
                Texts of the questions, without a trigger.
            listener ([`Listener`], *optional*):
                Follows the work: sees thoughts as they are sampled, adds and drops questions, and takes failures.

        Yields:
            `tuple[int, Reasoned]`: Index of the question and its answer.
        """
        listener = listener or Listener()
        joining, number, unfinished = _distinct(questions), len(questions), {}
        samples, usable = dict.fromkeys(PATHS, 0), dict.fromkeys(PATHS, 0)
        cache = None if self.store is None else default_cache(self.store)
        # Each round asks for more of the same prompts
        keep_prompts = getattr(self.engine, "keep_prompts", nullcontext)
        with self._open_store() as store, Executor(cache=cache) as executor, keep_prompts():
            while joining or unfinished:
                self._join(unfinished, joining, store, executor)
                _drop_unwanted(unfinished, listener)
                for asked in self._round(store, unfinished, executor, listener):
                    for place in asked.places:
                        yield place, self._answer(asked)
                    for path in PATHS:
                        samples[path] += len(asked.of(path))
                        usable[path] += sum(thought.usable for thought in asked.of(path))
                    del unfinished[asked.question.id]
                newcomers = listener.join()
                joining = _distinct(newcomers, number)
                number += len(newcomers)
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

    def _round(
        self, store: Store, unfinished: dict[str, _Asked], executor: Executor, listener: Listener
    ) -> Iterator[_Asked]:
        """Yield the questions that have enough, then ask for the next thoughts of all others together."""
        wanted: dict[str, dict[str, int]] = {}
        for question_id, asked in list(unfinished.items()):
            if sizes := self._next_sizes(asked):
                wanted[question_id] = sizes
            else:
                yield asked
        runs: dict[tuple[str, str], SamplingRun] = {}
        failures: dict[str, SampleResult] = {}
        with ExitStack() as stack:
            for (number, paths), group in group_by_size(wanted).items():
                questions = [unfinished[question_id].question for question_id in group]
                run = stack.enter_context(self._run(questions, paths, number, store))
                runs |= {(question_id, path): run for question_id in group for path in paths}
            for result in self._sample(runs):
                request, asked = result.request, unfinished[result.request.question_id]
                if result.error is not None:
                    failures[request.question_id] = result
                    continue
                self._take(asked, result, executor, listener)
                if _has(asked, wanted[request.question_id]) and not self._next_sizes(asked):
                    yield asked
        for question_id, sizes in wanted.items():
            if question_id in unfinished and not _has(unfinished[question_id], sizes):
                self._refuse(unfinished[question_id], failures, store, listener)

    def _next_sizes(self, asked: _Asked) -> dict[str, int]:
        return next_sizes(self.rule, self._seen(asked))

    def _sample(self, by_pair: dict[tuple[str, str], SamplingRun]) -> Iterator[SampleResult]:
        """Ask for what is missing in some runs, given by question id and path, and record what is returned."""
        runs = list({id(run): run for run in by_pair.values()}.values())
        while not any(run.should_stop for run in runs):
            rounds = [(run, missing) for run in runs if (missing := run.next_round())]
            if not rounds:
                return
            with ExitStack() as stack:
                requests = [stack.enter_context(closing(run.claim_each(missing))) for run, missing in rounds]
                for result in self.engine.generate(chain.from_iterable(requests)):
                    run = by_pair[result.request.question_id, result.request.path]
                    run.record(result)
                    yield result
                    if run.should_stop:
                        break

    def _take(self, asked: _Asked, result: SampleResult, executor: Executor, listener: Listener) -> None:
        request = result.request
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
        sampled = self._add(asked, sampled, executor)
        for place in asked.places:
            listener.sampled(place, sampled, result.usage)

    def _refuse(self, asked: _Asked, failures: dict[str, SampleResult], store: Store, listener: Listener) -> None:
        kept = f" What was sampled is kept in {store.file}." if self.store is not None else ""
        own = failures.get(asked.question.id)
        failure = own or next(iter(failures.values()), None)
        nothing = "no samples were returned, or another process asks for them"
        reason = nothing if failure is None else failure.error
        for place in asked.places:
            message = f"Question {place} could not be answered: {reason} ({asked.question.question[:80]!r}).{kept}"
            listener.failed(place, QuestionError(message, reason, refused=own is not None and not own.retry))
        asked.places = []

    def _join(
        self, unfinished: dict[str, _Asked], joining: dict[str, _Asked], store: Store, executor: Executor
    ) -> None:
        """Add questions to the unfinished ones, and what the store holds of them."""
        for question_id in joining.keys() & unfinished.keys():
            unfinished[question_id].places += joining.pop(question_id).places
        self._load(store, joining, executor)
        unfinished |= joining

    def _load(self, store: Store, joining: dict[str, _Asked], executor: Executor) -> None:
        """Take up what a store holds of the questions under the same settings."""
        if not joining:
            return
        questions = [asked.question for asked in joining.values()]
        run = self._run(questions, PATHS, 1, store)
        pairs = [(question, path) for question in questions for path in PATHS]
        if not any(store.claims.taken(q.id, path, s) for q, path in pairs for s in run.summary.settings):
            return
        of_question: dict[str, list[Thought]] = defaultdict(list)
        for thought in store.thoughts(Selection(task=TASK, settings=run.summary.settings)):
            if thought.question_id in joining:
                of_question[thought.question_id].append(thought)
        for question_id, thoughts in of_question.items():
            self._add(joining[question_id], thoughts, executor)

    def _add(self, asked: _Asked, thoughts: list[Thought], executor: Executor) -> list[Thought]:
        thoughts = read_answers(thoughts, executor)
        for thought in thoughts:
            asked.thoughts[thought.path][thought.index] = thought
        return thoughts

    def _run(self, questions: list[Question], paths: Sequence[str], n: int, store: Store) -> SamplingRun:
        return SamplingRun(questions, paths, n, self.engine.model, store, self._prompt, self.params)

    def _prompt(self, question: Question, path: str):
        return student_prompt(question.question, path, self.prompt_format)

    def _seen(self, asked: _Asked) -> Seen:
        cot, pot = (asked.of(path) for path in PATHS)
        if self.votes.weights.kind == "likelihood" and "logprobs" not in self._warnings:
            thoughts = [*cot, *pot]
            if not has_likelihoods([t.logprob for t in thoughts], [t.answer for t in thoughts]):
                logger.warning("%s reports no log-probabilities, so all votes weigh the same.", self.engine.model)
                self._warnings.add("logprobs")
        return Seen.from_thoughts(cot, pot, self.votes.weights)

    def _answer(self, asked: _Asked) -> Reasoned:
        result = self.votes.tally(self._seen(asked))
        cot, pot = (asked.of(path) for path in PATHS)
        return Reasoned(result.answer, result.confidence, result.shares, len(cot) + len(pot), cot, pot)

    @contextmanager
    def _open_store(self) -> Iterator[Store]:
        if self.store is not None:
            with Store(self.store) as store:
                yield store
            return
        with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "thoughts.db") as store:
            yield store


def _has(asked: _Asked, sizes: dict[str, int]) -> bool:
    return all(len(asked.of(path)) >= size for path, size in sizes.items())


def _drop_unwanted(unfinished: dict[str, _Asked], listener: Listener) -> None:
    for question_id, asked in list(unfinished.items()):
        asked.places = [place for place in asked.places if listener.is_wanted(place)]
        if not asked.places:
            del unfinished[question_id]


def _distinct(questions: Sequence[str], first: int = 0) -> dict[str, _Asked]:
    """The questions by id, each text once. The first one has the index `first`."""
    if isinstance(questions, str):
        raise TypeError(f"`questions` must be a list of texts, got the text {questions[:80]!r}. Write [question].")
    distinct: dict[str, _Asked] = {}
    for place, text in enumerate(questions, first):
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"Question {place} is {text!r}. It must be a text that is not empty.")
        question_id = f"{TASK}/asked/{hashlib.sha256(text.strip().encode()).hexdigest()[:16]}"
        question = Question(question_id, TASK, "asked", text.strip(), "")
        distinct.setdefault(question_id, _Asked(question, [])).places.append(place)
    return distinct


def is_url(model: str) -> bool:
    return model.startswith(("http://", "https://"))


def _engine(
    model: str | PreTrainedModel | Engine, tokenizer: PreTrainedTokenizerBase | None, model_name: str | None
) -> Engine:
    if isinstance(model, str) and is_url(model):
        if model_name is None:
            raise InputError(f"The student at {model} needs its name on the server: pass `model_name=`.")
        from .sampling.engines.openai import OpenAIEngine

        return OpenAIEngine(model_name, model)
    if isinstance(model, (str, *_LOADED)):
        from .sampling.engines.transformers import TransformersEngine

        return TransformersEngine(model, tokenizer)
    return model


def check_paths(model: str) -> None:
    check_student(model)
    settings = read_student_settings(model) or {}
    for path in PATHS:
        if settings.get("paths") and path not in settings["paths"]:
            raise InputError(
                f"{model!r} was trained with `objective={settings.get('objective')!r}` and knows nothing of the path "
                f"{path!r}, which is asked for with {TRIGGERS[path]!r}. Use `md-trl eval --paths "
                f"{' '.join(settings['paths'])}`, or a student of both paths."
            )
