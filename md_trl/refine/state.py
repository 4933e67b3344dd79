"""`refine.json`: what a refinement was asked for, how far it is, and its figures round by round."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import InputError


STATE_FILE = "refine.json"


class RefineState:
    r"""
    The state of a refinement, written after each phase, so that a run that was killed goes on from there.

    Args:
        folder (`str` or `Path`):
            Output folder.
        settings (`dict[str, Any]`):
            Everything that the students depend on.
        rounds (`int`):
            Number of rounds wanted. It is not a setting: a refinement may go on for more rounds.

    Attributes:
        values (`dict[str, Any]`):
            Content of the file: `md_trl`, `settings`, `questions`, `validation` (figures of the student given),
            `rounds` (one entry each) and `best`, the round of the best student, 0 for the student given.

    Raises:
        [`~md_trl.errors.InputError`]: If the folder holds something else, or a refinement with other settings.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any], rounds: int):
        self.folder = Path(folder)
        self._file = self.folder / STATE_FILE
        settings = json.loads(json.dumps(settings, default=str))
        if self._file.is_file():
            self.values = self._load()
            self._check_same(settings)
            if len(self.values["rounds"]) > rounds:
                raise InputError(
                    f"{self.folder} already has {len(self.values['rounds'])} rounds, more than {rounds}. Ask for more "
                    "`rounds`, or choose another `output`."
                )
        elif self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise InputError(f"{self.folder} exists and holds no refinement. Choose another `output`, or delete it.")
        else:
            self.values = {"md_trl": __version__, "settings": settings, "rounds": [], "best": 0}

    def _load(self) -> dict[str, Any]:
        try:
            values = json.loads(self._file.read_text(encoding="utf-8"))
            values["settings"], values["rounds"], values["best"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self._file} is not the file of a refinement ({error!r}). Delete the folder.") from None
        return values

    def _check_same(self, settings: dict[str, Any]) -> None:
        before = self.values["settings"]
        for name in dict.fromkeys([*before, *settings]):
            if before.get(name) != settings.get(name):
                raise InputError(
                    f"{self.folder} holds a refinement with another `{name}`: {before.get(name)!r}, now "
                    f"{settings.get(name)!r}. Use the same settings to go on, or choose another `output`."
                )

    def round(self, number: int) -> dict[str, Any]:
        """Return the entry of a round, counted from 1, and begin it if need be."""
        if len(self.values["rounds"]) < number:
            self.values["rounds"].append({"round": number})
        return self.values["rounds"][number - 1]

    def save(self) -> None:
        """Write the file in one step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(self.values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(new, self._file)
