"""The training loop. `Trainer.train_step` is one step of every method:

    sample    the student answers the step's examples, or the dataset does     rollout_source.py, distill/rollouts.py
    score     all views but the learner's score the sampled tokens             distill/scoring.py
    route     the method's rule assigns a regime to every position             methods/
    learn     forward and backward pass of the learner; losses by regime       distill/step.py, distill/losses.py
    update    gradient all-reduce, clipping, optimizer step, moving average    learner.py
    trace     scores, regimes, weights and losses of every token               traces/

On the CPU a resumed run equals an uninterrupted one bit for bit: random draws are seeded by step, and resume deletes
the records of later steps before it repeats them.
"""

import contextlib
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from workbench.config.evaluation import EvaluationSet
from workbench.config.schema import RunConfig
from workbench.data.examples import split_by_evidence
from workbench.data.mixture import describe_order, describe_sources, order_of, require_every_source
from workbench.distill.ratio_clip import clip_ratio
from workbench.distill.rollouts import request_peer_feedback
from workbench.distill.scoring import Batch
from workbench.distill.step import NonFiniteError, StepResult, compute_step, join_collectives, score_batch
from workbench.distill.usable import encoding_problem, filter_encodable
from workbench.distributed import ALONE, ProcessGroup, choose_device
from workbench.errors import RunError, TraceError, UnavailableError
from workbench.evals.evaluate import Evaluation, teachers
from workbench.policies.by_domain import covers
from workbench.policies.fsdp import describe_shards, layer_by_layer, single_policies, unsharded_root
from workbench.policies.image_features import cached_image_features
from workbench.policies.pass_counts import PassCounts, count_passes, sum_counts
from workbench.policies.proven import keep_shortcuts
from workbench.policies.roles import describe_trained
from workbench.policies.serving.sampler import sample_together
from workbench.policies.serving.served import ServedPolicy
from workbench.runs.checkpoints import Checkpoint
from workbench.runs.fingerprints import (
    models_read_again,
    require_same_data,
    require_same_models,
    require_same_served,
)
from workbench.runs.folder import RunFolder, StopSignal, checkpoint_path
from workbench.seeding import derive_seed
from workbench.traces.parts import compact, has_probes
from workbench.traces.writer import TraceWriter, to_traced_batch
from workbench.training.ahead import AheadSampler
from workbench.training.checkpointing import Gathered, gather, load_optimizer, save_checkpoint
from workbench.training.early_stopping import EarlyStopping
from workbench.training.filter import (
    SkippedExamples,
    filter_by_evidence,
    filter_by_plain_text,
    filter_by_teacher,
    report_leaks,
    usable_batch,
)
from workbench.training.health import HealthMonitor
from workbench.training.learner import Learner, attach_engine, attach_sampler, autocast, build_learner, check_engine
from workbench.training.length import describe_steps, with_steps
from workbench.training.metrics import (
    StepTimer,
    prefix_by_learner,
    ratio_metrics,
    require_small_gap,
    sampled_precision,
    sampler_logprob_gap,
    step_metrics,
    thinking_metrics,
)
from workbench.training.probes import open_probes
from workbench.training.resume_records import resume_from_latest
from workbench.training.rollout_source import RolloutSource
from workbench.training.run_data import RunData, load_run_data
from workbench.training.tracking import build_accelerator, log_answers
from workbench.types import STUDENT, Example, Rollout

T = TypeVar("T")
log = logging.getLogger("workbench")


@dataclass(frozen=True)
class TrainResult:
    """Result of a run: folder, finished steps, skipped examples by reason, warnings."""

    run_dir: Path
    steps: int
    stopped: bool
    skipped: dict[str, int]
    warnings: tuple[str, ...]


class Trainer:
    """Builds one run from its configuration; `run` is the loop and `train_step` one step."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        *,
        resume: bool = False,
        process_group: ProcessGroup = ALONE,
    ) -> None:
        self.folder, self.process_group = folder, process_group
        self._has_warned_of_size = False
        self._between_steps = StepTimer()
        process_group.require_prompts(config.training.batch_size)
        self.method = config.load_method()
        self.trained_method = clip_ratio(self.method, config.sampling.ratio_clip)
        check_engine(config, self.method)
        self.accelerator = build_accelerator(config, folder.path)
        self.skipped_examples = SkippedExamples(folder)
        data = self._load_data(config, resume)
        examples = filter_by_teacher(data.train, config.teacher_domains, self.skipped_examples)
        examples = filter_by_evidence(examples, self.method, self.skipped_examples)
        require_every_source(examples, config.data.train_sources)
        log.info("%s", describe_steps(config, len(examples)))
        self.config = config = with_steps(config, len(examples))
        report_leaks(examples, self.method, folder)
        checkpoint = process_group.broadcast_from_main(lambda: resume_from_latest(folder, config)) if resume else None
        self.step_done = checkpoint.step if checkpoint else 0
        self.device = choose_device(config.models.device, process_group)
        self.learners = self._build_learners(checkpoint)
        self.students = {learner.name: learner.student for learner in self.learners}
        self.policies = [policy for learner in self.learners for policy in learner.policies.values()]
        self.sampling_policies = [
            learner.policies[name] for learner in self.learners for name in (STUDENT, self.method.replying_policy)
        ]
        self.all_views = [  # of all learners, as (policy, context)
            (learner.policies[view.policy], view.context)
            for learner in self.learners
            for view in self.method.views.values()
        ]
        if process_group.sharding is not None:
            log.info("%s", describe_shards(self.sampling_policies, config.forward_dtype))
        # students that also train on the examples' references, which then must be usable too
        reference_students = list(self.students.values()) if self.method.dataset_fraction > 0.0 else []
        self._problem_of = partial(encoding_problem, views=self.all_views, reference_students=reference_students)
        self.examples = filter_by_plain_text(examples, self.all_views, reference_students, self.skipped_examples)
        self.order = order_of(self.examples, config.data.train_sources, config.seed, shuffle=config.data.shuffle)
        self._log_sources(data.train)
        self.sampling = config.sampling.options
        self._record_models()
        self.rollout_sources = self._build_rollout_sources()
        self.ahead = self._build_ahead(checkpoint) if config.sampling.ahead else None
        self.trace_writer = self._build_trace_writer()
        self.health_monitors = self._build_health_monitors()
        sets = [(chosen, self._usable_for_evaluation(chosen, examples)) for chosen, examples in data.evaluation]
        self.evaluation = Evaluation(
            config, folder, list(self.students.values()), self.learners[0].policies, sets, process_group
        )
        evaluated = self.process_group.broadcast_from_main(lambda: folder.metrics("eval"))
        self.early_stopping = EarlyStopping(config, evaluated)
        eval_examples = [example for _, examples in sets for example in examples]
        self.probes = self._open_probes(eval_examples if config.data.probes is None else data.probes)

    def _load_data(self, config: RunConfig, resume: bool) -> RunData:
        """Load all examples. On resume, data and models must equal those at the start.

        Raises: DataError if no example of an evaluation set has an answer; RunError if data or models changed.
        """
        data = load_run_data(config)
        if held_out := data.describe_held_out(config.data.held_out):
            log.info("%s", held_out)
        for repeated in data.describe_repeated():
            log.warning("%s", repeated)
        self.process_group.broadcast_from_main(lambda: require_same_data(self.folder, data.by_key, resume=resume))
        self.process_group.broadcast_from_main(
            lambda: require_same_models(self.folder, models_read_again(config, self.method), resume=resume)
        )
        return data

    def _log_sources(self, loaded: list[Example]) -> None:
        """Log and record each source of data.train, if there are several, and the order of the examples."""
        training = self.config.training
        lines = describe_sources(
            loaded, self.examples, self.config.data.train_sources, training.steps * training.batch_size
        )
        for line in lines:
            log.info("source %s", line)
        log.info("order of examples: %s", describe_order(self.config.seed, shuffle=self.config.data.shuffle))
        self.process_group.broadcast_from_main(lambda: self.folder.update(sources=lines, steps=training.steps))

    def _build_learners(self, checkpoint: Checkpoint | None) -> list[Learner]:
        """Every student with its policies and optimizer, at the start or at a checkpoint."""
        options: dict[str, Any] = {
            "device": str(self.device),
            "checkpoint": checkpoint,
            "process_group": self.process_group,
        }
        learners = [build_learner(self.config, self.method, name, **options) for name in self.config.models.learners]
        attach_engine(learners, self.config, self.process_group)
        attach_sampler(learners, self.config, self.process_group.broadcast_from_main(lambda: uuid.uuid4().hex))
        for learner in learners if checkpoint else ():
            load_optimizer(checkpoint, learner.optimizer, learner.student.model, learner.name, self.process_group)
            if learner.mask is not None:
                learner.mask.check_moments(learner.optimizer)
        return learners

    def _record_models(self) -> None:
        """Warn of models without a chat template; record the proof of each model in run.json, and keep it on resume."""
        processors = {policy.name: getattr(policy, "processor", None) for policy in self.policies}
        bare = [
            name
            for name, processor in processors.items()
            if processor and not getattr(processor, "chat_template", None)
        ]
        if bare:
            log.warning("%s: no chat template, so prompts are images and plain text", ", ".join(bare))
        recorded = self.folder.status.get("proofs") or {}
        singles = list(single_policies(self.policies))
        in_process = [policy for policy in singles if not isinstance(policy, ServedPolicy)]
        self.folder.update(proofs=keep_shortcuts(in_process, recorded))
        self.served = [policy for policy in singles if isinstance(policy, ServedPolicy)]
        facts = {policy.name: policy.facts for policy in self.served}
        self.process_group.broadcast_from_main(
            lambda: require_same_served(self.folder, facts, resume=self.step_done > 0)
        )

    def _build_rollout_sources(self) -> list[RolloutSource]:
        """The source of each learner's rollouts; some sample all sequences here, before the first step."""
        in_order = [self.examples[idx] for idx in self.order.first_pass()]
        begun = self.step_done > 0
        shared = self.method, self.sampling, in_order, self._is_usable, begun, self.process_group
        return self._sample_together(
            lambda: [RolloutSource(self.config, self.folder, learner, *shared) for learner in self.learners]
        )

    def _build_ahead(self, checkpoint: Checkpoint | None) -> AheadSampler:
        source, policies = self.rollout_sources[0], self.sampling_policies
        return AheadSampler(self.config, self.method, source, policies, self.process_group, checkpoint)

    def _sample_together(self, work: Callable[[], T]) -> T:
        """Result of `work`, which samples on all ranks outside of a step."""
        with unsharded_root(*self.sampling_policies):
            return sample_together(self.sampling_policies, work, self.process_group)

    def _build_trace_writer(self) -> TraceWriter:
        return TraceWriter(
            self.folder.path,
            method=self.method.name,
            policy_text={learner.name: learner.student.token_text for learner in self.learners},
            rank=self.process_group.rank,
            compact_every=0,
            background=True,
        )

    def _build_health_monitors(self) -> list[HealthMonitor]:
        """A health monitor for each learner, with the metrics of earlier steps."""
        rate, precision = self.config.training.learning_rate, self.config.forward_dtype
        monitors = [
            HealthMonitor(learner.name, rate, sampled_precision(learner.student, precision))
            for learner in self.learners
        ]
        for line in self.folder.metrics("train"):
            metrics = {name: value for name, value in line.items() if name != "kind"}
            for monitor in monitors:
                monitor.update(line["step"], metrics)
        return monitors

    def _usable_for_evaluation(self, chosen: EvaluationSet, examples: list[Example]) -> list[Example]:
        """Examples that all students and teachers can encode under every context of the evaluation set."""
        policies = [*self.students.values(), *teachers(self.learners[0].policies, self.config)]
        return filter_encodable(examples, policies, chosen.contexts, self.skipped_examples)

    def _open_probes(self, examples: list[Example]) -> dict[str, tuple[Rollout, ...]]:
        """Probes by learner, of the first examples that every view can encode; on other ranks than 0 empty."""
        pool = split_by_evidence(examples or self.examples, list(self.method.contexts))[0]
        pool = [example for example in pool if all(covers(policy, example.domain) for policy, _ in self.all_views)]
        pool = pool[: 2 * self.config.trace.probes]
        pool = [
            example
            for example in pool
            if not self.skipped_examples.add_if(example, encoding_problem(example, self.all_views))
        ]
        options = self.config, self.folder, self.students, self.method, pool, self.sampling
        with self._autocast():
            return self._sample_together(lambda: self.process_group.on_main(lambda: open_probes(*options), {}))

    def _is_usable(self, example: Example) -> bool:
        return not self.skipped_examples.add_if(example, self._problem_of(example))

    def run(self, stop: StopSignal, on_step: Callable[[int, dict], None] | None) -> TrainResult:
        """Run all remaining steps, with evaluations, probes and checkpoints when they are due.

        stop     requests to stop after the current step
        on_step  called with the number and the metrics of each step
        """
        training, trace = self.config.training, self.config.trace
        log.info(
            "%s: %d examples, steps %d to %d", self.method.name, len(self.examples), self.step_done, training.steps
        )
        for learner in self.learners:
            log.info("%s trains %s weights", learner.name, describe_trained(learner.student.model))
        if self.step_done == 0:
            self._evaluate(0)
            self._probe(0)
        elif self.process_group.broadcast_from_main(lambda: self.evaluation.is_missing(self.step_done)):
            self._evaluate(self.step_done)
        if self.step_done and self.process_group.broadcast_from_main(lambda: self._lacks_probes(self.step_done)):
            self._probe(self.step_done)
        if self.early_stopping.exhausted:
            log.info("nothing is left to train")
            self._stop_early()
        bar = self._progress_bar()
        for step in bar:
            metrics = self.train_step(step)
            self.step_done = step
            is_last = step == training.steps
            stopping = any(self.process_group.all_gather_object(stop.requested))
            if is_last or step % trace.probe_every == 0:
                self._probe(step)
            if is_last or stopping or self._saves_at(step):
                self._save(step)
            self._report(step, metrics, bar)
            if self.evaluation.is_due(step):
                self._evaluate(step)
            if on_step is not None:
                on_step(step, metrics)
            if self.early_stopping.exhausted:
                self._stop_early()
                break
            if stopping and not is_last:
                again = self.process_group.resume_command(self.folder.path)
                log.info("stopped after step %d; continue with %s", step, again)
            if stopping:
                break
        # Accelerator.end_training would also destroy the process group, which a later run of this process may use
        for tracker in self.accelerator.trackers:
            tracker.finish()
        stopped = self.step_done < training.steps and not self.early_stopping.exhausted
        return TrainResult(
            self.folder.path, self.step_done, stopped, dict(self.skipped_examples.counts), tuple(self._warnings())
        )

    def _saves_at(self, step: int) -> bool:
        """Whether a checkpoint is due; with early stopping also at each evaluation, which may be the best."""
        every = self.config.training.save_every
        evaluated = self.early_stopping.patience > 0 and self.evaluation.is_due(step)
        return evaluated or (every > 0 and step % every == 0)

    def _stop_early(self) -> None:
        """Log and record why the run ends before its last step."""
        log.info("%s; %s", self.early_stopping, self.early_stopping.best_text(self.folder.path))
        self.folder.update(stopped_early=str(self.early_stopping))

    def _progress_bar(self) -> tqdm:
        last = self.step_done if self.early_stopping.exhausted else self.config.training.steps
        return tqdm(
            range(self.step_done + 1, last + 1),
            initial=self.step_done,
            total=self.config.training.steps,
            unit="step",
            dynamic_ncols=True,
            disable=not self.process_group.is_main,
        )

    def train_step(self, step: int) -> dict[str, float]:
        """Run one training step of all learners; return its metrics."""
        between, self._between_steps, timer = self._between_steps.laps, StepTimer(), StepTimer()
        examples = self._next_examples(step)
        upcoming = self._next_examples(step + 1) if self.ahead and step < self.config.training.steps else []
        try:
            with (
                self.process_group.propagate_errors(),
                unsharded_root(*self.policies),  # inside, no weight may change: the update comes after
                cached_image_features() if self.config.models.cache_image_features else contextlib.nullcontext(),
                count_passes() as counts,
            ):
                rollouts = self._sample(step, examples)  # all learners sample before any is trained
                if upcoming:
                    self.ahead.begin(step + 1, upcoming)
                timer.mark("sample")
                results = [self._score_and_backward(learner, rollouts, step, timer) for learner in self.learners]
                if upcoming:
                    with self._autocast():
                        self.ahead.finish()
                    timer.mark("sample")
            # outside of propagate_errors: all ranks have the same gradients now, so all raise the same error
            for learner in self.learners:
                learner.finish_gradients()
            grad_norms = [learner.clip_gradients() for learner in self.learners]
        except NonFiniteError as error:
            raise self._save_and_explain(step, error) from None
        except UnavailableError as error:
            raise self._save_and_wait(step, error, f"step {step}: ", done=step - 1) from None
        metrics = {}
        try:
            for learner, result, grad_norm in zip(self.learners, results, grad_norms, strict=True):
                metrics |= self._update(learner, result, grad_norm, step)
        except UnavailableError as error:
            raise self._save_and_wait(step, error, f"step {step}: ", done=step - 1) from None
        if self.ahead:
            self.ahead.forget(step)
        timer.mark("update")
        if self._records(step):
            pairs = zip(self.learners, results, strict=True)
            self.trace_writer.write(*(to_traced_batch(result, step, learner.student) for learner, result in pairs))
        timer.mark("trace")  # hand-over to the writer's thread, after its previous write
        num_positions = sum(result.global_batch_result.batch.num_positions for result in results)
        metrics |= timer.seconds() | {"tokens": num_positions, "skipped_total": self.skipped_examples.counts.total()}
        metrics |= between | self._throughput(metrics, counts)
        self.folder.log_metrics("train", step, metrics)
        return metrics

    def _records(self, step: int) -> bool:
        """Whether the trace keeps this step."""
        return self.config.trace.every > 0 and step % self.config.trace.every == 0

    def _throughput(self, metrics: dict[str, float], counts: PassCounts) -> dict[str, float]:
        """Tokens of answers per second, and what the forward passes of all ranks had beside tokens."""
        counts = sum_counts(self.process_group.all_gather_object(counts))
        values = {"tokens_per_second": metrics["tokens"] / metrics["seconds/step"]}
        if self.served:
            values["teacher_retries"] = sum(policy.retries for policy in self.served)
        if counts.tokens:
            values["padding_share"] = counts.padding_share
        budget = self.config.training.tokens_per_micro_batch
        if budget:
            values["oversized_passes"] = counts.oversized
        if counts.oversized and not self._has_warned_of_size:
            self._has_warned_of_size = True
            log.warning(
                "%d forward passes of one step have a single answer that, with its prompt, is longer than "
                "training.tokens_per_micro_batch=%d; metric oversized_passes counts them",
                counts.oversized,
                budget,
            )
        return values

    def _next_examples(self, step: int) -> list[Example]:
        """The step's examples for all ranks, without unusable ones."""
        size = self.config.training.batch_size
        options = self._problem_of, self.skipped_examples, self.process_group
        return usable_batch(self.examples, self.order, step, size, *options)

    def _sample(self, step: int, examples: list[Example]) -> dict[str, tuple[Rollout, ...]]:
        """Rollouts of every learner for this rank's slice of the examples, with remarks of peers if the method has
        any.
        """
        taken = self.ahead.take(step, examples) if self.ahead else None
        if taken is not None:
            return {STUDENT: taken}
        local = self.process_group.local_range(len(examples))
        local_examples = [examples[idx] for idx in local]

        def sample() -> dict[str, tuple[Rollout, ...]]:
            rollouts = {
                name: tuple(source(step, local_examples, local.start))
                for name, source in zip(self.students, self.rollout_sources, strict=True)
            }
            if self.method.peer_request is None:
                return rollouts
            return request_peer_feedback(
                rollouts,
                self.students,
                self.method.peer_request,
                sampling=self.sampling,
                seed=(self.config.seed, step),
                first=local.start * self.config.sampling.num_generations,
            )

        with self._autocast():
            return sample_together(self.sampling_policies, sample, self.process_group)

    def _batch(self, rollouts: tuple[Rollout, ...]) -> Batch:
        training = self.config.training
        return Batch(rollouts, training.micro_batch_size, training.group_by_length, training.tokens_per_micro_batch)

    def _score_and_backward(
        self, learner: Learner, rollouts: dict[str, tuple[Rollout, ...]], step: int, timer: StepTimer
    ) -> StepResult:
        """Score and route one learner's batch and backpropagate its losses; the optimizer step follows later."""
        config, method = self.config, self.method
        batch = self._batch(rollouts[learner.name])
        with self._autocast():
            scored_batch = score_batch(method, learner.policies, batch, _of_peers(rollouts, learner), waits=False)
            timer.mark("score")
            torch.manual_seed(derive_seed("dropout", config.seed, step, *learner.seed, *self.process_group.seed))
            with learner.training_mode():
                result = compute_step(
                    self.trained_method,
                    learner.policies,
                    scored_batch,
                    seed=derive_seed("route", config.seed, step, *learner.seed),
                    top_k=config.trace.top_k if self._records(step) else 0,
                    top_k_rollouts=config.trace.top_k_rollouts,
                    backward=self.accelerator.backward,
                    during_last_pass=learner.during_last_pass,
                    process_group=self.process_group,
                )
        timer.mark("learn")
        return result

    def _update(self, learner: Learner, result: StepResult, grad_norm: float, step: int) -> dict[str, float]:
        """Metrics of one learner's batch, and its optimizer step, which is skipped if no position had supervision."""
        metrics = step_metrics(self.method, result.global_batch_result)
        if self.method.resample:  # otherwise the student before training sampled the sequences
            metrics |= self._sampler_metrics(learner, result.global_batch_result, step)
        training = self.config.training
        rollouts, markers = result.global_batch_result.batch.rollouts, tuple(training.think_markers)
        thinking = thinking_metrics(rollouts, learner.student.token_texts, markers)
        if training.supervise != "all" or thinking["thinking"]:
            metrics |= thinking
        update = learner.update(step) if metrics["supervised"] else learner.skip_step(step)
        return prefix_by_learner(learner.name, metrics | {"grad_norm": grad_norm} | update)

    def _sampler_metrics(self, learner: Learner, result: StepResult, step: int) -> dict[str, float]:
        """The sampler's log-probs beside the student's. Raises: UnavailableError if they differ by more than rounding
        explains, unless weights of an earlier step sampled these answers, for which AheadSampler raises it.
        """
        ratios = ratio_metrics(self.method, result, step, self.config.sampling.ratio_clip)
        if self.ahead and ratios.get("sampler_lag"):
            return ratios | ({} if self.ahead.gap is None else {"sampler_logprob_gap": self.ahead.gap})
        gap = sampler_logprob_gap(self.method, result)
        require_small_gap(gap.get("sampler_logprob_gap", 0.0), learner.student, self.config.forward_dtype)
        return ratios | gap

    def _autocast(self) -> torch.autocast:
        return autocast(self.config, self.device)

    def _probe(self, step: int) -> None:
        try:
            with self._between_steps.lap("probe"), self.process_group.propagate_errors():
                self._score_probes(step)
        except UnavailableError as error:
            raise self._save_and_wait(step, error, f"probes of step {step}: ", done=step) from None

    def _lacks_probes(self, step: int) -> bool:
        """Whether probes of a step were due and are missing: the teacher did not answer."""
        is_due = step == self.config.training.steps or step % self.config.trace.probe_every == 0
        return is_due and not has_probes(self.folder.path, step)

    def _score_probes(self, step: int) -> None:
        """Score and route the probes with all views; rank 0 has the probes and records the results."""
        batches, metrics = [], {}
        if not self.process_group.broadcast_from_main(
            lambda: all(self.probes.get(learner.name) for learner in self.learners)
        ):
            return
        for learner in self.learners:
            with unsharded_root(*learner.policies.values()), self._autocast():
                if not self.process_group.is_main:
                    join_collectives(self.method, learner.policies)
                    continue
                probes = self.probes[learner.name]
                others = _of_peers(self.probes, learner)
                scored_batch = score_batch(self.method, learner.policies, self._batch(probes), others)
                with layer_by_layer(learner.student):
                    result = compute_step(
                        self.method,
                        learner.policies,
                        scored_batch,
                        seed=derive_seed("probe", self.config.seed),
                        top_k=self.config.trace.top_k,
                        top_k_rollouts=len(probes),
                    )
            batches.append(to_traced_batch(result, step, learner.student))
            metrics |= prefix_by_learner(learner.name, step_metrics(self.method, result))
        if not self.process_group.is_main:
            return
        self.trace_writer.write_probe(*batches)
        self.folder.log_metrics("probe", step, metrics)

    def _evaluate(self, step: int) -> None:
        try:
            with self._autocast(), self._between_steps.lap("evaluate"), self.process_group.propagate_errors():
                metrics = self.evaluation(step)
        except UnavailableError as error:
            raise self._save_and_wait(step, error, f"evaluation of step {step}: ", done=step) from None
        self.accelerator.log(metrics, step=step)
        log_answers(self.accelerator, self.evaluation.records, step)
        self.early_stopping.update(step, metrics)
        if self.early_stopping.patience:
            log.info("%s", self.early_stopping.best_text(self.folder.path))
            self.folder.update(best_evaluation=self.early_stopping.best_text(self.folder.path))

    def _save(self, step: int) -> None:
        """Save a checkpoint after all ranks have flushed their traces up to this step."""
        with self._between_steps.lap("save"):
            self.trace_writer.flush()
            self.process_group.all_gather_object("flushed")
            gathered = [gather(learner, self.process_group.is_main) for learner in self.learners]
            upcoming = self.ahead.rows(step + 1) if self.ahead else []
            self.process_group.broadcast_from_main(lambda: self._save_on_main(step, gathered, upcoming))

    def _save_on_main(self, step: int, gathered: list[Gathered | None], upcoming: list[dict]) -> None:
        limit = self.config.training.save_total_limit
        checkpoint = save_checkpoint(
            self.folder.path,
            step,
            self.learners,
            save_total_limit=limit,
            gathered=gathered,
            best_step=self.early_stopping.best_step,
            upcoming=upcoming,
        )
        log.info("saved %s", checkpoint.path)
        try:
            compact(self.folder.path)
        except TraceError as error:  # the unmerged files stay valid
            log.warning("traces were not merged: %s", error)

    def _save_and_explain(self, step: int, error: NonFiniteError) -> RunError:
        """Save the weights before the failed step and build the error for the user."""
        for learner in self.learners:
            learner.optimizer.zero_grad(set_to_none=True)
        saved = ""
        if step > 1:
            self._save(step - 1)
            saved = f"The weights before this step are in {checkpoint_path(self.folder.path, step - 1)}. "
        return RunError(
            f"step {step}: {error} {saved}Start a new run (name=...) with a lower training.learning_rate, with "
            "training.max_grad_norm, or in float32 if this is half precision. It can start from a checkpoint of this "
            "run (models.student=CHECKPOINT/student); choose an earlier one if the newest is damaged."
        )

    def _save_and_wait(self, step: int, error: UnavailableError, where: str, done: int) -> RunError:
        """Save the weights after step `done` and build the error of a teacher that does not answer at `step`."""
        for learner in self.learners:
            learner.optimizer.zero_grad(set_to_none=True)
        saved = ""
        if done:
            checkpoint = checkpoint_path(self.folder.path, done)
            if not self.process_group.broadcast_from_main(checkpoint.is_dir):
                self._save(done)
            saved = f" The weights before that are in {checkpoint}."
        again = self.process_group.resume_command(self.folder.path)
        return RunError(f"{where}{error}{saved} When it is back, continue with {again}.")

    def _report(self, step: int, metrics: dict[str, float], bar: tqdm) -> None:
        """Update progress bar, warnings, run.json and trackers with the metrics of a step."""
        postfix = {"loss": f"{metrics['loss']:.4f}", "entropy": f"{metrics['entropy']:.3f}"}
        if "accuracy" in metrics:
            postfix["accuracy"] = f"{metrics['accuracy']:.0%}"
        bar.set_postfix(postfix)
        for warning in [text for monitor in self.health_monitors for text in monitor.update(step, metrics)]:
            log.warning("%s", warning)
            self.folder.update(warnings=self._warnings())
        rate = bar.format_dict["rate"]
        remaining = (self.config.training.steps - step) / rate if rate else None
        self.folder.update(steps_done=step, steps=self.config.training.steps, remaining_s=remaining)
        self.accelerator.log({name: value for name, value in metrics.items() if value is not None}, step=step)
        log.debug("step %d loss %.5f", step, metrics["loss"])

    def _warnings(self) -> list[str]:
        return [warning for monitor in self.health_monitors for warning in monitor.warnings.values()]


def _of_peers(rollouts: dict[str, tuple[Rollout, ...]], learner: Learner) -> tuple[tuple[Rollout, ...], ...]:
    """Rollouts of each other learner."""
    return tuple(others for name, others in rollouts.items() if name != learner.name)
