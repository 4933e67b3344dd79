"""Build a dataset of mixed rows from a store of thoughts (Sec. 3.1)."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets.builder import Key
from pyarrow import Table

from . import __version__
from .contamination import ContaminationCheck
from .dataset_card import read_metadata
from .dataset_folder import write_folder
from .errors import InputError, UsageError
from .mixed_rows import MixedSplit, mix_store
from .mixing import REPEAT_CAP, MixStatistics, describe
from .records import ALL_PATHS, COT_POT, PATHS, MixedRow
from .sampling.ledger import Ledger, Price
from .store import Selection, Store, open_store
from .tasks import TASKS, is_own_file, own_file, task_name
from .thought_source import open_thoughts, thoughts_digest


logger = logging.getLogger(__name__)

MAX_PROCESSES = 64
"""Ranges of rows that [`MixedThoughts`] can prepare at the same time."""


@contextmanager
def open_source(
    store: str | Path | None,
    thoughts: str | Path | None,
    task: str | Path,
    folder: str | Path,
    name: str | None = None,
) -> Iterator[Store]:
    r"""
    Open the thoughts to mix, wherever they are.

    Args:
        store (`str` or `Path`, *optional*):
            Store of the thoughts.
        thoughts (`str` or `Path`, *optional*):
            Raw thoughts, as in [`~md_trl.thought_source.open_thoughts`]. Either this or `store` must be given.
        task (`str` or `Path`):
            Task of the raw thoughts. A file of one's own questions adds them, so that thoughts can refer to them.
        folder (`str` or `Path`):
            Folder on a disk that has room for them. It may not exist yet.
        name (`str`, *optional*):
            Name for the task of a file. Defaults to the file's name without its ending.

    Yields:
        [`~md_trl.store.Store`]: The store, or a temporary one that holds the raw thoughts.

    Raises:
        `FileNotFoundError`: There is no such store, file or dataset.
        `ValueError`: Both or neither are given, or the raw thoughts cannot be used.
    """
    _check_one_source(store, thoughts)
    if store is not None:
        with open_store(store) as opened:
            yield opened
        return
    questions = own_file.load(task, name=name) if is_own_file(task) else []
    with open_thoughts(thoughts, task_name(task, name), _existing(folder), questions) as opened:
        yield opened


def _check_one_source(store: str | Path | None, thoughts: str | Path | None) -> None:
    if store is None and thoughts is None:
        raise UsageError(
            "No thoughts to mix are named. Name a `store`, or as `thoughts` a thought file or a dataset of them."
        )
    if store is not None and thoughts is not None:
        raise UsageError(f"Thoughts are mixed from one place. Name the `store` {store} or the `thoughts` {thoughts}.")


def _existing(folder: str | Path) -> Path:
    """The folder, or the nearest folder above it that exists, for temporary files on the same disk."""
    folder = Path(folder).resolve()
    return next(candidate for candidate in (folder, *folder.parents) if candidate.is_dir())


@dataclass(frozen=True)
class BuildSummary:
    r"""
    What [`build_dataset`] wrote.

    Args:
        task (`str`):
            Task of the dataset.
        statistics (`dict[str, MixStatistics]`):
            What was counted about the mixed rows, by split.
        contamination (`dict[str, ContaminationCheck]`):
            Which questions are test questions, by split. The split `test` is not checked.
        cost (`float`, *optional*):
            What the thoughts cost, if prices are known.
    """

    task: str
    statistics: dict[str, MixStatistics]
    contamination: dict[str, ContaminationCheck]
    cost: float | None = None

    def format(self) -> str:
        """Format the summary as Markdown."""
        parts = []
        for split, statistics in self.statistics.items():
            parts.append(f"{self.task}/{split}: {statistics.total:,} questions\n\n{describe(statistics)}\n")
            if split in self.contamination:
                parts.append(f"{self.contamination[split].describe()}\n")
        if self.cost is not None:
            kept = sum(statistics.kept for statistics in self.statistics.values())
            per_question = self.cost / max(kept, 1)
            parts.append(f"Cost {self.cost:.4f}: {per_question:.6f} for each of {kept:,} kept questions.\n")
        return "\n".join(parts)


def build_dataset(
    store: Store,
    output: str | Path,
    selection: Selection,
    repeat_cap: int = REPEAT_CAP,
    prices: Mapping[str, Price] | None = None,
    progress: bool = False,
) -> BuildSummary:
    r"""
    Judge and mix the thoughts of one task, and write them as a dataset.

    Args:
        store ([`~md_trl.store.Store`]):
            Store of the thoughts.
        output (`str` or `Path`):
            Folder to write to. Other tasks in it are kept.
        selection ([`~md_trl.store.Selection`]):
            Which thoughts to mix. It names one task.
        repeat_cap (`int`, *optional*, defaults to `4`):
            Maximum `repeat` of a question.
        prices (`Mapping[str, Price]`, *optional*):
            Prices by model, to state the cost per question.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar.

    Returns:
        [`BuildSummary`]: What was written.

    Raises:
        `ValueError`: As in [`~md_trl.mixed_rows.mix_store`].
    """
    # Thoughts that arrive from now on make the digest stale, whether or not they are mixed.
    source = {"selection": asdict(selection), "repeat_cap": repeat_cap, "digest": store.digest(selection)}
    source["unfinished"] = store.unfinished(selection)
    cost = None if prices is None else Ledger(store.spending(selection), prices).cost
    with tempfile.TemporaryDirectory(prefix=".mixing-", dir=_existing(output)) as folder:
        splits = mix_store(store, selection, folder, repeat_cap, progress)
        statistics = {name: split.statistics for name, split in splits.items()}
        settings = _card_settings(store, selection, statistics.values(), repeat_cap)
        write_folder(output, selection.task, splits, settings | _provenance(store, selection, cost), source)
    checks = {name: split.contamination for name, split in splits.items() if split.contamination is not None}
    return BuildSummary(selection.task, statistics, checks, cost)


def _card_settings(
    store: Store, selection: Selection, statistics: Iterable[MixStatistics], repeat_cap: int
) -> dict[str, Any]:
    """Describe for the card how the thoughts of a dataset were sampled."""
    sampled = store.status(selection)
    paths = [path for path in ALL_PATHS if path in PATHS or path in (selection.paths or ())]
    teachers = {path: _listed(row.model for row in sampled if row.path == path) for path in paths}
    teacher = _listed(filter(None, teachers.values()))
    if "" not in teachers.values() and len(set(teachers.values())) > 1:
        teacher = "; ".join(f"{path}: {name}" for path, name in teachers.items())
    parameters = dict.fromkeys(name for row in sampled for name in row.params)
    per_question = {path: set().union(*(split.per_question[path] for split in statistics)) for path in paths}
    third = {"cot_pot thoughts per question": _listed(per_question[COT_POT])} if COT_POT in paths else {}
    return {
        "teacher": teacher,
        **{name: _listed(row.params.get(name, "unknown") for row in sampled) for name in parameters},
        "CoT thoughts per question": _listed(per_question["cot"]),
        "PoT thoughts per question": _listed(per_question["pot"]),
        **third,
        "repeat_cap": repeat_cap,
    }


def _provenance(store: Store, selection: Selection, cost: float | None) -> dict[str, Any]:
    """Describe for the card which prompts thoughts were sampled with, when, at what cost, and what mixed them."""
    sampled = store.status(selection)
    paths = selection.paths or PATHS
    hashes = {path: _listed(row.prompt_hash for row in sampled if row.path == path) for path in paths}
    prompts = {f"{path} prompt (hash)": value for path, value in hashes.items() if value}
    dates = {f"{how} on": days for how, days in store.dates(selection).items()}
    paid = {} if cost is None else {"cost": f"{cost:.4f}"}
    return {**prompts, **dates, **paid, "md_trl": __version__}


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(sorted({str(value) for value in values}))


def ensure_dataset(folder: str | Path, task: str, store_file: str | Path) -> BuildSummary | None:
    r"""
    Build the dataset of a task, unless the folder already holds one of the same thoughts.

    A dataset that was built from other thoughts, for example before the store grew, is built again with the same
    selection. If the store does not exist, the dataset is used as it is.

    Args:
        folder (`str` or `Path`):
            Folder of the dataset.
        task (`str`):
            Task to train on.
        store_file (`str` or `Path`):
            Store of the thoughts.

    Returns:
        [`BuildSummary`] or `None`: What was written; `None` if the dataset was up to date.

    Raises:
        `FileNotFoundError`: Neither the dataset nor the store exists.
        `ValueError`: As in [`build_dataset`].
    """
    metadata = read_metadata(folder, task)
    if (Path(folder) / task).is_dir() and not Path(store_file).is_file():
        return None
    source = metadata and metadata.get("source")
    if source is not None and "refine" in source:
        return None  # `md-trl refine` alone can mix it again
    selection, repeat_cap = Selection(task, ["train"]), REPEAT_CAP
    if source is not None:
        selection, repeat_cap = Selection(**source["selection"]), source["repeat_cap"]
    with open_store(store_file) as store:
        if source is not None and source["digest"] == store.digest(selection):
            return None
        return build_dataset(store, folder, selection, repeat_cap, progress=True)


@dataclass
class MixedThoughtsConfig(datasets.BuilderConfig):
    r"""
    Configuration of [`MixedThoughts`]. Its name is the task.

    Args:
        models (`str` or `dict[str, str]`, *optional*):
            As in [`~md_trl.store.Selection`].
        settings (`list[int]`, *optional*):
            As in [`~md_trl.store.Selection`].
        combine (`bool`, *optional*, defaults to `False`):
            As in [`~md_trl.store.Selection`].
        paths (`list[str]`, *optional*):
            Paths to mix: by default `cot` and `pot`.
        repeat_cap (`int`, *optional*, defaults to `4`):
            Maximum `repeat` of a question.
        digest (`str`, *optional*):
            Digest of the thoughts. [`MixedThoughts`] sets it, so that other thoughts are mixed again, and the same
            ones are not, wherever they are read from.
    """

    models: str | dict[str, str] | None = None
    settings: list[int] | None = None
    combine: bool = False
    repeat_cap: int = REPEAT_CAP
    digest: str | None = None
    paths: list[str] | None = None


class MixedThoughts(datasets.ArrowBasedBuilder):
    r"""
    `datasets` builder of mixed thoughts (Sec. 3.1). Each task is a configuration, each split of the thoughts a split.

    Thoughts come from a store, or as raw thoughts from a thought file or a dataset on the Hub.

    Example:

    ```python
    >>> from md_trl import MixedThoughts

    >>> builder = MixedThoughts("svamp", store="thoughts.db")
    >>> builder.download_and_prepare()
    >>> dataset = builder.as_dataset(split="train")

    >>> builder = MixedThoughts("svamp", thoughts="md/mixed-thoughts", repeat_cap=2)
    ```

    Args:
        config_name (`str` or `Path`):
            Name of the task, or a file of questions of one's own, whose name without its ending is the task's.
        store (`str` or `Path`, *optional*):
            Store of the thoughts.
        cache_dir (`str`, *optional*):
            Folder for the prepared dataset. Defaults to the cache of `datasets`.
        models (`str` or `dict[str, str]`, *optional*):
            Model whose thoughts to use, or one model for each path.
        settings (`list[int]`, *optional*):
            Settings whose thoughts to use, by the numbers that `md-trl store status` shows.
        combine (`bool`, *optional*, defaults to `False`):
            Whether to combine the thoughts of several settings of one question and path.
        thoughts (`str` or `Path`, *optional*):
            Instead of a store, a thought file, or the Hub id or folder of a dataset of raw thoughts, with a
            configuration `{task}-thoughts`.
        **config_kwargs:
            Other fields of [`MixedThoughtsConfig`].

    Raises:
        `FileNotFoundError`: There is no such store, file or dataset.
        `ValueError`: There are no thoughts of the task, or both or neither of `store` and `thoughts` are given.
    """

    BUILDER_CONFIG_CLASS = MixedThoughtsConfig
    BUILDER_CONFIGS = [MixedThoughtsConfig(name=task) for task in TASKS]

    def __init__(
        self,
        config_name: str | Path,
        store: str | Path | None = None,
        cache_dir: str | None = None,
        models: str | dict[str, str] | None = None,
        settings: list[int] | None = None,
        combine: bool = False,
        thoughts: str | Path | None = None,
        **config_kwargs: Any,
    ):
        _check_one_source(store, thoughts)
        self._store, self._thoughts, self._folder, self._task = store, thoughts, None, config_name
        config_name = task_name(config_name)
        paths = config_kwargs.get("paths")
        self._selection = Selection(config_name, paths=paths, models=models, settings=settings, combine=combine)
        if store is None:
            digest = thoughts_digest(thoughts, config_name)
            if is_own_file(self._task):
                questions = Path(self._task).read_bytes()
                digest = hashlib.sha256(digest.encode() + questions).hexdigest()
        else:
            with open_store(store) as opened:
                digest = opened.digest(self._selection)
        if config_name not in TASKS:  # a task that the user imported under a name of their own
            self.BUILDER_CONFIGS = []
        super().__init__(
            cache_dir=cache_dir,
            config_name=config_name,
            models=models,
            settings=settings,
            combine=combine,
            digest=digest,
            **config_kwargs,
        )

    def _info(self) -> datasets.DatasetInfo:
        made_with = {name: getattr(self.config, name) for name in ("models", "settings", "combine", "repeat_cap")}
        return datasets.DatasetInfo(
            description=f"Mixed thoughts on {self.config.name}: distinct CoT and PoT thoughts with type and lambda.\n"
            + json.dumps(made_with),
            features=MixedRow.features(self.config.paths or PATHS),
            homepage="https://huggingface.co/papers/2312.10730",
        )

    def _download_and_prepare(self, dl_manager, verification_mode, **prepare_split_kwargs) -> None:
        parent = _existing(self._cache_dir_root)
        with tempfile.TemporaryDirectory(prefix=".mixing-", dir=parent) as self._folder:
            try:
                super()._download_and_prepare(dl_manager, verification_mode, **prepare_split_kwargs)
            finally:
                self._folder = None

    # All rows are mixed here, because `repeat` depends on all of them, and because `datasets` hides the message of an
    # error in `_generate_tables`.
    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        if self._folder is None:
            raise InputError(
                "Thoughts cannot be mixed as a stream, because `repeat` depends on all of them. Call "
                "`download_and_prepare` and `as_dataset`."
            )
        with open_source(self._store, self._thoughts, self._task, self._folder) as store:
            splits = mix_store(store, self._selection, self._folder, self.config.repeat_cap)
        for split in splits.values():
            if split.contamination is not None and split.contamination.found:
                logger.warning(split.contamination.describe())
        return [
            datasets.SplitGenerator(name=name, gen_kwargs={"split": split, "ranges": split.ranges(MAX_PROCESSES)})
            for name, split in splits.items()
        ]

    def _generate_tables(self, split: MixedSplit, ranges: list[tuple[int, int]]) -> Iterator[tuple[Key, Table]]:
        for i, (start, stop) in enumerate(ranges):
            for j, table in enumerate(split.tables(start, stop)):
                yield Key(i, j), table
