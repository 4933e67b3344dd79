"""Names of tasks: a published task, one of the user's own, and the names that neither may have."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import InputError
from .loading import SUFFIXES


TASKS = ("svamp", "gsm8k", "asdiv", "strategyqa", "stories")
"""Tasks that this package knows."""
DEFAULT_CONFIG = "default"
"""Configuration of the rows of all tasks of a dataset, if there are several. `load_dataset` opens it by default."""
PATHS_ENDING, THOUGHTS_ENDING = "-paths", "-thoughts"
"""What the configurations of the path rows and of the raw thoughts of a task end in."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def is_own_file(task: str | Path) -> bool:
    r"""
    Return whether a task is named by a file of questions, and not by its name.

    Args:
        task (`str` or `Path`):
            What the user named.

    Returns:
        `bool`: Whether it is the path of a file. The file may not exist.
    """
    text, ending = str(task), Path(task).suffix.lower()
    if text in TASKS:
        return False
    return "/" in text or "\\" in text or ending in SUFFIXES or (ending != "" and Path(task).is_file())


def task_name(task: str | Path, name: str | None = None) -> str:
    r"""
    Return the name of a task that is given by its name or as a file of questions.

    Args:
        task (`str` or `Path`):
            Name of a task, or a file as in [`~md_trl.tasks.own_file.load`].
        name (`str`, *optional*):
            Name for the task of a file. Defaults to the file's name without its ending.

    Returns:
        `str`: The name.

    Raises:
        [`~md_trl.errors.InputError`]: The name cannot be that of a task, or `task` is a name already.
        `FileNotFoundError`: The file does not exist.

    Examples:

    ```python
    >>> from md_trl.tasks import task_name

    >>> task_name("svamp")
    'svamp'
    ```
    """
    if not is_own_file(task):
        if name not in (None, task):
            raise InputError(
                f"`task_name` is {name!r}, but {task!r} is a task and not a file of questions, so it has a name "
                "already. Leave `task_name` out."
            )
        return str(task)
    file = Path(task)
    if not file.is_file():
        problem = "is a folder" if file.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"The file of questions {file} {problem}. Name a file, or one of the tasks {', '.join(TASKS)}."
        )
    if name is None:
        name, way_out = file.stem, f"Rename {file}, or name the task with `task_name`"
    else:
        way_out = "Choose another `task_name`"
    if not _NAME.fullmatch(name):
        suggestion = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-") or "my_task"
        raise InputError(
            f"{name!r} cannot be the name of a task, which has letters, digits, '_', '-' and '.' only. {way_out}, for "
            f"example {suggestion!r}."
        )
    if name in TASKS:
        raise InputError(f"A task of your own cannot be named {name!r}, as a task of md_trl is. {way_out}.")
    check_task_name(name)
    return name


def check_task_name(task: str) -> None:
    """Raise an error for a task whose name a configuration of the dataset needs."""
    if task == DEFAULT_CONFIG or task.endswith((PATHS_ENDING, THOUGHTS_ENDING)):
        raise InputError(
            f"A task cannot be named {task!r}: `{DEFAULT_CONFIG}`, `TASK{PATHS_ENDING}` and `TASK{THOUGHTS_ENDING}` "
            "are names of configurations of the dataset. Choose another name."
        )
