"""The cache of the local engine follows the free memory of its device, and never changes what is sampled."""

import pytest
import torch
from students import byte_tokenizer, tiny_llama

from md_trl.records import SamplingParams
from md_trl.sampling.engines import SampleRequest, memory
from md_trl.sampling.engines.memory import cache_bytes
from md_trl.sampling.engines.transformers import TransformersEngine


def test_a_7b_model_on_48_gb_writes_several_questions_at_once(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 48e9 - 14e9)  # bf16 weights are loaded
    bytes_per_token = 2 * 32 * 32 * 128 * 2
    tokens = cache_bytes(torch.device("cpu"), None) / bytes_per_token
    assert tokens > 3 * 20 * 650  # three questions with 20 thoughts of 500 tokens and prompts of 150
    assert cache_bytes(torch.device("cpu"), 2.0) == 2e9


@pytest.mark.parametrize("free", [2e5, 2e6, 2e9])
def test_less_memory_gives_the_same_samples(monkeypatch, free):
    engine = TransformersEngine(tiny_llama().double(), byte_tokenizer())
    requests = [SampleRequest(f"q{i}", "cot", f"What is {i}?\n", SamplingParams(max_tokens=20), n=4) for i in range(6)]

    def texts():
        return {r.request.question_id: [c.text for c in r.choices] for r in engine.generate(iter(requests))}

    expected = texts()
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    assert texts() == expected
