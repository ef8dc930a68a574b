"""Compare ways to divide answers of mixed length into forward passes: padded, sorted, by a token budget, packed.

    python -m benchmarks packing --model FOLDER [--answers 16] [--longest 128] [--micro-batch 4] [--repeats 5]

The model is its own teacher: one pass without gradient scores the answers, one with gradient learns them by opd, as in
a step without sampling. Lengths are log-uniform from 4 to --longest, drawn once; ids are those of ordinary tokens. The
budget is what a padded micro-batch of the longest answers takes, so that all ways need as much memory at most.

Printed beside the times: the share of positions that are padding. A pass cannot be faster than without padding, so the
most that can be gained is 1 / (1 - share) over the first row, if time grows with positions.
"""

import argparse
import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.timing import machine, show, take_turns
from workbench.data.contexts import build_prompt
from workbench.distill.method import Method
from workbench.distill.scoring import Batch
from workbench.distill.step import compute_step, score_batch
from workbench.methods import load_method
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.policies.loading import load_policies
from workbench.policies.pass_counts import PassCounts, count_passes
from workbench.policies.row_sizes import padded_tokens
from workbench.types import Example, Rollout

SHORTEST = 4
QUESTIONS = ("Who wrote it?", "What is the capital of France, and since when?", "Name three rivers.", "Why?")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="data/models/student", help="folder of a model, student and teacher")
    parser.add_argument("--answers", type=int, default=16, help="per step, each to a question of its own")
    parser.add_argument("--longest", type=int, default=128, help="tokens of the longest answer")
    parser.add_argument("--micro-batch", type=int, default=4, help="answers per padded pass")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    args = parser.parse_args()
    method = load_method("opd", {"loss_aggregation": "token_mean"})
    policies = load_policies(method.policies, student=args.model, teacher=args.model, packing=True)
    rollouts = mixed_answers(policies["student"], args.answers, args.longest)
    sizes = policies["student"].row_sizes(
        [build_prompt(rollout.example, "plain") for rollout in rollouts], [rollout.ids for rollout in rollouts]
    )
    budget = padded_tokens(sorted(sizes, key=lambda size: -size.length)[: args.micro_batch])
    ways: dict[str, tuple[Batch, bool]] = {
        f"padded, {args.micro_batch} a pass": (Batch(rollouts, args.micro_batch), False),
        "padded, group_by_length": (Batch(rollouts, args.micro_batch, group_by_length=True), False),
        f"padded, {budget} tokens a pass": (Batch(rollouts, tokens_per_micro_batch=budget), False),
        f"packed, {args.micro_batch} a pass": (Batch(rollouts, args.micro_batch), True),
        f"packed, {budget} tokens a pass": (Batch(rollouts, tokens_per_micro_batch=budget), True),
    }
    counts = {name: PassCounts() for name in ways}
    variants: dict[str, Callable[[], object]] = {
        name: step_of(batch, packs, method, policies, counts[name]) for name, (batch, packs) in ways.items()
    }
    turns = take_turns(variants, repeats=args.repeats, warmup=args.warmup)
    base = next(iter(ways))
    show(f"score and learn {args.answers} answers, {SHORTEST} to {args.longest} tokens", turns, base=base)
    print(f"\n{machine()}; processor time\n{'':40}{'positions':>10}{'padding':>9}{'tokens/s':>10}{'throughput':>12}")
    slowest = statistics.median(turn.processor_s for turn in turns[base])
    for name, values in turns.items():
        seconds, count = statistics.median(turn.processor_s for turn in values), counts[name]
        positions = count.tokens + count.padding
        line = f"{name:40}{positions:10,}{count.padding_share:9.1%}{count.tokens / seconds:10.0f}"
        print(f"{line}{slowest / seconds:11.2f}x")
    print(f"the most by padding alone: {1 / (1 - counts[base].padding_share):.2f}x")


def step_of(
    batch: Batch, packs: bool, method: Method, policies: dict[str, Any], counts: PassCounts
) -> Callable[[], None]:
    """A step that scores and learns a batch; writes the counts of its passes."""
    policies["student"].model.requires_grad_(True)

    def step() -> None:
        for policy in policies.values():
            policy.shortcuts = replace(policy.shortcuts, packing=packs)
        policies["student"].model.zero_grad(set_to_none=True)
        with count_passes() as counted:
            compute_step(method, policies, score_batch(method, policies, batch), seed=0, backward=torch.Tensor.backward)
        vars(counts).update(vars(counted))

    return step


def mixed_answers(policy: AutoregressivePolicy, count: int, longest: int) -> tuple[Rollout, ...]:
    """Answers of log-uniform lengths, each to a question of its own."""
    generator = torch.Generator().manual_seed(0)
    ordinary = [token for token in range(policy.vocabulary) if not policy.is_special(token)]
    rollouts = []
    for idx in range(count):
        low, high = math.log(SHORTEST), math.log(longest)
        length = round(math.exp(low + (high - low) * float(torch.rand(1, generator=generator))))
        picked = torch.randint(len(ordinary), (length,), generator=generator).tolist()
        example = Example(f"question-{idx}", QUESTIONS[idx % len(QUESTIONS)])
        rollouts.append(Rollout(example, 0, tuple(ordinary[at] for at in picked), "", True, (0.0,) * length))
    return tuple(rollouts)


if __name__ == "__main__":
    main()
