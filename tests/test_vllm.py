"""The engine `vllm` with a stand-in for the module, because there is no GPU to run vLLM itself on."""

import string
import sys
from pathlib import Path

import pytest
import torch
from students import byte_tokenizer, tiny_llama

from md_trl.cli.sample import SampleArguments, run
from md_trl.records import SamplingParams
from md_trl.sampling.engines import SampleRequest, derive_seed
from md_trl.store import Store


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    tiny_llama().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def vllm(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "stand_ins"))


@pytest.fixture
def engine(vllm, folder):
    from md_trl.sampling.engines.vllm import VLLMEngine

    return VLLMEngine(folder, batch_size=4, gpu_memory_utilization=0.5)


def requests(count, n=3, max_tokens=8, **kwargs):
    params = SamplingParams(max_tokens=max_tokens, **kwargs)
    return [SampleRequest(f"q{i}", "cot", f"How much is {i}?", params, n) for i in range(count)]


def test_not_installed(folder, monkeypatch):
    from md_trl.sampling.engines.vllm import VLLMEngine

    monkeypatch.setitem(sys.modules, "vllm", None)  # Another test may have imported the stand-in
    with pytest.raises(ImportError, match=r'pip install "md_trl\[vllm\]".*--engine transformers'):
        VLLMEngine(folder)


def test_one_request_many_samples(engine):
    results = list(engine.generate(requests(6, stop=("zz",), top_p=0.9)))
    assert engine._llm.enable_prefix_caching and engine._llm.gpu_memory_utilization == 0.5
    assert engine.model.startswith(f"{engine._llm.model}@")
    assert [len(prompts) for prompts, _, _ in engine._llm.calls] == [4, 2]
    for result, request in zip(results, requests(6, stop=("zz",), top_p=0.9), strict=True):
        assert result.request == request
        assert len(result.choices) == 3 and len({choice.text for choice in result.choices}) == 3
        assert result.usage["prompt_tokens"] == len(request.prompt.encode())
        assert 3 <= result.usage["completion_tokens"] <= 24
    assert [result.usage.get("cached_tokens") for result in results] == [None, 2, 2, 2, None, 2]
    _, params, _ = engine._llm.calls[0]
    assert [p.seed for p in params] == [derive_seed(42, f"q{i}", "cot", 0) for i in range(4)]
    assert {(p.n, p.temperature, p.top_p, p.max_tokens, tuple(p.stop)) for p in params} == {(3, 0.7, 0.9, 8, ("zz",))}


def test_the_batch_changes_nothing(engine):
    together = {r.request.question_id: r.choices for r in engine.generate(requests(6))}
    engine.batch_size = 1
    alone = {r.request.question_id: r.choices for r in engine.generate(reversed(requests(6)))}
    assert alone == together
    fewer = {r.request.question_id: r.choices for r in engine.generate(requests(6, n=2))}
    assert fewer == {key: choices[:2] for key, choices in together.items()}


def test_stop_strings_and_lengths(engine):
    (free,) = engine.generate(requests(1, n=1, max_tokens=30))
    assert free.choices[0].finish_reason == "length"
    stop = free.choices[0].text[5:7]
    (cut,) = engine.generate(requests(1, n=1, max_tokens=30, stop=(stop,)))
    assert cut.choices[0][:2] == (free.choices[0].text[: free.choices[0].text.index(stop)], "stop")


def test_logprobs_equal_a_full_forward_pass(engine):
    """With EOS, at temperature 1, and up to the end of the kept text."""
    tokenizer, ends = engine.tokenizer, set()
    free = [result.choices for result in engine.generate(requests(6, max_tokens=60))]
    for stop in ((), tuple(string.ascii_lowercase + string.digits)):
        for result, uncut in zip(engine.generate(requests(6, max_tokens=60, stop=stop)), free, strict=True):
            for choice, whole in zip(result.choices, uncut, strict=True):
                prompt = tokenizer(result.request.prompt)["input_ids"]
                text = tokenizer(choice.text)["input_ids"]
                if "\ufffd" in choice.text:
                    continue  # Its bytes cannot be told from the text.
                ended = choice.finish_reason == "stop" and choice.text == whole.text
                ids = torch.tensor([prompt + text + ([tokenizer.eos_token_id] if ended else [])])
                with torch.no_grad():
                    logprobs = engine._llm._model(input_ids=ids).logits.log_softmax(-1)
                of_tokens = logprobs[0, :-1].gather(1, ids[0, 1:, None])[len(prompt) - 1 :]
                expected = of_tokens.mean().item() if len(of_tokens) else None
                assert choice.logprob == (expected if expected is None else pytest.approx(expected, abs=1e-4))
                ends.add((choice.finish_reason, ended))
    assert ("stop", False) in ends


def test_prompts_without_room(engine):
    batch = [
        SampleRequest("long", "cot", "x" * 512),
        SampleRequest("empty", "cot", ""),
        SampleRequest("tight", "cot", "x" * 509, SamplingParams(max_tokens=50)),
    ]
    results = {result.request.question_id: result for result in engine.generate(batch)}
    assert "512 tokens leaves no room" in results["long"].error and not results["long"].retry
    assert "empty" in results["empty"].error
    assert results["tight"].usage["completion_tokens"] <= 3


def test_messages_go_through_the_chat_template(engine):
    messages = [{"role": "user", "content": "Hi"}]
    with pytest.raises(ValueError, match="no chat template.*few_shot_text"):
        list(engine.generate([SampleRequest("q", "cot", messages)]))
    engine.tokenizer.chat_template = "<{% for m in messages %}{{ m['content'] }}{% endfor %}>"
    (chat,) = engine.generate([SampleRequest("q", "cot", messages)])
    (plain,) = engine.generate([SampleRequest("q", "cot", "<Hi>")])
    assert chat.choices == plain.choices


def test_adapters_are_refused(vllm, tmp_path):
    from md_trl.sampling.engines.vllm import VLLMEngine

    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(ValueError, match="is an adapter.*merge_and_unload"):
        VLLMEngine(str(tmp_path))


def test_command(vllm, folder, tmp_path, capsys):
    args = SampleArguments(
        task="stories", limit=3, n=2, engine="vllm", model=folder, max_tokens=5, store=str(tmp_path / "t.db")
    )
    run(args)
    assert "12 thoughts from 6 requests" in capsys.readouterr().out
    run(args)
    assert "0 thoughts from 0 requests" in capsys.readouterr().out
    with Store(tmp_path / "t.db") as store:
        assert len(store.thoughts()) == 12
