"""The metric md_vote against evaluate's exact_match, on as many answers, in one run.

md_vote groups answers by their canonical form, votes three times per question and compares with the gold answers.
exact_match compares strings. Both pass their inputs through the Arrow file of `evaluate`. Each run is a process of its
own, in alternating turns, and the medians are compared. `exact_match` is loaded from the Hub; where the Hub cannot be
reached, a stand-in does the same with the default options. Writes outputs/bench/md_vote.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path


ROOT = Path(__file__).parents[2]
CARD = ROOT / "hub_cards" / "md_vote"
STAND_IN = ROOT / "tests" / "stand_ins" / "exact_match"
SPELLINGS = ("{}", "{}", "{}", "{}.0", "${}", "{} apples")


def make_questions(count: int, votes: int, distinct: bool) -> tuple[list, list, list[str]]:
    """Answers of which 60% are right, in several spellings. Gold answers are small, as those of word problems are.

    If `distinct`, gold answers have nine digits, and a text hardly ever occurs twice but within its question.
    """
    draw = random.Random(0)
    gold = [draw.randrange(10**9) if distinct else int(10 ** draw.uniform(0, 4)) for _ in range(count)]

    def answer(right: int) -> str:
        value = right if draw.random() < 0.6 else right + draw.randrange(-9, 9)
        return draw.choice(SPELLINGS).format(value)

    cot, pot = ([[answer(right) for _ in range(votes // 2)] for right in gold] for _ in range(2))
    return cot, pot, list(map(str, gold))


def run_once(name: str, count: int, votes: int, distinct: bool) -> dict:
    """Compute one metric, and return its seconds and the growth of the peak of resident memory in MB."""
    import datasets  # noqa: F401  Loading it is not part of the figures
    import evaluate

    cot, pot, gold = make_questions(count, votes, distinct)
    if name == "md_vote":
        metric, inputs = evaluate.load(str(CARD)), {"cot": cot, "pot": pot, "references": gold}
    else:
        try:
            metric = evaluate.load("exact_match")
        except (OSError, ConnectionError):
            metric, name = evaluate.load(str(STAND_IN)), "exact_match (stand-in)"
        answers = [answer for question in zip(cot, pot, strict=True) for path in question for answer in path]
        inputs = {"predictions": answers, "references": [reference for reference in gold for _ in range(votes)]}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu_start = time.perf_counter(), time.process_time()
    scores = metric.compute(**inputs)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    score = float(scores["accuracy" if name == "md_vote" else "exact_match"])
    return {
        "metric": name,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "mb": (peak - before) / 1024,
        "score": score,
    }


def compare(count: int, votes: int, turns: int, distinct: bool) -> dict:
    runs: dict[str, list[dict]] = {"md_vote": [], "exact_match": []}
    for _ in range(turns):
        for name in runs:
            command = [sys.executable, __file__, "--once", name, "--questions", str(count), "--votes", str(votes)]
            output = subprocess.check_output(command + ["--distinct"] * distinct, text=True)
            runs[name].append(json.loads(output.splitlines()[-1]))
            print(f"{runs[name][-1]}", flush=True)
    figures = {
        name: {
            "microseconds_per_answer": 1e6 * statistics.median(run["seconds"] for run in results) / (count * votes),
            **{key: statistics.median(run[key] for run in results) for key in ("seconds", "cpu_seconds", "mb")},
        }
        for name, results in runs.items()
    }
    ratio, cpu_ratio, memory_ratio = (
        figures["md_vote"][key] / figures["exact_match"][key] for key in ("seconds", "cpu_seconds", "mb")
    )
    kind = "distinct" if distinct else "repeated"
    print(
        f"{kind} answers, {count:,} x {votes}: md_vote takes {ratio:.2f} of exact_match's time per answer, "
        f"{cpu_ratio:.2f} of its CPU time, {memory_ratio:.2f} of its memory"
    )
    peer = f"evaluate {importlib.metadata.version('evaluate')}: {runs['exact_match'][0]['metric']}"
    sizes = {"questions": count, "answers_per_question": votes, "turns": turns}
    return {"peer": peer, **sizes, **figures, "ratio": ratio, "cpu_ratio": cpu_ratio, "memory_ratio": memory_ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=100_000)
    parser.add_argument("--votes", type=int, default=20)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--distinct", action="store_true", help="with --once: hardly a text occurs twice")
    parser.add_argument("--once", choices=["md_vote", "exact_match"], help="one run in this process")
    parser.add_argument("--output", type=Path, default=Path("outputs/bench/md_vote.json"))
    args = parser.parse_args()
    if args.once:
        print(json.dumps(run_once(args.once, args.questions, args.votes, args.distinct)))
        return
    figures = compare(args.questions, args.votes, args.turns, distinct=False)
    # A canonical form that was not computed before costs more than a comparison of two strings
    figures["distinct_answers"] = compare(args.questions // 10, args.votes, args.turns, distinct=True)
    figures["load_average"] = os.getloadavg()[0]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"Wrote {args.output}.")


if __name__ == "__main__":
    main()
