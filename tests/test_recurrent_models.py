"""Sampling models with recurrent states or convolutions beside attention, against a slow loop without a cache."""

import pytest
import torch
from architectures import tiny_model
from students import byte_tokenizer
from test_engines import slow_pick

from md_trl.records import SamplingParams
from md_trl.sampling.engines import SampleRequest, mean_logprob
from md_trl.sampling.engines.decoding import decode
from md_trl.sampling.engines.transformers import TransformersEngine


ENDS = list(range(0, 258, 20))


def slow_sample(model, tokenizer, request, index):
    """Text and mean log-probability of a sample whose tokens each take a forward pass over everything before."""
    prompt, ids, logprobs = tokenizer(request.prompt)["input_ids"], [], []
    generator = torch.Generator().manual_seed(request.seed(index))
    while len(ids) < request.params.max_tokens and not (ids and ids[-1] in ENDS):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[0, -1]
        ids.append(slow_pick(logits.float().double().numpy(), request.params, generator))
        logprobs.append(logits.log_softmax(-1)[ids[-1]].item())
    text = ids[:-1] if ids[-1] in ENDS else ids
    return decode(tokenizer, text), mean_logprob(logprobs)


@pytest.mark.parametrize("name", ["lfm2", "qwen3_next", "jamba", "falcon_h1"])
def test_samples_equal_a_slow_loop(name):
    model, tokenizer = tiny_model(name).double().eval(), byte_tokenizer()
    if model.config.get_text_config().to_dict().get("num_experts"):
        model.set_experts_implementation("eager")  # The fast one knows no float64.
    model.generation_config.eos_token_id = ENDS
    engine = TransformersEngine(model, tokenizer, batch_size=6)
    prompts = ["Dan has 4.", "Ann has 3.", "Who?", "Why?", "Dan had 4 dollars."]
    requests = [
        SampleRequest(f"q{i}", "cot", prompt, SamplingParams(max_tokens=8 + 4 * i), n=2)
        for i, prompt in enumerate(prompts)
    ]
    results = list(engine.generate(requests))
    assert len(results) == len(requests)
    for result in results:
        for index, choice in enumerate(result.choices):
            text, logprob = slow_sample(model, tokenizer, result.request, index)
            assert choice.text == text
            assert choice.logprob == pytest.approx(logprob, abs=1e-6)


def test_models_without_a_usual_cache_are_refused():
    with pytest.raises(ValueError, match="Mamba2ForCausalLM"):
        TransformersEngine(tiny_model("mamba2"), byte_tokenizer())
