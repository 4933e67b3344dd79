"""`md-trl serve`: answer questions with a student behind an OpenAI-compatible API."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, UsageError
from ..records import STUDENT_MAX_TOKENS, SamplingParams
from ..stopping import BUDGET, RULES
from .engine_arguments import ENGINES, EngineArguments, make_engine
from .engine_arguments import SHOWN as SHOWN  # read by `md_trl.cli`


if TYPE_CHECKING:
    from ..reasoner import MixedReasoner
    from ..sampling.api_keys import Key


@dataclass(kw_only=True)
class ServeArguments(EngineArguments):
    r"""
    Arguments of `md-trl serve`, beside those of [`EngineArguments`].

    Args:
        model (`str`):
            The student: a folder, a Hub id, an adapter, or the URL of an OpenAI-compatible server; with `--base_url`
            its name on that server.
        model_name (`str`, *optional*):
            Name of the student: on its own server, and in requests to this one. Defaults to the name of the folder, or
            to `model` as it is.
        host (`str`, *optional*, defaults to `"127.0.0.1"`):
            Address to listen on. Any that other machines can reach needs `--api_key_env`.
        port (`int`, *optional*, defaults to `8000`):
            Port to listen on; 0 picks a free one.
        n (`int`, *optional*, defaults to `20`):
            Maximum number of thoughts per question. A request may change it, as the next four.
        temperature (`float`, *optional*, defaults to `0.7`):
            Sampling temperature.
        max_tokens (`int`, *optional*, defaults to `256`):
            Maximum length of a thought in tokens.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the samples.
        stop (`str`, *optional*, defaults to `"agreement"`):
            When a question has enough thoughts, see [`~md_trl.stopping`].
        weights (`str`, *optional*, defaults to `"likelihood"`):
            Weight of a vote: `none`, `likelihood`, or a file of `md-trl calibrate`, also for a calibrated confidence.
        prompt_format (`str`, *optional*, defaults to `"auto"`):
            Format of the prompts, as in [`~md_trl.reasoner.MixedReasoner`].
        store (`str`, *optional*):
            Store in which all thoughts are kept, so that no question is sampled twice. Without one, nothing is kept.
        api_key_env (`str`, *optional*):
            Environment variable with the key that requests must bring.
    """

    engine: str = field(
        default="transformers",
        metadata={
            "help": "`transformers` or `vllm` (a local model), or `openai` (any OpenAI-compatible server; implied by "
            "`--base_url`).",
            "choices": ENGINES,
        },
    )
    model: str = field(
        metadata={
            "help": "The student: a folder, a Hub id, an adapter, or the URL of an OpenAI-compatible server; with "
            "`--base_url` its name on that server."
        }
    )
    model_name: str | None = field(
        default=None,
        metadata={
            "help": "Name of the student: on its own server, and in requests to this one. Defaults to the name of the "
            "folder, or to the model as it is."
        },
    )
    host: str = field(
        default="127.0.0.1",
        metadata={"help": "Address to listen on. Any that other machines can reach needs `--api_key_env`."},
    )
    port: int = field(default=8000, metadata={"help": "Port to listen on; 0 picks a free one."})
    n: int = field(default=BUDGET, metadata={"help": "Maximum number of thoughts per question."})
    temperature: float = field(default=SamplingParams.temperature, metadata={"help": "Sampling temperature."})
    max_tokens: int = field(default=STUDENT_MAX_TOKENS, metadata={"help": "Maximum length of a thought in tokens."})
    seed: int = field(default=SamplingParams.seed, metadata={"help": "Seed of the samples."})
    stop: str = field(
        default="agreement", metadata={"help": "When a question has enough thoughts.", "choices": list(RULES)}
    )
    weights: str = field(
        default="likelihood",
        metadata={"help": "Weight of a vote: `none`, `likelihood`, or a file of `md-trl calibrate`."},
    )
    prompt_format: str = field(
        default="auto",
        metadata={
            "help": "Format of the prompts: plain, chat, or auto for the one in the student's md_trl.json, else chat "
            "if the tokenizer has a chat template. A server does not tell it.",
            "choices": ["auto", "plain", "chat"],
        },
    )
    store: str | None = field(
        default=None,
        metadata={"help": "Store in which all thoughts are kept, so that no question is sampled twice."},
    )
    api_key_env: str | None = field(
        default=None, metadata={"help": "Environment variable with the key that requests must bring."}
    )


ARGUMENTS = ServeArguments


def run(args: ServeArguments) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    try:
        from ..server import app
        from ..server.listener import bind
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise InputError('`md-trl serve` needs Starlette and uvicorn: pip install "md_trl[serve]"') from None

    key = _key(args)
    with bind(args.host, args.port) as listener:
        reasoner, name = _reasoner(args)
        host, port = listener.getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        # SIGTERM ends the server like Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            app.run(app.make_app(reasoner, name, key), listener, f"http://{host}:{port}/v1 is ready: {name}")
        except KeyboardInterrupt:
            pass


def _key(args: ServeArguments) -> Key | None:
    from ..sampling.api_keys import Key, is_loopback

    if args.api_key_env is not None:
        if key := os.environ.get(args.api_key_env, "").strip():
            return Key(key)
        raise InputError(f"The environment variable {args.api_key_env!r} of `--api_key_env` is not set or empty.")
    if not is_loopback(args.host):
        raise InputError(
            f"Other machines can reach `--host {args.host}`, so requests need a key. Put one into an environment "
            "variable, name that with `--api_key_env`, or listen on 127.0.0.1."
        )
    return None


def _reasoner(args: ServeArguments) -> tuple[MixedReasoner, str]:
    """The reasoner and the name of its model."""
    from ..reasoner import MixedReasoner, check_paths, is_url

    model, name = args.model, args.model_name
    if is_url(model):
        if name is None:
            raise UsageError(f"The student at {model} needs its name on the server: pass `--model_name`.")
        args, model = replace(args, base_url=model, engine="openai"), name
    elif args.base_url is not None or args.engine == "openai":
        args, model = replace(args, engine="openai"), name or model
    else:
        check_paths(model)
    reasoner = MixedReasoner(
        make_engine(args, model),
        n=args.n,
        stop=args.stop,
        weights=args.weights,
        temperature=args.temperature,
        max_tokens=args.max_tokens,
        seed=args.seed,
        prompt_format=args.prompt_format,
        store=args.store,
    )
    return reasoner, name or (Path(model).resolve().name if Path(model).is_dir() else model)
