"""The jail engine runs programs in CPython processes that can compute and do nothing else.

This is the host's side; `jail_server.py` is the jail's own process.
"""

from __future__ import annotations

import json
import os
import queue
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import NoReturn

from . import seccomp
from .json_values import NoAnswerError, printed_answer, to_json
from .programs import Program
from .results import WORKER_LOST, Limits, Result


_SERVER_FILE = Path(__file__).with_name("jail_server.py")
_STATUSES = ("ok", "error", "memory", "unsupported", "no_result")
# A worker replies when a program's time is up. One that does not reply within this many seconds after that is lost.
_REPLY_GRACE = 10.0
_START_TIMEOUT = 120.0
_SCIENTIFIC = re.compile("numpy|sympy|mpmath")


class JailEngine:
    r"""
    CPython processes that fork a confined child for every program. Use it as a context manager. `run` may be called
    from several threads.

    There are two server processes, each started by its first program. One has preloaded numpy and sympy, which makes a
    fork twice as expensive, and runs the programs that name them.

    Args:
        limits ([`Limits`]):
            Resources that one program may use.
    """

    name = "jail"

    def __init__(self, limits: Limits):
        self._plain, self._scientific = _Server(limits, "plain"), _Server(limits, "scientific")

    def __enter__(self) -> JailEngine:
        return self

    def __exit__(self, *exception) -> None:
        self._plain.stop()
        self._scientific.stop()

    def run(self, program: Program) -> Result:
        """Run one program in its own child process."""
        if _SCIENTIFIC.search(program.body):
            return self._scientific.run(program)
        result = self._plain.run(program)
        # numpy and sympy import more of the standard library
        return self._scientific.run(program) if result.status == "unsupported" else result


class _Server:
    """A server process and its workers. `modules` says which it preloads, `"plain"` or `"scientific"`."""

    name = JailEngine.name

    def __init__(self, limits: Limits, modules: str):
        self.limits = limits
        self.modules = modules
        self._process: subprocess.Popen | None = None
        self._control: socket.socket | None = None
        self._unsupported = seccomp.unavailable_reason()
        self._starting = threading.Lock()
        self._idle: queue.LifoQueue[socket.socket] = queue.LifoQueue()

    def stop(self) -> None:
        with self._starting:
            self._stop()

    def run(self, program: Program) -> Result:
        """Run one program in its own child process, and once more if its worker is lost."""
        for attempt in range(2):
            if self._unsupported is None:
                self._start()
            if self._unsupported is not None:
                return Result("unsupported", error=f"there is no jail here: {self._unsupported}", engine=self.name)
            try:
                return self._run(program, new_worker=attempt > 0)
            except OSError as failure:  # something else killed the worker, for example because memory ran out
                if attempt:
                    error = f"{WORKER_LOST}: {failure or type(failure).__name__}"
                    return Result("error", error=error, engine=self.name)

    # --------------------------------------------------------------------------------------------------- the server

    def _start(self) -> None:
        with self._starting:
            if self._process is not None and self._process.poll() is None:
                return
            self._stop()
            self._control, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", str(_SERVER_FILE), str(theirs.fileno()), self.modules],
                    # Some builds of Python need it to find their own libraries.
                    env={name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
                    | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            self._control.settimeout(_START_TIMEOUT)
            greeting = self._control.recv(1_000)
            if not greeting:
                self._process.wait()
                raise RuntimeError(
                    f"The jail ended with exit code {self._process.returncode} when it started. Run "
                    f"`{sys.executable} -I {_SERVER_FILE} 0 {self.modules}` to see why, or use engine='monty'."
                )
            self._unsupported = json.loads(greeting)["unsupported"]

    def _stop(self) -> None:
        while not self._idle.empty():
            self._idle.get_nowait().close()
        if self._process is not None:
            self._control.close()
            self._process.kill()  # the kernel then kills its workers and their children
            self._process.wait()
            self._process = None

    # ------------------------------------------------------------------------------------------------ one program

    def _run(self, program: Program, new_worker: bool) -> Result:
        try:
            worker = self._new_worker() if new_worker else self._idle.get_nowait()
        except queue.Empty:
            worker = self._new_worker()
        task = {
            "body": program.body,
            "expressions": program.expressions,
            "seconds": self.limits.seconds,
            "memory": int(self.limits.memory_mb * 2**20),
            "stdout": self.limits.stdout_chars,
        }
        try:
            task = json.dumps(task).encode()
            worker.sendall(len(task).to_bytes(4, "big") + task)
            reply = _receive(worker, int.from_bytes(_receive(worker, 4), "big"))
        except BaseException:
            worker.close()
            raise
        self._idle.put(worker)
        return self._result(reply)

    def _new_worker(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs, self._starting:
            try:
                socket.send_fds(self._control, [b"+"], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        ours.settimeout(self.limits.seconds + _REPLY_GRACE)
        return ours

    def _result(self, reply: bytes) -> Result:
        verdict, _, report = reply.partition(b"\n")
        verdict = json.loads(verdict)
        end, seconds = verdict["end"], round(verdict["seconds"], 6)
        if end == "timeout":
            error = f"TimeoutError: the program ran for more than {self.limits.seconds} seconds"
            return Result("timeout", error=error, seconds=seconds, engine=self.name)
        if end == "overflow":
            error = "the program wrote more than 1 MB of results"
            return Result("no_result", error=error, seconds=seconds, engine=self.name)
        if end not in ("ended", "SIGKILL"):  # the worker kills a child that closed its pipe and is still running
            return Result("error", error=f"the program was ended by {end}", seconds=seconds, engine=self.name)
        status, value, kind, error, stdout = self._checked(report)
        return Result(status, value, kind, error, stdout, seconds, self.name)

    def _checked(self, report: bytes) -> tuple:
        """Check the child's report, which a hostile program may have written."""
        try:
            report = json.loads(report, parse_constant=_refuse_constant)
            status, kind, error = report["status"], report.get("type"), report.get("error")
            if status not in _STATUSES or not isinstance(kind, str | None) or not isinstance(error, str | None):
                raise ValueError(f"status {status!r}")
            stdout = to_json(str(report.get("stdout", ""))[: self.limits.stdout_chars])
            kind, error = to_json(kind and kind[:100]), to_json(error and error[:500])
            if status != "ok":
                return status, None, None, error or status, stdout
            value = to_json(report["value"])
            if value is None:
                value, kind = printed_answer(stdout, report.get("complete") is True), "str"
            return "ok", value, kind, None, stdout
        except NoAnswerError as failure:
            return "no_result", None, None, str(failure), ""
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return "error", None, None, "the program ended without a result", ""


def _receive(worker: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = worker.recv(size - len(data))
        if not piece:
            raise ConnectionError("it ended")
        data += piece
    return bytes(data)


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not strict JSON")
