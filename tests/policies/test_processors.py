"""Processors of families with a video part, built without it: the same ids and pixels as by the family's own rules."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from failures import raises
from small import picture
from transformers import PROCESSOR_MAPPING, AutoConfig, AutoImageProcessor, AutoTokenizer
from transformers.utils import is_torchvision_available
from video_families import QWEN_TEMPLATE, VIDEO_FAMILIES

from workbench.errors import PolicyError
from workbench.policies.autoregressive import AutoregressivePolicy, load_policy
from workbench.policies.encoding import PromptEncoder, collate
from workbench.policies.processors import images_only, load_images_only, load_processor
from workbench.types import Prompt

PICTURES = ((60, 40), (30, 60), (96, 96))
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="module", params=list(VIDEO_FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def policy(family: str, folders: dict[str, Path]) -> AutoregressivePolicy:
    return load_policy(folders[family], "student")


def expansion(family: str, created: dict) -> list[str]:
    """What each image's one token becomes, by the families' published rules, of what the image processor made."""
    if family in QWEN:  # a token for each 2 x 2 patches
        return ["<|image_pad|>" * (int(grid.prod()) // 4) for grid in created["image_grid_thw"]]
    if family == "internvl":  # 256 tokens for each tile, here 4
        return [f"<img>{'<IMG_CONTEXT>' * 4 * int(tiles)}</img>" for tiles in created["num_patches"]]
    if family == "smolvlm":  # each tile of a split image with its row and column, then the whole
        return [
            "".join(
                "".join(f"<fake_token_around_image><row_{row + 1}_col_{col + 1}>{'<image>' * 9}" for col in range(cols))
                + "\n"
                for row in range(rows)
            )
            + f"\n<fake_token_around_image><global-img>{'<image>' * 9}<fake_token_around_image>"
            for rows, cols in zip(created["rows"][0], created["cols"][0], strict=True)
        ]
    return ["<image>" * 17] * len(PICTURES)  # llava_onevision: of several images, 16 patches and a new line each


@pytest.mark.parametrize("several", [True, False], ids=["several images", "no image"])
def test_processor_ids_and_pixels_follow_family_rules(
    several: bool, family: str, policy: AutoregressivePolicy, folders: dict
) -> None:
    images = [picture(seed, size) for seed, size in enumerate(PICTURES)] if several else []
    encoded = policy.encoder.encode(Prompt(tuple(images), "what is this?"))
    tokenizer = AutoTokenizer.from_pretrained(folders[family])
    mark = policy.processor.image_token
    content = [{"type": "image"}] * len(images) + [{"type": "text", "text": "what is this?"}]
    template = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=policy.processor.chat_template,
        add_generation_prompt=True,
        tokenize=False,
    )
    if images:
        requested = {"internvl": {"crop_to_patches": True}, "smolvlm": {"return_row_col_info": True}}.get(family, {})
        displayed = [images] if family in ("smolvlm", "llava_onevision") else images  # families that batch by prompt
        created = AutoImageProcessor.from_pretrained(folders[family])(displayed, return_tensors="pt", **requested)
        assert torch.equal(encoded["pixel_values"], created["pixel_values"])
        before, *rest = template.split(mark)
        pieces = zip(expansion(family, created), rest, strict=True)
        template = before + "".join(whole + text for whole, text in pieces)
    else:
        assert "pixel_values" not in encoded
    assert encoded["input_ids"][0].tolist() == tokenizer(template, add_special_tokens=False)["input_ids"]


@pytest.mark.skipif(not is_torchvision_available(), reason="the official processors need torchvision")
def test_processor_equals_official_processor(folders: dict) -> None:
    for family in VIDEO_FAMILIES:
        config = AutoConfig.from_pretrained(folders[family])
        official = load_processor(folders[family], config)
        assert type(official) is PROCESSOR_MAPPING[type(config)]
        images_only = load_images_only(type(official), folders[family])
        for sizes in (PICTURES, PICTURES[:1], ()):
            prompt = Prompt(tuple(picture(seed, size) for seed, size in enumerate(sizes)), "what is this?")
            first, second = (PromptEncoder(processor).encode(prompt) for processor in (official, images_only))
            assert first.keys() == second.keys()
            for name in first:  # images_only of pixels are in -1 .. 1, and resized by another library
                assert torch.allclose(first[name].float(), second[name].float(), atol=0.05), (family, name)


def test_processor_rules_are_those_of_official_class(policy: AutoregressivePolicy) -> None:
    kind = type(policy.processor)
    if is_torchvision_available():
        kind = images_only(kind)
    official = kind.__mro__[2]
    assert official.__module__.startswith("transformers.models.") and kind.__name__ == official.__name__
    for rule in ("__init__", "__call__", "apply_chat_template", "replace_image_token", "_process_images"):
        assert getattr(kind, rule) is getattr(official, rule)


def test_processor_saved_keeps_video_part(family: str, policy: AutoregressivePolicy, tmp_path, folders):
    policy.processor.save_pretrained(tmp_path)
    before, after = (
        json.loads((folder / "processor_config.json").read_text()) for folder in (folders[family], tmp_path)
    )
    assert before["video_processor"].items() <= after["video_processor"].items()
    assert after["processor_class"] == before["processor_class"] == type(policy.processor).__name__


def test_processor_of_older_folder_layout_loads(folders: dict, tmp_path: Path) -> None:
    """A file for each part and the template as JSON, as on the hub before processor_config.json."""
    folder = shutil.copytree(folders["qwen2_vl"], tmp_path / "model")
    settings = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").unlink()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": QWEN_TEMPLATE}))
    (folder / "preprocessor_config.json").write_text(
        json.dumps(settings["image_processor"] | {"processor_class": "Qwen2VLProcessor"})
    )
    (folder / "video_preprocessor_config.json").write_text(json.dumps(settings["video_processor"]))
    prompt = Prompt((picture(1),), "what?")
    old, new = (load_policy(path, "student") for path in (folder, folders["qwen2_vl"]))
    first, second = (policy.encoder.encode(prompt) for policy in (old, new))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    old.processor.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "processor_config.json").read_text())
    assert settings["video_processor"].items() <= saved["video_processor"].items()


def test_processor_without_image_processor_names_folder(folders: dict, tmp_path: Path) -> None:
    folder = shutil.copytree(folders["qwen3_vl"], tmp_path / "model")
    (folder / "processor_config.json").unlink()
    with raises(PolicyError, "/model"):
        load_policy(folder, "student")


@pytest.mark.parametrize("name", QWEN)
def test_packed_pixels_follow_prompts_into_micro_batches(name: str, folders: dict) -> None:
    policy = load_policy(folders[name], "student")
    prompts = [
        Prompt((picture(1, (60, 40)),), "one", key="1"),
        Prompt((picture(2, (90, 30)), picture(3, (30, 60))), "two", key="2"),
        Prompt((), "none", key="3"),
        Prompt((picture(4, (96, 96)),), "a longer question of more words", key="4"),
    ]
    whole = policy.encoder.batch(prompts)
    pieces = [policy.encoder.batch(prompts[start : start + 2]) for start in (0, 2)]
    for packed in ("pixel_values", "image_grid_thw"):
        assert torch.equal(torch.cat([piece[packed] for piece in pieces]), whole[packed])
    for piece in pieces:
        assert piece["pixel_values"].shape[0] == int(piece["image_grid_thw"].prod(-1).sum())
        marked = piece["input_ids"] == policy.model.config.image_token_id
        assert torch.equal(marked, piece["mm_token_type_ids"] == 1)  # padded on the same side as the ids
        assert int(marked.sum()) == int(piece["image_grid_thw"].prod(-1).sum()) // 4


@pytest.mark.parametrize("name", QWEN)
def test_three_axis_positions_do_not_depend_on_padding(name: str, folders: dict) -> None:
    policy = load_policy(folders[name], "student")
    prompts = [
        Prompt((picture(1),), "short", key="1"),
        Prompt((picture(2), picture(3, (30, 60))), "long " * 9, key="2"),
    ]

    def positions(displayed: list[Prompt]) -> torch.Tensor:
        encoded = policy.encoder.batch(displayed)
        recorded = {key: encoded[key] for key in ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw")}
        return policy.model.model.get_rope_index(**recorded)[0]

    together = positions(prompts)
    for row, prompt in enumerate(prompts):
        alone = positions([prompt])[:, 0]
        assert torch.equal(together[:, row, -alone.shape[-1] :], alone)
        assert not torch.equal(alone[0], alone[2])  # an image is two-dimensional


def test_collate_needs_no_image_in_first_prompt(folders: dict) -> None:
    policy = load_policy(folders["qwen2_vl"], "student")
    text, seen = (policy.encoder.encode(Prompt(images, "what?")) for images in ((), (picture(1),)))
    for order in ([text, seen], [seen, text]):
        batch = collate(order, 0)
        assert batch["mm_token_type_ids"].shape == batch["input_ids"].shape
