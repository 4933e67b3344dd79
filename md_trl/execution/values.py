"""Values that programs compute, as strict JSON. The jail imports this file alone: it needs no other module of ours."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any


# Above this an int is handed over as text: JSON readers and Python itself refuse to parse more than 4,300 digits.
MAX_INT_DIGITS = 4_000
# Above this it is no answer.
MAX_DIGITS = 100_000
# An answer is a number or a few words. A longer result is none.
MAX_TEXT = 10_000
MAX_ITEMS = 1_000
MAX_DEPTH = 20

_TOO_LONG = 10**MAX_INT_DIGITS


class NoAnswer(ValueError):
    """A program's result is nothing that an answer could be."""


def to_json(value: Any, simplify: Callable[[Any], Any] | None = None) -> Any:
    r"""
    A program's result as strict JSON.

    Args:
        value (`Any`):
            The result.
        simplify (`Callable`, *optional*):
            Makes a value of another library one of Python's own, where it can.

    Raises:
        [`NoAnswer`]: If the value is too large, too deep, or of a type that no answer has.
    """
    items = 0

    def convert(value: Any, depth: int) -> Any:
        nonlocal items
        items += 1
        if items > MAX_ITEMS or depth > MAX_DEPTH:
            raise NoAnswer(f"the result has more than {MAX_ITEMS:,} items or {MAX_DEPTH} levels")
        if simplify:
            value = simplify(value)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            if -_TOO_LONG < value < _TOO_LONG:
                return value
            if value.bit_length() > MAX_DIGITS * math.log2(10):
                raise NoAnswer(f"the result has more than {MAX_DIGITS:,} digits")
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
            # The jail hands over large ints as text.
            if len(value) > (MAX_DIGITS + 1 if value.lstrip("-").isdecimal() else MAX_TEXT):
                raise NoAnswer(f"the result has more than {MAX_TEXT:,} characters")
            # Half of a character is no text: it can be written to no file.
            return value.encode("utf-8", "replace").decode()
        if isinstance(value, (list, tuple)):
            return [convert(item, depth + 1) for item in value]
        if isinstance(value, (set, frozenset)):
            return sorted((convert(item, depth + 1) for item in value), key=repr)
        if isinstance(value, dict):
            return {_key(key, convert, depth): convert(item, depth + 1) for key, item in value.items()}
        raise NoAnswer(f"the result is of type {type(value).__name__}")

    return convert(value, 0)


def _key(key: Any, convert: Callable, depth: int) -> str:
    key = convert(key, depth + 1)
    return key if isinstance(key, str) else str(key)
