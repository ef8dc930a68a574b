"""The parameter average of models of one shape."""

from pathlib import Path

import torch
from failures import raises
from families import save_llava

from workbench.errors import ConfigError
from workbench.policies.autoregressive import load_policy
from workbench.policies.average import average_models


def test_average_has_mean_weights(models: dict[str, Path], tmp_path: Path) -> None:
    output = average_models([models["student"], models["teacher"]], tmp_path / "mean")
    first, second, mean = (
        dict(load_policy(folder, "one").model.named_parameters())
        for folder in (models["student"], models["teacher"], output)
    )
    assert all(torch.allclose(mean[name], (first[name] + second[name]) / 2, atol=1e-6) for name in first)


def test_average_of_other_shapes_raises(models: dict[str, Path], tmp_path: Path) -> None:
    with raises(ConfigError, "architecture"):
        average_models([models["student"], save_llava(tmp_path / "llava")], tmp_path / "mean")
    with raises(ConfigError, "got 1"):
        average_models([models["student"]], tmp_path / "mean")
