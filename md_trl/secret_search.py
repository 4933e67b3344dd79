"""Search texts for secrets before they are published: keys, tokens, passwords and e-mail addresses.

Models repeat what they were trained on, and a prompt may have carried what it should not. The patterns are those of
detect-secrets (https://github.com/Yelp/detect-secrets, `detect_secrets/plugins`) and gitleaks
(https://github.com/gitleaks/gitleaks, `config/gitleaks.toml`), narrowed to forms that neither prose about numbers nor
programs that compute have.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .errors import InputError
from .flat_twin import read_batches


# A name that ends in one of these, and a value: quoted in programs, bare in an environment file or in prose.
_NAMES = ("password", "passwd", "pwd", "passphrase", "secret", "token", "api_key", "apikey", "api-key", "access_key")
_NAME = f"(?i:{'|'.join(_NAMES)})"
_VALUE = r"(?=[^\s\"'`]*\d)(?=[^\s\"'`]*[A-Za-z])[^\s\"'`,;(){}\[\]<>]{8,}"

PATTERNS: dict[str, list[tuple[tuple[str, ...], str]]] = {
    "api_key": [
        (("sk-",), r"\bsk-(?:proj-|svcacct-|admin-|ant-[a-z0-9]+-|or-v1-)?[A-Za-z0-9_-]{0,200}[A-Za-z0-9]{20}"),
        (("hf_",), r"\bhf_[A-Za-z0-9]{30,}\b"),
        (("akia", "asia", "abia", "acca"), r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b"),
        (("aiza",), r"\bAIza[A-Za-z0-9_-]{35}"),
        (("ghp_", "gho_", "ghr_", "ghs_", "ghu_"), r"\bgh[oprsu]_[A-Za-z0-9]{36}"),
        (("github_pat_",), r"\bgithub_pat_[A-Za-z0-9_]{50,}"),
        (("glpat-",), r"\bglpat-[A-Za-z0-9_-]{20,}"),
        (("xox",), r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
        (("npm_",), r"\bnpm_[A-Za-z0-9]{36}\b"),
        (("pypi-",), r"\bpypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{20,}"),
        (("_live_", "_test_"), r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,}"),
    ],
    "token": [
        (("eyj",), r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),
        (("bearer ",), r"\b[Bb]earer [A-Za-z0-9_.~+/-]{20,}"),
    ],
    "private_key": [(("private key",), r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----")],
    "password": [
        (_NAMES, rf"{_NAME}[\"']?\s*[:=]\s*[\"']{_VALUE}[\"']"),
        (_NAMES, rf"\b[A-Z0-9_]*(?:PASSWORD|PASSWD|PWD|SECRET|TOKEN|API_?KEY)={_VALUE}"),
        (_NAMES, rf"\b{_NAME}: {_VALUE}"),
        (("://",), r"\b[a-z][a-z0-9+.-]*://[^\s/:@]+:[^\s/:@]{3,}@[^\s/]+"),
    ],
    # Not the domains that RFC 2606 reserves for examples, and not `A @ B.sum()`
    "email": [
        (
            ("@",),
            r"\b[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?!(?:[a-z0-9-]{1,63}\.){0,5}example\.)(?:[A-Za-z0-9-]{1,63}\.){1,5}"
            r"(?!example\b|invalid\b|test\b|localhost\b)[A-Za-z]{2,18}\b(?!\s*\(|[.\w]*\w)",
        )
    ],
}
"""Patterns by kind. A text is only searched if one of the strings before the pattern is in it, in lower case."""


class _Search(NamedTuple):
    """A pattern to search for in texts that hold one of its hints."""

    kind: str
    hints: tuple[str, ...]
    pattern: re.Pattern[str]


_SEARCHES = [
    _Search(kind, hints, re.compile(pattern)) for kind, patterns in PATTERNS.items() for hints, pattern in patterns
]


class Finding(NamedTuple):
    r"""
    Where a text may hold a secret. The secret itself is not part of it.

    Args:
        kind (`str`):
            One of `PATTERNS`.
        config (`str`):
            Configuration of the dataset.
        split (`str`):
            Its split.
        row (`str`):
            Row: its number from 0, and its id.
        column (`str`):
            Column of the row.
    """

    kind: str
    config: str
    split: str
    row: str
    column: str


def find_kinds(text: str, allow: Collection[str] = ()) -> list[str]:
    r"""
    Search one text.

    Args:
        text (`str`):
            The text.
        allow (`Collection[str]`, *optional*):
            Kinds not to search for.

    Returns:
        `list[str]`: Kinds of secrets that the text may hold.

    Examples:

    ```python
    >>> from md_trl.secret_search import find_kinds

    >>> find_kinds("Write to jane@university.edu for the data.")
    ['email']
    ```
    """
    matching = [search.kind for search in _hinted(text, allow) if search.pattern.search(text)]
    return list(dict.fromkeys(matching))


def _hinted(text: str, allow: Collection[str], searches: Iterable[_Search] = _SEARCHES) -> list[_Search]:
    """Return the searches whose hints a text holds."""
    lower = text.lower()
    return [search for search in searches if search.kind not in allow and any(hint in lower for hint in search.hints)]


def search_parquet(file: str | Path, config: str, allow: Collection[str] = ()) -> Iterator[Finding]:
    r"""
    Search all texts of a Parquet file, a batch of rows at a time.

    Args:
        file (`str` or `Path`):
            The file, named `SPLIT-*.parquet`. Its rows have an `id`.
        config (`str`):
            Configuration that it belongs to.
        allow (`Collection[str]`, *optional*):
            Kinds not to search for.

    Yields:
        [`Finding`]: One per row, column and kind.
    """
    split, number = Path(file).name.partition("-")[0], 0
    for batch in read_batches(file):
        # Most batches hold few of the hints or none, which is faster to see in all of their texts at once
        hinted = _hinted("\0".join(_texts(batch)), allow)
        for position, row in enumerate(batch if hinted else (), start=number):
            for column, value in row.items():
                searches = [(text, search) for text in _texts(value) for search in _hinted(text, allow, hinted)]
                for kind in dict.fromkeys(search.kind for text, search in searches if search.pattern.search(text)):
                    yield Finding(kind, config, split, f"{position} ({row['id']})", column)
        number += len(batch)


def check_kinds(kinds: Collection[str]) -> None:
    """Raise an error for a kind of secret that there is not."""
    for kind in kinds:
        if kind not in PATTERNS:
            raise InputError(f"Unknown kind {kind!r} in `--allow`. Choose from {', '.join(PATTERNS)}.")


def _texts(value: Any) -> Iterator[str]:
    """Iterate over the strings in a value of a row."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
