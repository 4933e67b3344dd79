"""QLoRA on a CPU: LoRA on nf4 weights with double quantization, for Llama, Mistral and T5."""

import bitsandbytes
import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSeq2SeqLM, LoraConfig
from students import byte_tokenizer, t5_tokenizer, tiny_llama, tiny_mistral, tiny_t5
from test_trainer import ROWS
from transformers import BitsAndBytesConfig

from md_trl import MDConfig, MDSeq2SeqConfig, MDSeq2SeqTrainer, MDTrainer
from md_trl.records import SamplingParams
from md_trl.sampling.engines import SampleRequest
from md_trl.sampling.engines.transformers import TransformersEngine


NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32,
)


def train(tmp_path, trainer_class, config_class, tokenizer):
    trainer = trainer_class(
        model=str(tmp_path / "start"),
        args=config_class(
            output_dir=str(tmp_path / "student"),
            max_steps=30,
            per_device_train_batch_size=8,
            learning_rate=1e-2,
            rationales_per_path="all",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
        quantization_config=NF4,
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", lora_dropout=0.0),
    )
    quantized = [m for m in trainer.model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(quantized) >= 2 * 7
    assert all(m.weight.quant_type == "nf4" and m.weight.quant_state.nested for m in quantized)
    before = [m.weight.clone() for m in quantized]
    trainer.train()
    first, *_, last, _ = trainer.state.log_history
    assert last["loss"] < 0.7 * first["loss"]
    assert all(torch.equal(m.weight, weight) for m, weight in zip(quantized, before, strict=True))
    trainer.save_model()
    return trainer


@pytest.mark.parametrize("build", [tiny_llama, tiny_mistral])
def test_causal_students_train_in_4_bit_and_their_adapter_loads(tmp_path, build):
    build(hidden_size=64).save_pretrained(tmp_path / "start")
    trainer = train(tmp_path, MDTrainer, MDConfig, byte_tokenizer())
    copy = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "student", quantization_config=NF4)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:  # trained in bf16, but the copy computes in fp32
            parameter.data = parameter.data.float()
    inputs = trainer.processing_class(f"{ROWS[0]['question']}\n", return_tensors="pt")
    with torch.no_grad():
        expected, found = trainer.model.eval()(**inputs).logits, copy(**inputs).logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_encoder_decoders_train_in_4_bit_and_their_adapter_loads(tmp_path):
    tiny_t5(d_model=64, d_kv=16, d_ff=128).save_pretrained(tmp_path / "start")
    trainer = train(tmp_path, MDSeq2SeqTrainer, MDSeq2SeqConfig, t5_tokenizer())
    copy = AutoPeftModelForSeq2SeqLM.from_pretrained(tmp_path / "student", quantization_config=NF4)
    inputs = trainer.processing_class(f"{ROWS[0]['question']}\n", return_tensors="pt")
    target = trainer.processing_class("if a < 2:\n    answer = {a}", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected, found = trainer.model.eval()(**inputs, labels=target).logits, copy(**inputs, labels=target).logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    request = SampleRequest("q", "label", f"{ROWS[0]['question']}\n", SamplingParams(temperature=0.0, max_tokens=20))
    [result] = TransformersEngine(copy, trainer.processing_class).generate([request])
    [ids] = copy.generate(**inputs, do_sample=False, max_new_tokens=20)
    assert result.choices[0].text == trainer.processing_class.decode(ids, skip_special_tokens=True)


def test_an_evaluation_does_not_change_the_gradients(tmp_path):
    """On a CPU with AVX512-bf16, bitsandbytes packs the weights of layers in evaluation mode for inference."""
    tiny_llama(hidden_size=64).save_pretrained(tmp_path / "start")
    trainer = MDTrainer(
        str(tmp_path / "start"),
        MDConfig(str(tmp_path / "out"), use_cpu=True, report_to="none", rationales_per_path="all", disable_tqdm=True),
        train_dataset=ROWS,
        eval_dataset=ROWS[:4],
        processing_class=byte_tokenizer(),
        quantization_config=NF4,
        peft_config=LoraConfig(target_modules="all-linear", init_lora_weights=False),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    weights = [m.weight.clone() for m in trainer.model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]

    def gradients():
        trainer.model.train()
        trainer.model.zero_grad()
        trainer.compute_loss(trainer.model, batch).backward()
        return [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]

    before = gradients()
    losses = [trainer.evaluate()["eval_loss"] for _ in range(2)]
    assert losses[0] == losses[1]
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(), strict=True))
    kept = [m.weight for m in trainer.model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert all(torch.equal(a, b) for a, b in zip(weights, kept, strict=True))
