"""The trainer of causal students."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import send_to_device
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from transformers import (
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging
from trl import SFTTrainer

from .arguments import as_config, as_dataset, as_name, check_adapter, check_arguments, check_kind, warn_about_router
from .attention import DENSE_ATTENTION, attention_masks, layer_reaches
from .collator import MDCollator
from .layout import choose_layout, first_position, is_recurrent
from .md_config import MDConfig
from .objective import MixedObjective
from .recurrence import RECURRENT_MASKS, tree_paths
from .varlen_attention import NO_MASK, unsupported_attention


logger = logging.get_logger(__name__)


class MDTrainer(MixedObjective, SFTTrainer):
    r"""
    Trainer for Mixed Distillation: a student learns to reason both in prose (CoT) and in programs (PoT).

    The method is described in [Mixed Distillation Helps Smaller Language Models Reason
    Better](https://huggingface.co/papers/2312.10730), Sec. 3.2. The trainer minimizes

        L = (1/N) * sum_i sum_p w(i,p) * l(i,p)

    where l(i,p) is the cross-entropy of the drawn thoughts of path p for question i, w(i,p) is the weight of the path
    (Eq. 2 and Eq. 4), and N is the number of questions, with repeats, in the whole optimizer step. Neither the layout
    nor the split into micro-batches, accumulation steps and processes changes the loss or its gradients.

    Example:

    ```python
    >>> from datasets import load_dataset
    >>> from md_trl import MDConfig, MDTrainer

    >>> trainer = MDTrainer(
    ...     model="HuggingFaceTB/SmolLM2-135M-Instruct",
    ...     args=MDConfig(output_dir="smollm2-svamp"),
    ...     train_dataset=load_dataset("md/mixed-thoughts", "svamp", split="train"),
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model to train, or its name or folder, as in [`~trl.SFTTrainer`].
        args ([`MDConfig`], *optional*):
            Configuration for this trainer. If `None`, a default configuration is used. An [`~trl.SFTConfig`] or
            [`~transformers.TrainingArguments`] is converted, with the defaults of [`MDConfig`] for what it lacks.
        train_dataset ([`~datasets.Dataset`] or `list[dict]`):
            Rows to train on:

            - Mixed rows, one per question, as `md-trl mix` writes them. Rows of type 4 and thoughts longer than
              `max_length` are dropped and counted in `trainer.dropped`.
            - The questions of a task if `objective="label_all"`, with `question` and `answer`.
            - Flat rows with `prompt`, `completion` and optionally `path` and `weight`, as [`path_rows`] returns them.
              The loss is then the mean of weight times cross-entropy over the rows, see `weight_normalizer`.

            Prompts, completions, questions and thoughts are texts or conversations (lists of messages).
        eval_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`] or `list[dict]` or `dict`, *optional*):
            Rows to evaluate on, of the same kinds, or several such datasets by name. A stream is read to its end. The
            evaluation loss is the objective over the whole dataset.
        processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`], *optional*):
            Tokenizer of the student, or the processor of a vision-language model, which is trained on text. If `None`,
            it is loaded with the model's name.
        callbacks (list of [`~transformers.TrainerCallback`], *optional*):
            Callbacks to customize the training loop.
        optimizers (`tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None]`, *optional*,
        defaults to `(None, None)`):
            Optimizer and scheduler to use.
        optimizer_cls_and_kwargs (`tuple[type[torch.optim.Optimizer], dict[str, Any]]`, *optional*):
            Class of the optimizer and its arguments, instead of `optim` and `optim_args`.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            Quantization of a model given by name. Together with `peft_config` this is QLoRA.
        peft_config ([`~peft.PeftConfig`], *optional*):
            PEFT configuration used to wrap the model. Prefix tuning trains in padded rows; other methods that learn a
            prompt are refused.

    The other arguments of [`~trl.SFTTrainer`] have their place, so that positional calls keep their meaning, and are
    refused with a reason if they are given: `data_collator`, `compute_loss_func`, `compute_metrics`,
    `preprocess_logits_for_metrics` and `formatting_func`.

    Raises:
        `ValueError`: If the dataset leaves no question, the tokenizer has no EOS token or loses characters of a
            program, or the model adds a loss that is not part of the objective.
    """

    # The order is that of `SFTTrainer`.
    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: MDConfig | TrainingArguments | None = None,
        data_collator: None = None,
        train_dataset: Dataset | list[dict[str, Any]] | None = None,
        eval_dataset: Dataset
        | IterableDataset
        | list[dict[str, Any]]
        | dict[str, Dataset | IterableDataset | list[dict[str, Any]]]
        | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        compute_loss_func: None = None,
        compute_metrics: None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: None = None,
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        formatting_func: None = None,
    ):
        check_arguments(
            type(self).__name__,
            data_collator=data_collator,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            formatting_func=formatting_func,
        )
        model = as_name(model)
        args = as_config(args, MDConfig, model)
        has_prefix = check_adapter(type(self).__name__, model, peft_config)
        if not isinstance(eval_dataset, dict | list | None):
            check_kind(eval_dataset, "eval", may_stream=True)
        super().__init__(
            model=model,
            args=args,
            train_dataset=as_dataset(train_dataset, "train"),
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        text_config = self.model.config.get_text_config()
        warn_about_router(text_config)
        self._attention = text_config._attn_implementation
        self._reaches = layer_reaches(text_config, args.max_length)
        self._first_position = first_position(self.model)
        self._is_recurrent = is_recurrent(self.model)
        unsupported = unsupported_attention(self._attention, self._reaches)
        if has_prefix:
            unsupported = "Prefix tuning puts its prefix before each row, so a row must be one thought"
        with self.accelerator.autocast():
            layout = choose_layout(
                self.model, args.layout, args.check_layout, self._tokenizer, self._loss_in, unsupported
            )
        self.data_collator = self._collator(layout, args.token_reduction)

    def _collator(self, layout: str, token_reduction: str) -> MDCollator:
        max_row_tokens = self.args.max_row_tokens
        if max_row_tokens is None and self._attention in DENSE_ATTENTION:
            max_row_tokens = self.args.max_length
        return MDCollator(self._tokenizer.pad_token_id, layout, token_reduction, max_row_tokens, self._attention)

    # `choose_layout` tries a layout with it.
    def _loss_in(self, layout: str, thoughts: list[dict[str, Any]]) -> torch.Tensor:
        batch = self._collator(layout, "sum")([{"type": 0, "lambda": None, "divisor": 1, "thoughts": thoughts}])
        return self.compute_loss(self.model, send_to_device(batch, self.model.device))

    # `SFTTrainer` calls it on every dataset, in `__init__` and in `evaluate`.
    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        return self._prepare_questions(dataset, processing_class, args, dataset_name)

    def _forward(self, model, inputs):
        # Padded rows count positions as the model does, whatever it begins with.
        if "ends" not in inputs:
            return model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        ends, positions = inputs["ends"], inputs["position_ids"]
        others = dict.fromkeys(RECURRENT_MASKS, tree_paths(ends, positions)) if self._is_recurrent else None
        arguments = {}
        if "segments" in inputs:
            arguments["segments"] = inputs["segments"]
            mask = NO_MASK.to(ends.device)
            if others is not None:
                mask = dict.fromkeys(self._reaches, mask) | others
        else:
            mask = attention_masks(ends, positions, self._reaches, self._attention, self.model.dtype, others)
        return model(
            input_ids=inputs["input_ids"],
            attention_mask=mask,
            position_ids=positions + self._first_position,
            use_cache=False,
            **arguments,
        )
