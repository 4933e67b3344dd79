"""`md-trl sample`: sample thoughts from a model into a store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..adaptive import AdaptiveRule, sample_adaptively
from ..errors import InputError, UsageError, check_at_least_one
from ..execution import Executor, default_cache
from ..prompts import FEW_SHOT_PROMPTS, OWN_TASK_EXAMPLES, STOP, Prompt, student_prompt
from ..records import PATHS, TEACHER_THOUGHTS, Question, SamplingParams
from ..sampling import SampleSummary, sample
from ..sampling.dry_run import PROBES, dry_run
from ..sampling.engines import POLL_SECONDS, Engine
from ..sampling.ledger import Ledger, read_prices
from ..sampling.shards import take_shard
from ..store import Store
from ..tasks import load_questions
from .engine_arguments import SHOWN as SHOWN  # read by `md_trl.cli`
from .engine_arguments import EngineArguments, make_engine


PROMPTS = ("auto", *FEW_SHOT_PROMPTS, "student")
_OWN_TASK_EXAMPLES = ", ".join(f"{len(chosen)} of `{task}`" for task, chosen in OWN_TASK_EXAMPLES.items())


@dataclass(kw_only=True)
class SampleArguments(EngineArguments):
    r"""
    Arguments of `md-trl sample`, beside those of [`EngineArguments`].

    Args:
        task (`str`, *optional*):
            Task to sample, for example `svamp`, or a file of questions of your own.
        task_name (`str`, *optional*):
            Name for the task of a file. Defaults to the file's name without its ending.
        split (`str`, *optional*, defaults to `"train"`):
            Split of the task.
        source (`str`, *optional*):
            Local copy of the task's original file. Loaded from the Hub by default.
        limit (`int`, *optional*):
            Sample only the first `limit` questions.
        shard (`str`, *optional*):
            Sample only one of N blocks of the questions, as in `--shard 2/4`: for the jobs of an array, each with a
            store of its own, which `md-trl store merge` puts together.
        data_seed (`int`, *optional*, defaults to `42`):
            Seed of splits drawn from an original file, and of generated stories.
        paths (`list[str]`, *optional*, defaults to `["cot", "pot"]`):
            Paths to sample: `cot`, `pot`, `cot_pot`, or `label` for the bare answer.
        n (`int`, *optional*, defaults to `20`):
            Samples per question and path.
        temperature (`float`, *optional*, defaults to `0.7`):
            Sampling temperature. 0 is greedy and needs `--n 1`.
        top_p (`float`, *optional*, defaults to `1.0`):
            Cumulative probability of the tokens to sample from.
        max_tokens (`int`, *optional*, defaults to `512`):
            Maximum number of tokens per sample.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the samples.
        prompt (`str`, *optional*, defaults to `"auto"`):
            `few_shot` (worked examples as a chat), `few_shot_text` (the same as text, for models without a chat
            template), `student` (question and trigger only), or `auto`: `few_shot` for the engine `openai`, `student`
            for local models.
        few_shot (`str`, *optional*):
            File of worked examples (JSONL, JSON, CSV or Parquet) with `question`, `cot` and `pot`. Defaults to those
            of the task. A task of your own is asked with three of `gsm8k`, one of `asdiv` and two of `strategyqa`.
        model (`str`, *optional*):
            Name of the model on the server; folder or Hub id of a local model or PEFT adapter.
        prices (`str`, *optional*):
            Price table, a YAML file: `MODEL: {prompt: 0.50, cached: 0.25, completion: 1.50}`, per million tokens.
        max_cost (`float`, *optional*):
            Maximum cost of the whole store, including earlier runs. The run stops before any request that could exceed
            it. Needs `prices`.
        dry_run (`bool`, *optional*, defaults to `False`):
            Estimate tokens and cost from a few requests. Their thoughts are kept.
        probes (`int`, *optional*, defaults to `8`):
            With `dry_run`, number of requests per path.
        batch (`bool`, *optional*, defaults to `False`):
            Use the Batch API: half the price, results within a day. Run the same command again after an interruption.
        poll_seconds (`float`, *optional*, defaults to `60.0`):
            With `batch`, seconds between two status checks.
        adaptive (`bool`, *optional*, defaults to `False`):
            Sample a few thoughts first, and more only where type or lambda is still open.
        delta (`float`, *optional*, defaults to `0.1`):
            With `adaptive`, maximum probability that the type of a question differs from its type after n thoughts.
        store (`str`, *optional*, defaults to `"thoughts.db"`):
            File in which all thoughts are kept.
    """

    task: str | None = field(
        default=None,
        metadata={
            "help": "Task to sample, for example `svamp`, or a file of questions of your own (JSONL, JSON, CSV or "
            "Parquet) with the columns `question`, `answer` and optionally `id` and `split`."
        },
    )
    task_name: str | None = field(
        default=None,
        metadata={"help": "Name for the task of a file. Defaults to the file's name without its ending."},
    )
    split: str = field(default="train", metadata={"help": "Split of the task."})
    source: str | None = field(
        default=None, metadata={"help": "Local copy of the task's original file. Loaded from the Hub by default."}
    )
    limit: int | None = field(default=None, metadata={"help": "Sample only the first `limit` questions."})
    shard: str | None = field(
        default=None,
        metadata={
            "help": "Sample only one of N blocks of the questions, as in `--shard 2/4`: for the jobs of an array, "
            "each with a store of its own, which `md-trl store merge` puts together."
        },
    )
    data_seed: int = field(
        default=42, metadata={"help": "Seed of splits drawn from an original file, and of generated stories."}
    )
    paths: list[str] = field(
        default_factory=lambda: list(PATHS),
        metadata={"help": "Paths to sample: `cot`, `pot`, `cot_pot`, or `label` for the bare answer."},
    )
    n: int = field(default=TEACHER_THOUGHTS, metadata={"help": "Samples per question and path."})
    temperature: float = field(
        default=SamplingParams.temperature,
        metadata={"help": "Sampling temperature. 0 is greedy and needs `--n 1`."},
    )
    top_p: float = field(
        default=SamplingParams.top_p, metadata={"help": "Cumulative probability of the tokens to sample from."}
    )
    max_tokens: int = field(
        default=SamplingParams.max_tokens, metadata={"help": "Maximum number of tokens per sample."}
    )
    seed: int = field(default=SamplingParams.seed, metadata={"help": "Seed of the samples."})
    prompt: str = field(
        default="auto",
        metadata={
            "help": "`few_shot` (worked examples as a chat), `few_shot_text` (the same as text, for models without a "
            "chat template), `student` (question and trigger only), or `auto`: `few_shot` for the engine `openai`, "
            "`student` for local models.",
            "choices": PROMPTS,
        },
    )
    few_shot: str | None = field(
        default=None,
        metadata={
            "help": "File of worked examples (JSONL, JSON, CSV or Parquet) with `question`, `cot` and `pot`. Defaults "
            f"to those of the task. A task of your own is asked with {_OWN_TASK_EXAMPLES}."
        },
    )
    model: str | None = field(
        default=None,
        metadata={"help": "Name of the model on the server; folder or Hub id of a local model or PEFT adapter."},
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
            "help": "Maximum cost of the whole store, including earlier runs. The run stops before any request that "
            "could exceed it. Needs `--prices`."
        },
    )
    dry_run: bool = field(
        default=False, metadata={"help": "Estimate tokens and cost from a few requests. Their thoughts are kept."}
    )
    probes: int = field(default=PROBES, metadata={"help": "With `--dry_run`, number of requests per path."})
    batch: bool = field(
        default=False,
        metadata={
            "help": "Use the Batch API: half the price, results within a day. Run the same command again after an "
            "interruption."
        },
    )
    poll_seconds: float = field(
        default=POLL_SECONDS, metadata={"help": "With `--batch`, seconds between two status checks."}
    )
    adaptive: bool = field(
        default=False,
        metadata={"help": "Sample a few thoughts first, and more only where type or lambda is still open."},
    )
    delta: float = field(
        default=AdaptiveRule.delta,
        metadata={
            "help": "With `--adaptive`, maximum probability that the type of a question differs from its type after n "
            "thoughts."
        },
    )
    store: str = field(default="thoughts.db", metadata={"help": "File in which all thoughts are kept."})


ARGUMENTS = SampleArguments


def run(args: SampleArguments) -> None:
    """Sample thoughts into a store and print what was done. Exit with status 1 if samples are missing at the end."""
    if args.model is None:
        raise UsageError("`--model` is missing: name the model to sample from.")
    if args.task is None:
        raise UsageError("`--task` is missing: name the task of the questions, for example `--task svamp`.")
    check_at_least_one("--limit", args.limit)
    if args.batch and (args.engine != "openai" or args.adaptive):
        raise UsageError("`--batch` works with `--engine openai` only, and not with `--adaptive`. Leave one out.")
    if args.adaptive and sorted(args.paths) != sorted(PATHS):
        raise InputError(f"`--adaptive` compares both paths, not {args.paths}. Use `--paths {' '.join(PATHS)}`.")
    if args.max_cost is not None and args.prices is None:
        raise UsageError("`--max_cost` needs a price table: pass `--prices`.")
    if args.few_shot is not None and args.prompt == "student":
        raise UsageError("`--prompt student` asks without worked examples. Leave out `--few_shot` or `--prompt`.")
    options = {
        "params": _params(args),
        "prices": None if args.prices is None else read_prices(args.prices),
        "max_cost": args.max_cost,
    }
    shard = (1, 1) if args.shard is None else _parse_shard(args.shard)
    questions = load_questions(args.task, args.split, args.source, args.data_seed, args.task_name)[: args.limit]
    questions = take_shard(questions, *shard)
    examples = _examples(args, questions)
    engine = make_engine(args, args.model)
    prompt = _prompt(args, engine, examples)
    with Store(args.store) as store:
        if args.dry_run:
            job = (questions, args.paths, args.n, engine, store, prompt)
            print(dry_run(*job, probes=args.probes, batch=args.batch, **options).format())
            return
        summary = _sample(args, questions, engine, store, prompt, options)
        print(format_summary(summary, args.store))
        if options["prices"] is not None:
            print(f"\n{Ledger(store.spending(), options['prices']).format()}")
    if summary.missing:
        raise SystemExit(1)  # A warning has said why, and how to continue.


def _parse_shard(shard: str) -> tuple[int, int]:
    number, _, count = shard.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise InputError(f"`--shard` is {shard!r}. Write it as `--shard I/N` with I from 1 to N, for example `2/4`.")
    return int(number), int(count)


def _params(args: SampleArguments) -> SamplingParams:
    stop = STOP if args.prompt == "few_shot_text" else ()
    return SamplingParams(args.temperature, args.top_p, args.max_tokens, stop, args.seed)


def _sample(
    args: SampleArguments,
    questions: list[Question],
    engine: Engine,
    store: Store,
    prompt: Callable[[Question, str], Prompt],
    options: dict[str, Any],
) -> SampleSummary:
    if args.adaptive:
        with Executor(cache=default_cache(store.file)) as executor:
            rule = AdaptiveRule(delta=args.delta)
            return sample_adaptively(questions, args.n, engine, store, prompt, executor, rule, **options)
    job = (questions, args.paths, args.n, engine, store, prompt)
    if args.batch:
        from ..sampling.batch_api import sample_in_batches

        return sample_in_batches(*job, poll_seconds=args.poll_seconds, **options)
    return sample(*job, **options)


def _prompt(
    args: SampleArguments, engine: Engine, examples: list[dict[str, str]] | None
) -> Callable[[Question, str], Prompt]:
    kind = args.prompt
    if kind == "auto":
        kind = "few_shot" if args.engine == "openai" or args.few_shot is not None else "student"
    if kind != "student":
        return partial(FEW_SHOT_PROMPTS[kind], examples=examples)
    # A server does not tell whether its model has a chat template.
    prompt_format = "plain"
    if args.engine != "openai":
        prompt_format = engine.student_prompt_format()
    return lambda question, path: student_prompt(question.question, path, prompt_format)


def _examples(args: SampleArguments, questions: list[Question]) -> list[dict[str, str]] | None:
    if args.few_shot is None:
        return None
    from ..few_shot import load_few_shot

    with Executor() as executor:
        return load_few_shot(args.few_shot, executor, questions)


def format_summary(summary: SampleSummary, store: str) -> str:
    """Format what a run did in a line or two."""
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
    if retries := summary.retries.total():
        parts.append(f"{retries:,} retries that cost nothing")
    if summary.lost:
        parts.append(f"{summary.lost:,} lost answers that may have been billed")
    return "; ".join([*parts, f"{summary.seconds:.1f} s", store])
