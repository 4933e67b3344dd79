"""The `evaluate` metric `md_vote` under its bare name: `evaluate.load("md_vote")` from any folder, also offline.

`evaluate` looks for a bare name on the Hub and then in its module cache. [`register_metric`] puts the copy that comes
with md_trl into that cache, which is where `evaluate` keeps metrics that were downloaded once.
"""

from __future__ import annotations

import hashlib
import shutil
from importlib.resources import files
from pathlib import Path


NAMES = ("evaluate-metric--md_vote", "md--md_vote")
"""Folders of the cache: `md_vote` is looked up as `evaluate-metric/md_vote`, `md/md_vote` by its own name."""


def register_metric() -> list[Path]:
    r"""
    Make `evaluate.load("md_vote")` work from any folder.

    Registering again replaces an older copy.

    Returns:
        `list[Path]`: Folders written, inside `evaluate`'s module cache (`HF_MODULES_CACHE`).

    Examples:

    ```python
    >>> import evaluate
    >>> from md_trl import register_metric

    >>> register_metric()
    >>> evaluate.load("md_vote").compute(cot=[["5", "6"]], pot=[["5"]], references=["5"])["accuracy"]
    1.0
    ```
    """
    source = (files("md_trl") / "hub_cards" / "md_vote" / "md_vote.py").read_bytes()
    unregister_metric()
    written = []
    for folder in _cache_folders():
        module = folder / hashlib.sha256(source).hexdigest()
        module.mkdir(parents=True)
        (module / "md_vote.py").write_bytes(source)
        # Python imports the file as a module of these packages
        (module / "__init__.py").touch()
        (folder / "__init__.py").touch()
        written.append(folder)
    return written


def unregister_metric() -> list[Path]:
    r"""
    Undo [`register_metric`].

    Returns:
        `list[Path]`: Folders removed.
    """
    removed = [folder for folder in _cache_folders() if folder.exists()]
    for folder in removed:
        shutil.rmtree(folder)
    return removed


def _cache_folders() -> list[Path]:
    from evaluate.loading import init_dynamic_modules

    metrics = Path(init_dynamic_modules()) / "metrics"
    metrics.mkdir(exist_ok=True)
    (metrics / "__init__.py").touch()
    return [metrics / name for name in NAMES]
