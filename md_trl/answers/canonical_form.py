"""The canonical form of an answer, and equality of answers."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from numbers import Integral, Rational, Real
from typing import Any

from . import latex
from .markup import MAX_QUANTITY_CHARS, strip_markup
from .number_form import format_decimal, format_fraction
from .quantities import read_list, read_measures, read_single


NO_ANSWER = ("", "nan")
"""Canonical forms that count as no answer: they do not vote, and are scored as wrong."""

_CACHED_CHARS = 100
_MAX_PASSES = 10
_INTEGER = re.compile(r"-?[1-9][0-9]{0,3999}|0")
_DECIMAL = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,10})?")
_FIXED = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}
_FIXED |= {"inf": "inf", "+inf": "inf", "infinity": "inf", "-inf": "-inf", "-infinity": "-inf"}
_HEDGE = re.compile(
    r"(?:about|approximately|approx\.?|around|roughly|exactly|nearly|only|just|a total of|≈|~)\s*", re.IGNORECASE
)
# Punctuation between groups of three digits is kept, since `100 200` would be read as the number 100200.
_PUNCTUATION = re.compile(r"(?P<between>(?<=\d)[\W_]+(?=\d{3}(?!\d)))|[\W_]+")
_ARTICLE = re.compile(r"\b(?:a|an|the)\s+(?=\S)")


def canonical(value: Any) -> str:
    r"""
    Return the one form in which an answer is compared, counted and stored.

    Args:
        value (`Any`):
            A text, or a value that a program returned: a number, bool, list or tuple (several parts), or `None`.

    Returns:
        `str`: The canonical form, which is its own canonical form. The empty string if there is no answer.

    Examples:

    ```python
    >>> from md_trl.answers import canonical

    >>> canonical("$1,234.50"), canonical("5 (apples)"), canonical(2 / 3), canonical("The neither day.")
    ('1234.50', '5', '0.6667', 'neither day')
    ```
    """
    if isinstance(value, str):
        value = str(value)  # NumPy has a type of its own for texts
        return _cached(value) if len(value) <= _CACHED_CHARS else _canonical_text(value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return format_decimal(Decimal(int(value)))
    if isinstance(value, Decimal):
        return format_decimal(value)
    if isinstance(value, Rational):
        return format_fraction(Fraction(value.numerator, value.denominator))
    if isinstance(value, Real):
        # The shortest decimal that identifies the float, so that 2.675 has the same form as the text "2.675".
        return format_decimal(Decimal(repr(float(value))))
    if isinstance(value, (list, tuple)):
        return _canonical_text(";".join(canonical(part) for part in value))
    return _canonical_text(str(value))


def equal(a: Any, b: Any) -> bool:
    r"""
    Return whether two answers have the same canonical form (see the table in `md_trl/answers/__init__.py`).

    Args:
        a (`Any`):
            An answer, as for [`canonical`].
        b (`Any`):
            Another answer.

    Returns:
        `bool`: Whether they are the same.

    Examples:

    ```python
    >>> from md_trl.answers import equal

    >>> equal("1,080 dollars", 1080.0), equal("1/2", "0.5"), equal("2/3", "0.667"), equal("True", "yes")
    (True, True, False, True)
    ```
    """
    return canonical(a) == canonical(b)


@lru_cache(maxsize=65_536)
def _cached(text: str) -> str:
    return _canonical_text(text)


def _canonical_text(text: str) -> str:
    if _INTEGER.fullmatch(text):
        return text
    # Dropping punctuation can uncover a number, as in "(the 5)", so the rules are applied until nothing changes.
    for _ in range(_MAX_PASSES):
        text = strip_markup(text)
        answer = _not_words(text) or _right_side(text)
        if answer is not None:
            return answer
        words = _words(text)
        if words == text:
            break
        text = words
    return text


def _not_words(text: str) -> str | None:
    """The canonical form of a number, yes or no, a time, a ratio or several of them; `None` for words."""
    bare = text.replace(",", "") if len(text) > MAX_QUANTITY_CHARS else text
    if _DECIMAL.fullmatch(bare):
        return format_decimal(Decimal(bare))
    fixed = _FIXED.get(text.casefold())
    if fixed:
        return fixed
    if ";" in text:
        return ";".join(filter(None, map(canonical, text.split(";"))))
    if len(text) > MAX_QUANTITY_CHARS:
        return None
    hedge = _HEDGE.match(text)
    if hedge and hedge.end() < len(text):
        text = text[hedge.end() :]
    return read_measures(text) or read_single(text) or read_list(text) or latex.evaluate(text)


def _right_side(text: str) -> str | None:
    """The right side of `x = 5`, if it is a number."""
    if "=" not in text or len(text) > MAX_QUANTITY_CHARS:
        return None
    return _not_words(strip_markup(text.rpartition("=")[2]))


def _words(text: str) -> str:
    """The text in lower case, without punctuation and articles."""
    text = unicodedata.normalize("NFKC", text.casefold().replace("'", ""))
    text = _PUNCTUATION.sub(lambda gap: "-" if (gap["between"] or " ").strip() else " ", text).strip()
    return _ARTICLE.sub("", text)
