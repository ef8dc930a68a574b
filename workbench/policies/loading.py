"""Load the policies that views name (`student`, `student@ema`, `teacher:ocr`), compatible with each other."""

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.errors import ConfigError, PolicyError
from workbench.policies.adapters import has_adapter, is_adapter, load_adapter_weights
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.policies.by_domain import PolicyByDomain, is_by_domain
from workbench.policies.compatibility import share_vocabulary, unify_eos_tokens
from workbench.policies.diffusion import DiffusionPolicy
from workbench.policies.encoding import PromptEncoder
from workbench.policies.image_size import MAX_PIXELS
from workbench.policies.models import is_masked_lm, load_model, load_model_processor
from workbench.policies.offload import offload
from workbench.policies.proven import prove_all
from workbench.policies.serving.addresses import USUAL, Patience, is_served
from workbench.policies.serving.served import load_served, load_served_encoder
from workbench.types import STUDENT


def load_policy(
    path: str | Path,
    name: str,
    *,
    max_pixels: int | None = MAX_PIXELS,
    limit_key: str = "models.max_pixels",
    system_prompt: str | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    packing: bool = False,
    patience: Patience = USUAL,
    **options: Any,
) -> AutoregressivePolicy:
    """Load a model folder or hub name as a policy, or connect to a served teacher; options as in models.load_model.

    max_pixels     larger images are reduced to it before they are encoded; None = no limit
    limit_key      configuration key of max_pixels, for messages
    system_prompt  of prompts without a system turn; None = that of the chat template
    chat_template_kwargs  arguments of the chat template, such as {"enable_thinking": False}
    packing        put several sequences into a row where that takes fewer tokens, once proven
    patience       limits of requests to a served teacher; dtype, attention, compiler and packing are the server's
    """
    if is_served(path):
        of_runs = {key: options[key] for key in ("device", "trust_remote_code", "image_processor") if key in options}
        policy: AutoregressivePolicy = load_served(path, name, patience=patience, **of_runs)
    else:
        model, processor = load_model(path, name, **options)
        kind = DiffusionPolicy if is_masked_lm(model.config) else AutoregressivePolicy
        policy = kind(model, processor, name)
        policy.source = path
        policy.shortcuts = replace(policy.shortcuts, packing=packing)
    policy.encoder.max_pixels, policy.encoder.limit_key = max_pixels, limit_key
    policy.encoder.set_template(system_prompt, chat_template_kwargs or {}, name)
    return policy


def load_encoder(
    path: str | Path,
    name: str,
    *,
    max_pixels: int | None = MAX_PIXELS,
    limit_key: str = "models.max_pixels",
    system_prompt: str | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    patience: Patience = USUAL,
    **options: Any,
) -> PromptEncoder:
    """Load only what encodes prompts, without weights; arguments as in load_policy."""
    if is_served(path):
        encoder = load_served_encoder(path, name, patience=patience, **options)
    else:
        processor, config = load_model_processor(path, name, **options)
        encoder = PromptEncoder(
            processor, max_prompt_length=getattr(config.get_text_config(), "max_position_embeddings", None)
        )
    encoder.max_pixels, encoder.limit_key = max_pixels, limit_key
    encoder.set_template(system_prompt, chat_template_kwargs or {}, name)
    return encoder


def load_policies(
    names: Collection[str],
    *,
    student: str | Path,
    teacher: str | Path | None = None,
    teachers: dict[str, str] | None = None,
    ema: str | Path | None = None,
    start: str | Path | None = None,
    teacher_options: dict[str, Any] | None = None,
    offload_teachers: bool = False,
    max_completion_length: int = 0,
    max_prompt_length: int | None = None,
    adapter: object | None = None,
    learner: str = STUDENT,
    block: int = 0,
    steps_per_block: int = 0,
    accept_differences: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Load every policy in `names`, and always the student: frozen, with one vocabulary.

    student             folder of the student: the starting model or a checkpoint
    teachers            by domain; "teacher" dispatches to them, and to `teacher` for all other domains. Each is also a
                        policy named after its domains: teacher:color, teacher:math+code, teacher:other
    start               starting model if the student comes from a checkpoint; its frozen copy is student@start
    teacher_options     those of `options` in which teachers differ from the students
    offload_teachers    keep teachers' weights in host memory, and move them to the device for a forward pass
    ema                 folder of student@ema if it comes from a checkpoint; otherwise it is a copy of the student
    adapter             peft configuration for new low-rank adapters, unless the student's folder has adapters
    learner             name of the student among several: "ann" has the policies ann, ann@ema, ann@start
    block               denoising schedule of masked diffusion models, with steps_per_block; 0 = the model's own
    accept_differences  accept models whose numbers differ from their own forward pass
    options             of load_policy: dtype, device, max_pixels, system_prompt, trust_remote_code, empty, mapped, ...

    Raises: PolicyError if a model cannot be loaded, has another vocabulary, or differs from its own forward pass.
    """
    options = {"dtype": "float32", "device": "cpu", **options}
    of_teachers = options | ({"device": "cpu"} if offload_teachers else {}) | (teacher_options or {})
    student_policy = _student(student, learner, adapter, **options)
    policies, by_domain = {STUDENT: student_policy}, None
    for name in names:
        called = name.replace(STUDENT, learner, 1)
        if name == "student@start":
            policies[name] = _start(student_policy, called, start, student, **options)
        elif name == "student@ema":
            policies[name] = _average(student_policy, called, ema, student, **options)
        elif name == "teacher" and is_by_domain(names, teachers or {}):
            members, other = _load_teachers(teachers, teacher, **of_teachers)
            policies |= {policy.name: policy for policy in (*members.values(), other) if policy is not None}
            by_domain = PolicyByDomain(name, members, other)
        elif name.startswith("teacher"):
            policies[name] = _teacher(name, teachers or {}, teacher, **of_teachers)
    for name in (name for name in policies if offload_teachers and name.startswith("teacher")):
        offload(policies[name], options["device"])
    match_decoding(policies, block, steps_per_block, max_completion_length)
    fit_together(policies, accept_differences)
    leave_room(policies.values(), max_completion_length, max_prompt_length)
    return policies if by_domain is None else policies | {by_domain.name: by_domain}


def _student(path: str | Path, name: str, adapter: object | None, **options: Any) -> AutoregressivePolicy:
    """Load the student, with a new adapter unless its folder has one."""
    student = load_policy(path, name, **options)
    if adapter is not None and not has_adapter(student.model):
        student.add_adapter(adapter)
    return student


def fit_together(policies: dict[str, AutoregressivePolicy], accept_differences: bool) -> None:
    """Prove each model, then share vocabulary, end tokens and encoders."""
    prove_all(policies.values(), accept_differences=accept_differences)
    share_vocabulary(policies)
    unify_eos_tokens(policies)
    share_encoders(policies)


def _teacher(name: str, teachers: dict[str, str], other: str | Path | None, **options: Any) -> AutoregressivePolicy:
    """Path of a teacher by policy name: `teacher`, or the one of a domain."""
    _, _, domain = name.partition(":")
    path = teachers.get(domain) if domain else other
    if path is None:
        raise ConfigError(f'no model for the policy "{name}". Set models.teacher or models.teachers.')
    return load_policy(path, name, **options)


def leave_room(
    policies: Iterable[AutoregressivePolicy], max_completion_length: int, max_prompt_length: int | None = None
) -> None:
    """Limit prompts to max_prompt_length, and to the context length minus the completion.

    Raises: ConfigError if nothing is left.
    """
    for encoder in {id(policy.encoder): policy.encoder for policy in policies}.values():
        room = None if encoder.context_length is None else encoder.context_length - max_completion_length
        encoder.max_prompt_length = min((n for n in (room, max_prompt_length) if n is not None), default=None)
        if room is not None and room <= 0:
            raise ConfigError(
                f"sampling.max_completion_length={max_completion_length} leaves no room for a prompt. Expected less "
                f"than the models' {encoder.context_length} tokens. Lower it."
            )


def _load_teachers(
    teachers: dict[str, str], other: str | Path | None, **options: Any
) -> tuple[dict[str, AutoregressivePolicy], AutoregressivePolicy | None]:
    """Load teachers by domain, each model once, and the teacher of all other domains."""
    members = {}
    for path in dict.fromkeys(teachers.values()):
        domains = [domain for domain, domain_path in teachers.items() if domain_path == path]
        members |= dict.fromkeys(domains, load_policy(path, f"teacher:{'+'.join(domains)}", **options))
    ordered = {domain: members[domain] for domain in teachers}
    return ordered, None if other is None else load_policy(other, "teacher:other", **options)


def _start(
    student_policy: AutoregressivePolicy,
    name: str,
    start: str | Path | None,
    student: str | Path,
    *,
    dtype: str,
    **options,
) -> AutoregressivePolicy:
    """Frozen student before its first step. `start` is None if `student` is that model."""
    if not has_adapter(student_policy.model):
        return student_policy.copy(name) if start is None else load_policy(start, name, dtype=dtype, **options)
    if not is_adapter(start or student):
        return student_policy.without_adapter(name)
    frozen = student_policy.beside(name)
    if start is not None:
        load_adapter_weights(frozen.model, start, name)
    return frozen


def _average(
    student_policy: AutoregressivePolicy,
    name: str,
    folder: str | Path | None,
    student: str | Path,
    *,
    dtype: str,
    **options,
) -> AutoregressivePolicy:
    """Moving average of the student, from its `folder` or at its start.

    Its trained weights are float32, since EMA updates are a hundredth of the student's, too small for half precision.
    """
    if has_adapter(student_policy.model):
        return student_policy.copy(name) if folder is None else load_policy(folder, name, dtype=dtype, **options)
    if folder is None and dtype == "float32":
        return student_policy.copy(name)
    return load_policy(folder or student, name, dtype="float32", **options)


def share_encoders(policies: dict[str, AutoregressivePolicy]) -> None:
    """Share one encoder among policies with equal encodings, so that each prompt is encoded once."""
    distinct = []
    for policy in policies.values():
        same = next(
            (encoder for encoder in distinct if encoder is policy.encoder or encoder.encodes_as(policy.encoder)), None
        )
        if same is None:
            distinct.append(policy.encoder)
        else:
            policy.encoder = same


def match_decoding(policies: dict[str, Any], block: int, steps_per_block: int, canvas: int) -> None:
    """Give all policies the student's decoding order: left to right, or one denoising schedule.

    Raises: PolicyError for policies of both kinds; ConfigError for a schedule of left-to-right models.
    """
    student = policies["student"]
    for policy in policies.values():
        if isinstance(policy, DiffusionPolicy) != isinstance(student, DiffusionPolicy):
            raise PolicyError(
                f"{student.name} is {type(student.model).__name__} and {policy.name} is {type(policy.model).__name__}: "
                "one generates by denoising, the other from left to right, and the same token means other things to "
                "them. Choose models of one kind."
            )
    if not isinstance(student, DiffusionPolicy):
        if block or steps_per_block:
            raise ConfigError(
                f"sampling.diffusion_block_size={block} and sampling.steps_per_block={steps_per_block} are for masked "
                f"diffusion models; {type(student.model).__name__} generates from left to right. Remove them."
            )
        return
    student.set_denoising_steps(block, steps_per_block, canvas)
    for policy in policies.values():
        policy.set_denoising_steps(student.block, student.steps_per_block, canvas)
