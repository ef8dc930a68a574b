"""THE loop. One step of every method:

    write    the student answers (or the data does)                  rollout_source.py, distill/rollouts.py
    read     every view that does not learn scores the same tokens   distill/scoring.py, distill/step.py
    route    the method's rule gives each position a regime          methods/
    learn    the learner reads them with gradient; losses by regime  distill/losses.py
    step     one division, one clipping, one optimiser step          learner.py
    trace    what each view said, where each token went and why      traces/

A resumed run equals an uninterrupted one bit for bit on the CPU: draws are seeded by step, and what later steps left
behind is deleted before they are done again.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from workbench.config.schema import RunConfig
from workbench.data.examples import load_examples, split_by_evidence
from workbench.distill.rollouts import request_peer_feedback
from workbench.distill.scoring import Batch
from workbench.distill.step import NonFiniteError, StepResult, compute_step, join_collectives, score_batch
from workbench.distill.usable import encoding_problem, filter_encodable
from workbench.distributed import ALONE, Group, choose_device
from workbench.errors import RunError, TraceError
from workbench.evals.evaluate import Evaluation, teachers
from workbench.evals.records import require_answers
from workbench.policies import SamplingOptions
from workbench.policies.by_domain import covers
from workbench.policies.fsdp import single_policies, unsharded, unsharded_heads
from workbench.policies.image_features import cached_image_features
from workbench.runs.checkpoints import Checkpoint
from workbench.runs.fingerprints import models_read_again, require_same_data, require_same_models
from workbench.runs.folder import RunFolder, StopSignal, checkpoint_path
from workbench.seeding import EpochOrder, derive_seed
from workbench.traces.parts import compact
from workbench.traces.writer import TraceWriter, to_traced_batch
from workbench.training.checkpointing import Gathered, gather, load_optimizer, save_checkpoint
from workbench.training.filter import (
    SkippedExamples,
    filter_by_evidence,
    filter_by_plain_text,
    filter_by_teacher,
    report_leaks,
    usable_batch,
)
from workbench.training.health import HealthMonitor
from workbench.training.learner import Learner, attach_engine, autocast, build_learner, check_engine
from workbench.training.metrics import StepTimer, prefix_by_learner, sampler_gap, step_metrics
from workbench.training.probes import open_probes
from workbench.training.resume_records import resume_from_latest
from workbench.training.rollout_source import RolloutSource
from workbench.training.tracking import build_accelerator
from workbench.types import STUDENT, Example, Rollout

Loader = Callable[..., list[Example]]  # as load_examples

log = logging.getLogger("workbench")


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves: its folder, the steps done, examples skipped by reason, and what looked wrong."""

    run_dir: Path
    steps: int
    stopped: bool
    skipped: dict[str, int]
    warnings: tuple[str, ...]


class Trainer:
    """State of one run; `run` is the loop and `step` one turn of it."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        *,
        resume: bool = False,
        load: Loader = load_examples,
        group: Group = ALONE,
    ) -> None:
        self.config, self.folder, self.group = config, folder, group
        group.require_prompts(config.training.batch_size)
        self.method = config.load_method()
        check_engine(config, self.method)
        self.accelerator = build_accelerator(config, folder.path)
        self.skipped = SkippedExamples(folder)
        data = _load_data(config, load)
        group.main_first(lambda: require_same_data(folder, data, resume=resume))
        group.main_first(lambda: require_same_models(folder, models_read_again(config, self.method), resume=resume))
        examples = filter_by_teacher(data["data.train"], config.teacher_domains, self.skipped)
        self.examples = filter_by_evidence(examples, self.method, self.skipped)
        report_leaks(self.examples, self.method, folder)
        checkpoint = group.main_first(lambda: resume_from_latest(folder, config)) if resume else None
        self.step_done = checkpoint.step if checkpoint else 0
        self.device = choose_device(config.models.device, group)
        self.learners = self._build_learners(checkpoint)
        self.views = [
            (learner.policies[view.policy], view.context)
            for learner in self.learners
            for view in self.method.views.values()
        ]
        learns_references = self.method.dataset_share > 0.0
        self.sampled_by = [learner.student for learner in self.learners] if learns_references else []
        self.examples = filter_by_plain_text(self.examples, self.views, self.sampled_by, self.skipped)
        self.order = EpochOrder(len(self.examples), config.seed)
        sampling = config.sampling
        self.sampling = SamplingOptions(
            sampling.max_completion_length, sampling.temperature, sampling.top_p, sampling.top_k
        )
        self.policies = [policy for learner in self.learners for policy in learner.policies.values()]
        self._record_models()
        self.sampling_policies = [
            learner.policies[policy] for learner in self.learners for policy in (STUDENT, self.method.replying_policy)
        ]
        self.rollout_sources = self._build_rollout_sources()
        self.trace_writer = TraceWriter(
            folder.path,
            method=self.method.name,
            policy_text={learner.name: learner.student.token_text for learner in self.learners},
            rank=group.rank,
            compact_every=0,
            background=True,
        )
        precision = "bfloat16" if config.training.mixed_precision == "bf16" else config.models.dtype
        self.health_monitors = [
            HealthMonitor(learner.name, config.training.learning_rate, precision) for learner in self.learners
        ]
        for line in folder.metrics("train"):
            self._update_health(line["step"], {name: value for name, value in line.items() if name != "kind"})
        self.students = {learner.name: learner.student for learner in self.learners}
        answering = [*self.students.values(), *teachers(self.learners[0].policies, config)]
        questions = filter_encodable(data["data.eval"], answering, config.evaluation.contexts, self.skipped)
        self.evaluation = Evaluation(
            config, folder, list(self.students.values()), self.learners[0].policies, questions, group
        )
        self.probes = self._open_probes(questions if config.data.probes is None else data["data.probes"])

    def _build_learners(self, checkpoint: Checkpoint | None) -> list[Learner]:
        """Every student with its policies and optimizer, at the start or at a checkpoint."""
        options = {"device": str(self.device), "checkpoint": checkpoint, "group": self.group}
        learners = [build_learner(self.config, self.method, name, **options) for name in self.config.models.learners]
        attach_engine(learners, self.config)
        for learner in learners if checkpoint else ():
            load_optimizer(checkpoint, learner.optimizer, learner.student.model, learner.name)
            if learner.mask is not None:
                learner.mask.check_moments(learner.optimizer)
        return learners

    def _record_models(self) -> None:
        """Warn of models without a chat template; keep in run.json what was proven of each."""
        processors = {policy.name: getattr(policy, "processor", None) for policy in self.policies}
        bare = [
            name
            for name, processor in processors.items()
            if processor and not getattr(processor, "chat_template", None)
        ]
        if bare:
            log.warning("%s: no chat template, so prompts are pictures and plain text", ", ".join(bare))
        proofs = {policy.name: policy.proof for policy in single_policies(self.policies) if policy.proof is not None}
        rows = {name: {"off": proof.off, "differs": list(proof.differs)} for name, proof in proofs.items()}
        self.folder.update(proofs=rows)

    def _build_rollout_sources(self) -> list[RolloutSource]:
        """What gives each learner its rollouts; some sample all of them here, before the first step."""
        in_order = [self.examples[self.order.index(idx)] for idx in range(len(self.examples))]
        begun = self.step_done > 0
        with unsharded_heads(*self.sampling_policies), unsharded(*self.sampling_policies):
            shared = self.method, self.sampling, in_order, self._usable, begun, self.group
            return [RolloutSource(self.config, self.folder, learner, *shared) for learner in self.learners]

    def _open_probes(self, examples: list[Example]) -> dict[str, tuple[Rollout, ...]]:
        """By learner, answers to the first examples that every view can be shown; of several processes the first has
        them.
        """
        pool = split_by_evidence(examples or self.examples, list(self.method.contexts))[0]
        pool = [example for example in pool if all(covers(policy, example.domain) for policy, _ in self.views)]
        pool = pool[: 2 * self.config.trace.probes]
        pool = [example for example in pool if not self.skipped.add_if(example, encoding_problem(example, self.views))]
        with unsharded_heads(*self.sampling_policies), unsharded(*self.sampling_policies), self._autocast():
            return self.group.on_main(
                lambda: open_probes(self.config, self.folder, self.students, self.method, pool, self.sampling), {}
            )

    def _usable(self, example: Example) -> bool:
        return not self.skipped.add_if(example, encoding_problem(example, self.views, self.sampled_by))

    def run(self, stop: StopSignal, on_step: Callable[[int, dict], None] | None) -> TrainResult:
        training, trace = self.config.training, self.config.trace
        log.info(
            "%s: %d examples, steps %d to %d", self.method.name, len(self.examples), self.step_done, training.steps
        )
        if self.step_done == 0:
            self._evaluate(0)
            self._probe(0)
        elif self.group.main_first(lambda: self.evaluation.is_missing(self.step_done)):
            self._evaluate(self.step_done)
        steps = range(self.step_done + 1, training.steps + 1)
        bar = tqdm(
            steps,
            initial=self.step_done,
            total=training.steps,
            unit="step",
            dynamic_ncols=True,
            disable=not self.group.is_main,
        )
        for step in bar:
            metrics = self.step(step)
            self.step_done = step
            last, stopping = step == training.steps, any(self.group.all_gather_object(stop.asked))
            if last or step % trace.probe_every == 0:
                self._probe(step)
            if last or stopping or (training.save_every and step % training.save_every == 0):
                self._save(step)
            self._report(step, metrics, bar)
            if self.evaluation.is_due(step):
                self._evaluate(step)
            if on_step is not None:
                on_step(step, metrics)
            if stopping and not last:
                log.info("stopped after step %d; `workbench resume %s` goes on", step, self.folder.path)
            if stopping:
                break
        for (
            tracker
        ) in self.accelerator.trackers:  # end_training would also part the processes, which may do another run
            tracker.finish()
        stopped = self.step_done < training.steps
        return TrainResult(
            self.folder.path, self.step_done, stopped, dict(self.skipped.counts), tuple(self._warnings())
        )

    def step(self, step: int) -> dict[str, float]:
        """One turn of the loop; returns its metrics."""
        clock = StepTimer()
        examples = usable_batch(
            self.examples,
            self.order,
            step,
            self.config.training.batch_size,
            self.views,
            self.sampled_by,
            self.skipped,
            self.group,
        )
        try:
            with (
                self.group.propagate_errors(),
                unsharded_heads(*self.policies),
                cached_image_features(self.config.models.share_images),
            ):
                written = self._sample(step, examples)
                clock.mark("write")  # all write before any learns
                results = [self._learn(learner, written, step, clock) for learner in self.learners]
            for learner in self.learners:
                learner.all_reduce_gradients(self.group)
            grad_norms = [learner.clip_gradients() for learner in self.learners]
        except NonFiniteError as error:
            raise self._stop_for(step, error) from None
        metrics = {}
        for learner, result, grad_norm in zip(self.learners, results, grad_norms, strict=True):
            learner_metrics = step_metrics(self.method, result.global_result)
            if self.method.resample:  # otherwise the sequences were sampled by the student before training
                learner_metrics |= sampler_gap(self.method, result.global_result)
            update = learner.step(step) if learner_metrics["supervised"] else learner.skip_step(step)
            metrics |= prefix_by_learner(learner.name, learner_metrics | grad_norm | update)
        clock.mark("learn")
        if self.config.trace.every and step % self.config.trace.every == 0:
            pairs = zip(self.learners, results, strict=True)
            self.trace_writer.write(*(to_traced_batch(result, step, learner.student) for learner, result in pairs))
        clock.mark("trace")
        num_positions = sum(result.global_result.batch.num_positions for result in results)
        metrics |= clock.seconds() | {"tokens": num_positions, "skipped": self.skipped.counts.total()}
        self.folder.log_metrics("train", step, metrics)
        return metrics

    def _sample(self, step: int, examples: list[Example]) -> dict[str, tuple[Rollout, ...]]:
        """What this process's part of the step's examples is answered by every student."""
        block = self.group.local_range(len(examples))
        block_examples = [examples[idx] for idx in block]
        with unsharded(*self.sampling_policies), self._autocast():
            written = {
                name: tuple(write(step, block_examples, block.start))
                for name, write in zip(self.students, self.rollout_sources, strict=True)
            }
            if self.method.peer_request is None:
                return written
            options = {"seed": (self.config.seed, step), "first": block.start * self.config.sampling.num_generations}
            return request_peer_feedback(
                written, self.students, self.method.peer_request, sampling=self.sampling, **options
            )

    def _learn(
        self, learner: Learner, written: dict[str, tuple[Rollout, ...]], step: int, clock: StepTimer
    ) -> StepResult:
        """Read, route and supervise one learner's batch; its gradients are there then, and its weights as before."""
        config, method = self.config, self.method
        batch = Batch(written[learner.name], config.training.micro_batch_size, config.training.bucket)
        with self._autocast():
            scored_batch = score_batch(method, learner.policies, batch, _peer_rollouts(written, learner))
            clock.mark("read")
            torch.manual_seed(derive_seed("dropout", config.seed, step, *learner.seed, *self.group.seed))
            with learner.training_mode():
                scored = compute_step(
                    method,
                    learner.policies,
                    scored_batch,
                    seed=derive_seed("route", config.seed, step, *learner.seed),
                    num_alternatives=config.trace.alternatives,
                    alternatives_of=config.trace.alternatives_of,
                    backward=self.accelerator.backward,
                    group=self.group,
                )
        clock.mark("learn")
        return scored

    def _autocast(self) -> torch.autocast:
        return autocast(self.config, self.device)

    def _probe(self, step: int) -> None:
        """Re-score the fixed answers under every view and route them by the method's own rule."""
        batches, metrics = [], {}
        if not self.group.main_first(lambda: all(self.probes.get(learner.name) for learner in self.learners)):
            return
        for learner in self.learners:
            with unsharded_heads(*learner.policies.values()), self._autocast():
                if not self.group.is_main:  # the probes are with the first
                    join_collectives(self.method, learner.policies)
                    continue
                probes = self.probes[learner.name]
                batch = Batch(probes, self.config.training.micro_batch_size, self.config.training.bucket)
                scored_batch = score_batch(self.method, learner.policies, batch, _peer_rollouts(self.probes, learner))
                with unsharded(learner.student):
                    scored = compute_step(
                        self.method,
                        learner.policies,
                        scored_batch,
                        seed=derive_seed("probe", self.config.seed),
                        num_alternatives=self.config.trace.alternatives,
                        alternatives_of=len(probes),
                    )
            batches.append(to_traced_batch(scored, step, learner.student))
            metrics |= prefix_by_learner(learner.name, step_metrics(self.method, scored))
        if not self.group.is_main:
            return
        self.trace_writer.write_probe(*batches)
        self.folder.log_metrics("probe", step, metrics)

    def _evaluate(self, step: int) -> None:
        with self._autocast():
            measured = self.evaluation(step)
        self.accelerator.log(measured, step=step)

    def _save(self, step: int) -> None:
        self.trace_writer.flush()
        self.group.all_gather_object("flushed")  # what a checkpoint stands for is on disk before it
        gathered = [gather(learner, self.group.is_main) for learner in self.learners]
        self.group.main_first(lambda: self._save_here(step, gathered))

    def _save_here(self, step: int, gathered: list[Gathered | None]) -> None:
        keep = self.config.training.keep
        checkpoint = save_checkpoint(self.folder.path, step, self.learners, keep=keep, gathered=gathered)
        log.info("saved %s", checkpoint.path)
        try:
            compact(self.folder.path)
        except TraceError as error:  # a damaged file: the rows are where they were, and training goes on
            log.warning("traces were not merged: %s", error)

    def _stop_for(self, step: int, error: NonFiniteError) -> RunError:
        """Save the weights before the step, and say what to do."""
        for learner in self.learners:
            learner.optimizer.zero_grad(set_to_none=True)
        saved = ""
        if step > 1:
            self._save(step - 1)
            saved = f"The weights before this step are in {checkpoint_path(self.folder.path, step - 1)}. "
        return RunError(
            f"step {step}: {error} {saved}Start a new run (name=...) with a lower training.learning_rate, with "
            "training.max_grad_norm, or in float32 if this is half precision. It may begin from a checkpoint of this "
            "one: models.student=CHECKPOINT/student. If the newest is ruined already, take an earlier one."
        )

    def _report(self, step: int, metrics: dict[str, float], bar: tqdm) -> None:
        postfix = {"loss": f"{metrics['loss']:.4f}", "entropy": f"{metrics['entropy']:.3f}"}
        if "accuracy" in metrics:
            postfix["right"] = f"{metrics['accuracy']:.0%}"
        bar.set_postfix(postfix)
        for warning in self._update_health(step, metrics):
            log.warning("%s", warning)
            self.folder.update(warnings=self._warnings())
        rate = bar.format_dict["rate"]
        remaining = (self.config.training.steps - step) / rate if rate else None
        self.folder.update(steps_done=step, steps=self.config.training.steps, remaining_s=remaining)
        self.accelerator.log({name: value for name, value in metrics.items() if value is not None}, step=step)
        log.debug("step %d loss %.5f", step, metrics["loss"])

    def _update_health(self, step: int, metrics: dict[str, float]) -> list[str]:
        return [warning for watch in self.health_monitors for warning in watch.update(step, metrics)]

    def _warnings(self) -> list[str]:
        return [warning for watch in self.health_monitors for warning in watch.warnings.values()]


def _peer_rollouts(written: dict[str, tuple[Rollout, ...]], learner: Learner) -> tuple[tuple[Rollout, ...], ...]:
    """What the other learners wrote."""
    return tuple(rollouts for name, rollouts in written.items() if name != learner.name)


def _load_data(config: RunConfig, load: Loader) -> dict[str, list[Example]]:
    """All examples of a run, by the key that names them. Raises DataError if none of data.eval can be graded."""
    data = {"data.train": load(config.data.train, limit=config.data.limit), "data.eval": [], "data.probes": []}
    if config.data.eval is not None:
        data["data.eval"] = load(config.data.eval, limit=config.evaluation.count or None)
        require_answers(data["data.eval"])
    if config.data.probes is not None:
        data["data.probes"] = load(config.data.probes)
    return data
