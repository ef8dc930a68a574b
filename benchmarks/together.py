"""Compare runs at once with the same runs in sequence: threads that spin for each other's core would multiply the time.

    python -m benchmarks together [--at-once 2 4] [--steps 20] [--repeats 3] [RECIPE key=value ...]

Each run is a separate process, started as usual: `workbench train` with the machine's own number of
threads (OMP_NUM_THREADS and OMP_WAIT_POLICY are taken out of the environment unless --keep-environment). A turn is N
runs one after the other, then N at once; the ratio of the two is what counts, 1.15 at most. On an idle machine with
more than one core it is below 1, since one run does not keep all cores busy. Processor time counts all threads and is
nearly the same whatever else the machine does: spinning shows there too.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.timing import Turn

MOST = 1.15  # what N at once may take of N one after the other
LEFT_OUT = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "GOMP_SPINCOUNT")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="*", default=["configs/demo.yaml"], help="recipe and overrides of each run")
    parser.add_argument("--at-once", type=int, nargs="+", default=[2, 4], help="numbers of runs")
    parser.add_argument("--steps", type=int, default=20, help="steps of a run")
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parser.add_argument("--keep-environment", action="store_true", help="as OMP_NUM_THREADS and the like are set here")
    args = parser.parse_args()
    environment = {key: value for key, value in os.environ.items() if args.keep_environment or key not in LEFT_OUT}
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before; {args.steps} steps of {' '.join(args.recipe)}"
    )
    print(
        f"{'runs':>6}{'in turn s':>12}{'at once s':>12}{'ratio':>8}{'quartiles':>18}{'processor s':>14}{'at once':>10}"
    )
    for count in args.at_once:
        turns = [
            (train(args, environment, [1] * count), train(args, environment, [count])) for _ in range(args.repeats)
        ]
        show(count, turns)


def train(args: argparse.Namespace, environment: dict[str, str], groups: list[int]) -> Turn:
    """Train groups of runs in sequence, the runs of a group at once, in temporary folders."""
    before, start = os.times(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for number, size in enumerate(groups):
            runs = [begin(args, environment, folder, f"run-{number}-{idx}") for idx in range(size)]
            for idx, run in enumerate(runs):
                if run.wait() != 0:
                    log = Path(folder, f"run-{number}-{idx}.log").read_text()
                    sys.exit(f"a run ended with status {run.returncode}:\n{log[-2000:]}")
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return Turn(time.perf_counter() - start, spent)


def begin(args: argparse.Namespace, environment: dict[str, str], folder: str, name: str) -> subprocess.Popen:
    overrides = [f"training.steps={args.steps}", "data.eval=null", f"output_dir={folder}", f"name={name}"]
    command = [sys.executable, "-m", "workbench", "train", *args.recipe, *overrides]
    with Path(folder, f"{name}.log").open("w") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def show(count: int, turns: list[tuple[Turn, Turn]]) -> None:
    in_turn, at_once = zip(*turns, strict=True)
    ratios = [together.wall_s / alone.wall_s for alone, together in turns]
    low, high = (ratios * 2)[:2] if len(ratios) < 2 else statistics.quantiles(ratios, n=4)[::2]
    wall = [statistics.median(turn.wall_s for turn in side) for side in (in_turn, at_once)]
    processor = [statistics.median(turn.processor_s for turn in side) for side in (in_turn, at_once)]
    ratio = statistics.median(ratios)
    verdict = "" if ratio <= MOST else f"  more than {MOST}"
    print(
        f"{count:6}{wall[0]:12.1f}{wall[1]:12.1f}{ratio:8.3f}{low:9.3f} .. {high:.3f}{processor[0]:14.1f}"
        f"{processor[1]:10.1f}{verdict}"
    )


if __name__ == "__main__":
    main()
