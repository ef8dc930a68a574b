"""Export of a run's student: a folder that plain transformers loads, with a model card.

The folder has the student only, without teacher, moving average or optimizer. LoRA is merged into the weights; tied
embeddings are untied if it adapts them. The exported model is loaded again and compared with the student on a small
batch. The card states method, evidence, the context in use, and the accuracy under that context.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from workbench.config.schema import RunConfig, load_config
from workbench.data.contexts import is_privileged, parse_context
from workbench.errors import ConfigError, RunError
from workbench.evals.benchmarks import BENCHMARK_COLUMNS, benchmark_rows, load_benchmarks
from workbench.evals.records import CONFIDENCE, load_records, measure
from workbench.files.folders import new_folder, saving
from workbench.files.parsing import dump_yaml
from workbench.methods import method_module
from workbench.policies.adapters import adapts_tied_weights, base_of, has_adapter, merged_weights, untie
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.policies.loading import load_policy
from workbench.policies.models import auto_class, load_model
from workbench.policies.processors import has_video_part
from workbench.runs.checkpoints import Checkpoint, latest_checkpoint, open_checkpoint
from workbench.runs.folder import RunFolder, checkpoint_path
from workbench.traces.export import write_dataset
from workbench.traces.reader import open_traces
from workbench.training.check import TOLERANCE
from workbench.types import STUDENT, Prompt

HUB = "hf:"


@dataclass(frozen=True)
class Exported:
    """Result of an export."""

    target: str  # the folder, or the address on the hub
    step: int
    num_parameters: int = 0
    rows: dict[str, int] | None = None  # of traces, by table

    def __str__(self) -> str:
        if self.rows is None:
            return (
                f"the student of step {self.step}, {self.num_parameters:,} parameters, with a model card: {self.target}"
            )
        rows = ", ".join(f"{count:,} {name}" for name, count in self.rows.items())
        return f"traces up to step {self.step} ({rows}) as a dataset: {self.target}"


def export_student(run_dir: str | Path, to: str | Path, *, step: int | None = None, learner: str = STUDENT) -> Exported:
    """Export the student of a run's checkpoint `step` (None = the newest) to a new folder, or to hf:OWNER/NAME.

    Raises: RunError for an unknown checkpoint or learner, or if the exported model differs from the trained one;
    ConfigError if the folder exists; PolicyError if the student cannot be loaded.
    """
    run = RunFolder.open(run_dir)
    config = load_config(run.path / "config.yaml")
    if learner not in config.models.learners:
        raise RunError(
            f'unknown learner "{learner}" in {run.path}. Expected one of {", ".join(config.models.learners)}.'
        )
    checkpoint = _checkpoint(run.path, step)
    with _new_target(to, "model") as folder:
        options: dict[str, Any] = {"dtype": "auto", "trust_remote_code": config.models.trust_remote_code}
        student = load_policy(checkpoint.weights(learner), learner, **options)
        model, processor = _merged(student, checkpoint.weights(learner), **options), student.processor
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        _require_same(student, folder, **options)
        card = model_card(run, config, checkpoint.step, learner, auto_class(model.config).__name__, _rank(student))
        if has_video_part(processor):
            card += NEEDS_TORCHVISION
        (folder / "README.md").write_text(card, "utf-8")
    target = str(to) if str(to).startswith(HUB) else str(Path(to).resolve())
    exports = [export for export in run.status.get("exports") or [] if export["to"] != target]
    run.update(exports=[*exports, {"to": target, "learner": learner, "step": checkpoint.step}])
    return Exported(str(to), checkpoint.step, sum(parameter.numel() for parameter in model.parameters()))


NEEDS_TORCHVISION = """
`AutoProcessor` needs the package torchvision here, for the video part of this processor.
"""


def export_traces(run_dir: str | Path, to: str | Path) -> Exported:
    """Export the traces of a run to a new folder, or to hf:OWNER/NAME, as a Hugging Face dataset.

    Raises: TraceError if the run has no traces; ConfigError if the folder exists or the package datasets is missing.
    """
    run = RunFolder.open(run_dir)
    traces = open_traces(run.path)
    with _new_target(to, "dataset") as folder:
        rows = write_dataset(traces, folder, f"traces of {run.path.resolve().name}")
        return Exported(str(to), max(traces.steps()), rows=rows)


def _checkpoint(run_dir: Path, step: int | None) -> Checkpoint:
    if step is not None:
        return open_checkpoint(checkpoint_path(run_dir, step))
    checkpoint, torn = latest_checkpoint(run_dir)
    if checkpoint is None:
        raise RunError(f"{run_dir} has no complete checkpoint yet. {' '.join(torn)}")
    return checkpoint


def _merged(student: AutoregressivePolicy, folder: Path, **options: Any) -> nn.Module:
    """The student's model with its adapter merged into the weights."""
    if not has_adapter(student.model):
        return student.model
    model, _ = load_model(base_of(folder), student.name, **options)
    if adapts_tied_weights(student.model):
        untie(model)
    weights = merged_weights(student.model)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(
            f"cannot merge the adapter of {student.name} into its model: {' '.join(str(error).split())[:300]}. Merge "
            "it with peft (merge_and_unload)."
        ) from error
    return model


def _require_same(student: AutoregressivePolicy, folder: Path, **options: Any) -> None:
    """Raise RunError if the exported model and the student differ on a batch of two prompts."""
    exported = load_policy(folder, "exported", **options)
    inputs = _batch(student)
    with torch.no_grad():
        student_logprobs, exported_logprobs = (
            policy.model(**policy._to_device(inputs)).logits.float().log_softmax(-1) for policy in (student, exported)
        )
    # equal entries differ by 0, also where both are minus infinity
    apart = torch.where(student_logprobs == exported_logprobs, 0.0, (student_logprobs - exported_logprobs).abs())
    difference = float(apart[inputs["attention_mask"].bool()].max())
    allowed = TOLERANCE[str(student.model.dtype).removeprefix("torch.")]
    if not difference <= allowed:
        raise RunError(
            f"the exported model differs from the trained student by up to {difference:.2g} nats on a test batch "
            f"(allowed: {allowed:g}), so nothing was exported. With LoRA, choose models.lora.target_modules without "
            "embeddings and head; otherwise plain transformers cannot represent these weights."
        )


def _batch(student: AutoregressivePolicy) -> dict[str, torch.Tensor]:
    """A batch of two prompts of different length with answers, and images of two sizes if the model takes images."""
    pictures = [Image.radial_gradient("L").resize(size).convert("RGB") for size in ((64, 48), (40, 80))]
    answers = [tuple(student.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("red 3", "a")]
    sees = getattr(student.processor, "image_processor", None) is not None
    prompts = [
        Prompt((picture,) if sees else (), text, key="")
        for picture, text in zip(pictures, ("what is this?", "which of the two is larger?"), strict=True)
    ]
    return student.model_inputs(prompts, answers)[0]


@contextlib.contextmanager
def _new_target(to: str | Path, kind: str) -> Iterator[Path]:
    """Open a folder that is renamed into place, or uploaded to the hub, when complete."""
    if str(to).startswith(HUB):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
            _upload(Path(folder), str(to).removeprefix(HUB), kind)
        return
    target = Path(to)
    if os.path.lexists(target):
        raise ConfigError(f"{target} exists already. Name a new folder.")
    with (
        saving(target, "Free some space, check the permissions, or name another folder."),
        new_folder(target) as folder,
    ):
        yield folder


def _upload(folder: Path, name: str, kind: str) -> None:
    import huggingface_hub  # noqa: PLC0415  (slow to import)

    api = huggingface_hub.HfApi()
    try:
        api.create_repo(name, repo_type=kind, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, repo_type=kind, folder_path=folder)
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise RunError(
            f"cannot upload to {HUB}{name}: {text}. Check the network and the token (`hf auth login`), or export to a "
            "folder and upload that."
        ) from error


def _rank(student: AutoregressivePolicy) -> int:
    """Rank of the student's adapter; 0 without one."""
    return max((getattr(adapter, "r", 0) for adapter in getattr(student.model, "peft_config", {}).values()), default=0)


def model_card(run: RunFolder, config: RunConfig, step: int, learner: str, auto_class: str, rank: int = 0) -> str:
    """README.md of an exported student: method, data, context in use, evidence of the teachers, evaluation."""
    method = config.load_method()
    context = method.learner_context
    evidence = [view for view in method.views.values() if is_privileged(view.context)]
    never = list(dict.fromkeys(part for view in evidence for part in parse_context(view.context)))
    base = str(config.models.learners[learner])
    views = "\n".join(
        f"| `{name}` | {view.policy} | {view.context} | {'trained' if view.learns else 'scoring only'} |"
        for name, view in method.views.items()
    )
    training, commit = config.training, run.status.get("commit") or "not known"
    given = "the images and the question" if context == "plain" else f"the context {context}"
    teachers = ", ".join(dict.fromkeys(map(_name, [config.models.teacher, *(config.models.teachers or {}).values()])))
    return f"""---
{dump_yaml(_card_metadata(base, method.name, auto_class)).strip()}
---
# {run.path.resolve().name}

{_name(base)} after {step} steps of `{method.name}`, exported by the VLM distillation workbench (commit {commit}).

## Method

{method_module(method.name).__doc__.strip()}

Teacher: {teachers or "none"}. Learning rate {training.learning_rate:g}, {training.batch_size} questions a step with
{config.sampling.num_generations} answers each, seed {config.seed}{f", LoRA of rank {rank}, merged" if rank else ""}.

| view | policy | context | |
|---|---|---|---|
{views}

## Data

Questions: {", ".join(_name(source.path) for source in config.data.train_sources)}.

## Context in use

Give this model `{context}`: {given}, and nothing else.
{_image_limit(config.models.max_pixels)}{_withheld(never)}

## Evaluation

{_evaluation(run, step, learner, context)}
{_benchmarks(run, step, learner)}
## Use

```python
from transformers import {auto_class}, AutoProcessor

model = {auto_class}.from_pretrained(FOLDER)
processor = AutoProcessor.from_pretrained(FOLDER)
```
"""


def _image_limit(max_pixels: int | None) -> str:
    """Sentence about the size of images in training."""
    if max_pixels is None:
        return ""
    return f"In training, an image of more than {max_pixels:,} pixels was reduced to that; reduce larger ones alike.\n"


def _withheld(evidence: list[str]) -> str:
    """Sentence about the evidence that only the scoring views had during training."""
    if not evidence:
        return "During training, no view had more than that."
    parts = " and ".join(f"`{part}`" for part in evidence)
    return (
        f"During training, the scoring views above also had the {parts} of each question. The model may have learned "
        "to state details that only this evidence shows, so do not take its confidence (below) for knowledge."
    )


def _card_metadata(base: str, method: str, auto_class: str) -> dict[str, object]:
    """Metadata for the hub; `base_model` only if it can be a name on the hub."""
    metadata: dict[str, object] = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text" if auto_class == "AutoModelForImageTextToText" else "text-generation",
        "tags": ["vlm-distillation-workbench", "distillation", method],
    }
    is_on_hub = not Path(base).exists() and base.count("/") == 1
    return metadata | ({"base_model": base} if is_on_hub else {})


def _evaluation(run: RunFolder, step: int, learner: str, student_context: str) -> str:
    """Table of accuracy and confidence by context and step, starting with the context in use."""
    rows = [row for row in load_records(run.path) if row.policy == learner and row.step <= step]
    lines = []
    for context in dict.fromkeys([student_context, *(row.context for row in rows)]):
        for at in sorted({row.step for row in rows if row.context == context}):
            summary = measure(row for row in rows if row.context == context and row.step == at)
            if summary is not None:
                use = "in use" if context == student_context else "not in use"
                numbers = f"{summary.count} | {summary.accuracy:.1%} | {summary.confidence:.1%}"
                lines.append(f"| {context} ({use}) | {at} | {numbers} |")
    if not any("(in use)" in line for line in lines):
        command = f"workbench eval {run.path.resolve().name} --contexts {student_context}"
        return f"Not evaluated under `{student_context}`. To do so, run `{command}`."
    table = "\n".join(lines)
    return f"""One seed. Confidence is the mean over questions of the {CONFIDENCE}.

| context | step | questions | right | confidence |
|---|---|---|---|---|
{table}"""


def _benchmarks(run: RunFolder, step: int, learner: str) -> str:
    """Section of imported results of this step's exported student; empty without any."""
    rows = [row for row in load_benchmarks(run.path) if (row.learner, row.step) == (learner, step)]
    if not rows:
        return ""
    lines = [
        BENCHMARK_COLUMNS[:-1],
        ("---",) * (len(BENCHMARK_COLUMNS) - 1),
        *(row[:-1] for row in benchmark_rows(rows)),
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"""
## Benchmarks

Measured by other tools on an export of these weights, each value in the unit of its tool.

{table}
"""


def _name(path: object) -> str:
    """Name of a model or dataset for the card, without local folders."""
    text = str(path)
    return text if path is None or ":" in text or not Path(text).exists() else Path(text).name
