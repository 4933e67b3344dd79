"""Selections of thoughts: by task, split, path, model, parameters and setting."""

from __future__ import annotations

import hashlib
import itertools
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..records import Thought
from .settings import describe_setting


class SeveralSettingsError(InputError):
    r"""
    A question and path has thoughts of several settings, which may not vote together.

    Args:
        found (`str`):
            What the store holds.
        advice (`str`):
            How to choose one setting in Python.
        models (`Sequence[str]`):
            Models of the settings.
    """

    def __init__(self, found: str, advice: str, models: Sequence[str]):
        super().__init__(f"{found}\n{advice}")
        self._found, self._models = found, models

    def for_command_line(self, verb: str) -> str:
        r"""
        Say the same with options in place of arguments.

        Args:
            verb (`str`):
                Verb of the command line that met the error.

        Returns:
            `str`: The message.
        """
        models = list(dict.fromkeys(self._models))
        choose = "`--settings NUMBER` chooses one of the settings above"
        if len(models) == len(self._models):
            choose = f"`--model NAME` chooses one of the models {', '.join(models)} ({choose})"
        if verb in ("mix", "show"):
            pick = ", `--pick cot=NAME pot=NAME` one for each path" if verb == "mix" and len(models) > 1 else ""
            return f"{self._found}\n{choose}{pick}; `--combine` uses all of them together."
        return f"{self._found}\nMix the dataset first with `md-trl mix`, where {choose}."


@dataclass(frozen=True)
class Selection:
    r"""
    Which thoughts of a store to use. By default all of them.

    The thoughts of one question and path must come from one setting, because they vote together: a vote over several
    models or temperatures measures none of them. `combine=True` allows it on purpose.

    Args:
        task (`str`, *optional*):
            Select only thoughts on questions of this task.
        splits (`Sequence[str]`, *optional*):
            Select only thoughts on questions of these splits.
        paths (`Sequence[str]`, *optional*):
            Select only thoughts of these paths.
        models (`str` or `Mapping[str, str]`, *optional*):
            Select only thoughts of this model. A mapping from path to model selects one teacher per path; paths that
            it does not name are not restricted.
        settings (`Sequence[int]`, *optional*):
            Select only thoughts of these settings, by the numbers that [`Store.status`] shows.
        combine (`bool`, *optional*, defaults to `False`):
            Whether to combine the thoughts that one question and path has under several settings. They are numbered
            anew, ordered by setting and sample index.
        params (`Mapping[str, Any]`, *optional*):
            Select only thoughts whose sampling parameters have these values, for example `{"temperature": 0.7}`.

    Examples:

    ```python
    >>> from md_trl.store import Selection, Store

    >>> with Store("thoughts.db") as store:
    ...     thoughts = store.thoughts(Selection("svamp", ["train"], models={"cot": "gpt-4o", "pot": "codellama"}))
    ```
    """

    task: str | None = None
    splits: Sequence[str] | None = None
    paths: Sequence[str] | None = None
    models: str | Mapping[str, str] | None = None
    settings: Sequence[int] | None = None
    combine: bool = False
    params: Mapping[str, Any] | None = None


def conditions(selection: Selection, table: str) -> tuple[str, list[Any]]:
    r"""
    Write a selection as an SQL condition.

    Args:
        selection ([`Selection`]):
            What to select.
        table (`str`):
            Alias of the table with the column `path`. The condition also refers to the questions as `q` and the
            settings as `s`.

    Returns:
        `tuple[str, list[Any]]`: The condition and the values of its placeholders.
    """
    parts, values = ["1"], []
    if selection.task is not None:
        parts.append("q.task = ?")
        values.append(selection.task)
    allowed = {"q.split": selection.splits, f"{table}.path": selection.paths, "s.id": selection.settings}
    for column, wanted in allowed.items():
        if wanted is not None:
            parts.append(f"{column} IN ({', '.join('?' * len(wanted))})")
            values += wanted
    if isinstance(selection.models, str):
        parts.append("s.model = ?")
        values.append(selection.models)
    elif selection.models is not None:
        for path, model in selection.models.items():
            parts.append(f"({table}.path != ? OR s.model = ?)")
            values += [path, model]
    for name, value in (selection.params or {}).items():
        parts.append("json_extract(s.params, ?) IS json_extract(?, '$')")
        values += [f'$."{name}"', json.dumps(value, ensure_ascii=False)]
    return " AND ".join(parts), values


def iterate_thoughts(db: sqlite3.Connection, file: Path, selection: Selection) -> Iterator[Thought]:
    r"""
    Iterate over the selected thoughts. Only one of them is in memory at a time.

    Args:
        db (`sqlite3.Connection`):
            The open store.
        file ([`~pathlib.Path`]):
            Its file, for messages.
        selection ([`Selection`]):
            What to select.

    Yields:
        [`~md_trl.records.Thought`]: The thoughts, in the order of questions, paths and sample indices.

    Raises:
        [`SeveralSettingsError`]: A question and path has thoughts of several settings, and `combine` is not set. It
            is raised before the first thought.
    """
    if not selection.combine:
        _check_one_setting(db, file, selection)
    rows = _rows(db, selection)
    for _, of_pair in itertools.groupby(rows, key=lambda row: (row[1], row[2])):
        for position, (_, question_id, path, index, *columns) in enumerate(of_pair):
            yield Thought(question_id, path, position if selection.combine else index, *columns)


def count_sampled(db: sqlite3.Connection, selection: Selection) -> dict[str, int]:
    r"""
    Count the questions that have selected thoughts.

    Args:
        db (`sqlite3.Connection`):
            The open store.
        selection ([`Selection`]):
            What to select.

    Returns:
        `dict[str, int]`: Number of questions by split, in the order of the first question of each.
    """
    where, values = conditions(selection, "t")
    rows = db.execute(
        f"SELECT q.split, count(DISTINCT t.question) FROM {_JOINED} WHERE {where} GROUP BY q.split "
        "ORDER BY min(t.question)",
        values,
    )
    return dict(rows)


def digest(db: sqlite3.Connection, selection: Selection) -> str:
    r"""
    Compute a digest of the selected questions and thoughts, one row at a time.

    Args:
        db (`sqlite3.Connection`):
            The open store.
        selection ([`Selection`]):
            What to select.

    Returns:
        `str`: The digest. It changes whenever a selected question or thought does.
    """
    state = hashlib.sha256()
    where, values = conditions(Selection(selection.task, selection.splits), "q")
    questions = db.execute(
        f"SELECT q.id, q.split, q.question, q.answer FROM questions q WHERE {where} ORDER BY q.key", values
    )
    for row in itertools.chain(questions, _rows(db, selection)):
        state.update(repr(row).encode())
    return state.hexdigest()


_JOINED = "thoughts t JOIN questions q ON q.key = t.question JOIN settings s ON s.id = t.setting"


def _rows(db: sqlite3.Connection, selection: Selection) -> Iterator[tuple[Any, ...]]:
    """Iterate over the selected thoughts: the number of the setting, then the fields of a [`Thought`]."""
    where, values = conditions(selection, "t")
    # In the order of the table's index, so that nothing has to be sorted.
    return db.execute(
        "SELECT s.id, q.id, t.path, t.sample_index, t.text, s.model, t.finish_reason, t.stated, t.logprob "
        f"FROM {_JOINED} WHERE {where} ORDER BY t.question, t.path, t.setting, t.sample_index",
        values,
    )


def _check_one_setting(db: sqlite3.Connection, file: Path, selection: Selection) -> None:
    where, values = conditions(selection, "t")
    pairs = db.execute(
        f"SELECT q.id, t.path, group_concat(DISTINCT t.setting) FROM {_JOINED} WHERE {where} "
        "GROUP BY t.question, t.path HAVING min(t.setting) != max(t.setting) ORDER BY t.question, t.path",
        values,
    )
    several = {(question_id, path): {int(n) for n in found.split(",")} for question_id, path, found in pairs}
    if not several:
        return
    (question_id, path), found = next(iter(several.items()))
    numbers = sorted(set().union(*several.values()))
    rows = db.execute(
        f"SELECT id, model, prompt_hash, params FROM settings WHERE id IN ({', '.join('?' * len(numbers))})", numbers
    )
    settings = {number: (model, prompt_hash, json.loads(params)) for number, model, prompt_hash, params in rows}
    lines = [f"  setting {number}: {describe_setting(*setting)}" for number, setting in settings.items()]
    # An argument picks one setting if its value differs in each setting of the first question and path.
    arguments = ["`settings=`"]
    of_first = [settings[number] for number in sorted(found)]
    for name in dict.fromkeys(name for *_, params in of_first for name in params):
        if len({json.dumps(params.get(name)) for *_, params in of_first}) == len(of_first):
            arguments.insert(0, f"`params={{{name!r}: ...}}`")
    if len({model for model, *_ in of_first}) == len(of_first):
        arguments.insert(0, "`models=`")
    found = (
        f"{file} holds thoughts of several settings for {len(several)} pairs of question and path, the first of them "
        f"{question_id!r} and {path}:\n" + "\n".join(lines)
    )
    advice = f"Pick one with {' or '.join(arguments)}, or use all of them with `combine=True`."
    raise SeveralSettingsError(found, advice, [model for model, *_ in settings.values()])
