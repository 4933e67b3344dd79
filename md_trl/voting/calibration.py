"""Whether the confidence of votes can be trusted: reliability diagrams and the expected calibration error."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError


BINS = 10
"""Bins of a reliability diagram by default."""


@dataclass(frozen=True)
class ReliabilityBin:
    r"""
    The questions whose votes have a similar confidence.

    Args:
        low (`float`):
            Lower end of the bin, which belongs to the bin before, except for 0.
        high (`float`):
            Upper end of the bin, which belongs to it.
        count (`int`):
            Number of questions.
        confidence (`float`):
            Their mean confidence.
        accuracy (`float`):
            Share of them that were answered correctly.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def reliability_bins(confidences: Sequence[float], correct: Sequence[bool], bins: int = BINS) -> list[ReliabilityBin]:
    r"""
    Group questions by the confidence of their votes, into bins of equal width (a reliability diagram).

    Args:
        confidences (`Sequence[float]`):
            For each question, the confidence of its vote between 0 and 1, see [`Tally`].
        correct (`Sequence[bool]`):
            For each question, whether its vote is correct.
        bins (`int`, *optional*, defaults to `10`):
            Number of bins.

    Returns:
        `list[ReliabilityBin]`: The bins by increasing confidence. Empty bins are left out.

    Raises:
        [`~md_trl.errors.InputError`]: If the lists differ in length, if `bins` is less than 1, or if a confidence is
            not between 0 and 1.
    """
    if len(confidences) != len(correct):
        raise InputError(
            f"There are {len(confidences)} confidences for {len(correct)} questions. Pass one for each question."
        )
    if bins < 1:
        raise InputError(f"bins is {bins!r}. A reliability diagram needs at least 1 bin.")
    ends = [(k + 1) / bins for k in range(bins)]
    members: list[list[tuple[float, bool]]] = [[] for _ in ends]
    for i, (confidence, is_correct) in enumerate(zip(confidences, correct, strict=True)):
        if not 0 <= confidence <= 1:
            raise InputError(f"confidences[{i}] is {confidence!r}. A confidence must lie between 0 and 1.")
        members[bisect_left(ends, confidence)].append((confidence, is_correct))
    return [
        ReliabilityBin(
            low=k / bins,
            high=ends[k],
            count=len(group),
            confidence=sum(confidence for confidence, _ in group) / len(group),
            accuracy=sum(is_correct for _, is_correct in group) / len(group),
        )
        for k, group in enumerate(members)
        if group
    ]


def expected_calibration_error(confidences: Sequence[float], correct: Sequence[bool], bins: int = BINS) -> float:
    r"""
    Return the expected calibration error: the mean distance between confidence and accuracy, over bins of confidence
    weighted by their number of questions (Eq. 3 of https://huggingface.co/papers/1706.04599).

    Args:
        confidences (`Sequence[float]`):
            For each question, the confidence of its vote between 0 and 1, see [`Tally`].
        correct (`Sequence[bool]`):
            For each question, whether its vote is correct.
        bins (`int`, *optional*, defaults to `10`):
            Number of bins of equal width.

    Returns:
        `float`: The error, between 0 and 1. `0.0` if there is no question.

    Raises:
        [`~md_trl.errors.InputError`]: As for [`reliability_bins`].

    Examples:

    ```python
    >>> from md_trl.voting import expected_calibration_error

    >>> expected_calibration_error([1.0, 1.0, 0.5, 0.5], [True, True, True, False])
    0.0
    >>> expected_calibration_error([1.0, 1.0], [True, False])
    0.5
    ```
    """
    distances = [
        group.count * abs(group.accuracy - group.confidence) for group in reliability_bins(confidences, correct, bins)
    ]
    return sum(distances) / len(confidences) if distances else 0.0
