"""Model types: log-probs of generate, check, two methods, saved, loaded again, resumed to the same weights."""

from pathlib import Path

import pytest
from failures import raises

from workbench.errors import ConfigError, PolicyError
from workbench.policies.autoregressive import load_policy
from workbench.policies.scope import out_of_scope
from workbench.training.families.build import save_family
from workbench.training.families.table import all_types, format_page, try_families
from workbench.training.families.trial import FAILED, FAST, MISSING, OUT, PLAIN, REFUSED, Outcome, try_family

STATUS = {  # of types that every run of the suite tries
    "gemma3": FAST,
    "idefics3": FAST,
    "internvl": FAST,
    "llava": FAST,
    "glm4v": FAST,
    "qwen2_5_vl": FAST,
    "qwen3_vl": FAST,
    "qwen3_5": PLAIN,
    "video_llama_3": PLAIN,
    "llama": FAST,
    "qwen3_next": PLAIN,
    "mamba": PLAIN,
}

KNOWN_FAILURES = {  # as docs/families.md has them
    "kosmos-2.5": "the model has no get_image_features",
}


def others() -> list:
    """All types but those of STATUS; the known failures are expected to fail."""
    return [
        pytest.param(name, marks=pytest.mark.xfail(reason=KNOWN_FAILURES[name])) if name in KNOWN_FAILURES else name
        for name in all_types()
        if name not in STATUS
    ]


@pytest.mark.parametrize("model_type", list(STATUS))
def test_sampled_model_type_trains(model_type: str, tmp_path: Path) -> None:
    outcome = try_family(model_type, tmp_path)
    assert outcome.status == STATUS[model_type], outcome.sentence


@pytest.mark.families
@pytest.mark.parametrize("model_type", others())
def test_every_other_model_type_trains_or_is_refused_with_a_sentence(model_type: str) -> None:
    (outcome,) = try_families([model_type])
    assert outcome.status in (FAST, PLAIN) or outcome.sentence
    assert outcome.status != FAILED, outcome.sentence


def test_encoder_decoder_is_refused_with_what_it_is(tmp_path: Path) -> None:
    save_family(tmp_path, "florence2")
    with raises(PolicyError, "encoder-decoder"):
        load_policy(tmp_path, "student")


def test_unknown_model_type_names_near_ones() -> None:
    with raises(ConfigError, "qwen3_vl"):
        try_families(["qwen3-vl"])


def test_out_of_scope_tells_kinds_apart() -> None:
    from transformers import AutoConfig  # noqa: PLC0415

    assert "robot" in out_of_scope(AutoConfig.for_model("pi0"))
    assert out_of_scope(AutoConfig.for_model("qwen3_vl")) is None


def test_page_lists_outcomes_by_status() -> None:
    page = format_page(
        [Outcome("llama", FAST), Outcome("qwen3_5", PLAIN, "a | b"), Outcome("blip", OUT, "a captioner")]
    )
    rows = [line for line in page.splitlines() if line.startswith("| ")][-3:]
    assert rows == [
        "| llama (text) | fast |  |",
        "| qwen3_5 | plain | a \\| b |",
        "| blip | out of scope | a captioner |",
    ]
    assert {REFUSED, MISSING}.isdisjoint(rows)
