"""[`Executor`]: many programs, each distinct one run once, in a pool of workers."""

from __future__ import annotations

import os
import queue
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from tqdm.auto import tqdm

from ..errors import InputError
from . import monty
from .cache import Cache
from .jail import JailEngine
from .monty import MontyEngine
from .programs import NotAProgram, prepare
from .results import LOST, Limits, Result


ENGINES = ("auto", "monty", "jail")
# Errors of a program in Monty that may be Monty's own: it may lack a method, an operator or a format that the program
# rightly uses.
DOUBTFUL = ("AttributeError:", "TypeError:", "ValueError:", "SyntaxError:", "SystemExit", LOST)


class Executor:
    r"""
    Runs programs that a model wrote. Use it as a context manager, in any thread or process.

    Args:
        engine (`str`, *optional*, defaults to `"auto"`):
            - `"monty"`: a sandboxed interpreter of a part of Python; what else a program needs is `unsupported`.
            - `"jail"`: CPython in a confined process, with its standard library, numpy and sympy. Linux only.
            - `"auto"`: Monty, and the jail for the programs that Monty cannot run. In a fork of a process that has
              used Monty, such as a worker of a DataLoader, the jail runs all.
        limits ([`Limits`], *optional*):
            What one program may use.
        cache (`str` or `Path`, *optional*):
            SQLite file that keeps results from run to run, by program text, engine and limits. It may be a thought
            store's own file.

    Examples:

    ```python
    >>> from md_trl.execution import Executor

    >>> with Executor() as executor:
    ...     executor.run_many(["def solution():\n    return 29 * 7"])[0].value
    203
    ```
    """

    def __init__(self, engine: str = "auto", limits: Limits | None = None, cache: str | Path | None = None):
        if engine not in ENGINES:
            raise InputError(f"Unknown engine {engine!r}. Choose one of {', '.join(ENGINES)}.")
        self.engine = engine
        self.limits = limits or Limits()
        self.cache = Cache(cache, engine, self.limits) if cache else None
        # One worker more than processors: it goes on while others run into their time limit.
        self._workers = (os.cpu_count() or 1) + 1
        self._results: dict[str, Result] = {}
        self._process: int | None = None

    def __enter__(self) -> Executor:
        self._monty, self._jail = None, JailEngine(self.limits)
        if self.engine != "jail" and monty.is_usable():
            self._monty = MontyEngine(self.limits, self._workers).__enter__()
        elif self.engine == "monty":
            raise RuntimeError(
                "Monty cannot run in a fork of a process that has used it. Choose engine='auto', which takes the jail "
                "there, or start the process with 'spawn'."
            )
        self._process = os.getpid()
        return self

    def __exit__(self, *exception) -> None:
        if self._process != os.getpid():  # a fork of the process that has the workers
            return
        self._process = None
        self._jail.__exit__(*exception)
        if self._monty:
            self._monty.__exit__(*exception)

    def run_many(self, programs: Iterable[str], *, progress: bool = False) -> list[Result]:
        r"""
        Run programs and return their results in the same order.

        Equal texts run once: sampled programs repeat each other, and an executor remembers what it has run.

        Args:
            programs (`Iterable[str]`):
                Texts as the model wrote them; [`~md_trl.execution.programs.prepare`] finds the program and its answer.
            progress (`bool`, *optional*, defaults to `False`):
                Whether to show a progress bar.
        """
        if self._process is None:
            raise RuntimeError("The executor is not running. Use it as `with Executor() as executor:`.")
        if self._process != os.getpid():
            # A fork, such as a worker of a DataLoader: the old workers are the parent's, so it gets its own. The old
            # engines are kept, for to forget them is to end them.
            self._of_parents = (self._monty, self._jail)
            self.__enter__()
        programs = list(programs)
        pending = [text for text in dict.fromkeys(programs) if text not in self._results]
        if self.cache and pending:
            self._results.update(self.cache.read(pending))
            pending = [text for text in pending if text not in self._results]
        if pending:
            self._run_all(pending, progress)
        return [self._results[text] for text in programs]

    def _run_all(self, pending: list[str], progress: bool) -> None:
        todo, done = queue.SimpleQueue(), queue.SimpleQueue()
        for text in pending:
            todo.put(text)

        def work() -> None:
            while not todo.empty():
                try:
                    text = todo.get_nowait()
                except queue.Empty:
                    return
                self._results[text] = self._run(text)
                done.put(text)

        bar = tqdm(total=len(pending), desc="Programs", unit="program", disable=not progress)
        with bar, ThreadPoolExecutor(min(self._workers, len(pending))) as threads:
            running = [threads.submit(work) for _ in range(min(self._workers, len(pending)))]
            try:
                while running:
                    finished, running = wait(running, timeout=0.2)
                    self._keep(done, bar)
                    for thread in finished:
                        thread.result()
            finally:
                # After Ctrl-C or an error the threads end with the program they are at.
                while not todo.empty():
                    todo.get_nowait()
        self._keep(done, bar)

    def _keep(self, done: queue.SimpleQueue, bar: tqdm) -> None:
        texts = [done.get_nowait() for _ in range(done.qsize())]
        bar.update(len(texts))
        if self.cache:
            self.cache.write({text: self._results[text] for text in texts})

    def _run(self, text: str) -> Result:
        engine = self._monty or self._jail
        try:
            program = prepare(text)
        except NotAProgram as failure:
            return Result("error", error=str(failure), engine=engine.name)
        if engine is self._jail or self.engine == "auto" and program.needs:
            return self._jail.run(program)
        result = engine.run(program)
        doubtful = result.status == "error" and result.error.startswith(DOUBTFUL)
        if self.engine == "auto" and (doubtful or result.status == "unsupported"):
            confined = self._jail.run(program)
            return result if doubtful and confined.status == "unsupported" else confined
        return result
