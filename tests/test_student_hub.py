"""Students on the Hub: what is pushed, and what a process that knows only the Hub's URL can do with it."""

import json
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import EvalResultEntry, ModelCard
from huggingface_hub._eval_results import parse_eval_result_entries
from servers.hub import running_hub
from test_hub_server import client

from md_trl import MDConfig
from md_trl.errors import InputError
from md_trl.evaluation import EvaluationResult, QuestionResult
from md_trl.prompts import read_student_settings
from md_trl.student_folder import replace_card, weights_digest, write_evaluation
from md_trl.student_results import evaluation_section, push_results, write_results
from md_trl.trainer.model_card import gitignore


PREPARE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import json, logging
from datasets import Dataset
from huggingface_hub import HfApi
from students import byte_tokenizer, t5_tokenizer, tiny_llama, tiny_t5
"""

PUBLISH = """
tiny_llama().push_to_hub("md/base")
byte_tokenizer().push_to_hub("md/base")
rows = [
    {"id": f"svamp/train/{i}", "task": "svamp", "question": f"What is {i} plus 1?", "answer": str(i + 1), "type": 3,
     "lambda": 0.5, "repeat": 1, "cot": [f"The answer is {i + 1}."], "pot": [f"answer = {i} + 1"]}
    for i in range(8)
]
Dataset.from_list(rows).push_to_hub("md/mixed-thoughts", config_name="svamp", split="train")
row = {"Body": "Ann has 2 hens.", "Question": "How many hens has Ann?", "Answer": 2.0, "Type": "Addition"}
json.dump([{"ID": f"chal-{n}", **row} for n in range(1000)], open("SVAMP.json", "w"))

from md_trl.cli import run_verb

common = ["--max_steps", "2", "--use_cpu", "true", "--bf16", "false", "--gradient_checkpointing", "false"]
common += ["--report_to", "none", "--disable_tqdm", "true", "--save_strategy", "no", "--hub_token", "hf_write"]
common += ["--push_to_hub", "true", "--dataset", "md/mixed-thoughts", "--task", "svamp"]
run_verb("train", ["--model_name_or_path", "md/base", "--output_dir", "out/student", "--hub_model_id", "md/student",
                    "--use_peft", "true", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj",
                    "--eval_task", "svamp", "--eval_source", "SVAMP.json", "--eval_limit", "2", "--eval_n", "2",
                    "--eval_max_tokens", "4", *common])
"""

# What the command line does not do: push the same student again, and students without a base on the Hub
PUSH_MORE = """
from md_trl import MDConfig, MDTrainer
from md_trl.trainer import MDSeq2SeqConfig, MDSeq2SeqTrainer, add_program_tokens
from peft import LoraConfig

options = dict(max_steps=1, learning_rate=0.0, use_cpu=True, bf16=False, gradient_checkpointing=False)
options |= dict(report_to="none", disable_tqdm=True, save_strategy="no")
tiny_llama().save_pretrained("models/start")
byte_tokenizer().save_pretrained("models/start")
for name, adapter in (("full", None), ("adapter", LoraConfig(r=2, target_modules=["q_proj"]))):
    trainer = MDTrainer("models/start", MDConfig("out/" + name, **options), train_dataset=rows, peft_config=adapter)
    trainer.train()
    trainer.push_to_hub()
logging.getLogger("md_trl.trainer.objective").addHandler(logging.StreamHandler(sys.stdout))
trainer.push_to_hub(commit_message="again")

model = tiny_t5()
tokenizer, _ = add_program_tokens(t5_tokenizer(), model)
options |= dict(save_strategy="steps", save_steps=1)
args = MDSeq2SeqConfig("out/t5", hub_model_id="md/t5", push_to_hub=True, **options)
MDSeq2SeqTrainer(model, args, train_dataset=rows, processing_class=tokenizer).train()
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("students")
    with running_hub(folder / "hub") as (url, hub):
        chdir = f"import os; os.makedirs({str(folder / 'work')!r}); os.chdir({str(folder / 'work')!r})\n"
        output = client(url, folder / "author", chdir + PREPARE + PUBLISH + PUSH_MORE)
        yield url, hub, folder, output


def files_of(published, name):
    return published[2] / "hub" / "repos" / "models" / "md" / name / "main"


def test_a_student_is_pushed_with_its_settings_card_and_results(published):
    student = files_of(published, "student")
    names = {file.relative_to(student).as_posix() for file in student.rglob("*") if file.is_file()}
    assert {"README.md", "md_trl.json", "adapter_model.safetensors", ".eval_results/svamp.yaml"} <= names
    # A pickle with local folders, and what names the student by its folder
    assert not {name for name in names if re.search(r"training_args|\.db|^results/", name)}
    assert json.loads((student / "md_trl.json").read_text())["prompt_format"] == "plain"
    assert json.loads((student / "adapter_config.json").read_text())["base_model_name_or_path"] == "md/base"

    text = (student / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.base_model == "md/base" and card.data.datasets == "md/mixed-thoughts"
    assert card.data.library_name == "peft" and card.data.eval_results is None
    assert {"md_trl", "mixed-distillation"} <= set(card.data.tags)
    assert 'MixedReasoner("md/student"' in text
    assert "## Evaluation\n\n| student | task |" in text and "| student | svamp/test | 2 |" in text
    assert text.index("## Use") < text.index("## Evaluation") < text.index("## Training")
    [entry] = parse_eval_result_entries(yaml.safe_load((student / ".eval_results" / "svamp.yaml").read_text()))
    assert (entry.dataset_id, entry.source_url) == ("ChilleD/SVAMP", "https://huggingface.co/md/student")
    assert "2 chains of thought and 2 programs of thought; 2 questions of split test" in entry.notes

    # The value is the accuracy in the result of the evaluation
    [file] = (published[2] / "work" / "out" / "student" / "results").glob("*.json")
    assert entry.value == 100 * EvaluationResult.load(file).accuracy("joint", 4)


def test_no_card_names_a_local_folder_or_a_token(published):
    work = published[2] / "work"
    for name in ("student", "full", "adapter", "t5"):
        for file in (file for file in files_of(published, name).rglob("*") if file.is_file()):
            content = file.read_bytes()
            assert str(work).encode() not in content and b"hf_write" not in content, file
            assert file.name == "adapter_config.json" or b"models/start" not in content, file
    assert b"hf_write" not in (work / "out" / "student" / "training_args.bin").read_bytes()
    assert "trained from a local model with `md_trl`" in (files_of(published, "full") / "README.md").read_text()
    assert "an adapter of a model that is not on the Hub" in (files_of(published, "adapter") / "README.md").read_text()
    assert "The adapter names its base model by a local folder (models/start)" in published[3]
    assert 'MixedReasoner("md/full"' in (files_of(published, "full") / "README.md").read_text()


def test_an_encoder_decoder_is_pushed_alike_also_from_its_checkpoints(published):
    hub = published[1]
    repo, student = hub.repos["model", "md/t5"], files_of(published, "t5")
    assert {"README.md", "md_trl.json", "model.safetensors"} <= {file.name for file in student.iterdir()}
    [step] = [sha for sha, title in repo.history("main") if title == "Training in progress, step 1"]
    assert {"md_trl.json", "README.md"} <= set(repo.commits[step]) and "training_args.bin" not in repo.commits[step]


ASK = """
from peft import AutoPeftModelForCausalLM
from md_trl import MixedReasoner
from md_trl.prompts import read_student_settings

print(type(AutoPeftModelForCausalLM.from_pretrained("md/student").base_model.model).__name__)
print(read_student_settings("md/student")["paths"], read_student_settings("md/base"))
reasoner = MixedReasoner("md/student", n=4, max_tokens=4)
[reasoned] = reasoner(["What is 2 plus 1?"])
print(reasoner.prompt_format, [thought.text for thought in reasoned.cot + reasoned.pot])
"""


def test_a_student_is_asked_from_the_hub_and_then_offline(published):
    url, _, folder, _ = published
    online = client(url, folder / "reader", ASK, token=None).split("\n")
    assert online[0] == "LlamaForCausalLM" and online[1] == "['cot', 'pot'] None" and online[2].startswith("plain [")
    offline = 'import os; os.environ["HF_HUB_OFFLINE"] = "1"\n'
    assert client("http://127.0.0.1:9", folder / "reader", offline + ASK, token=None).split("\n") == online


def test_a_student_whose_settings_are_not_in_the_cache_is_pointed_out(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "models--md--student" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    assert read_student_settings("md/student") is None and not caplog.messages
    (snapshot / "adapter_config.json").write_text("{}")
    assert read_student_settings("md/student") is None
    assert "may be prompted in the wrong format: run once online" in caplog.text


# Writing results into a folder


def result(task="svamp", name="student", n=2, **settings):
    questions = [QuestionResult(f"q{i}", "5", ["5"] * n, ["5" if i else "6"] * n) for i in range(4)]
    settings = {"paths": ["cot", "pot"], "n": n, "extract": "strict"} | settings
    return EvaluationResult(name, "/home/me/student@0f0f0f0f", task, "test", settings, questions)


@pytest.fixture
def student(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "README.md").write_text("---\ntags: [md_trl]\n---\n# s\n\n## Training\n\nMuch.\n")
    return tmp_path


def test_results_are_replaced_and_kept_while_the_weights_are_the_same(student):
    write_results(student, [result()])
    write_results(student, [result(n=1), result("gsm8k")], repo="md/s")
    card = (student / "README.md").read_text()
    assert card.count("## Evaluation") == 1 and card.endswith("## Training\n\nMuch.\n")
    assert "/home/me" not in card and "100.0 (N=2)" in card and "| setting on gsm8k | value |" in card
    files = sorted((student / ".eval_results").iterdir())
    assert [file.name for file in files] == ["gsm8k.yaml", "svamp.yaml"]
    [entry] = parse_eval_result_entries(yaml.safe_load(files[0].read_text()))
    assert isinstance(entry, EvalResultEntry) and entry.value == 100.0
    assert (entry.dataset_id, entry.task_id) == ("openai/gsm8k", "gsm8k")

    replace_card(student, "# new\n\n## Training\n")
    card = (student / "README.md").read_text()
    assert card.startswith("# new\n\n<!--") and "| gsm8k/test |" in card and card.endswith("## Training\n")
    (student / "model.safetensors").write_bytes(b"other weights")
    replace_card(student, "# new\n\n## Training\n")
    assert (student / "README.md").read_text() == "# new\n\n## Training\n"
    assert not list((student / ".eval_results").iterdir())


def test_training_on_removes_an_evaluation(student):
    write_evaluation(student, "## Evaluation\n\nGood.")
    replace_card(student, "# new\n", same_weights=False)
    assert "Good" not in (student / "README.md").read_text()
    write_evaluation(student, "## Evaluation\n\nGood.")  # A card without the heading
    assert (student / "README.md").read_text().startswith("# new\n\n<!-- evaluation of " + weights_digest(student))


def test_tasks_without_a_hub_dataset_are_only_in_the_card(student):
    assert [file.name for file in write_results(student, [result("stories")])] == ["README.md"]
    assert "stories/test" in evaluation_section([result("stories")])


def test_nothing_to_write(student, tmp_path):
    with pytest.raises(InputError, match="no results.*md-trl eval"):
        write_results(student, [])
    with pytest.raises(InputError, match="has no README.md"):
        push_results(tmp_path / "nowhere", [result()], "md/s")


@pytest.mark.parametrize(("strategy", "uploaded"), [("every_save", False), ("all_checkpoints", True)])
def test_checkpoints_are_uploaded_only_if_all_of_them_are_asked_for(strategy, uploaded):
    lines = gitignore(MDConfig("out", use_cpu=True, hub_strategy=strategy)).splitlines()
    assert ("checkpoint-*/" not in lines) == uploaded and "training_args.bin" in lines
