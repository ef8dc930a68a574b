"""Convert chat rows of other tools to question, history and worked answer.

A conversation is a string, or a list of turns {role, content} (also {from, value}, with human and gpt); content is a
string or a list of parts {type: text | image | image_url}. Text that holds the same as JSON or Python's repr is parsed.
Text that names roles but cannot be parsed is refused, since it would show the student the assistant's answer. A Prompt
puts all images before the question, so `<image>` marks and image parts are removed from the text and counted.
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from workbench.data.values import is_missing, parse_structure
from workbench.errors import show

_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_WRAPPERS = ("messages", "conversations", "conversation")
_PART_KINDS = {"text": "text", "image": "image", "image_url": "image", "input_text": "text", "input_image": "image"}
_IMAGE_KEYS = ("image", "path", "url", "image_url", "bytes")
_IMAGE_MARK = re.compile(r"[ \t]*<image>\n?")
VIDEO = "a video; write frames of it as images and list them in images"
_OTHER_MARK = re.compile(r"<(?:video|audio|bbox|ref-object)>")
_OPENING = re.compile(r"\s*\ufeff?\s*(?:\"\s*)?[\[{(]")
_NAMES_ROLES = re.compile(r"\\?['\"](?:role|from)\\?['\"]\s*:")
_NAMES_CONTENT = re.compile(r"\\?['\"](?:content|value)\\?['\"]\s*:")
_NAMES_TYPES = re.compile(r"\\?['\"]type\\?['\"]\s*:\s*\\?['\"](?:text|image)")
_TEMPLATE_MARK = re.compile(
    r"<\|(?:im_start|im_end|(?:start_)?header(?:_id|_start)?|end_header_id|header_end|eot_id|eot|start|message|user"
    r"|assistant|system|image_pad|vision_start|START_OF_TURN_TOKEN|CHATBOT_TOKEN|turn>?)\|?>"
    r"|<(?:start_of_turn|end_of_turn)>|\[/INST\]|<\uff5c(?:User|Assistant)\uff5c>"
)
_OTHER_TOKEN = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|<\uff5c[^\uff5c<>\s]{1,40}\uff5c>|</?s>|<(?:bos|eos|pad|unk)>"
    r"|\[(?:BOS|EOS|PAD|UNK|CLS|SEP)\]"
)
_OTHER_IMAGE_MARK = re.compile(
    r"<\|?image[ _-]?\d*\|?>|</?img>|</image>|\[IMG\]|<ImageHere>|<start_of_image>|<image_placeholder>"
    r"|<image_soft_token>",
    re.I,
)
_DIALOG = re.compile(
    r"(?:^|\n)\W{0,8}(?:human|user|instruction)\s*:[\s\S]{0,20000}?(?:assistant|gpt|response|bot)\s*:", re.I
)
_TURN_KEYS = frozenset(("role", "from", "content", "value", "text"))
_PART_KEYS = frozenset(("type", "text", "image", "image_url", "path", "url", "bytes"))


class Refused(Exception):
    """A row that cannot be converted, with a reason (rows are counted by it) and the row's value."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Conversation:
    """A conversation whose last user turn is the question."""

    question: str
    history: tuple[tuple[str, str], ...] = ()  # (role, text) of earlier turns
    reference: str | None = None  # the assistant's turn after the question
    images: tuple[Any, ...] = ()  # images of all turns, in order
    num_image_marks: int = 0


@dataclass(frozen=True)
class _Turn:
    role: str
    text: str
    images: tuple[Any, ...]
    num_image_marks: int


def split_conversation(value: Any, notes: Counter[str]) -> Conversation:
    """Split a prompt, messages or a plain question into its parts. Raises Refused; counts changes in `notes`."""
    turns = _turns(value, notes)
    count = len(turns)
    if not turns:
        return Conversation("")
    reference = turns.pop().text if turns[-1].role == "assistant" else None
    if not turns or turns[-1].role != "user":
        raise Refused("conversation does not end with a question", f"{count} turns")
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


def reference_text(value: Any, notes: Counter[str]) -> str | None:
    """Return the text of a worked answer: a string, or turns of the assistant only. Raises Refused."""
    is_text = isinstance(value, bytes) or (isinstance(value, str) and not holds_turns(value))
    if not is_text and any(turn.role != "assistant" for turn in _turns(value, Counter())):
        raise Refused("a reference holds turns that are not the assistant's", show(value))
    return plain_text(value, notes)


def plain_text(value: Any, notes: Counter[str]) -> str | None:
    """Return the text of a column that may be a string or a list of turns; None if missing."""
    turns = _turns(value, notes)
    notes.update({"image mark taken out of the text": sum(turn.num_image_marks for turn in turns)})
    return "\n".join(turn.text for turn in turns if turn.text) or None


def split_history(value: Any, notes: Counter[str]) -> tuple[tuple[str, str], ...]:
    """Parse [{role, text}], [{role, content}], or ms-swift's [[question, answer], ...] to (role, text) pairs."""
    if isinstance(value, str):
        value = parse_structure(value)
    if not isinstance(value, list):
        raise Refused("history is not a list of turns", show(value))
    turns = []
    for entry in value:
        if isinstance(entry, list) and len(entry) == 2:
            turns += [{"role": "user", "content": entry[0]}, {"role": "assistant", "content": entry[1]}]
        elif isinstance(entry, dict) and "text" in entry and "content" not in entry:
            turns.append({"role": entry.get("role"), "content": entry["text"]})
        else:
            turns.append(entry)
    read = [_turn(entry, notes) for entry in turns]
    notes.update({"image mark taken out of the text": sum(turn.num_image_marks for turn in read)})
    if any(turn.images for turn in read):
        raise Refused("history has images, which cannot be shown before the question", show(value))
    return tuple((turn.role, turn.text) for turn in read if turn.text)


def decode_text(data: bytes, notes: Counter[str]) -> str:
    """Decode text stored as bytes. Raises Refused unless they are UTF-8."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise Refused("text is kept as bytes that are not UTF-8", show(data)) from None
    notes["text kept as bytes read as UTF-8"] += 1
    return text


def holds_turns(text: str) -> bool:
    """Whether a text is a list or dict of turns, written as JSON or Python."""
    return bool(_OPENING.match(text) and _NAMES_ROLES.search(text) and _NAMES_CONTENT.search(text))


def _turns(value: Any, notes: Counter[str]) -> list[_Turn]:
    """Parse the turns of a conversation in any of its forms; a plain text is one user turn."""
    if isinstance(value, bytes):
        value = decode_text(value, notes)
    if isinstance(value, str) and holds_turns(value):
        parsed = parse_structure(value)
        if parsed is None:
            raise Refused("turns kept as text are neither JSON nor Python", show(value))
        notes["turns kept as text were parsed"] += 1
        value = parsed
    if isinstance(value, dict):
        value = _listed(value)
    if is_missing(value):
        return []
    if isinstance(value, list):
        return [_turn(entry, notes) for entry in value]
    if isinstance(value, str) and (mark := _TEMPLATE_MARK.search(value)):
        raise Refused("a chat template is written into the text; give the turns instead", show(value[mark.start() :]))
    return [_turn({"role": "user", "content": value}, notes)]


def _listed(value: dict[str, Any]) -> list[Any]:
    """List the turns of {messages: [...]}, of one turn {role, content}, or of {role: [...], content: [...]}."""
    for name in _WRAPPERS:
        if isinstance(value.get(name), list):
            return value[name]
    columns = [column for column in value.values() if isinstance(column, list)]
    if len(columns) == len(value) >= 2 and len({len(column) for column in columns}) == 1:
        return [dict(zip(value, entries, strict=True)) for entries in zip(*columns, strict=True)]
    return [value]


def _turn(entry: Any, notes: Counter[str]) -> _Turn:
    if isinstance(entry, str) and _OPENING.match(entry) and _NAMES_ROLES.search(entry):
        entry = parse_structure(entry)
    if not isinstance(entry, dict):
        raise Refused("a turn is not {role, content}", show(entry))
    role = entry.get("role") or entry.get("from")
    if not isinstance(role, str) or role not in _ROLES:
        raise Refused("role is none of system, user and assistant", show(role))
    content = entry.get("content") if entry.get("content") is not None else entry.get("value")
    if isinstance(content, str) and _OPENING.match(content) and _NAMES_TYPES.search(content):
        parts = parse_structure(content)
        if parts is None:
            raise Refused("parts of a turn kept as text are neither JSON nor Python", show(content))
        content = parts
    if isinstance(content, dict):
        content = [content]
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts, images, num_marks = [], [], 0
    for part in parts:
        kind = _part_kind(part)
        if _is_video(part):
            raise Refused(VIDEO, show(part))
        if kind == "image":
            num_marks += 1
            images += [part[key] for key in _IMAGE_KEYS if part.get(key) is not None][:1]
        elif kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise Refused("content is neither text nor an image", show(part))
    text = "\n".join(texts)
    if mark := _OTHER_MARK.search(text):
        what = "<audio>, <bbox> or <ref-object> marks in the text; remove them, and write boxes in a column"
        raise Refused(VIDEO if mark[0] == "<video>" else what, show(text))
    text, num_removed = _IMAGE_MARK.subn("", text)
    _note_text(text, notes)
    _note_keys(entry, _TURN_KEYS, "a turn", notes)
    for part in parts:
        _note_keys(part, _PART_KEYS, "a part of a turn", notes)
    return _Turn(_ROLES[role], text.strip(), tuple(images), num_marks + num_removed)


def _note_text(text: str, notes: Counter[str]) -> None:
    """Count parts of a text that may not be meant as text, such as special tokens."""
    for mark in set(_OTHER_IMAGE_MARK.findall(text)):
        notes[f"an image mark of another form stays in the text: {mark[:40]}"] += 1
    for token in set(_OTHER_TOKEN.findall(_OTHER_IMAGE_MARK.sub("", text))):
        notes[f"a special token of some tokenizer stays in the text: {token[:40]}"] += 1
    if _DIALOG.search(text):
        notes["a text that looks like turns (User: ... Assistant: ...) is one question"] += 1


def _note_keys(entry: dict[str, Any], read_keys: frozenset[str], where: str, notes: Counter[str]) -> None:
    for key, value in entry.items():
        if key not in read_keys and not is_missing(value) and value not in ("", [], {}):
            notes[f"key not read in {where}: {str(key)[:40]}"] += 1


def _is_video(part: Any) -> bool:
    """Whether a part of a turn is a video, by its type or its key."""
    return isinstance(part, dict) and (part.get("type") in ("video", "video_url") or not is_missing(part.get("video")))


def _part_kind(part: Any) -> str | None:
    """Return text or image, by a part's type or else its only key, as in Qwen's [{image: ...}, {text: ...}]."""
    if not isinstance(part, dict):
        return None
    if isinstance(part.get("type"), str):
        return _PART_KINDS.get(part["type"])
    if part.get("type") is not None:
        return None
    filled = [key for key in ("text", "image", "image_url") if part.get(key) is not None]
    return _PART_KINDS[filled[0]] if len(filled) == 1 else None
