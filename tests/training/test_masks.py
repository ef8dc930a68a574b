"""An update mask trains its coordinates and leaves every other bit: through steps, weight decay and a resume."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from failures import raises
from families import save_llava
from small import run_config

from workbench.config.schema import RunConfig
from workbench.errors import ConfigError, RunError
from workbench.policies.tensors import Weights, open_weights
from workbench.runs.checkpoints import list_checkpoints
from workbench.training.learner import build_learner
from workbench.training.run import train
from workbench.training.update_mask import mask_facts, read_mask, write_mask, write_random_mask


@pytest.fixture(scope="module")
def pair(models: dict, trained: Path) -> tuple[Weights, Weights]:
    """Start and end of a run."""
    return open_weights(models["student"]), open_weights(list_checkpoints(trained / "opd")[-1].student)


@pytest.fixture(scope="module")
def mask(pair: tuple, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run moved by more than 2e-3."""
    file = tmp_path_factory.mktemp("mask") / "found.safetensors"
    write_mask(file, *pair, dtype="float32", above=2e-3)
    return file


def masked(models: dict, folder: Path, file: Path, **values: object) -> RunConfig:
    values = {
        "training__weight_decay": 0.1,
        "training__steps": 3,
        "training__save_every": 1,
        "evaluation__max_examples": 2,
        **values,
    }
    return run_config(models, folder, method={"name": "opd"}, training__update_mask=str(file), **values)


def last(config: RunConfig) -> dict[str, torch.Tensor]:
    weights = open_weights(list_checkpoints(config.run_dir)[-1].student)
    return {name: weights.tensor(name) for name in weights.shapes}


def test_update_mask_holds_changed_coordinates(pair: tuple, tmp_path: Path) -> None:
    shares = {}
    for dtype in ("float32", "bfloat16"):
        facts = write_mask(tmp_path / "mask.safetensors", *pair, dtype=dtype)
        shares[dtype] = int(facts["coordinates"]) / int(facts["of"])
        result = read_mask(tmp_path / "mask.safetensors")
        for name in pair[0].shapes:
            values = [item.tensor(name).to(getattr(torch, dtype)) for item in pair]
            assert torch.equal(result[name], values[0] != values[1])
    assert shares["bfloat16"] < shares["float32"]
    assert mask_facts(tmp_path / "mask.safetensors")["dtype"] == "bfloat16"
    with raises(ConfigError, "than 1"):
        write_mask(tmp_path / "none.safetensors", *pair, dtype="float32", above=1.0)


def test_random_mask_has_equal_counts_per_tensor(mask: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{seed}.safetensors" for seed in (0, 1)]
    for seed, file in enumerate(files):
        assert write_random_mask(file, mask, seed=seed)["coordinates"] == mask_facts(mask)["coordinates"]
    result, first, second = (read_mask(file) for file in (mask, *files))
    assert all(result[name].sum() == first[name].sum() == second[name].sum() for name in result)
    assert any(not torch.equal(first[name], second[name]) for name in result)


def test_update_mask_keeps_other_bits_through_resume(models: dict, mask: Path, tmp_path: Path) -> None:
    start, chosen = open_weights(models["student"]), read_mask(mask)
    config = masked(models, tmp_path, mask)
    train(config)
    after = last(config)
    moved = 0
    for name, item in chosen.items():
        before = start.tensor(name)
        assert torch.equal(after[name][~item].view(torch.int32), before[~item].view(torch.int32)), name
        moved += int((after[name][item] != before[item]).sum())
    assert moved > 0.9 * sum(int(entry.sum()) for entry in chosen.values())
    stopped = masked(models, tmp_path, mask, name="stopped")

    def interrupt(step: int, metrics: dict) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stopped, on_step=interrupt)
    train(stopped, resume=True)
    assert all(torch.equal(value, last(stopped)[name]) for name, value in after.items())
    everything = write_random_mask(tmp_path / "other.safetensors", mask, seed=0)
    assert everything["coordinates"] == mask_facts(mask)["coordinates"]
    (list_checkpoints(stopped.run_dir)[-1].path / "state.json").unlink()
    with raises(RunError, "training.update_mask"):
        train(masked(models, tmp_path, tmp_path / "other.safetensors", name="stopped"), resume=True)


def test_update_mask_of_everything_equals_no_mask(models: dict, tmp_path: Path) -> None:
    start = open_weights(models["student"])
    zeros = {name: torch.zeros(shape) for name, shape in start.shapes.items()}
    folders = [tmp_path / "zeros", tmp_path / "ones"]
    for value, folder in enumerate(folders):
        folder.mkdir()
        safetensors.torch.save_file({name: each + value for name, each in zeros.items()}, folder / "model.safetensors")
    write_mask(tmp_path / "all.safetensors", *map(open_weights, folders))
    learners = []
    for config in (masked(models, tmp_path, tmp_path / "all.safetensors"), masked(models, tmp_path, "")):
        learner = build_learner(config, config.load_method())
        for position, parameter in enumerate(learner.parameters):
            parameter.grad = torch.full_like(parameter, 0.1 * position)
        learner.clip_gradients()
        learner.update(1)
        learners.append(learner)
    assert learners[0].mask.size == sum(entry.numel() for entry in learners[0].parameters) and learners[1].mask is None
    assert all(torch.equal(*both) for both in zip(*(item.parameters for item in learners), strict=True))


def test_update_mask_of_other_model_raises(mask: Path, models: dict, tmp_path: Path) -> None:
    llava = save_llava(tmp_path / "llava", 0)
    config = masked({**models, "student": llava, "teacher": llava}, tmp_path, mask)
    with raises(ConfigError, "another model", "more"):
        build_learner(config, config.load_method())


def test_update_mask_of_family_with_other_file_names_applies(models: dict, tmp_path: Path) -> None:
    llava = save_llava(tmp_path / "llava", 0)
    write_mask(tmp_path / "mask.safetensors", open_weights(llava), open_weights(save_llava(tmp_path / "other", 1)))
    config = masked({"student": llava, "teacher": llava}, tmp_path, tmp_path / "mask.safetensors")
    assert build_learner(config, config.load_method()).mask.size > 0


@pytest.mark.parametrize("content", [None, b"torn", {"a": torch.ones(2, dtype=torch.bool)}])
def test_update_mask_other_file_raises(content: object, models: dict, tmp_path: Path) -> None:
    file = tmp_path / "mask.safetensors"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        safetensors.torch.save_file(content, file)
    config = masked(models, tmp_path, file)
    with raises(ConfigError, "RUN", "--save-mask", "FILE"):
        build_learner(config, config.load_method())


def test_update_mask_with_adapters_raises(models: dict, mask: Path, tmp_path: Path) -> None:
    with raises(ConfigError, "update_mask", "lora.rank"):
        run_config(models, tmp_path, training__update_mask=str(mask), models__lora={"rank": 2})
