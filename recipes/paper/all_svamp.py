"""All 1,000 questions of SVAMP as one test split, for students that were trained on none of them.

Usage: python recipes/paper/all_svamp.py SVAMP.json OUTPUT.jsonl
"""

import json
import sys
from pathlib import Path

from md_trl.tasks import load_questions


def main(source: str, output: str) -> None:
    questions = [q for split in ("train", "test") for q in load_questions("svamp", split, source=source)]
    rows = [
        {"id": q.id.rpartition("/")[2], "question": q.question, "answer": q.answer, "split": "test", "group": q.group}
        for q in questions
    ]
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Path(output).write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
