"""Writing: from examples to rollouts, whoever writes them: the student, or the data."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace

from workbench.data.contexts import build_prompt, build_turn, parse_context, user_turns
from workbench.data.grading import TOLERANCE, grade
from workbench.errors import DataError, RunError
from workbench.policies import Completion, Policy, SamplingOptions
from workbench.seeding import derive_seed, draw_uniform
from workbench.types import DenoisingTrace, Example, Prompt, Rollout

DATASET = "dataset"
_LEFT_OUT: Counter[str] = Counter()  # by what was shown: how often this process left a special token out
log = logging.getLogger("workbench")


def sample_rollouts(
    writer: Policy,
    examples: list[Example],
    *,
    context: str,
    sampling: SamplingOptions,
    num_generations: int,
    seed: tuple[object, ...],
    dataset_share: float = 0.0,
    rule: str = "final",
    tolerance: float = TOLERANCE,
    batch_size: int = 0,
    replier: Policy | None = None,
    first: int = 0,
) -> list[Rollout]:
    """`num_generations` rollouts of each example, one example's next to each other.

    A share of them, drawn by seed, are the data's reference answers instead of the student's. Each rollout depends on
    `seed`, its place (counted from `first`) and its example alone. `batch_size` is in sequences per sampling batch, 0 = all
    at once. Under the context "turns" `replier` (None: the writer) first replies to each turn before the last, once per
    example.
    """
    if "turns" in parse_context(context):
        replies = reply_in_turns(
            replier or writer, examples, sampling=sampling, seed=seed, batch_size=batch_size, first=first
        )
    else:
        replies = [()] * len(examples)
    sampled: list[list[int]] = []  # per example, the seeds of the completions that the student writes
    from_data: list[list[bool]] = []
    for idx in range(len(examples)):
        keys = [(*seed, first + idx, sample_idx) for sample_idx in range(num_generations)]
        from_data.append([draw_uniform("source", *key) < dataset_share for key in keys])
        sampled.append([derive_seed("sample", *key) for key, data in zip(keys, from_data[-1], strict=True) if not data])
    written = _sample(writer, examples, sampled, context, sampling, batch_size, replies)
    rollouts = []
    for example, sources, completions, example_replies in zip(examples, from_data, written, replies, strict=True):
        remaining = iter(completions)
        for sample_idx, is_data in enumerate(sources):
            completion = reference_completion(writer, example) if is_data else next(remaining)
            text = writer.text(completion.ids)
            reward = grade(text, example.answer, rule, tolerance=tolerance) if example.answer is not None else None
            logprobs = None if is_data else completion.logprobs
            source = DATASET if is_data else writer.name
            rollouts.append(
                Rollout(
                    example,
                    sample_idx,
                    completion.ids,
                    text,
                    completion.finished,
                    logprobs,
                    reward,
                    source,
                    example_replies,
                    denoising=completion.denoising,
                    entropies=completion.entropies,
                )
            )
    return rollouts


def without_special(policy: Policy, text: str, what: str) -> str:
    """A text that a model wrote, as the policy can be shown it: special tokens that it spells as words are left out, as
    those that it wrote as tokens are. The first, tenth, hundredth, ... are logged with how many there were.
    """
    while (token := policy.special_in(text)) is not None:
        text = text.replace(token, "")
        _LEFT_OUT[what] += 1
        if str(_LEFT_OUT[what]).strip("0") == "1":
            log.warning(
                '%s spells the special token "%s", which is left out where it is shown; so far: %d',
                what,
                token,
                _LEFT_OUT[what],
            )
    return text


def reply_in_turns(
    writer: Policy,
    examples: list[Example],
    *,
    sampling: SamplingOptions,
    seed: tuple[object, ...],
    batch_size: int = 0,
    first: int = 0,
) -> list[tuple[str, ...]]:
    """What the writer replies to each turn but the last of every example, each reply after those before it."""
    replies: list[tuple[str, ...]] = [() for _ in examples]
    while todo := [idx for idx, example in enumerate(examples) if len(replies[idx]) < len(user_turns(example)) - 1]:
        part = todo[: batch_size or len(todo)]
        prompts = [build_turn(examples[idx], replies[idx]) for idx in part]
        seeds = [[derive_seed("reply", *seed, first + idx, len(replies[idx]))] for idx in part]
        for idx, (reply,) in zip(part, writer.sample(prompts, seeds, sampling), strict=True):
            replies[idx] = (*replies[idx], without_special(writer, writer.text(reply.ids), "a reply"))
    return replies


def request_peer_feedback(
    written: dict[str, tuple[Rollout, ...]],
    students: dict[str, Policy],
    question: str,
    *,
    sampling: SamplingOptions,
    seed: tuple[object, ...],
    first: int = 0,
) -> dict[str, tuple[Rollout, ...]]:
    """What each learner wrote, with what every other one writes when it is shown the question and asked about the answer.

    asked  as Method.peer_request
    first  place of the first rollout in the step
    """
    return {
        name: _feedback_prompts(
            rollouts,
            [peer for other, peer in students.items() if other != name],
            question,
            sampling,
            (*seed, name),
            first,
        )
        for name, rollouts in written.items()
    }


def _feedback_prompts(
    rollouts: tuple[Rollout, ...],
    peers: list[Policy],
    question: str,
    sampling: SamplingOptions,
    seed: tuple[object, ...],
    first: int,
) -> tuple[Rollout, ...]:
    def feedback_prompt(peer: Policy, rollout: Rollout) -> Prompt:
        prompt = build_prompt(rollout.example, "plain")
        request = question.format(text=without_special(peer, rollout.text, "an answer"))
        return replace(prompt, text=f"{prompt.text}\n{request}", key="")

    remarks: list[tuple[str, ...]] = [()] * len(rollouts)
    for peer in peers:
        prompts = [feedback_prompt(peer, rollout) for rollout in rollouts]
        seeds = [[derive_seed("remark", *seed, peer.name, first + idx)] for idx in range(len(rollouts))]
        texts = [peer.text(samples[0].ids) for samples in peer.sample(prompts, seeds, sampling)]
        remarks = [(*before, text) for before, text in zip(remarks, texts, strict=True)]
    return tuple(replace(rollout, remarks=texts) for rollout, texts in zip(rollouts, remarks, strict=True))


def reference_of(example: Example) -> tuple[str, str] | None:
    """Column and text of what is learned from an example as it stands in the data: its worked answer, else its answer.

    A text that is empty counts as one that is blank: usable.py leaves the example out.
    """
    if example.reference is not None:
        return "reference", example.reference
    return None if example.answer is None else ("answer", example.answer)


def reference_completion(writer: Policy, example: Example) -> Completion:
    """The data's own answer as tokens of the writer, the end token included."""
    reference = reference_of(example)
    if reference is None:
        raise DataError(
            f'{example.origin or example.id} has no "reference" and no "answer"; sequences taken from the data need one. '
            "Add the column or set method.dataset_share=0."
        )
    ids = writer.answer_ids(reference[1])
    return Completion(ids, (), True, writer.denoising_schedule(ids))


def _sample(
    writer: Policy,
    examples: list[Example],
    seeds: list[list[int]],
    context: str,
    sampling: SamplingOptions,
    batch_size: int,
    replies: Sequence[tuple[str, ...]],
) -> list[list[Completion]]:
    written: list[list[Completion]] = [[] for _ in examples]
    todo = [idx for idx, example_seeds in enumerate(seeds) if example_seeds]
    per_example = max((len(example_seeds) for example_seeds in seeds), default=1) or 1
    size = max(1, batch_size // per_example) if batch_size else len(todo)
    for start in range(0, len(todo), size or 1):
        part = todo[start : start + size]
        prompts = [build_prompt(examples[idx], context, _before(examples[idx], replies[idx])) for idx in part]
        for idx, completions in zip(part, writer.sample(prompts, [seeds[p] for p in part], sampling), strict=True):
            written[idx] = completions
    return written


def _before(example: Example, replies: tuple[str, ...]) -> Rollout:
    """A rollout of which nothing is written yet but the replies before it."""
    return Rollout(example, 0, (), "", finished=False, replies=replies)


def to_row(rollout: Rollout) -> dict:
    """A rollout of training as plain values, its example by id."""
    names = [column.name for column in fields(Rollout) if column.name != "entropies"]
    values = {name: getattr(rollout, name) for name in names}
    denoising = None if rollout.denoising is None else vars(rollout.denoising)
    return values | {"example": rollout.example.id, "denoising": denoising}


def from_row(row: dict, examples: dict[str, Example], key: str) -> Rollout:
    """What to_row made, from JSON again. `key`: where the examples are configured. Raises RunError if one is gone."""
    if row["example"] not in examples:
        raise RunError(
            f"an answer of this run is to {row['example']}, which is no longer in the data that the run was started "
            f"with. Restore {key} to what config.yaml names."
        )
    values = _with_tuples(row) | {"example": examples[row["example"]]}
    if values.get("denoising") is not None:
        values["denoising"] = DenoisingTrace(**_with_tuples(values["denoising"]))
    return Rollout(**values)


def _with_tuples(values: dict) -> dict:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
