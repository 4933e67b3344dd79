import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from md_trl.cli import main
from md_trl.errors import InputError
from md_trl.evaluation import EvaluationResult, QuestionResult
from md_trl.replay import calibration
from md_trl.stopping import Seen
from md_trl.vote_settings import VoteSettings, cross_validate, learn_votes
from md_trl.voting import Calibrator, VoteWeights, fit_calibrator, lead, vote


def student(size, n, cot_chance, pot_chance, seed=0, wrong=30, settings=None):
    """A student whose CoTs and PoTs are right with given chances, on half of the questions hardly ever."""
    generator = random.Random(seed)
    questions = []
    for i in range(size):
        ease = generator.choice((1.0, 0.3))
        paths = []
        for chance in (cot_chance, pot_chance):
            right = [generator.random() < chance * ease for _ in range(n)]
            answers = ["1" if r else str(generator.randrange(2, 2 + wrong)) for r in right]
            paths.append((answers, [-0.2 - 0.5 * generator.random() - 0.3 * (not r) for r in right]))
        (cot, cot_logprob), (pot, pot_logprob) = paths
        questions.append(QuestionResult(f"q{i}", "1", cot, pot, cot_logprob=cot_logprob, pot_logprob=pot_logprob))
    return EvaluationResult("md", "student", "svamp", "validation", settings or {}, questions)


counts = st.lists(st.floats(0.1, 3), min_size=1, max_size=30)


@given(st.data())
def test_the_fit_is_where_the_likelihood_has_no_slope(data):
    weights = data.draw(counts)
    leads = data.draw(st.lists(st.floats(-1, 3), min_size=len(weights), max_size=len(weights)))
    correct = data.draw(st.lists(st.booleans(), min_size=len(weights), max_size=len(weights)))
    fit = fit_calibrator(leads, correct, weights)
    right = sum(w for w, c in zip(weights, correct, strict=True) if c)
    wrong = sum(w for w, c in zip(weights, correct, strict=True) if not c)
    residuals = [
        w
        * (((right + 1) / (right + 2) if c else 1 / (wrong + 2)) - 1 / (1 + math.exp(-fit.slope * x - fit.intercept)))
        for w, c, x in zip(weights, correct, leads, strict=True)
    ]
    assert fit.slope >= 0
    assert sum(residuals) == pytest.approx(0, abs=1e-3)
    along = sum(r * x for r, x in zip(residuals, leads, strict=True))
    # A slope of 0 may be the limit: then a smaller one would fit better
    assert along == pytest.approx(0, abs=1e-3) or (fit.slope == 0 and along < 0)


def test_the_fit_recovers_chances():
    generator = random.Random(1)
    leads = [generator.uniform(0, 3) for _ in range(20_000)]
    correct = [generator.random() < 1 / (1 + math.exp(1 - 2 * x)) for x in leads]
    fit = fit_calibrator(leads, correct)
    assert fit.slope == pytest.approx(2, abs=0.1) and fit.intercept == pytest.approx(-1, abs=0.1)


def test_the_lead_is_over_the_next_answer():
    assert lead({"5": 3, "6": 1, "7": 1}) == pytest.approx(math.log(4 / 2))
    assert lead({"5": 3.0}) == pytest.approx(math.log(4)) and lead({}) == 0
    assert Calibrator(1.0, 0.0).probability({"5": 3.0}) == pytest.approx(0.8)
    assert Calibrator(1.0, 0.0).probability({}) == 0


def test_weights_of_votes():
    cot, pot = ["5", None], ["6"]
    assert VoteWeights().weigh(cot, pot, [], []) == (None, None)
    assert VoteWeights("likelihood").weigh(cot, pot, [-1.0, None], [-0.5]) == ([math.exp(-1), 1.0], [math.exp(-0.5)])
    assert VoteWeights("likelihood").weigh(cot, pot, [None, None], [-0.5]) == (None, None)
    assert VoteWeights(cot=1, pot=4).weigh(cot, pot, [], []) == ([0.25, 0.25], [1.0])
    assert VoteWeights("likelihood", pot=4).weigh(cot, pot, [], []) == ([0.25, 0.25], [1.0])
    weighed = VoteWeights("likelihood", cot=2).weigh(cot, pot, [-1.0, None], [-0.5])
    assert weighed == ([math.exp(-1), 1.0], [math.exp(-0.5) / 2])
    for weights in (VoteWeights(), VoteWeights("likelihood"), VoteWeights("likelihood", pot=2), VoteWeights(cot=3)):
        assert VoteWeights.from_settings(json.loads(json.dumps(weights.to_settings()))) == weights


@pytest.mark.parametrize("values", [{"kind": "likely"}, {"cot": -1}, {"pot": math.nan}, {"cot": 0, "pot": 0}])
def test_wrong_weights_are_refused(values):
    with pytest.raises(InputError, match="likely|path_weights|both paths"):
        VoteWeights(**values)


def test_votes_learned_on_one_half_serve_on_the_other():
    held_out, test = (student(300, 6, 0.2, 0.9, seed, wrong=2) for seed in (1, 2))
    settings = learn_votes(held_out)
    assert settings.weights.pot > settings.weights.cot == 1
    assert settings.learned_on["n_questions"] == 300 and settings.learned_on["split"] == "validation"

    seen = [
        Seen(q.cot, q.pot, *settings.weights.weigh(q.cot, q.pot, q.cot_logprob, q.pot_logprob)) for q in test.questions
    ]
    right = [
        q.is_correct(vote(s.cot, s.pot, s.cot_weights, s.pot_weights))
        for q, s in zip(test.questions, seen, strict=True)
    ]
    confidences = [settings.tally(s).confidence for s in seen]
    assert sum(confidences) / 300 == pytest.approx(sum(right) / 300, abs=0.1)
    learned, raw = cross_validate(test), calibration(test, "likelihood")
    assert learned.accuracy > raw.accuracy and learned.error < raw.error


def test_where_wrong_answers_scatter_the_share_of_the_votes_is_too_low_a_confidence():
    result = student(300, 6, 0.35, 0.8)
    assert cross_validate(result).error < 0.5 * calibration(result, "likelihood").error


def test_cross_validation_scores_each_question_with_what_others_taught():
    result = student(20, 3, 0.5, 0.5)
    shuffled, scored = random.Random(0).sample(result.questions, 20), []
    for fold in range(5):
        others = [q for i, q in enumerate(shuffled) if i % 5 != fold]
        settings = learn_votes(EvaluationResult("md", "student", "svamp", "validation", {}, others), "none")
        for question in shuffled[fold::5]:
            weighed = settings.weights.weigh(question.cot, question.pot, [], [])
            scored.append(question.is_correct(vote(question.cot, question.pot, *weighed)))
    found = cross_validate(result, "none")
    assert found.accuracy == sum(scored) / 20 and sum(b.count for b in found.bins) == 20
    with pytest.raises(InputError, match="`folds` is 21 for 20 questions"):
        cross_validate(result, folds=21)


def test_a_result_votes_with_the_weights_of_its_settings():
    question = QuestionResult("q", "1", ["2", "2"], ["1"])
    for settings, right in (({}, False), ({"path_weights": {"cot": 1.0, "pot": 3.0}}, True)):
        result = EvaluationResult("md", "student", "svamp", "test", settings, [question])
        assert result._joint_vote(question) == ("1" if right else "2")


def test_a_file_of_the_command_line(tmp_path, capsys):
    file = student(60, 4, 0.3, 0.8).save(tmp_path / "results")
    output = tmp_path / "votes.json"
    main(["calibrate", "--result", str(file), "--output", str(output)])
    settings = VoteSettings.of(str(output))
    assert settings == learn_votes(EvaluationResult.load(file)) and VoteSettings.of(settings) is settings
    printed = capsys.readouterr().out
    assert "60 questions of svamp/validation" in printed and "Cross-validated" in printed
    main(["calibrate", "--result", str(file), "--output", str(output)])
    with pytest.raises(SystemExit, match="holds something else"):
        main(["calibrate", "--result", str(file), "--output", str(output), "--weights", "none"])
    output.write_text("{}")
    with pytest.raises(InputError, match="is not a file of `md-trl calibrate`"):
        VoteSettings.of(output)
    with pytest.raises(InputError, match="neither 'none' nor 'likelihood' nor a file"):
        VoteSettings.of("likelyhood")


def test_what_cannot_teach_is_refused():
    stopped = student(5, 2, 0.5, 0.5, settings={"rule": "agreement"})
    with pytest.raises(InputError, match="stopped early"):
        learn_votes(stopped)
    silent = student(5, 2, 0.5, 0.5)
    for question in silent.questions:
        question.cot_logprob = [None, None]
    with pytest.raises(InputError, match="have no log-probabilities"):
        learn_votes(silent)
    for question in silent.questions:
        question.cot, question.pot = [None, None], [None, None]
    with pytest.raises(InputError, match="No thought of 'md'"):
        learn_votes(silent, "none")
