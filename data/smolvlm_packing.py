"""Several questions about one picture, and several pictures, in one row of tokens.

The questions of a document share the tokens of its images. Each sees the images and itself only, at the positions that
it has alone, so a packed row gives the same logits as its questions one by one.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from workbench.training.pretraining.batches import LessonEncoder
from workbench.types import Prompt


@dataclass(frozen=True)
class Document:
    """Images, and questions about them with their answers."""

    images: tuple[Image.Image | Path, ...]
    pairs: tuple[tuple[str, str], ...]


@dataclass
class PackedRow:
    """A row of documents: for each token its id, label (-1: not predicted), position, document and question."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    documents: list[int] = field(default_factory=list)
    questions: list[int] = field(default_factory=list)  # 0: the images, which all questions of the document see
    images: list = field(default_factory=list)

    def add(self, document: int, question: int, ids: list[int], answer: list[int], start: int) -> None:
        """Append tokens whose first position is `start`."""
        size = len(ids) + len(answer)
        self.ids += ids + answer
        self.labels += [-1] * len(ids) + answer
        self.positions += range(start, start + size)
        self.documents += [document] * size
        self.questions += [question] * size


@dataclass(frozen=True)
class PackedBatch:
    """Rows padded on the right. A label of -1 is not predicted; `sees` says which tokens each token attends to."""

    ids: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    positions: Int[Tensor, "B T"]
    sees: Bool[Tensor, "B 1 T T"]
    pixels: Float[Tensor, "N 3 side side"]


def pack(documents: list[Document], encoder: LessonEncoder, *, image_end: int, length: int) -> list[PackedRow]:
    """Put each document, the longest first, into the first row of at most `length` tokens that has room for it.

    image_end  token after the last image of a prompt
    """
    encoded = []
    for document in documents:
        pairs = [
            (encoder.prompt_ids(Prompt(document.images, question)), encoder.completion_ids(answer))
            for question, answer in document.pairs
        ]
        first = pairs[0][0]
        shared = len(first) - first[::-1].index(image_end) if document.images else 0
        size = shared + sum(len(ids) - shared + len(answer) for ids, answer in pairs)
        encoded.append((size, shared, pairs, document.images))
    rows: list[PackedRow] = []
    for number, (size, shared, pairs, images) in enumerate(sorted(encoded, key=lambda item: -item[0])):
        row = next((row for row in rows if len(row.ids) + size <= length), None)
        if row is None:
            row = PackedRow()
            rows.append(row)
        row.images += images
        row.add(number, 0, pairs[0][0][:shared], [], 0)
        for question, (ids, answer) in enumerate(pairs, start=1):
            row.add(number, question, ids[shared:], answer, shared)
    return rows


def collate(rows: list[PackedRow], encoder: LessonEncoder) -> PackedBatch:
    """Pad rows to the longest. Padding belongs to no document."""
    longest = max(len(row.ids) for row in rows)

    def padded(name: str, value: int) -> Tensor:
        lists = [getattr(row, name) for row in rows]
        return torch.tensor([items + [value] * (longest - len(items)) for items in lists])

    documents, questions = padded("documents", -1), padded("questions", 0)
    same = documents[:, :, None] == documents[:, None, :]
    sees = (questions[:, None, :] == 0) | (questions[:, :, None] == questions[:, None, :])
    mask = same & sees & torch.ones(longest, longest, dtype=torch.bool).tril()
    pixels = torch.stack([encoder.pixels(image) for row in rows for image in row.images])
    return PackedBatch(padded("ids", 0), padded("labels", -1), padded("positions", 0), mask[:, None], pixels)


def image_features(model: Any, pixels: Float[Tensor, "N 3 side side"]) -> Float[Tensor, "N tokens width"]:
    """Image tokens of an Idefics3 model."""
    side = pixels.shape[-1] // model.config.vision_config.patch_size
    patches = torch.ones(len(pixels), side, side, dtype=torch.bool)
    hidden = model.model.vision_model(pixel_values=pixels, patch_attention_mask=patches).last_hidden_state
    return model.model.connector(hidden)


def forward_packed(
    model: Any, batch: PackedBatch, features: Float[Tensor, "N tokens width"]
) -> Float[Tensor, "B T width"]:
    """Last hidden states of an Idefics3 model for packed rows, with the `image_features` of their pixels."""
    text = model.model.text_model
    embeds = text.get_input_embeddings()(batch.ids)
    is_image = (batch.ids == model.config.image_token_id)[..., None]
    embeds = embeds.masked_scatter(is_image, features.to(embeds.dtype))
    bias = torch.zeros(batch.sees.shape, dtype=embeds.dtype).masked_fill(~batch.sees, torch.finfo(embeds.dtype).min)
    return text(
        inputs_embeds=embeds, attention_mask=bias, position_ids=batch.positions, use_cache=False
    ).last_hidden_state
