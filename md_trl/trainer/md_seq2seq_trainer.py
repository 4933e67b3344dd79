"""The trainer of encoder-decoder students such as T5. It shares all but the architecture with [`MDTrainer`]."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from trl.trainer.base_trainer import _BaseTrainer

from ..errors import InputError
from ..prompts import encode
from ..records import PROGRAM_PATHS
from ..weighting import thought_text
from .arguments import as_config, as_dataset, as_name, check_adapter, check_arguments
from .collator import MDCollator
from .md_seq2seq_config import MDSeq2SeqConfig
from .objective import MixedObjective
from .preprocessing import LEARN_PROGRAMS
from .program_tokens import add_program_tokens, has_tied_head


Rows = Dataset | IterableDataset | list[dict[str, Any]]
"""What a dataset of rows is given as."""


def tokenize_for_encoder_and_decoder(
    prompt: str, texts: list[str], tokenizer: PreTrainedTokenizerBase, chat: bool = False
) -> list[dict[str, Any]]:
    r"""
    Tokenize a prompt, which the encoder reads, and each of its thoughts, which the decoder writes.

    Args:
        prompt (`str`):
            Prompt of the thoughts.
        texts (`list[str]`):
            Thoughts.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the student.
        chat (`bool`, *optional*, defaults to `False`):
            Whether the prompt was formatted by a chat template.

    Returns:
        `list[dict]`: For each thought `input_ids`, the prompt with EOS followed by the thought with EOS, and `start`,
        the index of the thought's first token.
    """
    if not texts:
        return []
    [prompt_ids] = encode(tokenizer, [prompt], chat)
    eos = tokenizer.eos_token_id
    return [
        {"input_ids": [*prompt_ids, eos, *ids, eos], "start": len(prompt_ids) + 1}
        for ids in encode(tokenizer, texts, chat=False)
    ]


@dataclass
class MDSeq2SeqCollator(MDCollator):
    r"""
    Data collator with one thought per row of the decoder and one distinct prompt per row of the encoder.

    Args:
        decoder_start_token_id (`int`, *optional*, defaults to `0`):
            Token that the decoder starts from.

    Returns:
        `dict[str, torch.Tensor]`: What [`MDCollator`] returns for the B rows of the decoder in the layout `"padded"`,
        and for U distinct prompts of at most S tokens:

        - `prompt_ids` of shape `(U, S)`
        - `prompt_mask` of shape `(U, S)`
        - `prompts` of shape `(B,)`: index of the prompt of each row of the decoder
    """

    decoder_start_token_id: int = 0

    def __call__(self, questions: list[dict[str, Any] | None]) -> dict[str, torch.Tensor]:
        rows: dict[tuple[int, ...], int] = {}
        prompts, decoded = [], []
        for question in questions:
            if question is None:
                continue
            thoughts = []
            for thought in question["thoughts"]:
                prompt, target = thought["input_ids"][: thought["start"]], thought["input_ids"][thought["start"] :]
                prompts.append(rows.setdefault(tuple(prompt), len(rows)))
                thoughts.append(thought | {"input_ids": [self.decoder_start_token_id, *target], "start": 1})
            decoded.append(question | {"thoughts": thoughts})
        batch = super().__call__(decoded)
        # A batch without any thought has one row without edges, see `MDCollator`.
        found = [torch.tensor(prompt) for prompt in rows] or [torch.tensor([self.pad_token_id])]
        pad = torch.nn.utils.rnn.pad_sequence
        batch["prompts"] = torch.tensor(prompts or [0])
        batch["prompt_ids"] = pad(found, batch_first=True, padding_value=self.pad_token_id)
        batch["prompt_mask"] = pad([torch.ones_like(ids) for ids in found], batch_first=True)
        batch["num_nodes"] += sum(map(len, rows))
        return batch


class SharedPrompts:
    r"""
    Hooks that let an encoder read each distinct prompt once, and give every row of the decoder the states of its own.

    They work inside the forward pass of the wrapped model, as DDP needs.

    Args:
        encoder (`torch.nn.Module`):
            Encoder of the student.
    """

    def __init__(self, encoder: torch.nn.Module):
        self._batch: dict[str, torch.Tensor] | None = None
        encoder.register_forward_pre_hook(self._mask_prompts, with_kwargs=True)
        encoder.register_forward_hook(self._share_states)

    @contextmanager
    def of(self, batch: dict[str, torch.Tensor]) -> Iterator[None]:
        r"""
        Share the prompts of a batch within the context.

        Args:
            batch (`dict[str, torch.Tensor]`):
                Batch from [`MDSeq2SeqCollator`].
        """
        self._batch = batch
        try:
            yield
        finally:
            self._batch = None

    def _mask_prompts(self, encoder, args, kwargs):
        if self._batch is None:
            return None
        return args, kwargs | {"attention_mask": self._batch["prompt_mask"]}

    def _share_states(self, encoder, args, output):
        if self._batch is not None:
            output.last_hidden_state = output.last_hidden_state[self._batch["prompts"]]


class MDSeq2SeqTrainer(MixedObjective, Seq2SeqTrainer, _BaseTrainer):
    r"""
    Trainer for Mixed Distillation of encoder-decoder students such as T5.

    It has the objective, logs and evaluation loss of [`MDTrainer`]. The encoder reads a prompt, once for all thoughts
    that share it, and the decoder writes the thought. Characters that programs need and the vocabulary lacks are added
    first (see [`add_program_tokens`]); with `peft_config`, their embeddings are trained together with the adapter. The
    extended tokenizer is `trainer.processing_class` and is saved with the model.

    Example:

    ```python
    >>> from datasets import load_dataset
    >>> from md_trl import MDSeq2SeqConfig, MDSeq2SeqTrainer

    >>> trainer = MDSeq2SeqTrainer(
    ...     model="google-t5/t5-large",
    ...     args=MDSeq2SeqConfig(output_dir="t5-svamp"),
    ...     train_dataset=load_dataset("md/mixed-thoughts", "svamp", split="train"),
    ... )
    >>> trainer.train()
    ```

    The arguments are those of [`MDTrainer`], with these differences:

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Encoder-decoder model to train, or its name or folder. Nothing is added to the vocabulary of a
            [`~peft.PeftModel`].
        args ([`MDSeq2SeqConfig`], *optional*):
            Configuration for this trainer. If `None`, a default configuration is used.
        peft_config ([`~peft.LoraConfig`], *optional*):
            LoRA configuration used to wrap the model. Its task type is set to `SEQ_2_SEQ_LM`.

    Raises:
        `ValueError`: If the model is not an encoder-decoder, the dataset leaves no question, the tokenizer has no EOS
            token or loses characters of a program even after tokens were added, or an adapter could not save the
            embeddings that were added.
    """

    _tokenize = staticmethod(tokenize_for_encoder_and_decoder)

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: MDSeq2SeqConfig | TrainingArguments | None = None,
        data_collator: None = None,
        train_dataset: Dataset | list[dict[str, Any]] | None = None,
        eval_dataset: Rows | dict[str, Rows] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_loss_func: None = None,
        compute_metrics: None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: None = None,
        quantization_config: Any | None = None,
        peft_config: LoraConfig | None = None,
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
        args = as_config(args, MDSeq2SeqConfig, model)
        _check_adapter(model, peft_config)
        train_dataset = as_dataset(train_dataset, "train")
        set_seed(args.seed)  # LoRA weights are initialized at random
        if isinstance(model, str):
            model = _load(model, args, quantization_config)
        if not model.config.is_encoder_decoder:
            raise InputError(f"{model.config.name_or_path!r} is not an encoder-decoder. Train it with `MDTrainer`.")
        if processing_class is None:
            processing_class = AutoTokenizer.from_pretrained(
                model.config.name_or_path,
                revision=(args.model_init_kwargs or {}).get("revision"),
                trust_remote_code=args.trust_remote_code,
            )
        if not isinstance(model, PeftModel):
            programs = _programs(train_dataset) if args.objective in LEARN_PROGRAMS else []
            model, processing_class = _extend(model, processing_class, programs, peft_config)
        if isinstance(model, PeftModel) and args.gradient_checkpointing:
            model.enable_input_require_grads()
        super().__init__(
            model=model,
            args=args,
            data_collator=MDSeq2SeqCollator(
                processing_class.pad_token_id,
                layout=args.layout,
                token_reduction=args.token_reduction,
                decoder_start_token_id=model.config.decoder_start_token_id,
            ),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.optimizer_cls_and_kwargs = optimizer_cls_and_kwargs  # `Seq2SeqTrainer` does not pass it on
        self.train_dataset = self._prepare_questions(train_dataset, processing_class, args, "train")
        self.eval_dataset = self._prepare_eval_dataset(eval_dataset)
        self._shared_prompts = SharedPrompts(self.model.get_encoder())
        self.model.add_model_tags(self._tag_names)

    def _prepare_eval_dataset(self, eval_dataset):
        if eval_dataset is None:
            return None
        if isinstance(eval_dataset, dict):
            return {
                name: self._prepare_questions(dataset, self.processing_class, self.args, name)
                for name, dataset in eval_dataset.items()
            }
        return self._prepare_questions(eval_dataset, self.processing_class, self.args, "eval")

    def evaluate(self, eval_dataset=None, *args, **kwargs):
        # `Trainer` calls it again with every dataset of a dictionary.
        if isinstance(eval_dataset, Dataset | IterableDataset | list):
            eval_dataset = self._prepare_questions(eval_dataset, self.processing_class, self.args, "eval")
        return super().evaluate(eval_dataset, *args, **kwargs)

    def _forward(self, model, inputs):
        with self._shared_prompts.of(inputs):
            return model(
                input_ids=inputs["prompt_ids"],
                attention_mask=inputs["prompt_mask"][inputs["prompts"]],
                decoder_input_ids=inputs["input_ids"],
                decoder_attention_mask=inputs["attention_mask"],
                use_cache=False,
            )


def _check_adapter(model: str | PreTrainedModel | PeftModel, peft_config: PeftConfig | None) -> None:
    if check_adapter("MDSeq2SeqTrainer", model, None):
        raise InputError("`MDSeq2SeqTrainer` does not support prefix tuning. Use LoRA.")
    if peft_config is not None and not isinstance(peft_config, LoraConfig):
        raise InputError(
            f"`MDSeq2SeqTrainer` does not support `{type(peft_config).__name__}`: only LoRA can train the embeddings "
            "of added tokens. Use a `LoraConfig`."
        )


def _load(name: str, args: MDSeq2SeqConfig, quantization_config: Any | None) -> PreTrainedModel:
    kwargs = {"trust_remote_code": args.trust_remote_code, "dtype": torch.float32} | (args.model_init_kwargs or {})
    if quantization_config is not None:
        kwargs["quantization_config"] = quantization_config
    return AutoModelForSeq2SeqLM.from_pretrained(name, **kwargs)


# Adds the tokens that programs need, then the adapter, which has to train and save them
def _extend(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, programs: list[str], peft_config: LoraConfig | None
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    rows = model.get_input_embeddings().num_embeddings
    tokenizer, new_ids = add_program_tokens(tokenizer, model, programs)
    if peft_config is None:
        return model, tokenizer
    if model.get_input_embeddings().num_embeddings > rows and not has_tied_head(model):
        raise InputError(
            f"{model.config.name_or_path!r} has an LM head of its own and {rows} embeddings, too few for the "
            f"{len(tokenizer)} tokens that programs need. An adapter cannot save both after they are resized: train "
            "without `peft_config`."
        )
    peft_config = copy(peft_config)
    peft_config.task_type = TaskType.SEQ_2_SEQ_LM  # TRL's `ModelConfig` sets `CAUSAL_LM` by default
    if new_ids:
        peft_config.trainable_token_indices = [*(peft_config.trainable_token_indices or []), *new_ids]
    return get_peft_model(model, peft_config), tokenizer


def _programs(dataset: Dataset) -> list[str]:
    if "completion" in dataset.column_names:
        paths = dataset["path"] if "path" in dataset.column_names else []
        completions = [text for text, path in zip(dataset["completion"], paths, strict=False) if path in PROGRAM_PATHS]
        return [text if isinstance(text, str) else text[-1]["content"] for text in completions]
    columns = [dataset[path] for path in PROGRAM_PATHS if path in dataset.column_names]
    programs = [program for rows in columns for thoughts in rows for program in thoughts or []]
    return [thought_text(program["text"] if isinstance(program, dict) else program) for program in programs]
