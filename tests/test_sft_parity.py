"""
What TRL's tests ask of `SFTTrainer`, asked of `MDTrainer` over rows of `prompt` and `completion`.

Models and data are local stand-ins. Whatever TRL tests either trains here, or is refused for a reason that the docs of
`MDConfig` or `MDTrainer` give. Where both trainers can run, they have the same tokens, loss and gradients.
"""

import contextlib
import inspect
import json
import logging
import sys
import types
from pathlib import Path

import pytest
import torch
import transformers
from architectures import tiny_model
from datasets import Dataset, DatasetDict, IterableDatasetDict
from peft import (
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
)
from students import byte_tokenizer, tiny_llama, vision_language_student
from test_trainer import CHATML, ROWS, Gradients, reference_loss, relative_error
from transformers import AutoModelForCausalLM, AutoTokenizer, ProcessorMixin, TrainingArguments
from trl import SFTConfig, SFTTrainer

from md_trl import MDConfig, MDTrainer, MixedReasoner
from md_trl.errors import InputError
from md_trl.prompts import student_text
from md_trl.trainer import MDSeq2SeqTrainer
from md_trl.trainer.arguments import UNSUPPORTED_ARGUMENTS
from md_trl.trainer.preprocessing import OTHER_FORMS, UNSUPPORTED_COLUMNS


# A turn ends in EOS and nothing else, as in Llama 3
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role.upper() if shout else m.role }}\n{{ m.content }}<|im_end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{{ 'ASSISTANT' if shout else 'assistant' }}\n{% endif %}"
)
TEXTS = [
    ("Beautiful is better than", " ugly."),
    ("Explicit is", " better than implicit."),
    ("Simple is better", " than complex."),
    ("Complex is better than", " complicated."),
    ("Flat", " is better than nested."),
    ("Sparse is better than", " dense."),
]


def rows(conversational=False):
    """TRL's `prompt-completion` data, as texts or as conversations."""
    if not conversational:
        return [{"prompt": prompt, "completion": completion} for prompt, completion in TEXTS]
    return [
        {
            "prompt": [{"role": "system", "content": "Be wise."}, {"role": "user", "content": prompt}],
            "completion": [{"role": "assistant", "content": completion.strip()}],
        }
        for prompt, completion in TEXTS
    ]


def chat_tokenizer(template=TEMPLATE):
    return byte_tokenizer(eos_token="<|im_end|>", extra_special_tokens=["<|im_start|>"], chat_template=template)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """The folder of a tiny Llama whose tokenizer has a chat template."""
    folder, tokenizer = tmp_path_factory.mktemp("student"), chat_tokenizer()
    tiny_llama(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def options(tmp_path, **more):
    return {
        "output_dir": str(tmp_path / "out"),
        "max_steps": 2,
        "learning_rate": 0.1,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
    } | more


def train(tmp_path, model, data=None, *, arguments=None, **config):
    """Train, and check that every parameter that can be trained has changed and no other."""
    args = MDConfig(**options(tmp_path, **config))
    trainer = MDTrainer(model=model, args=args, train_dataset=rows() if data is None else data, **(arguments or {}))
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.state.log_history[-1]["train_loss"] > 0
    unused = ("vision_tower", "visual", "multi_modal_projector")
    for name, parameter in trainer.model.named_parameters():
        changed = not torch.equal(parameter, before[name])
        assert changed == (parameter.requires_grad and not any(part in name for part in unused)), name
    return trainer


@contextlib.contextmanager
def refused(*names):
    """Refused by an error that names the input, for a reason that the docs give."""
    with pytest.raises((InputError, TypeError)) as caught:
        yield
    docs = MDConfig.__doc__ + MDTrainer.__doc__
    for name in names:
        assert name in str(caught.value), caught.value
        assert name in docs, name


@pytest.fixture
def warnings(caplog, monkeypatch):
    for name in ("transformers", "md_trl"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    return caplog


# The trainer in the place of `SFTTrainer`


@pytest.mark.parametrize("trainer", [MDTrainer, MDSeq2SeqTrainer])
def test_arguments_have_the_order_of_sft_trainer(trainer):
    assert list(inspect.signature(trainer).parameters) == list(inspect.signature(SFTTrainer).parameters)


@pytest.mark.parametrize("argument", UNSUPPORTED_ARGUMENTS)
def test_arguments_without_a_meaning_are_refused(tmp_path, student, argument):
    with refused(argument):
        MDTrainer(student, MDConfig(**options(tmp_path)), train_dataset=rows(), **{argument: lambda *args: {}})


def test_every_refused_option_is_in_the_docs():
    args = MDConfig("out", use_cpu=True)
    undocumented = [name for name in args._unsupported() if f"`{name}`" not in MDConfig.__doc__]
    assert not undocumented
    for name in (*UNSUPPORTED_COLUMNS, *OTHER_FORMS.keys() - {"conversations"}):
        assert f"`{name}`" in MDConfig.__doc__
    for name in UNSUPPORTED_ARGUMENTS:
        assert f"`{name}`" in MDTrainer.__doc__


@pytest.mark.parametrize("config", [TrainingArguments, SFTConfig])
def test_other_configurations_are_converted(tmp_path, student, config):
    more = {"packing": True, "max_length": 77} if config is SFTConfig else {}
    given = config(**options(tmp_path, seed=7, weight_decay=0.3, hub_token="hf_secret", bf16=False, **more))
    trainer = MDTrainer(student, given, None, rows())
    args = trainer.args
    assert isinstance(args, MDConfig) and not args.remove_unused_columns
    assert (args.seed, args.weight_decay, args.hub_token, args.bf16) == (7, 0.3, "hf_secret", False)
    assert (args.layout, args.max_length) == (("packed", 77) if config is SFTConfig else ("tree", 1024))
    trainer.train()


def test_a_configuration_of_another_kind_is_refused(student):
    with refused("SFTConfig"):
        MDTrainer(student, {"output_dir": "out"}, train_dataset=rows())


def test_a_train_dataset_is_required(tmp_path, student):
    with refused("train_dataset"):
        MDTrainer(model=student, args=MDConfig(**options(tmp_path)))
    with refused("train_dataset"):
        MDTrainer(student, MDConfig(**options(tmp_path)), train_dataset=DatasetDict(train=Dataset.from_list(rows())))


def test_without_a_configuration_the_output_is_named_after_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_llama().save_pretrained("tiny")
    args = MDTrainer("tiny", train_dataset=rows(), processing_class=byte_tokenizer()).args
    assert args.output_dir == "tiny-MD"


def test_an_optimizer_class_is_used(tmp_path, student):
    arguments = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.5, "momentum": 0.9})}
    trainer = train(tmp_path, student, arguments=arguments)
    assert type(trainer.optimizer.optimizer) is torch.optim.SGD


# Models


@pytest.mark.parametrize(
    "architecture", ["cohere2", "glm4_moe", "gpt_oss", "qwen2", "qwen3_moe", "nemotron_h", "olmo3", "lfm2"]
)
def test_models_are_trained_by_name(tmp_path, architecture):
    tiny_model(architecture).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    args = MDConfig(**options(tmp_path))
    trainer = MDTrainer(str(tmp_path / "model"), args, train_dataset=rows())
    trainer.train()
    assert trainer.state.log_history[-1]["train_loss"] > 0


def test_a_loaded_model_is_trained(tmp_path, student):
    model = AutoModelForCausalLM.from_pretrained(student, dtype="float32")
    assert train(tmp_path, model, arguments={"processing_class": chat_tokenizer()}).model is model


def test_a_model_is_loaded_with_its_init_kwargs(tmp_path, student):
    trainer = train(tmp_path, student, model_init_kwargs={"dtype": torch.bfloat16, "attn_implementation": "eager"})
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.bfloat16}
    assert trainer.model.config._attn_implementation == "eager"


def test_remote_code_must_be_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "remote"
    model = tiny_llama()
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "remote", "architectures": ["RemoteForCausalLM"]}
    config["auto_map"] = {"AutoConfig": "remote.RemoteConfig", "AutoModelForCausalLM": "remote.RemoteForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "remote.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n\n\n"
        "class RemoteConfig(LlamaConfig):\n    model_type = 'remote'\n\n\n"
        "class RemoteForCausalLM(LlamaForCausalLM):\n    config_class = RemoteConfig\n"
    )
    with pytest.raises(ValueError, match="custom code"):
        MDTrainer(str(folder), MDConfig(**options(tmp_path)), train_dataset=rows())
    trainer = train(tmp_path, str(folder), trust_remote_code=True)
    assert type(trainer.model).__name__ == "RemoteForCausalLM"


def test_a_mixture_of_experts_has_no_load_balancing_loss(tmp_path, warnings):
    arguments = {"processing_class": byte_tokenizer()}
    for _ in range(2):
        trainer = MDTrainer(tiny_model("qwen3_moe"), MDConfig(**options(tmp_path)), train_dataset=rows(), **arguments)
    said = [record.message for record in warnings.records if "load-balancing" in record.message]
    assert len(said) == 2 and "`router_aux_loss_coef=0.0`" in said[0]  # one line per trainer
    assert not trainer.aux_loss_enabled and not trainer.model.config.output_router_logits
    with refused("router_aux_loss_coef"):
        MDConfig(**options(tmp_path, router_aux_loss_coef=0.01))
    assert MDConfig(**options(tmp_path, router_aux_loss_coef=None)).router_aux_loss_coef == 0.0


def test_experts_are_trained_with_lora(tmp_path):
    lora = LoraConfig(target_parameters=["mlp.experts.down_proj", "mlp.experts.gate_up_proj"])
    arguments = {"peft_config": lora, "processing_class": byte_tokenizer()}
    args = MDConfig(**options(tmp_path))
    trainer = MDTrainer(tiny_model("gpt_oss"), args, train_dataset=rows(), **arguments)
    trainable = {n: p.clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert trainable and all("lora" in name for name in trainable)
    # Each token is routed to some of the experts, so that part of a parameter may stay as it was
    assert all(not torch.equal(trainer.model.get_parameter(name), old) for name, old in trainable.items())


# Adapters


@pytest.mark.parametrize("checkpointing", [{}, {"gradient_checkpointing": True}])
def test_lora_is_trained(tmp_path, student, checkpointing):
    train(
        tmp_path, student, arguments={"peft_config": LoraConfig(target_modules=["q_proj", "v_proj"])}, **checkpointing
    )


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("lora", [True, False])
def test_checkpointing_may_be_reentrant(tmp_path, student, lora, use_reentrant):
    arguments = {"peft_config": LoraConfig(target_modules=["q_proj", "v_proj"])} if lora else {}
    kwargs = {"gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant}}
    train(tmp_path, student, arguments=arguments, gradient_checkpointing=True, **kwargs)


def test_a_peft_model_is_trained(tmp_path, student):
    model = AutoModelForCausalLM.from_pretrained(student, dtype="float32")
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    train(tmp_path, model, arguments={"processing_class": chat_tokenizer()})


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_prefix_tuning_equals_single_sequences(tmp_path, warnings, layout, wrapped):
    torch.manual_seed(0)
    model, prefix = tiny_llama(), PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=4)
    if wrapped:
        model, prefix = get_peft_model(model, prefix), None
    gradients = Gradients()
    trainer = MDTrainer(
        model,
        MDConfig(
            **options(tmp_path, layout=layout, max_steps=1, learning_rate=0.0, max_grad_norm=0.0, logging_steps=1),
            rationales_per_path="all",
            gradient_accumulation_steps=2,
        ),
        train_dataset=ROWS,
        processing_class=byte_tokenizer(),
        callbacks=[gradients],
        peft_config=prefix,
    )
    trainer.train()
    assert trainer.data_collator.layout == "padded"
    assert ("Prefix tuning" in warnings.text) == (layout == "tree")
    trainer.model.zero_grad()
    loss = reference_loss(trainer.model.eval(), byte_tokenizer(), ROWS)
    loss.backward()
    expected = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert set(gradients.steps[0]) == set(expected) and relative_error(gradients.steps[0], expected) < 1e-5


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("config", [PromptTuningConfig, PromptEncoderConfig])
def test_virtual_tokens_are_refused(tmp_path, config, wrapped):
    model, prompt = tiny_llama(), config(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=4)
    if wrapped:
        model, prompt = get_peft_model(model, prompt), None
    with pytest.raises(InputError, match=f"`{config.__name__}`: its virtual tokens would shift the targets"):
        MDTrainer(
            model,
            MDConfig(**options(tmp_path)),
            train_dataset=rows(),
            processing_class=byte_tokenizer(),
            peft_config=prompt,
        )


def test_a_quantized_model_is_trained_with_lora(tmp_path, student):
    quantization = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_use_double_quant=True, bnb_4bit_quant_type="nf4"
    )
    arguments = {"quantization_config": quantization, "peft_config": LoraConfig(target_modules=["q_proj"])}
    trainer = train(tmp_path, student, arguments=arguments, logging_steps=1)
    assert trainer.model.get_base_model().is_loaded_in_4bit
    assert trainer.state.log_history[0]["mean_token_accuracy"] is not None


@pytest.mark.parametrize("lora", [False, True])
def test_models_are_tagged(tmp_path, student, lora):
    arguments = {"peft_config": LoraConfig(target_modules=["q_proj"])} if lora else {}
    trainer = MDTrainer(student, MDConfig(**options(tmp_path)), train_dataset=rows(), **arguments)
    assert {"trl", "md_trl"} <= set(trainer.model.model_tags)


def test_liger_kernels_leave_the_loss_alone(tmp_path, student, monkeypatch):
    applied = []
    stand_in = types.ModuleType("liger_kernel.transformers")
    stand_in._apply_liger_kernel_to_instance = lambda model, **kernels: applied.append(kernels)
    monkeypatch.setitem(sys.modules, "liger_kernel", types.ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", stand_in)
    monkeypatch.setattr("transformers.integrations.liger.is_liger_kernel_available", lambda: True)
    with pytest.warns(FutureWarning, match="use_liger_kernel"):
        train(tmp_path, student, use_liger_kernel=True, liger_kernel_config={"rope": False})
    assert applied == [{"rope": False, "fused_linear_cross_entropy": False, "cross_entropy": False}]
    for loss in ("fused_linear_cross_entropy", "cross_entropy"):
        with refused("liger_kernel_config"):
            MDConfig(**options(tmp_path, use_liger_kernel=True, liger_kernel_config={loss: True}))


# Rows


def sft_labels(tmp_path, student, data, tokenizer):
    """Token ids and labels of the rows as `SFTTrainer` prepares them."""
    args = SFTConfig(**options(tmp_path, bf16=False, gradient_checkpointing=False))
    trainer = SFTTrainer(student, args, train_dataset=Dataset.from_list(data), processing_class=tokenizer)
    return [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]


def md_labels(tmp_path, student, data, tokenizer):
    trainer = MDTrainer(student, MDConfig(**options(tmp_path)), train_dataset=data, processing_class=tokenizer)
    thoughts = [row["label"][0] for row in trainer.train_dataset]
    return [(t["input_ids"], [-100] * t["start"] + t["input_ids"][t["start"] :]) for t in thoughts]


def multi_turn():
    turns = [("user", "Hi"), ("assistant", "Hello."), ("user", "Flat?"), ("assistant", "Better than nested.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    return [{"prompt": messages[:1], "completion": messages[1:]}, {"prompt": messages[:3], "completion": messages[3:]}]


def shouted():
    return [row | {"chat_template_kwargs": {"shout": bool(i % 2)}} for i, row in enumerate(rows(conversational=True))]


def ended():
    return [row | {"completion": row["completion"] + "<|im_end|>"} for row in rows()]


@pytest.mark.parametrize(
    "data",
    [rows(), rows(conversational=True), multi_turn(), shouted(), ended()],
    ids=["texts", "conversations", "several turns", "chat_template_kwargs", "EOS in the text"],
)
def test_rows_have_the_tokens_and_targets_of_sft_trainer(tmp_path, student, data):
    found = md_labels(tmp_path, student, data, chat_tokenizer())
    assert found == sft_labels(tmp_path, student, data, chat_tokenizer())


def test_messages_may_have_from_and_value(tmp_path, student):
    renamed = [
        {name: [{"from": m["role"], "value": m["content"]} for m in messages] for name, messages in row.items()}
        for row in rows(True)
    ]
    found, expected = (md_labels(tmp_path, student, data, chat_tokenizer()) for data in (renamed, rows(True)))
    assert found == expected


def test_targets_end_with_eos_whatever_a_template_writes_after_it(tmp_path, student):
    """ChatML writes a newline there, which no student is ever asked to write; some templates write no EOS at all."""
    found = md_labels(tmp_path, student, rows(True), chat_tokenizer(CHATML))
    expected = sft_labels(tmp_path, student, rows(True), chat_tokenizer(CHATML))
    newline = chat_tokenizer()("\n")["input_ids"]
    assert [(ids + newline, labels + newline) for ids, labels in found] == expected
    bare = md_labels(tmp_path, student, rows(True), chat_tokenizer(TEMPLATE.replace("<|im_end|>", "")))
    assert all(labels[-1] == ids[-1] == chat_tokenizer().eos_token_id for ids, labels in bare)


@pytest.mark.parametrize("conversational", [False, True])
@pytest.mark.parametrize("layout", ["tree", "packed", "padded"])
def test_unweighted_rows_divided_by_tokens_have_the_loss_and_gradients_of_sft_trainer(
    tmp_path, student, layout, conversational
):
    def gradients_of(trainer_class, config_class, **more):
        gradients = Gradients()
        config = {"max_steps": 1, "max_grad_norm": 0.0, "logging_steps": 1, "bf16": False, "learning_rate": 0.0}
        config |= {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2} | more
        trainer = trainer_class(
            student,
            config_class(**options(tmp_path, **config)),
            train_dataset=Dataset.from_list(rows(conversational)),
            callbacks=[gradients],
        )
        trainer.train()
        return trainer.state.log_history[0], gradients.steps[0]

    log, found = gradients_of(MDTrainer, MDConfig, layout=layout, weight_normalizer="tokens")
    expected_log, expected = gradients_of(SFTTrainer, SFTConfig, gradient_checkpointing=False)
    for figure in ("loss", "mean_token_accuracy", "grad_norm"):
        assert log[figure] == pytest.approx(expected_log[figure], rel=1e-5)
    assert set(found) == set(expected) and relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("conversational", [False, True])
def test_rows_are_trained_in_both_forms(tmp_path, student, conversational):
    train(tmp_path, student, rows(conversational), completion_only_loss=True)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"text": "Flat is better than nested."}, "prompt"),
        ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}, "prompt"),
        ({"conversations": [{"from": "human", "value": "Hi"}]}, "prompt"),
        ({"input_ids": [5, 6, 7]}, "tokenizes"),
        ({"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, "tokenizes"),
        ({"input_ids": [5, 6, 7], "assistant_masks": [0, 1, 1]}, "tokenizes"),
        (rows(True)[0] | {"tools": json.dumps([{"name": "add"}])}, "`tools`"),
        (rows(True)[0] | {"tools": [{"name": "add"}]}, "`tools`"),
        (rows()[0] | {"assistant_masks": [0, 1]}, "`assistant_masks`"),
        (rows(True)[0] | {"images": ["a.png"]}, "`images`"),
        (rows()[0] | {"image": "a.png"}, "`image`"),
        (ROWS[0] | {"tools": [{"name": "add"}]}, "`tools`"),
    ],
    ids=lambda value: "" if isinstance(value, str) else list(value)[-1],
)
def test_rows_of_other_kinds_are_refused(tmp_path, student, row, name):
    with refused(name):
        MDTrainer(student, MDConfig(**options(tmp_path)), train_dataset=[row])


def test_columns_without_values_are_ignored(tmp_path, student):
    train(tmp_path, student, [row | {"tools": None, "assistant_masks": []} for row in rows(True)])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Hi", "completion": [{"role": "assistant", "content": "Ho"}]}, "Both must be texts, or both conv"),
        ({"prompt": None, "completion": "Ho"}, "Both must be texts"),
        ({"prompt": [], "completion": []}, "has prompt \\[\\]. It must be a list of messages"),
        ({"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant"}]}, "without `role` or"),
    ],
)
def test_broken_conversations_are_refused_by_row(tmp_path, student, row, message):
    with pytest.raises(InputError, match=f"Row 0 .*{message}"):
        MDTrainer(student, MDConfig(**options(tmp_path)), train_dataset=[row])


def test_conversations_need_a_chat_template_that_renders_them(tmp_path):
    arguments = {"args": MDConfig(**options(tmp_path)), "train_dataset": rows(True)}
    with pytest.raises(InputError, match="has no chat template. Set `chat_template_path`"):
        MDTrainer(tiny_llama(), processing_class=byte_tokenizer(), **arguments)
    strict = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match="refuses the messages: roles must alternate"):
        MDTrainer(tiny_llama(), processing_class=chat_tokenizer(strict), **arguments)
    with pytest.raises(InputError, match="drops the message '"):
        MDTrainer(tiny_llama(), processing_class=chat_tokenizer("Hello"), **arguments)
    arguments["args"] = MDConfig(**options(tmp_path, prompt_format="plain"))
    with pytest.raises(InputError, match="which `prompt_format='plain'` cannot render"):
        MDTrainer(tiny_llama(), processing_class=chat_tokenizer(), **arguments)


def test_texts_need_no_chat_template_that_renders_them(tmp_path):
    lenient, strict = (
        MDTrainer(
            tiny_llama(vocab_size=260),
            MDConfig(**options(tmp_path)),
            train_dataset=rows(),
            processing_class=chat_tokenizer(template),
        ).train_dataset[:]
        for template in (TEMPLATE, "{{ raise_exception('begin with a system message') }}")
    )
    assert lenient == strict


def test_conversational_mixed_rows_have_the_tokens_of_texts(tmp_path, student):
    def as_conversation(row):
        thoughts = {
            path: [t | {"text": [{"role": "assistant", "content": t["text"]}]} for t in row[path]]
            for path in ("cot", "pot")
        }
        return row | thoughts | {"question": [{"role": "user", "content": row["question"]}]}

    texts, conversations = (
        MDTrainer(student, MDConfig(**options(tmp_path)), train_dataset=data).train_dataset[:]
        for data in (ROWS, [as_conversation(row) for row in ROWS])
    )
    assert texts == conversations
    system = {"role": "system", "content": "Think."}
    data = [as_conversation(row) for row in ROWS]
    data = [row | {"question": [system, *row["question"]]} for row in data]
    trainer = train(tmp_path, student, data)
    thought = trainer.train_dataset[0]["cot"][0]
    assert trainer.processing_class.decode(thought["input_ids"]) == (
        "<|im_start|>system\nThink.<|im_end|><|im_start|>user\nWhat is two and three?\nLet's think step by step."
        "<|im_end|><|im_start|>assistant\n2 + 3 = 5. The answer is 5.<|im_end|>"
    )
    for change, message in (
        ({"question": [{"role": "assistant", "content": "Hi"}]}, "must end with the user's question"),
        ({"cot": [[{"role": "user", "content": "Hi"}]]}, "one message of the assistant"),
        ({"chat_template_kwargs": {"shout": True}}, "chat_template_kwargs"),
    ):
        with pytest.raises(InputError, match=message):
            MDTrainer(student, MDConfig(**options(tmp_path)), train_dataset=[as_conversation(ROWS[0]) | change])


def test_long_rows_are_dropped_and_counted(tmp_path, student):
    long = {"prompt": "Now is better than", "completion": " never" * 20}
    trainer = train(tmp_path, student, [*rows(), long], max_length=60)
    assert trainer.dropped["train"] == {"type_4": 0, "no_thought": 1, "too_long": 1}
    assert all(len(row["label"][0]["input_ids"]) <= 60 for row in trainer.train_dataset)
    with refused("truncation_mode"), pytest.warns(FutureWarning):
        MDConfig(**options(tmp_path, truncation_mode="keep_end"))


def test_a_stream_or_a_transform_to_train_on_is_refused(tmp_path, student):
    data = Dataset.from_list(rows())
    with refused("train_dataset", "number of questions must be known"):
        MDTrainer(student, MDConfig(**options(tmp_path)), train_dataset=data.to_iterable_dataset())
    with refused("transform"):
        MDTrainer(student, MDConfig(**options(tmp_path)), train_dataset=data.with_transform(lambda batch: batch))


# Options


@pytest.mark.parametrize(
    "option",
    [
        {"loss_type": "dft"},
        {"label_smoothing_factor": 0.1},
        {"assistant_only_loss": True},
        {"padding_free": True},
        {"packing": True, "packing_strategy": "wrapped"},
        {"packing": True, "layout": "padded"},
        {"eval_packing": True},
        {"dataset_kwargs": {"skip_prepare_dataset": True}},
        {"pad_to_multiple_of": 8},
        {"completion_only_loss": False},
    ],
    ids=lambda option: list(option)[-1],
)
def test_options_that_would_change_the_objective_are_refused(tmp_path, option):
    name = "packing" if "layout" in option else list(option)[-1]
    with refused(name):
        MDConfig(**options(tmp_path, **option))


@pytest.mark.parametrize("eval_packing", [None, True, False])
def test_packing_is_a_layout(tmp_path, student, eval_packing):
    data = {"train_dataset": rows(), "eval_dataset": Dataset.from_list(rows())}
    losses = []
    for config in ({"packing": True, "eval_packing": eval_packing}, {"layout": "padded"}):
        trainer = MDTrainer(student, MDConfig(**options(tmp_path, max_length=64, **config)), **data)
        losses.append(trainer.evaluate()["eval_loss"])
        trainer.train()
        losses.append(trainer.state.log_history[-1]["train_loss"])
        layout = "packed" if "packing" in config else "padded"
        assert trainer.args.layout == trainer.data_collator.layout == layout
    assert losses[:2] == pytest.approx(losses[2:], rel=1e-5)


@pytest.mark.parametrize("source", ["file", "model"])
def test_a_chat_template_may_come_from_elsewhere(tmp_path, student, source):
    byte_tokenizer().save_pretrained(tmp_path / "plain")
    tiny_llama().save_pretrained(tmp_path / "plain")
    path = Path(student)
    if source == "file":
        path = tmp_path / "template.jinja"
        path.write_text(TEMPLATE.replace("<|im_end|>", "{{ eos_token }}"))
    config = {"chat_template_path": str(path), "save_strategy": "steps", "save_steps": 2}
    trainer = train(tmp_path, str(tmp_path / "plain"), rows(True), **config)
    expected = (path / "chat_template.jinja" if source == "model" else path).read_text()
    saved = tmp_path / "out" / "checkpoint-2"
    assert (saved / "chat_template.jinja").read_text() == trainer.processing_class.chat_template == expected
    assert json.loads((saved / "md_trl.json").read_text())["prompt_format"] == "chat"


# Evaluation


def evaluation_data(kind):
    data = Dataset.from_list(rows()[:3])
    stream = data.to_iterable_dataset()
    return {
        "dataset": data,
        "list": rows()[:3],
        "stream": stream,
        "dictionary": {"a": data, "b": data},
        "dictionary of lists": {"a": rows()[:3], "b": rows()[:3]},
        "dictionary of streams": {"a": stream, "b": stream},
        "DatasetDict": DatasetDict(a=data, b=data),
        "IterableDatasetDict": IterableDatasetDict(a=stream, b=stream),
    }[kind]


KINDS = ["dataset", "list", "stream", "dictionary", "dictionary of lists", "dictionary of streams", "DatasetDict"]


@pytest.mark.parametrize("kind", [*KINDS, "IterableDatasetDict"])
def test_evaluation_sets_may_be_lists_streams_and_dictionaries(tmp_path, student, kind):
    trainer = MDTrainer(student, MDConfig(**options(tmp_path)), None, rows(), evaluation_data(kind))
    expected = MDTrainer(student, MDConfig(**options(tmp_path)), None, rows()).evaluate(Dataset.from_list(rows()[:3]))
    names = ["eval_a_loss", "eval_b_loss"] if isinstance(evaluation_data(kind), dict) else ["eval_loss"]
    for metrics in (trainer.evaluate(), trainer.evaluate(eval_dataset=evaluation_data(kind))):
        for name in names:
            assert metrics[name] == pytest.approx(expected["eval_loss"])
    if len(names) == 1:
        assert trainer.predict(evaluation_data(kind)).metrics["test_loss"] == pytest.approx(expected["eval_loss"])


def test_there_need_be_no_evaluation_set(tmp_path, student):
    assert MDTrainer(student, MDConfig(**options(tmp_path)), train_dataset=rows()).eval_dataset is None


def test_evaluation_during_training_logs_each_set(tmp_path, student):
    config = options(tmp_path, eval_strategy="steps", eval_steps=1, metric_for_best_model="eval_a_mean_token_accuracy")
    trainer = MDTrainer(student, MDConfig(**config), None, rows(), evaluation_data("dictionary"))
    trainer.train()
    for name in ("eval_a_loss", "eval_b_loss", "eval_a_mean_token_accuracy"):
        assert sum(name in log for log in trainer.state.log_history) == 2
    assert trainer.state.best_metric is not None


# Vision-language models, trained on text


def train_vision_language_student(tmp_path, name, data, **config):
    folder = vision_language_student(name, tmp_path / "model")
    # The processor of Qwen needs torchvision
    arguments = {"processing_class": AutoTokenizer.from_pretrained(folder)} if name == "qwen2_5_vl" else {}
    trainer = train(tmp_path, folder, data, arguments=arguments, **config)
    assert isinstance(trainer.processing_class, ProcessorMixin) == (not arguments)
    return trainer


VISION_LANGUAGE = ["llava", "qwen2_5_vl", "gemma3"]


@pytest.mark.parametrize("name", VISION_LANGUAGE)
@pytest.mark.parametrize("conversational", [False, True])
def test_a_vision_language_model_is_trained_on_text(tmp_path, name, conversational):
    trainer = train_vision_language_student(tmp_path, name, rows(conversational))
    ids, start = (trainer.train_dataset[0]["label"][0][key] for key in ("input_ids", "start"))
    prompt, completion = TEXTS[0]
    if conversational:
        prompt = f"<|im_start|>system\nBe wise.</s><|im_start|>user\n{prompt}</s><|im_start|>assistant\n"
        completion = completion.strip()
    assert trainer._tokenizer.decode(ids[:start]) == prompt
    assert trainer._tokenizer.decode(ids[start:]) == f"{completion}</s>"


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("name", VISION_LANGUAGE)
def test_a_vision_language_model_has_the_loss_of_single_sequences(tmp_path, name, layout):
    folder = vision_language_student(name, tmp_path / "model")
    config = {"max_steps": 1, "learning_rate": 0.0, "logging_steps": 1, "per_device_train_batch_size": 8}
    config |= {"rationales_per_path": "all", "prompt_format": "plain", "layout": layout}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    args = MDConfig(**options(tmp_path, **config))
    trainer = MDTrainer(folder, args, train_dataset=ROWS, processing_class=tokenizer)
    trainer.train()
    assert trainer.data_collator.layout == layout
    expected = reference_loss(trainer.model.eval(), tokenizer, ROWS)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", VISION_LANGUAGE)
def test_a_vision_language_student_is_asked_as_it_was_trained(tmp_path, name, lora):
    arguments = {"peft_config": LoraConfig(target_modules=r".*language_model.*q_proj")} if lora else {}
    folder = vision_language_student(name, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    args = MDConfig(**options(tmp_path))
    trainer = MDTrainer(folder, args, train_dataset=ROWS, processing_class=tokenizer, **arguments)
    trainer.train()
    trainer.save_model()
    reasoner = MixedReasoner(args.output_dir, n=2, temperature=0.0, max_tokens=5)
    assert reasoner.prompt_format == "chat"
    [reasoned] = reasoner(["What is two and three?"])
    prompt = student_text("What is two and three?", "cot", tokenizer)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    generated = trainer.model.eval().generate(**ids, max_new_tokens=5, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert reasoned.cot[0].text == tokenizer.decode(generated, skip_special_tokens=True).strip()


def test_images_are_refused_whatever_the_model(tmp_path, student):
    for model in (student, vision_language_student("llava", tmp_path / "model")):
        with refused("`images`"):
            MDTrainer(model, MDConfig(**options(tmp_path)), train_dataset=[rows(True)[0] | {"images": ["a.png"]}])
