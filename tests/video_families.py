"""Small random models of the families whose processors come with a video part, saved as their users would have them.

Token names, chat templates and image sizes in patches are the families' own; everything else is small.
"""

from pathlib import Path

from families import TEMPLATE, TEXT, VISION, save_model, small_tokenizer
from transformers import (
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessorPil,
    SmolVLMProcessor,
)

from workbench.policies.processors import PartSettings, images_only
from workbench.training.pretraining.tokenizer import build_processor

MROPE = [2, 1, 1]  # of half a head
QWEN_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_qwen2_vl(folder: Path, seed: int = 0) -> Path:
    """Pixels are packed: a row for each patch, images of any size one after the other; positions are of three axes."""
    processor, config = _qwen(Qwen2VLProcessor, "Qwen2VLVideoProcessor", 14)
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": TEXT["hidden_size"], "num_heads": 2}
    vision |= {"mlp_ratio": 2, "patch_size": 14}
    return save_model(
        folder, Qwen2VLForConditionalGeneration, Qwen2VLConfig(vision_config=vision, **config), processor, seed
    )


def save_qwen2_5_vl(folder: Path, seed: int = 0) -> Path:
    """As Qwen2-VL, with windows of attention in the vision tower."""
    processor, config = _qwen(Qwen2_5_VLProcessor, "Qwen2VLVideoProcessor", 14)
    vision = _tower(patch_size=14, window_size=56, fullatt_block_indexes=[1])
    model = Qwen2_5_VLForConditionalGeneration
    return save_model(folder, model, Qwen2_5_VLConfig(vision_config=vision, **config), processor, seed)


def save_qwen3_vl(folder: Path, seed: int = 0) -> Path:
    """As Qwen2-VL, with interleaved axes and features of the first vision layer handed to a deeper layer."""
    processor, config = _qwen(Qwen3VLProcessor, "Qwen3VLVideoProcessor", 16)
    vision = _tower(patch_size=16, num_position_embeddings=16, deepstack_visual_indexes=[0])
    config["text_config"]["rope_parameters"]["mrope_interleaved"] = True
    return save_model(
        folder, Qwen3VLForConditionalGeneration, Qwen3VLConfig(vision_config=vision, **config), processor, seed
    )


def _tower(**values: object) -> dict:
    sizes = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
    return {**sizes, "out_hidden_size": TEXT["hidden_size"], **values}


def _qwen(official: type, video: str, patch_size: int) -> tuple[object, dict]:
    tokenizer = small_tokenizer(QWEN_TOKENS)
    side = 2 * patch_size
    sizes = {"size": {"shortest_edge": side**2, "longest_edge": 6 * side**2}, "patch_size": patch_size}
    processor = images_only(official)(
        Qwen2VLImageProcessorPil(**sizes),
        tokenizer,
        PartSettings({"video_processor_type": video} | sizes),
        chat_template=QWEN_TEMPLATE,
    )
    text = {key: value for key, value in TEXT.items() if key != "head_dim" or official is Qwen3VLProcessor}
    rope = {"rope_type": "default", "mrope_section": MROPE, "rope_theta": 10_000.0}
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in QWEN_TOKENS.items()}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = {"text_config": {"vocab_size": len(tokenizer), "rope_parameters": rope, **text, **ends}, **ids}
    return processor, config


def save_internvl(folder: Path, seed: int = 0) -> Path:
    """Pictures are cut into tiles, and each image stands between a start and an end token."""
    tokens = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokenizer = small_tokenizer(tokens | {"video_token": "<video>"})
    size = {"height": 28, "width": 28}
    processor = images_only(InternVLProcessor)(
        GotOcr2ImageProcessorPil(size=size, max_patches=2),
        tokenizer,
        PartSettings({"video_processor_type": "InternVLVideoProcessor", "size": size}),
        image_seq_length=4,
        chat_template=TEMPLATE.replace("IMAGE", "<IMG_CONTEXT>"),
    )
    config = InternVLConfig(
        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer), **TEXT},
        vision_config={**VISION, "image_size": [28, 28], "patch_size": [7, 7]},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    return save_model(folder, InternVLForConditionalGeneration, config, processor, seed)


def save_llava_onevision(folder: Path, seed: int = 0) -> Path:
    """One image is cut into tiles; of several, each is one tile."""
    tokenizer = small_tokenizer({"image_token": "<image>", "video_token": "<video>"})
    size, grid = {"height": 28, "width": 28}, [[28, 56], [56, 28]]
    processor = images_only(LlavaOnevisionProcessor)(
        LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=grid),
        tokenizer,
        PartSettings({"video_processor_type": "LlavaOnevisionVideoProcessor", "size": size}),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )
    config = LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer), **TEXT},
        vision_config={
            "model_type": "siglip_vision_model",
            **VISION,
            "image_size": 28,
            "patch_size": 7,
            "vision_use_head": False,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
    )
    return save_model(folder, LlavaOnevisionForConditionalGeneration, config, processor, seed)


def save_smolvlm(folder: Path, seed: int = 0) -> Path:
    """Idefics3's successor; pictures are split here, as large ones are for its users."""
    tokenizer = build_processor().tokenizer
    processor = images_only(SmolVLMProcessor)(
        SmolVLMImageProcessorPil(size={"longest_edge": 96}, max_image_size={"longest_edge": 48}),
        tokenizer,
        PartSettings(
            {
                "video_processor_type": "SmolVLMVideoProcessor",
                "video_sampling": {"fps": 1, "max_frames": 8, "video_size": {"longest_edge": 48}},
            }
        ),
        image_seq_len=9,
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )
    config = SmolVLMConfig(
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **TEXT},
        vision_config={**VISION, "image_size": 48, "patch_size": 8},
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    return save_model(folder, SmolVLMForConditionalGeneration, config, processor, seed)


VIDEO_FAMILIES = {
    "qwen2_vl": save_qwen2_vl,
    "qwen2_5_vl": save_qwen2_5_vl,
    "qwen3_vl": save_qwen3_vl,
    "internvl": save_internvl,
    "llava_onevision": save_llava_onevision,
    "smolvlm": save_smolvlm,
}
