"""Time to list many runs: the first call of a process, which parses every run's files, and the next one.

    python -m benchmarks run_table [--runs 1000] [--steps 60]

Every run folder has the files that the table reads: run.json with the configuration of the demo, a metrics.jsonl of so
many steps with two evaluations, and the record of its process; every tenth run failed before its folder existed.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from workbench.analysis.run_table import list_run_rows
from workbench.config.schema import load_config

LIMIT_S = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000, help="number of run folders")
    parser.add_argument("--steps", type=int, default=60, help="steps of a run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = load_config("demo")
        text = config.to_yaml(), json.dumps(config.to_dict(), default=str)
        for idx in range(args.runs):
            write_run(Path(folder), f"run-{idx:04d}", *text, args.steps, failed_early=idx % 10 == 9)
        for name in ("first call", "second call"):
            start, before = time.perf_counter(), time.process_time()
            rows = list_run_rows(folder)
            seconds, processor = time.perf_counter() - start, time.process_time() - before
            print(
                f"{name}: {len(rows)} rows in {seconds:.3f} s (at most {LIMIT_S:g} s), {processor:.3f} s of processor"
            )


def write_run(folder: Path, name: str, yaml: str, config: str, steps: int, *, failed_early: bool) -> None:
    """Write the small files of a run. config: as JSON."""
    job = folder / ".jobs" / name
    job.mkdir(parents=True)
    (job / "config.yaml").write_text(yaml)
    (job / "train.out").write_text("step 1\n" if not failed_early else "workbench.errors.ConfigError: no such file\n")
    record = {"pid": 4_190_000, "identity": "former boot 1", "started": 1.7e9, "command": ["workbench", "train"]}
    record |= {"method": "dopd", "seed": 0, "steps": steps}
    (job / "job.json").write_text(json.dumps(record))
    if failed_early:
        return
    run_dir = folder / name
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(yaml)
    times = {"started": "2026-11-30T12:00:00+0000", "updated": "2026-11-30T12:10:00+0000"}
    facts = {"status": "finished", "method": "dopd", "seed": 0, "steps": steps, "steps_done": steps, **times}
    (run_dir / "run.json").write_text(json.dumps(facts | {"config": json.loads(config)}, indent=1))
    groups = [
        f"{policy}/{context}/{group}"
        for policy in ("student", "teacher")
        for context in ("plain", "crop")
        for group in ("all", "visible", "privileged")
    ]
    evaluation = {f"{name}/{group}": 0.5 for group in groups for name in ("accuracy", "confidence", "length")}
    train = {f"metric_{idx}": 0.123456789 for idx in range(40)} | {"tokens_per_second": 250.0}
    lines = [{"kind": "eval", "step": 0, **evaluation}]
    lines += [{"kind": "train", "step": step, **train} for step in range(1, steps + 1)]
    lines += [{"kind": "eval", "step": steps, **evaluation}]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
