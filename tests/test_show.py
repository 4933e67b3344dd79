"""`md-trl show`: what a person reads, against the mixed rows and answers it comes from."""

import json
import os
import re
import subprocess
import sys

import pyarrow.parquet
import pytest
from commands import message
from hypothesis import given, settings
from hypothesis import strategies as st

from md_trl.cli import main
from md_trl.errors import InputError
from md_trl.evaluation import EvaluationResult, QuestionResult
from md_trl.records import Question
from md_trl.show import choose, questions_of_dataset, questions_of_result, questions_of_store, write_samples
from md_trl.show_text import format_question
from md_trl.store import Selection, Store
from md_trl.terminal import one_line, printable


NASTY = "\x1b[31mred\x1b]0;title\x07\x9b2J\r hidden \u202e\u2066 The answer is 2."


def thoughts():
    """Questions of every type, by their number, each with three thoughts a path. The gold answer is number + 1."""
    for number in range(1, 7):
        solved_by_cot, solved_by_pot = number not in (1, 6), number not in (2, 6)
        gold = number + 1
        own = {"task": "svamp", "question": f"What is {number} plus 1?", "gold": str(gold)}
        own |= {"id": f"svamp/train/chal-{number}"}
        for index, right in enumerate([solved_by_cot, solved_by_cot, False]):
            text = f"Add one. ({index})\nThe answer is {gold if right else gold + 10}."
            yield own | {"path": "cot", "text": NASTY if (number, index) == (3, 2) else text}
        for right in [solved_by_pot, solved_by_pot, False]:
            yield own | {"path": "pot", "text": f"x = {number}\nif x:\n    answer = x + {1 if right else 20}"}
    yield own | {"path": "pot", "text": "answer = 1 / 0"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("show")
    (folder / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in thoughts()))
    with Store(folder / "t.db") as store:
        store.import_thoughts(folder / "t.jsonl")
    main(["mix", "--store", str(folder / "t.db"), "--task", "svamp", "--output", str(folder / "mixed")])
    return folder


@pytest.fixture
def show(folder, monkeypatch, capsys):
    def run(*arguments):
        capsys.readouterr()
        main(["show", *map(str, arguments)])
        return capsys.readouterr().out

    monkeypatch.chdir(folder)
    return run


def ids(out):
    return re.findall(r"^svamp/train/(chal-\d)", out, flags=re.MULTILINE)


def rows(folder):
    [file] = (folder / "mixed" / "svamp").glob("train-*.parquet")
    return {row["id"]: row for row in pyarrow.parquet.read_table(file).to_pylist()}


@pytest.mark.parametrize("source", ["store", "dataset"])
def test_a_store_and_a_dataset_show_what_mix_found(folder, source):
    if source == "store":
        with Store(folder / "t.db") as store:
            questions = {question.id: question for question in questions_of_store(store, Selection("svamp"))}
        assert questions.keys() - rows(folder).keys() == {"svamp/train/chal-6"}  # of type 4, which mix drops
    else:
        questions = {question.id: question for question in questions_of_dataset(folder / "mixed")}
    for question_id, row in rows(folder).items():
        shown = questions[question_id]
        assert (shown.question, shown.answer, shown.split) == (row["question"], row["answer"], "train")
        assert (shown.type, shown.lambda_, shown.repeat) == (row["type"], row["lambda"], row["repeat"])
        for path in ("cot", "pot"):
            assert shown.votes[path] == row[f"{path}_vote"] and shown.sampled[path] == row[f"n_{path}"]
            usable = [thought for thought in shown.thoughts[path] if thought.answer is not None]
            names = ("text", "answer", "correct", "count")
            assert [{name: getattr(thought, name) for name in names} for thought in usable] == row[path]


def test_a_question_is_shown_with_its_votes_and_marks(show):
    out = show("--store", "t.db", "--id", "chal-4")
    assert "svamp/train/chal-4 | type 3 (solved by both) | lambda 0.50 | repeat 1" in out
    assert "  What is 4 plus 1?\n  gold answer: 5\n  joint vote: 5 right (votes: 5 x4, 15 x1, 24 x1)\n" in out
    assert "  CoT: 5 right (votes: 5 x2, 15 x1)\n    [right 5]\n      Add one. (0)\n      The answer is 5.\n" in out
    assert "    [WRONG 15]\n" in out
    code = "          x = 4\n          if x:\n              answer = x + 1\n"
    assert f"  PoT: 5 right (votes: 5 x2, 24 x1)\n    [right 5 x2]\n{code}" in out
    assert out.endswith("1 of 6 questions\n") and "\x1b" not in out
    out = show("--store", "t.db", "--id", "chal-6")
    assert "; 1 of 4 unusable" in out and "[unusable (no answer)]\n          answer = 1 / 0" in out
    assert "joint vote: 17 WRONG" in out


def test_questions_are_chosen(show):
    assert ids(show("--store", "t.db", "--id", "svamp/train/chal-5", "chal-2")) == ["chal-5", "chal-2"]
    assert ids(show("--store", "t.db", "--type", 1, 4)) == ["chal-1", "chal-6"]
    assert ids(show("--store", "t.db", "--type", 3, "--limit", 2)) == ["chal-3", "chal-4"]
    assert ids(show("--dataset", "mixed", "--type", 2)) == ["chal-2"]
    assert ids(show("--dataset", "mixed", "--type", 4)) == []
    assert ids(show("--dataset", "mixed", "--task", "svamp", "--split", "train")) == [f"chal-{i}" for i in range(1, 6)]
    wrong = show("--store", "t.db", "--wrong")
    assert len(ids(wrong)) == wrong.count("joint vote: ") == len(re.findall("joint vote: .* WRONG", wrong)) > 0


@pytest.mark.parametrize(
    ("arguments", "expected", "status"),
    [
        ("", "Name one source", 2),
        ("--store t.db --dataset mixed", "Name one source|Leave `--store` out", 2),
        ("--dataset mixed --settings 1", "they need `--store`", 2),
        ("--store absent.db", "no store at absent.db", 1),
        ("--store t.db --task gsm8k", "t.db has no such thoughts. It holds svamp/train", 1),
        ("--store t.db --split test", "t.db has no such thoughts", 1),
        ("--dataset mixed --split test", "no questions of the split 'test', only of train", 1),
        ("--dataset mixed --type 5", "`--type` is 5. The types are 1, 2, 3, 4", 1),
        ("--dataset mixed --limit 0", "`--limit` is 0", 1),
        ("--dataset mixed --id chal-9", "no question 'chal-9' among 5. Did you mean 'svamp/train/chal-", 1),
        ("--dataset t.jsonl", "t.jsonl", 1),
        ("--result t.jsonl", "t.jsonl is not valid JSON", 1),
        ("--dataset mixed --samples_out t.jsonl", "t.jsonl exists and holds something else. Name another", 1),
    ],
)
def test_mistakes_are_explained(folder, monkeypatch, capsys, arguments, expected, status):
    monkeypatch.chdir(folder)
    assert re.search(expected, message(capsys, "show", *arguments.split(), status=status))


def test_the_end_of_an_id_must_be_unique(folder):
    questions = questions_of_dataset(folder / "mixed")
    copy = questions_of_dataset(folder / "mixed")[0]
    copy.id = "svamp/test/chal-1"
    with pytest.raises(InputError, match="could be any of 2 questions: svamp/train/chal-1, svamp/test/chal-1"):
        choose([*questions, copy], ["chal-1"])
    copy.id = "svamp/train/other-chal-1"  # ends so, too, but not after a slash
    assert [question.id for question in choose([*questions, copy], ["chal-1"])] == ["svamp/train/chal-1"]


def test_a_result_shows_its_answers_with_the_texts_of_its_store(tmp_path, show):
    questions = [Question(f"toy/test/{i}", "toy", "test", f"Toy {i}?", "1") for i in range(2)]
    params = {"temperature": 0.7, "max_tokens": 5}
    lines = [
        {"task": "toy", "id": question.id, "path": path, "text": f"{path} {i} {question.id}", "model": "m"}
        | {"params": params}
        for question in questions
        for path in ("cot", "pot")
        for i in range(2)
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Store(tmp_path / "t.db") as store:
        store.questions.add(questions)
        store.import_thoughts(tmp_path / "t.jsonl", "toy")
    answers = [
        QuestionResult("toy/test/0", "1", ["2", None], ["1", "1"], [], [-0.1, -0.1], [-3.0, -3.0]),
        QuestionResult("toy/test/1", "1", ["1", "1"], ["1"]),
    ]
    known = params | {"weights": "likelihood"}
    result = EvaluationResult("student", "m", "toy", "test", known, answers)
    file = result.save(tmp_path / "results")

    out = show("--result", file)
    assert "toy/test/0 | type 1 (solved by PoT only) | lambda 1.00\n  gold answer: 1\n" in out
    assert "CoT: 2 WRONG (votes: 2 x1); 1 of 2 unusable" in out and "PoT: 1 right (votes: 1 x2)" in out
    assert "joint vote: 2 WRONG (votes: 1 x2, 2 x1)" in out
    assert "toy/test/1 | type 3" in out and "Toy" not in out
    out = show("--result", file, "--store", tmp_path / "t.db")
    assert "  Toy 0?\n" in out and "    [WRONG 2]\n      cot 0 toy/test/0\n" in out
    assert "    [unusable (no answer)]\n      cot 1 toy/test/0\n" in out and "pot 1 toy/test/1" not in out

    shown = questions_of_result(result)
    joint = result.correct("joint", votes=4)
    assert [question.is_right for question in shown] == joint == [False, True]  # a likely 2 against two unlikely 1
    assert [question.id for question in choose(shown, wrong=True)] == [
        answer.id for answer, right in zip(answers, joint, strict=True) if not right
    ]

    with Store(tmp_path / "empty.db") as store:
        store.questions.add(questions[:1])
    with pytest.raises(SystemExit, match="empty.db does not hold"):
        show("--result", file, "--store", tmp_path / "empty.db")


def test_a_bare_answer_is_shown(tmp_path, show):
    questions = [QuestionResult("toy/test/0", "1", label=["2"])]
    file = EvaluationResult("student", "m", "toy", "test", {}, questions).save(tmp_path)
    out = show("--result", file, "--wrong")
    assert out.startswith("toy/test/0\n  gold answer: 1\n\n  Label: 2 WRONG (votes: 2 x1)\n")


def test_samples_are_written_once(tmp_path, show, folder):
    file = tmp_path / "new" / "samples.jsonl"
    assert f"Wrote {file}" in show("--dataset", "mixed", "--type", 3, "--samples_out", file)
    written = [json.loads(line) for line in file.read_text().splitlines()]
    expected = [row for row in rows(folder).values() if row["type"] == 3]
    assert [row["id"] for row in written] == [row["id"] for row in expected]
    for row, known in zip(written, expected, strict=True):
        for name in ("task", "question", "answer", "type", "lambda", "repeat", "cot_vote", "pot_vote"):
            assert row[name] == known[name]
        for path in ("cot", "pot"):
            assert [{k: t[k] for k in ("text", "answer", "correct", "count")} for t in row[path]] == known[path]
    before = file.read_bytes()
    show("--dataset", "mixed", "--type", 3, "--samples_out", file)  # the same content is no error
    with pytest.raises(InputError, match="holds something else"):
        write_samples([], file)
    assert file.read_bytes() == before and [file] == list(file.parent.iterdir())


def run_in_terminal(command, **environment):
    """Run a command whose output is a terminal, and return what the terminal receives."""
    main_end, terminal = os.openpty()
    process = subprocess.Popen(command, stdout=terminal, env=os.environ | {"TERM": "xterm"} | environment)
    os.close(terminal)
    received = b""
    try:
        while chunk := os.read(main_end, 65536):
            received += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    assert process.wait(timeout=120) == 0
    return received.decode()


def test_a_terminal_gets_colors_but_no_escape_of_a_model(folder):
    command = [sys.executable, "-m", "md_trl", "show", "--store", folder / "t.db", "--id", "chal-3"]
    colored = run_in_terminal(command, NO_COLOR="")
    assert "\x1b[31mWRONG\x1b[0m" in colored and "\\x1b[31mred\\x1b]0;title\\x07\\x9b2J" in colored
    styles = re.findall("\x1b\\[(?:0|1|2|31|32)m", colored)
    assert len(styles) == colored.count("\x1b")
    plain = run_in_terminal(command, NO_COLOR="1")
    assert "\x1b" not in plain and "WRONG" in plain
    assert re.sub("\x1b\\[\\d+m", "", colored) == plain


def test_a_file_gets_no_colors(folder):
    command = [sys.executable, "-m", "md_trl", "show", "--dataset", folder / "mixed", "--id", "chal-3"]
    # also where the encoding of the output has no such characters
    out = subprocess.run(
        command, capture_output=True, check=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}
    ).stdout
    assert b"\x1b" not in out and b"\\x1b[31mred" in out


@given(st.text(st.characters(), max_size=30))
def test_no_control_character_is_printed(text):
    allowed = {"\n", "\t"}
    for char in printable(text):
        assert char in allowed or not (ord(char) < 32 or 127 <= ord(char) < 160 or 0xD800 <= ord(char) < 0xE000)
        assert char not in "\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    assert not allowed & set(one_line(text))


@settings(max_examples=50)
@given(st.text(max_size=40), st.text(max_size=10))
def test_whatever_a_model_wrote_is_shown_on_indented_lines(text, answer):
    result = EvaluationResult("s", "m", "toy", "test", {}, [QuestionResult("toy/test/0", "1", cot=[answer])])
    [question] = questions_of_result(result)
    question.question = question.thoughts["cot"][0].text = text
    head, *lines = format_question(question).split("\n")
    assert head.startswith("toy/test/0") and all(line == "" or line.startswith("  ") for line in lines)


def test_plain_letters_stay_as_they_are():
    text = "Zoë zahlt 3 € — ½ für 日本 👩‍👩‍👧\n\tdone"
    assert printable(text) == text
