"""Read results of students, each joined with the student's thoughts in a store, if one of the sources has them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

from ..answers import canonical, equal
from ..evaluation import EvaluationResult, QuestionResult
from ..records import PATHS
from ..report import load_results, with_distinct_names
from .catalog import Catalog
from .thought_files import RowWriter


_ALIKE = 0.95
"""Share of questions on which they agree if a result and thoughts are of one student: programs may time out once."""
_DIGEST = re.compile(r"@[0-9a-f]{8}$")


class _Match(NamedTuple):
    """An author of a store that may have given the answers of a result."""

    author: int
    ids: frozenset[str]
    """Questions of the result that the store has thoughts on."""
    differing: int
    """How many of them have answers that the thoughts do not give."""
    more: int
    """How many of them have more thoughts than the result took."""

    @property
    def fits(self) -> bool:
        return self.differing <= (1 - _ALIKE) * len(self.ids)


def add_results(catalog: Catalog, folder: str | Path) -> None:
    r"""
    Add the answers of students to test questions. A result keeps answers, not texts.

    A result belongs to the thoughts of a store if both name the same weights or model and the same sampling
    parameters, and the answers agree. The student is one author then, with its thoughts where the store has them.

    Args:
        catalog ([`~md_trl.explorer.catalog.Catalog`]):
            Catalog to add to, which has the rows of all stores.
        folder (`str` or [`~pathlib.Path`]):
            Folder that `md-trl eval` wrote.

    Raises:
        `FileNotFoundError`: The folder has no results.
        `InputError`: A file is not a result.
    """
    joined: dict[int, set[str]] = defaultdict(set)
    without_texts: dict[str, None] = {}
    for result in with_distinct_names(load_results(folder)):
        match = _find_author(catalog, result)
        if match is None:
            author, ids = catalog.add_author(result.name, str(folder)), frozenset()
            if any(getattr(question, path) for question in result.questions for path in PATHS):
                without_texts[result.name] = None
        else:
            author, ids = match.author, match.ids
            joined[author].add(result.name)
            labels = {question.id: question.label for question in result.questions if question.label}
            catalog.join_result(author, {id: answers for id, answers in labels.items() if id in ids})
        with RowWriter(catalog) as writer:
            catalog.add_rows([(author, writer.add(row), row) for row in _result_rows(result, ids)])
    for author, names in joined.items():
        if len(names) == 1:
            catalog.rename_author(author, *names)
    if without_texts:
        catalog.add_note(
            f"{Path(folder).name}: only the answers of {', '.join(without_texts)}, without texts. The store of a "
            "student has its thoughts (--store)."
        )


def _find_author(catalog: Catalog, result: EvaluationResult) -> _Match | None:
    """Find the author of a store whose thoughts gave the answers of a result."""
    matches = [
        _compare(catalog, author, result)
        for author, model, params in catalog.authors_of_stores()
        if _same_model(model, result.model)
        and all(result.settings.get(name, value) == value for name, value in params.items())
    ]
    if not matches:
        return None
    best = max(matches, key=lambda match: (len(match.ids) - match.differing, -match.author))
    asked = f"of {len(best.ids):,} questions of {result.task}/{result.split}"
    if not best.fits:
        catalog.add_note(
            f"{result.name}: its result and the thoughts of the same model in the store have other answers to "
            f"{best.differing:,} {asked}, so they are listed as two."
        )
        return None
    if best.differing:
        catalog.add_note(
            f"{result.name}: its result has other answers to {best.differing:,} {asked} than its thoughts, for "
            "example because a program timed out only once. The answers of the thoughts are shown."
        )
    if best.more:
        catalog.add_note(
            f"{result.name}: the store has more thoughts on {best.more:,} {asked} than its result took. All of them "
            "vote here."
        )
    return best


def _same_model(one: str, other: str) -> bool:
    """Whether two names are of the same weights, in whatever folder. Models without a digest go by their names."""
    digests = [_DIGEST.search(name) for name in (one, other)]
    return one == other or (None not in digests and digests[0][0] == digests[1][0])


def _compare(catalog: Catalog, author: int, result: EvaluationResult) -> _Match:
    answered = {question.id: question for question in result.questions}
    rows = [row for row in catalog.rows_of(author, result.task, result.split) if row["id"] in answered]
    differing = more = 0
    for row, thoughts in catalog.iterate_thoughts(rows):
        sampled, taken = _sampled(thoughts), _taken(answered[row["id"]])
        differing += any(taken[path] - sampled[path] for path in taken)
        more += any(sampled[path].total() > taken[path].total() for path in taken)
    return _Match(author, frozenset(row["id"] for row in rows), differing, more)


def _sampled(thoughts: Mapping[str, Any]) -> dict[str, Counter[str | None]]:
    """Count the answers of thoughts by path; `None` for those without one."""
    counts = {path: Counter() for path in PATHS}
    for path in PATHS:
        for thought in (*thoughts[path], *thoughts[f"{path}_unusable"]):
            answer = thought.get("answer")
            counts[path][None if answer is None else canonical(answer)] += thought["count"]
    return counts


def _taken(question: QuestionResult) -> dict[str, Counter[str | None]]:
    """Count the answers of a result by path, if it has the path."""
    answers = {path: getattr(question, path) for path in PATHS if getattr(question, path)}
    return {path: Counter(None if a is None else canonical(a) for a in found) for path, found in answers.items()}


def _result_rows(result: EvaluationResult, known: Set[str]) -> Iterator[dict[str, Any]]:
    """Yield a row per question, except those that are known from a store."""
    for question in result.questions:
        if question.id in known:
            continue
        row: dict[str, Any] = {"id": question.id, "task": result.task, "split": result.split}
        row |= {"answer": question.answer, "question": None, "tokens": question.tokens or None}
        row["label"] = question.label
        for path in PATHS:
            answers: dict[str, dict[str, Any]] = {}
            for answer in getattr(question, path):
                if answer is not None:
                    new = {"text": None, "answer": answer, "correct": equal(answer, question.answer), "count": 0}
                    answers.setdefault(answer, new)["count"] += 1
            row[path] = list(answers.values())
            missing = sum(answer is None for answer in getattr(question, path))
            row[f"{path}_unusable"] = [{"text": None, "reason": "no answer", "count": missing}] if missing else []
        yield row
