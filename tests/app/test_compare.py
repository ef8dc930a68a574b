"""The view that compares ticked runs on common questions, and two of them on one example."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from known_answers import rows
from test_answers import keys

from workbench.app.common_accuracy import common_csv, flips_csv
from workbench.app.context import AppContext
from workbench.app.tabs import compare
from workbench.errors import RunError
from workbench.evals.records import save_records

COMMON, FLIPS, ANSWERS, ACCURACY, DIFFERENCE, LISTED, WORDS, ALIGNED, LAYOUT, VIEWS = range(10)


def draw(context: AppContext, run: str = "dopd", other: str = "", **address: str) -> tuple:
    return compare.draw(context, run, {"with": other, **address})


def test_compare_one_run_asks_for_second_tick(context: AppContext) -> None:
    assert "Tick a second run" in draw(context)[COMMON]


@pytest.fixture
def graded(context: AppContext, tmp_path: Path) -> AppContext:
    """dopd and opd with known answers: visible 1 turns wrong, 2 right; a third run without evaluation."""
    for run, rewards in (("dopd", "1100"), ("opd", "10101")):
        folder = tmp_path / "runs" / run
        shutil.copytree(context.runs_dir / run, folder)
        shutil.rmtree(folder / "evals")
        records = rows(9, "student", "plain", rewards, "visible")
        texts = {"0": f"the <b> is {run}", "1": "it is blue"}
        records = [replace(row, text=texts[str(int(row.reward))], question="<i>which?") for row in records]
        save_records(folder, 9, records)
    shutil.copytree(context.runs_dir / "begun", tmp_path / "runs" / "begun")
    return AppContext(tmp_path / "runs", context.configs_dir)


def cells(html: str) -> list[list[str]]:
    """Texts of a table's cells by row, without the heading."""
    lines = re.findall(r"<tr[^>]*>(.*?)</tr>", html)[1:]
    return [[re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", line)] for line in lines]


def test_compare_common_questions_of_three_runs_state_interval_and_left_out(graded: AppContext) -> None:
    """Changes 0, -1, 1, 0: mean 0, variance 2/3, so 1.96 sqrt(2/3/4) = 80.0 points to each side."""
    drawn = draw(graded, other="opd,begun")
    assert cells(drawn[COMMON])[0] == ["visible", "dopd", "9", "4", "50.0%", "–", "–", "–", "–"]
    assert cells(drawn[COMMON])[1] == ["visible", "opd", "9", "4", "50.0%", "0.0", "[−80.0, +80.0]", "1", "1"]
    assert "4 common questions; not common, so left out: 0 of dopd, 1 of opd. begun has no graded" in drawn[COMMON]


def test_compare_flips_list_both_directions_and_open_question(graded: AppContext) -> None:
    drawn = draw(graded, other="opd")
    assert [row[0] for row in cells(drawn[FLIPS])] == ["wrong to right", "right to wrong"]
    assert "1 wrong to right, 1 right to wrong" in drawn[FLIPS] and "<i>" not in drawn[FLIPS]
    assert drawn[FLIPS].index('aria-selected="true"') < drawn[FLIPS].index('aria-selected="false"')
    opened = draw(graded, other="opd", example=keys(drawn[FLIPS])[1]["example"])
    assert "it is <del>blue</del><ins>the &lt;b&gt;" not in opened[ANSWERS], "words, not whole answers"
    assert "<ins>opd</ins>" in opened[ANSWERS] and "<del>blue</del>" in opened[ANSWERS]
    assert opened[VIEWS] == "" and opened[LAYOUT].visible is False, "no tokens of another question"


def test_compare_tables_as_csv_have_all_rows(graded: AppContext) -> None:
    runs = compare.ticked(graded, "dopd", {"with": "opd"})
    head, first, second, *_ = common_csv(runs).splitlines()
    assert head == "run,step,visibility,count,accuracy,difference,low,high,gained,lost"
    assert first == "dopd,9,visible,4,0.5,,,,," and second.startswith("opd,9,visible,4,0.5,0.0,-0.80")
    assert flips_csv(runs).splitlines() == [
        "flip,example,visibility,question,expected,answer of dopd,answer of opd",
        "wrong to right,visible2,visible,<i>which?,3,the <b> is dopd,it is blue",
        "right to wrong,visible1,visible,<i>which?,3,it is blue,the <b> is opd",
    ]


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
