"""The models of a TRL trainer as policies, and the trainers and methods for which that is not possible."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from workbench.distill.method import Method
from workbench.errors import ConfigError
from workbench.policies.autoregressive import AutoregressivePolicy, load_policy
from workbench.policies.loading import fit_together, leave_room
from workbench.types import STUDENT

HOOK = "_generate_and_score_completions"  # of GRPO, RLOO and distillation; private
GKD_HOOK = "generate_on_policy_outputs"  # of GKD
TEACHER = "teacher"


def check_trainer(trainer: Any, method: Method) -> None:
    """Raise ConfigError for a trainer or a method whose rollouts cannot be recorded."""
    name = type(trainer).__name__
    if not callable(getattr(trainer, HOOK, getattr(trainer, GKD_HOOK, None))):
        raise ConfigError(
            f"{name} has neither {HOOK} nor {GKD_HOOK}, so its rollouts cannot be recorded. Expected TRL's "
            "GRPOTrainer, RLOOTrainer, DistillationTrainer or GKDTrainer, as of TRL 1.16."
        )
    if getattr(trainer, "is_deepspeed_enabled", False) or getattr(trainer, "is_fsdp_enabled", False):
        raise ConfigError(
            f"{name} shards its weights (DeepSpeed or FSDP), and recording needs them whole. Log completions instead, "
            "and score them with workbench score (docs/rollouts.md)."
        )
    others = [policy for policy in method.policies if policy not in (STUDENT, TEACHER)]
    if others:
        raise ConfigError(
            f"method {method.name} needs {', '.join(others)}, a second copy of the student, which is not made while "
            "another trainer trains. Choose opd, dopd, grpo or another method of student and teacher."
        )


def live_policies(trainer: Any, method: Method, teacher: str | None) -> dict[str, AutoregressivePolicy]:
    """The trainer's own models as policies; `teacher` is loaded if it is named."""
    policies = {STUDENT: AutoregressivePolicy(unwrapped(trainer, trainer.model), trainer.processing_class, STUDENT)}
    if TEACHER in method.policies and teacher is not None:
        policies[TEACHER] = load_policy(teacher, TEACHER, dtype="auto", device=str(trainer.accelerator.device))
    elif TEACHER in method.policies:
        model = unwrapped(trainer, trainer.teacher_model)
        policies[TEACHER] = AutoregressivePolicy(model, trainer.processing_class, TEACHER)
    for policy in policies.values():
        policy.encoder.max_pixels = None  # TRL does not reduce images
    with evaluating(policy.model for policy in policies.values()):
        fit_together(policies, accept_differences=True)
    leave_room(policies.values(), 1)
    return policies


@contextlib.contextmanager
def evaluating(models: Iterable[nn.Module]) -> Iterator[None]:
    """Evaluation mode and torch's random numbers for a while; both are as before afterwards, module by module."""
    models = list(models)
    modes = [(module, module.training) for model in models for module in model.modules()]
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        for model in models:
            model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def name_of(model: Any) -> str:
    """Folder or hub name of a model; models built in memory have none."""
    return getattr(getattr(model, "config", None), "_name_or_path", "") or "in-memory"


def dtype_of(model: nn.Module) -> str:
    """Data type of a model's weights, as in models.dtype."""
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def unwrapped(trainer: Any, model: Any) -> nn.Module:
    """The model without wrappers of accelerate and peft, whose adapters stay active."""
    inner = trainer.accelerator.unwrap_model(model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner
