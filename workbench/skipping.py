"""Examples that cannot be used: skipped, counted, named in the log, and shown in the run's summary. Training goes on."""

import json
import logging
import os
from collections import Counter
from collections.abc import Collection
from itertools import islice

from workbench.contexts import build_prompt, missing_evidence, stand_in
from workbench.datasets import split_by_evidence
from workbench.distributed import ALONE, Group
from workbench.errors import DataError, PolicyError, RunError, show
from workbench.folders import saving
from workbench.leaks import find_leaks
from workbench.method import Method
from workbench.parsing import Malformed, parse_json
from workbench.policies import Policy
from workbench.runs import RunFolder
from workbench.seeding import Order
from workbench.types import Example

WORTH_SAYING = (
    0.05  # share of prompts that hold the answer, above which a run reports it; a whole reference always counts
)
NUM_NAMED = 3  # examples of each reason that the log names

_KEYS = ("example", "reason", "message")

log = logging.getLogger("workbench")


class Skipped:
    """Counts examples by reason, each example once, and keeps run.json up to date.

    skipped.jsonl of the run names every one: {"example", "reason", "message"}. A run that goes on still knows them.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder, self._file = folder, folder.path / "skipped.jsonl"
        lines = self._file.read_bytes().split(b"\n") if self._file.is_file() else [b""]
        if torn := lines.pop():  # by a kill; what is appended would be joined to it
            os.truncate(self._file, self._file.stat().st_size - len(torn))
        parsed = [self._parsed(line, number) for number, line in enumerate(lines, start=1)]
        known = list({line["example"]: line for line in parsed}.values())  # processes each add to it
        self.counts = Counter(line["reason"] for line in known)
        self._seen = {line["example"] for line in known}
        self._first = f"{known[0]['example']}: {known[0]['message']}" if known else ""

    def _parsed(self, line: bytes, number: int) -> dict[str, str]:
        try:
            values = parse_json(line)
        except Malformed as error:
            raise RunError(f"{self._file}:{number} cannot be read ({error}). Delete the line.") from None
        if not isinstance(values, dict) or not all(isinstance(values.get(key), str) for key in _KEYS):
            raise RunError(f"{self._file}:{number} is {show(values)} and lacks {', '.join(_KEYS)}. Delete the line.")
        return values

    def __str__(self) -> str:
        """How many of each reason, and what was wrong with the first."""
        return f"{dict(self.counts)}, the first {self._first}" if self._first else "none"

    def add_if(self, example: Example, problem: tuple[str, str] | None) -> bool:
        """Add an example if there is a problem with it; returns whether there is."""
        if problem is not None:
            self.add(example, *problem)
        return problem is not None

    def add(self, example: Example, reason: str, message: str) -> None:
        if example.id in self._seen:
            return
        self._seen.add(example.id)
        self.counts[reason] += 1
        self._first = self._first or f"{example.origin or example.id}: {message}"
        if self.counts[reason] <= NUM_NAMED:
            log.warning("skipped %s: %s", example.origin or example.id, message)
        with saving(self._file), self._file.open("a") as file:
            file.write(json.dumps({"example": example.id, "reason": reason, "message": message}) + "\n")
        self._folder.update(skipped=dict(self.counts))


def split_by_teacher(
    examples: list[Example], domains: Collection[str] | None
) -> tuple[list[Example], list[tuple[Example, str]]]:
    """Examples whose domain has a teacher, and the others with what to do. domains: those that have one, None = all.

    Raises: DataError that counts the domains if no example has a teacher.
    """
    if domains is None:
        return examples, []
    remedy = f"there are teachers for {', '.join(domains)}: add models.teachers.DOMAIN, or models.teacher for all other domains"  # fmt: skip
    usable = [example for example in examples if example.domain in domains]
    if examples and not usable:
        found = Counter(example.domain for example in examples)
        listed = ", ".join(f'"{domain}" ({count})' for domain, count in found.most_common(10))
        raise DataError(f"none of the {len(examples)} examples has a domain with a teacher. Their domains: {listed}; {remedy}.")  # fmt: skip
    return usable, [(one, f'its domain is "{one.domain}"; {remedy}') for one in examples if one.domain not in domains]


def with_teacher(examples: list[Example], domains: Collection[str] | None, skipped: Skipped) -> list[Example]:
    """Examples whose domain has a teacher, as split_by_teacher; the others are counted as skipped."""
    usable, lacking = split_by_teacher(examples, domains)
    for example, message in lacking:
        skipped.add(example, f'no teacher for domain "{example.domain}"', message)
    return usable


def with_evidence(examples: list[Example], method: Method, skipped: Skipped) -> list[Example]:
    """Examples that have what the method's contexts need. Raises DataError if none has."""
    usable, lacking = split_by_evidence(examples, list(method.contexts))
    for example, column in lacking:
        skipped.add(example, f"no {column}", f'it has no "{column}"')
    if method.dataset_share > 0.0:  # some sequences are the data's own answers
        for example in usable:
            if not (example.reference or example.answer):
                skipped.add(example, "no reference or answer", 'it has no "reference" and no "answer" to learn from')
        usable = [example for example in usable if example.reference or example.answer]
    for column in method.needs:
        for example in usable:
            if not getattr(example, column):
                skipped.add(
                    example, f"no {column}", f'it has no "{column}", by which the method decides what to learn from'
                )
        usable = [example for example in usable if getattr(example, column)]
    if not usable:
        raise DataError(
            f"none of the {len(examples)} examples has what method {method.name} needs (contexts "
            f"{', '.join(method.contexts)}); missing: {skipped}. Add the columns or choose "
            f"{'another method.privilege' if hasattr(method.options, 'privilege') else 'another method'}."
        )
    return usable


def report_leaks(examples: list[Example], method: Method, folder: RunFolder) -> None:
    """Log, and keep in run.json, how many prompts of the student hold the answer or the reference, unless they are few."""
    leaks = find_leaks(examples, method.views[method.learner].context)
    if leaks.num_references or len(leaks.in_prompt) > WORTH_SAYING * leaks.num_examples:
        log.warning("%s", leaks)
        folder.update(answers_in_prompts=str(leaks))


def can_show(example: Example, views: list[tuple[Policy, str]], skipped: Skipped) -> bool:
    """Whether each policy can be shown the example under its context: images open, prompt not too long.

    A context whose evidence the example lacks is not asked about here.
    """
    return not skipped.add_if(example, _problem(example, views))


def _problem(example: Example, views: list[tuple[Policy, str]]) -> tuple[str, str] | None:
    """Why the example cannot be shown, in short and as a sentence."""
    try:
        for policy, context in views:
            if missing_evidence(example, context) is None:
                policy.check_prompt(build_prompt(example, context, stand_in(example)))
    except DataError as error:
        return "image cannot be read", str(error)
    except PolicyError as error:
        return "prompt cannot be encoded", str(error)
    return None


def usable_batch(
    examples: list[Example],
    order: Order,
    step: int,
    size: int,
    views: list[tuple[Policy, str]],
    skipped: Skipped,
    group: Group = ALONE,
) -> list[Example]:
    """The step's examples that every view can be shown; others are skipped and counted.

    If none can, the next one in the order that can (with several processes: if there is not one for each): a single damaged
    file must not end a run.
    """
    chosen = [examples[place] for place in order.batch(step, size)]
    problems = group.share(chosen, lambda own, _: [_problem(example, views) for example in own])
    usable = [one for one, problem in zip(chosen, problems, strict=True) if not skipped.add_if(one, problem)]
    later = (examples[order.at(step * size + ahead)] for ahead in range(2 * len(examples)))
    usable += islice((one for one in later if can_show(one, views, skipped)), max(0, group.size - len(usable)))
    if len(usable) < group.size:
        raise DataError(
            f"step {step}: {len(usable) or 'none'} of the {len(examples)} examples can be shown to every view. Skipped so far: "
            f"{skipped}. `workbench check` shows one example under every view."
        )
    return usable
