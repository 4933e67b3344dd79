"""The data types that every module shares. They hold no logic.

The terms are those of *Mixed Distillation* (https://huggingface.co/papers/2312.10730), Sec. 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple


if TYPE_CHECKING:
    from datasets import Features

PATHS = ("cot", "pot")
"""The two ways to reason of the method: `cot` in prose, `pot` in a Python program. Everything uses both by default."""
COT_POT = "cot_pot"
"""A third way, only where it is asked for: a short plan in prose, then a program (https://hf.co/papers/2402.15729)."""
ALL_PATHS = (*PATHS, COT_POT)
"""Every way to reason. A list of all answers to a question has this order, which decides ties."""
PROGRAM_PATHS = ("pot", COT_POT)
"""Paths whose answer is what a program computes."""
LABEL = "label"
"""The bare answer without any reasoning: a baseline that is sampled and stored like a path, but never votes."""
PATHS_AND_LABEL = (*PATHS, LABEL, COT_POT)
"""Everything a model can be asked to write."""

TEACHER_THOUGHTS = 20
"""Thoughts per path sampled from a teacher by default (Sec. 3.1)."""
STUDENT_THOUGHTS = 10
"""Thoughts per path sampled from a student by default (Sec. 4.4.2: 10 + 10 for the joint vote)."""
STUDENT_MAX_TOKENS = 256
"""Maximum length in tokens of a student's thought by default."""
VALIDATION_QUESTIONS = 100
"""Questions that a student answers in each evaluation during training, at most, by default."""


class QuestionType(IntEnum):
    """Which paths solve a question (Sec. 3.1): a path solves it if its majority vote equals the gold answer."""

    POT_ONLY = 1
    COT_ONLY = 2
    BOTH = 3
    NEITHER = 4


@dataclass(frozen=True)
class SamplingParams:
    r"""
    How a model is sampled. Thoughts sampled with different parameters are kept apart in a store.

    Args:
        temperature (`float`, *optional*, defaults to `0.7`):
            Sampling temperature; `0` is greedy decoding and allows one sample per question and path (Sec. 3.1).
        top_p (`float`, *optional*, defaults to `1.0`):
            Cumulative probability of the tokens to sample from.
        max_tokens (`int`, *optional*, defaults to `512`):
            Maximum number of tokens per sample.
        stop (`tuple[str, ...]`, *optional*, defaults to `()`):
            Strings that end a sample. They are not part of its text.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the run. Each sample derives its own from it, see [`~md_trl.sampling.engines.derive_seed`].
    """

    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    seed: int = 42

    def greedy(self) -> SamplingParams:
        """The same parameters without any randomness."""
        return replace(self, temperature=0.0)


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
        group (`str`, *optional*):
            Kind of the question according to its source, for example `grade 3`. Results are reported by group. It is
            not part of what makes two questions the same, and a store does not keep it.
    """

    id: str
    task: str
    split: str
    question: str
    answer: str
    group: str | None = field(default=None, compare=False)


class Choice(NamedTuple):
    r"""
    One text that a model sampled.

    Args:
        text (`str`):
            The text, cut before the first stop string.
        finish_reason (`str`):
            `stop` if the model ended the text or reached a stop string, else the engine's reason: `length`,
            `content_filter`, ...
        logprob (`float`, *optional*):
            Mean natural log-probability per token under the model that wrote it, EOS included, at temperature 1. Of a
            text that was cut before a stop string, the mean over the tokens that were kept. `None` if the engine does
            not report it.
    """

    text: str
    finish_reason: str
    logprob: float | None = None


@dataclass(frozen=True)
class Thought:
    r"""
    One sampled text of one path for one question.

    A sampler fills the first group; [`~md_trl.judging.read_answers`] fills `answer`, [`~md_trl.judging.mark`] fills
    `correct`.

    Args:
        question_id (`str`):
            Id of the [`Question`].
        path (`str`):
            `cot`, `pot`, `cot_pot`, or `label` for the bare answer.
        index (`int`):
            Sample index from 0, by request order and then choice index, never by order of arrival. It breaks ties in
            votes.
        text (`str`):
            The text as sampled, outer white space stripped.
        model (`str`, *optional*, defaults to `""`):
            Name of the model that wrote it.
        finish_reason (`str`, *optional*, defaults to `"stop"`):
            As the server reported it. Anything but `stop` makes the thought unusable.
        stated (`str`, *optional*):
            Answer that came with an imported thought; used only for a CoT whose text states none.
        logprob (`float`, *optional*):
            As in [`Choice`].
        answer (`str`, *optional*):
            Answer that the thought reaches; `None` until it is read, or if the thought is unusable.
        correct (`bool`, *optional*):
            Whether `answer` equals the gold answer; `None` until it is marked.
    """

    question_id: str
    path: str
    index: int
    text: str
    model: str = ""
    finish_reason: str = "stop"
    stated: str | None = None
    logprob: float | None = None
    answer: str | None = None
    correct: bool | None = None

    @property
    def usable(self) -> bool:
        """Whether the thought reached an answer and may vote. Meaningful once its answer was read."""
        return self.answer is not None


@dataclass
class MixedRow:
    r"""
    One question with the distinct usable thoughts of both paths: a row of the mixed-thought dataset (Sec. 3.1).

    The columns of the path `cot_pot` follow those of the paper, and are missing unless the path was mixed.

    Args:
        id (`str`), task (`str`), question (`str`), answer (`str`):
            As in [`Question`]; `answer` is the gold answer.
        type ([`QuestionType`]):
            Which paths solve the question; a plain integer in the dataset.
        lambda_ (`float`, *optional*):
            `n2 / (n1 + n2)`, the weight of the PoT path in type 3 (Eq. 4); `None` when `n1 + n2 = 0`. The column is
            named `lambda`.
        repeat (`int`):
            How many times the question is seen per epoch (types 1 and 2 are upsampled).
        n_cot (`int`), n_pot (`int`):
            Number of thoughts sampled.
        n_cot_correct (`int`), n_pot_correct (`int`):
            Number of correct thoughts: `n1` and `n2` of the paper.
        cot_vote (`str`, *optional*), pot_vote (`str`, *optional*):
            Most frequent answer among the usable thoughts of the path.
        cot (`list[dict]`), pot (`list[dict]`):
            The distinct usable thoughts in the order first seen, each `{"text", "answer", "correct", "count"}`.
        cot_pot_share (`float`, *optional*):
            `n3 / (n1 + n2 + n3)`, the weight of the path `cot_pot` in type 3, for n3 correct thoughts of it; `None`
            when no thought is correct.
        n_cot_pot (`int`, *optional*), n_cot_pot_correct (`int`, *optional*), cot_pot_vote (`str`, *optional*):
            As for the other paths.
        cot_pot (`list[dict]`, *optional*):
            As for the other paths; `None` if the path was not mixed.
    """

    id: str
    task: str
    question: str
    answer: str
    type: QuestionType
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
    cot_pot_share: float | None = None
    n_cot_pot: int | None = None
    n_cot_pot_correct: int | None = None
    cot_pot_vote: str | None = None
    cot_pot: list[dict[str, Any]] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The row under its column names, in column order."""
        columns = {("lambda" if name == "lambda_" else name): value for name, value in self.__dict__.items()}
        return {name: value for name, value in columns.items() if self.cot_pot is not None or COT_POT not in name}

    @staticmethod
    def features(paths: Sequence[str] = PATHS) -> Features:
        """Schema of the dataset's columns, in order. Those of `cot_pot` are there if it is one of the paths."""
        from datasets import Features, List, Value

        string, count = Value("string"), Value("int32")
        thoughts = List({"text": string, "answer": string, "correct": Value("bool"), "count": count})
        features = Features(
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
        if COT_POT in paths:
            features.update(
                {
                    "cot_pot_share": Value("float64"),
                    "n_cot_pot": count,
                    "n_cot_pot_correct": count,
                    "cot_pot_vote": string,
                    "cot_pot": thoughts,
                }
            )
        return features


def path_row_features() -> Features:
    """Schema of path rows, in order: one correct thought per row, and its weight in the objective (Sec. 3.2)."""
    from datasets import Features, Value

    string = Value("string")
    return Features(
        {
            "id": string,
            "task": string,
            "path": string,
            "type": Value("int32"),
            "prompt": string,
            "completion": string,
            "weight": Value("float64"),
        }
    )
