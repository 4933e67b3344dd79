"""Two processes train exactly as one process and as a slow loop over single sequences do; training resumes exactly."""

import json
import random
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from students import byte_tokenizer, make_student, tiny_llama
from test_seq2seq_trainer import reference_loss as seq2seq_reference_loss
from test_trainer import ROWS, random_rows, reference_loss


SCRIPT = Path(__file__).parent / "distributed" / "train_settings.py"
# Layout, student, what is trained, questions per micro-batch of a process, accumulation steps
GRID = [
    f"{layout}-{student}-{tuning}-{batch}"
    for layout in ("padded", "packed", "tree")
    for student in ("llama", "gpt2", "mistral", *(["t5"] if layout == "padded" else []))
    for tuning in ("full", "lora")
    for batch in ("8-1", "4-2", "1-8")
]
# Those that are tested every time
SETTINGS = {
    1: [
        "padded-llama-full-8-1",
        "padded-mistral-lora-1-8",
        "packed-gpt2-lora-4-2",
        "packed-llama-full-1-8",
        "tree-mistral-full-4-2",
        "tree-gpt2-full-8-1",
        "padded-t5-lora-4-2",
    ],
    2: [
        "padded-gpt2-full-4-2",
        "packed-mistral-full-8-1",
        "packed-llama-lora-1-8",
        "tree-llama-full-4-2",
        "tree-gpt2-lora-1-8",
        "tree-mistral-lora-8-1",
        "padded-t5-full-8-1",
        "padded-t5-lora-1-8",
    ],
}


def launch(processes, script, *arguments):
    # `accelerate launch --cpu --num_processes 2` runs a single process
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run([*command, *map(str, (script, *arguments))], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]


@lru_cache
def reference_run(student, tuning, per_step, steps=3, seed=42):
    """Train with SGD in a plain loop, in the order of the sampler, one thought at a time."""
    (model, tokenizer), rows = make_student(student, tuning == "lora"), random_rows(24, seed=1)
    loss_of = seq2seq_reference_loss if student == "t5" else reference_loss
    occurrences = [r | {"repeat": 1} for r in rows if r["cot"] or r["pot"] for _ in range(r["repeat"])]
    batches = []
    for epoch in range(steps):
        order = list(range(len(occurrences)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        batches += [order[start : start + per_step] for start in range(0, len(order), per_step)]
    assert per_step == 8 or any(len(batch) < per_step for batch in batches[:steps])  # one of them is incomplete
    losses = []
    for batch in batches[:steps]:
        model.zero_grad()
        loss = loss_of(model, tokenizer, [occurrences[i] for i in batch])
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter -= 0.05 * parameter.grad
        losses.append(loss.item())
    return losses, model.state_dict(), loss_of(model, tokenizer, rows).item()


def check_settings(tmp_path, processes, settings):
    launch(processes, SCRIPT, tmp_path, *settings)
    residuals = []
    for setting in settings:
        found = torch.load(tmp_path / f"{setting}.pt")
        _, student, tuning, batch, accumulation = setting.split("-")
        losses, weights, eval_loss = reference_run(student, tuning, int(batch) * int(accumulation) * processes)
        assert found["losses"] == pytest.approx(losses, rel=1e-5), setting
        assert found["eval_loss"] == pytest.approx(eval_loss, rel=1e-5), setting
        for name, weight in weights.items():
            torch.testing.assert_close(found["weights"][name], weight, rtol=1e-4, atol=1e-5, msg=f"{setting} {name}")
        residuals += [a / b - 1 for a, b in zip(found["losses"], losses, strict=True)]
    # No drift: the differences are due to rounding, up as often as down.
    assert abs(sum(residuals) / len(residuals)) < 2e-6


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_training_equals_a_slow_training_loop(tmp_path, processes):
    check_settings(tmp_path, processes, SETTINGS[processes])


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_every_setting_equals_a_slow_training_loop(tmp_path, processes):
    check_settings(tmp_path, processes, GRID)


def test_the_fast_settings_cover_every_value():
    for values in (
        {"padded", "packed", "tree"},
        {"llama", "gpt2", "mistral", "t5"},
        {"full", "lora"},
        {"8-1", "4-2", "1-8"},
    ):
        assert all(any(value in setting for setting in [*SETTINGS[1], *SETTINGS[2]]) for value in values)


def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    command = [sys.executable, str(SCRIPT.with_name("train_resume.py")), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    for student in ("gpt2", "t5", "t5_lora"):
        expected, found = (torch.load(tmp_path / folder / student / "result.pt") for folder in ("whole", "parts"))
        assert len(found["logs"]) == 10 and found["logs"] == expected["logs"]
        for name, weight in expected["weights"].items():
            assert torch.equal(found["weights"][name], weight), f"{student} {name}"


@pytest.mark.slow
def test_resuming_two_processes_between_two_logs_keeps_the_counts(tmp_path):
    launch(2, SCRIPT.with_name("resume_between_logs.py"), tmp_path)
    expected, found = json.loads((tmp_path / "logs.json").read_text())
    assert len(found) == 2 and found == expected
    # An epoch has 7 questions, 4 in its first step and 3 in its second.
    assert [log["num_questions"] for log in found] == [14, 25]


def test_a_student_sharded_with_fsdp2_has_the_same_gradients(tmp_path):
    launch(2, SCRIPT.with_name("shard_fsdp2.py"), tmp_path)
    found = torch.load(tmp_path / "fsdp2.pt")
    model = tiny_llama()
    loss = reference_loss(model, byte_tokenizer(), ROWS)
    loss.backward()
    assert set(found) == {"root", "tail", "tail, on an accelerator"}
    for of_groups in found.values():
        assert of_groups["loss"] == pytest.approx(loss.item(), rel=1e-5)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(of_groups["gradients"][name], parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", ["single_gpu", "ddp", "fsdp2", "zero2", "zero3"])
def test_accelerate_reads_the_launch_configurations(name):
    from accelerate.commands.config.config_args import load_config_from_file

    file = Path(__file__).parents[1] / "recipes" / "accelerate_configs" / f"{name}.yaml"
    config = load_config_from_file(str(file))
    assert config.mixed_precision == "bf16" and not config.use_cpu
