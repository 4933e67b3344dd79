"""The phrases that ask for a reasoning path. They follow the question, for teacher and student alike (Sec. 3.2)."""

TRIGGERS = {
    "cot": "Let's think step by step.",
    "pot": "Let's break down the code step by step.",
}
