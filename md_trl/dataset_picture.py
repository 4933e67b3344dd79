"""The picture of a dataset card: which paths solve the questions of each task, and how lambda is distributed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .mixing import LAMBDA_BINS, SOLVED_BY
from .records import QuestionType


_ORDER = (QuestionType.BOTH, QuestionType.COT_ONLY, QuestionType.POT_ONLY, QuestionType.NEITHER)
# Colors of Okabe and Ito, which colour-blind readers can tell apart
_COLORS = {
    QuestionType.BOTH: "#009E73",
    QuestionType.COT_ONLY: "#56B4E9",
    QuestionType.POT_ONLY: "#E69F00",
    QuestionType.NEITHER: "#D0D0D0",
}


def draw_mixing(metadata: Mapping[str, Mapping[str, Any]], file: str | Path) -> None:
    r"""
    Draw the types and lambdas of all tasks as PNG. The same figures give the same file.

    Args:
        metadata (`Mapping[str, Mapping[str, Any]]`):
            Metadata by task, as [`~md_trl.dataset_card.read_metadata`] returns it.
        file (`str` or `Path`):
            File to write.
    """
    from matplotlib.figure import Figure

    rows = [
        (f"{task} ({split})" if len(of_task["types"]) > 1 else task, types, of_task["lambda"][split])
        for task, of_task in sorted(metadata.items())
        for split, types in of_task["types"].items()
    ]
    figure = Figure(figsize=(11, 1.3 + 0.85 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 2, width_ratios=(3, 2), sharex="col", squeeze=False)
    for (left, right), (name, types, lambdas) in zip(axes, rows, strict=True):
        _draw_types(left, f"{name}\n{sum(types.values()):,} questions", types)
        _draw_lambdas(right, lambdas)
    axes[0, 0].set_title("Which paths solve a question", fontsize=11)
    axes[0, 1].set_title("Lambda where both do (questions)", fontsize=11)
    axes[-1, 0].set_xlabel("share of questions (%)")
    axes[-1, 1].set_xlabel("PoT among correct thoughts")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower left", ncols=4, frameon=False)
    figure.savefig(file, format="png", dpi=150, metadata={"Software": None})


def _draw_types(axes: Any, label: str, types: Mapping[str, int]) -> None:
    start, total = 0.0, sum(types.values())
    for type_ in _ORDER:
        share = 100 * types[f"{type_:d}"] / total
        bar = axes.barh(
            [label], [share], left=start, color=_COLORS[type_], label=f"{SOLVED_BY[type_]} (type {type_:d})"
        )
        axes.bar_label(bar, [f"{share:.0f}%" if share >= 4 else ""], label_type="center", fontsize=9)
        start += share
    axes.set(xlim=(0, 100), ylim=(-0.55, 0.55))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _draw_lambdas(axes: Any, counts: list[int]) -> None:
    axes.stairs(counts, [i / LAMBDA_BINS for i in range(LAMBDA_BINS + 1)], color=_COLORS[QuestionType.BOTH], fill=True)
    axes.axvline(0.5, color="#555555", linewidth=0.8, linestyle="--")
    axes.set(xlim=(0, 1), ylim=(0, 1.05 * max(*counts, 1)))
    axes.set_yticks([0, max(counts)], ["0", f"{max(counts):,}"])
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
