"""The socket that a server listens on. It needs no model."""

from __future__ import annotations

import socket


def bind(host: str, port: int) -> socket.socket:
    r"""
    Reserve a port, before a model is loaded.

    Args:
        host (`str`):
            Address to listen on.
        port (`int`):
            Port to listen on; 0 picks a free one.

    Returns:
        [`~socket.socket`]: The socket.

    Raises:
        `OSError`: The address or the port cannot be used.
    """
    try:
        if not 0 <= port < 1 << 16:  # looking up the address would cut off the upper bits
            raise OverflowError("port must be 0-65535")
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # a port in use shows here
    except (OSError, OverflowError) as error:
        message = (
            f"cannot listen on {host}:{port} ({error}). Choose another `--port` (0 picks a free one) or `--host`."
        )
        raise OSError(message) from None
    return listener
