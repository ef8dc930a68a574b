"""Makes data/smolvlm: what SmolLM2-135M-Instruct lacks to speak about the built-in scenes.

    workbench fetch smollm2 build/smollm2
    python data/smolvlm.py build/smollm2 build/smolvlm-training --parts data/smolvlm    # again: goes on

The vision tower is the built-in teacher's, so it knows shapes, colors and tags. Its connector starts as the linear map,
by least squares, from a cell's features to the sum of the embeddings of the words that describe the cell. Then tower,
connector and a LoRA of the text model are trained together on short questions with answers in sentences. Some of the
answers are SmolLM2's own, to questions without an image, so that it still answers those.

Questions about one scene share the image's tokens: each question sees the image and itself only. The text model
computes in bfloat16, LoRA, connector and tower are stored in float32.
"""

import argparse
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from safetensors.torch import save_file
from smolvlm_packing import Document, PackedBatch, collate, forward_packed, image_features, pack
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Idefics3ForConditionalGeneration

from workbench.data.contexts import build_prompt
from workbench.data.scenes import make_examples, make_scene
from workbench.data.scenes.questions import CYCLE, Wish, ask
from workbench.data.scenes.sentences import as_sentences
from workbench.data.scenes.world import PLACES, Scene, Thing, crop, full_view
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.policies.fetching import source_file
from workbench.policies.grafting import RECORD, WEIGHTS, file_digest, graft_vision
from workbench.training.pretraining.batches import LessonEncoder

TEACHER = Path(__file__).parent / "models" / "teacher"
DESCRIBE = "Describe the picture."
# Sampling weights of documents: a scene with several questions, its description, a crop alone, a scene with a crop of
# the question's thing, and a question without an image
# first step -> weights. After 350 steps the model read crops and scenes in order (color 80 %, tag 79 %), but it
# named the row of a thing in 44 % of questions: so more questions about scenes, which teach to look things up.
MIXES = {
    0: {"questions": 45, "description": 12, "detail": 12, "crop": 23, "text": 8},
    400: {"questions": 68, "description": 6, "detail": 3, "crop": 18, "text": 5},
}
PLACES_ASKED = {0: 0.15, 400: 0.3}  # first step -> share of questions where a thing is; of what is at a place, 0.25
QUESTIONS = 4  # about one scene
ROW = 192  # tokens of a packed row at most
RANK, ALPHA = 16, 32
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RATES = {"lora": 8e-4, "connector": 1.5e-3, "vision": 4e-4}
VISION_FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("image_size", "patch_size", "num_channels", "hidden_act", "layer_norm_eps"),
)
WARMUP, DECAY = 40, 0.35  # steps; share of the steps over which the learning rates fall to zero
SAVE_EVERY = 50


def name_with_tag(thing: Thing, *, is_shown: bool) -> str:
    return f"a {thing.name} with the tag {thing.tag}" if is_shown else f"a {thing.name}"


def describe(scene: Scene) -> str:
    """Describe what the full view shows, in the order of the places."""
    parts = [f"{name_with_tag(t, is_shown=t.readable)} at the {t.place}" for t in scene.things]
    return f"There is {', '.join(parts[:-1])} and {parts[-1]}."


def at_step(stages: dict[int, Any], step: int) -> Any:
    """The value of the last stage that has begun."""
    return stages[max(first for first in stages if first <= step)]


def ask_scene(scene: Scene, rng: random.Random, where: float) -> tuple[str, str]:
    """One question about the full view: of a family of the world, where a thing is, or what is at a place."""
    kind = rng.random()
    if kind < where:
        thing = rng.choice(scene.things)
        return f"Where is the {thing.name}?", f"The {thing.name} is at the {thing.place}."
    if kind < where + 0.25:
        cell = rng.choice([t.cell for t in scene.things]) if rng.random() < 0.85 else rng.randrange(len(PLACES))
        thing = next((t for t in scene.things if t.cell == cell), None)
        what = "nothing" if thing is None else name_with_tag(thing, is_shown=thing.readable)
        return f"What is at the {PLACES[cell]}?", f"At the {PLACES[cell]} is {what}."
    while True:
        family, visibility = rng.choice(CYCLE)
        wish = Wish(family, visibility, same=rng.random() < 0.5, number=rng.randint(1, 3))
        example = ask(scene, wish, rng)
        if example is not None:
            spoken = as_sentences(example)
            return spoken.question, spoken.reference


def make_document(seed: int, step: int, index: int, texts: list[tuple[str, str]]) -> Document:
    """Make document number `index` of an endless deterministic stream, which a step draws."""
    rng = random.Random(f"smolvlm:{seed}:{index}")
    mix = at_step(MIXES, step)
    (kind,) = rng.choices(list(mix), weights=list(mix.values()))
    if kind == "text":
        return Document((), (rng.choice(texts),))
    if kind == "crop":
        (example,) = make_examples("train", seed=seed, start=index, count=1)
        spoken = as_sentences(example)
        return Document(build_prompt(spoken, "crop").images, ((spoken.question, spoken.reference),))
    scene = make_scene("train", rng)
    if kind == "detail":
        thing = rng.choice(scene.things)
        text = f"There is {name_with_tag(thing, is_shown=True)}."
        return Document((crop(scene, thing.cell),), ((DESCRIBE, text),))
    if kind == "description":
        return Document((full_view(scene),), ((DESCRIBE, describe(scene)),))
    where = at_step(PLACES_ASKED, step)
    return Document((full_view(scene),), tuple(ask_scene(scene, rng, where) for _ in range(QUESTIONS)))


def loss_of(model: Idefics3ForConditionalGeneration, batch: PackedBatch) -> Tensor:
    """Mean cross-entropy of the answers' tokens in nats."""
    features = image_features(model, batch.pixels)
    with torch.autocast("cpu", torch.bfloat16), disable_input_dtype_casting(model.model.text_model):
        hidden = forward_packed(model, batch, features)
        wanted = batch.labels[:, 1:] >= 0
        logits = model.lm_head(hidden[:, :-1][wanted])
    return F.cross_entropy(logits.float(), batch.labels[:, 1:][wanted])


@torch.no_grad()
def start_connector(model: Idefics3ForConditionalGeneration, encoder: LessonEncoder, scenes: int = 600) -> float:
    """Set the connector to the least-squares map from features to sums of word embeddings; the share explained."""
    tokenizer, embeddings = encoder._tokenizer, model.model.text_model.get_input_embeddings().weight.float()

    def words(text: str) -> Tensor:
        return embeddings[tokenizer(text, add_special_tokens=False)["input_ids"]].sum(0)

    rng, pictures, targets = random.Random(0), [], []
    for _ in range(scenes):
        scene = make_scene("train", rng)
        by_cell = {thing.cell: thing for thing in scene.things}
        pictures.append(encoder.pixels(full_view(scene)))
        for cell, name in enumerate(PLACES):
            thing = by_cell.get(cell)
            tag = f" {thing.tag}" if thing and thing.readable else ""
            targets.append(words(f" {thing.name}{tag}" if thing else " nothing") + 0.5 * words(f" {name}"))
        thing = rng.choice(scene.things)
        pictures.append(encoder.pixels(crop(scene, thing.cell)))
        targets += [words(f" {thing.name} {thing.tag}")] * len(PLACES)
    pixels, wanted = torch.stack(pictures), torch.stack(targets)
    patches = torch.ones(len(pixels), *[pixels.shape[-1] // model.config.vision_config.patch_size] * 2).bool()
    hidden = model.model.vision_model(pixel_values=pixels, patch_attention_mask=patches).last_hidden_state
    inputs = model.model.connector.pixel_shuffle(hidden, model.config.scale_factor).flatten(0, 1)
    gram = inputs.T @ inputs + 1e-3 * len(inputs) * torch.eye(inputs.shape[1])
    weight = torch.linalg.solve(gram, inputs.T @ wanted)
    model.model.connector.modality_projection.proj.weight.copy_(weight.T)
    return float(1 - (inputs @ weight - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


def build(base: Path) -> tuple[Idefics3ForConditionalGeneration, LessonEncoder, list]:
    """SmolLM2 with the built-in teacher's vision tower, its connector and a LoRA; and texts with SmolLM2's answers."""
    tokenizer, text = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    texts = own_answers(text.bfloat16(), tokenizer, base.parent / f"{base.name}-answers.json")
    text.float()
    teacher = Idefics3ForConditionalGeneration.from_pretrained(TEACHER)
    config = teacher.config
    model, processor = graft_vision(text, tokenizer, config.vision_config.to_dict(), config.scale_factor)
    model.model.vision_model.load_state_dict(teacher.model.vision_model.state_dict())
    encoder = LessonEncoder(AutoregressivePolicy(model, processor, "smolvlm"))
    print(f"connector explains {start_connector(model, encoder):.1%} of the words", flush=True)
    model.model.text_model.bfloat16()
    model.requires_grad_(False)
    torch.manual_seed(0)
    settings = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS)
    model.model.text_model = get_peft_model(model.model.text_model, settings)  # adapters in float32
    for part in (model.model.vision_model, model.model.connector):
        part.float().requires_grad_(True)
    return model.train(), encoder, texts


@torch.no_grad()
def own_answers(text, tokenizer, kept: Path) -> list[tuple[str, str]]:
    """Questions without an image and the text model's greedy answers that end within 32 tokens; kept in a file."""
    if kept.exists():
        return [tuple(pair) for pair in json.loads(kept.read_text())]
    questions = [f"What is {a} + {b}?" for a, b in [(1, 2), (2, 2), (3, 5), (4, 4), (7, 2), (6, 3)]]
    questions += [f"{start} {word}{end}" for word in WORDS for start, end in STARTS]
    tokenizer.padding_side, pairs = "left", []
    for start in range(0, len(questions), 12):
        batch = questions[start : start + 12]
        chats = [[{"role": "user", "content": question}] for question in batch]
        encoded = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
        )
        ids = text.generate(**encoded, max_new_tokens=32, do_sample=False)[:, encoded["input_ids"].shape[1] :]
        for question, answer in zip(batch, ids.tolist(), strict=True):
            if tokenizer.eos_token_id in answer:
                pairs.append((question, tokenizer.decode(answer, skip_special_tokens=True)))
    print(f"{len(pairs)} of {len(questions)} answers of the text model end", flush=True)
    kept.write_text(json.dumps(pairs, indent=1))
    return pairs


WORDS = (
    "apple",
    "river",
    "stone",
    "cloud",
    "paper",
    "window",
    "garden",
    "silver",
    "music",
    "winter",
    "bridge",
    "candle",
)
STARTS = (
    ("What is", "? Answer in one sentence."),
    ("Write a short sentence about a", "."),
    ("Repeat this word:", ""),
    ("Name a color that goes with", "."),
)


def trainable(model: Idefics3ForConditionalGeneration) -> dict[str, dict[str, torch.nn.Parameter]]:
    """Trained parameters by part: lora, connector, vision."""
    parts: dict[str, dict[str, torch.nn.Parameter]] = {name: {} for name in RATES}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = next(key for key in ("lora", "connector", "vision") if key in name)
            parts[part][name] = parameter
    return parts


def train(base: Path, folder: Path, steps: int, documents: int, seed: int) -> None:
    """Train, save every SAVE_EVERY steps, and go on from what is saved."""
    model, encoder, texts = build(base)
    parts = trainable(model)
    print({name: sum(p.numel() for p in part.values()) for name, part in parts.items()}, flush=True)
    groups = [{"params": list(part.values()), "lr": RATES[name]} for name, part in parts.items()]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01)
    weights = {name: parameter for part in parts.values() for name, parameter in part.items()}
    folder.mkdir(parents=True, exist_ok=True)
    state, first = folder / "state.pt", 0
    if state.exists():
        saved = torch.load(state)
        first = saved["step"]
        optimizer.load_state_dict(saved["optimizer"])
        for name, parameter in weights.items():
            parameter.data.copy_(saved["weights"][name])
    image_end = encoder._tokenizer.convert_tokens_to_ids("<fake_token_around_image>")
    losses, started = [], time.monotonic()
    for step in range(first, steps):
        rate = min((step + 1) / WARMUP, 1.0, (steps - step) / (DECAY * steps))
        for group, (name, _) in zip(optimizer.param_groups, parts.items(), strict=True):
            group["lr"] = rate * RATES[name]
        batch = [make_document(seed, step, step * documents + row, texts) for row in range(documents)]
        rows = pack(batch, encoder, image_end=image_end, length=ROW)
        loss = loss_of(model, collate(rows, encoder))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 10 == 9 or step == first:
            mean, tokens = sum(losses[-10:]) / len(losses[-10:]), sum(len(row.ids) for row in rows)
            seconds = (time.monotonic() - started) / (step - first + 1)
            print(f"step {step + 1} loss {mean:.4f} tokens {tokens} s/step {seconds:.2f}", flush=True)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            torch.save(
                {"step": step + 1, "weights": weights, "optimizer": optimizer.state_dict()}, folder / "state.new"
            )
            os.replace(folder / "state.new", state)


def write_parts(folder: Path, weights: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Write the weights that `grafting.add_parts` reads, in half precision, and `record` with their hash.

    weights  by names of Idefics3Model: vision_model.*, connector.*; text_model.MODULE.lora_A and .lora_B of a LoRA
    record   vision, scale_factor, lora_scale, base_sha256 (of the GGUF file), and anything to keep with them
    """
    folder.mkdir(parents=True, exist_ok=True)
    halves = {name: weight.detach().half().contiguous() for name, weight in sorted(weights.items())}
    save_file(halves, folder / WEIGHTS)
    record = record | {"sha256": file_digest(folder / WEIGHTS), "bytes": (folder / WEIGHTS).stat().st_size}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def export(state: Path, parts: Path, record: dict) -> None:
    """Write the trained weights of a saved state as parts for `workbench fetch smolvlm`."""
    saved = torch.load(state)
    weights = {
        name.removeprefix("model.").replace("base_model.model.", "").replace(".default.weight", ""): weight
        for name, weight in saved["weights"].items()
    }
    vision = Idefics3ForConditionalGeneration.config_class.from_pretrained(TEACHER)
    fields = {name: getattr(vision.vision_config, name) for name in VISION_FIELDS}
    parts_of = {"vision": fields, "scale_factor": vision.scale_factor}
    lora = {"lora_scale": ALPHA / RANK, "base_sha256": file_digest(source_file("smollm2"))}
    write_parts(parts, weights, {"step": saved["step"]} | parts_of | lora | record)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("folder", type=Path, help="where the state of training is kept")
    parser.add_argument("--steps", type=int, default=730)
    parser.add_argument("--documents", type=int, default=6, help="of one step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", type=Path, help="write the parts here, after the training or of its last state")
    options = parser.parse_args()
    if options.steps:
        train(options.base, options.folder, options.steps, options.documents, options.seed)
    if options.parts:
        record = {"seed": options.seed, "documents": options.documents}
        export(options.folder / "state.pt", options.parts, record)


if __name__ == "__main__":
    main()
