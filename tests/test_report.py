import itertools
import json
import random
from dataclasses import replace

import pytest
from scipy.stats import binomtest

from md_trl.cli import main
from md_trl.comparison import bootstrap_interval, compare, compare_seeds, ensemble, share_answers
from md_trl.errors import InputError
from md_trl.evaluation import EvaluationResult, QuestionResult, collect_answers
from md_trl.intervals import two_level_interval
from md_trl.paper_tables import StudentName, paper_tables, parse_name
from md_trl.plots import MAX_COLUMNS, panels
from md_trl.records import Question, Thought
from md_trl.replay import available_weights
from md_trl.report import add_ensembles, compare_with, load_results, with_distinct_names, write_report
from md_trl.stopping_report import study_stopping
from md_trl.student_tables import Key, published_figures
from md_trl.tasks import load_questions
from md_trl.training_curves import read_logs, training_curves


GROUPS = ("easy", "hard")


def student(name, task="svamp", size=24, n=4, chance=0.5, paths=("cot", "pot"), logprobs=True, groups=True):
    """A student whose thoughts are right with a chance; a few have no answer."""
    generator = random.Random(f"{name} {task}")
    rows = []
    for i in range(size):
        row = QuestionResult(f"{task}/test/{i}", "1", group=GROUPS[i % 3 == 0] if groups else None)
        for path in paths:
            count = 1 if path == "label" else n
            answers = [
                "1" if generator.random() < chance else generator.choice(["2", "3", None]) for _ in range(count)
            ]
            setattr(row, path, answers)
            if path != "label":
                setattr(row, f"{path}_logprob", [-generator.random() for _ in range(n)] if logprobs else [None] * n)
        rows.append(row)
    return EvaluationResult(name, f"models/{name}", task, "test", {"n": n}, rows)


def family(suffix="", seeds=("@1", "@2"), **options):
    """A student of each kind of the paper, for each seed."""
    kinds = {"label": ("label",), "cot": ("cot",), "pot": ("pot",), "md": ("cot", "pot")}
    return [
        student(f"{kind}{suffix}{seed}", paths=paths, **options) for seed in seeds for kind, paths in kinds.items()
    ]


def find(tables, name, place=None):
    return next(table for table in tables if table.name == name and (place is None or table.place == place))


def cell_of(table, key, column, against=None):
    row = next(row for row in table.rows if row.key == Key(*key) and row.against == (against and Key(*against)))
    return row.cells[[c.title for c in table.columns].index(column)]


def winner(answers):
    usable = [answer for answer in answers if answer is not None]
    return max(dict.fromkeys(usable), key=usable.count) if usable else None


def named(results, name):
    return next(result for result in results if result.name == name)


def share(values):
    values = list(values)
    return sum(values) / len(values)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("md", ("md", None, 100, "")),
        ("md@3", ("md", None, 100, "@3")),
        ("label_all-20pct@1", ("label_all", None, 20, "@1")),
        ("md-gsm8k-80pct", ("md", "gsm8k", 80, "")),
        ("md-majority-svamp@2", ("md-majority", "svamp", 100, "@2")),
        ("pot-100pct", ("pot", None, 100, "")),
        ("-gsm8k", ("-gsm8k", None, 100, "")),
        ("md-120pct", ("md-120pct", None, 100, "")),
        ("md (model=a, n=2)", ("md (model=a, n=2)", None, 100, "")),
    ],
)
def test_the_name_of_a_student_says_where_it_belongs(name, parts):
    assert parse_name(name) == StudentName(*parts)


def test_table_1_equals_a_slow_recount():
    results = family()
    table = find(paper_tables(results)[0], "1")
    column = "svamp/test (24 questions)"
    assert [row.name for row in table.rows] == [
        "Label fine-tuning",
        "CoT distillation",
        "PoT distillation",
        "Ensemble of two + CoT w/ PoT",
        "MD + CoT",
        "MD + PoT",
        "MD + CoT w/ PoT",
        "MD + CoT w/ PoT − Ensemble of two",
        "MD + CoT − CoT distillation",
        "MD + PoT − PoT distillation",
    ]
    right = {}
    for seed in ("@1", "@2"):
        md, cot, pot, label = (named(results, f"{kind}{seed}").questions for kind in ("md", "cot", "pot", "label"))
        for key, votes in {
            ("label", "label"): [q.label for q in label],
            ("cot", "cot"): [q.cot for q in cot],
            ("pot", "pot"): [q.pot for q in pot],
            # At equal N, half of the samples come from each path
            ("ensemble", "joint"): [c.cot[:2] + p.pot[:2] for c, p in zip(cot, pot, strict=True)],
            ("md", "cot"): [q.cot for q in md],
            ("md", "pot"): [q.pot for q in md],
            ("md", "joint"): [q.cot[:2] + q.pot[:2] for q in md],
        }.items():
            right.setdefault(key, []).append([winner(answers) == "1" for answers in votes])
    for key, by_seed in right.items():
        cell = cell_of(table, key, column)
        mean, low, high = two_level_interval(by_seed)
        assert (cell.value, cell.low, cell.high) == pytest.approx((mean, max(low, 0), min(high, 1)))
        assert (cell.seeds, cell.n_questions, cell.votes) == (2, 24, 1 if key[1] == "label" else 4)
    for a, b in ((("md", "joint"), ("ensemble", "joint")), (("md", "cot"), ("cot", "cot"))):
        paired = [[x - y for x, y in zip(*rows, strict=True)] for rows in zip(right[a], right[b], strict=True)]
        cell = cell_of(table, a, column, against=b)
        assert (cell.value, cell.low, cell.high) == pytest.approx(two_level_interval(paired))


def test_one_run_has_an_interval_over_questions_and_seeds_are_paired():
    results = [student("md@1"), student("cot@1", paths=("cot",)), student("pot@2", paths=("pot",)), student("md@2")]
    tables, problems = paper_tables(results[:3])
    assert "share no seed" in problems[0] and "svamp/test" in problems[0]
    table = find(tables, "1")
    right = [winner(q.cot[:2] + q.pot[:2]) == "1" for q in results[0].questions]
    cell = cell_of(table, ("md", "joint"), table.columns[0].title)
    assert (cell.low, cell.high) == bootstrap_interval(right) and cell.seeds == 1
    # Two runs of MD, one of the baseline: the difference is that of the seed that both have
    table = find(paper_tables(results)[0], "1")
    assert cell_of(table, ("md", "cot"), table.columns[0].title).seeds == 2
    cell = cell_of(table, ("md", "cot"), table.columns[0].title, against=("cot", "cot"))
    assert cell.seeds == 1
    assert cell.value == pytest.approx(results[0].accuracy("cot") - results[1].accuracy("cot"))


def test_a_difference_takes_the_smaller_number_of_samples():
    results = [student("md", n=2), student("cot", n=4, paths=("cot",)), student("pot", n=4, paths=("pot",))]
    table = find(paper_tables(results)[0], "1")
    cell = cell_of(table, ("md", "cot"), table.columns[0].title, against=("cot", "cot"))
    assert cell.votes == 2
    assert cell.value == pytest.approx(results[0].accuracy("cot", 2) - results[1].accuracy("cot", 2))


def test_table_2_has_students_of_another_task_and_the_published_figures():
    results = [r for task in ("svamp", "asdiv") for r in (*family(task=task), *family("-gsm8k", task=task))]
    results += family("-gsm8k", task="gsm8k")  # On its own task, it is a student like any other
    tables, problems = paper_tables(results)
    assert not problems
    assert [c.title.split("/")[0] for c in find(tables, "1").columns] == ["svamp", "gsm8k", "asdiv"]
    table = find(tables, "2")
    assert [column.title.split("/")[0] for column in table.columns] == ["svamp", "asdiv"]
    value = cell_of(table, ("pot", "pot"), "asdiv/test (24 questions)").value
    accuracies = [r.accuracy("pot") for r in results if r.name.startswith("pot-gsm8k@") and r.task == "asdiv"]
    assert value == pytest.approx(share(accuracies))
    text = table.to_markdown()
    assert "trained on gsm8k (Table 2), means over 2 training seeds" in text
    # The whole of the paper's Table 2
    published = [line.split("|")[2:4] for line in text.splitlines() if "published: LLaMA2-7B" in line]
    assert [[float(value) for value in row] for row in published] == [
        [64.5, 63.2],
        [56.5, 64.2],
        [61.5, 65.9],
        [65.0, 64.2],
        [70.0, 64.2],
        [74.5, 68.9],
    ]


def test_published_figures_stand_beside_ours():
    results = [r for task in ("svamp", "gsm8k", "strategyqa", "stories") for r in family(task=task, size=6, n=2)]
    tables, _ = paper_tables(results)
    lines = find(tables, "1").to_markdown().splitlines()
    of_md = lines[lines.index(next(line for line in lines if line.startswith("| MD + CoT w/ PoT |"))) + 1 :]
    assert of_md[:2] == [
        "| - published: LLaMA2-7B | ~84.5 | 53.8 |  |  |",
        "| - published: CodeLlama-7B | 85.5 |  |  |  |",
    ]
    assert "| - published: T5-Large | 76.0 | 24.6 | 59.1 |  |" in lines
    assert "~: follows from the paper's text" in lines[-1]
    [row] = [row for row in find(tables, "3", "svamp/test").rows if row.published]
    assert row.key == Key("md", "n2") and row.published["LLaMA2-7B"][1]["accuracy"] == 66.0
    for figure in published_figures():
        assert figure["source"] and 0 < figure["accuracy"] < 100


def test_table_3_averages_over_the_samples_and_has_the_n2_rule_in_rows_of_its_own():
    results = family(seeds=("",), size=8, n=2)
    table = find(paper_tables(results)[0], "3")
    md, cot, pot = (named(results, name).questions for name in ("md", "cot", "pot"))

    def n2(of_cot, of_pot):
        return share((p if p is not None else c) == "1" for c, p in itertools.product(of_cot, of_pot))

    def joint(of_cot, of_pot):  # Over both orders of each path, which decide ties
        orders = itertools.product(itertools.permutations(of_cot), itertools.permutations(of_pot))
        return share(winner(c + p) == "1" for c, p in orders)

    expected = {
        (("cot", "cot"), "N=1"): share(answer == "1" for q in cot for answer in q.cot),
        (("md", "pot"), "N=1"): share(answer == "1" for q in md for answer in q.pot),
        (("md", "n2"), "N=2"): share(n2(q.cot, q.pot) for q in md),
        (("ensemble", "n2"), "N=2"): share(n2(c.cot, p.pot) for c, p in zip(cot, pot, strict=True)),
    }
    for (key, column), value in expected.items():
        # One sample of a path is drawn at random, the N=2 rule is averaged over all pairs
        assert cell_of(table, key, column).value == pytest.approx(value, abs=0.06 if column == "N=1" else 1e-9)
    assert cell_of(table, ("md", "joint"), "N=4").value == pytest.approx(
        share(joint(q.cot, q.pot) for q in md), abs=0.04
    )
    difference = cell_of(table, ("md", "n2"), "N=2", against=("ensemble", "n2"))
    assert difference.value == pytest.approx(expected[("md", "n2"), "N=2"] - expected[("ensemble", "n2"), "N=2"])
    assert cell_of(table, ("md", "n2"), "N=4") is None


def test_one_figure_has_one_value_in_the_tables_by_number_of_samples_and_each_table_says_its_rule():
    tables = paper_tables(family(size=30))[0]
    samples, ties = find(tables, "3"), find(tables, "ties")
    for kind in ("md", "ensemble"):
        for column in ("N=2", "N=4", "N=8"):
            of_eq_5 = cell_of(ties, (kind, "joint", "ties to CoT first"), column)
            assert cell_of(samples, (kind, "joint"), column) == of_eq_5
    # Over all samples of both paths the order matters for ties only
    assert "first N samples" in find(tables, "1").rule and "Mean over 50 random orders" in samples.rule
    for table in tables:
        assert table.rule in table.to_markdown() and table.to_dict()["rule"] == table.rule != ""


def test_votes_that_weigh_differently_are_named(tmp_path):
    results = [student(f"{kind}@{seed}", n=2) for kind in ("md", "other") for seed in (1, 2)]
    results += [student("single", n=2)]
    results = [
        replace(r, settings={"n": 2, "weights": "likelihood"}) if r.name.startswith(("md", "single")) else r
        for r in results
    ]
    text = write_report(results, tmp_path, baseline="other")
    weighted = 100 * share(r.accuracy("joint", 2) for r in results[:2])
    [means] = [line for line in text.splitlines() if line.startswith("| md | svamp/test | 2 | 24 |")]
    assert f"| {weighted:.1f} [" in means and means.count("(N=2), weights: likelihood") == 1
    [of_single] = [line for line in text.splitlines() if line.startswith("| single | svamp/test | 24 |")]
    assert of_single.count("weights: likelihood") == 2  # of as many samples as one path, and of all
    [of_other] = [line for line in text.splitlines() if line.startswith("| other | svamp/test | 2 | 24 |")]
    assert "weights" not in of_other
    assert "| md | other | svamp/test | CoT w/ PoT (N=2), weights: likelihood against none |" in text
    assert "| md | other | svamp/test | PoT (N=2) |" in text
    comparisons = json.loads((tmp_path / "report.json").read_text())["seeds"]["comparisons"]
    assert {c["figure"]: c["weights"] for c in comparisons} == {
        "joint": ["likelihood", "none"],
        **dict.fromkeys(("cot", "pot", "n2")),
    }


def test_each_training_run_has_one_cell_at_the_end_of_the_report(tmp_path):
    results = family(size=10, n=2, seeds=("@1", "@2", "@10"))
    alone = [student("alone", size=10, n=2), student("md@1", task="asdiv", size=10, n=2)]
    write_report([*results, *alone], tmp_path, ensembles={"pair": ("cot", "pot")})
    text = (tmp_path / "report.md").read_text()
    main_part, by_seed = text.split("## Each training run")
    # A student with one run is in the main part
    assert "| alone | svamp/test | 10 |" in main_part and "| md@1 | asdiv/test | 10 |" in main_part
    assert "alone" not in by_seed and "asdiv" not in by_seed and "@1 | svamp" not in main_part
    rows = {
        tuple(row[:3]): row[3:]
        for row in ([c.strip() for c in r.split("|")[1:-1]] for r in by_seed.split("\n") if "|" in r)
    }
    assert rows["student", "task", "figure"] == ["@1", "@2", "@10"]
    recount = {
        ("md", "CoT w/ PoT (N=2)"): lambda q: winner(q.cot[:1] + q.pot[:1]),
        ("md", "CoT (N=2)"): lambda q: winner(q.cot),
        ("pot", "PoT (N=2)"): lambda q: winner(q.pot),
        ("label", "label (N=1)"): lambda q: q.label[0],
    }
    for (kind, figure), answer in recount.items():
        expected = [
            f"{100 * share(answer(q) == '1' for q in named(results, f'{kind}@{seed}').questions):.1f}"
            for seed in (1, 2, 10)
        ]
        assert rows[kind, "svamp/test", figure] == expected
    assert [figure for kind, _, figure in rows if kind == "pair"][0] == "CoT w/ PoT (N=2)"
    # Each difference to the baseline is there once, over the seeds
    assert main_part.count("| md | pair | svamp/test | CoT w/ PoT (N=2) |") == 1
    comparisons = json.loads((tmp_path / "report.json").read_text())["comparisons"]
    assert sum(c["figure"] == "joint" for c in comparisons) == 3


def test_a_student_that_is_always_right_has_an_interval(tmp_path):
    results = [student(f"md@{seed}", size=20, n=2, chance=1.0) for seed in (1, 2)]
    results.append(student("one", size=20, n=2, chance=1.0))
    write_report(results, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    low = binomtest(20, 20).proportion_ci(method="wilson").low
    assert [report["tables"][0]["rows"][0]["cells"][0][name] for name in ("value", "low", "high")] == [
        1,
        pytest.approx(low),
        1,
    ]
    for of_student in (*report["students"], *report["seeds"]["students"]):
        for figure in of_student["figures"].values():
            assert (figure["accuracy"], figure["low"], figure["high"]) == (1, pytest.approx(low), 1)
    assert f"100.0 [{100 * low:.1f}, 100.0]" in (tmp_path / "report.md").read_text()


def test_ties_fall_to_either_path_and_likelihoods_of_two_models_are_compared_only_if_asked():
    results = family(seeds=("",), size=8, n=1)
    table = find(paper_tables(results)[0], "ties")
    md = named(results, "md").questions
    by_rule = {
        "ties to CoT first": [winner(q.cot + q.pot) for q in md],
        "ties to PoT first": [winner(q.pot + q.cot) for q in md],
        "weighted by likelihood": [
            max([(q.cot_logprob[0], q.cot[0]), (q.pot_logprob[0], q.pot[0])], key=lambda p: (p[1] is not None, p[0]))[
                1
            ]
            for q in md
        ],
    }
    for rule, answers in by_rule.items():
        assert cell_of(table, ("md", "joint", rule), "N=2").value == pytest.approx(share(a == "1" for a in answers))
    of_pair = [
        winner(p.pot + c.cot) for c, p in zip(*(named(results, k).questions for k in ("cot", "pot")), strict=True)
    ]
    cell = cell_of(
        table, ("md", "joint", "ties to PoT first"), "N=2", against=("ensemble", "joint", "ties to PoT first")
    )
    ours = share(a == "1" for a in by_rule["ties to PoT first"])
    assert cell.value == pytest.approx(ours - share(a == "1" for a in of_pair))
    variants = {row.key.variant for row in table.accuracies if row.key.kind == "ensemble"}
    assert variants == {"ties to CoT first", "ties to PoT first"}
    asked = find(paper_tables(results, ensemble_likelihood=True)[0], "ties")
    assert "Ensemble of two + CoT w/ PoT, weighted by likelihoods of two models, which are not on one scale" in {
        row.name for row in asked.rows
    }
    without = find(paper_tables(family(seeds=("",), logprobs=False))[0], "ties")
    assert not any("likelihood" in row.name for row in without.rows)


def test_accuracy_by_kind_of_question():
    results = family()
    table = find(paper_tables(results)[0], "groups")
    assert [column.title for column in table.columns] == ["easy (16)", "hard (8)"]
    of_seeds = [
        [winner(q.cot[:2] + q.pot[:2]) == "1" for q in named(results, f"md@{seed}").questions if q.group == "hard"]
        for seed in (1, 2)
    ]
    cell = cell_of(table, ("md", "joint"), "hard (8)")
    assert cell.n_questions == 8 and cell.value == pytest.approx(share(map(share, of_seeds)))
    easy, hard = (
        cell_of(table, ("md", "joint"), title, against=("ensemble", "joint")).value
        for title in ("easy (16)", "hard (8)")
    )
    whole = find(paper_tables(results)[0], "1")
    overall = cell_of(whole, ("md", "joint"), whole.columns[0].title, against=("ensemble", "joint")).value
    assert (16 * easy + 8 * hard) / 24 == pytest.approx(overall)
    assert not [t for t in paper_tables(family(groups=False))[0] if t.name == "groups"]


def test_questions_that_each_path_solves_over_seeds_and_for_ensembles():
    results = family()
    table = find(paper_tables(results)[0], "solved")
    shares = {"PoT only (1)": [], "CoT only (2)": [], "both (3)": [], "neither (4)": []}
    lucky = []
    for seed in (1, 2):
        pairs = zip(*(named(results, f"{kind}@{seed}").questions for kind in ("cot", "pot")), strict=True)
        for c, p in pairs:
            by_cot, by_pot = winner(c.cot) == "1", winner(p.pot) == "1"
            for values, found in zip(
                shares.values(),
                (by_pot and not by_cot, by_cot and not by_pot, by_cot and by_pot, not by_cot and not by_pot),
                strict=True,
            ):
                values.append(found)
            lucky.append(by_cot != by_pot and winner(c.cot + p.pot) == "1")
    for column, values in shares.items():
        assert cell_of(table, ("ensemble", "joint"), column).value == pytest.approx(share(values))
    assert cell_of(table, ("ensemble", "joint"), table.columns[-1].title).value == pytest.approx(share(lucky))
    differences = [cell_of(table, ("md", "joint"), column, against=("ensemble", "joint")).value for column in shares]
    assert sum(differences) == pytest.approx(0, abs=1e-9)


def test_accuracy_by_share_of_the_training_questions():
    results = [*family(), *family("-20pct"), student("md-60pct@1")]
    table = find(paper_tables(results)[0], "training set")
    assert [(column.title, column.x) for column in table.columns] == [("20%", 20), ("60%", 60), ("100%", 100)]
    expected = share(named(results, f"md-20pct@{seed}").accuracy("joint") for seed in (1, 2))
    assert cell_of(table, ("md", "joint"), "20%").value == pytest.approx(expected)
    assert cell_of(table, ("md", "joint"), "20%", against=("ensemble", "joint")).seeds == 2
    assert cell_of(table, ("md", "joint"), "60%", against=("ensemble", "joint")) is None
    assert cell_of(table, ("ensemble", "joint"), "60%") is None


def test_other_kinds_of_students_get_rows_of_their_own_and_votes_are_those_of_eq_5():
    results = [
        *family(seeds=("",), size=8, n=2),
        student("uniform", size=8, n=2),
        replace(student("base", size=8, n=2), settings={"n": 2, "rule": "agreement"}),
    ]
    weighted = [replace(r, settings=r.settings | {"weights": "likelihood"}) for r in results]
    tables, weighted_tables = (paper_tables(of)[0] for of in (results, weighted))
    assert [table.to_dict() for table in tables] == [table.to_dict() for table in weighted_tables]
    names = [row.name for row in find(tables, "1").rows]
    assert "`uniform` + CoT w/ PoT" in names and "`base` + CoT w/ PoT" in names and "`base` + CoT" not in names
    assert names.index("`uniform` + CoT") > names.index("MD + CoT w/ PoT")
    assert "`uniform` + CoT w/ PoT − Ensemble of two" in names


def test_what_is_left_out_is_said():
    results = family(seeds=("",))
    results[1] = replace(results[1], questions=results[1].questions[:9])
    tables, problems = paper_tables(results)
    assert len(problems) == 1 and "different questions" in problems[0]
    assert not any(row.key.kind == "ensemble" for table in tables for row in table.rows)
    assert find(tables, "1").columns[0].title == "svamp/test (9 to 24 questions)"
    _, problems = paper_tables([student("md"), student("md-svamp")])
    assert problems == ["'md-svamp' is left out of the tables on svamp/test: it is the same as 'md' there."]


def test_a_group_of_a_question_is_kept_in_its_result(tmp_path):
    questions = [Question("q0", "toy", "test", "?", "1", "hard"), Question("q1", "toy", "test", "?", "1")]
    assert questions[0] == replace(questions[0], group=None)
    thoughts = [Thought(q.id, "cot", 0, "", answer="1", correct=None) for q in questions]
    result = EvaluationResult("cot", "m", "toy", "test", {"n": 1}, collect_answers(questions, thoughts, 1, ["cot"]))
    file = result.save(tmp_path)
    content = json.loads(file.read_text())
    assert content["questions"][0]["group"] == "hard" and "group" not in content["questions"][1]
    assert EvaluationResult.load(file) == result
    for question in content["questions"]:
        question.pop("group", None)  # A result of an earlier version
    file.write_text(json.dumps(content))
    assert [q.group for q in EvaluationResult.load(file).questions] == [None, None]


def test_stories_are_grouped_by_family():
    groups = [(q.group, q.id.split("/")[2]) for q in load_questions("stories", "test", size=40)]
    assert len(set(groups)) == 8 and all(group == family for group, family in groups)


def test_many_panels_are_wrapped_into_rows_with_the_same_axes():
    pyplot, figure, axes = panels([f"student {i}" for i in range(2 * MAX_COLUMNS + 1)])
    assert axes[0].get_gridspec().ncols == MAX_COLUMNS and axes[0].get_gridspec().nrows == 3
    axes[0].set_xlim(0, 7)
    axes[0].set_ylim(0, 9)
    assert axes[-1].get_xlim() == (0, 7) and axes[-1].get_ylim() == (0, 9)
    pyplot.close(figure)


def test_the_report_of_a_folder(tmp_path, capsys):
    results = [*family(size=10, n=2), *family("-20pct", size=10, n=2)]
    for result in results:
        result.save(tmp_path)
    main(["report", "--results", str(tmp_path), "--ensemble_likelihood"])
    report = json.loads((tmp_path / "report.json").read_text())
    # The ensemble of the tables is not a student of the folder
    assert {s["name"] for s in report["students"]} == {result.name for result in results}
    assert [table["table"] for table in report["tables"]] == ["1", "3", "training set", "groups", "solved", "ties"]
    joint = next(row for row in report["tables"][0]["rows"] if row["name"] == "MD + CoT w/ PoT")
    accuracies = [named(results, f"md@{seed}").accuracy("joint") for seed in (1, 2)]
    assert joint["cells"][0]["value"] == pytest.approx(share(accuracies)) and joint["cells"][0]["seeds"] == 2
    text = (tmp_path / "report.md").read_text()
    assert "MD + CoT w/ PoT − Ensemble of two" in text and "not on one scale" in text
    assert "Table 1" in capsys.readouterr().out
    for name in ("report", "tasks", "samples", "training_set", "groups", "solved"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG") and f"({name}.png)" in text
        assert "<svg" in (tmp_path / f"{name}.svg").read_text()
    assert load_results(tmp_path) == sorted(results, key=lambda result: result.file_name())


def test_an_ensemble_that_was_named_stands_in_the_tables_too():
    paths = {"big-md": ("cot", "pot"), "big-cot": ("cot",), "big-pot": ("pot",)}
    results = [student(name, n=2, size=8, paths=of_student) for name, of_student in paths.items()]
    tables, _ = paper_tables(add_ensembles(results, {"pair": ("big-cot", "big-pot")}))
    for table in tables:
        names = [row.name for row in table.rows]
        assert any(name.startswith("`big-md` + CoT w/ PoT − `pair`") for name in names)
        assert "`pair` + CoT" not in names


# Losses during training


def write_logs(folder, steps, losses, first=1.0, tokens=100):
    folder.mkdir(parents=True)
    logs = [
        {"step": step, "num_target_tokens": tokens * step, "loss": first / step} | dict.fromkeys(losses, first / step)
        for step in steps
    ]
    logs.append({"step": steps[-1], "num_target_tokens": tokens * steps[-1], "train_loss": 0.5})
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": logs}))


def test_losses_of_each_path_are_averaged_over_seeds(tmp_path):
    write_logs(tmp_path / "md@1", [1, 2, 4], ["cot_loss", "pot_loss"], first=1.0, tokens=100)
    write_logs(tmp_path / "md@2", [2, 3, 4], ["cot_loss", "pot_loss"], first=3.0, tokens=200)
    write_logs(tmp_path / "run-7" / "checkpoint-4", [1, 2, 4], ["cot_loss"])
    write_logs(tmp_path / "run-7" / "checkpoint-10", [1, 10], ["cot_loss"])
    curves = training_curves([str(tmp_path / "md@1"), str(tmp_path / "md@2"), f"cot={tmp_path / 'run-7'}"])
    assert [(c.name, c.loss, c.seeds) for c in curves] == [
        ("md", "loss", 2),
        ("md", "cot_loss", 2),
        ("md", "pot_loss", 2),
        ("cot", "loss", 1),
        ("cot", "cot_loss", 1),
    ]
    points = [(p.step, p.num_target_tokens, p.loss, p.low, p.high) for p in curves[1].points]
    assert points == [(2, 300, 1.0, 0.5, 1.5), (4, 600, 0.5, 0.25, 0.75)]
    assert [point.step for point in curves[-1].points] == [1, 10]  # Of the last checkpoint


def test_bad_training_folders_are_named(tmp_path):
    write_logs(tmp_path / "md@1", [1, 3], ["cot_loss"])
    write_logs(tmp_path / "md@2", [2, 4], ["cot_loss"])
    one, two = str(tmp_path / "md@1"), str(tmp_path / "md@2")
    with pytest.raises(InputError, match="The runs of 'md' share no logged step"):
        training_curves([one, two])
    with pytest.raises(InputError, match="Two students are named 'md@1'"):
        training_curves([one, f"md@1={two}"])
    write_logs(tmp_path / "lr=1e-3" / "md@1", [1, 3], ["cot_loss"])
    (tmp_path / "lr=1e-3" / "md@1" / "checkpoint-best").mkdir()
    folder = str(tmp_path / "lr=1e-3" / "md@1")
    assert training_curves([folder]) == training_curves([f"md@1={folder}"]) == training_curves([one])
    with pytest.raises(InputError, match="There is no trainer_state.json in .*nowhere"):
        read_logs(tmp_path / "nowhere")
    (tmp_path / "md@1" / "trainer_state.json").write_text("[]")
    with pytest.raises(InputError, match="holds no logs"):
        read_logs(one)
    (tmp_path / "md@1" / "trainer_state.json").write_text('{"log_history": [{"step": 1, "loss": 1.0}]}')
    with pytest.raises(InputError, match="lack `num_target_tokens`"):
        read_logs(one)


def test_losses_are_drawn_without_and_with_results(tmp_path, capsys):
    write_logs(tmp_path / "md@1", [1, 2], ["cot_loss", "pot_loss"])
    write_logs(tmp_path / "label", [1, 2], ["label_loss"])
    folder = tmp_path / "results"
    arguments = ["report", "--results", str(folder), "--training", str(tmp_path / "md@1"), str(tmp_path / "label")]
    main(arguments)
    assert (folder / "training.png").read_bytes().startswith(b"\x89PNG") and "<svg" in (
        folder / "training.svg"
    ).read_text()
    assert "| md | 1 | cot_loss | 2 | 200 | 0.5000 |" in capsys.readouterr().out
    student("md", size=4, n=2).save(folder)
    main(arguments)
    assert "training.png" in (folder / "report.md").read_text()


def test_copies_of_a_result_count_once(tmp_path):
    file = student("md@1").save(tmp_path)
    (tmp_path / "a copy.json").write_text(file.read_text())
    assert [result.name for result in load_results(tmp_path)] == ["md@1"]
    values = json.loads(file.read_text())
    values["questions"][0]["cot"] = ["8", "8"]
    (tmp_path / "a copy.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="results of the same evaluation, 'md@1' on svamp/test, but their answers"):
        load_results(tmp_path)
    values["questions"][1]["id"] = values["questions"][0]["id"]
    (tmp_path / "a copy.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="a copy.json has the question 'svamp/test/0' twice"):
        load_results(tmp_path)


def test_runs_that_were_evaluated_twice_are_averaged_over_their_seeds():
    again = [replace(run, settings={"n": 2}) for run in family(n=2)]
    results = with_distinct_names([*family(), *again])
    assert [r.name for r in results if "md" in r.name] == ["md (n=4)@1", "md (n=4)@2", "md (n=2)@1", "md (n=2)@2"]
    tables, problems = paper_tables(results)
    assert {cell.seeds for row in tables[0].rows for cell in row.cells if cell} == {2}
    assert problems[0].startswith("There is no ensemble on svamp/test: several results are named 'cot' and 'pot'.")


def test_an_ensemble_has_a_name_of_its_own(tmp_path):
    results = family()
    with pytest.raises(InputError, match="also the name of a student"):
        add_ensembles(results, {"md": ("cot", "pot")})
    with pytest.raises(InputError, match="share no task, split and seed .svamp/test@1 against svamp/test@2."):
        add_ensembles(results, {"pair": ("cot@1", "pot@2")})
    named(results, "md@1").save(tmp_path)
    with pytest.raises(SystemExit, match="names several pairs 'pair'"):
        main(["report", "--results", str(tmp_path), "--ensemble", "pair=a+b", "pair=c+d"])
    # It is compared with all that are no part of it, whatever the models are called
    served = [replace(result, model="student") for result in results]
    pair = ensemble("pair@1", named(served, "cot@1"), named(served, "pot@1"))
    assert share_answers(named(served, "cot@1"), pair) and share_answers(pair, named(served, "pot@1"))
    assert not share_answers(named(served, "cot@2"), pair) and not share_answers(named(served, "md@1"), pair)


def test_a_baseline_without_a_seed_is_compared_with_every_seed(tmp_path):
    results = [*family(), student("teacher")]
    found = compare_with(results, ["teacher"])
    assert {(c.a, c.b) for c in found if c.figure == "joint"} == {("md@1", "teacher"), ("md@2", "teacher")}
    text = write_report([*results, student("other@3")], tmp_path, baseline="other")
    assert "No student was evaluated on the task, split and seed of the baseline 'other'." in text
    # A difference over fewer seeds than its rows says which it is of
    tables, _ = paper_tables([r for r in family() if r.name != "pot@2"])
    text = tables[0].to_markdown()
    assert text.count("(N=4, seed 1)") == 4 and text.count("(N=4, 2 seeds)") == 5


def test_splits_are_told_apart_in_comparisons(tmp_path):
    results = [student(f"{name}@{seed}") for name in ("md", "base") for seed in (1, 2)]
    held_out = [replace(result, split="validation") for result in results if result.name.endswith("@1")]
    text = write_report([*results, *held_out], tmp_path, baseline="base")
    assert "| md@1 | base@1 | svamp/validation | CoT w/ PoT (N=4) |" in text
    assert "| md | base | svamp/test | CoT w/ PoT (N=4) |" in text
    report = json.loads((tmp_path / "report.json").read_text())
    assert {comparison["split"] for comparison in report["comparisons"]} == {"test", "validation"}


def test_after_early_stopping_each_votes_with_its_own_samples():
    fixed, early = student("fixed", n=6), replace(student("early"), settings={"rule": "agreement", "n": 4})
    for question in early.questions[:10]:
        question.cot, question.cot_logprob = question.cot[:2], question.cot_logprob[:2]
    right = [
        [
            winner(q.cot[: r.n // 2 if r is fixed else None] + q.pot[: r.n // 2 if r is fixed else None]) == "1"
            for q in r.questions
        ]
        for r in (early, fixed)
    ]
    found = compare(early, fixed, "joint")
    assert found.difference == pytest.approx(share(right[0]) - share(right[1]))
    assert (found.votes, found.votes_b) == (early.votes("joint"), 6)
    over_seeds = compare_seeds("early", "fixed", [(early, fixed)] * 2, "joint")
    assert (over_seeds.votes, over_seeds.votes_b) == (found.votes, found.votes_b)
    pair = ensemble("ensemble", replace(fixed, name="cot"), replace(fixed, name="pot"))
    tables, _ = paper_tables([early, pair])
    cell = next(row.cells[0] for row in tables[0].rows if row.against)
    assert (cell.value, cell.votes, cell.votes_b) == pytest.approx((found.difference, found.votes, 6))
    assert f"(N={round(found.votes, 2):g} against 6)" in tables[0].to_markdown()


def test_seeds_with_unequal_numbers_of_samples_are_averaged_at_the_smallest():
    results = [student("md@1", n=8), replace(student("md@2", n=4), settings={"n": 4})]
    row = next(row for row in paper_tables(results)[0][0].rows if row.key.figure == "joint")
    right = [winner(q.cot[:2] + q.pot[:2]) == "1" for r in results for q in r.questions]
    assert (row.cells[0].votes, row.cells[0].value) == (4, pytest.approx(share(right)))


def test_students_without_usable_thoughts_have_no_likelihoods_and_no_study():
    mute = student("mute", logprobs=False, n=6)
    mute.questions[0].cot = mute.questions[0].pot = [None] * 6
    assert available_weights(mute) == ["none"]
    for question in mute.questions:
        question.cot = question.pot = [None] * 6
    other = student("md", n=6)
    assert [study.name for study in study_stopping([mute, other], subsets=2, progress=False)] == ["md"]


def test_shares_without_all_of_the_questions_and_the_third_path_have_tables():
    tables, problems = paper_tables([*family("-20pct"), *family("-40pct"), student("md-gsm8k-20pct")])
    assert [c.title for c in find(tables, "training set").columns] == ["20%", "40%"]
    assert "Students trained on 20% of gsm8k are in no table on svamp/test." in problems
    assert [c.title for c in find(paper_tables(family("-20pct"))[0], "training set").columns] == ["20%"]
    tables, _ = paper_tables([student("cot_pot", paths=("cot_pot",)), student("all", paths=("cot", "pot", "cot_pot"))])
    names = [row.name for row in find(tables, "1").rows]
    assert "`cot_pot`" in names and {"`all` + plan + PoT", "`all` + all three, same N"} <= set(names)
    assert find(tables, "3") and parse_name("md-hard-gsm8k", ("gsm8k", "hard-gsm8k")).trained_on == "hard-gsm8k"
