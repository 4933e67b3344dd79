"""The settings of a store: the model, prompt and parameters that thoughts were sampled with."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, get_type_hints

from ..records import SamplingParams
from .schema import transaction


FLOAT_PARAMS = tuple(name for name, type_ in get_type_hints(SamplingParams).items() if type_ is float)
"""Parameters that are floats: `1` and `1.0` are the same value and belong to one setting."""


class Settings:
    r"""
    The settings of a store. Each has a number, which the status shows and a selection takes.

    Args:
        db (`sqlite3.Connection`):
            The open store.
    """

    def __init__(self, db: sqlite3.Connection):
        self._db = db

    def number(self, model: str, prompt_hash: str, params: SamplingParams | Mapping[str, Any]) -> int:
        r"""
        Look up the number of a setting, and add the setting if it is new.

        Args:
            model (`str`):
                Name of the model.
            prompt_hash (`str`):
                Identifies the prompt without its question.
            params ([`~md_trl.records.SamplingParams`] or `Mapping[str, Any]`):
                Sampling parameters. Imported thoughts may come with any parameters or none.

        Returns:
            `int`: The number of the setting.
        """
        values = asdict(params) if isinstance(params, SamplingParams) else params
        values = {name: float(value) if name in FLOAT_PARAMS else value for name, value in values.items()}
        row = (model, prompt_hash, json.dumps(values, sort_keys=True, ensure_ascii=False))
        with transaction(self._db):
            self._db.execute("INSERT OR IGNORE INTO settings (model, prompt_hash, params) VALUES (?, ?, ?)", row)
            (number,) = self._db.execute(
                "SELECT id FROM settings WHERE model = ? AND prompt_hash = ? AND params = ?", row
            ).fetchone()
        return number


def sampling_params(text: str) -> SamplingParams:
    """Read the parameters of a setting that was added with [`~md_trl.records.SamplingParams`]."""
    values = json.loads(text)
    return SamplingParams(**{n: tuple(value) if isinstance(value, list) else value for n, value in values.items()})


def describe_setting(model: str, prompt_hash: str, params: Mapping[str, Any]) -> str:
    """Describe a setting in one line."""
    parts = [f"model={model!r}", *(f"{name}={value!r}" for name, value in params.items())]
    return " ".join(parts + ([f"prompt={prompt_hash}"] if prompt_hash else []))
