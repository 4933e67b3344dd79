import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import evaluate
import pytest


CARD = Path(__file__).parents[1] / "hub_cards" / "md_vote"
KEYS = [
    "accuracy",
    "cot_accuracy",
    "pot_accuracy",
    "both",
    "cot_only",
    "pot_only",
    "neither",
    "abstained",
    "n_questions",
    "mean_votes",
]


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    # evaluate writes its inputs to a file in this folder, whose name is the same in all processes.
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path)


def load(*config):
    return evaluate.load(str(CARD), *config)


def examples(text):
    """Replace the metric's name on the Hub by its folder in the repository."""
    return text.replace('"md/md_vote"', repr(str(CARD)))


def run_doctest(text):
    test = doctest.DocTestParser().get_doctest(examples(text), {"evaluate": evaluate}, "md_vote", None, 0)
    results = doctest.DocTestRunner().run(test)
    assert results.attempted >= 6 and results.failed == 0


class TestMetric:
    def test_one_question(self):
        scores = load().compute(cot=[["5", "6"]], pot=[["5"]], references=["5"])
        assert list(scores) == KEYS
        assert scores["accuracy"] == scores["both"] == 1 and scores["mean_votes"] == 3

    def test_one_question_of_each_kind(self):
        scores = load().compute(
            cot=[["1"], ["2"], ["0"], ["0"], [""], []],
            pot=[["1"], ["0", "0"], ["3", "3"], ["0"], [], [""]],
            references=["1", "2", "3", "4", "5", "6"],
        )
        assert scores == {
            "accuracy": 2 / 6,  # the programs outvote the correct CoT answer of the second question
            "cot_accuracy": 2 / 6,
            "pot_accuracy": 2 / 6,
            "both": 1 / 6,
            "cot_only": 1 / 6,
            "pot_only": 1 / 6,
            "neither": 3 / 6,
            "abstained": 2 / 6,
            "n_questions": 6,
            "mean_votes": 10 / 6,
        }

    def test_answers_can_be_added_in_batches(self):
        metric = load()
        metric.add(cot=["5"], pot=[], references="5")
        metric.add_batch(cot=[["5"]], pot=[["6", "6"]], references=["6"])
        assert metric.compute() == load().compute(cot=[["5"], ["5"]], pot=[[], ["6", "6"]], references=["5", "6"])

    def test_answers_can_be_added_one_question_at_a_time(self):
        metric = load()
        metric.add(cot=[5, None], pot=[], references=5)
        assert metric.compute()["accuracy"] == 1.0

    def test_none_and_numbers_are_accepted(self):
        given = load().compute(cot=[[None], [5, 6.0]], pot=[[None, "5"], [True, None]], references=[5, "6"])
        assert given == load().compute(cot=[[""], ["5", "6"]], pot=[["", "5"], ["yes", ""]], references=["5", "6"])
        assert load("flat").compute(predictions=[None, 6], references=["5", 6])["accuracy"] == 0.5

    def test_flat(self):
        scores = load("flat").compute(predictions=["$5.00", "", "7"], references=["5", "6", "8"])
        assert scores == {"accuracy": 1 / 3, "abstained": 1 / 3, "n_questions": 3}

    def test_lists_of_different_lengths_are_an_error(self):
        with pytest.raises(ValueError, match=r"cot \(2\) and pot \(1\)"):
            load().compute(cot=[["5"], ["6"]], pot=[["5"]], references=["5", "6"])
        with pytest.raises(ValueError, match=r"cot \(1\) and references \(2\)"):
            load().compute(cot=[["5"]], pot=[["5"]], references=["5", "6"])
        with pytest.raises(ValueError, match=r"predictions \(2\) and references \(1\)"):
            load("flat").compute(predictions=["5", "6"], references=["5"])

    def test_no_question_is_an_error(self):
        with pytest.raises(ValueError, match="no question to score"):
            load().compute(cot=[], pot=[], references=[])

    def test_an_unknown_configuration_is_an_error(self):
        with pytest.raises(ValueError, match="'flta'. Choose one of default, flat"):
            load("flta")

    def test_loads_in_a_new_process(self, tmp_path):
        code = (
            "import evaluate\n"
            f"metric = evaluate.load({str(CARD)!r})\n"
            "print(metric.compute(cot=[['5', '6']], pot=[['5']], references=['5'])['accuracy'])\n"
            f"flat = evaluate.load({str(CARD)!r}, 'flat')\n"
            "print(flat.compute(predictions=['5'], references=['6'])['accuracy'])\n"
        )
        output = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=tmp_path)
        assert output.split() == ["1.0", "0.0"]


class TestCard:
    def test_the_docstrings_examples_run(self):
        run_doctest(load().inputs_description)

    def test_the_readmes_examples_run(self):
        blocks = re.findall(r"```python\n(.*?)```", (CARD / "README.md").read_text(encoding="utf-8"), re.DOTALL)
        run_doctest("\n".join(blocks))

    def test_the_readme_explains_every_output(self):
        readme = (CARD / "README.md").read_text(encoding="utf-8")
        assert [key for key in KEYS if f"`{key}`" not in readme] == []

    def test_the_space_runs_the_app(self):
        front = (CARD / "README.md").read_text(encoding="utf-8").split("---\n")[1]
        assert "sdk: gradio\n" in front and "app_file: app.py\n" in front
        # The app needs gradio, which the library does not depend on, so it is only compiled here.
        compile((CARD / "app.py").read_text(encoding="utf-8"), "app.py", "exec")


class TestBareName:
    CODE = """
import evaluate
for name in ("md_vote", "md/md_vote"):
    print(evaluate.load(name).compute(cot=[["5", "6"]], pot=[["5"]], references=["5"])["accuracy"])
"""

    def run(self, folder, *command, check=True):
        environment = os.environ | {"HF_HOME": str(folder / "home"), "HF_EVALUATE_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=200
        )
        assert not check or done.returncode == 0, done.stderr[-2000:]
        return done

    def test_works_from_any_folder_until_it_is_removed(self, tmp_path):
        self.run(tmp_path, "-m", "md_trl", "register")
        self.run(tmp_path, "-m", "md_trl", "register")  # A second time changes nothing
        assert self.run(tmp_path, "-c", self.CODE).stdout.split() == ["1.0", "1.0"]
        self.run(tmp_path, "-m", "md_trl", "register", "--remove")
        assert "md_vote" in self.run(tmp_path, "-c", self.CODE, check=False).stderr
        # `evaluate` makes a folder for the arguments of every metric that it loads
        left = [path for path in (tmp_path / "home" / "modules").rglob("*") if "md_vote" in path.name]
        assert left == []
