"""Attention: the nodes of packed rows come in; masks that keep each node to its ancestors go out."""

from __future__ import annotations

import torch
from transformers import PreTrainedConfig

from ..errors import InputError


MASKED_ATTENTION = ("sdpa", "eager", "flex_attention")
"""Attention implementations that accept an arbitrary mask, which the layouts `packed` and `tree` need."""


def sliding_window(config: PreTrainedConfig, max_length: int | None) -> int | None:
    r"""
    Return the sliding window that the masks of the layouts `packed` and `tree` must respect.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Text config of the model.
        max_length (`int` or `None`):
            Maximum length of a sequence.

    Returns:
        `int`, *optional*: Number of tokens that a token attends to, itself included; `None` if it attends to all
        tokens before it.

    Raises:
        `ValueError`: If some layers have a window and others have not, so that they would need different masks.
    """
    window = getattr(config, "sliding_window", None)
    if window is None or (max_length is not None and max_length <= window):
        return None
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    if kinds == {"full_attention"}:
        return None
    if kinds != {"sliding_attention"}:
        raise InputError(
            f"Some layers of this {config.model_type} model have a sliding window of {window} and others have none, "
            f"and `max_length={max_length}` is longer than the window. Set `max_length={window}` or "
            "`layout='padded'`."
        )
    return window


def attention_mask(ends: torch.Tensor, positions: torch.Tensor, window: int | None = None) -> torch.Tensor:
    r"""
    Build the attention mask of rows of prefix trees.

    Args:
        ends (`torch.Tensor` of shape `(B, T)`):
            Index after the last node below each node, counted within its row, as in [`PrefixTree`].
        positions (`torch.Tensor` of shape `(B, T)`):
            Depth of each node in its tree.
        window (`int`, *optional*):
            Sliding window of the model: a node attends to the last `window` tokens of its sequence, itself included.

    Returns:
        `torch.Tensor` of shape `(B, 1, T, T)` and type `bool`: Whether node u (third axis) attends to node v (fourth
        axis).
    """
    nodes = torch.arange(ends.shape[1], device=ends.device)
    u, v = nodes[:, None], nodes[None, :]
    mask = (v <= u) & (u < ends[:, None, :])
    if window is not None:
        mask &= positions[:, :, None] - positions[:, None, :] < window
    return mask[:, None]


def block_mask(ends: torch.Tensor, positions: torch.Tensor, window: int | None = None):
    r"""
    Build the mask of [`attention_mask`] for FlexAttention, which skips blocks in which no node attends to another.

    Args:
        ends (`torch.Tensor` of shape `(B, T)`):
            Index after the last node below each node, counted within its row, as in [`PrefixTree`].
        positions (`torch.Tensor` of shape `(B, T)`):
            Depth of each node in its tree.
        window (`int`, *optional*):
            Sliding window of the model.

    Returns:
        [`~torch.nn.attention.flex_attention.BlockMask`]: The mask.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    def attends(b, h, u, v):
        allowed = (v <= u) & (u < ends[b, v])
        if window is not None:
            allowed = allowed & (positions[b, u] - positions[b, v] < window)
        return allowed

    batch, length = ends.shape
    return create_block_mask(attends, batch, None, length, length, device=ends.device)
