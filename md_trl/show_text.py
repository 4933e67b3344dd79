"""Format a question with its thoughts for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from .mixing import SOLVED_BY
from .records import COT_POT, LABEL, PATHS, PATHS_AND_LABEL
from .show import ShownQuestion, ShownThought
from .terminal import BOLD, DIM, GREEN, RED, Style, one_line, printable


TITLES = {"cot": "CoT", "pot": "PoT", LABEL: "Label", COT_POT: "Plan + PoT"}
"""Paths in the words of the output."""


def format_question(question: ShownQuestion, color: bool = False, width: int | None = None) -> str:
    r"""
    Format a question for a terminal. Whatever its texts hold, the terminal obeys none of it.

    Args:
        question ([`ShownQuestion`]):
            The question.
        color (`bool`, *optional*, defaults to `False`):
            Whether to color what is right and wrong. Without it, the words say so, too.
        width (`int`, *optional*):
            Columns to wrap prose at. By default lines stay as they are.

    Returns:
        `str`: The lines.
    """
    style = Style(color)
    type_ = question.type and f"type {question.type:d} (solved by {SOLVED_BY[question.type]})"
    lambda_ = None if question.lambda_ is None else f"lambda {question.lambda_:.2f}"
    repeat = None if question.repeat is None else f"repeat {question.repeat}"
    lines = [" | ".join(filter(None, (style(one_line(question.id), BOLD), type_, lambda_, repeat)))]
    if question.question is not None:
        lines += _indent(question.question, "  ", width)
    lines.append(f"  gold answer: {style(one_line(question.answer), BOLD)}")
    paths = [path for path in PATHS_AND_LABEL if path in question.thoughts]
    if set(PATHS) <= set(paths):
        lines.append(f"  joint vote: {_vote(question, question.vote, PATHS, style)}")
    for path in paths:
        unusable = question.sampled[path] - question.counts(path).total()
        rest = f"; {unusable:,} of {question.sampled[path]:,} unusable" if unusable else ""
        lines += ["", f"  {TITLES[path]}: {_vote(question, question.votes.get(path), [path], style)}{rest}"]
        for thought in question.thoughts[path]:
            lines += _thought_lines(thought, path, style, width)
    return "\n".join(lines)


def _vote(question: ShownQuestion, answer: str | None, paths: Sequence[str], style: Style) -> str:
    """The answer that won a vote, and how many votes each answer has."""
    if answer is None:
        return style("no answer, WRONG", RED)
    mark = style("right", GREEN) if question.is_gold(answer) else style("WRONG", RED)
    counts = ", ".join(f"{one_line(one)} x{count:,}" for one, count in question.counts(*paths).items())
    return f"{one_line(answer)} {mark}" + (f" (votes: {counts})" if counts else "")


def _thought_lines(thought: ShownThought, path: str, style: Style, width: int | None) -> list[str]:
    if thought.answer is None and not thought.correct:
        why = "no answer" if thought.finish_reason == "stop" else f"cut off: {one_line(thought.finish_reason)}"
        head = style(f"unusable ({why})", DIM)
    else:
        mark = style("right", GREEN) if thought.correct else style("WRONG", RED)
        head = f"{mark}" + ("" if thought.answer is None else f" {one_line(thought.answer)}")
    count = f" x{thought.count:,}" if thought.count > 1 else ""
    lines = [f"    [{head}{count}]"]
    if thought.text is not None and path != LABEL:
        # A program keeps its lines and is indented further, as code is.
        lines += _indent(thought.text, "          " if path == "pot" else "      ", None if path == "pot" else width)
    return lines


def _indent(text: str, indent: str, width: int | None) -> list[str]:
    lines = printable(text).split("\n")
    if width is not None:
        lines = [part for line in lines for part in textwrap.wrap(line, max(width - len(indent), 20)) or [""]]
    return [(indent + line).rstrip() for line in lines]
