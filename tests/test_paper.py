"""The experiments of `recipes/paper`: what they run, and that an interrupted one goes on."""

import argparse
import json
import os
import runpy
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from commands import parse_verb
from datasets import Dataset
from students import byte_tokenizer, tiny_llama

from md_trl.evaluation import EvaluationResult


ROOT = Path(__file__).parents[1]
RUN = ROOT / "recipes" / "paper" / "run.py"
EXPERIMENTS = sorted((ROOT / "recipes" / "paper").glob("*.yaml"))
QUESTIONS = [{"question": f"What is {i} plus 1?", "answer": str(i + 1), "split": "test"} for i in range(3)]
ROWS = [
    {
        **{"id": f"toy/train/{i}", "task": "toy", "question": f"What is {i} plus 2?", "answer": str(i + 2)},
        **{"type": 3, "lambda": 0.5, "repeat": 1, "n_cot": 1, "n_pot": 1, "n_cot_correct": 1, "n_pot_correct": 1},
        **{"cot_vote": str(i + 2), "pot_vote": str(i + 2)},
        "cot": [{"text": f"{i} + 2. The answer is {i + 2}.", "answer": str(i + 2), "correct": True, "count": 1}],
        "pot": [{"text": f"answer = {i} + 2", "answer": str(i + 2), "correct": True, "count": 1}],
    }
    for i in range(12)
]


def run(*arguments, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(RUN), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, **options)


@pytest.fixture
def experiment(tmp_path):
    """An experiment on a tiny student, and the fields that tests change."""
    Dataset.from_list(ROWS).to_parquet(str(tmp_path / "rows.parquet"))
    (tmp_path / "toy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    model, tokenizer = tiny_llama(), byte_tokenizer()
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    fields = {
        "output": str(tmp_path / "out"),
        "tasks": ["toy"],
        "prepare": [
            {
                "creates": "{output}/prepared-{seed}",
                "run": [
                    "python -c \"open('{output}/begun-{seed}', 'x').close()\"",
                    "python -c \"open('{output}/prepared-{seed}', 'x').close()\"",
                ],
            }
        ],
        "seeds": [1, 2],
        "train": {
            "dataset": str(tmp_path / "rows.parquet"),
            "model_name_or_path": str(tmp_path / "base"),
            **{"max_steps": 3, "per_device_train_batch_size": 4, "save_strategy": "no", "use_cpu": True},
            **{"logging_steps": 1, "report_to": "none"},
        },
        "students": {
            "md": {"objective": "md"},
            "cot": {"objective": "cot"},
            "pot": {"objective": "pot"},
            "pot-tokens": {"objective": "pot", "max_target_tokens": "as md", "max_steps": -1},
            "warm": {"objective": "md", "model_name_or_path": "{output}/students/{task}-cot@{seed}"},
        },
        "eval": [{"task": str(tmp_path / "toy.jsonl"), "split": "test", "n": 2, "max_tokens": 8}],
        "report": {"ensemble": ["ensemble=cot+pot"]},
    }
    file = tmp_path / "experiment.yaml"

    def write(**changes):
        file.write_text(yaml.safe_dump(fields | changes, sort_keys=False))
        return file

    return write


@pytest.mark.slow
def test_an_experiment_from_its_file_to_its_report(experiment, tmp_path):
    file = experiment()
    printed = run(file, "--workers", 2)
    assert printed.returncode == 0, printed.stderr[-3000:]
    out = tmp_path / "out"
    results = [EvaluationResult.load(path) for path in (out / "results").glob("*-toy-test-*.json")]
    students = ["md", "cot", "pot", "pot-tokens", "warm"]
    names = [f"{name}@{seed}" for name in students for seed in (1, 2)]
    assert sorted(result.name for result in results) == sorted(names)
    of_name = {r.name: r for r in results}
    assert of_name["md@1"].settings["paths"] == ["cot", "pot"] and of_name["cot@2"].settings["paths"] == ["cot"]
    assert of_name["md@2"].settings["seed"] == 2

    def tokens(student):
        state = json.loads((out / "students" / student / "trainer_state.json").read_text())
        return max(log.get("num_target_tokens", 0) for log in state["log_history"]), state["global_step"]

    for seed in (1, 2):  # as many target tokens as MD, to within one step, from more steps
        (of_md, steps), (of_pot, more) = tokens(f"toy-md@{seed}"), tokens(f"toy-pot-tokens@{seed}")
        assert steps == 3 < more and of_md <= of_pot
    report = json.loads((out / "results" / "report.json").read_text())
    assert {row["name"] for row in report["seeds"]["students"]} == {*students, "ensemble"}
    # Nothing is run again

    def written():
        return {path: path.stat().st_mtime_ns for path in (out / "students").rglob("*.safetensors")}

    before = written()
    assert run(file).returncode == 0 and before == written()
    # Other settings of a student are an error, not a mixture
    changed = run(experiment(students={"md": {"objective": "md", "learning_rate": 0.5}}))
    assert changed.returncode == 1 and "toy-md@1 was trained with other settings (learning_rate)" in changed.stderr


@pytest.mark.slow
def test_a_killed_experiment_goes_on(experiment, tmp_path):
    students = {"md": {"objective": "md", "max_steps": 200, "save_strategy": "steps", "save_steps": 5}}
    file = experiment(students=students)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(RUN), str(file), "--seeds", "1"], env=environment, cwd=ROOT, start_new_session=True
    )
    student = tmp_path / "out" / "students" / "toy-md@1"
    while not list(student.glob("checkpoint-*/trainer_state.json")):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    record = tmp_path / "out" / "students" / "toy-md@1.json"
    assert not record.exists()
    printed = run(file, "--seeds", 1)
    assert printed.returncode == 0, printed.stderr[-3000:]
    assert "--resume_from_checkpoint" in (tmp_path / "out" / "logs" / "toy-md@1.log").read_text()
    assert json.loads(record.read_text())["finished"][0] == "train"
    assert json.loads((student / "trainer_state.json").read_text())["global_step"] == 200


@pytest.mark.slow
def test_a_failed_student_is_named_and_others_go_on(experiment, tmp_path):
    students = {"bad": {"objective": "md", "model_name_or_path": "nowhere"}, "label": {"objective": "label"}}
    printed = run(experiment(students=students), "--seeds", 1)
    assert printed.returncode == 1 and "1 of 2 students failed: toy-bad@1" in printed.stderr
    assert "nowhere" in printed.stderr
    assert (tmp_path / "out" / "students" / "toy-label@1.json").exists()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"studens": {}}, [], "unknown key 'studens'"),
        ({}, ["--only", "nobody"], "has no student nobody. Its students are md, cot, pot, pot-tokens, warm"),
        ({}, ["--only", "pot-tokens"], "toy-pot-tokens@1 needs toy-md@1: train that first"),
        ({}, ["--only", "warm"], "toy-warm@1 needs toy-cot@1: train that first"),
    ],
)
def test_mistakes_are_found_before_anything_begins(experiment, tmp_path, change, options, message):
    printed = run(experiment(**change), *options)
    assert printed.returncode == 1 and message in printed.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("asked_for", "fields"),
    [
        ([], {"baseline": "both", "ensemble": ["both=cot+pot"]}),
        (["md", "cot"], {}),
        (["cot", "pot"], {"baseline": "both", "ensemble": ["both=cot+pot"]}),
    ],
)
def test_a_report_does_not_name_students_that_were_not_asked_for(experiment, asked_for, fields):
    report_fields, load = map(runpy.run_path(str(RUN)).get, ("report_fields", "load"))
    file = experiment(report={"baseline": "both", "ensemble": ["both=cot+pot"]})
    options = {"base": None, "output": None, "tasks": None, "seeds": None, "limit": None, "steps": None, "model": None}
    chosen = argparse.Namespace(**options, train_limit=None, only=asked_for)
    assert report_fields(*load(file, chosen)) == fields


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_experiments_of_the_paper_name_valid_commands(file, monkeypatch):
    """Each command of each experiment is parsed by the verb that would run it."""
    printed = run(file, "--dry_run")
    assert printed.returncode == 0, printed.stderr
    lines = printed.stdout.splitlines()
    assert lines
    for line in lines:
        _, *arguments = shlex.split(line)
        parse_verb(arguments, monkeypatch)


def test_the_share_of_right_labels_by_agreement_is_counted():
    """The counts of the script, against votes counted here."""
    file = ROOT / "recipes/paper/results/smollm2/md_1-svamp_all-test-bf35d0da.json"
    printed = subprocess.run(
        [sys.executable, ROOT / "recipes/paper/agreement.py", file, "--known", "200", "--label_precision", "0.6"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ).stdout
    agreed = right = 0
    for question in EvaluationResult.load(file).questions:
        cot, pot, both = (Counter(filter(None, a)) for a in (question.cot, question.pot, question.cot + question.pot))
        # Answers of this file that are equal are written alike. The one seen first wins a tie.
        if cot and pot and cot.most_common(1)[0][0] == pot.most_common(1)[0][0] == both.most_common(1)[0][0]:
            agreed += 1
            right += question.is_correct(both.most_common(1)[0][0])
    assert f"| 0.0 | {agreed / 1000:.1%} | {right / agreed:.1%} |" in printed
    assert "| md@1 |" in printed and "| 800 |" in printed
