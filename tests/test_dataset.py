import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from datasets import load_dataset

from md_trl import MixedThoughts
from md_trl.dataset import rows_from_store, write_folder
from md_trl.execution import default_cache
from md_trl.records import MixedRow, Question
from md_trl.store import Store


LINES = [
    {"path": "cot", "text": "2 + 3 = 5. The answer is 5.", "gold": "5"},
    {"path": "cot", "text": "2 + 3 = 6. The answer is 6.", "gold": "5"},
    {"path": "pot", "text": "answer = 2 + 3", "gold": "5"},
]


def make_store(path, task="svamp", questions=("What is 2 plus 3?",), extra=()):
    file = path.with_suffix(".jsonl")
    lines = [{"task": task, "question": q, **line} for q in questions for line in LINES] + list(extra)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Store(path) as store:
        store.import_thoughts(file)
    return path


def test_a_folder_opens_with_load_dataset_in_a_fresh_process(tmp_path):
    with Store(make_store(tmp_path / "t.db")) as store:
        rows = rows_from_store(store, "svamp", "train")
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
    with Store(make_store(tmp_path / "t.db")) as store:
        [row] = rows_from_store(store, "svamp", "train")
        assert row.pot_vote == "5"
        # Were the program run again, it would not come to 6
        with closing(sqlite3.connect(default_cache(store.file))) as db, db:
            db.execute("UPDATE results SET result = replace(result, '\"ok\", 5', '\"ok\", 6')")
        [row] = rows_from_store(store, "svamp", "train")
        assert row.pot_vote == "6"


def test_tasks_share_a_folder_and_can_be_written_again(tmp_path):
    folder = tmp_path / "mixed"
    for task in ("svamp", "gsm8k", "svamp"):
        with Store(make_store(tmp_path / f"{task}.db", task)) as store:
            write_folder(folder, task, {"train": rows_from_store(store, task, "train")}, {})
    for task in ("svamp", "gsm8k"):
        [row] = load_dataset(str(folder), task, split="train", cache_dir=str(tmp_path / "cache"))
        assert row["task"] == task
    assert (folder / "README.md").read_text().count("## svamp\n") == 1


def test_type_4_is_counted_and_not_written(tmp_path):
    hopeless = [{"task": "svamp", "question": "And 9?", "path": "cot", "text": "The answer is 1.", "gold": "9"}]
    with Store(make_store(tmp_path / "t.db", extra=hopeless)) as store:
        rows = rows_from_store(store, "svamp", "train")
    folder = write_folder(tmp_path / "mixed", "svamp", {"train": rows}, {})
    assert len(load_dataset(str(folder), "svamp", split="train", cache_dir=str(tmp_path / "cache"))) == 1
    assert json.loads((folder / "svamp" / "mixing.json").read_text())["types"] == {
        "train": {"1": 0, "2": 0, "3": 1, "4": 1}
    }
    with pytest.raises(ValueError, match="all 1 are of type 4"):
        write_folder(tmp_path / "empty", "svamp", {"train": [row for row in rows if row.type == 4]}, {})


def test_the_builder_makes_the_same_dataset_and_notices_a_grown_store(tmp_path):
    path = make_store(tmp_path / "t.db")
    for questions in (1, 2):
        builder = MixedThoughts("svamp", store=path, cache_dir=str(tmp_path / "cache"))
        builder.download_and_prepare()
        dataset = builder.as_dataset(split="train")
        assert dataset.features == MixedRow.features()
        with Store(path) as store:
            assert dataset.to_list() == [row.to_dict() for row in rows_from_store(store, "svamp", "train")]
        assert len(dataset) == questions
        make_store(tmp_path / "t.db", questions=("What is 2 plus 3?", "What is 1 plus 4?"))


def test_the_builder_notices_other_thoughts_in_as_many_rows(tmp_path):
    path, texts = tmp_path / "t.db", []
    for first in ("2 + 3 = 5. The answer is 5.", "5 it is. The answer is 5."):
        path.unlink(missing_ok=True)
        lines = [{"task": "mine", "question": "2 and 3?", "path": "cot", "text": first, "gold": "5"}]
        (tmp_path / "t.jsonl").write_text(json.dumps(lines[0]) + "\n")
        with Store(path) as store:
            store.import_thoughts(tmp_path / "t.jsonl", task="mine")
            store.questions.add([Question("mine/test/1", "mine", "test", "Not sampled?", "5")])
        builder = MixedThoughts("mine", store=path, cache_dir=str(tmp_path / "cache"), repeat_cap=3)
        builder.download_and_prepare()
        assert list(builder.info.splits) == ["train"]  # a split without thoughts is none
        assert '"repeat_cap": 3' in builder.info.description
        texts.append(builder.as_dataset(split="train")[0]["cot"][0]["text"])
    assert texts == ["2 + 3 = 5. The answer is 5.", "5 it is. The answer is 5."]


def test_the_builder_says_that_nothing_was_solved(tmp_path):
    hopeless = [{"task": "svamp", "question": "And 9?", "path": "cot", "text": "The answer is 1.", "gold": "9"}]
    (tmp_path / "t.jsonl").write_text(json.dumps(hopeless[0]) + "\n")
    with Store(tmp_path / "t.db") as store:
        store.import_thoughts(tmp_path / "t.jsonl")
    builder = MixedThoughts("svamp", store=tmp_path / "t.db", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="all 1 are of type 4"):
        builder.download_and_prepare()
    builder = MixedThoughts("gsm8k", store=tmp_path / "t.db", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="no thoughts of gsm8k"):
        builder.download_and_prepare()


def test_missing_stores_and_tasks_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no store at .*absent.db"):
        MixedThoughts("svamp", store=tmp_path / "absent.db")
    with Store(make_store(tmp_path / "t.db")) as store:
        with pytest.raises(ValueError, match="no thoughts of gsm8k/train; it holds svamp/train"):
            rows_from_store(store, "gsm8k", "train")


def test_the_card_and_the_cost_speak_of_the_thoughts_that_were_mixed(tmp_path):
    from md_trl.cli.mix import MixArguments, run

    store = make_store(tmp_path / "t.db")
    other = [{"task": "svamp", "question": "What is 2 plus 3?", **line, "model": "other"} for line in LINES]
    file = tmp_path / "other.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in other))
    with Store(store) as opened:
        opened.import_thoughts(file)
        numbers = [row.setting for row in opened.status() if row.model == "other"]
    run(MixArguments(str(store), "svamp", str(tmp_path / "mixed"), settings=numbers))
    metadata = json.loads((tmp_path / "mixed" / "svamp" / "mixing.json").read_text())
    assert metadata["settings"]["teacher"] == "other"
    builder = MixedThoughts("svamp", store=store, settings=numbers, cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare()
    [row] = load_dataset(str(tmp_path / "mixed"), "svamp", split="train", cache_dir=str(tmp_path / "cache"))
    assert builder.as_dataset(split="train")[0] == row
