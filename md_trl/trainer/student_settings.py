"""`md_trl.json`: how a student was trained to be prompted, beside its weights, so that no one has to repeat it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from datasets import Dataset

from .. import __version__
from ..prompts import SETTINGS_FILE, TRIGGERS
from ..records import PATHS_AND_LABEL


def student_settings(questions: Dataset, objective: str) -> dict[str, Any]:
    r"""
    Describe how a student was trained to be prompted.

    Args:
        questions ([`~datasets.Dataset`]):
            Training questions, as returned by [`prepare_questions`].
        objective (`str`):
            Objective, as in [`MDConfig`]. Flat rows have none but their weights.

    Returns:
        `dict`: Version of `md_trl`, objective (`None` for flat rows), paths learned (none of flat rows that name no
        path), prompt format and trigger of each path.
    """
    is_flat = questions[0]["weight"] is not None
    learned = set(questions["path"]) if is_flat else {path for path in PATHS_AND_LABEL if any(questions[path])}
    paths = [path for path in PATHS_AND_LABEL if path in learned]
    [(prompt_format, _)] = Counter(questions["prompt_format"]).most_common(1)
    return {
        "md_trl": __version__,
        "objective": None if is_flat else objective,
        "paths": paths,
        "prompt_format": prompt_format,
        "triggers": {path: TRIGGERS[path] for path in paths if path in TRIGGERS},
    }


def write_student_settings(folder: str | Path, settings: dict[str, Any]) -> None:
    r"""
    Write the settings of a student into its folder.

    Args:
        folder (`str` or `Path`):
            Folder with the student's weights.
        settings (`dict`):
            Settings, as returned by [`student_settings`].
    """
    (Path(folder) / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
