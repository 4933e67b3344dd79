"""`MDTrainer` computes exactly the loss and gradients of the objective, whatever the layout, batches and options."""

import gc
import itertools
import json
import math
import random
import re
import sqlite3
from collections import Counter

import pytest
import torch
from accelerate import ParallelismConfig
from datasets import Dataset
from huggingface_hub import ModelCard
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from students import byte_tokenizer, tiny_gpt2, tiny_llama, tiny_mistral
from tokenizers import processors
from transformers import TrainerCallback

import md_trl
from md_trl import MDConfig, MDTrainer, MixedReasoner
from md_trl.prompts import encode, read_student_settings, student_text
from md_trl.tasks import load_questions
from md_trl.trainer.data_sampler import DrawnQuestions, QuestionSampler, draw
from md_trl.trainer.preprocessing import prepare_questions, tokenize_thoughts
from md_trl.weighting import path_rows, thoughts_to_learn


# Every `train` collects garbage: what the imports have made is none
gc.freeze()

OBJECTIVES = ["md", "cot", "pot", "uniform", "step_by_step", "label", "label_all"]


def thought(text, answer, correct):
    return {"text": text, "answer": answer, "correct": correct, "count": 1}


def row(name, type_, cot, pot, *, lambda_=None, repeat=1, cot_vote="5", pot_vote="5"):
    return {
        "id": f"toy/train/{name}",
        "task": "toy",
        "question": f"What is {name}?",
        "answer": "5",
        "type": type_,
        "lambda": lambda_,
        "repeat": repeat,
        "n_cot": 4,
        "n_pot": 4,
        "n_cot_correct": sum(t["correct"] for t in cot),
        "n_pot_correct": sum(t["correct"] for t in pot),
        "cot_vote": cot_vote,
        "pot_vote": pot_vote,
        "cot": cot,
        "pot": pot,
    }


ROWS = [
    row(
        "two and three",
        3,
        [thought("2 + 3 = 5. The answer is 5.", "5", True), thought("It is 6. The answer is 6.", "6", False)],
        [thought("answer = 2 + 3", "5", True), thought("a = 2\nb = 3\nanswer = a + b", "5", True)],
        lambda_=2 / 3,
    ),
    row(
        "large",
        1,
        [
            thought("The answer is 7.", "7", False),
            thought("Easy. The answer is 5.", "5", True),
            thought("So, 7. The answer is 7.", "7", False),
        ],
        [thought("answer = 10 - 5", "5", True), thought("for i in range(6):\n    answer = i", "5", True)],
        repeat=3,
        cot_vote="7",
    ),
    row("language", 2, [thought("A handful. The answer is 5.", "5", True)], [], repeat=2, pot_vote=None),
    row("hopeless", 4, [thought("The answer is 1.", "1", False)], [], cot_vote="1", pot_vote=None),
    row(
        "even",
        3,
        [thought("Half of ten. The answer is 5.", "5", True), thought("10 / 2 is 5. The answer is 5.", "5", True)],
        [thought("answer = 10 // 2", "5", True)],
        lambda_=1 / 3,
    ),
]


def reference_texts(r, path, unsolved):
    """Return the distinct texts of a path to learn from. Votes and answers are numbers here."""
    texts = []
    for t in r[path]:
        if isinstance(t, str):
            t = {"text": t, "answer": None, "correct": True}
        learned = t["correct"]
        if unsolved == "majority" and (r["type"], path) in ((1, "cot"), (2, "pot")):
            learned = None not in (vote := r[f"{path}_vote"], t["answer"]) and float(t["answer"]) == float(vote)
        if learned and t["text"].strip() not in texts:
            texts.append(t["text"].strip())
    return texts


def reference_loss(model, tokenizer, rows, objective="md", unsolved="correct", reduction="mean", format="plain"):
    """Compute the objective (Sec. 3.2) literally: all thoughts of each path, one at a time."""

    def cross_entropy(prompt, text):
        prompt_ids = tokenizer(prompt)["input_ids"]
        ids = tokenizer(prompt + text)["input_ids"] + [tokenizer.eos_token_id]
        assert ids[: len(prompt_ids)] == prompt_ids
        log_probs = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0], dim=-1)
        targets = range(len(prompt_ids), len(ids))
        losses = -log_probs[[i - 1 for i in targets], [ids[i] for i in targets]]
        return losses.mean() if reduction == "mean" else losses.sum()

    triggers = {"cot": "Let's think step by step.", "pot": "Let's break down the code step by step."}
    total, count = 0.0, 0
    for r in rows:
        if objective == "label_all":  # every question once
            count += 1
            total = total + cross_entropy(f"{r['question']}\n", r["answer"])
            continue
        if r["type"] == 4:
            continue
        count += r["repeat"]
        if objective == "label":
            total = total + r["repeat"] * cross_entropy(f"{r['question']}\n", r["answer"])
            continue
        if objective == "step_by_step":
            total = total + r["repeat"] * cross_entropy(f"{r['question']}\n", r["answer"])
            weights = {"cot": 0.3}
        elif objective in ("cot", "pot"):
            weights = {objective: 1.0}
        elif r["type"] in (1, 2):
            weights = {"cot": 1.0, "pot": 1.0}
        else:
            lambda_ = 0.5 if objective == "uniform" else r["lambda"]
            weights = {"cot": 1 - lambda_, "pot": lambda_}
        for path, weight in weights.items():
            prompt = f"{r['question']}\n{triggers[path]}\n"
            losses = [cross_entropy(prompt, text) for text in reference_texts(r, path, unsolved)]
            if losses:
                total = total + r["repeat"] * weight * sum(losses) / len(losses)
    return total / count


class Gradients(TrainerCallback):
    """Callback that keeps the gradients of every optimizer step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def train(tmp_path, model, rows, tokenizer=None, peft_config=None, resume=None, **config):
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
    trainer = MDTrainer(
        model=model,
        args=MDConfig(**arguments),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer or byte_tokenizer(),
        callbacks=[gradients],
        peft_config=peft_config,
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer, gradients.steps


def relative_error(found, expected):
    difference = math.sqrt(sum((found[n] - expected[n]).double().pow(2).sum().item() for n in expected))
    return difference / math.sqrt(sum(expected[n].double().pow(2).sum().item() for n in expected))


@pytest.mark.parametrize("layout", ["padded", "packed", "tree"])
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_loss_and_gradients_equal_the_slow_reference(tmp_path, objective, accumulation, layout):
    settings = [(tiny_llama, "correct", "mean"), (tiny_gpt2, "majority", "sum"), (tiny_mistral, "correct", "sum")]
    for build, unsolved, reduction in settings:
        model = build()
        trainer, [found] = train(
            tmp_path,
            model,
            ROWS,
            objective=objective,
            rationale_weight=0.3,
            layout=layout,
            unsolved_path=unsolved,
            token_reduction=reduction,
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
        )
        model.zero_grad()
        expected_loss = reference_loss(model, byte_tokenizer(), ROWS, objective, unsolved, reduction)
        expected_loss.backward()
        expected = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert set(found) == set(expected)
        assert relative_error(found, expected) < 1e-5
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5 * expected[name].abs().max())
        assert trainer.state.log_history[0]["loss"] == pytest.approx(expected_loss.item(), rel=1e-5)


def test_lora_gradients_equal_the_slow_reference(tmp_path):
    model = tiny_llama()
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, lora_dropout=0.0)
    trainer, [found] = train(tmp_path, model, ROWS, peft_config=lora, per_device_train_batch_size=4)
    # 7 questions with repeats: only the first 4 of the epoch are in this step
    order = list(trainer._get_train_sampler(DrawnQuestions(trainer.train_dataset, trainer.args)))[:4]
    occurrences = DrawnQuestions(trainer.train_dataset, trainer.args).occurrences
    kept = [r for r in ROWS if r["type"] != 4]
    rows = [kept[occurrences[position][0]] | {"repeat": 1} for _, position in order]
    trainer.model.zero_grad()
    reference_loss(trainer.model, byte_tokenizer(), rows).backward()
    expected = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
    assert set(found) == set(expected) and all("lora" in name for name in found)
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize(("batch", "accumulation"), [(1, 1), (2, 3), (3, 2), (5, 1), (16, 1)])
def test_every_split_of_an_epoch_gives_the_same_sum(tmp_path, batch, accumulation):
    model = tiny_llama()
    seen = 0
    trainer, _ = train(
        tmp_path,
        model,
        ROWS,
        max_steps=-1,
        num_train_epochs=1,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
    )
    total = 0.0
    for log in trainer.state.log_history[:-1]:
        questions, seen = log["num_questions"] - seen, log["num_questions"]
        total += log["loss"] * questions
    assert seen == 1 + 3 + 2 + 1  # N counts the kept questions with repeats, not what fills up a batch
    expected = reference_loss(model, byte_tokenizer(), ROWS).item() * seen
    assert total == pytest.approx(expected, rel=1e-5)


def test_repeat_two_equals_listing_a_question_twice(tmp_path):
    model = tiny_llama()
    listed = [r | {"repeat": 1} for r in ROWS for _ in range(r["repeat"])]
    for k in ("all", "1"):
        _, [one] = train(tmp_path, model, ROWS, rationales_per_path=k)
        _, [other] = train(tmp_path, model, listed, rationales_per_path=k)
        assert relative_error(one, other) < 1e-5


def test_evaluation_loss_is_averaged_over_the_whole_dataset(tmp_path):
    model = tiny_llama()
    for batch in (1, 3, 8):
        trainer, _ = train(tmp_path, model, ROWS, per_device_eval_batch_size=batch)
        metrics = trainer.evaluate(Dataset.from_list(ROWS))
        of_dictionary = trainer.evaluate({"some": Dataset.from_list(ROWS)})
        assert of_dictionary["eval_some_loss"] == metrics["eval_loss"]
        assert metrics["eval_loss"] == pytest.approx(reference_loss(model, byte_tokenizer(), ROWS).item(), rel=1e-5)


def test_logs_have_a_loss_per_path_and_type(tmp_path):
    model = tiny_llama()
    trainer, _ = train(tmp_path, model, ROWS)
    log = trainer.state.log_history[0]
    only = {t: [r for r in ROWS if r["type"] == t] for t in (1, 2, 3)}
    for type_, rows in only.items():
        expected = reference_loss(model, byte_tokenizer(), rows).item()
        assert log[f"type_{type_}_loss"] == pytest.approx(expected, rel=1e-5)
    kept = [r for r in ROWS if r["type"] != 4]
    for path in ("cot", "pot"):
        with_path = [r for r in kept if any(t["correct"] for t in r[path])]
        expected = reference_loss(model, byte_tokenizer(), with_path, path).item()
        assert log[f"{path}_loss"] == pytest.approx(expected, rel=1e-5)
    assert log["mean_lambda"] == pytest.approx(0.5)
    assert 0 <= log["mean_token_accuracy"] <= 1


def test_trackio_receives_the_losses_of_both_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    trainer, _ = train(tmp_path, tiny_llama(), ROWS, max_steps=2, report_to="trackio", project="md")
    with sqlite3.connect(tmp_path / "trackio" / "md.db") as store:
        kept = [json.loads(metrics) for (metrics,) in store.execute("SELECT metrics FROM metrics ORDER BY id")]
    for log, found in zip(trainer.state.log_history[:2], kept[:2], strict=True):
        assert all(found[f"train/{name}"] == log[name] for name in ("loss", "cot_loss", "pot_loss", "mean_lambda"))


def test_training_lowers_the_loss_of_both_paths(tmp_path):
    trainer, _ = train(
        tmp_path, tiny_llama(), ROWS, max_steps=60, learning_rate=1e-2, max_grad_norm=1.0, rationales_per_path="1"
    )
    first, last = trainer.state.log_history[0], trainer.state.log_history[-2]
    assert last["cot_loss"] < 0.3 * first["cot_loss"]
    assert last["pot_loss"] < 0.3 * first["pot_loss"]


def test_draws_are_uniform_without_replacement_and_differ_between_epochs():
    for count, k in itertools.product(range(6), ["1", "2", "4", "all"]):
        drawn = draw(count, k, 0, 0, "id", "cot", 0)
        assert len(drawn) == len(set(drawn)) == (count if k == "all" else min(count, int(k)))
    # repeats draw different thoughts as long as there are any
    assert sorted(draw(4, "1", 7, 0, "id", "pot", o)[0] for o in range(4)) == [0, 1, 2, 3]
    draws = [tuple(draw(4, "2", 7, epoch, "id", "pot", 0)) for epoch in range(3000)]
    shares = [sum(i in d for d in draws) / len(draws) for i in range(4)]
    assert all(abs(share - 0.5) < 0.04 for share in shares)
    assert draws == [tuple(draw(4, "2", 7, epoch, "id", "pot", 0)) for epoch in range(3000)]
    assert len({tuple(draw(9, "3", 7, e, i, p, 0)) for e in (0, 1) for i in "ab" for p in ("cot", "pot")}) > 4


def test_sampler_yields_each_question_once_and_fills_the_last_batch_with_none(tmp_path):
    for size, batch, drop_last in itertools.product((1, 4, 7), (1, 2, 3, 8), (False, True)):
        sampler = QuestionSampler(range(size), multiple_of=batch, shuffle=True, drop_last=drop_last)
        orders = []
        for epoch in range(3):
            sampler.set_epoch(epoch)
            keys = list(sampler)
            assert len(keys) == len(sampler) and len(keys) % batch == 0
            real = [key for key in keys if key is not None]
            assert all(e == epoch for e, _ in real)
            positions = [position for _, position in real]
            assert len(set(positions)) == len(positions)
            assert drop_last or sorted(positions) == list(range(size))
            orders.append(positions)
        assert size < 4 or drop_last or orders[0] != orders[1]


def test_thoughts_to_learn():
    large = ROWS[1]
    assert thoughts_to_learn(large, "cot", "correct") == ["Easy. The answer is 5."]
    assert thoughts_to_learn(large, "cot", "majority") == ["The answer is 7.", "So, 7. The answer is 7."]
    assert thoughts_to_learn(large, "pot", "majority") == thoughts_to_learn(large, "pot", "correct")
    assert thoughts_to_learn(ROWS[2], "pot", "majority") == []
    assert thoughts_to_learn(large | {"cot": [" a\n", "a", "b"]}, "cot", "correct") == ["a", "b"]


def test_plain_strings_count_as_correct_thoughts(tmp_path):
    plain = [
        r | {path: [t["text"] for t in r[path] if t["correct"]] for path in ("cot", "pot")}
        for r in ROWS
        if r["type"] != 4
    ]
    model = tiny_llama()
    _, [one] = train(tmp_path, model, ROWS)
    _, [other] = train(tmp_path, model, plain)
    assert relative_error(one, other) < 1e-6


def test_long_thoughts_are_dropped_and_counted_and_never_cut(tmp_path):
    long = thought("x = 1\n" * 100 + "answer = 5", "5", True)
    rows = [ROWS[0] | {"pot": [*ROWS[0]["pot"], long]}, ROWS[1], ROWS[2] | {"cot": [long]}]
    model = tiny_llama()
    trainer, [found] = train(tmp_path, model, rows, max_length=200)
    assert trainer.dropped["train"] == {"type_4": 0, "no_thought": 1, "too_long": 2}
    _, [expected] = train(tmp_path, model, ROWS[:2])
    assert relative_error(found, expected) < 1e-6


def test_n_counts_questions_without_a_thought_of_the_learned_path(tmp_path):
    # "language" has no program, so it adds nothing to the PoT loss, but N counts it for every objective
    trainer, _ = train(tmp_path, tiny_llama(), ROWS, objective="pot")
    assert trainer.state.log_history[0]["num_questions"] == 7


def test_a_batch_without_any_target_has_loss_zero(tmp_path):
    trainer, [found] = train(tmp_path, tiny_llama(), [ROWS[2]], objective="pot")
    assert trainer.state.log_history[0]["loss"] == 0
    assert all(not gradient.any() for gradient in found.values())


def test_bad_input_is_refused_by_name(tmp_path):
    cases = [
        ([ROWS[3]], {}, r"No question is left in the train dataset of 1 rows: 1 of type 4"),
        ([ROWS[0] | {"lambda": None}], {}, r"Row 0 \('toy/train/two and three'\).*lambda None"),
        ([ROWS[0] | {"lambda": 1.5}], {}, r"lambda 1.5"),
        ([ROWS[0] | {"type": 5}], {}, r"type 5"),
        ([ROWS[0] | {"repeat": 0}], {}, r"repeat 0"),
        ([ROWS[0] | {"question": None}], {}, r"question None"),
        ([ROWS[0] | {"answer": None}], {"objective": "label"}, r"answer None"),
        ([ROWS[0] | {"cot": [{"text": "a"}]}], {}, r"a cot thought without `text` or `correct`"),
        ([ROWS[0] | {"cot": "2 and 3 is 5."}], {}, r"Row 0 .*`cot` is a text, '2 and 3 is 5.', instead of a list"),
        ([{k: v for k, v in ROWS[0].items() if k != "pot"}], {}, r"no column pot"),
        ([], {}, r"`train_dataset` holds no rows"),
        (ROWS, {"max_length": 10}, r"thoughts longer than `max_length=10`"),
    ]
    for rows, config, message in cases:
        with pytest.raises(ValueError, match=message):
            train(tmp_path, tiny_llama(), rows, **config)


def test_other_kinds_of_datasets_are_refused_with_what_to_do(tmp_path):
    args = MDConfig(str(tmp_path), use_cpu=True, report_to="none")
    for rows, message in (
        (Dataset.from_list(ROWS).to_pandas(), "got `DataFrame`. Convert it with `datasets.Dataset.from_pandas"),
        ("mixed", "got `str`. Load it with `datasets.load_dataset`"),
        (Dataset.from_list(ROWS).to_iterable_dataset(), "Load it without `streaming=True`"),
        (tuple(ROWS), "got `tuple`. Convert it with `datasets.Dataset.from_list`"),
        (["a", "b"], "has 'a' as a row. Every row is a dictionary"),
    ):
        with pytest.raises(TypeError, match=re.escape(message)):
            MDTrainer(tiny_llama(), args, train_dataset=rows, processing_class=byte_tokenizer())
    with pytest.raises(TypeError, match="`eval_dataset` must be .* got `DataFrame`"):
        MDTrainer(tiny_llama(), args, None, ROWS, Dataset.from_list(ROWS).to_pandas(), byte_tokenizer())


def test_the_format_of_a_dataset_changes_nothing(tmp_path):
    args = MDConfig(str(tmp_path), max_steps=1, logging_steps=1, save_strategy="no", use_cpu=True, report_to="none")
    losses = []
    for name in (None, "numpy", "torch", "pandas"):
        rows = Dataset.from_list(ROWS).with_format(name)
        trainer = MDTrainer(tiny_llama(), args, train_dataset=rows, processing_class=byte_tokenizer())
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses == [losses[0]] * 4


def test_a_model_may_be_given_as_a_path(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "tiny")
    byte_tokenizer().save_pretrained(tmp_path / "tiny")
    args = MDConfig(str(tmp_path / "o"), max_steps=1, use_cpu=True, report_to="none", save_strategy="no")
    assert MDTrainer(tmp_path / "tiny", args, train_dataset=ROWS).train().global_step == 1


def test_unusable_tokenizers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has no EOS token"):
        train(tmp_path, tiny_llama(), ROWS, tokenizer=byte_tokenizer(eos_token=None))
    lossy = byte_tokenizer()
    from tokenizers import normalizers

    lossy.backend_tokenizer.normalizer = normalizers.Replace("\n", " ")
    with pytest.raises(ValueError, match=r"loses characters of a program.*lost \['\\n'\]"):
        train(tmp_path, tiny_llama(), ROWS, tokenizer=lossy)
    train(tmp_path, tiny_llama(), ROWS, tokenizer=lossy, objective="cot")


REFUSED = {
    "label_smoothing_factor": 0.1,
    "loss_type": "dft",
    "completion_only_loss": False,
    "assistant_only_loss": True,
    "liger_kernel_config": {"fused_linear_cross_entropy": True},
    "router_aux_loss_coef": 0.01,
    "activation_offloading": True,
    "average_tokens_across_devices": False,
    "neftune_noise_alpha": 5.0,
    "eval_packing": True,
    "packing_strategy": "wrapped",
    "padding_free": True,
    "pad_to_multiple_of": 8,
    "truncation_mode": "keep_end",
    "train_sampling_strategy": "group_by_length",
    "length_column_name": "tokens",
    "shuffle_dataset": True,
    "remove_unused_columns": True,
    "dataset_text_field": "question",
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "label_names": ["targets"],
    "include_num_input_tokens_seen": "non_padding",
    "include_for_metrics": ["inputs"],
    "batch_eval_metrics": True,
    "eval_do_concat_batches": False,
    "accelerator_config": {"dispatch_batches": True},
    "parallelism_config": ParallelismConfig(cp_size=2),
    "objective": "mixed",
    "layout": "round",
    "rationales_per_path": "some",
    "token_reduction": "median",
    "weight_normalizer": "batches",
}


@pytest.mark.parametrize("option", REFUSED)
def test_unsupported_options_are_refused_by_name(tmp_path, option):
    with pytest.raises(ValueError, match=rf"`{option}\b"):
        MDConfig(output_dir=str(tmp_path), use_cpu=True, **{option: REFUSED[option]})


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": True},
        {"activation_checkpointing": True, "torch_empty_cache_steps": 1, "skip_memory_metrics": False},
        {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 1},
        {"include_num_input_tokens_seen": True, "logging_first_step": True},
        {"accelerator_config": {"even_batches": False}, "full_determinism": False, "use_cache": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_supported_options_do_not_change_the_gradients(tmp_path, options):
    _, [expected] = train(tmp_path, tiny_llama(), ROWS)
    trainer, [found] = train(
        tmp_path, tiny_llama(), ROWS, per_device_train_batch_size=2, gradient_accumulation_steps=4, **options
    )
    assert relative_error(found, expected) < 1e-5
    if "include_num_input_tokens_seen" in options:
        assert trainer.state.num_input_tokens_seen >= trainer.state.log_history[0]["num_nodes"]


def test_persistent_workers_draw_anew_in_each_epoch(tmp_path):
    workers = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}
    losses = []
    for options in ({}, workers):
        trainer, _ = train(tmp_path, tiny_llama(), ROWS, max_steps=4, rationales_per_path="1", **options)
        losses.append([log["loss"] for log in trainer.state.log_history[:-1]])
    assert losses[0] == losses[1]
    assert len(set(losses[1])) > 1  # the student does not change, but the draws do


def test_auto_find_batch_size_starts_counting_again(tmp_path, monkeypatch):
    """The first attempt runs out of memory in the backward pass, after its batch was counted."""
    options = {"max_steps": -1, "num_train_epochs": 1, "auto_find_batch_size": True, "learning_rate": 1e-2}
    backward = torch.Tensor.backward
    tries = []

    def runs_out(self, *args, **kwargs):
        tries.append(None)
        if len(tries) == 1:
            raise RuntimeError("CUDA out of memory.")
        return backward(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "backward", runs_out)
    found, _ = train(tmp_path, tiny_llama(), ROWS, **options)
    monkeypatch.undo()
    size = found._train_batch_size
    assert size < 8
    options |= {"auto_find_batch_size": False, "per_device_train_batch_size": size}
    expected, _ = train(tmp_path, tiny_llama(), ROWS, **options)
    for log, other in zip(found.state.log_history[:-1], expected.state.log_history[:-1], strict=True):
        assert all(log[name] == other[name] for name in ("loss", "cot_loss", "num_questions", "num_nodes"))


def test_the_best_model_is_chosen_by_the_evaluation_loss_of_the_objective(tmp_path):
    trainer = MDTrainer(
        model=tiny_llama(),
        args=MDConfig(
            output_dir=str(tmp_path),
            max_steps=3,
            learning_rate=0.5,  # far too high, so that an early checkpoint is the best
            eval_strategy="steps",
            eval_steps=1,
            eval_on_start=True,
            save_steps=1,
            save_total_limit=1,
            save_only_model=True,
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            rationales_per_path="all",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(ROWS),
        eval_dataset=Dataset.from_list(ROWS),
        processing_class=byte_tokenizer(),
    )
    trainer.train()
    losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert len(losses) == 4 and trainer.state.best_metric == min(losses[1:])
    best = reference_loss(trainer.model, byte_tokenizer(), ROWS).item()
    assert best == pytest.approx(trainer.state.best_metric, rel=1e-5)


def test_special_tokens_and_chat_template_of_the_configuration_are_used(tmp_path):
    template = tmp_path / "chat.jinja"
    template.write_text("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]")
    options = {"eos_token": "<pad>", "pad_token": "</s>", "chat_template_path": str(template)}
    trainer, _ = train(tmp_path, tiny_llama(), ROWS, **options)
    ids = trainer.train_dataset[0]["pot"][0]["input_ids"]
    assert ids[-1] == 1 and trainer.data_collator.pad_token_id == 0
    assert trainer.processing_class.decode(ids).startswith("[user]What is two and three?")


def test_chat_students_learn_the_thought_in_the_assistant_turn(tmp_path):
    tokenizer = byte_tokenizer(
        chat_template="{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    trainer, _ = train(tmp_path, tiny_llama(), ROWS, tokenizer=tokenizer)
    thoughts = trainer.train_dataset[0]["pot"]
    ids, start = thoughts[0]["input_ids"], thoughts[0]["start"]
    assert tokenizer.decode(ids[:start]) == (
        "[user]What is two and three?\nLet's break down the code step by step.[assistant]"
    )
    assert tokenizer.decode(ids[start:]) == "answer = 2 + 3</s>"


CHATML = """{% if messages[0].role != "system" %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("prompt_format", ["plain", "chat", "auto"])
def test_students_are_trained_on_the_tokens_they_are_prompted_with(tmp_path, prompt_format, adds_bos):
    tokenizer = byte_tokenizer(eos_token="<|im_end|>", extra_special_tokens=["<|im_start|>"], chat_template=CHATML)
    if adds_bos:  # like Llama's tokenizer; a chat template writes its own BOS
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="</s> $A", special_tokens=[("</s>", 0)]
        )
    question = "Zoë\thas 3 {{ eggs }} {% if %} for 2½ €…\n\n“How  many” <b>left</b>? 🥚 \\n"
    rows = [ROWS[0] | {"question": f" {question}\n"}]
    model = tiny_llama(vocab_size=len(tokenizer))
    trainer, _ = train(tmp_path, model, rows, tokenizer=tokenizer, prompt_format=prompt_format)
    trained = []
    for path in ("cot", "pot"):
        for tokenized, text in zip(
            trainer.train_dataset[0][path], reference_texts(ROWS[0], path, "correct"), strict=True
        ):
            ids, start = tokenized["input_ids"], tokenized["start"]
            assert tokenizer.decode(ids[start:-1]) == text and ids[-1] == tokenizer.eos_token_id
            trained.append(ids[:start])

    asked = []

    def keep(model, args, kwargs):
        if kwargs["input_ids"].shape[1] > 1:  # a prompt, not a single sampled token
            for ids, mask in zip(kwargs["input_ids"], kwargs["attention_mask"], strict=True):
                asked.append(ids[mask.bool()].tolist())

    model.register_forward_pre_hook(keep, with_kwargs=True)
    reasoner = MixedReasoner(model, tokenizer=tokenizer, n=2, max_tokens=2, prompt_format=prompt_format)
    reasoner([f" {question}\n"])
    assert sorted(asked) == sorted(trained[:2]) and trained[1] == trained[2]
    text = tokenizer.decode(trained[0])
    assert text.count("You are a helpful assistant.") == (prompt_format != "plain") and question in text
    assert trained[0].count(0) == (adds_bos and prompt_format == "plain")


def test_targets_start_at_the_first_token_that_differs_from_the_prompt(tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # The prompt's last newline and the thought's first letter are merged into one token.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {t: i for i, t in enumerate(["</s>", *alphabet, "Ċa"])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "a")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    [merged, apart] = tokenize_thoughts("Q?", "pot", ["answer = 1", "x = 1"], tokenizer, "plain")
    assert tokenizer.decode(merged["input_ids"][merged["start"] :]) == "\nanswer = 1</s>"
    assert tokenizer.decode(apart["input_ids"][apart["start"] :]) == "x = 1</s>"


def random_rows(count, seed):
    """Return mixed rows with short random thoughts; an unsolved path may have none."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        type_ = rng.choice([1, 2, 3, 3])
        thoughts = {}
        for path in ("cot", "pot"):
            fewest = 0 if (type_, path) in ((1, "cot"), (2, "pot")) else 1
            texts = {"".join(rng.choices("ab =+1\n", k=rng.randint(1, 30))).strip() or "a": None for _ in range(4)}
            thoughts[path] = [thought(text, "5", True) for text in list(texts)[: rng.randint(fewest, 4)]]
        rows.append(
            row(str(i), type_, thoughts["cot"], thoughts["pot"], lambda_=rng.random(), repeat=rng.randint(1, 2))
        )
    return rows


@st.composite
def typed_rows(draw):
    """Mixed rows of any kind: duplicate ids and thoughts, empty paths, missing votes."""
    plain = {path: draw(st.booleans()) for path in ("cot", "pot")}
    texts = st.text("ab =+1\n", max_size=12).map(
        lambda text: f"{text}a"
    )  # few different letters, so that many beginnings are shared
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        thoughts = {
            path: draw(
                st.lists(
                    texts
                    if plain[path]
                    else st.builds(thought, texts, st.sampled_from(["5", "7", "7.0"]), st.booleans()),
                    max_size=6,
                )
            )
            for path in ("cot", "pot")
        }
        votes = {f"{path}_vote": draw(st.sampled_from(["5", "7", None])) for path in ("cot", "pot")}
        lambda_ = draw(st.sampled_from([0.0, 1.0]) | st.floats(0, 1))
        rows.append(
            {"id": draw(st.sampled_from("abc")), "question": draw(texts).strip(), "type": draw(st.integers(1, 4))}
            | {"lambda": lambda_, "repeat": draw(st.integers(1, 3))}
            | thoughts
            | votes
        )
    return rows


@settings(max_examples=10, deadline=None, phases=[Phase.reuse, Phase.generate])  # shrinking takes minutes
@given(
    rows=typed_rows(),
    unsolved=st.sampled_from(["correct", "majority"]),
    reduction=st.sampled_from(["mean", "sum"]),
    k=st.sampled_from(["1", "4", "all"]),
)
def test_any_rows_equal_the_slow_reference_in_every_layout(tmp_path_factory, rows, unsolved, reduction, k):
    drawn, seen = [], Counter()
    for r in rows:
        texts = {path: reference_texts(r, path, unsolved) for path in ("cot", "pot")}
        if r["type"] == 4 or not any(texts.values()):
            continue
        for _ in range(r["repeat"]):
            chosen = {}
            for path, of_path in texts.items():
                indices = draw(len(of_path), k, 42, 0, r["id"], path, seen[r["id"]])
                chosen[path] = [of_path[i] for i in indices]
            drawn.append(r | {"repeat": 1} | chosen)
            seen[r["id"]] += 1
    assume(drawn)
    model = tiny_llama()
    expected_loss = torch.as_tensor(reference_loss(model, byte_tokenizer(), drawn, reduction=reduction))
    if expected_loss.requires_grad:  # false if only empty paths have a weight
        expected_loss.backward()
    expected = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    norm = math.sqrt(sum(gradient.pow(2).sum().item() for gradient in expected.values()))
    for layout in ("padded", "packed", "tree"):
        trainer, [found] = train(
            tmp_path_factory.getbasetemp(),
            tiny_llama(),
            rows,
            layout=layout,
            unsolved_path=unsolved,
            token_reduction=reduction,
            rationales_per_path=k,
            per_device_train_batch_size=16,
        )
        assert trainer.state.log_history[0]["num_questions"] == len(drawn)
        assert trainer.state.log_history[0]["loss"] == pytest.approx(expected_loss.item(), rel=1e-5)
        difference = math.sqrt(sum((found[n] - expected[n]).pow(2).sum().item() for n in expected))
        assert difference <= 1e-5 * norm


def test_target_tokens_are_the_same_in_every_layout_and_nodes_are_not(tmp_path):
    kept = [r for r in ROWS if r["type"] != 4]
    texts = [
        (r["repeat"], text) for r in kept for path in ("cot", "pot") for text in reference_texts(r, path, "correct")
    ]
    targets = sum(repeat * (len(text.encode()) + 1) for repeat, text in texts)  # a token per byte, and EOS
    nodes = {}
    for layout in ("padded", "packed", "tree"):
        trainer, _ = train(tmp_path, tiny_llama(), ROWS, layout=layout)
        log = trainer.state.log_history[0]
        assert log["num_target_tokens"] == targets
        nodes[layout] = log["num_nodes"]
    assert nodes["tree"] < nodes["packed"] == nodes["padded"]


def test_label_all_learns_every_question_of_the_task_once(tmp_path, caplog):
    """Type 4 is included and `repeat` ignored (Appendix C); rows without type 4 cause a single warning."""
    questions = [{name: r[name] for name in ("id", "task", "question", "answer")} for r in ROWS]
    model = tiny_llama()
    trainer, [found] = train(tmp_path, model, questions, objective="label_all")
    assert trainer.state.log_history[0]["num_questions"] == len(ROWS)
    trainer, [mixed] = train(tmp_path, model, ROWS, objective="label_all")  # with repeats and with type 4
    assert trainer.state.log_history[0]["num_questions"] == len(ROWS)
    assert relative_error(mixed, found) < 1e-6
    assert "load_questions" not in caplog.text
    for _ in range(2):
        train(tmp_path, model, [r for r in ROWS if r["type"] != 4], objective="label_all")
    assert caplog.text.count("Pass the task's own questions: `Dataset.from_list(") == 1
    stories = Dataset.from_list([vars(question) for question in load_questions("stories", "train", size=4)])
    trainer, _ = train(tmp_path, model, list(stories), objective="label_all")
    assert trainer.state.log_history[0]["num_questions"] == 4


def slow_target_counts(rows, options, steps):
    """Count the target tokens of each step from the texts: a token per byte and EOS, in the order of the sampler."""
    seed, k = options.get("seed", 42), options["rationales_per_path"]
    per_step = options["per_device_train_batch_size"] * options.get("gradient_accumulation_steps", 1)
    kept = [r for r in rows if r["type"] != 4]
    occurrences = [(r, o) for r in kept for o in range(r["repeat"])]
    counts = []
    for epoch in itertools.count():
        order = list(range(len(occurrences)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        for start in range(0, len(order), per_step):
            tokens = 0
            for r, occurrence in (occurrences[place] for place in order[start : start + per_step]):
                for path in ("cot", "pot"):
                    texts = reference_texts(r, path, "correct")
                    drawn = draw(len(texts), k, seed, epoch, r["id"], path, occurrence)
                    tokens += sum(len(texts[i].encode()) + 1 for i in drawn)
            counts.append(tokens)
            if len(counts) == steps:
                return counts


@pytest.mark.parametrize(
    "options",
    [
        {"rationales_per_path": "all"},
        {"rationales_per_path": "1", "gradient_accumulation_steps": 2, "seed": 7},
        {"rationales_per_path": "1", "per_device_train_batch_size": 4, "dataloader_num_workers": 1},
    ],
)
def test_training_stops_at_the_first_step_that_reaches_the_target_tokens(tmp_path, options):
    options = {"per_device_train_batch_size": 2} | options
    expected = list(itertools.accumulate(slow_target_counts(ROWS, options, 9)))  # more than two epochs
    for budget, steps in ((1, 1), (expected[4], 5), (expected[4] + 1, 6), (expected[7] + 1, 9)):
        config = {"max_steps": -1, "num_train_epochs": 1, "learning_rate": 1e-3, "max_target_tokens": budget}
        trainer, _ = train(tmp_path, tiny_llama(), ROWS, **options, **config)
        logs = trainer.state.log_history
        assert trainer.state.global_step == trainer.state.max_steps == steps
        assert [log["num_target_tokens"] for log in logs] == [*expected[:steps], expected[steps - 1]]
        # The schedule ends with the training.
        rates = [log["learning_rate"] for log in logs[:-1]]
        assert rates == pytest.approx([1e-3 * (steps - step) / steps for step in range(steps)])
    trainer, _ = train(tmp_path, tiny_llama(), ROWS, **options, max_steps=3, max_target_tokens=expected[7])
    assert trainer.state.global_step == 3
    trainer, _ = train(tmp_path, tiny_llama(), ROWS, **options, max_steps=8, max_target_tokens=expected[3])
    assert trainer.state.global_step == 4


def test_a_resumed_training_continues_the_count_of_target_tokens(tmp_path):
    options = {"rationales_per_path": "1", "per_device_train_batch_size": 2}
    expected = list(itertools.accumulate(slow_target_counts(ROWS, options, 9)))
    config = {"max_steps": -1, "learning_rate": 1e-2, "max_target_tokens": expected[8], "logging_steps": 4}
    options |= config | {"save_strategy": "steps", "save_steps": 3}
    whole, _ = train(tmp_path, tiny_llama(), ROWS, **options)
    for step in (3, 6):
        resumed, _ = train(tmp_path, tiny_llama(), ROWS, resume=tmp_path / f"checkpoint-{step}", **options)
        assert resumed.state.global_step == 9
        for trainer in (whole, resumed):
            counts = {log["step"]: log["num_target_tokens"] for log in trainer.state.log_history}
            assert counts == {4: expected[3], 8: expected[7], 9: expected[8]}
        for found, kept in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(found, kept)


def test_the_limit_of_target_tokens_counts_flat_rows_too(tmp_path):
    flat = [{"prompt": "a", "completion": "b" * i, "weight": float(i), "id": str(i)} for i in range(1, 6)]
    trainer, _ = train(tmp_path, tiny_llama(), flat, max_steps=-1, max_target_tokens=21, per_device_train_batch_size=8)
    assert trainer.state.global_step == 2 and trainer.state.log_history[-1]["num_target_tokens"] == 2 * (15 + 5)


def test_impossible_limits_of_target_tokens_are_refused(tmp_path):
    for value in (0, -5):
        with pytest.raises(ValueError, match=f"`max_target_tokens` must be at least 1, got {value}"):
            MDConfig(output_dir=str(tmp_path), use_cpu=True, max_target_tokens=value)
    with pytest.raises(ValueError, match="`ignore_data_skip=True` is not supported with"):
        MDConfig(output_dir=str(tmp_path), use_cpu=True, max_target_tokens=9, ignore_data_skip=True)
    with pytest.raises(ValueError, match="`max_target_tokens=9` cannot be reached"):
        train(tmp_path, tiny_llama(), [ROWS[2]], objective="pot", max_steps=-1, max_target_tokens=9)
    with pytest.raises(ValueError, match="`max_target_tokens=9` cannot be reached"):
        train(tmp_path, tiny_llama(), ROWS, dataloader_drop_last=True, max_steps=-1, max_target_tokens=9)


@pytest.mark.parametrize("restore", [False, True])
def test_resuming_between_two_logs_keeps_the_counts(tmp_path, restore):
    options = {"max_steps": 8, "logging_steps": 4, "save_strategy": "steps", "save_steps": 3, "learning_rate": 1e-2}
    options |= {"per_device_train_batch_size": 2, "restore_callback_states_from_checkpoint": restore}
    whole, _ = train(tmp_path, tiny_llama(), ROWS, **options)
    for step in (3, 6):
        resumed, _ = train(tmp_path, tiny_llama(), ROWS, resume=tmp_path / f"checkpoint-{step}", **options)
        logs = [
            {name: value for name, value in log.items() if name.startswith(("num_", "mean_", "type_", "cot", "pot"))}
            for trainer in (whole, resumed)
            for log in trainer.state.log_history
            if "num_questions" in log
        ]
        assert len(logs) == 4 and logs[:2] == logs[2:] and logs[0]["num_questions"] > 0
        card = ModelCard.load(tmp_path / "README.md").content
        assert f"| questions seen | {logs[-1]['num_questions']} |" in card


def test_a_second_training_counts_from_zero(tmp_path):
    trainer, _ = train(tmp_path, tiny_llama(), ROWS)
    trainer.train()
    assert trainer.state.log_history[0]["num_questions"] == 7


def test_a_card_written_before_the_first_log_has_the_counts(tmp_path):
    train(tmp_path, tiny_llama(), ROWS, logging_steps=10, save_strategy="steps", save_steps=1)
    for folder in (tmp_path, tmp_path / "checkpoint-1"):
        card = ModelCard.load(folder / "README.md").content
        assert "| questions seen | 7 |" in card
        assert "| target tokens seen | 0 |" not in card and "| target tokens seen | " in card


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_card_names_no_local_folder(tmp_path, monkeypatch, tuning):
    monkeypatch.chdir(tmp_path)
    tiny_llama().save_pretrained("models/start")
    Dataset.from_list(ROWS).to_parquet("mixed/rows/train.parquet")
    adapter = LoraConfig(r=2, target_modules=["q_proj"]) if tuning == "lora" else None
    trainer, _ = train("out", "models/start", ROWS, peft_config=adapter)
    trainer.save_model()
    assert "models/start" not in (tmp_path / "out" / "README.md").read_text()
    for name in ("mixed/rows", "./mixed/gone", "/srv/mixed", str(tmp_path / "mixed"), "mixed/rows/"):
        trainer.create_model_card(dataset_name=name)
        card = (tmp_path / "out" / "README.md").read_text()
        assert "mixed/" not in card and "/srv" not in card and str(tmp_path) not in card and "models/start" not in card
    trainer.create_model_card(dataset_name="md/mixed-thoughts")
    card = ModelCard.load("out/README.md")
    assert card.data.datasets == "md/mixed-thoughts" and "# out" in card.content
    assert "https://huggingface.co/datasets/md/mixed-thoughts" in card.content


@pytest.mark.parametrize(
    ("options", "rows", "objective", "paths", "prompt_format"),
    [
        ({}, ROWS, "md", ["cot", "pot"], "plain"),
        ({"objective": "cot"}, ROWS, "cot", ["cot"], "plain"),
        ({"objective": "step_by_step"}, ROWS, "step_by_step", ["cot", "label"], "plain"),
        ({"objective": "label"}, ROWS, "label", ["label"], "plain"),
        ({}, [{"prompt": "a", "completion": "b", "path": "pot"}], None, ["pot"], "plain"),
        ({"template": True}, ROWS, "md", ["cot", "pot"], "chat"),
        ({"template": True, "prompt_format": "plain"}, ROWS, "md", ["cot", "pot"], "plain"),
    ],
    ids=["md", "cot", "step_by_step", "label", "path rows", "chat", "plain"],
)
def test_a_saved_student_has_its_prompt_settings(tmp_path, options, rows, objective, paths, prompt_format):
    options = dict(options)
    tokenizer = byte_tokenizer(chat_template=CHATML) if options.pop("template", False) else None
    trainer, _ = train(
        tmp_path, tiny_llama(), rows, tokenizer=tokenizer, save_strategy="steps", save_steps=1, **options
    )
    trainer.save_model(tmp_path / "student")
    triggers = {"cot": "Let's think step by step.", "pot": "Let's break down the code step by step."}
    for folder in (tmp_path / "checkpoint-1", tmp_path / "student"):
        assert (
            read_student_settings(folder)
            == json.loads((folder / "md_trl.json").read_text())
            == {
                "md_trl": md_trl.__version__,
                "objective": objective,
                "paths": paths,
                "prompt_format": prompt_format,
                "triggers": {path: triggers[path] for path in paths if path != "label"},
            }
        )


def test_the_card_of_a_student_names_method_objective_and_lambda(tmp_path):
    trainer, _ = train(tmp_path, tiny_llama(), ROWS, save_strategy="steps", save_steps=1)
    card = ModelCard.load(tmp_path / "README.md")
    assert {"md_trl", "mixed-distillation"} <= set(card.data.tags)
    for text in (
        "https://huggingface.co/papers/2312.10730",
        "| objective | md |",
        "| 1 | PoT only | 1 | 3 |",
        "| 3 | both | 2 | 2 |",
        "Mean lambda over type 3: 0.500",
        "| questions seen | 7 |",
        'prompt_format="plain"',
    ):
        assert text in card.content, card.content


@pytest.mark.parametrize("layout", ["padded", "tree"])
def test_path_rows_have_the_loss_of_the_mixed_rows(tmp_path, layout):
    triggers = {"cot": "Let's think step by step.", "pot": "Let's break down the code step by step."}
    by_hand = []
    for r in ROWS:
        for path in ("cot", "pot"):
            texts = thoughts_to_learn(r, path, "correct") if r["type"] != 4 else []
            weight = 1.0 if r["type"] != 3 else r["lambda"] if path == "pot" else 1 - r["lambda"]
            by_hand += [
                {
                    "id": r["id"],
                    "task": "toy",
                    "path": path,
                    "type": r["type"],
                    "prompt": f"{r['question']}\n{triggers[path]}\n",
                    "completion": text,
                    "weight": r["repeat"] * weight / len(texts),
                }
                for text in texts
            ]
    flat = path_rows(ROWS)
    assert flat == by_hand
    model = tiny_llama()
    trainer, [found] = train(tmp_path, model, flat, layout=layout, per_device_train_batch_size=32)
    # The loss is the mean over path rows, or over the questions of mixed rows.
    model.zero_grad()
    expected = reference_loss(model, byte_tokenizer(), ROWS) * 7 / len(flat)
    expected.backward()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert relative_error(found, {n: p.grad for n, p in model.named_parameters()}) < 1e-5


@pytest.mark.parametrize("objective", OBJECTIVES[:-1])
def test_path_rows_of_every_objective_have_the_gradients_of_the_mixed_rows(tmp_path, objective):
    tokenizer = byte_tokenizer(chat_template=CHATML)
    flat = path_rows(ROWS, tokenizer, objective, unsolved_path="majority")
    options = {"tokenizer": tokenizer, "per_device_train_batch_size": 32}
    _, [found] = train(tmp_path, tiny_llama(), flat, **options)
    _, [mixed] = train(tmp_path, tiny_llama(), ROWS, objective=objective, unsolved_path="majority", **options)
    assert relative_error(found, {name: gradient * 7 / len(flat) for name, gradient in mixed.items()}) < 1e-5


def test_a_template_that_ends_the_question_in_eos_keeps_it_in_the_prompt():
    tokenizer = byte_tokenizer(chat_template="{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}")
    prompt = student_text("Q?", "cot", tokenizer)
    [found] = tokenize_thoughts("Q?", "cot", ["So 5."], tokenizer, "auto")
    assert tokenizer.decode(found["input_ids"][: found["start"]]) == prompt and prompt.endswith("</s>")
    assert tokenizer.decode(found["input_ids"][found["start"] :]) == "So 5.</s>"
    assert encode(tokenizer, [prompt], chat=True) == [found["input_ids"][: found["start"]]]


def test_path_rows_of_a_template_with_bos_have_one_bos(tmp_path):
    def tokenizer():
        made = byte_tokenizer(bos_token="<s>", chat_template="{{ bos_token }}" + CHATML)
        bos = made.convert_tokens_to_ids("<s>")
        made.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", bos)])
        return made

    flat = path_rows(ROWS, tokenizer())
    args = MDConfig(str(tmp_path), use_cpu=True)
    of_rows, of_flat = (
        {tuple(thought["input_ids"]) for r in questions for path in ("cot", "pot") for thought in r[path]}
        for questions, _ in (prepare_questions(Dataset.from_list(d), tokenizer(), args, "train") for d in (ROWS, flat))
    )
    assert of_rows == of_flat


def test_evaluation_datasets_have_figures_of_their_own_and_predict_has_the_same_loss(tmp_path):
    def fresh():
        return {"a": Dataset.from_list(ROWS[:1]), "b": Dataset.from_list(ROWS[1:3])}

    args = MDConfig(str(tmp_path), report_to="none", use_cpu=True, rationales_per_path="all")
    trainer = MDTrainer(tiny_llama(), args, None, ROWS, fresh(), byte_tokenizer())  # rows as a list
    trainer.log({"before": 1.0})  # before any evaluation
    found = trainer.evaluate()
    for name, dataset in fresh().items():
        alone = trainer.evaluate(dataset)
        assert found[f"eval_{name}_loss"] == pytest.approx(alone["eval_loss"])
        logged = [log for log in trainer.state.log_history if f"eval_{name}_cot_loss" in log]
        assert logged[0][f"eval_{name}_cot_loss"] == pytest.approx(alone["eval_cot_loss"])
        assert trainer.predict(dataset).metrics["test_loss"] == pytest.approx(alone["eval_loss"])


def test_bad_path_rows_are_refused_by_name(tmp_path):
    good = {"prompt": "a", "completion": " b", "weight": 1.0, "path": "cot"}
    for bad, message in (
        ({"weight": -1.0}, "Row 0 .* has weight -1.0"),
        ({"weight": float("nan")}, "has weight nan"),
        ({"path": "prose"}, "has path 'prose'"),
    ):
        with pytest.raises(ValueError, match=message):
            train(tmp_path, tiny_llama(), [good | bad])


def test_options_that_choose_among_the_thoughts_of_a_question_are_ignored_aloud_for_path_rows(tmp_path, caplog):
    rows = [{"prompt": "a", "completion": " b"}]
    train(tmp_path, tiny_llama(), rows, objective="pot", unsolved_path="majority")
    assert "`objective='pot', unsolved_path='majority', rationales_per_path='all'`: they choose" in caplog.text


@pytest.mark.parametrize(
    ("layout", "backend"),
    [("padded", "aot_eager"), *(pytest.param(x, "inductor", marks=pytest.mark.slow) for x in ("padded", "tree"))],
)
def test_a_compiled_student_has_the_same_gradients(tmp_path, layout, backend):
    torch._dynamo.reset()
    plain, [expected] = train(tmp_path, tiny_llama(), ROWS, layout=layout)
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}  # batches of several shapes
    compiled, [found] = train(
        tmp_path, tiny_llama(), ROWS, layout=layout, torch_compile=True, torch_compile_backend=backend, **options
    )
    assert (
        torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0 and not torch._dynamo.utils.counters["graph_break"]
    )
    assert relative_error(found, expected) < 1e-5
    assert compiled.state.log_history[0]["loss"] == pytest.approx(plain.state.log_history[0]["loss"], rel=1e-5)


def test_adamw_in_float64_equals_a_slow_training_loop(tmp_path):
    """AdamW divides by gradients, so every one of them must be right. Warm-up, decay and clipping are included."""
    rows, steps = random_rows(24, seed=1), 5
    model, tokenizer = tiny_gpt2().double(), byte_tokenizer()
    occurrences = [r | {"repeat": 1} for r in rows for _ in range(r["repeat"])]
    batches = []
    for epoch in range(2):
        order = list(range(len(occurrences)))
        random.Random(f"42/{epoch}").shuffle(order)
        batches += [order[start : start + 8] for start in range(0, len(order), 8)]
    groups = [
        {"params": [p for p in model.parameters() if (p.dim() > 1) == decayed], "weight_decay": 0.1 * decayed}
        for decayed in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups)
    losses = []
    for step, batch in enumerate(batches[:steps]):
        optimizer.zero_grad()
        loss = reference_loss(model, tokenizer, [occurrences[i] for i in batch])
        loss.backward()
        assert torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5) > 0.5  # gradients are clipped
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (step / 2 if step < 2 else (steps - step) / (steps - 2))
        optimizer.step()
        losses.append(loss.item())

    for layout, batch, accumulation in (("padded", 4, 2), ("packed", 1, 8), ("tree", 8, 1)):
        trainer, _ = train(
            tmp_path,
            tiny_gpt2().double(),
            rows,
            layout=layout,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=steps,
            learning_rate=1e-3,
            weight_decay=0.1,
            warmup_steps=2,
            max_grad_norm=0.5,
        )
        assert [log["loss"] for log in trainer.state.log_history[:-1]] == pytest.approx(losses, rel=1e-6)
        for (name, found), expected in zip(trainer.model.named_parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8, msg=f"{layout} {name}")
