"""Steps of one process on one core against two processes on two cores (gloo): wall and processor time.

    python -m benchmarks speedup [--turns 3] [--steps 6] [RECIPE key=value ...]

Each process has one thread. A turn is one process, two that are data parallel, and two with sharded weights (FSDP2),
without and with layers that stay whole from sampling on, with the same batch. The first two steps are not counted. Wall
time means something on idle cores alone. Processor time is that of the process of a turn that takes more of it: what
the other one waits is not in it, nor are pauses of both.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from benchmarks.timing import machine
from workbench.config.schema import load_config
from workbench.training.run import train

WARMUP = 2
ENOUGH = 1.6  # times as fast as one process, at least
QUIET = (
    "data.eval=null",
    "trace.probes=0",
    "training.save_every=0",
    "training.batch_size=32",
    "training.micro_batch_size=16",
)
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
VARIANTS = {
    "one process": (1, {}),
    "two, data parallel": (2, {}),
    "two, sharded": (2, SHARDED),
    "two, sharded, stays whole": (2, SHARDED | {"FSDP_RESHARD_AFTER_FORWARD": "false"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="*", default=["configs/demo.yaml"], help="recipe and overrides")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.out:
        measure(args)
        return
    print(f"{machine()}; load {os.getloadavg()[0]:.1f} before")
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    for _ in range(args.turns):
        for name, (count, environment) in VARIANTS.items():
            turns[name].append(turn(args, count, environment))
    show(turns)


def turn(args: argparse.Namespace, count: int, environment: dict[str, str]) -> tuple[float, float]:
    """Median wall and processor time of a step, of the slowest process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m"]
        if count > 1:
            command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m"]
        command += ["benchmarks.speedup", "--out", folder, "--steps", str(args.steps), *args.recipe]
        environment = {**os.environ, **environment, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        ranks = [json.loads(file.read_text()) for file in Path(folder).glob("rank-*.json")]
    assert len(ranks) == count, f"{len(ranks)} of {count} processes have measured"
    return max(rank["wall"] for rank in ranks), max(rank["processor"] for rank in ranks)


def measure(args: argparse.Namespace) -> None:
    """Train as one of the processes, and note how long its steps take."""
    recipe, *overrides = args.recipe
    fixed = [*QUIET, *overrides, f"training.steps={args.steps}", f"output_dir={args.out}/runs"]
    times: list[tuple[float, float]] = []
    train(load_config(recipe, fixed), on_step=lambda *_: times.append((time.perf_counter(), time.process_time())))
    steps = [(end[0] - start[0], end[1] - start[1]) for start, end in pairwise(times)]
    steps = steps[WARMUP - 1 : -1]  # the last one saves a checkpoint
    wall, processor = (statistics.median(column) for column in zip(*steps, strict=True))
    file = Path(args.out) / f"rank-{os.environ.get('RANK', '0')}.json"
    file.write_text(json.dumps({"wall": wall, "processor": processor}))


def show(turns: dict[str, list[tuple[float, float]]]) -> None:
    """Medians, and how many times as fast as one process."""
    print(f"{'':26}{'wall s':>10}{'speed':>8}{'processor s':>14}{'speed':>8}   (at least {ENOUGH})")
    base = turns["one process"]
    for name, values in turns.items():
        line = f"{name:26}"
        for column, width in ((0, 10), (1, 14)):
            median, other = (statistics.median(turn[column] for turn in rows) for rows in (values, base))
            line += f"{median:{width}.2f}{other / median:8.2f}"
        print(line)


if __name__ == "__main__":
    main()
