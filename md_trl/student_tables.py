"""Tables of students: a row for each kind of student and figure, with intervals over seeds and questions, and paired
differences below. Published figures stand beside those that they belong to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from .evaluation import FIGURE_NAMES, THIRD_PATH_FIGURES
from .intervals import mean_interval
from .records import LABEL


ENSEMBLE = "ensemble"
"""Kind of the two students of one path each that vote together."""

_KINDS = {
    LABEL: "Label fine-tuning",
    "cot": "CoT distillation",
    "pot": "PoT distillation",
    ENSEMBLE: "Ensemble of two",
    "md": "MD",
}


class Key(NamedTuple):
    r"""
    What a row of a table shows.

    Args:
        kind (`str`):
            Kind of student, as in `md` for the results `md@1`, `md@2`, ...
        figure (`str`):
            One of [`~md_trl.evaluation.FIGURES`].
        variant (`str`, *optional*, defaults to `""`):
            What differs from Eq. 5, for example `ties to PoT`.
    """

    kind: str
    figure: str
    variant: str = ""

    def __str__(self) -> str:
        name = _KINDS.get(self.kind, f"`{self.kind}`")
        figure = "" if self.kind == self.figure else f" + {(FIGURE_NAMES | THIRD_PATH_FIGURES)[self.figure]}"
        return f"{name}{figure}{self.variant and f', {self.variant}'}"

    def minus(self, other: Key) -> str:
        """Return the name of a difference."""
        if self.figure != other.figure or self.variant != other.variant:
            return f"{self} − {other}"
        variant = self.variant and f", {self.variant}"
        return f"{self} − {_KINDS.get(other.kind, f'`{other.kind}`')}".replace(variant, "") + variant


Values = Mapping[str, Mapping[str, float]]
"""A value for each `@SEED` and id of a question."""


@dataclass(frozen=True)
class Cell:
    r"""
    What an accuracy is computed from.

    Args:
        values (`dict[str, dict[str, float]]`):
            For each `@SEED` and id of a question, whether the student is right, or how often.
        votes (`float`, *optional*):
            Number of samples per question.
        at (`Callable`, *optional*):
            Function that returns the values for another number of samples.
    """

    values: Values
    votes: float | None = None
    at: Callable[[float], Values] | None = None


@dataclass(frozen=True)
class Estimate:
    r"""
    A mean with its 95% interval over seeds and questions.

    Args:
        value (`float`), low (`float`), high (`float`):
            The mean and the ends of the interval.
        votes (`float`, *optional*):
            Number of samples per question.
        seeds (`int`):
            Number of training runs.
        n_questions (`int`):
            Number of questions.
        seed (`str`, *optional*, defaults to `""`):
            `@SEED`, if there is a single run that has one.
        votes_b (`float`, *optional*):
            Number of samples of what is subtracted, if it is another one because either stopped early.
    """

    value: float
    low: float
    high: float
    votes: float | None
    seeds: int
    n_questions: int
    seed: str = ""
    votes_b: float | None = None


def estimate(cell: Cell, shares: bool = True) -> Estimate | None:
    r"""
    Return the mean of a cell over its seeds and the questions that all of them have.

    Args:
        cell ([`Cell`]):
            The cell.
        shares (`bool`, *optional*, defaults to `True`):
            Whether its values are accuracies and not differences, see [`~md_trl.intervals.mean_interval`].

    Returns:
        [`Estimate`] or `None`: The mean; `None` if there are fewer than two questions, which have no interval.
    """
    first, *others = cell.values.values()
    ids = [id_ for id_ in first if all(id_ in other for other in others)]
    if len(ids) < 2:
        return None
    table = [[float(of_seed[id_]) for id_ in ids] for of_seed in cell.values.values()]
    seed = next(iter(cell.values)) if len(table) == 1 else ""
    return Estimate(*mean_interval(table, shares), cell.votes, len(table), len(ids), seed)


def difference(a: Cell, b: Cell) -> Estimate | None:
    r"""
    Return the mean difference of two cells, paired by seed and question, at the same number of samples. Where a
    stopping rule decided how many there are, each has its own.

    Args:
        a ([`Cell`]), b ([`Cell`]):
            The cells.

    Returns:
        [`Estimate`] or `None`: The mean of `a` minus that of `b`; `None` if they share no seed, or fewer than two
        questions.
    """
    votes, votes_b = a.votes, b.votes if b.votes != a.votes else None
    if votes_b is not None and a.at is not None and b.at is not None:
        votes, votes_b = min(a.votes, b.votes), None
        a, b = Cell(a.at(votes)), Cell(b.at(votes))
    paired = {
        seed: {id_: value - b.values[seed][id_] for id_, value in of_seed.items() if id_ in b.values[seed]}
        for seed, of_seed in a.values.items()
        if seed in b.values
    }
    found = estimate(Cell(paired, votes), shares=False) if paired else None
    return found and replace(found, votes_b=votes_b)


@dataclass(frozen=True)
class Column:
    r"""
    A column of a table.

    Args:
        title (`str`):
            Its title.
        cells (`dict[Key, Cell]`):
            What its accuracies are computed from, by row.
        task (`str`, *optional*):
            Task of the published figures that belong to it.
        votes (`int`, *optional*):
            Number of samples of the published figures that belong to it.
        x (`float`, *optional*):
            Its place on the axis of a figure.
    """

    title: str
    cells: dict[Key, Cell]
    task: str | None = None
    votes: int | None = None
    x: float | None = None


@dataclass(frozen=True)
class Row:
    r"""
    A row of a table.

    Args:
        key ([`Key`]):
            What it shows.
        cells (`list[Estimate | None]`):
            One entry per column.
        against ([`Key`], *optional*):
            What is subtracted, if it is a row of differences.
        published (`dict[str, list[dict | None]]`, *optional*):
            Published figures by the name of the published student, one entry per column: `accuracy` in percent,
            `source`, and `derived` if the paper does not state it, but it follows from the text.
    """

    key: Key
    cells: list[Estimate | None]
    against: Key | None = None
    published: dict[str, list[dict[str, Any] | None]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Text of the first cell."""
        return str(self.key) if self.against is None else self.key.minus(self.against)


@dataclass(frozen=True)
class StudentTable:
    r"""
    A table of students.

    Args:
        name (`str`):
            Short name in `report.json`.
        title (`str`):
            One sentence above the table.
        columns (`list[Column]`):
            Its columns.
        rows (`list[Row]`):
            Its rows, differences last.
        place (`str`, *optional*, defaults to `""`):
            Task and split, if all columns share one.
        rule (`str`, *optional*, defaults to `""`):
            One sentence below the title: which samples vote, and how.
        shown (`list[bool]`, *optional*):
            Which columns are written as Markdown. Defaults to all; a figure has all of them.
    """

    name: str
    title: str
    columns: list[Column]
    rows: list[Row]
    place: str = ""
    rule: str = ""
    shown: list[bool] | None = None

    @property
    def accuracies(self) -> list[Row]:
        """Rows that are not differences."""
        return [row for row in self.rows if row.against is None]

    def to_markdown(self) -> str:
        """Return the title and the table in Markdown, in percent, differences in percentage points."""
        shown = [i for i, _ in enumerate(self.columns) if self.shown is None or self.shown[i]]
        cells = [cell for row in self.rows for cell in row.cells if cell]
        seeds = {cell.seeds for cell in cells}
        # What all cells share stands above them; a column may give its number of samples
        same_seeds, same_votes = len(seeds) == 1, all(column.votes is not None for column in self.columns)
        note = f", means over {cells[0].seeds} training seeds" if same_seeds and cells[0].seeds > 1 else ""
        lines = [
            f"**{self.title}{note}**",
            "",
            *([self.rule, ""] if self.rule else []),
            "| " + " | ".join(["student", *(self.columns[i].title for i in shown)]) + " |",
            "| --- |" + " ---: |" * len(shown),
        ]
        for row in self.rows:
            signed = row.against is not None
            cells = [_format(row.cells[i], signed, votes=not same_votes, seeds=not same_seeds) for i in shown]
            lines.append(f"| {row.name} | {' | '.join(cells)} |")
            for student, published in row.published.items():
                if any(published[i] for i in shown):
                    cells = [_format_published(published[i]) for i in shown]
                    lines.append(f"| - published: {student} | {' | '.join(cells)} |")
        if any("derived" in found for row in self.rows for of in row.published.values() for found in of if found):
            lines += ["", "~: follows from the paper's text, which does not state it."]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the table as in `report.json`, as shares between 0 and 1; published figures are in percent."""
        return {
            "table": self.name,
            "title": self.title,
            "rule": self.rule,
            "columns": [column.title for column in self.columns],
            "rows": [
                {
                    "name": row.name,
                    **row.key._asdict(),
                    "against": row.against and row.against._asdict(),
                    "cells": [cell and asdict(cell) for cell in row.cells],
                    "published": row.published,
                }
                for row in self.rows
            ],
        }


def build_table(
    name: str,
    title: str,
    columns: Sequence[Column],
    pairs: Sequence[tuple[Key, Key]] = (),
    published: int | None = None,
    shown: Sequence[bool] | None = None,
    place: str = "",
    rule: str = "",
) -> StudentTable | None:
    r"""
    Build a table.

    Args:
        name (`str`), title (`str`), columns (`Sequence[Column]`):
            As in [`StudentTable`].
        pairs (`Sequence[tuple[Key, Key]]`, *optional*, defaults to `()`):
            Rows whose difference is a row of its own.
        published (`int`, *optional*):
            Number of the paper's table with the published figures.
        shown (`Sequence[bool]`, *optional*), place (`str`, *optional*, defaults to `""`), rule (`str`, *optional*,
        defaults to `""`):
            As in [`StudentTable`].

    Returns:
        [`StudentTable`] or `None`: The table; `None` if it has no rows.
    """
    keys = sorted(dict.fromkeys(key for column in columns for key in column.cells), key=_place)
    rows = []
    for key in keys:
        cells = [estimate(column.cells[key]) if key in column.cells else None for column in columns]
        rows.append(Row(key, cells, published=_published(published, key, columns)))
    for a, b in pairs:
        cells = [
            difference(column.cells[a], column.cells[b]) if a in column.cells and b in column.cells else None
            for column in columns
        ]
        rows.append(Row(a, cells, against=b))
    rows = [row for row in rows if any(row.cells)]
    return StudentTable(name, title, list(columns), rows, place, rule, shown and list(shown)) if rows else None


def _place(key: Key) -> int:
    """The rows of the paper come first, in its order; all others as they come."""
    return list(_KINDS).index(key.kind) if key.kind in _KINDS else len(_KINDS)


@cache
def published_figures() -> list[dict[str, Any]]:
    """Return the accuracies in percent that the text of the paper gives, each with its source."""
    text = (files("md_trl") / "published_figures.json").read_text(encoding="utf-8")
    return json.loads(text)["figures"]


def _published(table: int | None, key: Key, columns: Sequence[Column]) -> dict[str, list[dict[str, Any] | None]]:
    found = [f for f in published_figures() if (f["table"], f["kind"], f["figure"]) == (table, key.kind, key.figure)]
    by_student = {}
    for student in dict.fromkeys(figure["student"] for figure in found):
        of_student = {(f["task"], f.get("votes")): f for f in found if f["student"] == student}
        of_columns = [of_student.get((column.task, column.votes)) for column in columns]
        if any(of_columns):
            by_student[student] = [
                f and {name: f[name] for name in ("accuracy", "source", "derived") if name in f} for f in of_columns
            ]
    return by_student


def _format(cell: Estimate | None, signed: bool, votes: bool, seeds: bool) -> str:
    if cell is None:
        return ""
    # Adding 0 turns a rounded -0.0 into 0.0
    value, low, high = (
        f"{round(100 * share, 1) + 0.0:{'+' if signed else ''}.1f}" for share in (cell.value, cell.low, cell.high)
    )
    notes = [f"N={round(cell.votes, 2):g}"] if votes and cell.votes is not None else []
    if notes and cell.votes_b is not None:
        notes = [f"{notes[0]} against {round(cell.votes_b, 2):g}"]
    if seeds and (cell.seeds > 1 or cell.seed):
        notes.append(f"{cell.seeds} seeds" if cell.seeds > 1 else f"seed {cell.seed[1:]}")
    return f"{value} [{low}, {high}]" + (f" ({', '.join(notes)})" if notes else "")


def _format_published(figure: dict[str, Any] | None) -> str:
    return "" if figure is None else f"{'~' if 'derived' in figure else ''}{figure['accuracy']:.1f}"
