"""Decoding of whole batches with a key-value cache: prompts are run once each, then every sample has its own row.

Both decoders have the same three verbs: they start from prompts, `step` appends one token to every row, and `keep`
drops the rows that have ended. `logits` always holds the scores of the next token of every row.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_outputs import BaseModelOutput


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of tokens without special tokens, as it was generated."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def count_kept(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str) -> int:
    r"""
    Count the tokens of a sample whose text was cut before a stop string.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        ids (`Sequence[int]`):
            All tokens that were generated.
        text (`str`):
            The text that was kept.

    Returns:
        `int`: The number of tokens that lie wholly in the text. A token that holds both the end of the text and the
        beginning of the stop string does not count.
    """

    def exceeds(count: int) -> bool:
        # Part of a character is decoded to one or more replacement characters.
        return len(decode(tokenizer, ids[:count]).rstrip("\ufffd")) > len(text)

    return bisect_left(range(len(ids) + 1), True, key=exceeds) - 1


class CausalDecoder:
    r"""
    Decodes with a causal language model of any kind of cache.

    Prompts of different lengths are padded on the left, which recurrent states and convolutions do not skip: for such
    models, all prompts must have the same length.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.
        prompts (`list[list[int]]`):
            Token ids of the prompts.
        rows (`torch.Tensor`):
            Index of the prompt that each sample continues.
        steps (`int`):
            Maximum number of tokens per sample.
    """

    def __init__(self, model: PreTrainedModel, prompts: list[list[int]], rows: torch.Tensor, steps: int):
        self._model = model
        # Left padding makes all samples begin in the same column.
        ids, mask = pad(prompts, "left", model.device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
        self._cache = output.past_key_values
        _expand_cache(self._cache, rows, steps)
        self._mask, self._position = mask[rows], positions[rows, -1:]
        self._last_position = model.config.get_text_config().max_position_embeddings - 1
        self.logits = output.logits[rows, -1].float()

    def keep(self, rows: torch.Tensor) -> None:
        self._cache.reorder_cache(rows)
        self._mask, self._position = self._mask[rows], self._position[rows]

    def step(self, tokens: torch.Tensor) -> None:
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        # A sample that has ended runs on until its row is dropped.
        self._position = (self._position + 1).clamp(max=self._last_position)
        output = self._model(
            input_ids=tokens[:, None],
            attention_mask=self._mask,
            position_ids=self._position,
            past_key_values=self._cache,
            use_cache=True,
        )
        self.logits = output.logits[:, -1].float()


class EncoderDecoder:
    r"""
    Decodes with an encoder-decoder model. The arguments are those of [`CausalDecoder`]; the encoder reads the prompts.
    """

    def __init__(self, model: PreTrainedModel, prompts: list[list[int]], rows: torch.Tensor, steps: int):
        self._model = model
        ids, mask = pad(prompts, "right", model.device)
        start = torch.full((len(prompts), 1), model.config.decoder_start_token_id, device=model.device)
        output = model(input_ids=ids, attention_mask=mask, decoder_input_ids=start, use_cache=True)
        self._cache = output.past_key_values
        _expand_cache(self._cache.self_attention_cache, rows, steps)
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


class _PreallocatedLayer(DynamicLayer):
    """
    Keys and values of one layer, allocated once for all tokens to come.

    A [`~transformers.cache_utils.DynamicLayer`] copies its content at every step, which takes longer than a forward
    pass of a small model.
    """

    def __init__(self, layer: DynamicLayer, rows: torch.Tensor, steps: int):
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self._allocate(layer, rows, layer.get_seq_length() + steps)

    def _allocate(self, layer: DynamicLayer, rows: torch.Tensor, capacity: int) -> None:
        used = layer.get_seq_length()
        keys, values = layer.keys[rows], layer.values[rows]
        self._all_keys = keys.new_empty(*keys.shape[:2], capacity, keys.shape[3])
        self._all_values = values.new_empty(*values.shape[:2], capacity, values.shape[3])
        self.keys, self.values = self._all_keys[:, :, :used], self._all_values[:, :, :used]
        self.keys.copy_(keys)
        self.values.copy_(values)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        start, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        self._all_keys[:, :, start:end] = key_states
        self._all_values[:, :, start:end] = value_states
        self.keys, self.values = self._all_keys[:, :, :end], self._all_values[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._allocate(self, indices, self._all_keys.shape[-2])

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.batch_select_indices(beam_idx)


def pad(prompts: Sequence[list[int]], side: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded token ids and the attention mask."""
    ids = [torch.tensor(prompt) for prompt in prompts]
    pad_sequence = torch.nn.utils.rnn.pad_sequence
    mask = pad_sequence([torch.ones_like(i) for i in ids], batch_first=True, padding_side=side)
    return pad_sequence(ids, batch_first=True, padding_side=side).to(device), mask.to(device)


def _expand_cache(cache: Cache, rows: torch.Tensor, steps: int) -> None:
    """Turn one row per prompt into one row per sample, with room for `steps` tokens."""
    for i, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[i] = _PreallocatedLayer(layer, rows, steps)
        else:
            layer.reorder_cache(rows)  # which all kinds of layers have, and which takes any number of rows
