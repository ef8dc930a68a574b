"""Routing rules and statistics of several methods. A rule maps a RouteBatch to a Routing."""

import math
import re
from collections import Counter

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.data.grading import final_answer
from workbench.types import Mark, Rollout, RouteBatch, Routing, label_tokens

_COMMON_WORDS = (
    "a an and any are at by can do does for from has have how in is it its many much of on or than that the there "
    "these this to was what where which who with"
)
_COMMON = frozenset(_COMMON_WORDS.split())
ANSWER = "answer"  # token_type of the final answer's tokens


def everywhere(batch: RouteBatch) -> Routing:
    """Route every position to regime 0 with weight 1."""
    device = batch.sequence.device
    return Routing(
        regime=torch.zeros(batch.num_positions, dtype=torch.long, device=device),
        weight=torch.ones(batch.num_positions, device=device),
    )


def trimmed_mean(values: Float[Tensor, " N"], keep: Bool[Tensor, " N"]) -> Float[Tensor, ""]:
    """Mean of the kept values, or of all values if none is kept."""
    return values[keep].mean() if bool(keep.any()) else values.mean()


def below_quantile(values: Float[Tensor, " N"], trim: float) -> Bool[Tensor, " N"]:
    """Mask of the values up to the quantile 1 - `trim` of all (linear interpolation, as in numpy and torch).

    Above the 0.95 quantile are the largest of 2 to 20 values, or the two largest of 22 to 40. trim=0 keeps all.
    """
    if trim == 0.0 or values.numel() == 0:
        return torch.ones_like(values, dtype=torch.bool)
    # torch.quantile accepts at most 2**24 values and computes ranks in float32
    cut = math.ceil(round(trim * (values.numel() - 1), 9))
    return values <= values.kthvalue(values.numel() - cut).values


def sampler_logprobs(rollouts: tuple[Rollout, ...], like: Tensor) -> Float[Tensor, " N"]:
    """Log-probs of the tokens when they were sampled, with dtype and device of `like`; NaN in dataset sequences."""
    logprobs = [logprob for rollout in rollouts for logprob in rollout.logprobs or [math.nan] * len(rollout.ids)]
    return torch.tensor(logprobs, dtype=like.dtype, device=like.device)


def sampler_ratio(batch: RouteBatch) -> Float[Tensor, " N"]:
    """Importance ratio of every position: the student's probability now over that at sampling time.

    Both at temperature 1 over the whole vocabulary, as the papers sample (Vision-OPD, SDPO, MiMo). The ratio measures
    changes of weights and differences of engines; it is 1 for a fresh answer under any sampling options, and does not
    correct for temperature, top_k or top_p. 1 for sequences of the dataset.
    """
    student = batch.scores["student"].logprob
    return (student - sampler_logprobs(batch.rollouts, student)).exp().nan_to_num(1.0)


def group_relative_advantage(rollouts: tuple[Rollout, ...]) -> Float[Tensor, " R"]:
    """Outcome advantage of every rollout: (reward - mean) / (standard deviation + 1e-4) over its group, the answers to
    one prompt.

    0 without a reward, and in a group that is all right or all wrong.
    Source: GRPO, arXiv 2402.03300, section 4.1.2.
    """
    groups: dict[int, list[int]] = {}  # rollout indices by prompt
    for idx, rollout in enumerate(rollouts):
        if rollout.reward is not None:
            groups.setdefault(id(rollout.example), []).append(idx)
    advantage = torch.zeros(len(rollouts))
    for rollout_indices in groups.values():
        rewards = torch.tensor([rollouts[idx].reward for idx in rollout_indices])
        advantage[rollout_indices] = (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-4)
    return advantage


def answer_positions(batch: RouteBatch) -> Bool[Tensor, " N"]:
    """Mask of the final answer's tokens: by the example's marks of kind "answer", else by grading.final_answer."""
    is_answer: list[bool] = []
    for rollout in batch.rollouts:
        texts = batch.token_texts(rollout.ids)
        marks = rollout.example.marks
        if not any(mark.kind == ANSWER for mark in marks):
            stated = re.escape(final_answer(rollout.text))
            marks = (Mark(rf"(?s).*({stated})", ANSWER),) if stated else ()
        texts = [*texts[:-1], ""] if rollout.finished and texts else texts  # without the end token
        is_answer += [kind == ANSWER for kind, _ in label_tokens(texts, marks)]
    return torch.tensor(is_answer, dtype=torch.bool, device=batch.sequence.device)


def draw_positions(batch: RouteBatch, fraction: float) -> Bool[Tensor, " N"]:
    """Draw a random mask of a `fraction` of the positions, the same for the same step and batch."""
    generator = torch.Generator().manual_seed(batch.seed)
    return (torch.rand(batch.num_positions, generator=generator) < fraction).to(batch.sequence.device)


def concepts(text: str) -> set[str]:
    """Content words of a text, lowercase and without a plural s."""
    return {word.removesuffix("s") for word in re.findall(r"\w+", text.lower()) if word not in _COMMON}


def distinguishing_concepts(rollout: Rollout, rollouts: tuple[Rollout, ...]) -> set[str]:
    """Concepts of the rollout's question that most questions of its domain among `rollouts` lack.

    "same" and "tag" occur in most questions of a family; "red" may not. All its concepts, if none is left.
    """
    questions = {other.example.question for other in rollouts if other.example.domain == rollout.example.domain}
    used = Counter(concept for question in questions for concept in concepts(question))
    question_concepts = concepts(rollout.example.question)
    return {concept for concept in question_concepts if 2 * used[concept] <= len(questions)} or question_concepts
