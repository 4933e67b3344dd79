"""Inspect AI, lm-evaluation-harness and lighteval give the accuracies of `md-trl eval` on the same thoughts."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
from servers.openai_server import OpenAIServer
from students import tiny_llama
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, set_seed

from md_trl.cli import main
from md_trl.evaluation import EvaluationResult
from md_trl.harnesses import LM_EVAL_TASKS
from md_trl.prompts import TRIGGERS, student_prompt
from md_trl.records import PATHS
from md_trl.simulated_teacher.server import TeacherServer
from md_trl.tasks import load_questions


QUESTIONS = load_questions("stories", "test")[:12]
N = 4


def text_of(question, path, seed):
    """A thought that is right in half of the cases, where its answer has one of two spellings."""
    draw = random.Random(f"{path}{seed}")
    gold = question.answer
    answer = draw.choice([gold, f"{gold}.0" if gold.isdigit() else gold.upper(), "77", "77"])
    if path == "cot":
        return draw.choice([f"Add them. The answer is {answer}."] * 4 + ["I do not know."])
    return draw.choice([f"answer = {answer!r}\nprint(answer)"] * 4 + ["print(1 / 0)"])


class Server(OpenAIServer):
    """
    Answers the questions with [`text_of`] in plain text, `choices` at a time.

    With `cut`, every third text is reported as cut off.
    """

    def __init__(self, choices=1, cut=False):
        super().__init__(choices=lambda body: min(choices, body.get("n") or 1), finish=self._finish)
        self.by_prompt = {student_prompt(q.question, path): (q, path) for q in QUESTIONS for path in PATHS}
        self.cut, self.returned = cut, {}

    def _finish(self, body, text):
        question, path = self.by_prompt[body["prompt"]]
        # The index of a choice reaches this function only through the text
        seed = body["seed"] if self.choices(body) == 1 else f"{body['seed']} {text}"
        text = text_of(question, path, seed)
        self.returned.setdefault((question.id, path), []).append(text)
        return text, "length" if self.cut and len(text) % 3 == 0 else "stop"


def md_trl_eval(folder, *options):
    """The figures of `md-trl eval`, over all thoughts."""
    store = str(folder / "student.db")
    common = ["--task", "stories", "--limit", str(len(QUESTIONS)), "--store", store, "--output", str(folder)]
    main(["eval", *common, *options])
    [file] = folder.glob("*.json")
    result = EvaluationResult.load(file)
    return {figure: result.curve(figure)[-1][1] for figure in ("joint", "cot", "pot")}


def eval_server(server, folder, n=N):
    options = ["--engine", "openai", "--model", "m", "--base_url", server.url, "--prompt_format", "plain"]
    return md_trl_eval(folder, *options, "--n", str(n))


def run(*command, **environment):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def script(name):
    return str(Path(sys.executable).with_name(name))


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A tiny student on disk that has learnt one thought per question and path by heart."""
    # With these seeds, both paths and the joint vote have different accuracies
    seeds = range(2700, 2700 + len(QUESTIONS))
    thoughts = {
        student_prompt(question.question, path): text_of(question, path, seed)
        for question, seed in zip(QUESTIONS, seeds, strict=True)
        for path in PATHS
    }
    words = sorted({w for item in thoughts.items() for text in item for w in re.findall(r"\w+|\W", text)})
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["</s>", "<pad>", *words])}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|\W"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>")
    set_seed(0)
    model = tiny_llama(vocab_size=len(tokenizer), hidden_size=64)
    texts = [prompt + thought + "</s>" for prompt, thought in thoughts.items()]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for row, prompt in zip(labels, thoughts, strict=True):
        row[: len(tokenizer(prompt)["input_ids"])] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(600):
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.01:
            break
    assert loss < 0.01, loss
    folder = tmp_path_factory.mktemp("student") / "student"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {"md_trl": "0", "objective": "md", "paths": ["cot", "pot"], "prompt_format": "plain"}
    (folder / "md_trl.json").write_text(json.dumps(settings | {"triggers": {path: TRIGGERS[path] for path in PATHS}}))
    return folder


@pytest.fixture(scope="module")
def greedy(student, tmp_path_factory):
    """The figures of that student by `md-trl eval`, one greedy thought per path."""
    folder = tmp_path_factory.mktemp("results")
    return md_trl_eval(folder, "--model", str(student), "--n", "1", "--temperature", "0", "--max_tokens", "40")


def test_the_student_tells_the_figures_apart(greedy):
    assert 0.2 < greedy["cot"] < 1 and 0.2 < greedy["pot"] < 1 and len(set(greedy.values())) == 3, greedy


# Inspect AI


def inspect_figures(log):
    assert log.status == "success", log.error
    return {score.name: score.metrics["accuracy"].value for score in log.results.scores}


def test_inspect_gives_the_figures_of_md_trl_eval_on_a_tiny_student(student, greedy, tmp_path):
    inspect_ai = pytest.importorskip("inspect_ai")
    from md_trl.harnesses.inspect_tasks import mixed

    task = mixed(task="stories", n=1, temperature=0, max_tokens=40)
    options = {"model_args": {"do_sample": False, "chat_template": "{{ messages[0].content }}"}, "display": "none"}
    options |= {"limit": len(QUESTIONS), "log_dir": str(tmp_path), "max_samples": 20}
    [log] = inspect_ai.eval(task, model=f"hf/{student}", **options)
    assert inspect_figures(log) == greedy


@pytest.mark.parametrize("choices", [pytest.param(1, marks=pytest.mark.slow), N])
def test_inspect_votes_on_the_thoughts_of_md_trl_eval(choices, tmp_path):
    """Through the command line and the entry point; the server also cuts texts off."""
    pytest.importorskip("inspect_ai")
    from inspect_ai.log import read_eval_log

    with Server(choices, cut=True) as server:
        expected = eval_server(server, tmp_path)
        sampled, server.returned = server.returned, {}
        command = [script("inspect"), "eval", "md_trl/mixed", "--model", "openai-api-completions/md/m"]
        arguments = ["task=stories", f"n={N}", "prompt_format=plain"]
        options = ["--limit", str(len(QUESTIONS)), "--log-dir", str(tmp_path / "logs"), "--display", "plain"]
        options += [word for argument in arguments for word in ("-T", argument)]
        run(*command, *options, MD_BASE_URL=server.url, MD_API_KEY="none")
    [file] = (tmp_path / "logs").glob("*.eval")
    log = read_eval_log(str(file))
    assert {key: Counter(texts) for key, texts in server.returned.items()} == {
        key: Counter(texts) for key, texts in sampled.items()
    }
    assert inspect_figures(log) == expected and len(set(expected.values())) > 1
    for sample in log.samples:
        assert len(sample.metadata["cot"]) == len(sample.metadata["pot_texts"]) == N


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("openai-api/md/m", {"prompt_format": "plain"}, "For plain text use openai-api-completions"),
        ("openai-api-completions/md/m", {"prompt_format": "chat"}, "writes text"),
        ("openai-api-completions/md/m", {}, "does not tell how 'm' was trained"),
        ("hf/{student}", {}, "puts every prompt into a chat"),
        ("hf/{student}", {"prompt_format": "chat"}, "contradicts the md_trl.json"),
    ],
)
def test_inspect_refuses_a_provider_that_would_change_the_prompt(
    model, arguments, message, student, tmp_path, monkeypatch
):
    inspect_ai = pytest.importorskip("inspect_ai")
    from md_trl.harnesses.inspect_tasks import mixed

    monkeypatch.setenv("MD_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("MD_API_KEY", "none")
    task, model = mixed(task="stories", **arguments), model.format(student=student)
    [log] = inspect_ai.eval(task, model=model, limit=1, log_dir=str(tmp_path), display="none")
    assert log.status == "error" and message in log.error.message


@pytest.mark.parametrize("wrong", [{"temperature": 0}, {"n": 0}, {"extract": "loose"}, {"task": "sums"}])
def test_inspect_task_checks_its_settings(wrong):
    pytest.importorskip("inspect_ai")
    from md_trl.harnesses.inspect_tasks import mixed

    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        mixed(**{"task": "stories"} | wrong)


# lm-evaluation-harness


def lm_eval_run(model, model_args, metadata, **options):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_path=str(LM_EVAL_TASKS), include_defaults=False, metadata=model_args | metadata)
    options = {"limit": len(QUESTIONS), "bootstrap_iters": 0} | options
    return lm_eval.simple_evaluate(model, model_args, tasks=["md_stories"], task_manager=tasks, **options)


def lm_eval_figures(results):
    return {figure: results["results"]["md_stories"][f"{figure},none"] for figure in ("joint", "cot", "pot")}


GREEDY = "temperature=0,do_sample=False,max_gen_toks=40"


def test_lm_eval_gives_the_figures_of_md_trl_eval_on_a_tiny_student(student, greedy):
    results = lm_eval_run(
        "hf", {"pretrained": str(student), "device": "cpu"}, {"n": 1}, gen_kwargs=GREEDY, batch_size=8
    )
    assert lm_eval_figures(results) == greedy


@pytest.mark.slow
def test_lm_eval_votes_on_the_thoughts_of_md_trl_eval(tmp_path):
    """Through the command line."""
    pytest.importorskip("lm_eval")
    with Server() as server:
        expected = eval_server(server, tmp_path)
        sampled, server.returned = server.returned, {}
        model_args = f"model=m,base_url={server.url}/completions,tokenizer_backend=None,tokenized_requests=False"
        command = [script("lm_eval"), "run", "--tasks", "md_stories", "--include_path", str(LM_EVAL_TASKS)]
        command += ["--model", "local-completions", "--model_args", model_args, "--limit", str(len(QUESTIONS))]
        metadata = json.dumps({"n": N, "request_seed": 42})
        run(*command, "--metadata", metadata, "--output_path", str(tmp_path / "out"))
    [file] = (tmp_path / "out").rglob("results_*.json")
    assert {key: Counter(texts) for key, texts in server.returned.items()} == {
        key: Counter(texts) for key, texts in sampled.items()
    }
    assert lm_eval_figures(json.loads(file.read_text())) == expected and len(set(expected.values())) > 1


def test_lm_eval_group_holds_all_tasks():
    pytest.importorskip("lm_eval")
    import yaml
    from lm_eval.tasks import TaskManager

    from md_trl.tasks import TASKS

    tasks = TaskManager(include_path=str(LM_EVAL_TASKS), include_defaults=False)
    assert tasks.all_groups == ["md_trl"]
    assert set(tasks.all_subtasks) == {f"md_{task}" for task in TASKS}
    assert yaml.safe_load((LM_EVAL_TASKS / "md_trl.yaml").read_text())["task"] == [f"md_{task}" for task in TASKS]


@pytest.mark.parametrize(
    ("metadata", "options", "message"),
    [
        ({}, {"gen_kwargs": GREEDY}, "gives one text, not n=10"),
        ({"n": 0}, {}, "`n` is 0"),
        ({"extract": "loose"}, {}, "'loose'"),
        ({}, {"system_instruction": "Be brief."}, "Leave out --system_instruction"),
        ({}, {"apply_chat_template": True}, "Leave out --apply_chat_template"),
    ],
)
def test_lm_eval_checks_its_settings(metadata, options, message, student):
    with pytest.raises(ValueError, match=message):
        lm_eval_run("hf", {"pretrained": str(student), "device": "cpu"}, metadata, **options)


# lighteval


@pytest.fixture
def lighteval():
    """Run lighteval, which needs an environment of its own, and return what it says."""
    executable = os.environ.get("MD_TRL_LIGHTEVAL")
    if not executable:
        pytest.skip("needs MD_TRL_LIGHTEVAL=FOLDER/bin/lighteval, an environment as in docs/harnesses.md")

    def lighteval(*command, folder, **options):
        return run(executable, *command, "--output-dir", str(folder / "out"), HOME=str(folder / "home"), **options)

    return lighteval


def lighteval_figures(folder):
    [file] = (folder / "out").rglob("results_*.json")
    figures = json.loads(file.read_text())["results"]["md_stories|0"]
    return {figure: figures[figure] for figure in ("joint", "cot", "pot")}


def task_file(folder, **options):
    options = {"limit": len(QUESTIONS), "n": N} | options
    file = folder / "tasks.py"
    file.write_text(
        "from md_trl.harnesses.lighteval_tasks import mixed_task\n"
        f"TASKS_TABLE = [mixed_task('stories', **{options!r})]\n"
    )
    return str(file)


def test_lighteval_gives_the_figures_of_md_trl_eval_on_a_tiny_student(lighteval, student, greedy, tmp_path):
    copy = tmp_path / "student"
    shutil.copytree(student, copy)
    # lighteval needs transformers 4, which does not know the name that transformers 5 gives to tokenizers
    file = copy / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    tasks = task_file(tmp_path, n=1, max_tokens=40)
    model = f"model_name={copy},device=cpu,batch_size=4,generation_parameters={{temperature:0}}"
    lighteval("accelerate", model, "md_stories", "--custom-tasks", tasks, folder=tmp_path)
    assert lighteval_figures(tmp_path) == greedy


CUSTOM_MODEL = '''
"""Asks a server for each sample with the seed that `md-trl eval` gives it."""

import os

import httpx
from lighteval.models.abstract_model import LightevalModel
from lighteval.models.model_output import ModelResponse
from lighteval.utils.cache_management import SampleCache

from md_trl.sampling.engines import derive_seed


class Student(LightevalModel):
    tokenizer, add_special_tokens, max_length = None, False, 2048

    def __init__(self, config):
        self.config, self._cache = config, SampleCache(config)

    def greedy_until(self, docs):
        responses = []
        for doc in docs:
            texts = []
            for index in range(doc.num_samples):
                seed = derive_seed(42, doc.specific["id"], doc.specific["path"], index)
                body = {"model": "m", "prompt": doc.query, "seed": seed}
                answer = httpx.post(os.environ["STUDENT_URL"] + "/completions", json=body).json()
                texts.append(answer["choices"][0]["text"])
            responses.append(ModelResponse(text=texts))
        return responses

    def loglikelihood(self, docs):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood
'''


@pytest.fixture
def custom_model(tmp_path):
    """The command that evaluates the model above."""
    (tmp_path / "student.py").write_text(CUSTOM_MODEL)
    return ["custom", "student", str(tmp_path / "student.py"), "md_stories", "--custom-tasks", task_file(tmp_path)]


def test_lighteval_votes_on_the_thoughts_of_md_trl_eval(lighteval, custom_model, tmp_path):
    with Server() as server:
        expected = eval_server(server, tmp_path)
        lighteval(*custom_model, folder=tmp_path, STUDENT_URL=server.url)
    assert lighteval_figures(tmp_path) == expected and len(set(expected.values())) > 1


def test_lighteval_refuses_half_of_a_question(lighteval, custom_model, tmp_path):
    with Server() as server, pytest.raises(AssertionError, match="was not asked for (cot|pot)"):
        lighteval(*custom_model, "--max-samples", "3", folder=tmp_path, STUDENT_URL=server.url)


# Chats


@pytest.fixture
def teacher():
    """The URL of the simulated teacher, which reads chats."""
    with TeacherServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.url
        server.shutdown()


def eval_teacher(url, folder, n):
    options = ["--engine", "openai", "--model", "simulated-teacher", "--base_url", url, "--prompt_format", "chat"]
    return md_trl_eval(folder, *options, "--n", str(n))


def test_inspect_asks_in_a_chat(teacher, tmp_path, monkeypatch):
    inspect_ai = pytest.importorskip("inspect_ai")
    from md_trl.harnesses.inspect_tasks import mixed

    monkeypatch.setenv("MD_BASE_URL", teacher)
    monkeypatch.setenv("MD_API_KEY", "none")
    task = mixed(task="stories", n=3, prompt_format="chat")
    options = {"limit": len(QUESTIONS), "log_dir": str(tmp_path / "logs"), "display": "none"}
    [log] = inspect_ai.eval(task, model="openai-api/md/simulated-teacher", **options)
    assert inspect_figures(log) == eval_teacher(teacher, tmp_path, 3)


@pytest.mark.slow
def test_a_second_inspect_epoch_draws_further_thoughts(tmp_path, monkeypatch):
    """Those that `md-trl eval` draws with twice the number."""
    inspect_ai = pytest.importorskip("inspect_ai")
    from md_trl.harnesses.inspect_tasks import mixed

    with Server() as server:
        eval_server(server, tmp_path, 2 * N)
        expected, server.returned = server.returned, {}
        monkeypatch.setenv("MD_BASE_URL", server.url)
        monkeypatch.setenv("MD_API_KEY", "none")
        options = {"limit": len(QUESTIONS), "log_dir": str(tmp_path / "logs"), "display": "none", "epochs": 2}
        task = mixed(task="stories", n=N, prompt_format="plain")
        # Inspect keeps models by their name, also those of a test whose server is gone
        model = inspect_ai.model.get_model("openai-api-completions/md/m", memoize=False)
        [log] = inspect_ai.eval(task, model=model, **options)
    assert log.status == "success"
    assert {key: Counter(texts) for key, texts in server.returned.items()} == {
        key: Counter(texts) for key, texts in expected.items()
    }


def test_lm_eval_asks_in_a_chat(teacher, tmp_path):
    model_args = {"model": "simulated-teacher", "base_url": f"{teacher}/chat/completions"}
    metadata = {"n": 1, "request_seed": 42}
    results = lm_eval_run("local-chat-completions", model_args, metadata, apply_chat_template=True)
    assert lm_eval_figures(results) == eval_teacher(teacher, tmp_path, 1)


# All of them


def test_strings_would_vote_otherwise(tmp_path):
    """The texts of the server split "5" and "5.0", so that counting strings, as the harnesses do, is worse."""
    with Server() as server:
        expected = eval_server(server, tmp_path)
    right = 0
    for question in QUESTIONS:
        answers = []
        for path in PATHS:
            texts = server.returned[question.id, path]
            answers += [
                found[1]
                for text in texts
                if (found := re.search(r"(?:answer is |answer = ')(.+?)['.]?(?:\n|$)", text))
            ]
        right += bool(answers) and Counter(answers).most_common(1)[0][0] == question.answer
    assert right / len(QUESTIONS) < expected["joint"]


def test_harnesses_are_imported_only_by_their_own_files():
    code = (
        "import sys, md_trl, md_trl.harnesses\n"
        "assert not {'inspect_ai', 'lm_eval', 'lighteval', 'torch'} & set(sys.modules)"
    )
    run(sys.executable, "-c", code)
