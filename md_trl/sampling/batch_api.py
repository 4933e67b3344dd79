"""
The OpenAI Batch API: requests go up in files, answers come back within a day at half the price.

A batch is a row of the store, written before each step: made (samples are claimed for it), uploaded (`file_id`),
created (`batch_id`), finished. Kill the process at any moment, or switch the machine off, and run the same command
again:

| killed while it was | the next run |
| --- | --- |
| made, not uploaded | gives its claims back: nothing was bought |
| uploaded, its `batch_id` not known | asks the server for a batch of that file, and creates one if there is none |
| created | waits for it and fetches its results |
| finished at the server, results partly stored | fetches them again; what is stored stays as it is |

Claims of a batch belong to the batch and not to the process, so that no other run buys the same samples meanwhile.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import openai
from tqdm.auto import tqdm

from ..errors import InputError
from ..records import Question
from ..store import Claim, Store
from ..store.batches import Batch, OpenRequest
from .engines import Prompt, SampleRequest
from .engines.openai import OpenAIEngine, read_answer, request_body
from .ledger import Budget, Price, most_tokens
from .sampler import Job, Lacking, SampleSummary


logger = logging.getLogger(__name__)

# The API's limits for one file.
MAX_REQUESTS, MAX_BYTES = 50_000, 200_000_000
# How often rows that brought nothing are handed in again.
ROUNDS = 3
ENDED = ("completed", "failed", "expired", "cancelled")


def sample_in_batches(
    questions: Sequence[Question],
    paths: Sequence[str],
    n: int,
    engine: OpenAIEngine,
    store: Store,
    prompt: Callable[[Question, str], Prompt],
    *,
    prices: Mapping[str, Price] | None = None,
    max_cost: float | None = None,
    poll_seconds: float = 60.0,
    max_requests: int = MAX_REQUESTS,
    max_bytes: int = MAX_BYTES,
    progress: bool = True,
    **parameters,
) -> SampleSummary:
    r"""
    Bring every question to `n` samples on every path through the Batch API.

    Batches of earlier runs at the same server are taken up first. Rows that failed are handed in again, and only they.

    Args:
        questions (`Sequence[Question]`), paths (`Sequence[str]`), n (`int`), store ([`Store`]), prompt (`Callable`),
        prices (`Mapping[str, Price]`, *optional*), max_cost (`float`, *optional*):
            As in [`~md_trl.sampling.sampler.sample`].
        engine ([`~md_trl.sampling.engines.openai.OpenAIEngine`]):
            The server and the model.
        poll_seconds (`float`, *optional*, defaults to `60.0`):
            Pause between two looks at the batches.
        max_requests (`int`, *optional*, defaults to `50_000`), max_bytes (`int`, *optional*, defaults to
        `200_000_000`):
            Most requests and bytes of one file.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.
        parameters (`Any`):
            Other parameters of [`~md_trl.sampling.sampler.sample`].

    Returns:
        [`~md_trl.sampling.sampler.SampleSummary`]: what was done.

    Raises:
        `ValueError`: arguments that cannot be sampled with, or a server that refuses to.
        `ConnectionError`: no server.
    """
    if max_cost is not None and prices is None:
        raise InputError("`max_cost` needs the prices: give `prices=` (`--prices`).")
    start = time.perf_counter()
    job = Job(questions, paths, n, engine.model, store, prompt, **parameters)
    budget = None if prices is None else Budget(store, prices, engine.model, max_cost)
    summary = SampleSummary(settings=job.settings)
    runner = _Runner(job, engine, budget, summary, poll_seconds, max_requests, max_bytes)
    total = len(job.pairs) * n
    lacking = sum(count for *_, count in job.missing())
    with (
        engine.sync_client() as client,
        tqdm(
            total=total, initial=total - lacking, unit="thought", desc=f"{engine.model} (batch)", disable=not progress
        ) as bar,
    ):
        try:
            runner.resume(client, bar)
            for _ in range(ROUNDS):
                if not runner.hand_in(client):
                    break
                runner.wait(client, bar)
        except openai.AuthenticationError as error:
            raise engine.no_entry(error) from None
        except openai.APIConnectionError as error:
            raise engine.no_server(error) from None
        except openai.APIStatusError as error:
            raise InputError(
                f"{engine.base_url} refuses batches: {engine.message(error)}. Does it have a Batch API? What was "
                "handed in is kept: run the same command again to go on."
            ) from None
    summary.missing = sum(count for *_, count in job.missing())
    summary.seconds = time.perf_counter() - start
    if budget:
        summary.cost = budget.price.cost(
            summary.prompt_tokens, summary.cached_tokens, summary.completion_tokens, batch=True
        )
    if summary.missing:
        errors = "".join(f"\n  {count} requests: {error}" for error, count in summary.errors.items())
        logger.warning(
            f"{summary.missing} of {total} samples are still missing"
            + (f": more could have brought the store above {max_cost:g}." if summary.over_budget else ".")
            + f" Run the same command again to ask for them only.{errors}"
        )
    return summary


class _Runner:
    """Takes one call's batches from step to step."""

    def __init__(
        self,
        job: Job,
        engine: OpenAIEngine,
        budget: Budget | None,
        summary: SampleSummary,
        poll_seconds: float,
        max_requests: int,
        max_bytes: int,
    ):
        self.job, self.store, self.engine, self.budget, self.summary = job, job.store, engine, budget, summary
        self.poll_seconds, self.max_requests, self.max_bytes = poll_seconds, max_requests, max_bytes
        self._refused: set[tuple[str, str]] = set()

    def resume(self, client: openai.OpenAI, bar: tqdm) -> None:
        """Take up what earlier runs have left."""
        for batch in self.store.batches.take(self.engine.base_url):
            if batch.file_id is None:
                self.store.batches.finish(batch.id, "dropped", "the batch was not handed in")
            elif batch.batch_id is None:
                known = next((found for found in client.batches.list() if found.input_file_id == batch.file_id), None)
                if known:
                    self.store.batches.update(batch.id, batch_id=known.id, status=known.status)
                else:
                    self._create(client, batch)
        self.wait(client, bar)

    def hand_in(self, client: openai.OpenAI) -> int:
        """Claim what is missing, and hand it in, file by file. Returns how many requests that made."""
        before = self.summary.requests
        lacking = deque(pair for pair in self.job.missing() if (pair[0].id, pair[1]) not in self._refused)
        self.summary.over_budget = False
        while lacking and not self.summary.over_budget:
            # A file has one endpoint.
            first = self.job.prompt(*lacking[0][:2])
            batch = self.store.batches.add(self.engine.base_url, self._endpoint(first))
            with tempfile.TemporaryFile() as file:
                lacking = self._fill(file, batch, self._endpoint(first), lacking)
                if file.tell() == 0:
                    self.store.batches.finish(batch, "dropped", "nothing could be asked for")
                    continue
                file.seek(0)
                uploaded = client.files.create(file=(f"md_trl-{batch}.jsonl", file), purpose="batch")
            self.store.batches.update(batch, file_id=uploaded.id, status="uploaded")
            self._create(client, Batch(batch, self._endpoint(first), uploaded.id, None))
        return self.summary.requests - before

    def _fill(self, file: BinaryIO, batch: int, endpoint: str, lacking: deque[Lacking]) -> deque[Lacking]:
        """Claim samples and write their requests until the file is full. Returns what is for other files."""
        left: deque[Lacking] = deque()
        requests = 0
        while lacking:
            question, path, setting, missing = lacking.popleft()
            text = self.job.prompt(question, path)
            if self._endpoint(text) != endpoint:
                left.append((question, path, setting, missing))
                continue
            most = most_tokens(text)
            # With numbers at their longest
            length = (
                len(self._line(self.job.request(question, path, text, Claim(2**40, 2**31, missing)), endpoint)) + 9
            )
            full = False

            def allow(samples: list[int], most: int = most, length: int = length, before: int = requests) -> int:
                nonlocal full
                full = before + len(samples) > self.max_requests
                full |= file.tell() + len(samples) * length > self.max_bytes
                if full or not self.budget:
                    return 0 if full else len(samples)
                allowed = self.budget.allows(most, sum(samples) * self.job.max_tokens, len(samples), batch=True)
                return len(samples) if allowed else 0

            claims, _ = self.store.claims.claim(
                question.id, path, setting, self.job.n,
                max_prompt_tokens=most, max_completion_tokens=self.job.max_tokens, batch=batch, allow=allow,
            )  # fmt: skip
            if full and not requests:
                raise InputError(
                    f"The request for {question.id!r} ({path}) has {length:,} bytes; a file may have "
                    f"{self.max_bytes:,} bytes and {self.max_requests:,} requests. Shorten the prompt."
                )
            if full:
                lacking.appendleft((question, path, setting, missing))
                break
            if self.budget and self.budget.refused:
                self.budget.refused, self.summary.over_budget = False, True
                break
            for claim in claims:
                file.write(self._line(self.job.request(question, path, text, claim), endpoint))
                requests += 1
        self.summary.requests += requests
        return lacking + left

    def _endpoint(self, prompt: Prompt) -> str:
        root = urlsplit(self.engine.base_url).path.rstrip("/")
        return f"{root}/completions" if isinstance(prompt, str) else f"{root}/chat/completions"

    def _line(self, request: SampleRequest, endpoint: str) -> bytes:
        _, body = request_body(self.engine.model, request)
        line = {"custom_id": str(request.key), "method": "POST", "url": endpoint, "body": body}
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"

    def _create(self, client: openai.OpenAI, batch: Batch) -> None:
        # Not repeated: the server may have created it though the answer was lost. The next run looks for it.
        created = client.with_options(max_retries=0).batches.create(
            input_file_id=batch.file_id, endpoint=batch.endpoint, completion_window="24h"
        )
        self.store.batches.update(batch.id, batch_id=created.id, status=created.status)

    def wait(self, client: openai.OpenAI, bar: tqdm) -> None:
        """Wait for all batches, and store what they bring."""
        waiting = [batch for batch in self.store.batches.take(self.engine.base_url) if batch.batch_id is not None]
        while waiting:
            for batch in list(waiting):
                found = client.batches.retrieve(batch.batch_id)
                self.store.batches.update(batch.id, status=found.status)
                if found.status in ENDED:
                    self._fetch(client, batch, found, bar)
                    waiting.remove(batch)
            bar.set_postfix_str(f"{len(waiting)} batches under way", refresh=True)
            if waiting:
                time.sleep(self.poll_seconds)

    def _fetch(self, client: openai.OpenAI, batch: Batch, found: openai.types.Batch, bar: tqdm) -> None:
        # What an earlier run has stored is not open any more.
        still_open = {request.key: request for request in self.store.batches.open_requests(batch.id)}
        with tempfile.TemporaryDirectory() as folder:
            for file_id in (found.output_file_id, found.error_file_id):
                if file_id is None:
                    continue
                path = Path(folder) / "results.jsonl"
                with client.files.with_streaming_response.content(file_id) as response:
                    response.stream_to_file(path)
                with path.open("rb") as file:
                    for line in file:
                        bar.update(self._take(line, still_open, batch.endpoint))
        reasons = "; ".join(error.message or "" for error in (found.errors.data or [])) if found.errors else ""
        error = self.engine.clean(f"the batch has {found.status} without a result{f': {reasons}' if reasons else ''}")
        if without := self.store.batches.finish(batch.id, found.status, error):
            self.summary.errors[error] += without
        if self.budget:
            self.budget.refresh()

    def _take(self, line: bytes, still_open: dict[int, OpenRequest], endpoint: str) -> int:
        """Store what one line of results says. Returns how many thoughts are new."""
        try:
            row = json.loads(line)
            request = still_open.pop(int(row["custom_id"]))
        except (ValueError, KeyError, TypeError):
            return 0  # Half a line, or one that is stored already. What gets no result is handed in again.
        response = row.get("response") or {}
        if response.get("status_code") != 200:
            body = response.get("body") if isinstance(response.get("body"), dict) else {}
            details = row.get("error") or body.get("error") or {}
            message = details.get("message") if isinstance(details, dict) else str(details)
            status = response.get("status_code")
            error = self.engine.clean(f"HTTP {status}: {message}" if status else str(message))
            self.store.claims.fail(request.key, error)
            self.summary.errors[error] += 1
            if status in (400, 403, 422):
                self._refused.add((request.question_id, request.path))
            return 0
        asked = SampleRequest(
            request.question_id,
            request.path,
            [] if endpoint.endswith("/chat/completions") else "",
            stop=request.params.stop,
        )
        try:
            choices, usage, served = read_answer(response.get("body"), asked)
        except ValueError as error:
            message = self.engine.clean(f"the answer cannot be read: {error}")
            self.store.claims.fail(request.key, message, lost=True)
            self.summary.errors[message] += 1
            self.summary.lost += 1
            return 0
        stored = self.store.claims.save(request.key, choices, usage, served)
        self.summary.thoughts += stored
        self.summary.prompt_tokens += usage.get("prompt_tokens", 0)
        self.summary.cached_tokens += usage.get("cached_tokens", 0)
        self.summary.completion_tokens += usage.get("completion_tokens", 0)
        for choice in choices[: request.n]:
            if choice.finish_reason != "stop":
                self.summary.unusable[choice.finish_reason] += 1
        return stored
