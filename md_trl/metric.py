"""What the `evaluate` metric `md_vote` needs beside votes: its bare name and its inputs.

`evaluate` looks for a bare name on the Hub and then in its module cache. [`register_metric`] puts the copy that comes
with md_trl into that cache, so that `evaluate.load("md_vote")` works from any folder, also offline.

`evaluate` hands text to a metric and nothing else: [`texts_of_questions`] converts the answers of many questions,
[`texts_of_question`] those of one. [`compute`] then reads raw generations if asked to, and scores the votes.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from importlib.resources import files
from numbers import Number
from pathlib import Path
from typing import Any

import numpy

from .answers import canonical
from .errors import InputError
from .execution import Executor
from .judging import read_answers
from .records import PATHS, Thought
from .voting import score, score_flat


NAMES = ("evaluate-metric--md_vote", "md--md_vote")
"""Folders of the cache: `md_vote` is looked up as `evaluate-metric/md_vote`, `md/md_vote` by its own name."""


def register_metric() -> list[Path]:
    r"""
    Make `evaluate.load("md_vote")` work from any folder.

    Registering again replaces an older copy.

    Returns:
        `list[Path]`: Folders written, inside `evaluate`'s module cache (`HF_MODULES_CACHE`).

    Examples:

    ```python
    >>> import evaluate
    >>> from md_trl import register_metric

    >>> register_metric()
    >>> evaluate.load("md_vote").compute(cot=[["5", "6"]], pot=[["5"]], references=["5"])["accuracy"]
    1.0
    ```
    """
    source = (files("md_trl") / "hub_cards" / "md_vote" / "md_vote.py").read_bytes()
    unregister_metric()
    written = []
    for folder in _cache_folders():
        module = folder / hashlib.sha256(source).hexdigest()
        module.mkdir(parents=True)
        (module / "md_vote.py").write_bytes(source)
        # Python imports the file as a module of these packages
        (module / "__init__.py").touch()
        (folder / "__init__.py").touch()
        written.append(folder)
    return written


def unregister_metric() -> list[Path]:
    r"""
    Undo [`register_metric`].

    Returns:
        `list[Path]`: Folders removed.
    """
    removed = [folder for folder in _cache_folders() if folder.exists()]
    for folder in removed:
        shutil.rmtree(folder)
    return removed


def _cache_folders() -> list[Path]:
    from evaluate.loading import init_dynamic_modules

    metrics = Path(init_dynamic_modules()) / "metrics"
    metrics.mkdir(exist_ok=True)
    (metrics / "__init__.py").touch()
    return [metrics / name for name in NAMES]


def texts_of_questions(inputs: dict[str, Any]) -> dict[str, list]:
    r"""
    Convert the answers to many questions to texts.

    Args:
        inputs (`dict[str, Any]`):
            For `cot` and `pot`, the list of answers to each question; for `references` and `predictions`, one answer
            for each question. An answer is a text, a number, a bool, `None` for an unusable thought, or a list of
            several parts.

    Returns:
        `dict[str, list]`: The same lists of texts. Texts stay as they are, and `None` becomes the empty text.

    Raises:
        [`~md_trl.errors.InputError`]: If a value is not an answer or not a list of answers.
    """
    return {
        name: [_texts(answers, f"{name}[{i}]") for i, answers in enumerate(_listed(column, name))]
        if name in PATHS
        else _texts(column, name)
        for name, column in inputs.items()
    }


def texts_of_question(inputs: dict[str, Any]) -> dict[str, Any]:
    """Convert the answers to one question to texts, like [`texts_of_questions`]."""
    return {name: _texts(given, name) if name in PATHS else _text(given, name) for name, given in inputs.items()}


def compute(
    answers: dict[str, list], extract: bool = False, run_programs: bool = False, **options: Any
) -> dict[str, float]:
    r"""
    Score the votes over answers or over raw generations.

    Args:
        answers (`dict[str, list]`):
            `cot`, `pot` and `references`, or `predictions` and `references`, as texts.
        extract (`bool`, *optional*, defaults to `False`):
            Whether `cot`, `pot` and `predictions` are raw generations, whose answers must be read first. Predictions
            are read as chains of thought.
        run_programs (`bool`, *optional*, defaults to `False`):
            Whether the programs in `pot` may run, in the sandbox of [`~md_trl.execution.Executor`].
        **options:
            Options of [`~md_trl.voting.score`], or of [`~md_trl.voting.score_flat`] for predictions.

    Returns:
        `dict[str, float]`: The scores.

    Raises:
        [`~md_trl.errors.InputError`]: If programs would have to run without `run_programs`.
    """
    if run_programs and not extract:
        raise InputError("run_programs=True runs the programs of raw generations. Pass extract=True with it.")
    if extract:
        answers = answers | _read_generations(answers, run_programs)
    return score(**answers, **options) if "cot" in answers else score_flat(**answers, **options)


def _read_generations(given: dict[str, list], run_programs: bool) -> dict[str, list]:
    """Return the answers that generations reach, in their places."""
    if not run_programs and any(given.get("pot", [])):
        raise InputError(
            "extract=True reads the answer of a program by running it, but programs run only if you say so. "
            "Pass run_programs=True to run them in a sandbox, or pass the programs' answers without extract=True."
        )
    with Executor() as executor:
        if "predictions" in given:
            thoughts = [Thought(str(i), "cot", 0, text) for i, text in enumerate(given["predictions"])]
            return {"predictions": [thought.answer or "" for thought in read_answers(thoughts, executor)]}
        thoughts = [
            Thought(str(i), path, k, text)
            for path in PATHS
            for i, texts in enumerate(given[path])
            for k, text in enumerate(texts)
        ]
        answers: dict[str, list[list[str]]] = {path: [[] for _ in given[path]] for path in PATHS}
        for thought in read_answers(thoughts, executor):
            answers[thought.path][int(thought.question_id)].append(thought.answer or "")
    return answers


def _listed(values: Any, place: str) -> Sequence[Any]:
    if isinstance(values, list | tuple):
        return values
    if hasattr(values, "to_pylist"):  # an array of Arrow
        return values.to_pylist()
    if isinstance(values, str | dict) or not isinstance(values, Iterable):
        raise InputError(f"{place} is {values!r}, but must be a list of answers, for example ['5', '6'].")
    return list(values)


def _texts(answers: Any, place: str) -> list[str]:
    answers = _listed(answers, place)
    # Lists of texts, the usual case, are passed on without a look at each answer
    return answers if set(map(type, answers)) == {str} else [_text(a, f"{place}[{k}]") for k, a in enumerate(answers)]


def _text(answer: Any, place: str) -> str:
    if isinstance(answer, str):
        return answer
    if isinstance(answer, numpy.ndarray):
        answer = answer.tolist()
    if answer is None or isinstance(answer, Number | numpy.bool_ | list | tuple):
        return canonical(answer)
    raise InputError(
        f"{place} is {answer!r} of the type {type(answer).__name__}. An answer is a text, a number, a bool, a list of "
        "such parts, or None for an unusable thought."
    )
