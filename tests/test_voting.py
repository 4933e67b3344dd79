import pytest
from hypothesis import given
from hypothesis import strategies as st

from md_trl.answers import canonical
from md_trl.voting import majority, score, score_flat, usable, vote, vote_two


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

    def test_a_question_without_votes_is_wrong_even_if_its_gold_is_empty(self):
        assert score([[""]], [[]], [""])["accuracy"] == 0

    def test_lists_of_different_lengths_are_an_error(self):
        with pytest.raises(ValueError, match="have 2, 1 and 3 entries"):
            score([["5"], ["6"]], [["5"]], ["5", "6", "7"])
        with pytest.raises(ValueError, match="have 1, 1 and 2 entries"):
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
