"""`md-trl serve`: the answers of `MixedReasoner` behind OpenAI's protocol, for many callers at once."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import openai
import pytest
import uvicorn
from datasets import Dataset
from servers.openai_server import OpenAIServer, error
from students import byte_tokenizer, tiny_llama
from test_reasoner import DrawnEngine

from md_trl import MDConfig, MDTrainer, MixedReasoner
from md_trl.answers import equal, extract
from md_trl.cli import main
from md_trl.reasoner import Reasoned
from md_trl.records import Choice, Thought
from md_trl.sampling.api_keys import Key
from md_trl.sampling.engines import SampleResult
from md_trl.server import app as http
from md_trl.server.listener import bind
from md_trl.server.replies import NO_ANSWER_REPLY, best_thought, content_of


QUESTIONS = [f"What is {i} plus {i}?" for i in range(32)]


@contextmanager
def served(reasoner, key=None):
    """A server in a thread; yields its URL without `/v1`."""
    with bind("127.0.0.1", 0) as listener:
        app = http.make_app(reasoner, "student", key)
        config = uvicorn.Config(app, lifespan="on", log_level="warning")
        server = http._Server(config, "ready", app.state.worker)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def client_of(url, key="none"):
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def ask(client, question, **fields):
    return client.chat.completions.create(model="student", messages=[{"role": "user", "content": question}], **fields)


def result_of(reasoned):
    """The field `md_trl` that an answer is expected to have."""
    thoughts = [
        {"path": t.path, "text": t.text, "answer": t.answer, "logprob": t.logprob}
        for t in (*reasoned.cot, *reasoned.pot)
    ]
    return {
        "answer": reasoned.answer,
        "confidence": reasoned.confidence,
        "votes": reasoned.votes,
        "samples": reasoned.samples,
        "thoughts": thoughts,
    }


class GatedEngine(DrawnEngine):
    """Samples nothing before `gate` is set. Keeps the questions of each round, and fails some of them."""

    def __init__(self, refused=(), **options):
        super().__init__(**options)
        self.gate, self.entered, self.refused, self.asked = threading.Event(), threading.Event(), refused, []

    def generate(self, requests):
        requests = list(requests)
        self.asked.append({request.prompt.split("\n")[0] for request in requests})
        self.entered.set()
        self.gate.wait(30)
        for request in requests:
            if request.prompt.split("\n")[0] in self.refused:
                yield SampleResult(request, error="the prompt is too long", retry=False)
            else:
                for result in super().generate([request]):
                    yield SampleResult(result.request, result.choices, {"prompt_tokens": 7, "completion_tokens": 3})


def wait_until(condition):
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen in 30 seconds")


def test_32_callers_get_the_answers_of_a_direct_call_and_share_rounds():
    engine = GatedEngine()
    expected = MixedReasoner(DrawnEngine())(QUESTIONS)
    with served(MixedReasoner(engine)) as url, ThreadPoolExecutor(33) as pool:
        client = client_of(url)
        first = pool.submit(ask, client, "What comes first?")
        assert engine.entered.wait(30)
        asked = [pool.submit(ask, client, question) for question in QUESTIONS]
        wait_until(lambda: httpx.get(f"{url}/health").json()["waiting"] == 32)
        engine.gate.set()
        completions = [future.result() for future in asked]
        first.result()
    for completion, reasoned in zip(completions, expected, strict=True):
        assert completion.md_trl == result_of(reasoned)
        assert completion.choices[0].message.content == content_of(reasoned)
        assert completion.choices[0].finish_reason == "stop" and completion.model == "student"
        assert completion.usage.prompt_tokens == 7 * reasoned.samples
        assert completion.usage.total_tokens == 10 * reasoned.samples
    assert engine.asked[0] == {"What comes first?"} and engine.asked[1] >= set(QUESTIONS)
    assert len(engine.asked) <= 1 + 10 + 1, "all others share their rounds"


def test_each_request_has_its_own_settings():
    with served(MixedReasoner(DrawnEngine(), n=6)) as url, ThreadPoolExecutor(8) as pool:
        client = client_of(url)
        fields = [{"n": n, "temperature": t} for n in (1, 4, 12) for t in (0.5, 1)] + [{"temperature": 0}, {}]
        completions = list(pool.map(lambda chosen: ask(client, QUESTIONS[3], **chosen), fields))
    for chosen, completion in zip(fields, completions, strict=True):
        n = chosen.get("n", 2 if chosen.get("temperature") == 0 else 6)
        assert completion.md_trl == result_of(*MixedReasoner(DrawnEngine(), n=n)([QUESTIONS[3]]))


def test_seed_temperature_and_length_reach_the_student():
    with OpenAIServer() as upstream:
        reasoner = MixedReasoner(upstream.url, n=2, model_name="m", prompt_format="plain")
        with served(reasoner) as url:
            client = client_of(url)
            ask(client, "Q?", seed=1, temperature=0.25, max_tokens=9)
            ask(client, "Q?", seed=2, temperature=0.25, max_completion_tokens=10)
    first, second = upstream.bodies[:2], upstream.bodies[2:]
    assert {(b["temperature"], b["max_tokens"]) for b in first} == {(0.25, 9)}
    assert {b["max_tokens"] for b in second} == {10}
    assert {b["seed"] for b in first}.isdisjoint(b["seed"] for b in second)


def test_a_caller_that_hangs_up_is_not_sampled_further_and_harms_nobody():
    engine = GatedEngine()
    # One question that does not stop before its 20 thoughts, by its rule
    with served(MixedReasoner(engine, stop="esc")) as url, ThreadPoolExecutor(4) as pool:
        client = client_of(url)
        first = pool.submit(ask, client, "What comes first?")
        assert engine.entered.wait(30)
        host, port = url.removeprefix("http://").split(":")
        body = json.dumps({"model": "student", "messages": [{"role": "user", "content": "Who is gone?"}]})
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        for stream in (False, True):
            text = body if not stream else body[:-1] + ', "stream": true}'
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(f"{head}Content-Length: {len(text)}\r\n\r\n{text}".encode())
                wait_until(lambda: httpx.get(f"{url}/health").json()["waiting"] == 1)
                if stream:
                    assert connection.recv(100).startswith(b"HTTP/1.1 200")
            wait_until(lambda: httpx.get(f"{url}/health").json()["waiting"] == 0)
        other = pool.submit(ask, client, QUESTIONS[5])
        wait_until(lambda: httpx.get(f"{url}/health").json()["waiting"] == 1)
        engine.gate.set()
        assert other.result().md_trl == result_of(*MixedReasoner(DrawnEngine(), stop="esc")([QUESTIONS[5]]))
        first.result()
    assert not any("Who is gone?" in asked for asked in engine.asked)


def test_a_caller_that_hangs_up_between_rounds_is_dropped():
    engine = GatedEngine()
    with served(MixedReasoner(engine, n=20, stop="fixed")) as url, ThreadPoolExecutor(2) as pool:
        asking = pool.submit(httpx.post, f"{url}/v1/chat/completions", json=body_of("Gone?"), timeout=0.5)
        with pytest.raises(httpx.TimeoutException):
            asking.result()
        engine.gate.set()
        assert ask(client_of(url), QUESTIONS[0]).md_trl["samples"] == 20
        rounds = len(engine.asked)
    assert rounds <= 2


def body_of(question, **fields):
    return {"model": "student", "messages": [{"role": "user", "content": question}]} | fields


def test_a_question_that_cannot_be_answered_fails_alone():
    engine = GatedEngine(refused=["Too long?"])
    with served(MixedReasoner(engine)) as url, ThreadPoolExecutor(4) as pool:
        client = client_of(url)
        first = pool.submit(ask, client, QUESTIONS[0])
        assert engine.entered.wait(30)
        asked = [pool.submit(ask, client, question) for question in (QUESTIONS[1], "Too long?", QUESTIONS[2])]
        wait_until(lambda: httpx.get(f"{url}/health").json()["waiting"] == 3)
        engine.gate.set()
        with pytest.raises(openai.BadRequestError, match="could not be answered: the prompt is too long"):
            asked[1].result()
        for future, question in ((first, 0), (asked[0], 1), (asked[2], 2)):
            assert future.result().md_trl == result_of(*MixedReasoner(DrawnEngine())([QUESTIONS[question]]))
        # The same question from two callers is sampled once, and the thoughts are those of a call of its own
        again = [pool.submit(ask, client, QUESTIONS[1]) for _ in range(3)]
        assert len({json.dumps(future.result().md_trl) for future in again}) == 1


def test_a_stream_reports_thoughts_and_then_the_reply():
    [expected] = MixedReasoner(DrawnEngine(), n=8)([QUESTIONS[2]])
    engine = GatedEngine()
    engine.gate.set()
    with served(MixedReasoner(engine, n=8)) as url:
        chunks = list(ask(client_of(url), QUESTIONS[2], stream=True, stream_options={"include_usage": True}))
        lines = httpx.post(f"{url}/v1/chat/completions", json=body_of(QUESTIONS[2], stream=True)).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""] and all(line.startswith("data: ") for line in lines[:-1])
    content = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert content == content_of(expected)
    reports = [chunk.md_trl for chunk in chunks if "md_trl" in chunk.model_extra]
    assert reports[-1] == result_of(expected)
    assert [report["samples"] for report in reports[:-1]] == list(range(1, expected.samples + 1))
    thoughts = [thought for report in reports[:-1] for thought in report["thoughts"]]
    assert sorted(thoughts, key=lambda t: t["path"]) == result_of(expected)["thoughts"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.total_tokens == 10 * expected.samples and not chunks[-1].choices


def test_an_error_in_a_stream_is_an_event():
    engine = GatedEngine(refused=["Too long?"])
    engine.gate.set()
    with served(MixedReasoner(engine)) as url:
        with pytest.raises(openai.APIError, match="the prompt is too long"):
            list(ask(client_of(url), "Too long?", stream=True))


def test_requests_that_take_too_long_to_stop_are_refused(monkeypatch):
    monkeypatch.setattr(http, "SECONDS_TO_FINISH", 0)
    engine = GatedEngine()
    with ThreadPoolExecutor(2) as pool:
        with served(MixedReasoner(engine)) as url:
            client = client_of(url)
            asked = [pool.submit(ask, client, QUESTIONS[0])]
            assert engine.entered.wait(30)
            asked.append(pool.submit(ask, client, QUESTIONS[1], n=3))
            wait_until(lambda: httpx.get(f"{url}/health").json()["waiting"] == 1)
            threading.Timer(1.0, engine.gate.set).start()
        for future in asked:
            with pytest.raises(openai.APIStatusError, match="The server is shutting down"):
                future.result()
    assert len(engine.asked) == 1, "no further round begins"


USER = {"role": "user", "content": "What is 1 plus 1?"}


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"model": "gpt"}, 404, "The model 'gpt' does not exist. The only model of this server is 'student'"),
        ({"model": None}, 404, "The model None"),
        ({"messages": None}, 400, "`messages` must be a list"),
        ({"messages": []}, 400, "`messages` must be a list"),
        ({"messages": ["hi"]}, 400, "must be an object with the role 'user'"),
        ({"messages": [{"role": "user"}]}, 400, "must be a text or a list of text parts"),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "is empty. It must be the question"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "half of a surrogate pair"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "a list of text parts"),
        ({"messages": [{"role": "system", "content": "Be"}, USER]}, 400, r"`messages\[0\]` has the role 'system'"),
        ({"messages": [USER, {"role": "assistant", "content": "2"}, USER]}, 400, "3 messages.*no earlier turns"),
        ({"n": 0}, 400, "`n` must be an integer from 1 to 128, not 0"),
        ({"n": True}, 400, "`n` must be an integer"),
        ({"n": "5"}, 400, "`n` must be an integer"),
        ({"temperature": 2.5}, 400, "`temperature` must be a number from 0.0 to 2.0"),
        ({"temperature": 0, "n": 4}, 400, "`temperature=0` is greedy.*Use `n=2`"),
        ({"max_tokens": 10**6}, 400, "`max_tokens` must be an integer from 1 to 4096"),
        ({"seed": "x"}, 400, "`seed` must be an integer"),
        ({"stream": "yes"}, 400, "`stream` must be true or false"),
        ({"stream_options": 1}, 400, "`stream_options` must be an object"),
        ({"tools": [{"type": "function"}]}, 400, "`tools` is not supported: remove it"),
        ({"top_p": 0.5}, 400, "`top_p` is not supported: remove it"),
        ({"x" * 500: 1}, 400, "is not supported"),
    ],
)
def test_bad_fields_are_named(bad_server, fields, status, message):
    body = {"model": "student", "messages": [USER]} | fields
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{bad_server}/v1/chat/completions", content=json.dumps(body), headers=headers)
    assert response.status_code == status and response.headers["content-type"] == "application/json"
    found = response.json()["error"]
    assert re.search(message, found["message"]) and len(found["message"]) < 300
    assert found["type"] == "invalid_request_error"


@pytest.fixture(scope="module")
def bad_server():
    with served(MixedReasoner(DrawnEngine())) as url:
        yield url


def test_bad_bodies_and_routes(bad_server):
    chat = f"{bad_server}/v1/chat/completions"
    json_type = {"Content-Type": "application/json"}
    deep = b"[" * 50_000
    for content, headers, status, message in (
        (b"{", json_type, 400, "The body is not JSON"),
        (b"\xff\xfe", json_type, 400, "The body is not JSON"),
        (deep, json_type, 400, "The body is not JSON"),
        (b"[]", json_type, 400, "must be a JSON object"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "must be application/json"),
        (b" " * 70_000, json_type, 413, "more than 65536 bytes"),
        (iter([b" " * 40_000] * 100), json_type, 413, "more than 65536 bytes"),
    ):
        response = httpx.post(chat, content=content, headers=headers)
        assert response.status_code == status and message in response.json()["error"]["message"], message
    with pytest.raises(openai.APIStatusError, match="more than 65536 bytes"):
        ask(client_of(bad_server), "x" * 5_000_000)
    for method, path, status in (
        ("GET", "/v1/chat/completions", 405),
        ("GET", "/", 404),
        ("POST", "/v1/completions", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/v1/models/", 404),
    ):
        response = httpx.request(method, bad_server + path)
        assert response.status_code == status and response.json()["error"]["message"], path
    # All of this has harmed nobody
    client = client_of(bad_server)
    assert [model.id for model in client.models.list()] == ["student"]
    assert client.models.retrieve("student").owned_by == "md_trl"
    parts = [{"type": "text", "text": "What is 1 "}, {"type": "text", "text": "plus 1?"}]
    completion = client.chat.completions.create(
        model="student", messages=[{"role": "user", "content": parts}], top_p=1, user="me"
    )
    assert completion.md_trl == result_of(*MixedReasoner(DrawnEngine())(["What is 1 plus 1?"]))


def test_a_website_cannot_reach_a_server_without_a_key(bad_server):
    port = bad_server.rpartition(":")[2]
    for host, status in ((f"localhost:{port}", 200), ("[::1]:1", 200), ("evil.example", 403), ("[", 403)):
        assert httpx.get(f"{bad_server}/v1/models", headers={"Host": host}).status_code == status


def test_a_key_is_needed_and_never_shown(caplog):
    with served(MixedReasoner(DrawnEngine()), Key("sesame-é")) as url:
        for sent in ("Bearer open", "Bearer sesam", "Basic sesame", "", "Bearer"):
            response = httpx.get(f"{url}/v1/models", headers={"Authorization": sent})
            assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["code"] == "invalid_api_key" and "sesame" not in response.text
        with pytest.raises(openai.AuthenticationError):
            client_of(url, "wrong").models.list()
        right = {"Authorization": "Bearer sesame-é".encode(), "Host": b"proxy.example"}
        assert httpx.get(f"{url}/v1/models", headers=right).status_code == 200
        assert httpx.get(f"{url}/health").json()["status"] == "ok"
    assert "sesame" not in caplog.text


class FailingEngine(GatedEngine):
    """Breaks down at the question `Why?`."""

    def generate(self, requests):
        for result in super().generate(requests):
            if "Why?" in result.request.prompt:
                raise RuntimeError("secret details")
            yield result


def test_failures_inside_are_logged_and_not_shown(caplog):
    engine = FailingEngine()
    with served(MixedReasoner(engine)) as url, ThreadPoolExecutor(4) as pool:
        first = pool.submit(ask, client_of(url), "What comes first?")
        assert engine.entered.wait(30)
        asked = [
            pool.submit(httpx.post, f"{url}/v1/chat/completions", json=body_of(question), timeout=30)
            for question in (QUESTIONS[0], "Why?", QUESTIONS[1])
        ]
        wait_until(lambda: httpx.get(f"{url}/health").json()["waiting"] == 3)
        engine.gate.set()
        before, response, after = (future.result() for future in asked)
        first.result()
    for other, question in ((before, 0), (after, 1)):
        assert other.json()["md_trl"] == result_of(*MixedReasoner(DrawnEngine())([QUESTIONS[question]]))
    assert response.status_code == 500 and response.json()["error"]["type"] == "server_error"
    assert "secret" not in response.text and "secret details" in caplog.text


def test_a_student_behind_a_server_that_goes_away():
    with OpenAIServer() as upstream:
        gone = MixedReasoner(upstream.url, model_name="m", prompt_format="plain")
    with served(gone) as url, pytest.raises(openai.APIStatusError) as caught:
        ask(client_of(url), "Who?")
    assert caught.value.status_code == 502 and str(upstream.port) not in str(caught.value)


def test_a_question_that_the_other_server_refuses_first_harms_nobody():
    def fault(number, body):
        return error(400, "too long") if "Too long" in str(body) else None

    with OpenAIServer(fault=fault, delay=0.2) as upstream:
        reasoner = MixedReasoner(upstream.url, n=2, model_name="m", prompt_format="plain")
        with served(reasoner) as url, ThreadPoolExecutor(4) as pool:
            client = client_of(url)
            asked = [pool.submit(ask, client, question) for question in ("Too long?", "Short?", "Tiny?")]
            with pytest.raises(openai.APIStatusError, match="too long"):
                asked[0].result()
            assert [future.result().md_trl["samples"] for future in asked[1:]] == [2, 2]


def test_texts_of_a_model_are_json_text_only():
    class Nasty(DrawnEngine):
        def generate(self, requests):
            text = "The answer is 5.\n\ndata: [DONE]\n\n</script>\u2028\0"
            for request in requests:
                yield SampleResult(request, [Choice(text, "stop", -1.0) for _ in range(request.n)])

    with served(MixedReasoner(Nasty(), n=2, stop="fixed")) as url:
        response = httpx.post(f"{url}/v1/chat/completions", json=body_of("Who?", stream=True))
    lines = response.text.split("\n\n")
    assert response.headers["x-content-type-options"] == "nosniff" and lines.count("data: [DONE]") == 1
    assert all(json.loads(line.removeprefix("data: ")) for line in lines[:-2])


def reasoned(answer, cot=(), pot=()):
    def thoughts(path, given):
        return [Thought("q", path, i, text, answer=a, logprob=p) for i, (text, a, p) in enumerate(given)]

    return Reasoned(answer, 1.0, {}, 2, thoughts("cot", cot), thoughts("pot", pot))


def test_the_best_thought_of_the_answer_is_the_content():
    found = reasoned(
        "5",
        [("The answer is 5.", "5", -0.5), ("The answer is 6.", "6", -0.1)],
        [("answer = 5", "5", -0.2), ("answer = 1 / 0", None, -0.01)],
    )
    assert best_thought(found).text == "answer = 5"
    assert content_of(found) == "```python\nanswer = 5\n```\n\nThe answer is 5."
    tie = reasoned("5", [("The answer is 5.", "5", None)], [("answer = 5", "5", None)])
    assert content_of(tie) == "The answer is 5."
    assert content_of(reasoned(None, [("Hm.", None, -1.0)])) == NO_ANSWER_REPLY
    assert extract(NO_ANSWER_REPLY, strict=True) is None
    for answer in ("5", "-3", "0.25", "1234567", "yes", "no", "neither day", "ann", "3;5"):
        for given in ({"cot": [("So it is.", answer, -1.0)]}, {"pot": [("x = 1\nanswer = 7", answer, -1.0)]}):
            assert equal(extract(content_of(reasoned(answer, **given)), strict=True), answer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "m", "--host", "0.0.0.0"], "requests need a key.*--api_key_env"),
        (["--model", "m", "--api_key_env", "ABSENT_KEY"], "'ABSENT_KEY' of `--api_key_env` is not set or empty"),
        (["--model", "http://127.0.0.1:9/v1"], "needs its name on the server: pass `--model_name`"),
        (["--model", "m", "--base_url", "http://127.0.0.1:9/v1"], "Set `prompt_format` to 'plain'"),
        (["--model", "absent"], "no folder absent, and the Hub is turned off"),
        (["--model", "m", "--port", "99999999"], "cannot listen on 127.0.0.1:99999999"),
    ],
)
def test_arguments_are_checked_before_anything_is_served(arguments, message, monkeypatch, capsys):
    monkeypatch.delenv("ABSENT_KEY", raising=False)
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--port", "0", *arguments])
    assert re.search(message, f"{caught.value.code} {capsys.readouterr().err}")


def test_a_port_in_use_and_a_missing_extra_are_named(monkeypatch):
    with bind("127.0.0.1", 0) as listener, pytest.raises(SystemExit, match="Choose another `--port`"):
        main(["serve", "--model", "m", "--port", str(listener.getsockname()[1])])
    monkeypatch.delitem(sys.modules, "md_trl.server.app")
    monkeypatch.delattr("md_trl.server.app")
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit, match=r'pip install "md_trl\[serve\]"'):
        main(["serve", "--model", "m"])


@contextmanager
def process(*arguments, **environment):
    """`md-trl serve` in a process of its own; yields it with its URL once it is ready."""
    command = [sys.executable, "-m", "md_trl", "serve", "--port", "0", *arguments]
    env = os.environ | environment
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as server:
        try:
            line = server.stdout.readline()
            assert "is ready: student" in line, line + server.stderr.read()
            yield server, line.split("/v1 ")[0]
        finally:
            server.kill()


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """The folder of a tiny student that knows two answers."""
    folder = tmp_path_factory.mktemp("trained") / "student"
    rows = [
        {"question": "Two and two?", "type": 3, "lambda": 0.5, "cot": ["The answer is 4."], "pot": ["answer = 2 + 2"]},
        {"question": "Who?", "type": 3, "lambda": 0.5, "cot": ["The answer is Ann."], "pot": ["answer = 'Ann'"]},
    ]
    args = MDConfig(
        output_dir=str(folder), max_steps=150, learning_rate=1e-2, use_cpu=True, report_to="none", disable_tqdm=True
    )
    trainer = MDTrainer(
        model=tiny_llama(), args=args, train_dataset=Dataset.from_list(rows), processing_class=byte_tokenizer()
    )
    trainer.train()
    trainer.save_model()
    return str(folder)


def test_a_trained_student_is_served_by_a_process(student, tmp_path):
    questions = [f"{who}?" for who in ("Two and two", "Who", "Where", "When")] * 8
    options = {"n": 4, "max_tokens": 24, "temperature": 0.5}
    expected = MixedReasoner(student, **options)(questions)
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    store = str(tmp_path / "asked.db")
    with process("--model", student, "--store", store, *arguments, "--api_key_env", "K", K="sesame") as (server, url):
        client = client_of(url, "sesame")

        async def callers():
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sesame", max_retries=0) as many:
                return await asyncio.gather(*(ask(many, question) for question in questions))

        completions = asyncio.run(callers())
        for completion, found in zip(completions, expected, strict=True):
            assert completion.md_trl["answer"] == found.answer and completion.md_trl["samples"] == found.samples
            texts = [thought["text"] for thought in completion.md_trl["thoughts"]]
            assert texts == [thought.text for thought in (*found.cot, *found.pot)]
        assert completions[0].md_trl["answer"] == "4" and "4" in completions[0].choices[0].message.content
        # What is in the store is not sampled again
        assert ask(client, "Who?").usage.total_tokens == 0
        with pytest.raises(openai.BadRequestError, match=r"the prompt of \d+ tokens leaves no room"):
            ask(client, "x" * 5000)
        server.send_signal(signal.SIGINT)
        output, errors = server.communicate(timeout=60)
    assert server.returncode == 0
    assert "sesame" not in output + errors and "Traceback" not in errors


def test_a_process_in_front_of_a_server_stops_while_it_is_asked():
    with OpenAIServer(delay=0.5, logprobs=lambda body, text: [(text, -0.25)]) as upstream:
        arguments = ["--model", upstream.url, "--model_name", "student", "--prompt_format", "plain"]
        with process(*arguments) as (server, url), ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask, client_of(url), "What is 2 plus 2?", n=2)
            wait_until(lambda: upstream.bodies or upstream.in_flight)
            server.send_signal(signal.SIGTERM)
            assert asked.result().md_trl["samples"] == 2, "a request under way is answered"
            _, errors = server.communicate(timeout=60)
        assert server.returncode == 0 and "Traceback" not in errors
