r"""Answers: read the answer a text or a program reaches, and decide which answers are the same.

[`extract`] reads the answer of a chain of thought and [`answer_of_value`] that of a program's value. Both return the
[`canonical`] form. Two answers are [`equal`] when their canonical forms are the same string, so equality is an
equivalence relation, and votes group answers exactly as scoring compares them. The canonical forms are:

| answer | canonical form |
| --- | --- |
| `$1,234.50`, `1234.5 dollars` | `1234.50`: currency, units, thousands separators and a percent sign are dropped |
| `5.0`, `five`, `5 (apples)`, `4.9999999999` | `5`: integers are exact; within 1e-9 (relative) counts as one |
| `2.675`, `1/3`, `2 1/2`, `\frac{3}{8}` | `2.68`, `0.3333`, `2.50`, `0.3750`: 2 decimals from 1 on, else 4 digits |
| `5:15`, `3:30 p.m.` | `5:15`, `15:30`; a time without a.m. or p.m. is kept as written |
| `6:8`, `3 to 4` | `3:4`: a ratio is reduced, unless it could be a time |
| `12 (cm); 8`, `12 and 8`, `3 hours and 20 minutes` | `12;8`, `12;8`, `3;20`: several parts, in the order given |
| `Yes.`, `True`, `no` | `yes`, `yes`, `no` |
| `The Cooper wedding!` | `cooper wedding`: case, punctuation and articles are dropped |
| `None`, `""`, `...` | the empty string, which is not an answer |
| `nan`, `inf` | `nan`, `inf`; `nan` is not an answer either, see [`NO_ANSWER`] |

Numbers are rounded half up, as money is, after binary floating-point noise (beyond 12 digits) has been removed.
All functions accept any text in any thread, and their running time is bounded by its length.
"""

from .canonical_form import NO_ANSWER, canonical, equal
from .extraction import extract
from .program_values import answer_of_value


__all__ = ["NO_ANSWER", "answer_of_value", "canonical", "equal", "extract"]
