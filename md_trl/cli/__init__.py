"""The command line: `md-trl VERB`, also available as `python -m md_trl VERB`. One file per verb."""

from __future__ import annotations

import difflib
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import is_dataclass
from importlib import import_module
from typing import Any

from .. import __version__
from ..errors import InputError, UsageError
from ..nearby import unreadable
from ..progress import quiet_other_bars


VERBS = {
    "teacher": "serve the simulated teacher of the task `stories` on loopback",
    "sample": "sample thoughts of a teacher or a student into a store",
    "store": "show what a store holds (`status`), `import` and `export` thoughts, `merge` stores",
    "mix": "judge and mix the thoughts of a store into a dataset",
    "publish": "publish a dataset, or the metric `md_vote`, on the Hub",
    "train": "run a recipe: load or build mixed thoughts, train a student, evaluate it",
    "eval": "sample a student and score its votes",
    "calibrate": "learn the weights of paths and the confidence of votes on held-out questions",
    "refine": "keep training a student on its own thoughts of both paths, in rounds",
    "serve": "answer questions with a student behind an OpenAI-compatible API",
    "explore": "read and compare thoughts on a local page",
    "report": "compare evaluation results in tables and figures",
    "show": "show questions with their thoughts, answers and votes, from a store, a dataset or a result",
    "register": "make the metric `md_vote` loadable by its bare name",
    "env": "describe this machine and the installed versions, for bug reports",
    "completion": "print what makes a shell complete commands: bash, zsh or fish",
}

USAGE = """usage: md-trl VERB [--config FILE.yaml] [--help] ...
       md-trl --version

""" + "\n".join(f"  {verb:<12}{summary}" for verb, summary in VERBS.items())

USAGE_ERROR, INTERRUPTED, BROKEN_PIPE = 2, 130, 141
"""Exit statuses beside 1, which ends an error in the input. The last two are those of a shell: 128 + the signal."""


def main(argv: Sequence[str] | None = None) -> None:
    r"""
    Run the command line.

    Args:
        argv (`Sequence[str]`, *optional*):
            Arguments, starting with the verb. Defaults to those of the process.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = ["--debug"] if argv[:1] == ["--debug"] else []
    argv = argv[len(debug) :]
    if not argv or argv[0] in ("-h", "--help", "--help-all", "--help_all"):
        print(USAGE)
        return
    if argv[0] == "--version":
        print(f"md_trl {__version__}")
        return
    verb, *arguments = argv
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        what = "option" if verb.startswith("-") else "verb"
        print(f"md-trl: unknown {what} {verb!r}.{hint}\n`md-trl --help` lists the verbs.", file=sys.stderr)
        sys.exit(USAGE_ERROR)
    run_verb(verb, [*arguments, *debug])


def run_verb(verb: str, arguments: Sequence[str]) -> None:
    r"""
    Run one verb. An error in the user's input ends in its message and exit status 1, without a traceback; any other
    error keeps its traceback. Usage errors end in status 2, Ctrl-C in status 130.

    Args:
        verb (`str`):
            Name of the verb.
        arguments (`Sequence[str]`):
            Command-line arguments of the verb. `--debug` without a value shows the traceback of every error.
    """
    arguments, debug = _take_debug(arguments)
    _quiet_dependencies()
    try:
        _run(verb, arguments)
        sys.stdout.flush()
    except (InputError, OSError, ImportError) as error:
        if debug:
            raise
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            sys.exit(BROKEN_PIPE)
        if isinstance(error, UsageError):
            print(f"md-trl {verb}: {error}\n`md-trl {verb} --help` lists the options.", file=sys.stderr)
            sys.exit(USAGE_ERROR)
        sys.exit(f"md-trl {verb}: {_explain(error, verb)}")
    except KeyboardInterrupt:
        if debug:
            raise
        print(f"md-trl {verb}: interrupted; what is in a store or a checkpoint is kept", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _run(verb: str, arguments: Sequence[str]) -> None:
    module = import_module(f"md_trl.cli.{verb}")
    if verb == "completion":  # needs no `TrlParser`, whose import is slow
        module.run(arguments)
        return
    from .parser import VerbParser

    # Optional: dataclasses whose import is slow, fields of others that `--help` shows, actions, which are
    # positional and so cannot be fields, and help in place of that of others
    more, shown, actions = (vars(module).get(name, ()) for name in ("MORE_ARGUMENTS", "SHOWN", "ACTIONS"))
    own = module.ARGUMENTS
    types = [own, *(getattr(import_module(place), name) for place, name in more)]
    texts = vars(module).get("HELP", {})
    parsed = VerbParser(types, verb, VERBS[verb], [*own.__annotations__, *shown], actions, texts).parse(arguments)
    try:
        module.run(*parsed)
    except OSError as error:
        raise _name_option(error, parsed) from error


def _name_option(error: OSError, parsed: Sequence[Any]) -> Exception:
    """Return the error to raise for a file that an option names, which the system's own message does not say."""
    given = [option for values in filter(is_dataclass, parsed) for option in vars(values).items()]
    for name, value in given if error.filename is not None else ():
        if str(error.filename) in map(str, value if isinstance(value, list) else [value]):
            return unreadable(name, error)
    return error


def _take_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Take `--debug` out of the arguments. With a value, it is an argument of `TrainingArguments`."""
    following = [*arguments[1:], "--"]
    kept = [a for a, after in zip(arguments, following, strict=False) if a != "--debug" or not after.startswith("-")]
    return kept, len(kept) < len(arguments)


def _quiet_dependencies() -> None:
    """Set up what libraries print, before they are imported."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_relevant)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    quiet_other_bars()


def _is_relevant(record: logging.LogRecord) -> bool:
    """On a CPU, bitsandbytes warns about an optional kernel, even where nothing is quantized."""
    return not record.getMessage().startswith("Failed to load CPU gemm_4bit_forward")


def _explain(error: Exception, verb: str) -> str:
    """The message of an error. A missing package is named with the extra that brings it."""
    from ..store.selection import SeveralSettingsError

    if isinstance(error, SeveralSettingsError):
        return error.for_command_line(verb)
    if isinstance(error, ModuleNotFoundError) and error.name:
        from ..environment import how_to_install

        return f"{error}. {how_to_install(error.name)}"
    return str(error)


def _reader_is_gone() -> bool:
    """Return whether nobody reads the output any more, as in `md-trl show ... | head`. Other pipes can break, too."""
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return True
    return False
