"""Program tokens: a tokenizer that loses newlines, indents or `{ } <`, as T5's does, becomes a lossless one."""

from __future__ import annotations

import string
from collections.abc import Iterable

import torch
from tokenizers import AddedToken, decoders, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast


INDENTS = tuple(" " * width for width in (2, 4, 8, 12))
"""Any run of spaces consists of some of these and at most one single space."""


def _survives(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    ids = tokenizer(f"a{text}b", add_special_tokens=False)["input_ids"]
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False) == f"a{text}b"


def has_tied_head(model: PreTrainedModel) -> bool:
    r"""
    Tell whether the LM head shares the weights of the input embeddings, whatever the config says.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Model with an LM head.

    Returns:
        `bool`: Whether the weights are shared.
    """
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def add_program_tokens(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, programs: Iterable[str] = ()
) -> tuple[PreTrainedTokenizerBase, list[int]]:
    r"""
    Add to a tokenizer and its model the tokens that programs need to be encoded and decoded without loss.

    These are the characters of ASCII and of `programs` that the tokenizer loses, including newlines and indents.
    SentencePiece tokenizers such as T5's moreover stop dropping white space and writing a space after every added
    token. A new embedding starts as the mean of the others. With LoRA it is trained through `trainable_token_indices`,
    which [`MDSeq2SeqTrainer`] sets.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the student. It is left unchanged.
        model ([`~transformers.PreTrainedModel`]):
            The student. Its embeddings are resized in place if they have too few rows.
        programs (iterable of `str`, *optional*, defaults to `()`):
            Programs whose characters are needed too.

    Returns:
        `tuple[PreTrainedTokenizerBase, list[int]]`: The tokenizer to use and to save with the model, and the ids of
        its new tokens. If the tokenizer loses nothing, it is returned itself, without ids.

    Example:

    ```python
    >>> from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
    >>> from md_trl.trainer import add_program_tokens

    >>> model = AutoModelForSeq2SeqLM.from_pretrained("google-t5/t5-large")
    >>> tokenizer, new_ids = add_program_tokens(AutoTokenizer.from_pretrained("google-t5/t5-large"), model)
    ```
    """
    needed = [*INDENTS, *sorted({"\n", "\t", *string.punctuation}.union(*programs) - set(string.ascii_letters + " "))]
    if all(_survives(tokenizer, text) for text in needed):
        return tokenizer, []
    # Classes such as `T5Tokenizer` rebuild their pre-tokenizer when they are loaded; this class loads the saved one.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        name_or_path=tokenizer.name_or_path,
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
        chat_template=tokenizer.chat_template,
        **tokenizer.special_tokens_map,
    )
    if isinstance(tokenizer.backend_tokenizer.decoder, decoders.Metaspace):
        # `first`: a space is added only before the first word, not before the text after an added token.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.backend_tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    known = len(tokenizer)
    lost = [text for text in needed if text in INDENTS or not _survives(tokenizer, text)]
    # They are matched before the text is normalized, which would turn a newline into a space.
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in lost])
    new_ids = tokenizer.convert_tokens_to_ids(lost)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        # `T5Config` says that the head is tied even for checkpoints whose head has its own weights (T5 v1.1, FLAN-T5),
        # which resizing would then discard.
        tied = model.config.tie_word_embeddings
        model.config.tie_word_embeddings = has_tied_head(model)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model.config.tie_word_embeddings = tied
    with torch.no_grad():
        for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
            embeddings.weight[new_ids] = embeddings.weight[:known].mean(dim=0)
    return tokenizer, new_ids
