"""Rows of a TRL dataset and the trainer's output for them, as RolloutRow and Example.

A row has a prompt (turns or text), `image` or `images`, and possibly our columns of an example: id, answer, boxes,
crop, hint and so on.
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
from workbench.data.importing.rows import scalar_text
from workbench.data.rollouts import RolloutRow
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


def to_row(values: dict[str, Any], origin: str, output: dict[str, Any], idx: int, rewards: StepRewards) -> RolloutRow:
    """The answer to a row of the dataset; `output` is the trainer's for the whole batch. Raises Refused."""
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


def own_example(values: dict[str, Any], row: RolloutRow) -> Example:
    """The example that a row of the dataset holds. Raises DataError."""
    talk = split_conversation(values["prompt"], Counter())
    images = _images(values) or list(talk.images)
    columns = {key: values[key] for key in _EVIDENCE if values.get(key) is not None}
    columns |= {"answer": row.answer} if row.answer is not None else {}
    if columns.keys() & set(_NEED_IMAGES):
        columns["images"] = [_embedded(image) for image in images]
        columns |= {"crop": _embedded(columns["crop"])} if "crop" in columns else {}
    columns |= {"id": row.id or example_key(values, row), "question": talk.question}
    columns["history"] = [{"role": role, "text": text} for role, text in talk.history]
    example = example_from_values(columns, row.origin, folder=Path.cwd(), default_id=row.origin)
    pictures = tuple(image if isinstance(image, Image.Image) else Path(image) for image in images)
    return example if example.images else replace(example, images=pictures)


def example_key(values: dict[str, Any], row: RolloutRow) -> str:
    """A digest of prompt and images, equal for all answers to one prompt."""
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
