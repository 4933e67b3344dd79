"""
Compute the loss over the edges of a batch, and what the logs need, without the logits of all edges (Sec. 3.2).

16 questions with 20 + 20 thoughts have 54,492 edges, whose logits would take 33 GB per copy with a vocabulary of 152k.
Only a chunk of them exists at any time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput
from trl.kernels import ChunkedLogProbFunction


CHUNK_SIZE = 2**25
"""Number of logits that exist at a time on a CPU: 128 MB in float32."""

VOCABULARY_CHUNK_SIZE = 32768
"""Columns of a tile of logits on an accelerator, as in `trl.trainer.utils`."""


@dataclass
class EdgeScores(ModelOutput):
    r"""
    What a model returns within [`EdgeScorer.scoring`] instead of its logits.

    Args:
        loss (`torch.Tensor` of shape `()`):
            Sum of `weights[e] * losses[e]` over the edges. It is the only field with a gradient.
        losses (`torch.Tensor` of shape `(E,)`):
            Cross-entropy of each edge.
        correct (`torch.Tensor` of shape `(E,)`, `bool`):
            Whether the target of each edge is the most likely token.
    """

    loss: torch.Tensor | None = None
    losses: torch.Tensor | None = None
    correct: torch.Tensor | None = None


@dataclass(frozen=True)
class LogitTransform:
    r"""
    What a model does to the output of its LM head: `softcap * tanh(scale * x / softcap)`, or `scale * x`.

    Args:
        scale (`float`, *optional*, defaults to `1.0`):
            Factor of the logits, as in Cohere, Granite and Falcon-H1.
        softcap (`float`, *optional*):
            Bound of the logits, as in Gemma.
    """

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def measure_transform(lm_head: nn.Module, forward: Callable[[], ModelOutput]) -> LogitTransform | None:
    r"""
    Measure what the forward pass of a model does to the output of its LM head.

    The LM head is made to return known numbers, so the result does not depend on the weights, nor on the many names of
    scales and caps in model configurations.

    Args:
        lm_head (`nn.Module`):
            Output embeddings of the model.
        forward (`Callable`):
            Runs the model on any batch and returns its outputs.

    Returns:
        [`LogitTransform`], *optional*: The transform, or `None` if the model does something else, such as adding a
        bias to the logits or dropping some of them.
    """
    known: list[torch.Tensor] = []

    def select_nothing(module, args):
        return (args[0][:, :0],)

    def return_known(module, args, output):
        grid = torch.linspace(-300.0, 300.0, output.shape[-1], device=output.device)
        rows = torch.stack([torch.ones_like(grid), torch.full_like(grid, 1e6), grid, grid.flip(0)])
        known.append(rows[None].to(torch.promote_types(output.dtype, torch.float32)))
        return known[0]

    hooks = lm_head.register_forward_pre_hook(select_nothing), lm_head.register_forward_hook(return_known)
    try:
        with torch.no_grad():
            found = forward().logits
    finally:
        for hook in hooks:
            hook.remove()
    if found.shape != known[0].shape:
        return None
    one, limit = found[0, 0, 0].item(), found[0, 1, 0].item()
    if math.isclose(limit, one * 1e6, rel_tol=1e-3):
        transform = LogitTransform(scale=one)
    elif 0 < one < limit:
        transform = LogitTransform(scale=limit * math.atanh(one / limit), softcap=limit)
    else:
        return None
    return transform if torch.allclose(transform(known[0]), found.to(known[0].dtype), rtol=1e-5, atol=1e-5) else None


# A custom operator, so that `torch.compile` does not unroll the loop, whose length depends on the number of edges
@torch.library.custom_op("md_trl::weighted_cross_entropy", mutates_args=())
def _weighted_cross_entropy(
    states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    edge_weights: torch.Tensor,
    scale: float,
    softcap: float | None,
    needs_grad: list[bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Return the fields of [`EdgeScores`], and the gradients of the loss with respect to states, weight and bias.

    Since the weights of the edges are known beforehand, the gradients are computed together with the loss, and no
    logit is computed twice.
    """
    dtype = torch.promote_types(states.dtype, torch.float32)
    losses = states.new_empty(len(states), dtype=dtype)
    correct = torch.empty_like(targets, dtype=torch.bool)
    grads = _empty_gradients(states, weight, bias, needs_grad, dtype)
    rows = max(1, CHUNK_SIZE // len(weight))
    buffer = states.new_empty(min(rows, len(states)), len(weight))
    for start in range(0, len(states), rows):
        part = slice(start, start + rows)
        target = targets[part, None]
        logits = buffer[: len(target)]
        if bias is None:
            torch.mm(states[part], weight.T, out=logits)
        else:
            torch.addmm(bias, states[part], weight.T, out=logits)
        logits = logits.to(dtype).mul_(scale)
        if softcap is not None:
            logits.div_(softcap).tanh_()
            slope = 1 - logits.square()
            logits.mul_(softcap)
        best, argmax = logits.max(1, keepdim=True)
        target_logits = logits.gather(1, target)
        exponentials = logits.sub_(best).exp_()
        total = exponentials.sum(1, keepdim=True)
        losses[part] = (best + total.log() - target_logits).squeeze(1)
        correct[part] = (argmax == target).squeeze(1)
        if not any(needs_grad):
            continue
        edge_weight = edge_weights[part, None].to(dtype) * scale
        grad = exponentials.mul_(edge_weight / total).scatter_add_(1, target, -edge_weight)
        if softcap is not None:
            grad.mul_(slope)
        if needs_grad[0]:
            grads[0][part] = grad.to(states.dtype) @ weight
        if needs_grad[1]:
            grads[1].addmm_(grad.T, states[part].to(dtype))
        if needs_grad[2]:
            grads[2] += grad.sum(0)
    loss = (losses * edge_weights).sum()
    return loss, losses, correct, *grads


@_weighted_cross_entropy.register_fake
def _weighted_cross_entropy_fake(states, weight, bias, targets, edge_weights, scale, softcap, needs_grad):
    dtype = torch.promote_types(states.dtype, torch.float32)
    losses = states.new_empty(states.shape[0], dtype=dtype)
    grads = _empty_gradients(states, weight, bias, needs_grad, dtype)
    return (losses * edge_weights).sum(), losses, torch.empty_like(targets, dtype=torch.bool), *grads


def _empty_gradients(states, weight, bias, needs_grad, dtype) -> list[torch.Tensor]:
    shapes = (states.shape, weight.shape, weight.shape[:1])
    return [
        states.new_zeros(shape if needed else 0, dtype=dtype) for shape, needed in zip(shapes, needs_grad, strict=True)
    ]


def _save_gradients(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[3:])
    ctx.needed, ctx.dtypes = inputs[-1], [None if tensor is None else tensor.dtype for tensor in inputs[:3]]


def _scale_gradients(ctx, grad_loss, *_):
    grads = [
        (grad * grad_loss).to(dtype) if needed and grad_loss is not None else None
        for grad, needed, dtype in zip(ctx.saved_tensors, ctx.needed, ctx.dtypes, strict=True)
    ]
    return *grads, None, None, None, None, None


_weighted_cross_entropy.register_autograd(_scale_gradients, setup_context=_save_gradients)


def edge_scores(
    states: torch.Tensor,
    head: nn.Linear,
    targets: torch.Tensor,
    edge_weights: torch.Tensor,
    transform: LogitTransform | None = None,
) -> EdgeScores:
    r"""
    Score edges, a chunk of logits at a time.

    On a CPU the gradients are computed along with the loss. On an accelerator TRL's `ChunkedLogProbFunction` runs,
    which computes the logits again in the backward pass.

    Args:
        states (`torch.Tensor` of shape `(E, H)`):
            Hidden state that each edge starts from.
        head (`nn.Linear`):
            LM head.
        targets (`torch.Tensor` of shape `(E,)`):
            Token that each edge leads to.
        edge_weights (`torch.Tensor` of shape `(E,)`):
            Weight of each edge in the loss.
        transform ([`LogitTransform`], *optional*):
            What the model does to the output of the LM head.

    Returns:
        [`EdgeScores`]: Loss of the batch and scores of each edge.
    """
    score = _cpu_scores if states.device.type == "cpu" else _accelerator_scores
    return score(states, head.weight, head.bias, targets, edge_weights, transform or LogitTransform())


def _cpu_scores(states, weight, bias, targets, edge_weights, transform) -> EdgeScores:
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else states.dtype
    tensors = [None if tensor is None else tensor.to(dtype) for tensor in (states, weight, bias)]
    needs_grad = [torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in tensors]
    scores = _weighted_cross_entropy(*tensors, targets, edge_weights, transform.scale, transform.softcap, needs_grad)
    return EdgeScores(*scores[:3])


def _accelerator_scores(states, weight, bias, targets, edge_weights, transform) -> EdgeScores:
    log_probs, *_, correct = ChunkedLogProbFunction.apply(
        states, weight, bias, targets, 1.0, VOCABULARY_CHUNK_SIZE, transform.softcap, transform.scale, ("is_top1",)
    )
    return EdgeScores(-(log_probs * edge_weights).sum(), -log_probs.detach(), correct)


class EdgeScorer:
    r"""
    Hooks that make a model return the scores of edges instead of the logits of all positions.

    They work inside the forward pass of the wrapped model, as DDP and FSDP need. An LM head that is not a plain linear
    layer (for example with LoRA on it), or whose output the model transforms in an unknown way, is called as usual, on
    the hidden states of all edges at once.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Model to score with, or a [`~peft.PeftModel`], before it is wrapped for distributed training.
        chunked (`bool`, *optional*, defaults to `True`):
            Whether to compute the logits in chunks if possible.
    """

    # The edges to score, and the scorer. A class attribute, since `torch.compile` treats tensors that it reaches
    # through a module as static, and would recompile for every number of edges
    _scored: ClassVar[tuple[EdgeScorer, torch.Tensor, torch.Tensor, torch.Tensor] | None] = None

    def __init__(self, model: PreTrainedModel, chunked: bool = True):
        self._model, self._head = model, model.get_output_embeddings()
        wrapped = isinstance(self._head, ModulesToSaveWrapper)
        self._linear = self._head.modules_to_save[self._head.active_adapters[0]] if wrapped else self._head
        self._transform: LogitTransform | None = None
        self._is_measured = not chunked or type(self._linear) is not nn.Linear
        self._states = self._scores = None
        self._head.register_forward_pre_hook(self._select_states)
        self._head.register_forward_hook(self._replace_logits)
        model.register_forward_hook(self._return_scores)

    @property
    def chunked(self) -> bool:
        """Whether the logits are computed in chunks."""
        return self._transform is not None

    def measure(self, forward: Callable[[], ModelOutput]) -> None:
        r"""
        Measure what the model does to the output of its LM head, unless that is known already.

        Args:
            forward (`Callable`):
                Runs the model on any batch and returns its outputs.
        """
        if self._is_measured:
            return
        # In training mode, because bitsandbytes may repack 4-bit weights in evaluation mode
        device = self._head.weight.device
        evaluating = [module for module in self._model.modules() if not module.training]
        self._model.train()
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            self._transform = measure_transform(self._head, forward)
        for module in evaluating:
            module.training = False
        self._is_measured = True

    @contextmanager
    def scoring(self, parents: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> Iterator[None]:
        r"""
        Make the model return [`EdgeScores`] within the context.

        Args:
            parents (`torch.Tensor` of shape `(E,)`):
                Position that each edge starts from, in the flattened rows of the batch.
            targets (`torch.Tensor` of shape `(E,)`):
                Token that each edge leads to.
            weights (`torch.Tensor` of shape `(E,)`):
                Weight of each edge in the loss.
        """
        EdgeScorer._scored = self, parents, targets, weights
        try:
            yield
        finally:
            EdgeScorer._scored = self._states = self._scores = None

    def _is_scoring(self) -> bool:
        # Each trainer of a model registers hooks of its own
        return EdgeScorer._scored is not None and EdgeScorer._scored[0] is self

    def _select_states(self, head, args):
        if not self._is_scoring():
            return None
        (states,) = args
        selected = states.flatten(0, 1)[EdgeScorer._scored[1]]
        if not self.chunked:
            return (selected[None],)
        self._states = selected
        return (states[:, :0],)

    # FSDP hooks the backward pass of the LM head on its output, so its output is the loss
    def _replace_logits(self, head, args, output):
        if not self.chunked or not self._is_scoring():
            return None
        _, _, targets, weights = EdgeScorer._scored
        self._scores = edge_scores(self._states, self._linear, targets, weights, self._transform)
        self._scores.loss = self._scores.loss.view(1, 1, 1)
        return self._scores.loss

    def _return_scores(self, model, args, output):
        if not self._is_scoring():
            return None
        if self.chunked:
            return EdgeScores(self._scores.loss.sum(), self._scores.losses, self._scores.correct)
        _, _, targets, weights = EdgeScorer._scored
        logits = output.logits.flatten(0, 1)
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        losses = F.cross_entropy(logits, targets, reduction="none")
        return EdgeScores((losses * weights).sum(), losses.detach(), logits.argmax(-1) == targets)
