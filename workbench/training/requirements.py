"""What a configuration asks of its models, checked before weights are loaded or a run folder is created.

Processors and chat templates are loaded; roles and target modules are sought in a model on the meta device, which has
modules and no weights.
"""

import re

from workbench.config.models import check_models
from workbench.config.schema import QUANTIZED, RunConfig
from workbench.errors import ConfigError
from workbench.files.packages import require_bitsandbytes
from workbench.policies.adapters import add_adapter
from workbench.policies.models import load_skeleton
from workbench.policies.roles import set_trained
from workbench.training.learner import adapter_config
from workbench.training.prompts import Encoders
from workbench.types import STUDENT


def require_models(config: RunConfig) -> None:
    """Check everything that a run asks of its models and that their folders tell without weights.

    Raises: ConfigError or PolicyError for a path without model, a missing package, an option that an image processor
    lacks, an argument that a chat template does not read, a role of which a student has no weight to train, or target
    modules that it lacks.
    """
    check_models(config)
    _require_packages(config)
    _require_processors(config)
    models = config.models
    if models.train or models.freeze_embeddings or config.training.learning_rates or models.lora.rank:
        for name, path in models.learners.items():
            _require_trained(config, name, path)


def _require_packages(config: RunConfig) -> None:
    models = config.models
    for key, value in (("dtype", models.dtype), ("teacher_dtype", models.teacher_dtype)):
        if value in QUANTIZED:
            require_bitsandbytes(f"models.{key}={value} needs", f"choose models.{key}=bfloat16")
    if config.training.optimizer == "adamw_8bit":
        require_bitsandbytes("training.optimizer=adamw_8bit needs", "choose training.optimizer=adamw")


def _require_processors(config: RunConfig) -> None:
    encoders, models = Encoders(config), config.models
    for name, path in models.learners.items():
        encoders.load(path, name, is_teacher=False)
    if any(policy.startswith("teacher") for policy in config.load_method().policies):
        for path in filter(None, (models.teacher, *models.teachers.values())):
            encoders.load(path, "teacher", is_teacher=True)


def _require_trained(config: RunConfig, name: str, path: str) -> None:
    models = config.models
    model = load_skeleton(path, name, trust_remote_code=models.trust_remote_code)
    if models.lora.rank and not getattr(model, "peft_config", None):
        adapter = adapter_config(models.lora)
        try:
            add_adapter(model, adapter)
        except (ValueError, re.error) as error:
            key = "models.student" if name == STUDENT else f"models.peers.{name}"
            raise ConfigError(
                f'models.lora.target_modules="{models.lora.target_modules}" fits no layer of {type(model).__name__} '
                f"({key}): {str(error).splitlines()[0][:200]} Set it to all-linear, or to a regular expression of "
                "whole names of modules."
            ) from error
    rates = config.training.learning_rates
    set_trained(model, models.train, rates, name, freeze_embeddings=models.freeze_embeddings)
