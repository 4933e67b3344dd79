"""Intervals over questions, and over training seeds and questions."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from statistics import NormalDist

from .errors import InputError


RESAMPLES = 10_000
"""Resamples of a bootstrap by default."""
CONFIDENCE_LEVEL = 0.95
"""Share of resamples that an interval covers by default."""


def bootstrap_interval(
    values: Sequence[float],
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence_level: float = CONFIDENCE_LEVEL,
) -> tuple[float, float]:
    r"""
    Percentile bootstrap interval of a mean over questions.

    Args:
        values (`Sequence[float]`):
            One value per question, for example whether it was answered correctly.
        resamples (`int`, *optional*, defaults to `10_000`):
            Number of resamples.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resamples.
        confidence_level (`float`, *optional*, defaults to `0.95`):
            Share of the resamples that lie within the interval.

    Returns:
        `tuple[float, float]`: The lower and the upper end.

    Raises:
        [`~md_trl.errors.InputError`]: If `resamples` is less than 1 or `confidence_level` is not between 0 and 1.
    """
    import numpy  # Loaded here so that `md_trl.voting`, which imports this module, stays light

    if isinstance(resamples, bool) or not isinstance(resamples, Integral) or resamples < 1:
        raise InputError(
            f"A bootstrap needs a whole number of resamples, at least 1, got {resamples!r}. Pass {RESAMPLES}, say."
        )
    if not 0 < confidence_level < 1:
        raise InputError(f"confidence_level must lie between 0 and 1, got {confidence_level!r}. Pass 0.95 for 95%.")
    # How often each distinct value is drawn is multinomial, which needs no array of resampled questions.
    distinct, counts = numpy.unique(numpy.asarray(values, dtype=float), return_counts=True)
    drawn = numpy.random.default_rng(seed).multinomial(len(values), counts / len(values), size=resamples)
    # Rounded, so that an interval of the level 0.95 has the ends 0.025 and 0.975 exactly
    tail = round((1 - confidence_level) / 2, 12)
    low, high = numpy.quantile(drawn @ distinct / len(values), [tail, 1 - tail])
    return float(low), float(high)


def wilson_interval(correct: int, n: int, confidence_level: float = CONFIDENCE_LEVEL) -> tuple[float, float]:
    r"""
    Wilson's score interval of a share of questions ([Wilson, 1927](https://doi.org/10.2307/2276774)).

    Unlike a bootstrap, it has a width where all or none of the questions are answered correctly: with 0 of 50, its
    upper end is 7%.

    Args:
        correct (`int`):
            Number of questions that are answered correctly.
        n (`int`):
            Number of questions.
        confidence_level (`float`, *optional*, defaults to `0.95`):
            How often the interval covers the share among all questions.

    Returns:
        `tuple[float, float]`: The lower and the upper end.
    """
    z2 = NormalDist().inv_cdf((1 + confidence_level) / 2) ** 2
    share = correct / n
    center, half = share + z2 / (2 * n), (z2 * share * (1 - share) / n + (z2 / (2 * n)) ** 2) ** 0.5
    low, high = ((center + side * half) / (1 + z2 / n) for side in (-1, 1))
    # Exact where rounding would put the share itself outside
    return (0.0 if correct == 0 else low), (1.0 if correct == n else high)


def share_interval(
    values: Sequence[float],
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence_level: float = CONFIDENCE_LEVEL,
) -> tuple[float, float]:
    r"""
    Interval over questions of an accuracy, or of another mean of values between 0 and 1.

    Args:
        values (`Sequence[float]`), resamples (`int`, *optional*, defaults to `10_000`), seed (`int`, *optional*,
        defaults to `0`), confidence_level (`float`, *optional*, defaults to `0.95`):
            As in [`bootstrap_interval`].

    Returns:
        `tuple[float, float]`: [`bootstrap_interval`], or if all values are 0 or all are 1, [`wilson_interval`].

    Raises:
        [`~md_trl.errors.InputError`]: As in [`bootstrap_interval`].
    """
    low, high = bootstrap_interval(values, resamples, seed, confidence_level)
    if low == high and low in (0, 1) and all(value == low for value in values):
        return wilson_interval(round(low) * len(values), len(values), confidence_level)
    return low, high


def mean_interval(table: Sequence[Sequence[float]], shares: bool = True) -> tuple[float, float, float]:
    r"""
    Mean over training seeds and questions with its 95% interval.

    Args:
        table (`Sequence[Sequence[float]]` of shape `(n_seeds, n_questions)`):
            One value for each seed and question.
        shares (`bool`, *optional*, defaults to `True`):
            Whether the values are between 0 and 1, as those of an accuracy; otherwise they are differences of such,
            between -1 and 1. The interval stays in the same range.

    Returns:
        `tuple[float, float, float]`: The mean, and the lower and the upper end: [`two_level_interval`], or
        [`bootstrap_interval`] over questions if there is a single seed. If all shares are 0 or all are 1, it is
        [`wilson_interval`] over questions, whatever the number of seeds, because they answered the same questions.
    """
    first = table[0]
    if len(table) == 1 or shares and {value for row in table for value in row} in ({0}, {1}):
        return float(sum(first) / len(first)), *(share_interval if shares else bootstrap_interval)(first)
    mean, low, high = two_level_interval(table)
    return mean, max(low, 0.0 if shares else -1.0), min(high, 1.0)


def two_level_interval(
    table: Sequence[Sequence[float]], confidence_level: float = CONFIDENCE_LEVEL
) -> tuple[float, float, float]:
    r"""
    Interval of a mean over training seeds and questions, both of which are samples of what might have been.

    The variance of the mean has two parts: that of the means by seed over the number of seeds, which contains the
    noise of single answers, and that of the means by question over the number of questions, less this noise. Each
    part has the quantile of Student's t for its own degrees of freedom, `half² = Σ t² v`, as for the difference of two
    means in Howe (1974, Journal of the American Statistical Association 69, 789-794). A handful of seeds says little
    about their spread: with one quantile for the sum, or a bootstrap over seeds, intervals over two or three would be
    too narrow.

    Args:
        table (`Sequence[Sequence[float]]` of shape `(n_seeds, n_questions)`):
            One value for each seed and question.
        confidence_level (`float`, *optional*, defaults to `0.95`):
            How often the interval covers the mean over all seeds and questions.

    Returns:
        `tuple[float, float, float]`: The mean, and the lower and the upper end.

    Raises:
        [`~md_trl.errors.InputError`]: If there are fewer than two seeds or two questions, or the seeds differ in their
            number of questions.
    """
    import numpy
    from scipy.stats import t

    sizes = {len(row) for row in table}
    if len(table) < 2 or len(sizes) != 1 or max(sizes) < 2:
        raise InputError(
            f"An interval over seeds and questions needs two seeds or more, with two or more questions, the same for "
            f"each. There are {len(table)} seeds with {sorted(sizes)} questions."
        )
    values = numpy.asarray(table, dtype=float)
    mean, parts = float(values.mean()), [values.mean(axis=axis) for axis in (1, 0)]
    mean, by_seed, by_question = float(values.mean()), values.mean(axis=1), values.mean(axis=0)
    noise = values - by_seed[:, None] - by_question + mean
    noise_of_mean = (noise**2).sum() / numpy.prod([size - 1 for size in values.shape]) / values.size
    of_seeds, of_questions = (part.var(ddof=1) / len(part) for part in (by_seed, by_question))
    # An estimate of what is left of the second part may be negative
    parts = [(of_seeds, len(by_seed)), (max(of_questions - noise_of_mean, 0), len(by_question))]
    half = sum(v * float(t.ppf((1 + confidence_level) / 2, size - 1)) ** 2 for v, size in parts) ** 0.5
    return mean, mean - float(half), mean + float(half)
