"""Which samples of a local model are written together: a row whose sample has ended is given to the next one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch

from ...records import Choice, SamplingParams
from . import SampleRequest, SampleResult
from .decoding import CausalDecoder, EncoderDecoder
from .joining import SPARE_COLUMNS, JoiningDecoder, Prefilled, PrefilledPrompts
from .token_sampling import TokenSampler, draws_per_token, logprobs_of


# Steps between two checks for finished rows. A check waits for the device, and stop strings need the decoded text. A
# CPU has nothing to wait for, and there each step of a finished row costs time.
CHECK_EVERY = 8
CHECK_EVERY_ON_CPU = 4
# Prompts are run together up to this number of tokens, padding included.
MAX_PREFILL = 4096
# Further prompts are run with those that are needed until there are so many tokens: few tokens take as long as these.
MIN_PREFILL = 256


class Job:
    r"""
    A request while its samples are being written.

    Args:
        request ([`~md_trl.sampling.engines.SampleRequest`]):
            The request.
        prompt (`list[int]`):
            Tokens of its prompt.
        room (`float`):
            Number of tokens that the model can write after the prompt.
    """

    def __init__(self, request: SampleRequest, prompt: list[int], room: float):
        self.request, self.prompt, self.room = request, prompt, room
        self.max_tokens = int(min(request.params.max_tokens, room))
        self.prefilled: tuple[Prefilled, int] | None = None
        self._choices: dict[int, tuple[Choice, int]] = {}

    @property
    def columns(self) -> int:
        """Columns of the cache that one of its samples may take."""
        return len(self.prompt) + self.max_tokens + SPARE_COLUMNS

    def end(self, sample: int, choice: Choice, tokens: int) -> bool:
        """Take a finished sample, and say whether it was the last one."""
        self._choices[sample] = choice, tokens
        return len(self._choices) == self.request.n

    def result(self) -> SampleResult:
        completion_tokens = sum(tokens for _, tokens in self._choices.values())
        usage = {"prompt_tokens": len(self.prompt), "completion_tokens": completion_tokens}
        return SampleResult(self.request, [self._choices[i][0] for i in range(self.request.n)], usage)


class Sample:
    """One sample of a job, with its own random numbers."""

    def __init__(self, job: Job, index: int):
        self.job, self.index = job, index
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.stopped = self.ended = False
        self._generator = torch.Generator().manual_seed(job.request.seed(index))

    @property
    def params(self) -> SamplingParams:
        return self.job.request.params

    def draw(self, tokens: int, vocabulary: int) -> torch.Tensor:
        """The next random numbers in (0, 1], in one row per token."""
        shape = tokens, draws_per_token(vocabulary)
        return 1 - torch.rand(shape, generator=self._generator, dtype=torch.float64)

    def steps_left(self, limit: float) -> float:
        """Steps until a number of tokens is reached. The first token is drawn when the sample joins."""
        return limit - max(len(self.ids), 1)

    def append(self, ids: Sequence[int], logprobs: Sequence[float], eos: Sequence[int]) -> None:
        """Append tokens until the sample ends."""
        for token, logprob in zip(ids, logprobs, strict=True):
            if self.ended:
                return
            self.ids.append(token)
            self.logprobs.append(logprob)
            self.stopped = token in eos
            self.ended = self.stopped or len(self.ids) == self.job.max_tokens


class Rows:
    r"""
    The samples that are being written, one row per sample.

    Args:
        device (`torch.device`):
            Device of the model.
        eos (`Sequence[int]`):
            Tokens that end a sample.
        has_stop (`Callable[[list[Sample]], list[bool]]`):
            Says which samples contain one of their stop strings.
    """

    def __init__(self, device: torch.device, eos: Sequence[int], has_stop: Callable[[list[Sample]], list[bool]]):
        self._device, self._eos, self._has_stop = device, eos, has_stop
        self.samples: list[Sample | None] = []
        self._tokens = torch.zeros(0, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(0, device=device)
        self._vocabulary = 0
        self._sampler: TokenSampler | None = None

    @property
    def live(self) -> list[Sample]:
        return [sample for sample in self.samples if sample is not None]

    @property
    def free(self) -> list[int]:
        return [row for row, sample in enumerate(self.samples) if sample is None]

    def join(self, samples: Sequence[Sample], rows: Sequence[int], logits: torch.Tensor) -> None:
        """Place samples in free rows or new ones, and draw their first tokens."""
        added = max(0, max(rows) + 1 - len(self.samples))
        self.samples += [None] * added
        self._tokens = torch.nn.functional.pad(self._tokens, (0, added))
        self._logprobs = torch.nn.functional.pad(self._logprobs, (0, added))
        self._vocabulary = logits.shape[1]
        uniforms = torch.cat([sample.draw(1, self._vocabulary) for sample in samples]).to(self._device)
        tokens = TokenSampler([sample.params for sample in samples], self._device)(logits, uniforms)
        index = torch.tensor(rows, device=self._device)
        self._tokens[index], self._logprobs[index] = tokens, logprobs_of(logits, tokens)
        for row, sample in zip(rows, samples, strict=True):
            self.samples[row] = sample
        self._sampler = None

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows."""
        index = torch.tensor(rows, dtype=torch.long, device=self._device)
        self.samples = [self.samples[row] for row in rows]
        self._tokens, self._logprobs = self._tokens[index], self._logprobs[index]
        self._sampler = None

    def advance(self, decoder: JoiningDecoder | CausalDecoder | EncoderDecoder) -> list[Sample]:
        """Run steps until the next check, and return the samples that have ended, whose rows are then free."""
        steps = self._steps()
        if self._sampler is None:
            live = self.live
            params = [(live[0] if sample is None else sample).params for sample in self.samples]
            self._sampler = TokenSampler(params, self._device)
        unused = torch.ones(steps, draws_per_token(self._vocabulary), dtype=torch.float64)
        draws = [unused if sample is None else sample.draw(steps, self._vocabulary) for sample in self.samples]
        uniforms = torch.stack(draws).to(self._device)
        tokens, logprobs = [self._tokens], [self._logprobs]
        for step in range(steps):
            decoder.step(tokens[-1])
            tokens.append(self._sampler(decoder.logits, uniforms[:, step]))
            logprobs.append(logprobs_of(decoder.logits, tokens[-1]))
        self._tokens, self._logprobs = tokens[-1], logprobs[-1]
        columns = torch.stack(tokens, 1).tolist(), torch.stack(logprobs, 1).tolist()
        for sample, ids, values in zip(self.samples, *columns, strict=True):
            if sample is not None:
                known = 1 if sample.ids else 0  # The first column was read at the last check, except for new samples.
                sample.append(ids[known:], values[known:], self._eos)
        unfinished = [sample for sample in self.live if not sample.ended and sample.params.stop]
        for sample, found in zip(unfinished, self._has_stop(unfinished), strict=True):
            sample.ended = found
        ended = [sample for sample in self.live if sample.ended]
        self.samples = [None if sample is None or sample.ended else sample for sample in self.samples]
        return ended

    def _steps(self) -> int:
        """Number of steps to run before the next check."""
        live = self.live
        longest = max(sample.steps_left(sample.job.max_tokens) for sample in live)
        # A sample that has ended runs on until the check, but never beyond the positions that the model knows.
        room = min(sample.steps_left(sample.job.room) for sample in live)
        every = CHECK_EVERY_ON_CPU if self._device.type == "cpu" else CHECK_EVERY
        return int(min(every, longest, room))


class Batching:
    r"""
    Decides which samples are written together, within a number of rows and of cached tokens.

    Args:
        pull (`Callable[[], Job | None]`):
            Gives the next job, `None` if there is none now.
        batch_size (`int`):
            Maximum number of rows.
        max_cached (`float`):
            Maximum number of tokens in the cache. One sample, or the samples of one job in a batch that nothing can
            join, are written in any case.
        pads (`bool`, *optional*, defaults to `True`):
            Whether prompts of different lengths can be in a batch that nothing can join.
        known ([`~md_trl.sampling.engines.joining.PrefilledPrompts`], *optional*):
            Prompts that need not be run again. New ones are added.
    """

    def __init__(
        self,
        pull: Callable[[], Job | None],
        batch_size: int,
        max_cached: float,
        pads: bool = True,
        known: PrefilledPrompts | None = None,
    ):
        self._pads, self._known = pads, known
        self._pull, self._batch_size, self._max_cached = pull, batch_size, max_cached
        self._next: Job | None = None
        self._waiting: deque[Sample] = deque()

    def whole_jobs(self) -> list[Job]:
        """Take the jobs of a batch that nothing can join."""
        jobs: list[Job] = []
        rows = columns = 0
        while (job := self._peek()) is not None:
            if jobs and not self._pads and len(job.prompt) != len(jobs[0].prompt):
                break
            rows, columns = rows + job.request.n, max(columns, job.columns)
            if jobs and not self._fits(rows, columns):
                break
            jobs.append(self._take())
        return jobs

    def joining(self, live: Sequence[Sample], prefill: Callable[[list[list[int]]], Prefilled]) -> list[Sample]:
        """Take the samples that can join those that are being written, and run their prompts where it is needed."""
        taken: list[Sample] = []
        columns = max((sample.job.columns for sample in live), default=0)
        while True:
            rows = len(live) + len(taken)
            if not self._waiting:
                self._prefill(rows, columns, prefill)
            if not self._waiting:
                return taken
            columns = max(columns, self._waiting[0].job.columns)
            if rows and not self._fits(rows + 1, columns):
                return taken
            taken.append(self._waiting.popleft())

    def _prefill(self, rows: int, columns: int, prefill: Callable[[list[list[int]]], Prefilled]) -> None:
        """Run the prompts of the next jobs: those that fit beside so many rows and columns, and a few more."""
        if rows == self._batch_size:
            return
        new: list[Job] = []
        tokens = 0
        while tokens < MAX_PREFILL and (job := self._peek()) is not None:
            columns = max(columns, job.columns)
            if rows and not self._fits(rows + 1, columns) and (not new or tokens >= MIN_PREFILL):
                break
            new.append(self._take())
            rows, tokens = rows + job.request.n, tokens + len(job.prompt)
        for job in new:
            job.prefilled = None if self._known is None else self._known.get(job.prompt)
        for group in _prefill_groups([job for job in new if job.prefilled is None]):
            prompts = [job.prompt for job in group]
            prefilled = prefill(prompts)
            if self._known is not None:
                self._known.add(prompts, prefilled)
            for i, job in enumerate(group):
                job.prefilled = prefilled, i
        self._waiting += [Sample(job, sample) for job in new for sample in range(job.request.n)]

    def _fits(self, rows: int, columns: int) -> bool:
        return rows <= self._batch_size and rows * columns <= self._max_cached

    def _peek(self) -> Job | None:
        if self._next is None:
            self._next = self._pull()
        return self._next

    def _take(self) -> Job:
        job, self._next = self._next, None
        return job


def _prefill_groups(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Split jobs into groups whose prompts are run together, with little padding."""
    group: list[Job] = []
    for job in sorted(jobs, key=lambda job: -len(job.prompt)):
        if group:
            longest = len(group[0].prompt)
            tokens = len(group) * longest
            if tokens + longest > MAX_PREFILL or (tokens >= MIN_PREFILL and len(job.prompt) < 0.75 * longest):
                yield group
                group = []
        group.append(job)
    if group:
        yield group
