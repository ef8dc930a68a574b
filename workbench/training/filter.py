"""Filters that skip unusable examples: each is counted, logged and listed in the run's summary."""

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection
from itertools import islice

from workbench.data.leaks import find_leaks
from workbench.distill.method import Method
from workbench.distill.usable import Problem, Tally, Views, lacking, text_problem
from workbench.distributed import ALONE, ProcessGroup
from workbench.errors import DataError, RunError, show
from workbench.files.folders import saving
from workbench.files.parsing import Malformed, parse_json
from workbench.policies import Policy
from workbench.runs.folder import RunFolder
from workbench.seeding import EpochOrder, MixedOrder
from workbench.types import Example

MIN_LEAK_SHARE = 0.05  # share of prompts containing the answer that a run reports; a whole reference always counts

_KEYS = ("example", "reason", "message")

log = logging.getLogger("workbench")


class SkippedExamples(Tally):
    """Tally of a run, kept in run.json and restored on resume.

    skipped.jsonl lists every skipped example: {"example", "origin", "reason", "message"}.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self._folder, self._file = folder, folder.path / "skipped.jsonl"
        lines = self._file.read_bytes().split(b"\n") if self._file.is_file() else [b""]
        torn = lines.pop()
        if torn:  # an incomplete last line, after a kill
            os.truncate(self._file, sum(len(line) + 1 for line in lines))
        parsed = [self._parsed(line, number) for number, line in enumerate(lines, start=1)]
        # every rank appends to the file
        line_by_origin = {line.get("origin") or line["example"]: line for line in parsed}
        self.counts.update(line["reason"] for line in line_by_origin.values())
        self._seen.update(line_by_origin)
        self._first = next((f"{where}: {line['message']}" for where, line in line_by_origin.items()), "")

    def _parsed(self, line: bytes, number: int) -> dict[str, str]:
        try:
            values = parse_json(line)
        except Malformed as error:
            raise RunError(f"cannot read {self._file}:{number}: {error}. Delete the line.") from None
        if not isinstance(values, dict) or not all(isinstance(values.get(key), str) for key in _KEYS):
            raise RunError(
                f"{self._file}:{number} is {show(values)}. Expected texts for {', '.join(_KEYS)}. Delete the line."
            )
        return values

    def add(self, example: Example, problem: Problem) -> bool:
        if not super().add(example, problem):
            return False
        line = {"example": example.id, "origin": example.origin, "reason": problem.reason, "message": problem.message}
        with saving(self._file), self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._folder.update(skipped=dict(self.counts))
        return True


def split_by_teacher(
    examples: list[Example], domains: Collection[str] | None
) -> tuple[list[Example], list[tuple[Example, str]]]:
    """Split examples by whether their domain has a teacher; the others come with a reason.

    domains  domains with a teacher, None = all
    Raises: DataError with the counts of the domains if no example has a teacher.
    """
    if domains is None:
        return examples, []
    remedy = (
        f"expected one of {', '.join(domains)}. Add models.teachers.DOMAIN, or models.teacher for all other domains"
    )
    usable = [example for example in examples if example.domain in domains]
    if examples and not usable:
        counts = Counter(example.domain for example in examples)
        listed = ", ".join(f'"{domain}" ({count})' for domain, count in counts.most_common(10))
        raise DataError(
            f"none of the {len(examples)} examples has a domain with a teacher. Their domains: {listed}; {remedy}."
        )
    return usable, [
        (example, f'its domain is "{example.domain}"; {remedy}')
        for example in examples
        if example.domain not in domains
    ]


def filter_by_teacher(
    examples: list[Example], domains: Collection[str] | None, skipped: SkippedExamples
) -> list[Example]:
    """Keep the examples whose domain has a teacher (split_by_teacher); skip and count the others."""
    usable, without_teacher = split_by_teacher(examples, domains)
    for example, message in without_teacher:
        skipped.add(example, Problem(f'no teacher for domain "{example.domain}"', message))
    return usable


def filter_by_evidence(examples: list[Example], method: Method, skipped: SkippedExamples) -> list[Example]:
    """Keep the examples with the evidence and answers that the method needs. Raises DataError if none has them."""
    usable = [example for example in examples if not skipped.add_if(example, lacking(example, method))]
    if not usable:
        raise DataError(
            f"none of the {len(examples)} examples has the columns that method {method.name} needs (contexts "
            f"{', '.join(method.contexts)}); missing: {skipped}. Add the columns, or choose "
            f"{'another method.privilege' if hasattr(method.options, 'privilege') else 'another method'}."
        )
    return usable


def report_leaks(examples: list[Example], method: Method, folder: RunFolder) -> None:
    """Log and record in run.json how many of the student's prompts contain the answer or the reference, if many do."""
    leaks = find_leaks(examples, method.learner_context)
    if leaks.num_references or len(leaks.in_prompt) > MIN_LEAK_SHARE * leaks.num_examples:
        log.warning("%s", leaks)
        folder.update(answers_in_prompts=str(leaks))


def filter_by_plain_text(
    examples: list[Example], views: Views, reference_students: Collection[Policy], skipped: SkippedExamples
) -> list[Example]:
    """Keep the examples whose texts every view can encode and whose references fit. Raises DataError if none do."""
    usable = [
        example for example in examples if not skipped.add_if(example, text_problem(example, views, reference_students))
    ]
    if not usable:
        reasons = str(skipped).removesuffix(".")
        raise DataError(f"none of the {len(examples)} examples can be used: {reasons}. Correct the data.")
    return usable


def usable_batch(
    examples: list[Example],
    order: EpochOrder | MixedOrder,
    step: int,
    size: int,
    problem_of: Callable[[Example], Problem | None],
    skipped: SkippedExamples,
    process_group: ProcessGroup = ALONE,
) -> list[Example]:
    """The step's examples without a problem; the others are skipped and counted.

    With fewer examples than ranks, the next usable ones in the order are added, so that one damaged file does not end
    the run.
    """
    chosen = [examples[idx] for idx in order.batch(step, size)]
    problems = process_group.map_ranks(chosen, lambda block, _: list(map(problem_of, block)))
    usable = [
        example for example, problem in zip(chosen, problems, strict=True) if not skipped.add_if(example, problem)
    ]
    later = (examples[order.index(step * size + ahead)] for ahead in range(2 * len(examples)))
    substitutes = (example for example in later if not skipped.add_if(example, problem_of(example)))
    usable += islice(substitutes, max(0, process_group.size - len(usable)))
    if len(usable) < process_group.size:
        raise DataError(
            f"step {step}: {len(usable) or 'none'} of the {len(examples)} examples can be encoded for every view. "
            f"Skipped so far: {skipped}. Correct the data; `workbench check` lists the problems."
        )
    return usable
