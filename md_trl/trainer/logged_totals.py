"""Sums and counts of the metrics to log, which checkpoints keep between two logs."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


COUNTERS = ("num_questions", "num_target_tokens", "num_nodes")
"""Counts since the start of training: questions with repeats, tokens with a loss, nodes run without padding."""


class Totals:
    r"""
    Sums of figures and of the items they are averaged over.

    Args:
        sums (`dict[str, float]`, *optional*):
            Sum of each figure.
        counts (`dict[str, float]`, *optional*):
            Number of items in each sum.
    """

    def __init__(self, sums: dict[str, float] | None = None, counts: dict[str, float] | None = None):
        self.sums = defaultdict(float, sums or {})
        self.counts = defaultdict(float, counts or {})

    def add(self, name: str, total: torch.Tensor | float, count: torch.Tensor | float = 0.0) -> None:
        r"""
        Add to the sum of a figure.

        Args:
            name (`str`):
                Name of the figure.
            total (`torch.Tensor` or `float`):
                Sum over the new items.
            count (`torch.Tensor` or `float`, *optional*, defaults to `0.0`):
                Number of new items. A figure without any has no mean.
        """
        self.sums[name] += total
        self.counts[name] += count

    def gathered(self, accelerator: Accelerator, copies: int) -> Totals:
        r"""
        Return the totals over all processes.

        Args:
            accelerator ([`~accelerate.Accelerator`]):
                Accelerator of the trainer.
            copies (`int`):
                Number of processes that hold the same batch, the size of tensor parallelism.

        Returns:
            [`Totals`]: Totals as plain numbers.
        """
        if not self.sums:
            return Totals()
        values = [*self.sums.values(), *self.counts.values()]
        # float32 counts exactly up to 16.8 million only, but not every accelerator has float64
        dtype = torch.float64 if accelerator.device.type in ("cpu", "cuda") else torch.float32
        values = torch.stack([torch.as_tensor(v, dtype=dtype, device=accelerator.device) for v in values])
        values = (accelerator.reduce(values, reduction="sum") / copies).tolist()
        names = list(self.sums)
        return Totals(dict(zip(names, values, strict=False)), dict(zip(names, values[len(names) :], strict=True)))

    def means(self) -> dict[str, float]:
        """Return the mean of each figure that has items."""
        return {name: self.sums[name] / count for name, count in self.counts.items() if count}


class RunningTotals(TrainerCallback, ExportableState):
    r"""
    Callback that keeps counts across checkpoints, including those that fall between two logs.

    The counts of this process are gathered before a log and before a checkpoint, which keeps them in its
    `trainer_state.json`.
    """

    def __init__(self):
        self.local = Totals()  # of this process, not gathered yet
        self.since_log = Totals()
        self.at_last_log = dict.fromkeys(COUNTERS, 0)

    def gather(self, accelerator: Accelerator, copies: int) -> None:
        r"""
        Move the counts of all processes into `since_log`. All processes must call it.

        Args:
            accelerator ([`~accelerate.Accelerator`]):
                Accelerator of the trainer.
            copies (`int`):
                Number of processes that hold the same batch, the size of tensor parallelism.
        """
        gathered = self.local.gathered(accelerator, copies)
        self.local = Totals()
        for name, total in gathered.sums.items():
            self.since_log.add(name, total, gathered.counts[name])

    def seen(self) -> dict[str, int]:
        """Return the gathered counts since the start of training, for each of `COUNTERS`."""
        return {name: self.at_last_log[name] + round(self.since_log.sums.get(name, 0)) for name in COUNTERS}

    def pop(self) -> dict[str, float]:
        """Return the metrics to log and reset them. Empty if nothing was counted since the last log."""
        if not self.since_log.sums:
            return {}
        figures = self.since_log.means() | self.seen()
        self.at_last_log, self.since_log = self.seen(), Totals()
        return figures

    def state(self) -> dict[str, Any]:
        totals = {"sums": dict(self.since_log.sums), "counts": dict(self.since_log.counts)}
        return {"args": {}, "attributes": {"at_last_log": self.at_last_log, "since_log": totals}}

    def on_train_begin(self, args, state, control, **kwargs):
        empty = RunningTotals().state()
        saved = state.stateful_callbacks.setdefault(type(self).__name__, empty)
        # A new training starts from zero, and so does every attempt of `auto_find_batch_size`.
        attributes = (saved if state.global_step > 0 else empty)["attributes"]
        self.local = Totals()
        self.since_log = Totals(**attributes["since_log"])
        self.at_last_log = attributes["at_last_log"]
