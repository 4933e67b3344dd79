"""A random Llama for `stories`, whose tokens are the words and numbers of a dataset: `python recipes/tiny_student.py`.

The quickstart and the studies in `recipes/paper` train such students from scratch, in minutes on one CPU core.
"""

from __future__ import annotations

import argparse
from pathlib import Path


SIZES = {
    "0.6M": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4},
    "5M": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 8},
}


def make_student(mixed: Path, output: Path, seed: int, size: str = "0.6M") -> None:
    """Write an untrained student and its tokenizer to a folder."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from md_trl.prompts import student_prompt
    from md_trl.training_rows import load_mixed_rows

    rows = load_mixed_rows(str(mixed), "stories")
    texts = [student_prompt(row["question"], path) for row in rows for path in ("cot", "pot", "label")]
    texts += [thought["text"] for row in rows for path in ("cot", "pot") for thought in row[path]]
    texts += ["\n" + row["answer"] for row in rows]
    core = Tokenizer(models.WordLevel(unk_token="<unk>"))
    # Numbers are whole tokens: a model this small learns no arithmetic on digits in minutes
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+|\n *| ?[^\w\s]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(
        special_tokens=["<pad>", "</s>", "<unk>"], vocab_size=10**6, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        **SIZES[size],
        num_key_value_heads=SIZES[size]["num_attention_heads"],
        max_position_embeddings=256,
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
    parser.add_argument("--dataset", type=Path, required=True, help="folder of `md-trl mix`")
    parser.add_argument("--output", type=Path, required=True, help="folder of the student")
    parser.add_argument("--seed", type=int, default=42, help="seed of the weights")
    parser.add_argument("--size", choices=SIZES, default="0.6M", help="number of parameters")
    args = parser.parse_args()
    make_student(args.dataset, args.output, args.seed, args.size)
