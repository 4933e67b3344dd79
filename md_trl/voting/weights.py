"""Weights of votes: checks, and weights from the likelihood of thoughts."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

from ..errors import InputError


WEIGHTS = ("none", "likelihood")
"""What a vote may weigh: 1 (Eq. 5), or the likelihood of its thought, see [`likelihood_weights`]."""


def check_weights(weights: Iterable[float] | None, answers: Sequence[Any], name: str) -> list[float]:
    r"""
    Return one valid weight per answer.

    Args:
        weights (`Iterable[float]`, *optional*):
            Weights of the answers. Defaults to 1 for each answer.
        answers (`Sequence`):
            The answers.
        name (`str`):
            Name of the weights in an error.

    Returns:
        `list[float]`: The weights.

    Raises:
        [`~md_trl.errors.InputError`]: If there is not one weight per answer, or if a weight is negative, infinite or
            not a number.
    """
    if weights is None:
        return [1.0] * len(answers)
    weights = list(weights)  # A copy, which the caller may change
    if len(weights) != len(answers):
        raise InputError(
            f"{name} has {len(weights)} weights for {len(answers)} answers. Pass one weight per answer, also for "
            "unusable answers."
        )
    for i, weight in enumerate(weights):
        if not (isinstance(weight, Real) and 0 <= weight <= sys.float_info.max):  # nan fails too
            raise InputError(f"{name}[{i}] is {weight!r}. A weight must be a finite number that is not negative.")
    return weights


def has_likelihoods(logprobs: Sequence[float | None], answers: Sequence[Any]) -> bool:
    r"""
    Return whether votes can be weighted by likelihood: whether every usable thought has a log-probability.

    Args:
        logprobs (`Sequence[float | None]`):
            Mean log-probability per token of every thought of a question, of both paths.
        answers (`Sequence`):
            Their answers. A thought with the answer `None` is unusable and needs no log-probability.

    Returns:
        `bool`: Whether none is missing.
    """
    return all(logprob is not None or answer is None for logprob, answer in zip(logprobs, answers, strict=True))


def likelihood_weights(logprobs: Iterable[float | None], answers: Sequence[Any] | None = None) -> list[float]:
    r"""
    Return the weights of one question's thoughts by likelihood: `exp` of the mean log-probability per token.

    Likelihoods can be compared only within one model. All thoughts that vote together must be passed in one list,
    because one thought without a log-probability gives every thought the weight 1.

    Args:
        logprobs (`Iterable[float | None]`):
            Mean log-probability per token of every thought of the question, of both paths. `None` if the engine did
            not report it.
        answers (`Sequence`, *optional*):
            Their answers. If they are given, a thought with the answer `None` needs no log-probability: it has no
            vote, so its weight plays no role.

    Returns:
        `list[float]`: One weight per thought, in the same order. All weights are 1 if any log-probability is `None`,
        so the vote is that of Eq. 5.

    Raises:
        [`~md_trl.errors.InputError`]: If a log-probability is positive or not a number.

    Examples:

    ```python
    >>> from md_trl.voting import likelihood_weights, vote

    >>> cot_logprobs, pot_logprobs = [-0.9], [-0.1]
    >>> weights = likelihood_weights(cot_logprobs + pot_logprobs)
    >>> vote(["5"], ["6"], weights[:1], weights[1:])
    '6'
    >>> likelihood_weights([-0.9, None])
    [1.0, 1.0]
    ```
    """
    logprobs = list(logprobs)
    for i, logprob in enumerate(logprobs):
        # Written so that nan fails too
        if logprob is not None and not (isinstance(logprob, Real) and logprob <= 0):
            raise InputError(f"logprobs[{i}] is {logprob!r}. A log-probability must be a number that is not positive.")
    if answers is not None and has_likelihoods(logprobs, answers):
        logprobs = [0.0 if logprob is None else logprob for logprob in logprobs]
    if None in logprobs:
        return [1.0] * len(logprobs)
    return [math.exp(logprob) for logprob in logprobs]
