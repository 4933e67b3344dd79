"""Turn the GPT-3.5-Turbo rationales of mwp_ReFT (https://github.com/lqtrung1998/mwp_ReFT) into a thought file.

Its `svamp` files hold 3,014 word problems from MAWPS and ASDiv, with one CoT and one PoT each. None of them is among
the 1,000 questions of SVAMP. To import rationales of your own, write one JSON object per line in the same way:

    {"task": "svamp", "question": "...", "gold": "203", "path": "cot", "text": "...", "model": "gpt-3.5-turbo"}

Usage: python gpt35_to_thoughts.py FOLDER_WITH_cot.json_AND_pot.json > thoughts.jsonl
       md-trl store import --store teacher.db --file thoughts.jsonl
"""

import ast
import json
import sys
from pathlib import Path


def without_docstring(program: str) -> str:
    """Remove the docstring, which repeats the question word for word."""
    first = ast.parse(program).body[0].body[0]
    if not (isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)):
        return program
    lines = program.split("\n")
    del lines[first.lineno - 1 : first.end_lineno]
    return "\n".join(lines)


def main(folder: str) -> None:
    cot, pot = (
        {row["item_id"]: row for row in json.loads((Path(folder) / f"{path}.json").read_text())}
        for path in ("cot", "pot")
    )
    for id in cot:
        if id not in pot:
            continue
        for path, text in (("cot", cot[id]["answer_cot"]), ("pot", without_docstring(pot[id]["answer_cot"]))):
            line = {
                "task": "svamp",
                "question": cot[id]["question"],
                "gold": cot[id]["answer_value"].removesuffix(".0"),
                "path": path,
                "text": text,
                "model": "gpt-3.5-turbo",
            }
            print(json.dumps(line, ensure_ascii=False))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
