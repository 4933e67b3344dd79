"""Judging: what answer each thought reaches, and whether it is right (Sec. 3.1, quality control).

Teacher and student are judged alike, in two steps: [`read_answers`] needs no gold answer, [`mark`] compares with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from .answers import NO_ANSWER, answer_of_value, canonical, equal, extract
from .execution import Executor
from .records import PROGRAM_PATHS, Thought


def read_answers(
    thoughts: Iterable[Thought], executor: Executor, strict: bool = True, progress: bool = False
) -> list[Thought]:
    r"""
    Fill in the answer that each thought reaches.

    The answer of a PoT is the value its program computes, with or without a plan before it (`cot_pot`), that of a CoT
    the answer it states; a `label` thought is its own answer. A thought that was cut off, a program that does not run
    to an answer and a CoT that states none are unusable: their `answer` stays `None`.

    Args:
        thoughts (`Iterable[Thought]`):
            Thoughts as sampled.
        executor ([`~md_trl.execution.Executor`]):
            Runs the programs, each distinct one once.
        strict (`bool`, *optional*, defaults to `True`):
            Whether a CoT must state its answer. If `False`, its last number is accepted, see
            [`~md_trl.answers.extract`].
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar while programs run.

    Returns:
        `list[Thought]`: The same thoughts in the same order, with `answer` in canonical form.
    """
    thoughts = list(thoughts)
    programs = [t.text for t in thoughts if t.path in PROGRAM_PATHS and t.finish_reason == "stop"]
    results = iter(executor.run_many(programs, progress=progress))
    read_thoughts = []
    for thought in thoughts:
        answer = None
        if thought.finish_reason == "stop":
            if thought.path in PROGRAM_PATHS:
                result = next(results)
                answer = answer_of_value(result.value) if result.status == "ok" else None
            elif thought.path == "cot":
                answer = extract(thought.text, strict=strict) or thought.stated
            else:
                answer = thought.text
            answer = None if canonical(answer) in NO_ANSWER else canonical(answer)
        read_thoughts.append(replace(thought, answer=answer))
    return read_thoughts


def mark(thoughts: Iterable[Thought], gold: Mapping[str, str]) -> list[Thought]:
    r"""
    Mark each thought as correct or not.

    Args:
        thoughts (`Iterable[Thought]`):
            Thoughts whose answers were read by [`read_answers`].
        gold (`Mapping[str, str]`):
            Gold answer by question id.

    Returns:
        `list[Thought]`: The same thoughts in the same order, with `correct`. An unusable thought is not correct.

    Raises:
        `KeyError`: A thought belongs to a question without a gold answer.
    """
    return [
        replace(thought, correct=equal(thought.answer, gold[thought.question_id]) if thought.usable else False)
        for thought in thoughts
    ]
