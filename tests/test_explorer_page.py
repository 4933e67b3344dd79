"""The explorer's page in a browser, started from the command line: Debian's Chromium, without any other server."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from md_trl.store import Store


playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, see the extra `dev`")
pytest.importorskip("gradio", reason="needs gradio, see the extra `explore`")

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs {CHROMIUM} (apt-get install chromium)")

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()

HOSTILE = (
    "<script>document.title='changed'</script><img src=x onerror=\"document.title='changed'\">"
    "<svg onload=\"document.title='changed'\"></svg> [link](javascript:alert(1)) **bold** "
    "![](http://evil.example/i.png) <style>body{display:none}</style> ${document.title='changed'} "
    "{{#each}} {{value}} ` \x1b[31mred\x1b[0m <a href='http://evil.example'>a</a> </pre></div></article>"
)
MODEL = HOSTILE.replace("/", "|")
QUESTIONS = 60


def thoughts():
    """A teacher on 60 questions: each third one is wrong in prose, each fourth one as a program. A student on 30."""
    for i in range(QUESTIONS):
        question, gold = f"Ann has {i} apples and buys {i} more. How many has she now?", str(2 * i)
        for model, error in (("teacher", 0), ("student", i % 5 == 0)):
            if model == "student" and i >= 30:
                continue
            texts = {
                "cot": [f"{i} + {i} = {2 * i}. The answer is {2 * i + error + (i % 3 == 0)}."] * 2,
                "pot": [f"# apples\nanswer = {i} + {i} + {error + (i % 4 == 0)}", "answer = apples"],
            }
            for path, written in texts.items():
                for text in written:
                    yield {"question": question, "gold": gold, "path": path, "text": text, "model": model}
    for text in (HOSTILE, f"{HOSTILE} The answer is <b>7</b>."):
        yield {"question": f"Hostile? {HOSTILE}", "gold": HOSTILE, "path": "cot", "text": text, "model": MODEL}
    for text in (f"'''{HOSTILE}'''", f"return {HOSTILE!r}"):
        yield {"question": f"Hostile? {HOSTILE}", "gold": HOSTILE, "path": "pot", "text": text, "model": MODEL}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explorer")
    lines = folder / "thoughts.jsonl"
    lines.write_text("".join(json.dumps({"task": "own"} | row) + "\n" for row in thoughts()))
    with Store(folder / "thoughts.db") as store:
        store.import_thoughts(lines, "own")
    (folder / "tmp").mkdir()
    environment = os.environ | {"HF_HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
    command = [sys.executable, "-m", "md_trl", "explore", "--store", str(folder / "thoughts.db"), "--port", "0"]
    log = folder / "log"
    with log.open("w") as errors:
        server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        ready = server.stdout.readline()
        assert ready, log.read_text()[-3000:]
        yield ready.split()[0]
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()
        server.stdout.close()
    assert server.returncode == 0, log.read_text()[-3000:]
    assert "Traceback" not in log.read_text()
    assert not list((folder / "tmp").glob("md-trl*"))


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, url):
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    elsewhere, errors = [], []

    def local_only(route):
        if route.request.url.startswith((url, "data:", "blob:")):
            route.continue_()
        else:
            elsewhere.append(route.request.url)
            route.abort()

    page.route("**/*", local_only)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: errors.append(dialog.message))
    page.goto(url)
    playwright.expect(page.locator(".mx-row")).to_have_count(25)
    yield page
    assert page.title() == "md-trl explore"
    page.close()
    assert elsewhere == [] and errors == []


def choose(page, label, option):
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()


def found(page, count):
    playwright.expect(page.locator("#listing .mx-found b")).to_have_text(re.compile(rf"^{count} questions?$"))


def test_the_first_page_explains_itself(page, tmp_path):
    found(page, QUESTIONS)
    opened = page.locator("#opened")
    playwright.expect(opened).to_contain_text("Ann has 0 apples")
    for text in ("Chain of thought (prose)", "Program of thought (Python)", "gold answer", "neither path solves it"):
        playwright.expect(opened.get_by_text(text).first).to_be_visible()
    playwright.expect(opened).to_contain_text("CoT votes 1 (2 of 2); no thought reaches the gold answer 0.")
    assert opened.locator(".mx-comment").first.inner_text() == "# apples"
    page.screenshot(path=tmp_path / "first.png")
    assert (tmp_path / "first.png").stat().st_size > 50_000


def test_filters_pages_and_questions(page):
    page.get_by_label("1 PoT only").check()
    only_pot = sum(i % 3 == 0 and i % 4 != 0 for i in range(QUESTIONS))
    found(page, only_pot)
    page.get_by_label("2 CoT only").check()
    found(page, only_pot + sum(i % 4 == 0 and i % 3 != 0 for i in range(QUESTIONS)))
    page.get_by_label("1 PoT only").uncheck()
    page.get_by_label("2 CoT only").uncheck()
    found(page, QUESTIONS)
    page.get_by_label("next page").click()
    playwright.expect(page.locator("#listing")).to_contain_text("page 2 of 3")
    playwright.expect(page.locator(".mx-row").first).to_contain_text("Ann has 25 apples")
    page.locator(".mx-row").nth(3).click()
    playwright.expect(page.locator("#opened header")).to_contain_text("Ann has 28 apples")
    playwright.expect(page.locator(".mx-row").nth(3)).to_have_attribute("aria-current", "true")
    page.keyboard.press("ArrowDown")
    playwright.expect(page.locator("#opened header")).to_contain_text("Ann has 29 apples")
    page.get_by_label("Search questions").fill("HAS 59 APPLES")
    found(page, 1)
    playwright.expect(page.locator("#opened header")).to_contain_text("Ann has 59 apples")


def test_a_student_is_compared_with_its_teacher(page):
    choose(page, "Compare with", "student")
    found(page, 30)
    choose(page, "and show where", "only the first is right")
    wanted = [i for i in range(30) if i % 5 == 0 and i % 3 != 0]
    found(page, len(wanted))
    playwright.expect(page.locator("#opened header")).to_contain_text(f"Ann has {wanted[0]} apples")
    playwright.expect(page.locator("#opened .mx-author h3")).to_have_text(["teacher", "student"])
    # The menu that was used last loses the focus now
    page.locator(".mx-row").nth(2).click()
    playwright.expect(page.locator("#opened header")).to_contain_text(f"Ann has {wanted[2]} apples")
    page.wait_for_timeout(500)
    playwright.expect(page.locator("#opened header")).to_contain_text(f"Ann has {wanted[2]} apples")


def test_models_without_a_common_question_are_named(page):
    page.get_by_label("Compare with", exact=True).click()
    assert "teacher" not in page.get_by_role("option").all_inner_texts()
    page.get_by_role("option").nth(2).click()
    found(page, 0)
    reason = page.locator("#listing .mx-empty")
    playwright.expect(reason).to_contain_text("These two answered no question in common: teacher answered own/train")
    assert MODEL.replace("\x1b", "␛") in reason.inner_text()
    # The chosen model is no longer offered, even if it was chosen for the comparison
    choose(page, "Compare with", "student")
    found(page, 30)
    choose(page, "Model", "student")
    playwright.expect(page.get_by_label("Compare with", exact=True)).to_have_value("nobody")
    found(page, 30)
    choose(page, "Compare with", "teacher")
    found(page, 30)
    playwright.expect(page.locator("#opened .mx-author h3")).to_have_text(["student", "teacher"])
    page.get_by_label("4 neither").check()
    choose(page, "Votes of the paths", "no path has a vote")
    playwright.expect(reason).to_have_text("No question matches these filters.")


@pytest.mark.parametrize("width", [920, 1400])
def test_the_head_of_the_list_does_not_wrap_and_thoughts_have_no_scrollbar(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    heights = "parts => parts.map((part) => part.getBoundingClientRect().height)"
    for height in page.locator("#listing .mx-found b, #listing .mx-turns .mx-small").evaluate_all(heights):
        assert height < 30
    overflow = "texts => texts.map((text) => getComputedStyle(text).overflowY)"
    assert set(page.locator("#opened pre").evaluate_all(overflow)) == {"visible"}


def test_the_export_follows_the_filters(page, url):
    page.get_by_label("3 both").check()
    found(page, sum(i % 3 != 0 and i % 4 != 0 for i in range(QUESTIONS)))
    with page.expect_download() as download:
        page.get_by_text("Export as JSONL").click()
    rows = [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]
    assert len(rows) == 30 and {row["type"] for row in rows} == {3}
    assert rows[0]["pot"][0]["text"] == "# apples\nanswer = 1 + 1 + 0" and rows[0]["pot_unusable"][0]["count"] == 1


def test_distributions_follow_the_filters(page, tmp_path):
    page.get_by_role("tab", name="Distributions").click()
    figures = page.locator("#figures")
    playwright.expect(figures.locator("figure")).to_have_count(5)
    playwright.expect(figures).to_contain_text("30 (50.0%)")
    page.get_by_label("4 neither").check()
    playwright.expect(figures).to_contain_text("5 (100.0%)")
    page.screenshot(path=tmp_path / "distributions.png")


def test_texts_of_models_are_shown_as_they_are(page, tmp_path):
    elements = "#listing, #opened"
    page.get_by_label("Model", exact=True).click()
    page.get_by_role("option").nth(2).click()
    found(page, 1)
    opened = page.locator("#opened")
    playwright.expect(opened.locator("h3")).to_contain_text("<script>document.title='changed'<|script><img src=x")
    for text in (HOSTILE.replace("\x1b", "␛"), "{{#each}} {{value}} `", "␛[31mred␛[0m", "**bold**"):
        for place in ("header", ".mx-cot pre", ".mx-pot pre"):
            assert text in opened.locator(place).last.inner_text(), (place, text)
    for tag in ("script", "img", "svg", "style", "a[href*=evil]", "a[href*=javascript]", "strong"):
        assert page.locator(elements).locator(tag).count() == 0, tag
    assert opened.locator("pre").count() == 4
    page.screenshot(path=tmp_path / "hostile.png", full_page=True)
    assert page.title() == "md-trl explore"
    # The page goes on working
    choose(page, "Model", "teacher")
    found(page, QUESTIONS)


def test_only_this_machine_is_answered(url):
    with urllib.request.urlopen(f"{url}/export.jsonl") as answer:
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        assert sum(1 for _ in answer) == QUESTIONS + 30 + 1
    for path, host, status in (
        ("/", "evil.example", 403),
        ('/export.jsonl?filters={"sort":1}', None, 400),
        (f"/gradio_api/file={Path(__file__).resolve()}", None, 403),
    ):
        request = urllib.request.Request(f"{url}{path}", headers={"Host": host} if host else {})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        assert refused.value.code == status
    port = int(url.rsplit(":", 1)[1])
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    addresses = [
        line[1].split(":")[0] for line in listening if line[3] == "0A" and int(line[1].split(":")[1], 16) == port
    ]
    assert addresses == ["0100007F"]
