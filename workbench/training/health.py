"""Health monitor: detects failures of on-policy distillation that raise no error.

The loss of a collapsed run still falls. Signs of collapse: entropy halves, all answers to a prompt are equal, answers
reach the length limit, accuracy falls, fewer different tokens occur, no position is supervised. With a live privileged
student as a target, all positions may leave the teacher: a confident student routes its tokens to itself, and no loss
counters that. In half precision, updates may be too small to change the weights.
"""

from statistics import fmean

from workbench.training.underflow import MIN_FRACTION, REMEDY
from workbench.types import STUDENT

WINDOW = 10  # steps of a moving average
ENTROPY_LOST = 0.5  # fraction of the first window's entropy
DUPLICATES = 0.9
TRUNCATED = 0.5
RIGHT_LOST = 0.5  # fraction of the first window's accuracy
TOKENS_LOST = 0.5  # fraction of the first window's number of different tokens
NORMAL_GAP = {
    "float32": 5e-4,
    "float16": 0.01,
    "bfloat16": 0.1,
}  # rounding in sampler_logprob_gap, in nats, by precision of the student
THINKING_STEPS = 3  # after which a missing thinking is reported
TEACHER_LOST = 0.25  # fraction of the first window's teacher_share


class HealthMonitor:
    """Turns the metrics of one learner's steps into warnings, each at most once per run.

    learner        name of the learner; metrics of a peer are prefixed with it
    learning_rate  highest learning rate of the run
    precision      dtype of the forward passes of student or sampler, the coarser one: float32, float16 or bfloat16
    """

    def __init__(self, learner: str = STUDENT, learning_rate: float = 0.0, precision: str = "float32") -> None:
        self.learning_rate, self.precision = learning_rate, precision
        self.learner, self._prefix = learner, "" if learner == STUDENT else f"{learner}/"
        self._steps: list[dict[str, float]] = []
        self.warnings: dict[str, str] = {}

    def update(self, step: int, metrics: dict[str, float]) -> list[str]:
        """Add the metrics of a step; return its new warnings."""
        start = len(self._prefix)
        self._steps.append({name[start:]: value for name, value in metrics.items() if name.startswith(self._prefix)})
        warnings = {}
        is_at_rate = (self._steps[-1].get("learning_rate") or 0.0) >= self.learning_rate / 2  # not in warm-up or decay
        if is_at_rate and self._steps[-1].get("updated_weight_fraction", 1.0) < MIN_FRACTION:
            warnings["updated_weight_fraction"] = (
                f"only {self._steps[-1]['updated_weight_fraction']:.0%} of the student's weights changed in this step; "
                f"half precision rounded away the other updates. {REMEDY}"
            )
        gap, normal = self._steps[-1].get("sampler_logprob_gap") or 0.0, NORMAL_GAP[self.precision]
        if gap > normal:
            warnings["sampler_logprob_gap"] = (
                f"log-probs of sampler and student differ by {gap:.1e} nats on average (sampler_logprob_gap; up to "
                f"{normal:g} is rounding in {self.precision}). The sampler's weights, precision or kernels differ from "
                "the student's, which biases importance ratios. See docs/devices.md"
            )
        if len(self._steps) == THINKING_STEPS and all(metrics.get("thinking") == 0.0 for metrics in self._steps):
            warnings["thinking"] = (
                f"no answer of the first {THINKING_STEPS} steps has thinking, so training.supervise selects all or "
                "nothing. Set training.think_markers to the texts that open and close it, or training.supervise=all"
            )
        if len(self._steps) >= 2 * WINDOW:
            warnings |= self._collapse()
        who = "" if self.learner == STUDENT else f" of {self.learner}"
        new = {name: f"step {step}{who}: {text}." for name, text in warnings.items() if name not in self.warnings}
        self.warnings |= new
        return list(new.values())

    def _collapse(self) -> dict[str, str]:
        """Compare the last window with the first one."""
        warnings = {}
        first, last = (
            lambda name, part=part: _mean(part, name) for part in (self._steps[:WINDOW], self._steps[-WINDOW:])
        )
        if first("entropy") > 0.05 and last("entropy") < ENTROPY_LOST * first("entropy"):
            warnings["entropy"] = (
                f"the student's entropy fell from {first('entropy'):.3f} to {last('entropy'):.3f} nats; it may be "
                "collapsing"
            )
        if last("duplicate_rate") > DUPLICATES > first("duplicate_rate"):
            warnings["duplicate_rate"] = (
                f"{last('duplicate_rate'):.0%} of the answers to one prompt are equal, so samples no longer explore"
            )
        if last("truncated") > max(TRUNCATED, 2 * first("truncated")):
            warnings["truncated"] = (
                f"{last('truncated'):.0%} of the answers are truncated at sampling.max_completion_length"
            )
        if first("accuracy") > 0.1 and last("accuracy") < RIGHT_LOST * first("accuracy"):
            warnings["accuracy"] = (
                f"accuracy of the student's own answers fell from {first('accuracy'):.0%} to {last('accuracy'):.0%}. "
                "Use an earlier checkpoint, or lower training.learning_rate"
            )
        if last("distinct_tokens") < TOKENS_LOST * first("distinct_tokens"):
            warnings["distinct_tokens"] = (
                f"different tokens in the answers of a step fell from {first('distinct_tokens'):.0f} to "
                f"{last('distinct_tokens'):.0f}; the student may repeat itself"
            )
        if all(metrics.get("supervised") == 0.0 for metrics in self._steps[-WINDOW:]):
            warnings["supervised"] = (
                f"no token had supervision in the last {WINDOW} steps. If the method needs right answers (see "
                "accuracy), raise sampling.num_generations, start with easier questions (data.train) or a better "
                "student, or check the data's answers against evaluation.grader"
            )
        if first("teacher_share") > 0 and last("teacher_share") < TEACHER_LOST * first("teacher_share"):
            warnings["teacher_share"] = (
                f"the share of positions that the teacher supervises fell from {first('teacher_share'):.0%} to "
                f"{last('teacher_share'):.0%}: the privileged student supervises the others. Lower "
                "training.learning_rate, or use method.self_policy=student@start"
            )
        return warnings


def _mean(steps: list[dict[str, float]], name: str) -> float:
    return fmean([step.get(name) or 0.0 for step in steps])
