"""Monty and the jail must compute the same numbers and texts as CPython, for random programs."""

import math

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from md_trl.answers import equal
from md_trl.execution import Executor, Limits, seccomp


PROGRAMS_AT_A_TIME = 40

integers = st.one_of(st.integers(-100, 100), st.integers(-(10**12), 10**12)).map(lambda n: f"({n})")
floats = st.one_of(
    st.integers(-(10**6), 10**6).map(lambda n: n / 1000),
    st.integers(-(10**4), 10**4).map(lambda n: n + 0.5),
    st.floats(-1e9, 1e9),
).map(lambda x: f"({x!r})")
numbers = st.one_of(integers, floats, st.sampled_from(["price", "count", "True", "0.1", "2.675", "1e16"]))


def forms(inner):
    two = st.sampled_from(
        ["({} + {})", "({} - {})", "({} * {})", "({} / {})", "({} // {})", "({} % {})", "max({}, {})", "min({}, {})"]
        + ["divmod({}, {})[1]", "sum([{}, {}])", "(1 if {} < {} else 0)", "int({} == {})", "float({} >= {})"]
    )
    one = st.sampled_from(
        ["(-{})", "abs({})", "int({})", "float({})", "round({})", "math.floor({})", "math.ceil({})", "(not {})"]
        + ["round({}, 2)", "round({}, 1)", "round({}, -1)", "round({}, 0)", "({} ** 2)", "float('%.2f' % {})"]
        + ["float('%.3f' % {})", "int(str(int({})))", "float(str(float({})))", "math.sqrt(abs({}))", "math.trunc({})"]
    )
    return st.one_of(
        st.tuples(two, inner, inner).map(lambda t: t[0].format(*t[1:])),
        st.tuples(one, inner).map(lambda t: t[0].format(t[1])),
    )


expressions = st.recursive(numbers, forms, max_leaves=8)
steps = st.lists(
    st.one_of(
        expressions.map("price = {}".format),
        expressions.map("count += {}".format),
        st.tuples(st.integers(0, 5), expressions).map(lambda t: f"for step in range({t[0]}):\n    price += {t[1]}"),
        st.tuples(expressions, expressions).map(lambda t: f"if {t[0]} > {t[1]}:\n    count = 7"),
    ),
    max_size=4,
)
shown = st.sampled_from(["{}", "str({})", "'%.2f' % {}", "'%s' % ({},)", "repr([{}])", "'%g' % {}"])
programs = st.tuples(steps, shown, expressions).map(
    lambda t: "\n".join(["import math", "price, count = 12.5, 3", *t[0], "answer = " + t[1].format(t[2])])
)


@pytest.fixture(scope="module")
def monty():
    with Executor("monty", limits=Limits(seconds=20)) as executor:
        yield executor


@pytest.fixture(scope="module")
def jail():
    with Executor("jail", limits=Limits(seconds=20)) as executor:
        yield executor


def in_cpython(program):
    """Run a program in this process, which is safe because the programs here are generated and only do arithmetic."""
    names = {}
    try:
        exec(program, names)
    except (ArithmeticError, ValueError, TypeError) as failure:
        return "error", type(failure).__name__
    return "ok", names["answer"]


def same(a, b):
    if isinstance(a, float) and not math.isfinite(a):
        a = str(a)
    return type(a) is type(b) and (a == b or equal(a, b) and isinstance(a, (float, str)) and is_close(a, b))


def is_close(a, b):
    """Whether two numbers, or their texts, are the same up to rounding: Monty's last digit of a float may differ."""
    try:
        return math.isclose(float(a), float(b), rel_tol=1e-14)
    except ValueError:
        return False


def check_agreement(executor, batch):
    for program, result in zip(batch, executor.run_many(batch), strict=True):
        status, answer = in_cpython(program)
        assert result.status == status, (program, answer, result)
        if status == "ok":
            assert same(answer, result.value), (program, answer, result)
        else:
            assert result.error.startswith(answer), (program, answer, result)


batches = st.lists(programs, min_size=PROGRAMS_AT_A_TIME, max_size=PROGRAMS_AT_A_TIME)
slow_is_fine = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


@given(batches)
@example(["answer = str(round(-0.0, -1))", "answer = str(round(-4.0, -1))", "answer = str(round(0.0, -1))"])
@settings(max_examples=25, deadline=None, suppress_health_check=slow_is_fine)
def test_monty_and_cpython_agree(monty, batch):
    check_agreement(monty, batch)


@given(batches)
@settings(max_examples=5, deadline=None, suppress_health_check=slow_is_fine)
@pytest.mark.skipif(seccomp.unavailable_reason() is not None, reason="the jail needs seccomp")
def test_the_jail_and_cpython_agree(jail, batch):
    check_agreement(jail, batch)


@pytest.mark.slow
@given(batches)
@settings(max_examples=250, deadline=None, suppress_health_check=slow_is_fine)
def test_monty_and_cpython_agree_on_ten_thousand(monty, batch):
    check_agreement(monty, batch)
