"""The tab that compares two runs on one example."""

import re
import shutil

import pytest
from test_answers import keys

from workbench.app.context import AppContext
from workbench.app.tabs import compare
from workbench.errors import RunError

LAYOUT, LISTED, ALIGNED, VIEWS, ACCURACY, DIFFERENCE = range(6)


def draw(context: AppContext, run: str = "dopd", other: str = "", **address: str) -> tuple:
    return compare.draw(context, run, {"with": other, **address})


def test_compare_one_run_asks_for_second_tick(context: AppContext) -> None:
    assert "Tick a second run" in draw(context)[LISTED]


def test_compare_probes_of_two_runs_are_aligned(context: AppContext) -> None:
    drawn = draw(context, other="opd")
    assert len(keys(drawn[LISTED])) >= 3
    assert drawn[ALIGNED].count('class="wbu-token') % 2 == 0 and "Matched by same tokens" in drawn[ALIGNED]
    assert drawn[VIEWS].count("wb-root wb-tokens") == 2 and "wbu-stack" in drawn[VIEWS]
    beside = draw(context, other="opd", layout="beside")
    assert "wbu-sides" in beside[VIEWS] and beside[LAYOUT].value == "beside"
    assert draw(context, other="opd", layout="sideways")[LAYOUT].value == "under"


def test_compare_no_common_regime_marks_no_difference(context: AppContext) -> None:
    drawn = draw(context, other="opd")[ALIGNED]
    assert "no regime in common" in drawn and "≠" not in drawn


def test_compare_address_chooses_example(context: AppContext) -> None:
    last = keys(draw(context, other="opd")[LISTED])[-1]["example"]
    assert last in draw(context, other="opd", example=last)[VIEWS]


def test_compare_configs_and_accuracies_side_by_side(context: AppContext) -> None:
    drawn = draw(context, other="opd")
    assert "method.name" in drawn[DIFFERENCE]
    heads = re.findall(r"<th[^>]*>(.*?)</th>", drawn[ACCURACY])
    assert sum("<small>dopd" in head for head in heads) == 4 == sum("<small>opd" in head for head in heads)
    assert "not evaluated on the same questions" not in drawn[ACCURACY]


def test_compare_same_name_in_two_studies_stay_apart(context: AppContext) -> None:
    for study, run in (("one", "dopd"), ("two", "opd")):
        shutil.copytree(context.runs_dir / run, context.runs_dir / study / "x-s0")
    drawn = draw(context, run="one/x-s0", other="two/x-s0")
    heads = re.findall(r"<th[^>]*>(.*?)</th>", drawn[ACCURACY])
    assert sum("<small>one/x-s0" in head for head in heads) == 4 == sum("<small>two/x-s0" in head for head in heads)
    assert all(name in drawn[DIFFERENCE] for name in ("one/x-s0", "two/x-s0"))
    for study in ("one", "two"):
        shutil.rmtree(context.runs_dir / study)


def test_compare_run_missing_raises_and_untraced_shows_message(context: AppContext) -> None:
    with pytest.raises(RunError):
        draw(context, other="gone")
    drawn = draw(context, other="begun")
    assert "no recorded example in common" in drawn[LISTED] and drawn[VIEWS] == ""


def test_compare_example_chosen_keeps_second_run() -> None:
    assert compare.chosen_example({"with": "opd", "step": "3"}, {"example": "e"}) == {"with": "opd", "example": "e"}
