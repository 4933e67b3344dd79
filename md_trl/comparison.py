"""Ensembles of two students, and paired differences between students (Sec. 4).

One step of Mixed Distillation costs as much as one CoT step and one PoT step together. The fair baseline for a student
after S steps is therefore the ensemble of a CoT student and a PoT student after S steps each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import InputError
from .evaluation import FIGURES, JOINT_ALL, EvaluationResult, QuestionResult
from .intervals import bootstrap_interval, two_level_interval
from .records import PATHS


def ensemble(name: str, cot_student: EvaluationResult, pot_student: EvaluationResult) -> EvaluationResult:
    r"""
    Combine the CoT answers of one student with the PoT answers of another: two models that vote together.

    Args:
        name (`str`):
            Name of the ensemble in tables.
        cot_student ([`EvaluationResult`]):
            Student whose CoT answers vote.
        pot_student ([`EvaluationResult`]):
            Student whose PoT answers vote, evaluated on the same questions.

    Returns:
        [`EvaluationResult`]: The result of the pair.

    Raises:
        `ValueError`: A student lacks its path, or the two were evaluated on different questions.
    """
    for student, path in ((cot_student, "cot"), (pot_student, "pot")):
        if not student.has(path):
            raise InputError(
                f"{student.name!r} has no {path} answers on {student.task}/{student.split}, so it cannot be the "
                f"{path} student of the ensemble {name!r}. Write `NAME=cot_student+pot_student`."
            )
    asked = [[(question.id, question.answer) for question in r.questions] for r in (cot_student, pot_student)]
    if asked[0] != asked[1]:
        raise InputError(
            f"{cot_student.name!r} and {pot_student.name!r} were evaluated on different questions of "
            f"{cot_student.task}/{cot_student.split} ({len(asked[0]):,} and {len(asked[1]):,}), so they cannot vote "
            "together. Evaluate both with the same source, seeds and `--limit`."
        )
    n = min(cot_student.n, pot_student.n)
    questions = [
        QuestionResult(
            id=of_cot.id,
            answer=of_cot.answer,
            cot=of_cot.cot[:n],
            pot=of_pot.pot[:n],
            cot_logprob=of_cot.cot_logprob[:n],
            pot_logprob=of_pot.pot_logprob[:n],
            tokens=of_cot.tokens + of_pot.tokens,
            group=of_cot.group or of_pot.group,
        )
        for of_cot, of_pot in zip(cot_student.questions, pot_student.questions, strict=True)
    ]
    return EvaluationResult(
        name=name,
        model=f"{cot_student.model} + {pot_student.model}",
        task=cot_student.task,
        split=cot_student.split,
        settings={"cot": cot_student.settings, "pot": pot_student.settings},
        questions=questions,
    )


def is_ensemble(result: EvaluationResult) -> bool:
    """Return whether [`ensemble`] formed a result."""
    return {"cot", "pot"} == set(result.settings)


def share_answers(a: EvaluationResult, b: EvaluationResult) -> bool:
    """Return whether one is an ensemble, and the other a student of one path that is a part of it."""
    return any(
        is_ensemble(pair) and not student.has("joint") and any(_has_answers_of(pair, student, path) for path in PATHS)
        for pair, student in ((a, b), (b, a))
    )


def _has_answers_of(pair: EvaluationResult, student: EvaluationResult, path: str) -> bool:
    of_pair, of_student = ([(q.id, getattr(q, path)[: pair.n]) for q in r.questions] for r in (pair, student))
    return student.has(path) and of_pair == of_student


@dataclass(frozen=True)
class Comparison:
    r"""
    The difference between two students, paired by question.

    Args:
        a (`str`):
            Name of the first student.
        b (`str`):
            Name of the second student, the baseline.
        task (`str`), split (`str`):
            Task and split on which they are compared.
        figure (`str`):
            Figure that is compared, see [`FIGURES`].
        difference (`float`):
            Accuracy of `a` minus accuracy of `b`.
        low (`float`):
            Lower end of the 95% interval.
        high (`float`):
            Upper end of the 95% interval.
        votes (`float`):
            Number of samples per question of both, that of the one that has fewer; of `a` after early stopping.
        n_questions (`int`):
            Number of questions.
        seeds (`int`, *optional*, defaults to `1`):
            Number of training runs of each, see [`compare_seeds`].
        p_value (`float`, *optional*):
            Of McNemar's exact test that both are equally often right. `None` over several training runs.
        weights (`list[str]`, *optional*):
            What the votes of `a` and of `b` weigh, if `figure` is a joint vote and either is not that of Eq. 5, which
            is `none`.
        votes_b (`float`, *optional*):
            Number of samples per question of `b`, if it is another one because either stopped early.
    """

    a: str
    b: str
    task: str
    split: str
    figure: str
    difference: float
    low: float
    high: float
    votes: float
    n_questions: int
    seeds: int = 1
    p_value: float | None = None
    weights: list[str] | None = None
    votes_b: float | None = None


def compare(a: EvaluationResult, b: EvaluationResult, figure: str | None = None) -> Comparison | None:
    r"""
    Compare two students on the questions that both answered, at the same number of votes. If a stopping rule decided
    how many samples one of them has, each votes with its own.

    Args:
        a ([`EvaluationResult`]):
            The first student.
        b ([`EvaluationResult`]):
            The baseline.
        figure (`str`, *optional*):
            One of [`FIGURES`]. Defaults to the first one that both have.

    Returns:
        [`Comparison`] or `None`: The difference with its 95% paired bootstrap interval; `None` if the students share
        no figure or no question.
    """
    found = _differences(a, b, figure)
    if found is None:
        return None
    figure, votes, by_id = found
    differences = list(by_id.values())
    low, high = bootstrap_interval(differences)
    return Comparison(
        a=a.name,
        b=b.name,
        task=a.task,
        split=a.split,
        figure=figure,
        difference=sum(differences) / len(differences),
        low=low,
        high=high,
        votes=votes[0],
        votes_b=votes[1] if votes[1] != votes[0] else None,
        n_questions=len(differences),
        p_value=mcnemar(differences.count(1), differences.count(-1)),
        weights=_weights(figure, [a], [b]),
    )


def compare_seeds(
    name_a: str,
    name_b: str,
    pairs: Sequence[tuple[EvaluationResult, EvaluationResult]],
    figure: str | None = None,
) -> Comparison | None:
    r"""
    Compare two kinds of students over several training runs of each, on the questions that all of them answered.

    Args:
        name_a (`str`), name_b (`str`):
            Names of the kinds.
        pairs (`Sequence[tuple[EvaluationResult, EvaluationResult]]`):
            For each training run, the student and the baseline with the same seed.
        figure (`str`, *optional*):
            One of [`FIGURES`]. Defaults to the first one that the first pair has.

    Returns:
        [`Comparison`] or `None`: The mean difference with its 95% interval over seeds and questions, see
        [`~md_trl.intervals.two_level_interval`]; `None` if there is no pair, or the students share no figure or no
        question.
    """
    found = [_differences(a, b, figure) for a, b in pairs]
    if not found or any(of_pair is None for of_pair in found):
        return None
    shared = [id_ for id_ in found[0][2] if all(id_ in by_id for _, _, by_id in found)]
    if len(shared) < 2 or len({figure for figure, _, _ in found}) > 1:
        return None
    table = [[by_id[id_] for id_ in shared] for _, _, by_id in found]
    difference, low, high = two_level_interval(table)
    votes_a, votes_b = (sum(votes) / len(found) for votes in zip(*(votes for _, votes, _ in found), strict=True))
    figure, (first, _) = found[0][0], pairs[0]
    return Comparison(
        a=name_a,
        b=name_b,
        task=first.task,
        split=first.split,
        figure=figure,
        difference=difference,
        low=low,
        high=high,
        votes=votes_a,
        votes_b=votes_b if votes_b != votes_a else None,
        n_questions=len(shared),
        seeds=len(found),
        weights=_weights(figure, *zip(*pairs, strict=True)),
    )


def _weights(figure: str, *students: Sequence[EvaluationResult]) -> list[str] | None:
    found = [weights_note(results, figure) or "none" for results in students]
    return None if set(found) == {"none"} else found


def weights_note(results: Sequence[EvaluationResult], figure: str) -> str:
    """Return what the votes of a figure weigh in training runs of one kind, empty if they are those of Eq. 5."""
    if figure not in ("joint", JOINT_ALL) or not any(result.weights.to_settings() for result in results):
        return ""
    return " or ".join(sorted({str(result.weights) for result in results}))


def weights_suffix(results: Sequence[EvaluationResult], figure: str) -> str:
    """Return [`weights_note`] as the end of a table's cell, empty if there is none."""
    note = weights_note(results, figure)
    return note and f", weights: {note}"


def _differences(
    a: EvaluationResult, b: EvaluationResult, figure: str | None
) -> tuple[str, tuple[float, float], dict[str, int]] | None:
    """The figure, the number of votes of both, and by question whether only the first (1) or second (-1) is right."""
    if figure is None:
        figure = next((figure for figure in FIGURES if a.has(figure) and b.has(figure)), None)
    if figure is None or not (a.has(figure) and b.has(figure)) or (a.task, a.split) != (b.task, b.split):
        return None
    votes = a.votes(figure), b.votes(figure)
    if not (a.stops_early or b.stops_early):
        votes = min(votes), min(votes)
    correct_a, correct_b = (
        {q.id: correct for q, correct in zip(r.questions, r.correct(figure, int(n)), strict=True)}
        for r, n in zip((a, b), votes, strict=True)
    )
    by_id = {id_: correct_a[id_] - correct_b[id_] for id_ in correct_a if id_ in correct_b}
    return (figure, votes, by_id) if by_id else None


def mcnemar(only_a: int, only_b: int) -> float:
    r"""
    Return the p-value of McNemar's exact test: of questions that one of two students solves, each is as likely to be
    the one's as the other's.

    Args:
        only_a (`int`):
            Number of questions that only the first student solves.
        only_b (`int`):
            Number of questions that only the second student solves.

    Returns:
        `float`: Two-sided p-value, 1 if there is no such question.
    """
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**n)
