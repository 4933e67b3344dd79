"""`md-trl register`: make the metric `md_vote` loadable by its bare name."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class RegisterArguments:
    r"""
    Arguments of `md-trl register`.

    Args:
        remove (`bool`, *optional*, defaults to `False`):
            Whether to undo the registration.
    """

    remove: bool = field(default=False, metadata={"help": "Undo the registration."})


ARGUMENTS = RegisterArguments


def run(args: RegisterArguments) -> None:
    """Register or unregister the metric, and print the folders."""
    from ..metric import register_metric, unregister_metric

    folders = unregister_metric() if args.remove else register_metric()
    for folder in folders:
        print(f"{'Removed' if args.remove else 'Wrote'} {folder}")
    if not args.remove:
        print('`evaluate.load("md_vote")` now works from any folder. `md-trl register --remove` undoes it.')
