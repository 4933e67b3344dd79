"""The loss over edges without logits against `F.cross_entropy` on the logits of a model's own forward pass."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from students import tiny_gpt2, tiny_llama, tiny_t5
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from md_trl.trainer import lm_head
from md_trl.trainer.lm_head import EdgeScorer, LogitTransform, edge_scores, measure_transform


SMALL = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "eos_token_id": 0,
    "pad_token_id": 1,
    "initializer_range": 0.2,
}


def small_model(name, **config):
    torch.manual_seed(0)
    model_class = AutoModelForSeq2SeqLM if name in ("bart", "mbart") else AutoModelForCausalLM
    return model_class.from_config(AutoConfig.for_model(name, **SMALL | config))


def edges(positions, vocabulary, count=40, seed=0):
    """Edges between random positions and tokens; several start from one position, and some weigh nothing."""
    generator = torch.Generator().manual_seed(seed)
    parents = torch.randint(0, positions, (count,), generator=generator)
    targets = torch.randint(0, vocabulary, (count,), generator=generator)
    weights = torch.rand(count, generator=generator)
    weights[::7] = 0.0
    return parents, targets, weights


def reference(logits, targets, weights):
    losses = F.cross_entropy(logits.float() if logits.dtype == torch.bfloat16 else logits, targets, reduction="none")
    return (losses * weights).sum(), losses, logits.argmax(-1) == targets


def gradients(model):
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_scores_of_the_own_forward(model, inputs, positions, vocabulary, chunked=True, rtol=1e-5):
    scorer = EdgeScorer(model)
    scorer.measure(lambda: model(**inputs))
    assert scorer.chunked == chunked
    parents, targets, weights = edges(positions, vocabulary)
    with scorer.scoring(parents, targets, weights):
        scores = model(**inputs)
    (scores.loss / 3).backward()
    found = gradients(model)
    logits = model(**inputs).logits.flatten(0, 1)[parents]
    loss, losses, correct = reference(logits, targets, weights)
    (loss / 3).backward()
    expected = gradients(model)
    torch.testing.assert_close(scores.loss, loss.detach(), rtol=rtol, atol=0)
    torch.testing.assert_close(scores.losses, losses.detach(), rtol=rtol, atol=rtol)
    assert torch.equal(scores.correct, correct) and not scores.losses.requires_grad
    assert set(found) == set(expected)
    largest = max(grad.abs().max() for grad in expected.values())
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=rtol * largest)


@pytest.mark.parametrize("score", [lm_head._cpu_scores, lm_head._accelerator_scores])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("transform", [LogitTransform(), LogitTransform(0.25), LogitTransform(1.5, softcap=4.0)])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_scores_of_edges_equal_the_cross_entropy_of_logits(monkeypatch, score, bias, transform, count):
    monkeypatch.setattr(lm_head, "CHUNK_SIZE", 97 * 7)  # 8 chunks of edges
    torch.manual_seed(0)
    head, states = nn.Linear(16, 97, bias=bias), torch.randn(count, 16, requires_grad=True)
    _, targets, weights = edges(1, 97, count)
    scores = score(states, head.weight, head.bias, targets, weights, transform)
    (scores.loss * 0.5).backward()
    found = [states.grad, *(p.grad for p in head.parameters())]
    states.grad = None
    head.zero_grad()
    loss, losses, correct = reference(transform(head(states)), targets, weights)
    (loss * 0.5).backward()
    torch.testing.assert_close(scores.loss, loss)
    torch.testing.assert_close(scores.losses, losses.detach())
    assert torch.equal(scores.correct, correct)
    for grad, expected in zip(found, [states.grad, *(p.grad for p in head.parameters())], strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-6)


def test_double_precision_is_kept():
    torch.manual_seed(0)
    head, states = nn.Linear(16, 97).double(), torch.randn(50, 16, dtype=torch.float64)
    _, targets, weights = edges(1, 97, 50)
    scores = edge_scores(states, head, targets, weights.double())
    loss, *_ = reference(head(states), targets, weights.double())
    torch.testing.assert_close(scores.loss, loss, rtol=1e-14, atol=0)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_scores_in_single_precision(autocast):
    torch.manual_seed(0)
    dtype = torch.float32 if autocast else torch.bfloat16
    head, states = nn.Linear(16, 97).to(dtype), torch.randn(50, 16, dtype=dtype, requires_grad=True)
    _, targets, weights = edges(1, 97, 50)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        scores = edge_scores(states, head, targets, weights)
        loss, losses, _ = reference(head(states), targets, weights)
    [found] = torch.autograd.grad(scores.loss, [states])
    [expected] = torch.autograd.grad(loss, [states])
    assert scores.losses.dtype == torch.float32 and found.dtype == dtype
    torch.testing.assert_close(scores.losses, losses.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-3)


def test_a_frozen_head_gets_no_gradient_and_an_evaluation_none_at_all():
    head, states = nn.Linear(16, 97).requires_grad_(False), torch.randn(5, 16, requires_grad=True)
    _, targets, weights = edges(1, 97, 5)
    edge_scores(states, head, targets, weights).loss.backward()
    assert states.grad is not None and head.weight.grad is None
    with torch.no_grad():
        assert not edge_scores(states, head, targets, weights).loss.requires_grad


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("llama", {}, LogitTransform()),
        ("llama", {"tie_word_embeddings": True}, LogitTransform()),
        ("gemma2", {"final_logit_softcapping": 7.0}, LogitTransform(1.0, 7.0)),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, LogitTransform(1.0, 30.0)),
        ("nanochat", {"final_logit_softcapping": 15.0}, LogitTransform(1.0, 15.0)),
        ("cohere", {"logit_scale": 0.0625}, LogitTransform(0.0625)),
        ("granite", {"logits_scaling": 8.0}, LogitTransform(0.125)),
        ("hyperclovax", {"logits_scaling": 3.0}, LogitTransform(3.0)),
        ("phi", {}, LogitTransform()),  # an LM head with a bias
    ],
)
def test_scales_and_soft_caps_are_measured(name, config, expected):
    model = small_model(name, **config).eval()
    inputs = {"input_ids": torch.randint(2, 258, (2, 20))}
    found = measure_transform(model.get_output_embeddings(), lambda: model(**inputs))
    assert found.scale == pytest.approx(expected.scale, rel=1e-6)
    assert found.softcap == (None if expected.softcap is None else pytest.approx(expected.softcap, rel=1e-6))
    assert_scores_of_the_own_forward(model, inputs, positions=40, vocabulary=258)


def test_gpt2_and_t5_are_scored_by_their_tied_heads():
    ids = torch.randint(2, 100, (2, 20))
    assert_scores_of_the_own_forward(tiny_gpt2(), {"input_ids": ids}, positions=40, vocabulary=258)
    for tied in (True, False):  # a tied T5 scales the states before its LM head
        inputs = {"input_ids": ids[:, :5], "decoder_input_ids": ids}
        assert_scores_of_the_own_forward(tiny_t5(tie_word_embeddings=tied), inputs, positions=40, vocabulary=100)


def test_a_model_that_adds_a_bias_to_its_logits_scores_with_its_own_forward():
    model = small_model("bart", d_model=32, encoder_layers=1, decoder_layers=1, decoder_start_token_id=2).eval()
    ids = torch.randint(2, 258, (2, 20))
    inputs = {"input_ids": ids[:, :5], "decoder_input_ids": ids}
    assert_scores_of_the_own_forward(model, inputs, positions=40, vocabulary=258)
    model.final_logits_bias += torch.randn_like(model.final_logits_bias)
    assert_scores_of_the_own_forward(model, inputs, positions=40, vocabulary=258, chunked=False)


@pytest.mark.parametrize(
    ("options", "chunked"),
    [
        ({"target_modules": ["q_proj", "v_proj"]}, True),
        ({"target_modules": ["q_proj", "lm_head"]}, False),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, True),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [3, 4]}, True),
    ],
)
def test_lora_beside_and_on_the_head_has_the_gradients_of_its_own_forward(options, chunked):
    model = get_peft_model(tiny_llama(), LoraConfig(r=4, lora_dropout=0.0, init_lora_weights=False, **options))
    inputs = {"input_ids": torch.randint(2, 258, (2, 20))}
    assert_scores_of_the_own_forward(model, inputs, positions=40, vocabulary=258, chunked=chunked)


def test_trainable_tokens_of_a_tied_head_are_scored_by_its_own_forward():
    model = small_model("llama", tie_word_embeddings=True)
    options = {"target_modules": ["q_proj"], "trainable_token_indices": [3, 4]}
    model = get_peft_model(model, LoraConfig(r=4, lora_dropout=0.0, init_lora_weights=False, **options))
    inputs = {"input_ids": torch.randint(2, 258, (2, 20))}
    assert_scores_of_the_own_forward(model, inputs, positions=40, vocabulary=258, chunked=False)


def test_outside_of_scoring_a_model_returns_its_logits():
    model, inputs = tiny_llama().eval(), {"input_ids": torch.randint(2, 258, (2, 20))}
    expected = model(**inputs).logits
    EdgeScorer(model).measure(lambda: model(**inputs))
    assert torch.equal(model(**inputs).logits, expected)
    assert model.generate(**inputs, max_new_tokens=2).shape == (2, 22)


def test_measuring_leaves_the_model_and_the_random_state_as_they_were():
    model = small_model("llama", attention_dropout=0.5).train()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    state = torch.get_rng_state()
    scorer = EdgeScorer(model)
    scorer.measure(lambda: model(input_ids=torch.ones(2, 20, dtype=torch.long)))
    assert scorer.chunked and model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    scorer.measure(lambda: pytest.fail("a second time"))


def test_no_more_than_a_chunk_of_logits_is_allocated(monkeypatch):
    monkeypatch.setattr(lm_head, "CHUNK_SIZE", 258 * 50)
    model, inputs = tiny_llama(), {"input_ids": torch.randint(2, 258, (2, 20))}
    scorer = EdgeScorer(model)
    largest = {}
    for chunked in (True, False):
        scorer._transform = LogitTransform() if chunked else None
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            with scorer.scoring(*edges(40, 258, count=1000)):
                model(**inputs).loss.backward()
        largest[chunked] = max(event.self_cpu_memory_usage for event in profiled.events())
    assert largest[True] <= 4 * max(258 * 50, 1000 * 32) and largest[False] == 4 * 258 * 1000


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_model_is_not_compiled_again_for_every_number_of_edges(monkeypatch, backend):
    monkeypatch.setattr(lm_head, "CHUNK_SIZE", 258 * 20)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, inputs = tiny_llama(), {"input_ids": torch.randint(2, 258, (2, 20))}
    scorer = EdgeScorer(model)
    scorer.measure(lambda: model(**inputs))
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for count in (30, 50, 70, 90):
        batch = edges(40, 258, count)
        found = []
        for run in (compiled, model):
            with scorer.scoring(*batch):
                loss = run(**inputs).loss
            loss.backward()
            found.append((loss, gradients(model)))
        (loss, grads), (expected_loss, expected) = found
        torch.testing.assert_close(loss, expected_loss)
        torch.testing.assert_close(grads, expected, rtol=1e-4, atol=1e-5)
    # The forward pass and the hook after it, each for the first number and for any number
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4
