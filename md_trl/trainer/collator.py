"""Lay out a batch of questions with drawn thoughts as tensors of nodes, edges and their weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..records import PATHS_AND_LABEL, QuestionType
from .attention import BLOCK_SIZE, DENSE_ATTENTION
from .packing import pack_trees
from .prefix_tree import PrefixTree, build_tree
from .varlen_attention import VARLEN_ATTENTION, segment_arguments


Row = list[tuple[PrefixTree, list[dict[str, Any]]]]
"""The trees of a row, each with the thoughts that are its sequences."""


@dataclass
class MDCollator:
    r"""
    Data collator that lays out the drawn thoughts of a batch of questions as rows of nodes with edges to score.

    A node is a token at its position; an edge leads from a node to the next token of a thought. Whatever the layout,
    the loss is the sum over edges e of `weights[e] * cross_entropy(state of parents[e], targets[e])`, which is why all
    layouts have the same loss.

    Args:
        pad_token_id (`int`):
            Token that fills up the rows.
        layout (`str`):
            `"padded"`: one thought per row. `"packed"`: several thoughts per row, each of which attends only to
            itself. `"tree"`: the thoughts of a question as a prefix tree, several trees per row; a large tree is cut
            if that is cheaper.
        token_reduction (`str`):
            `"mean"` or `"sum"` over the tokens of a thought.
        max_row_tokens (`int`, *optional*):
            Maximum number of nodes of a row in the layouts `"packed"` and `"tree"`. A longer sequence raises it.
        attention (`str`, *optional*, defaults to `"sdpa"`):
            Attention implementation of the student. Dense masks make long rows expensive; the others do not, so that
            a batch is a single row if `max_row_tokens` allows it.

    Returns:
        `dict[str, torch.Tensor]`: For B rows of T nodes with E edges:

        - `input_ids` of shape `(B, T)`
        - `position_ids` of shape `(B, T)`
        - `attention_mask` of shape `(B, T)` if the layout is `"padded"`
        - `ends` of shape `(B, T)`, as in [`PrefixTree`], in the other layouts
        - `segments`, as [`segment_arguments`] returns them, in the other layouts if `attention` is `VARLEN_ATTENTION`
        - `parents` of shape `(E,)`: index in the flattened rows of the node that each edge starts from
        - `targets` of shape `(E,)`: token that each edge leads to
        - `weights` of shape `(E,)`: weight of each edge in the objective, before the division by N
        - `shares` of shape `(4, E)`: weight of each edge in l(i,p) for p in `PATHS_AND_LABEL`
        - `counts` of shape `(E,)`: number of thoughts that pass over each edge
        - `types` of shape `(E,)`: type of each edge's question
        - `path_counts` of shape `(4,)`: number of questions that have a thought of each path
        - `num_questions` of shape `(4,)`: number of questions of each type from 0 to 3
        - `divisor` of shape `(1,)`: what the questions count in N: each 1, its weight or its target tokens
        - `lambda_sum` of shape `(1,)`: sum of lambda over the questions of type 3
        - `num_nodes` of shape `(1,)`: number of nodes without padding
    """

    pad_token_id: int
    layout: str
    token_reduction: str
    max_row_tokens: int | None = None
    attention: str = "sdpa"

    def __call__(self, questions: list[dict[str, Any] | None]) -> dict[str, torch.Tensor]:
        questions = [question for question in questions if question is not None]
        both = [question for question in questions if question["type"] == QuestionType.BOTH]
        return self._lay_out(self._rows(questions)) | {
            "path_counts": torch.tensor(
                [sum(any(t["path"] == path for t in q["thoughts"]) for q in questions) for path in PATHS_AND_LABEL]
            ),
            "num_questions": torch.bincount(torch.tensor([q["type"] for q in questions]).long(), minlength=4),
            "divisor": torch.tensor([float(sum(question["divisor"] for question in questions))]),
            "lambda_sum": torch.tensor([sum(question["lambda"] or 0.0 for question in both)]),
        }

    def _rows(self, questions: list[dict[str, Any]]) -> list[Row]:
        groups = []
        for question in questions:
            thoughts = [thought | {"type": question["type"]} for thought in question["thoughts"]]
            groups += [thoughts] if self.layout == "tree" else [[thought] for thought in thoughts]
        groups = [group for group in groups if group]
        # Every process must run the forward pass, so a batch without any thought gets a row without edges.
        if not groups:
            return [[(build_tree([[self.pad_token_id]]), [])]]
        sequences = [[thought["input_ids"] for thought in group] for group in groups]
        if self.layout == "padded":
            placed = [[(group, [0])] for group in range(len(groups))]
        else:
            placed = pack_trees(sequences, self.max_row_tokens, dense=self.attention in DENSE_ATTENTION)
        rows = []
        for row in placed:
            parts = [[groups[group][i] for i in members] for group, members in row]
            rows.append([(build_tree([thought["input_ids"] for thought in part]), part) for part in parts])
        return rows

    def _lay_out(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        width = max(sum(len(tree.tokens) for tree, _ in row) for row in rows)
        if self.layout != "padded" and self.attention == "flex_attention":
            width = -(-width // BLOCK_SIZE) * BLOCK_SIZE
        input_ids = np.full((len(rows), width), self.pad_token_id)
        positions = np.zeros((len(rows), width), dtype=np.int64)
        ends = np.tile(np.arange(1, width + 1), (len(rows), 1))  # a padding node attends only to itself
        filled = np.zeros((len(rows), width), dtype=np.int64)
        edges = []
        for number, row in enumerate(rows):
            start = 0
            for tree, thoughts in row:
                place = slice(start, start + len(tree.tokens))
                input_ids[number, place] = tree.tokens
                positions[number, place] = tree.depths
                ends[number, place] = tree.ends + start
                filled[number, place] = 1
                edges.append(self._edges(tree, thoughts, number * width + start))
                start = place.stop
        parents, targets, weights, counts, types, *shares = (
            np.concatenate(parts) for parts in zip(*edges, strict=True)
        )
        if self.layout == "padded":
            mask = {"attention_mask": torch.from_numpy(filled)}
        else:
            mask = {"ends": torch.from_numpy(ends)}
            if self.attention == VARLEN_ATTENTION:
                mask["segments"] = segment_arguments([[tree for tree, _ in row] for row in rows], width)
        return mask | {
            "input_ids": torch.from_numpy(input_ids),
            "position_ids": torch.from_numpy(positions),
            "parents": torch.from_numpy(parents),
            "targets": torch.from_numpy(targets),
            "weights": torch.from_numpy(weights).float(),
            "shares": torch.from_numpy(np.stack(shares)).float(),
            "counts": torch.from_numpy(counts),
            "types": torch.from_numpy(types),
            "num_nodes": torch.tensor([int(filled.sum())]),
        }

    # Parents, targets, weights, counts, types and the shares of each path, for every node that is a target
    def _edges(self, tree: PrefixTree, thoughts: list[dict[str, Any]], offset: int) -> tuple[np.ndarray, ...]:
        size = len(tree.tokens)
        parents, counts, types = (np.zeros(size, dtype=np.int64) for _ in range(3))
        weights, shares = np.zeros(size), np.zeros((len(PATHS_AND_LABEL), size))
        for thought, nodes in zip(thoughts, tree.paths, strict=False):
            scored = nodes[thought["start"] :]
            share = thought["share"] / (len(scored) if self.token_reduction == "mean" else 1)
            parents[scored] = nodes[thought["start"] - 1 : -1]
            weights[scored] += thought["weight"] * share
            shares[PATHS_AND_LABEL.index(thought["path"]), scored] += share
            counts[scored] += 1
            types[scored] = thought["type"]
        kept = np.flatnonzero(counts)
        return parents[kept] + offset, tree.tokens[kept], weights[kept], counts[kept], types[kept], *shares[:, kept]
