"""Probes: fixed answers that every view re-scores through a run.

Rollouts change at every step, so where supervision moved cannot be read from them. The starting student answers a few
questions once; the same tokens are then scored and routed every few steps, by the method's own rule.
"""

from workbench.config import RunConfig
from workbench.errors import RunError
from workbench.method import Method
from workbench.policies import Policy, SamplingOptions
from workbench.rollouts import write_rollouts
from workbench.runs import RunFolder
from workbench.types import Denoising, Example, Rollout


def open_probes(
    config: RunConfig,
    folder: RunFolder,
    students: dict[str, Policy],
    method: Method,
    pool: list[Example],
    sampling: SamplingOptions,
) -> dict[str, tuple[Rollout, ...]]:
    """The probes of each learner's student: as kept in the run's folder, or written now by the student and kept."""
    examples = pool[: config.trace.probes]
    kept = folder.probes()
    if kept is not None:
        known = {example.id: example for example in pool}
        restored = [_restored(probe, known) for probe in kept]
        return {name: tuple(one for one in restored if one.source == policy.name) for name, policy in students.items()}
    written = {}
    for name, student in students.items() if examples else ():
        written[name] = tuple(
            write_rollouts(
                student,
                examples,
                context=method.views[method.learner].context,
                sampling=sampling,
                num_generations=1,
                seed=("probe", config.seed),
                rule=config.evaluation.rule,
            )
        )
    folder.write_probes([_kept(rollout) for rollouts in written.values() for rollout in rollouts])
    return written


def _kept(rollout: Rollout) -> dict:
    fields = ("sample_idx", "ids", "text", "finished", "logprobs", "reward", "source", "replies")
    kept = {"example": rollout.example.id, **{name: getattr(rollout, name) for name in fields}}
    return kept if rollout.denoising is None else {**kept, "denoising": vars(rollout.denoising)}


def _restored(probe: dict, examples: dict[str, Example]) -> Rollout:
    if probe["example"] not in examples:
        raise RunError(
            f"probe {probe['example']} is no longer in the data the run was started with. Restore data.eval (or "
            "data.probes) to what config.yaml names."
        )
    values = {**probe, "example": examples[probe["example"]]}
    values |= {name: tuple(probe.get(name, ())) for name in ("ids", "logprobs", "replies")}
    if "denoising" in probe:
        values["denoising"] = Denoising(**{**probe["denoising"], "steps": tuple(probe["denoising"]["steps"])})
    return Rollout(**values)
