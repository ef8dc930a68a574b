"""Score and route rollouts that something else sampled, and record them as a step of a run, without training."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from workbench.config.schema import RunConfig
from workbench.distill.method import Method
from workbench.distill.scoring import Batch
from workbench.distill.step import compute_step, score_batch
from workbench.policies.image_features import cached_image_features
from workbench.runs.folder import RunFolder
from workbench.seeding import derive_seed
from workbench.traces.parts import compact
from workbench.traces.writer import TraceWriter, to_traced_batch
from workbench.training.health import HealthMonitor
from workbench.training.learner import autocast
from workbench.training.metrics import StepTimer, sampler_logprob_gap, step_metrics
from workbench.types import STUDENT, Rollout


class RolloutRecorder:
    """Scores the rollouts of a step under every view of a method, routes them, and writes metrics and traces.

    policies  by the method's names; "student" is the learner, whose weights do not change here
    """

    def __init__(self, config: RunConfig, method: Method, policies: dict[str, Any], folder: RunFolder) -> None:
        self.config, self.method, self.policies, self.folder = config, method, policies, folder
        student = policies[STUDENT]
        self.writer = TraceWriter(
            Path(folder.path), method=method.name, policy_text={STUDENT: student.token_text}, compact_every=0
        )
        self.health = HealthMonitor(STUDENT, 0.0, config.forward_dtype)

    def record(self, step: int, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Record a step; returns its metrics."""
        config, training, method, timer = self.config, self.config.training, self.method, StepTimer()
        batch = Batch(tuple(rollouts), training.micro_batch_size, training.group_by_length)
        cached = cached_image_features() if config.models.cache_image_features else contextlib.nullcontext()
        with torch.no_grad(), autocast(config, self.policies[STUDENT].device), cached:
            scored_batch = score_batch(method, self.policies, batch)
            timer.mark("score")
            result = compute_step(
                method,
                self.policies,
                scored_batch,
                seed=derive_seed("route", config.seed, step),
                top_k=config.trace.top_k,
                top_k_rollouts=config.trace.top_k_rollouts,
            )
        timer.mark("learn")
        self.writer.write(to_traced_batch(result, step, self.policies[STUDENT]))
        timer.mark("trace")
        metrics = step_metrics(method, result) | sampler_logprob_gap(method, result)
        metrics |= timer.seconds() | {"tokens": batch.num_positions}
        self.folder.log_metrics("train", step, metrics)
        self._report(step, metrics)
        return metrics

    def close(self) -> None:
        """Merge the traces of the steps."""
        self.writer.flush()
        compact(self.folder.path)

    def _report(self, step: int, metrics: dict[str, float]) -> None:
        new = self.health.update(step, metrics)
        warnings = {"warnings": list(self.health.warnings.values())} if new else {}
        self.folder.update(steps_done=step, **warnings)
