"""Rollouts: sampled by a policy, or taken from the data's reference answers."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace

from workbench.data.contexts import build_prompt, build_turn, parse_context, user_turns
from workbench.data.grading import TOLERANCE, grade
from workbench.errors import DataError, RunError
from workbench.policies import Completion, Policy, SamplingOptions
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.seeding import derive_seed, draw_uniform
from workbench.types import DenoisingTrace, Example, Prompt, Rollout

DATASET = "dataset"
_NUM_REMOVED: Counter[str] = Counter()  # special tokens removed in this process, by kind of text
log = logging.getLogger("workbench")


def sample_rollouts(
    policy: Policy,
    examples: list[Example],
    *,
    context: str,
    sampling: SamplingOptions,
    num_generations: int,
    seed: tuple[object, ...],
    dataset_fraction: float = 0.0,
    grader: str = "final",
    tolerance: float = TOLERANCE,
    batch_size: int = 0,
    replier: Policy | None = None,
    first: int = 0,
) -> list[Rollout]:
    """Sample `num_generations` rollouts of each example, grouped by example.

    Each rollout depends only on `seed`, its example and the example's index, counted from `first`.

    dataset_fraction  fraction of rollouts, drawn by seed, that are the data's reference answers instead
    batch_size        sequences per sampling batch, 0 = all
    replier           policy that replies to each turn before the last, once per example, under the context "turns";
                      None = the sampling policy
    """
    if "turns" in parse_context(context):
        replies = reply_in_turns(
            replier or policy, examples, sampling=sampling, seed=seed, batch_size=batch_size, first=first
        )
    else:
        replies = [()] * len(examples)
    seeds, is_reference = _draws(len(examples), num_generations, seed, dataset_fraction, first)
    completions: list[list[Completion]] = [[] for _ in examples]
    for part, prompts, part_seeds in _batches(examples, seeds, context, batch_size, replies):
        for idx, samples in zip(part, policy.sample(prompts, part_seeds, sampling), strict=True):
            completions[idx] = samples
    rollouts = []
    for example, flags, samples, turns in zip(examples, is_reference, completions, replies, strict=True):
        remaining = iter(samples)
        for sample_idx, from_data in enumerate(flags):
            completion = reference_completion(policy, example) if from_data else next(remaining)
            rollout = _to_rollout(policy, example, sample_idx, completion, from_data, turns)
            text, prefix = rollout.text, rollout.answer_prefix
            reward = grade(text, example.answer, grader, tolerance=tolerance, prefix=prefix)
            rollouts.append(replace(rollout, reward=reward))
    return rollouts


def prefetch_rollouts(
    policy: AutoregressivePolicy,
    examples: list[Example],
    *,
    context: str,
    sampling: SamplingOptions,
    num_generations: int,
    seed: tuple[object, ...],
    dataset_fraction: float = 0.0,
    first: int = 0,
) -> None:
    """Begin on a served sampler what `sample_rollouts` with the same arguments then waits for.

    Nothing under the context "turns", whose answers need the replies to earlier turns.
    """
    if "turns" in parse_context(context):
        return
    seeds, _ = _draws(len(examples), num_generations, seed, dataset_fraction, first)
    for _, prompts, part_seeds in _batches(examples, seeds, context, 0, [()] * len(examples)):
        policy.prefetch_samples(prompts, part_seeds, sampling)


def _draws(
    num_examples: int, num_generations: int, seed: tuple[object, ...], dataset_fraction: float, first: int
) -> tuple[list[list[int]], list[list[bool]]]:
    """Per example, the seeds of its sampled completions, and of each rollout whether it is the data's reference."""
    seeds: list[list[int]] = []
    is_reference: list[list[bool]] = []
    for idx in range(num_examples):
        keys = [(*seed, first + idx, sample_idx) for sample_idx in range(num_generations)]
        is_reference.append([draw_uniform("source", *key) < dataset_fraction for key in keys])
        sampled_keys = [key for key, from_data in zip(keys, is_reference[-1], strict=True) if not from_data]
        seeds.append([derive_seed("sample", *key) for key in sampled_keys])
    return seeds, is_reference


def _to_rollout(
    policy: Policy,
    example: Example,
    sample_idx: int,
    completion: Completion,
    from_data: bool,
    replies: tuple[str, ...],
) -> Rollout:
    """A rollout without a reward."""
    return Rollout(
        example,
        sample_idx,
        completion.ids,
        policy.text(completion.ids),
        completion.finished,
        None if from_data else completion.logprobs,
        sampled_by=DATASET if from_data else policy.name,
        replies=replies,
        denoising=completion.denoising,
        entropies=completion.entropies,
        stop_string=completion.stop_string,
        answer_prefix="" if from_data else policy.answer_prefix,
    )


def without_special(policy: Policy, text: str, what: str) -> str:
    """Remove the policy's special tokens from a generated text, so that it can be part of a prompt.

    what  kind of text, for the log; the 1st, 10th, 100th, ... removal is logged
    """
    while (token := policy.special_in(text)) is not None:
        text = text.replace(token, "")
        _NUM_REMOVED[what] += 1
        if str(_NUM_REMOVED[what]).strip("0") == "1":
            log.warning(
                'removed the special token "%s" from %s before using it in a prompt (%d so far)',
                token,
                what,
                _NUM_REMOVED[what],
            )
    return text


def reply_in_turns(
    policy: Policy,
    examples: list[Example],
    *,
    sampling: SamplingOptions,
    seed: tuple[object, ...],
    batch_size: int = 0,
    first: int = 0,
) -> list[tuple[str, ...]]:
    """Sample the policy's replies to each turn but the last of every example, one after the other."""
    replies: list[tuple[str, ...]] = [() for _ in examples]
    while todo := [idx for idx, example in enumerate(examples) if len(replies[idx]) < len(user_turns(example)) - 1]:
        part = todo[: batch_size or len(todo)]
        prompts = [build_turn(examples[idx], replies[idx]) for idx in part]
        seeds = [[derive_seed("reply", *seed, first + idx, len(replies[idx]))] for idx in part]
        for idx, (reply,) in zip(part, policy.sample(prompts, seeds, sampling), strict=True):
            replies[idx] = (*replies[idx], without_special(policy, policy.text(reply.ids), "a reply"))
    return replies


def request_peer_feedback(
    rollouts: dict[str, tuple[Rollout, ...]],
    students: Mapping[str, Policy],
    request: str,
    *,
    sampling: SamplingOptions,
    seed: tuple[object, ...],
    first: int = 0,
) -> dict[str, tuple[Rollout, ...]]:
    """Add to each learner's rollouts the remarks that all other learners sample about them.

    rollouts  by learner
    request   as Method.peer_request
    first     index of the first rollout within the step
    """
    with_remarks = {}
    for name, learner_rollouts in rollouts.items():
        peers = [peer for other, peer in students.items() if other != name]
        with_remarks[name] = _add_remarks(learner_rollouts, peers, request, sampling, (*seed, name), first)
    return with_remarks


def _add_remarks(
    rollouts: tuple[Rollout, ...],
    peers: list[Policy],
    request: str,
    sampling: SamplingOptions,
    seed: tuple[object, ...],
    first: int,
) -> tuple[Rollout, ...]:
    """Rollouts with one remark of each peer, sampled from the plain prompt followed by the request."""

    def remark_prompt(peer: Policy, rollout: Rollout) -> Prompt:
        prompt = build_prompt(rollout.example, "plain")
        text = request.format(text=without_special(peer, rollout.text, "an answer"))
        return replace(prompt, text=f"{prompt.text}\n{text}", key="")

    remarks: list[tuple[str, ...]] = [()] * len(rollouts)
    for peer in peers:
        prompts = [remark_prompt(peer, rollout) for rollout in rollouts]
        seeds = [[derive_seed("remark", *seed, peer.name, first + idx)] for idx in range(len(rollouts))]
        texts = [peer.text(samples[0].ids) for samples in peer.sample(prompts, seeds, sampling)]
        remarks = [(*earlier, text) for earlier, text in zip(remarks, texts, strict=True)]
    return tuple(replace(rollout, remarks=texts) for rollout, texts in zip(rollouts, remarks, strict=True))


def reference_of(example: Example) -> tuple[str, str] | None:
    """Column and text of an example's reference answer: its worked answer, else its answer; None without either.

    An empty text counts as blank, and usable.py skips the example.
    """
    if example.reference is not None:
        return "reference", example.reference
    return None if example.answer is None else ("answer", example.answer)


def reference_completion(policy: Policy, example: Example) -> Completion:
    """Tokenize the data's reference answer, with an end token."""
    reference = reference_of(example)
    if reference is None:
        raise DataError(
            f'{example.origin or example.id} has neither "reference" nor "answer". Expected one of them for sequences '
            "of the dataset. Add the column, or set method.dataset_fraction=0."
        )
    ids = policy.answer_ids(reference[1])
    return Completion(ids, (), True, policy.denoising_schedule(ids))


def _batches(
    examples: list[Example],
    seeds: list[list[int]],
    context: str,
    batch_size: int,
    replies: Sequence[tuple[str, ...]],
) -> Iterator[tuple[list[int], list[Prompt], list[list[int]]]]:
    """Indices, prompts and seeds of the examples to sample, in batches of about `batch_size` sequences."""
    todo = [idx for idx, example_seeds in enumerate(seeds) if example_seeds]
    per_example = max((len(example_seeds) for example_seeds in seeds), default=1) or 1
    size = max(1, batch_size // per_example) if batch_size else len(todo)
    for start in range(0, len(todo), size or 1):
        part = todo[start : start + size]
        prompts = [build_prompt(examples[idx], context, _with_replies(examples[idx], replies[idx])) for idx in part]
        yield part, prompts, [seeds[idx] for idx in part]


def _with_replies(example: Example, replies: tuple[str, ...]) -> Rollout:
    """An empty rollout with the replies to the early turns."""
    return Rollout(example, 0, (), "", finished=False, replies=replies)


def to_row(rollout: Rollout) -> dict:
    """Convert a rollout to JSON values, its example as an id."""
    names = [column.name for column in fields(Rollout) if column.name != "entropies"]
    values = {name: getattr(rollout, name) for name in names}
    denoising = None if rollout.denoising is None else vars(rollout.denoising)
    return values | {"example": rollout.example.id, "denoising": denoising}


def from_row(row: dict, examples: dict[str, Example], key: str) -> Rollout:
    """Convert a row of to_row back to a rollout.

    key  configuration key of the examples, for the message
    Raises: RunError if the example is not in the data, or if the row is of an earlier version.
    """
    if "sampled_by" not in row:
        raise RunError("a saved rollout is of an earlier version of the workbench. Run: workbench upgrade RUN")
    if row["example"] not in examples:
        raise RunError(
            f"example {row['example']} of a saved rollout is missing from the data. Restore the file that config.yaml "
            f"names under {key}."
        )
    values = _with_tuples(row) | {"example": examples[row["example"]]}
    if values.get("denoising") is not None:
        values["denoising"] = DenoisingTrace(**_with_tuples(values["denoising"]))
    return Rollout(**values)


def _with_tuples(values: dict) -> dict:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
