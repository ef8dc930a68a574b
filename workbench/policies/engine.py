"""Rollout engines: something faster than `transformers` that writes the student's answers with the student's weights.

An engine is given the weights before every generation, writes, and returns with each token the log-prob that it drew it by.
That number is traced (sampler_logprob) beside the one that the student reads the same token with, so what an engine's other
kernels and precision change is measured in every run (metric `sampler_gap`), not assumed to be nothing.

What it read is compared with what the student is shown: an engine that prepares a picture or a template in its own way would
write answers to another prompt.
"""

import importlib
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from workbench.errors import ConfigError, PolicyError
from workbench.policies import SamplingOptions


@dataclass(frozen=True)
class Request:
    """A prompt as its chat template writes it, one placeholder an image; the same as tokens; and its images.

    An engine that is given the text must not begin it with a start token of its own: the template may have written one.
    """

    text: str
    ids: tuple[int, ...]
    images: tuple[Image.Image, ...]


@dataclass(frozen=True)
class Sampled:
    """One completion: its tokens (the end token included), the engine's log-prob of each at temperature 1 without any cut,
    and the tokens that the engine read the prompt as."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    prompt_ids: tuple[int, ...]


@runtime_checkable
class Engine(Protocol):
    """What is asked of one."""

    def load(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Write with these from now on; names are those of model folders."""

    def generate(
        self,
        requests: list[Request],
        seeds: list[list[int]],
        options: SamplingOptions,
        stop: frozenset[int],
        never: list[int],
    ) -> list[list[Sampled]]:
        """As many completions of each request as it has seeds. `stop` tokens end one, `never` tokens are not drawn."""


@torch.no_grad()
def weights_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every weight under its name in model folders, LoRA adapters added in."""
    added = {
        f"{name}.weight": sum(module.get_delta_weight(adapter) for adapter in module.active_adapters)
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    merged = {}
    for name, value in model.state_dict().items():
        plain = name.replace(".base_layer.", ".")
        if ".lora_" not in name:
            merged[plain] = (value + added[plain]).to(value.dtype) if plain in added else value
    yield from revert_weight_conversion(model, merged).items()


class VllmEngine:
    """vLLM on the student's own device, beside it.

    path      model folder or hub name that it is made of; the weights are the student's from the first generation on
    memory    share of the device's memory that it takes

    Never run here: there was no GPU. Made after its documentation and the calls that TRL 1.16 makes.
    """

    def __init__(self, path: str, *, dtype: str, length: int | None, memory: float, trust_remote_code: bool) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise ConfigError(
                "sampling.engine=vllm needs the package vllm, and a GPU: pip install 'vlm-distillation-workbench[vllm]', or "
                "choose sampling.engine=transformers."
            )
        if not torch.cuda.is_available():
            raise ConfigError("sampling.engine=vllm needs a CUDA GPU. Choose sampling.engine=transformers.")
        os.environ.setdefault(
            "VLLM_ENABLE_V1_MULTIPROCESSING", "0"
        )  # in this process, where weights can be handed over
        self._vllm = importlib.import_module("vllm")
        launched = {"distributed_executor_backend": "external_launcher"} if "WORLD_SIZE" in os.environ else {}
        self._model = self._vllm.LLM(
            model=path,
            dtype=dtype,
            max_model_len=length,
            gpu_memory_utilization=memory,
            enable_prefix_caching=True,
            logprobs_mode="raw_logprobs",
            trust_remote_code=trust_remote_code,
            **launched,
        )

    def load(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        own = self._model.llm_engine.model_executor.driver_worker.model_runner.model
        for one in weights:  # one by one: no second copy of all of them
            own.load_weights([one])
        self._model.reset_prefix_cache()  # of the old weights

    def generate(
        self,
        requests: list[Request],
        seeds: list[list[int]],
        options: SamplingOptions,
        stop: frozenset[int],
        never: list[int],
    ) -> list[list[Sampled]]:
        inputs, parameters = [], []
        for request, own in zip(requests, seeds, strict=True):
            shown = {"multi_modal_data": {"image": list(request.images)}} if request.images else {}
            for seed in own:
                inputs.append({"prompt_token_ids": list(request.ids), **shown})
                parameters.append(
                    self._vllm.SamplingParams(
                        max_tokens=options.max_completion_length,
                        temperature=options.temperature,
                        top_p=options.top_p,
                        top_k=options.top_k or -1,
                        seed=seed,
                        stop_token_ids=sorted(stop),
                        logit_bias=dict.fromkeys(never, -100.0) or None,
                        logprobs=0,  # of the drawn token alone
                        detokenize=False,
                    )
                )
        found = iter(map(_sampled, self._model.generate(inputs, parameters, use_tqdm=False)))
        return [[next(found) for _ in own] for own in seeds]


def _sampled(answer) -> Sampled:
    (written,) = answer.outputs
    ids = tuple(written.token_ids)
    logprobs = tuple(float(own[token].logprob) for token, own in zip(ids, written.logprobs, strict=True))
    return Sampled(ids, logprobs, tuple(answer.prompt_token_ids))


def check_same_prompt(read: tuple[int, ...], shown: tuple[int, ...], key: str) -> None:
    """Raises PolicyError if the engine read another prompt than the student is shown."""
    if read != shown:
        at = next((place for place, pair in enumerate(zip(read, shown, strict=False)) if pair[0] != pair[1]), None)
        where = f"they differ first at token {at}" if at is not None else f"{len(read)} tokens instead of {len(shown)}"
        raise PolicyError(
            f'the rollout engine reads prompt "{key}" as other tokens than the student does ({where}), so its answers would be '
            "to another prompt. Choose sampling.engine=transformers, or versions of vllm and transformers that agree."
        )
