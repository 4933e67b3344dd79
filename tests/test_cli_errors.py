"""What a newcomer does wrong is answered with the option, the file and the way out, before anything long begins."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import message
from peft import LoraConfig, get_peft_model
from servers.hub import running_hub
from students import byte_tokenizer, tiny_llama

from md_trl.cli import _quiet_dependencies, main
from md_trl.errors import InputError
from md_trl.evaluation import EvaluationResult, QuestionResult
from md_trl.records import Question, SamplingParams
from md_trl.store import Store
from md_trl.student_folder import check_student


TRAIN = "train --dataset mixed --task svamp --model_name_or_path student --use_cpu true --report_to none".split()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a student, thoughts of two models on two questions, and mixed rows."""
    folder = tmp_path_factory.mktemp("workplace")
    tiny_llama().save_pretrained(folder / "student")
    byte_tokenizer().save_pretrained(folder / "student")
    rows = []
    for model in ("teacher", "student@1/round-1"):
        for number in (1, 2):
            row = {"task": "svamp", "question": f"What is {number} plus 1?", "gold": str(number + 1), "model": model}
            rows.append(row | {"path": "pot", "text": f"answer = {number} + 1"})
            rows.append(row | {"path": "cot", "text": f"The answer is {number + 1}."})
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Store(folder / "t.db") as store:
        store.import_thoughts(folder / "t.jsonl")
    mix = ["mix", "--store", folder / "t.db", "--task", "svamp", "--model", "teacher", "--output", folder / "mixed"]
    main(list(map(str, mix)))
    return folder


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("store status --store t.db --prices price.yaml", "`--prices`: there is no file price.yaml. Did you mean"),
        ("mix --config price.yaml", "`--config`: there is no file price.yaml. Did you mean prices.yaml?"),
        ("store import --store n.db --file t.json", "`--file`: there is no file t.json. Did you mean t.jsonl?"),
        ("store import --store n.db --file a/t.json", "`--file`: there is no file a/t.json. There is no folder a."),
        ("show --result zzz", "`--result`: there is no file zzz. Check the path."),
        ("show --result student", "`--result`: cannot open student: Is a directory."),
        ("show --dataset mixd", "There is no folder mixd. Did you mean mixed?"),
        ("calibrate --result zzz --output w.json", "`--result`: there is no file zzz. Check the path."),
        ("eval --model student --task stories --limit 1 --store s.db --output r --weights price.yaml", "prices.yaml?"),
    ],
)
def test_a_missing_file_is_named_with_its_option_and_the_nearest_file(
    workplace, monkeypatch, capsys, arguments, expected
):
    monkeypatch.chdir(workplace)
    Path("prices.yaml").write_text("m: {prompt: 1, completion: 1}")
    said = message(capsys, *arguments.split())
    assert expected in said and "Errno" not in said


def test_training_does_not_start_over_where_there_are_checkpoints(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    train = [*TRAIN, "--output_dir", "out", "--save_steps", "1", "--disable_tqdm", "true", "--check_layout", "false"]
    main([*train, "--max_steps", "1"])
    shutil.copytree("out/checkpoint-1", "out/checkpoint-12")
    Path("out/checkpoint-40").mkdir()  # its writing was interrupted
    before = Path("out/model.safetensors").stat().st_mtime_ns
    expected = "out has checkpoint-12 of an earlier training: add `--resume_from_checkpoint true` to go on, or choose"
    assert expected in message(capsys, *train, "--max_steps", "2")
    assert Path("out/model.safetensors").stat().st_mtime_ns == before
    shutil.rmtree("out/checkpoint-12")
    main([*train, "--max_steps", "2", "--resume_from_checkpoint", "true"])
    steps = [log["step"] for log in json.loads(Path("out/trainer_state.json").read_text())["log_history"]]
    assert steps[-1] == 2 and Path("out/checkpoint-2").is_dir()
    main([*train, "--max_steps", "1", "--resume_from_checkpoint", "false"])
    assert json.loads(Path("out/trainer_state.json").read_text())["global_step"] == 1


def test_help_says_that_a_checkpoint_is_used(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help-all"])
    out = " ".join(capsys.readouterr().out.split())
    assert "`true` to go on from the last checkpoint in `output_dir`" in out and "not directly used by" not in out


@pytest.mark.parametrize(
    "command",
    [
        "eval --model studnet --task stories --limit 1 --store s.db --output r",
        "serve --port 0 --model studnet",
        "refine --model studnet --task svamp --store t.db --output refined --use_cpu true",
        " ".join(TRAIN + ["--model_name_or_path", "studnet", "--output_dir", "o"]),
    ],
)
def test_a_student_that_does_not_exist_is_told_from_a_hub_that_is_out_of_reach(
    workplace, monkeypatch, capsys, command
):
    monkeypatch.chdir(workplace)
    said = message(capsys, *command.split())
    assert "There is no folder studnet, and the Hub " in said and "Did you mean student?" in said


def test_names_on_the_hub_are_looked_up_there(tmp_path):
    code = """if True:
        import sys
        from huggingface_hub import HfApi
        from md_trl.student_folder import check_student
        HfApi().create_repo("md/base")
        check_student("md/base")
        try:
            check_student("md/bsae")
        except FileNotFoundError as error:
            print(error)
        HfApi.endpoint = property(lambda self: "http://127.0.0.1:9", lambda self, value: None)
        check_student("gpt2")
    """
    with running_hub(tmp_path / "hub") as (url, _):
        environment = os.environ | {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_write"}
        environment |= {"HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.stdout == "There is no folder md/bsae, and the Hub has no such model. There is no folder md.\n"
    assert "FileNotFoundError: There is no folder gpt2, and the Hub cannot be reached (" in done.stderr


def test_an_adapter_without_weights_is_named(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"])).save_pretrained("adapter")
    check_student("adapter")
    Path("adapter/adapter_model.safetensors").unlink()
    said = message(capsys, *"eval --model adapter --task stories --limit 1 --store s.db --output r".split())
    assert "adapter has the adapter_config.json of an adapter but not its weights: adapter_model.safetensors" in said


@pytest.mark.parametrize(
    ("made", "hint"),
    [
        ("checkpoint-20/trainer_state.json", r"Its training has not finished: .*last checkpoint, run.checkpoint-20\."),
        ("student/config.json", r"Name the folder of the student, run.student\."),
        ("README.md", r"Name the folder of a model or adapter\."),
    ],
)
def test_a_folder_without_a_model_names_the_one_inside(tmp_path, monkeypatch, made, hint):
    monkeypatch.chdir(tmp_path)
    Path("run", made).parent.mkdir(parents=True)
    Path("run", made).touch()
    with pytest.raises(InputError, match="^run holds no model: it has no config.json. " + hint):
        check_student("run")


def test_a_filter_that_selects_nothing_is_told_from_a_task_without_thoughts(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    mix = "mix --store t.db --output o --task".split()
    said = message(capsys, *mix, "svamp", "--model", "techer")
    assert "no thoughts of svamp/train with model 'techer'" in said
    assert "setting 1: model='teacher', cot and pot" in said or "setting 1: model='teacher', pot and cot" in said
    assert "no thoughts of svamp/train with settings [7]" in message(capsys, *mix, "svamp", "--settings", "7")
    assert "no thoughts of gsm8k/train; it holds svamp/train" in message(capsys, *mix, "gsm8k")


def test_thoughts_of_two_models_are_chosen_with_an_option(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    said = message(capsys, *"mix --store t.db --output o --task svamp".split())
    assert "`--model NAME` chooses one of the models teacher, student@1/round-1" in said
    assert "`--settings NUMBER`" in said and "`--combine`" in said and "models=" not in said
    said = message(capsys, *TRAIN, *"--store t.db --dataset o --output_dir new".split())
    assert "Mix the dataset first with `md-trl mix`, where `--model NAME` chooses one of" in said


@pytest.mark.parametrize(("wrong", "which"), [(0, "all"), (20, "none")])
def test_nothing_is_calibrated_on_votes_that_are_all_alike(tmp_path, capsys, wrong, which):
    answers = ["0" if number < wrong else "1" for number in range(20)]
    questions = [QuestionResult(f"toy/test/{n}", "1", cot=[a, a], pot=[a, a]) for n, a in enumerate(answers)]
    file = EvaluationResult("md", "m", "toy", "test", {}, questions).save(tmp_path)
    calibrate = ["calibrate", "--result", file, "--output", tmp_path / "w.json", "--weights", "none"]
    said = message(capsys, *calibrate)
    assert f"Nothing can be calibrated: {which} of the votes of 'md' on 20 questions of toy/test are right" in said
    assert not (tmp_path / "w.json").exists()


def test_a_host_that_cannot_be_resolved_is_no_server_to_start(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    sample = "sample --task stories --limit 1 --n 1 --model m --max_retries 0 --base_url http://no-host.invalid/v1"
    said = message(capsys, *sample.split(), "--store", tmp_path / "t.db")
    assert "The host name of http://no-host.invalid/v1 cannot be resolved" in said and "`--base_url`" in said
    assert "Start one" not in said


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("learning_rate", "-1", "`learning_rate` must be 0 or more, got -1.0."),
        ("learning_rate", "nan", "`learning_rate` must be 0 or more"),
        ("per_device_train_batch_size", "-2", "`per_device_train_batch_size` must be at least 1, got -2."),
        ("gradient_accumulation_steps", "0", "`gradient_accumulation_steps` must be at least 1, got 0."),
        ("warmup_steps", "-5", "`warmup_steps` must be 0 or more"),
        ("max_steps", "0", "`max_steps` must be at least 1, got 0."),
        ("num_train_epochs", "0", "`num_train_epochs` must be more than 0"),
        ("adam_beta2", "1.5", "`adam_beta2` must be from 0 to below 1"),
        ("max_length", "0", "`max_length` must be at least 1"),
        ("rationale_weight", "-1", "`rationale_weight` must be 0 or more"),
        ("train_limit", "0", "`train_limit` is 0"),
        ("eval_limit", "-1", "`eval_limit` is -1"),
    ],
)
def test_impossible_numbers_are_refused_before_anything_is_loaded(capsys, option, value, expected):
    assert expected in message(capsys, *TRAIN, "--dataset", "absent", "--output_dir", "o", f"--{option}", value)


def test_status_says_what_became_of_requests_without_an_answer(tmp_path, capsys):
    with Store(tmp_path / "t.db") as store:
        store.questions.add([Question("svamp/train/1", "svamp", "train", "How?", "1")])
        setting = store.settings.number("m", "p", SamplingParams())
        for claim in store.claims.claim("svamp/train/1", "cot", setting, 2).claims:
            store.claims.fail(claim.key, "the connection was lost", lost=True)
    main(["store", "status", "--store", str(tmp_path / "t.db")])
    out = capsys.readouterr().out
    assert "1 of 1 (1 without an answer)" in out
    assert "1 requests were sent, but their answers never arrived" in out and "again asks for what is missing" in out


def test_only_the_warning_about_an_optional_kernel_is_silenced(caplog):
    _quiet_dependencies()
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "No module named 'kernels'")
    logger.warning("Something else.")
    assert [record.getMessage() for record in caplog.records] == ["Something else."]


def test_a_refused_import_leaves_no_new_store_and_an_old_one_as_it_was(workplace, tmp_path, capsys):
    file = tmp_path / "bad.jsonl"
    file.write_text('{"task": "svamp", "question": "What is 3 plus 1?", "gold": "4", "path": "verse", "text": "4"}\n')
    assert "line 1: unknown path" in message(capsys, "store", "import", "--store", tmp_path / "new.db", "--file", file)
    assert sorted(tmp_path.iterdir()) == [file]
    old = shutil.copy(workplace / "t.db", tmp_path / "old.db")
    assert "line 1: unknown path" in message(capsys, "store", "import", "--store", old, "--file", file)
    with Store(old) as store, Store(workplace / "t.db") as before:
        assert store.status() == before.status() != []
