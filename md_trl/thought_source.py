"""Raw thoughts from where others published them: a thought file, or a dataset on the Hub, as a temporary store."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from pyarrow import parquet

from .errors import InputError
from .records import Question
from .store import Store
from .store.thought_file import COLUMNS, thought_rows
from .tasks.names import THOUGHTS_ENDING


REQUIRED = ("task", "question", "gold", "path", "text")


def thoughts_of(task: str) -> str:
    """Return the name of the configuration of a dataset that holds the raw thoughts of a task."""
    return task + THOUGHTS_ENDING


def thoughts_digest(thoughts: str | Path, task: str) -> str:
    r"""
    Compute what tells raw thoughts from others: a digest of the file, or the commit of the dataset on the Hub.

    Args:
        thoughts (`str` or `Path`):
            Thought file, or Hub id or folder of a dataset.
        task (`str`):
            Task of the thoughts.

    Returns:
        `str`: The digest.

    Raises:
        `FileNotFoundError`: There is no such file or dataset.
        `InputError`: The dataset has no raw thoughts of the task.
    """
    if not Path(thoughts).exists():
        return _builder(thoughts, task).hash
    state = hashlib.sha256()
    for file in _local_files(thoughts, task):
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                state.update(block)
    return state.hexdigest()


@contextmanager
def open_thoughts(
    thoughts: str | Path, task: str, folder: str | Path, questions: Iterable[Question] = ()
) -> Iterator[Store]:
    r"""
    Read the raw thoughts of a task into a temporary store.

    Args:
        thoughts (`str` or `Path`):
            Thought file, as [`~md_trl.store.Store.import_thoughts`] reads it, or Hub id or folder of a dataset with a
            configuration `{task}-thoughts`.
        task (`str`):
            Task of the thoughts. Those of other tasks are skipped.
        folder (`str` or `Path`):
            Existing folder to keep the store in for as long as it is open.
        questions (`Iterable[Question]`, *optional*, defaults to `()`):
            Questions that thoughts may refer to by id or text, without their gold answer.

    Yields:
        [`~md_trl.store.Store`]: The store.

    Raises:
        `FileNotFoundError`: There is no such file or dataset.
        `InputError`: A row cannot be used, a column is missing or of another type, or there is no thought of the task.
    """
    rows = _local_rows(thoughts, task) if Path(thoughts).exists() else _hub_rows(thoughts, task)
    with tempfile.TemporaryDirectory(prefix=".thoughts-", dir=folder) as temporary:
        file = Path(temporary) / "thoughts.db"
        with Store(file) as store:
            try:
                store.questions.add(questions)
                store.import_rows(_of_task(rows, task, thoughts), task)
                yield store
            except InputError as error:
                # The user knows the thoughts by another name.
                raise InputError(str(error).replace(str(file), str(thoughts))) from error


def _of_task(rows: Iterator[tuple[str, Any]], task: str, thoughts: str | Path) -> Iterator[tuple[str, Any]]:
    others, found = set(), False
    for where, row in rows:
        if isinstance(row, dict) and row.get("task", task) != task:
            others.add(str(row["task"]))
        else:
            found = True
            yield where, row
    if not found:
        held = f"those of {', '.join(sorted(others))}" if others else "none at all"
        raise InputError(f"{thoughts} has no thoughts of {task}; it holds {held}. Name one of its tasks.")


def _builder(dataset: str | Path, task: str) -> datasets.DatasetBuilder:
    config = thoughts_of(task)
    try:
        return datasets.load_dataset_builder(str(dataset), config)
    except ValueError as error:
        raise InputError(
            f"{dataset} has no raw thoughts of {task}, which are its configuration {config!r}: {error}"
        ) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{dataset} is neither a thought file nor a dataset that can be loaded: {error}"
        ) from error


# `datasets` does not notice that a file in a folder has changed, so the files of a folder are read without it.
def _local_files(thoughts: str | Path, task: str) -> list[Path]:
    if Path(thoughts).is_file():
        return [Path(thoughts)]
    return [Path(file) for of_split in _builder(thoughts, task).config.data_files.values() for file in of_split]


def _local_rows(thoughts: str | Path, task: str) -> Iterator[tuple[str, Any]]:
    for file in _local_files(thoughts, task):
        if file.suffix == ".parquet":
            with contextlib.suppress(pyarrow.ArrowInvalid):  # `thought_rows` says that it is not Parquet
                _check_columns(str(file), parquet.read_schema(file))
        yield from thought_rows(file)


def _hub_rows(dataset: str | Path, task: str) -> Iterator[tuple[str, Any]]:
    """Iterate over the rows of all splits of the raw thoughts of a dataset."""
    builder = _builder(dataset, task)
    builder.download_and_prepare()
    for name, split in builder.as_dataset().items():
        where = f"{dataset}, configuration {thoughts_of(task)}, split {name}"
        _check_columns(where, split.features.arrow_schema)
        number = 0
        for cached in split.cache_files:
            # Not memory-mapped, because mapped pages count as memory of the process.
            with pyarrow.OSFile(cached["filename"]) as stream, pyarrow.ipc.open_stream(stream) as batches:
                for batch in batches:
                    for row in batch.to_pylist():
                        number += 1
                        yield f"{where}, row {number}", row


def _check_columns(where: str, schema: pyarrow.Schema) -> None:
    missing = [name for name in REQUIRED if name not in schema.names]
    if missing:
        raise InputError(
            f"{where} has no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, schema.names))}. Raw "
            f"thoughts have the columns {', '.join(COLUMNS)}."
        )
    types = pyarrow.types
    of_numbers = {"index": ("integers", types.is_integer), "logprob": ("numbers", types.is_floating)}
    for name in ("task", "id", "question", "path", "index", "text", "finish_reason", "logprob", "model"):
        expected, is_expected = of_numbers.get(name, ("strings", _is_string))
        found = schema.field(name).type if name in schema.names else pyarrow.null()
        if not (is_expected(found) or types.is_null(found)):
            raise InputError(f"{where}: the column {name!r} holds {found}, expected {expected}.")


def _is_string(kind: pyarrow.DataType) -> bool:
    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)
