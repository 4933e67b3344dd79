"""A stand-in for vLLM: the part of its documented interface that md_trl uses, on top of a transformers model.

It accepts no arguments that vLLM does not have. `llm.calls` records the calls of `generate`.
"""

from dataclasses import dataclass, field

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: list[str] | None = None
    max_tokens: int | None = 16
    logprobs: int | None = None


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None
    logprobs: list[dict[int, Logprob]] | None = None


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    num_cached_tokens: int | None = None


@dataclass
class ModelConfig:
    max_model_len: int


@dataclass
class LLMEngine:
    model_config: ModelConfig


@dataclass
class LLM:
    model: str
    enable_prefix_caching: bool = False
    gpu_memory_utilization: float = 0.9
    tensor_parallel_size: int = 1
    logprobs_mode: str = "raw_logprobs"
    calls: list = field(default_factory=list)

    def __post_init__(self):
        self._model = AutoModelForCausalLM.from_pretrained(self.model).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(self.model)
        self.llm_engine = LLMEngine(ModelConfig(self._model.config.max_position_embeddings))

    def get_tokenizer(self):
        return self._tokenizer

    def generate(self, prompts, sampling_params, *, use_tqdm=True):
        assert len(prompts) == len(sampling_params)
        self.calls.append((prompts, sampling_params, use_tqdm))
        outputs = []
        for i, (prompt, params) in enumerate(zip(prompts, sampling_params, strict=True)):
            ids = prompt["prompt_token_ids"]
            if len(ids) + params.max_tokens > self.llm_engine.model_config.max_model_len:
                raise ValueError("the prompt is longer than the maximum model length")
            # The seed of a sample is the seed of the request plus its index. Samples may be in any order.
            samples = [self._sample(ids, params, index) for index in reversed(range(params.n))]
            outputs.append(RequestOutput(ids, samples, num_cached_tokens=2 if i else 0))
        return outputs

    @torch.no_grad()
    def _sample(self, ids, params, index):
        generator = torch.Generator().manual_seed(params.seed + index)
        new, found = [], None if params.logprobs is None else []
        while len(new) < params.max_tokens:
            logits = self._model(input_ids=torch.tensor([ids + new])).logits[0, -1]
            if params.temperature == 0:
                token = int(logits.argmax())
            else:
                token = int(torch.multinomial((logits / params.temperature).softmax(-1), 1, generator=generator))
            new.append(token)
            if found is not None:
                assert params.logprobs == 0 and self.logprobs_mode == "raw_logprobs"
                found.append({token: Logprob(logits.log_softmax(-1)[token].item())})
            text = self._tokenizer.decode(new, skip_special_tokens=True)
            for stop in params.stop or []:
                if stop in text:
                    return CompletionOutput(index, text[: text.index(stop)], new, "stop", found)
            if token == self._tokenizer.eos_token_id:
                return CompletionOutput(index, text, new, "stop", found)
        return CompletionOutput(index, text, new, "length", found)
