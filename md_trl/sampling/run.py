"""A sampling run: which samples are missing, who may ask for them, what they cost, and when to stop.

The live sampler and the Batch API drive the same [`SamplingRun`]; they differ only in how requests travel.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

from ..errors import InputError
from ..progress import progress_bar
from ..prompts import Prompt
from ..records import PATHS_AND_LABEL, Question, SamplingParams
from ..store import Store
from .engines import SampleRequest, SampleResult, check_params
from .ledger import Budget, Price


logger = logging.getLogger(__name__)

# A live run stops after this many failed requests in a row. The engine has already retried each of them.
MAX_FAILURES_IN_A_ROW = 50
# A question and path is no longer requested once its failures in a row add up to this. A lost response counts 1, a
# failure that the engine has retried or a response without samples 2, and a refusal counts in full.
MAX_FAILURE_SCORE = 6


class Missing(NamedTuple):
    r"""
    Samples that one question lacks on one path.

    Args:
        question ([`~md_trl.records.Question`]):
            The question.
        path (`str`):
            The path.
        setting (`int`):
            Number of the setting in the store.
        count (`int`):
            Number of samples that are not stored.
    """

    question: Question
    path: str
    setting: int
    count: int


@dataclass
class SampleSummary:
    r"""
    What a run did.

    Args:
        requests (`int`, *optional*, defaults to `0`):
            Requests made, not counting an engine's retries.
        thoughts (`int`, *optional*, defaults to `0`):
            New thoughts.
        unusable (`Counter[str]`, *optional*, defaults to `Counter()`):
            New thoughts that did not end on their own, by finish reason. They are stored and not asked for again.
        missing (`int`, *optional*, defaults to `0`):
            Samples that are still missing.
        errors (`Counter[str]`, *optional*, defaults to `Counter()`):
            Requests that returned no samples, by error message.
        retries (`Counter[str]`, *optional*, defaults to `Counter()`):
            Retries of requests that had cost nothing, by error message.
        lost (`int`, *optional*, defaults to `0`):
            Requests that may have been billed although no answer arrived.
        prompt_tokens (`int`, *optional*, defaults to `0`):
            Prompt tokens.
        cached_tokens (`int`, *optional*, defaults to `0`):
            Prompt tokens that the server had in its cache; included in `prompt_tokens`.
        completion_tokens (`int`, *optional*, defaults to `0`):
            Tokens of the samples.
        cost (`float`, *optional*):
            Cost of these tokens, if there is a price.
        over_budget (`bool`, *optional*, defaults to `False`):
            Whether the run ended because the next request could have exceeded `max_cost`.
        gave_up (`bool`, *optional*, defaults to `False`):
            Whether the run ended because too many requests failed in a row.
        seconds (`float`, *optional*, defaults to `0.0`):
            Duration.
        settings (`list[int]`, *optional*, defaults to `[]`):
            Numbers of the settings of all wanted samples, new or stored: `Selection(settings=summary.settings)`.
        saved (`int`, *optional*, defaults to `0`):
            Samples that adaptive sampling did not need.
    """

    requests: int = 0
    thoughts: int = 0
    unusable: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    retries: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    over_budget: bool = False
    gave_up: bool = False
    seconds: float = 0.0
    settings: list[int] = field(default_factory=list)
    saved: int = 0

    def count(self, result: SampleResult) -> None:
        """Count one result, except for its thoughts: only the store knows which of them are new."""
        self.retries.update(result.faults)
        self.lost += result.lost
        self.prompt_tokens += result.usage.get("prompt_tokens", 0)
        self.cached_tokens += result.usage.get("cached_tokens", 0)
        self.completion_tokens += result.usage.get("completion_tokens", 0)
        if result.error is not None:
            self.errors[result.error] += 1
        for choice in result.choices[: result.request.n]:
            if choice.finish_reason != "stop":
                self.unusable[choice.finish_reason] += 1

    def add(self, later: SampleSummary) -> None:
        """Add a later run, over some of the same questions or over others."""
        self.requests += later.requests
        self.thoughts += later.thoughts
        self.unusable.update(later.unusable)
        self.missing += later.missing
        self.errors.update(later.errors)
        self.retries.update(later.retries)
        self.lost += later.lost
        self.prompt_tokens += later.prompt_tokens
        self.cached_tokens += later.cached_tokens
        self.completion_tokens += later.completion_tokens
        self.cost = later.cost if self.cost is None else self.cost + (later.cost or 0.0)
        self.over_budget, self.gave_up = later.over_budget, later.gave_up
        self.seconds += later.seconds
        self.settings = sorted({*self.settings, *later.settings})
        self.saved += later.saved


class SamplingRun:
    r"""
    Bookkeeping of one run, as a context manager.

    A driver asks for the samples of a `next_round`, `claim`s requests for them, sends these in its own way, and
    `record`s every result, until the rounds end. Claims that have not ended when the context is left are released.

    Args:
        questions (`Sequence[Question]`):
            The questions. They are added to the store.
        paths (`Sequence[str]`):
            Paths to sample: `cot`, `pot`, `cot_pot`, `label`.
        n (`int`):
            Samples wanted per question and path.
        model (`str`):
            Name of the model.
        store ([`~md_trl.store.Store`]):
            Where the thoughts are kept.
        prompt (`Callable[[Question, str], Prompt]`):
            Builds the prompt for a question and a path.
        params ([`~md_trl.records.SamplingParams`]):
            How to sample.
        prices (`Mapping[str, Price]`, *optional*):
            Prices by model.
        max_cost (`float`, *optional*):
            Maximum cost of the whole store. Needs `prices`.
        batch (`bool`, *optional*, defaults to `False`):
            Whether the requests go through the Batch API.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar.

    Attributes:
        summary ([`SampleSummary`]):
            What the run has done so far.
        max_samples (`int`):
            Largest number of samples per request. It is lowered to 1 for a server that returns or accepts only one.

    Raises:
        `ValueError`: Arguments that cannot be sampled with, or a model without a price.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        paths: Sequence[str],
        n: int,
        model: str,
        store: Store,
        prompt: Callable[[Question, str], Prompt],
        params: SamplingParams,
        prices: Mapping[str, Price] | None = None,
        max_cost: float | None = None,
        batch: bool = False,
        progress: bool = False,
    ):
        for path in paths:
            if path not in PATHS_AND_LABEL:
                raise InputError(f"Unknown path {path!r}. Choose from {', '.join(PATHS_AND_LABEL)}.")
        check_params(params, n)
        if max_cost is not None and prices is None:
            raise InputError("`max_cost` needs prices: pass `prices=` (`--prices`).")
        self.budget = None if prices is None else Budget(store, prices, model, max_cost, batch)
        self.n, self.model, self.store, self.prompt, self.params = n, model, store, prompt, params
        self.batch, self.progress = batch, progress
        self.max_samples = n
        store.questions.add(questions)
        numbers: dict[str, int] = {}
        self._wanted: list[tuple[Question, str, int]] = []
        for question in questions:
            for path in paths:
                prompt_hash = _prompt_hash(prompt(question, path), question)
                if prompt_hash not in numbers:
                    numbers[prompt_hash] = store.settings.number(model, prompt_hash, params)
                self._wanted.append((question, path, numbers[prompt_hash]))
        self.summary = SampleSummary(settings=sorted(numbers.values()))
        self._started = time.perf_counter()
        self._cost_before = self.budget.cost if self.budget else 0.0
        self._requests_before_round = -1
        self._failures_in_a_row = 0
        self._failure_scores: Counter[tuple[str, str]] = Counter()
        self._several_returned = False

    def __enter__(self) -> SamplingRun:
        self.store.claims.want([(question.id, path, setting) for question, path, setting in self._wanted], self.n)
        total = len(self._wanted) * self.n
        done = total - sum(missing.count for missing in self.missing())
        title = f"{self.model} (batch)" if self.batch else self.model
        self.bar = progress_bar(show=self.progress, total=total, initial=done, unit="thought", desc=title)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.bar.close()
        self.store.claims.release()

    def missing(self) -> list[Missing]:
        """The samples that are not stored, whether or not somebody is asking for them."""
        found = []
        for question, path, setting in self._wanted:
            if count := len(self.store.claims.missing(question.id, path, setting, self.n)):
                found.append(Missing(question, path, setting, count))
        return found

    def next_round(self) -> list[Missing]:
        r"""
        Begin a round.

        Returns:
            `list[Missing]`: The samples to ask for. Empty if nothing is missing, or if the last round asked for
            nothing: then others are asking for the rest, or the budget does not allow another request.
        """
        if self.summary.requests == self._requests_before_round:
            return []
        self._requests_before_round = self.summary.requests
        self.summary.over_budget = False
        if self.budget:
            self.budget.refresh()
        return [m for m in self.missing() if self._failure_scores[m.question.id, m.path] < MAX_FAILURE_SCORE]

    def claim(self, missing: Missing, batch: int | None = None, limit: int | None = None) -> list[SampleRequest]:
        r"""
        Claim missing samples, within the budget.

        Args:
            missing ([`Missing`]):
                What to ask for.
            batch (`int`, *optional*):
                Number of the batch that the claims belong to. They belong to this process by default.
            limit (`int`, *optional*):
                Maximum number of requests.

        Returns:
            `list[SampleRequest]`: The requests to send. Pass the result of each to `record`.
        """
        question, path, setting, _ = missing
        request = SampleRequest(question.id, path, self.prompt(question, path), self.params)
        granted = self.store.claims.claim(
            question.id,
            path,
            setting,
            self.n,
            max_samples=self.max_samples,
            max_prompt_tokens=request.max_prompt_tokens,
            max_completion_tokens=request.max_completion_tokens,
            batch=batch,
            allow=partial(self._allow, request, limit),
        )
        offered = len(granted.claims) + granted.refused
        self.summary.over_budget = len(granted.claims) < (offered if limit is None else min(offered, limit))
        self.summary.requests += len(granted.claims)
        return [replace(request, n=c.n, first_index=c.first_index, key=c.key) for c in granted.claims]

    def _allow(self, request: SampleRequest, limit: int | None, sizes: list[int]) -> int:
        sizes = sizes[:limit]
        return len(sizes) if self.budget is None else self.budget.reserve(request, sizes)

    def claim_each(self, missing: Iterable[Missing]) -> Iterator[SampleRequest]:
        """Claim requests one pair at a time, when they are asked for, until the budget does not allow another one."""
        requests: list[SampleRequest] = []
        try:
            for pair in missing:
                requests = self.claim(pair)
                while requests:
                    yield requests.pop(0)
                if self.summary.over_budget:
                    return
        finally:
            for request in requests:
                self.store.claims.fail(request.key, "not sent")
            self.summary.requests -= len(requests)

    def record(self, result: SampleResult) -> None:
        """Store what a request returned and account for it."""
        request, pair = result.request, (result.request.question_id, result.request.path)
        self.summary.count(result)
        if self.budget and not self.batch:  # The prompts of a batch are not at hand: `next_round` reads the store.
            self.budget.settle(result)
        if result.error is not None:
            self.store.claims.fail(request.key, result.error, result.usage, result.lost)
            self._failure_scores[pair] += MAX_FAILURE_SCORE if not result.retry else 1 if result.lost else 2
            self._failures_in_a_row += 1
            return
        new = self.store.claims.save(request.key, result.choices, result.usage, result.served)
        self._failure_scores[pair] = 0 if result.choices else self._failure_scores[pair] + 2
        self._failures_in_a_row = 0
        self._detect_single_sample_server(result)
        self.summary.thoughts += new
        self.bar.update(new)
        self.bar.set_postfix_str(self._postfix(), refresh=False)

    def _detect_single_sample_server(self, result: SampleResult) -> None:
        """Ask for single samples once a server has ignored or refused `n > 1`."""
        self._several_returned |= len(result.choices) > 1
        if result.request.n > 1 and len(result.choices) == 1 and not self._several_returned:
            self.max_samples = 1

    @property
    def should_stop(self) -> bool:
        """Whether so many live requests have failed in a row that the server should be left alone."""
        return not self.batch and self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW

    def finish(self) -> SampleSummary:
        """Complete the summary and log why samples are missing, if any are."""
        summary = self.summary
        summary.missing = sum(missing.count for missing in self.missing())
        summary.gave_up = self.should_stop
        if self.budget:
            tokens = summary.prompt_tokens, summary.cached_tokens, summary.completion_tokens
            summary.cost = self.budget.price.cost(*tokens, self.batch)
        summary.seconds = time.perf_counter() - self._started
        if summary.missing:
            logger.warning(self._why_missing())
        return summary

    def _postfix(self) -> str:
        summary = self.summary
        parts = [f"tokens={summary.prompt_tokens + summary.completion_tokens}"]
        if self.budget:
            parts.append(f"cost={self.budget.cost - self._cost_before:.4f}")
        for name, count in (("errors", sum(summary.errors.values())), ("retries", sum(summary.retries.values()))):
            parts += [f"{name}={count}"] if count else []
        return ", ".join(parts)

    def _why_missing(self) -> str:
        total = len(self._wanted) * self.n
        if self.summary.over_budget:
            return (
                f"{self.summary.missing} of {total} samples are still missing: the next request could have raised the "
                f"cost of the store above {self.budget.max_cost:g}. Run the same command with a higher `--max_cost` "
                "to continue."
            )
        errors = "".join(f"\n  {count} requests: {error}" for error, count in self.summary.errors.items())
        if self.summary.gave_up:
            reason = f"{MAX_FAILURES_IN_A_ROW} requests to {self.model} failed in a row"
        else:
            reason = f"another process or a batch is asking for them, or {self.model} did not return them"
        return (
            f"{self.summary.missing} of {total} samples are still missing: {reason}. Run the same command again to "
            f"ask for these only.{errors}"
        )


def _prompt_hash(prompt: Prompt, question: Question) -> str:
    """A digest of the prompt without its question: the same for all questions that are asked in the same way."""
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False)
    own = question.question.strip()
    if not isinstance(prompt, str):
        own = json.dumps(own, ensure_ascii=False)[1:-1]
    return hashlib.sha256(text.replace(own, "{question}").encode()).hexdigest()[:16]
