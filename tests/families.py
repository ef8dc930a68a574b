"""Small random models of real Hugging Face classes, saved to disk as their users would have them."""

from pathlib import Path

import torch
from transformers import (
    CLIPImageProcessorPil,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    GenerationConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from workbench.scenes.processor import EOS, build_processor

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
    return _save(folder, Idefics3ForConditionalGeneration, config, processor, seed)


def save_llava(folder: Path, seed: int = 0) -> Path:
    tokenizer = _tokenizer()
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
    return _save(folder, LlavaForConditionalGeneration, config, processor, seed)


def save_gemma3(folder: Path, seed: int = 0) -> Path:
    tokenizer = _tokenizer()
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
    return _save(folder, Gemma3ForConditionalGeneration, config, processor, seed)


FAMILIES = {"idefics3": save_idefics3, "llava": save_llava, "gemma3": save_gemma3}


def _tokenizer() -> PreTrainedTokenizerFast:
    """The built-in tokenizer with the image tokens that these families' processors look for."""
    built_in = build_processor().tokenizer
    extra = {
        "image_token": "<image>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=built_in.backend_tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token=EOS,
        padding_side="left",
        extra_special_tokens=extra,
    )
    return tokenizer


def _save(folder: Path, model_class: type, config, processor, seed: int) -> Path:
    torch.manual_seed(seed)
    model = model_class(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:  # at the usual small initial values, all answers look the same
            torch.nn.init.normal_(parameter, std=0.2)
    tokenizer = processor.tokenizer
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
