"""Turn judged thoughts into mixed rows: compute the type, lambda and repeat of each question (Sec. 3.1)."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from .answers import equal
from .errors import InputError
from .records import ALL_PATHS, COT_POT, PATHS, MixedRow, Question, QuestionType, Thought
from .voting import majority


REPEAT_CAP = 4
"""Maximum `repeat` of a question by default."""

LAMBDA_BINS = 10
"""Bins of the histogram of lambda, from 0 to 1."""

SOLVED_BY = {
    QuestionType.POT_ONLY: "PoT only",
    QuestionType.COT_ONLY: "CoT only",
    QuestionType.BOTH: "both",
    QuestionType.NEITHER: "neither",
}
"""Which paths solve a question of each type, in the words of tables and cards."""

CORRECT_THOUGHTS = {"cot": "correct CoT (n1)", "pot": "correct PoT (n2)", "cot_pot": "correct plan + PoT (n3)"}
"""How tables name the correct thoughts of each path."""


def type_of(solved_by_cot: bool, solved_by_pot: bool) -> QuestionType:
    """Return the type of a question from the paths that solve it."""
    if solved_by_cot and solved_by_pot:
        return QuestionType.BOTH
    if solved_by_cot:
        return QuestionType.COT_ONLY
    return QuestionType.POT_ONLY if solved_by_pot else QuestionType.NEITHER


def lambda_of(n_cot_correct: int, n_pot_correct: int) -> float | None:
    r"""
    Compute lambda, the weight of the PoT path in the loss of type 3 (Eq. 4).

    Args:
        n_cot_correct (`int`):
            Number of correct CoT thoughts, n1 of the paper.
        n_pot_correct (`int`):
            Number of correct PoT thoughts, n2 of the paper.

    Returns:
        `float` or `None`: `n2 / (n1 + n2)`; `None` if no thought is correct.
    """
    correct = n_cot_correct + n_pot_correct
    return n_pot_correct / correct if correct else None


def share_of_cot_pot(n_cot_correct: int, n_pot_correct: int, n_cot_pot_correct: int) -> float | None:
    r"""
    Compute the weight of the path `cot_pot` in the loss of type 3: as lambda, its share of all correct thoughts.

    The other paths divide the rest by lambda, so that each of the three weighs its share of all correct thoughts.

    Args:
        n_cot_correct (`int`), n_pot_correct (`int`), n_cot_pot_correct (`int`):
            Number of correct thoughts of each path.

    Returns:
        `float` or `None`: `n3 / (n1 + n2 + n3)`; `None` if no thought is correct.
    """
    correct = n_cot_correct + n_pot_correct + n_cot_pot_correct
    return n_cot_pot_correct / correct if correct else None


def mix(questions: Iterable[Question], thoughts: Iterable[Thought], repeat_cap: int = REPEAT_CAP) -> list[MixedRow]:
    r"""
    Group questions by which reasoning paths solve them, and weight them.

    A path solves a question if the most frequent answer among its usable thoughts equals the gold answer. Lambda is
    `n2 / (n1 + n2)` for n1 correct CoT thoughts and n2 correct PoT thoughts. Questions that only one path solves are
    repeated to balance them against the questions that both paths solve, separately for each task and split. If there
    are thoughts of the path `cot_pot`, the rows have its columns; they change neither type nor lambda nor repeat.

    Args:
        questions (`Iterable[Question]`):
            Questions. Those without any thought have not been sampled and are left out.
        thoughts (`Iterable[Thought]`):
            Judged thoughts, in any order. Their `index` decides ties between answers and the order of the texts.
        repeat_cap (`int`, *optional*, defaults to `4`):
            Maximum `repeat` of a question.

    Returns:
        `list[MixedRow]`: One row per question in the order of the questions, type 4 included.

    Raises:
        `ValueError`: A thought has not been judged.
    """
    by_path: dict[tuple[str, str], list[Thought]] = defaultdict(list)
    for thought in thoughts:
        if thought.correct is None:
            raise InputError(
                f"Thought {thought.index} of {thought.question_id!r} ({thought.path}) is not judged. Call "
                "`read_answers` and `mark` on the thoughts first."
            )
        by_path[thought.question_id, thought.path].append(thought)
    for thoughts_of_path in by_path.values():
        thoughts_of_path.sort(key=lambda thought: thought.index)

    rows, groups = [], []
    paths = ALL_PATHS if any(path == COT_POT for _, path in by_path) else PATHS
    for question in questions:
        of_paths = [by_path[question.id, path] for path in paths]
        if any(of_paths):
            rows.append(mix_question(question, *of_paths))
            groups.append((question.task, question.split))
    statistics: dict[tuple[str, str], MixStatistics] = defaultdict(lambda: MixStatistics(repeat_cap))
    for group, row in zip(groups, rows, strict=True):
        statistics[group].add(row)
    for group, row in zip(groups, rows, strict=True):
        row.repeat = statistics[group].repeat(row.type)
    return rows


class MixStatistics:
    r"""
    What is counted about the mixed rows of one task and split, one row after the other.

    Args:
        repeat_cap (`int`, *optional*, defaults to `4`):
            Maximum `repeat` of a question.

    Attributes:
        types (`Counter[QuestionType]`):
            Number of questions of each type.
        sampled (`Counter[tuple[QuestionType, str]]`), correct (`Counter[tuple[QuestionType, str]]`):
            Number of thoughts sampled, and of correct ones, by type and path.
        per_question (`dict[str, set[int]]`):
            The numbers of thoughts that questions have, by path.
        lambda_bins (`Counter[int]`), lambda_sum (`float`):
            Number of questions of type 3 by tenth of lambda, and the sum of their lambdas.
    """

    def __init__(self, repeat_cap: int = REPEAT_CAP):
        self.repeat_cap = repeat_cap
        self.types: Counter[QuestionType] = Counter()
        self.sampled: Counter[tuple[QuestionType, str]] = Counter()
        self.correct: Counter[tuple[QuestionType, str]] = Counter()
        self.per_question: dict[str, set[int]] = {path: set() for path in PATHS}
        self.lambda_bins: Counter[int] = Counter()
        self.lambda_sum = 0.0

    @property
    def total(self) -> int:
        """Number of questions, type 4 included."""
        return self.types.total()

    @property
    def kept(self) -> int:
        """Number of questions that some path solves: all but those of type 4."""
        return self.total - self.types[QuestionType.NEITHER]

    def add(self, row: MixedRow) -> None:
        """Count a row. Its `repeat` is not read."""
        self.types[row.type] += 1
        for path in PATHS if row.cot_pot is None else ALL_PATHS:
            sampled, correct = getattr(row, f"n_{path}"), getattr(row, f"n_{path}_correct")
            self.sampled[row.type, path] += sampled
            self.correct[row.type, path] += correct
            self.per_question.setdefault(path, set()).add(sampled)
        if row.type == QuestionType.BOTH:
            self.lambda_bins[min(int(row.lambda_ * LAMBDA_BINS), LAMBDA_BINS - 1)] += 1
            self.lambda_sum += row.lambda_

    def repeat(self, type_: QuestionType) -> int:
        """Return the `repeat` that balances a question of this type against those that both paths solve."""
        if type_ not in (QuestionType.POT_ONLY, QuestionType.COT_ONLY) or not self.types[type_]:
            return 1
        balance = math.floor(self.types[QuestionType.BOTH] / self.types[type_] + 0.5)
        return max(1, min(self.repeat_cap, balance))


def mix_question(
    question: Question, cot: Sequence[Thought], pot: Sequence[Thought], cot_pot: Sequence[Thought] | None = None
) -> MixedRow:
    r"""
    Mix the thoughts of one question.

    Args:
        question ([`~md_trl.records.Question`]):
            The question.
        cot (`Sequence[Thought]`), pot (`Sequence[Thought]`):
            Its judged thoughts of each path, in sample order.
        cot_pot (`Sequence[Thought]`, *optional*):
            Those of the path `cot_pot`, if the row is to have its columns.

    Returns:
        [`~md_trl.records.MixedRow`]: The row. Its `repeat` is 1, because it depends on the other questions: see
            [`MixStatistics.repeat`].
    """
    cot_vote, pot_vote = majority(t.answer for t in cot), majority(t.answer for t in pot)
    solved_by_cot, solved_by_pot = (vote is not None and equal(vote, question.answer) for vote in (cot_vote, pot_vote))
    n1, n2 = sum(t.correct for t in cot), sum(t.correct for t in pot)
    row = MixedRow(
        id=question.id,
        task=question.task,
        question=question.question,
        answer=question.answer,
        type=type_of(solved_by_cot, solved_by_pot),
        lambda_=lambda_of(n1, n2),
        repeat=1,
        n_cot=len(cot),
        n_pot=len(pot),
        n_cot_correct=n1,
        n_pot_correct=n2,
        cot_vote=cot_vote,
        pot_vote=pot_vote,
        cot=_distinct(cot),
        pot=_distinct(pot),
    )
    if cot_pot is not None:
        row.n_cot_pot, row.n_cot_pot_correct = len(cot_pot), sum(t.correct for t in cot_pot)
        row.cot_pot_share = share_of_cot_pot(n1, n2, row.n_cot_pot_correct)
        row.cot_pot_vote, row.cot_pot = majority(t.answer for t in cot_pot), _distinct(cot_pot)
    return row


def _distinct(thoughts: Iterable[Thought]) -> list[dict[str, Any]]:
    """Return the distinct usable texts in the order first seen, and how often each was sampled."""
    distinct: dict[str, dict[str, Any]] = {}
    for thought in thoughts:
        if thought.usable:
            new = {"text": thought.text, "answer": thought.answer, "correct": thought.correct, "count": 0}
            distinct.setdefault(thought.text, new)["count"] += 1
    return list(distinct.values())


def describe(statistics: MixStatistics) -> str:
    r"""
    Summarize mixed rows: the size of each type, how many thoughts are correct, and the distribution of lambda.

    Args:
        statistics ([`MixStatistics`]):
            What was counted about the rows of one task and split.

    Returns:
        `str`: Two Markdown tables.
    """
    paths = list(statistics.per_question)
    names = [CORRECT_THOUGHTS[path] for path in paths]
    lines = [
        f"| type | solved by | questions | share | repeat | {' | '.join(names)} |",
        "| --- | --- | ---: | ---: | ---: |" + " ---: |" * len(paths),
    ]
    for type_, solved_by in SOLVED_BY.items():
        count = statistics.types[type_]
        repeat, correct = "-", ["-"] * len(paths)
        if count:
            correct = [f"{statistics.correct[type_, p]:,} of {statistics.sampled[type_, p]:,}" for p in paths]
        if type_ == QuestionType.NEITHER:
            solved_by += " (dropped)"
        elif count:
            repeat = str(statistics.repeat(type_))
        share = f"{count / statistics.total:.1%}" if statistics.total else "-"
        lines.append(f"| {type_} | {solved_by} | {count:,} | {share} | {repeat} | {' | '.join(correct)} |")

    bins = statistics.lambda_bins
    lines += ["", "| lambda (type 3) | questions |", "| --- | ---: |"]
    for i in range(LAMBDA_BINS):
        if bins[i]:
            bar = "█" * math.ceil(20 * bins[i] / max(bins.values()))
            lines.append(f"| {i / LAMBDA_BINS:.1f} - {(i + 1) / LAMBDA_BINS:.1f} | {bins[i]:,} {bar} |")
    if bins:
        lines.append(f"| mean | {statistics.lambda_sum / bins.total():.3f} |")
    return "\n".join(lines)
