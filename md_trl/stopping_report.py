"""Tables and figures of stopping rules that were replayed on the stored thoughts of students."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import InputError
from .evaluation import EvaluationResult
from .plots import common_legend, label_axes, panels, save
from .progress import progress_bar
from .replay import (
    SUBSETS,
    Calibration,
    Replayed,
    available_weights,
    calibration,
    replay_all,
    thoughts_per_question,
)
from .vote_settings import FOLDS, cross_validate


LEAST_BUDGET = 4
"""Thoughts per question that a study needs: with fewer there is nothing to stop."""

_WEIGHT_NAMES = {"none": "equal votes", "likelihood": "likelihood weights"}
_MARKERS = "^Dsovph*PX<>"
_COLORS = {"none": "tab:blue", "likelihood": "tab:orange"}


@dataclass(frozen=True)
class StoppingStudy:
    r"""
    All stopping rules on the thoughts of one student.

    Args:
        name (`str`), task (`str`), split (`str`):
            As in [`~md_trl.evaluation.EvaluationResult`].
        n_questions (`int`):
            Number of questions.
        budget (`int`):
            Maximum number of thoughts per question.
        subsets (`int`):
            Orders of the thoughts of each question that were replayed.
        rules (`list[Replayed]`):
            One entry per rule and weights.
        calibration (`list[Calibration]`):
            One entry per weights, of the vote over all thoughts, with the share of the votes as its confidence; then
            one per weights with what [`~md_trl.vote_settings.learn_votes`] learns, cross-validated.
    """

    name: str
    task: str
    split: str
    n_questions: int
    budget: int
    subsets: int
    rules: list[Replayed]
    calibration: list[Calibration]


def study_stopping(
    results: Sequence[EvaluationResult], subsets: int = SUBSETS, seed: int = 0, progress: bool = True
) -> list[StoppingStudy]:
    r"""
    Replay all stopping rules on the thoughts of every student that has enough of both paths.

    Args:
        results (`Sequence[EvaluationResult]`):
            Results of students. Those with fewer than [`LEAST_BUDGET`] thoughts for some question are left out, and
            those without any usable thought.
        subsets (`int`, *optional*, defaults to `50`):
            As in [`~md_trl.replay.replay`].
        seed (`int`, *optional*, defaults to `0`):
            As in [`~md_trl.replay.replay`].
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar per student.

    Returns:
        `list[StoppingStudy]`: One entry per student.

    Raises:
        [`~md_trl.errors.InputError`]: If no student has enough thoughts.
    """
    studies = []
    for result in results:
        usable = any(answer is not None for question in result.questions for answer in question.cot + question.pot)
        if (budget := thoughts_per_question(result)) < LEAST_BUDGET or not usable:
            continue
        replayed = replay_all(
            result,
            subsets=subsets,
            seed=seed,
            progress=lambda pairs, name=result.name: progress_bar(pairs, progress, desc=f"rules on {name}"),
        )
        calibrations = [calibration(result, weights) for weights in available_weights(result)]
        if len(result.questions) >= FOLDS:
            calibrations += [cross_validate(result, weights) for weights in available_weights(result)]
        size = len(result.questions)
        studies.append(
            StoppingStudy(result.name, result.task, result.split, size, budget, subsets, replayed, calibrations)
        )
    if not studies:
        raise InputError(
            f"No student has {LEAST_BUDGET // 2} CoT and {LEAST_BUDGET // 2} PoT thoughts for every question, with "
            "an answer in any of them, so no stopping rule can be replayed. Evaluate one with `md-trl eval --paths "
            "cot pot --n 10`."
        )
    return studies


def stopping_tables(studies: Sequence[StoppingStudy]) -> str:
    r"""
    Format accuracy, mean samples and loss of every rule, and the calibration of votes, one table each per student.

    Args:
        studies (`Sequence[StoppingStudy]`):
            Studies of students.

    Returns:
        `str`: Markdown. Accuracies and errors are in percent, losses in percentage points.
    """
    parts = []
    for study in studies:
        lines = [
            f"Stopping rules on **{study.name}**, {study.task}/{study.split}, {study.n_questions:,} questions, mean "
            f"over {study.subsets} orders of their thoughts. The loss is against equal votes of all {study.budget} "
            "thoughts; brackets are 95% intervals.",
            "",
            "| rule | weights | accuracy | samples | tokens | loss |",
            "| --- | --- | ---: | ---: | ---: | ---: |",
        ]
        for row in study.rules:
            accuracy, low, high = (f"{100 * share:.1f}" for share in (row.accuracy, row.low, row.high))
            # Adding 0 turns a rounded -0.0 into 0.0
            points = (round(100 * share, 1) + 0.0 for share in (row.loss, row.loss_low, row.loss_high))
            loss, loss_low, loss_high = (f"{value:+.1f}" for value in points)
            tokens = "-" if row.mean_tokens is None else f"{row.mean_tokens:.0f}"
            lines.append(
                f"| {row.rule} | {row.weights} | {accuracy} [{low}, {high}] | {row.mean_samples:.2f} | {tokens} | "
                f"{loss} [{loss_low}, {loss_high}] |"
            )
        lines += ["", "| weights | accuracy | expected calibration error |", "| --- | ---: | ---: |"]
        lines += [f"| {row.weights} | {100 * row.accuracy:.1f} | {100 * row.error:.1f} |" for row in study.calibration]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def plot_stopping(studies: Sequence[StoppingStudy], files: Sequence[str | Path]) -> None:
    r"""
    Plot the accuracy of every rule against its mean number of samples, one panel per student.

    Fixed numbers of samples are a line. A rule above the line is better than as many samples for every question.

    Args:
        studies (`Sequence[StoppingStudy]`):
            Studies of students.
        files (`Sequence[str | Path]`):
            Image files to write. The extension of each is its format.
    """
    pyplot, figure, axes = panels(_titles(studies), width=5.0, height=4.2, legend=2.2)
    for axis, study in zip(axes, studies, strict=True):
        for weights, color in _COLORS.items():
            rows = [row for row in study.rules if row.weights == weights]
            fixed = [row for row in rows if row.rule.startswith("fixed")]
            others = [row for row in rows if row not in fixed]
            if fixed:
                points = zip(*((row.mean_samples, 100 * row.accuracy) for row in fixed), strict=True)
                axis.plot(*points, label=f"fixed, {_WEIGHT_NAMES[weights]}", color=color, marker=".", linewidth=1.4)
            for row, marker in zip(others, _MARKERS, strict=False):
                axis.plot(row.mean_samples, 100 * row.accuracy, color=color, marker=marker, markersize=7, alpha=0.8)
                if weights == "none":  # A marker stands for a rule in both colors
                    axis.plot([], [], label=row.rule, color="tab:gray", marker=marker, linestyle="none")
        axis.set_xscale("log")
        ticks = [k for k in (1, 2, 3, 4, 6, 8, 10, 14, 20, 40) if k <= study.budget]
        axis.set_xticks(ticks, map(str, ticks))
        axis.minorticks_off()
    label_axes(axes, "mean samples per question", "accuracy (%)")
    # Beside the panels, because rules may lie anywhere in them
    common_legend(figure, axes)
    save(pyplot, figure, files)


def plot_calibration(studies: Sequence[StoppingStudy], files: Sequence[str | Path]) -> None:
    r"""
    Plot the accuracy of joint votes against their confidence (a reliability diagram), one panel per student.

    Args:
        studies (`Sequence[StoppingStudy]`):
            Studies of students.
        files (`Sequence[str | Path]`):
            Image files to write. The extension of each is its format.
    """
    pyplot, figure, axes = panels(_titles(studies), height=4.2)
    for axis, study in zip(axes, studies, strict=True):
        axis.plot([0, 1], [0, 1], color="tab:gray", linestyle="--", linewidth=1, label="calibrated")
        for row in study.calibration:
            kind, _, learned = row.weights.partition(", ")
            color, name = _COLORS[kind], f"{_WEIGHT_NAMES[kind]}{learned and f', {learned}'}"
            confidences, accuracies = [b.confidence for b in row.bins], [b.accuracy for b in row.bins]
            label, style = f"{name} (error {100 * row.error:.1f}%)", ":" if learned else "-"
            axis.plot(confidences, accuracies, color=color, linestyle=style, linewidth=1.4, label=label)
            areas = [10 + 150 * b.count / study.n_questions for b in row.bins]
            axis.scatter(confidences, accuracies, areas, color=color, alpha=0.6)
        axis.legend(fontsize=8, loc="best")
    label_axes(axes, "confidence: share of the votes, or learned", "accuracy")
    save(pyplot, figure, files)


def _titles(studies: Sequence[StoppingStudy]) -> list[str]:
    return [f"{study.name}\n{study.task}/{study.split}, {study.n_questions:,} questions" for study in studies]
