"""The parser of a verb: a `TrlParser` whose help fits a screen and whose errors name the mistake and the fix."""

from __future__ import annotations

import argparse
import difflib
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import yaml
from trl import TrlParser

from ..errors import InputError
from .config_file import read_config


SCREEN_LINES = 45
"""Lines that the arguments of `--help` may take."""
COLUMN = 18
"""Width of the names in `--help`. Longer ones leave less room for their description."""


class VerbParser(TrlParser):
    r"""
    Parser of the arguments of one verb.

    Args:
        dataclass_types (`Sequence[type]`):
            Dataclasses whose fields are the arguments.
        verb (`str`):
            Name of the verb.
        summary (`str`):
            What the verb does, for the help.
        shown (`Iterable[str]`):
            Names of the fields that `--help` shows. `--help-all` shows all of them.
        actions (`Sequence[str]`, *optional*, defaults to `()`):
            Values of the positional argument `action`. There is none by default, as fields cannot be positional.
        texts (`Mapping[str, str]`, *optional*):
            Help of fields whose own help is not true of this verb.
    """

    def __init__(
        self,
        dataclass_types: Sequence[type],
        verb: str,
        summary: str,
        shown: Iterable[str],
        actions: Sequence[str] = (),
        texts: Mapping[str, str] | None = None,
    ):
        words = [f"md-trl {verb}", f"{{{','.join(actions)}}}" if actions else "", "[--config FILE.yaml] [options]"]
        super().__init__(
            list(dataclass_types),
            prog=f"md-trl {verb}",
            usage=" ".join(filter(None, words)),
            description=f"md-trl {verb}: {summary}.",
            formatter_class=_FullFormatter,
        )
        self._shown, self._config_file = ["action", *shown, "config"], None
        for action in self._actions:
            action.help = (texts or {}).get(action.dest, action.help)
        if actions:
            self.add_argument("action", choices=actions, help="What to do")
        # `TrlParser` handles `--config` before argparse does, so this only documents it.
        self.add_argument(
            "--config", metavar="FILE.yaml", help="YAML file with values for these arguments. The command line wins."
        )
        self.add_argument(
            "--help-all", "--help_all", action=_HelpAll, help="Show every argument in full, and exit.", nargs=0
        )

    def parse(self, arguments: Sequence[str]) -> list[Any]:
        r"""
        Parse the arguments of the verb.

        Args:
            arguments (`Sequence[str]`):
                Command-line arguments.

        Returns:
            `list`: One instance per dataclass, then the action of a verb that has actions.

        Raises:
            `SystemExit`: With status 2 after a usage error, with 0 after `--help`.
            `InputError`: The configuration file cannot be read, or a dataclass refuses a value.
        """
        arguments = [part for argument in arguments for part in _split_config(argument)]
        if arguments[-1:] == ["--config"]:
            self.error("`--config` needs a YAML file.")
        self._check_names(arguments)
        if "--config" in arguments:
            self._config_file = arguments[arguments.index("--config") + 1]
            read_config(self._config_file)
        try:
            *parsed, other, rest = self.parse_args_and_config(arguments, return_remaining_strings=True)
        except ValueError as error:
            raise InputError(str(error)) from error
        if rest:
            self.error(f"unexpected argument {rest[0]!r}.{self._did_you_mean(rest[0])}")
        return [*parsed, other.action] if "action" in other else parsed

    def set_defaults_with_config(self, **config: Any) -> list[str]:
        """Set defaults from a configuration file, checked like arguments of the command line."""
        actions = {action.dest: action for action in self._actions if action.option_strings}
        values = {}
        for key, value in config.items():
            if key not in actions or key in ("help", "help_all", "config"):
                self.error(f"{self._place(key)}: unknown key {key!r}.{self._did_you_mean(key, '')}")
            values[key] = self._read(key, actions[key], value)
        return super().set_defaults_with_config(**values)

    def _read(self, key: str, action: argparse.Action, value: Any) -> Any:
        """Read a value of a configuration file as if it had been typed. What only YAML can express stays as it is."""
        if value is None or isinstance(value, Mapping):
            return value
        try:
            if action.nargs == "+":
                return [self._read_one(action, item) for item in (value if isinstance(value, list) else [value])]
            if isinstance(value, list) and action.type in (int, float, str):
                raise argparse.ArgumentError(None, f"expected one value, got the list {value}")
            return value if isinstance(value, list) else self._read_one(action, value)
        except argparse.ArgumentError as error:
            self.error(f"{self._place(key)}: `{key}`: {error.message}")

    def _read_one(self, action: argparse.Action, value: Any) -> Any:
        if not isinstance(value, (str, int, float)) or (isinstance(value, bool) and action.type is str):
            return value
        read = self._get_value(action, str(value))
        self._check_value(action, read)
        return read

    def _place(self, key: str) -> str:
        """The configuration file, with the line of a key."""
        with open(self._config_file, encoding="utf-8") as file:
            keys = [node for node, _ in yaml.compose(file).value]
        lines = [node.start_mark.line + 1 for node in keys if node.value == str(key)]
        return f"{self._config_file}, line {lines[0]}" if lines else str(self._config_file)

    def _check_names(self, arguments: Sequence[str]) -> None:
        """Name a misspelt option, which argparse would notice only after it missed the required ones."""
        for argument in arguments:
            name = argument.split("=", 1)[0]
            is_option = name.strip("-") and name.startswith("-") and " " not in name
            if is_option and not self._negative_number_matcher.match(argument):
                if name not in self._option_string_actions and not self._get_option_tuples(name):
                    self.error(f"unknown option `{name}`.{self._did_you_mean(name)}")

    def _did_you_mean(self, name: str, dashes: str = "--") -> str:
        names = [option[2:] for option in self._option_string_actions if "-" not in option[2:] and option[1] == "-"]
        close = difflib.get_close_matches(str(name).lstrip("-").replace("-", "_"), names, n=1)
        return f" Did you mean `{dashes}{close[0]}`?" if close else ""

    def error(self, message: str) -> NoReturn:
        """Print the usage, a message and where to read on, and exit with status 2."""
        message = textwrap.shorten(message, 700, placeholder=" ...")
        self.exit(2, f"usage: {self.usage}\n{self.prog}: error: {message}\n`{self.prog} --help` lists the options.\n")

    def format_help(self) -> str:
        """Format the arguments that `--help` shows, each in as many lines as a screen has room for."""
        actions = {action.dest: action for action in reversed(self._actions)}
        shown = [actions[name] for name in dict.fromkeys(self._shown) if name in actions]
        rows = sorted(map(_short_help, shown), key=lambda row: row[2] != "(required)")  # stable
        column = min(max(len(name) for name, *_ in rows), COLUMN)
        width = max(shutil.get_terminal_size().columns, 80)
        for max_lines in (3, 2, 1):
            lines = [line for row in rows for line in _format_row(*row, column, width, max_lines)]
            if len(lines) <= SCREEN_LINES:
                break
        hidden = len(actions.keys() - {action.dest for action in shown} - {"help", "help_all"})
        rest = f" and {hidden:,} more arguments" if hidden else ""
        end = f"--help-all shows full descriptions{rest}; --debug shows the traceback of an error."
        lines = [f"usage: {self.usage}", "", *textwrap.wrap(self.description, 79), "", *lines, ""]
        return "\n".join([*lines, *textwrap.wrap(end, 79), ""])


class _FullFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Show the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        no_default = action.default is None or action.default == []
        return action.help if no_default else super()._get_help_string(action)


class _HelpAll(argparse.Action):
    """Print what argparse prints by default."""

    def __call__(self, parser: VerbParser, *_: Any) -> NoReturn:
        parser._print_message(super(VerbParser, parser).format_help(), sys.stdout)
        parser.exit()


def _split_config(argument: str) -> list[str]:
    return argument.split("=", 1) if argument.startswith("--config=") else [argument]


def _short_help(action: argparse.Action) -> tuple[str, str, str]:
    """The name of an argument, the first sentence of its help text, and its default."""
    # Names with underscores are those of the YAML files; argparse knows each of them with hyphens, too.
    name = next((option for option in action.option_strings if "-" not in option[2:]), action.dest)
    text = re.split(r"\. (?=[A-Z`])", action.help or "")[0].rstrip(".").replace("%%", "%")
    if action.required:
        if not action.option_strings:
            text += f": {', '.join(action.choices)}"
        return name, text, "(required)"
    if action.default in (None, False, "") or action.default == []:
        return name, text, ""
    default = " ".join(map(str, action.default)) if isinstance(action.default, list) else action.default
    return name, text, f"(default: {default})"


def _format_row(name: str, text: str, default: str, column: int, width: int, max_lines: int) -> list[str]:
    """Format an argument in a number of lines. A text that is too long is cut, its default is not."""
    text, first = f"{text} {default}".rstrip(), f"  {name:<{column}}  "
    indent = " " * (column + 4)
    lines = textwrap.wrap(text, width - 1, initial_indent=first, subsequent_indent=indent)
    if len(lines) > max_lines:
        rest = f" ... {default}".rstrip()
        lines = textwrap.wrap(
            text, width - 1, initial_indent=first, subsequent_indent=indent, max_lines=max_lines, placeholder=rest
        )
    return lines or [first.rstrip()]
