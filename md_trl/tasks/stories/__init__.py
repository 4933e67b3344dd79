"""Stories, the task that works offline: generated word problems whose solution is a known program.

The families follow Sec. 3.1 of the paper, where some problems are solved better in prose and others by a program:

| family | asks for | answers |
| --- | --- | --- |
| `plain` | one or two steps on small numbers | numbers |
| `large` | one or two steps on two- and three-digit numbers | numbers |
| `steps` | three steps | numbers |
| `distractor` | one step on small numbers, with another number that does not matter | numbers |
| `compare` | which of two days has more, after a small sum or difference | `first day`, `second day`, `neither day` |
| `fraction` | which of two or three fractions of numbers is the largest | a day as above, or a person |
| `calendar` | a weekday some days before or after another one | weekdays |
| `trap` | sentences that suggest the wrong operation ("all but 4") | numbers |

A question is one wording of a [`Kind`] with people, objects and numbers filled in. [`parse`] is the exact inverse and
recovers the [`Story`] from the text. Every number in a question and in the result of a step is an integer from 0 to
999, which keeps the vocabulary of a word-level tokenizer closed.

Train and test never overlap, whatever their seeds and sizes:

- Every sentence names a person and an object, and every pair of a person and an object belongs to one split. So the
  splits share no sentence.
- Every combination of the numbers of a kind belongs to one split. So no test question can be answered by recalling a
  training question with other names.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from zlib import crc32

from ...errors import InputError
from ...records import Question
from .kinds import KINDS, LARGEST, NAMES, OBJECTS, WEEKDAYS, Kind


SIZES = {"train": 3000, "test": 1200}

# The families of 20 consecutive questions, so that every part of a split has the same mix.
_CYCLE = (
    "plain large compare distractor fraction large calendar plain steps large "
    "trap plain large compare fraction steps calendar plain large distractor"
).split()
FAMILIES = tuple(dict.fromkeys(_CYCLE))


@dataclass(frozen=True)
class Story:
    r"""
    The content of a question.

    Args:
        kind (`Kind`):
            Kind of the problem.
        values (`dict[str, int | str]`):
            People, objects and numbers of the question, by their slot in the wording.
    """

    kind: Kind
    values: dict[str, int | str]

    @property
    def answer(self) -> str:
        """Gold answer."""
        return str(self.results()[-1])

    def results(self, replaced: Mapping[int, int | str] | None = None) -> list[int | str]:
        r"""
        Results of all steps.

        Args:
            replaced (`Mapping[int, int | str]`, *optional*):
                Results to use for some steps, by index, in place of the right ones. Later steps build on them.

        Returns:
            `list[int | str]`: One result per step. The last is the answer.
        """
        results: list[int | str] = []
        for index, step in enumerate(self.kind.steps):
            known = SimpleNamespace(**self.values, **dict(zip("rstuv", results, strict=False)))
            results.append(replaced[index] if replaced and index in replaced else step(known))
        return results


def load(split: str, source: str | None = None, seed: int = 42, size: int | None = None) -> list[Question]:
    r"""
    Generate the questions of a split.

    The same seed gives the same questions in every process and Python version, and a smaller `size` gives the first of
    them.

    Args:
        split (`str`):
            `train` or `test`.
        source (`str`, *optional*):
            Must be `None`, because the questions are generated.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the generator. It is not part of the ids: keep thoughts for different seeds in different stores.
        size (`int`, *optional*):
            Number of questions; by default 3,000 for `train` and 1,200 for `test`.

    Returns:
        `list[Question]`: The questions, with ids like `stories/train/large/17`. Their group is the family.

    Raises:
        `InputError`: For an unknown split, a `source`, or a `size` that is too small or too large.
    """
    if split not in SIZES:
        raise InputError(f"Unknown split {split!r} of stories. Choose one of {', '.join(SIZES)}.")
    if source is not None:
        raise InputError(
            f"Stories are generated and not read from a file: remove `source` (it is {source!r}). `seed` selects "
            "other questions."
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
            story = Story(kind, {**_draw_words(rng, split), **_draw_numbers(rng, kind, split)})
            text = rng.choice(kind.wordings).format(**story.values)
            if text not in seen:
                break
        else:
            raise InputError(f"There are fewer than {size} distinct stories in split {split!r}: reduce `size`.")
        seen.add(text)
        id_ = f"stories/{split}/{family}/{count[family]}"
        questions.append(Question(id_, "stories", split, text, story.answer, family))
        count[family] += 1
    return questions


@lru_cache(maxsize=65536)
def parse(question: str) -> Story | None:
    r"""
    Recover the story from the text of a question.

    Args:
        question (`str`):
            Text of the question.

    Returns:
        [`Story`], *optional*: The story, or `None` if the text is not the wording of a kind, or if a result of its
        numbers is negative or larger than 999.
    """
    for kind, wording, pattern in _PATTERNS:
        if match := pattern.fullmatch(question):
            values = {slot: int(text) if text.isdigit() else text for slot, text in match.groupdict().items()}
            story = Story(kind, values)
            in_range = all(isinstance(result, str) or 0 <= result <= LARGEST for result in story.results())
            # The generator writes no leading zeros, as in `007`.
            return story if in_range and wording.format(**values) == question else None
    return None


def person_in_split(name: str, thing: str, split: str) -> bool:
    """Whether sentences of a split may mention this person and this object together. A fifth of the pairs is test."""
    return ((NAMES.index(name) + OBJECTS.index(thing)) % 5 == 0) == (split == "test")


def numbers_in_split(kind: Kind, numbers: Iterable[int], split: str) -> bool:
    r"""
    Whether questions of a split may have these numbers, in any order.

    A fifth of the combinations is test. The weights of the numbers differ, so that every single number occurs in both
    splits, combined with different ones. Kinds start from different remainders, so that a sum which one kind reserves
    for the test split can be learned from another kind.

    Args:
        kind (`Kind`):
            Kind of the problem.
        numbers (`Iterable[int]`):
            Numbers of the question.
        split (`str`):
            `train` or `test`.
    """
    weighted = sum(weight * number for weight, number in enumerate(sorted(numbers), start=1))
    return ((crc32(kind.name.encode()) + weighted) % 5 == 0) == (split == "test")


def _draw_numbers(rng: random.Random, kind: Kind, split: str) -> dict[str, int]:
    while True:
        numbers = kind.draw(rng)
        if numbers_in_split(kind, numbers.values(), split):
            return numbers


def _draw_words(rng: random.Random, split: str) -> dict[str, str]:
    """Three people, two objects and a weekday. Each person may meet each object in a sentence of the split."""
    o = rng.choice(OBJECTS)
    people = rng.sample([name for name in NAMES if person_in_split(name, o, split)], 3)
    others = [p for p in OBJECTS if p != o and all(person_in_split(name, p, split) for name in people)]
    return {**dict(zip("abc", people, strict=True)), "o": o, "p": rng.choice(others), "d": rng.choice(WEEKDAYS)}


def _pattern(wording: str) -> re.Pattern:
    """The regular expression that finds the values in a question of this wording."""
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
    **dict.fromkeys("abc", "|".join(NAMES)),
    **dict.fromkeys("op", "|".join(OBJECTS)),
    "d": "|".join(WEEKDAYS),
    **dict.fromkeys("xyzw", r"[0-9]{1,3}"),
}
_PATTERNS = [(kind, wording, _pattern(wording)) for kind in KINDS for wording in kind.wordings]
