"""Samples from a local model in batches. Each prompt is run once for all its samples.

Every sample has its own random numbers, so it does not depend on what it is batched with.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSeq2SeqLM, PeftConfig, PeftModel
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import find_adapter_config_file

from ...errors import InputError
from ...prompts import encode_prompt, read_student_settings, resolve_prompt_format
from ...records import Choice, SamplingParams
from . import BATCH_SIZE, SampleRequest, SampleResult, check_params, cut_at_stop, mean_logprob, model_name
from .decoding import CausalDecoder, EncoderDecoder, count_kept, decode


# Number of batches whose requests are pulled together, so that prompts of similar length share a batch.
WINDOW = 4
# Steps between two checks for finished rows. A check waits for the device, and stop strings need the decoded text.
CHECK_EVERY = 8
# Share of finished rows at which the others are moved together.
COMPACT_AT = 0.25


class TransformersEngine:
    r"""
    Samples from a local causal or encoder-decoder language model.

    A prompt is run once and its keys and values are shared by its samples. The prompt of an encoder ends with EOS, as
    [`~md_trl.MDSeq2SeqTrainer`] trains it. Each sample draws from its own random generator, seeded with (seed,
    question id, path, sample index): the rest of the batch changes nothing but floating-point noise.

    The log-probability of a sample comes from the logits that its tokens are drawn from, before temperature and
    `top_p`, in fp32. EOS counts as a token; where the text was cut before a stop string, only the tokens of the text
    that was kept count, and where it reached `max_tokens` there is no EOS.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            Folder or Hub id of a model or a PEFT adapter, or a loaded model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the model. Loaded from the same place as the model by default.
        batch_size (`int`, *optional*, defaults to `128`):
            Maximum number of samples in a batch. The samples of one request are never split.
        cache_gb (`float`, *optional*, defaults to `2.0`):
            Maximum memory for keys and values in GB. Batches are made smaller to stay below it.
        device (`str`, *optional*):
            Device of the model. `cuda` if available, else `cpu`, by default.

    Raises:
        `ValueError`: A loaded model without its tokenizer.
        `FileNotFoundError`: There is no such model, or no tokenizer with it.

    Examples:

    ```python
    >>> from md_trl.records import SamplingParams
    >>> from md_trl.sampling.engines import SampleRequest
    >>> from md_trl.sampling.engines.transformers import TransformersEngine

    >>> engine = TransformersEngine("HuggingFaceTB/SmolLM2-135M-Instruct")
    >>> prompt = "What is 2 plus 3?\nLet's think step by step.\n"
    >>> request = SampleRequest("demo/test/1", "cot", prompt, SamplingParams(max_tokens=64), n=5)
    >>> for result in engine.generate([request]):
    ...     print([choice.text for choice in result.choices])
    ```
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        batch_size: int = BATCH_SIZE,
        cache_gb: float = 2.0,
        device: str | None = None,
    ):
        if batch_size < 1:
            raise InputError(f"`batch_size` is {batch_size}. Use 1 or more.")
        if isinstance(model, str):
            try:
                self._model = _load(model, device or ("cuda" if torch.cuda.is_available() else "cpu"))
                tokenizer = tokenizer or AutoTokenizer.from_pretrained(model)
            except OSError as error:
                reason = str(error).splitlines()[0]
                raise FileNotFoundError(
                    f"Cannot load {model!r}: {reason} Name the folder or Hub id of a model or adapter that includes "
                    "its tokenizer."
                ) from error
            self.model = model_name(model)
        elif tokenizer is None:
            raise InputError("A loaded model needs its tokenizer: pass `tokenizer=`.")
        else:
            self.model = model.config.name_or_path
            self._model = model
        loaded_from = model if isinstance(model, str) else model.config.name_or_path
        self.student_settings = read_student_settings(loaded_from) if loaded_from else None
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.cache_gb = cache_gb
        self._is_encoder_decoder = self._model.config.is_encoder_decoder
        self._decoder_class = EncoderDecoder if self._is_encoder_decoder else CausalDecoder
        with torch.inference_mode():
            row = torch.zeros(1, dtype=torch.long, device=self._model.device)
            self._bytes_per_token = self._decoder_class(self._model, [[0]], row, steps=1).bytes_per_token
        eos = self._model.generation_config.eos_token_id
        eos = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
        self._eos = sorted({*eos, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])})

    def student_prompt_format(self, prompt_format: str = "auto") -> str:
        r"""
        Decide how a student is asked.

        Args:
            prompt_format (`str`, *optional*, defaults to `"auto"`):
                As in [`~md_trl.prompts.resolve_prompt_format`].

        Returns:
            `str`: `"plain"` or `"chat"`.
        """
        return resolve_prompt_format(self.tokenizer, prompt_format, self.student_settings)

    def generate(self, requests: Iterable[SampleRequest]) -> Iterator[SampleResult]:
        r"""
        Sample all requests, grouping prompts of similar length.

        Args:
            requests (`Iterable[SampleRequest]`):
                Pulled for four batches at a time.

        Yields:
            [`SampleResult`]: Each one as soon as its last sample has ended.

        Raises:
            `ValueError`: Parameters that cannot be sampled with, see [`~md_trl.sampling.engines.check_params`].
        """
        training = self._model.training
        self._model.eval()
        try:
            window: list[SampleRequest] = []
            for request in requests:
                window.append(request)
                if sum(request.n for request in window) >= WINDOW * self.batch_size:
                    yield from self._generate(window)
                    window = []
            yield from self._generate(window)
        finally:
            self._model.train(training)

    def _generate(self, window: list[SampleRequest]) -> Iterator[SampleResult]:
        jobs = []
        for request in window:
            check_params(request.params, request.n)
            ids = encode_prompt(request.prompt, self.tokenizer)
            if self._is_encoder_decoder:
                ids, room = [*ids, self.tokenizer.eos_token_id], math.inf  # T5's relative positions have no end.
            else:
                room = self._model.config.get_text_config().max_position_embeddings - len(ids)
            if not ids:
                yield SampleResult(request, error="the prompt is empty", retry=False)
            elif room < 1:
                yield SampleResult(request, error=f"the prompt of {len(ids)} tokens leaves no room", retry=False)
            else:
                jobs.append(_Job(request, ids, min(request.params.max_tokens, room)))
        # The longest prompts come first, so that a lack of memory shows at once.
        jobs.sort(key=lambda job: (_batch_key(job.request.params), -len(job.prompt)))
        for _, group in itertools.groupby(jobs, key=lambda job: _batch_key(job.request.params)):
            for batch in self._batches(list(group)):
                yield from self._sample(batch)

    def _batches(self, jobs: list[_Job]) -> Iterator[list[_Job]]:
        """Split jobs into consecutive batches within `batch_size` and `cache_gb`, with at least one job each."""
        max_cached = self.cache_gb * 1e9 / self._bytes_per_token
        batch: list[_Job] = []
        rows = longest = 0
        for job in jobs:
            length = len(job.prompt) + job.max_tokens
            longest = max(longest, length)
            if batch and (rows + job.request.n > self.batch_size or (rows + job.request.n) * longest > max_cached):
                yield batch
                batch, rows, longest = [], 0, length
            batch.append(job)
            rows += job.request.n
        if batch:
            yield batch

    @torch.inference_mode()
    def _sample(self, batch: list[_Job]) -> Iterator[SampleResult]:
        device, params = self._model.device, batch[0].request.params
        rows = _Rows(batch, device)
        decoder = self._decoder_class(self._model, [job.prompt for job in batch], rows.jobs, rows.steps)
        eos = torch.tensor(self._eos, dtype=torch.long, device=device)
        samples: list[dict[int, tuple[Choice, int]]] = [{} for _ in batch]
        for step in range(rows.steps):
            tokens = _next_tokens(decoder.logits, params, rows.uniforms[:, step])
            rows.append(step, tokens, _logprobs(decoder.logits, tokens), eos)
            last = step + 1 == rows.steps
            if last or (step + 1) % CHECK_EVERY == 0:
                if params.stop and not last:
                    self._find_stop_strings(rows, step + 1, params.stop)
                if last or rows.done.float().mean() >= COMPACT_AT:
                    for job, sample, ids, logprobs, stopped in rows.finished():
                        choice = self._choice(ids, stopped, params.stop)
                        kept = self._count_kept(ids, choice, params.stop)
                        choice = choice._replace(logprob=mean_logprob(logprobs[:kept]))
                        samples[job][sample] = choice, len(ids)
                        if len(samples[job]) == batch[job].request.n:
                            yield _result(batch[job], samples[job])
                    left = (~rows.done).nonzero().flatten()
                    if len(left) == 0:
                        return
                    decoder.keep(left)
                    rows.keep(left)
                    tokens = tokens[left]
            decoder.step(tokens)

    def _find_stop_strings(self, rows: _Rows, step: int, stop: Iterable[str]) -> None:
        """Mark the rows whose text contains a stop string as done."""
        texts = self.tokenizer.batch_decode(
            rows.tokens[:, :step], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        for i, text in enumerate(texts):
            if not rows.done[i] and any(string in text for string in stop):
                rows.done[i], rows.lengths[i] = True, step

    def _choice(self, ids: list[int], stopped: bool, stop: Iterable[str]) -> Choice:
        text = decode(self.tokenizer, ids[:-1] if stopped else ids)
        return cut_at_stop(Choice(text, "stop" if stopped else "length"), stop)

    def _count_kept(self, ids: list[int], choice: Choice, stop: Iterable[str]) -> int:
        """Number of tokens behind a text: all of them with EOS, unless it was cut before a stop string."""
        if not stop or len(decode(self.tokenizer, ids)) == len(choice.text):
            return len(ids)
        return count_kept(self.tokenizer, ids, choice.text)


class _Job(NamedTuple):
    """A request with its tokenized prompt and the number of tokens that its samples may have."""

    request: SampleRequest
    prompt: list[int]
    max_tokens: int


class _Rows:
    """The unfinished samples of a batch, one row per sample."""

    def __init__(self, batch: list[_Job], device: torch.device):
        pairs = [(i, sample) for i, job in enumerate(batch) for sample in range(job.request.n)]
        self.steps = max(job.max_tokens for job in batch)
        self.jobs = torch.tensor([i for i, _ in pairs], device=device)
        self.samples = torch.tensor([sample for _, sample in pairs], device=device)
        self.uniforms = _uniforms([(batch[i].request, sample) for i, sample in pairs], self.steps).to(device)
        self.tokens = torch.zeros(len(pairs), self.steps, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(len(pairs), self.steps, device=device)
        self.limits = torch.tensor([batch[i].max_tokens for i, _ in pairs], device=device)
        self.lengths = torch.full_like(self.limits, self.steps)
        self.stopped = torch.zeros_like(self.limits, dtype=torch.bool)
        self.done = torch.zeros_like(self.stopped)

    def append(self, step: int, tokens: torch.Tensor, logprobs: torch.Tensor, eos: torch.Tensor) -> None:
        """Append one token to every row and mark the rows that end with it."""
        self.tokens[:, step], self.logprobs[:, step] = tokens, logprobs
        at_eos = torch.isin(tokens, eos) & ~self.done
        self.stopped |= at_eos
        ended = at_eos | ((step + 1 >= self.limits) & ~self.done)
        self.lengths = torch.where(ended, step + 1, self.lengths)
        self.done |= ended

    def finished(self) -> Iterator[tuple[int, int, list[int], list[float], bool]]:
        """Job, sample, token ids with their log-probabilities, and whether EOS ended it, of every finished row."""
        rows = self.done.nonzero().flatten()
        columns = (self.jobs, self.samples, self.tokens, self.logprobs, self.lengths, self.stopped)
        for job, sample, ids, logprobs, length, stopped in zip(
            *(column[rows].tolist() for column in columns), strict=True
        ):
            yield job, sample, ids[:length], logprobs[:length], stopped

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all other rows."""
        self.jobs, self.samples, self.uniforms = self.jobs[rows], self.samples[rows], self.uniforms[rows]
        self.tokens, self.logprobs = self.tokens[rows], self.logprobs[rows]
        self.limits, self.lengths = self.limits[rows], self.lengths[rows]
        self.stopped, self.done = self.stopped[rows], self.done[rows]


def _batch_key(params: SamplingParams) -> tuple:
    """Requests that agree in these parameters can share a batch."""
    return params.temperature, params.top_p, params.stop


def _uniforms(samples: list[tuple[SampleRequest, int]], steps: int) -> torch.Tensor:
    """A random number in (0, 1] per sample and step, from one generator per sample."""
    generator = torch.Generator()
    uniforms = torch.empty(len(samples), steps, dtype=torch.float64)
    for i, (request, sample) in enumerate(samples):
        generator.manual_seed(request.seed(sample))
        uniforms[i] = 1 - torch.rand(steps, generator=generator, dtype=torch.float64)
    return uniforms


def _next_tokens(logits: torch.Tensor, params: SamplingParams, uniforms: torch.Tensor) -> torch.Tensor:
    """
    Sample the next token of each row by inverting the cumulative distribution.

    This takes one random number per token, and a small change of the logits changes few tokens.
    """
    if params.temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits / params.temperature).softmax(-1)
    if params.top_p < 1:
        # Keep the most likely tokens until their mass reaches `top_p`, in the order of the vocabulary.
        ordered, order = probabilities.sort(descending=True)
        outside = (ordered.cumsum(-1) - ordered >= params.top_p).gather(1, order.argsort())
        probabilities = probabilities.masked_fill(outside, 0)
    cumulative = probabilities.cumsum(-1)
    # The first token whose cumulative probability reaches a number above 0 has a probability above 0.
    target = (uniforms[:, None] * cumulative[:, -1:]).to(cumulative.dtype)
    return torch.searchsorted(cumulative, target).squeeze(1)


def _logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability of each row's next token under the model itself: at temperature 1, of the whole vocabulary."""
    return logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(-1)


def _result(job: _Job, samples: dict[int, tuple[Choice, int]]) -> SampleResult:
    completion_tokens = sum(length for _, length in samples.values())
    usage = {"prompt_tokens": len(job.prompt), "completion_tokens": completion_tokens}
    return SampleResult(job.request, [samples[i][0] for i in range(job.request.n)], usage)


def _load(model: str, device: str) -> PreTrainedModel:
    # bf16 is several times slower than fp32 on a CPU.
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    adapter = PeftConfig.from_pretrained(model) if find_adapter_config_file(model) is not None else None
    if adapter is not None and adapter.is_prompt_learning:
        raise InputError(
            f"{model!r} was trained by {type(adapter).__name__} and cannot be merged with its base model, which this "
            "engine needs. Train it with LoRA."
        )
    base = model if adapter is None else adapter.base_model_name_or_path
    config = AutoConfig.from_pretrained(base)
    if config.is_encoder_decoder:
        auto_class, adapter_class = AutoModelForSeq2SeqLM, AutoPeftModelForSeq2SeqLM
    elif type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        auto_class, adapter_class = AutoModelForCausalLM, AutoPeftModelForCausalLM
    elif adapter is None:  # a vision-language model, asked without images
        return AutoModelForImageTextToText.from_pretrained(model, dtype=dtype).to(device)
    else:
        loaded = AutoModelForImageTextToText.from_pretrained(base, dtype=dtype)
        return PeftModel.from_pretrained(loaded, model).merge_and_unload().to(device)
    if adapter is None:
        return auto_class.from_pretrained(model, dtype=dtype).to(device)
    return adapter_class.from_pretrained(model, dtype=dtype).merge_and_unload().to(device)
