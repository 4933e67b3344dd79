"""Figures of students, as PNG and SVG: accuracy by task, kind of question, samples and training questions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .comparison import weights_suffix
from .curves import mean_curve
from .evaluation import FIGURE_NAMES, JOINT_ALL, THIRD_PATH_FIGURES, EvaluationResult
from .records import ALL_PATHS, COT_POT, LABEL, PATHS
from .student_tables import ENSEMBLE, Row, StudentTable
from .training_runs import TrainingRuns, training_runs


if TYPE_CHECKING:
    from matplotlib.figure import Figure


MAX_COLUMNS = 4
"""Panels side by side; more are wrapped into rows."""
MAX_WIDTH = 13.0
"""Width in inches of the panels of a table whose columns are names; wider ones are drawn below each other."""

COLORS = {LABEL: "tab:gray", "cot": "tab:blue", "pot": "tab:orange", "joint": "tab:green", "n2": "tab:green"}
COLORS |= {COT_POT: "tab:purple", JOINT_ALL: "tab:red"}
"""Color of each figure of a student, the same in all plots."""
_MARKERS = {LABEL: "x", "cot": "o", "pot": "s", "joint": "D", "n2": "*", COT_POT: "v", JOINT_ALL: "P"}
_NAMES = FIGURE_NAMES | THIRD_PATH_FIGURES
_TYPE_COLORS = ("tab:orange", "tab:blue", "tab:green", "lightgray")
"""PoT only, CoT only, both, neither."""


def panels(
    titles: Sequence[str],
    width: float = 4.2,
    height: float = 3.6,
    legend: float = 0.0,
    columns: int | None = None,
    share: str = "all",
):
    r"""
    Return a figure with one panel per title, in rows of at most [`MAX_COLUMNS`] panels.

    Args:
        titles (`Sequence[str]`):
            Title of each panel.
        width (`float`, *optional*, defaults to `4.2`), height (`float`, *optional*, defaults to `3.6`):
            Size of a panel in inches.
        legend (`float`, *optional*, defaults to `0.0`):
            Room for a legend beside the panels, in inches.
        columns (`int`, *optional*):
            Number of panels side by side. Defaults to as many as there are, at most [`MAX_COLUMNS`].
        share (`str`, *optional*, defaults to `"all"`):
            Which panels have the same axes: `all`, those of a `row`, or `none`.

    Returns:
        `tuple`: `pyplot`, the figure, and the list of its panels.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = columns or min(len(titles), MAX_COLUMNS)
    rows = -(-len(titles) // columns)
    figure, grid = pyplot.subplots(
        rows,
        columns,
        figsize=(width * columns + legend, height * rows),
        sharex=share,
        sharey=share,
        squeeze=False,
        layout="constrained",
    )
    axes = list(grid.flat)
    for place, axis in enumerate(axes):
        axis.set_visible(place < len(titles))
        # Shared numbers stand below the last panel of each column, and left of each row
        if share == "all":
            below, left = place + columns >= len(titles), place % columns == 0
            axis.tick_params(labelbottom=below, labelleft=left)
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title(title, fontsize=9, wrap=True)
        axis.grid(alpha=0.3)
    return pyplot, figure, axes[: len(titles)]


def save(pyplot, figure, files: Sequence[str | Path]) -> None:
    """Write a figure to files and close it, see [`write_figure`]."""
    write_figure(figure, files)
    pyplot.close(figure)


def write_figure(figure: Figure, files: Sequence[str | Path]) -> None:
    """Write a figure to files. The extension of each is its format. The same figure gives the same files."""
    import matplotlib

    for file in files:
        metadata = {"Date": None} if Path(file).suffix == ".svg" else None
        with matplotlib.rc_context({"svg.hashsalt": "md_trl"}):
            figure.savefig(file, dpi=150, metadata=metadata)
        figure.set_layout_engine("none")  # The next file has the same layout


def common_legend(figure, axes) -> None:
    """Put one legend for all panels beside them."""
    entries = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    # Entries that would not fit below each other stand in more columns, for which the figure grows
    columns = -(-len(entries) // max(int(4.2 * figure.get_figheight()), 1))
    figure.set_figwidth(figure.get_figwidth() + 2.6 * (columns - 1))
    figure.legend(entries.values(), entries.keys(), fontsize=8, loc="outside right upper", ncols=max(columns, 1))


def label_axes(axes, x: str, y: str) -> None:
    """Name the axes where their numbers are."""
    for axis in axes:
        if axis.xaxis.get_tick_params().get("labelbottom", True):
            axis.set_xlabel(x)
        if axis.yaxis.get_tick_params().get("labelleft", True):
            axis.set_ylabel(y)


def plot_students(results: Sequence[EvaluationResult], files: Sequence[str | Path]) -> None:
    r"""
    Plot accuracy against the number of samples, one panel per student, averaged over which of the samples are taken,
    with 95% intervals. Students that differ in their seed only are averaged.

    Args:
        results (`Sequence[EvaluationResult]`):
            Results. Those without a vote are left out, unless there are no others.
        files (`Sequence[str | Path]`):
            Image files to write. The extension of each is its format.
    """
    results = [result for result in results if any(result.has(path) for path in ALL_PATHS)] or list(results)
    runs = training_runs(results)
    averaged = [result.file_name() for run in runs for result in run.results]
    runs += [TrainingRuns(result.name, [result]) for result in results if result.file_name() not in averaged]
    titles = []
    for run in runs:
        first, seeds = run.results[0], f", {len(run.results)} seeds" if len(run.results) > 1 else ""
        titles.append(f"{run.name}{seeds}\n{first.task}/{first.split}, {len(first.questions):,} questions")
    pyplot, figure, axes = panels(titles)
    for axis, run in zip(axes, runs, strict=True):
        for name in (*PATHS, "joint", *THIRD_PATH_FIGURES):
            style = {"color": COLORS[name], "marker": _MARKERS[name], "label": _NAMES[name]}
            style["label"] += weights_suffix(run.results, name)
            if points := mean_curve(run.results, name):
                votes = [point.votes for point in points]
                low, percent, high = ([100 * getattr(p, end) for p in points] for end in ("low", "accuracy", "high"))
                axis.plot(votes, percent, markersize=3, linewidth=1.4, **style)
                axis.fill_between(votes, low, high, color=COLORS[name], alpha=0.12, linewidth=0)
            elif run.has(name):  # After early stopping
                found = run.figure(name)
                axis.plot(found["votes"], 100 * found["accuracy"], **style)
        if run.has(LABEL):
            style = {"color": COLORS[LABEL], "linestyle": "--", "linewidth": 1, "label": "label"}
            axis.axhline(100 * run.figure(LABEL)["accuracy"], **style)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize=8)
    label_axes(axes, "samples (N)", "accuracy (%)")
    save(pyplot, figure, files)


def plot_lines(tables: Sequence[StudentTable], files: Sequence[str | Path], x: str) -> None:
    r"""
    Plot the accuracies of tables whose columns are numbers (Fig. 4 and 5), one panel per table, a line per row, with
    95% intervals.

    Args:
        tables (`Sequence[StudentTable]`):
            Tables with the same kind of columns.
        files (`Sequence[str | Path]`):
            Image files to write. The extension of each is its format.
        x (`str`):
            What the columns are.
    """
    pyplot, figure, axes = panels(
        [table.place for table in tables], width=4.8, height=4.0, legend=2.6, columns=min(2, len(tables))
    )
    for axis, table in zip(axes, tables, strict=True):
        for row in table.accuracies:
            points = [(c.x, cell) for c, cell in zip(table.columns, row.cells, strict=True) if cell]
            places = [place for place, _ in points]
            low, percent, high = ([100 * getattr(c, end) for _, c in points] for end in ("low", "value", "high"))
            style = _style(row, tables)
            axis.plot(places, percent, label=_name(row), markersize=3.5, linewidth=1.4, **style)
            if row.key.figure == "joint" and row.key.kind in ("md", ENSEMBLE):  # More bands would hide each other
                axis.fill_between(places, low, high, color=style["color"], alpha=0.10, linewidth=0)
        axis.xaxis.get_major_locator().set_params(integer=True)
    label_axes(axes, x, "accuracy (%)")
    common_legend(figure, axes)
    save(pyplot, figure, files)


def plot_points(tables: Sequence[StudentTable], files: Sequence[str | Path]) -> None:
    r"""
    Plot tables whose columns are names (Fig. 3): for each table a panel with the accuracies and their 95% intervals,
    and one with the differences.

    Args:
        tables (`Sequence[StudentTable]`):
            Tables.
        files (`Sequence[str | Path]`):
            Image files to write. The extension of each is its format.
    """
    most = max(len(table.columns) * (len(table.accuracies) + 2) for table in tables)
    differences = any(row.against is not None for table in tables for row in table.rows)
    of_table = 2 if differences else 1  # panels
    titles = [title for table in tables for title in (table.title, "Differences (points)")[:of_table]]
    width = min(max(4.2, 0.13 * most), MAX_WIDTH)
    columns = 1 if 2 * width > MAX_WIDTH else min(2, len(titles))
    pyplot, figure, axes = panels(titles, width, 3.8, legend=3.4, columns=columns, share="none")
    for place, axis in enumerate(axes):
        table, of_differences = tables[place // of_table], place % of_table == 1
        rows = [row for row in table.rows if (row.against is not None) == of_differences]
        for i, row in enumerate(rows):
            style = _style(row, tables) | {"linestyle": "none"}
            shift = 0.8 * ((i + 0.5) / len(rows) - 0.5)
            cells = [(x + shift, cell) for x, cell in enumerate(row.cells) if cell]
            values = [100 * cell.value for _, cell in cells]
            ends = [[100 * abs(getattr(c, end) - c.value) for _, c in cells] for end in ("low", "high")]
            xs = [x for x, _ in cells]
            axis.errorbar(xs, values, ends, label=_name(row), markersize=4.5, elinewidth=1, **style)
        if of_differences:
            axis.axhline(0, color="black", linewidth=0.8)
        axis.set_xticks(range(len(table.columns)), [column.title.replace(" (", "\n(") for column in table.columns])
        axis.tick_params(axis="x", labelsize=8)
        axis.set_xlim(-0.5, len(table.columns) - 0.5)
        axis.grid(visible=False, axis="x")
        for border in range(1, len(table.columns)):
            axis.axvline(border - 0.5, color="lightgray", linewidth=0.8)
    for axis in axes[::of_table]:
        axis.set_ylabel("accuracy (%)")
    common_legend(figure, axes)
    save(pyplot, figure, files)


def _name(row: Row) -> str:
    return row.name.replace("`", "")


def _style(row: Row, tables: Sequence[StudentTable]) -> dict[str, Any]:
    """Color and marker say the figure; solid and filled is MD, dashed and hollow its baselines, others half."""
    kind, color = row.key.kind, COLORS[row.key.figure]
    own = [ENSEMBLE, *PATHS, LABEL]
    names = dict.fromkeys(r.key.kind for t in tables for r in t.rows if r.key.kind not in ("md", *own))
    half = ({"alpha": 0.55, "fillstyle": side} for side in itertools.cycle(["left", "top", "right", "bottom"]))
    others = dict(zip(names, half, strict=False))
    lines = {"md": "-"} | dict.fromkeys(own, "--")
    lines |= dict(zip(others, itertools.cycle([":", "-.", (0, (5, 1, 1, 1, 1, 1))]), strict=False))
    filled = "white" if kind in own else color
    return {
        "color": color,
        "marker": _MARKERS[row.key.figure],
        "linestyle": lines[kind],
        "markerfacecolor": filled,
    } | (others[kind] if kind in others else {})


def plot_solved(tables: Sequence[StudentTable], files: Sequence[str | Path]) -> None:
    r"""
    Plot which paths solve the questions (Fig. 1), one panel per table, a stacked bar per student.

    Args:
        tables (`Sequence[StudentTable]`):
            Tables whose first four columns are the shares.
        files (`Sequence[str | Path]`):
            Image files to write. The extension of each is its format.
    """
    names = list(dict.fromkeys(_student(row) for table in tables for row in table.accuracies))
    width = max(4.2, 1.0 + 0.9 * len(names))
    titles = [table.place for table in tables]
    pyplot, figure, axes = panels(titles, width, height=4.0, legend=1.4, columns=min(2, len(tables)))
    for axis, table in zip(axes, tables, strict=True):
        for row in table.accuracies:
            bottom, place = 0.0, names.index(_student(row))
            for column, cell, color in zip(table.columns, row.cells, _TYPE_COLORS, strict=False):
                share = 100 * cell.value
                axis.bar(place, share, 0.75, bottom, color=color, label=column.title)
                if share >= 4:
                    axis.text(place, bottom + share / 2, f"{share:.0f}", ha="center", va="center", fontsize=8)
                bottom += share
        axis.set_xticks(range(len(names)), names, fontsize=8, rotation=20, ha="right")
        axis.grid(visible=False, axis="x")
    label_axes(axes, "", "questions (%)")
    common_legend(figure, axes)
    save(pyplot, figure, files)


def _student(row: Row) -> str:
    """Name of the student without its figure."""
    return _name(row).split(" + ")[0]
