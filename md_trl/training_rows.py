"""The rows that a training run learns from: mixed rows of one task or several, or all training questions of a task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import datasets
from datasets.exceptions import DatasetsError

from .dataset import open_store
from .errors import InputError, UsageError
from .tasks import is_own_file, load_questions, task_name
from .tasks.names import PATHS_ENDING, THOUGHTS_ENDING


def load_mixed_rows(dataset: str | Path, tasks: str | Sequence[str] = ()) -> datasets.Dataset:
    r"""
    Load the mixed rows to train on.

    Args:
        dataset (`str` or `Path`):
            Where the rows are:

            - a folder of `md-trl mix`, or the Hub id of a published one. Each task is a configuration.
            - the same rows after a filter: a folder of [`~datasets.Dataset.save_to_disk`], a Parquet file, or a folder
              of Parquet files. It has no configurations; the column `task` tells the tasks apart.
        tasks (`str` or `Sequence[str]`, *optional*, defaults to `()`):
            Tasks whose rows to load, one after the other. It can only be left out where there are no configurations.

    Returns:
        [`~datasets.Dataset`]: The rows of the split `train`. Nothing is balanced between tasks, since `repeat` was
        computed within each.

    Raises:
        [`~md_trl.errors.InputError`]: There are no such tasks, or they have no split `train`.
        `FileNotFoundError`: There is no such folder or dataset.
    """
    tasks = [tasks] if isinstance(tasks, str) else list(tasks)
    if not Path(dataset).exists() and not _is_hub_id(str(dataset)):
        raise FileNotFoundError(
            f"There is no {dataset}. Name a folder that `md-trl mix`, `save_to_disk` or `to_parquet` wrote, or the "
            "Hub id of a dataset, as in USER/NAME."
        )
    if has_plain_rows(dataset):
        return _of_tasks(_load_plain(Path(dataset)), tasks, dataset)
    if not tasks:
        if Path(dataset).is_dir() and not mixed_tasks(dataset):
            raise InputError(f"{dataset} holds no mixed rows. Name a folder that `md-trl mix` wrote.")
        raise UsageError(f"`task` is missing: name the tasks of {dataset} to train on{_held(Path(dataset))}.")
    rows = [_load_task(str(dataset), task) for task in tasks]
    return rows[0] if len(rows) == 1 else datasets.concatenate_datasets(rows)


def has_plain_rows(dataset: str | Path) -> bool:
    r"""
    Return whether a dataset holds rows without configurations, as `save_to_disk` and `to_parquet` write them.

    Args:
        dataset (`str` or `Path`):
            As in [`load_mixed_rows`].

    Returns:
        `bool`: Whether it is such a folder or file, or the name of a Parquet file that may not exist.
    """
    path = Path(dataset)
    return path.suffix == ".parquet" or path.is_file() or _saved_to_disk(path) or any(path.glob("*.parquet"))


def _saved_to_disk(folder: Path) -> bool:
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _load_plain(path: Path) -> datasets.Dataset:
    nothing = InputError(f"{path} holds no rows. Filter less of them out.")
    if _saved_to_disk(path):
        try:
            rows = datasets.load_from_disk(str(path))
        except IndexError:  # `datasets` 5.2 saves a dataset without rows, but cannot load it
            raise nothing from None
        if isinstance(rows, datasets.DatasetDict):
            if "train" not in rows:
                raise InputError(f"{path} has no split 'train', only {', '.join(map(repr, rows))}. Save that split.")
            rows = rows["train"]
    else:
        files = [path] if path.is_file() else sorted(path.glob("*.parquet"))
        # As `datasets` does, files that are named after no split are taken as `train`.
        files = [file for file in files if file.name.startswith("train")] or [
            file for file in files if path.is_file() or not file.name.startswith(("test", "valid", "dev"))
        ]
        if not files:
            raise InputError(f"{path} has no Parquet files of the split 'train'. Write the rows to train on to it.")
        rows = _load_parquet(files)
    if not len(rows):
        raise nothing
    return rows


def _load_parquet(files: Sequence[Path]) -> datasets.Dataset:
    # By name, `datasets` would return what it cached of another folder of that name, or of an older file.
    try:
        return datasets.load_dataset("parquet", data_files={"train": [str(file) for file in files]}, split="train")
    except (ValueError, DatasetsError) as error:
        cause = error.__cause__ or error
        raise InputError(
            f"Cannot read {', '.join(map(str, files))} as Parquet: {cause}. Mixed rows are a folder of `md-trl mix`, "
            "or what `save_to_disk` or `to_parquet` writes; thoughts in a store are named with `--store`, and "
            "questions with `--task`."
        ) from error


def _of_tasks(rows: datasets.Dataset, tasks: Sequence[str], dataset: str | Path) -> datasets.Dataset:
    """Select the rows of some tasks, if any are named and the rows say what task they are of."""
    if not tasks or "task" not in rows.column_names:
        return rows
    column = rows["task"]
    held = list(dict.fromkeys(column))
    if missing := [task for task in tasks if task not in held]:
        raise InputError(
            f"{dataset} has no rows of the task {missing[0]!r}. Name one that it has: {', '.join(map(repr, held))}."
        )
    if set(held) <= set(tasks):
        return rows
    return rows.select([index for index, task in enumerate(column) if task in tasks])


def _load_task(dataset: str, task: str) -> datasets.Dataset:
    folder = Path(dataset)
    if files := sorted(folder.glob(f"{task}/train-*.parquet")):
        return _load_parquet(files)
    try:
        return datasets.load_dataset(dataset, task, split="train")
    except FileNotFoundError as error:
        if folder.exists():
            raise InputError(f"{dataset} holds no mixed rows: {error}. Write some to it with `md-trl mix`.") from error
        raise FileNotFoundError(f"There is no folder {dataset}, nor such a dataset on the Hub: {error}") from error
    except ConnectionError as error:
        raise ConnectionError(f"There is no folder {dataset}, and the Hub is out of reach: {error}") from error
    except (ValueError, DatasetsError) as error:
        why = _held(folder) or f": {error}"
        raise InputError(f"Cannot load the split `train` of task {task!r} from {dataset}{why}") from error


def mixed_tasks(folder: str | Path) -> list[str]:
    r"""
    List the tasks that have mixed rows of the split `train` in a folder of `md-trl mix`.

    Args:
        folder (`str` or `Path`):
            The folder.

    Returns:
        `list[str]`: Names of the tasks, sorted. None if the folder has no configurations.
    """
    names = {file.parent.name for file in Path(folder).glob("*/train-*.parquet")}
    return sorted(name for name in names if not name.endswith((PATHS_ENDING, THOUGHTS_ENDING)))


def _held(folder: Path) -> str:
    names = mixed_tasks(folder)
    return f"; it has {', '.join(map(repr, names))}" if names else ""


def _is_hub_id(dataset: str) -> bool:
    """Return whether a name can be the id of a dataset on the Hub: USER/NAME, and nothing that only paths have."""
    return (
        dataset.count("/") == 1 and not dataset.startswith((".", "/", "~")) and not dataset.endswith(("/", ".parquet"))
    )


def load_question_rows(
    tasks: str | Sequence[str],
    source: str | None = None,
    store_file: str | None = None,
    names: Sequence[str] | None = None,
) -> datasets.Dataset:
    r"""
    Load every training question of tasks, whichever paths solve it, for `objective="label_all"`.

    Args:
        tasks (`str` or `Sequence[str]`):
            Names of the tasks, or files of one's own questions.
        source (`str`, *optional*):
            Local copy of the original file of a single task.
        store_file (`str`, *optional*):
            Store whose questions to use, where there is no `source` and the task is not a file. Without any of them,
            the task is loaded from the Hub.
        names (`Sequence[str]`, *optional*):
            Name of each task. Defaults to those of [`~md_trl.tasks.task_name`].

    Returns:
        [`~datasets.Dataset`]: `id`, `task`, `question` and `answer` of each question.

    Raises:
        `FileNotFoundError`: The source or the store does not exist.
        `ValueError`: No task is named, or the store has no training questions of one.
    """
    tasks = [tasks] if isinstance(tasks, str) else tasks
    if not tasks:
        raise UsageError("`task` is missing: name the tasks whose questions to train on.")
    questions = []
    for task, name in zip(tasks, names or map(task_name, tasks), strict=True):
        if source is None and store_file is not None and not is_own_file(task):
            with open_store(store_file) as store:
                # `md-trl refine --unlabelled` adds questions without a gold answer
                found = [question for question in store.questions.load(name, "train") if question.answer]
            if not found:
                raise InputError(
                    f"{store_file} has no questions of {name}/train. Name the original file with `source`."
                )
            questions += found
        else:
            questions += load_questions(task, "train", source=source, name=name)
    columns = ("id", "task", "question", "answer")
    return datasets.Dataset.from_list([{name: getattr(question, name) for name in columns} for question in questions])


def first_rows(rows: datasets.Dataset, limit: int) -> datasets.Dataset:
    r"""
    Select the first rows of each task.

    Args:
        rows ([`~datasets.Dataset`]):
            Rows, with a column `task` if they are of several tasks.
        limit (`int`):
            Maximum number of rows per task.

    Returns:
        [`~datasets.Dataset`]: The selected rows, in the same order.
    """
    tasks = rows["task"] if "task" in rows.column_names else [""] * len(rows)
    seen: Counter[str] = Counter()
    kept = []
    for index, task in enumerate(tasks):
        if seen[task] < limit:
            kept.append(index)
        seen[task] += 1
    return rows.select(kept)
