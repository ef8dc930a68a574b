"""A run's policies asked again: what was changed in an example is what is scored."""

from dataclasses import replace
from pathlib import Path

import pytest
from failures import raises
from PIL import Image
from small import example, run_config

from workbench.errors import DataError, RunError
from workbench.training.run import train
from workbench.training.scorer import Scorer, evaluate_run, open_scorer


@pytest.fixture(scope="module")
def run(models: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = run_config(models, tmp_path_factory.mktemp("runs"), training__steps=2)
    train(config)
    return config.run_dir


@pytest.fixture(scope="module")
def scorer(run: Path) -> Scorer:
    return open_scorer(run)


def logprobs(scored, view: str = "student") -> list[float]:
    return [position[f"logprob_{view}"] for position in scored.tokens]


def test_scorer_scores_given_answer_under_every_view(scorer: Scorer) -> None:
    scored = scorer.score(example(answer="red"), "the tag is red")
    assert "".join(position["token_text"] for position in scored.tokens) == "the tag is red<end_of_utterance>"
    for position in scored.tokens:
        total = position["logprob_teacher"] - position["logprob_student"]
        assert position["capability_gap"] + position["information_gap"] == pytest.approx(total, abs=1e-5)


def test_scorer_is_deterministic(scorer: Scorer) -> None:
    assert logprobs(scorer.score(example(), "red")) == logprobs(scorer.score(example(), "red"))
    first, second, third = (scorer.score(example(), seed=seed) for seed in (1, 1, 2))
    assert [p["token_id"] for p in first.tokens] == [p["token_id"] for p in second.tokens]
    assert [p["token_id"] for p in first.tokens] != [p["token_id"] for p in third.tokens]


def test_scorer_uses_changed_example(scorer: Scorer) -> None:
    picture = Image.linear_gradient("L").resize((20, 10)).rotate(30)
    requested = example(images=(picture,))
    first = scorer.score(requested, "red")
    other = Image.new("RGB", (20, 10), (0, 250, 90))
    for changed in (replace(requested, question="how many?"), replace(requested, images=(other,))):
        assert changed.id == example().id
        assert logprobs(scorer.score(changed, "red")) != pytest.approx(logprobs(first), abs=1e-3)
    wider = replace(requested.evidence, boxes=(replace(requested.evidence.boxes[0], x1=19.0),))
    other_box = replace(requested, evidence=wider)
    assert logprobs(scorer.score(other_box, "red"), "teacher") != pytest.approx(logprobs(first, "teacher"), abs=1e-3)
    # other evidence changes regimes, and positions of one regime meet the head in one product: the last bits may differ
    assert logprobs(scorer.score(other_box, "red")) == pytest.approx(logprobs(first), abs=1e-5)


def test_scorer_missing_evidence_raises(scorer: Scorer) -> None:
    with raises(DataError, '"boxes'):
        scorer.score(example(evidence=type(example().evidence)()), "red")


def test_evaluate_run_equals_stored_records(run: Path) -> None:
    answered = evaluate_run(run)
    assert {(row.policy, row.context, row.step) for row in answered} == {
        (policy, context, 2) for policy in ("student", "teacher") for context in ("plain", "crop")
    }
    assert len(evaluate_run(run, contexts=["hint"], max_examples=2)) == 4


def test_scorer_without_checkpoint_raises(models: dict, tmp_path: Path) -> None:
    config = run_config(models, tmp_path)
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "config.yaml").write_text(config.to_yaml())
    (config.run_dir / "run.json").write_text("{}")
    with raises(RunError, "checkpoint"):
        open_scorer(config.run_dir)
