r"""Where the program is in a text that a model wrote, and where its answer is in the program.

This is the one place that decides, for every engine. The answer of a program is, in this order:

1. what a `return` outside of any function returns (Table 5 of the paper has such programs);
2. the value of a last line that is an expression, unless it prints or is `None`;
3. what `solution()` returns, if the program defines it and leaves the call to us;
4. the variable `answer`, `ans` or `result`, whichever is assigned last;
5. the value that a last `print` shows, without the words around it;
6. what the only function that needs no argument returns, if nothing calls it;
7. the last line of the output.

The last line of `if __name__ == "__main__":` at the end counts as the last line.
"""

from __future__ import annotations

import ast
import re
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from .values import NoAnswer


NAMES = ("answer", "ans", "result")
MAX_CHARS = 50_000
MAX_TRIES = 20

# What Monty 1.4.0 can import.
_MONTY_MODULES = frozenset(
    "asyncio base64 binascii bisect collections copy csv dataclasses datetime decimal functools hashlib itertools "
    "json math os pathlib posixpath random re sys time tomllib typing unicodedata".split()
)
_ITERATORS = ("map", "filter", "zip", "enumerate", "reversed", "iter")
_MAY_NEED = re.compile(rf"\b(?:import|yield|class|try|for|{'|'.join(_ITERATORS)})\b")
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_WORTH_A_LOOK = (ast.expr, ast.arguments)  # a single child that is not merely `Load` or `Add`
_SCOPES += (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_PARSER = threading.Lock()
_FENCE = re.compile(
    r"^[ \t]*(?:```|~~~)[ \t]*(?P<language>[\w+-]*)[^\n]*\n(?P<code>.*?)(?:^[ \t]*(?:```|~~~)|\Z)", re.M | re.S
)
_CODE = re.compile(
    r"(?:def|import|from|class|for|while|if|try|with|print|return)\b|@|#|[A-Za-z_][\w.]*(?:\[.*\])?\s*[-+*/]?=[^=]"
)
_PROSE = re.compile(
    r"(?!(?:def|import|from|for|while|if|elif|else|try|with|return|class|assert|not|global|raise|lambda|del)\b)"
    r"(?:[^\W\d]\S*(?: \S+){2,}|[A-Z]\w*:)"
)


class NotAProgram(ValueError):
    """A text holds no Python program."""


@dataclass(frozen=True)
class Program:
    r"""
    A program made ready for an engine.

    Args:
        body (`str`):
            Statements to run first.
        expressions (`tuple[str]`):
            Expressions to evaluate after them; the first that is not `None` is the answer. If there is none, it is the
            last line of the output.
        needs (`str`, *optional*):
            What only CPython gives it, for example `numpy` or `try`.
    """

    body: str
    expressions: tuple[str, ...] = ()
    needs: str | None = None


def prepare(text: str) -> Program:
    r"""
    Find the program in a text, and the answer in the program.

    Raises:
        [`NotAProgram`]: If no part of the text is Python, or it is longer than `MAX_CHARS`.
    """
    if len(text) > MAX_CHARS:
        raise NotAProgram(f"the program has {len(text):,} characters, more than {MAX_CHARS:,}")
    source, tree = _find(text)
    # What runs with the module, and what waits in the bodies of functions and classes.
    outside = _walk([tree], _SCOPES)
    inside = _walk(child for node in outside if isinstance(node, _SCOPES) for child in ast.iter_child_nodes(node))
    try:
        program = _with_answer(source, tree, outside, inside)
    except NotAProgram:
        raise
    except (RecursionError, ValueError):  # a sum of a thousand terms, or an f-string that `ast` cannot write
        program = Program(source)
    needs = next(filter(None, map(_need, outside + inside)), None) if _MAY_NEED.search(source) else None
    return replace(program, needs=needs) if needs else program


def printed_answer(stdout: str, complete: bool) -> str:
    r"""
    The answer of a program that computed none: the last line it printed.

    Args:
        stdout (`str`):
            What it printed.
        complete (`bool`):
            Whether that is everything it printed.

    Raises:
        [`NoAnswer`]: If it printed nothing, `None`, or so much that the last line is not known.
    """
    lines = stdout.strip().splitlines()
    if not lines:
        raise NoAnswer("the program neither returned, named nor printed an answer")
    if not complete:
        raise NoAnswer(f"the program printed more than {len(stdout):,} characters")
    last = lines[-1].strip()
    if last == "None":  # what a function without `return` gave to `print`
        raise NoAnswer("the program printed None")
    return last


def _with_answer(source: str, tree: ast.Module, outside: list[ast.AST], inside: list[ast.AST]) -> Program:
    statements = tree.body
    if not statements:
        raise NotAProgram("the text has no statement")
    if any(isinstance(node, ast.Return) for node in outside):
        body = "def _program():\n" + textwrap.indent(source, "    ", _starts_code(source))
        return Program(body, ("_program()",))

    uncalled = [
        node.name for node in statements if isinstance(node, ast.FunctionDef) and not _required_arguments(node)
    ]
    if uncalled:
        calls = {n.func.id for n in outside + inside if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        uncalled = [name for name in uncalled if name not in calls]
    name = _named_answer(outside)
    named = (name,) if name else ()
    last = statements[-1]
    while isinstance(last, ast.If) and ast.unparse(last.test) == "__name__ == '__main__'" and not last.orelse:
        last = last.body[-1]
    printed = _print_call(last)
    if isinstance(last, ast.Expr) and not printed:
        if isinstance(last.value, ast.Starred):  # the parser lets it pass, the compiler does not
            raise NotAProgram("SyntaxError: can't use starred expression here")
        if len(statements) == 1 and isinstance(last.value, ast.Constant) and isinstance(last.value.value, str):
            raise NotAProgram("the text is a string, not a program")
        return Program(_before(source, last), (_text(source, last.value), *named))
    if "solution" in uncalled:
        return Program(source, ("solution()", *named))
    if named:
        return Program(source, named)
    if printed:
        return _shown(source, last, printed)
    if len(uncalled) == 1:
        return Program(source, (f"{uncalled[0]}()",))
    return Program(source)


# ------------------------------------------------------------------------------------------- the program in the text


def _find(text: str) -> tuple[str, ast.Module]:
    """The fenced blocks of Python, the longest fenced block, the whole text, or the text without prose around it."""
    text = text.lstrip("\ufeff").replace("\r\n", "\n").strip("\n")
    blocks = [(match["language"].lower(), textwrap.dedent(match["code"])) for match in _FENCE.finditer(text)]
    # One program may be told in several blocks.
    python = "\n".join(code for language, code in blocks if language in ("python", "python3", "py"))
    fenced = [python] * bool(python) + sorted((code for _, code in blocks), key=len, reverse=True)
    failure = None
    for candidate in fenced or map(textwrap.dedent, _candidates(text)):
        try:
            return candidate, _parse(candidate)
        except SyntaxError as error:
            failure = failure or f"SyntaxError: {error.msg} (line {error.lineno})"
        except (ValueError, MemoryError, RecursionError) as error:  # NUL bytes, surrogates, thousands of brackets
            failure = failure or f"SyntaxError: {str(error) or 'too deeply nested'}"
    raise NotAProgram(failure or "SyntaxError: the text is empty")


def _parse(source: str) -> ast.Module:
    # CPython keeps one count of the depth of all threads' parsers, and raises SystemError when they mix (gh-106905).
    for attempt in range(10):
        try:
            with _PARSER:
                return ast.parse(source)
        except SystemError:  # a thread that is not ours parsed at the same time
            if attempt == 9:
                raise


def _candidates(text: str) -> Iterator[str]:
    yield text
    lines = text.split("\n")
    start = next((i for i, line in enumerate(lines) if _CODE.match(line)), None)
    if start is None:
        return
    yield "\n".join(lines[start:])
    # Prose after the code begins at the margin. Some of it may stand in a docstring: so there are several tries.
    ends = (i for i in range(start + 1, len(lines)) if _PROSE.match(lines[i]) and not _CODE.match(lines[i]))
    for end in islice(ends, MAX_TRIES):
        yield "\n".join(lines[start:end])


# ----------------------------------------------------------------------------------------- what the program needs


def _need(node: ast.AST) -> str | None:
    """What Monty lacks. It reports most of it when it runs, but a program may catch that and take another way."""
    if isinstance(node, ast.Import):
        return next((alias.name for alias in node.names if alias.name.partition(".")[0] not in _MONTY_MODULES), None)
    if isinstance(node, ast.ImportFrom):
        known = node.module and node.module.partition(".")[0] in _MONTY_MODULES
        return "import *" if node.names[0].name == "*" else None if known else node.module or "a relative import"
    if isinstance(node, (ast.Yield, ast.YieldFrom)):
        return "yield"
    if isinstance(node, ast.ClassDef):
        return "classes"  # those with bases are refused, and `__lt__` and its like are not looked at
    if isinstance(node, ast.Try) and node.handlers:
        return "try"
    if isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)) and _is_iterator(node.value):
        return "iterators"
    return None


def _is_iterator(node: ast.expr | None) -> bool:
    """Whether CPython reads it once only; to Monty it is a list."""
    call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    return isinstance(node, ast.GeneratorExp) or call and node.func.id in _ITERATORS


# ---------------------------------------------------------------------------------------- the answer in the program


def _walk(roots: Iterable[ast.AST], closed: tuple = ()) -> list[ast.AST]:
    """All nodes, those within `closed` ones left out; `ast.walk` is slower."""
    nodes = list(roots)
    for node in nodes:
        if isinstance(node, closed):
            continue
        for value in vars(node).values():
            if type(value) is int:  # four of them say where the node is
                continue
            if type(value) is list:
                nodes += [item for item in value if isinstance(item, ast.AST)]
            elif isinstance(value, _WORTH_A_LOOK):
                nodes.append(value)
    return nodes


def _named_answer(outside: list[ast.AST]) -> str | None:
    assigned = [
        ((node.lineno, node.col_offset), node.id)
        for node in outside
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in NAMES
    ]
    return max(assigned)[1] if assigned else None


def _required_arguments(function: ast.FunctionDef) -> bool:
    arguments = function.args
    positional = len(arguments.posonlyargs) + len(arguments.args)
    return positional > len(arguments.defaults) or any(default is None for default in arguments.kw_defaults)


def _print_call(statement: ast.stmt) -> ast.Call | None:
    call = statement.value if isinstance(statement, ast.Expr) else None
    is_print = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "print"
    return call if is_print else None


def _shown(source: str, statement: ast.stmt, call: ast.Call) -> Program:
    """A program that ends in `print(...)`: the one thing printed that is not a literal text."""
    values = [value for argument in call.args for value in _values(argument)]
    values = [value for value in values if not _is_literal(value)] or call.args
    if len(values) != 1 or isinstance(values[0], ast.Starred):
        return Program(source)
    # Evaluated once, as in the original.
    shown = ast.JoinedStr(values) if isinstance(values[0], ast.FormattedValue) else values[0]
    printed = ast.unparse(_Shown(values[0]).visit(call))
    return Program(_before(source, statement) + f"\n_shown = {ast.unparse(shown)}\n{printed}", ("_shown",))


class _Shown(ast.NodeTransformer):
    """Puts the name `_shown` in the place of a node."""

    def __init__(self, node: ast.expr):
        self.node = node

    def visit(self, node: ast.AST) -> ast.AST:
        if node is not self.node:
            return self.generic_visit(node)
        name = ast.Name("_shown")
        return ast.FormattedValue(name, -1) if isinstance(node, ast.FormattedValue) else name


def _values(node: ast.expr) -> list[ast.expr]:
    """What a text is put together from: an f-string, or a sum with a literal text or `str()` in it."""
    if isinstance(node, ast.JoinedStr):
        return [value for part in node.values for value in _values(part)]
    if isinstance(node, ast.FormattedValue):
        # `{share:.0%}` shows another number than `share`.
        return [node] if "%" in ast.unparse(node.format_spec or ast.Constant("")) else [node.value]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and _is_text(node):
        return _values(node.left) + _values(node.right)
    return node.args if _is_text(node) and isinstance(node, ast.Call) else [node]


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Add) and (_is_text(node.left) or _is_text(node.right))
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "str" and len(node.args) == 1
    return isinstance(node, ast.JoinedStr) or _is_literal(node)


def _is_literal(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _before(source: str, statement: ast.stmt) -> str:
    lines = source.split("\n")
    same_line = lines[statement.lineno - 1].encode()[: statement.col_offset].decode()
    return "\n".join([*lines[: statement.lineno - 1], same_line + "pass"])


def _text(source: str, node: ast.expr) -> str:
    return ast.get_source_segment(source, node) or ast.unparse(node)


def _starts_code(source: str) -> Callable[[str], bool]:
    """Predicate for `textwrap.indent`: the lines that may be indented, those inside a long string left alone."""
    inside = set()
    for node in ast.walk(_parse(source)):
        if isinstance(node, (ast.Constant, ast.JoinedStr)) and node.end_lineno > node.lineno:
            inside.update(range(node.lineno, node.end_lineno))
    number = iter(range(source.count("\n") + 1))
    return lambda line: next(number) not in inside and bool(line.strip())
