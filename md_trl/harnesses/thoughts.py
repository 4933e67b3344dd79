"""From the texts that a harness sampled to the figures of `md-trl eval`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..execution import Executor
from ..judging import read_answers
from ..records import PATHS, Choice, Thought
from ..voting import score


Answers = dict[str, list[str | None]]
"""Answers of one question by path, in sample order; `None` for an unusable thought."""


def read_texts(questions: Iterable[Mapping[str, Sequence[Choice]]], strict: bool = True) -> list[Answers]:
    r"""
    Read the answers of sampled texts. Programs run in the sandbox of [`~md_trl.execution.Executor`].

    Args:
        questions (`Iterable[Mapping[str, Sequence[Choice]]]`):
            For each question, the texts by path, in sample order.
        strict (`bool`, *optional*, defaults to `True`):
            Whether a CoT must state its answer, see [`~md_trl.answers.extract`].

    Returns:
        `list[dict[str, list[str | None]]]`: For each question, the answers of `cot` and `pot` in canonical form,
        `None` for an unusable thought.
    """
    questions = list(questions)
    thoughts = [
        Thought(str(number), path, index, choice.text.strip(), finish_reason=choice.finish_reason)
        for number, question in enumerate(questions)
        for path in PATHS
        for index, choice in enumerate(question.get(path, ()))
    ]
    answers: list[Answers] = [{path: [] for path in PATHS} for _ in questions]
    with Executor() as executor:
        for thought in read_answers(thoughts, executor, strict=strict):
            answers[int(thought.question_id)][thought.path].append(thought.answer)
    return answers


def figures(answers: Sequence[Answers], references: Sequence[str]) -> dict[str, float]:
    r"""
    Score the votes of questions.

    Args:
        answers (`Sequence[dict[str, list[str | None]]]`):
            Answers of each question by path.
        references (`Sequence[str]`):
            Gold answer of each question.

    Returns:
        `dict[str, float]`: Shares of the questions that are solved by the `joint` vote over all thoughts (Eq. 5), by
        the vote of the `cot` path and by that of the `pot` path.
    """
    scores = score([by_path["cot"] for by_path in answers], [by_path["pot"] for by_path in answers], references)
    return {"joint": scores["accuracy"]} | {path: scores[f"{path}_accuracy"] for path in PATHS}
