"""The jail's own process: a CPython with preloaded modules that forks a confined child process for every program.

[`~md_trl.execution.jail.JailEngine`] starts this file with `python -I`, without an environment and with one socket, so
no data of the host is in its memory. It never runs a program itself:

    host ── socket ──► server: imports modules once, forks a worker for each socket that the host sends
      └──── socket ──────► worker: takes one program at a time, forks a child for it, kills the child at the time limit
                             └── pipe ──► child: sets limits, enters seccomp, runs the program, writes one JSON object
"""

from __future__ import annotations

import ctypes
import gc
import io
import json
import os
import random
import resource
import select
import signal
import socket
import struct
import sys
import time
import types
import warnings
from fractions import Fraction


sys.path.insert(0, os.path.dirname(__file__))
import seccomp  # noqa: E402
from json_values import MAX_ITEMS, NoAnswerError, to_json  # noqa: E402


sys.path.pop(0)

MAX_REPLY_BYTES = 2**20
_HEADER = struct.Struct("!I")
_NOBODY = 65534
_NAMESPACES = 0x40000000 | 0x08000000 | 0x04000000  # CLONE_NEWNET, CLONE_NEWIPC, CLONE_NEWUTS
_USER_NAMESPACE = 0x10000000
# Modules that a program may import. Others cannot be loaded later, because the files are out of reach then.
_MODULES = (
    "abc array ast bisect calendar cmath collections collections.abc copy csv dataclasses datetime decimal enum "
    "fractions functools hashlib heapq inspect itertools json math numbers operator pprint random re statistics "
    "string textwrap time timeit traceback typing unicodedata uuid warnings zoneinfo "
    "_pylong"  # Python 3.12 and newer load it to convert large integers
).split()
_SCIENTIFIC = (
    "numpy numpy.linalg numpy.fft numpy.random numpy.polynomial "
    "sympy sympy.abc sympy.solvers sympy.solvers.inequalities sympy.physics.units sympy.stats mpmath"
).split()


# ------------------------------------------------------------------------------------------------------------ server


def serve(control: socket.socket, modules: str) -> None:
    """Preload the modules, then fork a worker for each socket that arrives on `control`, until the host ends."""
    parent = os.getppid()
    reason = seccomp.unavailable_reason()
    if reason is None:
        _preload(_MODULES + (_SCIENTIFIC if modules == "scientific" else []))
        _drop_privileges()
        reason = _filter_failure()
    control.sendall(json.dumps({"unsupported": reason}).encode() + b"\n")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.collect()
    gc.freeze()  # or a collection in a child would copy all memory pages
    ready = select.poll()
    ready.register(control, select.POLLIN)
    while os.getppid() == parent:
        if not ready.poll(1_000):
            continue
        message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        if os.fork() == 0:
            control.close()
            seccomp.die_with_parent()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            work(socket.socket(fileno=descriptors[0]))
            os._exit(0)
        os.close(descriptors[0])


def _preload(modules: list[str]) -> None:
    for name in modules:
        try:
            __import__(name)
        except ImportError:  # numpy and sympy are optional; programs that import them fail with a clear error
            pass
    if "sympy" in sys.modules:
        import sympy as sp

        # sympy imports many of its modules at first use.
        x, y = sp.symbols("x y")
        str([sp.solve([sp.Eq(x + y, 3), sp.Eq(x - y, 1)], [x, y]), sp.solve(x**2 - 2, x), sp.solve(2 * x - 3 > 0, x)])
        str([sp.solveset(x**2 - 1, x), sp.linsolve([x - 1], x), sp.nsolve(x**2 - 2, 1), sp.solve(x**3 - x - 1, x)])
        str([sp.diophantine(2 * x + 3 * y - 5), sp.solve(2**x - 8, x), sp.factorint(12), sp.simplify(x + x)])
        str([sp.integrate(x**2, (x, 0, 1)), sp.limit(1 / x, x, 0), sp.summation(x, (x, 1, 5)), sp.sympify("x + 1/2")])
        str([(sp.sqrt(2) + sp.pi + sp.log(2)).evalf(), sp.ceiling(sp.Rational(3, 2)), sp.pretty(x / 2), sp.latex(x)])
    if "numpy" in sys.modules:
        import numpy

        numpy.linalg.solve(numpy.eye(2), numpy.ones(2))
        str([numpy.random.default_rng(0).normal(), numpy.roots([1, -3, 2]), numpy.median([1, 2]), numpy.std([1, 2])])
    time.strptime("2024", "%Y")
    sys.set_int_max_str_digits(0)
    # From here on no other module can be imported, sleeping returns at once, and random numbers are always the same.
    sys.meta_path.clear()
    time.sleep = lambda seconds: None
    if "numpy" in sys.modules:
        numpy.random.seed(0)
    warnings.simplefilter("ignore")


def _drop_privileges() -> None:
    """Leave the host's namespaces and become `nobody` where possible: a second barrier behind the seccomp filter."""
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    if unshare(_NAMESPACES) != 0:
        unshare(_NAMESPACES | _USER_NAMESPACE)
    if os.geteuid() == 0:
        try:
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        except OSError:  # root in a container that is not allowed to change its user
            pass


def _filter_failure() -> str | None:
    """Return why seccomp does not work here, or `None` if a child process with the filter cannot open a file."""
    child = os.fork()
    if child == 0:
        try:
            seccomp.confine()
        except OSError:
            os._exit(1)
        try:
            os.open("/", os.O_RDONLY)
        except PermissionError:
            os._exit(0)
        os._exit(2)
    _, status = os.waitpid(child, 0)
    return None if status == 0 else "the kernel refuses the seccomp filter"


# ------------------------------------------------------------------------------------------------------------ worker


def work(host: socket.socket) -> None:
    """Run the programs that the host sends, one at a time."""
    with open("/proc/self/statm") as file:
        base = int(file.read().split()[0]) * resource.getpagesize()
    while True:
        header = _receive(host, _HEADER.size)
        if header is None:
            return
        task = json.loads(_receive(host, _HEADER.unpack(header)[0]))
        started = time.perf_counter()
        end, reply = _run_child(host, task, base)
        verdict = json.dumps({"end": end, "seconds": time.perf_counter() - started}).encode() + b"\n"
        host.sendall(_HEADER.pack(len(verdict) + len(reply)) + verdict + reply)


def _receive(host: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        piece = host.recv(size - len(data))
        if not piece:
            return None
        data += piece
    return bytes(data)


def _run_child(host: socket.socket, task: dict, base: int) -> tuple[str, bytes]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            run_program(task, writing, base)
        finally:
            os._exit(70)
    os.close(writing)
    ready = select.poll()
    ready.register(reading, select.POLLIN)
    ready.register(host, select.POLLHUP)
    deadline = time.monotonic() + task["seconds"]
    reply, end = bytearray(), None
    while end is None:
        events = dict(ready.poll(max(0, (deadline - time.monotonic()) * 1_000)))
        if reading in events:
            piece = os.read(reading, 65_536)
            reply += piece
            end = "overflow" if len(reply) > MAX_REPLY_BYTES else None if piece else "ended"
        elif host.fileno() in events:
            end = "host gone"
        if end is None and time.monotonic() >= deadline:
            end = "timeout"
    os.close(reading)
    # The child may have closed the pipe and be still running. Its process id is not reused before `waitpid`.
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if end == "host gone":
        os._exit(0)
    if end == "ended" and not reply and os.WIFSIGNALED(status):
        end = signal.Signals(os.WTERMSIG(status)).name
    return end, bytes(reply) if end == "ended" else b""


# ------------------------------------------------------------------------------------------------------------- child


def run_program(task: dict, pipe: int, base: int) -> None:
    """Confine this process irrevocably, then run the program and write its report to the pipe."""
    seccomp.die_with_parent()
    os.dup2(pipe, 3)
    os.closerange(4, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    seconds = int(task["seconds"]) + 2
    for limit, value in (
        (resource.RLIMIT_AS, base + task["memory"]),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    try:
        seccomp.confine()
    except OSError as failure:
        report = {"status": "unsupported", "error": f"the kernel refuses the seccomp filter: {failure}"}
        os.write(3, json.dumps(report).encode())
        return
    os.write(3, _report(task))


def _report(task: dict) -> bytes:
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    output = sys.stdout = _Output(task["stdout"])
    sys.stderr = _Output(0)
    random.seed(0)  # forking has reseeded it
    try:
        status, value, kind, error = _run(task, main.__dict__)
    except BaseException as failure:
        # The traceback and the namespace may hold all available memory.
        failure.__traceback__ = None
        main.__dict__.clear()
        status, error = _failure(failure)
        value = kind = None
    try:
        text = output.text.getvalue()
        report = {"status": status, "value": value, "type": kind, "error": error}
        return json.dumps({**report, "stdout": text, "complete": output.complete}, allow_nan=False).encode()
    except MemoryError:
        return b'{"status": "memory", "error": "MemoryError"}'


def _run(task: dict, namespace: dict) -> tuple[str, object, str | None, str | None]:
    value = None
    try:
        exec(compile(task["body"], "program.py", "exec", dont_inherit=True), namespace)
        for expression in task["expressions"]:
            value = eval(compile(f"({expression}\n)", "program.py", "eval", dont_inherit=True), namespace)
            if value is not None:
                break
    except SystemExit as end:
        if end.code not in (None, 0):
            raise
        # No more code is run, but an answer that was assigned before counts.
        value = next((namespace[name] for name in task["expressions"] if namespace.get(name) is not None), None)
    try:
        return "ok", to_json(value, _simplify), type(value).__name__, None
    except NoAnswerError as failure:
        return "no_result", None, None, str(failure)


def _failure(failure: BaseException) -> tuple[str, str]:
    name = type(failure).__name__
    try:
        error = f"{name}: {failure}" if str(failure) else name
    except BaseException:
        error = name
    if isinstance(failure, MemoryError):
        return "memory", error[:500]
    return "unsupported" if isinstance(failure, ModuleNotFoundError) else "error", error[:500]


class _Output(io.TextIOBase):
    """Collects the output of a program, up to a number of characters."""

    def __init__(self, limit: int):
        self.limit = limit
        self.text = io.StringIO()
        self.complete = True

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        room = self.limit - self.text.tell()
        self.complete = self.complete and len(text) <= room
        if room > 0:
            self.text.write(text[:room])
        return len(text)


def _simplify(value: object) -> object:
    """Convert numbers and arrays of numpy, mpmath and sympy to built-in types or text."""
    library = type(value).__module__.partition(".")[0]
    if library == "numpy":
        import numpy

        if isinstance(value, numpy.ndarray):
            if value.size > MAX_ITEMS:
                raise NoAnswerError(f"the result has more than {MAX_ITEMS:,} items")
            return value.tolist()
        return value.item() if isinstance(value, numpy.generic) else value
    if library == "mpmath":
        import mpmath

        return float(value) if isinstance(value, mpmath.mpf) else value
    if library == "sympy":
        import sympy

        if isinstance(value, sympy.logic.boolalg.BooleanAtom):
            return bool(value)
        if not isinstance(value, sympy.Basic):
            return value
        if value in (sympy.oo, -sympy.oo):
            return "inf" if value == sympy.oo else "-inf"
        if value is sympy.zoo:
            return "nan"
        if value.is_Rational:
            return Fraction(int(value.p), int(value.q))
        if not isinstance(value, sympy.Expr) or not value.is_number:
            return str(value)
        if value.is_real is False:
            return str(complex(value)).strip("()")
        number = float(value)
        return repr(number) if 0 < abs(number) < float("inf") or value.is_zero else str(value.evalf(15))
    return value


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
