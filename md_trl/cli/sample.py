"""`md-trl sample`: ask a model for thoughts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError
from ..records import Question
from ..sampling.engines import Engine, Prompt
from ..sampling.ledger import Ledger, read_prices
from ..sampling.sampler import SampleSummary
from ..store import Store


PROMPTS = ("auto", "few_shot", "few_shot_text", "student")


@dataclass
class SampleArguments:
    r"""
    Arguments of `md-trl sample`.

    Args:
        task (`str`, *optional*):
            Task to sample, for example `svamp`.
        split (`str`, *optional*, defaults to `"train"`):
            Its split.
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
            `student` for local models.
        engine (`str`, *optional*, defaults to `"openai"`):
            `openai` (any OpenAI-compatible server), `transformers` or `vllm` (a local model).
        model (`str`, *optional*):
            Name of the model at the server; folder or Hub id of a local one, which may be a PEFT adapter.
        base_url (`str`, *optional*):
            Root of the server's API. OpenAI's own if left out. The key is taken from `OPENAI_API_KEY` or the keyring.
        concurrency (`int`, *optional*, defaults to `16`):
            Most requests under way at the same time (engine `openai`); fewer after a 429.
        requests_per_minute (`float`, *optional*), tokens_per_minute (`float`, *optional*):
            Limits of the server to keep to (engine `openai`).
        timeout (`float`, *optional*, defaults to `300.0`):
            Seconds after which a request counts as lost (engine `openai`).
        max_retries (`int`, *optional*, defaults to `6`):
            How often a request that cost nothing is repeated (engine `openai`).
        batch_size (`int`, *optional*, defaults to `128`):
            Samples under way at the same time (engine `transformers`).
        prices (`str`, *optional*):
            Price table, a YAML file: `MODEL: {prompt: 0.50, cached: 0.25, completion: 1.50}`, per million tokens.
        max_cost (`float`, *optional*):
            What the whole store may cost, earlier runs included. Nothing is asked that could pass it.
        dry_run (`bool`, *optional*, defaults to `False`):
            Estimate tokens and cost from a few requests, whose thoughts are kept.
        probes (`int`, *optional*, defaults to `8`):
            Requests a path for `dry_run`.
        batch (`bool`, *optional*, defaults to `False`):
            Use the Batch API: half the price, within a day. Run the same command again after an interruption.
        poll_seconds (`float`, *optional*, defaults to `60.0`):
            Pause between two looks at a batch.
        adaptive (`bool`, *optional*, defaults to `False`):
            Ask for a few thoughts first, and for more only where type or lambda are still open.
        delta (`float`, *optional*, defaults to `0.1`):
            With `adaptive`, the most that the probability may be that a question's type differs from that of n
            thoughts.
        store (`str`, *optional*, defaults to `"thoughts.db"`):
            File that keeps all thoughts.
    """

    task: str | None = field(default=None, metadata={"help": "Task to sample, for example `svamp`."})
    split: str = field(default="train", metadata={"help": "Its split."})
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
            "`openai`, `student` for local models.",
            "choices": PROMPTS,
        },
    )
    engine: str = field(
        default="openai",
        metadata={
            "help": "`openai` (any OpenAI-compatible server), `transformers` or `vllm` (a local model).",
            "choices": ("openai", "transformers", "vllm"),
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
            "help": "Root of the server's API. OpenAI's own if left out. The key is taken from `OPENAI_API_KEY` or "
            "the keyring."
        },
    )
    concurrency: int = field(
        default=16, metadata={"help": "Most requests under way at the same time; fewer after a 429."}
    )
    requests_per_minute: float | None = field(default=None, metadata={"help": "Limit of the server to keep to."})
    tokens_per_minute: float | None = field(default=None, metadata={"help": "Limit of the server to keep to."})
    timeout: float = field(default=300.0, metadata={"help": "Seconds after which a request counts as lost."})
    max_retries: int = field(default=6, metadata={"help": "How often a request that cost nothing is repeated."})
    batch_size: int = field(
        default=128, metadata={"help": "Samples under way at the same time (engine `transformers`)."}
    )
    prices: str | None = field(
        default=None,
        metadata={
            "help": "Price table, a YAML file: `MODEL: {prompt: 0.50, cached: 0.25, completion: 1.50}`, per million "
            "tokens."
        },
    )
    max_cost: float | None = field(
        default=None,
        metadata={
            "help": "What the whole store may cost, earlier runs included. Nothing is asked that could pass it."
        },
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Estimate tokens and cost from a few requests, whose thoughts are kept."},
    )
    probes: int = field(default=8, metadata={"help": "Requests a path for `dry_run`."})
    batch: bool = field(
        default=False,
        metadata={
            "help": "Use the Batch API: half the price, within a day. Run the same command again after an "
            "interruption."
        },
    )
    poll_seconds: float = field(default=60.0, metadata={"help": "Pause between two looks at a batch."})
    adaptive: bool = field(
        default=False,
        metadata={"help": "Ask for a few thoughts first, and for more only where type or lambda are still open."},
    )
    delta: float = field(
        default=0.1,
        metadata={
            "help": "With `adaptive`, the most that the probability may be that a question's type differs from that "
            "of n thoughts."
        },
    )
    store: str = field(default="thoughts.db", metadata={"help": "File that keeps all thoughts."})


ARGUMENTS = SampleArguments


def run(args: SampleArguments) -> None:
    """Sample thoughts into a store."""
    _sample(args)


def _load_questions(args: SampleArguments) -> list[Question]:
    from ..tasks import load_questions

    if args.task is None:
        raise InputError("`--task` is missing: name the task of the questions, for example `--task svamp`.")
    if args.limit is not None and args.limit < 1:
        raise InputError(f"`--limit` is {args.limit}. Use 1 or more, or leave it out.")
    return load_questions(args.task, args.split, args.source, seed=args.data_seed)[: args.limit]


def _sample(args: SampleArguments) -> None:
    from ..prompts import STOP
    from ..sampling.sampler import dry_run, sample

    if args.model is None:
        raise InputError("`--model` is missing: name the model to sample from.")
    if args.batch and (args.engine != "openai" or args.adaptive):
        raise InputError("`--batch` works with `--engine openai`, and not with `--adaptive`: leave one out.")
    if args.adaptive and sorted(args.paths) != ["cot", "pot"]:
        raise InputError(f"`--adaptive` decides by both paths, not by {args.paths}: use `--paths cot pot`.")
    prices = None if args.prices is None else read_prices(args.prices)
    if args.max_cost is not None and prices is None:
        raise InputError("`--max_cost` needs a price table: give `--prices`.")
    questions = _load_questions(args)
    engine, prompt = _engine_and_prompt(args)
    parameters = {
        "temperature": args.temperature,
        "top_p": args.top_p,
        "max_tokens": args.max_tokens,
        "stop": STOP if args.prompt == "few_shot_text" else (),
        "seed": args.seed,
        "prices": prices,
        "max_cost": args.max_cost,
    }
    with Store(args.store) as store:
        if args.dry_run:
            job = (questions, args.paths, args.n, engine, store, prompt)
            print(dry_run(*job, probes=args.probes, batch=args.batch, **parameters).format())
            return
        if args.adaptive:
            summary = _sample_adaptively(args, questions, engine, store, prompt, parameters)
        elif args.batch:
            from ..sampling.batch_api import sample_in_batches

            job = (questions, args.paths, args.n, engine, store, prompt)
            summary = sample_in_batches(*job, poll_seconds=args.poll_seconds, **parameters)
        else:
            summary = sample(questions, args.paths, args.n, engine, store, prompt, **parameters)
        print(format_summary(summary, args.store))
        if prices is not None:
            print(f"\n{Ledger(store.spending(), prices).format()}")
    if summary.missing and summary.errors:
        raise SystemExit(1)


def _sample_adaptively(
    args: SampleArguments,
    questions: list[Question],
    engine: Engine,
    store: Store,
    prompt: Callable[[Question, str], Prompt],
    parameters: dict[str, Any],
) -> SampleSummary:
    from ..adaptive import AdaptiveRule, sample_adaptively
    from ..execution import Executor, default_cache
    from ..judging import mark, read_answers

    gold = {question.id: question.answer for question in questions}
    with Executor(cache=default_cache(store.file)) as executor:
        return sample_adaptively(
            questions,
            args.n,
            engine,
            store,
            prompt,
            lambda thoughts: mark(read_answers(thoughts, executor), gold),
            AdaptiveRule(delta=args.delta),
            **parameters,
        )


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
        engine = OpenAIEngine(
            args.model,
            args.base_url,
            concurrency=args.concurrency,
            max_retries=args.max_retries,
            timeout=args.timeout,
            requests_per_minute=args.requests_per_minute,
            tokens_per_minute=args.tokens_per_minute,
        )
        return engine, prompts[kind]

    if args.engine == "vllm":
        from ..sampling.engines.vllm import VLLMEngine

        engine = VLLMEngine(args.model)
    else:
        from ..sampling.engines.transformers import TransformersEngine

        engine = TransformersEngine(args.model, batch_size=args.batch_size)
    kind = "student" if args.prompt == "auto" else args.prompt
    if kind == "student" and is_chat(engine.tokenizer):
        engine.chat = True
        return engine, lambda question, path: student_prompt(question.question, path, engine.tokenizer)
    return engine, prompts[kind]


def format_summary(summary: SampleSummary, store: str) -> str:
    """What a run did, in a line or two."""
    unusable = "".join(f", {count:,} of them unusable ({reason})" for reason, count in summary.unusable.items())
    parts = [
        f"{summary.thoughts:,} thoughts from {summary.requests:,} requests{unusable}",
        f"{summary.missing:,} missing",
    ]
    if summary.saved:
        parts.append(f"{summary.saved:,} saved by stopping early")
    tokens = f"{summary.prompt_tokens:,} + {summary.completion_tokens:,} tokens"
    parts.append(tokens + (f" ({summary.cached_tokens:,} of them cached)" if summary.cached_tokens else ""))
    if summary.cost is not None:
        parts.append(f"cost {summary.cost:.4f}")
    if repeated := sum(summary.repeated.values()):
        parts.append(f"{repeated:,} repetitions free of charge")
    if summary.lost:
        parts.append(f"{summary.lost:,} answers lost that may have been billed")
    return "; ".join([*parts, f"{summary.seconds:.1f} s", store])
