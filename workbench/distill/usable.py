"""Which examples can be used, and why others cannot: one rule for training, evaluation, probes and `workbench check`.

lacking          evidence and answers that a method needs: of the row alone
text_problem     special tokens, blank and overlong references: of all rows, before anything is sampled
showing_problem  everything: pictures are opened and prompts encoded, so it takes as long as showing the example does
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
from workbench.errors import DataError, PolicyError
from workbench.policies import Policy
from workbench.policies.by_domain import covers
from workbench.types import Example

NUM_NAMED = 3  # examples of each reason that the log names
Views = Collection[tuple[Policy, str]]  # policies, each with a context that it is shown

log = logging.getLogger("workbench")


class Problem(NamedTuple):
    """Why an example cannot be used."""

    reason: str  # what examples are counted by
    message: str  # a sentence that names column and value


class Tally:
    """Counts examples that could not be used, by reason, each example once; the log names the first of each reason."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._seen: set[str] = set()
        self._first = ""

    def __str__(self) -> str:
        """How many of each reason, and what is wrong with the first."""
        counts = ", ".join(f"{reason}: {count:,}" for reason, count in self.counts.items())
        return f"{counts}; the first is {self._first}" if self._first else "none"

    def add_if(self, example: Example, problem: Problem | None) -> bool:
        """Add an example if there is a problem with it; returns whether there is."""
        if problem is not None:
            self.add(example, problem)
        return problem is not None

    def add(self, example: Example, problem: Problem) -> bool:
        """Returns whether it is a new one."""
        where = example.origin or example.id  # training and evaluation data may both have a row 1
        if where in self._seen:
            return False
        self._seen.add(where)
        self.counts[problem.reason] += 1
        self._first = self._first or f"{where}: {problem.message}"
        if self.counts[problem.reason] <= NUM_NAMED:
            log.warning("skipped %s: %s", where, problem.message)
        return True


def lacking(example: Example, method: Method) -> Problem | None:
    """What the method needs and the example does not have: evidence, an answer to learn from or to decide by."""
    column = next((name for context in method.contexts if (name := missing_evidence(example, context))), None)
    if column is not None:
        return Problem(f"no {column}", f'it has no "{column}"')
    if method.dataset_share > 0.0 and reference_of(example) is None:  # some sequences are the data's own answers
        return Problem("no reference or answer", 'it has no "reference" and no "answer" to learn from')
    for column in method.needs:
        if is_blank(getattr(example, column) or ""):
            return Problem(f"no {column}", f'it has no "{column}", by which the method decides what to learn from')
    return None


def text_problem(example: Example, views: Views, sampled_by: Iterable[Policy] = ()) -> Problem | None:
    """What is wrong with the texts of an example, without encoding any.

    sampled_by  the students whose sequences are, for some samples, the example's own reference
    """
    for policy, context in views:
        for column, text in shown_texts(example, context) if covers(policy, example.domain) else ():
            if problem := _special_problem(policy, column, text):
                return problem
    for policy in sampled_by:
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
        f'column "{column}": {show(text[start : start + 80])} contains the special token "{token}" as text, which the model '
        "would read as a command. Remove it; images are placed by the workbench.",
    )


def _reference_problem(policy: Policy, example: Example) -> Problem | None:
    """Of a sequence that is learned as it stands in the data. Only texts that may be too long are tokenized."""
    reference = reference_of(example)
    if reference is None:
        return Problem("no reference or answer", 'it has no "reference" and no "answer" to learn from')
    column, text = reference
    if is_blank(text):
        return Problem(f"{column} is blank", f'column "{column}": {show(text)} is blank. Write it, or drop the column.')
    if problem := _special_problem(policy, column, text):
        return problem
    longest = policy.context_length
    if longest is None or len(text.encode()) < longest:  # a token stands for at least one byte
        return None
    length = len(policy.answer_ids(text))
    if length < longest:
        return None
    return Problem(
        f"{column} is too long",
        f'column "{column}": {length} tokens and the prompt before it, and the model takes {longest}. Shorten it.',
    )


def encoding_problem(example: Example, views: Views, sampled_by: Iterable[Policy] = ()) -> Problem | None:
    """Why some policy cannot be shown the example under its context, or cannot read its reference there.

    A context whose evidence the example lacks, and a policy of other domains, are left out.
    """
    if problem := text_problem(example, views, sampled_by):
        return problem
    try:
        lengths = [len(policy.answer_ids(reference_of(example)[1])) for policy in sampled_by]
        for policy, context in views:
            if missing_evidence(example, context) is not None or not covers(policy, example.domain):
                continue
            prompt = build_prompt(example, context, dummy_rollout(example))
            policy.check_prompt(prompt, max(lengths, default=0))
    except DataError as error:
        return Problem("image cannot be read", str(error))
    except PolicyError as error:
        return Problem("prompt cannot be encoded", str(error))
    return None


def filter_encodable(
    examples: Iterable[Example], policies: Iterable[Policy], contexts: Iterable[str], tally: Tally
) -> list[Example]:
    """Examples that every policy can be shown under every context; the others are added to the tally."""
    contexts = tuple(contexts)
    views = [(policy, context) for policy in policies for context in contexts]
    return [example for example in examples if not tally.add_if(example, encoding_problem(example, views))]


def not_evaluated(examples: Collection[Example], contexts: Iterable[str]) -> list[str]:
    """A sentence for each context under which some questions are not asked, since they lack what it shows."""
    sentences = []
    for context in contexts:
        lacking = [(example, column) for example in examples if (column := missing_evidence(example, context))]
        if lacking:
            counts = Counter(column for _, column in lacking)
            listed = ", ".join(f"no {column}: {count}" for column, count in counts.items())
            first = lacking[0][0].origin or lacking[0][0].id
            sentences.append(
                f"context {context} is left out of {len(lacking):,} of {len(examples):,} questions ({listed}; the first: {first})"
            )
    return sentences


def split(
    examples: Iterable[Example], problems: Iterable[Problem | None]
) -> tuple[list[Example], list[tuple[Example, Problem]]]:
    """Examples without a problem, and the others with theirs."""
    pairs = list(zip(examples, problems, strict=True))
    return [example for example, problem in pairs if problem is None], [pair for pair in pairs if pair[1] is not None]
