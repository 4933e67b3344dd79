"""Progress bars. How they look where the output is no terminal is decided here."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any


# `tqdm` reads its environment when it is imported, which must be after `quiet_other_bars`.
if TYPE_CHECKING:
    from tqdm.auto import tqdm

LOG_SECONDS = 60.0
"""Seconds between two lines of progress in a log. Work that takes less than this leaves no line."""


class _Lines:
    """Writes each state of a bar as a line of its own, where carriage returns would pile up."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stderr.write(f"{text.strip()}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(iterable: Iterable[Any] | None = None, show: bool = True, **kwargs: Any) -> tqdm:
    r"""
    Create a progress bar with rate and time left: a bar in a terminal or a notebook, a line per minute in a log.

    Args:
        iterable (`Iterable`, *optional*):
            What to iterate over. Without it, the caller updates the bar.
        show (`bool`, *optional*, defaults to `True`):
            Whether to show it at all.
        **kwargs:
            Arguments of `tqdm`: `total`, `desc`, `unit`, ...

    Returns:
        `tqdm`: The bar, to be used as a context manager or iterated over.
    """
    from tqdm.asyncio import tqdm as text_bar
    from tqdm.auto import tqdm

    if tqdm is text_bar and not sys.stderr.isatty():
        log = {"file": _Lines(), "mininterval": LOG_SECONDS, "maxinterval": LOG_SECONDS, "delay": LOG_SECONDS}
        kwargs = log | kwargs
    return tqdm(iterable, disable=not show, **kwargs)


def quiet_other_bars() -> None:
    """Have the bars of other libraries print as rarely in a log. Call it before any of them imports `tqdm`."""
    if not sys.stderr.isatty():
        for name in ("TQDM_MININTERVAL", "TQDM_MAXINTERVAL"):
            os.environ.setdefault(name, str(LOG_SECONDS))
