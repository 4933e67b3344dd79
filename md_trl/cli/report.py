"""`md-trl report`: compare the results of several students in tables and figures."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import InputError


@dataclass
class ReportArguments:
    r"""
    Arguments of `md-trl report`.

    Args:
        results (`str`):
            Folder of results from `md-trl eval`. The report is written to it: `report.md`, `report.json`,
            `report.png` and `report.svg`.
        baseline (`str`, *optional*):
            Name of the student or ensemble that all others are compared with. Defaults to the ensembles. Students that
            were trained with several seeds are named `NAME@SEED` in their results, and `NAME` stands for all of them.
        ensemble (`list[str]`, *optional*):
            Pairs of students that vote together, each written as `NAME=cot_student+pot_student`.
        stopping (`bool`, *optional*, defaults to `False`):
            Whether to replay stopping rules on the stored thoughts of each student, at most two minutes per 1,000
            questions: a table, `stopping.png`, `calibration.png` and their SVG files.
    """

    results: str = field(metadata={"help": "Folder of results from `md-trl eval`. The report is written to it."})
    baseline: str | None = field(
        default=None,
        metadata={"help": "Student or ensemble that all others are compared with. Defaults to the ensembles."},
    )
    ensemble: list[str] | None = field(
        default=None,
        metadata={"help": "Pairs of students that vote together, each written as `NAME=cot_student+pot_student`."},
    )
    stopping: bool = field(
        default=False,
        metadata={"help": "Whether to replay stopping rules on the stored thoughts: accuracy against mean samples."},
    )


ARGUMENTS = ReportArguments


def run(args: ReportArguments) -> None:
    """Write the report and print its tables."""
    from ..report import load_results, write_report

    ensembles = dict(map(_parse_ensemble, args.ensemble or []))
    results = load_results(args.results)
    print(write_report(results, args.results, args.baseline, ensembles, stopping=args.stopping))
    print(f"\nWrote report.md, report.json and the figures to {args.results}.")


def _parse_ensemble(text: str) -> tuple[str, tuple[str, str]]:
    name, _, students = text.partition("=")
    cot_student, _, pot_student = students.partition("+")
    if not (name and cot_student and pot_student):
        raise InputError(f"Cannot read `--ensemble {text}`. Write it as `NAME=cot_student+pot_student`.")
    return name, (cot_student, pot_student)
