"""`md-trl teacher`: the simulated teacher behind an OpenAI-compatible HTTP server."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field


@dataclass
class TeacherArguments:
    r"""
    Serves the SIMULATED teacher of the task `stories` (`md_trl.simulated_teacher`): no language model is involved.

    Args:
        port (`int`, *optional*, defaults to `8000`):
            Port to listen on; 0 takes a free one.
        host (`str`, *optional*, defaults to `"127.0.0.1"`):
            Address to listen on.
    """

    port: int = field(
        default=8000,
        metadata={"help": "Port on which the SIMULATED teacher of the task `stories` listens; 0 takes a free one."},
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
            f"cannot listen on {args.host}:{args.port} ({error}); another `--port` may be free, 0 finds one"
        ) from None
    # SIGTERM ends the server as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with server:
        print(f"{server.url} is ready: {MODEL}, a simulated teacher of stories, not a language model", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
