"""The Space of the metric: answers are pasted or uploaded, votes and accuracies are shown.

Answers are shown in text boxes and in cells of the type `str` only, which display a text as it is. Nothing that a user
or a model wrote is rendered as Markdown or HTML.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import gradio as gr

from md_trl.answers import canonical
from md_trl.errors import InputError
from md_trl.metric import texts_of_question
from md_trl.voting import majority, score, usable, vote


INTRODUCTION = """# md_vote: one vote over two reasoning paths

A model answers each question several times, in prose (chain of thought, CoT) and by writing a program (program of
thought, PoT). The most frequent of all its answers is the **joint vote**, as in
[Mixed Distillation](https://huggingface.co/papers/2312.10730). Ties go to the answer seen first, CoT before PoT.
Spellings of one answer count as the same: `$1,080`, `1080.0` and `1080 dollars`.
"""
PASTE_HELP = """One question per line. Separate the answers of a path with `|`. An unusable answer is empty, and so is
the line of a path without answers."""
UPLOAD_HELP = """- **JSONL**: one question per line, `{"cot": ["5", "6"], "pot": ["5"], "references": "5"}`
- **CSV** with the columns `cot`, `pot` and `references`; answers in one cell as `5 | 6` or `["5", "6"]`
- **JSON**: a result of `md-trl eval`"""
USE = """From Python: `evaluate.load("md/md_vote").compute(cot=..., pot=..., references=...)`. The files of this Space
document all inputs and outputs."""

EXAMPLE = {
    "cot": "5 | 6 | 5\n$1,080 | 1080\nyes | no | yes\n3/4 | 0.5\n\n7 | 8",
    "pot": "5.0\n108 | 1080\n\n0.75 | \n12 | 12\n8 | 9",
    "references": "5\n1080\nyes\n0.75\n12\n9",
}
RESAMPLES = 10_000
SHOWN = 1_000
FIGURES = {"accuracy": "Joint vote", "cot_accuracy": "CoT vote", "pot_accuracy": "PoT vote"}
SHARES = {
    "both": "Solved by both paths",
    "cot_only": "Solved by CoT only",
    "pot_only": "Solved by PoT only",
    "neither": "Solved by neither path",
    "abstained": "Without a usable answer",
}
HEADERS = {
    "figures": ["Figure", "Accuracy", "95% interval"],
    "shares": ["Questions", "Value"],
    "questions": ["No.", "CoT vote", "PoT vote", "Joint vote", "Gold answer", "Result", "Usable answers"],
}


def read_file(file: Path) -> Iterator[tuple[str, dict]]:
    """Yield each question of a file with its place in the file."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file.name} is not a text in UTF-8 ({error.reason} at byte {error.start}).") from None
    if file.suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield f"Line {number}", parse(line, f"Line {number}")
    elif file.suffix == ".csv":
        yield from read_csv(text)
    elif file.suffix == ".json":
        result = parse(text, file.name)
        if not isinstance(result, dict) or not isinstance(result.get("questions"), list):
            raise InputError(f"{file.name} is no result of `md-trl eval`: it has no list `questions`.")
        for number, question in enumerate(result["questions"]):
            place = f"questions[{number}]"
            yield place, {name: pick(question, key, place) for name, key in RESULT_KEYS.items()}
    else:
        raise InputError(f"{file.name} has the ending {file.suffix!r}. Upload a .jsonl, .csv or .json file.")


RESULT_KEYS = {"cot": "cot", "pot": "pot", "references": "answer"}


def read_csv(text: str) -> Iterator[tuple[str, dict]]:
    rows = csv.DictReader(text.splitlines(keepends=True), strict=True)
    try:
        for row in rows:
            place = f"Line {rows.line_num}"
            if None in row or None in row.values():
                raise InputError(f"{place} does not have the {len(rows.fieldnames)} cells that the header names.")
            yield place, row | {path: split(pick(row, path, place), place) for path in ("cot", "pot")}
    except csv.Error as error:
        raise InputError(f"Line {rows.reader.line_num} is not valid CSV: {error}.") from None


def split(cell: str, place: str) -> list:
    """Split the answers in one cell or line."""
    if cell.strip().startswith("["):
        return parse(cell, place)
    return [answer.strip() for answer in cell.split("|")] if cell.strip() else []


def parse(text: str, place: str):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        raise InputError(f"{place} is not valid JSON: {error.msg} ({line}column {error.colno}).") from None
    except ValueError as error:  # A number of thousands of digits
        raise InputError(f"{place} cannot be read: {error}.") from None


def pick(question: dict, key: str, place: str):
    if not isinstance(question, dict):
        raise InputError(f"{place} is not an object with cot, pot and references.")
    if key not in question:
        raise InputError(f"{place} has no {key!r}. It has {', '.join(map(repr, question)) or 'nothing'}.")
    return question[key]


def read_lines(cot: str, pot: str, references: str) -> Iterator[tuple[str, dict]]:
    """Yield each question of the text boxes with its line."""
    columns = {
        name: text.rstrip().split("\n") if text.strip() else []
        for name, text in (("cot", cot), ("pot", pot), ("references", references))
    }
    for number in range(max(map(len, columns.values()))):
        place = f"Line {number + 1}"
        lines = {name: lines[number] if number < len(lines) else "" for name, lines in columns.items()}
        if not lines["references"].strip():
            raise InputError(f"{place} has no gold answer. Each question needs one.")
        yield place, lines | {path: split(lines[path], place) for path in ("cot", "pot")}


def evaluate_questions(questions: Iterator[tuple[str, dict]]) -> tuple[list, list, list]:
    """Return the rows of the three tables."""
    columns = {"cot": [], "pot": [], "references": []}
    for place, question in questions:
        try:
            texts = texts_of_question({name: pick(question, name, place) for name in columns})
        except InputError as error:
            raise InputError(str(error) if str(error).startswith(place) else f"{place}: {error}") from None
        for name, values in columns.items():
            values.append(texts[name])
    scores = score(**columns, bootstrap=RESAMPLES)
    figures = [
        [label, f"{scores[name]:.1%}", f"{scores[f'{name}_low']:.1%} to {scores[f'{name}_high']:.1%}"]
        for name, label in FIGURES.items()
    ]
    shares = [[label, f"{scores[name]:.1%}"] for name, label in SHARES.items()]
    shares += [
        ["Number of questions", f"{scores['n_questions']:,}"],
        ["Mean votes per question", f"{scores['mean_votes']:.1f}"],
    ]
    rows = list(zip(*columns.values(), strict=True))[: SHOWN + 1]
    return figures, shares, [row_of(number, *row) for number, row in enumerate(rows, start=1)]


def row_of(number: int, cot: list[str], pot: list[str], reference: str) -> list[str]:
    votes = majority(cot), majority(pot), vote(cot, pot)
    right = votes[-1] is not None and votes[-1] == canonical(reference)
    shown = ["–" if answer is None else answer for answer in votes]
    counts = f"{len(usable(cot))} CoT, {len(usable(pot))} PoT"
    return [str(number), *shown, reference, "right" if right else "wrong", counts]


def show(questions: Iterator[tuple[str, dict]]) -> list:
    """Return the message and the tables, or the error and empty tables."""
    try:
        figures, shares, rows = evaluate_questions(questions)
    except (InputError, RecursionError) as error:  # Lists within lists within lists are the latter
        return [gr.update(value=str(error), label="This input cannot be scored", visible=True), [], [], []]
    note = f"The table shows the first {SHOWN:,} questions. The figures count all of them."
    return [gr.update(value=note, label="Note", visible=len(rows) > SHOWN), figures, shares, rows[:SHOWN]]


def show_file(file: str | None) -> list:
    return [gr.update(visible=False), [], [], []] if file is None else show(read_file(Path(file)))


def show_lines(cot: str, pot: str, references: str) -> list:
    return show(read_lines(cot, pot, references))


def table(name: str, value: list, label: str, **options) -> gr.Dataframe:
    return gr.Dataframe(
        value,
        headers=HEADERS[name],
        datatype="str",
        type="array",
        interactive=False,
        label=label,
        elem_id=name,
        **options,
    )


with gr.Blocks(title="md_vote") as demo:
    gr.Markdown(INTRODUCTION)
    with gr.Tab("Paste answers"):
        gr.Markdown(PASTE_HELP)
        with gr.Row():
            cot = gr.Textbox(EXAMPLE["cot"], lines=6, max_lines=20, label="Chain of thought", elem_id="cot")
            pot = gr.Textbox(EXAMPLE["pot"], lines=6, max_lines=20, label="Program of thought", elem_id="pot")
            gold = gr.Textbox(EXAMPLE["references"], lines=6, max_lines=20, label="Gold answers", elem_id="references")
        button = gr.Button("Score", variant="primary", elem_id="score")
    with gr.Tab("Upload a file"):
        gr.Markdown(UPLOAD_HELP)
        upload = gr.File(file_types=[".jsonl", ".csv", ".json"], label="Answers", elem_id="upload")
    message = gr.Textbox(visible=False, interactive=False, lines=2, elem_id="message")
    example_figures, example_shares, example_rows = evaluate_questions(read_lines(**EXAMPLE))
    with gr.Row():
        figures = table("figures", example_figures, "Accuracy")
        shares = table("shares", example_shares, "Which path solves which questions")
    questions = table("questions", example_rows, "Votes per question", wrap=True, max_height=600)
    gr.Markdown(USE)
    outputs = [message, figures, shares, questions]
    button.click(show_lines, inputs=[cot, pot, gold], outputs=outputs)
    upload.change(show_file, inputs=upload, outputs=outputs)

if __name__ == "__main__":
    # Fonts of the reader's system, so that the page loads nothing from other servers
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    demo.launch(theme=theme, max_file_size="50mb")
