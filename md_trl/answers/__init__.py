r"""Answers: what a text says, and which answers are the same.

Two answers are equal when their canonical forms are, so equality is an equivalence relation and votes group exactly as
scoring does. The canonical forms are:

| answer | canonical form |
| --- | --- |
| `$1,234.50`, `1234.5 dollars` | `1234.50`: currency, units, thousands separators and a percent sign are dropped |
| `5.0`, `five`, `5 (apples)`, `4.9999999999` | `5`: integers are exact, as is what is within 1e-9 (relative) of one |
| `2.675`, `1/3`, `2 1/2`, `\frac{3}{8}` | `2.68`, `0.3333`, `2.50`, `0.3750`: 2 decimals from 1 up, 4 digits below |
| `5:15`, `3:30 p.m.` | `5:15`, `15:30`; a time that says neither a.m. nor p.m. stays as it is |
| `6:8`, `3 to 4` | `3:4`: a ratio is reduced, unless it might be a time |
| `12 (cm); 8`, `12 and 8`, `3 hours and 20 minutes` | `12;8`, `12;8`, `3;20`: several parts, in their order |
| `Yes.`, `True`, `no` | `yes`, `yes`, `no` |
| `The Cooper wedding!` | `cooper wedding`: case, punctuation and articles are dropped |
| `None`, `""`, `...` | the empty string, which is no answer |
| `nan`, `inf` | `nan`, `inf`; `nan` is no answer either (see `NO_ANSWER`) |

Numbers are rounded half up, as people round money, after the noise of binary floats (beyond 12 digits) is gone.
Every function takes any text, in any thread, in time bounded by its length.
"""

from __future__ import annotations

import math
import re
import threading
import unicodedata
from collections import deque
from decimal import MAX_EMAX, MIN_EMIN, ROUND_HALF_EVEN, ROUND_HALF_UP, Context, Decimal
from fractions import Fraction
from functools import lru_cache
from numbers import Integral, Rational, Real
from typing import Any


NO_ANSWER = ("", "nan")
"""Canonical forms that neither vote nor score: nothing was said, or the program computed nothing."""

# Integers that end in more zeros than this are written `{digits}e{zeros}`: `1e999999999` must not become a gigabyte.
_MAX_ZEROS = 10_000
# Numbers from 1e1000000000 up count as infinite, and their inverses as zero.
_MAX_EXPONENT = 10**9
# Longer texts are no expression, and no quantity either.
_MAX_EXPRESSION = 120
_MAX_QUANTITY = 1_000
# Only that many of the last stated answers are read.
_MAX_STATED = 20

# Contexts of our own: those of a thread are its user's to change.
_WIDE = Context(prec=28, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])
_NOISE_FREE = Context(prec=12, rounding=ROUND_HALF_UP, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])
_SIGNIFICANT = Context(prec=4, rounding=ROUND_HALF_UP, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])
_CENT = Decimal("0.01")


# ---------------------------------------------------------------------------------------------------------- public


def canonical(value: Any) -> str:
    r"""
    The one form in which an answer is compared, counted and stored.

    Args:
        value (`Any`):
            A text, or a value that a program returned: number, bool, list or tuple (several parts), `None`.

    Returns:
        `str`: The canonical form, which is its own canonical form. The empty string if there is no answer.

    Examples:

    ```python
    >>> from md_trl.answers import canonical

    >>> canonical("$1,234.50"), canonical("5 (apples)"), canonical(2 / 3), canonical("The neither day.")
    ('1234.50', '5', '0.6667', 'neither day')
    ```
    """
    if isinstance(value, str):
        return _cached(value) if len(value) <= 100 else _canonical_text(value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return _number(Decimal(int(value)))
    if isinstance(value, Decimal):
        return _number(value)
    if isinstance(value, Rational):
        return _ratio(Fraction(value.numerator, value.denominator))
    if isinstance(value, Real):
        # The shortest decimal that names the float, so that 2.675 is what its text "2.675" is.
        return _number(Decimal(repr(float(value))))
    if isinstance(value, (list, tuple)):
        return _canonical_text(";".join(canonical(part) for part in value))
    return _canonical_text(str(value))


def equal(a: Any, b: Any) -> bool:
    r"""
    Whether two answers are the same, that is, have the same canonical form.

    Examples:

    ```python
    >>> from md_trl.answers import equal

    >>> equal("1,080 dollars", 1080.0), equal("2/3", "0.667"), equal("True", "yes")
    (True, False, True)
    ```
    """
    return canonical(a) == canonical(b)


def extract(text: str, strict: bool = False) -> str | None:
    r"""
    The answer a text comes to, in canonical form.

    A *stated* answer follows `The answer is`, `Answer:` or `####`, or stands in `\boxed{}`; the last one counts.
    Without one, the flexible reading takes the last number, or the yes or no that ends the text if that comes later.

    Args:
        text (`str`):
            A thought.
        strict (`bool`, *optional*, defaults to `False`):
            Whether only a stated answer counts.

    Returns:
        `str`, *optional*: The answer, or `None` if the text has none.

    Examples:

    ```python
    >>> from md_trl.answers import extract

    >>> extract("5 + 6 = 11. Therefore, the answer is <11>.")
    '11'
    >>> extract("So she pays $5.00 in the end."), extract("So she pays $5.00 in the end.", strict=True)
    ('5', None)
    ```
    """
    text = _plain(text)
    for match in reversed(deque(_STATED.finditer(text), maxlen=_MAX_STATED)):
        if match.lastgroup == "boxed":
            answer = canonical(_braced(text, match.end()))
        else:
            answer = _read_span(_sentence(text[match.end() : match.end() + _MAX_QUANTITY]))
        if answer not in NO_ANSWER:
            return answer
    return None if strict else _last_answer(text)


def read(value: Any) -> str:
    r"""
    The canonical answer that a program's result says: its number, if it is a sentence or has a label.

    Args:
        value (`Any`):
            What the program returned or printed.

    Examples:

    ```python
    >>> from md_trl.answers import read

    >>> read("Total: $5.00"), read("Tom has 5 apples left."), read("neither day"), read(5.0)
    ('5', '5', 'neither day', '5')
    ```
    """
    if not isinstance(value, str):
        return canonical(value)
    label, _, rest = value.strip().rpartition(": ")
    value = rest if any(map(str.isalpha, label)) else value
    return _number_of_clause(canonical(value), value)


# ------------------------------------------------------------------------------------------------- canonical numbers


def _number(number: Decimal) -> str:
    if number.is_nan():
        return "nan"
    if number.is_zero() or number.adjusted() <= -_MAX_EXPONENT:
        return "0"
    if number.is_infinite() or number.adjusted() >= _MAX_EXPONENT:
        return "inf" if number > 0 else "-inf"
    if _is_integer(number):
        return _integer(number)
    number = _NOISE_FREE.plus(number)
    if number.copy_abs() >= 1:
        rounded = _NOISE_FREE.quantize(number, _CENT)
    else:
        rounded = _SIGNIFICANT.plus(number)
        rounded = _SIGNIFICANT.quantize(rounded, Decimal((0, (1,), rounded.adjusted() - 3)))
    # 1.999 is written 2.00, which is an integer.
    return _integer(rounded) if _is_integer(rounded) else str(rounded).lower()


def _is_integer(number: Decimal) -> bool:
    nearest = number.to_integral_value(ROUND_HALF_EVEN)
    difference = _WIDE.abs(_WIDE.subtract(number, nearest))
    return difference <= _WIDE.multiply(_WIDE.abs(nearest), Decimal("1e-9"))


def _integer(number: Decimal) -> str:
    number = number.to_integral_value(ROUND_HALF_EVEN)
    if number.adjusted() < _MAX_ZEROS:
        return format(number, "f")
    sign, digits, exponent = number.as_tuple()
    kept = "".join(map(str, digits)).rstrip("0")
    zeros = exponent + len(digits) - len(kept)
    return ("-" if sign else "") + kept + ("0" * zeros if zeros <= _MAX_ZEROS else f"e{zeros}")


def _ratio(fraction: Fraction) -> str:
    nearest = round(fraction)
    if abs(fraction - nearest) * 10**9 <= abs(nearest):
        return _number(Decimal(nearest))
    return _number(_WIDE.divide(Decimal(fraction.numerator), Decimal(fraction.denominator)))


# ------------------------------------------------------------------------------------------------- reading an answer

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_VALUE_OF_WORD = {word: value for value, word in enumerate(_SMALL)}
_VALUE_OF_WORD |= {word: 10 * value for value, word in enumerate(_TENS, start=2)} | {"a": 1, "an": 1}
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_PARTS = {"half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7}
_PARTS |= {"eighth": 8, "ninth": 9, "tenth": 10, "hundredth": 100}

_DIGITS = r"(?:\d{1,3}(?:[,']\d{3})+(?!\d)|\d{1,2}(?:,\d{2})+,\d{3}(?!\d)|\d+)"
_PLAIN = rf"(?:{_DIGITS}(?:\.\d*)?|\.\d+)"
_TIMES_TEN = r"\s?[x×*·]\s?10\s?(?:\^|\*\*)\s?\{?"
_CURRENCY = r"(?:US\$|A\$|C\$|[$€£¥₹¢]|(?:usd|eur|gbp|rs\.?)(?=[\s\d-]))"
_SIGN = r"(?:[-+]\s?|(?:minus|negative)\s)"
# Numbers in words: below a hundred, below a thousand, and any.
_WORD = (
    rf"(?:(?:{'|'.join(_TENS)})(?:[- ](?:{'|'.join(_SMALL[1:10])}))?|(?:{'|'.join(_SMALL)})"
    rf"|an?(?=[- ](?:{'|'.join(_SCALES)})\b))\b"
)
_HUNDREDS = rf"{_WORD}(?:[- ]hundred\b(?:\s(?:and\s)?{_WORD})?)?"
_THOUSAND = r"[- ](?:thousand|million|billion|trillion)\b"
_SPELLED = rf"(?:{_HUNDREDS}{_THOUSAND},?\s(?:and\s)?)*{_HUNDREDS}(?:{_THOUSAND})?"

# `1 234 567`, `1'234`, `1_234`: an answer is one number, where a sentence may hold several side by side.
_GROUPS = re.compile(r"(?<![^\W_]|[.,/:])\d{1,3}(?:[ '_]\d{3})+(?![^\W_]|[/:']| /)", re.ASCII)
_SEPARATORS = str.maketrans("", "", ",'_ ")
_INTEGER = re.compile(r"-?[1-9][0-9]{0,3999}|0")
_DECIMAL = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,10})?")
_QUANTITY = re.compile(
    rf"(?P<sign>{_SIGN})?{_CURRENCY}?\s?(?P<inner_sign>-)?"
    rf"(?:(?:(?P<whole>\d+)(?:\s+and\s+|\s+))?(?P<top>{_PLAIN})\s?/\s?(?P<bottom>{_PLAIN})"
    rf"|(?P<number>{_PLAIN})(?:e(?P<exponent>[-+]?\d{{1,9}})(?!\w)|{_TIMES_TEN}(?P<power>-?\d{{1,9}})\}}?)?"
    rf"|(?P<word>{_SPELLED}))"
    r"(?P<rest>.*)",
    re.ASCII | re.DOTALL | re.IGNORECASE,
)
_NEGATED = re.compile(rf"-\s?\((?P<inside>{_PLAIN}(?:\s?/\s?{_PLAIN})?)\)", re.ASCII)
_PERCENT = re.compile(r"\s?(?:%|per\s?cent\b|percentage points?\b)", re.IGNORECASE)
_SCALE = re.compile(rf"(?:k|[\s-]?(?P<scale>{'|'.join(_SCALES)}))\b", re.IGNORECASE)
_AND_A_PART = re.compile(r"\s?and (?:a|one)[- ](?P<part>half|third|quarter|fourth)\b", re.IGNORECASE)
_PART = re.compile(rf"[\s-](?P<part>{'|'.join(_PARTS)})s?(?=$|\sof\b|\san?\b)", re.IGNORECASE)
# What may follow a number as its unit: words, brackets, degrees, `-year-old`; and what shows that it is no unit.
_UNIT = re.compile(r"(?:[\s.,]*$|\s*[-/]?\s*[^\W\d_]|\s*[(\[°'\"$€£¥₹¢′″])", re.DOTALL)
_NO_UNIT = re.compile(
    r"\s*(?:[xyzn](?!\w)|e[-+]?\d"
    r"|(?:or|to|and|plus|minus|times|by|divided by|over|of|out of|in|more than|less than)\s(?:\W?\d"
    rf"|(?:{'|'.join(_SMALL + _TENS)})\b)"
    r"|.*[=<>+*^]\s?\d{2}|.*[=<>+*]|.*\b(?:or|and)\s\W?\d"
    r"|(?:january|february|march|april|may|june|july|august|september|october|november|december)\b"
    rf"|-?(?:{'|'.join(_SMALL + _TENS)})\b)",
    re.DOTALL | re.IGNORECASE | re.ASCII,
)
_CLOCK = re.compile(
    r"(?P<hour>\d{1,2}):(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d))?(?:\s?(?P<half>[ap])\.?\s?m\b\.?)?(?P<rest>.*)"
    r"|(?P<full_hour>\d{1,2})\s?(?P<full_half>[ap])\.?\s?m\b\.?(?P<full_rest>.*)",
    re.ASCII | re.DOTALL | re.IGNORECASE,
)
_RATIO = re.compile(r"(?P<left>\d{1,1000})(?:\s?:\s?|\sto\s)(?P<right>\d{1,1000})", re.ASCII)
_HEDGE = re.compile(
    r"(?:about|approximately|approx\.?|around|roughly|exactly|nearly|only|just|a total of|≈|~)\s*", re.IGNORECASE
)
_SEPARATOR = re.compile(r"\s*(?:,\s+and\s+|,(?=\D|\d{1,2}\b|\d{4})\s*|\s+and\s+)", re.ASCII | re.IGNORECASE)
_MEASURE = (
    r"(?:hours?|hrs?|h|minutes?|mins?|seconds?|secs?|days?|weeks?|months?|years?|miles?|yards?|feet|foot|ft"
    r"|in(?:ch(?:es)?)?|km|cm|m|kg|g|(?:kilo|centi)?meters?|(?:kilo)?grams?|pounds?|lbs?|ounces?|oz|dollars?|cents?)"
)
_TWO_UNITS = re.compile(rf"({_PLAIN}\s?{_MEASURE})\.?,?\s+({_PLAIN}\s?{_MEASURE})", re.ASCII | re.IGNORECASE)
_STATEMENT = re.compile(
    r"\A(?:(?:so|therefore|thus|hence),?\s+)?(?:the\s+)?(?:final\s+)?answer\s*(?:\bis\b\s*:?|[:=])\s*(?=\S)",
    re.IGNORECASE,
)
_WRAPPERS = (
    (re.compile(r"\$\$?(?P<inside>[^$]+)\$\$?"), r"\g<inside>"),
    (re.compile(r"\\\((?P<inside>.+)\\\)|\\\[(?P<inside2>.+)\\\]", re.DOTALL), r"\g<inside>\g<inside2>"),
    (re.compile(r"\\(?:boxed|fbox)\s?\{(?P<inside>.+)\}", re.DOTALL), r"\g<inside>"),
    (re.compile(r"<(?P<inside>[^<>]+)>"), r"\g<inside>"),
)
_LATEX_NOISE = re.compile(r"\{,\}|\\[,!;: ]|\\(?:left|right)(?![a-zA-Z])|\^\s?\\circ|\^\{\\circ\}|\\degree")
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|boxed|fbox)\s?\{([^{}]*)\}")
_SIGNS = str.maketrans(
    {"−": "-", "–": "-", "—": "-", "‑": "-", "⁄": "/", "’": "'", "‘": "'", "“": '"', "”": '"', "²": "^2", "³": "^3"}
    | {"½": " 1/2", "⅓": " 1/3", "⅔": " 2/3", "¼": " 1/4", "¾": " 3/4", "÷": "/", "∞": "inf"}
)
_TRUTH = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}
_INFINITE = {"inf": "inf", "+inf": "inf", "infinity": "inf", "-inf": "-inf", "-infinity": "-inf"}
_APOSTROPHE = re.compile(r"'")
# Between digits it may be what keeps `100-200` from reading `100 200`, which is a number.
_PUNCTUATION = re.compile(r"(?P<between>(?<=\d)[\W_]+(?=\d{3}(?!\d)))|[\W_]+")
_ARTICLE = re.compile(r"\b(?:a|an|the)\s+(?=\S)")


@lru_cache(maxsize=65_536)
def _cached(text: str) -> str:
    return _canonical_text(text)


def _canonical_text(text: str) -> str:
    if _INTEGER.fullmatch(text):
        return text
    # Dropping punctuation can uncover a number ("(the 5)"), so the rules are applied until nothing changes.
    for _ in range(10):
        text = _unwrap(text)
        answer = _numeric(text) or _equation(text)
        if answer is not None:
            return answer
        words = _words(text)
        if words == text:
            break
        text = words
    return text


def _plain(text: str) -> str:
    """The text in ASCII signs and digits, as far as they go."""
    if text.isascii():
        return text
    text = unicodedata.normalize("NFKC", text.translate(_SIGNS))
    return re.sub(r"\d", lambda digit: str(unicodedata.decimal(digit[0])), text)


def _unwrap(text: str) -> str:
    """The text without Markdown, LaTeX and quotation around it."""
    text = " ".join(_plain(text).split())
    if "\\" in text or "{,}" in text:
        text = _LATEX_NOISE.sub("", text.replace("\\$", "$").replace("\\%", "%").replace("\\#", "#"))
        text = re.sub(r"\\[cdt]frac", r"\\frac", text)
        for _ in range(3):
            text = _LATEX_TEXT.sub(r"\1", text)
    before = None
    while text != before and len(text) <= _MAX_QUANTITY:
        before = text
        text = _STATEMENT.sub("", text.strip("*_`'\" \t\r\n").rstrip(".,;:!?"), count=1)
        for pattern, inside in _WRAPPERS:
            text = pattern.sub(inside, text) if pattern.fullmatch(text) else text
    return _GROUPS.sub(lambda groups: groups[0].translate(_SEPARATORS), text)


def _numeric(text: str) -> str | None:
    """The canonical form of a number, yes or no, a time, a ratio or several of them; `None` for words."""
    # Longer texts are numbers, perhaps with separators, or words.
    bare = text.replace(",", "") if len(text) > _MAX_QUANTITY else text
    if _DECIMAL.fullmatch(bare):
        return _number(Decimal(bare))
    folded = text.casefold()
    if folded in _TRUTH:
        return _TRUTH[folded]
    if folded in _INFINITE:
        return _INFINITE[folded]
    if ";" in text:
        return _parts(text.split(";"), strict=False)
    if len(text) > _MAX_QUANTITY:
        return None
    hedge = _HEDGE.match(text)
    if hedge and hedge.end() < len(text):
        text = text[hedge.end() :]
    two = _TWO_UNITS.fullmatch(text)
    if two:
        return _parts(list(two.groups()), strict=True)
    return _single(text) or _several(text) or _expression(text)


def _single(text: str) -> str | None:
    return _clock(text) or _proportion(text) or _quantity(text)


def _quantity(text: str) -> str | None:
    """A number with what may surround it: sign, currency, percent sign, scale, unit."""
    negated = _NEGATED.fullmatch(text)
    if negated:
        text = "-" + negated["inside"]
    match = _QUANTITY.match(text)
    if not match:
        return None
    rest = match["rest"]
    if match["top"] is not None:
        top, bottom = match["top"].translate(_SEPARATORS), match["bottom"].translate(_SEPARATORS)
        if not Decimal(bottom) or rest[:1] in tuple("/^*.0123456789"):
            return None
        value = Fraction(top) / Fraction(bottom) + int(match["whole"] or 0)
    else:
        number = match["number"].translate(_SEPARATORS) if match["number"] else str(_spelled(match["word"]))
        exponent = match["exponent"] or match["power"]
        if exponent is not None:
            value = Decimal(number).scaleb(int(exponent), context=_WIDE) if len(number) <= 28 else None
            if value is None:
                return None
        else:
            value = Fraction(number)
            part = _PART.match(rest)
            if part and (match["word"] or part["part"].lower() != "quarter"):
                value, rest = value / _PARTS[part["part"].lower()], rest[part.end() :]
    percent = _PERCENT.match(rest)
    if percent:
        rest = rest[percent.end() :]
    elif isinstance(value, Fraction):
        half = _AND_A_PART.match(rest)
        if half:
            value, rest = value + Fraction(1, _PARTS[half["part"].lower()]), rest[half.end() :]
        scale = _SCALE.match(rest)
        while scale:
            value, rest = value * 10 ** _SCALES[(scale["scale"] or "thousand").lower()], rest[scale.end() :]
            scale = _SCALE.match(rest)
    if rest and (not _UNIT.match(rest) or _NO_UNIT.match(rest)):
        return None
    if match["sign"] and match["sign"][0] != "+":
        value = -value
    if match["inner_sign"]:
        value = -value
    return _ratio(value) if isinstance(value, Fraction) else _number(value)


def _spelled(words: str) -> int:
    """The number that words matched by `_SPELLED` say."""
    total = group = 0
    for word in re.findall("[a-z]+", words.lower()):
        if word == "hundred":
            group *= 100
        elif word in _SCALES:
            total, group = total + group * 10 ** _SCALES[word], 0
        else:
            group += _VALUE_OF_WORD.get(word, 0)
    return total + group


def _clock(text: str) -> str | None:
    match = _CLOCK.match(text)
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


def _proportion(text: str) -> str | None:
    match = _RATIO.fullmatch(text)
    if not match:
        return None
    left, right = int(match["left"]), int(match["right"])
    divisor = math.gcd(left, right) or 1
    return f"{left // divisor}:{right // divisor}"


def _several(text: str) -> str | None:
    """`12, 8 and 4`, `(12, 8)`: quantities in a row."""
    if re.fullmatch(r"[(\[{].*[)\]}]", text, re.DOTALL):
        text = text[1:-1]
        inner = _single(text.strip())
        if inner is not None:
            return inner
    pieces = _SEPARATOR.split(text)
    return _parts(pieces, strict=True) if len(pieces) > 1 else None


def _parts(pieces: list[str], strict: bool) -> str | None:
    """The canonical parts joined by `;`; with `strict`, `None` unless every one of them is a quantity."""
    parts = []
    for piece in pieces:
        part = _single(_unwrap(piece)) if strict else canonical(piece)
        if strict and part is None:
            return None
        parts += [part] if part else []
    return ";".join(parts)


def _equation(text: str) -> str | None:
    """The right side of `x = 5`, if it is a number."""
    if "=" not in text or len(text) > _MAX_QUANTITY:
        return None
    return _numeric(_unwrap(text.rpartition("=")[2]))


def _words(text: str) -> str:
    text = _APOSTROPHE.sub("", text.casefold())
    text = unicodedata.normalize("NFKC", text)
    text = _PUNCTUATION.sub(lambda gap: "-" if (gap["between"] or " ").strip() else " ", text).strip()
    return _ARTICLE.sub("", text)


# ----------------------------------------------------------------------------------------------- LaTeX, by math-verify

_LATEX = threading.Lock()
_COMMANDS = {"frac", "sqrt", "cdot", "times", "div", "pi"}
_OPERATION = re.compile(r"\\[a-zA-Z]|[-+*/^×]")
# One character outside of these, or a power that is not a small number on a small number, and it is not evaluated.
_ALLOWED = re.compile(r"(?:[0-9.\s+\-*/^(){}\[\]×]|\\[a-zA-Z]+)+")
_NO_ARITHMETIC = re.compile(r"[0-9]+(?:-[0-9]+)+|[0-9]+(?:/[0-9]+){2,}")  # ranges, dates
_POWER = re.compile(r"\^\s?(?:\{\s?-?[0-9]{1,2}\s?\}|-?[0-9]{1,2}(?![0-9]))(?!\s?\^)")


def _expression(text: str) -> str | None:
    """The value of arithmetic in LaTeX or plain signs, such as `2\\sqrt{3}` or `3 \\times 4`."""
    if len(text) > _MAX_EXPRESSION or not _OPERATION.search(text) or not re.search(r"[0-9]|\\pi", text):
        return None
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.strip("$").replace("**", "^"), flags=re.ASCII)
    commands = re.findall(r"\\([a-zA-Z]+)", text)
    tame = (
        _ALLOWED.fullmatch(text)
        and _COMMANDS.issuperset(commands)
        and text.count("^") == len(_POWER.findall(text))
        and not _NO_ARITHMETIC.fullmatch(text)
        and not re.search(r"[0-9]{31}|[)}\]]\s*\^|[)}]\s*[(0-9]|[0-9]\s*\(|\.[0-9]*\.|[0-9]\s+[0-9]", text)
    )
    if not tame:
        return None
    with _LATEX:  # the parser and sympy keep caches of their own, not made for several threads
        try:
            value = _evaluate(text)
        except Exception:  # the parsers raise whatever they like on what they cannot read
            return None
    return value


def _evaluate(text: str) -> str | None:
    # What `math_verify.parse` does, without its timeout, which is a signal and works in the main thread only.
    from math_verify.parser import LatexExtractionConfig, extract_target_from_pred, get_extraction_regexes

    parsed = extract_target_from_pred(f"${text}$", get_extraction_regexes([LatexExtractionConfig()]))
    if not parsed or isinstance(parsed[0], str) or not parsed[0].is_number:
        return None
    value = parsed[0].doit()
    if value.is_Rational:
        return _ratio(Fraction(int(value.p), int(value.q)))
    value = value.evalf(20)
    return _number(Decimal(str(value))) if value.is_Float else None


# ------------------------------------------------------------------------------------------- what a text comes to

_STATED = re.compile(
    r"(?P<boxed>\\boxed\s?\{)"
    r"|####\s*"
    r"|\banswers?\b(?:\s*\*{1,2}\s*)?"
    r"(?:[^.:=\n]{0,60}?\b(?:is|are|was|would be|will be|must be|should be|equals)\b(?!\s+not\b)\s*:?|\s*[:=])[\s*]*",
    re.IGNORECASE,
)
_ABBREVIATION = re.compile(r"(?:\b(?:mr|mrs|ms|dr|st|vs|sq|no|rs|approx)|\b[ap]\.m)$", re.IGNORECASE)
_END = re.compile(r"[.!?]+[*_>\"')\]]*(?=\s|$)|\n")
_ASIDE = re.compile(
    r",\s+(?!and\s+[\W]?\d|\d|[-$€£]\s?\d)|\s+(?:because|since|which|as we|so that)\b|;?\s+(?:therefore|hence|thus)\b",
    re.IGNORECASE,
)
_FIRST_TRUTH = re.compile(r"(yes|no|true|false)\b(?=\s*(?:[,.;:!(-]|$))", re.IGNORECASE)
_LAST_NUMBER = re.compile(
    rf"(?:(?<![\w.)\]])-\s?)?{_CURRENCY}?(?<!\^)(?:\d{{1,2}}(?::[0-5]\d)?\s?[ap]\.?\s?m\b|\d{{1,2}}:\d\d(?!\d)"
    rf"|(?<![\w.])\d+\s\d+/\d+|\d*\\[cdt]?frac(?:\{{[\d.]+\}}){{2}}"
    rf"|{_PLAIN}(?:e[-+]?\d{{1,3}}(?!\w)|{_TIMES_TEN}-?\d{{1,3}}\}}?|\s?/\s?{_PLAIN})?)",
    re.ASCII | re.IGNORECASE,
)
_LAST_TRUTH = re.compile(
    r"(?:^|[\n.,;:!*\"']\s{0,3}|\b(?:so|therefore|thus|hence|say|is)\s{1,3})(?P<truth>yes|no|true|false)\b(?=\s*(?:[,.;:!*\"']|$))",
    re.IGNORECASE,
)


def _braced(text: str, start: int) -> str:
    """What stands between the brace before `start` and its partner."""
    depth = 1
    for end in range(start, min(len(text), start + _MAX_QUANTITY)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start:end]
    return text[start : start + _MAX_QUANTITY].partition("\n")[0]


def _sentence(text: str) -> str:
    """The text up to the end of its first sentence or line."""
    text = text.strip()
    for match in _END.finditer(text):
        if match[0].startswith("\n") or not _ABBREVIATION.search(text[: match.start()]) or match.end() == len(text):
            return text[: match.start()]
    return text


def _read_span(span: str) -> str:
    """The answer in the words after `The answer is`."""
    if span.startswith("<") and ">" in span:
        return canonical(span[1 : span.index(">")])
    truth = _FIRST_TRUTH.match(span.lstrip("*_ "))
    if truth:
        return canonical(truth[1])
    whole = canonical(span)
    if re.fullmatch(r"[-0-9.:;e]+", whole):
        return whole
    return _number_of_clause(canonical(_ASIDE.split(span, maxsplit=1)[0]), span)


def _number_of_clause(answer: str, span: str) -> str:
    """A whole clause ("that Tom has 5 apples") with one number in it says that number."""
    if len(answer.split()) <= 3:
        return answer
    numbers = _LAST_NUMBER.findall(span)
    return canonical(numbers[0]) if len(numbers) == 1 else answer


def _last_answer(text: str) -> str | None:
    number, truth = _last(_LAST_NUMBER, text), _last(_LAST_TRUTH, text)
    if truth and (not number or truth.start("truth") > number.start()):
        return canonical(truth["truth"])
    return canonical(number[0]) or None if number else None


def _last(pattern: re.Pattern, text: str) -> re.Match | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)
