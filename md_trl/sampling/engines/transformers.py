"""Samples from a local model. Each prompt is run once for all its samples, which are written in a batch with others.

Every sample has its own random numbers, so it does not depend on what it is batched with.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

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
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin
from transformers.utils import find_adapter_config_file

from ...errors import InputError, check_at_least_one
from ...prompts import encode_prompt, read_student_settings, resolve_prompt_format
from ...records import Choice
from ...student_folder import check_student
from . import BATCH_SIZE, DTYPES, SampleRequest, SampleResult, check_params, cut_at_stop, mean_logprob, model_name
from .batching import Batching, Job, Rows, Sample
from .decoding import CausalDecoder, EncoderDecoder, count_kept, decode
from .joining import JoiningDecoder, Prefilled, PrefilledPrompts, can_join
from .memory import cache_bytes


Decoder: TypeAlias = JoiningDecoder | CausalDecoder | EncoderDecoder

# Share of free rows at which the others are moved together.
COMPACT_AT = 0.125
# Share of the memory for keys and values that is for prompts which may be asked again.
PROMPT_SHARE = 0.2


class TransformersEngine:
    r"""
    Samples from a local causal or encoder-decoder language model.

    A prompt is run once for all its samples. A sample that ends gives its row in the batch to the next one, where the
    cache of the model allows it (see [`~md_trl.sampling.engines.joining.can_join`]); encoder-decoder models and models
    with sliding windows finish a batch before the next one begins. So do models with recurrent states or convolutions,
    such as Qwen3-Next or LFM2, whose batches hold prompts of one length only. The prompt of an encoder ends with EOS,
    as [`~md_trl.MDSeq2SeqTrainer`] trains it. Each sample draws from its own random generator, seeded with (seed,
    question id, path, sample index): the rest of the batch changes nothing but floating-point noise, which changes
    about one sample of 10,000 in fp32 and none in fp64 (see [`~md_trl.sampling.engines.token_sampling.TokenSampler`]).

    The log-probability of a sample comes from the logits that its tokens are drawn from, before temperature and
    `top_p`, in fp32. EOS counts as a token; where the text was cut before a stop string, only the tokens of the text
    that was kept count, and where it reached `max_tokens` there is no EOS.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            Folder or Hub id of a model or a PEFT adapter, or a loaded model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the model. Loaded from the same place as the model by default.
        batch_size (`int`, *optional*, defaults to `128`):
            Maximum number of samples that are written together.
        cache_gb (`float`, *optional*):
            Maximum memory for keys and values in GB. Batches are made smaller to stay below it. By default, a share of
            the memory of the device that is free when sampling begins.
        device (`str`, *optional*):
            Device of the model. `cuda` if available, else `cpu`, by default.
        dtype (`str`, *optional*):
            Data type of the weights: `float32`, `bfloat16` or `float16`, or `auto` for the one they were saved in.
            `bfloat16` on GPUs and `float32` on CPUs by default, since most CPUs are slower in `bfloat16`. A loaded
            model keeps its own.

    Raises:
        `ValueError`: An unknown `dtype`, a loaded model without its tokenizer, or a model with recurrent states only,
            such as Mamba.
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
        cache_gb: float | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ):
        check_at_least_one("batch_size", batch_size)
        if dtype not in (None, *DTYPES):
            raise InputError(f"Unknown `dtype` {dtype!r}. Choose one of {', '.join(DTYPES)}.")
        if isinstance(model, str):
            check_student(model)
            try:
                self._model = _load(model, device or ("cuda" if torch.cuda.is_available() else "cpu"), dtype)
                tokenizer = tokenizer or AutoTokenizer.from_pretrained(model)
            except InputError:
                raise
            except (OSError, ValueError) as error:
                reason = str(error).splitlines()[0].rstrip(".")
                raise FileNotFoundError(
                    f"Cannot load {model!r}: {reason}. Name the folder or Hub id of a model or adapter that includes "
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
        if "cache_params" in inspect.signature(self._model.forward).parameters:
            raise InputError(
                f"{type(self._model).__name__} has recurrent states only, which this engine does not keep. Sample the "
                "model with vLLM, or use one that also has attention."
            )
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.cache_gb = cache_gb
        self._is_encoder_decoder = self._model.config.is_encoder_decoder
        with torch.inference_mode():
            row = torch.zeros(1, 1, dtype=torch.long, device=self._model.device)
            if self._is_encoder_decoder:
                cache = self._model(
                    input_ids=row, decoder_input_ids=row, use_cache=True
                ).past_key_values.self_attention_cache
            else:
                cache = self._model(input_ids=row, use_cache=True).past_key_values
        # Recurrent states have one size for any number of tokens, and are small beside the keys and values.
        attention = [layer for layer in cache.layers if isinstance(layer, CacheLayerMixin) and layer.is_initialized]
        self._bytes_per_token = sum(layer.keys[0, :, 0].nbytes + layer.values[0, :, 0].nbytes for layer in attention)
        self._is_recurrent = any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)
        self._known: PrefilledPrompts | None = None
        self._can_join = not self._is_encoder_decoder and can_join(self._model, cache)
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
        Sample all requests. A sample that ends makes room for the next one.

        Args:
            requests (`Iterable[SampleRequest]`):
                Pulled when there is room for their samples, and at most a few prompts ahead. An iterator that has
                ended is asked again after each check for finished samples, so that more can be added when results
                arrive.

        Yields:
            [`SampleResult`]: Each one as soon as its last sample has ended.

        Raises:
            `ValueError`: Parameters that cannot be sampled with, see [`~md_trl.sampling.engines.check_params`].
        """
        training = self._model.training
        self._model.eval()
        try:
            source, max_cached = _Requests(self, requests), self._max_cached()
            if self._known is not None:
                max_cached *= 1 - PROMPT_SHARE
            batching = Batching(source.pull, self.batch_size, max_cached, not self._is_recurrent, self._known)
            rows = Rows(self._model.device, self._eos, self._has_stop)
            decoder: Decoder | None = None
            while True:
                decoder = self._admit(decoder, rows, batching)
                yield from (refused := source.take_refused())
                if rows.samples:
                    yield from self._advance(decoder, rows)
                elif not refused:
                    return
        finally:
            self._model.train(training)

    @contextmanager
    def keep_prompts(self) -> Iterator[None]:
        """Keep what the model has read of prompts, for a caller that asks them again before its weights change."""
        self._known = PrefilledPrompts(PROMPT_SHARE * self._max_cached()) if self._can_join else None
        try:
            yield
        finally:
            self._known = None

    def _max_cached(self) -> float:
        """Number of tokens whose keys and values fit into memory."""
        if not self._bytes_per_token:
            return math.inf
        return cache_bytes(self._model.device, self.cache_gb) / self._bytes_per_token

    def _encode(self, request: SampleRequest) -> tuple[list[int], float]:
        """The tokens of a prompt, and how many can follow."""
        ids = encode_prompt(request.prompt, self.tokenizer)
        if self._is_encoder_decoder:
            return [*ids, self.tokenizer.eos_token_id], math.inf  # T5's relative positions have no end.
        return ids, self._model.config.get_text_config().max_position_embeddings - len(ids)

    @torch.inference_mode()
    def _admit(self, decoder: Decoder | None, rows: Rows, batching: Batching) -> Decoder | None:
        """Give free rows to the next samples, and drop the rows that stay free if there are many of them."""
        if not rows.live:
            rows.keep([])
            decoder = JoiningDecoder(self._model) if self._can_join else None
        if isinstance(decoder, JoiningDecoder):
            decoder.free(rows.free)
            samples = batching.joining(rows.live, decoder.prefill)
            slots = [*rows.free, *range(len(rows.samples), len(rows.samples) + len(samples))]
            groups: dict[int, tuple[Prefilled, list[int], list[int]]] = {}
            for sample, slot in zip(samples, slots, strict=False):
                prefilled, prompt = sample.job.prefilled
                _, prompts, places = groups.setdefault(id(prefilled), (prefilled, [], []))
                prompts.append(prompt)
                places.append(slot)
            if samples:
                decoder.join(list(groups.values()))
                logits = torch.stack([prefilled.logits[i] for prefilled, i in (s.job.prefilled for s in samples)])
                rows.join(samples, slots[: len(samples)], logits)
        elif decoder is None and (jobs := batching.whole_jobs()):
            samples = [Sample(job, i) for job in jobs for i in range(job.request.n)]
            index = torch.tensor([i for i, job in enumerate(jobs) for _ in range(job.request.n)])
            decoder = (EncoderDecoder if self._is_encoder_decoder else CausalDecoder)(
                self._model,
                [job.prompt for job in jobs],
                index.to(self._model.device),
                max(job.max_tokens for job in jobs),
            )
            rows.join(samples, range(len(samples)), decoder.logits)
        if len(rows.free) >= max(1, COMPACT_AT * len(rows.samples)):
            left = [row for row, sample in enumerate(rows.samples) if sample is not None]
            decoder.keep(torch.tensor(left, device=self._model.device))
            rows.keep(left)
        return decoder

    @torch.inference_mode()
    def _advance(self, decoder: Decoder, rows: Rows) -> list[SampleResult]:
        """Run all rows until the next check, and return what is complete."""
        results = []
        for sample in rows.advance(decoder):
            stop = sample.params.stop
            choice = self._choice(sample.ids, sample.stopped, stop)
            kept = self._count_kept(sample.ids, choice, stop)
            choice = choice._replace(logprob=mean_logprob(sample.logprobs[:kept]))
            if sample.job.end(sample.index, choice, len(sample.ids)):
                results.append(sample.job.result())
        return results

    def _has_stop(self, samples: list[Sample]) -> list[bool]:
        """Which samples contain one of their stop strings."""
        texts = [decode(self.tokenizer, sample.ids) for sample in samples]
        return [any(s in text for s in sample.params.stop) for sample, text in zip(samples, texts, strict=True)]

    def _choice(self, ids: list[int], stopped: bool, stop: Iterable[str]) -> Choice:
        text = decode(self.tokenizer, ids[:-1] if stopped else ids)
        return cut_at_stop(Choice(text, "stop" if stopped else "length"), stop)

    def _count_kept(self, ids: list[int], choice: Choice, stop: Iterable[str]) -> int:
        """Number of tokens behind a text: all of them with EOS, unless it was cut before a stop string."""
        if not stop or len(decode(self.tokenizer, ids)) == len(choice.text):
            return len(ids)
        return count_kept(self.tokenizer, ids, choice.text)


class _Requests:
    """Requests on their way to jobs. Those that cannot be sampled become results."""

    def __init__(self, engine: TransformersEngine, requests: Iterable[SampleRequest]):
        self._engine, self._requests = engine, iter(requests)
        self.refused: list[SampleResult] = []

    def pull(self) -> Job | None:
        """The next job; `None` if there is none now. An iterator that has ended is asked again the next time."""
        for request in self._requests:
            check_params(request.params, request.n)
            prompt, room = self._engine._encode(request)
            if not prompt:
                self.refused.append(SampleResult(request, error="the prompt is empty", retry=False))
            elif room < 1:
                error = f"the prompt of {len(prompt)} tokens leaves no room"
                self.refused.append(SampleResult(request, error=error, retry=False))
            else:
                return Job(request, prompt, room)
        return None

    def take_refused(self) -> list[SampleResult]:
        refused, self.refused = self.refused, []
        return refused


def _load(model: str, device: str, dtype: str | None) -> PreTrainedModel:
    dtype = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
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
