"""Pack the prefix trees of a batch into rows that are cheap to run."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

import numpy as np

from .attention import BLOCK_SIZE
from .prefix_tree import neighbours


def split(lengths: Sequence[int], ordered: list[tuple[int, int]], limit: int) -> list[tuple[list[int], int]]:
    r"""
    Cut a prefix tree into parts, each of which repeats the beginning it shares with others.

    Args:
        lengths (`Sequence[int]`):
            Length of each sequence of the tree.
        ordered (`list[tuple[int, int]]`):
            Sorted sequences, as returned by [`neighbours`].
        limit (`int`):
            Maximum number of nodes of a part. A longer sequence is a part on its own.

    Returns:
        `list[tuple[list[int], int]]`: Sequences and number of nodes of each part.
    """
    parts: list[tuple[list[int], int]] = []
    for i, shared in ordered:
        if parts and parts[-1][1] + lengths[i] - shared <= limit:
            members, size = parts.pop()
            parts.append(([*members, i], size + lengths[i] - shared))
        else:
            parts.append(([i], lengths[i]))
    return parts


def row_cost(rows: int, longest: int, dense: bool = True) -> int:
    r"""
    Estimate the time of a forward pass over padded rows, up to a constant factor.

    Attention of one node over a masked row of 2,048 nodes is assumed to take as long as the rest of the model. (On a
    CPU, SmolLM2-135M reaches that at 1,400; larger models reach it later.)

    Args:
        rows (`int`):
            Number of rows.
        longest (`int`):
            Number of nodes of the longest row.
        dense (`bool`, *optional*, defaults to `True`):
            Whether attention visits all pairs of nodes of a row, not just those within a tree.

    Returns:
        `int`: Relative time.
    """
    if dense:
        return rows * longest * (2048 + longest)
    return rows * -(-longest // BLOCK_SIZE)  # FlexAttention fills rows up to whole blocks


def pack(sizes: Sequence[int], max_row_tokens: int | None = None, dense: bool = True) -> list[list[int]]:
    r"""
    Distribute items over rows that are cheap to run: with little padding, and short if attention is quadratic.

    For every number of rows that could be the best, items go from largest to smallest into the emptiest row.

    Args:
        sizes (`Sequence[int]`):
            Size of each item, at least one.
        max_row_tokens (`int`, *optional*):
            Maximum size of a row. Since all rows are padded to the longest, a larger item raises it for all of them.
        dense (`bool`, *optional*, defaults to `True`):
            As in [`row_cost`].

    Returns:
        `list[list[int]]`: Items of each row.
    """
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    total, largest = sum(sizes), sizes[order[0]]
    limit = total if max_row_tokens is None else max(max_row_tokens, largest)

    def bound(count: int) -> int:
        return row_cost(count, max(largest, -(-total // count)), dense)

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
        if longest <= limit and row_cost(count, longest, dense) < least:
            best, least = rows, row_cost(count, longest, dense)
    return best


def pack_trees(
    groups: Sequence[Sequence[Sequence[int]]], max_row_tokens: int | None = None, dense: bool = True
) -> list[list[tuple[int, list[int]]]]:
    r"""
    Distribute the prefix trees of several groups of sequences over rows that are cheap to run.

    A tree that would make the rows long is cut if that is cheaper, although its parts then repeat their beginning.

    Args:
        groups (`Sequence[Sequence[Sequence[int]]]`):
            Token ids of the sequences of each group.
        max_row_tokens (`int`, *optional*):
            Maximum number of nodes of a row. A longer sequence raises it.
        dense (`bool`, *optional*, defaults to `True`):
            As in [`row_cost`].

    Returns:
        `list[list[tuple[int, list[int]]]]`: Trees of each row, each as the index of its group and the indices of its
        sequences in that group.
    """
    arrays = [[np.asarray(sequence, dtype=np.int64) for sequence in group] for group in groups]
    lengths = [[len(array) for array in group] for group in arrays]
    ordered = [neighbours(group) for group in arrays]
    longest = max(map(max, lengths))
    limit = max(sum(n) - sum(shared for _, shared in found) for n, found in zip(lengths, ordered, strict=True))
    if max_row_tokens is not None:
        limit = min(limit, max(longest, max_row_tokens))
    best, least = [], math.inf
    while True:
        parts = [
            (group, members, size)
            for group, found in enumerate(ordered)
            for members, size in split(lengths[group], found, limit)
        ]
        rows = [[parts[i] for i in row] for row in pack([size for *_, size in parts], max_row_tokens, dense)]
        cost = row_cost(len(rows), max(sum(size for *_, size in row) for row in rows), dense)
        if cost < least:
            best, least = rows, cost
        # A single row of whole trees has no node too many, so nothing beats it where attention is not quadratic
        if limit == longest or (len(rows) == 1 and not dense):
            return [[(group, members) for group, members, _ in row] for row in best]
        limit = max(longest, limit * 15 // 16)
