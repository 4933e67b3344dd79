r"""Run untrusted code: programs that a model wrote, with one [`Result`] per program.

```python
>>> from md_trl.execution import Executor, Limits

>>> with Executor(limits=Limits(seconds=2.0, memory_mb=256)) as executor:
...     results = executor.run_many(["answer = 6 * 7", "print(1 / 0)"])
>>> [(result.status, result.value) for result in results]
[('ok', 42), ('error', None)]
```

Programs never run in this process. Two engines run them:

- **Monty** ([github.com/pydantic/monty](https://github.com/pydantic/monty)), an interpreter for a subset of Python,
  written in Rust. It runs in worker processes and gives programs no access to files, sockets, processes, the
  environment or modules of the host.
- **The jail**, for programs that need more (numpy, sympy, fractions, classes, generators, `try`). A CPython process
  with preloaded modules forks a child for every program. Before the program starts, the child closes all file
  descriptors but its result pipe, sets hard resource limits, and uses seccomp to block every system call that
  computation does not need, such as those that open files, connect, start processes, send signals or trace. This
  cannot be undone. The process was started with `python -I` and without an environment (except `LD_LIBRARY_PATH`,
  which some builds of Python need to start), so no secret of the host is in its memory. It leaves the host's network
  where the kernel allows it, and becomes the user `nobody` if the host is root. Modules that were not preloaded cannot
  be imported. Where there is no seccomp (macOS), there is no jail and the result is `unsupported`.

The sandbox protects against programs that read, change or leak data of the machine, start processes or threads that
outlive them, run forever, exhaust memory or flood the output, tamper with later programs (each starts from a clean
state), or forge results (a child writes JSON, never pickle, and the host checks it).

It does not protect against bugs in the few Linux system calls that computation needs, or in Monty, which runs with the
rights of its user and without a filter. Nor does it hide timing, or keep programs from slowing the machine down: every
program may run up to its time limit, and there is one worker more than processors, so N endless programs take at least
`N * seconds / (processors + 1)`. A program can also report any result it likes, which is no different from computing
it.

`sleep` returns at once, and random numbers are the same in every run.
"""

from .cache import default_cache
from .executor import Executor
from .results import Limits, Result


__all__ = ["Executor", "Limits", "Result", "default_cache"]
