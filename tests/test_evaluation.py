import json
import random

import pytest

from md_trl.evaluation import evaluate_thoughts
from md_trl.records import Question, Thought
from md_trl.report import accuracy_table, load_results, solved_table, write_report


def make(samples, path):
    return [
        Thought(f"q{i}", path, j, "", answer=answer, correct=None)
        for i, answers in enumerate(samples)
        for j, answer in enumerate(answers)
    ]


def winner(answers):
    usable = [a for a in answers if a is not None]
    return max(dict.fromkeys(usable), key=usable.count) if usable else None


def test_figures_equal_a_slow_recount():
    rng = random.Random(0)
    n, size = 4, 60
    gold = [rng.choice("123") for _ in range(size)]
    questions = [Question(f"q{i}", "toy", "test", "?", g) for i, g in enumerate(gold)]
    draw = lambda: [[rng.choice(["1", "2", "3", None]) for _ in range(n + 1)] for _ in range(size)]  # noqa: E731
    cot, pot = draw(), draw()
    thoughts = make(cot, "cot") + make(pot, "pot")
    rng.shuffle(thoughts)  # their index orders them
    result = evaluate_thoughts(questions, thoughts, n)
    for k in range(1, n + 1):
        for name, votes, lists in (
            ("cot", k, [c[:k] for c in cot]),
            ("pot", k, [p[:k] for p in pot]),
            ("joint", 2 * k, [c[:k] + p[:k] for c, p in zip(cot, pot, strict=True)]),
        ):
            expected = sum(winner(a) == g for a, g in zip(lists, gold, strict=True)) / size
            assert {"votes": votes, "accuracy": pytest.approx(expected)} in result[name]
    first = [p[0] if p[0] is not None else c[0] for c, p in zip(cot, pot, strict=True)]
    assert result["n2"]["accuracy"] == pytest.approx(sum(a == g for a, g in zip(first, gold, strict=True)) / size)
    assert result["n2"]["mean_samples"] == pytest.approx(sum(1 + (p[0] is None) for p in pot) / size)
    by_cot = [winner(c[:n]) == g for c, g in zip(cot, gold, strict=True)]
    by_pot = [winner(p[:n]) == g for p, g in zip(pot, gold, strict=True)]
    assert result["solved_by"]["both"] == pytest.approx(sum(map(min, by_cot, by_pot)) / size)
    assert sum(result["solved_by"].values()) == pytest.approx(1)
    by_type = result["joint_by_type"]
    assert sum(t["n_questions"] for t in by_type.values()) == size
    total = sum(t["n_questions"] * t["accuracy"] for t in by_type.values()) / size
    assert total == pytest.approx(result["joint"][-1]["accuracy"])
    assert result["usable"]["cot"] == pytest.approx(sum(a is not None for c in cot for a in c[:n]) / (n * size))


def test_missing_thoughts_are_named():
    questions = [Question("q0", "toy", "test", "?", "1"), Question("q1", "toy", "test", "?", "1")]
    with pytest.raises(ValueError, match="'q1' has 0 of 2 cot thoughts"):
        evaluate_thoughts(questions, make([["1", "1"]], "cot"), 2)


def test_report_states_the_number_of_votes(tmp_path):
    questions = [Question("q0", "toy", "test", "?", "1")]
    figures = evaluate_thoughts(questions, make([["1", "2"]], "cot") + make([["1", "1"]], "pot"), 2)
    both = {"name": "md", "task": "toy", "split": "test", "n": 2, **figures}
    label = {"name": "label", "task": "toy", "split": "test", "n": 2}
    label |= evaluate_thoughts(questions, make([["2"]], "label"), 2)
    for result in (both, label):
        (tmp_path / f"{result['name']}.json").write_text(json.dumps(result))
    results = load_results(tmp_path)
    assert [result["name"] for result in results] == ["label", "md"]
    table = accuracy_table(results)
    assert "| md | toy/test | 1 | 100.0 (N=2) | 100.0 (N=2) | 100.0 (N=2) | 100.0 (N=4) | 100.0 (N=1) |  |" in table
    assert "| label | toy/test | 1 |  |  |  |  |  | 0.0 (N=1) |" in table
    assert "| md | toy/test | 2 | 0.0% | 0.0% | 100.0% | 0.0% | - | - | 100% | - |" in solved_table(results)
    assert table in write_report(results, tmp_path)
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert load_results(tmp_path) == results  # the report is no result


def test_broken_results_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no results in"):
        load_results(tmp_path)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match="a.json is no JSON"):
        load_results(tmp_path)
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match="a.json is no result"):
        load_results(tmp_path)
