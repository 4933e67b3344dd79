"""Mixed Distillation in evaluation harnesses: Inspect AI, lm-evaluation-harness and lighteval.

No harness votes over two prompts, and their own votes count strings, so that "5" is not "5.0". These files only
translate: prompts, answers, votes and equality are those of `md-trl eval`, and so are the accuracies. A harness is
imported by its own file alone.
"""

from pathlib import Path

from .thoughts import figures, read_texts


__all__ = ["LM_EVAL_TASKS", "figures", "read_texts"]

LM_EVAL_TASKS = Path(__file__).parent / "lm_eval_tasks"
"""Folder for `lm_eval --include_path`."""
