"""Students in the explorer: results joined with the thoughts of a store, students of one path, weights in the loss."""

import json
import random
import re
from collections import Counter

import pytest

from md_trl.evaluation import EvaluationResult, QuestionResult
from md_trl.explorer import markup, queries
from md_trl.explorer.queries import Filters
from md_trl.explorer.sources import read_sources
from md_trl.records import LABEL, PATHS, Choice, Question, SamplingParams
from md_trl.sampling.engines import SampleResult
from md_trl.store import Store
from md_trl.student_evaluation import StudentEvaluation


PARAMS = SamplingParams(temperature=0.7, seed=3)


def questions(split="test", count=20):
    return [Question(f"own/{split}/{i}", "own", split, f"What is {i} plus {i}?", str(2 * i)) for i in range(count)]


class Student:
    """An engine whose texts depend on the sample and on the style of the student, and are often wrong or unusable."""

    def __init__(self, model, style=0):
        self.model, self._style = model, style

    def student_prompt_format(self, asked):
        return "plain"

    def generate(self, requests):
        for request in requests:
            choices = []
            for sample in range(request.n):
                rng = random.Random(f"{request.seed(sample)} {self._style}")
                answer = 2 * int(request.question_id.rsplit("/")[-1]) + rng.choice([0, 0, 1, 2])
                texts = {"cot": [f"It is so. The answer is {answer}.", "Hm."], "pot": [f"answer = {answer}", "x"]}
                choices.append(Choice(rng.choice(texts.get(request.path, [str(answer)])), "stop"))
            yield SampleResult(request, choices)


def evaluate(folder, name, model, split="test", style=0, store=None, asked=None, **settings):
    """Evaluate a student, write its result, and keep its thoughts in a store."""
    evaluation = StudentEvaluation(asked or questions(split), PARAMS, **{"n": 6} | settings)
    with Store(folder / f"{store or name}.db") as opened:
        result = evaluation.run(name, Student(model, style), opened)
    result.save(folder / "results")
    return result


def explore(folder, stores=(), results=("results",), datasets=()):
    own = folder / "own"
    own.mkdir()
    return read_sources(own, datasets, [folder / name for name in stores], [folder / name for name in results])


def page(catalog, author):
    return queries.page(catalog, Filters(author=author), size=1000)


def view(catalog, row):
    return markup.question_view([row], [catalog.read_thoughts(row["n"])], queries.authors(catalog))


# --- One student, one entry ---------------------------------------------------------------------------------


def test_a_result_and_the_thoughts_of_its_student_are_one_entry(tmp_path):
    result = evaluate(tmp_path, "md", "runs/md@0123abcd", paths=(*PATHS, LABEL))
    evaluate(tmp_path, "cot", "runs/cot@99999999", style=1, paths=("cot",))
    catalog = explore(tmp_path, ["md.db"])
    assert queries.authors(catalog) == {1: "md", 2: "cot"}
    assert queries.totals(catalog) == (20, 20 * 6 * 2 + 20 * 6)
    for row, question in zip(page(catalog, 1), result.questions, strict=True):
        thoughts = catalog.read_thoughts(row["n"])
        for path in PATHS:
            answers = Counter(getattr(question, path))
            assert sum(t["count"] for t in thoughts[f"{path}_unusable"]) == answers.pop(None, 0)
            counted = Counter()
            for thought in thoughts[path]:
                counted[thought["answer"]] += thought["count"]
            assert counted == answers and all(thought["text"] for thought in thoughts[path])
        assert (row["id"], row["n_label"], row["label"]) == (question.id, 1, *question.label)
        assert f"Label: the bare answer is {row['label']}" in view(catalog, row)
    (note,) = queries.notes(catalog)
    assert "only the answers of cot, without texts" in note and "`" not in note


def test_the_folder_of_a_student_may_have_moved(tmp_path):
    result = evaluate(tmp_path, "md", "runs/md@0123abcd")
    (file,) = (tmp_path / "results").iterdir()
    file.write_text(file.read_text().replace("runs/md@", "/elsewhere/md@"))
    assert EvaluationResult.load(file).model != result.model
    assert queries.authors(explore(tmp_path, ["md.db"])) == {1: "md"}


def test_a_model_without_a_digest_is_known_by_its_name_and_answers(tmp_path):
    evaluate(tmp_path, "base", "owner/base")
    assert queries.authors(explore(tmp_path, ["base.db"])) == {1: "base"}


def test_other_weights_other_settings_and_other_answers_are_other_entries(tmp_path):
    evaluate(tmp_path, "md", "runs/md@0123abcd", store="s")
    evaluate(tmp_path, "other weights", "runs/md@ffffffff", store="elsewhere")
    evaluate(tmp_path, "other answers", "runs/md@0123abcd", style=1, store="elsewhere")
    warm = StudentEvaluation(questions(), SamplingParams(temperature=0.1, seed=3), n=6)
    with Store(tmp_path / "elsewhere.db") as store:
        warm.run("other settings", Student("runs/md@0123abcd"), store).save(tmp_path / "results")
    catalog = explore(tmp_path, ["s.db"])
    assert list(queries.authors(catalog).values()) == ["md", "other answers", "other settings", "other weights"]
    disagreeing = [note for note in queries.notes(catalog) if "listed as two" in note]
    assert [note.split(":")[0] for note in disagreeing] == ["other answers"]


def test_prompts_are_told_apart_by_the_answers(tmp_path):
    """Both settings of the model have the same parameters, so only the answers say which one a result is of."""
    evaluate(tmp_path, "as a teacher", "owner/base", style=1, store="s", prompt="few_shot")
    evaluate(tmp_path, "as a student", "owner/base", store="s")
    catalog = explore(tmp_path, ["s.db"])
    assert queries.authors(catalog) == {1: "as a teacher", 2: "as a student"}
    assert queries.notes(catalog) == []


def test_questions_that_a_store_lacks_and_thoughts_that_a_result_did_not_take(tmp_path):
    evaluate(tmp_path, "md", "runs/md@0123abcd", store="s", asked=questions(count=12))
    evaluate(tmp_path, "md", "runs/md@0123abcd", store="elsewhere")
    evaluate(tmp_path, "md", "runs/md@0123abcd", store="s", asked=questions(count=4), n=9)
    for file in (tmp_path / "results").iterdir():
        if len(EvaluationResult.load(file).questions) < 20:
            file.unlink()
    catalog = explore(tmp_path, ["s.db"])
    assert queries.authors(catalog) == {1: "md"}
    rows = page(catalog, 1)
    assert [row["id"] for row in rows] == [question.id for question in questions()]
    assert [row["n_cot"] for row in rows] == [9] * 4 + [6] * 16
    assert "<pre>" in view(catalog, rows[11]) and "<pre>" not in view(catalog, rows[12])
    (note,) = queries.notes(catalog)
    assert "more thoughts on 4 of 12 questions of own/test" in note


def test_a_program_that_timed_out_once_does_not_split_a_student(tmp_path):
    result = evaluate(tmp_path, "md", "runs/md@0123abcd")
    (file,) = (tmp_path / "results").iterdir()
    values = json.loads(file.read_text())
    changed = values["questions"][5]
    index = next(i for i, answer in enumerate(changed["pot"]) if answer is not None)
    changed["pot"][index] = None
    file.write_text(json.dumps(values))
    catalog = explore(tmp_path, ["md.db"])
    assert queries.authors(catalog) == {1: "md"} and len(page(catalog, 1)) == len(result.questions)
    (note,) = queries.notes(catalog)
    assert "other answers to 1 of 20 questions of own/test" in note


def test_results_of_several_names_leave_the_name_of_the_store(tmp_path):
    evaluate(tmp_path, "md", "runs/md@0123abcd", store="s")
    evaluate(tmp_path, "first", "runs/md@0123abcd", store="s", asked=questions(count=4))
    assert queries.authors(explore(tmp_path, ["s.db"])) == {1: "md@0123abcd"}


# --- What was not sampled -----------------------------------------------------------------------------------


@pytest.mark.parametrize("with_store", [False, True])
@pytest.mark.parametrize(("path", "other"), [("cot", "PoT"), ("pot", "CoT")])
def test_a_path_that_was_not_sampled_has_not_failed(tmp_path, path, other, with_store):
    evaluate(tmp_path, "one", "runs/one@0123abcd", paths=(path,))
    catalog = explore(tmp_path, ["one.db"] * with_store)
    assert queries.authors(catalog) == {1: "one"}
    rows = page(catalog, 1)
    assert {row["type"] for row in rows} == {row["lambda"] for row in rows} == {None}
    assert not any(queries.count_types(catalog, Filters()).values())
    assert queries.correct_grid(catalog, Filters()) == (1, [[0]])
    for html in (markup.listing(rows), *(view(catalog, row) for row in rows)):
        assert f"{other} not sampled" in html and "mx-type4" not in html
        assert "solve" not in html and "weights in the loss" not in html and "0/0" not in html
    right = [row for row in rows if row["correct"]]
    assert 0 < len(right) < len(rows)
    assert queries.count(catalog, Filters(outcome="right")) == len(right)


def test_a_bare_answer_is_shown_and_compared(tmp_path):
    answers = ["0", "3", None]
    asked = questions(count=3)
    label = [QuestionResult(q.id, q.answer, label=[a]) for q, a in zip(asked, answers, strict=True)]
    EvaluationResult("label", "runs/label@00000000", "own", "test", {}, label).save(tmp_path / "results")
    evaluate(tmp_path, "md", "runs/md@0123abcd", asked=asked)
    catalog = explore(tmp_path, ["md.db"])
    author = {name: number for number, name in queries.authors(catalog).items()}
    rows = page(catalog, author["label"])
    assert [(row["type"], row["vote"], row["correct"]) for row in rows] == [
        (None, "0", 1),
        (None, "3", 0),
        (None, None, 0),
    ]
    views = [view(catalog, row) for row in rows]
    assert "the bare answer is 0, the gold answer." in views[0] and "✓ 0" in views[0]
    assert "the bare answer is 3, not the gold answer 2." in views[1] and "✗ 3" in views[1]
    assert "cannot be read" in views[2]
    for html in (*views, markup.listing(rows)):
        assert "not sampled" in html and not re.search("mx-type[1-4]|neither path", html)
        assert "no vote" not in html and "Chain of thought" not in html
    compared = Filters(author=author["label"], other=author["md"], relation="this")
    md = page(catalog, author["md"])
    assert [row["id"] for row in queries.page(catalog, compared)] == [
        row["id"] for row, of_md in zip(rows, md, strict=True) if row["correct"] and not of_md["correct"]
    ]


# --- Weights in the loss, order, comparison -----------------------------------------------------------------


def thoughts_of(split):
    for path, right, wrong in (("cot", "The answer is 5.", "The answer is 6."), ("pot", "answer = 5", "answer = 6")):
        for text in (wrong, right, right):
            known = {"task": "own", "id": f"own/{split}/sum", "model": "teacher"}
            yield known | {"path": path, "text": text}


def write_store(folder, split):
    lines = folder / "thoughts.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in thoughts_of(split)))
    with Store(folder / "s.db") as store:
        store.questions.add([Question(f"own/{split}/sum", "own", split, "What is 2 plus 3?", "5")])
        store.import_thoughts(lines, "own")


@pytest.mark.parametrize("split", ["train", "test"])
def test_only_thoughts_for_training_have_weights_in_the_loss(tmp_path, split):
    write_store(tmp_path, split)
    catalog = explore(tmp_path, ["s.db"], results=())
    (row,) = page(catalog, 1)
    assert row["split"] == split and row["type"] == 3
    assert ("weights in the loss" in view(catalog, row)) == (split == "train")


def test_a_student_that_was_evaluated_on_training_questions_has_no_weights(tmp_path):
    evaluate(tmp_path, "md", "runs/md@0123abcd", split="train")
    both = explore(tmp_path, ["md.db"])
    assert "weights in the loss" not in "".join(view(both, row) for row in page(both, 1))


def test_the_most_frequent_thought_comes_first(tmp_path):
    write_store(tmp_path, "train")
    catalog = explore(tmp_path, ["s.db"], results=())
    (row,) = page(catalog, 1)
    html = view(catalog, row)
    assert html.index("The answer is 5.") < html.index("The answer is 6.")
    # The export and the votes keep the order of the samples
    assert [thought["answer"] for thought in catalog.read_thoughts(row["n"])["cot"]] == ["6", "5"]


def test_a_comparison_leaves_out_the_model_itself(tmp_path):
    evaluate(tmp_path, "md", "runs/md@0123abcd")
    evaluate(tmp_path, "trained", "runs/md@0123abcd", split="train")
    write_store(tmp_path, "test")
    catalog = explore(tmp_path, ["md.db", "trained.db", "s.db"], results=())
    md, trained, teacher = queries.authors(catalog)
    assert queries.count(catalog, Filters(author=md, other=md)) == 0
    assert queries.count(catalog, Filters(other=md)) == 0
    for one, other in ((md, trained), (md, teacher), (None, md)):
        assert not queries.have_common_questions(catalog, one, other)
    assert queries.places_of(catalog, md) == ["own/test"] and queries.places_of(catalog, trained) == ["own/train"]
