"""Run programs that a model wrote, with one [`Result`] per program.

Each distinct text runs once, in a pool of workers.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..progress import progress_bar
from . import monty
from .cache import Cache
from .jail import JailEngine
from .monty import MAYBE_UNSUPPORTED, MontyEngine
from .programs import prepare
from .results import Limits, Result
from .source import InvalidProgramError


if TYPE_CHECKING:
    from tqdm.auto import tqdm


ENGINES = ("auto", "monty", "jail")
# Results that an executor with a cache keeps in memory, so that memory does not grow with the programs it runs
REMEMBERED = 100_000


class Executor:
    r"""
    Run programs that a model wrote, in a sandbox. Use it as a context manager, in any thread or process.

    Args:
        engine (`str`, *optional*, defaults to `"auto"`):
            Engine that runs the programs, one of

            - `"monty"`: a sandboxed interpreter of a subset of Python. Programs that need more are `unsupported`.
            - `"jail"`: CPython in a confined process, with its standard library, numpy and sympy. Linux only.
            - `"auto"`: Monty, and the jail for programs that Monty cannot run. In a fork of a process that has used
              Monty, such as a `DataLoader` worker, the jail runs all programs.
        limits ([`Limits`], *optional*):
            Resources that one program may use. Defaults to those of [`Limits`].
        cache (`str` or `Path`, *optional*):
            SQLite file that keeps results between runs, by program text, engine and limits. It belongs to the executor
            alone: [`~md_trl.execution.default_cache`] names the one beside a thought store. If not given, results are
            kept in memory only.

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
        # One worker more than processors, to go on while others wait for their time limit.
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
        if self._process != os.getpid():  # this is a fork of the process that owns the workers
            return
        self._process = None
        self._jail.__exit__(*exception)
        if self._monty:
            self._monty.__exit__(*exception)

    def run_many(self, programs: Iterable[str], *, progress: bool = False) -> list[Result]:
        r"""
        Run programs and return their results.

        Equal texts run only once, because sampled programs are often the same. An executor remembers all results, in
        memory or in its cache.

        Args:
            programs (`Iterable[str]`):
                Texts as the model wrote them. [`~md_trl.execution.programs.prepare`] finds the program and its answer.
            progress (`bool`, *optional*, defaults to `False`):
                Whether to show a progress bar.

        Returns:
            `list[Result]`: One result per text, in the same order.
        """
        if self._process is None:
            raise RuntimeError("The executor is not running. Use it as `with Executor() as executor:`.")
        if self._process != os.getpid():
            # This is a fork, such as a DataLoader worker. Its parent owns the workers, so it starts its own. The old
            # engines are kept, because deleting them would stop the parent's workers.
            self._parents_engines = (self._monty, self._jail)
            self.__enter__()
        programs = list(programs)
        if self.cache and len(self._results) > REMEMBERED:
            self._results.clear()
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

        bar = progress_bar(show=progress, total=len(pending), desc="Programs", unit="program")
        with bar, ThreadPoolExecutor(min(self._workers, len(pending))) as threads:
            running = [threads.submit(work) for _ in range(min(self._workers, len(pending)))]
            try:
                while running:
                    finished, running = wait(running, timeout=0.2)
                    self._record(done, bar)
                    for thread in finished:
                        thread.result()
            finally:
                # After Ctrl-C or an error, each thread finishes its current program and ends.
                while not todo.empty():
                    todo.get_nowait()
        self._record(done, bar)

    def _record(self, done: queue.SimpleQueue, bar: tqdm) -> None:
        texts = [done.get_nowait() for _ in range(done.qsize())]
        bar.update(len(texts))
        if self.cache:
            self.cache.write({text: self._results[text] for text in texts})

    def _run(self, text: str) -> Result:
        engine = self._monty or self._jail
        try:
            program = prepare(text)
        except InvalidProgramError as failure:
            return Result("error", error=str(failure), engine=engine.name)
        if engine is self._jail or self.engine == "auto" and program.needs:
            return self._jail.run(program)
        result = engine.run(program)
        maybe_unsupported = result.status == "error" and result.error.startswith(MAYBE_UNSUPPORTED)
        if self.engine == "auto" and (maybe_unsupported or result.status == "unsupported"):
            second = self._jail.run(program)
            return result if maybe_unsupported and second.status == "unsupported" else second
        return result
