"""Compare the prompts of another trainer with those that the workbench shows the student for the same examples."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from workbench.data.contexts import build_prompt, dummy_rollout
from workbench.data.rollouts.reading import RolloutRow
from workbench.distill.method import Method
from workbench.errors import show
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.types import STUDENT, Example

_SHOWN = 8  # tokens of each prompt in a warning


class PromptComparison:
    """Counts equal and different prompts, of the rows that hold the tokens of theirs."""

    def __init__(self, method: Method, policies: dict[str, Any]) -> None:
        self.counts: Counter[str] = Counter()
        self._student: AutoregressivePolicy = policies[STUDENT]
        self._context = method.learner_context
        self._first = ""

    def add(self, row: RolloutRow, example: Example) -> None:
        """Compare the prompt of a row, if it holds its tokens."""
        if row.prompt_ids is None:
            return
        student = self._student
        prompt = build_prompt(example, self._context, dummy_rollout(example))
        ours = _without_repeats(student.encoder.encode(prompt)["input_ids"][0].tolist(), student.placeholders)
        theirs = _without_repeats(row.prompt_ids, student.placeholders)
        self.counts["equal" if ours == theirs else "different"] += 1
        if ours != theirs and not self._first:
            start = next((idx for idx, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), 0)
            pieces = ["".join(student.token_texts(tuple(ids[start : start + _SHOWN]))) for ids in (theirs, ours)]
            self._first = f"{row.origin}, from token {start}: {show(pieces[0])} there, {show(pieces[1])} here"

    def warnings(self) -> list[str]:
        """A sentence on the prompts that differ; none if all are equal."""
        count, total = self.counts["different"], self.counts.total()
        if not count:
            return []
        return [
            f"the prompts of {count:,} of {total:,} rollouts differ from the trainer's ({self._first}). Set "
            "models.system_prompt or models.chat_template_kwargs to the trainer's, or correct the examples' questions."
        ]


def _without_repeats(ids: Sequence[int], placeholders: Sequence[int]) -> list[int]:
    """Token ids with every run of an image placeholder as one: engines log one for each image, processors expand it."""
    kept: list[int] = []
    for token in ids:
        if not (token in placeholders and kept and kept[-1] == token):
            kept.append(token)
    return kept
