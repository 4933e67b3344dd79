"""Parse the commands of pages and recipes for real, without doing what they would do."""

import importlib
from contextlib import contextmanager

from md_trl.cli import VERBS, main


# What a machine without a GPU needs to accept the arguments
ON_CPU = {"train": ["--use_cpu", "true"]}


def parse_verb(arguments, monkeypatch):
    verb = arguments[0]
    if verb in ("--help", "--version"):
        return
    assert verb in VERBS
    with recorded(verb, monkeypatch):
        main([*arguments, *ON_CPU.get(verb, ())])


@contextmanager
def recorded(verb, monkeypatch):
    """The verb's arguments are parsed and checked as ever, but what it would do with them is not done."""
    runs = []
    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module(f"md_trl.cli.{verb}"), "run", lambda *arguments: runs.append(arguments))
        yield
    assert len(runs) == 1
