import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from datasets import load_dataset

from md_trl import MixedThoughts
from md_trl.dataset import build_dataset, ensure_dataset, load_mixed_rows, load_question_rows, rows_from_store
from md_trl.dataset_folder import write_folder
from md_trl.execution import default_cache
from md_trl.records import MixedRow, Question, QuestionType
from md_trl.sampling.ledger import Price
from md_trl.store import Selection, Store


LINES = [
    {"path": "cot", "text": "2 + 3 = 5. The answer is 5.", "gold": "5"},
    {"path": "cot", "text": "2 + 3 = 6. The answer is 6.", "gold": "5"},
    {"path": "pot", "text": "answer = 2 + 3", "gold": "5"},
]
HOPELESS = {"task": "svamp", "question": "And 9?", "path": "cot", "text": "The answer is 1.", "gold": "9"}


def import_lines(store_file, lines, **kwargs):
    file = store_file.with_suffix(".jsonl")
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Store(store_file) as store:
        store.import_thoughts(file, **kwargs)
    return store_file


def make_store(file, task="svamp", questions=("What is 2 plus 3?",), extra=()):
    lines = [{"task": task, "question": q, **line} for q in questions for line in LINES]
    return import_lines(file, lines + list(extra))


def rows_of(file, task="svamp", **selection):
    with Store(file) as store:
        return rows_from_store(store, Selection(task, ["train"], **selection))["train"]


def build(file, folder, task="svamp", **selection):
    with Store(file) as store:
        return build_dataset(store, folder, Selection(task, ["train"], **selection))


def load(folder, task="svamp", cache=None):
    return load_dataset(str(folder), task, split="train", cache_dir=str(cache or folder.parent / "cache"))


def test_a_folder_opens_with_load_dataset_in_a_fresh_process(tmp_path):
    rows = rows_of(make_store(tmp_path / "t.db"))
    folder = write_folder(tmp_path / "mixed", "svamp", {"train": rows}, {"teacher": "somebody"})
    code = (
        "from datasets import load_dataset; import json, sys; "
        "print(json.dumps(load_dataset(sys.argv[1], 'svamp', split='train')[0]))"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    out = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True, env=environment
    )
    loaded = json.loads(out.stdout)
    assert loaded == rows[0].to_dict()
    assert (loaded["type"], loaded["lambda"], loaded["repeat"]) == (3, 0.5, 1)
    card = (folder / "README.md").read_text()
    assert "config_name: svamp" in card and "| teacher | somebody |" in card and "{{" not in card


def test_programs_run_once_and_their_results_are_kept_beside_the_store(tmp_path):
    file = make_store(tmp_path / "t.db")
    [row] = rows_of(file)
    assert row.pot_vote == "5"
    # If the program were run again, it would not give 6.
    with closing(sqlite3.connect(default_cache(file))) as db, db:
        db.execute("UPDATE results SET result = replace(result, '\"ok\", 5', '\"ok\", 6')")
    [row] = rows_of(file)
    assert row.pot_vote == "6"


def test_tasks_share_a_folder_and_can_be_written_again(tmp_path):
    folder = tmp_path / "mixed"
    for task in ("svamp", "gsm8k", "svamp"):
        build(make_store(tmp_path / f"{task}.db", task), folder, task)
    for task in ("svamp", "gsm8k"):
        [row] = load(folder, task)
        assert row["task"] == task
    assert (folder / "README.md").read_text().count("## svamp\n") == 1


def test_type_4_is_counted_and_not_written(tmp_path):
    rows = rows_of(make_store(tmp_path / "t.db", extra=[HOPELESS]))
    folder = write_folder(tmp_path / "mixed", "svamp", {"train": rows}, {})
    assert len(load(folder)) == 1
    assert json.loads((folder / "svamp" / "mixing.json").read_text())["types"] == {
        "train": {"1": 0, "2": 0, "3": 1, "4": 1}
    }
    hopeless = [row for row in rows if row.type == QuestionType.NEITHER]
    with pytest.raises(ValueError, match="all 1 are of type 4"):
        write_folder(tmp_path / "empty", "svamp", {"train": hopeless}, {})
    assert not (tmp_path / "empty").exists()


def test_the_builder_makes_the_same_dataset_and_notices_a_grown_store(tmp_path):
    file = make_store(tmp_path / "t.db")
    for questions in (1, 2):
        builder = MixedThoughts("svamp", store=file, cache_dir=str(tmp_path / "cache"))
        builder.download_and_prepare()
        dataset = builder.as_dataset(split="train")
        assert dataset.features == MixedRow.features()
        assert dataset.to_list() == [row.to_dict() for row in rows_of(file)]
        assert len(dataset) == questions
        make_store(tmp_path / "t.db", questions=("What is 2 plus 3?", "What is 1 plus 4?"))


def test_the_builder_notices_other_thoughts_in_as_many_rows(tmp_path):
    file, texts = tmp_path / "t.db", []
    for first in ("2 + 3 = 5. The answer is 5.", "5 it is. The answer is 5."):
        file.unlink(missing_ok=True)
        line = {"task": "mine", "question": "2 and 3?", "path": "cot", "text": first, "gold": "5"}
        import_lines(file, [line], task="mine")
        with Store(file) as store:
            store.questions.add([Question("mine/test/1", "mine", "test", "Not sampled?", "5")])
        builder = MixedThoughts("mine", store=file, cache_dir=str(tmp_path / "cache"), repeat_cap=3)
        builder.download_and_prepare()
        assert list(builder.info.splits) == ["train"]  # a split without thoughts is left out
        assert '"repeat_cap": 3' in builder.info.description
        texts.append(builder.as_dataset(split="train")[0]["cot"][0]["text"])
    assert texts == ["2 + 3 = 5. The answer is 5.", "5 it is. The answer is 5."]


def test_the_builder_says_that_nothing_was_solved(tmp_path):
    file = import_lines(tmp_path / "t.db", [HOPELESS])
    builder = MixedThoughts("svamp", store=file, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="all 1 are of type 4"):
        builder.download_and_prepare()
    builder = MixedThoughts("gsm8k", store=file, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="no thoughts of gsm8k"):
        builder.download_and_prepare()


def test_missing_stores_and_tasks_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no store at .*absent.db"):
        MixedThoughts("svamp", store=tmp_path / "absent.db")
    file = make_store(tmp_path / "t.db")
    with pytest.raises(ValueError, match="no thoughts of gsm8k/train; it holds svamp/train"):
        rows_of(file, "gsm8k")
    with pytest.raises(ValueError, match="no thoughts of svamp/train with {'models': 'nobody'}; it holds svamp/train"):
        rows_of(file, models="nobody")


def test_the_card_and_the_cost_are_those_of_the_thoughts_that_were_mixed(tmp_path):
    store_file = make_store(tmp_path / "t.db")
    other = [{"task": "svamp", "question": "What is 2 plus 3?", **line, "model": "other"} for line in LINES]
    import_lines(store_file, other)
    with Store(store_file) as store:
        numbers = [row.setting for row in store.status() if row.model == "other"]
        summary = build_dataset(
            store,
            tmp_path / "mixed",
            Selection("svamp", ["train"], settings=numbers),
            prices={"other": Price(1.0, 1.0)},
        )
    assert "Cost 0.0000: 0.000000 for each of 1 kept questions" in summary.format()
    metadata = json.loads((tmp_path / "mixed" / "svamp" / "mixing.json").read_text())
    assert metadata["settings"]["teacher"] == "other"
    builder = MixedThoughts("svamp", store=store_file, settings=numbers, cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare()
    [row] = load(tmp_path / "mixed")
    assert builder.as_dataset(split="train")[0] == row


def test_each_path_can_have_its_own_teacher_and_settings_can_be_combined(tmp_path):
    lines = [
        {"task": "svamp", "question": "What is 2 plus 3?", **line, "text": f"{line['text']} {'#' * i}", "model": model}
        for i, model in enumerate(("prose", "code"))
        for line in LINES
    ]
    file = import_lines(tmp_path / "t.db", lines)
    with pytest.raises(ValueError, match="several settings"):
        build(file, tmp_path / "mixed")
    build(file, tmp_path / "mixed", models={"cot": "prose", "pot": "code"})
    [row] = load(tmp_path / "mixed")
    assert [thought["text"] for thought in row["pot"]] == ["answer = 2 + 3 #"]
    assert all("#" not in thought["text"] for thought in row["cot"])
    metadata = json.loads((tmp_path / "mixed" / "svamp" / "mixing.json").read_text())
    assert metadata["settings"]["teacher"] == "cot: prose; pot: code"
    build(file, tmp_path / "mixed", combine=True)
    [row] = load(tmp_path / "mixed")
    assert (row["n_cot"], row["n_pot"], len(row["pot"])) == (4, 2, 2)


def test_a_dataset_is_built_again_when_its_store_has_changed(tmp_path):
    file, folder = make_store(tmp_path / "t.db"), tmp_path / "mixed"
    build(make_store(tmp_path / "other.db", "gsm8k"), folder, "gsm8k")
    assert ensure_dataset(folder, "svamp", file) is not None
    assert ensure_dataset(folder, "svamp", file) is None
    make_store(tmp_path / "t.db", questions=("What is 2 plus 3?", "What is 1 plus 4?"))
    assert ensure_dataset(folder, "svamp", file) is not None
    assert len(load(folder)) == 2 and len(load(folder, "gsm8k")) == 1
    # The same selection and cap as before
    with Store(file) as store:
        build_dataset(store, folder, Selection("svamp", ["train"], combine=True), repeat_cap=7)
    make_store(tmp_path / "t.db", questions=("What is 4 plus 1?",))
    assert ensure_dataset(folder, "svamp", file) is not None
    source = json.loads((folder / "svamp" / "mixing.json").read_text())["source"]
    assert source["selection"]["combine"] is True and source["repeat_cap"] == 7
    # A dataset without its store is used as it is
    file.unlink()
    assert ensure_dataset(folder, "svamp", file) is None and len(load(folder)) == 3
    with pytest.raises(FileNotFoundError, match="no store at"):
        ensure_dataset(folder, "strategyqa", file)


def test_a_half_written_dataset_is_built_again(tmp_path):
    file, folder = make_store(tmp_path / "t.db"), tmp_path / "mixed"
    (folder / "svamp").mkdir(parents=True)
    (folder / "svamp" / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    assert ensure_dataset(folder, "svamp", file) is not None
    assert len(load(folder)) == 1


def test_a_build_that_fails_leaves_the_dataset_as_it_was(tmp_path, monkeypatch):
    file, folder = make_store(tmp_path / "t.db"), tmp_path / "mixed"
    build(file, folder)
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    make_store(tmp_path / "t.db", questions=("What is 2 plus 3?", "What is 1 plus 4?"))

    def killed(rows):
        raise KeyboardInterrupt

    monkeypatch.setattr("md_trl.dataset_folder.describe", killed)
    with pytest.raises(KeyboardInterrupt):
        build(file, folder)
    assert {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()} == before


def test_rows_to_train_on_are_loaded_or_their_absence_is_explained(tmp_path):
    file = make_store(tmp_path / "t.db", extra=[HOPELESS])
    build(file, tmp_path / "mixed")
    assert len(load_mixed_rows(str(tmp_path / "mixed"), "svamp")) == 1
    with pytest.raises(ValueError, match="of task 'gsm8k' from .*mixed"):
        load_mixed_rows(str(tmp_path / "mixed"), "gsm8k")
    # Every question, solved or not
    rows = load_question_rows("svamp", store_file=str(file))
    assert [(row["question"], row["answer"]) for row in rows] == [("What is 2 plus 3?", "5"), ("And 9?", "9")]
    with pytest.raises(ValueError, match="no questions of gsm8k/train"):
        load_question_rows("gsm8k", store_file=str(file))
