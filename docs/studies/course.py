"""How accuracy and entropy went while a study trained, each variant against another one: the paper's Figure 3.

    python docs/studies/course.py runs/finder --against opd [--parts 4]

Of every step's sampled answers, shown plain, as the runs' own metrics have them: questions of the training data, which
all variants of a seed answer them in the same order. Differences are of runs with the same seed; 95 % intervals over
seeds.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from workbench.runs.folder import RunFolder

sys.path.insert(0, str(Path(__file__).parent))
from intervals import came_from, interval

WHAT = {
    "accuracy": ("accuracy of sampled answers, points", 100, 1),
    "entropy": ("entropy, nats per token", 1, 3),
}  # factor, digits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--against", default="opd", help="the variant that others are compared with")
    parser.add_argument("--parts", type=int, default=4, help="of equal length that training is cut into")
    args = parser.parse_args()
    runs: dict[str, list[Path]] = {}
    for file in sorted(args.study.glob("*-s*/metrics.jsonl")):
        runs.setdefault(file.parent.name.rpartition("-s")[0], []).append(file.parent)
    if len(runs.get(args.against, ())) < 2:
        sys.exit(
            f"{args.study} has fewer than two runs of {args.against}. It has: {', '.join(runs) or 'no run at all'}."
        )
    print(f"{came_from(runs[args.against])}; runs of {', '.join(runs)}\n")
    for name, (title, factor, digits) in WHAT.items():
        print(f"### {title}; against {args.against} [95 % interval]\n")
        print(f"| | {' | '.join(steps_of(runs[args.against][0], args.parts))} |\n|---|{'---|' * args.parts}")
        base = course(runs[args.against], name, args.parts)
        for variant, folders in runs.items():
            values = factor * course(folders, name, args.parts)
            cells = [f"{mean:.{digits}f}" for mean in values.mean(0)]
            if variant != args.against and len(values) == len(base):
                cells = [
                    f"{cell}; {against(column, digits)}"
                    for cell, column in zip(cells, (values - factor * base).T, strict=True)
                ]
            print(f"| {variant} | {' | '.join(cells)} |")
        print()


def course(folders: list[Path], name: str, parts: int) -> np.ndarray:
    """Means of a metric, (runs, parts)."""
    values = [[line[name] for line in RunFolder.open(folder).metrics("train")] for folder in folders]
    return np.array(
        [[part.mean() for part in np.array_split(np.array(run_values, dtype=float), parts)] for run_values in values]
    )


def steps_of(folder: Path, parts: int) -> list[str]:
    steps = [line["step"] for line in RunFolder.open(folder).metrics("train")]
    return [f"steps {part[0]} to {part[-1]}" for part in np.array_split(steps, parts)]


def against(differences: np.ndarray, digits: int) -> str:
    mean, half = interval(differences)
    return f"{mean:+.{digits}f} [{mean - half:+.{digits}f}, {mean + half:+.{digits}f}]"


if __name__ == "__main__":
    main()
