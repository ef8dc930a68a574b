"""What a pruned real model recovers: docs/real-models.md.

    python -m benchmarks recovery build/smollm2 build/smollm2-data build/smollm2-pruned runs/smollm2-recover/...

Of the teacher and each further model folder:

    nats      mean negative log-prob per token of held-out prose, without a chat template
    KL(t|m)   mean KL from the teacher to the model per token of the teacher's greedy answers to held-out questions
    KL(m|t)   the reverse
    add, repeat, capital   share of held-out questions whose greedy answer contains the reference
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from workbench.data.contexts import build_prompt
from workbench.data.examples import load_examples
from workbench.evals.evaluate import evaluate_policy
from workbench.policies import SamplingOptions
from workbench.policies.autoregressive import AutoregressivePolicy, load_policy
from workbench.policies.proven import prove_all
from workbench.types import Prompt

Answers = list[tuple[Prompt, tuple[int, ...]]]
KINDS = ("add", "repeat", "capital")
LENGTH = 16  # tokens of an answer, as in configs/smollm2-recover.yaml


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks recovery")
    parser.add_argument("teacher", type=Path)
    parser.add_argument("data", type=Path, help="folder written by data/smollm2.py")
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--prose", type=int, default=12, help="number of held-out paragraphs")
    parser.add_argument("--questions", type=int, default=16, help="number of held-out questions of each kind")
    options = parser.parse_args()
    prose = load_examples(options.data / "prose.jsonl", max_examples=options.prose)
    held_out = load_examples(options.data / "held-out.jsonl")
    questions = [[row for row in held_out if row.domain == kind][: options.questions] for kind in KINDS]
    teacher = load_proven(options.teacher)
    prompts = [build_prompt(example, "plain") for example in prose]
    sampled = teacher.sample(prompts, [[0]] * len(prompts), SamplingOptions(LENGTH, temperature=0.0))
    answers = [(prompt, completions[0].ids) for prompt, completions in zip(prompts, sampled, strict=True)]
    targets = [logprobs(teacher, *answer) for answer in answers]
    print(f"{'':40}{'nats':>8}{'KL(t|m)':>9}{'KL(m|t)':>9}" + "".join(f"{kind:>9}" for kind in KINDS))
    for folder in (options.teacher, *options.models):
        policy = teacher if folder == options.teacher else load_proven(folder)
        forward, reverse = divergences([logprobs(policy, *answer) for answer in answers], targets)
        nats = prose_nats(policy, [example.question.partition(": ")[2] for example in prose])
        print(f"{str(folder)[-39:]:40}{nats:8.3f}{forward:9.3f}{reverse:9.3f}", end="", flush=True)
        graded = evaluate_policy(
            policy,
            [example for rows in questions for example in rows],
            "plain",
            step=0,
            max_completion_length=LENGTH,
            grader="contains",
        )
        for kind in KINDS:
            print(f"{mean([row.reward for row in graded if row.domain == kind]):9.0%}", end="", flush=True)
        print()


def load_proven(folder: Path) -> AutoregressivePolicy:
    """Load a model, checked against its own forward pass; known files are not checked again."""
    policy = load_policy(folder, "model")
    prove_all([policy])
    return policy


@torch.no_grad()
def logprobs(policy: AutoregressivePolicy, prompt: Prompt, ids: tuple[int, ...]) -> Tensor:
    """Log-probs (tokens, vocabulary) at each token of an answer."""
    return policy.forward([prompt], [ids]).logits(torch.arange(len(ids))).log_softmax(-1)


def divergences(learned: list[Tensor], targets: list[Tensor]) -> tuple[float, float]:
    """Mean KL per token from the targets and to them."""
    model, teacher = torch.cat(learned), torch.cat(targets)
    forward = (teacher.exp() * (teacher - model)).sum(-1).mean()
    reverse = (model.exp() * (model - teacher)).sum(-1).mean()
    return float(forward), float(reverse)


@torch.no_grad()
def prose_nats(policy: AutoregressivePolicy, texts: list[str]) -> float:
    """Mean negative log-prob per token of texts without a prompt, their first tokens left out."""
    losses = []
    for text in texts:
        ids = policy.tokenizer(text, return_tensors="pt")["input_ids"]
        scores = policy.model(ids).logits[0, :-1].log_softmax(-1)
        losses.append(-scores.gather(-1, ids[0, 1:, None])[:, 0])
    return float(torch.cat(losses).mean())


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
