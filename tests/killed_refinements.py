"""Refinements that kill themselves at a given moment, each in a process of its own. It imports only what it needs."""

import json
import os
import signal
import sqlite3
import threading
import time
from pathlib import Path

from md_trl.cli import run_verb


PRELOAD = ["md_trl.cli.parser", "md_trl.cli.refine", "md_trl.refine", "transformers.models.llama.modeling_llama"]
"""What takes seconds to import, for the server that the processes are forked from."""


def rows_in(file, query):
    try:
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as db:
            return db.execute(query).fetchone()[0]
    except sqlite3.OperationalError:  # no such file or table yet
        return 0


def thoughts_in(file, model):
    join = "thoughts t JOIN settings s ON s.id = t.setting"
    return rows_in(file, f"SELECT count(*) FROM {join} WHERE s.model LIKE '{model}'")


CHECKPOINTS = Path("refined/round-1/student")
KILLED_WHILE = {
    "judging the teacher": (lambda: rows_in("t.results.db", "SELECT count(*) FROM results") > 0, "settings"),
    "validating the student given": (lambda: thoughts_in("refined/validation.db", "md@%") > 0, "validation"),
    "sampling": (lambda: thoughts_in("t.db", "%/round-1") > 4, "thoughts"),
    "labelling": (lambda: "Round 1: mixing" in Path("refine.log").read_text(), "thoughts"),
    "mixing": (lambda: Path("refined/round-1").exists(), "thoughts"),
    "training": (lambda: (CHECKPOINTS / "checkpoint-8/trainer_state.json").exists(), "training"),
    "saving a checkpoint": (lambda: (CHECKPOINTS / "checkpoint-16").exists(), "training"),
    "validating": (lambda: thoughts_in("refined/validation.db", "%round-1/student@%") > 0, "kept"),
    "measuring": (lambda: thoughts_in("t.db", "%/round-2") > 4, "after"),
}
"""Phases of a refinement of one round: whether one has begun, and what `refine.json` lacks until it has ended."""


def refine_until(folder, arguments, phase=None):
    """Run `md-trl refine` in this process, and kill it as soon as a phase has begun."""
    os.chdir(folder)
    with open("refine.log", "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    if phase is not None:
        reached, _ = KILLED_WHILE[phase]
        threading.Thread(target=kill_when, args=(reached,), daemon=True).start()
    run_verb("refine", arguments)


def kill_when(reached):
    while not reached():
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)


def first_unfinished():
    """What `refine.json` in the current folder lacks first."""
    file = Path("refined/refine.json")
    values = json.loads(file.read_text()) if file.exists() else {}
    done = {**values, **(values.get("rounds") or [{}])[0]}
    names = ("settings", "validation", "thoughts", "training", "kept", "after")
    return next((name for name in names if name not in done), None)
