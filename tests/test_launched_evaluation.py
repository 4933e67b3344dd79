"""A student gets the same answers from any number of processes and machines, and a killed process loses nothing."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from md_trl.evaluation import EvaluationResult
from md_trl.launched_evaluation import Process
from md_trl.store import Store


SCRIPT = Path(__file__).parent / "distributed" / "evaluate.py"


def launch(folder, processes=1, machines=1, questions=40, max_tokens=12):
    """Start `torchrun` once per machine."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    script = [str(SCRIPT), str(folder), str(questions), str(max_tokens)]
    return [
        subprocess.Popen(
            [*command, "--nnodes", str(machines), "--node_rank", str(machine), "--master_addr", "127.0.0.1"]
            + ["--master_port", str(port), *script],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for machine in range(machines)
    ]


def finish(folder, launched):
    for process in launched:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
    [file] = folder.glob("*.json")
    with Store(folder / "student.db") as store:
        texts = sorted((t.question_id, t.path, t.index, t.text) for t in store.thoughts())
    return EvaluationResult.load(file).questions, texts


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The answers and texts of a single process."""
    folder = tmp_path_factory.mktemp("alone")
    return finish(folder, launch(folder))


@pytest.mark.parametrize(
    ("processes", "machines"),
    [(2, 1), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((1, 2), (3, 1), (2, 3)))],
)
def test_all_processes_sample_and_the_answers_are_those_of_one(tmp_path, alone, processes, machines):
    assert finish(tmp_path, launch(tmp_path, processes, machines)) == alone
    sampled = [int(file.read_text()) for file in tmp_path.glob("sampled-*")]
    assert len(sampled) == processes * machines and sum(sampled) == 40 * 2 * 3
    assert sum(count > 0 for count in sampled) >= machines
    stores = [file for file in tmp_path.glob("student*.db") if "results" not in file.name]
    assert len(stores) == machines


@pytest.mark.slow
def test_more_machines_than_questions(tmp_path, alone):
    questions, texts = finish(tmp_path, launch(tmp_path, machines=2, questions=1))
    assert questions == alone[0][:1] and len(texts) == 6 and set(texts) <= set(alone[1])


@pytest.mark.slow
def test_a_killed_launch_goes_on_with_what_was_stored(tmp_path):
    size, store_file = {"questions": 60, "max_tokens": 60}, tmp_path / "killed" / "student.db"
    launched = launch(store_file.parent, processes=2, **size)
    while not _stored(store_file):
        time.sleep(0.02)
        assert launched[0].poll() is None, "ended before it was killed"
    [launcher] = launched
    for process in (*psutil.Process(launcher.pid).children(recursive=True), launcher):
        process.kill()
    launcher.communicate()
    stored = _stored(store_file)
    assert 0 < stored < 360
    resumed = finish(store_file.parent, launch(store_file.parent, processes=2, **size))
    sampled = sum(int(file.read_text()) for file in store_file.parent.glob("sampled-*"))
    assert sampled == 360 - stored
    assert resumed == finish(tmp_path / "alone", launch(tmp_path / "alone", **size))


def _stored(file):
    if not file.exists():
        return 0
    with Store(file) as store:
        return len(store.thoughts())


def test_processes_are_read_from_the_launcher():
    assert Process.from_environment({}) == Process(0, 0, 0, 1)
    launched = {"RANK": "5", "LOCAL_RANK": "1", "GROUP_RANK": "2", "GROUP_WORLD_SIZE": "3"}
    assert Process.from_environment(launched) == Process(5, 1, 2, 3)
    assert Process().is_main and not Process.from_environment(launched).is_main
