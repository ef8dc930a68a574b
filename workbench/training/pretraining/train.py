"""Makes the built-in models: tiny Idefics3 models that learn the built-in world from nothing, on a processor core.

    pretrain(load_pretrain_config("configs/pretrain-student.yaml"))

writes a folder that AutoProcessor and AutoModelForImageTextToText load like any other, and pretrain.json, which says
how it was made and what it can do. Two things decide whether a model this small learns at all: weights that start at a
standard deviation near 0.1 (at the usual 0.02 nothing happens in a thousand steps), and the mix of lessons.
"""

import dataclasses
import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import transformers
from tqdm import tqdm
from transformers import GenerationConfig, Idefics3Config, Idefics3ForConditionalGeneration, ModernVBertForMaskedLM

from workbench.config.schema import build_section
from workbench.data.contexts import build_prompt
from workbench.data.grading import grade
from workbench.data.scenes import check_split, family_places, make_examples
from workbench.distill.method import Option, check_option
from workbench.errors import ConfigError, at, require_one_of
from workbench.evals.evaluate import visibility_of
from workbench.files.folders import new_folder, saving
from workbench.files.parsing import parse_override, read_yaml
from workbench.files.shipped import find_recipe
from workbench.policies import Policy, SamplingOptions
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.policies.diffusion import DiffusionPolicy
from workbench.policies.loading import load_policy
from workbench.seeding import derive_seed
from workbench.training.pretraining.batches import LessonEncoder
from workbench.training.pretraining.lessons import CAPTIONS_ONLY, MIX, Lesson, make_lesson
from workbench.training.pretraining.masked import build_masked_model, masked_loss
from workbench.training.pretraining.tokenizer import IMAGE_SIZE, PATCH_SIZE, SCALE_FACTOR, build_processor
from workbench.types import VISIBLE

MAX_POSITIONS = 512  # tokens of prompt and completion together
ANSWER_TOKENS = 32  # room for the longest answer of the world, which has 23


@dataclass(frozen=True)
class PretrainConfig:
    """One pretraining; every field can be written in the YAML file."""

    output_dir: Annotated[str, Option("Folder of the finished model")]
    seed: Annotated[int, Option("Seed of weights and lessons", low=0)] = 0
    steps: Annotated[int, Option("Number of optimizer steps", low=1)] = 2000
    batch_size: Annotated[int, Option("Lessons per step", low=1)] = 32
    learning_rate: Annotated[float, Option("Peak learning rate, after warmup; then it falls to 0", low=1e-9)] = 1e-3
    matrix_learning_rate: Annotated[float, Option("Peak rate of the layers' matrices, which Muon trains", low=0)] = 5e-3
    caption_steps: Annotated[int, Option("First steps, on captions of whole scenes alone", low=0)] = 0
    warmup: Annotated[int, Option("Steps of linear warmup", low=0)] = 50
    weight_decay: Annotated[float, Option("Weight decay", low=0)] = 0.01
    init_std: Annotated[float, Option("Standard deviation of the weights at the start", low=1e-9)] = 0.1
    text_width: Annotated[int, Option("Hidden size of the text model", low=1)] = 128
    text_layers: Annotated[int, Option("Layers of the text model", low=1)] = 3
    vision_width: Annotated[int, Option("Hidden size of the vision model", low=1)] = 128
    vision_layers: Annotated[int, Option("Layers of the vision model", low=1)] = 2
    heads: Annotated[int, Option("Attention heads of both models", low=1)] = 4
    start_from: Annotated[str | None, Option("Model folder to continue from, which sets the sizes. null = none")] = None
    mix: Annotated[dict | None, Option("Weights by kind of lesson that replace those of lessons.MIX")] = None
    families: Annotated[tuple | None, Option("Ask questions of these families only. null = all")] = None
    masked: Annotated[bool, Option("Make a masked diffusion model, saved in half precision")] = False
    eval_count: Annotated[int, Option("Number of questions to evaluate on. 0 = none", low=0)] = 400

    def __post_init__(self) -> None:
        family_places(self.families and tuple(map(str, self.families)))
        for kind, weight in (self.mix or {}).items():
            require_one_of("kind of lesson", kind, MIX)
            check_option(f"mix.{kind}", weight, float, Option("Weight of these lessons", low=0))
        for name in ("text_width", "vision_width"):
            if getattr(self, name) % (2 * self.heads):
                raise ConfigError(
                    f"{name} must be a multiple of {2 * self.heads}, two for each of the {self.heads} heads, got "
                    f"{getattr(self, name)}."
                )


@dataclass(frozen=True)
class WorldScore:
    """How often the final answer is exactly right."""

    domain: str  # question family, or "all"
    visibility: str  # visible | privileged: whether the full view determines the answer
    context: str
    count: int
    accuracy: float


def load_pretrain_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> PretrainConfig:
    """A PretrainConfig from a YAML file and `key=value` overrides. Raises ConfigError naming the file and the key."""
    values = read_yaml(find_recipe(path)) | dict(map(parse_override, overrides))
    with at(str(path)):
        return build_section(PretrainConfig, values)


def pretrain(config: PretrainConfig, *, progress: bool = True) -> Path:
    """Train a model as `config` says, measure it, and write its folder, whole or not at all; returns the folder.

    Raises: ConfigError if the folder holds something already, before training; RunError if it cannot be written.
    """
    _require_free(Path(config.output_dir))
    started = time.monotonic()
    torch.manual_seed(config.seed)
    policy = _starting_policy(config)
    losses = train_on_lessons(policy, config, progress=progress)
    wall_s = time.monotonic() - started
    contexts = ("plain", "caption") if config.masked else ("plain", "crop")
    scores = evaluate_world(policy, "eval", config.eval_count, contexts=contexts) if config.eval_count else []
    return _save(policy, config, losses, wall_s, scores)


def _starting_policy(config: PretrainConfig) -> AutoregressivePolicy:
    if config.start_from is not None:
        return load_policy(config.start_from, "start_from")
    processor = build_processor(masked=config.masked)
    kind, build = (DiffusionPolicy, _build_masked) if config.masked else (AutoregressivePolicy, build_model)
    return kind(build(config, processor.tokenizer), processor, "pretrained")


def _build_masked(config: PretrainConfig, tokenizer) -> ModernVBertForMaskedLM:
    text = {
        "hidden_size": config.text_width,
        "intermediate_size": 2 * config.text_width,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": config.heads,
        "max_position_embeddings": MAX_POSITIONS,
    }
    vision = {
        "hidden_size": config.vision_width,
        "intermediate_size": 2 * config.vision_width,
        "num_hidden_layers": config.vision_layers,
        "num_attention_heads": config.heads,
    }
    return build_masked_model(tokenizer, text=text, vision=vision, init_std=config.init_std)


def build_model(config: PretrainConfig, tokenizer) -> Idefics3ForConditionalGeneration:
    """An Idefics3 model with random weights that fits the built-in processor."""
    text = {
        "model_type": "llama",
        "hidden_size": config.text_width,
        "intermediate_size": 3 * config.text_width,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.heads,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_POSITIONS,
        "initializer_range": config.init_std,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {
        "hidden_size": config.vision_width,
        "intermediate_size": 4 * config.vision_width,
        "num_hidden_layers": config.vision_layers,
        "num_attention_heads": config.heads,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "initializer_range": config.init_std,
    }
    model = Idefics3ForConditionalGeneration(
        Idefics3Config(
            text_config=text,
            vision_config=vision,
            scale_factor=SCALE_FACTOR,
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        max_new_tokens=ANSWER_TOKENS,
    )
    return model


def train_on_lessons(policy: AutoregressivePolicy, config: PretrainConfig, *, progress: bool = True) -> list[float]:
    """Trains the policy's model in place; the loss of each step in nats per token."""
    model, encoder = policy.model.requires_grad_(True).train(), LessonEncoder(policy)
    optimizers = _optimizers(model, config)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / (config.warmup + 1), 1 - step / config.steps)
        )
        for optimizer in optimizers
    ]
    losses = []
    bar = tqdm(
        range(config.steps), desc=f"pretrain {Path(config.output_dir).name}", disable=not progress, mininterval=5
    )
    for step in bar:
        lessons = [_lesson(config, step * config.batch_size + row) for row in range(config.batch_size)]
        total = 0.0
        for loss in _losses(policy, config, encoder, lessons, step):
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in (*optimizers, *schedules):
            part.step()
        model.zero_grad()
        losses.append(total)
        if step % 10 == 9:
            bar.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.3f}", refresh=False)
    model.requires_grad_(False).eval()
    return losses


def _losses(
    policy: AutoregressivePolicy, config: PretrainConfig, encoder: LessonEncoder, lessons: list[Lesson], step: int
) -> Iterator[torch.Tensor]:
    """The step's loss in parts, each to be differentiated before the next is made."""
    if config.masked:
        seed = derive_seed("pretrain", config.seed, step)
        yield masked_loss(policy.model, encoder, lessons, policy.tokenizer, seed) / len(lessons)
        return
    batches = encoder.batches(lessons)
    num_tokens = sum(int((batch["labels"] >= 0).sum()) for batch in batches)
    for batch in batches:
        yield _summed_loss(policy.model, **batch) / num_tokens


def _optimizers(model, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for matrices inside the layers, AdamW for everything else: about half the steps of AdamW alone."""
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
    inner_ids = {id(parameter) for parameter in inner}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in inner_ids]
    decay = {"weight_decay": config.weight_decay}
    return [
        torch.optim.Muon(inner, lr=config.matrix_learning_rate, adjust_lr_fn="match_rms_adamw", **decay),
        torch.optim.AdamW(rest, lr=config.learning_rate, betas=(0.9, 0.98), **decay),
    ]


def _lesson(config: PretrainConfig, index: int) -> Lesson:
    mix: Any = CAPTIONS_ONLY if index < config.caption_steps * config.batch_size else config.mix
    return make_lesson(config.seed, index, families=config.families, mix=mix)


def _summed_loss(model, input_ids, labels, pixel_values) -> torch.Tensor:
    """Padding is on the right, where no token looks, so no mask is needed."""
    hidden = model.model(input_ids=input_ids, pixel_values=pixel_values, use_cache=False).last_hidden_state[:, :-1]
    is_labeled = labels[:, 1:] >= 0
    return F.cross_entropy(model.lm_head(hidden[is_labeled]), labels[:, 1:][is_labeled], reduction="sum")


def evaluate_world(
    policy: Policy,
    split: str,
    count: int,
    *,
    contexts: tuple[str, ...] = ("plain", "crop"),
    families: tuple[str, ...] | None = None,
) -> list[WorldScore]:
    """Evaluate a policy greedily on the first `count` questions of a split under each context.

    Returns a row for each family, visibility and context, and rows of domain "all".
    """
    check_split(split)
    right: dict[tuple[str, str, str], list[bool]] = {}
    options = SamplingOptions(max_completion_length=getattr(policy, "canvas", ANSWER_TOKENS), temperature=0.0)
    for start in range(0, count, 50):
        number = min(50, count - start)
        examples = make_examples(split, seed=0, start=start, count=number, families=families)
        for context in contexts:
            prompts = [build_prompt(example, context) for example in examples]
            completions = policy.sample(prompts, [[0]] * number, options)
            for example, (completion,) in zip(examples, completions, strict=True):
                is_right = grade(policy.text(completion.ids), example.answer) == 1.0
                for domain in (example.domain, "all"):
                    right.setdefault((domain, visibility_of(example) or VISIBLE, context), []).append(is_right)
    return [WorldScore(*key, count=len(rows), accuracy=sum(rows) / len(rows)) for key, rows in sorted(right.items())]


def _require_free(folder: Path) -> None:
    """Raises ConfigError unless the folder is new or empty."""
    try:
        is_free = not any(folder.iterdir())
    except FileNotFoundError:
        is_free = not os.path.lexists(folder)
    except OSError:
        is_free = False
    if not is_free:
        raise ConfigError(
            f"output_dir {folder} exists already. Name a new folder, as in output_dir=NEW, or move it away."
        )


def _save(
    policy: AutoregressivePolicy, config: PretrainConfig, losses: list[float], wall_s: float, scores: list[WorldScore]
) -> Path:
    target, tail = Path(config.output_dir), losses[-100:]
    packages = {"torch": torch.__version__, "transformers": transformers.__version__}
    record = {
        "config": dataclasses.asdict(config),
        "parameters": policy.model.num_parameters(),
        "loss_nats_per_token": round(sum(tail) / len(tail), 4),
        "wall_s": round(wall_s),
        "threads": torch.get_num_threads(),
        "versions": {**packages, "python": platform.python_version()},
        "accuracy_eval_seed_0": [dataclasses.asdict(score) for score in scores],
    }
    with saving(target), new_folder(target) as folder:
        (policy.model.half() if config.masked else policy.model).save_pretrained(folder)
        policy.processor.save_pretrained(folder)
        (folder / "pretrain.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if target.is_dir():  # empty, or this fails
            target.rmdir()
    return target
