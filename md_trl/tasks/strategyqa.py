"""StrategyQA: yes/no questions with implicit steps (Geva et al. 2021, https://huggingface.co/papers/2101.02235).

The original, https://github.com/eladsegal/strategyqa, has 2,061 questions for training and a dev set of 229. Its test
set is published without answers. Answers are booleans in the original and `yes` or `no` here.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..records import Question
from .loading import Row, check_names, draw_test, find_file, hub_rows, json_rows


HUB, BENCHMARK = "tasksource/strategy-qa", "default"
SIZE = 2290
PROTOCOLS = ("dev", "paper")
HINT = (
    "Pass the folder data/strategyqa (train.json, dev.json) of https://github.com/eladsegal/strategyqa as `source`, "
    "or leave `source` out to load tasksource/strategy-qa from the Hub."
)

# First characters of the `qid`s in the original dev set, which no question of the training set shares. The copy on the
# Hub has both sets in one split.
_DEV = frozenset(
    """
    018cb1 042463 088eb1 09734b 0abc04 0ad62a 0dc86c 0de278 0ec75b 0edac4 0f172d 0f2883 0ff680 117c27 11d009 12b0bb
    14a1db 14bfe3 157b09 1932e0 19b40f 1b6cc2 1bdcf9 1cfd64 1d07c9 1e9d59 1eb877 202598 2047c0 21e352 23506d 243e3e
    2800bf 295741 2a7d14 2a9018 2b73da 2b9827 2c391b 2e4a3a 2ebff3 2ef103 2fcd99 302570 316d74 31d0f8 33421d 341981
    34aaa0 354598 367939 376738 3a76a6 3a9069 3a93c4 3eb805 3f4f06 4070e4 4111c4 42608d 427fda 428525 4330d4 44ec5b
    44f54e 486598 486b0e 48cf1d 49ab74 4a28d9 4b66eb 4b6ca1 4bea34 4d52db 4d919e 4f5f3d 511262 516789 520bec 534ceb
    5378f4 53f255 54fbd5 55ac71 563a36 5737e9 5787a2 58f7df 596b61 59e78f 5a7265 5b45cc 5d85be 5f290c 615aa4 620823
    6252e9 62e8d2 6396fe 66b3cf 67349f 6a0d8d 6d92b7 6e95d8 6ef946 6fe610 70642a 71e6d5 72478c 7702ee 77b1da 79535e
    798529 7c287c 7d1f1c 7e69e7 7e6f36 7e7ba5 7f457f 81f2c6 8238ca 83a7c6 869bbd 8757a5 8803ea 89163b 896b0f 8c115e
    8d7f7b 8d95e7 8efd6e 8f9ba9 90c559 9635db 96844c 983e27 988f73 99eb85 9a6e08 9bf48f 9c13ff 9eba44 9ebaee 9f1419
    9fa4b2 a19804 a1a131 a5f8af a651ba a68fac a9ac24 a9d22d ab2527 abb356 addf92 b1e125 b37207 b4e658 b73a1b b81db0
    b848db ba2a59 ba83e0 bac108 badd24 bbfc68 bcd221 bd9ccc bdaf03 be5c99 c0c668 c0e0a0 c23b89 c39d1e c42d95 c435c8
    c44aeb c4f5ce c5e130 c649c9 c69397 c7cb1e c8eac5 c91eaf cbc097 cbebe1 cc56bc cda79c d0e463 d0e81c d24a5b d2ae10
    d60720 d7ea60 dca3c4 e0044a e0c10e e126c8 e144fe e18f89 e1be12 e1f9a6 e33a81 e45dd0 e537c4 e5dff9 e5ffcc e8d245
    ebd53f ec0463 ec06b5 ed04a3 ed247b ee8912 f2a710 f2eac6 f37c8f f640e3 f64790 f790b7 f7fa93 f85416 f93ca5 f9686f
    fb3862 fb8b65 fc0bbb fda4d9 ff21df
    """.split()
)


def load(split: str, source: str | None = None, seed: int = 42, protocol: str = "dev") -> list[Question]:
    r"""
    Load StrategyQA. The splits are the same from the Hub and from the files.

    Args:
        split (`str`):
            `train` or `test`.
        source (`str`, *optional*):
            Folder with `train.json` and `dev.json`, or one file with all 2,290 questions (`strategyqa_train.json` of
            the leaderboard). If not given, `tasksource/strategy-qa` is loaded from the Hub.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the split of `protocol="paper"`.
        protocol (`str`, *optional*, defaults to `"dev"`):
            How the questions are split, one of

            - `"dev"`: 2,061 / 229. The original dev set is the test set, as in Appendix A of the paper.
            - `"paper"`: 1,603 / 687. The test set is 30% of all questions, drawn at random, which is the size that the
              paper's figure of 59.1% requires. The paper's own draw is not known.

    Returns:
        `list[Question]`: Questions with ids such as `strategyqa/test/e0044a7b4d146d611e73`.
    """
    if protocol not in PROTOCOLS:
        raise InputError(
            f"Unknown `protocol` {protocol!r} of task 'strategyqa'. Choose one of {', '.join(PROTOCOLS)}."
        )
    if source is None:
        rows = hub_rows(HUB, None, "train", HINT)
    elif Path(source).is_file():
        rows = json_rows(Path(source), HINT)
    else:
        files = [find_file(source, [f"{name}.json", f"strategyqa/{name}.json"], HINT) for name in ("train", "dev")]
        rows = [row for file in files for row in json_rows(file, HINT)]
    names = [row.text("qid") for row in rows]
    check_names(names, SIZE, source or HUB, HINT)
    if protocol == "dev":
        test = {name for name in names if name[:6] in _DEV}
    else:
        test = draw_test(dict.fromkeys(names, "all"), 687, seed)
    return [
        Question(
            id=f"strategyqa/{split}/{name}",
            task="strategyqa",
            split=split,
            question=row.text("question"),
            answer=_answer(row),
        )
        for name, row in zip(names, rows, strict=True)
        if (name in test) == (split == "test")
    ]


def _answer(row: Row) -> str:
    if not isinstance(row["answer"], bool):
        raise row.error("answer", "true or false")
    return "yes" if row["answer"] else "no"
