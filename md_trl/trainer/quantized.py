"""Keep 4-bit layers trainable while the model is in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def keep_trainable(model: nn.Module) -> None:
    r"""
    Put the quantized layers of bitsandbytes into training mode, whatever the mode of the rest.

    A 4-bit layer that runs in evaluation mode on a CPU with AVX512-bf16 is packed for inference, and its gradients are
    wrong from then on. Such a layer has no dropout, so its outputs do not depend on its mode.

    Args:
        model (`torch.nn.Module`):
            The model.
    """
    for module in _quantized_layers(model):
        module.training = True


@contextmanager
def kept_trainable(model: nn.Module) -> Iterator[None]:
    r"""
    Within the context, run the quantized layers of bitsandbytes in training mode, even if others change their mode.

    Args:
        model (`torch.nn.Module`):
            The model.
    """
    hooks = [
        layer.register_forward_pre_hook(lambda layer, _: keep_trainable(layer)) for layer in _quantized_layers(model)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _quantized_layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if type(module).__module__.startswith("bitsandbytes")]
