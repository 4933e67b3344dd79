"""Say in words why a question has its type: what each path voted, and what became of its right thoughts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..answers import canonical, equal
from ..records import PATHS, QuestionType


MEANINGS = {
    QuestionType.POT_ONLY: "only the programs (PoT) solve it",
    QuestionType.COT_ONLY: "only the prose (CoT) solves it",
    QuestionType.BOTH: "both paths solve it",
    QuestionType.NEITHER: "neither path solves it",
}
"""What a type says about a question."""
PATH_NAMES = {"cot": "CoT", "pot": "PoT"}
"""Short names of the paths."""


class Tally(NamedTuple):
    """How many thoughts of a path reach an answer, and whether that is the gold answer. `None`: no answer."""

    answer: str | None
    count: int
    correct: bool


def tally(thoughts: Sequence[Mapping[str, Any]], sampled: int, gold: str) -> list[Tally]:
    r"""
    Count the answers of one path.

    Args:
        thoughts (`Sequence[Mapping]`):
            Usable thoughts of the path, each with `answer` and `count`, in the order first seen.
        sampled (`int`):
            Number of thoughts that were sampled, usable or not.
        gold (`str`):
            Gold answer.

    Returns:
        `list[Tally]`: The answers, most frequent first and then in the order first seen, as ties are decided. What
            reached no answer comes last.
    """
    counts: Counter[str] = Counter()
    for thought in thoughts:
        counts[canonical(thought["answer"])] += thought["count"]
    tallies = [Tally(answer, count, equal(answer, gold)) for answer, count in counts.most_common()]
    unusable = sampled - counts.total()
    return tallies + ([Tally(None, unusable, False)] if unusable > 0 else [])


def explain(row: Mapping[str, Any], thoughts: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    r"""
    Explain the type of a question.

    Args:
        row (`Mapping`):
            Its row in the catalog.
        thoughts (`Mapping[str, Sequence[Mapping]]`):
            Its thoughts, as [`~md_trl.explorer.catalog.Catalog.read_thoughts`] returns them.

    Returns:
        `list[str]`: One sentence or two per path and for a bare answer, and what follows from both paths.
    """
    sentences = [] if only_label(row) else [_explain_path(path, row, thoughts) for path in PATHS]
    if row["n_label"]:
        sentences.append(_explain_label(row))
    votes = [row[f"{path}_vote"] for path in PATHS]
    if row["type"] == QuestionType.NEITHER:
        if row["agreement"] == "agree":
            sentences.append(
                f"Both paths agree on {votes[0]}, so the gold answer {row['answer']} may be wrong, or the question "
                "unclear."
            )
        elif row["correct"]:
            sentences.append("Together the votes of both paths are right, although neither is by itself.")
        elif row["n_cot_correct"] + row["n_pot_correct"]:
            sentences.append("More thoughts might change a vote: some are right.")
        if row["trainable"]:
            sentences.append("Such a question is not part of the mixed dataset.")
    return sentences


def only_label(row: Mapping[str, Any]) -> bool:
    """Return whether a model was asked for nothing but a bare answer."""
    return bool(row["n_label"]) and not any(row[f"n_{path}"] for path in PATHS)


def _explain_label(row: Mapping[str, Any]) -> str:
    if row["label"] is None:
        return "Label: the bare answer cannot be read."
    if equal(row["label"], row["answer"]):
        return f"Label: the bare answer is {row['label']}, the gold answer."
    return f"Label: the bare answer is {row['label']}, not the gold answer {row['answer']}."


def _explain_path(path: str, row: Mapping[str, Any], thoughts: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    name, gold, sampled = PATH_NAMES[path], row["answer"], row[f"n_{path}"]
    if not sampled:
        return f"{name}: no thought was sampled."
    tallies = tally(thoughts[path], sampled, gold)
    unusable = sum(t.count for t in tallies if t.answer is None)
    failures = _failures(thoughts[f"{path}_unusable"])
    if unusable == sampled:
        return f"{name}: none of its {sampled} thoughts reaches an answer{f' ({failures})' if failures else ''}."
    winner, *rest = (t for t in tallies if t.answer is not None)
    sentence = f"{name} votes {winner.answer} ({winner.count} of {sampled})"
    if winner.correct:
        sentence += ", the gold answer."
    else:
        right = next((t for t in rest if t.correct), None)
        if right is None:
            sentence += f"; no thought reaches the gold answer {gold}."
        elif right.count == winner.count:
            sentence += f"; the gold answer {gold} is as frequent, but came later, and ties go to the first."
        else:
            sentence += f"; the gold answer {gold} came up {_times(right.count)} and was outvoted."
    if unusable:
        sentence += f" {unusable} without an answer{f' ({failures})' if failures else ''}."
    return sentence


def _failures(unusable: Sequence[Mapping[str, Any]], most: int = 3) -> str:
    """Sum up why thoughts reach no answer, for example `NameError 5 times, states no answer once`."""
    kinds: Counter[str] = Counter()
    for thought in unusable:
        # The name of an exception, without its message
        found = re.match(r"error: (\w+)", thought["reason"])
        kinds[found[1] if found else thought["reason"].split(":")[0]] += thought["count"]
    parts = [f"{kind} {_times(count)}" for kind, count in kinds.most_common(most)]
    return ", ".join(parts + (["…"] if len(kinds) > most else []))


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
