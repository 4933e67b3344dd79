"""Questions are held out by type, and greedy accuracies on them choose checkpoints without changing the training."""

import json
import random
import re
from collections import Counter
from pathlib import Path

import bitsandbytes
import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from safetensors.torch import load_file
from students import byte_tokenizer, t5_tokenizer, tiny_gpt2, tiny_llama, tiny_t5
from test_distributed import launch
from test_qlora import NF4
from test_trainer import ROWS, relative_error, row, thought
from transformers import TrainerState

from md_trl import MDConfig, MDSeq2SeqConfig, MDSeq2SeqTrainer, MDTrainer
from md_trl.cli import run_verb
from md_trl.errors import InputError
from md_trl.records import SamplingParams
from md_trl.tasks import load_questions
from md_trl.trainer import making
from md_trl.trainer.model_card import validation_table
from md_trl.validation import GreedyAccuracy, keep_split, select_held_out, split_validation, validation_questions


GREEDY = SamplingParams(max_tokens=40)


def sums(count, seed=0):
    """Return mixed rows of every type with one CoT and one PoT on small sums."""
    rng, rows = random.Random(seed), []
    for i in range(count):
        a, b = rng.randint(0, 9), rng.randint(0, 9)
        answer = str(a + b)
        cot, pot = (
            [thought(text, answer, True)] for text in (f"So {answer}. The answer is {answer}.", f"answer = {a} + {b}")
        )
        rows.append(row(f"{i}: {a} + {b}", rng.choice([1, 2, 3, 3]), cot, pot, lambda_=0.5) | {"answer": answer})
    return rows


@settings(deadline=None, max_examples=60)
@given(
    types=st.lists(st.sampled_from([1, 1, 2, 3, 3, 3]), min_size=2, max_size=60),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
    copies=st.integers(0, 3),
)
def test_every_type_keeps_its_share(types, share, seed, copies):
    rows = [{"id": f"q{i}", "question": f"Question {i}", "type": type_} for i, type_ in enumerate(types)]
    rows += [{"id": f"copy{i}", "question": f"Question {i}", "type": types[i]} for i in range(min(copies, len(types)))]
    if not 0 < int(len(types) * share + 0.5) < len(types):
        with pytest.raises(InputError, match="Both need at least one"):
            split_validation(Dataset.from_list(rows), share, seed)
        return
    kept, held_out = split_validation(Dataset.from_list(rows), share, seed)
    assert sorted([*kept["id"], *held_out["id"]]) == sorted(r["id"] for r in rows)
    assert not set(kept["question"]) & set(held_out["question"])
    type_of = {r["question"]: r["type"] for r in rows}
    found, total = Counter(type_of[q] for q in set(held_out["question"])), Counter(types)
    assert found.total() == int(len(types) * share + 0.5)
    for type_, count in total.items():
        assert abs(found[type_] - count * share) < 1 + 1e-9
    shuffled = rows[::-1]
    _, again = split_validation(Dataset.from_list(shuffled), share, seed)
    assert sorted(again["id"]) == sorted(held_out["id"])


def test_the_seed_decides_which_questions_are_held_out():
    rows = Dataset.from_list(sums(60))
    splits = [tuple(split_validation(rows, 0.2, seed)[1]["id"]) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    questions = Dataset.from_list([{"question": f"Q{i}", "answer": "1"} for i in range(10)])  # as for `label_all`
    assert len(split_validation(questions, 0.3)[1]) == 3
    for share in (0, 1, -0.5, 10):
        with pytest.raises(InputError, match=f"between 0 and 1, got {share}"):
            split_validation(rows, share)
    with pytest.raises(InputError, match="have no column `question`, `id` or `prompt`"):
        split_validation(Dataset.from_list([{"text": "a"}]), 0.5)


def test_at_most_the_given_number_of_questions_is_asked():
    rows = Dataset.from_list(sums(60))
    asked = validation_questions(rows, 20)
    assert len(asked) == 20 and len(validation_questions(rows)) == 60
    types = {r["id"]: r["type"] for r in rows}
    found, total = Counter(types[q.id] for q in asked), Counter(types.values())
    assert all(abs(found[t] - total[t] / 3) < 1 for t in total)
    with pytest.raises(InputError, match="no column answer"):
        validation_questions(Dataset.from_list([{"question": "a"}]))


def train(tmp_path, model, rows=ROWS, callbacks=(), peft_config=None, quantization_config=None, **config):
    seq2seq = not isinstance(model, str) and model.config.is_encoder_decoder
    arguments = {
        "output_dir": str(tmp_path),
        "learning_rate": 1e-2,
        "max_steps": 60,
        "rationales_per_path": "all",
        "logging_steps": 10,
        "eval_strategy": "steps",
        "eval_steps": 20,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    } | config
    trainer = (MDSeq2SeqTrainer if seq2seq else MDTrainer)(
        model=model,
        args=(MDSeq2SeqConfig if seq2seq else MDConfig)(**arguments),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows),
        processing_class=t5_tokenizer() if seq2seq else byte_tokenizer(),
        callbacks=list(callbacks),
        peft_config=peft_config,
        quantization_config=quantization_config,
    )
    trainer.train()
    return trainer


def slow_accuracies(model, tokenizer, rows):
    """Ask one question at a time with `generate`, and run the programs with `exec`."""
    model.eval()
    right = Counter()
    for r in rows:
        answers = {}
        for path, trigger in (
            ("cot", "Let's think step by step."),
            ("pot", "Let's break down the code step by step."),
        ):
            prompt = tokenizer(f"{r['question']}\n{trigger}\n", return_tensors="pt")["input_ids"]
            ids = model.generate(prompt, do_sample=False, max_new_tokens=GREEDY.max_tokens)[0]
            new = ids if model.config.is_encoder_decoder else ids[prompt.shape[1] :]
            text = tokenizer.decode(new, skip_special_tokens=True)
            if tokenizer.eos_token_id not in new[1:]:
                answers[path] = None  # cut off
            elif path == "cot":
                stated = re.search(r"answer is (-?\d+)\.$", text.strip())
                answers[path] = stated and int(stated[1])
            else:
                space = {}
                try:
                    exec(text, space)
                    answers[path] = space.get("answer")
                except Exception:
                    answers[path] = None
        answers["joint"] = answers["cot"] if answers["pot"] is None else answers["pot"]
        right.update(figure for figure, answer in answers.items() if answer == int(r["answer"]))
    return {f"eval_{figure}_accuracy": right[figure] / len(rows) for figure in ("cot", "pot", "joint")}


@pytest.mark.parametrize("build", [tiny_llama, tiny_t5])
def test_accuracies_equal_those_of_asking_one_question_at_a_time(tmp_path, build):
    rows, tokenizer = sums(6), None
    questions = validation_questions(Dataset.from_list(rows))
    found = []
    for steps in (20, 60):
        trainer = train(tmp_path, build(), rows, [GreedyAccuracy(questions, params=GREEDY)], max_steps=steps)
        tokenizer = trainer.processing_class
        found.append([log for log in trainer.state.log_history if "eval_joint_accuracy" in log][-1])
        expected = slow_accuracies(trainer.model, tokenizer, rows)
        assert {name: found[-1][name] for name in expected} == pytest.approx(expected)
        assert "eval_loss" in found[-1] and "eval_cot_loss" in found[-1] and found[-1]["num_target_tokens"] > 0
    assert found[0] != found[1] and max(found[-1][f"eval_{figure}_accuracy"] for figure in ("cot", "pot")) > 0


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_training_is_the_same_with_and_without_the_accuracies(tmp_path, tuning):
    """GPT-2 and the adapter have dropout, so a random number drawn or a mode left behind would change the weights."""
    lora = LoraConfig(r=4, lora_dropout=0.3, target_modules=["c_attn"]) if tuning == "lora" else None
    questions, runs = validation_questions(Dataset.from_list(ROWS)), []
    for callbacks in ([], [GreedyAccuracy(questions, params=GREEDY)]):
        torch.manual_seed(0)
        trainer = train(tmp_path, tiny_gpt2(), callbacks=callbacks, peft_config=lora, max_steps=6, eval_steps=2)
        states = random.getstate(), torch.get_rng_state().tolist()
        runs.append((trainer.state.log_history, trainer.model.state_dict(), states))
    (plain, expected, before), (logs, found, after) = runs
    assert before == after
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    asked = [log for log in logs if "eval_joint_accuracy" in log]
    assert [log["step"] for log in asked] == [2, 4, 6]
    for log, other in zip(logs, plain, strict=True):
        same = {name for name in other if not name.endswith(("_runtime", "_per_second"))}
        assert {name: log[name] for name in same} == {name: other[name] for name in same}


@pytest.mark.parametrize("metric", ["eval_joint_accuracy", "pot_accuracy", "eval_loss"])
def test_the_best_checkpoint_is_chosen_by_validation(tmp_path, metric):
    rows = sums(6)
    trainer = train(
        tmp_path,
        tiny_llama(),
        rows,
        [GreedyAccuracy(validation_questions(Dataset.from_list(rows)), params=GREEDY)],
        save_strategy="steps",
        save_steps=20,
        max_steps=100,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
    )
    name = metric if metric.startswith("eval_") else f"eval_{metric}"
    by_step = {log["step"]: log[name] for log in trainer.state.log_history if name in log}
    best = (min if metric == "eval_loss" else max)(by_step.values())
    assert len(by_step) == 5 and len(set(by_step.values())) > 1
    assert trainer.state.best_metric == best
    first = next(step for step, value in by_step.items() if value == best)
    kept = load_file(tmp_path / f"checkpoint-{first}" / "model.safetensors")
    weights = trainer.model.state_dict()
    assert all(torch.equal(weights[weight], kept[weight]) for weight in kept)


def test_4_bit_layers_stay_trainable(tmp_path):
    tiny_llama(hidden_size=64).save_pretrained(tmp_path / "start")
    asked = GreedyAccuracy(validation_questions(Dataset.from_list(ROWS)), params=GREEDY)
    modes, options = [], {"max_steps": 2, "eval_steps": 1, "quantization_config": NF4}
    adapter = LoraConfig(target_modules="all-linear", init_lora_weights=False)
    runs = []
    for callbacks in ([], [asked]):
        trainer = train(tmp_path, str(tmp_path / "start"), callbacks=callbacks, peft_config=adapter, **options)
        runs.append({name: p.clone() for name, p in trainer.model.named_parameters() if p.requires_grad})
    assert all(torch.equal(runs[1][name], weight) for name, weight in runs[0].items())
    layer = next(m for m in trainer.model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit))
    layer.register_forward_hook(lambda module, *_: modes.append((module.training, trainer.model.training)))
    trainer.model.eval()
    figures = asked.evaluate(trainer.args, trainer.model, trainer.processing_class)
    assert set(figures) == {"cot_accuracy", "pot_accuracy", "joint_accuracy"}
    assert set(modes) == {(True, False)}  # layers are in training mode while the rest is not
    batch = next(iter(trainer.get_train_dataloader()))
    assert relative_error(*(gradients(trainer, batch) for _ in range(2))) == 0


def gradients(trainer, batch):
    trainer.model.train()
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, batch).backward()
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def test_prompts_without_room_count_as_wrong(tmp_path):
    rows = [ROWS[0] | {"question": "x" * 600}]  # the student has 512 positions
    trainer = train(tmp_path, tiny_llama(), max_steps=1)
    asked = GreedyAccuracy(validation_questions(Dataset.from_list(rows)), params=GREEDY)
    figures = asked.evaluate(trainer.args, trainer.model, trainer.processing_class)
    assert figures == {"cot_accuracy": 0, "pot_accuracy": 0, "joint_accuracy": 0}


def test_sharded_models_are_refused_before_training(tmp_path, monkeypatch):
    asked = GreedyAccuracy(validation_questions(Dataset.from_list(ROWS)), params=GREEDY)
    monkeypatch.setattr("md_trl.validation.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(InputError, match="no process has the whole model"):
        train(tmp_path, tiny_llama(), callbacks=[asked])
    with pytest.raises(InputError, match="no questions to ask"):
        GreedyAccuracy([])


@pytest.mark.slow
def test_two_processes_share_the_questions_and_count_the_tokens_of_both(tmp_path):
    script, logs = Path(__file__).parent / "distributed" / "train_budget.py", {}
    for processes, batch_size in ((1, 4), (2, 2)):
        launch(processes, script, tmp_path, batch_size, 8000)
        for rank in range(processes):
            logs[processes, rank] = json.loads((tmp_path / f"logs-{batch_size}-{rank}.json").read_text())
    assert logs[1, 0] == logs[2, 0] == logs[2, 1]
    counts = [log["num_target_tokens"] for log in logs[1, 0]]
    assert counts[-1] >= 8000 > max(count for count in counts if count < counts[-1])
    assert any(log.get("eval_joint_accuracy", 0) > 0 for log in logs[1, 0])


def test_a_resumed_training_must_hold_out_the_same_questions(tmp_path):
    split = {"validation": 0.5, "seed": 42, "ids": ["a", "b"]}
    keep_split(tmp_path, split, None)
    keep_split(tmp_path, split, tmp_path)
    assert json.loads((tmp_path / "validation.json").read_text()) == split
    for other in (split | {"ids": ["a", "c"]}, None):
        with pytest.raises(InputError, match="held out the 2 questions in .*validation.json, and this one would"):
            keep_split(tmp_path / "new", other, tmp_path)
    keep_split(tmp_path, None, None)  # a new training without a split
    assert not (tmp_path / "validation.json").exists()
    with pytest.raises(InputError, match="held out no questions"):
        keep_split(tmp_path, split, tmp_path)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """`datasets` takes two folders of one name, whose cards are the same, for one dataset."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def command(tmp_path, *more):
    """Train on the command line on a dataset of 20 sums, of which 5 are held out."""
    if not (tmp_path / "mixed").exists():
        tiny_llama().save_pretrained(tmp_path / "start")
        byte_tokenizer().save_pretrained(tmp_path / "start")
        Dataset.from_list(sums(20)).to_parquet(tmp_path / "mixed" / "toy" / "train.parquet")
        (tmp_path / "mixed" / "README.md").write_text(
            "---\nconfigs:\n- config_name: toy\n  data_files:\n  - split: train\n    path: toy/train.parquet\n---\n"
        )
    options = {
        "dataset": tmp_path / "mixed",
        "task": "toy",
        "model_name_or_path": tmp_path / "start",
        "output_dir": tmp_path / "student",
        "validation": 0.25,
        "validation_questions": 3,
        "eval_max_tokens": 40,
        "max_steps": 4,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "load_best_model_at_end": "true",
        "metric_for_best_model": "eval_joint_accuracy",
        "use_cpu": "true",
        "report_to": "none",
    } | dict(zip(more[::2], more[1::2], strict=True))
    run_verb("train", [part for name, value in options.items() for part in (f"--{name}", str(value))])
    return json.loads((tmp_path / "student" / "trainer_state.json").read_text())


def test_the_command_line_holds_questions_out(tmp_path, capsys):
    state = command(tmp_path)
    split = json.loads((tmp_path / "student" / "validation.json").read_text())
    _, held_out = split_validation(Dataset.from_list(sums(20)), 0.25, 42)
    assert split == {"validation": 0.25, "seed": 42, "ids": held_out["id"][:]} and len(split["ids"]) == 5
    evaluations = [log for log in state["log_history"] if "eval_joint_accuracy" in log]
    assert [log["step"] for log in evaluations] == [2, 4, 4]  # the last one is that of the best checkpoint
    for log in evaluations:
        assert {"eval_loss", "eval_cot_loss", "eval_pot_loss", "eval_cot_accuracy", "eval_pot_accuracy"} <= set(log)
    card = ModelCard.load(tmp_path / "student" / "README.md").content
    assert "| validation questions | 5, none of which is a training question |" in card
    assert "| best checkpoint by | eval_joint_accuracy |" in card
    # The best step with its figures, in the card and at the end of the output
    best = next(log for log in evaluations if log["step"] == state["best_global_step"])
    [row] = [
        line for line in card.splitlines() if line.startswith("| this student, the best by `eval_joint_accuracy` |")
    ]
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    header = next(line for line in card.splitlines() if line.startswith("| weights | step |"))
    names = [name.strip() for name in header.split("|")[2:-1]]
    assert dict(zip(names, cells, strict=True)) == {"step": str(best["step"])} | {
        name: f"{best[name]:.4f}" if name.endswith("loss") else f"{100 * best[name]:.1f}"
        for name in ("eval_loss", "eval_cot_loss", "eval_pot_loss")
        + ("eval_cot_accuracy", "eval_pot_accuracy", "eval_joint_accuracy")
    }
    assert row in capsys.readouterr().out

    resumed = command(tmp_path, "max_steps", 6, "resume_from_checkpoint", tmp_path / "student" / "checkpoint-4")
    assert resumed["global_step"] == 6
    assert json.loads((tmp_path / "student" / "validation.json").read_text()) == split
    with pytest.raises(SystemExit, match="Resume with the same `validation`, `seed` and dataset"):
        command(tmp_path, "seed", 1, "resume_from_checkpoint", tmp_path / "student" / "checkpoint-4")
    for value in (0, 1.5):
        for name in ("validation", "train_share"):
            with pytest.raises(SystemExit, match=f"`{name}` is a share .* between 0 and 1, got {float(value)}"):
                command(tmp_path, name, value)


@pytest.mark.parametrize(
    ("options", "state", "rows"),
    [
        # The weights are those of the last step, and another step had a lower loss
        ({}, {"global_step": 6}, ["this student | 6 | 0.3000 | 40.0", "the best by `eval_loss` | 4 | 0.2000 | 20.0"]),
        (
            {"metric_for_best_model": "joint_accuracy"},
            {"global_step": 6},
            ["this student, the best by `eval_joint_accuracy` | 6 | 0.3000 | 40.0"],
        ),
        # A checkpoint between two evaluations
        (
            {"metric_for_best_model": "joint_accuracy"},
            {"global_step": 7},
            ["last evaluation, the best by `eval_joint_accuracy` | 6 | 0.3000 | 40.0"],
        ),
        # The best checkpoint was loaded, and evaluated again after training
        (
            {"load_best_model_at_end": True},
            {"global_step": 6, "ended": True},
            ["this student, the best by `eval_loss` | 4 | 0.2000 | 20.0"],
        ),
        (
            {"load_best_model_at_end": True},
            {"global_step": 6},
            ["this student | 6 | 0.3000 | 40.0", "the best by `eval_loss` | 4 | 0.2000 | 20.0"],
        ),
        ({"metric_for_best_model": "eval_other"}, {"global_step": 6}, []),
    ],
)
def test_the_card_tells_the_best_step_from_the_last(tmp_path, options, state, rows):
    figures = [(2, 0.5, 0.1), (4, 0.2, 0.2), (6, 0.3, 0.4)]
    logs = [{"step": s, "eval_loss": loss, "eval_joint_accuracy": a, "eval_runtime": 1.0} for s, loss, a in figures]
    if state.get("ended"):
        logs += [{"step": 6, "train_runtime": 1.0}, logs[1] | {"step": 6}]
    saving = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    args = MDConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", **saving, **options)
    found = validation_table(
        args, TrainerState(global_step=state["global_step"], best_global_step=4, log_history=logs)
    )
    expected = ["| weights | step | eval_loss | eval_joint_accuracy |", "| --- | ---: | ---: | ---: |"]
    assert found.splitlines() == (expected + [f"| {row} |" for row in rows] if rows else [])


def test_baselines_are_asked_for_what_they_learn(tmp_path):
    state = command(tmp_path, "objective", "label", "metric_for_best_model", "eval_label_accuracy")
    [log, *_] = [log for log in state["log_history"] if "eval_loss" in log]
    assert "eval_label_accuracy" in log and "eval_cot_accuracy" not in log and "eval_joint_accuracy" not in log
    more = ["validation_questions", 0, "metric_for_best_model", "eval_loss"]
    state = command(tmp_path, *more, "resume_from_checkpoint", "false")  # over the first student
    assert not any("eval_cot_accuracy" in log for log in state["log_history"])


def test_held_out_questions_are_selected_by_their_file(tmp_path):
    questions = load_questions("stories", "train")[:20]
    file = tmp_path / "validation.json"
    file.write_text(json.dumps({"ids": [questions[7].id, questions[3].id]}))
    assert select_held_out(questions, file) == [questions[3], questions[7]]
    with pytest.raises(InputError, match="1 of the 2 questions in .*validation.json are not among those"):
        select_held_out(questions[:5], file)
    file.write_text("[]")
    with pytest.raises(InputError, match="not a file of `md-trl train --validation`"):
        select_held_out(questions, file)


def test_a_share_of_the_training_questions(monkeypatch, tmp_path):
    """It is drawn from what validation leaves, each type keeps its share, and a larger share holds a smaller one."""
    trained = {}

    def keep(model, args, model_args, train_dataset, *others):
        trained[len(trained)] = train_dataset
        raise InputError("only the rows are wanted")

    monkeypatch.setattr(making, "make_trainer", keep)
    for share in (0.2, 0.4):
        with pytest.raises(SystemExit, match="only the rows are wanted"):
            command(tmp_path, "train_share", share)
    left, held_out = split_validation(Dataset.from_list(sums(20)), 0.25, 42)
    types = Counter(left["type"])
    for share, rows in zip((0.2, 0.4), trained.values(), strict=True):
        assert len(rows) == round(share * len(left)) and not set(rows["id"]) & set(held_out["id"])
        assert all(abs(Counter(rows["type"])[type_] - share * types[type_]) < 1 for type_ in types)
    assert set(trained[0]["id"]) <= set(trained[1]["id"])
