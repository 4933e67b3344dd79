"""The loaders read the datasets under their Hub ids, with the files and columns that are published there.

The rows are made up, as many as there are on the Hub. `tests/test_tasks.py` compares the real ones with the original
files.
"""

import io
import json

import pyarrow
import pyarrow.parquet
import pytest
from servers.hub import Repo, running_hub
from test_hub_server import client

from md_trl.tasks import hub_dataset, strategyqa


def svamp(n):
    """As in `ChilleD/SVAMP`, where the answers are texts."""
    body, question = f"Ann has {n} hens", "How many hens has Ann?"
    return {
        "ID": f"chal-{n}", "Body": body, "Question": question, "Equation": f"( {n}.0 + 0.0 )", "Answer": f"{n}.0",
        "Type": "Addition", "question_concat": f"{body}. {question}",
    }  # fmt: skip


def asdiv(n):
    return {
        "body": f"Ann has {n} hens.", "question": "How many hens has Ann?", "solution_type": "Addition",
        "answer": f"{n} (hens)", "formula": f"{n}+0={n}",
    }  # fmt: skip


def strategy_qa(n, qid):
    return {
        "qid": qid, "term": "Ice", "description": "frozen water", "question": f"Is {n} even?", "answer": n % 2 == 0,
        "facts": ["Ice is cold."], "decomposition": ["What is ice?", "Is #1 cold?"],
    }  # fmt: skip


def gsm8k(n):
    return {"question": f"How many hens are {n} hens?", "answer": f"All of them: <<{n}={n}>>{n}\n#### {n:,}"}


QIDS = [f"{prefix}{'0' * 14}" for prefix in sorted(strategyqa._DEV)] + [f"{n:06x}{'f' * 14}" for n in range(2061)]
SPLITS = {
    "ChilleD/SVAMP": {"train": [svamp(n) for n in range(700)], "test": [svamp(n) for n in range(700, 1000)]},
    "openai/gsm8k": {"train": [gsm8k(n) for n in range(7473)], "test": [gsm8k(n) for n in range(7473, 8792)]},
    "EleutherAI/asdiv": {"validation": [asdiv(n) for n in range(2305)]},
    "tasksource/strategy-qa": {"train": [strategy_qa(n, qid) for n, qid in enumerate(QIDS)]},
}


def parquet(rows):
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def card(config, folder, splits):
    files = "".join(f"\n  - split: {split}\n    path: {folder}/{split}-*" for split in splits)
    return f"---\nconfigs:\n- config_name: {config}\n  data_files:{files}\n---\n".encode()


def published(splits):
    """The files of each dataset by branch."""
    files = {"ChilleD/SVAMP": {"main": {"README.md": card("default", "data", ("train", "test"))}}}
    for split, rows in splits["ChilleD/SVAMP"].items():
        files["ChilleD/SVAMP"]["main"][f"data/{split}-00000-of-00001.parquet"] = parquet(rows)
    both = card("main", "main", ("train", "test"))[:-4] + card("socratic", "socratic", ("train", "test"))[13:]
    files["openai/gsm8k"] = {"main": {"README.md": both}}
    for split, rows in splits["openai/gsm8k"].items():
        files["openai/gsm8k"]["main"][f"main/{split}-00000-of-00001.parquet"] = parquet(rows)
        files["openai/gsm8k"]["main"][f"socratic/{split}-00000-of-00001.parquet"] = parquet(rows[:1])
    files["EleutherAI/asdiv"] = {
        "main": {
            "README.md": card("asdiv", "asdiv", ("validation",)),
            "asdiv/validation-00000-of-00001.parquet": parquet(splits["EleutherAI/asdiv"]["validation"]),
        }
    }
    lines = json.dumps(splits["tasksource/strategy-qa"]["train"]).encode()
    files["tasksource/strategy-qa"] = {"main": {"strategyQA_train.json": lines}}
    return files


def fill(hub, datasets):
    for id_, branches in datasets.items():
        repo = hub.repos["dataset", id_] = Repo("dataset", id_)
        for branch, files in branches.items():
            blobs = {name: hub.add_blob(content, name.endswith(".parquet")) for name, content in files.items()}
            repo.commit(branch, "published", blobs)


LOAD = """
import json, sys
from md_trl.tasks import load_questions
found = {}
for task in sys.argv[1:] or ("svamp", "gsm8k", "asdiv", "strategyqa"):
    for split in ("train", "test"):
        try:
            questions = load_questions(task, split)
            found[f"{task}/{split}"] = [[q.id, q.question, q.answer] for q in questions]
        except (ValueError, ConnectionError) as error:
            found[f"{task}/{split}"] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


def load(url, folder, code=LOAD, **kwargs):
    return json.loads(client(url, folder, code, token=None, **kwargs).split("\n")[-1])


def test_every_task_is_loaded_from_its_hub_id_and_then_offline(tmp_path):
    with running_hub(tmp_path / "hub") as (url, hub):
        fill(hub, published(SPLITS))
        found = load(url, tmp_path / "reader")
    sizes = {name: len(questions) for name, questions in found.items()}
    assert sizes == {
        "svamp/train": 700, "svamp/test": 300, "gsm8k/train": 7473, "gsm8k/test": 1319, "asdiv/train": 1610,
        "asdiv/test": 695, "strategyqa/train": 2061, "strategyqa/test": 229,
    }  # fmt: skip
    assert found["svamp/test"][0] == ["svamp/test/chal-700", "Ann has 700 hens. How many hens has Ann?", "700"]
    assert found["gsm8k/test"][0] == ["gsm8k/test/0", "How many hens are 7473 hens?", "7473"]
    for name, question, answer in found["asdiv/train"] + found["asdiv/test"]:
        n = int(name[-4:]) - 1  # Ids are given by the order of the rows.
        assert (question, answer) == (f"Ann has {n} hens. How many hens has Ann?", f"{n}")
    assert {name.split("/")[2] for name, _, _ in found["strategyqa/test"]} == set(QIDS[:229])
    assert found["strategyqa/test"][1][1:] == ["Is 1 even?", "no"]
    offline = 'import os; os.environ["HF_HUB_OFFLINE"] = "1"'
    assert load("http://127.0.0.1:9", tmp_path / "reader", offline + LOAD) == found


def test_a_loading_script_is_read_as_the_hub_has_converted_it(tmp_path):
    """`EleutherAI/asdiv` was a script that downloads the XML file before it was turned into Parquet."""
    datasets = published(SPLITS)
    rows = parquet(SPLITS["EleutherAI/asdiv"]["validation"])
    script = {"README.md": b"---\nlicense: cc-by-nc-4.0\n---\n", "asdiv.py": b"raise SystemExit('this code ran')"}
    datasets["EleutherAI/asdiv"] = {
        "main": script,
        "refs/convert/parquet": {"asdiv/validation/0000.parquet": rows},
    }
    with running_hub(tmp_path / "hub") as (url, hub):
        fill(hub, {"EleutherAI/asdiv": datasets["EleutherAI/asdiv"]})
        found = load(url, tmp_path / "reader", LOAD.replace("sys.argv[1:]", '["asdiv"]'))
    assert {name: len(questions) for name, questions in found.items()} == {"asdiv/train": 1610, "asdiv/test": 695}
    offline = 'import os; os.environ["HF_HUB_OFFLINE"] = "1"' + LOAD.replace("sys.argv[1:]", '["asdiv"]')
    assert load("http://127.0.0.1:9", tmp_path / "reader", offline) == found


RENAMED = {
    "ChilleD/SVAMP": {"Answer": "answer"},
    "openai/gsm8k": {"question": "problem"},
    "EleutherAI/asdiv": {"body": "context"},
    "tasksource/strategy-qa": {"qid": "id"},
}


def test_wrong_columns_are_named(tmp_path):
    splits = {
        id_: {
            split: [{RENAMED[id_].get(column, column): value for column, value in row.items()} for row in rows]
            for split, rows in of_dataset.items()
        }
        for id_, of_dataset in SPLITS.items()
    }
    with running_hub(tmp_path / "hub") as (url, hub):
        fill(hub, published(splits))
        found = load(url, tmp_path / "reader")
    for task in ("svamp", "gsm8k", "asdiv", "strategyqa"):
        [[column, other]] = RENAMED[hub_dataset(task).repo].items()
        for split in ("train", "test"):
            error = found[f"{task}/{split}"]
            assert error.startswith(f"InputError: {hub_dataset(task).repo}, split "), error
            assert ": there is no column" in error and repr(column) in error and repr(other) in error
            assert "as `source`" in error


def test_a_dataset_that_is_not_there(tmp_path):
    with running_hub(tmp_path / "hub") as (url, _):
        found = load(url, tmp_path / "reader", LOAD.replace("sys.argv[1:]", '["gsm8k"]'))
    assert found["gsm8k/test"].startswith("ConnectionError: Could not load split 'test' of 'openai/gsm8k'")


@pytest.mark.parametrize("task", ["stories", "my-own"])
def test_tasks_without_a_dataset(task):
    assert hub_dataset(task) is None
