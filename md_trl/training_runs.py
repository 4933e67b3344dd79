"""Students that were trained several times with different seeds: their mean accuracy and its interval.

The results of such students are named `NAME@SEED`, as in `md-trl eval --name md@1`. Training runs differ, so an
interval over questions alone says nothing about the next run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .comparison import Comparison, compare_seeds, is_ensemble, share_answers, weights_suffix
from .errors import InputError
from .evaluation import FIGURE_NAMES, FIGURES, THIRD_PATH_FIGURES, EvaluationResult
from .intervals import mean_interval
from .records import PATHS


def split_seed(name: str) -> tuple[str, str]:
    """Return the name of a kind of student and `@SEED`, which is empty if the name has no seed."""
    found = re.fullmatch(r"(.+)(@\d+)", name)
    return (found[1], found[2]) if found else (name, "")


@dataclass(frozen=True)
class TrainingRuns:
    r"""
    The results of one kind of student, trained with several seeds.

    Args:
        name (`str`):
            Name of the kind.
        results (`list[EvaluationResult]`):
            One result for each seed, on the same questions.
    """

    name: str
    results: list[EvaluationResult]

    def by_seed(self) -> dict[str, EvaluationResult]:
        """Return the results by `@SEED`, which is empty for a student without one."""
        return {split_seed(result.name)[1]: result for result in self.results}

    def has(self, figure: str) -> bool:
        """Return whether all results have a figure."""
        return all(result.has(figure) for result in self.results)

    def has_own_votes(self, figure: str) -> bool:
        """Return whether a rule decides how many samples each question has: after early stopping, or with N=2."""
        return figure == "n2" or any(result.stops_early for result in self.results)

    def votes(self, figure: str) -> float:
        """Return the number of samples of a figure: the mean if a rule decides it, else the smallest of all seeds."""
        votes = [result.votes(figure) for result in self.results]
        return sum(votes) / len(votes) if self.has_own_votes(figure) else min(votes)

    def figure(self, figure: str) -> dict[str, float]:
        r"""
        Return the mean accuracy of a figure.

        Args:
            figure (`str`):
                One of [`FIGURES`].

        Returns:
            `dict[str, float]`: `accuracy`, `low` and `high` (95% interval over seeds and questions, see
            [`~md_trl.intervals.mean_interval`]), and `votes`.
        """
        votes = self.votes(figure)
        counted = [
            result.correct(figure, None if self.has_own_votes(figure) else int(votes)) for result in self.results
        ]
        accuracy, low, high = mean_interval(counted)
        return {"accuracy": accuracy, "low": low, "high": high, "votes": votes}

    def figures(self) -> dict[str, dict[str, float]]:
        """Return all figures that every result has."""
        return {figure: self.figure(figure) for figure in FIGURES if self.has(figure)}

    def to_dict(self) -> dict[str, Any]:
        """Return a summary for `report.json`."""
        first = self.results[0]
        return {
            "name": self.name,
            "task": first.task,
            "split": first.split,
            "n_questions": len(first.questions),
            "seeds": len(self.results),
            "figures": self.figures(),
        }


def training_runs(results: Sequence[EvaluationResult]) -> list[TrainingRuns]:
    r"""
    Group results by the name before `@SEED`.

    Args:
        results (`Sequence[EvaluationResult]`):
            Results with distinct names.

    Returns:
        `list[TrainingRuns]`: One entry for each kind of student, task and split with two seeds or more, in the order
        of the results.

    Raises:
        [`~md_trl.errors.InputError`]: If the results of one kind were evaluated on different questions.
    """
    groups: dict[tuple[str, str, str], list[EvaluationResult]] = {}
    for result in results:
        name, seed = split_seed(result.name)
        if seed:
            groups.setdefault((name, result.task, result.split), []).append(result)
    runs = [TrainingRuns(name, group) for (name, _, _), group in groups.items() if len(group) > 1]
    for run in runs:
        check_same_questions(run.results)
    return runs


def check_same_questions(results: Sequence[EvaluationResult]) -> None:
    """Raise an error if results that are to be averaged were evaluated on different questions."""
    if len({result.question_digest() for result in results}) > 1:
        names = ", ".join(repr(result.name) for result in results)
        raise InputError(
            f"{names} were evaluated on different questions of {results[0].task}/{results[0].split}, so "
            "their mean means nothing. Evaluate all with the same source, `--data_seed` and `--limit`."
        )


def compare_runs(runs: Sequence[TrainingRuns], baselines: Sequence[str]) -> list[Comparison]:
    r"""
    Compare every kind of student with each baseline over the seeds that both have, on every figure that both have.

    Args:
        runs (`Sequence[TrainingRuns]`):
            Kinds of students.
        baselines (`Sequence[str]`):
            Names of kinds of students or of ensembles.

    Returns:
        `list[Comparison]`: Paired differences. Kinds that share fewer than two seeds are left out, and an
            ensemble is not compared with its parts.
    """
    found = []
    for b in [run for name in baselines for run in runs if run.name == name]:
        of_seed = b.by_seed()
        for a in runs:
            pairs = [(result, of_seed[seed]) for seed, result in a.by_seed().items() if seed in of_seed]
            if a is not b and len(pairs) > 1 and not share_answers(*pairs[0]):
                found += [compare_seeds(a.name, b.name, pairs, figure) for figure in FIGURES]
    return [comparison for comparison in found if comparison is not None]


def runs_table(runs: Sequence[TrainingRuns]) -> str:
    r"""
    Format the mean accuracies of students over their seeds, in percent with 95% intervals.

    Args:
        runs (`Sequence[TrainingRuns]`):
            Kinds of students.

    Returns:
        `str`: A Markdown table, empty if there are none.
    """
    if not runs:
        return ""
    names = _names(runs) | {"joint": "CoT w/ PoT, same N"}
    lines = [
        f"| student | task | seeds | questions | {' | '.join(names.values())} |",
        "| --- | --- | ---: | ---: |" + " ---: |" * len(names),
    ]
    for run in runs:
        first, figures = run.results[0], run.figures()
        cells = [
            _cell(figures[figure]) + weights_suffix(run.results, figure) if figure in figures else ""
            for figure in names
        ]
        place = f"{run.name} | {first.task}/{first.split} | {len(run.results)} | {len(first.questions):,}"
        lines.append(f"| {place} | {' | '.join(cells)} |")
    return "\n".join(lines)


def seeds_table(runs: Sequence[TrainingRuns]) -> str:
    r"""
    Format the accuracies of each training run in percent: a row for each kind of student and figure, a column for each
    seed. Ensembles have their joint votes only; the rest is that of their two students.

    Args:
        runs (`Sequence[TrainingRuns]`):
            Kinds of students.

    Returns:
        `str`: A Markdown table, empty if there are none.
    """
    if not runs:
        return ""
    seeds = sorted({seed for run in runs for seed in run.by_seed()}, key=lambda seed: int(seed[1:]))
    lines = [f"| student | task | figure | {' | '.join(seeds)} |", "| --- | --- | --- |" + " ---: |" * len(seeds)]
    for run in runs:
        of_seed, first = run.by_seed(), run.results[0]
        alone = PATHS if all(map(is_ensemble, run.results)) else ()
        for figure, name in _names(runs).items():
            if not run.has(figure) or figure in alone:
                continue
            votes = sorted({round(result.votes(figure), 2) for result in run.results})
            note = f"N={votes[0]:g}" if len(votes) == 1 else f"N={votes[0]:g} to {votes[-1]:g}"
            name += f" ({note})" + weights_suffix(run.results, figure)
            cells = [f"{100 * of_seed[seed].accuracy(figure):.1f}" if seed in of_seed else "" for seed in seeds]
            lines.append(f"| {run.name} | {first.task}/{first.split} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _names(runs: Sequence[TrainingRuns]) -> dict[str, str]:
    """The names of the figures in tables, those of the third path only if there are such."""
    results = [result for run in runs for result in run.results]
    third = {figure: name for figure, name in THIRD_PATH_FIGURES.items() if any(r.has(figure) for r in results)}
    return FIGURE_NAMES | third


def _cell(figure: dict[str, float]) -> str:
    accuracy, low, high = (f"{100 * figure[name]:.1f}" for name in ("accuracy", "low", "high"))
    return f"{accuracy} [{low}, {high}] (N={round(figure['votes'], 2):g})"
