"""Memory and time of the loss over edges against the logits of all edges at once.

The peer is the objective of commit 7d913a5, run in the same process on the same model and batch: the LM head on the
states that edges start from, then `cross_entropy` and `argmax` of all logits. The model is a Llama of one layer, so
that nearly all time and memory are those of the LM head. Runs alternate; memory is the peak of a forward and backward
pass over what was resident before it.

16 questions with 20 + 20 thoughts have 54,492 edges, whose logits take 33 GB per copy with a vocabulary of 151,936. As
the peer holds three copies, this case is run on a 16th of the edges; the report adds the arithmetic for all of them. A
16th is hard on the ratio of memory, as the chunk of logits and the gradient of the LM head stay the same.

Usage: python tests/benchmarks/bench_lm_head.py [--rounds 3] [--share 16]
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path


os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM
from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE

from md_trl.trainer.lm_head import CHUNK_SIZE, VOCABULARY_CHUNK_SIZE, EdgeScorer


OUTPUT = Path(__file__).parents[2] / "outputs" / "bench"
EDGES = 54492
ROW = 512


def resident(field):
    """A field of this process's memory in MB: `VmRSS` now, `VmHWM` at its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


def measured(step):
    """Seconds of a step and the MB at its peak over those before it."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before, start = resident("VmRSS"), time.perf_counter()
    loss = step()
    return {"seconds": time.perf_counter() - start, "peak_mb": resident("VmHWM") - before, "loss": loss}


def compare(vocabulary, hidden, edges, rounds):
    """Figures of both objectives on one random batch."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config)
    ids = torch.randint(0, vocabulary, (-(-edges // ROW), ROW))
    parents, targets = torch.randint(0, ids.numel(), (edges,)), torch.randint(0, vocabulary, (edges,))
    weights = torch.rand(edges) / edges
    scorer = EdgeScorer(model)
    scorer.measure(lambda: model(input_ids=ids, use_cache=False))

    def chunked():
        with scorer.scoring(parents, targets, weights):
            scores = model(input_ids=ids, use_cache=False)
        scores.loss.backward()
        return scores.loss.item()

    def materialised():
        def gather(head, args):
            return (args[0].flatten(0, 1)[parents][None],)

        handle = model.lm_head.register_forward_pre_hook(gather)
        logits = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)
        handle.remove()
        loss = (F.cross_entropy(logits, targets, reduction="none") * weights).sum()
        with torch.no_grad():
            (logits.argmax(-1) == targets).sum()
        loss.backward()
        return loss.item()

    runs = {"materialised": [], "chunked": []}
    for _ in range(rounds + 1):
        for name, step in (("materialised", materialised), ("chunked", chunked)):
            model.zero_grad()
            runs[name].append(measured(step))
    figures = {
        name: {
            "seconds": statistics.median(run["seconds"] for run in results[1:]),  # the first step also warms up
            "peak_mb": statistics.median(run["peak_mb"] for run in results[1:]),
        }
        for name, results in runs.items()
    }
    losses = [results[-1]["loss"] for results in runs.values()]
    assert abs(losses[0] - losses[1]) <= 1e-5 * losses[0]
    ratios = {key: figures["chunked"][key] / figures["materialised"][key] for key in ("seconds", "peak_mb")}
    return {"vocabulary": vocabulary, "hidden": hidden, "edges": edges, "figures": figures, "ratios": ratios}


def arithmetic(vocabulary, hidden):
    """
    GB that all 54,492 edges take, by arithmetic.

    On a CPU, in float32: three copies of the logits, or a chunk of them. On CUDA, in bfloat16: at least ten bytes per
    logit in the backward pass (log-probabilities and their gradient in float32, the gradient of the logits), or a tile
    of TRL's kernel. Both with the gradients of the LM head and of the hidden states in float32.
    """
    gradients = 4 * (vocabulary * hidden + EDGES * hidden)
    return {
        "cpu": {
            "materialised_gb": (12 * EDGES * vocabulary + gradients) / 1e9,
            "chunked_gb": (4 * CHUNK_SIZE + gradients) / 1e9,
        },
        "cuda": {
            "materialised_gb": (10 * EDGES * vocabulary + gradients) / 1e9,
            "chunked_gb": (2 * TOKEN_CHUNK_SIZE * VOCABULARY_CHUNK_SIZE + gradients) / 1e9,
        },
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=int, default=16, help="run the large case on one edge in so many")
    args = parser.parse_args()
    torch.set_num_threads(1)
    report = {
        "peer": "the objective of commit 7d913a5",
        "20 + 20 thoughts": compare(151936, 896, EDGES // args.share, args.rounds)
        | {"arithmetic for all edges": arithmetic(151936, 896)},
        "1 + 1 thoughts": compare(49152, 576, EDGES // 20, args.rounds),
    }
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / "lm_head.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
