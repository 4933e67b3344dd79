"""Errors whose cause is the user's input. The command line shows their message and no traceback."""


class InputError(ValueError):
    """An argument, a file or a row cannot be used. The message names the value, where it is, and the fix."""


class UsageError(InputError):
    """An option of the command line is missing, or excludes another. The command line ends in status 2."""
