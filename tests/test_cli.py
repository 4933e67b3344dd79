import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import SHARED, needs_shared
from students import byte_tokenizer, tiny_llama

from md_trl import __version__
from md_trl.cli import VERBS, main, run_verb
from md_trl.cli.completion import SHELLS
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


def usage_error(capsys, *arguments):
    """Run a command that must end in a usage error, and return what it prints."""
    with pytest.raises(SystemExit) as error:
        main(list(arguments))
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") <= 10
    return message


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_on_one_screen(capsys, monkeypatch, verb):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as exit:
        main([verb, "--help"])
    out = capsys.readouterr().out
    assert exit.value.code == 0 and f"md-trl {verb}" in out and "--config" in out
    assert out.count("\n") <= 50 and max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("verb", ["sample", "eval", "serve"])
def test_help_says_which_model_is_asked_and_where(capsys, verb):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    out = capsys.readouterr().out
    assert all(f"  --{name} " in out for name in ("model", "engine", "base_url"))


@pytest.mark.parametrize("option", ["--help-all", "--help_all"])
def test_help_all_describes_every_field_in_full(capsys, option):
    from md_trl.cli.sample import SampleArguments

    with pytest.raises(SystemExit) as exit:
        main(["sample", option])
    out = " ".join(capsys.readouterr().out.split())
    assert exit.value.code == 0
    for field in fields(SampleArguments):
        assert f"--{field.name}" in out and " ".join(field.metadata["help"].split()) in out
    assert "(default: 0.7)" in out and "(default: None)" not in out


def test_help_shows_defaults_and_what_is_ours(capsys):
    from md_trl.cli.train import SHOWN, RecipeArguments
    from md_trl.trainer import MDConfig

    with pytest.raises(SystemExit):
        main(["train", "--help"])
    out = capsys.readouterr().out
    inherited = {"gradient_checkpointing", "remove_unused_columns", "router_aux_loss_coef"}  # only the default is ours
    own = {*RecipeArguments.__annotations__, *MDConfig.__annotations__} - inherited
    assert own <= {*RecipeArguments.__annotations__, *SHOWN}
    assert all(f"--{name} " in out for name in [*own, *SHOWN])
    assert "(default: tree)" in out and "--weight_decay" not in out
    with pytest.raises(SystemExit):
        main(["train", "--help-all"])
    out = capsys.readouterr().out
    assert "--weight_decay" in out and all(f"--{name}" in out for name in own)


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["--version"], ["mixx"], ["--hlep"], *(["completion", s] for s in SHELLS)]
)
def test_what_needs_no_model_is_quick(arguments):
    code = f"from md_trl.cli import main; main({arguments})"
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True)
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "md_trl.cli" in imported and not imported & {"torch", "transformers", "trl", "datasets"}


def test_usage_errors_need_no_torch(tmp_path):
    (tmp_path / "typo.yaml").write_text("colour: red")
    for arguments in (["mix", "--tsk", "x"], ["mix"], ["mix", "--config", str(tmp_path / "typo.yaml")]):
        code = f"from md_trl.cli import main; main({arguments})"
        done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True)
        assert done.returncode == 2
        assert not {line.split("|")[-1].strip() for line in done.stderr.splitlines()} & {"torch", "datasets"}


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"md_trl {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("mixx", "unknown verb 'mixx'. Did you mean 'mix'?"),
        ("--hlep", "unknown option '--hlep'"),
        ("report --reslts x", "unknown option `--reslts`. Did you mean `--results`?"),
        ("report -results x", "unknown option `-results`. Did you mean `--results`?"),
        ("mix --repeat-cup 3", "unknown option `--repeat-cup`. Did you mean `--repeat_cap`?"),
        ("report", "required: --results"),
        ("report --results x extra", "unexpected argument 'extra'"),
        ("report --results . --config", "`--config` needs a YAML file"),
        ("report --config unknown.yaml", "unknown.yaml, line 2: unknown key 'colour'"),
        ("report --config typo.yaml", "typo.yaml, line 1: unknown key 'reslts'. Did you mean `results`?"),
        ("eval --model m --n many", "argument --n: invalid int value: 'many'"),
        ("eval --engine foo", "invalid choice: 'foo'"),
        ("eval --config types.yaml", "types.yaml, line 2: `n`: invalid int value: 'many'"),
        ("eval --config list.yaml", "list.yaml, line 1: `n`: expected one value, got the list [1, 2]"),
        ("eval --config choice.yaml", "choice.yaml, line 1: `engine`: invalid choice: 'foo'"),
        ("completion", "name a shell: bash, zsh, fish"),
        ("sample --task svamp", "`--model` is missing"),
        ("sample --model m", "`--task` is missing"),
        ("store import --store t.db", "`--file` is missing"),
        ("store merge --store t.db", "`--stores` is missing"),
        ("show", "Name one source"),
        ("publish --repo me/x", "Name either a folder with `--dataset`, or `--metric`"),
        ("mix --task svamp --output o", "No thoughts to mix are named"),
        (
            "mix --store t.db --task svamp --output o --pick cot=m --model m",
            "`--model` and `--pick` exclude each other",
        ),
        ("train --dataset d --output_dir o --use_cpu true", "`model_name_or_path` is missing"),
        ("serve --model http://127.0.0.1:9/v1", "pass `--model_name`"),
        ("train --max_stps 3", "unknown option `--max_stps`. Did you mean `--max_steps`?"),
        ("train --dataset d --task t --optim foo", "invalid choice: 'foo'"),
    ],
)
def test_usage_errors_name_the_mistake_in_a_few_lines(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("unknown.yaml").write_text("results: .\ncolour: red")
    Path("typo.yaml").write_text("reslts: .")
    Path("types.yaml").write_text("model: m\nn: many")
    Path("list.yaml").write_text("n: [1, 2]")
    Path("choice.yaml").write_text("engine: foo")
    assert message in usage_error(capsys, *arguments.split())


def test_values_of_a_yaml_file_are_read_like_those_of_the_command_line(tmp_path, capsys):
    from md_trl.cli.mix import MixArguments
    from md_trl.cli.parser import VerbParser

    config = tmp_path / "mix.yaml"
    config.write_text("task: 5\noutput: out\nsplits: train\nsettings: 3\nmodel: null\nrepeat_cap: 2\ncombine: yes")
    [args] = VerbParser([MixArguments], "mix", "", []).parse(["--config", str(config), "--output", "other"])
    typed = "--task 5 --output other --splits train --settings 3 --repeat_cap 2 --combine".split()
    assert [args] == VerbParser([MixArguments], "mix", "", []).parse(typed)


def test_debug_shows_the_traceback(tmp_path):
    arguments = ["report", "--results", tmp_path / "absent"]
    assert "Traceback" not in md_trl(*arguments, check=False).stderr
    for debug in (["--debug", *arguments], [*arguments, "--debug"]):
        done = md_trl(*debug, check=False)
        assert done.returncode == 1 and "Traceback" in done.stderr and "no results in" in done.stderr


def test_debug_with_a_value_is_an_argument_of_the_training():
    from md_trl.cli import _take_debug

    arguments = ["--debug", "underflow_overflow", "--max_steps", "1"]
    assert _take_debug(arguments) == (arguments, False)
    assert _take_debug(["--debug", "--max_steps", "1", "--debug"]) == (["--max_steps", "1"], True)


def test_a_missing_extra_is_named(monkeypatch, capsys):
    error = ModuleNotFoundError("No module named 'starlette.routing'", name="starlette.routing")
    monkeypatch.setattr("md_trl.report.load_results", lambda folder: (_ for _ in ()).throw(error))
    with pytest.raises(SystemExit, match=r'No module named .*pip install "md_trl\[serve\]"'):
        main(["report", "--results", "r"])


def test_ctrl_c_ends_in_status_130(tmp_path):
    with socket.socket() as server:  # takes requests and never answers
        server.bind(("127.0.0.1", 0))
        server.listen()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        sample = f"sample --task stories --limit 1 --n 1 --model m --base_url {url} --store {tmp_path / 't.db'}"
        command = [sys.executable, "-m", "md_trl", *sample.split()]
        environment = os.environ | {"OPENAI_API_KEY": "none"}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        server.accept()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted" in errors and "Traceback" not in errors


def test_a_reader_that_stops_reading_is_no_error(tmp_path):
    lines = [{"task": "svamp", "question": f"{i}?", "gold": "1", "path": "cot", "text": "x" * 5000} for i in range(60)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Store(tmp_path / "t.db") as store:
        store.import_thoughts(tmp_path / "t.jsonl")
    command = [sys.executable, "-m", "md_trl", "show", "--store", tmp_path / "t.db"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(timeout=120) == 141


def test_a_budget_that_leaves_samples_missing_ends_in_status_1(tmp_path):
    from md_trl.simulated_teacher import TeacherServer

    (tmp_path / "prices.yaml").write_text("m: {prompt: 1000000, completion: 1000000}")
    with TeacherServer("127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        sample = ["sample", "--task", "stories", "--limit", 2, "--n", 2, "--model", "m", "--base_url", server.url]
        sample += ["--store", tmp_path / "t.db", "--prices", tmp_path / "prices.yaml", "--max_cost", 1]
        done = md_trl(*sample, check=False, env=os.environ | {"OPENAI_API_KEY": "none"})
        server.shutdown()
        thread.join()
    assert done.returncode == 1 and "8 missing" in done.stdout and "Traceback" not in done.stderr


def test_a_log_has_no_bars(tmp_path):
    """What is printed where no terminal is, in a short run and with a line for each update."""
    code = """if True:
        from md_trl import progress
        for seconds in (progress.LOG_SECONDS, 0.0):
            progress.LOG_SECONDS = seconds
            for _ in progress.progress_bar(range(3), desc=f"every {seconds:.0f} s", unit="thought"):
                pass
            with progress.progress_bar(show=False, total=3) as bar:
                bar.update(3)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "\r" not in done.stderr and "every 60 s" not in done.stderr
    assert "3/3" in done.stderr.splitlines()[-1] and "thought/s" in done.stderr


def test_a_terminal_has_a_bar():
    main_end, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    code = "from md_trl.progress import progress_bar; list(progress_bar(range(3), desc='Mixing'))"
    subprocess.run([sys.executable, "-c", code], stderr=terminal, check=True)
    assert b"\rMixing" in os.read(main_end, 10_000)


def complete(script, *words):
    """What bash offers after these words."""
    ask = f"COMP_WORDS=(md-trl {' '.join(words)}); COMP_CWORD={len(words)}; _shtab_md_trl; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", f"source {script}; {ask}"], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_verbs_options_and_choices(tmp_path, capsys):
    from md_trl.cli.train import SHOWN

    script = tmp_path / "completion.bash"
    main(["completion", "bash"])
    script.write_text(capsys.readouterr().out)
    assert complete(script, "''") == list(VERBS)
    assert complete(script, "ca") == ["calibrate"]
    assert complete(script, "eval", "--eng") == ["--engine"]
    assert complete(script, "eval", "--engine", "v") == ["vllm"]
    assert complete(script, "store", "st") == ["status"]
    assert {f"--{name}" for name in (*SHOWN, "eval_n", "config", "help-all")} <= set(complete(script, "train", "--"))


@pytest.mark.parametrize(("shell", "check"), [("zsh", ["zsh", "-n"]), ("fish", ["fish", "--no-execute"])])
def test_other_shells_understand_their_script(tmp_path, capsys, shell, check):
    main(["completion", shell])
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    assert all(verb in script.read_text() for verb in VERBS)
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    subprocess.run([*check, script], check=True)


def test_env_describes_the_machine_and_gives_no_secret_away(monkeypatch, capsys):
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "HF_HOME"):
        monkeypatch.setenv(name, "do-not-write-me-down")
    main(["env"])
    out = capsys.readouterr().out
    for name in ("md_trl", "Python", "platform", "CPU", "accelerator", "torch", "trl", "transformers"):
        assert f"- {name}: " in out
    assert f"- torch: {version('torch')}" in out and "sandbox engine `monty`: works" in out
    assert "do-not-write-me-down" not in out and str(Path.home()) + "/" not in out and str(ROOT) not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mix", "--store", "absent.db", "--task", "svamp", "--output", "out"], "no store at absent.db"),
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
EVAL = "eval --model absent --task stories --limit 1 --store s.db --output r".split()
TRAIN = "train --dataset absent --task svamp --model_name_or_path absent --output_dir out".split()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "--results", ".", "--ensemble", "pair=cot"], "Write it as `NAME=cot_student+pot_student`"),
        (["report", "--results", ".", "--config", "absent.yaml"], "absent.yaml"),
        (["report", "--config", "bad.yaml"], "bad.yaml is not YAML"),
        (["report", "--config", "empty.yaml"], "empty.yaml is empty"),
        (["report", "--config", "list.yaml"], "list.yaml holds ['results'] instead of arguments"),
        (["report", "--config", "t.zip"], "t.zip is not YAML"),
        (["calibrate", "--result", "t.zip", "--output", "w.json"], "t.zip is not a result"),
        (EVAL + ["--engine", "vllm"], 'pip install "md_trl[vllm]"'),
        (EVAL + ["--model", "t.zip"], "t.zip is a file"),
        (EVAL + ["--model", "folder"], "Cannot load 'folder'"),
        (MIX + ["--pick", "cot"], "Write it as `--pick cot=MODEL pot=MODEL`"),
        (MIX + ["--pick", "prose=m"], "Write it as `--pick cot=MODEL pot=MODEL`"),
        # A recipe's evaluation is checked before its model is loaded
        (TRAIN + ["--eval_task", "poetry"], "Unknown task 'poetry'"),
        (TRAIN + ["--eval_task", "svamp", "--eval_source", "absent.json"], "absent.json does not exist"),
        (TRAIN + ["--eval_task", "stories", "--eval_split", "dev"], "Unknown split 'dev'"),
        (TRAIN + ["--eval_task", "stories", "--eval_n", "0"], "`n` is 0"),
        (TRAIN + ["--eval_task", "stories", "--eval_max_tokens", "0"], "`max_tokens` is 0"),
        (TRAIN + ["--resume_from_checkpoint", "folder"], "is no checkpoint: no trainer_state.json. Name a folder"),
        (TRAIN + ["--eval_task", "stories", "--eval_temperature", "0"], "`temperature=0` is greedy"),
        (TRAIN + ["--eval_task", "stories", "--eval_paths", "prose"], "Unknown path 'prose'"),
        (TRAIN + ["--eval_task", "stories", "--eval_store", "no_store.db"], "no_store.db"),
    ],
)
def test_every_mistake_in_the_arguments_is_explained(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "vllm", None)  # Another test may have imported the stand-in
    Path("bad.yaml").write_text("results: [")
    Path("empty.yaml").touch()
    Path("list.yaml").write_text("- results")
    Path("t.zip").write_bytes(b"PK\xff\xfe\x00")
    Path("folder").mkdir()
    Path("folder/config.json").write_text("{}")
    Path("no_store.db").write_text("This is not a database.")
    Path("t.db").touch()
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code.startswith(f"md-trl {arguments[0]}: ") and message in error.value.code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "gsm8k"], "task 'gsm8k' from mixed"),
        (["--load_in_4bit"], "Add `use_peft`"),
        (["--resume_from_checkpoint", "out/checkpoint-7"], "There is none in out"),
        (["--resume_from_checkpoint", "true"], "no checkpoint in out"),
        (["--model_name_or_path", "mixed"], "mixed holds no model: it has no config.json"),
        (["--eval_strategy", "steps"], "eval_dataset"),
        (["--report_to", "wandb"], "pip install wandb"),
        (["--attn_implementation", "flash_attention_2"], "FlashAttention2"),
    ],
)
def test_a_training_that_cannot_be_set_up_is_explained(mixed_folder, monkeypatch, arguments, message):
    monkeypatch.chdir(mixed_folder)
    train = "train --dataset mixed --task svamp --model_name_or_path student --output_dir out".split()
    with pytest.raises(SystemExit) as error:
        main([*train, "--use_cpu", "--report_to", "none", "--max_steps", "1", *arguments])
    assert error.value.code.startswith("md-trl train: ") and message in error.value.code


@pytest.fixture(scope="module")
def mixed_folder(tmp_path_factory):
    """A folder with a small student and mixed rows."""
    folder = tmp_path_factory.mktemp("mixed")
    tiny_llama().save_pretrained(folder / "student")
    byte_tokenizer().save_pretrained(folder / "student")
    own = {"task": "svamp", "question": "What is 1 plus 1?", "gold": "2", "path": "pot", "text": "answer = 2"}
    (folder / "t.jsonl").write_text(json.dumps(own))
    with Store(folder / "t.db") as store:
        store.import_thoughts(folder / "t.jsonl")
    main(["mix", "--store", str(folder / "t.db"), "--task", "svamp", "--output", str(folder / "mixed")])
    return folder


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
    questions = [QuestionResult(f"toy/test/{i}", "1", cot=["2", "2"], pot=["1", "1"]) for i in range(4)]
    EvaluationResult("md", "m", "toy", "test", {}, questions).save(tmp_path)
    main(["report", "--results", str(tmp_path), "--ensemble", "pair=cot student+pot student", "--baseline", "pair"])
    printed = capsys.readouterr().out
    assert "| md | pair | toy/test | CoT w/ PoT (N=2) | -100.0 | [-100.0, -100.0] |" in printed
    assert "| cot student | pair | toy/test |" not in printed
    students = json.loads((tmp_path / "report.json").read_text())["students"]
    assert [student["name"] for student in students] == ["cot student", "md", "pot student", "pair"]


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
    assert (
        "3,014 questions added, 0 were"
        in md_trl("store", "import", *store, "--file", tmp_path / "thoughts.jsonl").stdout
    )
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
