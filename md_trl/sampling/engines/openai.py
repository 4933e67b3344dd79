"""Samples from any server that speaks OpenAI's API: chat for messages, plain completions for texts."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import openai
from openai.types import Completion
from openai.types.chat import ChatCompletion

from . import Choice, SampleRequest, SampleResult, cut_at_stop, derive_seed


class OpenAIEngine:
    r"""
    Samples from an OpenAI-compatible server.

    The key is taken from the environment variable `OPENAI_API_KEY` and goes nowhere but to the server. A server on
    this machine needs none.

    Time-outs, lost connections, 429 and 5xx are retried with growing pauses, or when the server says so. What still
    fails comes back as a result with an `error`. A server that is not there, a refused key and an unknown model end
    the run: nothing more is asked, what is under way is waited for.

    Args:
        model (`str`):
            Name of the model, as the server knows it.
        base_url (`str`, *optional*):
            Root of the API, for example `http://127.0.0.1:8000/v1`. Defaults to the environment variable
            `OPENAI_BASE_URL`, then to OpenAI's own.
        concurrency (`int`, *optional*, defaults to `16`):
            Requests under way at the same time.
        max_retries (`int`, *optional*, defaults to `6`):
            How often a request is repeated.
        timeout (`float`, *optional*, defaults to `300.0`):
            Seconds after which a request counts as lost.

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
    ):
        if concurrency < 1:
            raise ValueError(f"`concurrency` is {concurrency}. Use 1 or more.")
        self.model = model
        self.base_url = base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        self.concurrency = concurrency
        self.max_retries = max_retries
        self.timeout = timeout
        url = urlsplit(self.base_url)
        if url.username or url.password:
            raise ValueError("`base_url` holds a name or password. Put the key in `OPENAI_API_KEY` instead.")
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"`base_url` is {self.base_url!r}. Write it as `http://127.0.0.1:8000/v1`.")
        self._key = os.environ.get("OPENAI_API_KEY") or ("none" if _is_loopback(url.hostname) else "")
        if not self._key:
            raise ValueError(
                f"No key for {self.base_url}. Set the environment variable `OPENAI_API_KEY` (to any text if the "
                "server wants none)."
            )
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
        with _event_loop() as loop:
            client = self._client()
            try:
                asyncio.run_coroutine_threadsafe(self._probe(client), loop).result()
                under_way, fatal = 0, None
                while True:
                    while not fatal and under_way < self.concurrency and (request := next(requests, None)) is not None:
                        future = asyncio.run_coroutine_threadsafe(self._ask(client, request), loop)
                        future.add_done_callback(arrived.put)
                        under_way += 1
                    if not under_way:
                        break
                    try:
                        result = arrived.get().result()
                    except (ConnectionError, ValueError) as error:
                        fatal, result = error, None
                    under_way -= 1
                    if result is not None:
                        yield result
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
                asyncio.run_coroutine_threadsafe(_cancel_and_close(client), loop).result()

    def _client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            api_key=self._key, base_url=self.base_url, max_retries=self.max_retries, timeout=self.timeout
        )

    async def _probe(self, client: openai.AsyncOpenAI) -> None:
        """Find out before the first request whether there is a server that lets us in."""
        try:
            await client.with_options(max_retries=1, timeout=10).models.list()
        except openai.APITimeoutError:
            pass  # A busy server: it accepted the connection, and requests have a longer time-out.
        except openai.APIConnectionError as error:
            raise self._no_server(error) from None
        except openai.AuthenticationError as error:
            raise self._no_entry(error) from None
        except (openai.APIError, ValueError):
            pass  # Not every server lists its models (`transformers serve` fails offline).

    async def _ask(self, client: openai.AsyncOpenAI, request: SampleRequest) -> SampleResult:
        try:
            answer = await self._create(client, request)
            choices = _read(answer, request)
        except openai.AuthenticationError as error:
            raise self._no_entry(error) from None
        except openai.NotFoundError as error:
            raise ValueError(
                f"{self.base_url} does not know the model {self.model!r} or has no such API ({self._message(error)}). "
                "Check `--model` and `--base_url` (it usually ends in /v1)."
            ) from None
        except openai.APITimeoutError:
            return SampleResult(request, error=f"no answer within {self.timeout:g} s")
        except openai.APIConnectionError:
            await self._probe(client)
            return SampleResult(request, error="the connection was lost")
        except (openai.BadRequestError, openai.PermissionDeniedError, openai.UnprocessableEntityError) as error:
            if not self._accepted:
                raise ValueError(
                    f"{self.base_url} refuses what it is asked: {self._message(error)}. Nothing more was asked."
                ) from None
            return SampleResult(request, error=self._message(error), retry=False)
        except openai.APIError as error:
            return SampleResult(request, error=self._message(error))
        except ValueError as error:
            return SampleResult(request, error=f"the answer cannot be read: {error}")
        self._accepted = True
        usage = {}
        if answer.usage is not None:
            usage = {
                "prompt_tokens": answer.usage.prompt_tokens,
                "completion_tokens": answer.usage.completion_tokens,
            }
        return SampleResult(request, choices, usage)

    async def _create(self, client: openai.AsyncOpenAI, request: SampleRequest) -> ChatCompletion | Completion:
        arguments = {
            "model": self.model,
            "n": request.n,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "max_tokens": request.max_tokens,
            "stop": list(request.stop) or openai.omit,
            "seed": derive_seed(request.seed, request.question_id, request.path, request.first_index),
        }
        if isinstance(request.prompt, str):
            return await client.completions.create(prompt=request.prompt, **arguments)
        return await client.chat.completions.create(messages=request.prompt, **arguments)

    def _no_server(self, error: openai.APIConnectionError) -> ConnectionError:
        cause = f" ({self._clean(str(error.__cause__))})" if error.__cause__ else ""
        return ConnectionError(
            f"No server answers at {self.base_url}{cause}. Start one there, for example `md-trl teacher --port 8000`, "
            f"`vllm serve {self.model}` or `transformers serve`, or correct `--base_url`. What has arrived is stored: "
            "run the same command again to go on."
        )

    def _no_entry(self, error: openai.AuthenticationError) -> ValueError:
        return ValueError(
            f"{self.base_url} refuses the key (HTTP {error.status_code}). Set the environment variable "
            "`OPENAI_API_KEY` to a valid one."
        )

    def _message(self, error: openai.APIError) -> str:
        message = error.message
        if isinstance(error.body, dict) and isinstance(error.body.get("message"), str):
            message = error.body["message"]
        if isinstance(error, openai.APIStatusError):
            message = f"HTTP {error.status_code}: {message}"
        return self._clean(message)

    def _clean(self, text: str) -> str:
        """One line, not too long, and without the key, which some servers repeat."""
        text = " ".join(text.replace(self._key, "***").split())
        return text if len(text) <= 300 else f"{text[:297]}..."


def _read(answer: ChatCompletion | Completion, request: SampleRequest) -> list[Choice]:
    """The choices of an answer, in their order. The client does not check what it received."""
    if not isinstance(answer, ChatCompletion | Completion):
        raise ValueError("it is no JSON object")
    choices = []
    for choice in sorted(answer.choices or [], key=lambda choice: choice.index or 0):
        text = choice.text if isinstance(answer, Completion) else choice.message and choice.message.content
        # Half a surrogate pair passes as JSON, but is no character.
        text = (text or "").encode(errors="replace").decode()
        choices.append(cut_at_stop(Choice(text, choice.finish_reason or "stop"), request.stop))
    return choices


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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


async def _cancel_and_close(client: openai.AsyncOpenAI) -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.close()
