import decimal
import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction

import numpy
import pytest
from conftest import SHARED, needs_shared
from hypothesis import assume, example, given
from hypothesis import strategies as st

from md_trl.answers import NO_ANSWER, answer_of_value, canonical, equal, extract


DATA = SHARED / "data"

# Pieces of answers, so that random strings come close to being answers.
PIECES = (
    """
0 1 2 9 15 100 1,234 3.5 0.25 . , ; : / - + * ^ = ( ) [ ] { } < > $ € % \\ # ~ _ ' " ° x e
the a an and or to of yes no true false five twenty half thirds million hundred feet inches p.m. am
\\frac \\sqrt \\boxed{ \\text{ {,} #### answer the\x20answer\x20is about only because nan inf ½ ² − ٣ ß İ ﬁ ①
""".split()
    + [" ", "\n", "\u00a0", "\x00"]
)
wild = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(PIECES), max_size=14).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=10).map(" ".join),
)
values = st.one_of(
    wild,
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.fractions(),
    st.decimals(),
    st.lists(st.one_of(wild, st.integers(), st.floats()), max_size=4),
)

CANONICAL = [
    # plain numbers
    ("5", "5"),
    ("007", "7"),
    ("٣٫٥", "3.50"),
    ("٣٬٠٠٠", "3000"),
    ("+5", "5"),
    ("-7", "-7"),
    ("٣", "3"),
    ("−7", "-7"),
    ("minus 7", "-7"),
    ("-0.0", "0"),
    ("5.", "5"),
    ("5.0", "5"),
    (".5", "0.5000"),
    ("3.5", "3.50"),
    ("1.005", "1.01"),
    ("2.675", "2.68"),
    ("-2.675", "-2.68"),
    ("1.2249999999999999", "1.23"),
    ("1.999", "2"),
    ("0.99994", "0.9999"),
    ("0.99996", "1"),
    ("0.00012345", "0.0001235"),
    ("4.9999999999", "5"),
    ("4.999", "5"),
    ("4.99", "4.99"),
    ("1000000.0001", "1000000"),
    ("123456789012345678901234567890", "123456789012345678901234567890"),
    ("1e3", "1000"),
    ("1.6 x 10^3", "1600"),
    ("1.6 \\times 10^{3}", "1600"),
    ("1.6e-19", "1.600e-19"),
    ("inf", "inf"),
    ("-Infinity", "-inf"),
    # separators, currency, percent, units
    ("1,080", "1080"),
    ("109,200,000", "109200000"),
    ("1{,}234", "1234"),
    ("₹1,00,000", "100000"),
    ("1 234", "1234"),
    ("-1\u202f234\u202f567.50 km", "-1234567.50"),
    ("1'234", "1234"),
    ("1_000", "1000"),
    ("2 500/1000", "2.50"),
    ("100-200", "100-200"),
    ("1,000 + 500", "1500"),
    ("$2k", "2000"),
    ("2 km", "2"),
    ("$1,234.50", "1234.50"),
    ("\\$3239", "3239"),
    ("-$5", "-5"),
    ("$-5", "-5"),
    ("5¢", "5"),
    ("USD 5", "5"),
    ("25%", "25"),
    ("25\\%", "25"),
    ("25 percent", "25"),
    ("9 (apples)", "9"),
    ("14  (seats)", "14"),
    ("8 (sq. ft)", "8"),
    ("10 m²", "10"),
    ("80 degrees", "80"),
    ("90^\\circ", "90"),
    ("16-inch", "16"),
    ("5 km/hour", "5"),
    ("$5.00 per apple", "5"),
    ("60 miles in 2 hours", "60"),
    ("about 5", "5"),
    ("The 60th caller.", "60"),
    ("5 third graders", "5"),
    ("$5 million", "5000000"),
    ("five hundred", "500"),
    # fractions and mixed numbers
    ("1/3", "0.3333"),
    ("-(1/3)", "-0.3333"),
    ("5/2", "2.50"),
    ("6/3", "2"),
    ("2 1/2", "2.50"),
    ("2½", "2.50"),
    ("2 and 1/2", "2.50"),
    ("two and a half hours", "2.50"),
    ("two thirds", "0.6667"),
    ("3 quarters", "3"),
    ("3/4 of a pound", "0.7500"),
    ("3/0", "3 0"),
    # words
    ("twelve", "12"),
    ("Twenty", "20"),
    ("twenty-five", "25"),
    ("one hundred and five apples", "105"),
    ("a thousand", "1000"),
    ("two million three hundred thousand and twelve", "2300012"),
    ("five six", "five six"),
    ("five and ten", "5;10"),
    ("a hundredth", "hundredth"),
    # times and ratios
    ("5:15", "5:15"),
    ("05:15", "5:15"),
    ("3:30 p.m.", "15:30"),
    ("3:30 PM", "15:30"),
    ("12:10 a.m.", "0:10"),
    ("3 pm", "15:00"),
    ("9:03:36 a.m.", "9:03:36"),
    ("6:01:00 p.m.", "18:01"),
    ("11:55 p.m. on 24 December 2014.", "23:55"),
    ("5:6", "5:6"),
    ("6:8", "3:4"),
    ("3 to 4", "3:4"),
    ("10:12", "10:12"),
    # several parts
    ("12;8", "12;8"),
    ("12 (cm); 8 (cm)", "12;8"),
    ("17 (years old); 12 (years old)", "17;12"),
    ("12 and 8", "12;8"),
    ("12, 8 and 4", "12;8;4"),
    ("(12, 8)", "12;8"),
    ("[12, 8.5]", "12;8.50"),
    ("3.5 (dollars); 1.8 (dollars)", "3.50;1.80"),
    ("3 hours and 20 minutes", "3;20"),
    ("5 feet 6 inches", "5;6"),
    ("5 ft 6 in", "5;6"),
    # LaTeX and arithmetic
    ("$5$", "5"),
    ("\\boxed{42}", "42"),
    ("\\frac{3}{4}", "0.7500"),
    ("$\\frac34$", "0.7500"),
    ("\\boxed{\\cfrac{3}{4}}", "0.7500"),
    ("\\frac{1,000}{4}", "250"),
    ("3\\frac{1}{2}", "3.50"),
    ("2\\sqrt{3}", "3.46"),
    ("5\\text{ apples}", "5"),
    ("3 × 4", "12"),
    ("(1+2)/4", "0.7500"),
    ("x = 5", "5"),
    ("5 + 6 = 11", "11"),
    # not arithmetic
    ("5-6", "5 6"),
    ("2014-12-24", "2014 12 24"),
    ("5 or 6", "5 or 6"),
    ("3 out of 4", "3 out of 4"),
    ("2x", "2x"),
    # yes and no
    ("Yes", "yes"),
    ("TRUE.", "yes"),
    ("no", "no"),
    ("**False**", "no"),
    # words
    ("neither day", "neither day"),
    ("The Cooper wedding!", "cooper wedding"),
    ("Cesar's toothbrush", "cesars toothbrush"),
    ("Cesar’s toothbrush", "cesars toothbrush"),
    ("February 3rd", "february 3rd"),
    ("Rug B", "rug b"),
    ("Plan A", "plan a"),
    ("(A)", "a"),
    ("The answer is neither day.", "neither day"),
    # nothing
    ("", ""),
    (" \n", ""),
    ("...", ""),
    ("NaN", "nan"),
    # values of programs
    (None, ""),
    (True, "yes"),
    (False, "no"),
    (2.0, "2"),
    (0.1 + 0.2, "0.3000"),
    (1e22, "10000000000000000000000"),
    (2 / 3, "0.6667"),
    (float("nan"), "nan"),
    (float("-inf"), "-inf"),
    (Fraction(8, 4), "2"),
    (Fraction(-1, 3), "-0.3333"),
    (Decimal("1.10"), "1.10"),
    (10**30 + 1, "1000000000000000000000000000001"),
    ([12, 8.5], "12;8.50"),
    ((5,), "5"),
    ([], ""),
]

STRICT = [
    ("The answer is $5.00 per apple.", "5"),
    ("The answer is Rs. 500.", "500"),
    ("The answer is No. 5.", "no 5"),
    ("The answer is ５.", "5"),
    ("The answer is 3.5.", "3.50"),
    ("The answer is 1,234.", "1234"),
    ("the answer is -7", "-7"),
    ("The answer is neither day.", "neither day"),
    ("The answer is 3 hours and 20 minutes.", "3;20"),
    ("Therefore, the answer is <203>.", "203"),
    ("Therefore, the answer is <6%>.", "6"),
    ("The answer is \\$3239.", "3239"),
    ("The answer is 80 degrees.", "80"),
    ("#### 72", "72"),
    ("Some steps.\n#### 1,080", "1080"),
    ("So it is \\boxed{\\frac{3}{4}}.", "0.7500"),
    ("The answer is $\\boxed{5}$.", "5"),
    ("The answer is: $$\\boxed{5}$$", "5"),
    ("The answer is\n\n12", "12"),
    ("The answer is: **12 and 8**.", "12;8"),
    ("The answers are 12, 15 and 18.", "12;15;18"),
    ("**Answer:** 5", "5"),
    ("Final answer: $1,080", "1080"),
    ("The answer to the question is 12.", "12"),
    ("So the answer should be 12.", "12"),
    ("The answer is that Tom has 5 apples.", "5"),
    ("The answer is 42, because 40 + 2 = 42.", "42"),
    ("The answer is that x is 42, since 40 + 2 = 42.", "42"),
    ("The answer is 5 + 6 = 11.", "11"),
    ("The answer is $12.50, or 12 dollars and 50 cents.", "12.50"),
    ("The answer is 1.5 hours (90 minutes).", "1.50"),
    ("The answer is 5/8 cup.", "0.6250"),
    ("The answer is 3:30 p.m. on Monday.", "15:30"),
    ("The answer is Mrs. Hilt. She won.", "mrs hilt"),
    ("The answer is Rug B. It is cheaper.", "rug b"),
    ("The answer is Brand B, not Brand A.", "brand b"),
    ("So the answer is no.", "no"),
    ("The answer is yes, because he can.", "yes"),
    ("The answer is 5. Then again, the answer is 6.", "6"),
    ("The answer is 5. The answer is .", "5"),
    ("The answer is not 5 but it is 6.", "6"),
]

# Clauses that a thought may state after `The answer is`, or that a program may print.
SHORT_CLAUSES = [
    ("The total is 12", "12"),
    ("The total is 12.", "12"),
    ("The total is twelve", "12"),
    ("Total = 12", "12"),
    ("Total 12", "12"),
    ("Profit: $5", "5"),
    ("It costs $5", "5"),
    ("x is 7", "7"),
    ("x is -7", "-7"),
    ("equals 7", "7"),
    ("She picked 7", "7"),
    ("Tom has 5", "5"),
    ("Tom has five apples", "5"),
    ("There are twenty", "20"),
    ("at least 12", "12"),
    ("12 out of 20", "12"),
    ("12 out of 20 apples", "12"),
    ("$12 out of $20", "12"),
    ("twelve out of twenty", "12"),
    ("12 of 20", "12"),
    ("12 of the 20 apples", "12"),
    ("5 more than 3", "5"),  # as is "5 dollars more than 3 dollars"
    ("The score is 12 out of 20", "12"),
    ("The number of days in 2 weeks is 14", "14"),
    ("The original number is 76.7 million.", "76700000"),
    ("The ratio is 3:4", "3:4"),
    ("The time is 3:30 p.m.", "15:30"),
    ("The lengths are 12 and 8", "12;8"),
]
NAMES = [
    "neither day",
    "first day",
    "united states",
    "rug 2",
    "bus number 5",
    "room 12",
    "apollo 11",
    "world war 2",
    "february 3rd",
]
SEVERAL_NUMBERS = [
    "Tom is 12. Ann is 5.",
    "Tom is 12 and Ann is 5",
    "The cost of the bag is $35 and the cost of the hat is $59",
    "25% of 80",
    "0.5 of 80",
    "5 or 6",
]

FLEXIBLE = [
    ("So she has 5 apples left.", "5"),
    ("The total is 3.5.", "3.50"),
    ("5 - 7 = -2", "-2"),
    ("He counts 5-7 of them", "7"),
    ("It costs $1,080 in all", "1080"),
    ("He ate 2 1/2 pies", "2.50"),
    ("They meet at 5:15", "5:15"),
    ("They meet at 5:15 p.m. or so.", "17:15"),
    ("They meet at 5pm.", "17:00"),
    ("It weighs 15 mg", "15"),
    ("It is −5 then.", "-5"),
    ("The area is 12 m².", "12"),
    ("He is left with $2\\frac{3}{4}$.", "2.75"),
    ("It weighs 1.5 x 10^3 g.", "1500"),
    ("Yes.", "yes"),
    ("He could. So yes.", "yes"),
    ("2008 was later. Therefore, no.", "no"),
    ("So the claim is false.", "no"),
    ("No, only 5 did.", "5"),
    ("It is not clear. First 5, then 6.", "6"),
]

NOTHING = ["", "there are no apples", "I do not know", "The answer is .", "####", "\\boxed{}"]


class TestCanonical:
    @pytest.mark.parametrize(("value", "expected"), CANONICAL, ids=repr)
    def test_table(self, value, expected):
        assert canonical(value) == expected

    @pytest.mark.parametrize("text", ["6", "six"])
    def test_a_text_of_numpy_becomes_a_plain_one(self, text):
        assert type(canonical(numpy.str_(text))) is str

    @given(values)
    @example("1e9999999999")
    @example(Fraction(1820448727, 173))  # rounds to within 1e-9 of an integer
    def test_is_its_own_canonical_form(self, value):
        assert canonical(canonical(value)) == canonical(value)

    @given(st.one_of(st.integers(), st.floats(allow_nan=False)))
    def test_a_number_has_the_canonical_form_of_its_text(self, number):
        assert canonical(number) == canonical(str(number))

    @given(st.integers(min_value=-(10**9), max_value=10**9), st.integers(min_value=1, max_value=10**4))
    def test_rounding_against_exact_arithmetic(self, numerator, denominator):
        exact = Fraction(numerator, denominator)
        # Stay far from the rules for noise and for integers, which have their own tests.
        assume(exact and abs(exact) < 10**6 and abs(exact - round(exact)) * 10**6 > abs(round(exact)))
        digits = 2 if abs(exact) >= 1 else 3 - math.floor(math.log10(abs(exact)))
        half_up = Fraction(math.floor(abs(exact) * 10**digits + Fraction(1, 2)), 10**digits)
        written = canonical(exact)
        assert Fraction(written) == half_up * (1 if exact > 0 else -1)
        assert "." not in written or len(written.partition(".")[2]) >= 2

    @given(st.integers(), st.integers(min_value=0, max_value=200))
    def test_integers_are_exact_at_any_size(self, integer, zeros):
        text = f"{integer}{'0' * zeros}" if integer else "0"
        assert canonical(text) == canonical(int(text)) == text

    def test_within_a_billionth_of_an_integer_is_that_integer(self):
        assert canonical("1000000000.9") == "1000000001"
        assert canonical(10**9 + Fraction(9, 10)) == "1000000001"
        assert canonical("5.000000004") == "5"
        # The distance is relative, so no other number is within reach of zero.
        assert not equal("1e-12", "0")
        assert not equal("1.6e-19", "9.1e-31")

    @pytest.mark.parametrize(
        "text",
        [
            "9**9**9",
            "9^{9^9}",
            "((9^9)^9)^9",
            "99999!!!",
            "10^99*10^99^99",
            "1e999999999",
            "1/1e999999999",
            "9" * 10**6,
            "9" * 10**6 + "/7",
            "1," * 10**5,
            "1;" * 10**5,
            "(" * 10**5,
            "\\frac{" * 10**4,
            "\\boxed{" * 10**4,
            "{" * 50 + "1" + "}" * 50 + "+1",
            "a " * 10**5,
            "\n" * 10**5 + "x",
            "$" * 10**5,
            "½" * 10**4,
            "1" + ",111" * 10**5,
            "\\sqrt{" * 15 + "99999999999999999999" + "}" * 15,
            "answer is " * 10**4,
            "is 5 of the 5 has " * 10**4,
            "####" * 10**4,
            "1" + " " * 990 + "!x",
            "\x00\ud800",
        ],
        ids=lambda text: f"{text[:12]!r}x{len(text)}",
    )
    def test_hostile_texts_take_bounded_time(self, text):
        assert canonical(canonical(text)) == canonical(text)
        assert isinstance(extract(text), (str, type(None)))
        assert isinstance(answer_of_value(text), str)

    def test_a_million_digits_stay_exact(self):
        digits = "123456789" * 10**5
        assert canonical(digits) == digits == canonical(f"{digits}.0")
        assert canonical(digits + "0" * 10_000) == digits + "0" * 10_000
        assert canonical(digits + "0" * 10_001) == digits + "e10001" == canonical(digits + "e10001")
        assert not equal(digits, digits[:-1] + "8")

    def test_latex_works_in_threads(self):
        texts = [f"\\frac{{{n}}}{{7}}" for n in range(1, 60)]
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(canonical, texts)) == [canonical(Fraction(n, 7)) for n in range(1, 60)]

    def test_the_users_decimal_context_does_not_matter(self):
        with decimal.localcontext() as context:
            context.prec, context.rounding = 2, decimal.ROUND_UP
            context.traps[decimal.Inexact] = True
            assert [canonical(value) for value in ("4.9999999999", "1234.561", 2 / 3, "1/3")] == [
                "5",
                "1234.56",
                "0.6667",
                "0.3333",
            ]

    def test_importing_answers_is_light(self):
        heavy = {"torch", "numpy", "sympy", "math_verify"}
        code = f"import sys, md_trl.answers, md_trl.voting; print({heavy} & set(sys.modules))"
        assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"

    def test_latex_uses_no_signals_and_logs_no_warning(self):
        code = (
            "import signal, threading\n"
            "from md_trl.answers import canonical\n"
            "signal.signal = signal.alarm = None\n"
            "thread = threading.Thread(target=lambda: print(canonical('2\\\\sqrt{3}')))\n"
            "thread.start()\n"
            "thread.join()\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert (done.stdout.strip(), done.stderr) == ("3.46", "")

    def test_a_broken_math_verify_is_no_unreadable_answer(self):
        code = "import sys; sys.modules['math_verify'] = None; from md_trl.answers import canonical; canonical('3*4')"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "ModuleNotFoundError: import of math_verify halted" in done.stderr


class TestEqual:
    @given(values, values, values)
    def test_is_an_equivalence(self, a, b, c):
        assert equal(a, a)
        assert equal(a, b) == equal(b, a)
        if equal(a, b) and equal(b, c):
            assert equal(a, c)

    @pytest.mark.parametrize(
        ("a", "b", "expected"),
        [
            ("1,080 dollars", 1080.0, True),
            ("2/3", 0.6666666666666666, True),
            ("2/3", "0.667", False),
            ("$0.50", "1/2", True),
            ("25%", "0.25", False),
            ("True", "yes", True),
            ("3:30 p.m.", "15:30", True),
            ("3:30 p.m.", "3:30 a.m.", False),
            ("12;8", "8;12", False),
            ("Neither day.", "neither day", True),
            ("5 feet 6 inches", "5", False),
        ],
    )
    def test_table(self, a, b, expected):
        assert equal(a, b) is expected


class TestExtract:
    @pytest.mark.parametrize(("text", "expected"), STRICT)
    def test_stated(self, text, expected):
        assert extract(text, strict=True) == extract(text) == expected

    @pytest.mark.parametrize(("clause", "expected"), SHORT_CLAUSES)
    def test_stated_in_a_short_clause(self, clause, expected):
        assert extract(f"The answer is {clause}", strict=True) == expected
        assert extract(f"The answer is: {clause}.", strict=True) == expected

    @pytest.mark.parametrize("name", NAMES)
    def test_stated_name_with_a_number(self, name):
        assert extract(f"The answer is {name}.", strict=True) == name

    @pytest.mark.parametrize("clause", SEVERAL_NUMBERS[1:])
    def test_stated_clause_with_several_numbers(self, clause):
        assert extract(f"The answer is {clause}", strict=True) == canonical(clause)

    @pytest.mark.parametrize(("text", "expected"), FLEXIBLE)
    def test_flexible(self, text, expected):
        assert extract(text) == expected
        assert extract(text, strict=True) is None

    @pytest.mark.parametrize("text", NOTHING)
    def test_nothing(self, text):
        assert extract(text) is None
        assert extract(text, strict=True) is None

    @given(wild)
    def test_any_text(self, text):
        strict, flexible = extract(text, strict=True), extract(text)
        if strict is not None:
            assert flexible == strict
        for answer in {strict, flexible} - {None}:
            assert answer not in NO_ANSWER
            assert canonical(answer) == answer

    @given(
        st.integers(min_value=-(10**12), max_value=10**12),
        st.sampled_from(
            ["The answer is {}.", "#### {}", "Therefore, the answer is <{}>.", "It is \\boxed{{{}}}.", "Answer: {}"]
        ),
    )
    def test_a_written_number_is_extracted(self, number, form):
        assert extract(f"First 12 and 5.\n{form.format(f'{number:,}')}") == str(number)


class TestAnswerOfValue:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("Total: $5.00", "5"),
            ("Tom has 5 apples left.", "5"),
            ("The train leaves at: 5:15", "5:15"),
            ("He filled 5 of the 7 cups.", "he filled 5 of 7 cups"),
            ("neither day", "neither day"),
            ("Rug 2", "rug 2"),
            ("12 and 8", "12;8"),
            (5.0, "5"),
            ([1, 2], "1;2"),
            ("", ""),
        ],
    )
    def test_table(self, value, expected):
        assert answer_of_value(value) == expected

    @pytest.mark.parametrize(("value", "expected"), SHORT_CLAUSES)
    def test_short_clauses(self, value, expected):
        assert answer_of_value(value) == expected

    @pytest.mark.parametrize("value", NAMES)
    def test_names_with_a_number_stay_text(self, value):
        assert answer_of_value(value) == value.lower()

    @pytest.mark.parametrize("value", SEVERAL_NUMBERS)
    def test_clauses_that_state_several_numbers_stay_text(self, value):
        assert answer_of_value(value) == canonical(value)
        assert not re.fullmatch(r"[-\d.;:]+", answer_of_value(value))

    @given(values)
    def test_the_answer_is_its_own_canonical_form(self, value):
        assert canonical(answer_of_value(value)) == answer_of_value(value)


@needs_shared("data/SVAMP.json", "data/gsm8k", "data/ASDiv.xml", "data/svamp_teacher")
class TestGoldAnswers:
    def read(self, task):
        if task == "gsm8k":
            lines = [line for split in ("train", "test") for line in (DATA / f"gsm8k/{split}.jsonl").open()]
            return [json.loads(line)["answer"].split("####")[1].strip() for line in lines]
        if task == "svamp":
            return [row["Answer"] for row in json.loads((DATA / "SVAMP.json").read_text())]
        return [problem.findtext("Answer") for problem in ElementTree.parse(DATA / "ASDiv.xml").iter("Problem")]

    @pytest.mark.parametrize(("task", "size"), [("gsm8k", 8792), ("svamp", 1000), ("asdiv", 2305)])
    def test_every_gold_answer_is_an_answer_and_equals_itself(self, task, size):
        golds = self.read(task)
        assert len(golds) == size
        for gold in golds:
            assert canonical(gold) not in NO_ANSWER
            assert equal(gold, gold) and equal(gold, canonical(gold))

    def test_numbers_keep_their_value(self):
        assert all(Fraction(canonical(gold)) == Fraction(gold.replace(",", "")) for gold in self.read("gsm8k"))
        assert all(Fraction(canonical(gold)) == Fraction(gold) for gold in self.read("svamp"))

    def test_asdiv_answers_of_each_form(self):
        forms = {"number": 0, "parts": 0, "ratio or time": 0, "fraction": 0, "words": 0}
        for gold in self.read("asdiv"):
            found = canonical(gold)
            if number := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:\([^()]*\))?", gold):
                forms["number"] += 1
                assert math.isclose(float(found), float(number[1]), abs_tol=0.005)
            elif ";" in gold:
                forms["parts"] += 1
                numbers = re.findall(r"[\d.]+", re.sub(r"\(.*?\)", "", gold))
                assert [float(part) for part in found.split(";")] == [float(number) for number in numbers]
            elif ":" in gold:
                forms["ratio or time"] += 1
                assert re.fullmatch(r"\d+:\d+(:\d\d)?", found)
            elif fraction := re.fullmatch(r"(-?)\(?(\d+)/(\d+)\)?", gold):
                forms["fraction"] += 1
                exact = int(fraction[2]) / int(fraction[3]) * (-1 if fraction[1] else 1)
                assert math.isclose(float(found), exact, rel_tol=1e-3)
            elif found in ("yes", "no"):
                assert gold.lower() == found
            elif not re.match(r"(The )?\d", gold):
                forms["words"] += 1
                assert found == re.sub(r"[^a-z0-9 ]", "", gold.lower().removeprefix("the "))
        assert forms == {"number": 2084, "parts": 90, "ratio or time": 61, "fraction": 9, "words": 53}

    def test_every_teacher_cot_states_its_answer(self):
        rows = json.loads((DATA / "svamp_teacher/cot.json").read_text())
        wrong = [row for row in rows if not equal(extract(row["answer_cot"], strict=True), row["answer_value"])]
        # The file rounds these answers: 8.9333 stated as 9, 0.3333 as 0.33335, 0.165 as 0.17, 69.4 as 69.32.
        assert [row["answer_value"] for row in wrong] == ["8.9333333333", "0.3333", "0.165", "69.4"]
