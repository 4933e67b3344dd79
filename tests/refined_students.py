"""A toy task that a tiny student half knows: what the tests of `md-trl refine` begin with."""

import random

import torch
from datasets import Dataset
from students import tiny_llama
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from md_trl import MDConfig, MDTrainer
from md_trl.prompts import student_prompt
from md_trl.store import Store


TASK, TEACHER = "toy", "teacher"
TRAINING = {
    "per_device_train_batch_size": 8,
    "learning_rate": 3e-3,
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "model_init_kwargs": {"dtype": "auto"},  # float64, in which a sample does not depend on its batch at all
}


def toy_rows(count=24, seed=0):
    """Sums with thoughts of a teacher that makes mistakes: its questions are of all four types."""
    rng = random.Random(seed)
    for i in range(count):
        a, b = rng.randint(0, 2), rng.randint(0, 2)
        cot_slip, pot_slip = ((0, 0), (0, 0), (0, 1), (1, 0), (1, 1), (0, 0))[i % 6]
        texts = {
            "cot": [f"{a} + {b} = {a + b + cot_slip} . The answer is {a + b + cot_slip} ."],
            "pot": [f"answer = {a} + {b} + {pot_slip}" if pot_slip else f"answer = {a} + {b}"],
        }
        for path, of_path in texts.items():
            for text in of_path:
                yield {
                    "task": TASK,
                    "id": f"{TASK}/train/{i}",
                    "question": f"Ann {i} : {a} + {b} ?",
                    "gold": str(a + b),
                    "path": path,
                    "text": text,
                    "model": TEACHER,
                }


def word_tokenizer(texts):
    """A tokenizer with a token for each word of the texts, which loses nothing."""
    split = pre_tokenizers.Split(Regex(r" ?\w+|\n *| ?[^\w\s]"), behavior="isolated")
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})
    vocabulary = {word: i for i, word in enumerate(["</s>", "<pad>", "<unk>", *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = split, decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def make_toy(folder, steps=60):
    """Write the teacher's thoughts to `t.db`, and train the student `md` on right thoughts of most questions."""
    rows = list(toy_rows())
    with Store(folder / "t.db") as store:
        store.import_rows(((f"row {number}", row) for number, row in enumerate(rows)), TASK)
    questions = {row["question"]: row["gold"] for row in rows}
    numbers = " ".join(str(number) for number in range(40))
    prompts = [student_prompt(question, path) for question in questions for path in ("cot", "pot")]
    tokenizer = word_tokenizer([*prompts, *(row["text"] for row in rows), numbers])
    model = tiny_llama(len(tokenizer)).to(torch.float64)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    right = []
    for question, gold in questions.items():
        a, b = question.removesuffix(" ?").rpartition(": ")[2].split(" + ")
        cot, pot = f"{a} + {b} = {gold} . The answer is {gold} .", f"answer = {a} + {b}"
        thoughts = {"cot": [cot], "pot": [pot]}
        right.append({"question": question, "type": 3, "lambda": 0.5, "repeat": 1, **thoughts})
    args = MDConfig(str(folder / "md"), max_steps=steps, **TRAINING | {"learning_rate": 1e-2})
    trainer = MDTrainer(str(folder / "base"), args, train_dataset=Dataset.from_list(right[::2]))
    trainer.train()
    trainer.save_model()
