"""The card of a student: what it learned, with which objective and on which rows. It names no local path."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from datasets import Dataset
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import TrainerState
from transformers.trainer_utils import HubStrategy

from ..mixing import SOLVED_BY
from ..records import PATHS_AND_LABEL
from .md_config import MDConfig


SETTINGS = ("token_reduction", "layout", "max_length", "learning_rate", "seed")
"""Fields of [`MDConfig`] that the card lists, beside those of the rows that were trained on."""

GITIGNORE = """\
# Not uploaded: checkpoints with the state of the optimizer; training_args.bin, which holds local folders (and is a
# pickle); a store of thoughts and the results of evaluations, which name the local folder of the student.
checkpoint-*/
training_args.bin
*.db
*.db-*
/results/
"""
"""What is not uploaded from a student's folder. The Hub obeys the `.gitignore` of a commit."""


def gitignore(args: MDConfig) -> str:
    """Return the `.gitignore` of a student's folder, without checkpoints if `hub_strategy` asks for all of them."""
    return GITIGNORE.replace("checkpoint-*/\n", "") if args.hub_strategy == HubStrategy.ALL_CHECKPOINTS else GITIGNORE


def hub_id(name: str | None) -> str | None:
    r"""
    Return a name if it can be the id of a repository on the Hub.

    Args:
        name (`str`, *optional*):
            Hub id or local path.

    Returns:
        `str`, *optional*: The name; `None` for anything that exists locally or that the Hub would not accept as an id.
    """
    if not name or os.path.exists(name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def validation_table(args: MDConfig, state: TrainerState) -> str:
    r"""
    Format the figures of the last and of the best evaluation of a training.

    Args:
        args ([`MDConfig`]):
            Configuration of the training. The best evaluation is that by `metric_for_best_model`, by default the one
            with the lowest `eval_loss`; of several that are equally good, the first.
        state ([`~transformers.TrainerState`]):
            State of the trainer, with its logs.

    Returns:
        `str`: A Markdown table; empty if nothing was evaluated, or that figure is in no log. Accuracies are in
        percent.
    """
    figure = args.metric_for_best_model or "loss"
    figure = figure if figure.startswith("eval_") else f"eval_{figure}"
    logs = [log for log in state.log_history if figure in log]
    if not logs:
        return ""
    # As transformers decides it: a loss should be low, anything else high
    high = not figure.endswith("loss") if args.greater_is_better is None else args.greater_is_better
    last, best = logs[-1], (max if high else min)(logs, key=lambda log: log[figure])
    step = state.global_step
    if args.load_best_model_at_end and any("train_runtime" in log for log in state.log_history):
        # The training has ended with its best checkpoint. A later evaluation of it is logged with the last step.
        step = state.best_global_step
        last = best = next((log for log in logs if log["step"] == step), best)
    of_paths = [f"{path}_{kind}" for kind in ("loss", "accuracy") for path in PATHS_AND_LABEL]
    names = [f"eval_{name}" for name in ("loss", *of_paths, "joint_accuracy")]
    names = [name for name in dict.fromkeys([*names, figure]) if name in last]
    of_last = "this student" if last["step"] == step else "last evaluation"
    if last["step"] == best["step"]:
        rows = {f"{of_last}, the best by `{figure}`": last}
    else:
        rows = {of_last: last, f"the best by `{figure}`": best}
    lines = [f"| weights | step | {' | '.join(names)} |", "| --- | ---: |" + " ---: |" * len(names)]
    for name, log in rows.items():
        cells = [
            "" if of not in log else f"{100 * log[of]:.1f}" if of.endswith("_accuracy") else f"{log[of]:.4f}"
            for of in names
        ]
        lines.append(f"| {name} | {log['step']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def student_card(
    questions: Dataset,
    args: MDConfig,
    student: dict[str, Any],
    seen: dict[str, int],
    state: TrainerState,
    repo: str | None = None,
    validation_ids: Collection[str] = (),
    **card_data: Any,
) -> ModelCard:
    r"""
    Write the model card of a student.

    Args:
        questions ([`~datasets.Dataset`]):
            Training questions, as returned by [`prepare_questions`].
        args ([`MDConfig`]):
            Configuration of the training.
        student (`dict`):
            Settings of the student, as returned by [`student_settings`].
        seen (`dict[str, int]`):
            Number of questions and tokens the student was trained on, as returned by [`RunningTotals.seen`].
        state ([`~transformers.TrainerState`]):
            State of the trainer, with its logs.
        repo (`str`, *optional*):
            Hub id of the student, if it is on the Hub. Defaults to `args.hub_model_id`.
        validation_ids (`Collection[str]`, *optional*, defaults to `()`):
            Ids of the questions that were evaluated on during training. The card mentions them if they are not among
            the training questions.
        **card_data:
            Metadata of the card: `model_name`, `base_model`, `datasets`, `library_name` and `tags`.

    Returns:
        [`~huggingface_hub.ModelCard`]: The card.
    """
    is_flat = student["objective"] is None
    unit = "rows" if is_flat else "questions"
    of_rows = ("weight_normalizer",) if is_flat else ("unsolved_path", "rationales_per_path")
    last = next((log for log in reversed(state.log_history) if "num_questions" in log), {})
    settings = {
        "objective": "weights of rows" if is_flat else student["objective"],
        "prompt_format": student["prompt_format"],
        **{name: getattr(args, name) for name in (*of_rows, *SETTINGS)},
        "batch size": f"{args.train_batch_size} {unit} x {args.gradient_accumulation_steps} x {args.world_size}",
        f"{unit} seen": f"{seen['num_questions']:,}",
        "target tokens seen": f"{seen['num_target_tokens']:,}",
    }
    if validation_ids and not set(validation_ids) & set(questions["id"]):
        settings[f"validation {unit}"] = f"{len(validation_ids):,}, none of which is a training question"
        if args.load_best_model_at_end:
            settings["best checkpoint by"] = args.metric_for_best_model
    if not student["paths"]:
        card_data["tags"] = [tag for tag in card_data["tags"] if tag != "mixed-distillation"] + ["sft"]
    figures = ("loss", *(f"{path}_loss" for path in PATHS_AND_LABEL if student["paths"]))
    return ModelCard.from_template(
        ModelCardData(**card_data),
        template_path=str(files("md_trl") / "hub_cards" / "student" / "README.md"),
        is_adapter=card_data["library_name"] == "peft",
        hub_model_id=repo or hub_id(args.hub_model_id),
        dataset_name=card_data["datasets"],
        paths=student["paths"],
        prompt_format=student["prompt_format"],
        triggers=student["triggers"],
        settings=settings,
        flat=_flat_rows(questions) if is_flat else None,
        types=[] if is_flat else _types(questions),
        mean_lambda=_mean_lambda(questions),
        validation=validation_table(args, state),
        final=", ".join(f"{name} {last[name]:.4f}" for name in figures if name in last),
        versions={name: version(name) for name in ("md_trl", "trl", "transformers", "torch", "datasets", "peft")},
    )


def _types(questions: Dataset) -> list[dict[str, Any]]:
    count, occurrences = Counter(questions["type"]), Counter()
    for type_, repeat in zip(questions["type"], questions["repeat"], strict=True):
        occurrences[type_] += repeat
    return [
        {
            "type": t,
            "solved_by": SOLVED_BY.get(t, "not known"),
            "questions": f"{count[t]:,}",
            "occurrences": f"{occurrences[t]:,}",
        }
        for t in sorted(count)
    ]


def _mean_lambda(questions: Dataset) -> float | None:
    both = [value for type_, value in zip(questions["type"], questions["lambda"], strict=True) if type_ == 3]
    lambdas = [value for value in both if value is not None]
    return sum(lambdas) / len(lambdas) if lambdas else None


def _flat_rows(questions: Dataset) -> list[dict[str, Any]]:
    weights: dict[str | None, list[float]] = {}
    for path, weight in zip(questions["path"], questions["weight"], strict=True):
        weights.setdefault(path, []).append(weight)
    return [
        {
            "path": path,
            "rows": f"{len(of_path):,}",
            "weights": f"{min(of_path):.4g}"
            if min(of_path) == max(of_path)
            else f"{min(of_path):.4g} to {max(of_path):.4g}, {sum(of_path) / len(of_path):.4g} on average",
        }
        for path, of_path in sorted(weights.items(), key=lambda item: item[0] or "")
    ]
