"""How often both paths of students agree on an answer, and how often that is right.

    python recipes/paper/agreement.py recipes/paper/results/stories/md_*.json

`md-trl refine --labels agreement` gives such labels to questions without gold answers. Here all gold answers are
known. The threshold of confidence is learned from the first questions (`--known`), and the labels of the others are
counted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from md_trl.evaluation import EvaluationResult
from md_trl.refine.labels import agreement, learn_threshold


THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="results of `md-trl eval` with both paths")
    parser.add_argument("--known", type=int, default=100, help="questions whose gold answers are known")
    parser.add_argument("--label_precision", type=float, default=0.95, help="share of right labels to aim for")
    args = parser.parse_args()
    print("| student | threshold | questions | coverage | precision | joint vote, all questions |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    pooled = []
    for file in args.results:
        result = EvaluationResult.load(file)
        found = [(agreement(q.cot, q.pot), q) for q in result.questions]
        pairs = [(label, label is not None and q.is_correct(label.answer)) for label, q in found]
        threshold = learn_threshold(pairs[: args.known], args.label_precision)
        print(row(result.name, threshold, pairs[args.known :], result.accuracy("joint", 2 * result.n)))
        pooled += pairs
    print("\n| confidence at least | coverage | precision |\n| ---: | ---: | ---: |")
    for threshold in THRESHOLDS:
        print(f"| {threshold:.1f} | {labelled(pooled, threshold)} |")


def row(name: str, threshold: float | None, pairs: list, accuracy: float) -> str:
    shown, cells = ("none", "0.0% | ") if threshold is None else (f"{threshold:.2f}", labelled(pairs, threshold))
    return f"| {name} | {shown} | {len(pairs)} | {cells} | {accuracy:.1%} |"


def labelled(pairs: list, threshold: float) -> str:
    """Share of the questions that get a label, and share of right labels if there are any."""
    chosen = [right for label, right in pairs if label is not None and label.confidence >= threshold]
    precision = f"{sum(chosen) / len(chosen):.1%}" if chosen else ""
    return f"{len(chosen) / len(pairs):.1%} | {precision}"


if __name__ == "__main__":
    main()
