"""CCOPD: are a trained model's answers over turns moved less by wrong guesses in place of its own replies?

    python docs/studies/random_replies.py runs/ccopd ccopd     after    workbench study configs/studies/ccopd.yaml

The same questions over turns, each answered twice by the start and by the last student of every run: after the model's
own replies to the earlier turns, and after the worked answers of other questions of the family, drawn by seed, whose
final answer is wrong here. And the gap that CCOPD minimizes: KL from the model over turns to the start shown the whole
question, on the data's answers. Writes random-replies.md beside this file.
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from intervals import came_from
from jaxtyping import Float

from workbench.config.schema import load_config
from workbench.data.contexts import build_prompt, build_turn, user_turns
from workbench.data.examples import load_examples
from workbench.data.grading import final_answer, grade
from workbench.distill.rollouts import reply_in_turns
from workbench.evals.evaluate import visibility_of
from workbench.policies import Policy, SamplingOptions
from workbench.policies.autoregressive import load_policy
from workbench.runs.checkpoints import latest_checkpoint
from workbench.seeding import derive_seed
from workbench.studies.bootstrap import paired_interval
from workbench.types import STUDENT, VISIBLE, Example

HERE = Path(__file__).parent
QUESTIONS = "scenes:eval?count=256&turns=rows"
BATCH = 64


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of one model and one draw of wrong guesses: a number for every question."""

    own_right: np.ndarray  # right after its own replies
    wrong: np.ndarray  # right after wrong guesses
    moved: np.ndarray  # another answer than after its own
    repeated: np.ndarray  # the answer of the last wrong guess
    gap: np.ndarray  # nats a token of the data's answer, after its own replies
    gap_wrong: np.ndarray  # the same after wrong guesses


ROWS = {
    "right after its own replies": "own_right",
    "right after wrong guesses": "wrong",
    "answers that change": "moved",
    "the last guess is repeated": "repeated",
    "gap to the start shown all, own replies, nats a token": "gap",
    "the same, wrong guesses": "gap_wrong",
}


def main() -> None:
    torch.set_num_threads(1)
    study, variant = Path(sys.argv[1]), sys.argv[2]
    folders = sorted(study.glob(f"{variant}-s*"))
    if len(folders) < 2:
        sys.exit(f"{study} has {len(folders)} runs named {variant}-s*; an interval needs two. Run the study first.")
    questions = [example for example in load_examples(QUESTIONS) if visibility_of(example) == VISIBLE]
    config = load_config(folders[0] / "config.yaml")
    start = load_policy(config.models.student, "start")
    greedy = SamplingOptions(config.sampling.max_completion_length, temperature=0.0)
    guesses = {
        folder: [wrong_guesses(example, questions, seed) for example in questions]
        for seed, folder in enumerate(folders)
    }
    before, after = [], []
    replies = own_replies(start, questions, greedy)
    for folder in folders:
        before.append(measured(start, start, questions, replies, guesses[folder], greedy))
        checkpoint, torn = latest_checkpoint(folder)
        if checkpoint is None:
            sys.exit(f"{folder} has no complete checkpoint: the study is not finished. {' '.join(torn)}")
        trained = load_policy(checkpoint.weights(STUDENT), "trained")
        after_replies = own_replies(trained, questions, greedy)
        after.append(measured(trained, start, questions, after_replies, guesses[folder], greedy))
    (HERE / "random-replies.md").write_text(page(before, after, len(questions), came_from(folders)))


def wrong_guesses(example: Example, pool: list[Example], seed: int) -> tuple[str, ...]:
    """For every turn but the last, the worked answer of another question of the family, its final answer wrong here."""
    others = [
        candidate.reference
        for candidate in pool
        if candidate.domain == example.domain and candidate.answer != example.answer
    ]
    draw = random.Random(derive_seed("guess", seed, example.id))
    return tuple(draw.choice(others) for _ in user_turns(example)[1:])


def own_replies(policy: Policy, questions: list[Example], greedy: SamplingOptions) -> list[tuple[str, ...]]:
    return reply_in_turns(policy, questions, sampling=greedy, seed=("greedy",), batch_size=BATCH)


def measured(
    policy: Policy,
    start: Policy,
    questions: list[Example],
    own_history: list[tuple[str, ...]],
    guesses: list[tuple[str, ...]],
    greedy: SamplingOptions,
) -> Outcomes:
    """The model's last answers after its own replies and after wrong guesses, and its gap to the start."""
    texts = [answers(policy, questions, replies, greedy) for replies in (own_history, guesses)]
    right = [
        [float(grade(text, item.answer) or 0.0) for text, item in zip(part, questions, strict=True)] for part in texts
    ]
    final = [[final_answer(text) for text in part] for part in texts]
    moved = [float(item != other) for item, other in zip(*final, strict=True)]
    repeated = [float(item == final_answer(guess[-1])) for item, guess in zip(final[1], guesses, strict=True)]
    gaps = [presentation_gap(policy, start, questions, replies) for replies in (own_history, guesses)]
    return Outcomes(*map(np.array, (*right, moved, repeated, *gaps)))


def answers(
    policy: Policy, questions: list[Example], replies: list[tuple[str, ...]], greedy: SamplingOptions
) -> list[str]:
    """What is written to the last turn."""
    texts = []
    for begin in range(0, len(questions), BATCH):
        part = range(begin, min(begin + BATCH, len(questions)))
        prompts = [build_turn(questions[idx], replies[idx]) for idx in part]
        texts += [policy.text(samples[0].ids) for samples in policy.sample(prompts, [[0]] * len(prompts), greedy)]
    return texts


@torch.no_grad()
def presentation_gap(
    policy: Policy, start: Policy, questions: list[Example], replies: list[tuple[str, ...]]
) -> list[float]:
    """KL(model over turns || start with the whole question), mean over the tokens of each question's worked answer."""
    gaps = []
    for begin in range(0, len(questions), BATCH):
        part, part_replies = questions[begin : begin + BATCH], replies[begin : begin + BATCH]
        ids = [policy.answer_ids(example.reference) for example in part]
        turns = policy.forward([build_turn(*pair) for pair in zip(part, part_replies, strict=True)], ids)
        whole = start.forward([build_prompt(example, "plain") for example in part], ids)
        index = torch.arange(sum(map(len, ids)))
        live, target = (view.logits(index).log_softmax(-1) for view in (turns, whole))
        divergence = (live.exp() * (live - target)).sum(-1)
        gaps += [float(tokens.mean()) for tokens in divergence.split([len(answer) for answer in ids])]
    return gaps


def page(before: list[Outcomes], after: list[Outcomes], num_questions: int, source: str) -> str:
    lines = [
        "# Is a trained model moved less by wrong guesses?",
        "",
        f"`python docs/studies/random_replies.py {sys.argv[1]} {sys.argv[2]}`, after `workbench study "
        f"configs/studies/ccopd.yaml` ({source}).",
        f"{num_questions} visible questions of `{QUESTIONS}`, answered over turns by the most likely tokens. *Wrong "
        "guesses*: to each turn before the last the worked answer of",
        "another question of the family, drawn by seed, whose final answer is wrong here. *Gap*: KL from the model "
        "over turns to the untrained start shown the whole picture,",
        "on the data's answers. Means; in brackets 95 % intervals of the difference, paired by seed and question "
        "(`workbench/studies/bootstrap.py`).",
        "",
        "| | untrained | trained by CCOPD | difference |",
        "|---|---|---|---|",
    ]
    for label, name in ROWS.items():
        lines.append(
            row(
                label,
                *(stacked(which, lambda result, name=name: getattr(result, name)) for which in (after, before)),
                nats="nats" in label or "gap" in name,
            )
        )
    lost = [stacked(which, lambda result: result.own_right - result.wrong) for which in (after, before)]
    return "\n".join([*lines, row("accuracy lost to wrong guesses", *lost), ""])


def stacked(which: list[Outcomes], value) -> Float[np.ndarray, "S Q"]:
    return np.stack([value(result) for result in which]).astype(float)


def row(label: str, after: np.ndarray, before: np.ndarray, *, nats: bool = False) -> str:
    difference, low, high = paired_interval(after, before)
    scale, show = (1.0, ".3f") if nats else (100.0, ".1f")
    unit = "" if nats else " %"
    numbers = [f"{scale * value:{show}}{unit}" for value in (before.mean(), after.mean())]
    signed = [f"{scale * value:+{show}}" for value in (difference, low, high)]
    return f"| {label} | {' | '.join(numbers)} | {signed[0]} [{signed[1]}, {signed[2]}] |"


if __name__ == "__main__":
    main()
