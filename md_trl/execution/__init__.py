r"""Run programs that a model wrote.

```python
>>> from md_trl.execution import Executor, Limits

>>> with Executor(limits=Limits(seconds=2.0, memory_mb=256)) as executor:
...     results = executor.run_many(["answer = 6 * 7", "print(1 / 0)"])
>>> [(result.status, result.value) for result in results]
[('ok', 42), ('error', None)]
```

What this covers: programs are interpreted by [Monty](https://github.com/pydantic/monty), a Python interpreter in Rust,
in worker processes of its own. It has no way to open files, sockets or processes, to read the environment, or to
import anything from the host; time, memory, recursion, output and the size of the result are bounded, and a worker
that ignores its limits is killed and replaced. Each program starts from nothing: none can prepare a trap for the next.

What it does not cover: a bug in Monty itself that would let a program take over its worker process, which runs with
the rights of its user. And Monty knows a part of Python: a program that needs more (`yield`, inheritance, numpy,
sympy, fractions, ...) gets the status `unsupported`. Nothing is ever handed to `exec` in this process.
"""

from .executor import Executor
from .results import Limits, Result


__all__ = ["Executor", "Limits", "Result"]
