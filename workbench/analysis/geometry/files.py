"""Measure the geometry of a run's update, save and read it, and format it for a terminal.

RUN/geometry/   geometry.json    what was compared, metrics by group, meaning of every column
                tensors.parquet  a row per tensor, precision and delta
                figure.html      the figures, self-contained
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from workbench.analysis.geometry.measure import RANDOM, UPDATE, Geometry, columns, compare
from workbench.analysis.summary import format_table
from workbench.config.schema import load_config
from workbench.errors import ConfigError, RunError
from workbench.files.folders import reason, saving
from workbench.files.parsing import read_object
from workbench.policies.tensors import Weights, open_weights
from workbench.runs.checkpoints import latest_checkpoint
from workbench.runs.folder import RunFolder

FOLDER, _FACTS, _TENSORS = "geometry", "geometry.json", "tensors.parquet"
NOT_MEASURED = "The geometry of this run is not measured yet. Press Measure, or run: workbench geometry RUN"


@dataclass(frozen=True)
class ModelPair:
    """Two checkpoints to compare, and facts on the training between them."""

    source: Weights
    target: Weights
    facts: dict[str, object]


@dataclass(frozen=True)
class Measured:
    """A geometry with its facts: source and target; for a run also name, method, step and learning rate."""

    geometry: Geometry
    facts: dict[str, object]

    @property
    def title(self) -> str:
        details = [
            f"{name.replace('_', ' ')} {self.facts[name]}" for name in ("step", "learning_rate") if name in self.facts
        ]
        return ", ".join([str(self.facts["name"]), *details])


def pair_of_run(run_dir: str | Path) -> ModelPair:
    """The model that a run started from, and the student of its newest complete checkpoint.

    Raises: RunError if the run has no checkpoint yet; PolicyError if either model has no weights.
    """
    folder = RunFolder.open(run_dir)
    config = load_config(folder.path / "config.yaml")
    checkpoint, torn = latest_checkpoint(folder.path)
    if checkpoint is None:
        raise RunError(
            f"{folder.path} has no complete checkpoint to compare with its start. "
            f"{''.join(f'{fault} ' for fault in torn)}"
            f"Wait for the first one (training.save_every), or run `workbench resume {folder.path}`."
        )
    training = vars(config.training)
    facts = {"name": folder.path.name, "method": folder.status.get("method"), "step": checkpoint.step}
    facts |= {key: training[key] for key in ("learning_rate", "weight_decay", "update_mask")}
    return ModelPair(open_weights(config.models.student), open_weights(checkpoint.student), facts)


def pair_of(first: str | Path, second: str | Path | None = None) -> ModelPair:
    """The start and the newest checkpoint of one run; or two models, each given as a folder, a checkpoint or a run.

    Raises: ConfigError if only one model is given; RunError, PolicyError as `pair_of_run`.
    """
    if second is not None:
        source, target = (open_weights(_model(Path(path))) for path in (first, second))
        return ModelPair(source, target, {"name": f"{first} to {second}"})
    if not (Path(first) / "run.json").is_file():
        raise ConfigError(
            f"{first} is not a run folder, and a single model has no update. Give a run (workbench geometry "
            "runs/NAME), or two model folders (workbench geometry BEFORE AFTER)."
        )
    return pair_of_run(first)


def measure_pair(
    pair: ModelPair, *, seed: int = 0, device: str = "cpu", say: Callable[[str], None] = lambda name: None
) -> Measured:
    """Measure all metrics of a pair; see `measure.compare`."""
    geometry = compare(pair.source, pair.target, seed=seed, device=device, say=say)
    facts = {**pair.facts, "source": str(pair.source.folder), "target": str(pair.target.folder), "control_seed": seed}
    return Measured(geometry, facts)


def save(measured: Measured, folder: str | Path, page: str) -> Path:
    """Write the three files and return the folder. Raises RunError if it cannot be written."""
    folder, geometry = Path(folder), measured.geometry
    facts = {
        **measured.facts,
        "left_out": list(geometry.left_out),
        "columns": columns(),
        "groups": _plain(geometry.groups),
    }
    with saving(folder, "Free some space or choose another --out."):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = {name: folder / f".{name}" for name in (_TENSORS, "figure.html", _FACTS)}
        try:
            geometry.tensors.to_parquet(temporary[_TENSORS], index=False, write_page_checksum=True)
            temporary["figure.html"].write_text(page, encoding="utf-8")
            temporary[_FACTS].write_text(json.dumps(facts, indent=1), encoding="utf-8")
            for name, file in temporary.items():
                file.replace(folder / name)
        finally:
            for file in temporary.values():
                file.unlink(missing_ok=True)
    return folder


def read(folder: str | Path) -> Measured | None:
    """Read a saved geometry; None if there is none. Raises RunError for files that cannot be read."""
    folder = Path(folder)
    if not (folder / _FACTS).is_file():
        return None
    try:
        facts = read_object(folder / _FACTS)
        groups, left_out = pd.DataFrame(facts.pop("groups")), tuple(facts.pop("left_out"))
        return Measured(Geometry(pd.read_parquet(folder / _TENSORS), groups, left_out), facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{folder} cannot be read ({reason(error)}). Delete it and measure again: workbench geometry RUN."
        ) from None


def format_geometry(measured: Measured) -> str:
    """Format a geometry as two tables for a terminal: size and sparsity; rank and location."""
    names = list(dict.fromkeys(measured.geometry.groups["group"]))
    groups = measured.geometry.groups.set_index(["precision", "delta", "group"])
    left_out = measured.geometry.left_out
    head = [measured.title, f"  {measured.facts['source']}", f"  -> {measured.facts['target']}"]
    if left_out:
        head.append(f"  Not compared, not floating-point: {', '.join(left_out)}")
    return "\n".join(
        [
            *head,
            "",
            _size_table(groups, names),
            "",
            _location_table(groups, names),
            "  in brackets: the control, a Gaussian of the same norm in every tensor. Ranks and shares of directions:",
            "  medians over matrices, float32. enriched: 1 = as for a random mask of as many coordinates, bfloat16",
        ]
    )


def _size_table(groups: pd.DataFrame, names: list[str]) -> str:
    header = ["group", "tensors", "weights", "relative", "of energy"]
    header += ["unchanged, fp32", "unchanged, bf16", "< 1e-5, fp32", "< 1e-5, bf16"]
    rows = [
        [
            name,
            f"{_value(groups, name, 'tensors'):,.0f}",
            f"{_value(groups, name, 'coordinates'):,.0f}",
            _share(_value(groups, name, "relative_delta")),
            _share(_value(groups, name, "energy_share")),
            *(
                _with_control(groups, name, column, _share, precision)
                for column in ("unchanged", "below_1e-05")
                for precision in ("float32", "bfloat16")
            ),
        ]
        for name in names
    ]
    return format_table(header, rows)


def _location_table(groups: pd.DataFrame, names: list[str]) -> str:
    header = ["group", "stable rank", "top 16 directions", "in top 10%", "enriched on principal", "on small weights"]
    rows = [
        [
            name,
            _with_control(groups, name, "stable_rank", _number),
            _with_control(groups, name, "energy_top_16", _share),
            _with_control(groups, name, "projection_10pct", _share),
            _with_control(groups, name, "enrichment_principal_10pct_0e+00", _number, "bfloat16"),
            _with_control(groups, name, "enrichment_low_10pct_0e+00", _number, "bfloat16"),
        ]
        for name in names
        if _value(groups, name, "stable_rank") is not None
    ]
    return format_table(header, rows)


def _value(
    groups: pd.DataFrame, name: str, column: str, precision: str = "float32", delta: str = UPDATE
) -> float | None:
    value = groups.at[(precision, delta, name), column]
    return None if pd.isna(value) else float(value)


def _with_control(groups: pd.DataFrame, name: str, column: str, show: Callable, precision: str = "float32") -> str:
    """The update's value and, in brackets, the control's."""
    update, control = (_value(groups, name, column, precision, delta) for delta in (UPDATE, RANDOM))
    return f"{show(update)} ({show(control)})"


def _model(path: Path) -> Path:
    """The model folder of a run, a checkpoint or a model."""
    if (path / "run.json").is_file():
        checkpoint, _ = latest_checkpoint(path)
        if checkpoint is None:
            raise RunError(f"{path} has no complete checkpoint. Wait for the first one, or give a model folder.")
        return checkpoint.student
    return path / "student" if (path / "student").is_dir() else path


def _plain(frame: pd.DataFrame) -> list[dict]:
    """Rows of plain values, None for missing ones."""
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}" if 0 < value < 0.1 else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
