"""Weighted rows have the loss that a slow loop over single sequences computes, whatever they are divided by."""

import random
import re
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from students import byte_tokenizer, tiny_llama
from test_distributed import launch
from test_seq2seq_trainer import train as train_seq2seq
from test_trainer import CHATML, relative_error, train
from test_trainer import ROWS as MIXED_ROWS

from md_trl.errors import InputError
from md_trl.prompts import read_student_settings


NORMALIZERS = ("rows", "weights", "tokens")
STEPS = 4
TEXTS = [
    ("Beautiful is better than", " ugly.", 1.0),
    ("Explicit is", " better than implicit.", 0.5),
    ("Simple is better", " than complex.", 0.0),
    ("Complex is better than", " complicated.", 2.0),
    ("Flat", " is better than nested.", 0.1),
    ("Sparse is better than", " dense.", 0.02),
    ("Readability", " counts.", 3.0),
    ("Now is better than", " never.", 0.3),
    ("Errors should never pass", " silently.", 1.5),
    ("In the face of ambiguity, refuse", " the temptation to guess.", 0.7),
    ("Namespaces are one honking", " great idea.", 0.05),
]
ROWS = [{"prompt": prompt, "completion": completion, "weight": weight} for prompt, completion, weight in TEXTS]


def slow_loss(model, rows, normalizer, reduction="mean", encoder_decoder=None):
    """Compute the weighted loss one row at a time."""
    tokenizer = encoder_decoder or byte_tokenizer()
    total, divisor = 0.0, 0.0
    for row in rows:
        if encoder_decoder is None:
            prompt_ids, ids = (
                tokenizer(text)["input_ids"] for text in (row["prompt"], row["prompt"] + row["completion"])
            )
            ids = torch.tensor([*ids, tokenizer.eos_token_id])
            targets = ids[len(prompt_ids) :]
            logits = model(input_ids=ids[None]).logits[0, len(prompt_ids) - 1 : -1]
        else:
            inputs, targets = (
                tokenizer(row[name], return_tensors="pt")["input_ids"] for name in ("prompt", "completion")
            )
            logits, targets = model(input_ids=inputs, labels=targets).logits[0], targets[0]
        losses = -torch.log_softmax(logits, dim=-1)[range(len(targets)), targets]
        loss = losses.mean() if reduction == "mean" and normalizer != "tokens" else losses.sum()
        total = total + row["weight"] * loss
        divisor += {"rows": 1, "weights": row["weight"], "tokens": len(targets)}[normalizer]
    return total / divisor if divisor else total


@lru_cache
def slow_training(normalizer, per_step, seed=42):
    """Train with SGD in a plain loop, in the order of the sampler."""
    model, losses, batches = tiny_llama(), [], []
    for epoch in range(STEPS):
        order = list(range(len(ROWS)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        batches += [order[start : start + per_step] for start in range(0, len(order), per_step)]
    for batch in batches[:STEPS]:
        model.zero_grad()
        loss = slow_loss(model, [ROWS[i] for i in batch], normalizer)
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.05 * parameter.grad
        losses.append(loss.item())
    return losses, model.state_dict(), slow_loss(model, ROWS, normalizer).item()


def check(found, normalizer, per_step):
    losses, weights, eval_loss = slow_training(normalizer, per_step)
    assert found["losses"] == pytest.approx(losses, rel=1e-5)
    assert found["eval_loss"] == pytest.approx(eval_loss, rel=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(found["weights"][name], weight, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("layout", ["tree", "packed", "padded"])
@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (2, 4)])
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_training_equals_a_slow_loop(tmp_path, normalizer, batch, accumulation, layout):
    trainer, _ = train(
        tmp_path,
        tiny_llama(),
        ROWS,
        weight_normalizer=normalizer,
        layout=layout,
        max_steps=STEPS,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        per_device_eval_batch_size=3,
        optim="sgd",
        learning_rate=0.05,
        lr_scheduler_type="constant",
    )
    losses = [log["loss"] for log in trainer.state.log_history[:-1]]
    eval_loss = trainer.evaluate(Dataset.from_list(ROWS))["eval_loss"]
    check({"losses": losses, "weights": trainer.model.state_dict(), "eval_loss": eval_loss}, normalizer, 8)


def test_two_processes_equal_a_slow_loop(tmp_path):
    launch(2, Path(__file__).parent / "distributed" / "train_weighted.py", tmp_path)
    for normalizer in NORMALIZERS:
        check(torch.load(tmp_path / f"{normalizer}.pt"), normalizer, 8)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_one_step_has_the_gradients_of_a_slow_loop(tmp_path, normalizer, reduction):
    model = tiny_llama()
    options = {"weight_normalizer": normalizer, "token_reduction": reduction, "per_device_train_batch_size": 16}
    trainer, [found] = train(tmp_path, model, ROWS, **options)
    model.zero_grad()
    loss = slow_loss(model, ROWS, normalizer, reduction)
    loss.backward()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert relative_error(found, {name: p.grad for name, p in model.named_parameters()}) < 1e-5


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_an_encoder_decoder_has_the_gradients_of_a_slow_loop(tmp_path, normalizer):
    from students import t5_tokenizer, tiny_t5

    # The programs' characters are added for rows of programs only
    rows = [row | {"prompt": row["prompt"].strip(), "completion": row["completion"].strip()} for row in ROWS]
    model = tiny_t5()
    options = {"objective": "cot", "weight_normalizer": normalizer, "per_device_train_batch_size": 16}
    trainer, [found] = train_seq2seq(tmp_path, model, rows, **options)
    model.zero_grad()
    loss = slow_loss(model, rows, normalizer, encoder_decoder=t5_tokenizer())
    loss.backward()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert relative_error(found, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}) < 1e-5


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_a_batch_whose_weights_are_all_zero_has_loss_zero(tmp_path, normalizer):
    trainer, [found] = train(tmp_path, tiny_llama(), [ROWS[2]], weight_normalizer=normalizer)
    assert trainer.state.log_history[0]["loss"] == 0 and not any(gradient.any() for gradient in found.values())


def test_rows_without_weights_weigh_one(tmp_path):
    bare = [{"prompt": row["prompt"], "completion": row["completion"]} for row in ROWS]
    _, [found] = train(tmp_path, tiny_llama(), bare)
    _, [expected] = train(tmp_path, tiny_llama(), [row | {"weight": 1.0} for row in bare])
    assert relative_error(found, expected) < 1e-6


def test_mixed_rows_are_divided_by_questions_only(tmp_path):
    for normalizer in ("weights", "tokens"):
        with pytest.raises(InputError, match=f"`weight_normalizer='{normalizer}'` is for rows with `prompt`"):
            train(tmp_path, tiny_llama(), MIXED_ROWS, weight_normalizer=normalizer)


def test_the_card_speaks_of_rows_and_weights(tmp_path):
    trainer, _ = train(tmp_path, tiny_llama(), ROWS, weight_normalizer="weights", per_device_train_batch_size=16)
    trainer.save_model()
    card = ModelCard.load(tmp_path / "README.md")
    for text in ("prompts and completions", "| weight_normalizer | weights |", "| rows seen | 11 |"):
        assert text in card.content
    assert "| 11 | 0 to 3, 0.8336 on average |" in card.content
    for text in ("Distillation", "CoT", "bare answer", "lambda", "questions", "solved by", "label_loss", "unsolved"):
        assert text not in card.content
    assert "mixed-distillation" not in card.data.tags and "md_trl" in card.data.tags
    settings = read_student_settings(tmp_path)
    assert (settings["objective"], settings["paths"], settings["triggers"]) == (None, [], {})


@pytest.mark.parametrize("form", ["plain", "rendered", "conversation"])
def test_the_prompt_format_of_flat_rows_is_recognized(tmp_path, form):
    tokenizer = byte_tokenizer(eos_token="<|im_end|>", extra_special_tokens=["<|im_start|>"], chat_template=CHATML)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    prompt = {
        "plain": "Hi\n",
        "rendered": tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False),
        "conversation": messages,
    }[form]
    completion = [{"role": "assistant", "content": "Ho"}] if form == "conversation" else "Ho"
    rows = [{"prompt": prompt, "completion": completion}]
    trainer, _ = train(tmp_path, tiny_llama(vocab_size=len(tokenizer)), rows, tokenizer=tokenizer)
    trainer.save_model()
    assert read_student_settings(tmp_path)["prompt_format"] == ("plain" if form == "plain" else "chat")
    if form != "plain":
        [thought] = trainer.train_dataset[0]["label"]
        assert tokenizer.decode(thought["input_ids"]).endswith("Hi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>")


def test_the_example_of_the_docs_runs(tmp_path, monkeypatch):
    text = (Path(__file__).parents[1] / "docs" / "weighted_sft.md").read_text()
    [example, *_] = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(example.strip().splitlines()) <= 12
    model = tiny_llama()
    model.save_pretrained(tmp_path / "start")
    byte_tokenizer().save_pretrained(tmp_path / "start")
    monkeypatch.chdir(tmp_path)
    example = example.replace("HuggingFaceTB/SmolLM2-135M", "start")
    exec(example, {})
    assert (tmp_path / "student" / "model.safetensors").exists()
