"""The accuracy of a student from round to round of a refinement, from results named `NAME-round-R`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from .evaluation import EvaluationResult
from .intervals import mean_interval
from .plots import write_figure
from .training_runs import split_seed


STYLES = {
    "cot": ("CoT", "tab:blue", "o"),
    "pot": ("PoT", "tab:orange", "s"),
    "joint": ("CoT w/ PoT", "tab:green", "D"),
}


Series = dict[tuple[str, str, str], dict[int, list[EvaluationResult]]]


def rounds_of(results: Sequence[EvaluationResult]) -> Series:
    r"""
    Group the results of refined students by round.

    Args:
        results (`Sequence[EvaluationResult]`):
            Results. Those of a round are named `NAME-round-R`, of several training seeds `NAME-round-R@SEED`.

    Returns:
        `dict`: For each name, task and split with two rounds or more, the results by round. Round 0 is the student
        before refinement.
    """
    series: Series = defaultdict(lambda: defaultdict(list))
    for result in results:
        if found := re.fullmatch(r"(.+)-round-(\d+)", split_seed(result.name)[0]):
            series[found[1], result.task, result.split][int(found[2])].append(result)
    return {name: dict(sorted(rounds.items())) for name, rounds in series.items() if len(rounds) > 1}


def plot_rounds(results: Sequence[EvaluationResult], files: Sequence[str | Path]) -> bool:
    r"""
    Plot accuracy against rounds, one panel for each student that was refined, with 95% intervals: over questions, and
    where there are several, over training seeds.

    Args:
        results (`Sequence[EvaluationResult]`):
            Results, see [`rounds_of`]. Others are left out.
        files (`Sequence[str | Path]`):
            Image files to write. The extension of each is its format.

    Returns:
        `bool`: Whether there was anything to plot. If not, no file is written.
    """
    series = rounds_of(results)
    if not series:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(series), 3.4), layout="constrained")
    axes = figure.subplots(1, len(series), sharey=True, squeeze=False)[0]
    for axis, ((name, task, split), rounds) in zip(axes, series.items(), strict=True):
        for kind, (label, color, marker) in STYLES.items():
            points = {r: [x for x in of_round if x.has(kind)] for r, of_round in rounds.items()}
            points = {r: _interval([x.correct(kind) for x in found]) for r, found in points.items() if found}
            if points:
                mean, low, high = zip(*points.values(), strict=True)
                axis.plot(list(points), mean, label=label, color=color, marker=marker, markersize=4, linewidth=1.4)
                axis.fill_between(list(points), low, high, color=color, alpha=0.12, linewidth=0)
        fewest, most = (of(map(len, rounds.values())) for of in (min, max))
        seeds = f"{most} seeds" if fewest == most else f"{fewest} to {most} seeds"
        axis.set_title(f"{name}\n{task}/{split}" + (f", {seeds}" if most > 1 else ""), fontsize=9, wrap=True)
        axis.set_xlabel("round")
        axis.set_xticks(list(rounds))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0].set_ylabel("accuracy (%)")
    write_figure(figure, files)
    return True


def _interval(correct: list[list[bool]]) -> tuple[float, float, float]:
    """Mean accuracy in percent over questions and seeds, and its interval."""
    if len({len(of_seed) for of_seed in correct}) > 1:
        correct = [[value for of_seed in correct for value in of_seed]]
    return tuple(100 * value for value in mean_interval(correct))
