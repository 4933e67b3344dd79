"""The folder of a student: which weights it holds, and the evaluation of these weights in its model card."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path


CARD = "README.md"
EVAL_RESULTS = ".eval_results"
"""Folder of results that the Hub reads, see https://huggingface.co/docs/hub/eval-results."""

_SECTION = re.compile(r"<!-- evaluation of ([0-9a-f]{8}) -->\n(.*?)\n<!-- end of evaluation -->\n\n", re.DOTALL)
# The evaluation stands before what was trained.
_NEXT = "## Training\n"


def weights_digest(folder: str | Path) -> str:
    r"""
    Return a digest of the weights that a folder holds now.

    Args:
        folder (`str` or `Path`):
            Folder of a model or an adapter.

    Returns:
        `str`: 8 hexadecimal digits, the same for the same weights.
    """
    folder = Path(folder)
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("adapter_config.json")]):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:8]


def replace_card(folder: str | Path, card: str, same_weights: bool = True) -> None:
    r"""
    Replace the model card of a folder. An evaluation of the weights that the folder holds stays.

    Args:
        folder (`str` or `Path`):
            Folder of a student.
        card (`str`):
            The new card, without an evaluation.
        same_weights (`bool`, *optional*, defaults to `True`):
            Whether the card is for the weights that the folder holds now. If not, or if the card has an evaluation of
            other weights, the evaluation is removed together with its files in `.eval_results`.
    """
    file = Path(folder) / CARD
    found = _SECTION.search(file.read_text(encoding="utf-8")) if file.is_file() else None
    file.write_text(card, encoding="utf-8")
    if found is not None and same_weights and found[1] == weights_digest(folder):
        write_evaluation(folder, found[2])
    elif found is not None:
        for results in (Path(folder) / EVAL_RESULTS).glob("*.yaml"):
            results.unlink()


def write_evaluation(folder: str | Path, evaluation: str) -> None:
    r"""
    Write an evaluation of the weights in a folder into its model card, in place of an earlier one.

    Args:
        folder (`str` or `Path`):
            Folder of a student with its card.
        evaluation (`str`):
            Section of the card in Markdown.
    """
    card = Path(folder) / CARD
    text = _SECTION.sub("", card.read_text(encoding="utf-8"))
    section = f"<!-- evaluation of {weights_digest(folder)} -->\n{evaluation}\n<!-- end of evaluation -->\n\n"
    before, heading, after = text.partition(_NEXT)
    # Without the heading, the card was edited by hand.
    text = f"{before}{section}{heading}{after}" if heading else f"{text.rstrip()}\n\n{section}"
    card.write_text(text, encoding="utf-8")
