"""Whether a study's head says if privilege could pay."""

from workbench.studies.measures import Value
from workbench.studies.payoff import payoff


def value(context: str, number: float, visibility: str = "visible", row: str = "teacher", data: str = "eval") -> Value:
    return Value(
        row, None, data, context, "teacher" if row != "untrained" else "student", visibility, "accuracy", number, 100
    )


def test_payoff_helpful_evidence_can_pay() -> None:
    (line,) = payoff(
        [value("plain", 0.328), value("crop", 0.854), value("plain", 0.3, "all"), value("crop", 0.9, "all")]
    )
    assert line == (
        "- **eval: privilege can pay**: teacher has 32.8% of visible questions right without evidence, 85.4% with crop"
    )


def test_payoff_below_two_points_cannot_pay() -> None:
    (line,) = payoff([value("plain", 0.943), value("crop", 0.932), value("hint", 0.96)])
    assert line.startswith("- **eval: privilege cannot pay**")
    assert line.endswith("93.2% with crop, 96.0% with hint")


def test_payoff_without_visibility_counts_all_questions() -> None:
    (line,) = payoff([value("plain", 0.5, "all"), value("boxes", 0.6, "all")])
    assert "50.0% of all questions right without evidence, 60.0% with boxes" in line


def test_payoff_without_both_contexts_is_empty() -> None:
    assert payoff([value("plain", 0.5)]) == []
    assert payoff([value("crop", 0.5)]) == []
    assert payoff([value("plain", 0.5, row="untrained"), value("crop", 0.9, row="untrained")]) == []


def test_payoff_wrong_evidence_is_not_evidence() -> None:
    """A wrong crop that helps, as where any crop restores the form of an answer, is not a teacher that can use it."""
    (line,) = payoff([value("plain", 0.38), value("crop", 0.385), value("wrong_crop", 0.64)])
    assert "cannot pay" in line and "64.0% with wrong_crop" in line
    assert payoff([value("plain", 0.38), value("wrong_crop", 0.64)]) == []
