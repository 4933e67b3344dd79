"""Parquet files of the explorer's own, for thoughts that no file of a dataset holds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pyarrow
from pyarrow.parquet import ParquetWriter

from ..records import PATHS
from .catalog import Catalog, Place


GROUP_ROWS = 64
"""Rows of one row group of the explorer's own files: few enough to read one of them at once."""

_THOUGHTS = pyarrow.list_(
    pyarrow.struct(
        {"text": pyarrow.string(), "answer": pyarrow.string(), "correct": pyarrow.bool_(), "count": pyarrow.int32()}
    )
)
_UNUSABLE = pyarrow.list_(
    pyarrow.struct({"text": pyarrow.string(), "reason": pyarrow.string(), "count": pyarrow.int32()})
)
_OWN_SCHEMA = pyarrow.schema(
    [(path, _THOUGHTS) for path in PATHS] + [(f"{path}_unusable", _UNUSABLE) for path in PATHS]
)


class RowWriter:
    """Writes thoughts to a Parquet file of the explorer's own, in small row groups."""

    def __init__(self, catalog: Catalog):
        names = (catalog.folder / f"thoughts-{number}.parquet" for number in itertools.count())
        file = next(name for name in names if not name.exists())
        self._number = catalog.add_file(file)
        self._writer = ParquetWriter(file, _OWN_SCHEMA)
        self._group, self._rows = 0, []

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.flush()
        self._writer.close()

    def add(self, row: Mapping[str, Any]) -> Place:
        """Write the thoughts of a row, and return where they are."""
        if len(self._rows) == GROUP_ROWS:
            self.flush()
        self._rows.append({name: row[name] for name in _OWN_SCHEMA.names})
        return Place(self._number, self._group, len(self._rows) - 1)

    def flush(self) -> None:
        """Finish the row group."""
        if self._rows:
            self._writer.write_table(pyarrow.Table.from_pylist(self._rows, _OWN_SCHEMA))
            self._group, self._rows = self._group + 1, []
