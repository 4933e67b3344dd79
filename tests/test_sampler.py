"""The sampler asks for missing samples only and loses none: over real HTTP, with processes that are killed."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from servers.openai_server import OpenAIServer, Reply, error, text_of

from md_trl.cli.sample import SampleArguments, run
from md_trl.cli.store import StoreArguments, format_status
from md_trl.cli.store import run as run_store
from md_trl.records import Choice, Question, SamplingParams
from md_trl.sampling import sample
from md_trl.sampling.engines import SampleResult, derive_seed
from md_trl.sampling.engines.openai import OpenAIEngine
from md_trl.store import Selection, Store


QUESTIONS = [Question(f"svamp/train/{i}", "svamp", "train", f"How much is {i} + 1?", str(i + 1)) for i in range(12)]


def prompt(question, path):
    return [{"role": "user", "content": f"{question.question}\n{path}"}]


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "t.db") as store:
        yield store


def run_sample(store, url, n=4, questions=QUESTIONS, paths=("cot", "pot"), prompt=prompt, max_retries=4, **params):
    engine = OpenAIEngine("m", url, concurrency=4, max_retries=max_retries)
    return sample(questions, paths, n, engine, store, prompt, params=SamplingParams(**params), progress=False)


def expected(n, questions=QUESTIONS, paths=("cot", "pot"), seed=42):
    """What the loopback server returns if there is one request per question and path."""
    return [
        (q.id, path, i, text_of(prompt(q, path), derive_seed(seed, q.id, path, 0), i))
        for q in questions
        for path in paths
        for i in range(n)
    ]


def stored(store, **selection):
    return [(t.question_id, t.path, t.index, t.text) for t in store.thoughts(Selection(**selection))]


class ListEngine:
    """An engine that returns a scripted number of choices per request and records the requests."""

    def __init__(self, counts):
        self.model, self.counts, self.asked = "list", iter(counts), []

    def generate(self, requests):
        for request in requests:
            self.asked.append((request.question_id, request.path, request.first_index, request.n))
            count = next(self.counts)
            yield SampleResult(request, [Choice(str(request.first_index + i), "stop") for i in range(count)])


def test_one_request_per_question_and_path(store):
    with OpenAIServer() as server:
        summary = run_sample(store, server.url)
    assert stored(store) == expected(4)
    assert (summary.requests, summary.thoughts, summary.missing, summary.unusable) == (24, 96, 0, {})
    assert len(server.bodies) == 24
    assert (summary.prompt_tokens, summary.completion_tokens) == (server.prompt_tokens, server.completion_tokens)
    status = store.status()
    assert sum(row.prompt_tokens for row in status) == server.prompt_tokens
    assert [(row.path, row.questions, row.thoughts, row.missing) for row in status] == [
        ("cot", 12, 48, 0),
        ("pot", 12, 48, 0),
    ]


def test_a_second_run_asks_for_nothing_and_a_larger_one_for_the_rest(store):
    with OpenAIServer() as server:
        run_sample(store, server.url)
        assert run_sample(store, server.url).requests == 0
        assert len(server.bodies) == 24
        summary = run_sample(store, server.url, n=6)
        assert (summary.requests, summary.thoughts) == (24, 48)
        assert {body["n"] for body in server.bodies[24:]} == {2}
        assert sorted(stored(store))[:4] == sorted(expected(6))[:4]
        # Other parameters, another prompt or another seed mean different samples.
        assert run_sample(store, server.url, n=6, temperature=0.2).thoughts == 144
        again = run_sample(store, server.url, n=6)
        ids = [t.question_id for t in store.thoughts(Selection(settings=again.settings))]
        assert ids == [q.id for q in QUESTIONS for _ in range(12)]
        assert run_sample(store, server.url, n=6, seed=1).thoughts == 144
        longer = run_sample(
            store, server.url, n=6, prompt=lambda q, p: [{"role": "system", "content": ""}, *prompt(q, p)]
        )
        assert longer.thoughts == 144
    with pytest.raises(ValueError, match="settings="):
        store.thoughts()
    assert len(store.thoughts(Selection(params={"temperature": 0.2}))) == 144


def test_settings_do_not_multiply_with_questions(store):
    with OpenAIServer() as server:
        run_sample(store, server.url)
    assert [row.setting for row in store.status()] == [1, 2]  # One per path, because the paths have different prompts


def test_server_that_ignores_n(store):
    with OpenAIServer(choices=lambda body: 1) as server:
        summary = run_sample(store, server.url, n=5)
    assert (summary.thoughts, summary.missing) == (120, 0)
    assert max(server.sold.values()) == 1
    assert len(server.bodies) == 120
    asked = Counter(body["n"] for body in server.bodies)
    assert asked[1] > 100  # Learned from the first answers
    assert [t.index for t in store.thoughts()] == [*range(5)] * 24


def test_server_that_refuses_n(store):
    """After the first refusal it is asked for single samples, like a server that ignores `n`."""
    with OpenAIServer(fault=lambda number, body: error(400, "`n` must be 1") if body["n"] > 1 else None) as server:
        summary = run_sample(store, server.url, n=5)
    assert (summary.thoughts, summary.missing, summary.errors) == (120, 0, {})
    assert set(server.sold.values()) == {1}
    asked = Counter(body["n"] for body in server.bodies)
    assert asked[1] == 120 and asked[5] <= 8
    assert [t.index for t in store.thoughts()] == [*range(5)] * 24


def test_short_answers_are_topped_up(store):
    engine = ListEngine([3, 5, 2])
    summary = sample(QUESTIONS[:2], ["cot"], 5, engine, store, prompt, progress=False)
    assert engine.asked == [
        (QUESTIONS[0].id, "cot", 0, 5),
        (QUESTIONS[1].id, "cot", 0, 5),
        (QUESTIONS[0].id, "cot", 3, 2),
    ]
    assert (summary.requests, summary.thoughts, summary.missing) == (3, 10, 0)
    assert [t.text for t in store.thoughts()] == [*"01234", *"01234"]


def test_server_that_never_returns_the_rest(store, caplog):
    with OpenAIServer(choices=lambda body: 0 if body["n"] < 4 else 3) as server:
        summary = run_sample(store, server.url)
    assert (summary.thoughts, summary.missing) == (72, 24)
    assert len(server.bodies) == 24 * 4  # The first request and three more attempts
    assert "24 of 96 samples are still missing" in caplog.text
    assert [row.missing for row in store.status()] == [12, 12]


def test_unusable_thoughts_are_kept_and_not_asked_again(store):
    with OpenAIServer(finish=lambda body, text: (text, "length")) as server:
        summary = run_sample(store, server.url)
        assert (summary.thoughts, summary.missing, summary.unusable) == (96, 0, {"length": 96})
        assert run_sample(store, server.url).requests == 0
    assert {t.finish_reason for t in store.thoughts()} == {"length"}
    assert [row.unusable for row in store.status()] == [{"length": 48}] * 2


def test_a_misbehaving_server(store):
    """A third of the answers are errors, lost connections or unreadable. No sample is lost or stored twice."""
    rng = random.Random(0)
    faults = [
        lambda: error(429, **{"retry-after-ms": "10"}),
        lambda: error(500, **{"retry-after-ms": "10"}),
        lambda: Reply(0, b""),
        lambda: Reply(200, b'{"id": "x", "choices": [{"ind'),
        lambda: Reply(200, b"<html>busy</html>", {"content-type": "text/html"}),
        lambda: Reply(200, b'{"id": "x", "object": "chat.completion", "choices": null}'),
        lambda: Reply(200, b"[]"),
    ]
    with OpenAIServer(fault=lambda number, body: rng.choice(faults)() if rng.random() < 0.3 else None) as server:
        summary = run_sample(store, server.url)
    assert summary.missing == 0
    assert stored(store) == expected(4)
    assert set(server.sold.values()) == {4}
    assert summary.completion_tokens == server.completion_tokens


def test_a_server_that_only_fails_is_given_up(store, caplog):
    with OpenAIServer(fault=lambda number, body: error(500)) as server:
        summary = run_sample(store, server.url, max_retries=0, n=1)
    assert summary.thoughts == 0
    assert summary.errors == {"HTTP 500: no": 50} and summary.gave_up
    assert 50 <= len(server.bodies) < 60
    assert "HTTP 500" in caplog.text and "24 of 24 samples" in caplog.text
    many = [Question(f"svamp/train/many-{i}", "svamp", "train", f"What is {i}?", "1") for i in range(200)]
    with OpenAIServer(fault=lambda number, body: error(500)) as server:
        run_sample(store, server.url, max_retries=0, questions=many, n=1)
    assert len(server.bodies) < 60


def test_refused_requests_are_recorded_and_not_repeated(store, caplog):
    def fault(number, body):
        return error(400, "too long") if "is 3 +" in body["messages"][0]["content"] else None

    with OpenAIServer(fault=fault) as server:
        summary = run_sample(store, server.url)
    assert summary.errors == {"HTTP 400: too long": 2}
    assert (summary.thoughts, summary.missing) == (88, 8)
    assert len(server.bodies) == 24
    assert "2 requests: HTTP 400: too long" in caplog.text
    assert sum(row.failed for row in store.status()) == 2


def test_the_prompt_hash_leaves_the_question_out(store):
    with OpenAIServer() as server:
        quotes = [Question(f"svamp/train/{i}", "svamp", "train", f'Say "{i}\\n"\nnow', "1") for i in range(3)]
        run_sample(store, server.url, questions=quotes, paths=["cot"])
        run_sample(store, server.url, questions=quotes, paths=["cot"], prompt=lambda q, p: f"{q.question}\n{p}")
    assert len(store.status()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "`n` is 0"),
        ({"temperature": 0.0}, "`temperature=0` is greedy.*`n=1`"),
        ({"temperature": -1.0}, "`temperature` is -1.0"),
        ({"paths": ["tot"]}, "Unknown path 'tot'"),
    ],
)
def test_bad_arguments(store, arguments, message):
    with pytest.raises(ValueError, match=message):
        run_sample(store, "http://127.0.0.1:9/v1", **arguments)


def test_no_server(store):
    with OpenAIServer() as server:
        url = server.url
    with pytest.raises(ConnectionError, match=f"No server answers at {url}.*md-trl teacher") as caught:
        run_sample(store, url)
    assert "\n" not in str(caught.value)
    assert store.thoughts() == []


def test_server_goes_away(store):
    """What has arrived is kept, and a new server returns the rest."""
    with OpenAIServer(fault=lambda number, body: Reply(0, b"") if number >= 10 else None) as server:
        server.fault = lambda number, body: (
            (setattr(server, "models", Reply(0, b"")) or Reply(0, b"")) if number >= 10 else None
        )
        with pytest.raises(ConnectionError, match="run the same command again"):
            run_sample(store, server.url, max_retries=0)
    assert len(store.thoughts()) == 40
    with OpenAIServer() as server:
        run_sample(store, server.url)
        assert len(server.bodies) == 14
    assert stored(store) == expected(4)


# Processes

WORKER = """
import sys, time
from md_trl.sampling import sample
from md_trl.store import Selection, Store
from md_trl.sampling.engines.openai import OpenAIEngine
from test_sampler import QUESTIONS, prompt

print("ready", flush=True)
sys.stdin.readline()
with Store(sys.argv[2]) as store:
    sample(QUESTIONS, ["cot", "pot"], 4, OpenAIEngine("m", sys.argv[1], concurrency=4), store, prompt, progress=False)
"""


def start(url, path, stderr=None, count=1):
    """Start processes that sample, and let them begin only when all of them are ready."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OPENAI_API_KEY": "sk-secret-of-mine"}
    command = [sys.executable, "-c", WORKER, url, str(path)]
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=stderr, text=True)
        for _ in range(count)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.close()
    return processes


def test_kill_and_resume(store):
    """Killed at random moments: every sample is stored once, and only those in flight at a kill are bought again."""
    rng = random.Random(1)
    kills = 0
    with OpenAIServer(delay=0.03) as server:
        for _ in range(4):
            (process,) = start(server.url, store.file)
            time.sleep(rng.uniform(0.02, 0.25))
            process.kill()
            kills += process.wait() == -signal.SIGKILL
        before = len(server.bodies)
        there = len(store._db.execute("SELECT 1 FROM thoughts").fetchall())
        (process,) = start(server.url, store.file)
        assert process.wait() == 0
        bought_twice = sum(count - 4 for count in server.sold.values())
    print(f"{kills} kills, {there} of 96 thoughts after {before} requests, {bought_twice} samples bought twice")
    assert kills
    assert stored(store) == expected(4)
    assert bought_twice <= kills * 4 * 4  # At most the requests in flight at each kill
    assert len(server.bodies) == 24 + bought_twice // 4


def test_two_processes_on_one_store(store):
    with OpenAIServer(delay=0.1) as server:
        processes = start(server.url, store.file, stderr=subprocess.DEVNULL, count=2)
        assert [process.wait() for process in processes] == [0, 0]
    assert stored(store) == expected(4)
    assert set(server.sold.values()) == {4}
    owners = store._db.execute("SELECT owner, count(*) FROM requests GROUP BY owner").fetchall()
    assert len(owners) == 2


def test_interrupt_keeps_what_has_arrived(store):
    with OpenAIServer(delay=0.05) as server:
        (process,) = start(server.url, store.file, stderr=subprocess.PIPE)
        while len(server.bodies) < 8:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        process.wait()
        assert "KeyboardInterrupt" in process.stderr.read()
        arrived = len(store.thoughts())
        # Four requests were in flight, and at most one was being stored with four more waiting.
        assert 4 * (len(server.bodies) - 8) <= arrived <= 4 * len(server.bodies) and arrived
        # The claims were released at once.
        assert store._db.execute("SELECT count(*) FROM requests WHERE ended_at IS NULL").fetchone() == (0,)


def test_the_key_is_nowhere(store, tmp_path):
    def fault(number, body):
        return error(500 if number % 3 else 400, "sk-secret-of-mine is wrong") if number > 3 else None

    with OpenAIServer(fault=fault) as server:
        log = tmp_path / "log"
        with log.open("w") as file:
            code = f"import logging; logging.basicConfig(level=logging.DEBUG)\n{WORKER}"
            code = code.replace("concurrency=4", "concurrency=1, max_retries=0")
            subprocess.run(
                [sys.executable, "-c", code, server.url, str(store.file)],
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OPENAI_API_KEY": "sk-secret-of-mine"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        assert server.keys == {"Bearer sk-secret-of-mine"}
    assert "*** is wrong" in log.read_text()
    errors = [row[0] for row in store._db.execute("SELECT error FROM requests WHERE error IS NOT NULL")]
    assert any("*** is wrong" in text for text in errors)
    for file in tmp_path.iterdir():
        assert b"sk-secret" not in file.read_bytes(), file.name


# The command


def arguments(store, **changes):
    return SampleArguments(store=str(store.file), **changes)


def test_command_samples(store, capsys):
    with OpenAIServer() as server:
        args = arguments(store, task="stories", limit=3, n=2, model="m", base_url=server.url, concurrency=2)
        run(args)
        out = capsys.readouterr().out
        assert "12 thoughts from 6 requests; 0 missing" in out
        run(args)
        assert "0 thoughts from 0 requests" in capsys.readouterr().out
        assert server.peak_in_flight <= 2
        assert server.bodies[0]["messages"][-1]["content"].endswith("Let's think step by step.")
        assert server.bodies[0]["max_tokens"] == 512 and server.bodies[0]["temperature"] == 0.7
    assert [q.task for q in store.questions.load()] == ["stories"] * 3
    run_store(StoreArguments(str(store.file)), "status")
    out = capsys.readouterr().out
    assert out.strip() == format_status(store)
    assert "stories" in out and "0 of 2 each" in out and "model='m'" in out


def test_command_prompts(store):
    with OpenAIServer() as server:
        for kind in ("few_shot_text", "student"):
            run(
                arguments(
                    store, task="stories", limit=1, n=1, model="m", base_url=server.url, prompt=kind, paths=["cot"]
                )
            )
    text, student = (body["prompt"] for body in server.bodies)
    assert text.count("Question:") > 2 and server.bodies[0]["stop"] == ["\nQuestion:"]
    question = store.questions.load()[0].question
    assert student == f"{question}\nLet's think step by step.\n" and "stop" not in server.bodies[1]


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"task": "stories"}, ValueError, "`--model` is missing"),
        ({"model": "m"}, ValueError, "`--task` is missing"),
        ({"task": "chess", "model": "m"}, ValueError, "chess"),
        ({"task": "stories", "model": "m", "limit": 0}, ValueError, "`--limit` is 0"),
        ({"task": "stories", "model": "m", "base_url": "127.0.0.1"}, ValueError, "`base_url` is '127.0.0.1'"),
        ({"task": "stories", "model": "m", "base_url": "https://me:key@x.org"}, ValueError, "OPENAI_API_KEY"),
        ({"task": "stories", "model": "m", "base_url": "https://x.org/v1"}, ValueError, "OPENAI_API_KEY"),
    ],
)
def test_command_errors(tmp_path, monkeypatch, changes, kind, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(kind, match=message):
        run(SampleArguments(**changes))
    assert list(tmp_path.iterdir()) == []


def test_command_arguments():
    """Command lines parse in the documented form."""
    from trl import TrlParser

    parser = TrlParser(SampleArguments)
    line = "--task svamp --split train --paths cot pot --n 20 --temperature 0.7 --engine openai --model gpt-3.5-turbo"
    (args,) = parser.parse_args_and_config([*line.split(), *"--base_url URL --store t.db --limit 100".split()])
    assert (args.paths, args.n, args.limit) == (["cot", "pot"], 20, 100)
