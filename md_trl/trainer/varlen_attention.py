"""
FlashAttention on prefix trees without masks, by gathering the keys of each segment.

A tree is divided into segments, one per leaf. Each segment attends causally to its path from the root, whose keys and
values are gathered for it, so a single call on sequences of different lengths computes the attention of a whole batch.
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
"""Name of the attention implementation. Load a model with `attn_implementation="md_trl_varlen"` to use it."""


NO_MASK = torch.empty(1, 1, 0, 0)
"""Empty mask that stops transformers from building one."""


def unsupported_attention(implementation: str, reaches: dict[str, Reach]) -> str | None:
    r"""
    Explain why the attention of a model does not support the layouts `packed` and `tree`.

    Args:
        implementation (`str`):
            Attention implementation of the model.
        reaches (`dict[str, Reach]`):
            Reach of each kind of layer, from [`layer_reaches`].

    Returns:
        `str`, *optional*: The reason and what to do about it, or `None` if both layouts are supported.
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
    Divide the nodes of a tree into segments that a causal kernel can process.

    In depth-first order, each node between two leaves is a child of the node before it. So the nodes after one leaf,
    up to the next leaf, are the end of the path from the root to that next leaf.

    Args:
        tree ([`PrefixTree`]):
            Tree to divide.

    Returns:
        `tuple[np.ndarray, list[np.ndarray]]`: Number of nodes of each segment, in the order of the tree, and the path
        from the root to its end, which holds the nodes that it attends to.
    """
    paths = {path[-1]: path for path in tree.paths}
    leaves = np.flatnonzero(tree.ends == np.arange(1, len(tree.ends) + 1))
    return np.diff(leaves, prepend=-1), [paths[leaf] for leaf in leaves]


def segment_arguments(rows: Sequence[Sequence[PrefixTree]], width: int) -> dict[str, Any]:
    r"""
    Compute the argument `segments` of a model whose attention is `VARLEN_ATTENTION`.

    Its `attention_mask` must be `NO_MASK` then.

    Args:
        rows (`Sequence[Sequence[PrefixTree]]`):
            Trees of each row, in order.
        width (`int`):
            Length of a row. Padding at its end becomes a segment of its own.

    Returns:
        `dict[str, Any]`: For S segments and K gathered keys:

        - `keys` of shape `(K,)`: index of each gathered key in the flattened rows
        - `query_starts` of shape `(S + 1,)`: where each segment begins in the flattened rows
        - `key_starts` of shape `(S + 1,)`: where the path of each segment begins in `keys`
        - `longest_segment` (`int`): upper bound of the length of a segment
        - `longest_path` (`int`): upper bound of the length of a path
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
        # Rounded up, so that a compiled model sees few different values
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
    Compute the attention of the segments of a batch, as an [`~transformers.AttentionInterface`].

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
            `NO_MASK`, or the mask for SDPA if there are no `segments`.
        segments (`dict[str, Any]`, *optional*):
            Segments of the batch, from [`segment_arguments`]. Without them, as in generation, SDPA is used.
        scaling (`float`, *optional*):
            Factor of the scores.
        sliding_window (`int`, *optional*):
            Number of tokens that a token attends to, itself included.
        dropout (`float`, *optional*, defaults to `0.0`):
            Dropout of attention weights. Must be 0, since the kernel does not support it.
        softcap (`float`, *optional*):
            Bound of the scores. Must be `None`, since the kernel does not support it.
        s_aux (`torch.Tensor`, *optional*):
            Attention sinks. Must be `None`, since the kernel does not support them.
        position_bias (`torch.Tensor`, *optional*):
            Bias of the scores. Must be `None`, since the kernel does not support it.
        **kwargs:
            Other arguments for SDPA.

    Returns:
        `tuple[torch.Tensor, None]`: Output of shape `(B, T, heads, D)`.

    Raises:
        `ValueError`: If the model needs something that the kernel does not support.
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
    # Queries are aligned with the last keys if there are more keys, as in all of FlashAttention since version 2.1
    return varlen_attn(
        queries,
        keys.index_select(0, segments["keys"]),
        values.index_select(0, segments["keys"]),
        segments["query_starts"],
        segments["key_starts"],
        segments["longest_segment"],
        segments["longest_path"],
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),  # numbers of tokens before and after the token itself
        enable_gqa=queries.shape[1] != keys.shape[1],
    )


def _loop_over_segments(queries, keys, values, segments, scaling, window):
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
