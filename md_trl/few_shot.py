"""Few-shot examples from a file of the user's: read, and judged as thoughts are before a teacher learns from them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from .answers import equal
from .errors import InputError
from .execution import Executor
from .judging import read_answers
from .prompts import planned_program
from .records import COT_POT, PATHS, Question, Thought
from .tasks.loading import Row, table_rows


logger = logging.getLogger(__name__)

HINT = "A file of few-shot examples has the columns 'question', 'cot' and 'pot' (docs/own_task.md)."
_ENDS = {
    "cot": "End it with a sentence such as 'The answer is 5.'",
    "pot": "Assign the answer to the variable `answer`.",
}


def load_few_shot(file: str | Path, executor: Executor, questions: Iterable[Question] = ()) -> list[dict[str, str]]:
    r"""
    Load worked examples, and check that both thoughts of each reach the same answer.

    Args:
        file (`str` or `Path`):
            A `.jsonl`, `.json`, `.csv` or `.parquet` file with these columns; others are ignored:

            - `question`: a text, which no other row may have.
            - `cot`: a chain of thought that states its answer.
            - `pot`: a program, as a text or as a list of lines.
            - `plan` (*optional*): what the program does, in prose without its result, for the path `cot_pot`.
            - `answer` (*optional*): the answer that both should reach.
        executor ([`~md_trl.execution.Executor`]):
            Runs the programs in the sandbox.
        questions (`Iterable[Question]`, *optional*, defaults to `()`):
            Questions that will be asked. There is a warning if examples are among them.

    Returns:
        `list[dict[str, str]]`: `question`, `cot`, `pot` and, if there is a plan, `cot_pot` of each example, in the
        order of the file.

    Raises:
        [`~md_trl.errors.InputError`]: The file or a row cannot be used.
        `FileNotFoundError`: The file does not exist.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"There is no file of few-shot examples {file}. {HINT}")
    rows = table_rows(Path(file), HINT)
    if not rows:
        raise InputError(f"{file} holds no examples. {HINT}")
    examples = [_example(row) for row in rows]
    first_of_text: dict[str, Row] = {}
    for row, example in zip(rows, examples, strict=True):
        other = first_of_text.setdefault(example["question"], row)
        if other is not row:
            raise InputError(
                f"{row.where}: the question {example['question']!r:.200} is also in {other.where}. Remove one of them."
            )
    answers = [_answers(rows, [example[path] for example in examples], path, executor) for path in PATHS]
    for row, *reached in zip(rows, *answers, strict=True):
        _check_same(row, dict(zip(PATHS, reached, strict=True)))
    asked = {question.question: question.id for question in questions}
    if known := [row for row, example in zip(rows, examples, strict=True) if example["question"] in asked]:
        logger.warning(
            f"{known[0].where}: this example is the question {asked[known[0].text('question')]!r}"
            f"{f', and {len(known) - 1:,} more are among the questions' if known[1:] else ''}. A model copies the "
            "answer of an example: use others, or remove these questions."
        )
    return examples


def _example(row: Row) -> dict[str, str]:
    example = {"question": row.text("question"), "cot": row.text("cot"), "pot": _program(row)}
    if row.values.get("plan") not in (None, ""):
        example[COT_POT] = planned_program(row.text("plan"), example["pot"])
    return example


def _program(row: Row) -> str:
    lines = row["pot"]
    if isinstance(lines, list) and lines and all(isinstance(line, str) for line in lines):
        return "\n".join(lines)
    return row.text("pot")


def _answers(rows: list[Row], texts: list[str], path: str, executor: Executor) -> list[str]:
    """Read the answers that the thoughts of a path reach. All must reach one."""
    thoughts = read_answers([Thought("", path, 0, text) for text in texts], executor)
    for row, thought in zip(rows, thoughts, strict=True):
        if not thought.usable:
            why = repr(thought.text[-200:]) if path == "cot" else executor.run_many([thought.text])[0].error
            raise InputError(f"{row.where}: {path!r} reaches no answer ({why}). {_ENDS[path]}")
    return [thought.answer for thought in thoughts]


def _check_same(row: Row, answers: dict[str, str]) -> None:
    """Raise an error if the thoughts of a row reach different answers, or another than the row gives."""
    given = row.values.get("answer")
    for path, answer in answers.items():
        if given not in (None, "") and not equal(given, answer):
            raise InputError(
                f"{row.where}: {path!r} reaches the answer {answer!r}, but 'answer' is {given!r}. Correct one of them."
            )
    if not equal(answers["cot"], answers["pot"]):
        raise InputError(
            f"{row.where}: 'cot' reaches the answer {answers['cot']!r}, but 'pot' reaches {answers['pot']!r}. Correct "
            "one of them."
        )
