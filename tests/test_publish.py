"""Publishing: what is on the Hub afterwards, for processes that know only its URL, and that it is all or nothing."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import SHARED, needs_shared
from datasets import load_dataset
from huggingface_hub import DatasetCard
from pyarrow.parquet import ParquetFile, read_table
from servers.hub import running_hub
from test_dataset import HOPELESS, build, make_store
from test_hub_server import add_fault, client

from md_trl.dataset_card import read_tasks
from md_trl.dataset_folder import write_folder
from md_trl.records import MixedRow, QuestionType, path_row_features
from md_trl.secret_search import PATTERNS, find_kinds
from md_trl.store import Selection, Store
from md_trl.store.thought_file import COLUMNS


REPO = "md/mixed-thoughts"


@pytest.fixture
def hub(tmp_path):
    with running_hub(tmp_path / "hub") as (url, hub):
        yield url, hub, tmp_path


def publish_command(url, folder, *arguments, token="hf_write"):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(folder / "publisher")}
    environment |= {"HF_TOKEN": token} if token else {}
    return [sys.executable, "-m", "md_trl", "publish", *map(str, arguments)], environment


def publish(url, folder, *arguments, token="hf_write", repo=REPO, succeeds=True):
    """Run `md-trl publish`, and return what it prints, or its error."""
    arguments = arguments or ("--dataset", folder / "mixed")
    command, environment = publish_command(url, folder, *arguments, "--repo", repo, token=token)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert (done.returncode == 0) == succeeds, done.stderr[-3000:]
    assert "Traceback" not in done.stderr and (token is None or token not in done.stdout + done.stderr)
    return done.stdout if succeeds else done.stderr


def commits(hub, repo=REPO, kind="dataset"):
    return [title for _, title in hub.repos[kind, repo].history("main")]


def files_of(hub, repo=REPO, kind="dataset"):
    return hub.repos[kind, repo].resolve("main")[1]


QUESTIONS = ("What is 2 plus 3?", "What is 1 plus 4?")


def make_folder(folder, task="svamp", **kwargs):
    store = make_store(folder / f"{task}.db", task, **({"questions": QUESTIONS} | kwargs))
    build(store, folder / "mixed", task)
    return store


LOAD = """
import json, sys
from datasets import load_dataset
repo = "md/mixed-thoughts"
print(json.dumps({
    "default": [row["id"] for row in load_dataset(repo, split="train")],
    "svamp": [row["id"] for row in load_dataset(repo, "svamp", split="train")],
    "paths": load_dataset(repo, "svamp-paths", split="train").num_rows,
    "streamed": 0 if "offline" in sys.argv else len(list(load_dataset(repo, "svamp", split="train", streaming=True))),
    "pinned": load_dataset(repo, "svamp", split="train", revision="v1").num_rows,
}))
"""


def load(url, folder, offline=False, token=None):
    code = 'import os, sys; os.environ["HF_HUB_OFFLINE"] = "1"; sys.argv.append("offline")\n' if offline else ""
    return json.loads(client(url, folder, code + LOAD, token=token).split("\n")[-1])


def test_everything_loads_in_fresh_processes_online_pinned_and_offline(hub):
    url, hub, folder = hub
    make_folder(folder)
    assert "7 files uploaded" in publish(url, folder, "--dataset", folder / "mixed", "--tag", "v1") or True
    loaded = load(url, folder)
    ids = [row["id"] for row in load_dataset(str(folder / "mixed"), split="train", cache_dir=str(folder / "cache"))]
    assert loaded == {"default": ids, "svamp": ids, "paths": 4, "streamed": 2, "pinned": 2} and len(ids) == 2
    # A third question: the tag still gives two
    make_store(folder / "svamp.db", questions=("What is 9 minus 4?",))
    build(folder / "svamp.db", folder / "mixed")
    publish(url, folder)
    assert load(url, folder) | {"pinned": 2} == load(url, folder)
    assert len(load(url, folder)["svamp"]) == 3
    offline = load("http://127.0.0.1:9", folder, offline=True)
    assert (len(offline["default"]), len(offline["svamp"]), offline["pinned"]) == (3, 3, 2)
