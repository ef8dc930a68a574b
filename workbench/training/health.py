"""Watches a run for the ways in which on-policy distillation goes wrong without an error.

A collapsed run still has a falling loss. What gives it away: entropy that halves, answers of one prompt that all agree,
lengths that run to the limit, answers that are no longer right, words that are no longer used, steps in which nothing
is supervised, and, with a live privileged student as a target, positions that all leave the teacher (a confident
student routes its tokens to itself and nothing pulls it back). In half precision the weights themselves may stay where
they are.
"""

from statistics import fmean

from workbench.training.rounding import LEAST, REMEDY
from workbench.types import STUDENT

WINDOW = 10  # steps that a mean is taken over
ENTROPY_LOST = 0.5  # of the first window's
AGREEMENT = 0.9
TRUNCATED = 0.5
RIGHT_LOST = 0.5  # of the first window's accuracy
TOKENS_LOST = 0.5  # of the first window's number of different tokens
NORMAL_GAP = {"float32": 5e-4, "float16": 0.01, "bfloat16": 0.1}  # nats of sampler_gap, by what the student computes in
TEACHER_LOST = 0.25  # of the first window's share of loss-carrying positions that the teacher supervises


class Watch:
    """Fed with a step's metrics; answers with sentences, each once per run. Of a peer, with those of its name alone.

    learning_rate  the highest of the run
    precision      what the student computes in: float32, float16 or bfloat16
    """

    def __init__(self, learner: str = STUDENT, learning_rate: float = 0.0, precision: str = "float32") -> None:
        self.learning_rate, self.precision = learning_rate, precision
        self.learner, self._prefix = learner, "" if learner == STUDENT else f"{learner}/"
        self._steps: list[dict[str, float]] = []
        self.warnings: dict[str, str] = {}

    def look(self, step: int, metrics: dict[str, float]) -> list[str]:
        """New warnings at this step."""
        start = len(self._prefix)
        self._steps.append({name[start:]: value for name, value in metrics.items() if name.startswith(self._prefix)})
        warnings = {}
        is_at_rate = (self._steps[-1].get("learning_rate") or 0.0) >= self.learning_rate / 2  # not at a schedule's ends
        if is_at_rate and self._steps[-1].get("weights_moved", 1.0) < LEAST:
            warnings["weights_moved"] = (
                f"{self._steps[-1]['weights_moved']:.0%} of the student's weights moved in this step, the others' "
                f"steps were rounded away in half precision. {REMEDY}"
            )
        gap, normal = self._steps[-1].get("sampler_gap") or 0.0, NORMAL_GAP[self.precision]
        if gap > normal:
            warnings["sampler_gap"] = (
                f"tokens have log-probs {gap:.1e} nats apart under what sampled them and as the student reads them "
                f"(sampler_gap; in {self.precision} up to {normal:g} is rounding): answers are sampled with other "
                "weights, another precision or other kernels than they are learned with, and ratios of probabilities "
                "count that. See docs/devices.md"
            )
        if len(self._steps) >= 2 * WINDOW:
            warnings |= self._collapse()
        who = "" if self.learner == STUDENT else f" of {self.learner}"
        new = {name: f"step {step}{who}: {text}." for name, text in warnings.items() if name not in self.warnings}
        self.warnings |= new
        return list(new.values())

    def _collapse(self) -> dict[str, str]:
        """What the last steps have lost beside the first."""
        warnings = {}
        first, last = (
            lambda name, part=part: _mean(part, name) for part in (self._steps[:WINDOW], self._steps[-WINDOW:])
        )
        if first("entropy") > 0.05 and last("entropy") < ENTROPY_LOST * first("entropy"):
            warnings["entropy"] = (
                f"the student's entropy fell from {first('entropy'):.3f} to {last('entropy'):.3f} nats: it may be "
                "collapsing"
            )
        if last("agreement") > AGREEMENT > first("agreement"):
            warnings["agreement"] = (
                f"{last('agreement'):.0%} of answers to one prompt are the same: samples no longer explore"
            )
        if last("truncated") > max(TRUNCATED, 2 * first("truncated")):
            warnings["truncated"] = f"{last('truncated'):.0%} of answers are cut at the longest length allowed"
        if first("accuracy") > 0.1 and last("accuracy") < RIGHT_LOST * first("accuracy"):
            warnings["accuracy"] = (
                f"the student's own answers are right in {last('accuracy'):.0%} instead of {first('accuracy'):.0%}: it "
                "is collapsing; use an earlier checkpoint, or lower learning_rate"
            )
        if last("distinct_tokens") < TOKENS_LOST * first("distinct_tokens"):
            warnings["distinct_tokens"] = (
                f"a step's answers use {last('distinct_tokens'):.0f} different tokens instead of "
                f"{first('distinct_tokens'):.0f}: the student may be repeating itself"
            )
        if all(metrics.get("supervised") == 0.0 for metrics in self._steps[-WINDOW:]):
            warnings["supervised"] = (
                f"no token was supervised in the last {WINDOW} steps: the method found nothing to learn from. If it "
                "needs right answers (see accuracy), raise sampling.num_generations, begin with easier questions "
                "(data.train) or a better student, or check data's answers against evaluation.rule"
            )
        if first("teacher_share") > 0 and last("teacher_share") < TEACHER_LOST * first("teacher_share"):
            warnings["teacher_share"] = (
                f"the teacher now supervises {last('teacher_share'):.0%} of positions instead of "
                f"{first('teacher_share'):.0%}: the privileged student has taken over and nothing may pull it back; "
                "lower learning_rate, or use method.self_policy=student@start"
            )
        return warnings


def _mean(steps: list[dict[str, float]], name: str) -> float:
    return fmean([step.get(name) or 0.0 for step in steps])
