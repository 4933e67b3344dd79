"""The command line: `md-trl VERB`, also available as `python -m md_trl VERB`. One file per verb."""

from __future__ import annotations

import difflib
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import InputError


if TYPE_CHECKING:
    from trl import TrlParser

VERBS = {
    "teacher": "serve the simulated teacher of the task `stories` on loopback",
    "sample": "sample thoughts of a teacher or a student into a store",
    "store": "show what a store holds (`status`), `import` and `export` thoughts, `merge` stores",
    "mix": "judge and mix the thoughts of a store into a dataset",
    "publish": "publish a dataset, or the metric `md_vote`, on the Hub",
    "train": "run a recipe: load or build mixed thoughts, train a student, evaluate it",
    "eval": "sample a student and score its votes",
    "calibrate": "learn the weights of paths and the confidence of votes on held-out questions",
    "refine": "let a student go on learning from its own two paths, in rounds",
    "serve": "answer questions with a student behind an OpenAI-compatible API",
    "report": "compare evaluation results in tables and figures",
    "register": "make the metric `md_vote` loadable by its bare name",
}

USAGE = "usage: md-trl VERB [--config FILE.yaml] [--help] ...\n\n" + "\n".join(
    f"  {verb:<10}{summary}" for verb, summary in VERBS.items()
)


def main(argv: Sequence[str] | None = None) -> None:
    r"""
    Run the command line.

    Args:
        argv (`Sequence[str]`, *optional*):
            Arguments, starting with the verb. Defaults to those of the process.
    """
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
    Run one verb. An error in the user's input ends in its message and exit status 1; any other keeps its traceback.

    Args:
        verb (`str`):
            Name of the verb.
        arguments (`Sequence[str]`):
            Command-line arguments of the verb.
    """
    # On a CPU, bitsandbytes warns about an optional kernel, which has nothing to do with what the user asked for.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from trl import TrlParser

    module = import_module(f"md_trl.cli.{verb}")
    parser = TrlParser(module.ARGUMENTS, prog=f"md-trl {verb}", description=f"md-trl {verb}: {VERBS[verb]}.")
    # `TrlParser` handles `--config` before argparse does, so this only documents it in `--help`.
    parser.add_argument("--config", help="YAML file with values for these arguments. The command line wins.")
    if verb == "store":  # dataclass fields cannot be positional
        parser.add_argument("action", choices=module.ACTIONS, help="What to do with the store.")
    try:
        module.run(*_parse(parser, arguments))
    except (InputError, OSError) as error:
        sys.exit(f"md-trl {verb}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"md-trl {verb}: interrupted; what is in a store or a checkpoint is kept")


def _parse(parser: TrlParser, arguments: Sequence[str]) -> list[Any]:
    """Parse the arguments of a verb. Whatever the parser rejects is the user's input."""
    import yaml

    arguments = [part for argument in arguments for part in _split_config(argument)]
    if arguments[-1:] == ["--config"]:
        raise InputError("`--config` needs a YAML file.")
    try:
        *parsed, other = parser.parse_args_and_config(arguments)
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(str(error)) from error
    return [*parsed, other.action] if "action" in other else parsed


def _split_config(argument: str) -> list[str]:
    return argument.split("=", 1) if argument.startswith("--config=") else [argument]
