"""Stores of several jobs are merged without losing or repeating anything."""

import json
import platform
import sqlite3

import pytest
from students import byte_tokenizer, tiny_llama

from md_trl.cli import main
from md_trl.errors import InputError
from md_trl.records import Choice, Question, SamplingParams
from md_trl.sampling.shards import take_shard
from md_trl.store import Store


PARAMS = SamplingParams(max_tokens=8)
QUESTIONS = [Question(f"toy/train/{i}", "toy", "train", f"What is {i}?", str(i)) for i in range(5)]


def fill(store, questions, text="{id} {path} {index}", n=2, cost=10):
    """Store `n` thoughts per path of each question, from one request."""
    store.questions.add(questions)
    setting = store.settings.number("teacher", "prompt", PARAMS)
    store.claims.want([(q.id, path, setting) for q in questions for path in ("cot", "pot")], n)
    for question in questions:
        for path in ("cot", "pot"):
            for claim in store.claims.claim(question.id, path, setting, n).claims:
                texts = [text.format(id=question.id, path=path, index=claim.first_index + i) for i in range(claim.n)]
                choices = [Choice(text, "stop", logprob=-0.5) for text in texts]
                store.claims.save(claim.key, choices, {"prompt_tokens": cost, "completion_tokens": 3})


def content(store, tmp_path):
    store.export_thoughts(tmp_path / "export.jsonl")
    return [json.loads(line) for line in (tmp_path / "export.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_shards_are_consecutive_and_complete(count):
    shards = [take_shard(QUESTIONS, number, count) for number in range(1, count + 1)]
    assert [question for shard in shards for question in shard] == QUESTIONS
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_merged_shards_are_the_store_of_one_job(tmp_path):
    with Store(tmp_path / "whole.db") as whole, Store(tmp_path / "merged.db") as merged:
        fill(whole, QUESTIONS)
        for number in (1, 2):
            with Store(tmp_path / f"{number}.db") as shard:
                shard.settings.number("other", "", {})  # numbers of settings differ from store to store
                fill(shard, take_shard(QUESTIONS, number, 2))
        assert [merged.merge(tmp_path / f"{number}.db").thoughts for number in (1, 2)] == [8, 12]
        assert content(merged, tmp_path) == content(whole, tmp_path)
        assert merged.spending() == whole.spending()
        assert [row.missing for row in merged.status()] == [row.missing for row in whole.status()] == [0, 0]
        # Merging again adds nothing
        assert merged.merge(tmp_path / "1.db") == (0, 0, 8)
        assert merged.spending() == whole.spending()


def test_samples_that_both_stores_paid_for_are_all_kept(tmp_path):
    with Store(tmp_path / "a.db") as a, Store(tmp_path / "b.db") as b:
        fill(a, QUESTIONS[:1], n=2)
        fill(b, QUESTIONS[:1], "other {path} {index}", n=3)
        assert a.merge(b.file) == (0, 6, 0)
        texts = {row["index"]: row["text"] for row in content(a, tmp_path) if row["path"] == "cot"}
        assert list(texts.values()) == ["toy/train/0 cot 0", "toy/train/0 cot 1"] + [
            f"other cot {i}" for i in range(3)
        ]
        assert list(texts) == list(range(5))
        assert a.spending()[0].prompt_tokens == 40
        assert a.merge(b.file) == (0, 0, 6)


def test_imports_of_the_same_file_are_known(tmp_path):
    row = {"task": "toy", "id": "toy/train/0", "question": "What is 0?", "gold": "0", "path": "cot", "text": "0"}
    (tmp_path / "thoughts.jsonl").write_text(json.dumps(row) + "\n")
    with Store(tmp_path / "a.db") as a, Store(tmp_path / "b.db") as b:
        for store in (a, b):
            store.import_thoughts(tmp_path / "thoughts.jsonl", "toy")
        assert a.merge(b.file) == (0, 0, 1)


def test_a_store_that_is_still_sampled_is_refused_and_a_killed_one_is_not(tmp_path):
    with Store(tmp_path / "a.db") as a, Store(tmp_path / "b.db") as b:
        fill(b, QUESTIONS[:1])
        setting = b.settings.number("teacher", "prompt", PARAMS)
        b.claims.claim("toy/train/0", "cot", setting, 3, max_prompt_tokens=7, max_completion_tokens=5)
        with pytest.raises(InputError, match="still being sampled: 1 requests are open"):
            a.merge(b.file)
        assert not a.questions.load()
        db = sqlite3.connect(b.file)
        db.execute("UPDATE requests SET owner = '1.0 999999 x ' || ? WHERE ended_at IS NULL", (platform.node(),))
        db.commit()
        db.close()
        assert a.merge(b.file).thoughts == 4
        assert sum(row.lost for row in a.status()) == 1
        with Store(tmp_path / "c.db") as c:
            c.questions.add(QUESTIONS[:1])
            number = c.batches.add("http://localhost", "/v1/chat/completions")
            setting = c.settings.number("teacher", "prompt", PARAMS)
            c.claims.claim("toy/train/0", "cot", setting, 1, batch=number)
            with pytest.raises(InputError, match="1 requests of the Batch API"):
                a.merge(c.file)


def test_another_answer_is_refused_and_nothing_is_added(tmp_path):
    with Store(tmp_path / "a.db") as a, Store(tmp_path / "b.db") as b:
        a.questions.add([QUESTIONS[1]])
        fill(b, [QUESTIONS[0], Question("toy/train/1", "toy", "train", "What is 1?", "2")])
        with pytest.raises(InputError, match="'toy/train/1'.*with the answer '1'.*now.*'2'"):
            a.merge(b.file)
        assert a.questions.load() == [QUESTIONS[1]]
        with pytest.raises(InputError, match="cannot be merged with itself"):
            a.merge(tmp_path / "a.db")
        with pytest.raises(FileNotFoundError, match="no store at .*missing.db"):
            a.merge(tmp_path / "missing.db")


def test_shards_on_the_command_line(tmp_path, capsys):
    student = tmp_path / "student"
    tiny_llama().double().save_pretrained(student)
    byte_tokenizer().save_pretrained(student)
    arguments = [
        "sample",
        "--task",
        "stories",
        "--limit",
        "4",
        "--n",
        "2",
        "--max_tokens",
        "6",
        "--model",
        str(student),
    ]
    arguments += ["--engine", "transformers"]
    main([*arguments, "--store", str(tmp_path / "whole.db")])
    for number in (1, 2, 3):
        main([*arguments, "--shard", f"{number}/3", "--store", str(tmp_path / f"{number}.db")])
    stores = [str(tmp_path / f"{number}.db") for number in (1, 2, 3)]
    main(["store", "merge", "--store", str(tmp_path / "merged.db"), "--stores", *stores])
    assert "1.db: 4 thoughts and 1 questions added" in capsys.readouterr().out
    with Store(tmp_path / "whole.db") as whole, Store(tmp_path / "merged.db") as merged:
        assert [(t.question_id, t.path, t.index, t.text) for t in whole.thoughts()] == [
            (t.question_id, t.path, t.index, t.text) for t in merged.thoughts()
        ]
    for shard in ("0/3", "4/3", "1", "a/b"):
        with pytest.raises(SystemExit, match="Write it as `--shard I/N`"):
            main([*arguments, "--shard", shard, "--store", str(tmp_path / "x.db")])
