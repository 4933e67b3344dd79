"""Prefix trees of token sequences, in which common beginnings occur once.

The thoughts of a question share its tokens, and sampled thoughts share beginnings with each other. A tree has one
node for every distinct beginning, in depth-first order: the nodes below node v are v, ..., `ends[v] - 1`. So node u
attends to node v, an ancestor or itself, if and only if `v <= u < ends[v]`. A single sequence is a tree too, and so
are several trees one after the other, each of which attends only to itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PrefixTree:
    r"""
    Prefix tree, or several of them, in depth-first order.

    Args:
        tokens (`np.ndarray` of shape `(size,)`):
            Token of each node.
        depths (`np.ndarray` of shape `(size,)`):
            Position of each node in its sequences, from 0.
        ends (`np.ndarray` of shape `(size,)`):
            Index after the last node below each node.
        paths (`list[np.ndarray]`):
            Nodes of each sequence, in the order the sequences were given.
    """

    tokens: np.ndarray
    depths: np.ndarray
    ends: np.ndarray
    paths: list[np.ndarray]


def build_tree(sequences: Sequence[Sequence[int]]) -> PrefixTree:
    r"""
    Build the prefix tree of token sequences.

    Args:
        sequences (`Sequence[Sequence[int]]`):
            Token ids of each sequence, at least one.

    Returns:
        [`PrefixTree`]: Tree with a node for every distinct beginning of a sequence.
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
    Sort sequences lexicographically, so that each follows the one with which it shares the longest beginning.

    Args:
        sequences (`Sequence[np.ndarray]`):
            Token ids of each sequence.

    Returns:
        `list[tuple[int, int]]`: Index of each sequence and the number of tokens it shares with the one before it.
    """
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].tolist())
    shared = [0]
    for before, i in itertools.pairwise(order):
        common = min(len(sequences[before]), len(sequences[i]))
        differs = np.flatnonzero(sequences[before][:common] != sequences[i][:common])
        shared.append(int(differs[0]) if len(differs) else common)
    return list(zip(order, shared, strict=True))
