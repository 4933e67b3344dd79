"""Publishing: what is on the Hub afterwards, for processes that know only its URL, and that it is all or nothing."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from commands import message
from conftest import SHARED, needs_shared
from datasets import load_dataset
from huggingface_hub import DatasetCard
from pyarrow import Table
from pyarrow.parquet import read_schema, read_table, write_table
from servers.hub import running_hub
from students import byte_tokenizer, tiny_llama
from test_dataset import HOPELESS, build, import_lines, make_store
from test_hub_server import add_fault, client
from trl import SFTConfig, SFTTrainer

from md_trl.dataset import build_dataset
from md_trl.flat_twin import write_flat_twin
from md_trl.records import Choice, MixedRow, Question, QuestionType, SamplingParams
from md_trl.sampling.ledger import Price
from md_trl.secret_search import find_kinds
from md_trl.store import Selection, Store


REPO = "md/mixed-thoughts"
QUESTIONS = ("What is 2 plus 3?", "What is 1 plus 4?")


@pytest.fixture
def hub(tmp_path):
    with running_hub(tmp_path / "hub") as (url, hub):
        yield url, hub, tmp_path


def make_folder(folder, task="svamp", output="mixed", **kwargs):
    """Mix two questions of a task into a folder, and return their store."""
    store = make_store(folder / f"{task}.db", task, **({"questions": QUESTIONS} | kwargs))
    build(store, folder / output, task)
    return store


def hub_environment(url, folder):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_write"}
    return environment | {"HF_HOME": str(folder / "publisher"), "PYTHONPATH": os.getcwd()}


def publish(url, folder, *arguments):
    """Run `md-trl publish`, and return what it prints."""
    command = [sys.executable, "-m", "md_trl", "publish", "--dataset", folder / "mixed", "--repo", REPO, *arguments]
    environment = hub_environment(url, folder)
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=200).stdout


PRELUDE = """
import json, os, sys
from pathlib import Path
from huggingface_hub import HfApi
from md_trl import hub_repo
from md_trl.hub import publish_dataset, publish_metric

def attempt(*arguments, **kwargs):
    try:
        said = publish_dataset(*arguments, **kwargs).format()
    except (OSError, ValueError) as error:
        said = f"{type(error).__name__}: {error}"
    print(json.dumps(said))
"""


def attempts(url, folder, code, **kwargs):
    """Run code with `attempt`, the function behind the command, in one process. Return what each attempt said."""
    return [json.loads(line) for line in client(url, folder, PRELUDE + code, **kwargs).split("\n") if line[:1] == '"']


def commits(hub, repo=REPO, kind="dataset"):
    return [title for _, title in hub.repos[kind, repo].history("main")]


def files_of(hub, repo=REPO, kind="dataset"):
    return hub.repos[kind, repo].resolve("main")[1]


def content(hub, name, repo=REPO, kind="dataset"):
    return hub.read_blob(files_of(hub, repo, kind)[name].sha256)


LOAD = """
import json, os, sys
if "%(offline)s":
    os.environ["HF_HUB_OFFLINE"] = "1"
from datasets import load_dataset
from huggingface_hub import snapshot_download
repo = "md/mixed-thoughts"
first = snapshot_download(repo, repo_type="dataset", revision="v1")
print(json.dumps({
    "default": sorted(row["id"] for row in load_dataset(repo, split="train")),
    "svamp": sorted(row["id"] for row in load_dataset(repo, "svamp", split="train")),
    "streamed": len(list(load_dataset(repo, "svamp", split="train", streaming=True))),
    "pinned": len(load_dataset(first, "svamp", split="train") if "%(offline)s" else
                  load_dataset(repo, "svamp", split="train", revision="v1")),
    "pinned_paths": len(load_dataset(first, "svamp-paths", split="train")),
}))
"""


def test_everything_loads_in_fresh_processes_online_pinned_and_offline(hub):
    url, hub, folder = hub
    make_folder(folder)
    said = publish(url, folder, "--tag", "v1")
    assert re.search(rf"Published {url}/datasets/{REPO} in commit \w{{40}}: 5 files uploaded.\nTagged v1", said)
    local = load_dataset(str(folder / "mixed"), split="train", cache_dir=str(folder / "cache"))
    load = LOAD % {"offline": ""}
    loaded = json.loads(client(url, folder, load, token=None).split("\n")[-1])
    ids = sorted(local["id"])
    assert loaded == {"default": ids, "svamp": ids, "streamed": 2, "pinned": 2, "pinned_paths": 4} and len(ids) == 2
    # With a third question, the tag still gives two
    make_folder(folder, questions=("What is 9 minus 4?",))
    attempts(url, folder, f"attempt({str(folder / 'mixed')!r}, {REPO!r})")
    newer = json.loads(client(url, folder, load, token=None).split("\n")[-1])
    assert [len(newer["default"]), newer["streamed"], newer["pinned"], newer["pinned_paths"]] == [3, 3, 2, 4]
    offline = client("http://127.0.0.1:9", folder, LOAD % {"offline": "yes"}, token=None)
    assert json.loads(offline.split("\n")[-1]) == newer


def test_publishing_again_and_publishing_more(hub):
    url, hub, folder = hub
    store = make_folder(folder)
    again = f"attempt({str(folder / 'mixed')!r}, {REPO!r}"
    first, second = attempts(url, folder, f"{again})\n{again})")
    assert "5 files uploaded" in first and "so there is no new commit" in second
    assert commits(hub) == ["Publish svamp", "initial commit"]
    before = files_of(hub)
    # One more task, from a folder that holds nothing else, and the thoughts of the first
    make_folder(folder, "asdiv", output="other", questions=QUESTIONS[:1], extra=[HOPELESS | {"task": "asdiv"}])
    other = f"attempt({str(folder / 'other')!r}, {REPO!r})\n"
    said = attempts(url, folder, f"{other}{again}, thoughts={str(store)!r})\n{again})\n{other}")
    assert [line.split(" ")[0] for line in said[:2]] == ["Published", "Published"]
    assert all("so there is no new commit" in line for line in said[2:])
    assert commits(hub)[:2] == ["Publish svamp", "Publish asdiv"] and len(commits(hub)) == 4
    now = files_of(hub)
    assert all(now[name] == file for name, file in before.items() if "/" in name)
    card = DatasetCard(content(hub, "README.md").decode())
    configs = {config["config_name"]: config for config in card.data.to_dict()["configs"]}
    assert list(configs) == ["asdiv", "asdiv-paths", "default", "svamp", "svamp-paths", "svamp-thoughts"]
    assert configs["default"]["data_files"] == [
        {"split": "train", "path": ["asdiv/train-*.parquet", "svamp/train-*.parquet"]}
    ]
    assert card.data.license == ["cc-by-nc-4.0", "mit"] and card.data.size_categories == ["n<1K"]
    assert card.text.count("\n## svamp\n") == card.text.count("\n## asdiv\n") == 1
    code = f"""
from datasets import load_dataset
names = ((), ("svamp",), ("svamp-thoughts",))
print(json.dumps([len(load_dataset({REPO!r}, *name, split="train")) for name in names]))
"""
    assert json.loads(client(url, folder, PRELUDE + code, token=None).split("\n")[-1]) == [3, 2, 6]


def test_outdated_files_are_deleted_and_others_kept_and_private_is_only_what_was_asked_for(hub):
    url, hub, folder = hub
    make_folder(folder)
    code = f"""
attempt({str(folder / "mixed")!r}, {REPO!r})
api = HfApi()
for name in ("svamp/train-00001-of-00002.parquet", "notes.txt"):
    api.upload_file(path_or_fileobj=b"old", path_in_repo=name, repo_id={REPO!r}, repo_type="dataset")
readme = Path(api.hf_hub_download({REPO!r}, "README.md", repo_type="dataset")).read_bytes()
gated = readme.replace(b"pretty_name", b"extra_gated_prompt: Ask\\npretty_name")
api.upload_file(path_or_fileobj=gated, path_in_repo="README.md", repo_id={REPO!r}, repo_type="dataset")
attempt({str(folder / "mixed")!r}, {REPO!r})
attempt({str(folder / "mixed")!r}, "md/mine", private=True)
"""
    said = attempts(url, folder, code)
    assert "1 deleted" in said[1]
    assert hub.repos["dataset", "md/mine"].private and not hub.repos["dataset", REPO].private
    assert "notes.txt" in files_of(hub) and "svamp/train-00001-of-00002.parquet" not in files_of(hub)
    assert DatasetCard(content(hub, "README.md").decode()).data["extra_gated_prompt"] == "Ask"


@pytest.mark.slow
def test_a_commit_of_somebody_else_is_merged_with(hub):
    url, hub, folder = hub
    make_folder(folder)
    code = f"""
changes, races = hub_repo.HubRepo.changes, 1
def race(self, files, head):
    global races
    if races:
        races -= 1
        HfApi().upload_file(
            path_or_fileobj=str(races).encode(), path_in_repo="race.txt", repo_id={REPO!r}, repo_type="dataset"
        )
    return changes(self, files, head)
hub_repo.HubRepo.changes = race
attempt({str(folder / "mixed")!r}, {REPO!r})
Path({str(folder / "mixed" / "svamp" / "mixing.json")!r}).write_text(
    Path({str(folder / "mixed" / "svamp" / "mixing.json")!r}).read_text() + "\\n")
races = 100
attempt({str(folder / "mixed")!r}, {REPO!r})
"""
    merged, lost = attempts(url, folder, code)
    assert merged.startswith("Published") and lost.startswith(f"OutdatedError: Somebody else is committing to {REPO}")
    assert "race.txt" in files_of(hub)
    statuses = [status for method, path, status in hub.requests if method == "POST" and "/commit/" in path]
    assert statuses.count(412) == 3


@pytest.mark.slow
def test_a_killed_upload_leaves_the_old_version(hub):
    url, hub, folder = hub
    make_folder(folder)
    code = f"attempt({str(folder / 'mixed')!r}, {REPO!r})"
    attempts(url, folder, code)
    before = files_of(hub)
    make_folder(folder, questions=("What is 9 minus 4?",))
    for match in ("^PUT /_lfs/", f"^POST /api/datasets/{REPO}/commit/"):
        add_fault(url, match=match, seconds=100, times=9)
        process = subprocess.Popen([sys.executable, "-c", PRELUDE + code], env=hub_environment(url, folder))
        deadline = time.monotonic() + 100
        while not any(re.search(match, line) for line in hub.failing) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None and hub.failing
        process.send_signal(signal.SIGKILL)
        process.wait()
        hub.faults.clear()
        hub.failing.clear()
        assert files_of(hub) == before
    load = f"from datasets import load_dataset; print(len(load_dataset({REPO!r}, split='train')))"
    assert client(url, folder, load, token=None).endswith("2")
    attempts(url, folder, code)
    assert client(url, folder, load, token=None).endswith("3")


def test_errors_say_what_to_do_and_publish_nothing(hub):
    url, hub, folder = hub
    make_folder(folder)
    (folder / "empty").mkdir()
    mixed = str(folder / "mixed")
    code = f"""
mixed = {mixed!r}
attempt("nowhere", {REPO!r})
attempt({str(folder / "empty")!r}, {REPO!r})
attempt(mixed, {REPO!r}, allow=["mail"])
attempt(mixed, "md/mixed thoughts")
os.environ["HF_TOKEN"] = "hf_wrong"
attempt(mixed, {REPO!r})
os.environ["HF_TOKEN"] = "hf_read"
attempt(mixed, {REPO!r})
del os.environ["HF_TOKEN"]
attempt(mixed, {REPO!r})
os.environ["HF_TOKEN"] = "hf_write"
"""
    said = attempts(url, folder, code)
    for line, expected in zip(
        said,
        [
            "FileNotFoundError: There is no folder nowhere. Write one with `md-trl mix",
            "InputError: .*empty holds no complete task: no folder in it has a mixing.json",
            "InputError: Unknown kind 'mail' in `--allow`. Choose from api_key",
            "InputError: 'md/mixed thoughts' is not the id of a repository",
            r"InputError: The Hub does not accept your token \(Invalid credentials",
            f"InputError: Your token may not write to {REPO}",
            "InputError: There is no Hub token. Log in with `hf auth login`",
        ],
        strict=True,
    ):
        assert re.match(expected, line), line
        assert not any(token in line for token in ("hf_w", "hf_r"))
    assert not hub.repos


def test_errors_of_the_hub_leave_the_old_version(hub):
    url, hub, folder = hub
    make_folder(folder)
    mixed = str(folder / "mixed")
    attempts(url, folder, f"attempt({mixed!r}, {REPO!r})")
    before, repo = files_of(hub), hub.repos["dataset", REPO]
    make_folder(folder, questions=("What is 9 minus 4?",))
    # 520 is not tried again by huggingface_hub, 503 is
    code = f"""
import urllib.request
def add_fault(**fault):
    urllib.request.urlopen(urllib.request.Request("{url}/_faults", json.dumps(fault).encode(), method="POST")).read()

def as_stranger(**settings):
    HfApi().update_repo_settings({REPO!r}, repo_type="dataset", **settings)
    os.environ["HF_TOKEN"] = "hf_stranger"
    attempt({mixed!r}, {REPO!r})
    os.environ["HF_TOKEN"] = "hf_write"

as_stranger(private=True)
as_stranger(private=False, gated="auto")
HfApi().update_repo_settings({REPO!r}, repo_type="dataset", gated=False)
attempt({mixed!r}, {REPO!r}, private=True)
HfApi().create_tag({REPO!r}, tag="v1", repo_type="dataset")
attempt({mixed!r}, {REPO!r}, tag="v1")
for match in ("^PUT /_lfs/", "^POST /api/datasets/{REPO}/commit/"):
    add_fault(match=match, status=520, times=1)
    attempt({mixed!r}, {REPO!r})
"""
    hidden, gated, public, tagged, *failed = attempts(url, folder, code)
    assert hidden.startswith(f"InputError: Your token may not write to {REPO}")
    assert gated.startswith(f"InputError: {REPO} is gated and your token has no access")
    assert "is public. Make it private at" in public and "has a tag 'v1' already, of another version" in tagged
    assert len(failed) == 2
    for line in failed:
        assert line.startswith("InputError: The Hub failed with status 520") and "is as it was" in line
    assert files_of(hub) == before
    add_fault(url, match="^PUT /_lfs/", status=503, times=1)
    [retried] = attempts(url, folder, f"attempt({mixed!r}, {REPO!r}, tag='v2')")
    assert retried.startswith("Published") and repo.tags["v2"] == repo.branches["main"]
    [unreachable] = attempts("http://127.0.0.1:9", folder, f"attempt({mixed!r}, {REPO!r})")
    assert unreachable.startswith("InputError: Cannot reach the Hub at http://127.0.0.1:9")


MIXED = {
    "id": "string", "task": "string", "question": "string", "answer": "string", "type": "int32", "lambda": "double",
    "repeat": "int32", "n_cot": "int32", "n_pot": "int32", "n_cot_correct": "int32", "n_pot_correct": "int32",
    "cot_vote": "string", "pot_vote": "string",
    **dict.fromkeys(("cot", "pot"), "list<item: struct<text: string, answer: string, correct: bool, count: int32>>"),
}  # fmt: skip
PATHS = {
    "id": "string", "task": "string", "path": "string", "type": "int32", "prompt": "string", "completion": "string",
    "weight": "double",
}  # fmt: skip
THOUGHTS = {
    "task": "string", "id": "string", "split": "string", "question": "string", "gold": "string", "path": "string",
    "index": "int32", "text": "string", "finish_reason": "string", "answer": "string", "logprob": "double",
    "model": "string", "params": "string", "usage": "string",
}  # fmt: skip


def test_columns_card_and_thoughts(hub):
    url, hub, folder = hub
    extra = {"model": "gpt", "params": {"temperature": 0.7, "prompt_hash": "abc"}, "usage": {"prompt_tokens": 3}}
    line = {"task": "svamp", "question": QUESTIONS[0], "gold": "5", "path": "cot", "text": "The answer is 5."} | extra
    pot = line | {"path": "pot", "text": "answer = 5"}
    wrong = HOPELESS | extra | {"text": "I do not know.", "finish_reason": "length"}
    store = import_lines(folder / "t.db", [line, pot, wrong])
    build(store, folder / "mixed")
    attempts(url, folder, f"attempt({str(folder / 'mixed')!r}, {REPO!r}, thoughts={str(store)!r})")
    main = hub.folder(hub.repos["dataset", REPO]) / "main"
    for config, columns in {"svamp": MIXED, "svamp-paths": PATHS, "svamp-thoughts": THOUGHTS}.items():
        schema = read_schema(main / config / "train-00000-of-00001.parquet")
        assert {field.name: str(field.type).replace("element", "item") for field in schema} == columns
    # Raw thoughts: the wrong one of a question that no path solves, too, and enough to mix them again
    rows = read_table(main / "svamp-thoughts" / "train-00000-of-00001.parquet").to_pylist()
    assert [(row["text"], row["finish_reason"]) for row in rows] == [
        ("The answer is 5.", "stop"), ("answer = 5", "stop"), ("I do not know.", "length")
    ]  # fmt: skip
    assert rows[0]["split"] == "train" and json.loads(rows[0]["params"]) == extra["params"]
    assert json.loads(rows[0]["usage"]) == extra["usage"] and rows[0]["logprob"] is None
    with Store(folder / "again.db") as again, Store(store) as original:
        again.import_thoughts(main / "svamp-thoughts" / "train-00000-of-00001.parquet", "svamp")
        assert again.digest() == original.digest()

    card = DatasetCard.load(main / "README.md")
    assert "{{" not in card.content and "![Types and lambda by task](mixing.png)" in card.text
    assert (main / "mixing.png").read_bytes().startswith(b"\x89PNG")
    assert card.data.license == "mit" and card.data.size_categories == ["n<1K"] and card.data.language == ["en"]
    infos = {info["config_name"]: info for info in card.data.to_dict()["dataset_info"]}
    assert {name: info["splits"][0]["num_examples"] for name, info in infos.items()} == {
        "svamp": 1, "svamp-paths": 2, "svamp-thoughts": 3
    }  # fmt: skip
    for row in ("| teacher | gpt |", "| cot prompt (hash) | abc |", "| temperature | 0.7 |", "| md_trl | 0"):
        assert row in card.text
    assert re.search(r"\| imported on \| \d{4}-\d\d-\d\d \|", card.text)
    commands = re.search(r"To build it again:\n\n```bash\n(.*?)```", card.text, re.DOTALL)[1].strip().split("\n")
    assert commands == [f"md-trl mix --thoughts {REPO} --task svamp --splits train --output mixed"]
    # huggingface_hub's own validation, which the Hub answers
    code = """
from huggingface_hub import DatasetCard
card = DatasetCard.load("md/mixed-thoughts")
card.validate()
card.data.license = "unknown license"
try:
    card.validate()
except ValueError as error:
    print("refused", "license" in str(error))
"""
    assert client(url, folder, code).endswith("refused True")


def test_thoughts_that_are_being_sampled_or_have_changed_are_not_published(hub):
    url, hub, folder = hub
    store = make_folder(folder)
    code = f"""
from md_trl.dataset import build_dataset
from md_trl.records import Choice
from md_trl.store import Selection, Store
store = Store({str(store)!r})
question, setting = store.questions.load()[0].id, store.status()[0].setting

def attempt_with_thoughts():
    attempt({str(folder / "mixed")!r}, {REPO!r}, thoughts={str(store)!r})

[claim] = store.claims.claim(question, "cot", setting, 4, max_samples=9).claims
attempt_with_thoughts()
build_dataset(store, {str(folder / "meanwhile")!r}, Selection("svamp", ["train"]))
store.claims.fail(claim.key, "refused")
attempt({str(folder / "meanwhile")!r}, {REPO!r})
batch = store.batches.add("http://127.0.0.1:9", "/v1/chat/completions")
store.claims.claim(question, "pot", setting, 4, max_samples=9, batch=batch)
attempt_with_thoughts()
store.batches.finish(batch, "failed", "refused")
[claim] = store.claims.claim(question, "pot", setting, 2).claims
store.claims.save(claim.key, [Choice("answer = 6", "stop")], dict())
attempt_with_thoughts()
attempt({str(folder / "mixed")!r}, {REPO!r}, thoughts="nowhere.db")
"""
    by_process, meanwhile, by_batch, changed, missing = attempts(url, folder, code)
    assert "is being sampled: svamp/train, cot of : 2 samples by a running process" in by_process
    # Rows that were mixed meanwhile are refused even when that has ended
    assert "svamp was mixed while it was being sampled" in meanwhile
    assert "pot of : 3 samples by a batch" in by_batch
    assert "are not those that the rows were mixed from" in changed and "no store at nowhere.db" in missing
    assert not hub.repos


def row(number, type_, lambda_, repeat, cot, pot):
    """A mixed row whose thoughts are correct if their text is in upper case."""
    thoughts = [
        [{"text": text, "answer": "5", "correct": text.isupper(), "count": 1} for text in texts]
        for texts in (cot, pot)
    ]
    counts = (len(cot), len(pot), sum(map(str.isupper, cot)), sum(map(str.isupper, pot)))
    return MixedRow(f"mine/train/{number}", "mine", f"Q{number}?", "5", QuestionType(type_), lambda_, repeat, *counts,
                    "5", "5", *thoughts)  # fmt: skip


def test_the_flat_twin_has_the_weights_of_the_method(tmp_path):
    rows = [
        row(1, 1, 0.9, 3, ["ONE", "wrong"], ["TWO", "THREE"]),
        row(2, 2, 0.0, 2, ["A", "B", "C", "d"], ["x"]),
        row(3, 3, 0.25, 1, ["E", "F", "G", "h"], ["I"]),
        row(4, 4, None, 1, ["j"], ["k"]),
    ]
    (tmp_path / "mine").mkdir()
    table = Table.from_pylist([mixed.to_dict() for mixed in rows], MixedRow.features().arrow_schema)
    write_table(table, tmp_path / "mine" / "train-00000-of-00001.parquet")
    write_flat_twin(tmp_path / "mine", tmp_path / "mine-paths")
    flat = read_table(tmp_path / "mine-paths" / "train-00000-of-00001.parquet").to_pylist()
    expected = []
    for mixed in rows[:3]:
        for path, thoughts, share in (("cot", mixed.cot, 1 - mixed.lambda_), ("pot", mixed.pot, mixed.lambda_)):
            texts = [thought["text"] for thought in thoughts if thought["correct"]]
            w = share if mixed.type == 3 else 1.0
            trigger = {"cot": "Let's think step by step.", "pot": "Let's break down the code step by step."}[path]
            expected += [
                {"id": mixed.id, "task": "mine", "path": path, "type": int(mixed.type)}
                | {"prompt": f"{mixed.question}\n{trigger}\n", "completion": text}
                | {"weight": mixed.repeat * w / len(texts)}
                for text in texts
            ]
    assert flat == expected
    assert [path_row["weight"] for path_row in flat[:3]] == [3.0, 1.5, 1.5]


def test_vanilla_sft_trains_on_path_rows(tmp_path):
    make_folder(tmp_path)
    dataset = load_dataset(str(tmp_path / "mixed"), "svamp-paths", split="train", cache_dir=str(tmp_path / "cache"))
    args = SFTConfig(str(tmp_path / "out"), max_steps=2, report_to="none", bf16=False, gradient_checkpointing=False,
                     use_cpu=True, save_strategy="no", disable_tqdm=True)  # fmt: skip
    trainer = SFTTrainer(tiny_llama(), args, train_dataset=dataset, processing_class=byte_tokenizer())
    trainer.train()
    assert trainer.state.global_step == 2


SECRETS = {
    "api_key": [
        "sk-" + "a1B2" * 12, "sk-proj-" + "a1B2" * 20,
        "hf_" + "aB" * 17, "AKIA" + "ABCD1234EFGH5678", "ghp_" + "a1" * 18,
        "AIza" + "b" * 35, "xoxb-123456789012-abcdef", "glpat-" + "a1" * 10, "sk_live_" + "a1" * 10,
    ],
    "token": ["eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJ12", "Authorization: Bearer abcdefghijklmnopqrstuvwxyz"],
    "private_key": ["-----BEGIN RSA PRIVATE KEY-----", "-----BEGIN OPENSSH PRIVATE KEY-----"],
    "password": [
        'password = "hunter2x9"', "DB_PASSWORD=abc12345", "Password: abc12345", "api_key='zzzz1111'",
        "postgres://me:pw123@host/db", '{"client_secret": "a1b2c3d4"}',
    ],
    "email": ["mail jane.doe+x@uni.edu.", "a@b.co"],
}  # fmt: skip
HARMLESS = [
    "token = 5", "tokens = 3 * tokens_per_box", "secret_number = 12345678", "A@B.sum()", "x @ y", "5@2.50 each",
    "A@B.dot(c)", "the secret: 42", "write to a@example.com", "secret = 'blueberry'", "token: 12345678",
    "number_of_tokens=total_tokens2 - used_tokens", "risk-aversion sk-learn", "secret_code = str(number1234)",
]  # fmt: skip


def test_secrets_are_found_and_sums_are_not():
    for kind, texts in SECRETS.items():
        for text in texts:
            assert find_kinds(f"So, {text}\n") == [kind], text
            assert find_kinds(text, allow=[kind]) == []
    for text in HARMLESS:
        assert find_kinds(text) == [], text


@needs_shared("data/svamp_teacher")
def test_real_thoughts_pass_the_search():
    for name in ("cot.json", "pot.json"):
        for values in json.loads((SHARED / "data" / "svamp_teacher" / name).read_text()):
            assert not any(find_kinds(value) for value in values.values() if isinstance(value, str)), values


def test_secrets_stop_the_upload_and_are_not_shown(hub):
    url, hub, folder = hub
    secret = "sk-" + "a1B2" * 12
    line = {"task": "svamp", "question": QUESTIONS[0], "gold": "5", "path": "cot"}
    leaks = [line | {"text": f"{secret}. The answer is 5."}, line | {"text": "Ask jane@uni.edu. The answer is 5."}]
    store = make_folder(folder, extra=leaks)
    mixed = f"attempt({str(folder / 'mixed')!r}, {REPO!r}"
    code = f"{mixed})\n{mixed}, allow=['email'], thoughts={str(store)!r})\n{mixed}, allow=['email', 'api_key'])"
    both, one, none = attempts(url, folder, code)
    with Store(store) as opened:
        question = next(q.id for q in opened.questions.load() if q.question == QUESTIONS[0])
        position = [q.id for q in opened.questions.load()].index(question)
    assert f"api_key: configuration svamp, split train, row {position} ({question}), column cot" in both
    assert "email: configuration svamp-paths" in both and "column completion" in both
    assert "configuration svamp-thoughts" in one and "column text" in one and "email" not in one
    assert "`--allow api_key`" in one and none.startswith("Published")
    assert secret not in both + one and "jane" not in both + one
    assert commits(hub) == ["Publish svamp", "initial commit"]


def test_the_metric_becomes_a_space(hub):
    url, hub, folder = hub
    code = "for _ in range(2): print(json.dumps(publish_metric('me/vote').format()))"
    first, second = attempts(url, folder, code)
    assert first.startswith(f"Published {url}/spaces/me/vote") and "so there is no new commit" in second
    assert hub.repos["space", "me/vote"].sdk == "gradio"
    files = files_of(hub, "me/vote", "space")
    assert {"README.md", "app.py", "md_vote.py", "requirements.txt"} <= set(files)
    for name in ("README.md", "app.py", "md_vote.py"):
        text = hub.read_blob(files[name].sha256).decode()
        assert 'evaluate.load("me/vote")' in text and "md/md_vote" not in text


@pytest.mark.slow
def test_the_commands_of_the_card_build_the_dataset_again(hub):
    url, hub, folder = hub
    store = make_folder(folder, extra=[HOPELESS])
    publish(url, folder, "--thoughts", store)
    card = content(hub, "README.md").decode()
    commands = re.search(r"To build it again:\n\n```bash\n(.*?)```", card, re.DOTALL)[1]
    (folder / "again").mkdir()
    paths = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    commands = commands.replace("md-trl ", f"{sys.executable} -m md_trl ")
    environment = hub_environment(url, folder) | {"PATH": paths}
    subprocess.run(["bash", "-ec", commands], cwd=folder / "again", env=environment, check=True, timeout=300)
    for config in ("svamp", "svamp-paths"):
        [first, again] = (
            read_table(root / "mixed" / config / "train-00000-of-00001.parquet").to_pylist()
            for root in (folder, folder / "again")
        )
        assert first == again


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "Name either a folder with `--dataset`, or `--metric`"),
        (["--dataset", "mixed", "--metric"], "Name either a folder"),
        (["--metric", "--thoughts", "t.db"], "`--thoughts` and `--allow` need `--dataset`"),
    ],
)
def test_contradicting_arguments_are_refused(arguments, expected, capsys):
    assert expected in message(capsys, "publish", "--repo", REPO, *arguments, status=2)


def test_the_card_says_how_sampled_and_imported_thoughts_are_mixed_again(tmp_path):
    make_folder(tmp_path)
    imported = DatasetCard.load(tmp_path / "mixed" / "README.md").text
    assert "md-trl store import --store thoughts.db --task svamp --file thoughts.jsonl\nmd-trl mix" in imported
    with Store(tmp_path / "sampled.db") as store:
        store.questions.add([Question("gsm8k/train/0", "gsm8k", "train", QUESTIONS[0], "5")])
        setting = store.settings.number("gpt", "abc", SamplingParams(temperature=0.5))
        for path, text in (("cot", "The answer is 5."), ("pot", "answer = 5")):
            [claim] = store.claims.claim("gsm8k/train/0", path, setting, 3).claims
            store.claims.save(claim.key, [Choice(text, "stop")] * 3, {})
    with Store(tmp_path / "sampled.db") as store:
        build_dataset(
            store, tmp_path / "mixed", Selection("gsm8k", ["train"], models="gpt"), 2, {"gpt": Price(1.0, 1.0)}
        )
    card = DatasetCard.load(tmp_path / "mixed" / "README.md")
    assert card.text.count("To build it again") == 2 and imported[imported.index("## svamp") :] in card.text + "\n"
    assert (
        "md-trl sample --task gsm8k --split train --model gpt --n 3 --temperature 0.5 --top_p 1.0 --max_tokens 512 "
        "--seed 42 --store thoughts.db\n"
        "md-trl mix --store thoughts.db --task gsm8k --splits train --output mixed --model gpt --repeat_cap 2\n"
    ) in card.text
    assert "| cost | 0.0000 |" in card.text and re.search(r"\| sampled on \| \d{4}", card.text)
    default = load_dataset(str(tmp_path / "mixed"), split="train", cache_dir=str(tmp_path / "cache"))
    assert [row["task"] for row in default] == ["gsm8k", "svamp", "svamp"]
