"""Weights of votes: checks, and weights from the likelihood of thoughts."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from ..errors import InputError
from ..records import PATHS


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
    if not isinstance(weights, Iterable):
        raise InputError(f"{name} is {weights!r}, but must be a list of weights, one for each answer.")
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


@dataclass(frozen=True)
class VoteWeights:
    r"""
    What a vote weighs: the likelihood of its thought or 1, times the weight of its path.

    Args:
        kind (`str`, *optional*, defaults to `"none"`):
            One of [`WEIGHTS`].
        cot (`float`, *optional*, defaults to `1.0`):
            Weight of the CoT path.
        pot (`float`, *optional*, defaults to `1.0`):
            Weight of the PoT path, for example from [`learn_path_weights`].

    Raises:
        [`~md_trl.errors.InputError`]: If the kind is unknown, or a weight of a path is negative, infinite or not a
            number, or both are 0.

    Examples:

    ```python
    >>> from md_trl.voting import VoteWeights, vote

    >>> weights = VoteWeights("likelihood", pot=2.0)
    >>> vote(["5"], ["6"], *weights.weigh(["5"], ["6"], [-0.5], [-0.9]))
    '6'
    ```
    """

    kind: str = "none"
    cot: float = 1.0
    pot: float = 1.0

    def __post_init__(self):
        if self.kind not in WEIGHTS:
            raise InputError(f"`weights` is {self.kind!r}. Choose one of {', '.join(map(repr, WEIGHTS))}.")
        if not any(check_weights([self.cot, self.pot], PATHS, "path_weights")):
            raise InputError("The weights of both paths are 0, so no vote would count. Give one of them a weight.")

    @classmethod
    def of(cls, weights: str | VoteWeights) -> VoteWeights:
        """Return weights that may be given by their kind alone."""
        return cls(weights) if isinstance(weights, str) else weights

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> VoteWeights:
        """Return the weights that [`VoteWeights.to_settings`] wrote into the settings of a result."""
        return cls(settings.get("weights", "none"), **settings.get("path_weights", {}))

    def to_settings(self) -> dict[str, Any]:
        """Return what differs from equal votes: `weights` and `path_weights`."""
        kind = {} if self.kind == "none" else {"weights": self.kind}
        return kind if self.cot == self.pot else kind | {"path_weights": {"cot": self.cot, "pot": self.pot}}

    def __str__(self) -> str:
        paths = "" if self.cot == self.pot else f", CoT {self.cot:.3g}, PoT {self.pot:.3g}"
        return f"{self.kind}{paths}"

    def weigh(
        self,
        cot_answers: Sequence[Any],
        pot_answers: Sequence[Any],
        cot_logprobs: Sequence[float | None],
        pot_logprobs: Sequence[float | None],
    ) -> tuple[list[float], list[float]] | tuple[None, None]:
        r"""
        Return the weights of the votes on one question.

        Args:
            cot_answers (`Sequence`), pot_answers (`Sequence`):
                Answers of the CoT and of the PoT thoughts, in sample order.
            cot_logprobs (`Sequence[float | None]`), pot_logprobs (`Sequence[float | None]`):
                Mean log-probability per token of each thought. Empty if the engine reports none.

        Returns:
            `tuple[list[float], list[float]]`: One weight between 0 and 1 for each CoT and each PoT thought; at most 1
            on the heavier path. A pair of `None` if all votes weigh the same (Eq. 5), also because likelihoods are
            asked for and a usable thought has no log-probability.
        """
        answers, logprobs = [*cot_answers, *pot_answers], [*cot_logprobs, *pot_logprobs]
        complete = len(cot_logprobs) == len(cot_answers) and len(pot_logprobs) == len(pot_answers)
        likely = self.kind == "likelihood" and complete and has_likelihoods(logprobs, answers)
        if not likely and self.cot == self.pot:
            return None, None
        weights = likelihood_weights(logprobs, answers) if likely else [1.0] * len(answers)
        split, heavier = len(cot_answers), max(self.cot, self.pot)
        return (
            [weight * self.cot / heavier for weight in weights[:split]],
            [weight * self.pot / heavier for weight in weights[split:]],
        )
