"""LLaMA2-7B on SVAMP, the paper's main student: `accelerate launch recipes/llama2_svamp.py`.

It runs `md-trl train` with `recipes/llama2-7b/svamp.yaml`; `--config` names another recipe, and any field can be given
on the command line.
"""

import sys
from pathlib import Path

from md_trl.cli import run_verb


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if not any(argument.split("=")[0] == "--config" for argument in arguments):
        arguments = ["--config", str(Path(__file__).parent / "llama2-7b" / "svamp.yaml"), *arguments]
    run_verb("train", arguments)
