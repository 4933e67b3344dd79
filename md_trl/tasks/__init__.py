"""Tasks: a Hub id or the original file comes in, [`~md_trl.records.Question`]s with a split and a gold answer go out.

| task | train / test | from |
| --- | --- | --- |
| `svamp` | 700 / 300 | `ChilleD/SVAMP`, or `SVAMP.json` |
| `gsm8k` | 7,473 / 1,319 | `openai/gsm8k`, or `train.jsonl`, `test.jsonl` |
| `asdiv` | 1,610 / 695 | `EleutherAI/asdiv`, or `ASDiv.xml` |
| `strategyqa` | 2,061 / 229, or 1,603 / 687 | `tasksource/strategy-qa`, or `train.json`, `dev.json` |
| `stories` | any size | made on the spot |
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..errors import InputError
from ..records import Question


TASKS = ("svamp", "gsm8k", "asdiv", "strategyqa", "stories")
SPLITS = ("train", "test")


def load_questions(
    task: str, split: str, source: str | None = None, seed: int = 42, **task_options: Any
) -> list[Question]:
    r"""
    Load one split of a task.

    Train and test share no question if both come from the same source with the same seed and options. An id says which
    split a question is in, not how the split was drawn: keep to one way of splitting per store.

    Args:
        task (`str`):
            One of `svamp`, `gsm8k`, `asdiv`, `strategyqa`, `stories`.
        split (`str`):
            `train` or `test`.
        source (`str`, *optional*):
            Path of a local copy of the original file, or of the folder that holds it. The Hub is asked if left out.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the splits that are drawn here, and of generated stories.
        **task_options:
            Further arguments of the task's own `load`: `protocol` of [`~md_trl.tasks.strategyqa.load`], `size` of
            [`~md_trl.tasks.stories.load`].

    Returns:
        `list[Question]`: the questions in the order of the source.

    Raises:
        `ValueError`: an unknown task or split, or data that are not what the task expects.
        `FileNotFoundError`: a `source` that is not there.
        `ConnectionError`: the Hub does not give the data set.

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
