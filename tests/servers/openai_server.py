"""An OpenAI-compatible loopback server that is small, fast, and misbehaves on request.

The text of a choice depends only on the prompt, the seed and the index of the choice. The server keeps books of what
it sold, and supports files and batches. Run it on its own with `python tests/servers/openai_server.py --port 8001`.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


def text_of(prompt: Any, seed: int, index: int) -> str:
    """The text that the server returns."""
    return "The answer is " + hashlib.sha256(json.dumps([prompt, seed, index]).encode()).hexdigest()[:12]


@dataclass
class Reply:
    """
    An HTTP response. A status of 0 closes the connection without one.

    `cut` is the number of bytes of the body to send before closing the connection, `after` the seconds to wait first.
    """

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    after: float = 0.0


def error(status: int, message: str = "no", code: str | None = None, **headers: str) -> Reply:
    """An error in OpenAI's format."""
    body = {"error": {"message": message, "type": "test", "code": code}}
    return Reply(status, json.dumps(body).encode(), headers)


class OpenAIServer:
    """
    The server, which runs in a thread inside `with OpenAIServer() as server:`, at `server.url`.

    `choices(body)` returns the number of choices of a request; `finish(body, text)` returns a text, which it may
    change, and its finish reason. `logprobs(body, text)` returns the tokens of a text with their log-probabilities
    for requests that ask for them. `fault(number, body)` may return another reply to the numbered request, or a
    function: then the request is answered and billed, and the function spoils the reply. `batch_steps` are the states
    of a batch, one per status check. `batch_row(number, body, row)` returns the result of a row, which it may change,
    or `None` for no result.
    """

    def __init__(
        self,
        choices: Callable[[dict], int] = lambda body: body.get("n") or 1,
        finish: Callable[[dict, str], tuple[str, str]] = lambda body, text: (text, "stop"),
        logprobs: Callable[[dict, str], list[tuple[str, float]]] | None = None,
        fault: Callable[[int, dict], Reply | Callable[[Reply], Reply] | None] = lambda number, body: None,
        models: Reply | None = None,
        delay: float = 0.0,
        port: int = 0,
        max_in_flight: int | None = None,
        batch_steps: tuple[str, ...] = ("validating", "in_progress", "finalizing", "completed"),
        batch_row: Callable[[int, dict, dict], dict | None] = lambda number, body, row: row,
    ):
        self.choices, self.finish, self.fault, self.delay, self.port = choices, finish, fault, delay, port
        self.logprobs = logprobs
        self.limit, self.batch_steps, self.batch_row = max_in_flight, batch_steps, batch_row
        self.models = models or Reply(200, b'{"object": "list", "data": [{"id": "m", "object": "model"}]}')
        self.bodies: list[dict] = []
        self.sold: Counter[tuple[str, int]] = Counter()
        self.prompt_tokens = self.cached_tokens = self.completion_tokens = 0
        self.unread: list[dict] = []  # Usage of answers that were billed and spoiled
        self.keys: set[str] = set()
        self.in_flight = self.peak_in_flight = self.too_many = 0
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict] = {}

    def __enter__(self) -> OpenAIServer:
        started = threading.Event()

        async def main() -> None:
            self._stopped = asyncio.Event()
            self._loop = asyncio.get_running_loop()
            server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = server.sockets[0].getsockname()[1]
            started.set()
            await self._stopped.wait()
            server.close()

        self._thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
        self._thread.start()
        started.wait()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.keys.add(headers.get("authorization", ""))
                target = head[0].split(" ")[1].partition("?")[0]
                if target.endswith("/models"):
                    reply = self.models
                elif target.endswith("/completions"):
                    self.in_flight += 1
                    self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
                    crowded = self.limit is not None and self.in_flight > self.limit
                    if self.delay and not crowded:
                        await asyncio.sleep(self.delay)
                    self.in_flight -= 1
                    self.too_many += crowded
                    reply = error(429, "too many at once") if crowded else self._answer(target, json.loads(body))
                else:
                    reply = self._batch_api(head[0].split(" ")[0], target, headers, body)
                if reply.after:
                    await asyncio.sleep(reply.after)
                if reply.status == 0:
                    break
                lines = {"content-type": "application/json", "content-length": len(reply.body)} | reply.headers
                text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
                writer.write(f"HTTP/1.1 {reply.status} X\r\n{text}\r\n".encode() + reply.body[: reply.cut])
                await writer.drain()
                if reply.cut is not None:
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        writer.close()

    def _answer(self, target: str, body: dict) -> Reply:
        number = len(self.bodies)
        self.bodies.append(body)
        fault = self.fault(number, body)
        if isinstance(fault, Reply):
            return fault
        answer = self._sell(target, body, number, unread=fault is not None)
        reply = Reply(200, json.dumps(answer).encode())
        return reply if fault is None else fault(reply)

    def _sell(self, target: str, body: dict, number: int, unread: bool = False) -> dict:
        chat = target.endswith("/chat/completions")
        prompt = body["messages"] if chat else body["prompt"]
        key = json.dumps(prompt)
        choices = []
        for index in range(self.choices(body)):
            text, reason = self.finish(body, text_of(prompt, body["seed"], index))
            content = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            tokens = None
            if self.logprobs is not None and body.get("logprobs") is not None:
                tokens = _token_list(chat, self.logprobs(body, text))
            choices.append({"index": index, "finish_reason": reason, "logprobs": tokens, **content})
        self.sold[key, body["seed"]] += len(choices)
        completion_tokens = sum(4 + body["seed"] % 7 for _ in choices)
        usage = {"prompt_tokens": len(key.split()), "completion_tokens": completion_tokens}
        usage["total_tokens"] = sum(usage.values())
        usage["prompt_tokens_details"] = {"cached_tokens": usage["prompt_tokens"] // 2}
        if unread:
            self.unread.append(usage)
        else:
            self.prompt_tokens += usage["prompt_tokens"]
            self.cached_tokens += usage["prompt_tokens"] // 2
            self.completion_tokens += usage["completion_tokens"]
        return {
            "id": f"answer-{number}",
            "object": "chat.completion" if chat else "text_completion",
            "created": 0,
            "model": body["model"],
            "choices": choices,
            "usage": usage,
        }

    # Files and batches

    def _batch_api(self, method: str, target: str, headers: dict, body: bytes) -> Reply:
        parts = target.strip("/").split("/")[1:]
        match method, parts:
            case "POST", ["files"]:
                id_ = f"file-{len(self.files)}"
                self.files[id_] = _uploaded(headers["content-type"], body)
                return _json({"id": id_, "object": "file", "purpose": "batch", "bytes": len(self.files[id_])})
            case "GET", ["files", id_, "content"]:
                return Reply(200, self.files[id_])
            case "POST", ["batches"]:
                asked = json.loads(body)
                id_ = f"batch-{len(self.batches)}"
                self.batches[id_] = {
                    "id": id_,
                    "object": "batch",
                    "endpoint": asked["endpoint"],
                    "input_file_id": asked["input_file_id"],
                    "completion_window": asked["completion_window"],
                    "status": self.batch_steps[0],
                    "created_at": 0,
                }
                return _json(self.batches[id_])
            case "GET", ["batches"]:
                data = list(reversed(self.batches.values()))
                return _json({"object": "list", "data": data, "has_more": False})
            case "GET", ["batches", id_]:
                return _json(self._check_status(self.batches[id_]))
        return error(404, f"no {target}")

    def _check_status(self, batch: dict) -> dict:
        """Move a batch on by one state per status check."""
        steps = self.batch_steps
        if batch["status"] == steps[-1]:
            return batch
        batch["status"] = steps[steps.index(batch["status"]) + 1]
        if batch["status"] == steps[-1] and batch["status"] != "failed":
            results: dict[str, list[bytes]] = {"output": [], "error": []}
            for line in self.files[batch["input_file_id"]].splitlines():
                asked = json.loads(line)
                assert asked["url"] == batch["endpoint"] and asked["method"] == "POST"
                number = len(self.bodies)
                self.bodies.append(asked["body"])
                row = {"id": f"row-{number}", "custom_id": asked["custom_id"], "error": None}
                row["response"] = {"status_code": 200, "body": None}
                other = self.batch_row(number, asked["body"], row)
                if other is None:
                    continue
                if other["error"] is None and other["response"]["status_code"] == 200:
                    other["response"]["body"] = self._sell(asked["url"], asked["body"], number)
                    results["output"].append(json.dumps(other).encode())
                else:
                    results["error"].append(json.dumps(other).encode())
            random.Random(0).shuffle(results["output"])
            for kind, lines in results.items():
                if lines:
                    batch[f"{kind}_file_id"] = f"file-{len(self.files)}"
                    self.files[batch[f"{kind}_file_id"]] = b"\n".join(lines) + b"\n"
        if batch["status"] == "failed":
            batch["errors"] = {
                "object": "list",
                "data": [{"code": "token_limit_exceeded", "message": "queue is full"}],
            }
        return batch


def _token_list(chat: bool, tokens: list[tuple[str, float]]) -> dict:
    if not chat:
        texts, logprobs = zip(*tokens, strict=True) if tokens else ((), ())
        return {"tokens": texts, "token_logprobs": logprobs, "top_logprobs": None, "text_offset": []}
    content = [{"token": text, "logprob": logprob, "bytes": list(text.encode())} for text, logprob in tokens]
    return {"content": [token | {"top_logprobs": []} for token in content], "refusal": None}


def _json(body: dict) -> Reply:
    return Reply(200, json.dumps(body).encode())


def _uploaded(content_type: str, body: bytes) -> bytes:
    """Extract the file from a multipart form."""
    boundary = content_type.partition("boundary=")[2].encode()
    for part in body.split(b"--" + boundary):
        head, _, content = part.partition(b"\r\n\r\n")
        if b'name="file"' in head:
            return content.removesuffix(b"\r\n")
    raise ValueError("no file")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    arguments = parser.parse_args()
    with OpenAIServer(port=arguments.port, delay=arguments.delay) as server:
        print(server.url, flush=True)
        threading.Event().wait()
