"""GSM8K: grade school word problems of two to eight steps (Cobbe et al. 2021, https://huggingface.co/papers/2110.14168).

The original, https://github.com/openai/grade-school-math, is published with its split. The gold answer follows `####`;
thousands separators are dropped, as in `grade_school_math/dataset.py` there.
"""

from __future__ import annotations

import re

from ..records import Question
from .loading import Row, check_names, find_file, hub_rows, jsonl_rows


HUB, CONFIG = "openai/gsm8k", "main"
SIZES = {"train": 7473, "test": 1319}
REMEDY = (
    "Pass the folder with train.jsonl and test.jsonl of https://github.com/openai/grade-school-math as `source`, or "
    "leave `source` out to load openai/gsm8k from the Hub."
)


def load(split: str, source: str | None = None, seed: int = 42) -> list[Question]:
    r"""
    Load GSM8K.

    Args:
        split (`str`):
            `train` or `test`.
        source (`str`, *optional*):
            Path of the split's file, or of the folder with `train.jsonl` and `test.jsonl`. Left out, the Hub's
            `openai/gsm8k` is loaded.
        seed (`int`, *optional*, defaults to `42`):
            Not used: the split is the published one.

    Returns:
        `list[Question]`: with ids as `gsm8k/test/17`, the 0-based row.
    """
    if source is None:
        where, rows = f"{HUB}, split {split}", hub_rows(HUB, CONFIG, split, REMEDY)
    else:
        where = find_file(source, [f"{split}.jsonl", f"gsm8k/{split}.jsonl"], REMEDY)
        rows = jsonl_rows(where, REMEDY)
    check_names([str(n) for n in range(len(rows))], SIZES[split], str(where), REMEDY)
    return [
        Question(
            id=f"gsm8k/{split}/{n}", task="gsm8k", split=split, question=row.text("question"), answer=_answer(row)
        )
        for n, row in enumerate(rows)
    ]


def _answer(row: Row) -> str:
    match = re.search(r"#### *(-?\d[\d,]*(?:\.\d+)?)$", row.text("answer"))
    if match is None:
        raise row.error("answer", "a text that ends with `#### ` and a number")
    return match.group(1).replace(",", "")
