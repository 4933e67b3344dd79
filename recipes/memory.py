"""Estimate the peak memory of a recipe's training: `python recipes/memory.py recipes/llama2-7b/svamp.yaml ...`.

Each estimate is for one GPU (or CPU) that trains alone. The model is built from its published sizes on the meta device
(PyTorch's `FakeTensorMode`), and one micro-batch is run forward and backward while the memory that its tensors would
take is counted: gradients, activations, temporary results and the chunks of the LM head. To this are added the weights
(4-bit ones with double quantization) and the two states of AdamW. Not counted: the CUDA context, the workspaces of
kernels and the fragmentation of the allocator, for which a GPU should have 2 GB to spare.

`--measure` trains a recipe for three steps instead and prints the peak resident memory of this process, less that of
the imports. It works on CPUs, for recipes with `use_cpu: true`, and takes further arguments of `md-trl train`.
"""

import argparse
import math
import resource
import tempfile
import weakref
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    T5Config,
)

from md_trl.errors import InputError
from md_trl.records import PATHS
from md_trl.trainer import lm_head


LLAMA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
CONFIGS = {
    "meta-llama/Llama-2-7b-hf": LlamaConfig(**LLAMA_7B, vocab_size=32000),
    "codellama/CodeLlama-7b-hf": LlamaConfig(**LLAMA_7B, vocab_size=32016),
    "mistralai/Mistral-7B-v0.1": MistralConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=32000,
    ),
    "openai-community/gpt2-large": GPT2Config(n_embd=1280, n_layer=36, n_head=20),
    "google-t5/t5-large": T5Config(
        d_model=1024, d_kv=64, d_ff=4096, num_layers=24, num_decoder_layers=24, num_heads=16, vocab_size=32128
    ),
    "build/smollm2": LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    ),
    "Qwen/Qwen3-0.6B-Base": Qwen3Config(
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        tie_word_embeddings=True,
    ),
}
"""Published sizes of the students by their `model_name_or_path`, since the configs of some are behind a login."""

LENGTHS = {"svamp": (48, 84), "gsm8k": (70, 130), "asdiv": (48, 84), "strategyqa": (20, 80)}
"""Mean tokens of a prompt and of a thought. Questions are counted with SmolLM2's tokenizer, as are thoughts of SVAMP
(GPT-3.5-Turbo's) and GSM8K (gold solutions). ASDiv's thoughts count as SVAMP's, StrategyQA's are our guess."""

TRIGGER = 8
"""Tokens of a trigger. Prompts of the two paths share all tokens but these."""

LARGEST_BATCH, LONGEST_THOUGHT = 1.4, 4.0
"""Tokens of the largest of 200 micro-batches of 4 questions, and of the longest of 16,000 thoughts, relative to the
mean. They were drawn from GPT-3.5-Turbo's thoughts of SVAMP."""

NF4_BYTES = 4 / 8 + 1 / 64 + 4 / (64 * 256)
"""Bytes per weight in nf4 with double quantization: an 8-bit scale per 64 weights, a 32-bit one per 256 scales."""

GB = 1e9


@dataclass(frozen=True)
class Memory:
    r"""
    Memory of a training in bytes.

    Args:
        weights (`float`):
            Weights of the model, LoRA included.
        optimizer (`float`):
            States of AdamW.
        step (`float`):
            Peak of everything else in an optimizer step: gradients, activations, temporary results.
    """

    weights: float
    optimizer: float
    step: float

    @property
    def total(self) -> float:
        return self.weights + self.optimizer + self.step


@dataclass(frozen=True)
class Shape:
    """Rows of a micro-batch and their lengths in tokens. Only an encoder-decoder has an `encoder_length`."""

    rows: int
    length: int
    encoder_length: int | None = None


class AllocationCounter(TorchDispatchMode):
    """Count the bytes of all tensors that are created within the context, as long as they live."""

    def __init__(self, model: nn.Module):
        super().__init__()
        existing = [*model.parameters(), *model.buffers()]
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in existing)
        self.current = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self._known:
                self._known.add(storage)
                self.current += storage.nbytes()
                self.peak = max(self.peak, self.current)
                weakref.finalize(storage, self._release, storage.nbytes())
        return outputs

    def _release(self, size: int) -> None:
        self.current -= size


class _Dequantized(torch.autograd.Function):
    """What bitsandbytes does: dequantize the frozen weight in the forward and again in the backward pass."""

    @staticmethod
    def forward(ctx, inputs, weight):
        ctx.weight = weight
        return F.linear(inputs, weight.clone())

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.weight.clone(), None


class QLoraLinear(nn.Module):
    """A linear layer in 4 bits with LoRA weights in bf16, as TRL trains them, and with the operations of PEFT."""

    def __init__(self, linear: nn.Linear, rank: int, dropout: float):
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().to(torch.bfloat16), requires_grad=False)
        self.dropout = nn.Dropout(dropout)
        self.lora_A = nn.Linear(linear.in_features, rank, bias=False, dtype=torch.bfloat16)
        self.lora_B = nn.Linear(rank, linear.out_features, bias=False, dtype=torch.bfloat16)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        inputs = inputs.to(torch.bfloat16)
        result = _Dequantized.apply(inputs, self.weight).clone()
        return result + self.lora_B(self.lora_A(self.dropout(inputs))) * 1.0


def build_student(recipe: dict[str, Any], config: PreTrainedConfig) -> PreTrainedModel:
    """Build the student of a recipe as it is trained. Call it within `FakeTensorMode`."""
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_config(config, dtype=getattr(torch, recipe.get("dtype", "float32")), attn_implementation="sdpa")
    if recipe.get("load_in_4bit"):  # with LoRA on all linear layers
        model.requires_grad_(False)
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and module is not model.get_output_embeddings():
                model.set_submodule(name, QLoraLinear(module, recipe["lora_r"], recipe["lora_dropout"]))
    if recipe.get("activation_checkpointing"):
        model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    return model.train()


def weight_bytes(model: nn.Module) -> float:
    """Return the bytes of all weights of a model."""
    four_bit = {id(module.weight) for module in model.modules() if isinstance(module, QLoraLinear)}
    return sum(p.numel() * (NF4_BYTES if id(p) in four_bit else p.element_size()) for p in model.parameters())


def expected_shape(recipe: dict[str, Any], encoder_decoder: bool) -> Shape:
    """Return the shape of the largest micro-batch that is to be expected of the task."""
    prompt, thought = LENGTHS[recipe["task"]]
    questions, thoughts = recipe["per_device_train_batch_size"], len(PATHS) * int(recipe["rationales_per_path"])
    if encoder_decoder:
        return Shape(questions * thoughts, round(LONGEST_THOUGHT * thought), round(LONGEST_THOUGHT * prompt))
    tokens = LARGEST_BATCH * questions * (prompt + (len(PATHS) - 1) * TRIGGER + thoughts * thought)
    rows = math.ceil(tokens / recipe["max_length"])
    return Shape(rows, math.ceil(tokens / rows))


def largest_shape(recipe: dict[str, Any], encoder_decoder: bool) -> Shape:
    """Return the shape of a micro-batch in which every thought has `max_length` tokens with its prompt."""
    rows = recipe["per_device_train_batch_size"] * len(PATHS) * int(recipe["rationales_per_path"])
    length = recipe["max_length"]
    return Shape(rows, length // 2, length // 2) if encoder_decoder else Shape(rows, length)


def micro_batch_loss(model: PreTrainedModel, shape: Shape, on_cpu: bool) -> torch.Tensor:
    """Run the forward pass on one micro-batch, in which every token of a thought's row is a target."""
    tokens = torch.zeros(shape.rows, shape.length, dtype=torch.long)
    if shape.encoder_length is not None:
        read = torch.zeros(shape.rows, shape.encoder_length, dtype=torch.long)
        encoded = model.encoder(input_ids=read, attention_mask=torch.zeros(shape.rows, 1, 1, shape.encoder_length))
        states = model.decoder(
            input_ids=tokens,
            attention_mask=torch.zeros(shape.rows, 1, shape.length, shape.length),
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=torch.zeros(shape.rows, 1, 1, shape.encoder_length),
            use_cache=False,
        ).last_hidden_state
    else:
        dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
        mask = torch.zeros(shape.rows, 1, shape.length, shape.length, dtype=dtype)
        positions = torch.zeros_like(tokens)
        outputs = model.base_model(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False)
        states = outputs.last_hidden_state
    states, head = states.flatten(0, 1), model.get_output_embeddings()
    targets, weights = tokens.flatten(), torch.zeros(len(states))
    if not on_cpu:
        return lm_head._accelerator_scores(states, head.weight, head.bias, targets, weights, NO_TRANSFORM).loss
    # The logits within the operator are not seen from outside
    logits = torch.empty(min(lm_head.CHUNK_SIZE, len(states) * len(head.weight)))
    loss = lm_head._cpu_scores(states, head.weight, head.bias, targets, weights, NO_TRANSFORM).loss
    del logits
    return loss


NO_TRANSFORM = lm_head.LogitTransform()


def estimate(recipe: dict[str, Any], config: PreTrainedConfig, shape: Shape) -> Memory:
    r"""
    Estimate the peak memory of a recipe's training.

    Args:
        recipe (`dict`):
            Fields of the recipe.
        config ([`~transformers.PreTrainedConfig`]):
            Configuration of the student.
        shape ([`Shape`]):
            Shape of each micro-batch.

    Returns:
        [`Memory`]: Estimated bytes.
    """
    with FakeTensorMode():
        model = build_student(recipe, config)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        autocast = torch.autocast("cpu", torch.bfloat16) if recipe.get("bf16") else nullcontext()
        with AllocationCounter(model) as counter:
            if recipe["gradient_accumulation_steps"] > 1:  # from the micro-batches before
                for parameter in trained:
                    parameter.grad = torch.zeros_like(parameter)
            with autocast:
                loss = micro_batch_loss(model, shape, on_cpu=recipe.get("use_cpu", False))
            loss.backward()
        optimizer = 2 * sum(parameter.numel() * parameter.element_size() for parameter in trained)
        return Memory(weight_bytes(model), optimizer, counter.peak)


def estimates(recipe: dict[str, Any]) -> tuple[Memory, Memory]:
    """Estimate a recipe with thoughts of the lengths to be expected and of the largest length."""
    name = recipe["model_name_or_path"]
    if name not in CONFIGS:
        raise InputError(f"The sizes of `model_name_or_path` {name!r} are not known. Add them to `CONFIGS`.")
    if recipe.get("use_peft", False) != recipe.get("load_in_4bit", False):
        raise InputError(
            "Only QLoRA and full fine-tuning are estimated. Set both `use_peft` and `load_in_4bit`, or none."
        )
    config = CONFIGS[name]
    shapes = [shape(recipe, config.is_encoder_decoder) for shape in (expected_shape, largest_shape)]
    expected, largest = (estimate(recipe, config, shape) for shape in shapes)
    return expected, largest


def measure(file: str, arguments: list[str]) -> float:
    """Train a recipe for three steps and return the peak resident memory in bytes, without that of the imports."""
    import psutil

    from md_trl.cli import run_verb

    recipe = yaml.safe_load(Path(file).read_text())
    with tempfile.TemporaryDirectory() as folder:
        recipe = {name: value for name, value in recipe.items() if not name.startswith("eval_")}
        recipe |= {"max_steps": 3, "logging_steps": 1, "output_dir": folder, "save_strategy": "no"}
        Path(folder, "recipe.yaml").write_text(yaml.safe_dump(recipe))
        before = psutil.Process().memory_info().rss
        run_verb("train", ["--config", str(Path(folder, "recipe.yaml")), *arguments])
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="YAML files.")
    parser.add_argument("--measure", action="store_true", help="Train the only recipe for three steps and measure.")
    options, arguments = parser.parse_known_args()
    if options.measure:
        print(f"{options.recipes[0]}: {measure(options.recipes[0], arguments) / GB:.2f} GB measured")
        return
    if arguments:
        parser.error(f"unknown arguments: {' '.join(arguments)}")
    print("| recipe | weights | AdamW | gradients, activations | expected total | largest total |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for file in options.recipes:
        try:
            expected, largest = estimates(yaml.safe_load(Path(file).read_text()))
        except InputError as error:
            parser.error(f"{file}: {error}")
        figures = (expected.weights, expected.optimizer, expected.step, expected.total, largest.total)
        print(f"| {file} |", " | ".join(f"{figure / GB:.1f} GB" for figure in figures), "|", flush=True)


if __name__ == "__main__":
    main()
