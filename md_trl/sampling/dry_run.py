"""Estimates what a run will take from a few of its requests, drawn at random. The thoughts they return are kept."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..prompts import Prompt
from ..records import Question, SamplingParams
from ..store import Store
from .engines import Engine
from .ledger import Price, price_of
from .run import SamplingRun
from .sampler import sample


PROBES = 8
"""Questions to sample per path by default."""

# 97.5% quantiles of Student's t distribution for 1, 2, ... degrees of freedom. From 30 on, 2.05 is on the safe side.
_STUDENT_T = (
    *(12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10),
    *(2.09, 2.09, 2.08, 2.07, 2.07, 2.06, 2.06, 2.06, 2.05, 2.05, 2.05),
)


@dataclass(frozen=True)
class Estimate:
    r"""
    What the rest of a run is expected to take.

    Args:
        probes (`int`):
            Pairs of question and path that were sampled for the estimate.
        pairs (`int`):
            Pairs of question and path that lack samples.
        thoughts (`int`):
            Samples that these lack.
        prompt_tokens (`float`):
            Expected prompt tokens.
        completion_tokens (`float`):
            Expected completion tokens.
        cost (`float`, *optional*):
            Expected cost. `None` without prices, like the next three.
        low (`float`, *optional*):
            Lower end of a 95% interval for the cost.
        high (`float`, *optional*):
            Upper end of this interval.
        spent (`float`, *optional*):
            Cost of the probes.
    """

    probes: int
    pairs: int
    thoughts: int
    prompt_tokens: float
    completion_tokens: float
    cost: float | None = None
    low: float | None = None
    high: float | None = None
    spent: float | None = None

    def format(self) -> str:
        """Format the estimate in a few lines."""
        lines = [
            f"Still to sample: {self.thoughts:,} thoughts of {self.pairs:,} pairs of question and path.",
            f"Expected: {self.prompt_tokens:,.0f} prompt and {self.completion_tokens:,.0f} completion tokens, judging "
            f"by {self.probes} probes.",
        ]
        if self.cost is None:
            lines.append("Pass a price table (`--prices`) to estimate the cost.")
        else:
            lines.append(
                f"Expected cost: {self.cost:.4f}, between {self.low:.4f} and {self.high:.4f} (95%). The probes cost "
                f"{self.spent:.4f}; their thoughts are kept."
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class Stratum:
    r"""
    The probes of one path, and what is left to sample on it.

    Args:
        probes (`Sequence[tuple[int, int, int, int]]`):
            Prompt tokens, cached tokens, completion tokens and thoughts of each probe.
        pairs (`int`):
            Questions that lack samples.
        thoughts (`int`):
            Samples that these lack.
    """

    probes: Sequence[tuple[int, int, int, int]]
    pairs: int
    thoughts: int


def dry_run(
    questions: Sequence[Question],
    paths: Sequence[str],
    n: int,
    engine: Engine,
    store: Store,
    prompt: Callable[[Question, str], Prompt],
    *,
    params: SamplingParams = SamplingParams(),
    probes: int = PROBES,
    prices: Mapping[str, Price] | None = None,
    max_cost: float | None = None,
    batch: bool = False,
) -> Estimate:
    r"""
    Estimate what [`~md_trl.sampling.sample`] will take with the same arguments.

    Args:
        questions (`Sequence[Question]`):
            The questions.
        paths (`Sequence[str]`):
            Paths to sample.
        n (`int`):
            Samples per question and path.
        engine ([`~md_trl.sampling.engines.Engine`]):
            What samples.
        store ([`~md_trl.store.Store`]):
            Where the thoughts are kept.
        prompt (`Callable[[Question, str], str | list[dict[str, str]]]`):
            Builds the prompt for a question and a path.
        params ([`~md_trl.records.SamplingParams`], *optional*, defaults to `SamplingParams()`):
            How to sample.
        probes (`int`, *optional*, defaults to `8`):
            Questions to sample per path. The same arguments draw the same ones.
        prices (`Mapping[str, Price]`, *optional*):
            Prices by model. Without them only tokens are estimated.
        max_cost (`float`, *optional*):
            Maximum cost of the whole store. It limits the probes too.
        batch (`bool`, *optional*, defaults to `False`):
            Whether the rest will go through the Batch API.

    Returns:
        [`Estimate`]: The estimate.

    Raises:
        `ValueError`: Fewer than 2 probes, probes that returned nothing, or one of the reasons of
            [`~md_trl.sampling.sample`].
    """
    if probes < 2:
        raise InputError(f"`probes` is {probes}. An interval needs at least 2.")
    price = None if prices is None else price_of(prices, engine.model)
    strata = []
    for path in paths:
        run = SamplingRun(questions, [path], n, engine.model, store, prompt, params, prices, max_cost)
        missing = run.missing()
        drawn = random.Random(f"{params}/{path}").sample(missing, min(probes, len(missing)))
        before = [store.usage(m.question.id, path, m.setting) for m in drawn]
        summary = sample(
            [m.question for m in drawn], [path], n, engine, store, prompt,
            params=params, prices=prices, max_cost=max_cost, progress=False,
        )  # fmt: skip
        after = [store.usage(m.question.id, path, m.setting) for m in drawn]
        seen = [tuple(b - a for a, b in zip(*usage, strict=True)) for usage in zip(before, after, strict=True)]
        if drawn and not summary.thoughts:
            raise InputError(
                f"None of the {len(drawn)} probes on the path {path} returned a thought, so there is nothing to "
                "estimate from. The warning above says why."
            )
        missing = run.missing()
        strata.append(Stratum(seen, len(missing), sum(m.count for m in missing)))
    return estimate(strata, price, batch)


def estimate(strata: Sequence[Stratum], price: Price | None = None, batch: bool = False) -> Estimate:
    r"""
    Scale probes up to a run: a stratified sample without replacement, with Student's t.

    Args:
        strata (`Sequence[Stratum]`):
            One per path.
        price ([`Price`], *optional*):
            Price of the model.
        batch (`bool`, *optional*, defaults to `False`):
            Whether the rest will go through the Batch API.

    Returns:
        [`Estimate`]: The estimate.
    """
    prompt = completion = cost = variance = spent = 0.0
    # Denominator of the degrees of freedom after Welch and Satterthwaite
    squares = 0.0
    for stratum in strata:
        probes = [probe for probe in stratum.probes if probe[3]]
        if not stratum.pairs or not probes:
            continue
        per_pair = stratum.thoughts / stratum.pairs
        # The tokens of each probe, had it been asked for as many samples as the other pairs lack on average
        tokens = [(p, cached, c / n * per_pair) for p, cached, c, n in probes]
        k = len(tokens)
        prompt += stratum.pairs * sum(p for p, _, _ in tokens) / k
        completion += stratum.pairs * sum(c for _, _, c in tokens) / k
        if price is None:
            continue
        spent += sum(price.cost(*probe[:3]) for probe in probes)
        costs = [price.cost(*token, batch) for token in tokens]
        mean = sum(costs) / k
        cost += stratum.pairs * mean
        if k > 1:
            own = sum((x - mean) ** 2 for x in costs) / (k - 1) / k * stratum.pairs**2
            own *= 1 + k / stratum.pairs  # Predicts the rest of a finite population from a sample of it.
            variance += own
            squares += own**2 / (k - 1)
        else:
            variance = math.inf
    figures = (
        sum(len(stratum.probes) for stratum in strata),
        sum(stratum.pairs for stratum in strata),
        sum(stratum.thoughts for stratum in strata),
        prompt,
        completion,
    )
    if price is None:
        return Estimate(*figures)
    degrees = int(variance**2 / squares) if squares and variance < math.inf else 1
    quantile = _STUDENT_T[degrees - 1] if degrees <= len(_STUDENT_T) else 2.05
    half = math.sqrt(variance) * quantile if variance else 0.0
    return Estimate(*figures, cost, max(cost - half, 0.0), cost + half, spent)
