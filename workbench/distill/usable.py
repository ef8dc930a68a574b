"""Usable examples: one rule for training, evaluation, probes and `workbench check`.

lacking          missing evidence or answers: reads the row only
text_problem     special tokens, blank and too long references: reads texts, for all rows before sampling
encoding_problem  everything: opens images and encodes prompts, which takes as long as using the example
"""

import logging
from collections import Counter
from collections.abc import Collection, Iterable
from typing import NamedTuple

from workbench.data.contexts import build_prompt, dummy_rollout, missing_evidence, shown_texts
from workbench.data.scripts import is_blank
from workbench.data.sources import show
from workbench.distill.method import Method
from workbench.distill.rollouts import reference_of
from workbench.errors import DataError, PolicyError, PromptTooLongError
from workbench.policies import Policy
from workbench.policies.by_domain import covers
from workbench.types import Example

NUM_NAMED = 3  # logged examples per reason
Views = Collection[tuple[Policy, str]]  # policies with the context of their prompt

log = logging.getLogger("workbench")


class Problem(NamedTuple):
    """Why an example cannot be used."""

    reason: str  # key of the counts
    message: str  # sentence with column and value


class Tally:
    """Counts unusable examples by reason, each example once, and logs the first of each reason."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._seen: set[str] = set()
        self._first = ""

    def __str__(self) -> str:
        """Counts by reason, and the problem of the first example."""
        counts = ", ".join(f"{reason}: {count:,}" for reason, count in self.counts.items())
        return f"{counts}; the first is {self._first}" if self._first else "none"

    def add_if(self, example: Example, problem: Problem | None) -> bool:
        """Add an example that has a problem; return whether it has one."""
        if problem is not None:
            self.add(example, problem)
        return problem is not None

    def add(self, example: Example, problem: Problem) -> bool:
        """Add an example; return whether it is new."""
        where = example.origin or example.id  # ids can repeat between training and evaluation data
        if where in self._seen:
            return False
        self._seen.add(where)
        self.counts[problem.reason] += 1
        self._first = self._first or f"{where}: {problem.message}"
        if self.counts[problem.reason] <= NUM_NAMED:
            log.warning("skipped %s: %s", where, problem.message)
        return True


def lacking(example: Example, method: Method) -> Problem | None:
    """Return the problem of an example that lacks evidence or an answer that the method needs."""
    column = next((name for context in method.contexts if (name := missing_evidence(example, context))), None)
    if column is not None:
        return Problem(f"no {column}", f'it has no "{column}"')
    if method.dataset_fraction > 0.0 and reference_of(example) is None:
        return Problem("no reference or answer", 'it has neither "reference" nor "answer" to train on')
    for column in method.needs:
        if is_blank(getattr(example, column) or ""):
            return Problem(f"no {column}", f'it has no "{column}", which the method needs')
    return None


def text_problem(example: Example, views: Views, reference_students: Iterable[Policy] = ()) -> Problem | None:
    """Return the first problem with the texts of an example, without encoding a prompt.

    reference_students  students that also train on the example's reference
    """
    for policy, context in views:
        for column, text in shown_texts(example, context) if covers(policy, example.domain) else ():
            if problem := _special_problem(policy, column, text):
                return problem
    for policy in reference_students:
        if problem := _reference_problem(policy, example):
            return problem
    return None


def _special_problem(policy: Policy, column: str, text: str) -> Problem | None:
    token = policy.special_in(text)
    if token is None:
        return None
    start = max(0, text.index(token) - 30)
    return Problem(
        f'special token in "{column.partition("[")[0]}"',
        f'column "{column}": {show(text[start : start + 80])} contains the special token "{token}" as text, which the '
        "model would read as a command. Remove it; images are placed by the workbench.",
    )


def _reference_problem(policy: Policy, example: Example) -> Problem | None:
    """Return the problem of a reference that is trained on. Only texts that may be too long are tokenized."""
    reference = reference_of(example)
    if reference is None:
        return Problem("no reference or answer", 'it has neither "reference" nor "answer" to train on')
    column, text = reference
    if is_blank(text):
        return Problem(
            f"{column} is blank", f'column "{column}": {show(text)} is blank. Fill it in, or drop the column.'
        )
    if problem := _special_problem(policy, column, text):
        return problem
    longest = policy.context_length
    if longest is None or len(text.encode()) < longest:  # a token is at least one byte
        return None
    length = len(policy.answer_ids(text))
    if length < longest:
        return None
    return Problem(
        f"{column} is too long",
        f'column "{column}": {length} tokens plus the prompt exceed the model\'s {longest}. Shorten it.',
    )


def encoding_problem(
    example: Example, views: Views, reference_students: Iterable[Policy] = (), completion_length: int = 0
) -> Problem | None:
    """Return the first problem of encoding an example for all views, with its reference for `reference_students`.

    Skips contexts whose evidence the example lacks, and policies of other domains.

    completion_length  tokens of a given answer, which must fit beside every prompt
    """
    if problem := text_problem(example, views, reference_students):
        return problem
    try:
        lengths = [len(policy.answer_ids(reference_of(example)[1])) for policy in reference_students]
        for policy, context in views:
            if missing_evidence(example, context) is not None or not covers(policy, example.domain):
                continue
            prompt = build_prompt(example, context, dummy_rollout(example))
            policy.check_prompt(prompt, max(lengths, default=completion_length))
    except DataError as error:
        return Problem("image cannot be read", str(error))
    except PromptTooLongError as error:
        return Problem("prompt is too long", str(error))
    except PolicyError as error:
        return Problem("prompt cannot be encoded", str(error))
    return None


def filter_encodable(
    examples: Iterable[Example], policies: Iterable[Policy], contexts: Iterable[str], tally: Tally
) -> list[Example]:
    """Keep the examples that every policy can encode under every context; add the others to the tally."""
    contexts = tuple(contexts)
    views = [(policy, context) for policy in policies for context in contexts]
    return [example for example in examples if not tally.add_if(example, encoding_problem(example, views))]


def not_evaluated(examples: Collection[Example], contexts: Iterable[str]) -> list[str]:
    """One sentence for each context whose evidence some examples lack, so that it is not evaluated on them."""
    sentences = []
    for context in contexts:
        lacking = [(example, column) for example in examples if (column := missing_evidence(example, context))]
        if lacking:
            counts = Counter(column for _, column in lacking)
            listed = ", ".join(f"no {column}: {count}" for column, count in counts.items())
            first = lacking[0][0].origin or lacking[0][0].id
            sentences.append(
                f"context {context} is not evaluated on {len(lacking):,} of {len(examples):,} questions ({listed}; the "
                f"first: {first})"
            )
    return sentences


def split(
    examples: Iterable[Example], problems: Iterable[Problem | None]
) -> tuple[list[Example], list[tuple[Example, Problem]]]:
    """Split examples into usable ones and pairs of the others with their problem."""
    pairs = list(zip(examples, problems, strict=True))
    return [example for example, problem in pairs if problem is None], [pair for pair in pairs if pair[1] is not None]
