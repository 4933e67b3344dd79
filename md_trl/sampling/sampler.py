"""Samples what is missing in a store, and nothing else."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tqdm.auto import tqdm

from ..errors import InputError
from ..records import PATHS, Question, SamplingParams
from ..store import Claim, Store
from .engines import Engine, Prompt, SampleRequest, SampleResult
from .ledger import Budget, Estimate, Price, Stratum, estimate, most_tokens, price_of


logger = logging.getLogger(__name__)

# Failed requests in a row (each has been repeated by the engine) after which the server is left alone.
GIVE_UP_AFTER = 50
# A question and path is left alone after so many failures in a row. Where the engine has repeated the request already,
# or the answer had no sample in it, it counts twice.
PATIENCE = 6

Lacking = tuple[Question, str, int, int]
"""A pair of question and path that lacks samples: question, path, setting, how many."""


@dataclass
class SampleSummary:
    r"""
    What a call of [`sample`] did.

    Args:
        requests (`int`, *optional*, defaults to `0`):
            Requests made, without the client's own repetitions.
        thoughts (`int`, *optional*, defaults to `0`):
            New thoughts.
        unusable (`dict[str, int]`, *optional*, defaults to `{}`):
            Those of them that did not end by themselves, by finish reason. They are stored and not asked for again.
        missing (`int`, *optional*, defaults to `0`):
            Samples that are still missing.
        errors (`dict[str, int]`, *optional*, defaults to `{}`):
            Requests that brought nothing, by message.
        repeated (`dict[str, int]`, *optional*, defaults to `{}`):
            Repetitions of requests that had cost nothing, by message.
        lost (`int`, *optional*, defaults to `0`):
            Requests that may have been billed though no answer came.
        prompt_tokens (`int`, *optional*, defaults to `0`), cached_tokens (`int`, *optional*, defaults to `0`):
            Tokens of the prompts, and those of them that the server had in its cache.
        completion_tokens (`int`, *optional*, defaults to `0`):
            Tokens of the samples.
        cost (`float`, *optional*):
            What these tokens cost, if there was a price.
        over_budget (`bool`, *optional*, defaults to `False`):
            Whether it ended because the next request could have passed `max_cost`.
        seconds (`float`, *optional*, defaults to `0.0`):
            Time taken.
        settings (`list[int]`, *optional*, defaults to `[]`):
            The settings of all samples that were wanted, new or stored: `Selection(settings=summary.settings)`.
        saved (`int`, *optional*, defaults to `0`):
            Samples that adaptive sampling found needless.
    """

    requests: int = 0
    thoughts: int = 0
    unusable: dict[str, int] = field(default_factory=Counter)
    missing: int = 0
    errors: dict[str, int] = field(default_factory=Counter)
    repeated: dict[str, int] = field(default_factory=Counter)
    lost: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    over_budget: bool = False
    seconds: float = 0.0
    settings: list[int] = field(default_factory=list)
    saved: int = 0

    def add(self, later: SampleSummary) -> None:
        """Count what a later call did."""
        self.requests += later.requests
        self.thoughts += later.thoughts
        self.lost += later.lost
        for mine, its in (
            (self.unusable, later.unusable),
            (self.errors, later.errors),
            (self.repeated, later.repeated),
        ):
            mine.update(its)
        self.prompt_tokens += later.prompt_tokens
        self.cached_tokens += later.cached_tokens
        self.completion_tokens += later.completion_tokens
        self.cost = later.cost if self.cost is None else self.cost + (later.cost or 0.0)
        self.seconds += later.seconds
        self.missing, self.over_budget = later.missing, later.over_budget
        self.settings = sorted({*self.settings, *later.settings})


class Job:
    r"""
    What is wanted, and how far the store is from it.

    Args:
        questions (`Sequence[Question]`), paths (`Sequence[str]`), n (`int`), model (`str`), store ([`Store`]),
        prompt (`Callable`), temperature (`float`), top_p (`float`), max_tokens (`int`), stop (`Sequence[str]`),
        seed (`int`):
            As in [`sample`].
    """

    def __init__(
        self,
        questions: Sequence[Question],
        paths: Sequence[str],
        n: int,
        model: str,
        store: Store,
        prompt: Callable[[Question, str], Prompt],
        *,
        temperature: float = 0.7,
        top_p: float = 1.0,
        max_tokens: int = 512,
        stop: Sequence[str] = (),
        seed: int = 42,
    ):
        for path in paths:
            if path not in (*PATHS, "label"):
                raise InputError(f"Unknown path {path!r}. Choose from {', '.join(PATHS)}, label.")
        if n < 1:
            raise InputError(f"`n` is {n}. Use 1 or more.")
        if temperature < 0:
            raise InputError(f"`temperature` is {temperature}. Use 0 (greedy) or more.")
        if temperature == 0 and n > 1:
            raise InputError(
                f"`temperature=0` is greedy and gives one text, not n={n}. Use `n=1` or another temperature."
            )
        self.pairs = [(question, path) for question in questions for path in paths]
        self.n, self.model, self.store, self.prompt = n, model, store, prompt
        self.temperature, self.top_p, self.max_tokens, self.seed = temperature, top_p, max_tokens, seed
        self.stop = tuple(stop)
        self._params = SamplingParams(temperature, top_p, max_tokens, tuple(stop), seed)
        self._settings: dict[str, int] = {}
        store.questions.add(questions)
        self._setting_of = [self._find_setting(*pair) for pair in self.pairs]

    def _find_setting(self, question: Question, path: str) -> int:
        hash_ = _prompt_hash(self.prompt(question, path), question)
        if hash_ not in self._settings:
            self._settings[hash_] = self.store.settings.number(self.model, hash_, self._params)
        return self._settings[hash_]

    @property
    def settings(self) -> list[int]:
        """The settings of all samples that are wanted."""
        return list(self._settings.values())

    def missing(self) -> list[Lacking]:
        """The pairs that lack samples."""
        lacking = []
        for (question, path), setting in zip(self.pairs, self._setting_of, strict=True):
            if count := len(self.store.claims.missing(question.id, path, setting, self.n)):
                lacking.append((question, path, setting, count))
        return lacking

    def request(self, question: Question, path: str, text: Prompt, claim: Claim) -> SampleRequest:
        """The request that a claim stands for."""
        return SampleRequest(
            question.id,
            path,
            text,
            n=claim.n,
            first_index=claim.first_index,
            seed=self.seed,
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
            stop=self.stop,
            key=claim.key,
        )


def sample(
    questions: Sequence[Question],
    paths: Sequence[str],
    n: int,
    engine: Engine,
    store: Store,
    prompt: Callable[[Question, str], Prompt],
    *,
    temperature: float = 0.7,
    top_p: float = 1.0,
    max_tokens: int = 512,
    stop: Sequence[str] = (),
    seed: int = 42,
    prices: Mapping[str, Price] | None = None,
    max_cost: float | None = None,
    progress: bool = True,
) -> SampleSummary:
    r"""
    Bring every question to `n` samples on every path (Sec. 3.1 for a teacher, Sec. 3.2 for a student).

    Only what is missing is asked for, and every result is stored as it arrives: stop it at any moment and run it
    again. Samples with other parameters, another prompt or another seed are other samples.

    Args:
        questions (`Sequence[Question]`):
            The questions. They are added to the store.
        paths (`Sequence[str]`):
            `cot`, `pot`, `label`.
        n (`int`):
            Samples of each question and path.
        engine ([`~md_trl.sampling.engines.Engine`]):
            What samples.
        store ([`Store`]):
            Where the thoughts go.
        prompt (`Callable[[Question, str], str | list[dict]]`):
            Makes the prompt of a question and a path.
        temperature (`float`, *optional*, defaults to `0.7`):
            0 is greedy, and needs `n=1`.
        top_p (`float`, *optional*, defaults to `1.0`):
            Mass of the most likely tokens to sample from.
        max_tokens (`int`, *optional*, defaults to `512`):
            Longest sample, in tokens.
        stop (`Sequence[str]`, *optional*, defaults to `()`):
            Strings that end a sample.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the random numbers.
        prices (`Mapping[str, Price]`, *optional*):
            Prices by model, for the progress bar, the summary and `max_cost`.
        max_cost (`float`, *optional*):
            What the whole store may cost, earlier runs and other processes included. Nothing is asked that could pass
            it. Needs `prices`.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        [`SampleSummary`]: what was done.

    Raises:
        `ValueError`: arguments that cannot be sampled with, or a server that refuses to.
        `ConnectionError`: no server.
    """
    start = time.perf_counter()
    if max_cost is not None and prices is None:
        raise InputError("`max_cost` needs the prices: give `prices=` (`--prices`).")
    parameters = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "stop": stop, "seed": seed}
    budget = None if prices is None else Budget(store, prices, engine.model, max_cost)
    before = budget.cost if budget else 0.0
    job = Job(questions, paths, n, engine.model, store, prompt, **parameters)
    summary = SampleSummary(settings=job.settings)
    failures: Counter[tuple[str, str]] = Counter()
    # Some servers ignore `n` and send one choice. Once one has shown that, it is asked for single samples.
    at_most = n
    several_seen = False
    in_a_row = 0

    def requests(lacking: Iterable[Lacking]) -> Iterator[SampleRequest]:
        # Lazy: samples are claimed and prompts made at the moment they are asked for.
        for question, path, setting, _ in lacking:
            text = prompt(question, path)
            most = most_tokens(text)

            def allow(samples: list[int], most: int = most) -> int:
                allowed = budget is None or budget.allows(most, sum(samples) * max_tokens, len(samples))
                return len(samples) if allowed else 0

            claims, _ = store.claims.claim(
                question.id, path, setting, n,
                max_samples=at_most, max_prompt_tokens=most, max_completion_tokens=max_tokens, allow=allow,
            )  # fmt: skip
            if budget and budget.refused:
                return
            try:
                while claims:
                    summary.requests += 1
                    yield job.request(question, path, text, claims.pop(0))
            finally:
                for claim in claims:
                    store.claims.fail(claim.key, "not asked")

    lacking = job.missing()
    missing = sum(count for *_, count in lacking)
    total = len(job.pairs) * n
    asking = requests(())
    bar = tqdm(total=total, initial=total - missing, unit="thought", desc=engine.model, disable=not progress)
    try:
        while lacking and in_a_row < GIVE_UP_AFTER:
            asked = summary.requests
            asking = requests(lacking)
            for result in engine.generate(asking):
                pair = (result.request.question_id, result.request.path)
                _count(summary, result)
                if budget:
                    # What was claimed under a budget is known by its prompt.
                    most = most_tokens(result.request.prompt)
                    budget.settle(most, result.request.n * max_tokens, result.usage, result.lost)
                if result.error is not None:
                    store.claims.fail(result.request.key, result.error, result.usage, result.lost)
                    failures[pair] += PATIENCE if not result.retry else 1 if result.lost else 2
                    in_a_row += 1
                    if in_a_row == GIVE_UP_AFTER:
                        break
                    continue
                in_a_row = 0
                stored = store.claims.save(result.request.key, result.choices, result.usage, result.served)
                failures[pair] = 0 if result.choices else failures[pair] + 2
                several_seen |= len(result.choices) > 1
                if result.request.n > 1 and len(result.choices) == 1 and not several_seen:
                    at_most = 1
                summary.thoughts += stored
                bar.update(stored)
                bar.set_postfix_str(_postfix(summary, budget.cost - before if budget else None), refresh=False)
            lacking = [pair for pair in job.missing() if failures[pair[0].id, pair[1]] < PATIENCE]
            if budget and budget.refused:
                # What was under way has cost less than it could have: go on with the rest, if there is any.
                summary.over_budget = summary.requests == asked
                budget.refused = False
            if summary.requests == asked:
                break
    finally:
        bar.close()
        asking.close()
        store.claims.release()
    summary.missing = sum(count for *_, count in job.missing())
    summary.cost = (
        budget.price.cost(summary.prompt_tokens, summary.cached_tokens, summary.completion_tokens) if budget else None
    )
    summary.seconds = time.perf_counter() - start
    if summary.missing:
        logger.warning(_why_missing(summary, total, engine.model, max_cost))
    return summary


def _count(summary: SampleSummary, result: SampleResult) -> None:
    summary.repeated.update(result.faults)
    summary.lost += result.lost
    summary.prompt_tokens += result.usage.get("prompt_tokens", 0)
    summary.cached_tokens += result.usage.get("cached_tokens", 0)
    summary.completion_tokens += result.usage.get("completion_tokens", 0)
    if result.error is not None:
        summary.errors[result.error] += 1
    for choice in result.choices[: result.request.n]:
        if choice.finish_reason != "stop":
            summary.unusable[choice.finish_reason] += 1


def _postfix(summary: SampleSummary, cost: float | None) -> str:
    parts = [f"tokens={summary.prompt_tokens + summary.completion_tokens}"]
    parts += [] if cost is None else [f"cost={cost:.4f}"]
    for name, count in (("errors", sum(summary.errors.values())), ("repeated", sum(summary.repeated.values()))):
        parts += [f"{name}={count}"] if count else []
    return ", ".join(parts)


def _why_missing(summary: SampleSummary, total: int, model: str, max_cost: float | None) -> str:
    if summary.over_budget:
        return (
            f"{summary.missing} of {total} samples are still missing: the next request could have brought the store "
            f"above {max_cost:g}. Run the same command with a higher `--max_cost` to go on."
        )
    errors = "".join(f"\n  {count} requests: {error}" for error, count in summary.errors.items())
    return (
        f"{summary.missing} of {total} samples are still missing: another process or a batch asks for them, or "
        f"{model} did not give them. Run the same command again to ask for them only.{errors}"
    )


def dry_run(
    questions: Sequence[Question],
    paths: Sequence[str],
    n: int,
    engine: Engine,
    store: Store,
    prompt: Callable[[Question, str], Prompt],
    *,
    probes: int = 8,
    prices: Mapping[str, Price] | None = None,
    max_cost: float | None = None,
    seed: int = 42,
    batch: bool = False,
    **parameters,
) -> Estimate:
    r"""
    Estimate what a job will take from a few of its requests, drawn at random. Their thoughts are kept.

    Args:
        questions (`Sequence[Question]`), paths (`Sequence[str]`), n (`int`), engine
        ([`~md_trl.sampling.engines.Engine`]), store ([`Store`]), prompt (`Callable`):
            As in [`sample`].
        probes (`int`, *optional*, defaults to `8`):
            Questions to sample on each path.
        prices (`Mapping[str, Price]`, *optional*):
            Prices by model; without them only tokens are estimated.
        max_cost (`float`, *optional*):
            What the whole store may cost; it holds for the probes too.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the samples, and of the draw of the probes.
        batch (`bool`, *optional*, defaults to `False`):
            Whether the rest will go through the Batch API.
        parameters (`Any`):
            Other parameters of [`sample`].

    Returns:
        [`~md_trl.sampling.ledger.Estimate`]: the estimate.

    Raises:
        `ValueError`: as in [`sample`].
    """
    if probes < 2:
        raise InputError(f"`probes` is {probes}. An interval needs 2 or more.")
    price = None if prices is None else price_of(prices, engine.model)
    strata = []
    for path in paths:
        job = Job(questions, [path], n, engine.model, store, prompt, seed=seed, **parameters)
        lacking = job.missing()
        drawn = random.Random(f"{seed}/{path}").sample(lacking, min(probes, len(lacking)))
        before = {question.id: store.usage(question.id, path, setting) for question, _, setting, _ in drawn}
        sample(
            [question for question, *_ in drawn], [path], n, engine, store, prompt,
            seed=seed, prices=prices, max_cost=max_cost, progress=False, **parameters,
        )  # fmt: skip
        seen = [
            tuple(after - known for after, known in zip(store.usage(q.id, path, setting), before[q.id], strict=True))
            for q, _, setting, _ in drawn
        ]
        lacking = job.missing()
        strata.append(Stratum(seen, len(lacking), sum(count for *_, count in lacking)))
    return estimate(strata, price, batch)


def _prompt_hash(prompt: Prompt, question: Question) -> str:
    """Identifies the prompt without its question: the same for all questions that are asked in the same way."""
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False)
    own = question.question.strip()
    if not isinstance(prompt, str):
        own = json.dumps(own, ensure_ascii=False)[1:-1]
    return hashlib.sha256(text.replace(own, "{question}").encode()).hexdigest()[:16]
