"""What a prompt is, and how a local model's tokenizer turns it into token ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import InputError


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompt = str | list[dict[str, str]]
"""Text to continue, or chat messages (`role`, `content`) to reply to."""

# A chat template adds fewer tokens than this to each message and to the whole conversation.
_TEMPLATE_TOKENS_PER_MESSAGE, _TEMPLATE_TOKENS = 16, 64


def render(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> str:
    r"""
    Render a prompt as text: messages through the chat template, up to where the assistant's reply begins.

    Args:
        prompt (`str` or `list[dict[str, str]]`):
            Text, which is returned unchanged, or chat messages.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model that reads the prompt.

    Returns:
        `str`: The text to tokenize with [`encode`], which must be told whether it came from a chat template.

    Raises:
        `ValueError`: The prompt consists of messages and the tokenizer has no chat template.
    """
    if isinstance(prompt, str):
        return prompt
    if tokenizer.chat_template is None:
        raise InputError(
            "The prompt consists of chat messages, but the tokenizer has no chat template. Use a prompt of plain "
            "text, for example `--prompt few_shot_text`."
        )
    return apply_chat_template(prompt, tokenizer, add_generation_prompt=True)


def apply_chat_template(messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, **options: Any) -> str:
    r"""
    Render messages, also with the template of a vision-language model that reads each content as a list of parts.

    Args:
        messages (`list[dict[str, Any]]`):
            Chat messages (`role`, `content`).
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer with a chat template.
        **options:
            Arguments of the tokenizer's `apply_chat_template` and variables of the template.

    Returns:
        `str`: The rendered text.

    Raises:
        `ValueError`: The template refuses the messages, or drops what the user says.
    """
    from jinja2 import TemplateError

    said = [m["content"].strip() for m in messages if m["role"] == "user" and isinstance(m["content"], str)][-1:]
    in_parts = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]
    for form in (messages, in_parts):
        try:
            text = tokenizer.apply_chat_template(form, tokenize=False, **options)
        except TemplateError as error:
            raise InputError(
                f"The chat template of {tokenizer.name_or_path!r} refuses the messages: {error}"
            ) from error
        if all(content in text for content in said):
            return text
    raise InputError(
        f"The chat template of {tokenizer.name_or_path!r} drops the message {said[0][:60]!r}. Use another template, "
        "or `prompt_format='plain'`."
    )


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], chat: bool) -> list[list[int]]:
    r"""
    Tokenize prompts, or prompts followed by their thoughts, without a final EOS.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        texts (`list[str]`):
            Whole texts: a prompt and its thought are never tokenized separately.
        chat (`bool`):
            Whether the prompts come from a chat template, which writes the special tokens itself.

    Returns:
        `list[list[int]]`: Token ids of each text.
    """
    ids = tokenizer(texts, add_special_tokens=not chat, return_attention_mask=False, verbose=False)["input_ids"]
    if chat:
        return ids
    # Some tokenizers (T5, Llama with `add_eos_token`) append EOS on their own.
    return [i[:-1] if i and i[-1] == tokenizer.eos_token_id else i for i in ids]


def encode_prompt(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of one prompt, rendered through the chat template if it consists of messages."""
    [ids] = encode(tokenizer, [render(prompt, tokenizer)], chat=not isinstance(prompt, str))
    return ids


def max_prompt_tokens(prompt: Prompt) -> int:
    """Upper bound on the tokens of a prompt for any tokenizer: one per byte, plus what a chat template adds."""
    if isinstance(prompt, str):
        return len(prompt.encode()) + _TEMPLATE_TOKENS
    contents = sum(len(message["content"].encode()) + _TEMPLATE_TOKENS_PER_MESSAGE for message in prompt)
    return contents + _TEMPLATE_TOKENS
