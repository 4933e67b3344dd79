"""Samples from a local model: in batches, each prompt run once for all its samples.

Each sample has its own random numbers, whatever it is batched with.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSeq2SeqLM, PeftConfig
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import find_adapter_config_file

from ...errors import InputError
from ...prompts import encode
from . import Choice, Prompt, SampleRequest, SampleResult, cut_at_stop, derive_seed, name_of_folder


# Batches whose requests are pulled together, so that prompts of about the same length share one.
WINDOW = 4
# Steps between two looks at which rows have ended: each look waits for the device, and stop strings need the text.
CHECK_EVERY = 8
# Rows are moved together once so many of them have ended.
COMPACT_AT = 0.25


class _RoomyLayer(DynamicLayer):
    """
    Keys and values of a layer, a row a sample, with room for what comes.

    A [`~transformers.cache_utils.DynamicLayer`] copies all it holds at each step: longer than a small model takes.
    """

    def __init__(self, layer: DynamicLayer, rows: torch.Tensor, steps: int):
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self._take(layer, rows, layer.get_seq_length() + steps)

    def _take(self, layer: DynamicLayer, rows: torch.Tensor, capacity: int) -> None:
        used = layer.get_seq_length()
        keys, values = layer.keys[rows], layer.values[rows]
        self._key_room = keys.new_empty(*keys.shape[:2], capacity, keys.shape[3])
        self._value_room = values.new_empty(*values.shape[:2], capacity, values.shape[3])
        self.keys, self.values = self._key_room[:, :, :used], self._value_room[:, :, :used]
        self.keys.copy_(keys)
        self.values.copy_(values)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        start, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        self._key_room[:, :, start:end] = key_states
        self._value_room[:, :, start:end] = value_states
        self.keys, self.values = self._key_room[:, :, :end], self._value_room[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._take(self, indices, self._key_room.shape[-2])


class _Causal:
    """Prompts that were run once each, and from then on a row a sample."""

    def __init__(self, model: PreTrainedModel, prompts: list[list[int]], rows: torch.Tensor, steps: int):
        self._model = model
        # Padded on the left, so that all samples begin in the same column.
        ids, mask = _padded(prompts, "left", model.device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
        self._cache = output.past_key_values
        self.bytes_per_token = _share_out(self._cache, rows, steps)
        self._mask, self._position = mask[rows], positions[rows, -1:]
        self.logits = output.logits[rows, -1].float()

    def keep(self, rows: torch.Tensor) -> None:
        self._cache.batch_select_indices(rows)
        self._mask, self._position = self._mask[rows], self._position[rows]

    def step(self, tokens: torch.Tensor) -> None:
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        self._position = self._position + 1
        output = self._model(
            input_ids=tokens[:, None],
            attention_mask=self._mask,
            position_ids=self._position,
            past_key_values=self._cache,
            use_cache=True,
        )
        self.logits = output.logits[:, -1].float()


class _EncoderDecoder:
    """Prompts that the encoder has read once each, and from then on a row of the decoder a sample."""

    def __init__(self, model: PreTrainedModel, prompts: list[list[int]], rows: torch.Tensor, steps: int):
        self._model = model
        ids, mask = _padded(prompts, "right", model.device)
        start = torch.full((len(prompts), 1), model.config.decoder_start_token_id, device=model.device)
        output = model(input_ids=ids, attention_mask=mask, decoder_input_ids=start, use_cache=True)
        self._cache = output.past_key_values
        self.bytes_per_token = _share_out(self._cache.self_attention_cache, rows, steps)
        self._cache.cross_attention_cache.batch_select_indices(rows)
        self._mask, self._states = mask[rows], output.encoder_last_hidden_state[rows]
        self.logits = output.logits[rows, -1].float()

    def keep(self, rows: torch.Tensor) -> None:
        self._cache.batch_select_indices(rows)
        self._mask, self._states = self._mask[rows], self._states[rows]

    def step(self, tokens: torch.Tensor) -> None:
        output = self._model(
            encoder_outputs=BaseModelOutput(self._states),
            attention_mask=self._mask,
            decoder_input_ids=tokens[:, None],
            past_key_values=self._cache,
            use_cache=True,
        )
        self.logits = output.logits[:, -1].float()


def _padded(prompts: list[list[int]], side: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of the prompts and their mask."""
    ids = [torch.tensor(prompt) for prompt in prompts]
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones_like(i) for i in ids], batch_first=True, padding_side=side)
    return pad(ids, batch_first=True, padding_side=side).to(device), mask.to(device)


def _share_out(cache: Cache, rows: torch.Tensor, steps: int) -> int:
    """Turn a row a prompt into a row a sample with room for `steps` tokens. Returns the bytes that a token takes."""
    size = sum(layer.keys[0, :, 0].nbytes + layer.values[0, :, 0].nbytes for layer in cache.layers)
    for i, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[i] = _RoomyLayer(layer, rows, steps)
        else:
            layer.batch_select_indices(rows)
    return size


@dataclass
class _Row:
    """One sample of a batch."""

    request: int
    sample: int
    limit: int


class TransformersEngine:
    r"""
    Samples from a local language model, causal or encoder-decoder.

    A prompt is run once, and its keys and values are shared out to its samples; an encoder reads it closed with EOS,
    as [`~md_trl.MDSeq2SeqTrainer`] trains it. Each sample draws from a random generator of its own, seeded with (seed,
    question id, path, sample index): what it is batched with changes nothing but float noise.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            Folder or Hub id of a model or a PEFT adapter, or a model that is loaded already.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The tokenizer. By default the one that lies with the model.
        chat (`bool`, *optional*, defaults to `False`):
            Whether text prompts come out of a chat template, which writes its own special tokens.
        batch_size (`int`, *optional*, defaults to `128`):
            Most samples that are under way together (those of one request always are).
        cache_gb (`float`, *optional*, defaults to `2.0`):
            Most memory for keys and values, in GB. The batch is made smaller to keep to it.
        device (`str`, *optional*):
            Where the model runs. By default `cuda` if there is one, else `cpu`.

    Raises:
        `ValueError`: no tokenizer for a loaded model.
        `FileNotFoundError`: no model of that name, or no tokenizer with it.

    Examples:

    ```python
    >>> from md_trl.sampling.engines import SampleRequest
    >>> from md_trl.sampling.engines.transformers import TransformersEngine

    >>> engine = TransformersEngine("HuggingFaceTB/SmolLM2-135M-Instruct")
    >>> prompt = "What is 2 plus 3?\nLet's think step by step.\n"
    >>> for result in engine.generate([SampleRequest("demo/test/1", "cot", prompt, n=5, max_tokens=64)]):
    ...     print([choice.text for choice in result.choices])
    ```
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        chat: bool = False,
        batch_size: int = 128,
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
                    f"Cannot load {model!r}: {reason} Name the folder or Hub id of a model or adapter that has its "
                    "tokenizer with it."
                ) from error
            self.model = name_of_folder(model)
        elif tokenizer is None:
            raise InputError("A loaded model needs its tokenizer: give `tokenizer=`.")
        else:
            self.model = model.config.name_or_path
            self._model = model
        self.tokenizer = tokenizer
        self.chat = chat
        self.batch_size = batch_size
        self.cache_gb = cache_gb
        self._encoder_decoder = self._model.config.is_encoder_decoder
        self._batch_class = _EncoderDecoder if self._encoder_decoder else _Causal
        with torch.inference_mode():
            row = torch.zeros(1, dtype=torch.long, device=self._model.device)
            self._bytes_per_token = self._batch_class(self._model, [[0]], row, steps=1).bytes_per_token
        eos = self._model.generation_config.eos_token_id
        eos = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
        self._eos = sorted({*eos, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])})

    def generate(self, requests: Iterable[SampleRequest]) -> Iterator[SampleResult]:
        r"""
        Sample all requests, about as long ones together.

        Args:
            requests (`Iterable[SampleRequest]`):
                Pulled for four batches at a time.

        Yields:
            [`SampleResult`]: each as soon as its last sample has ended.

        Raises:
            `ValueError`: `temperature=0` with more than one sample.
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
        for request, ids in zip(window, self._encode(window), strict=True):
            if request.temperature == 0 and request.n > 1:
                raise InputError(f"`temperature=0` is greedy and gives one text, not n={request.n}. Use `n=1`.")
            if self._encoder_decoder:  # T5 has no positions to run out of
                room = math.inf
            else:
                room = self._model.config.get_text_config().max_position_embeddings - len(ids)
            if not ids:
                yield SampleResult(request, error="the prompt is empty", retry=False)
            elif room < 1:
                yield SampleResult(request, error=f"the prompt of {len(ids)} tokens leaves no room", retry=False)
            else:
                # The longest first: what does not fit into memory shows at once.
                jobs.append((request, ids, min(request.max_tokens, room)))
        jobs.sort(key=lambda job: (_parameters(job[0]), -len(job[1])))
        for _, group in itertools.groupby(jobs, key=lambda job: _parameters(job[0])):
            for batch in self._batches(list(group)):
                yield from self._sample(batch)

    def _encode(self, window: list[SampleRequest]) -> list[list[int]]:
        """Token ids of the prompts."""
        texts = [self._text(request.prompt) for request in window]
        ids: dict[int, list[int]] = {}
        for chat in (False, True):
            group = [i for i, (_, is_chat) in enumerate(texts) if is_chat == chat]
            if group:
                ids |= zip(group, encode(self.tokenizer, [texts[i][0] for i in group], chat), strict=True)
        closing = [self.tokenizer.eos_token_id] if self._encoder_decoder else []
        return [ids[i] + closing for i in range(len(window))]

    def _text(self, prompt: Prompt) -> tuple[str, bool]:
        """A prompt as text, and whether it comes out of a chat template."""
        if isinstance(prompt, str):
            return prompt, self.chat
        if self.tokenizer.chat_template is None:
            raise InputError(
                f"{self.model} has no chat template for a prompt of messages. Use a prompt of text, for example "
                "`--prompt few_shot_text`."
            )
        return self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False), True

    def _batches(self, jobs: list[tuple]) -> Iterator[list[tuple]]:
        """Consecutive jobs whose samples keep to `batch_size` and `cache_gb`; one job at least."""
        tokens = self.cache_gb * 1e9 / self._bytes_per_token
        batch: list[tuple] = []
        rows = longest = 0
        for job in jobs:
            longest = max(longest, len(job[1]) + job[2])
            if batch and (rows + job[0].n > self.batch_size or (rows + job[0].n) * longest > tokens):
                yield batch
                batch, rows, longest = [], 0, len(job[1]) + job[2]
            batch.append(job)
            rows += job[0].n
        if batch:
            yield batch

    @torch.inference_mode()
    def _sample(self, batch: list[tuple[SampleRequest, list[int], int]]) -> Iterator[SampleResult]:
        device = self._model.device
        requests = [request for request, _, _ in batch]
        rows = [_Row(i, sample, limit) for i, (request, _, limit) in enumerate(batch) for sample in range(request.n)]
        steps = max(limit for _, _, limit in batch)
        of_request = torch.tensor([row.request for row in rows], device=device)
        running = self._batch_class(self._model, [prompt for _, prompt, _ in batch], of_request, steps)
        limits = torch.tensor([row.limit for row in rows], device=device)
        chances = _chances(requests, rows, steps).to(device) if requests[0].temperature > 0 else None
        eos = torch.tensor(self._eos, dtype=torch.long, device=device)
        tokens = torch.zeros(len(rows), steps, dtype=torch.long, device=device)
        lengths = torch.full((len(rows),), steps, device=device)
        stopped = torch.zeros(len(rows), dtype=torch.bool, device=device)
        done = torch.zeros(len(rows), dtype=torch.bool, device=device)

        samples: list[dict[int, tuple[Choice, int]]] = [{} for _ in batch]
        for step in range(steps):
            chosen = _pick(running.logits, requests[0], None if chances is None else chances[:, step])
            tokens[:, step] = chosen
            ended = torch.isin(chosen, eos) & ~done
            stopped |= ended
            ended |= (step + 1 >= limits) & ~done
            lengths = torch.where(ended, step + 1, lengths)
            done |= ended
            last = step + 1 == steps
            if last or (step + 1) % CHECK_EVERY == 0:
                if requests[0].stop and not last:
                    self._find_stop_strings(tokens, step + 1, requests[0].stop, done, lengths)
                if last or done.float().mean() >= COMPACT_AT:
                    finished = done.nonzero().flatten().tolist()
                    for i in finished:
                        row, length = rows[i], int(lengths[i])
                        choice = self._choice(tokens[i, :length].tolist(), bool(stopped[i]), requests[0].stop)
                        samples[row.request][row.sample] = choice, length
                        request, prompt, _ = batch[row.request]
                        if len(samples[row.request]) == request.n:
                            yield _result(request, len(prompt), samples[row.request])
                    if len(finished) == len(rows):
                        return
                    left = (~done).nonzero().flatten()
                    rows = [rows[i] for i in left.tolist()]
                    running.keep(left)
                    tokens, lengths, limits, chosen = tokens[left], lengths[left], limits[left], chosen[left]
                    stopped, done = stopped[left], done[left]
                    chances = None if chances is None else chances[left]
            running.step(chosen)

    def _find_stop_strings(
        self, tokens: torch.Tensor, step: int, stop: Iterable[str], done: torch.Tensor, lengths: torch.Tensor
    ) -> None:
        """Mark the rows whose text holds a stop string."""
        texts = self.tokenizer.batch_decode(
            tokens[:, :step], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        for i, text in enumerate(texts):
            if not done[i] and any(string in text for string in stop):
                done[i], lengths[i] = True, step

    def _choice(self, ids: list[int], stopped: bool, stop: Iterable[str]) -> Choice:
        text = self.tokenizer.decode(
            ids[:-1] if stopped else ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return cut_at_stop(Choice(text, "stop" if stopped else "length"), stop)


def _parameters(request: SampleRequest) -> tuple:
    """Requests that agree in these can share a batch."""
    return request.temperature, request.top_p, tuple(request.stop)


def _chances(requests: list[SampleRequest], rows: list[_Row], steps: int) -> torch.Tensor:
    """A number in (0, 1] for each row and step, from a generator for each row."""
    generator = torch.Generator()
    chances = torch.empty(len(rows), steps, dtype=torch.float64)
    for i, row in enumerate(rows):
        request = requests[row.request]
        index = request.first_index + row.sample
        generator.manual_seed(derive_seed(request.seed, request.question_id, request.path, index))
        chances[i] = 1 - torch.rand(steps, generator=generator, dtype=torch.float64)
    return chances


def _pick(logits: torch.Tensor, request: SampleRequest, chances: torch.Tensor | None) -> torch.Tensor:
    """
    The next token of each row: where its number falls in the cumulative distribution.

    One number a token, and a small change of the logits moves few tokens.
    """
    if chances is None:
        return logits.argmax(-1)
    probabilities = (logits / request.temperature).softmax(-1)
    if request.top_p < 1:
        # Keep the likeliest tokens until their mass is `top_p`, in the order of the vocabulary.
        ordered, order = probabilities.sort(descending=True)
        outside = (ordered.cumsum(-1) - ordered >= request.top_p).gather(1, order.argsort())
        probabilities = probabilities.masked_fill(outside, 0)
    cumulative = probabilities.cumsum(-1)
    # The first token whose sum reaches a number above 0 has a probability above 0.
    wanted = (chances[:, None] * cumulative[:, -1:]).to(cumulative.dtype)
    return torch.searchsorted(cumulative, wanted).squeeze(1)


def _result(request: SampleRequest, prompt_tokens: int, samples: dict[int, tuple[Choice, int]]) -> SampleResult:
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": sum(length for _, length in samples.values())}
    return SampleResult(request, [samples[i][0] for i in range(request.n)], usage)


def _load(model: str, device: str) -> PreTrainedModel:
    # bf16 is several times slower than fp32 on a CPU.
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    adapter = find_adapter_config_file(model) is not None
    base = PeftConfig.from_pretrained(model).base_model_name_or_path if adapter else model
    if AutoConfig.from_pretrained(base).is_encoder_decoder:
        auto_class = AutoPeftModelForSeq2SeqLM if adapter else AutoModelForSeq2SeqLM
    else:
        auto_class = AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM
    loaded = auto_class.from_pretrained(model, dtype=dtype)
    return (loaded.merge_and_unload() if adapter else loaded).to(device)
