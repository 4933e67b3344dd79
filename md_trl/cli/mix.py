"""`md-trl mix`: judge and mix the thoughts of a store, a thought file or a dataset into a dataset of mixed rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import InputError, UsageError
from ..mixing import REPEAT_CAP
from ..records import PATHS


@dataclass
class MixArguments:
    r"""
    Arguments of `md-trl mix`.

    Args:
        task (`str`):
            Task to mix, which becomes a configuration of the dataset. A file of questions of your own stands for the
            task that is named after it.
        output (`str`):
            Folder to write, for `load_dataset(output, task)`.
        task_name (`str`, *optional*):
            Name for the task of a file. Defaults to the file's name without its ending.
        store (`str`, *optional*):
            Store of the thoughts. Either this or `thoughts` must be given.
        thoughts (`str`, *optional*):
            Thought file, or Hub id or folder of a dataset of raw thoughts.
        splits (`list[str]`, *optional*, defaults to `["train"]`):
            Splits to mix.
        paths (`list[str]`, *optional*):
            Paths to mix: `cot` and `pot` by default, and `cot_pot` if it is named too.
        model (`str`, *optional*):
            Use only thoughts of this model.
        pick (`list[str]`, *optional*):
            Use one teacher per path, as in `--pick cot=MODEL pot=MODEL`.
        settings (`list[int]`, *optional*):
            Use only thoughts of these settings, by the numbers that `md-trl store status` shows.
        combine (`bool`, *optional*, defaults to `False`):
            Combine the thoughts of several settings of one question and path, instead of refusing to mix them.
        prices (`str`, *optional*):
            Price table, as for `md-trl sample`, to state what each kept question cost.
        repeat_cap (`int`, *optional*, defaults to `4`):
            Maximum number of times that a question of type 1 or 2 counts per epoch.
    """

    task: str = field(
        metadata={
            "help": "Task to mix, which becomes a configuration of the dataset. A file of questions of your own "
            "stands for the task that is named after it."
        }
    )
    output: str = field(metadata={"help": "Folder to write, for `load_dataset(OUTPUT, TASK)`."})
    task_name: str | None = field(
        default=None,
        metadata={"help": "Name for the task of a file. Defaults to the file's name without its ending."},
    )
    store: str | None = field(
        default=None, metadata={"help": "Store of the thoughts. Either this or `--thoughts` must be given."}
    )
    thoughts: str | None = field(
        default=None,
        metadata={"help": "Thought file, or Hub id or folder of a dataset of raw thoughts, instead of `--store`."},
    )
    splits: list[str] = field(default_factory=lambda: ["train"], metadata={"help": "Splits to mix."})
    paths: list[str] | None = field(
        default=None, metadata={"help": "Paths to mix: `cot` and `pot` by default, and `cot_pot` if it is named too."}
    )
    model: str | None = field(default=None, metadata={"help": "Use only thoughts of this model."})
    pick: list[str] | None = field(
        default=None, metadata={"help": "Use one teacher per path, as in `--pick cot=MODEL pot=MODEL`."}
    )
    settings: list[int] | None = field(
        default=None,
        metadata={"help": "Use only thoughts of these settings, by the numbers that `md-trl store status` shows."},
    )
    combine: bool = field(
        default=False,
        metadata={"help": "Combine the thoughts of several settings of one question and path, instead of refusing."},
    )
    prices: str | None = field(
        default=None, metadata={"help": "Price table (YAML, per million tokens), to state what each question cost."}
    )
    repeat_cap: int = field(
        default=REPEAT_CAP,
        metadata={"help": "Maximum number of times that a question of type 1 or 2 counts per epoch."},
    )


ARGUMENTS = MixArguments


def run(args: MixArguments) -> None:
    """Mix, write the dataset and print a summary."""
    from ..dataset import build_dataset, open_source
    from ..sampling.ledger import read_prices
    from ..store import Selection
    from ..tasks import task_name

    task = task_name(args.task, args.task_name)
    models = args.model if args.pick is None else _parse_pick(args.pick, args.model, args.paths or PATHS)
    selection = Selection(task, args.splits, args.paths, models, args.settings, args.combine)
    prices = None if args.prices is None else read_prices(args.prices)
    with open_source(args.store, args.thoughts, args.task, args.output, task) as store:
        summary = build_dataset(store, args.output, selection, args.repeat_cap, prices, progress=True)
    print(summary.format())
    print(f"Wrote {args.output}. Open it with `load_dataset({args.output!r}, {task!r})`.")


def _parse_pick(pick: list[str], model: str | None, paths: Sequence[str]) -> dict[str, str]:
    if model is not None:
        raise UsageError("`--model` and `--pick` exclude each other. Name the model of each path with `--pick`.")
    models = dict(pair.partition("=")[::2] for pair in pick)
    if len(models) < len(pick) or not set(models) <= set(paths) or not all(models.values()):
        raise InputError(
            f"Cannot read `--pick {' '.join(pick)}`. Write it as `--pick cot=MODEL pot=MODEL`, of mixed paths."
        )
    return models
