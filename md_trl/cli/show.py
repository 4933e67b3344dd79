"""`md-trl show`: show questions with their thoughts, answers and votes."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import UsageError


@dataclass
class ShowArguments:
    r"""
    Arguments of `md-trl show`. Questions come from a store, a dataset or a result.

    Args:
        store (`str`, *optional*):
            Store of thoughts. With `result`, the store that its texts are in.
        dataset (`str`, *optional*):
            Folder or Hub id of mixed thoughts.
        result (`str`, *optional*):
            Result of `md-trl eval`.
        id (`list[str]`, *optional*):
            Ids of the questions to show, or their ends where these are unique, for example `chal-12`.
        task (`str`, *optional*):
            Show only questions of this task.
        split (`str`, *optional*):
            Show only questions of this split.
        type (`list[int]`, *optional*):
            Show only questions of these types: 1 solved by PoT only, 2 by CoT only, 3 by both, 4 by neither.
        wrong (`bool`, *optional*, defaults to `False`):
            Show only questions whose joint vote is wrong.
        limit (`int`, *optional*):
            Show at most this many questions.
        samples_out (`str`, *optional*):
            Write the same questions with their thoughts to this file, as JSONL.
        model (`str`, *optional*):
            Use only thoughts of this model in the store.
        settings (`list[int]`, *optional*):
            Use only thoughts of these settings, by the numbers that `md-trl store status` shows.
        combine (`bool`, *optional*, defaults to `False`):
            Combine the thoughts of several settings of one question and path, instead of refusing.
    """

    store: str | None = field(
        default=None, metadata={"help": "Store of thoughts. With `--result`, the store that its texts are in."}
    )
    dataset: str | None = field(default=None, metadata={"help": "Folder or Hub id of mixed thoughts."})
    result: str | None = field(default=None, metadata={"help": "Result of `md-trl eval`."})
    id: list[str] | None = field(
        default=None,
        metadata={"help": "Ids of the questions to show, or their ends where these are unique, like `chal-12`."},
    )
    task: str | None = field(default=None, metadata={"help": "Show only questions of this task."})
    split: str | None = field(default=None, metadata={"help": "Show only questions of this split."})
    type: list[int] | None = field(
        default=None,
        metadata={"help": "Show only these types: 1 solved by PoT only, 2 by CoT only, 3 by both, 4 by neither."},
    )
    wrong: bool = field(default=False, metadata={"help": "Show only questions whose joint vote is wrong."})
    limit: int | None = field(default=None, metadata={"help": "Show at most this many questions."})
    samples_out: str | None = field(
        default=None, metadata={"help": "Write the same questions with their thoughts to this file, as JSONL."}
    )
    model: str | None = field(default=None, metadata={"help": "Use only thoughts of this model in the store."})
    settings: list[int] | None = field(
        default=None,
        metadata={"help": "Use only thoughts of these settings, by the numbers that `md-trl store status` shows."},
    )
    combine: bool = field(
        default=False,
        metadata={"help": "Combine the thoughts of several settings of one question and path, instead of refusing."},
    )


ARGUMENTS = ShowArguments


def run(args: ShowArguments) -> None:
    """Print the questions, and write them if asked to."""
    import shutil
    import sys

    from ..show import choose, write_samples
    from ..show_text import format_question
    from ..terminal import in_color

    if (args.dataset is None) == (args.result is None) and (args.store is None or args.dataset is not None):
        raise UsageError("Name one source: `--store`, `--dataset`, or `--result` (which may come with `--store`).")
    if args.dataset is not None and args.store is not None:
        raise UsageError("`--dataset` holds its own texts. Leave `--store` out.")
    if args.store is None and (args.model or args.settings or args.combine):
        raise UsageError("`--model`, `--settings` and `--combine` choose thoughts of a store: they need `--store`.")
    questions = _read(args)
    chosen = choose(questions, args.id, args.task, args.split, args.type, args.wrong, args.limit)
    if args.samples_out is not None:
        write_samples(chosen, args.samples_out)
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not know every character
    color = in_color(sys.stdout)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for question in chosen:
        print(f"{format_question(question, color, width)}\n")
    print(f"{len(chosen):,} of {len(questions):,} questions")
    if args.samples_out is not None:
        print(f"Wrote {args.samples_out}.")


def _read(args: ShowArguments):
    from contextlib import nullcontext

    from ..evaluation import EvaluationResult
    from ..show import questions_of_dataset, questions_of_result, questions_of_store
    from ..store import Selection, open_store

    if args.dataset is not None:
        return questions_of_dataset(args.dataset, args.task)
    result = None if args.result is None else EvaluationResult.load(args.result)
    with nullcontext() if args.store is None else open_store(args.store) as store:
        if result is not None:
            return questions_of_result(result, store, args.settings)
        splits = None if args.split is None else [args.split]
        selection = Selection(args.task, splits, models=args.model, settings=args.settings, combine=args.combine)
        return questions_of_store(store, selection, progress=True)
