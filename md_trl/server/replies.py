"""Write replies: the voted answer as a chat completion, and as server-sent events."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..answers import extract
from ..reasoner import Reasoned
from ..records import Thought


NO_ANSWER_REPLY = "No thought reached an answer."


def best_thought(reasoned: Reasoned) -> Thought | None:
    r"""
    Choose the thought that explains an answer.

    Args:
        reasoned ([`~md_trl.reasoner.Reasoned`]):
            Answer of a student.

    Returns:
        [`~md_trl.records.Thought`], *optional*: Of the thoughts that voted for the answer, the one with the highest
        mean log-probability per token; the first one, CoT before PoT, if several are equal or none has one. `None` if
        there is no answer.
    """
    voters = [t for t in (*reasoned.cot, *reasoned.pot) if t.usable and t.answer == reasoned.answer]
    return max(voters, key=lambda t: -math.inf if t.logprob is None else t.logprob, default=None)


def content_of(reasoned: Reasoned) -> str:
    r"""
    Write the content of the reply.

    Args:
        reasoned ([`~md_trl.reasoner.Reasoned`]):
            Answer of a student.

    Returns:
        `str`: The best thought: prose as it is, since it states the answer; a program in a code block, with the answer
        after it. [`~md_trl.answers.extract`] finds the voted answer in either.
    """
    thought = best_thought(reasoned)
    if thought is None:
        return NO_ANSWER_REPLY
    if thought.path == "cot" and extract(thought.text, strict=True) == reasoned.answer:
        return thought.text
    text = f"```python\n{thought.text}\n```" if thought.path == "pot" else thought.text
    return f"{text}\n\nThe answer is {reasoned.answer}."


class TokenCounts:
    """Adds up the tokens of one question, as long as the engine counts them."""

    def __init__(self):
        self.prompt_tokens: int | None = 0
        self.completion_tokens: int | None = 0

    def add(self, usage: Mapping[str, Any]) -> None:
        """Add the counts of one result of an engine."""
        for name in ("prompt_tokens", "completion_tokens"):
            before, more = vars(self)[name], usage.get(name)
            setattr(self, name, None if before is None or more is None else before + more)

    def to_dict(self) -> dict[str, int] | None:
        """The field `usage`. `None` if a count is not known."""
        if self.prompt_tokens is None or self.completion_tokens is None:
            return None
        return vars(self) | {"total_tokens": self.prompt_tokens + self.completion_tokens}


class Reply:
    r"""
    The reply to one request.

    Args:
        model (`str`):
            Name of the served model.
    """

    def __init__(self, model: str):
        self.model = model
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self._samples = 0

    def completion(self, reasoned: Reasoned, usage: dict[str, int] | None) -> dict[str, Any]:
        """Body of a response that is sent in one piece."""
        message = {"role": "assistant", "content": content_of(reasoned), "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        return self._fields("chat.completion", [choice]) | {"usage": usage, "md_trl": _result(reasoned)}

    def start(self) -> str:
        """The first event of a stream."""
        return self._event({"role": "assistant", "content": ""})

    def progress(self, thoughts: Sequence[Thought]) -> str:
        """An event that reports new thoughts and the number of thoughts so far."""
        self._samples += len(thoughts)
        return self._event({}, md_trl={"samples": self._samples, "thoughts": [_thought(t) for t in thoughts]})

    def end(self, reasoned: Reasoned, usage: dict[str, int] | None, include_usage: bool) -> Iterator[str]:
        """The last events of a stream: the content, the whole result, and perhaps the number of tokens."""
        yield self._event({"content": content_of(reasoned)})
        yield self._event({}, finish_reason="stop", md_trl=_result(reasoned))
        if include_usage:
            yield event(self._fields("chat.completion.chunk", []) | {"usage": usage})
        yield "data: [DONE]\n\n"

    def _event(self, delta: dict[str, Any], finish_reason: str | None = None, **extra: Any) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return event(self._fields("chat.completion.chunk", [choice]) | extra)

    def _fields(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices,
        }  # fmt: skip


def event(data: dict[str, Any]) -> str:
    """A server-sent event. JSON escapes line breaks, so that no text of a model can begin another event."""
    return f"data: {dumps(data)}\n\n"


def dumps(data: dict[str, Any]) -> str:
    """JSON in ASCII: a model may write characters that have no UTF-8, such as half of a surrogate pair."""
    return json.dumps(data, allow_nan=False)


def _result(reasoned: Reasoned) -> dict[str, Any]:
    return {
        "answer": reasoned.answer,
        "confidence": reasoned.confidence,
        "votes": reasoned.votes,
        "samples": reasoned.samples,
        "thoughts": [_thought(thought) for thought in (*reasoned.cot, *reasoned.pot)],
    }


def _thought(thought: Thought) -> dict[str, Any]:
    return {"path": thought.path, "text": thought.text, "answer": thought.answer, "logprob": thought.logprob}
