"""Campaign of kills: runs killed at random moments and system calls, resumed, and compared with uninterrupted ones.

    python -m benchmarks kills [--kills 120] [--only lora,study] [--seed 0] [--keep FOLDER]

Every victim ends with the same weights, moments, metrics, traces, probes and answers as an uninterrupted run,
bit for bit: no row is lost or doubled, and no partial file remains. Signals are KILL, TERM and INT. Runs are forked
from this process, which has imported everything and computed nothing; runs of two processes and studies are
started as commands.
"""

import argparse
import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).parent.parent
SMALL = {
    "models.student": str(ROOT / "data/models/student"),
    "models.teacher": str(ROOT / "data/models/teacher"),
    "data.train": "scenes:train?count=24",
    "data.eval": "scenes:eval?count=4",
    "method.privilege": "crop",
    "sampling.num_generations": 2,
    "sampling.max_completion_length": 12,
    "training.steps": 6,
    "training.batch_size": 2,
    "training.learning_rate": 1e-4,
    "training.save_every": 2,
    "training.save_total_limit": 1,
    "trace.probes": 2,
    "trace.probe_every": 2,
    "evaluation.every": 2,
    "evaluation.max_examples": 4,
    "evaluation.contexts": ["plain"],
}
METHODS = {
    "dopd": {},
    "opd": {"method.name": "opd"},
    "opsd": {"method.name": "opsd", "models.teacher": None},
    "gkd": {"method.name": "gkd"},
    "ema": {"method.self_policy": "student@ema"},
    "lora": {"models.lora.rank": 4},
    "peers": {
        "method.name": "opcod",
        "models.peers": {"ann": str(ROOT / "data/models/student")},
        "models.teacher": None,
    },
}
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
COUNTED = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
HEAVY = (
    "workbench.cli",
    "workbench.training.run",
    "workbench.analysis.summary",
    "workbench.distributed",
    "pandas",
    "peft",
    "transformers",
)


@dataclass
class Tally:
    """Numbers of kills and victims, and the faults."""

    kills: int = 0
    resumed: int = 0
    runs: int = 0
    faults: list[str] = field(default_factory=list)


def recipe(folder: Path, values: Mapping[str, object]) -> Path:
    """Write a recipe for runs in `folder`. Returns its path."""
    nested: dict = {"output_dir": str(folder), "name": "run"}
    for key, value in {**SMALL, "method.name": "dopd", **values}.items():
        *parents, last = key.split(".")
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    if nested["method"]["name"] not in ("dopd", "opd", "opsd", "gkd"):
        nested["method"].pop("privilege")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(nested))
    return file


def start(arguments: list[str], out: Path, *, die_at: int | None = None, inside: Path | None = None) -> int:
    """Fork a process for a command. Returns its pid. die_at: number of file operations below `inside` until it dies."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.setsid()
        handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        if inside is not None:
            _watch_files(str(inside), die_at)
        status = sys.modules["workbench.cli"].main(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _watch_files(inside: str, die_at: int | None) -> None:
    count = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event not in COUNTED or inside not in str(arguments[0]):
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            return
        count += 1
        if count == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def wait(pid: int) -> int:
    """Wait for a fork. Returns its exit status; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def disturb(pid: int, delay: float, number: int) -> tuple[int, bool]:
    """Signal a fork after `delay` seconds. Returns its exit status, and whether it was still running."""
    until = time.monotonic() + delay
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), False
        time.sleep(0.01)
    os.kill(pid, number)
    return wait(pid), True


def command_for(folder: Path) -> list[str]:
    """Resume the run, or train if it does not exist yet."""
    if (folder / "run").exists():
        return ["resume", str(folder / "run")]
    return ["train", str(folder / "recipe.yaml")]


def finish(folder: Path, tally: Tally, name: str) -> None:
    """Resume a run until it finishes."""
    out = folder / "out.txt"
    status = wait(start(command_for(folder), out))
    if status != 0:
        tally.faults.append(f"{name}: ended with {status}: {out.read_text()[-400:]}")
    elif "Traceback" in out.read_text():
        tally.faults.append(f"{name}: a traceback: {out.read_text()[-400:]}")


def fingerprint(run: Path) -> dict[str, object]:
    """Collect everything that must be equal: all files of a run, without times and paths."""
    newest = sorted(run.glob("checkpoint-*"))[-1]
    prints: dict[str, object] = {"checkpoint": newest.name}
    for file in sorted(newest.rglob("*.safetensors")):
        prints[f"weights {file.relative_to(newest)}"] = file.read_bytes()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().split("\n")[:-1]]
    for kind in ("train", "probe", "eval"):
        prints[f"metrics {kind}"] = [
            {key: value for key, value in line.items() if not key.startswith(("seconds/", "tokens_per_second"))}
            for line in lines
            if line["kind"] == kind
        ]
    for folder in sorted((run / "traces").iterdir()):
        if folder.name != "images":
            prints[f"traces {folder.name}"] = rows_of(folder)
    for file in sorted((run / "evals").glob("*")):
        prints[f"evals {file.name}"] = file.read_bytes()
    prints["probes"] = (run / "probes.json").read_bytes()
    hidden = [path for path in run.rglob(".*") if path.name != ".claim"] + list(run.parent.glob(".*.partial"))
    prints["left over"] = sorted(path.name for path in hidden)
    return prints


def rows_of(folder: Path) -> list[str]:
    """Read all rows of a table's files in order, merged or not."""
    tables = [pq.ParquetFile(file).read(use_threads=False) for file in sorted(folder.glob("*.parquet"))]
    rows = pa.concat_tables(tables, promote_options="default").to_pylist() if tables else []
    return sorted(json.dumps(row, default=str, sort_keys=True) for row in rows)


def differences(run: Path, reference: dict[str, object]) -> list[str]:
    """List the parts that differ from the uninterrupted run."""
    actual = fingerprint(run)
    return [part for part in {**reference, **actual} if actual.get(part) != reference.get(part)]


def random_kills(name: str, values: dict, folder: Path, count: int, draw: random.Random, tally: Tally) -> None:
    """Kill runs of one configuration one to four times each, until `count` kills have hit."""
    seconds, reference = undisturbed(folder / "reference", values, tally, name)
    hit = 0
    while hit < count:
        victim = folder / f"victim-{tally.runs}"
        recipe(victim, values)
        for _ in range(draw.randint(1, 4)):
            pid = start(command_for(victim), victim / "out.txt")
            status, was_there = disturb(pid, draw.uniform(0.0, seconds), draw.choice(SIGNALS))
            hit += was_there
            tally.kills += was_there
            if status not in (0, 130, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT):
                tally.faults.append(f"{name}: status {status}: {(victim / 'out.txt').read_text()[-400:]}")
        check(name, victim, reference, tally)


def undisturbed(folder: Path, values: dict, tally: Tally, name: str) -> tuple[float, dict[str, object]]:
    """Run without kills. Returns its duration in seconds and its fingerprint."""
    recipe(folder, values)
    began = time.monotonic()
    finish(folder, tally, f"{name}, undisturbed")
    return time.monotonic() - began, fingerprint(folder / "run")


def check(name: str, victim: Path, reference: dict[str, object], tally: Tally) -> None:
    """Finish a victim and compare it with the uninterrupted run."""
    finish(victim, tally, name)
    tally.resumed += 1
    tally.runs += 1
    wrong = differences(victim / "run", reference)
    if wrong:
        tally.faults.append(f"{name}: {victim} differs in {', '.join(wrong)}")
    else:
        shutil.rmtree(victim)


def kills_at_calls(folder: Path, count: int, draw: random.Random, tally: Tally) -> None:
    """Kill runs at a file operation, in the first process and in the resumed one."""
    _, reference = undisturbed(folder / "reference", {}, tally, "calls")
    for _ in range(count):
        victim = folder / f"victim-{tally.runs}"
        recipe(victim, {})
        for most in (10, 160):  # in the folder's making, then anywhere
            command = command_for(victim)
            pid = start(command, victim / "out.txt", die_at=draw.randint(1, most), inside=victim)
            if wait(pid) == -signal.SIGKILL:
                tally.kills += 1
        check("calls", victim, reference, tally)


def two_processes(folder: Path, count: int, draw: random.Random, tally: Tally) -> None:
    """Kill both processes of one run together, and start them again."""

    def launched(victim: Path) -> subprocess.Popen:
        what = ["--resume", str(victim / "run")] if (victim / "run").exists() else [str(victim / "recipe.yaml")]
        launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
        port = ["--main_process_port", str(draw.randint(20_000, 60_000)), "-m", "workbench.training.run"]
        with (victim / "out.txt").open("ab") as out:
            command = [sys.executable, *launch, *port, *what]
            return subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, start_new_session=True)

    def to_end(victim: Path) -> None:
        status = launched(victim).wait()
        if status:
            tally.faults.append(f"two processes: ended with {status}: {(victim / 'out.txt').read_text()[-400:]}")

    recipe(folder / "reference", {})
    began = time.monotonic()
    to_end(folder / "reference")
    seconds, reference = time.monotonic() - began, fingerprint(folder / "reference" / "run")
    for number in range(count):
        victim = folder / f"victim-{number}"
        recipe(victim, {})
        process = launched(victim)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0.3 * seconds, seconds))
        if process.poll() is None:
            tally.kills += 1
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        to_end(victim)
        tally.runs += 1
        wrong = differences(victim / "run", reference)
        if wrong:
            tally.faults.append(f"two processes: {victim} differs in {', '.join(wrong)}")


def studies(folder: Path, count: int, draw: random.Random, tally: Tally) -> None:
    """Kill a study of two variants repeatedly, its process or its whole group."""

    def study_file(victim: Path) -> Path:
        base = recipe(victim, {"data.eval": None})
        plain = yaml.safe_load(base.read_text())
        del plain["name"]
        base.write_text(yaml.safe_dump(plain))
        study = {
            "name": "study",
            "extends": str(base),
            "seeds": [0],
            "parallel": 2,
            "variants": {"dopd": {"method.name": "dopd"}, "opd": {"method.name": "opd"}},
            "evaluate": [{"data": "scenes:eval?count=4", "contexts": ["plain"]}],
        }
        (victim / "study.yaml").write_text(yaml.safe_dump(study))
        return victim / "study.yaml"

    def started(victim: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "workbench", "study", str(victim / "study.yaml")]
        with (victim / "out.txt").open("ab") as out:
            return subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, start_new_session=True)

    def fingerprints(victim: Path) -> dict[str, object]:
        runs = {run.name: fingerprint(run) for run in sorted((victim / "study").glob("*-s0"))}
        return {f"{name} {part}": value for name, prints in runs.items() for part, value in prints.items()}

    study_file(folder / "reference")
    began = time.monotonic()
    if started(folder / "reference").wait():
        tally.faults.append(f"study: undisturbed: {(folder / 'reference' / 'out.txt').read_text()[-400:]}")
    seconds, reference = time.monotonic() - began, fingerprints(folder / "reference")
    for number in range(count):
        victim = folder / f"victim-{number}"
        study_file(victim)
        for _ in range(3):
            process = started(victim)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(draw.uniform(0.2 * seconds, seconds))
            if process.poll() is None:
                tally.kills += 1
                how = draw.choice((os.kill, os.killpg))
                how(process.pid, draw.choice(SIGNALS))
                process.wait()
        if started(victim).wait():
            tally.faults.append(f"study: {victim}: {(victim / 'out.txt').read_text()[-400:]}")
        tally.runs += 1
        wrong = [part for part, value in fingerprints(victim).items() if value != reference.get(part)]
        if wrong:
            tally.faults.append(f"study: {victim} differs in {', '.join(wrong)}")


def campaign(folder: Path, kills: int, *, only: Set[str] = frozenset(), seed: int = 0, say: Callable = print) -> Tally:
    """Run all kinds of victims. kills: approximate number of kills in total."""
    for module in HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    draw, tally = random.Random(seed), Tally()
    for name, part in _parts(folder, kills, draw, tally):
        if not only or name in only:
            before = tally.kills
            part()
            say(f"{name}: {tally.kills - before} kills, {len(tally.faults)} faults so far", flush=True)
    return tally


def _parts(folder: Path, kills: int, draw: random.Random, tally: Tally) -> Iterator[tuple[str, Callable]]:
    each = max(1, kills // (2 * len(METHODS)))
    for name, values in METHODS.items():
        yield name, lambda name=name, values=values: random_kills(name, values, folder / name, each, draw, tally)
    yield "calls", lambda: kills_at_calls(folder / "calls", max(1, kills // 4), draw, tally)
    yield "study", lambda: studies(folder / "study", max(1, kills // 30), draw, tally)
    yield "two", lambda: two_processes(folder / "two", max(1, kills // 30), draw, tally)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--only", default="", help="names of parts, by commas: dopd, lora, calls, study, two, ...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder that the runs are left in")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = options.keep or Path(tempfile.mkdtemp(prefix="kills-"))
    only = set(filter(None, options.only.split(",")))
    tally = campaign(folder.resolve(), options.kills, only=only, seed=options.seed)
    print(f"\n{tally.kills} kills, {tally.runs} runs resumed and compared, {len(tally.faults)} faults")
    print("\n".join(tally.faults))
    if options.keep is None and not tally.faults:
        shutil.rmtree(folder)
    sys.exit(bool(tally.faults))


if __name__ == "__main__":
    main()
