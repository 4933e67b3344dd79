"""Write `md_trl/test_questions.json`, the hashes of the test questions of all tasks, from their original files.

Run it from the checkout after a change of the files, of the splits, or of what is compared:

    python tests/write_test_questions.py
"""

import json
from pathlib import Path

from conftest import SHARED

from md_trl.contamination import PUBLISHED, REST, TEST_SPLIT, fingerprints
from md_trl.tasks import load_questions


FILE = Path(__file__).parents[1] / "md_trl" / "test_questions.json"
DATA = SHARED / "data"


def entries():
    """The content of the file: by task, the hashes of its test splits."""
    svamp, gsm8k, asdiv, strategyqa = (DATA / name for name in ("SVAMP.json", "gsm8k", "ASDiv.xml", "strategyqa"))
    return {
        "svamp": {
            TEST_SPLIT: fingerprints(load_questions("svamp", "test", svamp)),
            REST: fingerprints(load_questions("svamp", "train", svamp)),
        },
        "gsm8k": {PUBLISHED: fingerprints(load_questions("gsm8k", "test", gsm8k))},
        "asdiv": {TEST_SPLIT: fingerprints(load_questions("asdiv", "test", asdiv))},
        "strategyqa": {
            TEST_SPLIT: fingerprints(load_questions("strategyqa", "test", strategyqa)),
            "paper": fingerprints(load_questions("strategyqa", "test", strategyqa, protocol="paper")),
        },
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(entries(), indent=1) + "\n")
    print(f"Wrote {FILE}, {FILE.stat().st_size:,} bytes.")
