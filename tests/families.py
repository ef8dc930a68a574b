"""Small random models of real Hugging Face classes, saved to disk as their users would have them."""

from pathlib import Path

import torch
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    AyaVisionProcessor,
    CLIPImageProcessorPil,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    GenerationConfig,
    GotOcr2ImageProcessorPil,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    ModernVBertConfig,
    ModernVBertForMaskedLM,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipImageProcessorPil,
)

from workbench.training.pretraining.tokenizer import CHAT_TEMPLATE, EOS, build_processor

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + "IMAGE" + "{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def save_idefics3(folder: Path, seed: int = 0) -> Path:
    processor = build_processor()
    tokenizer = processor.tokenizer
    config = Idefics3Config(
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **TEXT},
        vision_config={**VISION, "image_size": 96, "patch_size": 16},
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        vocab_size=len(tokenizer),
    )
    return save_model(folder, Idefics3ForConditionalGeneration, config, processor, seed)


def save_llava(folder: Path, seed: int = 0) -> Path:
    tokenizer = small_tokenizer(IMAGE_TOKENS)
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
        image_token="<image>",
    )
    config = LlavaConfig(
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **TEXT},
        vision_config={"model_type": "clip_vision_model", **VISION, "image_size": 28, "patch_size": 14},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
        vision_feature_layer=-1,
    )
    return save_model(folder, LlavaForConditionalGeneration, config, processor, seed)


def save_gemma3(folder: Path, seed: int = 0) -> Path:
    tokenizer = small_tokenizer(IMAGE_TOKENS)
    image_processor = Gemma3ImageProcessorPil(size={"height": 28, "width": 28})
    template = TEMPLATE.replace("IMAGE", "<start_of_image>")
    processor = Gemma3Processor(image_processor, tokenizer, chat_template=template, image_seq_length=4)
    config = Gemma3Config(
        text_config={"vocab_size": len(tokenizer), "sliding_window": 64, "query_pre_attn_scalar": 8, **TEXT},
        vision_config={**VISION, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_id=tokenizer.image_token_id,
        boi_token_id=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_id=tokenizer.convert_tokens_to_ids("<end_of_image>"),
    )
    return save_model(folder, Gemma3ForConditionalGeneration, config, processor, seed)


def save_llava_next(folder: Path, seed: int = 0) -> Path:
    """Images are cut into as many tiles as their shape needs: prompts differ in length, pixels in number of tiles."""
    tokenizer = small_tokenizer(IMAGE_TOKENS)
    grid = [[28, 56], [56, 28]]
    image_processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=grid
    )
    processor = LlavaNextProcessor(
        image_processor,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
        image_token="<image>",
    )
    config = LlavaNextConfig(
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **TEXT},
        vision_config={"model_type": "clip_vision_model", **VISION, "image_size": 28, "patch_size": 14},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
        vision_feature_layer=-1,
    )
    return save_model(folder, LlavaNextForConditionalGeneration, config, processor, seed)


def save_paligemma(folder: Path, seed: int = 0) -> Path:
    """No chat template; the prompt is read in both directions and the answer in one."""
    tokenizer = small_tokenizer(IMAGE_TOKENS)
    image_processor = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    image_processor.image_seq_length = 4
    processor = PaliGemmaProcessor(image_processor, tokenizer)
    config = PaliGemmaConfig(
        text_config={"model_type": "gemma", "vocab_size": len(processor.tokenizer), **TEXT},
        vision_config={**VISION, "image_size": 28, "patch_size": 14, "projection_dim": TEXT["hidden_size"]},
        projection_dim=TEXT["hidden_size"],
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return save_model(folder, PaliGemmaForConditionalGeneration, config, processor, seed)


def save_aya_vision(folder: Path, seed: int = 0) -> Path:
    """Logits are scaled after the head."""
    tokenizer = small_tokenizer(IMAGE_TOKENS)
    image_processor = GotOcr2ImageProcessorPil(size={"height": 28, "width": 28}, max_patches=2)
    processor = AyaVisionProcessor(
        image_processor,
        tokenizer,
        patch_size=7,
        img_size=28,
        image_token="<image>",
        img_patch_token="<global-img>",
        downsample_factor=2,
        start_of_img_token="<start_of_image>",
        end_of_img_token="<end_of_image>",
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    config = AyaVisionConfig(
        text_config={"model_type": "cohere2", "vocab_size": len(tokenizer), "logit_scale": 0.25, **TEXT, **ends},
        vision_config={"model_type": "siglip_vision_model", **VISION, "image_size": 28, "patch_size": 7},
        image_token_index=tokenizer.convert_tokens_to_ids("<global-img>"),
        downsample_factor=2,
    )
    return save_model(folder, AyaVisionForConditionalGeneration, config, processor, seed)


def save_modernvbert(folder: Path, seed: int = 0) -> Path:
    """A masked language model that sees images; four blocks of four, two tokens a step."""
    processor = build_processor(masked=True)
    tokenizer = processor.tokenizer
    text = {key: value for key, value in TEXT.items() if key not in ("num_key_value_heads", "head_dim")}
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    ends |= {"bos_token_id": tokenizer.bos_token_id, "cls_token_id": tokenizer.bos_token_id}
    config = ModernVBertConfig(
        text_config={"model_type": "modernbert", "vocab_size": len(tokenizer), **text, **ends, "sep_token_id": None},
        vision_config={"model_type": "siglip_vision_model", **VISION, "image_size": 96, "patch_size": 16},
        pixel_shuffle_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        denoising={"block": 4, "steps_per_block": 2, "canvas": 16},
    )
    return save_model(folder, ModernVBertForMaskedLM, config, processor, seed)


FAMILIES = {
    "idefics3": save_idefics3,
    "llava": save_llava,
    "gemma3": save_gemma3,
    "llava_next": save_llava_next,
    "paligemma": save_paligemma,
    "aya_vision": save_aya_vision,
}


IMAGE_TOKENS = {"image_token": "<image>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}


def small_tokenizer(extra: dict[str, str]) -> PreTrainedTokenizerFast:
    """The built-in tokenizer with the tokens that a family's processor looks for."""
    built_in = build_processor().tokenizer
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=built_in.backend_tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token=EOS,
        padding_side="left",
        extra_special_tokens=extra,
    )
    return tokenizer


def save_model(folder: Path, model_class: type, config, processor, seed: int) -> Path:
    torch.manual_seed(seed)
    model = model_class(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:  # at the usual small initial values, all answers look the same
            torch.nn.init.normal_(parameter, std=0.2)
    tokenizer = getattr(processor, "tokenizer", processor)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_llama(folder: Path, seed: int = 0) -> Path:
    """A language model alone."""
    return _save_text(folder, LlamaForCausalLM, LlamaConfig, seed)


def save_qwen3(folder: Path, seed: int = 0) -> Path:
    """A language model alone, with normalized queries and keys."""
    return _save_text(folder, Qwen3ForCausalLM, Qwen3Config, seed)


def _save_text(folder: Path, model_class: type, config_class: type, seed: int) -> Path:
    tokenizer = small_tokenizer({})
    tokenizer.chat_template = CHAT_TEMPLATE
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = config_class(vocab_size=len(tokenizer), **TEXT, **ends, bos_token_id=tokenizer.bos_token_id)
    return save_model(folder, model_class, config, tokenizer, seed)


TEXT_FAMILIES = {"llama": save_llama, "qwen3": save_qwen3}
