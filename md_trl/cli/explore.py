"""`md-trl explore`: read and compare thoughts on a local page."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import InputError


@dataclass
class ExploreArguments:
    r"""
    Arguments of `md-trl explore`. At least one dataset, store or folder of results must be given.

    Args:
        dataset (`list[str]`, *optional*, defaults to `[]`):
            Folders of mixed rows from `md-trl mix`.
        store (`list[str]`, *optional*, defaults to `[]`):
            Stores of thoughts. They are judged first, with the results of programs in the cache beside each store.
        results (`list[str]`, *optional*, defaults to `[]`):
            Folders of results from `md-trl eval`, which hold answers without texts.
        prices (`str`, *optional*):
            Price table, as for `md-trl sample`, to show what the questions of a store cost.
        port (`int`, *optional*, defaults to `7860`):
            Port to listen on, on this machine only; 0 picks a free one.
    """

    dataset: list[str] = field(default_factory=list, metadata={"help": "Folders of mixed rows from `md-trl mix`."})
    store: list[str] = field(
        default_factory=list, metadata={"help": "Stores of thoughts, of a teacher or of students. They are only read."}
    )
    results: list[str] = field(
        default_factory=list, metadata={"help": "Folders of results from `md-trl eval`: answers without texts."}
    )
    prices: str | None = field(
        default=None, metadata={"help": "Price table (YAML, per million tokens), to show what questions cost."}
    )
    port: int = field(default=7860, metadata={"help": "Port to listen on, on this machine only; 0 picks a free one."})


ARGUMENTS = ExploreArguments


def run(args: ExploreArguments) -> None:
    """Explore until Ctrl-C or SIGTERM."""
    try:
        from ..explorer.app import explore
    except ModuleNotFoundError as error:
        if error.name not in ("gradio", "fastapi", "uvicorn", "starlette"):  # Gradio brings the others
            raise
        raise InputError('`md-trl explore` needs Gradio: pip install "md_trl[explore]"') from None
    from ..sampling.ledger import read_prices

    prices = None if args.prices is None else read_prices(args.prices)
    explore(args.dataset, args.store, args.results, prices, args.port)
