"""Select the thoughts of a mixed row to train on, and weight its paths by type and lambda (Sec. 3.2).

Lambda itself is computed when thoughts are mixed, see [`~md_trl.mixing.lambda_of`].
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .answers import equal
from .errors import InputError
from .prompts import student_text
from .records import ALL_PATHS, COT_POT, LABEL, PATHS, QuestionType


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OBJECTIVES = ("md", "cot", "pot", "uniform", "step_by_step", "label", "label_all", COT_POT)
"""What a student can learn: Mixed Distillation, and its baselines."""
UNSOLVED_PATH = {QuestionType.POT_ONLY: "cot", QuestionType.COT_ONLY: "pot"}
"""The path that did not solve a question, for the types in which one path did not."""


def path_weights(
    objective: str,
    question_type: int,
    lambda_: float | None,
    rationale_weight: float = 1.0,
    cot_pot_share: float | None = None,
) -> dict[str, float]:
    r"""
    Return the weights w(i,p) of a question's paths: Eq. 2 for types 1 and 2, Eq. 4 for type 3.

    The paper has two paths. A question that also has the path `cot_pot` follows the same rules: each path weighs 1 in
    types 1 and 2, and its share of the correct thoughts in type 3, where the weights sum to 1.

    Args:
        objective (`str`):
            Objective, as in [`~md_trl.MDConfig`]. All but `"md"` are baselines.
        question_type (`int`):
            Type of the question, a [`~md_trl.records.QuestionType`].
        lambda_ (`float` or `None`):
            Weight of the PoT path in type 3.
        rationale_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the CoT path if `objective="step_by_step"`.
        cot_pot_share (`float`, *optional*):
            Weight of the path `cot_pot` in type 3, see [`~md_trl.mixing.share_of_cot_pot`]. `None` if the question
            does not have this path.

    Returns:
        `dict[str, float]`: The weight of each path that the objective learns.
    """
    if objective in ("label", "label_all"):
        return {LABEL: 1.0}
    if objective == "step_by_step":
        return {LABEL: 1.0, "cot": rationale_weight}
    if objective in ALL_PATHS:
        return {objective: 1.0}
    if question_type != QuestionType.BOTH:
        return dict.fromkeys(PATHS if cot_pot_share is None else ALL_PATHS, 1.0)
    if objective == "uniform":
        lambda_, cot_pot_share = 0.5, None if cot_pot_share is None else 1 / 3
    if cot_pot_share is None:
        return {"cot": 1 - lambda_, "pot": lambda_}
    rest = 1 - cot_pot_share
    return {"cot": rest * (1 - lambda_), "pot": rest * lambda_, COT_POT: cot_pot_share}


def thought_text(thought: str | list[dict[str, Any]]) -> str:
    r"""
    Return the text of a thought.

    Args:
        thought (`str` or `list[dict]`):
            A text, or a conversation of a single message of the assistant.

    Returns:
        `str`: The text, or the content of the message.

    Raises:
        `ValueError`: If there are several messages.
    """
    if isinstance(thought, str):
        return thought
    [message] = thought if len(thought) == 1 else [{}]
    if message.get("role") != "assistant" or not isinstance(message.get("content"), str):
        raise InputError(f"A thought must be a text or one message of the assistant, got {thought!r:.80}.")
    return message["content"]


def check_thoughts(row: dict[str, Any], path: str) -> list[Any]:
    """Return the thoughts of a path, none if the row lacks it. A text instead of a list of texts is an error."""
    thoughts = row.get(path)
    if isinstance(thoughts, str):
        raise InputError(
            f"`{path}` is a text, {thoughts!r:.60}, instead of a list of thoughts. Write `[text]`. CSV files hold no "
            "lists: use JSONL or Parquet."
        )
    return [] if thoughts is None else thoughts


def thoughts_to_learn(row: dict[str, Any], path: str, unsolved_path: str) -> list[str]:
    r"""
    Return the distinct texts of a path that the student learns from, in the order of the row.

    Args:
        row (`dict`):
            Mixed row. Its thoughts are dictionaries with `text`, `answer` and `correct`, or plain texts, which count
            as correct. A text may be a conversation of one message.
        path (`str`):
            `"cot"`, `"pot"` or `"cot_pot"`.
        unsolved_path (`str`):
            What a path that did not solve the question contributes, as in [`~md_trl.MDConfig`].

    Returns:
        `list[str]`: Texts without surrounding white space.
    """
    by_majority = unsolved_path == "majority" and UNSOLVED_PATH.get(row["type"]) == path
    texts = []
    for thought in check_thoughts(row, path):
        if not isinstance(thought, dict):
            thought = {"text": thought, "correct": True}
        if by_majority:
            vote = row.get(f"{path}_vote")
            learned = vote is not None and "answer" in thought and equal(thought["answer"], vote)
        else:
            learned = thought["correct"]
        if learned:
            texts.append(thought_text(thought["text"]).strip())
    return [text for text in dict.fromkeys(texts) if text]


def path_rows(
    rows: Iterable[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase | None = None,
    objective: str = "md",
    unsolved_path: str = "correct",
) -> list[dict[str, Any]]:
    r"""
    Flatten mixed rows into one row per thought, each with its weight in the objective.

    They suit any trainer that supports a weight per row: the mean of weight times cross-entropy over the rows is the
    objective with `rationales_per_path="all"`, times the number of questions over the number of rows.

    Args:
        rows (`Iterable[dict]`):
            Mixed rows.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer whose chat template formats the prompts. Without one, prompts are plain text.
        objective (`str`, *optional*, defaults to `"md"`):
            Objective, as in [`~md_trl.MDConfig`], except `"label_all"`.
        unsolved_path (`str`, *optional*, defaults to `"correct"`):
            What a path that did not solve the question contributes, as in [`~md_trl.MDConfig`].

    Returns:
        `list[dict]`: Rows with `id`, `task`, `path`, `type`, `prompt`, `completion` and `weight`.

    Raises:
        `ValueError`: If the objective is unknown.
    """
    known = [name for name in OBJECTIVES if name != "label_all"]
    if objective not in known:
        raise InputError(f"`path_rows` does not support `objective={objective!r}`. Choose one of {', '.join(known)}.")
    flat = []
    for row in rows:
        texts = {path: thoughts_to_learn(row, path, unsolved_path) for path in ALL_PATHS}
        if row["type"] == QuestionType.NEITHER or not any(texts.values()):
            continue
        weights = path_weights(objective, row["type"], row.get("lambda"), cot_pot_share=row.get("cot_pot_share"))
        for path, weight in weights.items():
            completions = texts[path] if path != LABEL else [row["answer"].strip()]
            shared = {name: row.get(name) for name in ("id", "task")} | {"path": path, "type": row["type"]}
            shared["prompt"] = student_text(row["question"], path, tokenizer)
            weight = (row.get("repeat") or 1) * weight / max(len(completions), 1)
            flat += [shared | {"completion": text, "weight": weight} for text in completions]
    return flat
