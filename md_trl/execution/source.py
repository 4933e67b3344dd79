"""Find the Python source in a text that a model wrote: fenced, between prose, or the whole text."""

from __future__ import annotations

import ast
import re
import textwrap
import threading
from collections.abc import Iterator
from itertools import islice


# How many places where prose may start after the code are tried.
_MAX_ENDS = 20

_FENCE = re.compile(
    r"^[ \t]*(?:```|~~~)[ \t]*(?P<language>[\w+-]*)[^\n]*\n(?P<code>.*?)(?:^[ \t]*(?:```|~~~)|\Z)", re.M | re.S
)
_CODE_LINE = re.compile(
    r"(?:def|import|from|class|for|while|if|try|with|print|return)\b|@|#|[A-Za-z_][\w.]*(?:\[.*\])?\s*[-+*/]?=[^=]"
)
_PROSE_LINE = re.compile(
    r"(?!(?:def|import|from|for|while|if|elif|else|try|with|return|class|assert|not|global|raise|lambda|del)\b)"
    r"(?:[^\W\d]\S*(?: \S+){2,}|[A-Z]\w*:)"
)
_PARSER_LOCK = threading.Lock()


class InvalidProgramError(ValueError):
    """A text does not contain a Python program."""


def find_source(text: str) -> tuple[str, ast.Module]:
    r"""
    Find the Python source in a text.

    These are tried in order: all fenced Python blocks joined, each fenced block from the longest, and, if there is no
    fence, the whole text and then the text without the prose around it.

    Args:
        text (`str`):
            A text that a model wrote.

    Returns:
        `tuple[str, ast.Module]`: The source and its syntax tree.

    Raises:
        [`InvalidProgramError`]: If no part of the text is Python.
    """
    text = text.lstrip("\ufeff").replace("\r\n", "\n").strip("\n")
    blocks = [(match["language"].lower(), textwrap.dedent(match["code"])) for match in _FENCE.finditer(text)]
    # A program may be spread over several blocks.
    python = "\n".join(code for language, code in blocks if language in ("python", "python3", "py"))
    fenced = [python] * bool(python) + sorted((code for _, code in blocks), key=len, reverse=True)
    first_error = None
    for candidate in fenced or map(textwrap.dedent, _without_prose(text)):
        try:
            return candidate, parse(candidate)
        except SyntaxError as error:
            first_error = first_error or f"SyntaxError: {error.msg} (line {error.lineno})"
        except (ValueError, MemoryError, RecursionError) as error:  # NUL bytes, surrogates, thousands of brackets
            first_error = first_error or f"SyntaxError: {str(error) or 'too deeply nested'}"
    raise InvalidProgramError(first_error or "SyntaxError: the text is empty")


def parse(source: str) -> ast.Module:
    """Parse Python source; safe to call from several threads."""
    # CPython counts the nesting depth of all threads' parsers together and raises SystemError when they mix
    # (gh-106905). The lock covers our threads, the retries cover others.
    for attempt in range(10):
        try:
            with _PARSER_LOCK:
                return ast.parse(source)
        except SystemError:
            if attempt == 9:
                raise


def _without_prose(text: str) -> Iterator[str]:
    """The whole text, then the text from its first line of code up to each line that may start prose again."""
    yield text
    lines = text.split("\n")
    start = next((i for i, line in enumerate(lines) if _CODE_LINE.match(line)), None)
    if start is None:
        return
    yield "\n".join(lines[start:])
    # Prose after the code starts at the margin, but so may the lines of a docstring: hence several tries.
    ends = (i for i in range(start + 1, len(lines)) if _PROSE_LINE.match(lines[i]) and not _CODE_LINE.match(lines[i]))
    for end in islice(ends, _MAX_ENDS):
        yield "\n".join(lines[start:end])
