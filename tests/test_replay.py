"""Stopping rules on stored thoughts, against simulations that are slow and obvious."""

import itertools
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest

from md_trl.errors import InputError
from md_trl.evaluation import EvaluationResult, QuestionResult
from md_trl.replay import available_weights, calibration, replay, replay_all, rule_title, study_rules
from md_trl.report import load_results, write_report
from md_trl.stopping import Adaptive, Agreement, Esc, Fixed, PotFirst
from md_trl.voting import WEIGHTS


def student(size, n, seed=0, tokens=0, logprob=None):
    """A student whose answers are drawn from a few, unequally often."""
    rng = random.Random(seed)

    def answers():
        return rng.choices(["1", "2", "3", None], [5, 3, 2, 1], k=n)

    def logprobs():
        return [-rng.random() if logprob is None else logprob for _ in range(n)]

    questions = [
        QuestionResult(f"q{i}", rng.choice("112"), answers(), answers(), [], logprobs(), logprobs(), tokens * (i + 1))
        for i in range(size)
    ]
    return EvaluationResult("md", "m", "toy", "test", {"n": n}, questions)


def winner(votes):
    """The answer with the largest summed weight, ties to the one seen first, from pairs of answer and weight."""
    sums = {}
    for answer, weight in votes:
        if answer is not None:
            sums[answer] = sums.get(answer, 0) + weight
    return max(sums, key=sums.get, default=None)


def unweighted(answers):
    return winner((answer, 1) for answer in answers)


def simulated_agreement(cot, pot, n):
    """Answer and samples of the agreement rule, which tries every way in which the rest of the budget can turn out."""
    for k in range(1, n // 2 + 1):
        now = unweighted([*cot[:k], *pot[:k]])
        if k == 1 and cot[0] == pot[0] is not None:
            break
        rest = itertools.product(["1", "2", "3", "new", None], repeat=n - 2 * k)
        ends = ((more[: n // 2 - k], more[n // 2 - k :]) for more in rest)
        if all(unweighted([*cot[:k], *of_cot, *pot[:k], *of_pot]) == now for of_cot, of_pot in ends):
            break
    return now, 2 * k


def test_fixed_and_pot_first_in_the_stored_order_are_the_figures_of_the_evaluation():
    result = student(60, 5)
    for votes in (2, 4, 6, 10):
        found = replay(result, Fixed(votes), subsets=1)
        assert found.accuracy == pytest.approx(result.accuracy("joint", votes)) and found.mean_samples == votes
    found = replay(result, PotFirst(), subsets=1)
    assert found.accuracy == pytest.approx(result.accuracy("n2"))
    assert found.mean_samples == pytest.approx(result.votes("n2"))


def test_agreement_equals_a_simulation():
    result = student(80, 3)
    outcomes = [simulated_agreement(q.cot, q.pot, 6) for q in result.questions]
    found = replay(result, Agreement(6, threshold=1), subsets=1)
    assert found.accuracy == pytest.approx(
        sum(answer == q.answer for (answer, _), q in zip(outcomes, result.questions, strict=True)) / 80
    )
    assert found.mean_samples == pytest.approx(sum(samples for _, samples in outcomes) / 80)
    assert 2 < found.mean_samples < 6


@pytest.mark.parametrize("weights", WEIGHTS)
def test_random_orders_give_the_mean_over_all_orders(weights):
    result = student(12, 4, seed=1)
    correct = []
    for q in result.questions:
        found = []
        for i, j in itertools.product(range(4), repeat=2):
            logprobs = (q.cot_logprob[i], q.pot_logprob[j]) if weights == "likelihood" else (0, 0)
            found.append(winner(zip((q.cot[i], q.pot[j]), map(math.exp, logprobs), strict=True)) == q.answer)
        correct.append(sum(found) / len(found))
    found = replay(result, Fixed(2), weights, subsets=2000)
    assert found.accuracy == pytest.approx(sum(correct) / len(correct), abs=0.01)
    assert replay(result, Fixed(2), weights, subsets=2000) == found
    assert replay(result, Fixed(2), weights, subsets=2000, seed=1) != found


def test_cot_and_pot_are_shuffled_apart():
    """If both paths had one order, the thoughts of each pair would always agree."""
    pairs = [["1", "2", "3", "4"]] * 2
    questions = [QuestionResult(f"q{i}", "1", *pairs) for i in range(20)]
    result = EvaluationResult("md", "m", "toy", "test", {}, questions)
    assert replay(result, Agreement(8), subsets=1).mean_samples == 2
    assert replay(result, Agreement(8), subsets=50).mean_samples > 4


@pytest.mark.parametrize("rule", study_rules(8), ids=rule_title)
def test_equal_weights_are_no_weights(rule):
    # Weights below 1 make exact safety wait longer: it expects thoughts of the weight 1
    for logprob in (0.0,) if rule == Agreement(8, threshold=1) else (0.0, -0.7):
        result = student(30, 4, seed=2, logprob=logprob)
        plain, weighted = replay_all(result, [rule], subsets=5)
        assert (weighted.accuracy, weighted.mean_samples) == (plain.accuracy, plain.mean_samples)


def test_likelihoods_weigh_the_vote_and_the_rule():
    question = QuestionResult("q", "6", ["5"] * 2, ["6"] * 2, [], [-3.0] * 2, [-0.1] * 2)
    result = EvaluationResult("md", "m", "toy", "test", {}, [question])
    plain, weighted = replay_all(result, [Adaptive(4, threshold=0.7)])
    assert (plain.accuracy, plain.mean_samples) == (0, 4) and (weighted.accuracy, weighted.mean_samples) == (1, 2)


def test_losses_are_paired_with_the_vote_over_all_thoughts():
    result = student(50, 4)
    fixed, two, same = replay_all(result, [Fixed(8), Fixed(2), Agreement(8, threshold=1)], ["none"])
    assert (fixed.loss, fixed.loss_low, fixed.loss_high, fixed.budget) == (0, 0, 0, 8)
    assert two.loss == pytest.approx(fixed.accuracy - two.accuracy)
    assert two.loss_low < two.loss < two.loss_high and two.low < two.accuracy < two.high
    assert same.loss_high - same.loss_low < (two.loss_high - two.loss_low)
    assert replay(result, Fixed(2), budget=2).loss == 0


def test_orders_of_a_question_do_not_depend_on_the_others():
    result = student(40, 4)
    parts = [
        EvaluationResult("md", "m", "toy", "test", {}, questions)
        for questions in (result.questions[:10], result.questions[:9:-1])
    ]
    whole, first, last = (replay(r, Esc(8, window=2), "likelihood", budget=8) for r in (result, *parts))
    assert whole.accuracy == pytest.approx((10 * first.accuracy + 30 * last.accuracy) / 40)


def test_tokens_are_in_proportion_to_samples():
    result = student(3, 5, tokens=100)  # 100, 200 and 300 tokens for 10 thoughts
    assert replay(result, Fixed(4)).mean_tokens == pytest.approx(80)
    assert replay(student(3, 5), Fixed(4)).mean_tokens is None


def test_calibration_of_the_joint_vote():
    sure, torn = (["1", "1"], ["1", "1"]), (["1", "1"], ["2", "2"])
    logprobs = ([], [-0.1] * 2, [-2.0] * 2)
    questions = [
        QuestionResult("a", "1", *sure, *logprobs),
        QuestionResult("b", "2", *sure, *logprobs),
        QuestionResult("c", "1", *torn, *logprobs),
    ]
    result = EvaluationResult("md", "m", "toy", "test", {}, questions)
    plain, weighted = calibration(result), calibration(result, "likelihood")
    assert [(b.count, b.confidence, b.accuracy) for b in plain.bins] == [(1, 0.5, 1), (2, 1, 0.5)]
    assert plain.error == pytest.approx((1 * 0.5 + 2 * 0.5) / 3)
    share = math.exp(-0.1) / (math.exp(-0.1) + math.exp(-2))
    assert weighted.error == pytest.approx((1 - share + 2 * 0.5) / 3)


def test_names_of_rules():
    assert [rule_title(rule, 10) for rule in (Fixed(10), Fixed(4), PotFirst(), Adaptive(10, threshold=0.7))] == [
        "fixed",
        "fixed (n=4)",
        "pot_first",
        "adaptive (threshold=0.7)",
    ]


def test_errors_say_what_is_missing():
    result = student(3, 2)
    with pytest.raises(InputError, match="'q0': The rule asks for 3 cot thoughts and there are 2"):
        replay(result, Fixed(6))
    with pytest.raises(InputError, match="`subsets` is 0"):
        replay(result, Fixed(2), subsets=0)
    with pytest.raises(InputError, match="`weights` is 'loud'"):
        replay(result, Fixed(2), "loud")
    for question in result.questions:
        question.cot, question.cot_logprob = ["1", None], [None, None]
    assert available_weights(result) == ["none"]
    with pytest.raises(InputError, match="have no log-probabilities"):
        replay(result, Fixed(2), "likelihood")
    # A thought without a vote needs none, and the questions without them vote with equal weights
    result.questions[0].cot_logprob[0] = -0.1
    assert replay(result, Fixed(2), "likelihood").accuracy >= 0
    early = EvaluationResult("md", "m", "toy", "test", {"rule": "esc"}, student(3, 2).questions)
    with pytest.raises(InputError, match="or stopped early"):
        replay(early, Fixed(2))
    result.questions[1].pot = []
    with pytest.raises(InputError, match="a question without CoT or without PoT thoughts"):
        replay(result, Fixed(2))


def test_report_with_stopping_rules(tmp_path):
    student(20, 4).save(tmp_path)
    label = EvaluationResult("label", "m", "toy", "test", {}, [QuestionResult("q", "1", label=["1"])])
    label.save(tmp_path)
    results = load_results(tmp_path)
    text = write_report(results, tmp_path)
    before = json.loads((tmp_path / "report.json").read_text())
    assert set(before) == {"students", "comparisons", "tables"} and not (tmp_path / "stopping.png").exists()
    with_rules = write_report(results, tmp_path, stopping=True)
    after = json.loads((tmp_path / "report.json").read_text())
    [study] = after.pop("stopping")
    assert after == before and with_rules.startswith(text)
    assert (study["name"], study["n_questions"], study["budget"]) == ("md", 20, 8)
    assert len(study["rules"]) == 2 * len(study_rules(8))
    assert [c["weights"] for c in study["calibration"]] == [*WEIGHTS, *(f"{weights}, learned" for weights in WEIGHTS)]
    for row in study["rules"]:
        assert row["low"] <= row["accuracy"] <= row["high"] and row["loss_low"] <= row["loss"] <= row["loss_high"]
        assert f"| {row['rule']} | {row['weights']} | {100 * row['accuracy']:.1f} [" in with_rules
    for name in ("stopping", "calibration"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / f"{name}.svg").read_text()
        assert f"({name}.png)" in (tmp_path / "report.md").read_text()
    assert load_results(tmp_path) == results
    with pytest.raises(InputError, match="No student has 2 CoT and 2 PoT thoughts"):
        write_report([label], tmp_path, stopping=True)


def test_the_study_names_the_cheapest_rule_that_is_good_enough_for_every_student(tmp_path):
    unanimous = [QuestionResult(f"q{i}", "1", ["1"] * 4, ["1"] * 4) for i in range(30)]
    EvaluationResult("sure", "m", "toy", "test", {}, unanimous).save(tmp_path)
    student(30, 4).save(tmp_path)
    script = Path(__file__).parents[1] / "recipes" / "stopping_study.py"

    def last_line(*files):
        command = [sys.executable, script, *files, "--subsets", "3", "--output", tmp_path / "study"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1]

    (hard,), (sure,) = tmp_path.glob("md-*.json"), tmp_path.glob("sure-*.json")
    assert "`pot_first` with weights `none`. It takes 12% of the samples" in last_line(sure)
    assert "`pot_first`" not in last_line(sure, hard)
    studies = json.loads((tmp_path / "study" / "stopping.json").read_text())
    assert [study["name"] for study in studies] == ["sure", "md"]
