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
            Folder of results from `md-trl eval`. The report is written to it: `report.md`, `report.json` and figures
            as PNG and SVG. The name of a student says where it belongs in the tables of the paper, see
            [`~md_trl.paper_tables`]: `KIND[-TASK][-20pct][@SEED]`.
        baseline (`str`, *optional*):
            Name of the student or ensemble that all others are compared with. Defaults to the ensembles. Students that
            were trained with several seeds are named `NAME@SEED` in their results, and `NAME` stands for all of them.
        ensemble (`list[str]`, *optional*):
            Pairs of students that vote together, each written as `NAME=cot_student+pot_student`.
        stopping (`bool`, *optional*, defaults to `False`):
            Whether to replay stopping rules on the stored thoughts of each student, at most two minutes per 1,000
            questions: a table, `stopping.png`, `calibration.png` and their SVG files.
        ensemble_likelihood (`bool`, *optional*, defaults to `False`):
            Whether to weigh the votes of ensembles by likelihood, too. Likelihoods of two models are not on one scale.
        training (`list[str]`, *optional*):
            Folders of students from `md-trl train`, whose losses are drawn as `training.png` and `training.svg`. Their
            names, `NAME@SEED`, are those of the folders, or written as `NAME=FOLDER`. The folder of results may then
            be empty.
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
    ensemble_likelihood: bool = field(
        default=False,
        metadata={
            "help": "Whether to weigh the votes of ensembles by likelihood, too. Likelihoods of two models are not on "
            "one scale."
        },
    )
    training: list[str] | None = field(
        default=None,
        metadata={
            "help": "Folders of students from `md-trl train`, whose losses are drawn. Each is written as `FOLDER` or "
            "`NAME=FOLDER`."
        },
    )


ARGUMENTS = ReportArguments


def run(args: ReportArguments) -> None:
    """Write the report and print its tables."""
    from ..report import has_results, load_results, write_report
    from ..training_curves import draw_training

    pairs = list(map(_parse_ensemble, args.ensemble or []))
    ensembles = dict(pairs)
    if twice := sorted({name for name, _ in pairs if [other for other, _ in pairs].count(name) > 1}):
        raise InputError(f"`--ensemble` names several pairs {twice[0]!r}. Give each a name of its own.")
    if args.training:
        print(f"{draw_training(args.training, args.results)}\n\nWrote training.png and training.svg.\n")
    if args.training and not has_results(args.results):
        return
    results = load_results(args.results)
    options = {"stopping": args.stopping, "ensemble_likelihood": args.ensemble_likelihood}
    print(write_report(results, args.results, args.baseline, ensembles, **options))
    print(f"\nWrote report.md, report.json and the figures to {args.results}.")


def _parse_ensemble(text: str) -> tuple[str, tuple[str, str]]:
    name, _, students = text.partition("=")
    cot_student, _, pot_student = students.partition("+")
    if not (name and cot_student and pot_student):
        raise InputError(f"Cannot read `--ensemble {text}`. Write it as `NAME=cot_student+pot_student`.")
    return name, (cot_student, pot_student)
