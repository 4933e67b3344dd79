import doctest
import os
import re
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import evaluate
import numpy
import pyarrow
import pytest
from servers.hub import running_hub

from md_trl.errors import InputError
from md_trl.execution import Executor
from md_trl.judging import read_answers
from md_trl.records import Thought
from md_trl.voting import score


CARD = Path(__file__).parents[1] / "hub_cards" / "md_vote"
EXACT_MATCH = Path(__file__).parent / "stand_ins" / "exact_match"
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
    assert results.attempted >= 8 and results.failed == 0


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

    def test_numpy_arrays_and_numbers_of_any_kind(self):
        given = load().compute(
            cot=[numpy.array([5, 6]), [Fraction(1, 2), Decimal("0.5")], [numpy.bool_(True)], [[12, 8]]],
            pot=numpy.array([[5.0, 6.0], [0.5, numpy.nan], [1.0, 0.0], [2.5, 2.5]]),
            references=numpy.array(["5", "1/2", "yes", "2.5"]),
        )
        expected = load().compute(
            cot=[["5", "6"], ["1/2", "0.5"], ["yes"], ["12;8"]],
            pot=[["5", "6"], ["0.5", ""], ["1", "0"], ["2.5", "2.5"]],
            references=["5", "1/2", "yes", "2.5"],
        )
        assert given == expected and given["accuracy"] == 1
        cot = pyarrow.array([["5", None], ["6"]])
        pot = pyarrow.chunked_array([[["5", None]], [["6"]]])
        assert load().compute(cot=cot, pot=pot, references=pyarrow.array([5, 7]))["accuracy"] == 0.5
        assert load("flat").compute(predictions=numpy.arange(3), references=[0.0, 1.0, 3.0])["accuracy"] == 2 / 3

    @pytest.mark.parametrize(
        ("given", "error"),
        [
            ({"cot": [["5"], "12"]}, r"cot\[1\] is '12', but must be a list of answers"),
            ({"pot": [["5"], None]}, r"pot\[1\] is None, but must be a list of answers"),
            ({"cot": "5"}, "cot is '5', but must be a list of answers"),
            ({"cot": [["5"], [{"answer": 5}]]}, r"cot\[1\]\[0\] is \{'answer': 5\} of the type dict"),
            ({"references": ["5", object]}, r"references\[1\] is .* of the type type"),
        ],
    )
    def test_what_is_no_answer_is_an_error_that_names_its_place(self, given, error):
        with pytest.raises(InputError, match=error):
            load().compute(**{"cot": [["5"], ["6"]], "pot": [[], []], "references": ["5", "6"]} | given)
        question = {"cot": ["5"], "pot": [], "references": "5"}
        with pytest.raises(InputError, match="pot is '12'"):
            load().add(**question | {"pot": "12"})

    def test_a_missing_input_is_an_error(self):
        with pytest.raises(ValueError, match=r"inputs are missing: \['pot'\]"):
            load().compute(cot=[["5"]], references=["5"])

    def test_weights_and_tie_break(self):
        question = {"cot": [["5"]], "pot": [["6"]], "references": ["6"]}
        assert load().compute(**question)["accuracy"] == 0
        assert load().compute(**question, tie_break="pot")["accuracy"] == 1
        assert load().compute(**question, cot_weights=[[0.3]], pot_weights=[[0.4]])["accuracy"] == 1
        with pytest.raises(InputError, match=r"cot_weights\[0\] has 2 weights for 1 answers"):
            load().compute(**question, cot_weights=[[1, 1]])

    def test_weights_fit_questions_that_were_added_before(self):
        metric = load()
        metric.add(cot=["5"], pot=["6"], references="6")
        metric.add_batch(cot=[["5"]], pot=[["6"]], references=["5"])
        assert metric.compute(cot_weights=[[1], [2]], pot_weights=[[2], [1]])["accuracy"] == 1

    def test_intervals_are_those_of_the_library(self):
        given = {"cot": [["5"]] * 40, "pot": [["6"]] * 40, "references": ["5", "6"] * 20}
        options = {"bootstrap": 500, "seed": 7, "confidence_level": 0.9}
        scores = load().compute(**given, **options)
        assert scores == score(**given, **options)
        assert list(scores)[: len(KEYS)] == KEYS
        assert 0.3 < scores["accuracy_low"] < 0.5 < scores["accuracy_high"] < 0.7

    def test_an_error_leaves_the_metric_usable(self):
        metric, question = load(), {"cot": [["5"]], "pot": [[]], "references": ["5"]}
        with pytest.raises(InputError, match="tie_break"):
            metric.compute(**question, tie_break="pto")
        assert metric.compute(**question)["n_questions"] == 1

    def test_combines_with_other_metrics(self):
        combined = evaluate.combine([load("flat"), evaluate.load(str(EXACT_MATCH))])
        scores = combined.compute(predictions=["$5.00", "7"], references=["5", "7"])
        assert scores == {"accuracy": 1.0, "abstained": 0.0, "n_questions": 2, "exact_match": 0.5}
        combined.add_batch(predictions=["$5.00"], references=["5"])
        combined.add(prediction="", reference="7")
        assert combined.compute() == {"accuracy": 0.5, "abstained": 0.5, "n_questions": 2, "exact_match": 0.0}

    def test_an_unknown_configuration_is_an_error(self):
        with pytest.raises(ValueError, match="'flta'. Choose one of default, flat"):
            load("flta")


class TestRawGenerations:
    COT = [
        ["She pays 3 * 4 dollars. The answer is $12.", "It is hard to say.", "#### 13"],
        ["So she has 7 apples left. Answer: 5", None],
    ]
    POT = [["def solution():\n    return 3 * 4", "print(12.0)", "1 / 0"], ["print(open('/etc/passwd').read())", ""]]

    def test_answers_are_read_as_the_library_reads_them(self):
        with Executor() as executor:
            read = {
                path: [
                    [
                        thought.answer
                        for thought in read_answers([Thought("q", path, 0, text or "") for text in texts], executor)
                    ]
                    for texts in column
                ]
                for path, column in (("cot", self.COT), ("pot", self.POT))
            }
        assert read["cot"][0] == ["12", None, "13"] and read["pot"] == [["12", "12", None], [None, None]]
        given = load().compute(cot=self.COT, pot=self.POT, references=["12", "5"], extract=True, run_programs=True)
        assert given == load().compute(**read, references=["12", "5"])
        assert given["pot_accuracy"] == 0.5

    def test_programs_run_only_if_the_caller_says_so(self):
        with pytest.raises(InputError, match="Pass run_programs=True to run them in a sandbox"):
            load().compute(cot=self.COT, pot=self.POT, references=["12", "5"], extract=True)
        with pytest.raises(InputError, match="Pass extract=True with it"):
            load().compute(cot=self.COT, pot=self.POT, references=["12", "5"], run_programs=True)
        scores = load().compute(cot=self.COT, pot=[[], []], references=["12", "5"], extract=True)
        assert scores["cot_accuracy"] == 1 and scores["mean_votes"] == 3 / 2

    def test_flat_predictions_are_read_as_chains_of_thought(self):
        scores = load("flat").compute(
            predictions=["The answer is 5.", "Who knows", None], references=["5", "6", "7"], extract=True
        )
        assert scores == {"accuracy": 1 / 3, "abstained": 2 / 3, "n_questions": 3}


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
        # `test_space.py` runs the app itself
        needed = (CARD / "requirements.txt").read_text().split("\n")
        assert [line.split(">")[0] for line in needed if line] == ["evaluate", "gradio", "md_trl"]


LOAD = """
import evaluate
for name in NAMES:
    print(evaluate.load(name).compute(cot=[["5", "6"]], pot=[["5"]], references=["5"])["accuracy"])
"""

FLAT = """
print(evaluate.load("md/md_vote", "flat").compute(predictions=["5", "7"], references=[5, 8])["accuracy"])
"""
REGISTER = """
from md_trl import register_metric
register_metric()
NAMES = ["md_vote", "md/md_vote"]
"""


def run(folder, *command, **environment):
    """Run Python in a folder, with caches in it. Of all settings of Hugging Face, only the given ones are set."""
    # As on a machine without transformers, which evaluate imports if it can, for several seconds
    (folder / "transformers.py").write_text("raise ImportError")
    others = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=others | {"HOME": str(folder)} | environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


class TestBareName:
    def test_works_from_any_folder_until_it_is_removed(self, tmp_path):
        offline = {"HF_EVALUATE_OFFLINE": "1"}
        assert run(tmp_path, "-m", "md_trl", "register", **offline).count("Wrote") == 2
        # A second time changes nothing
        assert run(tmp_path, "-c", REGISTER + LOAD, **offline).split() == ["1.0", "1.0"]
        assert run(tmp_path, "-m", "md_trl", "register", "--remove", **offline).count("Removed") == 2
        # `evaluate` makes a folder for the arguments of every metric that it loads
        left = [path for path in (tmp_path / ".cache/huggingface/modules").rglob("*") if "md_vote" in path.name]
        assert left == []


class TestHub:
    def test_loads_from_a_space_and_then_offline(self, tmp_path):
        upload = f"""
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("md/md_vote", repo_type="space", space_sdk="gradio")
api.upload_folder(repo_id="md/md_vote", repo_type="space", folder_path={str(CARD)!r})
"""
        with running_hub(tmp_path / "hub") as (url, hub):
            run(tmp_path, "-c", upload, HF_ENDPOINT=url, HF_TOKEN="hf_write", HF_HUB_DISABLE_XET="1")
            assert hub.repos["space", "md/md_vote"].sdk == "gradio"
            assert run(tmp_path, "-c", "NAMES = ['md/md_vote']" + LOAD + FLAT, HF_ENDPOINT=url).split() == [
                "1.0",
                "0.5",
            ]
            offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_EVALUATE_OFFLINE": "1"}
            assert run(tmp_path, "-c", "NAMES = ['md/md_vote']" + LOAD, **offline).split() == ["1.0"]
            # The bare name is not on this Hub, but in the cache once it is registered
            assert run(tmp_path, "-c", REGISTER + LOAD, HF_ENDPOINT=url).split() == ["1.0", "1.0"]
