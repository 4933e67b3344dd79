"""Whether the confidence of votes can be trusted: reliability diagrams and the expected calibration error."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import InputError


BINS = 10
"""Bins of a reliability diagram by default."""

_NEWTON_STEPS, _TOLERANCE = 100, 1e-10
_RIDGE = 1e-6
"""Keeps the fit unique if all votes lead by the same."""


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


@dataclass(frozen=True)
class Calibrator:
    r"""
    Probability that a vote is correct, from how far its answer leads ([Platt
    scaling](https://www.cs.cornell.edu/~alexn/papers/calibration.icml05.crc.rev3.pdf)).

    Args:
        slope (`float`):
            Weight of the lead, see [`lead`].
        intercept (`float`):
            Log-odds of being correct without any lead.
    """

    slope: float
    intercept: float

    def probability(self, sums: Mapping[str, float]) -> float:
        r"""
        Return the probability that the vote on a question is correct.

        Args:
            sums (`Mapping[str, float]`):
                Summed weight of each answer, see [`~md_trl.stopping.Seen.tally`].

        Returns:
            `float`: The probability, `0.0` if there is no answer.
        """
        return 1 / (1 + math.exp(-self.slope * lead(sums) - self.intercept)) if sums else 0.0


def lead(sums: Mapping[str, float]) -> float:
    """Return the log-odds of the leading answer against the next one, each with one vote more than it has."""
    first, second = sorted([*sums.values(), 0.0, 0.0], reverse=True)[:2]
    return math.log((first + 1) / (second + 1))


def fit_calibrator(
    leads: Sequence[float], correct: Sequence[bool], counts: Sequence[float] | None = None
) -> Calibrator:
    r"""
    Fit the probability that a vote is correct, by logistic regression with Platt's targets: a right vote counts as
    (n + 1) / (n + 2) of one, a wrong one as 1 / (m + 2), so that few questions do not make it certain.

    Args:
        leads (`Sequence[float]`):
            For each vote, how far its answer leads, see [`lead`].
        correct (`Sequence[bool]`):
            For each vote, whether its answer is correct.
        counts (`Sequence[float]`, *optional*):
            For each vote, how much it counts. Defaults to 1. Several votes on one question should count 1 together.

    Returns:
        [`Calibrator`]: The fit. Its slope is not negative.

    Raises:
        [`~md_trl.errors.InputError`]: If the lists differ in length or are empty.
    """
    import numpy

    counts = [1.0] * len(leads) if counts is None else counts
    if not leads or not len(leads) == len(correct) == len(counts):
        raise InputError(
            f"There are {len(leads)} leads, {len(correct)} marks and {len(counts)} counts. Pass one each for every "
            "vote, and at least one vote."
        )
    marks, counts = numpy.array(correct, dtype=bool), numpy.array(counts, dtype=float)
    right, wrong = counts[marks].sum(), counts[~marks].sum()
    targets = numpy.where(marks, (right + 1) / (right + 2), 1 / (wrong + 2))
    features, found = numpy.column_stack([leads, numpy.ones(len(leads))]), numpy.zeros(2)
    for _ in range(_NEWTON_STEPS):
        chances = 1 / (1 + numpy.exp(-features @ found))
        gradient = features.T @ (counts * (targets - chances)) - _RIDGE * found
        hessian = (features.T * (counts * chances * (1 - chances))) @ features + _RIDGE * numpy.eye(2)
        step = numpy.linalg.solve(hessian, gradient)
        found = found + step
        if numpy.abs(step).max() < _TOLERANCE:
            break
    slope, intercept = found.tolist()
    if slope < 0:
        mean = float(counts @ targets / counts.sum())
        slope, intercept = 0.0, math.log(mean / (1 - mean))
    return Calibrator(slope, intercept)
