"""The engine `transformers` against plain `generate`, for SmolLM2-135M and the student of the quickstart.

Ten samples per prompt, with the same prompts, temperature and `max_tokens`. The peer is called in its two plain ways:
once per prompt with `num_return_sequences=10`, and once per sample. The runs alternate, and the medians are compared.
Writes outputs/bench/transformers_engine.json.

With `--against CHECKOUT`, it compares this checkout with another one instead, such as that of an earlier commit, on
samples of mixed lengths: CoT and PoT, each ending where the model ends it, at an empty line, or at `max_tokens`. Each
run is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path


os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
import transformers  # noqa: E402

from md_trl.prompts import encode, student_prompt  # noqa: E402
from md_trl.sampling.engines import SampleRequest  # noqa: E402
from md_trl.sampling.engines.transformers import TransformersEngine  # noqa: E402
from md_trl.tasks import load_questions  # noqa: E402


N = 10
TEMPERATURE = 0.7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smollm2", default="build/smollm2", help="made by tools/smollm2.py")
    parser.add_argument("--student", default="outputs/quickstart/students/md", help="made by `make quickstart`")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("outputs/bench/transformers_engine.json"))
    parser.add_argument("--against", type=Path, help="folder of another checkout of md_trl")
    parser.add_argument("--batch_size", type=int, default=32, help="rows of a batch, with --against")
    parser.add_argument("--questions", type=int, default=8, help="questions, with --against")
    parser.add_argument("--max_tokens", type=int, default=128, help="tokens per sample, with --against")
    parser.add_argument("--run", type=Path, help="one run of --against with the requests in a file, in this process")
    args = parser.parse_args()
    if args.run is not None:
        print(json.dumps(run_mixed_lengths(args.smollm2, args.batch_size, json.loads(args.run.read_text()))))
        return
    if args.against is not None:
        compare_checkouts(args)
        return
    figures = {}
    for name, folder, prompts, max_tokens in (
        ("smollm2-135m", args.smollm2, 8, 32),
        ("quickstart student", args.student, 32, 64),
    ):
        if Path(folder).is_dir():
            figures[name] = compare(folder, prompts, max_tokens, args.turns)
        else:
            print(f"No {folder}: {name} is left out.")
    result = {
        "peer": f"transformers {transformers.__version__} generate, one call per prompt (num_return_sequences={N})",
        "models": figures,
        "ratio": {name: of_model["ratio"] for name, of_model in figures.items()},
        "load_average": os.getloadavg()[0],
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"Wrote {args.output}.")


def compare_checkouts(args: argparse.Namespace) -> None:
    here = Path(__file__).parents[2]
    rates: dict[str, list[float]] = {"this": [], "other": []}
    # The checkouts may have other questions and prompts, so both read the requests from one file.
    requests = [
        {
            "question_id": question.id,
            "path": path,
            "prompt": student_prompt(question.question, path),
            "params": {"temperature": TEMPERATURE, "max_tokens": args.max_tokens, "stop": ["\n\n"]},
        }
        for question in load_questions("stories", "test")[: args.questions]
        for path in ("cot", "pot")
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "requests.json"
        file.write_text(json.dumps(requests))
        for _ in range(args.turns):
            for name, checkout in (("other", args.against), ("this", here)):
                command = [sys.executable, __file__, "--run", str(file), "--smollm2", args.smollm2]
                command += ["--batch_size", str(args.batch_size)]
                environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
                run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                figures = json.loads(run.stdout.splitlines()[-1])
                rates[name].append(figures["tokens"] / figures["cpu_seconds"])
                print(f"{name}: {rates[name][-1]:.0f} tokens per CPU second {figures}", flush=True)
    ratio = statistics.median(rates["this"]) / statistics.median(rates["other"])
    print(f"{ratio:.2f} times the tokens per CPU second of {args.against}")


def run_mixed_lengths(folder: str, batch_size: int, rows: list[dict]) -> dict[str, float]:
    engine = TransformersEngine(folder, device="cpu", batch_size=batch_size)
    requests = []
    for row in rows:
        params = row["params"] | {"stop": tuple(row["params"]["stop"])}
        if "params" in SampleRequest.__dataclass_fields__:  # Earlier commits have no such class.
            from md_trl.records import SamplingParams

            params = {"params": SamplingParams(**params)}
        requests.append(SampleRequest(row["question_id"], row["path"], row["prompt"], n=N, **params))
    start, cpu_start = time.perf_counter(), time.process_time()
    results = list(engine.generate(requests))
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    # Tokens of the texts that were kept: what comes between a stop string and its discovery does not count.
    texts = [choice.text for result in results for choice in result.choices]
    tokens = sum(len(ids) + 1 for ids in engine.tokenizer(texts)["input_ids"])
    return {"samples": len(texts), "tokens": tokens, "seconds": seconds, "cpu_seconds": cpu_seconds}


def compare(folder: str, count: int, max_tokens: int, turns: int) -> dict:
    from md_trl.records import SamplingParams

    engine = TransformersEngine(folder, device="cpu")
    model, tokenizer = engine._model, engine.tokenizer
    questions = load_questions("stories", "test")[:count]
    params = SamplingParams(temperature=TEMPERATURE, max_tokens=max_tokens)
    prompts = [student_prompt(question.question, "pot") for question in questions]
    ids = [torch.tensor([one]) for one in encode(tokenizer, prompts, False)]

    def ours() -> int:
        requests = (
            SampleRequest(question.id, "pot", prompt, params, n=N)
            for question, prompt in zip(questions, prompts, strict=True)
        )
        return sum(result.usage["completion_tokens"] for result in engine.generate(requests))

    def plain(samples: int) -> int:
        torch.manual_seed(0)
        tokens = 0
        for one in ids:
            for _ in range(N // samples):
                output = model.generate(
                    input_ids=one,
                    attention_mask=torch.ones_like(one),
                    do_sample=True,
                    temperature=TEMPERATURE,
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=max_tokens,
                    num_return_sequences=samples,
                    eos_token_id=engine._eos,
                    pad_token_id=engine._eos[0],
                )
                new = output[:, one.shape[1] :]
                ended = torch.isin(new, torch.tensor(engine._eos))
                # Up to and with the first EOS
                tokens += int((ended.cumsum(1) - ended.long() == 0).sum())
        return tokens

    runs: dict[str, Callable[[], int]] = {
        "md_trl": ours,
        "generate_per_prompt": lambda: plain(N),
        "generate_per_sample": lambda: plain(1),
    }
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns):
        for name, run in runs.items():
            if name == "generate_per_sample" and turn:
                continue  # Ten times slower: one run is enough.
            start = time.perf_counter()
            tokens = run()
            rates[name].append(tokens / (time.perf_counter() - start))
            print(f"{folder}: {name}: {rates[name][-1]:.0f} tokens/s ({tokens} tokens)", flush=True)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "prompts": count,
        "n": N,
        "max_tokens": max_tokens,
        "tokens_per_second": medians,
        "ratio": medians["md_trl"] / medians["generate_per_prompt"],
        "ratio_per_sample": medians["md_trl"] / medians["generate_per_sample"],
    }


if __name__ == "__main__":
    main()
