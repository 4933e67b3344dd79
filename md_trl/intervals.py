"""Bootstrap intervals over questions."""

from __future__ import annotations

from collections.abc import Sequence

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

    if isinstance(resamples, bool) or resamples < 1:
        raise InputError(f"A bootstrap needs at least 1 resample, got {resamples!r}. Pass {RESAMPLES} for example.")
    if not 0 < confidence_level < 1:
        raise InputError(f"confidence_level must lie between 0 and 1, got {confidence_level!r}. Pass 0.95 for 95%.")
    # How often each distinct value is drawn is multinomial, which needs no array of resampled questions.
    distinct, counts = numpy.unique(numpy.asarray(values, dtype=float), return_counts=True)
    drawn = numpy.random.default_rng(seed).multinomial(len(values), counts / len(values), size=resamples)
    # Rounded, so that an interval of the level 0.95 has the ends 0.025 and 0.975 exactly
    tail = round((1 - confidence_level) / 2, 12)
    low, high = numpy.quantile(drawn @ distinct / len(values), [tail, 1 - tail])
    return float(low), float(high)
