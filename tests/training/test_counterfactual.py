"""An answer scored with one thing changed: what the student sees stays, what the evidence changed moves."""

from dataclasses import replace
from pathlib import Path

import pytest
from failures import raises
from PIL import Image
from small import example, run_config

from workbench.analysis import changes
from workbench.errors import DataError, TraceError
from workbench.render.from_trace import token_view
from workbench.training.counterfactual import (
    others_of,
    shown_evidence,
    swap_evidence,
    with_evidence_of,
    with_token,
    without_evidence,
)
from workbench.training.scorer import Scorer
from workbench.types import Box

ANSWER = "the tag is red"


@pytest.fixture(scope="module")
def scorer(models: dict, tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return Scorer(run_config(models, tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def subject():
    """An example with a picture in which crops differ from the whole."""
    return example(images=(Image.linear_gradient("L").resize((20, 10)).rotate(30),))


@pytest.fixture(scope="module")
def before(scorer: Scorer, subject):
    return scorer.score(subject, ANSWER)


def logprobs(traced, view: str) -> list[float]:
    return [position[f"logprob_{view}"] for position in traced.tokens]


def test_without_evidence_privileged_views_see_what_student_sees(scorer, subject, before) -> None:
    after = without_evidence(scorer, subject, before)
    assert {view.context for view in after.views.values()} == {"plain"}
    assert [position["token_id"] for position in after.tokens] == [position["token_id"] for position in before.tokens]
    assert logprobs(after, "student") == pytest.approx(logprobs(before, "student"), abs=1e-5)
    # the privileged student is the student without training, so nothing is left of the information gap
    assert logprobs(after, "self") == pytest.approx(logprobs(after, "student"), abs=1e-5)
    assert logprobs(after, "teacher") != pytest.approx(logprobs(before, "teacher"), abs=1e-3)
    assert logprobs(scorer.score(subject, ANSWER), "teacher") == pytest.approx(logprobs(before, "teacher"), abs=1e-6)


def test_evidence_of_other_example_changes_privileged_views_only(scorer, subject, before) -> None:
    other = example(1, images=(Image.new("RGB", (40, 40), (250, 10, 10)),))
    after = with_evidence_of(scorer, subject, other, before)
    assert logprobs(after, "student") == pytest.approx(logprobs(before, "student"), abs=1e-5)
    assert logprobs(after, "teacher") != pytest.approx(logprobs(before, "teacher"), abs=1e-3)
    assert logprobs(with_evidence_of(scorer, subject, subject, before), "teacher") == pytest.approx(
        logprobs(before, "teacher"), abs=1e-4
    )


def test_swapped_boxes_lie_at_same_place_of_image(scorer, subject) -> None:
    wide = replace(example(1).evidence, boxes=(Box(20, 10, 40, 20, "door"),))
    other = example(1, images=(Image.new("RGB", (40, 20)),), evidence=wide)
    assert swap_evidence(subject, other, scorer.method).evidence.boxes == (Box(10, 5, 20, 10, "door"),)
    assert swap_evidence(subject, other, scorer.method).answer == subject.answer


def test_evidence_swap_example_without_evidence_raises(scorer, subject, before) -> None:
    bare = example(1, evidence=replace(example(1).evidence, boxes=()))
    with raises(DataError, "example-1", "boxes"):
        with_evidence_of(scorer, subject, bare, before)
    assert others_of(subject, [bare, subject, example(2, answer="4"), example(3)], scorer.method)[0].id == "example-2"


def test_edited_token_keeps_numbers_before_it(scorer, subject, before) -> None:
    position = 2
    after = with_token(scorer, subject, before, position, " blue")
    texts = [cell["token_text"] for cell in after.tokens]
    assert "".join(texts[:position]) == "".join(cell["token_text"] for cell in before.tokens[:position])
    for view in ("student", "self", "teacher"):
        assert logprobs(after, view)[:position] == pytest.approx(logprobs(before, view)[:position], abs=1e-5)
    pairs = changes.pair_tokens(token_view(before), token_view(after))
    assert next(pair.first for pair in pairs if pair.is_edited) == position
    with raises(TraceError, "no token 99"):
        with_token(scorer, subject, before, 99, "blue")


def test_changes_equal_differences_of_scorings(scorer, subject, before) -> None:
    after = without_evidence(scorer, subject, before)
    first, second = token_view(before), token_view(after)
    rows = changes.moved(first, second).rows
    for idx, row in enumerate(rows):
        gap = after.tokens[idx]["information_gap"] - before.tokens[idx]["information_gap"]
        assert row["information_gap_change"] == pytest.approx(gap, abs=1e-5)
    regimes = sum(a["regime"] != b["regime"] for a, b in zip(before.tokens, after.tokens, strict=True))
    assert changes.sentence(first, second).startswith(f"{regimes} of {len(rows)} tokens changed regime")
    whole = {row["quantity"]: row for row in changes.summary(first, second).rows}
    assert whole["log-prob of the answer, teacher"]["before"] == pytest.approx(sum(logprobs(before, "teacher")))


def test_method_without_evidence_has_nothing_to_change(models: dict, tmp_path: Path, subject) -> None:
    plain = Scorer(run_config(models, tmp_path, method={"name": "opd"}))
    before = plain.score(subject, ANSWER)
    assert shown_evidence(plain.method) == ()
    with raises(DataError, "no view of opd"):
        without_evidence(plain, subject, before)
    with raises(DataError, "no view of opd"):
        with_evidence_of(plain, subject, example(1), before)
