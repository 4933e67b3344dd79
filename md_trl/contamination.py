"""Find training questions that are also test questions, of any task known here.

Questions are compared by their words: without case, punctuation, and ways to write one number (`1,000.0` is `1000`).
Two questions share their *text* if all words are equal, and their *template* if all but the numbers are. The test
questions themselves are not in this package, only 5 bytes of a hash of each, in `test_questions.json`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from importlib.resources import files

from .records import Question


TEST_SPLIT = "test"
REST = "rest"
"""Questions outside the usual test split that are test questions for others. Only other tasks are compared with them:
SVAMP's file has no split, so that each of its 1,000 questions is a test question to somebody."""
PUBLISHED = "published"
"""A test split that everybody has, because it is published as such."""
GIVEN = "given"
"""Test questions that the caller of a check brings."""
MIN_TEMPLATE_WORDS = 8
"""Words that a template must have besides its numbers. `What is # plus #?` tells nothing about where it is from."""
SHOWN_IDS = 3

_HASH_BYTES = 5
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+")


def normalize(question: str) -> str:
    r"""
    Reduce a question to its words and numbers.

    Args:
        question (`str`):
            Text of the question.

    Returns:
        `str`: The words in lower case and the numbers in their plain form, separated by spaces.

    Examples:

    ```python
    >>> normalize("Nell's friend has 1,304.0 cards .")
    'nell s friend has 1304 cards'
    ```
    """
    return " ".join(_WORD.findall(_NUMBER.sub(_plain_number, question.casefold())))


def template(question: str) -> str | None:
    r"""
    Reduce a question to its words, with `#` for each number.

    Args:
        question (`str`):
            Text of the question.

    Returns:
        `str` or `None`: The template; `None` if the question has no number, or fewer than 8 other words.
    """
    words = ["#" if word[0].isdecimal() else word for word in normalize(question).split()]
    numbers = words.count("#")
    return " ".join(words) if numbers and len(words) - numbers >= MIN_TEMPLATE_WORDS else None


def fingerprints(questions: Iterable[Question]) -> str:
    r"""
    Compute the entry of a set of test questions in `test_questions.json`.

    Args:
        questions (`Iterable[Question]`):
            The test questions.

    Returns:
        `str`: For each question the hashes of its name and text, of its text, and of its template, sorted so that the
            order of the questions is lost, in base64.
    """
    rows = []
    for question in questions:
        text, shape = normalize(question.question), template(question.question)
        of_shape = bytes(_HASH_BYTES) if shape is None else _hash(shape)
        rows.append(_hash(_named(question.id, text)) + _hash(text) + of_shape)
    return base64.b64encode(b"".join(sorted(rows))).decode()


class ContaminationCheck:
    r"""
    Count the training questions of one split that are test questions.

    They are compared with the test splits of SVAMP, GSM8K, ASDiv and StrategyQA as md_trl draws them by default, with
    both protocols of StrategyQA, and, for the questions of other tasks, with all 1,000 questions of SVAMP. If the
    training questions of one of these tasks were drawn otherwise, such as with another seed or on the Hub, they share
    questions with the default test split by construction. They are recognized by name and text, and counted apart.

    Args:
        task (`str`):
            Task of the training questions.
        tests (`Iterable[Question]`, *optional*, defaults to `()`):
            More test questions, of any tasks.
    """

    def __init__(self, task: str, tests: Iterable[Question] = ()):
        self.task = task
        self._named: set[tuple[bytes, str]] = set()
        self._sets: defaultdict[str, set[str]] = defaultdict(set)
        # The sets of test questions, as (task, set), that hold a text or template
        self._texts: defaultdict[bytes, set[tuple[str, str]]] = defaultdict(set)
        self._templates: defaultdict[bytes, set[tuple[str, str]]] = defaultdict(set)
        for of_task, sets in _shipped().items():
            for name, encoded in sets.items():
                if (of_task, name) != (task, REST):
                    self._add_known(of_task, name, base64.b64decode(encoded))
        by_task = defaultdict(list)
        for question in tests:
            by_task[question.task].append(question)
        for of_task, questions in by_task.items():
            self._add_known(of_task, GIVEN, base64.b64decode(fingerprints(questions)))
        self._drawn_otherwise: Counter[str] = Counter()
        self._short = 0
        self._hits: Counter[tuple[str, frozenset[str], frozenset[str]]] = Counter()
        self._ids: defaultdict[tuple[str, frozenset[str], frozenset[str]], list[str]] = defaultdict(list)

    def _add_known(self, task: str, name: str, rows: bytes) -> None:
        self._sets[task].add(name)
        for start in range(0, len(rows), 3 * _HASH_BYTES):
            named, text, shape = (rows[start + i * _HASH_BYTES :][:_HASH_BYTES] for i in range(3))
            self._texts[text].add((task, name))
            if any(shape):
                self._templates[shape].add((task, name))
            if task == self.task and name not in (PUBLISHED, GIVEN):
                self._named.add((named, name))

    def add(self, question_id: str, question: str) -> None:
        r"""
        Compare one training question.

        Args:
            question_id (`str`):
                Id of the question.
            question (`str`):
                Its text.
        """
        text, shape = normalize(question), template(question)
        self._short += shape is None and any(word[0].isdecimal() for word in text.split())
        of_text = self._texts.get(_hash(text), set())
        of_shape = set() if shape is None else self._templates.get(_hash(shape), set())
        if not of_text and not of_shape:
            return
        named = _hash(_named(question_id, text))
        self._drawn_otherwise.update(name for _, name in of_text if (named, name) in self._named)
        for task in sorted({task for task, _ in of_text | of_shape}):
            hit = (task, *(frozenset(name for t, name in found if t == task) for found in (of_text, of_shape)))
            self._hits[hit] += 1
            if len(self._ids[hit]) < SHOWN_IDS:
                self._ids[hit].append(question_id)

    def figures(self) -> dict[str, dict[str, int]]:
        r"""
        Count the contaminated questions.

        Returns:
            `dict[str, dict[str, int]]`: By task whose test questions were compared: `text`, the questions that share
                their text with one of them, and `template`, the others that share all but their numbers.
        """
        compared = {task: sets - self._ignored(task) for task, sets in self._sets.items()}
        figures = {task: {"text": 0, "template": 0} for task in sorted(compared) if compared[task]}
        for hit, count in self._hits.items():
            if kind := self._kind(hit):
                figures[hit[0]][kind] += count
        return figures

    @property
    def found(self) -> bool:
        """Whether any question is contaminated."""
        return any(self._kind(hit) for hit in self._hits)

    def describe(self) -> str:
        """Summarize the contaminated questions in a sentence per task, with the first ids."""
        figures, lines = self.figures(), []
        for task, found in figures.items():
            if any(found.values()):
                hits = [(kind, hit) for kind in found for hit in self._hits if hit[0] == task]
                ids = [id_ for kind, hit in hits if self._kind(hit) == kind for id_ in self._ids[hit]]
                more = ", ..." if sum(found.values()) > SHOWN_IDS else ""
                lines.append(
                    f"Contamination with the test questions of {task}: {found['text']:,} with the same text, "
                    f"{found['template']:,} more that differ only in numbers ({', '.join(ids[:SHOWN_IDS])}{more})."
                )
        if not lines:
            lines.append(f"Contamination: none with the test questions of {', '.join(figures)}.")
        if self._short:
            lines.append(
                f"{self._short:,} questions have fewer than {MIN_TEMPLATE_WORDS} words besides their numbers: only "
                "the same text was looked for."
            )
        if count := self._drawn_otherwise[TEST_SPLIT]:
            lines.append(
                f"{count:,} questions are in the test split that md_trl draws from the original file of {self.task} "
                "by default. This split was drawn otherwise: evaluate on the test split of the same source and seed."
            )
        return "\n".join(lines)

    def _ignored(self, task: str) -> set[str]:
        return set(+self._drawn_otherwise) if task == self.task else set()

    def _kind(self, hit: tuple[str, frozenset[str], frozenset[str]]) -> str | None:
        task, of_text, of_shape = hit
        if of_text - self._ignored(task):
            return "text"
        return "template" if of_shape - self._ignored(task) else None


def _shipped() -> Mapping[str, Mapping[str, str]]:
    """The [`fingerprints`] of sets of test questions by task: those of `tests/write_test_questions.py`."""
    return json.loads((files("md_trl") / "test_questions.json").read_text(encoding="utf-8"))


def _named(question_id: str, text: str) -> str:
    return f"{question_id.rsplit('/', 1)[-1]}\n{text}"


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).digest()


def _plain_number(match: re.Match[str]) -> str:
    whole, _, decimals = match.group().replace(",", "").partition(".")
    decimals = decimals.rstrip("0")
    return f"{whole}.{decimals}" if decimals else whole
