"""From mixed rows to what the student learns: which thoughts, with which weights, drawn when (Sec. 3.2)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from datasets import Dataset, Features, List, Value
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

from ..answers import equal
from ..errors import InputError
from ..prompts import encode, resolve_prompt_format, student_text
from .md_config import OBJECTIVES, MDConfig


def path_weights(objective: str, type_: int, lambda_: float | None, rationale_weight: float = 1.0) -> dict[str, float]:
    r"""
    The weights w(i,p) of the objective (Eq. 2 for types 1 and 2, Eq. 4 for type 3; the other objectives are
    baselines).

    Args:
        objective (`str`):
            As in [`MDConfig`].
        type_ (`int`):
            Type of the question, 1 to 3.
        lambda_ (`float` or `None`):
            Weight of the PoT path in type 3.
        rationale_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the CoT path in the objective `step_by_step`.

    Returns:
        `dict[str, float]`: a weight for each path that the objective learns.
    """
    if objective in ("label", "label_all"):
        return {"label": 1.0}
    if objective == "step_by_step":
        return {"label": 1.0, "cot": rationale_weight}
    if objective in ("cot", "pot"):
        return {objective: 1.0}
    if type_ != 3:
        return {"cot": 1.0, "pot": 1.0}
    if objective == "uniform":
        lambda_ = 0.5
    return {"cot": 1 - lambda_, "pot": lambda_}


def thoughts_to_learn(row: dict[str, Any], path: str, unsolved_path: str) -> list[str]:
    r"""
    Distinct texts of a path that the student learns from, in the order first seen.

    Args:
        row (`dict`):
            A mixed row. Its thoughts are dicts of `text`, `answer`, `correct`, or plain strings, taken as correct.
        path (`str`):
            `cot` or `pot`.
        unsolved_path (`str`):
            As in [`MDConfig`].

    Returns:
        `list[str]`: texts without outer white space.
    """
    solved_by_other = {1: "cot", 2: "pot"}.get(row["type"]) == path
    texts = []
    for thought in row[path] or []:
        if isinstance(thought, str):
            thought = {"text": thought, "correct": True}
        if solved_by_other and unsolved_path == "majority":
            vote = row.get(f"{path}_vote")
            learned = vote is not None and "answer" in thought and equal(thought["answer"], vote)
        else:
            learned = thought["correct"]
        if learned:
            texts.append(thought["text"].strip())
    return [text for text in dict.fromkeys(texts) if text]


def path_rows(
    rows: Iterable[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase | None = None,
    objective: str = "md",
    unsolved_path: str = "correct",
) -> list[dict[str, Any]]:
    r"""
    The flat twin of mixed rows: one thought a row, with its weight in the objective, for trainers that know weights.

    The mean over all rows of weight * l is the objective (`rationales_per_path="all"`) times its N and over the number
    of rows.

    Args:
        rows (`Iterable[dict]`):
            Mixed rows.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Its chat template writes the prompts. If `None` or without one, they are plain text.
        objective (`str`, *optional*, defaults to `"md"`):
            As in [`MDConfig`], except `"label_all"`.
        unsolved_path (`str`, *optional*, defaults to `"correct"`):
            As in [`MDConfig`].

    Returns:
        `list[dict]`: `id`, `task`, `path`, `type`, `prompt`, `completion` and `weight`.

    Raises:
        `ValueError`: an unknown objective.
    """
    known = [name for name in OBJECTIVES if name != "label_all"]
    if objective not in known:
        raise InputError(f"Path rows have no objective {objective!r}. Choose one of {', '.join(known)}.")
    flat = []
    for row in rows:
        texts = {path: thoughts_to_learn(row, path, unsolved_path) for path in ("cot", "pot")}
        if row["type"] == 4 or not any(texts.values()):
            continue
        for path, weight in path_weights(objective, row["type"], row.get("lambda")).items():
            completions = texts[path] if path != "label" else [row["answer"].strip()]
            same = {name: row.get(name) for name in ("id", "task")} | {"path": path, "type": row["type"]}
            same["prompt"] = student_text(row["question"], path, tokenizer)
            weight = (row.get("repeat") or 1) * weight / max(len(completions), 1)
            flat += [same | {"completion": text, "weight": weight} for text in completions]
    return flat


def tokenize_completions(
    prompt: str, texts: list[str], tokenizer: PreTrainedTokenizerBase, chat: bool = False
) -> list[dict[str, Any]]:
    r"""
    Token ids of a prompt with each of its thoughts.

    The targets are the tokens of tok(prompt + thought) + EOS from index len(tok(prompt)) on; where tok(prompt) is not
    a prefix of it, from the first differing token on.

    Args:
        prompt (`str`):
            Text before the thoughts.
        texts (`list[str]`):
            Thoughts.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the student.
        chat (`bool`, *optional*, defaults to `False`):
            Whether a chat template wrote the prompt.

    Returns:
        `list[dict]`: for each thought `input_ids`, with EOS, and `start`, the index of its first target.
    """
    if not texts:
        return []
    prompt_ids, *all_ids = encode(tokenizer, [prompt, *(prompt + text for text in texts)], chat)
    tokenized = []
    for ids in all_ids:
        ids = [*ids, tokenizer.eos_token_id]
        # Index 0 has no predecessor to be predicted from, so it is never a target.
        start = next((i for i, (a, b) in enumerate(zip(prompt_ids, ids, strict=False)) if a != b), len(prompt_ids))
        tokenized.append({"input_ids": ids, "start": max(start, 1)})
    return tokenized


def tokenize_thoughts(
    question: str,
    path: str,
    texts: list[str],
    tokenizer: PreTrainedTokenizerBase,
    prompt_format: str,
    tokenize: Callable[..., list[dict[str, Any]]] = tokenize_completions,
) -> list[dict[str, Any]]:
    """The same for thoughts of a path of a question; `prompt_format` is as in [`MDConfig`]."""
    prompt = student_text(question, path, tokenizer, prompt_format)
    return tokenize(prompt, texts, tokenizer, resolve_prompt_format(tokenizer, prompt_format) == "chat")


def check_lossless(tokenizer: PreTrainedTokenizerBase, program: str, ids: list[int], where: str) -> None:
    r"""
    Make sure that a student can write a program at all.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the student.
        program (`str`):
            A program.
        ids (`list[int]`):
            Token ids of a text that ends with the program.
        where (`str`):
            Name of the row, for the error.

    Raises:
        `ValueError`: the ids do not decode to a text that ends with the program.
    """
    decoded = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if not decoded.endswith(program):
        lost = sorted(set(program) - set(decoded)) or "spacing or order"
        raise InputError(
            f"The tokenizer {tokenizer.name_or_path!r} loses characters of a program, so the student could not learn "
            f"to write it. {where}: lost {lost}; {program[:60]!r} came back as {decoded[-len(program) :][:60]!r}. Add "
            "them with `tokenizer.add_tokens` and resize the model's embeddings, or choose `objective='cot'`."
        )


def prepare_questions(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    args: MDConfig,
    name: str,
    tokenize: Callable[..., list[dict[str, Any]]] = tokenize_completions,
) -> tuple[Dataset, dict[str, int]]:
    r"""
    Turn mixed rows into tokenized questions.

    Args:
        dataset ([`~datasets.Dataset`]):
            Mixed rows; for `objective="label_all"` any rows with `question` and `answer`; or path rows, that is, flat
            rows with `prompt`, `completion` and optionally `weight`, of which the loss is the mean of weight * l.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the student.
        args ([`MDConfig`]):
            Objective, `max_length` and prompt format are read from it.
        name (`str`):
            What errors and progress bars call the dataset, for example `train`.
        tokenize (`Callable`, *optional*, defaults to [`tokenize_completions`]):
            What makes token ids of a prompt and its thoughts; another architecture needs another.

    Returns:
        `tuple[Dataset, dict[str, int]]`: the questions kept, with `id`, `type` (0 if it has none), `lambda`, `repeat`
        and for each of `cot`, `pot`, `label` a list of `input_ids` and `start`, empty unless the objective learns the
        path; and how many were dropped: rows of `type_4`, rows with `no_thought`, thoughts `too_long`.

    Raises:
        `ValueError`: a column is missing, a value is out of its range, the tokenizer has no EOS or loses characters of
            a program, or no question is left.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"The tokenizer {tokenizer.name_or_path!r} has no EOS token, so the student would never learn to stop. "
            "Set `tokenizer.eos_token` to a token of its vocabulary."
        )
    flat = "completion" in dataset.column_names
    if flat:
        needed = ["prompt", "completion"]
    else:
        needed = ["question", "answer"] if args.objective == "label_all" else ["question", "type", "cot", "pot"]
        needed += ["answer"] if args.objective in ("label", "step_by_step") else []
    if missing := [column for column in needed if column not in dataset.column_names]:
        raise InputError(
            f"The {name} dataset has no column {', '.join(missing)}, which `objective={args.objective!r}` needs; it "
            f"has {', '.join(dataset.column_names)}. Pass mixed rows, as `md-trl mix` writes them."
        )
    ids, count = Value("int32"), Value("int64")
    thoughts = List({"input_ids": List(ids), "start": ids})
    prepared = dataset.map(
        _prepare_path_row if flat else _prepare_question,
        fn_kwargs={"tokenizer": tokenizer, "args": args, "name": name, "tokenize": tokenize},
        with_indices=True,
        remove_columns=dataset.column_names,
        features=Features(
            {"id": Value("string"), "type": ids, "lambda": Value("float64"), "repeat": ids, "weight": Value("float64")}
            | {"cot": thoughts, "pot": thoughts, "label": thoughts}
            | {"dropped": Value("string"), "too_long": count}
        ),
        num_proc=args.dataset_num_proc,
        load_from_cache_file=False,
        desc=f"Tokenizing {name} questions",
    )
    reasons = Counter(prepared["dropped"])
    dropped = {
        "type_4": reasons["type_4"],
        "no_thought": reasons["no_thought"],
        "too_long": sum(prepared["too_long"]),
    }
    kept = [index for index, reason in enumerate(prepared["dropped"]) if not reason]
    if not kept:
        raise InputError(
            f"No question is left in the {name} dataset of {len(dataset)} rows: {dropped['type_4']} of type 4 (solved "
            f"by neither path), {dropped['no_thought']} without a thought to learn from, {dropped['too_long']} "
            f"thoughts longer than `max_length={args.max_length}`. Sample more or better thoughts, or raise "
            "`max_length`."
        )
    return prepared.select(kept).remove_columns(["dropped", "too_long"]), dropped


def _prepare_question(
    row: dict[str, Any],
    index: int,
    tokenizer: PreTrainedTokenizerBase,
    args: MDConfig,
    name: str,
    tokenize: Callable[..., list[dict[str, Any]]],
) -> dict[str, Any]:
    row = {"id": f"{name}/{index}", "type": None, "lambda": None, "repeat": 1} | dict(row)
    row["id"] = row["id"] or f"{name}/{index}"
    where = f"Row {index} ({row['id']!r}) of the {name} dataset"
    for column in ("question", *(("answer",) if args.objective in ("label", "label_all", "step_by_step") else ())):
        if not isinstance(row[column], str):
            raise InputError(f"{where} has {column} {row[column]!r}. It must be a text.")
    for path in ("cot", "pot"):
        for thought in row.get(path) or []:
            if isinstance(thought, dict) and (thought.get("text") is None or thought.get("correct") is None):
                raise InputError(f"{where} has a {path} thought without `text` or `correct`: {thought!r}.")
    out = {"id": row["id"], "type": row["type"] or 0, "lambda": row["lambda"], "repeat": row["repeat"], "weight": None}
    out |= {"cot": [], "pot": [], "label": [], "dropped": "", "too_long": 0}

    def fitting(path: str, texts: list[str]) -> list[dict[str, Any]]:
        tokenized = tokenize_thoughts(row["question"], path, texts, tokenizer, args.prompt_format, tokenize)
        learns_programs = path == "pot" and args.objective in ("md", "pot", "uniform")
        kept = _fitting(tokenized, texts if learns_programs else None, tokenizer, args, where)
        out["too_long"] += len(tokenized) - len(kept)
        return kept

    if not (isinstance(row["repeat"], int) and row["repeat"] >= 1):
        raise InputError(f"{where} has repeat {row['repeat']!r}. It must be a whole number from 1 up.")
    if args.objective == "label_all":
        return out | {"label": fitting("label", [row["answer"].strip()])}
    if row["type"] not in (1, 2, 3, 4):
        raise InputError(f"{where} has type {row['type']!r}. It must be 1, 2, 3 or 4.")
    if row["type"] == 4:
        return out | {"dropped": "type_4"}
    if row["type"] == 3 and args.objective == "md" and not (row["lambda"] is not None and 0 <= row["lambda"] <= 1):
        raise InputError(
            f"{where} is of type 3 and has lambda {row['lambda']!r}. It must be n2 / (n1 + n2), between 0 and 1; "
            "`objective='uniform'` does without."
        )
    learned = {p: fitting(p, thoughts_to_learn(row, p, args.unsolved_path)) for p in ("cot", "pot")}
    # A question without a thought is dropped whatever the objective, so that all objectives see the same questions.
    if not learned["cot"] and not learned["pot"]:
        return out | {"dropped": "no_thought"}
    paths = path_weights(args.objective, row["type"], row["lambda"])
    if "label" in paths:
        learned["label"] = fitting("label", [row["answer"].strip()])
    return out | {path: learned[path] for path in paths}


def _prepare_path_row(
    row: dict[str, Any],
    index: int,
    tokenizer: PreTrainedTokenizerBase,
    args: MDConfig,
    name: str,
    tokenize: Callable[..., list[dict[str, Any]]],
) -> dict[str, Any]:
    row = {"id": f"{name}/{index}", "path": "label", "weight": 1.0} | dict(row)
    where = f"Row {index} ({row['id']!r}) of the {name} dataset"
    if row["path"] not in ("cot", "pot", "label"):
        raise InputError(f"{where} has path {row['path']!r}. It must be cot, pot or label.")
    if not isinstance(row["weight"], (int, float)) or not 0 <= row["weight"] < float("inf"):
        raise InputError(f"{where} has weight {row['weight']!r}. It must be a number from 0 up.")
    out = {"id": row["id"], "type": 0, "lambda": None, "repeat": 1, "weight": row["weight"], "dropped": ""}
    texts = [row["completion"]]
    # A prompt out of a chat template has its special tokens
    chat = bool(tokenizer.bos_token) and row["prompt"].startswith(tokenizer.bos_token)
    tokenized = tokenize(row["prompt"], texts, tokenizer, chat)
    kept = _fitting(tokenized, texts if row["path"] == "pot" else None, tokenizer, args, where)
    out |= {"cot": [], "pot": [], "label": [], row["path"]: kept}
    return out | ({"too_long": 0} if kept else {"dropped": "no_thought", "too_long": 1})


def _fitting(
    tokenized: list[dict[str, Any]],
    programs: list[str] | None,
    tokenizer: PreTrainedTokenizerBase,
    args: MDConfig,
    where: str,
) -> list[dict[str, Any]]:
    """The thoughts that are not too long; if they are programs, none may have lost a character."""
    if programs is not None:
        for program, thought in zip(programs, tokenized, strict=True):
            check_lossless(tokenizer, program, thought["input_ids"], where)
    return [t for t in tokenized if args.max_length is None or len(t["input_ids"]) <= args.max_length]


def draw(count: int, k: str, seed: int, epoch: int, id: str, path: str, occurrence: int) -> list[int]:
    r"""
    Which thoughts of a path are used this time: without replacement, uniformly, keyed by all arguments.

    The occurrences of a repeated question in one epoch draw different thoughts as long as there are any.

    Args:
        count (`int`):
            Thoughts to choose from.
        k (`str`):
            How many to draw, or `"all"`.
        seed (`int`), epoch (`int`), id (`str`), path (`str`), occurrence (`int`):
            Seed of the run, 0-based epoch, id of the question, its path, and which of its repeats this is, from 0.

    Returns:
        `list[int]`: indices of thoughts.
    """
    if k == "all" or int(k) >= count:
        return list(range(count))
    # A seed that is a string goes through SHA-512, so it is the same on every machine and in every worker.
    order = random.Random(f"{seed}/{epoch}/{id}/{path}").sample(range(count), count)
    return [order[(occurrence * int(k) + i) % count] for i in range(int(k))]


class DrawnQuestions(TorchDataset):
    r"""
    The questions of an epoch, each as often as its `repeat`, with freshly drawn and weighted thoughts.

    It is indexed by what [`QuestionSampler`] yields, so that a data loader's workers know the epoch.

    Args:
        questions ([`~datasets.Dataset`]):
            Tokenized questions from [`prepare_questions`].
        args ([`MDConfig`]):
            Objective, `rationales_per_path` and `seed` are read from it.
    """

    def __init__(self, questions: Dataset, args: MDConfig):
        self.questions = questions
        self.args = args
        # Counted by id, so that a question listed twice is the same as one with `repeat` 2
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
        thoughts = []
        args = self.args
        if row["weight"] is None:
            weights = path_weights(args.objective, row["type"], row["lambda"], args.rationale_weight)
        else:
            weights = {path: row["weight"] for path in ("cot", "pot", "label") if row[path]}
        for path, weight in weights.items():
            k, seed = args.rationales_per_path, args.seed
            drawn = draw(len(row[path]), k, seed, epoch, row["id"], path, occurrence)
            thoughts += [row[path][i] | {"path": path, "share": 1 / len(drawn), "weight": weight} for i in drawn]
        return {"type": row["type"], "lambda": row["lambda"], "thoughts": thoughts}


class QuestionSampler(Sampler):
    r"""
    Yields `(epoch, position)` for every question of [`DrawnQuestions`], then `None` until the last global batch is
    full.

    The same order comes out on every process. `None` stands for a question of weight 0 that does not count in N, so
    that no question is repeated to fill the last batch.

    Args:
        questions ([`DrawnQuestions`]):
            What to sample from.
        multiple_of (`int`):
            Questions in a batch over all processes.
        shuffle (`bool`):
            Whether to shuffle, anew each epoch.
        drop_last (`bool`, *optional*, defaults to `False`):
            Whether to leave out an incomplete last batch instead of filling it.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the order.
    """

    def __init__(
        self, questions: DrawnQuestions, multiple_of: int, shuffle: bool, drop_last: bool = False, seed: int = 0
    ):
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
