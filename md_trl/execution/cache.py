"""Keep the results of programs between runs, by program text, in an SQLite file of its own."""

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

from .results import WORKER_LOST, Limits, Result


_CREATE_TABLE = "CREATE TABLE IF NOT EXISTS results (key BLOB PRIMARY KEY, result TEXT NOT NULL) WITHOUT ROWID"
_KEYS_PER_QUERY = 500


def default_cache(store_file: str | Path) -> Path:
    r"""
    Return the file that keeps the results of a thought store's programs: `thoughts.results.db` beside `thoughts.db`.

    Args:
        store_file (`str` or `Path`):
            File of the thought store.

    Returns:
        `Path`: File of the cache. It may be deleted at any time; programs then run again.

    Examples:

    ```python
    >>> from md_trl.execution import default_cache

    >>> default_cache("runs/thoughts.db").name
    'thoughts.results.db'
    ```
    """
    store_file = Path(store_file)
    return store_file.with_name(f"{store_file.name.removesuffix('.db')}.results.db")


class Cache:
    r"""
    Results of programs that ran before.

    A result is reused for the same text, engine and limits, as long as the code that runs programs is the same: this
    module, Python, Monty, numpy and sympy. Timeouts are kept. Results with the status `unsupported` and those of lost
    workers are not, because they depend on the machine.

    Args:
        file (`str` or `Path`):
            SQLite file, created if it does not exist.
        engine (`str`):
            Engine of the executor.
        limits ([`~md_trl.execution.Limits`]):
            Limits of the executor.
    """

    def __init__(self, file: str | Path, engine: str, limits: Limits):
        self.file = Path(file)
        self._key_prefix = repr((_code_versions(), engine, astuple(limits))).encode()

    def read(self, texts: Iterable[str]) -> dict[str, Result]:
        """Return the results of the texts that have one."""
        text_of = {self._key(text): text for text in texts}
        keys, found = list(text_of), {}
        with closing(self._connect()) as db:
            for start in range(0, len(keys), _KEYS_PER_QUERY):
                some = keys[start : start + _KEYS_PER_QUERY]
                marks = ",".join("?" * len(some))
                for key, result in db.execute(f"SELECT * FROM results WHERE key IN ({marks})", some):
                    found[text_of[key]] = Result(*json.loads(result))
        return found

    def write(self, results: Mapping[str, Result]) -> None:
        """Add results. Those that are already in the file stay as they are."""
        rows = [
            (self._key(text), json.dumps(astuple(result)))
            for text, result in results.items()
            if result.status != "unsupported" and not (result.error or "").startswith(WORKER_LOST)
        ]
        if rows:
            with closing(self._connect()) as db, db:
                db.executemany("INSERT OR IGNORE INTO results VALUES (?, ?)", rows)

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.file, timeout=60)
        db.execute(_CREATE_TABLE)
        return db

    def _key(self, text: str) -> bytes:
        return hashlib.sha256(self._key_prefix + text.encode("utf-8", "surrogatepass")).digest()


def _code_versions() -> list[str]:
    """Everything that may change the result of a program: this module's own source, and what runs the programs."""
    sources = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
    installed = {name: [d.version for d in distributions(name=name)] for name in ("pydantic-monty", "numpy", "sympy")}
    return [hashlib.sha256(sources).hexdigest(), repr(installed), sys.version]
