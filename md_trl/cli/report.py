"""`md-trl report`: tables and a figure of evaluation results."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ReportArguments:
    r"""
    Arguments of `md-trl report`.

    Args:
        results (`str`):
            Folder of results from `md-trl eval`; `report.md`, `report.json` and `report.png` are written into it.
    """

    results: str = field(metadata={"help": "Folder of results from `md-trl eval`; the report is written into it."})


ARGUMENTS = ReportArguments


def run(args: ReportArguments) -> None:
    """Writes the report and prints its tables."""
    from ..report import load_results, write_report

    print(write_report(load_results(args.results), args.results))
    print(f"\nWrote report.md, report.json and report.png in {args.results}.")
