"""The store: every thought that was ever sampled, in one SQLite file, each paid for once (Sec. 3.1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..records import Thought
from . import selection as selections
from . import status
from .batches import Batches
from .claims import Claims
from .merge import Merge, MergeSummary
from .owner import new_owner
from .questions import Questions
from .schema import open_database
from .selection import Selection
from .settings import Settings
from .status import Spending, StatusRow, Usage
from .thought_file import thought_rows
from .transfer import ImportSummary, Transfer


class Store:
    r"""
    The questions and thoughts of any number of tasks, models and settings, in one SQLite file.

    Several processes may use one file at the same time. A `Store` belongs to the thread that opened it.

    Args:
        file (`str` or [`~pathlib.Path`]):
            The file. It is created, with its folder, if it does not exist.
        read_only (`bool`, *optional*, defaults to `False`):
            Whether SQLite refuses to write to the file, which must exist.

    Attributes:
        file ([`~pathlib.Path`]):
            The file.
        questions ([`Questions`]):
            The questions: `add`, `load`.
        settings ([`Settings`]):
            The settings that thoughts were sampled with: `number`.
        claims ([`Claims`]):
            Which samples are stored, requested or missing: `missing`, `claim`, `save`, `fail`, `release`.
        batches ([`Batches`]):
            The jobs of the Batch API: `add`, `take`, `update`, `open_requests`, `finish`.

    Raises:
        `InputError`: The file is not a store, or a store of another schema version.

    Examples:

    ```python
    >>> from md_trl.store import Selection, Store

    >>> with Store("thoughts.db") as store:
    ...     store.import_thoughts("thoughts.jsonl")
    ...     thoughts = store.thoughts(Selection(task="svamp", splits=["train"], paths=["cot"]))
    ```
    """

    def __init__(self, file: str | Path, read_only: bool = False):
        self.file = Path(file)
        self._db = open_database(self.file, read_only)
        self._data_version = -1
        owner = new_owner()
        self.questions = Questions(self._db, self.file)
        self.settings = Settings(self._db)
        self.claims = Claims(self._db, self.questions, owner)
        self.batches = Batches(self._db, owner)
        self._merge = Merge(self._db, self.questions, self.file)
        self._transfer = Transfer(self._db, self.questions, self.settings, self.claims)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let everything that a block reads be of one moment, whatever other processes write meanwhile."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("COMMIT")

    def thoughts(self, selection: Selection | None = None) -> list[Thought]:
        r"""
        Load thoughts.

        Args:
            selection ([`Selection`], *optional*, defaults to all thoughts):
                Which thoughts to load.

        Returns:
            `list[Thought]`: The thoughts, in the order of questions, paths and sample indices.

        Raises:
            `InputError`: A question and path has thoughts of several settings, and the selection does not combine
                them. The message lists the settings and how to pick one.
        """
        return list(self.iterate_thoughts(selection))

    def iterate_thoughts(self, selection: Selection | None = None) -> Iterator[Thought]:
        r"""
        Iterate over thoughts without holding them in memory.

        Args:
            selection ([`Selection`], *optional*, defaults to all thoughts):
                Which thoughts to load.

        Yields:
            [`~md_trl.records.Thought`]: The thoughts, as [`Store.thoughts`] returns them.

        Raises:
            `InputError`: As in [`Store.thoughts`], before the first thought.
        """
        return selections.iterate_thoughts(self._db, self.file, selection or Selection())

    def count_sampled(self, selection: Selection | None = None) -> dict[str, int]:
        r"""
        Count the questions that have thoughts.

        Args:
            selection ([`Selection`], *optional*, defaults to all thoughts):
                Which thoughts to look for.

        Returns:
            `dict[str, int]`: Number of questions by split.
        """
        return selections.count_sampled(self._db, selection or Selection())

    def digest(self, selection: Selection | None = None) -> str:
        r"""
        Compute a digest of questions and thoughts, for example to notice that a dataset built from them is stale.

        Args:
            selection ([`Selection`], *optional*, defaults to all thoughts):
                Which thoughts to read. Of the questions it takes those of its task and splits.

        Returns:
            `str`: The digest. It changes whenever one of the questions or thoughts does.
        """
        return selections.digest(self._db, selection or Selection())

    def status(self, selection: Selection | None = None) -> list[StatusRow]:
        r"""
        Summarize what the store holds, what is missing, what is unusable, and what it took.

        Args:
            selection ([`Selection`], *optional*, defaults to all thoughts):
                Which thoughts and requests to count.

        Returns:
            `list[StatusRow]`: One row per task, split, path and setting.
        """
        return status.status(self._db, selection or Selection())

    def spending(self, selection: Selection | None = None) -> list[Spending]:
        r"""
        Sum up requests and tokens. Imported thoughts were paid for elsewhere and are left out.

        Args:
            selection ([`Selection`], *optional*, defaults to all thoughts):
                Which thoughts to sum up.

        Returns:
            `list[Spending]`: One entry per model, and another one for its requests through the Batch API.
        """
        return status.spending(self._db, selection or Selection())

    def usage(self, question_id: str, path: str, setting: int, n: int | None = None) -> Usage:
        r"""
        Sum up the tokens and thoughts of one question, path and setting.

        Args:
            question_id (`str`):
                Id of the question.
            path (`str`):
                Path of the samples.
            setting (`int`):
                Number of their setting.
            n (`int`, *optional*):
                Number of samples to count, the first ones. Defaults to all.

        Returns:
            [`Usage`]: Their tokens and thoughts.
        """
        return status.usage(self._db, self.questions.key(question_id), path, setting, n)

    def unfinished(self, selection: Selection | None = None) -> list[str]:
        r"""
        Name what is being sampled at this moment, by a running process or a batch.

        Args:
            selection ([`Selection`], *optional*, defaults to all thoughts):
                Which requests to look at.

        Returns:
            `list[str]`: One description per task, split, path and model, empty if nothing is being sampled.
        """
        return status.unfinished(self._db, selection or Selection())

    def dates(self, selection: Selection | None = None) -> dict[str, str]:
        r"""
        Find out when thoughts were sampled, and when they were imported.

        Args:
            selection ([`Selection`], *optional*, defaults to all thoughts):
                Which thoughts to look at.

        Returns:
            `dict[str, str]`: First and last day in UTC under `sampled` and `imported`, as in `2026-11-23 to
            2026-11-24`.
        """
        return status.dates(self._db, selection or Selection())

    def changed_elsewhere(self) -> bool:
        """Return whether another connection has written to the file since the last call."""
        (version,) = self._db.execute("PRAGMA data_version").fetchone()
        before, self._data_version = self._data_version, version
        return before != version

    def export_thoughts(self, file: str | Path, selection: Selection | None = None) -> int:
        r"""
        Write thoughts to a thought file, in the order of questions, paths, settings and sample indices.

        Each row has `task`, `id`, `split`, `question`, `gold`, `path`, `index`, `text` and `finish_reason`, and where
        they are known `answer`, `logprob`, `model`, `params` and `usage` (on the first thought of a request).

        Args:
            file (`str` or [`~pathlib.Path`]):
                The file, replaced if it exists. It is Parquet if its name ends in `.parquet`, with `params` and
                `usage` as JSON, and JSONL otherwise.
            selection ([`Selection`], *optional*, defaults to all thoughts):
                Which thoughts to write. Thoughts of several settings are written in any case.

        Returns:
            `int`: The number of thoughts written.
        """
        return self._transfer.export_thoughts(file, selection or Selection())

    def import_thoughts(self, file: str | Path, task: str | None = None, split: str = "train") -> ImportSummary:
        r"""
        Add the thoughts of a thought file: all of them, or none if a row cannot be used.

        Each row has `task`, `id` or `question` (or both), `path` and `text`, and may have `gold`, `answer`, `logprob`,
        `model`, `params`, `usage`, `index` and `finish_reason`. A row without an id belongs to the question of its
        task with the same text up to white space. A question that the store does not hold is added if the row has its
        text and `gold`; a `gold` that differs from the answer of a known question is an error.

        A text is added as often as it is in the file, and importing the same file again adds nothing.

        Args:
            file (`str` or [`~pathlib.Path`]):
                The file: Parquet if its name ends in `.parquet`, JSONL otherwise.
            task (`str`, *optional*):
                The task that all rows must have, which may be a task of your own. By default every task that md_trl or
                the store knows is accepted.
            split (`str`, *optional*, defaults to `"train"`):
                Split of new questions that come without an id.

        Returns:
            [`ImportSummary`]: What was added.

        Raises:
            `InputError`: A row cannot be used. The message names file, row, value and how to fix it.
        """
        return self.import_rows(thought_rows(file), task, split)

    def import_rows(
        self, rows: Iterable[tuple[str, Any]], task: str | None = None, split: str = "train"
    ) -> ImportSummary:
        r"""
        Add thoughts from rows like those of a thought file, as [`Store.import_thoughts`] does.

        Args:
            rows (`Iterable[tuple[str, Any]]`):
                What to call each row in messages, and the row.
            task (`str`, *optional*):
                As in [`Store.import_thoughts`].
            split (`str`, *optional*, defaults to `"train"`):
                As in [`Store.import_thoughts`].

        Returns:
            [`ImportSummary`]: What was added.

        Raises:
            `InputError`: As in [`Store.import_thoughts`].
        """
        return self._transfer.import_rows(rows, task, split)

    def merge(self, file: str | Path) -> MergeSummary:
        r"""
        Add everything that another store holds: questions, thoughts, and what they cost.

        Thoughts keep their sample indices. Merging the same store again adds nothing. If both stores sampled the same
        index of a question, path and setting, the text of the other store is kept as a further sample.

        Args:
            file (`str` or [`~pathlib.Path`]):
                The other store.

        Returns:
            [`MergeSummary`]: What was added.

        Raises:
            `FileNotFoundError`: There is no such store.
            `InputError`: The other store is still being sampled, or holds another question or answer under one of the
                ids. Nothing is added.
        """
        return self._merge.merge(Path(file))


def open_store(file: str | Path, read_only: bool = False) -> Store:
    """Open a store that must exist already."""
    if not Path(file).is_file():
        raise FileNotFoundError(f"There is no store at {file}. Create one with `md-trl sample --store {file}`.")
    return Store(file, read_only)
