"""Draw distributions as SVG, which needs no script in the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..mixing import SOLVED_BY
from ..records import QuestionType
from .markup import badge
from .queries import Bin


_WIDTH, _HEIGHT, _BASE = 460, 170, 140


def type_bars(types: Mapping[QuestionType, int]) -> str:
    """Draw the number of questions of each type."""
    total = sum(types.values())
    if not total:
        return ""
    lines = [
        f'<div class="mx-tally">{badge(type_)}<span>{SOLVED_BY[type_]}</span><span class="mx-track">'
        f'<span class="mx-fill mx-type{type_:d}" style="width:{100 * count / total:.2f}%"></span></span>'
        f'<span class="mx-small">{count:,} ({count / total:.1%})</span></div>'
        for type_, count in types.items()
    ]
    return _figure("Which paths solve the questions", "".join(lines))


def bars(title: str, bins: Sequence[Bin], colour: str, digits: int = 0, note: str = "") -> str:
    r"""
    Draw a histogram.

    Args:
        title (`str`):
            What is counted.
        bins (`Sequence[Bin]`):
            The bins.
        colour (`str`):
            Class of the style sheet with the colour of the bars.
        digits (`int`, *optional*, defaults to `0`):
            Decimal places of the numbers on the axis.
        note (`str`, *optional*):
            What the axis shows.

    Returns:
        `str`: HTML.
    """
    if not bins or not any(bin.count for bin in bins):
        return ""
    top, step = max(bin.count for bin in bins), _WIDTH / len(bins)
    shapes = "".join(
        f'<rect x="{i * step + 1:.1f}" y="{_BASE - 120 * bin.count / top:.1f}" width="{max(step - 2, 1):.1f}" '
        f'height="{120 * bin.count / top:.1f}" rx="2"><title>{bin.low:,.{digits}f} to {bin.high:,.{digits}f}: '
        f"{bin.count:,}</title></rect>"
        for i, bin in enumerate(bins)
    )
    middle = (bins[0].low + bins[-1].high) / 2
    labels = "".join(
        f'<text x="{x}" y="{_BASE + 16}" text-anchor="{anchor}">{value:,.{digits}f}</text>'
        for x, anchor, value in (
            (0, "start", bins[0].low),
            (_WIDTH / 2, "middle", middle),
            (_WIDTH, "end", bins[-1].high),
        )
    )
    svg = (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title}"><g class="{colour}">{shapes}</g>'
        f'<line x1="0" y1="{_BASE}" x2="{_WIDTH}" y2="{_BASE}"/>{labels}'
        f'<text x="0" y="12">{top:,}</text></svg>'
    )
    return _figure(title, svg, note)


def grid(step: int, counts: Sequence[Sequence[int]]) -> str:
    """Draw how many questions have which numbers of correct CoT (n1, to the right) and PoT thoughts (n2, upwards)."""
    side, top = len(counts), max(map(max, counts))
    if not top:
        return ""
    size = 300 / side
    cells = "".join(
        f'<rect x="{40 + x * size:.2f}" y="{300 - (y + 1) * size:.2f}" width="{size:.2f}" height="{size:.2f}" '
        f'opacity="{0.12 + 0.88 * (count / top) ** 0.5:.3f}"><title>n1 = {_range(x, step)}, n2 = {_range(y, step)}: '
        f"{count:,}</title></rect>"
        for x, column in enumerate(counts)
        for y, count in enumerate(column)
        if count
    )
    last = _range(side - 1, step)
    svg = (
        '<svg viewBox="0 0 460 330" role="img" aria-label="n1 and n2"><rect class="mx-plane" x="40" y="0" width="300" '
        f'height="300"/><g class="mx-both">{cells}</g>'
        f'<text x="40" y="316">0</text><text x="340" y="316" text-anchor="end">{last}</text>'
        '<text x="190" y="316" text-anchor="middle">right CoT thoughts (n1)</text>'
        f'<text x="34" y="300" text-anchor="end">0</text><text x="34" y="12" text-anchor="end">{last}</text>'
        '<text x="18" y="150" text-anchor="middle" transform="rotate(-90 18 150)">right PoT thoughts (n2)</text>'
        f'<text x="352" y="12">darkest: {top:,}</text></svg>'
    )
    return _figure("Right thoughts of both paths", svg)


def _range(cell: int, step: int) -> str:
    return str(cell) if step == 1 else f"{cell * step}–{(cell + 1) * step - 1}"


def _figure(title: str, body: str, note: str = "") -> str:
    caption = f"<figcaption>{title}{f'<span class=mx-small> {note}</span>' if note else ''}</figcaption>"
    return f'<figure class="mx-figure">{caption}{body}</figure>'
