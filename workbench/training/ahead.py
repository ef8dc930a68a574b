"""Answers that a server samples one step ahead (sampling.ahead=1): in step t those to the examples of step t + 1.

    begin     before the student scores and learns: the server gets its present weights and begins
    finish    after the gradients, before the update: wait for the answers, and compare their log-probs with the
              student's, whose weights are still those that sampled them

So the weights that learn an answer are one update later than those that sampled it, which `Rollout.sampler_step` names.
A server that fails does so before the update, when the checkpoint of the step before can still be written. A checkpoint
after step t has the answers of step t + 1 (`Checkpoint.upcoming`), since the weights that sampled them are gone.
"""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from workbench.config.schema import RunConfig
from workbench.data.contexts import build_prompt
from workbench.distill.losses import score
from workbench.distill.method import Method
from workbench.distill.rollouts import from_row, to_row
from workbench.distill.routing import sampler_logprobs
from workbench.distill.scoring import Batch, forward_view
from workbench.distributed import ProcessGroup
from workbench.errors import RunError
from workbench.files.jsonlines import split_lines
from workbench.files.parsing import parse_json
from workbench.policies import Policy
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.policies.fsdp import layer_by_layer
from workbench.policies.serving.sampler import sample_together
from workbench.runs.checkpoints import Checkpoint
from workbench.training.metrics import require_small_gap
from workbench.training.rollout_source import RolloutSource
from workbench.types import Example, Rollout

R = TypeVar("R")
log = logging.getLogger("workbench")


class AheadSampler:
    """Samples the answers of the next step on a server, and keeps those of steps that are not finished.

    policies  all that sample, the student first
    gap       `sampler_logprob_gap` of the answers sampled in this step, under the weights that sampled them
    """

    def __init__(
        self,
        config: RunConfig,
        method: Method,
        source: RolloutSource,
        policies: Sequence[Policy],
        process_group: ProcessGroup,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.config, self.method, self.source, self.policies = config, method, source, policies
        self.process_group = process_group
        self.gap: float | None = None
        self._rollouts: dict[int, tuple[Rollout, ...]] = {}  # of this rank, by step
        self._begun: tuple[int, list[Example]] = (0, [])
        self._saved = _saved_rows(checkpoint)

    @property
    def student(self) -> AutoregressivePolicy:
        return self.source.student

    def take(self, step: int, examples: list[Example]) -> tuple[Rollout, ...] | None:
        """This rank's rollouts of a step; None if they were not sampled ahead, as those of the first step."""
        if self._saved:
            self._rollouts[step] = self._restored(examples)
            self._saved = []
        return self._rollouts.get(step)

    def begin(self, step: int, examples: list[Example]) -> None:
        """Have the server begin with a step's answers, by the student's present weights."""
        self._begun = step, examples
        local, first = self._local(examples)
        self._together(lambda: self.source.prefetch(step, local, first))

    def finish(self) -> None:
        """Wait for the answers; the weights must not have changed.

        Raises: UnavailableError if the server fails, or if its log-probs differ from the student's by more than
        rounding.
        """
        step, examples = self._begun
        local, first = self._local(examples)
        rollouts = self._together(lambda: self.source(step, local, first, weights_of=step - 2))
        self.gap = gap = self._gap_of(rollouts)
        require_small_gap(gap, self.student, self.config.forward_dtype)
        self._rollouts[step] = tuple(rollouts)

    def forget(self, step: int) -> None:
        """Drop what belongs to a finished step."""
        self._rollouts.pop(step, None)
        self.gap = None

    def rows(self, step: int) -> list[dict]:
        """Answers of all ranks for a step, for a checkpoint of the step before."""
        parts = self.process_group.all_gather_object([to_row(rollout) for rollout in self._rollouts.get(step, ())])
        return [row for part in parts for row in part]

    def _together(self, work: Callable[[], R]) -> R:
        return sample_together(self.policies, work, self.process_group)

    def _local(self, examples: list[Example]) -> tuple[list[Example], int]:
        local = self.process_group.local_range(len(examples))
        return [examples[idx] for idx in local], local.start

    def _restored(self, examples: list[Example]) -> tuple[Rollout, ...]:
        """This rank's rollouts of a checkpoint."""
        count = self.config.sampling.num_generations
        if len(self._saved) != count * len(examples):
            raise RunError(
                f"the checkpoint has {len(self._saved)} answers sampled ahead, and the next step {len(examples)} "
                f"examples of {count} answers. Restore the data, or delete the checkpoint to resume from an older one."
            )
        by_id = {example.id: example for example in examples}
        local = self.process_group.local_range(len(examples))
        rows = self._saved[count * local.start : count * local.stop]
        return tuple(from_row(row, by_id, "data.train") for row in rows)

    @torch.no_grad()
    def _gap_of(self, rollouts: Sequence[Rollout]) -> float:
        """`sampler_logprob_gap` of the answers to each rank's first prompt."""
        first = tuple(rollout for rollout in rollouts if rollout.example is rollouts[0].example)
        batch = Batch(first, self.config.training.micro_batch_size)
        prompts = tuple(build_prompt(rollout.example, self.method.learner_context, rollout) for rollout in first)
        with layer_by_layer(self.student):
            output = forward_view(self.student, prompts, batch)
        assert output is not None
        logprobs = score(output, batch.token_ids.to(output.device)).logprob
        gaps = (logprobs - sampler_logprobs(first, logprobs)).abs()
        gaps = gaps[~gaps.isnan()]
        sums = self.process_group.all_gather_object((float(gaps.double().sum()), gaps.numel()))
        return sum(total for total, _ in sums) / max(1, sum(count for _, count in sums))


def _saved_rows(checkpoint: Checkpoint | None) -> list[dict]:
    if checkpoint is None:
        return []
    if not checkpoint.upcoming.is_file():
        log.info("%s has no answers sampled ahead; the next step samples its own", checkpoint.path)
        return []
    return [parse_json(line) for line in split_lines(checkpoint.upcoming.read_text(encoding="utf-8"))]
