"""Convert one row of a trainer's file to a RolloutRow. Raises Refused if that fails; counts all changes."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.data.conversations import Conversation, Refused, reference_text, split_conversation
from workbench.data.examples import COLUMNS
from workbench.data.importing.rows import scalar_text
from workbench.data.rollouts.layouts import PLAIN, ROLLOUT_COLUMNS, RolloutLayout, look_up
from workbench.data.values import is_missing
from workbench.errors import show

OWN_REWARD = "trainer_reward"  # name of the trainer's reward among the annotations
_MOST_ANNOTATIONS = 32  # numbers of a row that are kept beside its reward
_EXAMPLE_COLUMNS = tuple(name for name in COLUMNS if name not in ("id", "answer"))


@dataclass(frozen=True)
class RolloutRow:
    """One logged answer.

    example      columns of an example that the row itself holds
    prompt       text of the prompt, possibly with a chat template
    question     the question alone, if the prompt gives it
    num_images   images that the prompt places, whether the row holds them or not
    ids          tokens of the answer; None: only its text is known
    prompt_ids   tokens of the prompt
    logprobs     of the sampler, one for each of `ids`
    finished     None: the row does not state it
    annotations  the row's other numbers, by name
    """

    origin: str
    layout: str
    step: int | None = None
    id: str | None = None
    example: Mapping[str, Any] = field(default_factory=dict)
    prompt: str = ""
    question: str | None = None
    num_images: int = 0
    text: str | None = None
    ids: tuple[int, ...] | None = None
    prompt_ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    finished: bool | None = None
    reward: float | None = None
    answer: str | None = None
    sampled_by: str | None = None
    annotations: tuple[tuple[str, float], ...] = ()


def convert_row(
    values: dict[str, Any],
    origin: str,
    name: str,
    layout: RolloutLayout,
    columns: Mapping[str, tuple[str, ...]],
    notes: Counter[str],
) -> RolloutRow:
    """Convert a row.

    name     of the layout
    columns  the layout's, and those that the user named
    """
    given = {ours: _first(values, paths) for ours, paths in columns.items()}
    talk, text = _prompt_and_text(given, layout, notes)
    prompt_ids, ids, logprobs = _tokens(given)
    if text is None and ids is None:
        needed = "completion, completion_ids, messages or token_ids"
        raise Refused("no answer in the row", f"columns {show(list(values)[:12])}; expected {needed}")
    if logprobs is not None and ids is None:
        notes["log-probs without token ids, which cannot be placed: not used"] += 1
        logprobs = None
    example = _example_columns(values) if name == PLAIN else {}
    return RolloutRow(
        origin=origin,
        layout=name,
        step=_whole(given.get("step"), "step"),
        id=scalar_text(given.get("id"), "id", Counter()),
        example=_with_prompt(example, talk),
        prompt=_prompt_text(given.get("prompt"), talk),
        question=talk.question if talk else example.get("question"),
        num_images=talk.num_image_marks if talk else 0,
        text=text,
        ids=ids,
        prompt_ids=prompt_ids,
        logprobs=logprobs,
        finished=_finished(given),
        reward=_number(given.get("reward")),
        answer=_answer(given.get("answer"), name),
        sampled_by=given.get("sampled_by"),
        annotations=_annotations(values, layout, columns),
    )


def unread_columns(values: dict[str, Any], row: RolloutRow, columns: Mapping[str, tuple[str, ...]]) -> set[str]:
    """Columns of the row's values that `row` does not hold in any form."""
    read = {path.partition(".")[0] for paths in columns.values() for path in paths}
    return values.keys() - read - row.example.keys() - {"image"} - dict(row.annotations).keys()


def _example_columns(values: dict[str, Any]) -> dict[str, Any]:
    """The row's own columns of an example, with one `image` as a list."""
    image = {} if values.get("image") is None else {"images": [values["image"]]}
    return image | {key: values[key] for key in _EXAMPLE_COLUMNS if values.get(key) is not None}


def _answer(value: Any, layout: str) -> str | None:
    """The right answer as text. Trainers also keep structures there, which only their reward functions read."""
    try:
        return scalar_text(value, "answer", Counter())
    except Refused:
        if layout == PLAIN:
            raise
        return None


def split_table(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of a table that is kept as lists by column. Raises Refused if their lengths differ."""
    lists = {key: column for key, column in values.items() if isinstance(column, list)}
    lengths = {key: len(column) for key, column in lists.items()}
    if not lists or len(set(lengths.values())) != 1:
        raise Refused("columns of a step differ in length", show(lengths))
    return [dict(zip(lists, entries, strict=True)) for entries in zip(*lists.values(), strict=True)]


def _first(values: dict[str, Any], paths: tuple[str, ...]) -> Any:
    in_order = (look_up(values, path) for path in paths)
    return next((value for value in in_order if not is_missing(value)), None)


def _prompt_and_text(
    given: dict[str, Any], layout: RolloutLayout, notes: Counter[str]
) -> tuple[Conversation | None, str | None]:
    """The prompt as a conversation, if it is one, and the text of the answer."""
    prompt, completion = given.get("prompt"), given.get("completion")
    if given.get("messages") is not None:
        whole = split_conversation(given["messages"], notes)
        if whole.reference is None:
            raise Refused("messages do not end with the assistant's answer", show(given["messages"]))
        # their last turn may lack what a parser took out of the answer, so with token ids it is not compared with them
        return whole, None if given.get("token_ids") is not None else whole.reference
    if completion is not None and not isinstance(completion, str | list | dict):
        raise Refused("completion is neither text nor turns", show(completion))
    text = completion if completion is None or isinstance(completion, str) else reference_text(completion, notes)
    if isinstance(completion, list) and len(completion) > 1:
        raise Refused("the answer has several turns", f"{len(completion)} turns; rollouts of one answer are scored")
    is_turns = isinstance(prompt, list | dict) and not _is_texts(prompt)
    if prompt is None or (layout.decoded and not is_turns):
        return None, text
    return split_conversation(prompt, notes), text


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, str) for entry in value)


def _prompt_text(prompt: Any, talk: Conversation | None) -> str:
    if isinstance(prompt, str):
        return prompt
    if _is_texts(prompt):
        return "\n".join(prompt)
    return "" if talk is None else "\n".join([*(text for _, text in talk.history), talk.question])


def _with_prompt(example: dict[str, Any], talk: Conversation | None) -> dict[str, Any]:
    """Columns of the example with question, earlier turns and images of the prompt where it lacks them."""
    if talk is None:
        return example
    history = [{"role": role, "text": text} for role, text in talk.history]
    of_prompt = {"question": talk.question, "images": list(talk.images), "history": history}
    return {key: value for key, value in of_prompt.items() if value} | example


def _tokens(
    given: dict[str, Any],
) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None, tuple[float, ...] | None]:
    """Token ids of the prompt and of the answer, and the log-probs of the latter."""
    prompt_ids, ids = (_ids(given.get(key), key) for key in ("prompt_ids", "completion_ids"))
    logprobs = _logprobs(given.get("logprobs"), "logprobs")
    whole = _ids(given.get("token_ids"), "token_ids")
    if whole is not None:
        answer = _place(given, whole)
        prompt_ids, ids = whole[: answer.start], whole[answer]
        of_whole = _logprobs(given.get("token_logprobs"), "token_logprobs")
        logprobs = of_whole[answer] if of_whole is not None else logprobs
    if ids is not None and not ids:
        raise Refused("the answer is empty", "0 token ids")
    if logprobs is not None and ids is not None and len(logprobs) != len(ids):
        raise Refused("log-probs and token ids differ in number", f"{len(logprobs)} log-probs, {len(ids)} token ids")
    return prompt_ids, ids, logprobs


def _place(given: dict[str, Any], whole: tuple[int, ...]) -> slice:
    """Where the answer lies among the tokens of prompt and answer."""
    end = _whole(given.get("num_tokens"), "num_tokens") or len(whole)
    length = _whole(given.get("completion_length"), "completion_length")
    if length is not None:
        if not 0 < length <= end <= len(whole):
            raise Refused("length of the answer does not fit its tokens", f"{length} of {end} tokens")
        return slice(end - length, end)
    mask = given.get("mask")
    if not isinstance(mask, list) or len(mask) != len(whole):
        raise Refused("mask and token ids differ in number", f"{show(mask)} for {len(whole)} token ids")
    positions = [idx for idx, value in enumerate(mask) if value]
    if not positions:
        raise Refused("the answer is empty", "no position of the mask is 1")
    answer = slice(positions[0], positions[-1] + 1)
    if answer.stop - answer.start != len(positions):
        raise Refused("the answer has several turns", "its mask has gaps; rollouts of one answer are scored")
    return answer


def _ids(value: Any, column: str) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        raise Refused(f"{column} is not a list of whole numbers", show(value))
    return tuple(value)


def _logprobs(value: Any, column: str) -> tuple[float, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(_is_finite(entry) for entry in value):
        raise Refused(f"{column} is not a list of finite numbers", show(value))
    return tuple(float(entry) for entry in value)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any, column: str) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"\d{1,9}", value):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is not None and (type(value) is not int or not 0 <= value < 2**31):
        raise Refused(f"{column} is not a whole number of at least 0", show(value))
    return value


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return float(value)
    if value is None or isinstance(value, dict):
        return None
    if not _is_finite(value):
        raise Refused("reward is not a finite number", show(value))
    return float(value)


def _finished(given: dict[str, Any]) -> bool | None:
    for column, ended in (("finished", True), ("truncated", False)):
        value = given.get(column)
        if value is not None:
            if not isinstance(value, bool) and value not in (0, 1):
                raise Refused(f"{column} is neither true nor false", show(value))
            return bool(value) is ended
    return None


def _annotations(
    values: dict[str, Any], layout: RolloutLayout, columns: Mapping[str, tuple[str, ...]]
) -> tuple[tuple[str, float], ...]:
    """The row's other numbers: rewards by function, advantage, metrics."""
    read = {path for paths in columns.values() for path in paths}
    numbers = {key: value for key, value in values.items() if key not in read and key not in ROLLOUT_COLUMNS}
    numbers = {OWN_REWARD: _first(values, columns.get("reward", ()))} | numbers
    for group in layout.groups:
        entries = values.get(group)
        for key, value in entries.items() if isinstance(entries, dict) else ():
            numbers[str(key)] = value.get("score") if isinstance(value, dict) else value
    finite = [(key, float(value)) for key, value in numbers.items() if isinstance(value, bool) or _is_finite(value)]
    return tuple(finite[:_MOST_ANNOTATIONS])
