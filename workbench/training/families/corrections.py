"""What a configuration does not tell about a model type, as data: values that its small model needs."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Correction:
    """Values for one model type.

    config           dotted keys of the configuration -> value; None leaves it to the class
    image_processor  arguments of the image processor
    processor        arguments of the processor
    tokens           attributes of the tokenizer, or keys of the configuration, -> token
    literals         further special tokens of the tokenizer
    placeholder      text of an image in the chat template, where it is not the image token
    processor_of     model type with the same processor, where transformers maps none
    image_processor_of  the same for the image processor
    """

    config: dict[str, Any] = field(default_factory=dict)
    image_processor: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    literals: tuple[str, ...] = ()
    placeholder: str | None = None
    processor_of: str = ""
    image_processor_of: str = ""


def _mrope(*sections: int) -> dict[str, Any]:
    """Sections of M-RoPE for small heads, for models whose code holds those of large ones."""
    return {"text_config.rope_parameters.mrope_section": list(sections)}


def _letters(number: int) -> str:
    return "".join(chr(ord("A") + int(digit)) for digit in str(number))


_NUM_CODES = 16  # of a codebook
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_SMALL_VQ = {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "embed_dim": 8}

CORRECTIONS: dict[str, Correction] = {
    "aria": Correction(  # its processor takes images of 490 or 980 pixels a side
        config={
            "vision_config.patch_size": 245,
            "vision_config.image_size": 980,
            "projector_patch_to_query_dict": {4: 4, 16: 4},
        },
        processor={"size_conversion": {490: 4, 980: 4}},
        image_processor={"max_image_size": 980, "min_image_size": 336},
    ),
    "chameleon": Correction(
        config={
            "vq_config": {**_SMALL_VQ, "num_embeddings": _NUM_CODES, "resolution": 16, "latent_channels": 8},
        },
        image_processor={"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}},
        processor={"image_seq_length": 64},
        literals=(*(f"IMGIMG{_letters(code)}Z" for code in range(_NUM_CODES)), "<reserved08706>"),
    ),
    "cohere2_vision": Correction(image_processor={"patch_size": 2}),
    "cohere_compass": Correction(config={"text_config.rope_parameters": {"full_attention": _ROPE}}),
    "cosmos3_omni": Correction(processor_of="qwen3_vl"),
    "deepseek_vl_hybrid": Correction(image_processor={"high_res_size": {"height": 64, "width": 64}}),
    "deepseek_ocr2": Correction(
        config={
            "text_config.mlp_layer_types": ["dense", "sparse"],
            "text_config.num_experts_per_tok": 2,
            "vision_config.sam_config.downsample_channels": [64, 64],
        }
    ),
    "dots3_note": Correction(
        config={
            "text_config.head_dim": 24,
            "text_config.per_layer_config": None,
            "text_config.index_topk": 512,
            "vision_config.adapter_in_dim": 64,
            "audio_config.adapter_input_size": 64,
        },
        image_processor={"temporal_patch_size": 1},
    ),
    "emu3": Correction(
        config={
            "vq_config": {**_SMALL_VQ, "channel_multiplier": [1] * 4, "codebook_size": _NUM_CODES, "hidden_size": 32},
        },
        image_processor={"size": {"min_pixels": 16 * 16, "max_pixels": 24 * 24}},
        tokens={
            "image_token": "<image>",
            "image_wrapper_token": "<|image token|>",
            "eof_token": "<|extra_201|>",
            "eol_token": "<|extra_200|>",
        },
        literals=tuple(f"<|visual token {code:06d}|>" for code in range(_NUM_CODES)),
    ),
    "ernie4_5_vl_moe": Correction(config=_mrope(3, 3, 2)),
    "fast_vlm": Correction(  # the smallest tower of timm of its kind
        config={"vision_config.architecture": "fastvit_t8", "vision_config.hidden_size": 768},
        image_processor={"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}},
        processor={"patch_size": 32, "num_additional_image_tokens": 0},
        processor_of="llava",
        image_processor_of="llava",
    ),
    "falcon_h1": Correction(config={"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16}),
    "fuyu": Correction(literals=("|SPEAKER|", "|NEWLINE|"), placeholder=""),
    "gemma3": Correction(config={"mm_tokens_per_image": 4}, placeholder="<|boi_token|>"),
    "gemma4": Correction(
        config={"vision_config.position_embedding_size": 128}, image_processor={"max_soft_tokens": 70}
    ),
    "gemma3n": Correction(config={"vision_config.hidden_size": 2048}),  # of timm's tower
    "glm46v": Correction(config=_mrope(2, 3, 3)),
    "glm4v": Correction(config=_mrope(2, 3, 3)),
    "glm4v_moe": Correction(config=_mrope(2, 1, 1), image_processor_of="glm4v"),
    "glm5_next": Correction(config={"text_config.index_topk": 16}),
    "glm_ocr": Correction(config=_mrope(2, 3, 3), processor_of="glm46v", image_processor_of="glm46v"),
    "glmga": Correction(config=_mrope(2, 3, 3), processor_of="glm46v"),
    "granite4_vision": Correction(
        config={"downsample_rate": "1/2", "spatial_target_layers": [1], "deepstack_layer_map": [[-1, 0]]}
    ),
    "hunyuan_vl": Correction(
        config={"text_config.head_dim": 16, **_mrope(2, 2, 2, 2)},
        placeholder="<|image_start_token|><|image_token|><|image_end_token|>",
    ),
    "idefics": Correction(config={"additional_vocab_size": 0}),
    "inkling2": Correction(image_processor={"size": {"height": 40, "width": 40}}),
    "inkling_mm_model": Correction(image_processor={"size": {"height": 40, "width": 40}}),
    "janus": Correction(config={"vq_config.base_channels": 32}),
    "kosmos-2": Correction(processor_of="Kosmos2Processor"),
    "kosmos-2.5": Correction(processor_of="Kosmos2_5Processor"),
    "llama4": Correction(config={"vision_config.intermediate_size": 256}),  # of 2 x 2 patches
    "llava_onevision": Correction(processor={"num_image_tokens": 16}),
    "mistral4": Correction(config={"head_dim": None}),  # half of a head is rotated
    "mistral_large4": Correction(config={"text_config.index_topk": 512}),
    "mllama": Correction(config={"vision_config.vision_output_dim": 128}),  # of two layers
    "minimax_m3_vl": Correction(literals=("]<]image[>[", "]<]video[>[", "]<]start of image[>[", "]<]end of image[>[")),
    "molmo2": Correction(
        config={"adapter_config.vision_feature_layer": [1, 0]},
        tokens={
            "image_patch_id": "<im_patch>",
            "image_start_token_id": "<im_start>",
            "low_res_image_start_token_id": "<low_res_im_start>",
        },
        image_processor={"overlap_margins": [0, 0], "max_crops": 3},
    ),
    "muse_glimmer": Correction(config={"out_hidden_size": 256}),  # of 2 x 2 patches
    "muse_spark": Correction(config={"out_hidden_size": 256}),
    "paddleocr_vl": Correction(config=_mrope(2, 3, 3)),
    "paligemma": Correction(image_processor={"image_seq_length": 16}),
    "perception_lm": Correction(
        config={
            "vision_config.architecture": "vit_pe_lang_large_patch14_448",
            "vision_config.model_args": {
                "embed_dim": 64,
                "depth": 2,
                "num_heads": 4,
                "img_size": [56, 56],
                "global_pool": "",
            },
        },
        processor={"patch_size": 14, "pooling_ratio": 1},
    ),
    "qianfan_ocr": Correction(placeholder="<image>"),
    "qwen2_5_omni_thinker": Correction(
        config={**_mrope(2, 3, 3), "vision_start_token_id": 100},
        processor_of="qwen2_5_omni",
        image_processor_of="qwen2_vl",
    ),
    "qwen2_5_vl": Correction(config=_mrope(2, 3, 3)),
    "qwen2_vl": Correction(config=_mrope(2, 3, 3)),
    "qwen3_omni_moe_thinker": Correction(
        config={"vision_start_token_id": 100}, processor_of="qwen3_omni_moe", image_processor_of="qwen2_vl"
    ),
    "qwen3_vl_moe": Correction(image_processor_of="qwen3_vl"),
    "qwen4_exp": Correction(
        config={
            "text_config.indexer_n_heads": 2,
            "text_config.indexer_kv_heads": 1,
            "text_config.indexer_head_dim": 16,
            "text_config.indexer_budget": 64,
            "text_config.indexer_compress_ratio": 4,
            "text_config.ngram_vocab_size_base": 1000,
        }
    ),
    "step3p7": Correction(  # a token is four patches a side
        config={"text_config.sliding_window": 64, "vision_config.patch_size": 2, "vision_config.image_size": 16},
        image_processor={"size": {"height": 16, "width": 16}, "patch_size": 8, "vision_patch_size": 2},
    ),
    "unlimited_ocr": Correction(config={"vision_config.sam_config.downsample_channels": [64, 64]}),
    "vipllava": Correction(config={"vision_feature_layers": [-1, -2]}),
}
