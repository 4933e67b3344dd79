"""Rate limits on the client's side, for requests that share one event loop."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from . import SampleRequest


class Throttle:
    r"""
    Limit the requests in flight, and the requests and tokens per minute. A 429 lowers the number in flight.

    Args:
        concurrency (`int`):
            Maximum number of requests in flight.
        requests_per_minute (`float`, *optional*):
            Maximum number of requests per minute.
        tokens_per_minute (`float`, *optional*):
            Maximum number of tokens per minute, estimated from earlier answers.
    """

    def __init__(self, concurrency: int, requests_per_minute: float | None, tokens_per_minute: float | None):
        self.limit = self.allowed = float(concurrency)
        self.requests_per_minute, self.tokens_per_minute = requests_per_minute, tokens_per_minute
        self._in_flight = 0
        self._waiting: deque[asyncio.Future] = deque()
        self._slowed_at = self._paused_until = 0.0
        # Earliest start of the next request under either limit
        self._next_by_requests = self._next_by_tokens = 0.0
        # Moving averages: tokens per character of a prompt, tokens per sample
        self._per_character, self._per_sample = 0.25, None

    async def enter(self, request: SampleRequest) -> float:
        """Wait until the request may be sent. Return the number of tokens it is expected to take."""
        if self._in_flight >= int(self.allowed):
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn  # `leave` has counted this request when it resolves the future.
        else:
            self._in_flight += 1
        expected = self._estimate(request) if self.tokens_per_minute else 0.0
        now = time.monotonic()
        start = max(now, self._next_by_requests, self._next_by_tokens)
        if self.requests_per_minute:
            self._next_by_requests = start + 60 / self.requests_per_minute
        if self.tokens_per_minute:
            self._next_by_tokens = start + 60 * expected / self.tokens_per_minute
        try:
            if start > now:
                await asyncio.sleep(start - now)
            while (pause := self._paused_until - time.monotonic()) > 0:
                await asyncio.sleep(pause)
        except asyncio.CancelledError:
            self.leave()
            raise
        return expected

    def leave(self) -> None:
        """Count a request as ended and let waiting ones in."""
        self._in_flight -= 1
        while self._waiting and self._in_flight < int(self.allowed):
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._in_flight += 1

    def answered(self, request: SampleRequest, expected: float, usage: dict[str, int], samples: int) -> None:
        """Learn from an answer: allow a little more, and replace the expected number of tokens by the real one."""
        self.allowed = min(self.limit, self.allowed + 1 / self.allowed)
        if self.tokens_per_minute and usage and samples:
            used = usage["prompt_tokens"] + usage["completion_tokens"]
            self._next_by_tokens += 60 * (used - expected) / self.tokens_per_minute
            per_sample = usage["completion_tokens"] / samples
            before = per_sample if self._per_sample is None else self._per_sample
            self._per_sample = 0.9 * before + 0.1 * per_sample
            per_character = usage["prompt_tokens"] / max(_characters(request), 1)
            self._per_character = 0.9 * self._per_character + 0.1 * per_character

    def slow_down(self, started: float, seconds: float) -> None:
        """Pause after a 429 to a request sent at `started`. A burst of them halves the number in flight once."""
        now = time.monotonic()
        self._paused_until = max(self._paused_until, now + seconds)
        if started > self._slowed_at:
            self._slowed_at = now
            self.allowed = max(1.0, self.allowed / 2)

    def _estimate(self, request: SampleRequest) -> float:
        per_sample = request.max_completion_tokens if self._per_sample is None else self._per_sample
        return self._per_character * _characters(request) + per_sample * request.n


def _characters(request: SampleRequest) -> int:
    if isinstance(request.prompt, str):
        return len(request.prompt)
    return sum(len(message["content"]) for message in request.prompt)
