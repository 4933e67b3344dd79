"""Drawing tokens: the right shares, and robust against floating-point noise."""

import pytest
import torch
from students import byte_tokenizer, tiny_llama

from md_trl.records import SamplingParams
from md_trl.sampling.engines import SampleRequest
from md_trl.sampling.engines.token_sampling import TokenSampler, draws_per_token
from md_trl.sampling.engines.transformers import TransformersEngine


def uniforms_of(rows, vocabulary, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 1 - torch.rand(rows, draws_per_token(vocabulary), generator=generator, dtype=torch.float64)


def invert_cdf(probabilities, uniforms):
    cumulative = probabilities.cumsum(-1)
    return torch.searchsorted(cumulative, (uniforms[:, :1] * cumulative[:, -1:]).float()).squeeze(1)


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 5, 8, 100, 257])
@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=1.5, top_p=0.7)])
def test_tokens_are_drawn_as_often_as_they_are_likely(vocabulary, params):
    draws = 100_000
    logits = 2 * torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    tokens = TokenSampler([params], logits.device)(logits.expand(draws, -1), uniforms_of(draws, vocabulary))
    expected = (logits[0].double() / params.temperature).softmax(-1)
    kept, mass = [], 0.0
    for token in expected.argsort(descending=True).tolist():
        if mass < params.top_p:
            kept.append(token)
        mass += expected[token].item()
    expected = torch.zeros_like(expected).index_copy_(0, torch.tensor(kept), expected[kept])
    expected /= expected.sum()
    counts = torch.bincount(tokens, minlength=vocabulary).double()
    assert counts[expected == 0].sum() == 0
    error = (counts / draws - expected).abs()
    assert (error <= 5 * (expected * (1 - expected) / draws).sqrt() + 1e-9).all()


def test_noise_changes_few_tokens():
    """At most noise * entropy of the tokens, whatever the size of the vocabulary."""
    rows, vocabulary, noise = 4000, 49152, 1e-3
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(1, vocabulary, generator=generator)
    logits[0, :4] += 14  # a few likely tokens and a long tail, like a language model
    noisy = logits + noise * (2 * torch.rand(1, vocabulary, generator=generator) - 1)
    uniforms = uniforms_of(rows, vocabulary)
    sampler = TokenSampler([SamplingParams(temperature=1.0)], logits.device)
    first, second = (sampler(one.expand(rows, -1), uniforms) for one in (logits, noisy))
    probabilities = logits.softmax(-1)
    bound = noise * -(probabilities * probabilities.log()).sum().item()
    assert (first != second).double().mean() <= bound
    inverted = [invert_cdf(one.softmax(-1).expand(rows, -1), uniforms) for one in (logits, noisy)]
    assert (inverted[0] != inverted[1]).double().mean() > 5 * bound


@pytest.mark.slow
def test_thoughts_in_float32_hardly_depend_on_the_batch():
    """At most 0.1% of the thoughts, as docs/sampling.md says."""

    def texts(batch_size):
        engine = TransformersEngine(tiny_llama(), byte_tokenizer(), batch_size=batch_size)
        requests = [
            SampleRequest(f"q{i}", "cot", "Dan had 4 dollars. "[: 1 + i * 7 % 19], SamplingParams(max_tokens=48), n=10)
            for i in range(100)
        ]
        return {
            (result.request.question_id, i): choice.text
            for result in engine.generate(requests)
            for i, choice in enumerate(result.choices)
        }

    first, *others = (texts(batch_size) for batch_size in (128, 32, 10))
    assert len(first) == 1000
    for other in others:
        assert sum(first[sample] != other[sample] for sample in first) <= 1
