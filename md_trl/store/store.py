"""Every thought that was ever sampled, in one SQLite file, each paid for once.

A *setting* is what a thought was sampled with: model, prompt and parameters. Under one setting the samples of a
question and path are numbered 0, 1, 2, ... A number is claimed before it is asked for and stored when its text
arrives, so that two processes on one store never ask for the same sample, and a killed one leaves nothing behind but
its open claims, which the next run takes over. Claims of a batch job belong to the job and not to a process.

The file is in WAL mode with `synchronous=NORMAL`: what was stored survives `kill -9` at any moment; a power cut can
undo the last few transactions.
"""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from ..errors import InputError
from ..records import Choice, Question, Thought
from ..tasks import TASKS
from .thought_file import QuestionFinder, read_thought_file, write_thought_file


SCHEMA_VERSION = 2
# "md_t", so that another program's SQLite file is never taken for a store.
APPLICATION_ID = 0x6D645F74
SCHEMA = """
CREATE TABLE questions (
    key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, task TEXT NOT NULL, split TEXT NOT NULL, question TEXT NOT NULL,
    answer TEXT NOT NULL
);
CREATE TABLE settings (
    id INTEGER PRIMARY KEY, model TEXT NOT NULL, prompt_hash TEXT NOT NULL, params TEXT NOT NULL,
    UNIQUE (model, prompt_hash, params)
);
-- A job of the Batch API: made, then uploaded (file_id), then created (batch_id), then finished.
CREATE TABLE batches (
    id INTEGER PRIMARY KEY, base_url TEXT NOT NULL, endpoint TEXT NOT NULL, owner TEXT NOT NULL, created REAL NOT NULL,
    file_id TEXT, batch_id TEXT, status TEXT NOT NULL DEFAULT 'new', finished REAL
);
-- A request is open while `finished` is null. Its samples are first_index ... first_index + n - 1. `lost` is 1 if it
-- may have been billed though no answer came; `most_prompt` bounds the tokens of its prompt; `served` is the model
-- that the answer names.
CREATE TABLE requests (
    id INTEGER PRIMARY KEY, question INTEGER NOT NULL REFERENCES questions, path TEXT NOT NULL,
    setting INTEGER NOT NULL REFERENCES settings, first_index INTEGER NOT NULL, n INTEGER NOT NULL,
    owner TEXT NOT NULL, created REAL NOT NULL, finished REAL, usage TEXT NOT NULL DEFAULT '{}', error TEXT,
    lost INTEGER NOT NULL DEFAULT 0, most_prompt INTEGER NOT NULL DEFAULT 0, served TEXT,
    batch INTEGER REFERENCES batches
);
CREATE INDEX requests_of_a_question ON requests (question, path, setting);
CREATE INDEX requests_of_a_batch ON requests (batch) WHERE batch IS NOT NULL;
CREATE TABLE thoughts (
    request INTEGER NOT NULL REFERENCES requests, question INTEGER NOT NULL REFERENCES questions, path TEXT NOT NULL,
    setting INTEGER NOT NULL REFERENCES settings, sample_index INTEGER NOT NULL, choice_index INTEGER NOT NULL,
    text TEXT NOT NULL, finish_reason TEXT NOT NULL, stated TEXT, UNIQUE (question, path, setting, sample_index)
);
"""

_IMPORT = "import"
_BATCH = "batch"
_ABANDONED = "abandoned: the process that asked for it ended"

MIGRATIONS = {
    2: f"""
CREATE TABLE batches (
    id INTEGER PRIMARY KEY, base_url TEXT NOT NULL, endpoint TEXT NOT NULL, owner TEXT NOT NULL, created REAL NOT NULL,
    file_id TEXT, batch_id TEXT, status TEXT NOT NULL DEFAULT 'new', finished REAL
);
ALTER TABLE requests ADD COLUMN lost INTEGER NOT NULL DEFAULT 0;
ALTER TABLE requests ADD COLUMN most_prompt INTEGER NOT NULL DEFAULT 0;
ALTER TABLE requests ADD COLUMN served TEXT;
ALTER TABLE requests ADD COLUMN batch INTEGER REFERENCES batches;
CREATE INDEX requests_of_a_batch ON requests (batch) WHERE batch IS NOT NULL;
UPDATE requests SET lost = 1 WHERE error = '{_ABANDONED}';
"""
}
"""What brings a store to a version from the one before it."""

# How long a claim made on another host is believed; a process of this host is looked up instead.
_LEASE_SECONDS = 3600.0


class Claim(NamedTuple):
    r"""
    The right to ask for some samples.

    Args:
        key (`int`):
            Number of the request.
        first_index (`int`), n (`int`):
            The samples it is for.
    """

    key: int
    first_index: int
    n: int


class Batch(NamedTuple):
    r"""
    A job of the Batch API that has not ended.

    Args:
        id (`int`):
            Number of the job in the store.
        endpoint (`str`):
            What its requests ask, for example `/v1/chat/completions`.
        file_id (`str`, *optional*), batch_id (`str`, *optional*):
            The server's names, as far as it has got.
    """

    id: int
    endpoint: str
    file_id: str | None
    batch_id: str | None


class OpenRequest(NamedTuple):
    r"""
    A request that has not ended.

    Args:
        key (`int`):
            Its number.
        question_id (`str`), path (`str`), n (`int`), stop (`tuple[str, ...]`):
            What it asks for.
    """

    key: int
    question_id: str
    path: str
    n: int
    stop: tuple[str, ...]


class ImportSummary(NamedTuple):
    r"""
    What an import added.

    Args:
        questions (`int`), thoughts (`int`):
            New ones.
        known (`int`):
            Thoughts of the file that the store had already.
    """

    questions: int
    thoughts: int
    known: int


@dataclass
class StatusRow:
    r"""
    What the store holds of one task, split, path and setting.

    Args:
        task (`str`), split (`str`), path (`str`):
            Whose thoughts are counted.
        setting (`int`):
            Number of the setting, to pick it with `settings=` in [`Store.thoughts`].
        model (`str`), prompt_hash (`str`), params (`dict`):
            The setting itself.
        n (`int`):
            Samples wanted of each question: the most that were ever asked for, 0 if all were imported.
        requests (`int`), failed (`int`):
            Requests made, and those of them that brought nothing. An imported thought counts as a request.
        questions (`int`, *optional*, defaults to `0`):
            Questions with at least one thought.
        thoughts (`int`, *optional*, defaults to `0`), distinct (`int`, *optional*, defaults to `0`):
            Thoughts, usable or not, and the different texts among them. Some servers ignore `temperature` or `seed`
            and sell the same text again and again.
        missing (`int`, *optional*, defaults to `0`):
            Samples still to ask for until every question of the task and split has `n`.
        unusable (`dict[str, int]`, *optional*, defaults to `{}`):
            Thoughts that did not end by themselves, by finish reason.
        prompt_tokens (`int`, *optional*, defaults to `0`), completion_tokens (`int`, *optional*, defaults to `0`):
            Tokens paid for.
        lost (`int`, *optional*, defaults to `0`):
            Failed requests that may have been billed though no answer came.
        served (`str`, *optional*, defaults to `""`):
            The models that the answers name, where they name others than the one asked for.
    """

    task: str
    split: str
    path: str
    setting: int
    model: str
    prompt_hash: str
    params: dict[str, Any]
    n: int
    requests: int
    failed: int
    questions: int = 0
    thoughts: int = 0
    distinct: int = 0
    missing: int = 0
    unusable: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    lost: int = 0
    served: str = ""


@dataclass
class Spending:
    r"""
    What the requests to one model took: the facts that a [`~md_trl.sampling.ledger.Ledger`] puts prices on.

    Args:
        model (`str`):
            Name of the model.
        batch (`bool`):
            Whether they went through the Batch API.
        requests (`int`), failed (`int`):
            Requests made, and those of them that brought no thought.
        prompt_tokens (`int`), cached_tokens (`int`), completion_tokens (`int`):
            Tokens as the server counted them. Cached ones are part of the prompt tokens.
        unknown (`int`):
            Requests whose cost is not known: they are under way, or were lost.
        most_prompt_tokens (`int`), most_completion_tokens (`int`):
            The most that those can have taken.
        thoughts (`int`):
            Thoughts they brought.
    """

    model: str
    batch: bool
    requests: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    unknown: int
    most_prompt_tokens: int
    most_completion_tokens: int
    thoughts: int


class Store:
    r"""
    The questions and thoughts of any number of tasks, models and settings, in one SQLite file.

    Several processes may use one file. A `Store` belongs to the thread that made it.

    Args:
        path (`str` or [`~pathlib.Path`]):
            The file. Made, with its folder, if there is none.

    Raises:
        `ValueError`: the file is no store, or a newer version of md_trl made it.

    Examples:

    ```python
    >>> from md_trl.store import Store

    >>> with Store("thoughts.db") as store:
    ...     store.import_thoughts("thoughts.jsonl")
    ...     thoughts = store.thoughts(task="svamp", split="train", path="cot")
    ```
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._owner = _owner()
        self._data_version = -1
        if self.path.exists():
            _check_header(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        try:
            self._open()
        except BaseException:
            self._db.close()
            raise

    def _open(self) -> None:
        # One transaction: another process may be making the store at this moment.
        self._db.execute("BEGIN")
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        self._db.execute("COMMIT")
        if application not in (0, APPLICATION_ID) or (application == 0 and tables):
            raise InputError(f"{self.path} is an SQLite file, but no store of md_trl. Choose another `--store`.")
        if version > SCHEMA_VERSION:
            raise InputError(
                f"{self.path} has schema version {version}, this md_trl knows versions up to {SCHEMA_VERSION}. "
                "Upgrade it (`pip install -U md_trl`), or choose another `--store`."
            )
        _set_wal(self._db)
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("PRAGMA foreign_keys=ON")
        if version < SCHEMA_VERSION:
            with self._transaction():
                # Another process may have been first.
                (version,) = self._db.execute("PRAGMA user_version").fetchone()
                scripts = [SCHEMA] if version == 0 else [MIGRATIONS[v] for v in range(version + 1, SCHEMA_VERSION + 1)]
                for statement in ";".join(_without_comments(script) for script in scripts).split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA application_id={APPLICATION_ID}")
                self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # IMMEDIATE: a transaction that starts as a reader cannot become a writer while another process writes.
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # Questions

    def add_questions(self, questions: Iterable[Question]) -> int:
        r"""
        Add the questions that are not there yet.

        Args:
            questions (`Iterable[Question]`):
                Questions of any tasks and splits.

        Returns:
            `int`: how many were new.

        Raises:
            `ValueError`: the store has another text or gold answer under one of the ids.
        """
        with self._transaction():
            return sum(self._add_question(question) for question in questions)

    def _add_question(self, question: Question) -> int:
        row = (question.id, question.task, question.split, question.question, question.answer)
        added = self._db.execute(
            "INSERT OR IGNORE INTO questions (id, task, split, question, answer) VALUES (?, ?, ?, ?, ?)", row
        ).rowcount
        if not added:
            (known,) = self._questions("id = ?", [question.id])
            if known != question:
                raise InputError(
                    f"{self.path} holds {known.id!r} as {known.question!r} with the answer {known.answer!r} (split "
                    f"{known.split!r}), now it is {question.question!r} with {question.answer!r} (split "
                    f"{question.split!r}). Use the data the store was made with, or another `--store`."
                )
        return added

    def _questions(self, where: str, values: Sequence[Any]) -> list[Question]:
        rows = self._db.execute(
            f"SELECT id, task, split, question, answer FROM questions WHERE {where} ORDER BY key", values
        )
        return [Question(*row) for row in rows]

    def questions(self, task: str | None = None, split: str | None = None) -> list[Question]:
        r"""
        The questions, in the order they were added.

        Args:
            task (`str`, *optional*):
                Only those of this task.
            split (`str`, *optional*):
                Only those of this split.

        Returns:
            `list[Question]`: the questions.
        """
        where, values = _where({"task = ?": task, "split = ?": split})
        return self._questions(where, values)

    # Sampling

    def setting(self, model: str, prompt_hash: str, params: dict[str, Any]) -> int:
        r"""
        Number of a setting, new or known.

        Args:
            model (`str`):
                Name of the model.
            prompt_hash (`str`):
                Identifies the prompt without its question.
            params (`dict`):
                Sampling parameters: `temperature`, `top_p`, `max_tokens`, `stop`, `seed`.

        Returns:
            `int`: the number.
        """
        with self._transaction():
            return self._setting(model, prompt_hash, params)

    def _setting(self, model: str, prompt_hash: str, params: dict[str, Any]) -> int:
        # 1 and 1.0 are one temperature.
        params = {name: float(value) if name in ("temperature", "top_p") else value for name, value in params.items()}
        row = (model, prompt_hash, json.dumps(params, sort_keys=True, ensure_ascii=False))
        self._db.execute("INSERT OR IGNORE INTO settings (model, prompt_hash, params) VALUES (?, ?, ?)", row)
        return self._db.execute(
            "SELECT id FROM settings WHERE model = ? AND prompt_hash = ? AND params = ?", row
        ).fetchone()[0]

    def missing(self, question_id: str, path: str, setting: int, n: int) -> list[int]:
        r"""
        Samples that are not stored, whether or not somebody is asking for them.

        Args:
            question_id (`str`), path (`str`), setting (`int`):
                Whose samples.
            n (`int`):
                Samples wanted.

        Returns:
            `list[int]`: their indices, out of `range(n)`.
        """
        stored = self._stored(self._key(question_id), path, setting)
        return [index for index in range(n) if index not in stored]

    def claim(
        self,
        question_id: str,
        path: str,
        setting: int,
        n: int,
        at_most: int | None = None,
        most_prompt: int = 0,
        batch: int | None = None,
        allow: Callable[[list[int]], bool] | None = None,
    ) -> list[Claim]:
        r"""
        Take the right to ask for all samples that are neither stored nor claimed by a living process or a batch.

        Args:
            question_id (`str`), path (`str`), setting (`int`):
                Whose samples.
            n (`int`):
                Samples wanted in all.
            at_most (`int`, *optional*, defaults to `n`):
                Most samples of one request.
            most_prompt (`int`, *optional*, defaults to `0`):
                The most tokens that the prompt can have, kept for [`Store.spending`].
            batch (`int`, *optional*):
                The batch that the claims belong to. By default they belong to this process.
            allow (`Callable[[list[int]], bool]`, *optional*):
                Asked, while nobody else can claim, whether requests of so many samples each may be made. If it says
                no, nothing is claimed.

        Returns:
            `list[Claim]`: requests to make, each for consecutive samples. End each with [`Store.save`] or
            [`Store.fail`].
        """
        with self._transaction():
            question = self._key(question_id)
            taken = self._stored(question, path, setting) | self._claimed(question, path, setting)
            runs = list(_runs([index for index in range(n) if index not in taken], at_most or n))
            if not runs or (allow is not None and not allow([count for _, count in runs])):
                return []
            claims, now = [], time.time()
            owner = self._owner if batch is None else _BATCH
            for first, count in runs:
                key = self._db.execute(
                    "INSERT INTO requests "
                    "(question, path, setting, first_index, n, owner, created, most_prompt, batch) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (question, path, setting, first, count, owner, now, most_prompt, batch),
                ).lastrowid
                claims.append(Claim(key, first, count))
            return claims

    def _key(self, question_id: str) -> int:
        row = self._db.execute("SELECT key FROM questions WHERE id = ?", (question_id,)).fetchone()
        if row is None:
            raise InputError(f"{self.path} has no question {question_id!r}. Add it with `add_questions` first.")
        return row[0]

    def _stored(self, question: int, path: str, setting: int) -> set[int]:
        rows = self._db.execute(
            "SELECT sample_index FROM thoughts WHERE question = ? AND path = ? AND setting = ?",
            (question, path, setting),
        )
        return {index for (index,) in rows}

    def _claimed(self, question: int, path: str, setting: int) -> set[int]:
        """Samples that a living process is asking for. Claims of dead ones are closed."""
        rows = self._db.execute(
            "SELECT id, first_index, n, owner, created FROM requests "
            "WHERE question = ? AND path = ? AND setting = ? AND finished IS NULL",
            (question, path, setting),
        ).fetchall()
        claimed: set[int] = set()
        for key, first, n, owner, created in rows:
            if _is_alive(owner, created):
                claimed.update(range(first, first + n))
            else:
                self._finish(key, {}, _ABANDONED, lost=True)
        return claimed

    def _finish(
        self, key: int, usage: dict[str, Any], error: str | None, lost: bool = False, served: str | None = None
    ) -> None:
        self._db.execute(
            "UPDATE requests SET finished = ?, usage = ?, error = ?, lost = ?, served = ? WHERE id = ?",
            (time.time(), json.dumps(usage, sort_keys=True), error, lost, served, key),
        )

    def save(self, key: int, choices: Sequence[Choice], usage: dict[str, Any], served: str | None = None) -> int:
        r"""
        Store what a request brought, in one transaction.

        Args:
            key (`int`):
                Number of the request, from its [`Claim`].
            choices (`Sequence[Choice]`):
                The samples in order. Samples beyond those claimed are left out.
            usage (`dict`):
                Tokens: `prompt_tokens`, `cached_tokens`, `completion_tokens`.
            served (`str`, *optional*):
                The model that the answer names.

        Returns:
            `int`: how many thoughts are new.
        """
        with self._transaction():
            question, path, setting, first, n = self._db.execute(
                "SELECT question, path, setting, first_index, n FROM requests WHERE id = ?", (key,)
            ).fetchone()
            self._finish(key, usage, None, served=served)
            rows = [
                (key, question, path, setting, first + i, i, choice.text.strip(), choice.finish_reason)
                for i, choice in enumerate(choices[:n])
            ]
            # IGNORE: if this process was taken for dead, another one may have brought the same sample.
            cursor = self._db.executemany(
                "INSERT OR IGNORE INTO thoughts "
                "(request, question, path, setting, sample_index, choice_index, text, finish_reason) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
            return max(cursor.rowcount, 0)

    def fail(self, key: int, error: str, usage: dict[str, Any] | None = None, lost: bool = False) -> None:
        r"""
        Record that a request brought nothing; its samples may be claimed again.

        Args:
            key (`int`):
                Number of the request, from its [`Claim`].
            error (`str`):
                Why.
            usage (`dict`, *optional*, defaults to `{}`):
                Tokens that were billed all the same.
            lost (`bool`, *optional*, defaults to `False`):
                Whether it may have been billed without a word about the tokens.
        """
        with self._transaction():
            self._finish(key, usage or {}, error, lost)

    def release(self) -> None:
        """Give up the claims that were made through this `Store` and have not ended."""
        with self._transaction():
            self._db.execute(
                "UPDATE requests SET finished = ?, error = ?, lost = 1 WHERE finished IS NULL AND owner = ?",
                (time.time(), _ABANDONED, self._owner),
            )

    # Batches

    def add_batch(self, base_url: str, endpoint: str) -> int:
        """Make a job of the Batch API, to claim samples for. Returns its number."""
        with self._transaction():
            return self._db.execute(
                "INSERT INTO batches (base_url, endpoint, owner, created) VALUES (?, ?, ?, ?)",
                (base_url, endpoint, self._owner, time.time()),
            ).lastrowid

    def take_batches(self, base_url: str) -> list[Batch]:
        """The jobs at a server that have not ended and that no other living process takes care of."""
        with self._transaction():
            rows = self._db.execute(
                "SELECT id, owner, created, endpoint, file_id, batch_id FROM batches "
                "WHERE base_url = ? AND finished IS NULL ORDER BY id",
                (base_url,),
            ).fetchall()
            taken = []
            for id_, owner, created, *columns in rows:
                if owner == self._owner or not _is_alive(owner, created):
                    self._db.execute("UPDATE batches SET owner = ? WHERE id = ?", (self._owner, id_))
                    taken.append(Batch(id_, *columns))
            return taken

    def update_batch(self, batch: int, **columns: str | None) -> None:
        """Record how far a job has got: `file_id`, `batch_id`, `status`."""
        names = ", ".join(f"{name} = ?" for name in columns)
        with self._transaction():
            self._db.execute(f"UPDATE batches SET {names} WHERE id = ?", (*columns.values(), batch))

    def open_requests(self, batch: int) -> list[OpenRequest]:
        """The requests of a job that have not ended."""
        rows = self._db.execute(
            "SELECT r.id, q.id, r.path, r.n, s.params FROM requests r JOIN questions q ON q.key = r.question "
            "JOIN settings s ON s.id = r.setting WHERE r.batch = ? AND r.finished IS NULL ORDER BY r.id",
            (batch,),
        )
        return [OpenRequest(*columns, tuple(json.loads(params)["stop"])) for *columns, params in rows]

    def finish_batch(self, batch: int, status: str, error: str) -> int:
        """End a job. Its requests that are still open brought nothing and may be claimed again. Returns how many."""
        with self._transaction():
            now = time.time()
            self._db.execute("UPDATE batches SET status = ?, finished = ? WHERE id = ?", (status, now, batch))
            return self._db.execute(
                "UPDATE requests SET finished = ?, error = ? WHERE batch = ? AND finished IS NULL", (now, error, batch)
            ).rowcount

    # Reading

    def thoughts(
        self,
        task: str | None = None,
        split: str | None = None,
        path: str | None = None,
        model: str | None = None,
        temperature: float | None = None,
        settings: Sequence[int] | None = None,
    ) -> list[Thought]:
        r"""
        The thoughts of one setting per question and path.

        Args:
            task (`str`, *optional*):
                Only those of this task.
            split (`str`, *optional*):
                Only those of this split.
            path (`str`, *optional*):
                Only those of this path.
            model (`str`, *optional*):
                Only those of this model.
            temperature (`float`, *optional*):
                Only those sampled at this temperature.
            settings (`Sequence[int]`, *optional*):
                Only those of these settings, by the numbers that [`Store.status`] shows.

        Returns:
            `list[Thought]`: in the order of questions, paths, sample indices.

        Raises:
            `ValueError`: a question has thoughts of several models or settings under one path, which must not be
            mixed in one vote. The message lists them.
        """
        conditions = {
            "q.task = ?": task,
            "q.split = ?": split,
            "t.path = ?": path,
            "s.model = ?": model,
            "json_extract(s.params, '$.temperature') = ?": temperature,
        }
        where, values = _where(conditions)
        if settings is not None:
            where += f" AND s.id IN ({', '.join('?' * len(settings))})"
            values += list(settings)
        rows = self._db.execute(
            "SELECT q.id, t.path, t.sample_index, t.text, s.model, t.finish_reason, t.stated, s.id FROM thoughts t "
            "JOIN questions q ON q.key = t.question JOIN settings s ON s.id = t.setting "
            f"WHERE {where} ORDER BY q.key, t.path, t.sample_index",
            values,
        )
        thoughts: list[Thought] = []
        settings_of: dict[tuple[str, str], set[int]] = defaultdict(set)
        for *columns, setting in rows:
            thoughts.append(Thought(*columns))
            settings_of[columns[0], columns[1]].add(setting)
        mixed = {where: found for where, found in settings_of.items() if len(found) > 1}
        if mixed:
            raise InputError(self._mixed_message(mixed))
        return thoughts

    def _mixed_message(self, mixed: dict[tuple[str, str], set[int]]) -> str:
        (question_id, path), found = next(iter(mixed.items()))
        numbers = sorted(set().union(*mixed.values()))
        rows = self._db.execute(
            f"SELECT id, model, prompt_hash, params FROM settings WHERE id IN ({', '.join('?' * len(numbers))})",
            numbers,
        ).fetchall()
        lines = [
            f"  settings=[{number}]: {describe(model, hash_, json.loads(params))}"
            for number, model, hash_, params in rows
        ]
        arguments = ["`settings=`"]
        of_first = [row for row in rows if row[0] in found]
        if len({json.loads(params).get("temperature") for *_, params in of_first}) == len(of_first):
            arguments.insert(0, "`temperature=`")
        if len({model for _, model, *_ in of_first}) == len(of_first):
            arguments.insert(0, "`model=`")
        return "\n".join(
            [
                f"{self.path} holds thoughts of several settings for {len(mixed)} pairs of question and path (the "
                f"first: {question_id!r}, {path}), which must not be mixed in one vote:",
                *lines,
                f"Pick with {' or '.join(arguments)}.",
            ]
        )

    def status(self) -> list[StatusRow]:
        r"""
        What is there, what is missing, what is unusable, and what it took.

        Returns:
            `list[StatusRow]`: one row a task, split, path and setting.
        """
        rows = self._db.execute(
            "SELECT q.task, q.split, r.path, r.setting, s.model, s.prompt_hash, s.params, "
            "max(iif(r.owner = ?, 0, r.first_index + r.n)), count(*), count(r.error), "
            "total(json_extract(r.usage, '$.prompt_tokens')), total(json_extract(r.usage, '$.completion_tokens')), "
            "total(r.lost), group_concat(DISTINCT iif(r.served != s.model, r.served, NULL)) "
            "FROM requests r JOIN questions q ON q.key = r.question JOIN settings s ON s.id = r.setting "
            "GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4",
            (_IMPORT,),
        ).fetchall()
        status = []
        for (
            *key,
            model,
            prompt_hash,
            params,
            n,
            requests,
            failed,
            prompt_tokens,
            completion_tokens,
            lost,
            served,
        ) in rows:
            row = StatusRow(*key, model, prompt_hash, json.loads(params), n, requests, failed)
            row.prompt_tokens, row.completion_tokens = int(prompt_tokens), int(completion_tokens)
            row.lost, row.served = int(lost), served or ""
            (wanted,) = self._db.execute(
                "SELECT count(*) FROM questions WHERE task = ? AND split = ?", key[:2]
            ).fetchone()
            selection = (
                "FROM thoughts t JOIN questions q ON q.key = t.question "
                "WHERE q.task = ? AND q.split = ? AND t.path = ? AND t.setting = ?"
            )
            row.questions, row.thoughts, row.distinct, there = self._db.execute(
                "SELECT count(DISTINCT t.question), count(*), count(DISTINCT t.question || ' ' || t.text), "
                f"count(iif(t.sample_index < {n}, 1, NULL)) {selection}",
                key,
            ).fetchone()
            row.missing = wanted * n - there
            row.unusable = dict(
                self._db.execute(
                    f"SELECT t.finish_reason, count(*) {selection} AND t.finish_reason != 'stop' GROUP BY 1", key
                ).fetchall()
            )
            status.append(row)
        return status

    def spending(
        self,
        task: str | None = None,
        splits: Sequence[str] | None = None,
        model: str | None = None,
        settings: Sequence[int] | None = None,
    ) -> list[Spending]:
        r"""
        What was spent, by model. Imported thoughts were paid for elsewhere and are left out.

        Args:
            task (`str`, *optional*):
                Only for questions of this task.
            splits (`Sequence[str]`, *optional*):
                Only for questions of these splits.
            model (`str`, *optional*):
                Only at this model.
            settings (`Sequence[int]`, *optional*):
                Only under these settings.

        Returns:
            `list[Spending]`: one for each model, and another for what went through the Batch API.
        """
        where, values = _where({"q.task = ?": task, "s.model = ?": model})
        for column, wanted in (("q.split", splits), ("s.id", settings)):
            if wanted is not None:
                where += f" AND {column} IN ({', '.join('?' * len(wanted))})"
                values += list(wanted)
        rows = self._db.execute(
            "SELECT s.model, r.batch IS NOT NULL, count(*), count(r.error), "
            "total(json_extract(r.usage, '$.prompt_tokens')), total(json_extract(r.usage, '$.cached_tokens')), "
            "total(json_extract(r.usage, '$.completion_tokens')), total(r.lost OR r.finished IS NULL), "
            "total(iif(r.lost OR r.finished IS NULL, r.most_prompt, 0)), "
            "total(iif(r.lost OR r.finished IS NULL, r.n * json_extract(s.params, '$.max_tokens'), 0)), "
            "total((SELECT count(*) FROM thoughts t WHERE t.question = r.question AND t.path = r.path "
            "AND t.setting = r.setting AND t.request = r.id)) "
            "FROM requests r JOIN questions q ON q.key = r.question JOIN settings s ON s.id = r.setting "
            f"WHERE r.owner != '{_IMPORT}' AND {where} GROUP BY 1, 2 ORDER BY 1, 2",
            values,
        )
        return [Spending(model, bool(batch), *map(int, figures)) for model, batch, *figures in rows]

    def usage(self, question_id: str, path: str, setting: int) -> tuple[int, int, int, int]:
        """Of one question and path: prompt, cached and completion tokens, and how many samples are stored."""
        question = self._key(question_id)
        tokens = self._db.execute(
            "SELECT total(json_extract(usage, '$.prompt_tokens')), total(json_extract(usage, '$.cached_tokens')), "
            "total(json_extract(usage, '$.completion_tokens')) FROM requests "
            "WHERE question = ? AND path = ? AND setting = ?",
            (question, path, setting),
        ).fetchone()
        return *map(int, tokens), len(self._stored(question, path, setting))

    def changed_elsewhere(self) -> bool:
        """Whether another connection has written since the last call."""
        (version,) = self._db.execute("PRAGMA data_version").fetchone()
        before, self._data_version = self._data_version, version
        return before != version

    # Files

    def export_thoughts(self, path: str | Path) -> int:
        r"""
        Write all thoughts to a thought file, in the order of questions, paths, samples.

        JSONL has one thought a line with `task`, `id`, `question`, `gold`, `path`, `index`, `text`, `finish_reason`,
        and where they are known `answer`, `model`, `params`, and `usage` (on the first choice of a request). Parquet
        has the same columns, with `params` and `usage` as JSON texts.

        Args:
            path (`str` or [`~pathlib.Path`]):
                The file; replaced if it exists. Parquet if the name ends in `.parquet`, else JSONL.

        Returns:
            `int`: how many thoughts were written.
        """
        return write_thought_file(path, self._lines())

    def _lines(self) -> Iterator[dict[str, Any]]:
        # Settings in the order of their contents: their numbers differ from store to store.
        rows = self._db.execute(
            "SELECT q.task, q.id, q.question, q.answer, t.path, t.sample_index, t.text, t.finish_reason, t.stated, "
            "s.model, s.prompt_hash, s.params, iif(t.choice_index = 0, r.usage, '{}') FROM thoughts t "
            "JOIN questions q ON q.key = t.question JOIN settings s ON s.id = t.setting "
            "JOIN requests r ON r.id = t.request "
            "ORDER BY q.key, t.path, s.model, s.prompt_hash, s.params, t.sample_index"
        )
        names = ("task", "id", "question", "gold", "path", "index", "text", "finish_reason")
        for *columns, stated, model, hash_, params, usage in rows:
            line = dict(zip(names, columns, strict=True))
            if stated is not None:
                line["answer"] = stated
            if model:
                line["model"] = model
            params = json.loads(params) | ({"prompt_hash": hash_} if hash_ else {})
            if params:
                line["params"] = params
            if usage != "{}":
                line["usage"] = json.loads(usage)
            yield line

    def import_thoughts(self, path: str | Path, task: str | None = None, split: str = "train") -> ImportSummary:
        r"""
        Read a thought file: JSONL with one thought a line, or Parquet with the same columns (`*.parquet`).

        A line has `task`, `id` or `question` (or both), `path` and `text`; and it may have `gold`, `answer`, `model`,
        `params`, `usage`, `index`, `finish_reason`. A question text finds a question of the task in the store, white
        space aside. A question that the store does not know and that brings its text and `gold` is added; `gold` is
        read for nothing else.

        All lines are imported or none. A text counts as often as it stands in the file, and importing it again adds
        nothing.

        Args:
            path (`str` or [`~pathlib.Path`]):
                The file.
            task (`str`, *optional*):
                The task that all lines must have; it may be one that md_trl does not know. Without it, any of md_trl's
                tasks.
            split (`str`, *optional*, defaults to `"train"`):
                Split of new questions that have no id.

        Returns:
            [`ImportSummary`]: what was added.

        Raises:
            `ValueError`: a line that cannot be used. The message names file, line, value and the way out.
        """
        with self._transaction():
            rows = self._db.execute("SELECT key, id, task, split, question, answer FROM questions ORDER BY key")
            finder = QuestionFinder(((key, Question(*row)) for key, *row in rows), split)
            known_tasks = {*TASKS, *(known.task for _, known in finder.by_id.values())}
            lines = list(read_thought_file(path, known_tasks if task is None else [task]))
            series: dict[tuple[int, str, int], tuple[Counter[str], set[int]]] = {}
            questions = thoughts = 0
            for line in lines:
                question = finder.find(line)
                if question is None:
                    new = finder.new(line)
                    questions += self._add_question(new)
                    question = self._key(new.id)
                    finder.add(question, new)
                key = (question, line.path, self._setting(line.model, line.prompt_hash, line.params))
                if key not in series:
                    texts = self._db.execute(
                        "SELECT text FROM thoughts WHERE question = ? AND path = ? AND setting = ?", key
                    )
                    series[key] = Counter(text for (text,) in texts), self._stored(*key) | self._claimed(*key)
                known, taken = series[key]
                if known[line.text] > 0:
                    known[line.text] -= 1
                    continue
                index = line.index
                if index is None or index in taken:
                    index = max(taken, default=-1) + 1
                taken.add(index)
                now = time.time()
                request = self._db.execute(
                    "INSERT INTO requests (question, path, setting, first_index, n, owner, created, finished, usage) "
                    "VALUES (?, ?, ?, ?, 1, ?, ?, ?, ?)",
                    (*key, index, _IMPORT, now, now, json.dumps(line.usage, sort_keys=True)),
                ).lastrowid
                self._db.execute(
                    "INSERT INTO thoughts VALUES (?, ?, ?, ?, ?, 0, ?, ?, ?)",
                    (request, *key, index, line.text, line.finish_reason, line.answer),
                )
                thoughts += 1
            return ImportSummary(questions, thoughts, len(lines) - thoughts)


def describe(model: str, prompt_hash: str, params: dict[str, Any]) -> str:
    """A setting in one line."""
    parts = [f"model={model!r}", *(f"{name}={value!r}" for name, value in params.items())]
    return " ".join(parts + ([f"prompt={prompt_hash}"] if prompt_hash else []))


def _where(conditions: dict[str, Any]) -> tuple[str, list[Any]]:
    """An SQL condition of those whose value is given, and the values."""
    given = {condition: value for condition, value in conditions.items() if value is not None}
    return " AND ".join(given) or "1", list(given.values())


def _runs(indices: Sequence[int], at_most: int) -> Iterator[tuple[int, int]]:
    """Consecutive indices as (first, length), at most so long."""
    start = 0
    for end in range(1, len(indices) + 1):
        if end == len(indices) or indices[end] != indices[end - 1] + 1 or end - start == at_most:
            yield indices[start], end - start
            start = end


def _without_comments(script: str) -> str:
    return "\n".join(line for line in script.splitlines() if not line.startswith("--"))


def _owner() -> str:
    """A name for this process's use of a store. The start time tells it from a later process with the same number."""
    return f"{psutil.Process().create_time()} {os.getpid()} {uuid.uuid4().hex[:8]} {platform.node()}"


def _is_alive(owner: str, claimed: float) -> bool:
    if owner == _BATCH:
        return True
    started, pid, _, host = owner.split(" ", 3)
    if host != platform.node():
        return time.time() - claimed < _LEASE_SECONDS
    try:
        return abs(psutil.Process(int(pid)).create_time() - float(started)) < 1
    except psutil.NoSuchProcess:
        return False


def _check_header(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder. Name a file for `--store`.")
    with path.open("rb") as file:
        header = file.read(16)
    if header not in (b"", b"SQLite format 3\0"):
        raise InputError(f"{path} is no store: it does not begin as an SQLite file. Choose another `--store`.")


def _set_wal(db: sqlite3.Connection) -> None:
    # SQLite does not wait its usual time-out when two processes change the mode of a new file at once.
    for _ in range(200):
        try:
            db.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            time.sleep(0.05)
    raise TimeoutError("The store is locked by another process.")
