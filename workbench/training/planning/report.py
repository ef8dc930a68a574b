"""Text and values of a plan."""

from typing import Any

from workbench.training.planning.devices import GB, Speed, seconds
from workbench.training.planning.dry_run import KINDS, WEIGHTS
from workbench.training.planning.host import bytes_at_load, bytes_at_save
from workbench.training.planning.models import SERVED_DTYPE
from workbench.training.planning.phases import SERVING
from workbench.training.planning.plan import Phase, Plan, left_by_vllm
from workbench.training.planning.remedies import Trial, parallel_devices
from workbench.types import STUDENT

_TRIAL = "  {:>6}  {:>6}  {:4}  {}"
TRIALS = _TRIAL.format("GB", "server", "", "tried, and its cost")
_ORDER = (WEIGHTS, *(kind for kind in KINDS if kind != WEIGHTS))


def gigabytes(count: float) -> str:
    """Bytes as GB, at two digits of precision below 10."""
    return f"{count / GB:.3g}" if count < 10 * GB else f"{count / GB:.0f}"


def header() -> tuple[str, ...]:
    return ("phase", *_ORDER, "total", "TFLOP", "seconds")


def rows(plan: Plan, speed: Speed, share: float) -> list[tuple[str, ...]]:
    """A row per phase: GB of each kind at its peak, operations, time."""
    table = []
    for phase in (*plan.phases, *plan.servers):
        took = seconds(phase.flops, phase.traffic, plan.config, speed, share)
        cells = [gigabytes(phase.memory[kind]) for kind in _ORDER]
        table.append((phase.name, *cells, gigabytes(phase.total), f"{phase.flops / 1e12:.3g}", f"{took:.3g}"))
    return table


def describe(plan: Plan) -> str:
    """What was planned: rows and prompts of a device, and its models."""
    longest = max(plan.prompts.values(), key=lambda sized: sized.tokens)
    shape, length = plan.shape, plan.config.sampling.max_completion_length
    models = ", ".join(
        f"{'/'.join(spec.names)} {sizes.parameters / 1e9:.3g}B in {spec.dtype}" for spec, sizes in plan.sizes.items()
    )
    return (
        f"{models}. Each device: {shape.rows} answers of up to {length} tokens, {shape.micro_batch} in a forward pass. "
        f"The longest prompt has {longest.tokens:,} tokens, {longest.picture_tokens:,} of them of pictures."
    )


def describe_passes(plan: Plan) -> list[str]:
    """Sentences on what was assumed of passes whose sizes depend on the answers."""
    training, facts = plan.config.training, []
    if training.tokens_per_micro_batch:
        facts.append(
            f"training.tokens_per_micro_batch={training.tokens_per_micro_batch}: each pass is planned with the fewest "
            "longest answers that fill it, so with at most one answer more than a run puts into it."
        )
    if training.packing:
        facts.append(
            "training.packing: passes are planned as padded rows of the longest answers, where packing saves nothing; "
            "the mask of packed rows, a byte for each pair of positions of a row, is not counted."
        )
    return facts


def describe_host(plan: Plan, per_node: int) -> str:
    load, save = bytes_at_load(plan, per_node), bytes_at_save(plan, plan.config)
    return f"Host memory of a node: {gigabytes(load)} GB while loading, {gigabytes(save)} GB while saving."


def describe_whole(plan: Plan) -> list[str]:
    """With sharded weights, a sentence on the models that a device must hold whole to sample."""
    if not plan.sharded:
        return []
    layers = {spec.names[0]: sum(sizes.layers) for spec, sizes in plan.sizes.items() if not spec.server}
    if plan.config.sampling.server is not None:
        text = "No model is ever whole on a device: all are gathered a layer at a time."
    elif plan.vllm_weights:
        text = "The student is whole in vLLM alone: all models are gathered a layer at a time."
    else:
        halved = sum(next(sizes for spec, sizes in plan.sizes.items() if spec.learns).linear_layers) // 2
        whole = layers[STUDENT] - (halved if plan.config.training.mixed_precision == "bf16" else 0)
        text = (
            f"The student is whole on each device while it samples, {gigabytes(whole)} GB beside its part; other "
            "models, and all models that score or learn, are gathered a layer at a time."
        )
    teachers = {name: size for name, size in layers.items() if name.startswith("teacher")}
    if plan.config.evaluation.teacher and teachers:
        text += (
            " Not in this plan: evaluation.teacher=true samples from the teacher before the first step, whole as well, "
            f"{gigabytes(max(teachers.values()))} GB beside its part. Set it to false where that does not fit."
        )
    return [text]


def describe_vllm(plan: Plan, memory: int) -> list[str]:
    """A sentence on the share of each device that vLLM in the process takes."""
    if not plan.vllm_weights:
        return []
    left = left_by_vllm(plan.config, memory)
    return [
        f"vLLM takes {gigabytes(memory - left)} GB of each device (sampling.backend_memory="
        f"{plan.config.sampling.backend_memory:g}), {gigabytes(plan.vllm_weights)} of them the student's weights in "
        f"{plan.config.forward_dtype}; {gigabytes(left)} GB are left to the phases above. The time of its sampling is "
        "not planned."
    ]


def describe_servers(plan: Plan, memory: int) -> list[str]:
    """A sentence on what servers need, in devices of the same memory."""
    if not plan.servers:
        return []
    needs = "; ".join(
        f"{phase.name.removeprefix(SERVING)} needs {gigabytes(phase.total)} GB, {_devices_of(phase, memory)}"
        for phase in plan.servers
    )
    return [
        f"Servers, in processes of their own and in {SERVED_DTYPE}: {needs}. Their rows are for the answers of one of "
        f"the {plan.processes} devices that train; a server answers one after the other."
    ]


def _devices_of(phase: Phase, memory: int) -> str:
    count = parallel_devices(phase, memory)
    if count == 1:
        return "one device"
    weights = gigabytes(phase.memory[WEIGHTS] / count)
    return f"more than a device: tensor parallel over {count} would take {weights} GB of weights on each (an estimate)"


def verdict(plan: Plan, memory: int) -> str:
    """One line: whether the plan fits, and if not, what first does not."""
    needed, left = plan.vllm_weights, left_by_vllm(plan.config, memory)
    if needed > memory - left:
        return (
            f"does not fit: vLLM needs more than the {gigabytes(needed)} GB of the student's weights, and "
            f"sampling.backend_memory={plan.config.sampling.backend_memory:g} gives it {gigabytes(memory - left)} GB"
        )
    if plan.largest.total <= left:
        name, need = plan.largest.name, gigabytes(plan.largest.total)
        tight = "; less than a tenth is left, which fragments may take" if plan.largest.total > 0.9 * left else ""
        return f"fits: {need} of {gigabytes(left)} GB, largest phase: {name}{_beside(plan, memory)}{tight}"
    first = next(phase for phase in plan.phases if phase.total > left)
    return f"does not fit: {first.name} needs {gigabytes(first.total)} of {gigabytes(left)} GB, {_most(first)}"


def remedy(trials: list[Trial]) -> str:
    """One line: which keys mend a plan that does not fit."""
    mended = [trial for trial in trials if trial.fits]
    if not mended:
        return "no key tried mends it"
    return f"mended by {' '.join(mended[-1].keys)}: {gigabytes(mended[-1].needs)} GB{_serving(mended[-1])}"


def _beside(plan: Plan, memory: int) -> str:
    """Devices that servers take beside those of the plan."""
    if not plan.servers:
        return ""
    count = sum(parallel_devices(phase, memory) for phase in plan.servers)
    return f"; servers take {count} more device{'s' * (count > 1)}"


def _serving(trial: Trial) -> str:
    devices = f"{trial.processes} device{'s' * (trial.processes > 1)}"
    return f" on {devices}, servers on others" if trial.servers else ""


def _most(phase: Phase) -> str:
    kind, size = phase.memory.most_common(1)[0]
    return f"{gigabytes(size)} of them {kind}"


def describe_trial(trial: Trial) -> str:
    """A line under TRIALS."""
    servers = gigabytes(trial.servers) if trial.servers else ""
    fits = "fits" if trial.fits else ""
    return _TRIAL.format(gigabytes(trial.needs), servers, fits, f"{' '.join(trial.keys)}: {trial.cost}").rstrip()


def to_dict(plan: Plan, memory: int, trials: list[Trial], speed: Speed, share: float, per_node: int) -> dict[str, Any]:
    """Plain values of a plan; memory in bytes, time in seconds."""
    return {
        "fits": plan.fits(memory),
        "memory": memory,
        "processes": plan.processes,
        "sharded": plan.sharded,
        "device": speed.name,
        "share": share,
        "phases": {
            phase.name: {
                "memory": dict(phase.memory),
                "total": phase.total,
                "flops": phase.flops,
                "seconds": seconds(phase.flops, phase.traffic, plan.config, speed, share),
            }
            for phase in (*plan.phases, *plan.servers)
        },
        "prompts": {
            f"{name}/{context}": {"tokens": sized.tokens, "picture_tokens": sized.picture_tokens}
            for (name, context), sized in plan.prompts.items()
        },
        "host": {"load": bytes_at_load(plan, per_node), "save": bytes_at_save(plan, plan.config)},
        "verdict": verdict(plan, memory) + (f"; {remedy(trials)}" if trials else ""),
        "tried": [
            {
                "keys": list(trial.keys),
                "needs": trial.needs,
                "servers": trial.servers,
                "processes": trial.processes,
                "fits": trial.fits,
                "cost": trial.cost,
            }
            for trial in trials
        ],
    }
