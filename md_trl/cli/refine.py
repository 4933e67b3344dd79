"""`md-trl refine`: let a student go on learning from its own two paths."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from ..records import STUDENT_MAX_TOKENS, SamplingParams
from ..refine.options import RefineOptions


if TYPE_CHECKING:
    from trl import ModelConfig

    from ..trainer import MDConfig


@dataclass(kw_only=True)
class RefineArguments(RefineOptions):
    r"""
    Arguments of `md-trl refine`, beside those of [`RefineOptions`]. [`MDConfig`] describes the training of one round,
    [`~trl.ModelConfig`] how a model is loaded and the base model.

    Args:
        model (`str`):
            The student: a folder, a Hub id or an adapter.
        task (`str`):
            Task whose training questions the store holds.
        store (`str`):
            Store of the teacher's thoughts. The student's own thoughts are added to it.
        output (`str`):
            Folder for `refine.json`, the rounds and the best student. The same command goes on with it.
        temperature (`float`, *optional*, defaults to `0.7`):
            Sampling temperature of the student.
        max_tokens (`int`, *optional*, defaults to `256`):
            Maximum length of a thought in tokens.
    """

    model: str = field(metadata={"help": "The student: a folder, a Hub id or an adapter."})
    task: str = field(metadata={"help": "Task whose training questions the store holds."})
    store: str = field(metadata={"help": "Store of the teacher's thoughts. The student's own are added to it."})
    output: str = field(metadata={"help": "Folder for `refine.json`, the rounds and the best student."})
    temperature: float = field(default=SamplingParams.temperature, metadata={"help": "Sampling temperature."})
    max_tokens: int = field(default=STUDENT_MAX_TOKENS, metadata={"help": "Maximum length of a thought in tokens."})


ARGUMENTS = RefineArguments
MORE_ARGUMENTS = (("md_trl.trainer", "MDConfig"), ("trl", "ModelConfig"))
SHOWN = (
    # of the refinement, what most runs set
    *("rounds", "n", "types_by", "own_share", "per_path", "start_from", "labels", "unlabelled", "label_precision"),
    *("validation", "keep_by", "limit"),
    # of the training
    *("model_name_or_path", "use_peft", "load_in_4bit"),
    *("max_steps", "learning_rate", "per_device_train_batch_size", "max_length"),
)
"""Fields of [`MDConfig`] and [`~trl.ModelConfig`] that `--help` shows. `--help-all` shows all of them."""


def run(args: RefineArguments, training_args: MDConfig, model_args: ModelConfig) -> None:
    """Refine the student and print a table of the rounds."""
    from ..refine import describe, refine

    options = RefineOptions(**{option.name: getattr(args, option.name) for option in fields(RefineOptions)})
    params = SamplingParams(temperature=args.temperature, max_tokens=args.max_tokens)
    found = refine(args.model, args.task, args.store, args.output, training_args, options, params, model_args)
    output = Path(args.output)
    print(f"\n{describe(found)}\n\nWrote {output / 'refine.json'}. The best student is {output / 'student'}.")
