"""Proof of shortcuts: compare each shortcut of a policy with the model's own forward pass before its first use.

A few short rows are scored and sampled as in a run: several lengths in one padded batch, images of two sizes if the
model takes images, and two answers to one prompt. The reference is `model(**inputs).logits` of each row alone. A
shortcut with other log-probs is switched off; differences without any shortcut are reported, and loading for a run
refuses them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from workbench.errors import PolicyError
from workbench.policies.heads import Seen, find_head, output_layer, watched
from workbench.policies.image_features import cached_image_features
from workbench.policies.passes import Sent
from workbench.policies.shortcuts import Shortcuts
from workbench.policies.view_output import Head
from workbench.types import Prompt

if TYPE_CHECKING:
    from workbench.policies.autoregressive import AutoregressivePolicy

MOST_LIKELY = 32  # compared tokens per position
# allowed mean difference by rounding, relative to the distance between highest and mean logit of a position
TOLERANCE = {torch.float32: 2e-5, torch.float64: 2e-5, torch.float16: 1e-2, torch.bfloat16: 4e-2}
QUANTIZED = 8e-2
FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError)
_ROWS = ((0, 0, 3), (1, 1, 6), (2, 2, 4), (0, 3, 5))  # prompt; first and last token of its completion
_ANSWER = "a small red circle left of the large blue square"
_WHY = {
    "head": "its logits are not its output layer over its last hidden states: all logits of a pass are held at once",
    "rows": "scores depend on padding: each row passes alone, which is slow",
    "positions": "it counts padding among the positions: it is given positions without",
    "cache": "a cache gives different log-probs: each sampled token passes its whole row again, which is slow",
    "prompts": "its cache cannot be repeated for several answers: a prompt passes once for each answer",
    "packing": "sequences that share a row give other log-probs",
    "pictures": "pictures encoded apart give different log-probs: they are encoded with each row",
}


@dataclass(frozen=True)
class Proof:
    """Result for a model.

    off      disabled shortcuts with their error in nats (None = not tried, or failed); `positions` if it needs them
    differs  differences to the model's own forward pass without any shortcut
    head     operations after its output layer: scale, soft_cap, never
    """

    shortcuts: Shortcuts
    off: dict[str, float | None] = field(default_factory=dict)
    differs: tuple[str, ...] = ()
    head: dict[str, Any] = field(default_factory=dict)

    @property
    def sentences(self) -> list[str]:
        """One sentence per disabled shortcut or difference."""
        gaps = {name: "" if gap is None else f" (off by {gap:.1e} nats)" for name, gap in self.off.items()}
        return [f"{_WHY[name]}{gap}" for name, gap in gaps.items()]


@dataclass(frozen=True)
class Trial:
    """Prompts and completions of the rows, and their reference logits."""

    prompts: list[Prompt]
    completions: list[tuple[int, ...]]
    reference: list[Float[Tensor, "_ V"]]
    tolerance: float  # nats

    def gap(self, *ways: Callable[["Trial"], list[Tensor]]) -> float:
        """Largest error of log-probs in nats over several ways to compute them; infinite if one fails."""
        worst = 0.0
        for way in ways:
            try:
                with cached_image_features():
                    states = way(self)
                gaps = [_distance(*pair) for pair in zip(states, self.reference, strict=True)]
            except torch.OutOfMemoryError:
                raise
            except FAILURES:
                return float("inf")
            worst = max([worst, *(gap if gap == gap else float("inf") for gap in gaps)])
        return worst


@torch.no_grad()
def prove(policy: "AutoregressivePolicy") -> Proof:
    """Test the shortcuts of a policy against its model's own forward pass; apply the result with `policy.apply`.

    Raises: PolicyError if the model's own forward pass fails.
    """
    configured = policy.shortcuts
    with policy.evaluation(), torch.autocast(policy.device.type, enabled=False):
        trial, seen = trial_of(policy)
        head = _find_head(policy, trial, seen)
        proof = _settled(policy, trial, head, configured)
        if proof.off and policy.takes_positions and len(proof.off.keys() - {"head"}):
            other = _settled(policy, trial, head, replace(configured, positions=True))
            proof = min(proof, replace(other, off={"positions": None, **other.off}), key=_num_lost)
        policy.apply(proof)
        differs = tuple(_differences(policy, trial))
    unusual = {} if head else {"head": None}
    if not configured.cache:
        unusual["cache"] = None
    elif not configured.prompts and "cache" not in proof.off:
        unusual["prompts"] = None
    return replace(proof, off=unusual | proof.off, differs=differs)


def _num_lost(proof: Proof) -> int:
    return len(proof.off.keys() - {"positions"})


def _settled(policy: "AutoregressivePolicy", trial: Trial, head: Head | None, configured: Shortcuts) -> Proof:
    """Test the configured shortcuts one after the other, each together with those that passed before."""
    off: dict[str, float | None] = {}
    settings = {} if head is None else {name: getattr(head, name) for name in ("scale", "soft_cap", "never")}
    now = replace(
        configured, head=head is not None, rows=False, cache=False, prompts=False, pictures=False, packing=False
    )
    score, sample = _scorer(policy), _sampler(policy)
    trials = {
        "rows": (score,),
        "pictures": (score,),
        "cache": (sample,),
        "prompts": (score, sample),
        "packing": _packers(policy),
    }
    for name, ways in trials.items():
        if not getattr(configured, name) or (name == "prompts" and not now.cache):
            continue
        tried = replace(now, **{name: True})
        policy.apply(Proof(tried, head=settings))
        gap = trial.gap(*ways) if name != "pictures" or policy.shares_pictures else 0.0
        if gap <= trial.tolerance:
            now = tried
        else:
            off[name] = gap if gap < float("inf") else None
    return Proof(now, off, head=settings)


def _differences(policy: "AutoregressivePolicy", trial: Trial) -> Iterator[str]:
    for what, way in (("scores", _scorer(policy)), ("samples", _sampler(policy))):
        gap = trial.gap(way)
        if gap > trial.tolerance:
            how = "it fails" if gap == float("inf") else f"log-probs are {gap:.1e} nats off"
            yield f"its {what} differ from the model's own forward pass: {how} (allowed: {trial.tolerance:.1e})"


def _scorer(policy: "AutoregressivePolicy") -> Callable[[Trial], list[Tensor]]:
    def score(trial: Trial) -> list[Tensor]:
        logits = policy.head(policy.completion_states(trial.prompts, trial.completions))
        return list(logits.split([len(ids) for ids in trial.completions]))

    return score


def _packers(policy: "AutoregressivePolicy") -> tuple[Callable[[Trial], list[Tensor]], ...]:
    """Scores with all rows of a trial end to end in one, and where the attention allows it in two rows."""

    def packer(num_rows: int) -> Callable[[Trial], list[Tensor]]:
        def score(trial: Trial) -> list[Tensor]:
            count = len(trial.prompts)
            rows = [list(range(count))[first::num_rows] for first in range(num_rows)]
            hidden = policy.packed_states(trial.prompts, trial.completions, [row for row in rows if row])
            return list(policy.head(hidden).split([len(ids) for ids in trial.completions]))

        return score

    return (packer(1),) if policy.packs_single_row else (packer(1), packer(2))


def _sampler(policy: "AutoregressivePolicy") -> Callable[[Trial], list[Tensor]]:
    """Hidden states as in sampling, token by token, with the trial's completions as samples."""

    def sample(trial: Trial) -> list[Tensor]:
        hidden_states: list[Tensor] = [torch.empty(0)] * len(trial.prompts)
        for part in policy.parts(trial.prompts):
            states = policy.states([trial.prompts[row] for row in part])
            completions = [trial.completions[row] for row in part]
            steps = [policy.head(next(states))]
            for column in range(max(map(len, completions)) - 1):
                drawn = [ids[min(column, len(ids) - 1)] for ids in completions]
                steps.append(policy.head(states.send(Sent(torch.tensor(drawn, device=policy.device)))))
            for idx, row in enumerate(part):
                hidden_states[row] = torch.stack([step[idx] for step in steps[: len(trial.completions[row])]])
        return hidden_states

    return sample


def _find_head(policy: "AutoregressivePolicy", trial: Trial, seen: Seen) -> Head | None:
    policy.apply(Proof(Shortcuts(rows=False, cache=False, prompts=False, pictures=False)))
    try:
        hidden = policy.completion_states(trial.prompts[:1], trial.completions[:1])
    except torch.OutOfMemoryError:
        raise
    except FAILURES:  # some models have no callable base model
        return None
    return find_head(policy.model, hidden, seen, trial.reference[0])


def trial_of(policy: "AutoregressivePolicy") -> tuple[Trial, Seen]:
    """Rows that the model's own forward pass accepts, and the output layer's inputs for the first."""
    ids, prompt_by_row, first = _completion(policy), {}, None
    prompts, completions, reference = [], [], []
    failure: Exception | None = None
    for prompt_idx, start, stop in _ROWS:
        for prompt in [prompt_by_row[prompt_idx]] if prompt_idx in prompt_by_row else _prompts(policy, prompt_idx):
            try:
                with watched(output_layer(policy.model)) as seen:
                    logits = policy.plain_logits(prompt, ids[start:stop])
            except torch.OutOfMemoryError:
                raise
            except (PolicyError, *FAILURES) as error:
                failure = failure or error
                continue
            prompt_by_row[prompt_idx], first = prompt, first or seen
            prompts.append(prompt)
            completions.append(ids[start:stop])
            reference.append(logits)
            break
    if first is None:
        raise _no_pass(policy, failure) from failure
    if policy.processor is not policy.tokenizer and not any(prompt.images for prompt in prompts):
        raise _no_pass(policy, failure) from failure
    spread = max(float((row.float().amax(-1) - row.float().mean(-1)).mean()) for row in reference)
    quantized = getattr(policy.model, "hf_quantizer", None) is not None
    relative = QUANTIZED if quantized else TOLERANCE.get(next(policy.model.parameters()).dtype, 4e-2)
    return Trial(prompts, completions, reference, relative * spread + 1e-6), first


def _no_pass(policy: "AutoregressivePolicy", failure: Exception) -> PolicyError:
    reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
    what = "a small prompt" if policy.processor is policy.tokenizer else "a small prompt with an image"
    return PolicyError(
        f"{policy.name}: the forward pass of {type(policy.model).__name__} fails on {what} "
        f"({reason[:300]}). Expected a model whose forward pass takes its processor's outputs and returns logits. "
        "Choose another model, or another version of transformers, and check models.image_processor if it is set."
    )


def _prompts(policy: "AutoregressivePolicy", prompt_idx: int) -> list[Prompt]:
    """Candidate prompts for one row, in order of preference."""
    texts = ("red", "what is the color of the larger one of these?", "which one is it?")
    wide, tall = _picture(96, 64), _picture(72, 120)
    image_sets = {0: [(wide,), ()], 1: [(tall, wide), (tall,), ()], 2: [()]}[prompt_idx]
    if policy.processor is policy.tokenizer:
        image_sets = [()]
    return [Prompt(pictures, texts[prompt_idx], key=f"proof-{prompt_idx}-{len(pictures)}") for pictures in image_sets]


def _picture(width: int, height: int) -> Image.Image:
    """Image of a two-color gradient with a border, all parts of which differ."""
    red = Image.linear_gradient("L").resize((width, height))
    image = Image.merge("RGB", (red, red.rotate(180), Image.new("L", red.size, 90)))
    image.paste((250, 240, 10), (0, 0, width, 4))
    return image


def _completion(policy: "AutoregressivePolicy") -> tuple[int, ...]:
    """At least eight tokens of ordinary text."""
    ids = policy.tokenizer(_ANSWER, add_special_tokens=False)["input_ids"]
    usual = [token for token in ids if not policy.is_special(token)] or [0]
    return tuple((usual * 8)[: max(8, len(usual))])


def _distance(logits: Float[Tensor, "T V"], reference: Float[Tensor, "T V"]) -> float:
    """Mean absolute difference of the log-probs of the most likely tokens, in nats."""
    logprobs = reference.float().log_softmax(-1)
    likely = logprobs.topk(min(MOST_LIKELY, logprobs.shape[-1]), -1)
    return float((logits.float().log_softmax(-1).gather(-1, likely.indices) - likely.values).abs().mean())
