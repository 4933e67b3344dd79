"""The simulated teacher, over real HTTP and as a real process."""

import http.client
import json
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from md_trl import simulated_teacher as teacher
from md_trl.answers import equal
from md_trl.prompts import STOP, TRIGGERS, teacher_messages, teacher_prompt
from md_trl.simulated_teacher import FINGERPRINT, LUCK, MODEL, SLIPS, SOLVED_BY, TeacherServer, think
from md_trl.tasks.stories import FAMILIES, load, parse


QUESTIONS = load("test")


@pytest.fixture(scope="module")
def server():
    with TeacherServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def ask(client, question=QUESTIONS[0], path="cot", **options):
    return client.chat.completions.create(model=MODEL, messages=teacher_messages(question, path), **options)


def texts(response):
    return [choice.message.content for choice in response.choices]


def answer_of(path, text):
    """The answer that a thought reaches, `None` if its program does not run; the programs here are our own."""
    if path == "cot":
        return re.fullmatch(r"(?s).*The answer is (.+)\.", text)[1]
    names = {}
    try:
        exec(text, names)
    except NameError:
        return None
    return str(names["answer"])


def sampled(questions, temperature=0.7, n=20):
    """Share of right answers and the vote, by question and path, computed here in the plainest way."""
    for question in questions:
        story = parse(question.question)
        for path in TRIGGERS:
            thoughts = [think(story, path, question.question, 0, index, temperature) for index in range(n)]
            answers = [answer_of(path, thought) for thought in thoughts]
            votes = Counter(answer for answer in answers if answer is not None).most_common(1)
            right = [answer is not None and equal(answer, question.answer) for answer in answers]
            yield question, path, right, bool(votes) and equal(votes[0][0], question.answer)


def test_it_says_that_it_is_simulated(client):
    (model,) = client.models.list().data
    assert "simulated" in model.id and "simulated" in model.owned_by
    assert client.models.retrieve(MODEL).id == MODEL
    response = ask(client)
    assert response.model == MODEL and "simulated" in response.id
    assert response.system_fingerprint == FINGERPRINT and "simulated" in FINGERPRINT


def test_a_text_depends_on_question_trigger_seed_index_and_temperature_alone(client):
    for path in TRIGGERS:
        twenty = texts(ask(client, path=path, n=20, temperature=1.5, seed=3))
        assert texts(ask(client, path=path, n=20, temperature=1.5, seed=3)) == twenty
        assert texts(ask(client, path=path, n=7, temperature=1.5, seed=3)) == twenty[:7]
        assert texts(ask(client, path=path, n=20, temperature=1.5, seed=4)) != twenty
        assert texts(ask(client, path=path, n=20, temperature=1.4, seed=3)) != twenty
        # another process writes the same
        program = (
            "from md_trl.simulated_teacher import think; from md_trl.tasks.stories import parse;"
            f"q = {QUESTIONS[0].question!r}; print([think(parse(q), {path!r}, q, 3, i, 1.5) for i in range(20)])"
        )
        out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        assert out.strip() == str(twenty)
    # without a seed every request is another draw
    drawn = {tuple(texts(ask(client, n=20, temperature=2.0))) for _ in range(3)}
    assert len(drawn) == 3


def test_greedy_is_one_text_and_the_most_probable_outcome(client):
    for path in TRIGGERS:
        greedy = {text for seed in range(3) for text in texts(ask(client, path=path, n=5, temperature=0, seed=seed))}
        assert len(greedy) == 1
    shares = defaultdict(list)
    for question, path, right, _ in sampled(QUESTIONS[:100], n=40):
        ((_, _, greedy, _),) = [x for x in sampled([question], 0, n=1) if x[1] == path]
        shares[greedy[0]].append(sum(right) / len(right))
    assert min(shares[True]) > 0.3 > max(shares[False])


def test_completions_answer_plain_prompts_alike(client):
    for path in TRIGGERS:
        prompt = teacher_prompt(QUESTIONS[5], path)
        plain = client.completions.create(model=MODEL, prompt=prompt, n=4, temperature=0.7, seed=1, stop=list(STOP))
        chat = ask(client, QUESTIONS[5], path, n=4, temperature=0.7, seed=1)
        assert [choice.text for choice in plain.choices] == texts(chat)
        assert plain.usage.completion_tokens == chat.usage.completion_tokens
        assert plain.usage.prompt_tokens > 0


def test_usage_counts_the_prompt_once_and_every_choice(client):
    def words_and_marks(text):
        return len(re.findall(r"\w+|[^\w\s]", text))

    one, twenty = ask(client, n=1, seed=1), ask(client, n=20, seed=1)
    prompt = sum(words_and_marks(message["content"]) for message in teacher_messages(QUESTIONS[0], "cot"))
    assert one.usage.prompt_tokens == twenty.usage.prompt_tokens == prompt
    assert twenty.usage.completion_tokens == sum(map(words_and_marks, texts(twenty)))
    assert twenty.usage.total_tokens == prompt + twenty.usage.completion_tokens


def test_max_tokens_and_stop_cut(client):
    (whole,) = texts(ask(client, temperature=0))
    for name in ("max_tokens", "max_completion_tokens"):
        short = ask(client, temperature=0, **{name: 4})
        assert short.choices[0].finish_reason == "length"
        assert short.usage.completion_tokens == 4
        assert whole.startswith(texts(short)[0])
    enough = ask(client, temperature=0, max_tokens=200)
    assert texts(enough) == [whole] and enough.choices[0].finish_reason == "stop"
    for stop in ("The answer", ["nowhere", "The answer"]):
        stopped = ask(client, temperature=0, stop=stop)
        assert texts(stopped) == [whole[: whole.index("The answer")]]
        assert stopped.choices[0].finish_reason == "stop"
    # a stop string beyond the cut is never reached
    assert ask(client, temperature=0, stop="The answer", max_tokens=2).choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"model": "gpt-3.5-turbo"}, 404, "'gpt-3.5-turbo' does not exist.*'simulated-teacher'"),
        ({"model": None}, 404, "does not exist"),
        ({"n": 0}, 400, "`n` must be an integer from 1 to 128, not 0"),
        ({"n": True}, 400, "`n` must be an integer"),
        ({"n": 1.5}, 400, "`n` must be an integer"),
        ({"temperature": 2.1}, 400, "`temperature` must be a number from 0.0 to 2.0, not 2.1"),
        ({"temperature": float("nan")}, 400, "`temperature`"),
        ({"temperature": "hot"}, 400, "`temperature`"),
        ({"seed": "x"}, 400, "`seed`"),
        ({"max_tokens": 0}, 400, "`max_tokens`"),
        ({"stop": [""]}, 400, "`stop`"),
        ({"stop": 3}, 400, "`stop`"),
        ({"stream": True}, 400, "stream"),
        ({"messages": []}, 400, "`messages`"),
        ({"messages": "hello"}, 400, "`messages`"),
        ({"messages": [{"role": "user"}]}, 400, r"`messages\[0\]`"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "role 'user', not 'assistant'"),
        ({"messages": [{"role": "user", "content": QUESTIONS[0].question}]}, 400, "must end in a question and"),
        (
            {"messages": [{"role": "user", "content": f"What is 2 plus 3?\n{TRIGGERS['cot']}"}]},
            400,
            "`stories` only.*'What is 2 plus 3\\?'",
        ),
    ],
)
def test_bad_requests_get_an_error_in_openai_form(server, change, status, words):
    body = {"model": MODEL, "messages": teacher_messages(QUESTIONS[0], "cot"), **change}
    assert_error(*post(server, "/v1/chat/completions", json.dumps(body)), status, words)


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v1/chat/completions", "{", 400, "not JSON"),
        ("/v1/chat/completions", b"\xff\xfe", 400, "not JSON"),
        ("/v1/chat/completions", "[" * 100_000, 400, "not JSON"),
        ("/v1/chat/completions", "[]", 400, "must be a JSON object"),
        ("/v1/completions", json.dumps({"model": MODEL, "prompt": [1, 2]}), 400, "`prompt` must be one text"),
        ("/v1/embeddings", "{}", 404, "POST /v1/embeddings is not served"),
    ],
)
def test_bad_bodies_and_addresses(server, path, body, status, words):
    assert_error(*post(server, path, body), status, words)


def test_bad_requests_leave_the_connection_usable(server):
    connection = http.client.HTTPConnection(*server.server_address)
    good = json.dumps({"model": MODEL, "messages": teacher_messages(QUESTIONS[0], "pot"), "n": 2})
    for body, status in (("{", 400), (good, 200), ("[]", 400), (good, 200)):
        connection.request("POST", "/v1/chat/completions", body)
        response = connection.getresponse()
        assert (response.status, json.loads(response.read()).keys() >= {"error"}) == (status, status == 400)
    connection.request("GET", "/v1/nothing")
    response = connection.getresponse()
    assert_error(response.status, json.loads(response.read()), 404, "GET /v1/nothing")
    connection.close()


def test_requests_without_length_and_of_another_method(server):
    for request, status in (
        (b"POST /v1/chat/completions HTTP/1.1\r\n\r\n", 411),
        (b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n", 411),
        (b"PUT / HTTP/1.1\r\n\r\n", 501),
    ):
        with socket.create_connection(server.server_address) as connection:
            connection.sendall(request)
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert_error(response.status, json.loads(response.read()), status, "")


def test_many_clients_at_once(client):
    jobs = [(question, path) for question in QUESTIONS[:60] for path in TRIGGERS]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda job: texts(ask(client, *job, n=20, temperature=0.7, seed=0)), jobs))
    for (question, path), answer in zip(jobs, answers, strict=True):
        story = parse(question.question)
        assert answer == [think(story, path, question.question, 0, index, 0.7) for index in range(20)]


def test_the_documented_shares_hold():
    for family, shares in SOLVED_BY.items():
        row = " | ".join(f"{100 * shares[solver]:.0f}" for solver in ("pot", "cot", "both", "neither"))
        assert f"| `{family}` | {row} |" in teacher.__doc__
        assert sum(shares.values()) == pytest.approx(1)
    solved, votes = defaultdict(list), defaultdict(dict)
    for question, path, right, vote in sampled(load("train")):
        family = question.id.split("/")[2]
        votes[question.id][path] = vote
        # more than a third right: what is solved with one slip in three or fewer, and not what is luck
        solved[family, path, sum(right) > len(right) / 3].append(sum(right) / len(right))
    for family in FAMILIES:
        shares = SOLVED_BY[family]
        for path in TRIGGERS:
            easy, hard = solved[family, path, True], solved[family, path, False]
            assert len(easy) / len(easy + hard) == pytest.approx(shares[path] + shares["both"], abs=0.07)
            if easy:
                assert sum(easy) / len(easy) == pytest.approx(1 - SLIPS[path].get(family, 0.08), abs=0.05)
            if hard:
                assert sum(hard) / len(hard) == pytest.approx(LUCK[path], abs=0.04)
    types = Counter((votes["cot"], votes["pot"]) for votes in votes.values())
    share = {kind: types[kind] / len(votes) for kind in ((False, True), (True, False), (True, True), (False, False))}
    # All four types of Sec. 3.1, more of types 1 and 2 than the paper's 10% each.
    assert 0.10 < share[False, True] < 0.25
    assert 0.10 < share[True, False] < 0.35
    assert 0.35 < share[True, True] < 0.70
    assert 0.08 < share[False, False] < 0.20


def test_more_temperature_more_slips_and_votes_that_scatter_on_large_numbers():
    questions = load("train", size=400)
    accuracy = []
    for temperature in (0, 0.7, 1.5):
        rights = [right for _, path, right, _ in sampled(questions, temperature, n=10) if path == "cot"]
        accuracy.append(sum(map(sum, rights)) / sum(map(len, rights)))
    assert accuracy[0] > accuracy[1] > accuracy[2]
    for question in questions:
        story = parse(question.question)
        thoughts = [think(story, "cot", question.question, 0, index, 0.7) for index in range(20)]
        wrong = [x for x in (answer_of("cot", thought) for thought in thoughts) if x != question.answer]
        if story.family == "large" and len(wrong) > 15:
            assert Counter(wrong).most_common(1)[0][1] < 10


def start(*options):
    return subprocess.Popen(
        [sys.executable, "-m", "md_trl", "teacher", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_it_is_told_to_end(ending):
    process = start("--port", "0")
    try:
        assert select.select([process.stdout], [], [], 60)[0], "the server said nothing"
        line = process.stdout.readline()
        url = re.match(r"http://127\.0\.0\.1:\d+/v1", line)[0]
        assert "simulated" in line
        with openai.OpenAI(base_url=url, api_key="none") as client:
            assert len(texts(ask(client, n=3))) == 3
            # with a connection still open
            process.send_signal(ending)
            out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (0, "", "")
    finally:
        process.kill()


def test_a_port_in_use_is_a_clear_error(server):
    port = str(server.server_address[1])
    process = start("--port", port)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and not out
    assert f"127.0.0.1:{port}" in err and "--port" in err and "Traceback" not in err


def test_help_says_simulated():
    process = start("--help")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "--port" in out and "simulated" in out.lower()


def post(server, path, body):
    connection = http.client.HTTPConnection(*server.server_address)
    connection.request("POST", path, body)
    response = connection.getresponse()
    status, body = response.status, json.loads(response.read())
    connection.close()
    return status, body


def assert_error(status, body, expected, words):
    assert status == expected
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert re.search(words, body["error"]["message"]), body["error"]["message"]
