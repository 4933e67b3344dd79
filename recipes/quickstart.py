"""The whole method in minutes, offline, on two CPU cores: `make quickstart`.

A SIMULATED teacher (no language model, see `md-trl teacher --help`) answers generated word problems (`stories`) over
HTTP; its thoughts are judged, mixed and written as a dataset; four tiny students are trained on them from scratch,
with as many optimizer steps each; their votes are scored on other questions. Every step is a command that works the
same on real tasks, teachers and students. The figures tell whether the method works as built, and nothing about real
models.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tqdm.auto import tqdm


OBJECTIVES = ("label", "cot", "pot", "md")
PATHS = {"label": ["label"], "cot": ["cot"], "pot": ["pot"], "md": ["cot", "pot"]}


def md_trl(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "md_trl", *map(str, arguments)]


def run(command: list[str]) -> None:
    """One step in the foreground."""
    print(f"\n$ md-trl {shlex.join(command[3:])}", flush=True)
    subprocess.run(command, check=True)


def run_all(title: str, commands: dict[str, list[str]], logs: Path, workers: int) -> None:
    """Steps that may run side by side, a bar each; what they print goes into files."""
    print(f"\n{title}, {workers} at a time; what they print is in {logs}", flush=True)
    waiting, running = list(commands), {}
    interval = 1 if sys.stderr.isatty() else 20
    bars = {name: tqdm(total=1, desc=name, position=i, mininterval=interval) for i, name in enumerate(commands)}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                name = waiting.pop(0)
                log = (logs / f"{title.split()[0].lower()}-{name}.log").open("w")
                running[name] = subprocess.Popen(commands[name], stdout=log, stderr=subprocess.STDOUT), log
            time.sleep(0.5)
            for name, (process, log) in list(running.items()):
                # The last "12/345 [" that a progress bar of the step has printed
                found = re.findall(r"(\d+)/(\d+) \[", Path(log.name).read_text(errors="replace")[-500:])
                if found:
                    bars[name].n, bars[name].total = map(int, found[-1])
                    bars[name].update(0)
                if process.poll() is not None:
                    del running[name]
                    log.close()
                    if process.returncode:
                        raise SystemExit(f"{name} failed:\n{Path(log.name).read_text()[-3000:]}")
                    bars[name].n = bars[name].total
                    bars[name].refresh()
    finally:
        for bar in bars.values():
            bar.close()
        for process, _ in running.values():
            process.kill()


def make_student(mixed: Path, output: Path, seed: int) -> None:
    """A random Llama of 0.6M parameters, and a tokenizer whose tokens are the words and numbers of the dataset."""
    import torch
    from datasets import load_dataset
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from md_trl.prompts import student_prompt

    rows = load_dataset(str(mixed), "stories", split="train")
    texts = [student_prompt(row["question"], path) for row in rows for path in ("cot", "pot", "label")]
    texts += [thought["text"] for row in rows for path in ("cot", "pot") for thought in row[path]]
    core = Tokenizer(models.WordLevel(unk_token="<unk>"))
    # Numbers are whole tokens: a model this small learns no arithmetic on digits in minutes
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+|\n *| ?[^\w\s]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(
        special_tokens=["<pad>", "</s>", "<unk>"], vocab_size=10**6, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        initializer_range=0.06,  # so narrow a model learns faster from larger weights
    )
    student = LlamaForCausalLM(config)
    student.save_pretrained(output)
    tokenizer.save_pretrained(output)
    print(f"\nA student of {student.num_parameters():,} parameters and {len(tokenizer):,} tokens: {output}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/quickstart"), help="folder for everything made")
    parser.add_argument("--seed", type=int, default=42, help="seed of questions, teacher, students and samples")
    parser.add_argument("--train_questions", type=int, default=3000, help="questions to sample the teacher on")
    parser.add_argument("--test_questions", type=int, default=300, help="questions to evaluate on")
    parser.add_argument("--n", type=int, default=20, help="thoughts a path, of the teacher and of the students")
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps of 32 questions, of each student")
    parser.add_argument("--workers", type=int, default=2, help="students trained at a time, one core each")
    args = parser.parse_args()
    started = time.time()
    # One core a student: torch's threads only hinder each other on models this small
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    output, mixed, store = args.output, args.output / "mixed", args.output / "teacher.db"
    output.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(output / "results", ignore_errors=True)  # results of another run are never overwritten

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

    evaluation = ["eval", "--task", "stories", "--limit", args.test_questions, "--n", args.n, "--max_tokens", 64]
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
    run(md_trl("report", "--results", output / "results"))
    write_summary(output, args, time.time() - started)


def write_summary(output: Path, args: argparse.Namespace, seconds: float) -> None:
    """`report.json`: the accuracies at one number of votes."""
    from md_trl.report import load_results

    students = {}
    for result in load_results(output / "results"):
        votes = 1 if result.name == "label" else args.n
        names = [figure for figure in ("cot", "pot", "joint", "label") if result.has(figure)]
        students[result.name] = {figure: result.accuracy(figure, votes) for figure in names} | {"votes": votes}
    types = json.loads((output / "mixed" / "stories" / "mixing.json").read_text())["types"]["train"]
    report = {
        "task": "stories",
        "n_questions": args.test_questions,
        "seed": args.seed,
        "seconds": round(seconds, 1),
        "students": students,
        "types": types,
    }
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(
        f"\n{seconds:.0f} s. {output}/report.json, results/report.md and results/report.png have the figures, mixed/ "
        "the"
    )
    print("dataset, students/ the models. The teacher was SIMULATED: this shows that the method works, not how well.")


if __name__ == "__main__":
    main()
