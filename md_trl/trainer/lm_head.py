"""The LM head runs only where a target is predicted, which is the cheapest exact way to score thoughts (Sec. 3.2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class TargetStates:
    r"""
    Hook that hands an LM head only the hidden states that a target is predicted from.

    It works inside the forward pass of the wrapped model, as DDP and FSDP need.

    Args:
        lm_head (`torch.nn.Module`):
            Output embeddings of the student.
    """

    def __init__(self, lm_head: torch.nn.Module):
        self._parents: torch.Tensor | None = None
        lm_head.register_forward_pre_hook(self._select)

    @contextmanager
    def at(self, parents: torch.Tensor) -> Iterator[None]:
        r"""
        Restrict the LM head to some positions within the context.

        Args:
            parents (`torch.Tensor` of shape `(E,)`):
                Positions in the flattened rows of a batch, as many as there are targets. Each may occur several times.
        """
        self._parents = parents
        try:
            yield
        finally:
            self._parents = None

    def _select(self, lm_head: torch.nn.Module, args: tuple[torch.Tensor, ...]):
        if self._parents is None:
            return None
        (states,) = args
        return (states.flatten(0, 1)[self._parents][None],)
