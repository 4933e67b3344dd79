"""`md-trl eval`: sample a student on both triggers and score its votes."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import InputError


@dataclass
class EvalArguments:
    r"""
    Arguments of `md-trl eval`.

    Args:
        model (`str`):
            The student: a folder, a Hub id or an adapter.
        task (`str`):
            Task to evaluate on.
        output (`str`):
            Folder for the results.
        store (`str`):
            Store for the student's thoughts. What it holds already is not sampled again.
        split (`str`, *optional*, defaults to `"test"`):
            Split to evaluate on.
        source (`str`, *optional*):
            Local copy of the task's original file.
        limit (`int`, *optional*):
            Evaluate on the first questions only.
        paths (`list[str]`, *optional*, defaults to `["cot", "pot"]`):
            Paths to sample: `cot`, `pot`, `label`. `label` is greedy, one answer a question.
        n (`int`, *optional*, defaults to `10`):
            Thoughts a path.
        temperature (`float`, *optional*, defaults to `0.7`):
            0 is greedy and needs `n` 1.
        max_tokens (`int`, *optional*, defaults to `256`):
            Longest thought in tokens.
        prompt_format (`str`, *optional*, defaults to `"auto"`):
            As the student was trained.
        extract (`str`, *optional*, defaults to `"strict"`):
            Whether a CoT must state its answer, or its last number will do (`flexible`).
        seed (`int`, *optional*, defaults to `42`):
            Seed of the samples.
        data_seed (`int`, *optional*, defaults to `42`):
            Seed of splits that are drawn from an original file, and of generated stories.
        name (`str`, *optional*):
            What tables call the student; the last part of `model` by default.
    """

    model: str = field(metadata={"help": "The student: a folder, a Hub id or an adapter."})
    task: str = field(metadata={"help": "Task to evaluate on."})
    output: str = field(metadata={"help": "Folder for the results."})
    store: str = field(metadata={"help": "Store for the student's thoughts; what it holds is not sampled again."})
    split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    source: str | None = field(default=None, metadata={"help": "Local copy of the task's original file."})
    limit: int | None = field(default=None, metadata={"help": "Evaluate on the first questions only."})
    paths: list[str] = field(
        default_factory=lambda: ["cot", "pot"],
        metadata={"help": "Paths to sample: cot, pot, label. `label` is greedy, one answer a question."},
    )
    n: int = field(default=10, metadata={"help": "Thoughts a path."})
    temperature: float = field(default=0.7, metadata={"help": "0 is greedy and needs n=1."})
    max_tokens: int = field(default=256, metadata={"help": "Longest thought in tokens."})
    prompt_format: str = field(
        default="auto", metadata={"help": "As the student was trained.", "choices": ["auto", "plain", "chat"]}
    )
    extract: str = field(
        default="strict",
        metadata={
            "help": "Whether a CoT must state its answer, or its last number will do.",
            "choices": ["strict", "flexible"],
        },
    )
    seed: int = field(default=42, metadata={"help": "Seed of the samples."})
    data_seed: int = field(
        default=42,
        metadata={"help": "Seed of splits that are drawn from an original file, and of generated stories."},
    )
    name: str | None = field(default=None, metadata={"help": "What tables call the student; by default its folder."})


ARGUMENTS = EvalArguments


def run(args: EvalArguments) -> None:
    """Samples what is missing, judges, scores, writes the result and prints it."""
    import json
    from pathlib import Path

    from ..evaluation import evaluate_thoughts
    from ..execution import Executor, default_cache
    from ..judging import mark, read_answers
    from ..prompts import resolve_prompt_format, student_prompt
    from ..records import SamplingParams
    from ..report import accuracy_table, solved_table
    from ..sampling.engines.transformers import TransformersEngine
    from ..sampling.sampler import sample
    from ..store import Selection, Store
    from ..tasks import load_questions

    if unknown := sorted(set(args.paths) - {"cot", "pot", "label"}):
        raise InputError(f"Unknown path {unknown[0]!r} in `--paths`. Choose from cot, pot, label.")
    questions = load_questions(args.task, args.split, source=args.source, seed=args.data_seed)[: args.limit]
    name = args.name or Path(args.model).name
    engine = TransformersEngine(args.model)
    prompt_format = resolve_prompt_format(engine.tokenizer, args.prompt_format)

    def prompt(question, path):
        return student_prompt(question.question, path, prompt_format)

    thoughts, sampled = [], []
    with Store(args.store) as store:
        sampled_paths = [path for path in args.paths if path != "label"]
        for paths, n, temperature in ((sampled_paths, args.n, args.temperature), (["label"], 1, 0.0)):
            paths = [path for path in paths if path in args.paths]
            if not paths:
                continue
            params = SamplingParams(temperature=temperature, max_tokens=args.max_tokens, seed=args.seed)
            summary = sample(questions, paths, n, engine, store, prompt, params=params)
            sampled.append(summary)
            wanted = {question.id for question in questions}
            found = store.thoughts(Selection(args.task, [args.split], settings=summary.settings))
            # An earlier run may have sampled more questions, or more thoughts of each
            thoughts += [t for t in found if t.path in paths and t.question_id in wanted and t.index < n]
    gold = {question.id: question.answer for question in questions}
    with Executor(cache=default_cache(args.store)) as executor:
        judged = mark(read_answers(thoughts, executor, strict=args.extract == "strict", progress=True), gold)
    seconds, tokens = sum(s.seconds for s in sampled), sum(s.completion_tokens for s in sampled)
    result = {
        "name": name,
        "model": args.model,
        "task": args.task,
        "split": args.split,
        "n": args.n,
        "temperature": args.temperature,
        "extract": args.extract,
        "seed": args.seed,
        **evaluate_thoughts(questions, judged, args.n),
        "sampling": {
            "thoughts": sum(s.thoughts for s in sampled),
            "seconds": round(seconds, 1),
            "completion_tokens": tokens,
            "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
        },
    }
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    file = output / f"{name}-{args.task}-{args.split}-n{args.n}-t{args.temperature:g}.json"
    file.write_text(json.dumps(result, indent=2) + "\n")
    print("\n\n".join(table for table in (accuracy_table([result]), solved_table([result])) if table))
    print(f"\nWrote {file}.")
