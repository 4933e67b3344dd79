"""Read chat completion requests. What a student cannot do is refused by the name of the field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..openai_requests import RequestError, read_number, shown
from ..reasoner import MixedReasoner
from ..records import PATHS


MAX_N, MAX_TOKENS = 128, 4096
"""The most that a request may ask for, unless the server's own default is higher."""

_READ = {"model", "messages", "n", "temperature", "max_tokens", "max_completion_tokens", "seed"} | {
    "stream",
    "stream_options",
}
# Fields that change nothing about an answer
_IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
# Fields that clients send with a value that means "no change"
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_p": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "stop": ([],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}


@dataclass(frozen=True)
class ChatRequest:
    r"""
    What a caller asks for.

    Args:
        question (`str`):
            Text of the question.
        reasoner ([`~md_trl.reasoner.MixedReasoner`]):
            Reasoner with the settings of the request.
        stream (`bool`):
            Whether to send events as thoughts are sampled.
        include_usage (`bool`):
            Whether the last event shall count tokens.
    """

    question: str
    reasoner: MixedReasoner
    stream: bool
    include_usage: bool


def read_chat_request(body: dict[str, Any], model: str, reasoner: MixedReasoner) -> ChatRequest:
    r"""
    Read the body of a request.

    Args:
        body (`dict[str, Any]`):
            Fields of the request.
        model (`str`):
            Name of the served model.
        reasoner ([`~md_trl.reasoner.MixedReasoner`]):
            Its reasoner, whose settings are the defaults.

    Returns:
        [`ChatRequest`]: The request.

    Raises:
        [`~md_trl.openai_requests.RequestError`]: A field is missing, has a wrong value or cannot be honoured.
    """
    check_model(body.get("model"), model)
    for name, value in body.items():
        if name in _READ or name in _IGNORED or value is None or value in _NEUTRAL.get(name, ()):
            continue
        raise RequestError(400, f"`{shown(name)[1:-1]}` is not supported: remove it.", shown(name)[1:-1])
    stream = _flag(body, "stream")
    options = body.get("stream_options")
    if not isinstance(options, dict | None):
        raise RequestError(400, f"`stream_options` must be an object, not {shown(options)}.", "stream_options")
    include_usage = _flag(options or {}, "include_usage")
    return ChatRequest(_question(body.get("messages")), _with_settings(reasoner, body), stream, include_usage)


def check_model(name: Any, model: str) -> None:
    """Raise an error if a request asks for another model than the served one."""
    if name != model:
        message = f"The model {shown(name)} does not exist. The only model of this server is {model!r}."
        raise RequestError(404, message, "model", "model_not_found")


def _with_settings(reasoner: MixedReasoner, body: dict[str, Any]) -> MixedReasoner:
    default = reasoner.params
    temperature = read_number(body, "temperature", default.temperature, float, 0.0, 2.0)
    # Greedy decoding has one text per path.
    n = min(reasoner.rule.n, len(PATHS)) if temperature == 0 else reasoner.rule.n
    n = read_number(body, "n", n, int, 1, max(MAX_N, reasoner.rule.n))
    max_tokens = default.max_tokens
    for name in ("max_tokens", "max_completion_tokens"):
        max_tokens = read_number(body, name, max_tokens, int, 1, max(MAX_TOKENS, default.max_tokens))
    seed = read_number(body, "seed", default.seed, int, -(2**63), 2**63 - 1)
    try:
        return reasoner.with_settings(n, temperature=temperature, max_tokens=max_tokens, seed=seed)
    except InputError as error:
        raise RequestError(400, str(error), "n") from None


def _question(messages: Any) -> str:
    if not isinstance(messages, list) or not messages:
        raise RequestError(400, "`messages` must be a list with one message, the question.", "messages")
    for place, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role in ("system", "developer"):
            raise RequestError(
                400,
                f"`messages[{place}]` has the role {role!r}, but a student is asked a bare question and follows no "
                "instructions. Send the user message alone.",
                "messages",
            )
    if len(messages) > 1:
        raise RequestError(
            400,
            f"`messages` has {len(messages)} messages, but a student is asked one question and knows no earlier "
            "turns. Send the last user message alone.",
            "messages",
        )
    if role != "user":
        raise RequestError(400, "`messages[0]` must be an object with the role 'user' and a `content`.", "messages")
    question = _text(message.get("content"))
    if not question.strip():
        raise RequestError(400, "`messages[0].content` is empty. It must be the question.", "messages")
    try:
        question.encode()
    except UnicodeEncodeError:
        raise RequestError(400, "`messages[0].content` holds half of a surrogate pair.", "messages") from None
    return question


def _text(content: Any) -> str:
    """The text of a message, which may be divided into parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise RequestError(400, "`messages[0].content` must be a text or a list of text parts.", "messages")
    return "".join(part["text"] for part in parts)


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name)
    if not isinstance(value, bool | None):
        raise RequestError(400, f"`{name}` must be true or false, not {shown(value)}.", name)
    return bool(value)
