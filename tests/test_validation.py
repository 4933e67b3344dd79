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

from md_trl import MDConfig, MDSeq2SeqConfig, MDSeq2SeqTrainer, MDTrainer
from md_trl.cli import run_verb
from md_trl.errors import InputError
from md_trl.records import SamplingParams
from md_trl.validation import GreedyAccuracy, keep_split, split_validation, validation_questions


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
        for path, trigger in (("cot", "Let's think step by step."), ("pot", "Let's break down the code step by step.")):
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
