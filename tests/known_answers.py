"""Graded answers of a run whose gains and claims are worked out by hand in tests/evals/test_findings.py."""

from workbench.evals.records import EvalRecord


def rows(
    step: int, policy: str, context: str, rewards: str, visibility: str | None, confidence: float = 0.5
) -> list[EvalRecord]:
    """One record per digit of `rewards`."""
    return [
        EvalRecord(
            step, policy, context, f"{visibility}{number}", "", visibility, "3", "3", float(reward), confidence, 2, True
        )
        for number, reward in enumerate(rewards)
    ]


# Eight visible questions, 2 then 5 right; four privileged, 1 right at confidence 0.3, then 1 at 0.9
STUDENT = [
    *rows(0, "student", "plain", "11000000", "visible"),
    *rows(0, "student", "plain", "1000", "privileged", 0.3),
    *rows(9, "student", "plain", "10111100", "visible"),
    *rows(9, "student", "plain", "0001", "privileged", 0.9),
]
# The same visible questions: 3 right from the image alone, 7 with the crop
TEACHER = [
    *rows(0, "teacher", "plain", "11100000", "visible"),
    *rows(0, "teacher", "crop", "11111110", "visible"),
]
