"""Lessons to batches of tensors, for pretraining."""

import torch
from PIL import Image

from workbench.data.images import open_image
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.policies.encoding import PromptEncoder
from workbench.training.pretraining.lessons import Lesson
from workbench.types import Prompt


class LessonEncoder:
    """Encodes lessons as batches, ten times as fast as the processor and with the same result.

    Token ids depend only on the text and the number of images, so PromptEncoder encodes each text once, with blank
    images. Pixels are computed directly.
    """

    def __init__(self, policy: AutoregressivePolicy) -> None:
        self._encoder = PromptEncoder(policy.processor)
        self._tokenizer, self._pad_id = self._encoder.tokenizer, self._encoder.pad_id
        images = policy.processor.image_processor
        self._size, self._resample = images.size["longest_edge"], images.resample
        self._mean, self._std = (torch.tensor(value).view(3, 1, 1) for value in (images.image_mean, images.image_std))
        self._blank = Image.new("RGB", (self._size, self._size))
        self._kept: dict[tuple[str, int], list[int]] = {}

    def batches(self, lessons: list[Lesson]) -> list[dict[str, torch.Tensor]]:
        """Split into two batches by length: ids and labels (B, T), padded on the right, and pixels (B, I, 3, S, S)."""
        encoded = sorted(
            (
                (self.prompt_ids(lesson.prompt), self.completion_ids(lesson.completion), lesson.prompt.images)
                for lesson in lessons
            ),
            key=lambda row: len(row[0]) + len(row[1]),
        )
        half = (len(encoded) + 1) // 2
        return [self._batch(rows) for rows in (encoded[:half], encoded[half:]) if rows]

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        key = (prompt.text, len(prompt.images))
        if key not in self._kept:
            blank = Prompt((self._blank,) * len(prompt.images), prompt.text)
            self._kept[key] = self._encoder.encode(blank)["input_ids"][0].tolist()
        return self._kept[key]

    def completion_ids(self, text: str) -> list[int]:
        return [*self._tokenizer(text, add_special_tokens=False)["input_ids"], self._tokenizer.eos_token_id]

    def pixels(self, image) -> torch.Tensor:
        """Pixels of one image as the processor computes them, (3, size, size)."""
        small = open_image(image).resize((self._size, self._size), self._resample)
        raw = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(self._size, self._size, 3)
        return (raw.permute(2, 0, 1).float() / 255 - self._mean) / self._std

    def _batch(self, rows: list[tuple]) -> dict[str, torch.Tensor]:
        longest = max(len(prompt) + len(completion) for prompt, completion, _ in rows)
        input_ids = torch.full((len(rows), longest), self._pad_id)
        labels = torch.full((len(rows), longest), -1)
        for row, (prompt, completion, _) in enumerate(rows):
            end = len(prompt) + len(completion)
            input_ids[row, :end] = torch.tensor(prompt + completion)
            labels[row, len(prompt) : end] = torch.tensor(completion)
        num_images = max(len(images) for _, _, images in rows)
        pixel_values = torch.zeros(len(rows), num_images, 3, self._size, self._size)  # all zero = no image
        for row, (_, _, images) in enumerate(rows):
            for image_idx, image in enumerate(images):
                pixel_values[row, image_idx] = self.pixels(image)
        return {"input_ids": input_ids, "labels": labels, "pixel_values": pixel_values}
