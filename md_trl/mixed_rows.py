"""Mix the thoughts of a store in bounded memory: rows go to a file as they come, and get their `repeat` when read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import pyarrow
import pyarrow.compute
from pyarrow.parquet import ParquetFile, ParquetWriter

from .contamination import TEST_SPLIT, ContaminationCheck
from .errors import InputError
from .execution import Executor, default_cache
from .judging import mark, read_answers
from .mixing import REPEAT_CAP, MixStatistics, mix_question
from .progress import progress_bar
from .records import ALL_PATHS, PATHS, MixedRow, Question, QuestionType, Thought
from .store import Selection, Store
from .store.settings import describe_setting


CHUNK = 50_000
"""Thoughts that are judged together: enough to keep the workers busy, few enough to hold."""


class MixedSplit:
    r"""
    The mixed rows of one split, in a file, and what was counted about them.

    `repeat` depends on all rows of a split. It is set when the rows are read, after all have been added.

    Args:
        file (`str` or `Path`):
            Parquet file to write the rows to. It must stay until they have been read.
        repeat_cap (`int`, *optional*, defaults to `4`):
            Maximum `repeat` of a question.
        contamination ([`~md_trl.contamination.ContaminationCheck`], *optional*):
            Check that counts which of the questions are test questions.
        paths (`Sequence[str]`, *optional*, defaults to `("cot", "pot")`):
            Paths that were mixed, as in [`~md_trl.records.MixedRow.features`].

    Attributes:
        statistics ([`~md_trl.mixing.MixStatistics`]):
            What was counted, type 4 included.
        num_rows (`int`), num_bytes (`int`):
            Number of rows in the file, without those of type 4, and their size in memory.
        features ([`~datasets.Features`]):
            Columns of the rows.
    """

    def __init__(
        self,
        file: str | Path,
        repeat_cap: int = REPEAT_CAP,
        contamination: ContaminationCheck | None = None,
        paths: Sequence[str] = PATHS,
    ):
        self.statistics = MixStatistics(repeat_cap)
        self.contamination = contamination
        self.num_rows = self.num_bytes = 0
        self._file = Path(file)
        self.features = MixedRow.features(paths)
        self._schema = self.features.arrow_schema
        self._writer: ParquetWriter | None = ParquetWriter(self._file, self._schema)

    def __enter__(self) -> MixedSplit:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def add(self, rows: Sequence[MixedRow]) -> None:
        """Count rows, and write all but those of type 4."""
        kept = []
        for row in rows:
            self.statistics.add(row)
            if row.type != QuestionType.NEITHER:
                kept.append(row.to_dict())
                if self.contamination is not None:
                    self.contamination.add(row.id, row.question)
        if kept:
            table = pyarrow.Table.from_pylist(kept, self._schema)
            self._writer.write_table(table)
            self.num_rows += table.num_rows
            self.num_bytes += table.nbytes

    def close(self) -> None:
        """Finish the file, so that the rows can be read."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def ranges(self, count: int) -> list[tuple[int, int]]:
        """Divide the rows into at most this many ranges, each from a first row to before another one."""
        count = min(count, self.num_rows)
        starts = [self.num_rows * number // count for number in range(count + 1)]
        return list(itertools.pairwise(starts))

    def tables(self, start: int = 0, stop: int | None = None) -> Iterator[pyarrow.Table]:
        r"""
        Read rows, with their `repeat`.

        Args:
            start (`int`, *optional*, defaults to `0`):
                Number of the first row.
            stop (`int`, *optional*):
                Number of the first row that is not read. By default all rows are.

        Yields:
            `pyarrow.Table`: The rows, in the order they were added.
        """
        stop = self.num_rows if stop is None else stop
        repeats = pyarrow.array([self.statistics.repeat(type_) for type_ in QuestionType], pyarrow.int32())
        column = self._schema.get_field_index("repeat")
        with ParquetFile(self._file) as file:
            first = 0
            for group in range(file.num_row_groups):
                last = first + file.metadata.row_group(group).num_rows
                if first < stop and last > start:
                    table = file.read_row_group(group)
                    table = table.slice(max(start - first, 0), min(stop, last) - max(start, first))
                    repeat = repeats.take(pyarrow.compute.subtract(table["type"].combine_chunks(), 1))
                    yield table.set_column(column, self._schema.field(column), repeat)
                first = last


def mix_store(
    store: Store,
    selection: Selection,
    folder: str | Path,
    repeat_cap: int = REPEAT_CAP,
    progress: bool = False,
    chunk: int = CHUNK,
) -> dict[str, MixedSplit]:
    r"""
    Judge and mix the thoughts of one task. They are never all in memory.

    Args:
        store ([`~md_trl.store.Store`]):
            Store of the thoughts.
        selection ([`~md_trl.store.Selection`]):
            Which thoughts to mix. It names one task. The path `cot_pot` is mixed only if it names that too.
        folder (`str` or `Path`):
            Folder for the rows. It must stay until they have been read.
        repeat_cap (`int`, *optional*, defaults to `4`):
            Maximum `repeat` of a question.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar.
        chunk (`int`, *optional*, defaults to `50_000`):
            Number of thoughts to judge at a time.

    Returns:
        `dict[str, MixedSplit]`: Mixed rows by split: those that [`~md_trl.mixing.mix`] returns, without type 4.

    Raises:
        `InputError`: The selection has an unknown path, `repeat_cap` is below 1, a split has no thoughts, no question
            of it is solved by any path, or a question has thoughts of several settings.
    """
    if unknown := sorted(set(selection.paths or ()) - set(ALL_PATHS)):
        raise InputError(f"The path {unknown[0]!r} cannot be mixed. Choose from {', '.join(ALL_PATHS)}.")
    if repeat_cap < 1:
        raise InputError(f"`repeat_cap` is {repeat_cap}. Use 1 or more; 1 repeats no question.")
    selection = replace(selection, paths=[path for path in ALL_PATHS if path in (selection.paths or PATHS)])
    with store.snapshot():
        counts = _count_sampled(store, selection)
        questions = {question.id: question for question in store.questions.load(selection.task)}
        tests = store.questions.load(split=TEST_SPLIT)
        splits = {}
        for number, split in enumerate(counts):
            contamination = None if split == TEST_SPLIT else ContaminationCheck(selection.task, tests)
            file = Path(folder) / f"{number}.parquet"
            splits[split] = MixedSplit(file, repeat_cap, contamination, selection.paths)
        thoughts = store.iterate_thoughts(selection)
        bar = progress_bar(show=progress, total=sum(counts.values()), desc="Mixing", unit="question")
        with Executor(cache=default_cache(store.file)) as executor, bar:
            for group in chunks(thoughts, chunk):
                rows = _mix_chunk(group, questions, executor, selection.paths)
                for split in dict.fromkeys(questions[row.id].split for row in rows):
                    splits[split].add([row for row in rows if questions[row.id].split == split])
                bar.update(len(rows))
    for name, split in splits.items():
        split.close()
        if not split.num_rows:
            raise InputError(
                f"No question of {selection.task}/{name} is left to mix: all {split.statistics.total} are of type 4, "
                "solved by neither path. Sample more thoughts (`--n`) or use a better model. `md-trl store export` "
                "shows what was sampled."
            )
    return splits


def _count_sampled(store: Store, selection: Selection) -> dict[str, int]:
    """Count the questions with thoughts by split. Each split that is selected must have some."""
    counts = store.count_sampled(selection)
    splits = list(dict.fromkeys(selection.splits or counts))
    empty = [split for split in splits if split not in counts]
    if empty or not splits:
        raise InputError(_why_empty(store, selection, empty))
    return {split: counts[split] for split in splits}


def _why_empty(store: Store, selection: Selection, empty: Sequence[str]) -> str:
    """Say why nothing is selected: there are no such thoughts, or only of other models, settings or paths."""
    wanted = "/".join([selection.task, *empty[:1]])
    rows = [row for row in store.status() if row.thoughts]
    of_task = [row for row in rows if row.task == selection.task and row.split in (empty[:1] or [row.split])]
    if not of_task:
        held = ", ".join(sorted({f"{row.task}/{row.split}" for row in rows})) or "no thoughts at all"
        return (
            f"{store.file} has no thoughts of {wanted}; it holds {held}. Sample some with `md-trl sample --task "
            f"{selection.task}`."
        )
    picked = {"model": selection.models, "settings": selection.settings, "params": selection.params}
    picked |= {"paths": None if tuple(selection.paths) == PATHS else selection.paths}
    asked = ", ".join(f"{name} {value!r}" for name, value in picked.items() if value)
    held = {
        row.setting: f"\n  setting {row.setting}: {describe_setting(row.model, row.prompt_hash, row.params)}, "
        f"{' and '.join(dict.fromkeys(other.path for other in of_task if other.setting == row.setting))}"
        for row in of_task
    }
    found = "".join(held.values())
    return f"{store.file} has no thoughts of {wanted} with {asked}. Choose from those that it has:{found}"


def chunks(thoughts: Iterator[Thought], size: int) -> Iterator[list[Thought]]:
    """Group thoughts into lists of at least this size that hold whole questions."""
    chunk: list[Thought] = []
    for _, of_question in itertools.groupby(thoughts, key=lambda thought: thought.question_id):
        chunk += of_question
        if len(chunk) >= size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _mix_chunk(
    thoughts: list[Thought], questions: dict[str, Question], executor: Executor, paths: Sequence[str]
) -> list[MixedRow]:
    ids = dict.fromkeys(thought.question_id for thought in thoughts)
    judged = mark(
        read_answers(thoughts, executor), {question_id: questions[question_id].answer for question_id in ids}
    )
    rows = []
    for question_id, of_question in itertools.groupby(judged, key=lambda thought: thought.question_id):
        of_path: dict[str, list[Thought]] = {path: [] for path in dict.fromkeys((*PATHS, *paths))}
        for thought in of_question:
            of_path[thought.path].append(thought)
        rows.append(mix_question(questions[question_id], *of_path.values()))
    return rows
