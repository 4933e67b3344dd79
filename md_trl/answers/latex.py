r"""Arithmetic in LaTeX or plain signs, such as `2\sqrt{3}` or `3 \times 4`, evaluated by math-verify and sympy."""

from __future__ import annotations

import logging
import re
import threading
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache

from .number_form import format_decimal, format_fraction


_MAX_CHARS = 120
_COMMANDS = {"frac", "sqrt", "cdot", "times", "div", "pi"}
_OPERATION = re.compile(r"\\[a-zA-Z]|[-+*/^×]")
_ALLOWED = re.compile(r"(?:[0-9.\s+\-*/^(){}\[\]×]|\\[a-zA-Z]+)+")
# A small number to the power of a small number. No other power is evaluated: `9^{9^9}` would never end.
_SMALL_POWER = re.compile(r"\^\s?(?:\{\s?-?[0-9]{1,2}\s?\}|-?[0-9]{1,2}(?![0-9]))(?!\s?\^)")
_RANGE_OR_DATE = re.compile(r"[0-9]+(?:-[0-9]+)+|[0-9]+(?:/[0-9]+){2,}")
_AMBIGUOUS_OR_LARGE = re.compile(
    r"[0-9]{31}|[)}\]]\s*\^|[)}]\s*[(0-9]|[0-9]\s*\(|\.[0-9]*\.|[0-9]\s+[0-9]",
)
# The parser and sympy keep caches that are not safe for several threads.
_LOCK = threading.Lock()


def evaluate(text: str) -> str | None:
    """Return the canonical value of an arithmetic expression, or `None` if the text is not one."""
    if len(text) > _MAX_CHARS or not _OPERATION.search(text) or not re.search(r"[0-9]|\\pi", text):
        return None
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.strip("$").replace("**", "^"), flags=re.ASCII)
    # These checks bound the time of the evaluation, which has no timeout.
    if (
        not _ALLOWED.fullmatch(text)
        or not _COMMANDS.issuperset(re.findall(r"\\([a-zA-Z]+)", text))
        or text.count("^") != len(_SMALL_POWER.findall(text))
        or _RANGE_OR_DATE.fullmatch(text)
        or _AMBIGUOUS_OR_LARGE.search(text)
    ):
        return None
    parser = _math_verify()  # outside of `try`, so that a broken installation does not pass for an unreadable answer
    with _LOCK:
        try:
            return _evaluate(text, parser)
        except Exception:  # sympy raises errors of many types on what it cannot evaluate
            return None


def _evaluate(text: str, parser: tuple) -> str | None:
    parse, config = parser
    # The timeout is a signal, which works in the main thread only.
    parsed = parse(f"${text}$", [config], fallback_mode="no_fallback", parsing_timeout=None)
    if not parsed or not parsed[0].is_number:
        return None
    value = parsed[0].doit()
    if value.is_Rational:
        return format_fraction(Fraction(int(value.p), int(value.q)))
    value = value.evalf(20)
    return format_decimal(Decimal(str(value))) if value.is_Float else None


@lru_cache(maxsize=1)
def _math_verify() -> tuple:
    from math_verify import LatexExtractionConfig, parse

    # It warns once that callers without a timeout must bound the time themselves, which `evaluate` does.
    logging.getLogger("math_verify.parser").addFilter(lambda record: "Timeout is disabled" not in record.getMessage())
    return parse, LatexExtractionConfig()
