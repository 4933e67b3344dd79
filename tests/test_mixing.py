from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from md_trl.execution import Executor
from md_trl.judging import mark, read_answers
from md_trl.mixing import MixStatistics, describe, mix
from md_trl.records import MixedRow, Question, Thought


def question(name, answer="5"):
    return Question(f"toy/train/{name}", "toy", "train", f"What is {name}?", answer)


def thoughts(name, path, answers, gold="5"):
    """Judged thoughts with these answers; `None` is unusable."""
    return [
        Thought(f"toy/train/{name}", path, i, f"{path} {answer}", answer=answer, correct=answer == gold)
        for i, answer in enumerate(answers)
    ]


def reference(answers_cot, answers_pot, gold):
    """Type, lambda, n1, n2 from METHOD.md, counted by hand."""

    def winner(answers):
        usable = [a for a in answers if a is not None]
        if not usable:
            return None
        best = max(usable.count(a) for a in usable)
        return next(a for a in usable if usable.count(a) == best)

    n1, n2 = answers_cot.count(gold), answers_pot.count(gold)
    by_cot, by_pot = winner(answers_cot) == gold, winner(answers_pot) == gold
    type_ = 3 if by_cot and by_pot else 1 if by_pot else 2 if by_cot else 4
    return type_, (n2 / (n1 + n2) if n1 + n2 else None), n1, n2, winner(answers_cot), winner(answers_pot)


answers = st.lists(st.sampled_from(["5", "6", "7", None]), max_size=8)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(answers, answers), min_size=1, max_size=20), st.integers(1, 5))
def test_mix_equals_the_slow_reference(samples, cap):
    questions = [question(i) for i in range(len(samples))]
    judged = [t for i, (c, p) in enumerate(samples) for t in thoughts(i, "cot", c) + thoughts(i, "pot", p)]
    rows = {row.id: row for row in mix(questions, judged, repeat_cap=cap)}
    expected = {f"toy/train/{i}": reference(c, p, "5") for i, (c, p) in enumerate(samples) if c or p}
    assert set(rows) == set(expected)
    counts = Counter(type_ for type_, *_ in expected.values())
    for id, (type_, lambda_, n1, n2, cot_vote, pot_vote) in expected.items():
        row = rows[id]
        assert (row.type, row.lambda_, row.n_cot_correct, row.n_pot_correct) == (type_, lambda_, n1, n2)
        assert (row.cot_vote, row.pot_vote) == (cot_vote, pot_vote)
        # floor(n3 / n_t + 1/2) in whole numbers
        balanced = (2 * counts[3] + counts[type_]) // (2 * counts[type_])
        assert row.repeat == (max(1, min(cap, balanced)) if type_ in (1, 2) else 1)
        for path in ("cot", "pot"):
            listed = getattr(row, path)
            assert len({t["text"] for t in listed}) == len(listed)
            assert sum(t["count"] for t in listed if t["correct"]) == getattr(row, f"n_{path}_correct")


def test_thoughts_are_distinct_usable_and_in_the_order_first_seen():
    [row] = mix([question("a")], thoughts("a", "cot", ["6", None, "5", "6"]) + thoughts("a", "pot", []))
    assert row.cot == [
        {"text": "cot 6", "answer": "6", "correct": False, "count": 2},
        {"text": "cot 5", "answer": "5", "correct": True, "count": 1},
    ]
    assert (row.n_cot, row.n_pot, row.pot, row.pot_vote) == (4, 0, [], None)


def test_votes_group_as_scoring_does():
    # "5", "5.0" and "$5" are one answer: three votes against two
    judged = thoughts("a", "cot", ["6", "6", "5", "5.0", "$5"])
    judged = [replace(t, correct=t.answer != "6") for t in judged]
    [row] = mix([question("a")], judged)
    assert (row.type, row.cot_vote, row.n_cot_correct) == (2, "5", 3)


def test_unjudged_thoughts_are_refused():
    with pytest.raises(ValueError, match="Thought 0 of 'toy/train/a' .* is not judged"):
        mix([question("a")], [Thought("toy/train/a", "cot", 0, "The answer is 5.")])


def test_columns_are_those_of_the_contract():
    names = (
        "id task question answer type lambda repeat n_cot n_pot n_cot_correct n_pot_correct cot_vote pot_vote cot pot"
    )
    [row] = mix([question("a")], thoughts("a", "cot", ["5"]))
    assert list(row.to_dict()) == list(MixedRow.features()) == names.split()


def test_describe_counts_types():
    rows = mix(
        [question(n) for n in "abc"],
        thoughts("a", "pot", ["5"])
        + thoughts("b", "cot", ["5"])
        + thoughts("b", "pot", ["5", "5"])
        + thoughts("c", "cot", [None]),
    )
    statistics = MixStatistics()
    for row in rows:
        statistics.add(row)
    text = describe(statistics)
    assert (statistics.total, statistics.kept) == (3, 2)
    assert "| 1 | PoT only | 1 | 33.3% | 1 | 0 of 0 | 1 of 1 |" in text
    assert "| 4 | neither (dropped) | 1 | 33.3% | - | 0 of 1 | 0 of 0 |" in text
    assert "| 0.6 - 0.7 | 1" in text
    assert describe(MixStatistics())


def test_answers_are_read_from_prose_and_programs_then_marked():
    cases = [
        ("cot", "2 + 3 = 5. The answer is 5.", "stop", None, "5"),
        ("cot", "The answer is $1,005.00 dollars.", "stop", None, "1005"),
        ("cot", "2 + 3 = 5.", "stop", None, None),
        ("cot", "2 + 3 = 5.", "stop", "5", "5"),
        ("cot", "The answer is 5.", "length", None, None),
        ("pot", "answer = 2 + 3", "stop", None, "5"),
        ("pot", "def solution():\n    return 10 / 4", "stop", None, "2.50"),
        ("pot", "answer = 2 +", "stop", None, None),
        ("pot", "answer = 1 / 0", "stop", None, None),
        ("pot", "answer = 5", "length", None, None),
        ("pot", "answer = float('nan')", "stop", None, None),
        ("pot", "while True:\n    pass", "stop", "5", None),
        ("label", "5", "stop", None, "5"),
        ("label", "", "stop", None, None),
    ]
    given_ = [Thought("q", path, i, text, "", end, stated) for i, (path, text, end, stated, _) in enumerate(cases)]
    with Executor() as executor:
        answered = read_answers(given_, executor)
        flexible = read_answers(given_, executor, strict=False)
    assert all(t.correct is None for t in answered)
    judged = mark(answered, {"q": "5"})
    assert [t.answer for t in judged] == [expected for *_, expected in cases]
    assert [t.correct for t in judged] == [expected == "5" for *_, expected in cases]
    assert [t.usable for t in judged] == [expected is not None for *_, expected in cases]
    assert flexible[2].answer == "5"


def test_ties_and_texts_follow_the_sample_index_not_the_order_of_arrival():
    both = thoughts("a", "cot", ["5", "6"])
    for arrived in (both, both[::-1]):
        [row] = mix([question("a")], arrived)
        assert (row.cot_vote, row.type) == ("5", 2)
        assert [thought["text"] for thought in row.cot] == ["cot 5", "cot 6"]


def test_every_task_and_split_is_balanced_by_itself():
    def rows_of(task, split, count_1, count_3):
        questions, found = [], []
        for i in range(count_1 + count_3):
            questions.append(Question(f"{task}/{split}/{i}", task, split, f"What is {i}?", "5"))
            for path in ("cot", "pot"):
                answer = "6" if path == "cot" and i < count_1 else "5"
                found.append(Thought(questions[-1].id, path, 0, answer, answer=answer, correct=answer == "5"))
        return questions, found

    groups = [rows_of("svamp", "train", 1, 3), rows_of("svamp", "test", 2, 3), rows_of("gsm8k", "train", 4, 4)]
    together = mix([q for questions, _ in groups for q in questions], [t for _, found in groups for t in found])
    apart = [row for questions, found in groups for row in mix(questions, found)]
    assert together == apart
    assert {(r.id.rsplit("/", 1)[0], r.repeat) for r in together if r.type == 1} == {
        ("svamp/train", 3),
        ("svamp/test", 2),
        ("gsm8k/train", 1),
    }
