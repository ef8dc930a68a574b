"""The tab of answers and tokens, without a server: what it draws for a run, an address and filters."""

import html
import json
import re
import shutil
from pathlib import Path
from urllib.parse import parse_qs

import pandas as pd
import pytest
from failures import raises

from workbench.analysis.eval_answers import EvaluationAnswers
from workbench.analysis.table import Table
from workbench.analysis.tokens import page as answers_page
from workbench.app.components import TRACES, Column, int_param, remount, rows_html
from workbench.app.context import AppContext
from workbench.app.related_answers import words_changed
from workbench.app.tabs import answers
from workbench.errors import RunError, TraceError
from workbench.traces.selection import Selection

FILTER, EXAMPLE, SOURCE, LISTED, WHERE, SHOWN = 7, 8, 9, 10, 11, 12


def keys(listed: str) -> list[dict]:
    return [json.loads(html.unescape(text)) for text in re.findall(r'data-key="([^"]*)"', listed)]


def title(displayed: str) -> dict:
    return dict(re.findall(r"<span>(\w+) ([^<]*)</span>", displayed))


def test_tokens_no_address_lists_newest_and_opens_first(context: AppContext) -> None:
    drawn = answers.draw(context, "dopd", {})
    result = keys(drawn[LISTED])
    assert len(result) == answers.PAGE_SIZE and result[0] == {"step": 4, "process": 0, "rollout": 0}
    assert "1–20 of 24 answers" in drawn[WHERE]
    assert title(drawn[SHOWN])["step"] == "4" and title(drawn[SHOWN])["rollout"] == "0"
    assert drawn[LISTED].count('aria-selected="true"') == 1


def test_tokens_address_opens_answer_and_pins_token(context: AppContext) -> None:
    displayed = answers.draw(context, "dopd", {"step": "2", "rollout": "3", "token": "1"})[SHOWN]
    assert title(displayed)["step"] == "2" and title(displayed)["rollout"] == "3" and 'data-pin="1"' in displayed


@pytest.mark.parametrize(
    "address", [{"step": "two", "rollout": "1"}, {"step": "1", "rollout": "-1"}, {"step": "99", "rollout": "0"}]
)
def test_tokens_invalid_address_shows_message_and_keeps_list(context: AppContext, address: dict) -> None:
    drawn = answers.draw(context, "dopd", address)
    assert "wbu-empty" in drawn[SHOWN] and keys(drawn[LISTED])


def test_tokens_probe_address_lists_probes(context: AppContext) -> None:
    drawn = answers.draw(context, "dopd", {"probe": "1"})
    assert (
        drawn[SOURCE] == "probe"
        and "probes" in drawn[WHERE]
        and {key["step"] for key in keys(drawn[LISTED])} == {0, 2, 4}
    )


def test_tokens_filters_unknown_to_run_are_dropped(context: AppContext) -> None:
    drawn = answers.draw(context, "dopd", {"at_step": "2", "grade": "incorrect", "order": "-loss"})
    assert {key["step"] for key in keys(drawn[LISTED])} == {2}
    assert (drawn[0].value, drawn[5], drawn[6].value) == ("2", "incorrect", "-loss"), "a link shows what it chose"
    grade, order = answers.draw(context, "dopd", {"order": "no such", "grade": "maybe", "at_step": "x"})[5:7]
    assert (grade, order.value) == ("", "-step")
    other = answers.draw(context, "opd", {"regime": "HT"})
    assert other[1].value == "" and "24 answers" in other[WHERE], "opd has no regime HT"
    example = answers.draw(context, "dopd", {"example": "no such"})
    assert "Remove a filter" in example[LISTED] and example[SHOWN] == ""


def test_step_selection_up_and_down_crosses_pages(context: AppContext) -> None:
    address, seen = {}, []
    for _ in range(30):
        address = answers.step_selection(context, "dopd", address, 1)
        seen.append(answers.key_of(address))
    assert len({tuple(key.items()) for key in seen}) == 23, "all but the first, which is open at the start"
    assert address["list_page"] == "1" and answers.step_selection(context, "dopd", address, 1) == address
    for _ in range(30):
        address = answers.step_selection(context, "dopd", address, -1)
    assert answers.key_of(address) == {"step": 4, "process": 0, "rollout": 0} and not address.get("list_page")


def test_step_selection_newer_answers_continues_from_open_one(context: AppContext) -> None:
    keys, _, _ = answers._keys(TRACES.of(context.runs_dir / "dopd"), Selection(), 1)
    opened = {name: str(value) for name, value in keys[1].items()}  # the list's page in the address is still the first
    address = answers.step_selection(context, "dopd", opened, 1)
    assert answers.key_of(address) == keys[2] and address["list_page"] == "1"
    assert answers.key_of(answers.step_selection(context, "dopd", address, -1)) == keys[1]


def test_change_page_at_ends_stays(context: AppContext) -> None:
    assert answers.change_page(context, "dopd", {}, -1) == {}
    second = answers.change_page(context, "dopd", {"step": "1", "rollout": "1"}, 1)
    assert second == {"list_page": "1"} == answers.change_page(context, "dopd", second, 1)
    assert "21–24 of 24" in answers.draw(context, "dopd", second)[WHERE]


def test_tokens_run_without_traces_names_config_key(context: AppContext) -> None:
    drawn = answers.draw(context, "begun", {})
    assert "trace.every" in drawn[LISTED] and drawn[SHOWN] == ""


@pytest.mark.parametrize("name", [None, "", "..", "../dopd", "no-such", "/etc"])
def test_tokens_run_outside_folder_raises(context: AppContext, name: str | None) -> None:
    with pytest.raises(RunError):
        answers.draw(context, name, {})


def test_answers_page_regimes_in_method_order(context: AppContext) -> None:
    traces = TRACES.of(context.runs_dir / "dopd")
    order = list(traces.regimes)
    for row in answers_page(traces).rows:
        names = [part.split()[0] for part in row["regimes"].split(", ")]
        assert names == sorted(names, key=order.index)


def test_rows_html_hostile_text_is_escaped() -> None:
    nasty = '<script>alert(1)</script> & "עברית" 🙂'
    frame = pd.DataFrame([{"question": nasty, "token": nasty, "n": float("nan"), "gap": 0.123456}])
    created = rows_html(
        Table(frame, run=nasty, units={"n": nasty}),
        [Column("question"), Column("token", kind="token"), Column("n", kind="number"), Column("gap", kind="signed")],
        label=nasty,
        key=("question",),
        title=nasty,
    )
    assert "<script" not in created and "&lt;script&gt;" in created and "עברית" in created and "🙂" in created
    assert keys(created) == [{"question": nasty}] and ">–</td>" in created
    assert 'data-value="0.123456">+0.12' in created, "CSV has all decimals"


def test_remount_other_fragment_changes_element() -> None:
    first, second = remount("<p>a</p>"), remount("<p>b</p>")
    assert first.split()[0] != second.split()[0] and remount("<p>a</p>") == first


def test_int_param_not_whole_raises() -> None:
    assert int_param({"step": "12"}, "step") == 12 and int_param({}, "step") is None and int_param(None, "step") is None
    for text in ("1.5", "-1", "٣x", "9" * 12):
        with raises(TraceError, "whole number"):
            int_param({"step": text}, "step")


def test_answers_filter_text_and_lists_hold_together(context: AppContext) -> None:
    drawn = answers.draw(context, "dopd", {"filter": "step>=3 token.position=1", "at_step": "3", "regime": "HT"})
    assert {key["step"] for key in keys(drawn[LISTED])} <= {3} and drawn[FILTER] == "step>=3 token.position=1"
    marked = drawn[SHOWN].count("wb-match")
    assert ("wb-match" in drawn[SHOWN]) == bool(keys(drawn[LISTED])) and marked <= 1, "one token is at position 1"
    with raises(TraceError, "character 9", "regexp"):
        answers.draw(context, "dopd", {"filter": "answer:/(regexp/"})


def test_sort_by_heading_turns_direction_and_forgets_page(context: AppContext) -> None:
    first = answers.sort_by({"list_page": "1", "step": "2", "filter": "tokens>1"}, "tokens")
    assert first == {"filter": "tokens>1", "order": "-tokens"}
    second = answers.sort_by(first, "tokens")
    lengths = []
    for address in (first, second):
        listed = answers.draw(context, "dopd", address)[LISTED]
        lengths.append(
            [int(text) for text in re.findall(r'<td class="wbu-number" dir="auto">(\d+)</td>', listed)[2::3]]
        )
        direction = "descending" if address is first else "ascending"
        assert re.search(rf'aria-sort="{direction}"><button type="button" data-sort="tokens"', listed)
    assert lengths[0] == sorted(lengths[0], reverse=True) and lengths[1] == sorted(lengths[1])


def test_related_answers_are_siblings_and_words_that_changed(context: AppContext) -> None:
    related = answers.draw_related(context, "dopd", {"step": "2", "rollout": "3"})
    opened = keys(related)
    assert {key["step"] for key in opened} == {2} and {"step": 2, "process": 0, "rollout": 3} in opened
    assert related.count('aria-selected="true"') == 1
    for address in ({"step": "2", "rollout": "999"}, {"step": "x", "rollout": "1"}, {"filter": "answer:/("}):
        assert answers.draw_related(context, "dopd", address) == "", address
    first = keys(answers.draw(context, "dopd", {})[LISTED])[0]
    listed = answers.draw_related(context, "dopd", {name: str(value) for name, value in first.items()})
    assert answers.draw_related(context, "dopd", {}) == listed != ""
    assert words_changed("tag A, <b>", "tag B, <b> now") == ("tag <del>A</del><ins>B</ins>, &lt;b&gt;<ins> now</ins>")
    assert words_changed("你好", "你好") == "你好"


def test_export_writes_selected_answers_as_json_lines(context: AppContext) -> None:
    link = answers.export(context, "dopd", {"filter": "step=2", "order": "-tokens"})
    rows = [json.loads(line) for line in Path(link.value["path"]).read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 6 and {row["step"] for row in rows} == {2} and "6 answers" in link.label
    assert [row["length"] for row in rows] == sorted((row["length"] for row in rows), reverse=True)


def test_export_of_evaluation_answers_needs_no_traces(context: AppContext, tmp_path: Path) -> None:
    shutil.copytree(context.runs_dir / "dopd", tmp_path / "bare", ignore=shutil.ignore_patterns("traces"))
    bare = AppContext(tmp_path, tmp_path)
    link = answers.export(bare, "bare", {"evaluation": "1", "at_step": "2"})
    rows = [json.loads(line) for line in Path(link.value["path"]).read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 12 and all(row["evaluation"] and row["step"] == 2 and row["confidence"] for row in rows)
    with raises(TraceError, "No tokens are recorded"):
        answers.export(bare, "bare", {})


def test_tokens_evaluation_source_lists_and_opens_its_answers(context: AppContext) -> None:
    """The runs are evaluated on 6 questions in 2 contexts before, during and after training."""
    address = {"evaluation": "1", "at_step": "2", "order": "confidence"}
    drawn = answers.draw(context, "dopd", address)
    assert drawn[SOURCE] == "evaluation" and "of 12 answers" in drawn[WHERE] and drawn[6].value == "confidence"
    assert [box.visible for box in drawn[:5]] == [True, False, True, False, True]
    (first, second, *_) = keys(drawn[LISTED])
    assert first["step"] == second["step"] == 2
    opened = answers.address_of_row(address, second)
    assert opened == {**address, "step": "2", "rollout": str(second["rollout"])}
    card = answers.draw(context, "dopd", opened)
    row = EvaluationAnswers(context.runs_dir / "dopd").get(2, second["rollout"])
    assert row["example_id"] in card[SHOWN] and f"student, given {row['context']}" in card[SHOWN]
    link = html.unescape(re.search(r'href="\?([^"]*)"', card[SHOWN])[1])
    assert parse_qs(link) == {
        **{"run": ["dopd"], "tab": ["data"], "example": [row["example_id"]], "context": [row["context"]]}
    }
    assert "This question over training" in answers.draw_related(context, "dopd", opened)
    assert answers.step_selection(context, "dopd", {**address, **opened}, -1)["rollout"] == str(first["rollout"])
    missing = {**address, "step": "3", "rollout": "0"}
    assert "Step 3 was not evaluated" in answers.draw(context, "dopd", missing)[SHOWN]
    assert answers.draw_related(context, "dopd", missing) == ""


def test_tokens_evaluation_of_run_without_traces_is_listed(context: AppContext) -> None:
    drawn = answers.draw(context, "begun", {"evaluation": "1"})
    assert "evaluation" in drawn[LISTED] and drawn[SHOWN] == ""
