"""Merge the store of another machine, or of another job of an array, into this one."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from ..records import Question
from .claims import ABANDONED
from .owner import BATCH_OWNER, is_alive
from .questions import Questions
from .schema import open_database, transaction


class MergeSummary(NamedTuple):
    r"""
    What a merge added to a store.

    Args:
        questions (`int`):
            New questions.
        thoughts (`int`):
            New thoughts.
        known (`int`):
            Thoughts of the other store that this one already held.
    """

    questions: int
    thoughts: int
    known: int


_REQUEST = (
    "first_index, n, max_prompt_tokens, max_completion_tokens, owner, created_at, ended_at, usage, error, lost, served"
)
_THOUGHT = "sample_index, choice_index, text, finish_reason, stated, logprob"


class Merge:
    r"""
    Merges other stores into this one. [`Store.merge`] documents it.

    Args:
        db (`sqlite3.Connection`):
            The open store.
        questions ([`Questions`]):
            Its questions.
        file ([`~pathlib.Path`]):
            Its file.
    """

    def __init__(self, db: sqlite3.Connection, questions: Questions, file: Path):
        self._db, self._questions, self._file = db, questions, file

    def merge(self, file: Path) -> MergeSummary:
        """Add what another store holds in one transaction."""
        if not file.is_file():
            raise FileNotFoundError(f"There is no store at {file} to merge.")
        if file.samefile(self._file):
            raise InputError(f"{file} cannot be merged with itself.")
        other = open_database(file)
        try:
            other.execute("BEGIN")  # one state of the other store, even if somebody writes to it now
            _check_complete(other, file)
            with transaction(self._db):
                return self._add(other)
        finally:
            other.close()

    def _add(self, other: sqlite3.Connection) -> MergeSummary:
        rows = other.execute("SELECT key, id, task, split, question, answer FROM questions ORDER BY key").fetchall()
        added = self._questions.add(Question(*row) for _, *row in rows)
        questions = {key: self._questions.key(question_id) for key, question_id, *_ in rows}
        settings = {}
        for number, *setting in other.execute("SELECT id, model, prompt_hash, params FROM settings"):
            self._db.execute("INSERT OR IGNORE INTO settings (model, prompt_hash, params) VALUES (?, ?, ?)", setting)
            (settings[number],) = self._db.execute(
                "SELECT id FROM settings WHERE model = ? AND prompt_hash = ? AND params = ?", setting
            ).fetchone()
        for question, path, setting, n in other.execute("SELECT question, path, setting, n FROM wanted"):
            self._db.execute(
                "INSERT INTO wanted VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET n = max(n, excluded.n)",
                (questions[question], path, settings[setting], n),
            )
        new = known = 0
        requests = other.execute(f"SELECT id, question, path, setting, {_REQUEST} FROM requests ORDER BY id")
        for request, question, path, setting, *values in requests:
            thoughts = other.execute(
                f"SELECT {_THOUGHT} FROM thoughts WHERE question = ? AND path = ? AND setting = ? AND request = ?",
                (question, path, setting, request),
            ).fetchall()
            pair = (questions[question], path, settings[setting])
            count = self._add_request(pair, values, thoughts)
            new, known = new + count, known + len(thoughts) - count
        return MergeSummary(added, new, known)

    def _add_request(self, pair: tuple[int, str, int], values: list[Any], thoughts: list[tuple[Any, ...]]) -> int:
        """Add one request of the other store with its thoughts, and return the number of new ones."""
        stored = dict(
            self._db.execute(
                "SELECT sample_index, text FROM thoughts WHERE question = ? AND path = ? AND setting = ?", pair
            )
        )
        fields = dict(zip(_REQUEST.split(", "), values, strict=True))
        if self._is_known(pair, fields):
            return 0
        if thoughts and all(stored.get(index) == text for index, _, text, *_ in thoughts):
            return 0  # both stores imported them, or one was copied from the other
        if fields["ended_at"] is None:  # its process was killed
            fields |= {"ended_at": time.time(), "error": ABANDONED, "lost": 1}
        request = self._db.execute(
            f"INSERT INTO requests (question, path, setting, {_REQUEST}) VALUES ({', '.join('?' * 14)})",
            (*pair, *fields.values()),
        ).lastrowid
        for index, *rest in thoughts:
            # Two stores may have paid for the same sample: the second text is kept as a further sample.
            index = max(stored) + 1 if index in stored else index
            stored[index] = rest[1]
            self._db.execute(
                f"INSERT INTO thoughts (request, question, path, setting, {_THOUGHT}) VALUES ({', '.join('?' * 10)})",
                (request, *pair, index, *rest),
            )
        return len(thoughts)

    def _is_known(self, pair: tuple[int, str, int], fields: dict[str, Any]) -> bool:
        """Return whether this store has merged the request before. Its owner and time identify it."""
        row = self._db.execute(
            "SELECT 1 FROM requests WHERE question = ? AND path = ? AND setting = ? AND first_index = ? AND owner = ? "
            "AND created_at = ?",
            (*pair, fields["first_index"], fields["owner"], fields["created_at"]),
        ).fetchone()
        return row is not None


def _check_complete(other: sqlite3.Connection, file: Path) -> None:
    """Refuse a store that is still being sampled: what arrives later would not be merged."""
    rows = other.execute("SELECT owner, created_at FROM requests WHERE ended_at IS NULL").fetchall()
    batches = sum(owner == BATCH_OWNER for owner, _ in rows)
    if batches:
        raise InputError(
            f"{file} waits for {batches:,} requests of the Batch API. Run its `md-trl sample --batch` to the end "
            "before you merge it."
        )
    if open_requests := sum(is_alive(*row) for row in rows):
        raise InputError(
            f"{file} is still being sampled: {open_requests:,} requests are open. Merge it when the run has ended."
        )
