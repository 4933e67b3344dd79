"""What `md-trl train` learns from: several tasks, filtered rows, and what is said where there are none."""

import json
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset
from students import byte_tokenizer, tiny_llama
from test_dataset import HOPELESS, build, make_store

from md_trl.cli import main
from md_trl.cli.train import RecipeArguments, _load_rows
from md_trl.errors import InputError
from md_trl.trainer import MDConfig
from md_trl.training_rows import first_rows, has_plain_rows, load_mixed_rows, load_question_rows


TEXTS = {"svamp": ("What is 2 plus 3?",), "asdiv": ("What is 1 plus 4?", "What is 4 plus 1?")}


@pytest.fixture
def mixed(tmp_path, monkeypatch):
    """A folder with rows of two tasks, as a relative path: the current folder is another one in every test."""
    monkeypatch.chdir(tmp_path)
    for task, questions in TEXTS.items():
        build(make_store(tmp_path / f"{task}.db", task, questions=questions), tmp_path / "mixed", task)
    return "mixed"


def both(mixed):
    return concatenate_datasets([load_dataset(mixed, task, split="train") for task in TEXTS])


def config(**options):
    return MDConfig(output_dir="out", use_cpu=True, report_to="none", **options)


def test_several_tasks_are_the_rows_of_each_in_turn(mixed):
    rows = load_mixed_rows(mixed, ["svamp", "asdiv"])
    assert rows.to_list() == both(mixed).to_list()
    assert load_mixed_rows(mixed, ["asdiv", "svamp"])["task"] == ["asdiv", "asdiv", "svamp"]
    assert load_mixed_rows(mixed, "asdiv").to_list() == load_mixed_rows(mixed, ["asdiv"]).to_list()


@pytest.mark.parametrize("form", ["disk", "dict", "file", "folder", "split_folder"])
def test_filtered_rows_are_loaded_in_every_form_that_datasets_writes(mixed, form):
    kept = both(mixed).filter(lambda row: row["question"] != "What is 4 plus 1?")
    if form == "disk":
        kept.save_to_disk("kept")
    elif form == "dict":
        DatasetDict({"train": kept, "test": kept.select([0])}).save_to_disk("kept")
    elif form == "file":
        kept.to_parquet("kept.parquet")
    else:
        Path("kept").mkdir()
        name = "train-00000-of-00001" if form == "split_folder" else "rows"
        kept.to_parquet(f"kept/{name}.parquet")
        kept.select([0]).to_parquet("kept/test-00000-of-00001.parquet")
    place = "kept.parquet" if form == "file" else "./kept"
    assert has_plain_rows(place) and not has_plain_rows(mixed)
    assert load_mixed_rows(place).to_list() == kept.to_list()
    assert load_mixed_rows(place, ["svamp", "asdiv"]).to_list() == kept.to_list()
    assert load_mixed_rows(place, "asdiv")["question"] == ["What is 1 plus 4?"]
    with pytest.raises(InputError, match="no rows of the task 'gsm8k'.*'svamp', 'asdiv'"):
        load_mixed_rows(place, ["svamp", "gsm8k"])


def test_a_store_does_not_build_over_filtered_rows(mixed):
    both(mixed).select([1]).save_to_disk("kept")
    before = sorted(Path("kept").rglob("*"))
    args = RecipeArguments(dataset="kept", task="asdiv", store="asdiv.db")
    assert _load_rows(args, config())["question"] == ["What is 1 plus 4?"]
    assert sorted(Path("kept").rglob("*")) == before


def test_a_recipe_builds_every_task_from_the_store(mixed):
    make_store(Path("svamp.db"), "asdiv", questions=TEXTS["asdiv"])
    args = RecipeArguments(dataset="new", task=["svamp", "asdiv"], store="svamp.db")
    assert _load_rows(args, config())["task"] == ["svamp", "asdiv", "asdiv"]
    args = RecipeArguments(dataset="new", task=["svamp", "asdiv"], store="svamp.db", train_limit=1)
    assert _load_rows(args, config())["task"] == ["svamp", "asdiv"]
    rows = _load_rows(args, config(objective="label_all"))
    assert rows["task"] == ["svamp", "asdiv"] and rows.column_names == ["id", "task", "question", "answer"]


def test_the_first_rows_are_those_of_each_task():
    rows = Dataset.from_dict({"task": list("aabab"), "n": range(5)})
    assert first_rows(rows, 2)["n"] == [0, 1, 2, 4]
    assert first_rows(rows.remove_columns("task"), 2)["n"] == [0, 1]


def test_a_missing_folder_is_called_missing_and_the_hub_is_not_asked(mixed, monkeypatch):
    def asked(*args, **kwargs):
        raise AssertionError("The Hub was asked.")

    monkeypatch.setattr(datasets, "load_dataset", asked)
    for absent in (
        "./x",
        "../x",
        "outputs/x/mixed",
        "absent",
        "absent/",
        "a/b.parquet",
        str(Path("x").resolve()),
        "~/x",
    ):
        with pytest.raises(FileNotFoundError, match=f"There is no {absent}. Name a folder"):
            load_mixed_rows(absent, "svamp")


def test_a_name_that_may_be_on_the_hub_is_looked_up_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="There is no folder md/mixed-thoughts, (nor|and)"):  # the tests are offline
        load_mixed_rows("md/mixed-thoughts", "svamp")


def test_what_a_folder_holds_is_named(mixed):
    with pytest.raises(InputError, match="of task 'gsm8k' from mixed; it has 'asdiv', 'svamp'"):
        load_mixed_rows(mixed, ["svamp", "gsm8k"])
    with pytest.raises(InputError, match="`task` is missing.*mixed.*it has 'asdiv', 'svamp'"):
        load_mixed_rows(mixed)
    rows = both(mixed)
    DatasetDict({"dev": rows}).save_to_disk("dev")
    with pytest.raises(InputError, match="dev has no split 'train', only 'dev'"):
        load_mixed_rows("dev")
    rows.select([]).save_to_disk("nothing")
    with pytest.raises(InputError, match="nothing holds no rows"):
        load_mixed_rows("nothing")
    Path("tests").mkdir()
    rows.to_parquet("tests/test-00000-of-00001.parquet")
    with pytest.raises(InputError, match="no Parquet files of the split 'train'"):
        load_mixed_rows("tests")
    Path("broken.parquet").write_text("PAR1")
    with pytest.raises(InputError, match="Cannot read broken.parquet as Parquet"):
        load_mixed_rows("broken.parquet")


def test_a_parquet_file_that_is_missing_is_not_built_from_the_store(mixed):
    args = RecipeArguments(dataset="kept.parquet", task="svamp", store="svamp.db")
    with pytest.raises(FileNotFoundError, match="There is no kept.parquet"):
        _load_rows(args, config())
    assert not Path("kept.parquet").exists()
    Path("empty").mkdir()
    with pytest.raises(InputError, match="empty holds no mixed rows"):
        load_mixed_rows("empty", "svamp")


def test_questions_of_several_tasks_are_those_of_each(mixed):
    make_store(Path("svamp.db"), "asdiv", questions=TEXTS["asdiv"], extra=[HOPELESS])
    rows = load_question_rows(["asdiv", "svamp"], store_file="svamp.db")
    assert rows["question"] == [*TEXTS["asdiv"], *TEXTS["svamp"], HOPELESS["question"]]
    with pytest.raises(InputError, match="`task` is missing"):
        load_question_rows([])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": ["svamp", "svamp"]}, "Name each task once"),
        ({"task": ["svamp", "gsm8k"], "source": "SVAMP.json"}, "`source` is 'SVAMP.json', but there are 2 tasks"),
    ],
)
def test_tasks_that_contradict_each_other_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        RecipeArguments(dataset="mixed", **fields)


def test_a_student_learns_two_tasks_and_then_their_filtered_rows(mixed, capsys):
    tiny_llama().save_pretrained("untrained")
    byte_tokenizer().save_pretrained("untrained")
    recipe = {"dataset": mixed, "task": ["svamp", "asdiv"], "model_name_or_path": "untrained", "output_dir": "both"}
    recipe |= {"max_steps": 1, "use_cpu": True, "report_to": "none", "logging_steps": 1}
    Path("recipe.yaml").write_text(json.dumps(recipe | {"per_device_train_batch_size": 3}))  # JSON is YAML
    main(["train", "--config", "recipe.yaml"])
    [logs, _] = json.loads(Path("both/trainer_state.json").read_text())["log_history"]
    assert logs["num_questions"] == 3
    both(mixed).filter(lambda row: row["task"] == "asdiv").save_to_disk("kept")
    # On the command line, and without a configuration to name
    main(["train", "--config", "recipe.yaml", "--dataset", "kept", "--task", "asdiv", "--output_dir", "one"])
    [logs, _] = json.loads(Path("one/trainer_state.json").read_text())["log_history"]
    assert logs["num_questions"] == 2
    with pytest.raises(SystemExit, match="md-trl train: There is no ./absent"):
        main(["train", "--config", "recipe.yaml", "--dataset", "./absent", "--output_dir", "other"])
