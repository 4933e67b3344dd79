"""Turn the value that a program computed or printed into an answer."""

from __future__ import annotations

from typing import Any

from .canonical_form import canonical
from .extraction import answer_of_clause


def answer_of_value(value: Any) -> str:
    r"""
    Return the answer that a program's value gives, in canonical form.

    A value is usually a number. If it is a text, such as a printed line, a label in front of the answer is dropped,
    and a clause that states a number gives that number. Any other text is itself the answer.

    Args:
        value (`Any`):
            What the program returned or printed.

    Returns:
        `str`: The answer. The empty string if there is none.

    Examples:

    ```python
    >>> from md_trl.answers import answer_of_value

    >>> [answer_of_value(value) for value in (5.0, "Total: $5.00", "The total is 5", "Rug 5")]
    ['5', '5', '5', 'rug 5']
    ```
    """
    if not isinstance(value, str):
        return canonical(value)
    label, _, rest = value.strip().rpartition(": ")
    value = rest if any(map(str.isalpha, label)) else value
    return answer_of_clause(value, value)
