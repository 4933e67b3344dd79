"""Tiny students for tests: randomly initialized Llama, Mistral, GPT-2 and T5 models of 2 layers, and tokenizers."""

import os
import string
import sys

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

from md_trl.trainer import add_program_tokens


def byte_tokenizer(**special_tokens) -> PreTrainedTokenizerFast:
    """Return a lossless tokenizer with one token per byte, EOS and padding."""
    vocabulary = {token: i for i, token in enumerate(["</s>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special_tokens = {"eos_token": "</s>", "pad_token": "<pad>"} | special_tokens
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens)


def tiny_llama(vocab_size: int = 258, seed: int = 0, hidden_size: int = 32) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=0,
        pad_token_id=1,
        bos_token_id=None,
        initializer_range=0.2,  # predictions far from uniform, so that mistakes show
    )
    return LlamaForCausalLM(config)


def tiny_mistral(
    vocab_size: int = 258, seed: int = 0, hidden_size: int = 32, sliding_window: int = 40
) -> MistralForCausalLM:
    """Return a Mistral whose sliding window is shorter than the texts of the tests."""
    torch.manual_seed(seed)
    config = MistralConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        sliding_window=sliding_window,
        eos_token_id=0,
        pad_token_id=1,
        bos_token_id=None,
        initializer_range=0.2,
    )
    return MistralForCausalLM(config)


def tiny_gpt2(vocab_size: int = 258, seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=512,
        n_embd=32,
        n_layer=2,
        n_head=4,
        eos_token_id=0,
        pad_token_id=1,
        bos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.2,
    )
    return GPT2LMHeadModel(config)


def tiny_t5(vocab_size: int = 110, seed: int = 0, **config) -> T5ForConditionalGeneration:
    torch.manual_seed(seed)
    config = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4} | config
    config = T5Config(vocab_size=vocab_size, dropout_rate=0.0, decoder_start_token_id=0, **config)
    return T5ForConditionalGeneration(config)


def t5_tokenizer() -> T5Tokenizer:
    """Return a `T5Tokenizer` with letters and a few words, which lacks the same characters as the real one."""
    kept = sorted(set(string.ascii_letters + string.digits + string.punctuation) - set("{}<~^\\`"))
    words = ["▁the", "▁answer", "▁is", "The", "▁The", "answer", "▁=", "▁What", "step", "▁return"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(character, -4.0) for character in kept] + [(word, -3.0) for word in words]
    return T5Tokenizer(vocab=pieces, extra_ids=5)


def leave_together() -> None:
    """
    End this process and the others of its group, without tearing them down.

    As a process exits, the threads of torch's gloo backend can abort it ("terminate called without an active
    exception"), or deadlock with the destructor of DDP, which joins them while it holds the GIL (torch 2.13).
    """
    if torch.distributed.is_initialized():  # not if there is a single process
        torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def make_student(name: str, lora: bool = False) -> tuple[torch.nn.Module, PreTrainedTokenizerFast]:
    """
    Return a student by name, the same at every call, with its tokenizer.

    With `lora`, it has LoRA weights far from zero on its attention. A T5 has the tokens that programs need, and trains
    them together with LoRA.
    """
    student = {"llama": tiny_llama, "mistral": tiny_mistral, "gpt2": tiny_gpt2, "t5": tiny_t5}[name]()
    tokenizer, new_ids = byte_tokenizer(), None
    if name == "t5":
        tokenizer, new_ids = add_program_tokens(t5_tokenizer(), student)
    if lora:
        target_modules = {"gpt2": ["c_attn"], "t5": ["q", "v"]}.get(name, ["q_proj", "v_proj"])
        options = {"target_modules": target_modules, "trainable_token_indices": new_ids, "init_lora_weights": False}
        student = get_peft_model(student, LoraConfig(r=4, lora_dropout=0.0, **options))
    return student, tokenizer


def vision_language_student(name: str, folder) -> str:
    """Save a tiny vision-language model into a folder, with a processor that holds its tokenizer, if it has one."""
    special = {"start_token": "<|im_start|>", "image_token": "<image>", "video_token": "<video>"}
    special |= {"boi_token": "<begin>", "eoi_token": "<end>"}
    # LLaVA's template reads a content as a list of parts
    content = "{% for p in m.content %}{{ p.text }}{% endfor %}" if name == "llava" else "{{ m.content }}"
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n" + content + "{{ eos_token }}{% endfor %}"
    template += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    tokenizer = byte_tokenizer(extra_special_tokens=special, chat_template=None if name == "llava" else template)
    _, image, video, begin, end = tokenizer.convert_tokens_to_ids(list(special.values()))
    text = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 0, "pad_token_id": 1}
    text |= {"bos_token_id": None, "initializer_range": 0.2}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    if name == "llava":
        vision = CLIPVisionConfig(**vision, image_size=14, patch_size=7)
        config = LlavaConfig(vision_config=vision, text_config=LlamaConfig(**text), image_token_id=image)
        LlavaForConditionalGeneration(config).save_pretrained(folder)
        size = {"height": 14, "width": 14}
        images = CLIPImageProcessorPil(size=size, crop_size=size)
        LlavaProcessor(images, tokenizer, patch_size=7, chat_template=template).save_pretrained(folder)
    elif name == "qwen2_5_vl":
        rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
        vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
        config = Qwen2_5_VLConfig(
            text_config=text | {"rope_parameters": rope},
            vision_config=vision,
            image_token_id=image,
            video_token_id=video,
            vision_start_token_id=begin,
            vision_end_token_id=end,
        )
        Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    else:
        layers = {"head_dim": 8, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
        config = Gemma3Config(
            text_config=text | layers,
            vision_config=vision | {"image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4,
            image_token_index=image,
        )
        Gemma3ForConditionalGeneration(config).save_pretrained(folder)
        Gemma3Processor(Gemma3ImageProcessorPil(), tokenizer, chat_template=template).save_pretrained(folder)
    return str(folder)
