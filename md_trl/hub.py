"""Publish datasets of mixed thoughts, and the metric `md_vote`, on the Hub: all of it in one commit, or nothing."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import DatasetCard, DatasetCardData

from .dataset_card import (
    METADATA_FILE,
    PICTURE_FILE,
    dataset_card,
    read_infos,
    read_tasks,
)
from .dataset_picture import draw_mixing
from .errors import InputError
from .flat_twin import read_info, twin_of
from .hub_repo import Head, HubRepo, OutdatedError
from .secret_search import Finding, check_kinds, find_kinds, search_parquet
from .store import Selection, Store, open_store
from .thought_source import thoughts_of


_SHOWN_FINDINGS = 10
_README = "README.md"
_METRIC = "md/md_vote"
"""The metric's repository in its own files."""


@dataclass(frozen=True)
class Publication:
    r"""
    What was published.

    Args:
        url (`str`):
            Address of the repository.
        commit (`str`):
            Its newest commit.
        uploaded (`list[str]`):
            Names of the new and changed files. Empty if the repository held everything already.
        deleted (`list[str]`):
            Names of the files that were deleted.
        tag (`str`, *optional*):
            Tag of the commit.
    """

    url: str
    commit: str
    uploaded: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    tag: str | None = None

    def format(self) -> str:
        """Format it in a line or two."""
        if self.uploaded or self.deleted:
            deleted = f", {len(self.deleted):,} deleted" if self.deleted else ""
            line = f"Published {self.url} in commit {self.commit}: {len(self.uploaded):,} files uploaded{deleted}."
        else:
            line = f"{self.url} holds all of this already, so there is no new commit. The newest is {self.commit}."
        return line + (f"\nTagged {self.tag}." if self.tag is not None else "")


def publish_dataset(
    folder: str | Path,
    repo: str,
    thoughts: str | Path | None = None,
    private: bool = False,
    tag: str | None = None,
    allow: Collection[str] = (),
) -> Publication:
    r"""
    Publish a folder of mixed rows as a dataset on the Hub.

    Each task becomes two configurations, `TASK` and `TASK-paths`, and the configuration `default` joins the rows of
    all tasks. Tasks that are only on the Hub stay. All changes are one commit on top of the newest, and there is none
    if nothing has changed.

    Args:
        folder (`str` or `Path`):
            Folder that [`~md_trl.dataset.build_dataset`] wrote.
        repo (`str`):
            Hub id of the dataset. It is created if it does not exist.
        thoughts (`str` or `Path`, *optional*):
            Store whose thoughts to publish, too, as the configurations `TASK-thoughts`: those that the rows were mixed
            from, wrong ones and type 4 included.
        private (`bool`, *optional*, defaults to `False`):
            Whether to create the dataset as a private one.
        tag (`str`, *optional*):
            Tag of the commit, to load this version with `load_dataset(..., revision=tag)`.
        allow (`Collection[str]`, *optional*):
            Kinds of secrets that the texts may hold, see [`~md_trl.secret_search.find_kinds`].

    Returns:
        [`Publication`]: What was published.

    Raises:
        `FileNotFoundError`: The folder or the store does not exist.
        `InputError`: The folder holds no complete task, its thoughts are still being sampled or have changed, a text
            may hold a secret, or the Hub refuses the upload. Nothing is published then.

    Examples:

    ```python
    >>> from md_trl.hub import publish_dataset

    >>> publish_dataset("mixed", "md/mixed-thoughts", tag="v1.0").url
    'https://huggingface.co/datasets/md/mixed-thoughts'
    ```
    """
    check_kinds(allow)
    metadata = _read_complete_tasks(Path(folder))
    target = HubRepo(repo, "dataset")
    with tempfile.TemporaryDirectory(prefix="md_trl-publish-") as work:
        configs = {name: Path(folder) / name for task in metadata for name in (task, twin_of(task))}
        if thoughts is not None:
            configs |= _export_thoughts(Path(thoughts), metadata, Path(work))
        _refuse_secrets(configs, allow)
        dataset = _Dataset(target, metadata, configs, Path(work))
        message = f"Publish {', '.join(sorted(metadata))}"
        return _publish(target, dataset.stage, message, private, tag)


def publish_metric(repo: str, private: bool = False, tag: str | None = None) -> Publication:
    r"""
    Publish the metric `md_vote` as a Space, where `evaluate.load` finds it and people can try it.

    Args:
        repo (`str`):
            Hub id of the Space. It is created if it does not exist.
        private (`bool`, *optional*, defaults to `False`):
            Whether to create the Space as a private one.
        tag (`str`, *optional*):
            Tag of the commit.

    Returns:
        [`Publication`]: What was published.

    Raises:
        `InputError`: The Hub refuses the upload. Nothing is published then.
    """
    target = HubRepo(repo, "space")
    with (
        as_file(files("md_trl") / "hub_cards" / "md_vote") as folder,
        tempfile.TemporaryDirectory(prefix="md_trl-publish-") as work,
    ):
        staged = {}
        for file in sorted(folder.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                name = file.relative_to(folder).as_posix()
                staged[name] = Path(work) / name
                staged[name].parent.mkdir(parents=True, exist_ok=True)
                text = file.read_text(encoding="utf-8").replace(_METRIC, target.id)
                staged[name].write_text(text, encoding="utf-8")
        return _publish(target, lambda head: (staged, []), "Publish md_vote", private, tag, sdk="gradio")


def _publish(
    repo: HubRepo,
    stage: Callable[[Head | None], tuple[Mapping[str, Path], Collection[str]]],
    message: str,
    private: bool,
    tag: str | None,
    sdk: str | None = None,
) -> Publication:
    """Commit the files that `stage` returns for the newest commit, and delete those it names."""
    for attempt in itertools.count(1):
        head = repo.head()
        if private and head is not None and not head.private:
            raise InputError(f"{repo.id} is public. Make it private at {repo.url}/settings, or leave out `--private`.")
        staged, deleted = stage(head)
        if head is None:
            head = repo.create(private, sdk)
        changed = repo.changes(staged, head)
        tagged = None if tag is None else repo.find_tag(tag)
        if tagged is not None and (changed or deleted or tagged != head.commit):
            raise InputError(f"{repo.id} has a tag {tag!r} already, of another version. Choose another `--tag`.")
        commit = head.commit
        if changed or deleted:
            try:
                commit = repo.commit(changed, deleted, head, message)
            except OutdatedError:
                if attempt == 1:  # merged with what the other commit has brought
                    continue
                raise
        if tag is not None and tagged is None:
            repo.add_tag(tag, commit)
        return Publication(repo.url, commit, [file.path_in_repo for file in changed], sorted(deleted), tag)


@dataclass
class _Dataset:
    """The local part of a dataset, to be merged with what is on the Hub."""

    repo: HubRepo
    metadata: dict[str, dict[str, Any]]
    configs: dict[str, Path]
    work: Path

    def stage(self, head: Head | None) -> tuple[dict[str, Path], list[str]]:
        """Return all files by their names in the repository, and the names of those that are there and outdated."""
        there = {} if head is None else head.files
        published, metadata = self._published(head) if _README in there else (DatasetCardData(), {})
        metadata |= self.metadata
        card, picture = self.work / _README, self.work / PICTURE_FILE
        dataset_card(self._infos(), metadata, self.repo.id, published).save(card)
        draw_mixing(metadata, picture)
        staged = {_README: card, PICTURE_FILE: picture}
        for config, folder in self.configs.items():
            names = [*sorted(folder.glob("*.parquet")), *folder.glob(METADATA_FILE)]
            staged |= {f"{config}/{file.name}": file for file in names}
        outdated = [name for name in there if name.partition("/")[0] in self.configs and name not in staged]
        return staged, outdated

    def _infos(self) -> dict[str, datasets.DatasetInfo]:
        others = [name for name in self.configs if name.endswith(thoughts_of(""))]
        # From the folder of the dataset, and from that of the exported thoughts
        [folder] = {self.configs[task].parent for task in self.metadata}
        return read_infos(folder, self.metadata) | {name: read_info(self.configs[name]) for name in others}

    def _published(self, head: Head) -> tuple[DatasetCardData, dict[str, dict[str, Any]]]:
        """Read the metadata of the card on the Hub, and that of its tasks."""
        card = DatasetCard.load(self.repo.download(_README, head, self.work))
        described = {info.get("config_name") for info in _as_list(card.data.to_dict().get("dataset_info"))}
        names = [
            name.partition("/")[0] for name in head.files if name.count("/") == 1 and name.endswith(METADATA_FILE)
        ]
        tasks = [task for task in names if task in described and task not in self.metadata]
        for task in tasks:
            self.repo.download(f"{task}/{METADATA_FILE}", head, self.work)
        return card.data, {task: read_tasks(self.work / "downloads")[task] for task in tasks}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _read_complete_tasks(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the metadata of the tasks in a folder. There must be some, and all must be complete."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}. Write one with `md-trl mix --output {folder}`.")
    metadata = read_tasks(folder)
    if not metadata:
        raise InputError(
            f"{folder} holds no complete task: no folder in it has a {METADATA_FILE}. Write it with `md-trl mix "
            f"--output {folder}`."
        )
    for task, of_task in metadata.items():
        again = f"Mix it again with `md-trl mix --task {task} --output {folder}`."
        for name in (task, twin_of(task)):
            if not any((folder / name).glob("*.parquet")):
                raise InputError(f"{folder / name} holds no Parquet files. {again}")
        if "lambda" not in of_task:
            raise InputError(f"{folder / task / METADATA_FILE} was written by an older md_trl. {again}")
        unfinished = (of_task["source"] or {}).get("unfinished")
        if unfinished:
            raise InputError(f"{task} was mixed while it was being sampled ({'; '.join(unfinished)}). {again}")
    return metadata


def _export_thoughts(file: Path, metadata: Mapping[str, Mapping[str, Any]], work: Path) -> dict[str, Path]:
    """Write the thoughts that tasks were mixed from, and return their folders by configuration."""
    configs = {}
    with open_store(file) as store:
        for task, of_task in metadata.items():
            if store.status(Selection(task)):
                configs[thoughts_of(task)] = folder = work / thoughts_of(task)
                _export_task(store, task, of_task, folder)
        if not configs:
            raise InputError(f"{file} has no thoughts of {', '.join(metadata)}. Name the store they were mixed from.")
    return configs


def _export_task(store: Store, task: str, metadata: Mapping[str, Any], folder: Path) -> None:
    source = metadata["source"] or {}
    selection = Selection(**source["selection"]) if "selection" in source else Selection(task, list(metadata["types"]))
    unfinished = store.unfinished(selection)
    if unfinished:
        raise InputError(
            f"{store.file} is being sampled: {'; '.join(unfinished)}. Publish its thoughts when that has ended, or "
            "leave out `--thoughts`."
        )
    folder.mkdir()
    for split in metadata["types"]:
        store.export_thoughts(folder / f"{split}-00000-of-00001.parquet", replace(selection, splits=[split]))
    # Afterwards, so that no thought can have arrived before the export
    if "digest" in source and store.digest(selection) != source["digest"]:
        raise InputError(
            f"The thoughts of {task} in {store.file} are not those that the rows were mixed from. Mix them again with "
            f"`md-trl mix --store {store.file} --task {task}`, or name the right store."
        )


def _refuse_secrets(configs: Mapping[str, Path], allow: Collection[str]) -> None:
    """Raise an error that names rows whose texts may hold secrets, but not the secrets."""
    findings = []
    for config, folder in configs.items():
        for file in sorted(folder.glob("*.parquet")):
            findings += search_parquet(file, config, allow)
        for file in folder.glob(METADATA_FILE):
            findings += [Finding(kind, config, "-", "-", file.name) for kind in find_kinds(file.read_text(), allow)]
    if findings:
        lines = [
            f"  {kind}: configuration {config}, split {split}, row {row}, column {column}"
            for kind, config, split, row, column in findings[:_SHOWN_FINDINGS]
        ]
        if len(findings) > _SHOWN_FINDINGS:
            lines.append(f"  and {len(findings) - _SHOWN_FINDINGS:,} more")
        kinds = " ".join(dict.fromkeys(finding.kind for finding in findings))
        raise InputError(
            "The texts may hold secrets, so nothing was uploaded:\n" + "\n".join(lines) + "\nTake them out and mix "
            f"again, or, if you have looked at all of them and they are harmless, add `--allow {kinds}`."
        )
