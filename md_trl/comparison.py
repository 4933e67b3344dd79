"""Ensembles of two students, and paired differences between students (Sec. 4).

One step of Mixed Distillation costs as much as one CoT step and one PoT step together. The fair baseline for a student
after S steps is therefore the ensemble of a CoT student and a PoT student after S steps each.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InputError
from .evaluation import FIGURES, EvaluationResult, QuestionResult
from .intervals import bootstrap_interval


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


@dataclass(frozen=True)
class Comparison:
    r"""
    The difference between two students, paired by question.

    Args:
        a (`str`):
            Name of the first student.
        b (`str`):
            Name of the second student, the baseline.
        task (`str`):
            Task on which they are compared.
        figure (`str`):
            Figure that is compared, see [`FIGURES`].
        difference (`float`):
            Accuracy of `a` minus accuracy of `b`.
        low (`float`):
            Lower end of the 95% interval.
        high (`float`):
            Upper end of the 95% interval.
    """

    a: str
    b: str
    task: str
    figure: str
    difference: float
    low: float
    high: float


def compare(a: EvaluationResult, b: EvaluationResult) -> Comparison | None:
    r"""
    Compare two students on the questions that both answered, at the same number of votes.

    The figure is the first of [`FIGURES`] that both have.

    Args:
        a ([`EvaluationResult`]):
            The first student.
        b ([`EvaluationResult`]):
            The baseline.

    Returns:
        [`Comparison`] or `None`: The difference with its 95% paired bootstrap interval; `None` if the students share
        no figure or no question.
    """
    figure = next((figure for figure in FIGURES if a.has(figure) and b.has(figure)), None)
    if figure is None or (a.task, a.split) != (b.task, b.split):
        return None
    votes = int(min(a.votes(figure), b.votes(figure)))
    correct_a, correct_b = (
        {q.id: correct for q, correct in zip(r.questions, r.correct(figure, votes), strict=True)} for r in (a, b)
    )
    differences = [correct_a[id_] - correct_b[id_] for id_ in correct_a if id_ in correct_b]
    if not differences:
        return None
    low, high = bootstrap_interval(differences)
    return Comparison(a.name, b.name, a.task, figure, sum(differences) / len(differences), low, high)
