"""Accuracy of a vote against its number of samples (Fig. 4), averaged over which of the stored samples are taken."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .answers import canonical
from .evaluation import PATHS_OF, EvaluationResult, QuestionResult, voters
from .intervals import bootstrap_interval
from .records import ALL_PATHS, COT_POT, PATHS
from .replay import SUBSETS
from .voting import VoteWeights, usable


if TYPE_CHECKING:
    import numpy


@dataclass(frozen=True)
class CurvePoint:
    r"""
    One point of a curve.

    Args:
        votes (`int`):
            Number of samples per question.
        accuracy (`float`):
            Share of questions whose vote is correct, mean over the orders of the samples.
        low (`float`), high (`float`):
            Its 95% bootstrap interval over questions.
    """

    votes: int
    accuracy: float
    low: float
    high: float


def mean_curve(result: EvaluationResult, figure: str, subsets: int = SUBSETS, seed: int = 0) -> list[CurvePoint]:
    r"""
    Return the accuracy of a vote for every number of samples, averaged over random orders of the stored samples.

    [`EvaluationResult.curve`] takes the first samples instead, so that its points are those of one run. With all
    samples, both are the same up to ties, which go to the answer seen first.

    Args:
        result ([`~md_trl.evaluation.EvaluationResult`]):
            Result of a student.
        figure (`str`):
            A path, `joint` or `joint_all`; the joint votes take equal parts of the samples from each path.
        subsets (`int`, *optional*, defaults to `50`):
            Number of orders of the samples of each question.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the orders.

    Returns:
        `list[CurvePoint]`: The points, empty if the result lacks the figure or stopped early.
    """
    if result.stops_early or not result.has(figure):
        return []
    import numpy

    paths = PATHS_OF.get(figure, (figure,))
    # The number of samples is that of the longest question
    n, weights = result.n, result.weights
    shares = numpy.array([_shares(question, paths, n, weights, subsets, seed) for question in result.questions])
    points = []
    for k, of_questions in enumerate(shares.T, 1):
        low, high = bootstrap_interval(of_questions)
        points.append(CurvePoint(k * len(paths), float(of_questions.mean()), low, high))
    return points


def _shares(
    question: QuestionResult, paths: tuple[str, ...], n: int, weights: VoteWeights, subsets: int, seed: int
) -> numpy.ndarray:
    """For 1, 2, ... samples per path, the share of orders in which the vote on a question is correct."""
    import numpy

    digest = hashlib.sha256(f"{seed}/{question.id}".encode()).digest()
    generator = numpy.random.default_rng(int.from_bytes(digest[:8], "big"))
    of_cot, of_programs = weights.weigh(*voters(question, ALL_PATHS if COT_POT in paths else PATHS))
    split = len(question.pot)
    weighed = (of_cot, of_programs and of_programs[:split], of_programs and of_programs[split:])
    forms: dict[str, int] = {}
    votes = []
    for path, of_path in zip(ALL_PATHS, weighed, strict=True):
        if path not in paths:
            continue
        answers = getattr(question, path)
        # The number of each answer, -1 for what does not vote
        numbers = [forms.setdefault(form[0], len(forms)) if (form := usable([a])) else -1 for a in answers]
        order = generator.permuted(numpy.tile(numpy.arange(len(answers)), (subsets, 1)), axis=1)
        votes.append((numpy.array(numbers, dtype=int)[order], numpy.array(of_path or [1.0] * len(answers))[order]))
    if not forms:
        return numpy.zeros(n)
    gold = forms.get(canonical(question.answer), -1)
    sums = numpy.zeros((subsets, len(forms)))
    firsts = numpy.full((subsets, len(forms)), numpy.inf)
    shares, rows = numpy.zeros(n), numpy.arange(subsets)
    for k in range(n):
        for place, (numbers, of_numbers) in enumerate(votes):
            if k >= numbers.shape[1]:
                continue
            voting = rows[numbers[:, k] >= 0]
            chosen = numbers[voting, k]
            sums[voting, chosen] += of_numbers[voting, k]
            firsts[voting, chosen] = numpy.minimum(firsts[voting, chosen], place * n + k)
        # Ties go to the answer seen first, in the order of the paths (Eq. 5)
        leading = sums >= sums.max(axis=1, keepdims=True) * (1 - 1e-9)
        winner = numpy.where(leading & numpy.isfinite(firsts), firsts, numpy.inf).argmin(axis=1)
        shares[k] = ((winner == gold) & numpy.isfinite(firsts).any(axis=1)).mean()
    return shares
