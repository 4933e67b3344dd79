from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


PATH_NAMES = ("cot", "pot", "label")


@dataclass
class PaddedCollator:
    r"""
    Lays out the drawn thoughts of a batch of questions one a row, padded on the right.

    Only target positions, and those between the first and the last of them, meet the LM head.

    Args:
        pad_token_id (`int`):
            Token that fills the rows.
        token_reduction (`str`):
            `"mean"` or `"sum"` over the tokens of a thought.

    Returns:
        `dict[str, torch.Tensor]` for B thoughts of at most T tokens, of which the head scores K positions:

        - `input_ids`, `attention_mask` of shape `(B, T)`
        - `logits_to_keep` of shape `(K,)`: positions whose next token may be a target
        - `labels` of shape `(B, K)`: the targets, -100 elsewhere; `token_weights` of the same shape: 1 / length of the
          thought, or 1 for `"sum"`, and 0 off the targets
        - `shares`, `weights`, `paths`, `types` of shape `(B,)`: the share of a thought in its path's mean, the path
          weight w(i,p), index into `PATH_NAMES`, type of the question
        - `num_questions` of shape `(4,)`: questions of the batch by type 0 to 3; their sum is what N counts
        - `lambda_sum` of shape `(1,)`: sum of lambda over the questions of type 3
    """

    pad_token_id: int
    token_reduction: str

    def __call__(self, questions: list[dict[str, Any] | None]) -> dict[str, torch.Tensor]:
        questions = [question for question in questions if question is not None]
        thoughts = [(thought, question["type"]) for question in questions for thought in question["thoughts"]]
        # The forward pass must run on every process, so a batch without a thought gets one row without a target.
        rows = [thought["input_ids"] for thought, _ in thoughts] or [[self.pad_token_id] * 2]
        starts = [thought["start"] for thought, _ in thoughts] or [1]
        width, first = max(map(len, rows)), min(starts)

        input_ids = torch.full((len(rows), width), self.pad_token_id)
        attention_mask = torch.zeros((len(rows), width), dtype=torch.long)
        labels = torch.full((len(rows), width - first), -100)
        token_weights = torch.zeros((len(rows), width - first))
        for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
            input_ids[i, : len(row)] = torch.tensor(row)
            attention_mask[i, : len(row)] = 1
            if thoughts:
                targets = slice(start - first, len(row) - first)
                labels[i, targets] = input_ids[i, start : len(row)]
                token_weights[i, targets] = 1 / (len(row) - start) if self.token_reduction == "mean" else 1.0
        no_thought = ({"share": 0.0, "weight": 0.0, "path": PATH_NAMES[0]}, 0)
        thoughts = thoughts or [no_thought]
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "logits_to_keep": torch.arange(first - 1, width - 1),
            "labels": labels,
            "token_weights": token_weights,
            "shares": torch.tensor([thought["share"] for thought, _ in thoughts]),
            "weights": torch.tensor([thought["weight"] for thought, _ in thoughts]),
            "paths": torch.tensor([PATH_NAMES.index(thought["path"]) for thought, _ in thoughts]),
            "types": torch.tensor([type_ for _, type_ in thoughts]),
            "num_questions": torch.bincount(torch.tensor([q["type"] for q in questions]).long(), minlength=4),
            "lambda_sum": torch.tensor([sum(q["lambda"] or 0.0 for q in questions if q["type"] == 3)]),
        }
