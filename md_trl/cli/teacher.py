"""`md-trl teacher`: serve the simulated teacher behind an OpenAI-compatible API."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field


@dataclass
class TeacherArguments:
    r"""
    Arguments of `md-trl teacher`, which serves the SIMULATED teacher of the task `stories` (see
    `md_trl.simulated_teacher`). No language model is involved.

    Args:
        port (`int`, *optional*, defaults to `8000`):
            Port to listen on; 0 picks a free one.
        host (`str`, *optional*, defaults to `"127.0.0.1"`):
            Address to listen on.
    """

    port: int = field(
        default=8000,
        metadata={
            "help": "Port on which the SIMULATED teacher of the task `stories` (no language model) listens; 0 picks a "
            "free one."
        },
    )
    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen on."})


ARGUMENTS = TeacherArguments


def run(args: TeacherArguments) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    from ..simulated_teacher import MODEL, TeacherServer

    try:
        server = TeacherServer(args.host, args.port)
    except (OSError, OverflowError) as error:
        raise OSError(
            f"cannot listen on {args.host}:{args.port} ({str(error).rstrip('.')}). Choose another `--port` (0 picks a "
            "free one) or `--host`."
        ) from None
    # SIGTERM ends the server like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with server:
        print(f"{server.url} is ready: {MODEL}, a simulated teacher of stories, not a language model", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
