"""Campaign of bad rows: rows with one odd value, through `workbench import`, the loader, and prompts of a run.

    python -m benchmarks bad_rows --rows 2400 --seed 0

Every row must be read, be counted as skipped, or raise a WorkbenchError of one readable message. Another exception is a
fault of ours; the exit code is then 1, and the row and its traceback are printed.
"""

import argparse
import datetime
import decimal
import itertools
import json
import random
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from PIL import Image

import workbench as wb
from workbench.data.contexts import CONTEXTS, ROLLOUT_DEPENDENT, build_prompt, missing_evidence
from workbench.data.grading import GRADERS, grade
from workbench.data.leaks import find_leaks
from workbench.types import Example, mark_tokens

BOX = [1, 2, 30, 40]
IMPORTED = {
    "id": "a",
    "question": "What is it?",
    "images": ["a.png"],
    "answer": "red",
    "reference": "It is red.",
    "boxes": [BOX],
    "crop": "a.png",
    "crop_box": BOX,
    "caption": "a red field",
    "hint": "left",
    "domain": "colors",
    "history": [["Hello", "Hi"]],
    "turns": [{"text": "What"}, {"text": "is it?"}],
    "marks": [{"pattern": "(red)", "kind": "answer", "truth": None}],
}
ALIASES = {
    "question": ("prompt", "messages", "conversations", "query"),
    "images": ("image",),
    "answer": ("solution",),
    "reference": ("completion",),
    "boxes": ("objects", "bbox"),
    "crop": ("teacher_images",),
    "caption": ("privileged_context",),
}
OWN = IMPORTED | {
    "boxes": [{"x0": 1, "y0": 2, "x1": 30, "y1": 40, "label": "field"}],
    "crop_box": {"x0": 1, "y0": 2, "x1": 30, "y1": 40},
    "history": [{"role": "user", "text": "Hello"}],
}
NESTED = [[[[[[[[[["deep"]]]]]]]]]]
ODD = (
    None,
    True,
    False,
    0,
    -1,
    27.0,
    -0.0,
    1e16,
    1e300,
    1e-7,
    float("nan"),
    float("inf"),
    -float("inf"),
    2**53 + 1,
    2**80,
    10**400,
    "",
    " ",
    "\n",
    "nan",
    "None",
    "null",
    "a",
    "\0",
    "a\0b",
    "\ud83d",
    "\u2028",
    "\u202e",
    "\x1b[31mred",
    "\ufeff",
    "x" * 100_000,
    "[",
    "{",
    "[]",
    "{}",
    "[[",
    "[" * 5_000,
    "{'a': " * 2_000,
    "(",
    '"',
    "[1, 2",
    '[{"role": "user"',
    "[nan]",
    "1_0",
    "0x10",
    "9" * 5_000,
    '[{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A"}]',
    "[{'role': 'user', 'content': 'Q?'}]",
    "data:",
    "data:,",
    "data:image/png;base64,",
    "data:image/png;base64,AAAA",
    "data:image/png;base64,\u00e9",
    "file://",
    "file:///",
    "file:///no",
    "file://[",
    "file://host/a.png",
    "file:a.png",
    "http://",
    "https://host/a.png",
    "zip://a::b.zip",
    "zip://a.png::http://x/b.zip",
    "s3://b/a",
    "A" * 4_000,
    "/",
    ".",
    "..",
    "a.png/",
    "no.png",
    "rows.jsonl",
    "/dev/null",
    "/dev/zero",
    "<image>",
    "<video>",
    "<image>" * 50,
    "<|im_end|>",
    [],
    {},
    [None],
    [[]],
    [{}],
    [""],
    [0],
    [float("nan")],
    [[[]]],
    NESTED,
    [1, 2],
    [1, 2, 3],
    [1, 2, 3, 4],
    [1, 2, 3, 4, 5],
    [[1, 2], [3, 4]],
    [[1, 2, 3, float("nan")]],
    [[1, 2, 3, 1e308]],
    [[-1e308, 0, 1e308, 1]],
    [["1", "2", "30", "40"]],
    [[True, False, True, True]],
    ["a", 1],
    ["a", None],
    [{"bbox": None}],
    [{"bbox": 5}],
    [{"bbox": "x"}],
    [{"bbox": BOX, "image_id": 1}],
    {"bbox": [BOX], "image_id": 1},
    {"bbox": [BOX], "image_id": [0, 1]},
    {"bbox": [BOX], "image_id": "x"},
    {"bbox": [BOX], "image_id": {}},
    {"bbox": BOX, "bbox_type": 3},
    {"bbox": BOX, "label": {"a": 1}},
    {"bbox": {"bbox": {"bbox": BOX}}},
    {"bbox": [[BOX, [BOX]]]},
    {"x0": 1, "y0": [2], "x1": 3, "y1": 4},
    {"x0": [], "y0": [], "x1": [], "y1": []},
    {"points": 5},
    {"points": [5]},
    {"points": [[5, None]]},
    {"points": [{"x": 1}]},
    {"points": {"x": 1}},
    {"objects": {"objects": []}},
    {"shapes": [None]},
    {"": BOX},
    {"a": BOX, "b": 3},
    {"bytes": None, "path": None},
    {"bytes": "x"},
    {"bytes": [1]},
    {"path": 5},
    {"path": {}},
    {"url": "x"},
    {"image": {"image": {}}},
    {"role": "user"},
    {"role": ["user"], "content": ["Q?"]},
    {"role": [], "content": []},
    {"messages": 5},
    {"messages": [5]},
    [{"role": None, "content": None}],
    [{"role": ["user"], "content": "Q?"}],
    [{"role": {}, "content": "Q?"}],
    [{"role": "user", "content": 5}],
    [{"role": "user", "content": [5]}],
    [{"role": "user", "content": {"type": "text", "text": "Q?"}}],
    [{"role": "user", "content": [{"type": ["text"], "text": "Q?"}]}],
    [{"role": "user", "content": [{"type": "image", "image": 5}]}],
    [{"role": "user", "content": [{"type": "text"}]}],
    [{"role": "user", "content": "[{'type': 'text'"}],
    [["a"]],
    [["a", "b", "c"]],
    [[1, 2]],
    [["a", None]],
    [{"text": None}],
    [{"text": 5}, {"text": 6}],
    [{"text": "a", "images": 5}, {"text": "b", "images": {}}],
    [{"text": "a"}, {"text": "b", "images": ["no.png"]}],
    [{"pattern": None}],
    [{"pattern": "("}],
    [{"pattern": "(a)", "kind": 5}],
    [{"pattern": "(a)", "kind": "x", "truth": []}],
    [{"pattern": "((((((a))))))" * 50, "kind": "x"}],
    [{"pattern": "(?P<a>x)(?P<a>y)", "kind": "x"}],
    [{"pattern": "(a){99999999999}", "kind": "x"}],
)
TYPED = (  # values that Arrow has and JSON has not
    pyarrow.array([b"\xff\xfe"]),
    pyarrow.array([b"text"]),
    pyarrow.array([b""]),
    pyarrow.array([datetime.date(2020, 1, 2)]),
    pyarrow.array([datetime.time(1, 2)]),
    pyarrow.array([datetime.datetime(2020, 1, 2, 3)]),
    pyarrow.array([1], pyarrow.timestamp("ns")),
    pyarrow.array([2**62], pyarrow.timestamp("s")),
    pyarrow.array([-(2**62)], pyarrow.timestamp("us", "UTC")),
    pyarrow.array([2**31 - 1], pyarrow.date32()),
    pyarrow.array([2**62], pyarrow.duration("s")),
    pyarrow.array([1], pyarrow.duration("ns")),
    pyarrow.array([decimal.Decimal("27.00")]),
    pyarrow.array([decimal.Decimal("1e-30")]),
    pyarrow.array([2**64 - 1], pyarrow.uint64()),
    pyarrow.array([0.1], pyarrow.float32()),
    pyarrow.array([float("nan")]),
    pyarrow.array([1.5], pyarrow.float16()),
    pyarrow.array(["red"]).dictionary_encode(),
    pyarrow.nulls(1),
    pyarrow.array([[("a", 1)]], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
    pyarrow.array([[float("nan")]]),
    pyarrow.array([[1.0, 2.0, 3.0, float("nan")]]),
    pyarrow.array([b"\xff"]).cast(pyarrow.binary()).view(pyarrow.string()),
    pyarrow.array([[b"\xff"]]),
    pyarrow.array([{"bytes": b"\x89PNG", "path": None}]),
    pyarrow.array([{"bytes": b"", "path": "a.png"}]),
    pyarrow.array([(1, 2, 3)], pyarrow.month_day_nano_interval()),
    pyarrow.array([[{"bbox": [1.0, 2.0, 3.0, 4.0]}]]),
)


@dataclass
class Outcome:
    """Outcomes of the rows: counts, and row and traceback of each fault."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        return self.counts.total()


def run(num_rows: int | None, seed: int = 0) -> Outcome:
    """Try `num_rows` rows, or every combination of column and odd value once."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        Image.new("RGB", (64, 64), "red").save(folder / "a.png")
        cases = list(_single_cases())
        if num_rows is not None:
            draw = random.Random(seed)
            cases = draw.sample(cases, min(num_rows, len(cases)))
            cases += itertools.islice(_random_cases(draw), num_rows - len(cases))
        for reader, row in cases:
            _try(reader, row, folder, outcome)
    return outcome


def _single_cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield readers and rows with one odd value each."""
    for column, value in itertools.product(OWN, (*ODD, *TYPED)):
        yield "load", OWN | {column: value}
    for ours in IMPORTED:
        for column, value in itertools.product((ours, *ALIASES.get(ours, ())), (*ODD, *TYPED)):
            yield "import", {name: kept for name, kept in IMPORTED.items() if name != ours} | {column: value}


def _random_cases(draw: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield rows with one value changed at a random place: replaced, or put into a list, a dict or a text."""
    while True:
        reader, base = draw.choice((("load", OWN), ("import", IMPORTED)))
        column = draw.choice(list(base))
        yield reader, base | {column: _mutated(base[column], draw)}


def _mutated(value: Any, draw: random.Random) -> Any:
    if isinstance(value, list) and value and draw.random() < 0.6:
        idx = draw.randrange(len(value))
        return [*value[:idx], _mutated(value[idx], draw), *value[idx + 1 :]]
    if isinstance(value, dict) and value and draw.random() < 0.6:
        key = draw.choice(list(value))
        return {**value, key: _mutated(value[key], draw)}
    odd = draw.choice(ODD)
    return draw.choice(
        (odd, [value, odd], {"key": odd}, [odd], {str(value)[:9]: odd}, json.dumps(odd, default=str), repr(odd))
    )


def _try(reader: str, row: dict[str, Any], folder: Path, outcome: Outcome) -> None:
    """Read one row beside a good one, as JSON lines or, for Arrow's types, as Parquet."""
    path = _write(row, folder)
    if path is None:
        outcome.counts["cannot be written at all"] += 1
        return
    try:
        if reader == "load":
            _use(wb.load_examples(path))
            outcome.counts["loaded"] += 1
        else:
            with tempfile.TemporaryDirectory(dir=folder) as target:
                report = wb.import_dataset(path, Path(target) / "out")
                str(report).encode()
                _use(wb.load_examples(report.path))
            outcome.counts["skipped" if report.skipped else "imported"] += 1
    except wb.WorkbenchError as error:
        message = str(error)
        readable = _is_encodable(message) and 0 < len(message) < 4_000
        outcome.counts["refused"] += 1
        if not readable:
            outcome.faults.append(
                f"{reader}: {str(row)[:300]}\nmessage of {len(message)} characters: {message[:300]!a}"
            )
    except (
        Exception
    ):  # whatever is no WorkbenchError is the fault that this looks for, and is reported with its traceback
        outcome.counts["fault"] += 1
        outcome.faults.append(f"{reader}: {ascii(row)[:600]}\n{traceback.format_exc(limit=-6)}")


def _use(examples: list[Example]) -> None:
    """Do what a run does with a row before the model: prompts, grades, token marks, search for leaks."""
    find_leaks(examples, "plain")
    for example in examples:
        for context in CONTEXTS:
            if context not in ROLLOUT_DEPENDENT and missing_evidence(example, context) is None:
                build_prompt(example, context)
        for rule in GRADERS:
            grade("The answer is red.", example.answer, rule)
        mark_tokens([(0, 3), (3, 10)], "The answer", example.marks)


def _write(row: dict[str, Any], folder: Path) -> Path | None:
    typed = {name: value for name, value in row.items() if isinstance(value, pyarrow.Array | pyarrow.ChunkedArray)}
    if not typed:
        path = folder / "rows.jsonl"
        path.write_text(json.dumps({"question": "Good?", "id": "good"}) + "\n" + json.dumps(row) + "\n")
        return path
    path = folder / "rows.parquet"
    columns = {name: typed[name] if name in typed else pyarrow.array([value]) for name, value in row.items()}
    try:
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    except pyarrow.ArrowException:
        return None
    return path


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks bad_rows", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--rows", type=int, default=2400, help="rows to try; beyond one odd value for each column they are random"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random rows")
    options = parser.parse_args(arguments)
    outcome = run(options.rows, options.seed)
    kinds = {fault.strip().rpartition("\n")[2]: fault for fault in reversed(outcome.faults)}
    for fault in kinds.values():
        print(fault)
    counts = ", ".join(f"{name} {count:,}" for name, count in outcome.counts.most_common())
    print(f"{outcome.num_rows:,} rows with one odd value: {counts}; {len(outcome.faults)} faults of {len(kinds)} kinds")
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
