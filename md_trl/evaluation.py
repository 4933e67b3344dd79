"""The accuracy of a student on many questions, by number of votes (Sec. 4).

No model is loaded here: [`~md_trl.student_evaluation.StudentEvaluation`] samples a student and builds its result.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .answers import equal
from .errors import InputError
from .mixing import type_of
from .records import ALL_PATHS, COT_POT, LABEL, PATHS, PATHS_AND_LABEL, PROGRAM_PATHS, Question, QuestionType, Thought
from .voting import VoteWeights, majority, score, usable, vote, vote_two


JOINT_ALL = "joint_all"
FIGURES = ("joint", "pot", "cot", COT_POT, JOINT_ALL, "n2", LABEL)
"""
Accuracies of a student: the joint vote of CoT and PoT (Eq. 5), the vote of one path, the joint vote of all paths, the
N=2 rule (Sec. 4.4.2), the label.
"""
PATHS_OF = {"joint": PATHS, JOINT_ALL: ALL_PATHS, "n2": PATHS}
"""The paths that a figure of several needs. The joint votes take as many samples from each."""
FIGURE_NAMES = {"cot": "CoT", "pot": "PoT", "joint": "CoT w/ PoT", "n2": "N=2 rule", LABEL: "label"}
"""Names of the figures in tables."""
THIRD_PATH_FIGURES = {COT_POT: "plan + PoT", JOINT_ALL: "all three, same N"}
"""Names in tables of the figures of the path `cot_pot`. Only students that were asked for it have them."""
LEGEND = (
    "Accuracy in percent; N is the number of samples per question that vote, the first ones. CoT w/ PoT is the joint "
    "vote (Eq. 5) over equal parts of the samples of each path: with as many in all as one path has (same N), or with "
    "all. N=2 rule (Sec. 4.4.2): the answer of one PoT, or of one CoT if the program does not run; its N is a mean. "
    "`weights` are given where votes do not weigh the same."
)
"""Explains the tables of accuracies, see [`~md_trl.report.accuracy_table`]."""

LOGPROB_DECIMALS = 5
"""Decimals of log-probabilities in results. Engines agree to about 4."""


@dataclass
class QuestionResult:
    r"""
    The answers of a student to one question.

    Args:
        id (`str`):
            Id of the question.
        answer (`str`):
            Gold answer.
        cot (`list[str | None]`, *optional*, defaults to `[]`):
            Answers of the CoT thoughts in sample order, in canonical form; `None` for an unusable thought.
        pot (`list[str | None]`, *optional*, defaults to `[]`):
            Answers of the PoT thoughts in sample order.
        label (`list[str | None]`, *optional*, defaults to `[]`):
            The bare answer, if it was sampled.
        cot_logprob (`list[float | None]`, *optional*, defaults to `[]`):
            Mean log-probability per token of each CoT thought; `None` if the engine did not report it.
        pot_logprob (`list[float | None]`, *optional*, defaults to `[]`):
            Mean log-probability per token of each PoT thought.
        tokens (`int`, *optional*, defaults to `0`):
            Completion tokens of the thoughts and the bare answer.
        group (`str`, *optional*):
            Kind of the question, see [`~md_trl.records.Question`].
        cot_pot (`list[str | None]`, *optional*, defaults to `[]`):
            Answers of the thoughts of the path `cot_pot`, if it was sampled.
        cot_pot_logprob (`list[float | None]`, *optional*, defaults to `[]`):
            Mean log-probability per token of each of them.
    """

    id: str
    answer: str
    cot: list[str | None] = field(default_factory=list)
    pot: list[str | None] = field(default_factory=list)
    label: list[str | None] = field(default_factory=list)
    cot_logprob: list[float | None] = field(default_factory=list)
    pot_logprob: list[float | None] = field(default_factory=list)
    tokens: int = 0
    group: str | None = None
    cot_pot: list[str | None] = field(default_factory=list)
    cot_pot_logprob: list[float | None] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of the result's file, without what the question does not have."""
        optional = (LABEL, "group", COT_POT, f"{COT_POT}_logprob")
        return {name: value for name, value in asdict(self).items() if value or name not in optional}

    def is_correct(self, answer: str | None) -> bool:
        """Return whether an answer of the student equals the gold answer. `None` never does."""
        return answer is not None and equal(answer, self.answer)


@dataclass
class EvaluationResult:
    r"""
    The answers of one student on one task and split. Every figure is computed from `questions`.

    Args:
        name (`str`):
            Name of the student in tables.
        model (`str`):
            The model that was sampled, as its engine names it.
        task (`str`):
            Name of the task.
        split (`str`):
            Split that was evaluated.
        settings (`dict[str, Any]`):
            Everything else the answers depend on: sampling parameters, number of thoughts, prompt format, ...
        questions (`list[QuestionResult]`):
            Answers, question by question.
    """

    name: str
    model: str
    task: str
    split: str
    settings: dict[str, Any]
    questions: list[QuestionResult]

    def __post_init__(self):
        if not self.questions:
            raise InputError(f"There are no questions of {self.task}/{self.split} to evaluate {self.name!r} on.")
        self.settings = json.loads(json.dumps(self.settings))  # tuples become lists, as in the file

    @property
    def n(self) -> int:
        """Maximum number of thoughts per path, `0` if only bare answers were sampled."""
        return max(len(getattr(question, path)) for question in self.questions for path in ALL_PATHS)

    @property
    def stops_early(self) -> bool:
        """Whether a stopping rule decided how many thoughts each question has, so that only the joint vote counts."""
        return self.settings.get("rule", "fixed") != "fixed"

    @property
    def weights(self) -> VoteWeights:
        """What votes weigh in the joint figure."""
        return VoteWeights.from_settings(self.settings)

    def has(self, figure: str) -> bool:
        """Return whether the paths that were sampled determine a figure."""
        if self.stops_early and figure not in ("joint", LABEL):
            return False
        paths = PATHS_OF.get(figure, (figure,))
        return all(any(getattr(question, path) for question in self.questions) for path in paths)

    def votes(self, figure: str) -> float:
        r"""
        Return the number of samples per question behind a figure.

        At equal budget, a joint vote takes an equal part of its samples from each path. The N=2 rule samples a CoT
        only where the program does not run, or if there is none, so its number is a mean.
        """
        if figure == "joint" and self.stops_early:
            return sum(len(question.cot) + len(question.pot) for question in self.questions) / len(self.questions)
        if figure in ("joint", JOINT_ALL):
            paths = len(PATHS_OF[figure])
            return max(self.n // paths, 1) * paths
        if figure == "n2":
            used = (q.pot[:1] if usable(q.pot[:1]) else q.pot[:1] + q.cot[:1] for q in self.questions)
            return sum(map(len, used)) / len(self.questions)
        return 1 if figure == LABEL else self.n

    def correct(self, figure: str, votes: int | None = None) -> list[bool]:
        r"""
        Return which questions a figure counts as correct.

        Args:
            figure (`str`):
                One of [`FIGURES`].
            votes (`int`, *optional*):
                Number of samples to vote over: the first ones of a path, or of each path an equal part for a joint
                vote. Defaults to [`EvaluationResult.votes`]. After early stopping, all thoughts vote in any case.

        Returns:
            `list[bool]`: One entry per question, in order.
        """
        votes = int(self.votes(figure)) if votes is None else votes
        if figure in ("joint", JOINT_ALL):
            paths = PATHS_OF[figure]
            per_path = None if self.stops_early else votes // len(paths)
            return [question.is_correct(self._joint_vote(question, per_path, paths)) for question in self.questions]
        return [question.is_correct(_predict(question, figure, votes)) for question in self.questions]

    def _joint_vote(
        self, question: QuestionResult, per_path: int | None = None, paths: Sequence[str] = PATHS
    ) -> str | None:
        """Return the joint vote over the first thoughts of each path, or over all of them."""
        cot, pot, *logprobs = voters(question, paths, per_path)
        return vote(cot, pot, *self.weights.weigh(cot, pot, *logprobs))

    def accuracy(self, figure: str, votes: int | None = None) -> float:
        """Return the share of questions that [`EvaluationResult.correct`] counts as correct."""
        return sum(self.correct(figure, votes)) / len(self.questions)

    def curve(self, figure: str) -> list[tuple[int, float]]:
        r"""
        Return the accuracy of a vote for every number of samples (Fig. 4).

        Args:
            figure (`str`):
                A path, `joint` or `joint_all`.

        Returns:
            `list[tuple[int, float]]`: Number of samples and accuracy, empty if the figure is not determined.
        """
        if self.stops_early and self.has(figure):
            return [(self.votes(figure), self.accuracy(figure))]
        step = len(PATHS_OF.get(figure, (figure,)))
        counts = range(step, step * self.n + 1, step) if self.has(figure) else ()
        return [(votes, self.accuracy(figure, votes)) for votes in counts]

    def usable(self) -> dict[str, float]:
        """Return the share of thoughts that reach an answer, for every path that was sampled."""
        shares = {}
        for path in PATHS_AND_LABEL:
            answers = [answer for question in self.questions for answer in getattr(question, path)]
            if answers:
                shares[path] = sum(answer is not None for answer in answers) / len(answers)
        return shares

    def solved_by(self) -> dict[str, float]:
        """Return the shares of questions solved by `both`, `cot_only`, `pot_only` and `neither` (Fig. 1)."""
        scores = score(
            [q.cot for q in self.questions], [q.pot for q in self.questions], [q.answer for q in self.questions]
        )
        return {share: scores[share] for share in ("both", "cot_only", "pot_only", "neither")}

    def joint_by_type(self) -> dict[QuestionType, tuple[int, float]]:
        """Return the number of questions of each type for this student, and how often the full joint vote is right."""
        correct: dict[QuestionType, list[bool]] = {type_: [] for type_ in QuestionType}
        for question in self.questions:
            type_ = type_of(question.is_correct(majority(question.cot)), question.is_correct(majority(question.pot)))
            correct[type_].append(question.is_correct(self._joint_vote(question)))
        return {type_: (len(found), sum(found) / len(found) if found else 0.0) for type_, found in correct.items()}

    def figures(self) -> dict[str, Any]:
        """Return all figures as they are written to the result's file."""
        figures: dict[str, Any] = {"n_questions": len(self.questions), "usable": self.usable()}
        if self.has(LABEL):
            figures[LABEL] = self.accuracy(LABEL)
        for figure in (*PATHS, "joint", COT_POT, JOINT_ALL):
            if self.has(figure):
                figures[figure] = [{"votes": votes, "accuracy": share} for votes, share in self.curve(figure)]
        if self.has("n2"):
            figures["n2"] = {"accuracy": self.accuracy("n2"), "mean_samples": self.votes("n2")}
            figures["solved_by"] = self.solved_by()
            figures["joint_by_type"] = {
                f"{type_:d}": {"n_questions": size, "accuracy": share}
                for type_, (size, share) in self.joint_by_type().items()
            }
        return figures

    def question_digest(self) -> str:
        """Return a digest of the questions and their gold answers."""
        return _digest([(question.id, question.answer) for question in self.questions])

    def file_name(self) -> str:
        """Return the name of the result's file: the same for the same run, different for any other."""
        run = [self.name, self.model, self.settings, self.question_digest()]
        return re.sub(r"[^\w.-]+", "_", f"{self.name}-{self.task}-{self.split}-{_digest(run)}.json")

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the result's file."""
        values = {"name": self.name, "model": self.model, "task": self.task, "split": self.split}
        questions = [question.to_dict() for question in self.questions]
        return values | {"settings": self.settings, "figures": self.figures(), "questions": questions}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EvaluationResult:
        """Build a result from the content of its file. Its figures are ignored, as they follow from the answers."""
        values = {name: value for name, value in values.items() if name != "figures"}
        return cls(**values | {"questions": [QuestionResult(**question) for question in values["questions"]]})

    def save(self, folder: str | Path) -> Path:
        r"""
        Write the result to a folder, one question per line. The result of a different run is never overwritten.

        Args:
            folder (`str` or `Path`):
                Folder of results, created if it does not exist.

        Returns:
            `Path`: The file.
        """
        file = Path(folder) / self.file_name()
        file.parent.mkdir(parents=True, exist_ok=True)
        *head, questions = self.to_dict().items()
        fields = [f'"{name}": {json.dumps(value, ensure_ascii=False)}' for name, value in head]
        lines = [json.dumps(question, ensure_ascii=False, separators=(",", ":")) for question in questions[1]]
        fields.append('"questions": [\n{}\n]'.format(",\n".join(lines)))
        file.write_text("{{\n{}\n}}\n".format(",\n".join(fields)), encoding="utf-8")
        return file

    @classmethod
    def load(cls, file: str | Path) -> EvaluationResult:
        r"""
        Read a result that [`EvaluationResult.save`] wrote.

        Args:
            file (`str` or `Path`):
                The file.

        Returns:
            [`EvaluationResult`]: The result.

        Raises:
            `ValueError`: The file is not a result.
        """
        try:
            result = cls.from_dict(json.loads(Path(file).read_text(encoding="utf-8")))
        except json.JSONDecodeError as error:
            raise InputError(
                f"{file} is not valid JSON (line {error.lineno}: {error.msg}). Delete it, or run the evaluation again."
            ) from None
        except InputError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise InputError(
                f"{file} is not a result of `md-trl eval`. Move it elsewhere, or run the evaluation again."
            ) from error
        ids = [question.id for question in result.questions]
        if not ids or len(set(ids)) < len(ids):
            twice = next((f"the question {id_!r} twice" for id_ in ids if ids.count(id_) > 1), "no questions")
            raise InputError(f"{file} has {twice}. Run the evaluation again.")
        if not isinstance(result.name, str) or not isinstance(result.settings, dict):
            raise InputError(f"{file} has no valid `name` and `settings`. Run the evaluation again.")
        for question in result.questions:
            for path in PATHS_AND_LABEL:
                if not isinstance(answers := getattr(question, path), list):
                    raise InputError(
                        f"{file}: `{path}` of the question {question.id!r} is {answers!r:.80}, expected a list of "
                        "answers. Correct it, or run the evaluation again."
                    )
        return result


def voters(
    question: QuestionResult, paths: Sequence[str] = PATHS, per_path: int | None = None
) -> tuple[list[str | None], list[str | None], list[float | None], list[float | None]]:
    r"""
    Return what votes on a question: the CoT answers, those of the programs, and their log-probabilities.

    The answers of the path `cot_pot` stand after those of the PoT, so that they come last in the joined list of Eq. 5
    and have the weight of a program.

    Args:
        question ([`QuestionResult`]):
            Answers to the question.
        paths (`Sequence[str]`, *optional*, defaults to `("cot", "pot")`):
            Paths that vote.
        per_path (`int`, *optional*):
            Number of thoughts of each path, the first ones. By default all of them.

    Returns:
        `tuple`: CoT answers, answers of programs, and the log-probabilities of both.
    """
    programs = [path for path in paths if path in PROGRAM_PATHS]
    of_programs = [
        [value for path in programs for value in getattr(question, f"{path}{kind}")[:per_path]]
        for kind in ("", "_logprob")
    ]
    return question.cot[:per_path], of_programs[0], question.cot_logprob[:per_path], of_programs[1]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _predict(question: QuestionResult, figure: str, votes: int) -> str | None:
    """Return the answer to a question that a figure scores."""
    if figure == "n2":
        return vote_two(*(next(iter(answers), None) for answers in (question.pot, question.cot)))
    return majority(getattr(question, figure)[:votes])


def collect_answers(
    questions: Sequence[Question],
    thoughts: Iterable[Thought],
    n: int | Mapping[tuple[str, str], int],
    paths: Sequence[str],
    tokens: Mapping[str, int] | None = None,
) -> list[QuestionResult]:
    r"""
    Collect the answers of judged thoughts, question by question.

    Args:
        questions (`Sequence[Question]`):
            Questions that were asked.
        thoughts (`Iterable[Thought]`):
            Thoughts whose answers were read, in any order. Those of other questions and paths are ignored.
        n (`int` or `Mapping[tuple[str, str], int]`):
            Number of thoughts per path to use, the first ones by `index`, or the number for each question id and path.
            The label path has one.
        paths (`Sequence[str]`):
            Paths that were sampled: `cot`, `pot`, `cot_pot`, `label`.
        tokens (`Mapping[str, int]`, *optional*):
            Completion tokens by question id.

    Returns:
        `list[QuestionResult]`: One entry per question, in order.

    Raises:
        `ValueError`: A question has fewer thoughts than asked for.
    """
    by_path: dict[tuple[str, str], list[Thought]] = defaultdict(list)
    for thought in sorted(thoughts, key=lambda thought: thought.index):
        by_path[thought.question_id, thought.path].append(thought)
    results = []
    for question in questions:
        of_question = (tokens or {}).get(question.id, 0)
        result = QuestionResult(question.id, question.answer, tokens=of_question, group=question.group)
        for path in paths:
            wanted = 1 if path == LABEL else n if isinstance(n, int) else n[question.id, path]
            found = by_path[question.id, path][:wanted]
            if len(found) < wanted:
                raise InputError(
                    f"{question.id!r} has {len(found)} of {wanted} {path} thoughts. Run the same evaluation again: it "
                    "samples only what is missing."
                )
            setattr(result, path, [thought.answer for thought in found])
            if path != LABEL:
                logprobs = [None if t.logprob is None else round(t.logprob, LOGPROB_DECIMALS) for t in found]
                setattr(result, f"{path}_logprob", logprobs)
        results.append(result)
    return results
