"""THE loop. One step of every method:

    write    the student answers (or the data does)                  writing.py, rollouts.py
    read     every view that does not learn scores the same tokens   scoring.py, supervision.py
    route    the method's rule gives each position a regime          methods/
    learn    the learner reads them with gradient; losses by regime  losses.py
    step     one division, one clipping, one optimiser step          learner.py
    trace    what each view said, where each token went and why      traces/

A resumed run equals an uninterrupted one bit for bit on the CPU: draws are seeded by step, and what later steps left
behind is deleted before they are done again.
"""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from workbench.checkpoints import Checkpoint, load_optimizer, save_checkpoint
from workbench.config import RunConfig, load_config
from workbench.datasets import load_examples, split_by_evidence
from workbench.errors import ConfigError, RunError, TraceError, WorkbenchError
from workbench.evaluate import ask, require_answers, save_answers, summarise, tabulate
from workbench.learner import Learner, build_learner
from workbench.metrics import Clock, of_learner, step_metrics
from workbench.policies import SamplingOptions
from workbench.policies.by_domain import covers
from workbench.policies.image_features import remembered_images
from workbench.probes import open_probes
from workbench.rewind import rewind
from workbench.rollouts import ask_all
from workbench.runs import RunFolder, StopSignal
from workbench.scoring import Batch
from workbench.seeding import Order, derive_seed
from workbench.skipping import Skipped, can_show, usable_batch, with_evidence, with_teacher
from workbench.supervision import NotFinite, Scored, read_batch, supervise_batch
from workbench.traces.parts import compact
from workbench.traces.writer import TraceWriter
from workbench.tracking import build_accelerator
from workbench.types import Example, Rollout
from workbench.watch import Watch
from workbench.writing import Writer

Loader = Callable[..., list[Example]]  # as load_examples

log = logging.getLogger("workbench")

RESUMABLE = ("training.save_every", "training.keep", "training.trackers")


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves: its folder, the steps done, examples skipped by reason, and what looked wrong."""

    run_dir: Path
    steps: int
    stopped: bool
    skipped: dict[str, int]
    warnings: tuple[str, ...]


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    on_step: Callable[[int, dict], None] | None = None,
    load: Loader = load_examples,
) -> TrainResult:
    """Train as configured; SIGTERM and SIGINT stop after the step at hand, with a checkpoint.

    resume   go on from the newest complete checkpoint of the run folder
    on_step  called after each step with its number and metrics
    load     reads examples; several runs in one process may share one that remembers

    Raises: WorkbenchError saying what to do. If a loss is not a number, the weights before that step are saved first.
    """
    if resume:
        folder = RunFolder.open(config.run_dir)
    else:
        load(config.data.train, limit=1)  # a wrong path should not leave a folder behind
        folder = RunFolder.create(config.run_dir, config.to_yaml(), seed=config.seed, method=config.method["name"])
    with folder.claim():
        if resume:
            folder.write_config(config.to_yaml())  # with what was changed: the next resume is to know of it
        return _train_in(folder, config, resume, on_step, load)


def _train_in(
    folder: RunFolder, config: RunConfig, resume: bool, on_step: Callable[[int, dict], None] | None, load: Loader
) -> TrainResult:
    handler, before = folder.log_to_file(), folder.status.get("status")
    outcome = (
        before if resume and before in ("finished", "stopped") else "failed"
    )  # of a run that cannot even begin: what was done before is as it was
    try:
        folder.update(status="running", error=None, pid=os.getpid())
        with StopSignal() as stop:
            trainer = Trainer(config, folder, resume=resume, load=load)
            outcome = "failed"
            with trainer.writer:
                result = trainer.run(stop, on_step)
        outcome = "stopped" if result.stopped else "finished"
        return result
    except WorkbenchError as error:
        log.error("%s", error)
        folder.update(error=str(error))
        raise
    finally:
        folder.update(status=outcome)
        log.removeHandler(handler)
        handler.close()


def resume(
    run_dir: str | Path, overrides: list[str] | tuple[str, ...] = (), on_step: Callable[[int, dict], None] | None = None
) -> TrainResult:
    """Go on with a run, as its own config.yaml says, from its newest complete checkpoint.

    Raises: ConfigError for an override that would make another run of it; those in RESUMABLE may change.
    """
    folder = RunFolder.open(run_dir)
    for text in overrides:
        if not text.startswith(tuple(f"{key}=" for key in RESUMABLE)):
            raise ConfigError(
                f'"{text}" would make another run of it. On resume only {", ".join(RESUMABLE)} may change; start a new '
                "run for anything else."
            )
    place = [f"output_dir={json.dumps(str(folder.path.parent))}", f"name={json.dumps(folder.path.name)}"]
    return train(load_config(folder.path / "config.yaml", [*place, *overrides]), resume=True, on_step=on_step)


class Trainer:
    """State of one run; `run` is the loop and `step` one turn of it."""

    def __init__(
        self, config: RunConfig, folder: RunFolder, *, resume: bool = False, load: Loader = load_examples
    ) -> None:
        self.config, self.folder = config, folder
        self.method = config.load_method()
        self.accelerator = build_accelerator(config, folder.path)
        self.skipped = Skipped(folder)
        examples = with_teacher(load(config.data.train, limit=config.data.limit), config.teacher_domains, self.skipped)
        self.examples = with_evidence(examples, self.method, self.skipped)
        checkpoint = rewind(folder) if resume else None
        self.step_done = checkpoint.step if checkpoint else 0
        device = str(self.accelerator.device)
        self.learners = [
            build_learner(config, self.method, name, device=device, checkpoint=checkpoint)
            for name in config.models.learners
        ]
        for learner in self.learners if checkpoint else ():
            load_optimizer(checkpoint, learner.optimizer, learner.student.model, learner.name)
            if learner.mask is not None:
                learner.mask.check_moments(learner.optimizer)
        self.views = [
            (learner.policies[view.policy], view.context)
            for learner in self.learners
            for view in self.method.views.values()
        ]
        self.order = Order(len(self.examples), config.seed)
        sampling = config.sampling
        self.sampling = SamplingOptions(
            sampling.max_completion_length, sampling.temperature, sampling.top_p, sampling.top_k
        )
        in_order = [self.examples[self.order.at(place)] for place in range(len(self.examples))]
        self.writers = [
            Writer(config, folder, learner, self.method, self.sampling, in_order, self._usable, self.step_done > 0)
            for learner in self.learners
        ]
        self.writer = TraceWriter(
            folder.path,
            method=self.method.name,
            policy_text={learner.name: learner.student.token_text for learner in self.learners},
            compact_every=0,
            background=True,
        )
        self.watches = [Watch(learner.name) for learner in self.learners]
        for line in folder.metrics("train"):
            self._look(line["step"], {name: value for name, value in line.items() if name != "kind"})
        views = [(learner.student, context) for learner in self.learners for context in config.evaluation.contexts]
        self.eval_examples = [one for one in _eval_examples(config, load) if can_show(one, views, self.skipped)]
        pool = self.eval_examples if config.data.probes is None else load(config.data.probes)
        pool = split_by_evidence(pool or self.examples, list(self.method.contexts))[0]
        pool = [one for one in pool if all(covers(policy, one.domain) for policy, _ in self.views)]
        pool = list(filter(self._usable, pool[: 2 * config.trace.probes]))
        self.students = {learner.name: learner.student for learner in self.learners}
        self.probes = open_probes(config, folder, self.students, self.method, pool, self.sampling)

    def _usable(self, example: Example) -> bool:
        return can_show(example, self.views, self.skipped)

    def run(self, stop: StopSignal, on_step: Callable[[int, dict], None] | None) -> TrainResult:
        training, trace = self.config.training, self.config.trace
        log.info(
            "%s: %d examples, steps %d to %d", self.method.name, len(self.examples), self.step_done, training.steps
        )
        if self.step_done == 0:
            self._evaluate(0)
            self._probe(0)
        elif self._evaluates(self.step_done) and self.step_done not in {
            row["step"] for row in self.folder.metrics("eval")
        }:
            self._evaluate(self.step_done)  # it was saved, and killed before it was asked
        steps = range(self.step_done + 1, training.steps + 1)
        bar = tqdm(steps, initial=self.step_done, total=training.steps, unit="step", dynamic_ncols=True)
        for step in bar:
            metrics = self.step(step)
            self.step_done = step
            last, stopping = step == training.steps, stop.asked
            if last or step % trace.probe_every == 0:
                self._probe(step)
            if last or stopping or (training.save_every and step % training.save_every == 0):
                self._save(step)
            if self._evaluates(step):
                self._evaluate(step)
            self._report(step, metrics, bar)
            if on_step is not None:
                on_step(step, metrics)
            if stopping and not last:
                log.info("stopped after step %d; `workbench resume %s` goes on", step, self.folder.path)
            if stopping:
                break
        self.accelerator.end_training()
        stopped = self.step_done < training.steps
        return TrainResult(
            self.folder.path, self.step_done, stopped, dict(self.skipped.counts), tuple(self._warnings())
        )

    def step(self, step: int) -> dict[str, float]:
        """One turn of the loop; returns its metrics."""
        clock = Clock()
        examples = usable_batch(
            self.examples, self.order, step, self.config.training.batch_size, self.views, self.skipped
        )
        try:
            with remembered_images(self.config.models.share_images):
                written = self._write(step, examples)
                clock.lap("write")  # all write before any learns
                scored = [self._learn(learner, written, step, clock) for learner in self.learners]
            clipped = [learner.clip() for learner in self.learners]
        except NotFinite as error:
            raise self._stop_for(step, error) from None
        metrics = {}
        for learner, one, grad_norm in zip(self.learners, scored, clipped, strict=True):
            own = step_metrics(self.method, one)
            moved = learner.step(step) if own["supervised"] else learner.rest(step)
            metrics |= of_learner(learner.name, own | grad_norm | moved)
        clock.lap("learn")
        if self.config.trace.every and step % self.config.trace.every == 0:
            self.writer.write(*(one.traced(step, own.student) for own, one in zip(self.learners, scored, strict=True)))
        clock.lap("trace")
        num_positions = sum(one.batch.num_positions for one in scored)
        metrics |= clock.seconds() | {"tokens": num_positions, "skipped": self.skipped.counts.total()}
        self.folder.log_metrics("train", step, metrics)
        return metrics

    def _write(self, step: int, examples: list[Example]) -> dict[str, tuple[Rollout, ...]]:
        written = {name: tuple(write(step, examples)) for name, write in zip(self.students, self.writers, strict=True)}
        if self.method.asks_peers is None:
            return written
        seed = (self.config.seed, step)
        return ask_all(written, self.students, self.method.asks_peers, sampling=self.sampling, seed=seed)

    def _learn(self, learner: Learner, written: dict[str, tuple[Rollout, ...]], step: int, clock: Clock) -> Scored:
        """Read, route and supervise one learner's batch; its gradients are there then, and its weights as before."""
        config, method = self.config, self.method
        batch = Batch(written[learner.name], config.training.micro_batch_size, config.training.bucket)
        with self._autocast():
            readings = read_batch(method, learner.policies, batch, _others(written, learner))
            clock.lap("read")
            torch.manual_seed(derive_seed("dropout", config.seed, step, *learner.seed))
            learner.student.model.train()
            scored = supervise_batch(
                method,
                learner.policies,
                readings,
                seed=derive_seed("route", config.seed, step, *learner.seed),
                num_alternatives=config.trace.alternatives,
                alternatives_of=config.trace.alternatives_of,
                backward=self.accelerator.backward,
            )
        learner.student.model.eval()
        clock.lap("learn")
        return scored

    def _autocast(self) -> torch.autocast:
        enabled = self.config.training.mixed_precision == "bf16"
        return torch.autocast(self.accelerator.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _probe(self, step: int) -> None:
        """Re-score the fixed answers under every view and route them by the method's own rule."""
        traced, metrics = [], {}
        for learner in self.learners:
            probes = self.probes.get(learner.name)
            if not probes:
                return
            with self._autocast():
                batch = Batch(probes, self.config.training.micro_batch_size, self.config.training.bucket)
                scored = supervise_batch(
                    self.method,
                    learner.policies,
                    read_batch(self.method, learner.policies, batch, _others(self.probes, learner)),
                    seed=derive_seed("probe", self.config.seed),
                    num_alternatives=self.config.trace.alternatives,
                    alternatives_of=len(probes),
                )
            traced.append(scored.traced(step, learner.student))
            metrics |= of_learner(learner.name, step_metrics(self.method, scored))
        self.writer.write_probe(*traced)
        self.folder.log_metrics("probe", step, metrics)

    def _evaluates(self, step: int) -> bool:
        every = self.config.evaluation.every
        return step == self.config.training.steps or (every > 0 and step % every == 0)

    def _evaluate(self, step: int) -> None:
        """Every student under each context; before the first step the teachers too."""
        if not self.eval_examples:
            return
        settings, policies = self.config.evaluation, self.learners[0].policies
        log.info("step %d: asking %d questions, shown %s", step, len(self.eval_examples), ", ".join(settings.contexts))
        teachers = [name for name in policies if name.startswith("teacher")] if settings.teacher and step == 0 else []
        with self._autocast():
            answered = ask(
                [*self.students.values(), *(policies[name] for name in teachers)],
                self.eval_examples,
                settings.contexts,
                step=step,
                max_completion_length=self.sampling.max_completion_length,
                rule=settings.rule,
                batch_size=settings.batch_size,
            )
        save_answers(self.folder.path, step, answered)
        measured = summarise(tabulate(answered))
        self.folder.log_metrics("eval", step, measured)
        self.accelerator.log(measured, step=step)

    def _save(self, step: int) -> Checkpoint:
        self.writer.flush()  # what a checkpoint stands for is on disk before it
        checkpoint = save_checkpoint(self.folder.path, step, self.learners, keep=self.config.training.keep)
        log.info("saved %s", checkpoint.path)
        try:
            compact(self.folder.path)
        except TraceError as error:  # a damaged file: the rows are where they were, and training goes on
            log.warning("traces were not merged: %s", error)
        return checkpoint

    def _stop_for(self, step: int, error: NotFinite) -> RunError:
        """Save the weights before the step, and say what to do."""
        for learner in self.learners:
            learner.optimizer.zero_grad(set_to_none=True)
        saved = f"The weights before this step are in {self._save(step - 1).path}. " if step > 1 else ""
        return RunError(
            f"step {step}: {error} {saved}Start a new run (name=...) with a lower training.learning_rate, with "
            "training.max_grad_norm, or in float32 if this is half precision. It may begin from a checkpoint of this one: "
            "models.student=CHECKPOINT/student. If the newest is ruined already, take an earlier one."
        )

    def _report(self, step: int, metrics: dict[str, float], bar: tqdm) -> None:
        shown = {"loss": f"{metrics['loss']:.4f}", "entropy": f"{metrics['entropy']:.3f}"}
        if "accuracy" in metrics:
            shown["right"] = f"{metrics['accuracy']:.0%}"
        bar.set_postfix(shown)
        for warning in self._look(step, metrics):
            log.warning("%s", warning)
            self.folder.update(warnings=self._warnings())
        rate = bar.format_dict["rate"]
        remaining = (self.config.training.steps - step) / rate if rate else None
        self.folder.update(steps_done=step, steps=self.config.training.steps, remaining_s=remaining)
        self.accelerator.log({name: value for name, value in metrics.items() if value is not None}, step=step)
        log.debug("step %d loss %.5f", step, metrics["loss"])

    def _look(self, step: int, metrics: dict[str, float]) -> list[str]:
        return [warning for watch in self.watches for warning in watch.look(step, metrics)]

    def _warnings(self) -> list[str]:
        return [warning for watch in self.watches for warning in watch.warnings.values()]


def _others(written: dict[str, tuple[Rollout, ...]], learner: Learner) -> tuple[tuple[Rollout, ...], ...]:
    """What the other learners wrote."""
    return tuple(rollouts for name, rollouts in written.items() if name != learner.name)


def _eval_examples(config: RunConfig, load: Loader) -> list[Example]:
    if config.data.eval is None:
        return []
    examples = load(config.data.eval, limit=config.evaluation.count or None)
    require_answers(examples)
    return examples
