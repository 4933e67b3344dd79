"""Read `md_trl.json`, which says how a student was trained to be prompted."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from ..errors import InputError
from .triggers import TRIGGERS


logger = logging.getLogger(__name__)

SETTINGS_FILE = "md_trl.json"
"""File beside the weights of a student, written by the trainers."""


def read_student_settings(model: str | Path, revision: str | None = None) -> dict[str, Any] | None:
    r"""
    Read how a student was trained to be prompted.

    Args:
        model (`str` or `Path`):
            Folder of the student, or its id on the Hub.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.

    Returns:
        `dict`, *optional*: `md_trl` (version), `objective`, `paths`, `prompt_format` (`"plain"` or `"chat"`) and
        `triggers`; `None` if the model has no such file, since `md_trl` did not train it.

    Raises:
        `ValueError`: If the file is not what the trainers write, or the student was trained with triggers that this
            version of `md_trl` does not have.

    Examples:

    ```python
    >>> from md_trl.prompts import read_student_settings

    >>> read_student_settings("outputs/student")["prompt_format"]
    'plain'
    ```
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    if Path(model).is_dir():
        file = Path(model) / SETTINGS_FILE
        if not file.is_file():
            return None
    else:
        try:
            file = Path(hf_hub_download(str(model), SETTINGS_FILE, revision=revision))
        except LocalEntryNotFoundError:
            if _weights_are_cached(str(model), revision):
                logger.warning(
                    "The weights of %s are in the cache but its %s is not, and the Hub is out of reach. If md_trl "
                    "trained this student, it may be prompted in the wrong format: run once online, or pass "
                    "`prompt_format`.",
                    model,
                    SETTINGS_FILE,
                )
            return None
        # The file is not in the repository. A loaded model may come from a folder that is gone.
        except (EntryNotFoundError, RepositoryNotFoundError, HFValidationError):
            return None
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{file} is not valid JSON: {error}. Restore it or save the student again.") from error
    if not isinstance(settings, dict):
        raise InputError(f"{file} is not a JSON object. Restore it or save the student again.")
    if (prompt_format := settings.get("prompt_format")) not in ("plain", "chat"):
        raise InputError(f"{file} has `prompt_format` {prompt_format!r}. It must be 'plain' or 'chat'.")
    for path, trigger in settings.get("triggers", {}).items():
        if trigger != TRIGGERS.get(path):
            raise InputError(
                f"{file} has the trigger {trigger!r} for {path}, but this version of md_trl asks with "
                f"{TRIGGERS.get(path)!r}. Install md_trl {settings.get('md_trl')}."
            )
    return settings


def named_prompt_format(model: str, prompt_format: str = "auto") -> str:
    r"""
    Decide how a student is asked whose tokenizer is out of reach, because another program runs it.

    Args:
        model (`str`):
            Name of the student there. If that is its folder or its Hub id, its `md_trl.json` is read.
        prompt_format (`str`, *optional*, defaults to `"auto"`):
            `"plain"`, `"chat"`, or `"auto"` for the format in the student's `md_trl.json`.

    Returns:
        `str`: `"plain"` or `"chat"`.

    Raises:
        `ValueError`: The format is not known, or contradicts the student's `md_trl.json`.
    """
    has_files = "/" in model or Path(model).is_dir()
    settings = read_student_settings(model) if has_files else None
    if settings is None and prompt_format not in ("plain", "chat"):
        raise InputError(
            f"The server does not tell how {model!r} was trained to be asked. Set `prompt_format` to 'plain' "
            "(the question and the trigger as text) or 'chat'."
        )
    trained = prompt_format if settings is None else settings["prompt_format"]
    if prompt_format not in ("auto", trained):
        raise InputError(
            f"`prompt_format={prompt_format!r}` contradicts the {SETTINGS_FILE} of {model!r}: it was trained "
            f"with `prompt_format={trained!r}`. Use that, or 'auto'."
        )
    return trained


def _weights_are_cached(model: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    names = ("config.json", "adapter_config.json")
    return any(isinstance(try_to_load_from_cache(model, name, revision=revision), str) for name in names)
