"""Decide and check which layout a model can be trained in (Sec. 3.2)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import logging

from ..errors import InputError
from .quantized import keep_trainable
from .recurrence import unroll_recurrent_layers


logger = logging.get_logger(__name__)


MASKED_LAYERS = {"full_attention", "sliding_attention", "chunked_attention", "indexed_attention", "moe", "mlp"}
"""Kinds of layers, as transformers names them, in which tokens meet only where the mask lets them."""

RECURRENT_LAYERS = {"linear_attention", "conv", "hybrid", "hybrid_sliding"}
"""Kinds of layers that carry a state from token to token, alone or beside attention."""

PROBE_TOKENS = 33
"""Number of distinct tokens that [`check_layout`] needs."""


def choose_layout(
    model: PreTrainedModel | PeftModel,
    layout: str,
    check: bool,
    tokenizer: PreTrainedTokenizerBase,
    loss_in: Callable[[str, list[dict[str, Any]]], torch.Tensor],
    unsupported: str | None = None,
) -> str:
    r"""
    Return the layout that a model is trained in: the one asked for, or `"padded"` with a warning if it cannot take it.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to train, before it is wrapped for training. If it can take the layout only with its recurrent layers
            unrolled, they are, see [`unroll_recurrent_layers`].
        layout (`str`):
            Layout asked for.
        check (`bool`):
            Whether to try the layout on a small tree, see [`check_layout`].
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        loss_in (`Callable`):
            As in [`check_layout`].
        unsupported (`str`, *optional*):
            Why the attention implementation cannot take any layout but `"padded"`.

    Returns:
        `str`: `layout` or `"padded"`.

    Raises:
        `ValueError`: If no layout trains the model exactly.
    """
    student = model.get_base_model() if isinstance(model, PeftModel) else model
    name = type(student).__name__
    if check and is_deepspeed_zero3_enabled():
        logger.warning("`layout=%r` is not checked on a small tree, since ZeRO-3 has partitioned the weights.", layout)
        check = False
    tokens = ordinary_tokens(tokenizer)
    if check and len(tokens) < PROBE_TOKENS:
        logger.warning("`layout=%r` is not checked on a small tree: the vocabulary is too small.", layout)
        check = False
    chosen, reason = layout, None
    if layout != "padded":
        obstacle = layout_obstacle(student)
        if obstacle is None and is_recurrent(student):
            if check:
                unroll_recurrent_layers(student)
            else:
                obstacle = "has recurrent layers, which are only unrolled if that can be checked"
        reason = unsupported if obstacle is None else f"{name} {obstacle}"
        if reason is not None:
            chosen = "padded"
    if check:
        has_weights = not any(parameter.is_meta for parameter in model.parameters())
        result = check_layout(model, chosen, tokens, loss_in) if has_weights else (chosen, None)
        # The first process decides for all. Under FSDP it may be the only one that has the weights.
        ((found, failure),) = broadcast_object_list([result])
        if found is None:
            raise InputError(
                f"{name} cannot be trained exactly: it {failure}. Choose another student, or set `check_layout=False` "
                "to train it all the same."
            )
        if found != chosen:
            chosen, reason = found, f"{name} {failure}"
    if reason is not None:
        logger.warning("`layout='padded'` is used instead of %r: %s.", layout, reason.rstrip("."))
    return chosen


def ordinary_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return `PROBE_TOKENS` tokens from all over a vocabulary, none of them special. A tiny vocabulary has fewer."""
    tokens = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    return tokens[:: max(len(tokens) // PROBE_TOKENS, 1)][:PROBE_TOKENS]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The norm of what differs over the norm of what was expected; infinite where a value is not a number."""
    smallest = torch.finfo(torch.float32).tiny  # no gradient reaches the embeddings of a model whose head is zero
    return torch.nan_to_num((found - expected).norm() / expected.norm().clamp_min(smallest), nan=math.inf).item()


def layer_kinds(model: PreTrainedModel) -> set[str]:
    """The kinds of layers that a config lists; none for most models, all of whose layers attend in the same way."""
    return set(model.config.get_text_config().to_dict().get("layer_types") or [])


def is_recurrent(model: PreTrainedModel) -> bool:
    """Whether some layers carry a state from token to token: convolutions, linear attention, state spaces."""
    return model._is_stateful or not layer_kinds(model).isdisjoint(RECURRENT_LAYERS)


def first_position(model: PreTrainedModel) -> int:
    r"""
    Return the position of the first token of a sequence.

    RoBERTa-style models have a row for padding in their table of positions, and begin after it.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Model to train.

    Returns:
        `int`: 0 for nearly all models.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def layout_obstacle(model: PreTrainedModel) -> str | None:
    r"""
    Return what keeps a model from the layouts `packed` and `tree`, as far as its config and its signature tell.

    | the model | `packed` and `tree` |
    | --- | --- |
    | attends through the mask and the positions it is given | yes |
    | has windows or chunks, in all layers or in some | yes, with a mask for each kind of layer |
    | has recurrent layers: convolutions, linear attention, state spaces | if they can be unrolled (`recurrence.py`) |
    | takes no `position_ids`: BART, BLOOM, MPT, RoFormer, Mamba, RWKV, ... | no |
    | counts tokens along the row: ALiBi, GPT-Neo's local attention, BLT's patches, attention to blocks | no |

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Model to train, without adapters.

    Returns:
        `str`, *optional*: A predicate for the model, such as "takes no `position_ids`".
    """
    config = model.config.get_text_config()
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "takes no `position_ids`, so it counts positions along the row"
    if others := sorted(layer_kinds(model) - MASKED_LAYERS - RECURRENT_LAYERS):
        return f"has {' and '.join(others)} layers, which are not known to follow a mask"
    if config.to_dict().get("alibi"):
        return "has ALiBi biases, which count tokens along the row"
    if config.model_type == "gpt_neo" and "local" in config.attention_layers:
        return "has local attention that counts its window along the row"
    if config.model_type == "blt":
        return "groups the bytes of a row into patches"
    if config.model_type in ("minimax", "moshi") and config.sliding_window is not None:
        return "has a sliding window in other layers than its config says"
    return None


def check_layout(
    model: PreTrainedModel | PeftModel,
    layout: str,
    token_ids: list[int],
    loss_in: Callable[[str, list[dict[str, Any]]], torch.Tensor],
) -> tuple[str | None, str | None]:
    r"""
    Try a layout on a small tree, and compare loss and gradient with those of its sequences one by one.

    The gradient is taken at the input embeddings: it passes through every layer, and needs no trainable parameter. It
    must be right at the tokens of the scored sequence and zero, whatever the rounding, at all others. Dropout is off
    meanwhile, no gradient is kept, and the random state is restored.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to train, before it is wrapped for training.
        layout (`str`):
            Layout to try.
        token_ids (`list[int]`):
            `PROBE_TOKENS` distinct tokens.
        loss_in (`Callable`):
            Takes a layout and some thoughts, and returns the loss that the trainer has for them, summed over tokens.

    Returns:
        `tuple[str | None, str | None]`: The layout and `None`, `"padded"` and what is wrong with the layout, or `None`
        and what is wrong with the model, which no layout trains exactly. What is wrong is a predicate for the model.
    """
    exact = model.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(model.device.type)
    rounding, limit = (1e-3, 1e-3) if exact else (0.05, 0.5)
    with _at_rest(model):
        probe = _Probe(model, token_ids, loss_in)
        if failure := probe.alone():
            return None, failure
        error, failure = probe.error(layout)
        if error <= rounding:
            return layout, None
        # Rounding in half precision depends on the model: where `padded` rows have as much of it, it is no mistake.
        padded_error, padded_failure = probe.error("padded")
        if not padded_error <= limit:
            return None, padded_failure
        return (layout, None) if error <= 3 * padded_error else ("padded", failure)


@contextmanager
def _at_rest(model: PreTrainedModel) -> Iterator[None]:
    """Run a model without dropout and checkpoints, and leave it and the random state as they were."""
    devices = [model.device] if model.device.type == "cuda" else []
    training = {module: module.training for module in model.modules()}
    try:
        for module in training:
            module.training = False
        keep_trainable(model)
        with torch.random.fork_rng(devices), torch.enable_grad():
            yield
    finally:
        for module, was_training in training.items():
            module.training = was_training


class _Probe:
    """Sequences that form a small tree, with the loss and the gradient of each on its own."""

    def __init__(self, model: PreTrainedModel, token_ids: list[int], loss_in: Callable[..., torch.Tensor]):
        self.model = model
        self.tokens = torch.tensor(token_ids, device=model.device)
        self.loss_in = loss_in
        prompt, first, further, other = token_ids[:8], token_ids[8:14], token_ids[14:19], token_ids[19:27]
        # Each with the index of its first target
        self.sequences = [
            (prompt + first, 8),
            (prompt + first + further, 8),
            (prompt[:5] + other, 5),
            (token_ids[27:], 1),
        ]

    def alone(self) -> str | None:
        """Run each sequence on its own, and return what is wrong with that."""
        try:
            self.expected = [self._gradient(lambda s=s: self._loss_alone(*s)) for s in self.sequences]
            (first, _), (longer, start) = self.sequences[:2]
            _, gradient = self._gradient(lambda: self._loss_alone(longer, start, len(first)))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return f"fails on a single sequence ({error})"
        if gradient[self._others(first)].any():
            return "attends to later tokens, so it is not a causal language model"
        return None

    def error(self, layout: str) -> tuple[float, str | None]:
        """Score each sequence in turn, with the others beside it; return the relative error and a predicate for it."""
        error = 0.0
        for scored, (ids, _) in enumerate(self.sequences):
            thoughts = [
                {"input_ids": ids, "start": start, "path": "cot", "share": 1.0, "weight": float(i == scored)}
                for i, (ids, start) in enumerate(self.sequences)
            ]
            try:
                loss, gradient = self._gradient(lambda: self.loss_in(layout, thoughts))  # noqa: B023
            except torch.OutOfMemoryError:
                raise
            except Exception as failure:
                return math.inf, f"fails in {layout} rows ({failure})"
            if gradient[self._others(ids)].any():
                return math.inf, f"mixes the sequences of {layout} rows"
            expected_loss, expected_gradient = self.expected[scored]
            error = max(error, relative_error(loss, expected_loss), relative_error(gradient, expected_gradient))
        return error, f"has another loss or gradient in {layout} rows than in single sequences, by {error:.1%}"

    def _others(self, ids: list[int]) -> torch.Tensor:
        return ~torch.isin(self.tokens, torch.tensor(ids, device=self.tokens.device))

    def _loss_alone(self, ids: list[int], start: int, stop: int | None = None) -> torch.Tensor:
        ids = torch.tensor([ids], device=self.model.device)
        logits = self.model(input_ids=ids, use_cache=False).logits[0]
        targets = ids[0, start:stop]
        return F.cross_entropy(logits[start - 1 :][: len(targets)].float(), targets, reduction="sum")

    def _gradient(self, compute_loss: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """A loss, and its gradient at the embeddings of each token, summed over where the token stands."""
        embedded: list[tuple[torch.Tensor, torch.Tensor]] = []

        def add_zeros(embeddings, args, output):
            zeros = torch.zeros_like(output, requires_grad=True)
            embedded.append((args[0], zeros))
            return output + zeros

        hook = self.model.get_input_embeddings().register_forward_hook(add_zeros)
        try:
            loss = compute_loss()
        finally:
            hook.remove()
        if not embedded:  # a model that reads its table of embeddings in another way is compared by its loss alone
            return loss.detach().float(), torch.zeros(len(self.tokens), 1, device=self.tokens.device)
        # Unused where the trainer runs the model to measure something
        gradients = torch.autograd.grad(loss, [zeros for _, zeros in embedded], allow_unused=True)
        used = [
            (ids, gradient) for (ids, _), gradient in zip(embedded, gradients, strict=True) if gradient is not None
        ]
        by_token = torch.zeros(len(self.tokens), embedded[0][1].shape[-1], device=self.tokens.device)
        for ids, gradient in used:
            token, place = (self.tokens[:, None] == ids.flatten()).nonzero(as_tuple=True)
            by_token.index_add_(0, token, gradient.flatten(0, -2)[place].float())
        return loss.detach().float(), by_token
