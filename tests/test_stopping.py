"""Stopping rules against slow simulations that try everything."""

import itertools
import math
import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from md_trl.errors import InputError
from md_trl.posterior import beta_above_half, dirichlet_leads
from md_trl.sampling.rounds import group_by_size
from md_trl.stopping import (
    RULES,
    Adaptive,
    Agreement,
    Esc,
    Fixed,
    PotFirst,
    Seen,
    is_safe,
    rule_named,
    take,
)
from md_trl.voting import vote, vote_two


ANSWERS = st.sampled_from(["1", "1.0", "2", "3", None, ""])
LIKELIHOODS = st.floats(0.01, 1)


def thoughts(n):
    """Answers of both paths, enough for a budget of n."""
    return st.tuples(st.lists(ANSWERS, min_size=n, max_size=n), st.lists(ANSWERS, min_size=n, max_size=n))


def sizes(seen):
    return len(seen.cot), len(seen.pot)


def weighted_vote(cot, pot):
    """The answer with the largest summed weight, ties to the one seen first, from pairs of answer and weight."""
    sums = {}
    for answer, weight in (*cot, *pot):
        if answer:
            sums[float(answer)] = sums.get(float(answer), 0) + weight
    return max(sums, key=sums.get, default=None)


@given(thoughts(7), st.integers(1, 14))
def test_fixed_takes_half_of_the_budget_from_each_path(found, n):
    assert sizes(take(Fixed(n), Seen(*found))) == (math.ceil(n / 2), n // 2)


@given(thoughts(1))
def test_pot_first_is_the_n2_rule(found):
    (cot,), (pot,) = found
    seen = take(PotFirst(), Seen([cot], [pot]))
    assert sizes(seen) == ((0, 1) if pot else (1, 1))
    assert vote(seen.cot, seen.pot) == vote_two(pot, cot)


# Agreement


def slow_is_safe(cot, pot, n):
    """Try every way in which the rest of the budget can turn out."""
    rest = (n - n // 2 - len(cot), n // 2 - len(pot))
    now = vote(cot, pot)
    answers = [*{a for a in (*cot, *pot) if a}, "new", None]
    return all(
        vote([*cot, *more_cot], [*pot, *more_pot]) == now
        for more_cot in itertools.product(answers, repeat=rest[0])
        for more_pot in itertools.product(answers, repeat=rest[1])
    )


@given(st.integers(1, 7), st.data())
def test_a_vote_is_safe_if_nothing_can_change_it(n, data):
    plain = st.sampled_from(["1", "2", "3", None])
    cot = data.draw(st.lists(plain, max_size=n - n // 2))
    pot = data.draw(st.lists(plain, max_size=n // 2))
    if n - len(cot) - len(pot) <= 4:  # The rest of the cases would take minutes
        assert is_safe(Seen(cot, pot), n) == slow_is_safe(cot, pot, n)


@given(st.data())
def test_a_weighted_vote_is_safe_if_weights_up_to_1_cannot_change_it(data):
    n = 6
    cot, pot = (data.draw(st.lists(st.tuples(ANSWERS, LIKELIHOODS), max_size=3)) for _ in range(2))
    seen = Seen([a for a, _ in cot], [a for a, _ in pot], [w for _, w in cot], [w for _, w in pot])
    safe, now = is_safe(seen, n), weighted_vote(cot, pot)
    answers = [*{a for a, _ in (*cot, *pot) if a}, "9"]
    # Everything on one other answer is the worst that can happen.
    worst = [
        weighted_vote([*cot, *[(answer, 1.0)] * (3 - len(cot))], [*pot, *[(answer, 1.0)] * (3 - len(pot))])
        for answer in answers
    ]
    if safe:
        assert all(answer == now for answer in worst)
        for _ in range(20):
            rest = [(random.choice(answers), random.random()) for _ in range(n)]
            assert weighted_vote([*cot, *rest[: 3 - len(cot)]], [*pot, *rest[3 : 6 - len(pot)]]) == now
    elif now is not None and len(cot) + len(pot) < n:
        sums = sorted((seen.tally().values()), reverse=True)
        assert any(answer != now for answer in worst) or sums[0] - (sums[1:] or [0])[0] - n < 1e-6


@given(thoughts(5), st.integers(1, 10), st.integers(1, 3))
def test_agreement(found, n, step):
    """One round, then rounds until the vote is that of the whole budget for sure."""
    cot, pot = found
    seen = take(Agreement(n, step, threshold=1), Seen(cot, pot))
    first = {float(answer) if answer else answer for answer in (cot[0], pot[0])}
    if n > 1 and len(first) == 1 and cot[0]:
        assert sizes(seen) == (1, 1)
        return
    quota = (n - n // 2, n // 2)
    count = 1
    while not is_safe(Seen(cot[: min(count, quota[0])], pot[: min(count, quota[1])]), n):
        count += step
    assert sizes(seen) == (min(count, quota[0]), min(count, quota[1]))
    assert vote(seen.cot, seen.pot) == vote(cot[: quota[0]], pot[: quota[1]])


@given(thoughts(5), st.sampled_from([0.5, 0.7, 0.875]), st.sampled_from([None, 1, 5]))
def test_agreement_with_a_threshold_is_adaptive_consistency(found, threshold, sharpness):
    """Two equal votes have a posterior of 0.875, so up to there their agreement is nothing special."""
    cot, pot = found
    weights = [] if sharpness is None else [[0.9, 0.2, 0.5, 0.7, 0.1], [0.3, 0.8, 0.6, 0.4, 1.0]]
    sharp = [[weight**sharpness for weight in of_path] for of_path in weights]
    rule = Agreement(10, threshold=threshold, sharpness=sharpness or 1)
    expected = take(Adaptive(10, threshold), Seen(cot, pot, *sharp))
    assert sizes(take(rule, Seen(cot, pot, *weights))) == sizes(expected)


def test_agreement_ends_a_question_whatever_the_threshold():
    assert Agreement(threshold=0.99).next(Seen(["5"], ["5"])) == {}
    assert Agreement(threshold=0.99).next(Seen(["5", "5"], ["5", "6"])) == {"cot": 1, "pot": 1}


def test_answers_are_compared_in_their_canonical_form():
    assert Agreement().next(Seen(["$5.00"], ["5"])) == {}
    assert Agreement().next(Seen(["5"], ["6"])) == {"cot": 1, "pot": 1}
    assert Agreement().next(Seen([None], [None])) == {"cot": 1, "pot": 1}  # Nothing is no agreement.
    assert Esc(window=2).next(Seen([None], [None])) == {"cot": 1, "pot": 1}


# ESC


@given(thoughts(8), st.integers(1, 16), st.sampled_from([2, 4, 6]))
def test_esc_stops_after_the_first_window_that_agrees(found, n, window):
    cot, pot = found
    half, quota = window // 2, (n - n // 2, n // 2)
    expected = quota
    for end in range(half, quota[1] + 1, half):
        answers = [*cot[end - half : end], *pot[end - half : end]]
        if all(answers) and len({float(answer) for answer in answers}) == 1:
            expected = (end, end)
            break
    assert sizes(take(Esc(n, window), Seen(cot, pot))) == expected


def test_esc_brings_a_question_to_the_end_of_a_window():
    assert Esc(20, 6).next(Seen(["1"], ["1"] * 5)) == {"cot": 2, "pot": 1}


@pytest.mark.parametrize("window", [2, 4, 6])
def test_the_guarantee_of_esc(window):
    """The exact chance of a window that agrees, for paths whose mixture has no majority answer."""
    rng = random.Random(window)
    for _ in range(200):
        paths = [[rng.random() ** 2 for _ in range(4)] for _ in range(2)]
        p, q = ([x / sum(path) for x in path] for path in paths)
        if max((a + b) / 2 for a, b in zip(p, q, strict=True)) <= 0.5:
            chance = sum((a * b) ** (window // 2) for a, b in zip(p, q, strict=True))
            assert chance <= 2 ** (1 - window) + 1e-12


# Adaptive-Consistency


@pytest.mark.parametrize(
    ("a", "b"), [(1, 1), (5, 1), (4, 3), (2, 9), (1.5, 1.2), (6.3, 2.0), (1.01, 7.7), (15.5, 4.2)]
)
def test_beta_above_half_is_the_integral(a, b):
    steps = 100_000
    density = [(x := (i + 0.5) / steps) ** (a - 1) * (1 - x) ** (b - 1) for i in range(steps)]
    # The midpoint rule is coarse at the ends, where the density is steep.
    assert beta_above_half(a, b) == pytest.approx(sum(density[steps // 2 :]) / sum(density), abs=1e-4)


@pytest.mark.parametrize(
    ("first", "others"), [(5, [1]), (4, [3, 1]), (2.5, [2.5, 1.7, 1.0]), (11, [6, 3, 1, 1]), (1, [1])]
)
def test_dirichlet_leads_as_often_as_in_a_simulation(first, others):
    rng, count = random.Random(0), 40_000
    leads = sum(rng.gammavariate(first, 1) > max(rng.gammavariate(other, 1) for other in others) for _ in range(count))
    found = dirichlet_leads(first, others)
    assert abs(found - leads / count) < 5 * math.sqrt(0.25 / count)
    if len(others) == 1:
        assert found == pytest.approx(beta_above_half(first, others[0]), abs=1e-5)
    if len({first, *others}) == 1:
        assert found == pytest.approx(1 / (1 + len(others)), abs=1e-5)


@given(thoughts(6), st.sampled_from([0.8, 0.95]), st.sampled_from(["beta", "dirichlet"]))
def test_adaptive_stops_at_its_threshold(found, threshold, posterior):
    cot, pot = found
    rule = Adaptive(12, threshold, posterior)
    expected = 6
    for end in range(1, 6):
        counts = {}
        for answer in filter(None, (*cot[:end], *pot[:end])):
            counts[float(answer)] = counts.get(float(answer), 0) + 1
        first, *others = sorted(counts.values(), reverse=True) or [0]
        others = [*others, 0] if posterior == "dirichlet" else (others or [0])[:1]
        if counts and dirichlet_leads(first + 1, [other + 1 for other in others]) >= threshold:
            expected = end
            break
    assert sizes(take(rule, Seen(cot, pot))) == (expected, expected)


def test_four_equal_answers_are_enough_at_95_percent():
    """As in the paper: 1 - 2^-5 is above 0.95, 1 - 2^-4 is not."""
    assert sizes(take(Adaptive(), Seen(["1"] * 10, ["1"] * 10))) == (2, 2)
    assert Adaptive().probability(Seen(["1"], ["1"])) == pytest.approx(1 - 2**-3)
    assert Adaptive().probability(Seen(["1"] * 2, ["1"] * 2)) == pytest.approx(1 - 2**-5)


# Weights


@given(thoughts(5), st.sampled_from(sorted(RULES)), st.sampled_from([1.0, 0.5, 0.031]))
def test_equal_weights_of_1_are_no_weights(found, name, weight):
    cot, pot = found
    rule = rule_named(name, 10)
    weighted = take(rule, Seen(cot, pot, [weight] * 5, [weight] * 5))
    assert sizes(weighted) == sizes(take(rule, Seen(cot, pot)))


def test_likelihoods_settle_a_disagreement():
    sure, unsure = Seen(["1"], ["2"], [0.99], [0.2]), Seen(["1"], ["2"], [0.6], [0.5])
    assert Adaptive().probability(sure) > 0.6 > Adaptive().probability(unsure) > 0.5
    assert not is_safe(sure, 3) and is_safe(Seen(["1", "1"], ["2"], [0.9, 0.9], [0.1]), 3)
    assert Seen(["1"], ["2"], [0.3], [0.9]).tally() == {"1": 0.3, "2": 0.9}


def test_a_thought_without_a_weight_makes_all_equal():
    assert Seen(["1", None], ["2"], [0.3, None], [0.9]).tally() == {"1": 0.3, "2": 0.9}  # An unusable one needs none
    assert Seen(["1", "3"], ["2"], [0.3, None], [0.9]).tally() == {"1": 1.0, "3": 1.0, "2": 1.0}
    assert Seen(["1"], ["2"], [0.3]).tally() == {"1": 1.0, "2": 1.0}


# The protocol


@given(st.lists(thoughts(6), max_size=5), st.sampled_from(sorted(RULES)), st.integers(2, 12))
def test_many_questions_are_asked_for_their_next_round_at_once(questions, name, n):
    rule = rule_named(name, n)
    unfinished = {i: Seen() for i in range(len(questions))}
    ended, rounds = {}, 0
    while unfinished:
        wanted = {i: rule.next(seen) for i, seen in unfinished.items()}
        ended |= {i: unfinished.pop(i) for i, asked in wanted.items() if not asked}
        for i, seen in unfinished.items():
            cot, pot = (len(getattr(seen, path)) + wanted[i].get(path, 0) for path in ("cot", "pot"))
            unfinished[i] = Seen(questions[i][0][:cot], questions[i][1][:pot])
        rounds += 1
    assert rounds <= rule.n + 1
    for i, seen in ended.items():
        assert sizes(seen) == sizes(take(rule, Seen(*questions[i])))
        assert sum(sizes(seen)) <= rule.n


def test_importing_is_light():
    code = "import sys, md_trl.stopping; print({'torch', 'datasets', 'numpy', 'scipy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: rule_named("never"),
            "no stopping rule 'never'. Choose one of fixed, pot_first, agreement, esc, adap",
        ),
        (lambda: Fixed(0), "`n` is 0. Use 1 or more"),
        (lambda: PotFirst(3), "`n` is 3, but the rule `pot_first`"),
        (lambda: Agreement(step=0), "`step` is 0"),
        (lambda: Agreement(threshold=1.1), "`threshold` is 1.1. Use a probability from 0.5 to 1"),
        (lambda: Esc(window=3), "`window` is 3. Use an even number"),
        (lambda: Esc(window=0), "`window` is 0. Use 2 or more"),
        (lambda: Adaptive(threshold=1.0), "`threshold` is 1.0"),
        (lambda: Adaptive(posterior="crp"), "`posterior` is 'crp'. Use 'beta' or 'dirichlet'"),
        (lambda: Seen(["1"], [], [0.5, 0.5]), "`cot_weights` has 2 entries for 1 answers"),
        (lambda: Seen([], ["1"], None, [-0.3]), "`pot_weights` has -0.3"),
        (lambda: take(Fixed(4), Seen(["1"], ["1"])), "asks for 2 cot thoughts and there are 1"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(InputError, match=message):
        make()


@given(thoughts(6), st.lists(LIKELIHOODS, min_size=12, max_size=12), st.sampled_from([0.5, 0.7, 0.8, 0.95]))
def test_bounds_of_the_dirichlet_probability_decide_as_the_probability_does(found, weights, threshold):
    rule = Adaptive(12, threshold, "dirichlet")
    for k in range(6):
        seen = Seen(found[0][:k], found[1][:k], weights[:k], weights[6 : 6 + k])
        assert (rule.next(seen) == {}) == (rule.probability(seen) >= threshold)


@given(st.dictionaries(st.integers(), st.dictionaries(st.sampled_from(["cot", "pot"]), st.integers(1, 3), min_size=1)))
def test_questions_of_one_size_are_grouped(sizes):
    groups = group_by_size(sizes)
    again = {}
    for (number, paths), questions in groups.items():
        for question in questions:
            again.setdefault(question, {}).update(dict.fromkeys(paths, number))
    assert again == sizes and len(groups) <= 3 * 3
