"""Stories, the offline default task: generated word problems whose program is known.

Seven families, chosen after the cases of Sec. 3.1 in which one path solves what the other does not:

| family | what it asks | answers |
| --- | --- | --- |
| `plain` | one or two steps on small numbers | numbers |
| `large` | one or two steps on two- and three-digit numbers | numbers |
| `steps` | three steps | numbers |
| `distractor` | one step, with a number that does not matter | numbers |
| `compare` | two small numbers | `first day`, `second day`, `neither day`, yes/no |
| `fraction` | halves and quarters, compared | yes/no, `first day`, `second day`, `neither day` |
| `trap` | sentences that invite the wrong operation (`all but 4`) | numbers |

A question is one wording of a [`Kind`] with names, objects and numbers filled in, and [`parse`] is the exact inverse,
so whoever holds the text of a question can write right and wrong thoughts about it ([`Story`]). Every number in a
question, an answer or a chain of thought is an integer from 0 to 999, so that a word-level vocabulary can be closed.

Every sentence names a person and a kind of object. The pairs of a name and an object are divided between the splits,
so train and test share no sentence, whatever their seeds and sizes.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace

from ..errors import InputError
from ..records import Question


NAMES = tuple("Ann Ben Carl Dora Emma Finn Gina Hugo Ivy Jack Kate Liam Mona Nora Owen Paul Ruth Sam Tina Zoe".split())
OBJECTS = tuple(
    "apples books cards coins cups eggs flowers hats kites lamps marbles nuts pears pens plates roses shells stamps "
    "stones toys".split()
)

SIZES = {"train": 3000, "test": 400}

LARGEST = 999
"""No number in a question, an answer or a chain of thought is larger, and none is negative."""

# The family of each of 20 questions in a row, so that every stretch of a split has the same mix.
_CYCLE = (
    "plain large steps distractor compare plain large trap distractor steps "
    "plain large fraction compare plain large steps trap distractor plain"
).split()
FAMILIES = tuple(dict.fromkeys(_CYCLE))


@dataclass(frozen=True)
class Kind:
    r"""
    One kind of problem: its wordings, and how to think about it rightly and wrongly.

    In all texts `{a}`, `{b}` stand for names, `{o}`, `{p}` for objects, `{x}`, `{y}`, `{z}`, `{w}` for the numbers of
    the question, `{r}` to `{u}` for the results of the steps, `{m}` for the result of the misreading.

    Args:
        family (`str`):
            Family of the kind.
        wordings (`tuple[str, ...]`):
            The question in several sentence forms.
        draw (`Callable`):
            Draws the numbers of a question from a [`random.Random`].
        steps (`tuple[Callable, ...]`):
            The steps to the answer, each from the values so far; the last gives the answer.
        cot (`tuple[str, ...]`), pot (`tuple[str, ...]`):
            Right thoughts in several wordings.
        misread (`Callable`):
            The step of someone who misreads the question.
        wrong_cot (`tuple[str, ...]`), wrong_pot (`tuple[str, ...]`):
            Thoughts of someone who misreads it. Such a program never gives the right answer.
    """

    family: str
    wordings: tuple[str, ...]
    draw: Callable[[random.Random], dict[str, int]]
    steps: tuple[Callable[[SimpleNamespace], int | str], ...]
    cot: tuple[str, ...]
    pot: tuple[str, ...]
    misread: Callable[[SimpleNamespace], int | str]
    wrong_cot: tuple[str, ...]
    wrong_pot: tuple[str, ...]


@dataclass(frozen=True)
class Story:
    r"""
    A question taken apart.

    Args:
        kind (`Kind`):
            Kind of the problem.
        values (`dict[str, int | str]`):
            Names, objects and numbers of the question.
    """

    kind: Kind
    values: dict[str, int | str]

    @property
    def family(self) -> str:
        """Family of the problem."""
        return self.kind.family

    @property
    def answer(self) -> str:
        """Gold answer."""
        return str(self._results()[-1])

    def right(self, path: str) -> list[str]:
        """Right thoughts of a path (`cot` or `pot`), one in each wording."""
        wordings = {"cot": self.kind.cot, "pot": self.kind.pot}[path]
        return [self._render(wording, self._results()) for wording in wordings]

    def misread(self, path: str) -> list[str]:
        """Thoughts of a path by someone who misreads the question: they run, and reach a wrong answer."""
        wordings = {"cot": self.kind.wrong_cot, "pot": self.kind.wrong_pot}[path]
        return [self._render(wording, self._results()) for wording in wordings]

    def slip(self, rng: random.Random) -> str:
        """A chain of thought with one wrong result in it, and the wrong answer that follows from it."""
        right = self._results()
        places = range(len(right))
        if isinstance(right[-1], str):
            # A wrong number before a comparison may not change its outcome, so the comparison itself goes wrong.
            places = [place for place, result in enumerate(right) if result in _RELATIONS]
        results = right
        while results[-1] == right[-1]:
            results = self._results(rng.choice(places), rng)
        return self._render(rng.choice(self.kind.cot), results)

    def crash(self) -> str:
        """A program that does not run: it calls a function that nobody wrote."""
        return self._render("answer = count_{o}({x})", self._results())

    def _results(self, slip_at: int | None = None, rng: random.Random | None = None) -> list[int | str]:
        results = []
        for place, step in enumerate(self.kind.steps):
            known = SimpleNamespace(**self.values, **dict(zip("rstu", results, strict=False)))
            result = step(known)
            results.append(_slipped(result, rng) if place == slip_at else result)
        return results

    def _render(self, wording: str, results: list[int | str]) -> str:
        misread = self.kind.misread(SimpleNamespace(**self.values))
        return wording.format(**self.values, **dict(zip("rstu", results, strict=False)), m=misread)


def load(split: str, source: str | None = None, seed: int = 42, size: int | None = None) -> list[Question]:
    r"""
    Generates the questions of a split.

    The same seed gives the same questions in every process and Python version, and a smaller `size` gives the first of
    them. Train and test share no sentence, whatever their seeds.

    Args:
        split (`str`):
            `train` or `test`.
        source (`str`, *optional*):
            Must be `None`: the questions are made here.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the generator. Ids do not carry it: keep the thoughts of different seeds in different stores.
        size (`int`, *optional*):
            Number of questions, 3,000 in `train` and 400 in `test` by default.

    Returns:
        `list[Question]`: The questions, with ids like `stories/train/large/17`.
    """
    if split not in SIZES:
        raise InputError(f"Unknown split {split!r} of stories. Choose one of {', '.join(SIZES)}.")
    if source is not None:
        raise InputError(
            f"Stories are generated, not read: leave `source` out (it is {source!r}); `seed` varies them."
        )
    size = SIZES[split] if size is None else size
    if size < 1:
        raise InputError(f"`size` must be 1 or more, not {size}.")
    questions, seen, count = [], set(), dict.fromkeys(FAMILIES, 0)
    for place in range(size):
        family = _CYCLE[place % len(_CYCLE)]
        rng = random.Random(f"stories/{split}/{seed}/{place}")
        kinds = [kind for kind in KINDS if kind.family == family]
        for _ in range(1000):
            kind = rng.choice(kinds)
            values = {**_cast(rng, split), **kind.draw(rng)}
            text = rng.choice(kind.wordings).format(**values)
            if text not in seen:
                break
        else:
            raise InputError(f"There are not {size} different stories in split {split!r}: ask for a smaller `size`.")
        seen.add(text)
        id = f"stories/{split}/{family}/{count[family]}"
        questions.append(Question(id, "stories", split, text, Story(kind, values).answer))
        count[family] += 1
    return questions


@lru_cache(maxsize=65536)
def parse(question: str) -> Story | None:
    """Takes the text of a question apart: the exact inverse of the generator, `None` for any other text."""
    for kind, wording, pattern in _PATTERNS:
        if match := pattern.fullmatch(question):
            values = {slot: int(text) if text.isdigit() else text for slot, text in match.groupdict().items()}
            # `007` is no number of ours.
            return Story(kind, values) if wording.format(**values) == question else None
    return None


def in_split(name: str, thing: str, split: str) -> bool:
    """Whether the sentences of a split may bring this name and this kind of object together."""
    return ((NAMES.index(name) + OBJECTS.index(thing)) % 5 == 0) == (split == "test")


def _cast(rng: random.Random, split: str) -> dict[str, str]:
    """Two names and two objects, any of which may meet in a sentence of the split."""
    o = rng.choice(OBJECTS)
    a, b = rng.sample([name for name in NAMES if in_split(name, o, split)], 2)
    others = [p for p in OBJECTS if p != o and in_split(a, p, split) and in_split(b, p, split)]
    return {"a": a, "b": b, "o": o, "p": rng.choice(others)}


def _slipped(result: int | str, rng: random.Random) -> int | str:
    if isinstance(result, str):
        return rng.choice([other for other in _RELATIONS if other != result])
    errors = (1, 2, 3) if result < 20 else (1, 2, 3, 4, 6, 8, 10, 11, 18, 20, 30, 90, 100)
    near = [result + sign * error for error in errors for sign in (-1, 1)]
    return rng.choice([number for number in near if 0 <= number <= LARGEST])


# Numbers. Small ones keep to the tables of addition that a small student can learn by heart; the pools are small
# enough that a training split of the default size shows every number.
_DIGITS = range(2, 10)
_TWO_DIGITS = range(13, 100)
_THREE_DIGITS = range(103, 500, 7)

_DAYS = {"more than": "first day", "less than": "second day", "the same as": "neither day"}
_RELATIONS = tuple(_DAYS)


def _relation(left: int, right: int) -> str:
    return _RELATIONS[0] if left > right else _RELATIONS[1] if left < right else _RELATIONS[2]


def _two_small(rng: random.Random) -> dict[str, int]:
    return {"x": rng.choice(_DIGITS), "y": rng.choice(_DIGITS)}


def _small_difference(rng: random.Random) -> dict[str, int]:
    y = rng.choice(_DIGITS)
    return {"x": y + rng.choice(_DIGITS), "y": y}


def _small_sum_less(rng: random.Random) -> dict[str, int]:
    x, y = rng.choice(_DIGITS), rng.choice(_DIGITS)
    return {"x": x, "y": y, "z": rng.randint(2, min(9, x + y - 1))}


def _with_extra(draw: Callable[[random.Random], dict[str, int]]) -> Callable[[random.Random], dict[str, int]]:
    return lambda rng: {**draw(rng), "z": rng.choice(_DIGITS)}


def _large_product(rng: random.Random) -> dict[str, int]:
    x = rng.choice([number for number in _TWO_DIGITS if number * 13 <= LARGEST])
    return {"x": x, "y": rng.randint(13, LARGEST // x)}


def _large_product_plus(rng: random.Random) -> dict[str, int]:
    x = rng.randint(13, 60)
    y = rng.randint(13, (LARGEST - 99) // x)
    return {"x": x, "y": y, "z": rng.choice(_TWO_DIGITS)}


def _large_sum(rng: random.Random) -> dict[str, int]:
    return {"x": rng.choice(_THREE_DIGITS), "y": rng.choice(_THREE_DIGITS)}


def _large_difference(rng: random.Random) -> dict[str, int]:
    y, x = sorted(rng.sample(_THREE_DIGITS, 2))
    return {"x": x, "y": y}


def _boxes_and_more(rng: random.Random) -> dict[str, int]:
    # From 3 boxes on, as 2 + 2 = 2 * 2 would make a misreading right.
    boxes = rng.choice(_DIGITS[1:])
    return {"x": rng.choice(_TWO_DIGITS), "y": boxes, "z": rng.choice(_DIGITS), "w": rng.choice(_DIGITS)}


def _three_gains(rng: random.Random) -> dict[str, int]:
    return {**{slot: rng.choice(_TWO_DIGITS) for slot in "xyz"}, "w": rng.randint(13, 38)}


def _two_to_compare(rng: random.Random) -> dict[str, int]:
    x = rng.choice(_DIGITS)
    return {"x": x, "y": x if rng.random() < 0.2 else rng.choice(_DIGITS)}


def _part_of_even(rng: random.Random) -> dict[str, int]:
    x = rng.choice(range(4, 13, 2))
    return {"x": x, "y": rng.randint(1, x - 1)}


def _half_and_quarter(rng: random.Random) -> dict[str, int]:
    return {"x": rng.choice(range(2, 13, 2)), "y": rng.choice(range(4, 25, 4))}


def _all_but(rng: random.Random) -> dict[str, int]:
    y = rng.randint(2, 29)
    # Half of the number would make the misreading right.
    return {"x": rng.choice([x for x in range(y + 1, 32) if x != 2 * y]), "y": y}


KINDS = (
    # plain
    Kind(
        family="plain",
        wordings=(
            "{a} has {x} {o}. {b} gives {a} {y} more {o}. How many {o} does {a} have now?",
            "{a} finds {x} {o}. Then {a} buys {y} {o}. How many {o} does {a} have in total?",
        ),
        draw=_two_small,
        steps=(lambda v: v.x + v.y,),
        cot=(
            "There are {y} more {o}: {x} + {y} = {r}. The answer is {r}.",
            "Add the {o}: {x} + {y} = {r}. The answer is {r}.",
        ),
        pot=("answer = {x} + {y}", "had = {x}\nmore = {y}\nanswer = had + more"),
        misread=lambda v: abs(v.x - v.y),
        wrong_cot=("{a} gives {y} {o} away and has {m}. The answer is {m}.",),
        wrong_pot=("answer = {x} - {y}", "had = {x}\nless = {y}\nanswer = had - less"),
    ),
    Kind(
        family="plain",
        wordings=(
            "{a} has {x} {o}. {a} gives {y} {o} to {b}. How many {o} does {a} have now?",
            "{a} buys {x} {o}. Then {a} loses {y} {o}. How many {o} are left for {a}?",
        ),
        draw=_small_difference,
        steps=(lambda v: v.x - v.y,),
        cot=(
            "There are {y} {o} less: {x} - {y} = {r}. The answer is {r}.",
            "Take the {o} away: {x} - {y} = {r}. The answer is {r}.",
        ),
        pot=("answer = {x} - {y}", "had = {x}\nless = {y}\nanswer = had - less"),
        misread=lambda v: v.x + v.y,
        wrong_cot=("{a} gets {y} more {o} and has {m}. The answer is {m}.",),
        wrong_pot=("answer = {x} + {y}", "had = {x}\nmore = {y}\nanswer = had + more"),
    ),
    Kind(
        family="plain",
        wordings=(
            "{a} has {x} {o}. {b} gives {a} {y} more {o}. Then {a} loses {z} {o}. How many {o} are left for {a}?",
            "{a} finds {x} {o}. Then {a} buys {y} {o}. {a} gives {z} {o} to {b}. How many {o} does {a} have now?",
        ),
        draw=_small_sum_less,
        steps=(lambda v: v.x + v.y, lambda v: v.r - v.z),
        cot=(
            "There are {y} more: {x} + {y} = {r}. Then {z} less: {r} - {z} = {s}. The answer is {s}.",
            "Add the {o}: {x} + {y} = {r}. Take {z} away: {r} - {z} = {s}. The answer is {s}.",
        ),
        pot=("answer = {x} + {y} - {z}", "had = {x}\nmore = {y}\nless = {z}\nanswer = had + more - less"),
        misread=lambda v: v.x + v.y + v.z,
        wrong_cot=("{a} gets all the {o} and has {m}. The answer is {m}.",),
        wrong_pot=("answer = {x} + {y} + {z}", "answer = {x} + {y}"),
    ),
    # large
    Kind(
        family="large",
        wordings=(
            "{a} fills {x} boxes with {y} {o} each. How many {o} does {a} need?",
            "{a} packs {y} {o} into each of {x} bags. How many {o} does {a} pack in total?",
        ),
        draw=_large_product,
        steps=(lambda v: v.x * v.y,),
        cot=(
            "There are {x} times {y} {o}: {x} * {y} = {r}. The answer is {r}.",
            "Multiply the {o}: {x} * {y} = {r}. The answer is {r}.",
        ),
        pot=("answer = {x} * {y}", "count = {x}\neach = {y}\nanswer = count * each"),
        misread=lambda v: v.x + v.y,
        wrong_cot=("Add the {o}: {x} + {y} = {m}. The answer is {m}.",),
        wrong_pot=("answer = {x} + {y}", "had = {x}\nmore = {y}\nanswer = had + more"),
    ),
    Kind(
        family="large",
        wordings=(
            "{a} fills {x} boxes with {y} {o} each and has {z} {o} left over. How many {o} does {a} have in total?",
            "{a} has {z} {o} and buys {x} boxes with {y} {o} each. How many {o} does {a} have now?",
        ),
        draw=_large_product_plus,
        steps=(lambda v: v.x * v.y, lambda v: v.r + v.z),
        cot=(
            "There are {x} times {y} {o}: {x} * {y} = {r}. Then {r} + {z} = {s}. The answer is {s}.",
            "Multiply the {o}: {x} * {y} = {r}. Add {z}: {r} + {z} = {s}. The answer is {s}.",
        ),
        pot=("answer = {x} * {y} + {z}", "count = {x}\neach = {y}\nmore = {z}\nanswer = count * each + more"),
        misread=lambda v: v.x + v.y + v.z,
        wrong_cot=("Add the {o}: {x} + {y} + {z} = {m}. The answer is {m}.",),
        wrong_pot=("answer = {x} * {y}", "answer = {x} + {y} + {z}"),
    ),
    Kind(
        family="large",
        wordings=(
            "{a} sells {x} {o} in May and {y} {o} in June. How many {o} does {a} sell in total?",
            "{a} makes {x} {o} and {b} makes {y} {o}. How many {o} do {a} and {b} make in total?",
        ),
        draw=_large_sum,
        steps=(lambda v: v.x + v.y,),
        cot=(
            "Add the {o}: {x} + {y} = {r}. The answer is {r}.",
            "In total there are {x} + {y} = {r}. The answer is {r}.",
        ),
        pot=("answer = {x} + {y}", "had = {x}\nmore = {y}\nanswer = had + more"),
        misread=lambda v: abs(v.x - v.y),
        wrong_cot=("{y} {o} are sold, so {m} are left. The answer is {m}.",),
        wrong_pot=("answer = {x} - {y}", "had = {x}\nless = {y}\nanswer = had - less"),
    ),
    Kind(
        family="large",
        wordings=(
            "{a} makes {x} {o}. {a} sells {y} of the {o}. How many {o} are left for {a}?",
            "{a} needs {x} {o} and has {y} {o}. How many more {o} does {a} need?",
        ),
        draw=_large_difference,
        steps=(lambda v: v.x - v.y,),
        cot=(
            "Take the {o} away: {x} - {y} = {r}. The answer is {r}.",
            "There are still {x} - {y} = {r}. The answer is {r}.",
        ),
        pot=("answer = {x} - {y}", "had = {x}\nless = {y}\nanswer = had - less"),
        misread=lambda v: v.x + v.y,
        wrong_cot=("Add the {o}: {x} + {y} = {m}. The answer is {m}.",),
        wrong_pot=("answer = {x} + {y}", "had = {x}\nmore = {y}\nanswer = had + more"),
    ),
    # steps
    Kind(
        family="steps",
        wordings=(
            "{a} has {x} {o}. Then {a} buys {y} boxes with {z} {o} each. {b} gives {a} {w} more {o}. "
            "How many {o} does {a} have now?",
            "{a} has {y} boxes with {z} {o} each and {x} more {o}. Then {a} finds {w} {o}. "
            "How many {o} does {a} have in total?",
        ),
        draw=_boxes_and_more,
        steps=(lambda v: v.y * v.z, lambda v: v.x + v.r, lambda v: v.s + v.w),
        cot=(
            "First {y} * {z} = {r}. Then {x} + {r} = {s}. Then {s} + {w} = {t}. The answer is {t}.",
            "Multiply: {y} * {z} = {r}. Add {x}: {x} + {r} = {s}. Add {w}: {s} + {w} = {t}. The answer is {t}.",
        ),
        pot=(
            "answer = {x} + {y} * {z} + {w}",
            "had = {x}\nboxes = {y} * {z}\nmore = {w}\nanswer = had + boxes + more",
        ),
        misread=lambda v: v.x + v.y + v.z + v.w,
        wrong_cot=("Add all: {x} + {y} + {z} + {w} = {m}. The answer is {m}.",),
        wrong_pot=("answer = {x} + {y} * {z}", "answer = {x} + {y} * {z} - {w}"),
    ),
    Kind(
        family="steps",
        wordings=(
            "{a} makes {x} {o} on Monday, {y} {o} on Tuesday and {z} {o} on Friday. {a} sells {w} of the {o}. "
            "How many {o} are left for {a}?",
            "{a} finds {x} {o}. Then {a} buys {y} {o}. {b} gives {a} {z} more {o}. Then {a} loses {w} {o}. "
            "How many {o} does {a} have now?",
        ),
        draw=_three_gains,
        steps=(lambda v: v.x + v.y, lambda v: v.r + v.z, lambda v: v.s - v.w),
        cot=(
            "First {x} + {y} = {r}. Then {r} + {z} = {s}. Then {s} - {w} = {t}. The answer is {t}.",
            "Add the {o}: {x} + {y} = {r}. {r} + {z} = {s}. Take {w} away: {s} - {w} = {t}. The answer is {t}.",
        ),
        pot=(
            "answer = {x} + {y} + {z} - {w}",
            "had = {x} + {y} + {z}\nless = {w}\nanswer = had - less",
        ),
        misread=lambda v: v.x + v.y + v.z + v.w,
        wrong_cot=("Add all: {x} + {y} + {z} + {w} = {m}. The answer is {m}.",),
        wrong_pot=("answer = {x} + {y} + {z}", "answer = {x} + {y} - {w}"),
    ),
    # distractor
    Kind(
        family="distractor",
        wordings=(
            "{a} has {x} {o} and {z} {p}. {b} gives {a} {y} more {o}. How many {o} does {a} have now?",
            "{a} finds {x} {o} and {z} {p}. Then {a} buys {y} {o}. How many {o} does {a} have in total?",
        ),
        draw=_with_extra(_two_small),
        steps=(lambda v: v.x + v.y,),
        cot=(
            "The {p} do not matter. {x} + {y} = {r}. The answer is {r}.",
            "Add the {o}: {x} + {y} = {r}. The answer is {r}.",
        ),
        pot=("answer = {x} + {y}", "had = {x}\nmore = {y}\nanswer = had + more"),
        misread=lambda v: v.x + v.y + v.z,
        wrong_cot=("Add all: {x} + {z} + {y} = {m}. The answer is {m}.",),
        wrong_pot=("answer = {x} + {z} + {y}", "had = {x} + {z}\nmore = {y}\nanswer = had + more"),
    ),
    Kind(
        family="distractor",
        wordings=(
            "{a} has {x} {o} and {z} {p}. {a} gives {y} {o} to {b}. How many {o} does {a} have now?",
            "{a} is {z} years old and has {x} {o}. Then {a} loses {y} {o}. How many {o} are left for {a}?",
        ),
        draw=_with_extra(_small_difference),
        steps=(lambda v: v.x - v.y,),
        cot=(
            "The {z} does not matter. {x} - {y} = {r}. The answer is {r}.",
            "Take the {o} away: {x} - {y} = {r}. The answer is {r}.",
        ),
        pot=("answer = {x} - {y}", "had = {x}\nless = {y}\nanswer = had - less"),
        misread=lambda v: v.x + v.z - v.y,
        wrong_cot=("In total {x} + {z} - {y} = {m}. The answer is {m}.",),
        wrong_pot=("answer = {x} + {z} - {y}", "had = {x} + {z}\nless = {y}\nanswer = had - less"),
    ),
    # compare
    Kind(
        family="compare",
        wordings=(
            "{a} sells {x} {o} on the first day and {y} {o} on the second day. On which day does {a} sell more {o}?",
            "On the first day {a} finds {x} {o} and on the second day {y} {o}. Which day gives {a} more {o}?",
        ),
        draw=_two_to_compare,
        steps=(lambda v: _relation(v.x, v.y), lambda v: _DAYS[v.r]),
        cot=(
            "Here {x} is {r} {y}. The answer is {s}.",
            "Compare the {o}: {x} is {r} {y}. The answer is {s}.",
        ),
        pot=(
            'answer = "first day" if {x} > {y} else "second day" if {y} > {x} else "neither day"',
            "first = {x}\nsecond = {y}\n"
            'answer = "first day" if first > second else "second day" if second > first else "neither day"',
        ),
        misread=lambda v: v.x + v.y,
        wrong_cot=("{a} has {x} + {y} = {m} {o}. The answer is {m}.",),
        wrong_pot=("answer = {x} - {y}", "answer = {x} + {y}", "answer = max({x}, {y})"),
    ),
    Kind(
        family="compare",
        wordings=(
            "{a} has {x} {o} and {b} has {y} {o}. Does {a} have more {o} than {b}?",
            "{a} finds {x} {o} and {b} finds {y} {o}. Are there more {o} for {a}?",
        ),
        draw=_two_to_compare,
        steps=(lambda v: _relation(v.x, v.y), lambda v: "yes" if v.r == "more than" else "no"),
        cot=(
            "Here {x} is {r} {y}. The answer is {s}.",
            "Compare the {o}: {x} is {r} {y}. The answer is {s}.",
        ),
        pot=(
            'answer = "yes" if {x} > {y} else "no"',
            'first = {x}\nsecond = {y}\nanswer = "yes" if first > second else "no"',
        ),
        misread=lambda v: abs(v.x - v.y),
        wrong_cot=("There are {m} {o} more. The answer is {m}.",),
        wrong_pot=("answer = {x} - {y}", "answer = {x} + {y}", "answer = max({x}, {y})"),
    ),
    # fraction
    Kind(
        family="fraction",
        wordings=(
            "{a} has {x} {o} and gives {y} of the {o} to {b}. Does {a} give more than half of the {o}?",
            "{a} buys {x} {o} and loses {y} of the {o}. Does {a} lose more than half of the {o}?",
        ),
        draw=_part_of_even,
        steps=(
            lambda v: v.x // 2,
            lambda v: _relation(v.y, v.r),
            lambda v: "yes" if v.s == "more than" else "no",
        ),
        cot=(
            "Half of {x} is {r}. Here {y} is {s} {r}. The answer is {t}.",
            "Compare with half of {x}, which is {r}: {y} is {s} {r}. The answer is {t}.",
        ),
        pot=(
            'answer = "yes" if {y} > {x} / 2 else "no"',
            'half = {x} / 2\nanswer = "yes" if {y} > half else "no"',
        ),
        misread=lambda v: v.x - v.y,
        wrong_cot=("This leaves {x} - {y} = {m}. The answer is {m}.",),
        wrong_pot=("answer = {x} - {y}", "answer = {y} / {x}", "answer = {x} / 2"),
    ),
    Kind(
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
            lambda v: _DAYS[v.t],
        ),
        cot=(
            "Half of {x} is {r}. A quarter of {y} is {s}. Here {r} is {t} {s}. The answer is {u}.",
            "Compare half of {x}, which is {r}, and a quarter of {y}, which is {s}: {r} is {t} {s}. "
            "The answer is {u}.",
        ),
        pot=(
            'answer = "first day" if {x} / 2 > {y} / 4 else "second day" if {y} / 4 > {x} / 2 else "neither day"',
            "first = {x} / 2\nsecond = {y} / 4\n"
            'answer = "first day" if first > second else "second day" if second > first else "neither day"',
        ),
        misread=lambda v: v.x // 2 + v.y // 4,
        wrong_cot=("Half of {x} and a quarter of {y} are {m}. The answer is {m}.",),
        wrong_pot=("answer = {x} / 2 - {y} / 4", "answer = {x} / 2 + {y} / 4", "answer = max({x} / 2, {y} / 4)"),
    ),
    # trap
    Kind(
        family="trap",
        wordings=(
            "{a} has {x} {o}. {a} sells all but {y} of the {o}. How many {o} are left for {a}?",
            "{a} buys {x} {o}. Then {a} loses all but {y} {o}. How many {o} does {a} have now?",
        ),
        draw=_all_but,
        steps=(lambda v: v.y,),
        cot=(
            "All but {y} are gone, so {r} are left. The answer is {r}.",
            "There are still {y} of the {o}. The answer is {r}.",
        ),
        pot=("answer = {y}", "left = {y}\nanswer = left"),
        misread=lambda v: v.x - v.y,
        wrong_cot=("Take the {o} away: {x} - {y} = {m}. The answer is {m}.",),
        wrong_pot=("answer = {x} - {y}", "had = {x}\nless = {y}\nanswer = had - less"),
    ),
    Kind(
        family="trap",
        wordings=(
            "{a} has {x} {o} in all. {y} of the {o} of {a} are new. How many {o} does {a} have in all?",
            "In all {a} owns {x} {o}. {y} of the {o} of {a} are red. How many {o} does {a} own?",
        ),
        draw=_all_but,
        steps=(lambda v: v.x,),
        cot=(
            "The {y} are among the {x}. The answer is {r}.",
            "There are {r} {o} in all. The answer is {r}.",
        ),
        pot=("answer = {x}", "all = {x}\nanswer = all"),
        misread=lambda v: v.x + v.y,
        wrong_cot=("Add the {o}: {x} + {y} = {m}. The answer is {m}.",),
        wrong_pot=("answer = {x} + {y}", "answer = {x} - {y}"),
    ),
    Kind(
        family="trap",
        wordings=(
            "{a} has {x} {o}. That is {y} more {o} than {b} has. How many {o} does {b} have?",
            "{a} has {x} {o}, which is {y} more {o} than {b} has. How many {o} are there for {b}?",
        ),
        draw=_small_difference,
        steps=(lambda v: v.x - v.y,),
        cot=(
            "The other has {y} less: {x} - {y} = {r}. The answer is {r}.",
            "Take the {y} more away: {x} - {y} = {r}. The answer is {r}.",
        ),
        pot=("answer = {x} - {y}", "had = {x}\nless = {y}\nanswer = had - less"),
        misread=lambda v: v.x + v.y,
        wrong_cot=("{b} has {y} more. {x} + {y} = {m}. The answer is {m}.",),
        wrong_pot=("answer = {x} + {y}", "had = {x}\nmore = {y}\nanswer = had + more"),
    ),
)


def _pattern(wording: str) -> re.Pattern:
    """The expression that finds the values in a question of this wording."""
    pattern, seen = "", set()
    for piece in re.split(r"(\{\w\})", wording):
        if not piece.startswith("{"):
            pattern += re.escape(piece)
        elif piece in seen:
            pattern += f"(?P={piece[1]})"
        else:
            seen.add(piece)
            pattern += f"(?P<{piece[1]}>{_SLOTS[piece[1]]})"
    return re.compile(pattern)


_SLOTS = {
    **dict.fromkeys("ab", "|".join(NAMES)),
    **dict.fromkeys("op", "|".join(OBJECTS)),
    **dict.fromkeys("xyzw", r"[0-9]{1,3}"),
}
_PATTERNS = [(kind, wording, _pattern(wording)) for kind in KINDS for wording in kind.wordings]
