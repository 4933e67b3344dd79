"""The figures of a refinement as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def describe(found: Mapping[str, Any]) -> str:
    r"""
    Summarize a refinement, round by round.

    Args:
        found (`Mapping[str, Any]`):
            What `refine.json` holds.

    Returns:
        `str`: Markdown tables.
    """
    rows = [
        "| student | CoT | PoT | kept by | kept | types 1, 2, 3, 4 (training) | moved to 3 from 1, 2, 4 "
        "| own thoughts | teacher's | steps | target tokens |",
        "| --- | ---: | ---: | ---: | --- | --- | --- | ---: | ---: | ---: | ---: |",
        f"| given | {_accuracies(found['validation'])} | | {_before(found, 1)} | | | | | |",
    ]
    for entry in found["rounds"]:
        after, training = entry.get("after"), entry["training"]
        moved = "" if after is None else ", ".join(str(count) for count in after["moved_to_3"].values())
        thoughts = f"{entry['thoughts']['own']:,} | {entry['thoughts']['teacher']:,}"
        rows.append(
            f"| round {entry['round']} | {_accuracies(entry['validation'])} | {'yes' if entry['kept'] else 'no'} "
            f"| {_types(after['types']) if after else ''} | {moved} | {thoughts} | {training['steps']:,} "
            f"| {training['target_tokens']:,} |"
        )
    parts = ["\n".join(rows)]
    teacher = _types(found["teacher"]["types"])
    questions = found["questions"]
    parts.append(
        f"Accuracies in percent on {questions['validation']:,} validation questions. Of the training questions, "
        f"{questions['train'] - questions['unlabelled']:,} have gold answers; by the teacher's thoughts, their types "
        f"are {teacher}."
    )
    for entry in found["rounds"]:
        if labels := entry.get("labels"):
            precision = "unknown" if labels["precision"] is None else f"{labels['precision']:.1%}"
            threshold = "none" if labels["threshold"] is None else f"{labels['threshold']:.2f}"
            parts.append(
                f"Round {entry['round']}: {labels['labelled']:,} of {labels['questions']:,} questions without gold "
                f"answers got a label (confidence at least {threshold}); precision {precision}."
            )
    return "\n\n".join(parts)


def _accuracies(validation: Mapping[str, Any]) -> str:
    return " | ".join(f"{100 * validation[name]:.1f}" for name in ("cot", "pot", "accuracy"))


def _types(types: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,}" for count in types.values())


def _before(found: Mapping[str, Any], round_: int) -> str:
    """Types of the training questions by the student that was sampled in a round."""
    return _types(found["rounds"][round_ - 1]["types"]["student"])
