"""Divide questions between jobs that have a store each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar


T = TypeVar("T")


def take_shard(questions: Sequence[T], number: int, count: int) -> Sequence[T]:
    r"""
    Return one of `count` consecutive blocks of nearly equal size.

    A sample is seeded by its question, so it is the same whichever job draws it. Stores that are merged in the order
    of their blocks hold the questions in their original order.

    Args:
        questions (`Sequence`):
            All questions.
        number (`int`):
            Number of the block, from 1.
        count (`int`):
            Number of blocks.

    Returns:
        `Sequence`: The questions of the block.
    """
    start, end = (len(questions) * i // count for i in (number - 1, number))
    return questions[start:end]
