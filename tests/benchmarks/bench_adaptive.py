"""Adaptive against full sampling of the quickstart's simulated teacher: thoughts saved, types and lambdas changed.

For each seed, 20 + 20 thoughts per question are sampled into one store, and adaptively into another one. Writes
outputs/bench/adaptive.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
from collections import Counter
from pathlib import Path

from md_trl.adaptive import AdaptiveRule, sample_adaptively
from md_trl.execution import Executor
from md_trl.judging import mark, read_answers
from md_trl.mixing import mix
from md_trl.prompts import teacher_messages
from md_trl.records import MixedRow, SamplingParams, Thought
from md_trl.sampling import sample
from md_trl.sampling.engines.openai import OpenAIEngine
from md_trl.simulated_teacher import MODEL, TeacherServer
from md_trl.store import Store
from md_trl.tasks import load_questions


N = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2, 3, 4])
    parser.add_argument("--output", type=Path, default=Path("outputs/bench/adaptive.json"))
    args = parser.parse_args()
    rows = []
    with TeacherServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for seed in args.seeds:
            rows.append(compare(server.url, args.questions, seed))
            print(json.dumps(rows[-1]), flush=True)
        server.shutdown()
    means = {name: statistics.mean(row[name] for row in rows) for name in rows[0] if name != "seed"}
    figures = {
        "peer": "20 + 20 thoughts of each question",
        "questions": args.questions,
        "rule": vars(AdaptiveRule()) | {"n": N},
        "seeds": rows,
        "means": means,
        "ratio": 1 - means["saved"],
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"{means}\nWrote {args.output}.")


def compare(url: str, count: int, seed: int) -> dict:
    questions = load_questions("stories", "train", seed=seed)[:count]
    gold = {question.id: question.answer for question in questions}
    options = {"params": SamplingParams(seed=seed), "progress": False}
    with Executor() as executor, tempfile.TemporaryDirectory() as folder:

        def judged(thoughts: list[Thought]) -> list[Thought]:
            return mark(read_answers(thoughts, executor), gold)

        engine = OpenAIEngine(MODEL, url)
        with Store(f"{folder}/full.db") as store:
            whole = sample(questions, ["cot", "pot"], N, engine, store, teacher_messages, **options)
            thoughts = judged(store.thoughts())
        full = mix(questions, thoughts)
        with Store(f"{folder}/adaptive.db") as store:
            summary = sample_adaptively(questions, N, engine, store, teacher_messages, executor, **options)
            adaptive = mix(questions, judged(store.thoughts()))
        # A second full run with another seed: how much types and lambdas move by chance alone
        with Store(f"{folder}/again.db") as store:
            options["params"] = SamplingParams(seed=seed + 1000)
            sample(questions, ["cot", "pot"], N, engine, store, teacher_messages, **options)
            again = mix(questions, judged(store.thoughts()))
    # The same rule on the first thoughts of the full run: what it would have missed of this very run
    lengths = {row.id: row.n_cot for row in adaptive}
    beginnings = mix(questions, [thought for thought in thoughts if thought.index < lengths[thought.question_id]])
    assert summary.thoughts + summary.saved == whole.thoughts
    return {
        "seed": seed,
        "saved": summary.saved / whole.thoughts,
        "prompt_tokens_ratio": summary.prompt_tokens / whole.prompt_tokens,
        "completion_tokens_ratio": summary.completion_tokens / whole.completion_tokens,
        **{f"share_stopped_at_{k}": v / count for k, v in sorted(Counter(lengths.values()).items())},
        **{f"adaptive_{name}": value for name, value in differences(full, adaptive).items()},
        **{f"beginnings_{name}": value for name, value in differences(full, beginnings).items()},
        **{f"full_again_{name}": value for name, value in differences(full, again).items()},
    }


def differences(full: list[MixedRow], other: list[MixedRow]) -> dict[str, float]:
    pairs = list(zip(full, other, strict=True))
    moved = [abs(a.lambda_ - b.lambda_) for a, b in pairs if a.type == b.type == 3]
    return {
        "types_changed": sum(a.type != b.type for a, b in pairs) / len(pairs),
        "lambda_mean_change": statistics.mean(moved),
        "lambda_over_tolerance": sum(change > AdaptiveRule().tolerance for change in moved) / len(moved),
        "lambda_bias": statistics.mean(b.lambda_ - a.lambda_ for a, b in pairs if a.type == b.type == 3),
    }


if __name__ == "__main__":
    main()
