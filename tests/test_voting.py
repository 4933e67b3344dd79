import doctest
import inspect
import math
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from fractions import Fraction

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

import md_trl.voting.calibration
import md_trl.voting.path_weights
import md_trl.voting.votes
import md_trl.voting.weights
from md_trl.answers import canonical
from md_trl.errors import InputError
from md_trl.voting import (
    Tally,
    expected_calibration_error,
    has_likelihoods,
    learn_path_weights,
    likelihood_weights,
    majority,
    reliability_bins,
    score,
    score_flat,
    tally,
    usable,
    vote,
    vote_two,
)


# Few answers in several spellings, so that votes tie and spellings must be grouped.
answers = st.lists(st.sampled_from(["5", "5.0", "$5", "6", "six", "2/3", "0.6667", "yes", "True", "", "nan", None]))


def slow_vote(answers):
    """The most frequent answer; of equally frequent ones, the first (Sec. 3.1)."""
    candidates = [canonical(answer) for answer in answers if canonical(answer) not in ("", "nan")]
    best = None
    for candidate in candidates:
        if best is None or candidates.count(candidate) > candidates.count(best):
            best = candidate
    return best


class TestVote:
    @given(answers, answers)
    def test_against_the_slow_reference(self, cot, pot):
        assert vote(cot, pot) == slow_vote(cot + pot)
        assert majority(cot) == slow_vote(cot)

    @given(answers, answers)
    def test_spellings_of_an_answer_vote_together(self, cot, pot):
        assert vote([canonical(answer) for answer in cot], pot) == vote(cot, pot)

    @pytest.mark.parametrize(
        ("cot", "pot", "expected"),
        [
            (["5", "6"], ["5"], "5"),
            (["5"], ["6"], "5"),  # a tie: CoT comes first in the joined list
            (["5", "6"], ["6.0"], "6"),
            (["1/2", "0.5"], ["7"], "0.5000"),
            (["", None, "nan"], ["7"], "7"),
            ([], ["8", "8", "9"], "8"),
            ([None], [""], None),
            ([], [], None),
        ],
    )
    def test_table(self, cot, pot, expected):
        assert vote(cot, pot) == expected

    def test_accepts_iterators(self):
        assert vote(iter(["5"]), (answer for answer in ["6", "6"])) == "6"


# Weights that are sums of powers of two are exact, so that ties are ties without any tolerance.
weights_of = st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0])
weighted = st.lists(st.tuples(st.sampled_from(["5", "5.0", "6", "yes", "True", "nan", None]), weights_of))


def slow_weighted_vote(pairs):
    """The answer with the largest sum of weights, in exact arithmetic; of equally heavy ones, the first."""
    pairs = [(canonical(answer), Fraction(weight)) for answer, weight in pairs if canonical(answer) not in ("", "nan")]
    if all(weight == pairs[0][1] for _, weight in pairs):
        return slow_vote([answer for answer, _ in pairs])
    best, best_sum = None, None
    for answer, _ in pairs:
        total = sum(weight for other, weight in pairs if other == answer)
        if best is None or total > best_sum:
            best, best_sum = answer, total
    return best


class TestWeightedVote:
    @given(weighted, weighted)
    def test_against_the_slow_reference(self, cot, pot):
        (cot_answers, cot_weights), (pot_answers, pot_weights) = (
            [[p[i] for p in path] for i in (0, 1)] for path in (cot, pot)
        )
        expected = slow_weighted_vote(cot + pot)
        assert vote(cot_answers, pot_answers, cot_weights, pot_weights) == expected
        assert majority(cot_answers + pot_answers, cot_weights + pot_weights) == expected
        assert vote(cot_answers, pot_answers, cot_weights, pot_weights, tie_break="pot") == slow_weighted_vote(
            pot + cot
        )

    @given(answers, answers, st.floats(min_value=0, max_value=1e308, allow_subnormal=True))
    def test_equal_weights_are_equation_5(self, cot, pot, weight):
        assert vote(cot, pot, [weight] * len(cot), [weight] * len(pot)) == vote(cot, pot)

    @given(answers, answers, st.data())
    def test_order_within_an_answer_does_not_matter(self, cot, pot, data):
        """Any order of the votes that keeps the order in which the answers are first seen gives the same winner."""
        joined = [
            *zip(
                cot + pot,
                data.draw(st.lists(st.floats(0.01, 1), min_size=len(cot + pot), max_size=len(cot + pot))),
                strict=True,
            )
        ]
        first_seen = list(dict.fromkeys(canonical(answer) for answer, _ in joined))
        shuffled = sorted(data.draw(st.permutations(joined)), key=lambda pair: first_seen.index(canonical(pair[0])))
        for pairs in (joined, shuffled):
            assert majority(*zip(*pairs, strict=True)) == majority(*zip(*joined, strict=True)) if pairs else True

    @given(answers, answers, st.floats(min_value=1e-3, max_value=1e3), st.data())
    def test_the_scale_of_the_weights_does_not_matter(self, cot, pot, scale, data):
        weights = data.draw(st.lists(st.floats(1e-3, 1e3), min_size=len(cot + pot), max_size=len(cot + pot)))
        scaled = [scale * weight for weight in weights]
        n = len(cot)
        assert vote(cot, pot, weights[:n], weights[n:]) == vote(cot, pot, scaled[:n], scaled[n:])

    def test_sums_that_differ_by_rounding_are_ties(self):
        assert 0.1 + 0.2 > 0.3
        assert majority(["5", "6", "6"], [0.3, 0.1, 0.2]) == "5"
        assert majority(["5", "5", "6"], [0.1, 0.2, 0.3]) == "5"
        assert majority(["5"] + ["6"] * 10, [1.0] + [0.1] * 10) == "5"
        # A real difference is none
        assert majority(["5", "6"], [0.3, 0.3 + 1e-6]) == "6"

    def test_unusable_answers_do_not_vote_whatever_they_weigh(self):
        assert vote(["", None, "nan"], ["7"], [9, 9, 9], [0.1]) == "7"
        assert vote([None], [""], [1], [1]) is None

    def test_one_path_may_have_no_weights(self):
        assert vote(["5"], ["6"], pot_weights=[1.5]) == "6"
        assert vote(["5"], ["6"], pot_weights=[0.5]) == "5"

    def test_weights_that_are_all_zero_or_huge(self):
        assert vote(["5"], ["6", "6"], [0.0], [0, 0]) == "6"
        assert vote(["5"], ["6", "6"], [1.7e308], [1.7e308] * 2) == "6"

    @pytest.mark.parametrize("bad", [-0.5, math.nan, math.inf, None, "1", 10**400])
    def test_a_bad_weight_is_an_error_that_names_its_place(self, bad):
        with pytest.raises(InputError, match=r"cot_weights\[1\] is .* finite number that is not negative"):
            vote(["5", "6"], ["6"], [1.0, bad], [1.0])
        with pytest.raises(InputError, match=r"^weights\[0\] is"):
            majority(["5"], [bad])
        with pytest.raises(InputError, match=r"pot_weights\[1\]\[0\] is"):
            score([["5"], []], [["5"], ["6"]], ["5", "6"], pot_weights=[[1], [bad]])

    def test_a_wrong_number_of_weights_is_an_error(self):
        with pytest.raises(InputError, match="pot_weights has 1 weights for 2 answers"):
            vote(["5"], ["6", "7"], [1], [1])
        with pytest.raises(InputError, match=r"cot_weights\[0\] has 2 weights for 1 answers"):
            score([["5"]], [["5"]], ["5"], cot_weights=[[1, 1]])
        with pytest.raises(InputError, match="cot_weights must .* have 1, 1, 1 and 2 entries"):
            score([["5"]], [["5"]], ["5"], cot_weights=[[1], [1]])

    def test_a_text_is_no_list_of_answers(self):
        for call in (
            lambda: vote("632", ["5"]),
            lambda: vote(["5"], "532", [1.0], [1.0, 1.0, 1.0]),
            lambda: majority("632"),
            lambda: majority("632", [1, 1, 1]),
        ):
            with pytest.raises(InputError, match="'.32' is a text instead of a list of answers. Write"):
                call()

    def test_tie_break(self):
        assert vote(["5"], ["6"]) == vote(["5"], ["6"], tie_break="cot") == "5"
        assert vote(["5"], ["6"], tie_break="pot") == "6"
        with pytest.raises(InputError, match="tie_break is 'first'. Choose one of 'cot', 'pot'"):
            vote(["5"], ["6"], tie_break="first")


class TestTally:
    @given(answers, answers)
    def test_without_weights_shares_are_counts(self, cot, pot):
        counts = Counter(usable(cot + pot))
        total = counts.total()
        found = tally(cot, pot)
        assert found.answer == vote(cot, pot)
        assert list(found.shares) == list(counts)
        assert found.shares == pytest.approx({answer: count / total for answer, count in counts.items()})
        assert found.confidence == (found.shares[found.answer] if total else 0.0)

    def test_weights_count(self):
        assert tally(["5"], ["6", "6.0", None], [3], [0.5, 0.5, 9]) == Tally("5", 0.75, {"5": 0.75, "6": 0.25})
        assert tally([], [None]) == Tally(None, 0.0, {})


class TestLikelihoodWeights:
    def test_is_the_mean_probability_of_a_token(self):
        assert likelihood_weights([0, math.log(0.5), -math.inf]) == [1.0, pytest.approx(0.5), 0.0]
        assert likelihood_weights([]) == []

    def test_one_thought_without_logprob_makes_all_weights_equal(self):
        cot, pot = ["5"], ["6", "5"]
        weights = likelihood_weights([-9.0, -0.1, None])
        assert weights == [1.0, 1.0, 1.0]
        assert vote(cot, pot, weights[:1], weights[1:]) == vote(cot, pot)

    @pytest.mark.parametrize("bad", [0.1, math.nan, "x"])
    def test_a_bad_logprob_is_an_error(self, bad):
        with pytest.raises(InputError, match=r"logprobs\[1\] is"):
            likelihood_weights([None, bad])


class TestVoteTwo:
    @pytest.mark.parametrize(
        ("pot", "cot", "expected"),
        [("5", "6", "5"), (5.0, None, "5"), (None, "6.0", "6"), ("", "6", "6"), ("nan", "6", "6"), (None, None, None)],
    )
    def test_the_program_has_priority(self, pot, cot, expected):
        assert vote_two(pot, cot) == expected


class TestScore:
    @given(st.lists(st.tuples(answers, answers, st.sampled_from(["5", "6", "2/3", "yes"])), min_size=1))
    def test_against_the_slow_reference(self, questions):
        cot, pot, references = map(list, zip(*questions, strict=True))
        right = [
            (slow_vote(c) == canonical(r), slow_vote(p) == canonical(r), slow_vote(c + p) == canonical(r))
            for c, p, r in questions
        ]
        n = len(questions)
        assert score(cot, pot, references) == {
            "accuracy": sum(joint for _, _, joint in right) / n,
            "cot_accuracy": sum(by_cot for by_cot, _, _ in right) / n,
            "pot_accuracy": sum(by_pot for _, by_pot, _ in right) / n,
            "both": sum(by_cot and by_pot for by_cot, by_pot, _ in right) / n,
            "cot_only": sum(by_cot and not by_pot for by_cot, by_pot, _ in right) / n,
            "pot_only": sum(by_pot and not by_cot for by_cot, by_pot, _ in right) / n,
            "neither": sum(not by_cot and not by_pot for by_cot, by_pot, _ in right) / n,
            "abstained": sum(slow_vote(c + p) is None for c, p, _ in questions) / n,
            "n_questions": n,
            "mean_votes": sum(len(usable(c + p)) for c, p, _ in questions) / n,
        }

    @given(
        st.lists(st.tuples(weighted, weighted, st.sampled_from(["5", "6", "yes"])), min_size=1),
        st.sampled_from(["cot", "pot"]),
    )
    def test_weighted_against_the_slow_reference(self, questions, tie_break):
        split = [[[pair[i] for pair in question[path]] for question in questions] for path in (0, 1) for i in (0, 1)]
        cot, cot_weights, pot, pot_weights = split
        references = [gold for _, _, gold in questions]
        scores = score(cot, pot, references, cot_weights, pot_weights, tie_break)
        n = len(questions)

        def share(of_question):
            return sum(slow_weighted_vote(of_question(q)) == canonical(q[2]) for q in questions) / n

        assert scores["accuracy"] == share(lambda q: q[0] + q[1] if tie_break == "cot" else q[1] + q[0])
        assert scores["cot_accuracy"] == share(lambda q: q[0])
        assert scores["pot_accuracy"] == share(lambda q: q[1])
        assert scores["both"] + scores["cot_only"] + scores["pot_only"] + scores["neither"] == pytest.approx(1)

    def test_one_question_may_have_no_weights(self):
        weights = {"cot_weights": [None, [0.1]], "pot_weights": None}
        assert score([["5"], ["5"]], [["6"], ["6"]], ["5", "6"], **weights)["accuracy"] == 1

    def test_values_of_any_type(self):
        cot = [[5, 5.0, True], [Decimal("0.5"), Fraction(1, 2), None], numpy.array([7, 7]), numpy.array(["8", ""])]
        scores = score(cot, [[], [], [numpy.float64(7)], []], [5, "1/2", "7", 8])
        assert scores["accuracy"] == 1 and scores["mean_votes"] == (3 + 2 + 3 + 1) / 4
        # 1 and True are equal as keys of a dict, but not as answers
        assert score([["1"], ["yes"]], [[1], [True]], [1, True])["both"] == 1
        assert score_flat([1, True], [True, 1])["accuracy"] == 0

    def test_more_texts_than_are_remembered(self, monkeypatch):
        monkeypatch.setattr(md_trl.voting.scores, "_MEMO_SIZE", 3)
        answers = [f"{i}.0" for i in range(20)]
        assert score([[answer] for answer in answers], [[]] * 20, list(range(20)))["accuracy"] == 1

    def test_a_bootstrap_interval_on_request(self):
        # 60 of 100 right: the standard error is 0.049
        cot = [["1"] if i < 60 else ["0"] for i in range(100)]
        scores = score(cot, [[]] * 100, ["1"] * 100, bootstrap=4000, seed=3)
        assert scores["accuracy"] == 0.6
        assert scores["accuracy_low"] == pytest.approx(0.6 - 1.96 * 0.049, abs=0.015)
        assert scores["accuracy_high"] == pytest.approx(0.6 + 1.96 * 0.049, abs=0.015)
        # None is right: Wilson's interval, as a bootstrap of zeros has no width
        assert scores["pot_accuracy_low"] == 0
        assert scores["pot_accuracy_high"] == pytest.approx(binomtest(0, 100).proportion_ci(method="wilson").high)
        assert {key for key in scores if key.endswith(("_low", "_high"))} == {
            f"{name}_{end}" for name in ("accuracy", "cot_accuracy", "pot_accuracy") for end in ("low", "high")
        }
        narrow = score(cot, [[]] * 100, ["1"] * 100, bootstrap=4000, seed=3, confidence_level=0.5)
        assert (
            scores["accuracy_low"] < narrow["accuracy_low"] < 0.6 < narrow["accuracy_high"] < scores["accuracy_high"]
        )
        assert scores == score(cot, [[]] * 100, ["1"] * 100, bootstrap=4000, seed=3)
        flat = score_flat([c[0] for c in cot], ["1"] * 100, bootstrap=4000, seed=3)
        assert [flat["accuracy_low"], flat["accuracy_high"]] == [scores["accuracy_low"], scores["accuracy_high"]]

    @pytest.mark.parametrize(
        ("option", "error"),
        [
            ({"bootstrap": -1}, "at least 1, got -1"),
            ({"bootstrap": 2.5}, "a whole number of resamples, at least 1, got 2.5"),
            ({"cot_weights": [0.5]}, r"cot_weights\[0\] is 0.5, but must be a list of weights"),
            ({"bootstrap": 9, "confidence_level": 95}, "between 0 and 1, got 95"),
            ({"tie_break": "random"}, "tie_break is 'random'"),
        ],
    )
    def test_a_bad_option_is_an_error(self, option, error):
        with pytest.raises(InputError, match=error):
            score([["5"]], [["5"]], ["5"], **option)

    def test_answers_that_are_not_lists_are_an_error(self):
        with pytest.raises(InputError, match=r"pot\[1\] is '12', but must be the list of the answers to question 1"):
            score([["5"], ["12"]], [["5"], "12"], ["5", "12"])

    def test_a_question_without_votes_is_wrong_even_if_its_gold_is_empty(self):
        assert score([[""]], [[]], [""])["accuracy"] == 0

    def test_lists_of_different_lengths_are_an_error(self):
        with pytest.raises(ValueError, match="have 2, 1 and 3 entries"):
            score([["5"], ["6"]], [["5"]], ["5", "6", "7"])
        with pytest.raises(ValueError, match="predictions and references must .* have 1 and 2 entries"):
            score_flat(["5"], ["5", "6"])

    def test_no_question_is_an_error(self):
        with pytest.raises(ValueError, match="no question to score"):
            score([], [], [])

    def test_flat(self):
        assert score_flat(["$5.00", "2/3", "8", None], ["5", "0.6667", "7", "7"]) == {
            "accuracy": 0.5,
            "abstained": 0.25,
            "n_questions": 4,
        }


class TestPathWeights:
    @settings(max_examples=30)
    @given(
        st.lists(st.tuples(weighted, weighted, st.sampled_from(["5", "6", "yes", ""])), min_size=1, max_size=8),
        st.sampled_from(["cot", "pot"]),
        st.booleans(),
    )
    def test_no_other_weight_is_better_or_as_good_and_closer_to_1(self, questions, tie_break, with_weights):
        columns = [[[pair[i] for pair in question[path]] for question in questions] for path in (0, 1) for i in (0, 1)]
        cot, cot_weights, pot, pot_weights = columns
        references = [gold for _, _, gold in questions]

        def accuracy(ratio):
            of_cot = cot_weights if with_weights else [[1.0] * len(answers) for answers in cot]
            of_pot = pot_weights if with_weights else [[1.0] * len(answers) for answers in pot]
            scaled = [[ratio * weight for weight in of_question] for of_question in of_pot]
            return score(cot, pot, references, of_cot, scaled, tie_break)["accuracy"]

        given = {"cot_weights": cot_weights, "pot_weights": pot_weights} if with_weights else {}
        learned = learn_path_weights(cot, pot, references, tie_break=tie_break, **given)
        assert learned["cot"] == 1 and 1 / 8 <= learned["pot"] <= 8
        for k in range(-12, 13):
            ratio = 2 ** (k / 4)
            closer = abs(math.log(ratio)) < abs(math.log(learned["pot"])) - 1e-9
            assert (
                accuracy(ratio) < accuracy(learned["pot"]) if closer else accuracy(ratio) <= accuracy(learned["pot"])
            )

    def test_the_better_path_wins_disagreements_only_as_far_as_the_questions_show(self):
        # One program is right against one CoT, but wrong against two
        cot, pot, references = [["5"], ["5", "5"], ["7"]], [["6"], ["6"], ["7"]], ["6", "5", "7"]
        weights = learn_path_weights(cot, pot, references)
        assert 1 < weights["pot"] < 2
        assert learn_path_weights(cot[1:], pot[1:], references[1:]) == {"cot": 1.0, "pot": 1.0}

    def test_huge_weights_stay_finite(self):
        weights = learn_path_weights([["5"]], [["6"]], ["6"], cot_weights=[[1e308]], pot_weights=[[1e308]])
        assert weights["pot"] > 1

    def test_bad_input_is_an_error(self):
        with pytest.raises(InputError, match="There is no question"):
            learn_path_weights([], [], [])
        with pytest.raises(InputError, match=r"pot_weights\[0\]\[0\] is -1"):
            learn_path_weights([["5"]], [["5"]], ["5"], pot_weights=[[-1]])


# Shares of up to 20 votes, many of which are ends of bins
confidences_of = st.integers(1, 20).flatmap(lambda n: st.integers(0, n).map(lambda k: Fraction(k, n)))


class TestCalibration:
    @given(st.lists(st.tuples(confidences_of, st.booleans())), st.integers(1, 20))
    def test_against_the_slow_reference(self, questions, bins):
        """In exact arithmetic: bin k holds the confidences in (k / bins, (k + 1) / bins], the first one also 0."""
        confidences, correct = [float(share) for share, _ in questions], [is_correct for _, is_correct in questions]
        expected, error = [], Fraction(0)
        for k in range(bins):
            low, high = Fraction(k, bins), Fraction(k + 1, bins)
            group = [(share, right) for share, right in questions if low < share <= high or share == low == 0]
            if group:
                mean = sum(share for share, _ in group) / len(group)
                accuracy = Fraction(sum(right for _, right in group), len(group))
                expected.append((float(low), float(high), len(group), float(mean), float(accuracy)))
                error += Fraction(len(group), len(questions)) * abs(accuracy - mean)
        found = reliability_bins(confidences, correct, bins)
        assert [pytest.approx((b.low, b.high, b.count, b.confidence, b.accuracy)) for b in found] == expected
        assert expected_calibration_error(confidences, correct, bins) == pytest.approx(float(error), abs=1e-12)

    @pytest.mark.parametrize(
        ("confidences", "bins", "error"),
        [
            ([0.5], 10, "1 confidences for 2 questions"),
            ([0.5, 1.5], 10, r"confidences\[1\] is 1.5"),
            ([0.5, math.nan], 10, r"confidences\[1\] is nan"),
            ([0.5, 0.5], 0, "bins is 0"),
        ],
    )
    def test_bad_input_is_an_error(self, confidences, bins, error):
        with pytest.raises(InputError, match=error):
            expected_calibration_error(confidences, [True, False], bins)


def test_the_examples_of_the_docstrings_run():
    voting = md_trl.voting
    for module in (voting.votes, voting.weights, voting.calibration, voting.path_weights):
        examples = inspect.getsource(module).replace("```", "")
        test = doctest.DocTestParser().get_doctest(examples, {}, module.__name__, None, 0)
        results = doctest.DocTestRunner().run(test)
        assert results.attempted and not results.failed


def test_voting_imports_nothing_heavy():
    code = "import sys; import md_trl.voting; print({'torch', 'numpy', 'datasets', 'evaluate'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_an_unusable_thought_needs_no_log_probability():
    logprobs, answers = [-0.5, None, -1.0], ["5", None, "6"]
    assert has_likelihoods(logprobs, answers) and not has_likelihoods(logprobs, ["5", "5", "6"])
    assert likelihood_weights(logprobs, answers)[::2] == [math.exp(-0.5), math.exp(-1.0)]
    assert likelihood_weights(logprobs) == likelihood_weights(logprobs, ["5", "5", "6"]) == [1.0] * 3
