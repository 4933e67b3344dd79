"""OpenAI's wire format: the bodies of requests and responses, and the headers that ask a client to wait."""

from __future__ import annotations

import bisect
import email.utils
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ...records import Choice, SamplingParams
from . import SampleRequest, cut_at_stop, mean_logprob


def request_body(model: str, request: SampleRequest, logprobs: bool = False) -> tuple[str, dict[str, Any]]:
    r"""
    Write a request.

    Args:
        model (`str`):
            Name of the model on the server.
        request ([`~md_trl.sampling.engines.SampleRequest`]):
            What to ask for.
        logprobs (`bool`, *optional*, defaults to `False`):
            Whether to ask for the log-probability of each token.

    Returns:
        `tuple[str, dict[str, Any]]`: The endpoint below the root of the API (chat for messages, completions for text),
        and the body.
    """
    params = request.params
    body = {
        "model": model,
        "n": request.n,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "max_tokens": params.max_tokens,
        "seed": request.seed(),
    }
    if params.stop:
        body["stop"] = list(params.stop)
    if isinstance(request.prompt, str):
        # The number counts further tokens, beside the sampled one.
        return "/completions", body | {"prompt": request.prompt} | ({"logprobs": 0} if logprobs else {})
    # llama.cpp's server returns log-probabilities only if `top_logprobs` is given
    asked = {"logprobs": True, "top_logprobs": 0} if logprobs else {}
    return "/chat/completions", body | {"messages": request.prompt} | asked


def read_answer(
    answer: bytes | dict[str, Any], chat: bool, params: SamplingParams
) -> tuple[list[Choice], dict[str, int], str]:
    r"""
    Read the body of an answer.

    The log-probability of a sample is the mean over the tokens that the server lists. OpenAI's own servers leave out
    the end token. It is `None` if the server lists none, or in a form that cannot be read.

    Args:
        answer (`bytes` or `dict[str, Any]`):
            The body.
        chat (`bool`):
            Whether it answers chat messages or a text.
        params ([`~md_trl.records.SamplingParams`]):
            Parameters of the request. Stop strings that the server has left in the texts are cut off.

    Returns:
        `tuple[list[Choice], dict[str, int], str]`: The samples in the order of their indices, the token counts, and
        the name of the model according to the server.

    Raises:
        `ValueError`: The body is not an answer in OpenAI's format.
    """
    try:
        answer = json.loads(answer) if isinstance(answer, bytes) else answer
        if not isinstance(answer, dict):
            raise ValueError("it is not a JSON object")
        if answer.get("error") and not answer.get("choices"):
            raise ValueError(f"it holds an error: {answer['error']}")
        choices = []
        for choice in sorted(answer.get("choices") or [], key=lambda choice: choice.get("index") or 0):
            text = choice["message"].get("content") if chat else choice.get("text")
            # Half a surrogate pair is valid JSON, but not a character.
            text = (text or "").encode(errors="replace").decode()
            found = cut_at_stop(Choice(text, str(choice.get("finish_reason") or "stop")), params.stop)
            logprob = _logprob(choice.get("logprobs"), found.text, len(found.text) < len(text), params.stop)
            choices.append(found._replace(logprob=logprob))
        usage = answer.get("usage")
        tokens = {}
        if usage:
            tokens = {name: int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")}
            cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
            tokens |= {"cached_tokens": cached} if cached else {}
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"it is not in the format of OpenAI's API ({type(error).__name__}: {error})") from None
    return choices, tokens, str(answer.get("model") or "")


def _logprob(logprobs: Any, text: str, is_cut: bool, stop: Sequence[str]) -> float | None:
    """Mean log-probability of the tokens of a text, without those of a stop string that came after it."""
    tokens = _tokens(logprobs)
    wanted, generated = text.encode(), b"".join(content for content, _ in tokens)
    rest = generated[len(wanted) :]
    # A server that cuts the text itself may still list the tokens of the stop string.
    if is_cut or any(rest.startswith(string.encode()) for string in stop):
        if not generated.startswith(wanted):
            return None
        ends = list(itertools.accumulate(len(content) for content, _ in tokens))
        tokens = tokens[: bisect.bisect_right(ends, len(wanted))]
    return mean_logprob([value for _, value in tokens])


def _tokens(logprobs: Any) -> list[tuple[bytes, float | None]]:
    """The tokens of a choice and their log-probabilities; none if they are missing or not in OpenAI's format."""
    try:
        if logprobs.get("content") is not None:
            listed = [(t.get("bytes"), t["token"], t["logprob"]) for t in logprobs["content"]]
        else:
            listed = [(None, *pair) for pair in zip(logprobs["tokens"], logprobs["token_logprobs"], strict=True)]
        return [
            (token.encode() if content is None else bytes(content), None if value is None else float(value))
            for content, token, value in listed
        ]
    except (AttributeError, KeyError, TypeError, ValueError):
        return []


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds the server asks to wait: `retry-after-ms`, or `Retry-After` in seconds or as a date."""
    for name, scale in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            return max(float(headers[name]) / scale, 0.0)
        except (KeyError, ValueError):
            continue
    try:
        return max(email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time(), 0.0)
    except (KeyError, ValueError):
        return None
