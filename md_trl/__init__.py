"""Mixed Distillation for TRL (https://huggingface.co/papers/2312.10730)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING


__version__ = "0.1.0.dev0"

# Loaded on first use, so that `import md_trl` does not import torch.
_MODULES = {
    "MDConfig": "md_trl.trainer",
    "MDSeq2SeqConfig": "md_trl.trainer",
    "MDSeq2SeqTrainer": "md_trl.trainer",
    "MDTrainer": "md_trl.trainer",
    "MixedReasoner": "md_trl.reasoner",
    "MixedThoughts": "md_trl.dataset",
    "register_metric": "md_trl.metric",
    "unregister_metric": "md_trl.metric",
}

__all__ = [
    "MDConfig",
    "MDSeq2SeqConfig",
    "MDSeq2SeqTrainer",
    "MDTrainer",
    "MixedReasoner",
    "MixedThoughts",
    "__version__",
    "register_metric",
    "unregister_metric",
]

if TYPE_CHECKING:
    from .dataset import MixedThoughts
    from .metric import register_metric, unregister_metric
    from .reasoner import MixedReasoner
    from .trainer import MDConfig, MDSeq2SeqConfig, MDSeq2SeqTrainer, MDTrainer


def __getattr__(name: str):
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'md_trl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
