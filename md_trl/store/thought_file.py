"""The form of a thought file (JSONL or Parquet, a thought a line), checked line by line, and whose thoughts they are.

[`~md_trl.store.Store.import_thoughts`] says what the fields mean.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..records import PATHS, Question


FORM = (
    'Each line is an object: {"task": "svamp", "id": "svamp/train/chal-12", "path": "cot", "text": "..."}, or with '
    '"question" instead of "id"'
)
COLUMNS = (
    "task",
    "id",
    "question",
    "gold",
    "path",
    "index",
    "text",
    "finish_reason",
    "answer",
    "model",
    "params",
    "usage",
)
_PATHS = (*PATHS, "label")


@dataclass
class ThoughtLine:
    """One line. `where` names the file and the line, for messages."""

    where: str
    task: str
    path: str
    text: str
    id: str | None = None
    question: str | None = None
    gold: str | None = None
    answer: str | None = None
    model: str = ""
    prompt_hash: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)
    index: int | None = None
    finish_reason: str = "stop"


def read_thought_file(path: str | Path, tasks: Collection[str]) -> Iterator[ThoughtLine]:
    r"""
    Read and check a thought file.

    Args:
        path (`str` or [`~pathlib.Path`]):
            The file: Parquet if its name ends in `.parquet`, else JSONL.
        tasks (`Collection[str]`):
            Names that `task` may have.

    Yields:
        [`ThoughtLine`]: one for each line that is not blank.

    Raises:
        `ValueError`: a line that is malformed, or lacks a field. The message names file, line, value and the way out.
    """
    if Path(path).suffix == ".parquet":
        yield from _read_parquet(path, tasks)
        return
    with open(path, "rb") as file:
        # Lines end at "\n" only: a text may hold other line separators, such as U+2028.
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                where = f"{path}, line {number}"
                yield _check(where, _parse(where, line.decode(errors="surrogateescape")), tasks)


def _read_parquet(path: str | Path, tasks: Collection[str]) -> Iterator[ThoughtLine]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    with open(path, "rb") as stream:
        try:
            batches = ParquetFile(stream).iter_batches(1024)
            rows = enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
        except pyarrow.ArrowException as error:
            raise InputError(f"{path} is not Parquet: {error}. Write JSONL under another name, or Parquet.") from None
        for number, row in rows:
            where = f"{path}, row {number}"
            for name in ("params", "usage"):
                if isinstance(row.get(name), str):
                    row[name] = _parse(f"{where}, column {name!r}", row[name])
            yield _check(where, row, tasks)


def write_thought_file(path: str | Path, lines: Iterable[dict[str, Any]]) -> int:
    r"""
    Write a thought file.

    Args:
        path (`str` or [`~pathlib.Path`]):
            The file; replaced if it exists. Parquet if its name ends in `.parquet`, else JSONL.
        lines (`Iterable[dict]`):
            The thoughts.

    Returns:
        `int`: how many thoughts were written.
    """
    # A name of its own first, so that an export that is cut short replaces nothing.
    partial = Path(f"{path}.partial")
    count = 0
    if Path(path).suffix == ".parquet":
        import pyarrow
        from pyarrow.parquet import ParquetWriter

        schema = pyarrow.schema([(name, pyarrow.int32() if name == "index" else pyarrow.string()) for name in COLUMNS])
        with ParquetWriter(partial, schema) as writer:
            for chunk in _chunks(lines, 10_000):
                for line in chunk:
                    for name in ("params", "usage"):
                        if name in line:
                            line[name] = json.dumps(line[name], sort_keys=True, ensure_ascii=False)
                writer.write_table(pyarrow.Table.from_pylist(chunk, schema))
                count += len(chunk)
    else:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                count += 1
    partial.replace(path)
    return count


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _parse(where: str, line: str) -> Any:
    try:
        row = json.loads(line.encode(errors="surrogateescape").decode(), parse_constant=_refuse_constant)
        # A lone surrogate ("\ud800") and 1e999 pass as JSON, but are no character and no number.
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        shown = _short(line.encode(errors="surrogateescape").decode(errors="replace"))
        raise InputError(f"{where}: {shown} is not JSON: {error}. {FORM}.") from None
    return row


def _check(where: str, row: Any, tasks: Collection[str]) -> ThoughtLine:
    if not isinstance(row, dict):
        raise InputError(f"{where}: {_short(row)} is not an object. {FORM}.")

    # A field that is null counts as left out.
    row = {name: value for name, value in row.items() if value is not None}
    for name in ("task", "path", "text"):
        if name not in row:
            raise InputError(f"{where}: {name!r} is missing in {_short(row)}. {FORM}.")
    if "id" not in row and "question" not in row:
        raise InputError(f"{where}: 'id' or 'question' is missing in {_short(row)}. {FORM}.")

    for name in ("task", "path", "text", "id", "question", "model", "finish_reason"):
        if not isinstance(row.get(name, ""), str):
            raise InputError(f"{where}: {name!r} is {_short(row[name])}. Write it as a string.")
    for name in ("gold", "answer"):
        if not (isinstance(row.get(name, ""), str) or _is_number(row[name])):
            raise InputError(f"{where}: {name!r} is {_short(row[name])}. Write it as a string or a number.")
    for name in ("params", "usage"):
        if not isinstance(row.get(name, {}), dict):
            raise InputError(f"{where}: {name!r} is {_short(row[name])}. Write it as an object.")
    index = row.get("index", 0)
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < 2**31:
        raise InputError(f"{where}: 'index' is {_short(index)}. Write a sample's number from 0 on, or leave it out.")
    for name, value in row.get("usage", {}).items():
        if name in ("prompt_tokens", "cached_tokens", "completion_tokens") and not (
            _is_number(value) and 0 <= value < 2**53
        ):
            raise InputError(f"{where}: {name!r} of 'usage' is {_short(value)}. Write a number of tokens.")
    params = row.get("params", {})
    for name in ("temperature", "top_p"):
        if name in params and not (_is_number(params[name]) and 0 <= params[name] < 1e6):
            raise InputError(f"{where}: {name!r} of 'params' is {_short(params[name])}. Write a number.")
    prompt_hash = params.pop("prompt_hash", "")
    if not isinstance(prompt_hash, str):
        raise InputError(f"{where}: 'prompt_hash' of 'params' is {_short(prompt_hash)}. Write it as a string.")

    if row["task"] not in tasks:
        raise InputError(
            f"{where}: the task {_short(row['task'])} is not one of {', '.join(sorted(tasks))}. Correct it, or import "
            "a task of your own by its name with `--task`."
        )
    if row["path"] not in _PATHS:
        raise InputError(f"{where}: unknown path {_short(row['path'])}. Choose one of {', '.join(_PATHS)}.")
    return ThoughtLine(
        where=where,
        task=row["task"],
        path=row["path"],
        text=row["text"].strip(),
        id=row.get("id"),
        question=row.get("question"),
        gold=str(row["gold"]) if str(row.get("gold", "")).strip() else None,
        answer=None if "answer" not in row else str(row["answer"]),
        model=row.get("model", ""),
        prompt_hash=prompt_hash,
        params=params,
        usage=row.get("usage", {}),
        index=row.get("index"),
        finish_reason=row.get("finish_reason", "stop"),
    )


class QuestionFinder:
    """Finds the questions of a thought file among those known, which are given with a key each."""

    def __init__(self, questions: Iterable[tuple[int, Question]], split: str):
        self.split = split
        self.by_id: dict[str, tuple[int, Question]] = {}
        self.by_text: dict[tuple[str, str], list[str]] = defaultdict(list)
        for key, question in questions:
            self.add(key, question)

    def add(self, key: int, question: Question) -> None:
        self.by_id[question.id] = key, question
        self.by_text[question.task, _normalize(question.question)].append(question.id)

    def find(self, line: ThoughtLine) -> int | None:
        """Key of the line's question, `None` if it is new. A line that cannot be placed is an error."""
        if line.id is None:
            # The same text may stand in several splits: the split that was asked for comes first.
            ids = self.by_text.get((line.task, _normalize(line.question)), [])
            ids = [id_ for id_ in ids if self.by_id[id_][1].split == self.split] or ids
            if ids:
                return self.by_id[ids[0]][0]
            if line.gold is None:
                raise InputError(
                    f"{line.where}: no question of {line.task} in the store has the text {line.question!r}. Correct "
                    'it, add the questions first (`--source`), or give the line its "gold" answer to add it.'
                )
            return None
        if line.id not in self.by_id:
            if line.question is None or line.gold is None:
                raise InputError(
                    f"{line.where}: unknown question id {line.id!r}. Correct it, add the questions first "
                    '(`--source`), or give the line its "question" and "gold" answer to add it.'
                )
            return None
        key, known = self.by_id[line.id]
        if known.task != line.task:
            raise InputError(
                f"{line.where}: {line.id!r} is a question of {known.task}, not of {line.task}. Correct one."
            )
        if line.question is not None and _normalize(line.question) != _normalize(known.question):
            raise InputError(
                f"{line.where}: {line.id!r} is {known.question!r} in the store, not {line.question!r}. Correct the id "
                "or the text."
            )
        return key

    def new(self, line: ThoughtLine) -> Question:
        """The question that a line brings along."""
        if line.id is None:
            digest = hashlib.sha256(_normalize(line.question).encode()).hexdigest()[:12]
            id_, split = f"{line.task}/{self.split}/import-{digest}", self.split
        else:
            id_ = line.id
            task, split, name = (id_.split("/", 2) + ["", ""])[:3]
            if task != line.task or not split or not name:
                raise InputError(
                    f"{line.where}: the id of a new question is {id_!r}. Write it as `{line.task}/SPLIT/NAME`, or "
                    "leave it out."
                )
        return Question(id_, line.task, split, line.question, line.gold)


def _normalize(text: str) -> str:
    return " ".join(text.split())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _short(value: Any) -> str:
    """A value as it stands in a message."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
