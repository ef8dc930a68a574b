"""`workbench teacher --engine vllm --compare`: hidden states of vLLM against the whole model by transformers."""

from pathlib import Path
from typing import Any

import torch

from workbench.errors import PolicyError
from workbench.policies.loading import load_policy
from workbench.policies.proof import trial_of
from workbench.policies.serving.engine import NAME, Engine
from workbench.policies.serving.wire import TEMPLATE, ReadRequest


def compare_with_transformers(engine: Engine, model: str | Path, **options: Any) -> str:
    """The distance of an engine's log-probs from those of transformers, which loads the model on the CPU meanwhile.

    The rows and the allowed distance are those by which transformers' own shortcuts are proven (policies/proof.py).

    Raises: PolicyError if it is larger than rounding explains.
    """
    whole = load_policy(model, NAME, max_pixels=None, device="cpu", **options)
    whole.prove()
    with torch.no_grad():
        trial, _ = trial_of(whole)
        rows = list(range(len(trial.prompts)))
        template = dict(zip(TEMPLATE, (None, {}, {}), strict=True))
        states = engine.hidden_states(ReadRequest(trial.prompts, rows, trial.completions, [rows], template))
        gap = trial.gap(lambda _: [whole.head(hidden) for hidden in states])
    images = sum(len(prompt.images) for prompt in trial.prompts)
    text = (
        f"{len(trial.prompts)} answers with {images} pictures: log-probs of likely tokens differ from transformers' by"
    )
    if gap > trial.tolerance:
        raise PolicyError(
            f"{model}, {text} {gap:.1e} nats on average, and rounding explains {trial.tolerance:.1e}. Choose --engine "
            "transformers, or other versions of vllm and transformers."
        )
    return f"{text} {gap:.1e} nats on average (allowed: {trial.tolerance:.1e})"
