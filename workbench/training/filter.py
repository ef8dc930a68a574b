"""Examples that cannot be used: skipped, counted, named in the log, and shown in the run's summary. Training goes
on.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Collection
from itertools import islice

from workbench.data.leaks import find_leaks
from workbench.distill.method import Method
from workbench.distill.usable import Problem, Tally, Views, lacking, showing_problem, text_problem
from workbench.distributed import ALONE, Group
from workbench.errors import DataError, RunError, show
from workbench.files.folders import saving
from workbench.files.parsing import Malformed, parse_json
from workbench.policies import Policy
from workbench.runs.folder import RunFolder
from workbench.seeding import Order
from workbench.types import Example

WORTH_SAYING = (
    0.05  # share of prompts that hold the answer, above which a run reports it; a whole reference always counts
)

_KEYS = ("example", "reason", "message")

log = logging.getLogger("workbench")


class Skipped(Tally):
    """The tally of a run: it keeps run.json up to date, and a run that goes on still knows it.

    skipped.jsonl of the run names every example: {"example", "origin", "reason", "message"}.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self._folder, self._file = folder, folder.path / "skipped.jsonl"
        lines = self._file.read_bytes().split(b"\n") if self._file.is_file() else [b""]
        torn = lines.pop()
        if torn:  # by a kill; what is appended would be joined to it
            os.truncate(self._file, sum(len(line) + 1 for line in lines))
        parsed = [self._parsed(line, number) for number, line in enumerate(lines, start=1)]
        line_by_origin = {
            line.get("origin") or line["example"]: line for line in parsed
        }  # each process adds to the file
        self.counts.update(line["reason"] for line in line_by_origin.values())
        self._seen.update(line_by_origin)
        self._first = next((f"{where}: {line['message']}" for where, line in line_by_origin.items()), "")

    def _parsed(self, line: bytes, number: int) -> dict[str, str]:
        try:
            values = parse_json(line)
        except Malformed as error:
            raise RunError(f"{self._file}:{number} cannot be read ({error}). Delete the line.") from None
        if not isinstance(values, dict) or not all(isinstance(values.get(key), str) for key in _KEYS):
            raise RunError(f"{self._file}:{number} is {show(values)} and lacks {', '.join(_KEYS)}. Delete the line.")
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
    """Examples whose domain has a teacher, and the others with what to do. domains: those that have one, None = all.

    Raises: DataError that counts the domains if no example has a teacher.
    """
    if domains is None:
        return examples, []
    remedy = f"there are teachers for {', '.join(domains)}: add models.teachers.DOMAIN, or models.teacher for all other domains"
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


def with_teacher(examples: list[Example], domains: Collection[str] | None, skipped: Skipped) -> list[Example]:
    """Examples whose domain has a teacher, as split_by_teacher; the others are counted as skipped."""
    usable, lacking_one = split_by_teacher(examples, domains)
    for example, message in lacking_one:
        skipped.add(example, Problem(f'no teacher for domain "{example.domain}"', message))
    return usable


def with_evidence(examples: list[Example], method: Method, skipped: Skipped) -> list[Example]:
    """Examples that have what the method needs. Raises DataError if none has."""
    usable = [example for example in examples if not skipped.add_if(example, lacking(example, method))]
    if not usable:
        raise DataError(
            f"none of the {len(examples)} examples has what method {method.name} needs (contexts "
            f"{', '.join(method.contexts)}); missing: {skipped}. Add the columns or choose "
            f"{'another method.privilege' if hasattr(method.options, 'privilege') else 'another method'}."
        )
    return usable


def report_leaks(examples: list[Example], method: Method, folder: RunFolder) -> None:
    """Log, and keep in run.json, how many prompts of the student hold the answer or the reference, unless they are
    few.
    """
    leaks = find_leaks(examples, method.views[method.learner].context)
    if leaks.num_references or len(leaks.in_prompt) > WORTH_SAYING * leaks.num_examples:
        log.warning("%s", leaks)
        folder.update(answers_in_prompts=str(leaks))


def with_plain_text(
    examples: list[Example], views: Views, sampled_by: Collection[Policy], skipped: Skipped
) -> list[Example]:
    """Examples whose texts every view can be shown, and whose references can be learned. Raises DataError if none
    is.
    """
    usable = [example for example in examples if not skipped.add_if(example, text_problem(example, views, sampled_by))]
    if not usable:
        reasons = str(skipped).removesuffix(".")
        raise DataError(f"none of the {len(examples)} examples can be used: {reasons}. Mend the data.")
    return usable


def usable_batch(
    examples: list[Example],
    order: Order,
    step: int,
    size: int,
    views: Views,
    sampled_by: Collection[Policy],
    skipped: Skipped,
    group: Group = ALONE,
) -> list[Example]:
    """The step's examples that every view can be shown; others are skipped and counted. sampled_by: as in text_problem.

    If none can, the next one in the order that can (with several processes: if there is not one for each): a single
    damaged file must not end a run.
    """
    chosen = [examples[idx] for idx in order.batch(step, size)]
    problems = group.share(chosen, lambda block, _: [showing_problem(example, views, sampled_by) for example in block])
    usable = [
        example for example, problem in zip(chosen, problems, strict=True) if not skipped.add_if(example, problem)
    ]
    later = (examples[order.at(step * size + ahead)] for ahead in range(2 * len(examples)))
    substitutes = (
        example for example in later if not skipped.add_if(example, showing_problem(example, views, sampled_by))
    )
    usable += islice(substitutes, max(0, group.size - len(usable)))
    if len(usable) < group.size:
        raise DataError(
            f"step {step}: {len(usable) or 'none'} of the {len(examples)} examples can be shown to every view. Skipped "
            f"so far: {skipped}. `workbench check` shows one example under every view."
        )
    return usable
