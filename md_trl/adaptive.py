r"""
Adaptive sampling: a few thoughts of each question first, more only where its type or its lambda is still open.

The paper samples n = 20 thoughts a path of every question. This goes beyond it. After the first k of n thoughts of a
path, the n that a full run would have are a finite population, and the k a random sample of it: samples are
exchangeable, whatever the teacher. With H(n, m, k) for the number of marked ones among k drawn from n with m marked:

- **The vote stands** if 2 P(H(n, floor(n/2), k) >= c) <= d for c thoughts with the leading answer. Were no answer's
  count in the full run above n/2, one with c or more among the first k would have a probability of that at most (the
  answers that can be fall into two groups of n/2 or less each). Above n/2 it wins.
- **The gold answer cannot win** if P(H(n, max(l, 1), k) <= c) <= d for c thoughts with the gold answer and l with the
  most frequent other one: to win, it needs at least as many as the other has already.
- **Lambda** = n2 / (n1 + n2), which counts in type 3 only, is settled if it moves by at most `tolerance` as n1 and n2
  of the full run range over the numbers m that the first k do not refute: both tails of H(n, m, k) are above d / 2.

A question is settled if either of the first two holds on both paths and, in type 3, the third as well. There are a few
looks. The first one may spend half of `delta`, the next one half of what is left, the last one all of it; d is a
quarter of that, as there are two paths and two ways to be wrong. By the union bound the type of a question differs
from the type of its full run with a probability of at most `delta`; and its lambda moves by more than `tolerance` with
one of at most `delta`. Both paths of a question always have the same number of thoughts: lambda would lean to the
longer one otherwise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from .errors import InputError
from .records import PATHS, Question, Thought
from .sampling.engines import Engine, Prompt
from .sampling.sampler import SampleSummary, sample
from .store import Selection, Store


@dataclass(frozen=True)
class AdaptiveRule:
    r"""
    When a question has thoughts enough.

    Args:
        delta (`float`, *optional*, defaults to `0.1`):
            The most that the probability may be that a question's type differs from that of a full run.
        tolerance (`float`, *optional*, defaults to `0.2`):
            How far lambda may be from that of a full run, where it counts.
        looks (`tuple[float, ...]`, *optional*, defaults to `(0.3, 0.5, 0.7)`):
            When to look, in shares of n.
    """

    delta: float = 0.1
    tolerance: float = 0.2
    looks: tuple[float, ...] = (0.3, 0.5, 0.7)

    def __post_init__(self):
        if not 0 < self.delta < 1:
            raise InputError(f"`delta` is {self.delta}. Use a probability between 0 and 1.")
        if not 0 < self.tolerance <= 1:
            raise InputError(f"`tolerance` is {self.tolerance}. Use a number above 0, up to 1.")
        if list(self.looks) != sorted(set(self.looks)) or not all(0 < look < 1 for look in self.looks):
            raise InputError(f"`looks` is {self.looks}. Use growing shares between 0 and 1.")

    def counts(self, n: int) -> list[int]:
        """After how many thoughts of a path to look, below n."""
        return sorted({k for look in self.looks if 0 < (k := math.ceil(look * n)) < n})

    def share(self, n: int, k: int) -> float:
        """The part of `delta` that the look after k thoughts has."""
        counts = self.counts(n)
        look = counts.index(k)
        return self.delta / 2 ** min(look + 1, len(counts) - 1) if len(counts) > 1 else self.delta

    def settled(self, n: int, k: int, gold: str, cot: Sequence[str | None], pot: Sequence[str | None]) -> bool:
        r"""
        Whether a question needs no more thoughts.

        Args:
            n (`int`):
                Thoughts a path of a full run.
            k (`int`):
                Thoughts a path so far, one of `counts(n)`.
            gold (`str`):
                Gold answer, in canonical form like the others.
            cot (`Sequence[str]`), pot (`Sequence[str]`):
                Answers of the k thoughts of each path, `None` for an unusable one.

        Returns:
            `bool`: whether its type is settled, and in type 3 its lambda too.
        """
        share = self.share(n, k)
        solved = [_solved(n, k, gold, answers, share / 4) for answers in (cot, pot)]
        if None in solved:
            return False
        if not all(solved):
            return True
        (low1, high1), (low2, high2) = (_range(n, k, answers.count(gold), share / 4) for answers in (cot, pot))
        n1, n2 = cot.count(gold), pot.count(gold)
        now = n2 / (n1 + n2)
        return max(now - low2 / (high1 + low2), high2 / (low1 + high2) - now) <= self.tolerance


def _solved(n: int, k: int, gold: str, answers: Sequence[str | None], d: float) -> bool | None:
    """Whether the path will solve the question, `None` while that is open."""
    counts = Counter(answer for answer in answers if answer is not None)
    if counts:
        leader, count = counts.most_common(1)[0]
        if 2 * _at_least(n, n // 2, k, count) <= d:
            return leader == gold
    other = max((count for answer, count in counts.items() if answer != gold), default=0)
    if 1 - _at_least(n, max(other, 1), k, counts[gold] + 1) <= d:
        return False
    return None


@cache
def _at_least(n: int, marked: int, k: int, count: int) -> float:
    """P(H(n, marked, k) >= count)."""
    ways = sum(math.comb(marked, i) * math.comb(n - marked, k - i) for i in range(max(count, 0), min(marked, k) + 1))
    return ways / math.comb(n, k)


@cache
def _range(n: int, k: int, count: int, d: float) -> tuple[int, int]:
    """The least and the most marked ones of n that `count` among the first k do not refute at level d."""
    possible = [
        marked
        for marked in range(count, n - k + count + 1)
        if _at_least(n, marked, k, count) > d / 2 and 1 - _at_least(n, marked, k, count + 1) > d / 2
    ]
    return min(possible), max(possible)


def sample_adaptively(
    questions: Sequence[Question],
    n: int,
    engine: Engine,
    store: Store,
    prompt: Callable[[Question, str], Prompt],
    judge: Callable[[Iterable[Thought]], list[Thought]],
    rule: AdaptiveRule | None = None,
    **parameters,
) -> SampleSummary:
    r"""
    Bring every question to as many samples on both paths as its type and lambda need, `n` at most.

    Args:
        questions (`Sequence[Question]`), n (`int`), engine ([`~md_trl.sampling.engines.Engine`]), store ([`Store`]),
        prompt (`Callable`):
            As in [`~md_trl.sampling.sampler.sample`].
        judge (`Callable[[Iterable[Thought]], list[Thought]]`):
            Gives thoughts their `answer` (in canonical form) and says whether they are `correct`.
        rule ([`AdaptiveRule`], *optional*):
            When a question has thoughts enough.
        parameters (`Any`):
            Other parameters of [`~md_trl.sampling.sampler.sample`].

    Returns:
        [`~md_trl.sampling.sampler.SampleSummary`]: what was done. `saved` counts the samples up to `n` that the
        questions did not need.
    """
    rule = rule or AdaptiveRule()
    summary = SampleSummary()
    still_open = list(questions)
    for k in [*rule.counts(n), n]:
        summary.add(sample(still_open, PATHS, k, engine, store, prompt, **parameters))
        if summary.missing or k == n:
            break
        wanted = {question.id: question for question in still_open}
        answers: dict[tuple[str, str], list[str | None]] = {}
        correct: dict[str, str] = {}
        thoughts = store.thoughts(Selection(settings=summary.settings))
        for thought in judge(t for t in thoughts if t.question_id in wanted and t.index < k):
            answers.setdefault((thought.question_id, thought.path), []).append(thought.answer)
            if thought.correct:
                correct[thought.question_id] = thought.answer
        # A gold answer that nobody gave is one that is not among the answers.
        still_open = [
            question
            for question in still_open
            if not rule.settled(n, k, correct.get(question.id, ""), *(answers[question.id, path] for path in PATHS))
        ]
        summary.saved = len(PATHS) * (len(questions) - len(still_open)) * (n - k) + summary.saved
        questions = still_open
        if not still_open:
            break
    return summary
