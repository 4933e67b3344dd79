"""`md-trl store`: the actions as a user types them."""

import json

import pytest
from conftest import SHARED, needs_shared

from md_trl.cli import main
from md_trl.cli.store import format_status
from md_trl.records import Question
from md_trl.store import Store


OWN = {"task": "svamp", "question": "How?", "gold": "1", "path": "cot", "text": "a"}


def write(file, *rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_import_status_export(tmp_path, capsys):
    store = ["--store", str(tmp_path / "t.db")]
    own = write(tmp_path / "own.jsonl", OWN)
    main(["store", "import", *store, "--file", own])
    file = tmp_path / "t.db"
    expected = f"1 thoughts added to {file}, 0 were there already; 1 questions added, 0 were there already\n"
    assert capsys.readouterr().out == expected
    main(["store", "import", *store, "--file", own])
    expected = f"0 thoughts added to {file}, 1 were there already; 0 questions added, 1 were there already\n"
    assert capsys.readouterr().out == expected
    main(["store", "status", *store])
    with Store(tmp_path / "t.db") as opened:
        assert capsys.readouterr().out.strip() == format_status(opened)
        assert "svamp" in format_status(opened) and "imported" in format_status(opened)
    main(["store", "export", *store, "--file", str(tmp_path / "out.jsonl")])
    assert "1 thoughts written" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.jsonl").read_text())["text"] == "a"


def test_status_without_thoughts(tmp_path):
    with Store(tmp_path / "t.db") as store:
        store.questions.add([Question("svamp/train/1", "svamp", "train", "How?", "1")])
        assert format_status(store) == "1 questions, no thoughts"


@needs_shared("data/SVAMP.json")
def test_import_for_questions_of_a_source(tmp_path, capsys):
    row = {"task": "svamp", "id": "svamp/test/chal-6", "path": "cot", "text": "a"}
    command = ["store", "import", "--store", str(tmp_path / "t.db"), "--file", write(tmp_path / "own.jsonl", row)]
    command += ["--task", "svamp", "--split", "test"]
    with pytest.raises(SystemExit, match="--source"):
        main(command)
    main([*command, "--source", str(SHARED / "data" / "SVAMP.json")])
    assert "; 300 questions added, 0 were there already" in capsys.readouterr().out
    main([*command, "--source", str(SHARED / "data" / "SVAMP.json")])
    assert "; 0 questions added, 300 were there already" in capsys.readouterr().out
    with Store(tmp_path / "t.db") as store:
        assert [t.question_id for t in store.thoughts()] == ["svamp/test/chal-6"]


def test_an_export_replaces_nothing_but_thoughts(tmp_path):
    main(["store", "import", "--store", str(tmp_path / "t.db"), "--file", write(tmp_path / "own.jsonl", OWN)])
    (tmp_path / "questions.jsonl").write_text('{"question": "How?", "answer": "1"}\n')
    (tmp_path / "notes.txt").write_text("Buy milk.")
    names = ("t.db", "questions.jsonl", "notes.txt")
    before = [(tmp_path / name).read_bytes() for name in names]
    for name in names:
        with pytest.raises(SystemExit, match="exists and is not a thought file, so it is not replaced"):
            main(["store", "export", "--store", str(tmp_path / "t.db"), "--file", str(tmp_path / name)])
    assert [(tmp_path / name).read_bytes() for name in names] == before
    for name in ("out.jsonl", "out.parquet"):
        for _ in range(2):
            main(["store", "export", "--store", str(tmp_path / "t.db"), "--file", str(tmp_path / name)])
    assert json.loads((tmp_path / "out.jsonl").read_text())["text"] == "a"


@pytest.mark.parametrize("arguments", [["--help"], ["status", "--help"], ["import", "--help"], ["export", "--help"]])
def test_help(capsys, arguments):
    with pytest.raises(SystemExit) as exit:
        main(["store", *arguments])
    assert exit.value.code == 0
    out = capsys.readouterr().out
    assert "{status,import,export,merge}" in out and "--file" in out and "--config" in out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("status --store nowhere.db", "nowhere.db does not exist"),
        ("export --store nowhere.db --file x.jsonl", "nowhere.db does not exist"),
        ("export --store nowhere.db", "`--file` is missing: name the thought file to export"),
        ("import --store t.db", "`--file` is missing: name the thought file to import"),
        ("import --store t.db --file nowhere.jsonl", "nowhere.jsonl"),
        ("import --store t.db --file x.jsonl --source SVAMP.json", "`--source` needs `--task`"),
        ("import --store t.db --file x.jsonl --task svamp --source SVAMP.json --limit 0", "`--limit` is 0"),
        ("import --store t.db --file x.jsonl --task stories --limit 9", "`--limit` is a number of questions to add"),
    ],
)
def test_errors(tmp_path, monkeypatch, capsys, command, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        main(["store", *command.split()])
    assert message in f"{exit.value.code} {capsys.readouterr().err}"


@pytest.mark.parametrize("command", ["", "--store t.db", "stats --store t.db", "status"])
def test_a_missing_or_unknown_action_shows_the_usage(capsys, command):
    with pytest.raises(SystemExit) as exit:
        main(["store", *command.split()])
    assert exit.value.code == 2
    assert "usage: md-trl store" in capsys.readouterr().err


def test_arguments_from_a_config_file(tmp_path, capsys):
    config = tmp_path / "store.yaml"
    config.write_text(json.dumps({"store": str(tmp_path / "t.db"), "file": write(tmp_path / "own.jsonl", OWN)}))
    main(["store", "import", "--config", str(config)])
    assert "1 thoughts added" in capsys.readouterr().out
