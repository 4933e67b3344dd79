"""Run an experiment: train and evaluate all of its students, then compare them.

    python recipes/paper/run.py recipes/paper/stories.yaml --workers 2

An experiment is a YAML file: what prepares its data, what all students share (fields of `md-trl train`, `refine` and
`eval`; a recipe may have those of the first and the last), and how each student differs. One that has an `objective`
is trained, one that has `refine` goes on from another student, and one that has neither is a model as it is.
Everything is written below its `output` folder:

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
import itertools
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

from md_trl.student_folder import last_checkpoint


KEYS = {"output", "base", "tasks", "recipe", "prepare", "train", "refine", "eval", "students", "seeds", "report"}
PATHS = {"label": ["label"], "label_all": ["label"], "cot": ["cot"], "pot": ["pot"]}
"""What to sample from the students of objectives that learn only that."""
EVALUATION = {"source", "n", "temperature", "max_tokens"}
"""Fields of `md-trl eval` that a recipe sets, as `eval_source` and so on."""


@dataclass(frozen=True)
class Student:
    """One student of one task with one seed: a cell of the tables.

    `verb` is what makes it, `train` or `refine`, with the fields `train`. Without these, it is a model as it is.
    """

    name: str
    task: str
    seed: int
    verb: str
    train: dict[str, Any] | None
    evaluations: tuple[dict[str, Any], ...]
    output: Path

    @property
    def key(self) -> str:
        """Name of its files. Its results are named without the task, which has a column of its own."""
        return f"{self.task}-{self.name}@{self.seed}"

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
    def tokens_of(self) -> str | None:
        """The student whose number of target tokens ends this one's training."""
        limit = (self.train or {}).get("max_target_tokens")
        return f"{self.task}-{limit.removeprefix('as ')}@{self.seed}" if isinstance(limit, str) else None

    @property
    def needs(self) -> set[str]:
        """The students that must be trained before this one: it starts from one, or takes its number of tokens."""
        base = Path((self.train or {}).get("model" if self.verb == "refine" else "model_name_or_path", ""))
        return {key for key in (self.tokens_of, base.name if base.parent == self.folder.parent else None) if key}

    def finished(self) -> list[str]:
        """Return the steps that are finished. Settings that have changed since are an error."""
        if not self.record.exists():
            return []
        record = json.loads(self.record.read_text())
        before, now = record["train"] or {}, self.train or {}
        if changed := sorted(name for name in before | now if before.get(name) != now.get(name)):
            sys.exit(
                f"{self.key} was trained with other settings ({', '.join(changed)}). Restore them, give the student "
                f"another name, use another `output`, or delete {self.record} and {self.folder}."
            )
        return record["finished"]

    def finish(self, step: str) -> None:
        record = {"train": self.train, "finished": [*self.finished(), step]}
        written = self.record.with_suffix(".new")
        written.write_text(json.dumps(record, indent=2) + "\n")
        written.replace(self.record)

    def steps(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Name, verb and fields of each step that is not finished."""
        finished = self.finished()
        if self.train is not None and "train" not in finished:
            output = "output" if self.verb == "refine" else "output_dir"
            fields = self.train | {output: self.folder, "seed": self.seed}
            if self.tokens_of is not None:
                fields["max_target_tokens"] = target_tokens(self.output / "students" / self.tokens_of)
            if (checkpoint := last_checkpoint(self.folder)) is not None:
                fields["resume_from_checkpoint"] = checkpoint
            yield "train", self.verb, fields
        for evaluation in self.evaluations:
            step = "eval " + json.dumps(evaluation, sort_keys=True)
            if step not in finished:
                model = self.folder / "student" if self.verb == "refine" else self.folder
                fields = {"model": model, "name": f"{self.name}@{self.seed}", "seed": self.seed}
                fields["paths"] = PATHS.get((self.train or {}).get("objective", "md"), ["cot", "pot"])
                fields |= {"store": self.output / "stores" / f"{self.key}.db", "output": self.output / "results"}
                yield step, "eval", fields | evaluation


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
        self.context.set_forkserver_preload(["md_trl.trainer", "md_trl.sampling.engines.transformers"])

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
        """Run all students. One that needs another waits for it; others go on if one fails."""
        waiting, failed = list(students), []
        running: dict[Future, Student] = {}
        interval = 1 if sys.stderr.isatty() else 30
        with (
            ThreadPoolExecutor(self.workers) as pool,
            tqdm(total=len(students), unit="student", mininterval=interval) as bar,
        ):
            while waiting or running:
                names = {student.key for student in (*waiting, *running.values())}
                ready = [student for student in waiting if not student.needs & names]
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


def prepare(steps: list[dict[str, Any]], places: list[dict[str, Any]]) -> None:
    """Run the commands that make the data for each task and seed, unless what the last of a step creates is there."""
    for step, place in itertools.product(steps, places):
        if Path(step["creates"].format(**place)).exists():
            continue
        server, url = None, ""
        try:
            if "server" in step:
                server = subprocess.Popen(md_trl_command(step["server"]), stdout=subprocess.PIPE, text=True)
                url = server.stdout.readline().split(maxsplit=1)[0]
            for command in [step["run"]] if isinstance(step["run"], str) else step["run"]:
                command = command.format(**place, url=url)
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
    base = {"base": args.base or experiment.get("base", "")}
    output = args.output or Path(experiment["output"].format(**base))
    tasks, seeds = args.tasks or experiment["tasks"], args.seeds or experiment.get("seeds", [42])
    experiment["output"] = output
    experiment["places"] = [
        base | {"output": output, "task": task, "seed": seed} for seed, task in itertools.product(seeds, tasks)
    ]
    students = [
        make_student(name, own or {}, experiment, place, args)
        for place in experiment["places"]
        for name, own in experiment["students"].items()
    ]
    if args.only and not (chosen := [s for s in students if {s.name, f"{s.name}@{s.seed}"} & set(args.only)]):
        known = ", ".join(experiment["students"])
        sys.exit(f"{file} has no student {', '.join(args.only)}. Its students are {known}.")
    students = chosen if args.only else students
    keys = {student.key for student in students}
    for student in students:
        for needed in sorted(student.needs - keys):
            if not (output / "students" / needed).exists():
                sys.exit(f"{student.key} needs {needed}: train that first, or name it in `--only` too.")
    return experiment, students


def make_student(
    name: str, own: dict[str, Any], experiment: dict[str, Any], place: dict[str, Any], args: argparse.Namespace
) -> Student:
    """Put together the settings of a student: those of the recipe, of the experiment, its own, the command line's."""
    recipe = {}
    if "recipe" in experiment:
        recipe = yaml.safe_load(Path(fill(experiment["recipe"], place)).read_text())
    evaluation = {key.removeprefix("eval_"): value for key, value in recipe.items() if key.startswith("eval_")}
    evaluation = {key: value for key, value in evaluation.items() if key in EVALUATION}
    of_student = (own.get("eval") or {}) | ({"limit": args.limit} if args.limit else {})
    verb, train = "train", None
    if "refine" in own:
        verb, train = "refine", experiment.get("refine", {}) | own["refine"]
    elif "objective" in own:
        train = {key: value for key, value in recipe.items() if not key.startswith("eval_") and key != "store"}
        train |= experiment.get("train", {}) | {key: value for key, value in own.items() if key != "eval"}
        train |= {"max_steps": args.steps} if args.steps else {}
        train |= {"model_name_or_path": args.model} if args.model else {}
        train |= {"train_limit": args.train_limit} if args.train_limit else {}
    evaluations = tuple(fill(evaluation | fields | of_student, place) for fields in experiment["eval"])
    if own.get("eval") is False:
        evaluations = ()
    return Student(name, place["task"], place["seed"], verb, fill(train, place), evaluations, place["output"])


def fill(value: Any, place: dict[str, Any]) -> Any:
    """Fill in `{output}`, `{base}`, `{task}` and `{seed}` everywhere in a value. `null` takes a field away."""
    if isinstance(value, dict):
        return {name: fill(item, place) for name, item in value.items() if item is not None}
    return value.format(**place) if isinstance(value, str) else value


def report_fields(experiment: dict[str, Any], students: list[Student]) -> dict[str, Any]:
    """Fields of `md-trl report`, without the ensembles and the baseline of students that were not asked for."""
    fields, names = dict(experiment.get("report", {})), {student.name for student in students}
    pairs = [text for text in fields.pop("ensemble", []) if set(text.partition("=")[2].split("+")) <= names]
    if fields.get("baseline") not in names | {text.partition("=")[0] for text in pairs}:
        fields.pop("baseline", None)
    return fields | ({"ensemble": pairs} if pairs else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, help="YAML file of the experiment")
    parser.add_argument("--output", type=Path, help="folder to write to, instead of the experiment's")
    parser.add_argument("--only", nargs="+", help="only these students, named NAME or NAME@SEED")
    parser.add_argument("--base", help="folder of recipes of the base model, instead of the experiment's")
    parser.add_argument("--tasks", nargs="+", help="instead of the experiment's")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the experiment's")
    parser.add_argument("--model", help="base model of all students, instead of the experiment's")
    parser.add_argument("--steps", type=int, help="optimizer steps of all students, instead of the experiment's")
    parser.add_argument("--train_limit", type=int, help="train only on this many questions")
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
            for _, verb, fields in student.steps() if student.tokens_of is None else ():
                print(f"md-trl {verb} {shlex.join(command_line(fields))}")
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core per student
    for folder in ("students", "stores", "results", "logs"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    prepare(experiment.get("prepare", []), experiment["places"])
    for student in students:
        student.finished()  # settings that have changed are an error before anything begins
    Runner(args.launcher and shlex.split(args.launcher), args.workers).run(students)
    report = command_line({"results": output / "results"} | report_fields(experiment, students))
    subprocess.run([sys.executable, "-m", "md_trl", "report", *report], check=True)
    print(f"\nDone in {time.time() - started:,.0f} s. The report is in {output / 'results'}.")


if __name__ == "__main__":
    main()
