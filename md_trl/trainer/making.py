"""Create the trainer that a student needs: causal or encoder-decoder, with a new adapter or one to train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from datasets import Dataset
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSeq2SeqLM, PeftConfig
from transformers import AutoConfig, AutoTokenizer, TrainerCallback
from transformers.utils import find_adapter_config_file
from trl import ModelConfig, get_peft_config, get_quantization_config

from .md_config import MDConfig
from .md_seq2seq_config import MDSeq2SeqConfig
from .md_seq2seq_trainer import MDSeq2SeqTrainer
from .md_trainer import MDTrainer


def make_trainer(
    model: str,
    args: MDConfig,
    model_args: ModelConfig,
    train_dataset: Dataset,
    eval_dataset: Dataset | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> MDTrainer | MDSeq2SeqTrainer:
    r"""
    Create the trainer of a causal or an encoder-decoder student.

    Args:
        model (`str`):
            Folder or Hub id of the model to train. An adapter is trained on, and no new one is added.
        args ([`MDConfig`]):
            Configuration of the training.
        model_args ([`~trl.ModelConfig`]):
            How to load the model, and which adapter to add. Its `model_name_or_path` is not read.
        train_dataset ([`~datasets.Dataset`]), eval_dataset ([`~datasets.Dataset`], *optional*):
            Rows to train and to evaluate on.
        callbacks (`Sequence[TrainerCallback]`, *optional*, defaults to `()`):
            Callbacks of the training loop.

    Returns:
        [`MDTrainer`] or [`MDSeq2SeqTrainer`]: The trainer.
    """
    is_adapter = find_adapter_config_file(model) is not None
    base = PeftConfig.from_pretrained(model).base_model_name_or_path if is_adapter else model
    config = AutoConfig.from_pretrained(
        base,
        revision=None if is_adapter else model_args.model_revision,
        trust_remote_code=args.trust_remote_code,
    )
    init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    } | (args.model_init_kwargs or {})
    trainer_class = MDTrainer
    if config.is_encoder_decoder:
        # `to_dict` would mask the values of all fields whose names end in `_token`.
        args = MDSeq2SeqConfig(**{f.name: getattr(args, f.name) for f in fields(args) if f.init})
        trainer_class = MDSeq2SeqTrainer
    given = {"train_dataset": train_dataset, "eval_dataset": eval_dataset, "callbacks": list(callbacks)}
    quantization_config = get_quantization_config(model_args)
    if is_adapter:
        auto_class = AutoPeftModelForSeq2SeqLM if config.is_encoder_decoder else AutoPeftModelForCausalLM
        del init_kwargs["revision"]
        loaded = auto_class.from_pretrained(
            model, is_trainable=True, quantization_config=quantization_config, **init_kwargs
        )
        args.model_init_kwargs = None
        return trainer_class(model=loaded, args=args, processing_class=AutoTokenizer.from_pretrained(model), **given)
    args.model_init_kwargs = init_kwargs
    return trainer_class(
        model=model,
        args=args,
        quantization_config=quantization_config,
        peft_config=get_peft_config(model_args),
        **given,
    )
