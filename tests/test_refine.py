"""A student that goes on learning from its own two paths: what is mixed, what is labelled, and what a kill changes."""

import json
import multiprocessing
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from commands import parse_verb
from datasets import Dataset, load_dataset
from hypothesis import given
from hypothesis import strategies as st
from killed_refinements import KILLED_WHILE, PRELOAD, first_unfinished, refine_until
from peft import LoraConfig, get_peft_model
from refined_students import TASK, TEACHER, TRAINING, make_toy, toy_rows
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from trl import ModelConfig

from md_trl import MDConfig
from md_trl.cli import run_verb
from md_trl.dataset import ensure_dataset
from md_trl.distinct import thought_key
from md_trl.errors import InputError
from md_trl.mixing import mix_question
from md_trl.records import PATHS, Question, SamplingParams, Thought
from md_trl.refine import RefineOptions, refine
from md_trl.refine.labels import Agreement, agreement, label_figures, learn_threshold
from md_trl.refine.mixing import choose, mix_refined
from md_trl.refine.rows import moved_types
from md_trl.refine.training import check_training
from md_trl.refine.writers import round_of, writer_name
from md_trl.report import load_results, write_report
from md_trl.rounds_figure import plot_rounds, rounds_of
from md_trl.store import Selection, Store
from md_trl.student_folder import weights_digest
from md_trl.trainer.making import make_trainer
from md_trl.trainer.preprocessing import is_lossless


PARAMS = SamplingParams(max_tokens=20)
OPTIONS = {"rounds": 2, "n": 4, "validation": 0.25}


# Mixing


def thought(path, text, correct=True, answer="5", index=0):
    return Thought("toy/train/0", path, index, text, answer=answer if correct is not None else None, correct=correct)


def programs(*numbers):
    """Programs of which those of the same number are the same up to the name of a variable."""
    return [thought("pot", f"v{i} = {number}\nanswer = v{i}", index=i) for i, number in enumerate(numbers)]


def proses(*numbers):
    """Chains of thought of which those of the same number are the same up to words."""
    return [thought("cot", f"{'So ' * i}{number}.", index=i) for i, number in enumerate(numbers)]


@given(
    teacher=st.lists(st.integers(0, 12), max_size=12),
    own=st.lists(st.integers(0, 12), max_size=12),
    share=st.sampled_from([0, 0.1, 0.25, 0.5, 0.75, 0.9, 1]),
    per_path=st.integers(1, 8),
)
def test_the_share_of_own_thoughts_is_never_above_the_rate(teacher, own, share, per_path):
    of_teacher, of_student = choose(proses(*teacher), proses(*own), "cot", share, per_path)
    keys = [thought_key(t["text"], "cot") for t in of_teacher + of_student]
    assert len(set(keys)) == len(keys) <= per_path
    new = len(set(own) - set(teacher))
    chosen, of = len(of_student), len(of_teacher)
    if share == 0:
        assert chosen == 0 and of == min(per_path, len(set(teacher)))
    elif not teacher:
        assert chosen == min(per_path, new)
    elif share == 1:
        assert (chosen, of) == ((min(per_path, new), 0) if new else (0, min(per_path, len(set(teacher)))))
    else:
        share = Fraction(share).limit_denominator(100)
        assert chosen <= share * (chosen + of)
        # No other choice within the rate has more thoughts of the student, or is larger
        possible = [
            (a, b)
            for a in range(min(new, per_path) + 1)
            for b in range(min(len(set(teacher)), per_path - a) + 1)
            if a <= share * (a + b)
        ]
        assert chosen == max(a for a, _ in possible)
        assert of == max(b for a, b in possible if a == chosen)
    assert sum(t["count"] for t in of_teacher) <= len(teacher)


def test_wrong_and_repeated_thoughts_are_not_learned():
    own = [*programs(1, 1, 2), thought("pot", "answer = 9", correct=False), thought("pot", "?", correct=None)]
    of_teacher, of_student = choose(programs(2), own, "pot", 0.9, 10)
    assert [t["text"] for t in of_teacher] == ["v0 = 2\nanswer = v0"]
    assert of_student == [{"text": "v0 = 1\nanswer = v0", "answer": "5", "correct": True, "count": 2}]


def of_type(type_, name):
    """Thoughts of both paths, those that solve the question where the type says so."""
    right = {"cot": type_ in (2, 3), "pot": type_ in (1, 3)}
    return {
        path: [thought(path, f"{name} {i} of {path}", right[path], "5" if right[path] else "6", i) for i in (10, 20)]
        for path in PATHS
    }


QUESTION = Question("toy/train/0", "toy", "train", "2 + 3 ?", "5")


@pytest.mark.parametrize("types_by", ["teacher", "student", "both"])
@pytest.mark.parametrize("by_teacher", [1, 2, 3, 4])
@pytest.mark.parametrize("by_student", [1, 2, 3, 4])
def test_types_are_those_of_whom_they_are_asked_of(types_by, by_teacher, by_student):
    teacher, student = of_type(by_teacher, "teacher"), of_type(by_student, "student")
    found = mix_refined(QUESTION, teacher, student, {}, types_by, 0.5, 10, can_write=bool)
    assert (found.by_teacher, found.by_student) == (by_teacher, by_student)
    joint = mix_question(QUESTION, *([*teacher[path], *student[path]] for path in PATHS))
    asked = {"teacher": (by_teacher, by_student), "student": (by_student, by_teacher)}
    asked = asked.get(types_by, (joint.type, by_teacher, by_student))
    assert found.row.type == next((type_ for type_ in asked if type_ != 4), 4)
    if types_by == "both" and joint.type != 4:
        assert found.row.lambda_ == joint.lambda_
    for path in PATHS:
        assert all(t["correct"] for t in getattr(found.row, path))
    by = Counter(t["text"].split()[0] for path in PATHS for t in getattr(found.row, path))
    assert found.learned == {"teacher": by["teacher"], "own": by["student"]}


def test_thoughts_of_earlier_rounds_are_learned_but_do_not_vote():
    earlier = {"cot": [thought("cot", "1 + 4 = 5")], "pot": programs(7)}
    found = mix_refined(
        QUESTION, of_type(1, "teacher"), of_type(4, "student"), earlier, "student", 0.5, 10, can_write=bool
    )
    assert found.row.type == 1 and found.by_student == 4
    assert found.learned["own"] == 2
    assert [t["text"] for t in found.row.cot] == ["1 + 4 = 5"]


def test_programs_that_the_tokenizer_does_not_read_as_written_are_not_learned():
    core = Tokenizer(WordLevel({"<unk>": 0, "answer = ": 1, "5": 2, "27": 3, "8": 4, "</s>": 5}, unk_token="<unk>"))
    core.pre_tokenizer = Split(Regex(r"\d+|\D+"), behavior="isolated")
    core.decoder = Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")
    written = [tokenizer.decode(ids) for ids in ([1, 2], [1, 3, 4])]  # it reads no 278
    own = {"pot": [thought("pot", text) for text in written], "cot": [thought("cot", "27 8")]}

    def can_write(program):
        return is_lossless(tokenizer, program, tokenizer(program).input_ids)

    found = mix_refined(QUESTION, {}, own, own, "student", 0.5, 10, can_write)
    assert (written, [t["text"] for t in found.row.pot]) == (["answer = 5", "answer = 278"], ["answer = 5"])
    assert found.row.n_pot_correct == 2 and len(found.row.cot) == 1


# Labels


@given(
    st.lists(
        st.tuples(st.one_of(st.none(), st.integers(1, 6).map(lambda k: Agreement("5", k / 6))), st.booleans()),
        max_size=20,
    ),
    st.sampled_from([0.5, 0.8, 0.95]),
)
def test_the_threshold_is_the_least_confidence_that_is_right_often_enough(found, precision):
    def enough(threshold):
        right = [is_right for label, is_right in found if label is not None and label.confidence >= threshold]
        return right and sum(right) >= precision * len(right)

    possible = [label.confidence for label, _ in found if label is not None and enough(label.confidence)]
    assert learn_threshold(found, precision) == min(possible, default=None)


def test_paths_agree_only_if_both_votes_and_the_joint_vote_are_one():
    assert agreement(["5", "5", "6"], ["5.0", None]) == Agreement("5", 0.75)
    assert agreement(["5"], ["6"]) is None
    assert agreement([None], ["5"]) is None
    assert agreement([], []) is None
    figures = label_figures({"a": "5", "b": "6", "c": "1"}, [replace(QUESTION, id=i) for i in "abd"])
    assert figures == {"questions": 3, "labelled": 2, "coverage": 2 / 3, "known": 2, "precision": 0.5}
    assert label_figures({"a": "5"}, [replace(QUESTION, id="a", answer="")])["precision"] is None


def test_moves_count_the_questions_known_before_and_after():
    moved = moved_types({"a": 4, "b": 1, "c": 3, "d": 2}, {"a": 3, "b": 3, "c": 1, "e": 3})
    assert moved["types"] == {"1": 1, "2": 0, "3": 2, "4": 0}
    assert moved["moved_to_3"] == {"1": 1, "2": 0, "4": 1}
    assert moved["moves"]["3"] == {"1": 1, "2": 0, "3": 0, "4": 0}


@pytest.mark.parametrize(
    ("writer", "round_"),
    [
        (writer_name("outputs/md@0a1b2c3d", 2), 2),
        (writer_name("refined/round-1/student@0a1b2c3d", 12), 12),
        ("refined/round-1/student@0a1b2c3d", None),
        ("gpt-3.5-turbo", None),
        ("models/round-2", None),
    ],
)
def test_a_name_tells_who_wrote_a_thought_and_in_which_round(writer, round_):
    assert round_of(writer) == round_


# Whole refinements


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder)
    return folder


@pytest.fixture
def here(toy, tmp_path, monkeypatch):
    """A copy of the toy in the current folder, so that names are the same wherever it is."""
    shutil.copytree(toy, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(output="refined", steps=6, training=(), **options):
    args = MDConfig("unused", max_steps=steps, **TRAINING | dict(training))
    return refine("md", TASK, "t.db", output, args, RefineOptions(**OPTIONS | options), PARAMS)


def writers(file="t.db"):
    with Store(file) as store:
        return {row.model: row.thoughts for row in store.status() if round_of(row.model)}


@pytest.fixture(scope="module")
def finished(toy, tmp_path_factory):
    """A finished refinement, which no test changes."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(toy, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        found = run()
    return folder, found


def students(folder, rounds=2):
    return [weights_digest(folder / "refined" / f"round-{r}" / "student") for r in range(1, rounds + 1)]


def test_a_refinement_has_a_student_a_dataset_and_figures_of_each_round(finished):
    folder, found = finished
    refined = folder / "refined"
    assert found == json.loads((refined / "refine.json").read_text())
    accuracies = [found["validation"], *(entry["validation"] for entry in found["rounds"])]
    best = 0
    for number, entry in enumerate(found["rounds"], 1):
        before, after = accuracies[best], entry["validation"]
        assert entry["kept"] == ((after["accuracy"], after["correct"]) > (before["accuracy"], before["correct"]))
        best = number if entry["kept"] else best
        assert entry["training"]["steps"] == 6 and entry["training"]["target_tokens"] > 0
        rows = load_dataset("parquet", data_files=str(refined / f"round-{number}/mixed/toy/*.parquet"))["train"]
        texts = [t for row in rows for path in PATHS for t in row[path]]
        assert len(texts) == sum(entry["thoughts"].values()) and entry["thoughts"]["own"] > 0
        assert all(t["correct"] for t in texts)
        of_teacher = {row["text"] for row in toy_rows()}
        assert sum(t["text"] in of_teacher for t in texts) >= entry["thoughts"]["teacher"]
        types = json.loads((refined / f"round-{number}" / "types.json").read_text())
        assert Counter(map(str, types["student"].values())) == +Counter(entry["types"]["student"])
        assert {row["id"]: row["type"] for row in rows} == {i: t for i, t in types["mixed"].items() if t != 4}
    assert found["best"] == best
    expected = refined / f"round-{best}" / "student" if best else folder / "md"
    assert weights_digest(refined / "student") == weights_digest(expected)
    assert not list(refined.glob("round-*/student/checkpoint-*"))
    # No validation question was sampled or learned
    held_out = {q["id"] for q in json.loads((refined / accuracies[0]["file"]).read_text())["questions"]}
    assert len(held_out) == 6 and not held_out & set(types["mixed"])
    names = {entry["sampled"]["writer"] for entry in found["rounds"]}
    assert {round_of(name) for name in names} == {1, 2} and names <= set(writers(folder / "t.db"))


def test_the_card_says_what_the_student_wrote_and_how_it_was_judged(finished):
    folder, found = finished
    card = (folder / "refined" / "round-2" / "mixed" / "README.md").read_text()
    counts = found["rounds"][1]["thoughts"]
    assert f"{counts['own']} of {counts['own'] + counts['teacher']} thoughts were written by the student" in card
    for entry in found["rounds"]:
        student, _, number = entry["sampled"]["writer"].rpartition("/")
        assert f"`{Path(student).name}/{number}`" in card
    assert "equal the gold answer" in card
    assert "md-trl refine --model md --task toy --store t.db" in card
    # `md-trl train --store` takes the dataset as it is
    assert ensure_dataset(folder / "refined" / "round-2" / "mixed", TASK, folder / "t.db") is None


def test_a_report_draws_accuracy_by_round(finished, tmp_path):
    folder, _ = finished
    results = load_results(folder / "refined" / "validation")
    assert {r: len(of) for r, of in rounds_of(results)["md", "toy", "train"].items()} == {0: 1, 1: 1, 2: 1}
    results = [result for result in results if not result.name.endswith("-2")]
    write_report(results, tmp_path)
    assert (tmp_path / "rounds.png").stat().st_size > 5000 and "](rounds.png)" in (tmp_path / "report.md").read_text()
    seeds = [replace(result, name=f"{result.name}@{seed}") for result in results for seed in (1, 2)]
    assert plot_rounds(seeds, [tmp_path / "seeds.svg"]) and "2 seeds" in (tmp_path / "seeds.svg").read_text()
    assert not plot_rounds([replace(results[0], name="md")], [tmp_path / "none.png"])
    assert not (tmp_path / "none.png").exists()


def test_an_interrupted_refinement_goes_on_and_ends_with_the_same_students(here, finished, monkeypatch):
    """It is interrupted at the beginning of every phase of every round, one after the other."""
    folder, expected = finished
    seen = set()

    def interrupting(message, **_):
        if message not in seen and message.startswith("Round"):
            seen.add(message)
            raise KeyboardInterrupt

    monkeypatch.setattr("md_trl.refine.run.print", interrupting, raising=False)
    for _ in range(20):
        try:
            found = run()
            break
        except KeyboardInterrupt:
            continue
    assert {message.partition(":")[2].split()[0] for message in seen if ":" in message[:9]} == {
        "validating",
        "sampling",
        "mixing",
        "training",
    }
    assert found == expected and students(here) == students(folder)
    assert weights_digest(here / "refined" / "student") == weights_digest(folder / "refined" / "student")
    before = (here / "refined" / "refine.json").stat().st_mtime_ns, writers()
    assert run() == expected and (before[1]) == writers()


def test_a_finished_refinement_may_get_more_rounds_but_no_other_settings(here, finished):
    folder, _ = finished
    shutil.copytree(folder, here, dirs_exist_ok=True)
    for options, name in (({"own_share": [0.25]}, "own_share"), ({"n": 5}, "n"), ({"steps": 7}, "training")):
        with pytest.raises(InputError, match=f"another `{name}`"):
            run(**options)
    with pytest.raises(InputError, match="already has 2 rounds, more than 1"):
        run(rounds=1)
    assert students(here) == students(folder)
    found = run(rounds=3)
    assert students(here) == students(folder) and len(found["rounds"]) == 3
    with Store("t.db") as store:
        question = store.questions.load(TASK)[0]
        row = {"task": TASK, "id": question.id, "path": "cot", "text": "The answer is 5.", "model": TEACHER}
        store.import_rows([("row 0", row)], TASK)
    with pytest.raises(InputError, match="another `store`"):
        run(rounds=3)


def test_a_round_may_start_from_the_base_model_and_types_be_the_students(here):
    args = MDConfig("unused", max_steps=3, **TRAINING)
    options = RefineOptions(
        **OPTIONS | {"rounds": 1}, start_from="base", types_by="student", own_share=[1.0], keep_by="greedy"
    )
    found = refine("md", TASK, "t.db", "refined", args, options, PARAMS, ModelConfig(model_name_or_path="base"))
    [entry] = found["rounds"]
    # Three steps teach nothing, so the round cannot have helped
    assert entry["training"]["from"] == "base" and not entry["kept"] and found["best"] == 0
    assert weights_digest("refined/student") == weights_digest("md")
    mixed, own, teacher = (entry["types"][name] for name in ("mixed", "student", "teacher"))
    assert mixed["4"] <= min(own["4"], teacher["4"])
    assert {writer: round_of(writer) for writer in writers()} == {entry["sampled"]["writer"]: 1}


def test_a_round_that_helps_is_kept_and_sampled_next(here):
    """An untrained student learns from the teacher in round 1 and from itself in round 2."""
    args = MDConfig("unused", max_steps=40, **TRAINING | {"learning_rate": 1e-2})
    found = refine("base", TASK, "t.db", "refined", args, RefineOptions(**OPTIONS), PARAMS)
    first, second = found["rounds"]
    assert first["kept"] and first["validation"]["accuracy"] > found["validation"]["accuracy"] == 0
    assert first["thoughts"]["own"] == 0 and first["types"]["student"] == {"1": 0, "2": 0, "3": 0, "4": 18}
    student = weights_digest("refined/round-1/student")
    assert second["sampled"]["writer"] == f"refined/round-1/student@{student}/round-2"
    assert second["training"]["from"] == "refined/round-1/student"
    assert first["after"]["types"] == second["types"]["student"] != first["types"]["student"]
    assert first["after"]["moved_to_3"] == {"1": 0, "2": 0, "4": first["after"]["types"]["3"]}
    assert second["kept"] == ("after" in second)
    assert weights_digest("refined/student") == weights_digest(f"refined/round-{found['best']}/student")


def hide(file, first):
    """Replace the gold answers of all but the first questions by wrong ones."""
    with sqlite3.connect(file) as db:
        db.execute("UPDATE questions SET answer = answer + 100 WHERE key > ?", (first,))


def test_hidden_gold_answers_change_nothing_but_the_precision_reported(here):
    Path("more.jsonl").write_text('{"question": "Ann 2 : 3 + 3 ?"}\n{"id": "new", "question": "Ann 4 : 1 + 2 ?"}\n')
    options = {"labels": "agreement", "labelled": 14, "label_precision": 0.6, "unlabelled": "more.jsonl", "rounds": 1}
    options |= {"measure_last": False, "validation": 0.4}
    shutil.copy("t.db", "wrong.db")
    hide("wrong.db", 14)
    found = run(**options)
    shutil.move("refined", "right")
    shutil.move("wrong.db", "t.db")
    Path("t.db-wal").unlink(missing_ok=True)
    wrong = run(**options)
    labels, of_wrong = found["rounds"][0].pop("labels"), wrong["rounds"][0].pop("labels")
    assert found["rounds"] == wrong["rounds"] and found["questions"]["unlabelled"] == 12
    assert weights_digest("right/round-1/student") == weights_digest("refined/round-1/student")
    assert labels["labelled"] > 0 and labels["questions"] == 12 and labels["known"] >= labels["labelled"] - 2
    assert labels["precision"] is not None and of_wrong["precision"] == 0
    assert labels | {"precision": 0} == of_wrong
    rows = load_dataset("parquet", data_files="right/round-1/mixed/toy/*.parquet")["train"]
    gold = {row["id"]: row["gold"] for row in toy_rows()}
    hidden = [row for row in rows if int(row["id"].rpartition("/")[2]) >= 14 or row["id"] not in gold]
    assert len(hidden) == labels["labelled"] and all(row["type"] == 3 for row in hidden)
    card = Path("right/round-1/mixed/README.md").read_text()
    assert (
        f"{labels['labelled']} of 12 such questions have one" in card
        and f"{labels['precision']:.1%} are right" in card
    )


BAD = [
    ({"rounds": 0}, "`rounds` is 0"),
    ({"own_share": [1.5]}, "`own_share` is"),
    ({"own_share": []}, "`own_share` is"),
    ({"types_by": "gold"}, "Unknown `types_by` 'gold'"),
    ({"start_from": "base"}, "needs the base model"),
    ({"labels": "agreement"}, "has no question to label"),
    ({"labelled": 3}, "are for `labels='agreement'`"),
    ({"labels": "agreement", "labelled": 3, "keep_by": "greedy"}, "Use `keep_by='vote'`"),
    ({"labels": "agreement", "unlabelled": "absent.jsonl"}, "no file absent.jsonl"),
    ({"labels": "agreement", "unlabelled": "bad.jsonl"}, "bad.jsonl, row 1: 'nonsense' has no `question`"),
    ({"validation": 1.0}, "`validation` is 1.0"),
    ({"validation": 0.001}, "leaves 0 for validation"),
    ({"teacher": "gpt-5"}, "no thoughts of 'gpt-5' on toy/train; it holds those of 'teacher'"),
    ({"output": "md"}, "md exists and holds no refinement"),
    ({"training": {"objective": "cot"}}, "`objective='cot'` does not learn both paths"),
    ({"training": {"unsolved_path": "majority"}}, "learns wrong thoughts"),
    ({"training": {"push_to_hub": True}}, "`push_to_hub=True` is not for a refinement"),
    ({"training": {"prompt_format": "chat"}}, "contradicts the student's md_trl.json"),
    ({"training": {"resume_from_checkpoint": "x"}}, "`resume_from_checkpoint` is not needed"),
]


def test_bad_input_is_refused_before_anything_is_sampled(here):
    Path("bad.jsonl").write_text("nonsense\n")
    for options, message in BAD:
        with pytest.raises((InputError, FileNotFoundError), match=message.replace("(", r"\(")):
            run(**options)
    args = MDConfig("unused", **TRAINING)
    with pytest.raises(FileNotFoundError, match="There is no folder absent, and the Hub"):
        refine("absent", TASK, "t.db", "refined", args)
    with pytest.raises(FileNotFoundError, match="no store at absent.db"):
        refine("md", TASK, "absent.db", "refined", args)
    with pytest.raises(InputError, match="no thoughts of a teacher on svamp/train"):
        refine("md", "svamp", "t.db", "refined", args)
    assert not writers() and not Path("refined").exists() and not (Path("md") / "refine.json").exists()


COMMAND = "--model md --task toy --store t.db --rounds 1 --n 4 --validation 0.25 --max_tokens 20 --use_cpu true"
COMMAND += " --report_to none --per_device_train_batch_size 8 --learning_rate 3e-3 --max_steps 6 --dtype auto"


def test_the_command_reads_a_recipe(here, capsys):
    Path("recipe.yaml").write_text("task: toy\nown_share: [0.25, 0.5]\nstart_from: base\nmodel_name_or_path: base\n")
    run_verb("refine", [*COMMAND.split(), "--config", "recipe.yaml", "--output", "refined", "--from", "last"])
    printed = capsys.readouterr().out
    assert "| round 1 |" in printed and "The best student is refined/student" in printed
    settings = json.loads(Path("refined/refine.json").read_text())["settings"]
    assert settings["own_share"] == [0.25, 0.5] and settings["start_from"] == "last"
    assert settings["training"]["max_steps"] == 6 and "hub_token" not in settings["training"]
    with Store("t.db") as store:
        selection = Selection(TASK, models=next(iter(writers())))
        assert store.thoughts(selection)


@pytest.mark.parametrize("recipe", ["stories", "smollm2-135m"])
def test_the_recipes_are_read(recipe, monkeypatch):
    file = Path(__file__).parents[1] / "recipes" / "refine" / f"{recipe}.yaml"
    given = [] if recipe == "smollm2-135m" else ["--model", "m", "--store", "s.db", "--output", "o"]
    options, training, _ = parse_verb(["refine", "--config", str(file), *given], monkeypatch)
    assert options.share_of(5) == options.own_share[-1] and training.max_steps > 0
    check_training(training)


def test_an_adapter_is_trained_on(toy, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(toy / "base")
    adapter = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapter.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(toy / "base").save_pretrained(tmp_path / "adapter")
    before = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    thoughts = {"type": 3, "lambda": 0.5, "repeat": 1, "cot": ["1 + 2 = 3 ."], "pot": ["answer = 1 + 2"]}
    rows = Dataset.from_list([{"question": "Ann 1 : 1 + 2 ?", **thoughts}])
    args = MDConfig(str(tmp_path / "student"), max_steps=2, **TRAINING)
    trainer = make_trainer(str(tmp_path / "adapter"), args, ModelConfig(), rows)
    trainer.train()
    trainer.save_model()
    after = load_file(tmp_path / "student" / "adapter_model.safetensors")
    assert before.keys() == after.keys() and all((before[name] != after[name]).any() for name in before)
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)


# Killed


@pytest.mark.slow
def test_a_refinement_killed_in_every_phase_ends_with_the_same_student(tmp_path, monkeypatch):
    """Each run is a process that goes on from where the last one was killed (SIGKILL)."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    make_toy(whole, steps=20)  # so little that a round helps
    shutil.copytree(whole, killed)
    monkeypatch.chdir(killed)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(PRELOAD)
    more = "--labels agreement --labelled 14 --label_precision 0.6 --validation 0.4 --learning_rate 1e-2"
    more += " --max_steps 24 --save_strategy steps --save_steps 8 --save_total_limit 2 --output refined"
    arguments = [*COMMAND.split(), *more.split()]

    def run_until(folder, phase=None):
        process = processes.Process(target=refine_until, args=(folder, arguments, phase))
        process.start()
        process.join()
        return process.exitcode, (folder / "refine.log").read_text()

    code, log = run_until(whole)
    assert code == 0, log
    expected = json.loads((whole / "refined" / "refine.json").read_text())
    [entry] = expected["rounds"]
    # All phases take place, and the student's own thoughts and labels matter
    assert entry["thoughts"]["own"] > 0 and entry["labels"]["labelled"] > 0 and "after" in entry
    for phase, (_, unfinished) in KILLED_WHILE.items():
        code, log = run_until(killed, phase)
        assert code == -signal.SIGKILL, f"not killed while {phase}: {log}"
        assert first_unfinished() == unfinished, f"killed too late while {phase}"
    code, log = run_until(killed)
    assert code == 0, log
    assert json.loads((killed / "refined" / "refine.json").read_text()) == expected
    assert students(killed, 1) == students(whole, 1)
    assert weights_digest(killed / "refined" / "student") == weights_digest(whole / "refined" / "student")


@pytest.mark.slow
def test_stories_are_refined_from_the_simulated_teacher_to_the_report(tmp_path, monkeypatch):
    """Sample, mix, train, refine and report through the command line, with the recipe."""
    root = Path(__file__).parents[1]
    sys.path.insert(0, str(root / "recipes"))
    import quickstart

    monkeypatch.chdir(tmp_path)
    teacher = subprocess.Popen(quickstart.md_trl("teacher", "--port", 0), stdout=subprocess.PIPE, text=True)
    try:
        url = teacher.stdout.readline().split()[0]
        sampling = ["--task", "stories", "--limit", "300", "--n", "5", "--model", "simulated-teacher"]
        run_verb("sample", [*sampling, "--base_url", url, "--store", "t.db"])
    finally:
        teacher.terminate()
        teacher.wait()
    run_verb("mix", ["--store", "t.db", "--task", "stories", "--output", "mixed"])
    quickstart.make_student(Path("mixed"), Path("untrained"), 0)
    training = ["--config", str(root / "recipes" / "quickstart.yaml"), "--dataset", "mixed", "--validation", "0.1"]
    training += ["--model_name_or_path", "untrained", "--max_steps", "60", "--output_dir", "md"]
    run_verb("train", training)
    refining = ["--config", str(root / "recipes" / "refine" / "stories.yaml"), "--model", "md", "--store", "t.db"]
    run_verb("refine", [*refining, "--output", "refined", "--rounds", "1", "--n", "3", "--max_steps", "20"])
    found = json.loads(Path("refined/refine.json").read_text())
    assert found["questions"]["validation"] > 20 and found["rounds"][0]["training"]["steps"] == 20
    assert sum(found["rounds"][0]["types"]["student"].values()) == found["questions"]["train"]
    run_verb("report", ["--results", "refined/validation"])
    assert Path("refined/validation/rounds.png").exists()
