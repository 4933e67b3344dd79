"""The store: what it keeps, what it refuses, and that exported thoughts can be imported unchanged."""

import json
import multiprocessing
import random
import re
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from md_trl.answers import NO_ANSWER, canonical
from md_trl.errors import InputError
from md_trl.records import Choice, Question, SamplingParams, Thought
from md_trl.store import Claim, Granted, Selection, Store
from md_trl.store.schema import SCHEMA_VERSION


PARAMS = SamplingParams(max_tokens=64)
PARAMS_AS_JSON = {"temperature": 0.7, "top_p": 1.0, "max_tokens": 64, "stop": [], "seed": 42}


def question(number, task="svamp", split="train"):
    return Question(f"{task}/{split}/q-{number}", task, split, f"How much is {number} plus one?", str(number + 1))


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "t.db") as store:
        store.questions.add([question(i) for i in range(3)])
        yield store


def fill(store, question_id, path, texts, model="m", params=PARAMS, prompt_hash="p", usage=None):
    """Claim as many samples as there are texts, and store them."""
    setting = store.settings.number(model, prompt_hash, params)
    for claim in store.claims.claim(question_id, path, setting, len(texts)).claims:
        wanted = texts[claim.first_index : claim.first_index + claim.n]
        store.claims.save(claim.key, [Choice(text, "stop") for text in wanted], usage or {})
    return setting


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


# The file


def test_light_import():
    code = "import sys, md_trl.store; sys.exit(any(name in sys.modules for name in ('torch', 'openai')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_reopen(tmp_path):
    with Store(tmp_path / "new" / "folder" / "t.db") as store:
        assert store.questions.add([question(1), question(2)]) == 2
        assert store.questions.add([question(2), question(3)]) == 1
        fill(store, question(1).id, "cot", ["a", "b"])
    with Store(tmp_path / "new" / "folder" / "t.db") as store:
        assert store.questions.load() == [question(1), question(2), question(3)]
        assert store.thoughts() == [
            Thought(question(1).id, "cot", 0, "a", model="m"),
            Thought(question(1).id, "cot", 1, "b", model="m"),
        ]


def test_empty_file_becomes_a_store(tmp_path):
    (tmp_path / "t.db").touch()
    with Store(tmp_path / "t.db") as store:
        assert store.questions.load() == []


def test_files_that_are_not_stores(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("These are no thoughts, but notes.")
    with pytest.raises(ValueError, match="notes.txt is not a store"):
        Store(text)
    assert text.read_text() == "These are no thoughts, but notes."
    with pytest.raises(ValueError, match="is a folder"):
        Store(tmp_path)

    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE bills (amount)")
    other.commit()
    with pytest.raises(ValueError, match="other.db is an SQLite file but not a store"):
        Store(tmp_path / "other.db")
    assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("bills",)]
    other.close()


def test_newer_schema(tmp_path):
    Store(tmp_path / "t.db").close()
    db = sqlite3.connect(tmp_path / "t.db")
    db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    db.close()
    with pytest.raises(ValueError, match=f"t.db has schema version {SCHEMA_VERSION + 1}.*Upgrade"):
        Store(tmp_path / "t.db")


def test_older_schema(tmp_path):
    """There is one schema version: a store of an unreleased one is refused and left as it is."""
    Store(tmp_path / "t.db").close()
    db = sqlite3.connect(tmp_path / "t.db")
    db.execute(f"PRAGMA user_version={SCHEMA_VERSION - 1}")
    db.close()
    with pytest.raises(InputError, match=f"t.db has schema version {SCHEMA_VERSION - 1}.*Export its thoughts"):
        Store(tmp_path / "t.db")


def _open_at_once(path, barrier, number):
    barrier.wait()
    with Store(path) as store:
        store.questions.add([question(number), question(100)])


def test_many_processes_create_one_store(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(6)
    processes = [context.Process(target=_open_at_once, args=(tmp_path / "t.db", barrier, i)) for i in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 6
    with Store(tmp_path / "t.db") as store:
        assert set(store.questions.load()) == {question(i) for i in [*range(6), 100]}


# Questions


def test_questions_by_task_and_split(tmp_path):
    everything = [
        question(i, task, split) for task in ("svamp", "gsm8k") for split in ("train", "test") for i in (2, 1)
    ]
    with Store(tmp_path / "t.db") as store:
        store.questions.add(everything)
        assert store.questions.load() == everything
        assert store.questions.load("gsm8k") == everything[4:]
        assert store.questions.load("gsm8k", "test") == everything[6:]
        assert store.questions.load(split="test") == everything[2:4] + everything[6:]
        assert store.questions.load("stories") == []


@pytest.mark.parametrize("changed", [{"question": "Another text"}, {"answer": "7"}, {"split": "test"}])
def test_a_known_id_with_another_question(store, changed):
    new = question(50)
    with pytest.raises(ValueError, match=re.escape(repr(question(1).id)) + ".*another `--store`"):
        store.questions.add([new, Question(**(vars(question(1)) | changed))])
    assert new not in store.questions.load()


# Claims


def granted(store, question_id, path, setting, n, max_samples=None, **kwargs):
    """The claims that are granted, with nothing refused."""
    claims, refused = store.claims.claim(question_id, path, setting, n, max_samples=max_samples, **kwargs)
    assert refused == 0
    return claims


def test_claims(store):
    setting = store.settings.number("m", "p", PARAMS)
    q = question(0).id
    assert granted(store, q, "cot", setting, 5, max_samples=3) == [Claim(1, 0, 3), Claim(2, 3, 2)]
    assert granted(store, q, "cot", setting, 5) == []
    assert granted(store, q, "pot", setting, 5) == [Claim(3, 0, 5)]
    # Two of three arrive: the third is claimed anew, and only that.
    assert store.claims.save(1, [Choice("a", "stop"), Choice("b", "length")], {}) == 2
    assert granted(store, q, "cot", setting, 5) == [Claim(4, 2, 1)]
    store.claims.fail(2, "HTTP 500")
    assert store.claims.missing(q, "cot", setting, 5) == [2, 3, 4]
    # More of them are wanted later: open ones are not requested twice.
    assert granted(store, q, "cot", setting, 7) == [Claim(5, 3, 4)]
    store.claims.release()
    assert granted(store, q, "cot", setting, 5) == [Claim(6, 2, 3)]


def test_the_order_of_arrival_does_not_matter(store):
    setting = store.settings.number("m", "p", PARAMS)
    claims = granted(store, question(0).id, "cot", setting, 6, max_samples=2)
    for claim in reversed(claims):
        store.claims.save(claim.key, [Choice(f"text {claim.first_index + i}", "stop") for i in range(2)], {})
    assert [(t.index, t.text) for t in store.thoughts()] == [(i, f"text {i}") for i in range(6)]


def test_surplus_and_late_choices(store):
    setting = store.settings.number("m", "p", PARAMS)
    q = question(0).id
    (claim,) = granted(store, q, "cot", setting, 2)
    store.claims.release()
    (second,) = granted(store, q, "cot", setting, 2)
    assert store.claims.save(second.key, [Choice(text, "stop") for text in "abc"], {}) == 2
    # The first request answers after all: its samples are there already.
    assert store.claims.save(claim.key, [Choice(text, "stop") for text in "xy"], {}) == 0
    assert [t.text for t in store.thoughts()] == ["a", "b"]


def test_texts_are_stripped_and_finish_reasons_kept(store):
    setting = store.settings.number("m", "p", PARAMS)
    (claim,) = granted(store, question(0).id, "pot", setting, 1)
    store.claims.save(claim.key, [Choice("\n\n  x = 1\ny = 2 \n", "length")], {})
    assert store.thoughts() == [Thought(question(0).id, "pot", 0, "x = 1\ny = 2", "m", "length")]


def _claim_and_die(path):
    store = Store(path)
    granted(store, question(0).id, "cot", store.settings.number("m", "p", PARAMS), 4)


def test_only_claims_of_dead_processes_are_taken_over(store):
    process = multiprocessing.get_context("fork").Process(target=_claim_and_die, args=(store.file,))
    process.start()
    process.join()
    setting = store.settings.number("m", "p", PARAMS)
    with Store(store.file) as living:
        assert granted(living, question(0).id, "cot", setting, 2) == [Claim(2, 0, 2)]
        assert granted(store, question(0).id, "cot", setting, 4) == [Claim(3, 2, 2)]
        assert granted(store, question(0).id, "cot", setting, 4) == []


def test_claims_of_a_batch_outlive_their_process(store):
    setting = store.settings.number("m", "p", PARAMS)
    with Store(store.file) as other:
        batch = other.batches.add("http://x/v1", "/v1/completions")
        (claim,) = granted(
            other, question(0).id, "cot", setting, 2, batch=batch, max_prompt_tokens=30, max_completion_tokens=64
        )
        other.claims.release()
    assert granted(store, question(0).id, "cot", setting, 2) == []
    (request,) = store.batches.open_requests(batch)
    assert request == (claim.key, question(0).id, "cot", 2, PARAMS)
    (spent,) = store.spending()
    assert (spent.batch, spent.unknown, spent.max_prompt_tokens, spent.max_completion_tokens) == (True, 1, 30, 128)
    assert store.batches.finish(batch, "expired", "too late") == 1
    assert granted(store, question(0).id, "cot", setting, 2) == [Claim(claim.key + 1, 0, 2)]


def test_requests_that_are_not_allowed_are_not_claimed(store):
    setting = store.settings.number("m", "p", PARAMS)
    asked = []

    def claim_allowing(count):
        def allow(samples):
            asked.append(samples)
            return count

        return store.claims.claim(question(0).id, "cot", setting, 5, max_samples=2, allow=allow)

    assert claim_allowing(0) == Granted([], 3)
    assert claim_allowing(1) == Granted([Claim(1, 0, 2)], 2)
    assert claim_allowing(2) == Granted([Claim(2, 2, 2), Claim(3, 4, 1)], 0)
    assert claim_allowing(1) == Granted([], 0)
    assert asked == [[2, 2, 1], [2, 2, 1], [2, 1]]  # Not called where there is nothing to request


def test_unknown_question_id(store):
    with pytest.raises(ValueError, match="no question 'svamp/train/nobody'"):
        granted(store, "svamp/train/nobody", "cot", store.settings.number("m", "p", PARAMS), 1)


@given(
    n=st.integers(1, 12),
    moves=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12), st.sampled_from(["save", "fail", "leave"]))),
)
@settings(deadline=None, max_examples=60)
def test_claims_against_a_plain_set(tmp_path_factory, n, moves):
    """However requests end, a sample has one claim at a time and is stored at most once."""
    with Store(tmp_path_factory.mktemp("claims") / "t.db") as store:
        store.questions.add([question(0)])
        q, setting = question(0).id, store.settings.number("m", "p", PARAMS)
        stored, claimed_before = set(), set()
        for max_samples, given_back, ending in moves:
            claims = granted(store, q, "cot", setting, n, max_samples)
            claimed = [claim.first_index + i for claim in claims for i in range(claim.n)]
            assert claimed == sorted(set(range(n)) - stored - claimed_before)
            assert all(claim.n <= max_samples for claim in claims)
            for claim in claims:
                samples = range(claim.first_index, claim.first_index + min(claim.n, given_back))
                if ending == "save":
                    store.claims.save(claim.key, [Choice(str(i), "stop") for i in samples], {})
                    stored.update(samples)
                elif ending == "fail":
                    store.claims.fail(claim.key, "no")
                else:
                    claimed_before.update(range(claim.first_index, claim.first_index + claim.n))
            assert store.claims.missing(q, "cot", setting, n) == sorted(set(range(n)) - stored)
        assert [(t.index, t.text) for t in store.thoughts()] == [(i, str(i)) for i in sorted(stored)]


# Selection


def test_thoughts_in_order_and_selected(store):
    store.questions.add([question(7, "gsm8k", "test")])
    for q in (question(2), question(0), question(7, "gsm8k", "test")):
        for path in ("pot", "cot"):
            fill(store, q.id, path, [f"{path} {i}" for i in range(11)])
    expected = [
        (q.id, path, i)
        for q in (question(0), question(2), question(7, "gsm8k", "test"))
        for path in ("cot", "pot")
        for i in range(11)
    ]
    assert [(t.question_id, t.path, t.index) for t in store.thoughts()] == expected
    assert [(t.question_id, t.path, t.index) for t in store.thoughts(Selection("svamp", paths=["pot"]))] == [
        e for e in expected if e[0].startswith("svamp") and e[1] == "pot"
    ]
    assert {t.question_id for t in store.thoughts(Selection(splits=["test"]))} == {question(7, "gsm8k", "test").id}


def test_several_models_temperatures_and_settings(store, tmp_path):
    q = question(0).id
    first = fill(store, q, "cot", ["a"], model="big")
    fill(store, question(1).id, "cot", ["a"], model="small")
    assert len(store.thoughts()) == 2  # One model per question is not a mixture.
    fill(store, q, "cot", ["b"], model="small")
    with pytest.raises(
        ValueError, match=r"model='big'(.|\n)*model='small'(.|\n)*Pick one with `models=` or `settings=`"
    ):
        store.thoughts()
    assert [t.text for t in store.thoughts(Selection(models="big"))] == ["a"]

    fill(store, q, "cot", ["c"], model="big", params=replace(PARAMS, temperature=0.2))
    with pytest.raises(
        ValueError, match=r"temperature=0\.\d(.|\n)*Pick one with `params={'temperature': ...}` or `settings=`"
    ):
        store.thoughts(Selection(models="big"))
    assert [t.text for t in store.thoughts(Selection(models="big", params={"temperature": 0.2}))] == ["c"]

    fill(store, q, "cot", ["d"], model="big", prompt_hash="other")
    with pytest.raises(ValueError, match=r"prompt=other(.|\n)*Pick one with `settings=`"):
        store.thoughts(Selection(models="big", params={"temperature": 0.7}))
    assert [t.text for t in store.thoughts(Selection(settings=[first]))] == ["a"]

    store.import_thoughts(write(tmp_path / "own.jsonl", {"task": "svamp", "id": q, "path": "pot", "text": "p"}))
    fill(store, q, "pot", ["q"])
    with pytest.raises(ValueError, match=r"model=''(.|\n)*model='m'"):
        store.thoughts(Selection(paths=["pot"]))
    assert [t.text for t in store.thoughts(Selection(paths=["pot"], models=""))] == ["p"]


def test_one_teacher_per_path(store):
    """Both paths have thoughts of two teachers; one is picked for each path."""
    q = question(0).id
    for path in ("cot", "pot", "label"):
        for model in ("big", "small"):
            fill(store, q, path, [f"{path} of {model}"], model=model)
    picked = {"cot": "big", "pot": "small"}
    with pytest.raises(
        InputError, match="1 pairs of question and path, the first of them 'svamp/train/q-0' and label"
    ):
        store.thoughts(Selection(models=picked))  # A path that is not named keeps all its models.
    assert [t.text for t in store.thoughts(Selection(paths=["cot", "pot"], models=picked))] == [
        "cot of big",
        "pot of small",
    ]
    assert {t.model for t in store.thoughts(Selection(models=picked | {"label": "small"}))} == {"big", "small"}
    assert [t.text for t in store.thoughts(Selection(models={"cot": "small"}, paths=["cot"]))] == ["cot of small"]


def test_teachers_and_imports_are_combined_on_purpose(store, tmp_path):
    """Thoughts of several settings are numbered anew, by setting and then by sample index."""
    q = question(0).id
    fill(store, q, "cot", ["a", "b"], model="big")
    row = {"task": "svamp", "id": q, "path": "cot"}
    store.import_thoughts(
        write(tmp_path / "own.jsonl", {**row, "text": "own 1"}, {**row, "text": "own 2", "index": 7})
    )
    fill(store, q, "cot", ["c"], model="big", params=replace(PARAMS, seed=1))
    fill(store, question(1).id, "cot", ["d"], model="small")
    with pytest.raises(InputError, match=r"setting 1:(.|\n)*setting 2:(.|\n)*combine=True"):
        store.thoughts()
    combined = store.thoughts(Selection(combine=True))
    assert [(t.question_id, t.index, t.text, t.model) for t in combined] == [
        (q, 0, "a", "big"),
        (q, 1, "b", "big"),
        (q, 2, "own 1", ""),
        (q, 3, "own 2", ""),
        (q, 4, "c", "big"),
        (question(1).id, 0, "d", "small"),
    ]
    two = store.thoughts(Selection(models="big", combine=True))
    assert [(t.index, t.text) for t in two] == [(0, "a"), (1, "b"), (2, "c")]
    assert [t.text for t in store.thoughts(Selection(settings=[2]))] == ["own 1", "own 2"]


def test_digest(store):
    """It changes with each question and thought of the selection, and with no other."""
    svamp, cot = Selection("svamp"), Selection("svamp", ["train"], ["cot"])
    seen = {store.digest(), store.digest(Selection("gsm8k"))}
    assert len(seen) == 2 and store.digest(svamp) == store.digest() == store.digest(cot)
    fill(store, question(0).id, "pot", ["x = 1"])
    assert store.digest(cot) in seen and store.digest(svamp) not in seen
    seen |= {store.digest(svamp)}
    store.questions.add([question(9, split="test")])
    assert store.digest(cot) in seen and store.digest(svamp) not in seen
    fill(store, question(0).id, "cot", ["a"])
    assert store.digest(cot) not in seen
    with Store(store.file) as again:
        assert again.digest(cot) == store.digest(cot)


def test_one_temperature_written_in_two_ways(store):
    number = store.settings.number("m", "p", SamplingParams(temperature=1.0))
    assert store.settings.number("m", "p", SamplingParams(temperature=1)) == number
    assert store.settings.number("m", "p", vars(SamplingParams(temperature=1))) == number
    assert store.settings.number("m", "p", {"temperature": 1}) == store.settings.number("m", "p", {"temperature": 1.0})


def test_status(store):
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    setting = fill(store, question(0).id, "cot", ["a", "b", "a", "x"], usage=usage)
    (claim,) = granted(store, question(1).id, "cot", setting, 4)
    store.claims.save(claim.key, [Choice("x", "length"), Choice("y", "stop")], usage)
    (claim,) = granted(store, question(2).id, "cot", setting, 3)
    store.claims.fail(claim.key, "HTTP 500")
    (row,) = store.status()
    assert (row.task, row.split, row.path, row.model, row.params) == ("svamp", "train", "cot", "m", PARAMS_AS_JSON)
    assert (row.questions, row.thoughts, row.distinct, row.n, row.missing) == (2, 6, 5, 4, 3 * 4 - 6)
    assert (row.unusable, row.requests, row.failed) == ({"length": 1}, 3, 1)
    assert (row.prompt_tokens, row.completion_tokens) == (20, 10)


def test_status_does_not_miss_what_no_run_wants(store):
    """As adaptive sampling leaves it: four samples of one question are wanted, two of the others."""
    setting = store.settings.number("m", "p", PARAMS)
    store.claims.want([(question(i).id, "cot", setting) for i in range(3)], 2)
    fill(store, question(0).id, "cot", ["a", "b"])
    store.claims.want([(question(0).id, "cot", setting)], 4)
    fill(store, question(0).id, "cot", ["a", "b", "c", "d"])
    fill(store, question(1).id, "cot", ["a", "b"])
    (row,) = store.status()
    assert (row.n, row.thoughts, row.missing) == (
        4,
        6,
        2,
    )  # Both samples of question 2, which a run was stopped before
    store.claims.want([(question(1).id, "cot", setting)], 1)  # Fewer than before
    assert store.status() == [row]
    store.claims.want([(question(2).id, "cot", setting)], 4)
    assert store.status()[0].missing == 4


def test_status_of_a_selection_in_one_query(store):
    store.questions.add([question(7, "gsm8k", "test")])
    for q in (question(0), question(7, "gsm8k", "test")):
        for path in ("cot", "pot"):
            fill(store, q.id, path, ["a", "b"])
    statements = []
    store._db.set_trace_callback(statements.append)
    everything = store.status()
    store._db.set_trace_callback(None)
    assert len(statements) == 1
    keys = [(row.task, row.split, row.path, row.missing) for row in everything]
    assert keys == [("gsm8k", "test", "cot", 0), ("gsm8k", "test", "pot", 0)] + [
        ("svamp", "train", "cot", 4),
        ("svamp", "train", "pot", 4),
    ]
    assert store.status(Selection("svamp", paths=["pot"])) == everything[3:]
    assert store.status(Selection(models="other")) == []


# Thought files

TEXTS = st.text(st.characters(exclude_categories=["Cs"])).map(str.strip)
LOGPROBS = st.none() | st.floats(max_value=0.0, allow_infinity=False, allow_nan=False)
USAGES = st.fixed_dictionaries(
    {}, optional={"prompt_tokens": st.integers(0, 9), "completion_tokens": st.integers(0, 9)}
)


@given(
    answers=st.lists(TEXTS.filter(lambda text: canonical(text) not in NO_ANSWER), min_size=3, max_size=3),
    texts=st.lists(TEXTS.filter(str.strip), min_size=3, max_size=3),
    sampled=st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from(["cot", "pot", "label"]),
            st.sampled_from(["m", "", "\u00e9"]),
            st.sampled_from([PARAMS, replace(PARAMS, temperature=0.0), {}]),
            st.lists(st.tuples(TEXTS, st.sampled_from(["stop", "length"]), LOGPROBS), max_size=4),
            USAGES,
        ),
        max_size=6,
    ),
)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_export_import_export(tmp_path_factory, answers, texts, sampled):
    """Thoughts that went through JSONL and Parquet are exported as the same file."""
    folder = tmp_path_factory.mktemp("export")
    questions = [Question(f"svamp/test/{i}", "svamp", "test", texts[i], answers[i]) for i in range(3)]
    with Store(folder / "a.db") as store:
        store.questions.add(questions)
        for number, path, model, params, choices, usage in sampled:
            setting = store.settings.number(model, "", params)
            for claim in granted(store, questions[number].id, path, setting, 5)[:1]:
                store.claims.save(claim.key, [Choice(*choice) for choice in choices], usage)
        written = store.export_thoughts(folder / "a.jsonl")
        expected = store._db.execute("SELECT count(*) FROM thoughts").fetchone()[0]
        assert written == expected == len(lines(folder / "a.jsonl"))
    with Store(folder / "b.db") as store:
        summary = store.import_thoughts(folder / "a.jsonl")
        assert (summary.thoughts, summary.known) == (written, 0)
        assert set(store.questions.load()) <= set(questions)
        store.export_thoughts(folder / "b.jsonl")
        assert (folder / "a.jsonl").read_bytes() == (folder / "b.jsonl").read_bytes()
        assert store.export_thoughts(folder / "b.parquet") == written
    with Store(folder / "c.db") as other:
        assert other.import_thoughts(folder / "b.parquet").thoughts == written
        other.export_thoughts(folder / "c.jsonl")
        assert (folder / "a.jsonl").read_bytes() == (folder / "c.jsonl").read_bytes()
        assert other.import_thoughts(folder / "b.parquet")[:3] == (0, 0, written)
    with Store(folder / "b.db") as store:
        again = store.import_thoughts(folder / "b.jsonl")
        assert (again.questions, again.thoughts, again.known) == (0, 0, written)


def test_export_line(store, tmp_path):
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    fill(store, question(0).id, "cot", ["one\u2028two", "three"], usage=usage)
    assert store.export_thoughts(tmp_path / "t.jsonl") == 2
    common = {"task": "svamp", "id": question(0).id, "split": "train", "question": question(0).question}
    common |= {"gold": "1", "path": "cot"}
    params = {**PARAMS_AS_JSON, "prompt_hash": "p"}
    last = {"finish_reason": "stop", "model": "m", "params": params}
    assert lines(tmp_path / "t.jsonl") == [
        {**common, "index": 0, "text": "one\u2028two", **last, "usage": usage},
        {**common, "index": 1, "text": "three", **last},
    ]


def test_logprobs_are_kept_exported_and_imported(store, tmp_path):
    setting = store.settings.number("m", "p", PARAMS)
    (open_claim,) = granted(store, question(0).id, "cot", setting, 2)
    store.claims.save(open_claim.key, [Choice("a", "stop", -0.1), Choice("b", "stop")], {})
    assert [t.logprob for t in store.thoughts()] == [-0.1, None]
    for name in ("t.jsonl", "t.parquet"):
        store.export_thoughts(tmp_path / name)
        with Store(tmp_path / f"{name}.db") as other:
            other.import_thoughts(tmp_path / name)
            assert [t.logprob for t in other.thoughts()] == [-0.1, None]
    assert [row.get("logprob") for row in lines(tmp_path / "t.jsonl")] == [-0.1, None]


def test_dates_tell_sampled_from_imported_thoughts(store, tmp_path):
    assert store.dates() == {}
    fill(store, question(0).id, "cot", ["one"])
    [(how, day)] = store.dates().items()
    assert how == "sampled" and re.fullmatch(r"\d{4}-\d\d-\d\d( to \d{4}-\d\d-\d\d)?", day)
    write(tmp_path / "t.jsonl", {"task": "svamp", "id": question(0).id, "path": "pot", "text": "answer = 1"})
    store.import_thoughts(tmp_path / "t.jsonl")
    assert list(store.dates()) == ["sampled", "imported"]
    assert list(store.dates(Selection(paths=["pot"]))) == ["imported"]


def test_export_of_a_selection(store, tmp_path):
    for model in ("big", "small"):
        fill(store, question(0).id, "cot", [f"of {model}"], model=model)
    assert store.export_thoughts(tmp_path / "t.jsonl", Selection(models="small")) == 1
    assert lines(tmp_path / "t.jsonl")[0]["text"] == "of small"
    assert store.export_thoughts(tmp_path / "t.jsonl") == 2


def test_sampling_continues_after_an_import(store, tmp_path):
    setting = fill(store, question(0).id, "cot", ["a", "b"])
    (late,) = granted(store, question(0).id, "cot", setting, 3)
    assert late.first_index == 2
    store.export_thoughts(tmp_path / "t.jsonl")
    with Store(tmp_path / "other.db") as other:
        other.import_thoughts(tmp_path / "t.jsonl")
        (claim,) = granted(other, question(0).id, "cot", other.settings.number("m", "p", PARAMS), 3)
        assert (claim.first_index, claim.n) == (2, 1)


def test_import_counts_repeated_texts(store, tmp_path):
    row = {"task": "svamp", "id": question(0).id, "path": "cot"}
    file = tmp_path / "t.jsonl"
    write(file, *({**row, "text": text} for text in ["same", "same", " same ", "other"]))
    assert store.import_thoughts(file)[1:3] == (4, 0)
    assert store.import_thoughts(file)[1:3] == (0, 4)
    write(file, *({**row, "text": text} for text in ["new", "same", "same", "same", "same", "other"]))
    assert store.import_thoughts(file)[1:3] == (2, 4)
    assert [(t.index, t.text) for t in store.thoughts()] == list(
        enumerate(["same", "same", "same", "other", "new", "same"])
    )
    assert Counter(t.text for t in store.thoughts()) == {"same": 4, "other": 1, "new": 1}


def test_import_finds_questions_by_text(store, tmp_path):
    store.questions.add([Question("svamp/test/9", "svamp", "test", "Who  is\nit?", "Ann")])
    store.questions.add([Question("svamp/train/9", "svamp", "train", "Who is it?", "Ann")])
    row = {"task": "svamp", "question": "  Who is  it? ", "path": "cot", "text": "a"}
    store.import_thoughts(write(tmp_path / "t.jsonl", row), split="test")
    store.import_thoughts(write(tmp_path / "t.jsonl", row), split="train")
    assert [t.question_id for t in store.thoughts()] == ["svamp/test/9", "svamp/train/9"]


def test_import_adds_questions_that_come_with_their_gold_answer(store, tmp_path):
    rows = [
        {"task": "svamp", "question": "How  many?", "path": "cot", "text": "a", "gold": 3, "answer": 3.0},
        {"task": "svamp", "question": "How many?", "path": "pot", "text": "b"},
        {"task": "gsm8k", "id": "gsm8k/test/5", "question": "What?", "path": "pot", "text": "c", "gold": "x"},
    ]
    assert store.import_thoughts(write(tmp_path / "t.jsonl", *rows), split="dev") == (2, 3, 0, 0)
    new, given = store.questions.load()[3:]
    assert re.fullmatch(r"svamp/dev/import-[0-9a-f]{12}", new.id)
    assert (new.task, new.split, new.question, new.answer) == ("svamp", "dev", "How  many?", "3")
    assert given == Question("gsm8k/test/5", "gsm8k", "test", "What?", "x")
    assert [(t.question_id, t.path, t.stated) for t in store.thoughts()] == [
        (new.id, "cot", "3.0"),
        (new.id, "pot", None),
        ("gsm8k/test/5", "pot", None),
    ]
    # The same text in another store gets the same id.
    with Store(tmp_path / "other.db") as other:
        rows[0]["question"] = " How many? "
        other.import_thoughts(write(tmp_path / "t.jsonl", *rows), split="dev")
        assert new.id in {q.id for q in other.questions.load()}


def test_a_gold_answer_must_agree_with_the_store(store, tmp_path):
    """A gold answer in another form is the same answer; another answer is an error, whichever field finds the row."""
    file = tmp_path / "t.jsonl"
    known = {"task": "svamp", "path": "cot", "text": "a", "gold": "$1.00"}
    by_text = {**known, "question": question(0).question}
    by_id = {**known, "id": question(0).id}
    store.import_thoughts(write(file, by_id, {**by_text, "text": "b"}, {**by_id, "gold": " ", "text": "c"}))
    for row in (by_id, by_text):
        message = f"{file}, line 2: the gold answer of 'svamp/train/q-0' is '1' in the store, not '2'"
        with pytest.raises(InputError, match=re.escape(message)):
            store.import_thoughts(write(file, {**by_id, "text": "new"}, {**row, "gold": 2}))
    # A question that the file itself has added is known from then on.
    new = {"task": "svamp", "question": "New?", "path": "cot", "text": "d", "gold": "5"}
    with pytest.raises(InputError, match="line 2: .* is '5' in the store, not '6'"):
        store.import_thoughts(write(file, new, {**new, "gold": "6"}))
    assert [t.text for t in store.thoughts()] == ["a", "b", "c"] and len(store.questions.load()) == 3


def test_any_parameters_can_be_imported(store, tmp_path):
    rows = [
        {"task": "svamp", "id": question(0).id, "path": "cot", "text": text, "params": params}
        for text, params in (("a", {"top_k": 5, "temperature": 1}), ("b", {"top_k": 5, "stop": ["é"]}), ("c", {}))
    ]
    store.import_thoughts(write(tmp_path / "t.jsonl", *rows))
    assert [row.params for row in store.status()] == [
        {"temperature": 1.0, "top_k": 5},
        {"stop": ["é"], "top_k": 5},
        {},
    ]
    for params, texts in (({"top_k": 5}, ["a", "b"]), ({"top_k": 5, "stop": ["é"]}, ["b"]), ({"top_k": None}, ["c"])):
        assert [t.text for t in store.thoughts(Selection(params=params, combine=True))] == texts


def test_a_task_of_your_own_must_be_named(store, tmp_path):
    file = write(tmp_path / "t.jsonl", {"task": "svmap", "question": "What?", "path": "cot", "text": "a", "gold": "1"})
    with pytest.raises(ValueError, match="line 1: the task 'svmap' is not one of .*svamp"):
        store.import_thoughts(file)
    with pytest.raises(ValueError, match="line 1: the task 'svmap' is not one of svamp"):
        store.import_thoughts(file, task="svamp")
    assert store.import_thoughts(file, task="svmap").thoughts == 1


def test_a_store_is_merged_not_imported(store, tmp_path):
    with Store(tmp_path / "other.db") as other:
        other.questions.add([Question("svamp/train/q-9", "svamp", "train", "What is 9?", "9")])
    with pytest.raises(InputError, match="other.db is a store, not a thought file.*store merge --stores .*other.db"):
        store.import_thoughts(tmp_path / "other.db")


GOOD = {"task": "svamp", "id": "svamp/train/q-0", "path": "cot", "text": "a"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"task": "svamp", ', "is not JSON.*one|is not JSON"),
        ("[1, 2]", r"\[1, 2\] is not an object"),
        ('"text"', "'text' is not an object"),
        ("[" * 100_000, "is not JSON"),
        (json.dumps({**GOOD, "text": "half \ud800 pair"}), "is not JSON.*surrogates"),
        (b'{"task": "svamp\xff"}', "is not JSON.*utf-8"),
        ('{"task": "svamp", "params": {"temperature": 1e999}}', "is not JSON.*float"),
        ('{"task": "svamp", "params": {"temperature": NaN}}', "NaN is not a JSON value"),
        *(({k: v for k, v in GOOD.items() if k != name}, f"'{name}'.* is missing") for name in GOOD),
        ({**GOOD, "text": None}, "'text' is missing"),
        ({**GOOD, "text": 5}, "'text' is 5. Write it as a string"),
        ({**GOOD, "id": ["x"]}, "'id' is .*Write it as a string"),
        ({**GOOD, "answer": {}}, "'answer' is .*string or a number"),
        ({**GOOD, "gold": True}, "'gold' is True.*string or a number"),
        ({**GOOD, "usage": 7}, "'usage' is 7. Write it as an object"),
        ({**GOOD, "usage": {"prompt_tokens": "many"}}, "'prompt_tokens' of 'usage' is 'many'"),
        ({**GOOD, "params": {"temperature": "hot"}}, "'temperature' of 'params' is 'hot'"),
        ({**GOOD, "params": {"temperature": 10**400}}, "'temperature' of 'params' is 1000"),
        ({**GOOD, "index": -1}, "'index' is -1"),
        ({**GOOD, "logprob": 0.5}, "'logprob' is 0.5. Write the mean log-probability per token"),
        ({**GOOD, "logprob": "low"}, "'logprob' is 'low'"),
        ({**GOOD, "path": "cott"}, "unknown path 'cott'. Choose one of cot, pot, label"),
        ({**GOOD, "task": "chess"}, "the task 'chess' is not one of"),
        ({**GOOD, "id": "svamp/train/nobody"}, "unknown question id 'svamp/train/nobody'.*gold"),
        ({**GOOD, "id": "svamp/train/nobody", "question": "What?"}, "unknown question id.*gold"),
        ({**GOOD, "id": "svamp/train/nobody", "question": "What?", "gold": " "}, "unknown question id.*gold"),
        ({**GOOD, "id": "svamp/train/nobody", "gold": "1"}, "unknown question id.*question"),
        ({**GOOD, "id": "nobody", "question": "What?", "gold": "1"}, "'nobody'. Write it as `svamp/SPLIT/NAME`"),
        ({**GOOD, "id": "asdiv/train/1", "question": "What?", "gold": "1"}, "'asdiv/train/1'. Write it as `svamp/"),
        ({**GOOD, "id": "svamp/train/nobody", "question": "What?", "gold": "..."}, "unknown question id.*gold"),
        ({"task": "svamp", "path": "cot", "text": "a", "question": " ", "gold": "5"}, "'question' is empty"),
        ({**GOOD, "task": "gsm8k"}, "is a question of svamp, not of gsm8k"),
        ({**GOOD, "question": "Another?"}, "is 'How much is 0 plus one\\?' in the store, not 'Another\\?'"),
        (
            {"task": "svamp", "question": "Another?", "path": "cot", "text": "a"},
            "no question of svamp.*'Another\\?'.*gold",
        ),
    ],
)
def test_bad_rows(store, tmp_path, line, message):
    """The message names file, line, value and fix, and nothing of the file is imported."""
    file = tmp_path / "t.jsonl"
    new = {"task": "svamp", "question": "New?", "gold": "1", "path": "cot", "text": "b"}
    bad = line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
    file.write_bytes(json.dumps(new).encode() + b"\n\n" + bad + b"\n")
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}, line 3: .*({message})"):
        store.import_thoughts(file)
    assert store.thoughts() == []
    assert len(store.questions.load()) == 3


def test_parquet_written_by_other_tools(store, tmp_path):
    """Columns may be missing, null or of wider types; a bad row is named."""
    import pyarrow
    from pyarrow.parquet import write_table

    rows = [GOOD | {"index": 4, "params": {"temperature": 0.5}}, GOOD | {"text": "b", "answer": "7"}]
    write_table(pyarrow.Table.from_pylist(rows, pyarrow.schema([
        *((name, pyarrow.large_string()) for name in ("task", "id", "path", "text", "answer")),
        ("index", pyarrow.int64()), ("params", pyarrow.struct([("temperature", pyarrow.float64())])),
    ])), tmp_path / "t.parquet")  # fmt: skip
    assert store.import_thoughts(tmp_path / "t.parquet").thoughts == 2
    found = [thought for setting in (1, 2) for thought in store.thoughts(Selection(settings=[setting]))]
    assert [(t.index, t.text, t.stated) for t in found] == [(4, "a", None), (0, "b", "7")]
    for bad, message in (
        (GOOD | {"path": "cott"}, "row 2: unknown path 'cott'"),
        (GOOD | {"params": "{"}, "row 2, column 'params': '{' is not JSON"),
    ):
        write_table(pyarrow.Table.from_pylist([{"params": None, **GOOD}, bad]), tmp_path / "bad.parquet")
        with pytest.raises(ValueError, match=f"bad.parquet, {message}"):
            store.import_thoughts(tmp_path / "bad.parquet")
    (tmp_path / "no.parquet").write_text("{}")
    with pytest.raises(ValueError, match="no.parquet is not a Parquet file"):
        store.import_thoughts(tmp_path / "no.parquet")


def test_what_arrow_fills_with_null_is_left_out(store, tmp_path):
    import pyarrow
    from pyarrow.parquet import write_table

    rows = [
        GOOD | {"usage": {"prompt_tokens": 5}, "params": {"temperature": 0.5}},
        GOOD | {"usage": {"completion_tokens": 5}, "params": {"top_p": 0.5}},
    ]
    write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    assert store.import_thoughts(tmp_path / "t.parquet").thoughts == 2
    # A missing gold answer is nan in a column of floats
    new = {"task": "svamp", "path": "cot", "text": "a", "question": "Another?", "gold": float("nan")}
    write_table(pyarrow.Table.from_pylist([new]), tmp_path / "nan.parquet")
    with pytest.raises(ValueError, match="no question of svamp.*'Another\\?'.*gold"):
        store.import_thoughts(tmp_path / "nan.parquet")


def test_a_damaged_parquet_file_is_named(store, tmp_path):
    import pyarrow
    from pyarrow.parquet import write_table

    rows = [GOOD | {"text": f"thought {i} " + random.Random(i).randbytes(20).hex()} for i in range(2_000)]
    write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    content = bytearray((tmp_path / "t.parquet").read_bytes())
    middle = len(content) // 3
    content[middle : middle + 2_000] = bytes(2_000)
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(ValueError, match="t.parquet cannot be read after row 0.*It is damaged"):
        store.import_thoughts(tmp_path / "t.parquet")


def test_import_ignores_blank_lines_and_a_byte_order_mark(store, tmp_path):
    file = tmp_path / "t.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n   \n")
    assert store.import_thoughts(file).thoughts == 1


def test_a_missing_thought_file(store, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.jsonl"):
        store.import_thoughts(tmp_path / "nowhere.jsonl")


def test_a_failed_export_replaces_nothing(store, tmp_path, monkeypatch):
    fill(store, question(0).id, "cot", ["a"])
    store.export_thoughts(tmp_path / "t.jsonl")
    precious = (tmp_path / "t.jsonl").read_text()
    monkeypatch.setattr(json, "dumps", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.export_thoughts(tmp_path / "t.jsonl")
    assert (tmp_path / "t.jsonl").read_text() == precious


def test_readers_and_writers_at_the_same_time(store):
    """While another connection writes, a reader sees only whole requests."""
    setting = store.settings.number("m", "p", PARAMS)
    errors = []

    def write_all():
        with Store(store.file) as other:
            for i in range(3):
                for claim in granted(other, question(i).id, "cot", setting, 60, max_samples=3):
                    other.claims.save(claim.key, [Choice("x", "stop")] * 3, {})

    writer = threading.Thread(target=write_all)
    writer.start()
    while writer.is_alive():
        if len(store.thoughts()) % 3:
            errors.append("half a request")
    writer.join()
    assert not errors
    assert len(store.thoughts()) == 180
