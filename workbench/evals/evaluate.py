"""Evaluate accuracy and confidence of policies under each context.

Answers are sampled greedily. An example's visibility is that of its final answer: "visible" if the plain prompt
determines it, "privileged" if only the evidence does, None if unknown.

Confidence (records.CONFIDENCE) covers the marked tokens that have the answer's own visibility: for a privileged
question, those that only the evidence shows. The final words alone would not suffice, since a policy that has sampled
"tag A" repeats "answer A" with certainty. Confidence above accuracy on privileged questions is the effect of imitating
a teacher with more information. Entropy is the mean over the tokens of the answer, in nats.
"""

import logging
import math
from collections.abc import Iterable
from typing import Any

import torch

from workbench.config.evaluation import EvaluationSet
from workbench.config.schema import RunConfig
from workbench.data.contexts import build_prompt
from workbench.data.examples import split_by_evidence
from workbench.data.grading import TOLERANCE
from workbench.distill.losses import score
from workbench.distill.rollouts import sample_rollouts
from workbench.distill.usable import not_evaluated
from workbench.distributed import ALONE, ProcessGroup
from workbench.evals.records import EvalRecord, save_records, summarize, tabulate
from workbench.policies import Policy, SamplingOptions
from workbench.policies.by_domain import covers
from workbench.policies.fsdp import layer_by_layer, single_policies, unsharded_root
from workbench.policies.serving.sampler import sample_together
from workbench.policies.serving.served import ServedPolicy
from workbench.runs.folder import RunFolder
from workbench.types import PRIVILEGED, Example, Rollout, label_completion

log = logging.getLogger("workbench")


def evaluate_policy(
    policy: Policy,
    examples: list[Example],
    context: str,
    *,
    step: int,
    max_completion_length: int,
    grader: str = "final",
    tolerance: float = TOLERANCE,
    batch_size: int = 64,
    stop_strings: tuple[str, ...] = (),
) -> list[EvalRecord]:
    """Sample one greedy answer for every example, and grade it."""
    greedy = SamplingOptions(max_completion_length, temperature=0.0, evaluates=True, stop_strings=stop_strings)
    rollouts = sample_rollouts(
        policy,
        examples,
        context=context,
        sampling=greedy,
        num_generations=1,
        seed=("greedy",),
        grader=grader,
        tolerance=tolerance,
        batch_size=batch_size,
    )
    entropies = _entropies(policy, rollouts, context, batch_size)
    return [_record(policy, *sampled, context, step) for sampled in zip(rollouts, entropies, strict=True)]


def evaluate_policies(
    policies: Iterable[Policy], examples: list[Example], contexts: Iterable[str], **options: Any
) -> list[EvalRecord]:
    """Evaluate every policy under every context, on the examples with its evidence and of the policy's domains.

    options  as of evaluate_policy
    """
    records = []
    for policy in policies:
        for context in contexts:
            usable = [
                example for example in split_by_evidence(examples, [context]).usable if covers(policy, example.domain)
            ]
            records += evaluate_policy(policy, usable, context, **options)
    return records


def teachers(policies: dict[str, Policy], config: RunConfig) -> list[Policy]:
    """Return the teachers among a learner's policies, if they are evaluated before training."""
    return [policy for name, policy in policies.items() if config.evaluation.teacher and name.startswith("teacher")]


def visibility_of(example: Example) -> str | None:
    """Return the visibility of the example's final answer, visible or privileged; None without a mark for it."""
    visibilities = {mark.truth for mark in example.marks if mark.kind == "answer"}
    if PRIVILEGED in visibilities:
        return PRIVILEGED
    return next(iter(visibilities - {None}), None)


class Evaluation:
    """Evaluation of a run's students under each context, and of its teachers before the first step.

    policies  policies of the first learner, by the method's names
    sets      evaluation sets, each with its examples

    Raises: PolicyError for a served teacher that is to be evaluated, and only scores
    """

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        students: list[Policy],
        policies: dict[str, Policy],
        sets: list[tuple[EvaluationSet, list[Example]]],
        process_group: ProcessGroup = ALONE,
    ) -> None:
        self.config, self.folder, self.process_group = config, folder, process_group
        self.students, self.sets = students, sets
        self.records: list[EvalRecord] = []  # of the last evaluation
        self.teachers = teachers(policies, config)
        for policy in single_policies(self.teachers) if any(examples for _, examples in sets) else ():
            if isinstance(policy, ServedPolicy):
                policy.require_samples("evaluation.teacher=true has it answer the questions")
        if left_out := [line for chosen, examples in sets for line in not_evaluated(examples, chosen.contexts)]:
            folder.update(unasked=left_out)
            log.warning("%s", "; ".join(left_out))

    def is_due(self, step: int) -> bool:
        every = self.config.evaluation.every
        return step == self.config.training.steps or (every > 0 and step % every == 0)

    def is_missing(self, step: int) -> bool:
        """Whether the evaluation of a saved step is missing, since the run was killed before it."""
        return self.is_due(step) and step not in {row["step"] for row in self.folder.metrics("eval")}

    def __call__(self, step: int) -> dict[str, float]:
        """Evaluate, save the records and return the metrics. Each rank evaluates a part of the questions."""
        sets = [(chosen, examples) for chosen, examples in self.sets if examples]
        if not sets:
            return {}
        records = [record for chosen, examples in sets for record in self._evaluate_set(step, chosen, examples)]
        order = {key: idx for idx, key in enumerate(dict.fromkeys((row.policy, row.context) for row in records))}
        records.sort(key=lambda row: order[row.policy, row.context])  # stable: keeps the order of questions
        self.process_group.broadcast_from_main(lambda: save_records(self.folder.path, step, records))
        self.records = records
        measured = summarize(tabulate(records))
        self.folder.log_metrics("eval", step, measured)
        self.folder.update(doing=None)
        return measured

    def _evaluate_set(self, step: int, chosen: EvaluationSet, examples: list[Example]) -> list[EvalRecord]:
        named = f" of {chosen.name}" if chosen.name else ""
        contexts = ", ".join(chosen.contexts)
        log.info("step %d: evaluating on %d questions%s, contexts: %s", step, len(examples), named, contexts)
        policies = [*self.students, *(self.teachers if step == 0 else [])]
        options = {"max_completion_length": self.config.sampling.max_completion_length, **chosen.grading}
        options |= {"step": step, "batch_size": self.config.evaluation.batch_size}
        options |= {"stop_strings": tuple(self.config.sampling.stop_strings)}
        records: list[EvalRecord] = []
        for policy in policies:
            self.folder.update(doing=f"evaluating {policy.name}: {len(examples):,} questions{named}")
            with unsharded_root(policy):
                records += self._evaluate_together(policy, examples, chosen.contexts, options)
        return records

    def _evaluate_together(
        self, policy: Policy, examples: list[Example], contexts: Iterable[str], options: dict[str, Any]
    ) -> list[EvalRecord]:
        """Records of one policy; each rank evaluates a part of the examples."""
        elsewhere = [single for single in single_policies([policy]) if not single.samples_itself]

        def evaluate(part: list[Example], _: int) -> list[EvalRecord]:
            with layer_by_layer(*elsewhere):  # an engine's answers lack entropies, which passes here then compute
                return evaluate_policies([policy], part, contexts, **options)

        return sample_together([policy], lambda: self.process_group.map_ranks(examples, evaluate), self.process_group)


@torch.no_grad()
def _entropies(policy: Policy, rollouts: list[Rollout], context: str, batch_size: int) -> list[float]:
    """Return each answer's mean token entropy in nats, from the sampler or else from a forward pass."""
    if all(rollout.entropies is not None for rollout in rollouts):
        return [math.fsum(rollout.entropies) / len(rollout.entropies) for rollout in rollouts]
    means = []
    for start in range(0, len(rollouts), batch_size):
        part = rollouts[start : start + batch_size]
        prompts = [build_prompt(rollout.example, context, rollout) for rollout in part]
        output = policy.forward(prompts, [rollout.ids for rollout in part], [rollout.denoising for rollout in part])
        ids = torch.tensor([token for rollout in part for token in rollout.ids], dtype=torch.long)
        entropy = score(output, ids.to(output.device)).entropy
        means += [float(entropies.mean()) for entropies in entropy.split([len(rollout.ids) for rollout in part])]
    return means


def _record(policy: Policy, rollout: Rollout, entropy: float, context: str, step: int) -> EvalRecord:
    example = rollout.example
    visibility = visibility_of(example)
    labels = label_completion(policy.token_texts(rollout.ids), rollout)
    decides = [
        token_type not in ("", "template") and token_visibility == visibility for token_type, token_visibility in labels
    ]
    answers = [logprob for logprob, is_own in zip(rollout.logprobs, decides, strict=True) if is_own]
    if answers:
        confidence = math.exp(math.fsum(answers))
    else:
        confidence = math.exp(math.fsum(rollout.logprobs) / max(1, len(rollout.logprobs)))
    return EvalRecord(
        step=step,
        policy=policy.name,
        context=context,
        example_id=example.id,
        domain=example.domain,
        visibility=visibility,
        answer=example.answer,
        text=rollout.text,
        reward=rollout.reward,
        confidence=min(1.0, confidence),
        length=len(rollout.ids),
        finished=rollout.finished,
        entropy=entropy,
        question=example.question,
        dataset=example.source,
    )
