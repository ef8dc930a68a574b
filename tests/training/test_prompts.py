"""`workbench prompts`: what every view's model reads, special tokens included."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from failures import raises
from PIL import Image
from small import run_config, without_weights

from workbench.cli import main
from workbench.data.examples import load_examples
from workbench.errors import DataError, WorkbenchError
from workbench.render.examples import pictures_of
from workbench.traces.reader import open_traces
from workbench.training.check import check_config
from workbench.training.prompts import render_prompts
from workbench.training.run import train


@pytest.fixture
def data(tmp_path: Path) -> str:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    row = {"question": "What color?", "images": ["a.png"], "answer": "red", "hint": "the door"}
    rows = [row, {**row, "question": "What shape?", "hint": None}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "rows.jsonl")


def test_prompts_each_view_is_written_as_its_model_reads_it(models: dict, tmp_path: Path, data: str) -> None:
    """An image of the small models is 9 tokens, and 3 that enclose them."""
    method = {"name": "dopd", "privilege": "hint"}
    config = run_config(models, tmp_path, method=method, data={"train": data, "eval": None})
    (first, views), (second, lacking) = render_prompts(config, rows=2)
    by_view = {prompt.view: prompt for prompt in views}
    assert list(by_view) == ["student", "self", "teacher"]
    assert [first.question, second.question] == ["What color?", "What shape?"]
    student, teacher = by_view["student"], by_view["teacher"]
    assert student.text == (
        "<bos><user><fake_token_around_image><global-img><image>[x 9]<fake_token_around_image>What color?"
        "<end_of_utterance><assistant>"
    )
    assert "door" not in student.text and "the door" in teacher.text and teacher.length > student.length
    assert str(student).startswith(f"[student] student given plain: {student.length} tokens, 12 of 1 image\n")
    assert [prompt.why for prompt in lacking] == ["", "this example has no hint", "this example has no hint"]


@pytest.mark.parametrize(
    ("key", "value", "names"),
    [
        ("image_processor", {"crop_to_patches": True}, ["crop_to_patches"]),
        ("image_processor", {"size": {"longest_edge": "large"}}, ["image_processor", "'large'", "'longest_edge': 96"]),
        ("teacher_chat_template_kwargs", {"enable_thinking": False}, ["enable_thinking"]),
    ],
)
@pytest.mark.parametrize("start", [train, check_config])
def test_option_that_family_lacks_raises_before_weights_are_loaded(
    key: str, value: dict, names: list[str], start: Callable, models: dict, tmp_path: Path
) -> None:
    folders = without_weights(models, tmp_path)
    config = run_config(folders, tmp_path, models={**folders, key: value})
    with raises(WorkbenchError, *names):
        start(config)


def test_prompts_system_prompt_is_in_every_prompt(models: dict, tmp_path: Path, data: str) -> None:
    values = {
        "models": {**{name: str(path) for name, path in models.items()}, "teacher_system_prompt": "be brief"},
        "data": {"train": data, "eval": None},
    }
    ((_, prompts),) = render_prompts(
        run_config(models, tmp_path, **values, method={"name": "opd", "privilege": "hint"})
    )
    assert ["be brief" in prompt.text for prompt in prompts] == [False, True]


def test_prompts_command_needs_no_weights(
    models: dict, tmp_path: Path, data: str, capsys: pytest.CaptureFixture
) -> None:
    for folder in models.values():
        assert list(Path(folder).glob("*.safetensors"))
    config = run_config(models, tmp_path, method={"name": "opd"}, data={"train": data, "eval": None})
    (tmp_path / "recipe.yaml").write_text(config.to_yaml())
    assert main(["prompts", str(tmp_path / "recipe.yaml"), "--rows", "2"]) == 0
    out = capsys.readouterr().out
    assert out.count("[student] student given plain: ") == 2 and "rows.jsonl:2" in out


def test_prompts_row_that_cannot_be_read_is_named(models: dict, tmp_path: Path, data: str) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    config = run_config(models, tmp_path, method={"name": "opd"}, data={"train": data, "eval": None})
    with raises(DataError, "a.png"):
        list(render_prompts(config))


def test_train_with_several_crops_shows_all_to_privileged_views(models: dict, tmp_path: Path, data: str) -> None:
    for idx in range(2):
        Image.new("RGB", (20, 20), (90 * idx, 0, 0)).save(tmp_path / f"crop-{idx}.png")
    row = {"question": "What color?", "images": ["a.png"], "answer": "red", "crop": ["crop-1.png", "crop-0.png"]}
    Path(data).write_text(json.dumps(row) + "\n")
    values = {
        "data": {"train": data, "eval": None},
        "training__steps": 1,
        "training__batch_size": 1,
        "trace__probes": 0,
    }
    config = run_config(models, tmp_path, **values)
    by_name = {check.name: check.finding for check in check_config(config)}
    assert by_name["images in view student"].startswith("1 image(s), 9 image tokens")
    assert by_name["images in view teacher"].startswith("3 image(s), 27 image tokens")
    train(config)
    (traced, *_) = open_traces(config.run_dir).sql("SELECT images_student, images_teacher FROM rollouts").to_pylist()
    names = {view: [Path(path).name for path in paths] for view, paths in traced.items()}
    assert names == {"images_student": ["a.png"], "images_teacher": ["a.png", "crop-1.png", "crop-0.png"]}
    (example,) = load_examples(data)
    assert [picture.title for picture in pictures_of(example)] == ["image", "crop 1", "crop 2"]
