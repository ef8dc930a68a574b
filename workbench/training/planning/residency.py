"""Which weights, gradients and buffers are on a device when. A model on a server leaves a teacher's head there."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from workbench.config.schema import RunConfig
from workbench.distributed import BUCKET_BYTES
from workbench.policies.layer_memory import cast_in_each_pass, in_half_precision
from workbench.training.planning.dry_run import GRADIENT, WEIGHTS, DryRun
from workbench.training.planning.models import ModelSpec, Sizes
from workbench.training.planning.policies import PlannedPolicy


@dataclass
class Residency:
    """Without sharding: all weights, always, but for offloaded teachers.

    sizes   of each model in its own depth
    halves  whether passes are made in half precision of float32 weights
    overlaps  whether a layer's flat buffer stays until the next layer is there (not on a CPU: processes share two)
    """

    sizes: Mapping[ModelSpec, Sizes]
    processes: int = 1
    offloads: bool = False
    halves: bool = False
    overlaps: bool = True
    _parts: set[int] = field(default_factory=set)
    _whole: int = 0

    @classmethod
    def of(cls, config: RunConfig, sizes: Mapping[ModelSpec, Sizes], processes: int) -> "Residency":
        """What a run's keys make of it."""
        models, is_half = config.models, config.training.mixed_precision == "bf16"
        return cls(sizes, processes, models.offload_teachers, is_half, overlaps=models.device != "cpu")

    def prepare(self, policies: Mapping[str, PlannedPolicy]) -> None:
        """Give models the hooks that the run gives them."""

    @property
    def resident(self) -> int:
        """Bytes of weights that stay on the device."""
        return sum(map(self._stays, self.sizes))

    def _stays(self, spec: ModelSpec) -> int:
        sizes = self.sizes[spec]
        if spec.server:
            return sizes.head if spec.is_teacher else 0
        return sizes.head if self.offloads and spec.is_teacher else sizes.total

    def moments(self, optimizer: str) -> int:
        """Bytes of the optimizer's state: two moments; in 8 bits with a float32 scale per 256 numbers."""
        if optimizer == "adamw_8bit":
            return 2 * (self._trained // 4 + self._trained // 256)
        return 2 * self._trained if optimizer == "adamw" else 0

    @property
    def _trained(self) -> int:
        return sum(sizes.trained for sizes in self.sizes.values())

    @contextlib.contextmanager
    def step(self, run: DryRun) -> Iterator[None]:
        """Hold what is whole during a step."""
        yield

    @contextlib.contextmanager
    def learning(self, run: DryRun, policy: PlannedPolicy) -> Iterator[None]:
        """Hold what passes with gradient need, inside one micro-batch."""
        yield

    @contextlib.contextmanager
    def scoring(self, run: DryRun, spec: ModelSpec) -> Iterator[None]:
        """Hold what a model's scoring passes need more."""
        with _held(run, WEIGHTS, self.sizes[spec].total - self._stays(spec)):
            yield

    @contextlib.contextmanager
    def whole(self, run: DryRun, policy: PlannedPolicy) -> Iterator[None]:
        """Hold what a model that samples needs more."""
        with _held(run, WEIGHTS, self.sizes[policy.spec].total - self._stays(policy.spec)):
            yield

    def send(self, run: DryRun, spec: ModelSpec, *, copies: bool = False) -> None:
        """Send the student's weights to a server, or to vLLM in the process; adapters are merged into copies.

        copies  of sharded weights are sent
        """
        with _held(run, WEIGHTS, sum(self.sizes[spec].layers) if spec.lora else 0):
            pass

    def reduce(self, run: DryRun) -> None:
        """All-reduce whole gradients, in flat buckets; one has a copy for a moment."""
        if self.processes > 1:
            bucket = min(self._trained, BUCKET_BYTES)
            run.hold(GRADIENT, bucket)
            run.hold(GRADIENT, -bucket)


@dataclass
class ShardedResidency(Residency):
    """FSDP2 (policies/fsdp.py): a part of every weight, roots whole in a step, the model that samples whole.

    A gathered unit is first in one flat buffer, then in tensors of its own: both are there for a moment. On a CPU all
    processes have the flat buffers in common (policies/node_memory.py). Linear layers of a model that is whole are in
    the precision of the passes.
    """

    def prepare(self, policies: Mapping[str, PlannedPolicy]) -> None:
        """As FsdpModel: autocast keeps no copies of a layer that is not whole."""
        for policy in {id(policy.model): policy for policy in policies.values()}.values():
            cast_in_each_pass(policy.layers, lambda: not self._whole)

    def _stays(self, spec: ModelSpec) -> int:
        return super()._stays(spec) if spec.server else -(-self.sizes[spec].total // self.processes)

    @property
    def _learner(self) -> Sizes:
        return next(sizes for spec, sizes in self.sizes.items() if spec.learns)

    def moments(self, optimizer: str) -> int:
        """Bytes of the optimizer's state of this device's part."""
        return -(-super().moments(optimizer) // self.processes)

    @contextlib.contextmanager
    def step(self, run: DryRun) -> Iterator[None]:
        """Hold the root of every model, and a part of the flat buffers that processes share."""
        sharded = [sizes for spec, sizes in self.sizes.items() if not spec.server]
        roots, layer = [sizes.root for sizes in sharded], max(max(sizes.layers, default=0) for sizes in sharded)
        with _held(run, WEIGHTS, sum(roots) + (0 if self.overlaps else 2 * layer // self.processes)):
            with _held(run, WEIGHTS, max(roots) if self.overlaps else max(roots) // self.processes):
                pass
            yield

    @contextlib.contextmanager
    def whole(self, run: DryRun, policy: PlannedPolicy) -> Iterator[None]:
        """Hold all decoder layers of the model that samples."""
        sizes, layers = self.sizes[policy.spec], policy.layers if self.halves else ()
        replaced = [item for layer in layers for item in in_half_precision(layer, torch.bfloat16)]  # counted as tensors
        kept = sum(sizes.layers) - (sum(sizes.linear_layers) if replaced else 0)
        self._whole += 1
        with _held(run, WEIGHTS, kept):
            with _held(run, WEIGHTS, (bool(replaced) + self.overlaps) * max(sizes.layers, default=0)):
                pass
            yield
        self._whole -= 1
        for module, name, weight in replaced:
            setattr(module, name, weight)

    def send(self, run: DryRun, spec: ModelSpec, *, copies: bool = False) -> None:
        """Send the student's weights a layer at a time; adapters are merged into a copy of it."""
        layer = max(self.sizes[spec].layers, default=0)
        adapted = spec.lora is not None  # then the merged layer before is there as well
        with _held(run, WEIGHTS, ((3 + adapted if self.overlaps else 1 + 2 * adapted) + copies) * layer):
            pass

    @contextlib.contextmanager
    def scoring(self, run: DryRun, spec: ModelSpec) -> Iterator[None]:
        """Hold a decoder layer; where that overlaps, its flat buffer too, and one more for a moment as it comes."""
        layer = max(self.sizes[spec].layers, default=0)
        with _held(run, WEIGHTS, (1 + self.overlaps) * layer):
            yield
            with run.apart("gather"), _held(run, WEIGHTS, self.overlaps * layer):
                pass

    @contextlib.contextmanager
    def learning(self, run: DryRun, policy: PlannedPolicy) -> Iterator[None]:
        """Hold a decoder layer and what comes next, a layer's gradient on its way, and this device's part of all."""
        sizes = self._learner
        flow = max(sizes.trained_layers, default=0)
        layers = nn.ModuleList(policy.layers)
        inside = {id(weight) for weight in layers.parameters()}
        handles = []
        for weight in layers.parameters():
            if weight.requires_grad:
                handles.append(weight.register_post_accumulate_grad_hook(lambda weight: self._reduced(run, weight)))
        with _held(run, WEIGHTS, (1 + self.overlaps) * max(sizes.layers, default=0)), _held(run, GRADIENT, flow):
            yield
        for handle in handles:
            handle.remove()
        roots = [weight for weight in policy.model.parameters() if weight.grad is not None and id(weight) not in inside]
        with run.apart("reduce"), _held(run, GRADIENT, sum(weight.grad.nbytes for weight in roots)):
            pass
        for weight in roots:
            self._reduced(run, weight)

    def _reduced(self, run: DryRun, weight: Tensor) -> None:
        """A whole gradient becomes this device's part; later ones are added to it."""
        size = -(-weight.grad.nbytes // self.processes)
        weight.grad = None
        if id(weight) not in self._parts:
            self._parts.add(id(weight))
            run.hold(GRADIENT, size)

    def reduce(self, run: DryRun) -> None:
        """Nothing is left to reduce."""
        self._parts.clear()


@contextlib.contextmanager
def _held(run: DryRun, kind: str, size: int) -> Iterator[None]:
    run.hold(kind, size)
    yield
    run.hold(kind, -size)
