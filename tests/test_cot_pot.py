"""The opt-in third path: a plan in prose and then a program, from the teacher's prompt to the report."""

import json
import re
import shutil
import threading
from collections import Counter
from dataclasses import replace

import pytest
import torch
from datasets import Dataset, load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from students import byte_tokenizer, tiny_llama

from md_trl import MDConfig, MDTrainer
from md_trl.answers import equal
from md_trl.cli import main
from md_trl.curves import mean_curve
from md_trl.errors import InputError
from md_trl.evaluation import EvaluationResult, QuestionResult
from md_trl.execution import Executor
from md_trl.judging import mark, read_answers
from md_trl.mixing import mix
from md_trl.prompts import TRIGGERS, student_prompt, teacher_messages, teacher_prompt
from md_trl.records import LABEL, PATHS, MixedRow, Question, SamplingParams, Thought
from md_trl.report import accuracy_table, load_results
from md_trl.simulated_teacher import TeacherServer
from md_trl.student_evaluation import StudentEvaluation
from md_trl.tasks import TASKS
from md_trl.trainer.prefix_tree import build_tree
from md_trl.voting import vote
from md_trl.weighting import path_rows, path_weights


QUESTION = Question("toy/train/1", "toy", "train", "What is 2 plus 3?", "5")
PLAN = "Add the two numbers."
FENCED = f"{PLAN}\n```python\nanswer = 2 + 3\n```"


# Prompts and answers


@pytest.mark.parametrize("task", TASKS)
def test_every_worked_example_plans_and_then_computes_its_answer(task):
    question = replace(QUESTION, task=task)
    *turns, last = teacher_messages(question, "cot_pot")
    assert last["content"] == f"What is 2 plus 3?\n{TRIGGERS['cot_pot']}"
    programs, chains = teacher_messages(question, "pot")[1::2], teacher_messages(question, "cot")[1::2]
    texts = [turn["content"] for turn in turns[1::2]]
    for text, program, chain in zip(texts, programs, chains, strict=True):
        plan, found = re.fullmatch(r"(.+)\n```python\n((?s:.+))\n```", text).groups()
        assert found == program["content"]  # the program alone is the example of the PoT
        gold = re.search(r"The answer is (.+)\.$", chain["content"])[1]
        assert plan.endswith(".")
        assert not (re.search(r"\d", gold) and re.search(rf"\b{re.escape(gold)}\b", plan))  # not what comes out
    with Executor() as executor:
        read = read_answers([Thought("q", "cot_pot", i, text) for i, text in enumerate(texts)], executor)
    answers = [re.search(r"The answer is (.+)\.$", chain["content"])[1] for chain in chains]
    assert all(equal(thought.answer, answer) for thought, answer in zip(read, answers, strict=True))
    # Text for models without a chat template. The stop string of the prompt does not cut a thought.
    assert teacher_prompt(question, "cot_pot").endswith(f"What is 2 plus 3?\n{TRIGGERS['cot_pot']}\n")
    assert all("\nQuestion:" not in text for text in texts)


def test_a_student_is_asked_with_the_trigger_alone():
    assert student_prompt("Why?", "cot_pot") == f"Why?\n{TRIGGERS['cot_pot']}\n"
    assert len(set(TRIGGERS.values())) == 3


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (FENCED, "5"),
        (f"{PLAN}\n```\nanswer = 2 + 3\n```\nThat is all.", "5"),
        (f"{PLAN} First x = 2.\nThen add 3.\n```python\nx = 2\nanswer = x + 3", "5"),  # no closing fence
        (f"{PLAN}\nx = 2\nanswer = x + 3", "5"),  # no fence
        ("2 + 3 = 6. The answer is 6.\n```python\nanswer = 2 + 3\n```", "5"),  # what the plan says does not count
        ("Add the numbers. The answer is 5.", None),  # no program
        (f"{PLAN}\n```python\nanswer = unknown\n```", None),
    ],
)
def test_the_answer_is_that_of_the_program(text, answer):
    with Executor() as executor:
        [read] = read_answers([Thought("q", "cot_pot", 0, text)], executor)
        [cut] = read_answers([Thought("q", "cot_pot", 0, text, finish_reason="length")], executor)
    assert read.answer == answer and cut.answer is None


# Mixing and weights


def judged(path, marks):
    """Thoughts that are right (1) or state another answer (0)."""
    return [
        Thought("toy/train/1", path, i, f"{path} {i}", answer="5" if right else "6", correct=bool(right))
        for i, right in enumerate(marks)
    ]


marks = st.lists(st.integers(0, 1), min_size=1, max_size=6)


@given(marks, marks, st.lists(st.integers(0, 1), max_size=6))
@settings(max_examples=100, deadline=None)
def test_each_path_weighs_its_share_of_the_correct_thoughts_and_the_paper_s_columns_stay(cot, pot, third):
    thoughts = judged("cot", cot) + judged("pot", pot)
    [two] = mix([QUESTION], thoughts)
    assert list(two.to_dict()) == list(MixedRow.features())
    [row] = mix([QUESTION], thoughts + judged("cot_pot", third))
    columns = row.to_dict()
    assert list(columns) == list(MixedRow.features(("cot", "pot", "cot_pot") if third else PATHS))
    assert {name: columns[name] for name in two.to_dict()} == two.to_dict()
    if not third:
        return
    assert (row.n_cot_pot, row.n_cot_pot_correct, len(row.cot_pot)) == (len(third), sum(third), len(third))
    counts = {"cot": sum(cot), "pot": sum(pot), "cot_pot": sum(third)}
    weights = path_weights("md", row.type, row.lambda_, cot_pot_share=row.cot_pot_share)
    if row.type == 3:
        assert weights == pytest.approx({path: n / sum(counts.values()) for path, n in counts.items()})
    elif row.type in (1, 2):
        assert weights == dict.fromkeys(counts, 1.0)


def test_weights_of_the_objectives():
    assert path_weights("uniform", 3, 0.9, cot_pot_share=0.8) == pytest.approx(dict.fromkeys(TRIGGERS, 1 / 3))
    assert path_weights("cot_pot", 3, 0.9, cot_pot_share=0.8) == {"cot_pot": 1.0}
    assert path_weights("cot", 3, 0.9, cot_pot_share=0.8) == {"cot": 1.0}
    assert path_weights("md", 3, 0.75) == {"cot": 0.25, "pot": 0.75}


# Training


def correct(*texts):
    return [{"text": text, "answer": "5", "correct": True, "count": 1} for text in texts]


def row(name, type_, cot, pot, cot_pot, **columns):
    row = {"id": f"toy/train/{name}", "task": "toy", "question": f"What is {name}?", "answer": "5", "type": type_}
    row |= {"lambda": None, "repeat": 1, "cot": correct(*cot), "pot": correct(*pot), "cot_pot_share": None}
    return row | {"cot_pot": None if cot_pot is None else correct(*cot_pot)} | columns


ROWS = [
    row(
        "two plus three",
        3,
        ["2 + 3 = 5. The answer is 5.", f"{PLAN} The answer is 5."],
        ["answer = 2 + 3"],
        [FENCED, f"{PLAN}\n```python\nx = 2\nanswer = x + 3\n```"],
        **{"lambda": 1 / 3, "cot_pot_share": 2 / 5},
    ),
    row("large", 1, ["Easy. The answer is 5."], ["answer = 10 - 5"], [FENCED], cot_pot_share=1 / 3, repeat=3),
    row("language", 2, ["A handful. The answer is 5."], [], [], cot_pot_share=0.0),
    # As in the configuration of all tasks, some of which lack the path
    row("even", 3, ["Half of ten. The answer is 5."], ["answer = 10 // 2"], None, **{"lambda": 0.5}),
]


def slow_loss(model, objective):
    """The objective over one thought at a time, with each weight written down from the counts of correct thoughts."""
    tokenizer, total, count = byte_tokenizer(), 0.0, 0
    for r in ROWS:
        thoughts = {path: [t["text"] for t in r[path] or []] for path in TRIGGERS if r[path] is not None}
        of_all = sum(map(len, thoughts.values()))
        count += r["repeat"]
        for path, texts in thoughts.items():
            weight = len(texts) / of_all if r["type"] == 3 else 1.0
            if objective == "uniform":
                weight = 1 / len(thoughts) if r["type"] == 3 else 1.0
            if objective in TRIGGERS:
                weight = float(path == objective)
            for text in texts:
                start = len(tokenizer(prompt := f"{r['question']}\n{TRIGGERS[path]}\n")["input_ids"])
                ids = torch.tensor(tokenizer(prompt + text)["input_ids"] + [tokenizer.eos_token_id])
                losses = torch.nn.functional.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="none")
                total = total + r["repeat"] * weight * losses[start - 1 :].mean() / len(texts)
    return total / count


def make_trainer(folder, model, **options):
    options = {"rationales_per_path": "all", "per_device_train_batch_size": 8, "use_cpu": True} | options
    options |= {"report_to": "none", "save_strategy": "no", "learning_rate": 0.0, "max_steps": 1, "logging_steps": 1}
    args = MDConfig(str(folder), disable_tqdm=True, **options)
    return MDTrainer(model, args, train_dataset=Dataset.from_list(ROWS), processing_class=byte_tokenizer())


@pytest.mark.parametrize("objective", ["md", "uniform", "cot_pot", "pot"])
def test_the_loss_of_three_paths_is_that_of_a_slow_loop_in_every_layout(tmp_path, objective):
    model = tiny_llama()
    expected = slow_loss(model, objective)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    for layout in ("tree", "packed", "padded"):
        trainer = make_trainer(tmp_path, model, objective=objective, layout=layout)
        [batch] = trainer.get_train_dataloader()
        assert batch["divisor"] == 6
        model.zero_grad()
        loss = trainer.compute_loss(model.train(), batch, num_items_in_batch=batch["divisor"])
        loss.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        for name, parameter in model.named_parameters():
            scale = gradients[name].abs().max()
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5 * scale.item())


def test_a_flat_twin_has_the_same_objective(tmp_path):
    flat = path_rows(ROWS)
    assert Counter(r["path"] for r in flat) == {"cot": 5, "pot": 3, "cot_pot": 3}
    third = [r["weight"] for r in flat if r["path"] == "cot_pot"]
    assert third == pytest.approx([2 / 5 / 2, 2 / 5 / 2, 3 * 1.0])


def test_a_tree_holds_each_beginning_once_and_the_plans_of_the_third_path_are_shared(tmp_path):
    """CoT and plan share the question and the words that both triggers begin with, and plans share each other."""
    trainer, tokenizer = make_trainer(tmp_path, tiny_llama()), byte_tokenizer()

    def nodes(texts):
        sequences = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
        return {tuple(sequence[:i]) for sequence in sequences for i in range(1, len(sequence) + 1)}

    of_rows = [{p: [student_prompt(r["question"], p) + t["text"] for t in r[p] or []] for p in TRIGGERS} for r in ROWS]
    for question, of_paths in zip(trainer.train_dataset, of_rows, strict=True):
        tree = build_tree([t["input_ids"] for path in TRIGGERS for t in question[path]])
        assert len(tree.tokens) == len(nodes(sum(of_paths.values(), [])))
    first = of_rows[0]
    begin = len(f"{ROWS[0]['question']}\nLet's think step by step")
    assert len(nodes(first["cot"]) & nodes(first["cot_pot"])) == begin
    assert begin > len(nodes(first["cot"]) & nodes(first["pot"]))
    one, other = (nodes([text]) for text in first["cot_pot"])
    assert len(one & other) == len(student_prompt(ROWS[0]["question"], "cot_pot") + f"{PLAN}\n```python\n")


def test_a_student_says_which_paths_it_learnt(tmp_path):
    trainer = make_trainer(tmp_path, tiny_llama())
    trainer.train()
    trainer.save_model()
    assert {"cot_loss", "pot_loss", "cot_pot_loss"} < trainer.state.log_history[0].keys()
    settings = json.loads((tmp_path / "md_trl.json").read_text())
    assert settings["paths"] == list(TRIGGERS) and settings["triggers"] == TRIGGERS
    card = (tmp_path / "README.md").read_text()
    assert f"`{TRIGGERS['cot_pot']}` for a plan in prose and then a Python program" in card
    assert "cot_pot_loss" in card


@pytest.mark.parametrize("share", [None, 1.5])
def test_a_row_without_the_share_of_its_third_path_is_refused(tmp_path, share):
    rows = [ROWS[0] | {"cot_pot_share": share}]
    with pytest.raises(InputError, match=f"Row 0 .'toy/train/two plus three'.* has cot_pot_share {share}"):
        MDTrainer(tiny_llama(), MDConfig(str(tmp_path), use_cpu=True), None, rows, None, byte_tokenizer())


# Votes


def answers(min_size=3):
    return st.lists(st.sampled_from(["1", "2", "3", None]), min_size=min_size, max_size=3)


questions = st.lists(st.tuples(answers(), answers(), answers()), min_size=1, max_size=5)


def result_of(rows, settings=None, logprobs=None):
    found = [
        QuestionResult(str(i), "1", cot, pot, cot_pot=third, **(logprobs or {}))
        for i, (cot, pot, third) in enumerate(rows)
    ]
    return EvaluationResult("s", "m", "toy", "test", settings or {}, found)


def first_of_the_most(joined):
    counts = Counter(answer for answer in joined if answer is not None)
    return next((answer for answer in joined if counts and counts[answer] == max(counts.values())), None)


@given(questions)
@settings(max_examples=100, deadline=None)
def test_the_third_path_votes_after_the_others_and_changes_none_of_their_figures(rows):
    result = result_of(rows)
    without = result_of([(cot, pot, []) for cot, pot, _ in rows])
    for votes in (3, 6, 9):
        expected = [first_of_the_most([a for of_path in row for a in of_path[: votes // 3]]) == "1" for row in rows]
        assert result.correct("joint_all", votes) == expected
    if all(any(row[i] for row in rows) for i in range(3)):
        curve = result.curve("joint_all")
        assert [votes for votes, _ in curve] == [3, 6, 9]
        assert mean_curve(result, "joint_all", subsets=3)[-1].votes == 9
    for figure in ("joint", "cot", "pot", "n2"):
        assert result.correct(figure) == without.correct(figure)
        assert result.votes(figure) == without.votes(figure)
    assert not {"cot_pot", "cot_pot_logprob"} & without.to_dict()["questions"][0].keys()
    assert EvaluationResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_a_vote_of_the_third_path_weighs_as_that_of_a_program():
    rows = [(["2"], ["3"], ["1"])]
    assert result_of(rows).correct("joint_all", 3) == [False]  # a tie, which the CoT wins
    logprobs = {"cot_logprob": [-0.5], "pot_logprob": [-0.6], "cot_pot_logprob": [-0.1]}
    result = result_of(rows, {"weights": "likelihood"}, logprobs)
    assert result.correct("joint_all", 3) == [True]
    assert [point.accuracy for point in mean_curve(result, "joint_all", subsets=2)] == [1.0]
    doubled = result_of([(["2"], ["3"], ["3"])], {"path_weights": {"cot": 3.0, "pot": 1.0}})
    assert doubled._joint_vote(doubled.questions[0], 1, tuple(TRIGGERS)) == "2"


# End to end


@pytest.fixture(scope="module")
def teacher():
    server = TeacherServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield ["--model", "simulated-teacher", "--base_url", server.url]
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def mixed(teacher, tmp_path_factory):
    """A folder with a store of all three paths, rows of three paths, and rows of two from the same store."""
    folder = tmp_path_factory.mktemp("third")
    store = ["--store", str(folder / "t.db")]
    main(["sample", "--task", "stories", "--limit", "24", "--n", "4", "--paths", *TRIGGERS, *store, *teacher])
    main(["mix", *store, "--task", "stories", "--paths", *TRIGGERS, "--output", str(folder / "three")])
    main(["mix", *store, "--task", "stories", "--output", str(folder / "two")])
    return folder


def test_rows_carry_the_third_path_only_where_it_is_asked_for(mixed):
    two, three = (load_dataset(str(mixed / name), "stories", split="train") for name in ("two", "three"))
    assert list(two.features) == list(MixedRow.features())
    assert three.features == MixedRow.features(tuple(TRIGGERS))
    assert three.remove_columns([name for name in three.features if "cot_pot" in name]).to_list() == two.to_list()
    assert any(r["n_cot_pot_correct"] for r in three) and all(r["n_cot_pot"] == 4 for r in three)
    for r in three:
        assert sum(t["count"] for t in r["cot_pot"] if t["correct"]) == r["n_cot_pot_correct"]
        assert all(re.fullmatch(r"(?s).+\n```python\n.+\n```", t["text"]) for t in r["cot_pot"])
    flat = load_dataset(str(mixed / "three"), "stories-paths", split="train")
    assert set(flat["path"]) == set(TRIGGERS)
    card = (mixed / "three" / "README.md").read_text()
    assert "correct plan + PoT (n3)" in card and "--paths cot pot cot_pot" in card and "cot_pot prompt (hash)" in card
    assert "in the column `cot_pot`" in card
    assert "cot_pot" not in (mixed / "two" / "stories" / "mixing.json").read_text()


def test_all_tasks_open_together_if_only_some_have_the_third_path(mixed, tmp_path):
    shutil.copytree(mixed / "three", tmp_path / "rows")
    thoughts = [{"task": "toy", "question": "What is 2 plus 3?", "gold": "5", "path": path} for path in PATHS]
    lines = [json.dumps(t | {"text": text}) for t, text in zip(thoughts, ["The answer is 5.", "5"], strict=True)]
    (tmp_path / "toy.jsonl").write_text("\n".join(lines))
    main(["mix", "--thoughts", str(tmp_path / "toy.jsonl"), "--task", "toy", "--output", str(tmp_path / "rows")])
    rows = load_dataset(str(tmp_path / "rows"), split="train")
    assert rows.features == MixedRow.features(tuple(TRIGGERS))
    toy = rows.filter(lambda r: r["task"] == "toy")
    assert toy["cot_pot"][:] == [None] and toy["cot_pot_share"][:] == [None]
    assert len(rows) == 1 + len(load_dataset(str(mixed / "three"), "stories", split="train"))


def test_the_third_path_end_to_end(teacher, mixed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_llama().save_pretrained("tiny")
    byte_tokenizer().save_pretrained("tiny")
    train = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--use_cpu", "true", "--report_to", "none"]
    train += ["--learning_rate", "1e-3", "--save_strategy", "no", "--max_length", "512"]
    dataset = ["--dataset", str(mixed / "three"), "--task", "stories", "--model_name_or_path", "tiny"]
    main(["train", *dataset, "--output_dir", "student", *train])
    assert json.loads((tmp_path / "student" / "md_trl.json").read_text())["paths"] == list(TRIGGERS)

    evaluate = ["eval", "--task", "stories", "--paths", *TRIGGERS, "--output", "results"]
    small = ["--limit", "2", "--n", "3", "--max_tokens", "4", "--store", "s.db"]
    main([*evaluate, "--model", "student", *small])
    # The simulated teacher answers like a student that has learnt something
    served = ["--engine", "openai", "--prompt_format", "plain", "--limit", "20", "--n", "6", "--store", "t.db"]
    main([*evaluate, *teacher, *served, "--name", "able"])
    main(["report", "--results", "results"])
    printed = capsys.readouterr().out
    assert "plan + PoT | all three, same N | all three, all |" in printed

    able = next(result for result in load_results("results") if result.name == "able")
    assert all(len(q.cot) == len(q.pot) == len(q.cot_pot) == 6 for q in able.questions)
    report = json.loads((tmp_path / "results" / "report.json").read_text())
    figures = next(s["figures"] for s in report["students"] if s["name"] == "able")
    joined = [first_of_the_most([*q.cot[:2], *q.pot[:2], *q.cot_pot[:2]]) for q in able.questions]
    right = [answer is not None and equal(answer, q.answer) for answer, q in zip(joined, able.questions, strict=True)]
    assert figures["joint_all"]["accuracy"] == sum(right) / 20 and figures["joint_all"]["votes"] == 6
    of_two = [equal(vote(q.cot[:3], q.pot[:3]), q.answer) for q in able.questions]
    assert figures["joint"]["accuracy"] == sum(of_two) / 20 and figures["joint"]["votes"] == 6
    assert figures["cot_pot"]["votes"] == 6 and figures["cot_pot"]["accuracy"] > 0.2
    table = accuracy_table([able])
    assert f"{100 * figures['joint_all']['accuracy']:.1f} (N=6)" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "eval --task stories --model m --store s.db --output r --stop agreement --paths cot pot cot_pot",
            "compares both",
        ),
        ("sample --task stories --model m --adaptive --paths cot pot cot_pot", "compares both"),
        ("mix --store t.db --task stories --output out --paths cot prose", "'prose' cannot be mixed"),
        ("mix --store t.db --task stories --output out --pick cot=m pot=m cot_pot=m", "Cannot read `--pick"),
    ],
)
def test_what_stays_with_two_paths_says_so(mixed, monkeypatch, arguments, message):
    monkeypatch.chdir(mixed)
    with pytest.raises(SystemExit) as error:
        main(arguments.split())
    assert message in str(error.value.code)


def test_bare_answers_may_be_asked_for_beside_a_stopping_rule():
    paths = [*PATHS, LABEL]
    assert StudentEvaluation([QUESTION], SamplingParams(), paths=paths, rule="agreement").paths == paths


def test_a_question_that_only_the_third_path_solves_is_of_type_4():
    thoughts = judged("cot", [0]) + judged("pot", [0]) + judged("cot_pot", [1])
    [row] = mix([QUESTION], mark(thoughts, {QUESTION.id: "5"}))
    assert row.type == 4 and row.cot_pot_share == 1.0 and row.cot_pot_vote == "5"
