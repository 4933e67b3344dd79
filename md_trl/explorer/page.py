"""The Gradio page: filters above, questions on the left, the open question on the right, distributions in a tab."""

from __future__ import annotations

import os


# Before Gradio is imported: it reads them once
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import json
from dataclasses import asdict
from typing import Any
from urllib.parse import quote

import gradio as gr

from ..mixing import SOLVED_BY
from ..records import QuestionType
from . import charts, markup, queries
from .catalog import Catalog
from .queries import Filters


EXPORT_ROUTE = "/export.jsonl"
"""Where the page links to for the rows that match its filters."""
AUTHORS_SHOWN = 6
"""Authors whose thoughts on one question are shown at a time."""

_SCRIPT = """
const act = (button) => {
  if (button.dataset.turn) { trigger('turn', {page: Number(button.dataset.turn)}); return; }
  document.querySelectorAll('.mx-row[aria-current]').forEach((row) => row.removeAttribute('aria-current'));
  document.querySelectorAll('.mx-row').forEach((row) => {
    if (row.dataset.open === button.dataset.open) row.setAttribute('aria-current', 'true');
  });
  const view = document.querySelector('#opened');
  if (view.getBoundingClientRect().top < 0) view.scrollIntoView();
  trigger('open', {n: Number(button.dataset.open), thoughts: Number(button.dataset.page || 0)});
};
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-open], button[data-turn]');
  if (button && !button.disabled) act(button);
});
element.addEventListener('keydown', (event) => {
  const row = event.target.closest('.mx-row');
  const next = row && {ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling}[event.key];
  if (next) { event.preventDefault(); next.focus(); act(next); }
});
"""

_INTRODUCTION = """<div class="mx-intro"><h1>Mixed thoughts</h1><p>A model answers each question several times along
two paths: in prose (<b>chain of thought, CoT</b>) and with programs (<b>program of thought, PoT</b>). The most
frequent answer of a path is its vote. A path whose vote is the gold answer <b>solves</b> the question; which paths do
is its <b>type</b>.</p></div>"""


def build(catalog: Catalog) -> gr.Blocks:
    r"""
    Build the page. Its first view is part of it, so that a browser shows it without another request.

    Args:
        catalog ([`~md_trl.explorer.catalog.Catalog`]):
            What to explore.

    Returns:
        [`gradio.Blocks`]: The page.
    """
    view = _View(catalog)
    first = view.show(view.first)
    with gr.Blocks(title="md-trl explore", analytics_enabled=False, fill_width=True) as page:
        shown = gr.State(view.first)
        gr.HTML(_introduction(catalog))
        inputs = _filter_inputs(view)
        with gr.Tabs(selected="questions"):
            with gr.Tab("Questions", id="questions"), gr.Row(equal_height=False):
                with gr.Column(scale=4, min_width=380, elem_classes="mx-side"):
                    listing = gr.HTML(first[0], js_on_load=_SCRIPT, elem_id="listing")
                with gr.Column(scale=7, min_width=480):
                    opened = gr.HTML(first[1], js_on_load=_SCRIPT, elem_id="opened")
            with gr.Tab("Distributions", id="distributions") as tab:
                figures = gr.HTML(elem_id="figures")

        def filtered(before: Filters, *values: Any) -> tuple[Any, ...]:
            filters = view.filters(*values)
            # Gradio reports an input once more when a menu loses the focus, which must not close the open question
            return (gr.skip(),) * 3 if filters == before else (filters, *view.show(filters))

        def turned(event: gr.EventData, *values: Any) -> tuple[str, str]:
            return view.show(view.filters(*values), int(event.page))

        def read(event: gr.EventData, *values: Any) -> str:
            return view.question(int(event.n), view.filters(*values).other, int(event.thoughts))

        def drawn(*values: Any) -> str:
            return view.figures(view.filters(*values))

        quiet = {"queue": False, "show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
        # Gradio would refuse the other model of an event that was on its way when the menu stopped to offer it
        quiet["preprocess"] = False
        # Pasting into a text box is a change, but no input
        changes = [i.change if isinstance(i, gr.Textbox | gr.Number) else i.input for i in inputs]
        gr.on(changes, filtered, [shown, *inputs], [shown, listing, opened], **quiet)
        gr.on(changes, drawn, inputs, figures, **quiet)
        tab.select(drawn, inputs, figures, **quiet)
        author, *_, other = inputs
        author.input(view.offer_others, [author, other], other, **quiet)
        listing.turn(turned, inputs, [listing, opened], **quiet)
        for panel in (listing, opened):
            panel.open(read, inputs, opened, **quiet)
    return page


def theme() -> gr.themes.Base:
    """Return the theme of the page. Its fonts are those of the machine, so that none is requested."""
    sans, mono = ("system-ui", "Segoe UI", "sans-serif"), ("ui-monospace", "DejaVu Sans Mono", "monospace")
    return gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=list(sans), font_mono=list(mono))


def _introduction(catalog: Catalog) -> str:
    questions, thoughts = queries.totals(catalog)
    types = "".join(f"<span>{markup.badge(t)} {markup.MEANINGS[t]}</span>" for t in QuestionType)
    size = f'<span class="mx-small">{questions:,} questions · {thoughts:,} thoughts</span>'
    notes = "".join(f'<div class="mx-note">{markup.escape(note)}</div>' for note in queries.notes(catalog))
    return f'{_INTRODUCTION}<div class="mx-legend">{types}{size}{notes}</div>'


def _filter_inputs(view: _View) -> list[gr.components.Component]:
    """The inputs in the order of [`_View.filters`]."""
    anything = ("any", "")
    names = [(name, author) for author, name in view.names.items()]
    tasks, splits = (queries.values_of(view.catalog, column) for column in ("task", "split"))

    def choose(label: str, known: dict[str, Any]) -> gr.Dropdown:
        choices = [anything, *((text if isinstance(text, str) else text[0], key) for key, text in known.items())]
        return gr.Dropdown(choices, value="", label=label, min_width=150)

    several = len(names) > 1
    with gr.Row(elem_classes="mx-filters"):
        author = gr.Dropdown(
            [*names, ("all", 0)], value=view.first.author, label="Model", min_width=200, visible=several
        )
        others = view.others(view.first.author)
        other = gr.Dropdown(others, value=0, label="Compare with", min_width=200, visible=several)
        choices = [(label, key) for key, (label, _) in queries.RELATIONS.items()]
        relation = gr.Dropdown(choices, value="any", label="and show where", min_width=190, visible=several)
        task = gr.Dropdown([anything, *tasks], value="", label="Task", min_width=110, visible=len(tasks) > 1)
        split = gr.Dropdown([anything, *splits], value="", label="Split", min_width=110, visible=len(splits) > 1)
        text = gr.Textbox(label="Search questions", placeholder="words or an id", min_width=190, max_lines=1)
        choices = [(label, key) for key, (label, _) in queries.SORTS.items()]
        sort = gr.Dropdown(choices, value="order", label="Sort", min_width=170)
    with gr.Row(elem_classes="mx-filters"):
        choices = [(f"{t:d} {SOLVED_BY[t]}", int(t)) for t in QuestionType]
        types = gr.CheckboxGroup(choices, label="Type: solved by", min_width=490)
        agreement = choose("Votes of the paths", queries.AGREEMENT)
        outcome = choose("Joint vote", queries.OUTCOMES)
        low = gr.Number(0, label="λ from (type 3)", minimum=0, maximum=1, step=0.1, min_width=110)
        high = gr.Number(1, label="λ up to", minimum=0, maximum=1, step=0.1, min_width=110)
    return [author, task, split, types, low, high, agreement, outcome, text, relation, sort, other]


class _View:
    """What the page shows for given filters."""

    def __init__(self, catalog: Catalog):
        self.catalog = catalog
        self.names = queries.authors(catalog)
        self.first = Filters(author=next(iter(self.names), None))

    def filters(
        self, author, task, split, types, low, high, agreement, outcome, text, relation, sort, other
    ) -> Filters:
        """The filters that the inputs of the page stand for."""
        return Filters(
            author=author or None,
            task=task or None,
            split=split or None,
            types=tuple(types),
            # An emptied field is `None`
            lambda_low=low or 0.0,
            lambda_high=1.0 if high is None else high,
            agreement=agreement or None,
            outcome=outcome or None,
            text=text or "",
            other=other if other in self.names and other != author else None,
            relation=relation,
            sort=sort,
        )

    def others(self, author: int | None) -> list[tuple[str, int]]:
        """The choices of whom to compare an author with."""
        return [("nobody", 0), *((name, number) for number, name in self.names.items() if number != author)]

    def offer_others(self, author: int, other: int) -> gr.Dropdown:
        """The menu of whom to compare with, once another author is chosen."""
        return gr.Dropdown(self.others(author), value=0 if other == author else other)

    def show(self, filters: Filters, number: int = 1) -> tuple[str, str]:
        """The list of questions on one page, and the first question of it."""
        found = queries.count(self.catalog, filters)
        pages = max(-(-found // queries.PAGE_SIZE), 1)
        number = min(max(number, 1), pages)
        rows = queries.page(self.catalog, filters, number)
        opened = rows[0]["n"] if rows else None
        other = None if filters.other is None else self.names[filters.other]
        question = "" if opened is None else self.question(opened, filters.other)
        listing = markup.listing(rows, opened, other) if rows else markup.empty(self._why_nothing(filters))
        return self._head(filters, found, number, pages) + listing, question

    def _why_nothing(self, filters: Filters) -> str:
        """Why no question is listed."""
        author, other = filters.author, filters.other
        if other is None or queries.have_common_questions(self.catalog, author, other):
            return "No question matches these filters."
        places = {number: ", ".join(queries.places_of(self.catalog, number)) for number in (author, other) if number}
        if author is None:
            return f"No other model answered a question of {self.names[other]} ({places[other]})."
        reason = (
            f"These two answered no question in common: {self.names[author]} answered {places[author]}, and "
            f"{self.names[other]} {places[other]}."
        )
        if sum("train" in of_author for of_author in places.values()) == 1:
            reason += (
                " To compare a student with its teacher, let it answer training questions: md-trl eval --split train"
            )
        return reason

    def _head(self, filters: Filters, found: int, number: int, pages: int) -> str:
        turns = "".join(
            f'<button type="button" class="mx-more" data-turn="{to}" aria-label="{label}"'
            f"{'' if 1 <= to <= pages else ' disabled'}>{arrow}</button>"
            for label, arrow, to in (("previous page", "←", number - 1), ("next page", "→", number + 1))
        )
        link = f"{EXPORT_ROUTE}?filters={quote(json.dumps(asdict(filters)))}"
        return (
            f'<div class="mx-found"><b>{found:,} {"question" if found == 1 else "questions"}</b>'
            f'<a href="{markup.escape(link)}" download>Export as JSONL</a>'
            f'<span class="mx-turns"><span class="mx-small">page {number:,} of {pages:,}</span>{turns}</span></div>'
        )

    def question(self, n: int, other: int | None = None, thoughts_page: int = 0) -> str:
        """One question with the thoughts of its author, of the one to compare with, and of all others."""
        opened = queries.row(self.catalog, n)
        if opened is None:
            return ""
        rows = queries.answered_by(self.catalog, opened["id"])
        rows.sort(key=lambda row: (row["n"] != n, row["author"] != other))
        rows = rows[:AUTHORS_SHOWN]
        thoughts = [self.catalog.read_thoughts(row["n"]) for row in rows]
        return markup.question_view(rows, thoughts, self.names, thoughts_page)

    def figures(self, filters: Filters) -> str:
        """The distributions of the rows that match."""
        parts = [charts.type_bars(queries.count_types(self.catalog, filters))]
        bins = queries.lambda_bins(self.catalog, filters)
        note = "share of PoT among right thoughts, where both paths solve the question"
        parts.append(charts.bars("λ of type 3", bins, "mx-both", digits=1, note=note))
        parts.append(charts.grid(*queries.correct_grid(self.catalog, filters)))
        per_question = {
            "cot_chars": ("Length of CoT thoughts", "mx-cot", 0, "mean characters per thought of a question"),
            "pot_chars": ("Length of PoT thoughts", "mx-pot", 0, "mean characters per thought of a question"),
            "tokens": ("Completion tokens per question", "mx-neither", 0, "all thoughts of both paths"),
            "cost": ("Cost per question", "mx-neither", 6, "at list prices"),
        }
        for column, (title, colour, digits, note) in per_question.items():
            bins = queries.histogram(self.catalog, filters, column)
            parts.append(charts.bars(title, bins, colour, digits, note))
        return f'<div class="mx-figures">{"".join(parts)}</div>'
