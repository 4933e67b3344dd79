from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import PeftConfig
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.utils import logging
from trl import SFTTrainer

from .collator import PATH_NAMES, MDCollator
from .md_config import MDConfig
from .prefix_tree import attention_mask, block_mask
from .thoughts import DrawnQuestions, QuestionSampler, prepare_questions


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
        raise ValueError(
            f"This {config.model_type} has layers with a sliding window of {window} and layers without, and "
            f"`max_length={max_length}` is longer. Set `max_length` to {window} at most, or `layout='padded'`."
        )
    return window


class MDTrainer(SFTTrainer):
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
        train_dataset ([`~datasets.Dataset`]):
            Mixed rows, one a question, as `md-trl mix` writes them. Rows of type 4 are dropped and counted in
            `trainer.dropped`, as are thoughts longer than `max_length`.
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

    _tag_names = ["trl", "md_trl", "mixed-distillation"]
    _name = "Mixed Distillation"
    _paper = {
        "title": "Mixed Distillation Helps Smaller Language Models Reason Better",
        "id": "2312.10730",
    }
    # `compute_loss` divides by the questions of the whole optimizer step, see `_get_num_items_in_batch`
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: MDConfig | None = None,
        train_dataset: Dataset | None = None,
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
        if not isinstance(train_dataset, Dataset):
            raise TypeError(
                f"`train_dataset` must be a `datasets.Dataset` of mixed rows, got `{type(train_dataset).__name__}`. A "
                "stream has no length, which the balance of types needs: load the dataset without `streaming=True`."
            )
        if peft_config is not None and peft_config.is_prompt_learning:
            raise ValueError(
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
            raise ValueError(
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
        self._parents = None
        self.model.get_output_embeddings().register_forward_pre_hook(self._gather_parents)
        # Sums and counts since the last log, on this process; quotients are taken over all processes in `log`
        self._totals = {mode: defaultdict(float) for mode in ("train", "eval")}

    # What `SFTTrainer` calls on every dataset, in `__init__` and in `evaluate`
    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        questions, self.dropped[dataset_name] = prepare_questions(dataset, processing_class, args, dataset_name)
        if any(self.dropped[dataset_name].values()):
            logger.warning(
                "The %s dataset keeps %d of %d questions; dropped: %s",
                dataset_name,
                len(questions),
                len(dataset),
                ", ".join(f"{count} {reason}" for reason, count in self.dropped[dataset_name].items() if count),
            )
        return questions

    def _get_dataloader(self, dataset, *args, **kwargs):
        return super()._get_dataloader(DrawnQuestions(dataset, self.args), *args, **kwargs)

    def _get_train_sampler(self, train_dataset: DrawnQuestions) -> QuestionSampler:
        self._train_sampler = QuestionSampler(
            train_dataset,
            multiple_of=self.args.train_batch_size * self.accelerator.num_processes // self.get_tp_size(),
            shuffle=True,
            drop_last=self.args.dataloader_drop_last,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
        )
        return self._train_sampler

    # `accelerate` does not find the sampler below the batches that a resumed epoch skips
    def _run_epoch(self, *, epoch: int, **kwargs):
        self._train_sampler.set_epoch(epoch)
        return super()._run_epoch(epoch=epoch, **kwargs)

    def _get_eval_sampler(self, eval_dataset: DrawnQuestions) -> QuestionSampler:
        return QuestionSampler(
            eval_dataset,
            multiple_of=self.args.eval_batch_size * self.accelerator.num_processes // self.get_tp_size(),
            shuffle=False,
        )

    # N of the objective: the questions of the whole optimizer step, over accumulation steps and processes
    def _get_num_items_in_batch(self, batch_samples: list[dict[str, torch.Tensor]], device: torch.device):
        count = sum(batch["num_questions"].sum() for batch in batch_samples)
        return self.accelerator.gather(torch.as_tensor(count, device=device)).sum() / self.get_tp_size()

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
        logits = outputs.logits.flatten(0, 1)
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        losses = F.cross_entropy(logits, inputs["targets"], reduction="none")
        weighted = losses * inputs["weights"]
        if num_items_in_batch is None:
            loss = weighted.sum() / inputs["num_questions"].sum().clamp(min=1)
        else:
            # DDP averages the gradients over processes, and N already counts the questions of all of them
            loss = weighted.sum() / num_items_in_batch.clamp(min=1)
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        with torch.no_grad():
            self._count(inputs, logits, losses, weighted)
        return (loss, outputs) if return_outputs else loss

    # A hook before the LM head: only the states that edges start from meet it, in place of the (B, T) positions
    def _gather_parents(self, lm_head, args):
        if self._parents is None:
            return None
        (states,) = args
        return (states.flatten(0, 1)[self._parents][None],)

    def _count(self, inputs, logits, losses, weighted) -> None:
        totals = self._totals["train" if self.model.training else "eval"]
        totals["loss", "sum"] += weighted.sum()
        totals["loss", "count"] += inputs["num_questions"].sum()
        totals["mean_token_accuracy", "sum"] += ((logits.argmax(-1) == inputs["targets"]) * inputs["counts"]).sum()
        totals["mean_token_accuracy", "count"] += inputs["counts"].sum()
        for i, path in enumerate(PATH_NAMES):
            totals[f"{path}_loss", "sum"] += (losses * inputs["shares"][i]).sum()
            totals[f"{path}_loss", "count"] += inputs["path_counts"][i]
        for type_ in (1, 2, 3):
            totals[f"type_{type_}_loss", "sum"] += (weighted * (inputs["types"] == type_)).sum()
            totals[f"type_{type_}_loss", "count"] += inputs["num_questions"][type_]
        totals["mean_lambda", "sum"] += inputs["lambda_sum"].sum()
        totals["mean_lambda", "count"] += inputs["num_questions"][3]
        totals["tokens", "sum"] += inputs["num_tokens"].sum()

    def _gathered_totals(self, mode: str) -> dict[tuple[str, str], float]:
        totals = self._totals[mode]
        if not totals:
            return {}
        values = torch.stack([torch.as_tensor(value, dtype=torch.float32) for value in totals.values()])
        gathered = self.accelerator.reduce(values.to(self.accelerator.device), reduction="sum")
        return dict(zip(totals, (gathered / self.get_tp_size()).tolist(), strict=True))

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs), None, None

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        self._totals["eval"].clear()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        # `Trainer` averages the losses of batches; the objective is one quotient over the whole dataset
        totals = self._gathered_totals("eval")
        output.metrics[f"{metric_key_prefix}_loss"] = totals["loss", "sum"] / max(totals["loss", "count"], 1)
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        totals = self._gathered_totals(mode)
        for name in dict.fromkeys(name for name, _ in totals):
            if name not in ("loss", "tokens") and totals[name, "count"]:
                self._metrics[mode][name] = [totals[name, "sum"] / totals[name, "count"]]
        if mode == "train" and totals:
            # Running counts go on from the last log, which a checkpoint keeps
            last = next((log for log in reversed(self.state.log_history) if "num_tokens" in log), {})
            self._metrics[mode]["num_questions"] = [last.get("num_questions", 0.0) + totals["loss", "count"]]
            self._metrics[mode]["num_tokens"] = [last.get("num_tokens", 0.0) + totals["tokens", "sum"]]
        self._totals[mode].clear()
        super().log(logs, start_time)
