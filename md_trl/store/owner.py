"""Owners of claims and batches: which process made them, and whether it is still running."""

from __future__ import annotations

import os
import platform
import time
import uuid

import psutil


BATCH_OWNER = "batch"
"""Owner of samples that were claimed for a job of the Batch API: the job outlives the process that submitted it."""
IMPORT_OWNER = "import"
"""Owner of imported thoughts."""

# A claim made on another host cannot be checked; it is honoured for this long. On this host the process is looked up.
_LEASE_SECONDS = 3600.0


def new_owner() -> str:
    """Name an owner in this process. The start time tells the process from a later one with the same id."""
    return f"{psutil.Process().create_time()} {os.getpid()} {uuid.uuid4().hex[:8]} {platform.node()}"


def is_alive(owner: str, since: float) -> bool:
    r"""
    Say whether an owner may still be at work.

    Args:
        owner (`str`):
            A name from [`new_owner`], or `BATCH_OWNER`.
        since (`float`):
            When it made its claim, in seconds since the epoch.

    Returns:
        `bool`: Whether its claims must be respected.
    """
    if owner == BATCH_OWNER:
        return True
    started, pid, _, host = owner.split(" ", 3)
    if host != platform.node():
        return time.time() - since < _LEASE_SECONDS
    try:
        return abs(psutil.Process(int(pid)).create_time() - float(started)) < 1
    except psutil.NoSuchProcess:
        return False
