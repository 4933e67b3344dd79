"""Where keys come from. They go to the server and nowhere else: no store, log, message or traceback shows one."""

from __future__ import annotations

import getpass
import ipaddress
import os
import sys
from importlib.util import find_spec
from urllib.parse import urlsplit

from ..errors import InputError


class Key(str):
    """A key that does not show where a value is printed, as in a traceback with local variables."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


def find_key(base_url: str) -> Key:
    r"""
    The key for a server: from the environment variable `OPENAI_API_KEY`, else from the system's keyring (`pip install
    md_trl[keyring]`), which asks for it once if a person sits at the terminal. A server on this machine needs none.

    Args:
        base_url (`str`):
            Root of the server's API.

    Returns:
        `str`: the key.

    Raises:
        `ValueError`: a URL that is none or has a key in it, or no key to be found.
    """
    url = urlsplit(base_url)
    if url.username or url.password:
        raise InputError("`base_url` holds a name or password. Put the key in `OPENAI_API_KEY` instead.")
    if url.scheme not in ("http", "https") or not url.hostname:
        raise InputError(f"`base_url` is {base_url!r}. Write it as `http://127.0.0.1:8000/v1`.")
    if key := os.environ.get("OPENAI_API_KEY"):
        return Key(key)
    if _is_loopback(url.hostname):
        return Key("none")
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
            pass  # A machine without a keyring of its own
    raise InputError(
        f"No key for {base_url}. Set the environment variable `OPENAI_API_KEY` (to any text if the server wants "
        f"none), or keep the key in the keyring: `pip install keyring`, `keyring set md_trl {url.hostname}`."
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
