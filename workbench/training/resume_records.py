"""Resume from the newest complete checkpoint: delete later records and report missing earlier ones."""

import logging
from collections import Counter
from collections.abc import Iterable

from workbench.config.schema import RunConfig
from workbench.evals.records import evaluated_steps, forget_answers_after
from workbench.runs.checkpoints import Checkpoint, latest_checkpoint
from workbench.runs.folder import RunFolder
from workbench.traces.parts import delete_after, recorded_steps
from workbench.traces.schema import PROBE

log = logging.getLogger("workbench")


def resume_from_latest(folder: RunFolder, config: RunConfig) -> Checkpoint | None:
    """Find the newest complete checkpoint and delete all records of later steps, which run again.

    Missing records of earlier steps are logged and listed in run.json as "missing"; training does not need them.
    Raises: RunError or TraceError for a damaged file.
    """
    checkpoint, torn = latest_checkpoint(folder.path, reads=True)
    for sentence in torn:
        log.warning("%s", sentence)
    step = checkpoint.step if checkpoint else -1
    log.info("resume from %s", checkpoint.path if checkpoint else "step 0, because no checkpoint exists yet")
    folder.clear_temporary()
    folder.forget_metrics_after(step)
    forget_answers_after(folder.path, step)
    delete_after(folder.path, step)
    missing = missing_records(folder, config, step)
    for sentence in missing:
        log.warning("%s", sentence)
    folder.update(missing=missing)
    return checkpoint


def missing_records(folder: RunFolder, config: RunConfig, last: int) -> list[str]:
    """One sentence for each kind of record that lacks finished steps, up to the step `last`."""
    done = range(1, last + 1)
    every, probe_every = config.trace.every, config.trace.probe_every
    steps = Counter(line["step"] for line in folder.metrics("train"))
    twice = [step for step in done if steps[step] > 1]
    sentences = [_sentence("metrics.jsonl", "holds these steps more than once", twice)]
    sentences.append(_sentence("metrics.jsonl", "lacks training steps", [step for step in done if not steps[step]]))
    traces = recorded_steps(folder.path)
    traced = [step for step in done if every and step % every == 0]
    # those of the last step run again if they are missing
    probed = [0, *(step for step in done if step < last and step % probe_every == 0)]
    kept_steps = {table: probed if table.startswith(PROBE) else traced for table in traces}
    for table, table_steps in kept_steps.items():
        if last >= 0 and (not table.startswith(PROBE) or folder.probes()):
            sentences.append(
                _sentence(f"traces/{table}", "lacks steps", [step for step in table_steps if step not in traces[table]])
            )
    evaluated = {line["step"] for line in folder.metrics("eval")}
    due = [0, *(step for step in done if config.evaluation.every and step % config.evaluation.every == 0)]
    kept = evaluated_steps(folder.path)
    # a run whose eval examples were all skipped has neither metrics nor answers
    if last >= 0 and config.data.evaluates and (evaluated or kept):
        of_metrics = [step for step in due if step < last and step not in evaluated]  # the last one runs again
        sentences.append(_sentence("metrics.jsonl", "lacks evaluations of steps", of_metrics))
        answers = [step for step in due if step not in kept and (step < last or step in evaluated)]
        sentences.append(_sentence("evals/", "lacks answers of steps", answers))
    return [f"{folder.path}/{sentence}" for sentence in sentences if sentence]


def _sentence(file: str, fault: str, steps: list[int]) -> str:
    return (
        f"{file} {fault} {ranges(steps)}. These records were deleted or damaged; all others are complete."
        if steps
        else ""
    )


def ranges(steps: Iterable[int]) -> str:
    """Format step numbers as ranges: 3, 5-9, 12; at most five ranges."""
    joined: list[list[int]] = []
    for step in sorted(steps):
        if joined and step == joined[-1][1] + 1:
            joined[-1][1] = step
        else:
            joined.append([step, step])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in joined]
    more = f" and {len(texts) - 5} more" if len(texts) > 5 else ""
    return ", ".join(texts[:5]) + more
