"""The sampler, with store and ledger, against the bare `AsyncOpenAI` client in a loop, on the same loopback server.

Both send 5,000 requests, 64 at a time, in alternating runs of 1,000, and the medians are compared. Then 100,000
thoughts are sampled into one store, which must not increase memory. Writes outputs/bench/sampling.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import openai
import psutil

from md_trl.records import Question
from md_trl.sampling import sample
from md_trl.sampling.engines.openai import OpenAIEngine
from md_trl.store import Store


CONCURRENCY = 64
SERVER = Path(__file__).parents[1] / "servers" / "openai_server.py"


def make_questions(count: int) -> list[Question]:
    text = "A farmer has {} hens and buys 12 more. A fox takes 5 of them. How many hens has the farmer now?"
    return [Question(f"svamp/train/{i}", "svamp", "train", text.format(i), str(i + 7)) for i in range(count)]


def prompt(question: Question, path: str) -> list[dict]:
    return [{"role": "user", "content": f"{question.question}\n{path}"}]


def clock() -> tuple[float, float]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter(), usage.ru_utime + usage.ru_stime


async def bare(url: str, questions: list[Question]) -> list[str]:
    client = openai.AsyncOpenAI(api_key="none", base_url=url)
    turns = asyncio.Semaphore(CONCURRENCY)

    async def ask(question: Question) -> str:
        async with turns:
            answer = await client.chat.completions.create(
                model="m", messages=prompt(question, "cot"), n=1, temperature=0.7, top_p=1.0, max_tokens=512, seed=1
            )
            return answer.choices[0].message.content

    texts = await asyncio.gather(*(ask(question) for question in questions))
    await client.close()
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--thoughts", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("outputs/bench/sampling.json"))
    args = parser.parse_args()
    server = subprocess.Popen([sys.executable, str(SERVER), "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        url = server.stdout.readline().strip()
        figures = compare(url, args.requests, args.turns) | memory(url, args.thoughts)
    finally:
        server.kill()
        server.wait()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"Wrote {args.output}.")


def compare(url: str, total: int, turns: int) -> dict:
    count = total // turns
    questions = make_questions(count)
    seconds: dict[str, list[float]] = {"bare": [], "md_trl": []}
    cpu: dict[str, list[float]] = {"bare": [], "md_trl": []}
    for _ in range(turns):
        for name in seconds:
            with tempfile.TemporaryDirectory() as folder, Store(f"{folder}/t.db") as store:
                wall, own = clock()
                if name == "bare":
                    done = len(asyncio.run(bare(url, questions)))
                else:
                    engine = OpenAIEngine("m", url, concurrency=CONCURRENCY)
                    done = sample(questions, ["cot"], 1, engine, store, prompt, progress=False).thoughts
                end, own_end = clock()
                assert done == count
            seconds[name].append(end - wall)
            cpu[name].append(own_end - own)
            print(f"{name}: {count / (end - wall):.0f} requests/s, {1e3 * (own_end - own) / count:.2f} ms CPU each")
    rate = {name: count / statistics.median(values) for name, values in seconds.items()}
    cost = {name: 1e3 * statistics.median(values) / count for name, values in cpu.items()}
    print(
        f"md_trl / bare: {rate['md_trl'] / rate['bare']:.2f} of the rate, "
        f"{cost['md_trl'] / cost['bare']:.2f} of the CPU"
    )
    return {
        "peer": f"AsyncOpenAI {openai.__version__} in a loop",
        "requests": total,
        "concurrency": CONCURRENCY,
        "requests_per_second": rate,
        "cpu_ms_per_request": cost,
        "ratio": rate["md_trl"] / rate["bare"],
        "cpu_ratio": cost["md_trl"] / cost["bare"],
        "load_average": os.getloadavg()[0],
    }


def memory(url: str, thoughts: int) -> dict:
    """Resident memory after each fifth of the thoughts, 20 a request."""
    process = psutil.Process()
    questions = make_questions(thoughts // 20)
    engine = OpenAIEngine("m", url, concurrency=CONCURRENCY)
    resident = []
    every = len(questions) // 5

    class Watched:
        model = engine.model

        @staticmethod
        def generate(requests):
            for number, result in enumerate(engine.generate(requests), start=1):
                yield result
                if number % every == 0:
                    resident.append(process.memory_info().rss / 1e6)

    with tempfile.TemporaryDirectory() as folder, Store(f"{folder}/t.db") as store:
        start = time.perf_counter()
        assert sample(questions, ["cot"], 20, Watched, store, prompt, progress=False).thoughts == thoughts // 20 * 20
        seconds = time.perf_counter() - start
    growth = resident[-1] - resident[0]
    print(f"{thoughts:,} thoughts in {seconds:.0f} s; MB after each fifth: {', '.join(f'{r:.1f}' for r in resident)}")
    return {"thoughts": thoughts, "resident_mb": resident, "growth_mb_from_first_to_last_fifth": growth}


if __name__ == "__main__":
    main()
