"""Parse the commands of pages and recipes for real, without doing what they would do; and run those that must fail."""

import importlib
from contextlib import contextmanager, nullcontext

import pytest

from md_trl.cli import VERBS, main


# What a machine without a GPU needs to accept the arguments
ON_CPU = {"train": ["--use_cpu", "true"]}


def parse_verb(arguments, monkeypatch):
    """Parse a command and return what its verb would be run with, or `None` if it only prints help."""
    verb = arguments[0]
    if {"--help", "--help-all", "--version"} & set(arguments):
        with pytest.raises(SystemExit) if verb in VERBS else nullcontext():
            main(arguments)
        return None
    assert verb in VERBS
    with recorded(verb, monkeypatch) as runs:
        main([*arguments, *ON_CPU.get(verb, ())])
    return runs[0]


def message(capsys, *arguments, status=1):
    """Run a command that must fail, and return what it says."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        main(list(map(str, arguments)))
    code, printed = exit.value.code, capsys.readouterr().err
    assert (1 if isinstance(code, str) else code) == status
    return code if isinstance(code, str) else printed


@contextmanager
def recorded(verb, monkeypatch):
    """The verb's arguments are parsed and checked as ever, but what it would do with them is not done."""
    runs = []
    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module(f"md_trl.cli.{verb}"), "run", lambda *arguments: runs.append(arguments))
        yield runs
    assert len(runs) == 1
