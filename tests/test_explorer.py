"""The explorer without a browser: its queries against a plain loop over all rows, its HTML, its sources."""

import dataclasses
import hashlib
import html
import json
import os
import random
import re
import sqlite3
import subprocess
import sys

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow.parquet import ParquetWriter

from md_trl.answers import equal
from md_trl.cli import main
from md_trl.errors import InputError
from md_trl.evaluation import EvaluationResult, QuestionResult
from md_trl.explorer import charts, markup, queries
from md_trl.explorer.catalog import agreement_of
from md_trl.explorer.explanation import explain
from md_trl.explorer.queries import AGREEMENT, HISTOGRAMS, OUTCOMES, RELATIONS, SORTS, Bin, Filters
from md_trl.explorer.sources import read_sources
from md_trl.mixing import mix
from md_trl.records import PATHS, MixedRow, Question, QuestionType, Thought
from md_trl.store import Selection, Store
from md_trl.voting import vote


# --- Random datasets, and a slow, obvious reference for every query -----------------------------------------


def random_rows(rng, count, ids, task, split):
    """Mixed rows of random thoughts, some unusable."""
    questions, thoughts = [], []
    for number in rng.sample(range(ids), count):
        id = f"{task}/{split}/{number}"
        words = rng.choices(["Größe", "50%", "under_score", "STRASSE", "it's", "apples", "\\", '"', "Δ"], k=6)
        questions.append(Question(id, task, split, " ".join(words), rng.choice(["1", "2", "yes"])))
        for path in PATHS:
            for index in range(rng.randrange(5)):
                answer = rng.choice(["1", "2", "yes", "3", None])
                text = f"{path} {number} " + "x" * rng.randrange(40)
                correct = answer is not None and equal(answer, questions[-1].answer)
                thoughts.append(Thought(id, path, index, text, answer=answer, correct=correct))
    return [row.to_dict() for row in mix(questions, thoughts)]


def write_dataset(folder, task, split, rows, group_rows=7):
    """A dataset as `md-trl mix` writes it, in row groups of a few rows."""
    (folder / task).mkdir(parents=True, exist_ok=True)
    schema = MixedRow.features().arrow_schema
    with ParquetWriter(folder / task / f"{split}-00000-of-00001.parquet", schema) as writer:
        for start in range(0, len(rows), group_rows):
            writer.write_table(pyarrow.Table.from_pylist(rows[start : start + group_rows], schema))
    return folder


@pytest.fixture(scope="module")
def explored(tmp_path_factory):
    """A catalog of two authors, and what it holds as plain dictionaries, in its order."""
    rng, folder, expected = random.Random(7), tmp_path_factory.mktemp("data"), []
    for author, name in enumerate(("first", "second"), start=1):
        for task, split in (("stories", "test"), ("stories", "train"), ("svamp", "train")):
            rows = random_rows(rng, 30, 40, task, split)
            write_dataset(folder / name, task, split, rows)
            expected += [row | {"author": author, "split": split} for row in rows]
    for n, row in enumerate(expected, start=1):
        answers = {path: [t["answer"] for t in row[path] for _ in range(t["count"])] for path in PATHS}
        row["n"], row["vote"] = n, vote(*answers.values())
        row["correct"] = row["vote"] is not None and equal(row["vote"], row["answer"])
        row["agreement"] = agreement_of(row["cot_vote"], row["pot_vote"])
        for path in PATHS:
            lengths = [len(t["text"]) for t in row[path] for _ in range(t["count"])]
            row[f"{path}_chars"] = sum(lengths) / len(lengths) if lengths else None
        row["tokens"] = row["cost"] = None
    own = tmp_path_factory.mktemp("own")
    return read_sources(own, [folder / "first", folder / "second"]), expected


def other_of(row, rows, filters):
    return next((o for o in rows if o["author"] == filters.other != row["author"] and o["id"] == row["id"]), None)


def matches(row, rows, f):
    other = other_of(row, rows, f)
    right = row["n_cot_correct"] + row["n_pot_correct"]
    outcomes = {
        "right": row["correct"],
        "wrong": not row["correct"],
        "outvoted": not row["correct"] and right > 0,
        "never": right == 0,
    }
    if f.other is not None and other is None:
        return False
    relations = (
        f.other is None
        or {
            "any": True,
            "differ": row["vote"] != other["vote"],
            "this": row["correct"] and not other["correct"],
            "other": other["correct"] and not row["correct"],
            "neither": not row["correct"] and not other["correct"],
            "type": row["type"] != other["type"],
        }[f.relation]
    )
    narrowed = f.lambda_low > 0 or f.lambda_high < 1
    needle = f.text.strip().casefold()
    return (
        relations
        and all(getattr(f, name) in (None, row[name]) for name in ("author", "task", "split", "agreement"))
        and (not f.types or row["type"] in f.types)
        and (not narrowed or (row["type"] == 3 and f.lambda_low <= row["lambda"] <= f.lambda_high))
        and (f.outcome is None or outcomes[f.outcome])
        and (needle in row["question"].casefold() or needle in row["id"].casefold())
    )


def sort_key(row, sort):
    right = row["n_cot_correct"] + row["n_pot_correct"]
    unknown = row["lambda"] is None
    keys = {
        "order": (),
        "close": (unknown, 0 if unknown else abs(row["lambda"] - 0.5)),
        "hard": (right / max(row["n_cot"] + row["n_pot"], 1),),
        "long": (-max(row["cot_chars"] or 0, row["pot_chars"] or 0),),
        "tokens": (),
    }
    return (*keys[sort], row["n"])


filters = st.builds(
    Filters,
    author=st.sampled_from([None, 1, 2]),
    task=st.sampled_from([None, None, "stories", "svamp", "nothing"]),
    split=st.sampled_from([None, None, "train", "test"]),
    types=st.sets(st.sampled_from([1, 2, 3, 4])).map(tuple),
    lambda_low=st.sampled_from([0.0, 0.0, 0.25, 0.5]),
    lambda_high=st.sampled_from([1.0, 1.0, 0.5, 0.75]),
    agreement=st.sampled_from([None, None, *AGREEMENT]),
    outcome=st.sampled_from([None, None, *OUTCOMES]),
    text=st.sampled_from(["", "", "", "strasse", " größe ", "%", "_", "'", "\\", "train/1", '"', "Δ"]),
    other=st.sampled_from([None, 1, 2]),
    relation=st.sampled_from(list(RELATIONS)),
    sort=st.sampled_from(list(SORTS)),
)


@settings(max_examples=150)
@given(filters)
def test_queries_agree_with_a_loop_over_all_rows(explored, f):
    catalog, rows = explored
    wanted = sorted((row for row in rows if matches(row, rows, f)), key=lambda row: sort_key(row, f.sort))
    assert queries.count(catalog, f) == len(wanted)
    found = [row for number in range(1, len(wanted) // 10 + 2) for row in queries.page(catalog, f, number, 10)]
    assert [row["n"] for row in found] == [row["n"] for row in wanted]
    for row, expected in zip(found, wanted, strict=True):
        assert {name: row[name] for name in row.keys() if name in expected} == {
            name: pytest.approx(expected[name]) if name.endswith("_chars") else expected[name]
            for name in row.keys()
            if name in expected
        }
        if f.other is not None:
            assert row["other_vote"] == other_of(expected, rows, f)["vote"]
    assert queries.count_types(catalog, f) == {t: sum(row["type"] == t for row in wanted) for t in QuestionType}
    lambdas = [row["lambda"] for row in wanted if row["type"] == 3]
    tenths = [min(int(value * 10), 9) for value in lambdas]
    assert [bin.count for bin in queries.lambda_bins(catalog, f)] == [tenths.count(i) for i in range(10)]
    for column in HISTOGRAMS:
        check_histogram(queries.histogram(catalog, f, column, 5), [row[column] for row in wanted])
    step, grid = queries.correct_grid(catalog, f)
    assert step == 1
    for row in wanted:
        grid[row["n_cot_correct"]][row["n_pot_correct"]] -= 1
    assert not any(map(any, grid))


def check_histogram(bins, values):
    values = [value for value in values if value is not None]
    assert sum(bin.count for bin in bins) == len(values)
    if not values:
        assert bins == []
    elif min(values) == max(values):
        assert bins == [Bin(values[0], values[0], len(values))]
    else:
        assert len(bins) == 5 and bins[0].low == min(values) and bins[-1].high == pytest.approx(max(values))
        for i, bin in enumerate(bins):
            # A value that rounding moves over an edge may be counted on either side of it
            inside = [bin.low + 1e-9 < v < bin.high - 1e-9 for v in values]
            nearby = [bin.low - 1e-9 <= v and (v < bin.high + 1e-9 or i == 4) for v in values]
            assert sum(inside) <= bin.count <= sum(nearby)


@settings(max_examples=20)
@given(filters)
def test_the_export_has_every_row_that_matches_with_all_thoughts(explored, f):
    catalog, rows = explored
    wanted = [row for row in rows if matches(row, rows, f)]
    lines = [json.loads(line) for line in queries.export(catalog, f)]
    columns = [name for name in MixedRow.features() if name != "repeat"]
    assert [[line[name] for name in columns] for line in lines] == [[row[name] for name in columns] for row in wanted]
    names = {1: "teacher (first)", 2: "teacher (second)"}
    assert [line["author"] for line in lines] == [names[row["author"]] for row in wanted]


def test_thoughts_are_read_one_row_at_a_time(explored):
    catalog, rows = explored
    for row in random.Random(1).sample(rows, 30):
        thoughts = catalog.read_thoughts(row["n"])
        assert [thoughts[path] for path in PATHS] == [row[path] for path in PATHS]


def test_many_correct_thoughts_share_the_cells_of_the_grid(tmp_path):
    thought = {"text": "t", "answer": "1", "correct": True}
    row = {"id": "a", "task": "t", "question": "q", "answer": "1", "type": 3, "lambda": 0.5, "repeat": 1}
    row |= {"n_cot": 100, "n_pot": 100, "n_cot_correct": 90, "n_pot_correct": 4, "cot_vote": "1", "pot_vote": "1"}
    row |= {"cot": [thought | {"count": 90}], "pot": [thought | {"count": 4}]}
    catalog = read_sources(tmp_path, [write_dataset(tmp_path / "data", "t", "train", [row])])
    step, grid = queries.correct_grid(catalog, Filters())
    assert step == 5 and len(grid) == 19 and grid[18][0] == 1
    assert "n1 = 90–94, n2 = 0–4: 1" in charts.grid(step, grid)


# --- Explanations -------------------------------------------------------------------------------------------


def explained(cot, pot, gold="5", failures=()):
    """The explanation of a question whose thoughts have these answers; `None` for those of `failures`."""
    thoughts = {path: [] for path in ("cot", "pot", "cot_unusable", "pot_unusable")}
    row = {"answer": gold, "n_cot": len(cot), "n_pot": len(pot)}
    judged = [
        Thought("q", path, i, f"{path}{i}", answer=answer, correct=answer is not None and equal(answer, gold))
        for path, answers in (("cot", cot), ("pot", pot))
        for i, answer in enumerate(answers)
    ]
    (mixed,) = mix([Question("q", "t", "train", "?", gold)], judged) if judged else [None]
    row |= mixed.to_dict()
    row |= {"agreement": agreement_of(row["cot_vote"], row["pot_vote"]), "n_label": 0, "trainable": 1}
    row["correct"] = equal(vote(cot, pot), gold) if vote(cot, pot) is not None else False
    thoughts |= {path: row[path] for path in PATHS}
    thoughts["pot_unusable"] = [{"text": "p", "reason": reason, "count": 1} for reason in failures]
    return explain(row, thoughts)


def test_a_solved_question_is_explained():
    assert explained(["5", "5.0"], ["5", "6", "5"]) == [
        "CoT votes 5 (2 of 2), the gold answer.",
        "PoT votes 5 (2 of 3), the gold answer.",
    ]


def test_a_question_that_neither_path_solves_is_explained():
    failures = ["error: NameError: name 'x'", "error: NameError: name 'y'", "timeout: 2 seconds"]
    unusable = "3 without an answer (NameError twice, timeout once)."
    assert explained(["6", "6", "5"], ["7", None, None, None], failures=failures) == [
        "CoT votes 6 (2 of 3); the gold answer 5 came up once and was outvoted.",
        f"PoT votes 7 (1 of 4); no thought reaches the gold answer 5. {unusable}",
        "More thoughts might change a vote: some are right.",
        "Such a question is not part of the mixed dataset.",
    ]


def test_ties_unusable_paths_and_doubtful_gold_answers_are_explained():
    assert "as frequent, but came later, and ties go to the first" in explained(["6", "5"], ["5"])[0]
    assert explained(["5"], [None, None])[1] == "PoT: none of its 2 thoughts reaches an answer."
    assert explained([], ["5"])[0] == "CoT: no thought was sampled."
    assert "gold answer 5 may be wrong" in explained(["6"], ["6"])[2]
    assert "right, although neither is by itself" in explained(["6", "6", "5", "5"], ["7", "7", "5", "5"])[2]


# --- HTML ---------------------------------------------------------------------------------------------------

HOSTILE = [
    "<script>document.title='changed'</script>",
    "<img src=x onerror=\"document.title='changed'\">",
    "[link](javascript:alert(1)) **bold** ![i](http://evil.example/i.png)",
    "${document.title='changed'} {{constructor.constructor('return 1')()}} {{#each}} `",
    "\x1b[31mred\x1b[0m \x1b]8;;http://evil.example\x07click\x1b]8;;\x07 \u202eevil\u2066",
    "'\"><svg onload=alert(1)>&lt;&#60;</pre></div></article>",
]


def shown(markup_text):
    """The text that a browser shows of HTML made of `span` elements."""
    plain = re.sub(r'<span class="mx-[a-z]+">|</span>', "", markup_text)
    assert "<" not in plain and ">" not in plain
    return html.unescape(plain)


@given(st.text() | st.sampled_from(HOSTILE) | st.text("<>&'\"#rf \n\\01abdef=(){}$`\x1b"))
def test_texts_are_shown_as_they_are(text):
    visible = html.unescape(markup.escape(text))
    assert shown(markup.highlight(text)) == visible == shown(markup.escape(text))
    assert not set("<>\"'{$`\x1b\u202e") & set(markup.escape(text))
    if text.isprintable():
        assert visible == text


def test_control_characters_have_symbols():
    assert markup.escape("a\x1b[0m\x00\tb\nc\x7f\u202e") == "a␛[0m␀\tb\nc␡⟨U+202E⟩"


def test_programs_are_highlighted_even_if_broken():
    assert markup.highlight('return "a # b" # 1') == (
        '<span class="mx-keyword">return</span> <span class="mx-string">&quot;a # b&quot;</span> '
        '<span class="mx-comment"># 1</span>'
    )
    assert markup.highlight("x2 = 3.5") == 'x2 = <span class="mx-number">3.5</span>'
    assert markup.highlight('"""open\nx') == '<span class="mx-string">&quot;&quot;&quot;open\nx</span>'
    assert markup.highlight("'open\nif") == (
        '<span class="mx-string">&#x27;open</span>\n<span class="mx-keyword">if</span>'
    )


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_part_of_the_page_lets_html_through(tmp_path, hostile):
    store = tmp_path / "s.db"
    rows = [
        {"task": "own", "question": hostile, "gold": hostile, "path": path, "text": text, "model": hostile}
        for path in PATHS
        for text in (hostile, f"{hostile} The answer is {hostile}", f"return '''{hostile}'''", f"raise E({hostile!r})")
    ]
    write_thoughts(store, rows)
    catalog = read_sources(tmp_path, stores=[store])
    (row,) = queries.page(catalog, Filters())
    names = queries.authors(catalog)
    page = markup.listing([row], 1) + markup.question_view([row], [catalog.read_thoughts(1)], names)
    assert "evil" not in hostile or "evil" in page
    allowed = "article|section|header|div|span|ul|li|h3|h4|pre|p|b|i|button"
    assert not re.findall(rf"<(?!/?(?:{allowed})[ >])", page)
    assert not re.search(r"\son\w+=", re.sub(r">[^<]*<", "><", page)) and "{" not in page and "$" not in page


def test_long_texts_and_many_thoughts_are_shown_in_part(tmp_path):
    thoughts = [{"text": f"{i} " + "y" * 30_000, "answer": "1", "correct": True, "count": 1} for i in range(50)]
    row = {"id": "a", "question": "q", "answer": "1", "type": 3, "cot": thoughts, "pot": ["answer = 1"]}
    (tmp_path / "data").mkdir()
    from pyarrow.parquet import write_table

    write_table(pyarrow.Table.from_pylist([row]), tmp_path / "data" / "train.parquet")
    catalog = read_sources(tmp_path, [tmp_path / "data"])
    (found,) = queries.page(catalog, Filters())
    assert (found["n_cot"], found["n_pot"], found["split"], found["pot_vote"]) == (50, 1, "train", "1")
    views = [markup.question_view([found], [catalog.read_thoughts(1)], {1: "a"}, page) for page in range(3)]
    assert [view.count("<pre>") for view in views] == [21, 20, 10]
    assert "10,002 more characters" in views[0] and len(views[0]) < 500_000
    assert 'data-page="1"' in views[0] and "page 1 of 3" in views[0]


# --- Sources ------------------------------------------------------------------------------------------------


def write_thoughts(file, rows):
    lines = file.with_suffix(".jsonl")
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Store(file) as store:
        store.import_thoughts(lines, "own")


def sampled(model, cot, pot, question="What is 2 plus 3?", gold="5", **fields):
    return [
        {"task": "own", "question": question, "gold": gold, "path": path, "text": text, "model": model} | fields
        for path, texts in (("cot", cot), ("pot", pot))
        for text in texts
    ]


@pytest.fixture
def store(tmp_path):
    """A teacher and two students on one question; one of them on another question, too."""
    file = tmp_path / "thoughts.db"
    rows = sampled("teacher", ["The answer is 5.", "The answer is 5.", "Hm."], ["answer = 2 + 3", "answer = x"])
    rows += sampled("runs/a/student", ["The answer is 6."], ["answer = 2 * 3"])
    rows += sampled("runs/b/student", ["The answer is 5."], ["answer = 5", "while True: pass"])
    rows += sampled("runs/b/student", ["The answer is 1."], [], question="What is 1 times 1?", gold="1")
    write_thoughts(file, rows)
    return file


def test_a_store_is_judged_and_not_changed(store, tmp_path):
    digest = hashlib.sha256(store.read_bytes()).hexdigest()
    (tmp_path / "own").mkdir()
    catalog = read_sources(tmp_path / "own", stores=[store])
    assert queries.authors(catalog) == {1: "teacher", 2: "runs/a/student", 3: "runs/b/student"}
    teacher, a, b, b_other = queries.page(catalog, Filters())
    assert [teacher[name] for name in ("type", "n_cot", "n_cot_correct", "n_pot", "n_pot_correct", "lambda")] == [
        *(3, 3, 2, 2, 1),
        pytest.approx(1 / 3),
    ]
    assert (a["type"], a["agreement"], a["vote"], a["correct"]) == (4, "agree", "6", 0)
    assert (b["type"], b_other["type"], b_other["agreement"]) == (3, None, "one")
    thoughts = catalog.read_thoughts(teacher["n"])
    assert thoughts["cot"] == [{"text": "The answer is 5.", "answer": "5", "correct": True, "count": 2}]
    assert thoughts["cot_unusable"] == [{"text": "Hm.", "reason": "states no answer", "count": 1}]
    (failed,) = thoughts["pot_unusable"]
    assert failed["reason"].startswith("error: NameError")
    (slow,) = catalog.read_thoughts(b["n"])["pot_unusable"]
    assert slow["reason"].startswith("timeout")
    assert hashlib.sha256(store.read_bytes()).hexdigest() == digest


def test_a_store_that_is_read_only_refuses_to_be_written(store, tmp_path):
    with Store(store, read_only=True) as opened:
        assert len(opened.thoughts(Selection(models="teacher"))) == 5
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            opened.questions.add([Question("own/train/new", "own", "train", "?", "1")])
    with pytest.raises(sqlite3.OperationalError):
        Store(tmp_path / "missing.db", read_only=True)
    (tmp_path / "empty.db").touch()
    with pytest.raises(InputError, match="is empty"):
        Store(tmp_path / "empty.db", read_only=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to every folder")
def test_a_store_in_a_folder_without_write_permission_is_explored(store, tmp_path):
    check_read_only_folder(store, tmp_path, READ_ONLY.replace("os.setuid(65534)\n", ""))


READ_ONLY = """
import os, sys
from md_trl.explorer.sources import read_sources
from md_trl.explorer import queries
os.setuid(65534)
catalog = read_sources(sys.argv[2], stores=[sys.argv[1]])
print(queries.totals(catalog))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_store_of_another_user_is_explored(store, tmp_path):
    check_read_only_folder(store, tmp_path, READ_ONLY)


def check_read_only_folder(store, tmp_path, code):
    own = tmp_path / "own"
    own.mkdir()
    own.chmod(0o777)
    for folder in [tmp_path, *tmp_path.parents][:4]:  # up to the folder that pytest makes for each user
        folder.chmod(folder.stat().st_mode | 0o055)
    before = sorted(tmp_path.iterdir())
    tmp_path.chmod(0o555)
    try:
        done = subprocess.run([sys.executable, "-c", code, store, own], capture_output=True, text=True)
        assert done.stdout.strip() == "(2, 11)", done.stderr[-2000:]
        assert sorted(tmp_path.iterdir()) == before
    finally:
        tmp_path.chmod(0o755)


def test_settings_of_one_model_are_told_apart(tmp_path):
    file = tmp_path / "s.db"
    rows = sampled("m", ["The answer is 5."], ["answer = 5"], params={"temperature": 0.7})
    rows += sampled("m", ["The answer is 6."], ["answer = 6"], params={"temperature": 1.0})
    write_thoughts(file, rows)
    catalog = read_sources(tmp_path, stores=[file])
    assert queries.authors(catalog) == {1: "m (temperature=0.7)", 2: "m (temperature=1.0)"}
    assert [row["type"] for row in queries.page(catalog, Filters())] == [3, 4]
    other = Filters(author=1, other=2, relation="this")
    (row,) = queries.page(catalog, other)
    assert (row["vote"], row["other_vote"]) == ("5", "6")


def test_tokens_and_cost_of_a_store(tmp_path):
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    write_thoughts(tmp_path / "s.db", sampled("m", ["The answer is 5."], ["answer = 5"], usage=usage))
    from md_trl.sampling.ledger import Price

    catalog = read_sources(tmp_path, stores=[tmp_path / "s.db"], prices={"m": Price(1.0, 2.0)})
    (row,) = queries.page(catalog, Filters())
    assert (row["tokens"], row["cost"]) == (20, pytest.approx((200 * 1.0 + 20 * 2.0) / 1e6))


def test_results_take_the_questions_of_a_store(store, tmp_path):
    with Store(store) as opened:
        question, other = opened.questions.load()
    answered = [QuestionResult(question.id, "5", ["5", "6", None], ["6", "6"]), QuestionResult("x", "1", ["1"], [])]
    for name in ("b", "a"):
        EvaluationResult(name, name, "own", "train", {}, answered).save(tmp_path / "results")
    (tmp_path / "own").mkdir()
    catalog = read_sources(tmp_path / "own", stores=[store], results=[tmp_path / "results"])
    names = queries.authors(catalog)
    assert list(names.values())[3:] == ["a", "b"]
    known, unknown = queries.page(catalog, Filters(author=4))
    assert (known["question"], known["type"], known["vote"], known["n_cot"]) == (question.question, 2, "6", 3)
    assert unknown["question"] is None
    thoughts = catalog.read_thoughts(known["n"])
    assert thoughts["cot_unusable"] == [{"text": None, "reason": "no answer", "count": 1}]
    everyone = queries.answered_by(catalog, question.id)
    assert [row["author"] for row in everyone] == [1, 2, 3, 4, 5]
    view = markup.question_view(everyone, [catalog.read_thoughts(row["n"]) for row in everyone], names)
    assert view.count("<section") == 5 and "None" not in view


def test_a_dataset_says_how_many_questions_it_leaves_out(store, tmp_path, capsys):
    main(["mix", "--store", str(store), "--task", "own", "--model", "teacher", "--output", str(tmp_path / "mixed")])
    metadata = tmp_path / "mixed" / "own" / "mixing.json"
    values = json.loads(metadata.read_text())
    values["types"]["train"]["4"] = 1234
    metadata.write_text(json.dumps(values))
    (tmp_path / "own").mkdir()
    catalog = read_sources(tmp_path / "own", [tmp_path / "mixed"])
    assert queries.authors(catalog) == {1: "teacher"}
    (note,) = queries.notes(catalog)
    assert "1,234 of own/train" in note
    assert queries.totals(catalog) == (1, 5)


# --- The command line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Name a `--dataset`, a `--store` or a folder of `--results`"),
        (["--dataset", "{}/none"], "There is no dataset in"),
        (["--dataset", "{}"], "has no Parquet file with the columns"),
        (["--store", "{}/none.db"], "There is no store at"),
        (["--store", "{}/text.db"], "is not a store"),
        (["--results", "{}"], "There are no results in"),
        (["--dataset", "{}", "--port", "-1"], "cannot listen on"),
        (["--store", "{}/none.db", "--prices", "{}/none.yaml"], "none.yaml"),
    ],
)
def test_what_cannot_be_explored_is_named(tmp_path, arguments, message):
    pytest.importorskip("gradio", reason="needs gradio, see the extra `explore`")
    (tmp_path / "text.db").write_text("not a database at all")
    if "--port" not in arguments:
        arguments = [*arguments, "--port", "0"]
    with pytest.raises(SystemExit) as ended:
        main(["explore", *(argument.format(tmp_path) for argument in arguments)])
    assert message in str(ended.value)


def test_a_missing_extra_is_named():
    code = "import sys; sys.modules['gradio'] = None; from md_trl.cli import main; main(['explore', '--dataset', '.'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and 'pip install "md_trl[explore]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_filters_are_refused():
    for name in ("agreement", "outcome", "relation", "sort"):
        with pytest.raises(InputError, match=f"Unknown {name} 'x'"):
            Filters(**{name: "x"})
    assert dataclasses.asdict(Filters())["types"] == ()
