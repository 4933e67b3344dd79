"""Mixing: questions and judged thoughts come in, mixed rows go out: type, lambda, repeat (Sec. 3.1)."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from .answers import equal
from .errors import InputError
from .records import MixedRow, Question, Thought
from .voting import majority


REPEAT_CAP = 4


def type_of(solved_by_cot: bool, solved_by_pot: bool) -> int:
    """Type of a question: 1 if only PoT solves it, 2 if only CoT does, 3 if both do, 4 if neither does (Sec. 3.1)."""
    return {(False, True): 1, (True, False): 2, (True, True): 3, (False, False): 4}[solved_by_cot, solved_by_pot]


def mix(questions: Iterable[Question], thoughts: Iterable[Thought], repeat_cap: int = REPEAT_CAP) -> list[MixedRow]:
    r"""
    Sort questions by which path solves them, and weigh them.

    A path solves a question if the most frequent answer of its usable thoughts equals the gold answer. Type 1 is
    solved by PoT only, 2 by CoT only, 3 by both, 4 by neither. Lambda is `n2 / (n1 + n2)` for n1 correct CoT and n2
    correct PoT thoughts. Questions of type 1 and 2 repeat about as often as balances them with type 3 of the same task
    and split, at most `repeat_cap` times.

    Args:
        questions (`Iterable[Question]`):
            Questions. Those without any thought are left out: they were not sampled.
        thoughts (`Iterable[Thought]`):
            Judged thoughts. Their `index` orders them: ties fall to the first answer, and texts keep this order.
        repeat_cap (`int`, *optional*, defaults to `4`):
            Largest `repeat`.

    Returns:
        `list[MixedRow]`: a row a question, type 4 included, in the order of the questions.

    Raises:
        `ValueError`: a thought that has not been judged.
    """
    by_path: dict[tuple[str, str], list[Thought]] = defaultdict(list)
    for thought in thoughts:
        if thought.correct is None:
            raise InputError(
                f"Thought {thought.index} of {thought.question_id!r} ({thought.path}) is not judged. Call `judge` "
                "on the thoughts."
            )
        by_path[thought.question_id, thought.path].append(thought)
    for found in by_path.values():
        found.sort(key=lambda thought: thought.index)

    rows, groups = [], []
    for question in questions:
        cot, pot = by_path[question.id, "cot"], by_path[question.id, "pot"]
        if not cot and not pot:
            continue
        cot_vote, pot_vote = majority(t.answer for t in cot), majority(t.answer for t in pot)
        by_cot = cot_vote is not None and equal(cot_vote, question.answer)
        by_pot = pot_vote is not None and equal(pot_vote, question.answer)
        n1, n2 = sum(t.correct for t in cot), sum(t.correct for t in pot)
        groups.append((question.task, question.split))
        rows.append(
            MixedRow(
                id=question.id,
                task=question.task,
                question=question.question,
                answer=question.answer,
                type=type_of(by_cot, by_pot),
                lambda_=n2 / (n1 + n2) if n1 + n2 else None,
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
        )
    count = Counter((group, row.type) for group, row in zip(groups, rows, strict=True))
    for group, row in zip(groups, rows, strict=True):
        if row.type in (1, 2):
            row.repeat = max(1, min(repeat_cap, math.floor(count[group, 3] / count[group, row.type] + 0.5)))
    return rows


def _distinct(thoughts: Iterable[Thought]) -> list[dict]:
    """The distinct usable texts in the order first seen, with how often each was sampled."""
    distinct: dict[str, dict] = {}
    for thought in thoughts:
        if thought.usable:
            new = {"text": thought.text, "answer": thought.answer, "correct": thought.correct, "count": 0}
            distinct.setdefault(thought.text, new)["count"] += 1
    return list(distinct.values())


def describe(rows: Sequence[MixedRow]) -> str:
    r"""
    A Markdown summary of mixed rows: how many of each type, how often each path is right, how lambda is distributed.

    Args:
        rows (`Sequence[MixedRow]`):
            Mixed rows, type 4 included.

    Returns:
        `str`: two tables.
    """
    meaning = {1: "PoT only", 2: "CoT only", 3: "both", 4: "neither (dropped)"}
    lines = [
        "| type | solved by | questions | share | repeat | correct CoT (n1) | correct PoT (n2) |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for type_, solved_by in meaning.items():
        of_type = [row for row in rows if row.type == type_]
        if of_type:
            repeat = str(of_type[0].repeat) if type_ != 4 else "-"
            n1 = f"{sum(r.n_cot_correct for r in of_type):,} of {sum(r.n_cot for r in of_type):,}"
            n2 = f"{sum(r.n_pot_correct for r in of_type):,} of {sum(r.n_pot for r in of_type):,}"
        else:
            repeat = n1 = n2 = "-"
        share = f"{len(of_type) / len(rows):.1%}" if rows else "-"
        lines.append(f"| {type_} | {solved_by} | {len(of_type):,} | {share} | {repeat} | {n1} | {n2} |")

    lambdas = [row.lambda_ for row in rows if row.type == 3]
    bins = Counter(min(int(lambda_ * 10), 9) for lambda_ in lambdas)
    lines += ["", "| lambda (type 3) | questions |", "| --- | ---: |"]
    for i in range(10):
        if bins[i]:
            bar = "█" * math.ceil(20 * bins[i] / max(bins.values()))
            lines.append(f"| {i / 10:.1f} - {(i + 1) / 10:.1f} | {bins[i]:,} {bar} |")
    if lambdas:
        lines.append(f"| mean | {sum(lambdas) / len(lambdas):.3f} |")
    return "\n".join(lines)
