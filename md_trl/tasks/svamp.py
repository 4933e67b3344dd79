"""SVAMP: elementary word problems in varied wordings (Patel et al. 2021, https://huggingface.co/papers/2103.07191).

The original, https://github.com/arkilpatel/SVAMP, is one file of 1,000 rows without a split. The copy on the Hub is
split 700 / 300. The original file is split here into the same sizes, but not into the same questions as on the Hub.
"""

from __future__ import annotations

import math
import re

from ..records import Question
from .loading import Row, check_names, draw_test, find_file, hub_rows, json_rows


HUB, BENCHMARK = "ChilleD/SVAMP", "default"
SIZES = {"train": 700, "test": 300}
HINT = (
    "Pass SVAMP.json of https://github.com/arkilpatel/SVAMP as `source`, or leave `source` out to load ChilleD/SVAMP "
    "from the Hub."
)


def load(split: str, source: str | None = None, seed: int = 42) -> list[Question]:
    r"""
    Load SVAMP.

    Args:
        split (`str`):
            `train` or `test`.
        source (`str`, *optional*):
            `SVAMP.json` or the folder that holds it. If not given, `ChilleD/SVAMP` is loaded from the Hub, which has
            the columns of the file.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the split of the original file, which is stratified by `Type`. The split on the Hub is fixed.

    Returns:
        `list[Question]`: Questions with ids such as `svamp/train/chal-12`. Their group is the `Type`.
    """
    if source is None:
        rows = hub_rows(HUB, None, split, HINT)
        check_names([row.text("ID") for row in rows], SIZES[split], f"{HUB}, split {split}", HINT)
        return [_question(row, split) for row in rows]
    file = find_file(source, ["SVAMP.json"], HINT)
    rows = json_rows(file, HINT)
    check_names([row.text("ID") for row in rows], sum(SIZES.values()), str(file), HINT)
    types = {row.text("ID"): _type(row) for row in rows}
    test = draw_test(types, SIZES["test"], seed)
    return [_question(row, split) for row in rows if (row.text("ID") in test) == (split == "test")]


def _question(row: Row, split: str) -> Question:
    return Question(
        id=f"svamp/{split}/{row.text('ID')}",
        task="svamp",
        split=split,
        question=join(row.text("Body"), row.text("Question")),
        answer=_answer(row),
        group=_type(row),
    )


def _type(row: Row) -> str:
    # One row has the type `Common-Divison`.
    return row.text("Type").replace("Divison", "Division")


def join(body: str, question: str) -> str:
    r"""
    Join the body of a problem and its question.

    358 of the bodies have no final period: 346 end in a clause with `If`, which the question continues, and 12 in a
    sentence.

    Args:
        body (`str`):
            Body of the problem.
        question (`str`):
            Its question.

    Returns:
        `str`: Both as one text.

    Examples:

    ```python
    >>> join("Mary has 2 hens. If she buys 3 hens", "How many hens will she have?")
    'Mary has 2 hens. If she buys 3 hens, how many hens will she have?'
    ```
    """
    if body.endswith((".", "!", "?")):
        return f"{body} {question}"
    last_sentence = re.split(r"[.!?] ", body)[-1]
    if last_sentence.startswith("If "):
        return f"{body}, {question[0].lower()}{question[1:]}"
    return f"{body}. {question}"


def _answer(row: Row) -> str:
    """Return 51 for 51.0: answers are floats, but all are integers. The wrong answer of chal-680 is kept."""
    try:
        number = float(row["Answer"])
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or isinstance(row["Answer"], bool):
        raise row.error("Answer", "a number")
    return str(int(number)) if number.is_integer() else str(number)
