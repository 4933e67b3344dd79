"""How much memory a device has left, and how much of it the keys and values of samples may take."""

from __future__ import annotations

import psutil
import torch


# The rest is left to activations, logits and the layer that is being copied.
CACHE_SHARE = 0.8


def free_memory(device: torch.device) -> int:
    """Return the free memory of a device in bytes, with what PyTorch holds but does not use."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return psutil.virtual_memory().available


def cache_bytes(device: torch.device, cache_gb: float | None) -> float:
    r"""
    Decide how much memory the keys and values of all samples may take.

    A model of 7B parameters with 32 layers and 32 heads of 128 keeps 2 * 32 * 32 * 128 * 2 bytes = 0.5 MB per token in
    bf16. Its weights take 14 GB and leave 34 of 48 GB, of which the cache gets 27 GB, or 51,000 tokens: 78 samples
    with prompts of 100 tokens, texts of 500 and spare columns, almost four questions of 20 samples.

    Args:
        device (`torch.device`):
            Device of the model, which is loaded already.
        cache_gb (`float`, *optional*):
            Memory in GB. A share of the free memory by default.

    Returns:
        `float`: Bytes.
    """
    return CACHE_SHARE * free_memory(device) if cache_gb is None else cache_gb * 1e9
