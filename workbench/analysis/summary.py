"""Summary of a run as text: accuracy per context before and after training, regimes, warnings, next steps."""

import itertools
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from workbench.errors import TraceError
from workbench.evals.benchmarks import BENCHMARK_COLUMNS, FILE, benchmark_rows, headlines, load_benchmarks
from workbench.evals.findings import INTERVALS, compare, compared, find, privilege_of, sentences, shows_wrong
from workbench.evals.records import CONFIDENCE, EvalRecord, load_records, measure
from workbench.runs.folder import RunFolder
from workbench.runs.processes import born_at
from workbench.traces.reader import NoTraces, Traces, open_traces
from workbench.types import PRIVILEGED, STUDENT, VISIBLE

NOT_EVALUATED = "no evaluation: no example has the evidence of the contexts. Choose other --contexts or other --data."
NOT_GRADED = "no answer could be graded. Choose another --grader, or check the answers in the data."
_NUMBER = re.compile(r"[-+]?[\d,.]*%?")


def summarize_run(run_dir: str | Path) -> str:
    """Summary of a run as text, ready to print."""
    folder = RunFolder.open(run_dir)
    status = folder.status
    parts = [f"{status.get('method', '?')} · {status.get('steps_done', 0)} steps · {_state(status)} · {folder.path}"]
    if _state(status) == "died":
        again = "score the file again" if status.get("scored") else f"continue with: workbench resume {folder.path}"
        parts.append(f"its process was killed or ran out of memory; {again}")
    records = load_records(folder.path)
    if records:
        parts.append(accuracy_table(records))
        parts += dataset_table(records)
        parts += peer_table(records)
    parts += benchmark_table(folder.path)
    parts += _recorded(folder.path)
    if status.get("scored"):
        parts.append("\n".join(_scored(status["scored"])))
    if status.get("prepared"):
        parts.append("prepared: " + "; ".join(f"{name}: {value}" for name, value in status["prepared"].items()))
    skipped = status.get("skipped") or {}
    if skipped:
        parts.append(
            f"skipped {'rows' if status.get('scored') else 'examples'}: "
            + ", ".join(f"{reason}: {count}" for reason, count in skipped.items())
        )
    parts += [f"not evaluated: {sentence}" for sentence in status.get("unasked") or ()]
    if status.get("answers_in_prompts"):
        parts.append(f"answers in prompts: {status['answers_in_prompts']}")
    parts += [str(status[key]) for key in ("stopped_early", "best_evaluation") if status.get(key)]
    parts += [f"missing: {key}" for key in status.get("missing") or ()]
    parts += [f"warning: {warning}" for warning in status.get("warnings") or ()]
    if status.get("error"):
        parts.append(f"error: {status['error']}")
    parts += _findings(folder, records)
    return "\n\n".join(parts)


def benchmark_table(run_dir: Path) -> list[str]:
    """Imported results of benchmarks as a table; empty without any. Raises RunError for a damaged file."""
    chosen, num_more = headlines(load_benchmarks(run_dir))
    if not chosen:
        return []
    more = f"\n  and {num_more} more in {run_dir / FILE}" if num_more else ""
    return [format_table(BENCHMARK_COLUMNS, benchmark_rows(chosen)) + more]


def _scored(facts: dict) -> list[str]:
    """Lines on the rollout file of a run that `workbench score` made: how its rows were read and matched."""
    matched = ", ".join(f"{count:,} by {key}" for key, count in (facts.get("matched_by") or {}).items())
    examples = "the rows themselves" if facts.get("data") is None else facts["data"]
    lines = [
        f"scored without training: {facts.get('rollouts', 0):,} of {facts.get('rows', 0):,} rollouts of "
        f"{facts.get('file')} (layout {facts.get('layout')})",
        f"  examples: {examples} ({matched})",
        f"  rewards: {facts.get('rewards')}",
    ]
    prompts = facts.get("prompts") or {}
    if prompts:
        lines.append(
            f"  prompts: {prompts.get('equal', 0):,} equal to the trainer's, {prompts.get('different', 0):,} not"
        )
    lines += [f"  note: {count:,} x {note}" for note, count in (facts.get("notes") or {}).items()]
    if facts.get("unread"):
        lines.append(f"  columns not used: {', '.join(facts['unread'])}")
    return lines


def _findings(folder: RunFolder, records: list[EvalRecord]) -> list[str]:
    """Sentences on accuracy gain, over-confidence and controls to run; empty before a second evaluation."""
    privilege = privilege_of(folder.path)
    findings = find(records, privilege)
    if findings is None:
        return []
    config = str(folder.path / "config.yaml")
    lines = sentences(findings, run=folder.path.name, config=config, privilege=privilege)
    original = folder.path.with_name(folder.path.name.removesuffix(f"-{(privilege or '').replace('+', '-')}"))
    if privilege and shows_wrong(privilege) and original != folder.path and (original / "evals").is_dir():
        sentence = compared(original.name, compare(records, load_records(original)))
        lines += [sentence] if sentence else []
    return ["\n".join([*lines, f"  {INTERVALS}"])]


def sampled_by(run_dir: str | Path) -> dict[str, str]:
    """Count, length, truncated share and accuracy of the recorded sequences, by the policy that sampled them.

    Raises: TraceError if a trace file is damaged.
    """
    try:
        rows = open_traces(run_dir).sql(
            """SELECT sampled_by AS name, count(*) AS n,
                      count(DISTINCT (example_id, sample_idx, completion)) AS num_different,
                      avg(num_positions) AS length, avg(CAST(NOT finished AS INT)) AS truncated, avg(reward) AS accuracy
               FROM rollouts GROUP BY ALL ORDER BY n DESC, name"""
        )
    except NoTraces:
        return {}
    descriptions = {}
    for row in rows.to_pylist():
        again = f" ({row['num_different']:,} different)" if row["num_different"] < row["n"] else ""
        right = "" if row["accuracy"] is None else f", {row['accuracy']:.1%} right"
        descriptions[row["name"]] = (
            f"{row['n']:,} sequences{again}, {row['length']:.1f} tokens each, {row['truncated']:.1%} truncated{right}"
        )
    return descriptions


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table with aligned columns: text to the left, numbers to the right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    is_number = [all(_NUMBER.fullmatch(cell) for cell in column[1:]) for column in columns]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, is_number, strict=True)
        ]
        lines.append(f"  {'  '.join(cells)}".rstrip())
    lines.insert(1, "  " + "  ".join("─" * width for width in widths))
    return "\n".join(lines)


def accuracy_table(records: list[EvalRecord]) -> str:
    """Accuracy, answer length and truncated share per policy and context, at the first and the last evaluation."""
    if not records:
        return NOT_EVALUATED
    steps = sorted({row.step for row in records})
    first, last = steps[0], steps[-1]
    visibilities = [
        visibility for visibility in (VISIBLE, PRIVILEGED) if any(row.visibility == visibility for row in records)
    ]
    groups = ["all", *visibilities] if visibilities else ["all"]
    header = ["accuracy", "context", "questions"]
    for name in (*groups, "tokens", "truncated"):
        header += [f"{name} @{first}", f"@{last}"] if last != first else [f"{name} @{first}"]
    rows = []
    for policy, context in dict.fromkeys((row.policy, row.context) for row in records):
        of_policy = [row for row in records if (row.policy, row.context) == (policy, context)]
        cells = [policy, context, str(sum(row.step == of_policy[0].step for row in of_policy))]
        for group in groups:
            for step in dict.fromkeys((first, last)):
                chosen = [row for row in of_policy if row.step == step and group in ("all", row.visibility)]
                cells.append(_percent(measure(chosen)))
        measured = [measure(row for row in of_policy if row.step == step) for step in dict.fromkeys((first, last))]
        cells += ["-" if aggregate is None else f"{aggregate.length:.1f}" for aggregate in measured]
        cells += ["-" if aggregate is None else f"{aggregate.truncated:.1%}" for aggregate in measured]
        rows.append(cells)
    legend = "  tokens: mean answer length; truncated: share of answers that reached sampling.max_completion_length"
    return f"{format_table(header, rows)}\n{legend}"


def dataset_table(records: list[EvalRecord]) -> list[str]:
    """Accuracy per evaluation set at the first and the last evaluation; empty without named sets."""
    steps = sorted({row.step for row in records})
    ends = list(dict.fromkeys((steps[0], steps[-1])))
    rows = []
    for key in dict.fromkeys((row.dataset, row.policy, row.context) for row in records if row.dataset):
        chosen = [row for row in records if (row.dataset, row.policy, row.context) == key]
        measured = [measure(row for row in chosen if row.step == step) for step in ends]
        count = sum(row.step == chosen[0].step for row in chosen)
        rows.append([*key, str(count), *map(_percent, measured)])
    header = ["evaluation set", "policy", "context", "questions", f"accuracy @{ends[0]}"]
    return [format_table([*header, *(f"@{step}" for step in ends[1:])], rows)] if rows else []


def peer_table(records: list[EvalRecord]) -> list[str]:
    """Accuracy of each learner per kind of question at first and last evaluation; empty for a single learner.

    repaired and broken are shares of questions: wrong at first and right at last, and the reverse.
    """
    steps = sorted({row.step for row in records})
    by_step = {
        step: {(row.policy, row.context, row.example_id): row for row in records if row.step == step} for step in steps
    }
    if len(steps) < 2:
        return []
    first, last = by_step[steps[0]], by_step[steps[-1]]
    learners = dict.fromkeys(key[0] for key in last)
    if len(learners) < 2:
        return []
    rows = []
    for key in dict.fromkeys((row.domain or "-", *name[:2]) for name, row in last.items()):
        names = [name for name, row in last.items() if ((row.domain or "-"), *name[:2]) == key and name in first]
        pairs = [
            (first[name].reward, last[name].reward)
            for name in names
            if None not in (first[name].reward, last[name].reward)
        ]
        if pairs:
            shares = [
                sum(column) / len(pairs)
                for column in zip(*((a, b, (1 - a) * b, a * (1 - b)) for a, b in pairs), strict=True)
            ]
            rows.append([*key, str(len(pairs)), *(f"{share:.1%}" for share in shares)])
    header = ["domain", "learner", "context", "questions", f"right @{steps[0]}", f"@{steps[-1]}", "repaired", "broken"]
    return [format_table(header, sorted(rows))] if rows else []


def evaluation_table(records: list[EvalRecord]) -> str:
    """All metrics of every policy and context: over all questions, by visibility, and by domain."""
    if not records:
        return NOT_EVALUATED
    header = ["policy", "context", "domain", "visibility", "questions", "accuracy", "confidence", "over-confidence"]
    header += ["calibration error", "entropy", "length", "truncated"]
    rows = []
    for policy, context in dict.fromkeys((row.policy, row.context) for row in records):
        of_policy = [row for row in records if (row.policy, row.context) == (policy, context)]
        for domain, visibility in _groups(of_policy):
            chosen = [
                row for row in of_policy if domain in ("all", row.domain) and visibility in ("all", row.visibility)
            ]
            measured = measure(chosen)
            if measured is not None:
                entropy = "-" if measured.entropy is None else f"{measured.entropy:.3f}"
                shares = [f"{value:.1%}" for value in (measured.accuracy, measured.confidence)]
                shares += [f"{100 * measured.overconfidence:+.1f}", f"{measured.calibration_error:.1%}", entropy]
                size = [f"{measured.length:.1f}", f"{measured.truncated:.1%}"]
                rows.append([policy, context, domain, visibility, str(measured.count), *shares, *size])
    if not rows:
        return NOT_GRADED
    legend = (
        "  entropy: nats per token; length: tokens; truncated: share of answers that reached the maximum length\n  "
        f"confidence: {CONFIDENCE}\n  over-confidence: confidence minus accuracy, in points"
    )
    return "\n".join([format_table(header, rows), legend, *_fewer_evaluated(records)])


def _fewer_evaluated(records: list[EvalRecord]) -> list[str]:
    """Notes on contexts with fewer questions than another context, whose rows cannot be compared directly."""
    examples: dict[str, dict[str, set[str]]] = {}
    for row in records:
        examples.setdefault(row.policy, {}).setdefault(row.context, set()).add(row.example_id)
    lines = []
    for policy, by_context in examples.items():
        most = max(map(len, by_context.values()))
        lines += [
            f"  {policy}, {context}: only {len(example_ids)} of {most} questions, those that have its evidence"
            for context, example_ids in by_context.items()
            if len(example_ids) < most
        ]
    return lines


def _state(status: dict) -> str:
    """The status in run.json; "died" if it is "running" and the process that wrote it no longer exists."""
    born = born_at(status["pid"]) if isinstance(status.get("pid"), int) else None
    written = datetime.fromisoformat(status["updated"]).timestamp() if status.get("updated") else 0.0
    has_died = born is None or born > written + 2  # a younger process may have the same pid
    return "died" if status["status"] == "running" and has_died else status["status"]


def _groups(records: list[EvalRecord]) -> list[tuple[str, str]]:
    """(domain, visibility) of the rows: all, each visibility, each domain, and a domain's visibilities."""
    visibilities = [
        visibility for visibility in (VISIBLE, PRIVILEGED) if any(row.visibility == visibility for row in records)
    ]
    groups = [("all", "all"), *(("all", visibility) for visibility in visibilities)]
    for domain in sorted({row.domain for row in records if row.domain}):
        pairs = [(domain, visibility) for visibility in visibilities]
        present = [pair for pair in pairs if any((row.domain, row.visibility) == pair for row in records)]
        groups += present or [(domain, "all")]
    return groups


def _percent(measured: Any) -> str:
    return "-" if measured is None else f"{measured.accuracy:.1%}"


def _recorded(run_dir: Path) -> list[str]:
    """Regimes and sources of the traces; or the error if a trace file is damaged."""
    try:
        regimes, sources = _regimes(run_dir), sampled_by(run_dir)
    except TraceError as error:
        return [f"traces: {error}"]
    return regimes + (["\n".join(f"from {name}: {row}" for name, row in sources.items())] if sources else [])


def _regimes(run_dir: Path) -> list[str]:
    try:
        traces = open_traces(run_dir)
    except NoTraces:
        return []
    rows = traces.sql(
        """SELECT learner, regime, count(*) AS positions, count(*) / sum(count(*)) OVER (PARTITION BY learner) AS share,
                  sum(contribution) / nullif(sum(sum(contribution)) OVER (PARTITION BY learner), 0) AS loss_share,
                  avg(capability_gap) AS capability, avg(information_gap) AS information
           FROM tokens GROUP BY learner, regime"""
    ).to_pylist()
    by_regime = {(row["learner"], row["regime"]): row for row in rows}
    learners = sorted({row["learner"] for row in rows} or {STUDENT}, key=lambda name: (name != STUDENT, name))
    lines = []
    for learner, (name, regime) in itertools.product(learners, traces.regimes.items()):
        row = by_regime.get((learner, name))
        numbers = ["0", "0.0%", "0.0%", "-", "-"]
        if row is not None:
            shares = [f"{row[key]:.1%}" if row[key] is not None else "-" for key in ("share", "loss_share")]
            gaps = ["-" if row[key] is None else f"{row[key]:+.3f}" for key in ("capability", "information")]
            numbers = [f"{row['positions']:,}", *shares, *gaps]
        lines.append([name if learner == STUDENT else f"{learner} {name}", *numbers, regime.meaning])
    header = ["regime", "tokens", "of tokens", "of loss", "capability gap", "information gap", "meaning"]
    return [format_table(header, lines) + "\n  gaps: mean nats per token", *_annotations(traces)]


def _annotations(traces: Traces) -> list[str]:
    """Means of the method's annotations of answers, by learner and domain."""
    rows = traces.sql(
        """SELECT learner, domain, annotation.key AS name, avg(annotation.value) AS mean
           FROM (SELECT learner, domain, unnest(map_entries(annotations)) AS annotation FROM rollouts)
           GROUP BY learner, domain, annotation.key ORDER BY learner <> 'student', learner, domain"""
    ).to_pylist()
    names = sorted({row["name"] for row in rows})
    means = {(row["learner"], row["domain"], row["name"]): row["mean"] for row in rows}
    groups = dict.fromkeys((row["learner"], row["domain"]) for row in rows)
    lines = [
        [*group, *(f"{means[*group, name]:.2f}" if (*group, name) in means else "-" for name in names)]
        for group in groups
    ]
    header = ["learner", "domain", *(name.replace("_", " ") for name in names)]
    return [format_table(header, lines) + "\n  means per answer"] if lines else []
