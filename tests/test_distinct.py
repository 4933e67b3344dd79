"""Thoughts are the same up to the names of variables, and the words around numbers; and never otherwise."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from md_trl.distinct import program_key, prose_key, thought_key


NAMES = st.lists(
    st.from_regex(r"[a-z]{2,6}_\d", fullmatch=True), min_size=6, max_size=6, unique=True
)  # no builtin, no keyword
NUMBERS = st.one_of(st.integers(0, 999).map(str), st.decimals(0, 99, places=2).map(str))


@st.composite
def programs(draw):
    """A program whose variables are written {0} to {5}, and its numbers as <number>."""
    lines, known = [], []
    for name in range(draw(st.integers(1, 5))):
        terms = [
            draw(st.sampled_from(known)) if known and draw(st.booleans()) else f"<{draw(NUMBERS)}>" for _ in range(3)
        ]
        operators = [draw(st.sampled_from("+-*/")) for _ in range(2)]
        lines.append(f"{{{name}}} = {terms[0]} {operators[0]} {terms[1]} {operators[1]} {terms[2]}")
        known.append(f"{{{name}}}")
    shape = draw(st.sampled_from(["plain", "function", "loop", "lambda"]))
    if shape == "function":
        lines = ["def {5}():", *("    " + line for line in lines)]
        lines += [f"    return {known[-1]}", "print({5}())"]
    elif shape == "loop":
        lines += [f"for {{5}} in range(<3>):\n    {known[-1]} += {{5}}", f"print(f'{{{{{known[-1]}}}}}')"]
    elif shape == "lambda":
        lines += [f"{{5}} = lambda {known[0]}: {known[0]} * <2>", f"print({{5}}({known[-1]}), sum([{{0}}, <1>]))"]
    return "\n".join(lines)


def written(program, names):
    return re.sub(r"<([\d.]+)>", r"\1", program.format(*names))


@given(program=programs(), names=NAMES, others=NAMES)
def test_the_names_of_variables_do_not_matter(program, names, others):
    compile(written(program, names), "", "exec")
    assert program_key(written(program, names)) == program_key(written(program, others))
    fenced = f"Here is the program:\n```python\n{written(program, others)}  # as asked\n```"
    assert program_key(written(program, names)) == program_key(fenced)


@given(program=programs(), names=NAMES, data=st.data())
def test_a_changed_number_matters(program, names, data):
    places = list(re.finditer(r"<([\d.]+)>", program))
    if not places:
        return
    place = data.draw(st.sampled_from(places))
    number = data.draw(NUMBERS.filter(lambda number: float(number) != float(place[1])))
    changed = program[: place.start()] + f"<{number}>" + program[place.end() :]
    assert program_key(written(program, names)) != program_key(written(changed, names))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a = 1\nanswer = a + 2", "b=1;result=b+2", True),
        ("a: int = 1\nprint(a)", "# one\na = 1\nprint(a)", True),
        ('def solution():\n    """How many?"""\n    x = 3\n    return x', "def f():\n    y = 3\n    return y", True),
        ("def f(a: int) -> int:\n    return a\nf(a=2)", "def g(b):\n    return b\ng(b=2)", True),
        ("import math as m\nx = m.sqrt(4)", "import math as n\ny = n.sqrt(4)", True),
        ("x = [i * 2 for i in range(3)]", "y = [j * 2 for j in range(3)]", True),
        ("x = 0\ndef f():\n    global x\n    x = 1\nf()", "y = 0\ndef g():\n    global y\n    y = 1\ng()", True),
        (
            "try:\n    x = 1\nexcept KeyError as e:\n    x = e",
            "try:\n    z = 1\nexcept KeyError as k:\n    z = k",
            True,
        ),
        ("match 1:\n    case a:\n        b = a", "match 1:\n    case c:\n        d = c", True),
        ("a = 1\nb = 2\nanswer = a + b", "a = 1\nb = 2\nanswer = b + a", False),
        ("answer = 2 * 3", "answer = 2 + 3", False),
        ("answer = max(2, 3)", "answer = min(2, 3)", False),
        ("answer = 'Ann'", "answer = 'Bob'", False),
        ("import math\nx = math.sqrt(4)", "import math\nx = math.floor(4)", False),
        ("a = 1\nb = a\nprint(a)", "a = 1\nb = a\nprint(b)", False),
        ("this is no program", "this is no program either", False),
        ("answer = 0x" + "f" * 5000, "answer = 0x" + "e" * 5000, False),
        ("answer = " + "+".join("1" * 3000), "answer = " + "+".join("2" * 3000), False),
    ],
)
def test_programs(one, other, same):
    assert (program_key(one) == program_key(other)) == same
    assert thought_key(one, "pot") == program_key(one)


WORDS = st.lists(st.sampled_from("then she has of the pens so total Ann".split()), min_size=1, max_size=4)
TEXTS = st.lists(WORDS.map(" ".join), min_size=14, max_size=14)


@given(numbers=st.lists(NUMBERS, min_size=1, max_size=6), words=TEXTS, data=st.data())
def test_prose_is_its_numbers(numbers, words, data):
    def told(numbers, words):
        return " ".join(part for pair in zip(words, numbers, strict=False) for part in pair) + f" {words[-1]}."

    assert prose_key(told(numbers, words[:7])) == prose_key(told(numbers, words[7:]))
    place = data.draw(st.integers(0, len(numbers) - 1))
    number = data.draw(NUMBERS.filter(lambda number: float(number) != float(numbers[place])))
    changed = [*numbers[:place], number, *numbers[place + 1 :]]
    assert prose_key(told(numbers, words)) != prose_key(told(changed, words))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("5 + 3 = 8. The answer is 8.", "We add: 5+3=8, so the answer is 8.", True),
        ("5 × 3 = 15", "5 * 3 = 15", True),
        ("5 x 3 = 15", "5 * 3 = 15", True),
        ("10 – 3 = 7", "10 - 3 = 7", True),
        ("$1,200 / 4 = $300.00", "1200 ÷ 4 = 300", True),
        ("1. Add 5 + 3.\n2. So 8.", "Add 5 + 3. So 8.", True),
        ("Step 1: 5 + 3 = 8", "First, 5 + 3 = 8", True),
        ("A well-known box of 5.", "A box of 5.", True),
        ("5 + 3 = 8", "3 + 5 = 8", False),
        ("5 + 3 = 8", "5 - 3 = 8", False),
        ("Ann has 5. 5 + 3 = 8", "Ann has 6. 5 + 3 = 8", False),
        ("2.5 + 1", "25 + 1", False),
        ("He drew 1,2,3.", "He drew 12,3.", False),
        ("He drew 1, 2, 3.", "He drew 1,2,3.", True),
        ("Yes, a dog barks.", "yes a dog  barks", True),
        ("Yes, a dog barks.", "Yes, a cat meows.", False),
    ],
)
def test_prose(one, other, same):
    assert (prose_key(one) == prose_key(other)) == same
    assert thought_key(one, "cot") == prose_key(one)


@given(st.one_of(st.text(), st.text(alphabet="0123456789.,=+-x \n()"), st.text(alphabet="ab =+1\n\t():[]{}f'\"")))
def test_every_text_has_keys(text):
    assert isinstance(program_key(text), str) and isinstance(prose_key(text), str)
