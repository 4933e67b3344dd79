"""The objective (Sec. 3.2): the loss, its N across batches and processes, and its logs, shared by both trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import logging

from ..records import PATHS_AND_LABEL
from ..student_folder import replace_card
from .arguments import as_dataset, as_tokenizer
from .data_sampler import QuestionLoading
from .evaluation_callback import EvaluationCallback
from .lm_head import EdgeScorer, EdgeScores
from .logged_totals import RunningTotals, Totals
from .md_config import MDConfig
from .model_card import gitignore, hub_id, student_card
from .preprocessing import prepare_questions, tokenize_completions
from .quantized import keep_trainable
from .student_settings import student_settings, write_student_settings


logger = logging.get_logger(__name__)


class MixedObjective(QuestionLoading):
    r"""
    Mixin for subclasses of [`~transformers.Trainer`] that minimize the objective of Mixed Distillation.

    A trainer implements `_forward`, which runs its student on a batch, and sets a data collator that extends
    [`MDCollator`]. The mixin does everything that does not depend on the student's architecture.

    Args:
        **kwargs:
            Arguments of the trainer.
    """

    _tag_names = ["trl", "md_trl", "mixed-distillation"]
    _name = "Mixed Distillation"
    _paper = {
        "title": "Mixed Distillation Helps Smaller Language Models Reason Better",
        "id": "2312.10730",
    }
    # `compute_loss` divides by the questions of the whole optimizer step, see `_get_num_items_in_batch`.
    loss_is_scaled_for_ga = True
    # Tokenizes a prompt with its thoughts.
    _tokenize = staticmethod(tokenize_completions)

    def __init__(self, **kwargs: Any):
        self.dropped: dict[str, dict[str, int]] = {}
        super().__init__(**kwargs)
        # Other processes hold parts of the LM head
        is_sharded = is_deepspeed_zero3_enabled() or self.get_tp_size() > 1
        self._scorer = EdgeScorer(self.model, chunked=not is_sharded)
        self._eval_totals = Totals()
        self.add_callback(RunningTotals)

    def _prepare_questions(
        self,
        dataset: Dataset | IterableDataset | list[dict[str, Any]],
        processing_class: PreTrainedTokenizerBase | ProcessorMixin,
        args: MDConfig,
        name: str,
    ) -> Dataset:
        dataset, tokenizer = as_dataset(dataset, name, may_stream=True), as_tokenizer(processing_class)
        # `evaluate` passes each dataset of a dictionary a second time.
        if {"label", "weight", "repeat", "prompt_format"} <= set(dataset.column_names):
            return dataset
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

    # Loss

    # N of the objective: the questions of the whole optimizer step, over accumulation steps and processes, or the
    # weights or tokens of flat rows.
    def _get_num_items_in_batch(self, batch_samples: list[dict[str, torch.Tensor]], device: torch.device):
        count = sum(batch["divisor"].sum() for batch in batch_samples)
        return self.accelerator.gather(torch.as_tensor(count, device=device)).sum() / self.get_tp_size()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if num_items_in_batch is None:
            scale = 1 / _nonzero(inputs["divisor"].sum())
        else:
            # DDP averages gradients over processes, but N counts the questions of all of them already.
            scale = (self.accelerator.num_processes // self.get_tp_size()) / _nonzero(num_items_in_batch)
        self._scorer.measure(lambda: self._forward(self.model, inputs))
        with self._scorer.scoring(inputs["parents"], inputs["targets"], inputs["weights"] * scale):
            scores = self._forward(model, inputs)
        with torch.no_grad():
            self._count(inputs, scores)
        return (scores.loss, scores) if return_outputs else scores.loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        keep_trainable(model)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs), None, None

    def predict(self, test_dataset: Dataset | IterableDataset | list[dict[str, Any]], *args, **kwargs):
        questions = self._prepare_questions(test_dataset, self.processing_class, self.args, "test")
        return super().predict(questions, *args, **kwargs)

    # `Trainer` averages the losses of batches; the evaluation loss is one quotient over the whole dataset.
    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        self._eval_totals = Totals()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        figures = {"loss": 0.0} | self._eval_totals.gathered(self.accelerator, self.get_tp_size()).means()
        if metric_key_prefix == "eval":
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, EvaluationCallback):
                    figures |= callback.evaluate(self.args, self.model, self.processing_class)
        output.metrics.update({f"{metric_key_prefix}_{name}": figure for name, figure in figures.items()})
        return output

    # Logs

    @property
    def _running_totals(self) -> RunningTotals:
        # `restore_callback_states_from_checkpoint` replaces the callback by a new one.
        return next(c for c in self.callback_handler.callbacks if isinstance(c, RunningTotals))

    def _count(self, inputs: dict[str, torch.Tensor], scores: EdgeScores) -> None:
        totals = self._running_totals.local if self.model.training else self._eval_totals
        num_questions, num_targets = inputs["num_questions"], inputs["counts"].sum()
        losses, weighted = scores.losses, scores.losses * inputs["weights"]
        totals.add("num_questions", num_questions.sum())
        totals.add("num_target_tokens", num_targets)
        totals.add("num_nodes", inputs["num_nodes"].sum())
        totals.add("loss", weighted.sum(), inputs["divisor"].sum())
        totals.add("mean_token_accuracy", (scores.correct * inputs["counts"]).sum(), num_targets)
        for i, path in enumerate(PATHS_AND_LABEL):
            totals.add(f"{path}_loss", (losses * inputs["shares"][i]).sum(), inputs["path_counts"][i])
        for type_ in (1, 2, 3):
            totals.add(f"type_{type_}_loss", (weighted * (inputs["types"] == type_)).sum(), num_questions[type_])
        totals.add("mean_lambda", inputs["lambda_sum"].sum(), num_questions[3])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        running = self._running_totals
        running.gather(self.accelerator, self.get_tp_size())
        if self.model.training:
            logs |= {name: figure for name, figure in running.pop().items() if name != "loss"}
        logs["num_target_tokens"] = running.seen()["num_target_tokens"]
        super().log(logs, start_time)

    # What is saved

    def _save_checkpoint(self, model, trial):
        self._running_totals.gather(self.accelerator, self.get_tp_size())
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # `Trainer` pickles its arguments.
        token, self.args.hub_token = self.args.hub_token, None
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            write_student_settings(folder, self._student_settings())
            # PEFT writes a card of its own, which names the folder that the base model was loaded from.
            self._save_card(folder, self._card())

    def push_to_hub(self, *args, **kwargs):
        base = self.model.config.name_or_path
        if isinstance(self.model, PeftModel) and hub_id(base) is None:
            logger.warning(
                "The adapter names its base model by a local folder (%s), so it can only be loaded on this machine. "
                "Push the base model and train from its Hub id, or push `trainer.model.merge_and_unload()` instead.",
                base,
            )
        return super().push_to_hub(*args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # `Trainer` copies the weights of the checkpoint into the output folder and uploads it.
        if self.is_world_process_zero():
            write_student_settings(self.args.output_dir, self._student_settings())
            self._save_card(Path(self.args.output_dir), self._card(), same_weights=False)
        super()._push_from_checkpoint(checkpoint_folder)

    def _save_card(self, folder: Path, card: ModelCard, same_weights: bool = True) -> None:
        replace_card(folder, str(card), same_weights)
        if not (folder / ".gitignore").exists():
            (folder / ".gitignore").write_text(gitignore(self.args))

    def _student_settings(self) -> dict[str, Any]:
        return student_settings(self.train_dataset, self.args.objective)

    def _card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> ModelCard:
        return student_card(
            self.train_dataset,
            self.args,
            self._student_settings(),
            self._running_totals.seen(),
            self.state,
            repo=self.hub_model_id,
            validation_ids=self.eval_dataset["id"] if isinstance(self.eval_dataset, Dataset) else (),
            model_name=model_name or Path(self.args.hub_model_id or self.args.output_dir).name,
            base_model=hub_id(self.model.config.name_or_path),
            datasets=hub_id(dataset_name),
            library_name="peft" if isinstance(self.model, PeftModel) else "transformers",
            tags=[*self._tag_names, *([tags] if isinstance(tags, str) else tags or [])],
        )

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        r"""
        Write the model card of the student into the output folder.

        Args:
            model_name (`str`, *optional*):
                Name of the student. Defaults to the name of its repository or output folder.
            dataset_name (`str`, *optional*):
                Hub id of the dataset. A local path is left out of the card.
            tags (`str` or `list[str]`, *optional*):
                Tags to add.
        """
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self._save_card(folder, self._card(model_name, dataset_name, tags))


def _nonzero(divisor: torch.Tensor) -> torch.Tensor:
    """N, or 1 for a batch that only fills up the last one, whose loss is zero."""
    return torch.where(divisor > 0, divisor, 1)
