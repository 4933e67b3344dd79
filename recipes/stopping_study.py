"""How many samples each stopping rule saves, and what it costs: `python recipes/stopping_study.py RESULT.json ...`.

The thoughts in the results of `md-trl eval` are replayed in random orders, so nothing is sampled. The table compares
stopping rules and weights of votes with the vote over all thoughts (Eq. 5). The last line is the rule with the fewest
samples of those whose loss is small enough for every student. `md-trl report --stopping` writes the same tables.

    md-trl eval --model outputs/student --task svamp --n 10 --store student.db --output results
    python recipes/stopping_study.py results/*.json --output study
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from md_trl.evaluation import EvaluationResult
from md_trl.replay import SUBSETS
from md_trl.report import with_distinct_names
from md_trl.stopping_report import StoppingStudy, plot_calibration, plot_stopping, stopping_tables, study_stopping


def cheapest(studies: Sequence[StoppingStudy], max_loss: float, max_bound: float) -> str:
    """The rule with the fewest samples whose loss, and its upper bound, are small enough for every student."""
    good: dict[tuple[str, str], list[float]] = {}
    for study in studies:
        for row in study.rules:
            if row.loss <= max_loss and row.loss_high <= max_bound:
                good.setdefault((row.rule, row.weights), []).append(row.mean_samples / study.budget)
    shares = {pair: sum(found) / len(found) for pair, found in good.items() if len(found) == len(studies)}
    (rule, weights), share = min(shares.items(), key=lambda item: item[1])
    return (
        f"At most {100 * max_loss:.1f} points are lost, and at most {100 * max_bound:.1f} with 95% confidence, by "
        f"`{rule}` with weights `{weights}`. It takes {100 * share:.0f}% of the samples."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="results of `md-trl eval` with thoughts of both paths")
    parser.add_argument("--output", type=Path, help="folder for stopping.md, stopping.json and the figures")
    parser.add_argument("--subsets", type=int, default=SUBSETS, help="orders of the thoughts of each question")
    parser.add_argument("--seed", type=int, default=0, help="seed of the orders")
    parser.add_argument("--max_loss", type=float, default=0.003, help="mean loss of a rule that is good enough")
    parser.add_argument("--max_bound", type=float, default=0.01, help="upper bound of its 95%% interval")
    args = parser.parse_args()
    results = with_distinct_names([EvaluationResult.load(file) for file in args.results])
    studies = study_stopping(results, args.subsets, args.seed)
    text = f"{stopping_tables(studies)}\n\n{cheapest(studies, args.max_loss, args.max_bound)}"
    print(text)
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "stopping.md").write_text(f"{text}\n")
        (args.output / "stopping.json").write_text(json.dumps([asdict(study) for study in studies], indent=2) + "\n")
        for name, plot in (("stopping", plot_stopping), ("calibration", plot_calibration)):
            plot(studies, [args.output / f"{name}.png", args.output / f"{name}.svg"])


if __name__ == "__main__":
    main()
