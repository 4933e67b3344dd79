"""Answer questions with a student, by a vote over both paths (Sec. 3.2, Eq. 5)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .errors import InputError
from .execution import Executor
from .judging import read_answers
from .prompts import resolve_prompt_format, student_prompt
from .records import PATHS, STUDENT_MAX_TOKENS, STUDENT_THOUGHTS, SamplingParams, Thought
from .sampling.engines import SampleRequest
from .sampling.engines.transformers import TransformersEngine
from .voting import vote


@dataclass(frozen=True)
class Reasoned:
    r"""
    The answer of a student to one question.

    Args:
        answer (`str`, *optional*):
            Joint vote in canonical form; `None` if no thought reached an answer.
        cot (`list[Thought]`):
            CoT thoughts with their answers, in sample order.
        pot (`list[Thought]`):
            PoT thoughts with their answers, in sample order.
    """

    answer: str | None
    cot: list[Thought]
    pot: list[Thought]


class MixedReasoner:
    r"""
    Lets a student reason in prose and in programs, and answers by a vote over both.

    Programs run in an [`~md_trl.execution.Executor`].

    Example:

    ```python
    >>> from md_trl import MixedReasoner

    >>> reasoner = MixedReasoner("outputs/smollm2-svamp/student")
    >>> [reasoned] = reasoner(["Dan had 4 dollars and spent 3 of them. How many are left?"])
    >>> reasoned.answer
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            The student: a folder, a Hub id, an adapter, or a loaded model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the student. Required for a loaded model.
        n_cot (`int`, *optional*, defaults to `10`):
            Number of CoT thoughts per question.
        n_pot (`int`, *optional*, defaults to `10`):
            Number of PoT thoughts per question.
        temperature (`float`, *optional*, defaults to `0.7`):
            Sampling temperature; `0` is greedy and allows one thought per path.
        max_tokens (`int`, *optional*, defaults to `256`):
            Maximum length of a thought in tokens.
        prompt_format (`str`, *optional*, defaults to `"auto"`):
            Format of the prompts: `"plain"`, `"chat"`, or `"auto"` for the one in the student's `md_trl.json`, else
            chat if the tokenizer has a chat template. Another one than in `md_trl.json` is refused, unless the model
            is loaded already.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the samples.

    Raises:
        `ValueError`: There is nothing to vote on, or the prompt format does not fit the student or its tokenizer.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        n_cot: int = STUDENT_THOUGHTS,
        n_pot: int = STUDENT_THOUGHTS,
        temperature: float = SamplingParams.temperature,
        max_tokens: int = STUDENT_MAX_TOKENS,
        prompt_format: str = "auto",
        seed: int = SamplingParams.seed,
    ):
        if min(n_cot, n_pot) < 0 or n_cot + n_pot == 0:
            raise InputError(
                f"`n_cot={n_cot}`, `n_pot={n_pot}` leave nothing to vote on. Sample at least one thought."
            )
        self.engine = TransformersEngine(model, tokenizer)
        self.n = {"cot": n_cot, "pot": n_pot}
        self.params = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed)
        # A loaded model may have been trained further since `md_trl.json` was written.
        obeys = isinstance(model, str) or prompt_format == "auto"
        settings = self.engine.student_settings if obeys else None
        self.prompt_format = resolve_prompt_format(self.engine.tokenizer, prompt_format, settings)

    def __call__(self, questions: Sequence[str]) -> list[Reasoned]:
        r"""
        Answer questions.

        Args:
            questions (`Sequence[str]`):
                Texts of the questions, without a trigger.

        Returns:
            `list[Reasoned]`: One answer per question, in order.

        Raises:
            `TypeError`: `questions` is a single text.
            `ValueError`: The student cannot be asked a question, for example because it is too long.
        """
        if isinstance(questions, str):
            raise TypeError(f"`questions` must be a list of texts, got the text {questions[:80]!r}. Write [question].")
        with Executor() as executor:
            answered = read_answers(self._sample(questions), executor)
        thoughts: dict[tuple[str, str], list[Thought]] = defaultdict(list)
        for thought in answered:
            thoughts[thought.question_id, thought.path].append(thought)
        reasoned = []
        for i in range(len(questions)):
            cot, pot = (thoughts[str(i), path] for path in PATHS)
            reasoned.append(Reasoned(vote((t.answer for t in cot), (t.answer for t in pot)), cot, pot))
        return reasoned

    def _sample(self, questions: Sequence[str]) -> list[Thought]:
        """Sample all thoughts. Those of one question and path come in sample order."""
        requests = [
            SampleRequest(
                str(i), path, student_prompt(question, path, self.prompt_format), self.params, n=self.n[path]
            )
            for i, question in enumerate(questions)
            for path in PATHS
            if self.n[path]
        ]
        thoughts = []
        for result in self.engine.generate(requests):
            request = result.request
            if result.error is not None:
                number = int(request.question_id)
                raise InputError(f"Question {number} cannot be asked, {result.error}: {questions[number][:80]!r}")
            thoughts += [
                Thought(
                    request.question_id,
                    request.path,
                    i,
                    choice.text.strip(),
                    finish_reason=choice.finish_reason,
                    logprob=choice.logprob,
                )
                for i, choice in enumerate(result.choices)
            ]
        return thoughts
