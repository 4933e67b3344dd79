"""Accuracy of a vote against its number of samples (Fig. 4), averaged over which of the stored samples are taken."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .answers import canonical
from .evaluation import PATHS_OF, EvaluationResult, QuestionResult, voters
from .intervals import mean_interval
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
            Its 95% interval over questions, and over seeds if there are several.
    """

    votes: int
    accuracy: float
    low: float
    high: float


def mean_curve(
    results: EvaluationResult | Sequence[EvaluationResult], figure: str, subsets: int = SUBSETS, seed: int = 0
) -> list[CurvePoint]:
    r"""
    Return the accuracy of a vote for every number of samples, averaged over random orders of the stored samples.

    [`EvaluationResult.curve`] takes the first samples instead, so that its points are those of one run. With all
    samples, both are the same up to ties, which go to the answer seen first.

    Args:
        results ([`~md_trl.evaluation.EvaluationResult`] or `Sequence[EvaluationResult]`):
            Result of a student, or one result per seed, on the same questions.
        figure (`str`):
            A path, `joint` or `joint_all`; the joint votes take equal parts of the samples from each path.
        subsets (`int`, *optional*, defaults to `50`):
            Number of orders of the samples of each question.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the orders.

    Returns:
        `list[CurvePoint]`: The points, empty if a result lacks the figure or stopped early.
    """
    results = [results] if isinstance(results, EvaluationResult) else results
    first, *others = [shares_by_votes(result, figure, subsets, seed) for result in results]
    return [
        CurvePoint(votes, *mean_interval([of_questions, *(other[votes] for other in others)]))
        for votes, of_questions in first.items()
        if all(votes in other for other in others)
    ]


def shares_by_votes(
    result: EvaluationResult,
    figure: str,
    subsets: int = SUBSETS,
    seed: int = 0,
    weights: VoteWeights | None = None,
    tie_break: str = "cot",
) -> dict[int, numpy.ndarray]:
    r"""
    For every number of samples, return how often the vote on each question is correct over orders of its samples.

    Args:
        result ([`~md_trl.evaluation.EvaluationResult`]):
            Result of a student.
        figure (`str`), subsets (`int`, *optional*, defaults to `50`), seed (`int`, *optional*, defaults to `0`):
            As in [`mean_curve`].
        weights ([`~md_trl.voting.VoteWeights`], *optional*):
            What votes weigh. Defaults to the weights of the result.
        tie_break (`str`, *optional*, defaults to `"cot"`):
            Path whose answers come first in the joined list, and so win ties.

    Returns:
        `dict[int, numpy.ndarray]`: One share per question, in order, by number of samples. Empty if the result lacks
        the figure or stopped early.
    """
    if result.stops_early or not result.has(figure):
        return {}
    import numpy

    paths = PATHS_OF.get(figure, (figure,))
    # The number of samples is that of the longest question
    n, weights = result.n, weights or result.weights
    orders = [_orders(question, paths, n, weights, subsets, seed) for question in result.questions]
    numbers, sizes, gold = (numpy.stack(parts) for parts in zip(*orders, strict=True))
    # Ties go to the answer seen first, CoT before PoT (Eq. 5) or the other way round
    places = range(len(paths)) if tie_break == "cot" else reversed(range(len(paths)))
    rank = dict(zip(range(len(paths)), places, strict=True))
    forms = max(numbers.max() + 1, 1)
    sums = numpy.zeros((*numbers.shape[:2], forms))
    firsts = numpy.full(sums.shape, numpy.inf)
    shares = {}
    for k in range(n):
        for place in range(len(paths)):
            voting = numpy.nonzero(numbers[:, :, place, k] >= 0)
            chosen = (*voting, numbers[:, :, place, k][voting])
            sums[chosen] += sizes[:, :, place, k][voting]
            firsts[chosen] = numpy.minimum(firsts[chosen], rank[place] * n + k)
        leading = sums >= sums.max(axis=2, keepdims=True) * (1 - 1e-9)
        found = numpy.where(leading, firsts, numpy.inf)
        right = (found.argmin(axis=2) == gold[:, None]) & numpy.isfinite(found).any(axis=2)
        shares[(k + 1) * len(paths)] = right.mean(axis=1)
    return shares


def n2_shares(result: EvaluationResult) -> list[float]:
    r"""
    Return how often the N=2 rule (Sec. 4.4.2) is right on each question, over all choices of its two samples.

    Args:
        result ([`~md_trl.evaluation.EvaluationResult`]):
            Result of a student with both paths.

    Returns:
        `list[float]`: One share per question, in order.
    """
    shares = []
    for question in result.questions:
        by_cot = sum(map(question.is_correct, question.cot)) / max(len(question.cot), 1)
        if not question.pot:
            shares.append(by_cot)
            continue
        by_pot = sum(map(question.is_correct, question.pot))
        shares.append((by_pot + (len(question.pot) - len(usable(question.pot))) * by_cot) / len(question.pot))
    return shares


def _orders(
    question: QuestionResult, paths: tuple[str, ...], n: int, weights: VoteWeights, subsets: int, seed: int
) -> tuple[numpy.ndarray, numpy.ndarray, int]:
    """
    Random orders of the answers to a question: the number of each answer by order, path and place, -1 for what does
    not vote; what each vote weighs; and the number of the gold answer.
    """
    import numpy

    digest = hashlib.sha256(f"{seed}/{question.id}".encode()).digest()
    generator = numpy.random.default_rng(int.from_bytes(digest[:8], "big"))
    of_cot, of_programs = weights.weigh(*voters(question, ALL_PATHS if COT_POT in paths else PATHS))
    split = len(question.pot)
    weighed = {"cot": of_cot, "pot": of_programs and of_programs[:split], COT_POT: of_programs and of_programs[split:]}
    forms: dict[str, int] = {}
    numbers, sizes = numpy.full((subsets, len(paths), n), -1), numpy.zeros((subsets, len(paths), n))
    for place, path in enumerate(paths):
        answers = getattr(question, path)
        of_answers = [forms.setdefault(form[0], len(forms)) if (form := usable([a])) else -1 for a in answers]
        order = generator.permuted(numpy.tile(numpy.arange(len(answers)), (subsets, 1)), axis=1)
        numbers[:, place, : len(answers)] = numpy.array(of_answers, dtype=int)[order]
        sizes[:, place, : len(answers)] = numpy.array(weighed[path] or [1.0] * len(answers))[order]
    # Another number than any answer's and than -1
    return numbers, sizes, forms.get(canonical(question.answer), -2)
