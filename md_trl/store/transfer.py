"""Import and export thought files."""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..tasks import TASKS
from .claims import Claims
from .owner import IMPORT_OWNER
from .questions import Questions
from .schema import transaction
from .selection import Selection, conditions
from .settings import Settings
from .thought_file import QuestionFinder, ThoughtLine, check_rows, write_thought_file


class ImportSummary(NamedTuple):
    r"""
    What an import added to a store.

    Args:
        questions (`int`):
            New questions.
        thoughts (`int`):
            New thoughts.
        known (`int`):
            Thoughts of the file that the store already held.
        known_questions (`int`):
            Questions of the file that the store already held.
    """

    questions: int
    thoughts: int
    known: int
    known_questions: int


class _Series:
    """The thoughts of one question, path and setting during an import."""

    def __init__(self, texts: Counter[str], taken: set[int]):
        self.unmatched = texts  # Stored thoughts that no line of the file has matched yet.
        self._taken = taken

    def next_index(self, wanted: int | None) -> int:
        """The sample index of a new thought: the wanted one if it is free, else the first after all others."""
        index = max(self._taken, default=-1) + 1 if wanted is None or wanted in self._taken else wanted
        self._taken.add(index)
        return index


class Transfer:
    r"""
    Import into a store and export from it. [`Store.import_thoughts`] and [`Store.export_thoughts`] document both.

    Args:
        db (`sqlite3.Connection`):
            The open store.
        questions ([`Questions`]):
            Its questions.
        settings ([`Settings`]):
            Its settings.
        claims ([`Claims`]):
            Its claims.
    """

    def __init__(self, db: sqlite3.Connection, questions: Questions, settings: Settings, claims: Claims):
        self._db, self._questions, self._settings, self._claims = db, questions, settings, claims

    def export_thoughts(self, file: str | Path, selection: Selection) -> int:
        """Write the selected thoughts to a thought file, and return their number."""
        return write_thought_file(file, self._rows(selection))

    def import_rows(self, rows: Iterable[tuple[str, Any]], task: str | None, split: str) -> ImportSummary:
        """Add the thoughts of rows, each with its name in messages, in one transaction."""
        new_thoughts = known = 0
        new_questions, known_questions = set(), set()
        with transaction(self._db):
            finder = QuestionFinder(self._questions.load(), split)
            tasks = [task] if task is not None else {*TASKS, *(question.task for question in finder.by_id.values())}
            series: dict[tuple[str, str, int], _Series] = {}
            for line in check_rows(rows, tasks):
                question = finder.find(line)
                if question is None:
                    question = finder.new(line)
                    (new_questions if self._questions.add([question]) else known_questions).add(question.id)
                    finder.add(question)
                elif question.id not in new_questions:
                    known_questions.add(question.id)
                of_line = (question.id, line.path, self._settings.number(line.model, line.prompt_hash, line.params))
                if of_line not in series:
                    series[of_line] = self._series(*of_line)
                if series[of_line].unmatched[line.text] > 0:
                    series[of_line].unmatched[line.text] -= 1
                    known += 1
                else:
                    self._add(*of_line, series[of_line].next_index(line.index), line)
                    new_thoughts += 1
        return ImportSummary(len(new_questions), new_thoughts, known, len(known_questions))

    def _series(self, question_id: str, path: str, setting: int) -> _Series:
        texts = self._db.execute(
            "SELECT text FROM thoughts WHERE question = ? AND path = ? AND setting = ?",
            (self._questions.key(question_id), path, setting),
        )
        return _Series(Counter(text for (text,) in texts), self._claims.taken(question_id, path, setting))

    def _add(self, question_id: str, path: str, setting: int, index: int, line: ThoughtLine) -> None:
        question, now = self._questions.key(question_id), time.time()
        request = self._db.execute(
            "INSERT INTO requests (question, path, setting, first_index, n, owner, created_at, ended_at, usage) "
            "VALUES (?, ?, ?, ?, 1, ?, ?, ?, ?)",
            (question, path, setting, index, IMPORT_OWNER, now, now, json.dumps(line.usage, sort_keys=True)),
        ).lastrowid
        self._db.execute(
            "INSERT INTO thoughts (request, question, path, setting, sample_index, choice_index, text, finish_reason, "
            "stated, logprob) VALUES (?, ?, ?, ?, ?, 0, ?, ?, ?, ?)",
            (request, question, path, setting, index, line.text, line.finish_reason, line.answer, line.logprob),
        )

    def _rows(self, selection: Selection) -> Iterator[dict[str, Any]]:
        where, values = conditions(selection, "t")
        # Settings are sorted by their content, because their numbers differ from store to store.
        rows = self._db.execute(
            "SELECT q.task, q.id, q.split, q.question, q.answer, t.path, t.sample_index, t.text, t.finish_reason, "
            "t.stated, t.logprob, s.model, s.prompt_hash, s.params, iif(t.choice_index = 0, r.usage, '{}') "
            "FROM thoughts t JOIN questions q ON q.key = t.question JOIN settings s ON s.id = t.setting "
            f"JOIN requests r ON r.id = t.request WHERE {where} "
            "ORDER BY q.key, t.path, s.model, s.prompt_hash, s.params, t.sample_index",
            values,
        )
        names = ("task", "id", "split", "question", "gold", "path", "index", "text", "finish_reason")
        for *columns, stated, logprob, model, prompt_hash, params, usage in rows:
            row = dict(zip(names, columns, strict=True))
            params = json.loads(params) | ({"prompt_hash": prompt_hash} if prompt_hash else {})
            if stated is not None:
                row["answer"] = stated
            if logprob is not None:
                row["logprob"] = logprob
            if model:
                row["model"] = model
            if params:
                row["params"] = params
            if usage != "{}":
                row["usage"] = json.loads(usage)
            yield row
