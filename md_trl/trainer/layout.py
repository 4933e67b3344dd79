"""Which layout a model can train in: a model and a wish come in; a layout and the reason for it go out (Sec. 3.2)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from ..errors import InputError


MASKED_LAYERS = {"full_attention", "sliding_attention", "chunked_attention", "indexed_attention", "moe", "mlp"}
"""Kinds of layers, by the names of transformers, in which a token meets no other but through the mask."""

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Relative error of loss and gradient that rounding can cause, by type of the weights; 0.1 for all others."""


def is_recurrent(model: PreTrainedModel) -> bool:
    """Whether some layers carry a state from token to token: convolutions, linear attention, state-space layers."""
    kinds = model.config.get_text_config().to_dict().get("layer_types") or []
    return model._is_stateful or not set(kinds) <= MASKED_LAYERS


def first_position(model: PreTrainedModel) -> int:
    r"""
    Return the position of the first token of a sequence.

    RoBERTa and its descendants keep the row of the padding token in their table of positions, and begin after it.

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


def obstacle(model: PreTrainedModel) -> str | None:
    r"""
    Return what keeps a model from training in the layouts `packed` and `tree`, as far as its config and its forward
    pass tell.

    | what the model does | packed, tree |
    | --- | --- |
    | attends through the mask it is given, with the positions it is given | yes |
    | the same, with windows or chunks, of one size or several kinds of layers | yes, with a mask for each kind |
    | carries a state from token to token (convolution, linear attention, state-space layers) | if [`check_layout`] finds that its layers can be unrolled |
    | takes no `position_ids` (BART, BLOOM, MPT, RoFormer, Mamba, RWKV, ...) | no |
    | counts tokens along the row inside a layer (ALiBi, local attention of GPT-Neo, patches of BLT) | no |

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Model to train, without adapters.

    Returns:
        `str`, *optional*: The obstacle, to follow the name of the model; `None` if there is none.
    """
    config = model.config.get_text_config()
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "takes no `position_ids`, so it counts positions along the row"
    if config.to_dict().get("alibi"):
        return "has ALiBi biases, which count tokens along the row"
    if config.model_type == "gpt_neo" and "local" in config.attention_layers:
        return "has local attention, which counts its window along the row"
    if config.model_type == "blt":
        return "groups the bytes of a row into patches"
    return None
