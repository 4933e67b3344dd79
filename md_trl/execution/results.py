"""[`Limits`], the resources that a program may use, and [`Result`], the outcome of running it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..errors import InputError


WORKER_LOST = "the worker was lost"
"""Start of the error of a program that did not fail by itself: something else killed its worker."""


@dataclass(frozen=True)
class Limits:
    r"""
    Resources that one program may use.

    Args:
        seconds (`float`, *optional*, defaults to `2.0`):
            Time limit in seconds. A program that cannot be interrupted is killed half a second later.
        memory_mb (`int`, *optional*, defaults to `256`):
            Memory limit in megabytes, for the objects of the program.
        stdout_chars (`int`, *optional*, defaults to `10_000`):
            Number of characters of printed output to keep. The rest is dropped.
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
    Outcome of running one program.

    Args:
        status (`str`):
            One of `ok`, `error` (the program raised or is not Python), `timeout`, `memory`, `unsupported` (the program
            needs a feature that the engine lacks) and `no_result` (the program ran, but did not return, assign or
            print an answer).
        value (`Any`, *optional*):
            The result as strict JSON; `None` unless the status is `ok`. Values that JSON cannot represent exactly
            (nan, inf, Decimal, Fraction, dates, ints over 4,000 digits) are strings. Tuples and sets are lists.
        type (`str`, *optional*):
            Name of the Python type that `value` represents, for example `int` or `Decimal`.
        error (`str`, *optional*):
            `{exception}: {message}`, or the reason why there is no value; `None` if the status is `ok`.
        stdout (`str`, *optional*, defaults to `""`):
            Printed output, truncated to `Limits.stdout_chars` characters.
        seconds (`float`, *optional*, defaults to `0.0`):
            Wall time of the run in seconds.
        engine (`str`, *optional*, defaults to `"monty"`):
            Engine that ran the program, or the one that would have if the text had been a program.
    """

    status: str
    value: Any = None
    type: str | None = None
    error: str | None = None
    stdout: str = ""
    seconds: float = 0.0
    engine: str = "monty"
