"""Tasks and the metric `md_vote` for [lighteval](https://huggingface.co/docs/lighteval).

lighteval gives a document one prompt, so a question is two documents, one per path. Its metric joins their answers
when all of them are known. Tasks are defined in a file for `--custom-tasks`:

```python
from md_trl.harnesses.lighteval_tasks import mixed_task

TASKS_TABLE = [mixed_task("svamp", n=10)]
```
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from datasets.config import HF_CACHE_HOME
from lighteval.metrics.metrics_corpus import CorpusLevelComputation
from lighteval.metrics.metrics_sample import SampleLevelComputation, SamplingMetric
from lighteval.metrics.utils.metric_utils import CorpusLevelMetric
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc, SamplingMethod

from ..errors import InputError
from ..prompts import student_prompt
from ..records import PATHS, STUDENT_MAX_TOKENS, STUDENT_THOUGHTS, Choice
from ..tasks import load_questions, task_name
from .thoughts import Answers, figures, read_texts


try:
    import math_verify  # noqa: F401
except ImportError as error:
    raise ImportError(
        "math-verify does not work with the version of latex2sympy2_extended that lighteval brings along. "
        "docs/harnesses.md says how to install both."
    ) from error


class ReadAnswers(SamplingMetric, SampleLevelComputation):
    r"""
    Reads the answers of all thoughts. Programs run in the sandbox of [`~md_trl.execution.Executor`].

    Args:
        n (`int`):
            Number of thoughts per path.
        strict (`bool`, *optional*, defaults to `True`):
            Whether a CoT must state its answer, see [`~md_trl.answers.extract`].
    """

    def __init__(self, n: int, strict: bool = True):
        super().__init__()
        self.n, self.strict = n, strict

    def num_samples(self) -> int:
        """Return how many texts the model writes per document."""
        return self.n

    def compute(self, responses: list[ModelResponse], docs: list[Doc], **options: Any) -> list[dict[str, Any]]:
        """Return the question, path, answers and gold answer of each document."""
        texts = [
            {doc.specific["path"]: [Choice(text, "stop") for text in response.final_text[: self.n]]}
            for doc, response in zip(docs, responses, strict=True)
        ]
        return [
            {**doc.specific, "answers": answers[doc.specific["path"]], "reference": doc.get_golds()[0]}
            for doc, answers in zip(docs, read_texts(texts, strict=self.strict), strict=True)
        ]


class JointVote(CorpusLevelComputation):
    """Joins the two documents of each question and scores the votes."""

    def compute_corpus(self, items: list[dict[str, Any]]) -> dict[str, float]:
        """Return the accuracies of the `joint` vote (Eq. 5) and of the votes `cot` and `pot`."""
        answers: dict[str, Answers] = {}
        references: dict[str, str] = {}
        for item in items:
            answers.setdefault(item["id"], {})[item["path"]] = item["answers"]
            references[item["id"]] = item["reference"]
        for question_id, by_path in answers.items():
            if missing := [path for path in PATHS if path not in by_path]:
                raise InputError(
                    f"{question_id!r} was not asked for {missing[0]}, because --max-samples counts prompts and "
                    "shuffles them. Use `mixed_task(limit=...)` instead."
                )
        return figures(list(answers.values()), list(references.values()))


def mixed_task(
    task: str,
    split: str = "test",
    source: str | None = None,
    limit: int | None = None,
    n: int = STUDENT_THOUGHTS,
    max_tokens: int = STUDENT_MAX_TOKENS,
    prompt_format: str = "plain",
    extract: str = "strict",
    data_seed: int = 42,
) -> LightevalTaskConfig:
    r"""
    Define the task `md_{task}`, which asks a student each question with both triggers and scores the joint vote.

    lighteval loads its documents with [`~datasets.load_dataset`]. They are written into `md_trl/lighteval` in the
    cache of Hugging Face for that.

    Args:
        task (`str`):
            Task to evaluate on, or a file of one's own questions, see [`~md_trl.tasks.load_questions`].
        split (`str`, *optional*, defaults to `"test"`):
            Split to evaluate on.
        source (`str`, *optional*):
            Local copy of the task's original file. Defaults to the Hub.
        limit (`int`, *optional*):
            Evaluate only on this many questions, the first ones.
        n (`int`, *optional*, defaults to `10`):
            Number of thoughts per path.
        max_tokens (`int`, *optional*, defaults to `256`):
            Maximum length of a thought in tokens.
        prompt_format (`str`, *optional*, defaults to `"plain"`):
            `"plain"` or `"chat"`, as in the student's `md_trl.json`. The model's argument `override_chat_template`
            must say the same.
        extract (`str`, *optional*, defaults to `"strict"`):
            Whether a CoT must state its answer (`"strict"`), or its last number is accepted (`"flexible"`).
        data_seed (`int`, *optional*, defaults to `42`):
            Seed of splits drawn from an original file, and of generated stories.

    Returns:
        [`~lighteval.tasks.lighteval_task.LightevalTaskConfig`]: The task.

    Raises:
        `ValueError`: A setting is invalid, or the questions cannot be loaded.
    """
    if extract not in ("strict", "flexible"):
        raise InputError(f"`extract` is {extract!r}. Choose 'strict' or 'flexible'.")
    rows = []
    for question in load_questions(task, split, source=source, seed=data_seed)[:limit]:
        for path in PATHS:
            prompt = student_prompt(question.question, path, prompt_format)
            text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
            rows.append({"id": question.id, "path": path, "prompt": text, "answer": question.answer})
    metric = CorpusLevelMetric(
        metric_name="md_vote",
        higher_is_better=True,
        category=SamplingMethod.GENERATIVE,
        sample_level_fn=ReadAnswers(n, strict=extract == "strict"),
        corpus_level_fn=JointVote(),
        batched_compute=True,
    )
    return LightevalTaskConfig(
        name=f"md_{task_name(task)}",
        prompt_function=_document,
        hf_repo=str(_write(rows)),
        hf_subset="default",
        hf_avail_splits=["test"],
        evaluation_splits=["test"],
        metrics=[metric],
        generation_size=max_tokens,
        stop_sequence=[],
    )


def _document(row: dict[str, Any], task_name: str) -> Doc:
    specific = {"id": row["id"], "path": row["path"]}
    return Doc(row["prompt"], choices=[row["answer"]], gold_index=0, specific=specific, task_name=task_name)


def _write(rows: list[dict[str, str]]) -> Path:
    """Write a dataset into a folder that is named by its content, unless it is there."""
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    folder = Path(HF_CACHE_HOME, "md_trl", "lighteval", hashlib.sha256(content.encode()).hexdigest()[:16])
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"part-{os.getpid()}"  # other processes may write the same file
    part.write_text(content, encoding="utf-8")
    part.replace(folder / "test.jsonl")
    return folder
