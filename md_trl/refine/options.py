"""How a student is refined: the options of `md-trl refine`, each default written once."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import InputError, check_at_least_one
from ..mixing import REPEAT_CAP
from ..records import STUDENT_THOUGHTS, VALIDATION_QUESTIONS
from ..sampling.engines import BATCH_SIZE


TYPES_BY = ("both", "teacher", "student")
"""Whose thoughts decide which paths solve a question."""
START_FROM = ("last", "base")
LABELS = ("gold", "agreement")
KEEP_BY = ("vote", "greedy")

OWN_SHARE = 0.5
PER_PATH = 10


@dataclass(kw_only=True)
class RefineOptions:
    r"""
    Options of a refinement.

    Args:
        rounds (`int`, *optional*, defaults to `3`):
            Number of rounds: sample the student, judge, mix, train, validate.
        n (`int`, *optional*, defaults to `10`):
            Thoughts per path to sample of each question and round, at most: a question whose type is clear gets fewer.
        types_by (`str`, *optional*, defaults to `"both"`):
            Whose thoughts decide the type and lambda of a question: the `"teacher"`'s, the `"student"`'s of this
            round, or `"both"` voting together. A question that these do not solve has the type of the other, so what
            the student solves where the teacher does not (type 4) is never lost.
        own_share (`list[float]`, *optional*, defaults to `[0.5]`):
            Share of the student's own thoughts among those of a question and path, one for each round; the last one
            stands for all later rounds. Where one of the two has too few, the share is lower, never higher. Where the
            teacher has none, all are the student's own, unless the share is 0. With a share of 1, the teacher's are
            learned only where the student has none.
        per_path (`int`, *optional*, defaults to `10`):
            Maximum number of distinct thoughts of a question and path.
        start_from (`str`, *optional*, defaults to `"last"`):
            Model to train in each round: the `"last"` student that was kept, or the `"base"` model, which is
            `model_name_or_path`. Also `--from`.
        labels (`str`, *optional*, defaults to `"gold"`):
            What own thoughts are judged by: `"gold"` answers, or also the `"agreement"` of both paths on questions
            without one.
        labelled (`int`, *optional*):
            Hide the gold answers of all but the first questions of the task, so many of them, to measure
            `labels="agreement"`.
        unlabelled (`str`, *optional*):
            JSONL file of more questions without gold answers: `question` and optionally `id`.
        label_precision (`float`, *optional*, defaults to `0.95`):
            Share of right labels to aim for. The least confidence that reaches it on the validation questions is
            required of a label.
        validation (`float`, *optional*, defaults to `0.1`):
            Share of the training questions to hold out. If the student has a `validation.json`, the questions that its
            training held out are taken instead.
        validation_questions (`int`, *optional*, defaults to `100`):
            Maximum number of the held-out questions to ask.
        keep_by (`str`, *optional*, defaults to `"vote"`):
            Accuracy on the validation questions that a round must raise to be kept: of the joint `"vote"` over n
            thoughts per path, or of `"greedy"` answers by the N=2 rule.
        teacher (`str`, *optional*):
            Model whose thoughts in the store are the teacher's. All thoughts but those of refinements by default.
        limit (`int`, *optional*):
            Sample and train on this many questions only, the first ones.
        repeat_cap (`int`, *optional*, defaults to `4`):
            Maximum `repeat` of a question of type 1 or 2.
        measure_last (`bool`, *optional*, defaults to `True`):
            Whether to sample the training questions once more at the end, for the types after the last round.
        batch_size (`int`, *optional*, defaults to `128`):
            Maximum number of samples that are written together.

    Raises:
        [`~md_trl.errors.InputError`]: If a value is out of range, or two of them contradict each other.
    """

    rounds: int = field(default=3, metadata={"help": "Number of rounds: sample, judge, mix, train, validate."})
    n: int = field(
        default=STUDENT_THOUGHTS,
        metadata={"help": "Thoughts per path of each question and round, at most. Clear questions get fewer."},
    )
    types_by: str = field(
        default="both",
        metadata={"help": "Whose thoughts decide the type and lambda of a question.", "choices": list(TYPES_BY)},
    )
    own_share: list[float] = field(
        default_factory=lambda: [OWN_SHARE],
        metadata={"help": "Share of own thoughts in each round; the last one stands for all later rounds."},
    )
    per_path: int = field(
        default=PER_PATH, metadata={"help": "Maximum number of distinct thoughts of a question and path."}
    )
    start_from: str = field(
        default="last",
        metadata={
            "help": "Train the last student that was kept, or the base model (`--model_name_or_path`).",
            "choices": list(START_FROM),
            "aliases": ["--from"],
        },
    )
    labels: str = field(
        default="gold",
        metadata={
            "help": "Judge own thoughts by gold answers only, or where there is none by the agreement of both paths.",
            "choices": list(LABELS),
        },
    )
    labelled: int | None = field(
        default=None, metadata={"help": "Hide the gold answers of all but the first questions, so many of them."}
    )
    unlabelled: str | None = field(
        default=None, metadata={"help": "JSONL file of more questions without gold answers: `question`, maybe `id`."}
    )
    label_precision: float = field(
        default=0.95, metadata={"help": "Share of right labels to aim for, with `--labels agreement`."}
    )
    validation: float = field(
        default=0.1,
        metadata={"help": "Share of the questions to hold out, unless the student's own training held some out."},
    )
    validation_questions: int = field(
        default=VALIDATION_QUESTIONS, metadata={"help": "Maximum number of the held-out questions to ask."}
    )
    keep_by: str = field(
        default="vote",
        metadata={
            "help": "Accuracy on validation questions that a round must raise to be kept: of the joint vote over n "
            "thoughts per path, or of greedy answers.",
            "choices": list(KEEP_BY),
        },
    )
    teacher: str | None = field(
        default=None, metadata={"help": "The teacher's name in the store. All but refined students by default."}
    )
    limit: int | None = field(
        default=None, metadata={"help": "Sample and train on this many questions only, the first ones."}
    )
    repeat_cap: int = field(
        default=REPEAT_CAP, metadata={"help": "Maximum number of times that a question of type 1 or 2 counts."}
    )
    measure_last: bool = field(
        default=True, metadata={"help": "Whether to sample once more at the end, for the types after the last round."}
    )
    batch_size: int = field(default=BATCH_SIZE, metadata={"help": "Maximum number of samples written together."})

    def __post_init__(self):
        choices = {"types_by": TYPES_BY, "start_from": START_FROM, "labels": LABELS, "keep_by": KEEP_BY}
        for name, allowed in choices.items():
            if (value := getattr(self, name)) not in allowed:
                raise InputError(f"Unknown `{name}` {value!r}. Choose one of {', '.join(allowed)}.")
        counts = ("rounds", "n", "per_path", "validation_questions", "repeat_cap", "batch_size", "limit", "labelled")
        for name in counts:
            check_at_least_one(name, getattr(self, name))
        if not self.own_share or not all(0 <= share <= 1 for share in self.own_share):
            raise InputError(f"`own_share` is {self.own_share}. Use at least one share between 0 and 1.")
        for name in ("label_precision", "validation"):
            if not 0 < (value := getattr(self, name)) < 1:
                raise InputError(f"`{name}` is {value}. Use a share between 0 and 1, like 0.1.")
        if self.labels == "gold" and (self.labelled is not None or self.unlabelled is not None):
            raise InputError("`labelled` and `unlabelled` are for `labels='agreement'`. Set it, or leave them out.")
        if self.labels == "agreement" and self.labelled is None and self.unlabelled is None:
            raise InputError(
                "`labels='agreement'` has no question to label. Hide gold answers with `labelled`, or name a file of "
                "questions as `unlabelled`."
            )
        if self.labels == "agreement" and self.keep_by == "greedy":
            raise InputError(
                "`labels='agreement'` takes its confidence from the votes on the validation questions. Use "
                "`keep_by='vote'`."
            )

    def share_of(self, round_: int) -> float:
        """Return the share of own thoughts in a round, counted from 1."""
        return self.own_share[min(round_, len(self.own_share)) - 1]
