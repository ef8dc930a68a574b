"""Chat rows of other tools -> question, history and worked answer.

A conversation is a string, or a list of turns {role, content} (also {from, value}, with human and gpt); content is a
string or a list of parts {type: text | image}. Images do not keep their place in the text: a Prompt puts all of them
before the question. So `<image>` marks and image parts are taken out, and counted.
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from workbench.tables import show

_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_IMAGE_MARK = re.compile(r"[ \t]*<image>\n?")
_OTHER_MARK = re.compile(r"<(?:video|audio|bbox|ref-object)>")


class Refused(Exception):
    """A row that cannot be converted: a reason that rows are counted by, and what this row has."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Conversation:
    """A conversation whose last user turn is the question."""

    question: str
    history: tuple[tuple[str, str], ...] = ()  # role and text of the turns before it
    reference: str | None = None  # the assistant's turn after it
    images: tuple[Any, ...] = ()  # images given inside the turns, in order
    num_image_marks: int = 0


@dataclass(frozen=True)
class _Turn:
    role: str
    text: str
    images: tuple[Any, ...]
    num_image_marks: int


def split_conversation(value: Any, notes: Counter[str]) -> Conversation:
    """The parts of a prompt, of messages, or of a bare question. Raises Refused; counts changes in `notes`."""
    if not isinstance(value, list):
        value = [] if value is None else [{"role": "user", "content": value}]
    turns = [_turn(entry) for entry in value]
    if not turns:
        return Conversation("")
    reference = turns.pop().text if turns[-1].role == "assistant" else None
    if not turns or turns[-1].role != "user":
        raise Refused("conversation does not end with a question", f"{len(value)} turns")
    num_marks = sum(turn.num_image_marks for turn in turns)
    num_earlier = num_marks - turns[-1].num_image_marks
    notes.update(
        {"image mark taken out of the text": num_marks, "image of an earlier turn moved to the last": num_earlier}
    )
    return Conversation(
        question=turns[-1].text,
        history=tuple((turn.role, turn.text) for turn in turns[:-1] if turn.text),
        reference=reference or None,
        images=tuple(image for turn in turns for image in turn.images),
        num_image_marks=num_marks,
    )


def plain_text(value: Any, notes: Counter[str]) -> str | None:
    """Text of a column that may be a string or a list of turns; None if there is none."""
    if value is None:
        return None
    turns = (
        [_turn(entry) for entry in value] if isinstance(value, list) else [_turn({"role": "user", "content": value})]
    )
    notes.update({"image mark taken out of the text": sum(turn.num_image_marks for turn in turns)})
    return "\n".join(turn.text for turn in turns if turn.text) or None


def _turn(entry: Any) -> _Turn:
    if not isinstance(entry, dict):
        raise Refused("a turn is not {role, content}", show(entry))
    role = entry.get("role") or entry.get("from")
    if role not in _ROLES:
        raise Refused("role is none of system, user and assistant", show(role))
    content = entry.get("content") if entry.get("content") is not None else entry.get("value")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts, images, num_marks = [], [], 0
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "image":
            num_marks += 1
            images += [part[key] for key in ("image", "path", "url") if part.get(key) is not None][:1]
        elif kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise Refused("content is neither text nor an image", show(part))
    text = "\n".join(texts)
    if _OTHER_MARK.search(text):
        raise Refused("<video>, <audio>, <bbox> or <ref-object> marks in the text", show(text))
    text, num_removed = _IMAGE_MARK.subn("", text)
    return _Turn(_ROLES[role], text.strip(), tuple(images), num_marks + num_removed)
