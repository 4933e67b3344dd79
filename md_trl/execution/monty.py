"""The Monty engine runs programs in https://github.com/pydantic/monty, a Python interpreter written in Rust.

The interpreters are worker processes.
"""

from __future__ import annotations

import builtins
import os
import re
import sys
import time
from importlib.util import find_spec

from pydantic_monty import Monty, MontyCrashedError, MontyError

from .json_values import MAX_CHARS, MAX_DIGITS, MAX_INT_DIGITS, MAX_ITEMS, printed_answer, to_json
from .programs import Program
from .results import WORKER_LOST, Limits, Result


MAYBE_UNSUPPORTED = ("AttributeError:", "TypeError:", "ValueError:", "SyntaxError:", "SystemExit", WORKER_LOST)
"""Starts of errors that may be due to Monty: it may lack a method, operator or format that the program may use."""


# Monty 1.4.0 rounds near ties as if floats were decimals: its `round(2.675, 2)` is 2.68. CPython returns 2.67, because
# the exact value of the float is below the tie, and so does string formatting in Monty.
_ROUND = '''
_round = round
def round(number, ndigits=None):
    """CPython's `round`, also near ties."""
    if not isinstance(number, float) or not isinstance(ndigits, int) or ndigits > 323:
        return _round(number) if ndigits is None else _round(number, ndigits)
    if ndigits >= 0 or number != number or number in (float("inf"), -float("inf")):
        return float(f"{number:.{max(int(ndigits), 0)}f}")
    if ndigits < -308:
        return 0.0 * number
    unit, whole = 10 ** -ndigits, int(abs(number))
    rest = whole % unit
    low = whole - rest
    if 2 * rest > unit or 2 * rest == unit and (abs(number) > whole or low // unit % 2 == 1):
        low += unit
    return -float(low) if number < 0 or str(number) == "-0.0" else float(low)
'''

# Monty returns values of other types as their `repr`.
_RETURNED_TYPES = (
    "NoneType bool int float complex str bytes list tuple set frozenset dict Decimal date datetime time timedelta"
).split()
# Too large results are refused inside the worker. A long int is returned in base 16, which Python reads at any length.
_HAND_OVER = f"""
def _hand_over(value):
    if isinstance(value, int) and not -(10**{MAX_INT_DIGITS}) < value < 10**{MAX_INT_DIGITS}:
        if not -(10**{MAX_DIGITS}) < value < 10**{MAX_DIGITS}:
            raise ValueError("the result has more than {MAX_DIGITS:,} digits")
        return {{"_int": hex(value)}}
    if isinstance(value, (str, bytes)) and len(value) > {MAX_CHARS}:
        raise ValueError("the result has more than {MAX_CHARS:,} characters")
    if isinstance(value, (list, tuple, set, frozenset, dict)) and len(value) > {MAX_ITEMS}:
        raise ValueError("the result has more than {MAX_ITEMS:,} items")
    kind = type(value).__name__
    if kind not in {_RETURNED_TYPES}:
        raise ValueError(f"the result is of type {{kind}}")
    return value
"""

_UNSUPPORTED = re.compile(
    r"NotImplementedError: (?:The monty|Wildcard)|ModuleNotFoundError: No module named|.*Internal error in monty"
    r"|ImportError: cannot import name|AttributeError: module '\w+' has no attribute"
    r"|TypeError: cannot create '\w+' instances"
)
_UNKNOWN_NAME = re.compile(r"NameError: name '(\w+)' is not defined")


# The process that runs Monty's threads. In a fork of it Monty would wait forever for threads that do not exist.
_process: int | None = None


def is_usable() -> bool:
    """Return whether Monty can run in this process. It cannot in a fork of a process that has used it."""
    return _process in (None, os.getpid())


class MontyEngine:
    r"""
    A pool of Monty workers. Use it as a context manager. `run` may be called from several threads.

    Args:
        limits ([`Limits`]):
            Resources that one program may use.
        workers (`int`):
            Number of worker processes.
    """

    name = "monty"

    def __init__(self, limits: Limits, workers: int):
        self.limits = limits
        # No step such as `10**10**8` can be interrupted: the pool kills its worker after the grace period.
        self._pool = Monty(
            min_processes=1,
            max_processes=workers,
            request_timeout=limits.seconds + 0.5,
            feed_duration_limit_grace=0.5,
        )
        self._checkout = {
            "limits": {
                "max_feed_duration_secs": limits.seconds,
                "max_memory": int(limits.memory_mb * 2**20),
                "max_suspensions": 100,
                "max_total_sleep_secs": 0.0,
            },
            # Sleeping returns at once, and random numbers are the same in every run.
            "os_policy": {"sleep": "zero", "random_start": {"seed": 0}},
            "assert_message_annotations": False,
        }

    def __enter__(self) -> MontyEngine:
        global _process
        # Monty imports it at every call if it can. Where it is not installed, searching for it is a fifth of the time
        # that a small program takes in this process.
        if find_spec("opentelemetry") is None:
            sys.modules["opentelemetry"] = None
        _process = os.getpid()
        self._pool.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        self._pool.__exit__(*exception)

    def run(self, program: Program) -> Result:
        """Run one program in a new session, and once more if its worker was lost."""
        result = self._run(program)
        return self._run(program) if result.status == "error" and result.error.startswith(WORKER_LOST) else result

    def _run(self, program: Program) -> Result:
        started = time.perf_counter()
        output = _Output(self.limits.stdout_chars)
        try:
            with self._pool.checkout(**self._checkout) as session:
                value = session.feed_run(_script(program), print_callback=output)
            status, value, kind, error = _outcome(value, program, output)
        except ValueError as failure:  # `NoAnswerError`, or an int inside a list has too many digits to be returned
            status, value, kind, error = "no_result", None, None, str(failure)
        except MontyError as failure:
            value = kind = None
            status, error = _failure(failure)
        seconds = time.perf_counter() - started
        return Result(status, value, kind, error, output.text, round(seconds, 6), self.name)


class _Output:
    """Collects the output of a program, up to a number of characters."""

    def __init__(self, limit: int):
        self.limit = limit
        self.text = ""
        self.complete = True

    def __call__(self, stream: str, text: str) -> None:
        room = self.limit - len(self.text)
        self.complete = self.complete and len(text) <= room
        if room > 0:
            self.text += text[:room]


def _script(program: Program) -> str:
    script = [program.body]
    if program.expressions:
        script += [_HAND_OVER, "_answer = None"]
        script += [f"if _answer is None:\n    _answer = ({expression}\n)" for expression in program.expressions]
        script += ["_hand_over(_answer)"]
    else:
        script += ["None"]
    # The replacement takes time, so only programs that round get it.
    if any("round" in part for part in (program.body, *program.expressions)):
        script.insert(0, _ROUND)
    return "\n".join(script)


def _outcome(value, program: Program, output: _Output) -> tuple:
    if value is None:
        return "ok", printed_answer(output.text, output.complete), "str", None
    if isinstance(value, dict) and list(value) == ["_int"]:
        value = int(value["_int"], 16)
    return "ok", to_json(value), type(value).__name__, None


def _failure(failure: MontyError) -> tuple[str, str]:
    if isinstance(failure, MontyCrashedError):
        return ("timeout" if failure.timed_out else "error"), f"{WORKER_LOST}: {failure}"[:500]
    error = failure.display("type-msg")[:500]
    if error.startswith(("TimeoutError: feed time limit", "TimeoutError: sleep limit")):
        return "timeout", error
    if error.startswith("MemoryError: memory limit"):
        return "memory", error
    if error.startswith("ValueError: the result "):  # raised by `_hand_over`
        return "no_result", error.removeprefix("ValueError: ")
    unknown = _UNKNOWN_NAME.match(error)
    if _UNSUPPORTED.match(error) or (unknown and unknown[1] in vars(builtins)):
        return "unsupported", error
    return "error", error
