"""What samples: the protocol that every engine follows, and its two nouns.

An engine knows a model and nothing of tasks, stores or answers. [`~md_trl.sampling.engines.openai.OpenAIEngine`] asks
a server, [`~md_trl.sampling.engines.transformers.TransformersEngine`] and
[`~md_trl.sampling.engines.vllm.VLLMEngine`] run a local model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ...records import Choice


Prompt = str | list[dict[str, str]]
"""A text to go on with, or chat messages."""


@dataclass(frozen=True, slots=True)
class SampleRequest:
    r"""
    One prompt of which `n` samples are wanted.

    Args:
        question_id (`str`), path (`str`):
            What is sampled; with `seed` and the sample index they decide the random numbers.
        prompt (`str` or `list[dict]`):
            A text to go on with, or chat messages.
        n (`int`, *optional*, defaults to `1`):
            Number of samples.
        first_index (`int`, *optional*, defaults to `0`):
            Sample index of the first one.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the whole run.
        temperature (`float`, *optional*, defaults to `0.7`):
            0 is greedy.
        top_p (`float`, *optional*, defaults to `1.0`):
            Mass of the most likely tokens to sample from.
        max_tokens (`int`, *optional*, defaults to `512`):
            Longest sample, in tokens.
        stop (`Sequence[str]`, *optional*, defaults to `()`):
            Strings that end a sample. The engine cuts them off.
        key (`int`, *optional*, defaults to `0`):
            Number of the request in the store. Engines hand it back and do not look at it.
    """

    question_id: str
    path: str
    prompt: Prompt
    n: int = 1
    first_index: int = 0
    seed: int = 42
    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 512
    stop: Sequence[str] = ()
    key: int = 0


@dataclass(frozen=True, slots=True)
class SampleResult:
    r"""
    What came of a [`SampleRequest`].

    Args:
        request ([`SampleRequest`]):
            The request.
        choices (`list[Choice]`, *optional*, defaults to `[]`):
            The samples, in sample order: the first has the index `request.first_index`. May be fewer than asked.
        usage (`dict`, *optional*, defaults to `{}`):
            Tokens as counted by the engine: `prompt_tokens`, `cached_tokens` (part of them), `completion_tokens`.
        error (`str`, *optional*):
            Why there are no choices.
        retry (`bool`, *optional*, defaults to `True`):
            Whether asking once more could help; `False` if the server refused this very request.
        lost (`bool`, *optional*, defaults to `False`):
            Whether the request may have been billed though no answer could be read.
        faults (`Sequence[str]`, *optional*, defaults to `()`):
            What went wrong before, free of charge, until the request was repeated.
        served (`str`, *optional*):
            The model that the answer names.
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
    Anything that samples.

    Attributes:
        model (`str`):
            Name of the model, as the store keeps it.
    """

    model: str

    def generate(self, requests: Iterable[SampleRequest]) -> Iterator[SampleResult]:
        """Pull requests as they can be worked on, and yield each result as it is complete, in any order."""
        ...


def derive_seed(seed: int, question_id: str, path: str, index: int) -> int:
    """Seed of one sample (31 bits), independent of what else is sampled."""
    text = f"{seed}\0{question_id}\0{path}\0{index}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def cut_at_stop(choice: Choice, stop: Sequence[str]) -> Choice:
    """Cut the text before its first stop string, which makes the finish reason `stop`: many servers leave it in."""
    ends = [end for end in (choice.text.find(string) for string in stop) if end >= 0]
    return Choice(choice.text[: min(ends)], "stop") if ends else choice


def name_of_folder(model: str) -> str:
    """A local model as the store keeps it. A folder may hold other weights tomorrow: it is named with their digest."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("adapter_config.json")]):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return f"{model}@{digest.hexdigest()[:8]}"
