"""The card of a student: what it was taught, by which objective, on which questions."""

from __future__ import annotations

from collections import Counter
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from datasets import Dataset
from huggingface_hub import ModelCard, ModelCardData

from .md_config import MDConfig


MEANING = {0: "not asked", 1: "PoT only", 2: "CoT only", 3: "both"}


def student_card(
    questions: Dataset,
    args: MDConfig,
    log_history: list[dict[str, Any]],
    model_name: str | None,
    hub_model_id: str | None,
    base_model: str | None,
    dataset_name: str | None,
    prompt_format: str,
    tags: list[str],
) -> ModelCard:
    r"""
    Write the model card of a student.

    Args:
        questions ([`~datasets.Dataset`]):
            The training questions, as [`prepare_questions`] returns them.
        args ([`MDConfig`]):
            How it was trained.
        log_history (`list[dict]`):
            The trainer's logs.
        model_name (`str`, *optional*), hub_model_id (`str`, *optional*), base_model (`str`, *optional*):
            Names of the student, its repository and the model it was trained from.
        dataset_name (`str`, *optional*):
            Hub id of the dataset.
        prompt_format (`str`):
            `"plain"` or `"chat"`.
        tags (`list[str]`):
            Tags of the card.

    Returns:
        [`~huggingface_hub.ModelCard`]
    """
    count, occurrences = Counter(questions["type"]), Counter()
    for type_, repeat in zip(questions["type"], questions["repeat"], strict=True):
        occurrences[type_] += repeat
    lambdas = [value for type_, value in zip(questions["type"], questions["lambda"], strict=True) if type_ == 3]
    lambdas = [value for value in lambdas if value is not None]
    last = next((log for log in reversed(log_history) if "num_tokens" in log), {})
    settings = {
        name: getattr(args, name)
        for name in ("objective", "unsolved_path", "token_reduction", "rationales_per_path", "layout", "max_length")
    } | {
        "prompt_format": prompt_format,
        "learning_rate": args.learning_rate,
        "batch size": f"{args.train_batch_size} questions x {args.gradient_accumulation_steps} x {args.world_size}",
        "questions seen": f"{last.get('num_questions', 0):,.0f}",
        "tokens seen": f"{last.get('num_tokens', 0):,.0f}",
        "seed": args.seed,
    }
    return ModelCard.from_template(
        ModelCardData(
            base_model=base_model,
            datasets=dataset_name,
            library_name="transformers",
            model_name=model_name,
            tags=tags,
        ),
        template_path=str(files("md_trl") / "hub_cards" / "student" / "README.md"),
        model_name=model_name,
        hub_model_id=hub_model_id,
        base_model=base_model,
        dataset_name=dataset_name,
        prompt_format=prompt_format,
        settings=settings,
        types=[
            {"type": t, "meaning": MEANING[t], "questions": f"{count[t]:,}", "occurrences": f"{occurrences[t]:,}"}
            for t in sorted(count)
        ],
        mean_lambda=sum(lambdas) / len(lambdas) if lambdas else None,
        final=", ".join(f"{k} {last[k]:.4f}" for k in ("loss", "cot_loss", "pot_loss", "label_loss") if k in last),
        versions={name: version(name) for name in ("trl", "transformers", "torch", "datasets", "peft")}
        | {"md_trl": version("md_trl")},
    )
