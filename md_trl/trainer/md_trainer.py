"""The trainer of causal students: mixed rows come in; a student that reasons in prose and in programs goes out."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.utils import logging
from trl import SFTTrainer

from ..errors import InputError
from .collator import MDCollator
from .md_config import MDConfig
from .objective import MixedObjective
from .prefix_tree import attention_mask, block_mask
from .preprocessing import as_dataset


logger = logging.get_logger(__name__)

MASKED_ATTENTION = ("sdpa", "eager", "flex_attention")
"""Attention implementations that accept an arbitrary mask, which the layouts `packed` and `tree` need."""


def sliding_window(config: PreTrainedConfig, max_length: int | None) -> int | None:
    r"""
    Return the sliding window that the masks of the layouts `packed` and `tree` must respect.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Text config of the model.
        max_length (`int` or `None`):
            Maximum length of a sequence.

    Returns:
        `int`, *optional*: Number of tokens that a token attends to, itself included; `None` if it attends to all
        tokens before it.

    Raises:
        `ValueError`: If some layers have a window and others have not, so that they would need different masks.
    """
    window = getattr(config, "sliding_window", None)
    if window is None or (max_length is not None and max_length <= window):
        return None
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    if kinds == {"full_attention"}:
        return None
    if kinds != {"sliding_attention"}:
        raise InputError(
            f"Some layers of this {config.model_type} model have a sliding window of {window} and others have none, "
            f"and `max_length={max_length}` is longer than the window. Set `max_length={window}` or "
            "`layout='padded'`."
        )
    return window


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
            Configuration for this trainer. If `None`, a default configuration is used.
        train_dataset ([`~datasets.Dataset`] or `list[dict]`):
            Rows to train on:

            - Mixed rows, one per question, as `md-trl mix` writes them. Rows of type 4 and thoughts longer than
              `max_length` are dropped and counted in `trainer.dropped`.
            - The questions of a task if `objective="label_all"`, with `question` and `answer`.
            - Path rows with `prompt`, `completion` and optionally `path` and `weight`, as [`path_rows`] returns them.
              The loss is then the mean of weight times cross-entropy over the rows.
        eval_dataset ([`~datasets.Dataset`] or `dict[str, Dataset]`, *optional*):
            Rows to evaluate on, of the same kinds. The evaluation loss is the objective over the whole dataset.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the student. If `None`, it is loaded with the model's name.
        callbacks (list of [`~transformers.TrainerCallback`], *optional*):
            Callbacks to customize the training loop.
        optimizers (`tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None]`, *optional*,
        defaults to `(None, None)`):
            Optimizer and scheduler to use.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            Quantization of a model given by name. Together with `peft_config` this is QLoRA.
        peft_config ([`~peft.PeftConfig`], *optional*):
            PEFT configuration used to wrap the model.

    Raises:
        `ValueError`: If the dataset leaves no question, the tokenizer has no EOS token or loses characters of a
            program, or the model adds a loss that is not part of the objective.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: MDConfig | None = None,
        train_dataset: Dataset | list[dict[str, Any]] | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: Any | None = None,
        peft_config: PeftConfig | None = None,
    ):
        if args is None:
            args = MDConfig(f"{(model if isinstance(model, str) else model.config.name_or_path).split('/')[-1]}-MD")
        elif not isinstance(args, MDConfig):
            raise TypeError(f"`args` must be an `MDConfig`, got `{type(args).__name__}`.")
        if peft_config is not None and peft_config.is_prompt_learning:
            raise InputError(
                f"`MDTrainer` does not support `{type(peft_config).__name__}`: its virtual tokens would shift the "
                "targets. Use LoRA."
            )
        super().__init__(
            model=model,
            args=args,
            train_dataset=as_dataset(train_dataset),
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        if self.aux_loss_enabled:
            raise InputError(
                f"{type(self.model).__name__} adds a load-balancing loss that is not part of the objective. Set "
                "`router_aux_loss_coef=0.0`."
            )
        text_config = self.model.config.get_text_config()
        self._attention = text_config._attn_implementation
        layout = args.layout
        if layout != "padded" and self._attention not in MASKED_ATTENTION:
            logger.warning(
                "`attn_implementation=%r` does not accept the masks of `layout=%r`, so `layout='padded'` is used "
                "instead. Load the model with one of %s to use %r.",
                self._attention,
                layout,
                ", ".join(MASKED_ATTENTION),
                layout,
            )
            layout = "padded"
        self._window = None if layout == "padded" else sliding_window(text_config, args.max_length)
        self.data_collator = MDCollator(self._tokenizer.pad_token_id, layout, args.token_reduction, args.max_length)

    # `SFTTrainer` calls it on every dataset, in `__init__` and in `evaluate`.
    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        # `evaluate` passes each dataset of a dictionary a second time.
        if {"label", "weight", "repeat"} <= set(dataset.column_names):
            return dataset
        return self._prepare_questions(dataset, processing_class, args, dataset_name)

    def _forward(self, model, inputs):
        if "ends" in inputs:
            make_mask = block_mask if self._attention == "flex_attention" else attention_mask
            mask = make_mask(inputs["ends"], inputs["position_ids"], self._window)
            if self._attention == "eager":  # it adds the mask to the scores
                mask = torch.where(mask, 0.0, torch.finfo(self.model.dtype).min).to(self.model.dtype)
        else:
            mask = inputs["attention_mask"]
        return model(
            input_ids=inputs["input_ids"],
            attention_mask=mask,
            position_ids=inputs["position_ids"],
            use_cache=False,
        )
