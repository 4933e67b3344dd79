"""Check and tokenize mixed rows or flat rows (Sec. 3.2).

This is where rows of type 4 and thoughts longer than `max_length` are dropped and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..errors import InputError
from ..prompts import Prompt, encode, resolve_prompt_format, student_text
from ..records import ALL_PATHS, COT_POT, LABEL, PATHS, PATHS_AND_LABEL, PROGRAM_PATHS, QuestionType
from ..weighting import check_thoughts, path_weights, thoughts_to_learn
from .conversations import check_messages, check_template, render_completion, template_opening
from .md_config import MDConfig


logger = logging.get_logger(__name__)

LEARN_THE_ANSWER = ("label", "label_all", "step_by_step")
"""Objectives that learn the bare gold answer."""
LEARN_PROGRAMS = ("md", "uniform", *PROGRAM_PATHS)
"""Objectives that learn programs."""

UNSUPPORTED_COLUMNS = {
    "tools": "Students are asked without tools. Write them into the system message",
    "assistant_masks": "Every token of a completion is a target. Move the turns that are not to the prompt",
}
"""Columns of [`~trl.SFTTrainer`] that are refused, and why."""

OTHER_FORMS = {
    "messages": "Split each conversation: `prompt` has all messages but the last, which is the `completion`",
    "conversations": "Split each conversation: `prompt` has all messages but the last, which is the `completion`",
    "text": "Split each text into `prompt` and `completion`, since prompts are never targets",
    "input_ids": "Pass texts, which the trainer tokenizes itself",
}
"""Columns of rows that [`~trl.SFTTrainer`] takes in another form, and how to change them."""


def tokenize_completions(
    prompt: str, texts: list[str], tokenizer: PreTrainedTokenizerBase, chat: bool = False
) -> list[dict[str, Any]]:
    r"""
    Tokenize a prompt together with each of its thoughts.

    The targets are the tokens of tok(prompt + thought) + EOS from index len(tok(prompt)) on. If tok(prompt) is not a
    prefix of it, they start at the first token that differs.

    Args:
        prompt (`str`):
            Text before the thoughts.
        texts (`list[str]`):
            Thoughts.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the student.
        chat (`bool`, *optional*, defaults to `False`):
            Whether the prompt was formatted by a chat template.

    Returns:
        `list[dict]`: For each thought `input_ids`, which end with EOS, and `start`, the index of its first target.
    """
    if not texts:
        return []
    prompt_ids, *all_ids = encode(tokenizer, [prompt, *(prompt + text for text in texts)], chat)
    tokenized = []
    for ids in all_ids:
        ids = [*ids, tokenizer.eos_token_id]
        # The first token has no predecessor to be predicted from, so it is never a target.
        start = next((i for i, (a, b) in enumerate(zip(prompt_ids, ids, strict=False)) if a != b), len(prompt_ids))
        tokenized.append({"input_ids": ids, "start": max(start, 1)})
    return tokenized


def tokenize_thoughts(
    question: Prompt,
    path: str,
    texts: list[str],
    tokenizer: PreTrainedTokenizerBase,
    prompt_format: str,
    tokenize: Callable[..., list[dict[str, Any]]] = tokenize_completions,
) -> list[dict[str, Any]]:
    r"""
    Tokenize the student's prompt for a question and path together with each of its thoughts.

    Args:
        question (`str` or `list[dict[str, str]]`):
            Text of the question, or a conversation that ends with it.
        path (`str`):
            `"cot"`, `"pot"`, `"cot_pot"` or `"label"`.
        texts (`list[str]`):
            Thoughts of the path.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the student.
        prompt_format (`str`):
            Format of the prompt, as in [`MDConfig`].
        tokenize (`Callable`, *optional*, defaults to [`tokenize_completions`]):
            Function that tokenizes a prompt with its thoughts. Each architecture has its own.

    Returns:
        `list[dict]`: What `tokenize` returns.
    """
    prompt = student_text(question, path, tokenizer, prompt_format)
    return tokenize(prompt, texts, tokenizer, resolve_prompt_format(tokenizer, prompt_format) == "chat")


def check_lossless(tokenizer: PreTrainedTokenizerBase, program: str, ids: list[int], where: str) -> None:
    r"""
    Check that a tokenizer preserves a program, since a student cannot write what its tokenizer loses.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the student.
        program (`str`):
            Text of the program.
        ids (`list[int]`):
            Token ids of a text that ends with the program.
        where (`str`):
            Row of the program, for the error message.

    Raises:
        `ValueError`: If the ids do not decode to a text that ends with the program.
    """
    decoded = _decode(tokenizer, ids)
    if not decoded.endswith(program):
        lost = sorted(set(program) - set(decoded)) or "spacing or order"
        raise InputError(
            f"The tokenizer {tokenizer.name_or_path!r} loses characters of a program, so the student could not learn "
            f"to write it. {where}: lost {lost}; {program[:60]!r} is decoded as {decoded[-len(program) :][:60]!r}. "
            "Add the characters with `tokenizer.add_tokens` and resize the model's embeddings, or set "
            "`objective='cot'`."
        )


def is_lossless(tokenizer: PreTrainedTokenizerBase, program: str, ids: list[int]) -> bool:
    """Whether the ids of a text that ends with a program decode to one that does, see [`check_lossless`]."""
    return _decode(tokenizer, ids).endswith(program)


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def prepare_questions(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    args: MDConfig,
    name: str,
    tokenize: Callable[..., list[dict[str, Any]]] = tokenize_completions,
) -> tuple[Dataset, dict[str, int]]:
    r"""
    Check and tokenize the rows of a dataset.

    Args:
        dataset ([`~datasets.Dataset`]):
            Mixed rows; flat rows, which have `prompt`, `completion` and optionally `path` and `weight`; or, if
            `objective="label_all"`, the questions of a task, which have `question` and `answer`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the student.
        args ([`MDConfig`]):
            Configuration, of which the objective, `max_length`, the prompt format and `dataset_num_proc` are used.
        name (`str`):
            Name of the dataset in error messages and progress bars, for example `"train"`.
        tokenize (`Callable`, *optional*, defaults to [`tokenize_completions`]):
            Function that tokenizes a prompt with its thoughts. Each architecture has its own.

    Returns:
        `tuple[Dataset, dict[str, int]]`: The questions kept and the numbers of what was dropped. A question has `id`,
        `type` (0 if unknown), `lambda`, `cot_pot_share`, `repeat`, `prompt_format`, `weight` and `path` (for flat
        rows), and for each of `cot`, `pot`, `cot_pot` and `label` a list of tokenized thoughts, which is empty unless
        the objective learns that path.
        A flat row without a path has its completion as `label`. Dropped are `type_4` rows, `no_thought` rows and
        `too_long` thoughts.

    Raises:
        `ValueError`: If a column is missing, a value is out of range, the tokenizer has no EOS token or loses
            characters of a program, or no question is left.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"The tokenizer {tokenizer.name_or_path!r} has no EOS token, so the student would never learn to stop. "
            "Set `tokenizer.eos_token` to a token of its vocabulary."
        )
    _check_columns(dataset, args, name)
    is_flat = "completion" in dataset.column_names
    ids, count = Value("int32"), Value("int64")
    thoughts = List({"input_ids": List(ids), "start": ids})
    prepared = dataset.map(
        _prepare_flat_row if is_flat else _prepare_mixed_row,
        fn_kwargs={"tokenizer": tokenizer, "args": args, "name": name, "tokenize": tokenize}
        | ({"opening": template_opening(tokenizer)} if is_flat else {}),
        with_indices=True,
        remove_columns=dataset.column_names,
        features=Features(
            {"id": Value("string"), "type": ids, "lambda": Value("float64"), "repeat": ids, "weight": Value("float64")}
            | {"path": Value("string"), "prompt_format": Value("string"), "cot_pot_share": Value("float64")}
            | dict.fromkeys(PATHS_AND_LABEL, thoughts)
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


_OF_MIXED_ROWS = ("objective", "unsolved_path", "rationale_weight", "rationales_per_path")
"""Fields of [`MDConfig`] that choose among the thoughts of a question."""


def _check_columns(dataset: Dataset, args: MDConfig, name: str) -> None:
    objective = args.objective
    if "completion" in dataset.column_names:
        needed = ["prompt", "completion"]
        chosen = [(f.name, getattr(args, f.name), f.default) for f in fields(args) if f.name in _OF_MIXED_ROWS]
        if ignored := [f"{field}={value!r}" for field, value, default in chosen if value != default]:
            logger.warning_once(
                f"The {name} dataset has rows with `prompt` and `completion`, which are all learned by their weight. "
                f"Nothing follows from `{', '.join(ignored)}`: they choose among the thoughts of mixed rows."
            )
    elif args.weight_normalizer != "rows":
        raise InputError(
            f"`weight_normalizer={args.weight_normalizer!r}` is for rows with `prompt`, `completion` and `weight`. "
            f"The {name} dataset has others, whose loss is divided by the number of questions: leave it at 'rows'."
        )
    elif objective == "label_all":
        needed = ["question", "answer"]
    else:
        needed = ["question", "type", *PATHS, *(["answer"] if objective in LEARN_THE_ANSWER else [])]
        needed += [COT_POT] if objective == COT_POT else []
    if missing := [column for column in needed if column not in dataset.column_names]:
        advice = "Pass mixed rows, as `md-trl mix` writes them, or rows with `prompt` and `completion`"
        for column, how in OTHER_FORMS.items():
            if column in dataset.column_names:
                advice = how
        raise InputError(
            f"The {name} dataset has no column {', '.join(missing)}, which `objective={objective!r}` needs; it has "
            f"{', '.join(dataset.column_names)}. {advice}."
        )
    if objective == "label_all" and "type" in dataset.column_names and QuestionType.NEITHER not in dataset["type"]:
        logger.warning_once(
            "`objective='label_all'` learns the answer of every question of the task, but the rows given are mixed "
            "rows without type 4: questions that neither path solved are missing. Pass the task's own questions: "
            "`Dataset.from_list([vars(question) for question in md_trl.tasks.load_questions(task, 'train')])`."
        )


def _prepare_mixed_row(
    row: dict[str, Any],
    index: int,
    tokenizer: PreTrainedTokenizerBase,
    args: MDConfig,
    name: str,
    tokenize: Callable[..., list[dict[str, Any]]],
) -> dict[str, Any]:
    row = {"id": None, "type": None, "lambda": None, "cot_pot_share": None, "repeat": 1} | dict(row)
    row["id"] = row["id"] or f"{name}/{index}"
    where = f"Row {index} ({row['id']!r}) of the {name} dataset"
    _check_other_columns(row, where)
    _check_mixed_row(row, args.objective, where)
    if not isinstance(row["question"], str):
        if row.get("chat_template_kwargs"):
            raise InputError(f"{where} has `chat_template_kwargs`, but students are asked without. Leave them out.")
        row["question"] = check_messages(row["question"], "question", where)
        check_template(tokenizer, args.prompt_format, where)
    out = {"id": row["id"], "type": row["type"] or 0, "lambda": row["lambda"], "repeat": row["repeat"]}
    out |= {"weight": None, "path": None, "prompt_format": resolve_prompt_format(tokenizer, args.prompt_format)}
    out |= {path: [] for path in PATHS_AND_LABEL} | {"dropped": "", "too_long": 0}
    out["cot_pot_share"] = row["cot_pot_share"]

    def tokenized(path: str, texts: list[str]) -> list[dict[str, Any]]:
        thoughts = tokenize_thoughts(row["question"], path, texts, tokenizer, args.prompt_format, tokenize)
        if path in PROGRAM_PATHS and args.objective in LEARN_PROGRAMS:
            _check_programs(texts, thoughts, tokenizer, where)
        fitting = _drop_too_long(thoughts, args.max_length)
        out["too_long"] += len(thoughts) - len(fitting)
        return fitting

    if args.objective == "label_all":
        return out | {"label": tokenized("label", [row["answer"].strip()]), "repeat": 1}
    if row["type"] == QuestionType.NEITHER:
        return out | {"dropped": "type_4"}
    learned = {path: tokenized(path, thoughts_to_learn(row, path, args.unsolved_path)) for path in ALL_PATHS}
    # A question without any thought is dropped whatever the objective, so that all objectives see the same questions.
    if not any(learned.values()):
        return out | {"dropped": "no_thought"}
    paths = path_weights(args.objective, row["type"], row["lambda"], cot_pot_share=row["cot_pot_share"])
    if LABEL in paths:
        learned[LABEL] = tokenized(LABEL, [row["answer"].strip()])
    return out | {path: learned[path] for path in paths}


def _check_mixed_row(row: dict[str, Any], objective: str, where: str) -> None:
    if not isinstance(row["question"], str | list):
        raise InputError(f"{where} has question {row['question']!r}. It must be a string or a conversation.")
    if objective in LEARN_THE_ANSWER and not isinstance(row["answer"], str):
        raise InputError(f"{where} has answer {row['answer']!r}. It must be a string.")
    if objective == "label_all":
        return
    for path in ALL_PATHS:
        try:
            thoughts = check_thoughts(row, path)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        for thought in thoughts:
            if isinstance(thought, dict) and (thought.get("text") is None or thought.get("correct") is None):
                raise InputError(f"{where} has a {path} thought without `text` or `correct`: {thought!r}.")
    if not (isinstance(row["repeat"], int) and row["repeat"] >= 1):
        raise InputError(f"{where} has repeat {row['repeat']!r}. It must be a positive integer.")
    if row["type"] not in list(QuestionType):
        raise InputError(f"{where} has type {row['type']!r}. It must be 1, 2, 3 or 4.")
    if row["type"] == QuestionType.BOTH and objective == "md":
        if row["lambda"] is None or not 0 <= row["lambda"] <= 1:
            raise InputError(
                f"{where} is of type 3 and has lambda {row['lambda']!r}. It must be n2 / (n1 + n2), between 0 and 1, "
                "or set `objective='uniform'`, which does not use it."
            )
    share = row["cot_pot_share"]
    if not 0 <= (share or 0) <= 1 or (share is None and row.get(COT_POT) and objective in ("md", "uniform")):
        raise InputError(
            f"{where} has cot_pot_share {share!r}. It must be n3 / (n1 + n2 + n3), the share of `{COT_POT}` among the "
            f"correct thoughts of all paths. Without the column `{COT_POT}`, both are left out."
        )


def _check_other_columns(row: dict[str, Any], where: str) -> None:
    for column, reason in UNSUPPORTED_COLUMNS.items():
        if row.get(column):
            raise InputError(f"{where} has `{column}`, which is not supported. {reason}.")


def _prepare_flat_row(
    row: dict[str, Any],
    index: int,
    tokenizer: PreTrainedTokenizerBase,
    args: MDConfig,
    name: str,
    tokenize: Callable[..., list[dict[str, Any]]],
    opening: str,
) -> dict[str, Any]:
    row = {"id": None, "path": None, "weight": 1.0} | dict(row)
    row["id"] = row["id"] or f"{name}/{index}"
    where = f"Row {index} ({row['id']!r}) of the {name} dataset"
    _check_other_columns(row, where)
    _check_flat_row(row, where)
    prompt, completion, prompt_format = row["prompt"], row["completion"], args.prompt_format
    if not isinstance(prompt, str):
        prompt, completion = render_completion(row, tokenizer, prompt_format, where)
        prompt_format = "chat"
    elif prompt_format == "auto":
        prompt_format = "chat" if opening and prompt.startswith(opening) else "plain"
    # A prompt that a chat template formatted has its special tokens already.
    chat = prompt_format == "chat" or (bool(tokenizer.bos_token) and prompt.startswith(tokenizer.bos_token))
    completion = completion.removesuffix(tokenizer.eos_token)
    thoughts = tokenize(prompt, [completion], tokenizer, chat)
    if row["path"] in PROGRAM_PATHS:
        _check_programs([completion], thoughts, tokenizer, where)
    fitting = _drop_too_long(thoughts, args.max_length)
    out = {"id": row["id"], "type": 0, "lambda": None, "repeat": 1, "weight": row["weight"], "path": row["path"]}
    out |= {path: [] for path in PATHS_AND_LABEL} | {row["path"] or LABEL: fitting}
    out |= {"prompt_format": prompt_format, "cot_pot_share": None}
    return out | {"dropped": "" if fitting else "no_thought", "too_long": len(thoughts) - len(fitting)}


def _check_flat_row(row: dict[str, Any], where: str) -> None:
    if row["path"] not in (None, *PATHS_AND_LABEL):
        raise InputError(f"{where} has path {row['path']!r}. It must be {', '.join(ALL_PATHS)} or {LABEL}.")
    if not isinstance(row["weight"], (int, float)) or not 0 <= row["weight"] < float("inf"):
        raise InputError(f"{where} has weight {row['weight']!r}. It must be a non-negative finite number.")
    texts = [isinstance(row[column], str) for column in ("prompt", "completion")]
    if not all(texts) and (any(texts) or row["prompt"] is None or row["completion"] is None):
        raise InputError(
            f"{where} has prompt {row['prompt']!r:.80} and completion {row['completion']!r:.80}. Both must be texts, "
            "or both conversations."
        )


def _check_programs(
    programs: list[str], thoughts: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, where: str
) -> None:
    for program, thought in zip(programs, thoughts, strict=True):
        check_lossless(tokenizer, program, thought["input_ids"], where)


def _drop_too_long(thoughts: list[dict[str, Any]], max_length: int | None) -> list[dict[str, Any]]:
    return [thought for thought in thoughts if max_length is None or len(thought["input_ids"]) <= max_length]
