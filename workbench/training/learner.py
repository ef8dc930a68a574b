"""Learner: a student with its optimizer, its frozen start, its moving average and its teachers.

A method names policies relative to one learner ("student", "student@ema", ...). A run has one learner, or several, each
of which is the student in its own policies.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import get_scheduler

from workbench.config.schema import QUANTIZED, LoraConfig, RunConfig, TrainingConfig
from workbench.data.contexts import parse_context
from workbench.distill.method import Method
from workbench.distill.ratio_clip import clip_ratio
from workbench.distill.step import NonFiniteError
from workbench.distributed import ALONE, ProcessGroup
from workbench.errors import ConfigError
from workbench.files.packages import importing, require_bitsandbytes
from workbench.policies import Policy
from workbench.policies.adapters import adapts_tied_weights, base_of
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.policies.dropout import enter_training_without_dropout, set_adapter_dropout
from workbench.policies.fsdp import full_tensor, in_lockstep, local_tensor, shard, single_policies
from workbench.policies.loading import load_policies
from workbench.policies.proven import agree
from workbench.policies.roles import set_trained
from workbench.policies.serving.addresses import Patience
from workbench.policies.serving.vllm_serve import connect_sampler
from workbench.policies.vllm import VllmEngine, require_vllm
from workbench.runs.checkpoints import Checkpoint, refuse_other_run
from workbench.training.gradients import GradientReduction
from workbench.training.underflow import UpdateUnderflow
from workbench.training.update_mask import UpdateMask
from workbench.types import STUDENT


class Learner:
    """A trained student and its optimizer. `policies` are by the method's names."""

    def __init__(
        self,
        policies: dict[str, Any],
        config: RunConfig,
        ema_rate: float,
        name: str = STUDENT,
        process_group: ProcessGroup = ALONE,
    ) -> None:
        self.name, self.policies, self.ema_rate = name, policies, ema_rate
        self.seed = () if name == STUDENT else (name,)  # seed suffix of its random draws, which differ between peers
        model = self.student.model
        training = config.training
        by_name = set_trained(
            model,
            config.models.train,
            training.learning_rates,
            self.name,
            freeze_embeddings=config.models.freeze_embeddings,
        )
        self._dropout = config.training.dropout
        set_adapter_dropout(model, config.models.lora.dropout)
        if config.models.gradient_checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        rule = {"lr": training.learning_rate, "weight_decay": training.weight_decay}
        groups, self._scales = self._parameter_groups(by_name, training)
        if training.optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, **rule)
        elif training.optimizer == "adamw_8bit":
            self.optimizer = _adamw_8bit(groups, betas=tuple(training.betas), **rule)
        else:
            # fused: one pass over memory, several times as fast on a CPU
            self.optimizer = torch.optim.AdamW(groups, betas=tuple(training.betas), fused=True, **rule)
        self.mask = UpdateMask(training.update_mask, model) if training.update_mask else None
        if self.mask is not None:
            self.optimizer.param_groups[0]["weight_decay"] = 0.0  # `update` applies weight decay inside the mask only
        self.weight_decay = training.weight_decay
        self.underflow = UpdateUnderflow(self.parameters)
        replicated = process_group.size > 1 and process_group.sharding is None
        self.reduction = GradientReduction(self.parameters, process_group) if replicated else None
        self._rate = learning_rates(config)
        self.max_grad_norm = training.max_grad_norm

    def _parameter_groups(
        self, by_name: dict[str, str], training: TrainingConfig
    ) -> tuple[list[dict[str, Any]], list[float]]:
        """Trained weights in groups of one learning rate, and the factor of each group on the scheduled rate."""
        rates = training.learning_rates
        grouped: dict[str | None, list[torch.nn.Parameter]] = {None: []}
        for name, parameter in self.student.model.named_parameters():
            if parameter.requires_grad:
                grouped.setdefault(by_name[name] if by_name[name] in rates else None, []).append(parameter)
        kept = {role: parameters for role, parameters in grouped.items() if parameters}
        scales = [1.0 if role is None else rates[role] / training.learning_rate for role in kept]
        return [{"params": parameters} for parameters in kept.values()], scales

    @property
    def student(self) -> AutoregressivePolicy:
        return self.policies[STUDENT]

    @contextlib.contextmanager
    def training_mode(self) -> Iterator[None]:
        """Enable gradient checkpointing and dropout as configured, inside this context."""
        model = self.student.model
        if self._dropout:
            model.train()
        else:
            enter_training_without_dropout(model)
        try:
            yield
        finally:
            model.eval()

    def during_last_pass(self) -> contextlib.AbstractContextManager[None]:
        """Context of the last backward pass of a step, in which gradients are summed over the ranks."""
        return contextlib.nullcontext() if self.reduction is None else self.reduction.during_last_pass()

    def finish_gradients(self) -> None:
        """Wait for the sums of the gradients over all ranks; FSDP sums those of sharded weights in each pass."""
        if self.reduction is not None:
            self.reduction.finish()
        elif self.student.shards is not None:
            self.student.shards.leave_untouched(self.parameters)

    def clip_gradients(self) -> float:
        """Clip the gradients to max_grad_norm; return their norm.

        Raises: NonFiniteError if the norm is infinite or NaN, before any weight changes.
        """
        if self.mask is not None:
            self.mask.hide_gradients()
        limit = self.max_grad_norm or float("inf")
        grad_norm = full_tensor(torch.nn.utils.clip_grad_norm_(self.parameters, limit))
        if not torch.isfinite(grad_norm):
            raise NonFiniteError(f"the gradient norm of {self.name} is {float(grad_norm)}, while every loss is finite.")
        return float(grad_norm)

    def update(self, step: int) -> dict[str, float]:
        """Optimizer step, EMA update and new gradients of zero; steps count from 1."""
        rate = self._rate(step)
        for param_group, scale in zip(self.optimizer.param_groups, self._scales, strict=True):
            param_group["lr"] = rate * scale
        if self.mask is not None:
            self.mask.decay(1 - rate * self.weight_decay)
        self.underflow.before()
        self.optimizer.step()
        if self.student.sampler is not None:
            self.student.sampler.weights_changed()
        metrics = self.underflow.after()
        self.optimizer.zero_grad(set_to_none=True)
        if "student@ema" in self.policies:
            self._update_ema()
        return {"learning_rate": rate} | metrics

    def skip_step(self, step: int) -> dict[str, float]:
        """Skip the optimizer step of a step without supervision: neither momentum nor weight decay changes weights."""
        self.optimizer.zero_grad(set_to_none=True)
        return {"learning_rate": self._rate(step)}

    @torch.no_grad()
    def _update_ema(self) -> None:
        """student@ema <- (1 - rate) student@ema + rate student."""
        average = dict(self.policies["student@ema"].model.named_parameters())
        pairs = [
            (local_tensor(average[name]), local_tensor(weight))
            for name, weight in self.student.model.named_parameters()
            if weight.requires_grad
        ]
        same_dtype = [pair for pair in pairs if pair[0].dtype == pair[1].dtype]
        if same_dtype:
            torch._foreach_lerp_([mean for mean, _ in same_dtype], [weight for _, weight in same_dtype], self.ema_rate)
        for mean, weight in pairs:
            if mean.dtype != weight.dtype:  # one by one, to avoid a second copy of all weights
                mean.lerp_(weight.to(mean.dtype), self.ema_rate)


def build_learner(
    config: RunConfig,
    method: Method,
    name: str = STUDENT,
    *,
    device: str = "cpu",
    checkpoint: Checkpoint | None = None,
    process_group: ProcessGroup = ALONE,
) -> Learner:
    """Build a learner at the start of a run or at a checkpoint, sharded over the process group if it is sharded."""
    models, lora = config.models, config.models.lora
    start = models.learners[name]
    if checkpoint is not None:
        averages = f"{STUDENT}@ema" in method.policies
        refuse_other_run(checkpoint, name, start, lora=bool(lora.rank), averages=averages)
    adapter = adapter_config(lora) if lora.rank else None
    torch.manual_seed(config.seed)  # for the random weights of a new adapter
    policies = load_policies(
        method.policies,
        learner=name,
        student=checkpoint.weights(name) if checkpoint else start,
        start=start if checkpoint else None,
        ema=checkpoint.ema(name) if checkpoint else None,
        teacher=models.teacher,
        teachers=models.teachers,
        **models.student_options,
        teacher_options=models.teacher_options,
        offload_teachers=models.offload_teachers,
        attn_implementation=models.attn_implementation,
        packing=config.training.packing,
        compiler=models.compile,
        device="cpu" if process_group.sharding else device,
        empty=process_group.sharding is not None and not process_group.is_main,  # rank 0 reads for all
        mapped=process_group.sharding is not None,
        max_completion_length=config.sampling.max_completion_length,
        max_prompt_length=config.data.max_prompt_length,
        block=config.sampling.diffusion_block_size,
        steps_per_block=config.sampling.steps_per_block,
        adapter=adapter,
        accept_differences=models.accept_differences,
    )
    _check_adapter(policies[STUDENT], lora, start, name)
    agree(single_policies(policies.values()), process_group)
    if (
        any("future" in parse_context(context) for context in method.contexts)
        and policies[STUDENT].denoising_schedule(()) is None
    ):
        raise ConfigError(
            f"method {method.name} needs a masked diffusion model, and {start} generates from left to right. Set "
            "models.student to a masked diffusion model, such as data/models/diffusion."
        )
    _refuse_for_canvases(config, policies)
    if process_group.sharding is not None:
        _refuse_rows_apart(config, policies[STUDENT])
        shard(policies.values(), process_group, device)
    return Learner(policies, config, method.ema_rate, name, process_group)


def autocast(config: RunConfig, device: str | torch.device) -> torch.autocast:
    """Context in which models sample and score in the precision of training.mixed_precision."""
    enabled = config.training.mixed_precision == "bf16"
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=enabled)


def check_engine(config: RunConfig, method: Method, *, runs: bool = True) -> None:
    """Raise ConfigError, before models are loaded, if the rollout engine does not support the method, or is missing and
    the run begins, or if the method weighs tokens by sampling.ratio_clip already.
    """
    clip_ratio(method, config.sampling.ratio_clip)
    if config.sampling.server is not None:
        _check_server(config, method)
    if config.sampling.backend != "vllm":
        return
    if method.sampling_patch is not None:
        raise ConfigError(
            f"sampling.backend=vllm does not support the sampling patch of method {method.name} "
            f"({method.sampling_patch.suffix}). Choose sampling.backend=transformers."
        )
    if runs:
        require_vllm()


def _check_server(config: RunConfig, method: Method) -> None:
    server = f"sampling.server={config.sampling.server}"
    if method.sampling_patch is not None:
        raise ConfigError(
            f"{server} does not support the sampling patch of method {method.name} ({method.sampling_patch.suffix}). "
            "Remove it: the run samples itself."
        )
    if config.sampling.ahead and not method.resample:
        raise ConfigError(
            f"sampling.ahead={config.sampling.ahead}: method {method.name} samples all answers before the first step, "
            "so none is left to sample ahead. Remove it."
        )
    if config.models.peers:
        raise ConfigError(f"{server} samples for one student, and models.peers adds others. Remove one of them.")


def attach_sampler(learners: list[Learner], config: RunConfig, run: str) -> None:
    """Connect the student to the configured sampler. `run` names its weights, equally in all processes.

    Raises: ConfigError or PolicyError if it does not support this student; UnavailableError if it does not answer.
    """
    sampling = config.sampling
    if sampling.server is None:
        return
    student = learners[0].student
    if student.denoising_schedule(()) is not None:
        raise ConfigError(
            f"sampling.server={sampling.server} does not support masked diffusion models. Remove it: the run samples "
            "itself."
        )
    patience = Patience(sampling.server_timeout, sampling.server_wait)
    image_options, folder = config.models.image_processor, Path(config.output_dir)
    sampler = connect_sampler(sampling.server, patience, run=run, image_options=image_options, folder=folder)
    sampler.require_fits(student, sampling.options)
    student.sampler = sampler


def attach_engine(learners: list[Learner], config: RunConfig, process_group: ProcessGroup = ALONE) -> None:
    """Start the configured rollout engine, one for all students, which loads the weights of the sampling student.

    Each rank has an engine of its own. vLLM calls collectives of all ranks as it starts, and none later.

    Raises: ConfigError if the engine cannot start, or does not support these students.
    """
    if config.sampling.backend != "vllm":
        return
    first, *others = (learner.student for learner in learners)
    for student in (first, *others):
        if adapts_tied_weights(student.model):
            raise ConfigError(
                f"sampling.backend=vllm does not support the adapter of {student.name} on tied embeddings. Choose "
                "sampling.backend=transformers, or models.lora.target_modules without embeddings and head."
            )
    if first.denoising_schedule(()) is not None:
        raise ConfigError(
            "sampling.backend=vllm does not support masked diffusion models. Choose sampling.backend=transformers."
        )
    for other in others:
        if _architecture(other.model.config.to_dict()) != _architecture(first.model.config.to_dict()):
            raise ConfigError(
                f"sampling.backend=vllm needs students of one architecture, and {other.name} differs from "
                f"{first.name}. Choose sampling.backend=transformers, or students of one architecture."
            )
    models = config.models
    with in_lockstep(process_group):
        engine = VllmEngine(
            str(base_of(next(iter(models.learners.values())))),
            dtype=config.forward_dtype,
            memory=config.sampling.backend_memory,
            image_processor=models.image_processor,
            trust_remote_code=models.trust_remote_code,
        )
    for learner in learners:
        learner.student.engine = engine


def _architecture(settings: dict) -> dict:
    """Configuration of a model without path and version, which do not affect its computation."""
    return {
        key: _architecture(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if not str(key).startswith("_") and key != "transformers_version"
    }


def _refuse_for_canvases(config: RunConfig, policies: dict[str, Policy]) -> None:
    """Raise ConfigError for a token budget or stop strings and a masked diffusion model, which has no left-to-right
    order and scores an answer in several canvases.
    """
    if config.sampling.stop_strings and policies[STUDENT].denoising_schedule(()) is not None:
        raise ConfigError(
            "sampling.stop_strings does not apply to masked diffusion models, which do not answer from left to right. "
            "Remove the stop strings."
        )
    budget = config.training.tokens_per_micro_batch
    for policy in single_policies(policies.values()) if budget else ():
        if policy.denoising_schedule(()) is not None:
            raise ConfigError(
                f"training.tokens_per_micro_batch={budget} does not bound the passes of {policy.name}, a masked "
                "diffusion model, which scores an answer once for each denoising step. Set training.micro_batch_size "
                "instead."
            )


def _refuse_rows_apart(config: RunConfig, student: AutoregressivePolicy) -> None:
    """Raise ConfigError for a sharded student with one pass per row, whose passes with gradient would differ in number
    by rank.
    """
    if not student.shortcuts.rows and config.training.micro_batch_size != 1:
        raise ConfigError(
            f"{student.name} cannot pad rows to one batch, so sharded weights need micro-batches of one row. Set "
            "training.micro_batch_size=1, or start with distributed_type: MULTI_GPU "
            "(configs/accelerate/one-node-8.yaml)."
        )


def require_shardable(config: RunConfig) -> None:
    """Raise ConfigError for an option that sharded weights do not support."""
    models = config.models
    settings = {
        "models.compile": models.compile,
        "models.offload_teachers": models.offload_teachers,
        "models.dtype": models.dtype in QUANTIZED and models.dtype,
        "models.teacher_dtype": models.teacher_dtype in QUANTIZED and models.teacher_dtype,
        "models.peers": config.sampling.backend == "vllm" and models.peers,  # which would share one engine
        "training.update_mask": config.training.update_mask,
        "training.optimizer": config.training.optimizer == "adamw_8bit" and config.training.optimizer,
    }
    for key, value in settings.items():
        if value:
            raise ConfigError(
                f"{key}={value} is not supported with sharded weights (docs/devices.md). Leave it out, or start with "
                "distributed_type: MULTI_GPU (configs/accelerate/one-node-8.yaml)."
            )


def _adamw_8bit(groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    """AdamW with moments in blocks of 8 bits; of weights of fewer than 4,096 numbers, in float32."""
    require_bitsandbytes("training.optimizer=adamw_8bit needs", "choose training.optimizer=adamw")
    return importlib.import_module("bitsandbytes.optim").AdamW8bit(groups, **options)


def adapter_config(lora: LoraConfig) -> object:
    """Configuration of new adapters, for peft. Raises: ConfigError if peft cannot be imported."""
    with importing("models.lora needs", "lora"):
        peft = importlib.import_module("peft")  # slow
    return peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.target_modules
    )


def _check_adapter(student: AutoregressivePolicy, lora: LoraConfig, start: str, name: str) -> None:
    """Raise ConfigError if the student's adapter cannot be trained, or differs from models.lora."""
    key = "models.student" if name == STUDENT else f"models.peers.{name}"
    pair = [student.model.get_input_embeddings(), student.model.get_output_embeddings()]
    if adapts_tied_weights(student.model) and all(hasattr(layer, "base_layer") for layer in pair):
        raise ConfigError(
            f"embeddings and head of {start} are tied, and adapters on both cannot be saved. Set "
            "models.lora.target_modules to one of the two, or neither (all-linear)."
        )
    for adapter in getattr(student.model, "peft_config", {}).values():
        kind = str(getattr(adapter.peft_type, "value", adapter.peft_type))
        if kind != "LORA":
            raise ConfigError(
                f"{key} holds an adapter of kind {kind} ({start}). Expected LORA. Merge it into its model (peft: "
                "merge_and_unload) and train that."
            )
        if lora.rank and (adapter.r, float(adapter.lora_alpha)) != (lora.rank, lora.alpha):
            raise ConfigError(
                f"models.lora.rank={lora.rank} and models.lora.alpha={lora.alpha:g} differ from the adapter of {key} "
                f"({start}). Expected rank {adapter.r} and alpha {adapter.lora_alpha:g}. Set "
                f"models.lora.rank={adapter.r} models.lora.alpha={adapter.lora_alpha:g}, or rank 0 to keep the "
                "adapter; merge it first to add a new one."
            )


def learning_rates(config: RunConfig) -> Callable[[int], float]:
    """Learning rate as a function of the step, counting from 1, so that no schedule state is saved.

    transformers' schedules, except for warm-up: step s of w has s / w of the highest rate instead of (s - 1) / w, since
    a step with rate 0 would be wasted.
    """
    training = config.training
    dummy = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = get_scheduler(training.schedule, dummy, training.warmup_steps, training.steps)
    factor, warmup = schedule.lr_lambdas[0], training.warmup_steps
    return lambda step: training.learning_rate * float(step / warmup if step <= warmup else factor(step - 1))
