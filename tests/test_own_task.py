"""A task of one's own: what its file may hold, what each mistake is told, and all commands that take it."""

import csv
import hashlib
import json
import os
import random
import runpy
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pyarrow
import pytest
import yaml
from commands import message
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from servers.hub import running_hub
from students import byte_tokenizer, tiny_llama
from transformers import AutoTokenizer

from md_trl import MixedThoughts
from md_trl.answers import canonical, equal
from md_trl.answers.limits import limitation
from md_trl.cli import main
from md_trl.cli.train import RecipeArguments, _load_rows
from md_trl.errors import InputError
from md_trl.execution import Executor
from md_trl.few_shot import load_few_shot
from md_trl.prompts import student_prompt, teacher_messages, teacher_prompt
from md_trl.records import Choice
from md_trl.sampling import sample
from md_trl.sampling.engines import SampleResult
from md_trl.store import Store
from md_trl.student_folder import weights_digest
from md_trl.tasks import SPLITS, TASKS, is_own_file, load_questions, own_file, task_name
from md_trl.trainer import MDConfig


ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "own_task"
ENDINGS = ("jsonl", "json", "csv", "parquet")


def write(file, rows):
    """Write rows in the format that the file's name says."""
    file = Path(file)
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows, indent=1))
    elif file.suffix == ".csv":
        with file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return str(file)


def sums(n):
    return [{"question": f"What is {i} plus 1?", "answer": i + 1} for i in range(n)]


def both_splits(file, **options):
    return [question for split in SPLITS for question in load_questions(file, split, **options)]


def name_of(question):
    return question.id.split("/", 2)[2]


# What a file may hold


@pytest.mark.parametrize("ending", ENDINGS)
def test_all_formats_hold_the_same_task(tmp_path, ending):
    rows = [row | {"split": "test" if i < 3 else "train"} for i, row in enumerate(sums(10))]
    questions = both_splits(write(tmp_path / f"sums.{ending}", rows))
    assert [(q.task, q.split, q.question, q.answer) for q in questions] == [
        ("sums", split, f"What is {i} plus 1?", str(i + 1))
        for split, numbers in (("train", range(3, 10)), ("test", range(3)))
        for i in numbers
    ]
    for question in questions:
        digest = hashlib.sha256(question.question.encode()).hexdigest()
        assert question.id == f"sums/{question.split}/{digest[:16]}"
    # An upper-case ending and a byte order mark are what other programs write
    if ending != "parquet":
        file = tmp_path / f"SUMS.{ending.upper()}"
        file.write_bytes(b"\xef\xbb\xbf" + (tmp_path / f"sums.{ending}").read_bytes())
        assert [q.question for q in both_splits(file, name="sums")] == [q.question for q in questions]


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (5, "5"),
        (5.0, "5"),
        (-0.25, "-0.25"),
        (10**30, str(10**30)),
        (True, "yes"),
        (False, "no"),
        ("  Box C ", "Box C"),
        ("5 km", "5 km"),
        (Decimal("7.50"), "7.50"),
    ],
)
def test_answers_are_texts_numbers_or_truth_values(tmp_path, value, answer):
    ending = "parquet" if isinstance(value, Decimal) else "jsonl"
    file = write(tmp_path / f"t.{ending}", [{"question": "Q?", "answer": value, "split": "train"}])
    assert load_questions(file, "train")[0].answer == answer
    assert equal(answer, value)


def test_ids_are_those_of_the_file_where_there_are_any(tmp_path):
    ids = ["a", 7, "x/y", None, ""]
    rows = [row | {"id": id_, "split": "train"} for row, id_ in zip(sums(5), ids, strict=True)]
    questions = load_questions(write(tmp_path / "t.jsonl", rows), "train")
    digests = [hashlib.sha256(question.question.encode()).hexdigest()[:16] for question in questions]
    assert [name_of(question) for question in questions] == ["a", "7", "x/y", *digests[3:]]
    # pandas writes integers as floats where some are missing
    rows = [{"question": "A?", "answer": "1", "id": 3.0}, {"question": "B?", "answer": "1", "id": None}]
    file = write(tmp_path / "t.parquet", rows)
    assert {name_of(question) for question in both_splits(file)} >= {"3"}


@settings(max_examples=60)
@given(
    texts=st.lists(st.text("abc ", min_size=1).filter(str.strip), min_size=2, unique_by=lambda t: " ".join(t.split()))
)
def test_a_fifth_is_drawn_whatever_the_order_of_the_rows(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("t")
    rows = [{"question": text, "answer": "1"} for text in texts]
    first = both_splits(write(folder / "t.jsonl", rows))
    random.Random(len(texts)).shuffle(rows)
    again = both_splits(write(folder / "t.jsonl", rows))
    assert {question.id for question in first} == {question.id for question in again}
    tests = sum(question.split == "test" for question in first)
    assert tests == max(1, int(len(texts) / 5 + 0.5))
    # One more row renames no question, and moves at most one to the other split
    rows.append({"question": "another question", "answer": "1"})
    grown = {name_of(question): question.split for question in both_splits(write(folder / "t.jsonl", rows))}
    assert {name_of(question) for question in first} < set(grown)
    assert sum(grown[name_of(question)] != question.split for question in first) <= 1


def test_the_draw_is_seeded_and_pinned(tmp_path):
    file = write(tmp_path / "sums.jsonl", sums(20))
    drawn = {seed: [question.answer for question in load_questions(file, "test", seed=seed)] for seed in (42, 43)}
    assert drawn[42] != drawn[43]
    # Students that were evaluated on different splits cannot be compared, so the draw must never change
    assert drawn[42] == PINNED


PINNED = ["1", "3", "12", "16"]


def test_a_task_may_have_another_name_than_its_file(tmp_path):
    file = write(tmp_path / "sums.jsonl", sums(5))
    assert task_name(file) == task_name(Path(file)) == "sums" and task_name(file, "adding") == "adding"
    assert {question.task for question in both_splits(file, name="adding")} == {"adding"}
    assert all(task_name(task) == task and not is_own_file(task) for task in TASKS)


def test_a_built_in_task_is_itself_even_beside_a_file_or_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("stories").mkdir()
    Path("svamp").write_text("")
    Path("mine").write_text("")
    assert task_name("mine") == "mine"  # a task of a store, not the file
    assert len(load_questions("stories", "test")) == 1200 and not is_own_file("svamp")


# Mistakes

Q = {"question": "Q?", "answer": "1"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "t.jsonl",
            '{"question": "Q?", "answer": "1"}\n{"question": " ", "answer": "1"}',
            r"t.jsonl, row 2: 'question' is ' '",
        ),
        (
            "t.jsonl",
            '{"question": "Q?", "answer": ""}',
            "row 1: 'answer' is '', expected a text of one line, a number",
        ),
        ("t.jsonl", '{"question": "Q?", "answer": null}', "row 1: 'answer' is None"),
        ("t.jsonl", '{"question": "Q?", "answer": ["3", "4"]}', r"row 1: 'answer' is \['3', '4'\]"),
        ("t.jsonl", '{"question": "Q?", "answer": NaN}', "row 1: 'answer' is nan"),
        ("t.jsonl", '{"question": "Q?", "answer": "a\\nb"}', "expected a text of one line"),
        ("t.jsonl", '{"question": "\\ud800", "answer": "1"}', "expected valid Unicode"),
        ("t.jsonl", '{"question": 5, "answer": "1"}', "row 1: 'question' is 5, expected a text"),
        (
            "t.jsonl",
            '\n{"question": "Q?", "answer": 1}\n\n{"question": "Q?", "answer": 2}',
            "row 4: .*'Q\\?' is also in .*t.jsonl, row 2",
        ),
        (
            "t.jsonl",
            '{"question": "a  b", "answer": 1}\n{"question": "a b", "answer": 2}',
            "row 2: the question 'a b' is also in",
        ),
        (
            "t.jsonl",
            '{"question": "a", "answer": 1, "id": 5}\n{"question": "b", "answer": 2, "id": "5"}',
            "row 2: the id '5' is also in .*row 1",
        ),
        (
            "t.jsonl",
            '{"question": "a", "answer": 1, "id": true}',
            "row 1: 'id' is True, expected a text or an integer",
        ),
        (
            "t.jsonl",
            '{"question": "a", "answer": 1, "split": "dev"}',
            "row 1: 'split' is 'dev', expected 'train' or 'test'",
        ),
        (
            "t.jsonl",
            '{"question": "a", "answer": 1, "split": "test"}\n{"question": "b", "answer": 1}',
            "row 2: there is no column 'split'",
        ),
        (
            "t.jsonl",
            '{"question": "a", "answer": 1, "split": "test"}',
            "no questions of the split 'train': all 1 are 'test'",
        ),
        ("t.jsonl", '{"question": "a", "answer": 1}\nnonsense', "row 2 is not JSON"),
        ("t.jsonl", "[1]", r"row 1: \[1\] is not an object"),
        ("t.jsonl", "", "holds no questions"),
        (
            "t.jsonl",
            '{"questoin": "a", "answer": 1}',
            "no column 'question', only 'questoin', 'answer'. Did you mean 'question' by 'questoin'\\?",
        ),
        ("t.json", '{"question": "a", "answer": 1}', "expected a list of objects"),
        ("t.json", "[" * 100_000, "is not a JSON file"),
        ("t.csv", "Question,answer\na,1", "Did you mean 'question' by 'Question'\\?"),
        ("t.csv", "question,answer,Split\na,1,test", "Did you mean 'split' by 'Split'\\?"),
        ("t.csv", "question,answer,ID\na,1,5", "Did you mean 'id' by 'ID'\\?"),
        (
            "t.csv",
            "question,answer\nHow many, then?,1,",
            "row 1 has more values than there are columns.*double quotes",
        ),
        ("t.csv", "question,answer\na,1\nb", "row 2: 'answer' is None"),
        ("t.csv", "question;answer\na;1", "commas between columns"),
        ("t.csv", "question,answer,answer\na,1,1", "two columns 'answer'"),
        ("t.csv", 'question,answer\na,1\n"b"c,1', "row 2 cannot be read as CSV"),
        ("t.csv", b"question,answer\nWie viele \xc4pfel?,1", "is not UTF-8 text"),
        ("t.parquet", "PAR1", "cannot be read as Parquet"),
        ("t.txt", "Q? 1", "ends in '.txt', expected one of .jsonl, .json, .csv, .parquet"),
        ("svamp.jsonl", json.dumps(Q), "cannot be named 'svamp', as a task of md_trl is. Rename .*svamp.jsonl"),
        (
            "my questions.jsonl",
            json.dumps(Q),
            "'my questions' cannot be the name of a task.*for example 'my_questions'",
        ),
        ("default.jsonl", json.dumps(Q), "A task cannot be named 'default'"),
        ("my-paths.jsonl", json.dumps(Q), "A task cannot be named 'my-paths'"),
    ],
)
def test_each_mistake_in_a_file_names_the_row_and_the_way_out(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        load_questions(file, "train")


def test_a_task_that_is_neither_known_nor_a_file_is_explained(tmp_path):
    with pytest.raises(InputError, match="Unknown task 'poetry'.*svamp.*or name a file of questions"):
        load_questions("poetry", "train")
    for absent in ("absent.jsonl", "./absent", "data/absent.csv"):
        with pytest.raises(FileNotFoundError, match="absent.* does not exist"):
            load_questions(absent, "train")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load_questions(f"{tmp_path}/", "train")
    file = write(tmp_path / "t.jsonl", sums(5))
    with pytest.raises(InputError, match="'train' or|Choose one of train, test"):
        load_questions(file, "validation")
    with pytest.raises(InputError, match="Leave out source"):
        load_questions(file, "train", source="x.json")
    with pytest.raises(InputError, match="`task_name` is 'mine', but 'svamp' is a task"):
        load_questions("svamp", "train", name="mine")
    with pytest.raises(InputError, match="named 'gsm8k'.*Choose another `task_name`"):
        load_questions(file, "train", name="gsm8k")


# Answers that equality cannot hold


@pytest.mark.parametrize(
    ("answer", "same", "kind"),
    [
        ("5 km", "5 m", "with a unit"),
        ("3 hours", "3", "with a unit"),
        ("five apples", "5", "with a unit"),
        ("25%", "25", "with a unit"),
        ("2/3 cup", "2/3", "with a unit"),
        ("3.14159", "3.14", "with more digits"),
        ("0.123456", "0.1235", "with more digits"),
        ("...", "", "without anything"),
        ("3, 4 and 5", "3;4;5", "with several parts"),
        (" ".join(["word"] * 11), " ".join(["Word"] * 11) + "!", "of more than 10 words"),
    ],
)
def test_what_equality_loses_is_said(answer, same, kind):
    assert equal(answer, same) and limitation(answer).startswith(kind)


@given(
    st.integers() | st.decimals(-1000, 1000, places=2) | st.sampled_from(["yes", "no", "Anna", "Box C", "$5", "5:15"])
)
def test_nothing_is_said_of_answers_that_are_compared_in_full(answer):
    if "." in str(answer) and abs(answer) < 1:
        return  # 4 significant digits
    assert limitation(str(answer)) is None


def test_one_warning_names_counts_and_rows(tmp_path, caplog):
    answers = ["5 km", "5 m", "yes", "7", "6 m", "8 m", "1, 2 and 3"]
    rows = [row | {"answer": answer, "split": "train"} for row, answer in zip(sums(7), answers, strict=True)]
    load_questions(write(tmp_path / "t.jsonl", rows), "train")
    [record] = caplog.records
    for part in (
        "5 of 7 answers can only be compared in part",
        "compared in part: 4 with a unit, which is dropped, so that '3 hours', '3 days' and '3' are equal",
        "(row 1: '5 km'; row 2: '5 m'; row 5: '6 m'; ...)",
        "1 with several parts",
        "(row 7: '1, 2 and 3')",
    ):
        assert part in record.getMessage()
    caplog.clear()
    load_questions(write(tmp_path / "t.jsonl", sums(7)), "train")
    assert not caplog.records


# Few-shot examples

EXAMPLE = {"question": "What is 2 plus 3?", "cot": "2 + 3 = 5. The answer is 5.", "pot": "answer = 2 + 3"}


@pytest.mark.parametrize("ending", ENDINGS)
def test_few_shot_examples_are_read_from_all_formats(tmp_path, ending):
    with Executor() as executor:
        file = write(tmp_path / f"few.{ending}", [EXAMPLE, EXAMPLE | {"question": "And 3 plus 2?"}])
        assert load_few_shot(file, executor) == [EXAMPLE, EXAMPLE | {"question": "And 3 plus 2?"}]


def test_a_plan_is_an_example_of_the_third_path(tmp_path):
    file = write(tmp_path / "few.jsonl", [EXAMPLE | {"plan": "We add three to two."}])
    with Executor() as executor:
        [example] = load_few_shot(file, executor)
    assert example["cot_pot"] == f"We add three to two.\n```python\n{example['pot']}\n```"
    [question] = own_file.load(write(tmp_path / "t.jsonl", [{"question": "1 + 1?", "answer": 2, "split": "test"}]))
    assert teacher_messages(question, "cot_pot", [example])[1]["content"] == example["cot_pot"]
    with pytest.raises(InputError, match="has no 'cot_pot'. Add a `plan` to it"):
        teacher_messages(question, "cot_pot", [EXAMPLE])


def test_a_group_is_kept(tmp_path):
    rows = [{"question": f"{i} + 1?", "answer": i + 1, "group": group} for i, group in enumerate(["sums", "", None])]
    assert [q.group for q in own_file.load(write(tmp_path / "t.jsonl", rows))] == ["sums", None, None]


def test_each_mistake_in_few_shot_examples_is_found_before_anything_is_paid(tmp_path):
    mistakes = [
        ({"cot": "It is five."}, r"row 2: 'cot' reaches no answer \('It is five.'\). End it with"),
        ({"pot": "answer = ="}, r"row 2: 'pot' reaches no answer \(SyntaxError"),
        ({"pot": "answer = 1 / 0"}, r"row 2: 'pot' reaches no answer \(.*ZeroDivisionError"),
        ({"pot": "x = 5"}, "row 2: 'pot' reaches no answer .*Assign the answer to the variable"),
        ({"pot": "answer = 6"}, "row 2: 'cot' reaches the answer '5', but 'pot' reaches '6'. Correct one"),
        ({"answer": "7"}, "row 2: 'cot' reaches the answer '5', but 'answer' is '7'"),
        ({"pot": ""}, "row 2: 'pot' is '', expected a text"),
        ({"cot": "\ud800 The answer is 5."}, "row 2: 'cot' is .*expected valid Unicode"),
        ({"question": EXAMPLE["question"]}, "row 2: the question .* is also in .*row 1"),
    ]
    file = tmp_path / "few.jsonl"
    with Executor() as executor:
        for change, message in mistakes:
            write(file, [EXAMPLE, EXAMPLE | {"question": "Another?"} | change])
            with pytest.raises(InputError, match=message):
                load_few_shot(file, executor)
        write(file, [{"question": "Q?", "cot": "The answer is 5.", "program": "answer = 5"}])
        with pytest.raises(InputError, match="no column 'pot'.*'question', 'cot' and 'pot'"):
            load_few_shot(file, executor)
        with pytest.raises(FileNotFoundError, match="no file of few-shot examples .*absent"):
            load_few_shot(tmp_path / "absent.jsonl", executor)
        # A program may be a list of lines, and `answer` any form of the answer
        write(file, [EXAMPLE | {"pot": ["x = 2", "answer = x + 3"], "answer": 5.0}])
        assert load_few_shot(file, executor)[0]["pot"] == "x = 2\nanswer = x + 3"


def test_an_example_that_is_asked_itself_is_named(tmp_path, caplog):
    file = write(tmp_path / "few.jsonl", [EXAMPLE])
    questions = load_questions(write(tmp_path / "t.jsonl", [{"question": EXAMPLE["question"], "answer": 5}]), "train")
    with Executor() as executor:
        load_few_shot(file, executor, questions)
    assert f"row 1: this example is the question {questions[0].id!r}" in caplog.text


def test_the_sample_files_are_right(caplog):
    """Every answer of the questions is in canonical form, and both thoughts of every example reach its answer."""
    questions = both_splits(RECIPE / "questions.jsonl")
    assert len(questions) == 40 and {"yes", "no"} <= {question.answer for question in questions}
    assert not caplog.records
    with Executor() as executor:
        examples = load_few_shot(RECIPE / "few_shot.jsonl", executor)
    assert not {example["question"] for example in examples} & {question.question for question in questions}
    assert all(canonical(question.answer) for question in questions)


def test_the_sample_recipe_trains_as_the_one_it_is_made_from():
    own = yaml.safe_load((RECIPE / "smollm2-135m.yaml").read_text())
    svamp = yaml.safe_load((ROOT / "recipes" / "smollm2-135m" / "svamp.yaml").read_text())
    data = {"dataset", "store", "task", "model_name_or_path", "output_dir", "eval_task", "eval_store", "eval_output"}
    only_svamp = {"eval_source", "eval_limit", "validation"}
    assert set(svamp) - set(own) == only_svamp and set(own) <= set(svamp)
    assert {name for name in own if own[name] != svamp[name]} == data
    assert (RECIPE / own["task"]).is_file() and own["eval_task"] == own["task"]


# Stores


class Engine:
    """Answers every question with the same text."""

    model = "constant"

    def generate(self, requests):
        for request in requests:
            yield SampleResult(request, [Choice("The answer is 1.", "stop")] * request.n)


def test_a_question_that_moves_to_the_other_split_is_never_learned_and_tested(tmp_path):
    """A drawn split changes when the file grows: a store that holds the old one refuses the new one."""
    file = write(tmp_path / "sums.jsonl", sums(12))
    with Store(tmp_path / "t.db") as store:
        store.questions.add(both_splits(file))
        more = sums(40)
        write(file, more)
        with pytest.raises(InputError, match="in the split '(train|test)', but now it is in .*column `split`"):
            store.questions.add(both_splits(file))
        assert len(store.questions.load()) == 12
        # The way out: write the split into the file
        old = {question.question: question.split for question in store.questions.load()}
        write(file, [row | {"split": old.get(row["question"], "train")} for row in more])
        assert store.questions.add(both_splits(file)) == 28


# All commands


@pytest.fixture(scope="module")
def teacher():
    command = [sys.executable, "-m", "md_trl", "teacher", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().split()[0]
        process.terminate()


def puzzles(folder, n=30):
    """Write stories as a task of one's own, which the simulated teacher recognizes by their text."""
    stories = load_questions("stories", "train")[:n]
    return write(folder / "puzzles.csv", [{"question": q.question, "answer": q.answer} for q in stories])


def test_a_task_of_ones_own_goes_through_all_commands(tmp_path, teacher, monkeypatch, capsys):
    def md_trl(*arguments):
        main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    file, few_shot = puzzles(tmp_path), write(tmp_path / "few.jsonl", [EXAMPLE])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    task = ["--task", "./puzzles.csv"]
    sample = ["sample", *task, "--n", 4, "--model", "simulated-teacher", "--base_url", teacher, "--store", "t.db"]
    assert "192 thoughts from 48 requests" in md_trl(*sample, "--few_shot", few_shot)
    assert "0 thoughts from 0 requests" in md_trl(*sample, "--few_shot", few_shot)
    # Thoughts of other examples are another setting
    assert "2 thoughts" in md_trl(*sample, "--n", 1, "--limit", 1)
    status = md_trl("store", "status", "--store", "t.db")
    assert "puzzles  train  cot   1" in status and "setting 2" in status

    # Thoughts that come from elsewhere find the questions of the file, whichever split they are in
    md_trl("store", "export", "--store", "t.db", "--file", "all.jsonl")
    lines = [json.loads(line) for line in Path("all.jsonl").read_text().splitlines()]
    bare = [{name: line[name] for name in ("task", "question", "path", "text")} for line in lines]
    write(tmp_path / "bare.jsonl", bare)
    imported = md_trl("store", "import", "--store", "other.db", *task, "--file", "bare.jsonl")
    assert "194 thoughts added to other.db" in imported and "30 questions added, 0 were" in imported
    with Store("other.db") as store:
        assert {question.id for question in store.questions.load()} == {q.id for q in both_splits(file)}

    out = md_trl("mix", *task, "--store", "t.db", "--output", "mixed", "--settings", 1)
    assert "puzzles/train: 24 questions" in out and "load_dataset('mixed', 'puzzles')" in out
    with pytest.raises(SystemExit, match="no question of puzzles in the store"):
        md_trl("mix", "--task", "puzzles", "--thoughts", "bare.jsonl", "--output", "x")
    assert "24 questions" in md_trl("mix", *task, "--thoughts", "bare.jsonl", "--output", "raw")

    tiny_llama().save_pretrained("untrained")
    byte_tokenizer().save_pretrained("untrained")
    recipe = {"dataset": "mixed", "task": file, "model_name_or_path": "untrained", "output_dir": "student"}
    recipe |= {"max_steps": 2, "use_cpu": True, "report_to": "none", "eval_task": file, "eval_n": 2}
    Path("recipe.yaml").write_text(json.dumps(recipe | {"eval_limit": 3, "eval_max_tokens": 8}))  # JSON is YAML
    out = md_trl("train", "--config", "recipe.yaml")
    assert "12 thoughts from 6 requests" in out and "puzzles/test" in out
    evaluation = ["eval", "--model", "student", *task, "--limit", 3, "--n", 2, "--max_tokens", 8]
    evaluation += ["--store", "student/student.db", "--output", "results"]
    assert "0 thoughts from 0 requests" in md_trl(*evaluation)
    assert "| student | puzzles/test | 3 |" in md_trl("report", "--results", "results")
    result = json.loads(next(Path("results").glob("student*.json")).read_text())
    assert [question["id"] for question in result["questions"]] == [q.id for q in load_questions(file, "test")][:3]

    with running_hub(tmp_path / "hub") as (url, hub):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_write", "HF_HOME": "hf"}
        command = [sys.executable, "-m", "md_trl", "publish", "--dataset", "mixed", "--repo", "md/puzzles"]
        done = subprocess.run([*command, "--thoughts", "t.db"], env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and "md/puzzles" in done.stdout, done.stderr[-3000:]


def tiny_student(*arguments):
    """Run `recipes/tiny_student.py` as a command, without another process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tiny_student.py", *map(str, arguments)])
        runpy.run_path(str(ROOT / "recipes" / "tiny_student.py"), run_name="__main__")


def test_a_task_of_ones_own_needs_no_download_with_the_tiny_student(tmp_path, monkeypatch, capsys):
    """Questions and thoughts from files, an untrained student, two steps, an evaluation."""

    def md_trl(*arguments):
        main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    file = write("shop.jsonl", [{"question": f"{i} pens at {i + 1} €?", "answer": i * (i + 1)} for i in range(10)])
    texts = {"cot": "{a} * {b} = {y}. The answer is {y}.", "pot": "pens = {a}\nprice = {b}\nanswer = pens * price"}
    rows = [
        {"task": "shop", "question": q.question, "path": path, "text": text.format(a=a, b=a + 1, y=q.answer)}
        for q in load_questions(file, "train")
        for path, text in texts.items()
        for a in [int(q.question.split()[0])]
    ]
    write("thoughts.jsonl", rows)
    md_trl("store", "import", "--store", "t.db", "--task", file, "--file", "thoughts.jsonl")
    assert "8 questions" in md_trl("mix", "--store", "t.db", "--task", file, "--output", "mixed")
    for name, seed in (("untrained", 1), ("again", 1), ("other", 2)):
        tiny_student("--dataset", "mixed", "--output", name, "--seed", seed)
    assert weights_digest("untrained") == weights_digest("again") != weights_digest("other")
    # Nothing that it may be asked or learn is lost, whether the dataset has it or not
    tokenizer = AutoTokenizer.from_pretrained("untrained")
    for text in [*(row["text"] for row in rows), *(q.question for q in both_splits(file)), "Ünseen\t[x] \n  漢字"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("answer = pens * price")["input_ids"]) <= 6

    training = ["--dataset", "mixed", "--task", file, "--model_name_or_path", "untrained", "--output_dir", "student"]
    md_trl("train", *training, "--max_steps", 2, "--use_cpu", "true", "--report_to", "none")
    evaluation = ["--task", file, "--limit", 2, "--n", 2, "--max_tokens", 8, "--store", "s.db", "--output", "results"]
    assert "8 thoughts from 4 requests" in md_trl("eval", "--model", "student", *evaluation)
    result = json.loads(next(Path("results").glob("student*.json")).read_text())
    assert [question["id"] for question in result["questions"]] == [q.id for q in load_questions(file, "test")]

    # Before there are thoughts, it can be sampled
    tiny_student("--task", file, "--output", "unasked")
    sampling = ["--task", file, "--engine", "transformers", "--model", "unasked", "--prompt", "student"]
    assert "4 thoughts" in md_trl("sample", *sampling, "--limit", 2, "--n", 1, "--max_tokens", 4, "--store", "o.db")


def test_integers_of_any_length_stay_exact(tmp_path):
    row = '{"question": "a", "answer": ' + "7" * 5_000 + "}"
    for name, text in (("long.jsonl", row), ("long.json", f"[{row}]")):
        (tmp_path / name).write_text(text)
        [question] = own_file.load(tmp_path / name)
        assert question.answer == "7" * 5_000


def test_the_tiny_student_of_stories_has_a_token_for_each_number(tmp_path):
    row = {"task": "stories", "question": "Ann has 123 pens. How many?", "answer": "123"}
    row |= {"type": 3, "lambda": 0.5, "repeat": 1, "cot": ["The answer is 123."], "pot": ["answer = 123"]}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "rows.parquet")
    tiny_student("--dataset", tmp_path / "rows.parquet", "--output", tmp_path / "student")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert tokenizer.tokenize("answer = 123") == ["answer", " =", " 123"]
    assert tokenizer.tokenize("answer = 124")[-1] == tokenizer.unk_token


def test_the_tiny_student_of_stories_can_write_plans_and_programs(tmp_path):
    plan = "Add them: 1 + 2 = 3.\n```python\nanswer = 1 + 2\n```"
    row = {"task": "stories", "question": "Ann has 1 pen and buys 2. How many?", "answer": "3"}
    row |= {"type": 3, "lambda": 0.5, "repeat": 1, "cot": ["The answer is 3."], "pot": ["answer = 1 + 2"]}
    for name, columns in (("two", {}), ("three", {"cot_pot": [plan]})):
        parquet.write_table(pyarrow.Table.from_pylist([row | columns]), tmp_path / f"{name}.parquet")
        tiny_student("--dataset", tmp_path / f"{name}.parquet", "--output", tmp_path / name)
    two, three = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("two", "three"))
    text = student_prompt(row["question"], "cot_pot") + plan
    assert three.decode(three(text)["input_ids"]) == text
    # Without a third path, nothing of it is in the vocabulary
    assert "`" in three.get_vocab() and "`" not in two.get_vocab() and " write" not in two.get_vocab()


def test_the_tiny_student_says_what_it_lacks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        tiny_student("--output", "student")
    assert "--dataset, or its questions with --task" in capsys.readouterr().err
    for arguments, expected in (
        (["--dataset", "absent"], "There is no absent"),
        (["--task", "absent.jsonl"], "absent.jsonl does not exist"),
    ):
        with pytest.raises(SystemExit, match=expected):
            tiny_student(*arguments, "--output", "student")
    assert not Path("student").exists()


def test_a_task_name_is_used_by_all_commands(tmp_path, teacher, monkeypatch):
    puzzles(tmp_path, 10)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    named = ["--task", "puzzles.csv", "--task_name", "riddles", "--store", "t.db"]
    main(["sample", *named, "--n", "2", "--model", "simulated-teacher", "--base_url", teacher, "--max_tokens", "200"])
    main(["mix", *named, "--output", "mixed"])
    assert Path("mixed/riddles/mixing.json").is_file()
    args = RecipeArguments(dataset="mixed", task="puzzles.csv", task_name="riddles", eval_task="puzzles.csv")
    assert set(_load_rows(args, MDConfig(output_dir="out", use_cpu=True, report_to="none"))["task"]) == {"riddles"}
    label_all = MDConfig(output_dir="out", use_cpu=True, report_to="none", objective="label_all")
    rows = _load_rows(args, label_all)
    assert list(rows["id"]) == [question.id for question in load_questions("puzzles.csv", "train", name="riddles")]


def test_the_builder_takes_a_file_for_its_task(tmp_path):
    file = write(tmp_path / "sums.jsonl", sums(5))
    rows = []
    for question in load_questions(file, "train"):
        rows += [{"task": "sums", "id": question.id, "path": "pot", "text": f"answer = {question.answer}"}]
    thoughts = write(tmp_path / "thoughts.jsonl", rows)
    counts = []
    for answers in (lambda i: i + 1, lambda i: 0 if i == 1 else i + 1):
        write(file, [{"question": f"What is {i} plus 1?", "answer": answers(i)} for i in range(5)])
        builder = MixedThoughts(file, thoughts=thoughts, cache_dir=str(tmp_path / "cache"))
        builder.download_and_prepare()
        counts.append(len(builder.as_dataset(split="train")))
    # The second file has another gold answer, so the cached rows of the first are not those of the second
    expected = [len(rows), len(rows) - any("What is 1 " in q.question for q in load_questions(file, "train"))]
    assert counts == expected


@pytest.mark.parametrize(
    ("arguments", "expected", "status"),
    [
        (
            "sample --model m --task t.jsonl --few_shot few.jsonl --prompt student",
            "`--prompt student` asks without",
            2,
        ),
        ("sample --model m --task t.jsonl --few_shot absent.jsonl", "no file of few-shot examples absent.jsonl", 1),
        ("sample --model m --task absent.jsonl", "absent.jsonl does not exist", 1),
        ("sample --model m --task svamp --task_name x", "`task_name` is 'x', but 'svamp'", 1),
        ("store import --store s.db --file few.jsonl --task absent.jsonl", "absent.jsonl does not exist", 1),
        ("mix --store s.db --task absent.jsonl --output o", "absent.jsonl does not exist", 1),
        ("eval --model m --task absent.jsonl --store s.db --output o", "absent.jsonl does not exist", 1),
        ("train --dataset d --task t.jsonl --eval_task u.jsonl --task_name x", "name 2 files of questions", 1),
        ("train --dataset d --task svamp --task_name x", "name 0 files of questions", 1),
    ],
)
def test_mistakes_in_the_arguments_are_explained_before_anything_is_done(
    tmp_path, monkeypatch, capsys, arguments, expected, status
):
    monkeypatch.chdir(tmp_path)
    for name, rows in (("t", sums(5)), ("u", sums(5)), ("few", [EXAMPLE])):
        write(tmp_path / f"{name}.jsonl", rows)
    assert expected in message(capsys, *arguments.split(), status=status)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few.jsonl", "t.jsonl", "u.jsonl"]


def test_thoughts_of_different_examples_are_different_settings(tmp_path):
    file = write(tmp_path / "sums.jsonl", sums(5))
    questions = load_questions(file, "train")
    other = EXAMPLE | {"cot": "Two and three are five. The answer is 5."}
    with Store(tmp_path / "t.db") as store:
        for examples in (None, [EXAMPLE], [other], [EXAMPLE, other], [EXAMPLE]):
            for build in (teacher_messages, teacher_prompt):
                prompt = lambda question, path, build=build, examples=examples: build(question, path, examples)  # noqa: E731
                sample(questions, ["cot"], 1, Engine(), store, prompt, progress=False)
        assert len({row.setting for row in store.status()}) == 4 * 2


def test_the_module_reads_both_splits_at_once(tmp_path):
    file = write(tmp_path / "sums.jsonl", sums(10))
    questions = own_file.load(file)
    assert [question.answer for question in questions] == [str(i + 1) for i in range(10)]
    assert sorted(question.id for question in questions) == sorted(question.id for question in both_splits(file))
