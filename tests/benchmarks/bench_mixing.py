"""Mixing in bounded memory: seconds, and the most memory that the process ever held, for many thoughts.

A store of `--questions` questions with 20 CoT and 20 PoT thoughts each is built in a process of its own by plain SQL.
Then a fresh process runs `md-trl mix` on it, twice: the second time, the results of all programs are in the cache.
75,000 questions are 3 million thoughts, which must be mixed within 2 GB. Writes outputs/bench/mixing.json.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from md_trl.records import Question, SamplingParams
from md_trl.store import Store


THOUGHTS = 20
DISTINCT_PROGRAMS = 12  # 37% of sampled programs repeat another sample of their question
LIMIT_MB = 2000

MIX = """
import os, sys, time
from md_trl.cli import main

start = time.perf_counter()
main(["mix", *sys.argv[1:]])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(time.perf_counter() - start, sum(os.times()[:4]), int(peak) / 1024)
"""


def write_store(file: Path, count: int) -> None:
    with Store(file) as store:
        store.questions.add(
            Question(
                f"svamp/train/{i}",
                "svamp",
                "train",
                f"A farmer has {i} hens and buys {i % 97} more. A fox takes 5 of them. How many hens are left now?",
                str(i + i % 97 - 5),
            )
            for i in range(count)
        )
        setting = store.settings.number("teacher", "prompt", SamplingParams())
        db, rng = store._db, random.Random(0)
        db.execute("BEGIN")
        for i in range(count):
            key = store.questions.key(f"svamp/train/{i}")
            for path in ("cot", "pot"):
                request = db.execute(
                    "INSERT INTO requests (question, path, setting, first_index, n, owner, created_at, ended_at) "
                    "VALUES (?, ?, ?, 0, ?, 'bench', 0, 0)",
                    (key, path, setting, THOUGHTS),
                ).lastrowid
                rows = [(request, key, path, setting, j, j, thought(rng, path, i), "stop") for j in range(THOUGHTS)]
                db.executemany(
                    "INSERT INTO thoughts (request, question, path, setting, sample_index, choice_index, text, "
                    "finish_reason) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    rows,
                )
        db.execute("COMMIT")


def thought(rng: random.Random, path: str, i: int) -> str:
    wrong = rng.choice((0, 0, 0, 1)) if i % 5 else rng.choice((0, 1, 1))
    if path == "cot":
        total = i + i % 97
        return (
            f"The farmer starts with {i} hens. After buying {i % 97} more there are {i} + {i % 97} = {total} hens. "
            f"A fox takes 5 of them, so {total} - 5 = {total - 5 + wrong} hens are left (#{rng.randrange(10**6)}). "
            f"The answer is {total - 5 + wrong}."
        )
    return (
        f"# Variant {rng.randrange(DISTINCT_PROGRAMS)}\n\ndef solution():\n    hens = {i}\n    bought = {i % 97}\n"
        f"    taken = 5\n    hens_left = hens + bought - taken + {wrong}\n    return hens_left"
    )


def run(arguments: argparse.Namespace, folder: Path) -> dict:
    file = folder / "thoughts.db"
    start = time.perf_counter()
    write_store(file, arguments.questions)
    figures = {
        "questions": arguments.questions,
        "thoughts": 2 * THOUGHTS * arguments.questions,
        "store_seconds": time.perf_counter() - start,
        "store_mb": file.stat().st_size / 1e6,
        "limit_mb": LIMIT_MB,
    }
    for name in ("first", "cached"):
        mix = ["--store", str(file), "--task", "svamp", "--output", str(folder / name)]
        done = subprocess.run([sys.executable, "-c", MIX, *mix], stdout=subprocess.PIPE, text=True, check=True)
        seconds, cpu_seconds, peak = map(float, done.stdout.strip().split("\n")[-1].split())
        shards = sorted((folder / name / "svamp").glob("*.parquet"))
        figures[name] = {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,  # of this process and its workers: comparable even on a busy machine
            "peak_mb": peak,
            "thoughts_per_second": figures["thoughts"] / seconds,
            "parquet_files": len(shards),
            "parquet_mb": sum(shard.stat().st_size for shard in shards) / 1e6,
        }
        print(json.dumps(figures[name]), flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=75_000)
    parser.add_argument("--folder", help="Where to write the store, of 1.5 GB for 75,000 questions.")
    parser.add_argument("--output", default="outputs/bench/mixing.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        figures = run(arguments, Path(folder))
    output = Path(arguments.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(figures, indent=2) + "\n")
    print(output.read_text())
    assert all(figures[name]["peak_mb"] < LIMIT_MB for name in ("first", "cached"))


if __name__ == "__main__":
    main()
