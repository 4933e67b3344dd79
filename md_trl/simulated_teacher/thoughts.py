"""How the simulated teacher words right and wrong thoughts about the kinds of Stories.

A right chain of thought states the results of all steps, `{r}` to `{v}`. A wrong one misreads the question (`{m}` is
the answer of the misreading), or makes a mistake in one step and continues from its result. A wrong program misreads
the question or does not run.

Where the answer is a text (comparisons, fractions, weekdays, headings), four of five right programs name the answer
without computing it: they are right, but show no steps that a student could learn. That is why PoT remains hard for
students on these kinds, as it is for language models on questions about language (Sec. 3.1).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

from ..tasks.stories import Story
from ..tasks.stories.kinds import DAYS, LARGEST, ORDINAL_DAYS, RELATIONS, WEEKDAYS


@dataclass(frozen=True)
class Misreading:
    r"""
    One way to misunderstand the questions of a kind.

    Args:
        answer (`Callable`):
            Function that computes the answer of the misreading, `{m}`, from the values of the question.
        pot (`str`):
            Program of the misreading.
        cot (`str`, *optional*):
            Chain of thought of the misreading. Without it, this mistake is made in programs only.
    """

    answer: Callable[[SimpleNamespace], int | str]
    pot: str
    cot: str | None = None


@dataclass(frozen=True)
class Wordings:
    r"""
    Thoughts about the questions of a kind.

    Args:
        cot (`tuple[str, ...]`):
            Right chains of thought.
        pot (`tuple[str, ...]`):
            Right programs.
        misreadings (`tuple[Misreading, ...]`):
            Ways to misunderstand the question. Those that happen to give the right answer are skipped.
    """

    cot: tuple[str, ...]
    pot: tuple[str, ...]
    misreadings: tuple[Misreading, ...]


def right_thoughts(story: Story, path: str) -> list[str]:
    """Word all right thoughts of a path about a question."""
    wordings = WORDINGS[story.kind.name]
    return [_fill(text, story, story.results()) for text in (wordings.cot if path == "cot" else wordings.pot)]


def word_plan(story: Story) -> str:
    """Word a plan of a program about a question: a chain of thought without its answer."""
    return right_thoughts(story, "cot")[0].partition(" The answer is ")[0]


def wrong_thought(story: Story, path: str, rng: random.Random) -> str:
    """Word a thought of a path with a wrong answer, or a program that does not run."""
    values = SimpleNamespace(**story.values)
    texts: list[str | None] = []
    for misreading in WORDINGS[story.kind.name].misreadings:
        text, answer = misreading.cot if path == "cot" else misreading.pot, misreading.answer(values)
        if text is not None and str(answer) != story.answer:
            texts.append(_fill(text, story, story.results(), m=answer))
    # `None` stands for the mistake that is possible on every question: a wrong step, or a program that does not run.
    text = rng.choice([*texts, None])
    if text is not None:
        return text
    return miscalculate(story, rng) if path == "cot" else _fill("answer = count_{o}({x})", story, story.results())


def miscalculate(story: Story, rng: random.Random) -> str:
    """Word a chain of thought with a mistake in one step that leads to a wrong answer."""
    right = story.results()
    while True:
        step = rng.randrange(len(right))
        results = story.results({step: _wrong_result(story, right[step], rng)})
        # A wrong number does not always change the outcome of a comparison, and a later sum may become too large.
        in_range = all(isinstance(result, str) or 0 <= result <= LARGEST for result in results)
        if results[-1] != right[-1] and in_range:
            return _fill(rng.choice(WORDINGS[story.kind.name].cot), story, results)


def _fill(text: str, story: Story, results: list[int | str], **more: int | str) -> str:
    return text.format(**story.values, **dict(zip("rstuv", results, strict=False)), **more)


def _wrong_result(story: Story, result: int | str, rng: random.Random) -> int | str:
    if isinstance(result, str):
        groups = (RELATIONS, tuple(DAYS.values()), ORDINAL_DAYS, WEEKDAYS)
        group = next(group for group in groups if result in group)
        return rng.choice([other for other in group if other != result])
    errors = (1, 2, 3) if result < 20 else (1, 2, 3, 4, 6, 8, 10, 11, 18, 20, 30, 90, 100)
    near = [result + sign * error for error in errors for sign in (-1, 1)]
    return rng.choice([number for number in near if 0 <= number <= LARGEST])


def _named(answer: str) -> tuple[str, ...]:
    """Programs that name an answer without computing it."""
    return (
        f'answer = "{answer}"',
        f'day = "{answer}"\nanswer = day',
        f'result = "{answer}"\nanswer = result',
        f'found = "{answer}"\nanswer = found',
    )


def _misnamed(answers: tuple[str, ...]) -> tuple[Misreading, ...]:
    """Programs that name one of these answers, whatever the question is."""
    return tuple(Misreading(lambda v, answer=answer: answer, f'answer = "{answer}"') for answer in answers)


_ADD = "had = {x}\nmore = {y}\nanswer = had + more"
_SUBTRACT = "had = {x}\nless = {y}\nanswer = had - less"
_COMPARE = (
    "first = {first}\nsecond = {second}\n"
    'answer = "first day" if first > second else "second day" if second > first else "neither day"'
)

WORDINGS = {
    "gain": Wordings(
        cot=(
            "There are {y} more {o}: {x} + {y} = {r}. The answer is {r}.",
            "Add the {o}: {x} + {y} = {r}. The answer is {r}.",
        ),
        pot=("answer = {x} + {y}", _ADD),
        misreadings=(
            Misreading(lambda v: abs(v.x - v.y), _SUBTRACT, "{a} gives {y} {o} away and has {m}. The answer is {m}."),
            Misreading(lambda v: v.x * v.y, "answer = {x} * {y}", "There are {x} times {y} {o}. The answer is {m}."),
            Misreading(lambda v: v.y, "answer = {y}", "Now there are {y} {o}. The answer is {m}."),
        ),
    ),
    "loss": Wordings(
        cot=(
            "There are {y} {o} less: {x} - {y} = {r}. The answer is {r}.",
            "Take the {o} away: {x} - {y} = {r}. The answer is {r}.",
        ),
        pot=("answer = {x} - {y}", _SUBTRACT),
        misreadings=(
            Misreading(lambda v: v.x + v.y, _ADD, "{a} gets {y} more {o} and has {m}. The answer is {m}."),
            Misreading(lambda v: v.y, "answer = {y}", "Now there are {y} {o}. The answer is {m}."),
            Misreading(lambda v: v.x, "answer = {x}", "There are still {x} {o}. The answer is {m}."),
        ),
    ),
    "gain_and_loss": Wordings(
        cot=(
            "There are {y} more: {x} + {y} = {r}. Then {z} less: {r} - {z} = {s}. The answer is {s}.",
            "Add the {o}: {x} + {y} = {r}. Take {z} away: {r} - {z} = {s}. The answer is {s}.",
        ),
        pot=("answer = {x} + {y} - {z}", "had = {x}\nmore = {y}\nless = {z}\nanswer = had + more - less"),
        misreadings=(
            Misreading(
                lambda v: v.x + v.y + v.z,
                "answer = {x} + {y} + {z}",
                "{a} gets all the {o} and has {m}. The answer is {m}.",
            ),
            Misreading(lambda v: v.x + v.y, _ADD, "Add the {o}: {x} + {y} = {m}. The answer is {m}."),
            Misreading(lambda v: v.z, "answer = {z}", "In the end there are {z} {o}. The answer is {m}."),
        ),
    ),
    "product": Wordings(
        cot=(
            "There are {x} times {y} {o}: {x} * {y} = {r}. The answer is {r}.",
            "Multiply the {o}: {x} * {y} = {r}. The answer is {r}.",
        ),
        pot=("answer = {x} * {y}", "count = {x}\neach = {y}\nanswer = count * each"),
        misreadings=(
            Misreading(lambda v: v.x + v.y, "answer = {x} + {y}"),
            Misreading(lambda v: v.x + v.y, _ADD),
            Misreading(lambda v: v.y, "answer = {y}"),
        ),
    ),
    "product_and_more": Wordings(
        cot=(
            "There are {x} times {y} {o}: {x} * {y} = {r}. Then {r} + {z} = {s}. The answer is {s}.",
            "Multiply the {o}: {x} * {y} = {r}. Add {z}: {r} + {z} = {s}. The answer is {s}.",
        ),
        pot=("answer = {x} * {y} + {z}", "count = {x}\neach = {y}\nmore = {z}\nanswer = count * each + more"),
        misreadings=(
            Misreading(lambda v: v.x * v.y, "answer = {x} * {y}"),
            Misreading(lambda v: v.x + v.y + v.z, "answer = {x} + {y} + {z}"),
            Misreading(lambda v: v.y + v.z, "answer = {y} + {z}"),
        ),
    ),
    "large_sum": Wordings(
        cot=(
            "Add the {o}: {x} + {y} = {r}. The answer is {r}.",
            "In total there are {x} + {y} = {r}. The answer is {r}.",
        ),
        pot=("answer = {x} + {y}", _ADD),
        misreadings=(
            Misreading(lambda v: v.x - v.y, _SUBTRACT),
            Misreading(lambda v: v.y, "answer = {y}"),
            Misreading(lambda v: v.x * v.y, "answer = {x} * {y}"),
        ),
    ),
    "large_difference": Wordings(
        cot=(
            "Take the {o} away: {x} - {y} = {r}. The answer is {r}.",
            "There are still {x} - {y} = {r}. The answer is {r}.",
        ),
        pot=("answer = {x} - {y}", _SUBTRACT),
        misreadings=(
            Misreading(lambda v: v.x + v.y, _ADD),
            Misreading(lambda v: v.y, "answer = {y}"),
            Misreading(lambda v: v.y - v.x, "answer = {y} - {x}"),
        ),
    ),
    "boxes": Wordings(
        cot=(
            "First {y} * {z} = {r}. Then {x} + {r} = {s}. Then {s} + {w} = {t}. The answer is {t}.",
            "Multiply: {y} * {z} = {r}. Add {x}: {x} + {r} = {s}. Add {w}: {s} + {w} = {t}. The answer is {t}.",
        ),
        pot=(
            "answer = {x} + {y} * {z} + {w}",
            "had = {x}\nboxes = {y} * {z}\nmore = {w}\nanswer = had + boxes + more",
        ),
        misreadings=(
            Misreading(lambda v: v.x + v.y * v.z, "answer = {x} + {y} * {z}"),
            Misreading(lambda v: v.x + v.y * v.z - v.w, "answer = {x} + {y} * {z} - {w}"),
            Misreading(lambda v: v.x + v.y + v.z + v.w, "answer = {x} + {y} + {z} + {w}"),
        ),
    ),
    "gains_and_loss": Wordings(
        cot=(
            "First {x} + {y} = {r}. Then {r} + {z} = {s}. Then {s} - {w} = {t}. The answer is {t}.",
            "Add the {o}: {x} + {y} = {r}. {r} + {z} = {s}. Take {w} away: {s} - {w} = {t}. The answer is {t}.",
        ),
        pot=("answer = {x} + {y} + {z} - {w}", "had = {x} + {y} + {z}\nless = {w}\nanswer = had - less"),
        misreadings=(
            Misreading(lambda v: v.x + v.y + v.z, "answer = {x} + {y} + {z}"),
            Misreading(lambda v: v.x + v.y - v.w, "answer = {x} + {y} - {w}"),
            Misreading(lambda v: v.x + v.y + v.z + v.w, "answer = {x} + {y} + {z} + {w}"),
        ),
    ),
    "gain_and_extra": Wordings(
        cot=(
            "The {p} do not matter. {x} + {y} = {r}. The answer is {r}.",
            "Add the {o}: {x} + {y} = {r}. The answer is {r}.",
        ),
        pot=("answer = {x} + {y}", _ADD),
        misreadings=(
            Misreading(
                lambda v: v.x + v.z + v.y,
                "had = {x} + {z}\nmore = {y}\nanswer = had + more",
                "Add all: {x} + {z} + {y} = {m}. The answer is {m}.",
            ),
            Misreading(lambda v: v.z + v.y, "answer = {z} + {y}", "Add {z} + {y} = {m}. The answer is {m}."),
            Misreading(lambda v: v.x + v.z, "answer = {x} + {z}", "In total {x} + {z} = {m}. The answer is {m}."),
        ),
    ),
    "loss_and_extra": Wordings(
        cot=(
            "The {z} does not matter. {x} - {y} = {r}. The answer is {r}.",
            "Take the {o} away: {x} - {y} = {r}. The answer is {r}.",
        ),
        pot=("answer = {x} - {y}", _SUBTRACT),
        misreadings=(
            Misreading(
                lambda v: v.x + v.z - v.y,
                "had = {x} + {z}\nless = {y}\nanswer = had - less",
                "In total {x} + {z} - {y} = {m}. The answer is {m}.",
            ),
            Misreading(lambda v: abs(v.x - v.z), "answer = {x} - {z}", "There are {m} {o} left. The answer is {m}."),
            Misreading(lambda v: v.x + v.z, "answer = {x} + {z}", "In total {x} + {z} = {m}. The answer is {m}."),
        ),
    ),
    "sum_by_day": Wordings(
        cot=(
            "On the first day {x} + {y} = {r}. Here {r} is {s} {z}. The answer is {t}.",
            "Compare {x} + {y} = {r} and {z}: {r} is {s} {z}. The answer is {t}.",
        ),
        pot=(*_named("{t}"), _COMPARE.format(first="{x} + {y}", second="{z}")),
        misreadings=_misnamed(tuple(DAYS.values())),
    ),
    "difference_by_day": Wordings(
        cot=(
            "On the first day {x} - {y} = {r}. Here {r} is {s} {z}. The answer is {t}.",
            "Compare {x} - {y} = {r} and {z}: {r} is {s} {z}. The answer is {t}.",
        ),
        pot=(*_named("{t}"), _COMPARE.format(first="{x} - {y}", second="{z}")),
        misreadings=_misnamed(tuple(DAYS.values())),
    ),
    "half_and_quarter": Wordings(
        cot=(
            "Half of {x} is {r}. A quarter of {y} is {s}. Here {r} is {t} {s}. The answer is {u}.",
            "Compare half of {x}, which is {r}, and a quarter of {y}, which is {s}: {r} is {t} {s}. "
            "The answer is {u}.",
        ),
        pot=(*_named("{u}"), _COMPARE.format(first="{x} / 2", second="{y} / 4")),
        misreadings=_misnamed(tuple(DAYS.values())),
    ),
    "three_shares": Wordings(
        cot=(
            "Half of {x} is {r}. A third of {y} is {s}. A quarter of {z} is {t}. The most is {u}. The answer is {v}.",
            "Compare half of {x}, which is {r}, a third of {y}, which is {s}, and a quarter of {z}, which is {t}. "
            "The most is {u}. The answer is {v}.",
        ),
        pot=(
            *_named("{v}"),
            "shares = [{x} / 2, {y} / 3, {z} / 4]\n"
            'answer = ["first day", "second day", "third day"][shares.index(max(shares))]',
        ),
        misreadings=_misnamed(ORDINAL_DAYS),
    ),
    "days_later": Wordings(
        cot=(
            "{x} days after {d} is {r}. {y} days after {r} is {s}. The answer is {s}.",
            "From {d} count {x} days to {r}, then {y} days to {s}. The answer is {s}.",
        ),
        pot=(
            *_named("{s}"),
            'days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]\n'
            'answer = days[(days.index("{d}") + {x} + {y}) % 7]',
        ),
        misreadings=_misnamed(WEEKDAYS),
    ),
    "all_but": Wordings(
        cot=(
            "All but {y} are gone, so {r} are left. The answer is {r}.",
            "There are still {y} of the {o}. The answer is {r}.",
        ),
        pot=("answer = {y}", "left = {y}\nanswer = left"),
        misreadings=(
            Misreading(lambda v: v.x - v.y, _SUBTRACT, "Take the {o} away: {x} - {y} = {m}. The answer is {m}."),
            Misreading(lambda v: v.x, "answer = {x}", "There are still {x} {o}. The answer is {m}."),
            Misreading(lambda v: v.x + v.y, "answer = {x} + {y}", "Add the {o}: {x} + {y} = {m}. The answer is {m}."),
        ),
    ),
    "in_all": Wordings(
        cot=(
            "The {y} are among the {x}. The answer is {r}.",
            "There are {r} {o} in all. The answer is {r}.",
        ),
        pot=("answer = {x}", "all = {x}\nanswer = all"),
        misreadings=(
            Misreading(lambda v: v.x + v.y, _ADD, "Add the {o}: {x} + {y} = {m}. The answer is {m}."),
            Misreading(lambda v: v.x - v.y, _SUBTRACT, "Take the {o} away: {x} - {y} = {m}. The answer is {m}."),
            Misreading(lambda v: v.y, "answer = {y}", "There are {y} {o}. The answer is {m}."),
        ),
    ),
    "more_than": Wordings(
        cot=(
            "The other has {y} less: {x} - {y} = {r}. The answer is {r}.",
            "Take the {y} more away: {x} - {y} = {r}. The answer is {r}.",
        ),
        pot=("answer = {x} - {y}", _SUBTRACT),
        misreadings=(
            Misreading(lambda v: v.x + v.y, _ADD, "{b} has {y} more. {x} + {y} = {m}. The answer is {m}."),
            Misreading(lambda v: v.y, "answer = {y}", "{b} has {y} {o}. The answer is {m}."),
            Misreading(lambda v: v.x, "answer = {x}", "{b} has {x} {o}. The answer is {m}."),
        ),
    ),
}
"""Thoughts by the name of the kind."""
