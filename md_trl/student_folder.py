"""The folder of a student: which weights it holds, and the evaluation of these weights in its model card."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from .errors import InputError
from .nearby import did_you_mean_file


CARD = "README.md"
EVAL_RESULTS = ".eval_results"
"""Folder of results that the Hub reads, see https://huggingface.co/docs/hub/eval-results."""

_HUB_SECONDS = 10.0
_SECTION = re.compile(r"<!-- evaluation of ([0-9a-f]{8}) -->\n(.*?)\n<!-- end of evaluation -->\n\n", re.DOTALL)
# The evaluation stands before what was trained.
_NEXT = "## Training\n"


def check_student(model: str, revision: str | None = None) -> None:
    r"""
    Check that there is a model or an adapter under a name, before anything tries to load it.

    A name that is neither a folder nor in the local cache of the Hub is looked up on the Hub, once and without the
    retries of a download.

    Args:
        model (`str`):
            Folder or Hub id of a model or an adapter.
        revision (`str`, *optional*):
            Revision on the Hub.

    Raises:
        [`~md_trl.errors.InputError`]: The name is that of a file, or of a folder without a model or without the
            weights of its adapter.
        `FileNotFoundError`: There is no such folder, and the Hub has no such model or cannot be reached.
    """
    folder = Path(model)
    if folder.is_file():
        raise InputError(f"{model} is a file. Name the folder of a model or adapter.")
    if folder.is_dir():
        weights = [folder / f"adapter_model.{ending}" for ending in ("safetensors", "bin")]
        if (folder / "adapter_config.json").is_file() and not any(file.is_file() for file in weights):
            raise InputError(
                f"{model} has the adapter_config.json of an adapter but not its weights: adapter_model.safetensors is "
                "missing. Copy it there, or name another folder."
            )
        if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise InputError(f"{model} holds no model: it has no config.json. {_model_nearby(folder)}")
        return
    if (problem := _missing_on_hub(model, revision)) is not None:
        raise FileNotFoundError(f"There is no folder {model}, and {problem}.{did_you_mean_file(model, folders=True)}")


def _model_nearby(folder: Path) -> str:
    """Say which model may be meant instead of a folder that has none."""
    if (checkpoint := last_checkpoint(folder)) is not None:
        return f"Its training has not finished: go on with it, or name its last checkpoint, {checkpoint}."
    if (folder / "student" / "config.json").is_file():
        return f"Name the folder of the student, {folder / 'student'}."
    return "Name the folder of a model or adapter."


def _missing_on_hub(model: str, revision: str | None) -> str | None:
    """Say why a model cannot come from the Hub, `None` if it can."""
    import httpx2
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        names = ("config.json", "adapter_config.json")
        if any(isinstance(try_to_load_from_cache(model, name, revision=revision), str) for name in names):
            return None
        HfApi().model_info(model, revision=revision, timeout=_HUB_SECONDS)
    except HFValidationError:
        return "that is no name of a model on the Hub"
    except GatedRepoError:
        return None  # loading it says how to get access
    except RepositoryNotFoundError:
        return "the Hub has no such model"
    except OfflineModeIsEnabled:
        return "the Hub is turned off by `HF_HUB_OFFLINE`"
    except HfHubHTTPError:
        return None  # the Hub answers: loading the model says what is wrong
    except (httpx2.HTTPError, OSError) as error:
        return f"the Hub cannot be reached ({error})"
    return None


def last_checkpoint(folder: str | Path) -> str | None:
    r"""
    Find the last complete checkpoint of a training. The trainer writes its state last.

    Args:
        folder (`str` or `Path`):
            Output folder of the training, which may not exist.

    Returns:
        `str`: The checkpoint, `None` if there is none.
    """
    complete = [file.parent for file in Path(folder).glob("checkpoint-*/trainer_state.json")]
    numbered = {int(number): str(found) for found in complete if (number := found.name.rpartition("-")[2]).isdecimal()}
    return numbered[max(numbered)] if numbered else None


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
