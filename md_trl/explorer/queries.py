"""Ask the catalog: which rows match, one page of them, how their values are distributed, all of them as JSON lines."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from ..mixing import LAMBDA_BINS
from ..records import PATHS, QuestionType
from .catalog import Catalog


PAGE_SIZE = 25
"""Questions on one page."""
BINS = 24
"""Bins of a histogram."""
GRID = 21
"""Cells per side of the grid of n1 and n2: with up to 20 thoughts per path, one cell per number."""

AGREEMENT = {
    "agree": "both paths vote alike",
    "differ": "the votes of the paths differ",
    "one": "only one path has a vote",
    "none": "no path has a vote",
}
"""Whether the votes of both paths agree, see [`~md_trl.explorer.catalog.agreement_of`]."""
_RIGHT_THOUGHTS = "(r.n_cot_correct + r.n_pot_correct)"
OUTCOMES = {
    "right": ("joint vote right", "r.correct"),
    "wrong": ("joint vote wrong", "NOT r.correct"),
    "outvoted": ("wrong, though some thought is right", f"NOT r.correct AND {_RIGHT_THOUGHTS} > 0"),
    "never": ("no thought is right", f"{_RIGHT_THOUGHTS} = 0"),
}
"""Whether the joint vote is right: label and condition."""
RELATIONS = {
    "any": ("both answered", "1"),
    "differ": ("joint votes differ", "r.vote IS NOT o.vote"),
    "this": ("only the first is right", "r.correct AND NOT o.correct"),
    "other": ("only the second is right", "NOT r.correct AND o.correct"),
    "neither": ("both are wrong", "NOT r.correct AND NOT o.correct"),
    "type": ("types differ", "r.type != o.type"),
}
"""How the joint votes of two authors on a question compare: label and condition."""
SORTS = {
    "order": ("in order", "r.n"),
    "close": ("closest to λ = ½", "abs(r.lambda - 0.5) IS NULL, abs(r.lambda - 0.5), r.n"),
    "hard": ("fewest right thoughts", f"CAST({_RIGHT_THOUGHTS} AS REAL) / max(r.n_cot + r.n_pot, 1), r.n"),
    "long": ("longest thoughts", "max(coalesce(r.cot_chars, 0), coalesce(r.pot_chars, 0)) DESC, r.n"),
    "tokens": ("most tokens", "r.tokens IS NULL, r.tokens DESC, r.n"),
}
"""Orders of rows: label and SQL. All are total."""
HISTOGRAMS = ("cot_chars", "pot_chars", "tokens", "cost")
"""Columns that [`histogram`] takes."""


@dataclass(frozen=True)
class Filters:
    r"""
    Which rows to show, and in which order.

    Args:
        author (`int`, *optional*):
            Number of the author. By default all.
        task (`str`, *optional*), split (`str`, *optional*):
            Task and split.
        types (`tuple[int, ...]`, *optional*, defaults to `()`):
            Types of questions. Empty for all.
        lambda_low (`float`, *optional*, defaults to `0.0`), lambda_high (`float`, *optional*, defaults to `1.0`):
            Range of lambda, both ends included. Narrower than the default, it selects only questions of type 3.
        agreement (`str`, *optional*):
            A key of [`AGREEMENT`].
        outcome (`str`, *optional*):
            A key of [`OUTCOMES`].
        text (`str`, *optional*, defaults to `""`):
            Text that the question or its id contains, whatever the case.
        other (`int`, *optional*):
            Number of another author that has answered the question, too.
        relation (`str`, *optional*, defaults to `"any"`):
            A key of [`RELATIONS`]: how `other` compares. It has no effect without `other`.
        sort (`str`, *optional*, defaults to `"order"`):
            A key of [`SORTS`].

    Raises:
        `InputError`: One of the values is unknown.
    """

    author: int | None = None
    task: str | None = None
    split: str | None = None
    types: tuple[int, ...] = ()
    lambda_low: float = 0.0
    lambda_high: float = 1.0
    agreement: str | None = None
    outcome: str | None = None
    text: str = ""
    other: int | None = None
    relation: str = "any"
    sort: str = "order"

    def __post_init__(self):
        choices = {"agreement": AGREEMENT, "outcome": OUTCOMES, "relation": RELATIONS, "sort": SORTS}
        for name, known in choices.items():
            value = getattr(self, name)
            if value is not None and value not in known:
                raise InputError(f"Unknown {name} {value!r}. Choose from {', '.join(known)}.")


class Bin(NamedTuple):
    """One bin of a histogram: from `low` to below `high` (the last one includes it), and how many rows are in it."""

    low: float
    high: float
    count: int


def _from_where(filters: Filters) -> tuple[str, list[Any]]:
    """Write filters as SQL from `FROM` on, with the values of its placeholders. The other author's row is `o`."""
    join, parts, values = "", ["1"], []
    if filters.other is not None:
        join = " JOIN rows o ON o.n = (SELECT min(n) FROM rows WHERE id = r.id AND author = ?)"
        values.append(filters.other)
        parts += ["r.author != o.author", RELATIONS[filters.relation][1]]
    for name in ("author", "task", "split", "agreement"):
        if (value := getattr(filters, name)) is not None:
            parts.append(f"r.{name} = ?")
            values.append(value)
    if filters.types:
        parts.append(f"r.type IN ({', '.join('?' * len(filters.types))})")
        values += filters.types
    if filters.lambda_low > 0 or filters.lambda_high < 1:
        parts.append("r.type = ? AND r.lambda BETWEEN ? AND ?")
        values += [int(QuestionType.BOTH), filters.lambda_low, filters.lambda_high]
    if filters.outcome is not None:
        parts.append(OUTCOMES[filters.outcome][1])
    if needle := filters.text.strip().casefold():
        parts.append("(contains(r.question, ?) OR contains(r.id, ?))")
        values += [needle, needle]
    return f"FROM rows r{join} WHERE {' AND '.join(f'({part})' for part in parts)}", values


def _ask(catalog: Catalog, query: str, filters: Filters, *values: Any) -> list[sqlite3.Row]:
    """Run a query in which `{rows}` stands for the rows that match."""
    rows, of_filters = _from_where(filters)
    with catalog.connect() as db:
        db.create_function("contains", 2, _contains, deterministic=True)
        return db.execute(query.replace("{rows}", rows), [*of_filters, *values]).fetchall()


def _contains(text: str | None, needle: str) -> bool:
    return needle in (text or "").casefold()


def count(catalog: Catalog, filters: Filters) -> int:
    """Return the number of rows that match."""
    return _ask(catalog, "SELECT count(*) {rows}", filters)[0][0]


def page(catalog: Catalog, filters: Filters, number: int = 1, size: int = PAGE_SIZE) -> list[sqlite3.Row]:
    r"""
    Return one page of the rows that match, without their thoughts.

    Args:
        catalog ([`~md_trl.explorer.catalog.Catalog`]):
            The catalog.
        filters ([`Filters`]):
            Which rows, in which order.
        number (`int`, *optional*, defaults to `1`):
            Number of the page, from 1.
        size (`int`, *optional*, defaults to `25`):
            Rows on a page.

    Returns:
        `list[sqlite3.Row]`: Columns of the table `rows`, and `other_vote` and `other_correct` if the filters name
            another author.
    """
    other = ", o.vote AS other_vote, o.correct AS other_correct" if filters.other is not None else ""
    order = SORTS[filters.sort][1]
    query = f"SELECT r.*{other} {{rows}} ORDER BY {order} LIMIT ? OFFSET ?"
    return _ask(catalog, query, filters, size, (max(number, 1) - 1) * size)


def answered_by(catalog: Catalog, question_id: str) -> list[sqlite3.Row]:
    """Return the rows of all authors that answered a question, in the order of the authors."""
    with catalog.connect() as db:
        query = (
            "SELECT r.*, a.name, a.source FROM rows r JOIN authors a USING (author) WHERE id = ? ORDER BY author, n"
        )
        return db.execute(query, (question_id,)).fetchall()


def have_common_questions(catalog: Catalog, author: int | None, other: int) -> bool:
    """Return whether an author, or any if it is `None`, answered a question that another one answered."""
    return count(catalog, Filters(author=author, other=other)) > 0


def places_of(catalog: Catalog, author: int) -> list[str]:
    """Return the tasks and splits of the questions that an author answered, as in `svamp/test`."""
    with catalog.connect() as db:
        query = "SELECT DISTINCT task, split FROM rows WHERE author = ? ORDER BY 1, 2"
        return ["/".join(filter(None, place)) or "questions without a split" for place in db.execute(query, (author,))]


def row(catalog: Catalog, n: int) -> sqlite3.Row | None:
    """Return one row by its number."""
    with catalog.connect() as db:
        return db.execute("SELECT * FROM rows WHERE n = ?", (n,)).fetchone()


def authors(catalog: Catalog) -> dict[int, str]:
    """Return the names of all authors by number. Where two have the same name, it is followed by their source."""
    with catalog.connect() as db:
        found = [tuple(row) for row in db.execute("SELECT author, name, source FROM authors ORDER BY author")]
    short = [name if _alone(name, found) else f"{name} ({Path(source).name})" for _, name, source in found]
    return {
        author: label if short.count(label) == 1 else f"{name} ({source})"
        for label, (author, name, source) in zip(short, found, strict=True)
    }


def _alone(name: str, found: list[tuple[int, str, str]]) -> bool:
    return sum(name == other for _, other, _ in found) == 1


def values_of(catalog: Catalog, column: str) -> list[str]:
    """Return the distinct values of the column `task` or `split`."""
    with catalog.connect() as db:
        query = f"SELECT DISTINCT {column} FROM rows WHERE {column} IS NOT NULL ORDER BY 1"
        return [value for (value,) in db.execute(query)]


def notes(catalog: Catalog) -> list[str]:
    """Return what the sources do not hold."""
    with catalog.connect() as db:
        return [text for (text,) in db.execute("SELECT DISTINCT text FROM notes")]


def totals(catalog: Catalog) -> tuple[int, int]:
    """Return the numbers of distinct questions and of thoughts in the catalog."""
    with catalog.connect() as db:
        query = "SELECT count(DISTINCT id), coalesce(sum(n_cot + n_pot), 0) FROM rows"
        return tuple(db.execute(query).fetchone())


def count_types(catalog: Catalog, filters: Filters) -> dict[QuestionType, int]:
    """Return the number of rows of each type."""
    found = dict(tuple(row) for row in _ask(catalog, "SELECT r.type, count(*) {rows} GROUP BY 1", filters))
    return {type_: found.get(int(type_), 0) for type_ in QuestionType}


def lambda_bins(catalog: Catalog, filters: Filters) -> list[Bin]:
    """Return the distribution of lambda among questions of type 3, in tenths."""
    query = (
        f"SELECT min(CAST(r.lambda * {LAMBDA_BINS} AS INTEGER), {LAMBDA_BINS - 1}), count(*) {{rows}} "
        f"AND r.type = {int(QuestionType.BOTH)} AND r.lambda IS NOT NULL GROUP BY 1"
    )
    found = dict(tuple(row) for row in _ask(catalog, query, filters))
    return [Bin(i / LAMBDA_BINS, (i + 1) / LAMBDA_BINS, found.get(i, 0)) for i in range(LAMBDA_BINS)]


def histogram(catalog: Catalog, filters: Filters, column: str, bins: int = BINS) -> list[Bin]:
    r"""
    Return the distribution of a column.

    Args:
        catalog ([`~md_trl.explorer.catalog.Catalog`]):
            The catalog.
        filters ([`Filters`]):
            Which rows.
        column (`str`):
            One of [`HISTOGRAMS`].
        bins (`int`, *optional*, defaults to `24`):
            Number of bins between the smallest and the largest value.

    Returns:
        `list[Bin]`: The bins, empty if no row has a value, and a single one if all are equal.
    """
    low, high, total = _ask(catalog, f"SELECT min(r.{column}), max(r.{column}), count(r.{column}) {{rows}}", filters)[
        0
    ]
    if not total or low == high:
        return [Bin(low, high, total)] if total else []
    width = (high - low) / bins
    query = (
        f"SELECT min(CAST((r.{column} - {low!r}) / {width!r} AS INTEGER), {bins - 1}), count(*) {{rows}} "
        f"AND r.{column} IS NOT NULL GROUP BY 1"
    )
    found = dict(tuple(row) for row in _ask(catalog, query, filters))
    return [Bin(low + i * width, low + (i + 1) * width, found.get(i, 0)) for i in range(bins)]


def correct_grid(catalog: Catalog, filters: Filters) -> tuple[int, list[list[int]]]:
    r"""
    Count rows by their numbers of correct CoT (n1) and PoT thoughts (n2), if both paths were sampled.

    Returns:
        `tuple[int, list[list[int]]]`: How many numbers share a cell, and the count of rows by cell of n1 and of n2.
    """
    query = "SELECT r.n_cot_correct, r.n_pot_correct, count(*) {rows} AND r.type IS NOT NULL GROUP BY 1, 2"
    found = [tuple(row) for row in _ask(catalog, query, filters)]
    largest = max((max(n1, n2) for n1, n2, _ in found), default=0)
    step = largest // GRID + 1
    side = largest // step + 1
    grid = [[0] * side for _ in range(side)]
    for n1, n2, number in found:
        grid[n1 // step][n2 // step] += number
    return step, grid


def export(catalog: Catalog, filters: Filters) -> Iterator[str]:
    r"""
    Write all rows that match as JSON lines: mixed rows with their thoughts, in the order of their sources.

    Args:
        catalog ([`~md_trl.explorer.catalog.Catalog`]):
            The catalog.
        filters ([`Filters`]):
            Which rows. Their order is ignored.

    Yields:
        `str`: One line per row: the columns of a mixed row, then `split`, `author`, `vote`, `correct`, and the
            thoughts that reach no answer.
    """
    names = authors(catalog)
    for found, thoughts in catalog.iterate_thoughts(_iterate(catalog, filters)):
        columns = ("id", "task", "question", "answer", "type", "lambda", "repeat")
        columns += tuple(f"n_{path}" for path in PATHS) + tuple(f"n_{path}_correct" for path in PATHS)
        columns += tuple(f"{path}_vote" for path in PATHS)
        line = {name: found[name] for name in columns} | {path: thoughts[path] for path in PATHS}
        line |= {"split": found["split"], "author": names[found["author"]], "vote": found["vote"]}
        line["correct"] = bool(found["correct"])
        line |= {f"{path}_unusable": thoughts[f"{path}_unusable"] for path in PATHS}
        yield json.dumps(line, ensure_ascii=False) + "\n"


def _iterate(catalog: Catalog, filters: Filters) -> Iterator[sqlite3.Row]:
    last = 0
    while rows := _ask(catalog, "SELECT r.* {rows} AND r.n > ? ORDER BY r.n LIMIT 1000", filters, last):
        yield from rows
        last = rows[-1]["n"]
