"""Adaptive sampling: the rule against explicit counting and random teachers, and the sampler that uses it."""

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from md_trl.adaptive import AdaptiveRule, _at_least, sample_adaptively
from md_trl.cli.sample import SampleArguments, run
from md_trl.execution import Executor
from md_trl.judging import mark, read_answers
from md_trl.mixing import mix
from md_trl.records import Choice, Question, SamplingParams
from md_trl.sampling.engines import SampleResult
from md_trl.sampling.ledger import Price
from md_trl.store import Store
from md_trl.voting import majority


N = 20
RULE = AdaptiveRule()


def prompt(question, path):
    return f"{question.question} {path}"


@given(n=st.integers(1, 9), data=st.data())
def test_probabilities_are_counts(n, data):
    """The tail of a hypergeometric distribution equals the share of all draws."""
    marked, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    count = data.draw(st.integers(-1, n + 1))
    draws = list(itertools.combinations([1] * marked + [0] * (n - marked), k))
    assert _at_least(n, marked, k, count) == pytest.approx(sum(sum(draw) >= count for draw in draws) / len(draws))


@pytest.mark.parametrize("n", [2, 3, 5, 10, 20, 40])
def test_looks_spend_exactly_delta(n):
    counts = RULE.counts(n)
    assert all(0 < k < n for k in counts) and counts == sorted(set(counts))
    assert sum(RULE.delta_at(n, k) for k in counts) == pytest.approx(RULE.delta)
    assert RULE.counts(20) == [6, 10, 14]


def test_clear_cases():
    assert RULE.settled(N, 6, "7", ["7"] * 6, ["7"] * 6)
    assert RULE.settled(N, 6, "7", ["7"] * 6, ["5"] * 6)  # Type 2 needs no lambda.
    assert RULE.settled(N, 6, "7", ["4"] * 6, ["5"] * 6)
    assert not RULE.settled(N, 6, "7", ["7"] * 6, ["7", "7", "7", "5", "5", "5"])
    assert not RULE.settled(N, 6, "7", [None] * 6, ["7"] * 6)  # A single usable thought would win.
    assert not AdaptiveRule(tolerance=0.05).settled(N, 6, "7", ["7"] * 6, ["7"] * 6)
    # The wrong answers differ, so none of them leads, but the gold answer can hardly win any more.
    assert RULE.settled(N, 14, "7", ["5"] * 8 + list("abcdef"), ["7"] * 14)


def type_and_lambda(gold, cot, pot):
    n1, n2 = cot.count(gold), pot.count(gold)
    solved = majority(cot) == gold, majority(pot) == gold
    return solved, n2 / (n1 + n2) if all(solved) else None


def stop_at(rule, gold, cot, pot):
    for k in rule.counts(N):
        if rule.settled(N, k, gold, cot[:k], pot[:k]):
            return k
    return N


def test_the_bound_holds_for_all_kinds_of_teachers():
    """For each kind of teacher, few questions get another type or lambda than in a full run."""
    rng = random.Random(0)
    kinds = [
        [("7", p), ("5", q), ("a", (1 - p - q) / 2), ("b", (1 - p - q) / 2)]
        for p, q in [
            (0.95, 0.02),
            (0.7, 0.2),
            (0.55, 0.45),
            (0.5, 0.5),
            (0.45, 0.55),
            (0.4, 0.3),
            (0.2, 0.2),
            (0.1, 0.6),
        ]
    ]
    kinds.append([("7", 0.15), *((str(i), 0.085) for i in range(100, 110))])
    kinds.append([("7", 0.5), (None, 0.5)])
    worst_type = worst_lambda = 0.0
    for cot_kind, pot_kind in itertools.product(kinds, kinds):
        wrong_type = wrong_lambda = 0
        trials = 150
        for _ in range(trials):
            cot, pot = (rng.choices([a for a, _ in kind], [p for _, p in kind], k=N) for kind in (cot_kind, pot_kind))
            k = stop_at(RULE, "7", cot, pot)
            now, full = type_and_lambda("7", cot[:k], pot[:k]), type_and_lambda("7", cot, pot)
            wrong_type += now[0] != full[0]
            if None not in (now[1], full[1]):
                wrong_lambda += abs(now[1] - full[1]) > RULE.tolerance
        worst_type = max(worst_type, wrong_type / trials)
        worst_lambda = max(worst_lambda, wrong_lambda / trials)
    print(f"worst kind of teacher: {worst_type:.1%} other types, {worst_lambda:.1%} lambdas off by more")
    # Delta plus three standard deviations of the estimate
    assert max(worst_type, worst_lambda) < RULE.delta + 3 * (RULE.delta * 0.9 / 150) ** 0.5


class Teacher:
    """Answers `7` with a probability that depends on question and path."""

    model = "t"

    def __init__(self):
        self.asked = Counter()

    def generate(self, requests):
        for request in requests:
            self.asked[request.question_id, request.path] += request.n
            share = random.Random(request.question_id + request.path).choice([0.02, 0.5, 0.98])
            rng = random.Random(f"{request.question_id}{request.path}{request.first_index}")
            answers = ["7" if rng.random() < share else rng.choice("45") for _ in range(request.n)]
            texts = [f"The answer is {a}." if request.path == "cot" else f"answer = {a}" for a in answers]
            yield SampleResult(request, [Choice(text, "stop") for text in texts])


QUESTIONS = [Question(f"svamp/train/{i}", "svamp", "train", f"Question {i}", "7") for i in range(40)]


def test_only_open_questions_get_more_thoughts(tmp_path):
    teacher = Teacher()
    with Store(tmp_path / "t.db") as store, Executor() as executor:
        summary = sample_adaptively(QUESTIONS, N, teacher, store, prompt, executor, progress=False)
        thoughts = mark(read_answers(store.thoughts(), executor), {question.id: "7" for question in QUESTIONS})
        again = sample_adaptively(QUESTIONS, N, Teacher(), store, prompt, executor, progress=False)
        assert [row.missing for row in store.status()] == [0, 0]  # What was not needed is not missing.
    counts = {question.id: teacher.asked[question.id, "cot"] for question in QUESTIONS}
    assert all(teacher.asked[id_, "pot"] == count for id_, count in counts.items())  # The same number on both paths
    assert set(counts.values()) == {6, 10, 14, 20}
    assert summary.saved == sum(2 * (20 - count) for count in counts.values()) > 200
    assert (summary.thoughts, summary.missing) == (sum(teacher.asked.values()), 0)
    assert (again.requests, again.saved) == (0, summary.saved)
    answers = {}
    for thought in thoughts:
        answers.setdefault((thought.question_id, thought.path), []).append(thought.answer)
    for id_, count in counts.items():
        assert stop_at(RULE, "7", answers[id_, "cot"], answers[id_, "pot"]) == count
    assert [row.n_cot for row in mix(QUESTIONS, thoughts)] == list(counts.values())


def test_a_refused_question_does_not_stop_the_others(tmp_path, caplog):
    """It is left out and reported as missing. The others get the same samples as without it."""

    class Refusing(Teacher):
        def generate(self, requests):
            for request in requests:
                if request.question_id == QUESTIONS[0].id and request.path == "pot":
                    yield SampleResult(request, error="HTTP 400: too long", retry=False)
                else:
                    yield from super().generate([request])

    teacher, whole = Refusing(), Teacher()
    with Store(tmp_path / "t.db") as store, Store(tmp_path / "whole.db") as other, Executor() as executor:
        summary = sample_adaptively(QUESTIONS, N, teacher, store, prompt, executor, progress=False)
        without = sample_adaptively(QUESTIONS[1:], N, whole, other, prompt, executor, progress=False)
    assert (summary.missing, summary.errors) == (6, {"HTTP 400: too long": 1})
    assert "HTTP 400: too long" in caplog.text
    assert teacher.asked.pop((QUESTIONS[0].id, "cot")) == 6
    assert teacher.asked == whole.asked and set(whole.asked.values()) == {6, 10, 14, 20}
    assert summary.saved == without.saved


def test_a_budget_stops_all_questions(tmp_path):
    prices = {"t": Price(prompt=0.0, completion=1.0)}
    with Store(tmp_path / "t.db") as store, Executor() as executor:
        # One request of 6 samples may cost up to 60e-6.
        options = {"params": SamplingParams(max_tokens=10), "prices": prices, "progress": False}
        summary = sample_adaptively(QUESTIONS, N, Teacher(), store, prompt, executor, max_cost=59e-6, **options)
    assert summary.over_budget and (summary.requests, summary.missing) == (0, 480)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"delta": 0}, "`delta` is 0"),
        ({"tolerance": 2}, "`tolerance` is 2"),
        ({"check_at": (0.5, 0.2)}, "`check_at` is"),
    ],
)
def test_bad_rules(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveRule(**arguments)


def test_command(tmp_path, capsys):
    """With the simulated teacher, whose programs are run."""
    import threading

    from md_trl.simulated_teacher import TeacherServer

    args = {"task": "stories", "limit": 12, "model": "simulated-teacher", "store": str(tmp_path / "t.db")}
    with TeacherServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        run(SampleArguments(**args, base_url=server.url, adaptive=True))
        server.shutdown()
    out = capsys.readouterr().out
    assert "saved by stopping early" in out and "0 missing" in out
    with pytest.raises(ValueError, match="`--paths cot pot`"):
        run(SampleArguments(**args, adaptive=True, paths=["cot"]))
