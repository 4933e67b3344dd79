"""Samples from any server that speaks OpenAI's API: chat completions for messages, plain completions for text."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
import queue
import random
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx2
import openai

from ...errors import InputError, check_at_least_one
from ...prompts import named_prompt_format
from ..api_keys import NO_KEY, find_key
from . import CONCURRENCY, MAX_RETRIES, TIMEOUT, SampleRequest, SampleResult, check_params
from .openai_format import read_answer, request_body, retry_after
from .throttle import Throttle


logger = logging.getLogger(__name__)

# Seconds before a request is repeated: the first pause and the longest one. Each pause doubles the one before, and
# jitter shortens it by up to a half.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
# A server that asks for a longer wait (in seconds) ends the run.
LONGEST_RETRY_AFTER = 600.0
# Number of requests in flight that share one client.
CONNECTIONS_PER_CLIENT = 8


class OpenAIEngine:
    r"""
    Samples from an OpenAI-compatible server.

    The API key is read from the environment variable `OPENAI_API_KEY` or the system's keyring and sent to the server
    only, see [`~md_trl.sampling.api_keys.find_key`].

    What happens when something goes wrong depends on whether it may have cost money:

    - 429, 5xx and refused connections cost nothing. They are retried after the pause that the server asks for, or with
      exponential backoff and jitter. A 429 halves the number of requests in flight; every answer raises it a little.
    - A timeout, a lost connection or a malformed response may have been billed. It is not retried here but returned as
      a result with `error` and `lost=True`, so that the caller can account for it.
    - A refused request (400 and the like) is returned with `retry=False`. If it asked for several samples and the
      server has never returned several, it is first tried with `n=1`: some servers do not accept `n > 1`. A server
      that ignores `n` is detected by [`~md_trl.sampling.run.SamplingRun`].
    - A server that refuses log-probabilities is asked without them from then on, which is reported once.
    - No server, a refused key, an exhausted quota, an unknown model, or a server that refuses the first requests end
      the run: nothing more is sent, and the requests in flight are waited for.

    Log-probabilities are asked for with every request; they cost nothing, and neither the store's settings nor the
    samples depend on them. Servers differ in what they return: vLLM, llama.cpp and Ollama report the probabilities of
    the model before the sampling temperature, as [`~md_trl.records.Choice`] wants them; OpenAI's documentation does
    not say. A few servers apply the temperature first, which an answer does not show.

    Args:
        model (`str`):
            Name of the model on the server.
        base_url (`str`, *optional*):
            Root of the API, for example `http://127.0.0.1:8000/v1`. The environment variable `OPENAI_BASE_URL`, then
            OpenAI's own API, by default.
        concurrency (`int`, *optional*, defaults to `16`):
            Maximum number of requests in flight.
        max_retries (`int`, *optional*, defaults to `6`):
            Maximum number of retries per request.
        timeout (`float`, *optional*, defaults to `300.0`):
            Seconds after which a request counts as lost.
        requests_per_minute (`float`, *optional*):
            Rate limit on requests.
        tokens_per_minute (`float`, *optional*):
            Rate limit on tokens, which are estimated from earlier answers.

    Raises:
        `ValueError`: No key for a server on another machine, or a key inside `base_url`.

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
        concurrency: int = CONCURRENCY,
        max_retries: int = MAX_RETRIES,
        timeout: float = TIMEOUT,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
    ):
        check_at_least_one("concurrency", concurrency)
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
        # What the server has shown so far: that it accepts requests, and that it accepts `n > 1`.
        self._accepted = self._accepted_several = False
        self.asks_logprobs, self._logprobs_accepted = True, False

    def student_prompt_format(self, prompt_format: str = "auto") -> str:
        r"""
        Decide how a student on the server is asked.

        Args:
            prompt_format (`str`, *optional*, defaults to `"auto"`):
                `"plain"`, `"chat"`, or `"auto"` for the format in the student's `md_trl.json`, which can be read if
                the name of the model is that of its folder or its Hub id.

        Returns:
            `str`: `"plain"` or `"chat"`.

        Raises:
            `ValueError`: The format is not known, or contradicts the student's `md_trl.json`.
        """
        return named_prompt_format(self.model, prompt_format)

    def generate(self, requests: Iterable[SampleRequest]) -> Iterator[SampleResult]:
        r"""
        Send all requests, a limited number of them at a time.

        Args:
            requests (`Iterable[SampleRequest]`):
                Pulled one by one, when there is capacity.

        Yields:
            [`SampleResult`]: Each one as it arrives.

        Raises:
            `ConnectionError`: No server answers at the URL.
            `ValueError`: The server refuses the key, does not know the model, or refuses the first requests.
        """
        requests = iter(requests)
        arrived: queue.SimpleQueue[asyncio.Future] = queue.SimpleQueue()
        self._throttle = Throttle(self.concurrency, self.requests_per_minute, self.tokens_per_minute)
        with _event_loop() as loop:
            clients = self._clients()
            turns = itertools.cycle(clients)
            try:
                asyncio.run_coroutine_threadsafe(self._probe(clients[0]), loop).result()
                in_flight: dict[asyncio.Future, SampleRequest] = {}
                fatal = None
                while True:
                    while not fatal and len(in_flight) < self.concurrency:
                        request = next(requests, None)
                        if request is None:
                            break
                        future = asyncio.run_coroutine_threadsafe(self._ask(next(turns), request), loop)
                        in_flight[future] = request
                        future.add_done_callback(arrived.put)
                    if not in_flight:
                        break
                    future = arrived.get()
                    request = in_flight.pop(future)
                    try:
                        yield future.result()
                    except (ConnectionError, ValueError) as error:
                        fatal = error
                        yield SampleResult(request, error=str(error), lost=isinstance(error, ConnectionError))
                if fatal:
                    raise fatal
            except KeyboardInterrupt:
                # Answers that have arrived are paid for.
                while not arrived.empty():
                    future = arrived.get()
                    if future.exception() is None:
                        yield future.result()
                raise
            finally:
                asyncio.run_coroutine_threadsafe(_cancel_and_close(clients), loop).result()

    def _clients(self) -> list[openai.AsyncOpenAI]:
        # At every request a client checks each of its idle connections. Several clients with few connections each are
        # much cheaper than a single client with all of them.
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
        """Check that there is a server and that it accepts the key."""
        try:
            await client.with_options(max_retries=1, timeout=10).models.list()
        except openai.APITimeoutError:
            pass  # The server accepted the connection but is busy. Requests have a longer timeout.
        except openai.APIConnectionError as error:
            raise self.connection_error(error) from None
        except openai.AuthenticationError as error:
            raise self.authentication_error(error) from None
        except (openai.APIError, ValueError):
            pass  # Not every server lists its models; `transformers serve` fails to when it is offline.

    async def _ask(self, client: openai.AsyncOpenAI, request: SampleRequest) -> SampleResult:
        """Ask for the samples of a request, or for the first of them if the server refuses `n > 1`."""
        check_params(request.params, request.n)
        result = await self._ask_with_logprobs(client, request)
        if not result.retry and request.n > 1 and not self._accepted_several:
            single = await self._ask_with_logprobs(client, replace(request, n=1))
            if single.retry:
                return replace(single, request=request)
        if not result.retry and not self._accepted:
            raise InputError(f"{self.base_url} refuses the requests: {result.error}. Nothing more was sent.")
        return result

    async def _ask_with_logprobs(self, client: openai.AsyncOpenAI, request: SampleRequest) -> SampleResult:
        """Ask for log-probabilities, and again without them if the server refuses and has never accepted that."""
        result = await self._ask_until_answered(client, request)
        if result.retry or self._logprobs_accepted or not self.asks_logprobs:
            return result
        without = await self._ask_until_answered(client, request, logprobs=False)
        if without.error is None:
            self.refuse_logprobs(result.error)
        return without

    def refuse_logprobs(self, reason: str | None) -> None:
        """Ask for no log-probabilities any more."""
        if self.asks_logprobs:
            self.asks_logprobs = False
            logger.warning(
                "%s gives no log-probabilities (%s). The thoughts have none, so votes weighted by likelihood weigh "
                "them equally.",
                self.base_url,
                reason,
            )

    def request_body(self, request: SampleRequest, logprobs: bool = True) -> tuple[str, dict[str, Any]]:
        """Write a request, see [`~md_trl.sampling.engines.openai_format.request_body`]."""
        return request_body(self.model, request, logprobs and self.asks_logprobs)

    async def _ask_until_answered(
        self, client: openai.AsyncOpenAI, request: SampleRequest, logprobs: bool = True
    ) -> SampleResult:
        """Retry errors that cost nothing."""
        faults: list[str] = []
        while True:
            pause = min(FIRST_PAUSE * 2 ** len(faults), LONGEST_PAUSE) * random.uniform(0.5, 1)
            last = len(faults) >= self.max_retries
            try:
                return replace(await self._ask_once(client, request, logprobs, last), faults=faults)
            except _Retry as fault:
                if last:
                    return SampleResult(request, error=fault.message, faults=faults)
                faults.append(fault.message)
                # Jitter keeps clients apart that were told to come back at the same time.
                await asyncio.sleep(pause if fault.seconds is None else fault.seconds + 0.1 * pause)

    async def _ask_once(
        self, client: openai.AsyncOpenAI, request: SampleRequest, logprobs: bool, last: bool
    ) -> SampleResult:
        endpoint, body = self.request_body(request, logprobs)
        expected = await self._throttle.enter(request)
        started = time.monotonic()
        try:
            # The client's own timeout is the one between two packets.
            answer = await asyncio.wait_for(client.post(endpoint, cast_to=httpx2.Response, body=body), self.timeout)
        except (TimeoutError, openai.APITimeoutError):
            return SampleResult(request, error=f"no answer within {self.timeout:g} s", lost=True)
        except openai.APIConnectionError as error:
            if not isinstance(error.__cause__, httpx2.ConnectError):
                await self._probe(client)
                return SampleResult(request, error="the connection was lost", lost=True)
            if last:
                await self._probe(client)
            raise _Retry("no connection") from None
        except openai.APIStatusError as error:
            # Raised here and not in the method: a frame whose local variables hold `error`, which may repeat the key,
            # would be part of the traceback.
            refusal = self._refusal(error, started)
            if isinstance(refusal, Exception):
                raise refusal from None
            return SampleResult(request, error=refusal, retry=False)
        except openai.APIError as error:
            return SampleResult(request, error=self.message(error), lost=True)
        else:
            self._logprobs_accepted |= "logprobs" in body
            return self._answered(request, answer.content, expected)
        finally:
            self._throttle.leave()

    def _refusal(self, error: openai.APIStatusError, started: float) -> str | InputError | _Retry:
        """What an HTTP error means: a message if this request is refused, else the exception to raise."""
        if isinstance(error, openai.AuthenticationError):
            return self.authentication_error(error)
        message, seconds = self.message(error), retry_after(error.response.headers)
        if isinstance(error, openai.NotFoundError):
            return InputError(
                f"{self.base_url} does not know the model {self.model!r} or has no such API ({message}). Check "
                "`--model` and `--base_url` (which usually ends in /v1)."
            )
        if error.code == "insufficient_quota" or (seconds or 0) > LONGEST_RETRY_AFTER:
            return InputError(
                f"{self.base_url} reports an exhausted quota or asks to wait too long ({message}). All samples "
                "received are stored: run the same command again later."
            )
        if error.status_code == 429:
            self._throttle.slow_down(started, seconds or 0.0)
        # Some servers fail (500) where others refuse.
        elif error.status_code not in (408, 409) and (error.status_code < 500 or "logprob" in message):
            return message
        return _Retry(message, seconds)

    def _answered(self, request: SampleRequest, data: bytes, expected: float) -> SampleResult:
        try:
            choices, usage, served = read_answer(data, not isinstance(request.prompt, str), request.params)
        except ValueError as error:
            return SampleResult(request, error=f"the answer cannot be read: {self.clean(str(error))}", lost=True)
        self._accepted = True
        self._accepted_several |= len(choices) > 1
        self._throttle.answered(request, expected, usage, len(choices))
        return SampleResult(request, choices, usage, served=served)

    def sync_client(self) -> openai.OpenAI:
        """A synchronous client, for everything that is not sampling."""
        return openai.OpenAI(
            api_key=self._key, base_url=self.base_url, max_retries=self.max_retries, timeout=self.timeout
        )

    def connection_error(self, error: openai.APIConnectionError) -> ConnectionError:
        """The error to raise if no server answers."""
        cause = f" ({self.clean(str(error.__cause__))})" if error.__cause__ else ""
        if _is_unknown_host(error):
            return ConnectionError(
                f"The host name of {self.base_url} cannot be resolved{cause}. Check the spelling of `--base_url` and "
                "the network. All samples received are stored: run the same command again to continue."
            )
        return ConnectionError(
            f"No server answers at {self.base_url}{cause}. Start one there, for example with `md-trl teacher --port "
            f"8000`, `vllm serve {self.model}` or `transformers serve`, or correct `--base_url`. All samples received "
            "are stored: run the same command again to continue."
        )

    def authentication_error(self, error: openai.AuthenticationError) -> InputError:
        """The error to raise if the server does not accept the key, or wants one and there is none."""
        status = f"(HTTP {error.status_code})"
        if self._key == NO_KEY:
            problem = f"wants a key {status}, and the environment variable `OPENAI_API_KEY` is not set. Set it"
        else:
            problem = f"refuses the key {status}: it is wrong or has expired. Set `OPENAI_API_KEY`"
        return InputError(
            f"{self.base_url} {problem} to a valid key. All samples received are stored: run the same command again "
            "to continue."
        )

    def message(self, error: openai.APIError) -> str:
        """What the server says, in one line, without a final period."""
        message = error.message
        if isinstance(error.body, dict) and isinstance(error.body.get("message"), str):
            message = error.body["message"]
        if isinstance(error, openai.APIStatusError):
            message = f"HTTP {error.status_code}: {message}"
        return self.clean(message.rstrip().rstrip("."))

    def clean(self, text: str) -> str:
        """Shorten a text to one line and remove the key, which some servers repeat."""
        if self._key != NO_KEY:
            text = text.replace(self._key, "***")
        text = " ".join(text.split())
        return text if len(text) <= 300 else f"{text[:297]}..."


def _is_unknown_host(error: BaseException) -> bool:
    """Return whether a connection failed because there is no address for the name of the host."""
    while error is not None:
        if isinstance(error, socket.gaierror):
            return True
        error = error.__cause__ or error.__context__
    return False


class _Retry(Exception):
    """An error that cost nothing and may pass, with the seconds that the server asks to wait."""

    def __init__(self, message: str, seconds: float | None = None):
        super().__init__(message)
        self.message, self.seconds = message, seconds


@contextmanager
def _event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own, because notebooks already run one in the main thread."""
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
