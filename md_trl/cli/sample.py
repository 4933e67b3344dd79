"""`md-trl sample`: ask a model for thoughts, or look into, fill and empty a store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..records import Question
from ..sampling.engines import Engine, Prompt
from ..sampling.store import StatusRow, Store, describe


PROMPTS = ("auto", "few_shot", "few_shot_text", "student")


@dataclass
class SampleArguments:
    r"""
    Arguments of `md-trl sample`.

    Args:
        task (`str`, *optional*):
            Task to sample, for example `svamp`.
        split (`str`, *optional*, defaults to `"train"`):
            Its split; for an import, the split of new questions.
        source (`str`, *optional*):
            Local copy of the task's original file. The Hub is asked if left out.
        limit (`int`, *optional*):
            Sample only so many questions, the first ones.
        data_seed (`int`, *optional*, defaults to `42`):
            Seed of splits that are drawn from an original file, and of generated stories.
        paths (`list[str]`, *optional*, defaults to `["cot", "pot"]`):
            `cot`, `pot`, `label`.
        n (`int`, *optional*, defaults to `20`):
            Samples of each question and path.
        temperature (`float`, *optional*, defaults to `0.7`):
            0 is greedy, and needs `--n 1`.
        top_p (`float`, *optional*, defaults to `1.0`):
            Mass of the most likely tokens to sample from.
        max_tokens (`int`, *optional*, defaults to `512`):
            Longest sample, in tokens.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the samples.
        prompt (`str`, *optional*, defaults to `"auto"`):
            `few_shot` (worked examples as a chat), `few_shot_text` (the same as text, for models without a chat
            template), `student` (the bare question and trigger), or `auto`: `few_shot` for the engine `openai`,
            `student` for `transformers`.
        engine (`str`, *optional*, defaults to `"openai"`):
            `openai` (any OpenAI-compatible server) or `transformers` (a local model).
        model (`str`, *optional*):
            Name of the model at the server; folder or Hub id of a local one, which may be a PEFT adapter.
        base_url (`str`, *optional*):
            Root of the server's API. OpenAI's own if left out. The key is taken from `OPENAI_API_KEY`.
        concurrency (`int`, *optional*, defaults to `16`):
            Requests under way at the same time (engine `openai`).
        batch_size (`int`, *optional*, defaults to `128`):
            Samples under way at the same time (engine `transformers`).
        store (`str`, *optional*, defaults to `"thoughts.db"`):
            File that keeps all thoughts.
        status (`bool`, *optional*, defaults to `False`):
            Show what the store holds, lacks and has cost.
        import_path (`str`, *optional*):
            Thought file (JSONL) to read into the store; `--import`.
        export (`str`, *optional*):
            Thought file (JSONL) to write all thoughts of the store to.
    """

    task: str | None = field(default=None, metadata={"help": "Task to sample, for example `svamp`."})
    split: str = field(default="train", metadata={"help": "Its split; for an import, the split of new questions."})
    source: str | None = field(
        default=None, metadata={"help": "Local copy of the task's original file. The Hub is asked if left out."}
    )
    limit: int | None = field(default=None, metadata={"help": "Sample only so many questions, the first ones."})
    data_seed: int = field(
        default=42,
        metadata={"help": "Seed of splits that are drawn from an original file, and of generated stories."},
    )
    paths: list[str] = field(default_factory=lambda: ["cot", "pot"], metadata={"help": "`cot`, `pot`, `label`."})
    n: int = field(default=20, metadata={"help": "Samples of each question and path."})
    temperature: float = field(default=0.7, metadata={"help": "0 is greedy, and needs `--n 1`."})
    top_p: float = field(default=1.0, metadata={"help": "Mass of the most likely tokens to sample from."})
    max_tokens: int = field(default=512, metadata={"help": "Longest sample, in tokens."})
    seed: int = field(default=42, metadata={"help": "Seed of the samples."})
    prompt: str = field(
        default="auto",
        metadata={
            "help": "`few_shot` (worked examples as a chat), `few_shot_text` (the same as text, for models without a "
            "chat template), `student` (the bare question and trigger), or `auto`: `few_shot` for the engine "
            "`openai`, `student` for `transformers`.",
            "choices": PROMPTS,
        },
    )
    engine: str = field(
        default="openai",
        metadata={
            "help": "`openai` (any OpenAI-compatible server) or `transformers` (a local model).",
            "choices": ("openai", "transformers"),
        },
    )
    model: str | None = field(
        default=None,
        metadata={
            "help": "Name of the model at the server; folder or Hub id of a local one, which may be a PEFT adapter."
        },
    )
    base_url: str | None = field(
        default=None,
        metadata={
            "help": "Root of the server's API. OpenAI's own if left out. The key is taken from `OPENAI_API_KEY`."
        },
    )
    concurrency: int = field(default=16, metadata={"help": "Requests under way at the same time (engine `openai`)."})
    batch_size: int = field(
        default=128, metadata={"help": "Samples under way at the same time (engine `transformers`)."}
    )
    store: str = field(default="thoughts.db", metadata={"help": "File that keeps all thoughts."})
    status: bool = field(default=False, metadata={"help": "Show what the store holds, lacks and has cost."})
    import_path: str | None = field(
        default=None, metadata={"help": "Thought file (JSONL) to read into the store.", "aliases": ["--import"]}
    )
    export: str | None = field(
        default=None, metadata={"help": "Thought file (JSONL) to write all thoughts of the store to."}
    )


ARGUMENTS = SampleArguments


def run(args: SampleArguments) -> None:
    """Sample; or show, import, export if one of these is asked for."""
    if args.status + (args.import_path is not None) + (args.export is not None) > 1:
        raise ValueError("`--status`, `--import` and `--export` are different commands. Give one of them at a time.")
    if args.status or args.export is not None:
        if not Path(args.store).is_file():
            raise FileNotFoundError(f"{args.store} does not exist. Name an existing file with `--store`.")
        with Store(args.store) as store:
            if args.status:
                print(format_status(store))
            else:
                print(f"{store.export_thoughts(args.export):,} thoughts written to {args.export}")
    elif args.import_path is not None:
        with Store(args.store) as store:
            if args.source is not None:
                store.add_questions(_load_questions(args))
            summary = store.import_thoughts(args.import_path, args.task, args.split)
            print(
                f"{summary.thoughts:,} thoughts and {summary.questions:,} questions added to {args.store}; "
                f"{summary.known:,} thoughts were there already"
            )
    else:
        _sample(args)


def _load_questions(args: SampleArguments) -> list[Question]:
    from ..tasks import load_questions

    if args.task is None:
        raise ValueError("`--task` is missing: name the task of the questions, for example `--task svamp`.")
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"`--limit` is {args.limit}. Use 1 or more, or leave it out.")
    return load_questions(args.task, args.split, args.source, seed=args.data_seed)[: args.limit]


def _sample(args: SampleArguments) -> None:
    from ..prompts import STOP
    from ..sampling import sample

    if args.model is None:
        raise ValueError("`--model` is missing: name the model to sample from.")
    questions = _load_questions(args)
    engine, prompt = _engine_and_prompt(args)
    with Store(args.store) as store:
        summary = sample(
            questions,
            args.paths,
            args.n,
            engine,
            store,
            prompt,
            temperature=args.temperature,
            top_p=args.top_p,
            max_tokens=args.max_tokens,
            stop=STOP if args.prompt == "few_shot_text" else (),
            seed=args.seed,
        )
    unusable = "".join(f", {count:,} of them unusable ({reason})" for reason, count in summary.unusable.items())
    print(
        f"{summary.thoughts:,} thoughts from {summary.requests:,} requests{unusable}; {summary.missing:,} missing; "
        f"{summary.prompt_tokens:,} + {summary.completion_tokens:,} tokens; {summary.seconds:.1f} s; {args.store}"
    )
    if summary.missing and summary.errors:
        raise SystemExit(1)


def _engine_and_prompt(args: SampleArguments) -> tuple[Engine, Callable[[Question, str], Prompt]]:
    from ..prompts import is_chat, student_prompt, teacher_messages, teacher_prompt

    prompts: dict[str, Callable[[Question, str], Prompt]] = {
        "few_shot": teacher_messages,
        "few_shot_text": teacher_prompt,
        "student": lambda question, path: student_prompt(question.question, path),
    }
    if args.engine == "openai":
        from ..sampling.engines.openai import OpenAIEngine

        kind = "few_shot" if args.prompt == "auto" else args.prompt
        return OpenAIEngine(args.model, args.base_url, concurrency=args.concurrency), prompts[kind]

    from ..sampling.engines.transformers import TransformersEngine

    engine = TransformersEngine(args.model, batch_size=args.batch_size)
    kind = "student" if args.prompt == "auto" else args.prompt
    if kind == "student" and is_chat(engine.tokenizer):
        engine.chat = True
        return engine, lambda question, path: student_prompt(question.question, path, engine.tokenizer)
    return engine, prompts[kind]


def format_status(store: Store) -> str:
    """The status of a store as a table."""
    head = ("task", "split", "path", "setting", "questions", "thoughts", "missing", "unusable", "failed", "tokens")
    rows = store.status()
    table = [head, *(_cells(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    if not rows:
        lines = [f"{len(store.questions()):,} questions, no thoughts"]
    settings = {
        row.setting: f"setting {row.setting}: {describe(row.model, row.prompt_hash, row.params)}" for row in rows
    }
    return "\n".join([*lines, *settings.values()])


def _cells(row: StatusRow) -> tuple[str, ...]:
    unusable = ", ".join(f"{count:,} {reason}" for reason, count in row.unusable.items()) or "0"
    return (
        row.task,
        row.split,
        row.path,
        str(row.setting),
        f"{row.questions:,}",
        f"{row.thoughts:,}",
        f"{row.missing:,} of {row.n} each" if row.n else "imported",
        unusable,
        f"{row.failed:,} of {row.requests:,}",
        f"{row.prompt_tokens:,} + {row.completion_tokens:,}",
    )
