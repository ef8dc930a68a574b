"""Early stopping: a run ends when evaluations no longer improve the best value of a metric.

The state is that of the evaluations in metrics.jsonl, so a resumed run decides as an uninterrupted one.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from workbench.config.schema import RunConfig
from workbench.errors import ConfigError, unknown
from workbench.runs.folder import checkpoint_path


class EarlyStopping:
    """Best evaluation so far, and the number of evaluations since.

    A value improves if it is better than the best by more than evaluation.early_stopping_threshold. Higher is better,
    except of calibration_error.

    evaluations  metrics of the earlier evaluations, each with its "step", in order
    """

    def __init__(self, config: RunConfig, evaluations: Iterable[Mapping[str, Any]] = ()) -> None:
        evaluation = config.evaluation
        self.patience, self._threshold = evaluation.early_stopping_patience, evaluation.early_stopping_threshold
        self.metric = config.metric_for_best_model
        self._sign = -1.0 if self.metric.startswith("calibration_error/") else 1.0
        self.best: float | None = None
        self.step = self.best_step = self.since = 0
        for metrics in evaluations if self.patience else ():
            self.update(int(metrics["step"]), metrics)

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Take in one evaluation. Raises ConfigError if it lacks the metric."""
        if not self.patience:
            return
        if self.metric not in metrics:
            names = [name for name in metrics if name.startswith(("accuracy/", "calibration_error/"))]
            raise ConfigError(unknown("evaluation.metric_for_best_model", self.metric, names))
        value, self.step = float(metrics[self.metric]), step
        if self.best is None or self._sign * (value - self.best) > self._threshold:
            self.best_step, self.best, self.since = step, value, 0
        else:
            self.since += 1

    @property
    def exhausted(self) -> bool:
        """Whether the run ends after the last evaluation."""
        return 0 < self.patience <= self.since

    def best_text(self, run_dir: Path) -> str:
        """One sentence on the best evaluation and its checkpoint."""
        where = str(checkpoint_path(run_dir, self.best_step)) if self.best_step else "the student before training"
        return f"best {self.metric}: {self.best:.4f} at step {self.best_step} ({where})"

    def __str__(self) -> str:
        """Why and where the run ended."""
        evaluations = "1 evaluation" if self.since == 1 else f"{self.since} evaluations in a row"
        return (
            f"stopped early at step {self.step}: {evaluations} did not improve {self.metric} by "
            f"more than {self._threshold:g} (evaluation.early_stopping_patience={self.patience})"
        )
