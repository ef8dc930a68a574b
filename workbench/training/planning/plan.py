"""A plan of one device: what a run needs in every phase."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from workbench.config.schema import VLLM, RunConfig
from workbench.distill.method import Method
from workbench.errors import ConfigError
from workbench.policies.models import DTYPES
from workbench.training.learner import check_engine, require_shardable
from workbench.training.planning.depths import Depths, shallow
from workbench.training.planning.dry_run import DryRun
from workbench.training.planning.models import (
    ModelSpec,
    Sizes,
    build_shallow,
    depths_of,
    require_planned,
    sizes_of,
    specs_of,
)
from workbench.training.planning.phases import SERVING, Measured, PlannedStep, Segment, StepShape
from workbench.training.planning.policies import PlannedPolicy
from workbench.training.planning.prompts import (
    PlannedEncoder,
    PromptSize,
    Sized,
    has_processor,
    planned_examples,
    real_prompts,
    sized_prompts,
)
from workbench.training.planning.residency import Residency, ShardedResidency

PHASES = ("load", "sample", "score", "learn", "save")
Prompts = dict[tuple[str, str], Sized]  # the longest prompt by policy and context


@dataclass(frozen=True)
class Phase:
    """One phase on one device.

    segment  part of the phase with the peak
    memory   bytes by kind at the peak
    flops    floating-point operations of the phase
    traffic  bytes of weights and cache that are read token by token
    """

    name: str
    segment: str
    memory: Counter[str]
    flops: float
    traffic: float

    @property
    def total(self) -> int:
        return sum(self.memory.values())


@dataclass(frozen=True)
class Plan:
    """Phases of one device, and what they were planned for.

    servers  phases of servers, each in a process of its own, for the answers of one device
    sizes    of the models of the run and of its servers
    """

    config: RunConfig
    processes: int
    sharded: bool
    phases: tuple[Phase, ...]
    sizes: Mapping[ModelSpec, Sizes]
    prompts: Prompts
    shape: StepShape
    servers: tuple[Phase, ...] = ()

    @property
    def largest(self) -> Phase:
        """The phase that needs most memory."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def vllm_weights(self) -> int:
        """Bytes of the student's weights in a vLLM of each process; 0 without one."""
        if self.config.sampling.backend != VLLM:
            return 0
        parameters = next(sizes.parameters for spec, sizes in self.sizes.items() if spec.learns)
        return parameters * DTYPES[self.config.forward_dtype].itemsize

    def fits(self, memory: int) -> bool:
        """Whether devices of so many bytes are enough."""
        left = left_by_vllm(self.config, memory)
        return self.largest.total <= left and self.vllm_weights <= memory - left


def left_by_vllm(config: RunConfig, memory: int) -> int:
    """Bytes of a device that vLLM in the process does not take."""
    return memory - (round(config.sampling.backend_memory * memory) if config.sampling.backend == VLLM else 0)


def least_bytes(
    config: RunConfig, *, processes: int = 1, sharded: bool = False, served_teacher: str | None = None
) -> int:
    """Bytes of weights and moments, and of all gradients at once: a plan needs no less."""
    specs = specs_of(config, config.load_method(), served_teacher)
    sizes = {spec: sizes_of(spec, config.models) for spec in specs}
    residency = (ShardedResidency if sharded else Residency).of(config, sizes, processes)
    gradients = sum(part.trained for part in sizes.values()) // (processes if sharded else 1)
    return residency.resident + residency.moments(config.training.optimizer) + gradients


def plan_run(
    config: RunConfig,
    *,
    processes: int = 1,
    sharded: bool = False,
    size: PromptSize | None = None,
    served_teacher: str | None = None,
) -> Plan:
    """Plan one step of a run on one of its devices, in steady state.

    size  of prompts without data; None = the longest of the first rows of data.train, where a model has a processor
    served_teacher  the model that the servers of teachers hold

    Raises: PolicyError for a model without configuration; ConfigError for options that a plan does not know.
    """
    require_planned(config)
    if sharded:
        require_shardable(config)
    if config.training.batch_size < processes:
        raise ConfigError(
            f"training.batch_size={config.training.batch_size} leaves some of {processes} devices without a prompt. "
            f"Set training.batch_size={processes} or more."
        )
    method = config.load_method()
    check_engine(config, method, runs=False)
    specs = specs_of(config, method, served_teacher)
    sizes = {spec: sizes_of(spec, config.models) for spec in specs}
    residency = (ShardedResidency if sharded else Residency).of(config, sizes, processes)
    prompts, num_prompts = _prompts(config, method, specs, size), -(-config.training.batch_size // processes)
    full_depths = {spec: depths_of(spec, config.models) for spec in specs}

    def measure(**more: int) -> Measured:
        run, depths = DryRun(), {spec: shallow(full_depths[spec], **more) for spec in specs}
        policies = _policies(config, method, depths, prompts, run, sharded=sharded)
        return PlannedStep(config, method, run, policies, residency, num_prompts).simulate()

    base = measure()
    parts = [part for part in ("text", "vision") if any(getattr(depths, part) for depths in full_depths.values())]
    deeper = [(part, measure(**{part: 1})) for part in parts]
    of_policy = {name: full_depths[spec] for spec in specs for name in spec.names}
    phases = tuple(_phase(name, base, deeper, of_policy) for name in PHASES)
    served = dict.fromkeys(phase for phase, *_ in base.peaks if phase.startswith(SERVING))
    servers = tuple(_phase(name, base, deeper, of_policy) for name in served)
    return Plan(config, processes, sharded, phases, sizes, prompts, base.shape, servers)


def _phase(name: str, base: Measured, deeper: list[tuple[str, Measured]], full_depths: Mapping[str, Depths]) -> Phase:
    """A phase in the models' own depths: the largest of its segments, and the sums of their operations."""
    segments = [segment for segment in base.peaks if segment[0] == name]
    peaks = {segment: _extended(segment, "peaks", base, deeper, full_depths) for segment in segments}
    largest = max(segments, key=lambda segment: sum(peaks[segment].values()))
    totals = (
        sum(
            _extended(segment, what, base, deeper, full_depths).total()
            for segment in base.flops | base.traffic
            if segment[0] == name
        )
        for what in ("flops", "traffic")
    )
    memory = Counter({kind: round(value) for kind, value in peaks[largest].items() if value > 0})
    return Phase(name, largest[1], memory, *totals)


def _extended(
    segment: Segment, what: str, base: Measured, deeper: list[tuple[str, Measured]], full_depths: Mapping[str, Depths]
) -> Counter:
    """A segment's numbers, affine in the numbers of layers of the policy whose layers it passes."""

    def of(measured: Measured) -> Counter:
        value = getattr(measured, what).get(segment, 0)
        return value if isinstance(value, Counter) else Counter({what: value})

    depths = full_depths[segment[2]]
    start = shallow(depths)
    extended = Counter(of(base))
    for part, measured in deeper:
        missing = getattr(depths, part) - getattr(start, part)
        for kind in of(measured) | of(base):
            extended[kind] += missing * (of(measured)[kind] - of(base)[kind])
    return extended


def _policies(
    config: RunConfig,
    method: Method,
    depths: Mapping[ModelSpec, Depths],
    prompts: Prompts,
    run: DryRun,
    *,
    sharded: bool,
) -> dict[str, PlannedPolicy]:
    """Policies by name; of several teachers by domain, the last one passes all rows."""
    policies = {}
    for spec in depths:
        model = build_shallow(spec, config.models, depths[spec], run)
        encoder = PlannedEncoder({context: prompts[spec.names[0], context] for context in _contexts(method)})
        parted = sharded and not spec.server
        policies |= {name: PlannedPolicy(spec, model, name, encoder, run, sharded=parted) for name in spec.names}
    shared = min(policy.vocabulary for policy in policies.values())
    for policy in policies.values():
        policy.vocabulary = shared
    return policies


def _contexts(method: Method) -> list[str]:
    return list(dict.fromkeys(view.context for view in method.views.values()))


def _prompts(config: RunConfig, method: Method, specs: list[ModelSpec], size: PromptSize | None) -> Prompts:
    contexts, prompts = _contexts(method), {}
    reading = [spec for spec in specs if has_processor(spec.path)]
    examples = planned_examples(config, contexts, size) if reading else []
    for spec in specs:
        name = spec.names[0]
        if spec in reading:
            by_context = real_prompts(config, spec.path, name, contexts, examples)
        else:
            by_context = sized_prompts(config, spec.path, name, contexts, size or PromptSize())
        prompts |= {(name, context): sized for context, sized in by_context.items()}
    return prompts
