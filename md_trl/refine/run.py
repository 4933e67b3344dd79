"""The rounds of a refinement: a student's own thoughts of both paths, judged, mixed and trained on again.

| killed while it was | what the same command does |
| --- | --- |
| sampling | samples what is missing from the store |
| mixing | mixes again, from the same thoughts |
| training | goes on from the last checkpoint, or trains again from the same model with the same seed |
| validating | samples what is missing |
| copying the best student | copies it again |
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoConfig
from trl import ModelConfig

from .. import __version__
from ..adaptive import sample_adaptively
from ..errors import InputError, UsageError
from ..evaluation import EvaluationResult
from ..execution import Executor, default_cache
from ..launched_evaluation import Process
from ..prompts import Prompt, student_prompt
from ..records import PATHS, Question, SamplingParams
from ..sampling import sample
from ..sampling.engines import check_params, model_name
from ..sampling.engines.transformers import TransformersEngine
from ..store import Store, open_store
from ..student_evaluation import StudentEvaluation
from ..student_folder import check_student, weights_digest
from ..trainer import MDConfig
from ..trainer.preprocessing import is_lossless, tokenize_thoughts
from ..training_rows import load_mixed_rows
from ..validation import VALIDATION_FILE, select_held_out, split_validation, validation_questions
from . import rows as judged
from .labels import label_figures, read_unlabelled, threshold_of
from .options import RefineOptions
from .state import RefineState
from .training import check_training, remove_checkpoints, train_round, training_settings
from .writers import NamedEngine, writer_name


TYPES_FILE = "types.json"

# What a round has to raise: the accuracy, or if that is the same, the share of thoughts that are right
_HELPS = ("accuracy", "right thoughts")
# What may change when a refinement goes on
_LATER = ("rounds", "batch_size", "measure_last")


def refine(
    model: str,
    task: str,
    store: str | Path,
    output: str | Path,
    args: MDConfig | None = None,
    options: RefineOptions | None = None,
    params: SamplingParams = SamplingParams(),
    model_args: ModelConfig | None = None,
) -> dict[str, Any]:
    r"""
    Let a student go on learning from its own two paths, round by round.

    In each round the student answers the training questions of the store on both paths. Its correct thoughts are mixed
    with the teacher's, as far as they are distinct, and a student is trained on them. It is kept if it answers the
    validation questions better. The same call goes on with a refinement that was interrupted.

    Args:
        model (`str`):
            The student: a folder, a Hub id or an adapter.
        task (`str`):
            Task whose training questions the store holds.
        store (`str` or `Path`):
            Store of the teacher's thoughts. The student's own thoughts are added to it.
        output (`str` or `Path`):
            Folder for `refine.json`, `round-1/`, `round-2/`, ..., and the best student, `student/`.
        args ([`~md_trl.MDConfig`], *optional*):
            Configuration of the training of one round. Its `seed` is that of the samples, too.
        options ([`RefineOptions`], *optional*):
            Everything else.
        params ([`~md_trl.records.SamplingParams`], *optional*, defaults to `SamplingParams()`):
            How to sample the student. Its seed is that of `args`.
        model_args ([`~trl.ModelConfig`], *optional*):
            How to load a model for training. Its `model_name_or_path` is the base model.

    Returns:
        `dict`: What `refine.json` holds.

    Raises:
        [`~md_trl.errors.InputError`]: If an argument or the store cannot be used, before anything is sampled.
        `FileNotFoundError`: If there is no such store or model.

    Examples:

    ```python
    >>> from md_trl import MDConfig
    >>> from md_trl.refine import RefineOptions, refine

    >>> args = MDConfig("unused", max_steps=500, per_device_train_batch_size=32, learning_rate=1e-3)
    >>> found = refine("students/md", "stories", "teacher.db", "refined", args, RefineOptions(rounds=2))
    >>> found["best"]
    2
    ```
    """
    args = args or MDConfig(str(output))
    with (
        open_store(store) as opened,
        Executor(cache=default_cache(opened.file)) as executor,
    ):
        run = Refinement(
            model,
            task,
            opened,
            executor,
            Path(output),
            args,
            options or RefineOptions(),
            replace(params, seed=args.seed),
            model_args or ModelConfig(),
        )
        return run.run()


class Refinement:
    """One refinement. Creating it checks everything; the arguments are those of [`refine`]."""

    def __init__(
        self,
        model: str,
        task: str,
        store: Store,
        executor: Executor,
        output: Path,
        args: MDConfig,
        options: RefineOptions,
        params: SamplingParams,
        model_args: ModelConfig,
    ):
        self.task, self.store, self.executor, self.output = task, store, executor, output
        self.args, self.options, self.params, self.model_args = args, options, params, model_args
        check_params(params, options.n)
        check_training(args)
        if Process.from_environment() != Process() or int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise InputError("A refinement runs in one process. Start it without a launcher.")
        if options.start_from == "base":
            if model_args.model_name_or_path is None:
                raise UsageError("`start_from='base'` needs the base model. Name it as `model_name_or_path`.")
            check_student(model_args.model_name_or_path, model_args.model_revision)
            AutoConfig.from_pretrained(model_args.model_name_or_path, revision=model_args.model_revision)
        self._model, self._name = _local(model)
        self._names = {self._model: f"{self._name}@{weights_digest(self._model)}"}
        self._engines: dict[str, TransformersEngine] = {}
        if options.unlabelled is not None:
            store.questions.add(read_unlabelled(options.unlabelled, task))
        self._teacher = judged.teacher_settings(store, task, options.teacher)
        self._choose_questions()
        settings = {
            "model": self._student(0),
            "base": model_args.model_name_or_path if options.start_from == "base" else None,
            "task": task,
            "store": store.digest(judged.Selection(task, ["train"], PATHS, settings=self._teacher)),
            **{name: value for name, value in asdict(options).items() if name not in _LATER},
            "sampling": asdict(params),
            "training": training_settings(args),
            "loading": {
                name: value
                for name, value in asdict(model_args).items()
                if name != "model_name_or_path" and value != getattr(ModelConfig, name, None)
            },
        }
        self.prompt_format = self._engine(0).student_prompt_format(args.prompt_format)
        self.state = RefineState(output, settings, options.rounds)
        self.state.values["questions"] = {
            "train": len(self.train),
            "unlabelled": len(self.train) - len(self.gold),
            "validation": len(self.validation),
        }
        self.state.values["teacher"] = {
            "models": sorted({row.model for row in store.status() if row.setting in self._teacher}),
            "types": judged.count_types({q.id: self._teacher_types.get(q.id, 4) for q in self.gold.values()}),
        }

    # Questions and models

    def _choose_questions(self) -> None:
        """Hold out validation questions, and decide whose gold answers may be seen."""
        questions = self.store.questions.load(self.task, "train")
        with_gold = [question for question in questions if question.answer]
        labelled = with_gold[: self.options.labelled]
        by_id = {question.id: question for question in labelled}
        found = judged.read_questions(self.store, self.task, self._teacher, self.executor)
        self._teacher_types = judged.types_of(found, by_id)
        own_file = Path(self._model) / VALIDATION_FILE
        if own_file.is_file():
            held_out = select_held_out(labelled, own_file)
        else:
            rows = [{"id": q.id, "question": q.question, "type": self._teacher_types.get(q.id, 4)} for q in labelled]
            _, part = split_validation(Dataset.from_list(rows), self.options.validation, self.args.seed)
            held_out = [by_id[id_] for id_ in part["id"]]
            print(
                f"The student has no {VALIDATION_FILE}: {len(held_out)} training questions are held out now. If it "
                "was trained on them, its own accuracy on them is too high, and rounds are kept too seldom.",
                flush=True,
            )
        types = [self._teacher_types.get(question.id, 4) for question in held_out]
        asked = [asdict(question) | {"type": type_} for question, type_ in zip(held_out, types, strict=True)]
        self.validation = validation_questions(
            Dataset.from_list(asked), self.options.validation_questions, self.args.seed
        )
        texts = {question.question for question in held_out}
        pool = questions if self.options.labels == "agreement" else with_gold
        self.train = [question for question in pool if question.question not in texts][: self.options.limit]
        self.gold = {question.id: question for question in self.train if question.id in by_id}
        if not self.train:
            raise InputError(f"No training question of {self.task} is left to sample. Hold out fewer, or add more.")

    def _folder(self, round_: int) -> str:
        return str(self.output / f"round-{round_}" / "student") if round_ else self._model

    def _student(self, round_: int) -> str:
        """Name of the student of a round, with the digest of its weights."""
        folder = self._folder(round_)
        if folder not in self._names:
            self._names[folder] = model_name(folder)
        return self._names[folder]

    def _engine(self, round_: int) -> NamedEngine:
        """The student of a round, loaded once."""
        folder = self._folder(round_)
        if folder not in self._engines:
            self._engines.clear()
            as_saved = (self.args.model_init_kwargs or {}).get("dtype", self.model_args.dtype) == "auto"
            self._engines[folder] = TransformersEngine(
                folder,
                batch_size=self.options.batch_size,
                device="cpu" if self.args.use_cpu else None,
                dtype="auto" if as_saved else None,
            )
        return NamedEngine(self._engines[folder], self._student(round_))

    # Rounds

    def run(self) -> dict[str, Any]:
        """Run all rounds, or what is left of them."""
        values = self.state.values
        self.state.save()
        if "validation" not in values:
            values["validation"] = self._validate(0)
            self.state.save()
        self._publish()
        for number in range(1, self.options.rounds + 1):
            entry = self.state.round(number)
            for name, phase in (("thoughts", self._mix), ("training", self._train), ("kept", self._decide)):
                if name not in entry:
                    entry |= phase(number, entry)
                    self.state.save()
            remove_checkpoints(Path(self._folder(number)))
            self._publish()
        last = values["rounds"][-1]
        if self.options.measure_last and last["kept"] and "after" not in last:
            settings = self._sample(last["round"] + 1)
            found = judged.read_questions(self.store, self.task, settings, self.executor)
            self._set_after(last, judged.types_of(found, self.gold, self.options.n))
            self.state.save()
        return values

    def _sample(self, round_: int) -> list[int]:
        """Sample the best student so far. Return the settings of the thoughts."""
        best = self.state.values["best"]
        engine = NamedEngine(self._engine(best), writer_name(self._student(best), round_))
        params = replace(self.params, seed=self.params.seed + round_)
        known = [question for question in self.train if question.id in self.gold]
        others = [question for question in self.train if question.id not in self.gold]
        print(f"Round {round_}: sampling {engine.model} on {len(self.train):,} questions", flush=True)

        def prompt(question: Question, path: str) -> Prompt:
            return student_prompt(question.question, path, self.prompt_format)

        settings: set[int] = set()
        job = (self.options.n, engine, self.store, prompt)
        if known:
            settings.update(sample_adaptively(known, *job, self.executor, params=params).settings)
        if others:  # The type of a question without an answer is never settled
            settings.update(sample(others, PATHS, *job, params=params).settings)
        return sorted(settings)

    def _mix(self, round_: int, entry: dict[str, Any]) -> dict[str, Any]:
        """Sample, label and mix."""
        best, options = self.state.values["best"], self.options
        settings = self._sample(round_)
        student = writer_name(self._student(best), round_)
        print(f"Round {round_}: mixing", flush=True)
        labels, figures = self._label(settings, best)
        answers = {question.id: question for question in self.gold.values()}
        answers |= judged.with_answers([q for q in self.train if q.id not in self.gold], labels)
        earlier = [before["sampled"] for before in self.state.values["rounds"][: round_ - 1]]
        numbers = sorted({*self._teacher, *settings, *(n for of_round in earlier for n in of_round["settings"])})
        found = judged.read_questions(self.store, self.task, numbers, self.executor)
        writers = [*(of_round["writer"] for of_round in earlier), student]
        types, counts = judged.write_rows(
            judged.mix_questions(found, answers, student, options, round_, self._can_write),
            self.output / f"round-{round_}" / "mixed",
            self.store,
            self.task,
            options.repeat_cap,
            self._card(writers, figures),
        )
        self._write_types(round_, types)
        before = self.state.values["rounds"][round_ - 2] if round_ > 1 else None
        if before is not None and before["kept"]:
            self._set_after(before, types["student"])
        sampled = {"writer": student, "settings": settings, "student": best}
        return {"sampled": sampled} | ({"labels": figures} if figures else {}) | counts

    def _can_write(self, question: Question, program: str) -> bool:
        """Whether the best student so far, whose tokenizer all its successors have, can learn to write a program."""
        tokenizer = self._engine(self.state.values["best"]).engine.tokenizer
        (tokenized,) = tokenize_thoughts(question.question, "pot", [program], tokenizer, self.prompt_format)
        return is_lossless(tokenizer, program, tokenized["input_ids"])

    def _label(self, settings: Sequence[int], best: int) -> tuple[dict[str, str], dict[str, Any] | None]:
        """Label the questions whose gold answers are not known, or hidden."""
        if self.options.labels != "agreement":
            return {}, None
        before = self.state.values["rounds"][best - 1] if best else self.state.values
        result = EvaluationResult.load(self.output / before["validation"]["file"])
        threshold = threshold_of(result, self.options.label_precision)
        others = [question for question in self.train if question.id not in self.gold]
        found = judged.read_questions(self.store, self.task, settings, self.executor)
        agreed = judged.agreements(found, {question.id for question in others}, self.options.n)
        labels = {
            id_: label.answer
            for id_, label in agreed.items()
            if threshold is not None and label.confidence >= threshold
        }
        return labels, {"threshold": threshold, "agreed": len(agreed), **label_figures(labels, others)}

    def _card(self, writers: list[str], labels: dict[str, Any] | None) -> dict[str, Any]:
        """What the card of the dataset says of the thoughts in it."""
        options = self.options
        settings = {
            "teacher": ", ".join(self.state.values["teacher"]["models"]),
            **asdict(self.params),
            "thoughts per path sampled from the student": options.n,
            "types by": options.types_by,
            "share of own thoughts": options.own_share,
            "distinct thoughts per path": options.per_path,
            "repeat_cap": options.repeat_cap,
            "md_trl": __version__,
        }
        # A card may be published, so it names no local folder
        own = self._name if self._name != self._model else Path(self._model).name
        command = ["md-trl", "refine", "--model", own, "--task", self.task, "--store", self.store.file.name]
        written = [re.sub(r".*/(?=[^/]*@)", "", writer) for writer in writers]
        return {"settings": settings, "refine": {"writers": written, "labels": labels, "command": command}}

    def _write_types(self, round_: int, types: dict[str, judged.Types]) -> None:
        file = self.output / f"round-{round_}" / TYPES_FILE
        file.write_text(json.dumps(types, indent=0) + "\n", encoding="utf-8")

    def _set_after(self, entry: dict[str, Any], after: judged.Types) -> None:
        """Note in the entry of a round how the types have changed with its student."""
        file = self.output / f"round-{entry['round']}" / TYPES_FILE
        before = json.loads(file.read_text(encoding="utf-8"))["student"]
        entry["after"] = judged.moved_types(before, after)

    def _train(self, round_: int, entry: dict[str, Any]) -> dict[str, Any]:
        """Train on the mixed rows, from the last student that was kept or from the base model."""
        rows = load_mixed_rows(str(self.output / f"round-{round_}" / "mixed"), self.task)
        base = self.options.start_from == "base"
        model = self.model_args.model_name_or_path if base else self._folder(self.state.values["best"])
        print(f"Round {round_}: training {model} on {len(rows):,} questions", flush=True)
        folder = Path(self._folder(round_))
        self._engines.clear()  # A GPU may hold one model only
        figures = train_round(model, self.args, self.model_args, rows, folder, round_, self.prompt_format)
        return {"training": {"from": model, "questions": len(rows), **figures}}

    def _validate(self, round_: int) -> dict[str, Any]:
        """Ask a student the validation questions."""
        print(f"Round {round_}: validating on {len(self.validation):,} questions", flush=True)
        greedy = self.options.keep_by == "greedy"
        evaluation = StudentEvaluation(
            self.validation,
            self.params.greedy() if greedy else self.params,
            n=1 if greedy else self.options.n,
            prompt_format=self.prompt_format,
        )
        with Store(self.output / "validation.db") as store:
            name = f"{Path(self._name).name}-round-{round_}"
            result = evaluation.run(name, self._engine(round_), store)
        file = result.save(self.output / "validation")
        figures = {path: result.accuracy(path) for path in PATHS}
        figures["accuracy"] = result.accuracy("n2") if greedy else result.accuracy("joint", 2 * self.options.n)
        thoughts = [
            question.is_correct(answer) for question in result.questions for answer in question.cot + question.pot
        ]
        figures["correct"] = sum(thoughts) / len(thoughts)
        types = {f"{type_:d}": count for type_, (count, _) in result.joint_by_type().items()}
        return {**figures, "types": types, "file": str(file.relative_to(self.output))}

    def _decide(self, round_: int, entry: dict[str, Any]) -> dict[str, Any]:
        """Validate the student of a round, and keep it if it is better than the best one."""
        found, values = self._validate(round_), self.state.values
        best = values["rounds"][values["best"] - 1] if values["best"] else values
        before, after = ([of["accuracy"], of["correct"]] for of in (best["validation"], found))
        if kept := after > before:
            values["best"] = round_
        verb = "is kept" if kept else "did not help and is not kept"
        figures = ", ".join(
            f"{name} {a:.1%}, before {b:.1%}" for name, a, b in zip(_HELPS, after, before, strict=True)
        )
        print(f"Round {round_} {verb}: {figures}", flush=True)
        return {"validation": found, "kept": kept}

    def _publish(self) -> None:
        """Copy the best student to `student/`, unless it is there."""
        best, folder = Path(self._folder(self.state.values["best"])), self.output / "student"
        if folder.is_dir() and weights_digest(folder) == weights_digest(best):
            return
        new, old = self.output / ".student-new", self.output / ".student-old"
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        shutil.copytree(best, new, ignore=shutil.ignore_patterns("checkpoint-*", "*.db*", "results"))
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
        shutil.rmtree(old, ignore_errors=True)


def _local(model: str) -> tuple[str, str]:
    """Return the folder of a student, downloaded if it is on the Hub, and its name."""
    check_student(model)
    if Path(model).is_dir():
        return model, model
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return snapshot_download(model), model
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(f"There is no student {model!r}, neither a folder nor on the Hub: {error}") from error
