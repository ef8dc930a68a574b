"""A run's student for people who do not have the workbench: a folder that plain transformers loads, with a model card.

The student alone: no teacher, no moving average, no optimizer; LoRA is merged into the weights. The card says what taught it,
with which evidence, what it never sees, and how it answers with the context that it will have.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from workbench.answers import CONFIDENCE, load_answers, measure
from workbench.checkpoints import Checkpoint, latest_checkpoint, open_checkpoint
from workbench.config import RunConfig, load_config
from workbench.contexts import is_privileged, parse_context
from workbench.errors import ConfigError, RunError
from workbench.folders import new_folder, saving
from workbench.methods import method_module
from workbench.policies.processors import has_video_part
from workbench.policies.weights import auto_class, load_model
from workbench.runs import RunFolder, checkpoint_path
from workbench.traces.dataset import write_dataset
from workbench.traces.reader import open_traces
from workbench.types import STUDENT

try:
    from peft import PeftModel
except ImportError:  # the optional extra "lora"
    PeftModel = None

HUB = "hf:"


@dataclass(frozen=True)
class Exported:
    """Where it went and what it is."""

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
        return f"traces up to step {self.step} ({rows}) as a data set: {self.target}"


def export_student(
    run_dir: str | Path, to: str | Path, *, step: int | None = None, learner: str = STUDENT, dtype: str = "auto"
) -> Exported:
    """Write the student of a run's checkpoint `step` (None = the newest) to a new folder, or to hf:OWNER/NAME.

    dtype  of the weights; auto = as they were trained
    Raises: RunError if there is no such checkpoint or learner; ConfigError if the folder exists, PolicyError if the
    student cannot be loaded.
    """
    run = RunFolder.open(run_dir)
    config = load_config(run.path / "config.yaml")
    if learner not in config.models.learners:
        raise RunError(f'"{learner}" did not learn in {run.path}; there are {", ".join(config.models.learners)}.')
    checkpoint = _checkpoint(run.path, step)
    with _new_target(to, "model") as folder:
        model, processor = _load(checkpoint.weights(learner), learner, dtype, config.models.trust_remote_code)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        card = model_card(run, config, checkpoint.step, learner, auto_class(model.config).__name__)
        if has_video_part(processor):
            card += NEEDS_TORCHVISION
        (folder / "README.md").write_text(card, "utf-8")
        return Exported(str(to), checkpoint.step, sum(one.numel() for one in model.parameters()))


NEEDS_TORCHVISION = """
`AutoProcessor` needs the package torchvision here, for the part of this processor that takes videos.
"""


def export_traces(run_dir: str | Path, to: str | Path) -> Exported:
    """Write the traces of a run to a new folder, or to hf:OWNER/NAME, as a Hugging Face data set.

    Raises: TraceError if there are none; ConfigError if the folder exists or the package datasets is missing.
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


def _load(folder: Path, name: str, dtype: str, trust: bool) -> tuple:
    """The student's model with adapters merged, and its processor."""
    adapter = folder / "adapter_config.json"
    if not adapter.is_file():
        return load_model(folder, name, dtype=dtype, trust_remote_code=trust)
    if PeftModel is None:
        raise ConfigError(f"{folder} holds a LoRA adapter: install vlm-distillation-workbench[lora] to merge it.")
    base = json.loads(adapter.read_text())["base_model_name_or_path"]
    model, processor = load_model(base, name, dtype=dtype, trust_remote_code=trust)
    return PeftModel.from_pretrained(model, folder).merge_and_unload(), processor


@contextlib.contextmanager
def _new_target(to: str | Path, kind: str) -> Iterator[Path]:
    """A folder to write in, that appears under its name, or is sent to the hub, when it is whole."""
    if str(to).startswith(HUB):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
            _upload(Path(folder), str(to).removeprefix(HUB), kind)
        return
    target = Path(to)
    if os.path.lexists(target):
        raise ConfigError(f"{target} exists already. Name a new folder; an export never writes into an old one.")
    with saving(target, "Free some space, check the rights, or name another folder."), new_folder(target) as folder:
        yield folder


def _upload(folder: Path, name: str, kind: str) -> None:
    import huggingface_hub  # noqa: PLC0415  (needs a network; only those wait for it who ask)

    api = huggingface_hub.HfApi()
    try:
        api.create_repo(name, repo_type=kind, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, repo_type=kind, folder_path=folder)
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise RunError(
            f"{HUB}{name} could not be written ({text}). Check the network and the token (`hf auth login`), or export to a "
            "folder and upload that."
        ) from error


def model_card(run: RunFolder, config: RunConfig, step: int, learner: str, auto_class: str) -> str:
    """README.md of an exported student: method, data, evidence, what it never sees, and how it answers without it."""
    method = config.load_method()
    shown = method.views[method.learner].context
    evidence = [view for view in method.views.values() if is_privileged(view.context)]
    never = list(dict.fromkeys(part for view in evidence for part in parse_context(view.context)))
    base = str(config.models.learners[learner])
    pipeline = "image-text-to-text" if auto_class == "AutoModelForImageTextToText" else "text-generation"
    head = {
        "library_name": "transformers",
        "pipeline_tag": pipeline,
        "tags": ["vlm-distillation-workbench", "distillation", method.name],
    }
    if not Path(base).exists() and base.count("/") == 1:
        head["base_model"] = base
    views = "\n".join(
        f"| `{name}` | {view.policy} | {view.context} | {'learns' if view.learns else 'read only'} |"
        for name, view in method.views.items()
    )
    status, training = run.status, config.training
    teachers = ", ".join(dict.fromkeys(map(_name, [config.models.teacher, *(config.models.teachers or {}).values()])))
    return f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---
# {run.path.resolve().name}

{_name(base)} after {step} steps of `{method.name}`, written by the VLM distillation workbench (commit {status.get("commit") or "not known"}).

## How it was taught

{method_module(method.name).__doc__.strip()}

Teacher: {teachers or "none"}. Learning rate {training.learning_rate:g}, {training.batch_size} questions a step with
{config.sampling.num_generations} answers each, seed {config.seed}{f", LoRA of rank {config.models.lora.rank}, merged" if config.models.lora.rank else ""}.

| view | policy | shown | |
|---|---|---|---|
{views}

## Data

Questions: {_name(config.data.train)}.

## What it never sees

This model is to be given `{shown}`: {"the images and the question" if shown == "plain" else f"what the context {shown} shows"}, and nothing else.
{f"While it was taught, {' and '.join(f'`{part}`' for part in never)} of each question was shown to the views above that learn nothing. What can be known only from that, it may have learned to claim: see how sure it is, below, and do not take its confidence for knowledge." if never else "No view was shown more than that while it was taught."}

## Evaluation

{_evaluation(run, step, learner, shown)}

## Use

```python
from transformers import {auto_class}, AutoProcessor

model = {auto_class}.from_pretrained(FOLDER)
processor = AutoProcessor.from_pretrained(FOLDER)
```
"""


def _evaluation(run: RunFolder, step: int, learner: str, shown: str) -> str:
    """Accuracy and confidence under the context of use, before and after; other contexts are named as what they are."""
    rows = [row for row in load_answers(run.path) if row.policy == learner and row.step <= step]
    lines = []
    for context in dict.fromkeys([shown, *(row.context for row in rows)]):
        for at in sorted({row.step for row in rows if row.context == context}):
            found = measure(row for row in rows if row.context == context and row.step == at)
            if found is not None:
                use = "as in use" if context == shown else "not as in use"
                lines.append(
                    f"| {context} ({use}) | {at} | {found.count} | {found.accuracy:.1%} | {found.confidence:.1%} |"
                )
    if not any("(as in use)" in line for line in lines):
        return f"It was not evaluated under `{shown}`. `workbench eval {run.path.resolve().name} --contexts {shown}` does it."
    table = "\n".join(lines)
    return f"""One seed. Confidence is the mean over questions of the {CONFIDENCE}.

| context | step | questions | right | confidence |
|---|---|---|---|---|
{table}"""


def _name(path: object) -> str:
    """A model or data set as a card may call it: without the folders of this machine."""
    text = str(path)
    return text if path is None or ":" in text or not Path(text).exists() else Path(text).name
