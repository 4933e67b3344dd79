"""Train LLaMA2-7B on SVAMP, the paper's main student: `accelerate launch recipes/llama2_svamp.py`.

This runs `md-trl train` with `recipes/llama2-7b/svamp.yaml`. `--config` selects another recipe, and the command line
overrides any of its fields.
"""

import sys
from pathlib import Path

from md_trl.cli import run_verb


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if not any(argument.split("=")[0] == "--config" for argument in arguments):
        arguments = ["--config", str(Path(__file__).parent / "llama2-7b" / "svamp.yaml"), *arguments]
    run_verb("train", arguments)
