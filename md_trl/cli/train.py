"""`md-trl train`: run a recipe. Everything that a run depends on is in its YAML file."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from ..errors import InputError


if TYPE_CHECKING:
    from trl import ModelConfig

    from ..trainer import MDConfig


@dataclass
class RecipeArguments:
    r"""
    Data and evaluation of a recipe. The model is described by [`~trl.ModelConfig`], the training by [`MDConfig`].

    Args:
        dataset (`str`):
            Mixed thoughts: a folder or a Hub id. If there is none yet and `store` is given, it is built there.
        task (`str`):
            Task; the dataset's config.
        store (`str`, *optional*):
            Store of teacher thoughts to build the dataset from.
        train_limit (`int`, *optional*):
            Train on the first questions only.
        eval_task (`str`, *optional*):
            Task to evaluate the student on after training; not evaluated if left out.
        eval_split (`str`, *optional*, defaults to `"test"`):
            Split to evaluate on.
        eval_source (`str`, *optional*):
            Local copy of that task's original file.
        eval_limit (`int`, *optional*):
            Evaluate on the first questions only.
        eval_paths (`list[str]`, *optional*, defaults to `["cot", "pot"]`):
            Paths to sample: `cot`, `pot`, `label`.
        eval_n (`int`, *optional*, defaults to `10`):
            Thoughts a path.
        eval_temperature (`float`, *optional*, defaults to `0.7`):
            0 is greedy and needs `eval_n` 1.
        eval_max_tokens (`int`, *optional*, defaults to `256`):
            Longest thought in tokens.
        eval_store (`str`, *optional*):
            Store for the student's thoughts; by default `student.db` in the output folder.
        eval_output (`str`, *optional*):
            Folder for the results; by default `results` in the output folder.
    """

    dataset: str = field(metadata={"help": "Mixed thoughts: a folder or a Hub id; built from `store` if missing."})
    task: str = field(metadata={"help": "Task; the dataset's config."})
    store: str | None = field(default=None, metadata={"help": "Store of teacher thoughts to build the dataset from."})
    train_limit: int | None = field(default=None, metadata={"help": "Train on the first questions only."})
    eval_task: str | None = field(default=None, metadata={"help": "Task to evaluate on; not evaluated if left out."})
    eval_split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    eval_source: str | None = field(default=None, metadata={"help": "Local copy of that task's original file."})
    eval_limit: int | None = field(default=None, metadata={"help": "Evaluate on the first questions only."})
    eval_paths: list[str] = field(
        default_factory=lambda: ["cot", "pot"], metadata={"help": "Paths to sample: cot, pot, label."}
    )
    eval_n: int = field(default=10, metadata={"help": "Thoughts a path."})
    eval_temperature: float = field(default=0.7, metadata={"help": "0 is greedy and needs eval_n=1."})
    eval_max_tokens: int = field(default=256, metadata={"help": "Longest thought in tokens."})
    eval_store: str | None = field(default=None, metadata={"help": "Store for the student's thoughts."})
    eval_output: str | None = field(default=None, metadata={"help": "Folder for the results."})


def _arguments():
    from trl import ModelConfig

    from ..trainer import MDConfig

    return (RecipeArguments, MDConfig, ModelConfig)


ARGUMENTS = _arguments()


def run(args: RecipeArguments, training_args: MDConfig, model_args: ModelConfig) -> None:
    """Builds or loads the dataset, trains, saves, evaluates."""
    from pathlib import Path

    from datasets import load_dataset
    from transformers import AutoConfig
    from trl import get_peft_config, get_quantization_config

    from ..trainer import MDSeq2SeqConfig, MDSeq2SeqTrainer, MDTrainer
    from . import eval as evaluation
    from . import mix

    if model_args.model_name_or_path is None:
        raise InputError("`model_name_or_path` is missing. Give the student's folder or Hub id.")
    student = AutoConfig.from_pretrained(
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        trust_remote_code=training_args.trust_remote_code,
    )
    trainer_class = MDTrainer
    if student.is_encoder_decoder:
        # Not `to_dict`, which hides every field whose name ends with `_token`
        given = {f.name: getattr(training_args, f.name) for f in fields(training_args) if f.init}
        training_args = MDSeq2SeqConfig(**given)
        trainer_class = MDSeq2SeqTrainer
    with training_args.main_process_first(local=False, desc="building mixed thoughts"):
        if args.store is not None and not (Path(args.dataset) / args.task).is_dir():
            mix.run(mix.MixArguments(store=args.store, task=args.task, output=args.dataset))
    train_dataset = load_dataset(args.dataset, args.task, split="train")
    if args.train_limit is not None:
        train_dataset = train_dataset.select(range(min(args.train_limit, len(train_dataset))))

    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    } | (training_args.model_init_kwargs or {})
    trainer = trainer_class(
        model=model_args.model_name_or_path,
        args=training_args,
        train_dataset=train_dataset,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    trainer.save_state()
    trainer.accelerator.print(f"Saved the student to {training_args.output_dir}.")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=args.dataset)

    if args.eval_task is not None and trainer.accelerator.is_main_process:
        output = Path(training_args.output_dir)
        evaluation.run(
            evaluation.EvalArguments(
                model=training_args.output_dir,
                task=args.eval_task,
                split=args.eval_split,
                source=args.eval_source,
                limit=args.eval_limit,
                paths=args.eval_paths,
                n=args.eval_n,
                temperature=args.eval_temperature,
                max_tokens=args.eval_max_tokens,
                prompt_format=training_args.prompt_format,
                store=args.eval_store or str(output / "student.db"),
                output=args.eval_output or str(output / "results"),
            )
        )
    trainer.accelerator.wait_for_everyone()
    trainer.end()
