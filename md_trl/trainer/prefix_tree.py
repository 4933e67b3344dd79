"""Prefix trees: token sequences with common beginnings, each token run once.

The thoughts of a question share its tokens, and sampled thoughts share beginnings with each other. A tree keeps every
distinct beginning once, in depth-first order, so that the nodes below node v are v, ..., `ends[v] - 1`. Node u attends
to v if and only if `v <= u < ends[v]`: its ancestors and itself. A sequence on its own is a tree too, and so are
several trees one after the other, each seeing only itself.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class PrefixTree:
    r"""
    A forest in depth-first order.

    Args:
        tokens (`np.ndarray` of shape `(size,)`):
            Token of each node.
        depths (`np.ndarray` of shape `(size,)`):
            Position of each node in its sequences, from 0.
        ends (`np.ndarray` of shape `(size,)`):
            One past the last node below each node.
        paths (`list[np.ndarray]`):
            For each sequence, in the order given, its nodes.
    """

    tokens: np.ndarray
    depths: np.ndarray
    ends: np.ndarray
    paths: list[np.ndarray]


def build_tree(sequences: Sequence[Sequence[int]]) -> PrefixTree:
    r"""
    The prefix tree of some token sequences.

    Args:
        sequences (`Sequence[Sequence[int]]`):
            Token ids, at least one each.

    Returns:
        [`PrefixTree`]: with a node for every distinct beginning of a sequence.
    """
    arrays = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    paths: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(arrays)
    size = sum(map(len, arrays))
    tokens, depths, ends = (np.empty(size, dtype=np.int64) for _ in range(3))
    used, last_nodes = 0, np.empty(0, dtype=np.int64)
    for i, shared in neighbours(arrays):
        ids = arrays[i]
        new = len(ids) - shared
        nodes = np.concatenate([last_nodes[:shared], np.arange(used, used + new)])
        tokens[used : used + new] = ids[shared:]
        depths[used : used + new] = np.arange(shared, len(ids))
        used += new
        ends[nodes] = used
        paths[i], last_nodes = nodes, nodes
    return PrefixTree(tokens[:used], depths[:used], ends[:used], paths)


def neighbours(sequences: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    r"""
    Sequences in lexicographic order, in which each shares its longest known beginning with the one before it.

    Args:
        sequences (`Sequence[np.ndarray]`):
            Token ids.

    Returns:
        `list[tuple[int, int]]`: index of each sequence, and the length of what it shares with the one before it.
    """
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].tolist())
    shared = [0]
    for before, i in itertools.pairwise(order):
        common = min(len(sequences[before]), len(sequences[i]))
        differs = np.flatnonzero(sequences[before][:common] != sequences[i][:common])
        shared.append(int(differs[0]) if len(differs) else common)
    return list(zip(order, shared, strict=True))


def split(lengths: Sequence[int], ordered: list[tuple[int, int]], limit: int) -> list[tuple[list[int], int]]:
    r"""
    Cut a tree into several that repeat what they share.

    Args:
        lengths (`Sequence[int]`):
            Length of each sequence.
        ordered (`list[tuple[int, int]]`):
            What [`neighbours`] returns for them.
        limit (`int`):
            Most nodes of a part. A longer sequence is a part of its own.

    Returns:
        `list[tuple[list[int], int]]`: the sequences of each part, and its number of nodes.
    """
    parts: list[tuple[list[int], int]] = []
    for i, shared in ordered:
        if parts and parts[-1][1] + lengths[i] - shared <= limit:
            members, size = parts.pop()
            parts.append(([*members, i], size + lengths[i] - shared))
        else:
            parts.append(([i], lengths[i]))
    return parts


def row_cost(rows: int, longest: int) -> int:
    """
    Time of a forward pass over padded rows, up to a factor.

    A node's attention over a masked row of 2,048 is taken to cost as much as the rest of the model (SmolLM2-135M on a
    CPU: measured at 1,400; more for larger models).
    """
    return rows * longest * (2048 + longest)


def pack(sizes: Sequence[int], max_length: int | None = None) -> list[list[int]]:
    r"""
    Put items into rows that are cheap to run: little padding, and short, as attention is quadratic in a row.

    For each number of rows that could be best, the largest item left goes into the emptiest row.

    Args:
        sizes (`Sequence[int]`):
            Size of each item, at least one.
        max_length (`int`, *optional*):
            Most that a row holds. The rows are as wide as the longest, so a larger item raises it for all of them.

    Returns:
        `list[list[int]]`: the items of each row.
    """
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    total, largest = sum(sizes), sizes[order[0]]
    limit = total if max_length is None else max(max_length, largest)

    def bound(count: int) -> int:
        return row_cost(count, max(largest, -(-total // count)))

    best, least = [], math.inf
    for count in sorted(range(1, len(sizes) + 1), key=bound):
        if bound(count) >= least:
            break
        emptiest = [(0, row) for row in range(count)]
        rows: list[list[int]] = [[] for _ in range(count)]
        for i in order:
            filled, row = emptiest[0]
            rows[row].append(i)
            heapq.heapreplace(emptiest, (filled + sizes[i], row))
        longest = max(emptiest)[0]
        if longest <= limit and row_cost(count, longest) < least:
            best, least = rows, row_cost(count, longest)
    return best


def pack_trees(
    groups: Sequence[Sequence[Sequence[int]]], max_length: int | None = None
) -> list[list[tuple[int, list[int]]]]:
    r"""
    Put the prefix trees of groups of sequences into rows that are cheap to run.

    A tree that would make long rows is cut where that costs less: its parts repeat the beginning they share.

    Args:
        groups (`Sequence[Sequence[Sequence[int]]]`):
            Token ids of the sequences of each group.
        max_length (`int`, *optional*):
            Most nodes of a row; a longer sequence raises it.

    Returns:
        `list[list[tuple[int, list[int]]]]`: for each row its trees, each as a group and indices of its sequences.
    """
    arrays = [[np.asarray(sequence, dtype=np.int64) for sequence in group] for group in groups]
    lengths = [[len(array) for array in group] for group in arrays]
    ordered = [neighbours(group) for group in arrays]
    longest = max(map(max, lengths))
    limit = max(sum(n) - sum(shared for _, shared in found) for n, found in zip(lengths, ordered, strict=True))
    if max_length is not None:
        limit = min(limit, max(longest, max_length))
    best, least = [], math.inf
    while True:
        parts = [
            (group, members, size)
            for group, found in enumerate(ordered)
            for members, size in split(lengths[group], found, limit)
        ]
        rows = [[parts[i] for i in row] for row in pack([size for *_, size in parts], max_length)]
        cost = row_cost(len(rows), max(sum(size for *_, size in row) for row in rows))
        if cost < least:
            best, least = rows, cost
        if limit == longest:
            return [[(group, members) for group, members, _ in row] for row in best]
        limit = max(longest, limit * 15 // 16)


def attention_mask(ends: torch.Tensor, positions: torch.Tensor, window: int | None = None) -> torch.Tensor:
    r"""
    Who attends to whom.

    Args:
        ends (`torch.Tensor` of shape `(B, T)`):
            Ends of the nodes of B rows, counted within the row.
        positions (`torch.Tensor` of shape `(B, T)`):
            Depths of the nodes.
        window (`int`, *optional*):
            Sliding window of the model: a node sees the last `window` tokens of its sequence, itself included.

    Returns:
        `torch.Tensor` of shape `(B, 1, T, T)`, `bool`: whether node u (third axis) attends to node v (fourth axis).
    """
    nodes = torch.arange(ends.shape[1], device=ends.device)
    u, v = nodes[:, None], nodes[None, :]
    mask = (v <= u) & (u < ends[:, None, :])
    if window is not None:
        mask &= positions[:, :, None] - positions[:, None, :] < window
    return mask[:, None]


def block_mask(ends: torch.Tensor, positions: torch.Tensor, window: int | None = None):
    r"""
    The same as [`attention_mask`], for FlexAttention, which skips the blocks in which nobody attends to anybody.

    Args:
        ends (`torch.Tensor` of shape `(B, T)`):
            As in [`attention_mask`].
        positions (`torch.Tensor` of shape `(B, T)`):
            As in [`attention_mask`].
        window (`int`, *optional*):
            As in [`attention_mask`].

    Returns:
        [`~torch.nn.attention.flex_attention.BlockMask`]
    """
    from torch.nn.attention.flex_attention import create_block_mask

    def attends(b, h, u, v):
        allowed = (v <= u) & (u < ends[b, v])
        if window is not None:
            allowed = allowed & (positions[b, u] - positions[b, v] < window)
        return allowed

    batch, length = ends.shape
    return create_block_mask(attends, batch, None, length, length, device=ends.device)
