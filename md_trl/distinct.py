"""Which thoughts are really different: programs up to the names of their variables, prose up to its words.

A student often samples the same reasoning in other words. Rejection-sampled fine-tuning
(https://huggingface.co/papers/2308.01825) gains from *distinct* reasoning, so one thought of each kind is learned.
Texts are only parsed here; no program runs.
"""

from __future__ import annotations

import ast
import re
from decimal import Decimal, InvalidOperation

from .execution.source import InvalidProgramError, find_source


# "1. ", "2) " or "Step 3: " at the beginning of a line counts steps, and no quantities.
_ENUMERATION = re.compile(r"^[ \t]*(?:[-*][ \t]+)?(?:\*\*)?(?:step[ \t]*\d+[.):]*|\d+[.):](?=\s))", re.I | re.M)
# A number, or an operator before one. "=" counts wherever it is.
_TOKEN = re.compile(
    r"(?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"|(?P<equals>=)"
    r"|(?P<operator>[-+*/×÷·^−–]|(?<=[\d)\s])[xX](?=\s*\d))(?=\s*[($€£]*\s*\.?\d)"
)
_SAME_OPERATOR = {"×": "*", "÷": "/", "·": "*", "−": "-", "–": "-", "x": "*", "X": "*"}


def thought_key(text: str, path: str) -> str:
    r"""
    Return what tells a thought from others of the same question and path.

    Args:
        text (`str`):
            Text of the thought.
        path (`str`):
            `"pot"` for a program, anything else for prose.

    Returns:
        `str`: The key, see [`program_key`] and [`prose_key`].
    """
    return program_key(text) if path == "pot" else prose_key(text)


def program_key(text: str) -> str:
    r"""
    Return what tells a program from others: its syntax tree without the names of its variables and functions.

    Comments, docstrings, type annotations and spacing do not count; numbers, strings, operators and the names of
    builtins, modules and attributes do. A name stands for one variable in the whole program, whatever its scope.

    Args:
        text (`str`):
            A text with a program, as a model wrote it.

    Returns:
        `str`: The key. For a text without a program, the text itself.

    Examples:

    ```python
    >>> from md_trl.distinct import program_key

    >>> program_key("a = 2\nanswer = a * 3") == program_key("apples = 2  # at first\nx = apples * 3")
    True
    >>> program_key("answer = 2 * 3") == program_key("answer = 3 * 2")
    False
    ```
    """
    try:
        _, tree = find_source(text)
        return ast.dump(_Anonymous(tree).visit(tree), annotate_fields=False)
    # A sum of a thousand terms, or an integer of more than 4,300 digits
    except (InvalidProgramError, RecursionError, ValueError, MemoryError):
        return text.strip()


def prose_key(text: str) -> str:
    r"""
    Return what tells a chain of thought from others: its numbers and the operators between them, in order.

    Numbers that count the steps of a list are left out.

    Args:
        text (`str`):
            A chain of thought.

    Returns:
        `str`: The key. For a text without any number, its words.

    Examples:

    ```python
    >>> from md_trl.distinct import prose_key

    >>> prose_key("She had 5 pens and got 3: 5 + 3 = 8.")
    '5 3 5 + 3 = 8'
    >>> prose_key("With 5 pens plus 3, 5+3=8") == prose_key("She had 5 pens and got 3: 5 + 3 = 8.")
    True
    ```
    """
    tokens, has_number = [], False
    for found in _TOKEN.finditer(_ENUMERATION.sub(" ", text)):
        if found["number"]:
            has_number = True
            tokens.append(_number(found["number"]))
        else:
            tokens.append(_SAME_OPERATOR.get(found[0], found[0]))
    return " ".join(tokens) if has_number else " ".join(re.findall(r"\w+", text.casefold()))


def _number(text: str) -> str:
    try:
        value = Decimal(text.replace(",", ""))
    except InvalidOperation:
        return text
    return format(value.normalize(), "f") if value.adjusted() < 1000 else text


class _Anonymous(ast.NodeTransformer):
    """Replaces the names that a program binds by numbers, in the order in which they appear."""

    def __init__(self, tree: ast.Module):
        self._bound = set(_bound_names(tree))
        self._numbers: dict[str, str] = {}

    def _rename(self, name: str | None) -> str | None:
        if name not in self._bound:
            return name
        # Not an identifier, so that it differs from every name that stays
        return self._numbers.setdefault(name, f"${len(self._numbers)}")

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(body := getattr(node, "body", None), list) and len(body) > 1:
            node.body = [statement for statement in body if not _is_text(statement)] or body[:1]
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(self._rename(node.id), node.ctx)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(self._rename(node.arg))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.name, node.returns = self._rename(node.name), None
        return self.generic_visit(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.name = self._rename(node.name)
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        plain = ast.Assign([node.target], node.value) if node.value is not None else ast.Pass()
        return self.visit(plain)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id in self._bound:
            for keyword in node.keywords:  # the name of a parameter of a function of the program
                keyword.arg = self._rename(keyword.arg)
        return self.generic_visit(node)

    def visit_Global(self, node: ast.Global | ast.Nonlocal) -> ast.AST:
        node.names = [self._rename(name) for name in node.names]
        return node

    visit_Nonlocal = visit_Global

    def visit_alias(self, node: ast.alias) -> ast.AST:
        return ast.alias(node.name, self._rename(node.asname))

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        node.name = self._rename(node.name)
        return self.generic_visit(node)

    def visit_MatchAs(self, node: ast.MatchAs | ast.MatchStar) -> ast.AST:
        node.name = self._rename(node.name)
        return self.generic_visit(node)

    visit_MatchStar = visit_MatchAs


def _bound_names(tree: ast.Module):
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.name


def _is_text(statement: ast.stmt) -> bool:
    """Whether a statement is a docstring or another string that does nothing."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
