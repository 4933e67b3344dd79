"""The thoughts of a store, judged question by question, and the rows that are mixed from them."""

from __future__ import annotations

import itertools
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..contamination import TEST_SPLIT, ContaminationCheck
from ..dataset_folder import write_folder
from ..errors import InputError
from ..execution import Executor
from ..judging import mark, read_answers
from ..mixed_rows import CHUNK, MixedSplit, chunks
from ..mixing import mix_question
from ..records import PATHS, Question, QuestionType, Thought
from ..store import Selection, Store
from .labels import Agreement, agreement
from .mixing import RefinedRow, mix_refined
from .options import RefineOptions
from .writers import round_of


Types = dict[str, int]
"""Type of each question, by its id."""


class OfQuestion(NamedTuple):
    """The thoughts of a question whose answers were read: its id, and by writer and path the thoughts."""

    id: str
    written: dict[str, dict[str, list[Thought]]]


def teacher_settings(store: Store, task: str, teacher: str | None) -> list[int]:
    r"""
    Find the settings of the teacher's thoughts.

    Args:
        store ([`~md_trl.store.Store`]):
            Store of the thoughts.
        task (`str`):
            Task of the questions.
        teacher (`str`, *optional*):
            The teacher's name. By default, whoever is not a student that is refined.

    Returns:
        `list[int]`: Numbers of the settings.

    Raises:
        [`~md_trl.errors.InputError`]: If there are none, or a question and path has thoughts of several.
    """
    rows = [row for row in store.status(Selection(task, ["train"], PATHS)) if row.thoughts]
    names = list(dict.fromkeys(row.model for row in rows if round_of(row.model) is None))
    if teacher is not None and teacher not in names:
        held = f"those of {', '.join(map(repr, names))}" if names else "no teacher's"
        raise InputError(f"{store.file} has no thoughts of {teacher!r} on {task}/train; it holds {held}.")
    settings = sorted({row.setting for row in rows if row.model in ([teacher] if teacher else names)})
    if not settings:
        raise InputError(
            f"{store.file} has no thoughts of a teacher on {task}/train. Sample some with `md-trl sample --task "
            f"{task} --store {store.file}`."
        )
    next(store.iterate_thoughts(Selection(task, ["train"], PATHS, settings=settings)), None)
    return settings


def read_questions(store: Store, task: str, settings: Sequence[int], executor: Executor) -> Iterator[OfQuestion]:
    r"""
    Read the answers of all thoughts of some settings, a part of the questions at a time.

    Args:
        store ([`~md_trl.store.Store`]):
            Store of the thoughts.
        task (`str`):
            Task of the questions.
        settings (`Sequence[int]`):
            Numbers of the settings.
        executor ([`~md_trl.execution.Executor`]):
            Runs the programs.

    Yields:
        [`OfQuestion`]: The thoughts of each question that has any, in the order of the questions.
    """
    selection = Selection(task, ["train"], PATHS, settings=settings, combine=True)
    for group in chunks(store.iterate_thoughts(selection), CHUNK):
        answered = read_answers(group, executor)
        for question_id, of_question in itertools.groupby(answered, key=lambda thought: thought.question_id):
            written: dict[str, dict[str, list[Thought]]] = {}
            for thought in of_question:
                written.setdefault(thought.model, {path: [] for path in PATHS})[thought.path].append(thought)
            yield OfQuestion(question_id, written)


def types_of(questions: Iterator[OfQuestion], answers: Mapping[str, Question], n: int | None = None) -> Types:
    r"""
    Find out which paths solve questions, whoever wrote the thoughts.

    Args:
        questions (`Iterator[OfQuestion]`):
            Questions with their thoughts.
        answers (`Mapping[str, Question]`):
            Questions with the answers to judge by. Others are left out.
        n (`int`, *optional*):
            Number of thoughts of each writer and path to use, the first ones. Defaults to all.

    Returns:
        `dict[str, int]`: The types by question id.
    """
    types = {}
    for question_id, written in questions:
        if question_id in answers:
            of_path = _marked(written.values(), answers[question_id], n)
            types[question_id] = int(mix_question(answers[question_id], *(of_path[path] for path in PATHS)).type)
    return types


def agreements(questions: Iterator[OfQuestion], ids: set[str], n: int) -> dict[str, Agreement]:
    """Return what both paths agree on in n thoughts each, for the questions among `ids` where they do."""
    found = {}
    for question_id, written in questions:
        if question_id in ids:
            answers = [[t.answer for of_path in written.values() for t in of_path[path][:n]] for path in PATHS]
            if (label := agreement(*answers)) is not None:
                found[question_id] = label
    return found


def mix_questions(
    questions: Iterator[OfQuestion],
    answers: Mapping[str, Question],
    student: str,
    options: RefineOptions,
    round_: int,
    can_write: Callable[[Question, str], bool],
) -> Iterator[RefinedRow]:
    r"""
    Mix the thoughts of each question, see [`mix_refined`].

    Args:
        questions (`Iterator[OfQuestion]`):
            Questions with their thoughts.
        answers (`Mapping[str, Question]`):
            Questions with the answers to judge by: gold answers or labels. Others are left out.
        student (`str`):
            Writer of this round.
        options ([`RefineOptions`]):
            How to mix.
        round_ (`int`):
            The round, from 1.
        can_write (`Callable`):
            Whether the student's tokenizer preserves a program for a question.

    Yields:
        [`RefinedRow`]: One row for each question, those of type 4 included.
    """
    for question_id, written in questions:
        if question_id not in answers:
            continue
        question = answers[question_id]
        earlier = sorted((name for name in written if name != student and round_of(name)), key=round_of, reverse=True)
        yield mix_refined(
            question,
            _marked((written[name] for name in written if round_of(name) is None), question),
            _marked([written[student]] if student in written else [], question, options.n),
            _marked((written[name] for name in earlier), question, options.n),
            options.types_by,
            options.share_of(round_),
            options.per_path,
            partial(can_write, question),
        )


def _marked(
    written: Iterable[Mapping[str, list[Thought]]], question: Question, n: int | None = None
) -> dict[str, list[Thought]]:
    """Join the first n thoughts of several writers by path, and mark them. They vote in the order given."""
    joined: dict[str, list[Thought]] = {path: [] for path in PATHS}
    for of_path in written:
        for path in PATHS:
            # Another refinement may have sampled more of the same student
            joined[path] += mark(of_path[path][:n], {question.id: question.answer})
    return joined


def write_rows(
    rows: Iterator[RefinedRow],
    folder: Path,
    store: Store,
    task: str,
    repeat_cap: int,
    card: dict[str, Any],
) -> tuple[dict[str, Types], dict[str, Any]]:
    r"""
    Write the mixed rows of a round as a dataset with its card.

    Args:
        rows (`Iterator[RefinedRow]`):
            Mixed rows.
        folder (`Path`):
            Folder to write to.
        store ([`~md_trl.store.Store`]):
            Store with the test questions of all tasks, which the card compares with.
        task (`str`):
            Task of the questions.
        repeat_cap (`int`):
            Maximum `repeat` of a question.
        card (`dict[str, Any]`):
            What the card says: `settings`, and `refine`, see [`~md_trl.dataset_card.own_thoughts`].

    Returns:
        `tuple[dict, dict]`: The types of all questions by the `teacher`, the `student` and as `mixed`; and figures:
        number of questions of each, and of the thoughts learned.

    Raises:
        [`~md_trl.errors.InputError`]: If no question is solved.
    """
    types: dict[str, Types] = {"teacher": {}, "student": {}, "mixed": {}}
    thoughts: Counter[str] = Counter()
    folder.parent.mkdir(parents=True, exist_ok=True)
    check = ContaminationCheck(task, store.questions.load(split=TEST_SPLIT))
    with tempfile.TemporaryDirectory(prefix=".mixing-", dir=folder.parent) as temporary:
        with MixedSplit(Path(temporary) / "train.parquet", repeat_cap, check) as split:
            while batch := list(itertools.islice(rows, 1000)):
                split.add([refined.row for refined in batch])
                for refined in batch:
                    id_ = refined.row.id
                    types["teacher"][id_], types["student"][id_] = int(refined.by_teacher), int(refined.by_student)
                    types["mixed"][id_] = int(refined.row.type)
                    if refined.row.type != QuestionType.NEITHER:
                        thoughts.update(refined.learned)
        if not split.num_rows:
            raise InputError(
                f"Neither the teacher nor the student solves any of {split.statistics.total} questions of {task}. "
                "Sample more thoughts (`n`), or begin with a better student."
            )
        figures = {
            "types": {name: count_types(of) for name, of in types.items()},
            "thoughts": {name: thoughts[name] for name in ("teacher", "own")},
        }
        card = {**card, "refine": {**card["refine"], "thoughts": figures["thoughts"]}}
        write_folder(folder, task, {"train": split}, card["settings"], {"refine": card["refine"]})
    return types, figures


def count_types(types: Types) -> dict[str, int]:
    """Count the questions of each type."""
    counts = Counter(types.values())
    return {f"{type_:d}": counts[type_] for type_ in QuestionType}


def moved_types(before: Types, after: Types) -> dict[str, Any]:
    r"""
    Count how the types of questions have changed, among those whose type is known before and after.

    Args:
        before (`dict[str, int]`), after (`dict[str, int]`):
            Types by question id.

    Returns:
        `dict`: `types`, the number of questions of each type after, `moved_to_3`, how many questions of type 1, 2 and
        4 are of type 3 now, and `moves`, for each type before the numbers by type after.
    """
    shared = [(before[id_], after[id_]) for id_ in before if id_ in after]
    pairs = Counter(shared)
    moves = {f"{a:d}": {f"{b:d}": pairs[a, b] for b in QuestionType} for a in QuestionType}
    return {
        "types": count_types({str(i): type_ for i, (_, type_) in enumerate(shared)}),
        "moved_to_3": {name: moves[name]["3"] for name in ("1", "2", "4")},
        "moves": moves,
    }


def with_answers(questions: Sequence[Question], labels: Mapping[str, str]) -> dict[str, Question]:
    """Return questions by id with the labels as their answers, in place of gold answers."""
    return {q.id: replace(q, answer=labels[q.id]) for q in questions if q.id in labels}
