"""Write mixed rows as a folder of Parquet files with a card, which `load_dataset` opens."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
from pyarrow.parquet import ParquetWriter

from .dataset_card import METADATA_FILE, dataset_card
from .mixed_rows import MixedSplit
from .mixing import describe
from .records import MixedRow, QuestionType


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
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{task}-", dir=output) as temporary:
        new = Path(temporary) / "new"
        info = _write_parquet(new, task, splits, max_shard_bytes)
        summary = {
            "settings": dict(settings),
            "source": source,
            "types": {
                name: {f"{type_:d}": split.statistics.types[type_] for type_ in QuestionType}
                for name, split in splits.items()
            },
            "contamination": {
                name: split.contamination.figures()
                for name, split in splits.items()
                if split.contamination is not None
            },
            "summary": {name: describe(split.statistics) for name, split in splits.items()},
        }
        (new / METADATA_FILE).write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if (output / task).exists():
            os.replace(output / task, Path(temporary) / "old")
        os.replace(new, output / task)
        dataset_card(output, task, info).save(Path(temporary) / "README.md")
        os.replace(Path(temporary) / "README.md", output / "README.md")
    return output


def _write_parquet(
    folder: Path, task: str, splits: Mapping[str, MixedSplit], max_shard_bytes: int
) -> datasets.DatasetInfo:
    folder.mkdir()
    info = datasets.DatasetInfo(features=MixedRow.features(), config_name=task, splits=datasets.SplitDict())
    info.download_size = info.dataset_size = 0
    for name, split in splits.items():
        shards = max(1, math.ceil(split.num_bytes / max_shard_bytes))
        num_bytes = 0
        for shard, (start, stop) in enumerate(split.ranges(shards)):
            file = folder / f"{name}-{shard:05d}-of-{shards:05d}.parquet"
            with ParquetWriter(file, MixedRow.features().arrow_schema) as writer:
                for table in split.tables(start, stop):
                    writer.write_table(table)
                    num_bytes += table.nbytes
            info.download_size += file.stat().st_size
        info.splits[name] = datasets.SplitInfo(name=name, num_bytes=num_bytes, num_examples=split.num_rows)
        info.dataset_size += num_bytes
    return info
