"""The live sampler: asks an engine for the samples that a store lacks, and for nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..prompts import Prompt
from ..records import Question, SamplingParams
from ..store import Store
from .engines import Engine
from .ledger import Price
from .run import SampleSummary, SamplingRun


def sample(
    questions: Sequence[Question],
    paths: Sequence[str],
    n: int,
    engine: Engine,
    store: Store,
    prompt: Callable[[Question, str], Prompt],
    *,
    params: SamplingParams = SamplingParams(),
    prices: Mapping[str, Price] | None = None,
    max_cost: float | None = None,
    progress: bool = True,
) -> SampleSummary:
    r"""
    Sample until every question has `n` samples on every path (Sec. 3.1 for a teacher, Sec. 3.2 for a student).

    Only missing samples are asked for, and every result is stored as it arrives: interrupt the run at any moment and
    start it again. Samples with other parameters or another prompt are different samples.

    Args:
        questions (`Sequence[Question]`):
            The questions. They are added to the store.
        paths (`Sequence[str]`):
            Paths to sample: `cot`, `pot`, `cot_pot`, `label`.
        n (`int`):
            Samples per question and path.
        engine ([`~md_trl.sampling.engines.Engine`]):
            What samples.
        store ([`~md_trl.store.Store`]):
            Where the thoughts are kept.
        prompt (`Callable[[Question, str], str | list[dict[str, str]]]`):
            Builds the prompt for a question and a path.
        params ([`~md_trl.records.SamplingParams`], *optional*, defaults to `SamplingParams()`):
            How to sample.
        prices (`Mapping[str, Price]`, *optional*):
            Prices by model, for the progress bar, the summary and `max_cost`.
        max_cost (`float`, *optional*):
            Maximum cost of the whole store, including earlier runs and other processes. No request is sent that could
            exceed it. Needs `prices`.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        [`SampleSummary`]: What the run did. If samples are missing at its end, a warning says why and how to continue.

    Raises:
        `ValueError`: Arguments that cannot be sampled with, or a server that refuses the requests.
        `ConnectionError`: No server answers.
    """
    with SamplingRun(
        questions, paths, n, engine.model, store, prompt, params, prices, max_cost, progress=progress
    ) as run:
        while not run.should_stop and (missing := run.next_round()):
            requests = run.claim_each(missing)
            try:
                for result in engine.generate(requests):
                    run.record(result)
                    if run.should_stop:
                        break
            finally:
                requests.close()
    return run.finish()
