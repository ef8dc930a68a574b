"""Back to the newest complete checkpoint: what a resumed run begins with, and what of its earlier steps is gone."""

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


def rewind(folder: RunFolder, config: RunConfig) -> Checkpoint | None:
    """The newest complete checkpoint; whatever the run recorded after it is deleted, since it is done again.

    What is missing of the steps before it is logged and kept in run.json as "missing"; training does not need it.
    Raises: RunError or TraceError for a file that is damaged.
    """
    checkpoint, torn = latest_checkpoint(folder.path, reads=True)
    for sentence in torn:
        log.warning("%s", sentence)
    step = checkpoint.step if checkpoint else -1
    log.info("going on from %s", checkpoint.path if checkpoint else "the start: there is no checkpoint yet")
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
    """A sentence for each kind of record that lacks steps which were done, up to the step `last`."""
    done = range(1, last + 1)
    every, probe_every = config.trace.every, config.trace.probe_every
    steps = Counter(line["step"] for line in folder.metrics("train"))
    twice = [step for step in done if steps[step] > 1]
    sentences = [_sentence("metrics.jsonl", "holds these steps more than once", twice)]
    sentences.append(_sentence("metrics.jsonl", "lacks training steps", [step for step in done if not steps[step]]))
    traces = recorded_steps(folder.path)
    traced = [step for step in done if every and step % every == 0]
    probed = [0, *(step for step in done if step % probe_every == 0 or step == config.training.steps)]
    wanted = {table: probed if table.startswith(PROBE) else traced for table in traces}
    for table, wanted_steps in wanted.items():
        if last >= 0 and (not table.startswith(PROBE) or folder.probes()):
            sentences.append(
                _sentence(
                    f"traces/{table}", "lacks steps", [step for step in wanted_steps if step not in traces[table]]
                )
            )
    evaluated = {line["step"] for line in folder.metrics("eval")}
    due = [0, *(step for step in done if config.evaluation.every and step % config.evaluation.every == 0)]
    kept = evaluated_steps(folder.path)
    if (
        last >= 0 and config.data.eval is not None and (evaluated or kept)
    ):  # without both none of the questions could be shown
        of_metrics = [step for step in due if step < last and step not in evaluated]  # that of the last is done again
        sentences.append(_sentence("metrics.jsonl", "lacks evaluations of steps", of_metrics))
        answers = [step for step in due if step not in kept and (step < last or step in evaluated)]
        sentences.append(_sentence("evals/", "lacks answers of steps", answers))
    return [f"{folder.path}/{sentence}" for sentence in sentences if sentence]


def _sentence(file: str, fault: str, steps: list[int]) -> str:
    return f"{file} {fault} {ranges(steps)}. They were recorded and are gone; the rest is whole." if steps else ""


def ranges(steps: Iterable[int]) -> str:
    """Numbers in order, neighbors joined: 3, 5-9, 12; of many ranges the first five."""
    joined: list[list[int]] = []
    for step in sorted(steps):
        if joined and step == joined[-1][1] + 1:
            joined[-1][1] = step
        else:
            joined.append([step, step])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in joined]
    more = f" and {len(texts) - 5} more" if len(texts) > 5 else ""
    return ", ".join(texts[:5]) + more
