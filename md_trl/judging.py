"""Judging: thoughts come in, the answers they reach and whether those are right go out (Sec. 3.1, quality control).

Teacher and student are judged alike. Programs run in an [`~md_trl.execution.Executor`], never here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from .answers import NO_ANSWER, canonical, equal, extract, read
from .execution import Executor
from .records import Thought


def judge(
    thoughts: Iterable[Thought],
    gold: Mapping[str, str],
    executor: Executor,
    strict: bool = True,
    progress: bool = False,
) -> list[Thought]:
    r"""
    Find the answer of each thought and compare it with the gold answer.

    A PoT reaches the value its program computes, a CoT the answer it states, a `label` thought is its own answer. A
    thought that was cut off, a program that does not run to an answer and a CoT that states none stay without an
    answer: they are unusable.

    Args:
        thoughts (`Iterable[Thought]`):
            Thoughts as sampled.
        gold (`Mapping[str, str]`):
            Gold answer by question id.
        executor ([`~md_trl.execution.Executor`]):
            Runs the programs; each distinct one once.
        strict (`bool`, *optional*, defaults to `True`):
            Whether a CoT must state its answer. Otherwise its last number will do, see [`~md_trl.answers.extract`].
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar for the programs.

    Returns:
        `list[Thought]`: the same thoughts in the same order, with `answer` and `correct`.

    Raises:
        `KeyError`: a thought of a question without a gold answer.
    """
    thoughts = list(thoughts)
    programs = [thought.text for thought in thoughts if thought.path == "pot" and thought.finish_reason == "stop"]
    results = iter(executor.run_many(programs, progress=progress))
    judged = []
    for thought in thoughts:
        answer = None
        if thought.finish_reason == "stop":
            if thought.path == "pot":
                result = next(results)
                answer = read(result.value) if result.status == "ok" else None
            elif thought.path == "cot":
                answer = extract(thought.text, strict=strict) or thought.stated
            else:
                answer = thought.text
            answer = None if canonical(answer) in NO_ANSWER else canonical(answer)
        correct = answer is not None and equal(answer, gold[thought.id])
        judged.append(replace(thought, answer=answer, correct=correct))
    return judged
