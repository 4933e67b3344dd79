"""Compare the speed and peak memory of md_trl's executor, evaluate's `code_eval` and one `python -I` per program.

    python tests/benchmarks/bench_execution.py            # ordinary programs, all peers
    python tests/benchmarks/bench_execution.py --code_eval evaluate/metrics/code_eval    # without the Hub
    python tests/benchmarks/bench_execution.py --large    # 100,000 programs in one call, with and without timeouts

The ordinary programs are GPT-3.5's for word problems if `../shared/data/svamp_teacher` exists (see CONTRIBUTING.md),
otherwise generated programs of the same form. Each measurement runs in its own process. Peak memory is the
proportional set size (PSS) of this process and its children, sampled ten times per second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil


OUTPUT = Path("outputs/bench/execution.json")
POT = Path(__file__).parents[2].parent / "shared" / "data" / "svamp_teacher" / "pot.json"
N = 2_000
ENDLESS = {
    "spin": "while True:\n    pass  # {}",
    # Waits forever without using a processor.
    "block": "import _thread\nlock = _thread.allocate_lock()\nlock.acquire()\nlock.acquire()  # {}",
}


def ordinary(n: int) -> list[str]:
    """Return GPT-3.5's programs for word problems, completed with generated ones of the same form."""
    programs = []
    if POT.is_file():
        programs = list(dict.fromkeys(row["answer_cot"] for row in json.loads(POT.read_text())))
    form = "def solution():\n    apples = {}\n    boxes = {}\n    total = apples * boxes\n    return total - {}\n"
    return (programs + [form.format(i, i % 9 + 1, i % 7) for i in range(n - len(programs))])[:n]


class Memory:
    """Measures the peak memory of this process and its children in MB."""

    def __enter__(self) -> Memory:
        self.first = self.peak = self.current()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def current(self) -> float:
        total = 0
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            try:
                total += process.memory_full_info().pss
            except psutil.Error:  # the process has ended
                pass
        return total / 2**20

    def watch(self) -> None:
        while not self.over.wait(0.1):
            self.peak = max(self.peak, self.current())

    def __exit__(self, *exception) -> None:
        self.over.set()
        self.thread.join()


def cpu_seconds() -> float:
    """Return the CPU time of this process and its running children."""
    times = [process.cpu_times() for process in [psutil.Process(), *psutil.Process().children(recursive=True)]]
    return sum(t.user + t.system + t.children_user + t.children_system for t in times)


def run_md_trl(engine: str, programs: list[str]) -> dict:
    from md_trl.execution import Executor

    with Memory() as memory, Executor(engine) as executor:
        executor.run_many([f"answer = {n}  # warm" for n in range(20)])
        cpu, started = cpu_seconds(), time.perf_counter()
        results = executor.run_many(programs)
        seconds, cpu = time.perf_counter() - started, cpu_seconds() - cpu
    assert {result.status for result in results} == {"ok"}
    return figures(len(programs), seconds, memory) | {"cpu_ms_per_program": round(1_000 * cpu / len(programs), 3)}


def run_code_eval(programs: list[str], folder: str) -> dict | None:
    """Measure evaluate's metric, or return `None` if it cannot be loaded."""
    os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    tests = [f"assert {result_of(program)} is not None" for program in programs]
    try:
        import evaluate

        metric = evaluate.load(folder or "code_eval")
    except Exception as failure:  # without a network, errors of many types are raised
        print(f"evaluate's code_eval cannot be loaded ({type(failure).__name__}): see --code_eval.", file=sys.stderr)
        return None
    with Memory() as memory:
        started = time.perf_counter()
        score, _ = metric.compute(references=tests, predictions=[[program] for program in programs], k=[1])
        seconds = time.perf_counter() - started
    right = round(score["pass@1"] * len(programs))
    assert right == len(programs), f"{right} of {len(programs)} ran"
    return figures(len(programs), seconds, memory)


def result_of(program: str) -> str:
    from md_trl.execution.programs import prepare

    return prepare(program).expressions[0]


def run_process_each(programs: list[str]) -> dict:
    def run(program: str) -> int:
        text = f"{program}\nprint({result_of(program)})"
        return subprocess.run([sys.executable, "-I", "-c", text], capture_output=True, timeout=60).returncode

    with Memory() as memory, ThreadPoolExecutor(os.cpu_count()) as threads:
        started = time.perf_counter()
        codes = list(threads.map(run, programs))
        seconds = time.perf_counter() - started
    assert not any(codes)
    return figures(len(programs), seconds, memory)


def run_large(timeouts: str) -> dict:
    """Measure 100,000 programs in one call, 0.3% of which do not end unless `timeouts` is `"none"`."""
    from md_trl.execution import Executor

    n = 100_000
    programs = [f"def solution():\n    a = {i}\n    b = a * 7\n    return b - {i % 9}\n" for i in range(n)]
    endless = range(0, n, 333) if timeouts != "none" else ()
    for i in endless:
        programs[i] = ENDLESS[timeouts].format(i)
    descriptors = len(os.listdir("/proc/self/fd"))
    with Executor() as executor:
        executor.run_many(["answer = 1", "import numpy\nanswer = 1"])
        before = set(psutil.Process().children(recursive=True))
        memory_of = samples(executor.run_many, programs)
        results = memory_of.pop("results")
        statuses = {status: sum(result.status == status for result in results) for status in ("ok", "timeout")}
        assert all(results[i].status == "timeout" for i in endless)
        assert all(r.value == i * 7 - i % 9 for i, r in enumerate(results) if r.status == "ok")
        grown = len(set(psutil.Process().children(recursive=True)) - before)
    _, alive = psutil.wait_procs(list(before), timeout=10)
    return memory_of | {
        "statuses": statuses,
        "workers_started_later": grown,
        "processes_left": len(alive) + len(psutil.Process().children(recursive=True)),
        "descriptors_left": len(os.listdir("/proc/self/fd")) - descriptors,
    }


def samples(run_many, programs: list[str]) -> dict:
    """Run programs, and return the results with the resident memory of this process and its workers during the run."""
    ours, theirs, over = [], [], threading.Event()

    def resident() -> tuple[float, float]:
        workers = 0
        for process in psutil.Process().children(recursive=True):
            try:
                workers += process.memory_info().rss
            except psutil.Error:
                pass
        return psutil.Process().memory_info().rss / 2**20, workers / 2**20

    def watch() -> None:
        while not over.wait(0.5):
            for series, value in zip((ours, theirs), resident(), strict=True):
                series.append(value)

    thread = threading.Thread(target=watch)
    thread.start()
    cpu, started = cpu_seconds(), time.perf_counter()
    results = run_many(programs, progress=True)
    seconds = time.perf_counter() - started
    cpu = cpu_seconds() - cpu
    over.set()
    thread.join()
    tenth = max(1, len(ours) // 10)
    return {
        "results": results,
        "programs": len(programs),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "programs_per_second": round(len(programs) / seconds, 1),
        "own_mb": [round(value) for value in ours[::tenth]],
        "workers_mb": [round(value) for value in theirs[::tenth]],
    }


def figures(n: int, seconds: float, memory: Memory) -> dict:
    return {
        "programs": n,
        "seconds": round(seconds, 3),
        "programs_per_second": round(n / seconds, 1),
        "peak_memory_mb": round(memory.peak - memory.first, 1),
    }


def measure(what: str) -> dict:
    """Run one measurement in its own process, whose last line of output is JSON."""
    done = subprocess.run([sys.executable, __file__, "--measure", what], stdout=subprocess.PIPE, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    print(f"{what}: {json.dumps(figures)}", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true", help="100,000 programs in one call, instead of the peers")
    parser.add_argument(
        "--code_eval", default="", help="folder of the metric, `metrics/code_eval` of evaluate's repository"
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        what, _, variant = args.measure.partition(" ")
        run = {
            "md_trl": lambda: run_md_trl(variant, ordinary(N)),
            "sympy": lambda: run_md_trl("jail", [f"import sympy\n{program}" for program in ordinary(N)]),
            "code_eval": lambda: run_code_eval(ordinary(N), variant),
            "process": lambda: run_process_each(ordinary(N)),
            "large": lambda: run_large(variant),
        }[what]
        print(json.dumps(run()))
        return
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    if args.large:
        report = {variant: measure(f"large {variant}") for variant in ("none", "block", "spin")}
        OUTPUT.with_name("execution_large.json").write_text(json.dumps(report, indent=2) + "\n")
        return
    report = {"processors": os.cpu_count(), "load_before": os.getloadavg()[0]}
    report |= {f"md_trl {engine}": measure(f"md_trl {engine}") for engine in ("monty", "jail", "auto")}
    report["md_trl jail, programs that import sympy"] = measure("sympy")
    peer = "python -I each"
    report[peer] = measure("process")
    if code_eval := measure(f"code_eval {args.code_eval}"):
        peer = "evaluate's code_eval"
        report[peer] = code_eval
    ours = report["md_trl auto"]["programs_per_second"]
    report["peer"] = peer
    report["ratio"] = round(ours / report[peer]["programs_per_second"], 1)
    report["ratio_to_python_each"] = round(ours / report["python -I each"]["programs_per_second"], 1)
    OUTPUT.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{report['ratio']} times {report['peer']}. Wrote {OUTPUT}.")


if __name__ == "__main__":
    main()
