"""What the pictures of an answer say, and that nothing in an answer can break out of them."""

import base64
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from failures import raises
from PIL import Image
from small_answers import REGIMES, cell, view

from workbench.errors import ConfigError
from workbench.render import (
    RegimeNote,
    TokenCell,
    TokenView,
    ViewImage,
    colors,
    page_head,
    render_movement,
    render_page,
    render_terminal,
    render_tokens,
    token_view,
)
from workbench.render.html import _rounded
from workbench.traces.reader import TracedRollout
from workbench.traces.schema import TracedRegime, TracedView
from workbench.types import Box

OWN_ELEMENTS = {
    *("div", "style", "template", "header", "span", "aside", "section", "button", "details", "summary", "figure"),
    *("figcaption", "img", "svg", "rect", "g", "text", "title", "p", "pre", "mark", "s", "i", "b", "br"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}


class Elements(HTMLParser):
    """Names of the elements and attributes that a browser would see."""

    def __init__(self, html):
        super().__init__()
        self.names, self.attributes = set(), set()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}


def data_of(html):
    text = re.search(r'<template class="wb-data">(.*?)</template>', html, re.DOTALL)[1]
    return json.loads(text)


def test_cell_gaps_are_signed_differences_and_sum():
    token = cell(student=-1.83, self_=-8.97, teacher=-11.82)
    assert token.information_gap == pytest.approx(-7.14)
    assert token.capability_gap == pytest.approx(-2.85)
    assert token.total_gap == pytest.approx(token.information_gap + token.capability_gap)


def test_cell_gap_missing_view_is_none():
    token = cell(self_=None)
    assert (token.capability_gap, token.information_gap) == (None, None)
    assert token.total_gap == pytest.approx(0.4)
    assert data_of(render_tokens(view(token)))["capability"] == [None]
    assert data_of(render_tokens(view(cell(student=None, self_=None, teacher=None))))["views"] == []


@pytest.mark.parametrize(
    "hostile", ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<!--", "\"'>&"]
)
def test_render_hostile_text_is_escaped(hostile):
    token = cell(hostile, "LH", token_type=hostile, top_k={"student": [(hostile, -0.5)]})
    drawn = view(
        token,
        title=hostile,
        question=hostile,
        expected=hostile,
        prompts={"student": hostile, "teacher": f"{hostile}\nmore"},
        contexts={"student": hostile},
        meta={hostile: hostile},
        regimes={"LH": RegimeNote(hostile, hostile, hostile)},
        pictures=(ViewImage(hostile, Image.new("RGB", (8, 8)), (Box(1, 1, 4, 4, hostile),), note=hostile),),
    )
    html = render_tokens(drawn, standalone=False)
    assert "<script" not in html and "</script" not in html and "<!--" not in html
    elements = Elements(html)
    assert elements.names <= OWN_ELEMENTS and not {name for name in elements.attributes if name.startswith("on")}
    assert data_of(html)["best"][0][0][0][0] == hostile.replace(" ", "·")
    page = render_page([(hostile, html)], hostile)
    assert page.count("<script") == 1, "the page's own"
    movement = render_movement([0], [hostile], [["LH"]], {"LH": RegimeNote(hostile)}, title=hostile)
    assert Elements(movement).names <= OWN_ELEMENTS - {"script", "img"}


def test_fragment_standalone_includes_style_and_script():
    alone, hosted = render_tokens(view(cell())), render_tokens(view(cell()), standalone=False)
    assert alone.count("<style>") == 1 and alone.count("<script>") == 1
    assert "<style>" not in hosted and "<script>" not in hosted
    assert "<style>" in page_head() and "<script>" in page_head()


def test_page_has_no_remote_address():
    html = render_page([render_tokens(view(cell(), pictures=(ViewImage("student", Image.new("RGB", (9, 9))),)))], "t")
    addresses = set(re.findall(r"https?://[^\s\"')]+", html))
    assert addresses <= {"http://www.w3.org/2000/svg"}, "the SVG namespace is not requested"
    assert "default-src 'none'" in html and "@import" not in html


def test_render_empty_answer_shows_message():
    for text in (render_tokens(view(answer="")), render_terminal(view(answer=""))):
        assert "no token was sampled" in text


def test_fragment_json_nan_becomes_null():
    token = cell(
        loss=float("nan"), weight=float("inf"), entropies={"student": 0.25}, ranks={"self": 3}, sampled_logprob=-0.5
    )
    data = data_of(render_tokens(view(token, cell(regime="HT", loss=1.23456))))
    assert data["logprob"] == [[-0.5, -0.5], [-0.2, -0.2], [-0.1, -0.1]]
    assert data["loss"] == [None, 1.2346] and data["weight"] == [None, None]
    assert data["entropy"] == [[0.25, None], [None, None], [None, None]] and data["rank"][1] == [3, None]


def test_token_recorded_quantities_have_classes():
    token = cell(loss=1.0, weight=1.0, effective=1.0, entropies={"student": 1.0}, visibility="privileged")
    html = render_tokens(view(token), color_by="loss")
    classes = re.search(r'class="(wb-t [^"]*)"', html)[1].split()
    assert classes == [
        "wb-t",
        "wb-r-teacher-light",
        "wb-t-privileged",
        "wb-c-5",
        "wb-i-8",
        "wb-w-6",
        "wb-l-6",
        "wb-e-6",
    ]
    assert 'data-by="loss"' in html


def test_chips_unrecorded_quantities_are_disabled():
    html = render_tokens(view(cell(self_=None)))
    disabled = re.findall(r'data-by="(\w+)" aria-pressed="false" disabled', html)
    assert disabled == ["capability", "information", "weight", "loss", "entropy", "visibility"]


@pytest.mark.parametrize(
    "call", [lambda v: render_tokens(v, color_by="color"), lambda v: render_terminal(v, color_by="x")]
)
def test_color_by_unknown_quantity_lists_allowed(call):
    with raises(ConfigError, "capability, denoising, entropy, information, loss, mismatch, regime, visibility, weight"):
        call(view(cell()))


def test_render_tokens_unknown_theme_raises():
    with raises(ConfigError, "blue"):
        render_tokens(view(cell()), theme="blue")


def test_ink_every_background_has_contrast_4_5():
    fills = [*colors.SLOTS.values(), *colors.VISIBILITY.values(), *colors.DIVERGING, *colors.GROWING]
    for background in (color for fill in fills for color in (fill.light, fill.dark)):
        assert colors.contrast(colors.ink(background), background) >= 4.5, background


def test_contrast_black_on_white_is_21():
    assert colors.contrast("#000000", "#ffffff") == pytest.approx(21.0)


@pytest.mark.parametrize(
    "method", [{"ALL": "teacher"}, {"KEPT": "teacher", "REST": None}, {"LOW": "reward", "REST": None}]
)
def test_regime_slots_other_methods_follow_target(method):
    slots = colors.regime_slots({name: RegimeNote("", target) for name, target in method.items()})
    expected = {"teacher": "teacher-light", "reward": "reward", None: "none"}
    assert slots == {name: expected[target] for name, target in method.items()}


def test_regime_slots_four_teachers_differ():
    slots = colors.regime_slots({name: RegimeNote("", f"teacher:{name}") for name in "abcd"})
    assert len(set(slots.values())) == 4 and "none" not in slots.values()


def test_token_with_line_break_breaks_line():
    assert render_tokens(view(cell("a\n"), cell("b")), standalone=False).count("</button><br>") == 1


def test_picture_large_image_is_small_data_uri_with_boxes():
    picture = ViewImage(
        "student", Image.effect_noise((3000, 1500), 40), (Box(300, 600, 900, 900, "ring"),), Box(0, 0, 30, 30)
    )
    html = render_tokens(view(cell(), pictures=(picture,)), standalone=False)
    kind, payload = re.search(r"data:image/(\w+);base64,([^\"]+)", html).groups()
    assert kind == "webp" and Image.open(io.BytesIO(base64.b64decode(payload))).size == (640, 320)
    assert 'viewBox="0 0 3000 1500"' in html and 'x="300" y="600" width="600" height="300"' in html
    assert "3000 × 1500" in html and 'class="wb-crop"' in html


def test_picture_missing_file_is_named_and_tokens_stay(tmp_path):
    html = render_tokens(view(cell(), pictures=(ViewImage("student", tmp_path / "gone.png"),)))
    assert "gone.png does not exist" in html and 'data-i="0"' in html


def test_prompts_privileged_lines_are_marked():
    html = render_tokens(
        view(cell(), prompts={"student": "which?", "teacher": "which?\nboxes: ring", "self": "which?\nboxes: ring"})
    )
    assert html.count("<mark>") == 1 and "<mark>boxes: ring</mark>" in html
    assert "self · teacher" in html


def test_legend_counts_tokens_and_loss_shares():
    tokens = [cell(loss=1.0), cell(loss=1.0), cell(regime="HT", loss=6.0)]
    html = render_tokens(view(*tokens), standalone=False)
    row = re.search(r"HT</th>(.*?)</tr>", html)[1]
    assert ">1 <" in row and "33%" in row and "75%" in row


def test_fragment_2000_tokens_is_below_2_mb_and_holds_them_in_chunks():
    best = {name: [(f"w{k}", -0.1 - k) for k in range(5)] for name in ("student", "self", "teacher")}
    tokens = [
        cell(f" w{k}", list(REGIMES)[k % 4], loss=k / 100, weight=1.0, effective=0.6, top_k=best) for k in range(2000)
    ]
    html = render_tokens(view(*tokens), standalone=False)
    assert len(html.encode()) < 2_000_000
    chunks = [(int(start), int(end)) for start, end in re.findall(r'data-from="(\d+)" data-to="(\d+)"', html)]
    assert chunks[0][0] == 0 and chunks[-1][1] == 2000 and all(end - start <= 240 for start, end in chunks)
    assert [end for _, end in chunks[:-1]] == [start for start, _ in chunks[1:]]


def embedded(html: str) -> dict:
    return json.loads(re.search(r'<template class="wb-data">(.*?)</template>', html, re.DOTALL)[1])


def test_long_answer_chunks_end_at_line_breaks():
    texts = [f"w{index}" for index in range(400)]
    texts[150] = ".\n"
    cells = [cell(text, regime="LH") for text in texts]
    html = render_tokens(view(*cells), standalone=False)
    assert re.findall(r'data-from="(\d+)"', html) == ["0", "151", "391"]
    assert embedded(html)["breaks"] == [150]


def test_line_breaks_in_a_row_break_line_once():
    html = render_tokens(view(cell("a\n"), cell("\n"), cell("\n\n"), cell("b")), standalone=False)
    assert html.count("<br>") == 1


def test_mismatch_is_trainer_minus_sampler():
    sampled = replace(cell(student=-0.5), sampled_logprob=-0.7)
    assert sampled.mismatch == pytest.approx(0.2) and cell().mismatch is None
    html = render_tokens(view(*[sampled] * 200), standalone=False)
    assert embedded(html)["mismatch"][0] == pytest.approx(0.2) and 'data-by="mismatch"' in html
    assert 'data-by="mismatch"' not in render_tokens(view(cell()), standalone=False), "it was not recorded"


def test_movement_draws_cell_per_step_and_token():
    html = render_movement([0, 20], ["the", " 2"], [["LH", "HS"], ["LH", None]], REGIMES)
    assert html.count('class="wb-cell"') == 3 and "step 0 · token 2 “·2” · HS" in html
    assert "50 → 0%" in html


def test_movement_long_answer_joins_neighbors():
    html = render_movement(range(20), ["a"] * 2000, [["LH"] * 1999 + ["HS"]] * 20, REGIMES)
    assert html.count('class="wb-cell"') == 40 and "tokens 1 to 1999" in html


def test_movement_838_tokens_fits_fixed_width():
    html = render_movement([0, 20], ["word"] * 838, [["LH", "HS"] * 419] * 2, REGIMES)
    assert (
        'svg width="1740"' in html and "word</text>" not in html and ">50</text>" in html and ">LH</text>" not in html
    )


def test_fragment_marked_tokens_and_long_answer_are_flagged():
    cells = tuple(TokenCell(f"w{index}", index, "LH") for index in range(130))
    html = render_tokens(TokenView("t", "q", "a", cells), standalone=False, pinned=3, marked={3, 7})
    assert embedded(html)["marked"] == [3, 7] and "data-long" in html
    short = render_tokens(TokenView("t", "q", "a", cells[:9]), standalone=False)
    assert "wb-match" not in short and "data-long" not in short


def test_movement_wrong_row_length_raises():
    with raises(ConfigError, "1 steps", "2 tokens", "1 rows", "[1]"):
        render_movement([0], ["a", "b"], [["LH"]], REGIMES)
    assert "No probes have been scored yet" in render_movement([], [], [], REGIMES)


def test_token_view_recorded_answer_has_all_fields(tmp_path):
    for name in ("scene.png", "crop.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    row = {
        "step": 12,
        "rollout_idx": 3,
        "process_rank": 0,
        "example_id": "e7",
        "domain": "tags",
        "question": "which digit?",
        "answer": "4",
        "completion": "4",
        "reward": 0.0,
        "finished": False,
        "images": ["scene.png"],
        "images_student": ["scene.png"],
        "images_teacher": ["scene.png", "crop.png"],
        "prompt_student": "which digit?",
        "prompt_teacher": None,
        "thresholds": [("gap", 0.5)],
        "annotations": [("gate_open", 1.0), ("lines<b>", 0.25), ("unknown", None)],
        "evidence_boxes": [{"x0": 1.0, "y0": 1.0, "x1": 3.0, "y1": 3.0, "label": "ring"}],
    }
    position = {
        "token_text": "4",
        "token_id": 9,
        "regime": "ALL",
        "target": "teacher",
        "divergence": "JSD",
        "weight": 1.0,
        "loss": 0.5,
        "token_type": None,
        "visibility": None,
        "sampler_logprob": -0.3,
        "logprob_student": -0.3,
        "logprob_teacher": -0.1,
        "entropy_student": 0.2,
        "rank_student": 0,
        "max_logprob_student": -0.3,
        "top_k_student": [{"token_id": 9, "text": "4", "logprob": -0.3}],
        "top_k_teacher": None,
    }
    views = {"teacher": TracedView("teacher", "crop"), "student": TracedView("student", "plain")}
    regimes = {"ALL": TracedRegime("teacher", "JSD", "every token: teacher")}
    result = token_view(TracedRollout(row, (position,), views, regimes, tmp_path), run="first")
    assert result.meta == {
        "run": "first",
        "step": 12,
        "rollout": 3,
        "example": "e7",
        "length": "without an end token",
        "annotations": "gate open 1.00, lines<b> 0.25, unknown –",
    }
    assert "gate open 1.00, lines&lt;b&gt; 0.25" in render_tokens(result)
    assert "annotations gate open 1.00, lines<b> 0.25" in render_terminal(result, color=False)
    assert result.right is False and result.thresholds == {"gap": 0.5} and result.views == ("student", "teacher")
    assert result.tokens[0].total_gap == pytest.approx(0.2) and result.tokens[0].top_k == {"student": [("4", -0.3)]}
    assert [(picture.title, len(picture.boxes)) for picture in result.pictures] == [
        ("seen by student, teacher", 1),
        ("seen by teacher", 0),
    ]
    assert "every token: teacher" in render_tokens(result)
    given = row | {"evidence_crop": "crop.png"}  # it came with the data, so only the data can say where it lies
    for index, outline, output in (
        (None, None, "its location is not recorded"),
        (
            {"x0": 2.0, "y0": 1.0, "x1": 6.0, "y1": 7.0, "label": "x"},
            Box(2.0, 1.0, 6.0, 7.0),
            "Dashed: the crop",
        ),
    ):
        traced = TracedRollout(given | {"evidence_crop_box": index}, (position,), views, regimes, tmp_path)
        first, second = token_view(traced, run="first").pictures
        assert first.crop == outline and output in first.note and second.crop is None and not second.note
    assert result.pictures[0].crop == Box(1.0, 1.0, 3.0, 3.0) and "first box" in result.pictures[0].note


def test_numbers_have_the_four_decimals_of_round():
    ties = [sign * idx * 0.00005 for idx in range(4001) for sign in (1, -1)]
    values = [*ties, None, math.nan, math.inf, 1e300, 123456789.00005, 12345678901234.00005, -1e-9, 5]
    rounded = [None if value is None or not math.isfinite(value) else round(value, 4) for value in values]
    assert _rounded(values) == rounded
