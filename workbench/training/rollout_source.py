"""Writing through a run: who writes, when, and what is kept of it.

Most methods have the student answer anew in every step. A method with resample=False has the starting student write
every sequence once: they lie in the run's folder, and epochs go over them. What a method prepares lies there too. A
resumed run reads both, since the student that made them is no longer there.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from workbench.config.schema import RunConfig
from workbench.distill.method import Method
from workbench.distill.rollouts import from_row, sample_rollouts, to_row
from workbench.distributed import ALONE, Group
from workbench.errors import RunError
from workbench.files.folders import reason, saving
from workbench.policies import SamplingOptions
from workbench.runs.folder import RunFolder
from workbench.seeding import derive_seed
from workbench.training.learner import Learner, autocast
from workbench.types import STUDENT, Example, Rollout

PREPARED, SEQUENCES = "prepared.safetensors", "sequences.jsonl"

log = logging.getLogger("workbench")


class Writer:
    """Gives a learner's every step its rollouts.

    examples  in the order in which the first epoch meets them
    usable    whether an example can be shown to every view; asked only of those that are needed before the first step
    begun     steps were done before: what should have been made by then is not made now

    Raises: RunError if a run that has begun lacks what was prepared or written for it.
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
        group: Group = ALONE,
    ) -> None:
        self.config, self.folder, self.learner, self.method, self.sampling = config, folder, learner, method, sampling
        self.student, self.group = learner.student, group
        self._tensors = group.first(lambda: self._prepared(filter(usable, examples), begun)) if method.prepare else {}
        self._written = None if method.resample else self._sequences(examples, usable, begun)

    def __call__(self, step: int, examples: list[Example], first: int = 0) -> list[Rollout]:
        """The rollouts of a step, one example's next to each other; `first`: place of the first example in the step."""
        if self._written is None:
            return self._write(examples, (self.config.seed, step, *self.learner.seed), first=first)
        for example in examples:
            if example.id not in self._written:
                raise RunError(
                    f"nothing was written to {example.origin or example.id}: it could not be shown when the run began, "
                    "and now it can. Put the data back as it was, or start a new run (name=...)."
                )
        return [rollout for example in examples for rollout in self._written[example.id]]

    def _write(
        self, examples: list[Example], seed: tuple[object, ...], batch_size: int = 0, first: int = 0
    ) -> list[Rollout]:
        method, prepare = self.method, self.method.prepare
        patched = prepare.writing(self.student, self._tensors) if prepare else contextlib.nullcontext()
        with autocast(self.config, self.student.device), patched:  # as the learner scores what is sampled here
            rollouts = sample_rollouts(
                self.student,
                examples,
                context=method.views[method.learner].context,
                sampling=self.sampling,
                num_generations=self.config.sampling.num_generations,
                seed=seed,
                dataset_share=method.dataset_share,
                **self.config.evaluation.grading,
                batch_size=batch_size,
                replier=self.learner.policies[method.replier],
                first=first,
            )
        if prepare is None:
            return rollouts
        return [
            replace(rollout, source=f"{rollout.source}+{prepare.source}")
            if rollout.source == self.student.name
            else rollout
            for rollout in rollouts
        ]

    def _prepared(self, examples: Iterator[Example], begun: bool) -> dict[str, Tensor]:
        file = self._file(PREPARED)
        if file.is_file():
            try:
                return safetensors.torch.load_file(file)
            except (OSError, SafetensorError) as error:
                raise RunError(f"{file} cannot be read ({reason(error)}). Start a new run: name=...") from None
        self._require_start(begun, file)
        prepared = self.method.prepare.make(
            self.student, examples, derive_seed("prepare", self.config.seed, *self.learner.seed)
        )
        temporary = file.with_name(f".{file.name}")
        with saving(file):
            safetensors.torch.save_file(prepared.tensors, temporary)
            os.replace(temporary, file)
        facts = (
            prepared.facts
            if self.learner.name == STUDENT
            else {f"{self.learner.name} {name}": fact for name, fact in prepared.facts.items()}
        )
        self.folder.update(prepared={**(self.folder.status.get("prepared") or {}), **facts})
        log.info("prepared: %s", ", ".join(f"{name}: {value}" for name, value in prepared.facts.items()))
        return prepared.tensors

    def _sequences(
        self, examples: list[Example], usable: Callable[[Example], bool], begun: bool
    ) -> dict[str, list[Rollout]]:
        """By example id, what the starting student wrote: for as many examples as the steps will meet."""
        file = self._file(SEQUENCES)
        examples_by_id = {example.id: example for example in examples}
        rows = self.group.first(lambda: self.folder.sequences(file.name))
        if rows is not None:
            return _by_example([from_row(row, examples_by_id, "data.train") for row in rows])
        self._require_start(begun, file)
        training = self.config.training
        chosen = list(islice(filter(usable, examples), training.steps * training.batch_size))
        log.info("writing answers to %d examples, once", len(chosen))
        seed, size = (self.config.seed, "once", *self.learner.seed), self.config.evaluation.batch_size
        rows = self.group.share(
            chosen, lambda block, first: [to_row(rollout) for rollout in self._write(block, seed, size, first)]
        )
        self.folder.write_sequences(file.name, rows)
        return _by_example([from_row(row, examples_by_id, "data.train") for row in rows])

    def _file(self, name: str) -> Path:
        """In the run's folder; a peer's has its name in it."""
        stem, dot, ending = name.partition(".")
        return self.folder.path / (name if self.learner.name == STUDENT else f"{stem}-{self.learner.name}{dot}{ending}")

    def _require_start(self, begun: bool, file: Path) -> None:
        if begun:
            raise RunError(
                f"{file} is missing. It was made of the student before the first step, which is no "
                "more: restore the file, or start a new run (name=...)."
            )


def _by_example(rollouts: list[Rollout]) -> dict[str, list[Rollout]]:
    groups: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.example.id, []).append(rollout)
    return groups
