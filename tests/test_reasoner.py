"""`MixedReasoner` answers by the vote over what its stopping rule asks for, whatever is asked beside."""

import hashlib
import json
import logging
import math

import pytest
from datasets import Dataset
from servers.openai_server import OpenAIServer
from students import byte_tokenizer, tiny_llama

from md_trl import MDConfig, MDTrainer, MixedReasoner
from md_trl.errors import InputError
from md_trl.records import Choice
from md_trl.sampling.engines import SampleResult
from md_trl.stopping import Agreement
from md_trl.store import Store
from md_trl.vote_settings import VoteSettings
from md_trl.voting import Calibrator, VoteWeights, likelihood_weights, tally, vote


QUESTIONS = [f"What is {i} plus {i}?" for i in range(12)]


def drawn(question, path, index):
    """The answer and log-probability of one sample, which depend on nothing else. One in seven is unusable."""
    digest = hashlib.sha256(f"{question} {path} {index}".encode()).digest()
    return (None if digest[0] % 7 == 0 else str(digest[1] % 3)), -digest[2] / 255


class DrawnEngine:
    """An engine whose samples are those of `drawn`."""

    model = "drawn"

    def __init__(self, has_logprobs=True, fails_after=math.inf):
        self.has_logprobs, self.fails_after = has_logprobs, fails_after
        self.samples, self.rounds = [], 0

    def student_prompt_format(self, prompt_format="auto"):
        return "plain"

    def generate(self, requests):
        self.rounds += 1
        for request in requests:
            question, trigger = request.prompt.strip().split("\n")
            assert ("code" in trigger) == (request.path == "pot")
            choices = []
            for index in range(request.first_index, request.first_index + request.n):
                if len(self.samples) >= self.fails_after:
                    raise ConnectionError("the server is gone")
                self.samples.append((question, request.path, index))
                answer, logprob = drawn(question, request.path, index)
                text = {"cot": f"The answer is {answer}.", "pot": f"answer = {answer}"}[request.path]
                text = "I do not know." if answer is None and request.path == "cot" else text
                choices.append(Choice(text, "stop", logprob if self.has_logprobs else None))
            yield SampleResult(request, choices)


def answers(question, path, count):
    return [drawn(question, path, index)[0] for index in range(count)]


def weights(question, cot, pot):
    logprobs = [drawn(question, "cot", i)[1] for i in range(cot)] + [drawn(question, "pot", i)[1] for i in range(pot)]
    found = likelihood_weights(logprobs)
    return found[:cot], found[cot:]


def test_fixed_is_the_vote_over_all_thoughts():
    for reasoned, question in zip(
        MixedReasoner(DrawnEngine(), n=7, stop="fixed", weights="none")(QUESTIONS), QUESTIONS, strict=True
    ):
        cot, pot = answers(question, "cot", 4), answers(question, "pot", 3)
        assert [t.answer for t in reasoned.cot] == cot and [t.answer for t in reasoned.pot] == pot
        assert reasoned.answer == vote(cot, pot) and reasoned.samples == 7
        usable = [answer for answer in cot + pot if answer]
        assert reasoned.votes == {a: pytest.approx(usable.count(a) / len(usable)) for a in dict.fromkeys(usable)}
        assert reasoned.confidence == pytest.approx(max(reasoned.votes.values(), default=0))


def test_pot_first_asks_for_a_cot_only_where_the_program_does_not_run():
    for reasoned, question in zip(MixedReasoner(DrawnEngine(), stop="pot_first")(QUESTIONS), QUESTIONS, strict=True):
        [pot], [cot] = answers(question, "pot", 1), answers(question, "cot", 1)
        assert reasoned.answer == (pot or cot) and reasoned.samples == (1 if pot else 2)


@pytest.mark.parametrize("weighted", [True, False])
def test_agreement_stops_early_and_weighs_votes(weighted):
    engine = DrawnEngine()
    reasoner = MixedReasoner(
        engine, n=10, stop=Agreement(10, threshold=1), weights="likelihood" if weighted else "none"
    )
    early = 0
    for reasoned, question in zip(reasoner(QUESTIONS), QUESTIONS, strict=True):
        cot, pot = len(reasoned.cot), len(reasoned.pot)
        assert cot == pot <= 5
        first = answers(question, "cot", 1) + answers(question, "pot", 1)
        if first[0] is not None and first[0] == first[1]:
            assert reasoned.samples == 2 and reasoned.answer == first[0]
            early += 1
        found = tally(
            answers(question, "cot", cot),
            answers(question, "pot", pot),
            *(weights(question, cot, pot) if weighted else ()),
        )
        assert (reasoned.answer, reasoned.confidence) == (found.answer, found.confidence)
        if not weighted:  # the guarantee of the rule, after its first round
            if cot > 1:
                assert reasoned.answer == vote(answers(question, "cot", 5), answers(question, "pot", 5))
    assert 0 < early < len(QUESTIONS)
    assert len(engine.samples) == len(set(engine.samples)) < 10 * len(QUESTIONS)
    assert engine.rounds <= 5, "unfinished questions share their rounds"


def test_answers_do_not_depend_on_what_is_asked_beside_and_repeats_are_asked_once():
    engine = DrawnEngine()
    together = MixedReasoner(engine)(QUESTIONS + QUESTIONS[:2])
    assert together[-2:] == together[:2] and len(engine.samples) == len(set(engine.samples))
    for i in (5, 0):
        assert MixedReasoner(DrawnEngine())([QUESTIONS[i]]) == [together[i]]


def test_results_stream_as_questions_finish():
    engine = DrawnEngine()
    seen, order = {}, []
    for index, reasoned in MixedReasoner(engine, n=10).stream(QUESTIONS):
        seen[index] = len(engine.samples)
        order.append(reasoned.samples)
    assert sorted(seen) == list(range(len(QUESTIONS))) and order == sorted(order)
    first = next(iter(seen))
    assert seen[first] < 2 * len(QUESTIONS), "the first answer comes before the first round ends"


def test_a_store_keeps_what_was_sampled_before_a_server_died(tmp_path):
    engine = DrawnEngine(fails_after=15)
    with pytest.raises(ConnectionError, match="the server is gone"):
        MixedReasoner(engine, n=8, store=tmp_path / "asked.db")(QUESTIONS)
    with Store(tmp_path / "asked.db") as store:
        stored = len(store.thoughts())
    assert stored >= 14
    again = DrawnEngine()
    found = MixedReasoner(again, n=8, store=tmp_path / "asked.db")(QUESTIONS)
    assert found == MixedReasoner(DrawnEngine(), n=8)(QUESTIONS)
    assert len(again.samples) == sum(reasoned.samples for reasoned in found) - stored
    # Nothing is left to sample, and a larger budget goes on from there
    done = DrawnEngine()
    assert MixedReasoner(done, n=8, store=tmp_path / "asked.db")(QUESTIONS) == found and not done.samples
    larger = MixedReasoner(DrawnEngine(), n=12, stop="fixed", store=tmp_path / "asked.db")(QUESTIONS)
    assert larger == MixedReasoner(DrawnEngine(), n=12, stop="fixed")(QUESTIONS)


def test_without_log_probabilities_votes_weigh_the_same_and_a_warning_says_so(caplog):
    with caplog.at_level(logging.WARNING, "md_trl.reasoner"):
        found = MixedReasoner(DrawnEngine(has_logprobs=False), n=8)(QUESTIONS)
    assert [r.answer for r in found] == [
        r.answer for r in MixedReasoner(DrawnEngine(has_logprobs=False), n=8, weights="none")(QUESTIONS)
    ]
    assert caplog.text.count("reports no log-probabilities") == 1


def test_a_path_without_a_usable_thought_is_named(caplog):
    class OnlyProse(DrawnEngine):
        def generate(self, requests):
            for result in super().generate(requests):
                broken = [Choice("def f(:", "stop", -1.0) for _ in result.choices]
                yield result if result.request.path == "cot" else SampleResult(result.request, broken)

    with caplog.at_level(logging.WARNING, "md_trl.reasoner"):
        MixedReasoner(OnlyProse(), n=4)(QUESTIONS[:3])
    assert "None of" in caplog.text and "Let's break down the code step by step." in caplog.text


def test_a_student_behind_a_server_is_asked_by_its_url():
    with OpenAIServer(logprobs=lambda body, text: [(text, -0.25), ("", -0.75)]) as server:
        reasoner = MixedReasoner(server.url, n=4, stop="fixed", model_name="m", prompt_format="plain")
        [reasoned] = reasoner(["What is 2 plus 2?"])
    assert len(reasoned.cot) == len(reasoned.pot) == 2
    assert [thought.logprob for thought in reasoned.cot] == [-0.5, -0.5]
    with pytest.raises(InputError, match="pass `model_name=`"):
        MixedReasoner(server.url)


def test_a_student_that_learned_two_answers_by_heart_votes_for_them(tmp_path):
    rows = [
        {"question": "Two and two?", "type": 3, "lambda": 0.5, "cot": ["The answer is 4."], "pot": ["answer = 2 + 2"]},
        {"question": "Who?", "type": 3, "lambda": 0.5, "cot": ["The answer is Ann."], "pot": ["answer = 'Ann'"]},
    ]
    model, tokenizer = tiny_llama(), byte_tokenizer()
    args = MDConfig(
        output_dir=str(tmp_path), max_steps=150, learning_rate=1e-2, use_cpu=True, report_to="none", disable_tqdm=True
    )
    trainer = MDTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    questions = [row["question"] for row in rows]
    for student in (MixedReasoner(model, tokenizer=tokenizer, temperature=0.3, max_tokens=30),) + (
        MixedReasoner(str(tmp_path), temperature=0.3, max_tokens=30),
        MixedReasoner(str(tmp_path), n=2, stop="fixed", temperature=0, max_tokens=30),
    ):
        first, second = student(questions)
        assert (first.answer, second.answer) == ("4", "ann")
        assert first.samples == second.samples == 2 and first.confidence == 1.0
    assert student([]) == []
    # A student of one path says so before anything is sampled
    settings = json.loads((tmp_path / "md_trl.json").read_text())
    (tmp_path / "md_trl.json").write_text(json.dumps(settings | {"objective": "cot", "paths": ["cot"]}))
    with pytest.raises(InputError, match="`objective='cot'` and knows nothing of the path 'pot'"):
        MixedReasoner(str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stop": "never"}, "no stopping rule 'never'. Choose one of fixed, pot_first"),
        ({"weights": "length"}, "`weights` is 'length', which is neither 'none' nor 'likelihood' nor a file"),
        ({"n": 0}, "`n` is 0"),
        ({"temperature": 0}, "`temperature=0` is greedy"),
    ],
)
def test_arguments_are_checked_first(arguments, message):
    with pytest.raises(InputError, match=message):
        MixedReasoner(DrawnEngine(), **arguments)


def test_questions_are_checked_before_anything_is_sampled():
    engine = DrawnEngine()
    with pytest.raises(TypeError, match=r"Write \[question\]"):
        MixedReasoner(engine)("What is 2 plus 3?")
    with pytest.raises(InputError, match="Question 1 is '  '. It must be a text"):
        MixedReasoner(engine)(["What is 2 plus 3?", "  "])
    reasoner = MixedReasoner(tiny_llama(), tokenizer=byte_tokenizer(), max_tokens=2)
    with pytest.raises(InputError, match=r"Question 1 could not be answered: the prompt of \d+ tokens leaves no room"):
        reasoner(["Short?", "x" * 5000])
    assert not engine.samples


def test_weights_learned_on_other_questions_weigh_votes_and_calibrate_the_confidence(tmp_path):
    VoteSettings(VoteWeights("likelihood", pot=3.0), Calibrator(1.5, -0.5)).save(tmp_path / "votes.json")
    reasoner = MixedReasoner(DrawnEngine(), n=8, stop="fixed", weights=str(tmp_path / "votes.json"))
    for question, reasoned in zip(QUESTIONS, reasoner(QUESTIONS), strict=True):
        cot, pot = (answers(question, path, 4) for path in ("cot", "pot"))
        cot_weights, pot_weights = weights(question, 4, 4)
        sums = {}
        for answer, weight in [
            *zip(cot, cot_weights, strict=True),
            *zip(pot, [3 * w for w in pot_weights], strict=True),
        ]:
            if answer is not None:
                sums[answer] = sums.get(answer, 0) + weight / 3  # the heavier path weighs 1
        assert reasoned.answer == max(sums, key=sums.get)
        first, second = (sorted(sums.values(), reverse=True) + [0])[:2]
        odds = math.exp(1.5 * math.log((1 + first) / (1 + second)) - 0.5)
        assert reasoned.confidence == pytest.approx(odds / (1 + odds))
