"""A tiny random Llama to train from scratch, offline: `python recipes/tiny_student.py --dataset mixed --output model`.

The quickstart and the studies in `recipes/paper` train such students on `stories`, in minutes on one CPU core. Their
tokens are the words and numbers of the dataset, which the test questions share. For any other task the tokens are
pieces of words that may be as short as a byte, so that no question is too new to be read. Such a student goes through
all steps of the method, but is too small to learn much.

    python recipes/tiny_student.py --dataset mixed --output model             # mixed rows of any tasks
    python recipes/tiny_student.py --task my_questions.jsonl --output model   # before there are thoughts
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


SIZES = {
    "0.6M": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4},
    "5M": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 8},
}
PIECES = 2000
"""Size of a vocabulary of pieces of words."""


def read_texts(dataset: Path | None, task: str | None) -> tuple[list[str], bool]:
    """All that a student is to read and to write, and whether its words are those of the test questions, too."""
    from md_trl.prompts import student_prompt
    from md_trl.records import ALL_PATHS, COT_POT, PATHS_AND_LABEL
    from md_trl.tasks import load_questions, task_name
    from md_trl.training_rows import load_mixed_rows, mixed_tasks

    if dataset is None:
        rows = [{"question": q.question, "answer": q.answer} for q in load_questions(task, "train")]
    else:
        rows = load_mixed_rows(dataset, mixed_tasks(dataset) if task is None else task_name(task))
    thoughts = {path: [thought for row in rows for thought in row.get(path) or ()] for path in ALL_PATHS}
    paths = [path for path in PATHS_AND_LABEL if path != COT_POT or thoughts[path]]
    texts = [student_prompt(row["question"], path) for row in rows for path in paths]
    texts += [t if isinstance(t, str) else t["text"] for of_path in thoughts.values() for t in of_path]
    texts += ["\n" + row["answer"] for row in rows if row.get("answer")]
    return texts, all(row.get("task") == "stories" for row in rows)


def train_tokenizer(texts: Sequence[str], words: bool) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the words and numbers of the texts, or pieces that take in any text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "eos_token": "</s>"} | ({"unk_token": "<unk>"} if words else {})
    options = {"special_tokens": list(special.values()), "show_progress": False}
    if words:
        core = Tokenizer(models.WordLevel(unk_token="<unk>"))
        # Numbers are whole tokens: a model this small learns no arithmetic on digits in minutes
        core.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+|\n *| ?[^\w\s]"), behavior="isolated")
        core.decoder = decoders.Fuse()
        trainer = trainers.WordLevelTrainer(vocab_size=10**6, **options)
    else:
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        every_byte = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=PIECES, initial_alphabet=every_byte, **options)
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


def make_student(dataset: Path | None, output: Path, seed: int, size: str = "0.6M", task: str | None = None) -> None:
    """Write an untrained student and its tokenizer to a folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    texts, words = read_texts(dataset, task)
    tokenizer = train_tokenizer(texts, words)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        **SIZES[size],
        num_key_value_heads=SIZES[size]["num_attention_heads"],
        max_position_embeddings=256 if words else 2048,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        initializer_range=0.06,  # so narrow a model learns faster from larger weights
    )
    student = LlamaForCausalLM(config)
    student.save_pretrained(output)
    tokenizer.save_pretrained(output)
    print(f"\nA student of {student.num_parameters():,} parameters and {len(tokenizer):,} tokens: {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, help="folder of `md-trl mix`, or other mixed rows")
    parser.add_argument(
        "--task", help="task of the dataset, if not all; without a dataset, a file of one's own questions"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the student")
    parser.add_argument("--seed", type=int, default=42, help="seed of the weights")
    parser.add_argument("--size", choices=SIZES, default="0.6M", help="number of parameters")
    args = parser.parse_args()
    if args.dataset is None and args.task is None:
        parser.error("name the rows that the student is to learn with --dataset, or its questions with --task")
    from md_trl.errors import InputError

    try:
        make_student(args.dataset, args.output, args.seed, args.size, args.task)
    except (InputError, OSError) as error:
        raise SystemExit(f"{parser.prog}: {error}") from None
