"""Continuous batching in the engine `transformers`: what joins a batch, when, and that nobody notices."""

from collections import deque
from dataclasses import replace

import pytest
import torch
from students import byte_tokenizer, tiny_gpt2, tiny_llama, tiny_mistral

from md_trl.records import SamplingParams
from md_trl.sampling.engines import SampleRequest, memory
from md_trl.sampling.engines.batching import Batching, Job
from md_trl.sampling.engines.joining import SPARE_COLUMNS, JoiningDecoder, PrefilledPrompts
from md_trl.sampling.engines.transformers import CausalDecoder, TransformersEngine


MODELS = {"llama": tiny_llama, "gpt2": tiny_gpt2, "mistral": tiny_mistral}
PARAMS = (
    SamplingParams(max_tokens=40),
    SamplingParams(temperature=1.4, top_p=0.8, max_tokens=9),
    SamplingParams(temperature=1.2, max_tokens=80, stop=("e", "q")),
    SamplingParams(temperature=0.0, max_tokens=30),
    SamplingParams(temperature=2.0, max_tokens=1),
)


def requests_of(count, n=3):
    """Requests of mixed lengths and parameters."""
    return [
        SampleRequest(
            f"q{i}", "cot", "Dan had 4 dollars. "[: 1 + i * 7 % 19], params, n=1 if params.temperature == 0 else n
        )
        for i in range(count)
        for params in [PARAMS[i % len(PARAMS)]]
    ]


def choices_of(results):
    return {result.request.question_id: [choice[:2] for choice in result.choices] for result in results}


def engine_of(name, **options):
    model = MODELS[name]().double()
    model.generation_config.eos_token_id = list(range(0, 258, 20))  # so that random models end often
    return TransformersEngine(model, byte_tokenizer(), **options)


class Forwards:
    """The rows, columns and visible columns of each step, and the prompts that were run."""

    def __init__(self, model):
        self.steps, self.prompts = [], []
        model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, model, args, kwargs):
        ids, mask = kwargs["input_ids"], kwargs["attention_mask"]
        if kwargs.get("past_key_values") is None:
            self.prompts += [row[seen.bool()].tolist() for row, seen in zip(ids, mask, strict=True)]
        else:
            self.steps.append((*mask.shape, mask.sum(1).tolist()))


@pytest.mark.parametrize("name", MODELS)
def test_texts_are_those_of_each_request_alone(name):
    requests, engine = requests_of(15), engine_of(name)
    alone = {request.question_id: result for request in requests for result in engine.generate([request])}
    expected = choices_of(alone.values())
    assert {reason for choices in expected.values() for _, reason in choices} == {"stop", "length"}
    for batch_size in (4, 7, 64):
        results = list(engine_of(name, batch_size=batch_size).generate(requests))
        assert choices_of(results) == expected
        for result in results:
            same = alone[result.request.question_id]
            # The tokens between a stop string and its discovery depend on when the sample joined.
            assert result.usage == same.usage or result.request.params.stop
            for choice, other in zip(result.choices, same.choices, strict=True):
                assert choice.logprob == pytest.approx(other.logprob, abs=1e-6)


def test_rows_are_never_idle_while_samples_wait():
    engine = engine_of("llama", batch_size=8)
    forwards = Forwards(engine._model)
    requests = requests_of(30)
    list(engine.generate(requests))
    total = sum(request.n for request in requests)
    full = [rows for rows, _, _ in forwards.steps if rows == 8]
    assert max(rows for rows, _, _ in forwards.steps) == 8
    # Once a step has fewer rows, none is waiting, and no more are added.
    counts = [rows for rows, _, _ in forwards.steps]
    assert counts == sorted(counts, reverse=True) and len(full) > len(counts) / 2
    assert total > 60 and sorted(forwards.prompts) == sorted(
        engine.tokenizer(request.prompt)["input_ids"] for request in requests
    )


def test_the_cache_is_as_wide_as_its_longest_row():
    engine = engine_of("llama", batch_size=8)
    forwards = Forwards(engine._model)
    list(engine.generate(requests_of(60)))
    assert all(columns == max(seen) for _, columns, seen in forwards.steps)
    # Short and long rows were in a batch together, across several allocations of columns.
    assert max(columns for _, columns, _ in forwards.steps) > SPARE_COLUMNS
    assert any(min(seen) < 0.2 * max(seen) for _, _, seen in forwards.steps)


def test_models_that_rows_cannot_join(monkeypatch):
    assert engine_of("llama")._can_join and engine_of("gpt2")._can_join and not engine_of("mistral")._can_join
    engine = engine_of("mistral", batch_size=7)
    monkeypatch.setattr(JoiningDecoder, "join", None)
    assert len(list(engine.generate(requests_of(10)))) == 10
    # A row that has ended runs on beside a longer one, at positions that the model knows.
    model = tiny_gpt2()
    engine = TransformersEngine(model, byte_tokenizer())
    engine._can_join = False
    long = SampleRequest("long", "cot", "x" * 510, SamplingParams(max_tokens=99))
    short = [SampleRequest(f"{i}", "cot", "x", SamplingParams(max_tokens=50), n=2) for i in range(3)]
    results = list(engine.generate([long, *short]))
    assert len(results) == 4


def test_requests_are_pulled_when_there_is_room():
    engine, pulled, ended = engine_of("llama", batch_size=8), [], 0

    def pull():
        for request in [
            SampleRequest(f"q{i}", "cot", 100 * "x", SamplingParams(max_tokens=20), n=4) for i in range(30)
        ]:
            pulled.append(request)
            yield request

    for _ in engine.generate(pull()):
        ended += 1
        # Two in the batch, up to three prompts of 100 tokens ahead of them, and results of the same check
        assert len(pulled) <= ended + 8
    assert ended == len(pulled) == 30


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_requests_can_be_added_as_results_arrive(name):
    class Added:
        """An iterator that ends whenever nothing is waiting."""

        def __init__(self, requests):
            self.waiting = deque(requests)

        def __iter__(self):
            return self

        def __next__(self):
            if not self.waiting:
                raise StopIteration
            return self.waiting.popleft()

    first = requests_of(4)
    requests, found, steps = Added(first), {}, 0
    engine = engine_of(name)
    for result in engine.generate(requests):
        found |= choices_of([result])
        if steps < 12:
            steps += 1
            prompt = "" if steps == 5 else "more"  # A request that is refused can be followed by others too.
            requests.waiting.append(SampleRequest(f"more{steps}", "pot", prompt, PARAMS[steps % 3], n=2))
    assert len(found) == 16 and found["more5"] == []
    later = [SampleRequest(f"more{i}", "pot", "more", PARAMS[i % 3], n=2) for i in range(1, 13) if i != 5]
    assert found == choices_of(engine_of(name).generate([*first, *later])) | {"more5": []}


def jobs_of(count, n, prompt, max_tokens):
    request = SampleRequest("q", "cot", "x", SamplingParams(max_tokens=max_tokens), n=n)
    return deque(Job(request, [0] * prompt, 4096) for _ in range(count))


def rows_of_7b(jobs, batch_size=128, cache_gb=None):
    """Rows of the first batch of a model with 32 layers and 32 heads of 128 in bf16."""
    bytes_per_token = 2 * 32 * 32 * 128 * 2
    max_cached = memory.cache_bytes(torch.device("cpu"), cache_gb) / bytes_per_token
    batching = Batching(lambda: jobs.popleft() if jobs else None, batch_size, max_cached)
    return len(batching.joining([], lambda prompts: None))


def test_the_cache_follows_free_memory(monkeypatch):
    # 48 GB less 14 GB of weights: 27.2 GB of cache at 0.524 MB per token and 664 columns per sample
    monkeypatch.setattr(memory, "free_memory", lambda device: 34e9)
    assert rows_of_7b(jobs_of(10, 20, 100, 500)) == 78
    assert rows_of_7b(jobs_of(10, 20, 100, 500), cache_gb=2.0) == 5
    assert rows_of_7b(jobs_of(10, 20, 100, 500), batch_size=32) == 32
    monkeypatch.setattr(memory, "free_memory", lambda device: 1e6)
    assert rows_of_7b(jobs_of(10, 20, 100, 500)) == 1


def test_prompts_are_run_for_the_rows_that_fit(monkeypatch):
    """Prompts of 1500 tokens with one sample each: as many are run as there is memory for."""
    monkeypatch.setattr(memory, "free_memory", lambda device: 34e9)
    jobs = jobs_of(100, 1, 1500, 436)
    assert rows_of_7b(jobs) == 25
    assert 100 - len(jobs) <= 25 + 3


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_the_engine_keeps_to_the_memory(name, monkeypatch):
    engine = engine_of(name, batch_size=64)
    per_token = 2 * 2 * 2 * 8 * 8  # layers, keys and values, heads, size of a head, bytes
    assert engine._bytes_per_token == per_token
    requests = [SampleRequest(f"q{i}", "cot", "word", SamplingParams(max_tokens=32), n=2) for i in range(16)]
    monkeypatch.setattr(memory, "free_memory", lambda device: 6 * (4 + 32 + SPARE_COLUMNS) * per_token / 0.8 + 1)
    forwards = Forwards(engine._model)
    results = choices_of(engine.generate(requests))
    assert max(rows for rows, _, _ in forwards.steps) == 6
    forwards.steps.clear()
    engine.cache_gb = 1.0
    assert choices_of(engine.generate(requests)) == results
    assert max(rows for rows, _, _ in forwards.steps) == 32


def test_free_memory_of_this_machine():
    assert 1e7 < memory.free_memory(torch.device("cpu")) < 1e15


def test_decoders_agree():
    """A prompt that joins late is continued as in a batch of its own."""
    model = tiny_llama().double().eval()
    early, late, tokens = [5, 6, 7, 8], [9, 10], torch.tensor([11, 12])
    with torch.inference_mode():
        decoder = JoiningDecoder(model)
        decoder.join([(decoder.prefill([early]), [0, 0, 0], [0, 1, 2])])
        for _ in range(2 * SPARE_COLUMNS):
            decoder.step(torch.tensor([1, 2, 3]))
        decoder.join([(decoder.prefill([late, early]), [0, 1], [1, 3])])
        decoder.step(torch.tensor([1, 11, 3, 12]))
        expected = CausalDecoder(model, [late, early], torch.tensor([0, 1]), 2)
        expected.step(tokens)
        assert torch.allclose(decoder.logits[[1, 3]], expected.logits, atol=1e-6)
        decoder.keep(torch.tensor([3, 1]))
        decoder.step(torch.tensor([4, 4]))
        expected.step(torch.tensor([4, 4]))
        assert torch.allclose(decoder.logits, expected.logits[[1, 0]], atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_prompts_that_are_asked_again_are_read_once(name):
    def run(engine):
        """Three rounds: each asks some of the prompts again for further samples."""
        rounds = [requests_of(12)[::step] for step in (1, 2, 3)]
        return [
            choices_of(engine.generate([replace(request, first_index=5 * k) for request in requests]))
            for k, requests in enumerate(rounds)
        ]

    engine = engine_of(name, batch_size=7)
    alone = run(engine)
    forwards = Forwards(engine._model)
    with engine.keep_prompts():
        assert run(engine) == alone
    distinct = {request.prompt for request in requests_of(12)}
    if name != "mistral":  # its sliding window keeps no prompts
        assert len(forwards.prompts) == len(distinct)
    # Afterwards the weights may change, so every prompt is read anew
    with torch.no_grad():
        for weights in engine._model.parameters():
            weights.mul_(1.5)
    with engine.keep_prompts():
        assert run(engine) != alone
    assert run(engine) != alone


def test_the_oldest_prompts_are_forgotten_first():
    known = PrefilledPrompts(max_tokens=20)
    known.add([[1, 2, 3], [4]], "first")
    known.add([[5] * 10], "second")
    assert known.get([4]) == ("first", 1) and known.get([5] * 10) == ("second", 0) and known.get([6]) is None
    known.add([[6] * 5], "third")  # 6 + 10 + 5 tokens with padding
    assert known.get([4]) is None and known.get([1, 2, 3]) is None
    assert known.get([5] * 10) == ("second", 0) and known.get([6] * 5) == ("third", 0)
    known.add([[7] * 21], "fourth")
    assert known.get([7] * 21) is None and known.get([6] * 5) is None


def test_the_data_type_of_the_weights(tmp_path):
    tiny_llama().to(torch.bfloat16).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    loaded = {
        dtype: TransformersEngine(str(tmp_path), dtype=dtype)._model.dtype for dtype in (None, "auto", "float16")
    }
    assert loaded == {None: torch.float32, "auto": torch.bfloat16, "float16": torch.float16}
    with pytest.raises(ValueError, match="Unknown `dtype` 'int8'. Choose one of auto, float32, bfloat16, float16"):
        TransformersEngine(str(tmp_path), dtype="int8")
