"""The simulated teacher: what it writes, over HTTP and as a process of its own."""

import http.client
import json
import random
import re
import select
import signal
import socket
import statistics
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta

import openai
import pytest

from md_trl.prompts import STOP, TRIGGERS, teacher_messages, teacher_prompt
from md_trl.records import PATHS
from md_trl.simulated_teacher import FINGERPRINT, MEAN_CHANCE, MODEL, TeacherServer, chances, think
from md_trl.simulated_teacher.thoughts import WORDINGS, miscalculate, right_thoughts, wrong_thought
from md_trl.tasks.stories import FAMILIES, load, parse
from md_trl.tasks.stories.kinds import KINDS, LARGEST, RELATIONS, WEEKDAYS


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
    if path == "cot_pot":
        text = re.fullmatch(r"(?s).+\n```python\n(.+)\n```", text)[1]
    names = {}
    try:
        exec(text, names)
    except NameError:
        return None
    return str(names["answer"])


def sampled(question, path, seed=0, n=20, temperature=0.7):
    """Answers of the teacher's thoughts about a question."""
    story = parse(question.question)
    return [answer_of(path, think(story, path, question.question, seed, index, temperature)) for index in range(n)]


def majority(answers):
    """The most frequent answer, the first one of several, without the programs that did not run."""
    counts = Counter(answer for answer in answers if answer is not None)
    return counts.most_common(1)[0][0] if counts else None


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


@pytest.mark.slow
def test_greedy_is_one_text_and_right_where_that_is_more_probable_than_any_mistake(client):
    for path in TRIGGERS:
        greedy = {text for seed in range(3) for text in texts(ask(client, path=path, n=5, temperature=0, seed=seed))}
        assert len(greedy) == 1
    shares = defaultdict(list)
    for question in QUESTIONS[:60]:
        for path in TRIGGERS:
            (answer,) = set(sampled(question, path, temperature=0, n=3))
            shares[answer == question.answer].append(sampled(question, path, n=1000).count(question.answer) / 1000)
    # At 0.7, p for the right answer and 0.4 (1 - p) for the favourite mistake are equal at p = 0.286.
    assert min(shares[True]) > 0.24 and max(shares[False]) < 0.33


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
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "the role 'user', not 'assistant'"),
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
        ("/v1/completions", json.dumps({"model": MODEL, "prompt": [1, 2]}), 400, "`prompt` must be one string"),
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


def verify(chain):
    """Check every statement of a chain of thought by other means; how many statements that were."""
    values = {"half": 2, "third": 3, "quarter": 4}
    statements = 0
    for left, right in re.findall(r"(\d+(?: [-+*] \d+)+) = (\d+)", chain):
        assert eval(left) == int(right), chain
        statements += 1
    for part, number, share in re.findall(r"(half|third|quarter) of (\d+)(?: is|, which is) (\d+)", chain.lower()):
        assert values[part] * int(share) == int(number), chain
        statements += 1
    for left, relation, right in re.findall(rf"(\d+) is ({'|'.join(RELATIONS)}) (\d+)", chain):
        holds = {"more than": int(left) > int(right), "less than": int(left) < int(right)}
        assert holds.get(relation, left == right), chain
        statements += 1
    for wait, direction, day, other in re.findall(r"(\d+) days (after|before) (\w+day) is (\w+day)", chain):
        monday = date(2024, 1, 1)
        start = monday + timedelta(days=WEEKDAYS.index(day))
        assert (start + timedelta(days=int(wait) * (1 if direction == "after" else -1))).strftime("%A") == other, chain
        statements += 1
    return statements


@pytest.mark.parametrize("seed", range(8))
def test_every_thought_is_what_it_claims_to_be(seed):
    verified = Counter()
    for question in load("train", seed=seed, size=400) + load("test", seed=seed, size=400):
        story = parse(question.question)
        for program in right_thoughts(story, "pot"):
            assert answer_of("pot", program) == question.answer, program
        for chain in right_thoughts(story, "cot"):
            assert answer_of("cot", chain) == question.answer
            verified[story.kind.name] += verify(chain)
        rng = random.Random(question.question)
        for _ in range(5):
            assert answer_of("pot", wrong_thought(story, "pot", rng)) != question.answer
            wrong = [wrong_thought(story, "cot", rng), miscalculate(story, rng)]
            for chain in wrong:
                assert answer_of("cot", chain) != question.answer, chain
                assert all(int(number) <= LARGEST for number in re.findall(r"\d+", chain)), chain
            # A wrong result leads to another answer of the same sort.
            assert answer_of("cot", wrong[1]).isdigit() == question.answer.isdigit()
    assert verified.keys() | {"all_but", "in_all"} == WORDINGS.keys() == {kind.name for kind in KINDS}


@pytest.mark.slow
def test_the_documented_chances_hold_in_every_family_and_on_both_paths():
    right = defaultdict(list)
    for question in load("train", size=2000):
        for path in TRIGGERS:
            answers = sampled(question, path, n=40)
            right[question.id.split("/")[2], path].append(answers.count(question.answer) / len(answers))
    assert {family for family, _ in right} == set(FAMILIES) == MEAN_CHANCE.keys()
    for family, mean in MEAN_CHANCE.items():
        assert f"| `{family}` | {mean['cot']:.2f} | {mean['pot']:.2f} |" in chances.__doc__
        for path in TRIGGERS:
            shares = right[family, path]
            expected = mean.get(path, (mean["cot"] + mean["pot"]) / 2) * (
                1 - chances.HARD_SHARE * (1 - chances.HARD_FACTOR)
            )
            assert statistics.mean(shares) == pytest.approx(expected, abs=0.08)
            # The questions of every family differ: the path is nearly always right on some, and often wrong on others.
            assert statistics.stdev(shares) > 0.12
            assert max(shares) > 0.9 and min(shares) < 0.5


@pytest.mark.parametrize("seed", [42, 7])
def test_votes_decide_the_types_and_lambda_takes_all_values(seed):
    types, lambdas = Counter(), []
    for question in load("train", seed=seed):
        cot, pot = (sampled(question, path, seed) for path in PATHS)
        solved = majority(cot) == question.answer, majority(pot) == question.answer
        types[solved] += 1
        if all(solved):
            n1, n2 = cot.count(question.answer), pot.count(question.answer)
            lambdas.append(n2 / (n1 + n2))
    share = {solved: count / types.total() for solved, count in types.items()}
    # All four types of Sec. 3.1, more of types 1 and 2 than the paper's 10% each.
    assert 0.10 < share[False, True] < 0.25
    assert 0.10 < share[True, False] < 0.35
    assert 0.35 < share[True, True] < 0.70
    assert 0.08 < share[False, False] < 0.20
    assert sum(lambda_ < 0.4 for lambda_ in lambdas) > len(lambdas) / 5
    assert sum(lambda_ > 0.6 for lambda_ in lambdas) > len(lambdas) / 5


def test_more_temperature_means_more_mistakes_and_mistakes_on_large_numbers_scatter():
    questions = load("train", size=400)
    accuracy = []
    for temperature in (0, 0.7, 1.5):
        answers = [(question, sampled(question, "cot", n=10, temperature=temperature)) for question in questions]
        accuracy.append(sum(found.count(question.answer) for question, found in answers))
    assert accuracy[0] > accuracy[1] > accuracy[2]
    for question, _ in answers:
        wrong = [answer for answer in sampled(question, "cot", n=40) if answer != question.answer]
        if question.id.split("/")[2] == "large" and len(wrong) > 15:
            assert len(set(wrong)) > 3


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
