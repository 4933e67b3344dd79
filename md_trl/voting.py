"""Votes: one answer out of many sampled ones (Sec. 3.2 of https://huggingface.co/papers/2312.10730).

Answers are counted by their canonical form, and a vote is returned in that form: what votes together scores together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .answers import NO_ANSWER, canonical
from .errors import InputError


def majority(answers: Iterable[Any]) -> str | None:
    r"""
    The most frequent answer.

    Args:
        answers (`Iterable`):
            Answers in sample order. `None`, the empty string and `nan` are unusable and do not vote.

    Returns:
        `str`, *optional*: The winner in canonical form; of equally frequent answers, the one seen first. `None` if
        nothing is usable.

    Examples:

    ```python
    >>> from md_trl.voting import majority

    >>> majority(["7", "5", "5.0", None, "7"])
    '7'
    ```
    """
    counts: dict[str, int] = {}
    for answer in usable(answers):
        counts[answer] = counts.get(answer, 0) + 1
    # Dictionaries keep the order of insertion and `max` returns the first maximum: ties fall to the first seen.
    return max(counts, key=counts.__getitem__, default=None)


def vote(cot_answers: Iterable[Any], pot_answers: Iterable[Any]) -> str | None:
    r"""
    The joint vote of both paths, `V(concat(A_cot, A_pot))` (Eq. 5).

    Args:
        cot_answers (`Iterable`):
            Answers of the CoT thoughts, in sample order.
        pot_answers (`Iterable`):
            Answers of the PoT thoughts, in sample order.

    Returns:
        `str`, *optional*: As for [`majority`], over the joined list.

    Examples:

    ```python
    >>> from md_trl.voting import vote

    >>> vote(["5", "6"], ["6.0", None])
    '6'
    ```
    """
    return majority([*cot_answers, *pot_answers])


def vote_two(pot_answer: Any, cot_answer: Any) -> str | None:
    """The joint answer at N=2: the program's; only if it did not run to one, the chain of thought's (Sec. 4.4.2)."""
    return next(iter(usable([pot_answer, cot_answer])), None)


def usable(answers: Iterable[Any]) -> list[str]:
    """The canonical forms of the answers that may vote."""
    return [answer for answer in map(canonical, answers) if answer not in NO_ANSWER]


def score(cot: Sequence[Sequence[Any]], pot: Sequence[Sequence[Any]], references: Sequence[Any]) -> dict[str, float]:
    r"""
    How often each path's vote and the joint vote are right.

    Args:
        cot (`list[list]`), pot (`list[list]`):
            For each question the answers of that path, in sample order; an empty list if the path was not sampled.
        references (`list`):
            For each question the gold answer.

    Returns:
        `dict`: `accuracy` (of the joint vote, Eq. 5), `cot_accuracy`, `pot_accuracy`; `both`, `cot_only`, `pot_only`,
        `neither` (shares of the questions by whose own vote is right; they sum to 1); `abstained` (share of questions
        without any usable answer, counted wrong); `n_questions`; `mean_votes` (usable answers per question).
    """
    if not len(cot) == len(pot) == len(references):
        raise InputError(
            f"cot, pot and references must hold one entry a question, but have {len(cot)}, {len(pot)} and "
            f"{len(references)} entries. Give an empty list where a path has no answer."
        )
    if not references:
        raise InputError("There is no question to score: cot, pot and references are empty.")

    n = len(references)
    joint_right = cot_right = pot_right = both = neither = abstained = votes = 0
    for cot_answers, pot_answers, reference in zip(cot, pot, references, strict=True):
        cot_answers, pot_answers, gold = usable(cot_answers), usable(pot_answers), canonical(reference)
        joint = vote(cot_answers, pot_answers)
        by_cot, by_pot = majority(cot_answers) == gold, majority(pot_answers) == gold
        joint_right += joint == gold
        cot_right += by_cot
        pot_right += by_pot
        both += by_cot and by_pot
        neither += not (by_cot or by_pot)
        abstained += joint is None
        votes += len(cot_answers) + len(pot_answers)
    return {
        "accuracy": joint_right / n,
        "cot_accuracy": cot_right / n,
        "pot_accuracy": pot_right / n,
        "both": both / n,
        "cot_only": (cot_right - both) / n,
        "pot_only": (pot_right - both) / n,
        "neither": neither / n,
        "abstained": abstained / n,
        "n_questions": n,
        "mean_votes": votes / n,
    }


def score_flat(predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
    r"""
    How often single answers are right.

    Args:
        predictions (`list`):
            For each question one answer; an unusable one counts as wrong.
        references (`list`):
            For each question the gold answer.

    Returns:
        `dict`: `accuracy`, `abstained` (share of questions without a usable answer), `n_questions`.
    """
    scores = score(
        cot=[[prediction] for prediction in predictions], pot=[[] for _ in predictions], references=references
    )
    return {key: scores[key] for key in ("accuracy", "abstained", "n_questions")}
