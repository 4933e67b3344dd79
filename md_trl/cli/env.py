"""`md-trl env`: describe this machine and the installed versions, for bug reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class EnvArguments:
    """`md-trl env` has no arguments of its own."""


ARGUMENTS = EnvArguments


def run(args: EnvArguments) -> None:
    """Print the description."""
    from ..environment import describe_environment

    print(describe_environment())
