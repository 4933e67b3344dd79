"""Drawing the next token of each row of a batch, where every row has its own temperature and `top_p`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...records import SamplingParams


class TokenSampler:
    r"""
    Draws tokens by inverting the cumulative distribution.

    This takes one random number per token, and a small change of the logits changes few tokens.

    Args:
        params (`Sequence[SamplingParams]`):
            How to sample, for each row.
        device (`torch.device`):
            Device of the logits.
    """

    def __init__(self, params: Sequence[SamplingParams], device: torch.device):
        self._all_greedy = all(p.temperature == 0 for p in params)
        self._any_greedy = any(p.temperature == 0 for p in params)
        self._any_top_p = any(p.top_p < 1 for p in params)
        self._temperatures = torch.tensor([[p.temperature] for p in params], device=device)
        self._top_p = torch.tensor([[p.top_p] for p in params], device=device)

    def __call__(self, logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        r"""
        Draw one token per row.

        Args:
            logits (`torch.Tensor` of shape `(rows, vocabulary)`):
                Scores in fp32.
            uniforms (`torch.Tensor` of shape `(rows,)`):
                Random numbers in (0, 1].

        Returns:
            `torch.Tensor` of shape `(rows,)`: The tokens.
        """
        if self._all_greedy:
            return logits.argmax(-1)
        temperatures = self._temperatures
        if self._any_greedy:
            temperatures = temperatures.masked_fill(temperatures == 0, 1)
        probabilities = (logits / temperatures).softmax(-1)
        if self._any_top_p:
            # Keep the most likely tokens until their mass reaches `top_p`, in the order of the vocabulary.
            ordered, order = probabilities.sort(descending=True)
            outside = (ordered.cumsum(-1) - ordered >= self._top_p) & (self._top_p < 1)
            probabilities = probabilities.masked_fill(outside.gather(1, order.argsort()), 0)
        cumulative = probabilities.cumsum(-1)
        # The first token whose cumulative probability reaches a number above 0 has a probability above 0.
        target = (uniforms[:, None] * cumulative[:, -1:]).to(cumulative.dtype)
        tokens = torch.searchsorted(cumulative, target).squeeze(1)
        return torch.where(self._temperatures[:, 0] == 0, logits.argmax(-1), tokens) if self._any_greedy else tokens


def logprobs_of(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability of each row's next token under the model itself: at temperature 1, of the whole vocabulary."""
    return logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(-1)
