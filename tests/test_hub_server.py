"""The Hub of the tests behaves as its clients expect. They are processes that know only its URL."""

import json
import os
import subprocess
import sys
import urllib.request

import pytest
from servers.hub import running_hub


@pytest.fixture
def hub(tmp_path):
    with running_hub(tmp_path / "hub") as (url, hub):
        yield url, hub, tmp_path


def client(url, folder, code, token="hf_write", check=True):
    """Run code in a process whose caches are in a folder of their own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(folder / "home")}
    environment |= {"HF_TOKEN": token} if token else {}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=200)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def add_fault(url, **fault):
    request = urllib.request.Request(f"{url}/_faults", json.dumps(fault).encode(), method="POST")
    urllib.request.urlopen(request).read()


PUSH = """
from datasets import Dataset
Dataset.from_dict({"a": [1, 2, 3]}).push_to_hub("md/rows", config_name="svamp", split="train")
"""


LOAD = """
from datasets import load_dataset
print(load_dataset("md/rows", "svamp", split="train")["a"][:])
"""


def test_datasets_are_pushed_loaded_streamed_and_pinned(hub):
    url, hub, folder = hub
    tag = 'from huggingface_hub import HfApi; HfApi().create_tag("md/rows", tag="v1", repo_type="dataset")'
    client(url, folder, PUSH + tag)
    code = """
print([row["a"] for row in load_dataset("md/rows", "svamp", split="train", streaming=True)])
print(load_dataset("md/rows", "svamp", split="train", revision="v1").num_rows)
"""
    loaded = client(url, folder, LOAD + code, token=None)
    assert loaded.split("\n")[-3:] == ["[1, 2, 3]", "[1, 2, 3]", "3"]
    # What was loaded once is there offline
    offline = 'import os; os.environ["HF_HUB_OFFLINE"] = "1"'
    assert client("http://127.0.0.1:9", folder, offline + LOAD).endswith("[1, 2, 3]")
    assert (folder / "hub" / "repos" / "datasets" / "md" / "rows" / "main" / "README.md").exists()


@pytest.mark.parametrize(
    ("token", "settings", "error"),
    [
        ("hf_write", {}, "none"),
        (None, {"private": True}, "RepositoryNotFoundError"),
        ("hf_stranger", {"private": True}, "RepositoryNotFoundError"),
        ("hf_read", {"private": True}, "none"),
        ("hf_stranger", {"gated": "auto"}, "GatedRepoError"),
        ("hf_wrong", {}, "HfHubHTTPError"),
    ],
)
def test_private_and_gated_repositories_and_wrong_tokens(hub, token, settings, error):
    url, hub, folder = hub
    client(url, folder, PUSH)
    repo = hub.repos["dataset", "md/rows"]
    repo.private, repo.gated = bool(settings.get("private")), bool(settings.get("gated"))
    code = """
from huggingface_hub import hf_hub_download
try:
    hf_hub_download("md/rows", "README.md", repo_type="dataset")
    print("none")
except Exception as error:
    print(type(error).__name__)
"""
    assert client(url, folder / "other", code, token=token).split("\n")[-1] == error


def test_only_a_writer_writes_and_only_onto_the_newest_commit(hub):
    url, hub, folder = hub
    code = """
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError
api = HfApi()
api.create_repo("md/rows", repo_type="dataset", exist_ok=True)
add = lambda text: [CommitOperationAdd("a.txt", text.encode())]
first = api.create_commit("md/rows", add("1"), commit_message="1", repo_type="dataset")
api.create_commit("md/rows", add("2"), commit_message="2", repo_type="dataset", parent_commit=first.oid)
for call in (
    lambda: api.create_commit("md/rows", add("3"), commit_message="3", repo_type="dataset", parent_commit=first.oid),
    lambda: HfApi(token="hf_read").create_commit("md/rows", add("3"), commit_message="3", repo_type="dataset"),
):
    try:
        call()
    except HfHubHTTPError as error:
        print(error.response.status_code)
"""
    assert client(url, folder, code).split("\n")[-2:] == ["412", "403"]


def test_faults_are_injected_and_a_restarted_hub_knows_everything(hub):
    url, hub, folder = hub
    client(url, folder, PUSH)
    add_fault(url, match="^GET /api/datasets/md/rows", status=400, times=1)
    code = 'from huggingface_hub import HfApi; print(HfApi().dataset_info("md/rows").sha)'
    assert client(url, folder, code, check=False) == ""
    sha = client(url, folder, code)
    with running_hub(folder / "hub") as (other, _):
        assert client(other, folder, code) == sha
