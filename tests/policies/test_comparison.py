"""`workbench teacher --engine vllm --compare`: another engine's hidden states are compared with transformers'."""

from pathlib import Path

import pytest
from failures import raises

from workbench.errors import PolicyError
from workbench.policies.serving.comparison import compare_with_transformers
from workbench.policies.serving.engine import TransformersEngine


@pytest.fixture
def engine(models: dict) -> TransformersEngine:
    return TransformersEngine.start(models["teacher"], dtype="float32", device="cpu")


def test_equal_engine_passes_with_pictures(engine: TransformersEngine, models: dict) -> None:
    text = compare_with_transformers(engine, models["teacher"], dtype="float32")
    assert text.startswith("4 answers with 4 pictures") and "allowed" in text


def test_engine_of_other_hidden_states_raises(engine: TransformersEngine, models: dict) -> None:
    exact = engine.hidden_states
    for change in (lambda states: states * 1.01, lambda states: states.roll(1, 0)):  # another norm, a late row
        engine.hidden_states = lambda request, change=change: [change(states) for states in exact(request)]
        with raises(PolicyError, str(models["teacher"]), "nats", "--engine transformers"):
            compare_with_transformers(engine, Path(models["teacher"]), dtype="float32")
