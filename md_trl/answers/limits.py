"""What the canonical form of an answer loses, so that answers that differ may count as equal, or never be reached."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from .canonical_form import NO_ANSWER, canonical
from .quantities import read_unit


MAX_WORDS = 10
"""Answers of more words are rarely repeated word for word."""

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?", re.ASCII)


def limitation(answer: str) -> str | None:
    r"""
    Say what is lost when a gold answer is compared by its canonical form.

    Args:
        answer (`str`):
            The gold answer.

    Returns:
        `str` or `None`: What to say about all answers of this kind, for a sentence that begins with their number;
            `None` if nothing is lost.

    Examples:

    ```python
    >>> from md_trl.answers.limits import limitation

    >>> limitation("3, 4 and 5")
    'with several parts, which only equal the same parts in the same order'
    ```
    """
    form = canonical(answer)
    if form in NO_ANSWER:
        return "without anything that can be compared, which no thought can reach"
    if _NUMBER.fullmatch(form):
        if read_unit(answer):
            return "with a unit, which is dropped, so that '3 hours', '3 days' and '3' are equal"
        if _is_rounded(answer, form):
            return "with more digits than are compared (2 decimals, or 4 digits below 1)"
    elif all(_NUMBER.match(part) for part in form.split(";")) and ";" in form:
        return "with several parts, which only equal the same parts in the same order"
    elif len(form.split()) > MAX_WORDS:
        return f"of more than {MAX_WORDS} words, which only equal the same words in the same order"
    return None


def _is_rounded(answer: str, form: str) -> bool:
    try:
        exact = Decimal(answer.strip().replace(",", ""))
    except InvalidOperation:
        return False
    return abs(exact - Decimal(form)) > abs(exact) * Decimal("1e-9")
