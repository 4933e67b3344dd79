r"""Prepare a program for an engine: find it in the text that a model wrote, and find its answer in the program.

The rules are the same for every engine. The answer of a program is the first of these that applies:

1. what a `return` outside any function returns (Table 5 of the paper has such programs);
2. the value of the last line if it is an expression, unless it is a `print` or `None`;
3. what `solution()` returns, if the program defines the function without calling it;
4. the variable `answer`, `ans` or `result`, whichever is assigned last;
5. the value that a final `print` shows, without the words around it;
6. what the only function that takes no argument returns, if nothing calls it;
7. the last line of the output.

If the program ends with `if __name__ == "__main__":`, the last line of that block counts as its last line.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from .monty_gaps import missing_feature
from .source import InvalidProgramError, find_source, parse


MAX_CHARS = 50_000
"""Longer texts are not run."""

_ANSWER_NAMES = ("answer", "ans", "result")
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_SCOPES += (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
# Single children that may contain other nodes, unlike `Load` or `Add`.
_PARENTS = (ast.expr, ast.arguments)


@dataclass(frozen=True)
class Program:
    r"""
    A program that is ready to run.

    Args:
        body (`str`):
            Statements to run first.
        expressions (`tuple[str]`, *optional*, defaults to `()`):
            Expressions to evaluate after the body. The first value that is not `None` is the answer. If there is no
            such value, the last line of the output is.
        needs (`str`, *optional*):
            Feature that Monty lacks, for example `numpy` or `try`.
    """

    body: str
    expressions: tuple[str, ...] = ()
    needs: str | None = None


def prepare(text: str) -> Program:
    r"""
    Find the program in a text, and its answer in the program.

    Args:
        text (`str`):
            A text that a model wrote.

    Returns:
        [`Program`]: The program.

    Raises:
        [`~md_trl.execution.source.InvalidProgramError`]: If no part of the text is Python, or the text is longer than
            `MAX_CHARS`.
    """
    if len(text) > MAX_CHARS:
        raise InvalidProgramError(f"the program has {len(text):,} characters, more than {MAX_CHARS:,}")
    source, tree = find_source(text)
    # Nodes that run with the module, and nodes in the bodies of functions and classes.
    outer = _nodes([tree], _SCOPES)
    inner = _nodes(child for node in outer if isinstance(node, _SCOPES) for child in ast.iter_child_nodes(node))
    try:
        program = _with_answer(source, tree, outer, inner)
    except InvalidProgramError:
        raise
    except (RecursionError, ValueError):  # a sum of a thousand terms, or an f-string that `ast` cannot write
        program = Program(source)
    return replace(program, needs=missing_feature(source, outer + inner))


def _with_answer(source: str, tree: ast.Module, outer: list[ast.AST], inner: list[ast.AST]) -> Program:
    statements = tree.body
    if not statements:
        raise InvalidProgramError("the text has no statement")
    if any(isinstance(node, ast.Return) for node in outer):
        body = "def _program():\n" + textwrap.indent(source, "    ", _can_be_indented(source))
        return Program(body, ("_program()",))

    uncalled = _uncalled_functions(statements, outer + inner)
    name = _last_assigned_answer(outer)
    named = (name,) if name else ()
    last = statements[-1]
    while isinstance(last, ast.If) and ast.unparse(last.test) == "__name__ == '__main__'" and not last.orelse:
        last = last.body[-1]
    printed = _print_call(last)
    if isinstance(last, ast.Expr) and not printed:
        if isinstance(last.value, ast.Starred):  # the parser accepts it, the compiler does not
            raise InvalidProgramError("SyntaxError: can't use starred expression here")
        if len(statements) == 1 and _is_string(last.value):
            raise InvalidProgramError("the text is a string, not a program")
        return Program(_source_before(source, last), (_source_of(source, last.value), *named))
    if "solution" in uncalled:
        return Program(source, ("solution()", *named))
    if named:
        return Program(source, named)
    if printed:
        return _with_printed_answer(source, last, printed)
    if len(uncalled) == 1:
        return Program(source, (f"{uncalled[0]}()",))
    return Program(source)


# ------------------------------------------------------------------------------------------------- names and functions


def _nodes(roots: Iterable[ast.AST], closed: tuple = ()) -> list[ast.AST]:
    """All nodes below the roots, except those within `closed` nodes. Faster than `ast.walk`."""
    nodes = list(roots)
    for node in nodes:
        if isinstance(node, closed):
            continue
        for value in vars(node).values():
            if type(value) is int:  # a line or column number
                continue
            if type(value) is list:
                nodes += [item for item in value if isinstance(item, ast.AST)]
            elif isinstance(value, _PARENTS):
                nodes.append(value)
    return nodes


def _uncalled_functions(statements: list[ast.stmt], nodes: list[ast.AST]) -> list[str]:
    """Names of the functions that can be called without an argument and that the program does not call."""
    names = [node.name for node in statements if isinstance(node, ast.FunctionDef) and not _needs_argument(node)]
    if not names:
        return []
    called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    return [name for name in names if name not in called]


def _needs_argument(function: ast.FunctionDef) -> bool:
    arguments = function.args
    positional = len(arguments.posonlyargs) + len(arguments.args)
    return positional > len(arguments.defaults) or any(default is None for default in arguments.kw_defaults)


def _last_assigned_answer(outer: list[ast.AST]) -> str | None:
    assigned = [
        ((node.lineno, node.col_offset), node.id)
        for node in outer
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in _ANSWER_NAMES
    ]
    return max(assigned)[1] if assigned else None


# -------------------------------------------------------------------------------------------------- a printed answer


def _print_call(statement: ast.stmt) -> ast.Call | None:
    call = statement.value if isinstance(statement, ast.Expr) else None
    is_print = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "print"
    return call if is_print else None


def _with_printed_answer(source: str, statement: ast.stmt, call: ast.Call) -> Program:
    """A program that ends with `print(...)`: its answer is the only printed value that is not a literal string."""
    values = [value for argument in call.args for value in _printed_values(argument)]
    values = [value for value in values if not _is_string(value)] or call.args
    if len(values) != 1 or isinstance(values[0], ast.Starred):
        return Program(source)
    # The value is evaluated once, as in the original program.
    shown = ast.JoinedStr(values) if isinstance(values[0], ast.FormattedValue) else values[0]
    printed = ast.unparse(_ReplaceByName(values[0]).visit(call))
    return Program(_source_before(source, statement) + f"\n_shown = {ast.unparse(shown)}\n{printed}", ("_shown",))


class _ReplaceByName(ast.NodeTransformer):
    """Replaces one node by the name `_shown`."""

    def __init__(self, node: ast.expr):
        self.node = node

    def visit(self, node: ast.AST) -> ast.AST:
        if node is not self.node:
            return self.generic_visit(node)
        name = ast.Name("_shown")
        return ast.FormattedValue(name, -1) if isinstance(node, ast.FormattedValue) else name


def _printed_values(node: ast.expr) -> list[ast.expr]:
    """The parts of an f-string, or of a sum that contains a literal string or `str()`."""
    if isinstance(node, ast.JoinedStr):
        return [value for part in node.values for value in _printed_values(part)]
    if isinstance(node, ast.FormattedValue):
        # `{share:.0%}` shows another number than `share`.
        return [node] if "%" in ast.unparse(node.format_spec or ast.Constant("")) else [node.value]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and _is_text(node):
        return _printed_values(node.left) + _printed_values(node.right)
    return node.args if _is_text(node) and isinstance(node, ast.Call) else [node]


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Add) and (_is_text(node.left) or _is_text(node.right))
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "str" and len(node.args) == 1
    return isinstance(node, ast.JoinedStr) or _is_string(node)


def _is_string(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


# ----------------------------------------------------------------------------------------------------- parts of source


def _source_before(source: str, statement: ast.stmt) -> str:
    lines = source.split("\n")
    same_line = lines[statement.lineno - 1].encode()[: statement.col_offset].decode()
    return "\n".join([*lines[: statement.lineno - 1], same_line + "pass"])


def _source_of(source: str, node: ast.expr) -> str:
    return ast.get_source_segment(source, node) or ast.unparse(node)


def _can_be_indented(source: str) -> Callable[[str], bool]:
    """Predicate for `textwrap.indent`: false for the lines inside a multi-line string, which must stay as they are."""
    inside = set()
    for node in ast.walk(parse(source)):
        if isinstance(node, (ast.Constant, ast.JoinedStr)) and node.end_lineno > node.lineno:
            inside.update(range(node.lineno, node.end_lineno))
    number = iter(range(source.count("\n") + 1))
    return lambda line: next(number) not in inside and bool(line.strip())
