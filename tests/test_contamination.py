"""Training questions that are test questions are found, and others are not."""

import base64
import json
import re
from dataclasses import replace
from decimal import Decimal
from importlib.resources import files

import pytest
from conftest import SHARED, needs_shared
from hypothesis import given
from hypothesis import strategies as st
from write_test_questions import FILE, entries

from md_trl.contamination import ContaminationCheck, fingerprints, normalize, template
from md_trl.records import Question
from md_trl.tasks import load_questions


DATA = SHARED / "data"
SOURCES = {name: DATA / file for name, file in (("svamp", "SVAMP.json"), ("gsm8k", "gsm8k"), ("asdiv", "ASDiv.xml"))}
SOURCES["strategyqa"] = DATA / "strategyqa"
NONE = {"text": 0, "template": 0}
HENS = "A farmer's wife has 1,200 hens and buys 3.50 kg of corn. How many hens does she have?"


def check(task, texts, tests=()):
    found = ContaminationCheck(task, [Question(f"mine/test/{i}", "mine", "test", t, "5") for i, t in enumerate(tests)])
    for i, text in enumerate(texts):
        found.add(f"{task}/train/{i}", text)
    return found


def load(task, split, **options):
    return load_questions(task, split, str(SOURCES[task]), **options)


@pytest.mark.parametrize(
    ("question", "normal"),
    [
        (HENS, "a farmer s wife has 1200 hens and buys 3.5 kg of corn how many hens does she have"),
        ("Tom 's  pay is $1 ,200 .", "tom s pay is 1 200"),
        ("He has 304.0 cards .", "he has 304 cards"),
        ("Straße “zwei”: 1/2?", "strasse zwei 1 2"),
        ("In 2,4 and 10,000,000", "in 2 4 and 10000000"),
        ("snake_case 5kg", "snake case 5 kg"),
        ("", ""),
    ],
)
def test_questions_are_compared_by_words_and_numbers(question, normal):
    assert normalize(question) == normal


@pytest.mark.parametrize(
    ("question", "shape"),
    [
        (HENS, "a farmer s wife has # hens and buys # kg of corn how many hens does she have"),
        # Too short, or without a number, to tell where it is from
        ("What is 2 plus 3?", None),
        ("Is it true that a hen can fly over the Atlantic Ocean in spring?", None),
    ],
)
def test_templates_are_questions_without_their_numbers(question, shape):
    assert template(question) == shape


WORDS = st.lists(st.sampled_from("a hen has corn , . it's Tom 7 12 1,000 0.5 ?".split()), min_size=1, max_size=25)


@given(WORDS, st.data())
def test_spelling_changes_neither_text_nor_template_and_numbers_change_only_the_text(words, data):
    question = " ".join(words)
    other = [data.draw(st.sampled_from([word, word.upper()])) for word in words]
    spaced = data.draw(st.sampled_from([" ", "  ", "\n", " . ", " - "])).join(other)
    assert normalize(spaced) == normalize(question) and template(spaced) == template(question)
    longer = "".join(
        f"9{c}" if c.isdigit() and not p.isdigit() and p not in ".," else c
        for p, c in zip(" " + question, question, strict=False)
    )
    assert template(longer) == template(question)
    assert (normalize(longer) == normalize(question)) == (not any(c.isdigit() for c in question))


def test_texts_and_templates_are_counted_once_each_by_task():
    tests = [HENS, "Is this a question without any number in it at all?"]
    train = [HENS.upper(), HENS.replace("1,200", "7"), HENS.replace("hens", "ducks"), tests[1], "Is this a question?"]
    found = check("svamp", train, tests)
    assert found.found
    assert "test questions of mine: 2 with the same text, 1 more that differ only in numbers" in found.describe()
    # Those that share their text are named first
    assert "svamp/train/0, svamp/train/3, svamp/train/1)." in found.describe()
    assert found.figures() == dict.fromkeys(sorted(SOURCES), NONE) | {"mine": {"text": 2, "template": 1}}
    clean = check("svamp", ["Is this a question?"], tests)
    assert not clean.found and clean.describe().startswith("Contamination: none with the test questions of asdiv, ")
    many = check("svamp", [HENS] * 5, tests)
    assert "svamp/train/0, svamp/train/1, svamp/train/2, ...)" in many.describe()


def test_questions_too_short_to_compare_without_their_numbers_are_counted():
    train = ["How many meters are 3.5 kilometers?", "How many meters are there in a kilometer?", HENS]
    said = check("units", train, ["How many meters are 5.5 kilometers?"]).describe()
    assert "1 questions have fewer than 8 words besides their numbers: only the same text was looked for." in said


def test_the_file_holds_hashes_and_no_questions():
    shipped = json.loads((files("md_trl") / FILE.name).read_text())
    sizes = {
        task: {name: len(base64.b64decode(rows)) // 15 for name, rows in sets.items()}
        for task, sets in shipped.items()
    }
    assert sizes == {
        "svamp": {"test": 300, "rest": 700},
        "gsm8k": {"published": 1319},
        "asdiv": {"test": 695},
        "strategyqa": {"test": 229, "paper": 687},
    }
    assert FILE.stat().st_size < 100_000
    question = Question("mine/test/1", "mine", "test", HENS, "5")
    other = replace(question, id="mine/test/2", question=HENS.replace("1,200", "7"))
    assert fingerprints([question, other]) == fingerprints([other, question])


@needs_shared("data/SVAMP.json", "data/gsm8k", "data/ASDiv.xml", "data/strategyqa")
def test_the_file_is_that_of_the_original_files():
    assert json.loads(FILE.read_text()) == entries()


@needs_shared("data/SVAMP.json", "data/gsm8k", "data/ASDiv.xml", "data/strategyqa")
@pytest.mark.parametrize("task", SOURCES)
def test_every_test_question_is_found_and_no_training_question_of_the_tasks_is(task):
    """Train and test of these tasks are known to be apart: a hit would be a false one."""
    found = ContaminationCheck(task)
    for question in load(task, "train"):
        found.add(question.id, question.question)
    assert found.figures() == dict.fromkeys(sorted(SOURCES), NONE), found.describe()
    questions = load(task, "test")
    found = ContaminationCheck("mine")
    for question in questions:
        found.add("mine/train/x", question.question.upper())
    assert found.figures()[task] == {"text": len(questions), "template": 0}
    found = ContaminationCheck("mine")
    shifted = [re.sub(r"\d+", lambda match: "9" + match.group(), question.question) for question in questions]
    for text in shifted:
        found.add("mine/train/x", text)
    with_template = sum(template(question.question) is not None for question in questions)
    assert found.figures()[task]["template"] == with_template


@needs_shared("data/SVAMP.json", "data/ASDiv.xml")
def test_a_split_that_was_drawn_otherwise_is_not_called_contaminated():
    found = ContaminationCheck("svamp")
    default = {question.id.split("/")[-1] for question in load("svamp", "test")}
    questions = load("svamp", "train", seed=7)
    for question in questions:
        found.add(question.id, question.question)
    shared = sum(question.id.split("/")[-1] in default for question in questions)
    assert shared > 100 and "svamp" not in found.figures()
    assert f"{shared} questions are in the test split that md_trl draws from the original file" in found.describe()
    # The same questions under other names, such as those of a thought file without ids
    found = check("svamp", [question.question for question in questions])
    assert found.figures()["svamp"] == {"text": shared, "template": 0}
    # For another task, all of SVAMP are test questions
    assert check("mine", [question.question for question in questions]).figures()["svamp"]["text"] == 700


@needs_shared("data/ASDiv.xml", "data/svamp_teacher")
def test_the_questions_that_a_published_set_of_thoughts_shares_with_asdiv_are_counted():
    def words(text):
        """The slow way: characters one after the other, numbers as decimals."""
        kept = "".join(
            c if c.isalnum() or c in ".," and text[i - 1 : i].isdigit() and text[i + 1 : i + 2].isdigit() else " "
            for i, c in enumerate(text.lower())
        )
        kept = " ".join(re.split(r"(?<=\d)(?=[a-z])|(?<=[a-z])(?=\d)", kept)).replace(",", "")
        return tuple(Decimal(word).normalize() if word[0].isdigit() else word for word in kept.split())

    texts = [row["question"] for row in json.loads((DATA / "svamp_teacher" / "cot.json").read_text())]
    known = {split: {words(question.question) for question in load("asdiv", split)} for split in ("train", "test")}
    same = sum(words(text) in known["test"] for text in texts)
    found = check("svamp", texts)
    assert found.figures()["asdiv"]["text"] == same == 317
    assert found.figures()["asdiv"]["template"] == 26
    assert {task: found.figures()[task] for task in ("svamp", "gsm8k", "strategyqa")} == dict.fromkeys(
        ("svamp", "gsm8k", "strategyqa"), NONE
    )
