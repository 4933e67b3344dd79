"""The whole method in minutes, offline, on two CPU cores: `make quickstart`.

A SIMULATED teacher (no language model, see `md-trl teacher --help`) answers generated word problems (`stories`) over
HTTP. Its thoughts are judged, mixed and written as a dataset. Four tiny students are trained on it from scratch, with
the same number of optimizer steps, and answer other questions by vote. Every step is a command that works in the same
way with real tasks, teachers and students. The figures show whether the method works as implemented; they say nothing
about real models.

Each run has a folder of its own below `outputs/quickstart`; `outputs/quickstart/report.json` is that of the last one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from tiny_student import make_student
from tqdm.auto import tqdm


OBJECTIVES = ("label", "cot", "pot", "md")
PATHS = {"label": ["label"], "cot": ["cot"], "pot": ["pot"], "md": ["cot", "pot"]}
CAVEAT = (
    "The teacher is SIMULATED, and each of its two paths is better at some kinds of questions by construction. The\n"
    "figures show that the method works as implemented. They say nothing about real models."
)


def md_trl(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "md_trl", *map(str, arguments)]


def run(command: list[str]) -> None:
    """One step in the foreground."""
    print(f"\n$ md-trl {shlex.join(command[3:])}", flush=True)
    subprocess.run(command, check=True)


def run_all(title: str, commands: dict[str, list[str]], logs: Path, workers: int) -> None:
    """Independent steps side by side, with one progress bar each on a terminal. Their output goes to files."""
    print(f"\n{title}, {workers} at a time. Their output is in {logs}.", flush=True)
    waiting, running = list(commands), {}
    terminal = sys.stderr.isatty()
    bars = {name: tqdm(total=1, desc=name, position=i, disable=not terminal) for i, name in enumerate(commands)}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                name = waiting.pop(0)
                log = (logs / f"{title.split()[0].lower()}-{name}.log").open("w")
                running[name] = (
                    subprocess.Popen(commands[name], stdout=log, stderr=subprocess.STDOUT),
                    log,
                    time.time(),
                )
            time.sleep(0.5)
            for name, (process, log, began) in list(running.items()):
                # The last "12/345 [" that a progress bar of the step has printed
                found = re.findall(r"(\d+)/(\d+) \[", Path(log.name).read_text(errors="replace")[-500:])
                # A short bar, such as that of writing the model, is not the step's own
                if found and int(found[-1][1]) >= bars[name].total:
                    bars[name].n, bars[name].total = map(int, found[-1])
                    bars[name].update(0)
                if process.poll() is not None:
                    del running[name]
                    log.close()
                    if process.returncode:
                        raise SystemExit(f"{name} failed:\n{Path(log.name).read_text()[-3000:]}")
                    bars[name].n = bars[name].total
                    bars[name].refresh()
                    if not terminal:
                        print(f"{name}: finished in {time.time() - began:.0f} s", flush=True)
    finally:
        for bar in bars.values():
            bar.close()
        for process, *_ in running.values():
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/quickstart"), help="folder of all runs")
    parser.add_argument("--seed", type=int, default=42, help="seed of questions, teacher, students and samples")
    parser.add_argument("--train_questions", type=int, default=3000, help="questions to sample the teacher on")
    parser.add_argument("--test_questions", type=int, default=300, help="questions to evaluate on")
    parser.add_argument("--n", type=int, default=20, help="thoughts per path of teacher and students")
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps of 32 questions per student")
    parser.add_argument("--workers", type=int, default=2, help="students trained at a time, on one core each")
    args = parser.parse_args()
    started = time.time()
    # One core per student: the threads of PyTorch only get in each other's way on models this small
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    # Logs have progress once a minute by default; here it is read from them
    os.environ.update(TQDM_MININTERVAL="1", TQDM_MAXINTERVAL="1")
    output = args.output / f"{time.strftime('%Y%m%d-%H%M%S')}-seed{args.seed}"
    mixed, store = output / "mixed", output / "teacher.db"
    output.mkdir(parents=True)
    print(CAVEAT, flush=True)

    teacher = subprocess.Popen(md_trl("teacher", "--port", 0), stdout=subprocess.PIPE, text=True)
    try:
        ready = teacher.stdout.readline()
        if not ready:
            raise SystemExit("The simulated teacher did not start.")
        print(ready.strip())
        url = ready.split()[0]
        sampling = ["--task", "stories", "--split", "train", "--limit", args.train_questions, "--n", args.n]
        sampling += ["--model", "simulated-teacher", "--base_url", url, "--seed", args.seed, "--data_seed", args.seed]
        run(md_trl("sample", *sampling, "--store", store))
    finally:
        teacher.terminate()
        teacher.wait()
    run(md_trl("mix", "--store", store, "--task", "stories", "--output", mixed))
    make_student(mixed, output / "untrained", args.seed)

    config = Path(__file__).parent / "quickstart.yaml"
    training = ["train", "--config", config, "--dataset", mixed, "--model_name_or_path", output / "untrained"]
    training += ["--max_steps", args.steps, "--seed", args.seed]
    commands = {
        name: md_trl(*training, "--objective", name, "--output_dir", output / "students" / name) for name in OBJECTIVES
    }
    run_all("Training four students", commands, output, args.workers)

    evaluation = ["eval", "--task", "stories", "--limit", args.test_questions, "--n", args.n, "--max_tokens", 80]
    evaluation += ["--seed", args.seed, "--data_seed", args.seed, "--output", output / "results"]
    commands = {
        name: md_trl(
            *evaluation,
            *("--model", output / "students" / name),
            *("--store", output / f"student-{name}.db"),
            *("--paths", *PATHS[name]),
        )
        for name in OBJECTIVES
    }
    run_all("Evaluating four students", commands, output, args.workers)
    print(f"\n{CAVEAT}", flush=True)
    report = ["--results", output / "results", "--ensemble", "ensemble=cot+pot", "--baseline", "ensemble"]
    run(md_trl("report", *report))
    write_summary(args.output, output, args, time.time() - started)


def write_summary(folder: Path, output: Path, args: argparse.Namespace, seconds: float) -> None:
    """Write `report.json`: accuracies at one number of votes, and what the rule for ties changes. Print a summary."""
    from md_trl.comparison import compare, ensemble
    from md_trl.report import load_results
    from md_trl.voting import vote

    results = {result.name: result for result in load_results(output / "results")}
    results["ensemble"] = ensemble("ensemble", results["cot"], results["pot"])
    students, ties = {}, {}
    for name, result in results.items():
        votes = 1 if name == "label" else args.n
        names = [figure for figure in ("cot", "pot", "joint", "label") if result.has(figure)]
        students[name] = {figure: result.accuracy(figure, votes) for figure in names} | {"votes": votes}
        if "joint" in names:
            k = args.n // 2
            pot_first = [q.is_correct(vote(q.pot[:k], q.cot[:k])) for q in result.questions]
            ties[name] = {"cot_first": students[name]["joint"], "pot_first": sum(pot_first) / len(pot_first)}
    difference = compare(results["md"], results["ensemble"], "joint")
    ensemble_figures = students.pop("ensemble")
    types = json.loads((output / "mixed" / "stories" / "mixing.json").read_text())["types"]["train"]
    report = {
        "task": "stories",
        "n_questions": args.test_questions,
        "seed": args.seed,
        "seconds": round(seconds, 1),
        "students": students,
        "ensemble": {name: ensemble_figures[name] for name in ("joint", "votes")},
        "joint_by_tie_rule": ties,
        "types": types,
    }
    for file in (output / "report.json", folder / "report.json"):
        file.write_text(json.dumps(report, indent=2) + "\n")
    two_models = {"cot + pot: two models, one path each": report["ensemble"]}
    print(f"\n{summary_table({name: students[name] for name in OBJECTIVES} | two_models)}\n")
    gain, low, high = (100 * value for value in (difference.difference, difference.low, difference.high))
    print(f"One model of both paths against two models: {gain:+.1f} points, 95% interval {low:+.1f} to {high:+.1f}.")
    print(f"{CAVEAT}\n\nDone in {seconds:.0f} s: report.json, results/, mixed/ and students/ are in {output}.")
    print("Look at all answers in a browser, or let the student go on learning from its own thoughts:")
    print(f"  md-trl explore --results {output / 'results'}")
    print("  md-trl refine --config recipes/refine/stories.yaml \\")
    print(f"      --model {output / 'students/md'} --store {output / 'teacher.db'} --output {output / 'refined'}")


def summary_table(rows: dict[str, dict[str, float]]) -> str:
    """The table of README.md: accuracy in percent, and the number N of thoughts that vote."""
    lines = ["| student | CoT | PoT | CoT w/ PoT | label |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, found in rows.items():
        figures = [found.get(figure) for figure in ("cot", "pot", "joint", "label")]
        cells = ["" if value is None else f"{100 * value:.1f} (N={found['votes']})" for value in figures]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
