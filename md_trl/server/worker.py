"""The thread that owns the student, and answers all callers together.

Requests wait in one queue, first come, first served. A call of the reasoner takes the first one and all that follow it
with the same settings; after each round, more of them join. A request with other settings lets nobody pass, so it
begins as soon as those before it are answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

from ..errors import InputError
from ..openai_requests import RequestError
from ..reasoner import Listener, MixedReasoner, QuestionError, Reasoned
from ..records import Thought
from .replies import TokenCounts


logger = logging.getLogger(__name__)

MAX_WAITING = 1024
"""Number of requests that may wait. Further ones are refused."""
QUESTIONS_PER_CALL = 256
"""Number of questions after which a call takes no more, so that what it remembers of them is freed at times."""
SECONDS_TO_STOP = 5.0
"""How long `Worker.stop` waits for the thread."""


class Job:
    r"""
    A question that somebody waits for. It is created on the event loop of the one who waits.

    Args:
        question (`str`):
            Text of the question.
        reasoner ([`~md_trl.reasoner.MixedReasoner`]):
            Reasoner with the settings of the request.

    Attributes:
        hung_up (`bool`):
            Whether nobody waits any more.
    """

    def __init__(self, question: str, reasoner: MixedReasoner):
        self.question, self.reasoner = question, reasoner
        self.settings = (reasoner.rule, reasoner.params)
        self.tokens = TokenCounts()
        self.hung_up = False
        self.is_done = False
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[list[Thought] | Reasoned | RequestError] = asyncio.Queue()

    async def next(self) -> list[Thought] | Reasoned:
        """Wait for new thoughts or for the answer. Raise the error if there is none."""
        event = await self._events.get()
        if isinstance(event, RequestError):
            raise event
        return event

    async def answer(self) -> Reasoned:
        """Wait for the answer."""
        while not isinstance(event := await self.next(), Reasoned):
            pass
        return event

    def post(self, event: list[Thought] | Reasoned | RequestError) -> None:
        """Tell the one who waits, from any thread."""
        self.is_done = not isinstance(event, list)
        with contextlib.suppress(RuntimeError):  # the event loop has ended, and so has the one who waited
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


class Worker:
    """The queue and its thread."""

    def __init__(self):
        self._waiting: deque[Job] = deque()
        self._taken: list[Job] = []  # by the thread, and perhaps unanswered
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="md-trl worker", daemon=True)
        self.is_stopping = False

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Refuse all requests that are unanswered, and wait for the thread to end its round."""
        self.refuse_all()
        self._thread.join(SECONDS_TO_STOP)

    def refuse_all(self) -> None:
        """Tell all who wait that the server is shutting down. The thread ends after its current round."""
        with self._changed:
            self.is_stopping = True
            for job in (*self._waiting, *self._taken):
                if not job.is_done:
                    job.post(_shutting_down())
            self._waiting.clear()
            self._changed.notify_all()

    def submit(self, job: Job) -> None:
        """Queue a question. Raise a `RequestError` if too many are waiting."""
        with self._changed:
            if self.is_stopping:
                raise _shutting_down()
            if len(self._waiting) >= MAX_WAITING:
                message = f"{MAX_WAITING} requests are waiting already. Try again later."
                raise RequestError(429, message, code="rate_limit_exceeded")
            self._waiting.append(job)
            self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """Number of requests that nobody works on yet."""
        with self._changed:
            return sum(not job.hung_up for job in self._waiting)

    def take(self, settings: Any, limit: int) -> list[Job]:
        """Take the first requests out of the queue, as long as they have these settings."""
        taken: list[Job] = []
        with self._changed:
            while self._waiting and len(taken) < limit:
                if self._waiting[0].hung_up:
                    self._waiting.popleft()
                elif self._waiting[0].settings == settings:
                    taken.append(self._waiting.popleft())
                else:
                    break
            self._taken = [*(job for job in self._taken if not job.is_done), *taken]
        return taken

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self.is_stopping)
                if self.is_stopping:
                    return
                settings = self._waiting[0].settings
            if jobs := self.take(settings, QUESTIONS_PER_CALL):
                self._answer(_Call(self, jobs))

    def _answer(self, call: _Call) -> None:
        try:
            for index, reasoned in call.jobs[0].reasoner.stream([job.question for job in call.jobs], call):
                call.jobs[index].post(reasoned)
            error = _shutting_down()  # of those that were dropped
        except ConnectionError as lost:
            logger.error("%s", lost)
            error = RequestError(502, "The server of the student does not answer. Try again later.")
        except Exception as failure:
            # Perhaps because of a single question, so each gets a call of its own.
            if len(unanswered := call.unanswered()) > 1:
                for job in unanswered:
                    self._answer(_Call(self, [job], may_grow=False))
                return
            if isinstance(failure, InputError):  # the engine refuses to go on
                error = RequestError(502, f"The student could not be asked: {failure}")
            else:
                logger.exception("A question could not be answered.")
                error = RequestError(500, "The question could not be answered. The log of the server says why.")
        for job in call.unanswered():
            job.post(error)


class _Call(Listener):
    """A call of the reasoner. Questions go by their place in `jobs`."""

    def __init__(self, worker: Worker, jobs: list[Job], may_grow: bool = True):
        self.jobs = jobs
        self._worker, self._may_grow = worker, may_grow

    def unanswered(self) -> list[Job]:
        return [job for job in self.jobs if not job.is_done]

    def join(self) -> Sequence[str]:
        room = QUESTIONS_PER_CALL - len(self.jobs)
        jobs = self._worker.take(self.jobs[0].settings, room) if self._may_grow else []
        self.jobs += jobs
        return [job.question for job in jobs]

    def is_wanted(self, index: int) -> bool:
        return not (self.jobs[index].hung_up or self._worker.is_stopping)

    def sampled(self, index: int, thoughts: Sequence[Thought], usage: dict[str, Any]) -> None:
        self.jobs[index].tokens.add(usage)
        self.jobs[index].post(list(thoughts))

    def failed(self, index: int, error: QuestionError) -> None:
        message = f"The question could not be answered: {error.reason}."
        if error.refused:
            self.jobs[index].post(RequestError(400, message, "messages"))
        else:
            self.jobs[index].post(RequestError(502, message))


def _shutting_down() -> RequestError:
    return RequestError(503, "The server is shutting down.")
