"""`md-trl calibrate`: learn what votes weigh, and how often they are right, on held-out questions."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class CalibrateArguments:
    r"""
    Arguments of `md-trl calibrate`.

    Args:
        result (`str`):
            Result of `md-trl eval` on questions that are not evaluated later, with thoughts of both paths.
        output (`str`):
            File to write, for `--weights` of `md-trl eval` and `md-trl serve`.
        weights (`str`, *optional*, defaults to `"likelihood"`):
            What a vote weighs beside its path: `none` or `likelihood`.
    """

    result: str = field(
        metadata={"help": "Result of `md-trl eval` on questions that are not evaluated later, with both paths."}
    )
    output: str = field(metadata={"help": "File to write, for `--weights` of `md-trl eval` and `md-trl serve`."})
    weights: str = field(
        default="likelihood", metadata={"help": "What a vote weighs beside its path: `none` or `likelihood`."}
    )


ARGUMENTS = CalibrateArguments


def run(args: CalibrateArguments) -> None:
    """Learn, write the file, and print what a cross-validation says of it."""
    from ..evaluation import EvaluationResult
    from ..replay import calibration
    from ..vote_settings import cross_validate, learn_votes

    result = EvaluationResult.load(args.result)
    settings = learn_votes(result, args.weights)
    settings.save(args.output)
    calibrated = cross_validate(result, args.weights)
    before = calibration(result, args.weights)
    print(
        f"Learned on {len(result.questions):,} questions of {result.task}/{result.split}: a PoT vote weighs "
        f"{settings.weights.pot / settings.weights.cot:.2f} times a CoT vote.\n"
        f"Cross-validated: accuracy {100 * calibrated.accuracy:.1f}% ({100 * before.accuracy:.1f}% before), expected "
        f"calibration error {100 * calibrated.error:.1f}% ({100 * before.error:.1f}% before).\nWrote {args.output}."
    )
