"""The phrases that ask for a reasoning path. They follow the question, for teacher and student alike (Sec. 3.2).

Those of `cot` and `pot` are the paper's. That of `cot_pot` begins as that of `cot`, so that prefix trees share it.
"""

TRIGGERS = {
    "cot": "Let's think step by step.",
    "pot": "Let's break down the code step by step.",
    "cot_pot": "Let's think step by step, then write the code.",
}
