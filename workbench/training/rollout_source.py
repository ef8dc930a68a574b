"""Rollout source: the sequences of every training step, sampled by the student or read from the run folder.

For most methods the student samples new answers in every step. With resample=False the student before training samples
every sequence once; the run folder keeps them, and epochs repeat them. The folder also keeps what the method prepares
before the first step. A resumed run reads both, because the student before training no longer exists.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from workbench.config.schema import RunConfig
from workbench.distill.method import Method
from workbench.distill.rollouts import from_row, prefetch_rollouts, sample_rollouts, to_row
from workbench.distributed import ALONE, ProcessGroup
from workbench.errors import RunError
from workbench.files.atomic import replacing
from workbench.files.folders import reason, saving
from workbench.policies import SamplingOptions
from workbench.runs.folder import RunFolder
from workbench.seeding import derive_seed
from workbench.training.learner import Learner, autocast
from workbench.types import STUDENT, Example, Rollout

PREPARED, SEQUENCES = "prepared.safetensors", "sequences.jsonl"

log = logging.getLogger("workbench")


class RolloutSource:
    """Source of the rollouts of one learner, step by step.

    examples  in the order of the first epoch
    usable    returns whether every view can encode an example; only called for examples needed before the first step
    begun     whether steps were done before; then files made at the start must exist

    Raises: RunError if a resumed run lacks prepared tensors or sampled sequences.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        learner: Learner,
        method: Method,
        sampling: SamplingOptions,
        examples: list[Example],
        usable: Callable[[Example], bool],
        begun: bool = False,
        process_group: ProcessGroup = ALONE,
    ) -> None:
        self.config, self.folder, self.learner, self.method, self.sampling = config, folder, learner, method, sampling
        self.student, self.process_group = learner.student, process_group
        self._tensors = (
            process_group.broadcast_from_main(lambda: self._patch_tensors(filter(usable, examples), begun))
            if method.sampling_patch
            else {}
        )
        self._stored = None if method.resample else self._stored_rollouts(examples, usable, begun)

    def __call__(
        self, step: int, examples: list[Example], first: int = 0, weights_of: int | None = None
    ) -> list[Rollout]:
        """Rollouts of a step, grouped by example.

        first       index of the first example within the step
        weights_of  step after which the student has its present weights; None = the one before `step`
        """
        if self._stored is None:
            weights_of = step - 1 if weights_of is None else weights_of
            return self._sample(examples, self._seed(step), first=first, weights_of=weights_of)
        for example in examples:
            if example.id not in self._stored:
                raise RunError(
                    f"no sequence was sampled for {example.origin or example.id}, which was not usable when the run "
                    "began. Restore the data, or start a new run (name=...)."
                )
        return [rollout for example in examples for rollout in self._stored[example.id]]

    def prefetch(self, step: int, examples: list[Example], first: int) -> None:
        """Have the served sampler begin what a call for this step then waits for."""
        prefetch_rollouts(self.student, examples, seed=self._seed(step), first=first, **self._options)

    def _seed(self, step: int) -> tuple[object, ...]:
        return (self.config.seed, step, *self.learner.seed)

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "context": self.method.learner_context,
            "sampling": self.sampling,
            "num_generations": self.config.sampling.num_generations,
            "dataset_fraction": self.method.dataset_fraction,
        }

    def _sample(
        self,
        examples: list[Example],
        seed: tuple[object, ...],
        batch_size: int = 0,
        first: int = 0,
        weights_of: int = 0,
    ) -> list[Rollout]:
        method, patch = self.method, self.method.sampling_patch
        patched = patch.apply(self.student, self._tensors) if patch else contextlib.nullcontext()
        with autocast(self.config, self.student.device), patched:  # the precision of the scoring pass
            rollouts = sample_rollouts(
                self.student,
                examples,
                **self._options,
                seed=seed,
                **self.config.evaluation.grading,
                batch_size=batch_size,
                replier=self.learner.policies[method.replying_policy],
                first=first,
            )
        by = self.student.name if patch is None else f"{self.student.name}+{patch.suffix}"
        return [
            replace(rollout, sampled_by=by, sampler_step=weights_of)
            if rollout.sampled_by == self.student.name
            else rollout
            for rollout in rollouts
        ]

    def _patch_tensors(self, examples: Iterator[Example], begun: bool) -> dict[str, Tensor]:
        file = self._file(PREPARED)
        if file.is_file():
            try:
                return safetensors.torch.load_file(file)
            except (OSError, SafetensorError) as error:
                raise RunError(f"cannot read {file}: {reason(error)}. Start a new run (name=...).") from None
        self._require_start(begun, file)
        prepared = self.method.sampling_patch.build(
            self.student, examples, derive_seed("prepare", self.config.seed, *self.learner.seed)
        )
        with saving(file), replacing(file) as temporary:
            safetensors.torch.save_file(prepared.tensors, temporary)
        facts = (
            prepared.facts
            if self.learner.name == STUDENT
            else {f"{self.learner.name} {name}": fact for name, fact in prepared.facts.items()}
        )
        self.folder.update(prepared={**(self.folder.status.get("prepared") or {}), **facts})
        log.info("prepared: %s", ", ".join(f"{name}: {value}" for name, value in prepared.facts.items()))
        return prepared.tensors

    def _stored_rollouts(
        self, examples: list[Example], usable: Callable[[Example], bool], begun: bool
    ) -> dict[str, list[Rollout]]:
        """Sequences of the student before training, by example id, for the examples of all steps."""
        file = self._file(SEQUENCES)
        examples_by_id = {example.id: example for example in examples}
        sequences = self.process_group.broadcast_from_main(lambda: self.folder.sequences(file.name))
        if sequences is not None:
            return _by_example([from_row(row, examples_by_id, "data.train") for row in sequences])
        self._require_start(begun, file)
        training = self.config.training
        chosen = list(islice(filter(usable, examples), training.steps * training.batch_size))
        log.info("sampling answers to %d examples, once", len(chosen))
        seed, size = (self.config.seed, "once", *self.learner.seed), self.config.evaluation.batch_size
        sequences = self.process_group.map_ranks(
            chosen, lambda block, first: [to_row(rollout) for rollout in self._sample(block, seed, size, first)]
        )
        self.folder.write_sequences(file.name, sequences)
        return _by_example([from_row(row, examples_by_id, "data.train") for row in sequences])

    def _file(self, name: str) -> Path:
        """Path in the run folder; the file of a peer contains its name."""
        stem, dot, ending = name.partition(".")
        return self.folder.path / (name if self.learner.name == STUDENT else f"{stem}-{self.learner.name}{dot}{ending}")

    def _require_start(self, begun: bool, file: Path) -> None:
        if begun:
            raise RunError(
                f"{file} is missing. Only the student before the first step could make it. Restore the file, or start "
                "a new run (name=...)."
            )


def _by_example(rollouts: list[Rollout]) -> dict[str, list[Rollout]]:
    groups: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.example.id, []).append(rollout)
    return groups
