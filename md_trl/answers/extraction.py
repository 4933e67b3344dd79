"""Extract the answer that a chain of thought states."""

from __future__ import annotations

import re
from collections import deque
from itertools import islice

from .canonical_form import NO_ANSWER, canonical
from .markup import MAX_QUANTITY_CHARS, to_ascii
from .quantities import CURRENCY, PLAIN_NUMBER, TIMES_TEN_TO


# At most this many statements of an answer are tried, from the last one backwards.
_MAX_STATEMENTS = 20
# At most this many verbs of a clause are tried.
_MAX_VERBS = 5

_STATEMENT = re.compile(
    r"(?P<boxed>\\boxed\s?\{)"
    r"|####\s*"
    r"|\banswers?\b(?:\s*\*{1,2}\s*)?"
    r"(?:[^.:=\n]{0,60}?\b(?:is|are|was|were|(?:would|will|must|should) be|equals)\b(?!\s+not\b)\s*:?|\s*[:=])[\s*]*",
    re.IGNORECASE,
)
_ABBREVIATION = re.compile(r"(?:\b(?:mr|mrs|ms|dr|st|vs|sq|no|rs|approx)|\b[ap]\.m)$", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?]+[*_>\"')\]]*(?=\s|$)|\n")
# What begins an explanation after an answer.
_ASIDE = re.compile(
    r",\s+(?!and\s+[\W]?\d|\d|[-$€£]\s?\d)|\s+(?:because|since|which|as we|so that)\b|;?\s+(?:therefore|hence|thus)\b",
    re.IGNORECASE,
)
_FIRST_TRUTH = re.compile(r"(yes|no(?!\.\s*\d)|true|false)\b(?=\s*(?:[,.;:!(-]|$))", re.IGNORECASE)
_LAST_TRUTH = re.compile(
    r"(?:^|[\n.,;:!*\"']\s{0,3}|\b(?:so|therefore|thus|hence|say|is)\s{1,3})(?P<truth>yes|no|true|false)\b"
    r"(?=\s*(?:[,.;:!*\"']|$))",
    re.IGNORECASE,
)
# A number, time, mixed number or fraction within a text.
_NUMBER = re.compile(
    rf"(?:(?<![\w.)\]])-\s?)?{CURRENCY}?(?<!\^)(?:\d{{1,2}}(?::[0-5]\d)?\s?[ap]\.?\s?m\b|\d{{1,2}}:\d\d(?!\d)"
    rf"|(?<![\w.])\d+\s\d+/\d+|\d*\\[cdt]?frac(?:\{{[\d.]+\}}){{2}}"
    rf"|{PLAIN_NUMBER}(?:e[-+]?\d{{1,3}}(?!\w)|{TIMES_TEN_TO}-?\d{{1,3}}\}}?|\s?/\s?{PLAIN_NUMBER})?)",
    re.ASCII | re.IGNORECASE,
)

_CANONICAL_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?(?:[;:]-?\d+(?:\.\d+)?(?:e-?\d+)?)*")
# What follows one of these verbs is what the clause states: "the total is 12 out of 20" states 12.
_IS = re.compile(r"\b(?:is|are|was|were|be|equals?)(?!\s+not\b)(?:\s*:\s*|\s+)", re.IGNORECASE)
# What follows one of these words is a quantity and not part of a name: "it costs 5" states 5, but "Rug 5" is a rug.
_VERBS = (
    "has have had get gets got need needs needed use uses used cost costs pay pays paid spend spends spent earn earns "
    "earned save saves saved eat eats ate sell sells sold buy buys bought make makes made give gives gave lose loses "
    "lost find finds found win wins won score scores scored weigh weighs weighed take takes took keep keeps kept left "
    "pick picks picked collect collects collected receive receives received contain contains hold holds remain "
    "remains total totals"
).split()
_TOTALS = "total sum answer result difference product quotient average mean remainder amount cost price profit".split()
_BEFORE_A_QUANTITY = re.compile(
    rf"(?:\b(?:{'|'.join(_VERBS)}|than|at least|at most|up to|comes? to|adds up to|amounts to)"
    r"|^(?:that )?(?:he|she|it|they|we|you|i|there) [a-z]+"
    rf"|^(?:the )?(?:{'|'.join(_TOTALS)}))(?!\s+not\b)(?:\s*:\s*|\s+(?!-\s))",
    re.IGNORECASE,
)
# "12 out of 20", "12 of the 20 apples", "5 more than 3".
_OF_A_WHOLE = re.compile(r"\s(out of|of|more than|less than|fewer than)\s", re.IGNORECASE)
_PERCENT = re.compile(r"%|per\s?cent", re.IGNORECASE)


def extract(text: str, strict: bool = False) -> str | None:
    r"""
    Extract the answer that a chain of thought reaches, in canonical form.

    A *stated* answer follows `The answer is`, `Answer:` or `####`, or stands in `\boxed{}`. The last stated answer
    counts. If there is none, flexible extraction takes the last number, or a final yes or no that comes after it.

    Args:
        text (`str`):
            A chain of thought.
        strict (`bool`, *optional*, defaults to `False`):
            Whether to accept only a stated answer.

    Returns:
        `str`, *optional*: The answer, or `None` if there is none.

    Examples:

    ```python
    >>> from md_trl.answers import extract

    >>> extract("5 + 6 = 11. Therefore, the answer is <11>.")
    '11'
    >>> extract("The answer is 12 out of 20.")
    '12'
    >>> extract("So she pays $5.00 in the end."), extract("So she pays $5.00 in the end.", strict=True)
    ('5', None)
    ```
    """
    text = to_ascii(text)
    for match in reversed(deque(_STATEMENT.finditer(text), maxlen=_MAX_STATEMENTS)):
        if match.lastgroup == "boxed":
            answer = canonical(_braced(text, match.end()))
        else:
            answer = _stated_answer(_first_sentence(text[match.end() : match.end() + MAX_QUANTITY_CHARS]))
        if answer not in NO_ANSWER:
            return answer
    return None if strict else _last_answer(text)


# --------------------------------------------------------------------------------------------------------- statements


def _braced(text: str, start: int) -> str:
    """The text between the brace that opens before `start` and the one that closes it."""
    depth = 1
    for end in range(start, min(len(text), start + MAX_QUANTITY_CHARS)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start:end]
    return text[start : start + MAX_QUANTITY_CHARS].partition("\n")[0]


def _first_sentence(text: str) -> str:
    """The text up to the end of its first sentence or line."""
    text = text.strip()
    for match in _SENTENCE_END.finditer(text):
        if match[0].startswith("\n") or not _ABBREVIATION.search(text[: match.start()]) or match.end() == len(text):
            return text[: match.start()]
    return text


def _stated_answer(sentence: str) -> str:
    """The answer in the words that follow `The answer is`."""
    if sentence.startswith("<") and ">" in sentence:
        return canonical(sentence[1 : sentence.index(">")])
    truth = _FIRST_TRUTH.match(sentence.lstrip("*_ "))
    if truth:
        return canonical(truth[1])
    whole = canonical(sentence)
    if _is_number(whole):
        return whole
    return answer_of_clause(_ASIDE.split(sentence, maxsplit=1)[0], sentence)


# ------------------------------------------------------------------------------------------------------------ clauses


def answer_of_clause(clause: str, sentence: str) -> str:
    """The number that a clause states, or the clause itself if it states none or several.

    `sentence` is the clause together with its explanation, if it has one.
    """
    answer = canonical(clause)
    if _is_number(answer):
        return answer
    numbers = _NUMBER.findall(sentence)
    # The number stands at the beginning or after a verb.
    starts = [0]
    if len(_first_sentence(clause)) >= len(clause.strip().rstrip(".!?")):
        starts += [verb.end() for verb in islice(_IS.finditer(clause), _MAX_VERBS)]
        if len(numbers) <= 1:
            starts += [verb.end() for verb in islice(_BEFORE_A_QUANTITY.finditer(clause), _MAX_VERBS)]
    for start in starts:
        text = clause[start:]
        if start and numbers and not _starts_in_digits(text):  # "four tires for $60" states neither
            continue
        number, is_only_one = _leading_number(text)
        if number is not None:
            return number if is_only_one else answer
    # A few words with a number in them may be a name ("Rug 5", "February 3rd"); a longer clause is not.
    return canonical(numbers[0]) if len(numbers) == 1 and len(answer.split()) > 3 else answer


def _leading_number(text: str) -> tuple[str | None, bool]:
    """The number that a text starts with, and whether the text states no other number beside it.

    The whole that a number is a part of does not count as another number: "12 out of 20" states 12.
    """
    if len(text) > MAX_QUANTITY_CHARS:
        return None, False
    number = canonical(text)
    if _is_number(number) and _count_numbers(text) <= _count_numbers(number):
        return number, True
    relation = _OF_A_WHOLE.search(text)
    part, whole = (text[: relation.start()], text[relation.end() :]) if relation else (text, "")
    number = canonical(part)
    if not _is_number(number):
        return None, False
    if not _is_number(canonical(whole)) or _count_numbers(whole) > 1 or _count_numbers(part) > _count_numbers(number):
        return number, False
    # "25% of 80" and "0.5 of 80" are not parts of 80 but computations.
    is_count = relation[1].lower() != "of" or number.lstrip("-").isdecimal()
    return number, is_count and not _PERCENT.search(part)


def _starts_in_digits(text: str) -> bool:
    first = _NUMBER.search(text)
    return first is not None and not _is_number(canonical(text[: first.start()]))


def _is_number(answer: str) -> bool:
    return _CANONICAL_NUMBER.fullmatch(answer) is not None


def _count_numbers(text: str) -> int:
    return len(_NUMBER.findall(text))


# ------------------------------------------------------------------------------------------------ flexible extraction


def _last_answer(text: str) -> str | None:
    number, truth = _last(_NUMBER, text), _last(_LAST_TRUTH, text)
    if truth and (not number or truth.start("truth") > number.start()):
        return canonical(truth["truth"])
    return canonical(number[0]) or None if number else None


def _last(pattern: re.Pattern, text: str) -> re.Match | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)
