"""Mix the thoughts of a teacher and of a student about one question: its type, and which thoughts are learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    can_write: Callable[[str], bool],
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
        can_write (`Callable`):
            Whether the student's tokenizer preserves a program. A student may write what its tokenizer does not read
            in the same way, and cannot learn it.

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
        own = [thought for thought in (*student.get(path, ()), *earlier.get(path, ())) if thought.correct]
        if path == "pot":
            written = {text for text in {thought.text for thought in own} if can_write(text)}
            own = [thought for thought in own if thought.text in written]
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
    most = min(len(of_student), per_path)
    if own_share in (0, 1) or not of_teacher:
        own_count = most if own_share else 0
        rest = 0 if own_share == 1 and own_count else per_path - own_count
    else:
        # As many own thoughts as the share allows beside the teacher's; 1e-9, because 0.1 * 30 is above 3
        sizes = ((count, min(len(of_teacher), per_path - count)) for count in range(most, -1, -1))
        own_count, rest = next(size for size in sizes if size[0] <= own_share * sum(size) + 1e-9)
    return list(of_teacher.values())[:rest], list(of_student.values())[:own_count]


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
    keys: dict[str, str] = {}  # Many samples of one question are the same text
    found: dict[str, dict[str, Any]] = {}
    for thought in thoughts:
        if thought.correct:
            if thought.text not in keys:
                keys[thought.text] = thought_key(thought.text, path)
            new = {"text": thought.text, "answer": thought.answer, "correct": True, "count": 0}
            found.setdefault(keys[thought.text], new)["count"] += 1
    return found
