"""The flat twin of a task: one row per correct thought with its weight, written from the Parquet of its mixed rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from pyarrow.parquet import ParquetFile, ParquetWriter

from .records import path_row_features
from .tasks.names import PATHS_ENDING
from .weighting import path_rows


_BATCH_SIZE = 256
"""Mixed rows read at a time. A row of the original dataset holds up to 40 thoughts."""


def twin_of(task: str) -> str:
    """Return the name of the configuration that holds the path rows of a task."""
    return task + PATHS_ENDING


def write_flat_twin(rows: str | Path, output: str | Path) -> None:
    r"""
    Write the path rows of mixed rows, a batch at a time.

    The weight of a row is `repeat * w(i,p) / n`, with n the number of thoughts written of that question and path (Sec.
    3.2): the mean of weight times cross-entropy over the rows is the objective, up to a constant factor.

    Args:
        rows (`str` or `Path`):
            Folder with the Parquet files of the mixed rows of one task.
        output (`str` or `Path`):
            Folder to write to, with a file of the same name for each file.
    """
    output = Path(output)
    output.mkdir(parents=True)
    schema = path_row_features().arrow_schema
    for file in sorted(Path(rows).glob("*.parquet")):
        with ParquetWriter(output / file.name, schema) as writer:
            for batch in read_batches(file):
                flat = path_rows(batch)
                if flat:
                    writer.write_table(pyarrow.Table.from_pylist(flat, schema))


def read_batches(file: str | Path) -> Iterator[list[dict[str, Any]]]:
    """Read the rows of a Parquet file a batch at a time."""
    with ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(_BATCH_SIZE):
            yield batch.to_pylist()


def read_info(folder: str | Path) -> datasets.DatasetInfo:
    r"""
    Read the features, splits and sizes of a configuration from its Parquet files.

    Args:
        folder (`str` or `Path`):
            Folder of files named `SPLIT-*.parquet`.

    Returns:
        [`~datasets.DatasetInfo`]: What the card says of the configuration. Its `description` is a digest of the files.
    """
    info = datasets.DatasetInfo(splits=datasets.SplitDict(), download_size=0, dataset_size=0)
    digest = hashlib.sha256()
    for file in sorted(Path(folder).glob("*.parquet")):
        with file.open("rb") as stream:
            digest.update(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()} ".encode())
        with ParquetFile(file) as parquet:
            info.features = datasets.Features.from_arrow_schema(parquet.schema_arrow)
            metadata = parquet.metadata
        name = file.name.partition("-")[0]
        split = info.splits.setdefault(name, datasets.SplitInfo(name=name))
        split.num_examples += metadata.num_rows
        split.num_bytes += sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
        info.download_size += file.stat().st_size
    info.dataset_size = sum(split.num_bytes for split in info.splits.values())
    info.description = f"SHA-256 {digest.hexdigest()[:16]}"
    return info
