"""Training speed and memory of each layout of `MDTrainer`, compared with TRL's `SFTTrainer` on the same thoughts.

Both train SmolLM2-135M on a CPU, with the same questions per step. `SFTTrainer` gets every thought as a
prompt-completion row without a weight. Its best result is the faster of plain batches and batches grouped by length,
since its packing needs FlashAttention. Every run is a separate process on one thread, which isolates its peak memory,
and the runs alternate.

Data: `--thoughts 1` uses the GPT-3.5 thoughts of `../shared/data/svamp_teacher`. `--thoughts 10` uses 10 + 10 thoughts
per question by the student that the recipe `recipes/smollm2-135m` trains, sampled once into
`outputs/bench/thoughts.db`.

The limit is the time that the FLOPs of the unique tokens take at this machine's speed of matrix multiplication: 6 per
parameter and token, with the LM head on targets only. Last comes the time per step of the tree layout for 2 to 16
questions.

Usage: python tests/benchmarks/bench_training.py [--thoughts 1 10] [--steps 3] [--rounds 2]
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path


ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
OUTPUT = ROOT / "outputs" / "bench"
MODEL = ROOT / "build" / "smollm2"
STUDENT = ROOT / "outputs" / "smollm2-svamp" / "student"
RUNS = ("md-tree", "md-packed", "md-padded", "sft-padded", "sft-grouped")


def real_rows(count):
    """Return mixed rows with one CoT and one PoT each, by GPT-3.5-Turbo."""
    sys.path.insert(0, str(ROOT / "recipes" / "smollm2-135m"))
    from gpt35_to_thoughts import without_docstring

    cot, pot = (json.loads((SHARED / "data" / "svamp_teacher" / f"{p}.json").read_text()) for p in ("cot", "pot"))
    pot = {row["item_id"]: without_docstring(row["answer_cot"]) for row in pot}
    rows = [row for row in cot if row["item_id"] in pot][:count]
    return [
        {"id": r["item_id"], "question": r["question"], "cot": [r["answer_cot"]], "pot": [pot[r["item_id"]]]}
        for r in rows
    ]


def sampled_rows(count, n=10):
    """Return the first questions with thoughts sampled from a trained student, all of which count as correct here."""
    from md_trl.prompts import student_prompt
    from md_trl.records import Question, SamplingParams
    from md_trl.sampling.engines.transformers import TransformersEngine
    from md_trl.sampling.sampler import sample
    from md_trl.store import Selection, Store

    questions = [
        Question(f"svamp/train/{row['id']}", "svamp", "train", row["question"], "?") for row in real_rows(count)
    ]
    engine = TransformersEngine(str(STUDENT))
    with Store(OUTPUT / "thoughts.db") as store:
        summary = sample(
            questions,
            ["cot", "pot"],
            n,
            engine,
            store,
            lambda question, path: student_prompt(question.question, path),
            params=SamplingParams(max_tokens=200),
        )
        thoughts = store.thoughts(Selection(settings=summary.settings))
    by_path = {(q.id, path): [] for q in questions for path in ("cot", "pot")}
    for thought in thoughts:
        if (thought.question_id, thought.path) in by_path:
            by_path[thought.question_id, thought.path].append(thought.text)
    return [
        {"id": q.id, "question": q.question, "cot": by_path[q.id, "cot"], "pot": by_path[q.id, "pot"]}
        for q in questions
    ]


def train(run, thoughts, steps, questions):
    """Run one training and return the seconds per step, tokens, FLOPs of the unique tokens and peak memory."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from md_trl import MDConfig, MDTrainer
    from md_trl.prompts import student_prompt
    from md_trl.trainer.prefix_tree import build_tree

    rows = json.loads((OUTPUT / f"rows-{thoughts}.json").read_text())[: questions * steps]
    times, unique, targets = [], [], []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            times.append(-time.perf_counter())

        def on_step_end(self, *args, **kwargs):
            times[-1] += time.perf_counter()

    trainer_name, layout = run.split("-")
    common = {
        "output_dir": str(OUTPUT / "run"),
        "max_steps": steps,
        "learning_rate": 1e-5,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "activation_checkpointing": False,
        "gradient_checkpointing": False,
    }
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if trainer_name == "md":
        mixed = [row | {"type": 3, "lambda": 0.5} for row in rows]
        args = MDConfig(
            **common,
            layout=layout,
            rationales_per_path="all",
            per_device_train_batch_size=questions,
            prompt_format="plain",
        )
        trainer = MDTrainer(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(mixed),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        collate = trainer.data_collator

        def counted(batch):
            laid_out = collate(batch)
            unique.append(sum(len(build_tree([t["input_ids"] for t in q["thoughts"]]).tokens) for q in batch if q))
            targets.append(len(laid_out["targets"]))
            return laid_out

        trainer.data_collator = counted
    else:
        flat = [
            {"prompt": student_prompt(row["question"], path), "completion": text}
            for row in rows
            for path in ("cot", "pot")
            for text in dict.fromkeys(map(str.strip, row[path]))
        ]
        # The same number of questions per step: each has 2 or about 20 rows
        size = round(len(flat) / steps)
        strategy = "group_by_length" if layout == "grouped" else "random"
        args = SFTConfig(**common, per_device_train_batch_size=size, train_sampling_strategy=strategy)
        trainer = SFTTrainer(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(flat),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
    trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    embedding = model.get_input_embeddings().weight.numel()  # tied: it is the LM head too
    body = sum(parameter.numel() for parameter in model.parameters()) - embedding
    counter = "num_nodes" if trainer_name == "md" else "num_tokens"
    tokens = next(log[counter] for log in reversed(trainer.state.log_history) if counter in log)
    return {
        "seconds_per_step": times,
        "questions_per_step": questions,
        "tokens": tokens,
        "unique_tokens": unique,
        "flops": [6 * (body * nodes + embedding * edges) for nodes, edges in zip(unique, targets, strict=True)],
        "peak_mb": peak / 1024,
        "peak_over_model_mb": (peak - before) / 1024,
    }


def matrix_speed():
    """Measure the FLOPs per second of this machine on matrices of the model's shapes, on one thread."""
    import torch

    torch.set_num_threads(1)
    a, b = torch.randn(2048, 576), torch.randn(576, 1536)
    best = min(_timed(lambda: a @ b) for _ in range(20))
    return 2 * 2048 * 576 * 1536 / best


def run_apart(name, thoughts, steps, questions):
    """Call `train` in a separate process."""
    command = [sys.executable, __file__, "--run", name, "--thoughts", str(thoughts)]
    command += ["--steps", str(steps), "--questions", str(questions)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def linearity(steps):
    """Return the mean unique tokens and seconds per step of the tree layout for 2 to 16 questions per step."""
    found = []
    for questions in (2, 4, 8, 16):
        result = run_apart("md-tree", 1, steps, questions)
        tokens = statistics.mean(result["unique_tokens"][1:steps])
        seconds = statistics.mean(result["seconds_per_step"][1:])
        found.append({"unique_tokens": tokens, "seconds": seconds, "ms_per_token": 1000 * seconds / tokens})
    return found


def _timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thoughts", type=int, nargs="+", default=[1, 10], choices=[1, 10])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--run", choices=RUNS, help="run only this one, in this process, and print JSON")
    parser.add_argument("--questions", type=int, default=8, help="questions per step of `--run`")
    args = parser.parse_args()
    if args.run:
        print(json.dumps(train(args.run, args.thoughts[0], args.steps, args.questions)))
        return
    if not MODEL.is_dir() or not SHARED.is_dir():
        print(f"bench_training: skipped, it needs {MODEL} and {SHARED}")
        return
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for thoughts in args.thoughts:
        if thoughts == 10 and not STUDENT.is_dir():
            print(f"bench_training: 10 + 10 thoughts skipped, they need {STUDENT}")
            continue
        rows = real_rows(64) if thoughts == 1 else sampled_rows(8)
        (OUTPUT / f"rows-{thoughts}.json").write_text(json.dumps(rows))
        runs = {name: [] for name in RUNS}
        for _ in range(args.rounds):
            for name in RUNS:
                runs[name].append(run_apart(name, thoughts, args.steps, 8 if thoughts == 1 else 1))
        speed = matrix_speed()
        figures = {}
        for name, results in runs.items():
            # The first step is a warm-up
            seconds = [s for result in results for s in result["seconds_per_step"][1:]]
            figures[name] = {
                "questions_per_second": results[0]["questions_per_step"] / statistics.mean(seconds),
                "seconds_per_step": {"mean": statistics.mean(seconds), "min": min(seconds), "max": max(seconds)},
                "tokens_per_step": results[0]["tokens"] / args.steps,
                "peak_mb": statistics.median(result["peak_mb"] for result in results),
                "peak_over_model_mb": statistics.median(result["peak_over_model_mb"] for result in results),
            }
            if results[0]["flops"]:
                limit = statistics.mean(results[0]["flops"][1 : args.steps]) / speed
                figures[name]["seconds_per_step, over the limit"] = statistics.mean(seconds) / limit
        best = max(("sft-padded", "sft-grouped"), key=lambda name: figures[name]["questions_per_second"])
        ratios = {
            name: {
                f"questions_per_second, against {peer}": figures[name]["questions_per_second"]
                / figures[peer]["questions_per_second"]
                for peer in ("sft-padded", best)
            }
            | {"peak memory, against sft-padded": figures[name]["peak_mb"] / figures["sft-padded"]["peak_mb"]}
            for name in RUNS[:3]
        }
        report = {
            "peer": "trl.SFTTrainer",
            "thoughts_per_path": thoughts,
            "figures": figures,
            "ratios": ratios,
            "matrix_gflops": speed / 1e9,
        }
        if thoughts == 1:
            report["tree: seconds over unique tokens"] = linearity(args.steps)
        (OUTPUT / f"training-{thoughts}.json").write_text(json.dumps(report, indent=2) + "\n")
        print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
