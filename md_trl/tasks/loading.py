"""What the loaders of tasks share: rows that know where they come from, and seeded splits."""

from __future__ import annotations

import csv
import difflib
import io
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError


if TYPE_CHECKING:
    from datasets import Dataset


SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
"""Endings of the files that [`table_rows`] reads."""
CONVERTED = "refs/convert/parquet"
"""Branch of a dataset on the Hub that holds what the Hub has converted to Parquet."""
_CONVERTIBLE_DIGITS = 4300
"""Python converts no longer text to an integer, by default."""


@dataclass(frozen=True)
class Row:
    r"""
    One row of a dataset, with what an error about it must say.

    Args:
        where (`str`):
            File or Hub id, and the 1-based number of the row.
        values (`dict`):
            Values of the row by column.
        hint (`str`):
            Sentence that says where to get the right data.
    """

    where: str
    values: dict[str, Any]
    hint: str

    def __getitem__(self, column: str) -> Any:
        if column not in self.values:
            raise InputError(
                f"{self.where}: there is no column {column!r}, only {', '.join(map(repr, self.values))}. "
                f"{did_you_mean(column, self.values)}{self.hint}"
            )
        return self.values[column]

    def text(self, column: str) -> str:
        """Return the text of a column without outer white space. It must not be empty."""
        if not isinstance(self[column], str) or not self[column].strip():
            raise self.error(column, "a text")
        if not is_unicode(self[column]):
            raise self.error(column, "valid Unicode")
        return self[column].strip()

    def error(self, column: str, expected: str) -> InputError:
        """Return the error to raise if a column has another value than expected."""
        return InputError(f"{self.where}: {column!r} is {self[column]!r:.200}, expected {expected}. {self.hint}")


def is_unicode(text: str) -> bool:
    """Return whether a text can be stored and sent. JSON may hold halves of a character, such as `"\\ud800"`."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def did_you_mean(column: str, columns: Iterable[str]) -> str:
    """Return a question that names the column which looks like the one wanted, and a space. Empty if none does."""
    by_form = {str(name).strip().casefold(): name for name in columns}
    close = difflib.get_close_matches(column, by_form, n=1, cutoff=0.75)
    return f"Did you mean {column!r} by {by_form[close[0]]!r}? " if close else ""


def hub_rows(repo: str, config: str | None, split: str, hint: str) -> list[Row]:
    r"""
    Load the rows of one split of a dataset on the Hub.

    Args:
        repo (`str`):
            Hub id of the dataset.
        config (`str`, *optional*):
            Configuration of the dataset.
        split (`str`):
            Split as it is named there.
        hint (`str`):
            Sentence that says where to get the data otherwise.

    Returns:
        `list[Row]`: The rows in order.

    Raises:
        `ConnectionError`: The Hub is out of reach, or it has no such dataset, configuration or split.
    """
    try:
        dataset = _load(repo, config, split)
    # The Hub is out of reach, or there is no such dataset, config or split.
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).rstrip().rstrip(".")
        raise ConnectionError(f"Could not load split {split!r} of {repo!r} from the Hub: {reason}. {hint}") from error
    return [Row(f"{repo}, split {split}, row {n}", values, hint) for n, values in enumerate(dataset, 1)]


def _load(repo: str, config: str | None, split: str) -> Dataset:
    from datasets import Dataset, load_dataset
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    try:
        return load_dataset(repo, config, split=split)
    except (ConnectionError, ValueError, RuntimeError) as error:
        # Perhaps a loading script, which `datasets` no longer runs. The Hub converts such datasets itself.
        converted = f"{config or 'default'}/{split}/0000.parquet"
        try:
            return Dataset.from_parquet(hf_hub_download(repo, converted, repo_type="dataset", revision=CONVERTED))
        except (OSError, ValueError, EntryNotFoundError, HfHubHTTPError):
            raise error from None


def find_file(source: str | Path, names: Sequence[str], hint: str) -> Path:
    """Return `source` if it is a file, or the first of `names` in the folder `source`."""
    source = Path(source)
    for file in [source / name for name in names] if source.is_dir() else [source]:
        if file.is_file():
            return file
    problem = f"holds no {' or '.join(names)}" if source.is_dir() else "does not exist"
    raise FileNotFoundError(f"{source} {problem}. {hint}")


def table_rows(file: Path, hint: str) -> list[Row]:
    r"""
    Load the rows of a JSONL, JSON, CSV or Parquet file. The ending of its name decides which of them it is.

    Args:
        file (`Path`):
            The file. Values of a CSV file are strings, and its first row names the columns.
        hint (`str`):
            Sentence that says what the file should hold.

    Returns:
        `list[Row]`: The rows in order. Blank lines are skipped.

    Raises:
        [`~md_trl.errors.InputError`]: The ending is another one, or the file cannot be read as what it says.
        `OSError`: The file cannot be opened.
    """
    readers = dict(zip(SUFFIXES, (jsonl_rows, json_rows, csv_rows, parquet_rows), strict=True))
    if file.suffix.lower() not in readers:
        raise InputError(f"{file} ends in {file.suffix!r}, expected one of {', '.join(SUFFIXES)}. {hint}")
    return readers[file.suffix.lower()](file, hint)


def json_rows(file: Path, hint: str) -> list[Row]:
    """Load the rows of a JSON file that holds one list of objects."""
    try:
        rows = _json(_text(file, hint))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not a JSON file: {error}. {hint}") from error
    if not isinstance(rows, list):
        raise InputError(f"{file} holds {rows!r:.80}, expected a list of objects. {hint}")
    return [_row(values, f"{file}, row {n}", hint) for n, values in enumerate(rows, 1)]


def jsonl_rows(file: Path, hint: str) -> list[Row]:
    """Load the rows of a file with one JSON object per line. Blank lines are skipped, but counted."""
    rows = []
    # Lines end at "\n" only: a text may contain other line separators, such as U+2028.
    for number, line in enumerate(_text(file, hint).split("\n"), 1):
        if line.strip():
            try:
                values = _json(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise InputError(f"{file}, row {number} is not JSON: {error}. {hint}") from error
            rows.append(_row(values, f"{file}, row {number}", hint))
    return rows


def _json(text: str) -> Any:
    """Read JSON. An integer that is too long for Python to convert stays as it is written, and so exact."""
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) <= _CONVERTIBLE_DIGITS else digits)


def csv_rows(file: Path, hint: str) -> list[Row]:
    """Load the rows of a CSV file, as strings. The first row names the columns and is not counted."""
    reader = csv.DictReader(io.StringIO(_text(file, hint), newline=""), strict=True)
    rows: list[Row] = []
    try:
        columns = reader.fieldnames or []
        if len(columns) == 1 and any(separator in columns[0] for separator in ";\t"):
            raise InputError(f"{file} is separated by {columns[0]!r:.80}. Save it with commas between columns. {hint}")
        if doubled := [column for n, column in enumerate(columns) if column in columns[:n]]:
            raise InputError(f"{file} has two columns {doubled[0]!r}. Rename one of them. {hint}")
        for number, values in enumerate(reader, 1):
            if None in values:
                raise InputError(
                    f"{file}, row {number} has more values than there are columns: {values[None]!r:.80}. Put texts "
                    f"with commas in double quotes. {hint}"
                )
            rows.append(_row(values, f"{file}, row {number}", hint))
    except csv.Error as error:
        raise InputError(f"{file}, row {len(rows) + 1} cannot be read as CSV: {error}. {hint}") from error
    return rows


def parquet_rows(file: Path, hint: str) -> list[Row]:
    """Load the rows of a Parquet file."""
    import pyarrow
    from pyarrow import parquet

    with file.open("rb") as stream:
        try:
            rows = parquet.read_table(stream).to_pylist()
        except pyarrow.ArrowException as error:
            raise InputError(f"{file} cannot be read as Parquet: {error}. {hint}") from error
    return [_row(values, f"{file}, row {n}", hint) for n, values in enumerate(rows, 1)]


def _text(file: Path, hint: str) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text: {error}. Save it in this encoding. {hint}") from error


def _row(values: Any, where: str, hint: str) -> Row:
    if not isinstance(values, dict):
        raise InputError(f"{where}: {values!r:.80} is not an object. {hint}")
    return Row(where, values, hint)


def check_names(names: list[str], size: int, where: str, hint: str) -> None:
    """Raise an error unless there are `size` distinct names, because part of a dataset would be split differently."""
    if len(names) != size:
        raise InputError(f"{where} holds {len(names):,} rows, expected {size:,}. {hint}")
    if len(set(names)) != size:
        duplicate = next(name for n, name in enumerate(names) if name in names[:n])
        raise InputError(f"{where} holds {duplicate!r} twice. {hint}")


def draw_test(strata: dict[str, str], size: int, seed: int) -> set[str]:
    r"""
    Draw a stratified test set.

    The draw depends only on the names, strata, size and seed: not on the order of the rows, nor on the version of
    Python, since `random()` gives the same numbers in all of them.

    Args:
        strata (`dict[str, str]`):
            Stratum of every name.
        size (`int`):
            Number of names to draw. Every stratum gets its share, rounded by largest remainder.
        seed (`int`):
            Seed of the draw.

    Returns:
        `set[str]`: The names drawn.
    """
    rng = random.Random(seed)
    groups: dict[str, list[tuple[float, str]]] = {stratum: [] for stratum in sorted(set(strata.values()))}
    for name in sorted(strata):
        groups[strata[name]].append((rng.random(), name))
    shares = {stratum: size * len(group) // len(strata) for stratum, group in groups.items()}
    by_remainder = sorted(groups, key=lambda stratum: -(size * len(groups[stratum]) % len(strata)))
    for stratum in by_remainder[: size - sum(shares.values())]:
        shares[stratum] += 1
    return {name for stratum, group in groups.items() for _, name in sorted(group)[: shares[stratum]]}
