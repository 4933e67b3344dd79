"""How often the simulated teacher is right, and which thought it writes.

Each question has its own chance of a right thought on each path. A hash of the question draws it from a Beta
distribution whose mean depends on family and path:

| family | mean chance of CoT | mean chance of PoT |
| --- | --- | --- |
| `plain` | 0.75 | 0.75 |
| `large` | 0.40 | 0.90 |
| `steps` | 0.40 | 0.90 |
| `distractor` | 0.70 | 0.70 |
| `compare` | 0.90 | 0.40 |
| `fraction` | 0.90 | 0.40 |
| `calendar` | 0.90 | 0.40 |
| `trap` | 0.85 | 0.40 |

A program after a plan in prose (`cot_pot`) has the mean of both, only so that the third path can be tried out. One
question in eight is hard: its mean chance is a tenth of that, on every path. A wrong thought repeats the favourite
mistake of the question with a probability of 0.4, and makes a random mistake otherwise. So the votes of the thoughts
decide whether a question is solved by one path, by both or by neither, and lambda spreads over (0, 1).

The chances hold at temperature 0.7. At other temperatures the probabilities of a right thought, of the favourite
mistake and of another one are raised to the power of 0.7 / temperature, and at 0 the most probable thought is written.
"""

from __future__ import annotations

import random

from ..prompts import planned_program
from ..records import COT_POT
from ..tasks.stories import Story
from .thoughts import right_thoughts, word_plan, wrong_thought


MEAN_CHANCE = {
    "plain": {"cot": 0.75, "pot": 0.75},
    "large": {"cot": 0.40, "pot": 0.90},
    "steps": {"cot": 0.40, "pot": 0.90},
    "distractor": {"cot": 0.70, "pot": 0.70},
    "compare": {"cot": 0.90, "pot": 0.40},
    "fraction": {"cot": 0.90, "pot": 0.40},
    "calendar": {"cot": 0.90, "pot": 0.40},
    "trap": {"cot": 0.85, "pot": 0.40},
}
"""Mean chance that a thought about a question that is not hard is right at temperature 0.7, by family and path."""

CONCENTRATION = 3.0
"""Sum of the two parameters of the Beta distributions. The smaller, the more the questions of a family differ."""

HARD_SHARE, HARD_FACTOR = 1 / 8, 1 / 10
"""Share of the questions that are hard, and the factor by which that reduces their mean chances."""

FAVOURITE = 0.4
"""Share of the wrong thoughts about a question that repeat its favourite mistake."""


def chance(family: str, path: str, question: str) -> float:
    """Draw the chance that a thought about a question is right at temperature 0.7. It is the same on every call."""
    means = MEAN_CHANCE[family]
    mean = sum(means.values()) / len(means) if path == COT_POT else means[path]
    if random.Random(f"hard/{question}").random() < HARD_SHARE:
        mean *= HARD_FACTOR
    return random.Random(f"chance/{path}/{question}").betavariate(CONCENTRATION * mean, CONCENTRATION * (1 - mean))


def think(story: Story, path: str, question: str, seed: int, index: int, temperature: float) -> str:
    r"""
    Write one thought.

    Args:
        story (`Story`):
            Content of the question.
        path (`str`):
            `cot`, `pot` or `cot_pot`.
        question (`str`):
            Text of the question. Its hash determines the chance of being right and the favourite mistake.
        seed (`int`):
            Seed of the request.
        index (`int`):
            Index of the choice within the request.
        temperature (`float`):
            Sampling temperature. At 0, seed and index make no difference.

    Returns:
        `str`: A chain of thought that ends in `The answer is X.`, or a program that stores its result in `answer`,
            after a plan if the path is `cot_pot`.
    """
    p = chance(story.kind.family, path, question)
    chances = {"right": p, "favourite": (1 - p) * FAVOURITE, "other": (1 - p) * (1 - FAVOURITE)}
    if temperature == 0:
        # Greedy decoding depends on the question alone. Other mistakes are many, and each one is less probable.
        rng = random.Random(f"{path}/{question}")
        outcome = max(("right", "favourite"), key=chances.__getitem__)
    else:
        rng = random.Random(f"{seed}/{index}/{temperature}/{path}/{question}")
        outcome = rng.choices(list(chances), [share ** (0.7 / temperature) for share in chances.values()])[0]
    written = "pot" if path == COT_POT else path
    if outcome == "right":
        text = rng.choice(right_thoughts(story, written))
    else:
        mistake = rng if outcome == "other" else random.Random(f"favourite/{path}/{question}")
        text = wrong_thought(story, written, mistake)
    return planned_program(word_plan(story), text) if path == COT_POT else text
