"""Time and samples of `MixedReasoner` with early stopping, against the paper's fixed number of thoughts.

Both use the same student, engine and questions, and the runs alternate. The student is the one that `make quickstart`
trains on both paths.

Usage: python tests/benchmarks/bench_reasoner.py [--student FOLDER] [--questions 200] [--rounds 2]
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path


os.environ.setdefault("OMP_NUM_THREADS", "1")

from md_trl import MixedReasoner
from md_trl.answers import equal
from md_trl.tasks import load_questions


ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "outputs" / "bench"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", help="folder of a student of both paths; that of the last quickstart by default")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    students = sorted(
        (ROOT / "outputs" / "quickstart").glob("*/students/md"), key=lambda folder: folder.stat().st_mtime
    )
    if not args.student and not students:
        print("bench_reasoner: skipped, it needs a student: run `make quickstart`")
        return
    student = args.student or str(students[-1])
    questions = load_questions("stories", "test")[: args.questions]
    reasoners = {stop: MixedReasoner(student, n=20, stop=stop, max_tokens=96) for stop in ("fixed", "agreement")}
    figures = {stop: {"seconds": []} for stop in reasoners}
    for _ in range(args.rounds):
        for stop, reasoner in reasoners.items():
            start = time.perf_counter()
            answers = reasoner([question.question for question in questions])
            figures[stop]["seconds"].append(time.perf_counter() - start)
            correct = [
                a.answer is not None and equal(a.answer, q.answer) for a, q in zip(answers, questions, strict=True)
            ]
            figures[stop]["accuracy"] = statistics.mean(correct)
            figures[stop]["mean_samples"] = statistics.mean(answer.samples for answer in answers)
    for of_rule in figures.values():
        of_rule["seconds"] = statistics.median(of_rule["seconds"])
    report = {
        "peer": "MixedReasoner(stop='fixed', n=20), Mixed Distillation's number of thoughts",
        "questions": len(questions),
        "figures": figures,
        "ratio of seconds": figures["fixed"]["seconds"] / figures["agreement"]["seconds"],
    }
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / "reasoner.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
