"""Measure a study's time outside its runs, and what a run loses beside another one.

    python -m benchmarks study parts     its processor time: imports, models, examples, everything else
    python -m benchmarks study beside    a run alone and two at a time, beside the same of a plain matrix product

parts   The tasks of a study, all in this process; processor time, one thread.
        Imports are timed in a separate process, the second time, so that files are cached.
beside  Every run is a process of one thread. Steps per second come from the runs' own records, without their start;
        products per second show how much the machine itself loses when both cores work.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from workbench.runs.folder import RunFolder
from workbench.studies import evaluate, task
from workbench.studies.plan import load_study
from workbench.studies.run import _tasks
from workbench.training import learner, loop

PRODUCT = """
import time, torch
torch.set_num_threads(1)
one = torch.randn(512, 512)
until, count = time.perf_counter() + {seconds}, 0
while time.perf_counter() < until:
    one @ one
    count += 1
print(count / {seconds})
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("parts", "beside"))
    parser.add_argument("--study", default="configs/studies/tokens.yaml")
    parser.add_argument("--steps", type=int, default=40, help="of a run")
    parser.add_argument("--repeats", type=int, default=3, help="of beside: turns of one run alone and of two")
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as name:
        (parts if args.what == "parts" else beside)(args, Path(name))


def parts(args: argparse.Namespace, folder: Path) -> None:
    torch.set_num_threads(1)
    took: dict[str, float] = defaultdict(float)
    for _ in range(2):
        start = os.times().children_user + os.times().children_system
        subprocess.run([sys.executable, "-c", "import workbench.studies.task"], check=True)
        took["importing, once a study"] = os.times().children_user + os.times().children_system - start
    start = time.process_time()
    study = load_study(args.study, ["seeds=[0]", f"overrides.training.steps={args.steps}", f"name={folder.name}"])
    took["reading the study, once"] = time.process_time() - start
    patched: tuple[Any, ...] = (learner, evaluate)
    for module in patched:
        module.load_policies = timed(module.load_policies, took, "loading models")
    training: Any = loop
    training.load_run_data = timed(training.load_run_data, took, "rendering examples")
    evaluation: Any = evaluate
    evaluation.load_examples = timed(evaluation.load_examples, took, "rendering examples")
    start = time.process_time()
    for job in _tasks(study):
        if job.reference is not None:
            evaluate.evaluate_reference(job.reference, job.evaluate, folder / job.file.name)
        else:
            task._do_run(replace(job, config=replace(job.config, output_dir=str(folder)), starts=()))
    tasks = time.process_time() - start
    print(
        f"{args.study}: {len(study.usable)} runs of {args.steps} steps and {len(study.references())} models as they are"
    )
    took["everything else"] = tasks - took["loading models"] - took["rendering examples"]
    for name, seconds in took.items():
        print(f"{name:28}{seconds:8.2f} s{100 * seconds / sum(took.values()):7.1f} %")


def timed(call: Callable, took: dict[str, float], name: str) -> Callable:
    def timing(*args: object, **options: object) -> object:
        start = time.process_time()
        try:
            return call(*args, **options)
        finally:
            took[name] += time.process_time() - start

    return timing


def beside(args: argparse.Namespace, folder: Path) -> None:
    steps: dict[int, list[float]] = {1: [], 2: []}
    products: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(args.repeats):
        for number in (1, 2):
            names = [f"{turn}-{number}-{run}" for run in range(number)]
            settings = [
                "method.name=opd",
                f"training.steps={args.steps}",
                "data.eval=null",
                "trace.probes=0",
                f"output_dir={folder}",
            ]
            together(
                [
                    [sys.executable, "-m", "workbench", "train", "configs/demo.yaml", *settings, f"name={name}"]
                    for name in names
                ]
            )
            rates = [
                1 / statistics.median(line["seconds/step"] for line in RunFolder.open(folder / name).metrics("train"))
                for name in names
            ]
            steps[number].append(sum(rates))
            counts = together([[sys.executable, "-c", PRODUCT.format(seconds=5)]] * number)
            products[number].append(sum(float(count) for count in counts))
    for what, by_number in (("steps of opd", steps), ("products of 512 x 512", products)):
        alone, paired = (statistics.median(by_number[number]) for number in (1, 2))
        ratios = [b / a for a, b in zip(by_number[1], by_number[2], strict=True)]
        print(
            f"{what:24}{alone:10.2f}/s alone{paired:10.2f}/s of two{paired / alone:8.2f} times, from {min(ratios):.2f} "
            f"to {max(ratios):.2f}"
        )


def together(commands: list[list[str]]) -> list[str]:
    """Run commands at the same time, each with one thread. Returns their output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    running = [
        subprocess.Popen(process, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for process in commands
    ]
    printed = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        sys.exit(f"{commands[0]} failed")
    return printed


if __name__ == "__main__":
    main()
