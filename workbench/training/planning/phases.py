"""The phases of a planned step, each a dry run of the passes that the training loop makes.

    load     weights come to the device
    sample   the student answers: prompts, then one token at a time with a cache of keys and values
    score    every view but the learner's passes the answers; hidden states of the answers are kept
    learn    the learner's pass, losses in chunks of logits, backward pass, update
    save     a checkpoint, of which the device keeps nothing

A server, in a process of its own, makes the passes of `sample` or of `score` for one device.

Micro-batches after the second are like it; what they keep is counted and not computed again.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import torch
from PIL import Image
from torch import Tensor, nn

import workbench.distill.losses
from workbench.config.schema import VLLM, RunConfig
from workbench.distill.losses import compute_losses, score, top_k_tokens
from workbench.distill.method import Method
from workbench.distill.scoring import Batch
from workbench.policies.dropout import enter_training_without_dropout
from workbench.policies.image_features import cached_image_features
from workbench.policies.roles import set_trained
from workbench.policies.row_sizes import padded_tokens
from workbench.policies.sampling import sample_tokens
from workbench.policies.view_output import ViewOutput, chunk_size, join_outputs
from workbench.training.learner import autocast
from workbench.training.planning.dry_run import ACTIVATIONS, CACHE, GRADIENT, MOMENTS, WEIGHTS, DryRun
from workbench.training.planning.models import SAMPLER
from workbench.training.planning.policies import PlannedPolicy
from workbench.training.planning.residency import Residency
from workbench.types import STUDENT, Example, Prompt, Rollout, Routing

EXECUTED = 2  # micro-batches that are computed: the second one meets the gradients of the first
SERVING = "serve "  # before the name of a policy on a server
Segment = tuple[str, str, str]  # phase, name, and the policy whose layers it passes


@dataclass
class Measured:
    """What a dry run measured: live bytes by kind at each segment's peak, operations, bytes read token by token."""

    shape: "StepShape"
    peaks: dict[Segment, Counter[str]] = field(default_factory=dict)
    flops: dict[Segment, float] = field(default_factory=dict)
    traffic: dict[Segment, float] = field(default_factory=dict)


class PlannedStep:
    """One training step of one learner on one device, in steady state: the optimizer has its moments."""

    def __init__(
        self,
        config: RunConfig,
        method: Method,
        run: DryRun,
        policies: dict[str, PlannedPolicy],
        residency: Residency,
        num_prompts: int,
    ) -> None:
        self.config, self.method, self.run, self.policies = config, method, run, policies
        self.residency, self.num_prompts = residency, num_prompts
        self.student, self.phase = policies[STUDENT], ""
        residency.prepare(policies)
        model = self.student.model
        frozen = config.models.freeze_embeddings
        set_trained(model, config.models.train, config.training.learning_rates, STUDENT, freeze_embeddings=frozen)
        self.trained = [weight for weight in model.parameters() if weight.requires_grad]
        if config.training.mixed_precision == "bf16":
            run.copied = {weight.shape for policy in policies.values() for weight in policy.model.parameters()}
        run.vocabularies = {policy.vocabulary for policy in policies.values()}
        if config.models.gradient_checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        self.length, self.generations = config.sampling.max_completion_length, config.sampling.num_generations
        self.outputs: dict[str, ViewOutput] = {}
        most = max(sized.pictures for sized in self.student.planned_prompts.values())
        blank = [[Image.new("1", (1, 1)) for _ in range(most)] for _ in range(num_prompts)]
        self._pictures = [tuple(some) for some in blank]  # stand-ins, whose identity alone counts
        rows = self._rows_in_pass(self.student, method.learner_context)
        self.shape = StepShape(num_prompts * self.generations, rows)
        self.measured = Measured(self.shape)

    def simulate(self) -> Measured:
        """Run every phase."""
        run, residency = self.run, self.residency
        run.hold(WEIGHTS, residency.resident)
        self._phase("load", lambda: None)
        run.hold(MOMENTS, residency.moments(self.config.training.optimizer))
        keeps = cached_image_features() if self.config.models.cache_image_features else contextlib.nullcontext()
        with residency.step(run), keeps:
            with autocast(self.config, "cpu"):
                self._phase("sample", self._sample)
            with autocast(self.config, "cpu"):
                self._phase("score", self._score)
                self._phase("learn", self._learn)
        self.outputs.clear()
        for parameter in self.trained:
            parameter.grad = None
        run.hold(GRADIENT, -run.live[GRADIENT])
        self._phase("save", lambda: None)
        for spec in residency.sizes:
            if spec.server:
                self._serve(self.policies[spec.names[0]])
        return self.measured

    def _serve(self, policy: PlannedPolicy) -> None:
        """What a server does for this device, in a process of its own."""
        run, rest = self.run, Counter(self.run.live)
        run.live.clear()
        run.hold(WEIGHTS, self.residency.sizes[policy.spec].total)
        if policy.name == SAMPLER:
            self._phase(SERVING + SAMPLER, lambda: self._sample_by(policy))
        else:
            self._phase(SERVING + policy.name, lambda: self._score_by(policy))
        run.live = rest

    def _score_by(self, policy: PlannedPolicy) -> None:
        """Passes of a served teacher over the executed micro-batches."""
        self._mark("pass", policy.name)
        for view in self.method.views.values():
            if view.policy == policy.name:
                batch = self._batch(self._rows_in_pass(policy, view.context))
                prompts = self._rows_of(view.context, batch)
                with torch.no_grad():
                    join_outputs([_pass(policy, prompts, batch, rows) for rows, _ in batch.micro_batches()])

    def _phase(self, name: str, act: Callable[[], None]) -> None:
        self.phase = name
        with self.run.phase(f"{name}|begin|{STUDENT}"), _one_slice_of_scores():
            act()
        for segment, peak in self.run.peaks.items():
            self.measured.peaks[_parsed(segment)] = +peak
        for segment, flops in self.run.flops.items():
            self.measured.flops[_parsed(segment)] = flops * self._repeats(segment)

    def _repeats(self, segment: str) -> float:
        """How often the operations of a segment occur for each time that they are executed."""
        name = segment.split("|")[1]
        if name == "token":
            return max(1, self.length - 1)
        return self.shape.micro_batches / self.shape.executed if name in _BY_MICRO_BATCH else 1

    def _mark(self, name: str, policy: str = STUDENT) -> None:
        self.run.mark(f"{self.phase}|{name}|{policy}")

    def _prompts(self, context: str) -> list[Prompt]:
        """Distinct prompts of this device under a context."""
        pictures = self.student.planned_prompts[context].pictures
        return [Prompt(some[:pictures], context, key=f"{idx}|{context}") for idx, some in enumerate(self._pictures)]

    def _sample(self) -> None:
        if self.config.sampling.server is not None:
            self.residency.send(self.run, self.student.spec)
            return
        if self.config.sampling.backend == VLLM:  # which computes in its own share of the device
            self.residency.send(self.run, self.student.spec, copies=True)
            return
        with self.residency.whole(self.run, self.student):
            self._sample_by(self.student)

    @torch.no_grad()
    def _sample_by(self, policy: PlannedPolicy) -> None:
        """All answers of this device: prompts once, then a token at a time."""
        options = self.config.sampling.options
        prompts = self._prompts(self.method.learner_context)
        rows = [prompt for prompt in prompts for _ in range(self.generations)]
        never = torch.zeros(0, dtype=torch.long)
        for part in policy.parts(rows):
            self._mark("prompt", policy.name)
            numbers = torch.zeros(len(part), dtype=torch.float64)
            for hidden in policy.first_and_last_token([rows[row] for row in part], self.length):
                sample_tokens(policy.head, hidden, policy.vocabulary, never, numbers, options)
                cached = self.run.live[CACHE]
                self._mark("token", policy.name)
            read = self.residency.sizes[policy.spec].total + cached
            self._count_traffic(policy.name, (self.length - 1) * read)

    def _count_traffic(self, policy: str, read: float) -> None:
        segment = (self.phase, "token", policy)
        self.measured.traffic[segment] = self.measured.traffic.get(segment, 0) + read

    def _rows_in_pass(self, policy: PlannedPolicy, context: str) -> int:
        """Longest answers in a forward pass: by tokens, the fewest that fill it, so that shorter ones need no more."""
        training, rows = self.config.training, self.num_prompts * self.generations
        if not training.tokens_per_micro_batch:
            return min(training.micro_batch_size or rows, rows)
        prompts = [prompt for prompt in self._prompts(context) for _ in range(self.generations)]
        sizes = policy.row_sizes(prompts, [(1,) * self.length] * rows)
        fill = (count for count in range(1, rows) if padded_tokens(sizes[:count]) >= training.tokens_per_micro_batch)
        return next(fill, rows)

    def _batch(self, rows_in_pass: int) -> Batch:
        """Answers of the learner's executed micro-batches, grouped by example."""
        rollouts = tuple(
            Rollout(Example(str(row // self.generations), ""), row, (1,) * self.length, "", False)
            for row in range(self.shape.executed_rows)
        )
        return Batch(rollouts, rows_in_pass)

    def _rows_of(self, context: str, batch: Batch) -> tuple[Prompt, ...]:
        prompts = self._prompts(context)
        return tuple(prompts[int(rollout.example.id)] for rollout in batch.rollouts)

    def _score(self) -> None:
        """All views but the learner's, as distill.scoring.score_views."""
        live = self.run.live
        for name, view in self.method.views.items():
            if view.learns:
                continue
            policy = self.policies[view.policy]
            batch = self._batch(self._rows_in_pass(policy, view.context))
            prompts = self._rows_of(view.context, batch)
            before = live[ACTIVATIONS]
            self._mark("pass", view.policy)
            if policy.spec.server:
                self.outputs[name] = policy.received(len(batch.token_ids))
            else:
                with self.residency.scoring(self.run, policy.spec), torch.no_grad():
                    passes = [_pass(policy, prompts, batch, rows) for rows, _ in batch.micro_batches()]
                    self.outputs[name] = join_outputs(passes)
                    del passes
            # what other micro-batches keep: hidden states, and features of their pictures
            rest = self.shape.rows - self.shape.executed_rows
            self.run.hold(ACTIVATIONS, max(0, live[ACTIVATIONS] - before) * rest // self.shape.executed_rows)
            if name not in self.method.late_views:
                self._mark("scores", view.policy)
                self._score_a_chunk(self.outputs[name], batch.token_ids)

    def _score_a_chunk(self, output: ViewOutput, ids: Tensor) -> None:
        """Scores of one chunk of positions; the other chunks are like it."""
        count = min(len(ids), chunk_size(output.vocabulary))
        before = self.run.flops[self.run.segment]
        score(output.select(slice(count)), ids[:count])
        self.run.flops[self.run.segment] += (self.run.flops[self.run.segment] - before) * (len(ids) - count) // count

    def _learn(self) -> None:
        """Losses and backward passes of all micro-batches, as distill.step.compute_step; then the update."""
        batch, method, policy = self._batch(self.shape.micro_batch), self.method, self.student
        prompts = self._rows_of(method.learner_context, batch)
        if method.learner_view in method.router_views and self.shape.micro_batches > 1:
            self._mark("scores")
            with self.residency.scoring(self.run, policy.spec), torch.no_grad():
                for rows, _ in batch.micro_batches():
                    self._score_a_chunk(_pass(policy, prompts, batch, rows), batch.token_ids[: len(rows) * self.length])
        self._enter_training()
        with self._noticing_backward_passes():
            for rows, positions in batch.micro_batches():
                self._mark("pass")
                with self.residency.learning(self.run, policy):
                    output = _pass(policy, prompts, batch, rows)
                    self._mark("losses")
                    with self.run.backward_of(self.trained):
                        self._backward(output, positions, batch)
                    del output
        policy.model.eval()
        self._mark("update")
        self.residency.reduce(self.run)

    def _backward(self, output: ViewOutput, positions: slice, batch: Batch) -> None:
        """Losses of one micro-batch and its backward pass."""
        ids, trace = batch.token_ids[positions], self.config.trace
        targets = {name: view.select(positions) for name, view in self.outputs.items()}
        regimes, segment = tuple(self.method.regimes.values()), self.run.segment
        # each regime at an equal share of the positions, of which one chunk is computed
        share = max(1, len(ids) // len(regimes))
        chunk = min(share, chunk_size(output.vocabulary))
        regime = torch.arange(len(ids)) // share
        regime[torch.arange(len(ids)) % share >= chunk] = -1
        part = Routing(regime, torch.ones(len(ids)), torch.ones(len(ids)))
        normalizer = torch.ones(len(ids))
        before = self.run.flops[segment]
        total = compute_losses(output, targets, ids, regimes=regimes, routing=part, loss_normalizer=normalizer).total
        self.run.flops[segment] += (self.run.flops[segment] - before) * (share - chunk) // chunk
        recorded = trace.top_k_rollouts * self.length if trace.top_k else 0
        top_k_tokens(output, torch.arange(min(recorded, len(ids))), trace.top_k)
        self._mark("backward")
        total.backward()

    @contextlib.contextmanager
    def _noticing_backward_passes(self) -> Iterator[None]:
        """Begin a segment when the backward pass leaves the last layer.

        Before, activations of all layers are there; after, gradients replace them: the peak is at one of the ends.
        """
        layers = getattr(self.student.model.get_decoder(), "layers", None)
        if layers is None or len(layers) < 2:
            yield
            return

        def notice(_: nn.Module, inputs: object, output: Tensor | tuple) -> None:
            states = output if isinstance(output, Tensor) else output[0]
            if states.requires_grad:
                states.register_hook(lambda _: self._mark("backward through layers"))

        handle = layers[-2].register_forward_hook(notice)
        yield
        handle.remove()

    def _enter_training(self) -> None:
        model = self.student.model
        if self.config.training.dropout:
            model.train()
        else:
            enter_training_without_dropout(model)


_BY_MICRO_BATCH = ("pass", "scores", "losses", "backward", "backward through layers")


@dataclass(frozen=True)
class StepShape:
    """Rows of a step on one device, and of the learner's pass. executed: micro-batches that a dry run computes."""

    rows: int
    micro_batch: int

    @property
    def micro_batches(self) -> int:
        return -(-self.rows // self.micro_batch)

    @property
    def executed(self) -> int:
        return min(EXECUTED, self.micro_batches)

    @property
    def executed_rows(self) -> int:
        return min(self.rows, self.executed * self.micro_batch)


@contextlib.contextmanager
def _one_slice_of_scores() -> Iterator[None]:
    """Compute the scores of a chunk's first rows alone: its slices follow each other and keep nothing."""
    whole = workbench.distill.losses.row_slices
    workbench.distill.losses.row_slices = lambda logits: islice(whole(logits), 1)
    try:
        yield
    finally:
        workbench.distill.losses.row_slices = whole


def _pass(policy: PlannedPolicy, prompts: tuple[Prompt, ...], batch: Batch, rows: list[int]) -> ViewOutput:
    """As distill.scoring.forward_micro_batch."""
    return policy.forward([prompts[row] for row in rows], [batch.rollouts[row].ids for row in rows])


def _parsed(segment: str) -> Segment:
    phase, name, policy = segment.split("|")
    return phase, name, policy
