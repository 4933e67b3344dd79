"""Labels for questions without a gold answer: what both paths of a student agree on, if they are sure of it.

Self-consistency stands in for a judge (https://huggingface.co/papers/2411.04109). How sure a vote must be is learned
on validation questions, whose gold answers are known and which the student has not been trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..answers import equal
from ..errors import InputError
from ..evaluation import EvaluationResult
from ..records import Question
from ..voting import majority, tally


@dataclass(frozen=True)
class Agreement:
    r"""
    What both paths agree on.

    Args:
        answer (`str`):
            The answer in canonical form: the vote of each path, and the joint one.
        confidence (`float`):
            Its share of the joint vote.
    """

    answer: str
    confidence: float


def agreement(cot: Sequence[str | None], pot: Sequence[str | None]) -> Agreement | None:
    r"""
    Return what both paths of a student agree on.

    Args:
        cot (`Sequence[str | None]`), pot (`Sequence[str | None]`):
            Answers of the thoughts of each path in sample order, `None` for an unusable thought.

    Returns:
        [`Agreement`], *optional*: `None` if the votes of the paths differ, or one of them has none.
    """
    joint = tally(cot, pot)
    if joint.answer is None or not majority(cot) == majority(pot) == joint.answer:
        return None
    return Agreement(joint.answer, joint.confidence)


def learn_threshold(found: Iterable[tuple[Agreement | None, bool]], precision: float) -> float | None:
    r"""
    Return the least confidence from which on labels are right often enough.

    Args:
        found (`Iterable[tuple[Agreement | None, bool]]`):
            What the paths agree on for questions with known answers, and whether it is right.
        precision (`float`):
            Share of right labels to reach.

    Returns:
        `float`, *optional*: The confidence; `None` if no confidence is enough.
    """
    pairs = sorted(((label.confidence, right) for label, right in found if label is not None), reverse=True)
    threshold, right = None, 0
    for count, (confidence, is_right) in enumerate(pairs, 1):
        right += is_right
        ends_group = count == len(pairs) or pairs[count][0] < confidence
        if ends_group and right >= precision * count:
            threshold = confidence
    return threshold


def threshold_of(result: EvaluationResult, precision: float) -> float | None:
    """Learn the threshold from the answers of a student to validation questions, see [`learn_threshold`]."""
    labels = [(agreement(q.cot, q.pot), q) for q in result.questions]
    return learn_threshold(
        ((label, label is not None and q.is_correct(label.answer)) for label, q in labels), precision
    )


def label_figures(labels: Mapping[str, str], questions: Sequence[Question]) -> dict[str, Any]:
    r"""
    Report how many questions have a label, and how many labels are right where the gold answer is known.

    Args:
        labels (`Mapping[str, str]`):
            Labels by question id.
        questions (`Sequence[Question]`):
            All questions that could have one, with their gold answers, which are empty if unknown.

    Returns:
        `dict`: `questions`, `labelled`, `coverage`, and over the labels whose gold answer is known `known` and
        `precision` (`None` if there is none).
    """
    labelled = [question for question in questions if question.id in labels]
    known = [question for question in labelled if question.answer]
    right = sum(equal(labels[question.id], question.answer) for question in known)
    return {
        "questions": len(questions),
        "labelled": len(labelled),
        "coverage": len(labelled) / len(questions) if questions else 0.0,
        "known": len(known),
        "precision": right / len(known) if known else None,
    }


def read_unlabelled(file: str | Path, task: str) -> list[Question]:
    r"""
    Read questions without gold answers.

    Args:
        file (`str` or `Path`):
            JSONL file of rows with `question` and optionally `id`.
        task (`str`):
            Task that they belong to.

    Returns:
        `list[Question]`: Training questions of the task with an empty answer, each text once.

    Raises:
        [`~md_trl.errors.InputError`]: If there is no such file or no row, or a row cannot be read.
    """
    if not Path(file).is_file():
        raise InputError(f"There is no file {file}. Name a JSONL file of questions as `unlabelled`.")
    questions: dict[str, Question] = {}
    for number, line in enumerate(Path(file).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text = row["question"].strip()
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
            text = ""
        if not text:
            raise InputError(f"{file}, row {number}: {line[:80]!r} has no `question`. Write it as a JSON object.")
        name = str(row.get("id") or hashlib.sha256(text.encode()).hexdigest()[:12])
        id_ = name if name.startswith(f"{task}/train/") else f"{task}/train/{name}"
        questions.setdefault(text, Question(id_, task, "train", text, ""))
    if not questions:
        raise InputError(f"{file} has no questions.")
    if len({question.id for question in questions.values()}) < len(questions):
        raise InputError(f"{file} has several questions with one `id`. Give each its own.")
    return list(questions.values())
