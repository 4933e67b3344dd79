"""Mix the thoughts of a teacher and of a student about one question: its type, and which thoughts are learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..distinct import thought_key
from ..mixing import mix_question
from ..records import PATHS, MixedRow, Question, QuestionType, Thought


OfPaths = Mapping[str, Sequence[Thought]]
"""Judged thoughts by path, in sample order."""


@dataclass(frozen=True)
class RefinedRow:
    r"""
    A question with the thoughts to learn, and where they come from.

    Args:
        row ([`~md_trl.records.MixedRow`]):
            The mixed row. It holds correct thoughts only; its counts and votes are those that its type comes from.
        by_teacher ([`~md_trl.records.QuestionType`]):
            Type by the teacher's thoughts.
        by_student ([`~md_trl.records.QuestionType`]):
            Type by the student's thoughts of this round.
        learned (`dict[str, int]`):
            Number of thoughts in the row that the `teacher` wrote, and the student: its `own`.
    """

    row: MixedRow
    by_teacher: QuestionType
    by_student: QuestionType
    learned: dict[str, int]


def mix_refined(
    question: Question,
    teacher: OfPaths,
    student: OfPaths,
    earlier: OfPaths,
    types_by: str,
    own_share: float,
    per_path: int,
) -> RefinedRow:
    r"""
    Mix the thoughts of one question.

    Args:
        question ([`~md_trl.records.Question`]):
            The question. Its answer is the one that thoughts were marked by.
        teacher (`Mapping[str, Sequence[Thought]]`):
            Judged thoughts of the teacher by path.
        student (`Mapping[str, Sequence[Thought]]`):
            Judged thoughts of the student in this round by path.
        earlier (`Mapping[str, Sequence[Thought]]`):
            Judged thoughts of earlier rounds by path. They are learned but have no vote.
        types_by (`str`), own_share (`float`), per_path (`int`):
            As in [`RefineOptions`].

    Returns:
        [`RefinedRow`]: The row, with a `repeat` of 1.
    """
    both = {path: [*teacher.get(path, ()), *student.get(path, ())] for path in PATHS}
    rows = {
        name: mix_question(question, *(thoughts.get(path, ()) for path in PATHS))
        for name, thoughts in (("teacher", teacher), ("student", student), ("both", both))
    }
    deciding = {"teacher": ("teacher", "student"), "student": ("student", "teacher")}
    candidates = [rows[name] for name in deciding.get(types_by, ("both", "teacher", "student"))]
    row = next((row for row in candidates if row.type != QuestionType.NEITHER), candidates[0])
    learned, counts = {}, {"teacher": 0, "own": 0}
    for path in PATHS:
        own = [*student.get(path, ()), *earlier.get(path, ())]
        of_teacher, of_student = choose(teacher.get(path, ()), own, path, own_share, per_path)
        learned[path] = [*of_teacher, *of_student]
        counts["teacher"] += len(of_teacher)
        counts["own"] += len(of_student)
    return RefinedRow(replace(row, **learned), rows["teacher"].type, rows["student"].type, counts)


def choose(
    teacher: Sequence[Thought], own: Sequence[Thought], path: str, own_share: float, per_path: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    r"""
    Choose the distinct correct thoughts of one question and path to learn.

    Args:
        teacher (`Sequence[Thought]`), own (`Sequence[Thought]`):
            Judged thoughts of the teacher and of the student, those to prefer first.
        path (`str`):
            Path of the thoughts.
        own_share (`float`), per_path (`int`):
            As in [`RefineOptions`].

    Returns:
        `tuple[list[dict], list[dict]]`: Those of the teacher and those of the student, at most `per_path` together, as
        thoughts of a mixed row. What both have written counts as the teacher's.
    """
    of_teacher = distinct(teacher, path)
    of_student = {key: thought for key, thought in distinct(own, path).items() if key not in of_teacher}
    if own_share == 0:
        most = 0
    elif own_share == 1 or not of_teacher:
        most = per_path
    else:
        slots = round(per_path * own_share)
        beside = min(len(of_teacher), per_path - slots)
        # One part in a billion, because 3 / (1 - 0.25) is no round number
        most = min(slots, int(beside * own_share / (1 - own_share) + 1e-9))
    chosen = list(of_student.values())[:most]
    rest = 0 if own_share == 1 and chosen else per_path - len(chosen)
    return list(of_teacher.values())[:rest], chosen


def distinct(thoughts: Sequence[Thought], path: str) -> dict[str, dict[str, Any]]:
    r"""
    Collect the distinct correct thoughts, in the order first seen.

    Args:
        thoughts (`Sequence[Thought]`):
            Judged thoughts of one question and path.
        path (`str`):
            The path.

    Returns:
        `dict[str, dict]`: By [`~md_trl.distinct.thought_key`], the first thought of each kind as in a mixed row, and
        how many were of its kind.
    """
    found: dict[str, dict[str, Any]] = {}
    for thought in thoughts:
        if thought.correct:
            new = {"text": thought.text, "answer": thought.answer, "correct": True, "count": 0}
            found.setdefault(thought_key(thought.text, path), new)["count"] += 1
    return found
