"""The HTTP server of the simulated teacher: a part of OpenAI's protocol.

`POST /v1/chat/completions` and `/v1/completions` take `model`, `n`, `temperature`, `seed`, `max_tokens` (or
`max_completion_tokens`) and `stop`; other fields are ignored. `GET /v1/models` lists the model. The prompt must end in
a question and, on a line of its own, a trigger. Few-shot examples before them are counted as tokens, but not used. A
question that is not one of Stories is an error (400), because a simulation has no honest answer to it. The text
depends on question, trigger, `seed`, `temperature` and the index of the choice alone; without a `seed`, the server
draws one per request. Tokens are words and punctuation marks.
"""

from __future__ import annotations

import json
import re
import secrets
import sys
import time
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ..openai_requests import RequestError, read_json, read_number
from ..prompts import TRIGGERS
from ..tasks.stories import parse
from .chances import think


MODEL = "simulated-teacher"
FINGERPRINT = "md_trl-simulated-teacher"

_TOKEN = re.compile(r"\w+|[^\w\s]")


def answer(request: dict[str, Any], chat: bool) -> dict[str, Any]:
    r"""
    Build the response to a completion request.

    Args:
        request (`dict[str, Any]`):
            Body of the request.
        chat (`bool`):
            Whether a chat completion (`messages`) or a text completion (`prompt`) is requested.

    Returns:
        `dict[str, Any]`: Body of the response.

    Raises:
        `RequestError`: If the request is invalid.
    """
    if request.get("model") != MODEL:
        message = f"The model {request.get('model')!r} does not exist. The only model of this server is {MODEL!r}."
        raise RequestError(404, message, "model", "model_not_found")
    if request.get("stream"):
        raise RequestError(400, "The simulated teacher does not support streaming: remove `stream`.", "stream")
    n = read_number(request, "n", 1, int, 1, 128)
    temperature = read_number(request, "temperature", 1.0, float, 0.0, 2.0)
    seed = read_number(request, "seed", secrets.randbits(32), int, -(2**63), 2**63 - 1)
    max_tokens = read_number(request, "max_tokens", None, int, 1, 2**31)
    max_tokens = read_number(request, "max_completion_tokens", max_tokens, int, 1, 2**31)
    stop = request.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or len(stop) > 4 or not all(isinstance(text, str) and text for text in stop):
        raise RequestError(400, f"`stop` must be a string or a list of up to 4 strings, not {stop!r}.", "stop")

    texts = _messages(request) if chat else [_prompt(request)]
    question, path = _last_question(texts[-1], "messages" if chat else "prompt")
    story = parse(question)
    if story is None:
        message = f"The simulated teacher answers questions of the task `stories` only. This is none: {question!r}."
        raise RequestError(400, message, "messages" if chat else "prompt", "not_a_story")

    choices, completion_tokens = [], 0
    for index in range(n):
        text = think(story, path, question, seed, index, temperature)
        text, finish_reason = _cut(text, max_tokens, stop)
        completion_tokens += count_tokens(text)
        content = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        choices.append({"index": index, **content, "logprobs": None, "finish_reason": finish_reason})
    prompt_tokens = sum(count_tokens(text) for text in texts)
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-simulated-{secrets.token_hex(8)}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": MODEL,
        "system_fingerprint": FINGERPRINT,
        "choices": choices,
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


@lru_cache(maxsize=1024)
def count_tokens(text: str) -> int:
    """Count words and punctuation marks, which are the tokens in `usage`."""
    return sum(1 for _ in _TOKEN.finditer(text))


def _messages(request: dict[str, Any]) -> list[str]:
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError(400, "`messages` must be a list of one or more messages.", "messages")
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise RequestError(400, f"`messages[{place}]` must have a `role` and a string as `content`.", "messages")
    if messages[-1].get("role") != "user":
        raise RequestError(
            400, f"The last message must have the role 'user', not {messages[-1].get('role')!r}.", "messages"
        )
    return [message["content"] for message in messages]


def _prompt(request: dict[str, Any]) -> str:
    prompt = request.get("prompt")
    if not isinstance(prompt, str):
        raise RequestError(400, "`prompt` must be one string.", "prompt")
    return prompt


def _last_question(text: str, param: str) -> tuple[str, str]:
    """Extract the question at the end of a prompt and the path that its trigger asks for."""
    question, _, trigger = text.rstrip().rpartition("\n")
    for path, phrase in TRIGGERS.items():
        if trigger.strip() == phrase:
            return question.rstrip().rpartition("\n")[2].strip(), path
    phrases = " or ".join(repr(phrase) for phrase in TRIGGERS.values())
    raise RequestError(400, f"The prompt must end in a question and, on a line of its own, {phrases}.", param)


def _cut(text: str, max_tokens: int | None, stop: list[str]) -> tuple[str, str]:
    """Cut a text at the first stop string and at `max_tokens`; return it with its `finish_reason`."""
    ends = [match.end() for match in _TOKEN.finditer(text)]
    finish_reason = "stop"
    if max_tokens is not None and len(ends) > max_tokens:
        text, finish_reason = text[: ends[max_tokens - 1]], "length"
    stops = [text.index(end) for end in stop if end in text]
    return (text[: min(stops)], "stop") if stops else (text, finish_reason)


class TeacherServer(ThreadingHTTPServer):
    r"""
    The HTTP server of the simulated teacher.

    `serve_forever()` blocks until another thread calls `shutdown()`.

    Args:
        host (`str`, *optional*, defaults to `"127.0.0.1"`):
            Address to listen on.
        port (`int`, *optional*, defaults to `0`):
            Port to listen on. 0 chooses a free one.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str = "127.0.0.1", port: int = 0):
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        """Base URL for clients of OpenAI's API."""
        return f"http://{self.server_address[0]}:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address):
        """Report an error, unless the client has just closed the connection."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = FINGERPRINT
    # Send each response in one piece: many small packets would wait for each other's acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self):
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "md_trl (simulated, not a language model)"}
        if self.path == "/v1/models":
            self._send(200, {"object": "list", "data": [model]})
        elif self.path == f"/v1/models/{MODEL}":
            self._send(200, model)
        else:
            self.send_error(404)

    def do_POST(self):
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            return self.send_error(411, "The request must have a Content-Length.")
        body = self.rfile.read(int(length))
        if self.path not in ("/v1/chat/completions", "/v1/completions"):
            return self.send_error(404)
        try:
            self._send(200, answer(read_json(body), chat=self.path == "/v1/chat/completions"))
        except RequestError as error:
            self._send(error.status, error.body())

    def send_error(self, code, message=None, explain=None):
        """Send an HTTP error in OpenAI's format, and close the connection because the body may be unread."""
        self.close_connection = True
        routes = "POST /v1/chat/completions, POST /v1/completions, GET /v1/models"
        message = message or f"{self.command} {self.path} is not served. This server supports {routes}."
        self._send(code, RequestError(code, message).body())

    def log_message(self, format, *args):
        """Do not log requests: there are thousands of them."""

    def _send(self, status: int, body: dict[str, Any]):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()
