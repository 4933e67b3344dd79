"""`md-trl train`: run a recipe. Everything that a run depends on is in its YAML file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, UsageError, check_at_least_one
from ..records import STUDENT_MAX_TOKENS, STUDENT_THOUGHTS, VALIDATION_QUESTIONS, QuestionType, SamplingParams
from ..tasks import is_own_file, task_name


if TYPE_CHECKING:
    from datasets import Dataset
    from trl import ModelConfig

    from ..evaluation import EvaluationResult
    from ..student_evaluation import StudentEvaluation
    from ..trainer import MDConfig, MDSeq2SeqTrainer, MDTrainer
    from ..validation import GreedyAccuracy


@dataclass
class RecipeArguments:
    r"""
    Data and evaluation of a recipe. [`~trl.ModelConfig`] describes the model and [`MDConfig`] the training.

    Args:
        dataset (`str`):
            Folder or Hub id of mixed thoughts, or filtered rows: a folder of `save_to_disk`, or Parquet.
        task (`list[str]`, *optional*):
            Tasks to train on, configurations of the dataset. A file of questions of your own stands for the task that
            is named after it. May be left out for filtered rows.
        task_name (`str`, *optional*):
            Name for the task of a file in `task` or `eval_task`. Defaults to the file's name without its ending.
        store (`str`, *optional*):
            Store of teacher thoughts. The dataset is built from it if it is missing or was built from other thoughts.
            Filtered rows are used as they are.
        source (`str`, *optional*):
            Local copy of the task's original file, for `objective: label_all`. Defaults to the questions in the store.
        train_limit (`int`, *optional*):
            Train only on this many questions of each task, the first ones.
        train_share (`float`, *optional*):
            Train only on this share of the questions, drawn with `data_seed` or `seed`; each type keeps its share. A
            larger share contains a smaller one, up to rounding.
        validation (`float`, *optional*):
            Share of the training questions to hold out, for example 0.1. Evaluations during training (`eval_strategy`)
            and after it use them. They are drawn with `data_seed`, or `seed` without one, and written to
            `validation.json` in the output folder.
        validation_questions (`int`, *optional*, defaults to `100`):
            Maximum number of the held-out questions that the student answers in each evaluation, `0` for none.
        eval_task (`str`, *optional*):
            Task to evaluate the student on after training, or a file of questions of your own. There is no evaluation
            without it.
        eval_split (`str`, *optional*, defaults to `"test"`):
            Split to evaluate on.
        eval_source (`str`, *optional*):
            Local copy of the original file of `eval_task`. Defaults to the Hub.
        eval_limit (`int`, *optional*):
            Evaluate only on this many questions, the first ones.
        eval_paths (`list[str]`, *optional*):
            What to sample: `cot`, `pot`, `cot_pot`, `label`. Defaults to `cot` and `pot`, or to what the objective
            learns if it lacks one of them.
        eval_n (`int`, *optional*, defaults to `10`):
            Number of thoughts per path.
        eval_temperature (`float`, *optional*, defaults to `0.7`):
            Sampling temperature; `0` is greedy and needs `eval_n=1`.
        eval_max_tokens (`int`, *optional*, defaults to `256`):
            Maximum length of a thought in tokens.
        eval_store (`str`, *optional*):
            Store of the student's thoughts. Defaults to `student.db` in the output folder.
        eval_output (`str`, *optional*):
            Folder for the results. Defaults to `results` in the output folder.
    """

    dataset: str = field(
        metadata={
            "help": "Folder or Hub id of mixed thoughts, or filtered rows: a folder of `save_to_disk`, or Parquet."
        }
    )
    task: list[str] | None = field(
        default=None,
        metadata={
            "help": "Tasks to train on, configurations of the dataset. A file of questions of your own stands for the "
            "task that is named after it. May be left out for filtered rows."
        },
    )
    task_name: str | None = field(
        default=None,
        metadata={
            "help": "Name for the task of a file in `task` or `eval_task`. Defaults to the file's name without its "
            "ending."
        },
    )
    store: str | None = field(
        default=None,
        metadata={
            "help": "Store of teacher thoughts. The dataset is built from it if it is missing or was built from other "
            "thoughts."
        },
    )
    source: str | None = field(
        default=None,
        metadata={
            "help": "Local copy of the task's original file, for `objective: label_all`. Defaults to the store."
        },
    )
    train_limit: int | None = field(
        default=None, metadata={"help": "Train only on this many questions of each task, the first ones."}
    )
    train_share: float | None = field(
        default=None, metadata={"help": "Train only on this share of the questions, drawn at random, like 0.2."}
    )
    validation: float | None = field(
        default=None,
        metadata={"help": "Share of the training questions to hold out for evaluations during training, like 0.1."},
    )
    validation_questions: int = field(
        default=VALIDATION_QUESTIONS,
        metadata={
            "help": "Maximum number of held-out questions that the student answers in each evaluation, 0 for none."
        },
    )
    eval_task: str | None = field(
        default=None,
        metadata={"help": "Task, or file of questions, to evaluate the student on after training, if any."},
    )
    eval_split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    eval_source: str | None = field(
        default=None, metadata={"help": "Local copy of the original file of `eval_task`. Defaults to the Hub."}
    )
    eval_limit: int | None = field(
        default=None, metadata={"help": "Evaluate only on this many questions, the first ones."}
    )
    eval_paths: list[str] | None = field(
        default=None,
        metadata={
            "help": "What to sample: `cot`, `pot`, `cot_pot`, `label`. Defaults to `cot pot`, or to what the "
            "objective learns of them."
        },
    )
    eval_n: int = field(default=STUDENT_THOUGHTS, metadata={"help": "Number of thoughts per path."})
    eval_temperature: float = field(
        default=SamplingParams.temperature, metadata={"help": "Sampling temperature; 0 is greedy and needs eval_n=1."}
    )
    eval_max_tokens: int = field(
        default=STUDENT_MAX_TOKENS, metadata={"help": "Maximum length of a thought in tokens."}
    )
    eval_store: str | None = field(
        default=None,
        metadata={"help": "Store of the student's thoughts. Defaults to `student.db` in the output folder."},
    )
    eval_output: str | None = field(
        default=None, metadata={"help": "Folder for the results. Defaults to `results` in the output folder."}
    )

    def __post_init__(self):
        if isinstance(self.task, str):  # a recipe with one task
            self.task = [self.task]
        self.task = self.task or []
        if len(set(self.task)) < len(self.task):
            raise InputError(f"`task` is {self.task}. Name each task once.")
        files = {task for task in [*self.task, self.eval_task or ""] if is_own_file(task)}
        if self.task_name is not None and len(files) != 1:
            raise InputError(
                f"`task_name` is {self.task_name!r}, but `task` and `eval_task` name {len(files)} files of questions. "
                "It names the task of a single one: leave it out, and rename the files instead."
            )
        if self.source is not None and len(self.task) > 1:
            raise InputError(
                f"`source` is {self.source!r}, but there are {len(self.task)} tasks. Use `store` instead."
            )
        for name in ("train_share", "validation"):
            if (share := getattr(self, name)) is not None:
                from ..validation import check_share

                check_share(share, name)
        for name in ("train_limit", "eval_limit"):
            check_at_least_one(name, getattr(self, name))
        if self.validation_questions < 0:
            raise InputError(f"`validation_questions` must not be negative, got {self.validation_questions}.")

    def name_of(self, task: str) -> str:
        """Return the name of a task that may be given as a file."""
        return task_name(task, self.task_name if is_own_file(task) else None)


ARGUMENTS = RecipeArguments
MORE_ARGUMENTS = (("md_trl.trainer", "MDConfig"), ("trl", "ModelConfig"))
SHOWN = (
    # the model
    *("model_name_or_path", "use_peft", "load_in_4bit"),
    # what Mixed Distillation adds to `SFTConfig`
    *("objective", "unsolved_path", "rationale_weight", "token_reduction", "rationales_per_path", "weight_normalizer"),
    *("max_target_tokens", "prompt_format", "layout", "check_layout", "max_row_tokens"),
    # of `SFTConfig`, what most recipes set
    *("output_dir", "max_length", "max_steps", "learning_rate", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "resume_from_checkpoint", "push_to_hub"),
)
"""Fields of [`MDConfig`] and [`~trl.ModelConfig`] that `--help` shows. `--help-all` shows all of them."""


HELP = {
    "resume_from_checkpoint": "`true` to go on from the last checkpoint in `output_dir`, the folder of a checkpoint "
    "to go on from that, or `false` to start again where there are checkpoints."
}
"""Help in place of that of transformers, whose trainer does not read the field."""


def run(args: RecipeArguments, training_args: MDConfig, model_args: ModelConfig) -> None:
    """Load or build the dataset, train, save, evaluate, push."""
    from ..student_results import push_results, write_results
    from ..trainer.model_card import validation_table

    output = Path(training_args.output_dir)
    args.eval_store = args.eval_store or str(output / "student.db")
    args.eval_output = args.eval_output or str(output / "results")
    evaluation = None if args.eval_task is None else _prepare_evaluation(args, training_args)
    training_args.resume_from_checkpoint = _find_checkpoint(training_args)
    try:
        trainer = _make_trainer(args, training_args, model_args)
    except InputError:
        raise
    except (ValueError, RuntimeError) as error:  # so say TRL, PEFT and transformers that arguments do not fit
        raise InputError(f"Cannot set up the training: {error}") from error
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    if args.validation is not None:
        trainer.evaluate()
        table = validation_table(training_args, trainer.state)
        trainer.accelerator.print(f"\nValidation questions, accuracies in percent:\n\n{table}\n")
    trainer.save_model(training_args.output_dir)
    trainer.save_state()
    trainer.accelerator.print(f"Saved the student to {training_args.output_dir}.")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=None if Path(args.dataset).exists() else args.dataset)

    trainer.accelerator.wait_for_everyone()
    # Ends the process group, whose collectives would time out in a long evaluation.
    trainer.end()
    if evaluation is not None:
        result = _evaluate(evaluation, args, training_args.output_dir)
        if result is not None and training_args.push_to_hub:
            token, revision = training_args.hub_token, training_args.hub_revision
            push_results(training_args.output_dir, [result], trainer.hub_model_id, token, revision)
        elif result is not None:
            write_results(training_args.output_dir, [result])


def _prepare_evaluation(args: RecipeArguments, training_args: MDConfig) -> StudentEvaluation:
    """Check everything that the evaluation needs before the training begins."""
    from ..store import Store
    from ..student_evaluation import StudentEvaluation, paths_to_sample
    from ..tasks import load_questions
    from ..weighting import path_weights

    name = args.name_of(args.eval_task)
    questions = load_questions(args.eval_task, args.eval_split, args.eval_source, name=name)
    Path(args.eval_output).mkdir(parents=True, exist_ok=True)
    if Path(args.eval_store).exists():
        Store(args.eval_store).close()
    learned = list(path_weights(training_args.objective, QuestionType.BOTH, 0.5))
    return StudentEvaluation(
        questions[: args.eval_limit],
        SamplingParams(temperature=args.eval_temperature, max_tokens=args.eval_max_tokens),
        paths=args.eval_paths or paths_to_sample(learned),
        n=args.eval_n,
        prompt_format=training_args.prompt_format,
    )


def _find_checkpoint(training_args: MDConfig) -> str | None:
    """
    The checkpoint to resume from, which must exist. `true` stands for the last one in the output folder.

    Without an answer, nothing is trained in a folder that has checkpoints: they would be overwritten.
    """
    from ..student_folder import last_checkpoint

    wanted, output = training_args.resume_from_checkpoint, training_args.output_dir
    if Path(output).is_file():
        raise InputError(f"`output_dir` is {output}, which is a file. Name a folder.")
    last = last_checkpoint(output)
    if wanted is None and last is not None:
        raise InputError(
            f"{output} has {Path(last).name} of an earlier training: add `--resume_from_checkpoint true` to go on, or "
            "choose another `--output_dir`. (`--resume_from_checkpoint false` starts again and overwrites it.)"
        )
    if str(wanted).lower() in ("none", "false", ""):
        return None
    if str(wanted).lower() == "true":
        wanted = last
        if wanted is None:
            raise InputError(f"There is no checkpoint in {output} to resume from. Leave `resume_from_checkpoint` out.")
    elif not Path(wanted).is_dir():
        hint = f"The last one in {output} is {last}." if last else f"There is none in {output}."
        raise InputError(f"`resume_from_checkpoint` is {wanted}, which is not a folder. {hint}")
    missing = [file for file in ("trainer_state.json", "scheduler.pt") if not (Path(wanted) / file).exists()]
    if missing:
        inside = last_checkpoint(wanted)
        hint = f"The last one in it is {inside}." if inside else "Name a folder `checkpoint-STEP` of a training."
        raise InputError(f"`resume_from_checkpoint` is {wanted}, which is no checkpoint: no {missing[0]}. {hint}")
    return wanted


def _make_trainer(
    args: RecipeArguments, training_args: MDConfig, model_args: ModelConfig
) -> MDTrainer | MDSeq2SeqTrainer:
    """Create the trainer of a causal or an encoder-decoder student."""
    from transformers import AutoConfig

    from ..student_folder import check_student
    from ..trainer.making import make_trainer
    from ..validation import split_validation

    if model_args.model_name_or_path is None:
        raise UsageError("`model_name_or_path` is missing. Give the student's folder or Hub id.")
    if (model_args.load_in_4bit or model_args.load_in_8bit) and not model_args.use_peft:
        raise InputError("Quantized weights cannot be trained. Add `use_peft`, or leave `load_in_4bit` out.")
    check_student(model_args.model_name_or_path, model_args.model_revision)
    # A model that cannot be loaded fails before the dataset is built.
    AutoConfig.from_pretrained(
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        trust_remote_code=training_args.trust_remote_code,
    )
    train_dataset = _load_rows(args, training_args)
    eval_dataset = None
    if args.validation is not None:
        train_dataset, eval_dataset = split_validation(train_dataset, args.validation, _split_seed(training_args))
    if args.train_share is not None:
        _, train_dataset = split_validation(train_dataset, args.train_share, _split_seed(training_args))
    _keep_split(args, training_args, eval_dataset)
    return make_trainer(
        model_args.model_name_or_path,
        training_args,
        model_args,
        train_dataset,
        eval_dataset,
        _callbacks(args, training_args, eval_dataset),
    )


def _split_seed(training_args: MDConfig) -> int:
    return training_args.seed if training_args.data_seed is None else training_args.data_seed


def _keep_split(args: RecipeArguments, training_args: MDConfig, eval_dataset: Dataset | None) -> None:
    """Write which questions are held out, or check that a resumed training holds out the same ones."""
    from ..validation import keep_split

    split = None
    if eval_dataset is not None:
        seed = _split_seed(training_args)
        split = {"validation": args.validation, "seed": seed, "ids": list(eval_dataset["id"])}
    checkpoint = training_args.resume_from_checkpoint
    with training_args.main_process_first(local=False, desc="writing the validation split"):
        keep_split(training_args.output_dir, split, checkpoint and Path(checkpoint).parent)


def _callbacks(args: RecipeArguments, training_args: MDConfig, eval_dataset: Dataset | None) -> list[GreedyAccuracy]:
    """Measure the greedy accuracy of the paths that the objective learns, if there are validation questions."""
    from ..validation import GreedyAccuracy, validation_questions
    from ..weighting import path_weights

    if eval_dataset is None or not args.validation_questions:
        return []
    questions = validation_questions(eval_dataset, args.validation_questions, _split_seed(training_args))
    share = 0.5 if "cot_pot" in eval_dataset.column_names else None
    paths = tuple(path_weights(training_args.objective, QuestionType.BOTH, 0.5, cot_pot_share=share))
    return [GreedyAccuracy(questions, paths, SamplingParams(max_tokens=args.eval_max_tokens))]


def _load_rows(args: RecipeArguments, training_args: MDConfig) -> Dataset:
    """Load what the objective trains on: mixed rows, or for `label_all` every training question of the tasks."""
    from ..dataset import ensure_dataset
    from ..training_rows import first_rows, has_plain_rows, load_mixed_rows, load_question_rows

    names = [args.name_of(task) for task in args.task]
    if training_args.objective == "label_all":
        rows = load_question_rows(args.task, args.source, args.store, names)
    else:
        with training_args.main_process_first(local=False, desc="building the dataset"):
            if args.store is not None and not has_plain_rows(args.dataset):
                for name in names:
                    if summary := ensure_dataset(args.dataset, name, args.store):
                        print(summary.format())
        rows = load_mixed_rows(args.dataset, names)
    return rows if args.train_limit is None else first_rows(rows, args.train_limit)


def _evaluate(evaluation: StudentEvaluation, args: RecipeArguments, student: str) -> EvaluationResult | None:
    """Evaluate the student in all processes. Only the main one has the result."""
    from ..launched_evaluation import Process
    from ..sampling.engines.transformers import TransformersEngine
    from .eval import evaluate

    engine = TransformersEngine(student)
    process = Process.from_environment()
    return evaluate(evaluation, Path(student).name, engine, args.eval_store, args.eval_output, process)
