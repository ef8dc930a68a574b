"""Probes: fixed answers that every view scores again throughout a run.

Rollouts change at every step and cannot show how the supervision of one token changes. The student before training
answers a few questions once; the trainer then scores and routes the same tokens every few steps, by the method's rule.
"""

from collections.abc import Mapping

from workbench.config.schema import RunConfig
from workbench.distill.method import Method
from workbench.distill.rollouts import from_row, request_peer_feedback, sample_rollouts, to_row
from workbench.policies import Policy, SamplingOptions
from workbench.runs.folder import RunFolder
from workbench.types import Example, Rollout


def open_probes(
    config: RunConfig,
    folder: RunFolder,
    students: Mapping[str, Policy],
    method: Method,
    pool: list[Example],
    sampling: SamplingOptions,
) -> dict[str, tuple[Rollout, ...]]:
    """Probes by learner: loaded from the run folder, or sampled now and saved there."""
    examples = pool[: config.trace.probes]
    kept = folder.probes()
    if kept is not None:
        examples_by_id = {example.id: example for example in pool}
        restored = [from_row(probe, examples_by_id, "data.eval (or data.probes)") for probe in kept]
        return {
            name: tuple(rollout for rollout in restored if rollout.sampled_by == policy.name)
            for name, policy in students.items()
        }
    sampled = {}
    for name, student in students.items() if examples else ():
        sampled[name] = tuple(
            sample_rollouts(
                student,
                examples,
                context=method.learner_context,
                sampling=sampling,
                num_generations=1,
                seed=("probe", config.seed),
                **config.evaluation.grading,
            )
        )
    if method.peer_request is not None:
        sampled = request_peer_feedback(
            sampled, students, method.peer_request, sampling=sampling, seed=("probe", config.seed)
        )
    folder.write_probes([to_row(rollout) for rollouts in sampled.values() for rollout in rollouts])
    return sampled
