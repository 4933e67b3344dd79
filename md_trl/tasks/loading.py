"""What the loaders of published data sets share: rows that know their place, and seeded splits."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError


@dataclass(frozen=True)
class Row:
    r"""
    One row of a data set, with what an error about it has to say.

    Args:
        where (`str`):
            File or Hub id, and the 1-based number of the row.
        values (`dict`):
            The row by column.
        remedy (`str`):
            Sentence that says where good data are.
    """

    where: str
    values: dict[str, Any]
    remedy: str

    def __getitem__(self, column: str) -> Any:
        if column not in self.values:
            raise InputError(
                f"{self.where}: there is no column {column!r}, only {', '.join(map(repr, self.values))}. {self.remedy}"
            )
        return self.values[column]

    def text(self, column: str) -> str:
        """The column's text, which must not be empty, without outer white space."""
        if not isinstance(self[column], str) or not self[column].strip():
            raise self.error(column, "a text")
        return self[column].strip()

    def error(self, column: str, expected: str) -> ValueError:
        """The error to raise when the column holds something else than expected."""
        return InputError(f"{self.where}: {column!r} is {self[column]!r:.200}, expected {expected}. {self.remedy}")


def hub_rows(repo: str, config: str | None, split: str, remedy: str) -> list[Row]:
    """Rows of a split of a dataset on the Hub."""
    from datasets import load_dataset

    try:
        dataset = load_dataset(repo, config, split=split)
    # Not reachable or not there; no such config or split; kept as a loading script.
    except (OSError, ValueError, RuntimeError) as error:
        raise ConnectionError(f"Could not load split {split!r} of {repo!r} from the Hub: {error} {remedy}") from error
    return [Row(f"{repo}, split {split}, row {n}", values, remedy) for n, values in enumerate(dataset, 1)]


def find_file(source: str | Path, names: Sequence[str], remedy: str) -> Path:
    """The file itself, or the first of `names` that the folder `source` holds."""
    source = Path(source)
    for path in [source / name for name in names] if source.is_dir() else [source]:
        if path.is_file():
            return path
    problem = f"holds no {' or '.join(names)}" if source.is_dir() else "does not exist"
    raise FileNotFoundError(f"{source} {problem}. {remedy}")


def json_rows(path: Path, remedy: str) -> list[Row]:
    """Rows of a file with one JSON list of objects."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not a JSON file: {error}. {remedy}") from error
    if not isinstance(rows, list):
        raise InputError(f"{path} holds {rows!r:.80}, expected a list of objects. {remedy}")
    return [_object(values, f"{path}, row {n}", remedy) for n, values in enumerate(rows, 1)]


def jsonl_rows(path: Path, remedy: str) -> list[Row]:
    """Rows of a file with one JSON object a line."""
    rows = []
    with path.open(encoding="utf-8") as lines:
        try:
            for line in lines:
                rows.append(_object(json.loads(line), f"{path}, row {len(rows) + 1}", remedy))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(f"{path}, row {len(rows) + 1} is not JSON: {error}. {remedy}") from error
    return rows


def _object(values: Any, where: str, remedy: str) -> Row:
    if not isinstance(values, dict):
        raise InputError(f"{where}: {values!r:.80} is not an object. {remedy}")
    return Row(where, values, remedy)


def check_names(names: list[str], size: int, where: str, remedy: str) -> None:
    """Raises unless there are `size` different names: part of a data set would silently give other splits."""
    if len(names) != size:
        raise InputError(f"{where} holds {len(names):,} rows, expected {size:,}. {remedy}")
    if len(set(names)) != size:
        twice = next(name for n, name in enumerate(names) if name in names[:n])
        raise InputError(f"{where} holds {twice!r} twice. {remedy}")


def draw_test(strata: dict[str, str], size: int, seed: int) -> set[str]:
    r"""
    Draw a test set in which every stratum has its share.

    It depends on names, strata, size and seed alone: not on the order of the rows, nor on the version of Python, since
    `random()` gives the same numbers in all of them.

    Args:
        strata (`dict[str, str]`):
            The stratum of every name.
        size (`int`):
            Number of names to draw. Shares are rounded by largest remainder, so that they add up to it.
        seed (`int`):
            Seed of the draw.

    Returns:
        `set[str]`: the names drawn.
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
