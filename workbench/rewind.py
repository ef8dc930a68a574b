"""Back to the newest complete checkpoint: what a resumed run begins with."""

import logging

from workbench.answers import forget_answers_after
from workbench.checkpoints import Checkpoint, latest_checkpoint
from workbench.runs import RunFolder
from workbench.traces.parts import delete_after

log = logging.getLogger("workbench")


def rewind(folder: RunFolder) -> Checkpoint | None:
    """The newest complete checkpoint; whatever the run recorded after it is deleted, since it is done again."""
    checkpoint, torn = latest_checkpoint(folder.path, reads=True)
    for sentence in torn:
        log.warning("%s", sentence)
    step = checkpoint.step if checkpoint else -1
    log.info("going on from %s", checkpoint.path if checkpoint else "the start: there is no checkpoint yet")
    folder.forget_metrics_after(step)
    forget_answers_after(folder.path, step)
    delete_after(folder.path, step)
    return checkpoint
