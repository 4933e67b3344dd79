"""Order questions and draw thoughts anew in every epoch (Sec. 3.2)."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from copy import copy
from functools import cached_property
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from ..errors import InputError
from ..records import PATHS_AND_LABEL
from ..weighting import path_weights
from .md_config import MDConfig


def draw(count: int, k: str, seed: int, epoch: int, id: str, path: str, occurrence: int) -> list[int]:
    r"""
    Draw the thoughts of a path to learn from this time: uniformly, without replacement, keyed by all arguments.

    The occurrences of a repeated question in one epoch draw different thoughts as long as there are any.

    Args:
        count (`int`):
            Number of thoughts to choose from.
        k (`str`):
            Number of thoughts to draw, or `"all"`.
        seed (`int`):
            Seed of the run.
        epoch (`int`):
            Epoch, from 0.
        id (`str`):
            Id of the question.
        path (`str`):
            Path of the thoughts.
        occurrence (`int`):
            Which of the question's repeats in this epoch it is, from 0.

    Returns:
        `list[int]`: Indices of the thoughts drawn.
    """
    if k == "all" or int(k) >= count:
        return list(range(count))
    # A string seed is hashed with SHA-512, so it gives the same draws on every machine and in every worker.
    order = random.Random(f"{seed}/{epoch}/{id}/{path}").sample(range(count), count)
    return [order[(occurrence * int(k) + i) % count] for i in range(int(k))]


class DrawnQuestions(TorchDataset):
    r"""
    The questions of an epoch, each as many times as its `repeat`, with newly drawn and weighted thoughts.

    It is indexed by the `(epoch, position)` pairs of [`QuestionSampler`], so that data loader workers know the epoch.

    Args:
        questions ([`~datasets.Dataset`]):
            Tokenized questions from [`prepare_questions`].
        args ([`MDConfig`]):
            Configuration, of which `objective`, `rationale_weight`, `rationales_per_path`, `weight_normalizer` and
            `seed` are used.
    """

    def __init__(self, questions: Dataset, args: MDConfig):
        self.questions = questions
        self.args = args
        # Occurrences are counted per id, so that listing a question twice equals `repeat` 2.
        seen: Counter[str] = Counter()
        self.occurrences = []
        for i, (id, repeat) in enumerate(zip(questions["id"], questions["repeat"], strict=True)):
            self.occurrences += [(i, seen[id] + o) for o in range(repeat)]
            seen[id] += repeat

    def __len__(self) -> int:
        return len(self.occurrences)

    def __getitem__(self, key: tuple[int, int] | None) -> dict[str, Any] | None:
        if key is None:
            return None
        epoch, position = key
        index, occurrence = self.occurrences[position]
        row = self.questions[index]
        args = self.args
        if row["weight"] is None:
            shares = row["lambda"], args.rationale_weight, row["cot_pot_share"]
            weights = path_weights(args.objective, row["type"], *shares)
        else:
            weights = {path: row["weight"] for path in PATHS_AND_LABEL if row[path]}
        thoughts = []
        for path, weight in weights.items():
            drawn = draw(len(row[path]), args.rationales_per_path, args.seed, epoch, row["id"], path, occurrence)
            thoughts += [row[path][i] | {"path": path, "share": 1 / len(drawn), "weight": weight} for i in drawn]
        divisor = {
            "rows": 1,
            "weights": row["weight"],
            "tokens": sum(len(thought["input_ids"]) - thought["start"] for thought in thoughts),
        }[args.weight_normalizer]
        return {"type": row["type"], "lambda": row["lambda"], "divisor": divisor, "thoughts": thoughts}

    @cached_property
    def _thought_targets(self) -> list[dict[str, list[int]]]:
        """Number of target tokens of each thought, by path, for each question. Read without decoding the tokens."""
        targets: list[dict[str, list[int]]] = []
        for batch in self.questions.with_format("arrow").iter(1000):
            of_paths = []
            for path in PATHS_AND_LABEL:
                column = batch[path].combine_chunks()
                thoughts = column.flatten()
                lengths = pc.list_value_length(pc.struct_field(thoughts, "input_ids"))
                counts = iter(pc.subtract(lengths, pc.struct_field(thoughts, "start")).to_pylist())
                of_paths.append([[next(counts) for _ in range(size)] for size in column.value_lengths().to_pylist()])
            targets += [dict(zip(PATHS_AND_LABEL, question, strict=True)) for question in zip(*of_paths, strict=True)]
        return targets

    @property
    def have_targets(self) -> bool:
        """Whether any question has a thought to learn from."""
        return any(any(of_paths.values()) for of_paths in self._thought_targets)

    @cached_property
    def _ids(self) -> list[str]:
        return list(self.questions["id"])

    def num_target_tokens(self, epoch: int, position: int) -> int:
        r"""
        Return the number of target tokens of the thoughts that `self[epoch, position]` draws.

        Args:
            epoch (`int`):
                Epoch, from 0.
            position (`int`):
                Position of the question, with repeats.

        Returns:
            `int`: Number of tokens.
        """
        index, occurrence = self.occurrences[position]
        args, id = self.args, self._ids[index]
        return sum(
            counts[i]
            for path, counts in self._thought_targets[index].items()
            for i in draw(len(counts), args.rationales_per_path, args.seed, epoch, id, path, occurrence)
        )


class QuestionSampler(Sampler):
    r"""
    Sampler over [`DrawnQuestions`] that yields `(epoch, position)` per question, then `None` to fill the last batch.

    The order is the same on every process. `None` stands for a question of weight 0 that does not count in N, so no
    question has to be repeated to fill the last global batch.

    Args:
        questions ([`DrawnQuestions`]):
            Questions to sample from.
        multiple_of (`int`):
            Number of questions in a batch over all processes.
        shuffle (`bool`):
            Whether to shuffle the questions, differently in each epoch.
        drop_last (`bool`, *optional*, defaults to `False`):
            Whether to drop an incomplete last batch instead of filling it.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the order.
    """

    def __init__(
        self, questions: DrawnQuestions, multiple_of: int, shuffle: bool, drop_last: bool = False, seed: int = 0
    ):
        self.questions = questions
        self.multiple_of = multiple_of
        self.size = len(questions)
        full = self.size // multiple_of * multiple_of
        self.length = full if drop_last or full == self.size else full + multiple_of
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int] | None]:
        order = list(range(self.size))
        if self.shuffle:
            random.Random(f"{self.seed}/{self.epoch}").shuffle(order)
        for place in range(self.length):
            yield (self.epoch, order[place]) if place < self.size else None


def steps_to_reach(
    max_target_tokens: int, sampler: QuestionSampler, questions_per_step: int, max_steps: int = -1
) -> int:
    r"""
    Return the number of optimizer steps that train on a number of target tokens.

    Questions and thoughts are drawn as in the training, so the number is exact.

    Args:
        max_target_tokens (`int`):
            Number of target tokens to reach.
        sampler ([`QuestionSampler`]):
            Sampler of the training. Its epoch does not matter.
        questions_per_step (`int`):
            Number of questions in an optimizer step, over accumulation steps and processes.
        max_steps (`int`, *optional*, defaults to `-1`):
            Number of steps to end at in any case, if positive.

    Returns:
        `int`: Number of steps, at least 1.

    Raises:
        `ValueError`: If no number of steps reaches it, because there is nothing to learn.
    """
    questions = sampler.questions
    if not questions.have_targets or not len(sampler):
        raise InputError(
            f"`max_target_tokens={max_target_tokens}` cannot be reached: an epoch of {len(questions)} questions has "
            "no batch with a target token. Check the objective and `dataloader_drop_last`."
        )
    sampler, tokens, steps = copy(sampler), 0, 0
    for epoch in itertools.count():
        sampler.set_epoch(epoch)
        keys = list(sampler)
        for start in range(0, len(keys), questions_per_step):
            step = keys[start : start + questions_per_step]
            tokens += sum(questions.num_target_tokens(*key) for key in step if key is not None)
            steps += 1
            if tokens >= max_target_tokens or steps == max_steps:
                return steps


class QuestionLoading:
    r"""
    Mixin for subclasses of [`~transformers.Trainer`] that train and evaluate on [`DrawnQuestions`].
    """

    def _get_dataloader(self, dataset, *args, **kwargs):
        return super()._get_dataloader(DrawnQuestions(dataset, self.args), *args, **kwargs)

    def _get_train_sampler(self, train_dataset: DrawnQuestions) -> QuestionSampler:
        self._train_sampler = QuestionSampler(
            train_dataset,
            multiple_of=self._train_batch_size * self.accelerator.num_processes // self.get_tp_size(),
            shuffle=True,
            drop_last=self.args.dataloader_drop_last,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
        )
        return self._train_sampler

    # Every attempt of `auto_find_batch_size` calls it, and so does a resumed training, which gets the same number.
    def set_initial_training_values(self, args: MDConfig, dataloader: DataLoader):
        if args.max_target_tokens is not None:
            questions_per_step = self._train_sampler.multiple_of * args.gradient_accumulation_steps
            args = copy(args)
            args.max_steps = steps_to_reach(
                args.max_target_tokens, self._train_sampler, questions_per_step, args.max_steps
            )
        return super().set_initial_training_values(args, dataloader)

    def _get_eval_sampler(self, eval_dataset: DrawnQuestions) -> QuestionSampler:
        return QuestionSampler(
            eval_dataset,
            multiple_of=self.args.eval_batch_size * self.accelerator.num_processes // self.get_tp_size(),
            shuffle=False,
        )

    # `accelerate` does not find the sampler when a resumed epoch skips its first batches.
    def _run_epoch(self, *, epoch: int, **kwargs):
        self._train_sampler.set_epoch(epoch)
        return super()._run_epoch(epoch=epoch, **kwargs)
