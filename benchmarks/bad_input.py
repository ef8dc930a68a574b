"""Campaign of bad input: broken recipes, overrides, studies, run files and rows must give an error, not a traceback.

    python -m benchmarks bad_input [--inputs 0] [--seed 0]         0 = all

Every input goes through the command line. Expected: exit status 2 with an error message on stderr (or 0 or 1 if the
input happens to be valid). Faults: any other exception, an escape sent to the terminal, a message over 3,000
characters, more than 20 s of processor time, or a file of the run that a read-only command changed.
"""

import argparse
import collections
import contextlib
import io
import itertools
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

import yaml

from benchmarks.kills import recipe
from workbench.cli import main as command_line
from workbench.config.schema import describe_config
from workbench.runs.jobs import find_jobs
from workbench.studies.plan import StudyConfig

MOST_CHARACTERS, MOST_SECONDS = 3000, 20
BOMB = "a: &a [1, 1, 1]\n" + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in itertools.pairwise("abcdefghijk"))
VALUES = {  # as YAML writes them
    "a date": "2024-02-30",
    "a time": "2024-13-45 99:99:99",
    "tag int": "!!int x",
    "tag float": "!!float x",
    "tag bool": "!!bool x",
    "tag null": "!!null x",
    "tag timestamp": "!!timestamp x",
    "tag binary": "!!binary x",
    "tag set": "!!set {a}",
    "tag python": "!!python/object/apply:os.getcwd []",
    "tag own": "!own x",
    "digits": "9" * 5000,
    "minus digits": "-" + "9" * 5000,
    "hex": "0x_",
    "bits": "0b_",
    "sexagesimal": "1" + ":59" * 2000,
    "large": "1" + "0" * 300,
    "inf": ".inf",
    "nan": ".nan",
    "1e999": "1e999",
    "negative": "-1",
    "zero": "0",
    "bool": "yes",
    "null": "null",
    "empty": "''",
    "text": "x y",
    "list": "[1, [2]]",
    "mapping": "{a: {b: 1}}",
    "list key": "{[1]: 2}",
    "deep list": "[" * 2000,
    "deep mapping": "{a: " * 2000,
    "alias": "*x",
    "anchor": "&x 1",
    "nul": '"a\\0b"',
    "half": '"\\ud83d"',
    "emoji": '"\\ud83d\\ude00"',
    "no character": '"\\UFFFFFFFF"',
    "escape": '"\\e[2J"',
    "bidi": '"\\u202e"',
    "long": "x" * 5000,
    "quote": "'",
    "bracket": "[1",
    "tab": "\t- x",
    "path": "../../x",
    "twice": "{a: 1, a: 2}",
    "merge": "{<<: 3}",
    "value": "=",
    "slash": "/",
    "dot": ".",
    "lines": '"a\\nb"',
    "percent": "%s %(x)s {x}",
}
TEXTS = {
    "nothing": b"",
    "list": b"[1]",
    "text": b"x",
    "number": b"1",
    "utf-16": "a: 1".encode("utf-16"),
    "latin-1": b"a: \xe9",
    "nul": b"a: \0",
    "mark": b"\xef\xbb\xbfa: 1",
    "documents": b"a: 1\n---\nb: 2",
    "tabs": b"a:\n\tb: 1",
    "directive": b"%YAML 9.9\n---\na: 1",
    "bomb": BOMB.encode(),
    "deep": b"[" * 5000,
    "large": b"a: " + b"x" * 2**19,
    "twice": b"name: a\nname: b",
    "keys": b"? [1]\n: 2",
    "tag": b"!!binary x",
    "colon": b"a: b: c",
    "cut": b"models:\n  student: 'x",
    "brackets": b"{a: [}",
    "anchors": b"a: &x {b: *x}",
    "separators": "a: x\u2028y\u2029z\x85w".encode(),
    "carriage": b"a: 1\rb: 2",
    "random": bytes(range(256)),
}
RUN_FILES = (
    "config.yaml",
    "run.json",
    "metrics.jsonl",
    "skipped.jsonl",
    "probes.json",
    "evals/step-000000.jsonl",
    "evals/step-x.jsonl",
    "traces/tokens/{first}",
    "traces/rollouts/{first}",
    "traces/tokens/.hidden",
    "traces/x",
    "{checkpoint}/state.json",
    "{checkpoint}/student/config.json",
    "{checkpoint}/student/model.safetensors",
    "{checkpoint}/optimizer.safetensors",
    "geometry/geometry.json",
)
DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "gone": lambda raw: None,
    "empty": lambda raw: b"",
    "half": lambda raw: raw[: len(raw) // 2],
    "almost": lambda raw: raw[:-3],
    "nuls": lambda raw: b"\0" * len(raw),
    "list": lambda raw: b"[1, 2]\n",
    "object": lambda raw: b"{}\n",
    "number": lambda raw: b"9" * 5000 + b"\n",
    "null": lambda raw: b"null\n",
    "deep": lambda raw: b'{"a": ' * 3000 + b"\n",
    "bytes": lambda raw: raw[:20] + b"\xff\xfe" + raw[22:],
    "flipped": lambda raw: (
        raw[: len(raw) // 3] + bytes([raw[len(raw) // 3] ^ 1]) + raw[len(raw) // 3 + 1 :] if raw else b"\1"
    ),
    "doubled": lambda raw: raw + raw,
    "kinds": lambda raw: (
        b'{"kind": 1, "step": "x", "status": [], "method": {}, "example": [], "files": 3, "config": 1}\n'
    ),
}
READS = ("summary", "show", "report")


@dataclass
class Tally:
    """Number of inputs, their outcomes, and the faults."""

    inputs: int = 0
    endings: collections.Counter = field(default_factory=collections.Counter)
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """One input: its name, the command, and a function that creates it."""

    name: str
    command: tuple[str, ...]
    make: Callable[[], None] = lambda: None


def file_cases(folder: Path) -> Iterator[Case]:
    """Yield files that are not valid recipes or studies, also as the base of a recipe."""
    for command, (name, raw) in itertools.product(("train", "study", "pretrain", "check"), TEXTS.items()):
        file = folder / f"{command}-{name}.yaml"
        yield Case(f"{command} file: {name}", (command, str(file)), partial(_write, file, raw))
    for name in TEXTS:
        over = folder / f"over-{name}.yaml"
        text = f"base: train-{name}.yaml\nseed: 1\n".encode()
        yield Case(f"base: {name}", ("train", str(over)), partial(_write, over, text))
    for name in ("", "a\0b", "x" * 5000, "/dev/null", "/proc/self/mem", str(folder), "\udcff.yaml", "-", "~"):
        yield Case(f"file name {name[:20]!r}", ("train", name))


def value_cases(folder: Path) -> Iterator[Case]:
    """Yield odd values for every key of recipes and studies, in files and as overrides. Nothing trains."""
    good = recipe(folder / "values", {"models.student": "./none", "models.teacher": "./none"})
    keys = [*describe_config("dopd"), "models.lora", "training", "base", "no.such", "method"]
    turn = itertools.cycle(VALUES.items())
    for key in keys:
        for name, value in itertools.islice(turn, 8):
            yield Case(f"{key}={name}", ("train", str(good), f"{key}={value}"))
    for name, value in VALUES.items():
        for key in ("name", "training.steps", "models.student", "data.train", "models.teachers", "evaluation.contexts"):
            file = folder / "values" / f"{name}.yaml"
            *parents, last = key.split(".")
            text = "".join(f"{parent}:\n  " for parent in parents) + f"{last}: {value}\n"
            yield Case(f"in a file, {key}: {name}", ("train", str(file)), partial(_write_over, file, text))
        yield Case(f"override of key {name}", ("train", str(good), f"{value}=1"))
        yield Case(
            f"pretrain steps={name}", ("pretrain", str(folder / "pretrain.yaml"), f"start_from={value}", "steps=1")
        )
    study = folder / "study.yaml"
    _write(study, yaml.safe_dump(_study(good)).encode())
    for key, (name, value) in itertools.product((entry.name for entry in fields(StudyConfig)), VALUES.items()):
        yield Case(f"study {key}={name}", ("study", str(study), f"{key}={value}"))


def run_cases(folder: Path, run: Path) -> Iterator[Case]:
    """Yield damaged files of a finished run, for the commands that read or resume it."""
    commands = {
        "summary": ("summary", "{run}"),
        "show": ("show", "{run}", "--step", "1"),
        "report": ("report", "{run}", "--answers", "1"),
        "resume": ("resume", "{run}"),
        "export": ("export", "{run}", "--to", "{run}-out"),
        "geometry": ("geometry", "{run}"),
        "traces": ("export", "{run}", "--traces", "--to", "{run}-out"),
        "eval": ("eval", "{run}", "--max-examples", "1"),
    }
    number = itertools.count()
    for damage, name, command in itertools.product(DAMAGES, RUN_FILES, commands):
        victim = folder / f"run-{next(number)}"
        words = tuple(word.replace("{run}", str(victim)) for word in commands[command])
        yield Case(
            f"{command}, {name}: {damage}",
            words,
            partial(_damage, run, victim, name, damage),
        )


def row_cases(folder: Path) -> Iterator[Case]:
    """Yield rows with one odd value, for import and evaluation."""
    good = {
        "id": "1",
        "question": "what?",
        "images": [],
        "answer": "x",
        "domain": "d",
        "boxes": [],
        "caption": "c",
        "hint": "h",
    }
    odd = [
        None,
        "",
        0,
        -1.5,
        True,
        [],
        {},
        [[]],
        {"a": 1},
        "\0",
        "\u2028",
        "\x1b[2J",
        "x" * 10_000,
        10**30,
        float("nan"),
        [None],
        "\ud83d",
    ]
    for number, (key, value) in enumerate(itertools.product(good, odd)):
        file = folder / f"rows-{number}.jsonl"
        raw = (json.dumps({**good, key: value}) + "\n").encode()
        for command in (
            ("import", str(file), str(folder / f"out-{number}")),
            ("eval", str(folder / "none"), "--data", str(file)),
        ):
            yield Case(f"{command[0]} row, {key}: {value!r:.30}", command, partial(_write, file, raw))
    for number, (name, raw) in enumerate(TEXTS.items()):
        file = folder / f"text-{number}.jsonl"
        command = ("import", str(file), str(folder / f"text-out-{number}"))
        yield Case(f"import text: {name}", command, partial(_write, file, raw))


def _study(base: Path) -> dict:
    return {
        "extends": str(base),
        "seeds": [0],
        "variants": {"opd": {"method.name": "opd"}},
        "evaluate": [{"data": "scenes:eval?count=2", "contexts": ["plain"]}],
    }


def _write(file: Path, raw: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(raw)


def _write_over(file: Path, text: str) -> None:
    _write(file, f"base: recipe.yaml\n{text}".encode(errors="surrogatepass"))


def _damage(run: Path, victim: Path, name: str, damage: str) -> None:
    shutil.copytree(run, victim)
    checkpoint = sorted(victim.glob("checkpoint-*"))[-1].name
    file = victim / name.replace("{checkpoint}", checkpoint)
    if file.name == "{first}":
        file = sorted(file.parent.glob("*.parquet"))[0]
    raw = file.read_bytes() if file.is_file() else b""
    damaged = DAMAGES[damage](raw)
    if damaged is None:
        file.unlink(missing_ok=True)
        file.mkdir(parents=True)  # worse than gone: a folder in its place
    else:
        _write(file, damaged)


def meet(case: Case, tally: Tally) -> None:
    """Run one case and judge what came of it."""
    case.make()
    out, err = io.StringIO(), io.StringIO()
    tally.inputs += 1
    began, before = time.process_time(), _state(case)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            ending = str(command_line(list(case.command)))
    except SystemExit as error:
        ending = str(error.code)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        ending = type(error).__name__
        where = traceback.extract_tb(error.__traceback__)[-1]
        tally.faults.append(f"{case.name}: {ending}: {str(error)[:200]} at {where.filename}:{where.lineno}")
    tally.endings[ending] += 1
    printed = out.getvalue() + err.getvalue()
    faults = {
        "a traceback is printed": "Traceback (most" in printed,
        "no sentence": ending == "2" and len(err.getvalue().split()) < 4,
        f"{len(err.getvalue())} characters": ending == "2" and len(err.getvalue()) > MOST_CHARACTERS,
        f"{time.process_time() - began:.0f} s": time.process_time() - began > MOST_SECONDS,
        "an escape is sent": "\x1b" in printed.replace("\x1b[A", ""),
        "files were changed": before is not None and before != _state(case),
    }
    tally.faults += [f"{case.name}: {fault}: {printed[-200:]!r}" for fault, is_so in faults.items() if is_so]


def _state(case: Case) -> list | None:
    """The files of a run that a command only reads, with their sizes; None for other commands."""
    if case.command[0] not in READS:
        return None
    files = sorted(path for path in Path(case.command[1]).rglob("*") if path.is_file() and path.name != "report.html")
    return [(str(path), path.stat().st_size) for path in files]


def campaign(
    folder: Path, most: int = 0, *, run: Path | None = None, seed: int = 0, say: Callable = lambda *_, **__: None
) -> Tally:
    """`most` inputs drawn from all (0 = all). run: a finished run to damage; without it, its files are left out."""
    tally = Tally()
    _write(folder / "pretrain.yaml", f"output_dir: {folder / 'made'}\n".encode())
    cases = [*file_cases(folder), *value_cases(folder), *row_cases(folder)]
    cases += run_cases(folder / "runs", run) if run is not None else ()
    if most:
        cases = random.Random(seed).sample(cases, min(most, len(cases)))
    for case in cases:
        num_faults = len(tally.faults)
        meet(case, tally)
        for fault in tally.faults[num_faults:]:
            say(f"{tally.inputs}: {fault}", flush=True)
        if (folder / "runs").is_dir() and case.command[0] not in ("train", "study"):
            find_jobs(folder / "runs")  # as the page lists them
            shutil.rmtree(folder / "runs")
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=0, help="drawn at random; 0 = all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="bad-") as name:
        folder = Path(name).resolve()
        values = {"training.steps": 2, "training.save_every": 1, "training.save_total_limit": 2}
        command_line(["train", str(recipe(folder / "finished", values))])
        command_line(["geometry", str(folder / "finished" / "run")])
        tally = campaign(
            folder / "cases", options.inputs, run=folder / "finished" / "run", seed=options.seed, say=print
        )
    print(f"\n{tally.inputs} inputs, {len(tally.faults)} faults; exit statuses {dict(tally.endings)}")
    sys.exit(bool(tally.faults))


if __name__ == "__main__":
    main()
