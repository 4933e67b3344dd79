"""Read datasets, stores and results into a catalog, in bounded memory. None of them is ever written to."""

from __future__ import annotations

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow.parquet import ParquetFile

from ..answers import answer_of_value
from ..dataset_card import read_metadata
from ..errors import InputError
from ..execution import Executor, default_cache
from ..judging import mark, read_answers
from ..mixed_rows import chunks
from ..mixing import mix_question
from ..progress import progress_bar
from ..records import PATHS, Question, QuestionType, Thought
from ..sampling.ledger import Price
from ..store import Selection, Store, open_store
from .catalog import Catalog, Place
from .results import add_results
from .thought_files import GROUP_ROWS, RowWriter


CHUNK = 5_000
"""Thoughts that are judged together: few enough that the progress bar moves."""
_REQUIRED = ("id", "question", "answer", "type", *PATHS)


def add_dataset(catalog: Catalog, folder: str | Path, progress: bool = False) -> None:
    r"""
    Add every task of a dataset of mixed rows.

    Args:
        catalog ([`~md_trl.explorer.catalog.Catalog`]):
            Catalog to add to.
        folder (`str` or [`~pathlib.Path`]):
            Folder that `md-trl mix` wrote, or a copy of it from the Hub.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar.

    Raises:
        `FileNotFoundError`: There is no such folder.
        `InputError`: It holds no mixed rows, or a row cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no dataset in {folder}. Write one with `md-trl mix --output {folder}`, or download one with "
            "`hf download --repo-type dataset`."
        )
    # Folders whose names start with a dot hold what is being written
    found = (file for file in sorted(folder.glob("**/*.parquet")) if "/." not in f"/{file.relative_to(folder)}")
    files = [file for file in found if _has_mixed_rows(file)]
    if not files:
        raise InputError(
            f"{folder} has no Parquet file with the columns {', '.join(_REQUIRED)} of mixed rows. Write one with "
            f"`md-trl mix --output {folder}`."
        )
    dropped: dict[str, int] = {}
    for file in files:
        task = file.parent.name
        metadata = read_metadata(folder, task) or {}
        for split, types in metadata.get("types", {}).items():
            dropped[f"{task}/{split}"] = types.get(f"{QuestionType.NEITHER:d}", 0)
        author = catalog.add_author(metadata.get("settings", {}).get("teacher") or "teacher", str(folder))
        catalog.add_rows(_dataset_rows(file, catalog.add_file(file), author, task, progress))
    if any(dropped.values()):
        what = ", ".join(f"{count:,} of {name}" for name, count in dropped.items() if count)
        catalog.add_note(
            f"{folder.name}: without questions that neither path solves ({what}). The store has them (--store)."
        )


def _has_mixed_rows(file: Path) -> bool:
    try:
        with ParquetFile(file) as opened:
            return set(_REQUIRED) <= set(opened.schema_arrow.names)
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{file} cannot be read as Parquet ({error}). Write or download it again.") from None


def _dataset_rows(
    file: Path, number: int, author: int, task: str, progress: bool
) -> Iterator[tuple[int, Place, dict[str, Any]]]:
    split = re.sub(r"-\d+-of-\d+$", "", file.stem)
    with ParquetFile(file) as opened:
        bar = progress_bar(show=progress, total=opened.metadata.num_rows, desc=f"{task}/{split}", unit="question")
        with bar:
            for group in range(opened.num_row_groups):
                position = 0
                for batch in opened.iter_batches(GROUP_ROWS, row_groups=[group]):
                    for row in batch.to_pylist():
                        for name in ("id", "answer", "type"):
                            if row[name] is None:
                                raise InputError(
                                    f"{file}: row {position} of row group {group} has no {name}. Mix the thoughts "
                                    "again, or fill in the value."
                                )
                        known = {"task": task, "split": split, "trainable": True}
                        yield author, Place(number, group, position), known | row
                        position += 1
                    bar.update(batch.num_rows)


def add_store(
    catalog: Catalog,
    file: str | Path,
    prices: Mapping[str, Price] | None = None,
    progress: bool = False,
    chunk: int = CHUNK,
) -> None:
    r"""
    Judge the thoughts of a store and add them, one author per model and sampling parameters.

    The store is opened for reading only. Results of programs come from the cache beside the store and are added to it,
    if its folder can be written to.

    Args:
        catalog ([`~md_trl.explorer.catalog.Catalog`]):
            Catalog to add to.
        file (`str` or [`~pathlib.Path`]):
            The store.
        prices (`Mapping[str, Price]`, *optional*):
            Prices by model, to state what a question cost without discounts for batches.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar.
        chunk (`int`, *optional*, defaults to `5_000`):
            Number of thoughts to judge at a time.

    Raises:
        `FileNotFoundError`: There is no such store.
        `InputError`: The file is not a store, or has no thoughts of either path.
    """
    file = Path(file)
    cache = default_cache(file)
    if not os.access(cache.parent, os.W_OK) or (cache.exists() and not os.access(cache, os.W_OK)):
        cache = catalog.folder / cache.name
    with open_store(file, read_only=True) as store, store.snapshot(), Executor(cache=cache) as executor:
        authors = _authors_of_store(store)
        if not authors:
            raise InputError(f"{file} has no CoT or PoT thoughts. Sample some with `md-trl sample --store {file}`.")
        questions = {question.id: question for question in store.questions.load()}
        for name, model, params, settings in authors:
            selection = Selection(settings=settings, paths=PATHS)
            author = catalog.add_author(name, str(file), model, params)
            price = (prices or {}).get(model)
            total = sum(store.count_sampled(selection).values())
            with (
                progress_bar(show=progress, total=total, desc=f"Judging {_printable(name)}", unit="question") as bar,
                RowWriter(catalog) as writer,
            ):
                for thoughts in chunks(store.iterate_thoughts(selection), chunk):
                    rows = []
                    for row in _judge(thoughts, questions, executor):
                        row |= _usage(store, row["id"], settings, price)
                        rows.append((author, writer.add(row), row))
                    writer.flush()
                    catalog.add_rows(rows)
                    bar.update(len(rows))


def _authors_of_store(store: Store) -> list[tuple[str, str, dict[str, Any], list[int]]]:
    """Name the authors of a store with their model, parameters and settings: the k-th CoT and PoT setting of a model
    belong together, if they were sampled with the same parameters."""
    by_path: dict[tuple[str, str], dict[str, dict[int, None]]] = defaultdict(lambda: {path: {} for path in PATHS})
    params_of: dict[str, dict[str, Any]] = {}
    for row in store.status(Selection(paths=PATHS)):
        if row.thoughts:
            parameters = ", ".join(f"{name}={value}" for name, value in sorted(row.params.items()))
            params_of[parameters] = row.params
            by_path[row.model, parameters][row.path][row.setting] = None
    authors = []
    for (model, parameters), settings in by_path.items():
        for numbers in itertools.zip_longest(*(sorted(settings[path]) for path in PATHS)):
            authors.append((model, parameters, sorted({number for number in numbers if number is not None})))
    named = []
    for model, parameters, numbers in authors:
        short = _short_name(model, [other for other, _, _ in authors])
        same = [other for other in authors if other[0] == model]
        if len(same) > 1:
            alike = sum(other[1] == parameters for other in same) > 1
            details = parameters if not alike else f"settings {', '.join(map(str, numbers))}"
            short = f"{short} ({details})"
        named.append((short, model, params_of[parameters], numbers))
    return named


def _printable(name: str) -> str:
    """Replace characters that a terminal might obey."""
    return "".join(c if c.isprintable() else "?" for c in name)


def _short_name(model: str, others: Iterable[str]) -> str:
    """Return the last part of a model's path, unless that is the last part of another one, too."""
    short = model.rstrip("/").rsplit("/", 1)[-1]
    return model if any(other != model and other.rstrip("/").endswith(short) for other in others) else short or "?"


def _judge(thoughts: list[Thought], questions: Mapping[str, Question], executor: Executor) -> Iterator[dict[str, Any]]:
    """Yield a row per question, with the thoughts that reach no answer and why."""
    ids = dict.fromkeys(thought.question_id for thought in thoughts)
    judged = mark(read_answers(thoughts, executor), {id: questions[id].answer for id in ids})
    failed = [t.text for t in judged if not t.usable and t.path == "pot" and t.finish_reason == "stop"]
    # They ran a moment ago, so their results are read from memory or the cache
    results = dict(zip(failed, executor.run_many(failed), strict=True))
    for question_id, of_question in itertools.groupby(judged, key=lambda thought: thought.question_id):
        of_path: dict[str, list[Thought]] = {path: [] for path in PATHS}
        for thought in of_question:
            of_path[thought.path].append(thought)
        question = questions[question_id]
        row = mix_question(question, of_path["cot"], of_path["pot"]).to_dict() | {"split": question.split}
        row["repeat"] = None  # it depends on the mixed questions of a split
        row["trainable"] = question.split == "train"
        if not (of_path["cot"] and of_path["pot"]):
            row["type"] = None  # a path that was not sampled has not failed
        for path in PATHS:
            row[f"{path}_unusable"] = _unusable(of_path[path], results)
        yield row


def _unusable(thoughts: Iterable[Thought], results: Mapping[str, Any]) -> list[dict[str, Any]]:
    distinct: dict[tuple[str, str], dict[str, Any]] = {}
    for thought in thoughts:
        if not thought.usable:
            reason = _reason(thought, results.get(thought.text))
            new = {"text": thought.text, "reason": reason, "count": 0}
            distinct.setdefault((thought.text, reason), new)["count"] += 1
    return list(distinct.values())


def _reason(thought: Thought, result: Any) -> str:
    if thought.finish_reason != "stop":
        return "cut off at the token limit" if thought.finish_reason == "length" else f"ended: {thought.finish_reason}"
    if thought.path == "cot":
        return "states no answer"
    if result.status == "ok":
        return f"the value {answer_of_value(result.value)!r:.80} is no answer"
    return f"{result.status.replace('_', ' ')}: {result.error}" if result.error else result.status.replace("_", " ")


def _usage(store: Store, question_id: str, settings: Iterable[int], price: Price | None) -> dict[str, Any]:
    used = [store.usage(question_id, path, setting) for path in PATHS for setting in settings]
    tokens = [sum(getattr(u, f"{kind}_tokens") for u in used) for kind in ("prompt", "cached", "completion")]
    return {
        "tokens": tokens[2] or None,
        "cost": price.cost(*tokens) if price is not None and any(tokens) else None,
    }


def read_sources(
    folder: str | Path,
    datasets: Iterable[str] = (),
    stores: Iterable[str] = (),
    results: Iterable[str] = (),
    prices: Mapping[str, Price] | None = None,
    progress: bool = False,
) -> Catalog:
    r"""
    Read all sources into a new catalog.

    Args:
        folder (`str` or [`~pathlib.Path`]):
            Empty folder of the explorer's own.
        datasets (`Iterable[str]`, *optional*):
            Folders of mixed rows, see [`add_dataset`].
        stores (`Iterable[str]`, *optional*):
            Stores of thoughts, see [`add_store`].
        results (`Iterable[str]`, *optional*):
            Folders of results, see [`add_results`].
        prices (`Mapping[str, Price]`, *optional*):
            Prices by model.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show progress bars.

    Returns:
        [`~md_trl.explorer.catalog.Catalog`]: The catalog.

    Raises:
        `FileNotFoundError`: A source does not exist.
        `InputError`: No source is named, or one cannot be read.
    """
    datasets, stores, results = list(datasets), list(stores), list(results)
    if not (datasets or stores or results):
        raise InputError("There is nothing to explore. Name a `--dataset`, a `--store` or a folder of `--results`.")
    catalog = Catalog(folder)
    for dataset in datasets:
        add_dataset(catalog, dataset, progress)
    for store in stores:
        add_store(catalog, store, prices, progress)
    for result in results:
        add_results(catalog, result)
    catalog.finish()
    return catalog
