from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .prefix_tree import PrefixTree, build_tree, pack_trees


PATH_NAMES = ("cot", "pot", "label")


@dataclass
class MDCollator:
    r"""
    Lays out the drawn thoughts of a batch of questions as rows of nodes, and scores edges between them.

    A node is a token at its position; an edge leads from a node to the token that a thought has next. In every layout
    the loss is `sum_e weights[e] * cross_entropy(state of parents[e], targets[e])`, so all layouts have the same loss.

    Args:
        pad_token_id (`int`):
            Token that fills the rows.
        layout (`str`):
            `"padded"`: a thought a row. `"packed"`: several thoughts a row, each seeing only itself. `"tree"`: the
            thoughts of a question as a prefix tree, several trees a row; a large one is cut where that is cheaper.
        token_reduction (`str`):
            `"mean"` or `"sum"` over the tokens of a thought.
        max_length (`int`, *optional*):
            Most nodes that a packed row holds.

    Returns:
        `dict[str, torch.Tensor]` for B rows of T nodes with E edges:

        - `input_ids`, `position_ids` of shape `(B, T)`
        - `attention_mask` of shape `(B, T)` (padded), or `ends` of shape `(B, T)` as in [`PrefixTree`]
        - `parents` of shape `(E,)`, into the flattened rows; `targets` of shape `(E,)`
        - `weights` of shape `(E,)`: weight in the sum of the objective, before the division by N
        - `shares` of shape `(3, E)`: weight in l(i,p) for each of `PATH_NAMES`
        - `counts` of shape `(E,)`: thoughts that pass over the edge; `types` of shape `(E,)`: type of the question
        - `path_counts` of shape `(3,)`: pairs (i,p) of each path
        - `num_questions` of shape `(4,)`: questions by type 0 to 3; their sum is what N counts
        - `lambda_sum` of shape `(1,)`: sum of lambda over the questions of type 3
        - `num_tokens` of shape `(1,)`: nodes without padding
    """

    pad_token_id: int
    layout: str
    token_reduction: str
    max_length: int | None = None

    def __call__(self, questions: list[dict[str, Any] | None]) -> dict[str, torch.Tensor]:
        questions = [question for question in questions if question is not None]
        groups = []
        for question in questions:
            found = [thought | {"type": question["type"]} for thought in question["thoughts"]]
            groups += [found] if self.layout == "tree" else [[thought] for thought in found]
        groups = [group for group in groups if group]
        # The forward pass must run on every process, so a batch without a thought gets a row without an edge.
        if not groups:
            rows = [[(build_tree([[self.pad_token_id]]), [])]]
        else:
            sequences = [[thought["input_ids"] for thought in group] for group in groups]
            if self.layout == "padded":
                placed = [[(group, [0])] for group in range(len(groups))]
            else:
                placed = pack_trees(sequences, self.max_length)
            rows = []
            for row in placed:
                parts = [[groups[group][i] for i in members] for group, members in row]
                rows.append([(build_tree([thought["input_ids"] for thought in part]), part) for part in parts])
        width = max(sum(len(tree.tokens) for tree, _ in row) for row in rows)
        input_ids = np.full((len(rows), width), self.pad_token_id)
        positions = np.zeros((len(rows), width), dtype=np.int64)
        ends = np.tile(np.arange(1, width + 1), (len(rows), 1))  # a node that fills a row sees itself only
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
        batch = {
            "input_ids": torch.from_numpy(input_ids),
            "position_ids": torch.from_numpy(positions),
            "parents": torch.from_numpy(parents),
            "targets": torch.from_numpy(targets),
            "weights": torch.from_numpy(weights).float(),
            "shares": torch.from_numpy(np.stack(shares)).float(),
            "counts": torch.from_numpy(counts),
            "types": torch.from_numpy(types),
            "path_counts": torch.tensor(
                [sum(any(t["path"] == path for t in q["thoughts"]) for q in questions) for path in PATH_NAMES]
            ),
            "num_questions": torch.bincount(torch.tensor([q["type"] for q in questions]).long(), minlength=4),
            "lambda_sum": torch.tensor([sum(q["lambda"] or 0.0 for q in questions if q["type"] == 3)]),
            "num_tokens": torch.tensor([int(filled.sum())]),
        }
        if self.layout == "padded":
            batch["attention_mask"] = torch.from_numpy(filled)
        else:
            batch["ends"] = torch.from_numpy(ends)
        return batch

    def _edges(self, tree: PrefixTree, thoughts: list[dict[str, Any]], offset: int) -> tuple[np.ndarray, ...]:
        """Parents, targets, weights, counts, types and the shares of each path, for every node that is a target."""
        size = len(tree.tokens)
        parents, counts, types = (np.zeros(size, dtype=np.int64) for _ in range(3))
        weights, shares = np.zeros(size), np.zeros((len(PATH_NAMES), size))
        for thought, nodes in zip(thoughts, tree.paths, strict=False):
            scored = nodes[thought["start"] :]
            share = thought["share"] / (len(scored) if self.token_reduction == "mean" else 1)
            parents[scored] = nodes[thought["start"] - 1 : -1]
            weights[scored] += thought["weight"] * share
            shares[PATH_NAMES.index(thought["path"]), scored] += share
            counts[scored] += 1
            types[scored] = thought["type"]
        kept = np.flatnonzero(counts)
        return parents[kept] + offset, tree.tokens[kept], weights[kept], counts[kept], types[kept], *shares[:, kept]
