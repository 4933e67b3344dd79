"""How a student is asked, in training and at inference alike: the question and the trigger (Sec. 3.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..records import LABEL, PATHS_AND_LABEL
from .prompt import Prompt, render
from .student_settings import SETTINGS_FILE
from .triggers import TRIGGERS


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT_FORMATS = ("auto", "plain", "chat")


def resolve_prompt_format(
    tokenizer: PreTrainedTokenizerBase | None, prompt_format: str = "auto", settings: dict[str, Any] | None = None
) -> str:
    r"""
    Decide whether a student is asked in plain text or in a chat.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`] or `None`):
            Tokenizer of the student; `None` counts as one without a chat template.
        prompt_format (`str`, *optional*, defaults to `"auto"`):
            `"plain"`, `"chat"`, or `"auto"`: the format in `settings`, else chat if the tokenizer has a chat template.
        settings (`dict`, *optional*):
            How the student was trained to be prompted, as [`read_student_settings`] returns it.

    Returns:
        `str`: `"plain"` or `"chat"`.

    Raises:
        `ValueError`: Unknown `prompt_format`, another one than the student was trained in, or `"chat"` for a tokenizer
            without a chat template.
    """
    if prompt_format not in PROMPT_FORMATS:
        raise InputError(f"Unknown `prompt_format` {prompt_format!r}. Choose one of {', '.join(PROMPT_FORMATS)}.")
    if settings is not None:
        trained = settings["prompt_format"]
        if prompt_format not in ("auto", trained):
            raise InputError(
                f"`prompt_format={prompt_format!r}` contradicts the student's {SETTINGS_FILE}: it was trained with "
                f"`prompt_format={trained!r}`. Use that, or 'auto'."
            )
        prompt_format = trained
    has_template = tokenizer is not None and tokenizer.chat_template is not None
    if prompt_format == "chat" and not has_template:
        raise InputError(
            "`prompt_format='chat'` needs a tokenizer with a chat template. Set `tokenizer.chat_template`, or use "
            "`prompt_format='plain'`."
        )
    return "chat" if has_template and prompt_format != "plain" else "plain"


def student_prompt(question: Prompt, path: str, prompt_format: str = "plain") -> Prompt:
    r"""
    Build the prompt of a student. There are no few-shot examples.

    Args:
        question (`str` or `list[dict[str, str]]`):
            Text of the question, or a conversation whose last message is the user's question.
        path (`str`):
            `cot`, `pot`, `cot_pot`, or `label`, which has no trigger.
        prompt_format (`str`, *optional*, defaults to `"plain"`):
            `"plain"` or `"chat"`, see [`resolve_prompt_format`].

    Returns:
        `str` or `list[dict[str, str]]`: `{question}\n{trigger}\n` in plain format, a single user turn
        `{question}\n{trigger}` in chat format, after the earlier messages of a conversation.

    Raises:
        `ValueError`: Unknown `path` or `prompt_format`, or a conversation in plain format.

    Examples:

    ```python
    >>> from md_trl.prompts import student_prompt

    >>> student_prompt("What is 2 plus 3?", "cot")
    "What is 2 plus 3?\nLet's think step by step.\n"
    >>> student_prompt("What is 2 plus 3?", "label", "chat")
    [{'role': 'user', 'content': 'What is 2 plus 3?'}]
    ```
    """
    if path not in PATHS_AND_LABEL:
        raise InputError(f"Unknown path {path!r}. Choose one of {', '.join(PATHS_AND_LABEL)}.")
    if prompt_format not in ("plain", "chat"):
        raise InputError(f"`prompt_format` is {prompt_format!r}. Use 'plain' or 'chat'.")
    earlier = []
    if not isinstance(question, str):
        if prompt_format == "plain":
            raise InputError("The question is a conversation, which `prompt_format='plain'` cannot ask. Use 'chat'.")
        *earlier, last = question
        if last["role"] != "user":
            raise InputError(f"The conversation must end with the user's question, not with {last['role']!r}.")
        question = last["content"]
    text = question.strip() if path == LABEL else f"{question.strip()}\n{TRIGGERS[path]}"
    return [*earlier, {"role": "user", "content": text}] if prompt_format == "chat" else f"{text}\n"


def student_text(
    question: Prompt, path: str, tokenizer: PreTrainedTokenizerBase | None = None, prompt_format: str = "auto"
) -> str:
    r"""
    Render the prompt of a student as the text that the thought is appended to.

    Args:
        question (`str` or `list[dict[str, str]]`):
            Question, as in [`student_prompt`].
        path (`str`):
            `cot`, `pot`, `cot_pot` or `label`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the student; needed for the chat format.
        prompt_format (`str`, *optional*, defaults to `"auto"`):
            As in [`resolve_prompt_format`].

    Returns:
        `str`: The text to tokenize with [`encode`].
    """
    return render(student_prompt(question, path, resolve_prompt_format(tokenizer, prompt_format)), tokenizer)
