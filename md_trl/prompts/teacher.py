"""How a teacher is asked: worked examples of the task, then the question and the trigger (Sec. 3.1, Appendix B).

The examples were written for this project: `examples/{task}.json` holds questions that appear in no dataset, each with
its answer and one thought per path. Tasks of one's own are asked with some examples of three of them, unless the user
gives others. A chain of thought ends with `The answer is X.`; a program, stored as a list of
lines, assigns its result to the variable `answer`. The programs of StrategyQA carry the chain of thought as comments,
following Chain of Code (https://huggingface.co/papers/2312.04474). For the path `cot_pot`, `plan` says in prose what
the program does, without its result (https://huggingface.co/papers/2402.15729).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files

from ..errors import InputError
from ..records import ALL_PATHS, COT_POT, Question
from ..tasks import TASKS
from .triggers import TRIGGERS


OWN_TASK_EXAMPLES = {"gsm8k": (0, 1, 2), "asdiv": (3,), "strategyqa": (0, 1)}
"""Worked examples that tasks of one's own are asked with by default, by the task whose examples they are: questions
with a number, with a name, and with yes or no as their answer."""
STOP = ("\nQuestion:",)
"""Stop strings for [`teacher_prompt`]. Without them a completion model goes on to invent the next question."""


def teacher_messages(
    question: Question, path: str, examples: Iterable[Mapping[str, str]] | None = None
) -> list[dict[str, str]]:
    r"""
    Build a few-shot chat: worked examples, then the question.

    Args:
        question ([`~md_trl.records.Question`]):
            Question to ask.
        path (`str`):
            `cot`, `pot` or `cot_pot`.
        examples (`Iterable[Mapping[str, str]]`, *optional*):
            Worked examples with `question`, `cot` and `pot`, as [`~md_trl.few_shot.load_few_shot`] reads them.
            Defaults to those of the task, and to [`OWN_TASK_EXAMPLES`] for a task of one's own.

    Returns:
        `list[dict[str, str]]`: User turns `{question}\n{trigger}` and assistant turns with a thought; the last turn is
        the user's. There is no system turn, because some chat templates reject one.

    Raises:
        `ValueError`: Unknown path.

    Examples:

    ```python
    >>> from md_trl.prompts import teacher_messages
    >>> from md_trl.records import Question

    >>> question = Question("svamp/test/chal-0", "svamp", "test", "What is 2 plus 3?", "5")
    >>> teacher_messages(question, "cot")[-1]
    {'role': 'user', 'content': "What is 2 plus 3?\nLet's think step by step."}
    ```
    """
    if path not in ALL_PATHS:
        raise InputError(f"Unknown path {path!r}. A teacher is asked for one of {', '.join(ALL_PATHS)}.")
    messages = []
    for example in _examples(question.task) if examples is None else examples:
        if path not in example:
            raise InputError(f"The few-shot example {example['question']!r:.200} has no {path!r}. Add a `plan` to it.")
        messages.append({"role": "user", "content": f"{example['question']}\n{TRIGGERS[path]}"})
        messages.append({"role": "assistant", "content": example[path]})
    messages.append({"role": "user", "content": f"{question.question}\n{TRIGGERS[path]}"})
    return messages


def teacher_prompt(question: Question, path: str, examples: Iterable[Mapping[str, str]] | None = None) -> str:
    r"""
    Build the few-shot prompt of [`teacher_messages`] as plain text, for completion servers and base models.

    Args:
        question ([`~md_trl.records.Question`]):
            Question to ask.
        path (`str`):
            `cot`, `pot` or `cot_pot`.
        examples (`Iterable[Mapping[str, str]]`, *optional*):
            As in [`teacher_messages`].

    Returns:
        `str`: Blocks of the form `Question:\n{question}\n{trigger}\n{thought}`, separated by blank lines. The teacher
        writes the thought of the last block, up to [`STOP`].

    Raises:
        `ValueError`: Unknown path.
    """
    turns = [message["content"] for message in teacher_messages(question, path, examples)]
    thoughts = [f"{thought}\n\n" for thought in turns[1::2]]
    return "".join(
        f"Question:\n{asked}\n{thought}" for asked, thought in zip(turns[::2], [*thoughts, ""], strict=True)
    )


def planned_program(plan: str, program: str) -> str:
    """Write a thought of the path `cot_pot`: the plan in prose, then the program between fences."""
    return f"{plan}\n```python\n{program}\n```"


FEW_SHOT_PROMPTS = {"few_shot": teacher_messages, "few_shot_text": teacher_prompt}
"""What builds a prompt with worked examples, by its name on the command line: as a chat, or as text."""


@cache
def _examples(task: str) -> tuple[dict[str, str], ...]:
    if task not in TASKS:
        return tuple(_examples(source)[n] for source, chosen in OWN_TASK_EXAMPLES.items() for n in chosen)
    text = (files(__package__) / "examples" / f"{task}.json").read_text(encoding="utf-8")
    examples = [example | {"pot": "\n".join(example["pot"])} for example in json.loads(text)]
    return tuple(example | {COT_POT: planned_program(example["plan"], example["pot"])} for example in examples)
