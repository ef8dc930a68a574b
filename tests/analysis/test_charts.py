"""Curves of runs: axes, smoothing, seeds, marks and headlines, with values computed by hand."""

import json
import math
import shutil
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import yaml
from failures import raises

from workbench.analysis.charts.curves import Curves, curves, thin
from workbench.analysis.charts.figures import chart_figure, series_style, short_titles
from workbench.analysis.charts.groups import DEFAULT_CHARTS, GROUPS, Chart, charts_of, group_of, not_recorded, title_of
from workbench.analysis.charts.headlines import headlines
from workbench.analysis.charts.recorded import recorded
from workbench.analysis.charts.seeds import each_alone, group_by_seed, mean_and_band, t_quantile
from workbench.analysis.charts.smoothing import parse_smoothing, smooth
from workbench.analysis.runs import unit_of
from workbench.analysis.style import CURVES, SURFACE
from workbench.errors import ConfigError
from workbench.evals.records import EvalRecord, load_records, measure, save_records
from workbench.render.colors import contrast
from workbench.runs.folder import RunFolder
from workbench.traces.reader import open_traces

NAN = float("nan")
LOSS = Chart("loss", "Loss", "optimization", ("loss",))


def write_run(folder: Path, losses: Sequence[float], *, seed: int = 0, **further: Sequence[float]) -> Path:
    """A run with a line of metrics per loss; further metrics by name, with / for __."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"name": folder.name, "seed": seed, "training": {"steps": 4}}))
    (folder / "run.json").write_text("{}")
    for index, loss in enumerate(losses):
        values = {name.replace("__", "/"): column[index] for name, column in further.items()}
        RunFolder(folder).log_metrics("train", index + 1, {"loss": loss, **values})
    return folder


def names_of_traces(figure: dict) -> list[str]:
    return [trace["name"] for trace in figure["data"] if "name" in trace and trace.get("yaxis") != "y2"]


def test_smooth_equals_bias_corrected_average() -> None:
    # (1 - s) x / (1 - s) = 2; (.5 * .5 * 2 + .5 * 4) / .75; the value that is not finite does not count
    assert smooth(np.array([2.0, 4.0, NAN, 0.0]), 0.5).tolist() == pytest.approx(
        [2.0, 10 / 3, NAN, (0.25 * 0.5 * 2 + 0.25 * 4) / 0.875], nan_ok=True
    )
    values = np.random.default_rng(0).normal(size=50)
    assert smooth(values, 0.9).tolist() == pytest.approx(pd.Series(values).ewm(alpha=0.1).mean().tolist())
    assert smooth(values, 0.0).tolist() == values.tolist()


@pytest.mark.parametrize("text", ["1", "-0.1", "nan", "much"])
def test_parse_smoothing_invalid_number_raises(text: str) -> None:
    assert parse_smoothing("") == 0 and parse_smoothing("0.6") == 0.6
    with raises(ConfigError, "smoothing", text):
        parse_smoothing(text)


def test_recorded_table_has_every_number_of_the_file(dopd: Path) -> None:
    run = recorded(dopd)
    assert list(run.frame.columns) == ["step", "metric", "value"]
    prefix = {"train": "", "eval": "eval/", "probe": "probe/"}
    expected = {
        (prefix[line["kind"]] + name, line["step"]): value
        for line in RunFolder(dopd).metrics()
        for name, value in line.items()
        if name not in ("kind", "step")
    }
    values = {(row.metric, row.step): row.value for row in run.frame.itertuples()}
    derived = {key for key in values if key[0].startswith("eval/overconfidence/")}
    assert {key: values[key] for key in values.keys() - derived} == expected and derived
    name = "student/plain/all"
    for _, step in (key for key in derived if key[0].endswith(name)):
        confidence, accuracy = (values[f"eval/{what}/{name}", step] for what in ("confidence", "accuracy"))
        assert values[f"eval/overconfidence/{name}", step] == pytest.approx(confidence - accuracy)


def test_every_recorded_metric_has_a_group(dopd: Path, opd: Path) -> None:
    names = {name for run in (dopd, opd) for name in recorded(run, splits=["domain", "token_type"]).names}
    assert {name for name in names if group_of(name) == "other"} == set()
    assert {group_of(name) for name in names} == set(GROUPS) - {"other"}
    assert group_of("ann/grad_norm") == "optimization" and group_of("eval/accuracy/ann/plain/all") == "quality"
    assert group_of("share/HT/domain=loss") == "supervision" and group_of("of_a_plugin/x") == "other"
    assert unit_of("eval/accuracy/student/plain/all") == "share of questions"
    assert title_of("eval/accuracy/student/plain/all") == "eval: accuracy, student, plain, all"


def test_axes_are_sums_of_tokens_and_hours(tmp_path: Path) -> None:
    seconds = {"seconds__step": [1800.0, 3600.0, 900.0], "seconds__evaluate": [0.0, 900.0, 900.0]}
    run = recorded(write_run(tmp_path / "a", [3, 2, 1], tokens=[10, 20, 30], **seconds))
    steps = pd.Series([0, 1, 2, 3])
    assert run.x(steps, "tokens").tolist() == [0, 10, 30, 60]
    assert run.x(steps, "time").tolist() == [0, 0.5, 1.75, 2.25]
    assert run.x(steps, "step").tolist() == [0, 1, 2, 3]
    with raises(ConfigError, "weeks", "tokens"):
        run.x(steps, "weeks")


def test_curves_axis_that_is_not_recorded_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [3, 2, 1])
    drawn = curves([run], ["loss"], axis="tokens")
    assert drawn.frame.empty
    assert len(drawn.notes) == 1 and "a has no record of" in drawn.notes[0] and "3 of 3 steps" in drawn.notes[0]
    assert len(curves([run], ["loss"], axis="step").frame) == 3


def test_curves_smooth_whole_curve_before_it_is_thinned(tmp_path: Path) -> None:
    losses = np.random.default_rng(1).normal(size=3000)
    run = write_run(tmp_path / "a", losses.tolist())
    part = curves([run], ["loss"], smoothing=0.9).parts["a", "loss"]
    assert part["smoothed"].tolist() == pytest.approx(pd.Series(losses).ewm(alpha=0.1).mean().tolist())
    thinned = thin(part)
    assert len(thinned) <= 1502 and {0, 2999, int(losses.argmin()), int(losses.argmax())} <= set(thinned["step"] - 1)


def test_seeds_group_runs_that_differ_in_nothing_else(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"demo-s{seed}", [seed], seed=seed) for seed in range(3)]
    other = write_run(tmp_path / "other", [1], seed=7)
    (other / "config.yaml").write_text("name: other\nseed: 7\ntraining: {steps: 5}\n")
    bare = write_run(tmp_path / "bare", [1])
    (bare / "config.yaml").unlink()
    groups = group_by_seed([runs[0], other, runs[1], bare, runs[2]])
    assert [(item.name, len(item.runs)) for item in groups] == [("demo (3 seeds)", 3), ("other", 1), ("bare", 1)]
    assert [item.name for item in each_alone(runs)] == ["demo-s0", "demo-s1", "demo-s2"]


def test_mean_and_band_values_are_those_by_hand() -> None:
    frames = [
        pd.DataFrame({"step": [1, 2, 3][:size], "x": [1.0, 2.0, 3.0][:size], "value": values, "smoothed": values})
        for size, values in ((3, [1.0, 4.0, 9.0]), (2, [3.0, NAN]), (3, [5.0, 6.0, 9.0]))
    ]
    low_high = mean_and_band(frames, "range")
    assert low_high["step"].tolist() == [1, 2], "the steps that all have"
    assert low_high["smoothed"].tolist() == [3.0, 5.0] and low_high["count"].tolist() == [3, 2]
    assert low_high["low"].tolist() == [1.0, 4.0] and low_high["high"].tolist() == [5.0, 6.0]
    interval = mean_and_band(frames, "interval")
    # values 1, 3, 5: standard deviation 2, t of 2 degrees of freedom 4.3027; values 4, 6: sqrt(2) and 12.7062
    assert (interval["high"] - interval["smoothed"]).tolist() == pytest.approx(
        [4.3027 * 2 / math.sqrt(3), 12.7062 * math.sqrt(2) / math.sqrt(2)]
    )
    alone = mean_and_band(frames[:1], "interval")
    assert alone["low"].isna().all(), "one value has no interval"


def test_t_quantile_equals_published_table() -> None:
    for freedom, quantile in ((1, 12.706), (2, 4.303), (10, 2.228), (11, 2.201), (20, 2.086), (60, 2.000)):
        assert t_quantile(freedom) == pytest.approx(quantile, abs=1.5e-3)
    assert math.isnan(t_quantile(0))


def test_curves_of_seeds_say_which_steps_are_missing(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"r-{size}", [1.0] * size, seed=size) for size in (4, 2)]
    drawn = curves(runs, ["loss"], seeds="range")
    assert drawn.notes == ("r (2 seeds): means of the 2 steps that all seeds have; the longest has 4.",)
    figure = chart_figure(drawn, LOSS)
    assert names_of_traces(figure) == ["r (2 seeds)"]
    assert "lowest to highest" in figure["data"][2]["hovertemplate"] and figure["data"][1]["fill"] == "tonexty"
    with raises(ConfigError, "median", "range"):
        curves(runs, ["loss"], seeds="median")


def test_marks_name_checkpoints_evaluations_and_broken_values(dopd: Path, tmp_path: Path) -> None:
    marks = curves([dopd], ["loss"]).marks["dopd"]
    steps = {kind: marks.loc[marks["kind"] == kind, "step"].tolist() for kind in ("checkpoint", "evaluation")}
    assert steps == {"checkpoint": [2, 4], "evaluation": [0, 2, 4]}
    run = write_run(tmp_path / "a", [1.0, NAN, 2.0, math.inf], accuracy=[0.0, 1.0, 1.0, NAN])
    figure = chart_figure(curves([run], ["loss", "accuracy"]), LOSS)
    (broken,) = [trace for trace in figure["data"] if trace["name"] == "not finite"]
    assert broken["x"] == [2, 4] and broken["yaxis"] == "y2"
    assert figure["layout"]["meta"]["notes"] == ["a: not finite at 2 steps, the first 2."]
    assert figure["data"][0]["y"] == [1.0, None, 2.0, None], "JSON has no number that is not finite"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_chart_figures_of_several_runs_are_valid_plotly(dopd: Path, opd: Path, theme: str) -> None:
    runs = [dopd, opd]
    charts = charts_of([name for run in runs for name in recorded(run).names])
    assert {chart.name for chart in charts} >= {"loss", "seconds", "eval-accuracy", "tokens-per-second", "gaps"}
    names = [name for chart in charts for name in chart.metrics_for(2)]
    drawn = curves(runs, names, axis="tokens", smoothing=0.6)
    for chart in charts:
        figure = json.loads(json.dumps(chart_figure(drawn, chart, theme=theme)))
        valid = go.Figure(figure)
        assert valid.layout.hovermode == "x unified" and valid.layout.xaxis.title.text == "answer tokens trained on"
        assert valid.layout.meta["title"] == chart.title and chart.title in valid.layout.title.text
        assert len(valid.layout.meta["legend"]) == len(names_of_traces(figure)) >= 1
        colors = {entry["color"] for entry in valid.layout.meta["legend"] if entry["label"].startswith("opd")}
        assert colors <= {CURVES[theme][1]}, "one color per run in every chart"


def test_chart_figure_values_equal_metrics_and_link_steps(dopd: Path) -> None:
    figure = chart_figure(curves([dopd], ["loss"], axis="time"), LOSS)
    lines = RunFolder(dopd).metrics("train")
    trace = figure["data"][0]
    assert trace["y"] == [line["loss"] for line in lines] and [point[0] for point in trace["customdata"]] == [
        1,
        2,
        3,
        4,
    ]
    hours = np.cumsum(
        [
            line["seconds/step"] + sum(line.get(f"seconds/{part}", 0) for part in ("probe", "evaluate", "save"))
            for line in lines
        ]
    )
    assert trace["x"] == pytest.approx((hours / 3600).tolist())


def test_chart_figure_log_axis_counts_what_it_cannot_show(tmp_path: Path) -> None:
    figure = chart_figure(curves([write_run(tmp_path / "a", [1.0, 0.0, -1.0])], ["loss"]), LOSS, log=True)
    assert figure["layout"]["yaxis"]["type"] == "log" and figure["data"][0]["y"] == [1.0, None, None]
    assert "2 of 3 values are not above zero" in figure["layout"]["meta"]["notes"][0]


def test_chart_figure_constant_values_start_at_zero(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [1e-4, 1e-4])
    assert chart_figure(curves([run], ["loss"]), LOSS)["layout"]["yaxis"]["rangemode"] == "tozero"
    run = write_run(tmp_path / "b", [1e-4, 2e-4])
    assert "rangemode" not in chart_figure(curves([run], ["loss"]), LOSS)["layout"]["yaxis"]


def test_charts_of_chosen_metrics_are_one_each_by_group(dopd: Path) -> None:
    names = recorded(dopd).names
    charts = charts_of(names, ["seconds/learn", "accuracy", "share/HT"])
    assert [(chart.group, chart.metrics) for chart in charts] == [
        ("quality", ("accuracy",)),
        ("supervision", ("share/HT",)),
        ("speed", ("seconds/learn",)),
    ]
    assert not {chart.group for chart in DEFAULT_CHARTS} - set(GROUPS)


def test_charts_of_run_with_peers_draw_every_learner() -> None:
    names = ["loss", "ann/loss", "probe/loss", "eval/accuracy/student/plain/all", "eval/accuracy/ann/plain/all"]
    charts = {chart.name: chart for chart in charts_of(names)}
    assert charts["loss"].metrics == ("loss", "ann/loss")
    assert charts["eval-accuracy"].metrics[-1] == "eval/accuracy/ann/plain/all"
    assert short_titles(charts["loss"].metrics) == {"loss": "loss", "ann/loss": "ann: loss"}
    assert "Gradient norm" in not_recorded(names) and "Loss" not in not_recorded(names)


def test_curves_by_domain_equal_evaluations_and_traces(dopd: Path) -> None:
    run = recorded(dopd, splits=["domain", "token_type"])
    records = [record for record in load_records(dopd) if (record.policy, record.context) == ("student", "plain")]
    domain = records[0].domain
    chosen = run.frame[run.frame["metric"] == f"eval/accuracy/student/plain/domain={domain}"]
    for row in chosen.itertuples():
        part = measure(record for record in records if record.domain == domain and record.step == row.step)
        assert row.value == pytest.approx(part.accuracy)
    assert chosen["step"].tolist() == [0, 2, 4]
    expected = open_traces(dopd).sql(
        """SELECT avg(CAST(regimes.target = 'teacher' AS INT)) AS share FROM tokens JOIN regimes USING (regime)
           WHERE step = 3 AND token_type = 'template'"""
    )["share"][0]
    metric = "supervised_by/teacher/token_type=template"
    (value,) = run.frame.loc[(run.frame["metric"] == metric) & (run.frame["step"] == 3), "value"]
    assert value == pytest.approx(expected.as_py())
    titles = {chart.title for chart in charts_of(run.names, split="token_type")}
    assert "Tokens that the teacher supervises, by token type" in titles
    assert not any("by token type" in chart.title for chart in charts_of(run.names, split="domain"))


def record(step: int, example: str, visibility: str | None, reward: float, confidence: float) -> EvalRecord:
    return EvalRecord(step, "student", "plain", example, "d", visibility, "a", "t", reward, confidence, 3, True)


def test_headlines_hold_paired_intervals(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [2.0, 1.0], tokens_per_second=[100.0, 300.0])
    for step, rewards in ((0, (0, 0, 1, 1)), (2, (1, 1, 1, 0))):
        rows = [record(step, f"v{idx}", "visible", float(reward), 0.5) for idx, reward in enumerate(rewards)]
        save_records(run, step, [*rows, record(step, "p", "privileged", 0.0, 0.25 + step / 4)])
    visible, privileged, confidence, loss, speed = headlines(run)
    # changes 1, 1, 0, -1: mean 0.25, standard deviation 0.957, margin 1.96 * 0.957 / 2 = 0.938
    assert (visible.value, visible.change) == ("75.0%", "+25.0 pp [−68.8, +118.8]")
    assert visible.note == "4 questions that the image answers, steps 0 to 2"
    assert (privileged.value, privileged.change) == ("0.0%", ""), "one question has no interval"
    assert (confidence.title, confidence.value) == ("Over-confidence", "+75.0 pp")
    assert (loss.value, loss.change, speed.value) == ("1", "from 2", "200")
    assert headlines(write_run(tmp_path / "b", [])) == []


def simulated(color: str, matrix: list[list[float]]) -> np.ndarray:
    """CIELAB of a color as seen with a color deficiency (Machado et al. 2009, severity 1, linear RGB)."""
    values = np.array([int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(matrix) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen
    ratio = xyz / np.array([0.9505, 1.0, 1.089])
    root = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_series_colors_differ_for_color_blind_readers(theme: str) -> None:
    deficiencies = {
        "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        "protanopia": [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        "deuteranopia": [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.01182, 0.04294, 0.968881],
        ],
        "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
    }
    styles = [series_style(theme, number) for number in range(24)]
    assert len(set(styles)) == 24, "each color again with another dash"
    assert all(contrast(color, SURFACE[theme]) >= 3 for color, _ in styles)
    for name, matrix in deficiencies.items():
        seen = [simulated(color, matrix) for color, _ in styles[:6]]
        closest = min(
            (float(np.linalg.norm(seen[a] - seen[b])), styles[a], styles[b]) for a, b in combinations(range(6), 2)
        )
        assert closest[0] > 30, (name, closest)


def test_curves_of_run_without_metrics_are_empty(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "dopd", tmp_path / "dopd")
    (tmp_path / "dopd" / "metrics.jsonl").unlink()
    drawn = curves([tmp_path / "dopd"], ["loss"])
    assert isinstance(drawn, Curves) and drawn.frame.empty
    assert chart_figure(drawn, LOSS)["layout"]["meta"]["notes"] == ["The ticked runs have not recorded this yet."]


def test_chart_title_of_long_unit_has_lines_that_fit_its_height(dopd: Path) -> None:
    """At 12 pixels a letter takes some six, so that thirty fit the 180 pixels beside the axis."""
    name = "eval/overconfidence/student/plain/all"
    unit = unit_of(name)
    assert unit == "confidence minus accuracy, share"
    figure = chart_figure(curves([dopd], [name]), Chart("over", "Over-confidence", "quality", (name,)))
    assert figure["layout"]["yaxis"]["title"]["text"].split("<br>") == ["confidence minus accuracy,", "share"]
