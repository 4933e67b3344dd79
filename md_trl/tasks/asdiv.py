"""ASDiv: word problems of grades 1 to 6 (Miao et al. 2020, https://huggingface.co/papers/2106.15772).

The original, https://github.com/chaochun/nlu-asdiv-dataset, is one XML file of 2,305 problems without a split. As in
the paper (Appendix A), 695 of them are drawn as test set by the distribution of grades; the paper's own are not known.

Gold answers are the file's, with these changes and no others:

| kind | rows | in the file | here |
| --- | --- | --- | --- |
| number with a unit | 2,036 | `9 (apples)` | `9` |
| several numbers, in the order asked for | 90 | `40 (km/hour); 30 (km/hour)`, `12; 13` | `40; 30`, `12; 13` |
| negative fraction | 1 | `-(1/3)` | `-1/3` |
| number without a unit, fraction, ratio, time, name, sentence, yes or no | 178 | `5:6`, `3:30 p.m.` | the same |
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

from ..errors import InputError
from ..records import Question
from .loading import Row, check_names, draw_test, find_file, hub_rows


HUB, CONFIG = "EleutherAI/asdiv", "asdiv"
SIZES = {"train": 1610, "test": 695}
REMEDY = (
    "Pass ASDiv.xml of https://github.com/chaochun/nlu-asdiv-dataset as `source`, or leave `source` out to load "
    "EleutherAI/asdiv from the Hub."
)

# The Hub's copy has neither ids nor grades, but the order of the file: ids count from 1, grades come in these runs
# (`2x143`: grade 2, 143 times).
_GRADES = """
    1x57 2x143 3x450 4x3 3x1 5x2 4x1 3x1 5x1 4x2 3x1 5x1 3x1 5x1 4x2 3x1 4x6 5x11 2x52 1x7 4x29 3x20 5x20 4x10 3x8
    4x18 6x17 5x9 2x2 5x3 6x2 3x1 2x1 6x1 5x2 6x1 5x1 4x1 6x2 5x3 4x1 5x1 3x1 5x3 6x1 3x2 4x2 6x1 4x1 6x1 5x1 4x1 6x1
    4x1 5x1 3x54 6x13 3x64 6x18 5x21 6x2 5x2 4x5 6x13 5x3 6x27 5x14 6x9 4x1 6x10 5x17 6x45 3x17 1x7 2x4 3x2 2x1 1x1
    4x1 2x1 4x1 2x1 1x1 2x1 3x1 1x2 4x1 1x4 2x1 3x1 1x2 2x1 1x1 2x1 1x4 3x1 1x1 2x2 6x57 3x1 5x5 6x1 3x8 2x1 3x1 2x1
    3x1 5x1 3x1 2x1 3x2 5x1 3x2 5x1 2x1 5x1 3x1 2x1 3x1 6x103 5x1 6x3 4x1 6x1 5x1 6x2 5x2 6x1 5x1 6x5 5x4 6x3 5x1
    6x12 5x10 4x112 6x69 2x2 3x51 4x70 1x52 2x55 1x34 6x13 2x20 6x81 3x23 2x27 1x22 2x20 3x77 4x13 3x1 4x1 3x5 4x2
    3x1 4x6 3x5 4x9
"""


def load(split: str, source: str | None = None, seed: int = 42) -> list[Question]:
    r"""
    Load ASDiv. The same seed gives the same splits from the Hub and from the file.

    Args:
        split (`str`):
            `train` or `test`.
        source (`str`, *optional*):
            Path of `ASDiv.xml` or of its folder. Left out, the Hub's `EleutherAI/asdiv` is loaded: the same file in
            the same order, as one split `validation` with the columns `body`, `question` and `answer`.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the split.

    Returns:
        `list[Question]`: with ids as `asdiv/train/nluds-0001`.
    """
    if source is None:
        where, rows = HUB, hub_rows(HUB, CONFIG, "validation", REMEDY)
        names = [f"nluds-{n:04d}" for n in range(1, len(rows) + 1)]
        runs = [run.split("x") for run in _GRADES.split()]
        grades = [grade for grade, times in runs for _ in range(int(times))]
    else:
        where = find_file(source, ["ASDiv.xml"], REMEDY)
        rows = _xml_rows(str(where))
        names, grades = [row.text("id") for row in rows], [row.text("grade") for row in rows]
    check_names(names, sum(SIZES.values()), str(where), REMEDY)
    test = draw_test(dict(zip(names, grades, strict=True)), SIZES["test"], seed)
    return [
        Question(
            id=f"asdiv/{split}/{name}",
            task="asdiv",
            split=split,
            # Bodies end with a period, or with a comma before a question in lower case.
            question=" ".join(f"{row.text('body')} {row.text('question')}".split()),
            answer=_answer(row),
        )
        for name, row in zip(names, rows, strict=True)
        if (name in test) == (split == "test")
    ]


def _xml_rows(path: str) -> list[Row]:
    """The problems of the original file under the column names of the Hub."""
    try:
        problems = list(ElementTree.parse(path).iter("Problem"))
    except ElementTree.ParseError as error:
        raise InputError(f"{path} is not an XML file: {error}. {REMEDY}") from error
    rows = []
    for n, problem in enumerate(problems, 1):
        values = {name.lower(): value for name, value in problem.items()}
        values |= {element.tag.lower(): element.text for element in problem}
        rows.append(Row(f"{path}, row {n}", values, REMEDY))
    return rows


def _answer(row: Row) -> str:
    return "; ".join(_without_unit(part.strip()) for part in row.text("answer").split(";"))


def _without_unit(answer: str) -> str:
    number = re.fullmatch(r"(-?\d+(?:\.\d+)?)\s*\(.*\)", answer)
    # The whole answer of nluds-1331, where the brackets are not a unit's.
    return number.group(1) if number else answer.replace("-(1/3)", "-1/3")
