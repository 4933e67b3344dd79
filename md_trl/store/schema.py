"""The SQLite file behind a store: its tables, how it is opened, and transactions on it.

The file is in WAL mode with `synchronous=NORMAL`: committed data survives `kill -9` at any moment, while a power cut
can undo the last few transactions.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError


SCHEMA_VERSION = 3
# "md_t": tells a store from the SQLite file of another program.
APPLICATION_ID = 0x6D645F74
SCHEMA = """
CREATE TABLE questions (
    key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, task TEXT NOT NULL, split TEXT NOT NULL, question TEXT NOT NULL,
    answer TEXT NOT NULL
);
-- What a thought was sampled with. `params` is a JSON object with sorted keys.
CREATE TABLE settings (
    id INTEGER PRIMARY KEY, model TEXT NOT NULL, prompt_hash TEXT NOT NULL, params TEXT NOT NULL,
    UNIQUE (model, prompt_hash, params)
);
-- A job of the Batch API. `file_id` is set once its file is uploaded, `batch_id` once the server has created the job,
-- `ended_at` once its results are stored.
CREATE TABLE batches (
    id INTEGER PRIMARY KEY, base_url TEXT NOT NULL, endpoint TEXT NOT NULL, owner TEXT NOT NULL,
    created_at REAL NOT NULL, file_id TEXT, batch_id TEXT, status TEXT NOT NULL DEFAULT 'new', ended_at REAL
);
-- A request for the samples first_index, ..., first_index + n - 1; it is open while `ended_at` is null.
-- max_prompt_tokens bounds its prompt, max_completion_tokens each of its samples. `lost` is 1 if it may have been
-- billed although its answer never arrived. `served` is the model named in the answer.
CREATE TABLE requests (
    id INTEGER PRIMARY KEY, question INTEGER NOT NULL REFERENCES questions, path TEXT NOT NULL,
    setting INTEGER NOT NULL REFERENCES settings, first_index INTEGER NOT NULL, n INTEGER NOT NULL,
    max_prompt_tokens INTEGER NOT NULL DEFAULT 0, max_completion_tokens INTEGER NOT NULL DEFAULT 0,
    owner TEXT NOT NULL, batch INTEGER REFERENCES batches, created_at REAL NOT NULL, ended_at REAL,
    usage TEXT NOT NULL DEFAULT '{}', error TEXT, lost INTEGER NOT NULL DEFAULT 0, served TEXT
);
CREATE INDEX requests_of_a_question ON requests (question, path, setting);
CREATE INDEX requests_of_a_batch ON requests (batch) WHERE batch IS NOT NULL;
-- How many samples of a question were wanted so far, for the status. Adaptive sampling wants fewer of some questions.
CREATE TABLE wanted (
    question INTEGER NOT NULL REFERENCES questions, path TEXT NOT NULL, setting INTEGER NOT NULL REFERENCES settings,
    n INTEGER NOT NULL, PRIMARY KEY (question, path, setting)
) WITHOUT ROWID;
CREATE TABLE thoughts (
    request INTEGER NOT NULL REFERENCES requests, question INTEGER NOT NULL REFERENCES questions, path TEXT NOT NULL,
    setting INTEGER NOT NULL REFERENCES settings, sample_index INTEGER NOT NULL, choice_index INTEGER NOT NULL,
    text TEXT NOT NULL, finish_reason TEXT NOT NULL, stated TEXT, logprob REAL,
    UNIQUE (question, path, setting, sample_index)
);
"""


def open_database(file: Path, read_only: bool = False) -> sqlite3.Connection:
    r"""
    Open the file of a store, and create it with its folder if it does not exist.

    Args:
        file ([`~pathlib.Path`]):
            The SQLite file.
        read_only (`bool`, *optional*, defaults to `False`):
            Whether SQLite refuses to write to the file, which must exist.

    Returns:
        `sqlite3.Connection`: A connection without implicit transactions, see [`transaction`].

    Raises:
        `InputError`: The file is not a store, or a store of another schema version.
    """
    if file.exists():
        _check_header(file)
    if read_only:
        return _open_read_only(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(file, timeout=60, isolation_level=None)
    try:
        is_new = _check_schema(db, file)
        _set_wal(db)
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute("PRAGMA foreign_keys=ON")
        if is_new:
            _create_tables(db)
    except BaseException:
        db.close()
        raise
    return db


def _open_read_only(file: Path) -> sqlite3.Connection:
    uri = f"{file.resolve().as_uri()}?mode=ro"
    # Readers of a file in WAL mode share memory through a file beside it, which a folder that cannot be written to may
    # lack. Nobody writes to the store there.
    if not os.access(file.parent, os.W_OK) and not file.with_name(f"{file.name}-wal").exists():
        uri += "&immutable=1"
    db = sqlite3.connect(uri, uri=True, timeout=60, isolation_level=None)
    try:
        if _check_schema(db, file):
            raise InputError(f"{file} is empty. Choose another `--store`.")
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Run a block as one transaction. Inside another `transaction` the block becomes part of that one."""
    if db.in_transaction:
        yield
        return
    # IMMEDIATE: a transaction that starts as a reader cannot become a writer while another process writes.
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _check_header(file: Path) -> None:
    if file.is_dir():
        raise InputError(f"{file} is a folder. Give `--store` the name of a file.")
    with file.open("rb") as stream:
        header = stream.read(16)
    if header not in (b"", b"SQLite format 3\0"):
        raise InputError(f"{file} is not a store: it does not start like an SQLite file. Choose another `--store`.")


def _check_schema(db: sqlite3.Connection, file: Path) -> bool:
    """Return whether the file is still empty. Raise an `InputError` if it is anything but a store of this version."""
    # One transaction: another process may be creating the tables at this moment.
    db.execute("BEGIN")
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    db.execute("COMMIT")
    if application == 0 and tables == 0:
        return True
    if application != APPLICATION_ID:
        raise InputError(f"{file} is an SQLite file but not a store of md_trl. Choose another `--store`.")
    if version > SCHEMA_VERSION:
        raise InputError(
            f"{file} has schema version {version}, but this md_trl reads version {SCHEMA_VERSION}. Upgrade md_trl "
            "(`pip install -U md_trl`) or choose another `--store`."
        )
    if version < SCHEMA_VERSION:
        raise InputError(
            f"{file} has schema version {version}, but this md_trl reads version {SCHEMA_VERSION}. Export its "
            "thoughts with the md_trl that created it and import them into a new store, or choose another `--store`."
        )
    return False


def _set_wal(db: sqlite3.Connection) -> None:
    # SQLite's time-out does not cover two processes that change the mode of a new file at once.
    for _ in range(200):
        try:
            db.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            time.sleep(0.05)
    raise TimeoutError("The store is locked by another process.")


def _create_tables(db: sqlite3.Connection) -> None:
    with transaction(db):
        (application,) = db.execute("PRAGMA application_id").fetchone()
        if application == APPLICATION_ID:
            return  # Another process was first.
        # Not `executescript`, which would commit the transaction first.
        script = "\n".join(line for line in SCHEMA.splitlines() if not line.startswith("--"))
        for statement in script.split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA application_id={APPLICATION_ID}")
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
