"""Text for a terminal. Texts that a model wrote are hostile: no escape sequence in them may reach it."""

from __future__ import annotations

import os
import unicodedata
from typing import TextIO


GREEN, RED, BOLD, DIM = "32", "31", "1", "2"
"""Codes of [`Style`]."""

# Invisible characters that change the order of the visible ones around them
_REORDERING = {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A)), "\u061c", "\u200e", "\u200f"}


def printable(text: str) -> str:
    r"""
    Write control characters as escapes, so that a terminal shows them instead of obeying them.

    Args:
        text (`str`):
            Any text.

    Returns:
        `str`: The text without control characters, except for line feeds and tabs. Line ends of Windows become line
        feeds.
    """
    return "".join(map(_printable, text.replace("\r\n", "\n")))


def one_line(text: str) -> str:
    """Write a text as [`printable`] does, and on one line."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def _printable(char: str) -> str:
    # Control characters, surrogates, and the separators of lines and paragraphs
    unsafe = unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or char in _REORDERING
    if char in "\n\t" or not unsafe:
        return char
    return f"\\x{ord(char):02x}" if ord(char) < 0x100 else f"\\u{ord(char):04x}"


def in_color(stream: TextIO) -> bool:
    """Return whether a stream is a terminal with colors that the user wants (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class Style:
    r"""
    Colors of texts.

    Args:
        color (`bool`):
            Whether to color at all.
    """

    def __init__(self, color: bool):
        self._color = color

    def __call__(self, text: str, code: str) -> str:
        """Color a text, which must be printable."""
        return f"\x1b[{code}m{text}\x1b[0m" if self._color else text
