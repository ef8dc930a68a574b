"""Host memory of a node: what its processes load, and what a checkpoint gathers."""

from workbench.config.schema import RunConfig
from workbench.training.planning.models import ModelSpec
from workbench.training.planning.plan import Plan
from workbench.types import STUDENT


def bytes_at_load(plan: Plan, per_node: int) -> int:
    """Without sharding every process reads each model whole; sharded models are read by the first process alone."""
    totals = [sizes.total for spec, sizes in plan.sizes.items() if not spec.server]
    return sum(totals) if plan.sharded else per_node * max(totals)


def bytes_at_save(plan: Plan, config: RunConfig) -> int:
    """The first process holds the moments, and sharded also student and average, beside a file's contents."""
    saved = [sizes.total for spec, sizes in plan.sizes.items() if _is_saved(spec)]
    trained = sum(sizes.trained for sizes in plan.sizes.values())
    moments = 0 if config.training.optimizer == "sgd" else 2 * trained
    return max(max(saved), 2 * moments) if not plan.sharded else sum(saved) + moments + max(*saved, moments)


def _is_saved(spec: ModelSpec) -> bool:
    return bool({STUDENT, f"{STUDENT}@ema"} & set(spec.names))
