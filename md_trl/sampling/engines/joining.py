"""Decoding in a batch that new samples join while others are being written.

The tokens of all rows end in the same column of the key-value cache, whenever they began. So a prompt that was run on
its own joins by writing its keys and values in front of that column, and the cache is as wide as its longest row.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from .decoding import pad


# Columns that are allocated ahead. Once they are full, the keys and values of all rows are moved.
SPARE_COLUMNS = 64


def can_join(model: PreTrainedModel, cache: Cache) -> bool:
    r"""
    Decide whether rows can join a batch of a causal language model.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model. It must take the positions of tokens: some older models count the columns of the cache instead.
        cache ([`~transformers.cache_utils.Cache`]):
            A cache that it made. All layers must keep every token, which sliding windows and recurrent states do not.

    Returns:
        `bool`: Whether rows can join.
    """
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    return takes_positions and all(type(layer) is DynamicLayer for layer in cache.layers)


class Prefilled(NamedTuple):
    r"""
    Prompts that the model has read.

    Args:
        cache ([`~transformers.cache_utils.Cache`]):
            The cache that the model made.
        layers (`list[DynamicLayer]`):
            Keys and values, padded on the left.
        lengths (`list[int]`):
            Number of tokens of each prompt.
        logits (`torch.Tensor`):
            Scores of the token after each prompt.
    """

    cache: Cache
    layers: list[DynamicLayer]
    lengths: list[int]
    logits: torch.Tensor


class PrefilledPrompts:
    r"""
    What the model has read of prompts, for those that are asked again. The oldest are forgotten first.

    Args:
        max_tokens (`float`):
            Maximum number of tokens that are kept, padding included.
    """

    def __init__(self, max_tokens: float):
        self._max_tokens, self._tokens = max_tokens, 0
        self._groups: deque[list[tuple[int, ...]]] = deque()
        self._found: dict[tuple[int, ...], tuple[Prefilled, int]] = {}

    def get(self, prompt: list[int]) -> tuple[Prefilled, int] | None:
        """Where a prompt is; `None` if it must be read."""
        return self._found.get(tuple(prompt))

    def add(self, prompts: Sequence[list[int]], prefilled: Prefilled) -> None:
        """Keep prompts that were read together."""
        group = [tuple(prompt) for prompt in prompts]
        self._found |= {prompt: (prefilled, i) for i, prompt in enumerate(group)}
        self._groups.append(group)
        self._tokens += _padded(group)
        while self._tokens > self._max_tokens:
            oldest = self._groups.popleft()
            self._tokens -= _padded(oldest)
            for prompt in oldest:
                self._found.pop(prompt, None)


def _padded(group: Sequence[tuple[int, ...]]) -> int:
    return len(group) * max(map(len, group))


class JoiningDecoder:
    r"""
    Decodes with a causal language model whose cache rows can join, see [`can_join`].

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.

    Attributes:
        logits (`torch.Tensor`):
            After a `step`, the scores of the next token of every row.
    """

    def __init__(self, model: PreTrainedModel):
        self._model = model
        self._cache: Cache | None = None
        self._layers: list[_SlotLayer] = []
        self._lengths: list[int] = []
        self._device_lengths = torch.zeros(0, dtype=torch.long, device=model.device)

    def prefill(self, prompts: Sequence[list[int]]) -> Prefilled:
        """Run prompts."""
        ids, mask = pad(prompts, "left", self._model.device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = self._model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1
        )
        cache, lengths = output.past_key_values, [len(prompt) for prompt in prompts]
        return Prefilled(cache, list(cache.layers), lengths, output.logits[:, -1].float())

    def join(self, groups: Sequence[tuple[Prefilled, Sequence[int], Sequence[int]]]) -> None:
        r"""
        Let samples continue prompts.

        Args:
            groups (`Sequence[tuple[Prefilled, Sequence[int], Sequence[int]]]`):
                Prompts that were run together; the index among them of the prompt of each sample; the row of each
                sample: one that is free, or a new one after the last.
        """
        if self._cache is None:
            self._layers = [_SlotLayer(layer) for layer in groups[0][0].layers]
            self._cache = groups[0][0].cache
            self._cache.layers = list(self._layers)
        taken = [row for _, _, rows in groups for row in rows]
        for row in taken:
            if row < len(self._lengths):
                self._lengths[row] = 0
        added = max(0, max(taken) + 1 - len(self._lengths))
        width = max(self._lengths, default=0)
        left = max(0, max(max(prefilled.lengths) for prefilled, _, _ in groups) - width)
        if added or width + left > self._layers[0].end:
            for layer in self._layers:
                layer.move(None, added, width, left)
            self._lengths += [0] * added
        for prefilled, prompts, rows in groups:
            index, slots = (torch.tensor(numbers, device=self._model.device) for numbers in (prompts, rows))
            for layer, of_prompts in zip(self._layers, prefilled.layers, strict=True):
                layer.write(slots, of_prompts.keys[index], of_prompts.values[index])
            for prompt, row in zip(prompts, rows, strict=True):
                self._lengths[row] = prefilled.lengths[prompt]
        self._upload_lengths()

    def free(self, rows: Sequence[int]) -> None:
        """Forget the tokens of rows whose samples have ended. They are still computed, but see nothing of the past."""
        for row in rows:
            self._lengths[row] = 0
        self._upload_lengths()

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all other rows."""
        self._lengths = [self._lengths[row] for row in rows.tolist()]
        for layer in self._layers:
            layer.move(rows, 0, max(self._lengths), 0)
        self._upload_lengths()

    def step(self, tokens: torch.Tensor) -> None:
        """Append one token to every row."""
        width = max(self._lengths)
        for layer in self._layers:
            if layer.end == layer.capacity:
                layer.move(None, 0, width, 0)
            layer.narrow(width)
        columns = torch.arange(width + 1, device=self._model.device)
        output = self._model(
            input_ids=tokens[:, None],
            attention_mask=(columns >= width - self._device_lengths[:, None]).long(),
            position_ids=self._device_lengths[:, None],
            past_key_values=self._cache,
            use_cache=True,
        )
        self._device_lengths = self._device_lengths + 1
        self._lengths = [length + 1 for length in self._lengths]
        self.logits = output.logits[:, -1].float()

    def _upload_lengths(self) -> None:
        self._device_lengths = torch.tensor(self._lengths, dtype=torch.long, device=self._model.device)


class _SlotLayer(DynamicLayer):
    """Keys and values of one layer, in columns `end - width` to `end` of memory that is allocated ahead."""

    def __init__(self, like: DynamicLayer):
        super().__init__()
        self.lazy_initialization(like.keys, like.values)
        shapes = ((0, states.shape[1], 0, states.shape[3]) for states in (like.keys, like.values))
        self._all_keys, self._all_values = (like.keys.new_zeros(shape) for shape in shapes)
        self.end = 0

    @property
    def capacity(self) -> int:
        return self._all_keys.shape[2]

    def move(self, rows: torch.Tensor | None, added: int, width: int, left: int) -> None:
        """Move the last columns of all or some rows to new memory, with more rows below and more columns around."""
        self._all_keys = self._moved(self._all_keys, rows, added, width, left)
        self._all_values = self._moved(self._all_values, rows, added, width, left)
        self.end = left + width
        self.narrow(self.end)

    def _moved(
        self, memory: torch.Tensor, rows: torch.Tensor | None, added: int, width: int, left: int
    ) -> torch.Tensor:
        kept = memory[:, :, self.end - width : self.end]
        kept = kept if rows is None else kept[rows]
        # Zeros, because a column that a row must not see has the weight 0, and 0 times NaN is NaN.
        columns = left + width + SPARE_COLUMNS
        new = memory.new_zeros(len(kept) + added, memory.shape[1], columns, memory.shape[3])
        new[: len(kept), :, left : left + width] = kept
        return new

    def narrow(self, width: int) -> None:
        self._start = self.end - width
        self._view()

    def write(self, rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write prompts in front of the next column."""
        begin = self.end - keys.shape[2]
        self._all_keys[:, :, begin : self.end][rows] = keys
        self._all_values[:, :, begin : self.end][rows] = values
        self._start = min(self._start, begin)
        self._view()

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        self._all_keys[:, :, self.end : self.end + 1] = key_states
        self._all_values[:, :, self.end : self.end + 1] = value_states
        self.end += 1
        self._view()
        return self.keys, self.values

    def _view(self) -> None:
        self.keys = self._all_keys[:, :, self._start : self.end]
        self.values = self._all_values[:, :, self._start : self.end]
