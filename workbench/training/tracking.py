"""Accelerator of a run, with its experiment trackers."""

from pathlib import Path

from accelerate import Accelerator

from workbench.config.schema import RunConfig
from workbench.errors import ConfigError
from workbench.files.parsing import flatten


def build_accelerator(config: RunConfig, run_dir: Path) -> Accelerator:
    """Build the Accelerator. Raises ConfigError for a tracker that is not installed."""
    training = config.training
    try:
        accelerator = Accelerator(log_with=training.report_to or None, project_dir=str(run_dir))
    except ValueError as error:
        raise ConfigError(f"training.report_to={training.report_to} is not valid: {error}") from None
    missing = set(training.report_to) - {str(tracker) for tracker in accelerator.log_with}
    if missing:
        raise ConfigError(
            f"training.report_to: {', '.join(sorted(missing))} is not installed. Install it with pip, or leave it out."
        )
    if training.report_to:
        accelerator.init_trackers("workbench", config=_scalars(config.to_dict()))
    return accelerator


def _scalars(values: dict) -> dict[str, object]:
    """Flatten nested values to dotted keys, other values than scalars as text, as trackers expect."""
    flat = flatten(values)
    return {key: value if isinstance(value, (int, float, str, bool)) else str(value) for key, value in flat.items()}
