"""The students: [`MDTrainer`] minimizes the typed, lambda-weighted two-path loss (Sec. 3.2)."""

from .md_config import MDConfig
from .md_trainer import MDTrainer


__all__ = ["MDConfig", "MDTrainer"]
