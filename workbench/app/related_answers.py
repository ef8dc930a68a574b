"""Answers related to the open one: its siblings of the same prompt side by side, and the question over training."""

import difflib
import json
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path

from workbench.app.components import remount
from workbench.app.questions import answers_to
from workbench.traces.reader import Traces

MAX_SIBLINGS = 16
MAX_OVER_TRAINING = 40
_WORDS = re.compile(r"\s+|[^\W_]+|.", re.DOTALL)
_SHOWN = 4000  # characters of an answer in a card


def related_html(run_dir: Path, traces: Traces, key: Mapping, *, probe: bool) -> str:
    """Siblings of an answer, and the answers to its question over training with what changed, as HTML."""
    here = (key["step"], key["process"], key["rollout"])
    siblings = traces.siblings(here, probe=probe).to_pylist()
    if not siblings:
        return ""
    text = "" if probe else _siblings(siblings, here)
    text += _over_training(run_dir, traces, siblings[0]["example_id"])
    return remount(f'<div class="wbu-related">{text}</div>') if text else ""


def question_html(run_dir: Path, traces: Traces | None, example: str) -> str:
    """The answers to a question over training with what changed, as HTML."""
    text = _over_training(run_dir, traces, example)
    return remount(f'<div class="wbu-related">{text}</div>') if text else ""


def _siblings(siblings: list[dict], here: tuple) -> str:
    """The step's answers to the same prompt, beside each other."""
    if len(siblings) < 2:
        return ""
    cards = "".join(_sibling(item, here) for item in siblings[:MAX_SIBLINGS])
    total = len(siblings)
    counted = f"{total}" if total <= MAX_SIBLINGS else f"the first {MAX_SIBLINGS} of {total}"
    return f"<h3>Samples of this prompt <span>{counted} at step {here[0]:,}</span></h3>" + cards_html(
        cards, choose="samples of this prompt"
    )


def _sibling(row: Mapping, here: tuple) -> str:
    key = {"step": row["step"], "process": row["process_rank"], "rollout": row["rollout_idx"]}
    selected = "true" if tuple(key.values()) == here else "false"
    grade = grade_html(None if row["reward"] is None else row["reward"] == 1)
    head = f"sample {row['sample_idx']}{grade}<span>{row['num_positions']:,} tokens</span>"
    text = cut_text(row["completion"] or "")
    attributes = f'data-key="{escape(json.dumps(key), quote=True)}" tabindex="0" aria-selected="{selected}"'
    return f'<article role="option" {attributes}><header>{head}</header><p dir="auto">{escape(text)}</p></article>'


def _over_training(run_dir: Path, traces: Traces | None, example: str) -> str:
    """The question's answers by step, each with the words that differ from the answer before it."""
    first = {(row["step"], row["from"]): row for row in reversed(answers_to(run_dir, traces, example).rows)}
    rows = list(first.values())[::-1]  # the first sample of each step
    if len({row["step"] for row in rows}) < 2:
        return ""
    before: dict[str, str] = {}
    cards = []
    for row in rows:
        text = cut_text(str(row["answer"] or ""))
        earlier = before.get(row["from"])
        marked = escape(text) if earlier is None else words_changed(earlier, text)
        before[row["from"]] = text
        head = f"step {row['step']:,}<span>{escape(row['from'])}</span>{grade_html(row['right'])}"
        cards.append(f'<article><header>{head}</header><p dir="auto">{marked}</p></article>')
    counted = (
        f"{len(rows)} answers" if len(rows) <= MAX_OVER_TRAINING else f"the last {MAX_OVER_TRAINING} of {len(rows)}"
    )
    words = "marked: <ins>new words</ins> and <del>dropped words</del> since the answer before it"
    title = f'<h3>This question over training <span class="wbu-pairs">{counted}; {words}</span></h3>'
    return title + cards_html("".join(cards[-MAX_OVER_TRAINING:]))


def words_changed(before: str, after: str) -> str:
    """The words of `after` as HTML, with those that are new and those that `before` had in their place."""
    old, new = _WORDS.findall(before), _WORDS.findall(after)
    parts = []
    for tag, old_start, old_end, new_start, new_end in difflib.SequenceMatcher(
        None, old, new, autojunk=False
    ).get_opcodes():
        dropped, added = escape("".join(old[old_start:old_end])), escape("".join(new[new_start:new_end]))
        if tag == "equal":
            parts.append(added)
            continue
        parts.append((f"<del>{dropped}</del>" if dropped else "") + (f"<ins>{added}</ins>" if added else ""))
    return "".join(parts)


def cards_html(cards: str, *, is_pair: bool = False, choose: str = "") -> str:
    """Articles as cards beside each other; a pair fills the width. choose: name of the list if they are its options."""
    role = f' role="listbox" aria-label="{escape(choose, quote=True)}"' if choose else ""
    return f'<div class="wbu-cards{" wbu-two" if is_pair else ""}"{role}>{cards}</div>'


def grade_html(is_right: bool | None) -> str:
    """The grade of an answer as HTML; "" if it is unknown."""
    if is_right is None:
        return ""
    return '<span class="wbu-good">✓ correct</span>' if is_right else '<span class="wbu-bad">✗ incorrect</span>'


def cut_text(text: str) -> str:
    """The beginning of a long answer, with the number of characters left out."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} … ({len(text) - _SHOWN:,} more characters)"
