"""Build a dataset of mixed rows from a store of thoughts (Sec. 3.1)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets

from . import __version__
from .dataset_card import read_metadata
from .dataset_folder import solved_rows, write_folder
from .errors import InputError
from .execution import Executor, default_cache
from .judging import mark, read_answers
from .mixing import REPEAT_CAP, describe, mix
from .records import PATHS, MixedRow, QuestionType
from .sampling.ledger import Ledger, Price
from .store import Selection, Store
from .tasks import TASKS, load_questions


def open_store(file: str | Path) -> Store:
    """Open a store that must exist already."""
    if not Path(file).is_file():
        raise FileNotFoundError(f"There is no store at {file}. Create one with `md-trl sample --store {file}`.")
    return Store(file)


def rows_from_store(
    store: Store, selection: Selection, repeat_cap: int = REPEAT_CAP, progress: bool = False
) -> dict[str, list[MixedRow]]:
    r"""
    Judge and mix the thoughts of one task.

    Args:
        store ([`~md_trl.store.Store`]):
            Store of the thoughts.
        selection ([`~md_trl.store.Selection`]):
            Which thoughts to mix. It names one task.
        repeat_cap (`int`, *optional*, defaults to `4`):
            Maximum `repeat` of a question.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar while programs run.

    Returns:
        `dict[str, list[MixedRow]]`: Mixed rows by split, type 4 included.

    Raises:
        `ValueError`: A split has no thoughts, or a question has thoughts of several settings.
    """
    thoughts = store.thoughts(selection)
    sampled = {thought.question_id for thought in thoughts}
    questions = [question for question in store.questions.load(selection.task) if question.id in sampled]
    splits = dict.fromkeys(selection.splits or (question.split for question in questions))
    empty = [split for split in splits if all(question.split != split for question in questions)]
    if empty or not splits:
        held = sorted({f"{q.task}/{q.split}" for q in store.questions.load()}) or ["no questions at all"]
        wanted = "/".join([selection.task, *empty[:1]])
        picked = {name: value for name, value in vars(selection).items() if name in ("models", "settings") and value}
        raise InputError(
            f"{store.file} has no thoughts of {wanted}{f' with {picked}' if picked else ''}; it holds "
            f"{', '.join(held)}. Sample some with `md-trl sample --task {selection.task} --store {store.file}`."
        )
    with Executor(cache=default_cache(store.file)) as executor:
        answered = read_answers(thoughts, executor, progress=progress)
    rows = mix(questions, mark(answered, {q.id: q.answer for q in questions}), repeat_cap=repeat_cap)
    split_of = {question.id: question.split for question in questions}
    return {split: [row for row in rows if split_of[row.id] == split] for split in splits}


@dataclass(frozen=True)
class BuildSummary:
    r"""
    What [`build_dataset`] wrote.

    Args:
        task (`str`):
            Task of the dataset.
        rows (`dict[str, list[MixedRow]]`):
            Mixed rows by split, type 4 included.
        cost (`float`, *optional*):
            What the thoughts cost, if prices are known.
    """

    task: str
    rows: dict[str, list[MixedRow]]
    cost: float | None = None

    def format(self) -> str:
        """Format the summary as Markdown."""
        parts = [
            f"{self.task}/{split}: {len(rows):,} questions\n\n{describe(rows)}\n" for split, rows in self.rows.items()
        ]
        if self.cost is not None:
            kept = sum(row.type != QuestionType.NEITHER for rows in self.rows.values() for row in rows)
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
            Whether to show a progress bar while programs run.

    Returns:
        [`BuildSummary`]: What was written.

    Raises:
        `ValueError`: As in [`rows_from_store`], or no question is solved by any path.
    """
    # Thoughts that arrive from now on make the digest stale, whether or not they are mixed.
    source = {"selection": asdict(selection), "repeat_cap": repeat_cap, "digest": store.digest(selection)}
    source["unfinished"] = store.unfinished(selection)
    rows = rows_from_store(store, selection, repeat_cap, progress)
    cost = None if prices is None else Ledger(store.spending(selection), prices).cost
    settings = _card_settings(store, selection, rows, repeat_cap) | _provenance(store, selection, cost)
    write_folder(output, selection.task, rows, settings, source)
    return BuildSummary(selection.task, rows, cost)


def _card_settings(
    store: Store, selection: Selection, rows: Mapping[str, Sequence[MixedRow]], repeat_cap: int
) -> dict[str, Any]:
    """Describe for the card how the thoughts of a dataset were sampled."""
    sampled = store.status(selection)
    teachers = {path: _listed(row.model for row in sampled if row.path == path) for path in PATHS}
    teacher = _listed(filter(None, teachers.values()))
    if "" not in teachers.values() and teachers["cot"] != teachers["pot"]:
        teacher = "; ".join(f"{path}: {name}" for path, name in teachers.items())
    parameters = dict.fromkeys(name for row in sampled for name in row.params)
    all_rows = [row for of_split in rows.values() for row in of_split]
    return {
        "teacher": teacher,
        **{name: _listed(row.params.get(name, "unknown") for row in sampled) for name in parameters},
        "CoT thoughts per question": _listed(row.n_cot for row in all_rows),
        "PoT thoughts per question": _listed(row.n_pot for row in all_rows),
        "repeat_cap": repeat_cap,
    }


def _provenance(store: Store, selection: Selection, cost: float | None) -> dict[str, Any]:
    """Describe for the card which prompts thoughts were sampled with, when, at what cost, and what mixed them."""
    hashes = {path: _listed(row.prompt_hash for row in store.status(selection) if row.path == path) for path in PATHS}
    prompts = {f"{path} prompt (hash)": value for path, value in hashes.items() if value}
    days = store.sampled_on(selection)
    sampled = {} if days is None else {"sampled on": " to ".join(dict.fromkeys(days))}
    paid = {} if cost is None else {"cost": f"{cost:.4f}"}
    return {**prompts, **sampled, **paid, "md_trl": __version__}


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
    selection, repeat_cap = Selection(task, ["train"]), REPEAT_CAP
    if source is not None:
        selection, repeat_cap = Selection(**source["selection"]), source["repeat_cap"]
    with open_store(store_file) as store:
        if source is not None and source["digest"] == store.digest(selection):
            return None
        return build_dataset(store, folder, selection, repeat_cap, progress=True)


def load_mixed_rows(dataset: str, task: str) -> datasets.Dataset:
    r"""
    Load the mixed rows to train on.

    Args:
        dataset (`str`):
            Folder or Hub id of the dataset.
        task (`str`):
            Task, a configuration of the dataset.

    Returns:
        [`~datasets.Dataset`]: Its split `train`.

    Raises:
        `ValueError`: The dataset has no such configuration or no split `train`.
        `FileNotFoundError`: There is no such dataset.
    """
    try:
        return datasets.load_dataset(dataset, task, split="train")
    except ValueError as error:
        raise InputError(f"Cannot load the split `train` of task {task!r} from {dataset}: {error}") from error


def load_question_rows(task: str, source: str | None = None, store_file: str | None = None) -> datasets.Dataset:
    r"""
    Load every training question of a task, whichever paths solve it, for `objective="label_all"`.

    Args:
        task (`str`):
            Name of the task.
        source (`str`, *optional*):
            Local copy of the task's original file.
        store_file (`str`, *optional*):
            Store whose questions to use if there is no `source`. Without either, the task is loaded from the Hub.

    Returns:
        [`~datasets.Dataset`]: `id`, `task`, `question` and `answer` of each question.

    Raises:
        `FileNotFoundError`: The source or the store does not exist.
        `ValueError`: The store has no training questions of the task.
    """
    if source is None and store_file is not None:
        with open_store(store_file) as store:
            questions = store.questions.load(task, "train")
        if not questions:
            raise InputError(f"{store_file} has no questions of {task}/train. Name the original file with `source`.")
    else:
        questions = load_questions(task, "train", source=source)
    columns = ("id", "task", "question", "answer")
    return datasets.Dataset.from_list([{name: getattr(question, name) for name in columns} for question in questions])


@dataclass
class MixedThoughtsConfig(datasets.BuilderConfig):
    r"""
    Configuration of [`MixedThoughts`]. Its name is the task.

    Args:
        store (`str`):
            Store of the thoughts.
        models (`str` or `dict[str, str]`, *optional*):
            As in [`~md_trl.store.Selection`].
        settings (`list[int]`, *optional*):
            As in [`~md_trl.store.Selection`].
        combine (`bool`, *optional*, defaults to `False`):
            As in [`~md_trl.store.Selection`].
        repeat_cap (`int`, *optional*, defaults to `4`):
            Maximum `repeat` of a question.
        digest (`str`, *optional*):
            Digest of the selected thoughts. [`MixedThoughts`] sets it, so that a store that has grown is mixed again.
    """

    store: str | None = None
    models: str | dict[str, str] | None = None
    settings: list[int] | None = None
    combine: bool = False
    repeat_cap: int = REPEAT_CAP
    digest: str | None = None


class MixedThoughts(datasets.GeneratorBasedBuilder):
    r"""
    `datasets` builder of mixed thoughts (Sec. 3.1). Each task is a configuration, each split of the store a split.

    Example:

    ```python
    >>> from md_trl import MixedThoughts

    >>> builder = MixedThoughts("svamp", store="thoughts.db")
    >>> builder.download_and_prepare()
    >>> dataset = builder.as_dataset(split="train")
    ```

    Args:
        config_name (`str`):
            Name of the task.
        store (`str` or `Path`):
            Store of the thoughts.
        cache_dir (`str`, *optional*):
            Folder for the prepared dataset. Defaults to the cache of `datasets`.
        models (`str` or `dict[str, str]`, *optional*):
            Model whose thoughts to use, or one model for each path.
        settings (`list[int]`, *optional*):
            Settings whose thoughts to use, by the numbers that `md-trl store status` shows.
        combine (`bool`, *optional*, defaults to `False`):
            Whether to combine the thoughts of several settings of one question and path.
        **config_kwargs:
            Other fields of [`MixedThoughtsConfig`].

    Raises:
        `FileNotFoundError`: There is no such store.
        `ValueError`: The store has no thoughts of the task.
    """

    BUILDER_CONFIG_CLASS = MixedThoughtsConfig
    BUILDER_CONFIGS = [MixedThoughtsConfig(name=task) for task in TASKS]

    def __init__(
        self,
        config_name: str,
        store: str | Path,
        cache_dir: str | None = None,
        models: str | dict[str, str] | None = None,
        settings: list[int] | None = None,
        combine: bool = False,
        **config_kwargs: Any,
    ):
        self._selection = Selection(config_name, models=models, settings=settings, combine=combine)
        with open_store(store) as opened:
            digest = opened.digest(self._selection)
        if config_name not in TASKS:  # a task that the user imported under a name of their own
            self.BUILDER_CONFIGS = []
        super().__init__(
            cache_dir=cache_dir,
            config_name=config_name,
            store=str(Path(store).resolve()),
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
            features=MixedRow.features(),
            homepage="https://huggingface.co/papers/2312.10730",
        )

    # All rows are mixed here, because `datasets` hides the message of an error in `_generate_examples`.
    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        with open_store(self.config.store) as store:
            rows = rows_from_store(store, self._selection, self.config.repeat_cap)
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"rows": solved_rows(of_split, self.config.name, split)})
            for split, of_split in rows.items()
        ]

    def _generate_examples(self, rows: list[MixedRow]):
        for row in rows:
            yield row.id, row.to_dict()
