import gc
import json
import math
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import psutil
import pytest
from conftest import SHARED, needs_shared
from hypothesis import given
from hypothesis import strategies as st

from md_trl.answers import equal
from md_trl.execution import Executor, Limits, Result, seccomp
from md_trl.execution.json_values import to_json
from md_trl.execution.programs import MAX_CHARS, prepare
from md_trl.execution.source import InvalidProgramError


PYTHON = Path(sys.executable)

SOLUTION = 'def solution():\n    """How many are 29 times 7?"""\n    birds = 29\n    return birds * 7\n'

needs_jail = pytest.mark.skipif(seccomp.unavailable_reason() is not None, reason="the jail needs seccomp")


@pytest.fixture(scope="module")
def executor():
    with Executor(limits=Limits(seconds=1.0)) as executor:
        yield executor


@pytest.fixture(scope="module")
def monty():
    with Executor("monty", limits=Limits(seconds=1.0)) as executor:
        yield executor


@pytest.fixture(scope="module", params=["monty", pytest.param("jail", marks=needs_jail)])
def each(request):
    """An executor with one engine only, for each engine."""
    with Executor(request.param) as executor:
        yield executor


def run(executor, program):
    return executor.run_many([program])[0]


FORMS = {
    "answer": ("answer = 6 * 7", 42),
    "ans": ("ans = 6 * 7", 42),
    "result": ("result = 6 * 7", 42),
    "the name assigned last": ("result = 6 * 7\nanswer = 'yes' if result > 40 else 'no'", "yes"),
    "a name in branches": ("x = 3\nif x > 2:\n    answer = 'big'\nelse:\n    answer = 'small'", "big"),
    "a name in a loop": ("answer = 0\nfor n in range(5):\n    answer += n", 10),
    "a name from a call": ("def f(x):\n    result = 1\n    return x + result\nanswer = f(2)", 3),
    "solution": (SOLUTION, 203),
    "solution beside a helper": ("def double(x):\n    return 2 * x\ndef solution():\n    return double(4)", 8),
    "solution beside a name": ("result = 1\ndef solution():\n    return 9", 9),
    "solution that is called": (SOLUTION + "\nanswer = solution() + 1", 204),
    "solution that prints": ("def solution():\n    print(5)", "5"),
    "another function": ("def compute(n=3):\n    return n * 2", 6),
    "another function beside a helper": ("def f(x):\n    return x\ndef main():\n    return f(7)", 7),
    "last expression": ("x = 5\nx * 2", 10),
    "last expression on the same line": ("é = 5; é * 2", 10),
    "last expression over several lines": ("x = 5\nmax(\n    x,  # five\n    3,\n)  # done", 5),
    "last expression that is None": ("answer = [1]\nanswer.append(2)", [1, 2]),
    "bare value": ("42", 42),
    "printed value": ("print(6 * 7)", 42),
    "printed once": ("n = [1, 2]\nprint(n.pop())", 2),
    "printed with words": ("x = 5\nprint('Total:', x, 'dollars')", 5),
    "printed in a sentence": ("x = 5.5\nprint(f'She has {x:.0f} left.')", 5.5),
    "printed in a sum": ("n = [1, 2]\nprint('Tom has ' + str(n.pop()) + ' apples.')", 2),
    "printed with words, literally": ("print('Total:', 5)", 5),
    "printed as a percentage": ("x = 0.25\nprint(f'{x:.0%} of them')", "25%"),
    "printed text": ("print('neither day')", "neither day"),
    "printed in branches": ("x = 1\nif x > 2:\n    print('big')\nelse:\n    print('small')", "small"),
    "last line printed": ("for n in range(3):\n    print(n)", "2"),
    "printed beside a name": ("answer = 5\nprint('done')", 5),
    "printed in a main guard": ("x = 5\nif __name__ == '__main__':\n    print('Total:', x)", 5),
    "last expression in a main guard": ("def f():\n    return 5\nif __name__ == '__main__': f()", 5),
    "main guard": ("def main():\n    print(7)\nif __name__ == '__main__':\n    main()", "7"),
    "return at the top": (
        "a, b = 5 / 6, 10 / 12\nif a == b:\n    result = 'neither day'\nreturn result",
        "neither day",
    ),
    "return in branches": ("x = 3\nif x > 2:\n    return 'big'\nreturn 'small'", "big"),
    "return with a long text": ('s = """a\n  b"""\nif s:\n    return s', "a\n  b"),
    "reasoning in comments": ("# Fish live in water.\n# So no.\nanswer = False", False),
    "only the body": ("    birds = 29\n    return birds * 7", 203),
    "fence": ("Here it is:\n```python\nanswer = 5\n```\nThe answer is 7.", 5),
    "fence without a language": ("```\nx = 5\nprint(x)\n```", 5),
    "fence that stays open": ("```python\nanswer = 5", 5),
    "fences of code and output": (f"```python\n{SOLUTION}```\nOutput:\n```\n203\n```", 203),
    "several fences": ("First:\n```python\na = 3\n```\nThen:\n```py\nanswer = a + 4\n```\n```\nresult: 7\n```", 7),
    "several fences, some broken": ("```python\na = (\n```\nNo:\n```python\nanswer = 5\n```", 5),
    "byte order mark": ("\ufeffanswer = 5", 5),
    "after prose": ("Let's break down the code step by step.\nFirst, a sum.\n\na = 3\nresult = a + 4", 7),
    "between prose": ("Sure, here is it:\n\na = 3\nresult = a + 4\n\nSo the result is 7.", 7),
    "prose in a docstring and after": (
        'def solution():\n    """\nTom has five apples.\n    """\n    return 5\n\nSo it is 5.',
        5,
    ),
    "windows line ends": ("x = 5\r\nanswer = x\r\n", 5),
    "tabs": ("def solution():\n\treturn 3", 3),
}

VALUES = {
    "int": ("answer = 10 ** 20", 10**20, "int"),
    "int of 4,000 digits": ("answer = 10 ** 3999", 10**3999, "int"),
    "int of 4,001 digits": ("answer = -10 ** 4000", "-1" + "0" * 4000, "int"),
    "int of 20,000 digits": ("answer = 10 ** 19_999", "1" + "0" * 19_999, "int"),
    "large ints inside": ("answer = [1, (10 ** 5000,)]", [1, ["1" + "0" * 5000]], "list"),
    "infinite decimal": ("from decimal import Decimal\nanswer = Decimal('-Infinity')", "-inf", "Decimal"),
    "float": ("answer = 0.1 + 0.2", 0.1 + 0.2, "float"),
    "nan": ("answer = float('nan')", "nan", "float"),
    "inf": ("answer = -float('inf')", "-inf", "float"),
    "bool": ("answer = 3 > 2", True, "bool"),
    "str": ("answer = 'Tom ✓'", "Tom ✓", "str"),
    "list": ("answer = [1, 2.5, None]", [1, 2.5, None], "list"),
    "tuple": ("answer = (1, 2)", [1, 2], "tuple"),
    "set": ("answer = {3, 1, 2}", [1, 2, 3], "set"),
    "dict": ("answer = {'a': 1, 2: (3,), (4, 5): float('nan')}", {"a": 1, "2": [3], "[4, 5]": "nan"}, "dict"),
    "decimal": ("from decimal import Decimal\nanswer = Decimal('1.10')", "1.10", "Decimal"),
    "date": ("import datetime\nanswer = datetime.date(2024, 12, 24)", "2024-12-24", "date"),
}

FAILURES = {
    "raises": ("answer = 1 / 0", "error", "ZeroDivisionError: division by zero"),
    "syntax": ("def f(:", "error", "SyntaxError"),
    "prose": ("There is no program here.", "error", "SyntaxError"),
    "empty": ("", "error", "no statement"),
    "only comments": ("# nothing", "error", "no statement"),
    "only a text": ("'''Nothing.'''", "error", "not a program"),
    "only a star": ("*0", "error", "starred expression"),
    "NUL": ("answer = 1\x00", "error", "null bytes"),
    "surrogate": ("answer = '\ud800'", "error", "surrogates"),
    "brackets": ("answer = " + "(" * 5000 + "1" + ")" * 5000, "error", "SyntaxError"),
    "signs": ("answer = " + "-" * 30_000 + "1", "error", "SyntaxError"),
    "too long": ("#" * (MAX_CHARS + 1), "error", "characters"),
    "endless loop": ("while True:\n    pass", "timeout", "limit"),
    "endless loop that catches": (
        "while True:\n    try:\n        while True: pass\n    except: pass",
        "timeout",
        "limit",
    ),
    "one endless step": ("answer = 10 ** 10 ** 8", "timeout", "killed"),
    "endless sum": ("answer = sum(range(10 ** 12))", "timeout", "limit"),
    "endless print": ("while True:\n    print('x' * 1000)", "timeout", "limit"),
    "memory, growing": ("l = []\nwhile True:\n    l.append('x' * 100_000)", "memory", "limit"),
    "memory, at once": ("answer = 'a' * 10 ** 9", "memory", "limit"),
    "memory, list": ("answer = [0] * 10 ** 10", "memory", "limit"),
    "memory, doubling": ("s = 'a'\nwhile True:\n    s += s", "memory", "limit"),
    "recursion": ("def f(n):\n    return f(n + 1)\nanswer = f(0)", "error", "RecursionError"),
    "file": ("answer = open('/etc/passwd').read()", "error", "PermissionError"),
    "environment": ("import os\nanswer = os.environ['PATH']", "error", "not supported"),
    "shell": ("import os\nanswer = os.system('ls')", "unsupported", "AttributeError"),
    "network": ("import socket", "unsupported", "socket"),
    "exit": ("exit()", "unsupported", "exit"),
    "import": ("__import__('os')", "unsupported", "__import__"),
    "subclasses": ("answer = ().__class__.__bases__[0].__subclasses__()", "error", "AttributeError"),
    "stdin": ("answer = input()", "unsupported", "input"),
    "missing module": ("import numpy as np\nanswer = np.sum([1])", "unsupported", "numpy"),
    "yield": ("def g():\n    yield 1\nanswer = list(g())", "unsupported", "yield"),
    "inheritance": ("class A(int):\n    pass\nanswer = A()", "unsupported", "inheritance"),
    "no answer": ("x = 5", "no_result", "did not return"),
    "prints nothing": ("def solution():\n    x = 5\nprint(solution())", "no_result", "printed None"),
    "returns nothing": ("def solution():\n    x = 5", "no_result", "did not return"),
    "function": ("def f(x):\n    return x\nanswer = f", "no_result", "function"),
    "builtin": ("answer = len", "no_result", "builtin_function"),
    "object": ("class A:\n    pass\nanswer = A()", "no_result", "type A"),
    "long text": ("answer = 'a' * 20_000", "no_result", "10,000 characters"),
    "many items": ("answer = list(range(2_000))", "no_result", "1,000 items"),
    "many nested items": ("answer = [[0] * 100] * 100", "no_result", "1,000 items"),
    "deep list": ("answer = []\nfor _ in range(50):\n    answer = [answer]", "no_result", "levels"),
    "enormous int": ("answer = 10 ** 200_000", "no_result", "100,000 digits"),
    "enormous int in a list": ("answer = [10 ** 200_000]", "no_result", "100,000 digits"),
    "printed too much": ("for _ in range(200):\n    print('x' * 100)", "no_result", "printed more"),
}


class TestForms:
    @pytest.mark.parametrize("form", FORMS)
    def test_the_answer_is_found(self, each, form):
        program, expected = FORMS[form]
        result = run(each, program)
        assert (result.status, result.value, type(result.value)) == ("ok", expected, type(expected)), result.error

    def test_many_threads_parse_at_once(self):
        # The garbage collector runs Python code in the middle of a parse, so other threads get a turn there.
        callbacks, threshold = list(gc.callbacks), gc.get_threshold()
        program = "answer = [" + ", ".join(f"[{n} + ({n} * {n})]" for n in range(200)) + "]"
        try:
            gc.callbacks.append(lambda *_: sum(range(50)))
            gc.set_threshold(50)
            with ThreadPoolExecutor(8) as threads:
                assert {prepared.expressions for prepared in threads.map(prepare, [program] * 100)} == {("answer",)}
        finally:
            gc.callbacks[:] = callbacks
            gc.set_threshold(*threshold)

    @given(st.text(alphabet=st.sampled_from(list("ab=+-*/():'\"\n\t `#~\\{}[],.0é\x00\ud800")), max_size=60))
    def test_any_text_is_a_valid_program_or_raises(self, text):
        try:
            program = prepare(text)
        except InvalidProgramError as failure:
            assert str(failure)
        else:
            for source in [program.body, *program.expressions]:
                compile(source, "program", "exec")


class TestValues:
    @pytest.mark.parametrize("kind", VALUES)
    def test_values_are_strict_json(self, each, kind):
        program, expected, type_name = VALUES[kind]
        result = run(each, program)
        assert (result.status, result.value, result.type, result.error) == ("ok", expected, type_name, None)
        json.dumps(result.value, allow_nan=False)

    def test_a_value_cannot_pose_as_a_long_int(self, monty):
        assert run(monty, "answer = {'_int': '0x10'}").value == 16
        assert run(monty, "answer = {'_int': 'x'}").status == "no_result"

    def test_round_agrees_with_cpython(self, monty):
        draw = random.Random(0)
        pairs = [(2.675, 2), (0.5, 0), (1.5, 0), (2.5, None), (-2.675, 2), (1e22, 2), (5e-324, 323), (1.5, 400)]
        pairs += [(draw.randint(-(10**6), 10**6) / 1000 + 0.0005, draw.randint(0, 4)) for _ in range(2_000)]
        pairs += [(draw.uniform(-1e4, 1e4), draw.choice([None, 0, 1, 2, 3, 6, 12])) for _ in range(1_000)]
        pairs += [
            (draw.randint(-(10**5), 10**5) + draw.choice([0, 0.0, 0.25]), -draw.randint(1, 4)) for _ in range(2_000)
        ]
        pairs += [(5.0 * 10**n, -n - 1) for n in range(20)] + [(True, 0), (15, -1), (25, -1), (0.0, -400), (-0.1, 0)]
        chunks = [pairs[i : i + 500] for i in range(0, len(pairs), 500)]
        programs = [f"answer = [repr(round(x) if n is None else round(x, n)) for x, n in {c}]" for c in chunks]
        for chunk, result in zip(chunks, monty.run_many(programs), strict=True):
            assert result.value == [repr(round(x) if n is None else round(x, n)) for x, n in chunk]

    def test_round_in_a_last_expression(self, monty):
        assert run(monty, "round(2.675, 2)").value == 2.67

    @pytest.mark.parametrize("call", ["round(float('nan'))", "round(float('inf'))", "round(2.5, 1.0)", "round('2')"])
    def test_round_raises_where_cpython_does(self, monty, call):
        assert run(monty, f"answer = {call}").status == "error"

    @pytest.mark.parametrize("call", ["round(2.675, ndigits=2)", "round(number=2.5)", "round(float('nan'), 2)"])
    def test_round_in_other_spellings(self, monty, call):
        assert run(monty, f"answer = repr({call})").value == repr(eval(call))


class TestLimits:
    @pytest.mark.parametrize("kind", FAILURES)
    def test_failures_give_the_reason(self, monty, kind):
        program, status, error = FAILURES[kind]
        result = run(monty, program)
        assert (result.status, result.value, result.type) == (status, None, None)
        assert error in result.error

    def test_failing_programs_do_not_affect_others(self, executor):
        good = [f"answer = {n} * 7" for n in range(300)]
        bad = [program + "  # again" for program, status, _ in FAILURES.values() if status != "unsupported"]
        mixed = [(program, None) for program in bad] + [(program, 7 * n) for n, program in enumerate(good)]
        random.Random(0).shuffle(mixed)
        results = executor.run_many([program for program, _ in mixed])
        for (program, expected), result in zip(mixed, results, strict=True):
            assert (result.value, result.status == "ok") == (expected, expected is not None), program

    def test_a_program_cannot_tamper_with_the_next(self, executor):
        trap = (
            "round = len = max = lambda *a, **k: 666\n_hand_over = lambda v: 666\nimport math\nmath.pi = 3\nanswer = 1"
        )
        results = executor.run_many([trap, *(f"import math\nanswer = round(max(math.pi, {n}))" for n in range(50))])
        assert [result.value for result in results[1:]] == [max(3, n) for n in range(50)]

    @pytest.mark.parametrize("engine", ["monty", pytest.param("jail", marks=needs_jail)])
    def test_output_is_truncated_at_the_limit(self, engine):
        with Executor(engine, limits=Limits(stdout_chars=10)) as executor:
            result = run(executor, "print('é' * 8)\nprint('abc')\nanswer = 5")
            assert (result.value, result.stdout) == (5, "é" * 8 + "\na")
            assert run(executor, "print('hello')\nanswer = 5").stdout == "hello\n"

    def test_sleep_is_skipped_and_random_numbers_are_seeded(self, each):
        assert run(each, "import time\ntime.sleep(1000)\nanswer = 5").value == 5
        draws = each.run_many([f"import random\nanswer = random.random()  # {n}" for n in range(5)])
        assert len({result.value for result in draws}) == 1

    @pytest.mark.parametrize("engine", ["monty", pytest.param("jail", marks=needs_jail)])
    def test_the_memory_limit_is_obeyed(self, engine):
        program = "answer = len('a' * 20_000_000)"
        small, large = (Executor(engine, limits=Limits(memory_mb=megabytes)) for megabytes in (10, 50))
        with small, large:
            assert run(small, program).status == "memory"
            assert run(large, program).value == 20_000_000

    @pytest.mark.parametrize("limits", [{"seconds": 0}, {"memory_mb": -1}, {"seconds": math.nan}, {"stdout_chars": 0}])
    def test_limits_must_be_positive_and_finite(self, limits):
        ((name, value),) = limits.items()
        with pytest.raises(ValueError, match=rf"Limits\({name}={value}\) must be"):
            Limits(**limits)


class TestExecutor:
    def test_results_are_in_order_and_equal_programs_run_once(self, executor):
        programs = [f"answer = {n % 7}  # in order" for n in range(100)]
        results = executor.run_many(iter(programs))
        assert [result.value for result in results] == [n % 7 for n in range(100)]
        assert len({id(result) for result in results}) == 7
        assert executor.run_many(programs[:1])[0] is results[0]

    def test_a_result_has_every_field(self, executor):
        result = run(executor, "print('hi')\nanswer = 5")
        assert result == Result("ok", 5, "int", None, "hi\n", result.seconds, "monty")
        assert 0 < result.seconds < 60
        assert run(executor, "not a program").engine == "monty"

    def test_no_program(self, executor):
        assert executor.run_many([]) == []

    def test_progress_bar(self, executor, capsys, monkeypatch):
        monkeypatch.setattr("md_trl.progress.LOG_SECONDS", 0.0)
        executor.run_many([f"answer = {n}  # shown" for n in range(3)], progress=True)
        assert "3/3" in capsys.readouterr().err

    def test_from_several_threads(self, executor):
        with ThreadPoolExecutor(4) as threads:
            batches = [[f"answer = {n} + {k}  # threads" for n in range(30)] for k in range(4)]
            for k, results in enumerate(threads.map(executor.run_many, batches)):
                assert [result.value for result in results] == [n + k for n in range(30)]

    def test_leaves_no_process_behind(self):
        before = set(psutil.Process().children(recursive=True))
        with Executor("monty", limits=Limits(seconds=0.2)) as executor:
            executor.run_many(["while True:\n    pass", "answer = 10 ** 10 ** 8", "answer = 5"])
            workers = set(psutil.Process().children(recursive=True)) - before
            assert {worker.name() for worker in workers} == {"monty"}
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert alive == []

    def test_an_unknown_engine_is_an_error(self):
        with pytest.raises(ValueError, match="Unknown engine 'docker'. Choose one of auto, monty, jail"):
            Executor(engine="docker")

    def test_running_outside_the_context_is_an_error(self):
        with pytest.raises(RuntimeError, match="Use it as `with"):
            Executor().run_many(["answer = 1"])

    def test_imports_no_torch(self):
        code = "import sys, md_trl.execution; print('torch' in sys.modules)"
        assert subprocess.check_output([PYTHON, "-c", code], text=True).strip() == "False"


@needs_shared("data/svamp_teacher")
class TestRealPrograms:
    def test_the_teachers_programs_compute_their_answers(self, executor):
        rows = json.loads((SHARED / "data/svamp_teacher/pot.json").read_text())
        results = executor.run_many([row["answer_cot"] for row in rows])
        assert len(rows) == 3043 and {result.status for result in results} == {"ok"}
        wrong = [
            (row["answer_value"], result.value)
            for row, result in zip(rows, results, strict=True)
            if not equal(result.value, row["answer_value"])
        ]
        # These three answers are rounded in the file.
        assert wrong == [("0.3333", 0.33335), ("0.165", 0.16665), ("0.25", 0.24916666666666668)]


def test_limits_are_not_an_argument_of_run_many(executor):
    with pytest.raises(TypeError):
        executor.run_many(["answer = 1"], Limits(seconds=0.5))


@pytest.mark.parametrize(("text", "value"), [("1E+5", "100000"), ("2.50", "2.50"), ("1E-7", "0.0000001")])
def test_decimals_have_no_exponent(text, value):
    assert to_json(Decimal(text)) == value
    assert to_json(Decimal("1E+99999999")) == "1e+99999999"
