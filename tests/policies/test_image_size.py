"""The size of images as models see them: sizes worked out by hand, tokens by the families' published rules."""

import math
from pathlib import Path

import pytest
from failures import raises
from PIL import Image
from small import picture

from workbench.config.schema import ModelsConfig
from workbench.data import images
from workbench.errors import ConfigError, PolicyError
from workbench.policies.image_size import MAX_PIXELS, image_options, reduced_size, set_image_options
from workbench.policies.loading import load_policies, load_policy
from workbench.types import Prompt


@pytest.mark.parametrize(
    ("size", "limit", "expected"),
    [
        ((40, 30), 1200, (40, 30)),  # exactly at the limit
        ((80, 60), 1200, (40, 30)),  # a quarter of the area
        ((60, 80), 1200, (30, 40)),
        ((3000, 2000), None, (3000, 2000)),
        ((3000, 2000), 1_003_520, (1226, 817)),  # sqrt(1003520 / 6000000) = 0.40897
        ((100_000, 1), 784, (784, 1)),  # the short side stays a pixel, so the long side gives way
        ((1, 100_000), 784, (1, 784)),
        ((1000, 3), 784, (511, 1)),  # sqrt(784 / 3000) = 0.5112
    ],
)
def test_reduced_size_limit_keeps_aspect(size: tuple[int, int], limit: int | None, expected: tuple[int, int]) -> None:
    assert reduced_size(*size, limit) == expected
    assert limit is None or math.prod(expected) <= limit


def test_photograph_default_limit_costs_1276_tokens_of_qwen(folders: dict[str, Path], tmp_path: Path) -> None:
    """Qwen2.5-VL rounds both sides to multiples of 28 and spends a token for each square of 28 pixels.

    1226 x 817 becomes 44 x 29 squares; 3000 x 2000 becomes 107 x 71, as its limits on the hub allow.
    """
    picture(1, (3000, 2000)).save(tmp_path / "photo.png")
    hub = {"patch_size": 14, "merge_size": 2, "min_pixels": 3136, "max_pixels": 12_845_056}
    prompt = Prompt((tmp_path / "photo.png",), "what is this?")
    for limit, squares in ((MAX_PIXELS, 44 * 29), (None, 107 * 71)):
        policy = load_policy(folders["qwen2_5_vl"], "student", max_pixels=limit, image_processor=hub)
        ids = policy.encoder._encode(prompt)["input_ids"]
        assert int((ids == policy.model.config.image_token_id).sum()) == squares


def test_encoder_larger_image_counted_once_by_name(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "CHANGED", {})
    picture(1, (80, 60)).save(tmp_path / "photo.png")
    policy = load_policy(folders["idefics3"], "student", max_pixels=1200)
    for source in (tmp_path / "photo.png", tmp_path / "photo.png", picture(2, (40, 30))):
        assert policy.encoder.open(source).size == (40, 30)
    ((kind, names),) = images.CHANGED.items()
    assert "1,200 pixels (models.max_pixels)" in kind
    assert names == {str(tmp_path / "photo.png")}


def test_teacher_own_size_does_not_share_encoder(models: dict[str, Path]) -> None:
    same = load_policies(("teacher", "student@start"), **models, max_pixels=1200)
    assert same["teacher"].encoder is same["student"].encoder is same["student@start"].encoder
    options = ModelsConfig(teacher_max_pixels=4800).teacher_options
    apart = load_policies(("teacher", "student@start"), **models, max_pixels=1200, teacher_options=options)
    assert apart["student"].encoder is apart["student@start"].encoder
    sizes = {name: policy.encoder.open(picture(1, (160, 120))).size for name, policy in apart.items()}
    assert sizes == {"student": (40, 30), "student@start": (40, 30), "teacher": (80, 60)}
    keys = [policy.encoder.limit_key for policy in (apart["student"], apart["teacher"])]
    assert keys == ["models.max_pixels", "models.teacher_max_pixels"]


def test_image_processor_options_saved_with_processor(folders: dict[str, Path], tmp_path: Path) -> None:
    tiled = {"do_image_splitting": True, "size": {"longest_edge": 128}}
    policy = load_policy(folders["idefics3"], "student", image_processor=tiled)
    before = load_policy(folders["idefics3"], "student")
    prompt = Prompt((Image.new("RGB", (64, 64)),), "what is this?")
    assert policy.encoder._encode(prompt)["pixel_values"].shape[1] > 1  # tiles and the whole image
    assert before.encoder._encode(prompt)["pixel_values"].shape[1] == 1
    policy.model.save_pretrained(tmp_path)
    policy.processor.save_pretrained(tmp_path)
    again = load_policy(tmp_path, "student")
    assert again.processor.image_processor.do_image_splitting is True


def test_image_processor_unknown_option_names_nearest(folders: dict[str, Path]) -> None:
    with raises(ConfigError, "teacher", "do_image_spliting", 'mean "do_image_splitting"'):
        load_policy(folders["idefics3"], "teacher", image_processor={"do_image_spliting": False})
    with raises(ConfigError, "student", "do_pan_and_scan"):  # tiles of another family
        load_policy(folders["qwen2_5_vl"], "student", image_processor={"do_pan_and_scan": True})


def test_image_processor_refused_value_names_own_values(folders: dict[str, Path]) -> None:
    with raises(ConfigError, "size", "wide"):
        load_policy(folders["idefics3"], "student", image_processor={"size": {"wide": 3}})


def test_image_processor_text_model_is_refused() -> None:
    with raises(ConfigError, "student", "max_pixels"):
        set_image_options(object(), {"max_pixels": 784}, "student")


def test_image_options_leave_out_formats(folders: dict[str, Path]) -> None:
    names = image_options(load_policy(folders["qwen2_5_vl"], "student").processor.image_processor)
    assert {"min_pixels", "max_pixels", "size"} <= set(names)
    assert not {"return_tensors", "device", "data_format"} & set(names)


@pytest.mark.parametrize(
    "options",
    [
        {"min_pixels": 12544, "max_pixels": 784},
        {"min_pixels": 20_000_000},
        {"size": {"min_pixels": 9, "max_pixels": 4}},
    ],
)
def test_image_processor_lower_limit_above_upper_is_refused(folders: dict[str, Path], options: dict) -> None:
    """Qwen's processor keeps min_pixels and max_pixels as the edges of its size; its own upper one is 12,845,056."""
    with raises(ConfigError, "student", "is above", *options):
        load_policy(folders["qwen2_5_vl"], "student", image_processor=options)


def test_image_processor_options_are_proven_apart(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vision tower takes patches of its own size alone; the proof of the folder's own options tells nothing of it."""
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    load_policies((), student=folders["qwen2_5_vl"])
    with raises(PolicyError, "student", "with an image", "models.image_processor"):
        load_policies((), student=folders["qwen2_5_vl"], image_processor={"patch_size": 16})
