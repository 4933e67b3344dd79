"""
Every causal architecture of transformers as a tiny random model, trained by [`MDTrainer`] and by a slow loop.

The models are built from their config classes with sizes that any machine can run: as many layers as it takes to have
every kind of layer once, widths of 32, sliding windows of 16. `compare` trains one batch of branching thoughts, which
are longer than the windows, and compares loss and gradient with the objective written plainly over single, unpadded
sequences.

As a command, it prints a table of what each layout does to each architecture:

    python tests/architectures.py [--layout tree packed padded] [--attention eager] [NAME ...]
"""

import argparse
import ast
import copy
import dataclasses
import logging
import tempfile
import time
import traceback

import datasets
import torch
import torch.nn.functional as F
import transformers
from students import byte_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from md_trl.errors import InputError
from md_trl.trainer import MDConfig, MDTrainer


TOLERANCE = 1e-4
"""Relative error of loss and gradient in float32, up to which two ways to compute them agree."""

_SIZES = """
    258: vocab_size decoder_vocab_size vocab_size_per_layer_input audio_vocab_size pronunciation_vocab_size
    258: shape_vocab_size
    32: hidden_size d_model n_embd emb_dim embedding_size input_embedding_size output_embedding_size embedding_dim
    32: word_embed_proj_dim hidden_size_per_layer_input lru_width moe_intermediate_size
    32: shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size
    32: moe_shared_expert_intermediate_size prompt_mid_dim shared_experts_intermediate_size router_hidden_size
    32: pronunciation_embed_dim shape_embed_dim encoder_hash_byte_group_vocab hidden_size_global zero_expert_num
    32: split_ngram_parts ngram_vocab_size_base
    64: intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner dff dim_ff d_inner ffn_hidden_size
    64: mamba_d_ssm feed_forward_size intermediate_size_mlp dense_intermediate_size attention_hidden_size
    2: num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers
    2: num_encoder_layers num_blocks num_experts_per_tok moe_topk moe_k top_k_experts hc_count heads_per_ngram
    2: index_topk_blocks
    4: num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads attention_heads
    4: num_decoder_attention_heads num_encoder_attention_heads swa_num_attention_heads num_experts n_routed_experts
    4: num_local_experts moe_num_experts linear_num_key_heads linear_num_value_heads linear_num_heads
    4: num_key_value_heads num_kv_heads swa_num_key_value_heads
    8: head_dim v_head_dim qk_rope_head_dim qk_nope_head_dim index_head_dim attention_head_size d_head dim_head
    8: swa_head_dim kv_channels rotary_dim linear_key_head_dim linear_value_head_dim linear_head_dim mamba_d_head
    8: mamba_head_dim state_size ssm_state_size mamba_d_state kv_lora_rank q_lora_rank o_lora_rank hc_lowrank
    8: laurel_rank num_codebooks
    16: sliding_window window_size attention_window_size local_attention attention_chunk_size sliding_window_size
    16: keep_window_size chunk_size mamba_chunk_size block_size index_topk index_n_heads index_block_size
    16: local_attn_chunk_length lsh_attn_chunk_length
    512: max_position_embeddings n_positions n_ctx max_seq_len max_target_positions context_length
    1: pad_token_id n_shared_experts num_shared_experts moe_num_shared_experts n_group topk_group max_window_layers
    1: index_local_blocks
    0: eos_token_id bos_token_id num_kv_shared_layers num_nextn_predict_layers num_mtp_layers
    0.2: initializer_range init_std
    0.0: router_jitter_noise input_jitter_noise
    True: is_decoder use_sliding_window
    False: output_router_logits
"""
SIZES = {
    name: ast.literal_eval(size)
    for size, _, names in (line.partition(":") for line in _SIZES.strip().splitlines())
    for name in names.split()
}
"""Value of a field, in the config of every architecture that has it; an `initializer_range` of 0.2 keeps predictions
far from uniform, so that a mistake shows."""

MIXED = ["sliding_attention", "full_attention"]
SPECIAL = {
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 8},
    "big_bird": {"attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]} for kind in MIXED
        }
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 64},
    },
    "deepseek_v4": {"compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}},
    "dots3_note_text": {"head_dim": 16, "swa_head_dim": 16, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4}
    | {"swa_q_lora_rank": 8, "swa_kv_lora_rank": 8, "swa_qk_nope_head_dim": 8, "swa_qk_rope_head_dim": 8}
    | {"swa_v_head_dim": 8},
    "dots3_note_vision_encoder": {"mlp_layer_types": ["dense", "dense"], "adapter_in_dim": 32, "adapter_out_dim": 32},
    "dots3_note_audio_encoder": {"adapter_input_size": 32, "adapter_out_dim": 32},
    "falcon_h1": {"mamba_n_heads": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"mamba_n_heads": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "laguna": {"layer_types": MIXED},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "llama4_text": {"no_rope_layer_interval": 2},
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "mellum": {"layer_types": MIXED},
    "mimo_v2_flash": {"num_attention_heads": 8},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"], "index_n_heads": 4},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 16,
        "indexer_compress_ratio": 2,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds": False},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"]},
    "zaya": {"layer_types": ["hybrid", "hybrid_sliding"], "num_experts_per_tok": 1},
}
"""Fields of one architecture that need another value than `SIZES` or the default gives them."""

VARIANTS = {
    "falcon-alibi": ("falcon", {"alibi": True}),
    "bert-encoder": ("bert", {"is_decoder": False}),
}
"""Further rows of the table: an architecture with an option that changes which layout it can take."""

NOT_BUILT = {
    "gemma3n": "its vision tower needs timm; its text model is `gemma3n_text`",
    "gemma4_assistant": "a draft head that reads the states of the model it drafts for",
    "gemma4_unified_assistant": "a draft head that reads the states of the model it drafts for",
    "musicgen": "its tokens are audio codes of several codebooks",
    "musicgen_melody": "its tokens are audio codes of several codebooks",
}
"""Architectures without a row, and why."""

ARCHITECTURES = [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in NOT_BUILT] + list(VARIANTS)


def tiny_config(config_class: type[PreTrainedConfig], **special) -> PreTrainedConfig:
    """A config of small sizes, with as many layers as it has kinds of them."""
    values = {}
    for field in dataclasses.fields(config_class):
        if field.name in SIZES:
            values[field.name] = SIZES[field.name]
        elif "drop" in field.name and isinstance(field.default, float):
            values[field.name] = 0.0
    if config_class.sub_configs:
        default = config_class()
        for name in config_class.sub_configs:
            if isinstance(part := getattr(default, name), PreTrainedConfig):
                values[name] = tiny_config(type(part), **SPECIAL.get(part.model_type, {})).to_dict()
    values |= special
    for name in ("layer_types", "layers_block_type"):
        if name in config_class.__dataclass_fields__ and name not in special:
            kinds = list(dict.fromkeys(getattr(config_class(**values | {"num_hidden_layers": 12}), name)))
            values |= {name: kinds if len(kinds) > 1 else 2 * kinds, "num_hidden_layers": max(2, len(kinds))}
    return config_class(**values)


def tiny_model(architecture: str, **options) -> PreTrainedModel:
    """A random causal model of an architecture, the same at every call."""
    model_type, special = VARIANTS.get(architecture, (architecture, SPECIAL.get(architecture, {})))
    config = tiny_config(CONFIG_MAPPING[model_type], **special)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    assert size < 5e6, f"{architecture} has {size / 1e6:.0f}M parameters"
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, **options)


QUESTIONS = [
    {
        "id": "q/0",
        "question": "Ann has 3 pens and buys 2. How many?",
        "type": 3,
        "lambda": 0.25,
        "cot": ["She has 3 + 2 = 5. It is 5.", "She has 5 in all.", "3 and 2 make 5."],
        "pot": ["x = 3\nprint(x + 2)", "x = 3\ny = 2\nprint(x + y)"],
    },
    {"id": "q/1", "question": "7 * 8?", "type": 1, "lambda": 1.0, "cot": ["So 56."], "pot": ["print(7 * 8)"]},
]
"""Mixed rows whose thoughts branch at several places, beyond the windows of the models."""
TRIGGERS = {"cot": "Let's think step by step.", "pot": "Let's break down the code step by step."}


def plain_loss(model: PreTrainedModel) -> torch.Tensor:
    """The objective of Sec. 3.2 over single sequences, without padding and without arguments of the trainer."""
    tokenizer = byte_tokenizer()
    total = 0.0
    for row in QUESTIONS:
        weights = {"cot": 1 - row["lambda"], "pot": row["lambda"]} if row["type"] == 3 else {"cot": 1.0, "pot": 1.0}
        for path, weight in weights.items():
            prompt = tokenizer(f"{row['question']}\n{TRIGGERS[path]}\n").input_ids
            for text in row[path]:
                thought = tokenizer(text).input_ids + [tokenizer.eos_token_id]
                logits = model(input_ids=torch.tensor([prompt + thought]), use_cache=False).logits[0]
                loss = F.cross_entropy(logits[len(prompt) - 1 : -1], torch.tensor(thought))
                total = total + weight * loss / len(row[path])
    return total / len(QUESTIONS)


def gradient(model: PreTrainedModel, loss: torch.Tensor) -> torch.Tensor:
    """The gradient of a loss in all parameters, as one vector."""
    model.zero_grad()
    loss.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters() if p.requires_grad]
    return torch.cat([gradient.flatten() for gradient in gradients])


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@dataclasses.dataclass
class Outcome:
    """What training one architecture in one layout came to."""

    architecture: str
    layout: str
    taken: str | None = None
    loss_error: float = float("nan")
    gradient_error: float = float("nan")
    refusal: str | None = None
    crash: str | None = None

    @property
    def verdict(self) -> str:
        if self.refusal:
            return "refused"
        if self.crash:
            return "crashes"
        if not max(self.loss_error, self.gradient_error) <= TOLERANCE:
            return "WRONG"
        return "exact" if self.taken == self.layout else "falls back"


def compare(architecture: str, layout: str = "tree", attention: str | None = None, **config) -> Outcome:
    """Train one batch of an architecture in a layout, and compare it with single sequences."""
    outcome = Outcome(architecture, layout)
    model = tiny_model(architecture, attn_implementation=attention)
    try:
        expected_loss = plain_loss(model.eval())
        expected_gradient = gradient(model, expected_loss)
    except (AssertionError, ValueError):  # Reformer has a reverse pass of its own, for rows of certain lengths
        expected_loss = expected_gradient = torch.tensor(float("nan"))
    with tempfile.TemporaryDirectory() as folder:
        args = MDConfig(
            folder,
            layout=layout,
            rationales_per_path="all",
            per_device_train_batch_size=len(QUESTIONS),
            use_cpu=True,
            router_aux_loss_coef=0.0,
            report_to="none",
            disable_tqdm=True,
            **config,
        )
        try:
            trainer = MDTrainer(model, args, None, copy.deepcopy(QUESTIONS), processing_class=byte_tokenizer())
            outcome.taken = trainer.data_collator.layout
            (batch,) = trainer.get_train_dataloader()
            loss = trainer.compute_loss(model.train(), batch)
            found_gradient = gradient(model, loss)
        except InputError as error:
            outcome.refusal = str(error)
            return outcome
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            message = str(error).strip().split("\n")[0]
            outcome.crash = f"{type(error).__name__}: {message} ({where.name}, line {where.lineno})"
            return outcome
    outcome.loss_error = relative_error(loss.detach(), expected_loss.detach())
    outcome.gradient_error = relative_error(found_gradient, expected_gradient)
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("names", nargs="*", metavar="NAME", help="Architectures, all by default.")
    parser.add_argument("--layout", nargs="+", default=["tree"], choices=["tree", "packed", "padded"])
    parser.add_argument("--attention", help="Attention implementation, the model's own by default.")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    for name in options.names or ARCHITECTURES:
        for layout in options.layout:
            start = time.perf_counter()
            outcome = compare(name, layout, options.attention)
            print(
                f"{name:26} {layout:7} {outcome.verdict:10} {outcome.taken or '-':7} {outcome.loss_error:8.1e} "
                f"{outcome.gradient_error:8.1e} {time.perf_counter() - start:5.1f} s",
                outcome.refusal or outcome.crash or "",
                flush=True,
            )


if __name__ == "__main__":
    main()
