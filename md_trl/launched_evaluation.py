"""Evaluate a student in several processes: those of `accelerate launch -m md_trl eval`, or of a training run.

The processes of one machine share a store, in which each claims what it samples next. Every machine has a store of its
own and a block of the questions, and the stores are merged at the end. A sample is seeded by its question, path and
index, so the answers are those of a single process, up to rounding.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from .evaluation import EvaluationResult
from .sampling import SampleSummary
from .sampling.engines import Engine
from .sampling.shards import take_shard
from .store import Store
from .student_evaluation import StudentEvaluation


# A machine may wait this long for the others.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Process:
    r"""
    The place of this process among those that a launcher started.

    Args:
        rank (`int`, *optional*, defaults to `0`):
            Number among all processes.
        local_rank (`int`, *optional*, defaults to `0`):
            Number among those of its machine.
        machine (`int`, *optional*, defaults to `0`):
            Number of its machine.
        machines (`int`, *optional*, defaults to `1`):
            Number of machines.
    """

    rank: int = 0
    local_rank: int = 0
    machine: int = 0
    machines: int = 1

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Process:
        """Read the variables that `torchrun` and `accelerate launch` set; a single process if there are none."""
        names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "GROUP_WORLD_SIZE")
        if "RANK" not in environment or "GROUP_WORLD_SIZE" not in environment:
            return cls()
        return cls(*(int(environment[name]) for name in names))

    def use_own_device(self) -> None:
        """Let what is loaded from now on use this process's GPU, if there are several."""
        import torch

        if torch.cuda.is_available() and self.local_rank < torch.cuda.device_count():
            torch.cuda.set_device(self.local_rank)

    @property
    def is_main(self) -> bool:
        """Whether it is the one that judges and reports."""
        return self.rank == 0


def evaluate_launched(
    evaluation: StudentEvaluation, name: str, engine: Engine, store_file: str | Path, process: Process
) -> tuple[SampleSummary, EvaluationResult | None]:
    r"""
    Sample a student together with all other processes, and judge its answers in the main process.

    Args:
        evaluation ([`~md_trl.student_evaluation.StudentEvaluation`]):
            What to ask, the same in all processes.
        name (`str`):
            Name of the student in tables.
        engine ([`~md_trl.sampling.engines.Engine`]):
            Engine of the student in this process.
        store_file (`str` or `Path`):
            Store of the student's thoughts. Machines other than the first add their number to its name.
        process ([`Process`]):
            This process.

    Returns:
        `tuple[SampleSummary, EvaluationResult | None]`: What this process sampled, and the result, which only the main
        process has.

    Raises:
        `ValueError`: The student could not be sampled on a question.
    """
    file = Path(store_file)
    if process.machine > 0:
        file = file.with_name(f"{file.stem}.machine-{process.machine}{file.suffix}")
    questions = take_shard(evaluation.questions, process.machine + 1, process.machines)
    block = replace(evaluation, questions=questions) if questions else None
    with Store(file) as store:
        summary = SampleSummary()
        if block is not None:
            summary = block.sample(engine, store, progress=process.is_main)
        if process.machines > 1:
            if block is not None and process.local_rank == 0:
                block.wait(engine, store)
            _merge_machines(store, process)
        return summary, evaluation.judge(name, engine, store) if process.is_main else None


def _merge_machines(store: Store, process: Process) -> None:
    """Send the store of each machine to the main process, which merges them."""
    import torch.distributed as dist

    with _process_group():
        content = _content(store) if process.local_rank == 0 and not process.is_main else None
        gathered = [None] * dist.get_world_size() if process.is_main else None
        dist.gather_object(content, gathered)
    for received in filter(None, gathered or []):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "store.db"
            file.write_bytes(received)
            store.merge(file)


def _content(store: Store) -> bytes:
    """The file of a store, without what is still in its write-ahead log."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "store.db"
        db = sqlite3.connect(store.file)
        try:
            db.execute("VACUUM INTO ?", (str(copy),))
        finally:
            db.close()
        return copy.read_bytes()


@contextmanager
def _process_group():
    """A process group whose collectives wait until the slowest machine has sampled its block."""
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()
