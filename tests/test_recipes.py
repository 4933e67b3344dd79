"""Recipes agree with each other, start on a tiny student of their architecture, and state the memory they need."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import bitsandbytes
import pytest
import torch
import yaml
from conftest import SHARED, needs_shared
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from students import byte_tokenizer, t5_tokenizer, tiny_llama
from test_trainer import ROWS
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaForCausalLM,
)

from md_trl.cli import run_verb
from md_trl.prompts import SETTINGS_FILE, TRIGGERS, encode_prompt, read_student_settings, student_prompt
from md_trl.student_folder import weights_digest
from md_trl.tasks import load_questions


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "recipes"))

import memory  # noqa: E402


TASKS = ["svamp", "gsm8k", "asdiv", "strategyqa"]
STUDENTS = {
    "llama2-7b": "llama2",
    "codellama-7b": "codellama",
    "mistral-7b": "mistral",
    "gpt2-large": "gpt2",
    "t5-large": "t5",
    "smollm2-135m": "smollm2",
    "qwen3-0.6b": "qwen3",
}
"""Folders of the recipes, and how their outputs are named."""
RECIPES = sorted(
    path.relative_to(ROOT / "recipes").as_posix()
    for folder in STUDENTS
    for path in (ROOT / "recipes" / folder).glob("*.yaml")
)
FAST = [f"{folder}/svamp.yaml" for folder in STUDENTS]


def text_of(recipe):
    return (ROOT / "recipes" / recipe).read_text()


def fields_of(recipe):
    return yaml.safe_load(text_of(recipe))


def test_there_is_a_recipe_for_each_of_the_papers_students_and_tasks():
    expected = {f"{folder}/{task}.yaml" for folder in STUDENTS for task in TASKS if folder != "qwen3-0.6b"}
    assert set(RECIPES) == expected | {"qwen3-0.6b/svamp.yaml"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_fields_of_a_task_are_named_after_it(recipe):
    folder, task = recipe.removesuffix(".yaml").split("/")
    fields, output = fields_of(recipe), f"outputs/{STUDENTS[folder]}-{task}"
    assert fields["task"] == fields["eval_task"] == task
    assert fields["dataset"] == f"{output}/mixed"
    assert fields["store"] == f"{output}/teacher.db"
    assert fields["output_dir"] == f"{output}/student"


@pytest.mark.parametrize("folder", STUDENTS)
def test_the_fields_of_a_student_agree_across_tasks(folder):
    def fields(recipe):
        task = Path(recipe).stem
        read = {name: str(value).replace(task, "TASK") for name, value in fields_of(recipe).items()}
        return {name: value for name, value in read.items() if name != "eval_source"}

    recipes = [recipe for recipe in RECIPES if recipe.startswith(f"{folder}/")]
    assert all(fields(recipe) == fields(f"{folder}/svamp.yaml") for recipe in recipes)
    assert all(fields_of(recipe).keys() == fields_of(recipes[0]).keys() for recipe in recipes)


@pytest.mark.parametrize("task", TASKS)
def test_students_on_gpus_learn_and_are_evaluated_alike(task):
    """What the paper states, and what a comparison of students needs to be the same."""
    expected = {
        "objective": "md",
        "rationales_per_path": 1,
        "max_length": 1024,
        "max_steps": 8000,
        "eval_n": 20,
        "eval_temperature": 0.7,
        "eval_max_tokens": 400,
        "seed": 42,
    }
    for recipe in RECIPES:
        if recipe.endswith(f"/{task}.yaml") and not recipe.startswith("smollm2"):
            fields = fields_of(recipe)
            assert {name: fields[name] for name in expected} == expected
            assert fields["per_device_train_batch_size"] * fields["gradient_accumulation_steps"] == 16
            assert fields.get("load_in_4bit", False) == ("7b" in recipe)


@needs_shared("data/SVAMP.json", "data/gsm8k", "data/ASDiv.xml", "data/strategyqa")
@pytest.mark.parametrize("task", TASKS)
def test_local_copies_of_the_tasks_are_read(task):
    source = ROOT / fields_of(f"smollm2-135m/{task}.yaml")["eval_source"]
    assert len(load_questions(task, "test", source=str(source))) > 200


def tiny_config(name):
    """Shrink the published configuration of a student. bitsandbytes needs widths that are multiples of 64."""
    config = memory.CONFIGS[name]
    if config.model_type == "t5":
        sizes = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
        special = {"decoder_start_token_id": 0, "vocab_size": 110}
    elif config.model_type == "gpt2":
        sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4}
        special = {"eos_token_id": 0, "bos_token_id": 0, "vocab_size": 258}
    else:
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        sizes |= {"num_key_value_heads": 4 * config.num_key_value_heads // config.num_attention_heads, "head_dim": 16}
        special = {"eos_token_id": 0, "bos_token_id": None, "pad_token_id": 1, "vocab_size": 258}
    published = config.to_dict()
    published.pop("layer_types", None)  # one per layer
    return type(config)(**published | sizes | special)


def tiny_recipe(recipe, folder):
    """Write a recipe with a tiny random student, a few mixed rows, two steps and two questions of Stories."""
    fields = fields_of(recipe)
    config = tiny_config(fields["model_name_or_path"])
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    auto.from_config(config).save_pretrained(folder / "untrained")
    (t5_tokenizer() if config.is_encoder_decoder else byte_tokenizer()).save_pretrained(folder / "untrained")
    task = fields["task"]
    Dataset.from_list(ROWS).to_parquet(folder / "mixed" / task / "train.parquet")
    (folder / "mixed" / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {task}\n  data_files:\n  - split: train\n    path: {task}/train.parquet\n---\n"
    )
    for name in ("store", "eval_source", "eval_store", "eval_output"):
        fields.pop(name, None)
    fields |= {
        "model_name_or_path": str(folder / "untrained"),
        "dataset": str(folder / "mixed"),
        "output_dir": str(folder / "student"),
        "max_steps": 2,
        "use_cpu": True,
        "bf16": False,
        "logging_steps": 1,
        "eval_task": "stories",
        "eval_limit": 2,
        "eval_n": 1,
        "eval_max_tokens": 8,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(fields))
    return folder / "recipe.yaml"


def check_student(recipe, folder):
    student, fields = folder / "student", fields_of(recipe)
    state = json.loads((student / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    assert all(0 < state["log_history"][step]["loss"] < 20 for step in (0, 1))
    [result] = [json.loads(file.read_text()) for file in (student / "results").glob("*.json")]
    assert len(result["questions"]) == 2
    assert all(len(question["cot"]) == len(question["pot"]) == 1 for question in result["questions"])
    if fields.get("use_peft"):
        adapter = json.loads((student / "adapter_config.json").read_text())
        assert adapter["r"] == fields["lora_r"] and len(adapter["target_modules"]) == 2 * 7
    else:
        assert (student / "model.safetensors").exists()


@pytest.mark.parametrize("recipe", FAST)
def test_a_recipe_of_each_student_trains_and_evaluates(recipe, tmp_path):
    run_verb("train", ["--config", str(tiny_recipe(recipe, tmp_path))])
    check_student(recipe, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains_and_evaluates_under_accelerate_launch(recipe, tmp_path):
    config = tiny_recipe(recipe, tmp_path)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    script = [str(ROOT / "recipes" / "llama2_svamp.py")] if recipe == "llama2-7b/svamp.yaml" else None
    command = [*launch, *(script or ["--module", "md_trl", "train"]), "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    check_student(recipe, tmp_path)


# On-policy finish

CHAT = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[reply]{% endif %}"
)


def finish(*arguments):
    """Run the recipe as a command, without another process."""
    script = ROOT / "recipes" / "on_policy_distillation.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        runpy.run_path(str(script), run_name="__main__")


def student_and_teacher(kind):
    """Write a task, a student of both paths and a teacher of another size to the current folder."""
    rows = [{"question": f"{i} + {i}?", "answer": 2 * i, "split": "test" if i < 2 else "train"} for i in range(8)]
    Path("sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    student, tokenizer = tiny_llama(), byte_tokenizer(chat_template=CHAT if kind == "chat" else None)
    student.save_pretrained("base" if kind == "lora" else "student")
    if kind == "lora":
        base = AutoModelForCausalLM.from_pretrained("base")
        get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"])).save_pretrained("student")
    settings = {"md_trl": "0", "objective": "md", "paths": ["cot", "pot"]}
    settings["prompt_format"] = "chat" if kind == "chat" else "plain"
    settings["triggers"] = {path: TRIGGERS[path] for path in settings["paths"]}
    Path("student", SETTINGS_FILE).write_text(json.dumps(settings))
    held_out = load_questions("sums.jsonl", "train")[0].id
    Path("student", "validation.json").write_text(json.dumps({"ids": [held_out]}))
    tiny_llama(seed=1, hidden_size=48).save_pretrained("teacher")
    for folder in ("student", "teacher"):
        tokenizer.save_pretrained(folder)
    return settings, tokenizer


def distance(student, prompts):
    """Mean reverse KL to the teacher at the first token after each prompt: what the trainer minimizes there."""
    log_p, log_q = (
        torch.stack([model(torch.tensor([ids])).logits[0, -1].log_softmax(-1) for ids in prompts])
        for model in map(AutoModelForCausalLM.from_pretrained, (student, "teacher"))
    )
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["plain", "chat", "lora"])
def test_a_student_finishes_under_a_teacher_and_is_evaluated(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings, tokenizer = student_and_teacher(kind)
    given = ["--model", "student", "--teacher", "teacher", "--task", "sums.jsonl", "--output", "finished"]
    training = "--max_steps 2 --per_device_train_batch_size 5 --gradient_accumulation_steps 1 --warmup_steps 0"
    training += " --learning_rate 1e-2 --max_completion_length 4 --use_cpu true --bf16 false"
    with torch.enable_grad():
        finish(*given, *training.split())
    questions = load_questions("sums.jsonl", "train")[1:]
    prompts = [
        student_prompt(q.question, path, settings["prompt_format"]) for q in questions for path in ("cot", "pot")
    ]
    ids = [encode_prompt(prompt, tokenizer) for prompt in prompts]
    # The trainer tokenizes as every command of md_trl does
    if kind == "chat":
        assert tokenizer.apply_chat_template(prompts, add_generation_prompt=True, return_dict=True)["input_ids"] == ids
    else:
        assert tokenizer(prompts)["input_ids"] == ids
    assert distance("finished", ids) < distance("student", ids)
    assert read_student_settings("finished") == settings
    assert AutoTokenizer.from_pretrained("finished").get_vocab() == tokenizer.get_vocab()
    card = Path("finished/README.md").read_text()
    assert all(trigger in card for trigger in settings["triggers"].values()) and str(tmp_path) not in card
    # Two paths of all training questions but the one that was held out
    assert "| prompts | 10, one per question and path |" in card and "| steps | 2 |" in card
    assert "| teacher | a local model |" in card and "solved by the teacher's" not in card
    capsys.readouterr()
    evaluation = "eval --model finished --task sums.jsonl --n 1 --max_tokens 4 --store s.db --output results"
    run_verb("eval", evaluation.split()[1:])
    assert "4 thoughts from 4 requests" in capsys.readouterr().out
    result = json.loads(next(Path("results").glob("finished*.json")).read_text())
    assert [question["id"] for question in result["questions"]] == [q.id for q in load_questions("sums.jsonl", "test")]


def test_an_on_policy_finish_is_refused_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    student_and_teacher("plain")
    digest = weights_digest("student")
    given = {"model": "student", "teacher": "teacher", "task": "sums.jsonl", "output": "finished"}
    byte_tokenizer(extra_special_tokens={"more": "<more>"}).save_pretrained("stranger")
    for change, message in (
        ({"model": "teacher"}, "teacher has no md_trl.json"),
        ({"output": "./student"}, "`--output` is the student itself"),
        ({"teacher": "stranger"}, "stranger has another vocabulary"),
        ({"task": "absent.jsonl"}, "absent.jsonl does not exist"),
        ({"hub_token": "hf_x"}, "pushes nothing"),
    ):
        words = [word for name, value in (given | change).items() for word in (f"--{name}", value)]
        with pytest.raises(SystemExit, match=message):
            finish(*words, "--use_cpu", "true", "--bf16", "false")
    assert not Path("finished").exists() and weights_digest("student") == digest


def test_the_script_for_jobs_trains_a_recipe(tmp_path, monkeypatch):
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    script = ROOT / "recipes" / "jobs" / "train.py"
    # The regular expression of PEP 723
    pattern = r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$"
    [block] = re.finditer(pattern, script.read_text())
    header = tomllib.loads(re.sub(r"(?m)^# ?", "", block["content"]))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert block["type"] == "script" and header["requires-python"] == project["requires-python"]
    assert set(header["dependencies"]) == {"md_trl", "pyyaml>=6"}

    config = tiny_recipe("smollm2-135m/svamp.yaml", tmp_path)
    config.write_text(config.read_text() + "store: does-not-exist-in-a-job.db\n")
    monkeypatch.setattr("sys.argv", [str(script), "--config", str(config), "--push_to_hub", "false"])
    runpy.run_path(str(script), run_name="__main__")
    check_student("smollm2-135m/svamp.yaml", tmp_path)


def stand_in(folder, name, text):
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


def test_the_slurm_script_starts_one_launcher_per_machine(tmp_path):
    """With stand-ins for `srun`, which runs a task per machine, for `scontrol`, and for `accelerate`."""
    stand_in(tmp_path, "scontrol", "echo node-a; echo node-b")
    run = 'while [[ $1 == --* ]]; do shift; done\nSLURM_PROCID=0 "$@"\nSLURM_PROCID=1 "$@"'
    stand_in(tmp_path, "srun", run)
    stand_in(tmp_path, "accelerate", 'printf "%s\\n" "$*"')
    slurm = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_ID": "123", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8"}
    environment = os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", "recipes/slurm/train.slurm", "recipes/qwen3-0.6b/svamp.yaml", "ddp", "--eval_limit", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    expected = [
        "launch --config_file recipes/accelerate_configs/ddp.yaml --num_machines 2 --num_processes 16 "
        f"--machine_rank {rank} --main_process_ip node-a --main_process_port 20123 --rdzv_backend c10d "
        "--module md_trl train --config recipes/qwen3-0.6b/svamp.yaml --eval_limit 2"
        for rank in (0, 1)
    ]
    assert done.stdout.splitlines() == expected
    absent = subprocess.run(command[:2] + ["absent.yaml"], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert absent.returncode == 2 and "Usage" in absent.stderr


def stated_memory(recipe):
    found = re.search(
        r"# Estimated peak memory: ([\d.]+) GB expected, ([\d.]+) GB if every thought were", text_of(recipe)
    )
    return tuple(float(figure) for figure in found.groups())


@pytest.mark.parametrize(
    "recipe",
    [r if r == "smollm2-135m/svamp.yaml" else pytest.param(r, marks=pytest.mark.slow) for r in RECIPES],
)
def test_a_recipe_states_the_memory_it_needs_and_it_fits(recipe):
    expected, largest = (round(found.total / 1e9, 1) for found in memory.estimates(fields_of(recipe)))
    assert (expected, largest) == stated_memory(recipe)
    if gpu := re.search(r"one GPU with (\d+) GB", text_of(recipe)):
        assert largest + 2 <= int(gpu[1])


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("meta-llama/Llama-2-7b-hf", 6_738_415_616),
        ("codellama/CodeLlama-7b-hf", 6_738_546_688),
        ("mistralai/Mistral-7B-v0.1", 7_241_732_096),
        ("openai-community/gpt2-large", 774_030_080),
        ("google-t5/t5-large", 737_668_096),
        ("build/smollm2", 134_515_008),
        ("Qwen/Qwen3-0.6B-Base", 596_049_920),
    ],
)
def test_sizes_are_the_published_ones(name, parameters):
    config = memory.CONFIGS[name]
    with torch.device("meta"):
        model = (AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM).from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_tensors_are_counted_while_they_live():
    with memory.FakeTensorMode():
        layer = nn.Linear(100, 10, bias=False)
        with memory.AllocationCounter(layer) as counter:
            inputs = torch.zeros(50, 100)
            assert counter.current == 4 * 50 * 100
            view = inputs.T  # the same memory
            inputs.add_(1)
            layer.weight.detach()  # was there before
            assert counter.current == counter.peak == 4 * 50 * 100
            output = layer(inputs)
            assert counter.current == 4 * (50 * 100 + 50 * 10)
            del inputs, view, output
            assert counter.current == 0 and counter.peak == 4 * (50 * 100 + 50 * 10)


def test_activation_checkpointing_and_shorter_rows_save_memory():
    recipe, config = fields_of("llama2-7b/svamp.yaml"), tiny_config("meta-llama/Llama-2-7b-hf")
    config.num_hidden_layers = 8

    def step(length=512, **fields):
        return memory.estimate(recipe | fields, config, memory.Shape(4, length)).step

    assert step() < 0.75 * step(activation_checkpointing=False)
    assert 1.8 < step(512) / step(256) < 2.2


def test_the_weights_of_qlora_are_counted_as_bitsandbytes_and_peft_hold_them(tmp_path):
    recipe, config = fields_of("llama2-7b/svamp.yaml"), tiny_config("meta-llama/Llama-2-7b-hf")
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=nf4, dtype=torch.bfloat16)
    model = get_peft_model(model, LoraConfig(r=recipe["lora_r"], target_modules=recipe["lora_target_modules"]))
    size = trained = 0
    for parameter in model.parameters():
        size += parameter.numel() * (2 if parameter.requires_grad else parameter.element_size())  # TRL trains in bf16
        trained += parameter.numel() * parameter.requires_grad
        if isinstance(parameter, bitsandbytes.nn.Params4bit):
            scales = parameter.quant_state
            size += scales.absmax.numel() * scales.absmax.element_size() + 4 * scales.state2.absmax.numel()
    found = memory.estimate(recipe, config, memory.Shape(1, 8))
    assert found.weights == pytest.approx(size, rel=0.001)
    assert found.optimizer == 2 * 2 * trained


@pytest.mark.slow
@needs_shared("data/svamp_teacher")
@pytest.mark.skipif(not (ROOT / "build" / "smollm2").exists(), reason="needs build/smollm2, see recipes/smollm2-135m")
def test_the_estimate_is_within_20_percent_of_a_measurement(tmp_path):
    recipes = ROOT / "recipes"
    thoughts, store = tmp_path / "thoughts.jsonl", str(tmp_path / "teacher.db")
    with thoughts.open("w") as file:
        script = [recipes / "smollm2-135m" / "gpt35_to_thoughts.py", SHARED / "data" / "svamp_teacher"]
        subprocess.run([sys.executable, *script], stdout=file, check=True)
    run_verb("store", ["import", "--store", store, "--file", str(thoughts)])
    recipe = "smollm2-135m/svamp.yaml"
    command = [sys.executable, str(recipes / "memory.py"), "--measure", str(recipes / recipe)]
    command += ["--store", store, "--dataset", str(tmp_path / "mixed")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    measured = float(re.search(r"([\d.]+) GB measured", done.stdout)[1])
    assert stated_memory(recipe)[0] == pytest.approx(measured, rel=0.2)
