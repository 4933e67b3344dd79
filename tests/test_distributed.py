"""Two processes on gloo train as one does, and as a slow loop over single sequences."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from students import byte_tokenizer, tiny_gpt2, tiny_llama, tiny_mistral
from test_trainer import ROWS, reference_loss


SCRIPT = Path(__file__).parent / "distributed" / "train_settings.py"
STUDENTS = {"llama": tiny_llama, "gpt2": tiny_gpt2, "mistral": tiny_mistral}
# Layout, student, questions of a process in a micro-batch, accumulation. There are 7 questions with repeats: every
# setting has an incomplete last step, and with 1 x 3 on two processes one of them has no question in it.
SETTINGS = ["tree-llama-4-1", "tree-mistral-1-3", "packed-gpt2-3-1", "padded-llama-2-2"]


def launch(processes, script, *arguments):
    # `accelerate launch --cpu --num_processes 2` runs a single process
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run([*command, *map(str, (script, *arguments))], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]


def reference_run(student, per_step, steps=5, seed=42):
    """SGD by hand: the order of the sampler, one thought at a time."""
    model, tokenizer = STUDENTS[student](), byte_tokenizer()
    occurrences = [r | {"repeat": 1} for r in ROWS if r["type"] != 4 for _ in range(r["repeat"])]
    batches = []
    for epoch in range(steps):
        order = list(range(len(occurrences)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        batches += [order[start : start + per_step] for start in range(0, len(order), per_step)]
    losses = []
    for batch in batches[:steps]:
        model.zero_grad()
        loss = reference_loss(model, tokenizer, [occurrences[i] for i in batch])
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.05 * parameter.grad
        losses.append(loss.item())
    return losses, model


@pytest.mark.parametrize("processes", [1, 2])
def test_training_equals_a_slow_loop(tmp_path, processes):
    launch(processes, SCRIPT, tmp_path, *SETTINGS)
    for setting in SETTINGS:
        result = torch.load(tmp_path / f"{setting}.pt")
        _, student, batch, accumulation = setting.split("-")
        losses, model = reference_run(student, int(batch) * int(accumulation) * processes)
        assert [log["loss"] for log in result["logs"]] == pytest.approx(losses, rel=2e-5), setting
        for name, weight in model.state_dict().items():
            torch.testing.assert_close(result["weights"][name], weight, rtol=1e-4, atol=1e-5, msg=f"{setting} {name}")
        expected = reference_loss(model, byte_tokenizer(), ROWS).item()
        assert result["eval_loss"] == pytest.approx(expected, rel=2e-5), setting


def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    script = SCRIPT.with_name("train_resume.py")

    def run(mode, folder):
        command = [sys.executable, str(script), mode, str(tmp_path / folder)]
        return subprocess.run(command, capture_output=True, text=True, timeout=500)

    whole, killed = run("whole", "whole"), run("killed", "parts")
    assert whole.returncode == 0, whole.stderr[-3000:]
    assert killed.returncode == -signal.SIGKILL
    resumed = run("resumed", "parts")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    expected, found = (torch.load(tmp_path / folder / "result.pt") for folder in ("whole", "parts"))
    assert found["logs"] == expected["logs"]
    for name, weight in expected["weights"].items():
        assert torch.equal(found["weights"][name], weight), name


def test_a_student_sharded_with_fsdp2_has_the_same_gradients(tmp_path):
    launch(2, SCRIPT.with_name("shard_fsdp2.py"), tmp_path)
    found = torch.load(tmp_path / "fsdp2.pt")
    model = tiny_llama()
    loss = reference_loss(model, byte_tokenizer(), ROWS)
    loss.backward()
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found["gradients"][name], parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", ["single_gpu", "ddp", "fsdp2", "zero2", "zero3"])
def test_launch_configurations_are_read_by_accelerate(name):
    from accelerate.commands.config.config_args import load_config_from_file

    file = Path(__file__).parents[1] / "recipes" / "accelerate_configs" / f"{name}.yaml"
    config = load_config_from_file(str(file))
    assert config.mixed_precision == "bf16" and not config.use_cpu
