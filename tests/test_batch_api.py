"""The Batch API against a loopback implementation, killed and restarted in every state of a batch."""

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from servers.openai_server import OpenAIServer, error, text_of

from md_trl.cli.sample import SampleArguments, run
from md_trl.records import Question, SamplingParams
from md_trl.sampling import batch_api, sample
from md_trl.sampling.batch_api import sample_in_batches
from md_trl.sampling.engines import derive_seed
from md_trl.sampling.engines.openai import OpenAIEngine
from md_trl.sampling.ledger import Ledger, Price
from md_trl.sampling.run import SamplingRun
from md_trl.store import Store


QUESTIONS = [Question(f"svamp/train/{i}", "svamp", "train", f"How much is {i} + 1?", str(i + 1)) for i in range(10)]
PRICES = {"m": Price(prompt=2.0, completion=6.0, cached=1.0)}


def prompt(question, path):
    return [{"role": "user", "content": f"{question.question}\n{path}\u2028"}]


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "t.db") as store:
        yield store


def expected(n=3):
    return [
        (q.id, path, i, text_of(prompt(q, path), derive_seed(42, q.id, path, 0), i))
        for q in QUESTIONS
        for path in ("cot", "pot")
        for i in range(n)
    ]


def stored(store):
    return [(t.question_id, t.path, t.index, t.text) for t in store.thoughts()]


def batches(store, server, n=3, **kwargs):
    arguments = {"poll_seconds": 0.0, "progress": False} | kwargs
    return sample_in_batches(
        QUESTIONS,
        ["cot", "pot"],
        n,
        OpenAIEngine("m", server.url),
        store,
        arguments.pop("prompt", prompt),
        **arguments,
    )


def states(store):
    return [status for (status,) in store._db.execute("SELECT status FROM batches ORDER BY id")]


def test_a_batch(store):
    with OpenAIServer() as server:
        summary = batches(store, server, prices=PRICES)
        assert (summary.requests, summary.thoughts, summary.missing, summary.errors) == (20, 60, 0, {})
        assert stored(store) == expected()
        assert len(server.batches) == 1 and states(store) == ["completed"]
        (batch,) = server.batches.values()
        assert (batch["endpoint"], batch["completion_window"]) == ("/v1/chat/completions", "24h")
        # Half price in the ledger
        plain = server.prompt_tokens - server.cached_tokens
        cost = (plain * 2 + server.cached_tokens * 1 + server.completion_tokens * 6) / 1e6 / 2
        ledger = Ledger(store.spending(), PRICES)
        assert ledger.cost == pytest.approx(cost) == summary.cost
        assert [entry.batch for entry in ledger.entries] == [True] and "m (batch)" in ledger.format()
        # Nothing is missing, so nothing is submitted. With a larger n, the rest is.
        assert batches(store, server).requests == 0 and len(server.batches) == 1
        assert batches(store, server, n=5).thoughts == 40
        assert {body["n"] for body in server.bodies[20:]} == {2}
        # Live sampling and batches share their samples.
        summary = sample(QUESTIONS, ["cot", "pot"], 6, OpenAIEngine("m", server.url), store, prompt, progress=False)
        assert (summary.thoughts, summary.missing) == (20, 0)


def test_files_stay_within_the_limits(store):
    with OpenAIServer() as server:
        batches(store, server, max_requests=7)
        assert [server.files[b["input_file_id"]].count(b"\n") for b in server.batches.values()] == [7, 7, 6]
        assert stored(store) == expected()
        before = len(server.batches)
        batches(store, server, n=4, max_bytes=1500)
        sizes = [len(server.files[b["input_file_id"]]) for b in list(server.batches.values())[before:]]
        assert len(sizes) > 2 and all(1000 < size <= 1500 for size in sizes[:-1]) and sizes[-1] <= 1500
        with pytest.raises(ValueError, match="'svamp/train/0' .cot. has .* bytes; a file may have 100 bytes"):
            batches(store, server, n=5, max_bytes=100)
        assert batches(store, server, n=5).missing == 0


def test_texts_and_messages_go_into_separate_files(store):
    with OpenAIServer() as server:
        summary = batches(store, server, prompt=lambda q, p: prompt(q, p) if p == "cot" else q.question)
        assert summary.missing == 0
        assert [b["endpoint"] for b in server.batches.values()] == ["/v1/chat/completions", "/v1/completions"]


def test_only_failed_rows_are_submitted_again(store):
    """Rows with an error, without a result, and of an expired batch."""

    def row(number, body, row):
        if number >= 20:
            return row
        body = {"error": {"code": "server_error", "message": "no luck"}}
        failed = {**row, "response": {"status_code": 500, "body": body}}
        expired = {**row, "response": None, "error": {"code": "batch_expired", "message": "too late"}}
        return {0: failed, 1: expired, 2: None, 3: failed}.get(number, row)

    with OpenAIServer(batch_row=row) as server:
        summary = batches(store, server)
        assert stored(store) == expected()
        assert (summary.requests, summary.missing) == (24, 0)
        assert summary.errors == {
            "HTTP 500: no luck": 2, "too late": 1, "the batch has completed without a result": 1
        }  # fmt: skip
        assert Counter(server.sold.values()) == {3: 20}
        assert len(server.batches) == 2
        (spent,) = store.spending()
        assert (spent.prompt_tokens, spent.completion_tokens) == (server.prompt_tokens, server.completion_tokens)


def test_refused_rows_are_not_submitted_again(store, caplog):
    def row(number, body, row):
        if "is 3 +" in body["messages"][0]["content"]:
            return {**row, "response": {"status_code": 400, "body": {"error": {"message": "too long"}}}}
        return row

    with OpenAIServer(batch_row=row) as server:
        summary = batches(store, server)
        assert (summary.requests, summary.missing) == (20, 6)
        assert summary.errors == {"HTTP 400: too long": 2} and "2 requests: HTTP 400: too long" in caplog.text


@pytest.mark.parametrize("choices", ["refused", "one"])
def test_a_server_that_returns_one_choice(store, choices):
    """From the second batch on it is asked for single samples, whether it refuses `n > 1` or ignores it."""

    def row(number, body, row):
        if body["n"] > 1 and choices == "refused":
            return {**row, "response": {"status_code": 400, "body": {"error": {"message": "`n` must be 1"}}}}
        return row

    with OpenAIServer(batch_row=row, choices=lambda body: 1) as server:
        summary = batches(store, server, n=5)
    assert (summary.thoughts, summary.missing) == (100, 0)
    assert len(server.batches) == 2 and [body["n"] for body in server.bodies[:20]] == [5] * 20
    assert {body["n"] for body in server.bodies[20:]} == {1}


def test_a_server_that_refuses_logprobs(store, caplog):
    def row(number, body, row):
        if "logprobs" in body:
            return {**row, "response": {"status_code": 400, "body": {"error": {"message": "no logprobs here"}}}}
        return row

    with OpenAIServer(batch_row=row) as server:
        summary = batches(store, server)
        assert stored(store) == expected() and summary.missing == 0
        assert ["logprobs" in body for body in server.bodies] == [True] * 20 + [False] * 20
    assert caplog.text.count("gives no log-probabilities (HTTP 400: no logprobs here)") == 1


def test_logprobs_are_stored(store):
    with OpenAIServer(logprobs=lambda body, text: [(text, -0.25)]) as server:
        batches(store, server)
    assert {thought.logprob for thought in store.thoughts()} == {-0.25}


@pytest.mark.parametrize("end", ["failed", "expired", "cancelled"])
def test_batches_that_do_not_complete(store, end):
    """Their results are kept; the rest is submitted again, three times at most."""
    server = OpenAIServer(
        batch_steps=("validating", "in_progress", end), batch_row=lambda n, body, row: row if n % 2 else None
    )
    with server:
        summary = batches(store, server)
        if end == "failed":
            assert summary.thoughts == 0 and len(server.batches) == batch_api.ROUNDS
            assert list(summary.errors) == ["the batch has failed without a result: queue is full"]
        else:
            assert summary.thoughts == (10 + 5 + 2) * 3 or summary.thoughts == (10 + 5 + 3) * 3
            assert set(server.sold.values()) == {3}
        assert states(store) == [end] * 3
        server.batch_steps = ("validating", "completed")
        server.batch_row = lambda n, body, row: row
        assert batches(store, server).missing == 0
        assert stored(store) == expected()


def test_max_cost(store, caplog):
    with OpenAIServer() as server:
        limit = 0.012
        summary = batches(store, server, prices=PRICES, max_cost=limit, params=SamplingParams(max_tokens=200))
        ledger = Ledger(store.spending(), PRICES)
        assert 0 < summary.requests < 20 and summary.over_budget and "above 0.012" in caplog.text
        assert ledger.cost <= limit and ledger.unknown == 0
        assert batches(store, server, prices=PRICES, max_cost=1, params=SamplingParams(max_tokens=200)).missing == 0


def test_a_server_without_batches(store):
    with OpenAIServer() as server:
        server._batch_api = lambda *args: error(404, "no such page")
        with pytest.raises(ValueError, match="refuses batches: HTTP 404: no such page.*Batch API"):
            batches(store, server)
    with pytest.raises(ConnectionError, match="No server answers"):
        engine = OpenAIEngine("m", server.url, max_retries=0)
        sample_in_batches(QUESTIONS, ["cot"], 1, engine, store, prompt, poll_seconds=0, progress=False)


def test_command(tmp_path, capsys):
    common = {"task": "stories", "limit": 3, "n": 2, "model": "m", "store": str(tmp_path / "t.db"), "batch": True}
    with OpenAIServer() as server:
        run(SampleArguments(**common, base_url=server.url, poll_seconds=0.0))
        assert "12 thoughts from 6 requests; 0 missing" in capsys.readouterr().out
    for changes in ({"engine": "transformers"}, {"adaptive": True}):
        with pytest.raises(ValueError, match="`--batch` works with"):
            run(SampleArguments(**common, **changes))


# Kills

WORKER = """
import os, signal, sys
from md_trl.sampling import batch_api
from md_trl.store import Store
from md_trl.sampling.engines.openai import OpenAIEngine
from test_batch_api import QUESTIONS, prompt

url, path, where, time = sys.argv[1:]

def killed(owner, name, before):
    original, calls = getattr(owner, name), []
    def wrapper(*args, **kwargs):
        calls.append(1)
        if before and len(calls) == int(time):
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if not before and len(calls) == int(time):
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, wrapper)

import openai
from openai.resources.batches import Batches
from openai.resources.files import Files
from md_trl.store.batches import Batches as Jobs
from md_trl.store.claims import Claims
owners = {"claim": Claims, "add_batch": Jobs, "update_batch": Jobs, "finish_batch": Jobs, "save": Claims,
          "create_file": Files, "create_batch": Batches, "retrieve": Batches, "fail": Claims}
if where != "nowhere":
    side, name = where.split()
    killed(owners[name], name.removesuffix("_file").removesuffix("_batch"), side == "before")
with Store(path) as store:
    batch_api.sample_in_batches(QUESTIONS, ["cot", "pot"], 3, OpenAIEngine("m", url), store, prompt, poll_seconds=0,
                                max_requests=12, progress=False)
"""

MOMENTS = [
    ("before add_batch", 1),
    ("after add_batch", 1),
    ("after claim", 1),
    ("after claim", 11),
    ("before create_file", 1),
    ("after create_file", 1),  # Uploaded, but not recorded
    ("after update_batch", 1),  # Uploaded, not created
    ("before create_batch", 1),
    ("after create_batch", 1),  # Created and billed, but not recorded
    ("after update_batch", 2),
    ("after claim", 14),  # The first file is submitted, the second one is being written
    ("after create_batch", 2),
    ("before retrieve", 1),
    ("after retrieve", 1),  # validating
    ("after retrieve", 3),
    ("after retrieve", 5),
    ("before save", 1),  # The results are fetched
    ("after save", 1),
    ("after save", 7),  # Half of them are stored
    ("before fail", 1),
    ("after fail", 1),
    ("before finish_batch", 1),  # All of them are stored
    ("after finish_batch", 1),
    ("after save", 15),
    ("before finish_batch", 2),
]


def worker(server, path, where="nowhere", count=1):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", WORKER, server.url, str(path), where, str(count)]
    return subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)


def one_row_fails(number, body, row):
    return {**row, "response": {"status_code": 500, "body": None}} if number == 5 else row


def check_end(server, path):
    with Store(path) as store:
        assert stored(store) == expected()
        (spent,) = store.spending()
        # Every sample was bought once and is in the ledger.
        assert Counter(server.sold.values()) == {3: 20}
        assert (spent.prompt_tokens, spent.completion_tokens) == (server.prompt_tokens, server.completion_tokens)
        assert spent.unknown == 0
        assert all(status in ("completed", "dropped") for status in states(store))
        assert len({batch["input_file_id"] for batch in server.batches.values()}) == len(server.batches)


def test_killed_in_one_state_after_another(tmp_path):
    """The same run is killed again and again, each time in a later state."""
    with OpenAIServer(batch_row=one_row_fails) as server:
        killed = 0
        for where, count in [
            ("after claim", 3), ("after create_file", 1), ("after create_batch", 1), ("after retrieve", 2),
            ("after save", 4), ("before finish_batch", 1),
        ]:  # fmt: skip
            killed += worker(server, tmp_path / "t.db", where, count).returncode == -signal.SIGKILL
        assert killed >= 5
        assert worker(server, tmp_path / "t.db").returncode == 0
        check_end(server, tmp_path / "t.db")


@pytest.mark.slow
@pytest.mark.parametrize(("where", "count"), MOMENTS)
def test_killed_and_restarted_in_every_state(tmp_path, where, count):
    with OpenAIServer(batch_row=one_row_fails) as server:
        process = worker(server, tmp_path / "t.db", where, count)
        assert process.returncode == -signal.SIGKILL, process.stderr
        with Store(tmp_path / "t.db") as store:
            print(f"killed {where} {count}: {states(store)}, {len(store.thoughts())} thoughts")
        process = worker(server, tmp_path / "t.db")
        assert process.returncode == 0, process.stderr
        check_end(server, tmp_path / "t.db")


def test_a_running_process_keeps_its_batch(tmp_path, store):
    """A second process leaves the batch alone and buys nothing that is in it."""
    with OpenAIServer() as server:
        store.questions.add(QUESTIONS)
        engine = OpenAIEngine("m", server.url)
        with (
            engine.sync_client() as client,
            SamplingRun(QUESTIONS, ["cot", "pot"], 3, "m", store, prompt, SamplingParams(), batch=True) as started,
        ):
            batch_api._Batches(started, engine, client, 0.0, 100, 10**6).submit(started.next_round())
            assert started.summary.requests == 20
        process = worker(server, tmp_path / "t.db")
        assert process.returncode == 0 and "60 of 60 samples are still missing" in process.stderr
        summary = sample(QUESTIONS, ["cot"], 3, OpenAIEngine("m", server.url), store, prompt, progress=False)
        assert summary.requests == 0
        assert len(server.batches) == 1 and not server.sold
        assert batches(store, server).missing == 0
        check_end(server, tmp_path / "t.db")
