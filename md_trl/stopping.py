r"""
Stopping rules: when a question has enough thoughts, and which to sample next.

A rule sees the answers of a question so far and returns what to sample next, by path; nothing ends the question. It
has no state, so a caller can ask it about many unfinished questions at once, sample all that they want in one batch,
and ask again:

    wanted = {question: rule.next(seen) for question, seen in unfinished.items()}

The answer of a question is the vote over everything that was sampled for it (Eq. 5), whichever rule ended it. `n` is
the budget of a question: half of it on each path, and one CoT more if it is odd.

| rule | stops | guarantee |
| --- | --- | --- |
| [`Fixed`] | at n | the paper's joint figure |
| [`PotFirst`] | at 1 PoT, else 1 CoT | the paper's N=2 figure |
| [`Agreement`] | if 1 CoT and 1 PoT agree, else once the vote is safe | after the first round: that of [`Adaptive`] |
| [`Esc`] | if the thoughts of one window agree | error per window at most 2^(1 - window) without a majority answer |
| [`Adaptive`] | if the leading answer is the most likely one with a probability of `threshold` | that probability |

With weights in [`Seen`], [`Agreement`] and [`Adaptive`] compare the summed weights of the answers instead of their
numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .answers import NO_ANSWER, canonical
from .errors import InputError
from .posterior import beta_above_half, dirichlet_leads
from .records import PATHS, STUDENT_THOUGHTS, Thought
from .voting import VoteWeights


BUDGET = 2 * STUDENT_THOUGHTS
"""Thoughts per question by default, on both paths together (Sec. 4.4.2)."""

# Summed weights that differ by less are rounding
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Seen:
    r"""
    What has been sampled for a question so far.

    Args:
        cot (`Sequence`, *optional*, defaults to `()`):
            Answers of the CoT thoughts in sample order; `None`, the empty string and `nan` for unusable ones.
        pot (`Sequence`, *optional*, defaults to `()`):
            Answers of the PoT thoughts in sample order.
        cot_weights (`Sequence[float | None]`, *optional*):
            Weight of the vote of each CoT thought, between 0 and 1, such as its likelihood: exp(mean log-probability).
            Without weights every vote weighs 1, and so they do if a usable thought has none.
        pot_weights (`Sequence[float | None]`, *optional*):
            Weight of the vote of each PoT thought.

    Raises:
        `ValueError`: The weights of a path are not one per answer, or not between 0 and 1.
    """

    cot: Sequence[Any] = ()
    pot: Sequence[Any] = ()
    cot_weights: Sequence[float | None] | None = None
    pot_weights: Sequence[float | None] | None = None

    def __post_init__(self):
        for path, answers, weights in (("cot", self.cot, self.cot_weights), ("pot", self.pot, self.pot_weights)):
            if weights is None:
                continue
            if len(weights) != len(answers):
                raise InputError(f"`{path}_weights` has {len(weights)} entries for {len(answers)} answers.")
            for weight in weights:
                if weight is not None and not 0 <= weight <= 1:
                    raise InputError(f"`{path}_weights` has {weight}. A vote weighs between 0 and 1.")

    @classmethod
    def from_thoughts(
        cls, cot: Sequence[Thought], pot: Sequence[Thought], weights: str | VoteWeights = "none"
    ) -> Seen:
        r"""
        Take the answers of thoughts, and the weights of their votes.

        Args:
            cot (`Sequence[Thought]`):
                CoT thoughts whose answers were read, in sample order.
            pot (`Sequence[Thought]`):
                PoT thoughts whose answers were read, in sample order.
            weights (`str` or [`~md_trl.voting.VoteWeights`], *optional*, defaults to `"none"`):
                What the votes weigh.

        Returns:
            [`Seen`]: What has been sampled; without weights if a usable thought has no log-probability.
        """
        answers = [thought.answer for thought in cot], [thought.answer for thought in pot]
        logprobs = [thought.logprob for thought in cot], [thought.logprob for thought in pot]
        return cls(*answers, *VoteWeights.of(weights).weigh(*answers, *logprobs))

    def votes(self) -> list[tuple[str, float]]:
        """Canonical answer and weight of each usable thought, CoT before PoT: the joined list of Eq. 5."""
        votes = []
        for answers, weights in ((self.cot, self.cot_weights), (self.pot, self.pot_weights)):
            for answer, weight in zip(answers, [None] * len(answers) if weights is None else weights, strict=True):
                if (answer := canonical(answer)) not in NO_ANSWER:
                    votes.append((answer, weight))
        if any(weight is None for _, weight in votes):
            return [(answer, 1.0) for answer, _ in votes]
        return votes

    def tally(self) -> dict[str, float]:
        """Summed weight by answer, in the order of the joined list."""
        sums: dict[str, list[float]] = {}
        for answer, weight in self.votes():
            sums.setdefault(answer, []).append(weight)
        return {answer: math.fsum(weights) for answer, weights in sums.items()}

    def count(self, path: str) -> int:
        """Number of thoughts of a path, usable or not."""
        return len(self.cot if path == "cot" else self.pot)


class StoppingRule(Protocol):
    r"""
    Protocol of a stopping rule.

    Attributes:
        n (`int`):
            Maximum number of thoughts per question.
    """

    n: int

    def next(self, seen: Seen) -> dict[str, int]:
        """Return how many thoughts to sample next by path. Nothing if the question has enough."""
        ...


@dataclass(frozen=True)
class Fixed:
    r"""
    Samples n thoughts, half of them on each path, as for the joint figures of [Mixed
    Distillation](https://huggingface.co/papers/2312.10730), Sec. 4.4.2.

    Args:
        n (`int`, *optional*, defaults to `20`):
            Number of thoughts per question. If it is odd, CoT has one more.
    """

    n: int = BUDGET

    def __post_init__(self):
        _check_budget(self.n)

    def next(self, seen: Seen) -> dict[str, int]:
        """Ask for all thoughts that are missing."""
        return _round(self.n, seen, self.n)


@dataclass(frozen=True)
class PotFirst:
    r"""
    Samples one PoT, and one CoT only if its program does not run to an answer: the N=2 rule of [Mixed
    Distillation](https://huggingface.co/papers/2312.10730), Sec. 4.4.2.
    """

    n: int = 2

    def __post_init__(self):
        if self.n != 2:
            raise InputError(f"`n` is {self.n}, but the rule `pot_first` samples a PoT and at most one CoT. Use n=2.")

    def next(self, seen: Seen) -> dict[str, int]:
        """Ask for the PoT, then perhaps for the CoT."""
        if not seen.pot:
            return {"pot": 1}
        return {} if seen.cot or canonical(seen.pot[0]) not in NO_ANSWER else {"cot": 1}


@dataclass(frozen=True)
class Agreement:
    r"""
    Stops if one CoT and one PoT agree, else samples rounds of both until the vote is safe or the budget is spent.

    That two different ways of reasoning agree settles most questions: [9.3 times fewer samples, 78.6% of questions
    with two](https://huggingface.co/papers/2604.17433). After that, a vote is safe if the leading answer is the most
    likely one with a probability of `threshold`, as in [Adaptive-Consistency](https://huggingface.co/papers/2305.11860)
    (see [`Adaptive`]). The first round has no guarantee: it is wrong where both paths make the same mistake.

    With `threshold=1`, a vote is safe only if nothing that the rest of the budget could bring would change it, ties
    included. Then a question that does not stop after its first round has the same answer as with [`Fixed`]. With
    weights, the rest of the budget is taken to weigh 1 per thought, the most that a weight can be.

    Args:
        n (`int`, *optional*, defaults to `20`):
            Maximum number of thoughts per question.
        step (`int`, *optional*, defaults to `1`):
            Number of thoughts per path in each round after the first. More cost some thoughts and save rounds.
        threshold (`float`, *optional*, defaults to `0.8`):
            Posterior probability at which the vote is safe, between 0.5 and 1.
        sharpness (`float`, *optional*, defaults to `5.0`):
            Power of the weights in the posterior, at least 1: unlikely thoughts are seldom right, so they should not
            keep a question open. The vote itself takes the weights as they are. It and `threshold` were chosen on the
            two students of docs/inference.md.
    """

    n: int = BUDGET
    step: int = 1
    threshold: float = 0.8
    sharpness: float = 5.0

    def __post_init__(self):
        _check_budget(self.n)
        _check_at_least("step", self.step, 1)
        _check_at_least("sharpness", self.sharpness, 1)
        _check_threshold(self.threshold)

    def next(self, seen: Seen) -> dict[str, int]:
        """Ask for one thought of each path, then for `step` of each."""
        if not seen.cot or not seen.pot:
            return _round(self.n, seen, 1, only_missing=True)
        agreed = len(seen.cot) == len(seen.pot) == 1 and len(seen.votes()) == 2 and len(seen.tally()) == 1
        return {} if agreed or self._is_safe(seen) else _round(self.n, seen, self.step)

    def _is_safe(self, seen: Seen) -> bool:
        if self.threshold == 1:
            return is_safe(seen, self.n)
        if seen.cot_weights is not None and seen.pot_weights is not None:
            weights = (seen.cot_weights, seen.pot_weights)
            sharp = ([None if w is None else w**self.sharpness for w in of_path] for of_path in weights)
            seen = Seen(seen.cot, seen.pot, *sharp)
        return Adaptive(self.n, self.threshold).probability(seen) >= self.threshold


@dataclass(frozen=True)
class Esc:
    r"""
    Samples windows of thoughts, half of them on each path, and stops if all thoughts of a window agree:
    [Early-Stopping Self-Consistency](https://huggingface.co/papers/2401.10480).

    If no answer has a probability above 1/2 in the mixture of both paths, a window agrees by chance with a probability
    of at most 2^(1 - window). (An answer with the probabilities p and q on the two paths fills it with a probability
    of (pq)^(window/2), which is at most ((p+q)/2)^window.) An unusable thought agrees with nothing, and weights change
    nothing.

    Args:
        n (`int`, *optional*, defaults to `20`):
            Maximum number of thoughts per question.
        window (`int`, *optional*, defaults to `4`):
            Number of thoughts per window, an even number. With 2, this is cross-path agreement in every round.
    """

    n: int = BUDGET
    window: int = 4

    def __post_init__(self):
        _check_budget(self.n)
        _check_at_least("window", self.window, 2)
        if self.window % 2:
            raise InputError(f"`window` is {self.window}. Use an even number: half of a window is CoT, half is PoT.")

    def next(self, seen: Seen) -> dict[str, int]:
        """Ask for one window."""
        half = self.window // 2
        size = min(len(seen.cot), len(seen.pot))
        if size and size % half == 0 and len(seen.cot) == len(seen.pot):
            answers = {canonical(answer) for answer in (*seen.cot[-half:], *seen.pot[-half:])}
            if len(answers) == 1 and answers.isdisjoint(NO_ANSWER):
                return {}
        # A question that was begun by another rule is brought to the end of a window.
        wanted = _round(self.n, seen, half)
        return {path: min(count, half - seen.count(path) % half) for path, count in wanted.items()}


@dataclass(frozen=True)
class Adaptive:
    r"""
    Samples rounds of one CoT and one PoT until the leading answer is the most likely one with a probability of
    `threshold`: [Adaptive-Consistency](https://huggingface.co/papers/2305.11860).

    The posterior has a uniform prior and takes the thoughts as independent draws from one distribution, which is the
    mixture of both paths. Under these assumptions, the vote over ever more thoughts would be the answer at which the
    rule stops, with a probability of `threshold`. That says nothing of whether the answer is right. With weights, the
    votes are scaled so that they weigh 1 on average.

    Args:
        n (`int`, *optional*, defaults to `20`):
            Maximum number of thoughts per question.
        threshold (`float`, *optional*, defaults to `0.95`):
            Posterior probability at which to stop, between 0.5 and 1.
        posterior (`str`, *optional*, defaults to `"beta"`):
            `"beta"` compares the leading answer with the second one alone, `"dirichlet"` with all others, one of which
            has not been seen yet.
    """

    n: int = BUDGET
    threshold: float = 0.95
    posterior: str = "beta"

    def __post_init__(self):
        _check_budget(self.n)
        if self.threshold == 1:
            raise InputError(f"`threshold` is {self.threshold}, which no posterior reaches. Use less than 1.")
        _check_threshold(self.threshold)
        if self.posterior not in ("beta", "dirichlet"):
            raise InputError(f"`posterior` is {self.posterior!r}. Use 'beta' or 'dirichlet'.")

    def next(self, seen: Seen) -> dict[str, int]:
        """Ask for one thought of each path."""
        return {} if self._is_reached(self._parameters(seen)) else _round(self.n, seen, 1)

    def probability(self, seen: Seen) -> float:
        """Posterior probability that the leading answer is the most likely one; 0 if there is none."""
        if not (parameters := self._parameters(seen)):
            return 0.0
        first, *others = parameters
        if self.posterior == "beta":
            return beta_above_half(first, others[0])
        return dirichlet_leads(first, others)

    def _parameters(self, seen: Seen) -> list[float]:
        """Parameters of the posterior, the largest first and that of an unseen answer last; none without a vote."""
        tally = seen.tally()
        total = math.fsum(tally.values())
        if not total:
            return []
        scale = len(seen.votes()) / total
        return [*sorted((1 + scale * weight for weight in tally.values()), reverse=True), 1.0]

    def _is_reached(self, parameters: list[float]) -> bool:
        """
        Whether the probability is at least `threshold`. Its bounds decide most cases without an integral: to lead all
        others is no likelier than to lead the second, and at least as likely as the product of leading each one.
        """
        if not parameters:
            return False
        first, *others = parameters
        if (against_second := beta_above_half(first, others[0])) < self.threshold or self.posterior == "beta":
            return against_second >= self.threshold
        against_each = math.prod(beta_above_half(first, other) for other in others)
        return against_each >= self.threshold or dirichlet_leads(first, others) >= self.threshold


RULES: Mapping[str, Callable[..., StoppingRule]] = {
    "fixed": Fixed,
    "pot_first": PotFirst,
    "agreement": Agreement,
    "esc": Esc,
    "adaptive": Adaptive,
}
"""The rules by the names that the command line and [`MixedReasoner`] take."""


def rule_named(name: str, n: int = BUDGET) -> StoppingRule:
    r"""
    Return a rule with its defaults.

    Args:
        name (`str`):
            One of `fixed`, `pot_first`, `agreement`, `esc`, `adaptive`.
        n (`int`, *optional*, defaults to `20`):
            Maximum number of thoughts per question. `pot_first` has its own.

    Returns:
        [`StoppingRule`]: The rule.

    Raises:
        `ValueError`: There is no such rule, or `n` is below 1.

    Examples:

    ```python
    >>> from md_trl.stopping import Seen, rule_named

    >>> rule = rule_named("agreement", n=20)
    >>> rule.next(Seen())
    {'cot': 1, 'pot': 1}
    >>> rule.next(Seen(cot=["5"], pot=["5.0"]))
    {}
    ```
    """
    if name not in RULES:
        raise InputError(f"There is no stopping rule {name!r}. Choose one of {', '.join(RULES)}.")
    return PotFirst() if name == "pot_first" else RULES[name](n)


def take(rule: StoppingRule, all_: Seen) -> Seen:
    r"""
    Return the part of stored thoughts that a rule would have sampled.

    Args:
        rule ([`StoppingRule`]):
            The rule.
        all_ ([`Seen`]):
            All thoughts of a question, at least as many as the rule may ask for.

    Returns:
        [`Seen`]: The first thoughts of each path, at which the rule stops.

    Raises:
        `ValueError`: The rule asks for more thoughts than there are.
    """
    sizes = dict.fromkeys(PATHS, 0)
    while wanted := rule.next(seen := _first(all_, sizes)):
        for path, count in wanted.items():
            sizes[path] += count
            if sizes[path] > all_.count(path):
                raise InputError(
                    f"The rule asks for {sizes[path]} {path} thoughts and there are {all_.count(path)}. Use a smaller "
                    "`n`, or sample more."
                )
    return seen


def is_safe(seen: Seen, n: int) -> bool:
    r"""
    Return whether the vote of a question stays the same, whatever the rest of the budget brings.

    Args:
        seen ([`Seen`]):
            What has been sampled.
        n (`int`):
            Maximum number of thoughts per question.

    Returns:
        `bool`: Whether no answer, seen or not, could still win against the leading one. Ties count as in Eq. 5: they
        go to the answer that comes first in the joined list.
    """
    left = _round(n, seen, n)
    rest = sum(left.values())
    tally = seen.tally()
    if not tally or not rest:
        return not rest
    order = list(tally)
    leader = max(tally, key=tally.__getitem__)
    in_cot = {canonical(answer) for answer in seen.cot}
    for answer in [*order, None]:  # `None`: an answer that has not been seen
        if answer == leader:
            continue
        lead = tally[leader] - tally.get(answer, 0.0) - rest
        if lead < -_TOLERANCE:
            return False
        if lead <= _TOLERANCE:
            # A tie. The answer comes first if it is there already, or if a new CoT puts it before all PoT.
            before = answer is not None and order.index(answer) < order.index(leader)
            if before or (leader not in in_cot and left.get("cot")):
                return False
    return True


def _check_budget(n: int) -> None:
    _check_at_least("n", n, 1)


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"`{name}` is {value}. Use {least} or more.")


def _check_threshold(value: float) -> None:
    if not 0.5 <= value <= 1:
        raise InputError(f"`threshold` is {value}. Use a probability from 0.5 to 1.")


def _round(n: int, seen: Seen, per_path: int, only_missing: bool = False) -> dict[str, int]:
    """Up to `per_path` further thoughts of each path, within the budget; `only_missing`: up to it in all."""
    quota = {"cot": n - n // 2, "pot": n // 2}
    wanted = {}
    for path in PATHS:
        count = seen.count(path)
        room = min(quota[path], per_path) - count if only_missing else min(quota[path] - count, per_path)
        if room > 0:
            wanted[path] = room
    return wanted


def _first(seen: Seen, sizes: Mapping[str, int]) -> Seen:
    cot, pot = sizes["cot"], sizes["pot"]
    return Seen(
        seen.cot[:cot],
        seen.pot[:pot],
        None if seen.cot_weights is None else seen.cot_weights[:cot],
        None if seen.pot_weights is None else seen.pot_weights[:pot],
    )
