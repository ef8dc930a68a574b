"""Measures of a run, and comparisons of variants.

    Arm         a variant, the student before training or a teacher, with answers as arrays (seeds, questions)
    values_of   one number per arm, seed, data, context, visibility and measure
    compare     means over seeds, and differences to the baseline and to the student before training, with paired
                intervals and a verdict

Over-confidence is mean confidence minus accuracy. Gap recovered is (accuracy - untrained) /
(teacher on plain - untrained) on visible questions, as the 89.8 % and 53.0 % of arXiv 2606.30626, section 4.2. It is
empty where the teacher is not clearly better.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from workbench.evals.records import NUM_BINS
from workbench.studies.bootstrap import NUM_REPLICATES, interval, over_questions, over_seeds, seed_key, weights
from workbench.studies.plan import UNTRAINED
from workbench.traces.reader import NoTraces, open_traces
from workbench.types import PRIVILEGED, VISIBLE

TRAINING = "training"  # value of `data` for measures taken from the trace
GAP_RECOVERED = "gap_recovered"
OF_DOMAIN = " questions"  # suffix of a domain's name in `visibility`, for accuracy by domain
_LINEAR = ("accuracy", "confidence", "entropy", "length", "truncated")


@dataclass(frozen=True)
class Measure:
    """A measure. better: 1 = higher is better, -1 = lower is better, 0 = neither."""

    label: str
    better: int
    unit: str = ""  # "%": a fraction, shown in percent
    digits: int = 1


MEASURES = {
    "accuracy": Measure("accuracy", 1, "%"),
    GAP_RECOVERED: Measure("gap to the teacher recovered", 1, "%", 0),
    "confidence": Measure("confidence", 0, "%"),
    "overconfidence": Measure("over-confidence", -1, "%"),
    "calibration_error": Measure("calibration error", -1, "%"),
    "entropy": Measure("entropy", 0, "nats per token", 3),
    "length": Measure("length", 0, "tokens", 2),
    "truncated": Measure("truncated", -1, "%"),
    "repaired": Measure("wrong before training and right after", 1, "%"),
    "broken": Measure("right before training and wrong after", -1, "%"),
    "information_loss_share": Measure("information-dominated loss", 0, "%"),
}
_NOTHING = 1e-9  # largest difference that rounding alone can make
_SHOWN = 5e-4  # an interval with both ends nearer to zero is printed as zero
_FROM_ANSWERS = ("accuracy", "confidence", "overconfidence", "calibration_error", "entropy", "length", "truncated")


def measure_of(name: str) -> Measure:
    """Look up a measure. Names that are not in MEASURES are shares of a method's regimes."""
    return MEASURES.get(name) or Measure(name.replace("/", " ").replace("_", " "), 0, "%")


@dataclass
class Arm:
    """A row of every table: a variant, the student before training, or a teacher.

    kind       "variant", "student" or "teacher"
    seeds      finished seeds; of an untrained model, a single seed that stands for all
    answers    (data, context) -> column -> (seeds, questions); all arms have the same questions in the same order
    trace      measure -> (seeds,), nan where a run has no trace
    untrained  name of an arm; its gap is measured from that arm to the arm `teacher`
    """

    name: str
    kind: str
    seeds: tuple[int, ...]
    answers: dict[tuple[str, str], dict[str, np.ndarray]] = field(default_factory=dict)
    trace: dict[str, np.ndarray] = field(default_factory=dict)
    untrained: str = UNTRAINED
    teacher: str | None = None


@dataclass(frozen=True)
class Value:
    """One measured number of one run."""

    variant: str
    seed: int | None
    data: str
    context: str | None
    policy: str
    visibility: str
    measure: str
    value: float
    count: int


@dataclass(frozen=True)
class Comparison:
    """Mean of an arm over seeds, or its difference to another arm, with a 95 % interval.

    visibility  visible, privileged or all; or a domain's name and "questions"
    against     the other arm; None = the mean of the arm itself
    verdict     better, worse, higher, lower or not distinguishable; "" for a mean
    num_seeds   number of seeds that both arms have
    """

    variant: str
    against: str | None
    data: str
    context: str | None
    policy: str
    visibility: str
    measure: str
    value: float
    low: float
    high: float
    num_seeds: int
    count: int
    verdict: str


def values_of(arms: list[Arm]) -> list[Value]:
    """Compute every measure of every run; measures of questions also by visibility."""
    values = []
    for group in _groups(arms):
        for arm in group.arms:
            for name, per_seed in group.points(arm).items():
                for seed, value in zip(arm.seeds, per_seed, strict=True):
                    if not np.isnan(value):
                        values.append(
                            Value(
                                arm.name,
                                seed if arm.kind == "variant" else None,
                                group.data,
                                group.context,
                                _policy(arm),
                                group.visibility,
                                name,
                                float(value),
                                group.count,
                            )
                        )
    return values


def compare(arms: list[Arm], baseline: str, *, num_replicates: int = NUM_REPLICATES, seed: int = 0) -> list[Comparison]:
    """Compute each arm's mean and its differences to the baseline and to the student before training.

    Intervals are those of workbench.studies.bootstrap.
    """
    comparisons = []
    for group in _groups(arms):
        replicas = {arm.name: group.replicates(arm, num_replicates, seed) for arm in group.arms}
        points = {arm.name: group.points(arm) for arm in group.arms}
        by_name = {arm.name: arm for arm in group.arms}
        for arm in group.arms:
            others = [None, *dict.fromkeys((baseline, arm.untrained))]
            for other in others:
                if other == arm.name or (other is not None and (other not in by_name or arm.kind == "teacher")):
                    continue
                comparisons += _compared(group, arm, by_name.get(other), points, replicas, num_replicates, seed)
    return comparisons


def verdict(measure: str, low: float, high: float) -> str:
    """Turn the interval of a difference into words. An interval that contains zero is "not distinguishable"."""
    if not (low > _NOTHING or high < -_NOTHING) or max(abs(low), abs(high)) < _SHOWN:
        return "not distinguishable"
    rises = low > 0.0
    better = measure_of(measure).better
    if better == 0:
        return "higher" if rises else "lower"
    return "better" if rises == (better > 0) else "worse"


def measured_in_trace(run_dir: Path) -> dict[str, float] | None:
    """Compute measures of a run's trace; None if it has none.

    They are the token share of each regime in the first and the last third of steps, and the share of absolute loss at
    positions where the information gap is the larger one.
    """
    try:
        traces = open_traces(run_dir)
    except NoTraces:
        return None
    query = """
        WITH bounds AS (SELECT min(step) AS low, max(step) AS high FROM aggregates),
        thirds AS (
            SELECT regime, num_positions, CASE WHEN step <= low + (high - low) / 3.0 THEN 'first third'
                   WHEN step >= high - (high - low) / 3.0 THEN 'last third' END AS third
            FROM aggregates CROSS JOIN bounds),
        counted AS (
            SELECT third, regime, sum(num_positions) AS n FROM thirds WHERE third IS NOT NULL GROUP BY third, regime)
        SELECT third, regime, n / sum(n) OVER (PARTITION BY third) AS share FROM counted ORDER BY third, regime"""
    shares = {f"{row['regime']}/{row['third']}": float(row["share"]) for row in traces.sql(query).to_pylist()}
    names = [f"{regime}/{third}" for regime in traces.regimes for third in ("first third", "last third")]
    shares = {name: shares.get(name, 0.0) for name in names} if len(traces.regimes) > 1 else {}
    share = traces.sql(
        """SELECT sum(abs(contribution)) FILTER (abs(information_gap) > abs(capability_gap))
                  / nullif(sum(abs(contribution)), 0) AS share
           FROM tokens WHERE information_gap IS NOT NULL AND capability_gap IS NOT NULL"""
    ).to_pylist()[0]["share"]
    if share is not None:
        shares["information_loss_share"] = float(share)
    return shares


def _compared(
    group: "_Group",
    arm: Arm,
    other: Arm | None,
    points: dict[str, dict[str, np.ndarray]],
    replicas: dict[str, dict[str, np.ndarray]],
    num_replicates: int,
    seed: int,
) -> list[Comparison]:
    paired = other is not None and other.kind == "variant"
    if paired and arm.kind != "variant":  # an untrained model has one seed that stands for all
        seeds = other.seeds
    else:
        seeds = tuple(candidate for candidate in arm.seeds if not paired or candidate in other.seeds)
    if not seeds:
        return []
    by_seed = weights(len(seeds), key=seed_key(seeds), num_replicates=num_replicates, seed=seed)
    comparisons = []
    for name in points[arm.name]:
        if other is not None and name not in points[other.name]:
            continue
        mean = _at(points[arm.name][name][None], arm, seeds)
        drawn = _at(replicas[arm.name][name], arm, seeds)
        if other is not None:
            mean = mean - _at(points[other.name][name][None], other, seeds)
            drawn = drawn - _at(replicas[other.name][name], other, seeds)
        if np.isnan(mean).any():
            continue
        low, high = interval(over_seeds(drawn, by_seed))
        comparisons.append(
            Comparison(
                arm.name,
                None if other is None else other.name,
                group.data,
                group.context,
                _policy(arm),
                group.visibility,
                name,
                float(mean.mean()),
                low,
                high,
                len(seeds) if "variant" in (arm.kind, other.kind if other else "") else 0,
                group.count,
                "" if other is None else verdict(name, low, high),
            )
        )
    return comparisons


def _at(values: np.ndarray, arm: Arm, seeds: tuple[int, ...]) -> np.ndarray:
    """Select the columns (R, S) of these seeds. An untrained model has one column for all of them."""
    if arm.kind != "variant":
        return np.repeat(values[:, :1], len(seeds), axis=1)
    return values[:, [arm.seeds.index(seed) for seed in seeds]]


def _policy(arm: Arm) -> str:
    return "teacher" if arm.kind == "teacher" else "student"


class _Group:
    """All arms that answered the same questions: one dataset, context and visibility."""

    def __init__(self, data: str, context: str | None, visibility: str, arms: list[Arm], chosen: np.ndarray) -> None:
        self.data, self.context, self.visibility, self.arms, self.chosen = data, context, visibility, arms, chosen
        self.count = int(chosen.sum())
        self._by_name = {arm.name: arm for arm in arms}

    def points(self, arm: Arm) -> dict[str, np.ndarray]:
        """Measure -> (S,), with every question counted once."""
        everything = np.full((1, self.count), 1.0 / self.count)
        return {name: replicates[0] for name, replicates in self._measured(arm, everything, None).items()}

    def replicates(self, arm: Arm, num_replicates: int, seed: int) -> dict[str, np.ndarray]:
        """Measure -> (R, S); the drawn questions are the same for every arm of the group."""
        drawn = weights(
            self.count, key=f"{self.data} {self.context} {self.visibility}", num_replicates=num_replicates, seed=seed
        )
        return self._measured(arm, drawn, drawn)

    def _measured(self, arm: Arm, question_weights: np.ndarray, drawn: np.ndarray | None) -> dict[str, np.ndarray]:
        lines = self._lines(arm)
        measured = _measured(lines, question_weights)
        if arm.kind == "variant" and arm.untrained in self._by_name:
            before, after = self._lines(self._by_name[arm.untrained])[0], lines[0]  # (1, Q), (S, Q)
            changed = over_questions(np.stack([(1 - before) * after, before * (1 - after)]), question_weights)
            measured |= {"repaired": changed[:, 0], "broken": changed[:, 1]}
        if (
            self.context == "plain"
            and self.visibility in (VISIBLE, "all")
            and {arm.untrained, arm.teacher} <= self._by_name.keys()
        ):
            gap = self._gap(arm, question_weights)
            if gap is not None:
                untrained, teacher = gap
                # a gap of at least one question, since the drawn questions may show none
                measured[GAP_RECOVERED] = (measured["accuracy"] - untrained) / np.maximum(
                    teacher - untrained, 1.0 / self.count
                )
        return measured

    def _gap(self, arm: Arm, question_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Accuracies (R, 1) of the untrained student and the teacher; None if the teacher is not clearly better."""
        outcomes = [self._lines(self._by_name[name])[:1] for name in (arm.untrained, arm.teacher)]
        untrained, teacher = (over_questions(accuracy, question_weights)[:, 0] for accuracy in outcomes)
        difference = (outcomes[1] - outcomes[0])[0, 0]
        error = difference.std() / np.sqrt(difference.size)
        return (untrained, teacher) if difference.mean() > 4.0 * error and difference.mean() > 0.0 else None

    def _lines(self, arm: Arm) -> np.ndarray:
        """Quantities averaged over questions (L, S, Q): the linear measures, then confidence - accuracy in each bin."""
        columns = {name: arm.answers[self.data, self.context][name][:, self.chosen] for name in _LINEAR}
        excess = columns["confidence"] - columns["accuracy"]
        bin_idx = np.minimum(NUM_BINS - 1, (columns["confidence"] * NUM_BINS).astype(int))
        bins = [np.where(bin_idx == number, excess, 0.0) for number in range(NUM_BINS)]
        return np.stack([*columns.values(), *bins])


class _DomainGroup(_Group):
    """Questions of one domain, of any visibility: accuracy only."""

    def _measured(self, arm: Arm, question_weights: np.ndarray, drawn: np.ndarray | None) -> dict[str, np.ndarray]:
        accuracy = arm.answers[self.data, self.context]["accuracy"][None, :, self.chosen]
        return {"accuracy": over_questions(accuracy, question_weights)[:, 0]}


class _TraceGroup(_Group):
    """Measures taken from the trace: one number per run, so only seeds vary."""

    def __init__(self, arms: list[Arm]) -> None:
        super().__init__(TRAINING, None, "all", arms, np.ones(1, dtype=bool))

    def _measured(self, arm: Arm, question_weights: np.ndarray, drawn: np.ndarray | None) -> dict[str, np.ndarray]:
        return {name: np.repeat(per_seed[None], len(question_weights), axis=0) for name, per_seed in arm.trace.items()}


def _measured(lines: np.ndarray, question_weights: np.ndarray) -> dict[str, np.ndarray]:
    means = over_questions(lines, question_weights)  # (R, L, S)
    measured = {name: means[:, number] for number, name in enumerate(_LINEAR)}
    measured["overconfidence"] = measured["confidence"] - measured["accuracy"]
    measured["calibration_error"] = np.abs(means[:, len(_LINEAR) :]).sum(axis=1)
    return {name: measured[name] for name in _FROM_ANSWERS}


def _groups(arms: list[Arm]) -> list[_Group]:
    """Group arms by data, context and visibility in order of appearance, then by domain, then the trace."""
    groups: list[_Group] = []
    for key in dict.fromkeys(key for arm in arms for key in arm.answers):
        members = [arm for arm in arms if key in arm.answers]
        visibility, is_graded = members[0].answers[key]["visibility"], ~np.isnan(members[0].answers[key]["accuracy"][0])
        for name in ("all", VISIBLE, PRIVILEGED):
            chosen = is_graded & ((visibility == name) | (name == "all"))
            if chosen.any():
                groups.append(_Group(*key, name, members, chosen))
        domains = np.where(is_graded, members[0].answers[key]["domain"], None)
        names = sorted({str(name) for name in domains if name})
        if len(names) > 1:
            groups += [_DomainGroup(*key, f"{name}{OF_DOMAIN}", members, domains == name) for name in names]
    traced = [arm for arm in arms if arm.trace]
    return [*groups, _TraceGroup(traced)] if traced else groups
