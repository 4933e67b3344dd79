"""The arguments of commands that sample a model: which engine, and its limits."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..sampling.engines import BATCH_SIZE, CONCURRENCY, DTYPES, MAX_RETRIES, TIMEOUT, Engine


ENGINES = ("openai", "transformers", "vllm")

SHOWN = ("engine", "base_url")
"""Fields of [`EngineArguments`] that `--help` shows. `--help-all` shows all of them."""


@dataclass(kw_only=True)
class EngineArguments:
    r"""
    Arguments of the engine.

    Args:
        engine (`str`, *optional*, defaults to `"openai"`):
            `openai` (any OpenAI-compatible server), `transformers` or `vllm` (a local model).
        base_url (`str`, *optional*):
            Root of the server's API. OpenAI's own by default. The key is read from `OPENAI_API_KEY` or the keyring.
        concurrency (`int`, *optional*, defaults to `16`):
            Maximum number of requests in flight (engine `openai`). A 429 lowers it for a while.
        requests_per_minute (`float`, *optional*):
            Rate limit on requests (engine `openai`).
        tokens_per_minute (`float`, *optional*):
            Rate limit on tokens (engine `openai`).
        timeout (`float`, *optional*, defaults to `300.0`):
            Seconds after which a request counts as lost (engine `openai`).
        max_retries (`int`, *optional*, defaults to `6`):
            Maximum number of retries of a request that cost nothing (engine `openai`).
        batch_size (`int`, *optional*, defaults to `128`):
            Maximum number of samples in a batch (engine `transformers`).
        dtype (`str`, *optional*):
            Data type of the weights (engine `transformers`). `bfloat16` on GPUs and `float32` on CPUs by default; CPUs
            with AMX are faster in `bfloat16`.
    """

    engine: str = field(
        default="openai",
        metadata={
            "help": "`openai` (any OpenAI-compatible server), `transformers` or `vllm` (a local model).",
            "choices": ENGINES,
        },
    )
    base_url: str | None = field(
        default=None,
        metadata={
            "help": "Root of the server's API. OpenAI's own by default. The key is read from `OPENAI_API_KEY` or the "
            "keyring."
        },
    )
    concurrency: int = field(
        default=CONCURRENCY,
        metadata={"help": "openai: maximum number of requests in flight. A 429 lowers it for a while."},
    )
    requests_per_minute: float | None = field(default=None, metadata={"help": "openai: rate limit on requests."})
    tokens_per_minute: float | None = field(default=None, metadata={"help": "openai: rate limit on tokens."})
    timeout: float = field(default=TIMEOUT, metadata={"help": "openai: seconds after which a request counts as lost."})
    max_retries: int = field(
        default=MAX_RETRIES, metadata={"help": "openai: maximum number of retries of a request that cost nothing."}
    )
    batch_size: int = field(
        default=BATCH_SIZE, metadata={"help": "transformers: maximum number of samples in a batch."}
    )
    dtype: str | None = field(
        default=None,
        metadata={
            "help": "transformers: data type of the weights. bfloat16 on GPUs and float32 on CPUs by default; CPUs "
            "with AMX are faster in bfloat16.",
            "choices": DTYPES,
        },
    )


def make_engine(args: EngineArguments, model: str) -> Engine:
    r"""
    Create the engine that the arguments select.

    Args:
        args ([`EngineArguments`]):
            Arguments of the command.
        model (`str`):
            Name of the model on the server; folder or Hub id of a local model or PEFT adapter.

    Returns:
        [`~md_trl.sampling.engines.Engine`]: The engine.
    """
    if args.engine == "openai":
        from ..sampling.engines.openai import OpenAIEngine

        return OpenAIEngine(
            model,
            args.base_url,
            concurrency=args.concurrency,
            max_retries=args.max_retries,
            timeout=args.timeout,
            requests_per_minute=args.requests_per_minute,
            tokens_per_minute=args.tokens_per_minute,
        )
    if args.engine == "vllm":
        from ..sampling.engines.vllm import VLLMEngine

        return VLLMEngine(model)
    from ..sampling.engines.transformers import TransformersEngine

    return TransformersEngine(model, batch_size=args.batch_size, dtype=args.dtype)
