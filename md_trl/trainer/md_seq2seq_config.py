"""The configuration of the encoder-decoder trainer: that of [`MDTrainer`], with what it does not support."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import Seq2SeqTrainingArguments

from .md_config import MDConfig


@dataclass
class MDSeq2SeqConfig(MDConfig, Seq2SeqTrainingArguments):
    r"""
    Configuration class for the [`MDSeq2SeqTrainer`].

    It has the parameters of [`MDConfig`] with the same meaning. `max_length` limits the tokens of a prompt, which the
    encoder reads, and of its thought, which the decoder writes, together.

    > [!NOTE]
    > These parameters have default values different from [`MDConfig`]:
    > - `layout`: Defaults to `"padded"`, the only layout: the rows of a decoder have no prompt to share.
    """

    layout: str = field(
        default="padded",
        metadata={"help": "Always `padded`: one thought per row of the decoder.", "choices": ["padded"]},
    )

    def _unsupported(self) -> dict[str, tuple[bool, str]]:
        return super()._unsupported() | {
            "layout": (
                self.layout != "padded",
                "the rows of a decoder have no prompt to share, and T5 computes positions itself; set "
                "`layout='padded'`",
            ),
            "packing": (self.packing, "the rows of a decoder have no prompt to share; leave it False"),
            "max_row_tokens": (self.max_row_tokens is not None, "a row of a decoder holds one thought"),
            "predict_with_generate": (
                self.predict_with_generate,
                "evaluation computes the loss of the objective; sample from the saved student instead",
            ),
            "activation_offloading": (self.activation_offloading, "TRL implements it for causal models"),
            "chat_template_path": (self.chat_template_path is not None, "set `chat_template` on the tokenizer"),
            "eos_token": (self.eos_token is not None, "set it on the tokenizer"),
            "pad_token": (self.pad_token is not None, "set it on the tokenizer"),
        }
