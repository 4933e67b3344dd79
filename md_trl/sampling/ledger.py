"""Money: what a store has cost, and what another request may cost at most.

Tokens are facts and are kept in the store. Prices belong to the user, are in any currency, and are applied when a cost
is asked for. Nobody knows what a lost request cost: it is counted separately, with an upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..errors import InputError
from ..store import Spending, Store
from .engines import SampleRequest, SampleResult


@dataclass(frozen=True)
class Price:
    r"""
    Price of a model, per million tokens.

    Args:
        prompt (`float`):
            Price of prompt tokens.
        completion (`float`):
            Price of completion tokens.
        cached (`float`, *optional*, defaults to `prompt`):
            Price of prompt tokens that the server had in its cache.
        batch (`float`, *optional*, defaults to `0.5`):
            Share of these prices that the Batch API charges.
    """

    prompt: float
    completion: float
    cached: float | None = None
    batch: float = 0.5

    def cost(self, prompt_tokens: float, cached_tokens: float, completion_tokens: float, batch: bool = False) -> float:
        r"""
        Compute the cost of a number of tokens.

        Args:
            prompt_tokens (`float`):
                Prompt tokens.
            cached_tokens (`float`):
                Prompt tokens that were cached; included in `prompt_tokens`.
            completion_tokens (`float`):
                Completion tokens.
            batch (`bool`, *optional*, defaults to `False`):
                Whether they went through the Batch API.

        Returns:
            `float`: The cost.
        """
        cached = self.prompt if self.cached is None else self.cached
        millionfold = (prompt_tokens - cached_tokens) * self.prompt + cached_tokens * cached
        return (millionfold + completion_tokens * self.completion) * (self.batch if batch else 1) / 1e6


def read_prices(file: str | Path) -> dict[str, Price]:
    r"""
    Read a price table, a YAML file.

    ```yaml
    gpt-3.5-turbo: {prompt: 0.50, cached: 0.25, completion: 1.50}   # per million tokens
    ```

    Args:
        file (`str` or [`~pathlib.Path`]):
            The file. `cached` and `batch` may be left out, see [`Price`].

    Returns:
        `dict[str, Price]`: Prices by model.

    Raises:
        `ValueError`: An entry is not a price. The message names file, model and value.
    """
    try:
        table = yaml.safe_load(Path(file).read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not YAML: {' '.join(str(error).split())}.") from None
    form = "Write `MODEL: {prompt: 0.50, cached: 0.25, completion: 1.50}`, per million tokens"
    if not isinstance(table, dict):
        raise InputError(f"{file} is not a price table. {form}.")
    prices = {}
    for model, entry in table.items():
        if not isinstance(entry, dict) or not {"prompt", "completion"} <= set(entry) <= {*Price.__annotations__}:
            raise InputError(f"{file}: the price of {model!r} is {entry!r}. {form}.")
        for name, value in entry.items():
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
                raise InputError(f"{file}: {name!r} of {model!r} is {value!r}. Write a number of at least 0.")
        if entry.get("cached", 0) > entry["prompt"] or entry.get("batch", 0) > 1:
            raise InputError(
                f"{file}: {model!r} is more expensive cached or in a batch than otherwise: {entry!r}. Correct it: "
                "`--max_cost` relies on the full price being the highest."
            )
        prices[str(model)] = Price(**entry)
    return prices


def price_of(prices: Mapping[str, Price], model: str) -> Price:
    """Look up the price of a model. Raise a `ValueError` if the table lacks it."""
    if model not in prices:
        known = ", ".join(map(repr, prices)) or "no model"
        raise InputError(f"The price table has no {model!r}, only {known}. Add the model to it.")
    return prices[model]


@dataclass(frozen=True)
class Ledger:
    r"""
    What was spent on a store, or on a part of it.

    Args:
        entries (`Sequence[Spending]`):
            Requests and tokens, from [`~md_trl.store.Store.spending`].
        prices (`Mapping[str, Price]`):
            Prices by model. Models without one cost nothing and are named in `unpriced`.

    Examples:

    ```python
    >>> from md_trl.sampling.ledger import Ledger, Price
    >>> from md_trl.store import Selection, Store

    >>> with Store("thoughts.db") as store:
    ...     ledger = Ledger(store.spending(Selection(task="svamp")), {"gpt-3.5-turbo": Price(0.5, 1.5)})
    >>> print(ledger.cost, ledger.unknown)
    ```
    """

    entries: Sequence[Spending]
    prices: Mapping[str, Price]

    @property
    def cost(self) -> float:
        """Cost of the tokens that servers have reported."""
        return sum(self._cost(e, e.prompt_tokens, e.cached_tokens, e.completion_tokens) for e in self.entries)

    @property
    def unknown(self) -> float:
        """Upper bound on the cost of the requests in flight and of the lost ones."""
        return sum(self._cost(e, e.max_prompt_tokens, 0, e.max_completion_tokens) for e in self.entries)

    @property
    def unpriced(self) -> list[str]:
        """Models without a price."""
        return sorted({entry.model for entry in self.entries} - set(self.prices))

    def _cost(self, entry: Spending, prompt: int, cached: int, completion: int) -> float:
        price = self.prices.get(entry.model)
        return price.cost(prompt, cached, completion, entry.batch) if price else 0.0

    def format(self) -> str:
        """Format the ledger as a table."""
        head = "model requests failed thoughts prompt cached completion cost".split() + ["unknown, at most"]
        table = [head, *(self._cells(entry) for entry in self.entries)]
        table.append(["total", "", "", "", "", "", "", f"{self.cost:.4f}", f"{self.unknown:.4f}"])
        widths = [max(len(row[column]) for row in table) for column in range(len(head))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
        )

    def _cells(self, entry: Spending) -> list[str]:
        alone, priced = Ledger([entry], self.prices), entry.model in self.prices
        unknown = f"({entry.unknown:,} requests)" if entry.unknown else "0"
        return [
            entry.model + (" (batch)" if entry.batch else ""),
            *(f"{count:,}" for count in (entry.requests, entry.failed, entry.thoughts)),
            *(f"{count:,}" for count in (entry.prompt_tokens, entry.cached_tokens, entry.completion_tokens)),
            f"{alone.cost:.4f}" if priced else "no price",
            f"{alone.unknown:.4f} {unknown}" if priced and entry.unknown else unknown,
        ]


class Budget:
    r"""
    Decides which requests can be paid for, whatever they turn out to cost.

    It counts everything that the store has cost so far, in earlier runs and by other processes too. Requests in flight
    and lost ones count with their upper bound.

    Args:
        store ([`~md_trl.store.Store`]):
            The store.
        prices (`Mapping[str, Price]`):
            Prices by model.
        model (`str`):
            The model to sample.
        max_cost (`float`, *optional*):
            The limit. Without one every request is allowed, and costs are counted all the same.
        batch (`bool`, *optional*, defaults to `False`):
            Whether the requests go through the Batch API.

    Attributes:
        cost (`float`):
            Known cost of the store so far.
    """

    def __init__(
        self,
        store: Store,
        prices: Mapping[str, Price],
        model: str,
        max_cost: float | None = None,
        batch: bool = False,
    ):
        self.price = price_of(prices, model)
        self.max_cost = math.inf if max_cost is None else max_cost
        self.batch = batch
        self._store, self._prices = store, prices
        store.changed_elsewhere()
        self.refresh()

    def refresh(self) -> None:
        """Read the costs from the store."""
        ledger = Ledger(self._store.spending(), self._prices)
        self.cost, self._reserved = ledger.cost, ledger.unknown

    def reserve(self, request: SampleRequest, sizes: Sequence[int]) -> int:
        r"""
        Reserve the cost of requests for one prompt.

        Args:
            request ([`~md_trl.sampling.engines.SampleRequest`]):
                The prompt and how to sample.
            sizes (`Sequence[int]`):
                Number of samples of each request.

        Returns:
            `int`: How many of the requests, counted from the first, fit into the budget. Only these are reserved.
        """
        if self._store.changed_elsewhere():
            self.refresh()
        for allowed, size in enumerate(sizes):
            bound = self._bound(request, size)
            if self.cost + self._reserved + bound > self.max_cost:
                return allowed
            self._reserved += bound
        return len(sizes)

    def settle(self, result: SampleResult) -> None:
        """Replace what was reserved for a request by what it has cost. A lost one stays reserved."""
        if not result.lost:
            self._reserved -= self._bound(result.request, result.request.n)
        names = ("prompt_tokens", "cached_tokens", "completion_tokens")
        self.cost += self.price.cost(*(result.usage.get(name, 0) for name in names), self.batch)

    def _bound(self, request: SampleRequest, n: int) -> float:
        return self.price.cost(request.max_prompt_tokens, 0, n * request.max_completion_tokens, self.batch)
