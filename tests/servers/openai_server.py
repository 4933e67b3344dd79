"""An OpenAI-compatible server on loopback: small, fast, and as well or badly behaved as a test asks for.

The text of a choice depends on (prompt, seed, index of the choice) only. The server keeps books of what it sold.
Run it on its own with `python tests/servers/openai_server.py --port 8001`.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


def text_of(prompt: Any, seed: int, index: int) -> str:
    """What the server writes."""
    return "The answer is " + hashlib.sha256(json.dumps([prompt, seed, index]).encode()).hexdigest()[:12]


@dataclass
class Reply:
    """What goes over the wire. A status of 0 closes the connection without an answer."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def error(status: int, message: str = "no", **headers: str) -> Reply:
    """An error in OpenAI's form."""
    return Reply(status, json.dumps({"error": {"message": message, "type": "test"}}).encode(), headers)


class OpenAIServer:
    """
    Runs in a thread from `with OpenAIServer() as server:` on, at `server.url`.

    `choices(body)` says how many choices a request gets, `finish(body, text)` may alter a text and names its finish
    reason, `fault(number, body)` may answer the numbered request in another way.
    """

    def __init__(
        self,
        choices: Callable[[dict], int] = lambda body: body.get("n") or 1,
        finish: Callable[[dict, str], tuple[str, str]] = lambda body, text: (text, "stop"),
        fault: Callable[[int, dict], Reply | None] = lambda number, body: None,
        models: Reply | None = None,
        delay: float = 0.0,
        port: int = 0,
    ):
        self.choices, self.finish, self.fault, self.delay, self.port = choices, finish, fault, delay, port
        self.models = models or Reply(200, b'{"object": "list", "data": [{"id": "m", "object": "model"}]}')
        self.bodies: list[dict] = []
        self.sold: Counter[tuple[str, int]] = Counter()
        self.prompt_tokens = self.completion_tokens = 0
        self.keys: set[str] = set()
        self.under_way = self.most_under_way = 0

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
                target = head[0].split(" ")[1]
                if target.endswith("/models"):
                    reply = self.models
                else:
                    self.under_way += 1
                    self.most_under_way = max(self.most_under_way, self.under_way)
                    if self.delay:
                        await asyncio.sleep(self.delay)
                    self.under_way -= 1
                    reply = self._answer(target, json.loads(body))
                if reply.status == 0:
                    break
                lines = {"content-type": "application/json", "content-length": len(reply.body)} | reply.headers
                text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
                writer.write(f"HTTP/1.1 {reply.status} X\r\n{text}\r\n".encode() + reply.body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        writer.close()

    def _answer(self, target: str, body: dict) -> Reply:
        number = len(self.bodies)
        self.bodies.append(body)
        fault = self.fault(number, body)
        if fault is not None:
            return fault
        chat = target.endswith("/chat/completions")
        prompt = body["messages"] if chat else body["prompt"]
        key = json.dumps(prompt)
        choices = []
        for index in range(self.choices(body)):
            text, reason = self.finish(body, text_of(prompt, body["seed"], index))
            content = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            choices.append({"index": index, "finish_reason": reason, "logprobs": None, **content})
        self.sold[key, body["seed"]] += len(choices)
        usage = {"prompt_tokens": len(key.split()), "completion_tokens": 4 * len(choices)}
        usage["total_tokens"] = sum(usage.values())
        self.prompt_tokens += usage["prompt_tokens"]
        self.completion_tokens += usage["completion_tokens"]
        answer = {
            "id": f"answer-{number}",
            "object": "chat.completion" if chat else "text_completion",
            "created": 0,
            "model": body["model"],
            "choices": choices,
            "usage": usage,
        }
        return Reply(200, json.dumps(answer).encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    arguments = parser.parse_args()
    with OpenAIServer(port=arguments.port, delay=arguments.delay) as server:
        print(server.url, flush=True)
        threading.Event().wait()
