"""Write the parts of the page as HTML. Texts of models and data pass through [`escape`] and are shown as they are."""

from __future__ import annotations

import html
import keyword
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..answers import equal
from ..records import PATHS, QuestionType
from ..weighting import path_weights
from .explanation import MEANINGS, PATH_NAMES, Tally, explain, only_label, tally


MAX_CHARS = 20_000
"""Characters of a text that are shown. The export has all of them."""
THOUGHTS_SHOWN = 20
"""Thoughts of one path that are shown at a time."""

# Characters that change how others are displayed, or that a terminal obeys, are shown by name or symbol
_INVISIBLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
# The templates of `gr.HTML` give these a meaning
_TEMPLATE = {"{": "&#123;", "$": "&#36;", "`": "&#96;"}
_TOKENS = re.compile(
    r"""(?P<comment>\#[^\n]*)
    |(?P<string>[rbfRBF]{0,2}(?:\"\"\"[\s\S]*?(?:\"\"\"|\Z)|'''[\s\S]*?(?:'''|\Z)
        |"(?:[^"\\\n]|\\.)*(?:"|(?=\n)|\Z)|'(?:[^'\\\n]|\\.)*(?:'|(?=\n)|\Z)))
    |(?P<number>\b\d[\w.]*)
    |(?P<name>[^\W\d]\w*)""",
    re.VERBOSE,
)


def escape(text: Any) -> str:
    """Return HTML that displays a text as it is. Control characters become visible symbols such as ␛ or ⟨U+202E⟩."""
    escaped = html.escape(_INVISIBLE.sub(_visible, str(text)), quote=True)
    return escaped.translate(str.maketrans(_TEMPLATE))


def _visible(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"


def highlight(program: str) -> str:
    """Return HTML of a program with its comments, strings, numbers and keywords marked. It need not be valid."""
    parts, end = [], 0
    for found in _TOKENS.finditer(program):
        kind = found.lastgroup
        if kind == "name":
            kind = "keyword" if keyword.iskeyword(found[0]) else None
        if kind is not None:
            parts += [escape(program[end : found.start()]), f'<span class="mx-{kind}">{escape(found[0])}</span>']
            end = found.end()
    return "".join(parts) + escape(program[end:])


def styles() -> str:
    """Return the style sheet of the page."""
    return Path(__file__).with_name("style.css").read_text(encoding="utf-8")


def badge(type_: int) -> str:
    """Return the mark of a question's type."""
    return (
        f'<span class="mx-type mx-type{int(type_)}" title="{MEANINGS[QuestionType(type_)]}">type {int(type_)}</span>'
    )


def _row_badge(row: Mapping[str, Any]) -> str:
    """Return the mark of a question's type, or of what was not sampled."""
    if row["type"] is not None:
        return badge(row["type"])
    missing = [PATH_NAMES[path] for path in PATHS if not row[f"n_{path}"]]
    what = f"{missing[0]} " if len(missing) == 1 else ""
    return f'<span class="mx-type mx-untyped" title="a type needs thoughts of both paths">{what}not sampled</span>'


def answer_chip(answer: str | None, correct: bool, note: str = "") -> str:
    """Return the mark of an answer: right, wrong or missing, by colour and by symbol."""
    if answer is None:
        return f'<span class="mx-chip mx-none">– {escape(note or "no answer")}</span>'
    kind, symbol = ("right", "✓") if correct else ("wrong", "✗")
    return f'<span class="mx-chip mx-{kind}">{symbol} {escape(clip(answer, 60))}</span>'


def clip(text: str, length: int) -> str:
    """Shorten a text to at most this many characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def empty(reason: str) -> str:
    """Return what stands in place of the list of questions if there are none."""
    return f'<div class="mx-empty">{escape(reason)}</div>'


def listing(rows: Sequence[Any], opened: int | None = None, other: str | None = None) -> str:
    r"""
    Return the list of questions.

    Args:
        rows (`Sequence`):
            Rows of one page, see [`~md_trl.explorer.queries.page`].
        opened (`int`, *optional*):
            Number of the row that is open.
        other (`str`, *optional*):
            Name of the author to compare with.

    Returns:
        `str`: HTML. Each row is a button with the attribute `data-open`.
    """
    lines = []
    for row in rows:
        votes = "".join(_path_vote(row, path) for path in PATHS if row[f"n_{path}"])
        if row["n_label"]:
            votes += f'<span class="mx-vote"><b>label</b> {_judged_chip(row["label"], row["answer"])}</span>'
        extra = ""
        if row["type"] == QuestionType.BOTH:
            extra = f'<span class="mx-small">λ {row["lambda"]:.2f}</span>'
        if other is not None:
            own = f"<b>{_vote_name(row)}</b> {answer_chip(row['vote'], bool(row['correct']))}"
            chip = answer_chip(row["other_vote"], bool(row["other_correct"]))
            extra += f'<span class="mx-vote">{own} <b>{escape(clip(other, 24))}</b> {chip}</span>'
        question = escape(clip(row["question"] or row["id"], 220))
        current = ' aria-current="true"' if row["n"] == opened else ""
        lines.append(
            f'<button type="button" class="mx-row" data-open="{row["n"]}"{current}>{_row_badge(row)}'
            f'<span class="mx-question">{question}</span><span class="mx-votes">{votes}{extra}</span></button>'
        )
    return f'<div class="mx-list">{"".join(lines)}</div>'


def _path_vote(row: Mapping[str, Any], path: str) -> str:
    chip = _judged_chip(row[f"{path}_vote"], row["answer"], "no vote")
    right = f"<i>{row[f'n_{path}_correct']}/{row[f'n_{path}']}</i>"
    return f'<span class="mx-vote"><b>{PATH_NAMES[path]}</b> {chip}{right}</span>'


def _vote_name(row: Mapping[str, Any]) -> str:
    if only_label(row):
        return "label"
    return "joint vote" if all(row[f"n_{path}"] for path in PATHS) else "vote"


def _judged_chip(answer: str | None, gold: str, note: str = "") -> str:
    return answer_chip(answer, answer is not None and equal(answer, gold), note)


def question_view(
    rows: Sequence[Mapping[str, Any]], thoughts: Sequence[Mapping[str, Any]], names: Mapping[int, str], page: int = 0
) -> str:
    r"""
    Return a question with the thoughts of every author that answered it.

    Args:
        rows (`Sequence[Mapping]`):
            The rows of the question, the one that was opened first.
        thoughts (`Sequence[Mapping]`):
            The thoughts of each row.
        names (`Mapping[int, str]`):
            Names of the authors by number.
        page (`int`, *optional*, defaults to `0`):
            Which thoughts to show, [`THOUGHTS_SHOWN`] per path at a time.

    Returns:
        `str`: HTML.
    """
    first = rows[0]
    text = first["question"]
    if text is None:
        question = '<p class="mx-text mx-missing">A result does not hold the text of this question.</p>'
    else:
        question = f'<p class="mx-text">{_block(text)}</p>'
    place = " · ".join(escape(part) for part in (first["task"], first["split"], first["id"]) if part)
    gold = f'<span class="mx-gold">gold answer <b>{escape(clip(first["answer"], 200))}</b></span>'
    head = f'<header class="mx-head"><div class="mx-small">{place}</div>{question}{gold}</header>'
    sections = [
        _author_section(row, of_row, names[row["author"]], page) for row, of_row in zip(rows, thoughts, strict=True)
    ]
    longest = max((len(t[p]) + len(t[f"{p}_unusable"]) for t in thoughts for p in PATHS), default=0)
    return f'<article class="mx-view">{head}{"".join(sections)}{_pager(page, longest, first["n"])}</article>'


def _author_section(row: Mapping[str, Any], thoughts: Mapping[str, Any], name: str, page: int) -> str:
    joint = answer_chip(row["vote"], bool(row["correct"]), "no answer" if only_label(row) else "no vote")
    used = []
    if row["tokens"]:
        used.append(f"{row['tokens']:,} tokens")
    if row["cost"] is not None:
        used.append(f"cost {row['cost']:.6f}")
    if row["repeat"] and row["repeat"] > 1:
        used.append(f"seen {row['repeat']}× per epoch")
    meta = f'<span class="mx-small">{" · ".join(used)}</span>' if used else ""
    reasons = "".join(f"<li>{escape(clip(sentence, 500))}</li>" for sentence in explain(row, thoughts))
    columns = "" if only_label(row) else "".join(_path_column(path, row, thoughts, page) for path in PATHS)
    meaning = "" if row["type"] is None else MEANINGS[QuestionType(row["type"])]
    if only_label(row):
        meaning = "asked only for a bare answer"
    return (
        f'<section class="mx-author"><div class="mx-bar"><h3>{escape(name)}</h3>{_row_badge(row)}'
        f'<span>{meaning}</span><span class="mx-joint">{_vote_name(row)} {joint}</span>{meta}</div>'
        f'<div class="mx-why"><ul>{reasons}</ul>{_weights(row)}</div><div class="mx-columns">{columns}</div></section>'
    )


def _weights(row: Mapping[str, Any]) -> str:
    """Show what each path weighs in the loss, if the thoughts are for training."""
    if not row["trainable"] or row["type"] in (None, QuestionType.NEITHER):
        return ""
    type_ = QuestionType(row["type"])
    if type_ != QuestionType.BOTH or row["lambda"] is None:
        return '<div class="mx-weights"><span class="mx-small">weights in the loss: CoT 1, PoT 1 (Eq. 2)</span></div>'
    weights = path_weights("md", type_, row["lambda"])
    bars = "".join(
        f'<span class="mx-{path}" style="flex-grow:{weights[path]:.4f}">{PATH_NAMES[path]} {weights[path]:.2f}</span>'
        for path in PATHS
        if weights[path] > 0
    )
    return (
        f'<div class="mx-weights"><span class="mx-small">weights in the loss: λ = {row["n_pot_correct"]} / '
        f"({row['n_cot_correct']} + {row['n_pot_correct']}) = {row['lambda']:.2f} (Eq. 4)</span>"
        f'<div class="mx-meter">{bars}</div></div>'
    )


_TITLES = {"cot": "Chain of thought (prose)", "pot": "Program of thought (Python)"}


def _path_column(path: str, row: Mapping[str, Any], thoughts: Mapping[str, Any], page: int) -> str:
    sampled = row[f"n_{path}"]
    tallies = tally(thoughts[path], sampled, row["answer"])
    bars = "".join(_tally_line(t, sampled) for t in tallies[:6])
    if len(tallies) > 6:
        bars += f'<div class="mx-small">and {len(tallies) - 6} other answers</div>'
    # The most frequent first, and those without an answer last
    every = [t for of in (path, f"{path}_unusable") for t in sorted(thoughts[of], key=lambda t: -t["count"])]
    shown = every[page * THOUGHTS_SHOWN : (page + 1) * THOUGHTS_SHOWN]
    cards = "".join(_thought(path, thought) for thought in shown if thought["text"] is not None)
    counts = f"{row[f'n_{path}_correct']} of {sampled} right" if sampled else "not sampled"
    title = f'{_TITLES[path]} <span class="mx-small">{counts}</span>'
    return f'<div class="mx-column mx-{path}"><h4>{title}</h4><div class="mx-tallies">{bars}</div>{cards}</div>'


def _tally_line(of_answer: Tally, sampled: int) -> str:
    kind = "right" if of_answer.correct else "none" if of_answer.answer is None else "wrong"
    width = 100 * of_answer.count / max(sampled, 1)
    return (
        f'<div class="mx-tally">{answer_chip(of_answer.answer, of_answer.correct)}<span class="mx-track">'
        f'<span class="mx-fill mx-{kind}" style="width:{width:.1f}%"></span></span>'
        f'<span class="mx-small">{of_answer.count}</span></div>'
    )


def _thought(path: str, thought: Mapping[str, Any]) -> str:
    times = f'<span class="mx-small">sampled {thought["count"]}×</span>' if thought["count"] > 1 else ""
    if "reason" in thought:
        chip, kind = answer_chip(None, False, clip(thought["reason"], 160)), "none"
    else:
        chip = answer_chip(thought["answer"], thought["correct"])
        kind = "right" if thought["correct"] else "wrong"
    text = _block(thought["text"], program=path == "pot")
    return f'<div class="mx-thought mx-edge-{kind}"><div class="mx-meta">{chip}{times}</div><pre>{text}</pre></div>'


def _block(text: str, program: bool = False) -> str:
    shown = text[:MAX_CHARS]
    body = highlight(shown) if program else escape(shown)
    if len(text) > MAX_CHARS:
        body += f'<span class="mx-cut">… {len(text) - MAX_CHARS:,} more characters. The export has them.</span>'
    return body


def _pager(page: int, longest: int, n: int) -> str:
    pages = -(-longest // THOUGHTS_SHOWN)
    if pages <= 1:
        return ""
    buttons = "".join(
        f'<button type="button" class="mx-more" data-open="{n}" data-page="{number}"'
        f"{'' if 0 <= number < pages else ' disabled'}>{label}</button>"
        for label, number in (("← earlier thoughts", page - 1), ("more thoughts →", page + 1))
    )
    return f'<div class="mx-pager">{buttons}<span class="mx-small">page {page + 1} of {pages}</span></div>'
