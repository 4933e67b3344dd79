"""The vote over the answers to one question. Ties are decided here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..answers import NO_ANSWER, canonical
from ..errors import InputError
from .weights import check_weights


TIE_BREAKS = ("cot", "pot")
"""Path whose answers come first in the joined list, and so win ties. Eq. 5 joins CoT before PoT."""

_ROUNDING = 1e-9
"""Relative difference up to which two sums of weights count as equal. Floats carry 16 digits."""


@dataclass(frozen=True)
class Tally:
    r"""
    The result of a vote.

    Args:
        answer (`str`, *optional*):
            The winner in canonical form. `None` if no answer is usable.
        confidence (`float`):
            Share of the winner among the weights of all usable answers, between 0 and 1. `0.0` if no answer is usable.
        shares (`dict[str, float]`):
            Share of each usable answer in canonical form, in the order in which they were first seen. They sum to 1.
    """

    answer: str | None
    confidence: float
    shares: dict[str, float] = field(default_factory=dict)


def majority(answers: Iterable[Any], weights: Iterable[float] | None = None) -> str | None:
    r"""
    Return the most frequent answer.

    Args:
        answers (`Iterable`):
            Answers in sample order. `None`, the empty string and `nan` are unusable and do not vote.
        weights (`Iterable[float]`, *optional*):
            One weight per answer. Defaults to 1 for each answer.

    Returns:
        `str`, *optional*: The answer with the largest sum of weights, in canonical form. Ties go to the answer seen
        first. `None` if no answer is usable.

    Raises:
        [`~md_trl.errors.InputError`]: If there is not one weight per answer, if a weight is negative, infinite or not
            a number, or if the answers are a text instead of a list.

    Examples:

    ```python
    >>> from md_trl.voting import majority

    >>> majority(["7", "5", "5.0", None, "7"])
    '7'
    >>> majority(["7", "5"], weights=[0.2, 0.9])
    '5'
    ```
    """
    if weights is None:
        return most_frequent(usable(answers))
    check_listed(answers)
    answers = list(answers)
    return _winner(_sum_weights(answers, check_weights(weights, answers, "weights")))


def vote(
    cot_answers: Iterable[Any],
    pot_answers: Iterable[Any],
    cot_weights: Iterable[float] | None = None,
    pot_weights: Iterable[float] | None = None,
    tie_break: str = "cot",
) -> str | None:
    r"""
    Return the joint vote of both paths, `V(concat(A_cot, A_pot))` (Eq. 5).

    Args:
        cot_answers (`Iterable`):
            Answers of the CoT thoughts, in sample order. `None`, the empty string and `nan` are unusable and do not
            vote.
        pot_answers (`Iterable`):
            Answers of the PoT thoughts, in sample order.
        cot_weights (`Iterable[float]`, *optional*):
            One weight per CoT answer, for example by [`likelihood_weights`]. Defaults to 1 for each answer. If the
            weights of all usable answers are equal, even if they are all 0, the vote is that of Eq. 5.
        pot_weights (`Iterable[float]`, *optional*):
            One weight per PoT answer. Defaults to 1 for each answer.
        tie_break (`str`, *optional*, defaults to `"cot"`):
            Path whose answers come first in the joined list: `"cot"` (Eq. 5) or `"pot"`.

    Returns:
        `str`, *optional*: The answer of both lists with the largest sum of weights, in canonical form. Ties go to the
        answer seen first in the joined list, and sums that differ only by rounding (1e-9 relative) count as ties.
        `None` if no answer is usable.

    Raises:
        [`~md_trl.errors.InputError`]: If a path does not have one weight per answer, if a weight is negative, infinite
            or not a number, if the answers of a path are a text instead of a list, or if `tie_break` is not a path.

    Examples:

    ```python
    >>> from md_trl.voting import vote

    >>> vote(["5", "6"], ["6.0", None])
    '6'
    >>> vote(["5"], ["6"]), vote(["5"], ["6"], tie_break="pot"), vote(["5"], ["6"], [0.3], [0.8])
    ('5', '6', '6')
    ```
    """
    if cot_weights is None and pot_weights is None:
        return most_frequent(usable(join(cot_answers, pot_answers, tie_break)))
    return _winner(_sum_joined(cot_answers, pot_answers, cot_weights, pot_weights, tie_break))


def tally(
    cot_answers: Iterable[Any],
    pot_answers: Iterable[Any],
    cot_weights: Iterable[float] | None = None,
    pot_weights: Iterable[float] | None = None,
    tie_break: str = "cot",
) -> Tally:
    r"""
    Return the joint vote of both paths with its confidence, the share of the votes that the winner received.

    The arguments and errors are those of [`vote`].

    Returns:
        [`Tally`]: The winner, its share, and the shares of all answers.

    Examples:

    ```python
    >>> from md_trl.voting import tally

    >>> tally(["5", "6"], ["6.0", "6"])
    Tally(answer='6', confidence=0.75, shares={'5': 0.25, '6': 0.75})
    ```
    """
    sums = _sum_joined(cot_answers, pot_answers, cot_weights, pot_weights, tie_break)
    total = math.fsum(sums.values())
    shares = {answer: weight / total for answer, weight in sums.items()}
    winner = _winner(sums)
    return Tally(winner, 0.0 if winner is None else shares[winner], shares)


def vote_two(pot_answer: Any, cot_answer: Any) -> str | None:
    r"""
    Return the joint answer at N=2: the program's, or the chain of thought's if the program has none (Sec. 4.4.2).

    Args:
        pot_answer (`Any`):
            Answer of the PoT thought, `None` if its program did not run to an answer.
        cot_answer (`Any`):
            Answer of the CoT thought.

    Returns:
        `str`, *optional*: The answer in canonical form, `None` if neither is usable.
    """
    return next(iter(usable([pot_answer, cot_answer])), None)


def usable(answers: Iterable[Any]) -> list[str]:
    r"""
    Return the canonical forms of the answers that may vote.

    Args:
        answers (`Iterable`):
            Answers in sample order.

    Returns:
        `list[str]`: The usable answers, in the same order.
    """
    check_listed(answers)
    return [answer for answer in map(canonical, answers) if answer not in NO_ANSWER]


def check_listed(*lists: Iterable[Any]) -> None:
    """Raise an error if a text is given instead of a list of answers: its letters would vote."""
    for answers in lists:
        if isinstance(answers, str):
            raise InputError(f"{answers!r:.60} is a text instead of a list of answers. Write [{answers!r:.60}].")


def most_frequent(forms: Iterable[str]) -> str | None:
    """Return the most frequent of usable answers in canonical form. Ties go to the one seen first."""
    counts: dict[str, int] = {}
    for form in forms:
        counts[form] = counts.get(form, 0) + 1
    # A dict keeps the order of insertion and `max` returns the first maximum, so ties go to the answer seen first.
    return max(counts, key=counts.__getitem__, default=None)


def join(cot: Iterable[Any], pot: Iterable[Any], tie_break: str) -> list[Any]:
    """Join what belongs to the answers of both paths, the path that wins ties first."""
    check_tie_break(tie_break)
    check_listed(cot, pot)
    return [*cot, *pot] if tie_break == "cot" else [*pot, *cot]


def check_tie_break(tie_break: str) -> None:
    """Raise an error if `tie_break` is not a path."""
    if tie_break not in TIE_BREAKS:
        raise InputError(f"tie_break is {tie_break!r}. Choose one of {', '.join(map(repr, TIE_BREAKS))}.")


def _sum_joined(
    cot_answers: Iterable[Any],
    pot_answers: Iterable[Any],
    cot_weights: Iterable[float] | None,
    pot_weights: Iterable[float] | None,
    tie_break: str,
) -> dict[str, float]:
    check_listed(cot_answers, pot_answers)
    cot_answers, pot_answers = list(cot_answers), list(pot_answers)
    weights = join(
        check_weights(cot_weights, cot_answers, "cot_weights"),
        check_weights(pot_weights, pot_answers, "pot_weights"),
        tie_break,
    )
    return _sum_weights(join(cot_answers, pot_answers, tie_break), weights)


def _sum_weights(answers: Sequence[Any], weights: Sequence[float]) -> dict[str, float]:
    """Sum the weights of each usable answer, in units of the largest weight, in the order first seen."""
    of_answer: dict[str, list[float]] = {}
    for form, weight in zip(map(canonical, answers), weights, strict=True):
        if form not in NO_ANSWER:
            of_answer.setdefault(form, []).append(weight)
    largest = max((weight for group in of_answer.values() for weight in group), default=0)
    # In units of the largest, equal weights are exactly 1 each and no sum overflows. Weights that are all 0 are equal.
    return {
        form: math.fsum(weight / largest if largest else 1.0 for weight in group) for form, group in of_answer.items()
    }


def _winner(sums: dict[str, float]) -> str | None:
    """Return the first answer whose sum of weights is the largest, up to rounding."""
    largest = max(sums.values(), default=0)
    return next((form for form, weight in sums.items() if weight >= largest * (1 - _ROUNDING)), None)
