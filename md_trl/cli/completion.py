"""`md-trl completion bash | zsh | fish`: print what makes a shell complete commands."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module

import shtab

from . import VERBS
from .config_file import read_config


SHELLS = ("bash", "zsh", "fish")

EPILOG = """\
md-trl completion bash > ~/.local/share/bash-completion/completions/md-trl
md-trl completion zsh > ~/.zfunc/_md-trl    # a folder of $fpath
md-trl completion fish > ~/.config/fish/completions/md-trl.fish"""


def run(arguments: Sequence[str]) -> None:
    """Print the script of a shell."""
    parser = argparse.ArgumentParser(
        "md-trl completion",
        description=VERBS["completion"].capitalize() + ".",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", nargs="?", choices=SHELLS, help="Shell to print the script for.")
    parser.add_argument("--config", metavar="FILE.yaml", help="YAML file with the `shell`. The command line wins.")
    args = parser.parse_args(arguments)
    shell = args.shell or (read_config(args.config).get("shell") if args.config else None)
    if shell not in SHELLS:
        parser.error(f"name a shell: {', '.join(SHELLS)}")
    print(shtab.complete(_commands(), shell))


def _commands() -> argparse.ArgumentParser:
    """Describe all verbs and their fields, without the slow import of `TrlParser` and of `MORE_ARGUMENTS`."""
    commands = argparse.ArgumentParser("md-trl")
    commands.add_argument("--version", action="store_true", help="Show the version.")
    verbs = commands.add_subparsers()
    for verb, summary in VERBS.items():
        parser = verbs.add_parser(verb, help=summary)
        if verb == "completion":
            parser.add_argument("shell", choices=SHELLS)
            continue
        module = import_module(f"md_trl.cli.{verb}")
        if actions := vars(module).get("ACTIONS"):
            parser.add_argument("action", choices=actions)
        for field in fields(module.ARGUMENTS):
            _add(parser, field.name, field.metadata.get("help"), str(field.type), field.metadata.get("choices"))
        for name in vars(module).get("SHOWN", ()):
            if f"--{name}" not in parser._option_string_actions:
                _add(parser, name)
        _add(parser, "config", "YAML file with values for these arguments.")
        parser.add_argument("--help-all", action="store_true", help="Show every argument in full.")
        parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    return commands


def _add(
    parser: argparse.ArgumentParser,
    name: str,
    text: str | None = None,
    type_: str = "str",
    choices: Sequence[str] | None = None,
) -> None:
    nargs = "?" if type_ == "bool" else "+" if type_.startswith("list") else None
    text = None if text is None else text.replace("%", "%%")
    option = parser.add_argument(f"--{name}", help=text, choices=choices, nargs=nargs)
    if choices is None and "str" in type_:
        option.complete = shtab.FILE
