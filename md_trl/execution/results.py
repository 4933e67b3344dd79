"""What goes into an execution and what comes out: [`Limits`] and [`Result`]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..errors import InputError


# How the error of a program begins that did not fail itself: its worker was killed.
LOST = "the worker was lost"


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
                raise InputError(f"Limits({name}={value!r}) must be a positive number.")


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
