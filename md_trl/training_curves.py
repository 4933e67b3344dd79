"""The loss of each path during training, against optimizer steps and against target tokens, from students' logs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InputError
from .plots import common_legend, label_axes, panels, save
from .records import PATHS_AND_LABEL
from .training_runs import split_seed


LOSSES = ("loss", *(f"{path}_loss" for path in PATHS_AND_LABEL))
"""Losses in the logs: the objective, and the cross-entropy of each path."""
_TITLES = {"loss": "each objective's own", "cot_loss": "CoT", "pot_loss": "PoT", "label_loss": "label"}
_STATE = "trainer_state.json"


@dataclass(frozen=True)
class TrainingPoint:
    r"""
    A loss at one step, over the training runs of a kind of student.

    Args:
        step (`int`):
            Number of optimizer steps.
        num_target_tokens (`float`):
            Number of tokens with a loss so far, mean over the runs.
        loss (`float`), low (`float`), high (`float`):
            Mean, smallest and largest loss of the runs.
    """

    step: int
    num_target_tokens: float
    loss: float
    low: float
    high: float


@dataclass(frozen=True)
class TrainingCurve:
    r"""
    A loss of a kind of student during training.

    Args:
        name (`str`):
            Name of the kind.
        loss (`str`):
            One of [`LOSSES`], with `eval_` before it if it is of held-out questions.
        seeds (`int`):
            Number of training runs.
        points (`list[TrainingPoint]`):
            One entry for each step that all runs have logged.
    """

    name: str
    loss: str
    seeds: int
    points: list[TrainingPoint]


def read_logs(folder: str | Path) -> list[dict[str, Any]]:
    r"""
    Read the logs of a training run.

    Args:
        folder (`str` or `Path`):
            Folder of a student. A run that has not ended has its logs in its last checkpoint.

    Returns:
        `list[dict]`: The logs in order.

    Raises:
        [`~md_trl.errors.InputError`]: If the folder has no logs, or they lack the number of target tokens.
    """
    folder = Path(folder)
    checkpoints = [file for file in folder.glob(f"checkpoint-*/{_STATE}") if file.parent.name[11:].isdigit()]
    by_step = sorted(checkpoints, key=lambda file: int(file.parent.name[11:]))
    file = next((file for file in [folder / _STATE, *reversed(by_step)] if file.exists()), None)
    if file is None:
        raise InputError(
            f"There is no {_STATE} in {folder} or its checkpoints. Name the `output_dir` of a training run."
        )
    try:
        logs = [dict(log) for log in json.loads(file.read_text(encoding="utf-8"))["log_history"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} holds no logs ({error!r}). Train the student again.") from None
    if not any("num_target_tokens" in log and "loss" in log for log in logs):
        raise InputError(f"The logs in {file} lack `num_target_tokens`. Only students of md_trl's trainers have it.")
    return logs


def training_curves(folders: Sequence[str]) -> list[TrainingCurve]:
    r"""
    Average the losses of students over their seeds.

    Args:
        folders (`Sequence[str]`):
            Folders of students, each written as `FOLDER` or `NAME=FOLDER`. The name of a student, `NAME@SEED`, is by
            default that of its folder.

    Returns:
        `list[TrainingCurve]`: One entry for each kind of student and loss in its logs.

    Raises:
        [`~md_trl.errors.InputError`]: If a folder has no logs, two have the same name, or the runs of one kind were
            never logged at the same step.
    """
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for text in folders:
        name, folder = ("", text) if Path(text).is_dir() or "=" not in text else text.split("=", 1)
        kind, seed = split_seed(name or Path(folder).resolve().name)
        if seed in runs.setdefault(kind, {}):
            raise InputError(f"Two students are named {kind + seed!r}. Write `NAME@SEED=FOLDER` to tell them apart.")
        runs[kind][seed] = read_logs(folder)
    curves = []
    for kind, logs in runs.items():
        for loss in (*LOSSES, *(f"eval_{loss}" for loss in LOSSES)):
            by_step = [
                {log["step"]: log for log in of_run if loss in log and "num_target_tokens" in log}
                for of_run in logs.values()
            ]
            if not all(by_step):
                continue
            shared = sorted(set.intersection(*map(set, by_step)))
            if not shared:
                raise InputError(f"The runs of {kind!r} share no logged step. Train them with the same logging steps.")
            points = [_point(step, loss, [of_run[step] for of_run in by_step]) for step in shared]
            curves.append(TrainingCurve(kind, loss, len(logs), points))
    return curves


def _point(step: int, loss: str, logs: Sequence[dict[str, Any]]) -> TrainingPoint:
    losses = [log[loss] for log in logs]
    tokens = sum(log["num_target_tokens"] for log in logs) / len(logs)
    return TrainingPoint(step, tokens, sum(losses) / len(losses), min(losses), max(losses))


def plot_training(curves: Sequence[TrainingCurve], files: Sequence[str | Path]) -> None:
    r"""
    Plot losses against optimizer steps (above) and against target tokens (below), one column of panels per loss, a
    line per kind of student: the mean over its seeds, with the range of the runs. Losses of held-out questions are
    dashed.

    Args:
        curves (`Sequence[TrainingCurve]`):
            Curves of students.
        files (`Sequence[str | Path]`):
            Image files to write. The extension of each is its format.
    """
    from matplotlib.ticker import EngFormatter

    losses = [loss for loss in LOSSES if any(curve.loss == loss for curve in curves)]
    names = dict.fromkeys(curve.name for curve in curves)
    colors = dict(zip(names, itertools.cycle(f"C{i}" for i in range(10)), strict=False))
    titles = [f"loss: {_TITLES[loss]}" for loss in losses] * 2
    pyplot, figure, axes = panels(titles, legend=1.6, columns=len(losses), share="row")
    for place, axis in enumerate(axes):
        x = "step" if place < len(losses) else "num_target_tokens"
        for curve in curves:
            if curve.loss.removeprefix("eval_") != losses[place % len(losses)]:
                continue
            held_out, color = curve.loss.startswith("eval_"), colors[curve.name]
            label = f"{curve.name}{f', {curve.seeds} seeds' if curve.seeds > 1 else ''}{', held out' * held_out}"
            places = [getattr(point, x) for point in curve.points]
            style = {"color": color, "linestyle": "--" if held_out else "-", "linewidth": 1.3, "label": label}
            axis.plot(places, [point.loss for point in curve.points], marker="." if len(places) < 30 else "", **style)
            if curve.seeds > 1:
                low, high = ([getattr(point, end) for point in curve.points] for end in ("low", "high"))
                axis.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)
    for axis in axes:
        axis.set_yscale("log")
    label_axes(axes[: len(losses)], "optimizer steps", "loss")
    label_axes(axes[len(losses) :], "target tokens", "loss")
    for axis in axes[len(losses) :]:
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))  # 400k, as 400000 runs into its neighbours
    common_legend(figure, axes)
    save(pyplot, figure, files)


def draw_training(folders: Sequence[str], output: str | Path) -> str:
    r"""
    Write `training.png` and `training.svg`.

    Args:
        folders (`Sequence[str]`):
            As in [`training_curves`].
        output (`str` or `Path`):
            Folder to write to, created if it does not exist.

    Returns:
        `str`: A Markdown table of the last losses of each student.

    Raises:
        [`~md_trl.errors.InputError`]: As in [`training_curves`].
    """
    curves, output = training_curves(folders), Path(output)
    output.mkdir(parents=True, exist_ok=True)
    plot_training(curves, [output / "training.png", output / "training.svg"])
    lines = ["| student | seeds | loss | steps | target tokens | last |", "| --- | ---: | --- | ---: | ---: | ---: |"]
    for curve in curves:
        last = curve.points[-1]
        place = f"{curve.name} | {curve.seeds} | {curve.loss} | {last.step:,} | {last.num_target_tokens:,.0f}"
        lines.append(f"| {place} | {last.loss:.4f} |")
    return "\n".join(lines)
