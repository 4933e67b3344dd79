"""Evaluation: judged thoughts of a student come in, accuracies with their number of votes go out (Sec. 4)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from .answers import equal
from .errors import InputError
from .mixing import type_of
from .records import Question, Thought
from .voting import majority, score, vote, vote_two


def evaluate_thoughts(questions: Sequence[Question], thoughts: Iterable[Thought], n: int) -> dict[str, Any]:
    r"""
    Score the votes of a student.

    Every accuracy states its number of votes N. A single-path figure votes over the first N thoughts of the path, a
    joint figure (Eq. 5) over the first N/2 of each. Unusable thoughts do not vote, and a question without an answer is
    counted wrong.

    Args:
        questions (`Sequence[Question]`):
            The questions asked.
        thoughts (`Iterable[Thought]`):
            Judged thoughts. Their `index` orders them.
        n (`int`):
            Thoughts of a path to use.

    Returns:
        `dict`: with `n_questions` and those of the following that the paths sampled allow. `cot`, `pot`, `joint`:
        lists of `{"votes", "accuracy"}`, one for each number of votes; `n2`: accuracy and mean samples of the rule
        for N=2 (Sec. 4.4.2: one PoT, and only if it does not run, one CoT); `solved_by`: shares of questions solved
        by `both`, `cot_only`, `pot_only`, `neither` (Fig. 1); `joint_by_type`: accuracy of the joint vote over all
        thoughts by the type of the question for this student; `label`: accuracy of the bare answers; `usable`: share
        of thoughts that reach an answer, a path.

    Raises:
        `ValueError`: a question without the `n` thoughts asked for.
    """
    answers: dict[str, dict[str, list[str | None]]] = defaultdict(dict)
    for thought in sorted(thoughts, key=lambda thought: thought.index):
        answers[thought.path].setdefault(thought.question_id, []).append(thought.answer)
    for path, by_question in answers.items():
        wanted = 1 if path == "label" else n
        for question in questions:
            found = len(by_question.get(question.id, []))
            if found < wanted:
                raise InputError(
                    f"{question.id!r} has {found} of {wanted} {path} thoughts. Run the same sampling again: it asks "
                    "for what is missing."
                )
            by_question[question.id] = by_question[question.id][:wanted]

    def accuracy(predictions: Iterable[str | None]) -> float:
        pairs = zip(predictions, questions, strict=True)
        return sum(p is not None and equal(p, q.answer) for p, q in pairs) / len(questions)

    result: dict[str, Any] = {"n_questions": len(questions), "usable": {}}
    for path, by_question in answers.items():
        flat = [answer for q in questions for answer in by_question[q.id]]
        result["usable"][path] = sum(answer is not None for answer in flat) / len(flat)
    if "label" in answers:
        result["label"] = accuracy(answers["label"][q.id][0] for q in questions)
    for path in ("cot", "pot"):
        if path in answers:
            of_path = [answers[path][q.id] for q in questions]
            result[path] = [
                {"votes": k, "accuracy": accuracy(majority(a[:k]) for a in of_path)} for k in range(1, n + 1)
            ]
    if "cot" in answers and "pot" in answers:
        cot, pot = ([answers[path][q.id] for q in questions] for path in ("cot", "pot"))
        result["joint"] = [
            {"votes": 2 * k, "accuracy": accuracy(vote(c[:k], p[:k]) for c, p in zip(cot, pot, strict=True))}
            for k in range(1, n + 1)
        ]
        result["n2"] = {
            "accuracy": accuracy(vote_two(p[0], c[0]) for c, p in zip(cot, pot, strict=True)),
            "mean_samples": sum(1 if p[0] is not None else 2 for p in pot) / len(questions),
        }
        scores = score(cot, pot, [q.answer for q in questions])
        result["solved_by"] = {key: scores[key] for key in ("both", "cot_only", "pot_only", "neither")}
        result["joint_by_type"] = _joint_by_type(cot, pot, questions)
    return result


def _joint_by_type(cot, pot, questions: Sequence[Question]) -> dict[str, dict[str, float]]:
    right: dict[int, list[bool]] = {type_: [] for type_ in (1, 2, 3, 4)}
    for c, p, question in zip(cot, pot, questions, strict=True):
        by_cot, by_pot, by_both = (
            answer is not None and equal(answer, question.answer) for answer in (majority(c), majority(p), vote(c, p))
        )
        right[type_of(by_cot, by_pot)].append(by_both)
    return {
        str(type_): {"n_questions": len(hits), "accuracy": sum(hits) / len(hits) if hits else 0.0}
        for type_, hits in right.items()
    }


def at_votes(figures: list[dict[str, float]], votes: int) -> float | None:
    """The accuracy of a list of figures at a number of votes, `None` if that number was not measured."""
    return next((figure["accuracy"] for figure in figures if figure["votes"] == votes), None)
