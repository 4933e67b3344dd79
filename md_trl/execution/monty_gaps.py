"""What programs need that Monty lacks, seen in their syntax tree before they run.

Monty reports most of it when the program runs, but a program may catch the error and take another way, and an iterator
that Monty keeps as a list gives a wrong result without an error.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable


# Modules that Monty 1.4.0 can import.
_MODULES = frozenset(
    "asyncio base64 binascii bisect collections copy csv dataclasses datetime decimal functools hashlib itertools "
    "json math os pathlib posixpath random re sys time tomllib typing unicodedata".split()
)
_ITERATORS = ("map", "filter", "zip", "enumerate", "reversed", "iter")
_KEYWORDS = re.compile(rf"\b(?:import|yield|class|try|for|{'|'.join(_ITERATORS)})\b")


def missing_feature(source: str, nodes: Iterable[ast.AST]) -> str | None:
    """Return the first feature of a program that Monty lacks, for example `numpy` or `try`, if there is one."""
    if not _KEYWORDS.search(source):  # most programs, and much faster than looking at every node
        return None
    return next(filter(None, map(_missing, nodes)), None)


def _missing(node: ast.AST) -> str | None:
    if isinstance(node, ast.Import):
        return next((alias.name for alias in node.names if alias.name.partition(".")[0] not in _MODULES), None)
    if isinstance(node, ast.ImportFrom):
        known = node.module and node.module.partition(".")[0] in _MODULES
        return "import *" if node.names[0].name == "*" else None if known else node.module or "a relative import"
    if isinstance(node, (ast.Yield, ast.YieldFrom)):
        return "yield"
    if isinstance(node, ast.ClassDef):
        return "classes"  # Monty has no inheritance and ignores methods such as `__lt__`
    if isinstance(node, ast.Try) and node.handlers:
        return "try"
    if isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)) and _is_iterator(node.value):
        return "iterators"
    return None


def _is_iterator(node: ast.expr | None) -> bool:
    """Whether CPython can read the value only once; Monty keeps it as a list."""
    call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    return isinstance(node, ast.GeneratorExp) or call and node.func.id in _ITERATORS
