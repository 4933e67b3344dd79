"""Write mixed rows as a folder of Parquet files with a card, which `load_dataset` opens."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyarrow.parquet import ParquetWriter

from .dataset_card import METADATA_FILE, folder_card
from .errors import InputError
from .flat_twin import twin_of, write_flat_twin
from .mixed_rows import MixedSplit
from .mixing import LAMBDA_BINS, describe
from .records import QuestionType
from .tasks import check_task_name


MAX_SHARD_BYTES = 500_000_000
"""Size in memory of the rows of one Parquet file, as in `datasets`."""


def write_folder(
    output: str | Path,
    task: str,
    splits: Mapping[str, MixedSplit],
    settings: Mapping[str, Any],
    source: Mapping[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    r"""
    Write mixed rows as Parquet with a dataset card, so that `load_dataset(output, task)` opens them.

    The rows are written beside those of an earlier run and then take their place, so that a run that is killed leaves
    no half-written dataset. Other tasks in the folder are kept.

    Args:
        output (`str` or `Path`):
            Folder, created if it does not exist.
        task (`str`):
            Task, which becomes the name of the configuration.
        splits (`Mapping[str, MixedSplit]`):
            Mixed rows by split.
        settings (`Mapping[str, Any]`):
            How the rows were made, for the card.
        source (`Mapping[str, Any]`, *optional*):
            What the rows were made from, for [`ensure_dataset`].
        max_shard_bytes (`int`, *optional*, defaults to 500 MB):
            Size in memory of the rows of one Parquet file.

    Returns:
        `Path`: The folder.
    """
    output = Path(output)
    check_task_name(task)
    if (output / "README.md").exists() and not any(output.glob(f"*/{METADATA_FILE}")):
        raise InputError(
            f"{output} has a README.md that `md-trl mix` did not write, and which the dataset's card would replace. "
            "Choose another folder."
        )
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{task}-", dir=output) as temporary:
        new = Path(temporary) / "new"
        _write_parquet(new, splits, max_shard_bytes)
        write_flat_twin(new, Path(temporary) / "twin")
        summary = {
            "settings": dict(settings),
            "source": source,
            "types": {
                name: {f"{type_:d}": split.statistics.types[type_] for type_ in QuestionType}
                for name, split in splits.items()
            },
            "lambda": {
                name: [split.statistics.lambda_bins[i] for i in range(LAMBDA_BINS)] for name, split in splits.items()
            },
            "contamination": {
                name: split.contamination.figures()
                for name, split in splits.items()
                if split.contamination is not None
            },
            "summary": {name: describe(split.statistics) for name, split in splits.items()},
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


def _write_parquet(folder: Path, splits: Mapping[str, MixedSplit], max_shard_bytes: int) -> None:
    folder.mkdir()
    for name, split in splits.items():
        shards = max(1, math.ceil(split.num_bytes / max_shard_bytes))
        for shard, (start, stop) in enumerate(split.ranges(shards)):
            file = folder / f"{name}-{shard:05d}-of-{shards:05d}.parquet"
            with ParquetWriter(file, split.features.arrow_schema) as writer:
                for table in split.tables(start, stop):
                    writer.write_table(table)
