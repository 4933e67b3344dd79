"""Where API keys come from. A key is sent to its server only: no store, log, message or traceback shows one."""

from __future__ import annotations

import getpass
import ipaddress
import os
import sys
from importlib.util import find_spec
from urllib.parse import urlsplit

from ..errors import InputError


class Key(str):
    """A key whose `repr` hides it, so that tracebacks with local variables do not show it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


NO_KEY = Key("none")
"""What a server on this machine is sent if no key is set. OpenAI's client insists on sending one."""


def find_key(base_url: str) -> Key:
    r"""
    Find the API key of a server.

    The environment variable `OPENAI_API_KEY` comes first, then the system's keyring (`pip install "md_trl[keyring]"`).
    If the keyring has no key and there is a terminal, it is asked for once and kept. A server on this machine needs no
    key.

    Args:
        base_url (`str`):
            Root of the server's API.

    Returns:
        `Key`: The key, or [`NO_KEY`] for a server on this machine if none is set.

    Raises:
        `ValueError`: Invalid URL, a URL that contains a key, or no key for a server on another machine.
    """
    url = urlsplit(base_url)
    if url.username or url.password:
        raise InputError("`base_url` contains a name or password. Put the key in `OPENAI_API_KEY` instead.")
    if url.scheme not in ("http", "https") or not url.hostname:
        raise InputError(f"`base_url` is {base_url!r}. Write it like `http://127.0.0.1:8000/v1`.")
    if key := os.environ.get("OPENAI_API_KEY"):
        return Key(key)
    if is_loopback(url.hostname):
        return NO_KEY
    if find_spec("keyring") is not None:
        import keyring

        try:
            if key := keyring.get_password("md_trl", url.hostname):
                return Key(key)
            if sys.stdin is not None and sys.stdin.isatty():
                if key := getpass.getpass(f"Key for {url.hostname}, to be kept in the keyring: ").strip():
                    keyring.set_password("md_trl", url.hostname, key)
                    return Key(key)
        except keyring.errors.KeyringError:
            pass  # A machine without a keyring
    raise InputError(
        f"No key for {base_url}. Set the environment variable `OPENAI_API_KEY` (to any text if the server needs "
        f"none), or keep the key in the keyring: `pip install keyring`, `keyring set md_trl {url.hostname}`."
    )


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is that of this machine and cannot be reached from another one."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def names_loopback(host_header: str) -> bool:
    """Return whether the header `Host` of a request names this machine, which no website can do in a browser."""
    try:
        return is_loopback(urlsplit(f"//{host_header}").hostname or "")
    except ValueError:
        return False
