"""Masks of trees and packed rows, and attention by segments, against transformers on each sequence alone."""

import inspect
import random

import pytest
import torch
from students import byte_tokenizer
from test_trainer import ROWS, reference_loss, relative_error, train
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.attention.varlen import varlen_attn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import (
    causal_mask_function,
    chunked_causal_mask_function,
    sdpa_mask,
    sliding_window_causal_mask_function,
)

from md_trl import MDConfig, MDTrainer
from md_trl.errors import InputError
from md_trl.trainer import varlen_attention
from md_trl.trainer.attention import BLOCK_SIZE, Reach, attention_masks, block_mask, dense_mask, layer_reaches
from md_trl.trainer.collator import MDCollator
from md_trl.trainer.prefix_tree import build_tree
from md_trl.trainer.varlen_attention import (
    NO_MASK,
    VARLEN_ATTENTION,
    segment_arguments,
    tree_segments,
    unsupported_attention,
)


SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "eos_token_id": 0,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "initializer_range": 0.2,
}
FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
MIXED = {"layer_types": [SLIDING, FULL, SLIDING, FULL], "sliding_window": 5}
REACHES = [Reach(), Reach(window=1), Reach(window=17), Reach(window=200), Reach(chunk=30), Reach(chunk=200)]

# Models with layers of one kind and of several kinds; the windows are shorter than the sequences
MODELS = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 5},
    "gemma2": MIXED,
    "gemma3_text": MIXED,
    "gemma4_text": MIXED | {"global_head_dim": 8, "num_kv_shared_layers": 0, "vocab_size_per_layer_input": 64},
    "olmo3": MIXED,
    "cohere2": MIXED,
    "gpt_oss": MIXED | {"num_local_experts": 2, "num_experts_per_tok": 2},
    "llama4_text": {
        "layer_types": [CHUNKED, CHUNKED, CHUNKED, FULL],
        "attention_chunk_size": 6,
        "num_local_experts": 2,
        "intermediate_size_mlp": 64,
    },
}


def small_model(name, implementation="eager", **config):
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **SMALL | MODELS[name] | config)
    return AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()


def random_trees(rng, count, prompt=(1, 10), thought=(1, 14)):
    """Trees of sequences that share a prompt, and beginnings after it."""
    trees = []
    for _ in range(count):
        shared = [rng.randrange(3, 64) for _ in range(rng.randint(*prompt))]
        found = [
            shared + [rng.randrange(3, 5) for _ in range(rng.randint(*thought))] for _ in range(rng.randint(1, 5))
        ]
        trees.append((build_tree(found), found))
    return trees


def laid_out(rows, width=None):
    """Tokens, positions and ends of rows of trees, as the collator makes them."""
    width = width or max(sum(len(tree.tokens) for tree, _ in row) for row in rows)
    tokens, positions = torch.ones(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    ends = torch.arange(1, width + 1).repeat(len(rows), 1)
    for number, row in enumerate(rows):
        start = 0
        for tree, _ in row:
            place = slice(start, start + len(tree.tokens))
            tokens[number, place] = torch.from_numpy(tree.tokens)
            positions[number, place] = torch.from_numpy(tree.depths)
            ends[number, place] = torch.from_numpy(tree.ends + start)
            start = place.stop
    return tokens, positions, ends


def filled_rows(rng, count, width):
    """Rows of trees with prompts long enough for blocks of FlexAttention that are wholly visible."""
    rows = []
    for _ in range(count):
        row, free = [], width
        while True:
            [made] = random_trees(rng, 1, prompt=(5, 300), thought=(20, 150))
            if len(made[0].tokens) > free:
                break
            row.append(made)
            free -= len(made[0].tokens)
        rows.append(row)
    return laid_out(rows, width)


def assert_equal_to_single_sequences(model, rows, **arguments):
    """Logits of every node, and gradients of their sum, weighted at random."""
    tokens, positions, _ = laid_out(rows)
    logits = model(input_ids=tokens, position_ids=positions, use_cache=False, **arguments).logits
    expected, found = [], []
    for number, row in enumerate(rows):
        start = 0
        for tree, sequences in row:
            for path, sequence in zip(tree.paths, sequences, strict=True):
                found.append(logits[number, torch.from_numpy(path + start)])
                expected.append(model(input_ids=torch.tensor([sequence]), use_cache=False).logits[0])
            start += len(tree.tokens)
    found, expected = torch.cat(found), torch.cat(expected)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    torch.manual_seed(1)
    weights = torch.randn_like(expected)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = [
        torch.autograd.grad((weights * of).sum(), parameters, allow_unused=True, materialize_grads=True)
        for of in (found, expected)
    ]
    difference = sum((one - other).double().pow(2).sum() for one, other in zip(*gradients, strict=True))
    assert difference.sqrt() <= 1e-5 * sum(other.double().pow(2).sum() for other in gradients[1]).sqrt()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("packed", [False, True])
def test_masks_per_kind_of_layer_equal_single_sequences(name, packed):
    rng = random.Random(0)
    trees = random_trees(rng, 6)
    if packed:
        trees = [(build_tree([sequence]), [sequence]) for _, sequences in trees for sequence in sequences]
    rows = [trees[::2], trees[1::2]]
    _, positions, ends = laid_out(rows)
    # SDPA knows no attention sinks and no soft-capped scores
    for implementation in ("eager",) if name in ("gpt_oss", "gemma2") else ("eager", "sdpa"):
        model = small_model(name, implementation)
        masks = attention_masks(ends, positions, layer_reaches(model.config), implementation)
        kinds = set(MODELS[name].get("layer_types", ())) or ({FULL, SLIDING} if name == "qwen2" else set())
        assert (set(masks) if isinstance(masks, dict) else set()) == kinds
        assert_equal_to_single_sequences(model, rows, attention_mask=masks)


@pytest.mark.parametrize("reach", REACHES)
def test_a_reach_is_that_of_transformers(reach):
    if reach.window is not None:
        function = sliding_window_causal_mask_function(reach.window)
    elif reach.chunk is not None:
        function = chunked_causal_mask_function(reach.chunk, left_padding=torch.zeros(1, dtype=torch.long))
    else:
        function = causal_mask_function
    expected = sdpa_mask(1, 256, 256, mask_function=function, allow_is_causal_skip=False)
    sequence = torch.arange(256)[None]
    assert torch.equal(dense_mask(torch.full_like(sequence, 256), sequence, reach), expected)


def test_layers_that_see_all_of_the_longest_sequence_need_no_mask_of_their_own():
    config = AutoConfig.for_model("gemma3_text", **SMALL | MIXED)
    assert layer_reaches(config) == layer_reaches(config, 6) == {FULL: Reach(), SLIDING: Reach(window=5)}
    assert layer_reaches(config, 5) == {FULL: Reach(), SLIDING: Reach()}
    _, positions, ends = laid_out([random_trees(random.Random(0), 2)])
    assert isinstance(attention_masks(ends, positions, layer_reaches(config, 5), "sdpa"), torch.Tensor)
    assert layer_reaches(AutoConfig.for_model("llama4_text", attention_chunk_size=6), 6)[CHUNKED] == Reach()
    assert layer_reaches(AutoConfig.for_model("gpt2")) == {FULL: Reach()}


def test_layers_without_attention_get_what_they_are_given():
    config = AutoConfig.for_model(
        "lfm3", **SMALL | {"layer_types": ["conv", FULL, SLIDING, FULL], "sliding_window": 5}
    )
    assert layer_reaches(config) == {FULL: Reach(), SLIDING: Reach(window=5)}
    assert layer_reaches(AutoConfig.for_model("falcon_h1")) == {FULL: Reach()}
    _, positions, ends = laid_out([random_trees(random.Random(0), 2)])
    masks = attention_masks(ends, positions, {FULL: Reach()}, "sdpa", other_masks={"conv": "paths"})
    assert set(masks) == {FULL, "conv"} and masks["conv"] == "paths"


def listed_blocks(number, indices):
    blocks = torch.zeros(number.shape[0], number.shape[2], number.shape[2], dtype=torch.bool)
    for row, query in torch.cartesian_prod(*map(torch.arange, blocks.shape[:2])).tolist():
        blocks[row, query, indices[row, 0, query, : number[row, 0, query]].long()] = True
    return blocks


@pytest.mark.parametrize("reach", REACHES)
def test_blocks_of_flex_attention_equal_the_dense_mask(reach):
    _, positions, ends = filled_rows(random.Random(0), count=3, width=8 * BLOCK_SIZE)
    dense, mask = dense_mask(ends, positions, reach), block_mask(ends, positions, reach)
    partial = listed_blocks(mask.kv_num_blocks, mask.kv_indices)
    whole = listed_blocks(mask.full_kv_num_blocks, mask.full_kv_indices)
    by_block = dense.view(3, 8, BLOCK_SIZE, 8, BLOCK_SIZE)
    visible, all_visible = by_block.any(4).any(2), by_block.all(4).all(2)
    assert not (partial & whole).any()
    assert not (visible & ~(partial | whole)).any()  # skips nothing that somebody attends to
    assert not (whole & ~all_visible).any()  # asks for the mask wherever it matters
    related = dense_mask(ends, positions).view(by_block.shape).any(4).any(2)
    assert not ((partial | whole) & ~related).any()
    if reach == Reach():
        assert torch.equal(partial | whole, visible) and torch.equal(whole, all_visible) and whole.any()
    query, key, value = torch.randn(3, 3, 2, 8 * BLOCK_SIZE, 8)
    found = flex_attention(query, key, value, block_mask=mask)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=dense)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("reach", REACHES[:4])
def test_compiled_flex_attention_equals_the_dense_mask(reach):
    _, positions, ends = filled_rows(random.Random(0), count=2, width=6 * BLOCK_SIZE)
    query, key, value = torch.randn(3, 2, 2, 6 * BLOCK_SIZE, 16)
    torch._dynamo.reset()
    found = torch.compile(flex_attention)(query, key, value, block_mask=block_mask(ends, positions, reach))
    mask = dense_mask(ends, positions, reach)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_no_tensor_of_a_block_mask_has_an_entry_per_pair_of_nodes():
    _, positions, ends = filled_rows(random.Random(0), count=1, width=32 * BLOCK_SIZE)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        block_mask(ends, positions, Reach(window=300))
    assert max(event.self_cpu_memory_usage for event in profiled.events()) < ends.numel() ** 2 / 1000


@pytest.mark.parametrize("reach", [Reach(), Reach(window=17)])
def test_flex_attention_is_not_compiled_again_for_every_batch(reach):
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(flex_attention, backend=counter)
    counts = []
    for number, (rows, blocks) in enumerate([(2, 2), (2, 3), (3, 5), (2, 8), (4, 4), (5, 6), (3, 7)]):
        _, positions, ends = filled_rows(random.Random(number), rows, blocks * BLOCK_SIZE)
        query = torch.randn(rows, 2, blocks * BLOCK_SIZE, 8)
        compiled(query, query, query, block_mask=block_mask(ends, positions, reach))
        counts.append(counter.frame_count)
    assert counts[-1] == counts[2] <= 3  # the first shape, any length, any number of rows


def test_segments_of_a_tree_are_its_runs_from_leaf_to_leaf():
    tree = build_tree([[1, 2, 3, 4], [1, 2, 5], [1, 2], [6]])
    lengths, paths = tree_segments(tree)
    assert lengths.tolist() == [4, 1, 1]
    assert [path.tolist() for path in paths] == [[0, 1, 2, 3], [0, 1, 4], [5]]
    arguments = segment_arguments([[tree], [build_tree([[7, 8]])]], width=8)
    assert arguments["query_starts"].tolist() == [0, 4, 5, 6, 8, 10, 16]
    assert arguments["keys"].tolist() == [0, 1, 2, 3, 0, 1, 4, 5, 6, 7, 8, 9, *range(10, 16)]
    assert arguments["key_starts"].tolist() == [0, 4, 7, 8, 10, 12, 18]
    assert arguments["longest_segment"] == arguments["longest_path"] == 128


def kernel_by_its_documentation(*args, **kwargs):
    """`varlen_attn` in plain tensor operations: causal, aligned to the last key, within a window to the left."""
    bound = inspect.signature(varlen_attn).bind(*args, **kwargs)
    bound.apply_defaults()
    call = bound.arguments
    query, key, value = call["query"], call["key"], call["value"]
    left, right = call["window_size"]
    assert right == 0 and call["enable_gqa"] and call["return_aux"] is None
    assert call["cu_seq_q"].dtype == call["cu_seq_k"].dtype == torch.int32
    group, outputs = query.shape[1] // key.shape[1], []
    for i in range(len(call["cu_seq_q"]) - 1):
        q = query[call["cu_seq_q"][i] : call["cu_seq_q"][i + 1]]
        of_keys = slice(call["cu_seq_k"][i], call["cu_seq_k"][i + 1])
        k, v = (states[of_keys].repeat_interleave(group, dim=1) for states in (key, value))
        assert len(q) <= call["max_q"] and len(k) <= call["max_k"]
        distance = torch.arange(len(q))[:, None] + len(k) - len(q) - torch.arange(len(k))
        hidden = (distance < 0) | ((distance > left) if left >= 0 else False)
        scores = torch.einsum("qhd,khd->hqk", q, k) * call["scale"]
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v))
    return torch.cat(outputs)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "gemma3_text", "olmo3", "cohere2"])
@pytest.mark.parametrize("path", ["loop", "kernel"])
def test_attention_by_segments_equals_single_sequences(monkeypatch, name, path):
    if path == "kernel":  # the call for CUDA, answered by its documentation
        monkeypatch.setattr(varlen_attention, "varlen_attn", kernel_by_its_documentation)
        monkeypatch.setattr(varlen_attention, "_loop_over_segments", varlen_attention._call_kernel)
    rng = random.Random(0)
    trees = random_trees(rng, 4)
    trees += [(build_tree([sequence]), [sequence]) for _, sequences in random_trees(rng, 2) for sequence in sequences]
    rng.shuffle(trees)
    rows = [trees[:3], trees[3:]]
    tokens, _, _ = laid_out(rows)
    segments = segment_arguments([[tree for tree, _ in row] for row in rows], tokens.shape[1])
    model = small_model(name, VARLEN_ATTENTION)
    assert_equal_to_single_sequences(model, rows, attention_mask=NO_MASK, segments=segments)


def test_without_segments_a_model_attends_as_with_sdpa():
    model, inputs = small_model("mistral", VARLEN_ATTENTION), torch.randint(3, 64, (2, 20))
    mask = torch.ones_like(inputs)
    mask[0, :7] = 0  # padding on the left
    found = model.generate(input_ids=inputs, attention_mask=mask, max_new_tokens=5, do_sample=False)
    expected = small_model("mistral", "sdpa").generate(
        input_ids=inputs, attention_mask=mask, max_new_tokens=5, do_sample=False
    )
    assert torch.equal(found, expected)


def test_attention_by_segments_refuses_what_its_kernel_lacks():
    model = small_model("llama", VARLEN_ATTENTION)
    with pytest.raises(InputError, match="LlamaAttention does not hand the arguments .* on to its attention"):
        model(input_ids=torch.ones(1, 3, dtype=torch.long), attention_mask=NO_MASK)
    model = small_model("gpt_oss", VARLEN_ATTENTION)
    with pytest.raises(InputError, match="does not support .* soft-capped scores, attention sinks"):
        model(input_ids=torch.ones(1, 3, dtype=torch.long))


@pytest.mark.parametrize(
    ("name", "implementation"),
    [("qwen2", "sdpa"), ("olmo3", "sdpa"), ("gemma3_text", "sdpa"), ("gpt_oss", "eager"), ("llama4_text", "sdpa")]
    + [(name, VARLEN_ATTENTION) for name in ("llama", "mistral", "qwen2", "gemma3_text")],
)
def test_the_trainer_has_the_gradients_of_single_sequences(tmp_path, name, implementation):
    for layout in ("padded", "packed", "tree"):
        model = small_model(name, implementation, vocab_size=258)
        trainer, [found] = train(tmp_path, model, ROWS, layout=layout, router_aux_loss_coef=0.0)
        assert trainer.data_collator.layout == layout
        model.zero_grad()
        expected_loss = reference_loss(model.eval(), byte_tokenizer(), ROWS)
        expected_loss.backward()
        expected = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert trainer.state.log_history[0]["loss"] == pytest.approx(expected_loss.item(), rel=1e-5)
        assert relative_error(found, expected) < 1e-5


def drawn_questions(count, seed=0):
    """Questions as the data loader draws them, with two thoughts each."""
    rng, questions = random.Random(seed), []
    for _ in range(count):
        prompt = [rng.randrange(3, 64) for _ in range(rng.randint(30, 60))]
        thoughts = [
            {"input_ids": prompt + [rng.randrange(3, 64) for _ in range(rng.randint(5, 40))], "start": len(prompt)}
            | {"path": path, "weight": 0.5, "share": 1.0}
            for path in ("cot", "pot")
        ]
        questions.append({"type": 3, "lambda": 0.5, "divisor": 1, "thoughts": thoughts})
    return questions


@pytest.mark.parametrize("layout", ["packed", "tree"])
def test_a_batch_is_a_single_row_where_attention_skips_what_is_masked(layout):
    questions = drawn_questions(20)
    nodes = {}
    for attention in ("sdpa", "flex_attention", VARLEN_ATTENTION):
        batch = MDCollator(1, layout, "mean", attention=attention)(questions)
        nodes[attention] = batch["num_nodes"].item()
        assert (len(batch["input_ids"]) == 1) == (attention != "sdpa")
        assert ("segments" in batch) == (attention == VARLEN_ATTENTION)
    assert nodes["flex_attention"] == nodes[VARLEN_ATTENTION] <= nodes["sdpa"]
    for attention in ("sdpa", "flex_attention", VARLEN_ATTENTION):
        batch = MDCollator(1, layout, "mean", max_row_tokens=256, attention=attention)(questions)
        assert batch["input_ids"].shape[1] <= 256
        assert attention != "flex_attention" or batch["input_ids"].shape[1] % BLOCK_SIZE == 0
        assert batch["input_ids"].numel() <= 1.3 * batch["num_nodes"].item() or attention == "sdpa"


def test_a_row_holds_max_length_tokens_with_dense_masks_and_max_row_tokens_if_set(tmp_path):
    for options, implementation, expected in (
        ({}, "sdpa", 300),
        ({}, VARLEN_ATTENTION, None),
        ({"max_row_tokens": 900}, "sdpa", 900),
        ({"max_row_tokens": 900}, VARLEN_ATTENTION, 900),
    ):
        args = MDConfig(str(tmp_path), use_cpu=True, max_length=300, report_to="none", **options)
        model = small_model("llama", implementation, vocab_size=258)
        trainer = MDTrainer(model, args, train_dataset=ROWS, processing_class=byte_tokenizer())
        assert trainer.data_collator.max_row_tokens == expected
    with pytest.raises(InputError, match="`max_row_tokens` must be at least 1, got 0"):
        MDConfig(str(tmp_path), use_cpu=True, max_row_tokens=0)


def test_attention_without_masks_is_named_with_the_way_out():
    assert unsupported_attention("sdpa", {FULL: Reach()}) is None
    assert unsupported_attention(VARLEN_ATTENTION, {FULL: Reach(), SLIDING: Reach(window=5)}) is None
    assert "chunked attention" in unsupported_attention(VARLEN_ATTENTION, {CHUNKED: Reach(chunk=5)})
    assert "with md_trl_varlen" in unsupported_attention("flash_attention_2", {FULL: Reach()})
