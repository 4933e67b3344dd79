"""What `pip install md_trl` brings: the wheel holds all data files, and works where nothing else is installed."""

import ast
import itertools
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

# What the package reads at run time, beside its code
DATA = (
    "md_trl/py.typed",
    "md_trl/test_questions.json",
    "md_trl/prompts/examples/svamp.json",
    "md_trl/harnesses/lm_eval_tasks/md_trl.yaml",
    "md_trl/harnesses/lm_eval_tasks/mixed",
    "md_trl/hub_cards/md_vote/md_vote.py",
    "md_trl/hub_cards/mixed-thoughts/README.md",
    "md_trl/hub_cards/student/README.md",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the source distribution, and the wheel that is built from it."""
    pytest.importorskip("build")
    # A copy, because building leaves files behind
    copy, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked_files():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


def tracked_files(*folders):
    done = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("needs a checkout of git")
    return done.stdout.splitlines()


@pytest.mark.slow
def test_wheel_holds_every_file_of_the_package(built):
    [wheel] = built.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    tracked = [name for name in tracked_files("md_trl") if name != "md_trl/hub_cards"]  # a link, see `DATA`
    assert {*tracked, *DATA} <= packed
    assert all(name.startswith(("md_trl/", "md_trl-")) for name in packed)


@pytest.mark.slow
def test_source_distribution_builds_the_same_wheel(built, tmp_path):
    """`python -m build` makes the wheel from the source distribution, so this is what it did above."""
    [archive] = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    assert {"README.md", "LICENSE", "pyproject.toml", *DATA} <= names


@pytest.mark.slow
def test_wheel_works_without_anything_else(built, tmp_path):
    """The parts that promise to be light need no dependency: the package, the verbs' list, answers, votes, mixing."""
    [wheel] = built.glob("*.whl")
    options = {"cwd": tmp_path, "env": ENVIRONMENT, "capture_output": True, "text": True}
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = ["install", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], **options)
    assert done.returncode == 0, done.stderr
    code = (
        "import md_trl, md_trl.mixing, md_trl.prompts, md_trl.stopping, md_trl.voting, md_trl.answers\n"
        "from importlib.resources import files\n"
        f"assert all((files('md_trl') / name.split('/', 1)[1]).is_file() for name in {DATA!r})\n"
        "print(md_trl.__version__, md_trl.voting.vote(['632', '532'], ['532']), md_trl.__file__)"
    )
    done = subprocess.run([python, "-c", code], **options)
    assert done.returncode == 0, done.stderr
    version, answer, file = done.stdout.split()
    assert answer == "532" and Path(file).is_relative_to(tmp_path)
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text()
    usage = subprocess.run([python.parent / "md-trl", "--help"], **options)
    assert usage.returncode == 0 and "usage: md-trl" in usage.stdout


def test_versions_agree():
    """The version is written in three places."""
    version = re.search(r'^__version__ = "(.+)"', (ROOT / "md_trl/__init__.py").read_text(), re.MULTILINE)[1]
    assert f'\nversion = "{version}"\n' in (ROOT / "pyproject.toml").read_text()
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_paper_is_cited_in_one_way():
    files = [ROOT / "README.md", *(ROOT / "hub_cards").glob("*/README.md"), ROOT / "hub_cards/md_vote/md_vote.py"]
    found = [re.search(r"^@.*?^}", file.read_text(), re.MULTILINE | re.DOTALL) for file in files]
    assert len(files) == 5 and len({" ".join(entry[0].split()) for entry in found}) == 1


# Imported, but no dependency: modules that the jail loads beside itself, or preloads if they are there; anyio comes
# with Inspect and FastAPI with Gradio; lighteval needs an environment of its own
UNDECLARED = {"anyio", "fastapi", "json_values", "lighteval", "mpmath", "seccomp", "sympy"}


def test_every_import_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    declared = {re.match(r"[\w-]+", requirement)[0].replace("-", "_").lower() for requirement in requirements}
    names = {"yaml": "pyyaml"}  # where a module is not called like its distribution
    imported = set()
    for file in (ROOT / "md_trl").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.split(".")[0])
    imported = {names.get(name, name) for name in imported - set(sys.stdlib_module_names) - {"md_trl"}}
    assert imported - declared == UNDECLARED
