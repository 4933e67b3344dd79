"""Prefix trees hold every distinct beginning once, and packing puts them into rows that are cheap to run."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from md_trl.trainer.attention import BLOCK_SIZE, Reach, block_mask, dense_mask
from md_trl.trainer.packing import pack, pack_trees, row_cost
from md_trl.trainer.prefix_tree import build_tree


sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=8)


@settings(max_examples=300, deadline=None)
@given(sequences)
def test_a_tree_has_a_node_for_every_distinct_beginning(sequences):
    tree = build_tree(sequences)
    beginnings = {tuple(s[: i + 1]) for s in sequences for i in range(len(s))}
    assert len(tree.tokens) == len(tree.depths) == len(tree.ends) == len(beginnings)
    named = {}
    for sequence, nodes in zip(sequences, tree.paths, strict=True):
        assert tree.tokens[nodes].tolist() == sequence
        assert tree.depths[nodes].tolist() == list(range(len(sequence)))
        for i, node in enumerate(nodes.tolist()):
            assert named.setdefault(node, tuple(sequence[: i + 1])) == tuple(sequence[: i + 1])
    # A node attends to another if the other's beginning is a beginning of its own.
    mask = dense_mask(torch.from_numpy(tree.ends)[None], torch.from_numpy(tree.depths)[None])[0, 0]
    for u in named:
        for v in named:
            assert mask[u, v].item() == (named[u][: len(named[v])] == named[v])


def test_trees_in_a_row_attend_only_to_themselves_and_within_the_window():
    one, other = build_tree([[1, 2, 3], [1, 2, 4]]), build_tree([[1, 2]])
    ends = torch.tensor([[*one.ends, *(other.ends + 4)]])
    depths = torch.tensor([[*one.depths, *other.depths]])
    full = dense_mask(ends, depths)[0, 0].long()
    assert full.tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]
    assert dense_mask(ends, depths, Reach(window=2))[0, 0].long().tolist()[3] == [0, 1, 0, 1, 0, 0]


@pytest.mark.parametrize("window", [None, 3])
def test_the_block_mask_equals_the_dense_mask(window):
    trees = [build_tree([[1, 2, 3, 4], [1, 2, 5], [6]]), build_tree([[1, 2, 3, 4, 5, 6]])]
    width = max(len(tree.tokens) for tree in trees)
    ends = torch.arange(1, BLOCK_SIZE + 1).repeat(2, 1)
    depths = torch.zeros(2, BLOCK_SIZE, dtype=torch.long)
    for i, tree in enumerate(trees):
        ends[i, : len(tree.tokens)] = torch.from_numpy(tree.ends)
        depths[i, : len(tree.tokens)] = torch.from_numpy(tree.depths)
    dense = dense_mask(ends, depths, Reach(window))
    mask_mod = block_mask(ends, depths, Reach(window)).mask_mod
    for b in range(2):
        for u in range(width):
            for v in range(width):
                assert bool(mask_mod(b, 0, torch.tensor(u), torch.tensor(v))) == dense[b, 0, u, v].item()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 600), min_size=1, max_size=20), st.none() | st.integers(1, 2000))
def test_packing_keeps_every_item_within_the_limit(sizes, max_length):
    rows = pack(sizes, max_length)
    assert sorted(i for row in rows for i in row) == list(range(len(sizes)))
    filled = [sum(sizes[i] for i in row) for row in rows]
    assert min(filled) > 0 and max(filled) <= max(max_length or sum(sizes), max(sizes))
    assert row_cost(len(rows), max(filled)) <= row_cost(len(sizes), max(sizes))  # one item per row


def full_rows(sizes, capacity):
    """Return the sizes of rows filled by best fit after sorting by size."""
    rows = []
    for size in sorted(sizes, reverse=True):
        fitting = [row for row in rows if sum(row) + size <= capacity]
        if fitting:
            max(fitting, key=sum).append(size)
        else:
            rows.append([size])
    return [sum(row) for row in rows]


@pytest.mark.parametrize("max_length", [512, 1024, None])
def test_packed_rows_are_cheaper_than_full_rows_and_have_little_padding(max_length):
    rng = random.Random(0)
    costs, nodes, area = [], 0, 0
    for _ in range(200):
        sizes = [rng.randint(100, 400) for _ in range(8)]
        full = full_rows(sizes, max_length or sum(sizes))
        filled = [sum(sizes[i] for i in row) for row in pack(sizes, max_length)]
        costs.append(row_cost(len(filled), max(filled)) / row_cost(len(full), max(full)))
        nodes, area = nodes + sum(sizes), area + len(filled) * max(filled)
    assert max(costs) < 1.05 and sum(costs) / len(costs) < 0.97
    assert 1 - nodes / area < 0.12


def distinct_beginnings(sequences):
    return len({tuple(s[: i + 1]) for s in sequences for i in range(len(s))})


@settings(max_examples=300, deadline=None)
@given(st.lists(sequences, min_size=1, max_size=4), st.none() | st.integers(1, 40))
def test_packed_trees_hold_every_sequence_once_within_the_limit(groups, max_length):
    rows = pack_trees(groups, max_length)
    placed = sorted((group, i) for row in rows for group, members in row for i in members)
    assert placed == [(group, i) for group, found in enumerate(groups) for i in range(len(found))]
    filled = [sum(distinct_beginnings([groups[group][i] for i in part]) for group, part in row) for row in rows]
    longest = max(len(sequence) for group in groups for sequence in group)
    assert max_length is None or max(filled) <= max(max_length, longest)
    whole = [distinct_beginnings(group) for group in groups]
    if max_length is None or max(whole) <= max_length:  # never more expensive than uncut trees
        uncut = [sum(whole[i] for i in row) for row in pack(whole, max_length)]
        assert row_cost(len(rows), max(filled)) <= row_cost(len(uncut), max(uncut))


def test_a_large_tree_is_cut_if_that_is_cheaper_than_one_long_row():
    rng = random.Random(0)
    question = [rng.randrange(1000) for _ in range(60)]
    groups = [[question + [rng.randrange(1000) for _ in range(100)] for _ in range(20)]]  # 2,060 nodes
    rows = pack_trees(groups)
    parts = [[groups[0][i] for i in members] for row in rows for _, members in row]
    assert len(rows) > 1 and all(part for part in parts)
    filled = [distinct_beginnings(part) for part in parts]
    assert sum(filled) == 2060 + 60 * (len(parts) - 1)  # only the question is repeated
    assert row_cost(len(rows), max(filled)) < 0.8 * row_cost(1, 2060)
    # A small tree is not cut.
    assert len(pack_trees([[question, [*question, 1], [*question, 2]]])) == 1
