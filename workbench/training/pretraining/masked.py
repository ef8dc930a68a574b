"""Masked diffusion model of the built-in world, and its loss.

A ModernVBERT model gets a prompt and a canvas: the answer, its end token, and padding to a whole number of blocks. It
predicts the masked positions of the canvas. Half of the samples mask a random fraction (LLaDA, arXiv 2502.09992,
section 2.2); the others are states of block-wise generation: earlier blocks filled, one block partly filled, later
blocks masked.
"""

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ModernVBertConfig, ModernVBertForMaskedLM

from workbench.seeding import derive_seed
from workbench.training.pretraining.batches import LessonEncoder
from workbench.training.pretraining.lessons import Lesson
from workbench.training.pretraining.tokenizer import IMAGE_SIZE, PATCH_SIZE, SCALE_FACTOR

BLOCK, STEPS_PER_BLOCK, CANVAS = 4, 2, 24  # two tokens a step; the longest answer of the world has 23


def build_masked_model(tokenizer, *, text: dict, vision: dict, init_std: float) -> ModernVBertForMaskedLM:
    """Build a model with random weights; `text` and `vision` are fields of the two configurations."""
    layers = text["num_hidden_layers"]
    ends = {"bos_token_id": tokenizer.bos_token_id, "cls_token_id": tokenizer.bos_token_id}
    ends |= {"eos_token_id": tokenizer.eos_token_id, "sep_token_id": tokenizer.eos_token_id}
    model = ModernVBertForMaskedLM(
        ModernVBertConfig(
            text_config={
                "model_type": "modernbert",
                **text,
                "layer_types": ["full_attention"] * layers,
                "vocab_size": len(tokenizer),
                "pad_token_id": tokenizer.pad_token_id,
                "decoder_bias": False,
                **ends,
            },
            vision_config={
                "model_type": "siglip_vision_model",
                **vision,
                "image_size": IMAGE_SIZE,
                "patch_size": PATCH_SIZE,
            },
            pixel_shuffle_factor=SCALE_FACTOR,
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            tie_word_embeddings=True,
            denoising={"block": BLOCK, "steps_per_block": STEPS_PER_BLOCK, "canvas": CANVAS},
        )
    )
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=init_std)
    return model


def masked_loss(model: nn.Module, encoder: LessonEncoder, lessons: list[Lesson], tokenizer, seed: int) -> Tensor:
    """Sum over lessons of the mean cross-entropy over their masked positions, in nats: a scalar."""
    rng = random.Random(derive_seed("masks", seed))
    prompts = [encoder.prompt_ids(lesson.prompt) for lesson in lessons]
    canvases = [_canvas(encoder.completion_ids(lesson.completion), tokenizer.pad_token_id) for lesson in lessons]
    left, right = max(map(len, prompts)), max(map(len, canvases))
    ids = torch.full((len(lessons), left + right), tokenizer.pad_token_id)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -1)
    for row, (prompt, canvas) in enumerate(zip(prompts, canvases, strict=True)):
        ids[row, left - len(prompt) : left] = torch.tensor(prompt)
        ids[row, left : left + len(canvas)] = torch.tensor(canvas)
        mask[row, left - len(prompt) : left + len(canvas)] = 1
        for idx in _masked_positions(len(canvas), rng):
            labels[row, left + idx] = canvas[idx]
    is_hidden = labels >= 0
    ids[is_hidden] = tokenizer.mask_token_id
    images = [picture for lesson in lessons for picture in lesson.prompt.images]
    hidden = model.model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        pixel_values=torch.stack([encoder.pixels(picture) for picture in images]).unsqueeze(1),
    ).last_hidden_state[is_hidden]
    loss = F.cross_entropy(model.lm_head(model.projection_head(hidden)), labels[is_hidden], reduction="none")
    share = 1.0 / is_hidden.sum(-1, keepdim=True)
    return (loss * share.expand_as(is_hidden)[is_hidden]).sum()


def _canvas(ids: list[int], pad_id: int) -> list[int]:
    """Pad an answer to CANVAS or, if longer, to whole blocks."""
    length = max(CANVAS, -(-len(ids) // BLOCK) * BLOCK)
    return [*ids, *[pad_id] * (length - len(ids))]


def _masked_positions(length: int, rng: random.Random) -> list[int]:
    """Draw the masked positions, at least one."""
    share = rng.uniform(0.02, 1.0)
    if rng.random() < 0.5:
        masked = [idx for idx in range(length) if rng.random() < share]
    else:
        start = BLOCK * rng.randrange(length // BLOCK)
        inside = [idx for idx in range(start, start + BLOCK) if rng.random() < share]
        masked = (inside or [rng.randrange(start, start + BLOCK)]) + list(range(start + BLOCK, length))
    return masked or [rng.randrange(length)]
