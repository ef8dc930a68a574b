"""The report of a run: one file, nothing from outside, everything in it."""

import re
from pathlib import Path

import pytest
from failures import raises
from small import run_config

from workbench.analysis.report import write_report
from workbench.cli import main
from workbench.errors import ConfigError, RunError
from workbench.training.run import train


@pytest.fixture(scope="module")
def run(models: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train(run_config(models, folder, name="a-run", evaluation__every=2, trace__probes=2))
    return folder / "a-run"


def test_report_has_every_part_and_loads_nothing(run: Path, tmp_path: Path) -> None:
    file = write_report(run, tmp_path / "out.html", answers=3)
    text = file.read_text(encoding="utf-8")
    assert file == tmp_path / "out.html" and not list(tmp_path.glob(".*"))
    for heading in (
        "Accuracy and training",
        "Regimes",
        "Movement",
        "Illusion",
        "Answers token by token",
    ):
        assert f"<h2>{heading}</h2>" in text
    assert text.count('class="wb-root wb-tokens"') == 3 and 'class="wb-root wb-movement"' in text
    assert text.count("plotly.js v") == 1, "once, and not per figure"
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=(?![\"']data:)", text)
    assert "default-src 'none'" in text


def test_report_default_path_is_run_folder(run: Path, tmp_path: Path) -> None:
    assert write_report(run, answers=0, theme="dark") == run / "report.html"
    assert write_report(run, tmp_path, answers=0) == tmp_path / "a-run-report.html"


def test_report_wrong_options_and_runs_raise(run: Path, tmp_path: Path) -> None:
    with raises(ConfigError, "theme"):
        write_report(run, theme="blue")
    with raises(ConfigError, "answers=99"):
        write_report(run, answers=99)
    with raises(RunError, "run folder"):
        write_report(tmp_path / "none")
    with raises(RunError, "--out"):
        write_report(run, tmp_path / "no" / "such" / "folder.html", answers=0)


def test_report_of_begun_run_shows_messages(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: <b>begun</b>\n")
    (tmp_path / "run.json").write_text('{"status": "running", "method": "dopd", "error": "<script>"}')
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "trace.every" in text and "&lt;b&gt;begun" in text and "&lt;script&gt;" in text


def test_report_command_prints_path(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["report", str(run), "--out", str(tmp_path / "r.html"), "--answers", "1"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "r.html") and (tmp_path / "r.html").is_file()
    assert main(["report", str(tmp_path / "none")]) == 2


def test_report_figures_fill_their_width(run: Path, tmp_path: Path, browser) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(write_report(run, tmp_path / "report.html").as_uri())
    widths = """[...document.querySelectorAll('.js-plotly-plot')].map(
        one => Math.abs(one.parentElement.clientWidth - one.querySelector('.main-svg').clientWidth))"""
    for _ in range(50):
        off = page.evaluate(widths)
        if max(off) <= 1:
            break
        page.wait_for_timeout(100)
    assert len(off) > 3 and max(off) <= 1
    page.close()
