"""Train a student to reason in prose and in programs (Sec. 3.2)."""

from ..weighting import path_rows
from .md_config import MDConfig
from .md_seq2seq_config import MDSeq2SeqConfig
from .md_seq2seq_trainer import MDSeq2SeqTrainer
from .md_trainer import MDTrainer
from .program_tokens import add_program_tokens


__all__ = ["MDConfig", "MDSeq2SeqConfig", "MDSeq2SeqTrainer", "MDTrainer", "add_program_tokens", "path_rows"]
