"""Train the student of one round, or go on with a training that was killed."""

from __future__ import annotations

import gc
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import ModelConfig

from ..errors import InputError
from ..student_folder import last_checkpoint
from ..trainer import MDConfig
from ..trainer.making import make_trainer


# Where a run writes and what it logs: no student depends on them
_IRRELEVANT = (
    "output_dir logging_dir logging_strategy logging_steps logging_first_step report_to run_name project "
    "trackio_space_id disable_tqdm log_level log_level_replica save_strategy save_steps save_total_limit "
    "dataset_num_proc dataloader_num_workers hub_token hub_model_id push_to_hub resume_from_checkpoint seed"
).split()
_OBJECTIVES = ("md", "uniform")


def check_training(args: MDConfig) -> None:
    r"""
    Refuse a configuration that a round cannot be trained with.

    Args:
        args ([`MDConfig`]):
            Configuration of the training.

    Raises:
        [`~md_trl.errors.InputError`]: If a value is not supported.
    """
    if args.objective not in _OBJECTIVES:
        raise InputError(
            f"`objective={args.objective!r}` does not learn both paths, which a refinement samples and trains. Choose "
            f"{' or '.join(map(repr, _OBJECTIVES))}."
        )
    if args.unsolved_path == "majority":
        raise InputError("`unsolved_path='majority'` learns wrong thoughts, and a refinement keeps correct ones only.")
    for name, off in (("eval_strategy", "no"), ("load_best_model_at_end", False), ("push_to_hub", False)):
        if getattr(args, name) != off:
            raise InputError(
                f"`{name}={getattr(args, name)}` is not for a refinement, which validates each round and keeps the "
                f"best student. Leave it out, or set it to {off!r}."
            )
    if args.resume_from_checkpoint:
        raise InputError("`resume_from_checkpoint` is not needed: the same command goes on by itself. Leave it out.")


def training_settings(args: MDConfig) -> dict[str, Any]:
    """Return what a student depends on: the values of a configuration that are not those by default."""
    default = MDConfig("default", use_cpu=args.use_cpu).to_dict()
    return {
        name: value for name, value in args.to_dict().items() if name not in _IRRELEVANT and value != default.get(name)
    } | {"seed": args.seed}


def train_round(
    model: str, args: MDConfig, model_args: ModelConfig, rows: Dataset, folder: Path, round_: int, prompt_format: str
) -> dict[str, int]:
    r"""
    Train the student of a round, from its last checkpoint if there is one.

    Args:
        model (`str`):
            Folder or Hub id of the model to train.
        args ([`MDConfig`]):
            Configuration of the training. Each round has a seed of its own.
        model_args ([`~trl.ModelConfig`]):
            How to load the model.
        rows ([`~datasets.Dataset`]):
            Mixed rows.
        folder (`Path`):
            Folder of the student.
        round_ (`int`):
            The round, from 1.
        prompt_format (`str`):
            `"plain"` or `"chat"`.

    Returns:
        `dict[str, int]`: `steps` and `target_tokens` of the training.
    """
    values = {field.name: getattr(args, field.name) for field in fields(args) if field.init}
    values |= {"output_dir": str(folder), "seed": args.seed + round_, "prompt_format": prompt_format}
    values["model_init_kwargs"] = dict(args.model_init_kwargs or {})
    if args.data_seed is not None:
        values["data_seed"] = args.data_seed + round_
    trainer = make_trainer(model, type(args)(**values), model_args, rows)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    trainer.save_model(str(folder))
    trainer.save_state()
    counted = next(log for log in reversed(trainer.state.log_history) if "num_target_tokens" in log)
    figures = {"steps": trainer.state.global_step, "target_tokens": counted["num_target_tokens"]}
    del trainer
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return figures


def remove_checkpoints(folder: Path) -> None:
    """Remove what only a training that goes on needs."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
