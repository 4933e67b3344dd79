"""Sampling in rounds: which thoughts a stopping rule wants next, and which questions can be asked together."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

from ..records import PATHS
from ..stopping import Seen, StoppingRule


Question = TypeVar("Question", bound=Hashable)


def next_sizes(rule: StoppingRule, seen: Seen) -> dict[str, int]:
    """Return how many thoughts a question should have next, for each path that needs more."""
    return {path: seen.count(path) + more for path, more in rule.next(seen).items()}


def group_by_size(sizes: Mapping[Question, Mapping[str, int]]) -> dict[tuple[int, tuple[str, ...]], list[Question]]:
    r"""
    Group questions that need the same number of thoughts on the same paths, so that they can be sampled together.

    Args:
        sizes (`Mapping[Question, Mapping[str, int]]`):
            For each question, or whatever stands for it, what [`next_sizes`] returns.

    Returns:
        `dict[tuple[int, tuple[str, ...]], list[Question]]`: The questions by number and paths. A question whose paths
        need different numbers is in a group for each number.
    """
    groups: dict[tuple[int, tuple[str, ...]], list[Question]] = {}
    for question, of_paths in sizes.items():
        for number in dict.fromkeys(of_paths.values()):
            paths = tuple(path for path in PATHS if of_paths.get(path) == number)
            groups.setdefault((number, paths), []).append(question)
    return groups
