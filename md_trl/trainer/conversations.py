"""Render prompts and completions that are given as chat messages."""

from __future__ import annotations

import os
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import logging
from trl import maybe_convert_to_chatml

from ..errors import InputError
from ..prompts import apply_chat_template, render


logger = logging.get_logger(__name__)

# Stands for a message that does not occur in any chat template.
_MESSAGE = "md_trl message"


def render_completion(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, prompt_format: str, where: str
) -> tuple[str, str]:
    r"""
    Render a conversational row as [`~trl.SFTTrainer`] does, in two parts.

    The completion is all that the chat template renders after the prompt. It ends with the turn of its last message,
    whose EOS is left to the tokenization of thoughts.

    Args:
        row (`dict`):
            Row whose `prompt` and `completion` are lists of messages (`role` and `content`, or `from` and `value`),
            and optionally `chat_template_kwargs`, the variables of the template.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the student.
        prompt_format (`str`):
            As in [`MDConfig`].
        where (`str`):
            Row, for error messages.

    Returns:
        `tuple[str, str]`: Prompt and completion.

    Raises:
        `ValueError`: If the row cannot be rendered.
    """
    prompt, completion = (check_messages(row[column], column, where) for column in ("prompt", "completion"))
    check_template(tokenizer, prompt_format, where)
    options = row.get("chat_template_kwargs") or {}
    start = apply_chat_template(prompt, tokenizer, add_generation_prompt=True, **options)
    whole = apply_chat_template(prompt + completion, tokenizer, **options)
    common = os.path.commonprefix([start, whole])
    if len(common) < len(start):
        logger.warning_once(
            f"The chat template of {tokenizer.name_or_path!r} renders the prompt alone and before its completion in "
            f"two ways. Training leaves out its end {start[len(common) :]!r}, which the student sees when it is asked."
        )
    text = whole[len(common) :].rstrip().removesuffix(tokenizer.eos_token)
    if not text.strip():
        raise InputError(f"{where} has a completion that the chat template of {tokenizer.name_or_path!r} drops.")
    return common, text


def check_messages(messages: Any, column: str, where: str) -> list[dict[str, Any]]:
    r"""
    Check that a column of a row has a conversation.

    Args:
        messages (`list[dict]`):
            Value of the column.
        column (`str`):
            Name of the column, for error messages.
        where (`str`):
            Row, for error messages.

    Returns:
        `list[dict]`: The messages with `role` and `content`.

    Raises:
        `ValueError`: If it is something else, or empty.
    """
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise InputError(f"{where} has {column} {messages!r:.80}. It must be a list of messages.")
    converted = maybe_convert_to_chatml({"prompt": messages})["prompt"]
    for message in converted:
        if not isinstance(message.get("role"), str) or "content" not in message:
            raise InputError(f"{where} has a message without `role` or `content` in {column}: {message!r:.80}.")
    return converted


def check_template(tokenizer: PreTrainedTokenizerBase, prompt_format: str, where: str) -> None:
    r"""
    Check that conversations can be rendered.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the student.
        prompt_format (`str`):
            As in [`MDConfig`].
        where (`str`):
            Row, for the error message.

    Raises:
        `ValueError`: If the tokenizer has no chat template, or the prompt format is `"plain"`.
    """
    if tokenizer.chat_template is None:
        raise InputError(
            f"{where} is a conversation, and the tokenizer {tokenizer.name_or_path!r} has no chat template. Set "
            "`chat_template_path`, or pass texts."
        )
    if prompt_format == "plain":
        raise InputError(f"{where} is a conversation, which `prompt_format='plain'` cannot render. Set it to 'chat'.")


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


def template_opening(tokenizer: PreTrainedTokenizerBase) -> str:
    r"""
    Return how prompts begin that a tokenizer's chat template has rendered.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the student.

    Returns:
        `str`: The special token before the first message, or the text there; empty if there is neither, no template,
        or one that does not render a single message.
    """
    if tokenizer.chat_template is None:
        return ""
    try:
        opening, _, _ = render([{"role": "user", "content": _MESSAGE}], tokenizer).partition(_MESSAGE)
    except InputError:
        return ""
    return next((token for token in tokenizer.all_special_tokens if opening.startswith(token)), opening)
