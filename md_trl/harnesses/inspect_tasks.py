"""The task `md_trl/mixed` of [Inspect AI](https://inspect.aisi.org.uk), its solver and its scorer.

`inspect eval md_trl/mixed -T task=svamp` finds them through the entry point of this package.
"""

from __future__ import annotations

import os
from functools import cache, partial
from typing import Any

import anyio.to_thread
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessageUser,
    GenerateConfig,
    Model,
    ModelName,
    ModelOutput,
    get_model,
)
from inspect_ai.scorer import Score, Scorer, Target, accuracy, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.util import collect, concurrency

from ..errors import InputError
from ..prompts import Prompt, named_prompt_format, student_prompt
from ..records import PATHS, STUDENT_MAX_TOKENS, STUDENT_THOUGHTS, Choice, SamplingParams
from ..sampling.engines import check_params, derive_seed
from ..tasks import load_questions, task_name
from ..voting import tally
from .thoughts import figures, read_texts


# An OpenAI-compatible server reads plain text through these providers only. All others write a chat.
TEXT_PROVIDERS = ("openai-api-completions", "vllm-completions")
# A provider that leaves this open, `hf`, does not say whether a text was cut off.
_ENDED = ("stop", "unknown")


@task
def mixed(
    task: str = "svamp",
    split: str = "test",
    source: str | None = None,
    n: int = STUDENT_THOUGHTS,
    temperature: float = SamplingParams.temperature,
    max_tokens: int = STUDENT_MAX_TOKENS,
    prompt_format: str = "auto",
    extract: str = "strict",
    seed: int = SamplingParams.seed,
    data_seed: int = 42,
) -> Task:
    r"""
    Ask a student each question of a task with both triggers, and score the joint vote.

    The arguments are those of `md-trl eval`.

    Args:
        task (`str`, *optional*, defaults to `"svamp"`):
            Task to evaluate on, or a file of one's own questions, see [`~md_trl.tasks.load_questions`].
        split (`str`, *optional*, defaults to `"test"`):
            Split to evaluate on.
        source (`str`, *optional*):
            Local copy of the task's original file. Defaults to the Hub.
        n (`int`, *optional*, defaults to `10`):
            Number of thoughts per path.
        temperature (`float`, *optional*, defaults to `0.7`):
            Sampling temperature; `0` is greedy and needs `n=1`.
        max_tokens (`int`, *optional*, defaults to `256`):
            Maximum length of a thought in tokens.
        prompt_format (`str`, *optional*, defaults to `"auto"`):
            As in [`mixed_thoughts`].
        extract (`str`, *optional*, defaults to `"strict"`):
            As in [`mixed_thoughts`].
        seed (`int`, *optional*, defaults to `42`):
            Seed of the samples.
        data_seed (`int`, *optional*, defaults to `42`):
            Seed of splits drawn from an original file, and of generated stories.

    Returns:
        [`~inspect_ai.Task`]: The task.

    Raises:
        `ValueError`: A setting is invalid, or the questions cannot be loaded.
    """
    check_params(SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed), n)
    questions = load_questions(task, split, source=source, seed=data_seed)
    return Task(
        dataset=MemoryDataset(
            [Sample(q.question, target=q.answer, id=q.id) for q in questions], name=f"{task_name(task)}/{split}"
        ),
        solver=mixed_thoughts(n=n, prompt_format=prompt_format, extract=extract, seed=seed),
        scorer=votes(),
        config=GenerateConfig(temperature=temperature, max_tokens=max_tokens),
    )


@solver
def mixed_thoughts(
    n: int = STUDENT_THOUGHTS, prompt_format: str = "auto", extract: str = "strict", seed: int = SamplingParams.seed
) -> Solver:
    r"""
    Sample CoT and PoT thoughts, run the programs in our sandbox, and complete the sample with the joint vote.

    The answers are in the sample's metadata under `cot` and `pot`, the texts under `cot_texts` and `pot_texts`.

    Args:
        n (`int`, *optional*, defaults to `10`):
            Number of thoughts per path.
        prompt_format (`str`, *optional*, defaults to `"auto"`):
            Format of the prompts: `"plain"`, `"chat"`, or `"auto"` for the one in the student's `md_trl.json`, if the
            model's name is its folder or Hub id.
        extract (`str`, *optional*, defaults to `"strict"`):
            Whether a CoT must state its answer (`"strict"`), or its last number is accepted (`"flexible"`).
        seed (`int`, *optional*, defaults to `42`):
            Seed of the samples. Requests carry the same seeds as those of `md-trl eval`.

    Returns:
        [`~inspect_ai.solver.Solver`]: The solver.
    """
    if extract not in ("strict", "flexible"):
        raise InputError(f"`extract` is {extract!r}. Choose 'strict' or 'flexible'.")

    resolved = cache(_prompt_format)

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        model = get_model()
        format_ = resolved(model, prompt_format)
        # A further epoch draws further samples
        indices = range((state.epoch - 1) * n, state.epoch * n)
        prompts = {path: student_prompt(state.input_text, path, format_) for path in PATHS}
        sampled = await collect(
            *(_sample(model, prompts[path], indices, (seed, str(state.sample_id), path)) for path in PATHS)
        )
        texts = dict(zip(PATHS, sampled, strict=True))
        async with concurrency("programs", os.cpu_count() or 1):
            [answers] = await anyio.to_thread.run_sync(partial(read_texts, [texts], strict=extract == "strict"))
        result = tally(answers["cot"], answers["pot"])
        state.metadata |= answers
        state.metadata |= {f"{path}_texts": [choice.text for choice in texts[path]] for path in PATHS}
        state.metadata["votes"] = result.shares
        state.output = ModelOutput.from_content(str(model), result.answer or "")
        return state

    return solve


@scorer(metrics={figure: [accuracy(), stderr()] for figure in ("joint", *PATHS)})
def votes() -> Scorer:
    r"""
    Score the joint vote over all thoughts (Eq. 5) and the vote of each path, by the equality of [`~md_trl.answers`].

    Needs the answers that [`mixed_thoughts`] leaves in the metadata.

    Returns:
        [`~inspect_ai.scorer.Scorer`]: The scorer, with the accuracies `joint`, `cot` and `pot`.
    """

    async def score(state: TaskState, target: Target) -> Score:
        if not set(PATHS) <= set(state.metadata):
            raise InputError("The scorer `votes` needs the answers of the solver `mixed_thoughts`. Use both together.")
        answers = {path: state.metadata[path] for path in PATHS}
        return Score(
            value=figures([answers], [target.text]),
            answer=state.output.completion,
            explanation=" ".join(f"{path}: {', '.join(map(str, answers[path]))}." for path in PATHS),
        )

    return score


async def _sample(model: Model, prompt: Prompt, indices: range, seed: tuple[int, str, str]) -> list[Choice]:
    """Ask for all samples at once, then one by one for those that a provider without `num_choices` leaves out."""
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]

    async def ask(first: int, number: int) -> list[Choice]:
        config = GenerateConfig(num_choices=number if number > 1 else None, seed=derive_seed(*seed, first))
        output = await model.generate([ChatMessageUser(content=text)], config=config)
        if not output.choices:
            raise RuntimeError(
                f"{model} returned no text for {seed[1]!r}. Repeat the sample with `inspect eval-retry`."
            )
        return [
            Choice(choice.message.text, "stop" if choice.stop_reason in _ENDED else choice.stop_reason)
            for choice in output.choices[:number]
        ]

    choices = await ask(indices[0], len(indices))
    rest: list[list[Choice]] = await collect(*(ask(index, 1) for index in indices[len(choices) :]))
    return choices + [choice for single in rest for choice in single]


def _prompt_format(model: Model, prompt_format: str) -> str:
    """Decide how to ask, and check that the provider passes it on unchanged."""
    name, provider = model.api.service_model_name(), ModelName(model).api
    prompt_format = named_prompt_format(name, prompt_format)
    if provider == "hf":
        _check_template(model.api, name, prompt_format)
    elif (prompt_format == "plain") != (provider in TEXT_PROVIDERS):
        raise InputError(
            f"The provider {provider!r} writes {'text' if provider in TEXT_PROVIDERS else 'a chat'}, but "
            f"{name!r} is to be asked with `prompt_format={prompt_format!r}`. For plain text use "
            f"{' or '.join(TEXT_PROVIDERS)} or hf, for a chat another provider."
        )
    return prompt_format


def _check_template(api: Any, name: str, prompt_format: str) -> None:
    """Raise an error where the provider `hf` would write prompts that the student was not trained with."""
    given = isinstance(api.chat_template, str) and api.use_chat_template is not False
    if prompt_format == "plain" and not given:
        raise InputError(
            f"{name!r} is to be asked in plain text, but the provider 'hf' puts every prompt into a chat. Pass "
            """-M 'chat_template="{{ messages[0].content }}"', which leaves the text as it is."""
        )
    if (
        prompt_format == "chat"
        and not given
        and (api.tokenizer.chat_template is None or api.use_chat_template is False)
    ):
        raise InputError(
            f"{name!r} is to be asked in a chat, but its tokenizer has no chat template. Pass one with -M."
        )
