"""Builder: a store of thoughts or mixed rows come in, a dataset that `load_dataset` opens goes out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import datasets
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

from .errors import InputError
from .execution import Executor, default_cache
from .judging import mark, read_answers
from .mixing import REPEAT_CAP, describe, mix
from .records import MixedRow
from .store import Selection, Store
from .tasks import TASKS


def rows_from_store(
    store: Store,
    task: str,
    split: str,
    model: str | None = None,
    temperature: float | None = None,
    repeat_cap: int = REPEAT_CAP,
    progress: bool = False,
    settings: Sequence[int] | None = None,
) -> list[MixedRow]:
    r"""
    Judge and mix the thoughts of one task and split.

    Args:
        store ([`~md_trl.store.Store`]):
            Where the thoughts are.
        task (`str`), split (`str`):
            What to mix.
        model (`str`, *optional*), temperature (`float`, *optional*):
            Which thoughts to take, where the store has several for a question.
        repeat_cap (`int`, *optional*, defaults to `4`):
            Largest `repeat`.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar while programs run.
        settings (`Sequence[int]`, *optional*):
            The same as `model` and `temperature`, by the numbers that `md-trl store status` shows.

    Returns:
        `list[MixedRow]`: all rows, type 4 included.

    Raises:
        `ValueError`: the store has no such thoughts, or thoughts that must not be mixed.
    """
    questions = store.questions.load(task, split)
    thoughts = store.thoughts(_selection(task, [split], model=model, temperature=temperature, settings=settings))
    if not thoughts:
        held = sorted({f"{q.task}/{q.split}" for q in store.questions.load()}) or ["no question at all"]
        raise InputError(
            f"{store.file} has no thoughts of {task}/{split}{f' by {model}' if model else ''}; it holds "
            f"{', '.join(held)}. Sample some with `md-trl sample --task {task} --split {split} --store {store.file}`."
        )
    with Executor(cache=default_cache(store.file)) as executor:
        judged = mark(read_answers(thoughts, executor, progress=progress), {q.id: q.answer for q in questions})
    return mix(questions, judged, repeat_cap=repeat_cap)


def _selection(
    task: str,
    splits: Sequence[str] | None = None,
    *,
    model: str | None,
    temperature: float | None,
    settings: Sequence[int] | None,
) -> Selection:
    params = None if temperature is None else {"temperature": temperature}
    return Selection(task, splits, models=model, settings=settings, params=params)


# What picks thoughts of a store
_PICKED = ("model", "temperature", "settings")


@dataclass
class MixedThoughtsConfig(datasets.BuilderConfig):
    r"""
    Configuration of [`MixedThoughts`]. Its name is the task.

    Args:
        store (`str`):
            Path of the store.
        model (`str`, *optional*), temperature (`float`, *optional*), repeat_cap (`int`, *optional*, defaults to `4`):
            As in [`rows_from_store`].
        settings (`list[int]`, *optional*):
            As in [`rows_from_store`].
        fingerprint (`str`, *optional*):
            Digest of the store, set by [`MixedThoughts`], so that a cached dataset is not taken for a grown store.
    """

    store: str | None = None
    model: str | None = None
    temperature: float | None = None
    repeat_cap: int = REPEAT_CAP
    settings: list[int] | None = None
    fingerprint: str | None = None


class MixedThoughts(datasets.GeneratorBasedBuilder):
    r"""
    `datasets` builder of mixed thoughts (Sec. 3.1), one config a task, one split a split of the store.

    Example:

    ```python
    >>> from md_trl import MixedThoughts

    >>> builder = MixedThoughts("svamp", store="thoughts.db")
    >>> builder.download_and_prepare()
    >>> dataset = builder.as_dataset(split="train")
    ```

    Args:
        config_name (`str`):
            The task.
        store (`str`):
            Path of the store.
        cache_dir (`str`, *optional*):
            Folder for the prepared dataset, the cache of `datasets` by default.
        **config_kwargs:
            Further fields of [`MixedThoughtsConfig`].

    Raises:
        `FileNotFoundError`: no store at the path.
        `ValueError`: the store has no thoughts of the task.
    """

    BUILDER_CONFIG_CLASS = MixedThoughtsConfig
    BUILDER_CONFIGS = [MixedThoughtsConfig(name=task) for task in TASKS]

    def __init__(self, config_name: str, store: str | Path, cache_dir: str | None = None, **config_kwargs: Any):
        if not Path(store).is_file():
            raise FileNotFoundError(f"There is no store at {store}. Make one with `md-trl sample --store {store}`.")
        fingerprint = hashlib.sha256()
        with Store(store) as opened:
            picked = {name: config_kwargs.get(name) for name in _PICKED}
            for record in [*opened.questions.load(config_name), *opened.thoughts(_selection(config_name, **picked))]:
                fingerprint.update(repr(record).encode())
        if config_name not in TASKS:  # imported under a name of the user's
            self.BUILDER_CONFIGS = []
        super().__init__(
            cache_dir=cache_dir,
            config_name=config_name,
            store=str(Path(store).resolve()),
            fingerprint=fingerprint.hexdigest(),
            **config_kwargs,
        )

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description=f"Mixed thoughts on {self.config.name}: distinct CoT and PoT thoughts with type and lambda.\n"
            + json.dumps({name: getattr(self.config, name) for name in (*_PICKED, "repeat_cap")}),
            features=MixedRow.features(),
            homepage="https://huggingface.co/papers/2312.10730",
        )

    # All rows are mixed here, for `datasets` hides the message of what fails in `_generate_examples`
    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        config = self.config
        with Store(config.store) as store:
            picked = {name: getattr(config, name) for name in _PICKED}
            sampled = {thought.question_id for thought in store.thoughts(_selection(config.name, **picked))}
            splits = dict.fromkeys(q.split for q in store.questions.load(config.name) if q.id in sampled)
            if not splits:
                raise InputError(
                    f"{config.store} has no thoughts of {config.name}. Sample some with `md-trl sample --task "
                    f"{config.name} --store {config.store}`."
                )
            rows = {
                split: rows_from_store(store, config.name, split, repeat_cap=config.repeat_cap, **picked)
                for split in splits
            }
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"rows": _solved(rows[split], config.name, split)})
            for split in splits
        ]

    def _generate_examples(self, rows: list[MixedRow]):
        for row in rows:
            yield row.id, row.to_dict()


def _solved(rows: Sequence[MixedRow], task: str, split: str) -> list[MixedRow]:
    """The rows that go into a dataset: all but those of type 4."""
    kept = [row for row in rows if row.type != 4]
    if not kept:
        raise InputError(
            f"No question of {task}/{split} is left to mix: all {len(rows)} are of type 4, solved by neither path. "
            "Sample more thoughts (`--n`), from a better model, or look at them with `md-trl store export`."
        )
    return kept


def write_folder(
    output: str | Path, task: str, splits: Mapping[str, Sequence[MixedRow]], settings: Mapping[str, Any]
) -> Path:
    r"""
    Write mixed rows as Parquet with a card, so that `load_dataset(output, task)` opens them, from disk or from the
    Hub.

    Other tasks in the folder stay as they are. Rows of type 4 are counted in the card and not written.

    Args:
        output (`str` or `Path`):
            Folder, made if there is none.
        task (`str`):
            Name of the config.
        splits (`Mapping[str, Sequence[MixedRow]]`):
            Mixed rows by split, type 4 included.
        settings (`Mapping[str, Any]`):
            How the rows came about, for the metadata: model, temperature, `repeat_cap`, ...

    Returns:
        `Path`: the folder.

    Raises:
        `ValueError`: every row is of type 4.
    """
    output = Path(output)
    info = datasets.DatasetInfo(features=MixedRow.features(), config_name=task, splits=datasets.SplitDict())
    for split, rows in splits.items():
        kept = [row.to_dict() for row in _solved(rows, task, split)]
        (output / task).mkdir(parents=True, exist_ok=True)
        file = output / task / f"{split}-00000-of-00001.parquet"
        dataset = datasets.Dataset.from_list(kept, features=MixedRow.features())
        dataset.to_parquet(file)
        info.splits[split] = datasets.SplitInfo(name=split, num_bytes=dataset.data.nbytes, num_examples=len(kept))
        info.download_size = (info.download_size or 0) + file.stat().st_size
        info.dataset_size = (info.dataset_size or 0) + dataset.data.nbytes
    summary = {
        "settings": dict(settings),
        "types": {
            split: {str(t): sum(row.type == t for row in rows) for t in (1, 2, 3, 4)} for split, rows in splits.items()
        },
        "summary": {split: describe(rows) for split, rows in splits.items()},
    }
    (output / task / "mixing.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    _write_card(output, task, info)
    return output


def _write_card(output: Path, task: str, info: datasets.DatasetInfo) -> None:
    path = output / "README.md"
    data = DatasetCard.load(path).data if path.exists() else DatasetCardData()
    infos = DatasetInfosDict.from_dataset_card_data(data)
    configs = MetadataConfigs.from_dataset_card_data(data)
    infos[task] = info
    configs[task] = {"data_files": [{"split": split, "path": f"{task}/{split}-*.parquet"} for split in info.splits]}
    template = (files("md_trl") / "hub_cards" / "mixed-thoughts" / "README.md").read_text()
    new = DatasetCard(template.replace("{{ configs }}", _sections(output, configs)))
    infos.to_dataset_card_data(new.data)
    configs.to_dataset_card_data(new.data)
    new.save(path)


def _sections(output: Path, tasks: Sequence[str]) -> str:
    """One section a task for the body of the card, from the metadata in the task's folder."""
    sections = []
    for task in sorted(tasks):
        metadata = json.loads((output / task / "mixing.json").read_text())
        settings = "\n".join(f"| {name} | {value} |" for name, value in metadata["settings"].items())
        sections.append(f"## {task}\n\n| setting | value |\n| --- | --- |\n{settings}")
        sections += [f"### {task}, {split}\n\n{summary}" for split, summary in metadata["summary"].items()]
    return "\n\n".join(sections)
