"""Turn logged answers into rollouts of a student: token ids as they are, text tokenized once; every doubt is counted.

A row is not scored if its ids do not belong to the student's tokenizer, contain an image placeholder, differ from its
text, or continue after an end token.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from workbench.data.rollouts.layouts import PLAIN
from workbench.data.rollouts.reading import SkippedRow
from workbench.data.rollouts.rows import RolloutRow
from workbench.distill.usable import Problem
from workbench.errors import DataError, show
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.types import Example, Rollout

TRAINER = "trainer"  # who sampled the answers of a file that does not name it


@dataclass
class GivenRollouts:
    """Rollouts of a file for one student.

    steps    the rollouts of each step, answers to one example together
    rows     by step, the row of each rollout
    notes    how many answers were read with which change
    """

    steps: dict[int, list[Rollout]] = field(default_factory=dict)
    rows: dict[int, list[RolloutRow]] = field(default_factory=dict)
    skipped: list[SkippedRow] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Answer:
    """Tokens of an answer, its log-probs when sampled, and whether it ended."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    finished: bool


def answer_of(student: AutoregressivePolicy, row: RolloutRow, *, ended: bool, notes: Counter[str]) -> _Answer | Problem:
    """Tokens of a row's answer, or the problem with them.

    ended  whether a text that does not state it ended by itself, so that an end token is scored too
    """
    if row.ids is None:
        return _from_text(student, row, ended, notes)
    return _from_ids(student, row, row.ids, notes)


def _from_ids(
    student: AutoregressivePolicy, row: RolloutRow, ids: tuple[int, ...], notes: Counter[str]
) -> _Answer | Problem:
    size = min(student.vocabulary, len(student.tokenizer))
    wrong = [token for token in ids if not 0 <= token < size]
    if wrong:
        return Problem(
            "token ids outside the student's vocabulary",
            f"token id {wrong[0]} ({len(wrong)} of {len(ids)}); the student has 0 to {size - 1}. Name the model that "
            "sampled the answers with --student, or give their text instead of ids",
        )
    if any(token in student.placeholders for token in ids):
        return Problem("image token in the answer", "the answer holds an image placeholder, which has no text")
    length = next((count for count, token in enumerate(ids, start=1) if token in student.stop_ids), len(ids))
    padding = {student.encoder.pad_id, student.tokenizer.pad_token_id, *student.stop_ids}
    if any(token not in padding for token in ids[length:]):
        return Problem(
            "tokens after the end token",
            f"{len(ids) - length} tokens follow the end token at position {length - 1}, as in answers of several "
            "turns. Rollouts of one answer are scored",
        )
    if length < len(ids):
        notes["padding after the end token cut"] += 1
    problem = _text_problem(student, row, ids[:length])
    if problem is not None:
        return problem
    kept, finished = ids[:length], ids[length - 1] in student.stop_ids
    if row.finished is not None and row.finished is not finished:
        notes["the row states another end than its token ids, which count"] += 1
    if finished and kept[-1] != student.end_id and student.head.eos_ids:
        kept = (*kept[:-1], student.end_id)  # as in sampling: all end tokens of the student count as one
        notes["end token counted as the student's first one"] += 1
    return _Answer(kept, None if row.logprobs is None else row.logprobs[:length], finished)


def _text_problem(student: AutoregressivePolicy, row: RolloutRow, ids: tuple[int, ...]) -> Problem | None:
    """The problem of ids that do not decode to the row's text, with or without special tokens."""
    if row.text is None:
        return None
    decoded = student.text(ids), "".join(student.token_texts(ids))
    if row.text.strip() in {text.strip() for text in decoded}:
        return None
    return Problem(
        "token ids and text differ",
        f"the ids decode to {show(decoded[0])}, the row's text is {show(row.text)}. Name the model that sampled the "
        "answers with --student",
    )


def _from_text(student: AutoregressivePolicy, row: RolloutRow, ended: bool, notes: Counter[str]) -> _Answer | Problem:
    text = row.text or ""
    try:
        ids = student.answer_ids(text)
    except DataError as error:
        return Problem("special token in the answer's text", str(error))
    finished = ended if row.finished is None else row.finished
    if row.finished is None:
        notes[f"the row does not state whether the answer ended: {'' if ended else 'no '}end token added"] += 1
    if student.text(ids).strip() != text.strip():
        notes["text that its tokens do not give back exactly"] += 1
    notes["answer given as text, tokenized again"] += 1
    ids = ids if finished else ids[:-1]
    return _Answer(ids, None, finished) if ids else Problem("the answer is empty", "its text has no token")


def to_rollouts(
    student: AutoregressivePolicy,
    pairs: list[tuple[RolloutRow, Example]],
    *,
    grade: Callable[[Example, str, str], float | None],
    ended: bool = False,
    rewards_are_grades: bool = False,
    prompts_per_step: int = 8,
) -> GivenRollouts:
    """Rollouts of all rows, by step; answers to one example stand together, as a training step has them.

    grade               the reward of an answer's text and the text before it, 1 or 0, None if it is not known
    rewards_are_grades  whether rewards of the file are 0 or 1, so that they count as wrong and right
    prompts_per_step    examples of a step, if the file has no steps
    """
    result = GivenRollouts()
    has_steps = any(row.step is not None for row, _ in pairs)
    groups: dict[int, dict[str, list[tuple[RolloutRow, Rollout]]]] = {}
    order: dict[str, int] = {}  # examples in the order of the file
    for row, example in pairs:
        answer = answer_of(student, row, ended=ended, notes=result.notes)
        if has_steps and row.step is None:
            answer = Problem("no step, while other rows have one", "expected a step in every row or in none")
        if isinstance(answer, Problem):
            result.skipped.append(SkippedRow(row.origin, answer.reason, answer.message))
            continue
        step = 1 + order.setdefault(example.id, len(order)) // prompts_per_step if row.step is None else row.step
        rows = groups.setdefault(step, {}).setdefault(example.id, [])
        text, prefix = student.text(answer.ids), student.answer_prefix
        reward = row.reward if rewards_are_grades else None
        rollout = Rollout(
            example,
            len(rows),
            answer.ids,
            text,
            answer.finished,
            answer.logprobs,
            grade(example, text, prefix) if reward is None else reward,
            row.sampled_by or (TRAINER if row.layout == PLAIN else row.layout),
            annotations=row.annotations,
            denoising=student.denoising_schedule(answer.ids),
            answer_prefix=prefix,
        )
        rows.append((row, rollout))
    for step in sorted(groups):
        in_order = [pair for rows in groups[step].values() for pair in rows]
        result.rows[step], result.steps[step] = [row for row, _ in in_order], [rollout for _, rollout in in_order]
    return result
