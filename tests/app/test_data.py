"""The tab of examples and of an own image: what is drawn, what is refused, what is scored."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from failures import raises
from PIL import Image
from small import run_config
from test_answers import keys

from workbench.app.context import AppContext
from workbench.app.scoring import SCORER, check_evidence
from workbench.app.tabs import data
from workbench.app.what_if import AWAY, EDIT, SWAP
from workbench.data.examples import load_examples
from workbench.errors import ConfigError, DataError, RunError, WorkbenchError
from workbench.training import scorer

CHOOSER, LISTED, SHOWN = range(3)
NASTY = '<script>alert(1)</script> & "עברית" 🙂'


@pytest.fixture
def picture(tmp_path: Path) -> str:
    Image.new("RGB", (60, 40), (200, 30, 30)).save(tmp_path / "own.png")
    return str(tmp_path / "own.png")


def test_data_run_examples_listed_first_drawn_with_evidence(context: AppContext) -> None:
    drawn = data.draw(context, "dopd", {}, None)
    assert drawn[CHOOSER].value == "scenes:eval?count=6" and len(keys(drawn[LISTED])) == 6
    assert drawn[SHOWN].count("<figure") == 2 and 'class="wb-box"' in drawn[SHOWN] and ">crop<" in drawn[SHOWN]
    assert "<mark>" in drawn[SHOWN], "what a context adds to the question is marked"


def test_data_address_chooses_example(context: AppContext) -> None:
    last = keys(data.draw(context, "dopd", {}, None)[LISTED])[-1]["id"]
    drawn = data.draw(context, "dopd", {"example": last}, None)
    chosen = keys(drawn[LISTED].split('aria-selected="true"')[0])[-1]
    assert chosen == {"id": last}


def test_data_prompts_of_example_have_tokens_of_each_view(context: AppContext) -> None:
    """An image of the small models costs 12 tokens, and the privileged views also see the crop."""
    drawn = data.prompts_of_listed(context, "dopd", {}, None)
    cells = [re.findall(r"<td[^>]*>(?:<div[^>]*>)?([^<]*)", row) for row in drawn.split("<tr")[2:]]
    assert [(view, images, count) for view, _, _, _, images, count in cells] == [
        ("student", "12", "1"),
        ("self", "24", "2"),
        ("teacher", "24", "2"),
    ]
    assert drawn.count("<details>") == 3 and "&lt;image&gt;[x 9]" in drawn


def test_data_source_changed_is_reloaded_and_escaped(context: AppContext, picture: str) -> None:
    file = context.runs_dir / "own.jsonl"
    row = {
        "question": NASTY,
        "images": [picture],
        "answer": NASTY,
        "caption": NASTY,
        "boxes": [{"x0": 1, "y0": 1, "x1": 9, "y1": 9, "label": NASTY}],
    }
    file.write_text(json.dumps(row) + "\n")
    assert "--allow-dir FOLDER" in data.draw(context, "dopd", {}, str(file), is_typed=True)[LISTED]
    context = replace(context, folders=(Path(picture).parent,))
    drawn = data.draw(context, "dopd", {}, str(file))
    assert "<script" not in drawn[LISTED] + drawn[SHOWN] and "🙂" in drawn[SHOWN] and len(keys(drawn[LISTED])) == 1
    file.write_text((json.dumps(row) + "\n") * 3)
    assert len(keys(data.draw(context, "dopd", {}, str(file))[LISTED])) == 3
    file.unlink()


def test_data_source_outside_runs_folder_is_refused(context: AppContext, tmp_path: Path) -> None:
    file = tmp_path / "secret.jsonl"
    file.write_text(json.dumps({"question": "a secret"}) + "\n")
    (link := context.runs_dir / "link.jsonl").symlink_to(file)
    for source in (file, link, context.runs_dir / ".." / ".." / "etc" / "passwd"):
        drawn = data.draw(context, "dopd", {}, str(source), is_typed=True)
        assert "is not allowed here" in drawn[LISTED] and "a secret" not in "".join(map(str, drawn))
        assert data.draw(context, "dopd", {}, str(source))[CHOOSER].value == "scenes:eval?count=6", "of another run"
        with raises(DataError, "not allowed here"):
            data.score_listed(context, "dopd", {}, str(source), None)
    link.unlink()


@pytest.mark.parametrize("source", ["no/such.jsonl", "scenes:nowhere", "hf:"])
def test_data_source_unreadable_shows_message(context: AppContext, source: str) -> None:
    assert "wbu-empty" in data.draw(context, "dopd", {}, source, is_typed=True)[LISTED]


def test_data_read_only_lists_examples_and_scores_nothing(runs: Path, tmp_path: Path, picture: str) -> None:
    locked = AppContext(runs, runs, read_only=True)
    assert data.draw(locked, "dopd", {}, str(tmp_path / "other.jsonl"))[CHOOSER].value == "scenes:eval?count=6"
    with raises(RunError, "read-only"):
        data.score_own(locked, "dopd", picture, "what?", "", "", "", "", "")
    with raises(RunError, "read-only"):
        data.score_listed(locked, "dopd", {}, None, "")


def test_parse_boxes_invalid_line_names_line() -> None:
    boxes = data.parse_boxes("1 2 30 20 red door\n\n 0, 0, 60, 40", (60, 40))
    assert [(box.x0, box.y1, box.label) for box in boxes] == [(1, 20, "red door"), (0, 40, "")]
    for text, output in (
        ("1 2 3", "line 1"),
        ("\n5 5 5 9", "line 2"),
        ("0 0 61 40", "60 x 40"),
        ("30 0 20 20", "wrong order"),
        ("nan 0 1 1", "line 1"),
        ("a b c d", "Expected x0"),
    ):
        with pytest.raises(DataError, match=output):
            data.parse_boxes(text, (60, 40))


def test_with_box_drawn_fraction_appends_pixel_line(picture: str) -> None:
    lines = data.with_box(picture, "1 2 3 4 door", {"x0": 0.5, "y0": -0.2, "x1": 1.3, "y1": 0.5})
    assert lines == "1 2 3 4 door\n30 0 60 20 region" and "wb-box" in data.preview(picture, lines)
    wrong = data.preview(picture, "1 2 3")
    assert "app-error" in wrong and "wb-picture" in wrong, "the picture helps to correct the line"


def test_upload_invalid_or_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: str) -> None:
    torn = tmp_path / "torn.png"
    torn.write_bytes(Path(picture).read_bytes()[:60])
    text = tmp_path / "text.png"
    text.write_text("<script>")
    for file in (torn, text):
        assert "app-error" in data.preview(str(file), "")
        with raises(DataError, "cannot be read") as raised:
            data.own_example(str(file), "what?", "", "", "", "")
        assert (
            file.name in str(raised.value) and str(tmp_path) not in str(raised.value) and "row" not in str(raised.value)
        )
    monkeypatch.setattr(data, "MAX_UPLOAD_MB", 0)
    with raises(DataError, "at most"):
        data.open_upload(picture)
    with raises(DataError, "image is missing"):
        data.open_upload(None)


def test_score_ended_run_without_checkpoint_names_remedy(runs: Path) -> None:
    [example] = load_examples("scenes:eval?count=1")
    with raises(RunError, "run begun has no checkpoint. Choose a run that has one."):
        SCORER.score(runs / "begun", example, "at top left")


def test_own_image_empty_question_raises(picture: str) -> None:
    with raises(DataError, "question is empty"):
        data.own_example(picture, "  ", "", "", "", "")


def test_own_image_scored_twice_reuses_scorer(context: AppContext, picture: str) -> None:
    displayed = data.score_own(context, "dopd", picture, "what is it?", "", "", "", "5 5 30 30 thing", "at top left")
    assert "wb-tokens" in displayed and "your image" in displayed and "checkpoint of step 4" in displayed
    first = data.SCORER._scorer
    data.score_listed(context, "dopd", {}, None, "at top left")
    assert data.SCORER._scorer is first, "the same run's policies are used again"
    with raises(DataError, "boxes: missing", "self (crop)", "teacher (crop)"):
        data.score_own(context, "dopd", picture, "what is it?", "", "", "", "", "at top left")
    data.score_listed(context, "opd", {}, None, "")
    assert data.SCORER._scorer is not first


@pytest.mark.parametrize(
    ("method", "output"),
    [
        (
            "opsd",
            r"answer: missing; this run shows it to self \(answer\)\. Fill in the right answer\. Then score again",
        ),
        ("sdft", "cannot have reference"),
    ],
)
def test_own_image_missing_evidence_names_field(models: dict, picture: str, method: str, output: str) -> None:
    config = run_config(models, "runs", method={"name": method})
    with pytest.raises(DataError, match=output):
        check_evidence(config, data.own_example(picture, "what?", "", "", "", ""))


def test_score_own_run_without_checkpoint_raises(context: AppContext, runs: Path, tmp_path: Path, picture: str) -> None:
    with raises(RunError, "checkpoint"):
        data.score_own(context, "begun", picture, "what?", "", "", "", "", "")


def test_score_own_run_with_remote_code_raises(
    context: AppContext, tmp_path: Path, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(context.runs_dir / "opd", tmp_path / "opd")
    config = tmp_path / "opd" / "config.yaml"
    assert "trust_remote_code: false" in config.read_text()
    config.write_text(config.read_text().replace("trust_remote_code: false", "trust_remote_code: true"))
    monkeypatch.setattr(scorer, "open_scorer", lambda run_dir: pytest.fail("the model was loaded"))
    with raises(ConfigError, "models.trust_remote_code=true"):
        data.score_own(AppContext(tmp_path, tmp_path), "opd", picture, "What is it?", "", "", "", "", "a")


def test_score_listed_example_not_in_source_raises(context: AppContext) -> None:
    with raises(DataError, "no-such-id"):
        data.score_listed(context, "dopd", {"example": "no-such-id"}, None, "at top left")


def test_what_if_changes_are_compared_token_by_token(context: AppContext) -> None:
    def compare(*change: object) -> str:
        return data.compare_listed(context, "dopd", {}, None, "at top left", *change)

    away = compare(AWAY, "", 1, "")
    assert "without the evidence" in away and "log-prob of the answer, teacher" in away
    assert away.count('<span class="wbu-pair') == len(
        SCORER.compare(context.run_dir("dopd"), *listed(context), ())[0].tokens
    )
    assert "evidence of another example" in compare(SWAP, "", 1, "")
    edited = compare(EDIT, "", 2, "<b>right</b>")
    assert "wbu-edited" in edited and "<b>right" not in edited
    for change, named in (
        ((SWAP, "gone", 1, ""), "gone"),
        ((EDIT, "", None, ""), "token"),
        ((EDIT, "", 99, "a"), "1 to "),
    ):
        with raises(WorkbenchError, named):
            compare(*change)
    with raises(DataError, "no view of opd"):
        data.compare_listed(context, "opd", {}, None, "at top left", AWAY, "", 1, "")


def listed(context: AppContext) -> tuple:
    return data.listed_example(context, "dopd", {}, None)[0], "at top left"
