"""ASDiv: word problems of grades 1 to 6 (Miao et al. 2020, https://huggingface.co/papers/2106.15772).

The original, https://github.com/chaochun/nlu-asdiv-dataset, is one XML file of 2,305 problems without a split. As in
the paper (Appendix A), 695 of them are drawn as the test set, stratified by grade. The paper's own draw is not known.

Gold answers are those of the file, with these changes only:

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


HUB, CONFIG, BENCHMARK = "EleutherAI/asdiv", "asdiv", "asdiv"
SIZES = {"train": 1610, "test": 695}
HINT = (
    "Pass ASDiv.xml of https://github.com/chaochun/nlu-asdiv-dataset as `source`, or leave `source` out to load "
    "EleutherAI/asdiv from the Hub."
)

# The copy on the Hub has neither ids nor grades, but it has the order of the file: ids count from 1, and these are the
# runs of grades (`2x143` means 143 problems of grade 2).
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
    Load ASDiv. A seed gives the same splits from the Hub and from the file.

    Args:
        split (`str`):
            `train` or `test`.
        source (`str`, *optional*):
            `ASDiv.xml` or the folder that holds it. If not given, `EleutherAI/asdiv` is loaded from the Hub, which
            holds the same problems in the same order as one split `validation`.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the split.

    Returns:
        `list[Question]`: Questions with ids such as `asdiv/train/nluds-0001`. Their group is the grade.
    """
    if source is None:
        where, rows = HUB, hub_rows(HUB, CONFIG, "validation", HINT)
        names = [f"nluds-{n:04d}" for n in range(1, len(rows) + 1)]
        runs = [run.split("x") for run in _GRADES.split()]
        grades = [grade for grade, times in runs for _ in range(int(times))]
    else:
        where = find_file(source, ["ASDiv.xml"], HINT)
        rows = _xml_rows(str(where))
        names, grades = [row.text("id") for row in rows], [row.text("grade") for row in rows]
    check_names(names, sum(SIZES.values()), str(where), HINT)
    test = draw_test(dict(zip(names, grades, strict=True)), SIZES["test"], seed)
    return [
        Question(
            id=f"asdiv/{split}/{name}",
            task="asdiv",
            split=split,
            # A body ends with a period, or with a comma if the question is in lower case.
            question=" ".join(f"{row.text('body')} {row.text('question')}".split()),
            answer=_answer(row),
            group=f"grade {grade}",
        )
        for name, grade, row in zip(names, grades, rows, strict=True)
        if (name in test) == (split == "test")
    ]


def _xml_rows(file: str) -> list[Row]:
    """Load the problems of the original file, with the column names that they have on the Hub."""
    try:
        problems = list(ElementTree.parse(file).iter("Problem"))
    except ElementTree.ParseError as error:
        raise InputError(f"{file} is not an XML file: {error}. {HINT}") from error
    rows = []
    for n, problem in enumerate(problems, 1):
        values = {name.lower(): value for name, value in problem.items()}
        values |= {element.tag.lower(): element.text for element in problem}
        rows.append(Row(f"{file}, row {n}", values, HINT))
    return rows


def _answer(row: Row) -> str:
    return "; ".join(_without_unit(part.strip()) for part in row.text("answer").split(";"))


def _without_unit(answer: str) -> str:
    number = re.fullmatch(r"(-?\d+(?:\.\d+)?)\s*\(.*\)", answer)
    # The answer of nluds-1331 is `-(1/3)`, where the brackets do not hold a unit.
    return number.group(1) if number else answer.replace("-(1/3)", "-1/3")
