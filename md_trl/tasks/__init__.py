"""Load the questions of a task from the Hub or from its original file.

| task | train / test | source |
| --- | --- | --- |
| `svamp` | 700 / 300 | `ChilleD/SVAMP`, or `SVAMP.json` |
| `gsm8k` | 7,473 / 1,319 | `openai/gsm8k`, or `train.jsonl`, `test.jsonl` |
| `asdiv` | 1,610 / 695 | `EleutherAI/asdiv`, or `ASDiv.xml` |
| `strategyqa` | 2,061 / 229, or 1,603 / 687 | `tasksource/strategy-qa`, or `train.json`, `dev.json` |
| `stories` | any size | generated |

To add a task, write a module beside this one with a function `load(split, source, seed)` that returns
[`~md_trl.records.Question`]s and the constants `HUB` and `BENCHMARK`, add its name to `TASKS`, and add few-shot
examples in `md_trl/prompts/examples`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

from ..errors import InputError
from ..records import Question


TASKS = ("svamp", "gsm8k", "asdiv", "strategyqa", "stories")
GENERATED = ("stories",)
"""Tasks without a dataset on the Hub."""
SPLITS = ("train", "test")


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
    task: str, split: str, source: str | None = None, seed: int = 42, **task_options: Any
) -> list[Question]:
    r"""
    Load one split of a task.

    Train and test share no question if both are loaded from the same source with the same seed and options. The id of
    a question contains its split but not how the split was drawn, so a store should hold one way of splitting only.

    Args:
        task (`str`):
            One of `svamp`, `gsm8k`, `asdiv`, `strategyqa`, `stories`.
        split (`str`):
            `train` or `test`.
        source (`str`, *optional*):
            Local copy of the original file, or the folder that holds it. If not given, the dataset is loaded from the
            Hub.
        seed (`int`, *optional*, defaults to `42`):
            Seed of splits that are not published, and of generated stories.
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
    if task not in TASKS:
        raise InputError(f"Unknown task {task!r}. Choose one of {', '.join(TASKS)}.")
    if split not in SPLITS:
        raise InputError(f"Unknown split {split!r} of task {task!r}. Choose one of {', '.join(SPLITS)}.")
    return import_module(f".{task}", __name__).load(split, source=source, seed=seed, **task_options)
