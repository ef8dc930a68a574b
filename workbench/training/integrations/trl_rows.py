"""What a TRL trainer sampled at once, as RolloutRow and Example.

A row of its dataset has a prompt (turns or text), `image` or `images`, and possibly our columns of an example: id,
answer, boxes, crop, hint and so on.
"""

import hashlib
import io
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from workbench.data.conversations import split_conversation
from workbench.data.examples import COLUMNS, example_from_values
from workbench.data.importing.rows import as_list, scalar_text
from workbench.data.rollouts.reading import RolloutRow
from workbench.errors import DataError
from workbench.types import Example, Rollout

_EVIDENCE = tuple(name for name in COLUMNS if name not in ("id", "question", "images", "history", "answer"))
_NEED_IMAGES = ("boxes", "crop", "crop_box")  # columns that are checked against the images


class StepRewards:
    """Rewards of the rows of one generation, by function.

    are_grades  whether they come from one function and are all 0 or 1
    """

    def __init__(self, trainer: Any, count: int) -> None:
        logged = getattr(trainer, "_logs", {}).get("rewards", {})
        total = count * trainer.accelerator.num_processes  # gathered from all processes, those of the first one first
        self._values = {name: list(values)[-total:][:count] for name, values in logged.items() if len(values) >= total}
        numbers = {value for values in self._values.values() for value in values}
        self.are_grades = len(self._values) == 1 and numbers <= {0.0, 1.0}

    def of(self, idx: int) -> dict[str, float]:
        """Rewards of a row by function, without those that a function did not give."""
        values = {name: column[idx] for name, column in self._values.items()}
        return {name: float(value) for name, value in values.items() if value is not None and value == value}


class DatasetGeneration:
    """Answers to rows of the dataset, as GRPO, RLOO and distillation sample them.

    output  what the trainer computed for the whole batch
    """

    def __init__(self, trainer: Any, rows: list[dict[str, Any]], output: dict[str, Any]) -> None:
        self._rows, self._output, self._rewards = rows, output, StepRewards(trainer, len(rows))

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, idx: int, origin: str) -> RolloutRow:
        """The answer to a row. Raises Refused."""
        return _to_row(self._rows[idx], origin, self._output, idx, self._rewards)

    def key(self, idx: int, row: RolloutRow) -> str:
        """Equal for all answers to one prompt."""
        return _example_key(self._rows[idx], row)

    def example(self, idx: int, row: RolloutRow) -> Example:
        """The example that the row of the dataset holds. Raises DataError."""
        return _own_example(self._rows[idx], row)


class TokenGeneration:
    """Answers to prompts that only their tokens are known of, as GKD samples them.

    inputs  the trainer's batch; `tokens` of prompts and answers, `labels` are -100 outside the answers
    """

    def __init__(self, tokenizer: Any, inputs: dict[str, Any], tokens: Any, labels: Any, sampled_by: str) -> None:
        self._tokenizer, self._inputs, self._tokens, self._labels = tokenizer, inputs, tokens, labels
        self._sampled_by = sampled_by

    def __len__(self) -> int:
        return len(self._tokens)

    def row(self, idx: int, origin: str) -> RolloutRow:
        """The answer to a prompt, which is decoded."""
        prompt = tuple(self._inputs["prompts"][idx][self._inputs["prompt_attention_mask"][idx].bool()].tolist())
        ids = tuple(self._tokens[idx][self._labels[idx] != -100].tolist())
        text = self._tokenizer.decode(prompt, skip_special_tokens=False)
        return RolloutRow(origin, "trl", prompt=text, prompt_ids=prompt, ids=ids, sampled_by=self._sampled_by)

    def key(self, idx: int, row: RolloutRow) -> str:
        """Equal for all answers to one prompt."""
        return row.prompt

    def example(self, idx: int, row: RolloutRow) -> Example:
        """Raises DataError: no example is known of a decoded prompt."""
        raise DataError("GKD keeps only tokens of its prompts. Name the examples: record_rollouts(..., data=FILE)")


def _to_row(values: dict[str, Any], origin: str, output: dict[str, Any], idx: int, rewards: StepRewards) -> RolloutRow:
    talk = split_conversation(values["prompt"], Counter())
    texts = {key: scalar_text(values.get(key), key, Counter()) for key in ("id", "answer", "solution")}
    kept, prompt = (output[f"{part}_mask"][idx].bool() for part in ("completion", "prompt"))
    sampled, advantages, numbers = output.get("sampling_per_token_logps"), output.get("advantages"), rewards.of(idx)
    reward = next(iter(numbers.values()), None) if rewards.are_grades else None
    if advantages is not None and advantages.ndim == 1:
        numbers["advantage"] = float(advantages[idx])
    return RolloutRow(
        origin,
        "trl",
        id=texts["id"],
        prompt="\n".join([*(text for _, text in talk.history), talk.question]),
        question=talk.question,
        ids=tuple(output["completion_ids"][idx][kept].tolist()),
        prompt_ids=tuple(output["prompt_ids"][idx][prompt].tolist()),
        logprobs=None if sampled is None else tuple(sampled[idx][kept].tolist()),
        reward=reward,
        answer=texts["answer"] or texts["solution"],
        annotations=tuple(numbers.items()),
    )


def _own_example(values: dict[str, Any], row: RolloutRow) -> Example:
    talk = split_conversation(values["prompt"], Counter())
    images = _images(values) or list(talk.images)
    columns = {key: values[key] for key in _EVIDENCE if values.get(key) is not None}
    columns |= {"answer": row.answer} if row.answer is not None else {}
    if columns.keys() & set(_NEED_IMAGES):
        columns["images"] = [_embedded(image) for image in images]
        columns |= {"crop": [_embedded(crop) for crop in as_list(columns["crop"])]} if "crop" in columns else {}
    columns |= {"id": row.id or _example_key(values, row), "question": talk.question}
    columns["history"] = [{"role": role, "text": text} for role, text in talk.history]
    example = example_from_values(columns, row.origin, folder=Path.cwd(), default_id=row.origin)
    pictures = tuple(image if isinstance(image, Image.Image) else Path(image) for image in images)
    return example if example.images else replace(example, images=pictures)


def _example_key(values: dict[str, Any], row: RolloutRow) -> str:
    """A digest of prompt and images."""
    digest = hashlib.sha256(row.prompt.encode())
    for image in _images(values):
        digest.update(image.tobytes() if isinstance(image, Image.Image) else repr(image).encode())
    return digest.hexdigest()[:12]


def to_line(rollout: Rollout, step: int) -> dict[str, Any]:
    """A row of the layout plain. Its prompt places the images, so that `workbench score` asks for them."""
    parts = [*({"type": "image"} for _ in rollout.example.images), {"type": "text", "text": rollout.example.question}]
    return {
        "id": rollout.example.id,
        "step": step,
        "prompt": [{"role": "user", "content": parts}],
        "completion_ids": list(rollout.ids),
        "logprobs": None if rollout.logprobs is None else list(rollout.logprobs),
        "reward": rollout.reward,
    }


def _images(values: dict[str, Any]) -> list[Any]:
    if values.get("images") is not None:
        return list(values["images"])
    return [] if values.get("image") is None else [values["image"]]


def _embedded(image: Any) -> Any:
    """An image in memory as the loader reads it from a row: the bytes of a file."""
    if not isinstance(image, Image.Image):
        return image
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return {"bytes": buffer.getvalue()}
