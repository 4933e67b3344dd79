"""Prices, ledgers, budgets that are never exceeded, and estimates whose intervals hold."""

import math
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers.openai_server import OpenAIServer

from md_trl.cli.sample import SampleArguments, run
from md_trl.cli.store import StoreArguments
from md_trl.cli.store import run as run_store
from md_trl.prompts import max_prompt_tokens, teacher_messages
from md_trl.records import Choice, Question, SamplingParams
from md_trl.sampling import sample
from md_trl.sampling.dry_run import Stratum, dry_run, estimate
from md_trl.sampling.engines import SampleRequest, SampleResult
from md_trl.sampling.engines.openai import OpenAIEngine
from md_trl.sampling.ledger import Budget, Ledger, Price, read_prices
from md_trl.sampling.run import SamplingRun
from md_trl.store import Selection, Store
from md_trl.tasks import load_questions


QUESTIONS = [Question(f"svamp/train/{i}", "svamp", "train", f"How much is {i} + 1?", str(i + 1)) for i in range(60)]
PRICES = {"m": Price(prompt=2.0, completion=6.0, cached=1.0)}


def prompt(question, path):
    return [{"role": "user", "content": f"{question.question}\n{path}"}]


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "t.db") as store:
        yield store


def books(server, price=PRICES["m"]):
    """What the server would bill, computed by hand."""
    plain = server.prompt_tokens - server.cached_tokens
    return (
        plain * price.prompt + server.cached_tokens * price.cached + server.completion_tokens * price.completion
    ) / 1e6


# Prices


def test_price():
    price = Price(prompt=3, completion=15, cached=0.3)
    assert price.cost(1_000_000, 0, 0) == 3
    assert price.cost(1_000_000, 1_000_000, 0) == pytest.approx(0.3)
    assert price.cost(0, 0, 2_000_000) == 30
    assert price.cost(10, 4, 5) == pytest.approx((6 * 3 + 4 * 0.3 + 5 * 15) / 1e6)
    assert price.cost(10, 4, 5, batch=True) == pytest.approx(price.cost(10, 4, 5) / 2)
    assert Price(3, 15).cost(10, 4, 5) == Price(3, 15, cached=3).cost(10, 4, 5)


def test_read_prices(tmp_path):
    file = tmp_path / "prices.yaml"
    file.write_text(
        "m: {prompt: 2, completion: 6.0, cached: 1}\nbig/model: {prompt: 0.5, completion: 1, batch: 0.4}\n"
    )
    assert read_prices(file) == {"m": Price(2, 6.0, 1), "big/model": Price(0.5, 1, None, 0.4)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "is not a price table"),
        ("m: 3", "the price of 'm' is 3"),
        ("m: {prompt: 1}", "the price of 'm' is {'prompt': 1}"),
        ("m: {prompt: 1, completion: 2, output: 3}", "the price of 'm'"),
        ("m: {prompt: cheap, completion: 2}", "'prompt' of 'm' is 'cheap'"),
        ("m: {prompt: -1, completion: 2}", "'prompt' of 'm' is -1"),
        ("m: {prompt: 1, completion: .inf}", "'completion' of 'm' is inf"),
        ("m: {prompt: 1, completion: 2, cached: 3}", "more expensive cached"),
        ("m: {prompt: 1, completion: 2, batch: 2}", "more expensive cached or in a batch"),
        ("m: {", "is not YAML"),
    ],
)
def test_bad_prices(tmp_path, text, message):
    file = tmp_path / "prices.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"{re.escape(str(file))}.*{re.escape(message)}"):
        read_prices(file)


# Ledger


def test_ledger_agrees_with_the_server(store):
    with OpenAIServer() as server:
        summary = sample(
            QUESTIONS, ["cot", "pot"], 3, OpenAIEngine("m", server.url), store, prompt, prices=PRICES, progress=False
        )
    ledger = Ledger(store.spending(), PRICES)
    assert ledger.cost == pytest.approx(books(server)) == summary.cost
    assert ledger.unknown == 0 and ledger.unpriced == []
    (entry,) = ledger.entries
    assert (entry.requests, entry.failed, entry.thoughts, entry.batch) == (120, 0, 360, False)
    assert f"{books(server):.4f}" in ledger.format()
    # By task and split
    assert Ledger(store.spending(Selection("svamp", ["train"])), PRICES).cost == ledger.cost
    assert [] == [
        entry
        for other in (Selection("gsm8k"), Selection(splits=["test"]), Selection(models="other"))
        for entry in store.spending(other)
    ]


def test_models_without_a_price_and_imports(store, tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text(
        '{"task": "svamp", "question": "How?", "gold": "1", "path": "cot", "text": "a", "usage": {"prompt_tokens": 5}}'
    )
    store.import_thoughts(file)
    assert store.spending() == []  # Paid for elsewhere
    with OpenAIServer() as server:
        sample(QUESTIONS[:2], ["cot"], 1, OpenAIEngine("other", server.url), store, prompt, progress=False)
    ledger = Ledger(store.spending(), PRICES)
    assert (ledger.cost, ledger.unpriced) == (0, ["other"])
    assert "no price" in ledger.format()
    with pytest.raises(ValueError, match="has no 'other', only 'm'"):
        Budget(store, PRICES, "other")


@given(text=st.text())
def test_max_prompt_tokens_is_at_least_the_number_of_bytes(text):
    assert max_prompt_tokens(text) >= len(text.encode())
    assert max_prompt_tokens([{"role": "user", "content": text}] * 2) >= 2 * len(text.encode()) + 2


# Limits


class ExpensiveEngine:
    """Uses as many tokens as a request possibly can (or a share of them), and loses some answers."""

    model = "m"

    def __init__(self, lose=lambda number: False, share=1.0):
        self.lose, self.share, self.asked = lose, share, []

    def generate(self, requests):
        in_flight = []
        for request in requests:
            self.asked.append(request)
            in_flight.append((len(self.asked), request))
            if len(in_flight) == 3:
                yield self.answer(*in_flight.pop(0))
        for waiting in in_flight:
            yield self.answer(*waiting)

    def answer(self, number, request):
        if self.lose(number):
            return SampleResult(request, error="lost", lost=True)
        usage = {
            "prompt_tokens": int(max_prompt_tokens(request.prompt) * self.share),
            "completion_tokens": int(request.n * request.params.max_tokens * self.share),
        }
        return SampleResult(request, [Choice("x", "stop")] * request.n, usage)

    def paid(self, max_tokens):
        return sum(PRICES["m"].cost(max_prompt_tokens(r.prompt), 0, r.n * max_tokens) for r in self.asked) * self.share


@pytest.mark.parametrize("share", [1.0, 0.2])
@pytest.mark.parametrize("lose", [lambda number: False, lambda number: number % 4 == 1])
def test_max_cost_is_never_exceeded_and_nearly_reached(store, caplog, share, lose):
    engine = ExpensiveEngine(lose, share)
    most = PRICES["m"].cost(max_prompt_tokens(prompt(QUESTIONS[50], "cot")), 0, 4 * 100)
    limit = 10.5 * most
    arguments = (["cot", "pot"], 4, engine, store, prompt)
    options = {"params": SamplingParams(max_tokens=100), "prices": PRICES, "progress": False}
    summary = sample(QUESTIONS, *arguments, max_cost=limit, **options)
    ledger = Ledger(store.spending(), PRICES)
    # Even if each lost answer was billed at its upper bound
    assert ledger.cost + ledger.unknown <= limit
    assert ledger.cost + ledger.unknown > limit - most
    assert summary.over_budget and summary.missing == 480 - summary.thoughts
    assert "Run the same command with a higher `--max_cost`" in caplog.text
    # The same limit allows nothing more. A higher one does, and counts what was spent before.
    asked = len(engine.asked)
    sample(QUESTIONS, *arguments, max_cost=limit, **options)
    assert len(engine.asked) == asked
    sample(QUESTIONS, *arguments, max_cost=2 * limit, **options)
    ledger = Ledger(store.spending(), PRICES)
    assert limit < ledger.cost + ledger.unknown <= 2 * limit
    done = sample(QUESTIONS, *arguments, max_cost=1000 * limit, **options)
    assert done.missing == 0 and not done.over_budget


def test_two_processes_share_one_limit(store):
    """Before it claims, each sees what the other has claimed."""
    store.questions.add(QUESTIONS)
    setting = store.settings.number("m", "p", SamplingParams(max_tokens=100))
    request = SampleRequest(QUESTIONS[0].id, "cot", "How much?", SamplingParams(max_tokens=100))
    most = PRICES["m"].cost(request.max_prompt_tokens, 0, 100)
    with Store(store.file) as other:
        budgets = [(s, Budget(s, PRICES, "m", 5.5 * most)) for s in (store, other)]
        claimed, refused = 0, []
        for i, question in enumerate(QUESTIONS[:10]):
            mine, budget = budgets[i % 2]
            granted = mine.claims.claim(
                question.id, "cot", setting, 1,
                max_prompt_tokens=request.max_prompt_tokens, max_completion_tokens=100,
                allow=lambda sizes, b=budget: b.reserve(request, sizes),
            )  # fmt: skip
            claimed += len(granted.claims)
            refused += [i % 2] * granted.refused
        assert claimed == 5 and set(refused) == {0, 1}
        assert Ledger(store.spending(), PRICES).unknown == pytest.approx(5 * most)


def test_max_cost_over_http(store):
    with OpenAIServer() as server:
        engine = OpenAIEngine("m", server.url, concurrency=8)
        limit = 30 * PRICES["m"].cost(8, 4, 3 * 7)
        summary = sample(
            QUESTIONS, ["cot", "pot"], 3, engine, store, prompt,
            params=SamplingParams(max_tokens=10), prices=PRICES, max_cost=limit, progress=False,
        )  # fmt: skip
        assert summary.over_budget and 5 < summary.requests < 120
        assert books(server) <= limit
        most = PRICES["m"].cost(max_prompt_tokens(prompt(QUESTIONS[50], "cot")), 0, 30)
        assert books(server) > limit - most


def test_a_budget_for_part_of_a_claim(store):
    """Of several requests for one question, only those that fit into the budget are made."""
    engine = ExpensiveEngine()
    most = PRICES["m"].cost(max_prompt_tokens(prompt(QUESTIONS[0], "cot")), 0, 100)
    options = {"params": SamplingParams(max_tokens=100), "prices": PRICES, "progress": False}
    with SamplingRun(QUESTIONS[:1], ["cot"], 5, "m", store, prompt, options["params"], PRICES, 3.5 * most) as run:
        run.max_samples = 1
        requests = run.claim(run.next_round()[0])
        assert [(r.first_index, r.n) for r in requests] == [(0, 1), (1, 1), (2, 1)]
        assert run.summary.over_budget
        for result in engine.generate(requests):
            run.record(result)
        assert run.claim(run.next_round()[0]) == []
    summary = run.finish()
    assert (summary.requests, summary.thoughts, summary.missing, summary.over_budget) == (3, 3, 2, True)


def test_max_cost_needs_prices(store):
    with pytest.raises(ValueError, match="`max_cost` needs prices"):
        sample(QUESTIONS, ["cot"], 1, ExpensiveEngine(), store, prompt, max_cost=1)


# Estimates


def test_dry_run_estimates_the_cost_and_keeps_its_thoughts(store):
    with OpenAIServer() as server:
        engine = OpenAIEngine("m", server.url)
        arguments = (QUESTIONS, ["cot", "pot"], 3, engine, store, prompt)
        guess = dry_run(*arguments, probes=10, prices=PRICES)
        assert len(server.bodies) == 20 == guess.probes
        assert guess.spent == pytest.approx(books(server))
        assert (guess.pairs, guess.thoughts) == (100, 300)
        summary = sample(*arguments, prices=PRICES, progress=False)
        assert summary.requests == 100  # The probes are not paid for twice.
        assert guess.low <= summary.cost <= guess.high
        assert guess.prompt_tokens == pytest.approx(summary.prompt_tokens, rel=0.2)
        assert guess.completion_tokens == pytest.approx(summary.completion_tokens, rel=0.3)
        done = dry_run(*arguments, prices=PRICES)
        assert (done.pairs, done.thoughts, done.cost, done.low, done.high) == (0, 0, 0, 0, 0)
    assert "95%" in guess.format() and "kept" in guess.format()
    with pytest.raises(ValueError, match="`probes` is 1"):
        dry_run(*arguments, probes=1)


def test_intervals_contain_the_cost_19_times_out_of_20():
    """On random populations with two paths whose costs differ and are skewed."""
    rng = random.Random(5)
    price, inside, trials = PRICES["m"], 0, 1500
    for _ in range(trials):
        strata, truth = [], 0.0
        for scale in (60, 150):
            pairs = [(rng.randrange(700, 800), 0, int(20 * rng.gammavariate(3, scale / 3))) for _ in range(60)]
            strata.append(Stratum([(*pair, 20) for pair in pairs[:10]], 50, 50 * 20))
            truth += sum(price.cost(*pair) for pair in pairs[10:])
        guess = estimate(strata, price)
        inside += guess.low <= truth <= guess.high
    print(f"{inside / trials:.1%} of the intervals hold the cost")
    assert abs(inside / trials - 0.95) < 0.02


def test_estimate_of_equal_costs_is_exact():
    guess = estimate([Stratum([(100, 40, 60, 3)] * 2, 5, 10)], PRICES["m"])
    assert guess.cost == guess.low == guess.high == pytest.approx(5 * PRICES["m"].cost(100, 40, 40))
    assert (guess.prompt_tokens, guess.completion_tokens) == (500, 200)
    half = estimate([Stratum([(100, 40, 60, 3)] * 2, 5, 10)], PRICES["m"], batch=True)
    assert half.cost == pytest.approx(guess.cost / 2)
    assert math.isnan(guess.cost) is False
    assert estimate([Stratum([(100, 40, 60, 3)] * 2, 5, 10)]).cost is None


# The command


def test_command(tmp_path, capsys):
    prices = tmp_path / "prices.yaml"
    prices.write_text("m: {prompt: 2, completion: 6, cached: 1}\n")
    with OpenAIServer() as server:
        common = {
            "task": "stories", "limit": 20, "n": 2, "model": "m", "base_url": server.url,
            "store": str(tmp_path / "t.db"), "prices": str(prices),
        }  # fmt: skip
        run(SampleArguments(**common, dry_run=True, probes=3))
        out = capsys.readouterr().out
        assert "Still to sample: 68 thoughts of 34 pairs" in out and "by 6 probes" in out
        run(SampleArguments(**common, max_cost=0.05))
        out = capsys.readouterr().out
        assert "cost 0.0" in out and f"{books(server):.4f}" in out
        assert books(server) <= 0.05
        run_store(StoreArguments(store=common["store"], prices=common["prices"]), "status")
        assert f"{books(server):.4f}" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--prices"):
        run(SampleArguments(**{**common, "prices": None}, max_cost=1.0))


@pytest.mark.parametrize("requests", [0, 3])
def test_a_command_that_ends_over_budget_fails(tmp_path, capsys, caplog, requests):
    """Whether it sampled nothing or part of what was wanted."""
    prices = tmp_path / "prices.yaml"
    prices.write_text("m: {prompt: 2, completion: 6, cached: 1}\n")
    question = load_questions("stories", "train")[0]
    request = SampleRequest(question.id, "cot", teacher_messages(question, "cot"))
    most = Price(2, 6, 1).cost(request.max_prompt_tokens, 0, 2 * request.max_completion_tokens)
    with OpenAIServer() as server:
        args = SampleArguments(
            task="stories", limit=20, n=2, model="m", base_url=server.url, concurrency=1,
            store=str(tmp_path / "t.db"), prices=str(prices), max_cost=(requests + 0.5) * most / 2,
        )  # fmt: skip
        with pytest.raises(SystemExit) as end:
            run(args)
        assert end.value.code == 1
        assert bool(server.bodies) == bool(requests) and len(server.bodies) < 40
    assert f"{80 - 2 * len(server.bodies)} missing" in capsys.readouterr().out
    assert "Run the same command with a higher `--max_cost` to continue" in caplog.text


def test_a_dry_run_without_a_probe_fails(store):
    with pytest.raises(ValueError, match="None of the 8 probes on the path cot returned a thought"):
        dry_run(QUESTIONS, ["cot"], 1, ExpensiveEngine(), store, prompt, prices=PRICES, max_cost=1e-9)
