import asyncio
import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from md_trl.execution import Executor, Limits, default_cache, seccomp


pytestmark = pytest.mark.skipif(seccomp.unavailable_reason() is not None, reason="the jail needs seccomp")

ENDLESS = "while True:\n    pass  # {}"
VALUES = {
    "fraction": ("from fractions import Fraction\nanswer = Fraction(2, 6)", "1/3", "Fraction"),
    "statistics": ("import statistics\nanswer = statistics.mean([1, 2, 6])", 3, "int"),
    "numpy int": ("import numpy as np\nanswer = np.int64(5)", 5, "int64"),
    "numpy float": ("import numpy as np\nanswer = np.mean([1, 2])", 1.5, "float64"),
    "numpy nan": ("import numpy as np\nanswer = np.float64('nan')", "nan", "float64"),
    "numpy bool": ("import numpy as np\nanswer = np.bool_(True)", True, "bool"),
    "numpy array": ("import numpy as np\nanswer = np.linalg.solve([[2, 0], [0, 4]], [2, 2])", [1.0, 0.5], "ndarray"),
    "numpy in a list": ("import numpy as np\nanswer = [np.int8(1), (np.float32(0.5),)]", [1, [0.5]], "list"),
    "sympy Integer": ("import sympy\nanswer = sympy.Integer(10) ** 30", "1" + "0" * 30, "Integer"),
    "sympy Rational": ("from sympy import Rational\nanswer = Rational(2, 6)", "1/3", "Rational"),
    "sympy Float": ("from sympy import Float\nanswer = Float('2.5')", "2.5", "Float"),
    "sympy root": ("from sympy import sqrt\nanswer = sqrt(2)", "1.4142135623730951", "Pow"),
    "sympy sum": ("import sympy\nanswer = sympy.pi + 1", "4.141592653589793", "Add"),
    "sympy infinity": ("import sympy\nanswer = -sympy.oo", "-inf", "NegativeInfinity"),
    "sympy nan": ("import sympy\nanswer = sympy.nan", "nan", "NaN"),
    "sympy large Integer": ("import sympy\nanswer = -sympy.Integer(10) ** 19_999", "-1" + "0" * 19_999, "Integer"),
    "sympy large Rational": ("import sympy\nanswer = 1 / sympy.Integer(10) ** 5000", "1/1" + "0" * 5000, "Rational"),
    "sympy small Float": ("import sympy\nanswer = sympy.Float('2.5e-400')", "2.50000000000000e-400", "Float"),
    "sympy division by zero": ("import sympy\nanswer = sympy.Integer(1) / 0", "nan", "ComplexInfinity"),
    "sympy truth": ("import sympy\nanswer = sympy.true", True, "BooleanTrue"),
    "sympy complex": ("import sympy\nanswer = 1 + 2 * sympy.I", "1+2j", "Add"),
    "sympy roots": ("import sympy\nx = sympy.Symbol('x')\nanswer = sympy.solve(x**2 - 9, x)", ["-3", "3"], "list"),
    "sympy system": (
        "from sympy import *\nx, y = symbols('x y')\nanswer = solve([Eq(x + y, 3), Eq(x - y, 1)], [x, y])[x]",
        "2",
        "Integer",
    ),
    "subclass of int": ("class Apples(int):\n    pass\nanswer = Apples(5)", 5, "Apples"),
    "named tuple": ("from collections import namedtuple\nanswer = namedtuple('P', 'x y')(1, 2)", [1, 2], "P"),
    "yield": ("def f():\n    yield 5\nanswer = sum(f())", 5, "int"),
    "sum of thousands printed": ("x = 1\nprint(" + "x + " * 2000 + "x)", "2001", "str"),
    "large int printed": ("print(10 ** 5000)", "1" + "0" * 5000, "int"),
    "exit after naming": ("answer = 5\nexit()\nanswer = 6", 5, "int"),
    "exit after printing": ("print(7)\nexit()", "7", "str"),
    "half a character": ("answer = 'x' + chr(0xd800)", "x?", "str"),
}
FAILURES = {
    "module of the machine": ("import pytest", "unsupported", "No module named 'pytest'"),
    "module that nobody has": ("import no_such_module", "unsupported", "No module named 'no_such_module'"),
    "raises": ("answer = 1 / 0", "error", "ZeroDivisionError: division by zero"),
    "raises nothing to say": ("raise ValueError", "error", "ValueError"),
    "file": ("open('/etc/passwd')", "error", "PermissionError"),
    "memory": ("answer = 'a' * 10 ** 10", "memory", "MemoryError"),
    "endless": (ENDLESS, "timeout", "more than 1.0 seconds"),
    "ends its process": ("import os\nos._exit(3)", "error", "without a result"),
    "crashes": ("import ctypes\nctypes.string_at(0)", "error", "SIGSEGV"),
    "writes too much": ("import os\nwhile True:\n    os.write(3, b'x' * 10 ** 5)", "no_result", "1 MB"),
    "symbol in a container": ("answer = [object()]", "no_result", "of type object"),
    "large array": ("import numpy\nanswer = numpy.ones(2000)", "no_result", "1,000 items"),
    "enormous int": ("answer = 1 << 10 ** 6", "no_result", "100,000 digits"),
}
# Programs that Monty gets wrong, or whose missing features it reports as an error of the program.
MONTY_GETS_WRONG = {
    "an iterator is read once": ("m = map(int, ['1', '2'])\nanswer = [sum(m), sum(m)]", [3, 0]),
    "a generator is an iterator": ("g = (n for n in [1, 2])\nanswer = next(g)", 1),
    "order of the program's own": (
        "class A:\n    def __init__(self, n):\n        self.n = n\n    def __lt__(self, other):\n"
        "        return self.n < other.n\nanswer = sorted([A(2), A(1)])[0].n",
        1,
    ),
    "hours without a zero": (
        "from datetime import datetime\nanswer = datetime.strptime('3:30 PM', '%I:%M %p').strftime('%H:%M')",
        "15:30",
    ),
    "raising the exit": ("print(5)\nraise SystemExit", "5"),
    "a method": ("answer = (5).bit_length()", 3),
    "imports that may fail": ("try:\n    import numpy\n    answer = 1\nexcept ImportError:\n    answer = 2", 1),
    "del": ("x = 5\nanswer = x\ndel x", 5),
}


def run(executor, program):
    return executor.run_many([program])[0]


def family():
    return psutil.Process().children(recursive=True)


@pytest.fixture(scope="module")
def jail():
    with Executor("jail", limits=Limits(seconds=1.0)) as executor:
        yield executor


@pytest.fixture(scope="module")
def auto():
    with Executor() as executor:
        yield executor


class TestResults:
    @pytest.mark.parametrize("kind", VALUES)
    def test_values_are_strict_json(self, jail, kind):
        program, expected, type_name = VALUES[kind]
        result = run(jail, program)
        assert (result.status, result.value, result.type, result.error) == ("ok", expected, type_name, None)
        assert result.engine == "jail" and result.seconds > 0
        json.dumps(result.value, allow_nan=False)

    @pytest.mark.parametrize("kind", FAILURES)
    def test_failures_give_the_reason(self, jail, kind):
        program, status, error = FAILURES[kind]
        result = run(jail, program)
        assert (result.status, result.value, result.type) == (status, None, None)
        assert error in result.error

    @pytest.mark.parametrize("kind", MONTY_GETS_WRONG)
    def test_auto_runs_programs_in_cpython_that_monty_may_get_wrong(self, auto, kind):
        program, expected = MONTY_GETS_WRONG[kind]
        result = run(auto, program)
        assert (result.value, result.engine) == (expected, "jail")

    def test_auto_runs_programs_in_monty_if_it_can(self, auto):
        results = auto.run_many(["answer = 5", "answer = 1 / 0", "answer = nothing"])
        assert [(result.status, result.engine) for result in results] == [
            ("ok", "monty"),
            ("error", "monty"),
            ("error", "monty"),
        ]

    def test_the_jail_runs_nothing_without_seccomp(self, monkeypatch):
        monkeypatch.setattr(seccomp.sys, "platform", "darwin")
        before = set(family())
        with Executor() as executor:
            known, unknown = executor.run_many(["answer = 5", "import numpy\nanswer = numpy.sum([5])"])
            assert (known.status, known.value) == ("ok", 5)
            assert unknown.status == "unsupported" and "no seccomp on darwin" in unknown.error
            assert {process.name() for process in set(family()) - before} == {"monty"}

    def test_the_jail_runs_nothing_if_the_kernel_refuses_the_filter(self):
        # A first filter refuses prctl(PR_SET_SECCOMP), so neither this process nor its children can install another.
        code = """
        import ctypes, os, struct
        from md_trl.execution import Executor
        prctl = {"x86_64": 157, "aarch64": 167}[os.uname().machine]
        code = [(0x20, 0, 0, 0), (0x15, 0, 2, prctl), (0x20, 0, 0, 16), (0x15, 1, 0, 22), (6, 0, 0, 0x7FFF0000)]
        code = b"".join(struct.pack("=HBBI", *i) for i in [*code, (6, 0, 0, 0x00050001)])
        class Program(ctypes.Structure):
            _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]
        libc = ctypes.CDLL(None)
        assert libc.prctl(38, 1, 0, 0, 0) == 0
        assert libc.prctl(22, 2, ctypes.byref(Program(len(code) // 8, code)), 0, 0) == 0
        with Executor("jail") as executor:
            [result] = executor.run_many(["answer = 5"])
        print(result.status, result.value, result.error)
        """
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
        assert done.stdout.startswith("unsupported None there is no jail here: the kernel refuses"), done.stderr


class TestWorkers:
    def test_dead_workers_are_replaced(self):
        before = psutil.Process().children()
        with Executor("jail", limits=Limits(seconds=30)) as executor:
            assert run(executor, "answer = 1").value == 1
            [server] = [process for process in psutil.Process().children() if process not in before]
            for process in [*server.children(), server]:
                process.kill()
                psutil.wait_procs([process], timeout=10)
                assert run(executor, f"answer = {process.pid}").value == process.pid

    def test_workers_killed_while_running_a_program_are_replaced(self):
        before = psutil.Process().children()
        programs = [f"answer = sum(range({n} * 10 ** 4))" for n in range(200)]
        with Executor("jail") as executor:
            with ThreadPoolExecutor(1) as thread:
                results = thread.submit(executor.run_many, programs)
                for _ in range(5):
                    time.sleep(0.1)
                    for server in set(psutil.Process().children()) - set(before):
                        for worker in server.children()[:1]:
                            worker.kill()
                results = results.result()
            lost = [result for result in results if result.status != "ok"]
            # A program is tried twice, so it takes two kills to lose it.
            assert len(lost) <= 2 and all("worker was lost" in result.error for result in lost)
            right = {sum(range(n * 10**4)) for n in range(200)}
            assert {result.value for result in results if result.status == "ok"} <= right
            assert run(executor, "answer = 7").value == 7

    def test_lost_monty_workers_are_replaced(self):
        before = set(family())
        with Executor("monty") as executor:
            assert run(executor, "answer = 1").value == 1
            for process in set(family()) - before:
                process.kill()
            assert [result.value for result in executor.run_many([f"answer = {n}" for n in range(20)])] == [*range(20)]

    def test_nothing_is_left_behind(self):
        descriptors, threads, before = set(os.listdir("/proc/self/fd")), threading.active_count(), set(family())
        for _ in range(2):
            with Executor(limits=Limits(seconds=0.3)) as executor:
                executor.run_many([f"import numpy\nanswer = {n}" for n in range(20)] + [ENDLESS + "\nimport numpy"])
                started = set(family()) - before
        _, alive = psutil.wait_procs(started, timeout=10)
        assert alive == [] and set(family()) == before
        assert set(os.listdir("/proc/self/fd")) <= descriptors
        assert threading.active_count() <= threads

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
    def test_an_interrupt_leaves_nothing_behind(self, number, tmp_path):
        code = f"""
        from md_trl.execution import Executor, Limits
        with Executor(limits=Limits(seconds=1.0)) as executor:
            executor.run_many(["import numpy\\nanswer = 1", "answer = 1"])
            print("ready", flush=True)
            executor.run_many([f"import numpy\\n{ENDLESS.format("{n}")}" for n in range(1000)] + ["answer = 2"])
        """
        code = textwrap.dedent(code.replace(ENDLESS.format("{n}"), "while True: pass  # {n}"))
        host = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert host.stdout.readline() == "ready\n"
        time.sleep(0.5)
        started = psutil.Process(host.pid).children(recursive=True)
        assert len(started) >= 3
        os.killpg(host.pid, number)  # the whole process group, as a terminal does
        errors = host.communicate(timeout=60)[1]
        assert host.returncode == -number
        if number == signal.SIGINT:
            assert errors.rstrip().endswith("KeyboardInterrupt")
        _, alive = psutil.wait_procs(started, timeout=30)
        assert alive == []


class TestPlaces:
    """The executor works in all kinds of processes and threads."""

    PROGRAMS = ["answer = 6 * 7", "import numpy\nanswer = numpy.prod([6, 7])"]

    def test_in_a_notebook(self):
        async def cell():
            with Executor() as executor:
                return [result.value for result in executor.run_many(self.PROGRAMS)]

        assert asyncio.run(cell()) == [42, 42]

    def test_in_threads(self):
        def from_a_thread(n):
            with Executor() as executor:
                return [result.value for result in executor.run_many([*self.PROGRAMS, f"answer = {n}"])]

        with ThreadPoolExecutor(3) as threads:
            assert list(threads.map(from_a_thread, range(3))) == [[42, 42, n] for n in range(3)]

    def test_shared_by_threads_that_finish(self):
        # The jail dies with its host, but must not die with the thread that started it.
        with Executor("jail") as executor:
            for n in range(3):
                with ThreadPoolExecutor(1) as thread:
                    assert thread.submit(run, executor, f"answer = {n}").result().value == n

    def test_in_a_fork_of_a_process_with_an_executor(self):
        context = multiprocessing.get_context("fork")
        with Executor() as executor:
            assert [result.value for result in executor.run_many(self.PROGRAMS)] == [42, 42]
            queue = context.Queue()
            programs = [f"{program} + 1" for program in self.PROGRAMS]

            def child():
                queue.put([result.value for result in executor.run_many(programs)])

            forks = [context.Process(target=child) for _ in range(2)]
            for fork in forks:
                fork.start()
            assert [queue.get(timeout=60) for _ in forks] == [[43, 43], [43, 43]]
            for fork in forks:
                fork.join()
            assert [result.value for result in executor.run_many([f"{p} + 2" for p in self.PROGRAMS])] == [44, 44]

    def test_in_a_data_loader(self):
        torch = pytest.importorskip("torch")
        programs = [f"import numpy\nanswer = numpy.sum([{n}, 1])" for n in range(6)]

        class Rewards(torch.utils.data.Dataset):
            def __len__(self):
                return len(programs)

            def __getitem__(self, index):
                return run(executor, programs[index]).value

        with Executor() as executor:
            assert run(executor, programs[0]).value == 1
            loader = torch.utils.data.DataLoader(Rewards(), batch_size=2, num_workers=2)
            assert torch.cat(list(loader)).tolist() == [n + 1 for n in range(6)]

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("launcher", "processes"),
        [
            (["accelerate.commands.launch", "--cpu"], 1),
            # `accelerate launch` runs this for several processes.
            (["torch.distributed.run", "--standalone", "--nproc_per_node", "2"], 2),
        ],
        ids=["accelerate launch", "torchrun"],
    )
    def test_under_a_launcher(self, tmp_path, launcher, processes):
        script = tmp_path / "script.py"
        script.write_text(
            "from accelerate import PartialState\n"
            "from md_trl.execution import Executor\n"
            "state = PartialState(cpu=True)\n"
            "with Executor() as executor:\n"
            f"    results = executor.run_many({self.PROGRAMS!r})\n"
            "print(f'process {state.process_index}:', [result.value for result in results], flush=True)\n"
            "state.wait_for_everyone()\n"
        )
        command = [sys.executable, "-m", *launcher, str(script)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        for process in range(processes):
            assert f"process {process}: [42, 42]" in done.stdout


class TestCache:
    def test_results_are_kept_between_runs(self, tmp_path, monkeypatch):
        file = tmp_path / "results.db"
        programs = ["answer = 6 * 7", "answer = 1 / 0", "answer = float('nan')", "x = 5", "answer = 10 ** 3999"]
        with Executor("jail", cache=file) as executor:
            first = executor.run_many(programs)
        with Executor("jail", cache=file) as executor:
            monkeypatch.setattr(executor._jail, "run", None)  # so that running a program fails
            assert executor.run_many(programs) == first

    def test_engines_and_limits_have_separate_results(self, tmp_path):
        file = tmp_path / "results.db"
        program = "answer = len('a' * 20_000_000)"
        for engine, megabytes, status in [("jail", 10, "memory"), ("jail", 50, "ok"), ("monty", 10, "memory")]:
            with Executor(engine, limits=Limits(memory_mb=megabytes), cache=file) as executor:
                result = run(executor, program)
                assert (result.status, result.engine) == (status, engine)

    def test_unsupported_results_are_not_kept(self, tmp_path):
        file = tmp_path / "results.db"
        program = "import numpy\nanswer = numpy.sum([5])"
        with Executor("monty", cache=file) as executor:
            assert run(executor, program).status == "unsupported"
            assert executor.cache.read([program]) == {}

    def test_a_store_has_its_cache_in_a_file_beside_it(self, tmp_path):
        from md_trl.store import Store

        file = tmp_path / "thoughts.db"
        with Store(file) as store:
            with Executor("monty", cache=default_cache(file)) as executor:
                assert run(executor, "answer = 5").value == 5
            assert store.thoughts() == []
        tables = sqlite3.connect(file).execute("SELECT name FROM sqlite_master").fetchall()
        assert not any("result" in name for (name,) in tables)
        with Executor("monty", cache=tmp_path / "thoughts.results.db") as executor:
            assert executor.cache.read(["answer = 5"])["answer = 5"].value == 5

    @pytest.mark.parametrize(
        ("store", "cache"),
        [("runs/t.db", "runs/t.results.db"), ("t", "t.results.db"), ("student.v2.db", "student.v2.results.db")],
    )
    def test_name_of_the_cache(self, store, cache):
        assert default_cache(store) == Path(cache)

    def test_many_programs_and_unusual_characters(self, tmp_path):
        programs = [f"answer = {n}" for n in range(1_200)] + ["answer = '\ud800'", "", "answer = 1\x00"]
        with Executor("monty", cache=tmp_path / "results.db") as executor:
            first = executor.run_many(programs)
            assert executor.cache.read(programs) == dict(zip(programs, first, strict=True))
