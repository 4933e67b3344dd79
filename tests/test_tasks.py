import hashlib
import json
import random
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter

import pytest
from conftest import SHARED, needs_shared
from hypothesis import given
from hypothesis import strategies as st

from md_trl.tasks import TASKS, asdiv, gsm8k, load_questions, strategyqa, svamp
from md_trl.tasks.loading import draw_test


DATA = SHARED / "data"
SIZES = {"svamp": (700, 300), "gsm8k": (7473, 1319), "asdiv": (1610, 695), "strategyqa": (2061, 229)}
MODULES = {"svamp": svamp, "gsm8k": gsm8k, "asdiv": asdiv, "strategyqa": strategyqa}

needs_svamp = needs_shared("data/SVAMP.json")
needs_gsm8k = needs_shared("data/gsm8k")
needs_asdiv = needs_shared("data/ASDiv.xml")
needs_strategyqa = needs_shared("data/strategyqa")
needs_all = needs_shared("data/SVAMP.json", "data/gsm8k", "data/ASDiv.xml", "data/strategyqa")


def both_splits(task, source=DATA, **options):
    return [question for split in ("train", "test") for question in load_questions(task, split, source, **options)]


def name(question):
    return question.id.split("/")[2]


def read_svamp():
    return json.loads((DATA / "SVAMP.json").read_text(encoding="utf-8"))


def read_gsm8k(split):
    return [json.loads(line) for line in (DATA / "gsm8k" / f"{split}.jsonl").open(encoding="utf-8")]


def read_asdiv():
    return list(ElementTree.parse(DATA / "ASDiv.xml").iter("Problem"))


def read_strategyqa(file):
    return json.loads((DATA / "strategyqa" / f"{file}.json").read_text(encoding="utf-8"))


def test_importing_tasks_and_prompts_is_light():
    code = "import sys, md_trl.tasks, md_trl.prompts; print({'torch', 'datasets', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_an_unknown_task_or_split_is_an_error():
    with pytest.raises(ValueError, match="'aqua'.*svamp, gsm8k, asdiv, strategyqa, stories"):
        load_questions("aqua", "train")
    for task in TASKS:
        with pytest.raises(ValueError, match=f"'validation'.*{task}.*train, test"):
            load_questions(task, "validation")


@needs_all
@pytest.mark.parametrize("task", SIZES)
def test_splits_have_the_published_sizes_and_are_disjoint(task):
    train, test = (load_questions(task, split, DATA) for split in ("train", "test"))
    assert (len(train), len(test)) == SIZES[task]
    assert len({question.id for question in train + test}) == sum(SIZES[task])
    if task != "gsm8k":  # whose names are row numbers within a split
        assert not set(map(name, train)) & set(map(name, test))
    for split, questions in (("train", train), ("test", test)):
        for question in questions:
            assert (question.task, question.split) == (task, split)
            assert question.id.startswith(f"{task}/{split}/")
            assert question.question and question.answer
            # In a prompt, the trigger is on the next line.
            assert "\n" not in question.question and question.question == question.question.strip()


@needs_all
@pytest.mark.parametrize(
    ("task", "options", "first", "digest"),
    [
        ("svamp", {}, "svamp/test/chal-6", "26a39dae3057"),
        ("asdiv", {}, "asdiv/test/nluds-0002", "fb5bfb997d36"),
        ("strategyqa", {"protocol": "paper"}, "strategyqa/test/2bc9c4f9c19c167187f2", "fb8ebda82c59"),
    ],
)
def test_drawn_splits_are_pinned(task, options, first, digest):
    # Results on different splits cannot be compared, so the draw must never change, in any version of Python.
    ids = [question.id for question in load_questions(task, "test", DATA, **options)]
    assert ids[0] == first
    assert hashlib.sha256("\n".join(ids).encode()).hexdigest()[:12] == digest
    assert ids != [question.id for question in load_questions(task, "test", DATA, seed=43, **options)]


@needs_svamp
def test_svamp_answers_match_its_equations():
    equations = {row["ID"]: row["Equation"] for row in read_svamp()}
    for question in both_splits("svamp"):
        assert re.fullmatch(r"\d+", question.answer)
        if name(question) != "chal-680":  # whose answer in the file is wrong
            assert int(question.answer) == eval(equations[name(question)])


@needs_svamp
def test_svamp_questions_keep_every_word():
    rows = {row["ID"]: row for row in read_svamp()}
    for question in both_splits("svamp", DATA / "SVAMP.json"):
        row = rows[name(question)]
        words = re.findall(r"\w+", f"{row['Body']} {row['Question']}".lower())
        assert re.findall(r"\w+", question.question.lower()) == words


@pytest.mark.parametrize(
    ("body", "question", "joined"),
    [
        ("He ate 9 cookies.", "How many were left?", "He ate 9 cookies. How many were left?"),
        ("There are 36 teachers", "How many pupils?", "There are 36 teachers. How many pupils?"),
        ("Dan had $ 3 left. If he had $ 4", "How much was it?", "Dan had $ 3 left. If he had $ 4, how much was it?"),
        ("If Ed had 27 marbles", "How many has he?", "If Ed had 27 marbles, how many has he?"),
        ("If so, fine. Then he got $ 5", "What is left?", "If so, fine. Then he got $ 5. What is left?"),
    ],
)
def test_svamp_joins_a_body_without_a_period(body, question, joined):
    assert svamp.join(body, question) == joined


@needs_svamp
def test_svamp_test_set_has_every_type_in_proportion():
    types = {row["ID"]: row["Type"].replace("Divison", "Division") for row in read_svamp()}
    drawn = Counter(types[name(question)] for question in load_questions("svamp", "test", DATA))
    assert all(abs(drawn[kind] - 0.3 * count) < 1 for kind, count in Counter(types.values()).items())


@needs_svamp
def test_svamp_split_does_not_depend_on_the_order_of_the_file(tmp_path):
    rows = read_svamp()
    random.Random(0).shuffle(rows)
    (tmp_path / "shuffled.json").write_text(json.dumps(rows), encoding="utf-8")
    shuffled = load_questions("svamp", "test", str(tmp_path / "shuffled.json"))
    assert {question.id: question for question in shuffled} == {
        question.id: question for question in load_questions("svamp", "test", str(DATA))
    }


@needs_gsm8k
def test_gsm8k_answers_are_the_numbers_after_the_mark():
    for split in ("train", "test"):
        questions = load_questions("gsm8k", split, DATA / "gsm8k" / f"{split}.jsonl")
        for n, (question, row) in enumerate(zip(questions, read_gsm8k(split), strict=True)):
            assert question.id == f"gsm8k/{split}/{n}"
            assert question.question == row["question"]
            assert question.answer == str(int(row["answer"].split("#### ")[1].replace(",", "")))


@needs_asdiv
def test_asdiv_test_set_has_every_grade_in_proportion():
    grades = {problem.get("ID"): problem.get("Grade") for problem in read_asdiv()}
    drawn = Counter(grades[name(question)] for question in load_questions("asdiv", "test", DATA))
    assert all(abs(drawn[grade] - 695 / 2305 * count) < 1 for grade, count in Counter(grades.values()).items())


@needs_asdiv
def test_asdiv_answers_lose_only_their_units():
    problems = {problem.get("ID"): problem for problem in read_asdiv()}
    answers = {name(question): question.answer for question in both_splits("asdiv", DATA / "ASDiv.xml")}
    assert answers.keys() == problems.keys()
    for key, problem in problems.items():
        original = problem.findtext("Answer")
        if re.match(r"[\d.]+ +\(", original):
            # Every number in front of a unit, in order, whatever is in the brackets.
            assert answers[key].split("; ") == re.findall(r"([\d.]+) +\(", original)
        elif key != "nluds-1331":
            assert answers[key] == original
    for key, answer in {
        "nluds-0001": "9",
        "nluds-0030": "Mrs. Hilt",
        "nluds-0166": "3:30 p.m.",
        "nluds-0850": "5:6",
        "nluds-1008": "14",  # two spaces before its unit
        "nluds-1053": "They are equal",
        "nluds-1295": "5; 15; 20",
        "nluds-1312": "5/2",
        "nluds-1326": "60; 72",
        "nluds-1331": "-1/3",  # -(1/3) in the file
        "nluds-1345": "8; 128",
        "nluds-1439": "3.5; 1.8",
    }.items():
        assert answers[key] == answer


@needs_strategyqa
def test_strategyqa_dev_set_is_the_test_set():
    for split, file in (("train", "train"), ("test", "dev")):
        expected = [
            (f"strategyqa/{split}/{row['qid']}", row["question"].strip(), "yes" if row["answer"] else "no")
            for row in read_strategyqa(file)
        ]
        questions = load_questions("strategyqa", split, DATA / "strategyqa")
        assert [(question.id, question.question, question.answer) for question in questions] == expected


@needs_strategyqa
def test_strategyqa_paper_split_draws_687_of_all():
    train, test = (load_questions("strategyqa", split, DATA, protocol="paper") for split in ("train", "test"))
    assert (len(train), len(test)) == (1603, 687)
    assert {name(question) for question in train + test} == {name(question) for question in both_splits("strategyqa")}
    assert test != load_questions("strategyqa", "test", DATA, seed=43, protocol="paper")


def test_strategyqa_unknown_protocol():
    with pytest.raises(ValueError, match="'687'.*dev, paper"):
        load_questions("strategyqa", "test", protocol="687")


@given(
    strata=st.dictionaries(st.text(max_size=5), st.sampled_from("abc"), min_size=1, max_size=60),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_draw_test_gives_every_stratum_its_share(strata, share, seed):
    size = round(share * len(strata))
    drawn = draw_test(strata, size, seed)
    assert drawn <= strata.keys() and len(drawn) == size
    for stratum, count in Counter(strata.values()).items():
        assert abs(sum(strata[name] == stratum for name in drawn) - size * count / len(strata)) < 1
    assert drawn == draw_test(dict(reversed(strata.items())), size, seed)


class TestHub:
    """The loaders read datasets in the layout they have on the Hub, here from copies on disk."""

    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    @staticmethod
    def publish(folder, splits, config="default"):
        from datasets import Dataset

        files = "".join(f"\n  - split: {split}\n    path: {split}.parquet" for split in splits)
        folder.mkdir()
        (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: {config}\n  data_files:{files}\n---\n")
        for split, rows in splits.items():
            Dataset.from_list(rows).to_parquet(folder / f"{split}.parquet")
        return str(folder)

    @needs_svamp
    def test_svamp(self, tmp_path, monkeypatch):
        rows = [{**row, "Answer": str(row["Answer"]), "question_concat": ""} for row in read_svamp()]
        folder = self.publish(tmp_path / "SVAMP", {"train": rows[300:], "test": rows[:300]})
        monkeypatch.setattr(svamp, "HUB", folder)
        local = {name(question): question for question in both_splits("svamp")}
        for split, expected in (("train", rows[300:]), ("test", rows[:300])):
            questions = load_questions("svamp", split)
            assert [question.id for question in questions] == [f"svamp/{split}/{row['ID']}" for row in expected]
            for question in questions:
                assert question.question == local[name(question)].question
                assert question.answer == local[name(question)].answer

    @needs_gsm8k
    def test_gsm8k(self, tmp_path, monkeypatch):
        splits = {split: read_gsm8k(split) for split in ("train", "test")}
        monkeypatch.setattr(gsm8k, "HUB", self.publish(tmp_path / "gsm8k", splits, config="main"))
        assert both_splits("gsm8k", None) == both_splits("gsm8k")

    @needs_asdiv
    def test_asdiv_without_ids_and_grades(self, tmp_path, monkeypatch):
        rows = [
            {"body": p.findtext("Body"), "question": p.findtext("Question"), "answer": p.findtext("Answer")}
            for p in read_asdiv()
        ]
        folder = self.publish(tmp_path / "asdiv", {"validation": rows}, config="asdiv")
        monkeypatch.setattr(asdiv, "HUB", folder)
        assert both_splits("asdiv", None) == both_splits("asdiv")

    @needs_strategyqa
    @pytest.mark.parametrize("protocol", ["dev", "paper"])
    def test_strategyqa_in_one_split(self, tmp_path, monkeypatch, protocol):
        rows = [
            {column: row[column] for column in ("qid", "question", "answer", "facts")}
            for file in ("train", "dev")
            for row in read_strategyqa(file)
        ]
        monkeypatch.setattr(strategyqa, "HUB", self.publish(tmp_path / "strategyqa", {"train": rows}))
        (tmp_path / "strategyqa_train.json").write_text(json.dumps(rows), encoding="utf-8")
        expected = both_splits("strategyqa", protocol=protocol)
        assert both_splits("strategyqa", None, protocol=protocol) == expected
        assert both_splits("strategyqa", tmp_path / "strategyqa_train.json", protocol=protocol) == expected

    def test_a_missing_column_is_named(self, tmp_path, monkeypatch):
        rows = [{"question": "Is ice cold?", "answer": True}]
        monkeypatch.setattr(strategyqa, "HUB", self.publish(tmp_path / "strategyqa", {"train": rows}))
        with pytest.raises(ValueError, match="split train, row 1.*'qid'.*'question', 'answer'.*eladsegal/strategyqa"):
            load_questions("strategyqa", "train")

    @pytest.mark.parametrize("task", SIZES)
    def test_a_hub_that_is_out_of_reach(self, task, monkeypatch):
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        monkeypatch.setattr(MODULES[task], "HUB", "md-trl/nothing-here")
        with pytest.raises(ConnectionError, match="'md-trl/nothing-here' from the Hub.*Pass .* as `source`"):
            load_questions(task, "train")


FILES = {"svamp": "SVAMP.json", "gsm8k": "train.jsonl", "asdiv": "ASDiv.xml", "strategyqa": "train.json"}


def good_rows(task):
    """Generate as many rows as the original file has."""
    if task == "svamp":
        row = {"Body": "Ann has 2 hens.", "Question": "How many hens has Ann?", "Answer": 2.0, "Type": "Addition"}
        return [{"ID": f"chal-{n}", **row} for n in range(1000)]
    if task == "gsm8k":
        return [{"question": f"How many hens are {n} hens?", "answer": f"All.\n#### {n:,}"} for n in range(7473)]
    if task == "asdiv":
        row = {"Body": "Ann has 2 hens.", "Question": "How many hens has Ann?", "Answer": "2 (hens)"}
        return [{"ID": f"nluds-{n}", "Grade": str(n % 6 + 1), **row} for n in range(2305)]
    return [{"qid": f"{n:020x}", "question": f"Is {n} odd?", "answer": n % 2 == 1} for n in range(2290)]


def write(folder, task, rows):
    file = folder / FILES[task]
    if task == "gsm8k":
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    elif task == "asdiv":
        root = ElementTree.Element("ProblemSet")
        for row in rows:
            problem = ElementTree.SubElement(root, "Problem", {key: row[key] for key in ("ID", "Grade") if key in row})
            for column in [column for column in ("Body", "Question", "Answer") if column in row]:
                ElementTree.SubElement(problem, column).text = row[column]
        ElementTree.ElementTree(root).write(file, encoding="utf-8")
    else:
        file.write_text(json.dumps(rows), encoding="utf-8")
    return file


def assert_fails(task, source, *words, error=ValueError):
    """Check that the error names the file, what is wrong with it, and where to get the right one."""
    with pytest.raises(error) as raised:
        load_questions(task, "train", str(source))
        load_questions(task, "test", str(source))
    for word in (str(source), *words, "Pass ", "as `source`, or leave `source` out", "from the Hub."):
        assert word in str(raised.value)


@pytest.mark.parametrize("task", SIZES)
def test_a_missing_file(task, tmp_path):
    assert_fails(task, tmp_path / "nothing", "does not exist", error=FileNotFoundError)
    assert_fails(task, tmp_path, f"holds no {FILES[task]}", error=FileNotFoundError)


@pytest.mark.parametrize("task", SIZES)
def test_a_file_in_the_wrong_format(task, tmp_path):
    (tmp_path / "page.html").write_text("<html>\nNot found", encoding="utf-8")
    assert_fails(task, tmp_path / "page.html", "XML" if task == "asdiv" else "JSON")


@pytest.mark.parametrize("task", SIZES)
def test_an_incomplete_file(task, tmp_path):
    expected = "7,473" if task == "gsm8k" else f"{sum(SIZES[task]):,}"
    assert_fails(task, write(tmp_path, task, good_rows(task)[:12]), f"holds 12 rows, expected {expected}")


@pytest.mark.parametrize(
    ("task", "column"), [("svamp", "ID"), ("gsm8k", "answer"), ("asdiv", "Grade"), ("strategyqa", "question")]
)
def test_a_row_with_a_missing_column(task, column, tmp_path):
    rows = good_rows(task)
    del rows[4][column]
    assert_fails(task, write(tmp_path, task, rows), "row 5", f"no column {column!r}" if task != "asdiv" else "'grade'")


@pytest.mark.parametrize(
    ("task", "column", "value"),
    [
        ("svamp", "Answer", "a dozen"),
        ("svamp", "Answer", float("nan")),
        ("svamp", "Answer", None),
        ("svamp", "Answer", True),
        ("svamp", "Question", "  "),
        ("svamp", "ID", 12),
        ("gsm8k", "answer", "There are 2 hens."),
        ("gsm8k", "answer", "#### a dozen"),
        ("gsm8k", "question", None),
        ("asdiv", "Answer", None),
        ("strategyqa", "answer", "yes"),
        ("strategyqa", "answer", None),
    ],
)
def test_a_row_with_a_wrong_value(task, column, value, tmp_path):
    rows = good_rows(task)
    rows[4][column] = value
    assert_fails(task, write(tmp_path, task, rows), "row 5", column if task != "asdiv" else "answer", repr(value))


@pytest.mark.parametrize(("task", "column"), [("svamp", "ID"), ("asdiv", "ID"), ("strategyqa", "qid")])
def test_a_duplicate_row(task, column, tmp_path):
    rows = good_rows(task)
    rows[4][column] = rows[7][column]
    assert_fails(task, write(tmp_path, task, rows), f"{rows[7][column]!r} twice")


def test_json_that_is_not_a_list_of_objects(tmp_path):
    file = tmp_path / "SVAMP.json"
    file.write_text('{"rows": 3}', encoding="utf-8")
    assert_fails("svamp", file, "{'rows': 3}", "list of objects")
    file.write_text('[{"ID": "chal-1"}, 17]', encoding="utf-8")
    assert_fails("svamp", file, "row 2", "17 is not an object")


def test_an_invalid_line_is_named(tmp_path):
    file = write(tmp_path, "gsm8k", good_rows("gsm8k"))
    file.write_text(file.read_text(encoding="utf-8").replace("#### 41", '"'), encoding="utf-8")
    assert_fails("gsm8k", file, "row 42 is not JSON")


def test_strategyqa_needs_both_files(tmp_path):
    write(tmp_path, "strategyqa", good_rows("strategyqa")[:2061])
    assert_fails("strategyqa", tmp_path, "holds no dev.json", error=FileNotFoundError)
