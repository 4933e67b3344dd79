import ast
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from datasets import Dataset, load_dataset
from huggingface_hub import DatasetCard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from servers.hub import running_hub

from md_trl import MixedThoughts
from md_trl.cli import main
from md_trl.dataset import build_dataset, ensure_dataset
from md_trl.dataset_folder import write_folder
from md_trl.errors import InputError
from md_trl.execution import Executor, default_cache
from md_trl.judging import mark, read_answers
from md_trl.mixed_rows import MixedSplit, mix_store
from md_trl.mixing import describe, mix
from md_trl.records import MixedRow, Question, QuestionType
from md_trl.sampling.ledger import Price
from md_trl.store import Selection, Store
from md_trl.training_rows import load_mixed_rows, load_question_rows


LINES = [
    {"path": "cot", "text": "2 + 3 = 5. The answer is 5.", "gold": "5"},
    {"path": "cot", "text": "2 + 3 = 6. The answer is 6.", "gold": "5"},
    {"path": "pot", "text": "answer = 2 + 3", "gold": "5"},
]
HOPELESS = {"task": "svamp", "question": "And 9?", "path": "cot", "text": "The answer is 1.", "gold": "9"}


def import_lines(store_file, lines, **kwargs):
    file = store_file.with_suffix(".jsonl")
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Store(store_file) as store:
        store.import_thoughts(file, **kwargs)
    return store_file


def make_store(file, task="svamp", questions=("What is 2 plus 3?",), extra=()):
    lines = [{"task": task, "question": q, **line} for q in questions for line in LINES]
    return import_lines(file, lines + list(extra))


def rows_of(file, task="svamp", splits=("train",), **selection):
    """The reference: all thoughts in memory, without type 4."""
    with Store(file) as store, Executor(cache=default_cache(file)) as executor:
        questions = [question for question in store.questions.load(task) if question.split in splits]
        thoughts = read_answers(store.thoughts(Selection(task, splits, **selection)), executor)
        rows = mix(questions, mark(thoughts, {question.id: question.answer for question in questions}))
    return rows


def dicts(rows):
    return [row.to_dict() for row in rows if row.type != QuestionType.NEITHER]


def streamed(file, folder, task="svamp", splits=("train",), chunk=50_000, **selection):
    """The rows of each split as they are read from the files of `mix_store`."""
    with Store(file) as store:
        found = mix_store(store, Selection(task, splits, **selection), folder, chunk=chunk)
    return {name: [row for table in split.tables() for row in table.to_pylist()] for name, split in found.items()}


def mixed_split(folder, rows):
    with MixedSplit(folder / "rows.parquet") as split:
        split.add(rows)
    return split


def build(file, folder, task="svamp", **selection):
    with Store(file) as store:
        return build_dataset(store, folder, Selection(task, ["train"], **selection))


def load(folder, task="svamp", cache=None):
    return load_dataset(str(folder), task, split="train", cache_dir=str(cache or folder.parent / "cache"))


def test_a_folder_opens_with_load_dataset_in_a_fresh_process(tmp_path):
    rows = rows_of(make_store(tmp_path / "t.db"))
    split = mixed_split(tmp_path, rows)
    folder = write_folder(tmp_path / "mixed", "svamp", {"train": split}, {"teacher": "somebody"})
    code = (
        "from datasets import load_dataset; import json, sys; "
        "print(json.dumps(load_dataset(sys.argv[1], 'svamp', split='train')[0]))"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    out = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True, env=environment
    )
    loaded = json.loads(out.stdout)
    assert loaded == rows[0].to_dict()
    assert (loaded["type"], loaded["lambda"], loaded["repeat"]) == (3, 0.5, 1)
    card = (folder / "README.md").read_text()
    assert "config_name: svamp" in card and "| teacher | somebody |" in card and "{{" not in card


def test_programs_run_once_and_their_results_are_kept_beside_the_store(tmp_path):
    file = make_store(tmp_path / "t.db")
    [row] = streamed(file, tmp_path)["train"]
    assert row["pot_vote"] == "5"
    # If the program were run again, it would not give 6.
    with closing(sqlite3.connect(default_cache(file))) as db, db:
        db.execute("UPDATE results SET result = replace(result, '\"ok\", 5', '\"ok\", 6')")
    [row] = streamed(file, tmp_path)["train"]
    assert row["pot_vote"] == "6"


def test_tasks_share_a_folder_and_can_be_written_again(tmp_path):
    folder = tmp_path / "mixed"
    for task in ("svamp", "gsm8k", "svamp"):
        build(make_store(tmp_path / f"{task}.db", task), folder, task)
    for task in ("svamp", "gsm8k"):
        [row] = load(folder, task)
        assert row["task"] == task
    assert (folder / "README.md").read_text().count("## svamp\n") == 1


def test_a_readme_of_something_else_is_not_replaced(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "README.md").write_text("# My project")
    with pytest.raises(InputError, match="has a README.md that `md-trl mix` did not write"):
        build(make_store(tmp_path / "t.db"), folder, "svamp")
    assert (folder / "README.md").read_text() == "# My project" and len(list(folder.iterdir())) == 1


def test_type_4_is_counted_and_not_written(tmp_path):
    folder = tmp_path / "mixed"
    build(make_store(tmp_path / "t.db", extra=[HOPELESS]), folder)
    assert len(load(folder)) == 1
    assert json.loads((folder / "svamp" / "mixing.json").read_text())["types"] == {
        "train": {"1": 0, "2": 0, "3": 1, "4": 1}
    }
    with pytest.raises(ValueError, match="all 1 are of type 4"):
        build(import_lines(tmp_path / "hopeless.db", [HOPELESS]), tmp_path / "empty")
    assert not (tmp_path / "empty").exists()


def test_the_builder_makes_the_same_dataset_and_notices_a_grown_store(tmp_path):
    file = make_store(tmp_path / "t.db")
    for questions in (1, 2):
        builder = MixedThoughts("svamp", store=file, cache_dir=str(tmp_path / "cache"))
        builder.download_and_prepare()
        dataset = builder.as_dataset(split="train")
        assert dataset.features == MixedRow.features()
        assert dataset.to_list() == dicts(rows_of(file))
        assert len(dataset) == questions
        make_store(tmp_path / "t.db", questions=("What is 2 plus 3?", "What is 1 plus 4?"))


def test_the_builder_notices_other_thoughts_in_as_many_rows(tmp_path):
    file, texts = tmp_path / "t.db", []
    for first in ("2 + 3 = 5. The answer is 5.", "5 it is. The answer is 5."):
        file.unlink(missing_ok=True)
        line = {"task": "mine", "question": "2 and 3?", "path": "cot", "text": first, "gold": "5"}
        import_lines(file, [line], task="mine")
        with Store(file) as store:
            store.questions.add([Question("mine/test/1", "mine", "test", "Not sampled?", "5")])
        builder = MixedThoughts("mine", store=file, cache_dir=str(tmp_path / "cache"), repeat_cap=3)
        builder.download_and_prepare()
        assert list(builder.info.splits) == ["train"]  # a split without thoughts is left out
        assert '"repeat_cap": 3' in builder.info.description
        texts.append(builder.as_dataset(split="train")[0]["cot"][0]["text"])
    assert texts == ["2 + 3 = 5. The answer is 5.", "5 it is. The answer is 5."]


def test_the_builder_says_that_nothing_was_solved(tmp_path):
    file = import_lines(tmp_path / "t.db", [HOPELESS])
    builder = MixedThoughts("svamp", store=file, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="all 1 are of type 4"):
        builder.download_and_prepare()
    builder = MixedThoughts("gsm8k", store=file, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="no thoughts of gsm8k"):
        builder.download_and_prepare()
    with pytest.raises(ValueError, match="cannot be mixed as a stream"):
        builder.as_streaming_dataset()


def test_missing_stores_and_tasks_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no store at .*absent.db"):
        MixedThoughts("svamp", store=tmp_path / "absent.db")
    file = make_store(tmp_path / "t.db")
    with pytest.raises(ValueError, match="no thoughts of gsm8k/train; it holds svamp/train"):
        streamed(file, tmp_path, "gsm8k")
    with pytest.raises(ValueError, match="no thoughts of svamp/train with model 'nobody'. Choose from those"):
        streamed(file, tmp_path, models="nobody")


def test_the_card_and_the_cost_are_those_of_the_thoughts_that_were_mixed(tmp_path):
    store_file = make_store(tmp_path / "t.db")
    other = [{"task": "svamp", "question": "What is 2 plus 3?", **line, "model": "other"} for line in LINES]
    import_lines(store_file, other)
    with Store(store_file) as store:
        numbers = [row.setting for row in store.status() if row.model == "other"]
        summary = build_dataset(
            store,
            tmp_path / "mixed",
            Selection("svamp", ["train"], settings=numbers),
            prices={"other": Price(1.0, 1.0)},
        )
    assert "Cost 0.0000: 0.000000 for each of 1 kept questions" in summary.format()
    metadata = json.loads((tmp_path / "mixed" / "svamp" / "mixing.json").read_text())
    assert metadata["settings"]["teacher"] == "other"
    builder = MixedThoughts("svamp", store=store_file, settings=numbers, cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare()
    [row] = load(tmp_path / "mixed")
    assert builder.as_dataset(split="train")[0] == row


def test_each_path_can_have_its_own_teacher_and_settings_can_be_combined(tmp_path):
    lines = [
        {"task": "svamp", "question": "What is 2 plus 3?", **line, "text": f"{line['text']} {'#' * i}", "model": model}
        for i, model in enumerate(("prose", "code"))
        for line in LINES
    ]
    file = import_lines(tmp_path / "t.db", lines)
    with pytest.raises(ValueError, match="several settings"):
        build(file, tmp_path / "mixed")
    build(file, tmp_path / "mixed", models={"cot": "prose", "pot": "code"})
    [row] = load(tmp_path / "mixed")
    assert [thought["text"] for thought in row["pot"]] == ["answer = 2 + 3 #"]
    assert all("#" not in thought["text"] for thought in row["cot"])
    metadata = json.loads((tmp_path / "mixed" / "svamp" / "mixing.json").read_text())
    assert metadata["settings"]["teacher"] == "cot: prose; pot: code"
    build(file, tmp_path / "mixed", combine=True)
    [row] = load(tmp_path / "mixed")
    assert (row["n_cot"], row["n_pot"], len(row["pot"])) == (4, 2, 2)


def test_a_dataset_is_built_again_when_its_store_has_changed(tmp_path):
    file, folder = make_store(tmp_path / "t.db"), tmp_path / "mixed"
    build(make_store(tmp_path / "other.db", "gsm8k"), folder, "gsm8k")
    assert ensure_dataset(folder, "svamp", file) is not None
    assert ensure_dataset(folder, "svamp", file) is None
    make_store(tmp_path / "t.db", questions=("What is 2 plus 3?", "What is 1 plus 4?"))
    assert ensure_dataset(folder, "svamp", file) is not None
    assert len(load(folder)) == 2 and len(load(folder, "gsm8k")) == 1
    # The same selection and cap as before
    with Store(file) as store:
        build_dataset(store, folder, Selection("svamp", ["train"], combine=True), repeat_cap=7)
    make_store(tmp_path / "t.db", questions=("What is 4 plus 1?",))
    assert ensure_dataset(folder, "svamp", file) is not None
    source = json.loads((folder / "svamp" / "mixing.json").read_text())["source"]
    assert source["selection"]["combine"] is True and source["repeat_cap"] == 7
    # A dataset without its store is used as it is
    file.unlink()
    assert ensure_dataset(folder, "svamp", file) is None and len(load(folder)) == 3
    with pytest.raises(FileNotFoundError, match="no store at"):
        ensure_dataset(folder, "strategyqa", file)


def test_a_half_written_dataset_is_built_again(tmp_path):
    file, folder = make_store(tmp_path / "t.db"), tmp_path / "mixed"
    (folder / "svamp").mkdir(parents=True)
    (folder / "svamp" / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    assert ensure_dataset(folder, "svamp", file) is not None
    assert len(load(folder)) == 1


def test_a_build_that_fails_leaves_the_dataset_as_it_was(tmp_path, monkeypatch):
    file, folder = make_store(tmp_path / "t.db"), tmp_path / "mixed"
    build(file, folder)
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    make_store(tmp_path / "t.db", questions=("What is 2 plus 3?", "What is 1 plus 4?"))

    def killed(rows):
        raise KeyboardInterrupt

    monkeypatch.setattr("md_trl.dataset_folder.describe", killed)
    with pytest.raises(KeyboardInterrupt):
        build(file, folder)
    assert {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()} == before


def test_rows_to_train_on_are_loaded_or_their_absence_is_explained(tmp_path):
    file = make_store(tmp_path / "t.db", extra=[HOPELESS])
    build(file, tmp_path / "mixed")
    assert len(load_mixed_rows(str(tmp_path / "mixed"), "svamp")) == 1
    with pytest.raises(ValueError, match="of task 'gsm8k' from .*mixed"):
        load_mixed_rows(str(tmp_path / "mixed"), "gsm8k")
    # Every question, solved or not
    rows = load_question_rows("svamp", store_file=str(file))
    assert [(row["question"], row["answer"]) for row in rows] == [("What is 2 plus 3?", "5"), ("And 9?", "9")]
    with pytest.raises(ValueError, match="no questions of gsm8k/train"):
        load_question_rows("gsm8k", store_file=str(file))


LINE = st.fixed_dictionaries(
    {
        "question": st.integers(0, 5),
        "path": st.sampled_from(["cot", "cot", "pot", "pot", "label"]),
        "answer": st.integers(4, 6),
        "model": st.sampled_from(["a", "b"]),
    }
)


@settings(max_examples=25)
@given(st.lists(LINE, min_size=1, max_size=40), st.integers(1, 12))
def test_streamed_rows_are_those_of_mix(lines, chunk):
    texts = {"cot": "So it is. The answer is {}.", "pot": "answer = {}", "label": "{}"}
    for line in lines:
        split = ("train", "dev")[line["question"] % 2]
        line |= {"task": "mine", "id": f"mine/{split}/{line['question']}", "gold": "5"}
        line |= {"question": f"Five, {line['question']}?", "text": texts[line["path"]].format(line["answer"])}
    expected = [HOPELESS | {"task": "mine", "id": "mine/train/x"}] if chunk > 6 else []
    expected += [line | {"path": path, "text": texts[path].format(5)} for line in lines[:1] for path in ("cot", "pot")]
    with tempfile.TemporaryDirectory() as folder:
        file = import_lines(Path(folder) / "t.db", lines + expected, task="mine")
        splits = sorted({line["id"].split("/")[1] for line in lines + expected})
        rows = {split: rows_of(file, "mine", [split], combine=True) for split in splits}
        if any(not dicts(of_split) for of_split in rows.values()):
            with pytest.raises(ValueError, match="are of type 4|has no thoughts"):
                streamed(file, folder, "mine", splits, chunk, combine=True)
            return
        assert streamed(file, folder, "mine", splits, chunk, combine=True) == {k: dicts(v) for k, v in rows.items()}
        summary = build(file, Path(folder) / "mixed", "mine", combine=True) if "train" in splits else None
    if summary is not None:
        counts = Counter(row.type for row in rows["train"])
        assert summary.statistics["train"].types == counts
        lambdas = [row.lambda_ for row in rows["train"] if row.type == QuestionType.BOTH]
        mean = f"| mean | {sum(lambdas) / len(lambdas):.3f} |" if lambdas else ""
        assert mean in describe(summary.statistics["train"])


def make_large_store(file, count=40, model=""):
    """Questions of types 1, 2, 3 and 4 in turn."""
    lines = []
    for i in range(count):
        cot, pot = (5, 6, 5, 6)[i % 4], (5, 5, 6, 6)[i % 4]
        line = {"task": "mine", "id": f"mine/train/{i}", "question": f"How much, {i}?", "gold": "5", "model": model}
        lines += [line | {"path": "cot", "text": f"Sum {i}. The answer is {cot}."}]
        lines += [line | {"path": "pot", "text": f"answer = {pot}  # {i}"}]
    return import_lines(file, lines, task="mine")


def test_a_large_split_is_written_in_several_files(tmp_path):
    file, folder = make_large_store(tmp_path / "t.db"), tmp_path / "mixed"
    with Store(file) as store:
        splits = mix_store(store, Selection("mine"), tmp_path, chunk=20)
    write_folder(folder, "mine", splits, {}, max_shard_bytes=splits["train"].num_bytes // 2)
    names = sorted(path.name for path in (folder / "mine").glob("*.parquet"))
    assert names == [f"train-0000{i}-of-0000{len(names)}.parquet" for i in range(len(names))] and len(names) > 1
    assert load(folder, "mine").to_list() == dicts(rows_of(file, "mine"))


def test_the_builder_works_in_several_processes(tmp_path):
    file = make_large_store(tmp_path / "t.db")
    for processes in (1, 2):
        builder = MixedThoughts("mine", store=file, cache_dir=str(tmp_path / f"cache{processes}"))
        builder.download_and_prepare(num_proc=processes)
        assert builder.as_dataset(split="train").to_list() == dicts(rows_of(file, "mine"))
        assert len(list(Path(builder.cache_dir).glob("*.arrow"))) == processes
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


def test_the_builder_mixes_the_same_thoughts_once(tmp_path, monkeypatch):
    file = make_large_store(tmp_path / "t.db", 4)
    with Store(file) as store:
        for name in ("a.jsonl", "b.parquet"):
            store.export_thoughts(tmp_path / name)
    expected = dicts(rows_of(file, "mine"))

    def prepare(**source):
        builder = MixedThoughts("mine", cache_dir=str(tmp_path / "cache"), **source)
        builder.download_and_prepare()
        return builder.as_dataset(split="train").to_list()

    sources = [{"store": file}, {"thoughts": tmp_path / "a.jsonl"}, {"thoughts": tmp_path / "b.parquet"}]
    assert [prepare(**source) for source in sources] == [expected] * 3
    shutil.copy(tmp_path / "a.jsonl", tmp_path / "copy.jsonl")
    with monkeypatch.context() as patch:
        patch.delattr("md_trl.dataset.mix_store")
        assert [prepare(**source) for source in [*sources, {"thoughts": tmp_path / "copy.jsonl"}]] == [expected] * 4
    changed = (tmp_path / "a.jsonl").read_text().replace("Sum 0", "Total 0")
    (tmp_path / "a.jsonl").write_text(changed)
    assert prepare(thoughts=tmp_path / "a.jsonl")[0]["cot"][0]["text"] == "Total 0. The answer is 5."


def test_raw_thoughts_that_cannot_be_used_are_named(tmp_path):
    file = make_large_store(tmp_path / "t.db", 4, "other")
    make_large_store(file, 4)
    export = tmp_path / "export.parquet"
    with Store(file) as store:
        store.export_thoughts(export)

    def mix_file(thoughts, task="mine", **kwargs):
        MixedThoughts(task, thoughts=thoughts, cache_dir=str(tmp_path / "cache"), **kwargs).download_and_prepare()

    with pytest.raises(ValueError, match=f"^{export} holds thoughts of several settings") as error:
        mix_file(export)
    assert "thoughts.db" not in str(error.value)
    mix_file(export, models="other")
    with pytest.raises(ValueError, match=f"{export} has no thoughts of svamp; it holds those of mine"):
        mix_file(export, "svamp")
    with pytest.raises(FileNotFoundError, match="absent.jsonl is neither a thought file nor a dataset"):
        mix_file(tmp_path / "absent.jsonl")
    (tmp_path / "bad.jsonl").write_text(json.dumps({"task": "mine", "path": "cot", "id": "mine/train/1"}))
    with pytest.raises(ValueError, match="bad.jsonl, line 1: 'text' is missing"):
        mix_file(tmp_path / "bad.jsonl")
    (tmp_path / "repo" / "mine-thoughts").mkdir(parents=True)
    (tmp_path / "repo" / "README.md").write_text(
        "---\nconfigs:\n- config_name: mine-thoughts\n  data_files:\n  - split: train\n"
        "    path: mine-thoughts/train-*.parquet\n---\n"
    )
    table = parquet.read_table(export)
    text = table.schema.get_field_index("text")
    for broken, message in [
        (table.drop_columns(["gold", "text"]), "has no column 'gold', 'text'; it has 'task', 'id'"),
        (
            table.set_column(text, "text", table["index"]),
            "the column 'text' holds int32, expected strings",
        ),
    ]:
        parquet.write_table(broken, tmp_path / "repo" / "mine-thoughts" / "train-00000-of-00001.parquet")
        with pytest.raises(ValueError, match=f"repo/mine-thoughts/train-00000-of-00001.parquet:? ?{message}"):
            mix_file(tmp_path / "repo")
    with pytest.raises(ValueError, match="repo has no raw thoughts of svamp, .* 'svamp-thoughts'"):
        mix_file(tmp_path / "repo", "svamp")
    with pytest.raises(ValueError, match="No thoughts to mix are named"):
        mix_file(None)
    with pytest.raises(ValueError, match="from one place"):
        mix_file(export, store=file)


HUB = """
import os, shutil, sys
from datasets import Dataset
from md_trl import MixedThoughts

def rows():
    builder = MixedThoughts("mine", thoughts="md/mixed-thoughts", cache_dir=sys.argv[2])
    builder.download_and_prepare()
    return builder.cache_dir, builder.as_dataset(split="train").to_list()

raw = Dataset.from_parquet(sys.argv[1], cache_dir=sys.argv[2])
raw.push_to_hub("md/mixed-thoughts", "mine-thoughts", split="train")
first, all_rows = rows()
assert rows() == (first, all_rows)
Dataset.from_list(raw.to_list()[:8], features=raw.features).push_to_hub(
    "md/mixed-thoughts", "mine-thoughts", split="train"
)
second, fewer = rows()
assert second != first and fewer == all_rows[:len(fewer)] and 0 < len(fewer) < len(all_rows)
print(repr(all_rows))
"""


def test_raw_thoughts_are_mixed_from_the_hub(tmp_path):
    file = make_large_store(tmp_path / "t.db", 8)
    with Store(file) as store:
        store.export_thoughts(tmp_path / "raw.parquet")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    offline = "import os; os.environ['HF_HUB_OFFLINE'] = '1'\n" + HUB[: HUB.index("raw =")] + "print(len(rows()[1]))"
    with running_hub(tmp_path / "hub") as (url, _):
        environment |= {"HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
        arguments = [str(tmp_path / "raw.parquet"), str(tmp_path / "cache")]
        for code in (HUB, offline):
            done = subprocess.run(
                [sys.executable, "-c", code, *arguments],
                env=environment | {"HF_TOKEN": "hf_write"},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr[-3000:]
            if code == HUB:
                assert ast.literal_eval(done.stdout.strip().split("\n")[-1]) == dicts(rows_of(file, "mine"))
    assert int(done.stdout.strip().split("\n")[-1]) > 0


def test_mix_on_the_command_line_reads_a_thought_file(tmp_path, capsys):
    file = make_large_store(tmp_path / "t.db", 4)
    with Store(file) as store:
        store.export_thoughts(tmp_path / "t.jsonl")
    for source in ("--thoughts", "--store"):
        output = tmp_path / source.strip("-")
        main(
            [
                "mix",
                source,
                str(tmp_path / ("t.jsonl" if "th" in source else "t.db")),
                "--task",
                "mine",
                "--output",
                str(output),
            ]
        )
        assert "mine/train: 4 questions" in capsys.readouterr().out
    assert load(tmp_path / "thoughts", "mine").to_list() == load(tmp_path / "store", "mine").to_list()
    # A dataset from a thought file is up to date with a store of the same thoughts
    assert ensure_dataset(tmp_path / "thoughts", "mine", file) is None


def test_contaminated_questions_are_counted_in_the_summary_and_the_metadata(tmp_path):
    file = make_store(
        tmp_path / "t.db", questions=("What is 2 plus 3?", "What do 2 and 3 make, both added, I ask you?")
    )
    with Store(file) as store:
        texts = ("what is 2 plus 3", "What do 20 and 30 make, both added, I ask you?")
        store.questions.add(Question(f"mine/test/{i}", "mine", "test", text, "5") for i, text in enumerate(texts))
    summary = build(file, tmp_path / "mixed")
    metadata = json.loads((tmp_path / "mixed" / "svamp" / "mixing.json").read_text())
    assert metadata["contamination"]["train"] == {
        **{task: {"text": 0, "template": 0} for task in ("asdiv", "gsm8k", "strategyqa", "svamp")},
        "mine": {"text": 1, "template": 1},
    }
    assert "test questions of mine: 1 with the same text, 1 more that differ only in numbers" in summary.format()


def test_what_is_written_to_a_store_meanwhile_is_not_mixed(tmp_path):
    file = make_large_store(tmp_path / "t.db", 4)
    with Store(file) as store:
        before = store.thoughts()
        with store.snapshot():
            assert store.count_sampled() == {"train": 4}
            streaming = store.iterate_thoughts()
            first = next(streaming)
            make_large_store(file, 8)
            assert [first, *streaming] == before and store.count_sampled() == {"train": 4}
        assert store.count_sampled() == {"train": 8} and len(store.thoughts()) == 16


def test_an_executor_with_a_cache_holds_few_results_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("md_trl.execution.executor.REMEMBERED", 3)
    programs = [f"answer = {i}" for i in range(10)]
    for cache, held in ((tmp_path / "results.db", 4), (None, 10)):
        with Executor(cache=cache) as executor:
            found = [executor.run_many(programs[i : i + 2])[0].value for i in (*range(9), 0)]
            assert found == [*range(9), 0]
            assert len(executor._results) <= held


def test_rows_to_train_on_are_those_of_the_folder_whatever_datasets_has_cached(tmp_path, monkeypatch):
    """`load_dataset` takes two folders with the same name and card for one, and does not see that a file changed."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    card = "---\nconfigs:\n- config_name: toy\n  data_files:\n  - split: train\n    path: toy/train-*.parquet\n---\n"
    for place, ids in (("a", ["q1"]), ("b", ["q2"]), ("a", ["q3"])):
        folder = tmp_path / place / "mixed"
        (folder / "toy").mkdir(parents=True, exist_ok=True)
        (folder / "README.md").write_text(card)
        file = folder / "toy" / "train-00000-of-00001.parquet"
        Dataset.from_dict({"id": ids}).to_parquet(file)
        assert load_mixed_rows(str(folder), "toy")["id"] == ids


def test_load_dataset_tells_folders_apart_that_have_the_same_name_and_sizes(tmp_path):
    """`datasets` caches the rows of a folder by its name and its card, and not by its path or its files."""
    sizes = []
    for place, question in (("a", "What is 2 plus 3?"), ("b", "What is 3 plus 2?"), ("a", "What is 1 plus 4?")):
        folder = tmp_path / place / "mixed"
        for task in ("svamp", "gsm8k"):
            build(make_store(tmp_path / f"{len(sizes)}-{task}.db", task, [question]), folder, task)
        assert load(folder, "svamp", tmp_path / "cache")["question"] == [question]
        assert load(folder, "default", tmp_path / "cache")["question"] == [question] * 2
        assert all(prompt.startswith(question) for prompt in load(folder, "svamp-paths", tmp_path / "cache")["prompt"])
        sizes.append(DatasetCard.load(folder / "README.md").data.to_dict()["dataset_info"])
    assert sizes[0] == sizes[1] == sizes[2]
