"""Which weights, gradients and buffers are on a device when."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from workbench.distributed import BUCKET_BYTES
from workbench.training.planning.dry_run import GRADIENT, WEIGHTS, DryRun
from workbench.training.planning.models import ModelSpec, Sizes
from workbench.training.planning.policies import PlannedPolicy


@dataclass
class Residency:
    """Without sharding: all weights, always, but for offloaded teachers. sizes: of each model in its own depth."""

    sizes: Mapping[ModelSpec, Sizes]
    processes: int = 1
    offloads: bool = False
    _parts: set[int] = field(default_factory=set)

    @property
    def resident(self) -> int:
        """Bytes of weights that stay on the device."""
        return sum(map(self._stays, self.sizes))

    def _stays(self, spec: ModelSpec) -> int:
        sizes = self.sizes[spec]
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
        with self.whole(run, spec):
            yield

    @contextlib.contextmanager
    def whole(self, run: DryRun, spec: ModelSpec) -> Iterator[None]:
        """Hold what a model that samples needs more."""
        extra = self.sizes[spec].total - self._stays(spec)
        run.hold(WEIGHTS, extra)
        yield
        run.hold(WEIGHTS, -extra)

    def reduce(self, run: DryRun) -> None:
        """All-reduce whole gradients, in flat buckets; one has a copy for a moment."""
        if self.processes > 1:
            bucket = min(self._trained, BUCKET_BYTES)
            run.hold(GRADIENT, bucket)
            run.hold(GRADIENT, -bucket)


@dataclass
class ShardedResidency(Residency):
    """FSDP2 (policies/fsdp.py): a part of every weight, roots whole in a step, the model that samples whole.

    A gathered unit is first in one flat buffer, then in tensors of its own: both are there for a moment.
    """

    def _stays(self, spec: ModelSpec) -> int:
        return -(-self.sizes[spec].total // self.processes)

    @property
    def _learner(self) -> Sizes:
        return next(sizes for spec, sizes in self.sizes.items() if spec.learns)

    def moments(self, optimizer: str) -> int:
        """Bytes of the optimizer's state of this device's part."""
        return -(-super().moments(optimizer) // self.processes)

    @contextlib.contextmanager
    def step(self, run: DryRun) -> Iterator[None]:
        """Hold the root of every model."""
        roots = [sizes.root for sizes in self.sizes.values()]
        with _held(run, WEIGHTS, sum(roots)):
            with _held(run, WEIGHTS, max(roots)):
                pass
            yield

    @contextlib.contextmanager
    def whole(self, run: DryRun, spec: ModelSpec) -> Iterator[None]:
        """Hold all decoder layers of the model that samples."""
        layers = self.sizes[spec].layers
        with _held(run, WEIGHTS, sum(layers)):
            with _held(run, WEIGHTS, max(layers, default=0)):
                pass
            yield

    @contextlib.contextmanager
    def scoring(self, run: DryRun, spec: ModelSpec) -> Iterator[None]:
        """Hold two decoder layers: a layer while it computes, and its flat buffer or the next layer's."""
        with _held(run, WEIGHTS, 2 * max(self.sizes[spec].layers, default=0)):
            yield

    @contextlib.contextmanager
    def learning(self, run: DryRun, policy: PlannedPolicy) -> Iterator[None]:
        """Hold two decoder layers, a layer's gradient on its way, and this device's part of all gradients."""
        sizes = self._learner
        flow = max(sizes.trained_layers, default=0)
        layers = policy.model.get_decoder().layers
        inside = {id(weight) for weight in layers.parameters()}
        handles = []
        for weight in layers.parameters():
            if weight.requires_grad:
                handles.append(weight.register_post_accumulate_grad_hook(lambda weight: self._reduced(run, weight)))
        with _held(run, WEIGHTS, 2 * max(sizes.layers, default=0)), _held(run, GRADIENT, flow):
            yield
        for handle in handles:
            handle.remove()
        roots = [weight for weight in policy.model.parameters() if weight.grad is not None and id(weight) not in inside]
        with _held(run, GRADIENT, sum(weight.grad.nbytes for weight in roots)):
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
