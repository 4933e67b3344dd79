"""The jail: CPython that can compute and do nothing else. Its other half is `jail_server.py`."""

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
from .programs import Program, printed_answer
from .results import LOST, Limits, Result
from .values import NoAnswer, to_json


_SERVER = Path(__file__).with_name("jail_server.py")
_STATUSES = ("ok", "error", "memory", "unsupported", "no_result")
# A worker is our own code and answers when a program's time is up. One that does not within this time is lost.
_PATIENCE = 10.0
_START_SECONDS = 120.0
_SCIENTIFIC = re.compile("numpy|sympy|mpmath")


class JailEngine:
    r"""
    Warm CPythons that fork a confined child for every program. Use it as a context manager; `run` may be called from
    several threads. One has numpy and sympy, which make a fork twice as dear; it serves the programs that name them.
    Each starts with its first program.

    Args:
        limits ([`Limits`]):
            What one program may use.
    """

    name = "jail"

    def __init__(self, limits: Limits):
        self._plain, self._scientific = _Jail(limits, "plain"), _Jail(limits, "scientific")

    def __enter__(self) -> JailEngine:
        return self

    def __exit__(self, *exception) -> None:
        self._plain.stop()
        self._scientific.stop()

    def run(self, program: Program) -> Result:
        """Run one program in a child of its own."""
        if _SCIENTIFIC.search(program.body):
            return self._scientific.run(program)
        result = self._plain.run(program)
        # They bring other modules of the standard library along
        return self._scientific.run(program) if result.status == "unsupported" else result


class _Jail:
    """A server with its workers; `modules` is `"plain"` or `"scientific"`."""

    name = JailEngine.name

    def __init__(self, limits: Limits, modules: str):
        self.limits = limits
        self.modules = modules
        self._server: subprocess.Popen | None = None
        self._control: socket.socket | None = None
        self._unsupported = seccomp.reason_against()
        self._starting = threading.Lock()
        self._idle: queue.LifoQueue[socket.socket] = queue.LifoQueue()

    def stop(self) -> None:
        with self._starting:
            self._stop()

    def run(self, program: Program) -> Result:
        """Run one program in a child of its own."""
        for attempt in range(2):
            if self._unsupported is None:
                self._start()
            if self._unsupported is not None:
                return Result("unsupported", error=f"there is no jail here: {self._unsupported}", engine=self.name)
            try:
                return self._ask(program, new=attempt > 0)
            except OSError as failure:  # the worker was killed by someone else, say for want of memory
                if attempt:
                    error = f"{LOST}: {failure or type(failure).__name__}"
                    return Result("error", error=error, engine=self.name)

    # --------------------------------------------------------------------------------------------------- the server

    def _start(self) -> None:
        with self._starting:
            if self._server is not None and self._server.poll() is None:
                return
            self._stop()
            self._control, theirs = socket.socketpair()
            with theirs:
                self._server = subprocess.Popen(
                    [sys.executable, "-I", str(_SERVER), str(theirs.fileno()), self.modules],
                    # Where Python's own libraries are, for builds that need it.
                    env={name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
                    | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            self._control.settimeout(_START_SECONDS)
            greeting = self._control.recv(1_000)
            if not greeting:
                self._server.wait()
                raise RuntimeError(
                    f"The jail ended with exit code {self._server.returncode} when it started. Run "
                    f"`{sys.executable} -I {_SERVER} 0 {self.modules}` to see why, or use engine='monty'."
                )
            self._unsupported = json.loads(greeting)["unsupported"]

    def _stop(self) -> None:
        while not self._idle.empty():
            self._idle.get_nowait().close()
        if self._server is not None:
            self._control.close()
            self._server.kill()  # the kernel ends its workers, and their children
            self._server.wait()
            self._server = None

    # ------------------------------------------------------------------------------------------------ one program

    def _ask(self, program: Program, new: bool) -> Result:
        try:
            worker = self._new_worker() if new else self._idle.get_nowait()
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
        return self._read(reply)

    def _new_worker(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs, self._starting:
            try:
                socket.send_fds(self._control, [b"+"], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        ours.settimeout(self.limits.seconds + _PATIENCE)
        return ours

    def _read(self, reply: bytes) -> Result:
        verdict, _, report = reply.partition(b"\n")
        verdict = json.loads(verdict)
        end, seconds = verdict["end"], round(verdict["seconds"], 6)
        if end == "timeout":
            error = f"TimeoutError: the program ran for more than {self.limits.seconds} seconds"
            return Result("timeout", error=error, seconds=seconds, engine=self.name)
        if end == "flood":
            error = "the program wrote more than 1 MB of results"
            return Result("no_result", error=error, seconds=seconds, engine=self.name)
        if end not in ("ended", "SIGKILL"):  # we kill what has closed its pipe and lives on
            return Result("error", error=f"the program was ended by {end}", seconds=seconds, engine=self.name)
        status, value, kind, error, stdout = self._check(report)
        return Result(status, value, kind, error, stdout, seconds, self.name)

    def _check(self, report: bytes) -> tuple:
        """What the child wrote. A hostile program may have written it, so only its own result is taken from it."""
        try:
            report = json.loads(report, parse_constant=_refuse)
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
        except NoAnswer as failure:
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


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no strict JSON")
