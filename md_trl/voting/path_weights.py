"""How much a vote of each path should weigh, learned on held-out questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..answers import NO_ANSWER, canonical
from .scores import check_lengths
from .votes import vote
from .weights import check_weights


RATIOS = tuple(2 ** (k / 4) for k in sorted(range(-12, 13), key=lambda k: (abs(k), k)))
"""Weights of PoT, relative to CoT, that are tried: from 1/8 to 8, those closest to 1 first."""


def learn_path_weights(
    cot: Sequence[Sequence[Any]],
    pot: Sequence[Sequence[Any]],
    references: Sequence[Any],
    cot_weights: Sequence[Sequence[float] | None] | None = None,
    pot_weights: Sequence[Sequence[float] | None] | None = None,
    tie_break: str = "cot",
) -> dict[str, float]:
    r"""
    Learn how much a vote of each path should weigh: the weights with which most joint votes are correct.

    The questions must not be those that are evaluated later, and must have as many votes as those, because the best
    weights depend on the number of votes. If several weights are equally good, those closest to equal weights are
    returned, so Eq. 5 is left only where the questions speak against it.

    Args:
        cot (`list[list]`):
            For each held-out question, the answers of its CoT thoughts in sample order.
        pot (`list[list]`):
            For each held-out question, the answers of its PoT thoughts in sample order.
        references (`list`):
            For each held-out question, the gold answer.
        cot_weights (`list[list[float]]`, *optional*):
            For each question, one weight per CoT answer, which the weight of the path multiplies. Defaults to 1 for
            each answer.
        pot_weights (`list[list[float]]`, *optional*):
            For each question, one weight per PoT answer.
        tie_break (`str`, *optional*, defaults to `"cot"`):
            Path whose answers win ties, see [`vote`].

    Returns:
        `dict[str, float]`: The weights of `cot` and `pot`. That of `cot` is 1, that of `pot` is one of [`RATIOS`].

    Raises:
        [`~md_trl.errors.InputError`]: If the lists differ in length or are empty, or if a weight is invalid.

    Examples:

    ```python
    >>> from md_trl.voting import learn_path_weights

    >>> learn_path_weights(cot=[["5"], ["7"]], pot=[["6"], ["8"]], references=["6", "8"])["pot"] > 1
    True
    ```
    """
    given = {"cot": cot, "pot": pot, "references": references, "cot_weights": cot_weights, "pot_weights": pot_weights}
    check_lengths(given)
    weights = {
        path: [
            check_weights(None if of_path is None else of_path[i], answers[i], f"{path}_weights[{i}]")
            for i in range(len(references))
        ]
        for path, answers, of_path in (("cot", cot, cot_weights), ("pot", pot, pot_weights))
    }
    # The largest weight of a question becomes 1, which leaves its vote as it is and keeps products finite
    for of_cot, of_pot in zip(weights["cot"], weights["pot"], strict=True):
        largest = max([*of_cot, *of_pot], default=0) or 1
        of_cot[:], of_pot[:] = ([weight / largest for weight in of_path] for of_path in (of_cot, of_pot))
    golds = [None if (form := canonical(reference)) in NO_ANSWER else form for reference in references]

    def correct(ratio: float) -> int:
        return sum(
            vote(cot[i], pot[i], weights["cot"][i], [ratio * weight for weight in weights["pot"][i]], tie_break)
            == gold
            for i, gold in enumerate(golds)
            if gold is not None
        )

    # `max` returns the first of equally good ratios
    return {"cot": 1.0, "pot": max(RATIOS, key=correct)}
