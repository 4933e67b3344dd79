"""Engines: what samples a model.

An engine knows a model and nothing of tasks, stores or answers. [`~md_trl.sampling.engines.openai.OpenAIEngine`] asks
a server; [`~md_trl.sampling.engines.transformers.TransformersEngine`] and
[`~md_trl.sampling.engines.vllm.VLLMEngine`] run a local model. To add one, write a class that satisfies [`Engine`]
and select it in `md_trl/cli/sample.py`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ...errors import InputError, check_at_least_one
from ...prompts import Prompt, max_prompt_tokens
from ...records import Choice, SamplingParams
from ...student_folder import weights_digest


# Defaults that the command line shows too. The engines' own files import large libraries.
CONCURRENCY, MAX_RETRIES, TIMEOUT, POLL_SECONDS = 16, 6, 300.0, 60.0
BATCH_SIZE = 128
DTYPES = ("auto", "float32", "bfloat16", "float16")

# Rounding may lift the log-probability of a certain token above 0.
LARGEST_LOGPROB = 1e-3


@dataclass(frozen=True, slots=True)
class SampleRequest:
    r"""
    A request for `n` samples of one prompt.

    Args:
        question_id (`str`):
            Id of the question.
        path (`str`):
            `cot`, `pot` or `label`. Together with the question id, the seed and the sample index it determines the
            random numbers of a sample.
        prompt (`str` or `list[dict[str, str]]`):
            Text to continue, or chat messages. Engines render messages themselves.
        params ([`~md_trl.records.SamplingParams`], *optional*, defaults to `SamplingParams()`):
            How to sample. The engine cuts each sample before its first stop string.
        n (`int`, *optional*, defaults to `1`):
            Number of samples.
        first_index (`int`, *optional*, defaults to `0`):
            Sample index of the first one.
        key (`int`, *optional*, defaults to `0`):
            Number of the request in the store. Engines pass it through.
    """

    question_id: str
    path: str
    prompt: Prompt
    params: SamplingParams = SamplingParams()
    n: int = 1
    first_index: int = 0
    key: int = 0

    def seed(self, sample: int = 0) -> int:
        """Seed of one of the samples, by default of the first one."""
        return derive_seed(self.params.seed, self.question_id, self.path, self.first_index + sample)

    @property
    def max_prompt_tokens(self) -> int:
        """Upper bound on the tokens of the prompt."""
        return max_prompt_tokens(self.prompt)

    @property
    def max_completion_tokens(self) -> int:
        """Upper bound on the tokens of one sample."""
        return self.params.max_tokens


@dataclass(frozen=True, slots=True)
class SampleResult:
    r"""
    The outcome of a [`SampleRequest`].

    Args:
        request ([`SampleRequest`]):
            The request.
        choices (`list[Choice]`, *optional*, defaults to `[]`):
            Samples in order: the first one has the index `request.first_index`. There may be fewer than requested.
        usage (`dict[str, Any]`, *optional*, defaults to `{}`):
            Token counts reported by the engine: `prompt_tokens`, `cached_tokens` (included in `prompt_tokens`) and
            `completion_tokens`.
        error (`str`, *optional*):
            Why there are no choices.
        retry (`bool`, *optional*, defaults to `True`):
            Whether asking again may help. `False` if this very request was refused.
        lost (`bool`, *optional*, defaults to `False`):
            Whether the request may have been billed although no answer could be read.
        faults (`Sequence[str]`, *optional*, defaults to `()`):
            Errors of earlier attempts at the same request, none of which was billed.
        served (`str`, *optional*):
            Name of the model according to the answer.
    """

    request: SampleRequest
    choices: list[Choice] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    retry: bool = True
    lost: bool = False
    faults: Sequence[str] = ()
    served: str | None = None


class Engine(Protocol):
    r"""
    Protocol of an engine.

    Attributes:
        model (`str`):
            Name under which the store keeps the samples of the model.
    """

    model: str

    def student_prompt_format(self, prompt_format: str = "auto") -> str:
        """Decide whether a student is asked in plain text or in a chat, see `resolve_prompt_format`."""
        ...

    def generate(self, requests: Iterable[SampleRequest]) -> Iterator[SampleResult]:
        """Pull requests when there is capacity for them and yield each result once it is complete, in any order."""
        ...


def check_params(params: SamplingParams, n: int) -> None:
    r"""
    Check that `n` samples can be drawn.

    Args:
        params ([`~md_trl.records.SamplingParams`]):
            How to sample.
        n (`int`):
            Number of samples.

    Raises:
        `ValueError`: Negative temperature, `n` or `max_tokens` below 1, or several samples at temperature 0, which are
            all the same.
    """
    check_at_least_one("n", n)
    check_at_least_one("max_tokens", params.max_tokens)
    if params.temperature < 0:
        raise InputError(f"`temperature` is {params.temperature}. Use 0 (greedy) or more.")
    if params.temperature == 0 and n > 1:
        raise InputError(f"`temperature=0` is greedy and gives one text, not n={n}. Use `n=1` or another temperature.")


def derive_seed(seed: int, question_id: str, path: str, index: int) -> int:
    """Derive the seed of one sample (31 bits). It does not depend on what else is sampled."""
    text = f"{seed}\0{question_id}\0{path}\0{index}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def cut_at_stop(choice: Choice, stop: Sequence[str]) -> Choice:
    """
    Cut a text before its first stop string and set the finish reason to `stop`. Many servers do neither.

    A text that is cut loses its log-probability, which was that of more tokens.
    """
    ends = [end for end in (choice.text.find(string) for string in stop) if end >= 0]
    return Choice(choice.text[: min(ends)], "stop") if ends else choice


def mean_logprob(logprobs: Sequence[float | None]) -> float | None:
    r"""
    Average the log-probabilities of the tokens of a sample.

    Args:
        logprobs (`Sequence[float | None]`):
            Natural log-probability of each token.

    Returns:
        `float`, *optional*: Their mean; `None` if there are no tokens, or if one of the numbers is missing or is no
        log-probability. OpenAI writes -9999 for a token that is not among the 20 most likely ones.
    """
    if not logprobs or any(value is None or not -9999 < value <= LARGEST_LOGPROB for value in logprobs):
        return None
    return min(math.fsum(logprobs) / len(logprobs), 0.0)


def model_name(model: str) -> str:
    """Name of a local model in the store: a Hub id as it is, a folder with a digest of the weights it holds now."""
    return f"{model}@{weights_digest(model)}" if Path(model).is_dir() else model
