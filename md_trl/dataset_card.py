"""The card of a folder of mixed rows: its metadata, and one section per task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import datasets
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData


METADATA_FILE = "mixing.json"
"""File beside the rows of a task: how they were made, and from what."""


def read_metadata(folder: str | Path, task: str) -> dict[str, Any] | None:
    """Read the metadata of a task. `None` if the folder does not hold the task, or only a part of it."""
    try:
        return json.loads((Path(folder) / task / METADATA_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def dataset_card(output: Path, task: str, info: datasets.DatasetInfo) -> DatasetCard:
    r"""
    Write the card of a folder in which one task is new and the others stay.

    Args:
        output (`Path`):
            Folder of the dataset.
        task (`str`):
            The new task.
        info ([`~datasets.DatasetInfo`]):
            Features, splits and sizes of the new task.

    Returns:
        [`~huggingface_hub.DatasetCard`]: The card.
    """
    file = output / "README.md"
    data = DatasetCard.load(file).data if file.exists() else DatasetCardData()
    infos = DatasetInfosDict.from_dataset_card_data(data)
    configs = MetadataConfigs.from_dataset_card_data(data)
    infos[task] = info
    configs[task] = {"data_files": [{"split": split, "path": f"{task}/{split}-*.parquet"} for split in info.splits]}
    for name in [name for name in configs if read_metadata(output, name) is None]:
        del configs[name], infos[name]
    template = (files("md_trl") / "hub_cards" / "mixed-thoughts" / "README.md").read_text(encoding="utf-8")
    card = DatasetCard(template.replace("{{ configs }}", _sections(output, configs)))
    infos.to_dataset_card_data(card.data)
    configs.to_dataset_card_data(card.data)
    return card


def _sections(output: Path, tasks: Sequence[str]) -> str:
    """One section per task for the body of the card."""
    sections = []
    for task in sorted(tasks):
        metadata = read_metadata(output, task)
        settings = "\n".join(f"| {name} | {value} |" for name, value in metadata["settings"].items())
        sections.append(f"## {task}\n\n| setting | value |\n| --- | --- |\n{settings}")
        sections += [f"### {task}, {split}\n\n{summary}" for split, summary in metadata["summary"].items()]
    return "\n\n".join(sections)
