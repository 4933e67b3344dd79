"""Prefix trees and packed sequences on FlashAttention, which takes no mask of who attends to whom.

In: the prefix trees of a batch. Out: [`segment_arguments`], with which the attention implementation `VARLEN_ATTENTION`
attends in all of them by a single call on sequences of different lengths. A tree is a row of segments, one per leaf.
Each attends causally to its path from the root, whose keys and values are gathered for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.integrations.flash_attention import get_target_dtype
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ..errors import InputError
from .attention import MASKED_ATTENTION, Reach
from .prefix_tree import PrefixTree


VARLEN_ATTENTION = "md_trl_varlen"
"""Name of the attention implementation, to load a model with: `attn_implementation="md_trl_varlen"`."""


NO_MASK = torch.empty(1, 1, 0, 0)
"""Mask that transformers takes for one already made."""


def unsupported_attention(implementation: str, reaches: dict[str, Reach]) -> str | None:
    r"""
    Return why the layouts `packed` and `tree` cannot have the attention of a model, and what to do.

    Args:
        implementation (`str`):
            Attention implementation of the model.
        reaches (`dict[str, Reach]`):
            What [`layer_reaches`] returns for it.

    Returns:
        `str`, *optional*: A sentence, or `None` if there is nothing in the way.
    """
    masked = ", ".join(MASKED_ATTENTION)
    if implementation == VARLEN_ATTENTION and any(reach.chunk is not None for reach in reaches.values()):
        return f"{VARLEN_ATTENTION!r} does not support chunked attention. Load the model with one of {masked}."
    if implementation in (*MASKED_ATTENTION, VARLEN_ATTENTION):
        return None
    return (
        f"`attn_implementation={implementation!r}` accepts no mask of who attends to whom. Load the model with one of "
        f"{masked}, or in place of FlashAttention with {VARLEN_ATTENTION}."
    )


def tree_segments(tree: PrefixTree) -> tuple[np.ndarray, list[np.ndarray]]:
    r"""
    Divide the nodes of a tree into segments that a causal kernel can run.

    In depth-first order every node down to the next leaf is a child of the one before it, so the nodes from one leaf
    to the next are the end of the path from the root to the latter.

    Args:
        tree ([`PrefixTree`]):
            Tree to divide.

    Returns:
        `tuple[np.ndarray, list[np.ndarray]]`: the number of nodes of each segment, in their order in the tree, and
        the path of each: the nodes whose keys it attends to, the segment itself last.
    """
    paths = {path[-1]: path for path in tree.paths}
    leaves = np.flatnonzero(tree.ends == np.arange(1, len(tree.ends) + 1))
    return np.diff(leaves, prepend=-1), [paths[leaf] for leaf in leaves]


def segment_arguments(rows: Sequence[Sequence[PrefixTree]], width: int) -> dict[str, Any]:
    r"""
    Return what `VARLEN_ATTENTION` must know of a batch: the argument `segments` of the model's forward pass.

    With it goes `NO_MASK` as the `attention_mask`, so that transformers makes none.

    Args:
        rows (`Sequence[Sequence[PrefixTree]]`):
            Trees of each row, one after the other.
        width (`int`):
            Number of positions of a row. Those that are left attend to themselves.

    Returns:
        `dict[str, Any]` for S segments and K gathered keys:

        - `keys` of shape `(K,)`: index of each gathered key into the flattened rows
        - `query_starts`, `key_starts` of shape `(S + 1,)`: where the segments begin, where their paths begin in `keys`
        - `longest_segment`, `longest_path` (`int`): upper bounds of both
    """
    lengths, keys = [], []
    for row, trees in enumerate(rows):
        start = row * width
        for tree in trees:
            of_tree, paths = tree_segments(tree)
            lengths += of_tree.tolist()
            keys += [path + start for path in paths]
            start += len(tree.tokens)
        rest = (row + 1) * width - start
        if rest:
            lengths.append(rest)
            keys.append(np.arange(start, start + rest))
    paths = [len(path) for path in keys]
    return {
        "keys": torch.from_numpy(np.concatenate(keys)),
        "query_starts": torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
        "key_starts": torch.tensor([0, *np.cumsum(paths)], dtype=torch.int32),
        # Rounded up, so that a compiled model meets few different numbers
        "longest_segment": -(-max(lengths) // 128) * 128,
        "longest_path": -(-max(paths) // 128) * 128,
    }


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    segments: dict[str, Any] | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    r"""
    Attention of the segments of a batch, for [`~transformers.AttentionInterface`].

    On CUDA it calls `torch.nn.attention.varlen.varlen_attn`. That call follows torch's documentation and has not
    been run. Elsewhere a loop over the segments computes the same.

    Args:
        module (`torch.nn.Module`):
            Attention layer.
        query (`torch.Tensor` of shape `(B, heads, T, D)`):
            Queries.
        key (`torch.Tensor` of shape `(B, key_value_heads, T, D)`):
            Keys.
        value (`torch.Tensor` of shape `(B, key_value_heads, T, D)`):
            Values.
        attention_mask (`torch.Tensor`, *optional*):
            `NO_MASK`, or without `segments` the mask of SDPA.
        segments (`dict[str, Any]`, *optional*):
            What [`segment_arguments`] returns. Without it, as in generation, SDPA runs.
        scaling (`float`, *optional*):
            Factor of the scores.
        sliding_window (`int`, *optional*):
            Last tokens that a token attends to, itself included.
        dropout (`float`, *optional*, defaults to `0.0`):
            Must be 0: the kernel has none.
        softcap (`float`, *optional*):
            Must be `None`, likewise.
        s_aux (`torch.Tensor`, *optional*):
            Must be `None`, likewise.
        position_bias (`torch.Tensor`, *optional*):
            Must be `None`, likewise.
        **kwargs:
            Further arguments of the layer, for SDPA.

    Returns:
        `tuple[torch.Tensor, None]`: the output, of shape `(B, T, heads, D)`.
    """
    if dropout or any(option is not None for option in (softcap, s_aux, position_bias)):
        raise InputError(
            f"{VARLEN_ATTENTION!r} does not support attention dropout, soft-capped scores, attention sinks, or biases "
            "of positions. Set `attention_dropout=0.0`, or load the model with `attn_implementation='eager'`."
        )
    if segments is None and attention_mask is not None and not attention_mask.numel():
        raise InputError(
            f"{type(module).__name__} does not hand the arguments of the forward pass on to its attention. Load the "
            "model with `attn_implementation='sdpa'`."
        )
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    batch, _, length, _ = query.shape
    queries, keys, values = (states.transpose(1, 2).flatten(0, 1) for states in (query, key, value))
    attend = _call_kernel if query.device.type == "cuda" else _loop_over_segments
    dtype = get_target_dtype(query, module) or query.dtype
    output = attend(queries.to(dtype), keys.to(dtype), values.to(dtype), segments, scaling, sliding_window)
    return output.unflatten(0, (batch, length)), None


def _call_kernel(queries, keys, values, segments, scaling, window):
    """All segments at once, on CUDA; not run by any test. Keys are aligned to the end of the queries."""
    return varlen_attn(
        queries,
        keys.index_select(0, segments["keys"]),
        values.index_select(0, segments["keys"]),
        segments["query_starts"],
        segments["key_starts"],
        segments["longest_segment"],
        segments["longest_path"],
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),  # tokens before it that a token attends to
        enable_gqa=queries.shape[1] != keys.shape[1],
    )


def _loop_over_segments(queries, keys, values, segments, scaling, window):
    """The same, a segment at a time."""
    outputs = []
    query_starts, key_starts = segments["query_starts"].tolist(), segments["key_starts"].tolist()
    for segment, start in enumerate(query_starts[:-1]):
        path = segments["keys"][key_starts[segment] : key_starts[segment + 1]]
        of_segment = queries[start : query_starts[segment + 1]]
        # A segment is the end of its path
        v = torch.arange(len(path), device=path.device)
        u = v[-len(of_segment) :, None]
        mask = v <= u
        if window is not None:
            mask &= v > u - window
        output = F.scaled_dot_product_attention(
            *(states.transpose(0, 1)[None] for states in (of_segment, keys[path], values[path])),
            attn_mask=mask,
            scale=scaling,
            enable_gqa=queries.shape[1] != keys.shape[1],
        )
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)


AttentionInterface.register(VARLEN_ATTENTION, varlen_attention)
AttentionMaskInterface.register(VARLEN_ATTENTION, sdpa_mask)
