"""What was gained and what is only claimed, against numbers worked out by hand."""

import math
from pathlib import Path

import pytest
from known_answers import STUDENT, TEACHER, rows

from workbench.analysis.summary import summarize_run
from workbench.evals.findings import compare, compared, find, sentences, source_of, wrong_context
from workbench.evals.records import save_records
from workbench.runs.folder import RunFolder

RUN = STUDENT + TEACHER


def test_findings_gain_and_claims_equal_hand_computed() -> None:
    result = find(RUN, "crop")
    # changes of the eight: 0, -1, 1, 1, 1, 1, 0, 0; mean 3/8; squares sum to 5 - 8 (3/8)^2 = 3.875; over 7, over 8
    margin = 1.96 * math.sqrt(3.875 / 7 / 8)
    assert result.gain == pytest.approx((0.375, 0.375 - margin, 0.375 + margin))
    assert (result.before.accuracy, result.after.accuracy, result.group) == (0.25, 0.625, "visible")
    before, after = result.overconfidence
    assert (before.overconfidence, after.overconfidence) == pytest.approx((0.05, 0.65))
    assert (result.source.plain, result.source.privileged, result.source.can_pay) == (0.375, 0.875, True)


def test_sentences_give_numbers_and_control_command() -> None:
    gained, claimed, why = sentences(find(RUN, "crop"), run="demo", config="runs/demo/config.yaml", privilege="crop")
    assert "Accuracy gain: 25.0% to 62.5% on 8 questions that the image answers, +37.5 points" in gained
    assert "37.5% without and 87.5% with crop, so the evidence can help here" in gained
    assert "4 questions that only the evidence answers" in claimed
    assert (
        "+65 points (+5 before training, a change of +60.0 [" in claimed and "confidence 90%, accuracy 25%" in claimed
    )
    assert "workbench train runs/demo/config.yaml method.privilege=wrong_crop name=demo-wrong_crop" in why


def test_findings_useless_evidence_cannot_pay() -> None:
    answered = [row for row in RUN if row.context != "crop"] + rows(0, "teacher", "crop", "11100000", "visible")
    assert not find(answered, "crop").source.can_pay
    assert (
        "the evidence cannot help here" in sentences(find(answered, "crop"), run="a", config="b", privilege="crop")[0]
    )


def test_findings_source_intervals_equal_hand_computed() -> None:
    """Wilson's for 3 and 7 of 8 (by the quadratic (p - q)^2 = 1.96^2 q (1 - q) / 8); the difference is paired."""
    source = find(RUN, "crop").source
    for share in (source.without, source.with_evidence):
        for end in (share.low, share.high):
            assert (share.value - end) ** 2 == pytest.approx(1.96**2 * end * (1 - end) / 8)
        assert share.low < share.value < share.high and share.count == 8
    assert source.without.low == pytest.approx(0.1368, abs=1e-4) and source.without.high == pytest.approx(
        0.6943, abs=1e-4
    )
    # differences of the eight: 0, 0, 0, 1, 1, 1, 1, 0; mean 1/2; squares sum to 2; over 7, over 8
    margin = 1.96 * math.sqrt(2 / 7 / 8)
    assert source.difference == pytest.approx((0.5, 0.5 - margin, 0.5 + margin))


def test_findings_overconfidence_change_is_paired() -> None:
    """Confidence minus reward: -0.7, 0.3, 0.3, 0.3, then 0.9, 0.9, 0.9, -0.1; changes 1.6, 0.6, 0.6, -0.4."""
    margin = 1.96 * math.sqrt((1.0 + 0.0 + 0.0 + 1.0) / 3 / 4)
    assert find(RUN, "crop").overconfidence_change == pytest.approx((0.6, 0.6 - margin, 0.6 + margin))
    assert find(RUN, "crop").steps == (0, 9)


@pytest.mark.parametrize("privilege", ["crop", "wrong_crop", None])
def test_findings_wrong_evidence_is_not_the_evidence(privilege: str | None) -> None:
    answered = rows(0, "teacher", "wrong_crop", "11100001", "visible") + RUN
    source = find(answered, privilege).source
    assert (source.context, source.privileged) == ("crop", 0.875)
    assert [(share.context, share.value) for share in source.wrong] == [("wrong_crop", 0.5)]
    only_wrong = [row for row in answered if row.context != "crop"]
    assert source_of(only_wrong, privilege) is None


def test_findings_without_teacher_use_untrained_student() -> None:
    answered = [row for row in RUN if row.policy == "student"] + rows(0, "student", "crop", "11110000", "visible")
    source = find(answered, None).source
    assert (source.name, source.context, source.plain, source.privileged) == (
        "the student before training",
        "crop",
        0.25,
        0.5,
    )


def test_findings_without_visibility_use_all_questions() -> None:
    answered = rows(0, "student", "plain", "10", None) + rows(4, "student", "plain", "11", None, 0.75)
    result = find(answered, None)
    assert (result.group, result.overconfidence_group, result.gain[0], result.source) == ("all", "all", 0.5, None)
    assert result.overconfidence[1].overconfidence == -0.25


def test_findings_of_single_evaluation_are_none() -> None:
    assert find(rows(0, "student", "plain", "10", None), "crop") is None
    assert find([], None) is None


@pytest.mark.parametrize(
    ("privilege", "control"),
    [
        ("crop", "wrong_crop"),
        ("crop+hint", "wrong_crop+wrong_hint"),
        ("boxes", None),
        ("crop+boxes", None),
        (None, None),
        ("wrong_crop", None),
    ],
)
def test_wrong_context_is_control_of_context(privilege: str | None, control: str | None) -> None:
    assert wrong_context(privilege) == control


def test_compare_with_original_is_paired() -> None:
    """Against 5 of 8 right, in the same places 1, 3, 4, 5 and 6: one more right, so the mean change is 1/8."""
    control = [*rows(9, "student", "plain", "11111100", "visible"), *rows(9, "student", "plain", "0000", "privileged")]
    accuracy, overconfidence = compare(control, RUN)
    margin = 1.96 * math.sqrt((1 - 8 * (1 / 8) ** 2) / 7 / 8)
    assert accuracy == pytest.approx((1 / 8, 1 / 8 - margin, 1 / 8 + margin))
    # confidence minus reward was 0.9, 0.9, 0.9, -0.1 and is 0.5 four times: changes -0.4, -0.4, -0.4, 0.6
    assert overconfidence[0] == pytest.approx(-0.15)
    sentence = compared("demo", (accuracy, overconfidence))
    assert sentence.startswith("Against demo, ") and "+12.5 points [-12.0, +37.0] of accuracy" in sentence
    assert "-15.0 points [-64.0, +34.0] of over-confidence" in sentence
    assert compare(control, TEACHER) == (None, None) and compared("demo", (None, None)) is None


def test_summary_of_control_compares_with_its_original(tmp_path: Path) -> None:
    for name, privilege in (("demo", "crop"), ("demo-wrong_crop", "wrong_crop")):
        config = f"method: {{name: dopd, privilege: {privilege}}}\n"
        folder = RunFolder.create(tmp_path / name, config, seed=0, method="dopd")
        for step in (0, 9):
            save_records(folder.path, step, [row for row in RUN if row.step == step])
    assert "Against demo, which used the true evidence: +0.0 points [+0.0, +0.0] of accuracy" in summarize_run(
        tmp_path / "demo-wrong_crop"
    )
    assert "Against" not in summarize_run(tmp_path / "demo")


def test_sentences_of_wrong_evidence_run_say_so() -> None:
    assert "wrong evidence" in sentences(find(RUN, "crop"), run="a", config="b", privilege="wrong_crop")[-1]
    first = sentences(find(RUN, "crop"), run="a", config="b", privilege="wrong_crop")[0]
    assert "which this run did not use" in first and "can help" not in first


def test_summary_ends_with_findings(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "demo", "method: {name: dopd, privilege: crop}\n", seed=0, method="dopd")
    for step in (0, 9):
        save_records(folder.path, step, [row for row in RUN if row.step == step])
    *_, why, legend = summarize_run(folder.path).splitlines()
    assert f"workbench train {folder.path}/config.yaml method.privilege=wrong_crop" in why
    assert "one seed" in legend
