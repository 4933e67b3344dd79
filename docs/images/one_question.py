"""Draw the picture of the README: how one question gets its type and lambda, and how its thoughts vote.

    python docs/images/one_question.py    # writes one_question.png and one_question.svg beside this file

Nothing in it is made up: the simulated teacher is sampled, its programs run in the sandbox, and the library judges,
mixes and votes. The same inputs give the same files.
"""

from __future__ import annotations

import argparse
import textwrap
from collections import Counter
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from md_trl.answers import equal
from md_trl.execution import Executor
from md_trl.judging import mark, read_answers
from md_trl.mixing import SOLVED_BY, mix
from md_trl.records import PATHS, MixedRow, Question, QuestionType, SamplingParams, Thought
from md_trl.simulated_teacher.chances import think
from md_trl.tasks import load_questions
from md_trl.tasks.stories import parse
from md_trl.voting import vote
from md_trl.weighting import path_weights


NAMES = {"cot": "chain of thought (CoT)", "pot": "program of thought (PoT)"}
# Colors of Okabe and Ito, which colour-blind readers can tell apart
COLORS = {"cot": "#0072B2", "pot": "#C66A00"}
RIGHT, WRONG, GREY = "#007A5A", "#B3261E", "#5F6368"


def ask(question: Question, n: int) -> list[Thought]:
    """Sample the simulated teacher n times per path, run the programs and mark the answers."""
    story, params = parse(question.question), SamplingParams()
    thoughts = [
        Thought(question.id, path, i, think(story, path, question.question, params.seed, i, params.temperature))
        for path in PATHS
        for i in range(n)
    ]
    with Executor() as executor:
        return mark(read_answers(thoughts, executor), {question.id: question.answer})


def draw(row: MixedRow, thoughts: list[Thought], folder: Path) -> None:
    """Draw a mixed row and the vote of its thoughts as `one_question.png` and `one_question.svg`."""
    matplotlib.rcParams["svg.hashsalt"] = "md_trl"
    figure = Figure(figsize=(10, 6.5))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 100), ylim=(65, 0))
    axes.axis("off")
    _box(axes, 0.4, 0.4, 99.2, 64.2, GREY)  # an opaque card, legible on light and dark pages
    axes.text(3, 4.4, row.question, fontsize=13.5, weight="bold", va="center")
    axes.text(97, 4.4, f"gold answer {row.answer}", fontsize=12, ha="right", va="center", color=RIGHT, weight="bold")
    for path, left in zip(PATHS, (2.5, 51), strict=True):
        _draw_path(axes, path, left, row, [thought for thought in thoughts if thought.path == path])
    _draw_learning(axes, 2.5, row)
    _draw_vote(axes, 51, row, thoughts)
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        figure.savefig(folder / f"one_question.{kind}", dpi=150, facecolor="none", metadata=metadata)


def _box(axes: Axes, left: float, top: float, width: float, height: float, color: str) -> None:
    style = "round,pad=0,rounding_size=0.9"
    axes.add_patch(FancyBboxPatch((left, top), width, height, boxstyle=style, fc="white", ec=color, lw=1.2))


def _verdict(answer: str | None, gold: str) -> tuple[str, str]:
    """An answer with a mark, and its color."""
    if answer is None:
        return "does not run", GREY
    return (f"{answer} ✓", RIGHT) if equal(answer, gold) else (f"{answer} ✗", WRONG)


def _draw_path(axes: Axes, path: str, left: float, row: MixedRow, thoughts: list[Thought]) -> None:
    """The distinct thoughts of a path with their answers, and the vote of the path."""
    _box(axes, left, 8, 46.5, 32.5, COLORS[path])
    axes.text(left + 1.5, 10.4, f"{len(thoughts)} × {NAMES[path]}", color=COLORS[path], weight="bold", va="center")
    y = 13.6
    for (text, answer), count in Counter((thought.text, thought.answer) for thought in thoughts).items():
        lines = text.splitlines() if path == "pot" else textwrap.wrap(text, 53)
        axes.text(left + 3.6, y, f"{count} ×", fontsize=9.5, ha="right", va="center", color=GREY)
        for i, line in enumerate(lines):
            family = "monospace" if path == "pot" else "sans-serif"
            axes.text(left + 4.6, y + 2 * i, line, fontsize=9, va="center", family=family)
        label, color = _verdict(answer, row.answer)
        axes.text(left + 45, y, label, fontsize=9.5, ha="right", va="center", color=color)
        y += 2 * len(lines) + 1.1
    label, color = _verdict(row.cot_vote if path == "cot" else row.pot_vote, row.answer)
    axes.text(left + 1.5, 38.4, "most frequent answer", fontsize=10, va="center", color=GREY)
    axes.text(left + 45, 38.4, label, fontsize=13, ha="right", va="center", color=color, weight="bold")


def _draw_learning(axes: Axes, left: float, row: MixedRow) -> None:
    """What type and lambda mean for the loss."""
    weights = path_weights("md", row.type, row.lambda_)
    kind = f"Type {row.type:d}: solved by {SOLVED_BY[row.type]}"
    loss = f"loss = {weights['cot']:.3g} · CoT + {weights['pot']:.3g} · PoT"
    n1, n2 = row.n_cot_correct, row.n_pot_correct
    if row.type == QuestionType.BOTH:  # Lambda plays no role in the other types
        share = f"λ = n₂ / (n₁ + n₂) = {n2} / ({n1} + {n2}) = {row.lambda_:.2f}, with n₁ correct CoT and n₂ correct "
        share += "PoT. As both paths solve the question, CoT weighs 1 - λ and PoT weighs λ."
    else:
        share = f"{n1} CoT and {n2} PoT are correct. Only one path solves the question, so both weigh 1."
    _box(axes, left, 42.5, 46.5, 20, GREY)
    axes.text(left + 1.5, 45.2, "What the student learns", weight="bold", va="center")
    axes.text(left + 1.5, 48.8, kind, fontsize=11, va="center")
    axes.text(left + 45, 48.8, loss, fontsize=10, va="center", ha="right", color=GREY)
    axes.text(left + 1.5, 51.6, textwrap.fill(share, 66), fontsize=9.5, va="top", linespacing=1.5)
    axes.text(left + 1.5, 60.4, "Only correct thoughts are learned.", fontsize=9.5, va="center", color=GREY)


def _draw_vote(axes: Axes, left: float, row: MixedRow, thoughts: list[Thought]) -> None:
    """The joint vote as bars, one per answer."""
    _box(axes, left, 42.5, 46.5, 20, GREY)
    axes.text(left + 1.5, 45.2, "How both paths vote", weight="bold", va="center")
    answers = {path: [thought.answer for thought in thoughts if thought.path == path] for path in PATHS}
    winner = vote(answers["cot"], answers["pot"])
    tallied = Counter(answer for path in PATHS for answer in answers[path] if answer is not None)
    shown = tallied.most_common(3)
    width = 26 / shown[0][1]
    for i, (answer, _) in enumerate(shown):
        y, x = 48.8 + 3.4 * i, left + 10
        label, color = _verdict(answer, row.answer)
        weight = "bold" if answer == winner else "normal"
        axes.text(left + 9, y, label, fontsize=10.5, ha="right", va="center", color=color, weight=weight)
        for path in PATHS:
            votes = answers[path].count(answer)
            if votes:
                axes.barh(y, votes * width, left=x, height=2.4, color=COLORS[path])
                name = f"{votes} {path[0].upper()}o{path[2].upper()}"
                if votes * width < 4.5:  # Too narrow for its name
                    axes.text(x + votes * width + 0.5, y, name, fontsize=8.5, color=COLORS[path], va="center")
                else:
                    axes.text(x + votes * width / 2, y, name, fontsize=8.5, color="white", ha="center", va="center")
                x += votes * width
    rest = sum(tallied.values()) - sum(count for _, count in shown)
    unusable = len(thoughts) - sum(tallied.values())
    note = f"Other answers: {rest}. No answer, no vote: {unusable}."
    axes.text(left + 1.5, 60.4, note, fontsize=9, va="center", color=GREY)
    label, color = _verdict(winner, row.answer)
    axes.text(left + 45, 60.4, label, fontsize=13, ha="right", va="center", color=color, weight="bold")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--id", default="stories/train/large/400", help="question of Stories to draw")
    parser.add_argument("--n", type=int, default=10, help="thoughts per path")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder to write to")
    args = parser.parse_args()
    [question] = [question for question in load_questions("stories", "train") if question.id == args.id]
    thoughts = ask(question, args.n)
    [row] = mix([question], thoughts)
    draw(row, thoughts, args.output)


if __name__ == "__main__":
    main()
