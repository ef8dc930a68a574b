"""Small random models of newer families that see: states beside keys, experts, scaled logits, pictures as words.

Token names and image sizes in patches are the families' own; everything else is small.
"""

from pathlib import Path

from families import IMAGE_TOKENS, TEMPLATE, TEXT, VISION, save_model, small_tokenizer
from text_families import EXPERTS, QWEN
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    ChameleonImageProcessorPil,
    ChameleonProcessor,
    Cohere2VisionProcessor,
    Emu3ImageProcessor,
    Emu3Processor,
    GotOcr2ImageProcessorPil,
    Lfm2VlProcessor,
    Lfm3VlProcessor,
    Molmo2Processor,
    Qwen2VLImageProcessorPil,
    Qwen3VLProcessor,
)
from video_families import QWEN_TEMPLATE, QWEN_TOKENS

from workbench.policies.processors import PartSettings, images_only

NUM_CODES = 16  # of a picture's codebook


def save_qwen3_5(folder: Path, seed: int = 0) -> Path:
    """As Qwen3-VL, with states of linear attention, which no cache can repeat."""
    return _save_qwen3_5(folder, "qwen3_5", {}, seed)


def save_qwen3_5_moe(folder: Path, seed: int = 0) -> Path:
    """As Qwen3.5, with experts."""
    return _save_qwen3_5(folder, "qwen3_5_moe", {**EXPERTS, "shared_expert_intermediate_size": 16}, seed)


def _save_qwen3_5(folder: Path, model_type: str, values: dict, seed: int) -> Path:
    processor, ids, text = _packed(Qwen3VLProcessor, "Qwen3VLVideoProcessor")
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5}
    text |= {**QWEN, **values, "rope_parameters": {**rope, "mrope_interleaved": True}}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "num_position_embeddings": 16}
    vision |= {"patch_size": 16, "out_hidden_size": TEXT["hidden_size"]}
    return _save(folder, model_type, processor, seed, text_config=text, vision_config=vision, **ids)


def save_lfm3_vl(folder: Path, seed: int = 0) -> Path:
    """Convolutions between attention, in the language model and in the vision tower."""
    processor, ids, text = _packed(Lfm3VlProcessor, "Qwen3VLVideoProcessor")
    text |= {"layer_types": ["conv", "full_attention"], "num_dense_layers": 2}
    vision = {"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    vision |= {"num_key_value_heads": 2, "patch_size": 16}
    return _save(
        folder, "lfm3_vl", processor, seed, text_config=text, vision_config=vision, projector_hidden_size=32, **ids
    )


def _packed(official: type, video: str) -> tuple[object, dict, dict]:
    """A processor that packs images patch by patch, ids of its tokens, and what a language model needs of them."""
    tokenizer = small_tokenizer(QWEN_TOKENS | {"text_end_token": "<|endoftext|>"})  # which Qwen3.5's tokenizer adds
    sizes = {"size": {"shortest_edge": 32**2, "longest_edge": 6 * 32**2}, "patch_size": 16}
    processor = images_only(official)(
        image_processor=Qwen2VLImageProcessorPil(**sizes),
        tokenizer=tokenizer,
        video_processor=PartSettings({"video_processor_type": video} | sizes),
        chat_template=QWEN_TEMPLATE,
    )
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in QWEN_TOKENS.items()}
    return processor, ids, {**TEXT, **_vocabulary(tokenizer)}


def save_cohere2_vision(folder: Path, seed: int = 0) -> Path:
    """Tiles as GOT-OCR's, whose image processor its own copies for torchvision; its forward pass leaves out a scale."""
    tokenizer = small_tokenizer(IMAGE_TOKENS | {"img_line_break_token": "<|IMG_LINE_BREAK|>"})
    size = {"height": 28, "width": 28}
    image_processor = GotOcr2ImageProcessorPil(size=size, max_patches=2, crop_to_patches=True, patch_size=2)
    processor = Cohere2VisionProcessor(image_processor, tokenizer, chat_template=TEMPLATE.replace("IMAGE", "<image>"))
    text = {"model_type": "cohere2", "logit_scale": 0.25, **TEXT, **_vocabulary(tokenizer)}
    vision = {"model_type": "siglip_vision_model", **VISION, "image_size": 28, "patch_size": 7}
    settings = {"image_token_id": tokenizer.image_token_id, "alignment_intermediate_size": 64}
    return _save(folder, "cohere2_vision", processor, seed, text_config=text, vision_config=vision, **settings)


def save_lfm2_vl(folder: Path, seed: int = 0) -> Path:
    """Pictures of any shape, or tiles of large ones with a small whole; its image processor needs torchvision."""
    from transformers import Lfm2VlImageProcessor  # noqa: PLC0415

    places = {f"tile_{row}_{col}": f"<|img_row_{row}_col_{col}|>" for row in range(1, 5) for col in range(1, 5)}
    marks = {"image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>"}
    marks |= {"image_thumbnail_token": "<|img_thumbnail|>", "image_token": "<image>"}
    tokenizer = small_tokenizer(marks | places)
    sizes = {"encoder_patch_size": 8, "tile_size": 32, "max_tiles": 4, "min_image_tokens": 2, "max_image_tokens": 8}
    template = TEMPLATE.replace("IMAGE", "<image>")
    processor = Lfm2VlProcessor(Lfm2VlImageProcessor(**sizes), tokenizer, chat_template=template)
    text = {key: value for key, value in TEXT.items() if key != "head_dim"}
    text |= {"model_type": "lfm2", "layer_types": ["conv", "full_attention"], **_vocabulary(tokenizer)}
    vision = {"model_type": "siglip2_vision_model", **VISION, "patch_size": 8, "num_patches": 16}
    settings = {"image_token_id": tokenizer.image_token_id, "projector_hidden_size": 32}
    return _save(folder, "lfm2_vl", processor, seed, text_config=text, vision_config=vision, **settings)


def save_molmo2(folder: Path, seed: int = 0) -> Path:
    """Image tokens pool patches that are counted through a prompt's images; its image processor needs torchvision."""
    from transformers import Molmo2ImageProcessor, Molmo2VideoProcessor  # noqa: PLC0415

    marks = ("<im_patch>", "<im_col>", "<im_start>", "<low_res_im_start>", "<frame_start>", "<im_end>", "<frame_end>")
    named = {"image_token": "<|image|>", "video_token": "<|video|>", "low": "<im_low>"}
    tokenizer = small_tokenizer(named | {f"mark_{position}": mark for position, mark in enumerate(marks)})
    size = {"height": 56, "width": 56}
    processor = Molmo2Processor(
        Molmo2ImageProcessor(size=size, max_crops=3, overlap_margins=[0, 0]),
        Molmo2VideoProcessor(size=size),
        tokenizer,
        chat_template=TEMPLATE.replace("IMAGE", "<|image|>"),
    )
    heads = {"num_key_value_heads": 4, "head_dim": 8}
    pooling = {"vision_feature_layer": [1, 0], "hidden_size": 32, "num_attention_heads": 4, **heads}
    names = ("image_patch_id", "image_start_token_id", "low_res_image_start_token_id")
    ends = _vocabulary(tokenizer)
    return _save(
        folder,
        "molmo2",
        processor,
        seed,
        text_config={**TEXT, "vocab_size": ends.pop("vocab_size"), "additional_vocab_size": 8},
        vision_config={**VISION, **heads, "image_size": [56, 56], "patch_size": 14},
        adapter_config={**pooling, "intermediate_size": 48, "text_hidden_size": TEXT["hidden_size"]},
        **ends,
        **{
            name: tokenizer.convert_tokens_to_ids(mark)
            for name, mark in zip(names, (marks[0], *marks[2:4]), strict=True)
        },
    )


def save_chameleon(folder: Path, seed: int = 0) -> Path:
    """A picture is words of a codebook, which its forward pass forbids in answers; no chat template."""
    codes = {f"code_{code}": f"IMGIMG{_letters(code)}Z" for code in range(NUM_CODES)}
    tokenizer = small_tokenizer(IMAGE_TOKENS | codes)
    tokenizer.add_special_tokens({"sep_token": "<reserved08706>"})
    size = {"height": 16, "width": 16}
    image_processor = ChameleonImageProcessorPil(size={"shortest_edge": 16}, crop_size=size)
    processor = ChameleonProcessor(image_processor, tokenizer, image_seq_length=64)
    text = {key: value for key, value in TEXT.items() if key != "head_dim"}
    return _save(
        folder,
        "chameleon",
        processor,
        seed,
        **text,
        **_vocabulary(tokenizer),
        vocabulary_map=tokenizer.get_vocab(),
        vq_config=_codebook(num_embeddings=NUM_CODES, resolution=16, embed_dim=8, latent_channels=8),
    )


def save_emu3(folder: Path, seed: int = 0) -> Path:
    """A picture is words of a codebook, as many as its size asks for; attention has dropout."""
    tokens = {"image_wrapper_token": "<|image token|>", "eof_token": "<|extra_201|>", "eol_token": "<|extra_200|>"}
    codes = {f"code_{code}": f"<|visual token {code:06d}|>" for code in range(NUM_CODES)}
    tokenizer = small_tokenizer(IMAGE_TOKENS | tokens | codes)
    image_processor = Emu3ImageProcessor(min_pixels=16 * 16, max_pixels=24 * 24)
    processor = Emu3Processor(image_processor, tokenizer, chat_template=TEMPLATE.replace("IMAGE", "<image>"))
    text = {**{key: value for key, value in TEXT.items() if key != "head_dim"}, **_vocabulary(tokenizer)}
    return _save(
        folder,
        "emu3",
        processor,
        seed,
        text_config=text,
        vocabulary_map=tokenizer.get_vocab(),
        vq_config=_codebook(codebook_size=NUM_CODES, embed_dim=4, hidden_size=32, channel_multiplier=[1, 1, 1, 1]),
    )


def _codebook(**values: object) -> dict:
    return {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, **values}


def _letters(number: int) -> str:
    return "".join(chr(ord("A") + int(digit)) for digit in str(number))


def _vocabulary(tokenizer: object) -> dict[str, int]:
    ends = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return {"vocab_size": len(tokenizer), **ends}


def _save(folder: Path, model_type: str, processor: object, seed: int, **settings: object) -> Path:
    config = AutoConfig.for_model(model_type, **settings)
    return save_model(folder, AutoModelForImageTextToText.from_config, config, processor, seed)


NEWER_FAMILIES = {
    "qwen3_5": save_qwen3_5,
    "qwen3_5_moe": save_qwen3_5_moe,
    "lfm3_vl": save_lfm3_vl,
    "cohere2_vision": save_cohere2_vision,
    "chameleon": save_chameleon,
    "emu3": save_emu3,
}
TORCHVISION_FAMILIES = {"lfm2_vl": save_lfm2_vl, "molmo2": save_molmo2}
