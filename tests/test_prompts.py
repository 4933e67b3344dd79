import json
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from conftest import SHARED, needs_shared
from students import byte_tokenizer
from tokenizers.processors import TemplateProcessing

from md_trl import prompts
from md_trl.errors import InputError
from md_trl.prompts import (
    OWN_TASK_EXAMPLES,
    STOP,
    TRIGGERS,
    encode,
    encode_prompt,
    read_student_settings,
    render,
    resolve_prompt_format,
    student_prompt,
    student_text,
    teacher_messages,
    teacher_prompt,
)
from md_trl.records import ALL_PATHS, PATHS, Question
from md_trl.tasks import TASKS, load_questions


DATA = SHARED / "data"
EXAMPLES = {
    task: json.loads((Path(prompts.__file__).parent / "examples" / f"{task}.json").read_text(encoding="utf-8"))
    for task in TASKS
}
EACH = [pytest.param(task, example, id=f"{task}-{n}") for task in TASKS for n, example in enumerate(EXAMPLES[task])]


def asked(task, text="How many moons has Mars?", answer="gold-17"):
    return Question(id=f"{task}/train/name-23", task=task, split="train", question=text, answer=answer)


def same(value, answer):
    """Compare a program's value with an answer, without relying on `md_trl.answers`."""
    try:
        return Fraction(answer) == Fraction(str(value))
    except ValueError:
        return value == answer


def words(text):
    return re.findall(r"[a-z0-9]+", text.lower())


def test_triggers_are_those_of_the_paper():
    of_the_paper = {"cot": "Let's think step by step.", "pot": "Let's break down the code step by step."}
    assert {path: TRIGGERS[path] for path in PATHS} == of_the_paper
    assert TRIGGERS.keys() == set(ALL_PATHS)


@pytest.mark.parametrize("task", TASKS)
def test_four_to_eight_different_examples(task):
    assert 4 <= len(EXAMPLES[task]) <= 8
    assert len({example["question"] for example in EXAMPLES[task]}) == len(EXAMPLES[task])
    assert all(example.keys() == {"question", "answer", "cot", "plan", "pot"} for example in EXAMPLES[task])


@pytest.mark.parametrize(("task", "example"), EACH)
def test_the_chain_of_thought_ends_with_the_answer(task, example):
    assert example["cot"].endswith(f" The answer is {example['answer']}.")
    assert example["cot"].count("The answer is") == 1
    # Every calculation on the way is right.
    for left, right in re.findall(r"((?:[\d.]+ [-+*/] )+[\d.]+) = ([\d.]*\d)", example["cot"]):
        assert Fraction(right) == Fraction(str(eval(left)))


@pytest.mark.parametrize(("task", "example"), EACH)
def test_the_program_reaches_the_answer(task, example):
    program = "\n".join(example["pot"])
    variables = {}
    exec(program, variables)
    assert same(variables["answer"], example["answer"])
    assert set(re.findall(r"import (\w+)", program)) <= {"math"}
    assert "print" not in program


@pytest.mark.parametrize("example", EXAMPLES["strategyqa"])
def test_strategyqa_programs_carry_the_chain_of_thought_as_comments(example):
    assert example["pot"][-1].strip() in ('answer = "yes"', 'answer = "no"')
    comments = " ".join(line for line in example["pot"] if line.startswith("# "))
    steps = example["cot"].removesuffix(f" The answer is {example['answer']}.")
    # Mostly the same words, in different sentences
    assert len(set(words(comments)) & set(words(steps))) > 0.6 * len(set(words(steps)))


def test_examples_show_the_answers_that_a_task_asks_for():
    answers = {task: {example["answer"] for example in EXAMPLES[task]} for task in TASKS}
    assert answers["strategyqa"] == {"yes", "no"}
    assert {"3:4", "24; 17", "12:25", "Vera", "no"} < answers["asdiv"]
    assert {"neither day", "Theo"} < answers["stories"]
    assert all(answer.isdecimal() for answer in answers["svamp"] | answers["gsm8k"])


def data_questions():
    for row in json.loads((DATA / "SVAMP.json").read_text(encoding="utf-8")):
        yield f"{row['Body']} {row['Question']}"
    for path in (DATA / "gsm8k").glob("*.jsonl"):
        yield from (json.loads(line)["question"] for line in path.open(encoding="utf-8"))
    for problem in ElementTree.parse(DATA / "ASDiv.xml").iter("Problem"):
        yield f"{problem.findtext('Body')} {problem.findtext('Question')}"
    for path in [*(DATA / "strategyqa").glob("*.json"), *(DATA / "svamp_teacher").glob("*.json")]:
        yield from (row["question"] for row in json.loads(path.read_text(encoding="utf-8")))


@needs_shared("data/SVAMP.json", "data/gsm8k", "data/ASDiv.xml", "data/strategyqa", "data/svamp_teacher")
def test_no_example_is_a_question_of_a_dataset():
    ours = {" ".join(words(example["question"])): example for task in TASKS for example in EXAMPLES[task]}
    # Eight words in a row would be a reworded question.
    runs = {" ".join(words(text)[n : n + 8]) for text in ours for n in range(len(words(text)) - 7)}
    count = 0
    for text in data_questions():
        theirs = words(text)
        assert " ".join(theirs) not in ours
        assert not runs & {" ".join(theirs[n : n + 8]) for n in range(len(theirs) - 7)}, text
        count += 1
    assert count == 1000 + 7473 + 1319 + 2305 + 2061 + 229 + 3076 + 3043


def test_no_example_is_a_story():
    stories = {
        " ".join(words(story.question)) for split in ("train", "test") for story in load_questions("stories", split)
    }
    assert not stories & {" ".join(words(example["question"])) for example in EXAMPLES["stories"]}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("task", TASKS)
def test_teacher_messages(task, path):
    *turns, last = teacher_messages(asked(task), path)
    assert last == {"role": "user", "content": f"How many moons has Mars?\n{TRIGGERS[path]}"}
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * len(EXAMPLES[task])
    for example, user, assistant in zip(EXAMPLES[task], turns[::2], turns[1::2], strict=True):
        assert user["content"] == f"{example['question']}\n{TRIGGERS[path]}"
        assert assistant["content"] == (example["cot"] if path == "cot" else "\n".join(example["pot"]))
    # Neither the gold answer nor the id may reach the teacher.
    assert "gold-17" not in str([*turns, last]) and "name-23" not in str([*turns, last])


@pytest.mark.parametrize("path", PATHS)
def test_messages_are_not_shared_between_calls(path):
    first = teacher_messages(asked("svamp"), path)
    for message in first:
        message["content"] = "changed"
    first.clear()
    second = teacher_messages(asked("svamp"), path)
    assert second == teacher_messages(asked("svamp"), path)
    assert "changed" not in str(second)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("task", TASKS)
def test_teacher_prompt_is_the_chat_as_text(task, path):
    prompt = teacher_prompt(asked(task), path)
    assert prompt.endswith(f"\n\nQuestion:\nHow many moons has Mars?\n{TRIGGERS[path]}\n")
    turns = [turn for block in prompt.split("Question:\n")[1:] for turn in split_block(block, TRIGGERS[path])]
    assert turns == [message["content"] for message in teacher_messages(asked(task), path)] + [""]


def split_block(block, trigger):
    question, _, thought = block.partition(f"\n{trigger}\n")
    return [f"{question}\n{trigger}", thought.strip()]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("task", TASKS)
def test_stop_cuts_a_completion_after_the_thought(task, path):
    # A base model continues like the prompt: with a thought, then with the next question.
    for turn in teacher_messages(asked(task), path)[1::2]:
        text = teacher_prompt(asked(task), path) + turn["content"] + "\n\nQuestion:\nHow many moons has Venus?\n"
        completion = text.removeprefix(teacher_prompt(asked(task), path))
        for stop in STOP:
            completion = completion.split(stop)[0]
        assert completion.strip() == turn["content"]


def test_unknown_path():
    for path in ("label", "tot"):
        with pytest.raises(ValueError, match=f"'{path}'.*cot, pot"):
            teacher_messages(asked("svamp"), path)
        with pytest.raises(ValueError, match=f"'{path}'.*cot, pot"):
            teacher_prompt(asked("svamp"), path)


def test_a_task_of_ones_own_is_asked_with_examples_of_three_kinds_of_answers():
    for path in PATHS:
        turns = [turn["content"] for turn in teacher_messages(asked("aqua"), path)]
        known = {
            turn["content"]
            for task in ("gsm8k", "asdiv", "strategyqa")
            for turn in teacher_messages(asked(task), path)
        }
        assert set(turns) <= known and len(turns) == 2 * 6 + 1
    examples = [
        example
        for task, chosen in OWN_TASK_EXAMPLES.items()
        for n, example in enumerate(EXAMPLES[task])
        if n in chosen
    ]
    kinds = Counter("number" if example["answer"].isdigit() else example["answer"] for example in examples)
    assert kinds == {"number": 3, "Vera": 1, "no": 1, "yes": 1}


def test_examples_of_ones_own_take_the_place_of_those_of_the_task():
    examples = [{"question": "How many legs has a cat?", "cot": "Four. The answer is 4.", "pot": "answer = 4"}]
    for task in ("svamp", "aqua"):
        question, thought, asked_last = teacher_messages(asked(task), "pot", examples)
        assert question["content"] == f"How many legs has a cat?\n{TRIGGERS['pot']}"
        assert thought["content"] == "answer = 4" and asked_last == teacher_messages(asked(task), "pot")[-1]
        assert teacher_prompt(asked(task), "cot", examples).startswith("Question:\nHow many legs has a cat?\n")


# Students


def chat_tokenizer():
    """A tokenizer that adds BOS by itself, with a template that writes it too."""
    template = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}> "
    tokenizer = byte_tokenizer(bos_token="<pad>", chat_template=template)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<pad> $A", special_tokens=[("<pad>", 1)])
    return tokenizer


def test_prompt_formats():
    plain, chat = byte_tokenizer(), chat_tokenizer()
    assert [resolve_prompt_format(tokenizer) for tokenizer in (None, plain, chat)] == ["plain", "plain", "chat"]
    assert [resolve_prompt_format(chat, name) for name in ("plain", "chat")] == ["plain", "chat"]
    for tokenizer in (None, plain):
        with pytest.raises(ValueError, match="needs a tokenizer with a chat template"):
            resolve_prompt_format(tokenizer, "chat")
    with pytest.raises(ValueError, match="Unknown `prompt_format` 'alpaca'. Choose one of auto, plain, chat"):
        resolve_prompt_format(plain, "alpaca")


def test_student_prompts():
    assert student_prompt(" Why? ", "cot") == f"Why?\n{TRIGGERS['cot']}\n"
    assert student_prompt("Why?", "label") == "Why?\n"
    assert student_prompt("Why?", "pot", "chat") == [{"role": "user", "content": f"Why?\n{TRIGGERS['pot']}"}]
    assert student_prompt("Why?", "label", "chat") == [{"role": "user", "content": "Why?"}]
    with pytest.raises(ValueError, match="Unknown path 'tot'. Choose one of cot, pot, label"):
        student_prompt("Why?", "tot")
    with pytest.raises(ValueError, match="`prompt_format` is 'auto'. Use 'plain' or 'chat'"):
        student_prompt("Why?", "cot", "auto")


def test_a_prompt_says_how_it_is_rendered_and_encoded():
    """Messages get their special tokens from the template, text gets them from the tokenizer: one BOS each."""
    tokenizer = chat_tokenizer()
    for path in (*PATHS, "label"):
        messages, text = student_prompt("Why?", path, "chat"), student_prompt("Why?", path)
        rendered = render(messages, tokenizer)
        assert rendered == f"<pad>user: {messages[0]['content']}> " == student_text("Why?", path, tokenizer)
        assert render(text, tokenizer) == text == student_text("Why?", path, tokenizer, "plain")
        assert encode_prompt(messages, tokenizer) == encode(tokenizer, [rendered], chat=True)[0]
        assert encode_prompt(text, tokenizer) == encode(tokenizer, [text], chat=False)[0]
        assert [encode_prompt(prompt, tokenizer).count(1) for prompt in (messages, text)] == [1, 1]
    with pytest.raises(ValueError, match="no chat template.*few_shot_text"):
        render(messages, byte_tokenizer())


def test_settings_of_a_student_are_read_from_its_folder_or_the_hub(tmp_path, monkeypatch):
    settings = {"md_trl": "0.1", "objective": "md", "paths": ["cot", "pot"], "prompt_format": "chat", "triggers": {}}
    assert read_student_settings(tmp_path) is None
    (tmp_path / "md_trl.json").write_text(json.dumps(settings))
    assert read_student_settings(str(tmp_path)) == settings
    # The cache of the Hub, as it is after a download
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert read_student_settings("me/student") is None
    snapshot = tmp_path / "hub" / "models--me--student" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "md_trl.json").write_text(json.dumps(settings))
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    assert read_student_settings("me/student") == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "`prompt_format` None"),
        ('{"prompt_format": "auto"}', "`prompt_format` 'auto'"),
    ],
)
def test_broken_settings_of_a_student_are_refused_by_name(tmp_path, text, message):
    (tmp_path / "md_trl.json").write_text(text)
    with pytest.raises(InputError, match=f"md_trl.json {message}|md_trl.json has {message}"):
        read_student_settings(tmp_path)
