"""The results of a student in its model card, and in the form that the Hub shows on model pages and leaderboards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import yaml
from huggingface_hub import CommitInfo, CommitOperationAdd, EvalResultEntry, HfApi, eval_result_entries_to_yaml

from .errors import InputError
from .evaluation import EvaluationResult
from .records import ALL_PATHS, LABEL
from .report import result_tables, with_distinct_names
from .student_folder import CARD, EVAL_RESULTS, write_evaluation
from .tasks import hub_dataset


def write_results(folder: str | Path, results: Sequence[EvaluationResult], repo: str | None = None) -> list[Path]:
    r"""
    Write the results of a student into its folder.

    The model card gets a section with the accuracies, and `.eval_results` one file per task that has a dataset on the
    Hub. Earlier results are replaced. [`MDTrainer`] keeps them as long as the weights are the same, so
    `trainer.push_to_hub()` uploads them too.

    Args:
        folder (`str` or `Path`):
            Folder of the student, with the model card that its trainer wrote.
        results (`Sequence[EvaluationResult]`):
            Results of this student.
        repo (`str`, *optional*):
            Hub id of the student, which the files in `.eval_results` name as their source.

    Returns:
        `list[Path]`: The files that were written.

    Raises:
        `ValueError`: There are no results, or the folder has no model card.

    Examples:

    ```python
    >>> from md_trl.evaluation import EvaluationResult
    >>> from md_trl.student_results import write_results

    >>> write_results("outputs/student", [EvaluationResult.load("results/student-gsm8k-test-1f0e9c2d.json")])
    ```
    """
    folder = Path(folder)
    if not results:
        raise InputError("There are no results to write. Evaluate the student first, with `md-trl eval`.")
    if not (folder / CARD).is_file():
        raise InputError(f"{folder} has no {CARD}. Name the folder of a student that md_trl trained.")
    write_evaluation(folder, evaluation_section(results))
    files = [folder / CARD]
    for task in sorted({result.task for result in results}):
        entries = [entry for result in results if result.task == task for entry in _entries(result, repo)]
        if entries:
            file = folder / EVAL_RESULTS / f"{task}.yaml"
            file.parent.mkdir(exist_ok=True)
            content = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
            file.write_text(content, encoding="utf-8")
            files.append(file)
    return files


def push_results(
    folder: str | Path,
    results: Sequence[EvaluationResult],
    repo: str,
    token: str | None = None,
    revision: str | None = None,
) -> CommitInfo:
    r"""
    Write the results of a student into its folder, and upload the card and the results in one commit.

    Args:
        folder (`str` or `Path`):
            Folder of the student.
        results (`Sequence[EvaluationResult]`):
            Results of this student.
        repo (`str`):
            Hub id of the student, whose weights have been pushed.
        token (`str`, *optional*):
            Token of the Hub. Defaults to the one that is logged in.
        revision (`str`, *optional*):
            Branch to commit to. Defaults to `main`.

    Returns:
        [`~huggingface_hub.CommitInfo`]: The commit.
    """
    files = write_results(folder, results, repo)
    operations = [CommitOperationAdd(file.relative_to(folder).as_posix(), file) for file in files]
    message = f"Add results on {', '.join(sorted({result.task for result in results}))}"
    return HfApi(token=token).create_commit(repo, operations, commit_message=message, revision=revision)


def evaluation_section(results: Sequence[EvaluationResult]) -> str:
    r"""
    Format the results of a student as a section of its model card.

    Args:
        results (`Sequence[EvaluationResult]`):
            Results of the student.

    Returns:
        `str`: The section in Markdown.
    """
    # The name of a model may be a local folder.
    results = with_distinct_names([replace(result, model="") for result in results])
    lines = ["## Evaluation", "", result_tables(results)]
    for settings in _distinct([result.settings for result in results]):
        values = (", ".join(map(str, value)) if isinstance(value, list) else value for value in settings.values())
        tasks = sorted({result.task for result in results if result.settings == settings})
        lines += ["", f"| setting on {', '.join(tasks)} | value |", "| --- | --- |"]
        lines += [f"| {name} | {value} |" for name, value in zip(settings, values, strict=True) if value != ""]
    return "\n".join(lines)


def _distinct(values: Sequence[dict]) -> list[dict]:
    return [value for i, value in enumerate(values) if value not in values[:i]]


def _entries(result: EvaluationResult, repo: str | None) -> list[EvalResultEntry]:
    """The result as the Hub wants it: one figure, that of all votes."""
    dataset = hub_dataset(result.task)
    if dataset is None:
        return []
    figure = next(figure for figure in ("joint", *ALL_PATHS, LABEL) if result.has(figure))
    votes = {"joint": 2 * result.n, LABEL: 1}.get(figure, result.n)
    source = {"source_url": f"https://huggingface.co/{repo}", "source_name": "Model card"} if repo else {}
    return [
        EvalResultEntry(
            dataset_id=dataset.repo,
            task_id=dataset.benchmark,
            value=round(100 * result.accuracy(figure, votes), 2),
            date=datetime.now(UTC).date().isoformat(),
            notes=f"{_how(result, figure)}; {len(result.questions):,} questions of split {result.split}; md_trl",
            **source,
        )
    ]


def _how(result: EvaluationResult, figure: str) -> str:
    """How the answers were found that a figure counts."""
    if figure == LABEL:
        return "bare answer, greedy"
    cot, pot = f"{result.n} chains of thought", f"{result.n} programs of thought"
    if figure != "joint":
        single = {"cot": cot, "pot": pot, "cot_pot": f"{result.n} plans with programs"}
        return f"majority vote over {single[figure]}"
    kind = "vote weighted by likelihood" if result.settings.get("weights") == "likelihood" else "majority vote"
    how = f"{kind} over {cot} and {pot}"
    if not result.stops_early:
        return how
    return f"{how} at most, stopped by the rule {result.settings['rule']} after {result.votes(figure):.1f} on average"
