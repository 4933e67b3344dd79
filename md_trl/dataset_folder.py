"""Write mixed rows as a folder of Parquet files with a card, which `load_dataset` opens."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from .dataset_card import METADATA_FILE, check_task_name, folder_card
from .dataset_picture import lambda_histogram
from .errors import InputError
from .flat_twin import twin_of, write_flat_twin
from .mixing import describe
from .records import MixedRow, QuestionType


def solved_rows(rows: Sequence[MixedRow], task: str, split: str) -> list[MixedRow]:
    """Return the rows that belong in a dataset: all but those of type 4."""
    kept = [row for row in rows if row.type != QuestionType.NEITHER]
    if not kept:
        raise InputError(
            f"No question of {task}/{split} is left to mix: all {len(rows)} are of type 4, solved by neither path. "
            "Sample more thoughts (`--n`) or use a better model. `md-trl store export` shows what was sampled."
        )
    return kept


def write_folder(
    output: str | Path,
    task: str,
    splits: Mapping[str, Sequence[MixedRow]],
    settings: Mapping[str, Any],
    source: Mapping[str, Any] | None = None,
) -> Path:
    r"""
    Write mixed rows as Parquet with a dataset card, so that `load_dataset(output, task)` opens them.

    The rows are written beside those of an earlier run and then take their place, so that a run that is killed leaves
    no half-written dataset. Other tasks in the folder are kept. Rows of type 4 are only counted in the card.

    Args:
        output (`str` or `Path`):
            Folder, created if it does not exist.
        task (`str`):
            Task, which becomes the name of the configuration.
        splits (`Mapping[str, Sequence[MixedRow]]`):
            Mixed rows by split, type 4 included.
        settings (`Mapping[str, Any]`):
            How the rows were made, for the card.
        source (`Mapping[str, Any]`, *optional*):
            What the rows were made from, for [`ensure_dataset`].

    Returns:
        `Path`: The folder.

    Raises:
        `ValueError`: All rows of a split are of type 4.
    """
    output = Path(output)
    check_task_name(task)
    solved = {split: solved_rows(rows, task, split) for split, rows in splits.items()}
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{task}-", dir=output) as temporary:
        new = Path(temporary) / "new"
        _write_parquet(new, solved)
        write_flat_twin(new, Path(temporary) / "twin")
        summary = {
            "settings": dict(settings),
            "source": source,
            "types": {
                split: {f"{t:d}": sum(row.type == t for row in rows) for t in QuestionType}
                for split, rows in splits.items()
            },
            "lambda": lambda_histogram(new),
            "summary": {split: describe(rows) for split, rows in splits.items()},
        }
        (new / METADATA_FILE).write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        # The rows come last: where they are complete, so is their flat twin
        _replace(output / task, None, Path(temporary) / "old")
        _replace(output / twin_of(task), Path(temporary) / "twin", Path(temporary) / "old-twin")
        _replace(output / task, new, Path(temporary) / "old")
        folder_card(output).save(Path(temporary) / "README.md")
        os.replace(Path(temporary) / "README.md", output / "README.md")
    return output


def _replace(folder: Path, new: Path | None, old: Path) -> None:
    """Move a folder out of the way, if it exists, and the new one into its place."""
    if folder.exists():
        os.replace(folder, old)
    if new is not None:
        os.replace(new, folder)


def _write_parquet(folder: Path, splits: Mapping[str, Sequence[MixedRow]]) -> None:
    folder.mkdir()
    for split, rows in splits.items():
        dataset = datasets.Dataset.from_list([row.to_dict() for row in rows], features=MixedRow.features())
        dataset.to_parquet(folder / f"{split}-00000-of-00001.parquet")
