"""What every server of this library needs to read requests in OpenAI's format and to refuse them."""

from __future__ import annotations

import json
from typing import Any


class RequestError(Exception):
    r"""
    An invalid request. The server responds with an error in OpenAI's format.

    Args:
        status (`int`):
            HTTP status.
        message (`str`):
            What is wrong and how to fix it.
        param (`str`, *optional*):
            Name of the offending field.
        code (`str`, *optional*):
            OpenAI's code of the error.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """Body of the response."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def read_json(body: bytes) -> dict[str, Any]:
    r"""
    Read the body of a request.

    Args:
        body (`bytes`):
            Body as it was sent.

    Returns:
        `dict[str, Any]`: The fields of the request.

    Raises:
        `RequestError`: The body is not a JSON object.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"The body is not JSON: {error}.") from None
    if not isinstance(request, dict):
        raise RequestError(400, "The body must be a JSON object.")
    return request


def read_number(request: dict[str, Any], name: str, default: Any, kind: type, low: float, high: float) -> Any:
    r"""
    Read a number from a request.

    Args:
        request (`dict[str, Any]`):
            Body of the request.
        name (`str`):
            Name of the field.
        default (`Any`):
            What to return if the field is missing or null.
        kind (`type`):
            `int` or `float`.
        low (`float`):
            Smallest allowed value.
        high (`float`):
            Largest allowed value.

    Returns:
        `Any`: The number, of type `kind`, or the default.

    Raises:
        `RequestError`: The field is no such number.
    """
    value = request.get(name)
    if value is None:
        return default
    allowed = int if kind is int else (int, float)
    # `True` is an integer in Python, but not in JSON. NaN fails every comparison.
    if isinstance(value, bool) or not isinstance(value, allowed) or not low <= value <= high:
        what = "an integer" if kind is int else "a number"
        raise RequestError(400, f"`{name}` must be {what} from {low} to {high}, not {shown(value)}.", name)
    return kind(value)


def shown(value: Any) -> str:
    """The beginning of a value for an error message. A value may be as long as a request."""
    try:
        text = repr(value)
    except ValueError:  # an integer with too many digits to be written
        return "such a large number"
    return text if len(text) <= 80 else f"{text[:77]}..."
