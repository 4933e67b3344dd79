"""`MDSeq2SeqTrainer` computes exactly the objective for T5, whose vocabulary is extended so that programs survive."""

import json
import string
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import AutoPeftModelForSeq2SeqLM, LoraConfig, PrefixTuningConfig, TaskType, get_peft_model
from students import t5_tokenizer, tiny_llama, tiny_t5
from test_trainer import OBJECTIVES, ROWS, Gradients, relative_error, row, thought
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from md_trl import MDConfig, MDSeq2SeqConfig, MDSeq2SeqTrainer
from md_trl.cli import run_verb
from md_trl.prompts import student_prompt
from md_trl.trainer import add_program_tokens
from md_trl.trainer.preprocessing import check_lossless


PROGRAM = 'def f(x):\n    d = {"a": [1, 2]}\n    if x < 3:\n        return f"{x}" * 2  # ~^\\\nanswer = f(2)'


def cross_entropy(model, tokenizer, prompt, text, reduction="mean"):
    prompt_ids, target = tokenizer(prompt)["input_ids"], tokenizer(text)["input_ids"]
    assert prompt_ids[-1] == target[-1] == tokenizer.eos_token_id
    logits = model(
        input_ids=torch.tensor([prompt_ids]),
        decoder_input_ids=torch.tensor([[model.config.decoder_start_token_id, *target[:-1]]]),
    ).logits[0]
    log_probs = torch.log_softmax(logits, dim=-1)
    losses = [-log_probs[i, token] for i, token in enumerate(target)]
    return sum(losses) / len(losses) if reduction == "mean" else sum(losses)


def reference_loss(model, tokenizer, rows, objective="md", unsolved="correct", reduction="mean"):
    """Compute the objective (Sec. 3.2) literally: all thoughts of each path, one at a time, with its own encoding."""

    def loss_of(prompt, text):
        return cross_entropy(model, tokenizer, prompt, text, reduction)

    triggers = {"cot": "Let's think step by step.", "pot": "Let's break down the code step by step."}
    total, count = 0.0, 0
    for r in rows:
        if objective == "label_all":  # every question once
            count += 1
            total = total + loss_of(f"{r['question']}\n", r["answer"])
            continue
        if r["type"] == 4:
            continue
        count += r["repeat"]
        if objective in ("label", "step_by_step"):
            total = total + r["repeat"] * loss_of(f"{r['question']}\n", r["answer"])
            if objective != "step_by_step":
                continue
        if objective == "step_by_step":
            weights = {"cot": 1.0}
        elif objective in ("cot", "pot"):
            weights = {objective: 1.0}
        elif r["type"] in (1, 2):
            weights = {"cot": 1.0, "pot": 1.0}
        else:
            lambda_ = 0.5 if objective == "uniform" else r["lambda"]
            weights = {"cot": 1 - lambda_, "pot": lambda_}
        for path, weight in weights.items():
            if unsolved == "majority" and (r["type"], path) in ((1, "cot"), (2, "pot")):
                texts = [t["text"] for t in r[path] if t["answer"] == r[f"{path}_vote"]]
            else:
                texts = [t["text"] for t in r[path] if t["correct"]]
            losses = [loss_of(f"{r['question']}\n{triggers[path]}\n", text) for text in texts]
            if losses:
                total = total + r["repeat"] * weight * sum(losses) / len(losses)
    return total / count


def train(tmp_path, model, rows, callbacks=(), tokenizer=None, peft_config=None, quantization_config=None, **config):
    gradients = Gradients()
    arguments = {
        "output_dir": str(tmp_path),
        "learning_rate": 0.0,
        "max_steps": 1,
        "per_device_train_batch_size": 8,
        "rationales_per_path": "all",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    } | config
    trainer = MDSeq2SeqTrainer(
        model=model,
        args=MDSeq2SeqConfig(**arguments),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer or t5_tokenizer(),
        callbacks=[gradients, *callbacks],
        peft_config=peft_config,
        quantization_config=quantization_config,
    )
    trainer.train()
    return trainer, gradients.steps


def test_training_stops_at_the_first_step_that_reaches_the_target_tokens(tmp_path):
    every, _ = train(tmp_path, tiny_t5(), ROWS, max_steps=7, rationales_per_path="1", per_device_train_batch_size=2)
    counts = [log["num_target_tokens"] for log in every.state.log_history[:-1]]
    for budget, steps in ((counts[4], 5), (counts[4] + 1, 6)):
        config = {"max_steps": -1, "max_target_tokens": budget, "per_device_train_batch_size": 2}
        trainer, _ = train(tmp_path, tiny_t5(), ROWS, rationales_per_path="1", **config)
        assert trainer.state.max_steps == trainer.state.global_step == steps
        assert [log["num_target_tokens"] for log in trainer.state.log_history] == [*counts[:steps], counts[steps - 1]]


def test_programs_survive_once_their_characters_are_added():
    model, before = tiny_t5(), t5_tokenizer()
    with pytest.raises(ValueError, match="loses characters of a program"):
        check_lossless(before, PROGRAM, before(PROGRAM)["input_ids"], "Row 0")
    size, rows, questions = len(before), model.get_input_embeddings().num_embeddings, before("What is 2 + 3?")
    tokenizer, new_ids = add_program_tokens(before, model)
    assert len(before) == size and before.decode(before("a\nb")["input_ids"]) == "a b</s>"  # unchanged
    check_lossless(tokenizer, PROGRAM, tokenizer(PROGRAM)["input_ids"], "Row 0")
    assert set("\n\t{}<~^\\`") | {"  ", "    "} <= set(tokenizer.convert_ids_to_tokens(new_ids))
    assert new_ids == list(range(size, len(tokenizer))) and len(tokenizer) > rows
    assert model.get_input_embeddings().num_embeddings == model.lm_head.out_features == len(tokenizer)
    assert tokenizer("What is 2 + 3?")["input_ids"] == questions["input_ids"]  # prose is tokenized as before
    assert add_program_tokens(tokenizer, model) == (tokenizer, [])


def test_unused_embeddings_are_filled_before_any_are_added():
    model = tiny_t5(vocab_size=len(t5_tokenizer()) + 28)  # T5 has 32,128 embeddings for 32,100 tokens
    known = model.shared.weight[: len(t5_tokenizer())].mean(dim=0)
    tokenizer, new_ids = add_program_tokens(t5_tokenizer(), model)
    assert model.get_input_embeddings().num_embeddings == len(t5_tokenizer()) + 28 > len(tokenizer)
    assert model.lm_head.weight is model.shared.weight
    for new_id in new_ids:
        torch.testing.assert_close(model.lm_head.weight[new_id], known)


def test_other_characters_of_the_programs_are_added_too():
    tokenizer, _ = add_program_tokens(t5_tokenizer(), tiny_t5(), ["answer = '½€'"])
    check_lossless(tokenizer, "answer = '½€'", tokenizer("answer = '½€'")["input_ids"], "Row 0")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=string.ascii_letters + string.digits + string.punctuation + "   \n\n", min_size=1))
def test_any_ascii_program_survives(text):
    program = text.strip()
    check_lossless(LOSSLESS, program, LOSSLESS(f"What?\n{program}")["input_ids"], "Row 0")
    assert LOSSLESS.decode(LOSSLESS(program)["input_ids"], skip_special_tokens=True) == program


LOSSLESS, _ = add_program_tokens(t5_tokenizer(), tiny_t5())


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_loss_and_gradients_equal_the_slow_reference(tmp_path, objective, accumulation):
    for unsolved, reduction in (("correct", "mean"), ("majority", "sum")):
        model = tiny_t5()
        trainer, [found] = train(
            tmp_path,
            model,
            ROWS,
            objective=objective,
            unsolved_path=unsolved,
            token_reduction=reduction,
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
        )
        model.zero_grad()
        expected_loss = reference_loss(model, trainer.processing_class, ROWS, objective, unsolved, reduction)
        expected_loss.backward()
        expected = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert set(found) == set(expected)
        assert relative_error(found, expected) < 1e-5
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5 * expected[name].abs().max())
        assert trainer.state.log_history[0]["loss"] == pytest.approx(expected_loss.item(), rel=1e-5)


@pytest.mark.parametrize(("batch", "accumulation"), [(1, 1), (2, 3), (5, 1), (16, 1)])
def test_every_split_of_an_epoch_gives_the_same_sum_and_evaluation_loss(tmp_path, batch, accumulation):
    model, seen, total = tiny_t5(), 0, 0.0
    trainer, _ = train(
        tmp_path,
        model,
        ROWS,
        max_steps=-1,
        num_train_epochs=1,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch,
        gradient_accumulation_steps=accumulation,
    )
    for log in trainer.state.log_history[:-1]:
        questions, seen = log["num_questions"] - seen, log["num_questions"]
        total += log["loss"] * questions
    assert seen == 7
    expected = reference_loss(model, trainer.processing_class, ROWS).item()
    assert total == pytest.approx(expected * seen, rel=1e-5)
    assert trainer.evaluate(Dataset.from_list(ROWS))["eval_loss"] == pytest.approx(expected, rel=1e-5)
    metrics = trainer.evaluate({"all": Dataset.from_list(ROWS), "first": Dataset.from_list(ROWS[:1])})
    assert metrics["eval_all_loss"] == pytest.approx(expected, rel=1e-5)
    expected = reference_loss(model, trainer.processing_class, ROWS[:1]).item()
    assert metrics["eval_first_loss"] == pytest.approx(expected, rel=1e-5)


def test_logs_have_a_loss_per_path_and_type_and_count_tokens(tmp_path):
    model = tiny_t5()
    trainer, _ = train(tmp_path, model, ROWS)
    log, tokenizer = trainer.state.log_history[0], trainer.processing_class
    for type_ in (1, 2, 3):
        expected = reference_loss(model, tokenizer, [r for r in ROWS if r["type"] == type_]).item()
        assert log[f"type_{type_}_loss"] == pytest.approx(expected, rel=1e-5)
    kept = [r for r in ROWS if r["type"] != 4]
    for path in ("cot", "pot"):
        with_path = [r for r in kept if any(t["correct"] for t in r[path])]
        assert log[f"{path}_loss"] == pytest.approx(reference_loss(model, tokenizer, with_path, path).item(), rel=1e-5)
    assert log["mean_lambda"] == pytest.approx(0.5)
    assert 0 <= log["mean_token_accuracy"] <= 1
    # Nodes: each distinct prompt once, and each thought once per occurrence, with the token the decoder starts from
    prompts, count, targets = set(), 0, 0
    for r in kept:
        for path in ("cot", "pot"):
            texts = [t["text"] for t in r[path] if t["correct"]]
            prompts |= {student_prompt(r["question"], path)} if texts else set()
            count += r["repeat"] * sum(len(tokenizer(text)["input_ids"]) + 1 for text in texts)
            targets += r["repeat"] * sum(len(tokenizer(text)["input_ids"]) for text in texts)
    assert log["num_target_tokens"] == targets
    assert log["num_nodes"] == count + sum(len(tokenizer(prompt)["input_ids"]) for prompt in prompts)


def test_a_missing_column_is_named(tmp_path):
    with pytest.raises(ValueError, match="no column pot"):
        train(tmp_path, tiny_t5(), [{name: ROWS[0][name] for name in ("question", "type", "lambda", "cot")}])


def test_a_saved_student_has_its_prompt_settings_and_the_counts(tmp_path):
    trainer, _ = train(
        tmp_path, saved_t5(tmp_path), ROWS, peft_config=lora(), logging_steps=10, save_strategy="steps", save_steps=1
    )
    trainer.save_model(tmp_path / "student")
    for folder in (tmp_path / "checkpoint-1", tmp_path / "student"):
        settings = json.loads((folder / "md_trl.json").read_text())
        assert settings["paths"] == ["cot", "pot"] and settings["prompt_format"] == "plain"
        card = (folder / "README.md").read_text()
        assert "| questions seen | 7 |" in card and str(tmp_path) not in card


def test_the_encoder_reads_each_prompt_once(tmp_path):
    model, encoded, decoded = tiny_t5(), [], []
    model.encoder.register_forward_hook(lambda module, args, kwargs, out: encoded.append(kwargs), with_kwargs=True)
    model.decoder.register_forward_hook(lambda module, args, kwargs, out: decoded.append(kwargs), with_kwargs=True)
    train(tmp_path, model, ROWS)
    [_, encoder], [_, decoder] = encoded, decoded  # the first pass measures what the model does to its logits
    # Two prompts per question, but "language" has no program. Thoughts: 1 + 2, 3 x (1 + 2), 2 x (1 + 0), 2 + 1.
    assert len(encoder["input_ids"]) == len(encoder["attention_mask"]) == 7
    assert len(set(map(tuple, encoder["input_ids"].tolist()))) == 7
    assert len(decoder["input_ids"]) == len(decoder["encoder_hidden_states"]) == 17


def test_a_batch_without_any_target_has_loss_zero(tmp_path):
    trainer, [found] = train(tmp_path, tiny_t5(), [ROWS[2]], objective="pot")
    assert trainer.state.log_history[0]["loss"] == 0
    assert all(not gradient.any() for gradient in found.values())


def test_long_thoughts_are_dropped_and_counted_and_never_cut(tmp_path):
    long = thought("x = 1\n" * 100 + "answer = 5", "5", True)
    rows = [ROWS[0] | {"pot": [*ROWS[0]["pot"], long]}, ROWS[1], ROWS[2] | {"cot": [long]}, ROWS[3]]
    trainer, [found] = train(tmp_path, tiny_t5(), rows, max_length=200)
    assert trainer.dropped["train"] == {"type_4": 1, "no_thought": 1, "too_long": 2}
    _, [expected] = train(tmp_path, tiny_t5(), ROWS[:2])
    assert relative_error(found, expected) < 1e-6


def test_path_rows_weight_their_cross_entropy(tmp_path):
    rows = [
        {"prompt": "What is 2 + 3?\n", "completion": "The answer is 5.", "weight": 0.5, "path": "cot"},
        {"prompt": "What is 2 + 3?\n", "completion": "answer = {5}[0]  # é", "weight": 2.0, "path": "pot"},
        {"prompt": "What is 1?\n", "completion": "1", "weight": 1.0, "path": "label"},
    ]
    model = tiny_t5()
    trainer, [found] = train(tmp_path, model, rows)
    model.zero_grad()
    losses = [r["weight"] * cross_entropy(model, trainer.processing_class, r["prompt"], r["completion"]) for r in rows]
    expected = sum(losses) / 3
    expected.backward()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert relative_error(found, {n: p.grad for n, p in model.named_parameters()}) < 1e-5
    train(tmp_path, tiny_t5(), [{"prompt": r["prompt"], "completion": r["completion"]} for r in rows[::2]])


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_activation_checkpointing_does_not_change_the_gradients(tmp_path, tuning):
    found = []
    for checkpointing in (False, True):
        peft_config = lora(init_lora_weights=False) if tuning == "lora" else None
        model = tiny_t5()
        _, [gradients] = train(tmp_path, model, ROWS, peft_config=peft_config, activation_checkpointing=checkpointing)
        assert model.is_activation_checkpointing == checkpointing
        found.append(gradients)
    assert set(found[0]) == set(found[1]) and relative_error(*found) < 1e-6


def lora(**options):
    return LoraConfig(r=4, target_modules=["q", "v"], lora_dropout=0.0, **options)


def test_lora_gradients_equal_the_slow_reference_and_new_tokens_are_trained(tmp_path):
    trainer, [found] = train(tmp_path, tiny_t5(), ROWS, peft_config=lora(init_lora_weights=False))
    trainer.model.zero_grad()
    base = trainer.model.get_base_model()
    reference_loss(base, trainer.processing_class, ROWS).backward()
    expected = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
    assert set(found) == set(expected)
    assert relative_error(found, expected) < 1e-5
    [embeddings] = [name for name in found if "lora" not in name]  # tied: the four modules share one set of rows
    assert "trainable_tokens_delta" in embeddings
    assert len(found[embeddings]) == len(trainer.processing_class) - len(t5_tokenizer())


TWO = [
    row(
        "two and three",
        3,
        [thought("2 + 3 is 5. The answer is 5.", "5", True)],
        [thought("if 1 < 2:\n    answer = sum({2, 3})", "5", True)],
        lambda_=0.5,
    ),
    row(
        "large",
        1,
        [thought("The answer is 5.", "5", True)],
        [thought("for i in range(6):\n    for j in range(2):\n        answer = i", "5", True)],
    ),
]


def generate(model, tokenizer, question, path):
    inputs = tokenizer(student_prompt(question, path), return_tensors="pt")
    ids = model.eval().generate(**inputs, max_new_tokens=80, do_sample=False)
    return tokenizer.decode(ids[0], skip_special_tokens=True)


def saved_t5(tmp_path, **config):
    tiny_t5(**config).save_pretrained(tmp_path / "start")
    return str(tmp_path / "start")


OVERFIT = {"max_steps": 200, "learning_rate": 1e-2, "max_grad_norm": 1.0, "warmup_steps": 10, "logging_steps": 10}
OVERFIT |= {"lr_scheduler_type": "constant_with_warmup"}


def test_an_overfitted_student_and_its_loaded_copy_write_the_thoughts(tmp_path):
    trainer, _ = train(tmp_path, saved_t5(tmp_path), TWO, **OVERFIT)
    trainer.save_model(tmp_path / "student")
    copy = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "student")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    for r in TWO:
        for path in ("cot", "pot"):
            assert generate(trainer.model, trainer.processing_class, r["question"], path) == r[path][0]["text"]
            assert generate(copy, tokenizer, r["question"], path) == r[path][0]["text"]


def test_a_lora_student_and_its_loaded_copy_write_the_same(tmp_path):
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    trainer, _ = train(tmp_path, saved_t5(tmp_path), TWO, peft_config=adapter, **OVERFIT | {"max_steps": 100})
    first, *_, last, _ = trainer.state.log_history
    assert last["cot_loss"] < 0.3 * first["cot_loss"] and last["pot_loss"] < 0.6 * first["pot_loss"]
    assert adapter.trainable_token_indices is None  # the given configuration is unchanged
    trainer.save_model(tmp_path / "student")
    copy = AutoPeftModelForSeq2SeqLM.from_pretrained(tmp_path / "student")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    for r in TWO:
        for path in ("cot", "pot"):
            written = generate(trainer.model, trainer.processing_class, r["question"], path)
            assert generate(copy, tokenizer, r["question"], path) == written
    merged = copy.merge_and_unload()
    assert generate(merged, tokenizer, r["question"], path) == written
    start = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "start").shared.weight[: len(t5_tokenizer())]
    newline = merged.shared.weight[tokenizer.convert_tokens_to_ids("\n")]
    assert (newline - start.mean(dim=0)).norm() > 0.5
    torch.testing.assert_close(merged.shared.weight[: len(start)], start)


def test_unsupported_options_and_models_are_refused_by_name(tmp_path):
    for option in (
        {"layout": "tree"},
        {"max_row_tokens": 512},
        {"predict_with_generate": True},
        {"label_smoothing_factor": 0.1},
    ):
        with pytest.raises(ValueError, match=next(iter(option))):
            MDSeq2SeqConfig(output_dir=str(tmp_path), use_cpu=True, **option)
    with pytest.raises(ValueError, match="`MDSeq2SeqConfig` does not support `layout=.tree.`"):
        MDSeq2SeqTrainer(tiny_t5(), args=MDConfig(output_dir=str(tmp_path), use_cpu=True))
    with pytest.raises(ValueError, match="is not an encoder-decoder"):
        train(tmp_path, tiny_llama(), ROWS)
    prefix = PrefixTuningConfig(task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=4)
    with pytest.raises(ValueError, match="does not support prefix tuning"):
        train(tmp_path, get_peft_model(tiny_t5(), prefix), ROWS)


def train_on_the_command_line(tmp_path, model, *more):
    """Run the recipe of T5-large with a tiny T5 and return the folder of the student."""
    t5_tokenizer().save_pretrained(tmp_path / "t5")
    model.save_pretrained(tmp_path / "t5")
    Dataset.from_list(ROWS).to_parquet(tmp_path / "mixed" / "toy" / "train.parquet")
    (tmp_path / "mixed" / "README.md").write_text(
        "---\nconfigs:\n- config_name: toy\n  data_files:\n  - split: train\n    path: toy/train.parquet\n---\n"
    )
    recipe = Path(__file__).parents[1] / "recipes" / "t5-large" / "svamp.yaml"
    arguments = ["--config", str(recipe), "--task", "toy", "--max_steps", "2", "--use_cpu", "true", "--bf16", "false"]
    for name, folder in (("dataset", "mixed"), ("model_name_or_path", "t5"), ("output_dir", "student")):
        arguments += [f"--{name}", str(tmp_path / folder)]
    run_verb("train", [*arguments, "--eval_task", "stories", *more])
    return tmp_path / "student"
