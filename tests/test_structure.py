"""The structure that README and CONTRIBUTING promise: imports run one way, and everything is small enough to read."""

import ast
from pathlib import Path

import pytest


PACKAGE = Path(__file__).parents[1] / "md_trl"
FILES = sorted(file for file in PACKAGE.rglob("*.py") if "hub_cards" not in file.parts)

# Each module imports only from those before it. The two packages of the command line and of the top level come last.
ORDER = (
    "errors nearby progress terminal openai_requests intervals records student_folder answers voting posterior "
    "stopping tasks prompts execution distinct judging few_shot mixing environment weighting store sampling adaptive "
    "contamination mixed_rows thought_source flat_twin dataset_picture dataset_card dataset_folder dataset "
    "training_rows secret_search hub_repo hub trainer evaluation comparison show show_text student_evaluation "
    "launched_evaluation validation replay vote_settings curves training_runs student_tables paper_tables plots "
    "training_curves stopping_report rounds_figure report student_results reasoner refine server simulated_teacher "
    "metric harnesses explorer cli __main__ __init__"
).split()

# Tables of data, which may be as long as they are
DATA = {"tasks/stories/kinds.py"}


def name_of(file):
    return file.relative_to(PACKAGE).with_suffix("").as_posix()


def top(file):
    """The room of a file: the first folder below the package, or the file itself."""
    return name_of(file).split("/")[0]


def imported_modules(file):
    """Modules of the package that a file imports, anywhere in it, as paths below the package."""
    package = name_of(file).split("/")[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        base = package[: len(package) - node.level + 1]
        base += (node.module or "").split(".") if node.module else []
        for alias in node.names:
            candidate = PACKAGE.joinpath(*base, alias.name)
            found = (
                candidate if candidate.with_suffix(".py").exists() or candidate.is_dir() else PACKAGE.joinpath(*base)
            )
            yield found.relative_to(PACKAGE).as_posix()


def test_every_room_has_its_place():
    assert {top(file) for file in FILES} == set(ORDER)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_run_one_way(file):
    room = top(file)
    if room == "__init__":
        return
    allowed = set(ORDER[: ORDER.index(room) + 1]) | {"", "."}
    assert {module.split("/")[0] for module in imported_modules(file)} <= allowed


def test_imports_have_no_circle():
    graph = {
        name_of(file).removesuffix("/__init__"): set(imported_modules(file))
        for file in FILES
        if name_of(file) != "__init__"
    }
    visited, active = set(), []

    def visit(module):
        assert module not in active, " -> ".join([*active[active.index(module) :], module])
        if module in visited or module not in graph:
            return
        active.append(module)
        for needed in graph[module]:
            if needed != module:
                visit(needed)
        active.pop()
        visited.add(module)

    for module in graph:
        visit(module)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_sizes(file):
    text = file.read_text()
    is_data = file.relative_to(PACKAGE).as_posix() in DATA
    assert is_data or text.count("\n") <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            assert sum(isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) for n in node.body) <= 20, node.name
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            lines = node.end_lineno - node.lineno + 1 - (docstring.count("\n") + 1 if docstring else 0)
            assert lines <= 70, node.name


def test_sampling_parameters_are_carried_as_one():
    """They are named where they are defined, on the command line, and where an engine or a server translates them."""
    names = {"temperature", "top_p", "max_tokens"}
    found = set()
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            used = [getattr(node, field, None) for field in ("id", "attr", "arg", "value")]
            if any(isinstance(name, str) and name in names for name in used):
                found.add(name_of(file))
    translating = ("sampling/engines/", "simulated_teacher", "server/", "harnesses/")
    translated = {name for name in found if name.startswith(translating)}
    # `MixedReasoner` takes two of them as its own arguments, `md-trl train` hands two on to the evaluation
    on_the_command_line = {f"cli/{verb}" for verb in ("sample", "eval", "refine", "serve", "train")}
    assert found - translated == on_the_command_line | {"records", "reasoner"}
