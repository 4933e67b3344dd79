"""The kinds of word problems that Stories are made of: a table of wordings, numbers and steps to the answer.

In a wording, `{a}`, `{b}` and `{c}` stand for people, `{o}` and `{p}` for objects, `{d}` for a day of the week, `{x}`,
`{y}`, `{z}` and `{w}` for numbers. A step is a function of these values and of the results of the steps before it,
which are called `r`, `s`, `t` and `u`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace


NAMES = tuple("Ann Ben Carl Dora Emma Finn Gina Hugo Ivy Jack Kate Liam Mona Nora Owen Paul Ruth Sam Tina Zoe".split())
OBJECTS = tuple(
    "apples books cards coins cups eggs flowers hats kites lamps marbles nuts pears pens plates roses shells stamps "
    "stones toys".split()
)

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

LARGEST = 999
"""No number in a question or in the result of a step is larger, and none is negative."""

DAYS = {"more than": "first day", "less than": "second day", "the same as": "neither day"}
"""The answer to "On which day are there more?", by the relation of the first day's number to the second day's."""

ORDINAL_DAYS = ("first day", "second day", "third day")

RELATIONS = tuple(DAYS)
"""How one number relates to another. A step that compares numbers has one of these as its result."""


@dataclass(frozen=True)
class Kind:
    r"""
    One kind of word problem.

    Args:
        name (`str`):
            Unique name.
        family (`str`):
            Family of similar kinds; a part of the question's id.
        wordings (`tuple[str, ...]`):
            Different ways to ask the question.
        draw (`Callable`):
            Function that draws the numbers of a question with a [`random.Random`].
        steps (`tuple[Callable, ...]`):
            The program of the problem: functions that compute one result each. The last result is the gold answer.
    """

    name: str
    family: str
    wordings: tuple[str, ...]
    draw: Callable[[random.Random], dict[str, int]]
    steps: tuple[Callable[[SimpleNamespace], int | str], ...]


# Small numbers keep to addition tables that a tiny student can learn by heart. All pools are small enough for a
# training split of the default size to contain every number.
_SMALL = range(2, 10)
_DIGITS = range(2, 10)
_TWO_DIGITS = range(13, 100)
_THREE_DIGITS = range(103, 500, 7)


def _relation(left: int, right: int) -> str:
    return RELATIONS[0] if left > right else RELATIONS[1] if left < right else RELATIONS[2]


def _two_small(rng: random.Random) -> dict[str, int]:
    return {"x": rng.choice(_SMALL), "y": rng.choice(_SMALL)}


def _small_difference(rng: random.Random) -> dict[str, int]:
    y = rng.choice(_SMALL)
    return {"x": y + rng.choice(_SMALL), "y": y}


def _small_sum_less(rng: random.Random) -> dict[str, int]:
    x, y = rng.choice(_SMALL), rng.choice(_SMALL)
    return {"x": x, "y": y, "z": rng.randint(2, min(10, x + y - 1))}


def _with_extra(draw: Callable[[random.Random], dict[str, int]]) -> Callable[[random.Random], dict[str, int]]:
    return lambda rng: {**draw(rng), "z": rng.choice(_SMALL)}


def _large_product(rng: random.Random) -> dict[str, int]:
    x = rng.randint(13, 58)
    return {"x": x, "y": rng.randint(13, min(58, LARGEST // x))}


def _large_product_plus(rng: random.Random) -> dict[str, int]:
    x = rng.randint(13, 52)
    return {"x": x, "y": rng.randint(13, min(52, (LARGEST - 99) // x)), "z": rng.choice(_TWO_DIGITS)}


def _large_sum(rng: random.Random) -> dict[str, int]:
    return {"x": rng.choice(_THREE_DIGITS), "y": rng.choice(_THREE_DIGITS)}


def _large_difference(rng: random.Random) -> dict[str, int]:
    y, x = sorted(rng.sample(_THREE_DIGITS, 2))
    return {"x": x, "y": y}


def _boxes_and_more(rng: random.Random) -> dict[str, int]:
    return {
        "x": rng.choice(_TWO_DIGITS),
        "y": rng.choice(_DIGITS),
        "z": rng.choice(_DIGITS),
        "w": rng.choice(_DIGITS),
    }


def _three_gains(rng: random.Random) -> dict[str, int]:
    return {**{slot: rng.choice(_TWO_DIGITS) for slot in "xyz"}, "w": rng.randint(13, 38)}


def _to_compare(rng: random.Random, number: int) -> int:
    """A number to compare with another one. It is the same in a fifth of the cases."""
    return number if rng.random() < 0.2 else rng.choice([other for other in range(2, 13) if other != number])


def _sum_to_compare(rng: random.Random) -> dict[str, int]:
    x, y = rng.randint(2, 6), rng.randint(2, 6)
    return {"x": x, "y": y, "z": _to_compare(rng, x + y)}


def _difference_to_compare(rng: random.Random) -> dict[str, int]:
    y = rng.randint(2, 6)
    x = y + rng.randint(2, 9)
    return {"x": x, "y": y, "z": _to_compare(rng, x - y)}


def _half_and_quarter(rng: random.Random) -> dict[str, int]:
    half = rng.choice(_DIGITS)
    return {"x": 2 * half, "y": 4 * (half if rng.random() < 0.2 else rng.choice(_DIGITS))}


def _three_shares(rng: random.Random) -> dict[str, int]:
    half, third, quarter = rng.sample(_DIGITS, 3)
    return {"x": 2 * half, "y": 3 * third, "z": 4 * quarter}


def _two_waits(rng: random.Random) -> dict[str, int]:
    return {"x": rng.randint(2, 4), "y": rng.randint(2, 4), "z": rng.choice(_SMALL)}


def _weekday(day: str, wait: int) -> str:
    return WEEKDAYS[(WEEKDAYS.index(day) + wait) % 7]


def _all_but(rng: random.Random) -> dict[str, int]:
    y = rng.randint(2, 29)
    return {"x": rng.randint(y + 1, 31), "y": y}


KINDS = (
    Kind(
        name="gain",
        family="plain",
        wordings=(
            "{a} has {x} {o}. {b} gives {a} {y} more {o}. How many {o} does {a} have now?",
            "{a} finds {x} {o}. Then {a} buys {y} {o}. How many {o} does {a} have in total?",
        ),
        draw=_two_small,
        steps=(lambda v: v.x + v.y,),
    ),
    Kind(
        name="loss",
        family="plain",
        wordings=(
            "{a} has {x} {o}. {a} gives {y} {o} to {b}. How many {o} does {a} have now?",
            "{a} buys {x} {o}. Then {a} loses {y} {o}. How many {o} are left for {a}?",
        ),
        draw=_small_difference,
        steps=(lambda v: v.x - v.y,),
    ),
    Kind(
        name="gain_and_loss",
        family="plain",
        wordings=(
            "{a} has {x} {o}. {b} gives {a} {y} more {o}. Then {a} loses {z} {o}. How many {o} are left for {a}?",
            "{a} finds {x} {o}. Then {a} buys {y} {o}. {a} gives {z} {o} to {b}. How many {o} does {a} have now?",
        ),
        draw=_small_sum_less,
        steps=(lambda v: v.x + v.y, lambda v: v.r - v.z),
    ),
    Kind(
        name="product",
        family="large",
        wordings=(
            "{a} fills {x} boxes with {y} {o} each. How many {o} does {a} need?",
            "{a} packs {y} {o} into each of {x} bags. How many {o} does {a} pack in total?",
        ),
        draw=_large_product,
        steps=(lambda v: v.x * v.y,),
    ),
    Kind(
        name="product_and_more",
        family="large",
        wordings=(
            "{a} fills {x} boxes with {y} {o} each and has {z} {o} left over. How many {o} does {a} have in total?",
            "{a} has {z} {o} and buys {x} boxes with {y} {o} each. How many {o} does {a} have now?",
        ),
        draw=_large_product_plus,
        steps=(lambda v: v.x * v.y, lambda v: v.r + v.z),
    ),
    Kind(
        name="large_sum",
        family="large",
        wordings=(
            "{a} sells {x} {o} in May and {y} {o} in June. How many {o} does {a} sell in total?",
            "{a} makes {x} {o} and {b} makes {y} {o}. How many {o} do {a} and {b} make in total?",
        ),
        draw=_large_sum,
        steps=(lambda v: v.x + v.y,),
    ),
    Kind(
        name="large_difference",
        family="large",
        wordings=(
            "{a} makes {x} {o}. {a} sells {y} of the {o}. How many {o} are left for {a}?",
            "{a} needs {x} {o} and has {y} {o}. How many more {o} does {a} need?",
        ),
        draw=_large_difference,
        steps=(lambda v: v.x - v.y,),
    ),
    Kind(
        name="boxes",
        family="steps",
        wordings=(
            "{a} has {x} {o}. Then {a} buys {y} boxes with {z} {o} each. {b} gives {a} {w} more {o}. "
            "How many {o} does {a} have now?",
            "{a} has {y} boxes with {z} {o} each and {x} more {o}. Then {a} finds {w} {o}. "
            "How many {o} does {a} have in total?",
        ),
        draw=_boxes_and_more,
        steps=(lambda v: v.y * v.z, lambda v: v.x + v.r, lambda v: v.s + v.w),
    ),
    Kind(
        name="gains_and_loss",
        family="steps",
        wordings=(
            "{a} makes {x} {o} on Monday, {y} {o} on Tuesday and {z} {o} on Friday. {a} sells {w} of the {o}. "
            "How many {o} are left for {a}?",
            "{a} finds {x} {o}. Then {a} buys {y} {o}. {b} gives {a} {z} more {o}. Then {a} loses {w} {o}. "
            "How many {o} does {a} have now?",
        ),
        draw=_three_gains,
        steps=(lambda v: v.x + v.y, lambda v: v.r + v.z, lambda v: v.s - v.w),
    ),
    Kind(
        name="gain_and_extra",
        family="distractor",
        wordings=(
            "{a} has {x} {o} and {z} {p}. {b} gives {a} {y} more {o}. How many {o} does {a} have now?",
            "{a} finds {x} {o} and {z} {p}. Then {a} buys {y} {o}. How many {o} does {a} have in total?",
        ),
        draw=_with_extra(_two_small),
        steps=(lambda v: v.x + v.y,),
    ),
    Kind(
        name="loss_and_extra",
        family="distractor",
        wordings=(
            "{a} has {x} {o} and {z} {p}. {a} gives {y} {o} to {b}. How many {o} does {a} have now?",
            "{a} is {z} years old and has {x} {o}. Then {a} loses {y} {o}. How many {o} are left for {a}?",
        ),
        draw=_with_extra(_small_difference),
        steps=(lambda v: v.x - v.y,),
    ),
    Kind(
        name="sum_by_day",
        family="compare",
        wordings=(
            "On the first day {a} sells {x} {o} to {b} and {y} {o} to {c}. On the second day {a} sells {z} {o}. "
            "On which day does {a} sell more {o}?",
            "{a} finds {x} {o} and then {y} more {o} on the first day. {a} finds {z} {o} on the second day. "
            "Which day gives {a} more {o}?",
        ),
        draw=_sum_to_compare,
        steps=(lambda v: v.x + v.y, lambda v: _relation(v.r, v.z), lambda v: DAYS[v.s]),
    ),
    Kind(
        name="difference_by_day",
        family="compare",
        wordings=(
            "On the first day {a} finds {x} {o} but loses {y} of the {o}. On the second day {a} finds {z} {o}. "
            "Which day leaves {a} more {o}?",
            "{a} buys {x} {o} and gives {y} of the {o} back on the first day. {a} buys {z} {o} on the second day. "
            "From which day does {a} keep more {o}?",
        ),
        draw=_difference_to_compare,
        steps=(lambda v: v.x - v.y, lambda v: _relation(v.r, v.z), lambda v: DAYS[v.s]),
    ),
    Kind(
        name="half_and_quarter",
        family="fraction",
        wordings=(
            "On the first day {a} sells half of {x} {o}. On the second day {a} sells a quarter of {y} {o}. "
            "On which day does {a} sell more {o}?",
            "{a} loses half of {x} {o} on the first day and {b} loses a quarter of {y} {o} on the second day. "
            "On which day are more {o} lost by {a} or {b}?",
        ),
        draw=_half_and_quarter,
        steps=(
            lambda v: v.x // 2,
            lambda v: v.y // 4,
            lambda v: _relation(v.r, v.s),
            lambda v: DAYS[v.t],
        ),
    ),
    Kind(
        name="three_shares",
        family="fraction",
        wordings=(
            "{a} sells half of {x} {o} on the first day, a third of {y} {o} on the second day and a quarter of {z} "
            "{o} on the third day. On which day does {a} sell the most {o}?",
            "On the first day {a} loses half of {x} {o}. On the second day {a} loses a third of {y} {o}. "
            "On the third day {a} loses a quarter of {z} {o}. Which day costs {a} the most {o}?",
        ),
        draw=_three_shares,
        steps=(
            lambda v: v.x // 2,
            lambda v: v.y // 3,
            lambda v: v.z // 4,
            lambda v: max(v.r, v.s, v.t),
            lambda v: ORDINAL_DAYS[(v.r, v.s, v.t).index(max(v.r, v.s, v.t))],
        ),
    ),
    Kind(
        name="days_later",
        family="calendar",
        wordings=(
            "{a} orders {z} {o} on {d}. The {o} reach {a} {x} days later. {a} sells the {o} {y} days after that. "
            "On which day does {a} sell the {o}?",
            "On {d} {a} buys {z} {o}. After {x} days {a} gives the {o} to {b}, and {y} days later {b} loses the {o}. "
            "On which day does {b} lose the {o}?",
        ),
        draw=_two_waits,
        steps=(lambda v: _weekday(v.d, v.x), lambda v: _weekday(v.r, v.y)),
    ),
    Kind(
        name="all_but",
        family="trap",
        wordings=(
            "{a} has {x} {o}. {a} sells all but {y} of the {o}. How many {o} are left for {a}?",
            "{a} buys {x} {o}. Then {a} loses all but {y} {o}. How many {o} does {a} have now?",
        ),
        draw=_all_but,
        steps=(lambda v: v.y,),
    ),
    Kind(
        name="in_all",
        family="trap",
        wordings=(
            "{a} has {x} {o} in all. {y} of the {o} of {a} are new. How many {o} does {a} have in all?",
            "In all {a} owns {x} {o}. {y} of the {o} of {a} are red. How many {o} does {a} own?",
        ),
        draw=_all_but,
        steps=(lambda v: v.x,),
    ),
    Kind(
        name="more_than",
        family="trap",
        wordings=(
            "{a} has {x} {o}. That is {y} more {o} than {b} has. How many {o} does {b} have?",
            "{a} has {x} {o}, which is {y} more {o} than {b} has. How many {o} are there for {b}?",
        ),
        draw=_small_difference,
        steps=(lambda v: v.x - v.y,),
    ),
)
