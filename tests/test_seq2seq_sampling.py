"""T5 students, trained on the command line, saved, loaded, sampled and voted on, against a slow loop."""

import json
from dataclasses import replace

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSeq2SeqLM
from students import t5_tokenizer, tiny_t5
from test_engines import slow_pick
from test_seq2seq_trainer import PROGRAM, train, train_on_the_command_line
from test_trainer import ROWS
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from md_trl import MixedReasoner
from md_trl.cli import run_verb
from md_trl.prompts import student_prompt
from md_trl.records import Choice, SamplingParams
from md_trl.sampling.engines import SampleRequest, cut_at_stop, derive_seed
from md_trl.sampling.engines.transformers import TransformersEngine
from md_trl.trainer import add_program_tokens
from md_trl.trainer.md_seq2seq_trainer import tokenize_for_encoder_and_decoder


def own_head(rows):
    """A T5 like v1.1 and FLAN-T5, whose LM head has its own weights."""
    model = tiny_t5(vocab_size=rows, tie_word_embeddings=False, feed_forward_proj="gated-gelu")
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight) * 0.2)
    return model


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("full"), tiny_t5())


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("lora"), tiny_t5(), "--use_peft", "true", "--lora_r", "8")


@pytest.fixture(scope="module")
def lora_own_head(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("own_head"), own_head(140), "--use_peft", "true", "--lora_r", "8")


def trained(tmp_path, start, *lora):
    """Train a student. Return its folder, and the model and tokenizer as transformers or PEFT load them."""
    few = ["--max_steps", "15", "--learning_rate", "0.01", "--warmup_steps", "0"]
    few += ["--eval_limit", "2", "--eval_n", "3", "--eval_max_tokens", "16"]
    folder = train_on_the_command_line(tmp_path, start, *few, *lora)
    model = (AutoPeftModelForSeq2SeqLM if lora else AutoModelForSeq2SeqLM).from_pretrained(folder)
    return folder, model.eval(), AutoTokenizer.from_pretrained(folder)


def slow_sample(model, tokenizer, request, sample):
    """Sample one token at a time, reading the prompt again for each. Return the ids and why they ended."""
    prompt = torch.tensor([tokenizer(request.prompt)["input_ids"]])
    assert prompt[0, -1] == tokenizer.eos_token_id
    params = request.params
    seed = derive_seed(params.seed, request.question_id, request.path, request.first_index + sample)
    generator, ids = torch.Generator().manual_seed(seed), [model.config.decoder_start_token_id]
    for _ in range(params.max_tokens):
        with torch.no_grad():
            output = model(input_ids=prompt, decoder_input_ids=torch.tensor([ids]), use_cache=False)
        token = slow_pick(output.logits[0, -1].double().numpy(), params, generator)
        ids.append(token)
        if token == tokenizer.eos_token_id:
            return ids[1:], "stop"
    return ids[1:], "length"


def slow_logprob(model, tokenizer, request, ids):
    """Mean over all tokens, with EOS if the text ended, from one forward pass at temperature 1."""
    prompt = torch.tensor([tokenizer(request.prompt)["input_ids"]])
    shifted = torch.tensor([[model.config.decoder_start_token_id, *ids[:-1]]])
    with torch.no_grad():
        logits = model(input_ids=prompt, decoder_input_ids=shifted, use_cache=False).logits
    return logits[0].log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).mean().item()


def texts(result):
    return [choice._replace(logprob=None) for choice in result.choices]


QUESTIONS = ["What is two and three?", "How many apples has Dan?"]


def requests_for(n=3, first_index=0, max_tokens=20, **kwargs):
    params = SamplingParams(max_tokens=max_tokens, **kwargs)
    return [
        SampleRequest(f"q{i}", path, student_prompt(question, path), params, n, first_index)
        for i, question in enumerate(QUESTIONS)
        for path in ("cot", "pot")
    ]


def results_of(engine, requests):
    return {(r.request.question_id, r.request.path): r for r in engine.generate(requests)}


@pytest.mark.parametrize("student", ["full", "lora", "lora_own_head"])
def test_samples_equal_a_slow_loop(student, request, monkeypatch):
    folder, model, tokenizer = request.getfixturevalue(student)
    engine, reasons = TransformersEngine(str(folder), batch_size=16), set()
    for arguments in ({"n": 2}, {"n": 1, "temperature": 1.5, "first_index": 4, "seed": 7}, {"n": 1, "temperature": 0}):
        requests = requests_for(**arguments)
        written = results_of(engine, requests)
        with monkeypatch.context() as patch:
            patch.setattr(engine, "_choice", lambda ids, stopped, stop: Choice(ids, "stop" if stopped else "length"))
            found = results_of(engine, requests)
        for key, request in {(request.question_id, request.path): request for request in requests}.items():
            expected = [slow_sample(model, tokenizer, request, i) for i in range(request.n)]
            assert [choice[:2] for choice in found[key].choices] == expected
            for choice, (ids, _) in zip(found[key].choices, expected, strict=True):
                assert choice.logprob == pytest.approx(slow_logprob(model, tokenizer, request, ids), abs=1e-4)
            texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids, _ in expected]
            assert [choice.text for choice in written[key].choices] == texts
            usage = {"prompt_tokens": len(tokenizer(request.prompt)["input_ids"])}
            assert written[key].usage == usage | {"completion_tokens": sum(len(ids) for ids, _ in expected)}
            reasons |= {reason for _, reason in expected}
    assert reasons == {"stop", "length"}


def test_the_batch_changes_nothing(lora):
    folder, _, _ = lora
    requests = requests_for(n=4)
    together = {key: texts(r) for key, r in results_of(TransformersEngine(str(folder)), requests).items()}
    for options in ({"batch_size": 1}, {"batch_size": 7}, {"cache_gb": 1e-6}):
        engine = TransformersEngine(str(folder), **options)
        assert {key: texts(r) for key, r in results_of(engine, reversed(requests)).items()} == together
    tails = results_of(engine, requests_for(n=2, first_index=2))
    assert {key: texts(r) for key, r in tails.items()} == {key: choices[2:] for key, choices in together.items()}


def test_stop_strings(lora_own_head):
    folder, _, _ = lora_own_head
    # "1" also occurs in T5's special tokens such as `<extra_id_1>`, which are not part of the text.
    engine, stop = TransformersEngine(str(folder)), ("1", "an", "\n")
    free, cut = (results_of(engine, requests_for(n=10, stop=strings)) for strings in ((), stop))
    for key, result in free.items():
        assert texts(cut[key]) == [cut_at_stop(choice, stop) for choice in texts(result)]
    tokens = [sum(r.usage["completion_tokens"] for r in results.values()) for results in (free, cut)]
    assert tokens[1] < tokens[0]  # The rows ended there and were not only cut afterwards.


def test_the_encoder_reads_each_prompt_once_as_it_was_trained(full):
    folder, _, tokenizer = full
    engine, read = TransformersEngine(str(folder)), []

    def keep(encoder, args, kwargs):
        for ids, mask in zip(kwargs["input_ids"], kwargs["attention_mask"], strict=True):
            read.append(ids[mask.bool()].tolist())

    engine._model.get_encoder().register_forward_pre_hook(keep, with_kwargs=True)
    list(engine.generate(requests_for(n=20)))
    trained = []
    for question in QUESTIONS:
        for path in ("cot", "pot"):
            [row] = tokenize_for_encoder_and_decoder(student_prompt(question, path), ["a"], tokenizer)
            trained.append(row["input_ids"][: row["start"]])
    assert sorted(read) == sorted(trained)


@pytest.mark.parametrize("student", ["full", "lora"])
def test_evaluating_again_samples_nothing(student, request, tmp_path, capsys):
    folder, model, tokenizer = request.getfixturevalue(student)
    assert tokenizer.decode(tokenizer(PROGRAM)["input_ids"], skip_special_tokens=True) == PROGRAM
    [result] = [json.loads(file.read_text()) for file in (folder / "results").glob("*.json")]
    assert len(result["questions"]) == 2
    assert all(len(question[path]) == 3 for question in result["questions"] for path in ("cot", "pot"))
    evaluation = ["--model", str(folder), "--task", "stories", "--limit", "2", "--n", "3", "--max_tokens", "16"]
    evaluation += ["--prompt_format", "plain", "--store", str(folder / "student.db"), "--output", str(tmp_path)]
    run_verb("eval", evaluation)
    assert "0 thoughts from 0 requests" in capsys.readouterr().out
    [again] = [json.loads(file.read_text()) for file in tmp_path.glob("*.json")]
    assert again == result


def test_a_student_reasons_from_its_folder_and_from_memory(lora):
    folder, model, tokenizer = lora
    arguments = {"n": 4, "stop": "fixed", "max_tokens": 10}
    found = MixedReasoner(str(folder), **arguments)(QUESTIONS)
    for reasoned, other in zip(found, MixedReasoner(model, tokenizer=tokenizer, **arguments)(QUESTIONS), strict=True):
        for thought, same in zip(reasoned.cot + reasoned.pot, other.cot + other.pot, strict=True):
            assert thought == replace(same, logprob=thought.logprob, model=thought.model)
            assert thought.logprob == pytest.approx(same.logprob, abs=1e-4)
        assert reasoned.answer == other.answer
    assert all(len(reasoned.cot) == len(reasoned.pot) == 2 for reasoned in found)


def test_an_adapter_says_what_it_is(lora):
    folder, _, _ = lora
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_2_SEQ_LM"
    assert set(config["target_modules"]) == {"q", "v"} and len(config["trainable_token_indices"]) == 13
    with pytest.raises(ValueError, match="PeftModelForSeq2SeqLM"):
        AutoPeftModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("rows", [140, 110], ids=["rows to spare", "resized"])
def test_the_head_of_a_checkpoint_is_kept(tmp_path, rows):
    own_head(rows).save_pretrained(tmp_path / "t5")
    model, known = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "t5"), len(t5_tokenizer())
    head = model.lm_head.weight[:known].clone()
    assert not torch.equal(head, model.shared.weight[:known])
    _, new_ids = add_program_tokens(t5_tokenizer(), model)
    assert torch.equal(model.lm_head.weight[:known], head)
    torch.testing.assert_close(model.lm_head.weight[new_ids], head.mean(0).expand(len(new_ids), -1))
    model.save_pretrained(tmp_path / "student")
    copy = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "student").state_dict()
    assert all(torch.equal(copy[name], weight) for name, weight in model.state_dict().items())


def test_an_adapter_that_could_not_keep_the_head_is_refused(tmp_path, lora_own_head):
    _, model, _ = lora_own_head
    with pytest.raises(ValueError, match="LM head of its own and 110 embeddings.*without `peft_config`"):
        train(tmp_path, own_head(110), ROWS, peft_config=model.peft_config["default"])
