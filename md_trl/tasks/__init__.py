"""Load the questions of a task from the Hub or from its original file.

| task | train / test | source |
| --- | --- | --- |
| `svamp` | 700 / 300 | `ChilleD/SVAMP`, or `SVAMP.json` |
| `gsm8k` | 7,473 / 1,319 | `openai/gsm8k`, or `train.jsonl`, `test.jsonl` |
| `asdiv` | 1,610 / 695 | `EleutherAI/asdiv`, or `ASDiv.xml` |
| `strategyqa` | 2,061 / 229, or 1,603 / 687 | `tasksource/strategy-qa`, or `train.json`, `dev.json` |
| `stories` | any size | generated |
| a file | any size, 20% of it `test` | questions of one's own, see [`~md_trl.tasks.own_file.load`] |

To add a task, write a module beside this one with a function `load(split, source, seed)` that returns
[`~md_trl.records.Question`]s and the constants `HUB` and `BENCHMARK`, add its name to `TASKS` in `names.py`, and add
few-shot examples in `md_trl/prompts/examples`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from ..records import Question
from . import own_file
from .names import TASKS, check_task_name, is_own_file, task_name
from .own_file import SPLITS


__all__ = [
    "GENERATED",
    "SPLITS",
    "TASKS",
    "HubDataset",
    "check_task_name",
    "hub_dataset",
    "is_own_file",
    "load_questions",
    "task_name",
]

GENERATED = ("stories",)
"""Tasks without a dataset on the Hub."""


class HubDataset(NamedTuple):
    r"""
    The dataset of a task on the Hub.

    Args:
        repo (`str`):
            Hub id of the dataset.
        benchmark (`str`):
            Name of the task in the dataset's `eval.yaml`, under which the Hub collects results of models. The name of
            the configuration for datasets that have no such file.
    """

    repo: str
    benchmark: str


def hub_dataset(task: str) -> HubDataset | None:
    r"""
    Return the dataset of a task on the Hub.

    Args:
        task (`str`):
            Name of the task.

    Returns:
        [`HubDataset`], *optional*: The dataset; `None` if the task has none.
    """
    if task not in TASKS or task in GENERATED:
        return None
    module = import_module(f".{task}", __name__)
    return HubDataset(module.HUB, module.BENCHMARK)


def load_questions(
    task: str | Path,
    split: str,
    source: str | None = None,
    seed: int = 42,
    name: str | None = None,
    **task_options: Any,
) -> list[Question]:
    r"""
    Load one split of a task.

    Train and test share no question if both are loaded from the same source with the same seed and options. The id of
    a question contains its split but not how the split was drawn, so a store should hold one way of splitting only.

    Args:
        task (`str` or `Path`):
            One of `svamp`, `gsm8k`, `asdiv`, `strategyqa`, `stories`, or a file of questions of one's own, as in
            [`~md_trl.tasks.own_file.load`].
        split (`str`):
            `train` or `test`.
        source (`str`, *optional*):
            Local copy of the original file, or the folder that holds it. If not given, the dataset is loaded from the
            Hub.
        seed (`int`, *optional*, defaults to `42`):
            Seed of splits that are not published, and of generated stories.
        name (`str`, *optional*):
            Name for the task of a file. Defaults to the file's name without its ending.
        **task_options:
            Other arguments of the task's own `load`: `protocol` of [`~md_trl.tasks.strategyqa.load`], `size` of
            [`~md_trl.tasks.stories.load`].

    Returns:
        `list[Question]`: The questions in the order of the source.

    Raises:
        [`~md_trl.errors.InputError`]: If the task or split is unknown, or the data are not what the task expects.
        `FileNotFoundError`: If `source` does not exist.
        `ConnectionError`: If the dataset cannot be loaded from the Hub.

    Examples:

    ```python
    >>> from md_trl.tasks import load_questions

    >>> load_questions("svamp", "test", source="data/SVAMP.json")[0].id
    'svamp/test/chal-6'
    ```
    """
    if split not in SPLITS:
        raise InputError(f"Unknown split {split!r} of task {str(task)!r}. Choose one of {', '.join(SPLITS)}.")
    if is_own_file(task):
        if source is not None or task_options:
            given = ", ".join([*(["source"] if source is not None else []), *task_options])
            raise InputError(f"{task} is the file of the task's questions. Leave out {given}.")
        return own_file.load(task, split, seed, name)
    task = task_name(task, name)
    if task not in TASKS:
        raise InputError(
            f"Unknown task {task!r}. Choose one of {', '.join(TASKS)}, or name a file of questions of your own."
        )
    return import_module(f".{task}", __name__).load(split, source=source, seed=seed, **task_options)
