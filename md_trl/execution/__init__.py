r"""Run programs that a model wrote.

```python
>>> from md_trl.execution import Executor, Limits

>>> with Executor(limits=Limits(seconds=2.0, memory_mb=256)) as executor:
...     results = executor.run_many(["answer = 6 * 7", "print(1 / 0)"])
>>> [(result.status, result.value) for result in results]
[('ok', 42), ('error', None)]
```

Two engines run them, and no program ever meets `exec` in this process:

- **Monty** ([github.com/pydantic/monty](https://github.com/pydantic/monty)), a Python interpreter written in Rust, in
  worker processes of its own. It has no files, sockets, processes, environment or imports from the host. It knows a
  part of Python.
- **The jail**, for what Monty lacks (numpy, sympy, fractions, classes, generators, `try`): a warm CPython forks a
  child for every program. Before the program starts, the child closes all descriptors but its result pipe, gets hard
  limits, and takes a seccomp filter for good: the kernel then refuses to open, connect, fork, execute, signal or trace
  anything. It was started with `python -I` and no environment (but `LD_LIBRARY_PATH`, without which some builds of
  Python do not start), so that no secret of the host is in its memory. If the host is root the jail becomes nobody; it
  leaves the host's network where the kernel lets it. A module that was not loaded beforehand does not exist there.
  Where there is no seccomp (macOS) there is no jail: the result is `unsupported`.

What this covers: reading, changing or leaking anything of the machine; starting processes or threads that outlive the
program; running on, filling memory or the output; a trap for the next program (each starts from nothing); results that
are forged or too large (a child writes JSON, which is checked, and never pickle).

What it does not cover: a bug in the Linux kernel's few system calls that a computation needs, or in Monty, which runs
with the rights of its user and no filter. What a program can learn from timing. That programs slow the machine down:
each may run for its time limit, and there is one worker more than processors, so N endless programs take at least `N *
seconds / (processors + 1)`, whatever else is done. A program may also write its own result as it likes: that is as
good as computing it.

`sleep` takes no time, and a program that draws random numbers draws the same ones every time.
"""

from .executor import Executor
from .results import Limits, Result


__all__ = ["Executor", "Limits", "Result"]
