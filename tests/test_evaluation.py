import json
import random
from dataclasses import replace

import pytest

from md_trl.comparison import bootstrap_interval, compare, ensemble
from md_trl.errors import InputError
from md_trl.evaluation import EvaluationResult, QuestionResult, collect_answers
from md_trl.records import Question, QuestionType, Thought
from md_trl.report import (
    accuracy_table,
    load_results,
    solved_table,
    with_distinct_names,
    write_report,
)


def make(samples, path):
    return [
        Thought(f"q{i}", path, j, "", answer=answer, correct=None, logprob=-0.1 * j)
        for i, answers in enumerate(samples)
        for j, answer in enumerate(answers)
    ]


def winner(answers):
    usable = [a for a in answers if a is not None]
    return max(dict.fromkeys(usable), key=usable.count) if usable else None


def result_of(questions, thoughts, n, paths=("cot", "pot"), name="md", model="m", **settings):
    answers = collect_answers(questions, thoughts, n, paths)
    return EvaluationResult(name, model, "toy", "test", {"n": n, **settings}, answers)


def draw(rng, size, n):
    return [[rng.choice(["1", "2", "3", None]) for _ in range(n)] for _ in range(size)]


def test_figures_equal_a_slow_recount():
    rng = random.Random(0)
    n, size = 4, 60
    gold = [rng.choice("123") for _ in range(size)]
    questions = [Question(f"q{i}", "toy", "test", "?", g) for i, g in enumerate(gold)]
    cot, pot = draw(rng, size, n + 1), draw(rng, size, n + 1)
    thoughts = make(cot, "cot") + make(pot, "pot")
    rng.shuffle(thoughts)  # `index` decides their order
    result = result_of(questions, thoughts, n).figures()
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


def test_a_file_holds_the_answers_and_gives_back_the_result(tmp_path):
    questions = [Question("q0", "toy", "test", "?", "1"), Question("q1", "toy", "test", "?", "2")]
    thoughts = make([["1", "2"], ["2", None]], "cot") + make([["1", "1"], [None, None]], "pot")
    thoughts += make([["1"], ["7"]], "label")
    answers = collect_answers(questions, thoughts, 2, ("cot", "pot", "label"), tokens={"q0": 12, "q1": 34})
    result = EvaluationResult("md", "m@1", "toy", "test", {"n": 2, "stop": []}, answers)
    file = result.save(tmp_path / "new")
    content = json.loads(file.read_text())
    assert list(content) == ["name", "model", "task", "split", "settings", "figures", "questions"]
    assert content["questions"][1] == {
        "id": "q1",
        "answer": "2",
        "cot": ["2", None],
        "pot": [None, None],
        "label": ["7"],
        "cot_logprob": [0.0, -0.1],
        "pot_logprob": [0.0, -0.1],
        "tokens": 34,
    }
    loaded = EvaluationResult.load(file)
    assert loaded == result and loaded.figures() == content["figures"] and loaded.file_name() == file.name
    assert loaded.joint_by_type()[QuestionType.COT_ONLY] == (1, 1.0)


def test_no_run_overwrites_the_result_of_another(tmp_path):
    questions = [Question(f"q{i}", "toy", "test", "?", "1") for i in range(3)]
    thoughts = make([["1", "2"]] * 3, "cot")
    result = result_of(questions, thoughts, 2, ["cot"], seed=42)
    others = [
        replace(result, name="cot"),
        replace(result, model="another folder of the same name"),
        replace(result, settings={"n": 2, "seed": 43}),
        replace(result, questions=result.questions[:1]),  # `--limit 1`
        replace(result, task="other"),
        replace(result, split="train"),
    ]
    files = {run.save(tmp_path) for run in [result, *others]}
    assert len(files) == len(others) + 1
    assert replace(result, questions=[replace(q, cot=["9", "9"]) for q in result.questions]).save(tmp_path) in files


def test_missing_thoughts_are_named():
    questions = [Question("q0", "toy", "test", "?", "1"), Question("q1", "toy", "test", "?", "1")]
    with pytest.raises(ValueError, match="'q1' has 0 of 2 cot thoughts"):
        collect_answers(questions, make([["1", "1"]], "cot"), 2, ["cot"])
    with pytest.raises(ValueError, match="no questions of toy/test"):
        result_of([], [], 2)


def test_an_ensemble_votes_with_the_cot_of_one_student_and_the_pot_of_the_other():
    questions = [Question(f"q{i}", "toy", "test", "?", "1") for i in range(3)]
    cot = [["1", "2", "2"], ["2", "2", "2"], [None, "1", "1"]]
    pot = [["1", "1"], ["1", None], ["2", "2"]]
    cot_student = result_of(questions, make(cot, "cot"), 3, ["cot"], name="cot")
    pot_student = result_of(questions, make(pot, "pot"), 2, ["pot"], name="pot")
    pair = ensemble("pair", cot_student, pot_student)
    # Over 2 + 2 answers: 1 2 1 1 -> 1, 2 2 1 -> 2, 1 2 2 -> 2
    assert pair.n == 2 and pair.correct("joint", 4) == [True, False, False]
    assert pair.correct("n2") == [True, True, False]
    assert pair.accuracy("cot", 2) == cot_student.accuracy("cot", 2)
    with pytest.raises(ValueError, match="'pot' has no cot answers on toy/test"):
        ensemble("pair", pot_student, cot_student)
    with pytest.raises(ValueError, match="different questions"):
        ensemble("pair", cot_student, replace(pot_student, questions=pot_student.questions[:2]))


def test_the_n2_rule_of_questions_without_a_program_or_a_chain_of_thought():
    """A question may have no thoughts of a path."""
    answers = [(["1"], ["2"]), (["1"], []), ([], ["1"]), ([], [None]), (["1"], [None]), ([], []), (["1"], [""])]
    questions = [QuestionResult(f"q{i}", "1", cot, pot) for i, (cot, pot) in enumerate(answers)]
    result = EvaluationResult("md", "m", "toy", "test", {}, questions)
    assert result.correct("n2") == [False, True, True, False, True, False, True]
    assert result.votes("n2") == (1 + 1 + 1 + 1 + 2 + 0 + 2) / 7
    assert result.figures()["n2"] == {"accuracy": 4 / 7, "mean_samples": 8 / 7}


def test_a_file_that_is_no_result_is_named(tmp_path):
    good = EvaluationResult("md", "m", "toy", "test", {}, [QuestionResult("q0", "1", ["1"], ["2"])]).to_dict()
    for content, message in (
        (
            json.dumps(good | {"questions": [good["questions"][0] | {"cot": None}]}),
            "`cot` of the question 'q0' is None",
        ),
        (json.dumps(good | {"questions": [good["questions"][0] | {"pot": "2"}]}), "`pot` of the question 'q0' is '2'"),
        (json.dumps(good | {"questions": []}), "There are no questions"),
        ("[" * 100_000, "is not a result of `md-trl eval`"),
        ("1" * 5_000, "is not a result of `md-trl eval`"),
        ("{", "is not valid JSON"),
    ):
        (tmp_path / "r.json").write_text(content)
        with pytest.raises(InputError, match=message):
            EvaluationResult.load(tmp_path / "r.json")


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = random.Random(1)
    covered = 0
    for trial in range(200):
        values = [rng.random() < 0.7 for _ in range(200)]
        low, high = bootstrap_interval(values, seed=trial)
        assert low <= sum(values) / len(values) <= high
        covered += low <= 0.7 <= high
    assert 0.9 <= covered / 200 <= 0.99
    assert bootstrap_interval([True, False]) == bootstrap_interval([True, False])


def test_comparisons_are_paired_by_question():
    questions = [Question(f"q{i}", "toy", "test", "?", "1") for i in range(40)]
    half = [["1"] if i % 2 else ["2"] for i in range(40)]
    a = result_of(questions, make(half, "cot") + make(half, "pot"), 1, name="a")
    b = result_of(questions[::-1], make(half, "cot") + make(half, "pot"), 1, name="b")
    same = compare(a, b)
    assert (same.figure, same.difference, same.low, same.high) == ("joint", 0, 0, 0)
    wrong = result_of(questions[:30], make([["2"]] * 30, "cot"), 1, ["cot"], name="wrong")
    worse = compare(wrong, a)
    assert (worse.a, worse.b, worse.figure, worse.difference) == ("wrong", "a", "cot", -0.5)
    assert worse.low < -0.5 < worse.high < 0
    label = result_of(questions, make([["1"]] * 40, "label"), 1, ["label"], name="label")
    assert compare(a, label) is None
    assert compare(a, replace(b, task="other")) is None


def test_report_states_the_number_of_votes(tmp_path):
    questions = [Question("q0", "toy", "test", "?", "1")]
    result_of(questions, make([["1", "2"]], "cot") + make([["1", "1"]], "pot"), 2).save(tmp_path)
    result_of(questions, make([["2"]], "label"), 2, ["label"], name="label").save(tmp_path)
    results = load_results(tmp_path)
    assert [result.name for result in results] == ["label", "md"]
    table = accuracy_table(results)
    assert "| md | toy/test | 1 | 100.0 (N=2) | 100.0 (N=2) | 100.0 (N=2) | 100.0 (N=4) | 100.0 (N=1) |  |" in table
    assert "| label | toy/test | 1 |  |  |  |  |  | 0.0 (N=1) |" in table
    assert "| md | toy/test | 2 | 0.0% | 0.0% | 100.0% | 0.0% | - | - | 100% | - |" in solved_table(results)
    assert table in write_report(results, tmp_path)
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "report.svg").read_text()
    assert load_results(tmp_path) == results  # the report itself is skipped


def test_report_compares_students_and_ensembles(tmp_path):
    rng = random.Random(2)
    questions = [Question(f"q{i}", "toy", "test", "?", "1") for i in range(30)]
    cot, pot = make(draw(rng, 30, 4), "cot"), make(draw(rng, 30, 4), "pot")
    md = result_of(questions, make(draw(rng, 30, 4), "cot") + make(draw(rng, 30, 4), "pot"), 4)
    students = [
        md,
        result_of(questions, cot, 4, ["cot"], name="cot"),
        result_of(questions, pot, 4, ["pot"], name="pot"),
    ]
    text = write_report(students, tmp_path, ensembles={"pair": ("cot", "pot")})
    report = json.loads((tmp_path / "report.json").read_text())
    assert [(s["name"], s["task"], s["split"], s["n_questions"]) for s in report["students"]] == [
        (name, "toy", "test", 30) for name in ("md", "cot", "pot", "pair")
    ]
    for student in report["students"]:
        for figure in student["figures"].values():
            assert set(figure) == {"accuracy", "low", "high", "votes"}
            assert figure["low"] <= figure["accuracy"] <= figure["high"]
    assert set(report["students"][1]["figures"]) == {"cot"}
    joint = report["students"][0]["figures"]["joint"]
    assert joint["votes"] == 4 and joint["accuracy"] == md.accuracy("joint", 4)
    # Without a baseline, every student is compared with the ensembles, on the first figure that both have
    # but not with those that they are part of
    assert [(c["a"], c["b"], c["figure"]) for c in report["comparisons"]] == [("md", "pair", "joint")]
    assert "| md | pair | toy/test | CoT w/ PoT (N=4) |" in text and "| pair | toy/test | 30 |" in text
    write_report(students, tmp_path, baseline="md")
    report = json.loads((tmp_path / "report.json").read_text())
    assert [(c["a"], c["b"]) for c in report["comparisons"]] == [("cot", "md"), ("pot", "md")]
    with pytest.raises(ValueError, match="no student 'mdd'. Choose one of: cot; md; pot"):
        write_report(students, tmp_path, baseline="mdd")
    with pytest.raises(ValueError, match="also the name of a student"):
        write_report(students, tmp_path, ensembles={"md": ("cot", "pot")})


def test_students_of_one_name_are_told_apart(tmp_path):
    questions = [Question(f"q{i}", "toy", "test", "?", "1") for i in range(3)]
    thoughts = make([["1", "2"]] * 3, "cot")
    result = result_of(questions, thoughts, 2, ["cot"], name="student", model="a/student@1", seed=42)
    runs = [result, replace(result, model="b/student@2"), replace(result, settings={"n": 2, "seed": 43})]
    for run in runs:
        run.save(tmp_path)
    write_report(load_results(tmp_path), tmp_path)
    names = [student["name"] for student in json.loads((tmp_path / "report.json").read_text())["students"]]
    assert sorted(names) == [
        "student (model=a/student@1, seed=42)",
        "student (model=a/student@1, seed=43)",
        "student (model=b/student@2, seed=42)",
    ]
    [short, long] = with_distinct_names([replace(result, questions=result.questions[:1]), result])
    assert short.name.startswith("student (questions=1@") and long.name.startswith("student (questions=3@")


def test_broken_results_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no results in"):
        load_results(tmp_path)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match="a.json is not valid JSON"):
        load_results(tmp_path)
    for content in ("[]", "{}", '{"questions": [{"id": 1}]}'):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(ValueError, match="a.json is not a result"):
            load_results(tmp_path)
