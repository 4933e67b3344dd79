"""Report: evaluation results come in, tables and a figure go out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import InputError
from .evaluation import at_votes


def load_results(folder: str | Path) -> list[dict[str, Any]]:
    r"""
    Read the results that `md-trl eval` wrote.

    Args:
        folder (`str` or `Path`):
            Folder of `*.json` files.

    Returns:
        `list[dict]`: the results, by name.

    Raises:
        `FileNotFoundError`: no result there.
        `ValueError`: a file that is no result.
    """
    files = sorted(file for file in Path(folder).glob("*.json") if file.name != "report.json")
    if not files:
        raise FileNotFoundError(f"There are no results in {folder}. Make some with `md-trl eval --output {folder}`.")
    results = []
    for file in files:
        try:
            result = json.loads(file.read_text())
        except json.JSONDecodeError as error:
            raise InputError(
                f"{file} is no JSON (line {error.lineno}: {error.msg}). Delete it, or evaluate again."
            ) from None
        if not isinstance(result, dict) or "n_questions" not in result:
            raise InputError(f"{file} is no result of `md-trl eval`. Move it out of {folder}.")
        results.append(result)
    return results


def accuracy_table(results: Sequence[dict[str, Any]]) -> str:
    r"""
    The accuracies of several students, in percent, as a Markdown table. Every column states its number of votes N.

    Args:
        results (`Sequence[dict]`):
            Results of `md-trl eval`.

    Returns:
        `str`: a Markdown table.
    """
    lines = [
        "| student | task | questions | CoT | PoT | CoT w/ PoT, same N | CoT w/ PoT, all | N=2 rule | label |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for result in results:
        n = result["n"]
        cells = [
            _cell(at_votes(result.get("cot", []), n), n),
            _cell(at_votes(result.get("pot", []), n), n),
            _cell(at_votes(result.get("joint", []), n), n),
            _cell(at_votes(result.get("joint", []), 2 * n), 2 * n),
            _cell(result["n2"]["accuracy"], round(result["n2"]["mean_samples"], 2)) if "n2" in result else "",
            _cell(result.get("label"), 1),
        ]
        name = f"{result['name']} | {result['task']}/{result['split']} | {result['n_questions']:,}"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(accuracy: float | None, votes: float) -> str:
    return "" if accuracy is None else f"{100 * accuracy:.1f} (N={votes:g})"


def solved_table(results: Sequence[dict[str, Any]]) -> str:
    r"""
    Which paths solve the questions (Fig. 1), and how often the joint vote is right on each type.

    Args:
        results (`Sequence[dict]`):
            Results of `md-trl eval`. Those of a single path are left out.

    Returns:
        `str`: a Markdown table, empty if there is nothing to show.
    """
    results = [result for result in results if "solved_by" in result]
    if not results:
        return ""
    lines = [
        "| student | task | votes a path | PoT only (1) | CoT only (2) | both (3) | neither (4) "
        "| joint right on 1 | 2 | 3 | 4 |",
        "| --- | --- " + "| ---: " * 9 + "|",
    ]
    for result in results:
        shares = [f"{100 * result['solved_by'][key]:.1f}%" for key in ("pot_only", "cot_only", "both", "neither")]
        by_type = result["joint_by_type"]
        right = [f"{100 * t['accuracy']:.0f}%" if t["n_questions"] else "-" for t in (by_type[i] for i in "1234")]
        name = f"{result['name']} | {result['task']}/{result['split']} | {result['n']}"
        lines.append(f"| {name} | {' | '.join(shares + right)} |")
    return "\n".join(lines)


def plot(results: Sequence[dict[str, Any]], path: str | Path) -> None:
    r"""
    Draw accuracy against the number of samples (Fig. 4), a panel a student.

    Args:
        results (`Sequence[dict]`):
            Results of `md-trl eval`.
        path (`str` or `Path`):
            PNG file to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = [result for result in results if "cot" in result or "pot" in result] or list(results)
    figure, axes = pyplot.subplots(
        1, len(results), figsize=(4.2 * len(results), 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    styles = {
        "cot": ("CoT", "tab:blue", "o"),
        "pot": ("PoT", "tab:orange", "s"),
        "joint": ("CoT w/ PoT", "tab:green", "D"),
    }
    for axis, result in zip(axes[0], results, strict=True):
        for key, (label, color, marker) in styles.items():
            points = result.get(key, [])
            if points:
                x = [point["votes"] for point in points]
                y = [100 * point["accuracy"] for point in points]
                axis.plot(x, y, label=label, color=color, marker=marker, markersize=3, linewidth=1.4)
        if "label" in result:
            axis.axhline(100 * result["label"], label="label", color="tab:gray", linestyle="--", linewidth=1)
        axis.set_title(
            f"{result['name']}\n{result['task']}/{result['split']}, {result['n_questions']} questions", fontsize=9
        )
        axis.set_xlabel("samples (N)")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    axes[0][0].set_ylabel("accuracy (%)")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def write_report(results: Sequence[dict[str, Any]], folder: str | Path) -> str:
    r"""
    Write `report.md`, `report.json` and `report.png` into a folder.

    Args:
        results (`Sequence[dict]`):
            Results of `md-trl eval`.
        folder (`str` or `Path`):
            Where to write.

    Returns:
        `str`: the tables, as in `report.md`.
    """
    folder = Path(folder)
    plot(results, folder / "report.png")
    (folder / "report.json").write_text(json.dumps(list(results), indent=2) + "\n")
    tables = "\n\n".join(table for table in (accuracy_table(results), solved_table(results)) if table)
    (folder / "report.md").write_text(
        f"# Results\n\nAccuracy in percent; N is the number of votes.\n\n{tables}\n\n"
        "![accuracy against number of samples](report.png)\n"
    )
    return tables
