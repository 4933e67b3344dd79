"""Samples from a local model with vLLM (`pip install md_trl[vllm]`): `n` samples a prompt, prefixes computed once.

Written to vLLM's documented interface (`LLM`, `SamplingParams`). The project has had no GPU to run it on: its tests
use a stand-in for the module.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...errors import InputError
from ...prompts import encode
from . import Choice, SampleRequest, SampleResult, cut_at_stop, derive_seed, name_of_folder


class VLLMEngine:
    r"""
    Samples from a local causal language model with vLLM.

    The samples of a request share its seed, as in an OpenAI-compatible server: what it is batched with changes nothing
    but float noise, and a request for fewer samples begins with the same ones.

    Args:
        model (`str`):
            Folder or Hub id of a model.
        chat (`bool`, *optional*, defaults to `False`):
            Whether text prompts come out of a chat template, which writes its own special tokens.
        batch_size (`int`, *optional*, defaults to `256`):
            Requests that are handed over together; their results are stored together.
        llm_kwargs (`Any`):
            Other arguments of [`vllm.LLM`](https://docs.vllm.ai/en/stable/api/vllm/), such as `tensor_parallel_size`.

    Raises:
        `ImportError`: vLLM is not installed.
        `ValueError`: the model is an adapter.

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

    def __init__(self, model: str, chat: bool = False, batch_size: int = 256, **llm_kwargs):
        try:
            from vllm import LLM
        except ImportError as error:
            raise ImportError(
                "The engine `vllm` needs vLLM: `pip install md_trl[vllm]` on a machine that it supports, or use "
                "`--engine transformers`."
            ) from error
        if batch_size < 1:
            raise InputError(f"`batch_size` is {batch_size}. Use 1 or more.")
        if (Path(model) / "adapter_config.json").exists():
            raise InputError(
                f"{model} is an adapter, which the engine `vllm` does not load. Merge it "
                "(`AutoPeftModelForCausalLM.from_pretrained(...).merge_and_unload()`), or use `--engine transformers`."
            )
        self._llm = LLM(model=model, enable_prefix_caching=True, **llm_kwargs)
        self.model = name_of_folder(model)
        self.tokenizer = self._llm.get_tokenizer()
        self._longest = self._llm.llm_engine.model_config.max_model_len
        self.chat = chat
        self.batch_size = batch_size

    def generate(self, requests: Iterable[SampleRequest]) -> Iterator[SampleResult]:
        r"""
        Sample all requests.

        Args:
            requests (`Iterable[SampleRequest]`):
                Pulled `batch_size` at a time.

        Yields:
            [`SampleResult`]: in the order of the requests.
        """
        from vllm import SamplingParams

        requests = iter(requests)
        while batch := list(itertools.islice(requests, self.batch_size)):
            fitting = []
            for request, ids in zip(batch, self._encode(batch), strict=True):
                if 0 < len(ids) < self._longest:
                    fitting.append((request, ids))
                else:
                    # vLLM would refuse the whole batch.
                    error = f"the prompt of {len(ids)} tokens leaves no room" if ids else "the prompt is empty"
                    yield SampleResult(request, error=error, retry=False)
            parameters = [
                SamplingParams(
                    n=request.n,
                    temperature=request.temperature,
                    top_p=request.top_p,
                    max_tokens=min(request.max_tokens, self._longest - len(ids)),
                    stop=list(request.stop) or None,
                    seed=derive_seed(request.seed, request.question_id, request.path, request.first_index),
                )
                for request, ids in fitting
            ]
            prompts = [{"prompt_token_ids": ids} for _, ids in fitting]
            outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
            for (request, ids), output in zip(fitting, outputs, strict=True):
                samples = sorted(output.outputs, key=lambda sample: sample.index)
                # "stop" for the end of the text and for a stop string, "length" for too long a text
                choices = [cut_at_stop(Choice(s.text, str(s.finish_reason)), request.stop) for s in samples]
                completion_tokens = sum(len(sample.token_ids) for sample in samples)
                usage = {"prompt_tokens": len(ids), "completion_tokens": completion_tokens}
                if output.num_cached_tokens:
                    usage["cached_tokens"] = output.num_cached_tokens
                yield SampleResult(request, choices, usage)

    def _encode(self, requests: list[SampleRequest]) -> list[list[int]]:
        ids = []
        for request in requests:
            text, chat = request.prompt, self.chat
            if not isinstance(text, str):
                if self.tokenizer.chat_template is None:
                    raise InputError(
                        f"{self.model} has no chat template for a prompt of messages. Use a prompt of text, for "
                        "example `--prompt few_shot_text`."
                    )
                text = self.tokenizer.apply_chat_template(text, add_generation_prompt=True, tokenize=False)
                chat = True
            ids += encode(self.tokenizer, [text], chat)
        return ids
