"""The catalog: what is known about every question except its thoughts, in an SQLite file of the explorer's own.

The texts of thoughts stay in Parquet files. The catalog knows where, and reads those of one question at a time.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from pyarrow.parquet import ParquetFile

from ..answers import equal
from ..mixing import lambda_of, type_of
from ..records import PATHS
from ..voting import majority, vote
from ..weighting import thought_text


THOUGHT_COLUMNS = (*PATHS, *(f"{path}_unusable" for path in PATHS))
"""Columns of Parquet rows that hold lists of thoughts. Mixed rows have only the first two."""
_BATCH_ROWS = 64
"""Rows whose thoughts are in memory at a time."""
_SCHEMA = """
-- `model` and `params` (JSON) are those of the settings of a store, and null for other sources.
CREATE TABLE authors (
    author INTEGER PRIMARY KEY, name TEXT NOT NULL, source TEXT NOT NULL, model TEXT, params TEXT,
    UNIQUE (name, source)
);
CREATE TABLE files (file INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE);
CREATE TABLE notes (text TEXT NOT NULL);
-- `type` is null if a path was not sampled. `vote` is the joint vote, or `label`, the bare answer, without thoughts;
-- `correct` whether it is right; `cot_chars` the mean length of a CoT thought in characters;
-- `trainable` whether the thoughts are for training, so that they have weights in the loss.
CREATE TABLE rows (
    n INTEGER PRIMARY KEY, author INTEGER NOT NULL REFERENCES authors, id TEXT NOT NULL, task TEXT, split TEXT,
    question TEXT, answer TEXT NOT NULL, type INTEGER, lambda REAL, repeat INTEGER,
    n_cot INTEGER NOT NULL, n_pot INTEGER NOT NULL, n_cot_correct INTEGER NOT NULL, n_pot_correct INTEGER NOT NULL,
    cot_vote TEXT, pot_vote TEXT, vote TEXT, correct INTEGER NOT NULL, agreement TEXT NOT NULL,
    n_label INTEGER NOT NULL, label TEXT, trainable INTEGER NOT NULL,
    cot_chars REAL, pot_chars REAL, tokens INTEGER, cost REAL,
    file INTEGER NOT NULL REFERENCES files, row_group INTEGER NOT NULL, position INTEGER NOT NULL
);
CREATE INDEX rows_of_an_author ON rows (author, type);
CREATE INDEX rows_of_a_question ON rows (id, author);
"""


class Place(NamedTuple):
    """Where a row is: the number of its file, its row group there, and its position in that."""

    file: int
    row_group: int
    position: int


def agreement_of(cot_vote: str | None, pot_vote: str | None) -> str:
    """Say whether the votes of both paths agree: `agree`, `differ`, `one` if only one path votes, or `none`."""
    if cot_vote is None or pot_vote is None:
        return "none" if cot_vote is pot_vote else "one"
    return "agree" if equal(cot_vote, pot_vote) else "differ"


def normalize_thoughts(thoughts: Iterable[Any] | None, gold: str) -> list[dict[str, Any]]:
    r"""
    Bring the thoughts of a mixed row into one form.

    Args:
        thoughts (`Iterable`, *optional*):
            Dictionaries as in [`~md_trl.records.MixedRow`], or plain texts, which count as correct.
        gold (`str`):
            Gold answer, which plain texts reach.

    Returns:
        `list[dict]`: Each with `text` (`None` if it was not kept), `answer`, `correct` and `count`.
    """
    normal = []
    for thought in thoughts or []:
        if not isinstance(thought, dict):
            thought = {"text": thought, "answer": gold, "correct": True}
        text, count = thought.get("text"), thought.get("count")
        normal.append(
            {
                "text": None if text is None else thought_text(text),
                "answer": thought.get("answer"),
                "correct": bool(thought.get("correct")),
                "count": 1 if count is None else count,
            }
        )
    return normal


def summarize(row: Mapping[str, Any]) -> dict[str, Any]:
    r"""
    Compute what the catalog holds about a row.

    Args:
        row (`Mapping`):
            Columns of a mixed row. Those that follow from the thoughts may be missing. `cot_unusable` and
            `pot_unusable` may list thoughts that reach no answer, `label` bare answers; `split`, `tokens`, `cost` and
            `trainable` may be given.

    Returns:
        `dict`: The columns of the catalog without author and place.
    """
    gold = row["answer"]
    summary = {name: row.get(name) for name in ("id", "task", "split", "question", "answer", "tokens", "cost")}
    answers, solved = {}, {}
    for path in PATHS:
        thoughts = normalize_thoughts(row[path], gold)
        unusable = row.get(f"{path}_unusable") or []
        # In the order first seen, so that ties fall as they do among the samples themselves
        answers[path] = [thought["answer"] for thought in thoughts for _ in range(thought["count"])]
        # The vote over a known vote is that vote in canonical form
        summary[f"{path}_vote"] = majority([row[f"{path}_vote"]] if f"{path}_vote" in row else answers[path])
        solved[path] = summary[f"{path}_vote"] is not None and equal(summary[f"{path}_vote"], gold)
        sampled = len(answers[path]) + sum(thought["count"] for thought in unusable)
        correct = sum(thought["count"] for thought in thoughts if thought["correct"])
        summary[f"n_{path}"] = _known(row.get(f"n_{path}"), sampled)
        summary[f"n_{path}_correct"] = _known(row.get(f"n_{path}_correct"), correct)
        texts = [(t["text"], t["count"]) for t in (*thoughts, *unusable) if t["text"] is not None]
        written = sum(count for _, count in texts)
        summary[f"{path}_chars"] = sum(len(text) * n for text, n in texts) / written if written else None
    labels = row.get("label") or []
    summary["n_label"], summary["label"] = len(labels), majority(labels)
    paths_sampled = [path for path in PATHS if summary[f"n_{path}"]]
    summary["vote"] = vote(*(answers[path] for path in PATHS)) if paths_sampled else summary["label"]
    summary["correct"] = summary["vote"] is not None and equal(summary["vote"], gold)
    summary["agreement"] = agreement_of(summary["cot_vote"], summary["pot_vote"])
    computed = int(type_of(solved["cot"], solved["pot"])) if len(paths_sampled) == len(PATHS) else None
    summary["type"] = _known(row.get("type"), computed)
    summary["trainable"] = bool(row.get("trainable"))
    lambda_ = lambda_of(summary["n_cot_correct"], summary["n_pot_correct"])
    summary["lambda"] = None if summary["type"] is None else _known(row.get("lambda"), lambda_)
    summary["repeat"] = row.get("repeat")
    return summary


def _known(value: Any, computed: Any) -> Any:
    return computed if value is None else value


class Catalog:
    r"""
    What is known about the questions that are explored. Any thread may read it.

    Args:
        folder (`str` or [`~pathlib.Path`]):
            Folder of the explorer's own, in which the catalog is created.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._file = self.folder / "catalog.db"
        with closing(sqlite3.connect(self._file)) as db:
            db.executescript(_SCHEMA)

    def connect(self) -> closing[sqlite3.Connection]:
        """Open the catalog to read it, for the length of a `with` block."""
        db = sqlite3.connect(f"{self._file.resolve().as_uri()}?mode=ro", uri=True)
        db.row_factory = sqlite3.Row
        return closing(db)

    def add_author(
        self, name: str, source: str, model: str | None = None, params: Mapping[str, Any] | None = None
    ) -> int:
        r"""
        Return the number of an author, and add it if it is new.

        Args:
            name (`str`), source (`str`):
                Its name, and where it is from. Two sources may have an author of the same name.
            model (`str`, *optional*), params (`Mapping`, *optional*):
                Model and sampling parameters, if the source is a store.

        Returns:
            `int`: The number.
        """
        values = name, source, model, None if params is None else json.dumps(params)
        with closing(sqlite3.connect(self._file)) as db, db:
            db.execute("INSERT OR IGNORE INTO authors (name, source, model, params) VALUES (?, ?, ?, ?)", values)
            found = db.execute("SELECT author FROM authors WHERE name = ? AND source = ?", (name, source))
            return found.fetchone()[0]

    def authors_of_stores(self) -> list[tuple[int, str, dict[str, Any]]]:
        """Return the authors of all stores: number, model and sampling parameters."""
        with self.connect() as db:
            found = db.execute("SELECT author, model, params FROM authors WHERE model IS NOT NULL ORDER BY author")
            return [(author, model, json.loads(params)) for author, model, params in found]

    def rows_of(self, author: int, task: str, split: str) -> list[sqlite3.Row]:
        """Return the rows of an author for one task and split, in order."""
        with self.connect() as db:
            query = "SELECT * FROM rows WHERE author = ? AND task = ? AND split = ? ORDER BY n"
            return db.execute(query, (author, task, split)).fetchall()

    def rename_author(self, author: int, name: str) -> None:
        """Rename an author, unless another one of its source has this name."""
        with closing(sqlite3.connect(self._file)) as db, db:
            db.execute("UPDATE OR IGNORE authors SET name = ? WHERE author = ?", (name, author))

    def join_result(self, author: int, labels: Mapping[str, Iterable[str | None]]) -> None:
        """Add the bare answers to questions, by id, of an author that was evaluated, not sampled for training."""
        with closing(sqlite3.connect(self._file)) as db, db:
            db.execute("UPDATE rows SET trainable = 0 WHERE author = ?", (author,))
            for id, answers in labels.items():
                answers = list(answers)
                values = len(answers), majority(answers), id, author
                db.execute("UPDATE rows SET n_label = ?, label = ? WHERE id = ? AND author = ?", values)

    def add_file(self, path: str | Path) -> int:
        """Return the number of a new Parquet file."""
        with closing(sqlite3.connect(self._file)) as db, db:
            return db.execute("INSERT INTO files (path) VALUES (?)", (str(Path(path).resolve()),)).lastrowid

    def add_note(self, text: str) -> None:
        """Add a note that the page shows, about what a source does not hold."""
        with closing(sqlite3.connect(self._file)) as db, db:
            db.execute("INSERT INTO notes VALUES (?)", (text,))

    def add_rows(self, rows: Iterable[tuple[int, Place, Mapping[str, Any]]]) -> None:
        r"""
        Add rows.

        Args:
            rows (`Iterable[tuple[int, Place, Mapping]]`):
                The number of the author, the place and the content of each row, see [`summarize`].
        """
        with closing(sqlite3.connect(self._file)) as db, db:
            for author, place, row in rows:
                values = summarize(row) | place._asdict() | {"author": author}
                marks = ", ".join("?" * len(values))
                db.execute(f"INSERT INTO rows ({', '.join(values)}) VALUES ({marks})", list(values.values()))

    def finish(self) -> None:
        """Give rows without the text of their question the one of another source, once all rows are added."""
        with closing(sqlite3.connect(self._file)) as db, db:
            db.execute(
                "UPDATE rows SET question = (SELECT q.question FROM rows q WHERE q.id = rows.id AND q.question IS NOT "
                "NULL LIMIT 1) WHERE question IS NULL"
            )
            db.execute("ANALYZE")

    def read_thoughts(self, n: int) -> dict[str, list[dict[str, Any]]]:
        """Read the thoughts of one row: `cot`, `pot`, and those without an answer, `cot_unusable`, `pot_unusable`."""
        with self.connect() as db:
            where = db.execute(f"{_WITH_PLACE} WHERE n = ?", (n,)).fetchone()
        return next(thoughts for _, thoughts in _read([where]))

    def iterate_thoughts(self, rows: Iterable[sqlite3.Row]) -> Iterator[tuple[sqlite3.Row, dict[str, Any]]]:
        """Read the thoughts of rows of the table `rows` in the order of their `n`, a few rows at a time."""
        with self.connect() as db:
            files = dict(db.execute("SELECT file, path FROM files").fetchall())
        return _read(rows, files)


_WITH_PLACE = "SELECT rows.*, files.path FROM rows JOIN files USING (file)"


def _read(
    rows: Iterable[sqlite3.Row], files: Mapping[int, str] | None = None
) -> Iterator[tuple[sqlite3.Row, dict[str, Any]]]:
    """Read the thoughts of rows that are sorted by place. Each row group is read once, a batch at a time."""
    opened, group, batches, first, batch = None, None, iter(()), 0, None
    try:
        for row in rows:
            if group != (row["file"], row["row_group"]):
                if opened is None or group[0] != row["file"]:
                    if opened is not None:
                        opened.close()
                    opened = ParquetFile(row["path"] if files is None else files[row["file"]])
                    columns = [name for name in THOUGHT_COLUMNS if name in opened.schema_arrow.names]
                group = row["file"], row["row_group"]
                batches = opened.iter_batches(_BATCH_ROWS, row_groups=[row["row_group"]], columns=columns)
                first, batch = 0, next(batches)
            while row["position"] >= first + batch.num_rows:
                first += batch.num_rows
                batch = next(batches)
            found = batch.slice(row["position"] - first, 1).to_pylist()[0]
            thoughts = {path: normalize_thoughts(found[path], row["answer"]) for path in PATHS}
            yield row, thoughts | {f"{path}_unusable": found.get(f"{path}_unusable") or [] for path in PATHS}
    finally:
        if opened is not None:
            opened.close()
