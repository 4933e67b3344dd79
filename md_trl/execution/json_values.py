"""Convert what a program computed or printed to strict JSON.

The jail's own process imports this file without the rest of the package, so it needs the standard library only.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any


# Longer ints are written as strings: JSON readers and Python itself refuse to parse more than 4,300 digits.
MAX_INT_DIGITS = 4_000
# A result beyond these limits is not an answer, which is a number or a few words.
MAX_DIGITS = 100_000
MAX_CHARS = 10_000
MAX_ITEMS = 1_000
MAX_DEPTH = 20

_FIRST_LONG_INT = 10**MAX_INT_DIGITS


class NoAnswerError(ValueError):
    """A program ran, but its result cannot be an answer."""


def to_json(value: Any, simplify: Callable[[Any], Any] | None = None) -> Any:
    r"""
    Convert a program's result to strict JSON.

    Args:
        value (`Any`):
            The result.
        simplify (`Callable`, *optional*):
            Converts values of other libraries to built-in types. Other values are returned as they are.

    Returns:
        `Any`: The result as `None`, bool, int, finite float, string, list or dictionary with string keys.

    Raises:
        [`NoAnswerError`]: If the value is too large, too deeply nested, or of a type that no answer has.
    """
    items = 0

    def convert(value: Any, depth: int) -> Any:
        nonlocal items
        items += 1
        if items > MAX_ITEMS or depth > MAX_DEPTH:
            raise NoAnswerError(f"the result has more than {MAX_ITEMS:,} items or {MAX_DEPTH} levels")
        if simplify:
            value = simplify(value)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            if -_FIRST_LONG_INT < value < _FIRST_LONG_INT:
                return value
            if value.bit_length() > MAX_DIGITS * math.log2(10):
                raise NoAnswerError(f"the result has more than {MAX_DIGITS:,} digits")
            # `Decimal` writes any number of digits, `str(int)` does not.
            return format(Decimal(value), "f")
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if isinstance(value, Decimal):
            if value.is_finite() and abs(value.adjusted()) < MAX_INT_DIGITS:
                value = format(value, "f")  # without an exponent
            else:
                value = "nan" if value.is_nan() else str(value).lower().replace("infinity", "inf")
        elif isinstance(value, (Fraction, complex, datetime.date, datetime.time, datetime.timedelta)):
            value = str(value).strip("()")
        if isinstance(value, str):
            # Long ints arrive from the jail as strings.
            if len(value) > (MAX_DIGITS + 1 if value.lstrip("-").isdecimal() else MAX_CHARS):
                raise NoAnswerError(f"the result has more than {MAX_CHARS:,} characters")
            # Lone surrogates cannot be written to any file.
            return value.encode("utf-8", "replace").decode()
        if isinstance(value, (list, tuple)):
            return [convert(item, depth + 1) for item in value]
        if isinstance(value, (set, frozenset)):
            return sorted((convert(item, depth + 1) for item in value), key=repr)
        if isinstance(value, dict):
            return {_key(key, convert, depth): convert(item, depth + 1) for key, item in value.items()}
        raise NoAnswerError(f"the result is of type {type(value).__name__}")

    return convert(value, 0)


def printed_answer(stdout: str, complete: bool) -> str:
    r"""
    Return the answer of a program that computed none: the last line it printed.

    Args:
        stdout (`str`):
            Output of the program.
        complete (`bool`):
            Whether `stdout` is all of its output.

    Returns:
        `str`: The last line.

    Raises:
        [`NoAnswerError`]: If the program printed nothing, `None`, or so much that its last line is not known.
    """
    lines = stdout.strip().splitlines()
    if not lines:
        raise NoAnswerError("the program did not return, assign or print an answer")
    if not complete:
        raise NoAnswerError(f"the program printed more than {len(stdout):,} characters")
    last = lines[-1].strip()
    if last == "None":  # the program printed the value of a function without `return`
        raise NoAnswerError("the program printed None")
    return last


def _key(key: Any, convert: Callable, depth: int) -> str:
    key = convert(key, depth + 1)
    return key if isinstance(key, str) else str(key)
