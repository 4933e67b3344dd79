"""Read numbers, times, ratios and lists of them from text: `$1,234.50`, `five apples`, `3:30 p.m.`, `12, 8 and 4`.

Each `read_*` function returns the canonical form of what the whole text says, or `None` if it says something else.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from fractions import Fraction

from .markup import MAX_QUANTITY_CHARS, SEPARATORS, strip_markup
from .number_form import WIDE, format_decimal, format_fraction


# Numbers in words.
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_VALUE_OF_WORD = {word: value for value, word in enumerate(_SMALL)}
_VALUE_OF_WORD |= {word: 10 * value for value, word in enumerate(_TENS, start=2)} | {"a": 1, "an": 1}
_POWERS_OF_TEN = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_DENOMINATORS = {"half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7}
_DENOMINATORS |= {"eighth": 8, "ninth": 9, "tenth": 10, "hundredth": 100}

# Patterns that other patterns are built from.
_DIGITS = r"(?:\d{1,3}(?:[,']\d{3})+(?!\d)|\d{1,2}(?:,\d{2})+,\d{3}(?!\d)|\d+)"
PLAIN_NUMBER = rf"(?:{_DIGITS}(?:\.\d*)?|\.\d+)"
TIMES_TEN_TO = r"\s?[x×*·]\s?10\s?(?:\^|\*\*)\s?\{?"
CURRENCY = r"(?:US\$|A\$|C\$|[$€£¥₹¢]|(?:usd|eur|gbp|rs\.?)(?=[\s\d-]))"
_SIGN = r"(?:[-+]\s?|(?:minus|negative)\s)"
_BELOW_HUNDRED = (
    rf"(?:(?:{'|'.join(_TENS)})(?:[- ](?:{'|'.join(_SMALL[1:10])}))?|(?:{'|'.join(_SMALL)})"
    rf"|an?(?=[- ](?:{'|'.join(_POWERS_OF_TEN)})\b))\b"
)
_BELOW_THOUSAND = rf"{_BELOW_HUNDRED}(?:[- ]hundred\b(?:\s(?:and\s)?{_BELOW_HUNDRED})?)?"
_THOUSAND_AND_UP = r"[- ](?:thousand|million|billion|trillion)\b"
_IN_WORDS = rf"(?:{_BELOW_THOUSAND}{_THOUSAND_AND_UP},?\s(?:and\s)?)*{_BELOW_THOUSAND}(?:{_THOUSAND_AND_UP})?"
_MEASURE = (
    r"(?:hours?|hrs?|h|minutes?|mins?|seconds?|secs?|days?|weeks?|months?|years?|miles?|yards?|feet|foot|ft"
    r"|in(?:ch(?:es)?)?|km|cm|m|kg|g|(?:kilo|centi)?meters?|(?:kilo)?grams?|pounds?|lbs?|ounces?|oz|dollars?|cents?)"
)

_QUANTITY = re.compile(
    rf"(?P<sign>{_SIGN})?{CURRENCY}?\s?(?P<inner_sign>-)?"
    rf"(?:(?:(?P<whole>\d+)(?:\s+and\s+|\s+))?(?P<top>{PLAIN_NUMBER})\s?/\s?(?P<bottom>{PLAIN_NUMBER})"
    rf"|(?P<number>{PLAIN_NUMBER})(?:e(?P<exponent>[-+]?\d{{1,9}})(?!\w)|{TIMES_TEN_TO}(?P<power>-?\d{{1,9}})\}}?)?"
    rf"|(?P<words>{_IN_WORDS}))"
    r"(?P<rest>.*)",
    re.ASCII | re.DOTALL | re.IGNORECASE,
)
_NEGATED = re.compile(rf"-\s?\((?P<inside>{PLAIN_NUMBER}(?:\s?/\s?{PLAIN_NUMBER})?)\)", re.ASCII)
_PERCENT = re.compile(r"\s?(?:%|per\s?cent\b|percentage points?\b)", re.IGNORECASE)
_SCALE = re.compile(rf"(?:k|[\s-]?(?P<scale>{'|'.join(_POWERS_OF_TEN)}))\b", re.IGNORECASE)
_AND_A_PART = re.compile(r"\s?and (?:a|one)[- ](?P<part>half|third|quarter|fourth)\b", re.IGNORECASE)
_PART = re.compile(rf"[\s-](?P<part>{'|'.join(_DENOMINATORS)})s?(?=$|\sof\b|\san?\b)", re.IGNORECASE)
# What may follow a number as its unit (words, brackets, degrees, `-year-old`), and what shows that it is not a unit.
_UNIT = re.compile(r"(?:[\s.,]*$|\s*[-/]?\s*[^\W\d_]|\s*[(\[°'\"$€£¥₹¢′″])", re.DOTALL)
_NOT_A_UNIT = re.compile(
    r"\s*(?:[xyzn](?!\w)|e[-+]?\d"
    r"|(?:or|to|and|plus|minus|times|by|divided by|over|of|out of|in|more than|less than)\s(?:\W?\d"
    rf"|(?:{'|'.join(_SMALL + _TENS)})\b)"
    r"|.*[=<>+*^]\s?\d{2}|.*[=<>+*]|.*\b(?:or|and)\s\W?\d"
    r"|(?:january|february|march|april|may|june|july|august|september|october|november|december)\b"
    rf"|-?(?:{'|'.join(_SMALL + _TENS)})\b)",
    re.DOTALL | re.IGNORECASE | re.ASCII,
)
_TIME = re.compile(
    r"(?P<hour>\d{1,2}):(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d))?(?:\s?(?P<half>[ap])\.?\s?m\b\.?)?(?P<rest>.*)"
    r"|(?P<full_hour>\d{1,2})\s?(?P<full_half>[ap])\.?\s?m\b\.?(?P<full_rest>.*)",
    re.ASCII | re.DOTALL | re.IGNORECASE,
)
_RATIO = re.compile(r"(?P<left>\d{1,1000})(?:\s?:\s?|\sto\s)(?P<right>\d{1,1000})", re.ASCII)
_LIST_SEPARATOR = re.compile(r"\s*(?:,\s+and\s+|,(?=\D|\d{1,2}\b|\d{4})\s*|\s+and\s+)", re.ASCII | re.IGNORECASE)
_TWO_MEASURES = re.compile(
    rf"({PLAIN_NUMBER}\s?{_MEASURE})\.?,?\s+({PLAIN_NUMBER}\s?{_MEASURE})", re.ASCII | re.IGNORECASE
)


def read_single(text: str) -> str | None:
    """Read one time, ratio or quantity."""
    return read_time(text) or read_ratio(text) or read_quantity(text)


def read_quantity(text: str) -> str | None:
    """Read a number with what may surround it: sign, currency, percent sign, scale, unit."""
    negated = _NEGATED.fullmatch(text)
    match = _QUANTITY.match("-" + negated["inside"] if negated else text)
    if not match:
        return None
    value, rest = _fraction(match) if match["top"] is not None else _number(match)
    if value is None:
        return None
    percent = _PERCENT.match(rest)
    if percent:
        rest = rest[percent.end() :]
    elif isinstance(value, Fraction):
        value, rest = _scaled(value, rest)
    if rest and (not _UNIT.match(rest) or _NOT_A_UNIT.match(rest)):
        return None
    if match["sign"] and match["sign"][0] != "+":
        value = -value
    if match["inner_sign"]:
        value = -value
    return format_fraction(value) if isinstance(value, Fraction) else format_decimal(value)


def read_unit(text: str) -> str | None:
    """Read what follows a number as its unit, which its canonical form drops: `km`, `%`. `None` if nothing does."""
    match = _QUANTITY.match(strip_markup(text)) if len(text) <= MAX_QUANTITY_CHARS else None
    if not match or read_quantity(match.group()) is None:
        return None
    value, rest = _fraction(match) if match["top"] is not None else _number(match)
    if isinstance(value, Fraction) and not _PERCENT.match(rest):
        _, rest = _scaled(value, rest)
    return rest.strip(" .,") or None


def read_time(text: str) -> str | None:
    """Read a time of day: `5:15`, `3:30 p.m. on Monday`, `3 pm`."""
    match = _TIME.match(text)
    if not match:
        return None
    half = match["half"] or match["full_half"]
    rest = match["rest"] or match["full_rest"] or ""
    hour, minute, second = int(match["hour"] or match["full_hour"]), match["minute"] or "00", match["second"]
    if hour > (12 if half else 24) or (rest and not re.match(r"\s*[(,]|\s+[A-Za-z]", rest)):
        return None
    if half:
        hour = hour % 12 + (12 if half in "pP" else 0)
    return f"{hour}:{minute}" + (f":{second}" if second and second != "00" else "")


def read_ratio(text: str) -> str | None:
    """Read a ratio, reduced: `6:8`, `3 to 4`."""
    match = _RATIO.fullmatch(text)
    if not match:
        return None
    left, right = int(match["left"]), int(match["right"])
    divisor = math.gcd(left, right) or 1
    return f"{left // divisor}:{right // divisor}"


def read_measures(text: str) -> str | None:
    """Read a measure in two units: `5 feet 6 inches`."""
    match = _TWO_MEASURES.fullmatch(text)
    return _parts(match.groups()) if match else None


def read_list(text: str) -> str | None:
    """Read several quantities: `12, 8 and 4`, `(12, 8)`."""
    if re.fullmatch(r"[(\[{].*[)\]}]", text, re.DOTALL):
        text = text[1:-1]
        single = read_single(text.strip())
        if single is not None:
            return single
    pieces = _LIST_SEPARATOR.split(text)
    return _parts(pieces) if len(pieces) > 1 else None


def _parts(pieces: list[str] | tuple[str, ...]) -> str | None:
    """Join the canonical forms of pieces that are all quantities."""
    parts = [read_single(strip_markup(piece)) for piece in pieces]
    return None if None in parts else ";".join(parts)


def _fraction(match: re.Match) -> tuple[Fraction | None, str]:
    """The value of `1/3` or `2 1/2`, and what follows it."""
    rest = match["rest"]
    top, bottom = match["top"].translate(SEPARATORS), match["bottom"].translate(SEPARATORS)
    if not Decimal(bottom) or rest[:1] in tuple("/^*.0123456789"):
        return None, rest
    return Fraction(top) / Fraction(bottom) + int(match["whole"] or 0), rest


def _number(match: re.Match) -> tuple[Fraction | Decimal | None, str]:
    """The value of a number in digits or words, and what follows it."""
    rest = match["rest"]
    number = match["number"].translate(SEPARATORS) if match["number"] else str(_number_in_words(match["words"]))
    exponent = match["exponent"] or match["power"]
    if exponent is not None:
        return (Decimal(number).scaleb(int(exponent), context=WIDE) if len(number) <= 28 else None), rest
    value = Fraction(number)
    part = _PART.match(rest)
    # `3 quarters` are coins, `three quarters` a fraction.
    if part and (match["words"] or part["part"].lower() != "quarter"):
        value, rest = value / _DENOMINATORS[part["part"].lower()], rest[part.end() :]
    return value, rest


def _scaled(value: Fraction, rest: str) -> tuple[Fraction, str]:
    """Add `and a half` and apply `million`, `k` and the like, if they follow the number."""
    part = _AND_A_PART.match(rest)
    if part:
        value, rest = value + Fraction(1, _DENOMINATORS[part["part"].lower()]), rest[part.end() :]
    scale = _SCALE.match(rest)
    while scale:
        value, rest = value * 10 ** _POWERS_OF_TEN[(scale["scale"] or "thousand").lower()], rest[scale.end() :]
        scale = _SCALE.match(rest)
    return value, rest


def _number_in_words(words: str) -> int:
    """The number that words matched by `_IN_WORDS` say."""
    total = group = 0
    for word in re.findall("[a-z]+", words.lower()):
        if word == "hundred":
            group *= 100
        elif word in _POWERS_OF_TEN:
            total, group = total + group * 10 ** _POWERS_OF_TEN[word], 0
        else:
            group += _VALUE_OF_WORD.get(word, 0)
    return total + group
