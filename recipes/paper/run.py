"""Run an experiment: train and evaluate all of its students, then compare them.

    python recipes/paper/run.py recipes/paper/stories.yaml --workers 2

An experiment is a YAML file: what prepares its data, what all students share (fields of `md-trl train` and `md-trl
eval`), and how each student differs. Everything is written below its `output` folder:

    students/NAME@SEED/        the student, its checkpoints and logs of its training
    stores/NAME@SEED.db        its thoughts
    results/*.json             its answers, from which `md-trl report` draws all tables and figures
    logs/                      what each step printed

Run the same command again after an interruption: what is finished is skipped, a training goes on from its last
checkpoint, and only thoughts that are missing are sampled. A student whose settings have changed since is an error.

On CPUs, several students are trained at a time (`--workers`), each on one core. On GPUs, use `--launcher "accelerate
launch --config_file recipes/accelerate_configs/single_gpu.yaml"`, which trains and evaluates one after the other.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tqdm.auto import tqdm


KEYS = {"output", "prepare", "train", "eval", "students", "seeds", "report"}
PATHS = {"label": ["label"], "label_all": ["label"], "cot": ["cot"], "pot": ["pot"]}
"""What to sample from the students of objectives that learn only that."""


@dataclass(frozen=True)
class Student:
    """One student with one seed: a cell of the tables."""

    name: str
    seed: int
    train: dict[str, Any]
    evaluations: tuple[dict[str, Any], ...]
    output: Path

    @property
    def key(self) -> str:
        return f"{self.name}@{self.seed}"

    @property
    def folder(self) -> Path:
        return self.output / "students" / self.key

    @property
    def log(self) -> Path:
        return self.output / "logs" / f"{self.key}.log"

    @property
    def record(self) -> Path:
        """The settings that the student was made with, and which of its steps are finished."""
        return self.output / "students" / f"{self.key}.json"

    @property
    def needs(self) -> str | None:
        """The student whose number of target tokens ends this one's training."""
        limit = self.train.get("max_target_tokens")
        return f"{limit.removeprefix('as ')}@{self.seed}" if isinstance(limit, str) else None

    def settings(self) -> dict[str, Any]:
        return {"train": self.train, "eval": list(self.evaluations)}

    def finished(self) -> list[str]:
        """Return the steps that are finished. Settings that have changed since are an error."""
        if not self.record.exists():
            return []
        record = json.loads(self.record.read_text())
        for part, now in self.settings().items():
            if part == "train" and record[part] != now:
                changed = sorted(k for k in record[part] | now if record[part].get(k) != now.get(k))
                sys.exit(
                    f"{self.key} was trained with other settings ({', '.join(changed)}). Restore them, give the "
                    f"student another name, use another `output`, or delete {self.record} and {self.folder}."
                )
        return record["finished"]

    def finish(self, step: str) -> None:
        steps = [*self.finished(), step]
        self.record.write_text(json.dumps(self.settings() | {"finished": steps}, indent=2) + "\n")

    def steps(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Name, verb and fields of each step that is not finished."""
        finished = self.finished()
        if "train" not in finished:
            fields = self.train | {"output_dir": self.folder, "seed": self.seed}
            if self.needs is not None:
                fields["max_target_tokens"] = target_tokens(self.output / "students" / self.needs)
            if checkpoints := sorted(self.folder.glob("checkpoint-*/trainer_state.json"), key=os.path.getmtime):
                fields["resume_from_checkpoint"] = checkpoints[-1].parent
            yield "train", "train", fields
        for evaluation in self.evaluations:
            step = "eval " + json.dumps(evaluation, sort_keys=True)
            if step not in finished:
                yield (
                    step,
                    "eval",
                    {
                        "model": self.folder,
                        "name": self.key,
                        "paths": PATHS.get(self.train.get("objective", "md"), ["cot", "pot"]),
                        "seed": self.seed,
                        "store": self.output / "stores" / f"{self.key}.db",
                        "output": self.output / "results",
                    }
                    | evaluation,
                )


def target_tokens(student: Path) -> int:
    """Return the number of target tokens that a student was trained on."""
    history = json.loads((student / "trainer_state.json").read_text())["log_history"]
    return max(log["num_target_tokens"] for log in history if "num_target_tokens" in log)


def command_line(fields: dict[str, Any]) -> list[str]:
    """Fields of a verb as arguments of the command line."""
    arguments = []
    for name, value in fields.items():
        values = value if isinstance(value, list) else [value]
        arguments += [f"--{name}", *(str(v).lower() if isinstance(v, bool) else str(v) for v in values)]
    return arguments


def run_here(verb: str, arguments: list[str], log: Path) -> None:
    """Run a verb in a process that has imported everything already; its output goes to a file."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    print(f"$ md-trl {verb} {shlex.join(arguments)}", flush=True)
    from md_trl.cli import run_verb

    run_verb(verb, arguments)


class Runner:
    """Runs students, several at a time, each in an own process."""

    def __init__(self, launcher: list[str] | None, workers: int):
        self.launcher = launcher
        self.workers = workers
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(
            ["md_trl.cli.train", "md_trl.cli.eval", "md_trl.sampling.engines.transformers"]
        )

    def run_student(self, student: Student) -> None:
        for step, verb, fields in student.steps():
            arguments = command_line(fields)
            if self.launcher is None:
                process = self.context.Process(target=run_here, args=(verb, arguments, student.log))
                process.start()
                process.join()
                status = process.exitcode
            else:
                command = [*self.launcher, "-m", "md_trl", verb, *arguments]
                with student.log.open("a") as log:
                    log.write(f"$ {shlex.join(map(str, command))}\n")
                    log.flush()
                    status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
            if status:
                raise RuntimeError(f"{student.key} failed in {step!r}:\n{student.log.read_text()[-2000:]}")
            student.finish(step)

    def run(self, students: list[Student]) -> None:
        """Run all students. One whose budget is that of another waits for it; a failed one does not stop the others."""
        waiting, done, failed = list(students), set(), []
        running: dict[Future, Student] = {}
        interval = 1 if sys.stderr.isatty() else 30
        with (
            ThreadPoolExecutor(self.workers) as pool,
            tqdm(total=len(students), unit="student", mininterval=interval) as bar,
        ):
            while waiting or running:
                names = {student.key for student in (*waiting, *running.values())}
                ready = [student for student in waiting if student.needs not in names]
                for student in ready[: self.workers - len(running)]:
                    waiting.remove(student)
                    running[pool.submit(self.run_student, student)] = student
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    student = running.pop(future)
                    bar.update()
                    bar.set_postfix_str(student.key)
                    if (error := future.exception()) is not None:
                        failed.append(student.key)
                        tqdm.write(f"{error}", file=sys.stderr)
        if failed:
            sys.exit(f"{len(failed)} of {len(students)} students failed: {', '.join(failed)}. Run the command again.")


def prepare(steps: list[dict[str, str]], output: Path, seeds: list[int]) -> None:
    """Run the commands that make the data, unless what each creates is there. `{seed}` stands for each seed."""
    for step, seed in [(step, seed) for step in steps for seed in (seeds if "{seed}" in step["creates"] else [None])]:
        if (output / step["creates"].format(seed=seed)).exists():
            continue
        server, url = None, ""
        try:
            if "server" in step:
                server = subprocess.Popen(md_trl_command(step["server"]), stdout=subprocess.PIPE, text=True)
                url = server.stdout.readline().split(maxsplit=1)[0]
            command = step["run"].format(output=output, url=url, seed=seed)
            print(f"\n$ {command}", flush=True)
            subprocess.run(md_trl_command(command), check=True)
        finally:
            if server is not None:
                server.terminate()
                server.wait()


def md_trl_command(text: str) -> list[str]:
    """Split a command; `md-trl` and `python` are those of this environment."""
    program, *arguments = shlex.split(text)
    return {"md-trl": [sys.executable, "-m", "md_trl"], "python": [sys.executable]}.get(program, [program]) + arguments


def load(file: Path, args: argparse.Namespace) -> tuple[dict[str, Any], list[Student]]:
    """Read an experiment and make its students."""
    experiment = yaml.safe_load(file.read_text())
    if unknown := sorted(set(experiment) - KEYS):
        sys.exit(f"{file} has an unknown key {unknown[0]!r}. Known are: {', '.join(sorted(KEYS))}.")
    output = args.output or Path(experiment["output"])
    shared = experiment["train"] | ({"max_steps": args.steps} if args.steps else {})
    if args.model:
        shared["model_name_or_path"] = args.model
    evaluations = [fields | ({"limit": args.limit} if args.limit else {}) for fields in experiment["eval"]]
    students = []
    for seed in args.seeds or experiment.get("seeds", [42]):
        for name, own in experiment["students"].items():
            fields = fill(shared | (own or {}), output, seed)
            students.append(Student(name, seed, fields, tuple(fill(e, output, seed) for e in evaluations), output))
    keys = {student.key for student in students}
    if args.only:
        wanted = [s for s in students if s.name in args.only or s.key in args.only]
        if len(wanted) == 0:
            sys.exit(
                f"{file} has no student {', '.join(args.only)}. Its students: {', '.join(experiment['students'])}."
            )
        students = wanted
    for student in students:
        if student.needs is not None and student.needs not in keys:
            sys.exit(f"{student.key} is trained on the tokens of {student.needs}, which {file} does not have.")
    return experiment | {"output": output}, students


def report_fields(experiment: dict[str, Any], students: list[Student]) -> dict[str, Any]:
    """Fields of `md-trl report`, without the ensembles of students that were not asked for."""
    fields, names = dict(experiment.get("report", {})), {student.name for student in students}
    pairs = [text for text in fields.pop("ensemble", []) if set(text.partition("=")[2].split("+")) <= names]
    return fields | ({"ensemble": pairs} if pairs else {})


def fill(fields: dict[str, Any], output: Path, seed: int) -> dict[str, Any]:
    """Fill in `{output}` and `{seed}`."""
    return {
        name: value.format(output=output, seed=seed) if isinstance(value, str) else value
        for name, value in fields.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, help="YAML file of the experiment")
    parser.add_argument("--output", type=Path, help="folder to write to, instead of the experiment's")
    parser.add_argument("--only", nargs="+", help="only these students, named NAME or NAME@SEED")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the experiment's")
    parser.add_argument("--model", help="base model of all students, instead of the experiment's")
    parser.add_argument("--steps", type=int, help="optimizer steps of all students, instead of the experiment's")
    parser.add_argument("--limit", type=int, help="evaluate only on this many questions")
    parser.add_argument("--workers", type=int, default=1, help="students at a time, on one core each")
    parser.add_argument("--launcher", help="command that launches `-m md_trl VERB`, such as `accelerate launch`")
    parser.add_argument("--dry_run", action="store_true", help="print what would be run")
    args = parser.parse_args()
    started = time.time()
    experiment, students = load(args.experiment, args)
    output = experiment["output"]
    if args.dry_run:
        for student in students:
            for _, verb, fields in student.steps() if student.needs is None else ():
                print(f"md-trl {verb} {shlex.join(command_line(fields))}")
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core per student
    for folder in ("students", "stores", "results", "logs"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    prepare(experiment.get("prepare", []), output, sorted({student.seed for student in students}))
    for student in students:
        student.finished()  # settings that have changed are an error before anything begins
    Runner(args.launcher and shlex.split(args.launcher), args.workers).run(students)
    report = command_line({"results": output / "results"} | report_fields(experiment, students))
    subprocess.run([sys.executable, "-m", "md_trl", "report", *report], check=True)
    print(f"\nDone in {time.time() - started:,.0f} s. The report is in {output / 'results'}.")


if __name__ == "__main__":
    main()
