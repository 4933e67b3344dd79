r"""
Adaptive sampling: a few thoughts per question first, and more only where its type or its lambda is still open.

The paper samples n = 20 thoughts per path of every question (Sec. 3.1); this goes beyond it. After the first k of n
thoughts of a path, the n thoughts of a full run are a finite population, and the first k are a random sample of it:
samples are exchangeable, whatever the teacher. With H(n, m, k) for the number of marked thoughts among k drawn from n,
m of which are marked, and c for the number of thoughts with a given answer among the first k:

- **The vote stands** if 2 P(H(n, floor(n/2), k) >= c) <= d for the leading answer. If no answer had more than n/2
  thoughts in the full run, some answer would have c or more among the first k with at most this probability (the
  answers can be divided into two groups of at most n/2 thoughts each). An answer with more than n/2 thoughts wins.
- **The gold answer cannot win** if P(H(n, max(l, 1), k) <= c) <= d for the gold answer, where l is the number of
  thoughts with the most frequent other answer: to win, the gold answer needs at least as many as that one has already.
- **Lambda** = n2 / (n1 + n2), which matters for type 3 only, is settled if it moves by at most `tolerance` while n1
  and n2 of the full run range over all numbers m that the first k thoughts do not refute (both tails of H(n, m, k) are
  above d / 2).

A question is settled if the first or the second condition holds on each path and, for type 3, the third one as well.
There are a few checks. The first check may spend half of `delta`, each further check half of what is left, and the
last one all of it; d is a quarter of that, because there are two paths and two ways to be wrong. By the union bound,
the type of a question differs from its type in a full run with a probability of at most `delta`, and its lambda moves
by more than `tolerance` with a probability of at most `delta`. Both paths of a question always have the same number of
thoughts, because lambda would lean towards the longer one otherwise.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from .answers import canonical
from .errors import InputError
from .execution import Executor
from .judging import read_answers
from .mixing import lambda_of
from .prompts import Prompt
from .records import PATHS, Question, SamplingParams
from .sampling import SampleSummary, sample
from .sampling.engines import Engine
from .sampling.ledger import Price
from .store import Selection, Store


@dataclass(frozen=True)
class AdaptiveRule:
    r"""
    When a question has enough thoughts.

    Args:
        delta (`float`, *optional*, defaults to `0.1`):
            Maximum probability that the type of a question differs from its type in a full run.
        tolerance (`float`, *optional*, defaults to `0.2`):
            How far lambda may be from its value in a full run, for questions of type 3.
        check_at (`tuple[float, ...]`, *optional*, defaults to `(0.3, 0.5, 0.7)`):
            Fractions of n at which to check whether sampling can stop.

    Raises:
        `ValueError`: A value out of range.
    """

    delta: float = 0.1
    tolerance: float = 0.2
    check_at: tuple[float, ...] = (0.3, 0.5, 0.7)

    def __post_init__(self):
        if not 0 < self.delta < 1:
            raise InputError(f"`delta` is {self.delta}. Use a probability between 0 and 1.")
        if not 0 < self.tolerance <= 1:
            raise InputError(f"`tolerance` is {self.tolerance}. Use a number above 0, up to 1.")
        if list(self.check_at) != sorted(set(self.check_at)) or not all(0 < share < 1 for share in self.check_at):
            raise InputError(f"`check_at` is {self.check_at}. Use increasing fractions between 0 and 1.")

    def counts(self, n: int) -> list[int]:
        """Numbers of thoughts per path, below n, after which to check."""
        return sorted({k for share in self.check_at if 0 < (k := math.ceil(share * n)) < n})

    def delta_at(self, n: int, k: int) -> float:
        """Portion of `delta` allocated to the check after k thoughts."""
        counts = self.counts(n)
        check = counts.index(k)
        return self.delta / 2 ** min(check + 1, len(counts) - 1) if len(counts) > 1 else self.delta

    def settled(self, n: int, k: int, gold: str, cot: Sequence[str | None], pot: Sequence[str | None]) -> bool:
        r"""
        Decide whether a question needs no more thoughts.

        Args:
            n (`int`):
                Thoughts per path in a full run.
            k (`int`):
                Thoughts per path so far, one of `counts(n)`.
            gold (`str`):
                Gold answer in canonical form.
            cot (`Sequence[str | None]`):
                Canonical answers of the k CoT thoughts, `None` for an unusable one.
            pot (`Sequence[str | None]`):
                Canonical answers of the k PoT thoughts, `None` for an unusable one.

        Returns:
            `bool`: Whether its type is settled and, for type 3, its lambda too.
        """
        d = self.delta_at(n, k) / 4
        solved = [_solved(n, k, gold, answers, d) for answers in (cot, pot)]
        if None in solved:
            return False
        if not all(solved):
            return True
        n1, n2 = cot.count(gold), pot.count(gold)
        (low1, high1), (low2, high2) = _range(n, k, n1, d), _range(n, k, n2, d)
        lambda_ = lambda_of(n1, n2)
        return max(lambda_ - low2 / (high1 + low2), high2 / (low1 + high2) - lambda_) <= self.tolerance


def sample_adaptively(
    questions: Sequence[Question],
    n: int,
    engine: Engine,
    store: Store,
    prompt: Callable[[Question, str], Prompt],
    executor: Executor,
    rule: AdaptiveRule | None = None,
    *,
    params: SamplingParams = SamplingParams(),
    prices: Mapping[str, Price] | None = None,
    max_cost: float | None = None,
    progress: bool = True,
) -> SampleSummary:
    r"""
    Sample each question on both paths until its type and lambda are settled, or until it has `n` thoughts per path.

    A question that does not get the samples of a check, for example because the server refuses its prompt, is left out
    of the later checks and reported as missing. The others go on.

    Args:
        questions (`Sequence[Question]`):
            The questions. They are added to the store.
        n (`int`):
            Maximum number of samples per question and path.
        engine ([`~md_trl.sampling.engines.Engine`]):
            What samples.
        store ([`~md_trl.store.Store`]):
            Where the thoughts are kept.
        prompt (`Callable[[Question, str], str | list[dict[str, str]]]`):
            Builds the prompt for a question and a path.
        executor ([`~md_trl.execution.Executor`]):
            Runs the programs, to read the answers of the thoughts.
        rule ([`AdaptiveRule`], *optional*, defaults to `AdaptiveRule()`):
            When a question has enough thoughts.
        params ([`~md_trl.records.SamplingParams`], *optional*, defaults to `SamplingParams()`):
            How to sample.
        prices (`Mapping[str, Price]`, *optional*):
            Prices by model, for the progress bar, the summary and `max_cost`.
        max_cost (`float`, *optional*):
            Maximum cost of the whole store. Needs `prices`.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        [`~md_trl.sampling.SampleSummary`]: What the run did. `saved` counts the samples up to `n` that the questions
        did not need.

    Raises:
        `ValueError`: Arguments that cannot be sampled with, or a server that refuses the requests.
        `ConnectionError`: No server answers.
    """
    rule = rule or AdaptiveRule()
    summary = SampleSummary()
    remaining = list(questions)
    for k in [*rule.counts(n), n]:
        part = sample(
            remaining, PATHS, k, engine, store, prompt,
            params=params, prices=prices, max_cost=max_cost, progress=progress,
        )  # fmt: skip
        summary.add(part)
        if k == n or part.over_budget or part.gave_up:
            break
        answers = _answers(remaining, k, store, part.settings, executor)
        complete = [q for q in remaining if all(len(answers[q.id, path]) == k for path in PATHS)]
        remaining = [
            question
            for question in complete
            if not rule.settled(n, k, canonical(question.answer), *(answers[question.id, path] for path in PATHS))
        ]
        summary.saved += len(PATHS) * (len(complete) - len(remaining)) * (n - k)
        if not remaining:
            break
    return summary


def _answers(
    questions: Sequence[Question], k: int, store: Store, settings: Sequence[int], executor: Executor
) -> dict[tuple[str, str], list[str | None]]:
    """Canonical answers of the first k thoughts, by question id and path."""
    ids = {question.id for question in questions}
    thoughts = [t for t in store.thoughts(Selection(settings=settings)) if t.question_id in ids and t.index < k]
    answers: dict[tuple[str, str], list[str | None]] = defaultdict(list)
    for thought in read_answers(thoughts, executor):
        answers[thought.question_id, thought.path].append(thought.answer)
    return answers


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
    """The smallest and largest number of marked thoughts out of n that `count` of the first k do not refute."""
    possible = [
        marked
        for marked in range(count, n - k + count + 1)
        if _at_least(n, marked, k, count) > d / 2 and 1 - _at_least(n, marked, k, count + 1) > d / 2
    ]
    return min(possible), max(possible)
