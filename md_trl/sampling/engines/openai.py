"""Samples from any server that speaks OpenAI's API: chat for messages, plain completions for texts."""

from __future__ import annotations

import asyncio
import email.utils
import itertools
import json
import math
import os
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import openai

from ...errors import InputError
from ..api_keys import find_key
from . import Choice, SampleRequest, SampleResult, cut_at_stop, derive_seed


# Pauses before a request is repeated: the first, and the longest; each is twice the one before, less up to a half.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
# A server that wants a longer pause than this is left alone.
LONGEST_RETRY_AFTER = 600.0
# Requests under way that share a client.
CONNECTIONS_PER_CLIENT = 8


class OpenAIEngine:
    r"""
    Samples from an OpenAI-compatible server.

    The key comes from the environment variable `OPENAI_API_KEY` or the keyring and goes nowhere but to the server, see
    [`~md_trl.sampling.api_keys.find_key`].

    429, 5xx and refused connections cost nothing and are repeated, after the pause that the server asks for or one
    that doubles each time, with jitter. On 429 half as many requests are kept under way; each answer brings back a
    little. A request that may have been billed although no answer could be read (time-out, lost connection, half an
    answer) is not repeated here: it comes back as a result with an `error` and `lost=True`, so that whoever keeps the
    books decides. A server that is not there, a refused key, an exhausted account and an unknown model end the run:
    nothing more is asked, what is under way is waited for.

    Args:
        model (`str`):
            Name of the model, as the server knows it.
        base_url (`str`, *optional*):
            Root of the API, for example `http://127.0.0.1:8000/v1`. Defaults to the environment variable
            `OPENAI_BASE_URL`, then to OpenAI's own.
        concurrency (`int`, *optional*, defaults to `16`):
            Most requests under way at the same time.
        max_retries (`int`, *optional*, defaults to `6`):
            How often a request is repeated.
        timeout (`float`, *optional*, defaults to `300.0`):
            Seconds after which a request counts as lost.
        requests_per_minute (`float`, *optional*), tokens_per_minute (`float`, *optional*):
            Limits of the server to keep to. Tokens are estimated from earlier answers.

    Raises:
        `ValueError`: no key for a server on another machine, or a key inside `base_url`.

    Examples:

    ```python
    >>> from md_trl.sampling.engines import SampleRequest
    >>> from md_trl.sampling.engines.openai import OpenAIEngine

    >>> engine = OpenAIEngine("gpt-3.5-turbo")
    >>> messages = [{"role": "user", "content": "What is 2 plus 3?"}]
    >>> for result in engine.generate([SampleRequest("demo/test/1", "cot", messages, n=5)]):
    ...     print([choice.text for choice in result.choices])
    ```
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        concurrency: int = 16,
        max_retries: int = 6,
        timeout: float = 300.0,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
    ):
        if concurrency < 1:
            raise InputError(f"`concurrency` is {concurrency}. Use 1 or more.")
        for name, limit in (("requests_per_minute", requests_per_minute), ("tokens_per_minute", tokens_per_minute)):
            if limit is not None and limit <= 0:
                raise InputError(f"`{name}` is {limit}. Use a number above 0, or leave it out.")
        self.model = model
        self.base_url = base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        self.concurrency = concurrency
        self.max_retries = max_retries
        self.timeout = timeout
        self.requests_per_minute = requests_per_minute
        self.tokens_per_minute = tokens_per_minute
        self._key = find_key(self.base_url)
        # Whether the server has accepted any request. While it has not, a refusal ends the run.
        self._accepted = False

    def generate(self, requests: Iterable[SampleRequest]) -> Iterator[SampleResult]:
        r"""
        Ask for all requests, a bounded number of them at a time.

        Args:
            requests (`Iterable[SampleRequest]`):
                Pulled one by one, when there is room.

        Yields:
            [`SampleResult`]: as they arrive.

        Raises:
            `ConnectionError`: no server answers at the URL.
            `ValueError`: the server refuses the key, does not know the model, or refuses the first requests.
        """
        requests = iter(requests)
        arrived: queue.SimpleQueue[asyncio.Future] = queue.SimpleQueue()
        self._throttle = _Throttle(self.concurrency, self.requests_per_minute, self.tokens_per_minute)
        with _event_loop() as loop:
            clients = self._clients()
            turns = itertools.cycle(clients)
            try:
                asyncio.run_coroutine_threadsafe(self._probe(clients[0]), loop).result()
                under_way: dict[asyncio.Future, SampleRequest] = {}
                fatal = None
                while True:
                    while (
                        not fatal
                        and len(under_way) < self.concurrency
                        and (request := next(requests, None)) is not None
                    ):
                        future = asyncio.run_coroutine_threadsafe(self._ask(next(turns), request), loop)
                        under_way[future] = request
                        future.add_done_callback(arrived.put)
                    if not under_way:
                        break
                    future = arrived.get()
                    request = under_way.pop(future)
                    try:
                        yield future.result()
                    except (ConnectionError, ValueError) as error:
                        fatal = error
                        yield SampleResult(request, error=str(error), lost=isinstance(error, ConnectionError))
                if fatal:
                    raise fatal
            except KeyboardInterrupt:
                # What has arrived is paid for.
                while not arrived.empty():
                    future = arrived.get()
                    if future.exception() is None:
                        yield future.result()
                raise
            finally:
                asyncio.run_coroutine_threadsafe(_cancel_and_close(clients), loop).result()

    def _clients(self) -> list[openai.AsyncOpenAI]:
        # A client asks each of its idle connections whether it still stands, at every request: several clients with
        # few connections each are much cheaper than one with all.
        certificates = httpx2.create_ssl_context()
        return [
            openai.AsyncOpenAI(
                api_key=self._key,
                base_url=self.base_url,
                max_retries=0,
                timeout=self.timeout,
                http_client=openai.DefaultAsyncHttpxClient(verify=certificates),
            )
            for _ in range(math.ceil(self.concurrency / CONNECTIONS_PER_CLIENT))
        ]

    async def _probe(self, client: openai.AsyncOpenAI) -> None:
        """Find out before the first request whether there is a server that lets us in."""
        try:
            await client.with_options(max_retries=1, timeout=10).models.list()
        except openai.APITimeoutError:
            pass  # A busy server: it accepted the connection, and requests have a longer time-out.
        except openai.APIConnectionError as error:
            raise self.no_server(error) from None
        except openai.AuthenticationError as error:
            raise self.no_entry(error) from None
        except (openai.APIError, ValueError):
            pass  # Not every server lists its models (`transformers serve` fails offline).

    async def _ask(self, client: openai.AsyncOpenAI, request: SampleRequest) -> SampleResult:
        path, body = request_body(self.model, request)
        faults: list[str] = []
        while True:
            pause = min(FIRST_PAUSE * 2 ** len(faults), LONGEST_PAUSE) * random.uniform(0.5, 1)
            estimate = await self._throttle.enter(request)
            started = time.monotonic()
            try:
                # The client's time-out is one between two packets.
                answer = await asyncio.wait_for(client.post(path, cast_to=httpx2.Response, body=body), self.timeout)
            except (asyncio.TimeoutError, openai.APITimeoutError):
                return SampleResult(request, error=f"no answer within {self.timeout:g} s", lost=True, faults=faults)
            except openai.APIConnectionError as error:
                if not isinstance(error.__cause__, httpx2.ConnectError):
                    await self._probe(client)
                    return SampleResult(request, error="the connection was lost", lost=True, faults=faults)
                fault = "no connection"
                if len(faults) >= self.max_retries:
                    await self._probe(client)
            except openai.AuthenticationError as error:
                raise self.no_entry(error) from None
            except openai.NotFoundError as error:
                raise InputError(
                    f"{self.base_url} does not know the model {self.model!r} or has no such API "
                    f"({self.message(error)}). Check `--model` and `--base_url` (it usually ends in /v1)."
                ) from None
            except openai.APIStatusError as error:
                fault, wait = self.message(error), _retry_after(error.response.headers)
                if error.code == "insufficient_quota" or (wait or 0) > LONGEST_RETRY_AFTER:
                    raise InputError(
                        f"{self.base_url} gives no more for now ({fault}). What has arrived is stored: run the same "
                        "command again later."
                    ) from None
                if error.status_code == 429:
                    self._throttle.slow_down(started, wait or 0.0)
                elif error.status_code not in (408, 409) and error.status_code < 500:
                    if not self._accepted:
                        raise InputError(
                            f"{self.base_url} refuses what it is asked: {fault}. Nothing more was asked."
                        ) from None
                    return SampleResult(request, error=fault, retry=False, faults=faults)
                # Those who were told to come back at the same time do not.
                pause = pause if wait is None else wait + 0.1 * pause
            except openai.APIError as error:
                return SampleResult(request, error=self.message(error), lost=True, faults=faults)
            else:
                return self._result(request, answer.content, faults, estimate)
            finally:
                self._throttle.leave()
            if len(faults) >= self.max_retries:
                return SampleResult(request, error=fault, faults=faults)
            faults.append(fault)
            await asyncio.sleep(pause)

    def _result(self, request: SampleRequest, data: bytes, faults: list[str], estimate: float) -> SampleResult:
        try:
            choices, usage, served = read_answer(data, request)
        except ValueError as error:
            message = f"the answer cannot be read: {self.clean(str(error))}"
            return SampleResult(request, error=message, lost=True, faults=faults)
        self._accepted = True
        self._throttle.answered(request, estimate, usage, len(choices))
        return SampleResult(request, choices, usage, faults=faults, served=served)

    def sync_client(self) -> openai.OpenAI:
        """A plain client, for what is not sampling."""
        return openai.OpenAI(
            api_key=self._key, base_url=self.base_url, max_retries=self.max_retries, timeout=self.timeout
        )

    def no_server(self, error: openai.APIConnectionError) -> ConnectionError:
        """What to raise if nobody answers."""
        cause = f" ({self.clean(str(error.__cause__))})" if error.__cause__ else ""
        return ConnectionError(
            f"No server answers at {self.base_url}{cause}. Start one there, for example `md-trl teacher --port 8000`, "
            f"`vllm serve {self.model}` or `transformers serve`, or correct `--base_url`. What has arrived is stored: "
            "run the same command again to go on."
        )

    def no_entry(self, error: openai.AuthenticationError) -> ValueError:
        """What to raise if the key is refused."""
        return InputError(
            f"{self.base_url} refuses the key (HTTP {error.status_code}): it is wrong or has expired. Set the "
            "environment variable `OPENAI_API_KEY` to a valid one. What has arrived is stored: run the same command "
            "again to go on."
        )

    def message(self, error: openai.APIError) -> str:
        """What the server says, in one line."""
        message = error.message
        if isinstance(error.body, dict) and isinstance(error.body.get("message"), str):
            message = error.body["message"]
        if isinstance(error, openai.APIStatusError):
            message = f"HTTP {error.status_code}: {message}"
        return self.clean(message)

    def clean(self, text: str) -> str:
        """One line, not too long, and without the key, which some servers repeat."""
        text = " ".join(text.replace(self._key, "***").split())
        return text if len(text) <= 300 else f"{text[:297]}..."


def request_body(model: str, request: SampleRequest) -> tuple[str, dict[str, Any]]:
    """Where a request goes, below the root of the API, and what it says."""
    body = {
        "model": model,
        "n": request.n,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "max_tokens": request.max_tokens,
        "seed": derive_seed(request.seed, request.question_id, request.path, request.first_index),
    }
    if request.stop:
        body["stop"] = list(request.stop)
    if isinstance(request.prompt, str):
        return "/completions", body | {"prompt": request.prompt}
    return "/chat/completions", body | {"messages": request.prompt}


def read_answer(answer: bytes | dict[str, Any], request: SampleRequest) -> tuple[list[Choice], dict[str, int], str]:
    r"""
    Read the body of an answer.

    Args:
        answer (`bytes` or `dict`):
            The body.
        request ([`SampleRequest`]):
            What was asked.

    Returns:
        `tuple[list[Choice], dict, str]`: the samples in the order of their indices, the tokens, the model named.

    Raises:
        `ValueError`: it is no answer.
    """
    try:
        answer = json.loads(answer) if isinstance(answer, bytes) else answer
        if not isinstance(answer, dict):
            raise ValueError("it is no JSON object")
        if answer.get("error") and not answer.get("choices"):
            raise ValueError(f"it holds an error: {answer['error']}")
        choices = []
        for choice in sorted(answer.get("choices") or [], key=lambda choice: choice.get("index") or 0):
            text = choice.get("text") if isinstance(request.prompt, str) else choice["message"].get("content")
            # Half a surrogate pair passes as JSON, but is no character.
            text = (text or "").encode(errors="replace").decode()
            choices.append(cut_at_stop(Choice(text, str(choice.get("finish_reason") or "stop")), request.stop))
        usage = answer.get("usage")
        tokens = {}
        if usage:
            tokens = {name: int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")}
            cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
            tokens |= {"cached_tokens": cached} if cached else {}
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"it is not in the form of OpenAI's API ({type(error).__name__}: {error})") from None
    return choices, tokens, str(answer.get("model") or "")


def _retry_after(headers: httpx2.Headers) -> float | None:
    """Seconds that the server asks to wait: `retry-after-ms`, or `Retry-After` in seconds or as a date."""
    for name, scale in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            return max(float(headers[name]) / scale, 0.0)
        except (KeyError, ValueError):
            continue
    try:
        return max(email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time(), 0.0)
    except (KeyError, ValueError):
        return None


class _Throttle:
    """Holds requests back: so many at a time, so many and so many tokens a minute, fewer after a 429."""

    def __init__(self, concurrency: int, requests_per_minute: float | None, tokens_per_minute: float | None):
        self.most = self.allowed = float(concurrency)
        self.requests_per_minute, self.tokens_per_minute = requests_per_minute, tokens_per_minute
        self._under_way = 0
        self._waiting: deque[asyncio.Future] = deque()
        self._slowed_at = self._paused_until = 0.0
        # When the next request may start, by either limit
        self._request_at = self._token_at = 0.0
        # Seen so far: tokens a character of the prompt, tokens a sample
        self._per_character, self._per_sample = 0.25, None

    async def enter(self, request: SampleRequest) -> float:
        """Wait for a turn. Returns how many tokens the request is expected to take."""
        if self._under_way >= int(self.allowed):
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn  # Whoever ends it counts this request as under way.
        else:
            self._under_way += 1
        estimate = self._estimate(request) if self.tokens_per_minute else 0.0
        now = time.monotonic()
        start = max(now, self._request_at, self._token_at)
        if self.requests_per_minute:
            self._request_at = start + 60 / self.requests_per_minute
        if self.tokens_per_minute:
            self._token_at = start + 60 * estimate / self.tokens_per_minute
        try:
            if start > now:
                await asyncio.sleep(start - now)
            while (pause := self._paused_until - time.monotonic()) > 0:
                await asyncio.sleep(pause)
        except asyncio.CancelledError:
            self.leave()
            raise
        return estimate

    def leave(self) -> None:
        self._under_way -= 1
        while self._waiting and self._under_way < int(self.allowed):
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._under_way += 1

    def answered(self, request: SampleRequest, estimate: float, usage: dict[str, int], samples: int) -> None:
        self.allowed = min(self.most, self.allowed + 1 / self.allowed)
        if self.tokens_per_minute and usage and samples:
            used = usage["prompt_tokens"] + usage["completion_tokens"]
            self._token_at += 60 * (used - estimate) / self.tokens_per_minute
            per_sample = usage["completion_tokens"] / samples
            before = per_sample if self._per_sample is None else self._per_sample
            self._per_sample = 0.9 * before + 0.1 * per_sample
            per_character = usage["prompt_tokens"] / max(_characters(request), 1)
            self._per_character = 0.9 * self._per_character + 0.1 * per_character

    def slow_down(self, started: float, seconds: float) -> None:
        """After a 429 to a request of that time. One burst of them halves the number once."""
        now = time.monotonic()
        self._paused_until = max(self._paused_until, now + seconds)
        if started > self._slowed_at:
            self._slowed_at = now
            self.allowed = max(1.0, self.allowed / 2)

    def _estimate(self, request: SampleRequest) -> float:
        per_sample = request.max_tokens if self._per_sample is None else self._per_sample
        return self._per_character * _characters(request) + per_sample * request.n


def _characters(request: SampleRequest) -> int:
    if isinstance(request.prompt, str):
        return len(request.prompt)
    return sum(len(message["content"]) for message in request.prompt)


@contextmanager
def _event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own: a notebook runs one in the main thread already."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="md_trl-openai", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _cancel_and_close(clients: Iterable[openai.AsyncOpenAI]) -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for client in clients:
        await client.close()
