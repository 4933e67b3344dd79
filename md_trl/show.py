"""Questions with the thoughts of both paths, their answers, the votes and the type, for a person to read (Sec. 3.1).

[`questions_of_store`], [`questions_of_dataset`] and [`questions_of_result`] read them, [`choose`] selects some,
[`write_samples`] writes them to a file and [`~md_trl.show_text.format_question`] one of them for a terminal.
"""

from __future__ import annotations

import difflib
import itertools
import json
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from .answers import equal
from .errors import InputError, check_at_least_one
from .evaluation import EvaluationResult, QuestionResult
from .execution import Executor, default_cache
from .judging import mark, read_answers
from .mixing import MixStatistics, lambda_of, mix_question, type_of
from .nearby import did_you_mean_file
from .records import ALL_PATHS, LABEL, PATHS, PATHS_AND_LABEL, Question, QuestionType, SamplingParams, Thought
from .store import Selection, Store
from .voting import majority, vote


MAX_NAMED = 5
"""Maximum number of questions that an error lists."""


@dataclass
class ShownThought:
    r"""
    A thought, or several with the same text.

    Args:
        text (`str`, *optional*):
            The text, `None` if only its answer is known.
        answer (`str`, *optional*):
            Answer in canonical form, `None` if the thought is unusable.
        correct (`bool`):
            Whether the answer equals the gold answer.
        count (`int`, *optional*, defaults to `1`):
            How often the text was sampled.
        finish_reason (`str`, *optional*, defaults to `"stop"`):
            As in [`~md_trl.records.Thought`].
    """

    text: str | None
    answer: str | None
    correct: bool
    count: int = 1
    finish_reason: str = "stop"


@dataclass
class ShownQuestion:
    r"""
    A question with everything that is known of it.

    Args:
        id (`str`), task (`str`), split (`str`), answer (`str`):
            As in [`~md_trl.records.Question`]; `answer` is the gold answer.
        question (`str`, *optional*):
            Text of the question, `None` if only its id is known.
        type ([`~md_trl.records.QuestionType`], *optional*):
            Which paths solve it, `None` if only one path was sampled.
        lambda_ (`float`, *optional*), repeat (`int`, *optional*):
            As in [`~md_trl.records.MixedRow`]. A result has no `repeat`.
        vote (`str`, *optional*):
            Joint vote over all thoughts of both paths, or the bare answer if that is all there is.
        votes (`dict[str, str | None]`):
            Vote of each path.
        sampled (`dict[str, int]`):
            Number of thoughts sampled of each path, unusable ones included.
        thoughts (`dict[str, list[ShownThought]]`):
            Distinct thoughts of each path in the order first seen. A dataset holds only usable ones.
    """

    id: str
    task: str
    split: str
    question: str | None
    answer: str
    type: QuestionType | None
    lambda_: float | None
    repeat: int | None
    vote: str | None
    votes: dict[str, str | None] = field(default_factory=dict)
    sampled: dict[str, int] = field(default_factory=dict)
    thoughts: dict[str, list[ShownThought]] = field(default_factory=dict)

    @property
    def is_right(self) -> bool:
        """Whether the joint vote equals the gold answer."""
        return self.is_gold(self.vote)

    def is_gold(self, answer: str | None) -> bool:
        """Return whether an answer equals the gold answer. `None` never does."""
        return answer is not None and equal(answer, self.answer)

    def counts(self, *paths: str) -> Counter[str]:
        """Count the usable answers of paths, most frequent first, ties in the order first seen."""
        counts: Counter[str] = Counter()
        for thought in itertools.chain.from_iterable(self.thoughts.get(path, ()) for path in paths):
            if thought.answer is not None:
                counts[thought.answer] += thought.count
        return Counter(dict(counts.most_common()))

    def to_dict(self) -> dict[str, Any]:
        """Return the question as a row of the file that [`write_samples`] writes."""
        row = {name: getattr(self, name) for name in ("id", "task", "split", "question", "answer", "type")}
        row |= {"lambda": self.lambda_, "repeat": self.repeat, "vote": self.vote}
        row |= {f"{path}_vote": self.votes.get(path) for path in PATHS}
        return row | {path: [asdict(thought) for thought in thoughts] for path, thoughts in self.thoughts.items()}


def questions_of_store(store: Store, selection: Selection, progress: bool = False) -> list[ShownQuestion]:
    r"""
    Judge the thoughts of a store as `md-trl mix` does, programs in the sandbox, and say what it would make of them.

    Args:
        store ([`~md_trl.store.Store`]):
            The store.
        selection ([`~md_trl.store.Selection`]):
            Which thoughts to read.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar while programs run.

    Returns:
        `list[ShownQuestion]`: The questions that have thoughts, in the order of the store.

    Raises:
        `InputError`: The store has no such thoughts, or a question has thoughts of several settings.
    """
    with store.snapshot():
        asked = {question.id: question for question in store.questions.load(selection.task)}
        thoughts = store.thoughts(selection)
    with Executor(cache=default_cache(store.file)) as executor:
        read = read_answers(thoughts, executor, progress=progress)
    shown, statistics = [], defaultdict(MixStatistics)
    for question_id, of_question in itertools.groupby(read, key=lambda thought: thought.question_id):
        question, by_path = asked[question_id], {path: [] for path in PATHS_AND_LABEL}
        for thought in mark(of_question, {question_id: question.answer}):
            by_path[thought.path].append(thought)
        joint = vote(*([thought.answer for thought in by_path[path]] for path in PATHS))
        if by_path["cot"] or by_path["pot"]:
            row = mix_question(question, by_path["cot"], by_path["pot"])
            statistics[question.task, question.split].add(row)
        else:
            joint = majority(thought.answer for thought in by_path[LABEL])
        shown.append(_shown(question, by_path, joint))
    if not shown:
        held = sorted({f"{q.task}/{q.split}" for q in store.questions.load()}) or ["no questions"]
        raise InputError(f"{store.file} has no such thoughts. It holds {', '.join(held)}: `md-trl store status`.")
    for question in shown:
        if question.type is not None:
            question.repeat = statistics[question.task, question.split].repeat(question.type)
    return shown


def questions_of_dataset(dataset: str | Path, task: str | None = None) -> list[ShownQuestion]:
    r"""
    Read the mixed rows of a dataset.

    Args:
        dataset (`str` or `Path`):
            Folder that `md-trl mix` wrote, or Hub id.
        task (`str`, *optional*):
            Read only this task. By default all of a folder, and the default configuration of a dataset on the Hub.

    Returns:
        `list[ShownQuestion]`: The rows, task by task and split by split.

    Raises:
        `InputError`: There are no mixed rows.
    """
    rows = _rows_of_folder(Path(dataset)) if Path(dataset).is_dir() else _rows_on_hub(str(dataset), task)
    shown = []
    for number, (split, row) in enumerate(rows):
        try:
            shown.append(_shown_row(row, split))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"Row {number} of {dataset} is not a mixed row: {error!r}. See docs/hub.md.") from None
    if not shown:
        raise InputError(f"{dataset} holds no mixed rows. Name a folder that `md-trl mix --output` wrote.")
    return shown


def _rows_of_folder(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    from pyarrow.parquet import ParquetFile

    for path in sorted(folder.glob("*/*.parquet")):
        with ParquetFile(path) as file:
            if {"type", *PATHS} <= set(file.schema_arrow.names):  # neither path rows nor raw thoughts
                for batch in file.iter_batches():
                    yield from ((path.name.split("-")[0], row) for row in batch.to_pylist())


def _rows_on_hub(dataset: str, task: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    import datasets

    if dataset.count("/") != 1:  # no id of a dataset on the Hub
        hint = did_you_mean_file(dataset, folders=True)
        raise FileNotFoundError(f"There is no folder {dataset}.{hint} Write one with `md-trl mix --output {dataset}`.")
    try:
        splits = datasets.load_dataset(dataset, task)
    except ValueError as error:
        raise InputError(f"Cannot load {dataset}: {error}") from error
    for split, rows in splits.items():
        yield from ((split, row) for row in rows)


def _shown_row(row: Mapping[str, Any], split: str) -> ShownQuestion:
    paths = [path for path in ALL_PATHS if path in row]
    thoughts = {path: [_thought_of_row(thought) for thought in row[path]] for path in paths}
    shown = ShownQuestion(
        **{name: row[name] for name in ("id", "task", "question", "answer", "repeat")},
        split=split,
        type=QuestionType(row["type"]),
        lambda_=row["lambda"],
        vote=vote(*(_answers(thoughts[path]) for path in PATHS)),
        votes={path: row[f"{path}_vote"] for path in paths},
        sampled={path: row[f"n_{path}"] for path in paths},
        thoughts=thoughts,
    )
    return shown


def _thought_of_row(thought: Mapping[str, Any] | str) -> ShownThought:
    if isinstance(thought, str):  # a list of plain strings is taken as correct thoughts
        return ShownThought(thought, None, True)
    return ShownThought(thought["text"], thought["answer"], thought["correct"], thought["count"])


def _answers(thoughts: Iterable[ShownThought]) -> list[str | None]:
    return [thought.answer for thought in thoughts for _ in range(thought.count)]


def questions_of_result(
    result: EvaluationResult, store: Store | None = None, settings: Sequence[int] | None = None
) -> list[ShownQuestion]:
    r"""
    Read the answers of a result, and their texts from the store that it was made with.

    Args:
        result ([`~md_trl.evaluation.EvaluationResult`]):
            The result.
        store ([`~md_trl.store.Store`], *optional*):
            Store of the student's thoughts. Without it, only ids and answers are known.
        settings (`Sequence[int]`, *optional*):
            Settings of the thoughts. Defaults to those of the result's model and sampling parameters.

    Returns:
        `list[ShownQuestion]`: The questions of the result, in its order. The joint vote is over all thoughts of both
            paths, with the weights of the result.

    Raises:
        `InputError`: The store does not hold the thoughts of the result.
    """
    asked: dict[str, Question] = {}
    stored: dict[tuple[str, str, int], Thought] = {}
    if store is not None:
        asked = {question.id: question for question in store.questions.load(result.task, result.split)}
        found = [t for one in _selections(result, settings) for t in store.thoughts(one)]
        stored = {(thought.question_id, thought.path, thought.index): thought for thought in found}
    shown = []
    for answers in result.questions:
        question = Question(answers.id, result.task, result.split, "", answers.answer)
        by_path = {path: _thoughts_of_answers(answers, path) for path in PATHS_AND_LABEL}
        if store is not None:
            try:
                question = asked[answers.id]
                by_path = {path: [_with_text(t, stored) for t in thoughts] for path, thoughts in by_path.items()}
            except KeyError as error:
                raise InputError(
                    f"{store.file} does not hold {error}, which {result.name!r} answered. Name the store of that "
                    "`md-trl eval`, or pick its setting with `--settings` (`md-trl store status` shows them)."
                ) from None
        cot, pot = answers.cot, answers.pot
        weights = result.weights.weigh(cot, pot, answers.cot_logprob, answers.pot_logprob)
        joint = vote(cot, pot, *weights) if cot or pot else majority(answers.label)
        shown.append(_shown(question, by_path, joint, has_texts=store is not None))
    return shown


def _selections(result: EvaluationResult, settings: Sequence[int] | None) -> list[Selection]:
    """The thoughts that a result was made from. The bare answer is greedy, whatever the others are."""
    if settings is not None:
        return [Selection(result.task, [result.split], settings=settings)]
    names = [f.name for f in fields(SamplingParams) if f.name in result.settings]
    params = SamplingParams(**{name: result.settings[name] for name in names})
    return [
        Selection(result.task, [result.split], paths, result.model, params={n: asdict(of_paths)[n] for n in names})
        for paths, of_paths in ((ALL_PATHS, params), ([LABEL], params.greedy()))
    ]


def _thoughts_of_answers(answers: QuestionResult, path: str) -> list[Thought]:
    return [
        Thought(answers.id, path, index, "", answer=answer, correct=answers.is_correct(answer))
        for index, answer in enumerate(getattr(answers, path))
    ]


def _with_text(thought: Thought, stored: Mapping[tuple[str, str, int], Thought]) -> Thought:
    found = stored[thought.question_id, thought.path, thought.index]
    return replace(found, answer=thought.answer, correct=thought.correct)


def _shown(
    question: Question, by_path: Mapping[str, Sequence[Thought]], joint: str | None, has_texts: bool = True
) -> ShownQuestion:
    """Show judged thoughts of a question, in sample order."""
    sampled = {path: thoughts for path, thoughts in by_path.items() if thoughts}
    votes = {path: majority(thought.answer for thought in thoughts) for path, thoughts in sampled.items()}
    cot, pot = ([thought.correct for thought in by_path.get(path, ())] for path in PATHS)
    shown = ShownQuestion(
        **{name: getattr(question, name) for name in ("id", "task", "split", "answer")},
        question=question.question if has_texts else None,
        type=None,
        lambda_=lambda_of(sum(cot), sum(pot)),
        repeat=None,
        vote=joint,
        votes=votes,
        sampled={path: len(thoughts) for path, thoughts in sampled.items()},
        thoughts={path: _distinct(thoughts, has_texts) for path, thoughts in sampled.items()},
    )
    if cot and pot:
        shown.type = type_of(*(shown.is_gold(votes[path]) for path in PATHS))
    return shown


def _distinct(thoughts: Iterable[Thought], has_texts: bool) -> list[ShownThought]:
    distinct: dict[tuple[str, str | None, str], ShownThought] = {}
    for thought in thoughts:
        text = thought.text if has_texts else None
        new = ShownThought(text, thought.answer, bool(thought.correct), 0, thought.finish_reason)
        distinct.setdefault((thought.text, thought.answer, thought.finish_reason), new).count += 1
    return list(distinct.values())


def choose(
    questions: Sequence[ShownQuestion],
    ids: Sequence[str] | None = None,
    task: str | None = None,
    split: str | None = None,
    types: Sequence[int] | None = None,
    wrong: bool = False,
    limit: int | None = None,
) -> list[ShownQuestion]:
    r"""
    Select questions.

    Args:
        questions (`Sequence[ShownQuestion]`):
            The questions.
        ids (`Sequence[str]`, *optional*):
            Ids of the questions to select. The end of an id is enough if no other question's id ends so.
        task (`str`, *optional*):
            Select only questions of this task.
        split (`str`, *optional*):
            Select only questions of this split.
        types (`Sequence[int]`, *optional*):
            Select only questions of these types.
        wrong (`bool`, *optional*, defaults to `False`):
            Select only questions whose joint vote is wrong, or that have none.
        limit (`int`, *optional*):
            Select at most this many questions, the first ones.

    Returns:
        `list[ShownQuestion]`: The questions, in the order of `ids` if they are given.

    Raises:
        `InputError`: There is no such id, task or split, an id is ambiguous, or a number is out of range.
    """
    check_at_least_one("--limit", limit)
    if unknown := sorted(set(types or ()) - set(QuestionType)):
        raise InputError(
            f"`--type` is {unknown[0]}. The types are {', '.join(f'{type_:d}' for type_ in QuestionType)}."
        )
    for name, wanted in (("task", task), ("split", split)):
        held = dict.fromkeys(getattr(question, name) for question in questions)
        if wanted is not None and wanted not in held:
            raise InputError(f"There are no questions of the {name} {wanted!r}, only of {', '.join(held)}.")
        questions = [question for question in questions if wanted in (None, getattr(question, name))]
    if ids:
        by_id = {question.id: question for question in questions}
        questions = [by_id[question_id] for question_id in dict.fromkeys(_find(by_id, wanted) for wanted in ids)]
    chosen = [question for question in questions if not types or question.type in types]
    return [question for question in chosen if not wrong or not question.is_right][:limit]


def _find(ids: Iterable[str], wanted: str) -> str:
    """The id that is wanted, or the only one that ends so, at best with whole parts."""
    ids = list(ids)
    for ends in ("/", ""):
        found = [wanted] if wanted in ids else [known for known in ids if known.endswith(ends + wanted)]
        if len(found) == 1:
            return found[0]
        if found:
            named = ", ".join(found[:MAX_NAMED]) + (", ..." if len(found) > MAX_NAMED else "")
            raise InputError(f"`--id {wanted}` could be any of {len(found)} questions: {named}. Write more of the id.")
    close = difflib.get_close_matches(wanted, ids, n=1, cutoff=0.4)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise InputError(f"There is no question {wanted!r} among {len(ids):,}.{hint}")


def write_samples(questions: Iterable[ShownQuestion], file: str | Path) -> None:
    r"""
    Write questions with their thoughts as JSONL, one question a line. Other content is never overwritten.

    Args:
        questions (`Iterable[ShownQuestion]`):
            The questions.
        file (`str` or `Path`):
            File to write.

    Raises:
        `InputError`: The file exists and has other content.
    """
    file = Path(file)
    content = "".join(json.dumps(question.to_dict(), ensure_ascii=False) + "\n" for question in questions).encode()
    if file.exists():
        if file.read_bytes() != content:
            raise InputError(f"{file} exists and holds something else. Name another `--samples_out`, or move it away.")
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}-") as written:
        written.write(content)
        written.flush()
        os.link(written.name, file)  # fails if another process wrote the file meanwhile
