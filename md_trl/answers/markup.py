"""Remove what surrounds an answer without changing it: Unicode variants, Markdown, LaTeX, quotes, `The answer is`."""

from __future__ import annotations

import re
import unicodedata


MAX_QUANTITY_CHARS = 1_000
"""Longer texts are either a plain number or words."""

_SIGNS = str.maketrans(
    {"−": "-", "–": "-", "—": "-", "‑": "-", "⁄": "/", "’": "'", "‘": "'", "“": '"', "”": '"', "²": "^2", "³": "^3"}
    | {"½": " 1/2", "⅓": " 1/3", "⅔": " 2/3", "¼": " 1/4", "¾": " 3/4", "÷": "/", "∞": "inf", "٫": ".", "٬": ","}
)
_LATEX_SPACING = re.compile(r"\{,\}|\\[,!;: ]|\\(?:left|right)(?![a-zA-Z])|\^\s?\\circ|\^\{\\circ\}|\\degree")
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|boxed|fbox)\s?\{([^{}]*)\}")
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
# `1 234 567`, `1'234`, `1_234`: an answer is one number, where a sentence may hold several side by side.
_DIGIT_GROUPS = re.compile(r"(?<![^\W_]|[.,/:])\d{1,3}(?:[ '_]\d{3})+(?![^\W_]|[/:']| /)", re.ASCII)
SEPARATORS = str.maketrans("", "", ",'_ ")
"""Deletes thousands separators, for `str.translate`."""


def to_ascii(text: str) -> str:
    """Replace Unicode signs and digits with ASCII ones where there are any."""
    if text.isascii():
        return text
    text = unicodedata.normalize("NFKC", text.translate(_SIGNS))
    return re.sub(r"\d", lambda digit: str(unicodedata.decimal(digit[0])), text)


def strip_markup(text: str) -> str:
    """Remove the Markdown, LaTeX and quotation marks around an answer, and the spaces between groups of digits."""
    text = " ".join(to_ascii(text).split())
    if "\\" in text or "{,}" in text:
        text = _LATEX_SPACING.sub("", text.replace("\\$", "$").replace("\\%", "%").replace("\\#", "#"))
        text = re.sub(r"\\[cdt]frac", r"\\frac", text)
        for _ in range(3):  # nested at most this deep
            text = _LATEX_TEXT.sub(r"\1", text)
    before = None
    while text != before and len(text) <= MAX_QUANTITY_CHARS:
        before = text
        text = _STATEMENT.sub("", text.strip("*_`'\" \t\r\n").rstrip(".,;:!?"), count=1)
        for pattern, inside in _WRAPPERS:
            text = pattern.sub(inside, text) if pattern.fullmatch(text) else text
    return _DIGIT_GROUPS.sub(lambda groups: groups[0].translate(SEPARATORS), text)
