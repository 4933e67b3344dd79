import copy
import logging

import pytest
import torch
from architectures import ARCHITECTURES, NOT_BUILT, QUESTIONS, Outcome, compare, gradient, relative_error, tiny_model
from peft import LoraConfig
from students import byte_tokenizer, tiny_llama
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import md_trl.trainer.layout
from md_trl.errors import InputError
from md_trl.trainer import MDConfig, MDTrainer
from md_trl.trainer.layout import PROBE_TOKENS, check_layout, ordinary_tokens


# Together they have every kind of layer and every obstacle to a layout.
EXACT = (
    "llama gpt2 mistral qwen3 gemma3_text gpt_oss olmo3 llama4_text deepseek_v32 mixtral opt roberta lfm2 qwen3_next "
    "jamba falcon_h1"
)
PADDED = "bart bloom mpt falcon-alibi roformer gpt_neo blt mamba mamba2 rwkv recurrent_gemma zaya"
REFUSED = {
    "xlnet": "attends to later tokens",
    "cpmant": "attends to later tokens",
    "bert-encoder": "attends to later tokens",
    "prophetnet": "fails in padded rows",
    "reformer": "fails on a single sequence",
}


def verdict(outcome: Outcome) -> str:
    """The verdict alone if it is a good one."""
    good = outcome.verdict in ("exact", "falls back", "refused")
    return outcome.verdict if good else f"{outcome.verdict}: {outcome}"


@pytest.mark.parametrize("architecture", EXACT.split())
def test_the_default_layout_is_exact(architecture):
    assert verdict(compare(architecture)) == "exact"


@pytest.mark.parametrize("architecture", PADDED.split())
def test_an_architecture_that_cannot_take_the_default_layout_falls_back_to_padded_rows(architecture):
    assert verdict(compare(architecture)) == "falls back"


@pytest.mark.parametrize("architecture", REFUSED)
def test_an_architecture_that_no_layout_trains_exactly_is_refused_by_name(architecture):
    outcome = compare(architecture)
    assert verdict(outcome) == "refused"
    assert type(tiny_model(architecture)).__name__ in outcome.refusal and REFUSED[architecture] in outcome.refusal


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tree", "packed", "padded"])
def test_no_architecture_is_silently_wrong_or_crashes(layout):
    outcomes = [compare(architecture, layout) for architecture in ARCHITECTURES]
    assert len(outcomes) >= 160 and not set(ARCHITECTURES) & set(NOT_BUILT)
    bad = [verdict(o) for o in outcomes if o.verdict not in ("exact", "falls back", "refused")]
    assert not bad, "\n".join(bad)
    assert {o.architecture for o in outcomes if o.verdict == "refused"} == {*REFUSED, "xlm"}
    assert sum(o.verdict == "exact" for o in outcomes) >= (180 if layout == "padded" else 148)


@pytest.mark.parametrize("layout", ["tree", "packed", "padded"])
@pytest.mark.parametrize("architecture", ["roberta", "xlm-roberta-xl"])
def test_positions_that_begin_after_the_padding_token_are_right_in_every_layout(architecture, layout):
    assert verdict(compare(architecture, layout)) == "exact"


@pytest.mark.parametrize("attention", ["eager", "md_trl_varlen"])
@pytest.mark.parametrize("architecture", ["lfm2", "qwen3_next"])
def test_recurrent_layers_are_unrolled_whatever_the_attention(architecture, attention):
    assert verdict(compare(architecture, attention=attention)) == "exact"


@pytest.mark.parametrize("architecture", ["lfm2", "bamba"])
def test_recurrent_layers_are_unrolled_again_when_activations_are_recomputed(architecture):
    assert verdict(compare(architecture, activation_checkpointing=True)) == "exact"


def make_trainer(tmp_path, model, **options):
    peft_config = options.pop("peft_config", None)
    options = {"use_cpu": True, "report_to": "none", "router_aux_loss_coef": 0.0} | options
    args = MDConfig(str(tmp_path), rationales_per_path="all", **options)
    rows = copy.deepcopy(QUESTIONS)
    return MDTrainer(model, args, train_dataset=rows, processing_class=byte_tokenizer(), peft_config=peft_config)


def test_a_hybrid_with_lora_has_the_gradient_of_padded_rows(tmp_path):
    found = {}
    for layout in ("tree", "padded"):
        lora = LoraConfig(target_modules=["in_proj", "q_proj"], init_lora_weights=False)
        torch.manual_seed(0)
        trainer = make_trainer(tmp_path, tiny_model("lfm2"), layout=layout, peft_config=lora)
        assert trainer.data_collator.layout == layout
        (batch,) = trainer.get_train_dataloader()
        found[layout] = gradient(trainer.model, trainer.compute_loss(trainer.model.eval(), batch))
    assert relative_error(found["tree"], found["padded"]) < 1e-4


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("mpt", "has another loss or gradient in tree rows"),
        ("bloom", "fails in tree rows"),
        ("recurrent_gemma", "mixes the sequences of tree rows"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_check_finds_what_no_rule_knows(tmp_path, monkeypatch, caplog, architecture, reason, dtype):
    monkeypatch.setattr(md_trl.trainer.layout, "layout_obstacle", lambda model: None)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("md_trl"), "propagate", True)
    trainer = make_trainer(tmp_path, tiny_model(architecture).to(dtype))
    assert trainer.data_collator.layout == "padded"
    warnings = [record.message for record in caplog.records if "layout='padded'" in record.message]
    assert len(warnings) == 1 and reason in warnings[0]
    assert type(trainer.model).__name__ in warnings[0] and "'tree'" in warnings[0]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text", "mixtral", "lfm2", "qwen3_next"])
def test_rounding_of_half_precision_is_no_mistake(tmp_path, architecture):
    trainer = make_trainer(tmp_path, tiny_model(architecture).to(torch.bfloat16))
    assert trainer.data_collator.layout == "tree"


def test_rounding_of_autocast_is_no_mistake(tmp_path):
    assert make_trainer(tmp_path, tiny_llama(), bf16=True).data_collator.layout == "tree"


def test_rounding_of_a_deep_model_is_no_mistake(tmp_path):
    model = tiny_llama()
    layers = model.model.layers
    layers.extend([copy.deepcopy(layers[i % 2]) for i in range(30)])
    trainer = make_trainer(tmp_path, model.to(torch.bfloat16))
    assert trainer.data_collator.layout == "tree"


def test_without_the_check_recurrent_layers_get_padded_rows_and_the_rest_goes_by_the_rules(tmp_path):
    layouts = {
        name: make_trainer(tmp_path, tiny_model(name), check_layout=False).data_collator.layout
        for name in ("llama", "gemma3_text", "mpt", "lfm2", "xlnet")
    }
    assert layouts == {"llama": "tree", "gemma3_text": "tree", "mpt": "padded", "lfm2": "padded", "xlnet": "padded"}


def test_the_check_leaves_model_and_random_state_as_they_were():
    model, tokens = tiny_llama(), ordinary_tokens(byte_tokenizer())
    assert len(set(tokens)) == PROBE_TOKENS and not set(tokens) & {0, 1}
    model.model.layers[0].eval()
    model.train(True)
    model.model.layers[1].eval()
    training = [module.training for module in model.modules()]
    state = torch.get_rng_state()

    def loss_in(layout, thoughts):
        torch.rand(3)
        assert not any(module.training for module in model.modules())
        total = 0.0
        for thought in thoughts:
            ids = torch.tensor([thought["input_ids"]])
            logits = model(input_ids=ids).logits[0, thought["start"] - 1 : -1]
            loss = torch.nn.functional.cross_entropy(logits, ids[0, thought["start"] :], reduction="sum")
            total = total + thought["weight"] * loss
        return total

    assert check_layout(model, "tree", tokens, loss_in) == ("tree", None)
    assert [module.training for module in model.modules()] == training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.get_input_embeddings()._forward_hooks


def test_an_error_in_the_gradient_alone_is_found():
    model, tokens = tiny_llama(), ordinary_tokens(byte_tokenizer())

    def loss_in(layout, thoughts):
        (thought,) = (thought for thought in thoughts if thought["weight"])
        ids = torch.tensor([thought["input_ids"]])
        logits = model(input_ids=ids).logits[0, thought["start"] - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, thought["start"] :], reduction="sum")
        return loss if layout == "padded" else loss.detach() + 1.01 * (loss - loss.detach())

    layout, failure = check_layout(model, "tree", tokens, loss_in)
    assert layout == "padded" and failure.endswith("by 1.0%")


def test_a_model_whose_head_is_zero_is_no_mistake(tmp_path):
    model = tiny_llama()
    torch.nn.init.zeros_(model.lm_head.weight)
    assert make_trainer(tmp_path, model).data_collator.layout == "tree"


class WithItsOwnLookup(type(tiny_llama())):
    """A model that reads its table of embeddings without calling the module."""

    counts_along_the_row = False

    def forward(self, input_ids=None, position_ids=None, **kwargs):
        table = self.get_input_embeddings().weight
        if self.counts_along_the_row:
            position_ids = torch.arange(input_ids.shape[1])[None]
        return super().forward(inputs_embeds=table[input_ids], position_ids=position_ids, **kwargs)


@pytest.mark.parametrize(("counts_along_the_row", "layout"), [(False, "tree"), (True, "padded")])
def test_a_model_with_its_own_lookup_is_compared_by_its_loss(tmp_path, counts_along_the_row, layout):
    model = WithItsOwnLookup(tiny_llama().config)
    model.counts_along_the_row = counts_along_the_row
    assert make_trainer(tmp_path, model).data_collator.layout == layout


def test_a_tiny_vocabulary_is_trained_without_the_check(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("md_trl"), "propagate", True)
    words = "it is two three four five ? .".split()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(
            models.WordLevel({"<pad>": 0, "</s>": 1, **{w: i + 2 for i, w in enumerate(words)}}, unk_token="?")
        ),
        pad_token="<pad>",
        eos_token="</s>",
    )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    rows = [{"prompt": "it is ", "completion": "two three"}]
    args = MDConfig(str(tmp_path), use_cpu=True, report_to="none")
    trainer = MDTrainer(tiny_llama(), args, train_dataset=rows, processing_class=tokenizer)
    assert trainer.data_collator.layout == "tree"
    assert "the vocabulary is too small" in caplog.text


def test_a_model_that_fails_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(InputError, match="XLNetLMHeadModel cannot be trained exactly.*check_layout=False"):
        make_trainer(tmp_path, tiny_model("xlnet"), layout="padded")
