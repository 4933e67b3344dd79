"""How a student is asked, in training and at inference alike (Sec. 3.2: the trigger embedded into the input)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import InputError
from .triggers import TRIGGERS


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT_FORMATS = ("auto", "plain", "chat")


def is_chat(tokenizer: PreTrainedTokenizerBase | None, prompt_format: str = "auto") -> bool:
    r"""
    Whether the student is asked through its chat template.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`] or `None`):
            Tokenizer of the student.
        prompt_format (`str`, *optional*, defaults to `"auto"`):
            `"plain"`, `"chat"`, or `"auto"`: chat if the tokenizer has a chat template.

    Raises:
        `ValueError`: an unknown `prompt_format`, or `"chat"` for a tokenizer without a chat template.
    """
    if prompt_format not in PROMPT_FORMATS:
        raise InputError(f"Unknown `prompt_format` {prompt_format!r}. Choose one of {', '.join(PROMPT_FORMATS)}.")
    has_template = tokenizer is not None and tokenizer.chat_template is not None
    if prompt_format == "chat" and not has_template:
        raise InputError(
            "`prompt_format='chat'` needs a tokenizer with a chat template. Set `tokenizer.chat_template`, or use "
            "`prompt_format='plain'`."
        )
    return has_template and prompt_format != "plain"


def student_prompt(
    question: str, path: str, tokenizer: PreTrainedTokenizerBase | None = None, prompt_format: str = "auto"
) -> str:
    r"""
    The student's prompt: `{question}\n{trigger}\n` for plain models, a user turn for chat models. The thought follows.

    Args:
        question (`str`):
            Text of the question.
        path (`str`):
            `cot`, `pot`, or `label` (no trigger).
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the student; needed for a chat prompt.
        prompt_format (`str`, *optional*, defaults to `"auto"`):
            `"plain"`, `"chat"`, or `"auto"`: chat if the tokenizer has a chat template.

    Returns:
        `str`: the text to tokenize with [`encode`].

    Examples:

    ```python
    >>> from md_trl.prompts import student_prompt

    >>> student_prompt("What is 2 plus 3?", "cot")
    "What is 2 plus 3?\nLet's think step by step.\n"
    ```
    """
    if path not in ("cot", "pot", "label"):
        raise InputError(f"Unknown path {path!r}. Choose one of cot, pot, label.")
    text = question.strip() if path == "label" else f"{question.strip()}\n{TRIGGERS[path]}"
    if is_chat(tokenizer, prompt_format):
        return tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        )
    return f"{text}\n"


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], chat: bool) -> list[list[int]]:
    r"""
    Token ids of prompts, or of prompts with their thoughts, without a closing EOS.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the student.
        texts (`list[str]`):
            Whole texts: a prompt and its thought are never tokenized apart.
        chat (`bool`):
            Whether the prompts came out of a chat template, which writes its own special tokens.

    Returns:
        `list[list[int]]`: one list of ids a text.
    """
    ids = tokenizer(texts, add_special_tokens=not chat, return_attention_mask=False, verbose=False)["input_ids"]
    if chat:
        return ids
    # Some tokenizers (T5, Llama with `add_eos_token`) close every text by themselves.
    return [i[:-1] if i and i[-1] == tokenizer.eos_token_id else i for i in ids]
