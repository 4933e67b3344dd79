"""The engines: `openai` over real HTTP, `transformers` against slow, plain loops on tiny random models."""

import asyncio
import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from servers.openai_server import OpenAIServer, Reply, error, text_of
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from md_trl.cli.sample import SampleArguments, run
from md_trl.prompts import student_prompt
from md_trl.records import Choice, SamplingParams
from md_trl.sampling.engines import SampleRequest, cut_at_stop, derive_seed
from md_trl.sampling.engines.openai import OpenAIEngine
from md_trl.sampling.engines.transformers import TransformersEngine
from md_trl.store import Selection, Store


MESSAGES = [{"role": "user", "content": "How much?"}]


def test_seeds_differ_and_are_fixed():
    seeds = {
        derive_seed(seed, question, path, index)
        for seed in (0, 1)
        for question in ("a", "b")
        for path in ("cot", "pot")
        for index in range(50)
    }
    assert len(seeds) == 400
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert derive_seed(42, "svamp/train/1", "cot", 0) == 166069397  # Old stores rely on it.


def test_cut_at_stop():
    assert cut_at_stop(Choice("one\nQ: two\nA: three", "length"), ["\nA:", "\nQ:"]) == Choice("one", "stop")
    assert cut_at_stop(Choice("one", "length"), ["\nA:"]) == Choice("one", "length")
    assert cut_at_stop(Choice("one", "length"), []) == Choice("one", "length")


# OpenAI


def ask(url, *requests, **kwargs):
    kwargs = {"max_retries": 0, "concurrency": 4} | kwargs
    return list(OpenAIEngine("m", url, **kwargs).generate(requests))


def test_chat_and_completions():
    chat = SampleRequest(
        "q", "cot", MESSAGES, SamplingParams(max_tokens=7, top_p=0.9, stop=("X",)), n=3, first_index=2, key=5
    )
    text = SampleRequest("q", "pot", "How much?", SamplingParams(temperature=0.2))
    with OpenAIServer() as server:
        results = {result.request.path: result for result in ask(server.url, chat, text)}
    seed = derive_seed(42, "q", "cot", 2)
    usage = {"prompt_tokens": 5, "cached_tokens": 2, "completion_tokens": 3 * (4 + seed % 7)}
    assert results["cot"].request is chat
    assert results["cot"].choices == [Choice(text_of(MESSAGES, seed, i), "stop") for i in range(3)]
    assert results["cot"].usage == usage and results["cot"].served == "m"
    assert results["pot"].choices == [Choice(text_of("How much?", derive_seed(42, "q", "pot", 0), 0), "stop")]
    bodies = {"messages" in body: body for body in server.bodies}
    assert bodies[True] == {
        "model": "m", "messages": MESSAGES, "n": 3, "temperature": 0.7, "top_p": 0.9, "max_tokens": 7, "stop": ["X"],
        "seed": seed, "logprobs": True, "top_logprobs": 0,
    }  # fmt: skip
    assert (
        bodies[False]["logprobs"] == 0
        and bodies[False]["temperature"] == 0.2
        and bodies[False]["prompt"] == "How much?"
    )


def test_requests_are_pulled_when_there_is_capacity():
    pulled = []

    def requests():
        for i in range(20):
            pulled.append(i)
            yield SampleRequest(f"q{i}", "cot", MESSAGES)

    with OpenAIServer(delay=0.02) as server:
        for arrived, _ in enumerate(OpenAIEngine("m", server.url, concurrency=3).generate(requests()), start=1):
            assert len(pulled) <= arrived + 2
    assert arrived == 20
    assert server.peak_in_flight == 3


def test_an_early_end_leaves_nothing_behind():
    with OpenAIServer(delay=0.01) as server:
        results = OpenAIEngine("m", server.url, concurrency=4).generate(
            SampleRequest(f"q{i}", "cot", MESSAGES) for i in range(1000)
        )
        next(results)
        results.close()
        assert len(server.bodies) < 20


def test_works_while_an_event_loop_runs():
    """As in a notebook."""

    async def main():
        with OpenAIServer() as server:
            return ask(server.url, SampleRequest("q", "cot", MESSAGES))

    assert len(asyncio.run(main())) == 1


def test_stop_string_that_the_server_leaves_in():
    with OpenAIServer(finish=lambda body, text: (f"one\nQuestion: {text}", "length")) as server:
        (result,) = ask(server.url, SampleRequest("q", "cot", "Q", SamplingParams(stop=("\nQuestion:",))))
    assert result.choices == [Choice("one", "stop")]


def test_logprobs_of_a_server():
    """The mean over the tokens of the kept text, for both APIs."""

    def finish(body, text):
        return "café\n\nQ: two", "length"

    def logprobs(body, text):
        return [("ca", -1.0), ("fé", -0.5), ("\n\nQ", -8.0), (": two", -0.25)]

    requests = [
        SampleRequest("whole", "cot", "Q"),
        SampleRequest("whole, chat", "cot", MESSAGES),
        SampleRequest("cut", "cot", "Q", SamplingParams(stop=("\n\n",))),
        SampleRequest("cut, chat", "cot", MESSAGES, SamplingParams(stop=("\n\n",))),
        SampleRequest("inside a token", "cot", MESSAGES, SamplingParams(stop=("\nQ",))),
        SampleRequest("at once", "cot", "Q", SamplingParams(stop=("ca",))),
    ]
    with OpenAIServer(finish=finish, logprobs=logprobs) as server:
        found = {r.request.question_id: r.choices[0] for r in ask(server.url, *requests)}
    assert found["whole"].logprob == found["whole, chat"].logprob == -9.75 / 4
    assert found["cut"] == found["cut, chat"] == Choice("café", "stop", -0.75)
    # Half of the token "\n\nQ" is in the text, so it was not kept.
    assert found["inside a token"] == Choice("café\n", "stop", -0.75)
    assert found["at once"] == Choice("", "stop", None)


def test_a_server_that_lists_the_tokens_of_a_stop_string_that_it_has_cut():
    with OpenAIServer(
        finish=lambda body, text: ("one", "stop"),
        logprobs=lambda body, text: [("one", -0.5), ("\n", -3.0), ("<eos>" if body["seed"] % 2 else "", -1.0)],
    ) as server:
        stopped, ended = (
            ask(server.url, SampleRequest("q", "cot", "Q", SamplingParams(stop=stop)))[0].choices[0]
            for stop in (("\n",), ("Q:",))
        )
    assert (stopped.logprob, ended.logprob) == (-0.5, -1.5)


@pytest.mark.parametrize(
    "logprobs",
    [
        [("one", -9999.0)],  # OpenAI, for a token that is not among the 20 most likely ones
        [("one", 0.7)],
        [("one", None)],
        [("one", math.nan)],
        [("one", -math.inf)],
        [("one", "low")],
        [],
    ],
)
def test_logprobs_that_are_none(logprobs):
    with OpenAIServer(logprobs=lambda body, text: logprobs) as server:
        (result,) = ask(server.url, SampleRequest("q", "cot", "Q"))
        assert result.choices[0].logprob is None and result.choices[0].text
    with OpenAIServer(logprobs=lambda body, text: [("one", 1e-7)]) as server:
        assert ask(server.url, SampleRequest("q", "cot", "Q"))[0].choices[0].logprob == 0.0


@pytest.mark.parametrize("refusal", [error(400, "bad request"), error(403, "no logprobs"), error(500, "no logprobs")])
def test_a_server_that_refuses_logprobs_is_asked_without_them(refusal, caplog):
    requests = [SampleRequest(f"q{i}", "cot", MESSAGES, n=2) for i in range(5)]
    with OpenAIServer(fault=lambda number, body: refusal if "logprobs" in body else None) as server:
        results = ask(server.url, *requests, concurrency=1)
    assert all(len(result.choices) == 2 and result.choices[0].logprob is None for result in results)
    assert ["logprobs" in body for body in server.bodies] == [True] + 5 * [False]
    assert caplog.text.count("gives no log-probabilities") == 1 and "weigh them equally" in caplog.text


def test_asking_for_logprobs_changes_neither_settings_nor_prices(tmp_path, monkeypatch):
    arguments = {"task": "stories", "limit": 2, "n": 3, "store": str(tmp_path / "t.db"), "model": "m"}
    with OpenAIServer() as server:
        run(SampleArguments(**arguments, base_url=server.url))
        usage = server.completion_tokens
    with OpenAIServer(logprobs=lambda body, text: [(text, -0.5)]) as server:
        run(SampleArguments(**arguments, base_url=server.url))
        assert not server.bodies  # A store from before has everything.
        run(SampleArguments(**arguments | {"store": str(tmp_path / "new.db")}, base_url=server.url))
        assert server.completion_tokens == usage
    with Store(tmp_path / "t.db") as old, Store(tmp_path / "new.db") as new:
        assert {(t.text, t.logprob) for t in old.thoughts()} == {(t.text, None) for t in new.thoughts()}
        assert {t.logprob for t in new.thoughts()} == {-0.5}


def test_odd_answers():
    def finish(body, text):
        return {"null": (None, "length"), "pair": ("a\ud800b", "stop"), "reason": ("a", None)}[body["prompt"]]

    with OpenAIServer(finish=finish) as server:
        requests = [SampleRequest(prompt, "cot", prompt) for prompt in ("null", "pair", "reason")]
        results = {result.request.question_id: result.choices for result in ask(server.url, *requests)}
    assert results == {
        "null": [Choice("", "length")],
        "pair": [Choice("a?b", "stop")],
        "reason": [Choice("a", "stop")],
    }


def test_choices_out_of_order():
    choices = [{"index": i, "text": str(i), "finish_reason": "stop"} for i in (2, 0, 1)]
    body = b'{"object": "text_completion", "choices": %s}' % str(choices).replace("'", '"').encode()
    with OpenAIServer(fault=lambda number, _: Reply(200, body)) as server:
        (result,) = ask(server.url, SampleRequest("q", "cot", "Q", n=3))
    assert [choice.text for choice in result.choices] == ["0", "1", "2"]
    assert result.usage == {}


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (error(500), "HTTP 500: no"),
        (error(429, "slow down"), "HTTP 429: slow down"),
        (Reply(200, b'{"id": '), "cannot be read"),
        (Reply(200, b"<html>", {"content-type": "text/html"}), "cannot be read"),
        (Reply(0, b""), "connection was lost"),
    ],
)
def test_faults_are_retried_then_reported(reply, message):
    with OpenAIServer(fault=lambda number, body: reply) as server:
        (result,) = ask(server.url, SampleRequest("q", "cot", MESSAGES))
        assert message in result.error and result.retry and result.choices == []
    headers = reply.headers | {"retry-after-ms": "5"}
    if reply.status > 200:
        with OpenAIServer(fault=lambda n, body: Reply(reply.status, reply.body, headers) if n < 3 else None) as server:
            (result,) = ask(server.url, SampleRequest("q", "cot", MESSAGES), max_retries=3)
            assert result.error is None and len(server.bodies) == 4


def test_time_out():
    with OpenAIServer(delay=1) as server:
        (result,) = ask(server.url, SampleRequest("q", "cot", MESSAGES), timeout=0.1)
    assert result.error == "no answer within 0.1 s"


def test_no_server():
    with OpenAIServer() as server:
        url = server.url
    pulled = iter([SampleRequest("q", "cot", MESSAGES)])
    with pytest.raises(ConnectionError, match=f"No server answers at {url} .*Start one"):
        list(OpenAIEngine("m", url, max_retries=0).generate(pulled))
    assert list(pulled)  # No request was pulled.


@pytest.mark.parametrize("models", [error(500), error(404), Reply(200, b"nonsense")])
def test_a_server_need_not_list_its_models(models):
    with OpenAIServer(models=models) as server:
        (result,) = ask(server.url, SampleRequest("q", "cot", MESSAGES))
    assert len(result.choices) == 1


@pytest.mark.parametrize("where", ["models", "requests"])
@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("sk-old", "refuses the key .*: it is wrong.*OPENAI_API_KEY"),
        (None, "wants a key .*OPENAI_API_KEY.* is not set"),
    ],
)
def test_refused_and_unset_keys(monkeypatch, where, key, message):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    reply = error(401, "Incorrect API key provided: none")
    kwargs = {"models": reply} if where == "models" else {"fault": lambda number, body: reply}
    with OpenAIServer(**kwargs) as server:
        with pytest.raises(ValueError, match=message) as caught:
            ask(server.url, *(SampleRequest(f"q{i}", "cot", MESSAGES) for i in range(100)))
        assert len(server.bodies) <= 4
    assert "sk-old" not in str(caught.value)


def test_unknown_model_and_refused_arguments():
    with OpenAIServer(fault=lambda number, body: error(404, "no such model")) as server:
        with pytest.raises(ValueError, match="does not know the model 'm' .*no such model.*--model"):
            ask(server.url, SampleRequest("q", "cot", MESSAGES))
    with OpenAIServer(fault=lambda number, body: error(400, "max_tokens is not supported")) as server:
        with pytest.raises(ValueError, match="refuses the requests: HTTP 400: max_tokens is not supported"):
            ask(server.url, *(SampleRequest(f"q{i}", "cot", MESSAGES) for i in range(100)))
        assert len(server.bodies) <= 2 * 4  # each with log-probabilities and without


def test_a_server_that_refuses_n():
    """The first sample is asked for on its own, with the same seed as before."""
    with OpenAIServer(fault=lambda number, body: error(400, "`n` must be 1") if body["n"] > 1 else None) as server:
        (result,) = ask(server.url, SampleRequest("q", "cot", MESSAGES, n=3))
    assert (result.request.n, result.error) == (3, None)
    assert result.choices == [Choice(text_of(MESSAGES, derive_seed(42, "q", "cot", 0), 0), "stop")]
    assert [(body["n"], "logprobs" in body) for body in server.bodies] == [(3, True), (3, False), (1, True)]


def test_refusals_that_are_not_about_n():
    """A server that has returned several samples is not asked again; one may refuse a single sample, too."""

    def fault(number, body):
        return error(400, "too long") if body["prompt"] == "long" else None

    requests = [SampleRequest(f"q{i}", "cot", prompt, n=2) for i, prompt in enumerate(["short", "long", "long"])]
    with OpenAIServer(fault=fault) as server:
        results = ask(server.url, *requests, concurrency=1)
    assert [(len(r.choices), r.error, r.retry) for r in results] == [
        (2, None, True), (0, "HTTP 400: too long", False), (0, "HTTP 400: too long", False)
    ]  # fmt: skip
    assert [body["n"] for body in server.bodies] == [2, 2, 2]
    with OpenAIServer(fault=lambda number, body: error(400, "no such parameter")) as server:
        with pytest.raises(ValueError, match="refuses the requests: HTTP 400: no such parameter"):
            ask(server.url, requests[0])
        assert [body["n"] for body in server.bodies] == [2, 2, 1, 1]


def test_what_arrives_after_a_fatal_error_is_kept(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-old")
    with OpenAIServer(fault=lambda n, body: error(401) if n == 2 else None, delay=0.02) as server:
        arrived = []
        with pytest.raises(ValueError, match="refuses the key"):
            for result in OpenAIEngine("m", server.url, concurrency=4).generate(
                SampleRequest(f"q{i}", "cot", MESSAGES) for i in range(100)
            ):
                arrived.append(result)
    assert len(arrived) == len(server.bodies) < 10
    assert [result.error is None for result in arrived].count(False) == 1


def test_keys(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with OpenAIServer() as server:
        ask(server.url, SampleRequest("q", "cot", MESSAGES))
        assert server.keys == {"Bearer none"}
    for url in ("https://api.openai.com/v1", "http://10.0.0.7:8000/v1", "http://localhost.evil.org/v1"):
        with pytest.raises(ValueError, match="No key for .*OPENAI_API_KEY"):
            OpenAIEngine("m", url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    with OpenAIServer() as server:
        ask(server.url, SampleRequest("q", "cot", MESSAGES))
        assert server.keys == {"Bearer sk-1"}


# transformers

VOCABULARY, EOS = 40, 40


@pytest.fixture(scope="module")
def tokenizer():
    words = {**{f"w{i}": i for i in range(VOCABULARY)}, "<eos>": EOS, "last": EOS + 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def make(kind):
    torch.manual_seed(0)
    common = {"vocab_size": EOS + 2, "bos_token_id": None, "eos_token_id": EOS, "pad_token_id": None}
    llama = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama |= {"num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3, **common}
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**llama))
    if kind == "mistral":  # Sliding window attention: another kind of cache.
        return MistralForCausalLM(MistralConfig(**llama, sliding_window=6))
    # GPT-2 adds learned positions to its embeddings.
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3, **common))


@pytest.fixture(scope="module", params=["llama", "gpt2", "mistral"])
def model(request):
    return make(request.param)


@pytest.fixture(scope="module")
def llama():
    return make("llama")


def prompts(count, longest=12):
    rng = np.random.default_rng(0)
    return [" ".join(f"w{i}" for i in rng.integers(0, VOCABULARY, rng.integers(1, longest))) for _ in range(count)]


def requests_for(texts, n=3, first_index=0, max_tokens=20, **kwargs):
    params = SamplingParams(max_tokens=max_tokens, **kwargs)
    return [SampleRequest(f"q{i}", "cot", text, params, n, first_index) for i, text in enumerate(texts)]


def slow_pick(logits, params, generator):
    """Pick a token, with probabilities computed in NumPy."""
    if params.temperature == 0:
        return int(logits.argmax())
    p = np.exp(logits / params.temperature - (logits / params.temperature).max())
    p /= p.sum()
    kept, mass = np.zeros_like(p), 0.0
    for i in np.argsort(-p):
        if mass >= params.top_p:
            break
        kept[i] = p[i]
        mass += p[i]
    sizes = [len(kept)]
    while sizes[-1] > 1:
        sizes.append((sizes[-1] + 1) // 2)

    def tokens_of(level, node):
        """The tokens of one of the nodes into which a level merges the vocabulary."""
        if level == 0:
            return [node] if node < sizes[0] else []
        return tokens_of(level - 1, node) + halves_of(level, node)[1]

    def halves_of(level, node):
        other = node + sizes[level]
        return tokens_of(level - 1, node), tokens_of(level - 1, other) if other < sizes[level - 1] else []

    token = 0
    for level in range(len(sizes) - 1, 0, -1):
        first, second = (kept[tokens].sum() if tokens else 0.0 for tokens in halves_of(level, token))
        if (1 - torch.rand(1, generator=generator, dtype=torch.float64).item()) * (first + second) > first:
            token += sizes[level]
    return token


def slow_sample(model, tokenizer, request, sample):
    """Sample one token at a time, without a cache."""
    ids = tokenizer(request.prompt)["input_ids"]
    length = len(ids)
    params, index = request.params, request.first_index + sample
    seed = derive_seed(params.seed, request.question_id, request.path, index)
    generator = torch.Generator().manual_seed(seed)
    reason = "length"
    model.eval()
    for _ in range(params.max_tokens):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double().numpy()
        token = slow_pick(logits, params, generator)
        if token == EOS:
            reason = "stop"
            break
        ids.append(token)
    return Choice(tokenizer.decode(ids[length:]), reason)


def by_id(results):
    return {result.request.question_id: result for result in results}


def texts(result):
    """The choices of a result without their log-probabilities, which differ by rounding between batches."""
    return [choice._replace(logprob=None) for choice in result.choices]


def slow_logprob(model, tokenizer, request, choice, ended):
    """Mean over the tokens of prompt + text + EOS from one full forward pass, at temperature 1."""
    prompt, text = tokenizer(request.prompt)["input_ids"], tokenizer(choice.text)["input_ids"]
    ids = torch.tensor([prompt + text + ([EOS] if ended else [])])
    with torch.no_grad():
        logprobs = model.eval()(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
    of_tokens = logprobs[0, :-1].gather(1, ids[0, 1:, None])[len(prompt) - 1 :]
    return of_tokens.mean().item() if len(of_tokens) else None


@pytest.mark.parametrize(
    "arguments",
    [{}, {"temperature": 1.3, "top_p": 0.6}, {"temperature": 0.0, "n": 1}, {"stop": (" w1 ", " w2 ", " w3 w4", "w5")}],
    ids=["plain", "hot", "greedy", "stop"],
)
def test_logprobs_equal_a_full_forward_pass(model, tokenizer, arguments):
    requests = requests_for(prompts(20), max_tokens=15, **arguments)
    engine, ends = TransformersEngine(model, tokenizer, batch_size=16), set()
    free = by_id(engine.generate(requests_for(prompts(20), max_tokens=15, **arguments | {"stop": ()})))
    for key, result in by_id(engine.generate(requests)).items():
        for choice, uncut in zip(result.choices, free[key].choices, strict=True):
            is_cut = choice.text != uncut.text
            ended = choice.finish_reason == "stop" and not is_cut
            expected = slow_logprob(model, tokenizer, result.request, choice, ended)
            assert (choice.logprob is None) == (expected is None)
            assert expected is None or abs(choice.logprob - expected) < 1e-4
            ends.add("cut" if is_cut else choice.finish_reason)
    if "temperature" not in arguments:
        assert ends == ({"cut", "stop", "length"} if "stop" in arguments else {"stop", "length"})


@pytest.mark.parametrize(
    "arguments",
    [{}, {"temperature": 1.3, "first_index": 4, "seed": 7}, {"top_p": 0.6}, {"temperature": 0.0, "n": 1}],
    ids=["plain", "hot", "top_p", "greedy"],
)
def test_samples_equal_a_slow_loop(model, tokenizer, arguments):
    requests = requests_for(prompts(7), **arguments)
    results = by_id(TransformersEngine(model, tokenizer, batch_size=16).generate(requests))
    reasons = set()
    for request in requests:
        expected = [slow_sample(model, tokenizer, request, i) for i in range(request.n)]
        assert texts(results[request.question_id]) == expected
        reasons.update(choice.finish_reason for choice in expected)
        length = sum(len(c.text.split()) + (c.finish_reason == "stop") for c in expected)
        usage = {"prompt_tokens": len(request.prompt.split()), "completion_tokens": length}
        assert results[request.question_id].usage == usage
    # Sharper distributions of these models rarely reach the end token.
    assert "top_p" in arguments or arguments.get("temperature") == 0 or reasons == {"stop", "length"}


def test_the_batch_changes_nothing(llama, tokenizer):
    requests = requests_for(prompts(20), n=4)
    together = by_id(TransformersEngine(llama, tokenizer).generate(requests))
    assert len(together) == 20
    for batch_size in (1, 7, 16):
        alone = by_id(TransformersEngine(llama, tokenizer, batch_size=batch_size).generate(reversed(requests)))
        assert {i: texts(r) for i, r in alone.items()} == {i: texts(r) for i, r in together.items()}
        for key, result in alone.items():
            for choice, other in zip(result.choices, together[key].choices, strict=True):
                assert choice.logprob == pytest.approx(other.logprob, abs=1e-5)
    # Samples 2 and 3 on their own, with a larger `max_tokens`
    (tail,) = TransformersEngine(llama, tokenizer).generate(
        requests_for(prompts(1), n=2, first_index=2, max_tokens=40)
    )
    for whole, part in zip(tail.choices, together["q0"].choices[2:], strict=True):
        assert whole.text.split()[:20] == part.text.split()
    # A cache that is too small for two requests
    small = TransformersEngine(llama, tokenizer, cache_gb=1e-6)
    assert {i: texts(r) for i, r in by_id(small.generate(requests)).items()} == {
        i: texts(r) for i, r in together.items()
    }


def test_other_questions_paths_and_seeds_give_other_samples(llama, tokenizer):
    requests = [
        SampleRequest(question, path, "w1 w2", SamplingParams(seed=seed, max_tokens=15), n=5)
        for question in ("a", "b")
        for path in ("cot", "pot")
        for seed in (1, 2)
    ]
    found = [c.text for r in TransformersEngine(llama, tokenizer).generate(requests) for c in r.choices]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 1.0), (1.5, 1.0), (1.0, 0.7)])
def test_distribution(llama, tokenizer, temperature, top_p):
    """Frequencies of the first token against the model's probabilities (chi-squared, 5 standard deviations)."""
    n = 4000
    params = SamplingParams(temperature=temperature, top_p=top_p, max_tokens=1)
    request = SampleRequest("q", "cot", "w3 w1 w4", params, n=n)
    (result,) = TransformersEngine(llama, tokenizer, batch_size=n).generate([request])
    counts = np.zeros(EOS + 2)
    for choice in result.choices:
        (token,) = tokenizer(choice.text or "<eos>")["input_ids"]
        counts[token] += 1
    with torch.no_grad():
        logits = llama(input_ids=torch.tensor([[3, 1, 4]])).logits[0, -1]
    p = (logits / temperature).softmax(0).double().numpy()
    likeliest = np.argsort(-p)
    inside = likeliest[: int(np.searchsorted(p[likeliest].cumsum(), top_p)) + 1]
    kept = np.zeros_like(p)
    kept[inside] = p[inside] / p[inside].sum()
    assert counts[kept == 0].sum() == 0
    often = kept * n >= 5
    expected = np.append(kept[often], 1 - kept[often].sum()) * n
    seen = np.append(counts[often], n - counts[often].sum())
    statistic = ((seen - expected) ** 2 / np.maximum(expected, 1e-9))[expected > 1e-6].sum()
    degrees = (expected > 1e-6).sum() - 1
    assert abs(statistic - degrees) < 5 * math.sqrt(2 * degrees)


def test_greedy_equals_generate(model, tokenizer):
    (result,) = TransformersEngine(model, tokenizer).generate(
        [SampleRequest("q", "cot", "w1 w2 w3", SamplingParams(temperature=0.0, max_tokens=30))]
    )
    ids = tokenizer("w1 w2 w3", return_tensors="pt")["input_ids"]
    output = model.generate(input_ids=ids, attention_mask=ids * 0 + 1, do_sample=False, max_new_tokens=30)
    assert result.choices[0].text == tokenizer.decode(output[0, 3:], skip_special_tokens=True)


def test_greedy_gives_one_text(llama, tokenizer):
    with pytest.raises(ValueError, match="n=2. Use `n=1`"):
        list(TransformersEngine(llama, tokenizer).generate(requests_for(["w1"], n=2, temperature=0.0)))


def test_stop_strings(llama, tokenizer):
    requests = requests_for(prompts(12), n=4, max_tokens=40)
    engine = TransformersEngine(llama, tokenizer)
    free = by_id(engine.generate(requests))
    stop = (" w1 ", " w2 ", " w3 w4")
    cut = by_id(engine.generate(requests_for(prompts(12), n=4, max_tokens=40, stop=stop)))
    shorter = 0
    for key, result in free.items():
        assert texts(cut[key]) == [cut_at_stop(choice, stop) for choice in texts(result)]
        assert cut[key].usage["completion_tokens"] <= result.usage["completion_tokens"]
        shorter += cut[key].usage["completion_tokens"] < result.usage["completion_tokens"]
    assert shorter  # The rows ended at the stop string and were not only cut afterwards.


def test_results_come_as_they_are_complete(llama, tokenizer):
    requests = [
        SampleRequest("long", "cot", "w1", SamplingParams(max_tokens=50)),
        *(SampleRequest(f"short{i}", "cot", f"w{i}", SamplingParams(max_tokens=1)) for i in range(5)),
    ]
    llama.eval()
    order = [r.request.question_id for r in TransformersEngine(llama, tokenizer).generate(requests)]
    assert order[-1] == "long" and len(order) == 6


def test_prompts_without_room(llama, tokenizer):
    requests = requests_for(["w1 " * 62, "w1 " * 64, ""], n=1, max_tokens=9, temperature=0.0)
    results = by_id(TransformersEngine(llama, tokenizer).generate(requests))
    assert results["q0"].usage["completion_tokens"] <= 2
    assert "64 tokens leaves no room" in results["q1"].error and not results["q1"].retry
    assert "empty" in results["q2"].error and not results["q2"].retry


def test_messages_go_through_the_chat_template(llama, tokenizer):
    messages = [{"role": "user", "content": "w1 w2"}]
    with pytest.raises(ValueError, match="no chat template.*few_shot_text"):
        list(TransformersEngine(llama, tokenizer).generate([SampleRequest("q", "cot", messages)]))
    tokenizer.chat_template = "w9 {% for m in messages %}{{ m['content'] }} {% endfor %}w8"
    try:
        (chat,) = TransformersEngine(llama, tokenizer).generate([SampleRequest("q", "cot", messages, n=3)])
    finally:
        tokenizer.chat_template = None
    (plain,) = TransformersEngine(llama, tokenizer).generate([SampleRequest("q", "cot", "w9 w1 w2 w8", n=3)])
    assert texts(chat) == texts(plain)


def test_folders_and_adapters(llama, tokenizer, tmp_path):
    requests = requests_for(prompts(4))
    llama.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    engine = TransformersEngine(str(tmp_path / "base"))
    expected = by_id(TransformersEngine(llama, tokenizer).generate(requests))
    assert {i: texts(r) for i, r in by_id(engine.generate(requests)).items()} == {
        i: texts(r) for i, r in expected.items()
    }

    torch.manual_seed(1)
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    tuned = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    adapter = TransformersEngine(str(tmp_path / "adapter"))
    results = by_id(adapter.generate(requests))
    for request in requests:
        expected = [slow_sample(tuned, tokenizer, request, i) for i in range(request.n)]
        assert texts(results[request.question_id]) == expected

    # The name depends on the weights and on nothing else.
    assert engine.model.startswith(f"{tmp_path / 'base'}@") and engine.model[-8:] != adapter.model[-8:]
    assert TransformersEngine(str(tmp_path / "base")).model == engine.model
    with torch.no_grad():
        llama.lm_head.weight[0, 0] += 1
        llama.save_pretrained(tmp_path / "base")
        llama.lm_head.weight[0, 0] -= 1
    assert TransformersEngine(str(tmp_path / "base")).model != engine.model


def test_command(llama, tokenizer, tmp_path, capsys):
    llama.save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    args = SampleArguments(
        task="stories", limit=3, n=2, engine="transformers", model=str(tmp_path / "student"), max_tokens=5,
        store=str(tmp_path / "t.db"), paths=["cot", "pot", "label"],
    )  # fmt: skip
    run(args)
    assert "18 thoughts from 9 requests" in capsys.readouterr().out
    run(args)
    assert "0 thoughts from 0 requests" in capsys.readouterr().out
    with Store(tmp_path / "t.db") as store:
        thoughts = store.thoughts(Selection(models=TransformersEngine(str(tmp_path / "student")).model))
        question = store.questions.load()[0]
    assert len(thoughts) == 18
    text = student_prompt(question.question, "cot")
    request = SampleRequest(question.id, "cot", text, SamplingParams(max_tokens=5), n=2)
    (result,) = TransformersEngine(llama, tokenizer).generate([request])
    found = [t for t in thoughts if (t.question_id, t.path) == (question.id, "cot")]
    assert [(t.text, t.finish_reason) for t in found] == [choice[:2] for choice in result.choices]


def test_no_such_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder .*nowhere"):
        TransformersEngine(str(tmp_path / "nowhere"))


def test_a_tokenizer_without_eos(llama, tokenizer):
    tokenizer.eos_token = None
    llama.generation_config.eos_token_id = None
    try:
        (result,) = TransformersEngine(llama, tokenizer).generate(requests_for(["w1 w2"], n=20, max_tokens=30))
    finally:
        tokenizer.eos_token = "<eos>"
        llama.generation_config.eos_token_id = EOS
    assert {choice.finish_reason for choice in result.choices} == {"length"}
    assert result.usage["completion_tokens"] == 20 * 30


def test_training_mode_is_kept(llama, tokenizer):
    llama.train()
    list(TransformersEngine(llama, tokenizer).generate(requests_for(["w1"])))
    assert llama.training
    llama.eval()


def test_a_loaded_model_needs_a_tokenizer(llama):
    with pytest.raises(ValueError, match="`tokenizer=`"):
        TransformersEngine(llama)
