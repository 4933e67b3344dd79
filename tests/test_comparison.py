import itertools
import json
import random

import numpy
import pytest
from scipy.stats import binomtest

from md_trl.cli import main
from md_trl.comparison import compare, mcnemar
from md_trl.curves import mean_curve
from md_trl.errors import InputError
from md_trl.evaluation import EvaluationResult, QuestionResult
from md_trl.intervals import (
    bootstrap_interval,
    mean_interval,
    share_interval,
    two_level_interval,
    wilson_interval,
)
from md_trl.training_runs import split_seed, training_runs
from md_trl.voting import majority, vote


def student(name, size, n, chance=0.6, seed=0, paths=("cot", "pot"), weights="none", questions=None):
    """A student whose thoughts are right with a chance; wrong answers are 2 or 3, and a few thoughts have none."""
    generator = random.Random(f"{name} {seed}")
    rows = []
    for i in questions or range(size):
        row = QuestionResult(f"q{i}", "1")
        for path in paths:
            answers = [
                "1" if generator.random() < chance else generator.choice(["2", "3", "3.0", None]) for _ in range(n)
            ]
            setattr(row, path, answers)
            setattr(row, f"{path}_logprob", [-generator.random() for _ in range(n)])
        rows.append(row)
    settings = {"n": n} if weights == "none" else {"n": n, "weights": weights}
    return EvaluationResult(name, name, "toy", "test", settings, rows)


def test_bootstrap_intervals_cover_the_truth():
    generator = numpy.random.default_rng(0)
    covered = 0
    for i in range(1000):
        chances = generator.choice([0.2, 0.9], size=400, p=[0.3, 0.7])
        low, high = bootstrap_interval(generator.random(400) < chances, seed=i)
        covered += low <= 0.3 * 0.2 + 0.7 * 0.9 <= high
    assert 0.93 <= covered / 1000 <= 0.97


def test_intervals_at_both_ends_are_those_of_wilson():
    for n in (1, 2, 50, 500):
        for correct in {0, 1, n // 2, n}:
            expected = binomtest(correct, n).proportion_ci(method="wilson")
            assert wilson_interval(correct, n) == pytest.approx((expected.low, expected.high))
        assert share_interval([True] * n) == mean_interval([[1.0] * n])[1:] == wilson_interval(n, n)
        # More training runs answer the same questions
        assert mean_interval([[0.0] * n] * 5) == (0, *wilson_interval(0, n))
    narrow = binomtest(9, 9).proportion_ci(0.5, "wilson")
    assert share_interval([1] * 9, confidence_level=0.5) == pytest.approx((narrow.low, narrow.high))
    values = [1] * 30 + [0] * 10
    assert share_interval(values) == bootstrap_interval(values) and share_interval([0.5] * 9) == (0.5, 0.5)
    # Differences of two students that are right on the same questions have no width, as there is none to resample
    assert mean_interval([[0.0] * 9], shares=False) == mean_interval([[0.0] * 9] * 2, shares=False) == (0, 0, 0)
    mean, low, high = mean_interval([[1.0] * 9 + [0.0], [1.0] * 10])
    assert mean == 0.95 and 0.3 < low < mean and high == 1


def test_intervals_of_accuracies_near_the_ends_cover_the_truth():
    """Where a bootstrap fails: most students of this kind answer all 50 questions correctly."""
    generator = numpy.random.default_rng(3)
    covered, by_bootstrap = 0, 0
    for i in range(1000):
        right = generator.random(50) < 0.99
        low, high = share_interval(right, resamples=500, seed=i)
        covered += low <= 0.99 <= high
        low, high = bootstrap_interval(right, resamples=500, seed=i)
        by_bootstrap += low <= 0.99 <= high
    assert by_bootstrap / 1000 < 0.5 and covered / 1000 > 0.93


@pytest.mark.parametrize(("seeds", "spread"), [(2, 0.02), (2, 0.06), (3, 0.06), (5, 0.02), (5, 0.06)])
def test_intervals_over_seeds_and_questions_cover_the_truth(seeds, spread):
    """Training runs that differ by some points, on 400 questions of unequal difficulty, paired with a baseline."""
    generator = numpy.random.default_rng(1)
    covered = 0
    for _ in range(1000):
        difficulty, runs = generator.uniform(0.2, 0.7, size=400), generator.normal(0.05, spread, size=(seeds, 1))
        a = generator.random((seeds, 400)) < difficulty + runs
        b = generator.random((seeds, 400)) < difficulty
        mean, low, high = two_level_interval(a.astype(float) - b)
        assert low <= mean <= high
        covered += low <= 0.05 <= high
    # Few seeds that hardly differ leave their spread uncertain, and the interval too wide rather than too narrow
    assert 0.93 <= covered / 1000 <= (0.97 if spread == 0.06 else 0.99)


@pytest.mark.parametrize("seeds", [2, 5])
def test_intervals_over_seeds_seldom_tell_equal_students_apart(seeds):
    """Every run of both kinds differs in its accuracy and in the questions that it finds hard."""
    generator, rejected = numpy.random.default_rng(4), 0
    for _ in range(1000):
        difficulty = generator.normal(2, 2, size=400)
        of_runs = generator.normal(size=(2, seeds, 400)) + generator.normal(scale=0.3, size=(2, seeds, 1))
        a, b = generator.random((2, seeds, 400)) < 1 / (1 + numpy.exp(-difficulty - of_runs))
        _, low, high = two_level_interval(a.astype(float) - b)
        rejected += not low <= 0 <= high
    assert rejected / 1000 <= 0.06


def test_a_paired_test_of_equal_students_seldom_rejects():
    generator = random.Random(2)
    rejected = 0
    for _ in range(1000):
        right = [(generator.random() < 0.7, generator.random() < 0.7) for _ in range(200)]
        rejected += mcnemar(right.count((True, False)), right.count((False, True))) < 0.05
    assert rejected / 1000 <= 0.06


def test_mcnemar_is_the_binomial_test_of_the_questions_that_one_solves():
    for only_a, only_b in itertools.product(range(12), repeat=2):
        expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1
        assert mcnemar(only_a, only_b) == pytest.approx(expected)
    assert compare(student("a", 50, 1), student("b", 50, 1)).p_value <= 1


@pytest.mark.parametrize("weights", ["none", "likelihood"])
def test_curves_average_over_the_orders_of_the_samples(weights):
    result = student("md", 6, 3, weights=weights, chance=0.4)

    def exact(question, path, k):
        """The share of all orders in which the vote over the first `k` of a path, or of each path, is correct."""
        orders = list(itertools.permutations(range(3)))
        right = []
        for of_cot, of_pot in (
            itertools.product(orders, repeat=2) if path == "joint" else zip(orders, orders, strict=True)
        ):
            cot = [question.cot[i] for i in of_cot[:k]]
            pot = [question.pot[i] for i in of_pot[:k]]
            logprobs = [question.cot_logprob[i] for i in of_cot[:k]], [question.pot_logprob[i] for i in of_pot[:k]]
            of_votes = result.weights.weigh(cot, pot, *logprobs)
            answer = vote(cot, pot, *of_votes)
            if path != "joint":
                weighed = of_votes[path == "pot"]
                answer = majority(cot if path == "cot" else pot, weighed)
            right.append(question.is_correct(answer))
        return sum(right) / len(right)

    for path in ("cot", "pot", "joint"):
        points = mean_curve(result, path, subsets=3000)
        assert [point.votes for point in points] == ([2, 4, 6] if path == "joint" else [1, 2, 3])
        for k, point in enumerate(points, 1):
            expected = sum(exact(question, path, k) for question in result.questions) / 6
            assert point.accuracy == pytest.approx(expected, abs=0.02)
            assert point.low <= point.accuracy <= point.high
    assert mean_curve(result, "label") == []


def test_a_curve_of_unanimous_answers_is_flat_and_unusable_ones_are_wrong():
    rows = [QuestionResult("a", "1.0", ["1"] * 3, ["1"] * 3), QuestionResult("b", "1", [None] * 3, [None] * 3)]
    result = EvaluationResult("md", "m", "toy", "test", {}, rows)
    assert [point.accuracy for point in mean_curve(result, "joint")] == [0.5] * 3


def test_names_with_seeds():
    assert split_seed("md@1") == ("md", "@1") and split_seed("md") == ("md", "")
    assert split_seed("md (model=a@1, seed=2)") == ("md (model=a@1, seed=2)", "")
    runs = training_runs([student("md@1", 5, 2), student("cot@1", 5, 2), student("md@2", 5, 2), student("md", 5, 2)])
    assert [(run.name, len(run.results)) for run in runs] == [("md", 2)]
    with pytest.raises(InputError, match="'md@1', 'md@2' were evaluated on different questions of toy/test"):
        training_runs([student("md@1", 5, 2), student("md@2", 6, 2)])


def test_a_report_over_seeds(tmp_path, capsys):
    students = {
        f"{name}@{seed}": student(f"{name}@{seed}", 40, 4, chance, paths=paths)
        for seed in (1, 2, 3)
        for name, chance, paths in (("md", 0.7, ("cot", "pot")), ("cot", 0.5, ("cot",)), ("pot", 0.5, ("pot",)))
    }
    for result in students.values():
        result.save(tmp_path)
    main(["report", "--results", str(tmp_path), "--ensemble", "pair=cot+pot"])
    report = json.loads((tmp_path / "report.json").read_text())
    assert {s["name"] for s in report["students"]} == {*students, "pair@1", "pair@2", "pair@3"}
    # Students are compared with the ensemble of their own seed, unless they are a part of it
    assert {(c["a"], c["b"]) for c in report["comparisons"]} == {(f"md@{seed}", f"pair@{seed}") for seed in (1, 2, 3)}
    assert {(c["a"], c["b"]) for c in report["seeds"]["comparisons"]} == {("md", "pair")}
    of_md, *_ = [s for s in report["seeds"]["students"] if s["name"] == "md"]
    shares = [students[f"md@{seed}"].accuracy("joint", 4) for seed in (1, 2, 3)]
    assert of_md["seeds"] == 3 and of_md["figures"]["joint"]["accuracy"] == pytest.approx(sum(shares) / 3)
    joint = next(c for c in report["seeds"]["comparisons"] if (c["a"], c["b"], c["figure"]) == ("md", "pair", "joint"))
    pairs = [
        vote(students[f"cot@{seed}"].questions[i].cot[:2], students[f"pot@{seed}"].questions[i].pot[:2]) == "1"
        for seed in (1, 2, 3)
        for i in range(40)
    ]
    assert joint["seeds"] == 3 and joint["difference"] == pytest.approx(sum(shares) / 3 - sum(pairs) / 120)
    assert joint["low"] < joint["difference"] < joint["high"]
    printed = capsys.readouterr().out
    assert "| md | toy/test | 3 | 40 |" in printed and "| 3 seeds |" in printed
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
