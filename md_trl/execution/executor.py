"""[`Executor`]: many programs, each distinct one run once, in a pool of workers."""

from __future__ import annotations

import os
from collections.abc import Iterable
from multiprocessing.pool import ThreadPool

from tqdm.auto import tqdm

from .monty import MontyEngine
from .programs import NotAProgram, prepare
from .results import Limits, Result


ENGINES = ("auto", "monty", "jail")


class Executor:
    r"""
    Runs programs that a model wrote. Use it as a context manager.

    Args:
        engine (`str`, *optional*, defaults to `"auto"`):
            `monty`, a sandboxed interpreter of a part of Python. `auto` is `monty`. `jail`, a confined CPython, is not
            part of this version.
        limits ([`Limits`], *optional*):
            What one program may use.

    Examples:

    ```python
    >>> from md_trl.execution import Executor

    >>> with Executor() as executor:
    ...     executor.run_many(["def solution():\n    return 29 * 7"])[0].value
    203
    ```
    """

    def __init__(self, engine: str = "auto", limits: Limits | None = None):
        if engine not in ENGINES:
            raise ValueError(f"Unknown engine {engine!r}. Choose one of {', '.join(ENGINES)}.")
        if engine == "jail":
            raise NotImplementedError("The engine 'jail' is not part of this version. Use engine='monty'.")
        self.engine = "monty"
        self.limits = limits or Limits()
        # One worker more than processors: it goes on while others run into their time limit.
        self._workers = (os.cpu_count() or 1) + 1
        self._engine: MontyEngine | None = None
        self._results: dict[str, Result] = {}

    def __enter__(self) -> Executor:
        engine = MontyEngine(self.limits, self._workers)
        engine.__enter__()
        self._engine = engine
        return self

    def __exit__(self, *exception) -> None:
        engine, self._engine = self._engine, None
        engine.__exit__(*exception)

    def run_many(self, programs: Iterable[str], progress: bool = False) -> list[Result]:
        r"""
        Run programs and return their results in the same order.

        Equal texts run once: sampled programs repeat each other, and an executor remembers what it has run.

        Args:
            programs (`Iterable[str]`):
                Texts as the model wrote them; [`~md_trl.execution.programs.prepare`] finds the program and its answer.
            progress (`bool`, *optional*, defaults to `False`):
                Whether to show a progress bar.
        """
        if self._engine is None:
            raise RuntimeError("The executor is not running. Use it as `with Executor() as executor:`.")
        programs = list(programs)
        pending = [text for text in dict.fromkeys(programs) if text not in self._results]
        if pending:
            bar = tqdm(total=len(pending), desc="Programs", unit="program", disable=not progress)
            with bar, ThreadPool(min(self._workers, len(pending))) as threads:
                for text, result in threads.imap_unordered(self._run, pending):
                    self._results[text] = result
                    bar.update()
        return [self._results[text] for text in programs]

    def _run(self, text: str) -> tuple[str, Result]:
        try:
            program = prepare(text)
        except NotAProgram as failure:
            return text, Result("error", error=str(failure))
        return text, self._engine.run(program)
