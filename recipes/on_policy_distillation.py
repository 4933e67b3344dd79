"""Let a student go on learning from a local teacher, on its own thoughts: `python recipes/on_policy_distillation.py`.

The student of `md-trl train` has learned texts that a teacher wrote. Here it writes thoughts of both paths for the
training questions itself, and learns which next tokens the teacher would prefer in each of them ([On-policy
distillation](https://huggingface.co/papers/2306.13649)). Training is TRL's `DistillationTrainer`, configured by
`on_policy_distillation.yaml`; this script only makes its prompts. No answer is judged, and no gold answer is used.

The teacher is a model on this machine with the same vocabulary, and is asked as the student is: without few-shot
examples. So it should have learned both paths, too, like a larger student of the same family.

    python recipes/on_policy_distillation.py --model outputs/student --teacher outputs/larger-student \
        --task svamp --output outputs/on-policy --max_steps 100
    md-trl eval --model outputs/on-policy --task svamp --n 10 --store on_policy.db --output results
"""

from __future__ import annotations

import argparse
import shutil
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub import ModelCard, ModelCardData
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file
from trl import DistillationConfig, DistillationTrainer, TrlParser

from md_trl.errors import InputError
from md_trl.prompts import SETTINGS_FILE, encode, read_student_settings, student_prompt
from md_trl.student_folder import replace_card
from md_trl.tasks import load_questions
from md_trl.trainer import MDTrainer
from md_trl.trainer.model_card import gitignore, hub_id
from md_trl.trainer.student_settings import write_student_settings
from md_trl.validation import VALIDATION_FILE, select_held_out


def load_student(model: str) -> tuple[Any, PreTrainedTokenizerBase, dict[str, Any]]:
    """The student (a name, or a loaded adapter to train on), its tokenizer and how it is asked."""
    settings = read_student_settings(model)
    if settings is None:
        raise InputError(f"{model} has no {SETTINGS_FILE}, so it is no student of `md-trl train`. Train it first.")
    is_adapter = find_adapter_config_file(model) is not None
    base = PeftConfig.from_pretrained(model).base_model_name_or_path if is_adapter else model
    if AutoConfig.from_pretrained(base).is_encoder_decoder:
        raise InputError(f"{model} is an encoder-decoder model, which TRL's `DistillationTrainer` cannot train.")
    student = AutoPeftModelForCausalLM.from_pretrained(model, is_trainable=True) if is_adapter else model
    return student, AutoTokenizer.from_pretrained(model), settings


def check_vocabulary(teacher: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """The trainer compares distributions over tokens, but checks nothing but the number of tokens."""
    if AutoTokenizer.from_pretrained(teacher).get_vocab() != tokenizer.get_vocab():
        raise InputError(
            f"The teacher {teacher} has another vocabulary than the student. Choose one of the same family, or let it "
            "write thoughts instead: `md-trl sample --engine transformers`."
        )


def make_prompts(args: argparse.Namespace, asked: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """A row for each path of each training question, except those that the student's training held out."""
    questions = load_questions(args.task, "train", source=args.source)
    held_out = Path(args.model) / VALIDATION_FILE
    if held_out.is_file():
        ids = {question.id for question in select_held_out(questions, held_out)}
        questions = [question for question in questions if question.id not in ids]
    prompts = [
        student_prompt(question.question, path, asked["prompt_format"])
        for question in questions[: args.limit]
        for path in asked["paths"]
    ]
    if asked["prompt_format"] == "plain" and tokenizer(prompts)["input_ids"] != encode(tokenizer, prompts, False):
        raise InputError("The student's tokenizer ends prompts with EOS, and TRL's trainer would not remove it.")
    return Dataset.from_dict({"prompt": prompts})


def save(trainer: DistillationTrainer, args: argparse.Namespace, asked: dict[str, Any]) -> None:
    """Write the student as `md-trl train` does, so that every command knows how to ask it."""
    trainer.save_model(str(args.output))
    if not trainer.is_world_process_zero():
        return
    write_student_settings(args.output, asked)
    if (Path(args.model) / VALIDATION_FILE).is_file():
        shutil.copy(Path(args.model) / VALIDATION_FILE, args.output)
    config, is_adapter = trainer.args, isinstance(trainer.model, PeftModel)
    card = ModelCard.from_template(
        ModelCardData(
            model_name=args.output.name,
            base_model=hub_id(args.model),
            library_name="peft" if is_adapter else "transformers",
            tags=[*MDTrainer._tag_names, "on-policy-distillation"],
        ),
        template_path=str(files("md_trl") / "hub_cards" / "student" / "README.md"),
        **asked,
        is_adapter=is_adapter,
        mean_lambda=None,
        settings={
            "method": "TRL's `DistillationTrainer`, on the thoughts of a student that had learned with `md_trl`",
            "teacher": hub_id(args.teacher) or "a local model",
            "prompts": f"{len(trainer.train_dataset):,}, one per question and path",
            "steps": trainer.state.global_step,
            "batch size": f"{config.train_batch_size} prompts x {config.gradient_accumulation_steps} x "
            f"{config.world_size}",
            **{name: getattr(config, name) for name in ("beta", "temperature", "learning_rate", "seed")},
        },
        versions={name: version(name) for name in ("md_trl", "trl", "transformers", "torch", "datasets", "peft")},
    )
    replace_card(args.output, str(card))
    (args.output / ".gitignore").write_text(gitignore(config))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="Any other option is a field of TRL's DistillationConfig.",
    )
    parser.add_argument("--model", required=True, help="folder or Hub id of a student of `md-trl train`")
    parser.add_argument("--teacher", required=True, help="folder or Hub id of a model with the same vocabulary")
    parser.add_argument("--task", required=True, help="task, or file of questions, whose training split is asked")
    parser.add_argument("--source", help="local copy of the task's original file")
    parser.add_argument("--limit", type=int, help="ask only this many questions, the first ones")
    parser.add_argument("--output", type=Path, required=True, help="folder of the new student")
    default = Path(__file__).with_suffix(".yaml")
    parser.add_argument("--config", type=Path, default=default, help="YAML file of the training")
    args, others = parser.parse_known_args()
    given = ["--config", str(args.config), "--output_dir", str(args.output), *others]
    [config] = TrlParser(DistillationConfig).parse_args_and_config(given)
    try:
        if args.output.resolve() == Path(args.model).resolve():
            raise InputError(f"`--output` is the student itself, {args.model}. Choose another folder.")
        if config.push_to_hub or config.hub_token:
            raise InputError("This script pushes nothing. Upload the student afterwards: `hf upload YOU/NAME FOLDER`.")
        student, tokenizer, asked = load_student(args.model)
        check_vocabulary(args.teacher, tokenizer)
        prompts = make_prompts(args, asked, tokenizer)
    except (InputError, OSError) as error:
        raise SystemExit(f"{parser.prog}: {error}") from None
    trainer = DistillationTrainer(
        model=student,
        teacher_model=args.teacher,
        args=config,
        train_dataset=prompts,
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    save(trainer, args, asked)


if __name__ == "__main__":
    main()
