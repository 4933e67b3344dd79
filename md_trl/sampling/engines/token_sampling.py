"""Drawing the next token of each row of a batch, where every row has its own temperature and `top_p`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...records import SamplingParams


class TokenSampler:
    r"""
    Draws tokens by halving the vocabulary until one token is left.

    Each halving takes a random number of its own, so floating-point noise changes few tokens: if it changes logits by
    at most d, it changes a halving into shares p and 1 - p with a probability of at most about 2dp(1 - p), and the
    token with one of at most about d times the entropy of the distribution in nats. Inverting the cumulative
    distribution with a single random number has no such bound: each token of the vocabulary has a limit that may
    shift past that number.

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
            uniforms (`torch.Tensor` of shape `(rows, draws)`):
                Random numbers in (0, 1], [`draws_per_token`] of them for each row.

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
        tokens = _draw(probabilities, uniforms)
        return torch.where(self._temperatures[:, 0] == 0, logits.argmax(-1), tokens) if self._any_greedy else tokens


def draws_per_token(vocabulary: int) -> int:
    """Number of times that a vocabulary is halved until one token is left."""
    return (vocabulary - 1).bit_length()


def _draw(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    # Token i is halved against token i + half, so that the sums are those of contiguous memory.
    levels = [weights]
    while (size := levels[-1].shape[1]) > 1:
        half, other = (size + 1) // 2, size // 2
        sums = levels[-1][:, :half].clone()
        sums[:, :other] += levels[-1][:, half:]
        levels.append(sums)
    tokens = torch.zeros(len(weights), 1, dtype=torch.long, device=weights.device)
    total = levels.pop()
    for draw, level in enumerate(reversed(levels)):
        half = (level.shape[1] + 1) // 2
        first = level.gather(1, tokens)
        # A random number above 0 never chooses a half of weight 0: its share of the total is 0, or the other's is 1.
        tokens = tokens + half * (uniforms[:, draw, None] * total > first)
        total = level.gather(1, tokens)
    return tokens.squeeze(1)


def logprobs_of(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability of each row's next token under the model itself: at temperature 1, of the whole vocabulary."""
    return logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(-1)
