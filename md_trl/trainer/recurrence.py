"""
Recurrent layers in a prefix tree: convolutions, linear attention, state-space layers.

Attention follows a tree through its mask. A layer that carries a state from token to token cannot: it reads a row from
left to right, so the state at the end of one branch would leak into the next. Such a layer runs on the unrolled tree,
one row per path from a root to a leaf, and its output at a node is taken from any path through that node: all of them
begin with the same ancestors, so they agree. Everything else (attention, feed-forward layers, the LM head) still runs
once per node.

transformers hands a mask to every layer, one for each kind. A recurrent layer gets [`TreePaths`] in its place, so
gradient checkpointing replays it as it replays any argument.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


RECURRENT_MASKS = ("linear_attention", "conv")
"""Kinds of layers that take a [`TreePaths`], by the names that transformers gives their masks."""


class TreePaths(NamedTuple):
    """
    The paths of the trees of a batch of B rows of T nodes.

    Args:
        nodes (`torch.Tensor` of shape `(P, L)`):
            For each of P paths, its nodes in the flattened rows. Shorter paths end in zeros.
        places (`torch.Tensor` of shape `(B, T)`):
            For each node, a place in the flattened paths where it is found.
    """

    nodes: torch.Tensor
    places: torch.Tensor


def tree_paths(ends: torch.Tensor, positions: torch.Tensor) -> TreePaths:
    r"""
    Unroll prefix trees.

    Args:
        ends (`torch.Tensor` of shape `(B, T)`):
            Ends of the nodes, as in [`PrefixTree`].
        positions (`torch.Tensor` of shape `(B, T)`):
            Depths of the nodes.

    Returns:
        [`TreePaths`]: A path per leaf.
    """
    batch, length = ends.shape
    nodes = torch.arange(length, device=ends.device)
    # A tree of a single node fills a row up, and has no path
    leaves = (ends == nodes + 1) & (positions > 0)
    leaves[0, -1] |= ~leaves.any()
    rows, last = leaves.nonzero(as_tuple=True)
    path, node = ((nodes <= last[:, None]) & (last[:, None] < ends[rows])).nonzero(as_tuple=True)
    unrolled = torch.zeros(len(rows), int(positions.max()) + 1, dtype=torch.long, device=ends.device)
    unrolled[path, positions[rows[path], node]] = rows[path] * length + node
    # Depth-first order: the first leaf from a node on is below it
    before = leaves.flatten().cumsum(0) - leaves.flatten().long()
    path_of_node = before.clamp(max=len(rows) - 1).view(batch, length)
    return TreePaths(unrolled, path_of_node * unrolled.shape[1] + positions)


def unroll_recurrent_layers(model: PreTrainedModel) -> None:
    r"""
    Let the recurrent layers of a model take a [`TreePaths`] in place of their mask.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Model of which the blocks of each decoder layer are prepared. Those that never receive a [`TreePaths`] run
            as before.
    """
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            for block in layer.children():
                if not isinstance(block, GradientCheckpointingLayer):
                    block.forward = functools.partial(_run_on_paths, block.forward)


def _run_on_paths(forward: Callable[..., Any], *args, **kwargs) -> Any:
    paths = next((value for value in kwargs.values() if isinstance(value, TreePaths)), None)
    if paths is None:
        return forward(*args, **kwargs)

    def unroll(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.shape[:2] == paths.places.shape:
            return value.flatten(0, 1)[paths.nodes]
        return None if value is paths else value

    outputs = forward(*map(unroll, args), **{name: unroll(value) for name, value in kwargs.items()})
    states, *rest = outputs if isinstance(outputs, tuple) else (outputs,)
    states = states.flatten(0, 1)[paths.places]
    return (states, *rest) if isinstance(outputs, tuple) else states
