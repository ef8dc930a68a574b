"""Groups of metrics, and the charts that are drawn by default.

A metric of training has its name in metrics.jsonl. Those of evaluations and probes start with `eval/` and `probe/`,
those of a peer with the peer's name.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

EVAL, PROBE = "eval/", "probe/"
GROUPS = ("quality", "supervision", "optimization", "speed", "other")
PARTS = ("sample", "score", "learn", "update", "trace", "probe", "evaluate", "save")
_BY_NAME = {
    "quality": (
        "accuracy",
        "completion_length",
        "truncated",
        "duplicate_rate",
        "distinct_tokens",
        "entropy",
        "thinking",
        "unfinished_thinking",
        "annotation",
        "confidence",
        "calibration_error",
        "length",
        "overconfidence",
    ),
    "supervision": (
        "share",
        "loss_share",
        "teacher_share",
        "supervised",
        "supervised_by",
        "capability_gap",
        "information_gap",
        "abs_capability_gap",
        "abs_information_gap",
        "total_gap",
        "threshold",
        "advantage",
        "dataset_share",
    ),
    "optimization": (
        "loss",
        "grad_norm",
        "learning_rate",
        "updated_weight_fraction",
        "sampler_logprob_gap",
        "sampler_lag",
        "ratio",
    ),
    "speed": ("tokens", "tokens_per_second", "padding_share", "oversized_passes", "seconds", "skipped_total"),
}
_GROUP_OF = {name: group for group, names in _BY_NAME.items() for name in names}


@dataclass(frozen=True)
class Chart:
    """One chart.

    name     its key in the page's address and in file names
    several  its metrics if several series are drawn; default: all of them
    """

    name: str
    title: str
    group: str
    metrics: tuple[str, ...]
    several: tuple[str, ...] = ()

    def metrics_for(self, num_series: int) -> tuple[str, ...]:
        """The metrics that are drawn of this number of series: fewer of several, so that the legend fits."""
        return self.several if self.several and num_series > 1 else self.metrics


DEFAULT_CHARTS = (
    Chart(
        "eval-accuracy",
        "Accuracy of evaluations",
        "quality",
        (
            f"{EVAL}accuracy/student/plain/visible",
            f"{EVAL}accuracy/student/plain/privileged",
            f"{EVAL}accuracy/student/plain/all",
        ),
        (f"{EVAL}accuracy/student/plain/visible", f"{EVAL}accuracy/student/plain/privileged"),
    ),
    Chart(
        "overconfidence",
        "Over-confidence of evaluations",
        "quality",
        (
            f"{EVAL}overconfidence/student/plain/visible",
            f"{EVAL}overconfidence/student/plain/privileged",
        ),
    ),
    Chart("accuracy", "Accuracy of training answers", "quality", ("accuracy",)),
    Chart("entropy", "Student entropy", "quality", ("entropy",)),
    Chart("length", "Answer length", "quality", ("completion_length",)),
    Chart("truncated", "Truncated and duplicate answers", "quality", ("truncated", "duplicate_rate")),
    Chart(
        "gaps",
        "Capability and information gap, mean size",
        "supervision",
        ("abs_capability_gap", "abs_information_gap"),
    ),
    Chart("teacher-share", "Tokens that the teacher supervises", "supervision", ("teacher_share",)),
    Chart("loss", "Loss", "optimization", ("loss",)),
    Chart("grad-norm", "Gradient norm", "optimization", ("grad_norm",)),
    Chart("learning-rate", "Learning rate", "optimization", ("learning_rate",)),
    Chart("tokens-per-second", "Answer tokens per second", "speed", ("tokens_per_second",)),
    Chart(
        "seconds",
        "Seconds per part of a step",
        "speed",
        tuple(f"seconds/{part}" for part in PARTS),
        ("seconds/step",),
    ),
    Chart("padding", "Padding in passes", "speed", ("padding_share",)),
)


def group_of(metric: str) -> str:
    """The group of a metric; "other" for one of an unknown name."""
    parts = metric.split("/")
    return next((_GROUP_OF[part] for part in parts if part in _GROUP_OF), "other")


def charts_of(recorded: Sequence[str], chosen: Sequence[str] = (), split: str = "") -> list[Chart]:
    """The charts to draw, by group: those of DEFAULT_CHARTS with a recorded metric, or one for each chosen metric.

    split  domain, token_type or visibility: add the charts of the recorded metrics by it
    """
    if not chosen:
        charts = [_with_peers(chart, recorded) for chart in DEFAULT_CHARTS]
        charts = [chart for chart in charts if set(chart.metrics) & set(recorded)]
        return sorted(charts + _split_charts(recorded, split), key=lambda chart: GROUPS.index(chart.group))
    charts = [Chart(name.replace("/", "-"), title_of(name), group_of(name), (name,)) for name in chosen]
    return sorted(charts, key=lambda chart: GROUPS.index(chart.group))


def _with_peers(chart: Chart, recorded: Sequence[str]) -> Chart:
    """The chart with the same metrics of the peers that learn in the same run: "ann/loss" beside "loss"."""
    peers = [name.partition("/")[0] for name in recorded if name.endswith("/loss") and not name.startswith(PROBE)]

    def widened(names: tuple[str, ...]) -> tuple[str, ...]:
        of_peers = [
            name.replace("/student/", f"/{peer}/", 1) if name.startswith(EVAL) else f"{peer}/{name}"
            for peer in dict.fromkeys(peers)
            for name in names
        ]
        return (*names, *(name for name in of_peers if name in recorded))

    return replace(chart, metrics=widened(chart.metrics), several=widened(chart.several)) if peers else chart


def not_recorded(recorded: Sequence[str]) -> list[str]:
    """Titles of the default charts of which no metric is recorded."""
    drawn = {chart.name for chart in charts_of(recorded)}
    return [chart.title for chart in DEFAULT_CHARTS if chart.name not in drawn]


def _split_charts(recorded: Sequence[str], split: str) -> list[Chart]:
    """Charts by domain, token type or visibility, a curve for each of its values; none without `split`."""
    charts = []
    words = split.replace("_", " ")
    for title, prefix, group in (
        ("Accuracy of evaluations", f"{EVAL}accuracy/student/plain", "quality"),
        ("Tokens that the teacher supervises", "supervised_by/teacher", "supervision"),
        ("Tokens that the privileged student supervises", "supervised_by/self", "supervision"),
    ):
        names = tuple(name for name in recorded if split and name.startswith(f"{prefix}/{split}="))
        if names:
            charts.append(Chart(f"{prefix}-{split}".replace("/", "-"), f"{title}, by {words}", group, names))
    return charts


def title_of(metric: str) -> str:
    """A metric's name in words: "eval: accuracy, student, plain, visible"."""
    head, _, rest = metric.partition("/")
    words = [part.replace("_", " ") for part in rest.split("/") if part]
    return ": ".join(filter(None, (head.replace("_", " "), ", ".join(words))))
