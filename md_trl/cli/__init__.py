"""The command line: `md-trl VERB`, the same as `python -m md_trl VERB`. One file a verb."""

from __future__ import annotations

import difflib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module


VERBS = {
    "teacher": "serve the simulated teacher of the task `stories` on loopback",
    "sample": "sample thoughts of a teacher or a student into a store",
    "store": "show what a store holds (`status`), or move thoughts to and from files (`import`, `export`)",
    "mix": "judge and mix the thoughts of a store into a dataset",
    "train": "run a recipe: build or load mixed thoughts, train a student, evaluate it",
    "eval": "sample a student and score its votes",
    "report": "tables and a figure of evaluation results",
}

USAGE = "usage: md-trl VERB [--config FILE.yaml] [--help] ...\n\n" + "\n".join(
    f"  {verb:<9}{summary}" for verb, summary in VERBS.items()
)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments of a verb and run it. Errors in the input end in one message and exit code 1."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return
    verb, *arguments = argv
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        sys.exit(f"md-trl: unknown verb {verb!r}.{hint}\n\n{USAGE}")
    run_verb(verb, arguments)


def run_verb(verb: str, arguments: Sequence[str]) -> None:
    r"""
    Run one verb.

    Args:
        verb (`str`):
            Name of the verb.
        arguments (`Sequence[str]`):
            Its command line.
    """
    # A kernel that bitsandbytes would like to have for CPUs is not what a user asked for
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from trl import TrlParser

    module = import_module(f"md_trl.cli.{verb}")
    parser = TrlParser(module.ARGUMENTS, prog=f"md-trl {verb}", description=f"md-trl {verb}: {VERBS[verb]}.")
    # `TrlParser` reads `--config` before it parses; here it is only for `--help`
    parser.add_argument("--config", help="YAML file with values for these arguments; the command line wins.")
    if verb == "store":
        parser.add_argument("action", choices=module.ACTIONS, help="What to do with the store.")
    arguments = [part for argument in arguments for part in _split_config(argument)]
    try:
        *parsed, rest = parser.parse_args_and_config(arguments)
        module.run(*parsed, *([rest.action] if verb == "store" else []))
    except (ValueError, OSError) as error:
        # An error of a library keeps its traceback: it is more likely ours than the user's
        frame = traceback.extract_tb(error.__traceback__)[-1]
        if f"{os.sep}md_trl{os.sep}" not in frame.filename and not isinstance(error, OSError):
            raise
        sys.exit(f"md-trl {verb}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"md-trl {verb}: interrupted; what is in a store or a checkpoint is kept")


def _split_config(argument: str) -> list[str]:
    return argument.split("=", 1) if argument.startswith("--config=") else [argument]
