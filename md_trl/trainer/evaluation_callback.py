"""Figures that a callback adds to each evaluation, so that the best checkpoint can be chosen by them."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback, TrainingArguments


class EvaluationCallback(TrainerCallback):
    r"""
    Callback that computes further figures in each evaluation of [`MDTrainer`] and [`MDSeq2SeqTrainer`].

    Unlike `on_evaluate`, it runs before the figures are logged and before the best checkpoint is chosen, so that
    `metric_for_best_model` and early stopping can use its figures. Evaluations under a prefix of their own, such as
    those of one dataset among several and `predict`, do not call it.
    """

    def evaluate(
        self,
        args: TrainingArguments,
        model: PreTrainedModel,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    ) -> dict[str, float]:
        r"""
        Compute the figures. All processes call it, and each must return the same.

        Args:
            args ([`~transformers.TrainingArguments`]):
                Configuration of the training.
            model ([`~transformers.PreTrainedModel`]):
                Student, not wrapped for distributed training.
            processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]):
                Tokenizer or processor of the student.

        Returns:
            `dict[str, float]`: Figures by name, without the prefix `eval_`.
        """
        raise NotImplementedError
