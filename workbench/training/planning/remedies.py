"""What mends a plan that does not fit: keys in the order of what they cost, each planned again."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from workbench.config.schema import QUANTIZED, RunConfig, build_config, override
from workbench.errors import ConfigError
from workbench.training.planning.plan import least_bytes, plan_run

SHARDED = "--sharded"
_EIGHT_BITS_OR_FEWER = ("models.teacher_dtype=int8", "models.teacher_dtype=nf4")


@dataclass(frozen=True)
class Remedy:
    """A key and its price. sharded: the run is started with sharded weights instead."""

    text: str
    cost: str
    sharded: bool = False


@dataclass(frozen=True)
class Trial:
    """A plan with remedies.

    needs  bytes on a device; where weights, moments and gradients alone do not fit, those
    cost   of the last remedy
    """

    keys: tuple[str, ...]
    needs: int
    fits: bool
    cost: str


def remedies(config: RunConfig, processes: int, *, sharded: bool) -> Iterator[Remedy]:
    """Keys that are not set yet, the cheapest first."""
    models, training = config.models, config.training
    if models.teacher_dtype is None and models.dtype == "float32" and _has_teacher(config):
        yield Remedy("models.teacher_dtype=bfloat16", "rounding of the teacher's log-probs")
    if training.mixed_precision == "no" and models.dtype == "float32":
        yield Remedy("training.mixed_precision=bf16", "rounding of every pass; faster on a GPU")
    if training.micro_batch_size != 1:
        yield Remedy("training.micro_batch_size=1", "more and smaller passes")
    if not models.gradient_checkpointing:
        yield Remedy("models.gradient_checkpointing=true", "one more forward pass of the student")
    if processes > 1 and not sharded:
        yield Remedy(SHARDED, "all-gathers; starts with one-node-8-fsdp2.yaml", sharded=True)
    if training.optimizer == "adamw" and not sharded and not models.lora.rank:
        yield Remedy("training.optimizer=adamw_8bit", "moments are rounded to 8 bits; needs bitsandbytes")
    if not models.offload_teachers and not sharded and models.teacher_dtype not in QUANTIZED and _has_teacher(config):
        yield Remedy("models.offload_teachers=true", "a copy of the teacher to the device per pass; host memory")
    if not sharded and _has_teacher(config):
        if models.teacher_dtype not in QUANTIZED:
            yield Remedy("models.teacher_dtype=int8", "the teacher is rounded to 8 bits; needs bitsandbytes")
        if models.teacher_dtype != "nf4":
            yield Remedy("models.teacher_dtype=nf4", "the teacher is rounded to 4 bits; needs bitsandbytes")
    if models.max_pixels is None or models.max_pixels > 262_144:
        yield Remedy("models.max_pixels=262144", "models see smaller pictures")
    if not models.lora.rank:
        yield Remedy("models.lora.rank=16 models.dtype=bfloat16", "adapters are trained instead of all weights")


def _has_teacher(config: RunConfig) -> bool:
    return any(name.startswith("teacher") for name in config.load_method().policies)


def mend(config: RunConfig, memory: int, *, processes: int, sharded: bool, **options: Any) -> list[Trial]:
    """Try each remedy alone, then the cheapest ones together, until a plan fits `memory` bytes on every device."""
    trials: list[Trial] = []
    for chosen in choices(list(remedies(config, processes, sharded=sharded))):
        try:
            trials.append(_try(config, memory, chosen, processes=processes, sharded=sharded, **options))
        except ConfigError:  # keys that exclude each other in this configuration
            continue
        if trials[-1].fits:
            break
    return trials


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
    dropped = set()
    precisions = [text for text in texts if text.startswith("models.teacher_dtype=")]
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
    config: RunConfig, memory: int, chosen: list[Remedy], *, processes: int, sharded: bool, **options: Any
) -> Trial:
    keys = [key for remedy in chosen if not remedy.sharded for key in remedy.text.split(" ")]
    changed = build_config(override(config.to_dict(), keys), name=config.name)
    sharded = sharded or any(remedy.sharded for remedy in chosen)
    texts, cost = tuple(remedy.text for remedy in chosen), chosen[-1].cost
    least = least_bytes(changed, processes=processes, sharded=sharded)
    if least > memory:
        return Trial(texts, least, False, cost)
    needs = plan_run(changed, processes=processes, sharded=sharded, **options).largest.total
    return Trial(texts, needs, needs <= memory, cost)
