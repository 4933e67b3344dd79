"""Nothing is lost or paid for twice, with servers that misbehave and processes that are killed again and again."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from servers.openai_server import OpenAIServer, Reply, error, text_of

from md_trl.records import Question, SamplingParams
from md_trl.sampling import sample
from md_trl.sampling.engines import SampleRequest, derive_seed
from md_trl.sampling.engines import openai as openai_engine
from md_trl.sampling.engines.openai import OpenAIEngine
from md_trl.store import Store


def make_questions(count):
    return [Question(f"svamp/train/{i}", "svamp", "train", f"How much is {i} + 1?", str(i + 1)) for i in range(count)]


def prompt(question, path):
    return [{"role": "user", "content": f"{question.question}\n{path}"}]


def expected(questions, n):
    """What the loopback server returns if there is one request per question and path."""
    return [
        (q.id, path, i, text_of(prompt(q, path), derive_seed(42, q.id, path, 0), i))
        for q in questions
        for path in ("cot", "pot")
        for i in range(n)
    ]


def stored(store):
    return [(t.question_id, t.path, t.index, t.text) for t in store.thoughts()]


@pytest.fixture
def quick(monkeypatch):
    """Shorten the pauses before retries."""
    monkeypatch.setattr(openai_engine, "FIRST_PAUSE", 0.01)


# Faults


class Misbehaviour:
    """Spoils a share of the answers in every possible way and counts what it did."""

    def __init__(self, share, seed, timeout):
        self.share, self.rng, self.timeout = share, random.Random(seed), timeout
        self.counts = {}
        self.kinds = {
            # Costs nothing and is retried
            "429, retry-after": lambda: error(429, "slow down", **{"retry-after": "0.02"}),
            "429, retry-after-ms": lambda: error(429, "slow down", **{"retry-after-ms": "20"}),
            "429": lambda: error(429, "slow down"),
            "500": lambda: error(500),
            "503, html": lambda: Reply(503, b"<html>busy</html>", {"content-type": "text/html"}),
            # Not billed, which the client cannot know
            "lost: reset": lambda: Reply(0, b""),
            # Billed, but the client never sees the usage
            "lost: hangs": lambda: lambda reply: Reply(200, reply.body, after=100 * timeout),
            "lost: reset after the sale": lambda: lambda reply: Reply(0, b""),
            "lost: half an answer": lambda: lambda reply: Reply(200, reply.body, cut=len(reply.body) // 2),
            "lost: half a JSON": lambda: lambda reply: Reply(200, reply.body[: len(reply.body) // 2]),
            "lost: malformed JSON": lambda: lambda reply: Reply(200, b"{'id': True, choices: }"),
            "lost: no JSON object": lambda: lambda reply: Reply(200, b"[]"),
            "lost: html": lambda: lambda reply: Reply(200, b"<html>", {"content-type": "text/html"}),
            "lost: an error with status 200": lambda: lambda reply: Reply(200, b'{"error": {"message": "upstream"}}'),
            # Billed, with usage
            "no choices": lambda: None,
            "fewer choices": lambda: None,
            # Ends the run at once
            "stops: wrong model": lambda: error(404, "The model `m` does not exist", "model_not_found"),
            "stops: expired key": lambda: error(401, "Incorrect API key provided"),
            "stops: no money": lambda: error(429, "You exceeded your quota", "insufficient_quota"),
        }
        self.next_choices = None

    def fault(self, number, body):
        self.next_choices = body["n"]
        if self.rng.random() >= self.share:
            return None
        # Faults that end the run are rare; otherwise it would do nothing but start.
        names = list(self.kinds)
        name = self.rng.choices(names, [0.1 if name.startswith("stops") else 1 for name in names])[0]
        self.counts[name] = self.counts.get(name, 0) + 1
        if name == "no choices":
            self.next_choices = 0
        elif name == "fewer choices":
            self.next_choices = max(body["n"] - 2, 1)
        return self.kinds[name]()

    def choices(self, body):
        return self.next_choices

    def total(self, prefix):
        return sum(count for name, count in self.counts.items() if name.startswith(prefix))


def run_with_faults(tmp_path, pairs, timeout, n=4):
    questions = make_questions(pairs // 2)
    behaviour = Misbehaviour(0.3, 7, timeout)
    starts, stops, thoughts, lost = 0, [], 0, 0
    with (
        OpenAIServer(fault=behaviour.fault, choices=behaviour.choices) as server,
        Store(tmp_path / "t.db") as store,
    ):
        while starts < 200:
            starts += 1
            engine = OpenAIEngine("m", server.url, concurrency=16, timeout=timeout)
            try:
                summary = sample(questions, ["cot", "pot"], n, engine, store, prompt, progress=False)
            except ValueError as stop:
                stops.append(str(stop))
                continue
            thoughts, lost = thoughts + summary.thoughts, lost + summary.lost
            if not summary.missing:
                break
        rows = store.thoughts()
        (spent,) = store.spending()
        status = store.status()
    unread = [sum(usage[name] for usage in server.unread) for name in ("prompt_tokens", "completion_tokens")]
    print(
        f"{len(server.bodies)} requests, {sum(behaviour.counts.values())} spoilt: {behaviour.counts}, "
        f"{starts} starts; "
        f"{len(rows)} thoughts; ledger {spent.prompt_tokens} + {spent.completion_tokens} tokens "
        f"({spent.cached_tokens} cached), books {server.prompt_tokens} + {server.completion_tokens} "
        f"({server.cached_tokens} cached); {spent.unknown} answers lost, at most {spent.max_prompt_tokens} + "
        f"{spent.max_completion_tokens} tokens, of which the books say {unread[0]} + {unread[1]}"
    )
    # Every sample is there once, with a text that the server returned for its question and path.
    assert [(t.question_id, t.path, t.index) for t in rows] == [row[:3] for row in expected(questions, n)]
    assert sum(row.missing for row in status) == 0
    by_id = {question.id: question for question in questions}
    for thought in rows:
        messages = prompt(by_id[thought.question_id], thought.path)
        seeds = [derive_seed(42, thought.question_id, thought.path, first) for first in range(thought.index + 1)]
        assert thought.text in {text_of(messages, seed, thought.index - first) for first, seed in enumerate(seeds)}
    assert len({thought.text for thought in rows}) == len(rows)
    # The ledger agrees with the server's books to the token. Lost answers are counted and bounded.
    assert spent.prompt_tokens == server.prompt_tokens
    assert spent.cached_tokens == server.cached_tokens
    assert spent.completion_tokens == server.completion_tokens
    assert spent.unknown == behaviour.total("lost")
    assert spent.max_prompt_tokens >= unread[0] and spent.max_completion_tokens >= unread[1]
    # Every error that ended a run says why.
    assert all("refuses the key" in s or "does not know the model" in s or "exhausted quota" in s for s in stops)
    return behaviour, stops


def test_a_server_that_misbehaves_on_30_percent(tmp_path, quick, caplog, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-old")
    behaviour, stops = run_with_faults(tmp_path, pairs=160, timeout=2.0)
    assert behaviour.total("lost") > 10 and behaviour.total("429") > 5


@pytest.mark.slow
def test_a_server_that_misbehaves_on_30_percent_in_every_way(tmp_path, quick, caplog, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-old")
    behaviour, stops = run_with_faults(tmp_path, pairs=3000, timeout=4.0)
    assert set(behaviour.counts) == set(behaviour.kinds)
    assert len({stop.split("(")[0] for stop in stops}) == 3


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (error(401, "expired"), "refuses the key .*OPENAI_API_KEY"),
        (error(404, "no such model"), "does not know the model 'm'.*--model"),
        (error(429, "no money", "insufficient_quota"), "exhausted quota.*run the same command again later"),
        (error(429, "come back tomorrow", **{"retry-after": "86400"}), "come back tomorrow"),
    ],
)
def test_what_stops_a_run_stops_it_at_once(tmp_path, monkeypatch, reply, message):
    """Even in the middle of a run: what is in flight is stored, and nothing more is sent."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-old")
    with (
        OpenAIServer(fault=lambda number, body: reply if number >= 20 else None, delay=0.01) as server,
        Store(tmp_path / "t.db") as store,
    ):
        with pytest.raises(ValueError, match=message):
            sample(make_questions(50), ["cot"], 1, OpenAIEngine("m", server.url, concurrency=4), store, prompt)
        assert len(server.bodies) <= 24
        assert len(store.thoughts()) == 20
        (spent,) = store.spending()
        assert spent.unknown == 0  # A refusal is not billed.


def test_a_server_that_hangs(tmp_path):
    """Some answers never arrive. The others are stored, and the missing ones are given up after a few attempts."""

    def fault(number, body):
        hangs = "is 3 +" in body["messages"][0]["content"]
        return (lambda reply: Reply(200, reply.body, after=30)) if hangs else None

    with OpenAIServer(fault=fault) as server, Store(tmp_path / "t.db") as store:
        engine = OpenAIEngine("m", server.url, timeout=0.1)
        summary = sample(make_questions(10), ["cot"], 1, engine, store, prompt, progress=False)
        assert (summary.thoughts, summary.missing, summary.lost) == (9, 1, 6)
        assert summary.errors == {"no answer within 0.1 s": 6}


def test_a_server_that_trickles():
    """The server sends a byte now and then, so that no read ever times out."""
    import socket
    import threading

    def serve(listener):
        connection, _ = listener.accept()
        connection.recv(65536)
        try:
            connection.sendall(b"HTTP/1.1 200 X\r\ncontent-length: 1000\r\n\r\n")
            for _ in range(100):
                connection.sendall(b" ")
                time.sleep(0.05)
        except OSError:
            pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        engine = OpenAIEngine("m", f"http://127.0.0.1:{listener.getsockname()[1]}/v1", timeout=0.3)

        async def no_probe(client):
            pass

        engine._probe = no_probe
        (result,) = engine.generate([SampleRequest("q", "cot", "Q")])
    assert result.lost and result.error == "no answer within 0.3 s"


def test_retry_after_delays_all_requests():
    times = []

    def fault(number, body):
        times.append(time.monotonic())
        return error(429, **{"retry-after": "0.4"}) if number == 0 else None

    with OpenAIServer(fault=fault) as server:
        engine = OpenAIEngine("m", server.url, concurrency=1)
        results = list(engine.generate(SampleRequest(f"q{i}", "cot", "Q") for i in range(3)))
    assert [result.error for result in results] == [None] * 3
    assert results[0].faults == ["HTTP 429: no"]
    assert times[1] - times[0] >= 0.4


def test_concurrency_adapts(quick):
    """A server that accepts four requests at a time gets 32 only for a moment."""
    with OpenAIServer(max_in_flight=4, delay=0.01) as server:
        engine = OpenAIEngine("m", server.url, concurrency=32, max_retries=50)
        results = list(engine.generate(SampleRequest(f"q{i}", "cot", "Q") for i in range(300)))
    assert all(result.error is None for result in results) and len(server.bodies) == 300
    print(f"{server.too_many} of {300 + server.too_many} requests were too many")
    assert server.too_many < 150
    assert engine._throttle.allowed < 16


def test_rate_limits():
    """Requests and tokens are spread over the minute."""
    times = []

    def fault(number, body):
        times.append(time.monotonic())

    with OpenAIServer(fault=fault) as server:
        engine = OpenAIEngine("m", server.url, requests_per_minute=60 / 0.05)
        list(engine.generate(SampleRequest(f"q{i}", "cot", "Q") for i in range(9)))
        assert times[-1] - times[0] >= 8 * 0.05 - 0.02
        times.clear()
        # About 20 tokens per request (the first one is estimated at 1 + 20 tokens)
        engine = OpenAIEngine("m", server.url, tokens_per_minute=60 * 200)
        requests = [SampleRequest(f"q{i}", "cot", "Q", SamplingParams(max_tokens=7), n=3) for i in range(9)]
        used = [
            sum(result.usage[k] for k in ("prompt_tokens", "completion_tokens"))
            for result in engine.generate(requests)
        ]
        assert times[-1] - times[0] >= (sum(used) - 3 * max(used)) / 200 - 0.02
    for name in ("requests_per_minute", "tokens_per_minute"):
        with pytest.raises(ValueError, match=f"`{name}` is 0"):
            OpenAIEngine("m", "http://127.0.0.1:9/v1", **{name: 0})


# Kills

FORKS = """
import os, sys
from md_trl.sampling import sample
from md_trl.store import Store
from md_trl.sampling.engines.openai import OpenAIEngine
from test_sampler_faults import make_questions, prompt

# One process per line, forked from one that has imported everything
for line in sys.stdin:
    url, path, count = line.split()
    pid = os.fork()
    if pid == 0:
        with Store(path) as store:
            engine = OpenAIEngine("m", url, concurrency=4)
            sample(make_questions(int(count)), ["cot", "pot"], 4, engine, store, prompt, progress=False)
        os._exit(0)
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("ended", flush=True)
"""


def kill_over_and_over(tmp_path, kills, count):
    """Kill a run with `kill -9` at random moments, resume it each time, and finally let it finish."""
    questions = make_questions(count)
    rng = random.Random(3)
    path = tmp_path / "t.db"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    forks = subprocess.Popen(
        [sys.executable, "-c", FORKS],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    before: dict = {}
    committed_at: dict = {}  # (prompt, seed) -> requests the server had seen when it was found committed
    killed, open_at_kills = 0, set()
    with OpenAIServer(delay=0.01) as server, forks:

        def start():
            forks.stdin.write(f"{server.url} {path} {count}\n")
            forks.stdin.flush()
            return int(forks.stdout.readline())

        for _ in range(kills):
            pid = start()
            # At a random moment: during the start, or after some more requests
            seen, wanted = len(server.bodies), rng.randrange(12)
            deadline = time.monotonic() + rng.uniform(0, 0.1) + (10 if wanted else 0)
            while len(server.bodies) < seen + wanted and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.02))
            os.kill(pid, signal.SIGKILL)
            assert forks.stdout.readline() == "ended\n"
            time.sleep(0.02)  # The server finishes its requests.
            killed += 1
            if not path.exists() or path.stat().st_size < 4096:
                continue
            with Store(path) as store:
                now = {row[:3]: row[3] for row in stored(store)}
                open_at_kills |= set(store._db.execute("SELECT id FROM requests WHERE ended_at IS NULL").fetchall())
            assert len(now) == len({*now})
            assert before.items() <= now.items()  # Nothing committed is gone or changed.
            for id_, path_, index in now.keys() - before.keys():
                if index == 0:
                    question = questions[int(id_.rpartition("/")[2])]
                    key = json.dumps(prompt(question, path_)), derive_seed(42, id_, path_, 0)
                    committed_at[key] = len(server.bodies)
            before = now
        start()
        assert forks.stdout.readline() == "ended\n"
        forks.stdin.close()
    with Store(path) as store:
        final = stored(store)
        (spent,) = store.spending()
    bought_again = sum(server.sold.values()) // 4 - len(server.sold)
    print(
        f"{killed} kills; {len(server.bodies)} requests for {2 * count} pairs; {len(open_at_kills)} open at a kill; "
        f"{bought_again} bought again; {len(final)} thoughts, {len(set(final))} distinct; "
        f"{spent.unknown} requests of unknown cost in the ledger"
    )
    assert killed == kills
    assert final == expected(questions, 4)  # The same as of an uninterrupted run
    assert bought_again <= len(open_at_kills) == spent.unknown
    # Nothing that was in the store at a kill was asked for again.
    for number, body in enumerate(server.bodies):
        assert number < committed_at.get((json.dumps(body["messages"]), body["seed"]), len(server.bodies) + 1)


def test_kills(tmp_path):
    kill_over_and_over(tmp_path, kills=12, count=100)


@pytest.mark.slow
def test_200_kills(tmp_path):
    kill_over_and_over(tmp_path, kills=200, count=1000)
