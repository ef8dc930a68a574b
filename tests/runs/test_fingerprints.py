"""A run goes on with the data that it began with, or says what was changed."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from failures import raises
from PIL import Image
from small import run_config

from workbench.data.digests import BLOCK_BYTES, WHOLE_BYTES, digest
from workbench.data.examples import load_examples
from workbench.errors import RunError
from workbench.runs.fingerprints import FILE, fingerprint, models_read_again, require_same_data, require_same_models
from workbench.runs.folder import RunFolder
from workbench.training.run import train
from workbench.types import Evidence, Example

ROWS = [
    {
        "question": f"Color {n}?",
        "images": ["a.png"],
        "answer": "red",
        "reference": "it is red",
        "hint": "left",
        "domain": "d",
        "boxes": [{"x0": 1, "y0": 1, "x1": 9, "y1": 9, "label": "b"}],
        "history": [{"role": "user", "text": "hi"}],
    }
    for n in range(4)
]


def write(folder: Path, rows: list[dict], name: str = "data.jsonl") -> Path:
    if not (folder / "a.png").exists():
        Image.new("RGB", (64, 64), (200, 0, 0)).save(folder / "a.png")
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def edited(row: int, **values: object) -> Callable[[list[dict]], list[dict]]:
    return lambda rows: [{**item, **(values if idx == row else {})} for idx, item in enumerate(rows)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (edited(2, question="Color 2? "), r"data.jsonl:3 \(id \"3\"\) differs in question\."),
        (edited(1, answer="blue", reference=None), r"data.jsonl:2 \(id \"2\"\) differs in answer, reference\."),
        (edited(0, hint="right"), r":1 .* differs in evidence"),
        (edited(0, boxes=[{"x0": 1, "y0": 1, "x1": 9, "y1": 8, "label": "b"}]), r":1 .* differs in evidence"),
        (edited(3, history=[{"role": "user", "text": "ho"}]), r":4 .* differs in history"),
        (edited(3, history=[]), r":4 .* differs in history"),
        (edited(3, domain="e"), r":4 .* differs in domain"),
        (edited(0, id="x"), r':1 its id is "x" and was "1"'),
        (lambda rows: [{"question": "NEW?"}, *rows], r":1 .*differs in question, .*It had 4 examples, and has 5 now"),
        (
            lambda rows: [*rows, {"question": "NEW?"}],
            "1 examples were appended to it. The order .* depends on their number",
        ),
        (lambda rows: rows[:-1], "1 examples were taken from the end of it.*It had 4 examples, and has 3 now"),
        (lambda rows: [rows[1], rows[0], *rows[2:]], r":1 .*differs in question"),
    ],
)
@pytest.mark.parametrize("key", ["data.train", "data.eval", "data.probes"])
def test_fingerprint_first_changed_row_is_named(key: str, change: Callable, says: str, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", "name: run\n", seed=0, method="opd")
    data = {"data.train": [], "data.eval": [], "data.probes": []}
    require_same_data(folder, data | {key: load_examples(write(tmp_path, ROWS))}, resume=False)
    require_same_data(folder, data | {key: load_examples(write(tmp_path, ROWS))}, resume=True)
    changed = load_examples(write(tmp_path, change(ROWS)))
    with pytest.raises(RunError, match=f"{key} has changed since the run started: .*{says}.*Restore {key}"):
        require_same_data(folder, data | {key: changed}, resume=True)


def test_fingerprint_of_image_is_by_content(tmp_path: Path) -> None:
    (before,) = load_examples(write(tmp_path, ROWS[:1]))
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / "a.png").rename(moved / "a.png")
    os.utime(moved / "a.png", (1, 1))
    (after,) = load_examples(write(moved, ROWS[:1]))
    assert fingerprint(before) != fingerprint(after)  # the first is not there any more
    Image.new("RGB", (64, 64), (200, 0, 0)).save(tmp_path / "a.png")
    assert fingerprint(before) == fingerprint(after)
    Image.new("RGB", (64, 64), (201, 0, 0)).save(tmp_path / "a.png")
    assert {name for name, value in fingerprint(before).items() if fingerprint(after)[name] != value} == {"images"}
    embedded = [replace(before, images=(Image.new("RGB", (64, 64), color),)) for color in ("red", "red", "blue")]
    digests = [fingerprint(item)["images"] for item in embedded]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("position", [0, BLOCK_BYTES - 1, -1, "middle"])
def test_fingerprint_of_large_image_is_by_blocks_and_size(position: int | str, tmp_path: Path) -> None:
    (example,) = load_examples(write(tmp_path, ROWS[:1]))
    content = bytearray(os.urandom(10 * WHOLE_BYTES))
    (tmp_path / "a.png").write_bytes(content)
    before = fingerprint(example)
    position = len(content) // 2 if position == "middle" else position
    content[position] ^= 1
    (tmp_path / "a.png").write_bytes(content)
    assert fingerprint(example) != before
    content[position] ^= 1
    (tmp_path / "a.png").write_bytes(content + b"\0")
    assert fingerprint(example) != before


def test_resume_with_changed_data_raises_and_with_old_works(
    models: dict, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write(tmp_path, ROWS)
    values = {"method": {"name": "opd"}, "data": {"train": str(data), "eval": str(data)}, "training__batch_size": 1}
    config = run_config(models, tmp_path, evaluation__contexts=["plain"], **values)

    def stop(done: int, metrics: dict) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, on_step=stop)
    names = ("metrics.jsonl", "probes.json", FILE)
    before = [(config.run_dir / name).read_bytes() for name in names]
    write(tmp_path, edited(0, question="NEW?")(ROWS))
    with raises(RunError, "data.train", "data.jsonl:1"):
        train(config, resume=True)
    assert [(config.run_dir / name).read_bytes() for name in names] == before
    assert (config.run_dir / "checkpoint-000002").is_dir()
    write(tmp_path, ROWS)
    assert train(config, resume=True).steps == 4
    (config.run_dir / FILE).unlink()  # as of a run of an older version
    with caplog.at_level("WARNING", "workbench"):
        assert train(config, resume=True).steps == 4
    assert "Earlier changes of its data cannot be detected" in caplog.text and (config.run_dir / FILE).is_file()


@pytest.mark.parametrize("source", ["scenes:train?count=40&seed=1", "scenes:eval?count=20&turns=rows"])
def test_fingerprint_of_scenes_is_constant(source: str) -> None:
    first, second = ([fingerprint(entry) for entry in load_examples(source)] for _ in range(2))
    assert first == second
    assert len({item["images"] for item in first}) > 1 and "evidence" in first[0]
    assert first != [fingerprint(example) for example in load_examples(source + "&start=7")]


def test_resume_with_changed_models_raises(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", "name: run\n", seed=0, method="opd")
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for path, text in ((base, "weights"), (adapter, "adapter")):
        path.mkdir()
        (path / "model.safetensors").write_text(text)
        (path / "config.json").write_text("{}")
    (adapter / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    models = {"models.teacher": str(adapter), "models.student (student)": "owner/on-a-hub"}
    require_same_models(folder, models, resume=False)
    (adapter / "scores.json").write_text("{}")
    require_same_models(folder, models, resume=True)
    for file, name in (
        (base / "model.safetensors", "base/model.safetensors"),
        (adapter / "adapter_model.safetensors", "adapter_model.safetensors"),
        (adapter / "config.json", "config.json"),
    ):
        before = file.read_text()
        file.write_text("others!")
        with raises(RunError, "models.teacher", name):
            require_same_models(folder, models, resume=True)
        file.write_text(before)
    (base / "model-2.safetensors").write_text("more")
    with raises(RunError, "base/model-2.safetensors"):
        require_same_models(folder, models, resume=True)


def test_models_read_again_leave_out_checkpointed_start(models: dict, tmp_path: Path) -> None:
    vanilla = run_config(models, tmp_path, method={"name": "opd"})
    assert list(models_read_again(vanilla, vanilla.load_method())) == ["models.teacher"]
    frozen = run_config(models, tmp_path, method={"name": "opsd"})
    assert "models.student (student)" in models_read_again(frozen, frozen.load_method())


def test_fingerprint_of_one_crop_is_that_of_former_runs() -> None:
    """Their evidence was [boxes, crop, caption, hint, crop_box], of which a resumed run has the digest."""
    crop = Image.new("RGB", (2, 2))
    plain = ["RGB", 2, 2, digest(crop.tobytes())]
    for crops, former in (((crop,), plain), ((), None), ((crop, crop), [plain, plain])):
        evidence = Evidence(crops=crops, hint="left")
        expected = digest(json.dumps([[], former, None, "left", None]).encode())
        assert fingerprint(Example("a", "Q?", evidence=evidence))["evidence"] == expected
