"""Score examples with a run's own models: one run's models are in memory, and one example is scored at a time."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.config.models import refuse_remote_code
from workbench.config.schema import RunConfig, load_config
from workbench.data.contexts import missing_evidence
from workbench.errors import DataError, RunError
from workbench.render import TokenView, token_view
from workbench.runs.folder import RunFolder
from workbench.runs.jobs import read_job
from workbench.traces.reader import TracedRollout
from workbench.types import Example

OWN_IMAGE = "your image"
EVIDENCE_FIELDS = {  # evidence of a context -> how to enter it in the form
    "boxes": "Drag on the image to draw a box, or write x0 y0 x1 y1 and a label, in pixels.",
    "caption": "Fill in the caption.",
    "hint": "Fill in the hint.",
    "answer": "Fill in the right answer.",
    "turns": "Write the question in several sentences.",
}

# (scorer, example, the answer as scored) -> the answer scored again with something changed
Change = Callable[[Any, Example, TracedRollout], TracedRollout]


class ScorerCache:
    """The scorer of the run used last. It scores one example at a time and unloads another run's models first."""

    def __init__(self) -> None:
        self._key: tuple | None = None
        self._scorer: Any = None  # a workbench.training.scorer.Scorer
        self._lock = threading.Lock()

    def score(self, run_dir: Path, example: Example, answer: str | None) -> TokenView:
        """Score every token of the answer, or of one sampled from the student, with the run's newest checkpoint."""
        return self.compare(run_dir, example, answer, ())[0]

    def compare(
        self, run_dir: Path, example: Example, answer: str | None, changes: tuple[Change, ...]
    ) -> list[TokenView]:
        """`score` of the answer, and of the answer after each change."""
        # imported here: transformers takes seconds
        from workbench.runs.checkpoints import latest_checkpoint  # noqa: PLC0415
        from workbench.training.scorer import open_scorer  # noqa: PLC0415

        with self._lock:
            checkpoint, _ = latest_checkpoint(run_dir)
            if checkpoint is None and not RunFolder(run_dir).status.get("scored"):
                remedy = "Wait for its first one, or choose" if read_job(run_dir).is_alive else "Choose"
                raise RunError(f"run {run_dir.name} has no checkpoint. {remedy} a run that has one.")
            config = load_config(run_dir / "config.yaml")
            refuse_remote_code(config, f"workbench eval {run_dir}")
            if example.origin == OWN_IMAGE:
                check_evidence(config, example)
            weights = run_dir / "config.yaml" if checkpoint is None else checkpoint.path
            key = (run_dir, weights, weights.stat().st_mtime_ns)
            if key != self._key:
                self._key = self._scorer = None
                self._scorer = open_scorer(run_dir)
                self._key = key
            scored = self._scorer.score(example, answer)
            state = "its student" if checkpoint is None else f"checkpoint of step {checkpoint.step}"
            traced = [scored, *(change(self._scorer, example, scored) for change in changes)]
            return [_view(item, f"{run_dir.name}, {state}") for item in traced]


def _view(traced: TracedRollout, run: str) -> TokenView:
    view = token_view(traced, run=run)
    meta = {name: value for name, value in view.meta.items() if name not in ("step", "rollout")}
    return replace(view, meta=meta)


SCORER = ScorerCache()


def check_evidence(config: RunConfig, example: Example) -> None:
    """Raises DataError naming the fields that the contexts of the method's views need."""
    missing: dict[str, list[str]] = {}
    for name, view in config.load_method().views.items():
        lacking = missing_evidence(example, view.context)
        if lacking is not None:
            missing.setdefault(lacking.partition(" (")[0], []).append(f"{name} ({view.context})")
    faults = []
    for what, views in missing.items():
        if what not in EVIDENCE_FIELDS:
            raise DataError(
                f"your own image cannot have {what}, which this run shows to {' and '.join(views)}. Choose a run of "
                "another method, or score an example from the list above."
            )
        faults.append(f"{what}: missing; this run shows it to {' and '.join(views)}. {EVIDENCE_FIELDS[what]}")
    if faults:
        raise DataError(f"{' '.join(faults)} Then score again.")
