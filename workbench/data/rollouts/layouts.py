"""Layouts of logged rollouts: which column of a trainer's file holds which of ours.

A path of a layout names a value inside a row: keys and indices joined by dots. `*` takes the rest from every entry of
a list (lists of lists are joined), `:-1` all entries but the last.

The versions below are those whose source the mapping was read from.
"""

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from workbench.errors import ConfigError, unknown

ROLLOUT_COLUMNS = {
    "completion": "text, or turns of the assistant: the answer",
    "completion_ids": "list of token ids of the answer, with the end token if it was sampled",
    "logprobs": "list of the sampler's log-probs of completion_ids, in nats",
    "finished": "true or false: whether the answer ended by itself",
    "truncated": "true or false: the opposite of finished",
    "reward": "number: the trainer's reward",
    "step": "whole number: the trainer's step",
    "prompt": "text, or turns: what the answer was sampled for",
    "prompt_ids": "list of token ids of the prompt",
    "messages": "turns of the prompt and the answer together",
    "token_ids": "list of token ids of prompt and answer together, possibly padded",
    "token_logprobs": "list of log-probs, one for each of token_ids",
    "mask": "list of 0 and 1: which of token_ids belong to the answer",
    "num_tokens": "whole number: how many of token_ids are not padding",
    "completion_length": "whole number: how many of token_ids belong to the answer, which comes last",
    "id": "id of the example",
    "answer": "the right final answer",
    "sampled_by": "text: which policy sampled the answer",
}


@dataclass(frozen=True)
class RolloutLayout:
    """Where a trainer's rows have our columns.

    meaning  trainer, setting that writes the file, and version
    files    patterns of the files' names
    shows    columns that all rows have, by which the layout is recognized
    columns  our column -> paths of theirs, in order of preference
    groups   columns that hold several named numbers: {name: number} or {name: {score: number}}
    tabular  a row holds the columns of many rollouts, as lists
    decoded  text in the column of the prompt is a decoded chat template, which only --data can turn into a question
    step_of  pattern of the step in the file's path, if no column has it; one group
    """

    meaning: str
    files: tuple[str, ...]
    shows: tuple[str, ...]
    columns: dict[str, tuple[str, ...]]
    groups: tuple[str, ...] = ()
    tabular: bool = False
    decoded: bool = True
    step_of: str | None = None


PLAIN = "plain"
ROLLOUT_LAYOUTS = {
    PLAIN: RolloutLayout(
        "the workbench's own columns (docs/rollouts.md), with those of an example beside them",
        files=("*.jsonl", "*.json", "*.parquet"),
        shows=(),
        columns={name: (name,) for name in ROLLOUT_COLUMNS},
        decoded=False,
    ),
    "trl": RolloutLayout(
        "TRL 1.16, log_completions=True: OUTPUT/completions/completions_STEP.parquet of GRPO, RLOO and distillation",
        files=("completions_*.parquet",),
        shows=("step", "prompt", "completion"),
        columns={"step": ("step",), "prompt": ("prompt",), "completion": ("completion",), "id": ("id",)},
    ),
    "ms-swift": RolloutLayout(
        "ms-swift 4.6, --log_completions true: OUTPUT/completions.jsonl of GRPO and GKD, a line for each logged step",
        files=("completions.jsonl",),
        shows=("step", "prompt", "completion"),
        columns={
            "step": ("step",),
            "prompt": ("prompt",),
            "completion": ("completion",),
            "answer": ("solution",),
            "id": ("id",),
        },
        tabular=True,
    ),
    "verl": RolloutLayout(
        "verl 0.9, trainer.rollout_data_dir: DIR/STEP.jsonl",
        files=("[0-9]*.jsonl",),
        shows=("input", "output", "gts", "score", "step"),
        columns={
            "step": ("step",),
            "prompt": ("input",),
            "completion": ("output",),
            "answer": ("gts",),
            "reward": ("score",),
            "id": ("id",),
        },
    ),
    "nemo-rl": RolloutLayout(
        "NeMo-RL of 2026: LOGS/exp_NNN/train_data_stepSTEP.jsonl of GRPO and distillation",
        files=("train_data_step*.jsonl",),
        shows=("content", "token_ids", "token_loss_mask", "input_lengths"),
        columns={
            "prompt": ("content.:-1",),
            "token_ids": ("token_ids",),
            "mask": ("token_loss_mask",),
            "num_tokens": ("input_lengths",),
            "token_logprobs": ("generation_logprobs",),
            "reward": ("rewards",),
            "id": ("id",),
        },
        step_of=r"train_data_step(\d+)\.jsonl$",
    ),
    "prime-rl": RolloutLayout(
        "prime-rl of 2026 with verifiers 0.4: OUTPUT/rollouts/step_STEP/*.jsonl, a trace for each line",
        files=("train_rollouts.jsonl", "effective.jsonl", "all.jsonl"),
        shows=("nodes", "task", "rewards"),
        columns={
            "messages": ("nodes.*.message",),
            "token_ids": ("nodes.*.token_ids",),
            "mask": ("nodes.*.mask",),
            "logprobs": ("nodes.*.logprobs",),
            "answer": ("task.data.answer",),
            "id": ("task.data.id",),
        },
        groups=("rewards", "metrics"),
        step_of=r"step_(\d+)/",
    ),
    "verifiers": RolloutLayout(
        "prime-rl of 2025 with verifiers before 0.2: OUTPUT/rollouts/step_STEP/train_rollouts.jsonl",
        files=("train_rollouts.jsonl",),
        shows=("prompt", "completion", "trajectory"),
        columns={
            "prompt": ("prompt",),
            "prompt_ids": ("trajectory.-1.tokens.prompt_ids",),
            "completion_ids": ("trajectory.-1.tokens.completion_ids",),
            "logprobs": ("trajectory.-1.tokens.completion_logprobs",),
            "truncated": ("trajectory.-1.tokens.is_truncated", "is_truncated"),
            "completion": ("completion",),
            "reward": ("reward",),
            "answer": ("answer",),
            "id": ("info.id",),
        },
        groups=("metrics",),
        step_of=r"step_(\d+)/",
    ),
    "slime": RolloutLayout(
        "slime of 2026, --save-debug-rollout-data, its samples converted to JSON lines (docs/rollouts.md)",
        files=("*.jsonl",),
        shows=("tokens", "response", "response_length"),
        columns={
            "step": ("rollout_id",),
            "prompt": ("prompt",),
            "completion": ("response",),
            "token_ids": ("tokens",),
            "completion_length": ("response_length",),
            "logprobs": ("rollout_log_probs",),
            "reward": ("reward",),
            "answer": ("label",),
            "id": ("metadata.id",),
        },
        groups=("reward",),
        step_of=r"(\d+)\.jsonl$",
    ),
}


def load_rollout_layout(name: str) -> RolloutLayout:
    """Look up a layout. Raises ConfigError with the known names."""
    if name not in ROLLOUT_LAYOUTS:
        raise ConfigError(unknown("layout", name, ROLLOUT_LAYOUTS))
    return ROLLOUT_LAYOUTS[name]


def recognize(file: Path, values: dict[str, Any]) -> str:
    """Name of the layout whose file names and columns fit; plain if none does."""
    for name, layout in ROLLOUT_LAYOUTS.items():
        fits = any(fnmatch(file.name, pattern) for pattern in layout.files)
        if layout.shows and fits and set(layout.shows) <= values.keys():
            return name
    return PLAIN


def look_up(values: Any, path: str) -> Any:
    """Value at a path; None if the row lacks it."""
    head, dot, rest = path.partition(".")
    if head == "*":
        if not isinstance(values, list):
            return None
        values_of_entries = [look_up(entry, rest) if dot else entry for entry in values]
        entries = [value for value in values_of_entries if value is not None]
        is_nested = bool(entries) and all(isinstance(entry, list) for entry in entries)
        joined = [item for entry in entries for item in entry] if is_nested else entries
        return joined or None
    if isinstance(values, dict):
        value = values.get(head)
    elif isinstance(values, list) and head == ":-1":
        value = values[:-1]
    elif isinstance(values, list) and head.lstrip("-").isdigit() and -len(values) <= int(head) < len(values):
        value = values[int(head)]
    else:
        return None
    return look_up(value, rest) if dot else value
