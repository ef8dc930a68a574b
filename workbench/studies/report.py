"""Write a study's results: results.parquet, comparisons.parquet, questions.parquet, table.md and figure.html.

results      one row per variant, seed, data, context, policy, visibility and measure
comparisons  means over seeds and paired differences with their intervals
questions    every answer of every run
"""

import dataclasses
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.errors import ConfigError, RunError
from workbench.files.atomic import replacing, write_text
from workbench.files.packages import importing
from workbench.studies.measures import (
    GAP_RECOVERED,
    OF_DOMAIN,
    TRAINING,
    Arm,
    Comparison,
    Value,
    compare,
    measure_of,
    measured_in_trace,
    values_of,
)
from workbench.studies.payoff import payoff
from workbench.studies.plan import TEACHER, Study, other_settings
from workbench.studies.preamble import preamble
from workbench.studies.records import FILE, describe, describe_reference, is_evaluated, left_out_of, read
from workbench.types import PRIVILEGED, STUDENT, VISIBLE

_COLUMNS = ("accuracy", "confidence", "entropy", "length", "truncated")
HEADLINES = (
    ("accuracy", VISIBLE),
    (GAP_RECOVERED, VISIBLE),
    ("accuracy", PRIVILEGED),
    ("overconfidence", PRIVILEGED),
    ("confidence", PRIVILEGED),
    ("calibration_error", PRIVILEGED),
    ("repaired", "all"),
    ("broken", "all"),
    ("entropy", "all"),
    ("length", "all"),
    ("truncated", "all"),
)

READING = (
    "Differences are in percentage points where values are in percent. Intervals: 10,000 paired bootstrap replicates "
    'over seeds and questions, each for a single comparison. A verdict other than "not distinguishable" means that the '
    "interval is clear of zero."
)


@dataclass(frozen=True)
class Results:
    """A study's numbers. `unfinished`: run -> status or error; `faults`: variant that cannot be built -> reason."""

    study: Study
    arms: list[Arm]
    values: list[Value]
    comparisons: list[Comparison]
    unfinished: dict[str, str]
    faults: dict[str, str]
    record: dict
    left_out: list[str]


def collect(study: Study) -> Results:
    """Collect the numbers of all finished runs. Raises RunError if no run has finished."""
    record = _record(study)
    arms, missing, files = [], unfinished(study), []
    for reference in study.references():
        file = study.reference_file(reference.row)
        if is_evaluated(file, describe_reference(reference, study.evaluate)):
            arms.append(Arm(reference.row, reference.role, (0,), aligned([read(file)])))
            files.append(file)
    names = {
        (reference.role, reference.model): reference.row
        for reference in study.references()
        if reference.learner == STUDENT
    }
    _join_peers(study, arms)
    num_finished = 0
    for variant in study.usable:
        finished = {}
        for seed in study.seeds:
            config = study.config(variant, seed)
            if config.name not in missing:
                finished[seed] = config.run_dir / FILE
        if finished:
            num_finished += len(finished)
            files += finished.values()
            models = variant.config.models
            arms.append(
                Arm(
                    variant.name,
                    "variant",
                    tuple(finished),
                    aligned([read(file) for file in finished.values()]),
                    _traced([file.parent for file in finished.values()]),
                    names["student", models.student],
                    names.get(("teacher", models.teacher)),
                )
            )
    if not num_finished:
        reasons = "".join(f"\n  {name}: {why}" for name, why in {**study.faults, **missing}.items())
        raise RunError(f"study {study.folder} has no finished run to report. Run the study first.{reasons}")
    left_out = list(dict.fromkeys(sentence for file in files for sentence in left_out_of(file)))
    return Results(study, arms, values_of(arms), compare(arms, study.baseline), missing, study.faults, record, left_out)


def _join_peers(study: Study, arms: list[Arm]) -> None:
    """Merge each peer's starting model into the row of the starting student, so that a peer is compared with it."""
    references = {reference.row: reference for reference in study.references()}
    peers = [arm for arm in arms if references[arm.name].learner != STUDENT]
    for peer in peers:
        learner = references[peer.name].learner
        # with several starting models, a peer's start depends on the variant
        if sum(references[arm.name].learner == learner for arm in peers) == 1:
            for arm in arms:
                if arm.kind == "student" and references[arm.name].learner == STUDENT:
                    arm.answers |= peer.answers
            arms.remove(peer)


def unfinished(study: Study) -> dict[str, str]:
    """Return runs without answers to every question -> status or error."""
    record, reasons = _record(study), {}
    for variant in study.usable:
        for seed in study.seeds:
            config = study.config(variant, seed)
            if not is_evaluated(config.run_dir / FILE, describe(config, study.evaluate, config.training.steps)):
                outcome = record["runs"].get(config.name, {})
                status = (
                    "evaluated on other questions" if outcome.get("status") == "finished" else outcome.get("status")
                )
                reasons[config.name] = other_settings(config) or outcome.get("error") or status or "not started"
    return reasons


def write_report(study: Study) -> Path:
    """Write all result files of a study. Returns the path of the Markdown table."""
    results = collect(study)
    _write_parquet(study.folder / "results.parquet", results.values, study.name)
    _write_parquet(study.folder / "comparisons.parquet", results.comparisons, study.name)
    _write_questions(results)
    table = study.folder / "table.md"
    write_text(table, markdown(results))
    try:
        with importing("the figure needs", "app"):
            from workbench.studies.figures import figure  # noqa: PLC0415  (plotly is an extra)
    except ConfigError as error:
        write_text(study.folder / "figure.html", str(error))
        return table
    drawn = figure(results.comparisons, baseline=study.baseline, title=f"Study {study.name}")
    write_text(study.folder / "figure.html", drawn.to_html(include_plotlyjs=True))
    return table


def markdown(results: Results) -> str:
    """Write a study's report as Markdown: header and tables."""
    study = results.study
    parts = [f"# Study {study.name}", report_header(results)]
    learners = dict.fromkeys(name for variant in study.usable for name in variant.config.models.learners)
    for questions, learner in itertools.product(study.evaluate, learners):
        label = labeled(questions.label, learner)
        for context in questions.contexts:
            parts.append(f"## {label}, shown {context}")
            parts += [_overview(results, label, context), _by_domain(results, label, context)]
            for measure, visibility in HEADLINES:
                table = _compared_table(results, label, context, measure, visibility)
                if table:
                    parts += [f"### {title_of(measure, visibility)}", table]
    trace = _trace_table(results)
    if trace:
        parts += ["## While training", trace]
    parts.append(_notes(results))
    return "\n\n".join(part for part in parts if part) + "\n"


def report_header(results: Results) -> str:
    """Write the report's header: provenance, skipped questions, and whether privilege can pay."""
    num_seeds = {arm.name: len(arm.seeds) for arm in results.arms if arm.kind == "variant"}
    lines = preamble(results.study, results.record, num_seeds, results.unfinished, results.faults)
    left_out = [f"- not evaluated: {sentence}" for sentence in results.left_out]
    return "\n".join([lines, *left_out, *payoff(results.values)])


def _overview(results: Results, data: str, context: str) -> str:
    """Table of means over seeds, for every row and headline measure."""
    means = {
        (item.variant, item.measure, item.visibility): item
        for item in results.comparisons
        if item.against is None and (item.data, item.context) == (data, context)
    }
    columns = [key for key in HEADLINES if any(item[1:] == key for item in means)]
    lines = []
    for arm in results.arms:
        if any(item[0] == arm.name for item in means):
            cells = [value_text(means.get((arm.name, *key))) for key in columns]
            lines.append([_row_name(results, arm), _seeds_text(arm), *cells])
    header = ["", "seeds", *(title_of(*key) for key in columns)]
    return markdown_table(header, lines)


def _by_domain(results: Results, data: str, context: str) -> str:
    """Table of accuracy by domain, with differences to the baseline; "" if the data has a single domain."""
    by_row = {
        (comparison.variant, comparison.against, comparison.visibility): comparison
        for comparison in results.comparisons
        if (comparison.data, comparison.context) == (data, context) and comparison.visibility.endswith(OF_DOMAIN)
    }
    if not by_row:
        return ""
    domains = {
        visibility: f"{visibility.removesuffix(OF_DOMAIN)} ({comparison.count})"
        for (*_, visibility), comparison in by_row.items()
    }
    lines = []
    for arm in results.arms:
        cells = []
        for domain in domains:
            alone, apart = by_row.get((arm.name, None, domain)), by_row.get((arm.name, results.study.baseline, domain))
            cells.append(
                value_text(alone) + (f"; {difference_text(apart)} {interval_text(apart, alone)}" if apart else "")
            )
        if any(cell != "-" for cell in cells):
            lines.append([arm.name, _seeds_text(arm), *cells])
    against = (
        f"; against {results.study.baseline} [95 % interval]"
        if any(comparison.against for comparison in by_row.values())
        else ""
    )
    return f"### accuracy by domain (questions){against}\n\n" + markdown_table(["", "seeds", *domains.values()], lines)


def _trace_table(results: Results) -> str:
    """Table of trace measures, without differences, since regimes differ by method."""
    by_row = {
        (comparison.variant, comparison.measure): comparison
        for comparison in results.comparisons
        if comparison.data == TRAINING and comparison.against is None
    }
    names = list(dict.fromkeys(measure for _, measure in by_row))
    lines = [
        [
            arm.name,
            str(len(arm.seeds)),
            measure_of(name).label,
            value_text(by_row[arm.name, name]),
            interval_text(by_row[arm.name, name]),
        ]
        for arm in results.arms
        for name in names
        if (arm.name, name) in by_row
    ]
    return markdown_table(["", "seeds", "share", "mean", "95 % interval over seeds"], lines) if lines else ""


def _compared_table(results: Results, data: str, context: str, measure: str, visibility: str) -> str:
    by = {
        (comparison.variant, comparison.against): comparison
        for comparison in results.comparisons
        if (comparison.data, comparison.context, comparison.measure, comparison.visibility)
        == (data, context, measure, visibility)
    }
    baseline = results.study.baseline
    lines = []
    for arm in results.arms:
        alone = by.get((arm.name, None))
        if alone is None:
            continue
        cells = [arm.name, _seeds_text(arm), value_text(alone)]
        for against in (baseline, arm.untrained):
            comparison = by.get((arm.name, against))
            difference = f"{difference_text(comparison)} {interval_text(comparison, alone)}" if comparison else ""
            cells += [difference, comparison.verdict if comparison else ""]
        lines.append(cells)
    if len(lines) < 2:
        return ""
    header = ["", "seeds", "mean", f"against {baseline} [95 % interval]", "", "against untrained [95 % interval]", ""]
    used = [idx for idx in range(len(header)) if idx < 3 or any(line[idx] for line in lines)]
    return markdown_table([header[idx] for idx in used], [[line[idx] for idx in used] for line in lines])


def _notes(results: Results) -> str:
    notes = [
        f"- {arm.name}: {variant.note}"
        for arm in results.arms
        for variant in results.study.variants
        if variant.name == arm.name and variant.note
    ]
    return "\n".join([*notes, "", READING] if notes else [READING])


def _seeds_text(arm: Arm) -> str:
    return str(len(arm.seeds)) if arm.kind == "variant" else "-"


def _row_name(results: Results, arm: Arm) -> str:
    return f"**{arm.name}**" if arm.name == results.study.baseline else arm.name


def title_of(measure: str, visibility: str) -> str:
    """Title of a measure in tables."""
    return measure_of(measure).label + ("" if visibility == "all" else f", {visibility}")


def value_text(comparison: Comparison | None) -> str:
    """Format a mean with its unit; a dash for None."""
    if comparison is None:
        return "-"
    definition = measure_of(comparison.measure)
    if definition.unit == "%":
        return f"{100 * comparison.value:.{definition.digits}f} %"
    return f"{comparison.value:.{definition.digits}f}"


def difference_text(comparison: Comparison) -> str:
    """Format a difference with its sign, in percentage points where values are in percent."""
    return _number(comparison.measure, comparison.value)


def interval_text(comparison: Comparison, alone: Comparison | None = None) -> str:
    """Format an interval, with the number of seeds if a difference has fewer than its row's mean, `alone`."""
    fewer = alone is not None and alone.num_seeds and comparison.num_seeds != alone.num_seeds
    seeds = f" ({comparison.num_seeds} {'seed' if comparison.num_seeds == 1 else 'seeds'})" if fewer else ""
    return f"[{_number(comparison.measure, comparison.low)}, {_number(comparison.measure, comparison.high)}]{seeds}"


def _number(measure: str, value: float) -> str:
    definition = measure_of(measure)
    return f"{100 * value if definition.unit == '%' else value:+.{definition.digits}f}"


def markdown_table(header: list[str], lines: list[list[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def labeled(label: str, policy: str) -> str:
    """Label of a question set, with the peer that answered it."""
    return label if policy in (STUDENT, TEACHER) else f"{label}, answered by {policy}"


def aligned(tables: list[pa.Table]) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """Stack the runs of a variant: (data, context) -> column -> array (runs, questions), in a fixed order."""
    runs_by_key: dict[tuple[str, str], list[dict]] = {}
    for table in tables:
        columns = {
            name: np.asarray(table[name].to_pylist(), dtype=object)
            for name in ("data", "policy", "context", "example_id", "visibility", "domain")
        }
        columns["data"] = np.array(
            [labeled(*pair) for pair in zip(columns["data"], columns["policy"], strict=True)], dtype=object
        )
        columns |= {
            name: table[name].cast(pa.float64()).to_numpy()
            if name != "truncated"
            else table[name].cast(pa.int8()).to_numpy().astype(float)
            for name in _COLUMNS
        }
        for key in dict.fromkeys(zip(columns["data"], columns["context"], strict=True)):
            inside = (columns["data"] == key[0]) & (columns["context"] == key[1])
            order = np.argsort(columns["example_id"][inside].astype(str), kind="stable")
            runs_by_key.setdefault(key, []).append({name: values[inside][order] for name, values in columns.items()})
    aligned = {}
    for key, runs in runs_by_key.items():
        if any(list(run["example_id"]) != list(runs[0]["example_id"]) for run in runs):
            raise RunError(f"runs of one variant answered different questions of {key[0]}. Delete their {FILE}.")
        aligned[key] = {name: np.stack([run[name] for run in runs]) for name in _COLUMNS}
        aligned[key] |= {name: runs[0][name] for name in ("example_id", "visibility", "domain")}
    return aligned


def _traced(run_dirs: list[Path]) -> dict[str, np.ndarray]:
    """Stack the trace measures of runs; nan where a run has none."""
    per_run = [trace_measures(run_dir) for run_dir in run_dirs]
    names = dict.fromkeys(name for shares in per_run for name in shares)
    return {name: np.array([shares.get(name, np.nan) for shares in per_run]) for name in names}


def trace_measures(run_dir: Path) -> dict[str, float]:
    """Return `measured_in_trace`, cached in a file beside the run."""
    file = run_dir / "trace-measures-of-sizes.json"
    if file.is_file():
        return json.loads(file.read_text())
    shares = measured_in_trace(run_dir)
    if shares is not None:
        write_text(file, json.dumps(shares))
    return shares or {}


def _record(study: Study) -> dict:
    try:
        facts = json.loads((study.folder / "study.json").read_text())
    except (OSError, ValueError):
        facts = {}
    return {"sessions": [], "runs": {}, **facts}


def _write_parquet(file: Path, rows: list[Value] | list[Comparison], study: str) -> None:
    table = pa.Table.from_pylist([{"study": study, **dataclasses.asdict(row)} for row in rows])
    with replacing(file) as temporary:
        pq.write_table(table, temporary)


def _write_questions(results: Results) -> None:
    study, tables = results.study, []
    references = {reference.row: study.reference_file(reference.row) for reference in study.references()}
    sources: list[tuple[str, int | None, Path]] = [
        (name, None, file) for name, file in references.items() if file.is_file()
    ]
    by_name = {variant.name: variant for variant in study.usable}
    for arm in results.arms:
        if arm.kind == "variant":
            sources += [(arm.name, seed, study.config(by_name[arm.name], seed).run_dir / FILE) for seed in arm.seeds]
    for name, seed, file in sources:
        table = read(file).replace_schema_metadata(None)
        table = table.add_column(0, "seed", pa.array([seed] * table.num_rows, pa.int64()))
        tables.append(table.add_column(0, "variant", pa.array([name] * table.num_rows)))
    with replacing(study.folder / "questions.parquet") as temporary:
        pq.write_table(pa.concat_tables(tables).unify_dictionaries(), temporary, compression="zstd")
