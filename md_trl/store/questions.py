"""The questions of a store."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

from ..errors import InputError
from ..records import Question
from ..tasks import SPLITS, TASKS
from .schema import transaction


class Questions:
    r"""
    The questions of a store, in the order they were added.

    Args:
        db (`sqlite3.Connection`):
            The open store.
        file ([`~pathlib.Path`]):
            Its file, for messages.
    """

    def __init__(self, db: sqlite3.Connection, file: Path):
        self._db, self._file = db, file

    def add(self, questions: Iterable[Question]) -> int:
        r"""
        Add the questions that the store does not hold yet.

        Args:
            questions (`Iterable[Question]`):
                Questions of any tasks and splits.

        Returns:
            `int`: The number of questions added.

        Raises:
            `InputError`: The store holds another question, answer or split under one of the ids, or a question of
                one's own that was in the other split before. Nothing is added.
        """
        added = 0
        with transaction(self._db):
            for question in questions:
                row = (question.id, question.task, question.split, question.question, question.answer)
                is_new = self._db.execute(
                    "INSERT OR IGNORE INTO questions (id, task, split, question, answer) VALUES (?, ?, ?, ?, ?)", row
                ).rowcount
                if not is_new:
                    self._check_same(question)
                elif question.task not in TASKS:
                    self._check_split(question)
                added += is_new
        return added

    def _check_same(self, question: Question) -> None:
        row = self._db.execute(
            "SELECT id, task, split, question, answer FROM questions WHERE id = ?", (question.id,)
        ).fetchone()
        known = Question(*row)
        if known != question:
            raise InputError(
                f"{self._file} holds {known.id!r} as {known.question!r} with the answer {known.answer!r} (split "
                f"{known.split!r}), but now it is {question.question!r} with {question.answer!r} (split "
                f"{question.split!r}). Use the data the store was created with, or another `--store`."
            )

    def _check_split(self, question: Question) -> None:
        """Raise an error if a question of one's own has moved to another split, because its file has grown."""
        name = question.id.removeprefix(f"{question.task}/{question.split}/")
        for split in SPLITS:
            row = self._db.execute(
                "SELECT question FROM questions WHERE id = ? AND id != ?",
                (f"{question.task}/{split}/{name}", question.id),
            ).fetchone()
            if row == (question.question,):
                raise InputError(
                    f"{self._file} holds the question {name!r} of {question.task} in the split {split!r}, but now it "
                    f"is in {question.split!r}: {question.question!r:.200}. A split that is drawn changes with the "
                    "seed and as questions are added. Write the split of each question into the column `split` of "
                    "its file, or use another `--store`."
                )

    def load(self, task: str | None = None, split: str | None = None) -> list[Question]:
        r"""
        Load the questions.

        Args:
            task (`str`, *optional*):
                Load only questions of this task.
            split (`str`, *optional*):
                Load only questions of this split.

        Returns:
            `list[Question]`: The questions, in the order they were added.
        """
        rows = self._db.execute(
            "SELECT id, task, split, question, answer FROM questions "
            "WHERE (?1 IS NULL OR task = ?1) AND (?2 IS NULL OR split = ?2) ORDER BY key",
            (task, split),
        )
        return [Question(*row) for row in rows]

    def key(self, question_id: str) -> int:
        r"""
        Look up the key that the other tables know a question by.

        Args:
            question_id (`str`):
                Id of the question.

        Returns:
            `int`: Its key in the table `questions`.

        Raises:
            `InputError`: The store does not hold the question.
        """
        row = self._db.execute("SELECT key FROM questions WHERE id = ?", (question_id,)).fetchone()
        if row is None:
            raise InputError(f"{self._file} has no question {question_id!r}. Add it with `store.questions.add` first.")
        return row[0]
