"""vLLM behind a server: its pooling runner scores for a teacher, its generation samples for a sampler.

The engine core is in the server's process. With tensor parallelism the workers are processes of their own, which end
with it (worker.py).
"""

import importlib
import os
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from jaxtyping import Float
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from workbench.errors import PolicyError
from workbench.policies import Completion
from workbench.policies.serving.addresses import WORKERS
from workbench.policies.serving.engine import DeadEngineError, with_decoding
from workbench.policies.serving.trunk import folder_fingerprint, load_trunk, require_divisible, weight_shapes
from workbench.policies.serving.wire import ReadRequest, SampleRequest
from workbench.policies.vllm import Request, VllmEngine, check_same_prompt, require_vllm, start_vllm, vllm_prompt

KEY, OTHER = "--engine vllm", "--engine transformers, or another --memory"
TASK = "token_embed"
EXTENSION = "workbench.policies.serving.worker.EndsWithServer"  # not imported here: it acts on its process
R = TypeVar("R")


class _Vllm:
    """What both engines share.

    tensor_parallel  processes, each with a part of every layer
    memory           share of each device's memory for vLLM; on a CPU, of the machine's

    Raises: ConfigError if vLLM is missing or cannot start; PolicyError for a model that it cannot serve.
    """

    name = "vllm"

    def __init__(
        self, model: str | Path, *, dtype: str, tensor_parallel: int, memory: float, trust_remote_code: bool
    ) -> None:
        require_vllm(KEY, "--engine transformers")
        options = {"trust_remote_code": trust_remote_code}
        require_divisible(model, tensor_parallel, **options)
        self.policy, self.head, self.dtype = load_trunk(model, dtype=dtype, **options)
        self._model, self._options = model, options
        os.environ[WORKERS] = "1"
        workers = {"distributed_executor_backend": "mp", "worker_extension_cls": EXTENSION}
        self.llm = self._start(
            str(model),
            dtype=str(self.dtype).removeprefix("torch."),
            tensor_parallel_size=tensor_parallel,
            memory=memory,
            key=KEY,
            other=OTHER,
            **options,
            **(workers if tensor_parallel > 1 else {}),
        )
        self.policy.encoder.context_length = self.llm.model_config.max_model_len
        self.fingerprint = folder_fingerprint(model, self.dtype, self.name)
        self.versions = {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "vllm": importlib.import_module("vllm").__version__,
        }

    @abstractmethod
    def _start(self, model: str, **options: Any) -> Any:
        """Start vLLM. Returns its LLM."""

    def shapes(self) -> dict[str, torch.Size]:
        """Shapes of all weights by name, of tied ones the first."""
        return weight_shapes(self._model, **self._options)

    def dtypes(self) -> dict[str, torch.dtype]:
        """Data types of these weights: that of the engine, or float32 where vLLM has one of that kind in another.

        vLLM joins some weights of a model folder, and keeps the ends of their names: weight, bias.
        """
        kept = [pair for pairs in self.llm.collective_rpc(_kinds_of_weights) for pair in pairs]
        halved = {end for end, _ in kept} - {end for end, dtype in kept if dtype != str(self.dtype)}
        return {name: self.dtype if _end(name) in halved else torch.float32 for name in self.shapes()}

    def _computed(self, work: Callable[[], R]) -> R:
        """Result of a call of vLLM. Raises: DeadEngineError if a worker has ended or hangs, or a pass failed."""
        try:
            return work()
        except PolicyError:
            raise
        except ValueError as error:  # for example too many images, or a too long prompt; nothing was computed
            raise PolicyError(f"vllm rejects these prompts ({error}). Choose --engine transformers.") from error
        except Exception as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), "")
            what = self.fault() or f"a forward pass of vllm failed ({type(error).__name__}: {reason[:300]})."
            raise DeadEngineError(what) from error

    def fault(self) -> str:
        """Why it cannot compute any more; "" while it can."""
        failed = getattr(self.llm.llm_engine.model_executor, "is_failed", False)
        return "a worker process of vllm has ended." if failed else ""

    def close(self) -> None:
        """End the workers, also one that hangs."""
        executor = self.llm.llm_engine.model_executor
        if getattr(executor, "workers", None):
            executor.shutdown()


def _kinds_of_weights(worker: Any) -> list[tuple[str, str]]:
    """Ends of names and data types of the weights of vLLM's model, in one of its workers."""
    weights = worker.get_model().named_parameters()
    return sorted({(_end(name), str(value.dtype)) for name, value in weights if value.is_floating_point()})


def _end(name: str) -> str:
    return name.rpartition(".")[2]


class VllmTeacher(_Vllm):
    """Scores answers by the pooling runner, which returns the last hidden state of every token."""

    samples = False

    def _start(self, model: str, **options: Any) -> Any:
        pooling = {"task": TASK, "pooling_type": "ALL", "use_activation": False}
        self._package, llm = start_vllm(model, runner="pooling", pooler_config=pooling, **options)
        return llm

    def hidden_states(self, request: ReadRequest) -> list[Float[Tensor, "T D"]]:
        """Hidden states that predict each answer token, by row. Raises: PolicyError if vLLM reads other tokens."""
        encoder, images = self.policy.encoder, request.template["image_processor"]
        expected = [tuple(encoder.encode(prompt)["input_ids"][0].tolist()) for prompt in request.prompts]
        prompts = [Request(*encoder.request(prompt)) for prompt in request.prompts]
        rows = [row for row, ids in enumerate(request.completions) if ids]
        inputs = [vllm_prompt(prompts[request.rows[row]], images, request.completions[row][:-1]) for row in rows]
        parameters = self._package.PoolingParams(use_activation=False)
        outputs = self._computed(lambda: self.llm.encode(inputs, parameters, pooling_task=TASK, use_tqdm=False))
        by_row = [torch.zeros(0, self.policy.head_width, dtype=self.dtype)] * len(request.completions)
        for row, output in zip(rows, outputs, strict=True):
            prompt, ids = expected[request.rows[row]], request.completions[row][:-1]
            check_same_prompt(tuple(output.prompt_token_ids), (*prompt, *ids), request.prompts[request.rows[row]].key)
            by_row[row] = output.outputs.data[len(prompt) - 1 :].to("cpu", self.dtype)  # float32 of its precision
        return by_row

    def sample(self, request: SampleRequest) -> list[list[Completion]]:
        """Refuse: the pooling runner cannot."""
        raise PolicyError(
            "a teacher by vllm only scores answers. Start it with --engine transformers to have it answer."
        )

    def load(self, weights: dict[str, Tensor], *, last: bool) -> None:
        """Refuse: a teacher is frozen."""
        raise PolicyError("a teacher is frozen. Start `workbench sampler`.")


class VllmSampler(_Vllm):
    """Samples answers; each version of the weights is collected, then loaded as from a model folder."""

    samples = True

    def _start(self, model: str, **options: Any) -> Any:
        self._engine = VllmEngine(model, **options)
        self._collected: dict[str, Tensor] = {}
        return self._engine.llm

    def sample(self, request: SampleRequest) -> list[list[Completion]]:
        """Answers to each prompt, one for each of its seeds."""
        if request.options.stop_strings:
            raise PolicyError("a sampler by vllm has no stop strings. Remove sampling.stop_strings.")
        self._engine.image_options = request.template["image_processor"]
        policy = with_decoding(self.policy, request)
        return self._computed(lambda: policy.sample_by(self._engine, request.prompts, request.seeds, request.options))

    def load(self, weights: dict[str, Tensor], *, last: bool) -> None:
        """Collect weights, and load them into vLLM with the last."""
        self._collected |= weights
        if last:
            named = list(revert_weight_conversion(self.policy.model, self._collected).items())
            self._collected = {}
            self._computed(lambda: self._engine.load(named))

    def hidden_states(self, request: ReadRequest) -> list[Float[Tensor, "T D"]]:
        """Refuse: vLLM's generation returns no hidden states."""
        raise PolicyError("a sampler by vllm scores no answers. Start `workbench teacher`.")
