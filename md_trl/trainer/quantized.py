"""Keep 4-bit layers trainable while the model is in evaluation mode."""

from __future__ import annotations

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
    for module in model.modules():
        if type(module).__module__.startswith("bitsandbytes"):
            module.training = True
