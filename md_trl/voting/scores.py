"""Scores of the votes over many questions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..answers import NO_ANSWER, canonical
from ..errors import InputError
from ..intervals import CONFIDENCE_LEVEL, share_interval
from .votes import check_tie_break, join, majority, most_frequent, vote
from .weights import check_weights


_MEMO_SIZE = 65_536
_MEMO_CHARS = 100


def score(
    cot: Sequence[Sequence[Any]],
    pot: Sequence[Sequence[Any]],
    references: Sequence[Any],
    cot_weights: Sequence[Sequence[float] | None] | None = None,
    pot_weights: Sequence[Sequence[float] | None] | None = None,
    tie_break: str = "cot",
    bootstrap: int = 0,
    seed: int = 0,
    confidence_level: float = CONFIDENCE_LEVEL,
) -> dict[str, float]:
    r"""
    Score the vote of each path and the joint vote against the gold answers.

    Args:
        cot (`list[list]`):
            For each question, the answers of its CoT thoughts in sample order. An empty list if none were sampled.
        pot (`list[list]`):
            For each question, the answers of its PoT thoughts in sample order. An empty list if none were sampled.
        references (`list`):
            For each question, the gold answer.
        cot_weights (`list[list[float]]`, *optional*):
            For each question, one weight per CoT answer, see [`vote`]. Defaults to 1 for each answer; so does `None`
            in place of the weights of one question.
        pot_weights (`list[list[float]]`, *optional*):
            For each question, one weight per PoT answer.
        tie_break (`str`, *optional*, defaults to `"cot"`):
            Path whose answers come first in the joint vote and so win ties: `"cot"` (Eq. 5) or `"pot"`.
        bootstrap (`int`, *optional*, defaults to `0`):
            Number of resamples of the questions for intervals of the accuracies. `0` computes no intervals.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resamples.
        confidence_level (`float`, *optional*, defaults to `0.95`):
            Share of the resamples that lie within an interval.

    Returns:
        `dict[str, float]`: These scores. Shares are between 0 and 1, and a question without a usable answer counts as
        wrong.

        - `accuracy`: share of questions whose joint vote (Eq. 5) is correct.
        - `cot_accuracy`: share of questions whose CoT vote is correct.
        - `pot_accuracy`: share of questions whose PoT vote is correct.
        - `both`: share of questions whose CoT and PoT votes are both correct (`QuestionType.BOTH`).
        - `cot_only`: share of questions whose CoT vote alone is correct (`QuestionType.COT_ONLY`).
        - `pot_only`: share of questions whose PoT vote alone is correct (`QuestionType.POT_ONLY`).
        - `neither`: share of questions whose CoT and PoT votes are both wrong (`QuestionType.NEITHER`).
        - `abstained`: share of questions without a usable answer on either path.
        - `n_questions`: number of questions.
        - `mean_votes`: mean number of usable answers per question, both paths together.
        - `accuracy_low`, `accuracy_high` and the same for `cot_accuracy` and `pot_accuracy`, only if `bootstrap` is
          not 0: the percentile bootstrap interval over questions, or Wilson's where all or none are correct.

    Raises:
        [`~md_trl.errors.InputError`]: If the lists differ in length or are empty, if the answers to a question are not
            a list, or if a weight or an option is invalid.
    """
    check_tie_break(tie_break)
    given = {"cot": cot, "pot": pot, "references": references, "cot_weights": cot_weights, "pot_weights": pot_weights}
    check_lengths(given)
    marks = _mark(cot, pot, references, cot_weights, pot_weights, tie_break)
    by_cot, by_pot, n = marks.correct["cot_accuracy"], marks.correct["pot_accuracy"], len(references)
    both = sum(map(bool.__and__, by_cot, by_pot))
    either = sum(map(bool.__or__, by_cot, by_pot))
    scores = {name: sum(correct) / n for name, correct in marks.correct.items()} | {
        "both": both / n,
        "cot_only": (sum(by_cot) - both) / n,
        "pot_only": (sum(by_pot) - both) / n,
        "neither": (n - either) / n,
        "abstained": marks.abstained / n,
        "n_questions": n,
        "mean_votes": marks.votes / n,
    }
    if bootstrap:
        scores |= _intervals(marks.correct, bootstrap, seed, confidence_level)
    return scores


def score_flat(
    predictions: Sequence[Any],
    references: Sequence[Any],
    bootstrap: int = 0,
    seed: int = 0,
    confidence_level: float = CONFIDENCE_LEVEL,
) -> dict[str, float]:
    r"""
    Score one answer per question against the gold answers.

    Args:
        predictions (`list`):
            For each question, one answer. An unusable answer counts as wrong.
        references (`list`):
            For each question, the gold answer.
        bootstrap (`int`, *optional*, defaults to `0`):
            Number of resamples of the questions for an interval of the accuracy. `0` computes no interval.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resamples.
        confidence_level (`float`, *optional*, defaults to `0.95`):
            Share of the resamples that lie within the interval.

    Returns:
        `dict[str, float]`: These scores.

        - `accuracy`: share of questions whose answer is correct.
        - `abstained`: share of questions without a usable answer.
        - `n_questions`: number of questions.
        - `accuracy_low`, `accuracy_high`: the interval as in [`score`], only if `bootstrap` is not 0.

    Raises:
        [`~md_trl.errors.InputError`]: If the two lists differ in length or are empty, or if an option is invalid.
    """
    check_lengths({"predictions": predictions, "references": references})
    forms = _Forms()
    answers = [_form(answer, forms) for answer in predictions]
    correct = [answer != "" and answer == _form(gold, forms) for answer, gold in zip(answers, references, strict=True)]
    n = len(references)
    scores = {"accuracy": sum(correct) / n, "abstained": answers.count("") / n, "n_questions": n}
    if bootstrap:
        scores |= _intervals({"accuracy": correct}, bootstrap, seed, confidence_level)
    return scores


@dataclass
class _Marks:
    """Which questions each vote answers correctly, and counts over all questions."""

    correct: dict[str, list[bool]] = field(
        default_factory=lambda: {"accuracy": [], "cot_accuracy": [], "pot_accuracy": []}
    )
    abstained: int = 0
    votes: int = 0


def _mark(
    cot: Sequence[Sequence[Any]],
    pot: Sequence[Sequence[Any]],
    references: Sequence[Any],
    cot_weights: Sequence[Sequence[float] | None] | None,
    pot_weights: Sequence[Sequence[float] | None] | None,
    tie_break: str,
) -> _Marks:
    """Compare the votes on each question with its gold answer."""
    marks, forms = _Marks(), _Forms()
    weighted = cot_weights is not None or pot_weights is not None
    for i, reference in enumerate(references):
        of_cot, of_pot = _usable(cot[i], forms, "cot", i), _usable(pot[i], forms, "pot", i)
        if weighted:
            weights = [
                check_weights(None if given is None else given[i], answers[i], f"{name}[{i}]")
                for name, given, answers in (("cot_weights", cot_weights, cot), ("pot_weights", pot_weights, pot))
            ]
            votes = (
                vote(cot[i], pot[i], *weights, tie_break),
                majority(cot[i], weights[0]),
                majority(pot[i], weights[1]),
            )
        else:
            votes = most_frequent(join(of_cot, of_pot, tie_break)), most_frequent(of_cot), most_frequent(of_pot)
        gold = _form(reference, forms)
        for correct, answer in zip(marks.correct.values(), votes, strict=True):
            correct.append(answer == gold)
        marks.abstained += not of_cot and not of_pot
        marks.votes += len(of_cot) + len(of_pot)
    return marks


class _Forms(dict):
    """Canonical form of each text seen, empty if the text is no answer. Most answers occur many times."""

    def __missing__(self, text: str) -> str:
        form = canonical(text)
        form = "" if form in NO_ANSWER else form
        if len(text) <= _MEMO_CHARS:
            if len(self) >= _MEMO_SIZE:
                self.clear()
            self[text] = form
        return form


def _form(answer: Any, forms: _Forms) -> str:
    """Return the canonical form of an answer, empty if it is none."""
    # Only texts are looked up, since 1 and True are the same key of a dict.
    if type(answer) is str:
        return forms[answer]
    form = canonical(answer)
    return "" if form in NO_ANSWER else form


def _usable(answers: Iterable[Any], forms: _Forms, name: str, i: int) -> list[str]:
    """Return the canonical forms of the answers to question `i` that may vote."""
    if isinstance(answers, str) or not isinstance(answers, Iterable):
        raise InputError(
            f"{name}[{i}] is {answers!r}, but must be the list of the answers to question {i}, for example ['5', '6']."
        )
    if set(map(type, answers)) == {str}:
        return list(filter(None, map(forms.__getitem__, answers)))
    return [form for answer in answers if (form := _form(answer, forms))]


def check_lengths(given: dict[str, Sequence[Any] | None]) -> None:
    """Raise an error if the lists do not have one entry for each question, or if there is no question."""
    lengths = {name: len(values) for name, values in given.items() if values is not None}
    names, counts = _enumerate(list(lengths)), _enumerate(list(map(str, lengths.values())))
    if len(set(lengths.values())) > 1:
        raise InputError(
            f"{names} must have one entry per question, but have {counts} entries. An empty list stands for a "
            "question without answers on a path."
        )
    if not lengths["references"]:
        raise InputError(f"There is no question to score: {names} are empty.")


def _enumerate(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _intervals(correct: dict[str, list[bool]], resamples: int, seed: int, confidence_level: float) -> dict[str, float]:
    intervals = {}
    for name, values in correct.items():
        low, high = share_interval(values, resamples, seed, confidence_level)
        intervals |= {f"{name}_low": low, f"{name}_high": high}
    return intervals
