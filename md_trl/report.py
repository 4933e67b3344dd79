"""Tables and figures that compare the results of several students."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from .comparison import Comparison, compare, ensemble, share_answers, weights_suffix
from .errors import InputError
from .evaluation import FIGURE_NAMES, FIGURES, JOINT_ALL, LEGEND, THIRD_PATH_FIGURES, EvaluationResult
from .intervals import share_interval
from .mixing import SOLVED_BY
from .paper_tables import paper_tables
from .plots import plot_lines, plot_points, plot_solved, plot_students
from .records import ALL_PATHS, COT_POT, LABEL
from .rounds_figure import plot_rounds
from .stopping_report import plot_calibration, plot_stopping, stopping_tables, study_stopping
from .student_tables import StudentTable
from .training_runs import TrainingRuns, compare_runs, runs_table, seeds_table, split_seed, training_runs


HEAD = (
    "Accuracy in percent with 95% intervals over questions, and over training seeds where there are several; "
    "differences in percentage points, paired by question and seed. N is the number of samples per question."
)
"""First sentences of a report."""


def load_results(folder: str | Path) -> list[EvaluationResult]:
    r"""
    Load the results that `md-trl eval` wrote to a folder.

    Args:
        folder (`str` or `Path`):
            Folder of `*.json` files. A `report.json` among them is skipped, and so are copies.

    Returns:
        `list[EvaluationResult]`: The results, sorted by file name.

    Raises:
        `FileNotFoundError`: The folder has no results.
        `ValueError`: A file is not a result, or two files of the same evaluation differ in their answers.
    """
    files = _result_files(folder)
    if not files:
        raise FileNotFoundError(f"There are no results in {folder}. Write some with `md-trl eval --output {folder}`.")
    found: dict[str, tuple[Path, EvaluationResult]] = {}
    for file in files:
        result = EvaluationResult.load(file)
        first, same = found.setdefault(result.file_name(), (file, result))
        if same != result:
            raise InputError(
                f"{first} and {file.name} are results of the same evaluation, {result.name!r} on "
                f"{result.task}/{result.split}, but their answers differ. Move one of them elsewhere."
            )
    return [result for _, result in found.values()]


def has_results(folder: str | Path) -> bool:
    """Return whether a folder has results."""
    return bool(_result_files(folder))


def _result_files(folder: str | Path) -> list[Path]:
    return sorted(file for file in Path(folder).glob("*.json") if file.name != "report.json")


def with_distinct_names(results: Sequence[EvaluationResult]) -> list[EvaluationResult]:
    r"""
    Tell apart results that have the same name on the same task and split.

    Args:
        results (`Sequence[EvaluationResult]`):
            Results.

    Returns:
        `list[EvaluationResult]`: The same results in the same order. Where several share a name, it is followed by the
        settings in which they differ, as in `student (model=outputs/a@1f0e9c2d)` or `md (n=10)@1`.
    """
    named = []
    for result in results:
        place = (result.name, result.task, result.split)
        same_name = [_run(other) for other in results if (other.name, other.task, other.split) == place]
        own = _run(result)
        differing = [key for key, value in own.items() if any(run.get(key) != value for run in same_name)]
        details = ", ".join(f"{key}={own[key]}" for key in differing)
        kind, seed = split_seed(result.name)
        named.append(replace(result, name=f"{kind} ({details}){seed}") if details else result)
    return named


def _run(result: EvaluationResult) -> dict[str, Any]:
    """Return what distinguishes a run from others of the same name."""
    return {
        "model": result.model,
        **result.settings,
        "questions": f"{len(result.questions)}@{result.question_digest()}",
    }


def add_ensembles(
    results: Sequence[EvaluationResult], ensembles: Mapping[str, tuple[str, str]]
) -> list[EvaluationResult]:
    r"""
    Add the results of pairs of students that vote together.

    Args:
        results (`Sequence[EvaluationResult]`):
            Results with distinct names.
        ensembles (`Mapping[str, tuple[str, str]]`):
            Name of the CoT student and name of the PoT student by the name of the ensemble.

    Returns:
        `list[EvaluationResult]`: The results, followed by those of each ensemble on every task and split that both of
        its students were evaluated on.

    Raises:
        `ValueError`: A student is unknown, an ensemble has the name of a student, or its students share no task.
    """
    added = []
    for name, students in ensembles.items():
        if any(name in (result.name, split_seed(result.name)[0]) for result in results):
            raise InputError(f"`--ensemble {name}=...` is also the name of a student. Choose another name.")
        of_cot, of_pot = ({_place(result): result for result in _named(student, results)} for student in students)
        common = [place for place in of_cot if place in of_pot]
        if not common:
            places = [" and ".join(f"{task}/{split}{seed}" for task, split, seed in of) for of in (of_cot, of_pot)]
            raise InputError(
                f"{students[0]!r} and {students[1]!r} cannot vote together: they share no task, split and seed "
                f"({places[0]} against {places[1]}). Evaluate both on the same ones, or choose other students."
            )
        added += [ensemble(f"{name}{place[-1]}", of_cot[place], of_pot[place]) for place in common]
    return [*results, *added]


def _place(result: EvaluationResult) -> tuple[str, str, str]:
    """Task, split and `@SEED`: what the students of an ensemble or a comparison share."""
    return result.task, result.split, split_seed(result.name)[1]


def _named(name: str, results: Sequence[EvaluationResult]) -> list[EvaluationResult]:
    """Return the results of a student, or of a kind of student with all of its seeds."""
    exact = [result for result in results if result.name == name]
    found = exact or [result for result in results if split_seed(result.name)[0] == name]
    if not found:
        names = sorted({result.name for result in results})
        raise InputError(f"There is no student {name!r}. Choose one of: {'; '.join(names)}.")
    return found


def _comparable(result: EvaluationResult, baseline: EvaluationResult) -> bool:
    """Return whether two results have the same task and split, and the same seed if the baseline has one."""
    seed = split_seed(baseline.name)[1]
    return (result.task, result.split) == (baseline.task, baseline.split) and seed in ("", split_seed(result.name)[1])


def compare_with(results: Sequence[EvaluationResult], baselines: Sequence[str]) -> list[Comparison]:
    r"""
    Compare every student with each baseline, on the tasks that both were evaluated on. A baseline without a seed is
    compared with every seed of the others.

    Args:
        results (`Sequence[EvaluationResult]`):
            Results with distinct names, ensembles included.
        baselines (`Sequence[str]`):
            Names of students or ensembles.

    Returns:
        `list[Comparison]`: Paired differences. An ensemble is not compared with its parts.

    Raises:
        `ValueError`: A baseline is unknown.
    """
    pairs = [
        (result, baseline)
        for name in baselines
        for baseline in _named(name, results)
        for result in results
        if _comparable(result, baseline) and result.name != baseline.name and not share_answers(result, baseline)
    ]
    return [found for found in (compare(*pair) for pair in pairs) if found is not None]


def accuracy_table(results: Sequence[EvaluationResult]) -> str:
    r"""
    Format the accuracies of several students in percent. Every cell states its number of votes N, and what votes weigh
    if they are not those of Eq. 5. [`~md_trl.evaluation.LEGEND`] explains the columns.

    If a student was asked for the path `cot_pot`, there are columns for it and for the vote of all three paths.

    Args:
        results (`Sequence[EvaluationResult]`):
            Results.

    Returns:
        `str`: A Markdown table.
    """
    third = [*THIRD_PATH_FIGURES.values(), "all three, all"] if any(r.has(COT_POT) for r in results) else []
    names = ["CoT", "PoT", "CoT w/ PoT, same N", "CoT w/ PoT, all", "N=2 rule", "label", *third]
    lines = [
        f"| student | task | questions | {' | '.join(names)} |",
        "| --- | --- | ---: |" + " ---: |" * len(names),
    ]
    for result in results:
        n = result.n
        # After early stopping, the joint vote has the samples that it has.
        same_n = _cell(result, "joint", n) if n % 2 == 0 and not result.stops_early else ""
        cells = [_cell(result, "cot", n), _cell(result, "pot", n), same_n, _cell(result, "joint", 2 * n)]
        cells += [_cell(result, "n2"), _cell(result, LABEL)]
        if third:
            same_n = _cell(result, JOINT_ALL, n) if n % len(ALL_PATHS) == 0 else ""
            cells += [_cell(result, COT_POT, n), same_n, _cell(result, JOINT_ALL, len(ALL_PATHS) * n)]
        place = f"{result.name} | {result.task}/{result.split} | {len(result.questions):,}"
        lines.append(f"| {place} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(result: EvaluationResult, figure: str, votes: int | None = None) -> str:
    if not result.has(figure):
        return ""
    samples = result.votes(figure) if votes is None or result.stops_early else votes
    cell = f"{100 * result.accuracy(figure, votes):.1f} (N={round(samples, 2):g})"
    return cell + weights_suffix([result], figure)


def solved_table(results: Sequence[EvaluationResult]) -> str:
    r"""
    Format which paths solve the questions (Fig. 1), and how often the joint vote is right on each type of question.

    Args:
        results (`Sequence[EvaluationResult]`):
            Results. Those of a single path are left out.

    Returns:
        `str`: A Markdown table, empty if no result has both paths.
    """
    results = [result for result in results if result.has("joint")]
    if not results:
        return ""
    lines = [
        f"| student | task | votes per path | {' | '.join(f'{name} ({t:d})' for t, name in SOLVED_BY.items())} "
        f"| joint right on {' | '.join(f'{t:d}' for t in SOLVED_BY)} |",
        "| --- | --- " + "| ---: " * 9 + "|",
    ]
    for result in results:
        by_type = [result.joint_by_type()[type_] for type_ in SOLVED_BY]
        shares = [f"{100 * size / len(result.questions):.1f}%" for size, _ in by_type]
        correct = [f"{100 * accuracy:.0f}%" if size else "-" for size, accuracy in by_type]
        place = f"{result.name} | {result.task}/{result.split} | {result.n}{weights_suffix([result], 'joint')}"
        lines.append(f"| {place} | {' | '.join(shares + correct)} |")
    return "\n".join(lines)


SOLVED_LEGEND = (
    "Questions by which path's vote over its samples is right (Fig. 1), and how often the joint vote over all samples "
    "is right on each of these types."
)
"""Explains [`solved_table`]."""


def result_tables(results: Sequence[EvaluationResult]) -> str:
    r"""
    Format the accuracies of students and which paths solve the questions, each with its legend.

    Args:
        results (`Sequence[EvaluationResult]`):
            Results.

    Returns:
        `str`: Markdown.
    """
    parts = [accuracy_table(results), LEGEND]
    if table := solved_table(results):
        parts += [table, SOLVED_LEGEND]
    return "\n\n".join(parts)


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    r"""
    Format paired differences in percentage points.

    Args:
        comparisons (`Sequence[Comparison]`):
            Differences between students.

    Returns:
        `str`: A Markdown table, empty if there are no comparisons.
    """
    if not comparisons:
        return ""
    lines = [
        "| student | against | task | figure | difference | 95% interval | McNemar's p, or seeds |",
        "| --- | --- | --- | --- | ---: | --- | ---: |",
    ]
    for c in comparisons:
        difference, low, high = (f"{100 * value:+.1f}" for value in (c.difference, c.low, c.high))
        other = "" if c.votes_b is None else f" against {round(c.votes_b, 2):g}"
        figure = f"{(FIGURE_NAMES | THIRD_PATH_FIGURES)[c.figure]} (N={round(c.votes, 2):g}{other})"
        figure += f", weights: {' against '.join(c.weights)}" if c.weights else ""
        p_value = "" if c.p_value is None else "<0.001" if c.p_value < 0.001 else f"{c.p_value:.3f}"
        last = p_value or f"{c.seeds} seeds"
        lines.append(f"| {c.a} | {c.b} | {c.task}/{c.split} | {figure} | {difference} | [{low}, {high}] | {last} |")
    return "\n".join(lines)


def student_figures(result: EvaluationResult) -> dict[str, Any]:
    r"""
    Summarize a student for `report.json`.

    Args:
        result ([`EvaluationResult`]):
            Result of the student.

    Returns:
        `dict`: `name`, `task`, `split`, `n_questions` and `figures`: for each figure `accuracy`, `low` and `high` (95%
        interval over questions, see [`~md_trl.intervals.share_interval`]) and `votes`.
    """
    figures = {}
    for figure in FIGURES:
        if result.has(figure):
            low, high = share_interval(result.correct(figure))
            accuracy, votes = result.accuracy(figure), result.votes(figure)
            figures[figure] = {"accuracy": accuracy, "low": low, "high": high, "votes": votes}
    summary = {"name": result.name, "task": result.task, "split": result.split, "n_questions": len(result.questions)}
    return summary | {"figures": figures}


def write_report(
    results: Sequence[EvaluationResult],
    folder: str | Path,
    baseline: str | None = None,
    ensembles: Mapping[str, tuple[str, str]] | None = None,
    stopping: bool = False,
    ensemble_likelihood: bool = False,
) -> str:
    r"""
    Write `report.md`, `report.json` and the figures to a folder, as PNG and SVG.

    `report.png` shows each student. The tables of the paper, see [`~md_trl.paper_tables`], are the key `tables` of
    `report.json`, and their figures are `tasks`, `samples`, `training_set`, `groups` and `solved`, as far as there
    are results for them. If students were trained with several seeds (`NAME@SEED`), `report.json` gets the key `seeds`
    with their means. With `stopping`, it gets the key `stopping`, and there are the figures `stopping` and
    `calibration`. Students named `NAME-round-R` are drawn by round in `rounds`.

    Args:
        results (`Sequence[EvaluationResult]`):
            Results of students.
        folder (`str` or `Path`):
            Folder to write to.
        baseline (`str`, *optional*):
            Student or ensemble that all others are compared with. Defaults to the ensembles, if there are any.
        ensembles (`Mapping[str, tuple[str, str]]`, *optional*):
            CoT student and PoT student of each ensemble by its name.
        stopping (`bool`, *optional*, defaults to `False`):
            Whether to replay stopping rules on the thoughts of each student with both paths, see
            [`~md_trl.stopping_report.study_stopping`]. It takes up to two minutes per 1,000 questions.
        ensemble_likelihood (`bool`, *optional*, defaults to `False`):
            Whether to weigh the votes of ensembles by likelihood, too. Likelihoods of two models are not on one scale.

    Returns:
        `str`: The tables, as in `report.md`.

    Raises:
        `ValueError`: The baseline or a student of an ensemble is unknown, or an ensemble cannot be formed.
    """
    folder = Path(folder)
    students = with_distinct_names(results)
    results = add_ensembles(students, ensembles or {})
    baselines = list(ensembles or {}) if baseline is None else [baseline]
    comparisons, runs = compare_with(results, baselines), training_runs(results)
    over_seeds = compare_runs(runs, baselines)
    paper, problems = paper_tables(results, ensemble_likelihood)
    compared_with = {split_seed(comparison.b)[0] for comparison in comparisons}
    problems += [
        f"No student was evaluated on the task, split and seed of the baseline {name!r}."
        for name in baselines
        if split_seed(name)[0] not in compared_with
    ]
    report = {
        "students": [student_figures(result) for result in results],
        "comparisons": [asdict(comparison) for comparison in comparisons],
        "tables": [table.to_dict() for table in paper],
    }
    if runs:
        report["seeds"] = {
            "students": [run.to_dict() for run in runs],
            "comparisons": [asdict(comparison) for comparison in over_seeds],
        }
    # An ensemble has no study: the likelihoods of two models cannot be compared.
    studies = study_stopping(students) if stopping else []
    if stopping:
        report["stopping"] = [asdict(study) for study in studies]
    (folder / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    plot_students(results, _files(folder, "report"))
    tables = [*problems, *(table.to_markdown() for table in paper)]
    if runs:
        tables += [f"**Means over training seeds**\n\n{LEGEND}", runs_table(runs), comparison_table(over_seeds)]
    # Single runs and their differences stand here only if they are in no mean
    averaged = {(result.name, result.task, result.split) for run in runs for result in run.results}
    if single := [r for r in results if (r.name, r.task, r.split) not in averaged]:
        tables.append(result_tables(single))
    compared = {(c.a, c.b, c.task, c.split) for c in over_seeds}
    alone = [c for c in comparisons if (split_seed(c.a)[0], split_seed(c.b)[0], c.task, c.split) not in compared]
    tables.append(comparison_table(alone))
    images = ["![Accuracy against the number of samples, by student](report.png)", *_plot_tables(paper, folder)]
    if (folder / "training.png").exists():
        images.append("![Losses of each path during training](training.png)")
    if plot_rounds(students, _files(folder, "rounds")):
        images.append("![Accuracy of a refined student by round](rounds.png)")
    if studies:
        tables.append(stopping_tables(studies))
        plot_stopping(studies, _files(folder, "stopping"))
        plot_calibration(studies, _files(folder, "calibration"))
        images.append("![Accuracy of stopping rules against their mean number of samples](stopping.png)")
        images.append("![Accuracy of votes against their confidence](calibration.png)")
    by_seed = _each_run(runs)
    parts = ["# Results", HEAD, *filter(None, tables), *images, *by_seed]
    (folder / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return "\n\n".join(filter(None, [*tables, *by_seed]))


def _each_run(runs: Sequence[TrainingRuns]) -> list[str]:
    """The section of single training runs at the end of a report."""
    if not runs:
        return []
    note = (
        "By seed, without intervals. `report.json` has those, and the difference of each run to the baselines with "
        "McNemar's test, as `students` and `comparisons`."
    )
    return ["## Each training run", note, seeds_table(runs)]


def _files(folder: Path, name: str) -> list[Path]:
    return [folder / f"{name}.png", folder / f"{name}.svg"]


def _plot_tables(tables: Sequence[StudentTable], folder: Path) -> list[str]:
    """Draw the figures of the paper's tables. Return them in Markdown."""
    plots = {
        "1": ("tasks", "Accuracy by task (Fig. 3)", plot_points),
        "3": ("samples", "Accuracy against the number of samples (Fig. 4)", partial(plot_lines, x="samples (N)")),
        "training set": (
            "training_set",
            "Accuracy against the share of the training questions (Fig. 5)",
            partial(plot_lines, x="training questions (%)"),
        ),
        "groups": ("groups", "Accuracy by kind of question", plot_points),
        "solved": ("solved", "Questions that each path solves (Fig. 1)", plot_solved),
    }
    images = []
    for name, (file, title, draw) in plots.items():
        if found := [table for table in tables if table.name == name]:
            draw(found, _files(folder, file))
            images.append(f"![{title}]({file}.png)")
    return images
