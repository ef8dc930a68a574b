"""Try one model type: load, score, train, save, load again and resume, each compared with transformers' own numbers.

`families.table` does this in a process for each model type, so that a crash or a hang is that model type's alone.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from PIL import Image

from workbench.config.schema import RunConfig, build_config
from workbench.distill.losses import score
from workbench.errors import WorkbenchError
from workbench.files.packages import missing_package
from workbench.policies import SamplingOptions
from workbench.policies.autoregressive import AutoregressivePolicy, load_policy
from workbench.policies.scope import out_of_scope
from workbench.runs.checkpoints import list_checkpoints
from workbench.runs.folder import RunFolder
from workbench.training.check import check_config, is_good
from workbench.training.families.build import save_family
from workbench.training.run import train
from workbench.types import Prompt

FAST, PLAIN, REFUSED, MISSING, FAILED, OUT = "fast", "plain", "refused", "not buildable here", "failed", "out of scope"
TOLERANCE = 1e-4  # nats, float32
_NEW_TOKENS = 6


@dataclass(frozen=True)
class Outcome:
    """Result for a model type: one of the statuses above, and the sentence that explains it (costs, or an error)."""

    model_type: str
    status: str
    sentence: str = ""


class TrialError(Exception):
    """A number that differs from what transformers computes."""


def try_family(model_type: str, folder: Path) -> Outcome:
    """Build, check, train and resume a model type in a folder."""
    reason = out_of_scope(transformers.AutoConfig.for_model(model_type))
    if reason is not None:
        return Outcome(model_type, OUT, reason)
    try:
        names = {name: save_family(folder / name, model_type, seed) for seed, name in enumerate(("student", "teacher"))}
    except ImportError as error:
        return Outcome(model_type, MISSING, missing_package(error) or _one_line(error))
    except Exception as error:  # transformers raises errors of every kind
        return Outcome(model_type, FAILED, f"cannot be built: {type(error).__name__}: {_one_line(error)}")
    try:
        policy = load_policy(names["student"], "student")
        policy.prove()
        _compare_with_generate(policy)
        train(run_config(names, folder, "opd", policy, steps=1))
        _check_and_resume(run_config(names, folder, "dopd", policy, steps=2))
    except (WorkbenchError, TrialError) as error:
        return Outcome(model_type, REFUSED if isinstance(error, WorkbenchError) else FAILED, _one_line(error))
    except Exception as error:  # what fails is the table's content
        return Outcome(model_type, FAILED, f"{type(error).__name__}: {_one_line(error)}")
    costs = _costs(policy)
    return Outcome(model_type, PLAIN if costs else FAST, "; ".join(costs))


def _costs(policy: AutoregressivePolicy) -> list[str]:
    """What the plain path costs, without shortcuts that the model type does not lack."""
    costs = list(policy.proof.sentences)
    if takes_images(policy) and not policy.shares_pictures and "pictures" not in policy.proof.off:
        costs.append("pictures pass through the model's own forward pass with each row")
    return costs


def takes_images(policy: AutoregressivePolicy) -> bool:
    """Whether the policy has an image processor."""
    return policy.processor is not policy.tokenizer


def _compare_with_generate(policy: AutoregressivePolicy) -> None:
    """Compare scores and samples with `model.generate`: two prompts padded on the left, two answers to one of them."""
    prompts = [Prompt((), "which one is it?", key="text")]
    if takes_images(policy):
        images = [picture(96, 64), picture(64, 96)]
        prompts = [Prompt((images[0],), "red", key="a"), Prompt((images[1],), "what is the color of this?", key="b")]
    answers = [_generate(policy, prompt) for prompt in prompts]
    rows = [*range(len(prompts)), 0]
    with torch.no_grad():
        output = policy.forward([prompts[row] for row in rows], [answers[row][0] for row in rows])
        scored = score(output, torch.tensor(sum((answers[row][0] for row in rows), ()))).logprob
    expected = torch.cat([answers[row][1] for row in rows])
    _require_close("scores of generated answers", scored, expected)
    if takes_images(policy):
        other = Prompt((picture(64, 64, swapped=True),), prompts[0].text, key="c")
        with torch.no_grad():
            blind = score(policy.forward([other], [answers[0][0]]), torch.tensor(answers[0][0])).logprob
        if float((blind - answers[0][1]).abs().max()) < TOLERANCE:
            raise TrialError("another image gives the same log-probs: the model does not get the image")
    _check_samples(policy, prompts)


def _check_samples(policy: AutoregressivePolicy, prompts: list[Prompt]) -> None:
    """Sampled log-probs are those of scoring, and an answer that ended has one end token, its last."""
    seeds = [[1, 2] for _ in prompts]
    for prompt, completions in zip(prompts, policy.sample(prompts, seeds, SamplingOptions(_NEW_TOKENS)), strict=True):
        for item in completions:
            with torch.no_grad():
                scored = score(policy.forward([prompt], [item.ids]), torch.tensor(item.ids)).logprob
            _require_close("log-probs of samples", torch.tensor(item.logprobs), scored)
            ends = [token in policy.stop_ids for token in item.ids]
            if any(ends[:-1]) or ends[-1] != item.finished:
                raise TrialError(f"an answer ends in the wrong place: {item.ids}")
    if policy.answer_ids("red")[-1] not in policy.stop_ids:
        raise TrialError("a tokenized answer has no end token")


def _generate(policy: AutoregressivePolicy, prompt: Prompt) -> tuple[tuple[int, ...], torch.Tensor]:
    """Greedy answer of transformers without special tokens, and its log-probs."""
    tokens = [token for token in range(policy.vocabulary) if policy.is_special(token)]
    dtype = next(policy.model.parameters()).dtype
    inputs = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in policy.encoder.encode(prompt).items()
    }
    with torch.no_grad():
        generated = policy.model.generate(
            **inputs,
            max_new_tokens=_NEW_TOKENS,
            do_sample=False,
            suppress_tokens=tokens,
            output_logits=True,
            return_dict_in_generate=True,
        )
    ids = generated.sequences[0, -len(generated.logits) :]
    logprobs = torch.stack(generated.logits, 1)[0].float().log_softmax(-1)
    return tuple(ids.tolist()), logprobs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def _require_close(what: str, values: torch.Tensor, expected: torch.Tensor) -> None:
    gap = float((values - expected).abs().max())
    if not gap <= TOLERANCE:
        raise TrialError(f"{what} differ by {gap:.1e} nats (allowed: {TOLERANCE:g})")


def run_config(
    names: dict[str, Path], folder: Path, method: str, policy: AutoregressivePolicy, *, steps: int
) -> RunConfig:
    """Some steps of a method; a DOPD teacher gets a crop as one more image (a hint where there are no images)."""
    values = {"name": method}
    if method == "dopd":
        values["privilege"] = "crop" if takes_images(policy) else "hint"
    return build_config(
        {
            "name": method,
            "output_dir": str(folder / "runs"),
            "models": {name: str(path) for name, path in names.items()},
            "data": {"train": "scenes:train?count=4" if takes_images(policy) else str(_questions(folder))},
            "method": values,
            "sampling": {"num_generations": 2, "max_completion_length": 4},
            "training": {
                "steps": steps,
                "batch_size": 2,
                "learning_rate": 1e-3,
                "save_every": 1,
                "save_total_limit": 0,
            },
            "trace": {"probes": 0},
        }
    )


def _questions(folder: Path) -> Path:
    """Questions without images."""
    rows = [{"question": f"what is {n} and {n}?", "answer": str(2 * n), "hint": f"below {3 + 2 * n}"} for n in range(4)]
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def _check_and_resume(config: RunConfig) -> None:
    """Check, train two steps, delete the last checkpoint, resume: losses and weights must be the same."""
    checks = check_config(config)
    if not is_good(checks):
        wrong = next(check for check in checks if check.status == "WRONG")
        raise TrialError(f"check of {config.name}: {wrong.name}: {wrong.finding}")
    student = load_policy(config.models.student, "student")
    start = student.model.state_dict()
    train(config)
    losses = [line["loss"] for line in RunFolder.open(config.run_dir).metrics("train")]
    last = list_checkpoints(config.run_dir)[-1]
    trained = load_policy(last.student, "student")
    weights = trained.model.state_dict()
    if not trained.encoder.encodes_as(student.encoder):
        raise TrialError("the saved checkpoint encodes prompts in another way than the model that it started from")
    if all(torch.equal(start[name], value) for name, value in weights.items()):
        raise TrialError(f"{config.name} changed no weight")
    shutil.rmtree(last.path)
    train(config, resume=True)
    again = load_policy(list_checkpoints(config.run_dir)[-1].student, "student").model.state_dict()
    resumed = [line["loss"] for line in RunFolder.open(config.run_dir).metrics("train")]
    if resumed != losses or not all(torch.equal(again[name], value) for name, value in weights.items()):
        raise TrialError(f"{config.name} resumed gives other weights than an uninterrupted run")


def picture(width: int, height: int, *, swapped: bool = False) -> Image.Image:
    """Image of a two-color gradient with a border."""
    red = Image.linear_gradient("L").resize((width, height))
    image = Image.merge("RGB", (red.rotate(180), red, red) if swapped else (red, red.rotate(180), red))
    image.paste((250, 240, 10), (0, 0, width, 4))
    return image


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
