"""RunConfig: everything a training run is told, from a YAML file and dotted overrides.

    config = load_config("configs/demo.yaml", ["training.steps=20", "method.name=opd"])

The classes below are the reference: each field has its meaning, unit and range. An unknown key is an error that names the
nearest known one, and nothing heavy is loaded before the whole configuration is known to be good. Lists and mappings in
overrides are written as YAML: `evaluation.contexts=[plain, crop]`. Text needs no quotes; all that stands after the = is one value.
Numbers are those of YAML 1.2: 010 is ten, and 1_000, 1:30, yes and off are text, which a number or a switch refuses.
"""

import dataclasses
import json
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Annotated

from workbench.data.contexts import check_asked
from workbench.data.grading import RULES, TOLERANCE, check_grading
from workbench.distill.method import Method, Option, check_option
from workbench.errors import ConfigError, cut, show, unknown
from workbench.files.parsing import PLAIN_NAME, dump_yaml, is_plain_name, parse_override, read_yaml
from workbench.files.shipped import find_recipe, locate_all
from workbench.methods import describe_options, load_method, method_module
from workbench.policies.by_domain import is_by_domain
from workbench.types import STUDENT

ENGINES = ("transformers", "vllm")
DTYPES = ("float32", "bfloat16", "float16")
NO_PEERS = (STUDENT, "teacher", "dataset", "optimizer")  # these mean something else where learners are named
_PEER = re.compile(r"[a-z][a-z0-9]*")
OPTIMIZERS = ("adamw", "sgd")
RESUMABLE = ("training.save_every", "training.keep", "training.trackers", "models.device")  # the rest makes another run
_WARMUP = ("training.schedule", "training.warmup_steps")
SCHEDULES = ("constant", "linear", "cosine", "constant_with_warmup")


@dataclass(frozen=True)
class LoraConfig:
    """Train low-rank adapters instead of the whole student (peft). If models.student holds an adapter already, that is trained."""

    rank: Annotated[int, Option("width of the adapters; 0 = no LoRA, all weights are trained", low=0)] = 0
    alpha: Annotated[float, Option("scale of the adapters' output, divided by rank", low=0)] = 16.0
    dropout: Annotated[float, Option("share of adapter inputs dropped while learning", low=0, high=0.9)] = 0.0
    target_modules: Annotated[str, Option("layers that get adapters: all-linear, or a regular expression")] = (
        "all-linear"
    )


@dataclass(frozen=True)
class ModelsConfig:
    """Which models play which role: folders written by save_pretrained, or names on the hub."""

    student: Annotated[str, Option("the model that is trained")] = ""
    teacher: Annotated[
        str | None,
        Option("the frozen teacher; null if the method has none; beside models.teachers, that of all other domains"),
    ] = None
    teachers: Annotated[dict, Option("domain: frozen teacher, where each domain has its own")] = field(
        default_factory=dict
    )
    peers: Annotated[dict, Option("name: model, further students that learn in the same run, on the same prompts")] = (
        field(default_factory=dict)
    )
    device: Annotated[
        str | None,
        Option("where models are: cpu, cuda, cuda:1, mps, ...; null = the accelerator that there is, or else the CPU"),
    ] = None
    dtype: Annotated[str, Option("of the student's weights", choices=DTYPES)] = "float32"
    teacher_dtype: Annotated[
        str | None,
        Option("of the teachers' weights; null = as the student; int8 needs bitsandbytes", choices=(*DTYPES, "int8")),
    ] = None
    offload_teachers: Annotated[bool, Option("teachers lie in host memory and visit the device while they read")] = (
        False
    )
    attention: Annotated[
        str | None,
        Option("transformers' attention implementation: eager, sdpa, flash_attention_2, ...; null = its choice"),
    ] = None
    compile: Annotated[
        str | None, Option("backend of torch.compile for the models: inductor, ...; null = not compiled")
    ] = None
    share_images: Annotated[
        bool, Option("in one step, the same weights look at the same pictures once, where no gradient is asked")
    ] = True
    accept_differences: Annotated[
        bool, Option("go on with a model whose numbers are not those of its own forward pass")
    ] = False
    trust_remote_code: Annotated[bool, Option("run Python code that comes with a model")] = False
    gradient_checkpointing: Annotated[bool, Option("less memory, one more forward of the student")] = False
    lora: LoraConfig = LoraConfig()

    def __post_init__(self) -> None:
        if self.offload_teachers and self.teacher_dtype == "int8":
            raise ConfigError(
                "models.offload_teachers moves weights, and those of models.teacher_dtype=int8 stay where they were made. Choose one, or bfloat16."
            )
        if "/" in (self.attention or "") and not self.trust_remote_code:
            raise ConfigError(
                f'models.attention="{self.attention}" names a kernel of a hub, which is a program. Set models.trust_remote_code=true if you trust it, or choose eager, sdpa or flash_attention_2.'
            )
        for domain, model in self.teachers.items():
            if not (isinstance(domain, str) and isinstance(model, str) and model):
                raise ConfigError(
                    f"models.teachers must be domain: model, both texts; got {show(domain)}: {show(model)}."
                )

    @property
    def learners(self) -> dict[str, str]:
        """Every model that is trained, by the name of its learner."""
        return {STUDENT: self.student, **self.peers}


@dataclass(frozen=True)
class DataConfig:
    """Where examples come from: scenes:SPLIT?count=N, a .jsonl, .json or .parquet file, or hf:NAME?split=S."""

    train: Annotated[str, Option("examples to train on")] = ""
    eval: Annotated[str | None, Option("examples to evaluate on; null = no evaluation")] = None
    probes: Annotated[
        str | None, Option("examples re-scored through the run; null = the first evaluation examples")
    ] = None
    limit: Annotated[int | None, Option("use only the first so many training examples; null = all", low=1)] = None


@dataclass(frozen=True)
class SamplingConfig:
    """How the student writes answers."""

    num_generations: Annotated[int, Option("answers per prompt", low=1)] = 4
    max_completion_length: Annotated[int, Option("longest answer", unit="tokens", low=1)] = 256
    temperature: Annotated[float, Option("0 = always the most likely token", low=0)] = 1.0
    top_p: Annotated[
        float, Option("share of the probability mass that is sampled from, after top_k; 1 = all", low=0.01, high=1)
    ] = 1.0
    top_k: Annotated[int, Option("entries of the vocabulary that are sampled from; 0 = all", low=0)] = 0
    engine: Annotated[
        str, Option("what writes the student's answers; vllm needs the package of that name", choices=ENGINES)
    ] = ENGINES[0]
    engine_memory: Annotated[float, Option("share of the device's memory that vllm takes", low=0.01, high=0.95)] = 0.3
    block: Annotated[
        int, Option("masked diffusion: positions denoised together; 0 = the model's own", unit="tokens", low=0)
    ] = 0
    steps_per_block: Annotated[int, Option("masked diffusion: steps to fill a block; 0 = the model's own", low=0)] = 0


@dataclass(frozen=True)
class TrainingConfig:
    """The optimiser and the step."""

    steps: Annotated[int, Option("optimiser steps", low=1)] = 100
    batch_size: Annotated[int, Option("prompts per step", low=1)] = 8
    micro_batch_size: Annotated[int, Option("sequences per forward pass; 0 = all of a step", low=0)] = 0
    bucket: Annotated[
        bool,
        Option("micro-batches of answers of like length, so that less is padding; answers to one prompt stay together"),
    ] = False
    optimizer: Annotated[
        str, Option("adamw; or sgd, without momentum: it needs a rate hundreds of times as high", choices=OPTIMIZERS)
    ] = OPTIMIZERS[0]
    learning_rate: Annotated[float, Option("highest learning rate", low=0)] = 5e-6
    schedule: Annotated[str, Option("course of the learning rate, as in transformers", choices=SCHEDULES)] = "cosine"
    warmup_steps: Annotated[
        int,
        Option(
            "steps of linear rise: step s of w has s / w of the rate (in transformers (s - 1) / w, so that the first would move nothing)",
            low=0,
        ),
    ] = 0
    weight_decay: Annotated[float, Option("share of a weight lost per step and unit of learning rate", low=0)] = 0.0
    betas: Annotated[list, Option("AdamW's two decay rates")] = field(default_factory=lambda: [0.9, 0.999])
    max_grad_norm: Annotated[float, Option("gradients are scaled down to this norm; 0 = never", low=0)] = 1.0
    mixed_precision: Annotated[
        str,
        Option(
            "precision of forward passes over float32 weights: of sampling, scoring, learning and evaluating alike",
            choices=("no", "bf16"),
        ),
    ] = "no"
    dropout: Annotated[
        bool, Option("the model's own dropout is on while it learns; it then scores otherwise than it sampled")
    ] = False
    update_mask: Annotated[
        str | None,
        Option(
            "file of the coordinates that are trained, all others keep their bits; null = all. Made by workbench geometry RUN --save-mask"
        ),
    ] = None
    save_every: Annotated[int, Option("steps between checkpoints; 0 = only at the end", low=0)] = 50
    keep: Annotated[int, Option("newest checkpoints kept; 0 = all", low=0)] = 2
    trackers: Annotated[list, Option("accelerate's trackers: trackio, tensorboard, wandb, ...")] = field(
        default_factory=list
    )


@dataclass(frozen=True)
class TraceConfig:
    """What is recorded of every step, see docs/traces.md."""

    every: Annotated[int, Option("steps between recorded steps; 1 = all, 0 = none", low=0)] = 1
    alternatives: Annotated[int, Option("most likely tokens kept per view; 0 = none", low=0, high=50)] = 5
    alternatives_of: Annotated[int, Option("sequences per step whose alternatives are kept", low=0)] = 4
    probes: Annotated[int, Option("answers re-scored through the run; 0 = none", low=0)] = 16
    probe_every: Annotated[int, Option("steps between probes", low=1)] = 10


@dataclass(frozen=True)
class EvaluationConfig:
    """Accuracy and confidence of the policies under each context, on data.eval."""

    every: Annotated[int, Option("steps between evaluations; 0 = only before and after", low=0)] = 0
    count: Annotated[int, Option("examples used; 0 = all", low=0)] = 128
    contexts: Annotated[list, Option("contexts shown to the student")] = field(default_factory=lambda: ["plain"])
    teacher: Annotated[bool, Option("evaluate the teacher too, once, before training")] = True
    rule: Annotated[str, Option("how an answer is compared with the right one", choices=RULES)] = RULES[0]
    tolerance: Annotated[
        float, Option("of rule numeric: how far off is right, as a share of the right number", low=0)
    ] = TOLERANCE
    batch_size: Annotated[int, Option("answers written at once", low=1)] = 64

    @property
    def grading(self) -> dict:
        """How answers are compared, as the keywords of `write_rollouts`, `ask` and `grading.grade`."""
        return {"rule": self.rule, "tolerance": self.tolerance}


@dataclass(frozen=True)
class RunConfig:
    """A whole run. `method` is {name: ..., and the method's own options}."""

    name: Annotated[str, Option("name of the run's folder")] = ""
    output_dir: Annotated[str, Option("folder of all runs")] = "runs"
    seed: Annotated[int, Option("of everything random", low=0, high=2**63 - 1)] = 0
    models: ModelsConfig = ModelsConfig()
    data: DataConfig = DataConfig()
    method: Annotated[dict, Option("name and options of the method")] = field(default_factory=dict)
    sampling: SamplingConfig = SamplingConfig()
    training: TrainingConfig = TrainingConfig()
    trace: TraceConfig = TraceConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def __post_init__(self) -> None:
        for key, value in (("models.student", self.models.student), ("data.train", self.data.train)):
            if not value:
                raise ConfigError(f"{key} is missing. Give it in the file or as {key}=...")
        if not is_plain_name(self.name):
            raise ConfigError(f'name "{cut(self.name)}" must be a plain folder name: {PLAIN_NAME}.')
        betas = self.training.betas
        if len(betas) != 2 or not all(isinstance(beta, float) and 0.0 <= beta < 1.0 for beta in betas):
            raise ConfigError(f"training.betas must be two numbers in [0, 1), got {betas}.")
        if self.training.optimizer != "adamw" and betas != TrainingConfig().betas:
            raise ConfigError(
                f"training.betas={betas} are AdamW's, and training.optimizer={self.training.optimizer} has none. Leave them out."
            )
        if self.training.schedule == "constant" and self.training.warmup_steps:
            raise ConfigError(
                f"training.warmup_steps={self.training.warmup_steps} has no effect with training.schedule=constant. "
                "Set training.schedule=constant_with_warmup, or training.warmup_steps=0."
            )
        if self.training.update_mask and self.models.lora.rank:
            raise ConfigError(
                "training.update_mask is of a student's own weights, and models.lora.rank trains adapters instead. Set one of the two to null or 0."
            )
        check_grading(**self.evaluation.grading)
        for context in self.evaluation.contexts:
            check_asked(str(context))
        for name, path in self.models.peers.items():
            if not isinstance(name, str) or not _PEER.fullmatch(name) or name in NO_PEERS or not isinstance(path, str):
                raise ConfigError(
                    f"models.peers must be name: model, names of small letters and digits that are none of "
                    f"{', '.join(NO_PEERS)}; got {show(name)}: {show(path)}."
                )
        needed, learners = self.load_method().min_learners, self.models.learners
        if len(learners) < needed:
            raise ConfigError(
                f"method {self.method['name']} needs {needed} students that learn in one run, and there is "
                f"{', '.join(learners)} alone. Name the others: models.peers={{NAME: MODEL}}."
            )
        compared = self.load_method().min_generations
        if self.sampling.num_generations < compared:
            raise ConfigError(
                f"method {self.method['name']} compares answers to one question, and sampling.num_generations is "
                f"{self.sampling.num_generations}: nothing would be learned of them. It must be at least {compared}."
            )
        teachers = [policy for policy in self.load_method().policies if policy.startswith("teacher")]
        for policy in teachers:
            _, _, domain = policy.partition(":")
            if domain and domain not in self.models.teachers:
                raise ConfigError(
                    unknown(
                        f"method {self.method['name']} needs models.teachers of domain", domain, self.models.teachers
                    )
                )
            if not domain and not self.models.teacher and not self.models.teachers:
                raise ConfigError(
                    f"method {self.method['name']} needs a teacher: set models.teacher, or models.teachers by domain."
                )

    def load_method(self) -> Method:
        """The method with its options."""
        return load_method(self.method["name"], {key: value for key, value in self.method.items() if key != "name"})

    @property
    def teacher_domains(self) -> tuple[str, ...] | None:
        """Domains that an example must be of, or it has no teacher; None = any."""
        several = is_by_domain(self.load_method().policies, self.models.teachers)
        return tuple(self.models.teachers) if several and self.models.teacher is None else None

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return Path(self.output_dir) / self.name

    def to_dict(self) -> dict:
        """Plain values with every default and every option of the method written out."""
        plain = dataclasses.asdict(self)
        plain["method"] = {"name": self.method["name"], **dataclasses.asdict(self.load_method().options)}
        return plain

    def to_yaml(self) -> str:
        return dump_yaml(self.to_dict())


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """The configuration of a YAML file with `key.subkey=value` overrides, checked as a whole.

    An override of method.name starts from that method's own defaults: options written in the file belong to the method
    named there. `base: demo.yaml` in a file: what it does not say is as in that file, which is in the same folder.

    Raises: ConfigError naming the file and the key.
    """
    given = " ".join(overrides)
    where = f"{path} with {given if len(given) <= 200 else show(given)}" if overrides else str(path)
    values = read_recipe(path)
    is_run = (Path(path).parent / "run.json").is_file()
    if is_run and not any(parse_override(text)[0] in _WARMUP for text in overrides):
        values = as_it_ran(values)
    return build_config(override(values, overrides), name=Path(path).stem, where=where)


def as_it_ran(values: dict) -> dict:
    """The values of a run's file as the run acted on them: older versions took warmup_steps with a constant schedule, which
    is refused now, and ignored them.
    """
    training = values.get("training")
    if not isinstance(training, dict) or training.get("schedule") != "constant" or not training.get("warmup_steps"):
        return values
    return {**values, "training": {**training, "warmup_steps": 0}}


def resumed_config(run_dir: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """The configuration that a run goes on with. Raises ConfigError for an override of a key that is not in RESUMABLE."""
    run_dir = Path(run_dir)
    for text in overrides:
        if parse_override(text)[0] not in RESUMABLE:
            raise ConfigError(
                f"{show(text)} would make another run of it. On resume only {', '.join(RESUMABLE)} may change; start a new "
                "run for anything else."
            )
    location = [f"output_dir={json.dumps(str(run_dir.parent))}", f"name={json.dumps(run_dir.name)}"]
    return load_config(run_dir / "config.yaml", [*location, *overrides])


def read_recipe(path: str | Path) -> dict:
    """The values of a run's YAML file laid over those of its `base`. Name and options of another method stay behind."""
    path = find_recipe(path)
    values = read_yaml(path)
    if "base" not in values:
        return values
    base = values.pop("base")
    if not isinstance(base, str) or not (Path(path).parent / base).is_file():
        raise ConfigError(f"{path}: base is {show(base)}; it must be the name of a recipe in the same folder.")
    under = read_yaml(Path(path).parent / base)
    if "base" in under:
        raise ConfigError(f"{path}: its base {base} has a base itself; name {under['base']} or write the values here.")
    under.pop("name", None)
    methods = [values.get("method"), under.get("method")]
    if all(isinstance(method, dict) for method in methods) and methods[0].get("name") not in (
        None,
        methods[1].get("name"),
    ):
        del under["method"]
    return _laid_over(under, values)


def _laid_over(under: dict, over: dict) -> dict:
    both = [key for key in over if isinstance(over[key], dict) and isinstance(under.get(key), dict)]
    return {**under, **over, **{key: _laid_over(under[key], over[key]) for key in both}}


def override(values: dict, overrides: list[str] | tuple[str, ...]) -> dict:
    """A copy of `values` with `key.subkey=value` entries set; values are YAML. A mapping is laid over the one that is there, as a
    recipe is over its base; options of another method do not stay."""
    values = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    parsed = [parse_override(text) for text in overrides]
    for key, value in parsed:
        if key == "method.name" and isinstance(values.get("method"), dict) and values["method"].get("name") != value:
            values["method"] = {"name": value}
    for key, value in parsed:
        *parents, last = key.split(".")
        section = values
        for parent in parents:
            inner = section.get(parent) or {}
            if not isinstance(inner, dict):
                raise ConfigError(
                    f"override {show(key)}: {cut(parent)} is {show(inner)} and no mapping, so it has no keys to set."
                )
            section[parent] = dict(inner)
            section = section[parent]
        before = section.get(last)
        is_other_method = (
            key == "method" and isinstance(value, dict) and value.get("name") not in (None, (before or {}).get("name"))
        )
        both = isinstance(before, dict) and isinstance(value, dict) and not is_other_method
        section[last] = _laid_over(before, value) if both else value
    return values


def build_config(values: dict, *, name: str = "", where: str = "") -> RunConfig:
    """A RunConfig of plain values. `name` is used if they give none; `where` begins the messages."""
    prefix = f"{where}: " if where else ""
    try:
        located = {key: locate_all(values[key]) for key in ("models", "data") if key in values}
        values = {"name": name, **values, **located}
        if not isinstance(values.get("method"), dict) or "name" not in values["method"]:
            raise ConfigError("method.name is missing. Give method: {name: dopd}, or method.name=dopd.")
        method_module(str(values["method"]["name"]))
        return _build(RunConfig, values, "")
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from None


def describe_config(method: str | None = None) -> dict[str, tuple[type | UnionType, object, Option]]:
    """Every dotted key with its type, default and meaning; forms and help texts are made of it."""
    described = dict(_describe(RunConfig, ""))
    described.pop("method")
    names = typing.get_args(Annotated[str, Option("the method")])
    described["method.name"] = (names[0], method, names[1])
    if method is not None:
        described |= {f"method.{key}": value for key, value in describe_options(method).items()}
    return described


def _describe(section: type, prefix: str) -> typing.Iterator[tuple[str, tuple]]:
    hints = typing.get_type_hints(section, include_extras=True)
    for entry in dataclasses.fields(section):
        hint = hints[entry.name]
        if dataclasses.is_dataclass(hint):
            yield from _describe(hint, f"{prefix}{entry.name}.")
        else:
            default = entry.default_factory() if entry.default_factory is not dataclasses.MISSING else entry.default
            yield f"{prefix}{entry.name}", (*typing.get_args(hint)[:1], default, typing.get_args(hint)[1])


def _build(section: type, values: object, prefix: str) -> object:
    if not isinstance(values, dict):
        raise ConfigError(f"{prefix.rstrip('.')} must be a mapping of keys to values, got {show(values)}.")
    hints = typing.get_type_hints(section, include_extras=True)
    built = {}
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(unknown("key", f"{prefix}{key}", [f"{prefix}{name}" for name in hints]))
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            built[key] = _build(hint, value, f"{prefix}{key}.")
        else:
            value_type, option = typing.get_args(hint)
            built[key] = check_option(f"{prefix}{key}", value, value_type, option)
    return section(**built)
