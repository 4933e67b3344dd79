"""A student is asked in the format that its `md_trl.json` records, wherever it is asked."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from peft import LoraConfig
from students import byte_tokenizer, tiny_llama
from test_trainer import CHATML, ROWS, train
from transformers import AutoModelForCausalLM, AutoTokenizer

from md_trl import MixedReasoner
from md_trl.cli.engine_arguments import make_engine
from md_trl.cli.sample import SampleArguments, _prompt
from md_trl.errors import InputError
from md_trl.prompts import SETTINGS_FILE, read_student_settings, resolve_prompt_format
from md_trl.records import Question, SamplingParams
from md_trl.sampling.engines.transformers import TransformersEngine
from md_trl.store import Store
from md_trl.student_evaluation import StudentEvaluation


QUESTIONS = [Question("toy/test/0", "toy", "test", "What is 1 plus 1?", "2")]


@pytest.fixture(scope="module", params=["full", "lora"])
def student(request, tmp_path_factory):
    """The folder of a student that was trained in plain text, although its tokenizer has a chat template."""
    folder = tmp_path_factory.mktemp("student")
    tokenizer = byte_tokenizer(eos_token="<|im_end|>", extra_special_tokens=["<|im_start|>"], chat_template=CHATML)
    tiny_llama(vocab_size=len(tokenizer)).save_pretrained(folder / "base")
    lora = LoraConfig(target_modules=["q_proj"]) if request.param == "lora" else None
    options = {"tokenizer": tokenizer, "peft_config": lora, "prompt_format": "plain"}
    trainer, _ = train(folder / "out", str(folder / "base"), ROWS, **options)
    trainer.save_model()
    return str(folder / "out")


def test_a_reasoner_obeys_and_refuses_a_contradiction(student):
    reasoner = MixedReasoner(student, n=2, max_tokens=2)
    assert reasoner.prompt_format == MixedReasoner(student, prompt_format="plain").prompt_format == "plain"
    reasoner(["What is 1 plus 1?"])
    with pytest.raises(InputError, match="`prompt_format='chat'` contradicts the student's md_trl.json.*'plain'"):
        MixedReasoner(student, prompt_format="chat")


def test_a_loaded_model_is_asked_as_its_folder_says_unless_told_otherwise(student):
    if (Path(student) / "adapter_config.json").exists():
        pytest.skip("a loaded adapter does not know its folder")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(student), AutoTokenizer.from_pretrained(student)
    assert MixedReasoner(model, tokenizer=tokenizer).prompt_format == "plain"
    # It may have been trained further since
    assert MixedReasoner(model, tokenizer=tokenizer, prompt_format="chat").prompt_format == "chat"


def test_a_model_that_md_trl_did_not_train_is_asked_as_its_tokenizer_suggests(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    byte_tokenizer(chat_template="{{ messages[0].content }}").save_pretrained(tmp_path)
    assert MixedReasoner(str(tmp_path)).prompt_format == "chat"
    assert MixedReasoner(tiny_llama(), tokenizer=byte_tokenizer()).prompt_format == "plain"
    model = tiny_llama()
    for gone in ("/srv/gone", "gone", "not/an/id"):
        model.config.name_or_path = gone
        assert TransformersEngine(model, byte_tokenizer()).student_settings is None


def test_an_evaluation_obeys_and_refuses_a_contradiction(student, tmp_path):
    engine, params = TransformersEngine(student), SamplingParams(max_tokens=2)
    with Store(tmp_path / "s.db") as store:
        result = StudentEvaluation(QUESTIONS, params, n=1).run("student", engine, store)
        assert result.settings["prompt_format"] == "plain"
        with pytest.raises(InputError, match="contradicts the student's md_trl.json"):
            StudentEvaluation(QUESTIONS, params, n=1, prompt_format="chat").sample(engine, store, progress=False)


@pytest.mark.parametrize("name", ["transformers", "vllm"])
def test_sampling_obeys(student, monkeypatch, name):
    if name == "vllm":
        if (Path(student) / "adapter_config.json").exists():
            pytest.skip("vLLM does not load adapters")
        monkeypatch.syspath_prepend(Path(__file__).parent / "stand_ins")
        monkeypatch.delitem(sys.modules, "vllm", raising=False)
    args = SampleArguments(model=student, engine=name)
    engine = make_engine(args, args.model)
    assert engine.student_settings["prompt_format"] == "plain"
    assert _prompt(args, engine, None)(QUESTIONS[0], "cot") == "What is 1 plus 1?\nLet's think step by step.\n"


def test_a_student_on_the_hub_is_asked_as_its_repository_says(student, tmp_path, monkeypatch):
    """The cache of the Hub, as it is after a download."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--me--student" / "snapshots" / ("0" * 40)
    shutil.copytree(student, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    settings = read_student_settings("me/student")
    assert settings["prompt_format"] == "plain"
    with pytest.raises(InputError, match="contradicts"):
        resolve_prompt_format(byte_tokenizer(), "chat", settings)


def test_triggers_of_another_version_are_refused(student, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(student, copy)
    settings = json.loads((copy / SETTINGS_FILE).read_text())
    settings["triggers"]["cot"] = "Think."
    (copy / SETTINGS_FILE).write_text(json.dumps(settings))
    with pytest.raises(InputError, match="has the trigger 'Think.' for cot.*Install md_trl"):
        MixedReasoner(str(copy))
