import json
import math
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace

import pytest
from students import byte_tokenizer, tiny_llama

from md_trl import student_evaluation
from md_trl.answers import equal
from md_trl.cli import main
from md_trl.evaluation import EvaluationResult
from md_trl.prompts import TRIGGERS, teacher_messages, teacher_prompt
from md_trl.records import PATHS, Choice, Question, SamplingParams
from md_trl.report import accuracy_table
from md_trl.sampling.engines import SampleResult, derive_seed
from md_trl.sampling.engines.transformers import TransformersEngine
from md_trl.stopping import Seen, rule_named, take
from md_trl.store import Store
from md_trl.student_evaluation import StudentEvaluation, paths_to_sample
from md_trl.student_results import _entries
from md_trl.tasks import load_questions
from md_trl.voting import vote


QUESTIONS = [Question(f"toy/test/{i}", "toy", "test", f"What is {i} plus 1?", str(i + 1)) for i in range(3)]
PARAMS = SamplingParams(max_tokens=4)


@pytest.fixture(scope="module")
def engine():
    return TransformersEngine(tiny_llama(), byte_tokenizer())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"paths": ["prose"]}, "Unknown path 'prose'"),
        ({"questions": []}, "nothing to evaluate"),
        ({"n": 0}, "`n` is 0"),
        ({"prompt": "zero_shot"}, "Unknown prompt 'zero_shot'"),
        ({"prompt": "few_shot", "paths": ["cot", "label"]}, "no worked examples for the path 'label'"),
        ({"params": SamplingParams().greedy()}, "gives one text, not n=10"),
    ],
)
def test_settings_are_checked_before_anything_is_sampled(change, message):
    with pytest.raises(ValueError, match=message):
        StudentEvaluation(**{"questions": QUESTIONS, "params": PARAMS} | change)


def test_a_model_that_was_not_trained_is_asked_as_a_teacher(tmp_path):
    asked = []

    class Engine:
        model, tokenizer = "base", None

        def generate(self, requests):
            for request in requests:
                asked.append(request)
                yield SampleResult(request, [Choice("The answer is 5.", "stop")] * request.n)

    questions = load_questions("stories", "test")[:2]
    with Store(tmp_path / "s.db") as store:
        result = StudentEvaluation(questions, PARAMS, n=1, prompt="few_shot_text").run("base", Engine(), store)
        StudentEvaluation(questions, PARAMS, n=1, prompt="few_shot").run("base", Engine(), store)
    text, chat = asked[:4], asked[4:]
    expected = {
        (q.id, path): (teacher_prompt(q, path), teacher_messages(q, path)) for q in questions for path in PATHS
    }
    assert {(r.question_id, r.path): r.prompt for r in text} == {
        key: of_text for key, (of_text, _) in expected.items()
    }
    assert {(r.question_id, r.path): r.prompt for r in chat} == {
        key: of_chat for key, (_, of_chat) in expected.items()
    }
    # A completion model would go on to invent the next question
    assert all(r.params.stop == ("\nQuestion:",) for r in text) and not any(r.params.stop for r in chat)
    assert result.settings["prompt"] == "few_shot_text" and "prompt_format" not in result.settings
    assert result.questions[0].cot == ["5"]


def test_what_is_stored_is_not_sampled_again(engine, tmp_path):
    evaluation = StudentEvaluation(QUESTIONS, PARAMS, paths=["cot", "pot", "label"], n=2)
    with Store(tmp_path / "s.db") as store:
        assert evaluation.sample(engine, store, progress=False).thoughts == 3 * (2 + 2 + 1)
        first = evaluation.run("student", engine, store)
        assert evaluation.sample(engine, store, progress=False).thoughts == 0
        # Fewer questions and thoughts of the same samples
        part = replace(evaluation, questions=QUESTIONS[:2], n=1).run("student", engine, store)
        assert [(len(q.cot), len(q.pot), len(q.label)) for q in first.questions] == [(2, 2, 1)] * 3
        assert [q.cot for q in part.questions] == [q.cot[:1] for q in first.questions[:2]]
        assert all(question.tokens >= 5 for question in first.questions)
        # Tokens are those of the thoughts of a result, whatever else the store holds
        more = replace(evaluation, n=5).run("student", engine, store)
        again = evaluation.run("student", engine, store)
        assert [q.tokens for q in again.questions] == [q.tokens for q in first.questions]
        for question, fewer, fewest in zip(more.questions, again.questions, part.questions, strict=False):
            assert question.tokens > fewer.tokens > fewest.tokens
        for question in first.questions:
            assert len(question.cot_logprob) == len(question.pot_logprob) == 2
            assert all(-20 < logprob < 0 for logprob in question.cot_logprob + question.pot_logprob)
        files = {
            result.save(tmp_path / "results") for result in (first, part, evaluation.run("student", engine, store))
        }
    assert len(files) == 2
    assert EvaluationResult.load(first.save(tmp_path / "results")) == first
    assert first.settings["n"] == 2 and first.settings["prompt_format"] == "plain"


def test_a_run_waits_for_samples_that_another_process_draws(engine, tmp_path, monkeypatch):
    file = tmp_path / "s.db"
    evaluation = StudentEvaluation(QUESTIONS, PARAMS, paths=["cot"], n=2)
    with Store(file) as store, Store(file) as other:
        replace(evaluation, n=1).sample(engine, store, progress=False)
        [row] = store.status()
        [claim] = other.claims.claim(QUESTIONS[1].id, "cot", row.setting, 2).claims
        waits = []

        def sleep(seconds):
            waits.append(seconds)
            if len(waits) == 3:
                other.claims.save(claim.key, [Choice("The answer is 77.", "stop")], {"completion_tokens": 5})

        monkeypatch.setattr(student_evaluation.time, "sleep", sleep)
        result = evaluation.run("student", engine, store)
    assert len(waits) == 3 and result.questions[1].cot[1] == "77"


def test_a_student_of_one_path_is_asked_only_for_what_it_learned(tmp_path, capsys):
    student = tmp_path / "student"
    tiny_llama().save_pretrained(student)
    byte_tokenizer().save_pretrained(student)
    command = ["eval", "--model", str(student), "--task", "stories", "--limit", "2", "--n", "1", "--max_tokens", "4"]
    command += ["--store", str(tmp_path / "s.db"), "--output", str(tmp_path / "results")]

    def sampled(*options):
        main([*command, *options])
        newest = max((tmp_path / "results").glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
        return EvaluationResult.load(newest).settings["paths"]

    assert sampled() == ["cot", "pot"]
    settings = {"objective": "cot", "paths": ["cot"], "prompt_format": "plain", "triggers": {"cot": TRIGGERS["cot"]}}
    (student / "md_trl.json").write_text(json.dumps(settings))
    assert sampled() == ["cot"]
    assert "has not learned" not in capsys.readouterr().out
    assert sampled("--paths", "cot", "pot") == ["cot", "pot"]
    assert "has not learned the path 'pot', only cot" in capsys.readouterr().out
    assert paths_to_sample(["label"]) == ["label"] and paths_to_sample(["cot", "label"]) == ["cot"]
    assert paths_to_sample(["cot", "pot", "cot_pot"]) == paths_to_sample(None) == ["cot", "pot"]


def test_the_processes_of_a_training_share_the_evaluation(tmp_path):
    """Every process samples a part, and the samples are those of a single process."""
    student = tmp_path / "untrained"
    tiny_llama().save_pretrained(student)
    byte_tokenizer().save_pretrained(student)
    rows = [
        {
            "question": q.question,
            "type": 3,
            "lambda": 0.5,
            "answer": q.answer,
            "cot": ["The answer is 1."],
            "pot": ["1"],
        }
        for q in QUESTIONS
    ]
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (mixed / "README.md").write_text("---\nconfigs:\n- config_name: toy\n  data_files: train.jsonl\n---\n")
    output = tmp_path / "student"
    recipe = {
        "dataset": str(mixed),
        "task": "toy",
        "model_name_or_path": str(student),
        "output_dir": str(output),
        "max_steps": 1,
        "use_cpu": True,
        "report_to": "none",
        "eval_task": "stories",
        "eval_limit": 60,
        "eval_n": 5,
        "eval_max_tokens": 4,
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launch += ["-m", "md_trl", "train", "--config", str(tmp_path / "recipe.yaml")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(launch, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]

    [file] = (output / "results").glob("*.json")
    result = EvaluationResult.load(file)
    with closing(sqlite3.connect(output / "student.db")) as db:
        [(owners,)] = db.execute("SELECT count(DISTINCT owner) FROM requests WHERE error IS NULL").fetchall()
    assert owners == 2
    alone = TransformersEngine(str(output))
    evaluation = StudentEvaluation(load_questions("stories", "test")[:60], SamplingParams(max_tokens=4), n=5)
    with Store(tmp_path / "alone.db") as store, Store(output / "student.db") as shared:
        expected = evaluation.run("student", alone, store)
        texts = [[(t.question_id, t.path, t.index, t.text) for t in s.thoughts()] for s in (store, shared)]
    # What shares a batch changes the rounding, and so perhaps a token in a thousand thoughts
    changed = {a[0] for a, b in zip(*texts, strict=True) if a != b}
    assert len(texts[0]) == 60 * 2 * 5 and len(changed) <= 3
    for question, same in zip(result.questions, expected.questions, strict=True):
        if question.id not in changed:
            for path in ("cot_logprob", "pot_logprob"):
                assert getattr(question, path) == pytest.approx(getattr(same, path), abs=1e-4)
            assert question == replace(same, cot_logprob=question.cot_logprob, pot_logprob=question.pot_logprob)


class DrawnEngine:
    """An engine whose samples depend on the question, the path and the index alone."""

    model = "drawn"

    def __init__(self):
        self.samples = 0

    def student_prompt_format(self, prompt_format="auto"):
        return "plain"

    def generate(self, requests):
        for request in requests:
            choices = []
            for index in range(request.first_index, request.first_index + request.n):
                answer = "0000012?"[derive_seed(0, request.question_id, request.path, index) % 8]
                text = {"cot": f"The answer is {answer}.", "pot": f"answer = {answer}"}[request.path]
                choices.append(Choice(text if answer != "?" else "?", "stop", -(index % 3) / 4))
                self.samples += 1
            yield SampleResult(request, choices)


@pytest.mark.parametrize("weights", ["none", "likelihood"])
@pytest.mark.parametrize("rule", ["pot_first", "agreement", "esc", "adaptive"])
def test_a_stopping_rule_takes_what_it_would_take_of_all_samples(tmp_path, rule, weights):
    questions = [Question(f"toy/test/{i}", "toy", "test", f"What is {i}?", str(i % 4)) for i in range(20)]
    whole = StudentEvaluation(questions, PARAMS, n=5)
    early = replace(whole, rule=rule, weights=weights)
    with Store(tmp_path / "whole.db") as all_samples, Store(tmp_path / "early.db") as store:
        complete = whole.run("student", DrawnEngine(), all_samples)
        engine = DrawnEngine()
        result = early.run("student", engine, store)
        # From a store that holds more, the rule takes the same
        assert early.run("student", DrawnEngine(), all_samples).questions == [
            replace(q, tokens=more.tokens) for q, more in zip(result.questions, complete.questions, strict=True)
        ]
    assert engine.samples == sum(len(q.cot) + len(q.pot) for q in result.questions) < 200
    assert result.votes("joint") == engine.samples / 20 and not result.has("cot") and not result.has("n2")
    predicted = []
    for question, every in zip(result.questions, complete.questions, strict=True):
        weighted = [[math.exp(p) for p in getattr(every, f"{path}_logprob")] for path in ("cot", "pot")]
        seen = take(rule_named(rule, 10), Seen(every.cot, every.pot, *(weighted if weights != "none" else ())))
        assert (question.cot, question.pot) == (seen.cot, seen.pot)
        joint = vote(seen.cot, seen.pot, seen.cot_weights, seen.pot_weights)
        predicted.append(joint is not None and equal(joint, question.answer))
    assert result.correct("joint") == predicted
    # Tables and the Hub are told what was sampled, not the budget
    mean = result.votes("joint")
    assert accuracy_table([result]).count("(N=") == 1 and f"(N={round(mean, 2):g})" in accuracy_table([result])
    [entry] = _entries(replace(result, task="svamp"), None)
    assert entry.value == pytest.approx(100 * sum(predicted) / 20) and f"after {mean:.1f} on average" in entry.notes
    assert ("weighted by likelihood" in entry.notes) == (weights == "likelihood") and rule in entry.notes
    assert sum(round(size * share) for size, share in result.joint_by_type().values()) == sum(predicted)
    assert result.figures()["joint"] == [{"votes": result.votes("joint"), "accuracy": sum(predicted) / 20}]


def test_stopping_on_the_command_line(tmp_path, capsys):
    tiny_llama().save_pretrained(tmp_path / "student")
    byte_tokenizer().save_pretrained(tmp_path / "student")
    arguments = ["eval", "--model", str(tmp_path / "student"), "--task", "stories", "--limit", "3", "--n", "2"]
    arguments += ["--max_tokens", "3", "--store", str(tmp_path / "s.db"), "--output", str(tmp_path / "results")]
    main([*arguments, "--stop", "agreement", "--weights", "likelihood"])
    main(arguments)
    results = [EvaluationResult.load(file) for file in (tmp_path / "results").glob("*.json")]
    assert sorted(result.settings.get("rule", "fixed") for result in results) == ["agreement", "fixed"]
    main(["report", "--results", str(tmp_path / "results")])
    assert "joint" in (tmp_path / "results" / "report.json").read_text()
    with pytest.raises(SystemExit, match="compares both paths"):
        main([*arguments, "--stop", "esc", "--paths", "cot"])
