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
from .mixed_objective import MixedObjective
from .prefix_tree import attention_mask, block_mask


logger = logging.get_logger(__name__)

MASKED_ATTENTION = ("sdpa", "eager", "flex_attention")
"""Attention implementations that take a mask of who attends to whom, which the layouts `packed` and `tree` need."""


def sliding_window(config: PreTrainedConfig, max_length: int | None) -> int | None:
    r"""
    The sliding window that the masks of the layouts `packed` and `tree` must honour.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Text config of the model.
        max_length (`int` or `None`):
            Longest sequence.

    Returns:
        `int`, *optional*: tokens that a token sees, itself included; `None` if it sees all before it.

    Raises:
        `ValueError`: layers of several kinds, of which one would need another mask than the others.
    """
    window = getattr(config, "sliding_window", None)
    if window is None or (max_length is not None and max_length <= window):
        return None
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    if kinds == {"full_attention"}:
        return None
    if kinds != {"sliding_attention"}:
        raise InputError(
            f"This {config.model_type} has layers with a sliding window of {window} and layers without, and "
            f"`max_length={max_length}` is longer. Set `max_length` to {window} at most, or `layout='padded'`."
        )
    return window


class MDTrainer(MixedObjective, SFTTrainer):
    r"""
    Trainer for Mixed Distillation: a student learns to reason in prose and in programs at once.

    It minimizes, over the N questions (with repeats) of a whole optimizer step, whatever micro-batches, accumulation
    steps and processes they are split into,

        L = (1/N) * sum_i sum_p w(i,p) * l(i,p)

    with l(i,p) the cross-entropy of the chosen thoughts of path p, and the weights w(i,p) of Eq. 2 and Eq. 4 of [Mixed
    Distillation Helps Smaller Language Models Reason Better](https://huggingface.co/papers/2312.10730), Sec. 3.2.

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
            Causal language model to train, as in [`~trl.SFTTrainer`].
        args ([`MDConfig`], *optional*):
            Configuration for this trainer. If `None`, a default configuration is used.
        train_dataset ([`~datasets.Dataset`] or `list[dict]`):
            Mixed rows, one a question, as `md-trl mix` writes them. Rows of type 4 are dropped and counted in
            `trainer.dropped`, as are thoughts longer than `max_length`. Flat rows of `prompt`, `completion` and
            `weight` are accepted as well: the loss is then the mean over rows of weight times cross-entropy.
        eval_dataset ([`~datasets.Dataset`] or `dict[str, Dataset]`, *optional*):
            Mixed rows for evaluation. The evaluation loss is the same quotient over the whole dataset.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the student. If `None`, it is loaded from the model's name.
        callbacks (list of [`~transformers.TrainerCallback`], *optional*):
            Callbacks to customize the training loop.
        optimizers (`tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None]`, *optional*,
        defaults to `(None, None)`):
            Optimizer and scheduler to use.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            Quantization for a model given by name; with `peft_config`, QLoRA.
        peft_config ([`~peft.PeftConfig`], *optional*):
            PEFT configuration used to wrap the model.

    Raises:
        `ValueError`: the dataset leaves no question, the tokenizer has no EOS or loses characters of programs, or the
            model's own loss has a part that the objective does not know.
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
        train_dataset = self._as_dataset(train_dataset)
        if peft_config is not None and peft_config.is_prompt_learning:
            raise InputError(
                f"`MDTrainer` does not support `{type(peft_config).__name__}`: virtual tokens shift the targets. Use "
                "LoRA."
            )
        self.dropped: dict[str, dict[str, int]] = {}
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        if self.aux_loss_enabled:
            raise InputError(
                f"{type(self.model).__name__} adds a load-balancing loss that is no part of the objective. Set "
                "`router_aux_loss_coef=0.0`."
            )
        text_config = self.model.config.get_text_config()
        self._attention = text_config._attn_implementation
        layout = args.layout
        if layout != "padded" and self._attention not in MASKED_ATTENTION:
            logger.warning(
                "`attn_implementation=%r` takes no mask of who attends to whom, so `layout='padded'` replaces %r. "
                "Load the model with one of %s to have it.",
                self._attention,
                layout,
                ", ".join(MASKED_ATTENTION),
            )
            layout = "padded"
        self._window = None if layout == "padded" else sliding_window(text_config, args.max_length)
        self.data_collator = MDCollator(self._tokenizer.pad_token_id, layout, args.token_reduction, args.max_length)
        self._hook_lm_head()

    # What `SFTTrainer` calls on every dataset, in `__init__` and in `evaluate`
    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        # `evaluate` brings the datasets of a dictionary a second time
        if {"label", "weight", "repeat"} <= set(dataset.column_names):
            return dataset
        return self._prepare_questions(dataset, processing_class, args, dataset_name)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if "ends" in inputs:
            make_mask = block_mask if self._attention == "flex_attention" else attention_mask
            mask = make_mask(inputs["ends"], inputs["position_ids"], self._window)
            if self._attention == "eager":  # adds its mask to the scores
                mask = torch.where(mask, 0.0, torch.finfo(self.model.dtype).min).to(self.model.dtype)
        else:
            mask = inputs["attention_mask"]
        self._parents = inputs["parents"]
        try:
            outputs = model(
                input_ids=inputs["input_ids"],
                attention_mask=mask,
                position_ids=inputs["position_ids"],
                use_cache=False,
            )
        finally:
            self._parents = None
        loss = self._objective(inputs, outputs, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss
