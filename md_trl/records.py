"""The nouns that every room shares: [`Question`], [`Thought`], [`MixedRow`]. No logic lives here.

The words are those of *Mixed Distillation* (https://huggingface.co/papers/2312.10730), Sec. 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from datasets import Features

PATHS = ("cot", "pot")
"""The two ways to reason: `cot` in prose, `pot` in a Python program."""


@dataclass(frozen=True)
class Question:
    r"""
    One row of a task.

    Args:
        id (`str`):
            `{task}/{split}/{name in the original file}`, for example `svamp/train/chal-12`.
        task (`str`):
            Name of the task, for example `svamp`.
        split (`str`):
            Split the question belongs to, for example `train`.
        question (`str`):
            Text of the question, without a trigger.
        answer (`str`):
            Gold answer in its plain form: no units, currency or thousands separators.
    """

    id: str
    task: str
    split: str
    question: str
    answer: str


@dataclass(frozen=True)
class Thought:
    r"""
    One sampled text of one path for one question.

    A sampler fills the first group; [`~md_trl.judging.judge`] fills `answer` and `correct`.

    Args:
        id (`str`):
            Id of the [`Question`].
        path (`str`):
            `cot`, `pot`, or `label` for the bare answer.
        index (`int`):
            Sample index from 0: request order, then choice index, never the order of arrival. It breaks ties in votes.
        text (`str`):
            The text as sampled, outer white space stripped.
        model (`str`, *optional*, defaults to `""`):
            Name of the model that wrote it.
        finish_reason (`str`, *optional*, defaults to `"stop"`):
            As the server reported it. Anything but `stop` makes the thought unusable.
        stated (`str`, *optional*):
            Answer that came with an imported thought; used only for a CoT whose text states none.
        answer (`str`, *optional*):
            Answer that the thought reaches, `None` while unjudged or if unusable.
        correct (`bool`, *optional*):
            Whether `answer` equals the gold answer, `None` while unjudged.
    """

    id: str
    path: str
    index: int
    text: str
    model: str = ""
    finish_reason: str = "stop"
    stated: str | None = None
    answer: str | None = None
    correct: bool | None = None

    @property
    def usable(self) -> bool:
        """Whether the thought, once judged, reached an answer and so may vote."""
        return self.answer is not None


@dataclass
class MixedRow:
    r"""
    One question with the distinct usable thoughts of both paths: a row of the mixed-thought dataset (Sec. 3.1).

    Args:
        id (`str`), task (`str`), question (`str`), answer (`str`):
            As in [`Question`]; `answer` is the gold answer.
        type (`int`):
            1: solved by PoT only, 2: by CoT only, 3: by both, 4: by neither.
        lambda_ (`float`, *optional*):
            `n2 / (n1 + n2)`, the weight of the PoT path in type 3 (Eq. 4); `None` when `n1 + n2 = 0`. The column is
            named `lambda`.
        repeat (`int`):
            How often the question counts in an epoch (types 1 and 2 are upsampled).
        n_cot (`int`), n_pot (`int`):
            Thoughts sampled.
        n_cot_correct (`int`), n_pot_correct (`int`):
            Correct thoughts: `n1` and `n2` of the paper.
        cot_vote (`str`, *optional*), pot_vote (`str`, *optional*):
            Most frequent answer among the usable thoughts of the path.
        cot (`list[dict]`), pot (`list[dict]`):
            The distinct usable thoughts in the order first seen, each `{"text", "answer", "correct", "count"}`.
    """

    id: str
    task: str
    question: str
    answer: str
    type: int
    lambda_: float | None
    repeat: int
    n_cot: int
    n_pot: int
    n_cot_correct: int
    n_pot_correct: int
    cot_vote: str | None
    pot_vote: str | None
    cot: list[dict[str, Any]] = field(default_factory=list)
    pot: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The row under its column names, in column order."""
        return {("lambda" if name == "lambda_" else name): value for name, value in self.__dict__.items()}

    @staticmethod
    def features() -> Features:
        """Schema of the dataset's columns, in order."""
        from datasets import Features, List, Value

        string, count = Value("string"), Value("int32")
        thoughts = List({"text": string, "answer": string, "correct": Value("bool"), "count": count})
        return Features(
            {
                "id": string,
                "task": string,
                "question": string,
                "answer": string,
                "type": count,
                "lambda": Value("float64"),
                "repeat": count,
                "n_cot": count,
                "n_pot": count,
                "n_cot_correct": count,
                "n_pot_correct": count,
                "cot_vote": string,
                "pot_vote": string,
                "cot": thoughts,
                "pot": thoughts,
            }
        )
