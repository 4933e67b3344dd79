r"""
The tables of the paper, from the results in one folder.

The name of a student says which row it belongs to: `KIND[-TASK][-20pct][@SEED]`, for example `md`, `cot@1`,
`md-20pct@1` or `md-gsm8k@2`.

| part | meaning |
| --- | --- |
| `KIND` | `label`, `cot`, `pot`, `md` are the rows of the paper; other kinds, as in `uniform`, come below |
| `-TASK` | the task that it was trained on, if it is evaluated on another one (Table 2) |
| `-20pct` | the share of the training questions that it saw (Fig. 5) |
| `@SEED` | the seed of its training |

The ensemble of the `cot` and the `pot` student of the same task, share and seed is formed here. Votes are those of
Eq. 5, whatever the results weigh.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from .comparison import ensemble, is_ensemble
from .curves import n2_shares, shares_by_votes
from .errors import InputError
from .evaluation import THIRD_PATH_FIGURES, EvaluationResult, QuestionResult
from .mixing import SOLVED_BY, type_of
from .records import LABEL, PATHS, QuestionType
from .replay import SUBSETS, available_weights
from .student_tables import ENSEMBLE, Cell, Column, Key, StudentTable, Values, build_table
from .tasks import TASKS
from .training_runs import TrainingRuns, check_same_questions, split_seed
from .voting import VoteWeights, majority, vote


NUMBERS = (1, 2, 4, 6, 8, 10, 14, 20, 40)
"""Numbers of samples that the columns of Table 3 show, as far as there are so many."""

FIRST_SAMPLES = (
    "The first N samples of each question vote; a joint vote (CoT w/ PoT) takes N/2 from each path, by Eq. 5: ties go "
    "to the answer seen first, CoT before PoT."
)
"""How the votes of a table are counted: those of one run, as `md-trl eval` has them."""
AVERAGED = (
    f"Mean over {SUBSETS} random orders of each question's samples, so that a figure differs a little from that of "
    "the first N samples. A joint vote (CoT w/ PoT) takes N/2 samples from each path, by Eq. 5: ties go to CoT."
)
"""The same for tables by number of samples, in which the choice of the samples should not matter."""
N2_RULE = "N=2 rule (Sec. 4.4.2): the answer of one PoT, or of one CoT if its program does not run."
VARIANTS = (
    f"Mean over {SUBSETS} random orders of each question's samples; N counts the samples of both paths. `Ties to CoT "
    "first` is Eq. 5, as in Table 3."
)

ALL = 100
"""All of the training questions, in percent."""


class StudentName(NamedTuple):
    r"""
    The parts of a student's name.

    Args:
        kind (`str`):
            Kind of student.
        trained_on (`str`, *optional*):
            Task that it was trained on. `None` for the task that it is evaluated on.
        percent (`int`):
            Share of the training questions.
        seed (`str`):
            `@SEED`, or empty.
    """

    kind: str
    trained_on: str | None
    percent: int
    seed: str


def parse_name(name: str, tasks: Collection[str] = TASKS) -> StudentName:
    r"""
    Read the parts of a student's name.

    Args:
        name (`str`):
            Name of a result.
        tasks (`Collection[str]`, *optional*):
            Names of tasks. Defaults to those that the package has.

    Returns:
        [`StudentName`]: The parts.

    Examples:

    ```python
    >>> parse_name("md-gsm8k-20pct@3")
    StudentName(kind='md', trained_on='gsm8k', percent=20, seed='@3')
    ```
    """
    kind, seed = split_seed(name)
    percent = ALL
    if found := re.fullmatch(r"(.+)-([1-9]\d?|100)pct", kind):
        kind, percent = found[1], int(found[2])
    # The longest, as one task may be named as the end of another
    named = [task for task in tasks if kind.endswith(f"-{task}") and kind != f"-{task}"]
    trained_on = max(named, key=len, default=None)
    return StudentName(kind.removesuffix(f"-{trained_on}"), trained_on, percent, seed)


class Place(NamedTuple):
    r"""
    What the students of a column have in common.

    Args:
        task (`str`), split (`str`):
            What they were evaluated on.
        trained_on (`str`, *optional*):
            Task that they were trained on, if it is another one.
        percent (`int`):
            Share of the training questions.
    """

    task: str
    split: str
    trained_on: str | None
    percent: int

    def __str__(self) -> str:
        return f"{self.task}/{self.split}"


Students = dict[Place, dict[str, TrainingRuns]]
"""The students of each place by their kind, the ensemble of two among them."""


def group_students(results: Sequence[EvaluationResult]) -> tuple[Students, list[str]]:
    r"""
    Group results by the names of the students, and form the ensembles of a CoT and a PoT student.

    Args:
        results (`Sequence[EvaluationResult]`):
            Results with distinct names.

    Returns:
        `tuple[Students, list[str]]`: The students, and what had to be left out.

    Raises:
        [`~md_trl.errors.InputError`]: If training runs of one kind were evaluated on different questions.
    """
    tasks = (*TASKS, *sorted({result.task for result in results} - set(TASKS)))
    found: dict[Place, dict[str, list[EvaluationResult]]] = {}
    known: dict[tuple[Place, str, str], str] = {}
    problems = []
    for result in results:
        name = parse_name(result.name, tasks)
        trained_on = None if name.trained_on == result.task else name.trained_on
        place = Place(result.task, result.split, trained_on, name.percent)
        first = known.setdefault((place, name.kind, name.seed), result.name)
        if first != result.name:
            problems.append(
                f"{result.name!r} is left out of the tables on {place}: it is the same as {first!r} there."
            )
            continue
        found.setdefault(place, {}).setdefault(name.kind, []).append(replace(result, settings=_equal_votes(result)))
    students: Students = {}
    for place, kinds in sorted(found.items(), key=lambda item: _order(item[0], tasks)):
        for runs in kinds.values():
            check_same_questions(runs)
        students[place] = {kind: TrainingRuns(kind, runs) for kind, runs in kinds.items()}
        if twice := [
            path for path in PATHS if path not in kinds and any(kind.startswith(f"{path} (") for kind in kinds)
        ]:
            problems.append(
                f"There is no ensemble on {place}: several results are named {' and '.join(map(repr, twice))}. Name "
                "them apart with `md-trl eval --name`, and form a pair with `--ensemble`."
            )
        if ENSEMBLE not in kinds and {*PATHS} <= set(kinds):
            try:
                students[place][ENSEMBLE] = _ensemble(*(students[place][path] for path in PATHS))
            except InputError as error:
                problems.append(f"There is no ensemble on {place}. {error}")
    return students, problems


def _order(place: Place, tasks: Sequence[str]) -> tuple:
    return tasks.index(place.task), place.split, place.trained_on or "", -place.percent


def _equal_votes(result: EvaluationResult) -> dict:
    return {name: value for name, value in result.settings.items() if name not in ("weights", "path_weights")}


def _ensemble(cot: TrainingRuns, pot: TrainingRuns) -> TrainingRuns:
    """Let the two students of each seed vote together."""
    of_pot = pot.by_seed()
    pairs = [(seed, student, of_pot[seed]) for seed, student in cot.by_seed().items() if seed in of_pot]
    if not pairs:
        raise InputError("The CoT and the PoT students share no seed: name them alike, as in `cot@1` and `pot@1`.")
    return TrainingRuns(ENSEMBLE, [ensemble(f"{ENSEMBLE}{seed}", *students) for seed, *students in pairs])


def figures_of(kind: str, runs: TrainingRuns) -> list[str]:
    """Return the figures of a kind of student that tables show: its own path, or all that it has."""
    own = {"label_all": [LABEL]} | {name: [name] for name in (*PATHS, LABEL)}
    of_kind = ["joint"] if _is_ensemble(runs) else own.get(kind, [*PATHS, "joint", *THIRD_PATH_FIGURES, LABEL])
    return [figure for figure in of_kind if runs.has(figure)]


def _is_ensemble(runs: TrainingRuns) -> bool:
    return all(map(is_ensemble, runs.results))


def paper_tables(
    results: Sequence[EvaluationResult], ensemble_likelihood: bool = False
) -> tuple[list[StudentTable], list[str]]:
    r"""
    Draw the tables of the paper and those of question groups, paths and ties, as far as there are results for them.

    Args:
        results (`Sequence[EvaluationResult]`):
            Results with distinct names, with or without ensembles.
        ensemble_likelihood (`bool`, *optional*, defaults to `False`):
            Whether to weigh the votes of an ensemble by likelihood, too. Likelihoods of two models are not on one
            scale.

    Returns:
        `tuple[list[StudentTable], list[str]]`: The tables, and what had to be left out.
    """
    students, problems = group_students(results)
    problems += [
        f"Students trained on {place.percent}% of {place.trained_on} are in no table on {place}."
        for place in students
        if place.trained_on is not None and place.percent != ALL
    ]
    main = {place: kinds for place, kinds in students.items() if place.trained_on is None and place.percent == ALL}
    tables = [_accuracy_table("1", "Accuracy by task (Table 1)", main, published=1)]
    for source in dict.fromkeys(place.trained_on for place in students if place.trained_on is not None):
        there = {p: kinds for p, kinds in students.items() if p.trained_on == source and p.percent == ALL}
        title = f"Accuracy on other tasks, trained on {source} (Table 2)"
        # The paper's students were trained on GSM8K
        tables.append(_accuracy_table("2", title, there, published=2 if source == "gsm8k" else None))
    for task, split in dict.fromkeys((place.task, place.split) for place in students):
        tables.append(_training_set_table(Place(task, split, None, ALL), students))
    for place, kinds in main.items():
        tables.append(_samples_table(place, kinds))
        tables.append(_groups_table(place, kinds))
        tables.append(_solved_table(place, kinds))
        tables.append(_ties_table(place, kinds, ensemble_likelihood))
    # Tables of one kind together
    found = [table for table in tables if table is not None]
    names = ("1", "2", "3", "training set", "groups", "solved", "ties")
    return sorted(found, key=lambda table: names.index(table.name)), problems


def _accuracy_table(
    name: str, title: str, students: Students, published: int | None = None, percents: bool = False
) -> StudentTable | None:
    """Every figure of every student, a column for each place."""
    columns = []
    for place, kinds in students.items():
        sizes = sorted({len(runs.results[0].questions) for runs in kinds.values()})
        questions = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
        heading = f"{place.percent}%" if percents else f"{place} ({questions} questions)"
        columns.append(Column(heading, _accuracies(kinds), task=place.task, x=place.percent if percents else None))
    kinds = {kind: runs for of_place in students.values() for kind, runs in of_place.items()}
    if not columns:
        return None
    of = str(next(iter(students))) if percents else ""
    return build_table(name, title, columns, _pairs(columns, kinds), published, place=of, rule=FIRST_SAMPLES)


def _accuracies(kinds: Mapping[str, TrainingRuns]) -> dict[Key, Cell]:
    cells = {}
    for kind, runs in kinds.items():
        for figure in figures_of(kind, runs):
            votes = runs.votes(figure)

            def at(votes: float | None, runs=runs, figure=figure) -> Values:
                return {
                    seed: _by_id(result, result.correct(figure, None if votes is None else int(votes)))
                    for seed, result in runs.by_seed().items()
                }

            # After early stopping, all thoughts vote
            own = runs.has_own_votes(figure)
            cells[Key(kind, figure)] = Cell(at(None if own else votes), votes, None if own else at)
    return cells


def _by_id(result: EvaluationResult, values: Sequence[float]) -> dict[str, float]:
    return {question.id: value for question, value in zip(result.questions, values, strict=True)}


def _pairs(columns: Sequence[Column], kinds: Mapping[str, TrainingRuns]) -> list[tuple[Key, Key]]:
    """Every student of both paths against the ensembles, and the paths of MD against those of single-path students."""
    joint = dict.fromkeys(key for column in columns for key in column.cells if key.figure in ("joint", "n2"))
    ensembles = [key for key in joint if _is_ensemble(kinds[key.kind])]
    pairs = [
        (key, other) for key in joint if key not in ensembles for other in ensembles if key.figure == other.figure
    ]
    return sorted(pairs, key=lambda pair: pair[0].kind != "md") + [
        (Key("md", path), Key(path, path)) for path in PATHS
    ]


def _samples_table(place: Place, kinds: Mapping[str, TrainingRuns]) -> StudentTable | None:
    """Accuracy against the number of samples, averaged over which of them are taken."""
    curves: dict[Key, dict[int, Cell]] = {}
    for kind, runs in kinds.items():
        for figure in figures_of(kind, runs):
            if figure != LABEL:
                curves[Key(kind, figure)] = _curve(runs, figure)
            if figure == "joint" and curves[Key(kind, figure)]:
                shares = {seed: _by_id(result, n2_shares(result)) for seed, result in runs.by_seed().items()}
                curves[Key(kind, "n2")] = {2: Cell(shares, 2)}
    title = f"Accuracy by number of samples N on {place} (Table 3)"
    return _by_votes("3", title, f"{AVERAGED} {N2_RULE}", place, kinds, curves, published=3)


def _curve(
    runs: TrainingRuns, figure: str, weights: VoteWeights | None = None, tie_break: str = "cot"
) -> dict[int, Cell]:
    of_seeds = {
        seed: shares_by_votes(result, figure, weights=weights, tie_break=tie_break)
        for seed, result in runs.by_seed().items()
    }
    shared = sorted(set.intersection(*(set(shares) for shares in of_seeds.values())))
    results = runs.by_seed()
    return {n: Cell({seed: _by_id(results[seed], of_seeds[seed][n]) for seed in of_seeds}, n) for n in shared}


def _by_votes(
    name: str,
    title: str,
    rule: str,
    place: Place,
    kinds: Mapping[str, TrainingRuns],
    curves: Mapping[Key, Mapping[int, Cell]],
    pairs: Sequence[tuple[Key, Key]] | None = None,
    published: int | None = None,
) -> StudentTable | None:
    numbers = sorted({n for curve in curves.values() for n in curve})
    columns = [
        Column(f"N={n}", {key: curve[n] for key, curve in curves.items() if n in curve}, place.task, n, n)
        for n in numbers
    ]
    if not columns:
        return None
    shown = [n in NUMBERS or n == numbers[-1] for n in numbers]
    return build_table(
        name, title, columns, _pairs(columns, kinds) if pairs is None else pairs, published, shown, str(place), rule
    )


def _training_set_table(place: Place, students: Students) -> StudentTable | None:
    """Accuracy against the share of the training questions."""
    there = {
        other: kinds
        for other, kinds in students.items()
        if (other.task, other.split, other.trained_on) == (place.task, place.split, None)
    }
    ordered = dict(sorted(there.items(), key=lambda item: item[0].percent))
    title = f"Accuracy by share of the training questions on {place} (Fig. 5)"
    if {place.percent for place in ordered} <= {ALL}:
        return None
    return _accuracy_table("training set", title, ordered, percents=True)


def _groups_table(place: Place, kinds: Mapping[str, TrainingRuns]) -> StudentTable | None:
    """Accuracy by the kind of question, a column for each."""
    groups = sorted({q.group for runs in kinds.values() for q in runs.results[0].questions if q.group})
    columns = []
    for group in groups:
        of_group = {
            kind: TrainingRuns(kind, [_only(result, group) for result in runs.results])
            for kind, runs in kinds.items()
            if all(any(q.group == group for q in result.questions) for result in runs.results)
        }
        size = max((len(runs.results[0].questions) for runs in of_group.values()), default=0)
        columns.append(Column(f"{group} ({size:,})", _accuracies(of_group)))
    return build_table(
        "groups",
        f"Accuracy by kind of question on {place}",
        columns,
        _pairs(columns, kinds),
        place=str(place),
        rule=FIRST_SAMPLES,
    )


def _only(result: EvaluationResult, group: str) -> EvaluationResult:
    return replace(result, questions=[question for question in result.questions if question.group == group])


def _solved_table(place: Place, kinds: Mapping[str, TrainingRuns]) -> StudentTable | None:
    """The share of questions that each path solves (Fig. 1)."""
    joint = {kind: runs for kind, runs in kinds.items() if "joint" in figures_of(kind, runs)}
    joint = {kind: runs for kind, runs in joint.items() if not any(r.stops_early for r in runs.results)}
    if not joint:
        return None
    n = min(result.n for runs in joint.values() for result in runs.results)
    columns = [Column(f"{name} ({type_:d})", {}) for type_, name in SOLVED_BY.items()]
    one_path = Column("one path only, and the joint vote right", {})
    for kind, runs in joint.items():
        for column, type_ in zip(columns, SOLVED_BY, strict=True):
            column.cells[Key(kind, "joint")] = Cell(_questions(runs, lambda q, t=type_: _type(q, n) is t))
        one_path.cells[Key(kind, "joint")] = Cell(
            _questions(
                runs,
                lambda q: (
                    _type(q, n) in (QuestionType.COT_ONLY, QuestionType.POT_ONLY)
                    and q.is_correct(vote(q.cot[:n], q.pot[:n]))
                ),
            )
        )
    title = f"Questions that each path solves on {place}, by {n} votes per path (Fig. 1)"
    rule = f"The first {n} samples of each path vote; the joint vote (Eq. 5) takes all {2 * n} of them."
    return build_table("solved", title, [*columns, one_path], _pairs(columns, kinds), place=str(place), rule=rule)


def _questions(runs: TrainingRuns, value) -> Values:
    return {
        seed: {question.id: value(question) for question in result.questions}
        for seed, result in runs.by_seed().items()
    }


def _type(question: QuestionResult, n: int) -> QuestionType:
    return type_of(*(question.is_correct(majority(answers[:n])) for answers in (question.cot, question.pot)))


def _ties_table(place: Place, kinds: Mapping[str, TrainingRuns], ensemble_likelihood: bool) -> StudentTable | None:
    """The joint vote with ties to either path, and weighted by likelihood."""
    curves: dict[Key, dict[int, Cell]] = {}
    for kind, runs in kinds.items():
        if "joint" not in figures_of(kind, runs):
            continue
        for variant, weights, tie_break in _variants(runs, ensemble_likelihood):
            curves[Key(kind, "joint", variant)] = _curve(runs, "joint", weights, tie_break)
    title = f"Joint votes by rule for ties and by weights on {place}"
    return _by_votes("ties", title, VARIANTS, place, kinds, curves, list(_tie_pairs(curves, kinds)))


_COT_FIRST, _POT_FIRST = "ties to CoT first", "ties to PoT first"
_LIKELIHOOD = "weighted by likelihood"
_TWO_SCALES = "weighted by likelihoods of two models, which are not on one scale"


def _variants(runs: TrainingRuns, ensemble_likelihood: bool) -> Iterator[tuple[str, VoteWeights, str]]:
    yield _COT_FIRST, VoteWeights(), "cot"
    yield _POT_FIRST, VoteWeights(), "pot"
    if all("likelihood" in available_weights(result) for result in runs.results):
        if not _is_ensemble(runs):
            yield _LIKELIHOOD, VoteWeights("likelihood"), "cot"
        elif ensemble_likelihood:
            yield _TWO_SCALES, VoteWeights("likelihood"), "cot"


def _tie_pairs(keys: Iterable[Key], kinds: Mapping[str, TrainingRuns]) -> Iterator[tuple[Key, Key]]:
    """Every rule of a student against the same rule of the ensembles, likelihood weights against equal votes."""
    keys = list(keys)
    ensembles = dict.fromkeys(key.kind for key in keys if _is_ensemble(kinds[key.kind]))
    for key in keys:
        if key.kind not in ensembles:
            same = _COT_FIRST if key.variant == _LIKELIHOOD else key.variant
            yield from ((key, Key(other, "joint", same)) for other in ensembles)
