"""`workbench teacher` and `workbench sampler`: serve a model as the options say."""

import argparse
import importlib

from workbench.distributed import choose_device
from workbench.errors import ConfigError, require_one_of
from workbench.policies.models import DTYPES, QUANTIZED
from workbench.policies.serving.engine import Engine, TransformersEngine
from workbench.policies.serving.service import SamplerService, TeacherService

ENGINES = ("transformers", "vllm")


def serve_model(options: argparse.Namespace, *, samples: bool) -> None:
    """Load the model and serve it until a signal. samples: runs replace its weights by their student's.

    Raises: ConfigError for an option or a missing package; RunError if the port is in use; PolicyError for the model.
    """
    require_one_of("--dtype", options.dtype, [name for name in DTYPES if name not in QUANTIZED])
    try:
        door = importlib.import_module("workbench.policies.serving.door")  # Starlette and uvicorn are an extra
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"this command needs {error.name}, which is not installed. Run pip install "
            "'vlm-distillation-workbench[app]', or in a clone pip install -e '.[app]'."
        ) from None
    kind = SamplerService if samples else TeacherService

    def load() -> TeacherService:
        return kind(_start(options))

    door.serve(load, options.host, options.port)


def _start(options: argparse.Namespace) -> Engine:
    return TransformersEngine.start(
        options.model,
        dtype=options.dtype,
        device=str(choose_device(options.device)),
        attn_implementation=options.attn_implementation,
        trust_remote_code=options.trust_remote_code,
    )
