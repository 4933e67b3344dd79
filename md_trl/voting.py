"""Vote over sampled answers, and score votes (Sec. 3.2 of https://huggingface.co/papers/2312.10730).

Answers are counted by their canonical form, and votes are returned in that form, so votes group answers exactly as
scoring compares them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from .answers import NO_ANSWER, canonical
from .errors import InputError


def majority(answers: Iterable[Any]) -> str | None:
    r"""
    Return the most frequent answer.

    Args:
        answers (`Iterable`):
            Answers in sample order. `None`, the empty string and `nan` are unusable and do not vote.

    Returns:
        `str`, *optional*: The most frequent answer in canonical form. Ties go to the answer seen first. `None` if no
        answer is usable.

    Examples:

    ```python
    >>> from md_trl.voting import majority

    >>> majority(["7", "5", "5.0", None, "7"])
    '7'
    ```
    """
    counts = Counter(usable(answers))
    # A Counter keeps the order of insertion and `max` returns the first maximum, so ties go to the answer seen first.
    return max(counts, key=counts.__getitem__, default=None)


def vote(cot_answers: Iterable[Any], pot_answers: Iterable[Any]) -> str | None:
    r"""
    Return the joint vote of both paths, `V(concat(A_cot, A_pot))` (Eq. 5).

    Args:
        cot_answers (`Iterable`):
            Answers of the CoT thoughts, in sample order.
        pot_answers (`Iterable`):
            Answers of the PoT thoughts, in sample order.

    Returns:
        `str`, *optional*: The most frequent answer of both lists in canonical form. Ties go to the answer seen first,
        CoT before PoT. `None` if no answer is usable.

    Examples:

    ```python
    >>> from md_trl.voting import vote

    >>> vote(["5", "6"], ["6.0", None])
    '6'
    ```
    """
    return majority([*cot_answers, *pot_answers])


def vote_two(pot_answer: Any, cot_answer: Any) -> str | None:
    r"""
    Return the joint answer at N=2: the program's, or the chain of thought's if the program has none (Sec. 4.4.2).

    Args:
        pot_answer (`Any`):
            Answer of the PoT thought, `None` if its program did not run to an answer.
        cot_answer (`Any`):
            Answer of the CoT thought.

    Returns:
        `str`, *optional*: The answer in canonical form, `None` if neither is usable.
    """
    return next(iter(usable([pot_answer, cot_answer])), None)


def usable(answers: Iterable[Any]) -> list[str]:
    r"""
    Return the canonical forms of the answers that may vote.

    Args:
        answers (`Iterable`):
            Answers in sample order.

    Returns:
        `list[str]`: The usable answers, in the same order.
    """
    return [answer for answer in map(canonical, answers) if answer not in NO_ANSWER]


def score(cot: Sequence[Sequence[Any]], pot: Sequence[Sequence[Any]], references: Sequence[Any]) -> dict[str, float]:
    r"""
    Score the vote of each path and the joint vote against the gold answers.

    Args:
        cot (`list[list]`):
            For each question, the answers of its CoT thoughts in sample order. An empty list if none were sampled.
        pot (`list[list]`):
            For each question, the answers of its PoT thoughts in sample order. An empty list if none were sampled.
        references (`list`):
            For each question, the gold answer.

    Returns:
        `dict[str, float]`: These scores. Shares are between 0 and 1, and a question without a usable answer counts as
        wrong.

        - `accuracy`: share of questions whose joint vote (Eq. 5) is correct.
        - `cot_accuracy`: share of questions whose CoT vote is correct.
        - `pot_accuracy`: share of questions whose PoT vote is correct.
        - `both`: share of questions whose CoT and PoT votes are both correct (`QuestionType.BOTH`).
        - `cot_only`: share of questions whose CoT vote alone is correct (`QuestionType.COT_ONLY`).
        - `pot_only`: share of questions whose PoT vote alone is correct (`QuestionType.POT_ONLY`).
        - `neither`: share of questions whose CoT and PoT votes are both wrong (`QuestionType.NEITHER`).
        - `abstained`: share of questions without a usable answer on either path.
        - `n_questions`: number of questions.
        - `mean_votes`: mean number of usable answers per question, both paths together.

    Raises:
        [`~md_trl.errors.InputError`]: If the three lists differ in length or are empty.
    """
    if not len(cot) == len(pot) == len(references):
        raise InputError(
            f"cot, pot and references must have one entry per question, but have {len(cot)}, {len(pot)} and "
            f"{len(references)} entries. Pass an empty list for a question without answers on a path."
        )
    if not references:
        raise InputError("There is no question to score: cot, pot and references are empty.")

    solved = Counter()  # questions by whether CoT and PoT solve them
    correct = abstained = votes = 0
    for cot_answers, pot_answers, reference in zip(cot, pot, references, strict=True):
        cot_answers, pot_answers, gold = usable(cot_answers), usable(pot_answers), canonical(reference)
        joint_vote = vote(cot_answers, pot_answers)
        solved[majority(cot_answers) == gold, majority(pot_answers) == gold] += 1
        correct += joint_vote == gold
        abstained += joint_vote is None
        votes += len(cot_answers) + len(pot_answers)
    n = len(references)
    return {
        "accuracy": correct / n,
        "cot_accuracy": (solved[True, True] + solved[True, False]) / n,
        "pot_accuracy": (solved[True, True] + solved[False, True]) / n,
        "both": solved[True, True] / n,
        "cot_only": solved[True, False] / n,
        "pot_only": solved[False, True] / n,
        "neither": solved[False, False] / n,
        "abstained": abstained / n,
        "n_questions": n,
        "mean_votes": votes / n,
    }


def score_flat(predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
    r"""
    Score one answer per question against the gold answers.

    Args:
        predictions (`list`):
            For each question, one answer. An unusable answer counts as wrong.
        references (`list`):
            For each question, the gold answer.

    Returns:
        `dict[str, float]`: These scores.

        - `accuracy`: share of questions whose answer is correct.
        - `abstained`: share of questions without a usable answer.
        - `n_questions`: number of questions.

    Raises:
        [`~md_trl.errors.InputError`]: If the two lists differ in length or are empty.
    """
    scores = score(
        cot=[[prediction] for prediction in predictions], pot=[[] for _ in predictions], references=references
    )
    return {key: scores[key] for key in ("accuracy", "abstained", "n_questions")}
