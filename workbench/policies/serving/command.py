"""`workbench teacher` and `workbench sampler`: serve a model as the options say."""

import argparse
import importlib
import logging

import torch

from workbench.distributed import choose_device
from workbench.errors import ConfigError, require_one_of
from workbench.files.packages import importing
from workbench.policies.models import DTYPES, QUANTIZED
from workbench.policies.serving.engine import Engine, TransformersEngine
from workbench.policies.serving.service import SamplerService, TeacherService

VLLM = "vllm"
log = logging.getLogger("workbench")
ENGINES = ("transformers", VLLM)
DEVICE_MEMORY, HOST_MEMORY = 0.9, 0.3  # vLLM's share
OF_VLLM = {  # options, and why they are of no other engine
    "tensor_parallel": "transformers' plans leave the decoder of some models whole (Qwen3-VL: all but its head). "
    "Choose --engine vllm, or remove the option.",
    "memory": "it takes what it needs. Remove the option.",
    "compare": "it is what --engine vllm is compared with. Remove the option.",
}
NOT_OF_VLLM = {
    "device": "vLLM takes the first devices that it sees. Remove the option, and set CUDA_VISIBLE_DEVICES.",
    "attn_implementation": "vLLM has its own attention. Remove the option.",
}


def serve_model(options: argparse.Namespace, *, samples: bool) -> None:
    """Load the model and serve it until a signal. samples: runs replace its weights by their student's.

    Raises: ConfigError for an option or a missing package; RunError if the port is in use; PolicyError for the model.
    """
    require_one_of("--dtype", options.dtype, [name for name in DTYPES if name not in QUANTIZED])
    with importing("this command needs", "app"):
        door = importlib.import_module("workbench.policies.serving.door")  # Starlette and uvicorn are an extra
    _check_engine(options)
    kind = SamplerService if samples else TeacherService

    def load() -> TeacherService:
        return kind(_start(options, samples))

    door.serve(load, options.model, options.host, options.port)


def _check_engine(options: argparse.Namespace) -> None:
    """Raise ConfigError for an unknown engine, and for options of another."""
    require_one_of("--engine", options.engine, ENGINES)
    is_vllm = options.engine == VLLM
    for name, why in (NOT_OF_VLLM if is_vllm else OF_VLLM).items():
        value = getattr(options, name, None)
        if value is not None and value is not False:
            option = f"--{name.replace('_', '-')}" + (f" {value}" if value is not True else "")
            raise ConfigError(f"{option} does not apply to --engine {options.engine}: {why}")
    if options.tensor_parallel is not None and options.tensor_parallel < 1:
        raise ConfigError(f"--tensor-parallel {options.tensor_parallel} must be a number of devices, at least 1.")
    if options.memory is not None and not 0.0 < options.memory <= 1.0:
        raise ConfigError(f"--memory {options.memory} must be a fraction of the device's memory, from 0 to 1.")


def _start(options: argparse.Namespace, samples: bool) -> Engine:
    if options.engine == VLLM:
        engines = importlib.import_module("workbench.policies.serving.vllm_engines")
        kind = engines.VllmSampler if samples else engines.VllmTeacher
        engine = kind(
            options.model,
            dtype=options.dtype,
            tensor_parallel=options.tensor_parallel or 1,
            memory=options.memory or (DEVICE_MEMORY if torch.accelerator.is_available() else HOST_MEMORY),
            trust_remote_code=options.trust_remote_code,
        )
        if not samples and options.compare:
            _compare(engine, options)
        return engine
    return TransformersEngine.start(
        options.model,
        dtype=options.dtype,
        device=str(choose_device(options.device)),
        attn_implementation=options.attn_implementation,
        trust_remote_code=options.trust_remote_code,
    )


def _compare(engine: Engine, options: argparse.Namespace) -> None:
    comparison = importlib.import_module("workbench.policies.serving.comparison")
    try:
        log.info(
            "%s",
            comparison.compare_with_transformers(
                engine, options.model, dtype=options.dtype, trust_remote_code=options.trust_remote_code
            ),
        )
    except BaseException:
        engine.close()
        raise
