from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    TrainerCallback,
    set_seed,
)
from trl.trainer.base_trainer import _BaseTrainer

from ..errors import InputError
from ..prompts import encode
from .collator import MDCollator
from .md_seq2seq_config import MDSeq2SeqConfig
from .mixed_objective import MixedObjective
from .program_tokens import add_program_tokens, has_tied_head


def tokenize_for_encoder_and_decoder(
    prompt: str, texts: list[str], tokenizer: PreTrainedTokenizerBase, chat: bool = False
) -> list[dict[str, Any]]:
    r"""
    Token ids of a prompt, which the encoder reads, with each of its thoughts, which the decoder writes.

    Args:
        prompt (`str`):
            Prompt of the thoughts.
        texts (`list[str]`):
            Thoughts.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the student.
        chat (`bool`, *optional*, defaults to `False`):
            Whether a chat template wrote the prompt.

    Returns:
        `list[dict]`: for each thought `input_ids`, the prompt with EOS followed by the thought with EOS, and `start`,
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
    Lays out the drawn thoughts of a batch of questions, a thought a row of the decoder, and their different prompts, a
    prompt a row of the encoder.

    Args:
        decoder_start_token_id (`int`):
            Token before the first of a thought.

    Returns:
        `dict[str, torch.Tensor]`: what [`MDCollator`] returns for the layout `padded`, for the rows of the decoder,
        and for U prompts of at most S tokens:

        - `prompt_ids`, `prompt_mask` of shape `(U, S)`
        - `prompts` of shape `(B,)`: the prompt of each row of the decoder
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
        # A batch without a thought has one row without an edge, see `MDCollator`
        found = [torch.tensor(prompt) for prompt in rows] or [torch.tensor([self.pad_token_id])]
        pad = torch.nn.utils.rnn.pad_sequence
        batch["prompts"] = torch.tensor(prompts or [0])
        batch["prompt_ids"] = pad(found, batch_first=True, padding_value=self.pad_token_id)
        batch["prompt_mask"] = pad([torch.ones_like(ids) for ids in found], batch_first=True)
        batch["num_tokens"] += sum(map(len, rows))
        return batch


class MDSeq2SeqTrainer(MixedObjective, Seq2SeqTrainer, _BaseTrainer):
    r"""
    Trainer for Mixed Distillation of encoder-decoder students such as T5. It has the objective, draws, logs and
    evaluation loss of [`MDTrainer`].

    The encoder reads the prompt, once for all thoughts that share it; the decoder writes the thought. What programs
    need and the vocabulary lacks is added first, see [`add_program_tokens`], and with `peft_config` trained beside the
    adapter. The tokenizer with the additions is `trainer.processing_class` and is saved with the model.

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

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Encoder-decoder to train, or its name. The vocabulary of a [`~peft.PeftModel`] is left as it is.
        args ([`MDSeq2SeqConfig`], *optional*):
            Configuration for this trainer. If `None`, a default configuration is used.
        train_dataset ([`~datasets.Dataset`] or `list[dict]`):
            As in [`MDTrainer`].
        eval_dataset ([`~datasets.Dataset`] or `dict[str, Dataset]`, *optional*):
            As in [`MDTrainer`].
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the student. If `None`, it is loaded from the model's name.
        callbacks (list of [`~transformers.TrainerCallback`], *optional*):
            Callbacks to customize the training loop.
        optimizers (`tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None]`, *optional*,
        defaults to `(None, None)`):
            Optimizer and scheduler to use.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            Quantization for a model given by name; with `peft_config`, QLoRA.
        peft_config ([`~peft.LoraConfig`], *optional*):
            LoRA configuration used to wrap the model. Its task type becomes `SEQ_2_SEQ_LM`.

    Raises:
        `ValueError`: the model is no encoder-decoder, the dataset leaves no question, the tokenizer has no EOS or
            loses characters of programs in spite of what was added, or an adapter could not keep what was added.
    """

    _tokenize = staticmethod(tokenize_for_encoder_and_decoder)

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: MDSeq2SeqConfig | None = None,
        train_dataset: Dataset | list[dict[str, Any]] | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: Any | None = None,
        peft_config: LoraConfig | None = None,
    ):
        name = model if isinstance(model, str) else model.config.name_or_path
        if args is None:
            args = MDSeq2SeqConfig(f"{name.split('/')[-1]}-MD")
        elif not isinstance(args, MDSeq2SeqConfig):
            raise TypeError(f"`args` must be an `MDSeq2SeqConfig`, got `{type(args).__name__}`.")
        train_dataset = self._as_dataset(train_dataset)
        if peft_config is not None and not isinstance(peft_config, LoraConfig):
            raise InputError(
                f"`MDSeq2SeqTrainer` does not support `{type(peft_config).__name__}`: the embeddings of new tokens "
                "are trained by a `LoraConfig`. Use LoRA."
            )
        set_seed(args.seed)  # LoRA starts from random numbers
        init_kwargs = dict(args.model_init_kwargs or {})
        if isinstance(model, str):
            init_kwargs = {"trust_remote_code": args.trust_remote_code, "dtype": torch.float32} | init_kwargs
            if quantization_config is not None:
                init_kwargs["quantization_config"] = quantization_config
            model = AutoModelForSeq2SeqLM.from_pretrained(model, **init_kwargs)
        if not model.config.is_encoder_decoder:
            raise InputError(f"{name!r} is no encoder-decoder. Train it with `MDTrainer`.")
        if processing_class is None:
            processing_class = AutoTokenizer.from_pretrained(
                name, revision=init_kwargs.get("revision"), trust_remote_code=args.trust_remote_code
            )
        if not isinstance(model, PeftModel):
            programs = _programs(train_dataset) if args.objective in ("md", "pot", "uniform") else ()
            rows = model.get_input_embeddings().num_embeddings
            processing_class, new_ids = add_program_tokens(processing_class, model, programs)
            if peft_config is not None:
                if model.get_input_embeddings().num_embeddings > rows and not has_tied_head(model):
                    raise InputError(
                        f"{name!r} has an LM head of its own and {rows} embeddings, too few for a vocabulary of "
                        f"{len(processing_class)} with what programs need. An adapter cannot keep both resized: train "
                        "without `peft_config`."
                    )
                peft_config = copy(peft_config)
                peft_config.task_type = TaskType.SEQ_2_SEQ_LM  # TRL's `ModelConfig` says `CAUSAL_LM` by default
                if new_ids:
                    peft_config.trainable_token_indices = [*(peft_config.trainable_token_indices or []), *new_ids]
                model = get_peft_model(model, peft_config)
        if isinstance(model, PeftModel) and args.gradient_checkpointing:
            model.enable_input_require_grads()

        self.dropped: dict[str, dict[str, int]] = {}
        train_dataset = self._prepare_questions(train_dataset, processing_class, args, "train")
        if isinstance(eval_dataset, dict):
            eval_dataset = {
                key: self._prepare_questions(dataset, processing_class, args, key)
                for key, dataset in eval_dataset.items()
            }
        elif eval_dataset is not None:
            eval_dataset = self._prepare_questions(eval_dataset, processing_class, args, "eval")
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
        self._hook_lm_head()
        self._prompts = None
        encoder = self.model.get_encoder()
        encoder.register_forward_pre_hook(self._mask_prompts, with_kwargs=True)
        encoder.register_forward_hook(self._share_prompts)
        self.model.add_model_tags(self._tag_names)

    def evaluate(self, eval_dataset=None, *args, **kwargs):
        # A dictionary comes back here a dataset at a time
        if isinstance(eval_dataset, Dataset):
            eval_dataset = self._prepare_questions(eval_dataset, self.processing_class, self.args, "eval")
        return super().evaluate(eval_dataset, *args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self._parents, self._prompts = inputs["parents"], inputs
        try:
            outputs = model(
                input_ids=inputs["prompt_ids"],
                attention_mask=inputs["prompt_mask"][inputs["prompts"]],
                decoder_input_ids=inputs["input_ids"],
                decoder_attention_mask=inputs["attention_mask"],
                use_cache=False,
            )
        finally:
            self._parents = self._prompts = None
        loss = self._objective(inputs, outputs, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    # Hooks around the encoder, so that all runs inside one forward pass of the wrapped model, as DDP needs: the
    # encoder reads each prompt once, with the mask of the prompts, and each decoder row gets the states of its prompt
    def _mask_prompts(self, encoder, args, kwargs):
        if self._prompts is None:
            return None
        return args, kwargs | {"attention_mask": self._prompts["prompt_mask"]}

    def _share_prompts(self, encoder, args, output):
        if self._prompts is not None:
            output.last_hidden_state = output.last_hidden_state[self._prompts["prompts"]]


def _programs(dataset: Dataset) -> list[str]:
    if "completion" in dataset.column_names:
        paths = dataset["path"] if "path" in dataset.column_names else []
        return [text for text, path in zip(dataset["completion"], paths, strict=False) if path == "pot"]
    programs = [program for thoughts in dataset["pot"] for program in thoughts or []]
    return [program if isinstance(program, str) else program["text"] for program in programs]
