import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SHARED, needs_shared
from students import byte_tokenizer, tiny_llama

from md_trl.cli import VERBS, main, run_verb
from md_trl.errors import InputError
from md_trl.evaluation import EvaluationResult, QuestionResult
from md_trl.store import Store


ROOT = Path(__file__).parents[1]


def md_trl(*arguments, check=True, **kwargs):
    done = subprocess.run(
        [sys.executable, "-m", "md_trl", *map(str, arguments)], capture_output=True, text=True, timeout=300, **kwargs
    )
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_import_is_light():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import md_trl, md_trl.answers, md_trl.voting, md_trl.mixing"],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "md_trl.answers" in imported
    assert not imported & {"torch", "transformers", "datasets", "numpy", "sympy"}


def test_console_script_and_module_are_one():
    script = Path(sys.executable).parent / "md-trl"
    if not script.exists():
        pytest.skip("md-trl is not installed beside this Python")
    out = subprocess.run([script, "--help"], capture_output=True, text=True, check=True).stdout
    assert out == md_trl("--help").stdout
    assert all(verb in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb):
    out = md_trl(verb, "--help").stdout
    assert f"md-trl {verb}" in out and "--config" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mixx"], "unknown verb 'mixx'. Did you mean 'mix'?"),
        (["mix", "--store", "absent.db", "--task", "svamp", "--output", "out"], "no store at absent.db"),
        (["sample", "--task", "svamp"], "`--model` is missing"),
        (["sample", "--task", "poetry", "--model", "m"], "Unknown task 'poetry'"),
        (["sample", "--task", "svamp", "--source", "absent.json", "--model", "m"], "absent.json"),
        (
            ["sample", "--task", "stories", "--limit", "1", "--model", "m", "--base_url", "http://127.0.0.1:9/v1"],
            "http://127.0.0.1:9/v1",
        ),
        (["report", "--results", "absent"], "no results in absent"),
        (
            "eval --model absent --task stories --paths prose --store s.db --output r".split(),
            "Unknown path 'prose' in `--paths`",
        ),
    ],
)
def test_bad_input_ends_in_one_clear_message(tmp_path, arguments, message):
    done = md_trl(*arguments, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr


MIX = "mix --store t.db --task svamp --output out".split()
TRAIN = "train --dataset absent --task svamp --model_name_or_path absent --output_dir out".split()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "--results", ".", "--ensemble", "pair=cot"], "Write it as `NAME=cot_student+pot_student`"),
        (["report", "--results", ".", "--config", "absent.yaml"], "absent.yaml"),
        (["report", "--results", ".", "--config"], "`--config` needs a YAML file"),
        (["report", "--config", "bad.yaml"], "bad.yaml"),
        (["report", "--config", "unknown.yaml"], "Unknown arguments from config file: ['--colour', 'red']"),
        (MIX + ["--pick", "cot"], "Write it as `--pick cot=MODEL pot=MODEL`"),
        (MIX + ["--pick", "prose=m"], "Write it as `--pick cot=MODEL pot=MODEL`"),
        (MIX + ["--pick", "cot=m", "--model", "m"], "`--model` and `--pick` exclude each other"),
        # A recipe's evaluation is checked before its model is loaded
        (TRAIN + ["--eval_task", "poetry"], "Unknown task 'poetry'"),
        (TRAIN + ["--eval_task", "svamp", "--eval_source", "absent.json"], "absent.json does not exist"),
        (TRAIN + ["--eval_task", "stories", "--eval_split", "dev"], "Unknown split 'dev'"),
        (TRAIN + ["--eval_task", "stories", "--eval_n", "0"], "`n` is 0"),
        (TRAIN + ["--eval_task", "stories", "--eval_temperature", "0"], "`temperature=0` is greedy"),
        (TRAIN + ["--eval_task", "stories", "--eval_paths", "prose"], "Unknown path 'prose'"),
        (TRAIN + ["--eval_task", "stories", "--eval_store", "no_store.db"], "no_store.db"),
    ],
)
def test_every_mistake_in_the_arguments_is_explained(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text("results: [")
    Path("unknown.yaml").write_text("results: .\ncolour: red")
    Path("no_store.db").write_text("This is not a database.")
    Path("t.db").touch()
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code.startswith(f"md-trl {arguments[0]}: ") and message in error.value.code


def test_whose_fault_an_error_is_is_said_by_its_type(monkeypatch):
    def failing(error):
        def load_results(folder):
            raise error

        return load_results

    for error in (InputError("`x` is 1."), FileNotFoundError("No file x."), ConnectionError("No server.")):
        monkeypatch.setattr("md_trl.report.load_results", failing(error))
        with pytest.raises(SystemExit, match=f"md-trl report: {error}"):
            run_verb("report", ["--results", "r"])
    for error in (ValueError("a bug"), KeyError("a bug"), TypeError("a bug")):
        monkeypatch.setattr("md_trl.report.load_results", failing(error))
        with pytest.raises(type(error), match="a bug"):
            run_verb("report", ["--results", "r"])


def test_report_takes_ensembles_and_a_baseline(tmp_path, capsys):
    for path in ("cot", "pot"):
        questions = [QuestionResult(f"toy/test/{i}", "1", **{path: ["1", "2"]}) for i in range(4)]
        EvaluationResult(f"{path} student", "m", "toy", "test", {}, questions).save(tmp_path)
    main(["report", "--results", str(tmp_path), "--ensemble", "pair=cot student+pot student", "--baseline", "pair"])
    assert "| cot student | pair | toy | cot (N=2) | +0.0 | [+0.0, +0.0] |" in capsys.readouterr().out
    students = json.loads((tmp_path / "report.json").read_text())["students"]
    assert [student["name"] for student in students] == ["cot student", "pot student", "pair"]


def test_a_recipe_trains_on_what_the_store_holds_now(tmp_path):
    from md_trl.cli.train import RecipeArguments, _load_rows
    from md_trl.trainer import MDConfig

    file, lines = tmp_path / "t.jsonl", []
    args = RecipeArguments(dataset=str(tmp_path / "mixed"), task="svamp", store=str(tmp_path / "t.db"))
    config = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none"}
    for number in (1, 2):
        question = {"task": "svamp", "question": f"What is {number} plus 1?", "gold": str(number + 1)}
        lines += [question | {"path": "pot", "text": f"answer = {number} + 1"}]
        lines += [question | {"question": f"Unsolved {number}", "path": "pot", "text": "answer = 0"}]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        with Store(args.store) as store:
            store.import_thoughts(file)
        assert len(_load_rows(args, MDConfig(**config))) == number
        # `label_all` trains on every question, solved or not
        rows = _load_rows(args, MDConfig(**config, objective="label_all"))
        assert len(rows) == 2 * number and rows[1]["question"] == "Unsolved 1"


def test_the_whole_method_from_the_command_line(tmp_path):
    teacher = subprocess.Popen(
        [sys.executable, "-m", "md_trl", "teacher", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        ready = teacher.stdout.readline()
        assert "simulated" in ready
        sample = ["sample", "--task", "stories", "--limit", 40, "--n", 4, "--model", "simulated-teacher"]
        sample += ["--base_url", ready.split()[0], "--store", tmp_path / "teacher.db"]
        assert "320 thoughts from 80 requests" in md_trl(*sample).stdout
        assert "0 thoughts from 0 requests" in md_trl(*sample).stdout  # nothing is bought twice
    finally:
        teacher.terminate()
        assert teacher.wait(timeout=20) == 0

    student = tmp_path / "untrained"
    tiny_llama().save_pretrained(student)
    byte_tokenizer().save_pretrained(student)
    config = tmp_path / "recipe.yaml"
    recipe = {
        "store": str(tmp_path / "teacher.db"),
        "dataset": str(tmp_path / "mixed"),
        "task": "stories",
        "model_name_or_path": str(student),
        "output_dir": str(tmp_path / "student"),
        "max_steps": 2,
        "use_cpu": True,
        "report_to": "none",
        "eval_task": "stories",
        "eval_limit": 3,
        "eval_n": 2,
        "eval_max_tokens": 8,
    }
    config.write_text(json.dumps(recipe))  # JSON is YAML
    # The recipe script with another `--config` is `md-trl train`
    script = [sys.executable, ROOT / "recipes" / "llama2_svamp.py", "--config", config, "--logging_steps", "1"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "solved by" in done.stdout and "CoT w/ PoT" in done.stdout
    assert "12 thoughts from 6 requests" in done.stdout
    assert (tmp_path / "mixed" / "README.md").exists()
    assert (tmp_path / "student" / "model.safetensors").exists()

    state = json.loads((tmp_path / "student" / "trainer_state.json").read_text())
    assert {"loss", "cot_loss", "pot_loss", "num_questions"} <= set(state["log_history"][0])
    results = tmp_path / "student" / "results"
    [result] = [json.loads(file.read_text()) for file in results.glob("*.json")]
    assert result["figures"]["n_questions"] == len(result["questions"]) == 3
    out = md_trl("report", "--results", results).stdout
    assert "| student | stories/test | 3 |" in out
    assert all((results / f"report.{end}").exists() for end in ("md", "json", "png", "svg"))

    # Evaluating again samples nothing
    evaluation = ["eval", "--model", tmp_path / "student", "--task", "stories", "--limit", 3, "--n", 2]
    evaluation += ["--max_tokens", 8, "--store", tmp_path / "student" / "student.db", "--output", tmp_path / "again"]
    assert "0 thoughts from 0 requests" in md_trl(*evaluation).stdout
    [again] = [json.loads(file.read_text()) for file in (tmp_path / "again").glob("*.json")]
    assert again == result


@needs_shared("data/svamp_teacher")
def test_real_rationales_are_imported_and_mixed(tmp_path):
    script = ROOT / "recipes" / "smollm2-135m" / "gpt35_to_thoughts.py"
    with (tmp_path / "thoughts.jsonl").open("w") as file:
        subprocess.run([sys.executable, script, SHARED / "data" / "svamp_teacher"], stdout=file, check=True)
    store = ["--store", tmp_path / "teacher.db"]
    assert "3,014 questions added" in md_trl("store", "import", *store, "--file", tmp_path / "thoughts.jsonl").stdout
    out = md_trl("mix", *store, "--task", "svamp", "--output", tmp_path / "mixed").stdout
    assert "svamp/train: 3,014 questions" in out
    types = json.loads((tmp_path / "mixed" / "svamp" / "mixing.json").read_text())["types"]["train"]
    assert types["3"] > 3000


def test_secrets_stay_out_of_errors_and_files(tmp_path):
    key = "sk-do-not-write-me-down"
    environment = os.environ | {"OPENAI_API_KEY": key}
    sample = ["sample", "--task", "stories", "--limit", 1, "--model", "m", "--base_url", "http://127.0.0.1:9/v1"]
    done = md_trl(*sample, "--store", "t.db", check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 1
    everything = done.stdout + done.stderr + "".join(f.read_bytes().decode("latin-1") for f in tmp_path.iterdir())
    assert key not in everything
