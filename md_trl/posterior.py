"""Posterior probabilities that an answer leads, for Adaptive-Consistency (https://huggingface.co/papers/2305.11860)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache


# Points of the numerical integral over a Dirichlet distribution, and the density below which they add nothing
_STEPS = 48
_NEGLIGIBLE = 1e-9


def beta_above_half(a: float, b: float) -> float:
    r"""
    Return P(X > 1/2) for X ~ Beta(a, b).

    Args:
        a (`float`):
            First parameter, above 0.
        b (`float`):
            Second parameter, above 0.

    Returns:
        `float`: The probability; for whole numbers, the chance of fewer than `a` heads in `a + b - 1` tosses.
    """
    if a == int(a) and b == int(b):
        tosses = int(a + b) - 1
        return sum(math.comb(tosses, heads) for heads in range(int(a))) / 2**tosses
    # The series is short for the smaller one of the two probabilities.
    return 1 - _beta_below_half(a, b) if a >= b else _beta_below_half(b, a)


def _beta_below_half(a: float, b: float) -> float:
    """P(X < 1/2) for X ~ Beta(a, b), by the series x^a (1 - x)^b / (a B(a, b)) (1 + (a + b) x / (a + 1) + ...)."""
    term = total = 1.0
    k = 0
    while term > total * 1e-15:
        term *= (a + b + k) / (a + 1 + k) / 2
        total += term
        k += 1
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return total * math.exp(-(a + b) * math.log(2) - log_beta) / a


def dirichlet_leads(first: float, others: Sequence[float]) -> float:
    r"""
    Return the probability that the first component of a Dirichlet distribution is the largest one.

    Args:
        first (`float`):
            Parameter of the first component, 1 or more.
        others (`Sequence[float]`):
            Parameters of the others, 1 or more.

    Returns:
        `float`: The probability, to about 6 digits.
    """
    return _dirichlet_leads(round(first, 9), tuple(sorted(round(other, 9) for other in others)))


@lru_cache(maxsize=65_536)
def _dirichlet_leads(first: float, others: tuple[float, ...]) -> float:
    """
    Components are gamma variables divided by their sum, so the first leads if its variable x is the largest: the
    integral of its density times the distribution functions of the others, by Simpson's rule. It is over the root of
    x, because powers of x are not smooth at 0.
    """
    deviation = math.sqrt(first)
    low, high = math.sqrt(max(first - 9 * deviation, 0.0)), math.sqrt(first + 9 * deviation + 14)
    step = (high - low) / _STEPS
    total = 0.0
    for i in range(_STEPS + 1):
        root = low + i * step
        if root > 0:
            x = root * root
            density = 2 * math.exp((2 * first - 1) * math.log(root) - x - math.lgamma(first))
            if density > _NEGLIGIBLE:
                factor = 1 if i in (0, _STEPS) else 4 if i % 2 else 2
                total += factor * density * math.prod(_gamma_below(other, x) for other in others)
    return min(total * step / 3, 1.0)


def _gamma_below(shape: float, x: float) -> float:
    """P(G < x) for a gamma variable: the regularized lower incomplete gamma function, by its power series."""
    if x <= 0:
        return 0.0
    term = total = 1 / shape
    k = shape
    while term > total * 1e-12:
        k += 1
        term *= x / k
        total += term
    return min(total * math.exp(shape * math.log(x) - x - math.lgamma(shape)), 1.0)
