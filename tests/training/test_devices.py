"""Runs on a device whose tensors do not mix with the CPU's: what a GPU would refuse is found without one."""

import json
from pathlib import Path

from processes import Program

PREAMBLE = """
import itertools, json, logging, os, sys
import torch
torch.set_num_threads(1)
import foreign_device
foreign_device.install()
from small import run_config
from workbench.config.schema import load_config
from workbench.data.examples import load_examples
from workbench.distill import rollouts
from workbench.runs.folder import RunFolder
from workbench.training.check import check_config
from workbench.training.export import export_student
from workbench.training.run import resume, train
from workbench.training.scorer import evaluate_run, open_scorer

folder, student, teacher, name, *settings = sys.argv[1:]
models = {"student": student, "teacher": teacher}
turns = itertools.cycle([1.0, 0.0])
rollouts.grade = lambda *_, **__: next(turns)  # random models are never right

def finished(label, device="foreign", **values):
    config = run_config(models, folder, name=f"{label}-{device}", models__device=device, **values)
    train(config)
    return config

def losses(config):
    return [line["loss"] for line in RunFolder.open(config.run_dir).metrics("train")]
"""
METHODS = """
quick = {"training__steps": 1, "data__eval": None, "trace__probes": 0}
print(json.dumps({name: losses(finished(name, method={"name": name}, **quick)) for name in name.split()}))
"""
COMMANDS = """
import shutil
values = {"method": {"name": "dopd", "privilege": "crop"}, "training__steps": 2}
config = finished("run", **values, training__save_every=1)
same = finished("run", "cpu", **values)
assert all(abs(here - there) < 1e-5 for here, there in zip(losses(config), losses(same), strict=True))
shutil.rmtree(config.run_dir / "checkpoint-000002")
whole = losses(config)
resume(config.run_dir)
assert losses(config) == whole
assert {check.status for check in check_config(config)} <= {"ok", "note"}
scorer = open_scorer(config.run_dir, device="foreign")
scorer.score(load_examples("scenes:eval?count=1")[0])
assert scorer.learner.student.device.type == "foreign"
export_student(config.run_dir, os.path.join(folder, "exported"))
assert evaluate_run(config.run_dir)
adapted = finished("adapted", method={"name": "opsd"}, training__steps=1, data__eval=None, models__lora={"rank": 2})
export_student(adapted.run_dir, os.path.join(folder, "merged"))
print("done")
"""


def run(code: str, folder: Path, models: dict[str, Path], name: str = "") -> str:
    program = Program(folder / "program", PREAMBLE + code, str(folder), *map(str, models.values()), name)
    assert program.wait() == 0, program.err.read_text()[-3000:]
    return program.out.read_text().splitlines()[-1]


def test_methods_on_another_device_train(models: dict, tmp_path: Path) -> None:
    by_method = json.loads(run(METHODS, tmp_path, models, "grpo lm_kd mopd sdpo spd"))
    assert all(any(losses) for losses in by_method.values()), by_method


def test_masked_diffusion_on_another_device_trains(tmp_path: Path) -> None:
    from families import save_modernvbert  # noqa: PLC0415

    models = {name: save_modernvbert(tmp_path / name, seed) for seed, name in enumerate(("student", "teacher"))}
    by_method = json.loads(run(METHODS, tmp_path, models, "opd d_opsd"))
    assert all(any(losses) for losses in by_method.values()), by_method


def test_commands_on_another_device_keep_their_tensors_there(models: dict, tmp_path: Path) -> None:
    assert run(COMMANDS, tmp_path, models) == "done"
