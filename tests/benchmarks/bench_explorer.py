"""The explorer on many thoughts: how long it takes to read them, and to show and filter the first page.

A dataset of `--questions` questions with 20 CoT and 20 PoT thoughts each is written; 7,500 questions are 300,000
thoughts. Then `md-trl explore` opens it in a process of its own. Server figures are the medians of `--repeats`
requests, or of calls of a query. Browser figures are medians, too: from the start of the navigation until the first
row is on the page, and from a click until its effect is. Without Chromium and Playwright, they are left out. Writes
outputs/bench/explorer.json.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pyarrow
from bench_mixing import THOUGHTS, thought
from pyarrow.parquet import ParquetWriter

from md_trl.explorer import queries
from md_trl.explorer.queries import Filters
from md_trl.explorer.sources import read_sources
from md_trl.mixing import mix
from md_trl.records import PATHS, MixedRow, Question, Thought


CHROMIUM = Path("/usr/bin/chromium")
GROUP = 1250  # questions in a row group, as `md-trl mix` writes 40 thoughts each


def write_dataset(folder: Path, count: int) -> None:
    (folder / "svamp").mkdir(parents=True)
    rng, schema = random.Random(0), MixedRow.features().arrow_schema
    with ParquetWriter(folder / "svamp" / "train-00000-of-00001.parquet", schema) as writer:
        for start in range(0, count, GROUP):
            questions, thoughts = [], []
            for i in range(start, min(start + GROUP, count)):
                gold = i + i % 97 - 5
                text = f"A farmer has {i} hens and buys {i % 97} more. A fox takes 5 of them. How many are left?"
                questions.append(Question(f"svamp/train/{i}", "svamp", "train", text, str(gold)))
                for path in PATHS:
                    for j in range(THOUGHTS):
                        answer = gold + rng.choice((0, 0, 1))
                        written = Thought(f"svamp/train/{i}", path, j, thought(rng, path, i), answer=str(answer))
                        thoughts.append(Thought(**vars(written) | {"correct": answer == gold}))
            rows = [row.to_dict() for row in mix(questions, thoughts)]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))


def median(repeats: int, call) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure_queries(dataset: Path, folder: Path, repeats: int) -> dict:
    start = time.perf_counter()
    catalog = read_sources(folder, [dataset])
    figures = {"read_seconds": time.perf_counter() - start}
    middle = queries.count(catalog, Filters()) // 2
    last = middle * 2 // queries.PAGE_SIZE
    calls = {
        "first_page": lambda: queries.page(catalog, Filters()),
        "last_page": lambda: queries.page(catalog, Filters(), last),
        "search": lambda: queries.page(catalog, Filters(text="has 4321 hens")),
        "sorted_page": lambda: queries.page(catalog, Filters(sort="hard")),
        "histogram": lambda: queries.histogram(catalog, Filters(), "cot_chars"),
        "thoughts": lambda: catalog.read_thoughts(middle),
    }
    return figures | {f"{name}_seconds": median(repeats, call) for name, call in calls.items()}


def measure_browser(url: str, repeats: int) -> dict:
    from playwright.sync_api import expect, sync_playwright

    loads, opens, filters = [], [], []
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        for _ in range(repeats):
            context = browser.new_context(viewport={"width": 1400, "height": 900})  # nothing is cached
            page = context.new_page()
            start = time.perf_counter()
            page.goto(url, wait_until="commit")
            page.wait_for_selector(".mx-row")
            loads.append(time.perf_counter() - start)
            start = time.perf_counter()
            page.locator(".mx-row").nth(4).click()
            expect(page.locator("#opened header")).to_contain_text("has 4 hens")
            opens.append(time.perf_counter() - start)
            start = time.perf_counter()
            page.get_by_label("Search questions").fill("has 4321 hens")
            expect(page.locator(".mx-row")).to_have_count(1)
            filters.append(time.perf_counter() - start)
            context.close()
        browser.close()
    named = {"first_page": loads, "open_question": opens, "search": filters}
    return {f"{name}_seconds": statistics.median(seconds) for name, seconds in named.items()}


def run(arguments: argparse.Namespace, folder: Path) -> dict:
    dataset, own = folder / "mixed", folder / "own"
    own.mkdir()
    write_dataset(dataset, arguments.questions)
    figures = {
        "questions": arguments.questions,
        "thoughts": 2 * THOUGHTS * arguments.questions,
        "dataset_mb": sum(file.stat().st_size for file in dataset.rglob("*.parquet")) / 1e6,
        "queries": measure_queries(dataset, own, arguments.repeats),
        "catalog_mb": (own / "catalog.db").stat().st_size / 1e6,
    }
    command = [sys.executable, "-m", "md_trl", "explore", "--dataset", str(dataset), "--port", "0"]
    start = time.perf_counter()
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = server.stdout.readline().split()[0]
        figures["start_seconds"] = time.perf_counter() - start
        figures["server_first_page_seconds"] = median(
            arguments.repeats, lambda: urllib.request.urlopen(f"{url}/").read()
        )
        if CHROMIUM.exists():
            figures["browser"] = measure_browser(url, arguments.repeats)
        status = Path(f"/proc/{server.pid}/status").read_text()
        figures["server_peak_mb"] = int(status.split("VmHWM:")[1].split()[0]) / 1024
    finally:
        server.terminate()
        server.wait()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=7_500)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", default="outputs/bench/explorer.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = run(arguments, Path(folder))
    output = Path(arguments.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(figures, indent=2) + "\n")
    print(output.read_text())


if __name__ == "__main__":
    main()
