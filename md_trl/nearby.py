"""Files and folders with names like one that does not exist."""

from __future__ import annotations

import difflib
from pathlib import Path

from .errors import InputError


def did_you_mean_file(path: str | Path, folders: bool = False) -> str:
    r"""
    Name what the user may have meant by a file that does not exist.

    Args:
        path (`str` or `Path`):
            The file or folder that does not exist.
        folders (`bool`, *optional*, defaults to `False`):
            Whether a folder is wanted.

    Returns:
        `str`: A question that names up to three files, or folders, beside it with a similar name; or the nearest
        folder above it, if that does not exist either. It begins with a space, and is empty if there is nothing.
    """
    path = Path(path)
    try:
        beside = [found.name for found in path.parent.iterdir() if found.is_dir() == folders]
    except FileNotFoundError:
        return f" There is no folder {path.parent}."
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, beside, n=3, cutoff=0.7)
    # Else the same name with another ending, such as `prices.yaml` for `prices`
    close = close or [name for name in sorted(beside) if Path(name).stem == path.stem]
    named = " or ".join(str(path.parent / name) for name in close[:3])
    return f" Did you mean {named}?" if close else ""


def unreadable(option: str, error: OSError) -> InputError:
    r"""
    Say which option names a file that cannot be opened.

    Args:
        option (`str`):
            Name of the option.
        error (`OSError`):
            The system's error, with the name of the file.

    Returns:
        [`~md_trl.errors.InputError`]: The error to raise.
    """
    if isinstance(error, FileNotFoundError):
        hint = did_you_mean_file(error.filename) or " Check the path."
        return InputError(f"`--{option}`: there is no file {error.filename}.{hint}")
    return InputError(f"`--{option}`: cannot open {error.filename}: {error.strerror}.")
