"""Samples what is missing in a store, and nothing else."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tqdm.auto import tqdm

from ..records import PATHS, Question
from .engines import Engine, Prompt, SampleRequest
from .store import Store


logger = logging.getLogger(__name__)

# How often what a server has left out is asked for again.
ROUNDS = 5
# Failed requests in a row (each has been repeated by the engine) after which the server is left alone.
GIVE_UP_AFTER = 50


@dataclass
class SampleSummary:
    r"""
    What a call of [`sample`] did.

    Args:
        requests (`int`, *optional*, defaults to `0`):
            Requests made, without the client's own repetitions.
        thoughts (`int`, *optional*, defaults to `0`):
            New thoughts.
        unusable (`dict[str, int]`, *optional*, defaults to `{}`):
            Those of them that did not end by themselves, by finish reason. They are stored and not asked for again.
        missing (`int`, *optional*, defaults to `0`):
            Samples that are still missing.
        errors (`dict[str, int]`, *optional*, defaults to `{}`):
            Requests that brought nothing, by message.
        prompt_tokens (`int`, *optional*, defaults to `0`), completion_tokens (`int`, *optional*, defaults to `0`):
            Tokens as counted by the engine.
        seconds (`float`, *optional*, defaults to `0.0`):
            Time taken.
        settings (`list[int]`, *optional*, defaults to `[]`):
            The settings of all samples that were wanted, new or stored: `store.thoughts(settings=summary.settings)`.
    """

    requests: int = 0
    thoughts: int = 0
    unusable: dict[str, int] = field(default_factory=dict)
    missing: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    settings: list[int] = field(default_factory=list)


def sample(
    questions: Sequence[Question],
    paths: Sequence[str],
    n: int,
    engine: Engine,
    store: Store,
    prompt: Callable[[Question, str], Prompt],
    *,
    temperature: float = 0.7,
    top_p: float = 1.0,
    max_tokens: int = 512,
    stop: Sequence[str] = (),
    seed: int = 42,
    progress: bool = True,
) -> SampleSummary:
    r"""
    Bring every question to `n` samples on every path (Sec. 3.1 for a teacher, Sec. 3.2 for a student).

    Only what is missing is asked for, and every result is stored as it arrives: stop it at any moment and run it
    again. Samples with other parameters, another prompt or another seed are other samples.

    Args:
        questions (`Sequence[Question]`):
            The questions. They are added to the store.
        paths (`Sequence[str]`):
            `cot`, `pot`, `label`.
        n (`int`):
            Samples of each question and path.
        engine ([`~md_trl.sampling.engines.Engine`]):
            What samples.
        store ([`Store`]):
            Where the thoughts go.
        prompt (`Callable[[Question, str], str | list[dict]]`):
            Makes the prompt of a question and a path.
        temperature (`float`, *optional*, defaults to `0.7`):
            0 is greedy, and needs `n=1`.
        top_p (`float`, *optional*, defaults to `1.0`):
            Mass of the most likely tokens to sample from.
        max_tokens (`int`, *optional*, defaults to `512`):
            Longest sample, in tokens.
        stop (`Sequence[str]`, *optional*, defaults to `()`):
            Strings that end a sample.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the random numbers.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        [`SampleSummary`]: what was done.

    Raises:
        `ValueError`: arguments that cannot be sampled with, or a server that refuses to.
        `ConnectionError`: no server.
    """
    for path in paths:
        if path not in (*PATHS, "label"):
            raise ValueError(f"Unknown path {path!r}. Choose from {', '.join(PATHS)}, label.")
    if n < 1:
        raise ValueError(f"`n` is {n}. Use 1 or more.")
    if temperature < 0:
        raise ValueError(f"`temperature` is {temperature}. Use 0 (greedy) or more.")
    if temperature == 0 and n > 1:
        raise ValueError(f"`temperature=0` is greedy and gives one text, not n={n}. Use `n=1` or another temperature.")

    start = time.perf_counter()
    summary = SampleSummary()
    params = {
        "temperature": temperature,
        "top_p": top_p,
        "max_tokens": max_tokens,
        "stop": list(stop),
        "seed": seed,
    }
    settings: dict[str, int] = {}
    refused: set[tuple[str, str]] = set()
    # Some servers ignore `n` and send one choice. Once one has shown that, it is asked for single samples.
    at_most = n

    def setting(question: Question, path: str, text: Prompt) -> int:
        hash_ = _prompt_hash(text, question)
        if hash_ not in settings:
            settings[hash_] = store.setting(engine.model, hash_, params)
        return settings[hash_]

    def missing() -> int:
        return sum(
            len(store.missing(question.id, path, setting(question, path, prompt(question, path)), n))
            for question in questions
            for path in paths
        )

    def requests() -> Iterator[SampleRequest]:
        # Lazy: samples are claimed and prompts made at the moment they are asked for.
        for question in questions:
            for path in paths:
                if (question.id, path) in refused:
                    continue
                text = prompt(question, path)
                for claim in store.claim(question.id, path, setting(question, path, text), n, at_most):
                    summary.requests += 1
                    yield SampleRequest(
                        question.id,
                        path,
                        text,
                        n=claim.n,
                        first_index=claim.first_index,
                        seed=seed,
                        temperature=temperature,
                        top_p=top_p,
                        max_tokens=max_tokens,
                        stop=tuple(stop),
                        key=claim.key,
                    )

    store.add_questions(questions)
    total = len(questions) * len(paths) * n
    summary.missing = missing()
    bar = tqdm(total=total, initial=total - summary.missing, unit="thought", desc=engine.model, disable=not progress)
    several_seen = False
    in_a_row = 0
    try:
        for _ in range(ROUNDS):
            if not summary.missing or in_a_row == GIVE_UP_AFTER:
                break
            before = summary.thoughts
            for result in engine.generate(requests()):
                if result.error is not None:
                    store.fail(result.request.key, result.error)
                    summary.errors[result.error] = summary.errors.get(result.error, 0) + 1
                    if not result.retry:
                        refused.add((result.request.question_id, result.request.path))
                    in_a_row += 1
                    if in_a_row == GIVE_UP_AFTER:
                        break
                    continue
                in_a_row = 0
                stored = store.save(result.request.key, result.choices, result.usage)
                several_seen |= len(result.choices) > 1
                if result.request.n > 1 and len(result.choices) == 1 and not several_seen:
                    at_most = 1
                summary.thoughts += stored
                for choice in result.choices[: result.request.n]:
                    if choice.finish_reason != "stop":
                        summary.unusable[choice.finish_reason] = summary.unusable.get(choice.finish_reason, 0) + 1
                summary.prompt_tokens += result.usage.get("prompt_tokens", 0)
                summary.completion_tokens += result.usage.get("completion_tokens", 0)
                bar.update(stored)
                tokens = summary.prompt_tokens + summary.completion_tokens
                bar.set_postfix(tokens=tokens, errors=sum(summary.errors.values()), refresh=False)
            summary.missing = missing()
            if summary.thoughts == before:
                break
    finally:
        bar.close()
        store.release()
    summary.seconds = time.perf_counter() - start
    summary.settings = list(settings.values())
    if summary.missing:
        errors = "".join(f"\n  {count} requests: {error}" for error, count in summary.errors.items())
        logger.warning(
            f"{summary.missing} of {total} samples are still missing: another process asks for them, or "
            f"{engine.model} did not give them. Run the same command again to ask for them only.{errors}",
        )
    return summary


def _prompt_hash(prompt: Prompt, question: Question) -> str:
    """Identifies the prompt without its question: the same for all questions that are asked in the same way."""
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False)
    own = question.question.strip()
    if not isinstance(prompt, str):
        own = json.dumps(own, ensure_ascii=False)[1:-1]
    return hashlib.sha256(text.replace(own, "{question}").encode()).hexdigest()[:16]
