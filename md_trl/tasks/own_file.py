"""A task of one's own: a JSONL, JSON, CSV or Parquet file of questions with their answers."""

from __future__ import annotations

import hashlib
import logging
import math
from collections import defaultdict
from decimal import Decimal
from pathlib import Path

from ..answers.limits import limitation
from ..errors import InputError
from ..records import Question
from .loading import Row, did_you_mean, is_unicode, table_rows
from .names import task_name


logger = logging.getLogger(__name__)

SPLITS = ("train", "test")
TEST_SHARE = 0.2
"""Share of the questions that become `test` if the file has no column `split`."""
HINT = (
    "A file of questions has the columns 'question' and 'answer', and may have 'id', 'split' and 'group' "
    "(docs/own_task.md)."
)
SHOWN_ROWS = 3


def load(file: str | Path, split: str | None = None, seed: int = 42, name: str | None = None) -> list[Question]:
    r"""
    Load a task of one's own.

    Args:
        file (`str` or `Path`):
            A `.jsonl`, `.json`, `.csv` or `.parquet` file with these columns; others are ignored:

            - `question`: a text, which no other row may have.
            - `answer`: a text, a number, or true or false.
            - `id` (*optional*): a text or an integer, which no other row may have. A question without an id is named
              by a digest of its text, so that other rows and the order of the rows do not matter.
            - `split` (*optional*): `train` or `test`. Without it, 20% of the questions are drawn as `test`.
            - `group` (*optional*): kind of the question, by which results are also reported.
        split (`str`, *optional*):
            Split to return. Both by default.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the draw. It depends on the texts of the questions, not on their order.
        name (`str`, *optional*):
            Name of the task. Defaults to the file's name without its ending.

    Returns:
        `list[Question]`: Questions with ids such as `my_task/train/1f0e96cf24a5a7d1`, in the order of the file.

    Raises:
        [`~md_trl.errors.InputError`]: The file, a row or the name of the task cannot be used, or no question is in the
            split.
        `FileNotFoundError`: The file does not exist.
    """
    task = task_name(file, name)
    rows = table_rows(Path(file), HINT)
    if not rows:
        raise InputError(f"{file} holds no questions. {HINT}")
    texts = [row.text("question") for row in rows]
    answers = [_answer(row) for row in rows]
    names = _names(rows, texts)
    splits = _splits(rows, texts, seed)
    _warn_of_limitations(file, rows, answers)
    questions = [
        Question(f"{task}/{of_split}/{name}", task, of_split, text, answer, _group(row))
        for row, text, answer, name, of_split in zip(rows, texts, answers, names, splits, strict=True)
        if split in (None, of_split)
    ]
    if not questions:
        raise InputError(
            f"{file} has no questions of the split {split!r}: all {len(rows):,} are {splits[0]!r}. Add some, or use "
            "the other split."
        )
    return questions


def _answer(row: Row) -> str:
    """Return a text without outer white space, and a number or truth value as text."""
    value = row["answer"]
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float | Decimal) and math.isfinite(value):
        return str(int(value)) if value == int(value) else str(value)
    if isinstance(value, str) and _is_line(value.strip()):
        return value.strip()
    raise row.error("answer", "a text of one line, a number, or true or false")


def _names(rows: list[Row], texts: list[str]) -> list[str]:
    """Name the questions by their ids, or by a digest of their texts. Both must be unique."""
    columns = {str(column) for row in rows for column in row.values}
    # "ID" would silently be ignored. "idx" may well be another column.
    alike = [column for column in columns if column.strip().casefold() == "id"]
    if alike and "id" not in columns:
        raise InputError(f"{rows[0].where}: there is no column 'id'. {did_you_mean('id', alike)}{HINT}")
    names = []
    first_of_text: dict[str, Row] = {}
    first_of_name: dict[str, Row] = {}
    for row, text in zip(rows, texts, strict=True):
        other = first_of_text.setdefault(_normalize(text), row)
        if other is not row:
            raise InputError(f"{row.where}: the question {text!r:.200} is also in {other.where}. Remove one of them.")
        name = _id(row) or _digest(text)[:16]
        other = first_of_name.setdefault(name, row)
        if other is not row:
            raise InputError(f"{row.where}: the id {name!r:.200} is also in {other.where}. Change one of them.")
        names.append(name)
    return names


def _id(row: Row) -> str | None:
    """Return the id of a row, `None` if it has none."""
    value = row.values.get("id")
    if value is None or value == "":
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas writes integers as floats where some are missing
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise row.error("id", "a text or an integer")
    name = str(value).strip()
    if not _is_line(name):
        raise row.error("id", "a text of one line")
    return name


def _group(row: Row) -> str | None:
    """Return the kind of a question that its row names, for accuracies by kind."""
    value = row.values.get("group")
    return None if value in (None, "") else str(value)


def _splits(rows: list[Row], texts: list[str], seed: int) -> list[str]:
    """Return the split of every row: as written, or drawn if no row has any."""
    if any("split" in row.values for row in rows):
        for row in rows:
            if row["split"] not in SPLITS:
                raise row.error("split", " or ".join(map(repr, SPLITS)))
        return [row["split"] for row in rows]
    # A draw would silently replace the split that the user made.
    if question := did_you_mean("split", {column for row in rows for column in row.values}):
        raise InputError(f"{rows[0].where}: there is no column 'split'. {question}{HINT}")
    # Each question has its own random number, so that a new row moves no more than one other question.
    drawn = sorted(texts, key=lambda text: _digest(f"{seed}\n{text}"))
    size = max(math.floor(TEST_SHARE * len(texts) + 0.5), int(len(texts) > 1))
    test = set(drawn[:size])
    return ["test" if text in test else "train" for text in texts]


def _warn_of_limitations(file: str | Path, rows: list[Row], answers: list[str]) -> None:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for row, answer in zip(rows, answers, strict=True):
        if kind := limitation(answer):
            found[kind].append(f"{row.where.rpartition(', ')[2]}: {answer!r:.60}")
    if found:
        kinds = [
            f"{len(shown):,} {kind} ({'; '.join(shown[:SHOWN_ROWS])}{'; ...' if len(shown) > SHOWN_ROWS else ''})"
            for kind, shown in found.items()
        ]
        logger.warning(
            f"{file}: {sum(map(len, found.values())):,} of {len(rows):,} answers can only be compared in part: "
            f"{'; '.join(kinds)}. Where this matters, thoughts are marked wrongly. Ask for plain numbers and short "
            "texts, and name the unit in the question."
        )


def _is_line(text: str) -> bool:
    return text.strip() != "" and len(text.splitlines()) == 1 and is_unicode(text)


def _normalize(text: str) -> str:
    return " ".join(text.split())


def _digest(text: str) -> str:
    return hashlib.sha256(_normalize(text).encode()).hexdigest()
