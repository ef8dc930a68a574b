"""Reasons in words, and an answer in a terminal."""

import math
import re

import pytest
from small_answers import REGIMES, THRESHOLDS, cell, view

from workbench.render import QUANTITIES, RegimeNote, TokenCell, consequence, explain, render_terminal
from workbench.render.text import plain, signed, visible_text


@pytest.mark.parametrize(
    ("regime", "self_", "teacher", "sentence"),
    [
        ("LH", math.log(0.71), math.log(0.88), "gap 0.21 < mean 0.55, and 0.88 + 0.71 ≥ 1.20: LH"),
        ("LL", math.log(0.30), math.log(0.25), "gap 0.18 < mean 0.55, and 0.25 + 0.30 < 1.20: LL"),
        (
            "HT",
            -3.0,
            -1.0,
            "gap 2.00 ≥ mean 0.55, and the teacher's log-prob −1.00 ≥ the privileged student's −3.00: HT",
        ),
        (
            "HS",
            -8.97,
            -11.82,
            "gap 2.85 ≥ mean 0.55, and the teacher's log-prob −11.82 < the privileged student's −8.97: HS",
        ),
    ],
)
def test_explain_dopd_regime_states_comparison(regime, self_, teacher, sentence):
    assert explain(cell(regime=regime, self_=self_, teacher=teacher), THRESHOLDS, REGIMES).startswith(sentence)


def test_explain_several_micro_batches_claims_no_comparison():
    token = cell(regime="HT", self_=-3.0, teacher=-1.0)
    alone = explain(token, {"gap_0": 0.55, "probability_sum_0": 1.2}, REGIMES)
    assert alone.startswith("gap 2.00 ≥ mean 0.55")
    several = {"gap_0": 9.0, "probability_sum_0": 1.0, "gap_1": 0.55, "probability_sum_1": 1.2}
    assert "gap_0 9.00" in explain(token, several, REGIMES), "whose means these are is not known, so none is claimed"


def test_explain_contradicting_numbers_claims_no_comparison():
    """With normalize=zscore the rule compares other numbers than the recorded log-probs."""
    reason = explain(cell(regime="HT", self_=-1.3, teacher=-1.0), {"gap": 0.55, "probability_sum": 0.0}, REGIMES)
    assert reason.startswith("gap 0.30 nats is high after normalization")


def test_explain_other_methods_state_meaning_and_thresholds():
    everywhere = {"ALL": RegimeNote("every token: teacher", "teacher")}
    assert explain(cell(regime="ALL"), {}, everywhere).startswith(
        "ALL (every token: teacher); no threshold was recorded"
    )
    low = {"LOW": RegimeNote("pushed down", "reward")}
    assert (
        explain(cell(regime="LOW", student=-5.1), {"logprob": -2.31}, low)
        == "student log-prob −5.10 ≤ −2.31: LOW (pushed down)."
    )
    assert explain(cell(regime="ALL"), {"ratio_clip": 2.0}, everywhere).endswith(
        "thresholds at this step: ratio_clip 2.00."
    )
    assert explain(cell(regime="new"), {}, {}).startswith("new;")


def test_consequence_privileged_token_names_target():
    best = {"self": [("4", math.log(0.97))]}
    token = cell("2", "HS", -1.83, -8.97, -11.82, visibility="privileged", top_k=best)
    assert consequence(token) == (
        "The loss moves the student toward “4”: probability 97% under the privileged student. "
        "Only the evidence determines this value, not the student's prompt."
    )
    assert "The information gap is larger" in consequence(cell("2", "HS", -1.83, -8.97, -11.82))
    assert consequence(TokenCell("a", 1, "REST")) == "No supervision here."


@pytest.mark.parametrize(
    ("text", "displayed"),
    [
        (" the", "·the"),
        ("\n", "↵"),
        ("<|im_end|>", "‹im_end›"),
        ("</s>", "‹/s›"),
        ("<b>", "<b>"),
        ("", "∅"),
        ("\x1b[31m", "\\u001b[31m"),
        ("\u202e", "\\u202e"),
        ("答", "答"),
    ],
)
def test_visible_text_special_characters_are_shown(text, displayed):
    assert visible_text(text) == displayed


def test_signed_numbers_have_sign_except_zero():
    assert [signed(value) for value in (1.234, -1.234, 0.0, -0.001, None, math.nan)] == [
        "+1.23",
        "−1.23",
        "0.00",
        "0.00",
        "–",
        "–",
    ]
    assert [plain(value) for value in (1.0, -0.001, -2.0, None)] == ["1.00", "0.00", "−2.00", "–"]


def test_terminal_without_color_marks_regimes_without_escapes():
    text = render_terminal(
        view(cell("the"), cell(" digit"), cell(" 2", "HS"), cell("\x1b]0;x\x07"), title="a\x1b[2J"), color=False
    )
    assert "\x1b" not in text and "\x07" not in text
    assert "[LH]the·digit [HS]·2 [LH]\\u001b]0;x\\u0007" in text


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("width", [40, 80, 132])
def test_terminal_lines_fit_width(width, color):
    tokens = [cell(f" 数字{k}", loss=0.5, weight=1.0, visibility="visible") for k in range(30)]
    text = re.sub(r"\x1b\[[\d;]*m", "", render_terminal(view(*tokens), width=width, color=color))
    table = text[text.index("#") :].splitlines()[:-2]
    tokens_shown = [line for line in text.splitlines() if line.startswith(("·数", "[LH]"))]
    for line in [*table, *tokens_shown]:
        assert sum(2 if ord(sign) > 0x2E80 else 1 for sign in line) <= width, line


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_terminal_every_quantity_has_colors(quantity):
    token = cell(loss=1.0, weight=1.0, effective=1.0, entropies={"student": 1.0}, visibility="privileged")
    assert "\x1b[48;2;" in render_terminal(view(token), color_by=quantity)
