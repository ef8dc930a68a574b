"""A checkpoint is all there or is passed over, and none is deleted for one that is torn."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from failures import raises
from small import run_config

from workbench.errors import RunError
from workbench.runs.checkpoints import latest_checkpoint, list_checkpoints, open_checkpoint, refuse_other_run
from workbench.training.checkpointing import load_optimizer, save_checkpoint
from workbench.training.learner import Learner, build_learner


@pytest.fixture(scope="module")
def learner(models: dict, tmp_path_factory: pytest.TempPathFactory) -> Learner:
    config = run_config(
        models, tmp_path_factory.mktemp("unused"), method={"name": "opsd", "self_policy": "student@ema"}
    )
    learner = build_learner(config, config.load_method())
    for parameter in learner.parameters:
        parameter.grad = torch.ones_like(parameter)
    learner.update(1)
    return learner


def save(folder: Path, learner: Learner, *steps: int, save_total_limit: int = 0) -> None:
    for step in steps:
        save_checkpoint(folder, step, [learner], save_total_limit=save_total_limit)


def tear(folder: Path, step: int) -> None:
    file = folder / f"checkpoint-{step:06d}" / "student" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def steps(folder: Path) -> list[int]:
    return [checkpoint.step for checkpoint in list_checkpoints(folder)]


def test_save_checkpoint_keeps_best_beside_newest(learner: Learner, tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, step, [learner], save_total_limit=1, best_step=2)
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [2, 4]


@pytest.mark.parametrize(("keep", "left"), [(0, [1, 2, 10, 100]), (1, [100]), (3, [2, 10, 100]), (9, [1, 2, 10, 100])])
def test_checkpoints_keep_the_newest(keep: int, left: list[int], learner: Learner, tmp_path: Path) -> None:
    save(tmp_path, learner, 1, 2, 10, 100, save_total_limit=keep)
    assert steps(tmp_path) == left
    assert latest_checkpoint(tmp_path)[0].step == 100


def test_checkpoint_saved_and_loaded_is_equal(learner: Learner, models: dict, tmp_path: Path) -> None:
    save(tmp_path, learner, 7)
    checkpoint = open_checkpoint(tmp_path / "checkpoint-000007")
    config = run_config(models, tmp_path, method={"name": "opsd", "self_policy": "student@ema"})
    again = build_learner(config, config.load_method(), checkpoint=checkpoint)
    load_optimizer(checkpoint, again.optimizer, again.student.model)
    for name in ("student", "student@ema"):
        values, loaded = (entry.policies[name].model.state_dict() for entry in (learner, again))
        assert all(torch.equal(value, loaded[key]) for key, value in values.items())
    for first, second in zip(learner.parameters, again.parameters, strict=True):
        for key, value in learner.optimizer.state[first].items():
            assert torch.equal(value, again.optimizer.state[second][key])


def test_checkpoint_torn_is_skipped_and_named(learner: Learner, tmp_path: Path) -> None:
    save(tmp_path, learner, 2, 4, 6)
    tear(tmp_path, 4)
    (tmp_path / "checkpoint-000006" / "state.json").unlink()
    result, torn = latest_checkpoint(tmp_path)
    assert result.step == 2
    assert len(torn) == 2 and "state.json" in torn[0] and "instead of" in torn[1]
    tear(tmp_path, 2)
    assert latest_checkpoint(tmp_path)[0] is None
    assert latest_checkpoint(tmp_path / "nowhere") == (None, [])


def test_checkpoint_damaged_at_equal_size_is_skipped(learner: Learner, tmp_path: Path) -> None:
    save(tmp_path, learner, 2, 4)
    weights = tmp_path / "checkpoint-000004" / "student" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    result, torn = latest_checkpoint(tmp_path, reads=True)
    assert result.step == 2 and "model.safetensors does not match" in torn[0]


@pytest.mark.parametrize("state", ["", "[]", '{"files": {}}', '{"files": 3, "step": 1}', '{"step": 1}', "null"])
def test_checkpoint_with_empty_state_raises(state: str, learner: Learner, tmp_path: Path) -> None:
    save(tmp_path, learner, 1)
    (tmp_path / "checkpoint-000001" / "state.json").write_text(state)
    with raises(RunError, "checkpoint"):
        open_checkpoint(tmp_path / "checkpoint-000001")


def test_checkpoint_is_kept_if_a_later_one_is_torn(learner: Learner, tmp_path: Path) -> None:
    save(tmp_path, learner, 2, 4)
    tear(tmp_path, 4)  # the run goes on from 2, and is stopped at 3
    save(tmp_path, learner, 3, save_total_limit=1)
    assert latest_checkpoint(tmp_path)[0].step == 3
    save(tmp_path, learner, 4, save_total_limit=1)
    assert steps(tmp_path) == [4] and latest_checkpoint(tmp_path)[1] == []


def test_checkpoint_half_written_is_ignored(learner: Learner, tmp_path: Path) -> None:
    (tmp_path / ".checkpoint-000003" / "student").mkdir(parents=True)
    (tmp_path / "checkpoint-notes").mkdir()
    assert steps(tmp_path) == []
    save(tmp_path, learner, 5)
    assert steps(tmp_path) == [5]
    assert not list(tmp_path.glob(".checkpoint-*"))


def test_optimizer_weight_without_gradient_has_no_moments(learner: Learner, tmp_path: Path) -> None:
    save(tmp_path, learner, 1)
    checkpoint, model = open_checkpoint(tmp_path / "checkpoint-000001"), learner.student.model
    saved = safetensors.torch.load_file(checkpoint.optimizer("student"))
    item = next(name for name, _ in model.named_parameters())
    kept = {key: value for key, value in saved.items() if key.partition("/")[2] != item}
    safetensors.torch.save_file(kept, checkpoint.optimizer("student"))
    fresh = torch.optim.AdamW(learner.parameters)
    load_optimizer(checkpoint, fresh, model)
    assert len(fresh.state) == len(learner.parameters) - 1


def test_optimizer_state_of_other_weights_raises(learner: Learner, models: dict, tmp_path: Path) -> None:
    save(tmp_path, learner, 1)
    checkpoint = open_checkpoint(tmp_path / "checkpoint-000001")
    other = torch.nn.Linear(2, 2)
    with raises(RunError, "optimizer state", "weight weight"):
        load_optimizer(checkpoint, torch.optim.AdamW(other.parameters()), other)
    (checkpoint.path / "optimizer.safetensors").write_bytes(b"x" * 40)
    with raises(RunError, "cannot read"):
        load_optimizer(checkpoint, learner.optimizer, learner.student.model)
    assert json.loads((checkpoint.path / "state.json").read_text())["step"] == 1


def test_checkpoint_of_other_config_raises(learner: Learner, models: dict, tmp_path: Path) -> None:
    save(tmp_path, learner, 1)
    checkpoint = open_checkpoint(tmp_path / "checkpoint-000001")
    requested = {"learner": "student", "start": models["student"], "lora": False, "averages": False}
    refuse_other_run(checkpoint, **requested)
    refuse_other_run(checkpoint, **requested | {"start": "owner/name-on-the-hub"})
    refuse_other_run(checkpoint, **requested | {"averages": True})
    shutil.rmtree(checkpoint.ema("student"))
    wider = tmp_path / "wider"
    wider.mkdir()
    config = json.loads((models["student"] / "config.json").read_text())
    config["text_config"]["hidden_size"] = 64
    (wider / "config.json").write_text(json.dumps(config))
    for change, fault in (
        ({"learner": "ann"}, 'it has no learner "ann"'),
        ({"lora": True}, r"whole weights.*models\.lora\.rank"),
        ({"averages": True}, "moving average"),
        ({"start": wider}, "hidden_size 32.*wider has 64"),
    ):
        with pytest.raises(RunError, match=f"belongs to another configuration: .*{fault}.*start a new run"):
            refuse_other_run(checkpoint, **requested | change)
