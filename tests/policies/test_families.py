"""Every family is checked, trained a step, saved, loaded again, and resumed to the same weights."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from families import FAMILIES, TEXT_FAMILIES
from small import run_config
from video_families import VIDEO_FAMILIES

from workbench.config.schema import RunConfig
from workbench.policies.loading import load_policy
from workbench.runs.checkpoints import list_checkpoints
from workbench.runs.folder import RunFolder
from workbench.traces.reader import open_traces
from workbench.training.check import check_config, is_good
from workbench.training.run import train

ALL = FAMILIES | VIDEO_FAMILIES | TEXT_FAMILIES


def text_data(folder: Path) -> dict[str, str]:
    """Questions without images, for models without eyes."""
    rows = [
        {"question": f"what is {n} and {n}?", "answer": str(2 * n), "hint": f"the answer is below {3 + 2 * n}"}
        for n in range(4)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"method__privilege": "hint+answer", "data__train": str(folder / "data.jsonl")}


@pytest.fixture(params=list(ALL))
def config(request: pytest.FixtureRequest, tmp_path: Path) -> RunConfig:
    """Two DOPD steps; teacher and privileged student are shown a crop as one more image, and boxes as text."""
    save = ALL[request.param]
    folders = {"student": save(tmp_path / "student", 0), "teacher": save(tmp_path / "teacher", 1)}
    displayed = {"method__privilege": "crop+boxes", "data__train": "scenes:train?count=4"}
    if request.param in TEXT_FAMILIES:
        displayed = text_data(tmp_path)
    quick = {"training__steps": 2, "training__batch_size": 2, "training__save_every": 1, "trace__probes": 0}
    return run_config(folders, tmp_path, sampling__max_completion_length=4, data__eval=None, **quick, **displayed)


@pytest.mark.parametrize("family", [*VIDEO_FAMILIES, "gemma3", "paligemma", "llava_next"])
def test_family_adapters_train_over_half_precision(family: str, tmp_path: Path) -> None:
    """What is advised for real models: the model in bfloat16, adapters in float32."""
    folders = {name: ALL[family](tmp_path / name, seed) for seed, name in enumerate(("student", "teacher"))}
    settings = {name: str(folder) for name, folder in folders.items()} | {"dtype": "bfloat16", "lora": {"rank": 2}}
    quick = {"training__steps": 1, "training__batch_size": 1, "trace__probes": 0, "sampling__max_completion_length": 4}
    config = run_config(folders, tmp_path, models=settings, method__privilege="crop+boxes", data__eval=None, **quick)
    result = train(config)
    saved = safetensors.torch.load_file(list_checkpoints(config.run_dir)[-1].student / "adapter_model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}
    assert any(value.any() for name, value in saved.items() if "lora_B" in name) and not result.warnings


def test_family_is_checked_trained_saved_and_resumed(config: RunConfig) -> None:
    checks = check_config(config)
    assert is_good(checks), [check for check in checks if check.status == "WRONG"]
    start = load_policy(config.models.student, "student").model.state_dict()

    train(config)
    whole = RunFolder.open(config.run_dir).metrics("train")
    assert open_traces(config.run_dir).summary()["positions"] == sum(line["tokens"] for line in whole)
    two = list_checkpoints(config.run_dir)[-1]
    trained = load_policy(two.student, "student")
    weights = trained.model.state_dict()
    assert any(not torch.equal(start[name], value) for name, value in weights.items())

    shutil.rmtree(two.path)
    train(config, resume=True)
    assert [line["loss"] for line in RunFolder.open(config.run_dir).metrics("train")] == [
        line["loss"] for line in whole
    ]
    again = load_policy(list_checkpoints(config.run_dir)[-1].student, "student")
    assert all(torch.equal(weights[name], value) for name, value in again.model.state_dict().items())
    assert again.encoder.encodes_as(load_policy(config.models.student, "student").encoder)
