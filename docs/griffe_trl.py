"""Extension of Griffe: reads docstrings in TRL's grammar, which differs a little from Google's.

TRL writes types in backticks with ``*optional*, defaults to`` behind them, documents several arguments in one entry,
puts headings (`> Parameters that control ...`) between arguments, and refers to objects as [`~module.Name`].
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


_TITLES = r"Args|Parameters|Attributes|Returns|Yields|Raises|Examples"
_ENTRY = re.compile(r"^(?P<indent> +)(?P<entries>\*{0,2}\w+ \(.+\)):$")
_ARGUMENT = re.compile(r"(\*{0,2}\w+) \((.+?)\)(?=, \*{0,2}\w+ \(|$)")
_REFERENCE = re.compile(r"\[`(~?)([\w.]+)`\](?!\(|\[)")
_TYPE = r"(?:`[^`]+`|\[`[\w.~]+`\])"
_RESULT = re.compile(rf"^(?P<indent> +)(?P<type>{_TYPE}(?: or {_TYPE})*)(?:, \*optional\*)?: ")


def to_google(text: str, module: str = "") -> str:
    r"""
    Rewrite a docstring from TRL's grammar to Google's.

    Args:
        text (`str`):
            The docstring, with its indentation removed.
        module (`str`, *optional*, defaults to `""`):
            Path of its module, in which names without a path are looked up.

    Returns:
        `str`: The same docstring for Griffe's parser.
    """
    # An entry may be so long that its defaults are on a second line
    text = re.sub(r", \*optional\*,\n +defaults to (.*):\n", r", *optional*, defaults to \1:\n", text)
    title, lines, result = "", text.splitlines(), []
    for i, line in enumerate(lines):
        if match := re.match(rf"^({_TITLES}):$", line):
            title = match[1]
            line = "Args:" if title == "Parameters" else line
        elif line and not line.startswith(" "):
            title = ""
        elif title in ("Args", "Parameters", "Attributes"):
            # Griffe wants the first argument right below the title
            if line.lstrip().startswith("> ") or (not line and result[-1:] == ["Args:"]):
                continue
            if match := _ENTRY.match(line):
                result += _arguments(match, lines[i + 1 :])
                continue
        elif title in ("Returns", "Yields", "Raises") and (match := _RESULT.match(line)):
            line = f"{match['indent']}{_plain(match['type'])}: {line[match.end() :]}"
        result.append(line)
    return _REFERENCE.sub(lambda match: _reference(match, module), "\n".join(result))


def _arguments(match: re.Match, following: list[str]) -> list[str]:
    """One entry per argument. All but the last of an entry repeat its description."""
    indent, arguments = match["indent"], _ARGUMENT.findall(match["entries"])
    description = []
    for line in following:
        if line.strip() and not line.startswith(indent + " "):
            break
        description.append(line)
    while description and not description[-1].strip():
        description.pop()
    lines = []
    for place, (name, type_) in enumerate(arguments):
        type_ = re.sub(r", \*optional\*.*", "", type_)
        lines.append(f"{indent}{name} ({_plain(type_)}):")
        if place < len(arguments) - 1:
            lines += description
    return lines


def _plain(type_: str) -> str:
    return _REFERENCE.sub(lambda match: match[2].rsplit(".", 1)[-1] if match[1] else match[2], type_).replace("`", "")


def _reference(match: re.Match, module: str) -> str:
    """A cross-reference that becomes a link if its object has an entry in the API reference."""
    target, name = match[2], match[2].rsplit(".", 1)[-1] if match[1] else match[2]
    target = target if target.split(".")[0] in ("md_trl", "transformers", "trl") else f"{module}.{target}"
    return f'<autoref optional identifier="{target}"><code>{name}</code></autoref>'


class TRLDocstrings(Extension):
    """Apply `to_google` to the docstring of every object."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = to_google(obj.docstring.value, obj.module.path)
