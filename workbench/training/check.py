"""`workbench check`: measures on one batch, before any training, that all views score the same tokens.

Silent misalignment is the most common bug of distillation: a completion tokenized twice, a view sliced at another
column, an end token that the teacher does not know. Each row of the table measures one such bug.
"""

import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

import workbench.policies.view_output
from workbench.config.schema import RunConfig
from workbench.data.contexts import is_privileged
from workbench.data.examples import split_by_evidence
from workbench.data.images import image_size
from workbench.data.leaks import find_leaks
from workbench.data.mixture import describe_order, describe_sources, require_every_source
from workbench.distill.losses import score
from workbench.distill.method import Method
from workbench.distill.rollouts import reference_completion, reference_of, request_peer_feedback, sample_rollouts
from workbench.distill.routing import sampler_logprobs
from workbench.distill.scoring import Batch, score_views
from workbench.distill.step import ScoredBatch, StepResult, compute_step, score_batch
from workbench.distill.supervised_part import count_thinking
from workbench.distributed import choose_device
from workbench.errors import DataError
from workbench.policies import Completion, Policy, SamplingOptions
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.policies.by_domain import member
from workbench.policies.fsdp import single_policies
from workbench.policies.heads import output_layer
from workbench.policies.image_size import reduced_size
from workbench.policies.role_names import ROLES, VISION
from workbench.policies.roles import describe_trained, roles
from workbench.policies.serving.sampler import sample_together
from workbench.policies.serving.served import ServedPolicy
from workbench.training.check_costs import describe_memory, describe_time
from workbench.training.check_rows import count_pictures, describe_pictures, split_rows
from workbench.training.filter import split_by_teacher
from workbench.training.learner import Learner, attach_engine, attach_sampler, autocast, build_learner, check_engine
from workbench.training.length import describe_steps, with_steps
from workbench.training.requirements import require_models
from workbench.training.run_data import RunData, load_run_data
from workbench.training.underflow import REMEDY
from workbench.types import STUDENT, Example, Prompt, Rollout

NUM_EXAMPLES = 4
# in nats, by dtype of the weights: padding changes the order of additions, and the rounding of int8 (0.12 measured)
TOLERANCE = {"float32": 2e-3, "bfloat16": 0.25, "float16": 0.1, "int8": 0.5, "nf4": 0.5}
OK, NOTE, WRONG = "ok", "note", "WRONG"


@dataclass(frozen=True)
class Check:
    """One measured row. status: ok, note (allowed, but unusual), or WRONG (training would use a wrong signal)."""

    name: str
    status: str
    finding: str


def check_config(config: RunConfig) -> list[Check]:
    """Load what the run would load, sample a few answers, and compare all views with each other.

    Raises: WorkbenchError if the models or the data cannot be loaded at all.
    """
    method = config.load_method()
    check_engine(config, method)
    require_models(config)
    device = choose_device(config.models.device)
    data = load_run_data(config)
    examples = data.train
    with_teacher, skipped = split_by_teacher(examples, config.teacher_domains)
    usable, lacking = split_by_evidence(with_teacher, list(method.contexts))
    if not usable:
        raise DataError(
            f"none of the {len(examples)} examples of {config.data.train_text} has the columns that the contexts "
            f"{', '.join(method.contexts)} need; the first, {lacking[0][0].origin}, has no {lacking[0][1]}. Add the "
            "columns, or set method.privilege to evidence that they have, or to plain: none."
        )
    require_every_source(usable, config.data.train_sources)
    length, config = describe_steps(config, len(usable)), with_steps(config, len(usable))
    learners = {name: build_learner(config, method, name, device=str(device)) for name in config.models.learners}
    attach_engine(list(learners.values()), config)
    attach_sampler(list(learners.values()), config, f"check-{os.getpid()}")
    usable, tried, row_checks = _row_checks(config, method, learners, usable, data)
    started = time.perf_counter()
    with autocast(config, str(device)):
        sampled = _sampled(config, method, learners, tried)
    sampling_s = (time.perf_counter() - started) / len(learners)
    checks = [_evidence(len(with_teacher), len(usable), lacking), *_placeholders(examples)]
    checks += [*_domains(examples, skipped), *row_checks]
    checks += [Check("length", OK, length), *_sources(config, examples, usable)]
    checks += [_memory(config, device, learners.values())]
    checks += _leaks(usable, method.learner_context)
    checks += _prepared(method, tried, learners[STUDENT])
    for name, learner in learners.items():
        others = tuple(rollouts for other, rollouts in sampled.items() if other != name)
        learner_checks = _learner_checks(config, learner, Batch(sampled[name]), others, sampling_s)
        prefix = "" if name == STUDENT else f"{name}: "
        checks += [replace(check, name=f"{prefix}{check.name}") for check in learner_checks]
    return checks


def _sampled(
    config: RunConfig, method: Method, learners: dict[str, Learner], examples: list[Example]
) -> dict[str, tuple[Rollout, ...]]:
    """Two answers of each student to each example, by student."""
    sampling, seed = config.sampling.options, ("check", config.seed)
    students = {name: learner.student for name, learner in learners.items()}
    sampled = sample_together(
        students.values(),
        lambda: {
            name: tuple(
                sample_rollouts(
                    learner.student,
                    examples,
                    context=method.learner_context,
                    sampling=sampling,
                    num_generations=2,
                    seed=(*seed, *learner.seed),
                    **config.evaluation.grading,
                    replier=learner.policies[method.replying_policy],
                )
            )
            for name, learner in learners.items()
        },
    )
    if method.peer_request is None:
        return sampled
    return request_peer_feedback(sampled, students, method.peer_request, sampling=sampling, seed=seed)


def _learner_checks(
    config: RunConfig, learner: Learner, batch: Batch, others: tuple[tuple[Rollout, ...], ...], sampling_s: float
) -> list[Check]:
    method, started = config.load_method(), time.perf_counter()
    with torch.no_grad(), autocast(config, learner.student.device):
        scored_batch = score_batch(method, learner.policies, batch, others)
        result = compute_step(method, learner.policies, scored_batch, seed=0)
        scoring_s = time.perf_counter() - started
        return [
            Check("time", OK, describe_time(config, len(batch.rollouts), sampling_s, scoring_s)),
            *_tokens(result, learner),
            *_images(result, learner),
            *_served(result, learner),
            *_views(result, learner, config),
            _chunks(result, learner, scored_batch),
            *_routing(result),
            _answers(result),
            _trained(learner),
            *_precision(config, learner),
            *_adapters(config, learner),
            *_thinking(config, result, learner),
        ]


def is_good(checks: list[Check]) -> bool:
    """Return whether no check is WRONG."""
    return all(check.status != WRONG for check in checks)


def verdict(checks: list[Check]) -> str:
    """One sentence on all checks, then what a step costs."""
    num_wrong, num_notes = (sum(check.status == status for check in checks) for status in (WRONG, NOTE))
    if num_wrong:
        return f"{num_wrong} of {len(checks)} checks failed. Correct the configuration before you train."
    notes = f", {num_notes} with a note" if num_notes else ""
    costs = [
        f"{check.name.capitalize()}: {re.split('[,:;]', check.finding)[0]}"
        for check in checks
        if check.name in ("time", "memory")
    ]
    return ". ".join([f"All {len(checks)} checks passed{notes}", *costs]) + "."


def _evidence(total: int, num_usable: int, lacking: list) -> Check:
    if not lacking:
        return Check("evidence", OK, f"all {total} examples have the evidence of every view")
    example, column = lacking[0]
    return Check("evidence", NOTE, f"{num_usable} of {total} usable; {example.origin or example.id} has no {column}")


def _row_checks(
    config: RunConfig, method: Method, learners: dict[str, Learner], examples: list[Example], data: RunData
) -> tuple[list[Example], list[Example], list[Check]]:
    """Examples that training would use, those to sample answers for, and the checks about rows and images."""
    views = [
        (learner.policies[view.policy], view.context) for learner in learners.values() for view in method.views.values()
    ]
    students = [learner.student for learner in learners.values()]
    before = count_pictures()
    references = students if method.dataset_fraction > 0.0 else ()
    rows = split_rows(examples, views, references, at_least=NUM_EXAMPLES)
    rows.require_usable(config.data.train_text)
    checks = [Check("rows of data.train", *rows.describe())]
    for chosen, eval_examples in data.evaluation:
        eval_views = [(student, context) for student in students for context in chosen.contexts]
        finding = split_rows(eval_examples, eval_views).describe()
        checks.append(Check(f"rows of {'data.held_out' if data.num_held_out else chosen.key}", *finding))
    if held_out := data.describe_held_out(config.data.held_out):
        checks.append(Check("held out", OK, held_out))
    checks += [Check("evaluated and trained on", NOTE, line) for line in data.describe_repeated()]
    checks += [Check("pictures", *line) for line in describe_pictures(before)]
    return rows.usable, rows.usable[: min(rows.num_encoded, NUM_EXAMPLES)], checks


def _memory(config: RunConfig, device: torch.device, learners: Iterable[Learner]) -> Check:
    policies = [policy for learner in learners for policy in single_policies(learner.policies.values())]
    served = {policy.source: policy.head.linear for policy in policies if isinstance(policy, ServedPolicy)}
    heads = sum(weight.nbytes for head in served.values() for weight in head.parameters())
    finding, is_enough = describe_memory(config, device, heads)
    return Check("memory", OK if is_enough else NOTE, finding)


def _sources(config: RunConfig, examples: list[Example], usable: list[Example]) -> Iterator[Check]:
    """The sources of data.train, and the order of their examples."""
    training, sources = config.training, config.data.train_sources
    require_every_source(usable, sources)
    for line in describe_sources(examples, usable, sources, training.steps * training.batch_size):
        yield Check("source of data.train", OK, line)
    yield Check("order of examples", OK, describe_order(config.seed, shuffle=config.data.shuffle))


def _placeholders(examples: list[Example]) -> Iterator[Check]:
    """Warn of image placeholders of other tools in the questions."""
    affected = [example for example in examples if re.search(r"<(image|img|video)>", example.question)]
    if affected:
        text = (
            f"{len(affected)} of {len(examples)} questions contain <image> or a similar placeholder, which the model "
            f"reads as text; first: {affected[0].origin or affected[0].id}. `workbench import` removes it"
        )
        yield Check("questions", NOTE, text)


def _leaks(examples: list[Example], context: str) -> Iterator[Check]:
    """Report answers that occur in the student's prompt."""
    leaks = find_leaks(examples, context)
    if leaks.num_examples:
        yield Check("answers in prompts", NOTE if leaks.in_prompt else OK, str(leaks))


def _domains(examples: list[Example], skipped: list[tuple[Example, str]]) -> Iterator[Check]:
    if skipped:
        example, message = skipped[0]
        text = f"{len(skipped)} of {len(examples)} examples are skipped; {example.origin or example.id}: {message}"
        yield Check("teacher of each domain", NOTE, text)


def _prepared(method: Method, tried: list[Example], learner: Learner) -> Iterator[Check]:
    """Run the method's preparation on a few examples."""
    if method.sampling_patch is not None:
        prepared = method.sampling_patch.build(learner.student, iter(tried), 0)
        facts = ", ".join(f"{name}: {fact}" for name, fact in prepared.facts.items())
        yield Check(f"prepared, of {len(tried)} examples", OK, facts)


def _tokens(result: StepResult, learner: Learner) -> Iterator[Check]:
    for name, view in result.method.views.items():
        prompts, rollouts = _scored_by(result, name)
        completions = [rollout.ids for rollout in rollouts]
        if not prompts:
            text = f"not compared: none of the {len(result.batch.rollouts)} answers has what the view's context needs"
            yield Check(f"completion in view {name} ({view.policy} / {view.context})", NOTE, text)
        for policy, indices in _by_policy(learner.policies[view.policy], prompts):
            policy_prompts, expected = [prompts[idx] for idx in indices], [completions[idx] for idx in indices]
            inputs, start, lengths = policy.model_inputs(policy_prompts, expected)
            input_ids = [
                row[start : start + int(n)] for row, n in zip(inputs["input_ids"].tolist(), lengths, strict=True)
            ]
            same = input_ids == [list(ids) for ids in expected]
            longest = max(policy.encoder.encode(prompt)["input_ids"].shape[1] for prompt in policy_prompts)
            room = policy.encoder.max_prompt_length
            text = f"prompts up to {longest} tokens" + ("" if room is None else f" of {room} allowed")
            text = f"the sampled ids, token by token; {text}" if same else "other ids than were sampled"
            yield Check(f"completion in view {name} ({policy.name} / {view.context})", OK if same else WRONG, text)
    yield from _agreement(learner)


def _agreement(learner: Learner) -> Iterator[Check]:
    """Compare vocabulary, end token and chat template of the policies."""
    student = learner.student
    models = {name: policy for name, policy in learner.policies.items() if isinstance(policy, AutoregressivePolicy)}
    shared = f"{student.vocabulary} entries shared by {', '.join(learner.policies)}"
    for name, policy in models.items():
        padding = output_layer(policy.model).weight.shape[0] - student.vocabulary
        if padding:
            shared += f"; {padding} unused entries of {name} are left out"
    yield Check("vocabulary", OK, shared)
    if student.head.eos_ids:
        names = ", ".join(student.token_text(token) for token in student.head.eos_ids)
        text = f"{names} count as one end token in every view: probabilities are summed, and the first is used"
        yield Check("end token", NOTE, text)
    for name, policy in models.items():
        if not policy.head.eos_ids and policy.end_id != student.end_id:
            ends = policy.token_text(policy.end_id), student.token_text(student.end_id)
            text = f"{name} ends with {ends[0]}, the student with {ends[1]}"
            yield Check("end token", NOTE, f"{text}: the teacher gives the student's end token a low probability")
    bare = [name for name, policy in models.items() if getattr(policy.processor, "chat_template", None) is None]
    if bare:
        text = (
            f"{', '.join(bare)}: none, so prompts are images and plain text. An instruction-tuned model needs its own "
            "chat_template.jinja in its folder"
        )
        yield Check("chat template", NOTE, text)
    for name, policy in models.items():
        if policy.answer_prefix != student.answer_prefix:
            pair = f"{name} has {policy.answer_prefix!r} and the student {student.answer_prefix!r}"
            text = f"the chat templates differ: before an answer, {pair}"
            yield Check("chat template", NOTE, text)


def _trained(learner: Learner) -> Check:
    return Check("weights that are trained", OK, describe_trained(learner.student.model))


def _precision(config: RunConfig, learner: Learner) -> Iterator[Check]:
    """Compare the learning rate with the smallest effective update in half precision."""
    finest, rate = learner.underflow.smallest_effective_update(), config.training.learning_rate
    if finest is not None and config.training.optimizer == "adamw":
        text = (
            f"in {learner.underflow.dtype} an update below {finest:.0e} does not change a weight of median size; "
            f"training.learning_rate is {rate:g}."
        )
        yield Check(
            "precision of what is trained",
            NOTE if rate < finest else OK,
            text + (f" {REMEDY}" if rate < finest else ""),
        )


def _adapters(config: RunConfig, learner: Learner) -> Iterator[Check]:
    """Say which parts of the model learn by adapters: all-linear takes the vision tower in too."""
    model = learner.student.model
    learning = {name for name, weight in model.named_parameters() if ".lora_" in name and weight.requires_grad}
    layers = {(name.partition(".lora_")[0], role) for name, role in roles(model).items() if name in learning}
    if layers:
        by_role = Counter(role for _, role in layers)
        text = f"in {len(layers)} layers: {', '.join(f'{role} {by_role[role]}' for role in ROLES if role in by_role)}"
        is_note = VISION in by_role and not config.models.train
        remedy = ". models.train=[language] leaves the others as they are" if is_note else ""
        yield Check("adapters", NOTE if is_note else OK, text + remedy)


def _by_policy(policy: Policy, prompts: list[Prompt]) -> list[tuple[AutoregressivePolicy, list[int]]]:
    """The policies that score these prompts, each with the indices of its prompts: one, or one per domain."""
    by_policy: dict[int, tuple[Any, list[int]]] = {}
    for idx, prompt in enumerate(prompts):
        scorer = member(policy, prompt.domain)
        by_policy.setdefault(id(scorer), (scorer, []))[1].append(idx)
    return list(by_policy.values())


def _images(result: StepResult, learner: Learner) -> Iterator[Check]:
    for name, view in result.method.views.items():
        prompts, _ = _scored_by(result, name)
        for policy, indices in _by_policy(learner.policies[view.policy], prompts):
            image_token, prompt = getattr(policy.model.config, "image_token_id", None), prompts[indices[0]]
            if image_token is None:
                continue
            ids = policy.encoder.encode(prompt)["input_ids"]
            count = int((ids == image_token).sum())
            status = OK if bool(count) == bool(prompt.all_images) else WRONG
            cost = policy.encoder.picture_tokens(prompt)
            marks = f" ({cost:,} with their marks)" if cost != count else ""
            text = f"{len(prompt.all_images)} image(s), {count:,} image tokens{marks} of {ids.numel():,}"
            yield Check(f"images in view {name}", status, text + _largest_image(policy, prompt))


def _served(result: StepResult, learner: Learner) -> Iterator[Check]:
    """What servers have, that black pictures in place of a prompt's own change its scores, and that reference answers
    are likelier than with gross faults of a server.
    """
    for name, view in result.method.views.items():
        prompts, rollouts = _scored_by(result, name)
        for policy, indices in _by_policy(learner.policies[view.policy], prompts):
            if not isinstance(policy, ServedPolicy):
                continue
            yield Check(f"served {policy.name}", OK, ", ".join(policy.facts.values()))
            pictured = next((idx for idx in indices if prompts[idx].images), None)
            if pictured is not None:
                black = tuple(Image.new("RGB", image_size(image)) for image in prompts[pictured].images)
                other = replace(prompts[pictured], images=black, key="black pictures")
                pair = (_logprobs(policy, prompt, rollouts[pictured]) for prompt in (prompts[pictured], other))
                difference = _largest(*pair)
                text = f"log-probs differ by up to {difference:.1e} nats from those with black pictures"
                yield Check(f"pictures reach {policy.name} in view {name}", OK if difference else WRONG, text)
            pairs = {rollouts[idx].example.id: (prompts[idx], rollouts[idx].example) for idx in indices}
            answers = [
                _logprobs(policy, prompt, reference_completion(policy, example))
                for prompt, example in pairs.values()
                if reference_of(example) is not None
            ]
            if answers:
                finding, is_likely = describe_references(torch.cat(answers), policy.vocabulary)
                yield Check(f"reference answers in view {name}", OK if is_likely else NOTE, finding)


def describe_references(logprobs: torch.Tensor, vocabulary: int) -> tuple[str, bool]:
    """Mean log-prob of reference answers, and whether it is above half of a uniform guess's.

    A plain true sentence had -1.6 nats under a real model of 49,152 entries, and -10.3 to -75 with a final norm or a
    position lost on the way: below half of uniform, -5.4.
    """
    mean, half = float(logprobs.mean()), -0.5 * math.log(vocabulary)
    text = f"mean log-prob {mean:.2f} nats a token; half of a uniform guess: {half:.2f}"
    if mean >= half:
        return text, True
    return f"{text}. Expected more of a trained model: compare it with the same model in this process", False


def _largest_image(policy: AutoregressivePolicy, prompt: Prompt) -> str:
    """Size of a prompt's largest image, and what it is reduced to."""
    sizes = [image_size(image) for image in prompt.all_images]
    if not sizes:
        return ""
    largest = max(sizes, key=math.prod)
    reduced = reduced_size(*largest, policy.encoder.max_pixels)
    text = f"; the largest image has {largest[0]} x {largest[1]} pixels"
    return (
        text if reduced == largest else f"{text}, reduced to {reduced[0]} x {reduced[1]} ({policy.encoder.limit_key})"
    )


def _views(result: StepResult, learner: Learner, config: RunConfig) -> Iterator[Check]:
    batch = result.batch
    for name, view in result.method.views.items():
        teacher_dtype = config.models.teacher_dtype if view.policy.startswith("teacher") else None
        half = config.training.mixed_precision == "bf16"
        policy, prompts, rollouts = learner.policies[view.policy], *_scored_by(result, name)
        dtypes = {teacher_dtype or config.models.dtype, *({"bfloat16"} if half else ())}
        dtypes |= {served.info["dtype"] for served in single_policies([policy]) if isinstance(served, ServedPolicy)}
        tolerance = max(TOLERANCE[dtype] for dtype in dtypes)
        if not prompts:
            continue
        alone = [_logprobs(policy, prompt, rollout) for prompt, rollout in zip(prompts, rollouts, strict=True)]
        together = result.scores[name].logprob
        together = together[~together.isnan()]
        yield _same(f"view {name} scored alone = in a padded batch", torch.cat(alone), together, tolerance)
        if view.learns:
            sampled = sampler_logprobs(batch.rollouts, together)
            served = (TOLERANCE[each.sampler.precision] for each in single_policies([policy]) if each.sampler)
            rounding = max([tolerance, *served])
            yield _same(f"sampler = student on {view.context}", sampled, result.scores[name].logprob, rounding)
        elif all(served.info["samples"] for served in single_policies([policy]) if isinstance(served, ServedPolicy)):
            # sample and score with the view's own policy, which detects a shift by a column
            prompt = replace(prompts[0], future=())  # the future belongs to another answer
            completion = policy.sample([prompt], [[0]], SamplingOptions(max(batch.lengths)))[0][0]
            sampled = torch.tensor(completion.logprobs)
            scored_again = _logprobs(policy, prompt, completion)
            yield _same(f"view {name}: sampler = scorer", sampled, scored_again, tolerance)


def _scored_by(result: StepResult, view: str) -> tuple[list[Prompt], list[Rollout]]:
    """Prompts and rollouts of the sequences that the view scored."""
    pairs = zip(result.prompts[view], result.batch.rollouts, strict=True)
    scored_pairs = [(prompt, rollout) for prompt, rollout in pairs if prompt is not None]
    return [prompt for prompt, _ in scored_pairs], [rollout for _, rollout in scored_pairs]


def _logprobs(policy: Policy, prompt: Prompt, rollout: Rollout | Completion) -> torch.Tensor:
    output = policy.forward([prompt], [rollout.ids], [rollout.denoising])
    return score(output, torch.tensor(rollout.ids, device=output.device)).logprob


def _same(name: str, logprobs: torch.Tensor, other: torch.Tensor, tolerance: float) -> Check:
    difference = _largest(logprobs, other)
    text = f"log-probs differ by at most {difference:.1e} nats (allowed: {tolerance:g})"
    return Check(name, OK if difference <= tolerance else WRONG, text)


def _chunks(result: StepResult, learner: Learner, scored_batch: ScoredBatch) -> Check:
    usual = workbench.policies.view_output.CHUNK_BYTES
    try:
        workbench.policies.view_output.CHUNK_BYTES = 1  # gives the smallest chunks, 16 positions
        method, prompts = result.method, scored_batch.prompts
        again = ScoredBatch(result.batch, prompts, *score_views(method, learner.policies, prompts, result.batch))
        pieces = compute_step(method, learner.policies, again, seed=0)
    finally:
        workbench.policies.view_output.CHUNK_BYTES = usual
    difference = _largest(pieces.loss, result.loss)
    status = OK if difference <= 1e-4 else WRONG
    return Check("loss in chunks = at once", status, f"positions differ by at most {difference:.1e} nats")


def _routing(result: StepResult) -> Iterator[Check]:
    method, regime = result.method, result.routing.regime
    counts = {name: int((regime == idx).sum()) for idx, name in enumerate(method.regimes)}
    shares = ", ".join(f"{name} {count / regime.numel():.0%}" for name, count in counts.items())
    yield Check("regimes of this batch", OK, f"{shares} of {regime.numel()} positions")
    learner = method.views[method.learner_view]
    for name in method.targets:
        view = method.views[name]
        if (view.policy, view.context) == (learner.policy, learner.context):
            yield Check(f"target {name}", NOTE, "equals the learner on the same prompt, so its losses are always zero")
        elif is_privileged(view.context):
            yield Check(f"target {name}", OK, f"{view.policy} given {view.context}, unlike the student")


def _answers(result: StepResult) -> Check:
    rollouts = result.batch.rollouts
    finished = sum(rollout.finished for rollout in rollouts)
    stopped = sum(bool(rollout.stop_string) for rollout in rollouts)
    status = OK if finished else NOTE
    text = f"{finished - stopped} of {len(rollouts)} end with an end token"
    text += f", {stopped} with a stop string" if stopped else ""
    return Check("answers", status, f"{text}; first: {rollouts[0].text!r}")


def _thinking(config: RunConfig, result: StepResult, learner: Learner) -> Iterator[Check]:
    """How many answers have thinking, and end in it, if a part of each answer is supervised or any has thinking."""
    part, markers = config.training.supervise, tuple(config.training.think_markers)
    rollouts = result.batch.rollouts
    count, unfinished = count_thinking(rollouts, learner.student.token_texts, markers)
    if part == "all" and not count:
        return
    text = f"training.supervise={part}: {count} of {len(rollouts)} answers have thinking ({' '.join(markers)})"
    if not count:
        text += ". Set training.think_markers to those of the model, or training.supervise=all"
    if unfinished:
        text += f"; {unfinished} end inside of it, so they have no answer and count as wrong"
    yield Check("supervised part", OK if count and not unfinished else NOTE, text)


def _largest(logprobs: torch.Tensor, other: torch.Tensor) -> float:
    return float((logprobs.cpu() - other.cpu()).abs().max()) if logprobs.numel() else 0.0
