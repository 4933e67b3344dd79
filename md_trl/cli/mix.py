"""`md-trl mix`: judge and mix the thoughts of a store."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class MixArguments:
    r"""
    Arguments of `md-trl mix`.

    Args:
        store (`str`):
            The store to read.
        task (`str`):
            Task to mix; the name of the dataset's config.
        output (`str`):
            Folder to write, for `load_dataset(output, task)`.
        splits (`list[str]`, *optional*, defaults to `["train"]`):
            Splits to mix.
        model (`str`, *optional*), temperature (`float`, *optional*):
            Which thoughts to take, where the store has several for a question.
        settings (`list[int]`, *optional*):
            The same by the numbers that `md-trl store status` shows.
        prices (`str`, *optional*):
            Price table, as for `md-trl sample`: the summary says what each kept question has cost.
        repeat_cap (`int`, *optional*, defaults to `4`):
            How often a question of type 1 or 2 may count at most.
    """

    store: str = field(metadata={"help": "The store to read."})
    task: str = field(metadata={"help": "Task to mix; the name of the dataset's config."})
    output: str = field(metadata={"help": "Folder to write, for `load_dataset(OUTPUT, TASK)`."})
    splits: list[str] = field(default_factory=lambda: ["train"], metadata={"help": "Splits to mix."})
    model: str | None = field(default=None, metadata={"help": "Take the thoughts of this model only."})
    temperature: float | None = field(default=None, metadata={"help": "Take the thoughts of this temperature only."})
    settings: list[int] | None = field(
        default=None, metadata={"help": "Take the thoughts of these settings only; `md-trl store status` has them."}
    )
    prices: str | None = field(
        default=None, metadata={"help": "Price table (YAML, per million tokens): what a kept question has cost."}
    )
    repeat_cap: int = field(default=4, metadata={"help": "How often a question of type 1 or 2 may count at most."})


ARGUMENTS = MixArguments


def run(args: MixArguments) -> None:
    """Mixes, writes the dataset and prints a summary."""
    from pathlib import Path

    from ..dataset import rows_from_store, write_folder
    from ..mixing import describe
    from ..sampling.ledger import Ledger, read_prices
    from ..store import Selection, Store

    if not Path(args.store).is_file():
        raise FileNotFoundError(
            f"There is no store at {args.store}. Make one with `md-trl sample --store {args.store}`."
        )
    with Store(args.store) as store:
        rows = {
            split: rows_from_store(
                store,
                args.task,
                split,
                model=args.model,
                temperature=args.temperature,
                repeat_cap=args.repeat_cap,
                settings=args.settings,
                progress=True,
            )
            for split in args.splits
        }
        # The card and the cost speak of the thoughts that were mixed, not of all that the store holds
        sampled = [
            row
            for row in store.status()
            if row.task == args.task
            and row.split in args.splits
            and args.model in (None, row.model)
            and args.temperature in (None, row.params.get("temperature"))
            and (args.settings is None or row.setting in args.settings)
        ]
        spending = store.spending(Selection(args.task, args.splits, settings=sorted({row.setting for row in sampled})))
    settings = {
        "teacher": ", ".join(sorted({row.model for row in sampled})),
        "temperature": ", ".join(sorted({str(row.params.get("temperature", "unknown")) for row in sampled})),
        "thoughts a path (CoT)": ", ".join(sorted({str(row.n_cot) for of_split in rows.values() for row in of_split})),
        "thoughts a path (PoT)": ", ".join(sorted({str(row.n_pot) for of_split in rows.values() for row in of_split})),
        "repeat_cap": args.repeat_cap,
    }
    write_folder(args.output, args.task, rows, settings)
    for split, of_split in rows.items():
        print(f"{args.task}/{split}: {len(of_split):,} questions\n\n{describe(of_split)}\n")
    if args.prices is not None:
        ledger = Ledger(spending, read_prices(args.prices))
        kept = sum(row.type != 4 for of_split in rows.values() for row in of_split)
        print(f"Cost {ledger.cost:.4f}: {ledger.cost / max(kept, 1):.6f} for each of {kept:,} kept questions.\n")
    print(f"Wrote {args.output}. Open it with `load_dataset({args.output!r}, {args.task!r})`.")
