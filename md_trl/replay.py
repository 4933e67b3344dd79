r"""
Stopping rules on stored thoughts: how accurate each would have been, and how many samples it would have taken.

A result keeps every answer of a student with its log-probability, so a stopping rule can be judged without sampling:
the thoughts of a question are put into random orders, the rule takes from the beginning of each order what it asks
for, and the question's score is the mean over the orders. All rules see the same orders, so that they can be compared
question by question, and intervals are over questions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields

from . import stopping
from .answers import NO_ANSWER, canonical
from .errors import InputError, check_at_least_one
from .evaluation import EvaluationResult, QuestionResult
from .intervals import bootstrap_interval, share_interval
from .stopping import RULES, Adaptive, Agreement, Esc, Fixed, PotFirst, Seen, StoppingRule
from .voting import (
    WEIGHTS,
    ReliabilityBin,
    VoteWeights,
    expected_calibration_error,
    has_likelihoods,
    reliability_bins,
    tally,
    vote,
)


SUBSETS = 50
"""Random orders of the thoughts of a question by default."""


@dataclass(frozen=True)
class Replayed:
    r"""
    What a stopping rule would have done with stored thoughts.

    Shares are between 0 and 1. Ends of intervals are those of the 95% bootstrap over questions.

    Args:
        rule (`str`):
            The rule, with the parameters that differ from their defaults.
        weights (`str`):
            What votes weigh.
        accuracy (`float`), low (`float`), high (`float`):
            Share of questions whose vote is correct, with its interval.
        mean_samples (`float`), mean_samples_low (`float`), mean_samples_high (`float`):
            Thoughts per question, with its interval.
        mean_tokens (`float`, *optional*):
            Completion tokens per question, if thoughts that are not drawn are as long as the others of their question.
            `None` if the result does not count tokens.
        loss (`float`), loss_low (`float`), loss_high (`float`):
            Accuracy of the vote of Eq. 5 over `budget` thoughts minus `accuracy`, paired by question, with its
            interval. Negative if the rule is better.
        budget (`int`):
            Thoughts per question of the vote that the rule is compared with.
    """

    rule: str
    weights: str
    accuracy: float
    low: float
    high: float
    mean_samples: float
    mean_samples_low: float
    mean_samples_high: float
    mean_tokens: float | None
    loss: float
    loss_low: float
    loss_high: float
    budget: int


@dataclass(frozen=True)
class Calibration:
    r"""
    Whether the confidence of the joint vote over all stored thoughts can be trusted.

    Args:
        weights (`str`):
            What votes weigh.
        accuracy (`float`):
            Share of questions whose vote is correct.
        error (`float`):
            Expected calibration error, see [`~md_trl.voting.expected_calibration_error`].
        bins (`list[ReliabilityBin]`):
            The reliability diagram, see [`~md_trl.voting.reliability_bins`].
    """

    weights: str
    accuracy: float
    error: float
    bins: list[ReliabilityBin]

    @classmethod
    def of(cls, weights: str, confidences: Sequence[float], correct: Sequence[bool]) -> Calibration:
        """Compare the confidence of the vote on each question with whether it is correct."""
        error = expected_calibration_error(confidences, correct)
        return cls(weights, sum(correct) / len(correct), error, reliability_bins(confidences, correct))


def replay(
    result: EvaluationResult,
    rule: StoppingRule,
    weights: str | VoteWeights = "none",
    subsets: int = SUBSETS,
    seed: int = 0,
    budget: int | None = None,
) -> Replayed:
    r"""
    Replay a stopping rule on the stored thoughts of a student.

    Args:
        result ([`~md_trl.evaluation.EvaluationResult`]):
            A result with thoughts of both paths.
        rule ([`~md_trl.stopping.StoppingRule`]):
            The rule. It may ask for at most as many thoughts as there are.
        weights (`str` or [`~md_trl.voting.VoteWeights`], *optional*, defaults to `"none"`):
            What votes weigh, in the rule and in the final vote.
        subsets (`int`, *optional*, defaults to `50`):
            Number of orders of the thoughts of each question. The first one is the order in which they were sampled,
            the others are random; CoT and PoT thoughts are shuffled apart.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the orders. Those of a question do not depend on the other questions.
        budget (`int`, *optional*):
            Thoughts per question of the vote that the rule is compared with. Defaults to all thoughts.

    Returns:
        [`Replayed`]: Accuracy, samples and loss.

    Raises:
        [`~md_trl.errors.InputError`]: If the result has no thoughts of both paths, if the rule asks for more thoughts
            than a question has, or if the thoughts have no log-probabilities to weigh them by.

    Examples:

    ```python
    >>> from md_trl.evaluation import EvaluationResult
    >>> from md_trl.replay import replay
    >>> from md_trl.stopping import Agreement

    >>> result = EvaluationResult.load("results/md-stories-test-0f1e2d3c.json")
    >>> found = replay(result, Agreement(n=20), weights="likelihood")
    >>> found.accuracy, found.mean_samples, found.loss
    ```
    """
    [replayed] = replay_all(result, [rule], [weights], subsets, seed, budget)
    return replayed


def replay_all(
    result: EvaluationResult,
    rules: Sequence[StoppingRule] | None = None,
    weights: Sequence[str | VoteWeights] | None = None,
    subsets: int = SUBSETS,
    seed: int = 0,
    budget: int | None = None,
    progress: Callable[[Sequence], Sequence] = lambda pairs: pairs,
) -> list[Replayed]:
    r"""
    Replay several rules, each with several weights, on the same orders of the thoughts.

    Args:
        result ([`~md_trl.evaluation.EvaluationResult`]), subsets (`int`), seed (`int`), budget (`int`):
            As in [`replay`].
        rules (`Sequence[StoppingRule]`, *optional*):
            The rules. Defaults to [`study_rules`] for the budget.
        weights (`Sequence[str | VoteWeights]`, *optional*):
            The weights. Defaults to all of [`~md_trl.voting.WEIGHTS`] for which the result has what they need.
        progress (`Callable`, *optional*):
            Wraps the list of pairs of rule and weights while they are replayed, for example `tqdm`.

    Returns:
        `list[Replayed]`: One entry per rule and weights: all rules with the first weights, then with the next ones.

    Raises:
        [`~md_trl.errors.InputError`]: As for [`replay`].
    """
    check_at_least_one("subsets", subsets)
    if not (available := thoughts_per_question(result)):
        raise InputError(
            f"{result.name!r} has a question without CoT or without PoT thoughts on {result.task}/{result.split}, or "
            "stopped early, so no stopping rule can be replayed. Evaluate the student with `--paths cot pot` and "
            "without `--stop`."
        )
    budget = available if budget is None else budget
    rules = study_rules(budget) if rules is None else rules
    weights = available_weights(result) if weights is None else weights
    orders = {kind: _orders(result, kind, subsets, seed) for kind in dict.fromkeys(["none", *weights])}
    fixed = [correct for correct, _ in _play(result, orders["none"], Fixed(budget))]
    return [
        _summary(result, rule, str(kind), _play(result, orders[kind], rule), fixed, budget)
        for kind, rule in progress([(kind, rule) for kind in weights for rule in rules])
    ]


def study_rules(n: int) -> list[StoppingRule]:
    r"""
    Return the rules of the table that compares them.

    Args:
        n (`int`):
            Maximum number of thoughts per question.

    Returns:
        `list[StoppingRule]`: Every rule with its defaults, fixed numbers of thoughts below `n`, and variants.
    """
    return [
        *(Fixed(k) for k in (2, 4, 6, 10) if k < n),
        Fixed(n),
        PotFirst(),
        Agreement(n),
        Agreement(n, threshold=1),
        Esc(n, window=2),
        Esc(n),
        Adaptive(n, threshold=0.8),
        Adaptive(n),
        Adaptive(n, posterior="dirichlet"),
    ]


def rule_title(rule: StoppingRule, budget: int = stopping.BUDGET) -> str:
    r"""
    Return the name of a rule, with the parameters that differ from their defaults.

    Args:
        rule ([`~md_trl.stopping.StoppingRule`]):
            The rule.
        budget (`int`, *optional*, defaults to `20`):
            Value of `n` that is not mentioned.

    Returns:
        `str`: For example `fixed (n=10)`; the `repr` of a rule that is not one of [`~md_trl.stopping.RULES`].
    """
    names = {kind: name for name, kind in RULES.items()}
    if type(rule) not in names:
        return repr(rule)
    defaults = {field.name: field.default for field in fields(rule)} | ({} if rule == PotFirst() else {"n": budget})
    changed = [f"{name}={value}" for name, value in asdict(rule).items() if value != defaults[name]]
    return f"{names[type(rule)]} ({', '.join(changed)})" if changed else names[type(rule)]


def thoughts_per_question(result: EvaluationResult) -> int:
    r"""
    Return the largest budget, half of it on each path, for which every question of a result has the thoughts.

    After early stopping it is 0: the number of thoughts depends on the answers, so random orders would mislead.
    """
    if result.stops_early:
        return 0
    return 2 * min(min(len(question.cot), len(question.pot)) for question in result.questions)


def available_weights(result: EvaluationResult) -> list[str]:
    """Return the weights that a result allows: `likelihood` needs a question whose usable thoughts all have one."""
    return [kind for kind in WEIGHTS if kind == "none" or any(map(_has_likelihoods, result.questions))]


def calibration(result: EvaluationResult, weights: str | VoteWeights = "none") -> Calibration:
    r"""
    Compare the confidence of the joint vote over all stored thoughts with its accuracy.

    Args:
        result ([`~md_trl.evaluation.EvaluationResult`]):
            A result with thoughts.
        weights (`str` or [`~md_trl.voting.VoteWeights`], *optional*, defaults to `"none"`):
            What votes weigh.

    Returns:
        [`Calibration`]: Expected calibration error and reliability diagram.

    Raises:
        [`~md_trl.errors.InputError`]: If the thoughts have no log-probabilities to weigh them by.
    """
    votes = [
        tally(seen.cot, seen.pot, seen.cot_weights, seen.pot_weights)
        for [seen] in _orders(result, weights, subsets=1, seed=0)
    ]
    confidences = [found.confidence for found in votes]
    correct = [question.is_correct(found.answer) for question, found in zip(result.questions, votes, strict=True)]
    return Calibration.of(str(weights), confidences, correct)


def _has_likelihoods(question: QuestionResult) -> bool:
    """Whether there are usable thoughts, and all have a log-probability. An ensemble may have none at all."""
    pairs = [(question.cot_logprob, question.cot), (question.pot_logprob, question.pot)]
    return any(answer is not None for _, answers in pairs for answer in answers) and all(
        len(logprobs) == len(answers) and has_likelihoods(logprobs, answers) for logprobs, answers in pairs
    )


def _orders(result: EvaluationResult, weights: str | VoteWeights, subsets: int, seed: int) -> list[list[Seen]]:
    """The thoughts of each question in each order. Answers are in canonical form, `None` if unusable."""
    import numpy

    weights = VoteWeights.of(weights)
    if weights.kind not in available_weights(result):
        raise InputError(
            f"The thoughts of {result.name!r} on {result.task}/{result.split} have no log-probabilities, so they "
            "cannot be weighed by likelihood. Use weights='none', or evaluate with an engine that reports them."
        )
    orders = []
    for question in result.questions:
        digest = hashlib.sha256(f"{seed}/{question.id}".encode()).digest()
        generator = numpy.random.default_rng(int.from_bytes(digest[:8], "big"))
        answers = [_forms(question.cot), _forms(question.pot)]
        weighed = weights.weigh(*answers, question.cot_logprob, question.pot_logprob)
        by_path = []
        for of_path, weights_of_path in zip(answers, weighed, strict=True):
            places = numpy.tile(numpy.arange(len(of_path)), (subsets, 1))
            places[1:] = generator.permuted(places[1:], axis=1)
            by_path.append(
                [
                    ([of_path[i] for i in order], weights_of_path and [weights_of_path[i] for i in order])
                    for order in places.tolist()
                ]
            )
        orders.append([Seen(cot, pot, c, p) for (cot, c), (pot, p) in zip(*by_path, strict=True)])
    return orders


def _forms(answers: Sequence[str | None]) -> list[str | None]:
    forms = map(canonical, answers)
    return [None if form in NO_ANSWER else form for form in forms]


def _play(result: EvaluationResult, orders: list[list[Seen]], rule: StoppingRule) -> list[tuple[float, float]]:
    """For each question, the share of orders with a correct vote, and the mean number of samples."""
    outcomes = []
    for question, of_question in zip(result.questions, orders, strict=True):
        gold = canonical(question.answer)
        known: dict[tuple, tuple[bool, int]] = {}
        correct = samples = 0
        for order in of_question:
            # Without weights, many orders of a question have the same answers in the same places.
            key = (*order.cot, *order.pot) if order.cot_weights is None else None
            if key not in known or key is None:
                try:
                    seen = stopping.take(rule, order)
                except InputError as error:
                    raise InputError(f"{question.id!r}: {error}") from None
                answer = vote(seen.cot, seen.pot, seen.cot_weights, seen.pot_weights)
                known[key] = answer is not None and answer == gold, len(seen.cot) + len(seen.pot)
            is_correct, size = known[key]
            correct += is_correct
            samples += size
        outcomes.append((correct / len(of_question), samples / len(of_question)))
    return outcomes


def _summary(
    result: EvaluationResult,
    rule: StoppingRule,
    weights: str,
    outcomes: list[tuple[float, float]],
    fixed: list[float],
    budget: int,
) -> Replayed:
    correct, samples = zip(*outcomes, strict=True)
    losses = [of_fixed - of_rule for of_fixed, of_rule in zip(fixed, correct, strict=True)]
    size = len(correct)
    tokens = [
        question.tokens * drawn / (len(question.cot) + len(question.pot) + len(question.cot_pot))
        for question, drawn in zip(result.questions, samples, strict=True)
    ]
    return Replayed(
        rule_title(rule, budget),
        weights,
        sum(correct) / size,
        *share_interval(correct),
        sum(samples) / size,
        *bootstrap_interval(samples),
        sum(tokens) / size if all(question.tokens for question in result.questions) else None,
        sum(losses) / size,
        *bootstrap_interval(losses),
        budget,
    )
