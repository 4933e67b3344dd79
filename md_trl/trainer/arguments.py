"""Check and convert the arguments that a [`~trl.SFTTrainer`] takes."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any, TypeVar

from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel, PrefixTuningConfig
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainingArguments,
)
from transformers.utils import logging

from ..errors import InputError
from .md_config import MDConfig


logger = logging.get_logger(__name__)

Config = TypeVar("Config", bound=MDConfig)

_OWN_LOSS = "the loss is the objective. Subclass the trainer and override `compute_loss`"
_NO_PREDICTIONS = (
    "the evaluation keeps no predictions. It logs `eval_loss`, `eval_mean_token_accuracy` and others; to score "
    "answers, save the student and use `md-trl eval` or `MixedReasoner`"
)

UNSUPPORTED_ARGUMENTS = {
    "data_collator": "rows are laid out by its own. Set `layout` instead",
    "compute_loss_func": _OWN_LOSS,
    "compute_metrics": _NO_PREDICTIONS,
    "preprocess_logits_for_metrics": _NO_PREDICTIONS,
    "formatting_func": "prompts are never targets. Give the dataset `prompt` and `completion` with `dataset.map`",
}
"""Arguments of [`~trl.SFTTrainer`] that the trainers refuse, and why."""


def as_name(model: Any) -> Any:
    """Return the name or folder of a model as a text if it is a path, and a loaded model as it is."""
    return os.fspath(model) if isinstance(model, os.PathLike) else model


def as_config(args: TrainingArguments | None, config_class: type[Config], model: str | PreTrainedModel) -> Config:
    r"""
    Return the configuration of a trainer, converted from an [`~trl.SFTConfig`] or other training arguments if need be.

    Every value of `args` is kept, except `remove_unused_columns`, which must be off.

    Args:
        args ([`~transformers.TrainingArguments`], *optional*):
            Configuration given to the trainer.
        config_class (`type`):
            [`MDConfig`] or [`MDSeq2SeqConfig`].
        model (`str` or [`~transformers.PreTrainedModel`]):
            Model given to the trainer, after which the output folder is named if there is no configuration.

    Returns:
        `config_class`: The configuration.

    Raises:
        `TypeError`: If `args` is something else.
        `ValueError`: If a value is not supported.
    """
    if args is None:
        name = model if isinstance(model, str) else model.config.name_or_path
        return config_class(f"{name.split('/')[-1]}-MD")
    if isinstance(args, config_class):
        return args
    if not isinstance(args, TrainingArguments):
        raise TypeError(
            f"`args` must be an `{config_class.__name__}`, an `SFTConfig` or `TrainingArguments`, got "
            f"`{type(args).__name__}`."
        )
    # `to_dict` would mask the values of all fields whose names end in `_token`.
    known = {field.name for field in fields(config_class) if field.init}
    values = {field.name: getattr(args, field.name) for field in fields(args) if field.name in known}
    if not isinstance(args, MDConfig):
        del values["remove_unused_columns"]
    return config_class(**values)


def check_arguments(trainer: str, **arguments: Any) -> None:
    r"""
    Refuse arguments that a trainer cannot honor.

    Args:
        trainer (`str`):
            Name of the trainer.
        **arguments:
            Values of `UNSUPPORTED_ARGUMENTS`.

    Raises:
        `ValueError`: If one of them is given.
    """
    for name, value in arguments.items():
        if value is not None:
            raise InputError(f"`{trainer}` does not support `{name}`: {UNSUPPORTED_ARGUMENTS[name]}.")


def check_adapter(trainer: str, model: str | PreTrainedModel | PeftModel, peft_config: PeftConfig | None) -> bool:
    r"""
    Refuse adapters that put tokens of their own into a row.

    Args:
        trainer (`str`):
            Name of the trainer.
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model given to the trainer.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter to wrap it with.

    Returns:
        `bool`: Whether the adapter is prefix tuning, which needs a row for each thought.

    Raises:
        `ValueError`: If the adapter learns prompts in another way.
    """
    if isinstance(model, PeftModel):
        peft_config = model.active_peft_config
    if peft_config is None or not peft_config.is_prompt_learning:
        return False
    if isinstance(peft_config, PrefixTuningConfig):
        return True
    raise InputError(
        f"`{trainer}` does not support `{type(peft_config).__name__}`: its virtual tokens would shift the targets. "
        "Use LoRA or prefix tuning."
    )


def warn_about_router(config: PreTrainedConfig) -> None:
    r"""
    Say that a Mixture of Experts is trained without its load-balancing loss.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Text config of the student.
    """
    if "router_aux_loss_coef" in config.to_dict():
        logger.warning(
            "This %s model is trained without its load-balancing loss, which is not part of the objective "
            "(`router_aux_loss_coef=0.0`).",
            config.model_type,
        )


def check_kind(rows: Any, name: str, may_stream: bool = False) -> None:
    r"""
    Check that rows given to a trainer are a dataset, before anything asks for their truth value.

    Args:
        rows (`Any`), name (`str`), may_stream (`bool`, *optional*, defaults to `False`):
            As in [`as_dataset`].

    Raises:
        `TypeError`: If they are something else.
    """
    if isinstance(rows, (Dataset, IterableDataset) if may_stream else Dataset):
        return
    how = {
        "IterableDataset": "Load it without `streaming=True`: the number of questions must be known before training",
        "DataFrame": "Convert it with `datasets.Dataset.from_pandas(rows)`",
        "str": "Load it with `datasets.load_dataset`, and pass one of its splits",
    }.get(type(rows).__name__, "Convert it with `datasets.Dataset.from_list`")
    raise TypeError(
        f"`{name}_dataset` must be a `datasets.Dataset` or a list of rows, got `{type(rows).__name__}`. {how}."
    )


def as_dataset(rows: Any, name: str, may_stream: bool = False) -> Dataset:
    r"""
    Return rows as a dataset of known length.

    Args:
        rows ([`~datasets.Dataset`] or [`~datasets.IterableDataset`] or `list[dict]`):
            Rows given to a trainer.
        name (`str`):
            Name of the dataset in error messages: `"train"`, `"eval"`, or what a key of `eval_dataset` says.
        may_stream (`bool`, *optional*, defaults to `False`):
            Whether to read a stream, to its end.

    Returns:
        [`~datasets.Dataset`]: The rows.

    Raises:
        `TypeError`: If they are something else.
        `ValueError`: If there are none, they have images, or a function transforms them each time they are read.
    """
    if rows is None:
        raise InputError(
            f"`{name}_dataset` is missing. Pass a `datasets.Dataset` or a list of mixed rows, as `md-trl mix` writes "
            "them, or of rows with `prompt` and `completion`."
        )
    if isinstance(rows, IterableDataset) and may_stream:
        rows = Dataset.from_list(list(rows), features=rows.features)
    if isinstance(rows, list):
        if wrong := [row for row in rows if not isinstance(row, dict)]:
            raise TypeError(f"`{name}_dataset` has {wrong[0]!r:.60} as a row. Every row is a dictionary.")
        rows = Dataset.from_list(rows)
    if isinstance(rows, dict):
        raise TypeError(f"`{name}_dataset` has the splits {', '.join(map(repr, rows))}. Pass one of them.")
    check_kind(rows, name)
    if rows.format["type"] == "custom":
        raise InputError(
            f"`{name}_dataset` has a transform, which would run only once, when rows are tokenized. Apply it with "
            "`dataset.map`, and call `dataset.reset_format()`."
        )
    if columns := sorted({"image", "images"} & set(rows.column_names)):
        raise InputError(
            f"`{name}_dataset` has the column `{columns[0]}`, and only text is trained on. Remove it with "
            f"`dataset.remove_columns({columns[0]!r})`."
        )
    if not len(rows):
        raise InputError(f"`{name}_dataset` holds no rows. Filter less of them out.")
    # As Python objects, whatever `with_format` was asked for
    return rows.with_format(None)


def as_tokenizer(processing_class: PreTrainedTokenizerBase | ProcessorMixin) -> PreTrainedTokenizerBase:
    r"""
    Return the tokenizer of a student, which the processor of a vision-language model contains.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]):
            Tokenizer or processor.

    Returns:
        [`~transformers.PreTrainedTokenizerBase`]: The tokenizer, with the processor's chat template.
    """
    if not isinstance(processing_class, ProcessorMixin):
        return processing_class
    tokenizer = processing_class.tokenizer
    tokenizer.chat_template = processing_class.chat_template or tokenizer.chat_template
    return tokenizer
