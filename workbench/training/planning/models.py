"""The models of a run as the run loads them, from their configurations alone: weights have shapes and no numbers."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig
from transformers.initialization import no_init_weights

from workbench.config.schema import LoraConfig, ModelsConfig, RunConfig
from workbench.distill.method import Method
from workbench.errors import ConfigError, PolicyError
from workbench.files.packages import missing_package
from workbench.policies.adapters import add_adapter, base_of
from workbench.policies.by_domain import is_by_domain
from workbench.policies.heads import output_layer
from workbench.policies.hub import refuse_unreachable
from workbench.policies.layer_memory import cast_weights
from workbench.policies.models import DTYPES, INT8, NF4, QUANTIZED, auto_class, is_masked_lm
from workbench.policies.roles import set_trained
from workbench.policies.serving.addresses import is_served
from workbench.training.learner import adapter_config
from workbench.training.planning.depths import Depths, own_depths, with_depths
from workbench.training.planning.dry_run import DryRun
from workbench.types import STUDENT

SERVED_DTYPE = "bfloat16"  # of servers, whose --dtype a run does not know
SAMPLER = "sampler"  # the student's copy on a server


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model's weights and buffers.

    layers   of each decoder layer, which is gathered alone with sharded weights
    root     of everything else: embeddings, head, vision tower
    head     of the output layer, which is part of the root
    linear_layers  of the float32 weights of linear layers in each decoder layer, which autocast casts
    trained_layers, trained_root   of what a learner trains, likewise
    parameters  number of weights
    """

    layers: tuple[int, ...]
    root: int
    head: int
    trained_layers: tuple[int, ...]
    trained_root: int
    parameters: int
    linear_layers: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        return self.root + sum(self.layers)

    @property
    def trained(self) -> int:
        return self.trained_root + sum(self.trained_layers)


@dataclass(frozen=True)
class ModelSpec:
    """A model that a run loads.

    names  of the policies with its weights; the first one loads it
    without_adapter  names whose passes switch its adapters off
    server  address of the process that holds it; empty = the run's own processes
    """

    names: tuple[str, ...]
    path: str
    dtype: str
    lora: LoraConfig | None = None
    without_adapter: frozenset[str] = frozenset()
    server: str = ""

    @property
    def is_teacher(self) -> bool:
        return self.names[0].startswith("teacher")

    @property
    def learns(self) -> bool:
        return STUDENT in self.names


def specs_of(config: RunConfig, method: Method, served_teacher: str | None = None) -> list[ModelSpec]:
    """Models that `build_learner` loads, in its order, and those of servers.

    served_teacher  the model that the servers of teachers hold; "" = leave them out

    Raises: ConfigError if it is missing, or no teacher is served.
    """
    models, start = config.models, config.models.student
    _check_served_teacher(config, served_teacher)
    lora = models.lora if models.lora.rank else None
    specs = [ModelSpec((STUDENT,), start, models.dtype, lora)]
    for name in method.policies:
        if name == "student@start" and lora is not None:
            specs[0] = replace(specs[0], names=(STUDENT, name), without_adapter=frozenset([name]))
        elif name == "student@start":
            specs.append(ModelSpec((name,), start, models.dtype))
        elif name == "student@ema":
            specs.append(ModelSpec((name,), start, models.dtype if lora else "float32", lora))
        elif name.startswith("teacher"):
            dtype = models.teacher_dtype or models.dtype
            for path in _paths_of_teacher(name, models, method):
                if is_served(path) and served_teacher == "":
                    continue
                if is_served(path) and served_teacher is not None:
                    specs.append(ModelSpec((name,), served_teacher, SERVED_DTYPE, server=path))
                else:
                    specs.append(ModelSpec((name,), path, dtype))
    if config.sampling.server is not None:
        specs.append(ModelSpec((SAMPLER,), start, SERVED_DTYPE, server=config.sampling.server))
    return specs


def _check_served_teacher(config: RunConfig, served_teacher: str | None) -> None:
    addresses = config.models.served_teachers
    if addresses and served_teacher is None:
        key, address = next(iter(addresses.items()))
        raise ConfigError(
            f"{key}={address} is served, and a plan asks no server. Name the model that it holds by --served-teacher, "
            "a folder with its config.json."
        )
    if served_teacher and not addresses:
        raise ConfigError(
            f"--served-teacher {served_teacher} is the model behind an address, and models.teacher is "
            f"{config.models.teacher}. Set models.teacher=http://127.0.0.1:8000, or leave --served-teacher out."
        )


def _paths_of_teacher(name: str, models: ModelsConfig, method: Method) -> list[str]:
    """Models of a teacher's name; by domain, each folder once."""
    if name == "teacher" and is_by_domain(method.policies, models.teachers):
        return [*dict.fromkeys(models.teachers.values()), *([models.teacher] if models.teacher else [])]
    domain = name.partition(":")[2]
    return [models.teachers[domain] if domain else models.teacher]


def read_config(path: str | Path, name: str, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Configuration of a model. Raises: PolicyError for a folder without config.json, or a masked diffusion model."""
    base = base_of(path)
    if Path(base).is_dir() and not (Path(base) / "config.json").is_file():
        raise PolicyError(
            f'{name}: folder "{base}" has no config.json. A plan needs the config.json of the model alone: copy it '
            "there, or name a folder written by save_pretrained."
        )
    refuse_unreachable(name, base)
    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
    except (ImportError, OSError, ValueError, KeyError) as error:
        remedy = missing_package(error)
        if remedy is not None:
            raise ConfigError(f'{name}: no configuration of "{path}": {remedy}.') from error
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise PolicyError(
            f'{name}: no configuration of "{path}": {line} Name a folder with the config.json of the model, or a model '
            "on a hub that can be reached."
        ) from error
    if is_masked_lm(config):
        raise PolicyError(
            f'{name}: "{path}" is a masked diffusion model, which a plan does not cover. Plan with a model that '
            "generates from left to right."
        )
    return config


def build(spec: ModelSpec, config: PretrainedConfig, models: ModelsConfig, run: DryRun) -> nn.Module:
    """Build a model without numbers, frozen and in evaluation mode, with new adapters if it has any.

    Raises: PolicyError if transformers cannot build it.
    """
    attention = models.attn_implementation
    if attention == "flash_attention_2":
        attention = "sdpa"  # keeps as much memory; flash kernels need a GPU
    options = {} if attention is None else {"attn_implementation": attention}
    with run, no_init_weights():
        try:
            model = auto_class(config).from_config(config, dtype=DTYPES[spec.dtype], **options)
        except (ValueError, KeyError, ImportError) as error:
            remedy = missing_package(error)
            if remedy is not None:
                raise ConfigError(f'{spec.names[0]}: cannot build "{spec.path}": {remedy}.') from error
            raise PolicyError(
                f'{spec.names[0]}: transformers cannot build "{spec.path}": {error}. Correct its config.json, or plan '
                "with another model."
            ) from error
        model.tie_weights()
        model = model.requires_grad_(False).eval()
        if spec.lora is not None:
            with _modules_stay():
                add_adapter(model, adapter_config(spec.lora))
            model.requires_grad_(False)
    run.forget(model)
    return model


@contextlib.contextmanager
def _modules_stay() -> Iterator[None]:
    """peft moves new adapters to the device of their layer and to float32, where those of a dry run are already."""
    move = nn.Module.to
    nn.Module.to = lambda module, *_, **__: module
    try:
        yield
    finally:
        nn.Module.to = move


def depths_of(spec: ModelSpec, models: ModelsConfig) -> Depths:
    """Numbers of layers of a model that may be run in fewer."""
    return own_depths(read_config(spec.path, spec.names[0], trust_remote_code=models.trust_remote_code))


def build_shallow(spec: ModelSpec, models: ModelsConfig, depths: Depths, run: DryRun) -> nn.Module:
    """Build a model with these numbers of layers."""
    config = read_config(spec.path, spec.names[0], trust_remote_code=models.trust_remote_code)
    return build(spec, with_depths(config, depths), models, run)


@lru_cache(maxsize=32)
def _sizes(
    spec: ModelSpec, train: tuple[str, ...], freeze_embeddings: bool, attention: str | None, trust_remote_code: bool
) -> Sizes:
    models = ModelsConfig(
        attn_implementation=attention,
        trust_remote_code=trust_remote_code,
        lora=spec.lora or LoraConfig(),
    )
    model = build_shallow(spec, models, Depths(), DryRun())
    if spec.learns:
        set_trained(model, train, (), STUDENT, freeze_embeddings=freeze_embeddings)
    trained = {id(weight) for weight in model.parameters() if weight.requires_grad}
    quantized = _quantized(model) if spec.dtype in QUANTIZED else frozenset()
    sizes = {id(weight): _bytes(weight, spec.dtype * (id(weight) in quantized)) for weight in _tensors(model)}
    layers = getattr(model.get_decoder(), "layers", None)
    of_layers = [{id(weight) for weight in _tensors(layer)} for layer in layers or ()]
    root = sizes.keys() - frozenset().union(*of_layers)
    return Sizes(
        tuple(sum(sizes[key] for key in layer) for layer in of_layers),
        sum(sizes[key] for key in root),
        sum(sizes[id(weight)] for weight in output_layer(model).parameters()),
        tuple(sum(sizes[key] for key in layer & trained) for layer in of_layers),
        sum(sizes[key] for key in root & trained),
        sum(weight.numel() for weight in model.parameters()),
        tuple(sum(weight.nbytes for _, _, weight in cast_weights(layer)) for layer in layers or ()),
    )


def sizes_of(spec: ModelSpec, models: ModelsConfig) -> Sizes:
    """Bytes of a model in its own depth."""
    return _sizes(
        replace(spec, without_adapter=frozenset(), server=""),
        tuple(models.train),
        models.freeze_embeddings,
        models.attn_implementation,
        models.trust_remote_code,
    )


def _quantized(model: nn.Module) -> frozenset[int]:
    """Weights that bitsandbytes quantizes: of all linear layers but the head and those of adapters."""
    head = output_layer(model)
    return frozenset(
        id(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and "lora_" not in name
    )


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _bytes(weight: Tensor, dtype: str = "") -> int:
    """Bytes of a weight. In 8 bits with a float32 scale per row; in 4 with one of 8 bits per 64 weights."""
    if dtype == INT8:
        return weight.numel() + 4 * weight.shape[0]
    if dtype == NF4:
        return weight.numel() // 2 + weight.numel() // 64 + 4 * (weight.numel() // (64 * 256))
    return weight.numel() * weight.element_size()


def require_planned(config: RunConfig) -> None:
    """Raise ConfigError for an option whose memory a plan does not know."""
    unknown = {
        "models.peers": ", ".join(config.models.peers),
    }
    for key, value in unknown.items():
        if value:
            raise ConfigError(f"a plan does not cover {key}={value}. Leave it out to plan the run without it.")
