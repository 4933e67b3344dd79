"""GSM8K: grade school word problems of two to eight steps (Cobbe et al. 2021, https://huggingface.co/papers/2110.14168).

The original, https://github.com/openai/grade-school-math, is published with its split. The gold answer follows `####`.
Thousands separators are dropped, as in `grade_school_math/dataset.py` of the original.
"""

from __future__ import annotations

import re

from ..records import Question
from .loading import Row, check_names, find_file, hub_rows, jsonl_rows


HUB, CONFIG, BENCHMARK = "openai/gsm8k", "main", "gsm8k"
SIZES = {"train": 7473, "test": 1319}
HINT = (
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
            File of the split, or the folder with `train.jsonl` and `test.jsonl`. If not given, `openai/gsm8k` is
            loaded from the Hub.
        seed (`int`, *optional*, defaults to `42`):
            Not used, because the published split is loaded.

    Returns:
        `list[Question]`: Questions with ids such as `gsm8k/test/17`, where 17 is the 0-based row.
    """
    if source is None:
        where, rows = f"{HUB}, split {split}", hub_rows(HUB, CONFIG, split, HINT)
    else:
        where = find_file(source, [f"{split}.jsonl", f"gsm8k/{split}.jsonl"], HINT)
        rows = jsonl_rows(where, HINT)
    check_names([str(n) for n in range(len(rows))], SIZES[split], str(where), HINT)
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
