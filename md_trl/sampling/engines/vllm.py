"""Samples from a local model with vLLM (`pip install "md_trl[vllm]"`), which computes shared prefixes once.

Written against vLLM's documented interface (`LLM`, `SamplingParams`). The project has had no GPU to run it on: the
tests use a stand-in for the module.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InputError, check_at_least_one
from ...prompts import encode_prompt, read_student_settings, resolve_prompt_format
from ...records import Choice
from ...student_folder import check_student
from . import SampleRequest, SampleResult, check_params, cut_at_stop, mean_logprob, model_name
from .decoding import count_kept, decode


if TYPE_CHECKING:
    from vllm import CompletionOutput


class VLLMEngine:
    r"""
    Samples from a local causal language model with vLLM.

    The samples of a request share its seed, as on an OpenAI-compatible server. The rest of the batch changes nothing
    but floating-point noise, and a request for fewer samples returns the first of them.

    Log-probabilities are those of the model before temperature and `top_p` (vLLM's `raw_logprobs`), with EOS, and up
    to the end of the kept text where a stop string ended it.

    Args:
        model (`str`):
            Folder or Hub id of a model.
        batch_size (`int`, *optional*, defaults to `256`):
            Number of requests passed to vLLM at once. Their results are stored together.
        llm_kwargs (`Any`):
            Further arguments of [`vllm.LLM`](https://docs.vllm.ai/en/stable/api/vllm/), such as
            `tensor_parallel_size`.

    Raises:
        `ImportError`: vLLM is not installed.
        `ValueError`: The model is an adapter.

    Examples:

    ```python
    >>> from md_trl.sampling.engines import SampleRequest
    >>> from md_trl.sampling.engines.vllm import VLLMEngine

    >>> engine = VLLMEngine("meta-llama/Llama-2-7b-hf", gpu_memory_utilization=0.8)
    >>> prompt = "What is 2 plus 3?\nLet's think step by step.\n"
    >>> for result in engine.generate([SampleRequest("demo/test/1", "cot", prompt, n=5)]):
    ...     print([choice.text for choice in result.choices])
    ```
    """

    def __init__(self, model: str, batch_size: int = 256, **llm_kwargs):
        try:
            from vllm import LLM
        except ImportError as error:
            raise ImportError(
                'The engine `vllm` needs vLLM: `pip install "md_trl[vllm]"` on a machine that vLLM supports, or use '
                "`--engine transformers`."
            ) from error
        check_at_least_one("batch_size", batch_size)
        if (Path(model) / "adapter_config.json").exists():
            raise InputError(
                f"{model} is an adapter, which the engine `vllm` does not load. Merge it "
                "(`AutoPeftModelForCausalLM.from_pretrained(...).merge_and_unload()`), or use `--engine transformers`."
            )
        check_student(model)
        self._llm = LLM(model=model, enable_prefix_caching=True, logprobs_mode="raw_logprobs", **llm_kwargs)
        self.model = model_name(model)
        self.student_settings = read_student_settings(model)
        self.tokenizer = self._llm.get_tokenizer()
        self._max_length = self._llm.llm_engine.model_config.max_model_len
        self.batch_size = batch_size

    def student_prompt_format(self, prompt_format: str = "auto") -> str:
        r"""
        Decide how a student is asked.

        Args:
            prompt_format (`str`, *optional*, defaults to `"auto"`):
                As in [`~md_trl.prompts.resolve_prompt_format`].

        Returns:
            `str`: `"plain"` or `"chat"`.
        """
        return resolve_prompt_format(self.tokenizer, prompt_format, self.student_settings)

    def generate(self, requests: Iterable[SampleRequest]) -> Iterator[SampleResult]:
        r"""
        Sample all requests.

        Args:
            requests (`Iterable[SampleRequest]`):
                Pulled `batch_size` at a time.

        Yields:
            [`SampleResult`]: Each one, in the order of the requests.

        Raises:
            `ValueError`: Parameters that cannot be sampled with, see [`~md_trl.sampling.engines.check_params`].
        """
        from vllm import SamplingParams

        requests = iter(requests)
        while batch := list(itertools.islice(requests, self.batch_size)):
            fitting = []
            for request in batch:
                check_params(request.params, request.n)
                ids = encode_prompt(request.prompt, self.tokenizer)
                if 0 < len(ids) < self._max_length:
                    fitting.append((request, ids))
                else:
                    # vLLM would refuse the whole batch.
                    error = f"the prompt of {len(ids)} tokens leaves no room" if ids else "the prompt is empty"
                    yield SampleResult(request, error=error, retry=False)
            params = [
                SamplingParams(
                    n=request.n,
                    temperature=request.params.temperature,
                    top_p=request.params.top_p,
                    max_tokens=min(request.params.max_tokens, self._max_length - len(ids)),
                    stop=list(request.params.stop) or None,
                    seed=request.seed(),
                    logprobs=0,  # of the sampled token alone
                )
                for request, ids in fitting
            ]
            prompts = [{"prompt_token_ids": ids} for _, ids in fitting]
            outputs = self._llm.generate(prompts, params, use_tqdm=False)
            for (request, ids), output in zip(fitting, outputs, strict=True):
                samples = sorted(output.outputs, key=lambda sample: sample.index)
                # vLLM's finish reason is "stop" at EOS and at a stop string, "length" at the limit.
                choices = [self._choice(sample, request.params.stop) for sample in samples]
                completion_tokens = sum(len(sample.token_ids) for sample in samples)
                usage = {"prompt_tokens": len(ids), "completion_tokens": completion_tokens}
                if output.num_cached_tokens:
                    usage["cached_tokens"] = output.num_cached_tokens
                yield SampleResult(request, choices, usage)

    def _choice(self, sample: CompletionOutput, stop: Sequence[str]) -> Choice:
        choice = cut_at_stop(Choice(sample.text, str(sample.finish_reason)), stop)
        ids = list(sample.token_ids)
        if sample.logprobs is None:
            return choice
        # vLLM's text ends before a stop string, its tokens do not.
        is_cut = bool(stop) and len(choice.text) < len(decode(self.tokenizer, ids))
        kept = count_kept(self.tokenizer, ids, choice.text) if is_cut else len(ids)
        logprobs = [of_token[id_].logprob for id_, of_token in zip(ids, sample.logprobs, strict=True)]
        return choice._replace(logprob=mean_logprob(logprobs[:kept]))
