"""Thought files (JSONL or Parquet, one thought per row): reading, checking, writing.

[`~md_trl.store.Store.import_thoughts`] documents the fields.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..answers import NO_ANSWER, canonical, equal
from ..errors import InputError
from ..records import PATHS_AND_LABEL, Question
from .settings import FLOAT_PARAMS


if TYPE_CHECKING:
    import pyarrow

FORM = (
    'Each row is an object: {"task": "svamp", "id": "svamp/train/chal-12", "path": "cot", "text": "..."}, or with '
    '"question" instead of "id"'
)
COLUMNS = (
    *("task", "id", "split", "question", "gold", "path", "index", "text", "finish_reason"),
    *("answer", "logprob", "model", "params", "usage"),
)
"""Columns of the thoughts that a store exports, and of raw thoughts on the Hub."""
_JSON_COLUMNS = ("params", "usage")
_TOKEN_COUNTS = ("prompt_tokens", "cached_tokens", "completion_tokens")


@dataclass
class ThoughtLine:
    """One row of a thought file. `where` names the file and the row in messages."""

    where: str
    task: str
    path: str
    text: str
    id: str | None = None
    question: str | None = None
    gold: str | None = None
    answer: str | None = None
    logprob: float | None = None
    model: str = ""
    prompt_hash: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)
    index: int | None = None
    finish_reason: str = "stop"


def thought_rows(file: str | Path) -> Iterator[tuple[str, Any]]:
    r"""
    Read the rows of a thought file.

    Args:
        file (`str` or [`~pathlib.Path`]):
            The file: Parquet if its name ends in `.parquet`, JSONL otherwise.

    Yields:
        `tuple[str, Any]`: File and number of each row for messages, and the row. Blank lines are skipped.

    Raises:
        `InputError`: A line is not JSON, the file is not Parquet, or it is a store.
    """
    if Path(file).suffix == ".parquet":
        yield from _parquet_rows(file)
        return
    with open(file, "rb") as stream:
        # Lines end at "\n" only: a text may contain other line separators, such as U+2028.
        for number, line in enumerate(stream, start=1):
            if number == 1:
                if line.startswith(b"SQLite format 3\0"):
                    raise InputError(
                        f"{file} is a store, not a thought file. Add its thoughts with `md-trl store merge --stores "
                        f"{file}`."
                    )
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                where = f"{file}, line {number}"
                yield where, _parse(where, line.decode(errors="surrogateescape"))


def _parquet_rows(file: str | Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    count = 0
    with open(file, "rb") as stream:
        try:
            batches = ParquetFile(stream).iter_batches(1024)
        except pyarrow.ArrowException as error:
            raise InputError(
                f"{file} is not a Parquet file: {error}. Write it as Parquet, or give a JSONL file another name."
            ) from None
        try:
            for batch in batches:
                for row in batch.to_pylist():
                    count += 1
                    yield f"{file}, row {count}", row
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(
                f"{file} cannot be read after row {count:,}: {error}. It is damaged: write or download it again."
            ) from None


def check_rows(rows: Iterable[tuple[str, Any]], tasks: Collection[str]) -> Iterator[ThoughtLine]:
    r"""
    Check the rows of a thought file.

    Args:
        rows (`Iterable[tuple[str, Any]]`):
            What to call each row in messages, and the row. `params` and `usage` may be written as JSON.
        tasks (`Collection[str]`):
            Tasks that a row may belong to.

    Yields:
        [`ThoughtLine`]: One per row.

    Raises:
        `InputError`: A row is malformed or lacks a field. The message names file, row, value and how to fix it.
    """
    for where, row in rows:
        if isinstance(row, dict):
            for name in _JSON_COLUMNS:
                if isinstance(row.get(name), str):
                    row = row | {name: _parse(f"{where}, column {name!r}", row[name])}
        yield _check(where, row, tasks)


def thought_schema() -> pyarrow.Schema:
    """Schema of thoughts in Parquet: `params` and `usage` are JSON objects as strings, what is unknown is null."""
    import pyarrow

    types = {"index": pyarrow.int32(), "logprob": pyarrow.float64()}
    return pyarrow.schema([(name, types.get(name, pyarrow.string())) for name in COLUMNS])


def write_thought_file(file: str | Path, rows: Iterable[dict[str, Any]]) -> int:
    r"""
    Write a thought file.

    Args:
        file (`str` or [`~pathlib.Path`]):
            The file. Parquet if its name ends in `.parquet`, JSONL otherwise. A thought file is replaced.
        rows (`Iterable[dict[str, Any]]`):
            The thoughts, with the columns of `COLUMNS` that are known.

    Returns:
        `int`: The number of thoughts written.

    Raises:
        `InputError`: There is a file with other content.
    """
    _check_replaceable(Path(file))
    # Written under another name first, so that an interrupted export does not destroy the file it would replace.
    partial = Path(f"{file}.partial")
    count = _write_parquet(partial, rows) if Path(file).suffix == ".parquet" else _write_jsonl(partial, rows)
    partial.replace(file)
    return count


def _check_replaceable(file: Path) -> None:
    """Raise an error if a file exists that holds something else than thoughts."""
    if not file.exists() or not file.stat().st_size:
        return
    try:
        _, row = next(thought_rows(file), (None, None))
    except InputError:
        row = None
    if not isinstance(row, dict) or not {"question", "path", "text"} <= set(row):
        raise InputError(f"{file} exists and is not a thought file, so it is not replaced. Choose another name.")


def _write_jsonl(file: Path, rows: Iterable[dict[str, Any]]) -> int:
    count = 0
    with file.open("w", encoding="utf-8", newline="\n") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def _write_parquet(file: Path, rows: Iterable[dict[str, Any]]) -> int:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    count, schema = 0, thought_schema()
    rows = iter(rows)
    with ParquetWriter(file, schema) as writer:
        while chunk := list(itertools.islice(rows, 10_000)):
            for row in chunk:
                for name in _JSON_COLUMNS:
                    if name in row:
                        row[name] = json.dumps(row[name], sort_keys=True, ensure_ascii=False)
            writer.write_table(pyarrow.Table.from_pylist(chunk, schema))
            count += len(chunk)
    return count


def _parse(where: str, line: str) -> Any:
    try:
        row = json.loads(line.encode(errors="surrogateescape").decode(), parse_constant=_refuse_constant)
        # Python reads a lone surrogate ("\ud800") and 1e999, but they are not a character and not a number.
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        shown = _short(line.encode(errors="surrogateescape").decode(errors="replace"))
        raise InputError(f"{where}: {shown} is not JSON: {error}. {FORM}.") from None
    return row


def _check(where: str, row: Any, tasks: Collection[str]) -> ThoughtLine:
    if not isinstance(row, dict):
        raise InputError(f"{where}: {_short(row)} is not an object. {FORM}.")
    row = {name: value for name, value in row.items() if value is not None}  # null is the same as left out
    for name, fields in (("usage", _TOKEN_COUNTS), ("params", FLOAT_PARAMS)):
        if isinstance(row.get(name), dict):
            row[name] = {key: value for key, value in row[name].items() if value is not None or key not in fields}
    _check_fields(where, row)
    _check_numbers(where, row)
    if row["task"] not in tasks:
        raise InputError(
            f"{where}: the task {_short(row['task'])} is not one of {', '.join(sorted(tasks))}. Correct it, or name a "
            "task of your own with `--task`."
        )
    if row["path"] not in PATHS_AND_LABEL:
        raise InputError(f"{where}: unknown path {_short(row['path'])}. Choose one of {', '.join(PATHS_AND_LABEL)}.")
    params = dict(row.get("params", {}))
    prompt_hash = params.pop("prompt_hash", "")
    if not isinstance(prompt_hash, str):
        raise InputError(f"{where}: 'prompt_hash' of 'params' is {_short(prompt_hash)}. Write it as a string.")
    return ThoughtLine(
        where=where,
        task=row["task"],
        path=row["path"],
        text=row["text"].strip(),
        id=row.get("id"),
        question=row.get("question"),
        gold=str(row["gold"]) if canonical(row.get("gold")) not in NO_ANSWER else None,
        answer=None if "answer" not in row else str(row["answer"]),
        logprob=row.get("logprob"),
        model=row.get("model", ""),
        prompt_hash=prompt_hash,
        params=params,
        usage=row.get("usage", {}),
        index=row.get("index"),
        finish_reason=row.get("finish_reason", "stop"),
    )


def _check_fields(where: str, row: dict[str, Any]) -> None:
    """Check that the required fields are there and that every field has the right type."""
    for name in ("task", "path", "text"):
        if name not in row:
            raise InputError(f"{where}: {name!r} is missing in {_short(row)}. {FORM}.")
    if "id" not in row and "question" not in row:
        raise InputError(f"{where}: 'id' or 'question' is missing in {_short(row)}. {FORM}.")
    for name in ("task", "path", "text", "id", "question", "model", "finish_reason"):
        if not isinstance(row.get(name, ""), str):
            raise InputError(f"{where}: {name!r} is {_short(row[name])}. Write it as a string.")
    if not row.get("question", "question").strip():
        raise InputError(f"{where}: 'question' is empty. Write its text, or leave it out if there is an 'id'.")
    for name in ("gold", "answer"):
        if not (isinstance(row.get(name, ""), str) or _is_number(row[name])):
            raise InputError(f"{where}: {name!r} is {_short(row[name])}. Write it as a string or a number.")
    for name in _JSON_COLUMNS:
        if not isinstance(row.get(name, {}), dict):
            raise InputError(f"{where}: {name!r} is {_short(row[name])}. Write it as an object.")


def _check_numbers(where: str, row: dict[str, Any]) -> None:
    """Check that the numbers of a row are in their range."""
    index = row.get("index", 0)
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < 2**31:
        raise InputError(f"{where}: 'index' is {_short(index)}. Write the index of a sample from 0, or leave it out.")
    logprob = row.get("logprob", 0.0)
    if not (_is_number(logprob) and -math.inf < logprob <= 0):
        raise InputError(
            f"{where}: 'logprob' is {_short(logprob)}. Write the mean log-probability per token, a number up to 0, or "
            "leave it out."
        )
    for name in _TOKEN_COUNTS:
        value = row.get("usage", {}).get(name, 0)
        if not (_is_number(value) and 0 <= value < 2**53):
            raise InputError(f"{where}: {name!r} of 'usage' is {_short(value)}. Write a number of tokens.")
    for name in FLOAT_PARAMS:
        value = row.get("params", {}).get(name, 0)
        if not (_is_number(value) and 0 <= value < 1e6):
            raise InputError(f"{where}: {name!r} of 'params' is {_short(value)}. Write a number.")


class QuestionFinder:
    r"""
    Finds the question that a row of a thought file belongs to.

    Args:
        questions (`Iterable[Question]`):
            Known questions.
        split (`str`):
            Split of new questions that come without an id, and the split to search first for a question's text.
    """

    def __init__(self, questions: Iterable[Question], split: str):
        self.split = split
        self.by_id: dict[str, Question] = {}
        self._by_text: dict[tuple[str, str], list[Question]] = defaultdict(list)
        for question in questions:
            self.add(question)

    def add(self, question: Question) -> None:
        """Add a known question."""
        self.by_id[question.id] = question
        self._by_text[question.task, _normalize(question.question)].append(question)

    def find(self, line: ThoughtLine) -> Question | None:
        r"""
        Find the question of a row.

        Args:
            line ([`ThoughtLine`]):
                The row.

        Returns:
            `Question` or `None`: The known question, `None` if the row brings a new one for [`QuestionFinder.new`].

        Raises:
            `InputError`: The row contradicts the known question, or belongs to none and does not bring one.
        """
        known = self._find_by_text(line) if line.id is None else self._find_by_id(line)
        if known is not None and line.gold not in (None, known.answer) and not equal(line.gold, known.answer):
            raise InputError(
                f"{line.where}: the gold answer of {known.id!r} is {known.answer!r} in the store, not {line.gold!r}. "
                "Correct one of them."
            )
        return known

    def _find_by_text(self, line: ThoughtLine) -> Question | None:
        # Several splits may contain the same text.
        known = self._by_text.get((line.task, _normalize(line.question)), [])
        known = [question for question in known if question.split == self.split] or known
        if not known and line.gold is None:
            raise InputError(
                f"{line.where}: no question of {line.task} in the store has the text {line.question!r}. Correct it, "
                'add the questions first (`--source`), or give the row its "gold" answer to add the question.'
            )
        return known[0] if known else None

    def _find_by_id(self, line: ThoughtLine) -> Question | None:
        known = self.by_id.get(line.id)
        if known is None and (line.question is None or line.gold is None):
            raise InputError(
                f"{line.where}: unknown question id {line.id!r}. Correct it, add the questions first (`--source`), or "
                'give the row its "question" and "gold" answer to add the question.'
            )
        if known is not None and known.task != line.task:
            raise InputError(
                f"{line.where}: {line.id!r} is a question of {known.task}, not of {line.task}. Correct one of them."
            )
        if None not in (known, line.question) and _normalize(line.question) != _normalize(known.question):
            raise InputError(
                f"{line.where}: {line.id!r} is {known.question!r} in the store, not {line.question!r}. Correct the id "
                "or the text."
            )
        return known

    def new(self, line: ThoughtLine) -> Question:
        """Build the new question that a row brings."""
        if line.id is None:
            digest = hashlib.sha256(_normalize(line.question).encode()).hexdigest()[:12]
            return Question(
                f"{line.task}/{self.split}/import-{digest}", line.task, self.split, line.question, line.gold
            )
        task, split, name = (line.id.split("/", 2) + ["", ""])[:3]
        if task != line.task or not split or not name:
            raise InputError(
                f"{line.where}: the id of a new question is {line.id!r}. Write it as `{line.task}/SPLIT/NAME`, or "
                "leave it out."
            )
        return Question(line.id, line.task, split, line.question, line.gold)


def _normalize(text: str) -> str:
    return " ".join(text.split())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def _short(value: Any) -> str:
    """Shorten a value for a message."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
