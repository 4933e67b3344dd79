"""What README.md and docs/ show is true: their Python runs, their commands exist, their links lead somewhere.

A comment right before a block changes what is done with it:

- `<!-- test: skip, REASON -->`: a block that cannot run here. `SKIPPED` below lists them all.
- `<!-- test: run -->`: commands that are run, and not only parsed.
"""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import pytest
import torch
import yaml
from accelerate.commands.launch import launch_command_parser
from commands import ON_CPU, parse_verb, recorded
from students import byte_tokenizer, tiny_llama
from test_server import served

from md_trl import MixedReasoner
from md_trl.cli import main
from md_trl.evaluation import EvaluationResult, QuestionResult
from md_trl.simulated_teacher import TeacherServer


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINKING = PAGES + [ROOT / name for name in ("AGENTS.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]
LINKING += [*sorted((ROOT / "recipes").rglob("*.md")), *sorted((ROOT / ".github").rglob("*.md"))]

# Blocks that are not tested, by page and reason
SKIPPED = {
    ("docs/harnesses.md", "needs lighteval, which has an environment of its own"): 1,
    ("docs/hub.md", "needs the Hub"): 1,
    ("docs/refine.md", "trains for minutes"): 1,
}

# Programs of others, whose arguments are not checked
OTHERS = "export hf inspect lighteval lm_eval sbatch sed".split()

# Pages whose blocks ask a server at 127.0.0.1:8000
ASKS_TEACHER, ASKS_STUDENT = ("docs/concepts.md",), ("docs/serving.md",)


def name_of(page):
    return page.relative_to(ROOT).as_posix()


@dataclass
class Block:
    """A fenced block of a page, the number of its first line, and the marker before it."""

    page: Path
    line: int
    language: str
    code: str
    marker: str
    reason: str

    @property
    def place(self):
        return f"{name_of(self.page)}:{self.line}"


def blocks_of(page, *languages):
    """The blocks in these languages, without those that are skipped."""
    return [b for b in all_blocks(page) if b.language in languages and b.marker != "skip"]


def all_blocks(page):
    text = page.read_text()
    pattern = r"(?:^ *<!-- test: (skip|run)(?:, (.+?))? -->\n+)?^( *)```(\w*)\n(.*?)^\3```$"
    found = [
        Block(page, text.count("\n", 0, m.start(5)) + 1, m[4], textwrap.dedent(m[5]), m[1] or "", m[2] or "")
        for m in re.finditer(pattern, text, re.MULTILINE | re.DOTALL)
    ]
    # Every fence and every marker was understood
    assert text.count("```") == 2 * len(found) and text.count("<!-- test:") == sum(bool(b.marker) for b in found)
    return found


def pages_with(*languages):
    pages = [page for page in PAGES if blocks_of(page, *languages)]
    return pytest.mark.parametrize("page", pages, ids=map(name_of, pages))


def test_what_is_skipped_is_listed_with_its_reason():
    skipped = [(name_of(b.page), b.reason) for page in PAGES for b in all_blocks(page) if b.marker == "skip"]
    assert Counter(skipped) == SKIPPED


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) < 900


# Python


@pytest.fixture(scope="session")
def layout(tmp_path_factory):
    """A folder with what the pages name: thoughts, datasets, models, results."""
    folder = tmp_path_factory.mktemp("layout")
    for task in ("svamp", "shop"):
        lines = [
            {"task": task, "question": f"{task}: {i} + {i}?", "gold": str(2 * i), "path": path, "text": text}
            for i in range(1, 5)
            for path, text in (("cot", f"{i} + {i} = {2 * i}. The answer is {2 * i}."), ("pot", f"answer = {i} + {i}"))
        ]
        store, thoughts = str(folder / f"{task}.db"), folder / f"{task}-thoughts.jsonl"
        thoughts.write_text("".join(json.dumps(line) + "\n" for line in lines))
        main(["store", "import", "--store", store, "--file", str(thoughts), "--task", task])
        for output in ("mixed", "md/mixed-thoughts"):
            main(["mix", "--store", store, "--task", task, "--output", str(folder / output)])
    rows = [json.dumps({"question": f"What is {i} + {i}?", "answer": 2 * i}) for i in range(10)]
    (folder / "my_questions.jsonl").write_text("\n".join(rows) + "\n")
    texts = {"cot": "The answer is 4.", "pot": "answer = 2 + 2"}
    thoughts = [{"task": "my_questions", "question": "What is 2 + 2?", "path": p, "text": t} for p, t in texts.items()]
    (folder / "thoughts.jsonl").write_text("".join(json.dumps(thought) + "\n" for thought in thoughts))
    for name in ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M-Instruct", "outputs/student"):
        brief_llama().save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
    answers = {"cot": ["2", "3"] * 5, "pot": ["2", "4"] * 5, "cot_logprob": [-0.1] * 10, "pot_logprob": [-0.3] * 10}
    questions = [QuestionResult(f"q{i}", "2", **answers) for i in range(4)]
    file = EvaluationResult("student", "student", "svamp", "test", {}, questions).save(folder / "results")
    file.rename(folder / "results" / "student-svamp-test-1a2b3c4d.json")
    return folder


def brief_llama():
    """A random Llama whose texts end soon: all states share a component that EOS is read from."""
    llama = tiny_llama()
    with torch.no_grad():
        llama.get_input_embeddings().weight[:, 0] = 4.0
        llama.get_output_embeddings().weight[0] = 0.0
        llama.get_output_embeddings().weight[0, 0] = 2.0
    return llama


@contextmanager
def server_of(page, folder):
    """The server that a page asks, if any: the simulated teacher, or a student. Yields its host and port."""
    if name_of(page) in ASKS_TEACHER:
        with TeacherServer("127.0.0.1", 0) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield urlparse(server.url).netloc
            server.shutdown()
            thread.join()
    elif name_of(page) in ASKS_STUDENT:
        with served(MixedReasoner(str(folder / "outputs/student"), n=4, max_tokens=16)) as url:
            yield urlparse(url).netloc
    else:
        yield "127.0.0.1:8000"


@pages_with("python")
def test_python_runs(page, layout, tmp_path, monkeypatch, capsys):
    """Block by block, in one namespace, together with the commands between them that are to be run."""
    folder = tmp_path / "page"
    shutil.copytree(layout, folder)
    monkeypatch.chdir(folder)
    namespace = {"__name__": "page"}
    with server_of(page, folder) as address:
        for block in blocks_of(page, "python", "bash"):
            code = block.code.replace("127.0.0.1:8000", address)
            if block.language == "python":
                # The traceback of a failure shows the line of the page
                exec(compile("\n" * (block.line - 1) + code, str(page), "exec"), namespace)
            elif block.marker == "run":
                for words in commands_of(code):
                    assert words[0] == "md-trl", f"{block.place}: {words[0]} cannot be run"
                    main(words[1:])
    # What a page says that it prints is what it prints
    printed = capsys.readouterr().out
    for block in blocks_of(page, "text"):
        assert block.code in printed, block.place


def test_the_picture_of_the_readme_is_drawn_by_the_command_it_names(tmp_path, monkeypatch):
    assert "python docs/images/one_question.py" in (ROOT / "README.md").read_text()
    monkeypatch.setattr(sys, "argv", ["one_question.py", "--output", str(tmp_path)])
    runpy.run_path(str(ROOT / "docs/images/one_question.py"), run_name="__main__")
    assert (tmp_path / "one_question.png").stat().st_size > 50_000
    drawn, kept = ((folder / "one_question.svg").read_text() for folder in (tmp_path, ROOT / "docs/images"))
    texts = r"<!-- (.+?) -->"  # matplotlib writes every text as a comment beside its outlines
    assert re.findall(texts, drawn) == re.findall(texts, kept)
    # Lambda has no effect where only one path solves the question
    assert "Type 3: solved by both" in kept and "λ" in kept
    monkeypatch.setattr(sys, "argv", ["one_question.py", "--id", "stories/train/large/229", "--output", str(tmp_path)])
    runpy.run_path(str(ROOT / "docs/images/one_question.py"), run_name="__main__")
    drawn = (tmp_path / "one_question.svg").read_text()
    assert "Type 1: solved by PoT only" in drawn and "λ" not in drawn


@pages_with("json", "yaml")
def test_data_is_well_formed(page):
    for block in blocks_of(page, "json", "yaml"):
        assert json.loads(block.code) if block.language == "json" else yaml.safe_load(block.code), block.place


# Commands


def commands_of(code):
    """The commands of a shell block, each as a list of words."""
    code = re.sub(r"^(\s*)\w+=\$\((.*)\)$", r"\1\2", code.replace("\\\n", " "), flags=re.MULTILINE)
    code = re.sub(r"\$\{?\w+\}?", "1", code)
    for line in code.splitlines():
        for part in re.split(r" (?:&&|\||;) ", line):
            words = shlex.split(part, comments=True)
            while words and re.match(r"\w+=", words[0]):
                words.pop(0)
            if ">" in words:
                words = words[: words.index(">")]
            if words:
                yield words


@pages_with("bash")
def test_commands_exist(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for block in blocks_of(page, "bash"):
        for words in commands_of(block.code):
            try:
                check_command(words, monkeypatch)
            except (Exception, SystemExit) as error:
                raise AssertionError(f"{block.place}: {shlex.join(words)}") from error


def check_command(words, monkeypatch):
    """Raise if a command has an option that does not exist, a value that is refused, or a file that is missing."""
    program, *arguments = words
    if program == "md-trl" or words[:3] == ["python", "-m", "md_trl"]:
        parse_verb(arguments if program == "md-trl" else arguments[2:], monkeypatch)
    elif words[:2] == ["accelerate", "launch"]:
        parsed = launch_command_parser().parse_args(arguments[1:])
        assert parsed.config_file is None or Path(parsed.config_file).is_file()
        if parsed.module:
            assert parsed.training_script == "md_trl"
            parse_verb(parsed.training_script_args, monkeypatch)
        else:
            arguments = [*parsed.training_script_args, *ON_CPU["train"]]
            monkeypatch.setattr(sys, "argv", [parsed.training_script, *arguments])
            with recorded("train", monkeypatch):
                runpy.run_path(parsed.training_script, run_name="__main__")
    elif words[:2] == ["python", "-c"]:
        exec(arguments[1], {})
    elif program == "python" and arguments[0] != "-m":
        check_script(Path(arguments[0]), [word.split("=")[0] for word in arguments[1:] if word.startswith("--")])
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text()
        names = [word.split("=")[0] for word in arguments]
        assert all(re.search(rf"^{name}(:| \?=)", makefile, re.MULTILINE) for name in names)
    elif program == "pip" or words[:3] == ["python", "-m", "pip"]:
        extras = re.findall(r"md_trl\[(\w+)\]", " ".join(words))
        pyproject = (ROOT / "pyproject.toml").read_text()
        assert all(re.search(rf"^{extra} = \[", pyproject, re.MULTILINE) for extra in extras)
    elif words[:2] == ["python", "-m"]:
        assert arguments[1] in ("llama_cpp.server", "venv")
    else:
        assert program in (*OTHERS, "."), f"unknown program {program}"


def check_script(script, options):
    assert script.is_file(), f"{script} does not exist"
    # Its arguments are read from its source, since its imports take seconds
    assert all(f'add_argument("{option}"' in script.read_text() for option in options)


# Links


def anchors_of(file):
    """The anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"^( *)```.*?^\1```$", "", file.read_text(), flags=re.MULTILINE | re.DOTALL)
    anchors = Counter()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        anchors[f"{slug}-{anchors[slug]}" if anchors[slug] else slug] += 1
    return anchors


@pytest.mark.parametrize("page", LINKING, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`\n]*`", "", text)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        url = urlparse(target)
        if url.scheme:
            assert url.scheme in ("https", "http") and "." in url.netloc, f"{target} is not an address"
            continue
        file = (page.parent / url.path).resolve() if url.path else page
        assert file.exists() and file.is_relative_to(ROOT), f"{target} does not exist"
        if url.fragment:
            assert url.fragment in anchors_of(file), f"{target}: {file.name} has no such heading"


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES[1:]:
        assert f": {page.relative_to(ROOT / 'docs').as_posix()}\n" in navigation


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "api/training/index.html").read_text()
    assert "MDTrainer" in reference and "rationales_per_path" in reference
    # No reference of a docstring was left as it is
    assert not [file for file in tmp_path.rglob("index.html") if "[`" in file.read_text()]
