from __future__ import annotations

from dataclasses import dataclass, field

from transformers import Seq2SeqTrainingArguments

from ..errors import InputError
from .md_config import MDConfig


@dataclass
class MDSeq2SeqConfig(MDConfig, Seq2SeqTrainingArguments):
    r"""
    Configuration class for the [`MDSeq2SeqTrainer`].

    It has the parameters of [`MDConfig`], with the same meaning. A thought and its prompt, which the encoder reads,
    count together in `max_length`.

    > [!NOTE]
    > These parameters have default values different from [`MDConfig`]:
    > - `layout`: Defaults to `"padded"`, the only one: a decoder row has no prompt, which is what others share.
    """

    layout: str = field(
        default="padded",
        metadata={"help": "Always `padded`: a thought a row of the decoder.", "choices": ["padded"]},
    )

    def _refuse_what_would_change_the_objective(self) -> None:
        super()._refuse_what_would_change_the_objective()
        refused = {
            "layout": (
                self.layout != "padded",
                "a decoder's rows have no prompt to share, and T5 counts positions itself; set `layout='padded'`",
            ),
            "predict_with_generate": (
                self.predict_with_generate,
                "the evaluation loss is that of the objective; sample the saved student instead",
            ),
            "activation_offloading": (self.activation_offloading, "it is made for causal models"),
            "chat_template_path": (self.chat_template_path is not None, "set `chat_template` on the tokenizer"),
            "eos_token": (self.eos_token is not None, "set it on the tokenizer"),
            "pad_token": (self.pad_token is not None, "set it on the tokenizer"),
        }
        for name, (is_set, reason) in refused.items():
            if is_set:
                raise InputError(f"`MDSeq2SeqConfig` does not support `{name}={getattr(self, name)!r}`: {reason}.")
