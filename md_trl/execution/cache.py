"""Results from run to run, by program text, in one table of an SQLite file."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import astuple
from importlib.metadata import distributions
from pathlib import Path

from .results import LOST, Limits, Result


_TABLE = "CREATE TABLE IF NOT EXISTS execution_results (key BLOB PRIMARY KEY, result TEXT NOT NULL) WITHOUT ROWID"
_BATCH = 500


class Cache:
    r"""
    Results of programs that ran before.

    A result is found again for the same text, engine and limits, as long as nothing has changed that runs programs:
    this package's execution, Python, Monty, numpy, sympy. What a machine lacks (`unsupported`) and a lost worker are
    not kept, a time-out is.

    Args:
        path (`str` or `Path`):
            SQLite file. If it is to be a thought store's too, the store must have made it.
        engine (`str`):
            The executor's engine.
        limits ([`~md_trl.execution.Limits`]):
            The executor's limits.
    """

    def __init__(self, path: str | Path, engine: str, limits: Limits):
        self.path = Path(path)
        self._setting = repr((_rules(), engine, astuple(limits))).encode()

    def read(self, texts: Iterable[str]) -> dict[str, Result]:
        """The results of those texts that have one."""
        text_of = {self._key(text): text for text in texts}
        keys, found = list(text_of), {}
        with closing(self._connect()) as db:
            for start in range(0, len(keys), _BATCH):
                some = keys[start : start + _BATCH]
                marks = ",".join("?" * len(some))
                for key, result in db.execute(f"SELECT * FROM execution_results WHERE key IN ({marks})", some):
                    found[text_of[key]] = Result(*json.loads(result))
        return found

    def write(self, results: Mapping[str, Result]) -> None:
        """Keep results; those that are there stay."""
        rows = [
            (self._key(text), json.dumps(astuple(result)))
            for text, result in results.items()
            if result.status != "unsupported" and not (result.error or "").startswith(LOST)
        ]
        if rows:
            with closing(self._connect()) as db, db:
                db.executemany("INSERT OR IGNORE INTO execution_results VALUES (?, ?)", rows)

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=60)
        db.execute(_TABLE)
        return db

    def _key(self, text: str) -> bytes:
        return hashlib.sha256(self._setting + text.encode("utf-8", "surrogatepass")).digest()


def _rules() -> list[str]:
    """Everything that may change what a program comes to: this room's own source, and what runs the programs."""
    sources = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
    found = {name: [d.version for d in distributions(name=name)] for name in ("pydantic-monty", "numpy", "sympy")}
    return [hashlib.sha256(sources).hexdigest(), repr(found), sys.version]
