"""Configuration of a run: schema, YAML files and dotted overrides.

    config = load_config("configs/demo.yaml", ["training.steps=20", "method.name=opd"])

The classes below are the reference: each field has its meaning, unit and range. An unknown key is an error that
suggests the nearest key. The whole configuration is validated before a model or dataset is loaded. Lists and mappings
in overrides are YAML: `evaluation.contexts=[plain, crop]`. Text needs no quotes: everything after the = is one value.
Numbers follow YAML 1.2: 010 is ten; 1_000, 1:30, yes and off are text, so fields for numbers and booleans reject them.
"""

import dataclasses
import json
import math
import re
import typing
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Annotated, Any

from workbench.config.evaluation import EvaluationConfig, EvaluationSet, parse_evaluation_sets
from workbench.config.foreign import refuse_foreign
from workbench.config.renamed import refuse_renamed, refuse_renamed_key, upgrade_config
from workbench.config.sections import build_section
from workbench.data.contexts import has_text_evidence, is_privileged, require_promptable
from workbench.data.grading import check_grading
from workbench.data.privileged_template import check_template
from workbench.data.source_list import Source, parse_sources
from workbench.distill.method import Method, Option
from workbench.distill.supervised_part import PARTS, supervise_part
from workbench.errors import ConfigError, cut, show, unknown
from workbench.files.parsing import PLAIN_NAME, dump_yaml, is_plain_name, parse_override, read_yaml
from workbench.files.shipped import find_recipe, locate_all
from workbench.methods import describe_options, load_method, method_module
from workbench.policies import SamplingOptions
from workbench.policies.by_domain import is_by_domain
from workbench.policies.image_size import MAX_PIXELS
from workbench.policies.role_names import ROLES
from workbench.policies.serving.addresses import USUAL, Patience, is_served, split_addresses
from workbench.types import PRIVILEGED, STUDENT, VISIBLE

VLLM = "vllm"
BACKENDS = ("transformers", VLLM)
DTYPES = ("float32", "bfloat16", "float16")
NO_PEERS = (STUDENT, "teacher", "dataset", "optimizer")  # reserved: they name other parts of a run
_PEER = re.compile(r"[a-z][a-z0-9]*")
_TEACHERS_TOO = ("dtype", "max_pixels", "image_processor", "system_prompt", "chat_template_kwargs")  # teacher_...
OPTIMIZERS = ("adamw", "adamw_8bit", "sgd")
QUANTIZED = ("int8", "nf4")  # data types by bitsandbytes
RESUMABLE = (
    "training.save_every",
    "training.save_total_limit",
    "training.report_to",
    "models.device",
    "models.teacher_timeout",
    "models.teacher_wait",
    "sampling.server",
    "sampling.server_timeout",
    "sampling.server_wait",
)  # every other key defines the run
_LENGTHS = {"training.steps": "training.epochs", "training.epochs": "training.steps"}  # each replaces the other
_WARMUP = ("training.schedule", "training.warmup_steps")
_STOPPING = ("evaluation.early_stopping_patience", "evaluation.metric_for_best_model")
SCHEDULES = ("constant", "linear", "cosine", "constant_with_warmup")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (peft), trained instead of all weights. An adapter in models.student is trained further."""

    rank: Annotated[int, Option("Rank of the adapters. 0 = no LoRA: train all weights", low=0)] = 0
    alpha: Annotated[float, Option("Scale of the adapters' output: alpha / rank", low=0)] = 16.0
    dropout: Annotated[float, Option("Dropout on the adapters' inputs during training", low=0, high=0.9)] = 0.0
    target_modules: Annotated[
        str,
        Option(
            "Layers that get adapters: all-linear, which includes those of the vision tower, or a regular "
            "expression, e.g. .*language_model.*proj"
        ),
    ] = "all-linear"


@dataclass(frozen=True)
class ModelsConfig:
    """Models by role: folders written by save_pretrained, or names on the hub."""

    student: Annotated[str, Option("Model to train")] = ""
    teacher: Annotated[
        str | None,
        Option(
            "Frozen teacher: a model, or where `workbench teacher` serves it, as in http://host:8000 (several servers "
            "with commas). null = the method needs none. With models.teachers: the teacher of all other domains"
        ),
    ] = None
    teachers: Annotated[dict, Option("Frozen teachers by domain, as domain: model")] = field(default_factory=dict)
    teacher_timeout: Annotated[
        float, Option("A served teacher that does not answer for so long hangs", unit="s", low=0.1)
    ] = USUAL.timeout
    teacher_wait: Annotated[
        float, Option("Time in which a served teacher that fails may come back", unit="s", low=0)
    ] = USUAL.wait
    peers: Annotated[
        dict, Option("Further students, as name: model. They train in the same run on the same prompts")
    ] = field(default_factory=dict)
    train: Annotated[
        list,
        Option(f"Parts of the students to train, of {', '.join(ROLES)}. [] = all. The others stay as they are"),
    ] = field(default_factory=list)
    freeze_embeddings: Annotated[
        bool, Option("Leave the embeddings of tokens, and a head that is tied to them, as they are")
    ] = False
    device: Annotated[
        str | None,
        Option("Device for all models, e.g. cuda:1. null = first available accelerator, otherwise CPU"),
    ] = None
    dtype: Annotated[
        str,
        Option(
            "Data type of the student's weights. nf4 (4 bits, with models.lora.rank: QLoRA) needs bitsandbytes",
            choices=(*DTYPES, "nf4"),
        ),
    ] = "float32"
    teacher_dtype: Annotated[
        str | None,
        Option(
            "Data type of the teachers' weights. null = same as the student. int8 and nf4 need bitsandbytes",
            choices=(*DTYPES, *QUANTIZED),
        ),
    ] = None
    max_pixels: Annotated[
        int | None,
        Option(
            "Largest image that models see, by area; larger ones are reduced, then resized by the model's processor "
            "(models.image_processor). null = no limit",
            unit="pixels",
            low=784,
        ),
    ] = MAX_PIXELS
    teacher_max_pixels: Annotated[
        int | None,
        Option("Largest image that teachers see, by area. null = same as max_pixels", unit="pixels", low=784),
    ] = None
    image_processor: Annotated[
        dict,
        Option("Options of the students' image processor in its own terms, e.g. {do_image_splitting: false}"),
    ] = field(default_factory=dict)
    teacher_image_processor: Annotated[
        dict | None,
        Option("Options of the teachers' image processors in their own terms. null = same as image_processor"),
    ] = None
    system_prompt: Annotated[
        str | None,
        Option("System prompt of every question without one of its own. null = that of the chat template"),
    ] = None
    teacher_system_prompt: Annotated[str | None, Option("The same for teachers. null = same as system_prompt")] = None
    chat_template_kwargs: Annotated[dict, Option("Arguments of the chat template, e.g. {enable_thinking: false}")] = (
        field(default_factory=dict)
    )
    teacher_chat_template_kwargs: Annotated[
        dict | None, Option("The same for teachers. null = same as chat_template_kwargs")
    ] = None
    offload_teachers: Annotated[
        bool, Option("Keep teachers in host memory and move each to the device only for its forward passes")
    ] = False
    attn_implementation: Annotated[
        str | None,
        Option("Attention implementation of transformers, e.g. eager, sdpa or flash_attention_2. null = its default"),
    ] = None
    compile: Annotated[str | None, Option("Backend of torch.compile, e.g. inductor. null = do not compile")] = None
    cache_image_features: Annotated[
        bool, Option("Encode each image once per step for all forward passes of the same weights without gradient")
    ] = True
    accept_differences: Annotated[
        bool, Option("Continue although the model's scores differ from those of its own forward pass")
    ] = False
    trust_remote_code: Annotated[bool, Option("Run Python code from the model folder or repository")] = False
    gradient_checkpointing: Annotated[
        bool, Option("Recompute activations in the backward pass: less memory, one more forward pass of the student")
    ] = False
    lora: LoraConfig = LoraConfig()

    def __post_init__(self) -> None:
        of_teacher = self.teacher_dtype or self.dtype
        if self.offload_teachers and of_teacher in QUANTIZED:
            raise ConfigError(
                f"models.offload_teachers=true cannot move the teachers' weights of {of_teacher}. Set "
                "models.offload_teachers=false or models.teacher_dtype=bfloat16."
            )
        if self.dtype == "nf4" and not self.lora.rank and not (Path(self.student) / "adapter_config.json").is_file():
            raise ConfigError(
                "models.dtype=nf4 holds frozen weights, and models.lora.rank=0 would train them. Set models.lora.rank, "
                "e.g. to 16, or models.dtype=bfloat16."
            )
        if "/" in (self.attn_implementation or "") and not self.trust_remote_code:
            raise ConfigError(
                f'models.attn_implementation="{self.attn_implementation}" would load a kernel from a hub and run its '
                "code. Set models.trust_remote_code=true if you trust it, or choose eager, sdpa or flash_attention_2."
            )
        self._check_served()
        for domain, model in self.teachers.items():
            if not (isinstance(domain, str) and isinstance(model, str) and model):
                raise ConfigError(
                    f"models.teachers must map domain names to models, both texts; got {show(domain)}: {show(model)}."
                )

    def _check_served(self) -> None:
        """Raise ConfigError for addresses that are none, and for keys that are options of a server."""
        for key, model in self.served_teachers.items():
            split_addresses(model, key)
            for option, value in (("teacher_dtype", self.teacher_dtype), ("offload_teachers", self.offload_teachers)):
                if value:
                    raise ConfigError(
                        f"models.{option}={value} is for a teacher in the run's own process, and {key} is served. "
                        "Remove it; `workbench teacher` has --dtype and --device."
                    )
        for key, model in {"models.student": self.student, **self.peers}.items():
            if is_served(model):
                raise ConfigError(f"{key}={model} is the address of a server, and students train here. Name a model.")

    @property
    def student_options(self) -> dict[str, Any]:
        """Options by which students are loaded, for policies.loading.load_policies."""
        names = (*_TEACHERS_TOO, "trust_remote_code")
        return {name: getattr(self, name) for name in names}

    @property
    def teacher_options(self) -> dict[str, Any]:
        """Options of teachers that differ from those of students."""
        options = {name: getattr(self, f"teacher_{name}") for name in _TEACHERS_TOO}
        options["limit_key"] = None if self.teacher_max_pixels is None else "models.teacher_max_pixels"
        if self.served_teachers:
            options["patience"] = Patience(self.teacher_timeout, self.teacher_wait)
        return {name: value for name, value in options.items() if value is not None}

    @property
    def served_teachers(self) -> dict[str, str]:
        """Teachers that servers hold, by configuration key."""
        models = {"models.teacher": self.teacher} | {f"models.teachers.{key}": at for key, at in self.teachers.items()}
        return {key: model for key, model in models.items() if is_served(model)}

    @property
    def learners(self) -> dict[str, str]:
        """Trained models by learner name."""
        return {STUDENT: self.student, **self.peers}


@dataclass(frozen=True)
class DataConfig:
    """Sources of examples: scenes:SPLIT?count=N, a .jsonl, .json or .parquet file, or hf:NAME?split=S."""

    train: Annotated[
        str | list,
        Option(
            "Training examples: a source, or a list of sources and {path, weight, domain, name}. Steps draw from each "
            "in proportion to weight (1); domain is that of its rows without one"
        ),
    ] = ""
    shuffle: Annotated[bool, Option("Shuffle the examples anew in each epoch. false = in the order of the data")] = True
    eval: Annotated[
        str | dict | None,
        Option(
            "Evaluation examples: a source, or several by name, as NAME: source or NAME: {path, contexts, grader, "
            "tolerance, max_examples}. null = no evaluation"
        ),
    ] = None
    held_out: Annotated[
        float,
        Option(
            "Share of the training examples that is evaluated instead of trained on, in place of data.eval. Rows of "
            "one image stay together. 0 = none",
            low=0,
            high=0.9,
        ),
    ] = 0.0
    probes: Annotated[
        str | None, Option("Examples re-scored throughout the run. null = the first evaluation examples")
    ] = None
    max_prompt_length: Annotated[
        int | None,
        Option(
            "Examples with a longer prompt in any view are skipped and counted. null = the rest of the models' context",
            unit="tokens",
            low=1,
        ),
    ] = None
    privileged_template: Annotated[
        str | None,
        Option(
            "What privileged views read instead of the question with its evidence below, as in 'Question: {question} "
            "Source: {evidence}'. null = question and evidence, a line each"
        ),
    ] = None
    max_train_examples: Annotated[
        int | None, Option("Use only the first N training examples of each source. null = all", low=1)
    ] = None

    def __post_init__(self) -> None:
        parse_sources(self.train)
        if self.held_out and self.eval is not None:
            raise ConfigError(
                f"data.held_out={self.held_out:g} and data.eval both name evaluation examples. Set data.eval=null, or "
                "data.held_out=0."
            )

    @property
    def evaluates(self) -> bool:
        """Whether there are evaluation examples."""
        return self.eval is not None or self.held_out > 0

    @property
    def train_sources(self) -> tuple[Source, ...]:
        """Sources of the training examples, at least one."""
        return parse_sources(self.train)

    @property
    def train_text(self) -> str:
        """The paths of the training examples, for messages."""
        return ", ".join(source.path for source in self.train_sources)


@dataclass(frozen=True)
class SamplingConfig:
    """Sampling of the student's answers."""

    num_generations: Annotated[int, Option("Answers sampled per prompt", low=1)] = 4
    max_completion_length: Annotated[int, Option("Maximum length of an answer", unit="tokens", low=1)] = 256
    temperature: Annotated[float, Option("Sampling temperature. 0 = greedy decoding", low=0)] = 1.0
    top_p: Annotated[
        float, Option("Probability mass to sample from (nucleus sampling), after top_k. 1 = all", low=0.01, high=1)
    ] = 1.0
    top_k: Annotated[int, Option("Number of most likely tokens to sample from. 0 = all", low=0)] = 0
    backend: Annotated[
        str,
        Option(
            "Backend that samples the student's answers. vllm needs the package vllm; each process has its own, which "
            "holds all weights, sharded or not",
            choices=BACKENDS,
        ),
    ] = BACKENDS[0]
    backend_memory: Annotated[float, Option("Fraction of the device's memory for vLLM", low=0.01, high=0.95)] = 0.3
    server: Annotated[
        str | None,
        Option(
            "Where `workbench sampler` or `vllm serve` samples in the student's place, as in http://host:8001. null = "
            "in this process"
        ),
    ] = None
    server_timeout: Annotated[float, Option("A sampler that does not answer for so long hangs", unit="s", low=0.1)] = (
        USUAL.timeout
    )
    server_wait: Annotated[float, Option("Time in which a sampler that fails may come back", unit="s", low=0)] = (
        USUAL.wait
    )
    ahead: Annotated[
        int,
        Option(
            "Steps that a server samples ahead. 1 = it samples the next step's answers while this step learns, so by "
            "weights of one update earlier. Needs sampling.server. 0 = a step learns from answers of its own weights",
            low=0,
            high=1,
        ),
    ] = 0
    ratio_clip: Annotated[
        float,
        Option(
            "Truncated importance sampling: each token's loss counts min(p_now / p_when_sampled, ratio_clip) times. 2 "
            "is usual. 0 = off",
            low=0,
        ),
    ] = 0.0
    stop_strings: Annotated[
        list, Option("Texts that end an answer, beside the end token; they are the last part of the answer")
    ] = field(default_factory=list)
    diffusion_block_size: Annotated[
        int, Option("Masked diffusion: positions denoised together. 0 = the model's default", unit="tokens", low=0)
    ] = 0
    steps_per_block: Annotated[
        int, Option("Masked diffusion: denoising steps per block. 0 = the model's default", low=0)
    ] = 0

    def __post_init__(self) -> None:
        for text in self.stop_strings:
            if not isinstance(text, str) or not text:
                raise ConfigError(f"sampling.stop_strings must be a list of texts, none empty; got {show(text)}.")
        if self.server is not None:
            split_addresses(self.server, "sampling.server")
            if self.backend != BACKENDS[0]:
                raise ConfigError(
                    f"sampling.server={self.server} and sampling.backend={self.backend} both sample. Remove one."
                )
        if self.ahead and self.server is None:
            raise ConfigError(
                f"sampling.ahead={self.ahead} without sampling.server. This process would sample and learn one after "
                "the other all the same. Start `workbench sampler` and set sampling.server, or set sampling.ahead=0."
            )
        if self.stop_strings and self.backend != BACKENDS[0]:
            raise ConfigError(
                f"sampling.stop_strings is not supported by sampling.backend={self.backend}. Choose "
                f"sampling.backend={BACKENDS[0]}, or remove the stop strings."
            )

    @property
    def options(self) -> SamplingOptions:
        """Options of the student's sampler."""
        return SamplingOptions(
            self.max_completion_length,
            self.temperature,
            self.top_p,
            self.top_k,
            stop_strings=tuple(self.stop_strings),
        )


@dataclass(frozen=True)
class TrainingConfig:
    """Optimizer and training step."""

    steps: Annotated[int, Option("Number of optimizer steps. 0 = as training.epochs needs", low=0)] = 100
    epochs: Annotated[
        float,
        Option("Passes over the training examples, in place of training.steps. 0 = as training.steps says", low=0),
    ] = 0.0
    batch_size: Annotated[int, Option("Prompts per step", low=1)] = 8
    micro_batch_size: Annotated[int, Option("Sequences per forward pass. 0 = all of a step", low=0)] = 0
    tokens_per_micro_batch: Annotated[
        int,
        Option(
            "Tokens per forward pass, padding included, in place of micro_batch_size. Answers of similar length share "
            "a pass; a longer answer has its own. 0 = by micro_batch_size",
            unit="tokens",
            low=0,
        ),
    ] = 0
    packing: Annotated[
        bool,
        Option(
            "Put several sequences into a row where that takes fewer tokens than padding. Each model is tested for it "
            "when it is loaded"
        ),
    ] = False
    group_by_length: Annotated[
        bool,
        Option(
            "Group answers of similar length into micro-batches to reduce padding. Answers to one prompt stay together"
        ),
    ] = False
    optimizer: Annotated[
        str,
        Option(
            "Optimizer. adamw_8bit keeps AdamW's moments in 8 bits (bitsandbytes). sgd has no momentum and needs a "
            "learning rate hundreds of times as high",
            choices=OPTIMIZERS,
        ),
    ] = OPTIMIZERS[0]
    learning_rate: Annotated[float, Option("Peak learning rate", low=0)] = 5e-6
    learning_rates: Annotated[
        dict,
        Option(f"Peak learning rates of parts of the students, by {', '.join(ROLES)}; others use learning_rate"),
    ] = field(default_factory=dict)
    schedule: Annotated[str, Option("Learning rate schedule, as in transformers", choices=SCHEDULES)] = "cosine"
    warmup_steps: Annotated[
        int,
        Option(
            "Steps of linear warmup: step s of w uses s / w of the peak rate. In transformers it is (s - 1) / w, "
            "so the first step would change nothing",
            low=0,
        ),
    ] = 0
    weight_decay: Annotated[float, Option("Weight decay, multiplied by the learning rate at each step", low=0)] = 0.0
    betas: Annotated[list, Option("AdamW's two decay rates")] = field(default_factory=lambda: [0.9, 0.999])
    max_grad_norm: Annotated[float, Option("Clip gradients to this norm. 0 = do not clip", low=0)] = 1.0
    mixed_precision: Annotated[
        str,
        Option(
            "Precision of forward passes with float32 weights, in sampling, scoring, training and evaluation",
            choices=("no", "bf16"),
        ),
    ] = "no"
    supervise: Annotated[
        str, Option("Part of each answer that has losses: all, its thinking, or the answer after it", choices=PARTS)
    ] = PARTS[0]
    think_markers: Annotated[list, Option("Texts that open and close the thinking; they belong to it")] = field(
        default_factory=lambda: ["<think>", "</think>"]
    )
    dropout: Annotated[
        bool,
        Option(
            "Enable the model's own dropout during training. Its training scores then differ from its sampling scores"
        ),
    ] = False
    update_mask: Annotated[
        str | None,
        Option(
            "Safetensors mask of trainable weights; all others stay bit-identical. null = train all. "
            "Made by workbench geometry RUN --save-mask"
        ),
    ] = None
    save_every: Annotated[int, Option("Steps between checkpoints. 0 = only at the end", low=0)] = 50
    save_total_limit: Annotated[int, Option("Number of newest checkpoints to keep. 0 = all", low=0)] = 2
    report_to: Annotated[
        list,
        Option(
            "Trackers of accelerate to log to: trackio, tensorboard, wandb, ... The last two, and clearml, get a few "
            "answers of every evaluation too"
        ),
    ] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.tokens_per_micro_batch:
            return
        for key in ("micro_batch_size", "group_by_length"):
            if getattr(self, key):
                raise ConfigError(
                    f"training.tokens_per_micro_batch={self.tokens_per_micro_batch} and training.{key}="
                    f"{show(getattr(self, key))} both divide a step into micro-batches. Set one of them, and leave the "
                    "other at its default."
                )


@dataclass(frozen=True)
class TraceConfig:
    """Records of each step; see docs/traces.md."""

    every: Annotated[int, Option("Record every N-th step. 1 = all, 0 = none", low=0)] = 1
    top_k: Annotated[
        int, Option("Number of most likely tokens to store per position and view. 0 = none", low=0, high=50)
    ] = 5
    top_k_rollouts: Annotated[int, Option("Sequences per step for which these tokens are stored", low=0)] = 4
    probes: Annotated[int, Option("Number of answers to re-score throughout the run. 0 = none", low=0)] = 16
    probe_every: Annotated[int, Option("Steps between probes", low=1)] = 10


@dataclass(frozen=True)
class RunConfig:
    """Configuration of a whole run. `method` is {name: ..., and the method's options}."""

    name: Annotated[str, Option("Name of the run and of its folder")] = ""
    output_dir: Annotated[str, Option("Folder that holds all runs")] = "runs"
    seed: Annotated[int, Option("Seed of everything random", low=0, high=2**63 - 1)] = 0
    models: ModelsConfig = ModelsConfig()
    data: DataConfig = DataConfig()
    method: Annotated[dict, Option("Name and options of the method")] = field(default_factory=dict)
    sampling: SamplingConfig = SamplingConfig()
    training: TrainingConfig = TrainingConfig()
    trace: TraceConfig = TraceConfig()
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        for key, value in (("models.student", self.models.student), ("data.train", self.data.train)):
            if not value:
                raise ConfigError(f"{key} is missing. Set it in the file or as {key}=...")
        if not is_plain_name(self.name):
            raise ConfigError(f'name "{cut(self.name)}" must be a plain folder name: {PLAIN_NAME}.')
        betas = self.training.betas
        if len(betas) != 2 or not all(isinstance(beta, float) and 0.0 <= beta < 1.0 for beta in betas):
            raise ConfigError(f"training.betas must be two numbers in [0, 1), got {betas}.")
        if self.training.optimizer == "sgd" and betas != TrainingConfig().betas:
            raise ConfigError(
                f"training.betas={betas} does not apply to training.optimizer=sgd. Remove training.betas."
            )
        markers = self.training.think_markers
        if len(set(map(str, markers))) != 2 or not all(isinstance(text, str) and text for text in markers):
            raise ConfigError(
                f"training.think_markers must be two different texts, such as [<think>, </think>], got {markers}."
            )
        if bool(self.training.steps) == bool(self.training.epochs):
            raise ConfigError(
                "training.steps must be at least 1, got 0, unless training.epochs is set. Set one of them."
                if not self.training.steps
                else f"training.steps={self.training.steps} and training.epochs={self.training.epochs:g} both set the "
                "length. Set one of them to 0."
            )
        if self.training.schedule == "constant" and self.training.warmup_steps:
            raise ConfigError(
                f"training.warmup_steps={self.training.warmup_steps} has no effect with training.schedule=constant. "
                "Set training.schedule=constant_with_warmup, or training.warmup_steps=0."
            )
        self._check_roles()
        if self.training.update_mask and self.training.optimizer == "adamw_8bit":
            raise ConfigError(
                "training.update_mask needs moments of every weight, and training.optimizer=adamw_8bit keeps blocks. "
                "Set training.optimizer=adamw, or training.update_mask=null."
            )
        if self.models.dtype in QUANTIZED and self.sampling.backend == "vllm":
            raise ConfigError(
                f"sampling.backend=vllm takes weights that models.dtype={self.models.dtype} has not. Set "
                "sampling.backend=transformers, or models.dtype=bfloat16."
            )
        if self.training.update_mask and self.models.lora.rank:
            raise ConfigError(
                "training.update_mask selects weights of the student, but models.lora.rank trains adapters instead. "
                "Set training.update_mask=null or models.lora.rank=0."
            )
        check_grading(**self.evaluation.grading)
        for context in self.evaluation.contexts:
            require_promptable(str(context))
        self._check_early_stopping()
        for name, path in self.models.peers.items():
            if not isinstance(name, str) or not _PEER.fullmatch(name) or name in NO_PEERS or not isinstance(path, str):
                raise ConfigError(
                    "models.peers must map names of lowercase letters and digits to models; got "
                    f"{show(name)}: {show(path)}. Reserved names: {', '.join(NO_PEERS)}."
                )
        self._check_method()

    def _check_early_stopping(self) -> None:
        """Raise ConfigError if early stopping lacks evaluations, or its metric cannot be one of theirs."""
        sets, evaluation = self.evaluation_sets, self.evaluation
        if not evaluation.early_stopping_patience:
            if evaluation.metric_for_best_model:
                raise ConfigError(
                    f"evaluation.metric_for_best_model={evaluation.metric_for_best_model} has no effect without early "
                    "stopping. Set evaluation.early_stopping_patience above 0, or remove the metric."
                )
            return
        if not sets or not evaluation.every:
            raise ConfigError(
                f"evaluation.early_stopping_patience={evaluation.early_stopping_patience} needs evaluations during the "
                "run. Set evaluation.every, and data.eval or data.held_out."
            )
        name, _, rest = self.metric_for_best_model.partition("/")
        policy, _, rest = rest.partition("/")
        context, _, group = rest.partition("/")
        names = [chosen.name for chosen in sets if chosen.name]
        of_group = [chosen for chosen in sets if group not in names or chosen.name == group]
        for what, value, allowed in (
            ("metric", name, ("accuracy", "calibration_error")),
            ("student", policy, self.models.learners),
            ("group", group, ("all", VISIBLE, PRIVILEGED, *names)),
            ("context", context, [context for chosen in of_group for context in chosen.contexts]),
        ):
            if value not in allowed:
                raise ConfigError(
                    unknown(f"evaluation.metric_for_best_model={self.metric_for_best_model}: {what}", value, allowed)
                    + " Expected METRIC/STUDENT/CONTEXT/GROUP, as in accuracy/student/plain/all."
                )

    @property
    def metric_for_best_model(self) -> str:
        """Metric of early stopping."""
        sets = self.evaluation_sets
        first = sets[0].contexts[0] if sets else "plain"
        return self.evaluation.metric_for_best_model or f"accuracy/{STUDENT}/{first}/all"

    def _check_method(self) -> None:
        """Raise ConfigError if models or samples are too few for the method, or its prompts have no such template."""
        if self.data.privileged_template is not None:
            privileged = [context for context in self.load_method().contexts if is_privileged(context)]
            check_template(self.data.privileged_template, map(has_text_evidence, privileged))
        needed, learners = self.load_method().min_learners, self.models.learners
        if len(learners) < needed:
            raise ConfigError(
                f"method {self.method['name']} trains {needed} students in one run; got {', '.join(learners)}. "
                "Add models.peers={NAME: MODEL}."
            )
        compared = self.load_method().min_generations
        if self.sampling.num_generations < compared:
            raise ConfigError(
                f"method {self.method['name']} needs at least {compared} answers per prompt to compare; got "
                f"sampling.num_generations={self.sampling.num_generations}."
            )
        teachers = [policy for policy in self.load_method().policies if policy.startswith("teacher")]
        for policy in teachers:
            _, _, domain = policy.partition(":")
            if domain and domain not in self.models.teachers:
                raise ConfigError(
                    f'method {self.method["name"]} needs a teacher of domain "{domain}"; models.teachers has '
                    f"{', '.join(self.models.teachers) or 'none'}. Set models.teachers.{domain}=FOLDER."
                )
            if not domain and not self.models.teacher and not self.models.teachers:
                raise ConfigError(
                    f"method {self.method['name']} needs a teacher: set models.teacher, or models.teachers by domain."
                )

    @property
    def forward_dtype(self) -> str:
        """Precision of the students' forward passes: float32, bfloat16 or float16."""
        in_bfloat16 = self.training.mixed_precision == "bf16" or self.models.dtype in QUANTIZED
        return "bfloat16" if in_bfloat16 else self.models.dtype

    def _check_roles(self) -> None:
        """Raise ConfigError for an unknown role, or a learning rate of one that is not trained or not a number."""
        trained, rates = self.models.train, self.training.learning_rates
        for key, names in (("models.train", trained), ("training.learning_rates", rates)):
            for role in names:
                if role not in ROLES:
                    raise ConfigError(unknown(f"{key}: role", role, ROLES))
        if repeated := [role for role in ROLES if trained.count(role) > 1]:
            raise ConfigError(f"models.train={trained} names {repeated[0]} twice. Name each role once.")
        for role, rate in rates.items():
            if trained and role not in trained:
                raise ConfigError(
                    f"training.learning_rates has a rate for {role}, which models.train={trained} leaves as it is. "
                    "Remove the rate, or add the role."
                )
            if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < math.inf:
                raise ConfigError(f"training.learning_rates.{role} must be a number of at least 0, got {show(rate)}.")
        if rates and not self.training.learning_rate:
            raise ConfigError(
                "training.learning_rates needs a training.learning_rate above 0, whose schedule it scales."
            )
        if self.training.update_mask and (trained or rates or self.models.freeze_embeddings):
            raise ConfigError(
                "training.update_mask names the weights to train, and so do models.train, models.freeze_embeddings and "
                "training.learning_rates. Set one of them."
            )

    @property
    def evaluation_sets(self) -> tuple[EvaluationSet, ...]:
        """The sets of data.eval or data.held_out, empty without evaluation."""
        if self.data.held_out:
            return parse_evaluation_sets("", self.evaluation)
        return () if self.data.eval is None else parse_evaluation_sets(self.data.eval, self.evaluation)

    def load_method(self) -> Method:
        """Build the method with its options, restricted to the supervised part of answers."""
        method = load_method(self.method["name"], {key: value for key, value in self.method.items() if key != "name"})
        return supervise_part(method, self.training.supervise, tuple(self.training.think_markers))

    @property
    def teacher_domains(self) -> tuple[str, ...] | None:
        """Domains that have a teacher; None = every domain has one."""
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
    """Load and validate a YAML file with `key.subkey=value` overrides.

    An override of method.name discards the method options of the file and starts from the new method's defaults.
    `extends: demo.yaml` in a file takes all missing keys from that file, which must be in the same folder.

    Raises: ConfigError naming the file and the key.
    """
    given = " ".join(overrides)
    where = f"{path} with {given if len(given) <= 200 else show(given)}" if overrides else str(path)
    values = read_recipe(path)
    is_run = (Path(path).parent / "run.json").is_file()
    if is_run:
        require_current(values, Path(path).parent)
    if is_run:
        values = as_it_ran(values, {parse_override(text)[0] for text in overrides})
    return build_config(override(values, overrides), name=Path(path).stem, where=where)


def known_keys(values: dict) -> dict:
    """Describe the keys that a configuration may have, with the options of its method if that exists."""
    method = values.get("method")
    name = method.get("name") if isinstance(method, dict) else None
    try:
        return describe_config(str(name) if name else None)
    except ConfigError:
        return describe_config()


def require_current(values: dict, run_dir: Path) -> None:
    """Raise ConfigError if a stored run has the keys of an earlier version."""
    if upgrade_config(values, known_keys(values)) != values:
        raise ConfigError(
            f"{run_dir} was written by an earlier version of the workbench. Run: workbench upgrade {run_dir}"
        )


def as_it_ran(values: dict, overridden: Set[str] = frozenset()) -> dict:
    """Drop what older versions ignored in a stored run: warmup steps under a constant schedule, and a metric without
    early stopping; not where an override may give it an effect.
    """
    training, evaluation = values.get("training"), values.get("evaluation")
    if isinstance(training, dict) and training.get("schedule") == "constant" and overridden.isdisjoint(_WARMUP):
        values = {**values, "training": {**training, "warmup_steps": 0}}
    stops = not isinstance(evaluation, dict) or evaluation.get("early_stopping_patience")
    if not stops and overridden.isdisjoint(_STOPPING):
        values = {**values, "evaluation": {**evaluation, "metric_for_best_model": None}}
    return values


def resumed_config(run_dir: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Load the configuration of a run to resume. Raises ConfigError for an override of a key not in RESUMABLE."""
    run_dir = Path(run_dir)
    for text in overrides:
        refuse_renamed_key(parse_override(text)[0])
        if parse_override(text)[0] not in RESUMABLE:
            raise ConfigError(
                f"cannot change {show(text)} on resume. Allowed: {', '.join(RESUMABLE)}. Start a new run instead."
            )
    location = [f"output_dir={json.dumps(str(run_dir.parent))}", f"name={json.dumps(run_dir.name)}"]
    return load_config(run_dir / "config.yaml", [*location, *overrides])


def read_recipe(path: str | Path) -> dict:
    """Read a recipe and merge it over the one that it extends, dropping its name and its options of another method."""
    path = find_recipe(path)
    values = read_yaml(path)
    if "base" in values:
        raise ConfigError(f'{path}: "base" is now called "extends". Rename it.')
    if "extends" not in values:
        return values
    base = values.pop("extends")
    if not isinstance(base, str) or not (Path(path).parent / base).is_file():
        raise ConfigError(f"{path}: extends must be the name of a recipe in the same folder, got {show(base)}.")
    under = read_yaml(Path(path).parent / base)
    if "extends" in under:
        raise ConfigError(
            f"{path}: {base} extends another recipe itself, but only one level is allowed. "
            f"Set extends: {under['extends']}, or write the values here."
        )
    under.pop("name", None)
    sections = [values.get("training"), under.get("training")]
    if all(isinstance(section, dict) for section in sections) and {"steps", "epochs"} & sections[0].keys():
        under["training"] = {key: value for key, value in sections[1].items() if key not in ("steps", "epochs")}
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
    """Return a copy of `values` with `key.subkey=value` entries set; values are YAML.

    A mapping is merged into the existing one. Options of a replaced method are dropped.
    """
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
                    f"override {show(key)}: {cut(parent)} must be a mapping to have keys, got {show(inner)}."
                )
            section[parent] = dict(inner)
            section = section[parent]
        before = section.get(last)
        if key in _LENGTHS and value and _LENGTHS[key] not in dict(parsed):
            section.pop(_LENGTHS[key].rpartition(".")[2], None)
        is_other_method = (
            key == "method" and isinstance(value, dict) and value.get("name") not in (None, (before or {}).get("name"))
        )
        both = isinstance(before, dict) and isinstance(value, dict) and not is_other_method
        section[last] = _laid_over(before, value) if both else value
    return values


def build_config(values: dict, *, name: str = "", where: str = "") -> RunConfig:
    """Build a RunConfig from plain values. `name` is the default name; `where` is the prefix of error messages."""
    prefix = f"{where}: " if where else ""
    try:
        training = values.get("training")
        if isinstance(training, dict) and training.get("epochs") and "steps" not in training:
            values = {**values, "training": {**training, "steps": 0}}
        located = {key: locate_all(values[key]) for key in ("models", "data") if key in values}
        values = {"name": name, **values, **located}
        if not isinstance(values.get("method"), dict) or "name" not in values["method"]:
            raise ConfigError("method.name is missing. Set method: {name: dopd}, or method.name=dopd.")
        method_module(str(values["method"]["name"]))
        current_keys = describe_config(str(values["method"]["name"]))
        refuse_renamed(values, current_keys)
        refuse_foreign(values, current_keys)
        return build_section(RunConfig, values)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from None


def describe_config(method: str | None = None) -> dict[str, tuple[type | UnionType, object, Option]]:
    """Return every dotted key with its type, default and option, for forms and help texts."""
    described = dict(_describe(RunConfig, ""))
    described.pop("method")
    names = typing.get_args(Annotated[str, Option("Name of the method")])
    described["method.name"] = (names[0], method, names[1])
    if method is not None:
        described |= {f"method.{key}": value for key, value in describe_options(method).items()}
    return described


def _describe(section: Any, prefix: str) -> typing.Iterator[tuple[str, tuple]]:
    hints = typing.get_type_hints(section, include_extras=True)
    for entry in dataclasses.fields(section):
        hint = hints[entry.name]
        if dataclasses.is_dataclass(hint):
            yield from _describe(hint, f"{prefix}{entry.name}.")
        else:
            default = entry.default_factory() if entry.default_factory is not dataclasses.MISSING else entry.default
            yield f"{prefix}{entry.name}", (*typing.get_args(hint)[:1], default, typing.get_args(hint)[1])
