"""
Attention masks of packed rows and prefix trees, one per kind of layer.

A model whose layers differ in how far back they attend (Gemma 3, gpt-oss, OLMo 3, Llama 4) takes a dictionary with one
mask per kind of layer, as transformers itself builds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedConfig


DENSE_ATTENTION = ("sdpa", "eager")
"""Attention implementations whose masks have an entry for every pair of nodes of a row."""

MASKED_ATTENTION = (*DENSE_ATTENTION, "flex_attention")
"""Attention implementations that accept an arbitrary mask."""

BLOCK_SIZE = 128
"""Number of nodes of a block of FlexAttention. The length of a row is a multiple of it."""

ATTENTION_OF_HYBRIDS = {"hybrid": "full_attention", "hybrid_sliding": "sliding_attention"}
"""Layers with a recurrent part and attention, and the kind of mask that their attention takes."""


@dataclass(frozen=True)
class Reach:
    r"""
    How far back a layer attends.

    Args:
        window (`int`, *optional*):
            Number of tokens that a token attends to, itself included.
        chunk (`int`, *optional*):
            Number of tokens of a chunk. A token attends only to tokens of its own chunk of the sequence.
    """

    window: int | None = None
    chunk: int | None = None

    def covers(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | bool:
        r"""
        Return whether keys are within reach of queries.

        Args:
            query (`torch.Tensor`):
                Positions of tokens that attend.
            key (`torch.Tensor`):
                Positions of tokens that are attended to, each at or before its query.

        Returns:
            `torch.Tensor` or `bool`: Whether each key is within reach.
        """
        if self.window is not None:
            return query - key < self.window
        if self.chunk is not None:
            return query // self.chunk == key // self.chunk
        return True


def layer_reaches(config: PreTrainedConfig, max_length: int | None = None) -> dict[str, Reach]:
    r"""
    Return how far back each kind of attention layer of a model attends.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Text configuration of the model.
        max_length (`int`, *optional*):
            Maximum length of a sequence. Windows and chunks of at least that size are ignored.

    Returns:
        `dict[str, Reach]`: Reach of each kind of layer, as transformers names their masks. Layers without attention,
        such as convolutions, are left out.
    """
    # Absent from the configurations of models that have no such layers
    window, chunk = getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)
    if max_length is not None:
        window, chunk = (None if size is None or size >= max_length else size for size in (window, chunk))
    reaches = {
        "full_attention": Reach(),
        "indexed_attention": Reach(),
        "sliding_attention": Reach(window=window),
        "chunked_attention": Reach(chunk=chunk),
    }
    kinds = getattr(config, "layer_types", None)
    if kinds is None:  # all layers are of one kind
        kinds = ["sliding_attention" if window else "chunked_attention" if chunk else "full_attention"]
    kinds = {ATTENTION_OF_HYBRIDS.get(kind, kind) for kind in kinds}
    return {kind: reach for kind, reach in reaches.items() if kind in kinds}


def attention_masks(
    ends: torch.Tensor,
    positions: torch.Tensor,
    reaches: dict[str, Reach],
    implementation: str,
    dtype: torch.dtype = torch.float32,
    other_masks: dict[str, Any] | None = None,
) -> torch.Tensor | BlockMask | dict[str, Any]:
    r"""
    Return the `attention_mask` of a model for rows of packed sequences or prefix trees.

    Args:
        ends (`torch.Tensor` of shape `(B, T)`):
            Ends of the nodes of B rows, counted within the row.
        positions (`torch.Tensor` of shape `(B, T)`):
            Depths of the nodes.
        reaches (`dict[str, Reach]`):
            Reach of each kind of layer, from [`layer_reaches`].
        implementation (`str`):
            Attention implementation of the model, one of `MASKED_ATTENTION`.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
            Data type of the masks for eager attention, which adds them to its scores.
        other_masks (`dict[str, Any]`, *optional*):
            Masks of layers without attention, by kind.

    Returns:
        `torch.Tensor`, [`~torch.nn.attention.flex_attention.BlockMask`] or `dict`: One mask if all layers need the
        same, otherwise one mask per kind of layer.
    """
    masks = {}
    for reach in set(reaches.values()):
        if implementation == "flex_attention":
            masks[reach] = block_mask(ends, positions, reach)
        else:
            masks[reach] = dense_mask(ends, positions, reach)
            if implementation == "eager":
                masks[reach] = torch.where(masks[reach], 0.0, torch.finfo(dtype).min).to(dtype)
    if len(masks) == 1 and not other_masks:
        return next(iter(masks.values()))
    return {kind: masks[reach] for kind, reach in reaches.items()} | (other_masks or {})


def dense_mask(ends: torch.Tensor, positions: torch.Tensor, reach: Reach = Reach()) -> torch.Tensor:
    r"""
    Build a mask in which each node attends to itself and to its ancestors within reach.

    Args:
        ends (`torch.Tensor` of shape `(B, T)`):
            Ends of the nodes of B rows, counted within the row.
        positions (`torch.Tensor` of shape `(B, T)`):
            Depths of the nodes.
        reach ([`Reach`], *optional*):
            How far back the nodes attend. Unlimited by default.

    Returns:
        `torch.Tensor` of shape `(B, 1, T, T)` and type `bool`: Whether node u (third axis) attends to node v (fourth
        axis).
    """
    nodes = torch.arange(ends.shape[1], device=ends.device)
    u, v = nodes[:, None], nodes[None, :]
    mask = (v <= u) & (u < ends[:, None, :])
    return (mask & reach.covers(positions[:, :, None], positions[:, None, :]))[:, None]


def block_mask(ends: torch.Tensor, positions: torch.Tensor, reach: Reach = Reach()) -> BlockMask:
    r"""
    Build the mask of [`dense_mask`] for FlexAttention, which skips blocks in which no node attends to another.

    Blocks are compared by the bounds of their `ends` and `positions`, so no tensor has an entry for every pair of
    nodes.

    Args:
        ends (`torch.Tensor` of shape `(B, T)`):
            Ends of the nodes, as in [`dense_mask`], with T a multiple of `BLOCK_SIZE`.
        positions (`torch.Tensor` of shape `(B, T)`):
            Depths of the nodes.
        reach ([`Reach`], *optional*):
            How far back the nodes attend. Unlimited by default.

    Returns:
        [`~torch.nn.attention.flex_attention.BlockMask`]: The mask.
    """
    batch, length = ends.shape
    by_block = (batch, length // BLOCK_SIZE, BLOCK_SIZE)
    first_end, last_end = torch.aminmax(ends.view(by_block), dim=-1)
    lowest, highest = torch.aminmax(positions.view(by_block), dim=-1)
    starts = torch.arange(0, length, BLOCK_SIZE, device=ends.device)
    before, same = starts[None, :] < starts[:, None], starts[None, :] == starts[:, None]
    some = same | before & (last_end[:, None, :] > starts[:, None])
    every = before & (first_end[:, None, :] >= starts[:, None] + BLOCK_SIZE)
    # Later keys are nearer and later queries farther, so the extremes of two blocks bound all of their pairs
    some &= reach.covers(torch.maximum(lowest[:, :, None], highest[:, None, :]), highest[:, None, :])
    every &= reach.covers(highest[:, :, None], lowest[:, None, :])

    def attends(b, h, u, v):
        return (v <= u) & (u < ends[b, v]) & reach.covers(positions[b, u], positions[b, v])

    return BlockMask.from_kv_blocks(
        *_listed(some & ~every),
        *_listed(every),
        BLOCK_SIZE=BLOCK_SIZE,
        mask_mod=attends,
        seq_lengths=(length, length),
    )


def _listed(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how many blocks of keys each block of queries attends to, and their indices before all others."""
    indices = torch.argsort(blocks.int(), dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[:, None], indices.int()[:, None]
