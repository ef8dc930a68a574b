"""A learner: the policies that are its student, its past and its teachers, and the optimiser that moves it.

A method names policies relative to one learner ("student", "student@ema", ...). A run has one learner, or several that
each see themselves as the student.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator

import torch
from transformers import get_scheduler

from workbench.config.schema import LoraConfig, RunConfig
from workbench.data.contexts import parse_context
from workbench.distill.method import Method
from workbench.distill.step import NonFiniteError
from workbench.distributed import ALONE, Group
from workbench.errors import ConfigError
from workbench.policies import Policy
from workbench.policies.adapters import adapts_tied_weights, base_of, has_adapter
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.policies.dropout import enter_training_without_dropout, set_adapter_dropout
from workbench.policies.fsdp import full_tensor, local_tensor, shard, single_policies
from workbench.policies.loading import load_policies
from workbench.policies.proven import agree
from workbench.policies.vllm import VllmEngine, require_vllm
from workbench.runs.checkpoints import Checkpoint, refuse_other_run
from workbench.training.underflow import UpdateUnderflow
from workbench.training.update_mask import UpdateMask
from workbench.types import STUDENT


class Learner:
    """Weights that are trained, with what belongs to them. Policies are by the method's names, whatever its own is."""

    def __init__(self, policies: dict[str, Policy], config: RunConfig, ema_rate: float, name: str = STUDENT) -> None:
        self.name, self.policies, self.ema_rate = name, policies, ema_rate
        self.seed = () if name == STUDENT else (name,)  # goes into its draws, so that peers do not draw alike
        model = self.student.model
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name or not has_adapter(model))
        self._dropout = config.training.dropout
        set_adapter_dropout(model, config.models.lora.dropout)
        if config.models.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        training = config.training
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        rule = {"lr": training.learning_rate, "weight_decay": training.weight_decay}
        if training.optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(self.parameters, **rule)
        else:
            # fused: one pass over the memory, on a CPU several times as fast
            self.optimizer = torch.optim.AdamW(self.parameters, betas=tuple(training.betas), fused=True, **rule)
        self.mask = UpdateMask(training.update_mask, model) if training.update_mask else None
        if self.mask is not None:
            self.optimizer.param_groups[0]["weight_decay"] = 0.0  # it would move what is masked; see `step`
        self.weight_decay = training.weight_decay
        self.underflow = UpdateUnderflow(self.parameters)
        self._rate = learning_rates(config)
        self.max_grad_norm = training.max_grad_norm

    @property
    def student(self) -> AutoregressivePolicy:
        return self.policies[STUDENT]

    @contextlib.contextmanager
    def training_mode(self) -> Iterator[None]:
        """Inside, the student's activations are recomputed if models.gradient_checkpointing asks for it, and dropout is
        on where a key asks for it: models.lora.dropout, training.dropout."""
        model = self.student.model
        if self._dropout:
            model.train()
        else:
            enter_training_without_dropout(model)
        try:
            yield
        finally:
            model.eval()

    def all_reduce_gradients(self, group: Group) -> None:
        """Make the gradients those of all processes' batches; of sharded weights they are summed already."""
        if self.student.shards is None:
            group.all_reduce_gradients(self.parameters)
        else:
            self.student.shards.leave_untouched(self.parameters)

    def clip_gradients(self) -> dict[str, float]:
        """Scale the gradients that are there down to the largest norm allowed.

        Raises: NonFiniteError if one is not a number; no weight was changed by it.
        """
        if self.mask is not None:
            self.mask.hide_gradients()
        limit = self.max_grad_norm or float("inf")
        grad_norm = full_tensor(torch.nn.utils.clip_grad_norm_(self.parameters, limit))
        if not torch.isfinite(grad_norm):
            raise NonFiniteError(
                f"the norm of {self.name}'s gradient is {float(grad_norm)}, though every loss is finite."
            )
        return {"grad_norm": float(grad_norm)}

    def step(self, step: int) -> dict[str, float]:
        """One optimiser step with the gradients that are there; steps count from 1."""
        rate = self._rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.mask is not None:
            self.mask.decay(1 - rate * self.weight_decay)
        self.underflow.before()
        self.optimizer.step()
        moved = self.underflow.after()
        self.optimizer.zero_grad(set_to_none=True)
        if "student@ema" in self.policies:
            self._update_ema()
        return {"learning_rate": rate} | moved

    def skip_step(self, step: int) -> dict[str, float]:
        """A step in which no position was supervised: nothing moves, by momentum or decay neither."""
        self.optimizer.zero_grad(set_to_none=True)
        return {"learning_rate": self._rate(step)}

    @torch.no_grad()
    def _update_ema(self) -> None:
        """student@ema <- (1 - rate) student@ema + rate student."""
        average = dict(self.policies["student@ema"].model.named_parameters())
        both = [
            (average[name], weight) for name, weight in self.student.model.named_parameters() if weight.requires_grad
        ]
        pairs = [(local_tensor(mean), local_tensor(weight)) for mean, weight in both]
        alike = [pair for pair in pairs if pair[0].dtype == pair[1].dtype]
        if alike:
            torch._foreach_lerp_([mean for mean, _ in alike], [weight for _, weight in alike], self.ema_rate)
        for mean, weight in pairs:
            if mean.dtype != weight.dtype:  # one after the other, so that there is never a second copy of all weights
                mean.lerp_(weight.to(mean.dtype), self.ema_rate)


def build_learner(
    config: RunConfig,
    method: Method,
    name: str = STUDENT,
    *,
    device: str = "cpu",
    checkpoint: Checkpoint | None = None,
    group: Group = ALONE,
) -> Learner:
    """A learner of a run, at its start or at a checkpoint; in parts, if the group's processes are to hold some each."""
    models, lora = config.models, config.models.lora
    start = models.learners[name]
    if checkpoint is not None:
        averages = f"{STUDENT}@ema" in method.policies
        refuse_other_run(checkpoint, name, start, lora=bool(lora.rank), averages=averages)
    adapter = _adapter_config(lora) if lora.rank else None
    torch.manual_seed(config.seed)  # an adapter's first weights are random
    policies = load_policies(
        method.policies,
        learner=name,
        student=checkpoint.weights(name) if checkpoint else start,
        start=start if checkpoint else None,
        ema=checkpoint.ema(name) if checkpoint else None,
        teacher=models.teacher,
        teachers=models.teachers,
        dtype=models.dtype,
        teacher_dtype=models.teacher_dtype,
        offload_teachers=models.offload_teachers,
        attention=models.attention,
        compiler=models.compile,
        device="cpu" if group.sharding else device,
        trust_remote_code=models.trust_remote_code,
        max_completion_length=config.sampling.max_completion_length,
        block=config.sampling.block,
        steps_per_block=config.sampling.steps_per_block,
        adapter=adapter,
        accept_differences=models.accept_differences,
    )
    _check_adapter(policies[STUDENT], lora, start, name)
    agree(single_policies(policies.values()), group)
    if (
        any("future" in parse_context(context) for context in method.contexts)
        and policies[STUDENT].denoising_schedule(()) is None
    ):
        raise ConfigError(
            f"method {method.name} shows a view later blocks of an answer, and {start} writes from left to right. Set "
            "models.student to a masked diffusion model, such as data/models/diffusion."
        )
    if group.sharding is not None:
        _refuse_rows_apart(config, policies)
        shard(policies.values(), group, device)
    return Learner(policies, config, method.ema_rate, name)


def autocast(config: RunConfig, device: str | torch.device) -> torch.autocast:
    """Inside, models sample and score in the precision of training.mixed_precision; also when a run is evaluated
    again.
    """
    enabled = config.training.mixed_precision == "bf16"
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=enabled)


def check_engine(config: RunConfig, method: Method) -> None:
    """Raises ConfigError, before anything is loaded, if the engine asked for is missing or would leave out what a
    method does.
    """
    if config.sampling.engine != "vllm":
        return
    if method.sampling_patch is not None:
        raise ConfigError(
            f"sampling.engine=vllm would write without what method {method.name} puts into the student while it writes "
            f"({method.sampling_patch.suffix}). Choose sampling.engine=transformers."
        )
    require_vllm()


def attach_engine(learners: list[Learner], config: RunConfig) -> None:
    """What writes for the students, if it is not they themselves: one engine for all, handed the weights of who writes.

    Raises: ConfigError if the engine cannot be started, or cannot write for these students.
    """
    if config.sampling.engine != "vllm":
        return
    first, *others = (learner.student for learner in learners)
    for student in (first, *others):
        if adapts_tied_weights(student.model):
            raise ConfigError(
                "sampling.engine=vllm writes with one matrix for embeddings and head, and the adapter of "
                f"{student.name} makes two of it. Choose sampling.engine=transformers, or models.lora.target_modules "
                "without embeddings and head."
            )
    if first.denoising_schedule(()) is not None:
        raise ConfigError(
            "sampling.engine=vllm writes from left to right, and models.student fills masks. Choose "
            "sampling.engine=transformers."
        )
    for other in others:
        if _architecture(other.model.config.to_dict()) != _architecture(first.model.config.to_dict()):
            raise ConfigError(
                f"sampling.engine=vllm writes for all students of a run with one model in memory, and {other.name} is "
                f"not of {first.name}'s architecture. Choose sampling.engine=transformers, or students of one "
                "architecture."
            )
    models = config.models
    engine = VllmEngine(
        str(base_of(next(iter(models.learners.values())))),
        dtype="bfloat16" if config.training.mixed_precision == "bf16" else models.dtype,  # as the student reads
        memory=config.sampling.engine_memory,
        trust_remote_code=models.trust_remote_code,
    )
    for learner in learners:
        learner.student.engine = engine


def _architecture(settings: dict) -> dict:
    """A model's configuration without what is no part of what it computes: where it came from, and who saved it."""
    return {
        key: _architecture(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if not str(key).startswith("_") and key != "transformers_version"
    }


def _refuse_rows_apart(config: RunConfig, policies: dict[str, Policy]) -> None:
    """Processes that hold parts of one model make equally many passes; rows that pass alone are as many as there are
    rows.
    """
    for policy in single_policies(policies.values()):
        if not policy.shortcuts.rows and config.training.micro_batch_size != 1:
            raise ConfigError(
                f"{policy.name} reads rows of other lengths one by one, which sharded weights cannot. Set "
                "training.micro_batch_size=1, or start with distributed_type: MULTI_GPU "
                "(configs/accelerate/one-node-8.yaml)."
            )


def require_shardable(config: RunConfig) -> None:
    """Raises ConfigError if something is asked for that does not go with sharded weights."""
    models = config.models
    settings = {
        "models.compile": models.compile,
        "models.offload_teachers": models.offload_teachers,
        "models.teacher_dtype": models.teacher_dtype == "int8" and models.teacher_dtype,
        "sampling.engine": config.sampling.engine == "vllm" and config.sampling.engine,
        "training.update_mask": config.training.update_mask,
    }
    for key, value in settings.items():
        if value:
            raise ConfigError(
                f"{key}={value} does not go with sharded weights (docs/devices.md). Leave it out, or start with "
                "distributed_type: MULTI_GPU (configs/accelerate/one-node-8.yaml)."
            )


def _adapter_config(lora: LoraConfig) -> object:
    try:
        peft = importlib.import_module("peft")  # an extra, and slow to import
    except ModuleNotFoundError:
        raise ConfigError(
            "models.lora needs the package peft: pip install 'vlm-distillation-workbench[lora]'."
        ) from None
    return peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.target_modules
    )


def _check_adapter(student: AutoregressivePolicy, lora: LoraConfig, start: str, name: str) -> None:
    """Raises ConfigError if the student's adapter cannot be trained, or is not the one that models.lora describes."""
    key = "models.student" if name == STUDENT else f"models.peers.{name}"
    pair = [student.model.get_input_embeddings(), student.model.get_output_embeddings()]
    if adapts_tied_weights(student.model) and all(hasattr(layer, "base_layer") for layer in pair):
        raise ConfigError(
            f"embeddings and head of {start} are one matrix, and adapters on both cannot be saved. Choose "
            "models.lora.target_modules with one of the two, or neither (all-linear)."
        )
    for adapter in getattr(student.model, "peft_config", {}).values():
        kind = str(getattr(adapter.peft_type, "value", adapter.peft_type))
        if kind != "LORA":
            raise ConfigError(
                f"{key} holds an adapter of kind {kind} ({start}), and those of kind LORA alone can be trained. Merge "
                "it into its model (peft: merge_and_unload) and train that."
            )
        if lora.rank and (adapter.r, float(adapter.lora_alpha)) != (lora.rank, lora.alpha):
            raise ConfigError(
                f"models.lora.rank is {lora.rank} and models.lora.alpha {lora.alpha:g}, but {key} ({start}) holds an "
                f"adapter of rank {adapter.r} and alpha {adapter.lora_alpha:g}, which is trained further. Set "
                f"models.lora.rank={adapter.r} models.lora.alpha={adapter.lora_alpha:g}, or 0 for what the folder has; "
                "for a new adapter merge the old one first."
            )


def learning_rates(config: RunConfig) -> Callable[[int], float]:
    """Learning rate of each step, counting from 1, as a function of the step alone: nothing to save or restore.

    transformers' schedules, but for the steps of the warm-up: step s of w has s / w of the highest rate, there (s - 1)
    / w. So no step has rate 0, for which answers would be sampled and scored in vain.
    """
    training = config.training
    dummy = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = get_scheduler(training.schedule, dummy, training.warmup_steps, training.steps)
    factor, warmup = schedule.lr_lambdas[0], training.warmup_steps
    return lambda step: training.learning_rate * float(step / warmup if step <= warmup else factor(step - 1))
