"""Money: what a store has cost, what a request can cost at most, what a job will cost.

Tokens are facts and lie in the store; prices are the user's, in any currency, and are put on them when they are asked
for. What a lost request cost nobody knows: it is counted apart, with the most that it can have cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..store import Spending, Store
from .engines import Prompt


# A chat template puts less around a message, and less before the first one.
_AROUND_MESSAGE, _AROUND_PROMPT = 16, 64

# 97.5% quantiles of Student's t for 1, 2, ... degrees of freedom; from 30 on, 2.05 is on the safe side.
_STUDENT = (
    *(12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10),
    *(2.09, 2.09, 2.08, 2.07, 2.07, 2.06, 2.06, 2.06, 2.05, 2.05, 2.05),
)


@dataclass(frozen=True)
class Price:
    r"""
    Price of a model, per million tokens.

    Args:
        prompt (`float`), completion (`float`):
            Of prompt and completion tokens.
        cached (`float`, *optional*, defaults to `prompt`):
            Of prompt tokens that the server had in its cache.
        batch (`float`, *optional*, defaults to `0.5`):
            What the Batch API takes of it.
    """

    prompt: float
    completion: float
    cached: float | None = None
    batch: float = 0.5

    def cost(self, prompt_tokens: float, cached_tokens: float, completion_tokens: float, batch: bool = False) -> float:
        """Of so many tokens. Cached ones are part of the prompt tokens."""
        cached = self.prompt if self.cached is None else self.cached
        million = (prompt_tokens - cached_tokens) * self.prompt + cached_tokens * cached
        return (million + completion_tokens * self.completion) * (self.batch if batch else 1) / 1e6


def read_prices(path: str | Path) -> dict[str, Price]:
    r"""
    Read a price table: YAML, by model.

    ```yaml
    gpt-3.5-turbo: {prompt: 0.50, cached: 0.25, completion: 1.50}   # per million tokens
    ```

    Args:
        path (`str` or [`~pathlib.Path`]):
            The file. `cached` (defaults to `prompt`) and `batch` (the share that the Batch API takes, 0.5) may be left
            out.

    Returns:
        `dict[str, Price]`: the prices.

    Raises:
        `ValueError`: an entry that is no price. The message names file, model and value.
    """
    import yaml

    try:
        table = yaml.safe_load(Path(path).read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
    form = "Write `MODEL: {prompt: 0.50, cached: 0.25, completion: 1.50}`, per million tokens"
    if not isinstance(table, dict):
        raise InputError(f"{path} holds no table of prices. {form}.")
    prices = {}
    for model, entry in table.items():
        if not isinstance(entry, dict) or not {"prompt", "completion"} <= set(entry) <= {*Price.__annotations__}:
            raise InputError(f"{path}: the price of {model!r} is {entry!r}. {form}.")
        for name, value in entry.items():
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
                raise InputError(f"{path}: {name!r} of {model!r} is {value!r}. Write a number from 0 on.")
        if entry.get("cached", 0) > entry["prompt"] or entry.get("batch", 0) > 1:
            raise InputError(
                f"{path}: {model!r} is dearer cached or in a batch than plain: {entry!r}. Correct it: limits on costs "
                "rely on the plain price."
            )
        prices[str(model)] = Price(**entry)
    return prices


def price_of(prices: Mapping[str, Price], model: str) -> Price:
    """The price of a model; a `ValueError` if the table lacks it."""
    if model not in prices:
        raise InputError(
            f"The price table has no {model!r}, only {', '.join(map(repr, prices)) or 'nothing'}. Add it."
        )
    return prices[model]


@dataclass(frozen=True)
class Ledger:
    r"""
    What was spent on a store, or on a part of it.

    Args:
        entries (`Sequence[Spending]`):
            The facts, from [`~md_trl.store.Store.spending`].
        prices (`Mapping[str, Price]`):
            The prices. Models without one cost nothing and are named in `unpriced`.

    Examples:

    ```python
    >>> from md_trl.store import Selection, Store
    >>> from md_trl.sampling.ledger import Ledger, Price

    >>> with Store("thoughts.db") as store:
    ...     ledger = Ledger(store.spending(Selection(task="svamp")), {"gpt-3.5-turbo": Price(0.5, 1.5)})
    >>> print(ledger.cost, ledger.unknown)
    ```
    """

    entries: Sequence[Spending]
    prices: Mapping[str, Price]

    @property
    def cost(self) -> float:
        """What the tokens that the server reported cost."""
        return sum(self._cost(e, e.prompt_tokens, e.cached_tokens, e.completion_tokens) for e in self.entries)

    @property
    def unknown(self) -> float:
        """The most that requests under way and lost ones can have cost."""
        return sum(self._cost(e, e.max_prompt_tokens, 0, e.max_completion_tokens) for e in self.entries)

    @property
    def unpriced(self) -> list[str]:
        """Models without a price."""
        return sorted({entry.model for entry in self.entries} - set(self.prices))

    def _cost(self, entry: Spending, prompt: int, cached: int, completion: int) -> float:
        price = self.prices.get(entry.model)
        return price.cost(prompt, cached, completion, entry.batch) if price else 0.0

    def format(self) -> str:
        """The ledger as a table."""
        head = (
            "model",
            "requests",
            "failed",
            "thoughts",
            "prompt",
            "cached",
            "completion",
            "cost",
            "unknown, at most",
        )
        table = [head]
        for entry in self.entries:
            one = Ledger([entry], self.prices)
            known = entry.model in self.prices
            table.append(
                (
                    entry.model + (" (batch)" if entry.batch else ""),
                    *(f"{n:,}" for n in (entry.requests, entry.failed, entry.thoughts, entry.prompt_tokens)),
                    *(f"{n:,}" for n in (entry.cached_tokens, entry.completion_tokens)),
                    f"{one.cost:.4f}" if known else "no price",
                    (f"{one.unknown:.4f} " if known else "") + f"({entry.unknown:,} requests)"
                    if entry.unknown
                    else "0",
                )
            )
        table.append(("total", "", "", "", "", "", "", f"{self.cost:.4f}", f"{self.unknown:.4f}"))
        widths = [max(len(row[column]) for row in table) for column in range(len(head))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
        )


def most_tokens(prompt: Prompt) -> int:
    """The most tokens that a prompt can have: one a byte, and what a chat template puts around."""
    if isinstance(prompt, str):
        return len(prompt.encode()) + _AROUND_PROMPT
    return sum(len(message["content"].encode()) + _AROUND_MESSAGE for message in prompt) + _AROUND_PROMPT


class Budget:
    r"""
    Says whether the next request can be paid, whatever it turns out to cost.

    What counts is everything that the store has cost so far, by this process and others, in this run and earlier ones;
    requests under way and lost ones at the most they can have cost.

    Args:
        store ([`~md_trl.store.Store`]):
            The store.
        prices (`Mapping[str, Price]`):
            The prices.
        model (`str`):
            The model to be asked.
        max_cost (`float`, *optional*):
            The limit. Without one everything is allowed, and the costs are counted all the same.

    Attributes:
        cost (`float`):
            Known costs of the store so far.
        refused (`bool`):
            Whether a request was refused since this was last set to `False`.
    """

    def __init__(self, store: Store, prices: Mapping[str, Price], model: str, max_cost: float | None = None):
        self.price = price_of(prices, model)
        self.max_cost = math.inf if max_cost is None else max_cost
        self.refused = False
        self._store, self._prices = store, prices
        store.changed_elsewhere()
        self.refresh()

    def refresh(self) -> None:
        """Read anew what the store has cost."""
        ledger = Ledger(self._store.spending(), self._prices)
        self.cost, self._unknown = ledger.cost, ledger.unknown

    def allows(self, most_prompt: int, most_completion: int, requests: int = 1, batch: bool = False) -> bool:
        """Whether so many requests with so many completion tokens in all fit in; if so, they count from now on."""
        if self._store.changed_elsewhere():
            self.refresh()
        most = self.price.cost(most_prompt * requests, 0, most_completion, batch)
        if self.cost + self._unknown + most > self.max_cost:
            self.refused = True
            return False
        self._unknown += most
        return True

    def settle(
        self, most_prompt: int, most_completion: int, usage: Mapping[str, Any], lost: bool = False, batch: bool = False
    ) -> None:
        """Count what a request has cost instead of the most it could have. A lost one stays as it is."""
        if not lost:
            self._unknown -= self.price.cost(most_prompt, 0, most_completion, batch)
        tokens = (usage.get(name, 0) for name in ("prompt_tokens", "cached_tokens", "completion_tokens"))
        self.cost += self.price.cost(*tokens, batch)


@dataclass(frozen=True)
class Estimate:
    r"""
    What a job will take, from a few of its requests.

    Args:
        probes (`int`):
            Pairs of question and path that were sampled for it. Their thoughts are in the store.
        pairs (`int`), thoughts (`int`):
            What is still to be sampled.
        prompt_tokens (`float`), completion_tokens (`float`):
            Tokens that this is expected to take.
        cost (`float`, *optional*), low (`float`, *optional*), high (`float`, *optional*):
            What it is expected to cost, and an interval around it that holds the truth 19 times out of 20, if the
            probes are like the rest. `None` without prices.
        spent (`float`, *optional*):
            What the probes cost.
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
        """The estimate in a few lines."""
        lines = [
            f"Still to sample: {self.thoughts:,} thoughts of {self.pairs:,} pairs of question and path.",
            f"Expected: {self.prompt_tokens:,.0f} prompt and {self.completion_tokens:,.0f} completion tokens, by "
            f"{self.probes} probes.",
        ]
        if self.cost is None:
            lines.append("Give a price table (`--prices`) for the cost.")
        else:
            lines.append(
                f"Expected cost: {self.cost:.4f}, between {self.low:.4f} and {self.high:.4f} (95%). The probes cost "
                f"{self.spent:.4f}; their thoughts are kept."
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class Stratum:
    r"""
    The probes of one path, and what is left of it.

    Args:
        probes (`Sequence[tuple[int, int, int, int]]`):
            Prompt, cached, completion tokens and thoughts of each probe.
        pairs (`int`), thoughts (`int`):
            What is left.
    """

    probes: Sequence[tuple[int, int, int, int]]
    pairs: int
    thoughts: int


def estimate(strata: Sequence[Stratum], price: Price | None = None, batch: bool = False) -> Estimate:
    r"""
    Scale probes up to a job (a stratified sample without replacement, Student's t).

    Args:
        strata (`Sequence[Stratum]`):
            One a path.
        price ([`Price`], *optional*):
            Price of the model.
        batch (`bool`, *optional*, defaults to `False`):
            Whether the rest will go through the Batch API.

    Returns:
        [`Estimate`]: the estimate.
    """
    prompt = completion = cost = variance = spent = 0.0
    # Welch and Satterthwaite's degrees of freedom
    shares = 0.0
    for stratum in strata:
        probes = [probe for probe in stratum.probes if probe[3]]
        if not stratum.pairs or not probes:
            continue
        per_pair = stratum.thoughts / stratum.pairs
        # Of each probe, as if it had been asked for as many thoughts as are left of a pair
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
            own *= 1 + k / stratum.pairs  # The rest of a finite population, seen from a sample of it
            variance += own
            shares += own**2 / (k - 1)
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
    freedom = int(variance**2 / shares) if shares and variance < math.inf else 1
    half = math.sqrt(variance) * (_STUDENT[freedom - 1] if freedom <= len(_STUDENT) else 2.05) if variance else 0.0
    return Estimate(*figures, cost, max(cost - half, 0.0), cost + half, spent)
