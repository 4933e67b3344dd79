"""`md-trl store status | import | export | merge`: inspect a store, move thoughts to and from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError, UsageError, check_at_least_one
from ..nearby import did_you_mean_file
from ..sampling.ledger import Ledger, read_prices
from ..store import StatusRow, Store
from ..store.settings import describe_setting
from ..tasks import is_own_file, load_questions, own_file, task_name


ACTIONS = ("status", "import", "export", "merge")


@dataclass
class StoreArguments:
    r"""
    Arguments of `md-trl store`.

    Args:
        store (`str`):
            Store to use. `import` and `merge` create it if it does not exist.
        file (`str`, *optional*):
            Thought file to import or to write: Parquet if its name ends in `.parquet`, JSONL otherwise.
        stores (`list[str]`, *optional*):
            Stores to merge into `store`, for example those of `md-trl sample --shard 1/4` to `4/4`.
        prices (`str`, *optional*):
            Price table for `status`, a YAML file: `MODEL: {prompt: 0.50, cached: 0.25, completion: 1.50}`, per million
            tokens.
        task (`str`, *optional*):
            Task that every row of an import must have, which may be a task of your own. By default every known task.
            The questions of a file are added before the import.
        task_name (`str`, *optional*):
            Name for the task of a file. Defaults to the file's name without its ending.
        split (`str`, *optional*, defaults to `"train"`):
            Split of questions that an import adds.
        source (`str`, *optional*):
            Local copy of the task's original file, whose questions are added before the import.
        limit (`int`, *optional*):
            Add only this many questions of `source` or of the file `task`.
        data_seed (`int`, *optional*, defaults to `42`):
            Seed of splits drawn from `source` or from the file `task`.
    """

    store: str = field(metadata={"help": "Store to use. `import` and `merge` create it if it does not exist."})
    file: str | None = field(
        default=None,
        metadata={"help": "Thought file to import or to write: Parquet if it ends in `.parquet`, JSONL otherwise."},
    )
    stores: list[str] | None = field(
        default=None,
        metadata={"help": "merge: stores to add, for example those of `md-trl sample --shard 1/4` to `4/4`."},
    )
    prices: str | None = field(
        default=None,
        metadata={
            "help": "status: price table, a YAML file: `MODEL: {prompt: 0.50, cached: 0.25, completion: 1.50}`, per "
            "million tokens."
        },
    )
    task: str | None = field(
        default=None,
        metadata={
            "help": "import: task that every row must have, which may be one of your own. The questions of a file "
            "are added first."
        },
    )
    task_name: str | None = field(
        default=None,
        metadata={"help": "import: name for the task of a file. Defaults to the file's name without its ending."},
    )
    split: str = field(default="train", metadata={"help": "import: split of the questions that it adds."})
    source: str | None = field(
        default=None,
        metadata={"help": "import: local copy of the task's original file, whose questions are added first."},
    )
    limit: int | None = field(default=None, metadata={"help": "import: add only this many questions."})
    data_seed: int = field(default=42, metadata={"help": "import: seed of splits that are drawn."})


ARGUMENTS = StoreArguments


def run(args: StoreArguments, action: str) -> None:
    """Run one action on a store."""
    if action in ("import", "export") and args.file is None:
        raise UsageError(f"`--file` is missing: name the thought file to {action}.")
    if action == "merge" and not args.stores:
        raise UsageError("`--stores` is missing: name the stores to merge.")
    if action in ("status", "export") and not Path(args.store).is_file():
        problem = "is a folder" if Path(args.store).is_dir() else "does not exist"
        hint = did_you_mean_file(args.store)
        raise FileNotFoundError(f"{args.store} {problem}. Name an existing store with `--store`.{hint}")
    {"status": _status, "import": _import, "export": _export, "merge": _merge}[action](args)


def _status(args: StoreArguments) -> None:
    prices = None if args.prices is None else read_prices(args.prices)
    with Store(args.store) as store:
        print(format_status(store))
        if prices is not None:
            print(f"\n{Ledger(store.spending(), prices).format()}")


def _import(args: StoreArguments) -> None:
    questions, task = [], None if args.task is None else task_name(args.task, args.task_name)
    check_at_least_one("--limit", args.limit)
    if args.source is not None:
        if task is None:
            raise UsageError("`--source` needs `--task`: name the task of its questions, for example `--task svamp`.")
        questions = load_questions(args.task, args.split, args.source, args.data_seed, args.task_name)
    elif task is not None and is_own_file(args.task):
        questions = own_file.load(args.task, seed=args.data_seed, name=args.task_name)
    elif args.limit is not None:
        raise UsageError(
            "`--limit` is a number of questions to add, and there is no file of questions. Name one as `--source`, or "
            "one of your own as `--task`, or leave out `--limit`."
        )
    questions = questions[: args.limit]
    is_new = not Path(args.store).exists()
    try:
        with Store(args.store) as store:
            added = store.questions.add(questions)
            summary = store.import_thoughts(args.file, task, args.split)
    except InputError:
        if is_new:  # It would only hold the questions, which the next import adds.
            Path(args.store).unlink(missing_ok=True)
        raise
    # Those that were added first are known to the import.
    known = len(questions) - added if questions else summary.known_questions
    print(
        f"{summary.thoughts:,} thoughts added to {args.store}, {summary.known:,} were there already; "
        f"{added + summary.questions:,} questions added, {known:,} were there already"
    )


def _export(args: StoreArguments) -> None:
    with Store(args.store) as store:
        print(f"{store.export_thoughts(args.file):,} thoughts written to {args.file}")


def _merge(args: StoreArguments) -> None:
    with Store(args.store) as store:
        for file in args.stores:
            summary = store.merge(file)
            print(
                f"{file}: {summary.thoughts:,} thoughts and {summary.questions:,} questions added to {args.store}; "
                f"{summary.known:,} thoughts were there already"
            )


def format_status(store: Store) -> str:
    """Format the status of a store as a table, with its settings below."""
    head = "task split path setting questions thoughts distinct missing unusable failed tokens".split()
    rows = store.status()
    if not rows:
        return f"{len(store.questions.load()):,} questions, no thoughts"
    table = [head, *(_cells(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    settings = {
        row.setting: f"setting {row.setting}: {describe_setting(row.model, row.prompt_hash, row.params)}"
        + (f" (answered by {row.served})" if row.served else "")
        for row in rows
    }
    lines += settings.values()
    lines.append("unusable: cut off or empty. Whether the others reach an answer is known after `md-trl mix`.")
    if lost := sum(row.lost for row in rows):
        lines.append(
            f"{lost:,} requests were sent, but their answers never arrived: the sampling was interrupted or the "
            "connection was lost. They may have been billed. The same `md-trl sample` again asks for what is missing."
        )
    return "\n".join(lines)


def _cells(row: StatusRow) -> tuple[str, ...]:
    unusable = ", ".join(f"{count:,} {reason}" for reason, count in row.unusable.items()) or "0"
    return (
        row.task,
        row.split,
        row.path,
        str(row.setting),
        f"{row.questions:,}",
        f"{row.thoughts:,}",
        f"{row.distinct:,}",
        f"{row.missing:,} of {row.n} each" if row.n else "imported",
        unusable,
        f"{row.failed:,} of {row.requests:,}" + (f" ({row.lost:,} without an answer)" if row.lost else ""),
        f"{row.prompt_tokens:,} + {row.completion_tokens:,}",
    )
