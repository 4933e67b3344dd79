"""The YAML file of `--config`."""

from __future__ import annotations

from typing import Any

import yaml

from ..errors import InputError
from ..nearby import unreadable


def read_config(file: str) -> dict[str, Any]:
    r"""
    Read the arguments in a YAML file.

    Args:
        file (`str`):
            The file.

    Returns:
        `dict[str, Any]`: The values by name.

    Raises:
        `InputError`: The file does not exist, is empty, not YAML, or not a mapping.
    """
    try:
        with open(file, encoding="utf-8") as opened:
            config = yaml.safe_load(opened)
    except OSError as error:
        raise unreadable("config", error) from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    if config is None:
        raise InputError(f"{file} is empty. Write one `name: value` per line, or leave `--config` out.")
    if not isinstance(config, dict):
        raise InputError(f"{file} holds {config!r:.40} instead of arguments. Write one `name: value` per line.")
    return config
