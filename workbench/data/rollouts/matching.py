"""Give every logged answer its example.

Without a file of examples, the row itself holds one: its question, images and evidence. With a file of examples, a row
belongs to the example

    whose id it names; its prompt must then contain that example's question
    else whose question is the question of its prompt
    else whose question is the longest one that its prompt, a decoded chat template, contains

If several examples have the question, the row's right answer chooses among them. A row without exactly one example is
not scored.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.data.counterparts import Counterparts
from workbench.data.examples import MAX_EMBEDDED_BYTES, example_from_values
from workbench.data.importing import DATA_FILE
from workbench.data.importing.pictures import IMAGES_FOLDER, store_picture
from workbench.data.importing.rows import as_list
from workbench.data.picture_bounds import PictureBounds, TooManyPicturesError
from workbench.data.rollouts.reading import RolloutFile, RolloutRow, SkippedRow
from workbench.errors import DataError, show
from workbench.files.atomic import write_text
from workbench.files.folders import saving
from workbench.types import Example

_SHORTEST = 8  # characters of a question that is searched in a prompt; a shorter one would occur by chance


class NoExample(Exception):
    """A row has no example, or several; `reason` counts such rows."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ExampleIndex:
    """Finds the example of a row among those of a file."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._by_id = {example.id: example for example in examples}
        self._by_question: dict[str, list[Example]] = {}
        for example in examples:
            self._by_question.setdefault(_plain(example.question), []).append(example)
        self._longest_first = sorted(self._by_question, key=len, reverse=True)
        self._contained: dict[str, str | None] = {}  # by prompt, the question that it contains

    def find(self, row: RolloutRow) -> tuple[Example, str]:
        """The example, and what it was found by. Raises NoExample."""
        prompt = _plain(row.prompt or row.question or "")
        if row.id is not None:
            example = self._by_id.get(row.id)
            if example is None:
                raise NoExample("no example has the row's id", f"id {show(row.id)} is not in the data")
            if prompt and _plain(example.question) not in prompt:
                raise NoExample(
                    "the example with the row's id has another question",
                    f"id {show(row.id)} has the question {show(example.question)}, the row's prompt {show(row.prompt)}",
                )
            return example, "id"
        if not prompt:
            raise NoExample("neither id nor prompt in the row", "expected one of them, to find the example")
        question = _plain(row.question or "")
        if question not in self._by_question:
            question = self._question_in(prompt)
        if question is None:
            raise NoExample("no example has the row's question", f"prompt {show(row.prompt or row.question)}")
        return self._by_answer(question, row)

    def _question_in(self, prompt: str) -> str | None:
        if prompt not in self._contained:
            long = (question for question in self._longest_first if len(question) >= _SHORTEST)
            self._contained[prompt] = next((question for question in long if question in prompt), None)
        return self._contained[prompt]

    def _by_answer(self, question: str, row: RolloutRow) -> tuple[Example, str]:
        candidates = self._by_question[question]
        if len(candidates) == 1:
            return candidates[0], "question"
        same = [example for example in candidates if row.answer is not None and example.answer == row.answer]
        if len(same) == 1:
            return same[0], "question and answer"
        raise NoExample(
            "several examples have the row's question",
            f"{len(same) or len(candidates)} examples have the question {show(question)}. Log the example's id "
            "(docs/rollouts.md)",
        )


def match_rows(
    file: RolloutFile, index: "ExampleIndex | OwnExamples"
) -> tuple[list[tuple[RolloutRow, Example]], Counter[str]]:
    """Pair every row with its example; adds the others to file.skipped. Answers to one prompt share one Example.

    Returns the pairs, and how many were found by what.
    """
    pairs, matched_by = [], Counter()
    for row in file.rows:
        try:
            example, key = index.find(row)
        except NoExample as problem:
            file.skipped.append(SkippedRow(row.origin, problem.reason, str(problem)))
        else:
            pairs.append((row, example))
            matched_by[key] += 1
    return (_with_others(pairs) if isinstance(index, OwnExamples) else pairs), matched_by


class OwnExamples:
    """Builds the example that a row holds, once for all rows with the same one."""

    def __init__(self, file: RolloutFile) -> None:
        self._folder = file.folder
        self._bounds = PictureBounds(file.source, file.folder, None, MAX_EMBEDDED_BYTES)
        self._examples: dict[str, Example] = {}
        self._values: dict[str, dict[str, Any]] = {}  # columns of each example
        self._digests: dict[str, str] = {}  # by id

    def find(self, row: RolloutRow) -> tuple[Example, str]:
        values = dict(row.example)
        if not values.get("question"):
            reason = "the row's prompt is a decoded chat template" if row.prompt else "no question in the row"
            raise NoExample(reason, "name the examples with --data FILE, which give question, images and evidence")
        if row.num_images > len(values.get("images") or ()):
            raise NoExample(
                "the row lacks images of its prompt",
                f"its prompt has {row.num_images} images, the row {len(values.get('images') or ())}. Add the column "
                "images, or name the examples with --data FILE",
            )
        values |= {"answer": row.answer} if row.answer is not None else {}
        digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=_digest).encode()).hexdigest()[:12]
        if row.id is not None and self._digests.setdefault(row.id, digest) != digest:
            raise NoExample("one id stands for different examples", f"id {show(row.id)}")
        if digest not in self._examples:
            values["id"] = row.id or digest
            try:
                self._bounds.check_row(values, row.origin, len(self._examples))
                example = example_from_values(values, row.origin, folder=self._folder, default_id=digest)
                self._bounds.check_files(example)
            except TooManyPicturesError:
                raise
            except DataError as error:
                raise NoExample("the row's example cannot be read", str(error)) from None
            self._examples[digest], self._values[digest] = example, values
        return self._examples[digest], "row"

    def write(self, target: Path) -> Path:
        """Write the examples as a data file into a run folder, with images that rows embed as files beside it."""
        (target / IMAGES_FOLDER).mkdir(exist_ok=True)
        path = target / DATA_FILE
        lines = [json.dumps(self._stored(values, target), ensure_ascii=False) for values in self._values.values()]
        with saving(path):
            write_text(path, "".join(f"{line}\n" for line in lines))
        return path

    def _stored(self, values: dict[str, Any], target: Path) -> dict[str, Any]:
        """The columns with every image as a path."""
        stored = dict(values)
        if "images" in values:
            stored["images"] = [store_picture(image, self._folder, target) for image in values["images"]]
        if (crop := values.get("crop")) is not None:
            crops = [store_picture(image, self._folder, target) for image in as_list(crop)]
            stored["crop"] = crops if isinstance(crop, list) else crops[0]
        if values.get("turns"):
            stored["turns"] = [
                turn | {"images": [store_picture(image, self._folder, target) for image in turn.get("images") or ()]}
                for turn in values["turns"]
            ]
        return stored


def _digest(value: Any) -> str:
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else repr(value)


def _with_others(pairs: list[tuple[RolloutRow, Example]]) -> list[tuple[RolloutRow, Example]]:
    """The same examples, able to find wrong evidence among each other; answers to one prompt still share one."""
    examples = {example.id: example for _, example in pairs}
    others = Counterparts(list(examples.values()))
    linked = {name: replace(example, others=others) for name, example in examples.items()}
    return [(row, linked[example.id]) for row, example in pairs]


def _plain(text: str) -> str:
    """A text with every run of spaces as one."""
    return " ".join(text.split())
