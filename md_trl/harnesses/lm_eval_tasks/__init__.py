"""The task group `md_trl` of [lm-evaluation-harness](https://github.com/EleutherAI/lm-evaluation-harness).

The YAML files beside this one name the tasks; [`MixedTask`] asks each question with both triggers.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from ...errors import InputError
from ...prompts import read_student_settings, student_prompt
from ...records import PATHS, STUDENT_THOUGHTS, Choice, SamplingParams
from ...sampling.engines import check_params, derive_seed
from ...tasks import load_questions
from ..thoughts import figures, read_texts


def questions(
    task: str, split: str = "test", source: str | None = None, data_seed: int = 42, **other: Any
) -> dict[str, Dataset]:
    r"""
    Load the questions of a task, as the `custom_dataset` of its YAML file.

    Args:
        task (`str`):
            Name of the task, see [`~md_trl.tasks.load_questions`].
        split (`str`, *optional*, defaults to `"test"`):
            Split to evaluate on.
        source (`str`, *optional*):
            Local copy of the task's original file. Defaults to the Hub.
        data_seed (`int`, *optional*, defaults to `42`):
            Seed of splits drawn from an original file, and of generated stories.
        **other:
            What else the harness passes on: its metadata and the arguments of the model. It is ignored.

    Returns:
        `dict[str, Dataset]`: `id`, `question` and `answer` of the questions, under the name of the harness' own split.
    """
    rows = load_questions(task, split, source=source, seed=data_seed)
    return {"test": Dataset.from_list([{"id": q.id, "question": q.question, "answer": q.answer} for q in rows])}


class MixedTask(ConfigurableTask):
    r"""
    Asks each question n times with either trigger, and scores the votes.

    Options come with `--metadata` as JSON:

    - those of [`questions`];
    - `n` (`int`, *optional*, defaults to `10`): number of thoughts per path.
    - `extract` (`str`, *optional*, defaults to `"strict"`): whether a CoT must state its answer, or its last number is
      accepted (`"flexible"`).
    - `request_seed` (`int`, *optional*): seed from which each request derives its own, as in `md-trl eval`. A server
      needs it: the harness gives all requests the same seed, so that a server that obeys seeds would return the same
      text n times. Models that the harness runs itself must not have it.

    Prompts are plain text, or a chat with `--apply_chat_template`. What contradicts the `md_trl.json` of the student
    is refused.

    Args:
        config (`dict[str, Any]`):
            Content of the YAML file, and the options under `metadata`.
    """

    def __init__(self, config: dict[str, Any]):
        super().__init__(config={name: value for name, value in config.items() if name != "class"})
        options = self.config.metadata
        self.n = options.get("n", STUDENT_THOUGHTS)
        self.extract = options.get("extract", "strict")
        self.request_seed = options.get("request_seed")
        if self.extract not in ("strict", "flexible"):
            raise InputError(f"`extract` is {self.extract!r} in --metadata. Choose 'strict' or 'flexible'.")
        student = options.get("pretrained")
        self.trained = read_student_settings(student) if isinstance(student, str) else None

    def build_all_requests(self, **options: Any) -> None:
        """Check how the student will be asked, and write its prompts."""
        generation = self.config.generation_kwargs
        check_params(SamplingParams(generation["temperature"], max_tokens=generation["max_gen_toks"]), self.n)
        if options.get("system_instruction"):
            raise InputError("Students are asked one bare question. Leave out --system_instruction.")
        prompt_format = "chat" if options.get("apply_chat_template") else "plain"
        if self.trained is not None and self.trained["prompt_format"] != prompt_format:
            hint = "Leave out" if prompt_format == "chat" else "Add"
            raise InputError(
                f"The student was trained with `prompt_format={self.trained['prompt_format']!r}`. {hint} "
                "--apply_chat_template."
            )
        # The cache of requests knows nothing of the options.
        super().build_all_requests(**options | {"cache_requests": False})

    def construct_requests(self, doc: dict[str, Any], ctx: str, **options: Any) -> list[Instance]:
        """Return the requests for n CoT thoughts, followed by those for n PoT thoughts."""
        task, number, _ = options["metadata"]
        requests = []
        for path in PATHS:
            if options["apply_chat_template"]:
                prompt = options["chat_template"](student_prompt(doc["question"], path, "chat"))
            else:
                prompt = student_prompt(doc["question"], path)
            for index in range(self.n):
                generation = dict(self.config.generation_kwargs)
                if self.request_seed is not None:
                    generation["seed"] = derive_seed(self.request_seed, doc["id"], path, index)
                arguments, place = (prompt, generation), len(requests)
                requests.append(Instance("generate_until", doc, arguments, place, metadata=(task, number, 1)))
        return requests

    def apply_filters(self) -> None:
        """Read the answers of all texts together, so that each distinct program runs once."""
        docs = [self.instances[start : start + 2 * self.n] for start in range(0, len(self.instances), 2 * self.n)]
        texts = [[Choice(request.resps[0], "stop") for request in requests] for requests in docs]
        by_path = [{"cot": of_doc[: self.n], "pot": of_doc[self.n :]} for of_doc in texts]
        for requests, answers in zip(docs, read_texts(by_path, strict=self.extract == "strict"), strict=True):
            for request, answer in zip(requests, answers["cot"] + answers["pot"], strict=True):
                request.filtered_resps["none"] = answer


def score_votes(doc: dict[str, Any], answers: list[str | None]) -> dict[str, float]:
    r"""
    Score the votes on one question, as the `process_results` of the YAML files.

    Args:
        doc (`dict[str, Any]`):
            The question.
        answers (`list[str | None]`):
            Answers of its CoT thoughts, followed by those of its PoT thoughts.

    Returns:
        `dict[str, float]`: 1 or 0 for the `joint` vote over all thoughts (Eq. 5) and for the votes `cot` and `pot`.
    """
    n = len(answers) // 2
    return figures([{"cot": answers[:n], "pot": answers[n:]}], [doc["answer"]])
