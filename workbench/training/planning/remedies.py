"""What mends a plan that does not fit: keys in the order of what they cost, each planned again."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from workbench.config.schema import BACKENDS, QUANTIZED, RunConfig, build_config, override
from workbench.errors import ConfigError
from workbench.training.planning.dry_run import WEIGHTS
from workbench.training.planning.plan import Phase, least_bytes, left_by_vllm, plan_run

SHARDED = "--sharded"
_MOST_DEVICES = 64  # that a server is split over
SERVED_TEACHER, SERVED_SAMPLER = "models.teacher=http://127.0.0.1:8000", "sampling.server=http://127.0.0.1:8001"
_ROW_BY_ROW = "training.micro_batch_size=1"
_PRECISION = "models.teacher_dtype="
_EIGHT_BITS_OR_FEWER = ("models.teacher_dtype=int8", "models.teacher_dtype=nf4")


@dataclass(frozen=True)
class Remedy:
    """A key and its price.

    sharded  the run is started with sharded weights instead
    served   a server takes half of the devices, where there are several
    """

    text: str
    cost: str
    sharded: bool = False
    served: bool = False


@dataclass(frozen=True)
class Trial:
    """A plan with remedies.

    needs  bytes on a device; where weights, moments and gradients alone do not fit, those
    cost   of the last remedy
    processes  devices that train
    servers  bytes of the largest server, on as many devices as it takes
    """

    keys: tuple[str, ...]
    needs: int
    fits: bool
    cost: str
    processes: int
    servers: int = 0


def remedies(config: RunConfig, processes: int, *, sharded: bool) -> Iterator[Remedy]:
    """Keys that are not set yet, the cheapest first."""
    models, training = config.models, config.training
    if models.teacher_dtype is None and models.dtype == "float32" and _has_teacher(config) and not _is_served(config):
        yield Remedy("models.teacher_dtype=bfloat16", "rounding of the teacher's log-probs")
    if training.mixed_precision == "no" and models.dtype == "float32":
        yield Remedy("training.mixed_precision=bf16", "rounding of every pass; faster on a GPU")
    if training.tokens_per_micro_batch:
        yield Remedy(f"training.tokens_per_micro_batch=0 {_ROW_BY_ROW}", "more and smaller passes")
    elif training.micro_batch_size != 1:
        yield Remedy(_ROW_BY_ROW, "more and smaller passes")
    if not models.gradient_checkpointing:
        yield Remedy("models.gradient_checkpointing=true", "one more forward pass of the student")
    if processes > 1 and not sharded:
        yield Remedy(SHARDED, "all-gathers; starts with one-node-8-fsdp2.yaml", sharded=True)
    yield from _servers(config, processes)
    if training.optimizer == "adamw" and not sharded and not models.lora.rank:
        yield Remedy("training.optimizer=adamw_8bit", "moments are rounded to 8 bits; needs bitsandbytes")
    in_process = _has_teacher(config) and not _is_served(config)
    if not models.offload_teachers and not sharded and models.teacher_dtype not in QUANTIZED and in_process:
        yield Remedy("models.offload_teachers=true", "a copy of the teacher to the device per pass; host memory")
    if not sharded and in_process:
        if models.teacher_dtype not in QUANTIZED:
            yield Remedy("models.teacher_dtype=int8", "the teacher is rounded to 8 bits; needs bitsandbytes")
        if models.teacher_dtype != "nf4":
            yield Remedy("models.teacher_dtype=nf4", "the teacher is rounded to 4 bits; needs bitsandbytes")
    if models.max_pixels is None or models.max_pixels > 262_144:
        yield Remedy("models.max_pixels=262144", "models see smaller pictures")
    if not models.lora.rank:
        yield Remedy("models.lora.rank=16 models.dtype=bfloat16", "adapters are trained instead of all weights")


def _servers(config: RunConfig, processes: int) -> Iterator[Remedy]:
    """Keys that take a model out of the run's processes."""
    devices = f"{processes - processes // 2} of the devices for servers" if processes > 1 else "another device"
    if _has_teacher(config) and config.models.teacher and not config.models.teachers and not _is_served(config):
        yield Remedy(SERVED_TEACHER, f"{devices}; hidden states on the wire", served=True)
    if config.sampling.server is None:
        instead = "sampling.backend=transformers " if config.sampling.backend != BACKENDS[0] else ""
        yield Remedy(
            f"{instead}{SERVED_SAMPLER}", f"{devices}; the student's weights on the wire, once a step", served=True
        )


def _is_served(config: RunConfig) -> bool:
    return bool(config.models.served_teachers)


def _has_teacher(config: RunConfig) -> bool:
    return any(name.startswith("teacher") for name in config.load_method().policies)


def mend(config: RunConfig, memory: int, *, processes: int, sharded: bool, **options: Any) -> Iterator[Trial]:
    """Try each remedy alone, then the cheapest ones together, until a plan fits `memory` bytes on every device."""
    for chosen in choices(list(remedies(config, processes, sharded=sharded))):
        try:
            trial = _try(config, memory, chosen, processes=processes, sharded=sharded, **options)
        except ConfigError:  # keys that exclude each other in this configuration
            continue
        yield trial
        if trial.fits:
            return


def choices(listed: list[Remedy]) -> Iterator[list[Remedy]]:
    """Each remedy alone, then more and more of those that go together, without and with sharded weights."""
    yield from ([remedy] for remedy in listed)
    tried = []
    for count in range(2, len(listed) + 1):
        some = listed[:count]
        for sharded in (False, True):
            chosen = _compatible([remedy for remedy in some if sharded or not remedy.sharded], sharded=sharded)
            if len(chosen) > 1 and chosen not in tried:
                tried.append(chosen)
                yield chosen


def _compatible(chosen: list[Remedy], *, sharded: bool) -> list[Remedy]:
    """Leave out remedies that others replace, or that exclude them."""
    texts = [remedy.text for remedy in chosen]
    dropped: set[str] = set()
    if SERVED_TEACHER in texts:
        dropped |= {"models.offload_teachers=true", *(text for text in texts if text.startswith(_PRECISION))}
    precisions = [text for text in texts if text.startswith(_PRECISION)]
    if sharded:
        dropped |= {"models.offload_teachers=true", "training.optimizer=adamw_8bit", *_EIGHT_BITS_OR_FEWER}
    elif precisions:
        dropped |= set(precisions[:-1])
        if precisions[-1] in _EIGHT_BITS_OR_FEWER:
            dropped.add("models.offload_teachers=true")
    if any("models.dtype=bfloat16" in text for text in texts):
        dropped |= {"training.mixed_precision=bf16", "training.optimizer=adamw_8bit"}
    return [remedy for remedy in chosen if remedy.text not in dropped]


def _try(
    config: RunConfig,
    memory: int,
    chosen: list[Remedy],
    *,
    processes: int,
    sharded: bool,
    served_teacher: str | None = None,
    **options: Any,
) -> Trial:
    keys = [key for remedy in chosen if not remedy.sharded for key in remedy.text.split(" ")]
    texts, cost = tuple(remedy.text for remedy in chosen), chosen[-1].cost
    if SERVED_TEACHER in texts:
        served_teacher = config.models.teacher
        keys += ["models.teacher_dtype=null", "models.offload_teachers=false"]
    serving = processes - processes // 2 if any(remedy.served for remedy in chosen) and processes > 1 else 0
    processes -= serving
    changed = build_config(override(config.to_dict(), keys), name=config.name)
    kind: dict[str, Any] = {
        "processes": processes,
        "sharded": processes > 1 and (sharded or any(remedy.sharded for remedy in chosen)),
        "served_teacher": served_teacher,
    }
    least = least_bytes(changed, **kind)
    if least > left_by_vllm(changed, memory):
        return Trial(texts, least, False, cost, processes)
    plan = plan_run(changed, **kind, **options)
    counts = [parallel_devices(phase, memory) for phase in plan.servers]
    fits = plan.fits(memory) and (not serving or sum(counts) <= serving)
    servers = max((phase.total // count for phase, count in zip(plan.servers, counts, strict=True)), default=0)
    return Trial(texts, plan.largest.total, fits, cost, processes, servers)


def parallel_devices(phase: Phase, memory: int) -> int:
    """Devices over which a server's weights are split until they fit beside the rest: a power of two."""
    weights, count = phase.memory[WEIGHTS], 1
    while weights // count + phase.total - weights > memory and count < _MOST_DEVICES:
        count *= 2
    return count
