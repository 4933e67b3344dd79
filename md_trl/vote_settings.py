r"""
What the votes of a student weigh and how often they are right, learned on held-out questions.

A vote of one path may deserve more than one of the other, and the share of the votes is not the probability of being
right: wrong answers scatter, so an answer with half of the votes may almost always be right. Both are learned from a
result of `md-trl eval` on questions that are not evaluated later, and kept in a file:

    md-trl calibrate --result results/md-svamp-validation-1a2b3c4d.json --output votes.json
    md-trl serve --model outputs/student --weights votes.json
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .errors import InputError
from .evaluation import EvaluationResult, QuestionResult
from .nearby import did_you_mean_file
from .replay import Calibration, available_weights, thoughts_per_question
from .stopping import Seen
from .voting import (
    WEIGHTS,
    Calibrator,
    Tally,
    VoteWeights,
    fit_calibrator,
    lead,
    learn_path_weights,
    tally,
)


FOLDS = 5
"""Parts of the questions in a cross-validation."""


@dataclass(frozen=True)
class VoteSettings:
    r"""
    Weights of votes and calibration of their confidence.

    Args:
        weights ([`~md_trl.voting.VoteWeights`]):
            What a vote weighs.
        calibrator ([`~md_trl.voting.Calibrator`], *optional*):
            Probability that the vote on a question is correct. Without it, the confidence is the share of the votes.
        learned_on (`dict[str, Any]`, *optional*):
            The result that they were learned on: `name`, `model`, `task`, `split`, `n` (thoughts per path) and
            `n_questions`.
    """

    weights: VoteWeights
    calibrator: Calibrator | None = None
    learned_on: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, weights: str | Path | VoteSettings) -> VoteSettings:
        r"""
        Return the settings that an argument names.

        Args:
            weights (`str` or `Path` or [`VoteSettings`]):
                `"none"`, `"likelihood"`, a file of `md-trl calibrate`, or what it holds.

        Returns:
            [`VoteSettings`]: The settings.

        Raises:
            [`~md_trl.errors.InputError`]: If it is neither of these.
        """
        if isinstance(weights, VoteSettings):
            return weights
        return cls(VoteWeights(weights)) if weights in WEIGHTS else cls.load(weights)

    def tally(self, seen: Seen) -> Tally:
        """Return the vote on a question, with its calibrated confidence if there is a calibrator."""
        result = tally(seen.cot, seen.pot, seen.cot_weights, seen.pot_weights)
        if self.calibrator is None:
            return result
        return replace(result, confidence=self.calibrator.probability(seen.tally()))

    def save(self, file: str | Path) -> None:
        r"""
        Write the settings to a JSON file.

        Args:
            file (`str` or `Path`):
                The file. Its folder is created if needed.

        Raises:
            [`~md_trl.errors.InputError`]: If the file holds something else.
        """
        file, text = Path(file), json.dumps(asdict(self), indent=1) + "\n"
        if file.exists() and file.read_text(encoding="utf-8") != text:
            raise InputError(f"{file} exists and holds something else. Choose another file, or delete it.")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, file: str | Path) -> VoteSettings:
        r"""
        Read settings that [`VoteSettings.save`] wrote.

        Args:
            file (`str` or `Path`):
                The file.

        Returns:
            [`VoteSettings`]: The settings.

        Raises:
            [`~md_trl.errors.InputError`]: If there is no such file, or it holds something else.
        """
        try:
            values = json.loads(Path(file).read_text(encoding="utf-8"))
            return cls(
                VoteWeights(**values["weights"]), Calibrator(**values["calibrator"]), dict(values["learned_on"])
            )
        except FileNotFoundError:
            raise InputError(
                f"`weights` is {str(file)!r}, which is neither {' nor '.join(map(repr, WEIGHTS))} nor a file of "
                f"`md-trl calibrate`.{did_you_mean_file(file)}"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file} is not a file of `md-trl calibrate` ({error!r}). Write it again.") from None


def learn_votes(result: EvaluationResult, weights: str = "likelihood") -> VoteSettings:
    r"""
    Learn the weight of each path, and how often votes are right, on held-out questions.

    The weights of the paths are those with which most votes over all thoughts are correct, see
    [`~md_trl.voting.learn_path_weights`]. The calibration is learned on the votes over the first 1, 2, ... thoughts of
    both paths, because a stopping rule may end a question after any of them.

    Args:
        result ([`~md_trl.evaluation.EvaluationResult`]):
            A result with thoughts of both paths, on questions that are not evaluated later.
        weights (`str`, *optional*, defaults to `"likelihood"`):
            What a vote weighs beside its path, one of [`~md_trl.voting.WEIGHTS`].

    Returns:
        [`VoteSettings`]: What was learned.

    Raises:
        [`~md_trl.errors.InputError`]: If the result lacks the thoughts of a path, stopped early, has no
            log-probabilities for likelihood weights, or all its votes are right or all are wrong.
    """
    settings, correct = _learn(result, weights)
    if len(set(correct)) == 1:
        raise InputError(
            f"Nothing can be calibrated: {'all' if correct[0] else 'none'} of the votes of {result.name!r} on "
            f"{len(result.questions):,} questions of {result.task}/{result.split} are right, so nothing tells right "
            "votes from wrong ones. Evaluate the student on "
            + ("more or harder questions." if correct[0] else "more questions, or train it longer first.")
        )
    return settings


def _learn(result: EvaluationResult, weights: str) -> tuple[VoteSettings, list[bool]]:
    """What [`learn_votes`] learns, and whether each vote that it learns from is right."""
    base = VoteWeights(weights)
    if not thoughts_per_question(result):
        raise InputError(
            f"{result.name!r} has a question without CoT or without PoT thoughts on {result.task}/{result.split}, or "
            "stopped early. Evaluate the student with `--paths cot pot` and without `--stop`."
        )
    if weights not in available_weights(result) and any(
        a is not None for q in result.questions for a in q.cot + q.pot
    ):
        raise InputError(
            f"The thoughts of {result.name!r} on {result.task}/{result.split} have no log-probabilities. Use weights "
            "'none', or evaluate with an engine that reports them."
        )
    weighed = [base.weigh(q.cot, q.pot, q.cot_logprob, q.pot_logprob) for q in result.questions]
    paths = learn_path_weights(
        [q.cot for q in result.questions],
        [q.pot for q in result.questions],
        [q.answer for q in result.questions],
        *zip(*weighed, strict=True),
    )
    learned = VoteSettings(replace(base, **paths))
    leads, correct, counts = [], [], []
    for question in result.questions:
        votes = [seen for k in range(1, result.n + 1) if (seen := _seen(question, learned.weights, k)).votes()]
        leads += [lead(seen.tally()) for seen in votes]
        correct += [question.is_correct(learned.tally(seen).answer) for seen in votes]
        counts += [1 / len(votes) for _ in votes]
    if not leads:
        raise InputError(f"No thought of {result.name!r} on {result.task}/{result.split} has an answer to learn from.")
    learned_on = {
        "name": result.name,
        "model": result.model,
        "task": result.task,
        "split": result.split,
        "n": result.n,
        "n_questions": len(result.questions),
    }
    return replace(learned, calibrator=fit_calibrator(leads, correct, counts), learned_on=learned_on), correct


def cross_validate(result: EvaluationResult, weights: str = "likelihood", folds: int = FOLDS) -> Calibration:
    r"""
    Estimate what learning the votes of a student brings: each part of the questions is scored with what was learned on
    the others.

    Args:
        result ([`~md_trl.evaluation.EvaluationResult`]), weights (`str`):
            As in [`learn_votes`].
        folds (`int`, *optional*, defaults to `5`):
            Number of parts. They are random, but the same in each run.

    Returns:
        [`~md_trl.replay.Calibration`]: Accuracy of the vote over all thoughts, and calibration of its confidence.

    Raises:
        [`~md_trl.errors.InputError`]: As in [`learn_votes`], and if there are fewer questions than parts.
    """
    if not 2 <= folds <= len(result.questions):
        raise InputError(f"`folds` is {folds} for {len(result.questions)} questions. Use at least 2, and not more.")
    # Random, because questions of one kind may come at regular places
    shuffled = random.Random(0).sample(result.questions, len(result.questions))
    confidences, correct = [], []
    for fold in range(folds):
        others = [question for i, question in enumerate(shuffled) if i % folds != fold]
        settings, _ = _learn(replace(result, questions=others), weights)  # a part may have right votes only
        for question in shuffled[fold::folds]:
            found = settings.tally(_seen(question, settings.weights))
            confidences.append(found.confidence)
            correct.append(question.is_correct(found.answer))
    return Calibration.of(f"{weights}, learned", confidences, correct)


def _seen(question: QuestionResult, weights: VoteWeights, k: int | None = None) -> Seen:
    """The first `k` thoughts of both paths, or all of them."""
    answers, logprobs = (question.cot[:k], question.pot[:k]), (question.cot_logprob[:k], question.pot_logprob[:k])
    return Seen(*answers, *weights.weigh(*answers, *logprobs))
