"""The tab of what was learned and what was only imitated."""

from html import unescape

import pytest

from workbench.analysis import illusion as measured
from workbench.app.context import AppContext
from workbench.app.tabs import illusion
from workbench.render.text import signed

HEAD, ACCURACY, WHO, RELIABILITY, OVER, SHARE, ENTROPY, SEPARATION, WORST, SURE, TABLE = range(11)


def test_every_number_of_the_headline_says_what_it_is_of(context: AppContext) -> None:
    head = illusion.draw(context, "dopd", "light", "")[HEAD]
    tiles = head.partition('class="wbu-tiles"')[2]
    assert tiles.count("<b>") == 1 == tiles.count("<small>"), "no token is privileged: no AUROC"


def test_reliability_can_be_asked_of_each_policy_and_context(context: AppContext) -> None:
    drawn = illusion.draw(context, "dopd", "dark", "student, crop")
    assert drawn[WHO].value == "student, crop" and "student, crop" in drawn[RELIABILITY].layout.title.text
    assert illusion.draw(context, "dopd", "dark", "nobody, plain")[WHO].value in {
        value for _, value in drawn[WHO].choices
    }


def test_overconfidence_is_of_the_first_and_the_newest_evaluation_of_each_policy(context: AppContext) -> None:
    accuracy = measured.accuracy(context.run_dir("dopd"))
    result, group = illusion.overconfidence(accuracy)
    rows = result.rows
    assert group in result.units["overconfidence"] and any(row["policy"] == "student, plain (step 0)" for row in rows)
    assert len(rows) == len({row["policy"] for row in rows})
    assert any(row["policy"] == "student, plain (step 4)" for row in rows) and any(
        "step 0" in row["policy"] for row in rows
    ), "the teacher"


@pytest.mark.parametrize("run", ["opd", "begun"])
def test_what_is_not_known_says_what_to_do(context: AppContext, run: str) -> None:
    drawn = illusion.draw(context, run, "light", "")
    assert "wbu-empty" in drawn[WORST] and drawn[SHARE].layout.annotations[0].text


def test_a_run_that_evaluates_nothing_says_which_key_to_set(context: AppContext) -> None:
    output = illusion.draw(context, "photos", "light", "")[ACCURACY].layout.annotations[0].text.replace("<br>", " ")
    assert "its data.eval is null" in output and "data.eval=SOURCE" in output


def test_confidence_is_explained_and_over_confidence_is_in_points(context: AppContext) -> None:
    drawn = illusion.draw(context, "dopd", "light", "")
    assert measured.CONFIDENCE_NOTE in unescape(drawn[HEAD]) and "a lower bound" in measured.CONFIDENCE_NOTE
    row = next(row for row in measured.accuracy(context.run_dir("dopd")).rows if row["step"] == 4)
    assert signed(100 * row["overconfidence"], 1) in drawn[TABLE]
    assert drawn[OVER].layout.xaxis.title.text.startswith("points: confidence minus accuracy")


def test_a_worst_case_opens_with_its_token(context: AppContext) -> None:
    assert illusion.worst_address({"regime": "HT"}, {"step": 3, "process": 0, "rollout": 4, "position": 7}) == {
        "step": "3",
        "rollout": "4",
        "token": "7",
    }
