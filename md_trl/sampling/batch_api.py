"""
The OpenAI Batch API: requests are uploaded in files, and answers come back within a day at half the price.

A batch is a row of the store that is written before each step: added (samples are claimed for it), uploaded
(`file_id`), created (`batch_id`), finished. The process may be killed at any moment; run the same command again:

| killed while it was | the next run |
| --- | --- |
| added, not uploaded | gives its claims back: nothing was bought |
| uploaded, its `batch_id` not recorded | looks for a batch of that file on the server, else creates one |
| created | waits for it and fetches its results |
| finished on the server, results partly stored | fetches them again; what is stored stays as it is |

Claims of a batch belong to the batch and not to a process, so that no other run buys the same samples meanwhile.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import openai

from ..errors import InputError
from ..prompts import Prompt
from ..records import Question, SamplingParams
from ..store import Store
from ..store.batches import Batch, OpenRequest
from .engines import POLL_SECONDS, SampleRequest, SampleResult
from .engines.openai import OpenAIEngine
from .engines.openai_format import read_answer
from .ledger import Price
from .run import Missing, SampleSummary, SamplingRun


# Limits of the API for one file
MAX_REQUESTS, MAX_BYTES = 50_000, 200_000_000
# How often requests that returned nothing are submitted again
ROUNDS = 3
ENDED = ("completed", "failed", "expired", "cancelled")
CHAT = "/chat/completions"


def sample_in_batches(
    questions: Sequence[Question],
    paths: Sequence[str],
    n: int,
    engine: OpenAIEngine,
    store: Store,
    prompt: Callable[[Question, str], Prompt],
    *,
    params: SamplingParams = SamplingParams(),
    prices: Mapping[str, Price] | None = None,
    max_cost: float | None = None,
    poll_seconds: float = POLL_SECONDS,
    max_requests: int = MAX_REQUESTS,
    max_bytes: int = MAX_BYTES,
    progress: bool = True,
) -> SampleSummary:
    r"""
    Sample through the Batch API until every question has `n` samples on every path.

    Batches of earlier runs on the same server are taken up first. Only requests that failed are submitted again.

    Args:
        questions (`Sequence[Question]`):
            The questions. They are added to the store.
        paths (`Sequence[str]`):
            Paths to sample: `cot`, `pot`, `cot_pot`, `label`.
        n (`int`):
            Samples per question and path.
        engine ([`~md_trl.sampling.engines.openai.OpenAIEngine`]):
            The server and the model.
        store ([`~md_trl.store.Store`]):
            Where the thoughts are kept.
        prompt (`Callable[[Question, str], str | list[dict[str, str]]]`):
            Builds the prompt for a question and a path.
        params ([`~md_trl.records.SamplingParams`], *optional*, defaults to `SamplingParams()`):
            How to sample.
        prices (`Mapping[str, Price]`, *optional*):
            Prices by model, for the summary and `max_cost`.
        max_cost (`float`, *optional*):
            Maximum cost of the whole store. Needs `prices`.
        poll_seconds (`float`, *optional*, defaults to `60.0`):
            Seconds between two status checks.
        max_requests (`int`, *optional*, defaults to `50_000`):
            Maximum number of requests per file.
        max_bytes (`int`, *optional*, defaults to `200_000_000`):
            Maximum size of a file in bytes.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        [`~md_trl.sampling.SampleSummary`]: What the run did.

    Raises:
        `ValueError`: Arguments that cannot be sampled with, or a server that refuses batches.
        `ConnectionError`: No server answers.
    """
    run = SamplingRun(
        questions, paths, n, engine.model, store, prompt, params, prices, max_cost, batch=True, progress=progress
    )
    try:
        with run, engine.sync_client() as client:
            batches = _Batches(run, engine, client, poll_seconds, max_requests, max_bytes)
            batches.resume()
            for _ in range(ROUNDS):
                missing = run.next_round()
                if not missing:
                    break
                batches.submit(missing)
                batches.collect()
    except openai.AuthenticationError as error:
        raise engine.authentication_error(error) from None
    except openai.APIConnectionError as error:
        raise engine.connection_error(error) from None
    except openai.APIStatusError as error:
        raise InputError(
            f"{engine.base_url} refuses batches: {engine.message(error)}. Does it have a Batch API? Everything "
            "submitted is kept: run the same command again to continue."
        ) from None
    return run.finish()


class _Batches:
    """The batches of a run: `resume` those of earlier runs, `submit` new ones, `collect` the results of all."""

    def __init__(
        self,
        run: SamplingRun,
        engine: OpenAIEngine,
        client: openai.OpenAI,
        poll_seconds: float,
        max_requests: int,
        max_bytes: int,
    ):
        self._run, self._engine, self._client, self._store = run, engine, client, run.store.batches
        self._poll_seconds, self._max_requests, self._max_bytes = poll_seconds, max_requests, max_bytes

    def resume(self) -> None:
        """Continue the batches of earlier runs from the step that they had reached."""
        for batch in self._store.take(self._engine.base_url):
            if batch.file_id is None:
                self._store.finish(batch.id, "dropped", "the batch was not uploaded")
            elif batch.batch_id is None:
                known = next((b for b in self._client.batches.list() if b.input_file_id == batch.file_id), None)
                if known:
                    self._store.update(batch.id, batch_id=known.id, status=known.status)
                else:
                    self._create(batch)
        self.collect()

    def submit(self, missing: Sequence[Missing]) -> None:
        """Claim samples and upload requests for them, file by file, as far as the budget allows."""
        waiting = deque(missing)
        while waiting and not self._run.summary.over_budget:
            # All requests of a file go to one endpoint.
            endpoint = _endpoint(self._engine.base_url, self._run.prompt(waiting[0].question, waiting[0].path))
            number = self._store.add(self._engine.base_url, endpoint)
            with tempfile.TemporaryFile() as stream:
                file = _RequestFile(stream, self._run, self._engine, number, endpoint)
                waiting = file.fill(waiting, self._max_requests, self._max_bytes)
                if file.requests == 0:
                    self._store.finish(number, "dropped", "nothing could be requested")
                    continue
                stream.seek(0)
                uploaded = self._client.files.create(file=(f"md_trl-{number}.jsonl", stream), purpose="batch")
            self._store.update(number, file_id=uploaded.id, status="uploaded")
            self._create(Batch(number, endpoint, uploaded.id, None))

    def _create(self, batch: Batch) -> None:
        # Without retries: the server may have created the batch although its answer was lost. The next run looks.
        created = self._client.with_options(max_retries=0).batches.create(
            input_file_id=batch.file_id, endpoint=batch.endpoint, completion_window="24h"
        )
        self._store.update(batch.id, batch_id=created.id, status=created.status)

    def collect(self) -> None:
        """Wait for all batches and record their results."""
        waiting = [batch for batch in self._store.take(self._engine.base_url) if batch.batch_id is not None]
        while waiting:
            for batch in list(waiting):
                found = self._client.batches.retrieve(batch.batch_id)
                self._store.update(batch.id, status=found.status)
                if found.status in ENDED:
                    self._record(batch, found)
                    waiting.remove(batch)
            self._run.bar.set_postfix_str(f"{len(waiting)} batches in progress", refresh=True)
            if waiting:
                time.sleep(self._poll_seconds)

    def _record(self, batch: Batch, found: openai.types.Batch) -> None:
        refused, several_accepted = [], False
        for result in self._results(batch, found):
            several_accepted |= result.request.n > 1 and bool(result.choices)
            if result.retry:
                self._run.record(result)
            else:
                refused.append(result)
        about_logprobs = [result.error for result in refused if "logprob" in (result.error or "")]
        if about_logprobs and self._engine.asks_logprobs:
            self._engine.refuse_logprobs(about_logprobs[0])
            refused = [replace(result, retry=True) for result in refused]
        elif refused and not several_accepted and any(result.request.n > 1 for result in refused):
            # Perhaps the server does not accept `n > 1`: the next round asks for single samples.
            self._run.max_samples = 1
            refused = [replace(result, retry=result.request.n > 1) for result in refused]
        for result in refused:
            self._run.record(result)
        reasons = "; ".join(error.message or "" for error in (found.errors.data or [])) if found.errors else ""
        error = f"the batch has {found.status} without a result{f': {reasons}' if reasons else ''}"
        error = self._engine.clean(error)
        if count := self._store.finish(batch.id, found.status, error):
            self._run.summary.errors[error] += count

    def _results(self, batch: Batch, found: openai.types.Batch) -> Iterator[SampleResult]:
        """Read the results of a batch, except for those that an earlier run has stored."""
        open_requests = {request.key: request for request in self._store.open_requests(batch.id)}
        with tempfile.TemporaryDirectory() as folder:
            for file_id in (found.output_file_id, found.error_file_id):
                if file_id is None:
                    continue
                file = Path(folder) / "results.jsonl"
                with self._client.files.with_streaming_response.content(file_id) as response:
                    response.stream_to_file(file)
                with file.open("rb") as lines:
                    for line in lines:
                        try:
                            row = json.loads(line)
                            request = open_requests.pop(int(row["custom_id"]))
                        except (ValueError, KeyError, TypeError):
                            continue  # A broken line, or one that is stored. Requests without result are repeated.
                        yield self._result(request, row, batch.endpoint.endswith(CHAT))

    def _result(self, open_request: OpenRequest, row: Mapping[str, Any], chat: bool) -> SampleResult:
        key, question_id, path, n, params = open_request
        request = SampleRequest(question_id, path, "", params, n, key=key)  # Nobody needs the prompt any more.
        response = row.get("response") or {}
        status, body = response.get("status_code"), response.get("body")
        if status != 200:
            details = row.get("error") or (body.get("error") if isinstance(body, dict) else None) or {}
            message = details.get("message") if isinstance(details, dict) else details
            error = self._engine.clean(f"HTTP {status}: {message}" if status else str(message))
            return SampleResult(request, error=error, retry=status not in (400, 403, 422))
        try:
            choices, usage, served = read_answer(body, chat, params)
        except ValueError as error:
            return SampleResult(request, error=self._engine.clean(f"the answer cannot be read: {error}"), lost=True)
        return SampleResult(request, choices, usage, served=served)


class _RequestFile:
    """A file of requests to one endpoint."""

    def __init__(self, stream: BinaryIO, run: SamplingRun, engine: OpenAIEngine, batch: int, endpoint: str):
        self._stream, self._run, self._engine = stream, run, engine
        self._batch, self._endpoint = batch, endpoint
        self.requests = 0

    def fill(self, waiting: deque[Missing], max_requests: int, max_bytes: int) -> deque[Missing]:
        """Claim samples and write requests for them until the file is full. Return what is left for other files."""
        others: deque[Missing] = deque()
        while waiting and not self._run.summary.over_budget:
            missing = waiting.popleft()
            prompt = self._run.prompt(missing.question, missing.path)
            if _endpoint(self._engine.base_url, prompt) != self._endpoint:
                others.append(missing)
                continue
            length = self._max_length(missing, prompt)
            limit = min(max_requests - self.requests, (max_bytes - self._stream.tell()) // length)
            if limit == 0 and self.requests == 0:
                raise InputError(
                    f"The request for {missing.question.id!r} ({missing.path}) has {length:,} bytes; a file may have "
                    f"{max_bytes:,} bytes and {max_requests:,} requests. Shorten the prompt."
                )
            requests = self._run.claim(missing, self._batch, limit) if limit else []
            for request in requests:
                self._stream.write(self._line(request))
            self.requests += len(requests)
            if len(requests) == limit and sum(request.n for request in requests) < missing.count:
                waiting.appendleft(missing)
                break
        return waiting + others

    def _line(self, request: SampleRequest) -> bytes:
        _, body = self._engine.request_body(request)
        line = {"custom_id": str(request.key), "method": "POST", "url": self._endpoint, "body": body}
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"

    def _max_length(self, missing: Missing, prompt: Prompt) -> int:
        """Upper bound on the bytes of a request, whose numbers are not known before it is claimed."""
        question_id, params, large = missing.question.id, self._run.params, 2**40
        request = SampleRequest(question_id, missing.path, prompt, params, missing.count, key=large)
        return len(self._line(request)) + len("4294967295") - 1  # The seed may be longer than this request's.


def _endpoint(base_url: str, prompt: Prompt) -> str:
    root = urlsplit(base_url).path.rstrip("/")
    return f"{root}/completions" if isinstance(prompt, str) else f"{root}{CHAT}"
