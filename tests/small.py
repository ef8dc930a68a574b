"""Small inputs that several test files use."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from table_policy import LogitTablePolicy

from workbench.config.schema import RunConfig, build_config
from workbench.data.contexts import CONTEXTS
from workbench.distill.method import Method
from workbench.distill.scoring import Batch
from workbench.distill.step import StepResult, compute_step, score_batch
from workbench.evals.records import EvalRecord
from workbench.types import Box, DenoisingTrace, Evidence, Example, Rollout

VOCABULARY, LENGTH = 11, 7


def table_policy(name: str, seed: int, *, learns: bool = False, scale: float = 2.0) -> LogitTablePolicy:
    """Random logits of its own for every context."""
    generator = torch.Generator().manual_seed(seed)
    tables = {context: scale * torch.randn(LENGTH, VOCABULARY, generator=generator) for context in CONTEXTS}
    return LogitTablePolicy(name, tables, learns=learns)


def table_policies() -> dict[str, LogitTablePolicy]:
    """One for every name that a view may use; the student's own copies have the same weights."""
    student = table_policy("student", 1, learns=True)
    copies = {name: LogitTablePolicy(name, dict(student.tables)) for name in ("student@start", "student@ema")}
    return {"student": student, **copies, "teacher": table_policy("teacher", 2)}


def example(idx: int = 0, **values: object) -> Example:
    """An example with every kind of evidence and an answer of the table policies' words."""
    facts = {
        "question": "question",
        "images": (Image.new("RGB", (20, 10), (10 * idx % 256, 0, 0)),),
        "answer": "3",
        "reference": "5 3",
        "evidence": Evidence((Box(2, 2, 8, 8, "thing"),), caption="a caption", hint="a hint"),
    }
    return Example(f"example-{idx}", **{**facts, **values})


def without_weights(models: dict[str, Path], folder: Path) -> dict[str, str]:
    """Copies of models that can be checked, but not loaded."""
    copies = {name: shutil.copytree(path, folder / "weightless" / name) for name, path in models.items()}
    for copy in copies.values():
        (copy / "model.safetensors").unlink()
    return {name: str(copy) for name, copy in copies.items()}


def step_with_gradients(method: Method, policies: dict, batch: Batch) -> StepResult:
    """One step of a batch whose gradients are added to those of the student's weights."""
    policies["student"].model.requires_grad_(True)
    return compute_step(
        method,
        policies,
        score_batch(method, policies, batch),
        seed=0,
        top_k=3,
        top_k_rollouts=2,
        backward=lambda total: total.backward(),
    )


def write_without_answer(file: Path) -> Path:
    """Write one example whose answer is unknown."""
    samples = Path("data/samples/samples.jsonl").resolve()
    row = json.loads(samples.read_text().splitlines()[0])
    values = {key: row[key] for key in ("id", "question", "boxes", "caption", "hint", "reference")}
    file.write_text(json.dumps(values | {"images": [str(samples.parent / name) for name in row["images"]]}) + "\n")
    return file


def rollouts(*lengths: int, seed: int = 0) -> tuple[Rollout, ...]:
    """Rollouts of random tokens with the given lengths."""
    generator = torch.Generator().manual_seed(seed)
    created = []
    for idx, length in enumerate(lengths):
        ids = tuple(torch.randint(1, VOCABULARY, (length,), generator=generator).tolist())
        order = DenoisingTrace(
            tuple(column // 2 for column in range(length)), 2, 8
        )  # pairs from left to right, for who asks
        created.append(Rollout(example(idx), 0, ids, "", True, tuple([-1.0] * length), 1.0, denoising=order))
    return tuple(created)


def groups(*lengths: int) -> tuple[Rollout, ...]:
    """As rollouts, two of each example: a wrong one and a right one, written after a first turn was replied to."""
    created = []
    for idx, rollout in enumerate(rollouts(*lengths)):
        another = example(idx // 2, question="A fact. A question?")
        facts = {"sample_idx": idx % 2, "text": f"text {idx}", "reward": float(idx % 2), "replies": ("a reply",)}
        created.append(replace(rollout, example=created[-1].example if idx % 2 else another, **facts))
    return tuple(created)


def run_config(folders: dict, output_dir: object, /, **values: object) -> RunConfig:
    """A DOPD run of four quick steps on the built-in world; dotted keys as in overrides, with __ for the dot."""
    plain = {
        "name": "run",
        "output_dir": str(output_dir),
        "models": {"student": str(folders["student"]), "teacher": str(folders["teacher"])},
        "data": {"train": "scenes:train?count=12", "eval": "scenes:eval?count=6"},
        "method": {"name": "dopd", "privilege": "crop"},
        "sampling": {"num_generations": 2, "max_completion_length": 6},
        "training": {"steps": 4, "batch_size": 3, "learning_rate": 1e-3, "save_every": 2, "save_total_limit": 0},
        "trace": {"probes": 2, "probe_every": 2, "top_k": 3, "top_k_rollouts": 2},
        "evaluation": {"max_examples": 6, "contexts": ["plain", "crop"]},
    }
    for key, value in values.items():
        section, _, name = key.partition("__")
        if name:
            plain[section] = {**plain[section], name: value}
        else:
            plain[section] = value
    return build_config(plain)


def picture(seed: int = 0, size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Stripes whose color and width depend on the seed, without noise."""
    image = Image.new("RGB", size, (40 * seed % 256, 90, 200))
    for column in range(seed % 3, size[0], 3 + seed):
        image.paste((250, 70 * seed % 256, 10), (column, 0, column + 1, size[1]))
    return image


def add_begun(folder: Path) -> None:
    """A run that has only begun: no number yet."""
    begun = folder / "begun"
    begun.mkdir()
    (begun / "config.yaml").write_text("name: begun\nmethod: {name: dopd}\ntraining: {steps: 4}\n")
    (begun / "run.json").write_text('{"status": "stopped", "method": "dopd"}')


def answered(*pairs: tuple[float | None, float], **values: object) -> list[EvalRecord]:
    """Records of an evaluation's answers, one for each pair of reward and confidence."""
    record = EvalRecord(0, "student", "plain", "e", "", None, "3", "3", 1.0, 0.5, 2, True)
    return [replace(record, reward=reward, confidence=confidence, **values) for reward, confidence in pairs]
