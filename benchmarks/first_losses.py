"""Losses of the first three steps of every recipe that runs on the built-in models, to show that a change keeps them.

    python -m benchmarks first_losses > before.json                # at one commit
    python -m benchmarks first_losses --compare before.json        # at another: lists every loss that differs

Losses are written as hexadecimal floats, so equal text is equal bits. One thread; 70 seconds on an idle core.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path

import torch

import workbench as wb
from workbench.errors import WorkbenchError

os.environ["HF_HUB_OFFLINE"] = "1"  # recipes whose models have to be fetched are left out

SMALL = ["training.steps=3", "training.save_every=0", "data.eval=null", "trace.probes=0", "models.device=cpu"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", type=Path, help="a file written by this command at another commit")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    losses = {recipe.stem: first_losses(recipe) for recipe in sorted(Path("configs").glob("*.yaml"))}
    losses = {name: values for name, values in losses.items() if values is not None}
    if args.compare is None:
        print(json.dumps(losses, indent=1))
        return
    before = json.loads(args.compare.read_text())
    common = sorted(before.keys() & losses.keys())
    changed = [name for name in common if before[name] != losses[name]]
    for name in changed:
        print(f"{name}: {[float.fromhex(x) for x in before[name]]} -> {[float.fromhex(x) for x in losses[name]]}")
    print(f"{len(common) - len(changed)} of {len(common)} recipes have equal losses in every bit")
    sys.exit(bool(changed))


def first_losses(recipe: Path) -> list[str] | None:
    """Hexadecimal losses of three steps; None for a recipe whose models or data are not here."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        try:
            config = wb.load_config(str(recipe), [*SMALL, f"name={recipe.stem}", f"output_dir={folder}"])
            run_dir = wb.train(config).run_dir
        except WorkbenchError as error:
            print(f"{recipe.stem}: {error}", file=sys.stderr)
            return None
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [
        float(value).hex() for line in lines for key, value in line.items() if key == "loss" or key.endswith("/loss")
    ]


if __name__ == "__main__":
    main()
