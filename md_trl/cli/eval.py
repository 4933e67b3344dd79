"""`md-trl eval`: sample a student with both triggers and score its votes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..errors import check_at_least_one
from ..prompts import FEW_SHOT_PROMPTS
from ..records import PATHS, STUDENT_MAX_TOKENS, STUDENT_THOUGHTS, SamplingParams
from ..stopping import RULES
from .engine_arguments import ENGINES, EngineArguments, make_engine
from .engine_arguments import SHOWN as SHOWN  # read by `md_trl.cli`


if TYPE_CHECKING:
    from ..evaluation import EvaluationResult
    from ..launched_evaluation import Process
    from ..sampling.engines import Engine
    from ..student_evaluation import StudentEvaluation


@dataclass(kw_only=True)
class EvalArguments(EngineArguments):
    r"""
    Arguments of `md-trl eval`, beside those of [`EngineArguments`].

    Args:
        model (`str`):
            The student: a folder, a Hub id or an adapter; its name on the server for the engine `openai`.
        task (`str`):
            Task to evaluate on, or a file of questions of your own.
        output (`str`):
            Folder for the results. The result of a different run is never overwritten.
        store (`str`):
            Store of the student's thoughts. Only what is missing from it is sampled.
        task_name (`str`, *optional*):
            Name for the task of a file. Defaults to the file's name without its ending.
        split (`str`, *optional*, defaults to `"test"`):
            Split to evaluate on.
        source (`str`, *optional*):
            Local copy of the task's original file. Defaults to the Hub.
        limit (`int`, *optional*):
            Evaluate only on this many questions, the first ones.
        validation_file (`str`, *optional*):
            Evaluate only on the questions that `md-trl train --validation` held out: `validation.json` in the folder
            of the student, with `--split train`.
        paths (`list[str]`, *optional*):
            What to sample: `cot`, `pot`, `cot_pot`, and `label` for the bare answer, which is greedy. Defaults to
            `cot` and `pot`, or to what the student has learned if its `md_trl.json` says that it lacks one of them.
        n (`int`, *optional*, defaults to `10`):
            Number of thoughts per path.
        temperature (`float`, *optional*, defaults to `0.7`):
            Sampling temperature; `0` is greedy and needs `n=1`.
        max_tokens (`int`, *optional*, defaults to `256`):
            Maximum length of a thought in tokens.
        prompt (`str`, *optional*, defaults to `"student"`):
            `student` (question and trigger only), or for models that were not trained on thoughts `few_shot` (worked
            examples as a chat) or `few_shot_text` (the same as text).
        prompt_format (`str`, *optional*, defaults to `"auto"`):
            Format of the prompts: `plain`, `chat`, or `auto` for the one in the student's `md_trl.json`, else chat if
            the tokenizer has a chat template. Another one than in `md_trl.json` is refused.
        stop (`str`, *optional*, defaults to `"fixed"`):
            When a question has enough thoughts: `fixed` (n per path), or `pot_first`, `agreement`, `esc` or `adaptive`
            with at most n per path.
        weights (`str`, *optional*, defaults to `"none"`):
            Weight of a vote in the joint figure: `none` for Eq. 5, `likelihood`, or a file of `md-trl calibrate`.
        extract (`str`, *optional*, defaults to `"strict"`):
            Whether a CoT must state its answer (`strict`), or its last number is accepted (`flexible`).
        seed (`int`, *optional*, defaults to `42`):
            Seed of the samples.
        data_seed (`int`, *optional*, defaults to `42`):
            Seed of splits drawn from an original file, and of generated stories.
        engine (`str`, *optional*, defaults to `"transformers"`):
            `transformers` or `vllm` (a local model), or `openai` (any OpenAI-compatible server).
        name (`str`, *optional*):
            Name of the student in tables. Defaults to the last part of `model`.
    """

    engine: str = field(
        default="transformers",
        metadata={
            "help": "`transformers` or `vllm` (a local model), or `openai` (any OpenAI-compatible server).",
            "choices": ENGINES,
        },
    )
    model: str = field(
        metadata={
            "help": "The student: a folder, a Hub id or an adapter; for the engine `openai` its name on the server."
        }
    )
    task: str = field(metadata={"help": "Task to evaluate on, or a file of questions of your own."})
    output: str = field(metadata={"help": "Folder for the results."})
    store: str = field(metadata={"help": "Store of the student's thoughts. Only what is missing from it is sampled."})
    task_name: str | None = field(
        default=None,
        metadata={"help": "Name for the task of a file. Defaults to the file's name without its ending."},
    )
    split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    source: str | None = field(
        default=None, metadata={"help": "Local copy of the task's original file. Defaults to the Hub."}
    )
    limit: int | None = field(default=None, metadata={"help": "Evaluate only on this many questions, the first ones."})
    validation_file: str | None = field(
        default=None,
        metadata={
            "help": "Evaluate only on the questions that `md-trl train --validation` held out: `validation.json` in "
            "the folder of the student, with `--split train`."
        },
    )
    paths: list[str] | None = field(
        default=None,
        metadata={
            "help": "What to sample: `cot`, `pot`, `cot_pot`, and `label` for the bare answer, which is greedy. "
            "Defaults to `cot pot`, or to what the student has learned of them."
        },
    )
    n: int = field(default=STUDENT_THOUGHTS, metadata={"help": "Number of thoughts per path."})
    temperature: float = field(
        default=SamplingParams.temperature, metadata={"help": "Sampling temperature; 0 is greedy and needs n=1."}
    )
    max_tokens: int = field(default=STUDENT_MAX_TOKENS, metadata={"help": "Maximum length of a thought in tokens."})
    prompt: str = field(
        default="student",
        metadata={
            "help": "`student` (question and trigger), or for models that were not trained on thoughts `few_shot` "
            "(worked examples as a chat) or `few_shot_text`.",
            "choices": ["student", *FEW_SHOT_PROMPTS],
        },
    )
    prompt_format: str = field(
        default="auto",
        metadata={
            "help": "Format of the prompts: plain, chat, or auto for the one in the student's md_trl.json, else chat "
            "if the tokenizer has a chat template.",
            "choices": ["auto", "plain", "chat"],
        },
    )
    stop: str = field(
        default="fixed",
        metadata={
            "help": "When a question has enough thoughts: `fixed` (n per path), or `pot_first`, `agreement`, `esc` or "
            "`adaptive` with at most n per path.",
            "choices": list(RULES),
        },
    )
    weights: str = field(
        default="none",
        metadata={
            "help": "Weight of a vote in the joint figure: `none` for Eq. 5, `likelihood`, or a file of `md-trl "
            "calibrate`.",
        },
    )
    extract: str = field(
        default="strict",
        metadata={
            "help": "Whether a CoT must state its answer, or its last number is accepted.",
            "choices": ["strict", "flexible"],
        },
    )
    seed: int = field(default=SamplingParams.seed, metadata={"help": "Seed of the samples."})
    data_seed: int = field(
        default=42, metadata={"help": "Seed of splits drawn from an original file, and of generated stories."}
    )
    name: str | None = field(
        default=None, metadata={"help": "Name of the student in tables. Defaults to the last part of the model."}
    )


ARGUMENTS = EvalArguments


def run(args: EvalArguments) -> None:
    """Sample what is missing, judge it, write the result and print its tables."""
    from pathlib import Path

    from ..launched_evaluation import Process
    from ..prompts import read_student_settings
    from ..student_evaluation import StudentEvaluation, paths_to_sample
    from ..tasks import load_questions
    from ..vote_settings import VoteSettings

    check_at_least_one("--limit", args.limit)
    questions = load_questions(args.task, args.split, args.source, args.data_seed, args.task_name)
    if args.validation_file is not None:
        from ..validation import select_held_out

        questions = select_held_out(questions, args.validation_file)
    evaluation = StudentEvaluation(
        questions[: args.limit],
        SamplingParams(temperature=args.temperature, max_tokens=args.max_tokens, seed=args.seed),
        paths=args.paths or PATHS,
        n=args.n,
        prompt_format=args.prompt_format,
        strict=args.extract == "strict",
        rule=args.stop,
        weights=VoteSettings.of(args.weights).weights,
        prompt=args.prompt,
    )
    process = Process.from_environment()
    process.use_own_device()
    engine = make_engine(args, args.model)
    if args.engine != "openai" and args.prompt == "student":
        learned = (read_student_settings(args.model) or {}).get("paths")
        if args.paths is None:
            evaluation = replace(evaluation, paths=paths_to_sample(learned))
        elif unknown := [path for path in args.paths if learned and path not in learned]:
            print(f"Note: {args.model} has not learned the path {unknown[0]!r}, only {', '.join(learned)}.")
    evaluate(evaluation, args.name or Path(args.model).name, engine, args.store, args.output, process)


def evaluate(
    evaluation: StudentEvaluation, name: str, engine: Engine, store: str, folder: str, process: Process
) -> EvaluationResult | None:
    """
    Evaluate a student in all processes; the main one writes the result to a folder and prints its tables.

    Return the result, which only the main process has.
    """
    from ..launched_evaluation import evaluate_launched
    from ..report import result_tables
    from .sample import format_summary

    summary, result = evaluate_launched(evaluation, name, engine, store, process)
    if result is None:
        return None
    print(f"{format_summary(summary, store)}\n")
    file = result.save(folder)
    print(result_tables([result]))
    print(f"\nWrote {file}.")
    return result
