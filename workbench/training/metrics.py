"""Metrics of one step: one flat dictionary with the same keys for every method."""

import contextlib
import time
from collections.abc import Callable, Iterator

from jaxtyping import Float
from torch import Tensor

from workbench.distill.method import Method
from workbench.distill.routing import sampler_logprobs
from workbench.distill.step import StepResult
from workbench.distill.supervised_part import count_thinking
from workbench.errors import UnavailableError
from workbench.policies import Policy
from workbench.training.health import NORMAL_GAP
from workbench.types import STUDENT, Rollout


def sampler_logprob_gap(method: Method, result: StepResult) -> dict[str, float]:
    """Mean absolute difference (nats) between sampler and learner log-probs of the sampled tokens.

    Rounding error in a healthy run; larger if kernels, precision or weights differ. Empty if all sequences come from
    the dataset.
    """
    logprobs = result.scores[method.learner_view].logprob
    gap = _without_nan(logprobs - sampler_logprobs(result.batch.rollouts, logprobs)).abs()
    return {"sampler_logprob_gap": float(gap.mean())} if gap.numel() else {}


def ratio_metrics(method: Method, result: StepResult, step: int, clip: float) -> dict[str, float]:
    """Importance ratios of answers that older weights sampled, and of all answers if losses are weighted by them.

    ratio/mean and ratio/max; ratio/clipped, share of positions above `clip`; sampler_lag, mean number of updates since
    the weights that sampled an answer. Empty without lag and clip.
    """
    rollouts, logprobs = result.batch.rollouts, result.scores[method.learner_view].logprob
    lags = [step - 1 - rollout.sampler_step for rollout in rollouts if rollout.sampler_step is not None]
    ratio = _without_nan(logprobs - sampler_logprobs(rollouts, logprobs)).exp()
    if not lags or not ratio.numel() or not (any(lags) or clip):
        return {}
    metrics = {"sampler_lag": sum(lags) / len(lags), "ratio/mean": float(ratio.mean()), "ratio/max": float(ratio.max())}
    return metrics | ({"ratio/clipped": float((ratio > clip).double().mean())} if clip else {})


def sampled_precision(student: Policy, precision: str) -> str:
    """The coarser of the precisions of a student's forward passes and of its served sampler, if it has one."""
    sampler = getattr(student, "sampler", None)
    return precision if sampler is None else max((precision, sampler.precision), key=lambda name: NORMAL_GAP[name])


def require_small_gap(gap: float, student: Policy, precision: str) -> None:
    """Raise UnavailableError if a served sampler's log-probs differ from the student's by more than rounding does.

    precision  of the student's forward passes
    """
    coarser = sampled_precision(student, precision)
    if getattr(student, "sampler", None) is not None and gap > NORMAL_GAP[coarser]:
        raise UnavailableError(
            f"log-probs of the sampler and of {student.name} differ by {gap:.1e} nats on average (sampler_logprob_gap; "
            f"up to {NORMAL_GAP[coarser]:g} is rounding in {coarser}), so it has other weights or computes otherwise. "
            "Restart it with the model that the run starts from, and with one version of the workbench and of "
            "transformers on both sides."
        )


def thinking_metrics(
    rollouts: tuple[Rollout, ...], token_texts: Callable[[tuple[int, ...]], list[str]], markers: tuple[str, str]
) -> dict[str, float]:
    """Shares of the answers that have thinking, and that end inside of it."""
    thinking, unfinished = count_thinking(rollouts, token_texts, markers)
    count = max(1, len(rollouts))
    return {"thinking": thinking / count, "unfinished_thinking": unfinished / count}


def step_metrics(method: Method, result: StepResult) -> dict[str, float]:
    """Loss in nats, gaps and entropies in nats per token, shares from 0 to 1 (`supervised`: of positions with a
    loss).
    """
    routing, scores = result.routing, result.scores
    contribution = (result.loss * result.loss_normalizer).double()
    total = float(contribution.sum())
    metrics = {
        "loss": total,
        "entropy": float(scores[method.learner_view].entropy.mean()),
        **rollout_metrics(result.batch.rollouts),
    }
    if routing.advantage is not None:
        metrics["advantage"] = float(routing.advantage.mean())
    teacher_share = supervised = 0.0
    for regime_idx, (name, regime) in enumerate(method.regimes.items()):
        inside = routing.regime == regime_idx
        share = float(inside.double().mean())
        metrics[f"share/{name}"] = share
        supervised += float((inside & (routing.weight != 0)).double().mean()) if regime.losses else 0.0
        metrics[f"loss_share/{name}"] = float(contribution[inside].sum()) / total if total else 0.0
        if any(_is_teacher(method, loss.by or loss.target) for loss in regime.losses):
            teacher_share += share
    metrics |= {"teacher_share": teacher_share, "supervised": supervised}
    logprob = {name: view.logprob for name, view in scores.items()}
    if {"teacher", "self"} <= logprob.keys():
        gap = _without_nan(logprob["teacher"] - logprob["self"])
        metrics |= {"capability_gap": float(gap.mean()), "abs_capability_gap": float(gap.abs().mean())}
    if {"self", "student"} <= logprob.keys():
        gap = _without_nan(logprob["self"] - logprob["student"])
        metrics |= {"information_gap": float(gap.mean()), "abs_information_gap": float(gap.abs().mean())}
    if {"teacher", "student"} <= logprob.keys():
        metrics["total_gap"] = float(_without_nan(logprob["teacher"] - logprob["student"]).mean())
    # a view that scored nothing has no mean
    metrics = {name: value for name, value in metrics.items() if value == value}
    annotations: dict[str, list[float]] = {}
    for name, value in (pair for rollout in result.batch.rollouts for pair in rollout.annotations):
        annotations.setdefault(name, []).append(value)
    metrics |= {f"annotation/{name}": sum(values) / len(values) for name, values in annotations.items()}
    return metrics | {f"threshold/{name}": value for name, value in routing.thresholds.items()}


def _without_nan(gap: Float[Tensor, " N"]) -> Float[Tensor, " M"]:
    """Gaps of the positions that both views scored."""
    return gap[~gap.isnan()]


def rollout_metrics(rollouts: tuple[Rollout, ...]) -> dict[str, float]:
    """Mean length, different tokens, and the shares of answers that are truncated, right, from the data, or
    duplicates.
    """
    count = max(1, len(rollouts))
    rewards = [rollout.reward for rollout in rollouts if rollout.reward is not None]
    metrics = {
        "completion_length": sum(len(rollout.ids) for rollout in rollouts) / count,
        "truncated": sum(not rollout.finished for rollout in rollouts) / count,
        "dataset_share": sum(rollout.sampled_by == "dataset" for rollout in rollouts) / count,
        "duplicate_rate": _duplicate_rate(rollouts),
        "distinct_tokens": float(len({token for rollout in rollouts for token in rollout.ids})),
    }
    if rewards:
        metrics["accuracy"] = sum(rewards) / len(rewards)
    return metrics


def _duplicate_rate(rollouts: tuple[Rollout, ...]) -> float:
    """Share of pairs of answers to one example with equal tokens."""
    by_prompt: dict[int, list[tuple[int, ...]]] = {}
    for rollout in rollouts:
        if rollout.sampled_by != "dataset":
            by_prompt.setdefault(id(rollout.example), []).append(rollout.ids)
    same = pairs = 0
    for answers in by_prompt.values():
        pairs += len(answers) * (len(answers) - 1) // 2
        counts = {ids: answers.count(ids) for ids in answers}
        same += sum(count * (count - 1) // 2 for count in counts.values())
    return same / pairs if pairs else 0.0


def _is_teacher(method: Method, view: str) -> bool:
    return view in method.views and method.views[view].policy.startswith("teacher")


def prefix_by_learner(name: str, metrics: dict[str, float]) -> dict[str, float]:
    """Prefix the metrics of a peer with its name."""
    return metrics if name == STUDENT else {f"{name}/{key}": value for key, value in metrics.items()}


class StepTimer:
    """Measures the seconds of each part of a step, or of what is done between steps."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self.laps: dict[str, float] = {}  # seconds by key "seconds/NAME"

    def mark(self, name: str) -> None:
        """Add the time since the last mark to a part."""
        now = time.perf_counter()
        self._add(name, now - self._last)
        self._last = now

    @contextlib.contextmanager
    def lap(self, name: str) -> Iterator[None]:
        """Add the time inside this context to a part."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._add(name, time.perf_counter() - start)

    def _add(self, name: str, seconds: float) -> None:
        key = f"seconds/{name}"
        self.laps[key] = self.laps.get(key, 0.0) + seconds

    def seconds(self) -> dict[str, float]:
        return self.laps | {"seconds/step": self._last - self._start}
