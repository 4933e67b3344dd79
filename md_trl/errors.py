"""Errors whose cause is the user's input. The command line shows their message and no traceback."""


class InputError(ValueError):
    """An argument, a file or a row cannot be used. The message names the value, where it is, and the fix."""


class UsageError(InputError):
    """An option of the command line is missing, or excludes another. The command line ends in status 2."""


def check_at_least_one(name: str, value: int | None) -> None:
    r"""
    Check a number of things, of which there must be one.

    Args:
        name (`str`):
            Name of the argument, as the user writes it.
        value (`int`, *optional*):
            Its value. `None` is an argument that was left out.

    Raises:
        [`InputError`]: The value is below 1.
    """
    if value is not None and value < 1:
        raise InputError(f"`{name}` is {value}. Use 1 or more.")
