"""The Space of md_vote, in a browser: Debian's Chromium, without any other server than the Space itself."""

import csv
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from md_trl.evaluation import EvaluationResult, QuestionResult
from md_trl.voting import score


playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, see the extra `dev`")
pytest.importorskip("gradio", reason="needs gradio, see the extra `dev`")

ROOT = Path(__file__).parents[1]
CARD = ROOT / "hub_cards" / "md_vote"
CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(
    not CHROMIUM.exists(), reason=f"needs {CHROMIUM} (apt-get install chromium, see .ci/run)"
)

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
ROW = "[role=row][data-index]"
QUESTIONS = {
    "cot": [["5", "6"], ["$1,080", "1080", ""], ["yes"], [], ["8", "9"]],
    "pot": [["5.0"], ["108", "108"], [], ["12", "12"], ["9"]],
    "references": ["5", "1080", "no", "12", "9"],
}
ROWS = [dict(zip(QUESTIONS, question, strict=True)) for question in zip(*QUESTIONS.values(), strict=True)]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("space")
    environment = os.environ | {
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
        "HF_HOME": str(folder / "home"),
    }
    log = folder / "log"
    with log.open("w") as output:
        app = subprocess.Popen(
            [sys.executable, "app.py"], cwd=CARD, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            assert app.poll() is None, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(address, timeout=20).read()
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        yield address
    finally:
        app.kill()
        app.wait()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, url):
    page = browser.new_page(viewport={"width": 1280, "height": 1100})
    elsewhere = []

    def local_only(route):
        if route.request.url.startswith((url, "data:", "blob:")):
            route.continue_()
        else:
            elsewhere.append(route.request.url)
            route.abort()

    page.route("**/*", local_only)
    page.goto(url)
    playwright.expect(page.locator("#questions")).to_contain_text("Joint vote")
    yield page
    page.close()
    assert elsewhere == []


@pytest.fixture(scope="module")
def app():
    spec = importlib.util.spec_from_file_location("md_vote_app", CARD / "app.py")
    app = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)  # The folder is what the Space gets
        spec.loader.exec_module(app)
    return app


def upload(page, path):
    page.get_by_role("tab", name="Upload a file").click()
    if page.get_by_label("Clear").is_visible():
        page.get_by_label("Clear").click()
    page.locator("#upload input[type=file]").set_input_files(path)


def cells(page, name):
    """The rows of a table as they can be read on the page."""
    rows = page.locator(f"#{name} {ROW}").all()
    return [[cell.inner_text().strip() for cell in row.get_by_role("gridcell").all()] for row in rows]


def expect_accuracies(page, scores):
    figures = page.locator("#figures")
    for label, name in (("Joint vote", "accuracy"), ("CoT vote", "cot_accuracy"), ("PoT vote", "pot_accuracy")):
        row = figures.locator(ROW, has_text=label)
        playwright.expect(row).to_contain_text(f"{scores[name]:.1%}")
        playwright.expect(row).to_contain_text(f"{scores[f'{name}_low']:.1%} to {scores[f'{name}_high']:.1%}")


def write(path, questions):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(question) + "\n\n" for question in questions))
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            rows = csv.DictWriter(file, ["id", "cot", "pot", "references"], restval="q")
            rows.writeheader()
            for i, row in enumerate(questions):
                lists = {key: json.dumps(row[key]) if i % 2 else " | ".join(row[key]) for key in ("cot", "pot")}
                rows.writerow(row | lists)
    else:
        answered = [
            QuestionResult(f"q{i}", q["references"], *([a or None for a in q[p] or [""]] for p in ("cot", "pot")))
            for i, q in enumerate(questions)
        ]
        result = EvaluationResult("student", "m", "svamp", "test", {}, answered)
        path.write_text(json.dumps(result.to_dict()))
    return path


def test_the_example_is_scored_when_the_page_opens(page, tmp_path):
    page.screenshot(path=tmp_path / "example.png", full_page=True)
    assert (tmp_path / "example.png").stat().st_size > 20_000
    assert cells(page, "figures")[0][:2] == ["Joint vote", "83.3%"]
    rows = cells(page, "questions")
    assert rows[1] == ["2", "1080", "108", "1080", "1080", "right", "2 CoT, 2 PoT"]
    assert rows[4] == ["5", "–", "12", "12", "12", "right", "0 CoT, 2 PoT"]
    assert rows[5][3:6] == ["8", "9", "wrong"]


def test_an_uploaded_file_is_scored(page, tmp_path):
    upload(page, write(tmp_path / "answers.jsonl", ROWS))
    expect_accuracies(page, score(**QUESTIONS, bootstrap=10_000))
    playwright.expect(page.locator(f"#questions {ROW}")).to_have_count(5)
    assert cells(page, "questions")[1][1:6] == ["1080", "108", "1080", "1080", "right"]
    page.screenshot(path=tmp_path / "uploaded.png", full_page=True)
    assert page.locator("#message").count() == 0 or not page.locator("#message").is_visible()


def test_pasted_answers_are_scored(page):
    page.locator("#cot textarea").fill("1 | 1\n2")
    page.locator("#pot textarea").fill("\n3 | 3")
    page.locator("#references textarea").fill("1\n2\n")
    page.locator("#score").click()
    playwright.expect(page.locator(f"#questions {ROW}")).to_have_count(2)
    expect_accuracies(page, score([["1", "1"], ["2"]], [[], ["3", "3"]], ["1", "2"], bootstrap=10_000))


def test_a_malformed_file_is_explained(page, tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n[")
    upload(page, path)
    playwright.expect(page.locator("#message textarea")).to_have_value(re.compile("^Line 2 is not valid JSON"))
    playwright.expect(page.locator(f"#figures {ROW}")).to_have_count(0)
    page.screenshot(path=tmp_path / "malformed.png", full_page=True)
    # The next answers are scored as if nothing had happened
    page.get_by_role("tab", name="Paste answers").click()
    page.locator("#score").click()
    playwright.expect(page.locator("#figures")).to_contain_text("83.3%")
    playwright.expect(page.locator("#message")).to_have_count(0)


def test_texts_of_models_are_shown_as_they_are(page, tmp_path):
    text = '<img src="x" onerror="document.title=\'changed\'"> **bold** [link](http://evil.example)'
    rows = [{"cot": [text], "pot": [text], "references": text}]
    upload(page, write(tmp_path / "answers.jsonl", rows))
    playwright.expect(page.locator(f"#questions {ROW}")).to_have_count(1)
    playwright.expect(page.locator(f"#questions {ROW}")).to_contain_text(text)
    assert page.locator("#questions img, #questions strong, #questions a").count() == 0
    upload(page, write(tmp_path / "wrong.jsonl", [{"cot": text, "pot": [], "references": ""}]))
    playwright.expect(page.locator("#message textarea")).to_have_value(re.compile("<img src"))
    assert page.locator("#message img").count() == 0 and page.title() == "md_vote"


class TestFilesAndLines:
    """What the page shows below its inputs, without the page."""

    @pytest.mark.parametrize("ending", [".jsonl", ".csv", ".json"])
    def test_the_formats_of_files(self, app, tmp_path, ending):
        message, figures, shares, rows = app.show_file(str(write(tmp_path / f"answers{ending}", ROWS)))
        scores = score(**QUESTIONS)
        assert not message["visible"]
        names = ("accuracy", "cot_accuracy", "pot_accuracy")
        assert [row[1] for row in figures] == [f"{scores[name]:.1%}" for name in names]
        assert shares[-1] == ["Mean votes per question", f"{scores['mean_votes']:.1f}"]
        assert rows[1] == ["2", "1080", "108", "1080", "1080", "right", "2 CoT, 2 PoT"]

    @pytest.mark.parametrize(
        ("name", "content", "error"),
        [
            ("a.jsonl", '{"cot": [], "pot": [], "references": "5"}\n{"cot": [', "Line 2 is not valid JSON: Expecting"),
            ("a.jsonl", '\n{"cot": ["5"], "references": "5"}', "Line 2 has no 'pot'. It has 'cot', 'references'"),
            ("a.jsonl", '{"cot": "5", "pot": [], "references": "5"}', "Line 1: cot is '5', but must be a list"),
            ("a.jsonl", '{"cot": [{}], "pot": [], "references": "5"}', "Line 1: cot[0] is {} of the type dict"),
            ("a.jsonl", "[1]", "Line 1 is not an object with cot, pot and references"),
            ("a.jsonl", "", "There is no question to score"),
            ("a.jsonl", f'{{"cot": [{"9" * 5000}]}}', "Line 1 cannot be read: Exceeds the limit"),
            ("a.jsonl", f'{{"cot": {"[" * 5000}', "recursion" if sys.version_info < (3, 12) else "is not valid JSON"),
            ("a.jsonl", b"\xff\xfe", "a.jsonl is not a text in UTF-8"),
            ("a.csv", "cot,pot,references\n5,5,5\n5,5\n", "Line 3 does not have the 3 cells that the header names"),
            ("a.csv", "cot,pot,references\n5,5,5,5\n", "Line 2 does not have the 3 cells that the header names"),
            ("a.csv", 'cot,pot,references\n"[5",5,5\n', "Line 2 is not valid JSON"),
            ("a.csv", 'cot,pot,references\n"5" 6,5,5\n', "Line 2 is not valid CSV"),
            ("a.csv", "cot,references\n5,5\n", "Line 2 has no 'pot'"),
            ("a.json", '{"figures": {}}', "a.json is no result of `md-trl eval`"),
            ("a.json", '{\n"questions":', "a.json is not valid JSON: Expecting value (line 2, column 13)"),
            ("a.json", '{"questions": [{"id": "q", "cot": [], "pot": []}]}', "questions[0] has no 'answer'"),
            ("a.txt", "5", "a.txt has the ending '.txt'. Upload a .jsonl, .csv or .json file"),
        ],
    )
    def test_malformed_files(self, app, tmp_path, name, content, error):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        message, *tables = app.show_file(str(path))
        assert message["visible"] and error in message["value"]
        assert tables == [[], [], []]

    @pytest.mark.parametrize(
        ("cot", "pot", "references", "error"),
        [
            ("1\n2\n3", "", "1\n\n3", "Line 2 has no gold answer"),
            ("1\n2", "", "1", "Line 2 has no gold answer"),
            ("1", "[2", "1", "Line 1 is not valid JSON"),
            ("", " \n", "", "There is no question to score"),
        ],
    )
    def test_malformed_lines(self, app, cot, pot, references, error):
        message, *tables = app.show_lines(cot, pot, references)
        assert message["visible"] and error in message["value"]
        assert tables == [[], [], []]

    def test_a_long_table_is_cut_and_says_so(self, app):
        message, figures, _, rows = app.show_lines("1\n" * 1001, "", "1\n" * 1000 + "2")
        assert message["visible"] and "first 1,000 questions" in message["value"]
        assert len(rows) == 1000 and figures[0][1] == "99.9%"


def test_the_space_pins_the_gradio_that_was_tested():
    front = (CARD / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    version = re.search(r"^sdk_version: (\S+)$", front, re.MULTILINE)[1]
    assert f"gradio=={version}\n" in (ROOT / "constraints.txt").read_text()
