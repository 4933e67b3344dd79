import gc
import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings


# PyTorch with several threads is extremely slow on a small machine when anything else runs.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_EVALUATE_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# A shell starts background jobs with Ctrl-C ignored, and child processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests do not assert on wall time, since a busy machine may be slow once.
settings.register_profile("md_trl", deadline=None)
settings.load_profile("md_trl")


@pytest.fixture(scope="module", autouse=True)
def _keep_garbage_collections_short():
    """Trainers collect garbage, which takes a second if all that earlier tests have imported is searched."""
    gc.collect()
    gc.freeze()


SHARED = Path(__file__).parents[2] / "shared"
"""Folder beside the checkout with original data files, which the repository does not contain."""

_SOURCES = {
    "data/SVAMP.json": "https://github.com/arkilpatel/SVAMP",
    "data/gsm8k": "https://github.com/openai/grade-school-math",
    "data/ASDiv.xml": "https://github.com/chaochun/nlu-asdiv-dataset",
    "data/strategyqa": "https://github.com/eladsegal/strategyqa",
    "data/svamp_teacher": "https://github.com/lqtrung1998/mwp_ReFT",
}


def needs_shared(*names: str) -> pytest.MarkDecorator:
    """Skip a test if one of these files or folders of `SHARED` is missing, and say where to get it."""
    missing = [f"../shared/{name} (from {_SOURCES[name]})" for name in names if not (SHARED / name).exists()]
    return pytest.mark.skipif(bool(missing), reason=f"needs {' and '.join(missing)}, see CONTRIBUTING.md")
