"""Reasoner: questions and a student come in, voted answers go out (Sec. 3.2, Eq. 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .errors import InputError
from .execution import Executor
from .judging import read_answers
from .prompts import resolve_prompt_format, student_prompt
from .records import PATHS, SamplingParams, Thought
from .sampling.engines import SampleRequest
from .sampling.engines.transformers import TransformersEngine
from .voting import vote


@dataclass(frozen=True)
class Reasoned:
    r"""
    What a student makes of one question.

    Args:
        answer (`str`, *optional*):
            The joint vote in canonical form, `None` if no thought reached an answer.
        cot (`list[Thought]`), pot (`list[Thought]`):
            The thoughts with their answers, in sample order.
    """

    answer: str | None
    cot: list[Thought]
    pot: list[Thought]


class MixedReasoner:
    r"""
    Lets a student reason in prose and in programs, and takes the vote over both.

    Programs run in an [`~md_trl.execution.Executor`].

    Example:

    ```python
    >>> from md_trl import MixedReasoner

    >>> reasoner = MixedReasoner("outputs/smollm2-svamp/student", prompt_format="plain")
    >>> [reasoned] = reasoner(["Dan had 4 dollars and spent 3 of them. How many are left?"])
    >>> reasoned.answer
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            The student: a folder, a Hub id, an adapter, or a loaded model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Its tokenizer; needed for a loaded model.
        n_cot (`int`, *optional*, defaults to `10`), n_pot (`int`, *optional*, defaults to `10`):
            Thoughts to sample of each path.
        temperature (`float`, *optional*, defaults to `0.7`):
            0 is greedy, with at most one thought a path.
        max_tokens (`int`, *optional*, defaults to `256`):
            Longest thought in tokens.
        prompt_format (`str`, *optional*, defaults to `"auto"`):
            As the student was trained, see [`~md_trl.MDConfig`].
        seed (`int`, *optional*, defaults to `42`):
            Seed of the samples.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        n_cot: int = 10,
        n_pot: int = 10,
        temperature: float = 0.7,
        max_tokens: int = 256,
        prompt_format: str = "auto",
        seed: int = 42,
    ):
        if min(n_cot, n_pot) < 0 or n_cot + n_pot == 0:
            raise InputError(
                f"`n_cot={n_cot}`, `n_pot={n_pot}` leave nothing to vote on. Sample one thought at least."
            )
        self.engine = TransformersEngine(model, tokenizer)
        self.n = {"cot": n_cot, "pot": n_pot}
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.prompt_format = resolve_prompt_format(self.engine.tokenizer, prompt_format)
        self.seed = seed

    def __call__(self, questions: Sequence[str]) -> list[Reasoned]:
        r"""
        Answer questions.

        Args:
            questions (`Sequence[str]`):
                Texts of questions, without a trigger.

        Returns:
            `list[Reasoned]`: one a question, in order.
        """
        if isinstance(questions, str):
            raise TypeError(f"`questions` must be a list of texts, got the text {questions[:80]!r}. Write [question].")
        requests = [
            SampleRequest(
                question_id=str(i),
                path=path,
                prompt=student_prompt(question, path, self.prompt_format),
                params=SamplingParams(temperature=self.temperature, max_tokens=self.max_tokens, seed=self.seed),
                n=self.n[path],
            )
            for i, question in enumerate(questions)
            for path in PATHS
            if self.n[path]
        ]
        thoughts = []
        for result in self.engine.generate(requests):
            if result.error is not None:
                number = int(result.request.question_id)
                raise InputError(f"Question {number} cannot be asked, {result.error}: {questions[number][:80]!r}")
            request = result.request
            thoughts += [
                Thought(request.question_id, request.path, i, choice.text.strip(), finish_reason=choice.finish_reason)
                for i, choice in enumerate(result.choices)
            ]
        with Executor() as executor:
            answered = read_answers(thoughts, executor)
        of = {(str(i), path): [] for i in range(len(questions)) for path in PATHS}
        for thought in answered:
            of[thought.question_id, thought.path].append(thought)
        return [
            Reasoned(vote((t.answer for t in cot), (t.answer for t in pot)), cot, pot)
            for cot, pot in ((of[str(i), "cot"], of[str(i), "pot"]) for i in range(len(questions)))
        ]
