"""What goes into an execution and what comes out: [`Limits`], [`Result`], and values as strict JSON."""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any


# Above this an int is handed over as text: JSON readers and Python itself refuse to parse more than 4,300 digits.
MAX_INT_DIGITS = 4_000
# An answer is a number or a few words. A longer result is none.
MAX_TEXT = 10_000
MAX_ITEMS = 1_000
MAX_DEPTH = 20


@dataclass(frozen=True)
class Limits:
    r"""
    What one program may use.

    Args:
        seconds (`float`, *optional*, defaults to `2.0`):
            Seconds it may run. A program that cannot be interrupted is killed half a second later.
        memory_mb (`int`, *optional*, defaults to `256`):
            Megabytes of memory for its objects.
        stdout_chars (`int`, *optional*, defaults to `10_000`):
            Characters of its printed output that are kept; the rest is dropped.
    """

    seconds: float = 2.0
    memory_mb: int = 256
    stdout_chars: int = 10_000

    def __post_init__(self):
        for name, value in self.__dict__.items():
            if not 0 < value < math.inf:
                raise ValueError(f"Limits({name}={value!r}) must be a positive number.")


@dataclass(frozen=True)
class Result:
    r"""
    What became of one program.

    Args:
        status (`str`):
            `ok`; `error` (it raised, or is no Python); `timeout`; `memory`; `unsupported` (it needs what the engine
            lacks); `no_result` (it ran, but neither returned, named nor printed an answer).
        value (`Any`, *optional*):
            The result as strict JSON, `None` unless the status is `ok`. What JSON cannot say exactly (nan, inf,
            Decimal, Fraction, dates, ints over 4,000 digits) comes as a string. Tuples and sets are lists.
        type (`str`, *optional*):
            Name of the Python type that `value` stands for, for example `int` or `Decimal`.
        error (`str`, *optional*):
            `{exception}: {message}`, or why there is no value. `None` if the status is `ok`.
        stdout (`str`, *optional*, defaults to `""`):
            Printed output, cut at [`Limits`]`.stdout_chars`.
        seconds (`float`, *optional*, defaults to `0.0`):
            Wall time of the run.
        engine (`str`, *optional*, defaults to `"monty"`):
            Engine that ran it, or that would have, had the text been a program.
    """

    status: str
    value: Any = None
    type: str | None = None
    error: str | None = None
    stdout: str = ""
    seconds: float = 0.0
    engine: str = "monty"


class NoAnswer(ValueError):
    """A program's result is nothing that an answer could be."""


def to_json(value: Any) -> Any:
    r"""
    A program's result as strict JSON.

    Raises:
        [`NoAnswer`]: If the value is too large, too deep, or of a type that no answer has.
    """
    items = 0

    def convert(value: Any, depth: int) -> Any:
        nonlocal items
        items += 1
        if items > MAX_ITEMS or depth > MAX_DEPTH:
            raise NoAnswer(f"the result has more than {MAX_ITEMS:,} items or {MAX_DEPTH} levels")
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            if abs(value) < 10**MAX_INT_DIGITS:
                return value
            if depth:
                raise NoAnswer(f"the result has an item of more than {MAX_INT_DIGITS:,} digits")
            # `Decimal` writes any number of digits, `str(int)` does not.
            return format(Decimal(value), "f")
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if isinstance(value, str):
            if len(value) > MAX_TEXT:
                raise NoAnswer(f"the result has more than {MAX_TEXT:,} characters")
            return value
        if isinstance(value, (list, tuple)):
            return [convert(item, depth + 1) for item in value]
        if isinstance(value, (set, frozenset)):
            return sorted((convert(item, depth + 1) for item in value), key=repr)
        if isinstance(value, dict):
            return {_key(key): convert(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (Decimal, Fraction, complex, datetime.date, datetime.time, datetime.timedelta)):
            return str(value).strip("()").lower() if isinstance(value, (Decimal, complex)) else str(value)
        raise NoAnswer(f"the result is of type {type(value).__name__}")

    return convert(value, 0)


def _key(key: Any) -> str:
    return key if isinstance(key, str) else str(to_json(key))
