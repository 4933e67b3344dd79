"""What the trainers of all students share: the same N, draws, order, logs and evaluation loss (Sec. 3.2)."""

from __future__ import annotations

import os
from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..prompts import resolve_prompt_format
from .collator import PATH_NAMES
from .md_config import MDConfig
from .model_card import student_card
from .thoughts import DrawnQuestions, QuestionSampler, prepare_questions, tokenize_completions


logger = logging.get_logger(__name__)


class MixedObjective:
    r"""
    The part of a trainer that does not depend on the architecture of its student; a mixin for subclasses of
    [`~transformers.Trainer`].

    A trainer calls `_prepare_questions` on its datasets and `_hook_lm_head` once it has its model. Its `compute_loss`
    sets `_parents` around the forward pass and hands the logits to `_objective`.
    """

    _tag_names = ["trl", "md_trl", "mixed-distillation"]
    _name = "Mixed Distillation"
    _paper = {
        "title": "Mixed Distillation Helps Smaller Language Models Reason Better",
        "id": "2312.10730",
    }
    # `_objective` divides by the questions of the whole optimizer step, see `_get_num_items_in_batch`
    loss_is_scaled_for_ga = True
    # What the names of evaluation figures begin with
    _eval_prefix = "eval"
    # Turns a prompt and its thoughts into token ids
    _tokenize = staticmethod(tokenize_completions)

    @staticmethod
    def _as_dataset(train_dataset: Dataset | list[dict[str, Any]] | None) -> Dataset:
        if isinstance(train_dataset, list):
            return Dataset.from_list(train_dataset)
        if not isinstance(train_dataset, Dataset):
            raise TypeError(
                f"`train_dataset` must be a `datasets.Dataset` of mixed rows, got `{type(train_dataset).__name__}`. A "
                "stream has no length, which the balance of types needs: load the dataset without `streaming=True`."
            )
        return train_dataset

    def _prepare_questions(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, args: MDConfig, name: str
    ) -> Dataset:
        questions, self.dropped[name] = prepare_questions(dataset, tokenizer, args, name, self._tokenize)
        if any(self.dropped[name].values()):
            logger.warning(
                "The %s dataset keeps %d of %d questions; dropped: %s",
                name,
                len(questions),
                len(dataset),
                ", ".join(f"{count} {reason}" for reason, count in self.dropped[name].items() if count),
            )
        return questions

    def _hook_lm_head(self) -> None:
        self._parents = None
        self.model.get_output_embeddings().register_forward_pre_hook(self._gather_parents)
        # Sums and counts since the last log, on this process; quotients are taken over all processes in `log`
        self._totals = {mode: defaultdict(float) for mode in ("train", "eval")}

    def _get_dataloader(self, dataset, *args, **kwargs):
        return super()._get_dataloader(DrawnQuestions(dataset, self.args), *args, **kwargs)

    def _get_train_sampler(self, train_dataset: DrawnQuestions) -> QuestionSampler:
        # `auto_find_batch_size` begins anew with a smaller batch; what the failed one has counted is void
        self._totals["train"].clear()
        self._train_sampler = QuestionSampler(
            train_dataset,
            multiple_of=self._train_batch_size * self.accelerator.num_processes // self.get_tp_size(),
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

    # A hook before the LM head: only the states that edges start from meet it, in place of the (B, T) positions
    def _gather_parents(self, lm_head, args):
        if self._parents is None:
            return None
        (states,) = args
        return (states.flatten(0, 1)[self._parents][None],)

    def _objective(self, inputs, outputs, num_items_in_batch=None) -> torch.Tensor:
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
        return loss

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

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        r"""
        Write the card of the student: method, data, objective, lambda.

        Args:
            model_name (`str`, *optional*):
                Name of the model.
            dataset_name (`str`, *optional*):
                Hub id of the dataset.
            tags (`str` or `list[str]`, *optional*):
                Further tags.
        """
        if not self.is_world_process_zero():
            return
        name_or_path = self.model.config.name_or_path
        card = student_card(
            self.train_dataset,
            self.args,
            self.state.log_history,
            model_name=model_name,
            hub_model_id=self.hub_model_id,
            base_model=name_or_path if name_or_path and not os.path.isdir(name_or_path) else None,
            dataset_name=dataset_name,
            prompt_format=resolve_prompt_format(self.processing_class, self.args.prompt_format),
            tags=[*self._tag_names, *([tags] if isinstance(tags, str) else tags or [])],
        )
        card.save(os.path.join(self.args.output_dir, "README.md"))

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs), None, None

    def predict(self, test_dataset: Dataset, *args, **kwargs):
        questions = self._prepare_questions(test_dataset, self.processing_class, self.args, "test")
        return super().predict(questions, *args, **kwargs)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        self._eval_prefix = metric_key_prefix
        self._totals["eval"].clear()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        # `Trainer` averages the losses of batches; the objective is one quotient over the whole dataset
        totals = self._gathered_totals("eval")
        output.metrics[f"{metric_key_prefix}_loss"] = totals["loss", "sum"] / max(totals["loss", "count"], 1)
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode, prefix = ("train", "") if self.model.training else ("eval", f"{self._eval_prefix}_")
        totals = self._gathered_totals(mode)
        for name in dict.fromkeys(name for name, _ in totals):
            if name not in ("loss", "tokens") and totals[name, "count"]:
                logs[f"{prefix}{name}"] = totals[name, "sum"] / totals[name, "count"]
        if mode == "train" and totals:
            # Running counts go on from the last log, which a checkpoint keeps
            last = next((log for log in reversed(self.state.log_history) if "num_tokens" in log), {})
            logs["num_questions"] = last.get("num_questions", 0.0) + totals["loss", "count"]
            logs["num_tokens"] = last.get("num_tokens", 0.0) + totals["tokens", "sum"]
        self._totals[mode].clear()
        super().log(logs, start_time)
