"""Refine a student: let it go on learning from its own thoughts of both paths.

In: a student, and the store of its teacher's thoughts. Out: a folder with a student of each round, the dataset it was
trained on, and `refine.json`. Each room does what it did before: the store keeps the thoughts under the name of the
student and the round (`writers.py`), the judge marks them, `mixing.py` merges them with the teacher's, the trainer
trains. `labels.py` labels questions without gold answers.

The sources: rejection-sampled fine-tuning (https://huggingface.co/papers/2308.01825), SIKeD
(https://huggingface.co/papers/2410.18574), self-consistency as the judge (https://huggingface.co/papers/2411.04109).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .options import RefineOptions


if TYPE_CHECKING:
    from .run import refine
    from .tables import describe

__all__ = ["RefineOptions", "describe", "refine"]


def __getattr__(name: str) -> Any:
    """Import what needs PyTorch when it is asked for, so that the command line starts fast."""
    if name == "refine":
        from .run import refine

        return refine
    if name == "describe":
        from .tables import describe

        return describe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
